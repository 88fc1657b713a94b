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
from pycontain.runtime.errors import Conflict, KernelError, Nonsense, PycontainError
from pycontain.runtime.failure import failure
from pycontain.runtime.plan.ops import encode
from pycontain.runtime.plan.plan import Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pycontain.runtime.plan.ops import Op

STAND_IN, CALLS, FIRST_EXEC = 1, 2, 3
WANT_STDIO, WANT_CONSOLE = 1, 2
BOOT_SECONDS = 60.0  # until the guest's first answer: emulated, beside a dozen busy others, it takes ten times its 3 s
START_SECONDS = 30.0  # for each word of its process up to execve
ANSWER_SECONDS = 10.0
_FAILURE_BYTES = 8 + channel.DETAIL_BYTES


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
    fd = -1
    client.setblocking(False)  # where those that were given up wait to be accepted, it would wait behind them
    try:
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        client.connect(f"/proc/self/fd/{fd}/{name}.sock")
        client.setblocking(True)
    except OSError as error:
        client.close()
        raise _unreachable(directory, error) from None
    finally:
        if fd >= 0:
            os.close(fd)
    return client


def _unreachable(directory: str, error: OSError) -> Conflict:
    return Conflict(f"cannot reach the machine of {os.path.basename(directory)}: {error.strerror}")


def lock(directory: str, number: int, *, wait: float = 0.0) -> int | None:
    """The descriptor of the lock on port ``number``, or None where another has it for ``wait`` seconds."""
    try:
        fd = os.open(f"{directory}/p{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:  # the container was removed
        raise _unreachable(directory, error) from None
    deadline = time.monotonic() + wait
    while True:
        try:
            flock(fd, LOCK_EX | LOCK_NB)
            os.utime(fd)
            return fd
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(fd)
                return None
            time.sleep(0.005)


def free(directory: str, ports: int) -> tuple[int, int]:
    """A port for one more process and the descriptor of its lock. Raises Conflict where all are in use.

    The one that has been idle longest: of a port that was let go this very moment the guest may miss the end.
    """

    def used(number: int) -> int:
        try:
            return os.stat(f"{directory}/p{number}.lock").st_mtime_ns
        except FileNotFoundError:
            return 0

    for number in sorted(range(FIRST_EXEC, ports + 1), key=used):
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
    """The plan, and the request to carry it out. Raises GuestGone where nobody takes it in time."""
    try:
        for kind, payload in _plan_messages(ops, request):
            channel.send(fd, kind, payload)
    except BlockingIOError:
        raise GuestGone("the guest did not take the plan in time") from None
    except BrokenPipeError:
        pass  # the reason is still to be read


def _plan_messages(ops: Sequence[Op], request: bytes) -> Iterator[tuple[int, bytes]]:
    """Messages of at most 512 KiB."""
    data = encode(ops)
    for at in range(0, len(data), 1 << 19):
        yield channel.PART, data[at : at + (1 << 19)]
    yield channel.SESSION, request


class Caller:
    """A connection for calls, with its lock. ``call`` any number of times; then ``close``."""

    _failed = False  # the last call, whose end is still to be read

    def __init__(self, directory: str, *, wait: float | None = None) -> None:
        self._name = os.path.basename(directory)
        held = lock(directory, CALLS, wait=ANSWER_SECONDS if wait is None else wait)
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

    def call(self, ops: Sequence[Op], *, files: Sequence[str] = (), seconds: float | None = None) -> list[bytes | None]:
        """Carry out ``ops`` in the guest; what its "read" operations read, in order (None: no such file).

        The guest's ``files`` are open as descriptors 5 and on.

        Raises GuestGone, and KernelError with the words of the operation that failed.
        """
        deadline = time.monotonic() + (ANSWER_SECONDS if seconds is None else seconds)
        nonce = os.urandom(8)
        limits = [op[2] for op in ops if op[0] == "read"]
        reads: list[bytes | None] = []
        try:
            if self._failed and self._receive(8, deadline)[0] == channel.EXITED:
                self._failed = False
            self._send(channel.HELLO, nonce, deadline)
            if self._receive(8, deadline) != (channel.HELLO, nonce):
                raise GuestGone(f"the machine of {self._name} answered a hello with something else")
            for kind, payload in _plan_messages(ops, session(0, files=files)):
                self._send(kind, payload, deadline)
            while True:
                due = limits[len(reads)] if len(reads) < len(limits) else 0
                kind, payload = self._receive(max(4 + due, _FAILURE_BYTES), deadline)
                if kind == channel.DATA and len(reads) < len(limits) and 4 <= len(payload) <= 4 + due:
                    reads.append(_data(payload))
                elif kind == channel.FAILED:
                    self._failed = True
                    raise failure(_plan(ops), payload)
                elif kind == channel.EXITED and len(payload) == 8:
                    if any(payload[:4]):
                        raise GuestGone(f"the machine of {self._name} could not carry out a call")
                    if len(reads) < len(limits):
                        raise GuestGone(f"the machine of {self._name} left a question without an answer")
                    return reads
                else:
                    raise GuestGone(f"the machine of {self._name} sent {channel.NAMES[kind]!r} out of order")
        except TimeoutError:
            raise GuestGone(f"the machine of {self._name} did not answer in time") from None
        except Nonsense as error:
            raise GuestGone(f"the machine of {self._name}: {error.message}") from None
        except (BrokenPipeError, ConnectionResetError):
            raise GuestGone(f"the machine of {self._name} is gone") from None

    # A guest that sends or takes a byte now and then has no more time than one that does nothing.

    def _send(self, kind: int, payload: bytes, deadline: float) -> None:
        self._wait(deadline)
        self._socket.sendall(channel.message(kind, payload))

    def _receive(self, most: int, deadline: float) -> tuple[int, bytes]:
        kind, size = channel.header(self._exactly(8, deadline), most)
        return kind, self._exactly(size, deadline)

    def _exactly(self, size: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._wait(deadline)
            part = self._socket.recv(min(size - len(data), 65536))
            if not part:
                raise ConnectionResetError
            data += part
        return bytes(data)

    def _wait(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)


def _plan(ops: Sequence[Op]) -> Plan:
    plan = Plan(3, False, 0)
    plan.ops = list(ops)
    return plan


def _data(payload: bytes) -> bytes | None:
    number = int.from_bytes(payload[:4], "little")
    if number in (0, ENOENT, ESRCH):  # no such file; no such process any more
        return None if number else payload[4:]
    raise KernelError("cannot read a file of the guest", number)
