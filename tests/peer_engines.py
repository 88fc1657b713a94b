"""podman, docker and containerd as a user runs them, with pycontain-runtime underneath; each with all it keeps below one directory."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import io
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import tarfile
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.runtime_tools import COMMAND, make_rootfs

IMAGE = "localhost/peer:1"
ROWS, COLUMNS = 31, 97
# Hard limits that a root without CAP_SYS_RESOURCE can have as well; podman asks for a million by itself.
_ULIMITS = ("--ulimit", "nofile=1024:4096", "--ulimit", "nproc=4096:4096")
_SECONDS = 40


def runtime(path: Path, *options: object) -> Path:
    """The command with options of the test's own, as the one word that engines want."""
    file = path / "pycontain-runtime"
    file.write_text(f'#!/bin/sh\nexec {" ".join(map(str, (*COMMAND, *options)))} "$@"\n')
    file.chmod(0o755)
    return file


def rootfs_tar(path: Path) -> Path:
    """A root file system as a tar file: Alpine's where the assets are, else busybox's."""
    rootfs = make_rootfs(path / "rootfs")
    subprocess.run(["tar", "-C", rootfs, "-cf", path / "rootfs.tar", "."], check=True)
    shutil.rmtree(rootfs)
    return path / "rootfs.tar"


