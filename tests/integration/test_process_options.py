"""The options of exec, create and run, and what is handed through the runtime; with what others see of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime_tools import COMMAND, Runtime, make_rootfs, write_bundle

pytestmark = pytest.mark.needs("root")


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    runtime = Runtime(tmp_path / "state")
    yield runtime
    runtime.clean()


class Maker:
    def __init__(self, runtime: Runtime, path: Path, rootfs: Path) -> None:
        self.runtime, self.path, self.rootfs = runtime, path, rootfs

    def bundle(self, *args: str, change: Callable[[dict[str, Any]], object] | None = None) -> Path:
        return write_bundle(self.path / "bundle", self.rootfs, *args, change=change)

    def start(self, id: str, *args: str, change: Callable[[dict[str, Any]], object] | None = None) -> int:
        bundle = self.bundle(*(args or ("sleep", "100")), change=change)
        self.runtime("create", "-b", bundle, "--pid-file", self.path / id, id, check=True)
        self.runtime("start", id, check=True)
        return int((self.path / id).read_text())


@pytest.fixture
def maker(runtime: Runtime, tmp_path: Path, rootfs: Path) -> Maker:
    return Maker(runtime, tmp_path, rootfs)


def stderr(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done
    return done.stderr.removeprefix("pycontain-runtime: ").rstrip("\n")


def cgroups_of(pid: int | str) -> dict[str, str]:
    rows = (line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines())
    return {controllers: path for _, controllers, path in rows}


class Socket:
    """A listening socket, and what one connection sends: the first bytes and descriptors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()

    def receive(self) -> list[int]:
        self._server.settimeout(10)
        client, _ = self._server.accept()
        data, fds, _, _ = socket.recv_fds(client, 100, 2)
        assert data
        client.close()
        self._server.close()
        return fds


# pidfd, configuration file, sub-reaper


