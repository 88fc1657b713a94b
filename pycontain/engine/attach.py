"""Attach to a container: the client's side of the supervisor's protocol (docs/design/supervisor.md).

`stream` moves bytes and nothing else; it may run in any thread. `run_foreground` is the command's variant: it puts
the terminal into raw mode and takes signals, which only the main thread of a process may do.
"""

from __future__ import annotations

import _socket
import errno
import os
import select
import stat
import struct

from pycontain.runtime.errors import Conflict, KernelError, NotFound, PycontainError, Unsupported
from pycontain.runtime.light import NamedTuple, contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Iterator

    Sink = int | Callable[[bytes], object] | None

VERSION = 1

# Frames: u8 type, u32 length, payload; little endian. The same numbers are in runtime/init/supervisor.c.
C_HELLO, C_STDIN, C_STDIN_EOF, C_RESIZE, C_DETACH, C_DONE, C_CLOSE = range(1, 8)
S_HELLO, S_STDOUT, S_STDERR, S_EXIT, S_STDIN_CLOSED, S_REFUSED = range(129, 135)
WANT_STDIN, WANT_OUTPUT = 1, 2
HAS_TTY, HAS_STDIN = 1, 2
FRAME_MAX = 65536
_HEADER = struct.Struct("<BI")
_PAIR = struct.Struct("<II")
_REFUSALS = {
    1: "16 clients are attached already",
    2: f"it does not speak version {VERSION}",
    3: "our user is not its own",
}

DETACH_KEYS = b"\x10\x11"  # ctrl-p ctrl-q


class Ended(NamedTuple):
    """Why a session ended: with the container (``status`` 0-255 or 128 + ``signal``), or because the user left."""

    status: int | None
    signal: int | None = None
    detached: bool = False


