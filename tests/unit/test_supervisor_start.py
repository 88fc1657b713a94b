"""The supervisor from its start to its end: processes, descriptors, signals, files."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain.engine import attach, supervise
from pycontain.runtime.errors import Conflict, KernelError, NotFound, PycontainError, Unsupported
from tests.supervisor_fixture import Case, until


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    made = Case(str(tmp_path))
    yield made
    made.kill()


def gone(pid: int) -> bool:
    return supervise.start_time(pid) is None


def fds(pid: int) -> dict[int, str]:
    """A process's descriptors, when they no longer change: while it starts, its dynamic linker opens files."""
    directory = f"/proc/{pid}/fd"
    before: dict[int, str] | None = None
    while True:
        try:
            found = {int(name): os.readlink(f"{directory}/{name}") for name in os.listdir(directory)}
        except FileNotFoundError:
            found = {}
        if found and found == before:
            return found
        before = found
        time.sleep(0.05)


def test_a_container_runs_logs_ends_and_is_torn_down(case: Case) -> None:
    supervisor = case.shell("echo out; echo err >&2; exit 7")
    ended = case.wait_exit()
    case.wait_gone()

    assert (ended.status, ended.signal, ended.log_dropped) == (7, None, 0)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", ended.finished)
    with open(case.exit_path) as file:
        assert json.load(file)["version"] == 1
    with open(case.torn) as file:
        assert file.read() == "torn\n"
    with open(case.log) as file:
        assert re.sub(r"\S+Z ", "", file.read()) == "stdout F out\nstderr F err\n"
    for path in (case.exit_path, case.pid_file, case.log):
        assert os.stat(path).st_mode & 0o7777 == 0o600
    assert gone(supervisor.pid)
    assert sorted(os.listdir(case.directory)) == ["exit.json", "log", "supervisor.pid", "torn"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_death_by_signal_is_told_apart_from_its_status(case: Case, number: int) -> None:
    case.shell(f"kill -{int(number)} $$")
    ended = case.wait_exit()
    assert (ended.status, ended.signal) == (128 + number, number)


@pytest.mark.parametrize("status", [0, 1, 128, 137, 255])
def test_each_status_is_passed_on(case: Case, status: int) -> None:
    case.shell(f"exit {status}")
    ended = case.wait_exit()
    assert (ended.status, ended.signal) == (status, None)


def test_the_pid_file_has_both_processes_with_their_start_times(case: Case) -> None:
    supervisor = case.shell("exec sleep 60")
    found = supervise.read_processes(case.pid_file)
    assert found is not None
    assert (found.pid, found.container_pid) == (supervisor.pid, supervisor.child_pid)
    assert found.start_time == supervise.start_time(supervisor.pid)
    assert found.alive() and found.container_alive()
    assert not supervise.finished(case.exit_path, case.pid_file)

    assert supervise.kill(found, container=True)
    case.wait_gone()
    assert not found.alive() and not found.container_alive()
    assert supervise.finished(case.exit_path, case.pid_file)


def test_a_process_with_the_same_pid_and_another_start_time_is_not_killed(case: Case) -> None:
    supervisor = case.shell("exec sleep 60")
    found = supervise.read_processes(case.pid_file)
    assert found is not None
    other = supervise.Processes(found.pid, found.start_time - 1, found.container_pid, 1)
    assert not supervise.kill(other)
    assert not supervise.kill(other, container=True)
    assert not gone(supervisor.pid) and not gone(supervisor.child_pid)


def test_the_child_gets_its_descriptors_and_no_others(case: Case, tmp_path: Path) -> None:
    files = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("a", "b", "c", "held")]
    leaky = os.open(tmp_path / "leaky", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(leaky, True)
    server = supervise.listen(case.socket)
    ours, theirs = socket.socketpair()
    try:
        supervisor = case.spawn(
            ["/bin/sleep", "60"],
            files[:3],
            hold_fds=files[3:],
            attach_listen_fd=server,
            owner_fd=theirs.fileno(),
            stdin="pipe",
        )
        child = fds(supervisor.child_pid)
        assert [os.path.basename(child[n]) for n in (3, 4, 5)] == ["a", "b", "c"]
        assert sorted(child) == [0, 1, 2, 3, 4, 5]
        assert all(child[n].startswith("pipe:") for n in (0, 1, 2))
        held = fds(supervisor.pid)
        assert [held[n] for n in (0, 1, 2)] == ["/dev/null"] * 3
        kept = {os.path.basename(path) for path in held.values()}
        assert "held" in kept and "log" in kept
        assert not kept & {"a", "b", "c", "leaky", "sleep"}
        supervisor.abort()
    finally:
        for fd in (*files, leaky, server):
            os.close(fd)
        ours.close()
        theirs.close()


@pytest.mark.parametrize("base", [3, 4, 20, 150])
def test_descriptors_start_where_the_child_wants_them(case: Case, base: int) -> None:
    read, write = os.pipe()
    other = os.open("/dev/zero", os.O_RDONLY)
    try:
        supervisor = case.spawn(["/bin/sleep", "60"], [write, other, write], base=base)
        child = fds(supervisor.child_pid)
        assert sorted(child) == [0, 1, 2, base, base + 1, base + 2]
        assert child[base + 1] == "/dev/zero" and child[base] == child[base + 2] != "/dev/zero"
        supervisor.abort()
    finally:
        for fd in (read, write, other):
            os.close(fd)


def test_the_supervisor_keeps_nothing_of_its_caller(case: Case) -> None:
    supervisor = case.spawn(["/bin/sleep", "60"])
    stat = Path(f"/proc/{supervisor.pid}/stat").read_text().rpartition(")")[2].split()
    assert stat[3] == str(supervisor.pid)  # its own session
    assert stat[1] != str(os.getpid())
    assert os.readlink(f"/proc/{supervisor.pid}/cwd") == "/"
    assert Path(f"/proc/{supervisor.pid}/comm").read_text() == "pycontain-super\n"
    supervisor.abort()


def test_the_child_and_the_teardown_start_with_clean_signals_and_descriptors(case: Case) -> None:
    # Python ignores SIGPIPE, and posix_spawn passes that on; a container's `yes | head` would never end.
    report = "grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status; ls /proc/self/fd"
    case.shell(report, teardown_argv=["/bin/sh", "-c", f"exec > {case.torn}; {report}; readlink /proc/self/fd/0"])
    case.wait_exit()
    case.wait_gone()
    with open(case.log) as file:
        child = [line.split(" ", 3)[3].split() for line in file.read().splitlines()]
    with open(case.torn) as file:
        teardown = [line.split() for line in file.read().splitlines()]
    for lines in (child, teardown):
        masks = dict(lines[:3])
        assert int(masks["SigBlk:"], 16) == int(masks["SigIgn:"], 16) == 0
        assert lines[3:7] == [["0"], ["1"], ["2"], ["3"]]  # 3 is ls's own
    assert teardown[7] == ["/dev/null"]


def test_a_sibling_made_with_clone_parent_is_the_container(case: Case) -> None:
    # As init does: stage 0 clones the first process as its own sibling, names it, and goes.
    clone = 56 if os.uname().machine == "x86_64" else 220
    program = (
        "import ctypes, os, sys\n"
        "libc = ctypes.CDLL(None)\n"
        f"pid = libc.syscall({clone}, 0x8000 | 17, 0, 0, 0, 0)\n"  # CLONE_PARENT | SIGCHLD
        "if pid: os.write(3, pid.to_bytes(4, 'little')); os._exit(0)\n"
        "os.read(4, 1); os._exit(42)\n"
    )
    pid_read, pid_write = os.pipe()
    go_read, go_write = os.pipe()
    python = os.path.realpath(sys.executable)
    supervisor = case.spawn([python, "-ISc", program], [pid_write, go_read])
    os.close(pid_write)
    os.close(go_read)
    pid = int.from_bytes(os.read(pid_read, 4), "little")
    until(lambda: gone(supervisor.child_pid))
    supervisor.started(pid)
    supervisor.close()
    found = supervise.read_processes(case.pid_file)
    assert found is not None and found.container_pid == pid
    os.close(go_write)
    os.close(pid_read)
    assert case.wait_exit().status == 42


def test_a_first_process_that_dies_before_it_is_named_keeps_its_status(case: Case) -> None:
    supervisor = case.spawn(["/bin/sh", "-c", "exit 5"])
    until(lambda: gone(supervisor.child_pid))
    supervisor.started(supervisor.child_pid)
    supervisor.close()
    assert case.wait_exit().status == 5
    case.wait_gone()
    assert os.path.exists(case.torn)


def test_only_a_child_of_the_supervisor_can_be_the_container(case: Case) -> None:
    supervisor = case.spawn(["/bin/sleep", "60"])
    with pytest.raises(KernelError) as caught:
        supervisor.started(os.getpid())
    assert str(caught.value) == "take over the container's process: ECHILD (no child processes)"
    supervisor.started(supervisor.child_pid)
    supervisor.abort()


def test_abort_kills_everything_and_leaves_no_trace_of_an_end(case: Case, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    supervisor = case.spawn(
        ["/bin/sh", "-c", f"(setsid sleep 60 & echo $! > {pids}.new; mv {pids}.new {pids}); sleep 60"]
    )
    until(pids.exists)
    orphan = int(pids.read_text())
    supervisor.started(supervisor.child_pid)
    supervisor.abort()
    assert gone(supervisor.child_pid) and gone(orphan)
    until(lambda: gone(supervisor.pid))
    assert not os.path.exists(case.exit_path) and not os.path.exists(case.torn)
    supervisor.abort()  # twice is fine
    with pytest.raises(Conflict) as caught:
        supervisor.started(1)
    assert str(caught.value) == f"name process 1 to supervisor {supervisor.pid}: its start is over"


def test_a_command_that_dies_before_naming_the_container_leaves_nothing_running(case: Case) -> None:
    supervisor = case.spawn(["/bin/sleep", "60"])
    supervisor.close()
    case.wait_gone()
    assert gone(supervisor.child_pid)
    assert os.path.exists(case.torn) and not os.path.exists(case.exit_path)


def test_kill_9_of_the_command_in_the_middle_of_a_start(case: Case) -> None:
    program = (
        "import sys, time; sys.path.insert(0, '.')\n"
        "from tests.supervisor_fixture import Case\n"
        "s = Case(sys.argv[1]).spawn(['/bin/sleep', '60'])\n"
        "print(s.pid, s.child_pid, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, case.directory], stdout=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout is not None
        pid, child = (int(text) for text in command.stdout.readline().split())
        command.kill()
    until(lambda: gone(pid))
    assert gone(child) and os.path.exists(case.torn)


def test_a_host_that_ignores_sigchld_still_learns_the_status(case: Case) -> None:
    program = (
        "import signal, sys; sys.path.insert(0, '.')\n"
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "from tests.supervisor_fixture import Case\n"
        "Case(sys.argv[1]).shell('exit 9')\n"
    )
    subprocess.run([sys.executable, "-c", program, case.directory], check=True)
    assert case.wait_exit().status == 9


def test_sigterm_goes_to_the_container_and_other_signals_nowhere(case: Case) -> None:
    supervisor = case.shell("trap 'echo asked; exit 3' TERM; echo ready; while :; do sleep 0.05; done")
    until(lambda: b"ready" in Path(case.log).read_bytes())
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGPIPE):
        os.kill(supervisor.pid, number)
    os.kill(supervisor.pid, signal.SIGTERM)
    assert case.wait_exit().status == 3
    assert b"stdout F asked\n" in Path(case.log).read_bytes()
    case.wait_gone()
    assert Path(case.torn).read_text() == "torn\n"


def test_kill_9_of_the_supervisor_leaves_what_is_needed_to_clean_up(case: Case) -> None:
    supervisor = case.shell("exec sleep 60")
    os.kill(supervisor.pid, signal.SIGKILL)
    until(lambda: gone(supervisor.pid))
    found = supervise.read_processes(case.pid_file)
    assert found is not None and not found.alive() and found.container_alive()
    assert supervise.finished(case.exit_path, case.pid_file)
    assert supervise.kill(found, container=True)
    until(lambda: gone(supervisor.child_pid))


def test_a_survivor_that_keeps_the_output_open_delays_the_end_by_half_a_second(case: Case) -> None:
    begun = time.monotonic()
    case.shell("sleep 5 & echo $!; exit 4")
    assert case.wait_exit().status == 4
    assert 0.5 <= time.monotonic() - begun < 4
    os.kill(int(Path(case.log).read_bytes().split()[-1]), signal.SIGKILL)


def test_output_of_the_last_moment_is_not_lost(case: Case) -> None:
    case.shell("i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; kill -9 $$")
    assert case.wait_exit().status == 137
    lines = Path(case.log).read_text().splitlines()
    assert len(lines) == 2000 and lines[-1].endswith("stdout F line 1999")


def test_an_idle_supervisor_is_small(case: Case) -> None:
    supervisor = case.shell("cat /dev/zero | head -c 3000000; exec sleep 60", stdin="pipe", listen=True)
    with attach.connect(case.socket) as sock:
        sock.close()
    until(lambda: Path(f"/proc/{supervisor.child_pid}/comm").read_text() == "sleep\n")
    text = Path(f"/proc/{supervisor.pid}/smaps_rollup").read_text()
    pss = int(re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)[1])  # type: ignore[index]
    assert pss < 600, f"{pss} kB"


# ---------------------------------------------------------------- bad input


def test_what_cannot_be_executed(case: Case, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program")
    with pytest.raises(KernelError) as caught:
        case.spawn([str(tmp_path / "text")])
    assert str(caught.value) == "execute the container's first stage: EACCES (permission denied)"
    (tmp_path / "text").chmod(0o755)
    with pytest.raises(KernelError) as caught:
        case.spawn([str(tmp_path / "text")])
    assert str(caught.value) == "execute the container's first stage: ENOEXEC (exec format error)"
    assert not os.path.exists(case.torn)


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    missing = Case(str(tmp_path / "missing"))
    with pytest.raises(KernelError) as caught:
        missing.spawn(["/bin/true"])
    assert str(caught.value) == f"open directory {tmp_path}/missing: ENOENT (no such file or directory)"

    case = Case(str(tmp_path))
    os.mkdir(case.log)
    with pytest.raises(KernelError) as caught:
        case.spawn(["/bin/true"])
    assert str(caught.value) == "open the container's log: EISDIR (is a directory)"
    os.mkdir(case.pid_file)
    with pytest.raises(KernelError) as caught:
        case.spawn(["/bin/true"], log_path=None)
    assert str(caught.value) == "write the supervisor's pid file: EISDIR (is a directory)"


def test_a_log_that_is_a_link_is_not_followed(case: Case, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("")
    os.symlink(tmp_path / "target", case.log)
    with pytest.raises(KernelError) as caught:
        case.spawn(["/bin/true"])
    assert str(caught.value) == "open the container's log: ELOOP (too many levels of symbolic links)"


def test_bad_arguments(case: Case) -> None:
    def message(**options: object) -> str:
        with pytest.raises(PycontainError) as caught:
            case.spawn(["/bin/true"], **options)
        return str(caught.value)

    assert message(teardown_argv=["rm"]) == "start the supervisor: teardown command 'rm' is not an absolute path"
    assert message(log_max_size=100) == "start the supervisor: found a log of 3 × 100 bytes, wanted at least 1 × 32768"
    assert (
        message(log_max_files=0) == "start the supervisor: found a log of 0 × 10000000 bytes, wanted at least 1 × 32768"
    )
    wanted = "start the supervisor: a command must have arguments, and none with a NUL byte"
    assert message(teardown_argv=["/bin/a\0b"]) == wanted
    assert message(hold_fds=[9999]) == "start the supervisor: hand over descriptors: EBADF (bad file descriptor)"


def test_a_program_that_was_not_built(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        Case(str(tmp_path), program=str(tmp_path / "none")).spawn(["/bin/true"])
    assert str(caught.value) == f"start the supervisor: {tmp_path}/none is not there"
    assert caught.value.hint == "build it: make -C runtime/init"


def test_a_program_that_dies_at_once(tmp_path: Path) -> None:
    with pytest.raises(PycontainError) as caught:
        Case(str(tmp_path), program="/bin/false").spawn(["/bin/true"])
    assert str(caught.value) == "start the supervisor: it ended with status 1"
    with pytest.raises(PycontainError) as caught:
        Case(str(tmp_path), program="/bin/true").spawn(["/bin/true"])
    assert str(caught.value) == "start the supervisor: it died before it was ready"


@pytest.mark.parametrize(
    "numbers",
    ["", "1", "1,3,4", "2,3,4,5,6,-1,-1,-1,-1,7,0,3,7,0,3,10000,1", "x", "1,3,4,5,6,-1,-1,-1,-1,7,0,3,7,0,3,10000,99"],
)
def test_a_command_line_of_another_version_is_refused(numbers: str) -> None:
    program = Path(supervise.__file__).parents[2] / "runtime/init/pycontain-supervisor"
    done = subprocess.run([program, numbers, "exit", "pid", "log", "child", ""], timeout=10)
    assert done.returncode == 2


def test_files_of_another_version_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert supervise.read_exit(str(path)) is None and supervise.read_processes(str(path)) is None

    path.write_text('{"version": 2, "status": 0}')
    with pytest.raises(Unsupported) as refused:
        supervise.read_exit(str(path))
    assert str(refused.value) == f"read exit record {path}: found format version 2, wanted 1"
    path.write_text('{"version": null}')
    with pytest.raises(Unsupported) as refused:
        supervise.read_processes(str(path))
    assert str(refused.value) == f"read pid file {path}: found format version None, wanted 1"
    for text, problem in (
        ("{", "it is not JSON"),
        ("[]", "it is not a JSON object"),
        ('{"version": 1}', "found no status"),
    ):
        path.write_text(text)
        with pytest.raises(PycontainError) as caught:
            supervise.read_exit(str(path))
        assert str(caught.value) == f"read exit record {path}: {problem}"
    with pytest.raises(PycontainError) as caught:
        supervise.read_processes(str(path))
    assert str(caught.value) == f"read pid file {path}: found no pid with start time"


# ---------------------------------------------------------------- the attach socket's file


def test_the_socket_is_private_and_its_path_may_be_long(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 120)
    directory.mkdir(mode=0o700)
    path = str(directory / "attach.sock")
    before = os.umask(0)
    try:
        server = supervise.listen(path)
    finally:
        os.umask(before)
    try:
        assert os.stat(path).st_mode & 0o7777 == 0o600
        attach.connect(path).close()
    finally:
        os.close(server)
    with pytest.raises(NotFound) as caught:
        attach.connect(path)
    assert str(caught.value) == f"attach to {path}: the container is not running"
    os.close(supervise.listen(path))  # what is left of an old one is replaced


def test_a_socket_in_a_directory_of_others_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "open"
    directory.mkdir()
    directory.chmod(0o755)
    with pytest.raises(Conflict) as caught:
        supervise.listen(str(directory / "attach.sock"))
    assert str(caught.value) == (
        f"make attach socket {directory}/attach.sock: found its directory with mode 0755 and owner {os.geteuid()}, "
        f"wanted 0700 and {os.geteuid()}"
    )
    assert caught.value.hint == f"chmod 0700 {directory}"