def docker_archive(path: Path) -> Path:
    """The same as `docker save` writes it, which is one of the two things that `ctr images import` reads."""
    layer = rootfs_tar(path).read_bytes()
    digest = hashlib.sha256(layer).hexdigest()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar.gz"]}]
    files = {
        "config.json": json.dumps(config).encode(),
        "layer.tar.gz": gzip.compress(layer, 1),
        "manifest.json": json.dumps(manifest).encode(),
    }
    with tarfile.open(path / "image.tar", "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path / "image.tar"


class Engine:
    """What the engines have in common: a command, a parent of all its cgroups, a list of what is left."""

    name = ""
    state = Path()  # pycontain-runtime's --root, as the engine gives it
    mounts_of = "self"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parent = f"pycontain-under-{self.name}-{os.getpid()}"

    def command(self, *words: object) -> list[str]:
        raise NotImplementedError

    def __call__(self, *words: object, check: bool = False, **options: Any) -> subprocess.CompletedProcess[str]:
        options = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": _SECONDS, **options}
        done = subprocess.run(self.command(*words), cwd=self.path, **options)  # conmon leaves a file where it is
        if check and done.returncode:
            raise AssertionError(f"{self.name} {words}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def out(self, *words: object) -> str:
        return self(*words, check=True).stdout.strip()

    def tty(self, *words: object, type: bytes = b"") -> tuple[int, str]:
        """Exit status and all output of a command on a terminal of ROWS and COLUMNS."""
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", ROWS, COLUMNS, 0, 0))
        process = subprocess.Popen(
            self.command(*words), stdin=slave, stdout=slave, stderr=slave, start_new_session=True, cwd=self.path
        )
        os.close(slave)
        output = b""
        os.write(master, type)
        with contextlib.suppress(OSError):  # EIO: the last one has closed it
            while part := os.read(master, 4096):
                output += part
        os.close(master)
        return process.wait(_SECONDS), output.decode()

    def remove(self, name: str) -> None:
        """A container, in whatever state it is."""
        raise NotImplementedError

    def kept(self) -> list[str]:
        """The ids of all containers, ended ones too."""
        raise NotImplementedError

    def left(self) -> dict[str, list[str]]:
        """What containers have left behind, by kind; {} where all is well."""
        mounts = Path(f"/proc/{self.mounts_of}/mountinfo").read_text().splitlines()
        found = {
            "containers": self.kept(),
            "states": sorted(entry.name for entry in self.state.glob("*")),
            "cgroups": [str(path) for path in self.cgroups()],
            "processes": self.helpers(),
            "mounts": [line for line in mounts if str(self.path) in line and ("/merged" in line or "/rootfs" in line)],
        }
        return {kind: items for kind, items in found.items() if items}

    def helpers(self) -> list[str]:
        """Processes that an engine starts for a container, and that end with it."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                command = path.read_text(errors="replace").replace("\0", " ")
                if str(self.path) in command and re.match(r"\S*(conmon|containerd-shim\S*|pycontain\S*) ", command):
                    found.append(command)
        return found

    def cgroups(self) -> list[Path]:
        """Those of its containers; podman keeps one for its monitors beside them."""
        found = [path for top in _hierarchies() for path in (top / self.parent).glob("*/") if path.name != "conmon"]
        return [path for path in found if path.is_dir()]

    def close(self) -> None:
        for top in _hierarchies():
            for path in sorted((top / self.parent).glob("**/"), reverse=True):
                eventually(lambda path=path: _rmdir(path))  # type: ignore[misc]


class Podman(Engine):
    name = "podman"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.state = path / "oci"
        places = {"root": path / "root", "runroot": path / "run", "tmpdir": path / "tmp"}
        self._words = [
            "podman", *(f"--{key}={value}" for key, value in places.items()), "--storage-driver=overlay",
            "--cgroup-manager=cgroupfs", "--events-backend=none", f"--runtime={runtime(path, '--root', self.state)}",
        ]  # fmt: skip
        self("import", rootfs_tar(path), IMAGE, check=True)

    def command(self, *words: object) -> list[str]:
        verb, *rest = map(str, words)
        if verb == "run":
            rest = [f"--cgroup-parent=/{self.parent}", *_ULIMITS, *rest]
        return [*self._words, verb, *_no_network(verb, rest)]

    def kept(self) -> list[str]:
        return self.out("ps", "-aq").split()

    def remove(self, name: str) -> None:
        self("rm", "--force", "--time=0", name)

    def close(self) -> None:
        if os.path.ismount(self.path / "root/overlay"):
            subprocess.run(["umount", self.path / "root/overlay"], check=True)
        super().close()


class Daemon(Engine):
    """An engine that is a server, in mount and network namespaces of its own."""

    def serve(self, *words: object, ready: list[str]) -> None:
        script = "".join(
            f"mkdir {self.path}/cgroup{i} && mount -t cgroup -o {options} cgroup {self.path}/cgroup{i} && "
            for i, options in enumerate(_not_mounted())
        )
        script += 'ip link set lo up && exec "$@"'
        command = ["unshare", "--net", "--mount", "--propagation=slave", "sh", "-c", script]
        self.log = self.path / "log"
        with self.log.open("w") as log:
            self.server = subprocess.Popen(
                [*command, "sh", *map(str, words)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.mounts_of = str(self.server.pid)

        def answers() -> bool:
            assert self.server.poll() is None, self.log.read_text()
            return self(*ready).returncode == 0

        eventually(answers)

    def close(self) -> None:
        self.server.terminate()
        self.server.wait(_SECONDS)
        super().close()


def _no_network(verb: str, words: list[str]) -> list[str]:
    other = verb != "run" or any(word.startswith("--network") for word in words)
    return words if other else ["--network=none", *words]


class Docker(Daemon):
    name = "docker"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.state = path / "exec/runtime-runc/moby"
        self.socket = f"unix://{path}/socket"
        (path / "daemon.json").write_text("{}")
        self.serve(
            "dockerd", "--config-file", path / "daemon.json", "--data-root", path / "data", "--exec-root", path / "exec",
            "--pidfile", path / "pid", "--host", self.socket, "--iptables=false", "--ip6tables=false",
            "--cgroup-parent", f"/{self.parent}", "--add-runtime", f"pycontain={runtime(path)}",
            ready=["version"],
        )  # fmt: skip
        self("import", rootfs_tar(path), IMAGE, check=True)

    def command(self, *words: object) -> list[str]:
        verb, *rest = map(str, words)
        if verb == "run":
            rest = ["--runtime=pycontain", *rest]
        return ["/usr/bin/docker", "--host", self.socket, verb, *_no_network(verb, rest)]

    def kept(self) -> list[str]:
        return self.out("ps", "-aq").split()

    def remove(self, name: str) -> None:
        self("rm", "--force", name)


class Containerd(Daemon):
    """containerd by its own command, ctr."""

    name = "containerd"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.state = path / f"oci/{self.parent}"
        self.address = path / "socket"
        self._runtime = [
            "--runtime=io.containerd.runc.v2", f"--runc-binary={runtime(path)}", f"--runc-root={path}/oci",
        ]  # fmt: skip
        (path / "config.toml").write_text(
            f'version = 2\nroot = "{path}/root"\nstate = "{path}/state"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{self.address}"\n'
        )
        self.serve("containerd", "--config", path / "config.toml", ready=["version"])
        self("images", "import", docker_archive(path), check=True)

    def command(self, *words: object) -> list[str]:
        verb, *rest = map(str, words)
        if verb == "run":
            rest = [*self._runtime, *rest]
        return ["ctr", "--address", str(self.address), "--namespace", self.parent, verb, *rest]

    def remove(self, name: str) -> None:
        self("task", "rm", "--force", name)
        self("container", "rm", name)

    def kept(self) -> list[str]:
        return self.out("container", "ls", "-q").split() + self.out("task", "ls", "-q").split()


def eventually(holds: Callable[[], object], seconds: float = 15) -> None:
    """Wait until ``holds()``; what engines do after a container's end they do in their own time."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.05)


@contextlib.contextmanager
def nothing_left(engine: Engine) -> Iterator[Engine]:
    yield engine
    with contextlib.suppress(AssertionError):
        eventually(lambda: not engine.left())
    left = engine.left()
    for name in engine.kept():
        engine.remove(name)  # one failure is enough
    assert left == {}


# --- what the kernel says of a process, in words of neither cgroup version ---------------------------------------------


def _mounts() -> dict[str, Path]:
    """Controller, or "" for cgroup2, → where its hierarchy is mounted."""
    found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        head, _, tail = line.partition(" - ")
        kind, _, options = tail.split()[:3]
        if kind == "cgroup2":
            found[""] = Path(head.split()[4])
        elif kind == "cgroup":
            found.update((name, Path(head.split()[4])) for name in options.split(",") if name not in ("rw", "ro"))
    return found


def _hierarchies() -> set[Path]:
    return set(_mounts().values())


def _not_mounted() -> list[str]:
    """Options of v1 hierarchies that exist and are mounted nowhere: containerd's reader wants a place for each."""
    mounts = _mounts()
    names = [line.split(":")[1] for line in Path("/proc/self/cgroup").read_text().splitlines()]
    return ["none," * name.startswith("name=") + name for name in names if name and name.split(",")[0] not in mounts]


class Cgroup:
    """The cgroup of a process, read from the kernel's files."""

    def __init__(self, pid: int) -> None:
        mounts = _mounts()
        self._paths: dict[str, Path] = {}
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            for name in names.split(","):
                if name in mounts:
                    self._paths[name] = Path(f"{mounts[name]}{path}")

    def read(self, controller: str, v1: str, v2: str) -> str:
        """The content of the file ``v1`` of the controller's hierarchy, or of ``v2`` where there is none of its own."""
        if controller in self._paths:
            return (self._paths[controller] / v1).read_text().strip()
        return (self._paths[""] / v2).read_text().strip()

    @property
    def memory(self) -> int:
        return int(self.read("memory", "memory.limit_in_bytes", "memory.max"))

    @property
    def pids(self) -> str:
        return self.read("pids", "pids.max", "pids.max")

    @property
    def cpus(self) -> float:
        """Quota over period; 0 where there is none."""
        if "cpu" not in self._paths:
            quota, period = self.read("cpu", "", "cpu.max").split()
            return 0 if quota == "max" else int(quota) / int(period)
        quota, period = (self.read("cpu", f"cpu.cfs_{name}_us", "") for name in ("quota", "period"))
        return max(0, int(quota)) / int(period)

    @property
    def frozen(self) -> bool:
        if "freezer" in self._paths:
            return self.read("freezer", "freezer.state", "") == "FROZEN"
        return "frozen 1" in self.read("freezer", "", "cgroup.events")


def _rmdir(path: Path) -> bool:
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