def test_a_pidfd_over_a_socket(maker: Maker) -> None:
    taker = Socket(maker.path / "pidfd.sock")
    bundle = maker.bundle("sleep", "100")
    maker.runtime(
        "run",
        "-d",
        "-b",
        bundle,
        "--pidfd-socket",
        taker.path,
        "--no-subreaper",
        "--no-mount-fallback",
        "po-pidfd",
        check=True,
    )
    (fd,) = taker.receive()
    pid = maker.runtime.state("po-pidfd")["pid"]
    assert f"Pid:\t{pid}\n" in Path(f"/proc/self/fdinfo/{fd}").read_text()
    taker = Socket(maker.path / "exec.sock")
    maker.runtime("exec", "-d", "--pidfd-socket", taker.path, "po-pidfd", "sleep", "99", check=True)
    (other,) = taker.receive()
    signal.pidfd_send_signal(other, signal.SIGKILL)
    signal.pidfd_send_signal(fd, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while maker.runtime.state("po-pidfd")["status"] != "stopped":
        assert time.monotonic() < deadline
    os.close(fd)
    os.close(other)


def test_nobody_wants_the_pidfd(maker: Maker) -> None:
    for verb in ("create", "run"):
        done = maker.runtime(verb, "-b", maker.bundle("sleep", "100"), "--pidfd-socket", "/run/no.sock", "po-nobody")
        head, _, tail = stderr(done).partition(" of process ")
        assert head == "--pidfd-socket /run/no.sock: cannot send a descriptor"
        assert tail.partition(":")[2] == " ENOENT (no such file or directory)"
        assert maker.runtime("state", "po-nobody").returncode == 1


def test_another_configuration_file(maker: Maker) -> None:
    bundle = maker.bundle("sh", "-c", "echo other")
    (bundle / "config.json").rename(maker.path / "other.json")
    done = maker.runtime("run", "-b", bundle, "--config", "other.json", "po-config", cwd=maker.path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "other\n", "")
    done = maker.runtime("create", "-b", bundle, "--config", maker.path / "no.json", "po-config")
    assert stderr(done) == f"cannot read {maker.path}/no.json: it does not exist"
    (maker.path / "other.json").write_text('{"ociVersion": 5}')
    done = maker.runtime("create", "-b", bundle, "--config", maker.path / "other.json", "po-config")
    assert stderr(done) == "$.ociVersion: found 5, wanted a string"


# exec


def test_exec_labels(maker: Maker) -> None:
    maker.start("po-label")
    for option, key, name, there in (
        ("--apparmor", "apparmorProfile", "AppArmor", "/sys/module/apparmor"),
        ("--process-label", "selinuxLabel", "SELinux", "/sys/fs/selinux"),
    ):
        if not Path(there).exists():
            done = maker.runtime("exec", option, "acme", "po-label", "true")
            wanted = f"$.process.{key}: {name} is not on in this kernel\n\nhint: remove it from config.json"
            assert stderr(done) == wanted


def test_exec_in_a_paused_container(maker: Maker) -> None:
    pid = maker.start("po-paused")
    maker.runtime("pause", "po-paused", check=True)
    done = maker.runtime("exec", "po-paused", "true")
    assert stderr(done) == (
        "cannot exec in container po-paused: it is paused\n\nhint: pycontain-runtime resume po-paused, or --ignore-paused"
    )
    with subprocess.Popen(
        [*COMMAND, "--root", maker.runtime.root, "exec", "--ignore-paused", "po-paused", "echo", "thawed"],
        stdout=subprocess.PIPE,
        text=True,
    ) as waiting:
        freezer = next(path for names, path in cgroups_of(pid).items() if "freezer" in names or not names)
        time.sleep(0.3)
        assert waiting.poll() is None, "it waits to go on"
        assert freezer.endswith("/po-paused")
        maker.runtime("resume", "po-paused", check=True)
        assert waiting.communicate(timeout=10)[0] == "thawed\n"


def directories_of(pid: int) -> dict[str, Path]:
    """Of each hierarchy that this process is in, by its controllers ("" for cgroup2): its cgroup's directory."""
    found = {}
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    for names, path in cgroups_of(pid).items():
        for line in mounts:
            kind, _, options = line.partition(" - ")[2].split()[:3]
            wanted = (
                kind == "cgroup2"
                if not names
                else kind == "cgroup" and set(names.split(",")) <= set(options.split(","))
            )
            if wanted and line.split()[3] == "/" and Path(line.split()[4] + path).is_dir():
                found[names] = Path(line.split()[4] + path)
    return found


def test_exec_in_a_cgroup_below(maker: Maker) -> None:
    pid = maker.start("po-sub")
    made = directories_of(pid)
    for directory in made.values():
        (directory / "sub/deep").mkdir(parents=True)
    top = cgroups_of(pid)
    for cpuset in (path for names, path in made.items() if "cpuset" in names):  # cgroup v1 wants them set
        for level in (cpuset / "sub", cpuset / "sub/deep"):
            for file in ("cpuset.cpus", "cpuset.mems"):
                (level / file).write_text((cpuset / file).read_text())

    def inside(*options: str) -> dict[str, str]:
        taker = Socket(maker.path / "sub.sock")
        maker.runtime("exec", "-d", *options, "--pidfd-socket", taker.path, "po-sub", "sleep", "98", check=True)
        (fd,) = taker.receive()
        info = Path(f"/proc/self/fdinfo/{fd}").read_text()
        os.close(fd)
        taker.path.unlink()
        return cgroups_of(info.partition("\nPid:\t")[2].split()[0])

    assert inside() == top
    everywhere = inside("--cgroup", "/sub/deep")
    assert everywhere == {names: f"{path}/sub/deep" if names in made else path for names, path in top.items()}
    assert inside("--cgroup", "/") == top
    v1 = next((names for names in made if names and not names.startswith("name=")), None)
    if v1 is not None:
        name = v1.split(",")[0]
        assert inside("--cgroup", f"{name}:sub") == {**top, v1: f"{top[v1]}/sub"}
    done = maker.runtime("exec", "--cgroup", "nowhere", "po-sub", "true")
    assert stderr(done).startswith("cannot join cgroup /sys/fs/cgroup/") and stderr(done).endswith(
        ": ENOENT (no such file or directory)"
    )
    done = maker.runtime("exec", "--cgroup", "../x", "po-sub", "true")
    assert stderr(done) == "--cgroup ../x: it must not hold '..'"
    done = maker.runtime("exec", "--cgroup", "nosuch:x", "po-sub", "true")
    assert stderr(done) == "--cgroup nosuch:x: the container is in no hierarchy of cgroup v1 with nosuch"


def test_exec_follows_the_first_process_where_its_cgroup_is_only_a_parent(maker: Maker) -> None:
    """cgroup2's "no internal processes": a container's own service manager has moved everything below (runc does so)."""
    pid = maker.start("po-busy")
    top = directories_of(pid).get("")
    if top is None or not (top / "cgroup.controllers").read_text().split():
        pytest.skip("needs a cgroup2 hierarchy with a controller")
    (top / "init").mkdir()
    (top / "init/cgroup.procs").write_text(str(pid))
    (top / "cgroup.subtree_control").write_text("+" + (top / "cgroup.controllers").read_text().split()[0])
    assert cgroups_of(pid)[""].endswith("/po-busy/init")
    done = maker.runtime("exec", "po-busy", "grep", "0::", "/proc/self/cgroup", check=True)
    assert done.stdout.startswith("0::/init"), "as its own cgroup namespace shows it"
    done = maker.runtime("exec", "--cgroup", "/", "po-busy", "true")
    assert stderr(done) == (
        "cannot clone the process: EBUSY (device or resource busy)\n\n"
        "hint: its cgroup gives controllers to those below it, and can hold no process itself (man 7 cgroups)"
    )


def test_exec_of_a_process_object(maker: Maker) -> None:
    maker.start("po-object")
    process = {
        "cwd": "/tmp",
        "args": [
            "sh",
            "-c",
            "pwd; id -u; id -g; id -G; umask; echo $A; ulimit -n; grep -E 'CapBnd|NoNew' /proc/self/status",
        ],
        "env": ["PATH=/bin:/usr/bin", "A=b"],
        "user": {"uid": 5, "gid": 6, "additionalGids": [7], "umask": 0o77},
        "capabilities": {"bounding": ["CAP_KILL"]},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 33, "hard": 34}],
    }
    (maker.path / "p.json").write_text(json.dumps(process))
    done = maker.runtime("exec", "-p", maker.path / "p.json", "po-object", check=True)
    assert done.stdout.split() == [
        "/tmp", "5", "6", "6", "7", "0077", "b", "33", "CapBnd:", f"{1 << 5:016x}", "NoNewPrivs:", "0",
    ]  # fmt: skip


