"""Both ends of a machine's port without a machine: the real stand-in, against the guest's agent and a hostile guest.

The agent is built with sanitizers (tests/fuzz/guest.c) and serves a socket instead of a virtio port; its programs run
here. The hostile guest is played by hand.
"""

from __future__ import annotations

import fcntl
import os
import random
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycontain.runtime import channel, namespaces
from pycontain.runtime.errors import KernelError, PycontainError
from pycontain.runtime.failure import failure
from pycontain.runtime.plan.ops import NO_FD
from pycontain.runtime.vm import port, qemu
from tests.fuzz import seeds
from tests.fuzz.seeds import TYPES, message
from tests.supervisor_fixture import until

if TYPE_CHECKING:
    from pycontain.runtime.plan.ops import Op

FUZZ = Path(__file__).resolve().parents[1] / "fuzz"
WINDOW = 65536
PATH = "PATH=/usr/local/bin:/usr/bin:/bin"
NOBODY = 65534


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built")
    programs = [out / name for name in ("guest", "stand_in", "agent")]
    subprocess.run(["make", "-s", "-j3", "-C", FUZZ, f"OUT={out}", *programs], check=True, timeout=60)
    return out


class StandIn:
    """The real stand-in; ``guest`` is its port's other end, unless it was given a connected ``to``."""

    def __init__(
        self,
        *,
        to: socket.socket | None = None,
        stdio: tuple[int, int, int] | None = None,
        listener: int | None = None,
        rows: int = 0,
    ) -> None:
        self.guest, theirs = socket.socketpair() if to is None else (to, to)
        self.guest.settimeout(5)
        self.opened: list[int] = []
        self.status: int | None = None
        self.expected = 0
        self.stdin = self.stdout = self.stderr = self.master = -1
        console, console_theirs = socket.socketpair()
        if stdio is None:
            (in_, self.stdin), (self.stdout, out), (self.stderr, err) = os.pipe(), os.pipe(), os.pipe()
            stdio, self.opened = (in_, out, err), [self.stdin, self.stdout, self.stderr]
        else:
            in_ = out = err = -1
        plan = qemu.host_plan(
            into=False,
            joins=0,
            device_program=None,
            terminal=(console_theirs.fileno(), rows, 80) if rows else None,
            port=theirs.fileno(),
            listener=listener,
            oom=None,
            uid=NOBODY,
        )
        self.process = namespaces.launch(plan, stdio=stdio)
        for fd in {in_, out, err} - {-1}:
            os.close(fd)
        if to is None:
            theirs.close()
        self.pid = self.process.unshared()
        try:
            self.process.go(b"")
            if rows:
                _, fds, _, _ = socket.recv_fds(console, 64, 1)
                self.master = fds[0]
                self.opened.append(self.master)
        finally:
            console.close()
            console_theirs.close()

    def says(self, *messages: bytes) -> None:
        """As the guest, in one go: after the first of them it may be over."""
        self.guest.sendall(b"".join(messages))

    def hears(self) -> tuple[str, bytes]:
        """The next message to the guest."""
        head = exactly(self.guest, 8)
        kind, size = struct.unpack("<II", head)
        return channel.NAMES[kind], exactly(self.guest, size)

    def close(self, fd: int) -> None:
        self.opened.remove(fd)
        os.close(fd)

    def wait(self, seconds: float = 5) -> int:
        """Its exit code as subprocess has it: negative for a signal. A crash is none that a test need expect."""
        until(self.ended, seconds)
        assert self.status is not None
        code = os.waitstatus_to_exitcode(self.status)
        assert code not in (-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGSYS) or self.expected == code
        return code

    def ended(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = status if pid else None
        return self.status is not None

    def field(self, name: str, pid: int = 0) -> str:
        found = re.search(rf"^{name}:[ \t]*(.*)$", Path(f"/proc/{pid or self.pid}/status").read_text(), re.MULTILINE)
        assert found is not None
        return found[1]

    def clean(self) -> None:
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self.process.close()
        self.guest.close()
        for fd in self.opened:
            os.close(fd)


def dead(pid: int) -> bool:
    """Gone, or waiting for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        assert part, "the end of the connection"
        data += part
    return data


@pytest.fixture
def stands() -> Iterator[list[StandIn]]:
    """What is in it at the end is ended."""
    made: list[StandIn] = []
    yield made
    for one in made:
        one.clean()


@pytest.fixture
def stand_in(stands: list[StandIn]) -> StandIn:
    stands.append(StandIn())
    return stands[0]


class Guest:
    """The agent: a socket to connect to, as to a machine's port."""

    def __init__(self, program: Path, directory: Path) -> None:
        self.path = str(directory / "port.sock")
        server = socket.socket(socket.AF_UNIX)
        server.bind(self.path)
        server.listen()
        # Not in pytest's session: a shell without a terminal must not find one.
        self.process = subprocess.Popen(
            [program, str(server.fileno())],
            pass_fds=[server.fileno()],
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={"ASAN_OPTIONS": "detect_leaks=0"},
        )
        server.close()

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(5)
        client.connect(self.path)
        return client

    def close(self) -> str:
        self.process.kill()
        assert self.process.stderr is not None
        said = self.process.stderr.read().decode()
        self.process.stderr.close()
        self.process.wait()
        return said


@pytest.fixture
def guest(built: Path, tmp_path: Path) -> Iterator[Guest]:
    made = Guest(built / "guest", tmp_path)
    yield made
    said = made.close()
    assert "ERROR" not in said and "runtime error" not in said, said


def program(script: str, *, terminal: bool = False) -> list[Op]:
    ops: list[Op] = [("clone", 0, NO_FD), ("sync",), ("session",)]
    if terminal:
        ops += [("enter_root",), ("terminal", 5, 0, 0, 0, 0)]
    return [*ops, ("ready", NO_FD), ("exec", "/bin/sh", ["sh", "-c", script], [PATH], 0)]


def run(stands: list[StandIn], guest: Guest, script: str, **options: object) -> tuple[StandIn, int]:
    """A stand-in and its program in the "guest", which runs; the program's pid."""
    with guest.connect() as to:
        stands.append(StandIn(to=to, **options))  # type: ignore[arg-type]
    one = stands[-1]
    flags = port.WANT_CONSOLE if "rows" in options else port.WANT_STDIO
    port.send_plan(one.process.channel, program(script, terminal="rows" in options), port.session(flags))
    inner = one.process.unshared()
    one.process.go(b"", start_too=True)
    one.process.running()
    return one, inner


def read_all(fd: int, size: int = 1 << 20, pause: float = 0) -> bytes:
    data = bytearray()
    while part := os.read(fd, size):
        data += part
        time.sleep(pause)
    return bytes(data)


def feed(one: StandIn, data: bytes, sizes: list[int]) -> threading.Thread:
    """Writes ``data`` to the program's stdin, pieces of these sizes over and over, and closes it."""

    def write() -> None:
        at, i = 0, 0
        try:
            while at < len(data):
                at += os.write(one.stdin, data[at : at + sizes[i % len(sizes)]])
                i += 1
        except BrokenPipeError:
            pass
        one.close(one.stdin)

    thread = threading.Thread(target=write)
    thread.start()
    return thread


# ---- the agent and the stand-in


@pytest.mark.needs("root", "clang")
@pytest.mark.parametrize(
    ("writes", "reads"),
    [([1 << 20], 1 << 20), ([1, 4095, 100_000, 7], 65536), ([65537], 3000)],
    ids=["huge", "odd", "slow"],
)
def test_bytes_come_through_as_they_are(guest: Guest, stands: list[StandIn], writes: list[int], reads: int) -> None:
    data = random.Random(1).randbytes(8 << 20)
    one, _ = run(stands, guest, "exec cat")
    thread = feed(one, data, writes)
    assert read_all(one.stdout, reads) == data
    thread.join()
    assert one.wait() == 0


@pytest.mark.needs("root", "clang")
def test_two_streams_at_once_one_of_them_slow(guest: Guest, stands: list[StandIn]) -> None:
    data = random.Random(2).randbytes(2 << 20)
    one, _ = run(stands, guest, "tee /dev/fd/2")
    thread = feed(one, data, [300_000])
    slow: list[bytes] = []
    other = threading.Thread(target=lambda: slow.append(read_all(one.stderr, 65536, 0.005)))
    other.start()
    assert read_all(one.stdout) == data
    other.join()
    thread.join()
    assert slow == [data]
    assert one.wait() == 0


@pytest.mark.needs("root", "clang")
def test_a_reader_that_rests_holds_the_program_and_costs_nothing(guest: Guest, stands: list[StandIn]) -> None:
    one, inner = run(stands, guest, "exec cat /dev/zero")

    def written() -> int:
        return int(re.search(r"wchar: (\d+)", Path(f"/proc/{inner}/io").read_text())[1])  # type: ignore[index]

    def rests() -> bool:
        before = written()
        time.sleep(0.3)
        return written() == before > WINDOW

    until(rests)
    before = written()
    assert before < 1 << 20
    assert int(one.field("VmRSS").split()[0]) < 4096
    for _ in range(40):
        os.read(one.stdout, 65536)
    until(lambda: written() > before)
    one.close(one.stdout)
    assert one.wait() == -signal.SIGPIPE, "a reader that leaves is noticed"


@pytest.mark.needs("root", "clang")
@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 0", 0),
        ("exit 3", 3),
        ("exit 255", 255),
        ("kill -9 $$", -9),
        ("kill -TERM $$", -15),
        ("kill -SEGV $$", -11),
    ],
)
def test_the_end_is_the_programs(guest: Guest, stands: list[StandIn], script: str, code: int) -> None:
    one, _ = run(stands, guest, script)
    one.expected = code
    assert one.wait() == code


