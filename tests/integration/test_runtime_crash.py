"""kill -9 of the OCI command, or of init, at a hundred random moments: delete --force leaves nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.runtime_tools import COMMAND, Runtime, left, make_rootfs, write_bundle

pytestmark = pytest.mark.needs("root")


def processes(marker: str) -> list[int]:
    """Processes in a cgroup named ``marker``."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if f"/{marker}\n" in Path(f"/proc/{entry}/cgroup").read_text():
                    found.append(int(entry))
            except OSError:
                continue  # it ended meanwhile
    return found


@pytest.mark.timeout(180)
@pytest.mark.parametrize("victim", ["command", "init"])
def test_a_hundred_kills(tmp_path: Path, victim: str) -> None:
    seed = int(os.environ.get("PYCONTAIN_TEST_SEED", "0")) or random.randrange(1 << 30)
    print(f"PYCONTAIN_TEST_SEED={seed}")
    dice = random.Random(seed)
    rootfs = make_rootfs(tmp_path / "rootfs")
    bundle = write_bundle(tmp_path / "bundle", rootfs, "sleep", "0.02")
    runtime = Runtime(tmp_path / "state")
    seen = set()
    for i in range(50):
        name = f"t-crash-{victim}-{i}"
        child = subprocess.Popen(
            [*COMMAND, "--root", runtime.root, "run", "-b", bundle, name],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + dice.uniform(0.005, 0.12)
        if victim == "command":
            time.sleep(max(0, deadline - time.monotonic()))
            child.kill()
        else:
            hit = False
            while not hit and child.poll() is None:
                for pid in processes(name) if time.monotonic() > deadline else ():
                    try:
                        os.kill(pid, signal.SIGKILL)
                        hit = True
                    except ProcessLookupError:
                        continue
        status = child.wait(20)
        state = runtime("state", name)
        seen.add(state.stdout.partition('"status": ')[2].split(",")[0] or f"gone after {status}")
        assert state.returncode == 0 or "does not exist" in state.stderr, state.stderr
        runtime("delete", "--force", name, check=True)
        assert not left(name)
        assert not processes(name)
        runtime("run", "-b", bundle, name, check=True)  # the name is free again
    assert os.listdir(runtime.root) == []
    assert len(seen) > 1, f"all kills fell into one moment: {seen}"
