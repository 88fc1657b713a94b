"""A throw-away host: private namespaces of this one, in which every level runs beside every other.

What is made in them (processes, mounts, network links, everything in /run) ends with them. What outlives a namespace,
cgroups, files on the disk, an instance of the kernel's tracer, carries the world's id in its name, and is removed by
a sweeper: a process that does nothing but wait for the world's end, however that comes. Should it be killed too, the
next world sweeps.

Sources: namespaces(7), pid_namespaces(7), mount_namespaces(7), cgroups(7).
"""

from __future__ import annotations

import copy
import fcntl
import os
import select
import shutil
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from pycontain.isolation.sweeping import DISK, PREFIX, new_id, remove_cgroup, sweep, sweep_dead
from pycontain.runtime.errors import KernelError, NotFound, PycontainError
from pycontain.runtime.kernel import syscalls
from pycontain.runtime.kernel.cgroup import Cgroup, open_cgroup
from pycontain.runtime.kernel.hierarchies import hierarchies, mode_of

CAP_MEMORY, CAP_PIDS = 1 << 30, 600  # of every tenant
DIRECTORY = "/run/pycontain-isolation"
PUBLIC = "/run/pycontain-tenants"

_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC, _CLONE_NEWPID, _CLONE_NEWNET = 0x20000, 1 << 26, 1 << 27, 1 << 29, 1 << 30
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 2, 4, 8, 0x4000, 0x40000
_MS_SHARED = 0x100000
_MNT_DETACH = 2
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1  # netdevice(7)
_NAMES = {"mnt": _CLONE_NEWNS, "uts": _CLONE_NEWUTS, "ipc": _CLONE_NEWIPC, "net": _CLONE_NEWNET}

T = TypeVar("T")


class World:
    """Where a comparison happens. Made by `enter` and by `here`, never by itself.

    ``directory``: the world's own, on a tmpfs that ends with it, mode 0700; ``public``: one that everybody may pass
    through, where the tenants are. ``cap``: the name of the cgroup (absolute,
    the same in every hierarchy) that its tenants are below. ``probe``: the program with all probes, on the host.
    ``mine``: the command of pycontain-runtime. ``together``: tenants of levels without cgroups have one share of the
    processors for all, as processes of a host have, and not one each by the caps around them.
    """

    def __init__(self, id: str, cap: str) -> None:
        self.id = id
        self.directory = DIRECTORY
        self.public = PUBLIC
        self._disk = f"{DISK}/{PREFIX}{id}"
        self.cap = cap
        self.together = False
        self.probe = os.path.join(os.path.dirname(__file__), "probes", "pycontain-probe")
        self.mine = _mine()
        self._closing = ExitStack()
        self._made: dict[object, Any] = {}
        self._count = [0]
        if not os.access(self.probe, os.X_OK):
            raise NotFound(f"the probes are not built: {self.probe} is not there", hint="reinstall pycontain")

    def number(self) -> int:
        """Another one each time, for names."""
        self._count[0] += 1
        return self._count[0]

    def bin(self, name: str) -> str | None:
        """The path of a program of the host, or None."""
        return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin")

    def scratch(self, name: str) -> str:
        """A fresh directory on a real disk; everybody may enter it. It is removed at the world's end."""
        os.makedirs(self._disk, 0o711, exist_ok=True)
        path = f"{self._disk}/{name}-{self.number()}"
        os.mkdir(path)
        return path

    def once(self, make: Callable[[World], T]) -> T:
        """What ``make`` gives, which is called the first time only in this world."""
        if make not in self._made:
            self._made[make] = make(self)
        found: T = self._made[make]
        return found

    def at_end(self, function: Callable[..., object], *arguments: object) -> None:
        """Call it at an orderly end of the world, last come, first served. A killed world calls nothing."""
        self._closing.callback(function, *arguments)

    @contextmanager
    def cgroup(
        self,
        name: str,
        memory: int | None = None,
        pids: int | None = None,
        cpus: float | None = None,
        cpuset: str = "",
    ) -> Iterator[World]:
        """The same world, with one more cap around all its tenants ``together``; ``memory`` in bytes, ``cpus`` a share
        of processors, ``cpuset`` which ones (``0-1``)."""
        inner = copy.copy(self)
        inner.together = True
        inner.cap = f"{self.cap}/{name}-{self.number()}"
        group = make_cgroup(inner.cap, memory=memory, pids=pids, cpus=cpus, cpuset=cpuset)
        try:
            yield inner
        finally:
            remove_cgroup(group)

    @contextmanager
    def small_disk(self, size: int, inodes: int) -> Iterator[World]:
        """The same world, whose disk is a small one: a tmpfs of ``size`` bytes and that many ``inodes``, with the
        tenants' root file systems, their machines' disks and ``scratch`` on it."""
        inner = copy.copy(self)
        inner.public = inner._disk = f"{PUBLIC}/disk-{self.number()}"
        os.mkdir(inner.public)
        try:
            options = f"mode=711,size={size},nr_inodes={inodes}"
            syscalls.mount("tmpfs", inner.public, "tmpfs", _MS_NOSUID | _MS_NODEV, options)
            yield inner
        finally:
            syscalls.umount2(inner.public, _MNT_DETACH)
            os.rmdir(inner.public)


