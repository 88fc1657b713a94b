"""Under containerd with its stock shim, which calls pycontain-runtime as it calls runc; asked by ctr, read back from the kernel."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peer_engines import COLUMNS, IMAGE, ROWS, Cgroup, Containerd, eventually, nothing_left

pytestmark = pytest.mark.needs("root", "overlayfs", "netns", "containerd")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    made = Containerd(tmp_path_factory.mktemp("containerd"))
    yield made
    made.close()


@pytest.fixture
def engine(server: Containerd) -> Iterator[Containerd]:
    with nothing_left(server):
        yield server


@pytest.fixture(scope="class")
def running(server: Containerd) -> Iterator[Containerd]:
    with nothing_left(server):
        try:
            server(
                "run", "-d", "--memory-limit=67108864", "--cpus=0.5", "--env=COLOUR=blue",
                "--cwd=/bin", "--cap-drop=CAP_CHOWN", "--seccomp", "--no-pivot", IMAGE, "one",
                "sh", "-c", "while true; do sleep 1; done", check=True,
            )  # fmt: skip
            yield server
        finally:
            server.remove("one")


def pid(engine: Containerd, id: str = "one") -> int:
    (line,) = [line for line in engine.out("task", "ls").splitlines() if line.split()[0] == id]
    return int(line.split()[1])


def state(engine: Containerd, id: str = "one") -> str:
    (line,) = [line for line in engine.out("task", "ls").splitlines() if line.split()[0] == id]
    return line.split()[2]


def test_output_input_and_exit_status(engine: Containerd) -> None:
    # Not to the end of input: ctr misses an end that comes before it has told the shim of its pipe.
    script = "head -c 10; echo no >&2; exit 7"
    done = engine("run", "--rm", IMAGE, "c", "sh", "-c", script, input="to and fro", stdin=None)
    assert (done.returncode, done.stdout, done.stderr) == (7, "to and fro", "no\n")


@pytest.mark.parametrize(
    ("program", "word"), [("nosuch", "executable file not found in $PATH"), ("/etc/passwd", "permission denied")]
)
def test_what_cannot_be_run(engine: Containerd, program: str, word: str) -> None:
    """The words are those of the last error in the runtime's log, which go-runc reads."""
    done = engine("run", "--rm", IMAGE, "c", program)
    assert done.returncode == 1 and "OCI runtime" in done.stderr and word in done.stderr, done.stderr
    engine.remove("c")


def test_a_terminal(engine: Containerd) -> None:
    script = f'tty; until [ "$(stty size)" = "{ROWS} {COLUMNS}" ]; do sleep 0.05; done; read x; echo "<$x>"; exit 5'
    code, output = engine.tty("run", "--rm", "-t", IMAGE, "c", "sh", "-c", script, type=b"typed\n")
    assert code == 5 and "/dev/pts/0" in output and "<typed>" in output, output


def test_signals_and_a_log(engine: Containerd, tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = "trap 'echo got it' USR1; trap 'echo bye; exit 3' TERM; echo up; while true; do sleep 0.05; done"
    engine("run", "-d", f"--log-uri=file://{log}", IMAGE, "c", "sh", "-c", script, check=True)
    try:
        eventually(lambda: log.exists() and "up" in log.read_text())
        engine("task", "kill", "-s", "SIGUSR1", "c", check=True)
        eventually(lambda: "got it" in log.read_text())
        engine("task", "kill", "-s", "SIGTERM", "c", check=True)
        eventually(lambda: state(engine, "c") == "STOPPED")
        late = engine("task", "kill", "-s", "SIGKILL", "c")
        assert late.returncode == 1 and "not found" in late.stderr, late.stderr
        assert "exit code 3" in engine("task", "delete", "c", check=True).stderr
        assert log.read_text() == "up\ngot it\nbye\n"
    finally:
        engine.remove("c")


def test_mounts_and_namespaces(engine: Containerd, tmp_path: Path) -> None:
    mount = f"--mount=type=bind,src={tmp_path},dst=/there,options=rbind:ro"
    script = "echo x >/there/x || echo x >/x || echo no"
    done = engine("run", "--rm", mount, "--read-only", IMAGE, "c", "sh", "-c", script)
    assert done.stdout == "no\n"
    network = f"/proc/{engine.server.pid}/ns/net"
    done = engine("run", "--rm", f"--with-ns=network:{network}", IMAGE, "c", "readlink", "/proc/self/ns/net")
    assert done.stdout.strip() == str(Path(network).readlink())


class TestARunningContainer:
    def test_its_limits_and_rights_are_the_kernels(self, running: Containerd) -> None:
        cgroup = Cgroup(pid(running))
        assert (cgroup.memory, cgroup.cpus) == (64 << 20, 0.5)
        text = Path(f"/proc/{pid(running)}/status").read_text()
        assert not int(re.search(r"\nCapBnd:\s(\w+)", text)[1], 16) & 1  # type: ignore[index]
        assert "\nSeccomp:\t2\n" in text

    def test_exec(self, running: Containerd) -> None:
        script = "echo $COLOUR; pwd; id -u; id -g; exit 4"
        done = running("task", "exec", "--exec-id=a", "--cwd=/etc", "--user=0:7", "one", "sh", "-c", script)
        assert (done.returncode, done.stdout.split()) == (4, ["blue", "/etc", "0", "7"])
        done = running("task", "exec", "--exec-id=b", "one", "nosuch")
        assert done.returncode == 1 and "executable file not found in $PATH" in done.stderr
        running("task", "exec", "--exec-id=c", "--detach", "one", "sleep", "9", check=True)
        eventually(lambda: len(running.out("task", "ps", "one").splitlines()) > 2)

    def test_exec_on_a_terminal(self, running: Containerd) -> None:
        script = f'test -t 0; until [ "$(stty size)" = "{ROWS} {COLUMNS}" ]; do sleep 0.05; done; exit 6'
        code, output = running.tty("task", "exec", "--tty", "--exec-id=d", "one", "sh", "-c", script)
        assert code == 6, output

    def test_pause(self, running: Containerd) -> None:
        cgroup = Cgroup(pid(running))
        running("task", "pause", "one", check=True)
        assert cgroup.frozen and state(running) == "PAUSED"
        running("task", "resume", "one", check=True)
        assert not cgroup.frozen and state(running) == "RUNNING"

    def test_statistics(self, running: Containerd) -> None:
        found = json.loads(running.out("task", "metrics", "--format=json", "one"))
        text = json.dumps(found)
        assert str(64 << 20) in text, text