@pytest.mark.needs("root", "clang")
def test_signals_reach_the_program(guest: Guest, stands: list[StandIn]) -> None:
    script = "trap 'echo usr1' USR1; trap 'echo term; exit 4' TERM; echo ready; while :; do sleep 0.01; done"
    one, _ = run(stands, guest, script)
    assert os.read(one.stdout, 100) == b"ready\n"
    os.kill(one.pid, signal.SIGUSR1)
    assert os.read(one.stdout, 100) == b"usr1\n"
    os.kill(one.pid, signal.SIGTERM)
    assert os.read(one.stdout, 100) == b"term\n"
    assert one.wait() == 4


@pytest.mark.needs("root", "clang")
def test_a_program_may_close_its_stdin_before_it_is_read(guest: Guest, stands: list[StandIn]) -> None:
    one, _ = run(stands, guest, "exec <&-; sleep 0.2; echo on; exit 5")
    feed(one, bytes(1 << 20), [65536]).join()
    assert read_all(one.stdout) == b"on\n"
    assert one.wait() == 5


@pytest.mark.needs("root", "clang")
def test_an_end_that_comes_when_all_before_it_is_written(guest: Guest, stands: list[StandIn]) -> None:
    """Nothing comes after it that would wake the session again."""
    one, _ = run(stands, guest, "cat; exec >&-; sleep 0.2; exit 5")
    os.write(one.stdin, b"x")
    assert os.read(one.stdout, 10) == b"x"
    time.sleep(0.2)
    feed(one, b"", [1]).join()
    assert select.select([one.stdout], [], [], 5)[0], "the program has heard of the end"
    assert os.read(one.stdout, 10) == b""
    assert one.wait() == 5


