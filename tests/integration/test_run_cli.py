"""``pycontain run`` and the verbs around it, as a user meets them: real containers, real exit statuses."""

from __future__ import annotations

import ctypes
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.engine_tools import IMAGE, Host, read_until
from tests.runtime_tools import REPOSITORY
from tests.unit.test_import_budget import heavy

pytestmark = [
    pytest.mark.needs("root", "overlayfs", "bridge", "veth", "nft"),
    pytest.mark.timeout(120),
    pytest.mark.both_executors,
]
LOOP = "while :; do sleep 0.1; done"


def wait_for(condition: object, seconds: float = 10) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_output_goes_where_it_was_written_and_the_status_is_the_commands(host: Host) -> None:
    done = host("run", "--rm", IMAGE, "sh", "-c", "echo out; echo err >&2; exit 7", status=7)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


@pytest.mark.namespaces_only("what a machine is made with may weigh more than a container")
def test_a_run_imports_nothing_heavy(host: Host) -> None:
    host("run", "--rm", IMAGE, "true")  # the first one reads the image and makes the network
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from pycontain.cli import main; main()"
    words = host.argv("run", "--rm", IMAGE, "true")[3:]  # without the interpreter and its -m
    command = [sys.executable, "-I", "-S", "-X", "utf8", "-X", "importtime", "-c", code, *words]
    done = subprocess.run(command, env=host.environment, capture_output=True, text=True, check=True)
    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "pycontain.network.lease" in names and heavy(names) <= {"struct"}


@pytest.mark.parametrize("status", [0, 1, 125, 255])
def test_every_status_is_passed_on(host: Host, status: int) -> None:
    host("run", "--rm", "--network", "none", IMAGE, "sh", "-c", f"exit {status}", status=status)


def test_a_signal_that_ends_it_is_128_and_its_number(host: Host) -> None:
    host("run", "--rm", "--network", "none", "--init", IMAGE, "sh", "-c", "kill -TERM $$", status=143)


def test_standard_input_reaches_it_only_with_i(host: Host) -> None:
    assert host.out("run", "--rm", "-i", "--network", "none", IMAGE, "cat", input="through\n") == "through\n"
    assert host.out("run", "--rm", "--network", "none", IMAGE, "cat", input="not through\n") == ""


def test_megabytes_go_through_both_ways_unharmed(host: Host) -> None:
    text = "0123456789abcdef" * (1 << 17)
    assert host.out("run", "--rm", "-i", "--network", "none", IMAGE, "cat", input=text) == text


@pytest.mark.namespaces_only("another kernel numbers its namespaces for itself")
def test_it_is_alone_in_namespaces_of_its_own(host: Host) -> None:
    script = "for n in pid net mnt ipc uts cgroup; do readlink /proc/self/ns/$n; done"
    lines = host.out("run", "--rm", IMAGE, "sh", "-c", script).splitlines()
    for kind, line in zip(("pid", "net", "mnt", "ipc", "uts", "cgroup"), lines, strict=True):
        assert line != os.readlink(f"/proc/self/ns/{kind}")


@pytest.mark.namespaces_only("another kernel has queues of its own")
def test_the_hosts_ipc_namespace_has_its_queues_mounted_or_not(host: Host) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    name = f"/pycontain-test-{os.getpid()}"
    words = ("run", "--rm", "--network", "none", "--ipc", "host", IMAGE, "ls", "/dev/mqueue")
    # As on a host that has mounted them nowhere.
    bare = ["unshare", "--mount", "sh", "-c", 'umount /dev/mqueue 2>/dev/null; exec "$@"', "sh"]
    queue = libc.mq_open(name.encode(), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600, None)
    assert queue >= 0, os.strerror(ctypes.get_errno())
    try:
        for before in ([], bare):
            done = subprocess.run([*before, *host.argv(*words)], env=host.environment, capture_output=True, text=True)
            assert done.stdout.splitlines().count(name[1:]) == 1, done.stderr
    finally:
        os.close(queue)
        libc.mq_unlink(name.encode())
    assert host.out("run", "--rm", "--network", "none", IMAGE, "ls", "/dev/mqueue") == ""


