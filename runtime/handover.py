"""What is handed through the runtime, between who starts it and the container: sockets of a service manager, readiness,
a pidfd. Off the start path: imported where the environment or an option asks for it.

``LISTEN_FDS`` (sd_listen_fds(3)) and ``NOTIFY_SOCKET`` (sd_notify(3)) as runc passes them on.
"""

from __future__ import annotations

import _socket
import posix as os
from select import POLLIN, poll

from pycontain.runtime.errors import KernelError, PycontainError
from pycontain.runtime.paths import is_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MOUNTED = "/run/notify"  # in the container
_BARRIER_MS = 30_000  # sd_notify_barrier(3)


def listening() -> tuple[int, list[str]]:
    """How many descriptors from 3 on are sockets meant for us, and the environment that passes them on."""
    environment = {name: value.decode("utf-8", "surrogateescape") for name, value in os.environ.items()}
    count = environment[b"LISTEN_FDS"]
    if environment.get(b"LISTEN_PID") != str(os.getpid()):
        return 0, []  # they are somebody else's
    if not count.isdigit() or len(count) > 6:
        raise PycontainError(f"LISTEN_FDS: found {count!r}, wanted a number")
    names = environment.get(b"LISTEN_FDNAMES")
    more = [] if names is None else [f"LISTEN_FDNAMES={names}"]
    return int(count), [f"LISTEN_FDS={count}", "LISTEN_PID=1", *more]


def send_pidfd(path: str, pid: int) -> None:
    """Send a descriptor of process ``pid`` (pidfd_open(2)) to the socket ``path``. Raises KernelError."""
    client = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        client.connect(path)
        pidfd = os.pidfd_open(pid)
        try:
            client.sendmsg([b"pidfd"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, pidfd.to_bytes(4, "little"))])
        finally:
            os.close(pidfd)
    except OSError as error:
        tried = f"--pidfd-socket {path}: cannot send a descriptor of process {pid}"
        raise KernelError(tried, error.errno or 0) from None
    finally:
        client.close()


def offer(config: dict[str, Any], directory: str) -> None:
    """Let a container of this configuration find a socket for its readiness, below its state's ``directory``."""
    options = ["bind", "nosuid", "noexec", "nodev", "ro"]
    mount = {"destination": _MOUNTED, "type": "bind", "source": f"{directory}/notify", "options": options}
    config["mounts"] = [*(config.get("mounts") or ()), mount]
    process = config["process"]
    process["env"] = [*(process.get("env") or ()), f"NOTIFY_SOCKET={_MOUNTED}/notify.sock"]


class Readiness:
    """A container's word that it is ready, passed on to the service manager that waits for it at ``NOTIFY_SOCKET``."""

    def __init__(self, directory: str, manager: str) -> None:
        self._manager = "\0" + manager[1:] if manager.startswith("@") else manager
        self._server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        at = os.open(f"{directory}/notify", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            path = f"/proc/self/fd/{at}/notify.sock"  # by descriptor, as paths may be long
            self._server.bind(path)
            os.chmod(path, 0o777)
        finally:
            os.close(at)

    def pass_on(self, pid: int) -> None:
        """Wait until the container of first process ``pid`` says READY=1, or ends. Raises KernelError."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            poller = poll()
            poller.register(self._server.fileno(), POLLIN)
            poller.register(pidfd, POLLIN)
            while True:
                ready = {fd for fd, _ in poller.poll()}
                if self._server.fileno() in ready:
                    for line in self._server.recv(4096).split(b"\n"):
                        if line.startswith(b"READY="):
                            return self._tell(line, pid)
                elif pidfd in ready:
                    return
        finally:
            os.close(pidfd)
            self._server.close()

    def _tell(self, line: bytes, pid: int) -> None:
        client = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        read_end, write_end = os.pipe()
        try:
            client.connect(self._manager)
            client.send(line + b"\n")
            client.send(b"MAINPID=%d\n" % pid)
            # We may be gone before it looks who has written; the barrier's end says that it has.
            client.sendmsg([b"BARRIER=1"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, write_end.to_bytes(4, "little"))])
            os.close(write_end)
            write_end = -1
            end = poll()
            end.register(read_end, 0)  # POLLHUP is told in any case
            end.poll(_BARRIER_MS)
        except OSError as error:
            raise KernelError(f"NOTIFY_SOCKET: cannot notify {self._manager}", error.errno or 0) from None
        finally:
            client.close()
            os.close(read_end)
            if write_end >= 0:
                os.close(write_end)


def readiness(directory: str) -> Readiness | None:
    """Where our environment and the container's ``directory`` are prepared for it."""
    manager = os.environ.get(b"NOTIFY_SOCKET")
    if not manager or not is_directory(f"{directory}/notify"):
        return None
    return Readiness(directory, manager.decode("utf-8", "surrogateescape"))


def cgroup_fds(
    directories: list[str], unified: str | None, mounts: list[Any], wanted: list[str], moved: str = ""
) -> tuple[int, ...]:
    """Descriptors of sub-cgroups to join, as ``creation.join_fds`` has those of the container's cgroup itself.

    ``directories``: its cgroup's, ``unified`` the one on cgroup2 (or below that, ``moved``); ``mounts``: the host's
    hierarchies; ``wanted``: ``PATH``, or on v1 ``CONTROLLER[,CONTROLLER...]:PATH``, relative to the container's
    cgroup. Raises PycontainError, KernelError.
    """
    below = {directory: moved if directory == unified else "" for directory in directories}
    for word in wanted:
        names, colon, path = word.partition(":")
        if not colon:
            names, path = "", word
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise PycontainError(f"--cgroup {word}: it must not hold '..'")
        chosen = directories
        if names:
            chosen = [_directory_of(name, directories, mounts, word) for name in names.split(",")]
        for directory in chosen:
            below[directory] = "".join(f"/{part}" for part in parts)
    opened: list[int] = []
    try:
        if unified is not None:
            opened.append(_open(unified + below[unified], os.O_RDONLY | os.O_DIRECTORY))
        for directory in directories:
            if directory != unified:
                opened.append(_open(f"{directory}{below[directory]}/tasks", os.O_WRONLY))
    except KernelError:
        for fd in opened:
            os.close(fd)
        raise
    return tuple(opened)


def _directory_of(controller: str, directories: list[str], mounts: list[Any], word: str) -> str:
    for mount in mounts:
        if controller in mount.controllers or controller == f"name={mount.name}":
            for directory in directories:
                if directory.startswith(f"{mount.mount}/") and not mount.unified:
                    return directory
    raise PycontainError(f"--cgroup {word}: the container is in no hierarchy of cgroup v1 with {controller}")


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(f"cannot join cgroup {path}", error.errno or 0) from None