# What a service manager hands over


class Manager:
    """A service manager's end of NOTIFY_SOCKET: keeps what is said, and answers barriers."""

    def __init__(self, path: Path) -> None:
        self.said: list[bytes] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(10)
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while b"BARRIER=1" not in self.said:
            data, fds, _, _ = socket.recv_fds(self._socket, 4096, 1)
            self.said.append(data)
            for fd in fds:
                os.close(fd)

    def join(self) -> list[bytes]:
        self._thread.join(10)
        self._socket.close()
        return self.said


def say_ready(pid: int) -> None:
    script = "import socket; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'STATUS=on the way', '{0}');"
    script += "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'STATUS=it is\\nREADY=1', '{0}')"
    environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
    (path,) = [row.partition("=")[2] for row in environment if row.startswith("NOTIFY_SOCKET=")]
    assert path == "/run/notify/notify.sock"
    subprocess.run(["python3", "-c", script.format(f"/proc/{pid}/root{path}")], check=True)


@pytest.mark.parametrize("way", ["start", "run -d", "run"])
def test_readiness_is_passed_on(maker: Maker, way: str) -> None:
    manager = Manager(maker.path / "manager.sock")
    environment = {**os.environ, "NOTIFY_SOCKET": str(maker.path / "manager.sock")}
    bundle = maker.bundle("sleep", "100")
    pid_file = maker.path / "pid"
    words = ["-b", bundle, "--pid-file", pid_file, "po-notify"]
    if way == "start":
        maker.runtime("create", *words, env=environment, check=True)
        words = ["po-notify"]
    command = [*COMMAND, "--root", maker.runtime.root, *way.split(), *words]
    with subprocess.Popen(command, env=environment) as waiting:
        deadline = time.monotonic() + 10
        while b"sleep" not in (
            Path(f"/proc/{pid_file.read_text()}/cmdline").read_bytes() if pid_file.exists() else b""
        ):
            assert time.monotonic() < deadline
        assert waiting.poll() is None, "it waits for the container's word"
        pid = int(pid_file.read_text())
        say_ready(pid)
        assert manager.join() == [b"READY=1\n", b"MAINPID=%d\n" % pid, b"BARRIER=1"]
        if way == "run":
            maker.runtime("kill", "po-notify", "KILL", check=True)
            assert waiting.wait(10) == 137
        else:
            assert waiting.wait(10) == 0
    mounts = Path(f"/proc/{pid}/mountinfo").read_text() if way != "run" else ""
    assert way == "run" or " /run/notify ro,nosuid,nodev,noexec" in mounts


