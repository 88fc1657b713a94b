"""The dialogue with init, over any stream descriptor: a socket pair here, a virtio port in a machine.

``plan → unshared → go → ready → start → (end of stream: the program runs) | failed``. Numbers as in init/protocol.h.
"""

from __future__ import annotations

import posix as os

from pycontain.runtime import errors

UNSHARED, GO, READY, START, EXITED, FAILED, DATA, HELLO, PART, SESSION = range(1, 11)
LISTENER, MOUNTED, PLAN = 17, 18, 19
NAMES = {
    1: "unshared", 2: "go", 3: "ready", 4: "start", 5: "exited", 6: "failed", 7: "data", 8: "hello", 9: "part",
    10: "session", 11: "running", 12: "stream", 13: "credit", 14: "close", 15: "signal", 16: "resize",
    17: "listener", 18: "mounted", 19: "plan",
}  # fmt: skip
MAX_BYTES = 1 << 20
DETAIL_BYTES = 300  # of a failure's words, which may be a hostile guest's


def message(kind: int, payload: bytes = b"") -> bytes:
    return kind.to_bytes(4, "little") + len(payload).to_bytes(4, "little") + payload


def send(fd: int, kind: int, payload: bytes = b"") -> None:
    """Write one message; BrokenPipeError where init is gone."""
    data = message(kind, payload)
    while data:
        data = data[os.write(fd, data) :]


def receive(fd: int) -> tuple[int, bytes] | None:
    """The next message, or None at the end of the stream. Raises Nonsense for a message out of bounds."""
    head = _exactly(fd, 8)
    if head is None:
        return None
    kind, size = header(head)
    payload = _exactly(fd, size)
    return None if payload is None else (kind, payload)


def header(head: bytes, most: int = MAX_BYTES) -> tuple[int, int]:
    """The type and the size of the message that begins so; of at most ``most`` bytes. Raises Nonsense."""
    kind, size = int.from_bytes(head[:4], "little"), int.from_bytes(head[4:], "little")
    if kind not in NAMES or size > most:
        raise errors.Nonsense(f"init sent nonsense: found message {kind} of {size} bytes")
    return kind, size


def _exactly(fd: int, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        try:
            part = os.read(fd, size - len(data))
        except ConnectionResetError:
            return None
        if not part:
            return None
        data += part
    return data