def connect(path: str) -> socket.socket:
    """Connect to a container's attach socket. NotFound where no supervisor listens; KernelError otherwise."""
    import socket

    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    directory = -1
    try:
        directory = os.open(os.path.dirname(os.path.abspath(path)), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        sock.connect(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        raise NotFound(f"attach to {path}: the container is not running") from None
    except OSError as error:
        sock.close()
        raise KernelError(f"attach to {path}", error.errno or 0) from error
    finally:
        if directory >= 0:
            os.close(directory)
    return sock


def wait(path: str, timeout: float | None = None) -> Ended | None:
    """Wait for the container's end, without reading its output. None when ``timeout`` seconds have passed.

    NotFound where it is not running (any more): then `supervise.read_exit` knows how it ended.
    """
    with connect(path) as sock:
        session = _Session(sock, flags=0)
        session.stdout = session.stderr = None
        return session.run(timeout)


def stream(
    sock: _socket.socket,
    *,
    stdin: int | bytes | None = None,
    stdout: Sink = None,
    stderr: Sink = None,
    owner: bool = False,
    size: tuple[int, int] | None = None,
) -> Ended:
    """Move bytes until the container has ended. No signal handler and no terminal mode is touched.

    ``stdin`` is a descriptor or all of the input (None: none is offered); a sink is a descriptor, a function that
    gets bytes, or None for nowhere. ``owner``: ``sock`` is the other end of spawn's ``owner_fd``; then `done` must
    follow. ``size`` is (rows, columns) of the terminal. A reader that is too slow slows the owner's container
    down, and is dropped otherwise: PycontainError. Unsupported when the supervisor speaks another version.
    """
    session = _Session(sock, flags=WANT_OUTPUT | (0 if stdin is None else WANT_STDIN), owner=owner)
    session.stdout, session.stderr = stdout, stderr
    if isinstance(stdin, bytes):
        session.input = memoryview(stdin)
    else:
        session.stdin = stdin
    if size is not None:
        session.resize(*size)
    ended = session.run()
    assert ended is not None
    return ended


def run_foreground(
    sock: _socket.socket,
    *,
    tty: bool,
    interactive: bool,
    stdin: int = 0,
    stdout: int = 1,
    stderr: int = 2,
    owner: bool = False,
    detach_keys: bytes = DETACH_KEYS,
    on_signal: Callable[[int], object] | None = None,
) -> Ended:
    """`stream` for a command at a terminal. MAIN THREAD ONLY: it sets signal handlers and the terminal's mode.

    With ``tty`` the terminal on ``stdin`` is raw meanwhile (restored in every case), its size follows, and
    ``detach_keys`` leave. SIGINT, SIGTERM, SIGHUP and SIGQUIT are given to ``on_signal`` (which may raise); without
    one the terminal is restored and the process ends by that signal. ``stdin`` may be anything, also closed.
    """
    import _signal

    fill_standard_descriptors((stdin, stdout, stderr))
    session = _Session(sock, flags=WANT_OUTPUT | (WANT_STDIN if interactive else 0), owner=owner)
    session.stdout, session.stderr = stdout, stderr
    session.stdin = stdin if interactive else None
    session.detach_keys = detach_keys if tty else b""
    screen = next((fd for fd in (stdin, stdout, stderr) if os.isatty(fd)), None) if tty else None
    raw = stdin if tty and interactive and os.isatty(stdin) else None
    killed: list[int] = []

    def resize() -> None:
        if screen is not None:
            try:
                columns, rows = os.get_terminal_size(screen)
            except OSError:
                return
            session.resize(rows, columns)

    def take(number: int) -> None:
        if number == _signal.SIGWINCH:
            resize()
        elif number == _signal.SIGCONT:
            # While we were stopped the shell has put its own mode back.
            if raw is not None:
                _set_raw(raw)
            resize()
        elif on_signal is not None:
            on_signal(number)
        else:
            killed.append(number)
            session.ended = Ended(None, number)

    taken: list[int] = [_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP, _signal.SIGQUIT]
    if tty:
        taken += [_signal.SIGWINCH, _signal.SIGCONT]
    with _signals(taken) as session.wakeup, _raw(raw):
        session.on_wakeup = take
        resize()
        ended = session.run()
    if killed:
        _signal.signal(killed[0], _signal.SIG_DFL)
        _signal.raise_signal(killed[0])
    assert ended is not None
    return ended


def fill_standard_descriptors(fds: Iterable[int] = (0, 1, 2)) -> None:
    """Put /dev/null where a command was started with a closed descriptor (``<&-``).

    Otherwise the next file or socket that is opened gets that number, and is taken for the user's input or output.
    A command does this first of all.
    """
    for fd in fds:
        try:
            os.fstat(fd)
        except OSError:
            null = os.open("/dev/null", os.O_RDWR)
            if null != fd:
                os.dup2(null, fd)
                os.close(null)


def done(sock: _socket.socket) -> None:
    """The owner's last word: it has torn the container down itself. Closes ``sock``."""
    try:
        sock.setblocking(True)
        sock.sendall(_HEADER.pack(C_DONE, 0))
    except OSError:
        pass  # the supervisor has died; nothing is left to be told
    sock.close()


class _Session:
    def __init__(self, sock: _socket.socket, *, flags: int, owner: bool = False) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.owner = owner
        self.stdin: int | None = None
        self.input: memoryview | None = None
        self.stdout: Sink = None
        self.stderr: Sink = None
        self.detach_keys = b""
        self.wakeup: int | None = None
        self.on_wakeup: Callable[[int], None] = lambda number: None
        self.ended: Ended | None = None
        self._greeted = False
        self._held = b""  # a beginning of the detach keys
        self._received = bytearray()
        self._sending = bytearray()
        self._writing: list[tuple[int, int, memoryview]] = []  # stream, descriptor, rest
        self._lost = ""
        self._send(C_HELLO, _PAIR.pack(VERSION, flags))

    def run(self, timeout: float | None = None) -> Ended | None:
        import time

        end = None if timeout is None else time.monotonic() + timeout
        while self.ended is None or (self._writing and self.ended.status is not None):
            if self._lost and not self._writing:
                raise PycontainError(f"attach: the supervisor closed the connection{self._lost}")
            wanted = self._wanted()
            poll = select.poll()
            for fd, events in wanted.items():
                poll.register(fd, events)
            left = None if end is None else max(0.0, end - time.monotonic())
            if left == 0.0:
                return None
            for fd, events in poll.poll(None if left is None else left * 1000):
                self._ready(fd, events)
        return self.ended

    def resize(self, rows: int, columns: int) -> None:
        self._send(C_RESIZE, struct.pack("<HH", min(rows, 65535), min(columns, 65535)))

    def _send(self, kind: int, payload: bytes = b"") -> None:
        self._sending += _HEADER.pack(kind, len(payload)) + payload

    def _wanted(self) -> dict[int, int]:
        wanted: dict[int, int] = {}

        def want(fd: int, event: int) -> None:
            wanted[fd] = wanted.get(fd, 0) | event

        if self.wakeup is not None:
            want(self.wakeup, select.POLLIN)
        if self._writing:
            want(self._writing[0][1], select.POLLOUT)
        if self.ended is None and not self._lost:
            # One thing at a time: output is read when the last has been written, input when the last has been sent.
            if not self._writing:
                want(self.sock.fileno(), select.POLLIN)
            if self._sending:
                want(self.sock.fileno(), select.POLLOUT)
            elif self.input is not None:
                self._feed()
                want(self.sock.fileno(), select.POLLOUT)
            elif self.stdin is not None:
                want(self.stdin, select.POLLIN)
        return wanted

    def _ready(self, fd: int, events: int) -> None:
        if fd == self.wakeup:
            for number in os.read(fd, 64):
                self.on_wakeup(number)
        elif fd == self.sock.fileno():
            if events & select.POLLOUT and self._sending:
                self._flush()
            if events & (select.POLLIN | select.POLLHUP | select.POLLERR) and not self._writing:
                self._receive()
        else:
            if self._writing and fd == self._writing[0][1] and events & ~select.POLLIN:
                self._write()
            if fd == self.stdin and events & ~select.POLLOUT:
                self._read_stdin()

    def _flush(self) -> None:
        try:
            sent = self.sock.send(self._sending, _socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return
        except OSError:
            self._sending.clear()  # what it still had to say comes by recv
            self.stdin = self.input = None
            return
        del self._sending[:sent]

    def _receive(self) -> None:
        try:
            data = self.sock.recv(FRAME_MAX)
        except BlockingIOError:
            return
        except OSError as error:
            data = b""
            self._lost = f" ({errno.errorcode.get(error.errno or 0, '?')})"
        if not data:
            self._lost = self._lost or " before the container's end: it died, or we read too slowly"
            return
        self._received += data
        at = 0
        while len(self._received) - at >= _HEADER.size:
            kind, length = _HEADER.unpack_from(self._received, at)
            if length > FRAME_MAX:
                raise PycontainError(f"attach: found a frame of {length} bytes, wanted at most {FRAME_MAX}")
            if len(self._received) - at < _HEADER.size + length:
                break
            at += _HEADER.size
            self._take(kind, bytes(self._received[at : at + length]))
            at += length
        del self._received[:at]

    def _take(self, kind: int, payload: bytes) -> None:
        if kind == S_REFUSED:
            reason = payload[0] if payload else 0
            text = f"attach: the supervisor refused: {_REFUSALS.get(reason, f'reason {reason}')}"
            raise Unsupported(text) if reason == 2 else Conflict(text)
        if not self._greeted:
            if kind != S_HELLO or len(payload) < 4:
                raise PycontainError(f"attach: found frame {kind}, wanted the supervisor's hello")
            version = int.from_bytes(payload[:4], "little")
            if version != VERSION:
                raise Unsupported(f"attach: found a supervisor that speaks version {version}, wanted {VERSION}")
            self._greeted = True
            if len(payload) >= 8 and not payload[4] & HAS_STDIN and not self.detach_keys:
                self.stdin = self.input = None  # nobody would read it
        elif kind in (S_STDOUT, S_STDERR):
            sink = self.stdout if kind == S_STDOUT else self.stderr
            if isinstance(sink, int):
                self._writing.append((kind - S_STDOUT + 1, sink, memoryview(payload)))
            elif sink is not None:
                sink(payload)
        elif kind == S_EXIT and len(payload) == 8:
            status, number = _PAIR.unpack(payload)
            self.ended = Ended(status, number or None)
        elif kind == S_STDIN_CLOSED:
            self.stdin = self.input = None
        else:
            raise PycontainError(
                f"attach: found frame {kind} of {len(payload)} bytes, which is none of version {VERSION}"
            )

    def _write(self) -> None:
        which, fd, rest = self._writing.pop(0)
        # A pipe that polls as writable takes PIPE_BUF bytes without blocking (pipe(7)); O_NONBLOCK would be the
        # user's as well, who shares the open file description with us.
        try:
            size = len(rest) if stat.S_ISREG(os.fstat(fd).st_mode) else select.PIPE_BUF
            rest = rest[os.write(fd, rest[:size]) :]
        except BlockingIOError:
            pass
        except OSError:
            self._broken(which)
            return
        if rest:
            self._writing.insert(0, (which, fd, rest))

    def _broken(self, which: int) -> None:
        """Our reader has gone. The owner passes that on, so that its container sees EPIPE; anybody else leaves."""
        self._writing = [entry for entry in self._writing if entry[0] != which]
        if self.owner:
            self._send(C_CLOSE, bytes([which]))
            if which == 1:
                self.stdout = None
            else:
                self.stderr = None
        elif self.ended is None:
            self._leave()

    def _feed(self) -> None:
        assert self.input is not None
        if self.input:
            self._send(C_STDIN, bytes(self.input[:FRAME_MAX]))
            self.input = self.input[FRAME_MAX:]
        else:
            self._send(C_STDIN_EOF)
            self.input = None

    def _read_stdin(self) -> None:
        assert self.stdin is not None
        try:
            data = os.read(self.stdin, 32768)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # closed, or a terminal that hung up
        if not data:
            self.stdin = None
            if self._held:
                self._send(C_STDIN, self._held)
            self._send(C_STDIN_EOF)
            return
        if self.detach_keys:
            data, detach = self._find_keys(data)
            if detach:
                if data:
                    self._send(C_STDIN, data)
                self._leave()
                return
        if data:
            self._send(C_STDIN, data)

    def _find_keys(self, data: bytes) -> tuple[bytes, bool]:
        """What to pass on of ``data``, and whether the detach keys were in it; a beginning of them is held back."""
        data = self._held + data
        self._held = b""
        before, found, _ = data.partition(self.detach_keys)
        if found:
            return before, True
        for length in range(min(len(self.detach_keys) - 1, len(data)), 0, -1):
            if data.endswith(self.detach_keys[:length]):
                self._held = data[-length:]
                return data[:-length], False
        return data, False

    def _leave(self) -> None:
        self._send(C_DETACH)
        self.sock.settimeout(1.0)
        try:
            self.sock.sendall(self._sending)
        except OSError:
            pass  # it sees us close
        self.ended = Ended(None, detached=True)


@contextmanager
def _signals(numbers: list[int]) -> Iterator[int]:
    """A descriptor that delivers the numbers of these signals; the handlers before are put back."""
    import _signal

    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    before: dict[int, object] = {}
    wakeup = _signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        for number in numbers:
            before[number] = _signal.signal(number, lambda number, frame: None)
        yield reader
    finally:
        for number, handler in before.items():
            # None: it was not set by Python, and cannot be put back from here
            _signal.signal(number, _signal.SIG_DFL if handler is None else handler)
        _signal.set_wakeup_fd(wakeup)
        os.close(reader)
        os.close(writer)


@contextmanager
def _raw(fd: int | None) -> Iterator[None]:
    if fd is None:
        yield
        return
    import termios

    before = termios.tcgetattr(fd)
    try:
        _set_raw(fd)
        yield
    finally:
        try:
            termios.tcsetattr(fd, termios.TCSANOW, before)
        except termios.error:
            pass  # it hung up


def _set_raw(fd: int) -> None:
    import termios
    import tty

    tty.setraw(fd, termios.TCSANOW)
