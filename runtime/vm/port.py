"""A machine's ports on the host's side: calls, which are plans that the guest's agent carries out in the guest itself.

Each port is a listening socket ``p<N>.sock`` in the container's state directory, which QEMU accepts one connection on;
who uses port N holds a lock on ``p<N>.lock``. The guest is hostile: every answer has a deadline and a bound.
"""

from __future__ import annotations

import os
import socket
import time
from errno import ENOENT, ESRCH
from fcntl import LOCK_EX, LOCK_NB, flock

from pycontain.runtime import channel
from pycontain.runtime.errors import Conflict, KernelError, PycontainError
from pycontain.runtime.namespaces import failure
from pycontain.runtime.plan.ops import encode
from pycontain.runtime.plan.plan import Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pycontain.runtime.plan.ops import Op

STAND_IN, CALLS, FIRST_EXEC = 1, 2, 3
WANT_STDIO, WANT_CONSOLE = 1, 2
ANSWER_SECONDS = 10.0


class GuestGone(PycontainError):
    """The guest said nothing in time, hung up, or spoke nonsense."""


def listen(directory: str, name: str) -> int:
    """A listening socket ``name`` in the state directory, by descriptor, as paths may be long."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        server.bind(f"/proc/self/fd/{fd}/{name}")
        server.listen(1)
    finally:
        os.close(fd)
    return server.detach()


def connect(directory: str, name: str) -> socket.socket:
    """A connection to the socket ``name``, accepted or not. Raises Conflict where the machine is gone."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        client.connect(f"/proc/self/fd/{fd}/{name}.sock")
    except OSError as error:
        client.close()
        raise Conflict(f"cannot reach the machine of {os.path.basename(directory)}: {error.strerror}") from None
    finally:
        os.close(fd)
    return client


def lock(directory: str, number: int, *, wait: float = 0.0) -> int | None:
    """The descriptor of the lock on port ``number``, or None where another has it for ``wait`` seconds."""
    fd = os.open(f"{directory}/p{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + wait
    while True:
        try:
            flock(fd, LOCK_EX | LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(fd)
                return None
            time.sleep(0.005)


def free(directory: str, ports: int) -> tuple[int, int]:
    """A port for one more process and the descriptor of its lock. Raises Conflict where all are in use."""
    for number in range(FIRST_EXEC, ports + 1):
        held = lock(directory, number)
        if held is not None:
            return number, held
    raise Conflict(f"cannot exec: the machine has room for {ports + 1 - FIRST_EXEC} processes from outside at once")


def session(flags: int, cgroup: str = "", files: Sequence[str] = ()) -> bytes:
    """The payload of a "session": paths are the guest's; what they name is handed to the plan's descriptors."""
    data = flags.to_bytes(8, "little") + _string(cgroup) + len(files).to_bytes(4, "little")
    return data + b"".join(_string(path) for path in files)


def _string(text: str) -> bytes:
    raw = text.encode()
    return len(raw).to_bytes(4, "little") + raw + b"\0"


def send_plan(fd: int, ops: Sequence[Op], request: bytes) -> None:
    """The plan, in messages of at most 512 KiB, and the request to carry it out."""
    data = encode(ops)
    for at in range(0, len(data), 1 << 19):
        channel.send(fd, channel.PART, data[at : at + (1 << 19)])
    channel.send(fd, channel.SESSION, request)


class Caller:
    """A connection for calls, with its lock. ``call`` any number of times; then ``close``."""

    def __init__(self, directory: str) -> None:
        self._name = os.path.basename(directory)
        held = lock(directory, CALLS, wait=ANSWER_SECONDS)
        if held is None:
            raise Conflict(f"cannot reach the machine of {self._name}: another command is talking to it")
        self._lock = held
        try:
            self._socket = connect(directory, f"p{CALLS}")
        except BaseException:
            os.close(held)
            raise

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()
        os.close(self._lock)

    def call(
        self, ops: Sequence[Op], *, files: Sequence[str] = (), seconds: float = ANSWER_SECONDS
    ) -> list[bytes | None]:
        """Carry out ``ops`` in the guest; what its "read" operations read, in order (None: no such file).

        The guest's ``files`` are open as descriptors 5 and on.

        Raises GuestGone, and KernelError with the words of the operation that failed.
        """
        fd = self._socket.fileno()
        deadline = time.monotonic() + seconds
        nonce = os.urandom(8)
        reads: list[bytes | None] = []
        try:
            channel.send(fd, channel.HELLO, nonce)
            kind, payload = self._receive(deadline)
            if kind != channel.HELLO or payload != nonce:
                raise GuestGone(f"the machine of {self._name} answered a hello with {channel.NAMES[kind]!r}")
            send_plan(fd, ops, session(0, files=files))
            while True:
                kind, payload = self._receive(deadline)
                if kind == channel.DATA and len(reads) < len(ops):
                    reads.append(_data(payload))
                elif kind == channel.FAILED:
                    raise failure(_plan(ops), payload)
                elif kind == channel.EXITED:
                    if any(payload[:4]):
                        raise GuestGone(f"the machine of {self._name} could not carry out a call")
                    return reads
                else:
                    raise GuestGone(f"the machine of {self._name} sent {channel.NAMES[kind]!r} out of order")
        except (BrokenPipeError, ConnectionResetError):
            raise GuestGone(f"the machine of {self._name} is gone") from None

    def _receive(self, deadline: float) -> tuple[int, bytes]:
        left = deadline - time.monotonic()
        # SO_RCVTIMEO and not settimeout(): the latter makes the descriptor non-blocking, and read(2) is what reads.
        micros = max(1, int(left * 1_000_000))
        timeval = (micros // 1_000_000).to_bytes(8, "little") + (micros % 1_000_000).to_bytes(8, "little")
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        try:
            message = channel.receive(self._socket.fileno())
        except BlockingIOError:
            raise GuestGone(f"the machine of {self._name} did not answer in time") from None
        if message is None:
            raise GuestGone(f"the machine of {self._name} is gone")
        return message


def _plan(ops: Sequence[Op]) -> Plan:
    plan = Plan(3, False, 0)
    plan.ops = list(ops)
    return plan


def _data(payload: bytes) -> bytes | None:
    number = int.from_bytes(payload[:4], "little")
    if number in (0, ENOENT, ESRCH):  # no such file; no such process any more
        return None if number else payload[4:]
    raise KernelError("cannot read a file of the guest", number)
