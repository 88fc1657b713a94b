"""attach.py on a real pseudo-terminal, driven from outside; and on stdins that are no terminal."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain.engine import attach, supervise
from tests.supervisor_fixture import Case, hello, read_frame, until

PYTHON = os.path.realpath(sys.executable)

# Stands for init: makes a pty, sends its master by fd 3, becomes a shell on the other side.
INIT = """
import array, fcntl, os, socket, sys, termios
master, slave = os.openpty()
sock = socket.socket(fileno=3)
sock.sendmsg([b"console"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [master]))])
sock.close(); os.close(master)
os.setsid(); fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
for fd in (0, 1, 2): os.dup2(slave, fd)
os.close(slave)
os.execve("/bin/sh", ["sh", "-c", sys.argv[1]], {"PS1": "$ ", "PATH": os.environ["PATH"]})
"""

# Stands for the command `pycontain run -it`: prints how the session ended.
COMMAND = """
import os, sys; sys.path.insert(0, '.')
from pycontain.engine import attach
kind, number, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3]
import socket
sock = socket.socket(fileno=number)
signals = []
def on_signal(number):
    signals.append(number)
    os.write(2, b"signal %d\\n" % number)
ended = attach.run_foreground(sock, tty="t" in mode, interactive="i" in mode, owner=kind == "owner",
                              on_signal=on_signal if "s" in mode else None)
print("ended", ended.status, ended.signal, ended.detached, flush=True)
if not ended.detached:
    attach.done(sock)
