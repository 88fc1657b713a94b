"""The terminal of a foreground container: receive the pseudo-terminal's master, relay it, restore ours.

Main thread of a command only: it installs a SIGWINCH handler.
"""

from __future__ import annotations

import _socket
import posix as os
import termios
from _signal import SIGWINCH, signal
from fcntl import ioctl
from select import POLLHUP, POLLIN, poll

from pycontain.runtime.errors import PycontainError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def pair() -> tuple[int, int]:
    """``(ours, init's)``: a socket pair for one descriptor's passing."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM, 0)
    return ours.detach(), theirs.detach()


def connect(path: str) -> int:
    """A connection to a --console-socket. Raises PycontainError."""
    client = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        client.connect(path)
    except OSError as error:
        raise PycontainError(f"cannot connect to console socket {path}: {(error.strerror or '').lower()}") from None
    return client.detach()


def receive(fd: int) -> int:
    """The master that init sent over ``fd``. Raises PycontainError if init sent something else."""
    # Debian's Python gives _socket no .dup(fd): take the descriptor over and let go of it again.
    sock = _socket.socket(fileno=fd)
    try:
        _, control, _, _ = sock.recvmsg(64, _socket.CMSG_SPACE(4))
    finally:
        sock.detach()
    for level, kind, data in control:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS and len(data) == 4:
            return int.from_bytes(data, "little")
    raise PycontainError("init sent no terminal")


def size(fd: int) -> dict[str, int] | None:
    """The window of ``fd`` as $.process.consoleSize has it; None where it is not a terminal."""
    try:
        data = ioctl(fd, termios.TIOCGWINSZ, b"\0" * 8)
    except OSError:
        return None
    return {"height": int.from_bytes(data[:2], "little"), "width": int.from_bytes(data[2:4], "little")}


def copy_size(source: int, master: int) -> None:
    """Give ``master`` the window size of ``source``, where that is a terminal."""
    try:
        ioctl(master, termios.TIOCSWINSZ, ioctl(source, termios.TIOCGWINSZ, b"\0" * 8))
    except OSError:
        pass  # not a terminal: there is no size


def raw(fd: int) -> list[Any] | None:
    """Put terminal ``fd`` in raw mode (cfmakeraw(3)); its old attributes, or None where it is not a terminal."""
    try:
        old = termios.tcgetattr(fd)
    except termios.error:
        return None
    new = [*old[:6], list(old[6])]
    new[0] &= ~(
        termios.IGNBRK
        | termios.BRKINT
        | termios.PARMRK
        | termios.ISTRIP
        | termios.INLCR
        | termios.IGNCR
        | termios.ICRNL
        | termios.IXON
    )
    new[1] &= ~termios.OPOST
    new[2] = new[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    new[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    termios.tcsetattr(fd, termios.TCSANOW, new)
    return old


def relay(master: int, pid: int) -> None:
    """Copy between our standard streams and ``master`` until ``pid`` is gone and its last output is out."""
    old = raw(0)
    copy_size(0, master)
    signal(SIGWINCH, lambda *_: copy_size(0, master))
    pidfd = os.pidfd_open(pid)
    poller = poll()
    for fd in (0, master, pidfd):
        poller.register(fd, POLLIN)
    try:
        ended = False
        while True:
            ready = dict(poller.poll(0 if ended else None))
            if 0 in ready:
                data = os.read(0, 65536)
                if data:
                    _write_all(master, data)
                else:
                    poller.unregister(0)
            if master in ready:
                try:
                    data = os.read(master, 65536)
                except OSError:
                    break  # EIO: nobody holds the other side any more
                _write_all(1, data)
                if ready[master] & POLLHUP and not data:
                    break
            elif ended:
                break
            ended = ended or pidfd in ready
    finally:
        os.close(pidfd)
        if old is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, old)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
