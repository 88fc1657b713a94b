"""The same bodies under podman and under docker: the engines start pycontain-runtime, and the kernel says what came of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peer_engines import COLUMNS, IMAGE, ROWS, Cgroup, Docker, Engine, Podman, eventually, nothing_left

pytestmark = pytest.mark.needs("root", "overlayfs", "netns")
ENGINES = [
    pytest.param(Podman, id="podman", marks=pytest.mark.needs("podman", "conmon")),
    pytest.param(Docker, id="docker", marks=pytest.mark.needs("docker")),
]


@pytest.fixture(scope="module", params=ENGINES)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    made: Engine = request.param(tmp_path_factory.mktemp("peer"))
    yield made
    made.close()


@pytest.fixture
def engine(server: Engine) -> Iterator[Engine]:
    with nothing_left(server):
        yield server


@pytest.fixture(scope="class")
def running(server: Engine) -> Iterator[Engine]:
    """An engine with a container that several tests look at."""
    with nothing_left(server):
        try:
            server(
                "run", "-d", "--name", "one", "--memory=64m", "--pids-limit=50", "--cpus=0.5", "--cpuset-cpus=0",
                "--user=1000:1001", "--cap-drop=all", "--cap-add=net_bind_service", "--security-opt=no-new-privileges",
                "--read-only", "--tmpfs=/scratch:size=64k,mode=1777",
                "--hostname=inside", "--env=COLOUR=blue", "--workdir=/bin",
                "--oom-score-adj=300", "--ulimit=core=1000:2000", "--device=/dev/null:/dev/hole:rw", "--shm-size=1m",
                IMAGE, "sh", "-c", "while true; do sleep 1; done", check=True,
            )  # fmt: skip
            yield server
        finally:
            server.remove("one")


def pid(engine: Engine, name: str = "one") -> int:
    return int(engine.out("inspect", "--format", "{{.State.Pid}}", name))


def status(engine: Engine, key: str) -> str:
    text = Path(f"/proc/{pid(engine)}/status").read_text()
    return text.partition(f"\n{key}:")[2].partition("\n")[0].strip()


# --- one after the other ------------------------------------------------------------------------------------------------


def test_output_input_and_exit_status(engine: Engine) -> None:
    done = engine("run", "--rm", "-i", IMAGE, "sh", "-c", "cat; echo no >&2; exit 7", input="to and fro", stdin=None)
    assert (done.returncode, done.stdout, done.stderr) == (7, "to and fro", "no\n")


@pytest.mark.parametrize(
    ("program", "code", "word"), [("nosuch", 127, "not found"), ("/etc/passwd", 126, "permission denied")]
)
def test_what_cannot_be_run(engine: Engine, program: str, code: int, word: str) -> None:
    done = engine("run", "--rm", IMAGE, program)
    assert done.returncode == code and word in done.stderr.lower() and program in done.stderr, done.stderr


def test_a_terminal(engine: Engine) -> None:
    script = f'tty; until [ "$(stty size)" = "{ROWS} {COLUMNS}" ]; do sleep 0.05; done; read x; echo "<$x>"; exit 5'
    code, output = engine.tty("run", "--rm", "-it", IMAGE, "sh", "-c", script, type=b"typed\n")
    assert code == 5 and "/dev/pts/0" in output and "<typed>" in output, output


def test_signals_logs_and_a_second_start(engine: Engine) -> None:
    script = "trap 'echo got it' USR1; trap 'echo bye >&2; exit 3' TERM; echo up; while true; do sleep 0.05; done"
    engine("run", "-d", "--name", "two", IMAGE, "sh", "-c", script, check=True)
    try:
        eventually(lambda: "up" in engine.out("logs", "two"))
        engine("kill", "--signal=USR1", "two", check=True)
        eventually(lambda: "got it" in engine.out("logs", "two"))
        engine("stop", "two", check=True)
        assert engine.out("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "two") == "exited 3"
        done = engine("logs", "two")
        assert (done.stdout, done.stderr) == ("up\ngot it\n", "bye\n")
        late = engine("kill", "two")
        assert late.returncode != 0 and re.search("not running|container state improper", late.stderr), late.stderr
        engine("start", "two", check=True)
        engine("pause", "two", check=True)
        engine("kill", "two", check=True)
        assert engine.out("wait", "two") == "137"
    finally:
        engine.remove("two")


def test_a_container_that_eats_its_memory(engine: Engine) -> None:
    script = "x=a; while true; do x=$x$x; done"
    engine("run", "--name", "eater", "--memory=16m", "--memory-swap=16m", IMAGE, "sh", "-c", script)
    try:
        state = json.loads(engine.out("inspect", "eater"))[0]["State"]
        assert state["ExitCode"] == 137
        assert state["OOMKilled"] or engine.name == "podman"  # conmon sees none on v1, with runc neither
    finally:
        engine.remove("eater")


def test_namespaces_of_another_container(engine: Engine) -> None:
    engine("run", "-d", "--name", "first", "--ipc=shareable", IMAGE, "sleep", "99", check=True)
    try:
        kinds = ("net", "ipc", "pid")
        script = "; ".join(f"readlink /proc/self/ns/{kind}" for kind in (*kinds, "mnt"))
        shared = [f"--{option}=container:first" for option in ("network", "ipc", "pid")]
        *same, mnt = engine.out("run", "--rm", *shared, IMAGE, "sh", "-c", script).split()
        first = Path(f"/proc/{pid(engine, 'first')}/ns")
        assert same == [str((first / kind).readlink()) for kind in kinds]
        assert mnt != str((first / "mnt").readlink())
    finally:
        engine.remove("first")


def test_volumes_and_privilege(engine: Engine, tmp_path: Path) -> None:
    script = "echo new >/there/file; mount -t tmpfs none /run && grep -c ' /run ' /proc/mounts; grep CapEff /proc/self/status"
    done = engine("run", "--rm", "--privileged", "-v", f"{tmp_path}:/there", IMAGE, "sh", "-c", script, check=True)
    assert done.stderr == ""
    seen = done.stdout.split()
    # All that this host's root can grant: where it lacks one, runc fails under docker, and the specification asks for a warning.
    ours = Path("/proc/self/status").read_text().partition("\nCapBnd:")[2].split()[0]
    assert seen[:2] == ["1", "CapEff:"] and int(seen[2], 16) & ~int(ours, 16) == 0 and int(seen[2], 16) >> 21 & 1
    assert (tmp_path / "file").read_text() == "new\n"
    script = "echo x >/there/file || echo no; mount -t tmpfs none /run || echo no"
    assert engine.out("run", "--rm", "-v", f"{tmp_path}:/there:ro", IMAGE, "sh", "-c", script) == "no\nno"
    assert (tmp_path / "file").read_text() == "new\n"


# --- one container, looked at from all sides ------------------------------------------------------------------------------


class TestARunningContainer:
    def test_its_limits_are_the_kernels(self, running: Engine) -> None:
        cgroup = Cgroup(pid(running))
        assert (cgroup.memory, cgroup.pids, cgroup.cpus) == (64 << 20, "50", 0.5)
        assert cgroup.read("cpuset", "cpuset.cpus", "cpuset.cpus") == "0"
        limits = Path(f"/proc/{pid(running)}/limits").read_text()
        assert re.search(r"Max core file size +1000 +2000 ", limits)
        assert Path(f"/proc/{pid(running)}/oom_score_adj").read_text() == "300\n"

    def test_its_limits_are_changed(self, running: Engine) -> None:
        running("update", "--cpus=0.7", "--memory=48m", "--memory-swap=64m", "one", check=True)
        cgroup = Cgroup(pid(running))
        assert (cgroup.memory, cgroup.cpus, cgroup.pids) == (48 << 20, 0.7, "50")
        running("update", "--memory=64m", "--memory-swap=128m", "one", check=True)
        assert Cgroup(pid(running)).memory == 64 << 20

    def test_its_rights_are_the_kernels(self, running: Engine) -> None:
        assert status(running, "Uid").split() == ["1000"] * 4
        assert status(running, "Gid").split() == ["1001"] * 4
        assert status(running, "CapBnd") == f"{1 << 10:016x}"
        assert (status(running, "NoNewPrivs"), status(running, "Seccomp")) == ("1", "2")

    def test_exec(self, running: Engine) -> None:
        script = "echo $COLOUR $SIZE; hostname; pwd; id -u; cat /proc/1/comm; touch /scratch/x /x; exit 4"
        done = running("exec", "--env=SIZE=big", "--workdir=/etc", "one", "sh", "-c", script)
        assert done.returncode == 4, done.stderr
        assert done.stdout.split() == ["blue", "big", "inside", "/etc", "1000", "sh"]
        assert "/x: Read-only file system" in done.stderr
        assert running.out("exec", "--user=0:0", "one", "id", "-u") == "0"
        assert running.out("exec", "one", "stat", "-c", "%t:%T", "/dev/hole") == "1:3"

    def test_exec_of_what_is_not_there(self, running: Engine) -> None:
        done = running("exec", "one", "nosuch")
        assert done.returncode == {"podman": 127, "docker": 126}[running.name]  # docker's own, with runc too
        assert "executable file not found in $PATH" in done.stdout + done.stderr

    def test_exec_on_a_terminal(self, running: Engine) -> None:
        script = f'test -t 0; until [ "$(stty size)" = "{ROWS} {COLUMNS}" ]; do sleep 0.05; done; exit 6'
        code, output = running.tty("exec", "-it", "one", "sh", "-c", script)
        assert code == 6, output

    def test_exec_that_is_left_alone(self, running: Engine) -> None:
        running("exec", "-d", "one", "sh", "-c", "sleep 0.1; echo done >/scratch/detached", check=True)
        eventually(lambda: running("exec", "one", "cat", "/scratch/detached").stdout == "done\n")

    def test_pause(self, running: Engine) -> None:
        cgroup = Cgroup(pid(running))
        running("pause", "one", check=True)
        assert cgroup.frozen
        assert running.out("inspect", "--format", "{{.State.Status}}", "one") == "paused"
        assert running("exec", "one", "true").returncode != 0
        running("unpause", "one", check=True)
        assert not cgroup.frozen
        running("exec", "one", "true", check=True)

    def test_statistics_and_processes(self, running: Engine) -> None:
        found = json.loads(running.out("stats", "--no-stream", "--format", "{{json .}}", "one"))
        if running.name == "podman":
            found = found[0]
        used, limit = found.get("MemUsage", found.get("mem_usage")).replace(" ", "").split("/")
        assert not used.startswith("0") and limit in ("64MiB", "67.11MB")
        assert int(found.get("PIDs", found.get("pids"))) >= 1
        assert "while true" in running.out("top", "one")


# --- what one of them alone does --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ENGINES[1:], indirect=True)
def test_a_network_of_docker(engine: Engine) -> None:
    """libnetwork comes in by a prestart hook, which finds the container's network namespace by the pid in its state."""
    shown = engine.out("run", "--rm", "--network=bridge", IMAGE, "ip", "addr", "show", "eth0")
    assert re.search(r"inet 172\.\d+\.0\.2/16", shown), shown


def test_the_runtime_is_ours(engine: Engine) -> None:
    """Nothing above means anything otherwise."""
    engine("run", "-d", "--name", "ours", IMAGE, "sleep", "99", check=True)
    try:
        (state,) = engine.state.glob("*/state.json")
        assert json.loads(state.read_text())["pid"] == pid(engine, "ours")
    finally:
        engine.remove("ours")
