"""kill -9 of anything that a container in a machine is made of, at any moment: ``rm -f`` or ``system prune`` clear it all.

The machine's processes end with the stand-in, and the stand-in with the cgroup; what a dead builder of a template
leaves is swept by the next one or by prune.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pycontain.engine import supervise
from tests import machine_tools
from tests.engine_tools import IMAGE, Host

pytestmark = [
    pytest.mark.needs("root", "overlayfs", "bridge", "veth", "nft", *machine_tools.NEEDS),
    pytest.mark.timeout(900),
]
LOOP = "while :; do sleep 0.05; done"
KILLS = int(os.environ.get("PYCONTAIN_VM_KILLS", "50"))
BUILDERS = int(os.environ.get("PYCONTAIN_VM_BUILDER_KILLS", "3"))
ZEROS = "10e4462c9d0b08e7f0b304c4fbfeafa3"  # of 20,000,000 zeros
HIERARCHIES = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*/")]
WITH_HELPER = 8  # every so many-th has virtiofsd beside it, which is plugged in


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    made = Host(tmp_path_factory.mktemp("engine"))
    made.executor = "vm"
    made.seed()
    made("run", "--rm", IMAGE, "true")
    yield made
    made.close()


def settled(host: Host, seconds: float = 10) -> list[str]:
    """What is left once those that are clearing up have done so."""
    end = time.monotonic() + seconds
    while (left := [*host.left(), *of_cgroups(host)]) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def of_cgroups(host: Host) -> list[str]:
    """Processes of the containers that were seen, whatever they are called."""
    return [f"process {pid} ({name})" for id in host.seen for pid, name in members(id).items()]


def members(id: str) -> dict[int, str]:
    """The processes in a container's cgroup, with their names."""
    pids: set[int] = set()
    # Not with "**": other cgroups come and go while it looks.
    for path in HIERARCHIES if id else ():
        path = path / "pycontain" / id / "cgroup.procs"
        with contextlib.suppress(OSError):
            pids.update(map(int, path.read_text().split()))
    found = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            found[pid] = Path(f"/proc/{pid}/comm").read_text().strip()
    return found


def start(host: Host, *words: str, errors: int | None = None) -> subprocess.Popen[bytes]:
    """``errors``: a descriptor for what it says of them."""
    return subprocess.Popen(
        host.argv(*words),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors or subprocess.DEVNULL, env=host.environment,
    )  # fmt: skip


class Victim:
    """The container "victim" as it is found from outside, at any moment."""

    def __init__(self, host: Host) -> None:
        self.host = host

    @property
    def id(self) -> str:
        try:
            return (self.host.data / "names/victim").read_text().strip()
        except OSError:
            return ""

    def supervisors(self) -> list[int]:
        found = supervise.read_processes(str(self.host.run_directory / "containers" / self.id / "supervisor.pid"))
        return [found.pid] if found is not None else []

    def stand_ins(self) -> list[int]:
        return [pid for pid, name in members(self.id).items() if not name.startswith(("qemu", "virtiofsd"))]

    def qemu(self) -> list[int]:
        return [pid for pid, name in members(self.id).items() if name.startswith("qemu")]

    def virtiofsd(self) -> list[int]:
        return [pid for pid, name in members(self.id).items() if name.startswith("virtiofsd")]

    def running(self) -> bool:
        try:
            return b'"status":"running"' in (self.host.run_directory / "runtime" / self.id / "state.json").read_bytes()
        except OSError:
            return False


def until(ready: Callable[[], object], process: subprocess.Popen[bytes], seconds: float = 90) -> bool:
    """Wait for it, or for the process's end, which is False."""
    end = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None:
            return False
        assert time.monotonic() < end
        time.sleep(0.002)
    return True


def kill(pids: list[int]) -> bool:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(pids)