def make_cgroup(
    path: str,
    *,
    memory: int | None = None,
    pids: int | None = None,
    cpus: float | None = None,
    cpuset: str = "",
) -> Cgroup:
    """A fresh cgroup with these limits. Raises KernelError."""
    group = open_cgroup(path)
    group.create()
    resources: dict[str, Any] = {}
    if memory:
        resources["memory"] = {"limit": memory}
    if pids:
        resources["pids"] = {"limit": pids}
    if cpus:
        resources["cpu"] = {"quota": int(cpus * 100_000), "period": 100_000}
    if cpuset:
        resources.setdefault("cpu", {})["cpus"] = cpuset
    group.apply(resources)
    return group


def _mine() -> list[str]:
    beside = os.path.join(os.path.dirname(sys.executable), "pycontain-runtime")
    found = beside if os.access(beside, os.X_OK) else shutil.which("pycontain-runtime")
    return [found] if found else [sys.executable, "-m", "pycontain.runtime.main"]


# ---- making one


def enter(main: Callable[[World], int]) -> int:
    """Call ``main`` in a world of its own, in another process; its result, or 128 + the signal that ended it.

    Its first process is a reaper, so that orphans of any level end. Whatever ends this process, ends the world: each
    process of the chain dies with the one above it, and a pid namespace dies with its first process.
    """
    _root()
    sweep_dead()
    id = new_id()
    sys.stdout.flush()
    sys.stderr.flush()
    sweeper, held = _sweeper(id)
    alive, ours = os.pipe2(os.O_CLOEXEC)
    keeper = os.fork()
    if not keeper:
        os.close(ours)
        _keep(main, id, held, alive)
    os.close(alive)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the world's own process gets it too, and says what to do
    try:
        status = _wait(keeper)
    finally:
        os.close(ours)
        os.close(held)
        os.waitpid(sweeper, 0)
        signal.signal(signal.SIGINT, before)
    return status


def _die_with(alive: int) -> None:
    """Die with the parent, which holds the other end of ``alive``: it may be dead by now, and the signal missed."""
    syscalls.die_with_parent()
    if select.select([alive], [], [], 0)[0]:
        os._exit(128 + signal.SIGKILL)
    os.close(alive)


