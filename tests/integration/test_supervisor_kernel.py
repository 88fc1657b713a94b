"""What of the supervisor needs root, a small file system, another user, or conmon to compare with."""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pycontain.engine import attach, logs, supervise
from tests.supervisor_fixture import Case, frame, read_frame, until

NOBODY = 65534


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    made = Case(str(tmp_path))
    yield made
    made.kill()


def pss(pid: int) -> int:
    """Proportional set size in kB (proc(5), smaps_rollup)."""
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def as_nobody(work: Callable[[], None]) -> int:
    """Run a function in a child with another uid; its exit status. No exec: nobody may not reach the interpreter."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.needs("conmon")
def test_an_idle_supervisor_is_no_heavier_than_conmon(case: Case, tmp_path: Path) -> None:
    runtime = tmp_path / "runtime"
    # As much of an OCI runtime as conmon asks for: "create", with a pid file.
    runtime.write_text(
        "#!/bin/sh\nwhile [ $# -gt 0 ]; do [ $1 = --pid-file ] && file=$2; shift; done\nsleep 60 & echo $! > $file\n"
    )
    runtime.chmod(0o755)
    (tmp_path / "bundle").mkdir()
    pids = {name: tmp_path / f"{name}.pid" for name in ("conmon", "container")}
    argv = ["conmon", "-c", "id", "-u", "id", "-n", "name", "-r", str(runtime), "-b", str(tmp_path / "bundle")]
    argv += ["-p", str(pids["container"]), "-P", str(pids["conmon"]), "-l", f"k8s-file:{tmp_path}/conmon.log"]
    argv += ["--exit-dir", str(tmp_path), "--socket-dir-path", str(tmp_path)]
    subprocess.run(argv, check=True, timeout=20)
    until(lambda: all(path.exists() and path.read_text().strip() for path in pids.values()))
    other = int(pids["conmon"].read_text())
    try:
        supervisor = case.shell("exec sleep 60", listen=True)
        time.sleep(0.2)
        ours, theirs = pss(supervisor.pid), pss(other)
        print(f"\nidle Pss: supervisor {ours} kB, conmon {theirs} kB")
        assert ours <= theirs
    finally:
        os.kill(int(pids["container"].read_text()), signal.SIGKILL)
        until(lambda: supervise.start_time(other) is None)


@pytest.mark.needs("root")
def test_a_full_disk_stops_the_log_and_not_the_container(case: Case, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", str(disk)], check=True)
    try:
        log = str(disk / "log")
        go = tmp_path / "go"
        script = f"seq 20000; until [ -e {go} ]; do sleep 0.02; done; echo room again; exit 5"
        case.shell(script, log_path=log, log_max_size=10_000_000)
        until(lambda: os.statvfs(disk).f_bavail == 0)
        (disk / "log.1").write_text("")  # names still fit; the blocks come from what is truncated here
        time.sleep(0.3)
        os.truncate(log, 4096)
        go.write_text("")
        ended = case.wait_exit()
        assert ended.status == 5 and ended.log_dropped > 1000
        found = [record.data for record in logs.read(log)]
        assert found[0] == b"1\n" and found[-1] == b"room again\n"
    finally:
        case.kill()
        until(lambda: subprocess.run(["umount", str(disk)], capture_output=True).returncode == 0)


@pytest.mark.needs("root")
def test_another_user_is_refused_even_where_the_path_is_open(case: Case) -> None:
    """CVE-2020-15257: the path is one fence, the peer's uid is another."""
    directory = tempfile.mkdtemp(prefix="pycontain-")
    case.socket = f"{directory}/attach.sock"
    try:
        case.shell("exec sleep 60", listen=True)
        os.chmod(directory, 0o755)
        os.chmod(case.socket, 0o666)

        def intrude() -> None:
            with attach.connect(case.socket) as sock:
                assert read_frame(sock) == (attach.S_REFUSED, b"\3")
                assert read_frame(sock) is None

        assert as_nobody(intrude) == 0
        with attach.connect(case.socket) as sock:
            assert attach.wait(case.socket, 0.05) is None
            sock.close()
    finally:
        shutil.rmtree(directory)


