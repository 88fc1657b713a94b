"""What an unprivileged user needs to run containers: a way to the installation, and a cgroup to share out."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pycontain
from pycontain.runtime import namespaces
from pycontain.runtime.errors import KernelError
from pycontain.runtime.kernel import syscalls
from pycontain.runtime.kernel.cgroup import Cgroup
from pycontain.runtime.kernel.files import read

if TYPE_CHECKING:
    from pycontain.isolation.world import World

_CLONE_NEWNS = 0x20000
_MS_BIND, _MS_MOVE, _MS_REC, _MS_SLAVE = 0x1000, 0x2000, 0x4000, 0x80000


def reachable(world: World) -> int | None:
    """A mount namespace in which every user may go to the installation, or None where that is so here."""
    return world.once(_reachable)


def needed(world: World) -> list[str]:
    """The directories that pycontain-runtime is made of: command, interpreter, packages, init."""
    found = {os.path.dirname(os.path.realpath(word)) for word in world.mine[:1]}
    found |= {sys.prefix, os.path.dirname(os.path.dirname(os.path.realpath(pycontain.__file__)))}
    found |= {os.path.dirname(os.path.realpath(path)) for path in (sys.executable, namespaces.INIT)}
    return sorted(found)


def closed(path: str) -> list[str]:
    """The directories on the way to ``path`` that not everybody may pass, topmost first."""
    found: list[str] = []
    while path != "/":
        path = os.path.dirname(path)
        if not os.stat(path).st_mode & 1:
            found.insert(0, path)
    return found


def _reachable(world: World) -> int | None:
    paths = [path for path in needed(world) if closed(path)]
    if not paths:
        return None
    ready, said = os.pipe()
    wait, go = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(go)
            syscalls.unshare(_CLONE_NEWNS)
            syscalls.mount(None, "/", None, _MS_REC | _MS_SLAVE)
            _open_up(f"{world.directory}/hold", paths)
            os.write(said, b"r")
            os.read(wait, 1)
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 1)
    try:
        os.close(said)
        if os.read(ready, 1):
            fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            world.at_end(os.close, fd)
            return fd
    finally:
        for end in (ready, wait, go):
            os.close(end)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    raise KernelError(f"open up the way to {', '.join(paths)} for other users", status)


def _open_up(hold: str, paths: list[str]) -> None:
    """In a mount namespace of one's own: instead of what is in the way, an empty directory with the paths in it."""
    os.makedirs(hold)
    for number, path in enumerate(paths):
        os.mkdir(f"{hold}/{number}")
        syscalls.mount(path, f"{hold}/{number}", None, _MS_BIND | _MS_REC)
    for top in sorted({closed(path)[0] for path in paths}):
        syscalls.mount("tmpfs", top, "tmpfs", 0, "mode=755")
    for number, path in enumerate(paths):
        if not os.path.isdir(path):  # one may lie in another
            os.makedirs(path)
            syscalls.mount(f"{hold}/{number}", path, None, _MS_MOVE)


def delegate(group: Cgroup, user: int) -> None:
    """Give a cgroup of version 2 to a user: the directory, and the files that the kernel says are safe to give."""
    for directory in group.directories:
        os.chown(directory, user, user)
        for name in read("/sys/kernel/cgroup/delegate").split():
            if os.path.exists(f"{directory}/{name}"):
                os.chown(f"{directory}/{name}", user, user)
