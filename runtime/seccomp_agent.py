"""SCMP_ACT_NOTIFY: the listener of a container's filter goes to its seccomp agent (config-linux.md, "Seccomp")."""

from __future__ import annotations

import _socket
import posix as os

from pycontain.runtime.errors import KernelError, PycontainError
from pycontain.runtime.jsontext import dump, parse
from pycontain.runtime.paths import read_bounded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontain.runtime.state import Container

_PATH = "$.linux.seccomp.listenerPath"
_SECONDS = 10.0


def hand_over(container: Container, pid: int, payload: bytes) -> None:
    """Send the agent the listener, descriptor ``payload`` (u32) of process ``pid`` (0: the container's first).

    The process waits meanwhile, in a read(2). Raises KernelError where the agent cannot be reached.
    """
    path = f"{container.directory}/config.json"
    seccomp = parse(read_bounded(path), path)["linux"]["seccomp"]
    pid = pid or container.pid
    # The state on record is ahead of what is true: the program does not run yet.
    state = container.oci("created" if pid == container.pid else None)
    message: dict[str, Any] = {"ociVersion": state["ociVersion"], "fds": ["seccompFd"], "pid": pid}
    if seccomp.get("listenerMetadata"):
        message["metadata"] = seccomp["listenerMetadata"]
    message["state"] = state
    listener = _take(pid, int.from_bytes(payload, "little"))
    try:
        _send(seccomp["listenerPath"], dump(message).encode(), listener)
    finally:
        os.close(listener)


def _take(pid: int, number: int) -> int:
    from pycontain.runtime.kernel.syscalls import pidfd_getfd

    try:
        pidfd = os.pidfd_open(pid)
        try:
            return pidfd_getfd(pidfd, number)
        finally:
            os.close(pidfd)
    except OSError as error:
        raise KernelError(f"cannot take the seccomp listener out of process {pid}", error.errno or 0) from None


def _send(path: str, data: bytes, listener: int) -> None:
    """One container process state per connection, its descriptor with the first bytes."""
    client = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        client.settimeout(_SECONDS)
        client.connect(path)
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, listener.to_bytes(4, "little"))]
        sent = client.sendmsg([data], rights)
        client.sendall(data[sent:])
    except TimeoutError:
        raise PycontainError(f"{_PATH}: the seccomp agent at {path} took nothing for {_SECONDS:.0f} s") from None
    except OSError as error:
        raise KernelError(f"{_PATH}: cannot send the listener to {path}", error.errno or 0) from None
    finally:
        client.close()