@pytest.mark.needs("root", "clang")
def test_who_survives_the_program_does_not_hold_its_end_up(guest: Guest, stands: list[StandIn]) -> None:
    one, _ = run(stands, guest, "yes & exit 6")
    assert read_all(one.stdout).startswith(b"y\ny\n")
    assert one.wait() == 6


@pytest.mark.needs("root", "clang")
def test_a_terminal_its_size_and_its_hang_up(guest: Guest, stands: list[StandIn]) -> None:
    script = "trap 'stty size' WINCH; stty size; echo ready; while :; do sleep 0.01; done"
    one, _ = run(stands, guest, script, rows=33)
    said = b""
    while b"ready" not in said:
        said += os.read(one.master, 1000)
    # The size was said before there was a terminal; that it is set may be heard of, too.
    assert said.startswith(b"33 80\r\n")
    assert said.replace(b"33 80\r\n", b"") == b"ready\r\n"
    fcntl.ioctl(one.master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    said = b""
    while b"40 100\r\n" not in said:
        said += os.read(one.master, 1000)
    one.close(one.master)
    assert one.wait() == -signal.SIGHUP


@pytest.mark.needs("root", "clang")
def test_a_terminal_that_nobody_has_open_for_a_moment(guest: Guest, stands: list[StandIn]) -> None:
    script = 'there=$(tty); exec <&- >&- 2>&-; sleep 0.3; exec >"$there"; echo back; exit 7'
    one, _ = run(stands, guest, script, rows=24)
    assert os.read(one.master, 1000) == b"back\r\n"
    assert one.wait() == 7


@pytest.mark.needs("root", "clang")
def test_a_port_whose_user_vanished_in_the_middle(guest: Guest, stands: list[StandIn]) -> None:
    with guest.connect() as gone:
        gone.sendall(message("hello", 1, 2) + message("part", data=b"x" * 1000)[:500])
    one, inner = run(stands, guest, "exec sleep 100")
    os.kill(one.pid, signal.SIGKILL)
    until(lambda: dead(inner))
    assert run(stands, guest, "exit 9")[0].wait() == 9


@pytest.mark.needs("clang")
def test_a_port_that_has_a_new_user_before_the_old_ones_end_was_seen(guest: Guest) -> None:
    with guest.connect() as to:
        to.setblocking(True)
        pids = []
        for script in ("exec sleep 100", "exit 8"):
            port.send_plan(to.fileno(), program(script), port.session(port.WANT_STDIO))
            kind, payload = channel.receive(to.fileno()) or (0, b"")
            assert kind == channel.UNSHARED
            pids.append(int.from_bytes(payload, "little"))
            channel.send(to.fileno(), channel.GO)
            assert channel.receive(to.fileno()) == (channel.READY, b"")
        until(lambda: dead(pids[0]))
        channel.send(to.fileno(), channel.START)
        said = [channel.receive(to.fileno()) for _ in range(4)]
        assert (TYPES["running"], b"") in said  # a stream that ends at once may be heard of first
        assert said[-1] == (channel.EXITED, struct.pack("<II", 8 << 8, 0))


# ---- the stand-in and whatever a guest says


@pytest.mark.needs("root")
def test_it_has_given_up_all_rights(stand_in: StandIn) -> None:
    assert stand_in.field("Uid").split() == [str(NOBODY)] * 4
    assert stand_in.field("Groups").strip() == ""
    assert {stand_in.field(name) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {"0" * 16}
    assert stand_in.field("NoNewPrivs") == "1"
    assert stand_in.field("Seccomp") == "2"
    assert os.readlink(f"/proc/{stand_in.pid}/cwd") == "/"
    # stdio, the port, the channel, its signals
    assert len(os.listdir(f"/proc/{stand_in.pid}/fd")) == 6


@pytest.mark.needs("root")
def test_every_exit_status(stands: list[StandIn]) -> None:
    silent = os.open("/dev/null", os.O_RDWR)
    for code in range(256):
        one = StandIn(stdio=(silent, silent, silent))
        stands.append(one)
        one.says(message("running"), message("exited", code << 8, 0))
        assert one.wait() == code
        one.guest.close()
    os.close(silent)


@pytest.mark.needs("root")
def test_every_signal_that_a_program_can_end_by(stands: list[StandIn]) -> None:
    silent = os.open("/dev/null", os.O_RDWR)
    harmless = {signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH}
    stopping = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
    for number in set(range(1, 32)) | {35, 64}:
        one = StandIn(stdio=(silent, silent, silent))
        stands.append(one)
        os.kill(one.pid, signal.SIGHUP)  # which is pending, perhaps, and is not what it dies by
        one.expected = -number
        one.says(message("running"), message("exited", number, 0))
        assert one.wait() == (128 + number if number in harmless | stopping else -number)
        assert one.status is not None and not os.WCOREDUMP(one.status)
        one.guest.close()
    os.close(silent)


@pytest.mark.needs("root")
def test_every_signal_is_passed_on(stand_in: StandIn) -> None:
    kept = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, 64}
    for number in sorted(set(range(1, 65)) - kept):
        os.kill(stand_in.pid, number)
        assert stand_in.hears() == ("signal", number.to_bytes(4, "little"))
    os.kill(stand_in.pid, signal.SIGSTOP)
    until(lambda: stand_in.field("State").startswith("T"))
    os.kill(stand_in.pid, signal.SIGCONT)
    assert stand_in.hears() == ("signal", int(signal.SIGCONT).to_bytes(4, "little")), "poll(2) went on after the stop"
    os.kill(stand_in.pid, 64)
    assert stand_in.hears() == ("signal", int(signal.SIGKILL).to_bytes(4, "little"))


NONSENSE = {
    "type": (message("hello", 1, 2), "a message of no known type"),
    "length": (b"\x0c\0\0\0\xff\xff\xff\xff", "a message that is too long"),
    "stream": (message("stream", 3, data=b"x"), "a stream that does not exist"),
    "stdin": (message("stream", 0, data=b"x"), "more of a stream than was granted"),
    "flood": (message("stream", 1, data=b"x" * (WINDOW + 1)), "more of a stream than was granted"),
    "closed": (message("close", 1) + message("stream", 1, data=b"x"), "more of a stream than was granted"),
    "credit": (message("credit", 0, 1), "a grant of more than was used"),
    "overflow": (message("credit", 0, 0xFFFFFFFF), "a grant of more than was used"),
    "sink": (message("credit", 1, 0), "a grant of more than was used"),
    "short": (message("stream"), "a stream message of a wrong length"),
    "end": (message("exited", 0), "an end of a wrong length"),
    "data": (message("data", 0, data=b"x" * 100_000), "a message of no known type"),
    "long": (message("failed", data=b"x" * 2000), "more messages than are read"),
    "much": (message("ready") * 20_000, "more messages than are read"),
}


@pytest.mark.needs("root")
@pytest.mark.parametrize("what", NONSENSE)
def test_nonsense_ends_it_and_python_hears_why(stand_in: StandIn, what: str) -> None:
    data, why = NONSENSE[what]
    stand_in.guest.sendall(data)
    assert stand_in.wait() == -signal.SIGKILL
    heard = None
    while (found := channel.receive(stand_in.process.channel)) and found[0] == channel.READY:
        pass
    if found is not None:
        heard = failure(stand_in.process.plan, found[1]).message
    # Where its socket is full there is no room for the reason either.
    wanted = f"cannot understand the guest, which sent {why}: EPROTO"
    assert what == "much" if heard is None else heard.startswith(wanted)


@pytest.mark.needs("root")
@pytest.mark.parametrize("what", ["type", "length", "flood", "credit", "end"])
def test_nonsense_while_the_program_runs(stand_in: StandIn, what: str) -> None:
    stand_in.says(message("running"))
    stand_in.process.running()
    stand_in.guest.sendall(NONSENSE[what][0])
    assert stand_in.wait() == -signal.SIGKILL


@pytest.mark.needs("root")
def test_messages_out_of_order(stands: list[StandIn], stand_in: StandIn) -> None:
    stand_in.says(message("running"), message("unshared", 5))
    assert stand_in.wait() == -signal.SIGKILL
    stands.append(StandIn())
    stands[1].says(message("running"), message("exited", 3 << 8, 0), message("exited", 0, 0))
    assert stands[1].wait() == 3, "it ends once"


@pytest.mark.needs("root")
@pytest.mark.parametrize("last", [b"", message("stream", 1, data=b"never whole")[:12]], ids=["silence", "half"])
def test_what_was_said_before_the_guest_was_gone_is_written(stand_in: StandIn, last: bytes) -> None:
    stand_in.says(message("running"), message("stream", 1, data=b"x" * 60_000), last)
    os.kill(stand_in.pid, signal.SIGUSR1)  # what we do not read: it finds out when it writes, too
    stand_in.guest.close()
    assert read_all(stand_in.stdout, 4096) == b"x" * 60_000
    assert stand_in.wait() == -signal.SIGKILL


@pytest.mark.needs("root")
def test_the_last_output_waits_for_its_reader_or_a_signal(stand_in: StandIn) -> None:
    stand_in.says(message("running"), *[message("stream", i, data=bytes(WINDOW)) for i in (1, 2)])
    stand_in.says(message("close", 1), message("stream", 2, data=b""))
    while stand_in.hears()[0] != "credit":
        pass
    stand_in.says(message("stream", 2, data=bytes(16384)), message("exited", 2 << 8, 0))
    time.sleep(0.2)
    assert not stand_in.ended(), "the pipe is full, and the output is not written"
    os.kill(stand_in.pid, signal.SIGTERM)
    assert stand_in.wait() == 2


@pytest.mark.needs("root")
def test_output_beyond_a_closed_pipe(stand_in: StandIn) -> None:
    stand_in.close(stand_in.stdout)
    stand_in.says(message("running"), message("stream", 1, data=b"x"))
    assert stand_in.hears() == ("close", (1).to_bytes(4, "little")), "and not its own SIGPIPE"
    os.kill(stand_in.pid, signal.SIGUSR2)
    assert stand_in.hears() == ("signal", int(signal.SIGUSR2).to_bytes(4, "little"))


@pytest.mark.needs("root")
@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_output_that_nobody_takes_blocks_nothing_else(stands: list[StandIn], kind: str) -> None:
    """Both streams into one full pipe: poll(2) says of both that there is room, and there is for one."""
    mine, theirs = os.pipe() if kind == "pipe" else os.openpty()
    if kind == "terminal":
        tty.setraw(theirs)
    with open("/dev/null") as null:
        one = StandIn(stdio=(null.fileno(), theirs, theirs))
    stands.append(one)
    os.close(theirs)
    one.opened.append(mine)
    one.says(message("running"), message("stream", 1, data=b"x"))
    assert one.hears() == ("close", bytes(4)), "of /dev/null"
    time.sleep(0.05)  # one page of the pipe is the single byte's: the last one is for one of the two
    one.says(message("stream", 1, data=bytes(WINDOW - 1)) + message("stream", 2, data=bytes(WINDOW)))
    time.sleep(0.1)
    os.kill(one.pid, signal.SIGTERM)
    while (said := one.hears())[0] == "credit":
        pass
    assert said == ("signal", int(signal.SIGTERM).to_bytes(4, "little"))
    one.says(message("exited", 0, 0))
    got = 0
    while got < 2 * WINDOW:
        got += len(os.read(mine, 65536))
    assert one.wait() == 0


@pytest.mark.needs("root")
def test_files_and_what_cannot_be_written(stands: list[StandIn], tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"input" * 10_000)
    (tmp_path / "out").write_bytes(b"before")
    with open(tmp_path / "in") as in_, open(tmp_path / "out", "ab") as out, open("/dev/full", "w") as full:
        one = StandIn(stdio=(in_.fileno(), out.fileno(), full.fileno()))
    stands.append(one)
    one.says(message("running"), *[message("stream", i, data=b"x" * 10_000) for i in (1, 2)])
    heard = b""
    said: list[tuple[str, int]] = []
    while len(said) < 2:
        kind, payload = one.hears()
        if kind == "stream":
            heard += payload[4:]
        else:
            said.append((kind, payload[0]))
    assert sorted(said) == [("close", 0), ("close", 2)]
    assert heard == (tmp_path / "in").read_bytes()
    one.says(message("exited", 0, 0))
    assert one.wait() == 0
    assert (tmp_path / "out").read_bytes() == b"before" + b"x" * 10_000


@pytest.mark.needs("root")
def test_a_stdio_that_is_closed(tmp_path: Path) -> None:
    """No descriptor of its own is taken for it."""
    script = """if True:
        import os, socket
        os.closerange(0, 3)
        from pycontain.runtime import namespaces
        from pycontain.runtime.vm import qemu
        from tests.fuzz.seeds import message
        ours, theirs = socket.socketpair()
        process = namespaces.launch(qemu.host_plan(into=False, joins=0, device_program=None, terminal=None,
            port=theirs.fileno(), listener=None, oom=None, uid=65534))
        theirs.close()
        pid = process.unshared()
        process.go(b"")
        assert ours.recv(100) == message("close", 0)
        os.kill(pid, 10)
        assert ours.recv(100) == message("signal", 10)
        ours.sendall(message("running") + message("stream", 1, data=b"x") + message("exited", 5 << 8, 0))
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    done = subprocess.run([sys.executable, "-c", script], cwd=FUZZ.parents[1], timeout=20)
    assert done.returncode == 5


@pytest.mark.needs("root")
def test_who_starts_it_may_come_later_and_again(stands: list[StandIn], tmp_path: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "control.sock"))
    server.listen()
    with server:
        one = StandIn(listener=server.fileno())
    stands.append(one)
    one.process.close()
    for word in (b"first", b"second"):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "control.sock"))
            channel.send(client.fileno(), channel.START, word)
            assert one.hears() == ("start", word)
    client = socket.socket(socket.AF_UNIX)
    with client:
        client.connect(str(tmp_path / "control.sock"))
        channel.send(client.fileno(), channel.START)
        assert one.hears() == ("start", b"")
        one.says(message("running"))
        assert channel.receive(client.fileno()) is None
    with socket.socket(socket.AF_UNIX) as late, pytest.raises(ConnectionRefusedError):
        late.connect(str(tmp_path / "control.sock"))


# ---- the fuzzers, and Python's reading


@pytest.mark.needs("clang")
@pytest.mark.parametrize("target", ["stand_in", "agent"])
def test_the_fuzzers_find_nothing_in_a_second(built: Path, tmp_path: Path, target: str) -> None:
    """`make fuzz` runs them for ten minutes."""
    assert seeds.write(str(tmp_path / "corpus"), target) > 10
    options = ["-runs=5000", "-seed=1", "-max_len=2048", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run([built / target, *options, tmp_path / "corpus"], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr[-4000:]
    assert re.search(r"Done 50\d\d runs", done.stderr)


MESSAGES = st.lists(
    st.one_of(
        st.binary(max_size=64),
        st.builds(
            lambda kind, data: kind.to_bytes(4, "little") + len(data).to_bytes(4, "little") + data,
            st.integers(0, 20),
            st.binary(max_size=64),
        ),
    ),
    max_size=8,
).map(b"".join)


def answered(data: bytes) -> socket.socket:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(data)
    return ours


@given(MESSAGES)
@settings(max_examples=200, deadline=None)
def test_whatever_comes_is_a_message_or_an_error(data: bytes) -> None:
    with answered(data) as ours:
        try:
            while (found := channel.receive(ours.fileno())) is not None:
                assert found[0] in channel.NAMES
        except PycontainError:
            pass


@given(MESSAGES, st.booleans())
@settings(max_examples=200, deadline=None)
def test_whatever_a_guest_answers_a_call_is_an_error_of_ours(data: bytes, polite: bool) -> None:
    caller = object.__new__(port.Caller)
    caller._name = "c1"
    ours, theirs = socket.socketpair()
    caller._socket = ours

    def answer() -> None:
        with theirs:
            try:
                hello = exactly(theirs, 16) if polite else b""
                theirs.sendall(hello + data)
            except OSError:
                pass
            theirs.shutdown(socket.SHUT_WR)
            try:
                while theirs.recv(65536):
                    pass
            except OSError:
                pass

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        found = caller.call([("enter_root",), ("read", "/x", 10)], seconds=2)
        assert all(item is None or isinstance(item, bytes) for item in found)
    except PycontainError as error:
        assert error.message
    finally:
        ours.close()
        thread.join()


def test_a_call_after_a_failed_one() -> None:
    """The guest says of its process, too, that it has ended: not to be taken for an answer to what comes next."""
    caller = object.__new__(port.Caller)
    caller._name = "c1"
    ours, theirs = socket.socketpair()
    caller._socket = ours
    exited = channel.message(channel.EXITED, bytes(8))

    def receive() -> tuple[int, bytes]:
        kind, size = channel.header(exactly(theirs, 8), 1 << 20)
        return kind, exactly(theirs, size)

    def answer() -> None:
        with theirs:
            for said in (channel.message(channel.FAILED, bytes([1, 0, 0, 0, 22, 0, 0, 0]) + b"mount"), b""):
                theirs.sendall(channel.message(*receive()))
                while receive()[0] != channel.SESSION:
                    pass
                theirs.sendall(said + exited)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        ops = [("enter_root",), ("mount", "shares", "/x", "virtiofs", 0, "", 0)]
        with pytest.raises(KernelError, match="EINVAL"):
            caller.call(ops, seconds=2)
        assert caller.call(ops, seconds=2) == []
    finally:
        ours.close()
        thread.join()
