"""What worlds leave: what outlives a namespace, by the world's id in its name, and who removes it."""

from __future__ import annotations

import errno
import os
import shutil
import time

from pycontain.runtime.kernel.cgroup import Cgroup, open_cgroup
from pycontain.runtime.kernel.hierarchies import hierarchies
from pycontain.runtime.state import start_time

PREFIX = "pycontain-isolation-"
DISK = "/var/tmp"
INSTANCES = "/sys/kernel/tracing/instances"


def new_id() -> str:
    """Of this process, by its start time too, as numbers come again: ``PID-TICKS-COUNT``."""
    _ids.append(0)
    return f"{os.getpid()}-{start_time(os.getpid())}-{len(_ids)}"


_ids: list[int] = []


def remove_cgroup(group: Cgroup) -> None:
    """Kill what is in it, remove it and all below it."""
    if group.exists():
        group.kill_all()
        group.remove()


def sweep(id: str) -> None:
    """Remove what a world has left: its cgroups with all that runs in them, its files, its tracer."""
    remove_cgroup(open_cgroup(f"/{PREFIX}{id}"))
    instance = f"{INSTANCES}/{PREFIX}{id}"
    until = time.monotonic() + 1
    while os.path.isdir(instance):
        try:
            os.rmdir(instance)
        except OSError as error:
            # A file in it is open, which a process that dies is about to close.
            if error.errno != errno.EBUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)
    path = f"{DISK}/{PREFIX}{id}"
    if os.path.isdir(path):
        shutil.rmtree(path)


def leftovers() -> list[str]:
    """The ids of worlds of which there is a cgroup, a file or a tracer, living ones included."""
    found = set()
    for above in (*(hierarchy.mount for hierarchy in hierarchies()), DISK, INSTANCES):
        for name in os.listdir(above) if os.path.isdir(above) else ():
            path = os.path.join(above, name)
            # Others may write to that directory too.
            if name.startswith(PREFIX) and os.path.isdir(path) and os.lstat(path).st_uid == os.geteuid():
                found.add(name.removeprefix(PREFIX))
    return sorted(found)


def sweep_dead() -> None:
    """Sweep every world whose process is gone: that of its number, if there is one, was started at another time."""
    for id in leftovers():
        pid, _, rest = id.partition("-")
        if pid.isdigit() and str(start_time(int(pid))) != rest.partition("-")[0]:
            sweep(id)
