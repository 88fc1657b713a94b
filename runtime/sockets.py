"""The calls on stream sockets of the Unix family that starting a container takes, on descriptors.

The launcher's own interpreter has them in it (init/embedded_sockets.h): to import ``_socket`` takes 0.2 ms, most of it
for the constants of protocols that nobody speaks here. All raise OSError.
"""

from __future__ import annotations

import sys

if "_launcher" in sys.builtin_module_names:
    import _launcher

    connect, listen, pair = _launcher.connect, _launcher.listen, _launcher.pair
    send_fds, timeout = _launcher.send_fds, _launcher.timeout
else:
    import _socket

    def pair() -> tuple[int, int]:
        """Two connected sockets."""
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM, 0)
        return ours.detach(), theirs.detach()

    def listen(path: str) -> int:
        """A new socket at ``path``, for one that connects at a time."""
        server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        server.bind(path)
        server.listen(1)
        return server.detach()

    def connect(path: str) -> int:
        """A socket that is connected to who listens at ``path``."""
        client = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        client.connect(path)
        return client.detach()

    def timeout(fd: int, seconds: float) -> None:
        """How long one read or write may take (socket(7)); 0: without end."""
        sock = _socket.socket(fileno=fd)
        try:
            micros = int(seconds * 1_000_000)
            timeval = (micros // 1_000_000).to_bytes(8, "little") + (micros % 1_000_000).to_bytes(8, "little")
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVTIMEO, timeval)
            sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, timeval)
        finally:
            sock.detach()

    def send_fds(fd: int, data: bytes, fds: list[int]) -> None:
        """Write ``data``, and hand ``fds`` over with it (unix(7), SCM_RIGHTS)."""
        sock = _socket.socket(fileno=fd)
        try:
            rights = b"".join(number.to_bytes(4, sys.byteorder) for number in fds)
            sock.sendmsg([data], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
        finally:
            sock.detach()