def test_it_is_the_first_process_and_has_three_descriptors(host: Host) -> None:
    lines = host.out("run", "--rm", IMAGE, "sh", "-c", "ls /proc/self/fd; echo pid $$").splitlines()
    assert lines == ["0", "1", "2", "3", "pid 1"]  # 3 is ls's own look at the directory


def test_fourteen_capabilities_no_more_and_a_filter(host: Host) -> None:
    lines = host.out("run", "--rm", "--network", "none", IMAGE, "cat", "/proc/self/status").splitlines()
    found = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert found["CapBnd"] == found["CapEff"] == found["CapPrm"] == "00000000a80425fb"
    assert found["CapInh"] == found["CapAmb"] == "0000000000000000"
    assert found["Seccomp"] == "2"


def test_seccomp_can_be_switched_off_and_given(host: Host, tmp_path: Path) -> None:
    words = ("run", "--rm", "--network", "none")
    status = host.out(*words, "--security-opt", "seccomp=unconfined", IMAGE, "cat", "/proc/self/status")
    assert "Seccomp:\t0\n" in status
    profile = tmp_path / "profile.json"
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    done = host(*words, "--security-opt", f"seccomp={profile}", IMAGE, "mkdir", "/x", status=1)
    assert "not supported" in done.stderr.lower()


def test_options_of_the_process(host: Host) -> None:
    script = "id -u; id -g; pwd; echo $A-$B; hostname; ulimit -n"
    words = [
        "-u",
        "12:34",
        "-w",
        "/new/dir",
        "-e",
        "A=1",
        "-e",
        "B=2",
        "-e",
        "A=3",
        "-h",
        "box",
        "--ulimit",
        "nofile=99:99",
    ]
    assert host.out("run", "--rm", *words, IMAGE, "sh", "-c", script).splitlines() == [
        "12", "34", "/new/dir", "3-2", "box", "99",
    ]  # fmt: skip


def test_a_user_that_the_image_does_not_know_is_named(host: Host) -> None:
    done = host("run", "--rm", "-u", "ghost", IMAGE, "true", status=125)
    assert done.stderr == (
        "pycontain: user 'ghost' is not in the image's /etc/passwd\n\n"
        "hint: give a number instead, such as --user 1000:1000\n"
    )


def test_entry_point_and_arguments_combine_as_with_docker(host: Host) -> None:
    assert host.out("run", "--rm", "--network", "none", "--entrypoint", "echo", IMAGE, "a", "b") == "a b\n"


def test_privileged_has_everything_that_we_have(host: Host) -> None:
    with open("/proc/self/status") as file:
        mine = next(line for line in file if line.startswith("CapBnd"))
    status = host.out("run", "--rm", "--network", "none", "--privileged", IMAGE, "cat", "/proc/self/status")
    assert mine.replace("CapBnd", "CapEff") in status
    assert "Seccomp:\t0\n" in status


def test_a_read_only_root_refuses_writes_and_a_tmpfs_takes_them(host: Host) -> None:
    script = "touch /x && echo bad; touch /t/x && echo good; grep ' /t ' /proc/mounts"
    done = host("run", "--rm", "--read-only", "--tmpfs", "/t:size=1m", IMAGE, "sh", "-c", script)
    assert "bad" not in done.stdout
    assert "good" in done.stdout
    assert "nosuid,nodev,noexec" in done.stdout
    assert "size=1024k" in done.stdout


