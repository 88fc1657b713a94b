"""A host of one's own for whole-program tests: a network namespace, a store, the installed command, a list of what is left."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests import machine_tools
from tests.runtime_tools import HIERARCHIES, make_rootfs

_INSTALLED = Path(sys.executable).with_name("pycontain")
COMMAND = [str(_INSTALLED)] if _INSTALLED.exists() else [sys.executable, "-m", "pycontain"]
IMAGE = "localhost/test:1"


class Namespace:
    """A network namespace, held by a sleeping process."""

    def __init__(self) -> None:
        script = "ip link set lo up && echo ready && exec sleep 100000"
        self._holder = subprocess.Popen(["unshare", "-n", "sh", "-c", script], stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        self.pid = self._holder.pid
        self.prefix = ["nsenter", f"--net=/proc/{self.pid}/ns/net"]

    def __call__(self, *args: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """A program in the namespace."""
        options = {"capture_output": True, "text": True, "timeout": 30, **options}
        return subprocess.run([*self.prefix, *map(str, args)], **options)

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()
        assert self._holder.stdout is not None
        self._holder.stdout.close()


class Host:
    """The command with a store and a state of its own, in a namespace that plays the host's network."""

    def __init__(self, path: Path) -> None:
        self.data, self.run_root = path / "data", path / "run"
        self.inside = Namespace()
        path.mkdir(parents=True, exist_ok=True)
        machines = machine_tools.settings(path, cache=str(path / "machines"))  # prune clears what is not used in there
        own = {"PYCONTAIN_ROOT": self.data, "PYCONTAIN_RUN": self.run_root, "PYCONTAIN_VM_CONFIG": machines}
        self.env = {**os.environ, **{name: str(value) for name, value in own.items()}}

    def command(self, *args: object) -> list[str]:
        return [*self.inside.prefix, *COMMAND, *map(str, args)]

    def __call__(self, *args: object, check: bool = False, **options: Any) -> subprocess.CompletedProcess[str]:
        options = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, "timeout": 55, **options}
        done = subprocess.run(self.command(*args), env=self.env, **options)
        if check and done.returncode:
            raise AssertionError(f"{args}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def start(self, *args: object, **options: Any) -> subprocess.Popen[bytes]:
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **options}
        return subprocess.Popen(self.command(*args), env=self.env, **options)

    def inspect(self, name: str) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self("inspect", name, check=True).stdout)[0]
        return value

    def import_image(self, work: Path, name: str = IMAGE) -> None:
        rootfs = make_rootfs(work / "rootfs")
        with tarfile.open(work / "rootfs.tar", "w") as tar:
            tar.add(rootfs, ".")
        self("import", work / "rootfs.tar", name, check=True)

    def left(self) -> dict[str, list[str]]:
        """What containers have left behind, by kind; {} where all is well."""
        links = json.loads(self.inside("ip", "-j", "link", check=True).stdout)
        rules = self.inside("nft", "list", "ruleset").stdout
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        found = {
            "containers": _names(self.data / "containers"),
            "names": _names(self.data / "names"),
            "leases": [name for net in (self.data / "network").glob("*") for name in _names(net / "leases")],
            "run": [f"{kind}/{name}" for kind in ("containers", "runtime") for name in _names(self.run_root / kind)],
            "links": [link["ifname"] for link in links if link["ifname"] not in ("lo", "pycontain0")],
            "rules": [line.strip() for line in rules.splitlines() if "dnat to" in line or "dnat ip to" in line],
            "mounts": [line for line in mounts if str(self.data) in line or str(self.run_root) in line],
            "processes": self.processes(),
        }
        return {kind: items for kind, items in found.items() if items}

    def processes(self) -> list[str]:
        """Supervisors, teardowns and commands that belong to this host's directories."""
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == os.getpid():
                continue
            try:
                command = Path(f"/proc/{entry}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            except OSError:
                continue  # it ended meanwhile
            if str(self.data) in command or str(self.run_root) in command:
                found.append(f"{entry} {command}")
        return found

    def close(self) -> None:
        self("system", "prune", "-f")
        ids = self("ps", "-aq").stdout.split()
        if ids:
            self("rm", "-f", *ids)
        self.inside.close()


def _names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.glob("*") if not entry.name.startswith("."))


def cgroups() -> set[str]:
    """Every container's cgroup on this machine."""
    found = set()
    for hierarchy in (HIERARCHIES, *(path for path in HIERARCHIES.iterdir() if path.is_dir())):
        with contextlib.suppress(FileNotFoundError):
            found |= {entry.path for entry in os.scandir(hierarchy / "pycontain") if entry.is_dir()}
    return found


def no_more_cgroups_than(before: set[str], host: Host) -> bool:
    """Whether each cgroup that is there now and not in ``before`` goes away, or is full of another host's processes."""
    deadline = time.monotonic() + 5
    more = cgroups() - before
    while more := {path for path in more if os.path.isdir(path) and not _lived_in_by_others(path, host)}:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _lived_in_by_others(cgroup: str, host: Host) -> bool:
    """Whether there are processes in it, none of which has its root in a directory of ``host``."""
    try:
        pids = Path(cgroup, "cgroup.procs").read_text().split()
        mounts = [Path(f"/proc/{pid}/mountinfo").read_text() for pid in pids]
    except OSError:
        return False  # somebody ended meanwhile
    return bool(mounts) and not any(str(host.data) in text for text in mounts)


@contextlib.contextmanager
def host_with_image(path: Path) -> Iterator[Host]:
    host = Host(path)
    try:
        host.import_image(path)
        yield host
    finally:
        host.close()
