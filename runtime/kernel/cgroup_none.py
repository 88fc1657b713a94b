"""A container without a cgroup: what a user may have who has none to give. Its processes are told by a namespace."""

from __future__ import annotations

import posix as os
from errno import EBUSY
from fcntl import ioctl
from time import monotonic, sleep

from pycontain.runtime.errors import KernelError, Unsupported
from pycontain.runtime.kernel.cgroup import RESOURCES, Cgroup
from pycontain.runtime.state import start_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontain.runtime.kernel.cgroup import Setting

_NS_GET_PARENT = 0xB702  # ioctl_nsfs(2)
_KILL_SECONDS = 10.0
HINT = "let root give this user a cgroup2 directory (systemd: Delegate=yes), and name it in $.linux.cgroupsPath"


class NoCgroup(Cgroup):
    """See :class:`Cgroup`. ``pid``: the container's first process, 0 where it is gone or not yet there.

    ``own_pids``: whether it has a pid namespace of its own, whose members are then the container's processes, and end
    with the first one. Where it has none its mount namespace tells them, as long as the first process lives.
    """

    __slots__ = ("_hint", "_own_pids", "_pid")

    def __init__(self, pid: int = 0, own_pids: bool = True, hint: str = HINT) -> None:
        super().__init__("/", [])
        self._hint = hint
        self._pid = pid
        self._own_pids = own_pids

    def create(self) -> None:
        """Nothing to make."""

    def settings(self, resources: dict[str, Any]) -> list[Setting]:
        """Raises Unsupported for the first limit among ``resources``; device rules need no enforcing here.

        Who is not the host's root cannot make device nodes (mknod(2)) and opens those only that the user may open.
        """
        for section, value in resources.items():
            path = None if section == "devices" else _first_asked(value, f"{RESOURCES}{section}")
            if path is not None:
                raise Unsupported(f"{path}: there is no cgroup that this user may set it in", hint=self._hint)
        return []

    def join_fds(self) -> tuple[str, Any]:
        return "v1", []

    def device_program(self, resources: dict[str, Any]) -> bytes | None:
        return None

    def freeze(self, frozen: bool) -> None:
        raise Unsupported(f"cannot {'pause' if frozen else 'resume'} a container that has no cgroup", hint=self._hint)

    def stats(self) -> dict[str, Any]:
        raise Unsupported("cannot count what a container uses that has no cgroup", hint=self._hint)

    def events(self) -> Any:
        raise Unsupported("cannot count what a container uses that has no cgroup", hint=self._hint)

    def oom_kills(self) -> int:
        return 0

    def pids(self) -> list[int]:
        kind = "pid" if self._own_pids else "mnt"
        # A zombie is none: the first process of a pid namespace becomes one when the others are gone.
        wanted = _inode(f"/proc/{self._pid}/ns/{kind}") if self._pid and start_time(self._pid) else None
        if wanted is None:
            return []
        names = (name for name in os.listdir("/proc") if name.isdigit())
        return [int(name) for name in names if _within(f"/proc/{name}/ns/{kind}", wanted) and start_time(int(name))]

    def kill_all(self, timeout: float = _KILL_SECONDS) -> None:
        """SIGKILL everything, the first process last: by it the others are known. KernelError (EBUSY) in the end."""
        deadline = monotonic() + timeout
        while pids := self.pids():
            others = [] if self._own_pids else [pid for pid in pids if pid != self._pid]
            for pid in others or [self._pid]:
                try:
                    os.kill(pid, 9)
                except ProcessLookupError:
                    pass
            if monotonic() > deadline:
                raise KernelError(f"kill the processes {', '.join(map(str, pids[:5]))}: still there", EBUSY)
            sleep(0.001)

    def remove(self) -> None:
        """Nothing to remove."""


def _first_asked(value: Any, path: str) -> str | None:
    """The path of the first limit: what is null, nought, false or -1 sets none."""
    if isinstance(value, dict):
        for key, item in value.items():
            found = _first_asked(item, f"{path}.{key}")
            if found is not None:
                return found
        return None
    if isinstance(value, list):
        return f"{path}[0]" if value else None
    return path if value and value != -1 else None


def _inode(path: str) -> int | None:
    """A namespace by its file; None where the process is gone, or is nobody that we may look into."""
    try:
        return os.stat(path).st_ino
    except OSError:
        return None


def _within(path: str, wanted: int) -> bool:
    """Whether a process is in the namespace ``wanted``, or in a pid namespace below it."""
    found = _inode(path)
    if found is None or found == wanted or not path.endswith("pid"):
        return found == wanted
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        while True:
            try:
                above = ioctl(fd, _NS_GET_PARENT)
            except OSError:  # EPERM: it would be above our own
                return False
            os.close(fd)
            fd = above
            if os.fstat(fd).st_ino == wanted:
                return True
    finally:
        os.close(fd)