def test_bind_mounts_both_ways_and_read_only(host: Host, tmp_path: Path) -> None:
    source = tmp_path / "dir"
    words = ["run", "--rm", "--network", "none"]
    host(*words, "-v", f"{source}:/d", IMAGE, "sh", "-c", "echo hi > /d/f")
    assert (source / "f").read_text() == "hi\n"
    done = host(
        *words,
        "--mount",
        f"type=bind,source={source},target=/d,readonly",
        IMAGE,
        "sh",
        "-c",
        "cat /d/f; rm /d/f",
        status=1,
    )
    assert done.stdout == "hi\n"
    assert "Read-only file system" in done.stderr


def test_named_volumes_stay_and_anonymous_ones_go(host: Host) -> None:
    words = ["run", "--rm", "--network", "none"]
    host(*words, "-v", "kept:/d", "-v", "/anonymous", IMAGE, "sh", "-c", "echo 1 > /d/f; echo 2 > /anonymous/f")
    assert host.out(*words, "-v", "kept:/e:ro", IMAGE, "cat", "/e/f") == "1\n"
    assert os.listdir(host.data / "volumes") == ["kept"]
    host("system", "prune", "-f", "--volumes")


def test_limits_are_in_the_kernel_and_hold(host: Host) -> None:
    done = host(
        "run",
        "--rm",
        "--memory",
        "64m",
        "--name",
        "fat",
        IMAGE,
        "dd",
        "if=/dev/zero",
        "of=/dev/null",
        "bs=100M",
        "count=1",
        status=137,
    )
    assert done.stderr == "pycontain: container fat was OOM killed (memory limit 64 MiB)\n"
    fill = "dd if=/dev/zero of=/dev/shm/x bs=1M count={} 2>/dev/null && echo fits"
    words = ("run", "--rm", "--memory", "64m", "--shm-size", "90m", IMAGE, "sh", "-c")
    assert host.out(*words, fill.format(58)) == "fits\n"  # the limit is the container's, whatever is around it
    assert host.out(*words, fill.format(70), status=None) == ""
    script = "i=0; while [ $i -lt 40 ]; do sleep 5 & i=$((i+1)); done; echo done"
    done = host("run", "--rm", "--pids-limit", "20", IMAGE, "sh", "-c", script, status=None)
    assert "can't fork" in done.stderr


def test_oom_is_on_record(host: Host) -> None:
    host(
        "run",
        "--name",
        "fat",
        "--memory",
        "64m",
        IMAGE,
        "dd",
        "if=/dev/zero",
        "of=/dev/null",
        "bs=100M",
        "count=1",
        status=137,
    )
    (found,) = json.loads(host.out("inspect", "fat"))
    assert (found["State"]["OOMKilled"], found["State"]["ExitCode"]) == (True, 137)
    host("rm", "fat")


def test_detached_containers_live_on_and_every_verb_works(host: Host) -> None:
    identifier = host.out(
        "run", "-d", "--name", "web", IMAGE, "sh", "-c", f"trap 'echo bye; exit 3' TERM; echo up; {LOOP}"
    ).strip()
    assert len(identifier) == 64
    wait_for(lambda: host.out("logs", "web") == "up\n")
    assert host.out("ps", "-q") == identifier[:12] + "\n"
    assert host("exec", identifier[:6], "sh", "-c", "echo in; exit 5", status=5).stdout == "in\n"
    assert host.out("exec", "-i", "web", "cat", input="x") == "x"
    assert (
        host("exec", "-u", "nobody", "-w", "/tmp", "-e", "K=v", "web", "sh", "-c", "id -u; pwd; echo $K").stdout
        == "65534\n/tmp\nv\n"
    )
    host("pause", "web")
    assert host.out("ps", "--format", "json").count('"State": "paused"') == 1
    assert host("exec", "web", "true", status=1).stderr.startswith(
        'pycontain: cannot exec in container "web": it is paused'
    )
    host("unpause", "web")
    assert "trap" in host.out("top", "web")
    host("stop", "web")
    assert host.out("logs", "web") == "up\nbye\n"
    assert host.out("wait", "web") == "3\n"
    assert "Exited (3)" in host.out("ps", "-a")
    host("start", "web")
    host("restart", "-t", "1", "web")
    host("kill", "web")
    assert host.out("wait", "web") == "137\n"
    host("rename", "web", "old")
    assert host.out("rm", "old") == "old\n"