def _keep(main: Callable[[World], int], id: str, held: int, alive: int) -> None:
    """The parent of the world's first process, which makes the pid namespace. Does not return."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _die_with(alive)
        alive, ours = os.pipe2(os.O_CLOEXEC)
        syscalls.unshare(_CLONE_NEWPID)
        first = os.fork()
        if not first:
            os.close(ours)
            _first(main, id, held, alive)
        os.close(held)
        os._exit(_wait(first))
    except BaseException as error:
        _last_words(error)


def _first(main: Callable[[World], int], id: str, held: int, alive: int) -> None:
    """Process 1 of the world: prepares it, reaps. Does not return."""
    try:
        _die_with(alive)
        syscalls.unshare(_CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWNET)
        _mounts(proc=True)
        _loopback()
        child = os.fork()
        if not child:
            _inside(main, id)
        os.close(held)  # only who may make cgroups and files holds the sweeper back
        status = 0
        while True:
            pid, ended = os.waitpid(-1, 0)
            if pid == child:
                status = _status(ended)
                break
        os._exit(status)
    except BaseException as error:
        _last_words(error)


def _inside(main: Callable[[World], int], id: str) -> None:
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with _world(id) as world:
            status = main(world)
        sys.stdout.flush()
        os._exit(status)
    except BaseException as error:
        _last_words(error)


def _last_words(error: BaseException) -> None:
    """The end of a forked process; what it printed is out, and nobody above sees the exception."""
    sys.stdout.flush()
    if isinstance(error, PycontainError):
        hint = f"\nhint: {error.hint}" if error.hint else ""
        print(f"pycontain: {error.message}{hint}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        os._exit(130)
    sys.excepthook(type(error), error, error.__traceback__)
    sys.stderr.flush()
    os._exit(1)


@contextmanager
def here() -> Iterator[World]:
    """A world around this very process, for tests: it leaves its mount, network, ipc and uts namespaces and comes back.

    The pid namespace stays the host's, so a killed process leaves no more than the sweeper finds: everything that
    levels start is in the world's cgroup. Threads of this process stay where they are.
    """
    _root()
    id = new_id()
    sweeper, held = _sweeper(id)
    before = {name: os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in _NAMES}
    directory = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.unshare(_CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWNET)
        _mounts(proc=False)
        _loopback()
        with _world(id) as world:
            yield world
    finally:
        for name, fd in before.items():
            syscalls.setns(fd, _NAMES[name])
            os.close(fd)
        os.fchdir(directory)
        os.close(directory)
        os.close(held)
        os.waitpid(sweeper, 0)


@contextmanager
def _world(id: str) -> Iterator[World]:
    umask = os.umask(0o022)
    os.mkdir(DIRECTORY, 0o700)
    os.mkdir(PUBLIC, 0o711)
    cap = f"/{PREFIX}{id}"
    group = make_cgroup(cap)
    world = World(id, cap)
    try:
        with world._closing:
            yield world
    finally:
        os.umask(umask)
        remove_cgroup(group)


def _mounts(*, proc: bool) -> None:
    """Mounts of our own: nothing propagates; /run is empty; of a hybrid host's cgroups version 1 is left, which has
    the controllers (crun 1.8 refuses both at once)."""
    try:
        syscalls.mount(None, "/", None, _MS_REC | _MS_PRIVATE)
        if proc:
            syscalls.mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
        # Neither nosuid nor nodev: nor has the file system on which engines keep their containers' root directories.
        syscalls.mount("tmpfs", "/run", "tmpfs", 0, "mode=755")
        syscalls.mount(None, "/run", None, _MS_SHARED)  # with the mount namespace that other users enter
        if os.path.isdir("/dev/shm"):  # a mount of its own: its files outlive an ipc namespace
            syscalls.mount("tmpfs", "/dev/shm", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777")
        found = hierarchies()
        if mode_of(found) == "hybrid":
            for hierarchy in found:
                if hierarchy.unified:
                    syscalls.umount2(hierarchy.mount, _MNT_DETACH)
                    # crun makes its directory there all the same: in the file system of the host, which outlives us.
                    syscalls.mount("tmpfs", hierarchy.mount, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=755")
    except OSError as error:
        raise KernelError(f"make the mounts of the comparison's world: {error.filename}", error.errno or 0) from None


def _loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))


def _root() -> None:
    if os.geteuid():
        raise PycontainError(
            f"the comparison makes namespaces and cgroups: the effective user is {os.geteuid()}, not root",
            hint="sudo pycontain isolation run",
        )


def _wait(pid: int) -> int:
    return _status(os.waitpid(pid, 0)[1])


def _status(ended: int) -> int:
    code = os.waitstatus_to_exitcode(ended)
    return code if code >= 0 else 128 - code


# ---- clearing up, when it has ended


def _sweeper(id: str) -> tuple[int, int]:
    """A process that sweeps when the last copy of a descriptor is closed: (its pid, the descriptor)."""
    wait, held = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid:
        os.close(wait)
        return pid, held
    try:
        os.setsid()  # neither a terminal's signals nor those for a process group
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)  # it must not hold open a pipe that somebody reads to its end
        os.dup2(wait, 3)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        os.read(3, 1)
        sweep(id)
        os._exit(0)
    except BaseException as error:
        _last_words(error)
    raise AssertionError("not reached")
