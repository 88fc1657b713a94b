"""``--cgroup-manager`` where it is not cgroupfs: nobody's, and systemd's where there is no systemd."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime_tools import HIERARCHIES, Runtime, write_bundle

pytestmark = pytest.mark.needs("root")

Make = Callable[..., Path]


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    runtime = Runtime(tmp_path / "state")
    yield runtime
    runtime.clean()


@pytest.fixture
def make(tmp_path: Path, rootfs: Path) -> Make:
    return lambda *args, change=None: write_bundle(tmp_path / "bundle", rootfs, *args, change=change)


def test_without_a_cgroup_a_container_is_where_its_maker_is(runtime: Runtime, make: Make) -> None:
    runtime("--cgroup-manager=disabled", "run", "-d", "-b", make("sleep", "600"), "t-none", check=True)
    pid = runtime.state("t-none")["pid"]
    assert Path(f"/proc/{pid}/cgroup").read_bytes() == Path("/proc/self/cgroup").read_bytes()
    assert list(HIERARCHIES.glob("*/pycontain/t-none")) == []
    assert runtime("exec", "t-none", "hostname", check=True).stdout == "pycontain\n"
    assert runtime("pause", "t-none").stderr == (
        "pycontain-runtime: cannot pause a container that has no cgroup\n\nhint: --cgroup-manager cgroupfs or systemd makes one\n"
    )
    assert "memory.limit: there is no cgroup" in runtime("update", "--memory", "64m", "t-none").stderr
    inside = runtime("exec", "-d", "--pid-file", runtime.root / "t-none/more", "t-none", "sleep", "600")
    assert inside.returncode == 0
    more = int((runtime.root / "t-none/more").read_text())
    assert runtime("ps", "--format", "json", "t-none", check=True).stdout == f"[{pid},{more}]\n"
    runtime("kill", "--all", "t-none", "KILL", check=True)
    runtime("delete", "--force", "t-none", check=True)
    for gone in (pid, more):
        assert not os.path.exists(f"/proc/{gone}/exe")


def test_a_failure_without_a_cgroup_leaves_no_process(runtime: Runtime, make: Make) -> None:
    done = runtime("--cgroup-manager", "disabled", "run", "-b", make("no-such"), "t-none")
    assert done.returncode == 127
    assert "cannot execute 'no-such'" in done.stderr
    assert not (runtime.root / "t-none").exists()


def _limit(config: dict[str, Any]) -> None:
    config["linux"]["resources"]["memory"] = {"limit": 1 << 26}


def _capable(config: dict[str, Any]) -> None:
    config["process"]["capabilities"]["bounding"].append("CAP_MKNOD")


def _no_pids(config: dict[str, Any]) -> None:
    config["linux"]["namespaces"] = [n for n in config["linux"]["namespaces"] if n["type"] != "pid"]


def _no_cgroup_namespace(config: dict[str, Any]) -> None:
    config["linux"]["namespaces"] = [n for n in config["linux"]["namespaces"] if n["type"] != "cgroup"]
    config["mounts"].append({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_limit, "$.linux.resources.memory: without a cgroup there are no limits"),
        (_capable, "$.process.capabilities.bounding: with CAP_MKNOD a container makes devices, and without a cgroup no rule of"),
        (_no_pids, "$.linux.namespaces: without a cgroup only a new pid namespace holds a container's processes together"),
        (_no_cgroup_namespace, "without a cgroup of its own, and without a cgroup namespace, it would show the host's"),
    ],
)
def test_what_only_a_cgroup_can_do_is_refused(runtime: Runtime, make: Make, change: Any, text: str) -> None:
    done = runtime("--cgroup-manager", "disabled", "create", "-b", make(change=change), "t-none")
    assert done.returncode == 1
    assert text in done.stderr
    assert not runtime.root.exists() or os.listdir(runtime.root) == []


@pytest.mark.skipif(os.path.isdir("/run/systemd/system"), reason="systemd runs here: test_systemd.py uses it")
def test_systemd_where_there_is_none(runtime: Runtime, make: Make) -> None:
    bundle = make()
    for option in ("--systemd-cgroup", "--cgroup-manager=systemd"):
        done = runtime(option, "create", "-b", bundle, "t-none")
        assert done.stderr == (
            "pycontain-runtime: cannot use the systemd cgroup driver: systemd does not run here (no /run/systemd/system)\n"
            "\nhint: --cgroup-manager cgroupfs does without systemd\n"
        )
        assert not (runtime.root / "t-none").exists()


def test_a_cgroup_that_another_container_has_is_left_alone(runtime: Runtime, make: Make) -> None:
    """What could not be made is not undone either: the other container lives on."""

    def change(config: dict[str, Any]) -> None:
        config["linux"]["cgroupsPath"] = "/pycontain/t-shared"

    bundle = make("sleep", "600", change=change)
    runtime("--cgroup-manager=cgroupfs", "run", "-d", "-b", bundle, "t-first", check=True)
    done = runtime("create", "-b", bundle, "t-second")
    assert "it is there already and holds processes" in done.stderr
    assert runtime.state("t-first")["status"] == "running"
    assert not (runtime.root / "t-second").exists()