def test_a_running_container_is_not_removed_without_force(host: Host) -> None:
    host("run", "-d", "--name", "busy", IMAGE, "sh", "-c", LOOP)
    assert host("rm", "busy", status=1).stderr == (
        'pycontain: cannot remove container "busy": it is running\n\nhint: pycontain rm -f busy\n'
    )
    host("rm", "-f", "busy")


def test_rm_on_a_detached_container_removes_it_by_itself(host: Host) -> None:
    host("run", "-d", "--rm", "--name", "brief", IMAGE, "sleep", "0.2")
    wait_for(lambda: host.left() == [])


def test_start_attached_passes_input_output_and_status(host: Host) -> None:
    host("create", "-i", "--name", "job", IMAGE, "sh", "-c", "cat; exit 4")
    assert host("start", "-ai", "job", input="hello", status=4).stdout == "hello"
    host("rm", "job")


def test_containers_reach_each_other_by_name_also_after_a_rename(host: Host) -> None:
    host("run", "-d", "--name", "one", IMAGE, "sh", "-c", LOOP)
    assert "1 packets received" in host.out("run", "--rm", IMAGE, "ping", "-c1", "-W2", "one")
    host("rename", "one", "uno")
    assert "1 packets received" in host.out("run", "--rm", IMAGE, "ping", "-c1", "-W2", "uno")
    assert host("run", "--rm", IMAGE, "ping", "-c1", "-W2", "one", status=None).returncode != 0
    host("rm", "-f", "uno")


@pytest.mark.namespaces_only("test_vm_isolation.py has the refusals, from and to a machine")
def test_a_container_joins_the_network_of_another(host: Host) -> None:
    host("run", "-d", "--name", "uno", IMAGE, "sh", "-c", LOOP)
    address = json.loads(host.out("inspect", "uno"))[0]["NetworkSettings"]["IPAddress"]
    assert address in host.out("run", "--rm", "--network", "container:uno", IMAGE, "cat", "/etc/hosts")
    assert address in host.out("run", "--rm", "--network", "container:uno", IMAGE, "ip", "addr")
    host("rm", "-f", "uno")


def test_a_published_port_answers_and_is_refused_after_rm(host: Host) -> None:
    import socket

    host(
        "run",
        "-d",
        "--name",
        "web",
        "-p",
        "127.0.0.1::8000",
        IMAGE,
        "sh",
        "-c",
        "while :; do echo hello | nc -l -p 8000; done",
    )
    (port,) = json.loads(host.out("inspect", "web"))[0]["NetworkSettings"]["Ports"]["8000/tcp"]

    def ask() -> bytes:
        try:
            with socket.create_connection(("127.0.0.1", int(port["HostPort"])), 2) as connection:
                return connection.recv(100)
        except OSError:
            return b""

    wait_for(lambda: ask() == b"hello\n")
    assert f"127.0.0.1:{port['HostPort']}->8000/tcp" in host.out("ps")
    host("rm", "-f", "web")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(port["HostPort"])), 2)


def test_a_name_is_taken_once(host: Host) -> None:
    identifier = host.out("create", "--name", "web", IMAGE).strip()
    done = host("run", "--rm", "--name", "web", IMAGE, "true", status=125)
    assert done.stderr == (
        f'pycontain: cannot create container: the name "web" is in use by container {identifier[:12]}\n\n'
        "hint: pycontain rm -f web\n"
    )
    host("rm", "web")
    host("run", "--rm", "--name", "web", IMAGE, "true")


