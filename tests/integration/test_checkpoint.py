"""checkpoint and restore: the processes go on where they were, in a container that is what it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pycontain.runtime.kernel.hierarchies import hierarchies
from tests.runtime_tools import COMMAND, Runtime, left, make_rootfs, write_bundle

pytestmark = [pytest.mark.needs("root"), pytest.mark.timeout(200)]

Make = Callable[..., Path]
# What it counts is in its memory alone. It ends with that number when the volume says so.
COUNTER = (
    'i=0; trap "exit 7" TERM; echo kept >/scratch/file; while :; do i=$((i+1)); echo $i; '
    "[ -e /vol/stop ] && exit 9; sleep 0.05; done"
)


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_rootfs(tmp_path_factory.mktemp("image") / "rootfs")
    for name in ("vol", "scratch"):
        (path / name).mkdir()
    return path


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    runtime = Runtime(tmp_path / "state")
    yield runtime
    runtime.clean()


@pytest.fixture
def make(tmp_path: Path, rootfs: Path) -> Make:
    (tmp_path / "vol").mkdir()

    def bundle(change: Callable[[dict[str, Any]], object] | None = None) -> Path:
        def all_of_it(config: dict[str, Any]) -> None:
            config["mounts"] += [
                {"destination": "/vol", "type": "bind", "source": str(tmp_path / "vol"), "options": ["rbind", "ro"]},
                {"destination": "/scratch", "type": "tmpfs", "source": "tmpfs"},
            ]
            config["root"]["readonly"] = True
            config["linux"]["resources"]["pids"] = {"limit": 30}
            for kind in ("bounding", "effective", "permitted"):
                config["process"]["capabilities"][kind].append("CAP_MKNOD")
            if change is not None:
                change(config)

        return write_bundle(tmp_path / "bundle", rootfs, "sh", "-c", COUNTER, change=all_of_it)

    return bundle


class Process:
    """A container that is run or restored in the foreground, and what it says."""

    def __init__(self, runtime: Runtime, *arguments: object) -> None:
        command = [*COMMAND, "--root", str(runtime.root), *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, text=True, **pipes)  # type: ignore[call-overload]

    def number(self) -> int:
        """The next one that it counts. What it says else is a failure."""
        line = self.process.stdout.readline()
        assert line, self.process.communicate(timeout=30)
        return int(line)

    def end(self) -> tuple[int, list[str]]:
        out, err = self.process.communicate(timeout=40)
        assert err == ""
        return self.process.returncode, out.split()


@pytest.mark.needs("criu")
def test_a_container_goes_on_where_it_was(runtime: Runtime, make: Make, tmp_path: Path) -> None:
    bundle = make()
    before = Process(runtime, "run", "-b", bundle, "t-before")
    while before.number() < 5:
        pass
    namespaces = sorted(os.listdir(f"/proc/{runtime.state('t-before')['pid']}/ns"))
    runtime("checkpoint", "--image-path", tmp_path / "images", "t-before", check=True)
    status, rest = before.end()
    last = int(rest[-1]) if rest else 5
    assert not (runtime.root / "t-before").exists()
    assert left("t-before") == []

    after = Process(runtime, "restore", "--image-path", tmp_path / "images", "-b", bundle, "t-after")
    assert after.number() == last + 1
    state = runtime.state("t-after")
    assert (state["status"], state["id"]) == ("running", "t-after")
    pid = state["pid"]
    assert sorted(os.listdir(f"/proc/{pid}/ns")) == namespaces
    # In its cgroup, with its limits, and that is all it sees.
    assert Path(f"/proc/{pid}/cgroup").read_text() == "0::/pycontain/t-after\n"
    assert (Path(hierarchies()[0].mount) / "pycontain/t-after/pids.max").read_text() == "30\n"
    assert runtime("exec", "t-after", "cat", "/proc/self/cgroup", check=True).stdout == "0::/\n"
    # Its mounts are what they were: read-only where they were, the host's where they were, its own with what was in them.
    mounts = {line.split()[4]: line.split()[5] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()}
    for place in ("/", "/vol", "/proc/sys", "/sys/fs/cgroup", "/sys"):
        assert mounts[place].split(",")[0] == "ro", place
    said = runtime("exec", "t-after", "sh", "-c", "cat /scratch/file; mknod /scratch/mem c 1 1; cat /scratch/mem; cat /proc/kcore")
    assert said.stdout == "kept\n"
    assert "can't open '/scratch/mem': Operation not permitted" in said.stderr
    assert runtime("exec", "t-after", "sh", "-c", "echo > /x").returncode != 0
    (tmp_path / "vol/stop").touch()
    status, _ = after.end()
    assert status == 9
    assert not (runtime.root / "t-after").exists()


@pytest.mark.needs("criu")
def test_what_is_left_running_and_what_was_written_before(runtime: Runtime, make: Make, tmp_path: Path) -> None:
    bundle = make()
    process = Process(runtime, "run", "-b", bundle, "t-left")
    assert process.number() == 1
    runtime("checkpoint", "--pre-dump", "--image-path", tmp_path / "one", "t-left", check=True)
    assert runtime.state("t-left")["status"] == "running"
    options = ["--image-path", tmp_path / "two", "--parent-path", "../one", "--work-path", tmp_path / "work", "--leave-running"]
    runtime("checkpoint", *options, "t-left", check=True)
    assert runtime.state("t-left")["status"] == "running"
    assert (tmp_path / "work/dump.log").exists()
    runtime("kill", "t-left", "TERM", check=True)
    assert process.end()[0] == 7
    # Under another manager of cgroups than before, where there is another.
    systemd = Path("/run/systemd/system").is_dir()
    if systemd:
        config = json.loads((bundle / "config.json").read_text())
        config["linux"]["cgroupsPath"] = "system.slice:t:again"
        (bundle / "config.json").write_text(json.dumps(config))
    options = ["-d", "--pid-file", tmp_path / "pid", "--image-path", tmp_path / "two", "-b", bundle]
    done = runtime(f"--systemd-cgroup={str(systemd).lower()}", "restore", *options, "t-again")
    assert done.returncode == 0, done.stderr
    pid = int((tmp_path / "pid").read_text())
    assert runtime.state("t-again")["pid"] == pid
    place = "system.slice/t-again.scope" if systemd else "pycontain/t-again"
    assert Path(f"/proc/{pid}/cgroup").read_text() == f"0::/{place}\n"
    assert Path("/sys/fs/cgroup", place, "cgroup.procs").read_text().split()[0] == str(pid)
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 20
    while runtime.state("t-again")["status"] != "stopped" and time.monotonic() < deadline:
        time.sleep(0.1)
    runtime("delete", "t-again", check=True)


@pytest.mark.needs("criu")
def test_a_restore_that_fails_says_why_and_leaves_nothing(runtime: Runtime, make: Make, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/pycontain.json").write_text('{"mounts":{},"descriptors":{},"named":[]}')
    (tmp_path / "images/inventory.img").write_bytes(b"nonsense")
    done = runtime("restore", "--image-path", tmp_path / "images", "-b", make(), "t-fails")
    assert done.returncode == 1
    assert done.stderr.startswith("pycontain-runtime: cannot restore container t-fails: criu: Magic doesn't match for ")
    assert done.stderr.endswith(f"\nhint: less {tmp_path}/images/restore.log\n")
    assert not (runtime.root / "t-fails").exists()
    assert left("t-fails") == []


def _terminal(config: dict[str, Any]) -> None:
    config["process"]["terminal"] = True


def _hook(config: dict[str, Any]) -> None:
    config["hooks"] = {"createRuntime": [{"path": "/bin/true"}]}


def _user(config: dict[str, Any]) -> None:
    config["linux"]["namespaces"].append({"type": "user"})


def _joined(config: dict[str, Any]) -> None:
    config["linux"]["namespaces"] = [{"type": "mount"}, {"type": "uts", "path": "/proc/self/ns/uts"}]


def _machine(config: dict[str, Any]) -> None:
    config["annotations"] = {"org.pycontain.isolation": "vm"}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_terminal, "$.process.terminal: the terminal of a container cannot be checkpointed or restored"),
        (_hook, "$.hooks.createRuntime: a restored container passes no such point: nothing would run it"),
        (_user, "a container with a user namespace cannot be checkpointed or restored"),
        (_joined, "$.linux.namespaces[1]: a container with a uts namespace by its path cannot be checkpointed or restored"),
        (_machine, "$.vm: a machine's memory is not criu's to write or to read"),
    ],
)
def test_what_cannot_be_restored_is_refused(runtime: Runtime, make: Make, tmp_path: Path, change: Any, text: str) -> None:
    done = runtime("restore", "--image-path", tmp_path, "-b", make(change), "t-no")
    assert done.returncode == 1
    assert text in done.stderr
    assert not runtime.root.exists() or os.listdir(runtime.root) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["checkpoint", "none"], "container none does not exist"),
        (["checkpoint", "--lazy-pages", "none"], "checkpoint --lazy-pages: memory that is fetched when it is touched is not built yet"),
        (["checkpoint", "--page-server", "a:1", "none"], "checkpoint --page-server: a page server is not built yet"),
        (["checkpoint", "--manage-cgroups-mode", "strict", "none"], "--manage-cgroups-mode strict: the container's cgroup is made anew"),
        (["restore", "--console-socket", "/x", "none"], "restore --console-socket: a terminal is not built yet"),
        (["restore", "--image-path", "/no/such", "none"], "--image-path /no/such: found no pycontain.json there"),
    ],
)
def test_what_is_refused_on_the_command_line(runtime: Runtime, make: Make, arguments: list[str], text: str) -> None:
    done = runtime(*arguments, cwd=make())
    assert done.returncode == 1
    assert text in done.stderr


def test_only_a_running_container_is_checkpointed(runtime: Runtime, make: Make, tmp_path: Path) -> None:
    runtime("create", "-b", make(), "t-created", check=True)
    done = runtime("checkpoint", "--image-path", tmp_path / "images", "t-created")
    assert "cannot checkpoint container t-created: found it created, wanted running" in done.stderr
    assert not (tmp_path / "images").exists()
    assert json.loads((runtime.root / "t-created/state.json").read_text())["status"] == "created"
