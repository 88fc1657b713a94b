"""The attach protocol: output, input, flow control, refusals; and nonsense, against a sanitized build."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pycontain.engine import attach, supervise
from pycontain.runtime.errors import Conflict, NotFound, PycontainError, Unsupported
from tests.supervisor_fixture import Case, frame, hello, read_frame

SOURCE = Path(supervise.__file__).parents[2] / "runtime/init/supervisor.c"
HEADER = SOURCE.with_name("supervisor_io.h")


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    made = Case(str(tmp_path))
    yield made
    made.kill()


def collect(sock: socket.socket) -> tuple[bytes, bytes, int | None]:
    """What comes until the exit frame: stdout, stderr, status."""
    out, err = b"", b""
    while (found := read_frame(sock)) is not None:
        if found[0] == attach.S_STDOUT:
            out += found[1]
        elif found[0] == attach.S_STDERR:
            err += found[1]
        elif found[0] == attach.S_EXIT:
            return out, err, int.from_bytes(found[1][:4], "little")
    return out, err, None


def test_both_sides_have_the_same_numbers() -> None:
    text = SOURCE.read_text() + HEADER.read_text()
    found = {name: int(value) for name, value in re.findall(r"\b([CS]_[A-Z_]+) = (\d+)", text)}
    ours = {name: value for name, value in vars(attach).items() if re.match(r"[CS]_[A-Z]", name)}
    assert found == ours and len(ours) == 13
    for name, value in re.findall(r"\b((?:WANT|HAS)_[A-Z]+) = (\d+)", text):
        assert getattr(attach, name) == int(value)
    assert re.search(r"#define VERSION (\d+)", text)[1] == str(attach.VERSION) == str(supervise.FORMAT)  # type: ignore[index]
    assert re.search(r"#define FRAME_MAX (\d+)", text)[1] == str(attach.FRAME_MAX)  # type: ignore[index]
    failures = {int(value) for value in re.findall(r"\bFAIL_\w+ = (\d+)", text)}
    assert failures == set(supervise._FAILURES)
    refusals = {int(value) for value in re.findall(r"\bREFUSED_\w+ = (\d+)", text)}
    assert refusals == set(attach._REFUSALS)


def test_the_owner_sees_everything_from_the_first_byte(case: Case) -> None:
    with case.owned("echo first; echo second >&2; exit 6") as owner:
        case.wait_exit()  # all of it is over before we read a byte
        assert read_frame(owner) == (attach.S_HELLO, (1).to_bytes(4, "little") + bytes(4))
        assert collect(owner) == (b"first\n", b"second\n", 6)
        assert not os.path.exists(case.torn)
        hello(owner)
        attach.done(owner)
    case.wait_gone()
    assert not os.path.exists(case.torn), "the owner said that it has torn down"


def test_an_owner_that_dies_leaves_the_teardown_to_the_supervisor(case: Case) -> None:
    with case.owned("exit 0") as owner:
        assert collect(owner)[2] == 0
        time.sleep(0.1)
        assert not os.path.exists(case.torn)
    case.wait_gone()
    assert os.path.exists(case.torn)


def test_done_before_the_end_is_nonsense(case: Case) -> None:
    with case.owned("sleep 0.3") as owner:
        hello(owner)
        owner.sendall(frame(attach.C_DONE))
        assert collect(owner)[2] is None
    case.wait_gone()
    assert os.path.exists(case.torn)


def test_eight_megabytes_pass_the_owner_unchanged_in_both_directions(case: Case) -> None:
    data = random.Random(1).randbytes(8_000_000)
    received = hashlib.sha256()
    with case.owned("cat", stdin="pipe", log_max_size=100_000) as owner:
        ended = attach.stream(owner, stdin=data, stdout=received.update, owner=True)
        attach.done(owner)
    assert ended == attach.Ended(0)
    assert received.digest() == hashlib.sha256(data).digest()
    case.wait_gone()
    assert not os.path.exists(case.torn)


def test_a_slow_owner_slows_the_container_and_loses_nothing(case: Case) -> None:
    script = "head -c 3000000 /dev/zero; echo written >&2; exit 2"
    with case.owned(script, log_path=None) as owner:
        time.sleep(0.7)  # longer than a drain may take
        assert not os.path.exists(case.exit_path), "three megabytes went into a quarter megabyte of buffers"
        out, err, status = collect(owner)
    assert (len(out), err, status) == (3_000_000, b"written\n", 2)


def test_what_was_in_the_pipe_reaches_an_owner_that_is_late(case: Case) -> None:
    # The ring holds 224 to 256 KiB, this socket at most 16, the pipe 64: the container ends, and some of its output
    # is still in the pipe.
    owner, theirs = socket.socketpair()
    with owner, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        case.shell("head -c 290000 /dev/zero; exit 8", log_path=None, owner_fd=theirs.fileno())
        theirs.close()
        assert case.wait_exit().status == 8  # recorded in time, though nobody has read
        time.sleep(0.7)  # longer than a drain may take
        out, _, status = collect(owner)
    assert (len(out), status) == (290_000, 8)


def test_a_stalled_client_is_dropped_after_a_second_and_one_that_reads_gets_everything(case: Case) -> None:
    case.shell("sleep 0.3; head -c 3000000 /dev/zero; exit 3", listen=True)
    begun = time.monotonic()
    with attach.connect(case.socket) as stalled, attach.connect(case.socket) as reading:
        for sock in (stalled, reading):
            hello(sock)
        out, _, status = collect(reading)
        assert (len(out), status) == (3_000_000, 3)
        case.wait_gone()
        assert time.monotonic() - begun < 4
        out, _, status = collect(stalled)
        assert status is None and len(out) < 1_000_000, "it was cut off"


def test_a_client_that_trickles_is_dropped_as_well(case: Case) -> None:
    case.shell("sleep 0.3; head -c 3000000 /dev/zero; exit 3", listen=True)
    begun = time.monotonic()
    with attach.connect(case.socket) as sock:
        hello(sock)
        got = 0
        while data := sock.recv(1000):
            got += len(data)
            if not os.path.exists(case.exit_path):
                time.sleep(0.002)
        assert case.wait_exit().status == 3
        assert time.monotonic() - begun < 4 and got < 2_900_000


def test_a_stalled_reader_of_nothing_does_not_delay_the_teardown(case: Case) -> None:
    case.shell("sleep 0.3; head -c 200000 /dev/zero", listen=True)
    with attach.connect(case.socket) as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        hello(stalled)
        case.wait_exit()
        begun = time.monotonic()
        case.wait_gone(3)
        assert time.monotonic() - begun < 2


def test_output_and_stdin_of_attached_clients(case: Case) -> None:
    case.shell("while read line; do echo got $line; [ $line = end ] && exit 4; done", stdin="pipe", listen=True)
    both = attach.WANT_STDIN | attach.WANT_OUTPUT
    with attach.connect(case.socket) as one, attach.connect(case.socket) as two:
        hello(one, both)
        hello(two)
        assert read_frame(one) == (attach.S_HELLO, (1).to_bytes(4, "little") + (2).to_bytes(4, "little"))
        assert read_frame(two) is not None
        one.sendall(frame(attach.C_STDIN, b"hel") + frame(attach.C_STDIN, b"lo\n"))
        assert read_frame(two) == read_frame(one) == (attach.S_STDOUT, b"got hello\n")
        one.sendall(frame(attach.C_DETACH))
        assert read_frame(one) is None
        # stdin stays open without a client
        with attach.connect(case.socket) as three:
            hello(three, both)
            three.sendall(frame(attach.C_STDIN, b"end\n"))
            assert collect(three) == (b"got end\n", b"", 4)
        assert collect(two) == (b"got end\n", b"", 4)


def test_end_of_stdin_is_passed_on(case: Case) -> None:
    with case.owned("cat; echo over", stdin="pipe") as owner:
        assert attach.stream(owner, stdin=b"input\n", stdout=None, owner=True).status == 0
    assert Path(case.log).read_text().count("stdout F") == 2


def test_without_an_offer_of_stdin_the_container_waits(case: Case) -> None:
    case.shell("cat; exit 1", stdin="pipe", listen=True)
    time.sleep(0.2)
    with attach.connect(case.socket) as sock:
        assert not os.path.exists(case.exit_path)
        assert attach.stream(sock, stdin=b"").status == 1


def test_an_owner_that_vanishes_ends_stdin_and_one_that_detaches_does_not(case: Case, tmp_path: Path) -> None:
    with case.owned("cat; exit 5", stdin="pipe"):
        pass
    assert case.wait_exit().status == 5

    (tmp_path / "two").mkdir(mode=0o700)
    other = Case(str(tmp_path / "two"))
    with other.owned("cat; exit 5", stdin="pipe", listen=False) as owner:
        hello(owner, attach.WANT_OUTPUT | attach.WANT_STDIN)
        owner.sendall(frame(attach.C_DETACH))
    time.sleep(0.3)
    assert not os.path.exists(other.exit_path)
    other.kill()


def test_stdin_that_nobody_reads_is_bounded_and_holds_its_sender_back(case: Case) -> None:
    case.shell("exec sleep 60", stdin="pipe", listen=True)
    with attach.connect(case.socket) as sock:
        hello(sock, attach.WANT_STDIN | attach.WANT_OUTPUT)
        sock.settimeout(0.5)
        sent = 0
        with pytest.raises(TimeoutError):
            while True:
                sock.sendall(frame(attach.C_STDIN, bytes(65536)))
                sent += 1
        assert sent < 16, "a pipe, our buffer and the socket's take some 400 KB"
        # others are served meanwhile
        with attach.connect(case.socket) as other:
            hello(other)
            assert read_frame(other) is not None
    with attach.connect(case.socket) as sock:
        hello(sock)
        assert read_frame(sock) is not None


def test_a_container_that_closes_stdin_stops_its_senders(case: Case) -> None:
    script = "exec 0<&-; sleep 0.5; exit 7"
    zero = os.open("/dev/zero", os.O_RDONLY)
    try:
        with case.owned(script, stdin="pipe") as owner:
            sock_sent = attach.stream(owner, stdin=zero, owner=True)
            assert sock_sent.status == 7
    finally:
        os.close(zero)


def test_a_reader_that_leaves_is_noticed_by_the_container(case: Case) -> None:
    # pycontain run alpine yes | head -1
    read, write = os.pipe()
    with case.owned("yes; echo status $? >&2") as owner:
        errors: list[bytes] = []
        worker = threading.Thread(target=lambda: (os.read(read, 2), os.close(read)))
        worker.start()
        ended = attach.stream(owner, stdout=write, stderr=errors.append, owner=True)
        worker.join()
        os.close(write)
    assert ended.status == 0
    assert b"".join(errors) == b"status 141\n"  # 128 + SIGPIPE


def test_wait_gets_the_status_and_not_the_output(case: Case) -> None:
    case.shell("sleep 0.3; head -c 2000000 /dev/zero; kill -9 $$", listen=True)
    assert attach.wait(case.socket, 0.01) is None
    assert attach.wait(case.socket) == attach.Ended(137, 9)
    case.wait_gone()
    with pytest.raises(NotFound):
        attach.wait(case.socket)


def test_seventeen_clients_are_one_too_many(case: Case) -> None:
    case.shell("exec sleep 60", listen=True)
    with ExitStack() as stack:
        clients = [stack.enter_context(attach.connect(case.socket)) for _ in range(16)]
        for sock in clients:
            hello(sock)
            assert read_frame(sock) is not None
        with attach.connect(case.socket) as sock, pytest.raises(Conflict) as caught:
            attach.stream(sock)
        assert str(caught.value) == "attach: the supervisor refused: 16 clients are attached already"
        clients[3].close()
        time.sleep(0.1)
        with attach.connect(case.socket) as sock:
            hello(sock)
            assert read_frame(sock)[0] == attach.S_HELLO  # type: ignore[index]


def test_another_version_is_refused_by_name(case: Case) -> None:
    case.shell("exec sleep 60", listen=True)
    with attach.connect(case.socket) as sock:
        hello(sock, version=2)
        assert read_frame(sock) == (attach.S_REFUSED, b"\2")
        assert read_frame(sock) is None

    def speak(answer: bytes) -> str:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(answer)
            with pytest.raises(PycontainError) as caught:
                attach.stream(ours)
            return f"{type(caught.value).__name__}: {caught.value}"

    refused = frame(attach.S_REFUSED, b"\2")
    assert speak(refused) == "Unsupported: attach: the supervisor refused: it does not speak version 1"
    newer = frame(attach.S_HELLO, (9).to_bytes(4, "little") + bytes(4))
    assert speak(newer) == "Unsupported: attach: found a supervisor that speaks version 9, wanted 1"
    assert issubclass(Unsupported, PycontainError)
    assert (
        speak(frame(attach.S_STDOUT, b"x")) == "PycontainError: attach: found frame 130, wanted the supervisor's hello"
    )
    greeting = frame(attach.S_HELLO, (1).to_bytes(4, "little") + bytes(4))
    nonsense = "PycontainError: attach: found frame 7 of 0 bytes, which is none of version 1"
    assert speak(greeting + frame(7)) == nonsense
    long = bytes([130]) + (70000).to_bytes(4, "little")
    assert speak(greeting + long) == "PycontainError: attach: found a frame of 70000 bytes, wanted at most 65536"


def test_a_supervisor_that_is_killed_is_an_error_and_no_hang(case: Case) -> None:
    case.shell("exec sleep 60", listen=True)
    supervisor = case.supervisor
    assert supervisor is not None
    with attach.connect(case.socket) as sock:
        timer = threading.Timer(0.2, os.kill, (supervisor.pid, signal.SIGKILL))
        timer.start()
        with pytest.raises(PycontainError) as caught:
            attach.stream(sock)
        timer.join()
    text = "attach: the supervisor closed the connection before the container's end: it died, or we read too slowly"
    assert str(caught.value) == text


# ---------------------------------------------------------------- nonsense

BAD = {
    "no hello": frame(attach.C_STDIN_EOF),
    "unknown type": frame(99),
    "zero": bytes(64),
    "a hello that is too short": frame(attach.C_HELLO, bytes(4)),
    "a hello that is too long": frame(attach.C_HELLO, bytes(65536)),
    "four gigabytes": bytes([attach.C_HELLO]) + b"\xff" * 4,
}
GREETING = frame(attach.C_HELLO, (1).to_bytes(4, "little") + (3).to_bytes(4, "little"))
BAD_LATER = {
    "two hellos": GREETING,
    "empty stdin": frame(attach.C_STDIN),
    "stdin above the limit": bytes([attach.C_STDIN]) + (65537).to_bytes(4, "little"),
    "four gigabytes of stdin": bytes([attach.C_STDIN]) + b"\xff" * 4,
    "eof with payload": frame(attach.C_STDIN_EOF, b"x"),
    "short resize": frame(attach.C_RESIZE, b"xx"),
    "long resize": frame(attach.C_RESIZE, bytes(5)),
    "detach with payload": frame(attach.C_DETACH, b"x"),
    "done of somebody who is not the owner": frame(attach.C_DONE),
    "close of somebody who is not the owner": frame(attach.C_CLOSE, b"\1"),
    "a server's frame": frame(attach.S_STDOUT, b"x"),
}


@pytest.mark.parametrize("name", [*BAD, *BAD_LATER])
def test_nonsense_costs_the_client_its_connection_and_nobody_else(case: Case, name: str) -> None:
    case.shell("exec sleep 60", listen=True, stdin="pipe")
    with attach.connect(case.socket) as good, attach.connect(case.socket) as bad:
        hello(good)
        assert read_frame(good) is not None
        if name in BAD_LATER:
            bad.sendall(GREETING)
            assert read_frame(bad) is not None
        bad.sendall(BAD.get(name) or BAD_LATER[name])
        bad.settimeout(5)
        assert read_frame(bad) is None
        with attach.connect(case.socket) as another:
            hello(another)
            assert read_frame(another) is not None
        found = supervise.read_processes(case.pid_file)
        assert found is not None and found.alive()


def test_stdin_from_a_client_that_did_not_offer_it(case: Case) -> None:
    case.shell("exec sleep 60", listen=True, stdin="pipe")
    with attach.connect(case.socket) as bad:
        hello(bad, attach.WANT_OUTPUT)
        assert read_frame(bad) is not None
        bad.sendall(frame(attach.C_STDIN, b"x"))
        assert read_frame(bad) is None


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The supervisor under AddressSanitizer and UBSan."""
    target = str(tmp_path_factory.mktemp("sanitized") / "supervisor")
    flags = ["-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run(["clang", *flags, "-o", target, str(SOURCE)], check=True)
    return target


@pytest.fixture
def torture(tmp_path: Path, sanitized: str) -> Iterator[Case]:
    reports = tmp_path / "sanitizer"
    env = os.environ | {
        "ASAN_OPTIONS": f"log_path={reports}:detect_leaks=0",
        "UBSAN_OPTIONS": f"log_path={reports}:print_stacktrace=1",
    }
    made = Case(str(tmp_path), sanitized, env)
    yield made
    made.kill()
    found = [path.read_text() for path in tmp_path.glob("sanitizer*")]
    assert not found, found[0]


@pytest.mark.needs("clang")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(2))
def test_torture_under_sanitizers(torture: Case, seed: int) -> None:
    """Clients that say anything, in any pieces, and vanish at any time, while a container writes and reads."""
    dice = random.Random(seed)
    torture.shell("while :; do head -c 5000 /dev/urandom; head -c 100 /dev/zero >&2; read x; done",
                  stdin="pipe", listen=True, log_max_size=40000)  # fmt: skip

    def words() -> bytes:
        kind = dice.choice([1, 2, 2, 2, 3, 4, 5, 6, 7, 0, 130, 255])
        size = dice.choice([0, 1, 4, 8, 8, 100, 65536, 65537])
        if dice.random() < 0.7:
            size = {1: 8, 2: dice.randrange(1, 65537), 3: 0, 4: 4, 5: 0, 6: 0, 7: 1}.get(kind, size)
        length = size if dice.random() < 0.95 else dice.randrange(2**32)
        return bytes([kind]) + length.to_bytes(4, "little") + dice.randbytes(size)

    end = time.monotonic() + 3
    clients: list[socket.socket] = []
    while time.monotonic() < end:
        if len(clients) < 20 and dice.random() < 0.3:
            try:
                sock = attach.connect(torture.socket)
            except (NotFound, PycontainError):
                break
            sock.setblocking(False)
            clients.append(sock)
            try:
                if dice.random() < 0.9:
                    sock.send(GREETING)
            except ConnectionError:
                pass  # the seventeenth
        if not clients:
            continue
        sock = dice.choice(clients)
        try:
            match dice.randrange(4):
                case 0:
                    data = words() + words()
                    sock.send(data[: dice.randrange(1, len(data) + 1)])
                case 1:
                    sock.send(frame(attach.C_STDIN, b"\n" * dice.randrange(1, 3000)))
                case 2:
                    if not sock.recv(dice.randrange(1, 70000)):
                        raise ConnectionError
                case 3:
                    if dice.random() < 0.1:
                        raise ConnectionError
        except BlockingIOError:
            pass
        except ConnectionError:
            sock.close()
            clients.remove(sock)
    for sock in clients:
        sock.close()
    found = supervise.read_processes(torture.pid_file)
    assert found is not None and found.alive(), "the supervisor died"
    with attach.connect(torture.socket) as sock:
        hello(sock)
        assert read_frame(sock) is not None
    supervise.kill(found, container=True)
    torture.wait_gone()
    assert torture.wait_exit().status == 137


@pytest.mark.needs("clang")
def test_the_usual_life_under_sanitizers(torture: Case) -> None:
    data = random.Random(2).randbytes(1_000_000)
    received = hashlib.sha256()
    with torture.owned("cat; echo e >&2; exit 3", stdin="pipe", log_max_size=50_000) as owner:
        assert attach.stream(owner, stdin=data, stdout=received.update, owner=True).status == 3
        attach.done(owner)
    assert received.digest() == hashlib.sha256(data).digest()
    torture.wait_gone()