def test_a_failed_start_leaves_nothing(host: Host) -> None:
    done = host("run", "--name", "xx", IMAGE, "nosuch", status=127)
    assert done.stderr == (
        "pycontain: cannot execute 'nosuch': executable file not found in $PATH: ENOENT (no such file or directory)\n"
    )
    done = host("run", "-d", "--name", "xx", IMAGE, "/etc/passwd", status=126)
    assert done.stderr == "pycontain: cannot execute '/etc/passwd': EACCES (permission denied)\n"


def test_inspect_says_which_seccomp_profile_and_which_limits(host: Host) -> None:
    host(
        "create",
        "--name",
        "cc",
        "--memory",
        "64m",
        "--cpus",
        "0.5",
        "--pids-limit",
        "20",
        "--label",
        "a=b",
        IMAGE,
        "sleep",
        "1",
    )
    (found,) = json.loads(host.out("inspect", "cc"))
    assert found["SeccompProfile"] == "default"
    config = found["HostConfig"]
    assert (config["Memory"], config["NanoCpus"], config["PidsLimit"]) == (64 << 20, 500_000_000, 20)
    assert (found["Config"]["Labels"], found["Path"], found["Args"]) == ({"a": "b"}, "sleep", ["1"])
    assert (
        host.out("ps", "-a", "-q", "--no-trunc", "--filter", "label=a=b", "--filter", "status=created")
        == found["Id"] + "\n"
    )
    host("rm", "cc")


def test_explain_prints_the_plan_and_makes_nothing(host: Host) -> None:
    host.out("run", "--rm", IMAGE, "true")
    before = sorted(path for path in host.directory.rglob("*"))
    lines = host.out("explain", "run", "--rm", "-m", "64m", IMAGE, "sh", "-c", "true").splitlines()
    assert lines[0] == f"make cgroup /pycontain/{'0' * 64}"
    assert any("67108864" in line for line in lines)
    assert any("overlay" in line for line in lines)
    assert "sh" in lines[-1]
    assert sorted(path for path in host.directory.rglob("*")) == before