"""


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    made = Case(str(tmp_path))
    yield made
    made.kill()


def start_tty(case: Case, script: str, *, owner: int | None = None, stdin: str = "pipe") -> None:
    ours, theirs = socket.socketpair()
    server = supervise.listen(case.socket)
    try:
        supervisor = case.spawn(
            [PYTHON, "-ISc", INIT, script],
            [theirs.fileno()],
            console_fd=ours.fileno(),
            attach_listen_fd=server,
            owner_fd=owner,
            stdin=stdin,
        )
    finally:
        ours.close()
        theirs.close()
        os.close(server)
    supervisor.started(supervisor.child_pid)
    supervisor.close()


class Terminal:
    """A user at a terminal, with a command on it."""

    def __init__(self, sock: socket.socket, kind: str, mode: str, rows: int = 24, columns: int = 80) -> None:
        self.master, slave = pty.openpty()
        self.slave = slave  # kept, to read its mode after the command
        self.resize(rows, columns)
        self.before = termios.tcgetattr(slave)
        argv = [sys.executable, "-c", COMMAND, kind, str(sock.fileno()), mode]
        self.command = subprocess.Popen(
            argv, stdin=slave, stdout=slave, stderr=slave, pass_fds=[sock.fileno()], start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        sock.close()
        self.text = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def expect(self, pattern: bytes, seconds: float = 10) -> re.Match[bytes]:
        """Read until the pattern appears; forget what was before its end."""
        end = time.monotonic() + seconds
        while True:
            found = re.search(pattern, self.text)
            if found:
                self.text = self.text[found.end() :]
                return found
            left = end - time.monotonic()
            assert left > 0, f"waited for {pattern!r}, found {self.text!r}"
            if select.select([self.master], [], [], left)[0]:
                try:
                    self.text += os.read(self.master, 4096)
                except OSError as error:
                    assert error.errno == errno.EIO
                    raise AssertionError(f"waited for {pattern!r}, found {self.text!r} and the end") from None

    def close(self) -> None:
        if self.command.poll() is None:
            self.command.kill()
        self.command.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    made: list[Terminal] = []
    yield made
    for terminal in made:
        terminal.close()


def test_a_shell_on_a_terminal(case: Case, terminals: list[Terminal]) -> None:
    """Prompt, echo, size and its changes, ctrl-C, ctrl-D, exit status, and the terminal as it was."""
    ours, theirs = socket.socketpair()
    start_tty(case, "exec /bin/sh -i", owner=theirs.fileno())
    theirs.close()
    terminal = Terminal(ours, "owner", "it", rows=31, columns=97)
    terminals.append(terminal)

    terminal.expect(rb"\$ ")
    terminal.type(b"stty size\r")
    terminal.expect(rb"stty size\r\n")
    terminal.expect(rb"31 97\r\n\$ ")
    # raw: our side does not echo, nor make signals
    assert not termios.tcgetattr(terminal.slave)[3] & (termios.ECHO | termios.ICANON | termios.ISIG)

    terminal.resize(40, 120)
    terminal.command.send_signal(signal.SIGWINCH)  # the kernel does this for a foreground process
    until(lambda: size_inside(terminal) == (40, 120))

    terminal.type(b"sleep 100\r")
    terminal.expect(rb"sleep 100\r\n")
    time.sleep(0.1)
    terminal.type(b"\x03")
    terminal.expect(rb"\$ ")
    terminal.type(b"echo status $?\r")
    terminal.expect(rb"status 130\r\n\$ ")

    terminal.type(b"(exit 37)\r")
    terminal.expect(rb"\$ ")
    terminal.type(b"\x04")
    terminal.expect(rb"ended 37 None False\r\n")
    assert terminal.command.wait(10) == 0
    assert termios.tcgetattr(terminal.slave) == terminal.before
    case.wait_gone()
    assert not os.path.exists(case.torn)
    assert b"stdout F $ stty size\r\n" in Path(case.log).read_bytes()


def size_inside(terminal: Terminal) -> tuple[int, int]:
    terminal.type(b"stty size\r")
    found = terminal.expect(rb"\n(\d+) (\d+)\r\n\$ ")
    return int(found[1]), int(found[2])


def test_detach_and_attach_again(case: Case, terminals: list[Terminal]) -> None:
    ours, theirs = socket.socketpair()
    start_tty(case, "exec /bin/sh -i", owner=theirs.fileno())
    theirs.close()
    terminal = Terminal(ours, "owner", "it")
    terminals.append(terminal)
    terminal.expect(rb"\$ ")
    terminal.type(b"echo \x10x\r")  # ctrl-p alone is passed on: the line editor's previous line, or itself
    terminal.expect(rb"\$ ")
    terminal.type(b"\x10")
    time.sleep(0.1)
    terminal.type(b"\x11")
    terminal.expect(rb"ended None None True\r\n")
    assert termios.tcgetattr(terminal.slave) == terminal.before
    found = supervise.read_processes(case.pid_file)
    assert found is not None and found.alive() and found.container_alive()

    second = Terminal(attach.connect(case.socket), "client", "it", rows=11, columns=22)
    terminals.append(second)
    second.type(b"stty size\r")
    second.expect(rb"11 22\r\n\$ ")
    second.type(b"exit 3\r")
    second.expect(rb"ended 3 None False\r\n")
    case.wait_gone()
    assert os.path.exists(case.torn), "nobody was left to do it"


def test_a_signal_without_a_handler_restores_the_terminal_first(case: Case, terminals: list[Terminal]) -> None:
    ours, theirs = socket.socketpair()
    start_tty(case, "echo ready; exec sleep 60", owner=theirs.fileno())
    theirs.close()
    terminal = Terminal(ours, "owner", "it")
    terminals.append(terminal)
    terminal.expect(rb"ready\r\n")
    terminal.command.send_signal(signal.SIGTERM)
    assert terminal.command.wait(10) == -signal.SIGTERM
    assert termios.tcgetattr(terminal.slave) == terminal.before
    found = supervise.read_processes(case.pid_file)
    assert found is not None and found.container_alive()


def test_the_mode_is_set_again_when_we_were_stopped(case: Case, terminals: list[Terminal]) -> None:
    ours, theirs = socket.socketpair()
    start_tty(case, "echo ready; exec cat", owner=theirs.fileno())
    theirs.close()
    terminal = Terminal(ours, "owner", "it")
    terminals.append(terminal)
    terminal.expect(rb"ready\r\n")
    terminal.command.send_signal(signal.SIGSTOP)
    termios.tcsetattr(terminal.slave, termios.TCSANOW, terminal.before)  # the shell's doing
    terminal.command.send_signal(signal.SIGCONT)
    until(lambda: not termios.tcgetattr(terminal.slave)[3] & termios.ECHO)
    terminal.type(b"\x04")
    terminal.expect(rb"ended 0 None False\r\n")


def test_end_of_input_for_a_terminal_is_its_end_of_file_character(case: Case) -> None:
    ours, theirs = socket.socketpair()
    start_tty(case, "cat; echo over; exit 9", owner=theirs.fileno())
    theirs.close()
    out: list[bytes] = []
    ended = attach.stream(ours, stdin=b"line\n", stdout=out.append, owner=True)
    attach.done(ours)
    assert ended.status == 9
    assert b"".join(out).replace(b"^D\x08\x08", b"") == b"line\r\nline\r\nover\r\n"


def test_a_terminal_that_nobody_has_open_is_no_busy_loop_and_comes_back(case: Case, tmp_path: Path) -> None:
    script = (
        f"tty > {tmp_path}/name; exec 0<&- 1>&- 2>&-; sleep 0.7; echo again > $(cat {tmp_path}/name); sleep 0.3; exit 6"
    )
    start_tty(case, script)
    supervisor = case.supervisor
    assert supervisor is not None
    time.sleep(0.6)
    ticks = sum(
        int(text) for text in Path(f"/proc/{supervisor.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    )
    assert ticks <= 2, "hundredths of a second of CPU time"
    assert case.wait_exit().status == 6
    assert b"stdout F again" in Path(case.log).read_bytes()


def test_a_console_that_never_comes(case: Case) -> None:
    ours, theirs = socket.socketpair()
    case.shell("exit 2", console_fd=ours.fileno())
    ours.close()
    theirs.close()
    assert case.wait_exit().status == 2


def test_a_console_that_is_no_terminal_is_ignored(case: Case) -> None:
    ours, theirs = socket.socketpair()
    with open("/dev/null") as null:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null.fileno()]))]
        theirs.sendmsg([b"x"], rights)
    case.shell("sleep 0.2; exit 2", console_fd=ours.fileno(), listen=True)
    with attach.connect(case.socket) as sock:
        hello(sock)
        assert read_frame(sock) is not None
    ours.close()
    theirs.close()
    assert case.wait_exit().status == 2


# ---------------------------------------------------------------- no terminal


def run(
    case: Case, script: str, mode: str, *, redirect: str = "", stdin: int | None = None, data: bytes | None = None
) -> tuple[int, bytes, bytes]:
    """The command without a terminal: status, stdout, stderr."""
    sock = case.owned(script, stdin="pipe" if "i" in mode else "null")
    argv = [sys.executable, "-c", COMMAND, "owner", str(sock.fileno()), mode]
    if redirect:
        argv = ["/bin/sh", "-c", f'exec "$0" "$@" {redirect}', *argv]
    options = {"input": data} if data is not None else {"stdin": subprocess.DEVNULL if stdin is None else stdin}
    with sock:
        done = subprocess.run(argv, capture_output=True, pass_fds=[sock.fileno()], timeout=30, **options)  # type: ignore[call-overload]
    return done.returncode, done.stdout, done.stderr


def test_streams_stay_apart(case: Case) -> None:
    assert run(case, "echo out; echo err >&2; exit 5", "") == (0, b"out\nended 5 None False\n", b"err\n")


def test_input_from_a_pipe(case: Case) -> None:
    data = bytes(range(256)) * 3000
    status, out, err = run(case, "cat", "i", data=data)
    assert (status, err) == (0, b"") and out == data + b"ended 0 None False\n"


def test_detach_keys_are_only_keys_on_a_terminal(case: Case) -> None:
    assert run(case, "cat", "i", data=b"a\x10\x11b")[1] == b"a\x10\x11bended 0 None False\n"


@pytest.mark.parametrize("redirect", ["</dev/null", "<&-", "0<&- </dev/null"])
def test_input_that_is_closed_or_empty(case: Case, redirect: str) -> None:
    assert run(case, "cat; echo over", "i", redirect=redirect) == (0, b"over\nended 0 None False\n", b"")


def test_input_that_is_a_file_and_output_that_is_a_file(case: Case, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"x" * 300_000)
    assert run(case, "cat", "i", redirect=f"<{tmp_path}/in >{tmp_path}/out") == (0, b"", b"")
    assert (tmp_path / "out").read_bytes() == b"x" * 300_000 + b"ended 0 None False\n"


def test_output_that_is_closed(case: Case) -> None:
    assert run(case, "echo x; echo err >&2; exit 0", "", redirect=">&-") == (0, b"", b"err\n")


def test_signals_go_to_the_callers_function(case: Case) -> None:
    sock = case.owned("trap 'echo trapped; exit 4' TERM; echo ready; while :; do sleep 0.05; done")
    argv = [sys.executable, "-c", COMMAND, "owner", str(sock.fileno()), "s"]
    with (
        sock,
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=[sock.fileno()]) as command,
    ):
        assert command.stdout is not None and command.stderr is not None
        assert command.stdout.readline() == b"ready\n"
        command.send_signal(signal.SIGINT)
        assert command.stderr.readline() == b"signal 2\n"
        command.send_signal(signal.SIGTERM)
        assert command.stderr.readline() == b"signal 15\n"
        supervisor = case.supervisor
        assert supervisor is not None
        os.kill(supervisor.child_pid, signal.SIGTERM)
        assert command.stdout.read() == b"trapped\nended 4 None False\n"


def test_the_library_variant_runs_in_a_thread_and_touches_no_signal(case: Case) -> None:
    import threading

    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    results: list[attach.Ended] = []
    out: list[bytes] = []
    owner = case.owned("cat; exit 3", stdin="pipe")

    def work() -> None:
        results.append(attach.stream(owner, stdin=b"data", stdout=out.append, owner=True))

    worker = threading.Thread(target=work)
    worker.start()
    worker.join(10)
    attach.done(owner)
    assert results == [attach.Ended(3)] and b"".join(out) == b"data"
    assert before == {number: signal.getsignal(number) for number in signal.valid_signals()}


def test_handlers_and_the_wakeup_descriptor_are_put_back(case: Case) -> None:
    def mine(number: int, frame: object) -> None:
        raise AssertionError(number)

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with case.owned("exit 1") as owner:
            assert attach.run_foreground(owner, tty=False, interactive=False, owner=True).status == 1
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("pieces", "sent", "detached"),
    [
        ([b"abc"], b"abc", False),
        ([b"\x10\x11"], b"", True),
        ([b"abc\x10\x11def"], b"abc", True),
        ([b"a\x10", b"\x11"], b"a", True),
        ([b"a\x10", b"b"], b"a\x10b", False),
        ([b"\x10", b"\x10", b"\x11"], b"\x10", True),
        ([b"\x11\x10", b"\x10b"], b"\x11\x10\x10b", False),
    ],
)
def test_finding_the_detach_keys(pieces: list[bytes], sent: bytes, detached: bool) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        session = attach._Session(ours, flags=3)
        session.detach_keys = attach.DETACH_KEYS
        found = [session._find_keys(piece) for piece in pieces]
    assert b"".join(data for data, _ in found) == sent
    assert found[-1][1] is detached and not any(end for _, end in found[:-1])
