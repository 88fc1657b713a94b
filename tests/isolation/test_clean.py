"""A run that is killed at any moment leaves nothing: no process, cgroup, mount, link or file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pycontain.isolation import sweeping
from pycontain.isolation import world as worlds
from pycontain.runtime.state import start_time

pytestmark = pytest.mark.needs("root")
_RUN = """
import os
import sys
from pycontain.isolation import sweeping, world
from pycontain.isolation.levels import level
from pycontain.isolation.model import Job

def main(made):
    open(made.scratch("data") + "/file", "w").close()
    if os.path.isdir(sweeping.INSTANCES):  # tracefs, where it is mounted
        os.mkdir(sweeping.INSTANCES + "/" + sweeping.PREFIX + made.id)
    job = Job(("/bin/sh", "-c", "sleep 1234 & sleep 0.05; echo up; wait"))
    tenants = [level(name).start(made, job) for name in ("process", "chroot", "container", "rootless")]
    for tenant in tenants:
        tenant.line()
    print("up", flush=True)
    tenants[0].line(600)
    return 0

sys.exit(world.enter(main))
"""


def start() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", _RUN], stdout=subprocess.PIPE)


def below(pid: int) -> list[int]:
    """Every process that descends from it."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                parents[int(name)] = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue  # it has ended
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def gone(pids: list[int], id: str, seconds: float = 15.0) -> list[str]:
    """What is still there of a world, when that time is over."""
    until = time.monotonic() + seconds
    while True:
        left = [str(pid) for pid in pids if Path(f"/proc/{pid}").exists()]
        left += [found for found in sweeping.leftovers() if found.startswith(id)]
        left += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if worlds.PUBLIC in line]
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.02)


def test_a_killed_run_leaves_nothing() -> None:
    run = start()
    assert run.stdout is not None and run.stdout.readline() == b"up\n"
    pids = below(run.pid)
    names = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids]
    assert sum(b"sleep\x001234" in name for name in names) == 4, names
    assert [id for id in sweeping.leftovers() if id.startswith(f"{run.pid}-")]
    run.kill()
    run.wait()
    run.stdout.close()
    assert gone(pids, f"{run.pid}-") == []


@pytest.mark.parametrize("moment", [0.2, 0.4])
def test_at_any_moment(moment: float) -> None:
    run = start()
    time.sleep(moment)
    pids = below(run.pid)
    run.kill()
    run.communicate()
    assert gone(pids, f"{run.pid}-") == []


def test_whatever_of_it_is_killed() -> None:
    """The reaper, or the process that measures: the command tells by its status, and sweeps."""
    for which in (-1, -2):
        run = start()
        assert run.stdout is not None and run.stdout.readline() == b"up\n"
        pids = below(run.pid)
        inside = [pid for pid in pids if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(sys.executable.encode())]
        os.kill(inside[which], signal.SIGKILL)
        run.stdout.read()
        run.stdout.close()
        assert run.wait(20) == 128 + 9
        assert gone(pids, f"{run.pid}-", 0) == []


def test_what_nobody_could_sweep_the_next_run_does() -> None:
    run = start()
    assert run.stdout is not None and run.stdout.readline() == b"up\n"
    pids = below(run.pid)
    sweeper = next(pid for pid in pids if os.getsid(pid) == pid)
    os.kill(sweeper, signal.SIGKILL)
    run.kill()
    run.wait()
    run.stdout.close()
    assert gone(pids, "no world's") == []
    assert [id for id in sweeping.leftovers() if id.startswith(f"{run.pid}-")]
    assert worlds.enter(lambda world: 5) == 5
    assert gone(pids, f"{run.pid}-", 0) == []


def test_a_world_whose_number_another_process_has_by_now_is_swept_and_no_living_one() -> None:
    pid, started = os.getpid(), start_time(os.getpid())
    assert started is not None
    last = 9999  # no world of this process's own gets that far
    living, dead, nobodys = f"{pid}-{started}-{last}", f"{pid}-{started - 1}-{last}", f"x-{pid}"
    paths = [Path(sweeping.DISK, sweeping.PREFIX + id) for id in (living, dead, nobodys)]
    for path in paths:
        path.mkdir()
    try:
        sweeping.sweep_dead()
        assert [path.exists() for path in paths] == [True, False, True]
    finally:
        sweeping.sweep(living)
        sweeping.sweep(nobodys)
    assert not any(path.exists() for path in paths)