def test_signals_are_passed_on_to_the_container(host: Host) -> None:
    script = f"trap 'echo got; exit 9' INT; echo ready; {LOOP}"
    with subprocess.Popen(
        host.argv("run", "--rm", "--name", "sig", IMAGE, "sh", "-c", script),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=host.environment,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read() == b"got\n"
        assert process.wait(10) == 9


class Terminal:
    """A command on a real pseudo-terminal."""

    def __init__(self, host: Host, *words: str, size: tuple[int, int] = (24, 80)) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                termios.tcsetwinsize(0, size)
                os.execve(host.argv()[0], host.argv(*words), host.environment)
            finally:
                os._exit(1)

    def type(self, text: bytes) -> None:
        os.write(self.fd, text)

    def expect(self, text: bytes) -> bytes:
        return read_until(self.fd, text)

    def end(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


def test_a_shell_on_a_terminal(host: Host) -> None:
    terminal = Terminal(host, "run", "--rm", "-it", IMAGE, "sh")
    terminal.expect(b"# ")
    termios.tcsetwinsize(terminal.fd, (33, 101))
    os.kill(terminal.pid, signal.SIGWINCH)
    time.sleep(0.2)
    terminal.type(b"stty size; tty\n")
    seen = terminal.expect(b"/dev/pts/0")
    assert b"33 101" in seen
    terminal.type(b"sleep 100\n")
    time.sleep(0.3)
    terminal.type(b"\x03")
    terminal.type(b"echo status $?\n")
    terminal.expect(b"status 130")
    terminal.type(b"sleep 100 &\njobs\n")
    terminal.expect(b"Running")
    terminal.type(b"exit 42\n")
    assert terminal.end() == 42


def test_a_program_finds_the_size_of_its_terminal_when_it_starts(host: Host) -> None:
    host("run", "-d", "--name", "base", IMAGE, "sh", "-c", LOOP)
    for words in (("run", "--rm", "-t", IMAGE), ("exec", "-t", "base")):
        terminal = Terminal(host, *words, "stty", "size", size=(17, 77))
        terminal.expect(b"17 77")
        assert terminal.end() == 0
    host("rm", "-f", "base")


def test_leaving_a_terminal_and_coming_back(host: Host) -> None:
    terminal = Terminal(host, "run", "-it", "--name", "stay", IMAGE, "sh")
    terminal.expect(b"# ")
    terminal.type(b"\x10\x11")
    assert terminal.end() == 0
    assert "Up" in host.out("ps")
    terminal = Terminal(host, "attach", "stay")
    terminal.type(b"echo b''ack\n")
    terminal.expect(b"back")
    terminal.type(b"exit 5\n")
    assert terminal.end() == 5
    assert host.out("wait", "stay") == "5\n"
    host("rm", "stay")


def test_exec_on_a_terminal(host: Host) -> None:
    host("run", "-d", "--name", "base", IMAGE, "sh", "-c", LOOP)
    terminal = Terminal(host, "exec", "-it", "base", "sh")
    terminal.expect(b"# ")
    terminal.type(b"tty; exit 6\n")
    terminal.expect(b"/dev/pts/")
    assert terminal.end() == 6
    host("rm", "-f", "base")


def test_t_without_a_terminal_is_refused(host: Host) -> None:
    done = host("run", "--rm", "-it", IMAGE, "sh", status=125)
    assert done.stderr == "pycontain: -t wants a terminal, but standard input is none\n\nhint: leave out -t\n"


def test_an_image_in_use_stays_until_its_containers_are_gone(host: Host) -> None:
    host("create", "--name", "user", IMAGE)
    assert host("rmi", IMAGE, status=1).stderr == (
        'pycontain: cannot remove image "alpine:latest": it is in use by container user\n\nhint: pycontain rm user\n'
    )
    host("tag", IMAGE, "other:1")
    assert host.out("rmi", "other:1") == "Untagged: other:1\n"
    host("start", "user")
    host("wait", "user")
    host("rm", "user")


def test_images_are_saved_removed_and_loaded(host: Host, tmp_path: Path) -> None:
    identifier = json.loads(host.out("images", "--format", "json"))["ID"]
    for form in ("docker-archive", "oci-archive"):
        host("tag", IMAGE, f"copy:{form}")
        host("save", "--format", form, "-o", str(tmp_path / form), f"copy:{form}")
        host("rmi", f"copy:{form}")
        assert host.out("load", "-i", str(tmp_path / form)) == f"Loaded image: copy:{form}\n"
        assert json.loads(host.out("inspect", f"copy:{form}"))[0]["Id"] == identifier
        assert host.out("run", "--rm", "--network", "none", f"copy:{form}", "echo", "loaded") == "loaded\n"
        host("rmi", f"copy:{form}")
    assert host.out("images", "-q") == identifier.removeprefix("sha256:")[:12] + "\n"
    assert host.out("run", "--rm", "--network", "none", identifier[7:20], "echo", "by id") == "by id\n"


def test_logs_are_followed_to_the_end_and_cut_at_the_start(host: Host) -> None:
    host("run", "-d", "--name", "talk", IMAGE, "sh", "-c", "for i in 1 2 3 4 5; do echo $i; sleep 0.1; done")
    assert host.out("logs", "-f", "talk") == "1\n2\n3\n4\n5\n"
    assert host.out("logs", "-n", "2", "talk") == "4\n5\n"
    assert host.out("logs", "-t", "-n", "1", "talk").endswith("Z 5\n")
    assert host.out("logs", "--since", "1h", "talk") == "1\n2\n3\n4\n5\n"
    assert host.out("logs", "--since", "2100-01-01T00:00:00Z", "talk") == ""
    host("rm", "talk")