def reap(process: subprocess.Popen[bytes], seconds: float = 90) -> None:
    """It ends by itself where what it waits for is gone, at the latest when the guest has answered or has not."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def test_kills_at_any_moment(host: Host, tmp_path: Path) -> None:
    seed = int(os.environ.get("PYCONTAIN_TEST_SEED", "0")) or random.randrange(1 << 30)
    print(f"PYCONTAIN_TEST_SEED={seed}")
    dice = random.Random(seed)
    hits: Counter[tuple[str, str]] = Counter()
    victim = Victim(host)
    failed = []
    for i in range(KILLS):
        shared = i % WITH_HELPER == WITH_HELPER - 1
        phase = dice.choice(["creation", "creation", "running", "exec", "stop"])
        who = dice.choice(["command", "supervisors", "stand_ins", "qemu", *(["virtiofsd"] * 2 if shared else [])])
        more = ("-v", f"{tmp_path}:/shared") if shared else ()
        with open(tmp_path / "errors", "wb") as errors:
            process = start(host, "run", "--name", "victim", *more, IMAGE, "sh", "-c", LOOP, errors=errors.fileno())
        others: list[subprocess.Popen[bytes]] = []
        moment = time.monotonic() + dice.uniform(0.02, 2.5 if shared else 0.6)
        if phase != "creation":
            if not until(victim.running, process):
                failed.append(f"start {i} ended by itself: {(tmp_path / 'errors').read_text()}")
            if phase != "running":
                words = ("exec", "victim", "sleep", "5") if phase == "exec" else ("stop", "-t", "1", "victim")
                others.append(start(host, *words))
            moment = time.monotonic() + dice.uniform(0, 0.3)
        time.sleep(max(0.0, moment - time.monotonic()))
        if who == "command":
            hit = kill([one.pid for one in (others or [process]) if one.poll() is None])
        else:
            pids: list[int] = []
            until(lambda: pids.extend(getattr(victim, who)()) or pids, process, 5)  # noqa: B023
            hit = kill(pids)
        hits[phase, who] += hit
        host.note()
        if who == "command" and not others:
            process.wait()
        elif who in ("stand_ins", "qemu", "supervisors") and hit:
            reap(process)  # whoever waits for a container that was killed is told
        if i % 2:
            host("rm", "-f", "victim", status=None)
        host("system", "prune", "-f")
        if i % 2 == 0:
            host("rm", "-f", "victim", status=None)  # what still ran
        for one in [process, *others]:
            reap(one)
        host("system", "prune", "-f")
        assert settled(host) == [], (i, phase, who)
    assert host.out("run", "--rm", "--name", "victim", IMAGE, "echo", "again") == "again\n"
    assert sum(hits.values()) > KILLS // 2, hits
    assert failed == []
    print(sorted(hits.items()))


def test_who_builds_a_template_is_killed(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = random.Random(0)
    directory = tmp_path_factory.mktemp("builder")
    cache = directory / "cache"
    cache.mkdir()
    (cache / "kernel").symlink_to(machine_tools.cache() / "kernel")
    (directory / "settings").mkdir()
    monkeypatch.setenv("PYCONTAIN_VM_CONFIG", str(machine_tools.settings(directory / "settings", cache=str(cache))))
    host = Host(directory / "engine")
    host.directory.mkdir()
    host.executor = "vm"
    host.seed()
    templates = cache / "templates"

    def building() -> list[Path]:
        return list(templates.glob("*.part"))

    for i in range(BUILDERS):
        process = start(host, "run", "--name", "victim", IMAGE, "true")
        assert until(building, process)
        time.sleep(dice.uniform(0, 1.5))
        (part,) = building()
        process.kill()
        process.wait()
        end = time.monotonic() + 5
        while left := [pid for pid, name in running_machines() if part.stem in name]:
            assert time.monotonic() < end, left
            time.sleep(0.02)
        assert building() == [part]
        host("rm", "-f", "victim", status=None)
        if i % 2 == 0:
            host("system", "prune", "-f")
            assert os.listdir(templates) == []
        else:
            assert host.out("run", "--rm", IMAGE, "echo", "built") == "built\n"
            assert building() == []
            (done,) = (path for path in templates.iterdir() if path.is_dir())
            assert sorted({"kernel", *os.listdir(done)}) == ["kernel", "made-of", "ram", "state"]
            # It is still there for the next, and not after its kernel is another.
            host("system", "prune", "-f")
            assert done.is_dir()
            (done / "made-of").write_text('{"files": [["/boot/other", 1, 2, 3]], "initrd": ""}')
            name = host.out("run", "-d", IMAGE, "sh", "-c", LOOP).strip()
            (cache / "initramfs-old").write_bytes(b"")
            (cache / "initramfs-0-0.4194304").write_bytes(b"")
            assert f"template {done.name}" in host.out("system", "prune", "-f")
            assert os.listdir(templates) == []
            assert len(list(cache.glob("initramfs-*"))) == 1
            # Its clone has the files open.
            assert host.out("exec", name, "sh", "-c", "head -c 20000000 /dev/zero | md5sum") == f"{ZEROS}  -\n"
            host("rm", "-f", name)
    assert settled(host) == []
    host.close()


def running_machines() -> list[tuple[int, str]]:
    """(pid, name) of every QEMU of ours."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            if words[1:2] == [b"-name"] and words[2].startswith(b"pycontain-"):
                found.append((int(entry), words[2].decode()))
    return found