def test_readiness_of_a_user_namespace(maker: Maker) -> None:
    """Its root is nobody to the root file system here, and cannot make the directory that the socket is found in."""
    maps = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    with tempfile.TemporaryDirectory(dir="/var/tmp") as public:
        os.chmod(public, 0o755)
        rootfs = make_rootfs(Path(public, "rootfs"))

        def change(config: dict[str, Any]) -> None:
            config["linux"]["namespaces"].append({"type": "user"})
            config["linux"].update(uidMappings=maps, gidMappings=maps)
            config["root"]["path"] = str(rootfs)

        environment = {**os.environ, "NOTIFY_SOCKET": "/run/manager.sock"}
        done = maker.runtime("run", "-b", maker.bundle("true", change=change), "po-user", env=environment)
        assert stderr(done) == (
            "cannot attach mount 0 on /run/notify: mount_point: EACCES (permission denied)\n\n"
            "hint: unset NOTIFY_SOCKET, or mount a /run that the root of the user namespace may write to"
        )
        maker.runtime("run", "-b", maker.path / "bundle", "po-user", check=True)


def test_a_container_that_ends_before_it_is_ready(maker: Maker) -> None:
    environment = {**os.environ, "NOTIFY_SOCKET": "@nobody"}
    done = maker.runtime("run", "-b", maker.bundle("sh", "-c", "exit 7"), "po-unready", env=environment)
    assert (done.returncode, done.stderr) == (7, "")


def test_listening_sockets_are_passed_on(maker: Maker) -> None:
    """LISTEN_FDS for us becomes LISTEN_FDS for the container, before what --preserve-fds adds."""
    inside = (
        "echo $LISTEN_FDS $LISTEN_PID $LISTEN_FDNAMES; ls -l /proc/self/fd | grep -c socket; ls /proc/self/fd | wc -l"
    )
    bundle = maker.bundle("sh", "-c", inside)
    script = (
        "import os, socket, sys\n"
        "sockets = [socket.socket() for _ in range(2)]\n"
        "for at, one in enumerate(sockets): os.dup2(os.dup(one.fileno()), 40 + at)\n"
        "os.dup2(40, 3); os.dup2(41, 4); os.dup2(0, 5)\n"
        "os.environ.update(LISTEN_FDS='2', LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES='a:b')\n"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    words = ["--root", str(maker.runtime.root), "run", "-b", str(bundle), "--preserve-fds", "1", "po-listen"]
    done = subprocess.run(["python3", "-c", script, *COMMAND, *words], capture_output=True, text=True, timeout=20)
    # 0 to 5, and the directory itself
    assert (done.stdout.split("\n")[:2], done.stdout.split("\n")[2].strip()) == (["2 1 a:b", "2"], "7"), done
    environment = {**os.environ, "LISTEN_FDS": "2", "LISTEN_PID": "1"}
    done = maker.runtime("run", "-b", bundle, "po-listen", env=environment)
    assert done.stdout.split("\n")[0].strip() == "", "they are somebody else's"


def test_listening_sockets_that_are_not_open(maker: Maker) -> None:
    bundle = maker.bundle("true")
    script = "import os, sys; os.environ.update(LISTEN_FDS=sys.argv[1], LISTEN_PID=str(os.getpid()));"
    script += "os.execv(sys.argv[2], sys.argv[2:])"
    words = ["--root", str(maker.runtime.root), "run", "-b", str(bundle), "po-closed"]
    for value, text in (
        ("900", "LISTEN_FDS=900: descriptor 3 is not open: EBADF (bad file descriptor)"),
        ("x", "LISTEN_FDS: found 'x', wanted a number"),
    ):
        done = subprocess.run(
            ["python3", "-c", script, value, *COMMAND, *words], capture_output=True, text=True, timeout=20
        )
        assert stderr(done) == text