@pytest.mark.needs("root")
def test_a_user_without_privileges_has_supervisors_that_cannot_be_traced() -> None:
    directory = tempfile.mkdtemp(prefix="pycontain-")
    program = f"{directory}/program"
    source = Path(supervise.__file__).parents[2] / "runtime/init/pycontain-supervisor"
    shutil.copy(source, program)
    os.chown(directory, NOBODY, NOBODY)
    case = Case(directory, program)

    def work() -> None:
        supervisor = case.shell("exec sleep 60", listen=True)
        # proc(5): root owns the files of a process that is not dumpable, and ptrace(2) is refused.
        assert os.stat(f"/proc/{supervisor.child_pid}/environ").st_uid == NOBODY
        assert os.stat(f"/proc/{supervisor.pid}/environ").st_uid == 0
        try:
            os.listdir(f"/proc/{supervisor.pid}/fd")
        except PermissionError:
            pass
        else:
            raise AssertionError("its descriptors can be reached")
        with attach.connect(case.socket) as sock:
            sock.sendall(frame(attach.C_HELLO, (1).to_bytes(4, "little") + bytes(4)))
            assert read_frame(sock) is not None

    try:
        assert as_nobody(work) == 0
    finally:
        case.kill()
        shutil.rmtree(directory)


@pytest.mark.needs("root")
def test_a_pid_namespace_ends_with_its_first_process_and_its_last_words_are_kept(case: Case) -> None:
    """With a namespace of its own no survivor keeps the output open, so the end is seen at once."""
    script = "(while :; do sleep 0.01; done) & echo last; exit 12"
    times = []
    for _ in range(3):
        begun = time.monotonic()
        supervisor = case.spawn(["/usr/bin/unshare", "--pid", "--fork", "--mount-proc", "/bin/sh", "-c", script])
        supervisor.started(supervisor.child_pid)
        supervisor.close()
        assert case.wait_exit().status == 12
        times.append(time.monotonic() - begun)
        case.wait_gone()
        os.unlink(case.exit_path)
    assert min(times) < 0.5, "the survivor of another namespace is waited for, which is not there"
    assert [record.data for record in logs.read(case.log)] == [b"last\n"] * 3


@pytest.mark.needs("root")
def test_the_container_is_not_protected_from_the_oom_killer_as_its_supervisor_is(case: Case) -> None:
    supervisor = case.shell("exec sleep 60")
    own = Path("/proc/self/oom_score_adj").read_text()
    assert Path(f"/proc/{supervisor.child_pid}/oom_score_adj").read_text() == own
    capabilities = re.search(r"^CapEff:\s+(\w+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert capabilities is not None
    may_lower = int(capabilities[1], 16) >> 24 & 1  # CAP_SYS_RESOURCE
    assert Path(f"/proc/{supervisor.pid}/oom_score_adj").read_text() == ("-999\n" if may_lower else own)


@pytest.mark.timeout(120)
def test_kill_9_at_random_moments_leaves_nothing_running(tmp_path: Path) -> None:
    """The command, the supervisor and the container, each at any moment of a short life; then what `rm -f` does."""
    import random
    import sys

    dice = random.Random(7)
    program = (
        "import os, sys; sys.path.insert(0, '.')\n"
        "from tests.supervisor_fixture import Case\n"
        "from pycontain.engine import attach\n"
        "os.write(1, b'x')\n"
        "owner = Case(sys.argv[1]).owned('sleep 0.05; echo x; exec sleep 30', stdin='pipe', listen=True)\n"
        "attach.stream(owner, owner=True)\n"
    )
    for number in range(40):
        directory = tmp_path / str(number)
        directory.mkdir(mode=0o700)
        case = Case(str(directory))
        command = subprocess.Popen(
            [sys.executable, "-c", program, case.directory], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        with command:
            assert command.stdout is not None
            command.stdout.read(1)
            time.sleep(dice.random() * 0.03)
            found = supervise.read_processes(case.pid_file)
            victim = dice.choice(["command", "supervisor", "container"])
            if victim == "command" or found is None:
                command.kill()
            else:
                supervise.kill(found, container=victim == "container")
                time.sleep(dice.random() * 0.01)
                command.kill()
        # A supervisor whose command died before it named the container ends by itself; otherwise its pid file tells.
        time.sleep(0.05)
        until(functools.partial(cleaned, case), 10)


def cleaned(case: Case) -> bool:
    """What `rm -f` does, once; whether nothing is left."""
    found = supervise.read_processes(case.pid_file)
    if found is not None:
        supervise.kill(found)
        supervise.kill(found, container=True)
    return not leftovers(case.directory + "/") and (found is None or not found.container_alive())


def leftovers(text: str) -> list[str]:
    """Processes that have ``text`` in their command line."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                line = Path(f"/proc/{name}/cmdline").read_bytes()
            except OSError:
                continue
            if text.encode() in line:
                found.append(f"{name} {line!r}")
    return found
