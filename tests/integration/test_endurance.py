"""Many containers, many at once, killed at any moment: nothing of theirs is left."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host_tools import IMAGE, Host, cgroups, host_with_image, no_more_cgroups_than

pytestmark = pytest.mark.needs("root", "overlayfs", "bridge", "veth", "nft", "netns")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with host_with_image(tmp_path_factory.mktemp("endurance")) as host:
        yield host


def seeded() -> random.Random:
    seed = int(os.environ.get("PYCONTAIN_TEST_SEED", "0")) or random.randrange(1 << 30)
    print(f"PYCONTAIN_TEST_SEED={seed}")
    return random.Random(seed)


@pytest.mark.timeout(300)
def test_two_hundred_one_after_another(host: Host, tmp_path: Path) -> None:
    before = cgroups()
    # One shell runs them all: 200 starts of Python's subprocess would be most of the time.
    command = " ".join(host.command("run", "--rm", IMAGE, "sh", "-c", "'exit 7'"))
    script = f"i=0; while [ $i -lt 200 ]; do {command} || [ $? = 7 ] || exit 1; i=$((i+1)); done"
    done = subprocess.run(["sh", "-c", script], env=host.env, capture_output=True, text=True, timeout=290)
    assert (done.returncode, done.stderr) == (0, "")
    assert host.left() == {}
    assert no_more_cgroups_than(before, host)


@pytest.mark.timeout(180)
def test_twenty_at_once(host: Host) -> None:
    before = cgroups()
    running = [
        host.start(
            "run", "--rm", "--name", f"many{i}", "-p", f"{21000 + i}:80", IMAGE, "sh", "-c", f"sleep 1; exit {i}"
        )
        for i in range(20)
    ]
    assert [process.wait(150) for process in running] == list(range(20))
    assert host.left() == {}
    assert no_more_cgroups_than(before, host)


def supervisor_of(host: Host, name: str) -> int:
    """0 where there is none. From the files: to ask ``ps`` takes longer than most of what is to be hit."""
    try:
        id = (host.data / "names" / name).read_text().strip()
        return int(json.loads((host.run_root / "containers" / id / "supervisor.pid").read_text())["pid"])
    except (OSError, ValueError, KeyError):
        return 0


def children_of(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@pytest.mark.timeout(400)
def test_a_hundred_kills(host: Host) -> None:
    """kill -9 of the command, the supervisor or init: rm -f or system prune leaves nothing, and the name is free."""
    dice = seeded()
    before = cgroups()
    for i in range(100):
        name = f"crash{i % 3}"
        victim = dice.choice(["command", "supervisor", "init"])
        process = host.start("run", "--rm", "--name", name, "-p", "22000:80", IMAGE, "sleep", "0.2")
        deadline = time.monotonic() + dice.uniform(0.02, 0.5)
        if victim != "command":
            pid = 0
            while time.monotonic() < deadline or not pid:
                pid = supervisor_of(host, name)
                if process.poll() is not None:
                    break
                time.sleep(0.002)
            targets = [pid] if victim == "supervisor" else children_of(pid)
            for target in targets:
                if target:
                    try:
                        os.kill(target, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
            if victim == "init":
                time.sleep(dice.uniform(0, 0.05))
        else:
            time.sleep(max(0.0, deadline - time.monotonic()))
        process.kill()
        process.wait()
        if i % 2:
            host("system", "prune", "-f", check=True)
            host("rm", "-f", name)
        else:
            host("rm", "-f", name)
        settled = time.monotonic() + 10
        while (left := host.left()) and time.monotonic() < settled:
            time.sleep(0.1)  # a teardown that the supervisor began is on its way
            host("system", "prune", "-f", check=True)
        assert left == {}
        assert no_more_cgroups_than(before, host), (i, victim)
    done = host("run", "--rm", "--name", "crash0", "-p", "22000:80", IMAGE, "echo", "free again", check=True)
    assert done.stdout == "free again\n"


@pytest.mark.timeout(240)
def test_pull_run_rm_rmi_prune_race(host: Host, tmp_path: Path) -> None:
    """Eight processes at the same image for a while (PYCONTAIN_RACE_SECONDS; a minute outside the suite)."""
    seconds = float(os.environ.get("PYCONTAIN_RACE_SECONDS", "10"))
    tar = tmp_path / "image.tar"
    host("save", "-o", tar, IMAGE, check=True)
    scripts = [
        f"run --rm {IMAGE} true",
        f"run --rm --network none {IMAGE} true",
        f"run -d --rm {IMAGE} sleep 0.1",
        f"load -i {tar}",
        f"load -i {tar}",
        f"rmi {IMAGE}",
        "system prune -f",
        "images",
    ]
    go = tmp_path / "go"
    go.touch()
    processes = []
    for i, script in enumerate(scripts):
        command, good, bad = " ".join(host.command(*script.split())), tmp_path / f"good{i}", tmp_path / f"bad{i}"
        pause = "; sleep 1" if "rmi" in script else ""  # else there is never an image to run
        loop = f"while [ -e {go} ]; do {command} 2>>{bad} >/dev/null && echo >>{good}{pause}; done; true"
        processes.append((script, good, bad, subprocess.Popen(["sh", "-c", loop], env=host.env)))
    time.sleep(seconds)
    patience = time.monotonic() + 60  # a run finds the image removed or in use for as long as chance has it
    while not all(good.exists() or "rmi" in script for script, good, _, _ in processes) and time.monotonic() < patience:
        time.sleep(0.1)
    go.unlink()
    for _, _, _, process in processes:
        assert process.wait(60) == 0
    # What may be said where others take the image away: it is in use, or it is gone (then run tries to pull it).
    allowed = ("in use", "no such image", f"pull {IMAGE}", f"pulling {IMAGE}", "hint:")
    for script, good, bad, _ in processes:
        for line in bad.read_text().splitlines():
            assert not line or any(word in line.lower() for word in allowed), f"{script}: {line}"
        assert good.exists() or "rmi" in script, f"{script} never succeeded"  # rmi may find the image in use each time
    host("load", "-i", tar, check=True)
    assert host("run", "--rm", IMAGE, "echo", "undamaged", check=True).stdout == "undamaged\n"
    host("system", "prune", "-f", check=True)
    assert host.left() == {}
