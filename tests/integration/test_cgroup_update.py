"""``pycontain-runtime update``, on whatever cgroups this host has, and on v2 in the machine; the files read by cat."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pycontain.runtime.kernel import cgroup as kernel
from tests.integration.cgroup_tools import cat
from tests.runtime_tools import Runtime, write_bundle

pytestmark = pytest.mark.needs("root")

ID = "cgx-update"
Start = Callable[..., None]
LIMITS = {
    "memory": {"limit": 64 << 20, "swap": 128 << 20, "reservation": 24 << 20},
    "cpu": {"shares": 100, "quota": 500000, "period": 1000000},
    "pids": {"limit": 20},
}
# What is read back, and where: on v1, on v2 (as v1 would say it).
FILES: dict[str, tuple[str, str]] = {
    "memory": ("memory.limit_in_bytes", "memory.max"),
    "sum": ("memory.memsw.limit_in_bytes", "memory.swap.max"),
    "reservation": ("memory.soft_limit_in_bytes", "memory.low"),
    "shares": ("cpu.shares", "cpu.weight"),
    "quota": ("cpu.cfs_quota_us", "cpu.max"),
    "period": ("cpu.cfs_period_us", "cpu.max"),
    "burst": ("cpu.cfs_burst_us", "cpu.max.burst"),
    "idle": ("cpu.idle", "cpu.idle"),
    "cpus": ("cpuset.cpus", "cpuset.cpus"),
    "mems": ("cpuset.mems", "cpuset.mems"),
    "pids": ("pids.max", "pids.max"),
    "weight": ("blkio.bfq.weight", "io.weight"),
}
WEIGHTS = {"100": "17", "200": "29", "1024": "100"}  # of shares, as runc's tests have them


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    runtime = Runtime(tmp_path / "state")
    yield runtime
    runtime.clean()


@pytest.fixture
def start(runtime: Runtime, rootfs: Path, tmp_path: Path) -> Start:
    def started(resources: dict[str, Any] = LIMITS, *, state: str = "running") -> None:
        def change(config: dict[str, Any]) -> None:
            config["linux"]["resources"].update(resources)
            config["linux"]["cgroupsPath"] = f"/pycontain/{ID}"

        runtime(
            "create", "-b", write_bundle(tmp_path / "bundle", rootfs, "sleep", "600", change=change), ID, check=True
        )
        if state != "created":
            runtime("start", ID, check=True)
        if state == "paused":
            runtime("pause", ID, check=True)

    return started


def limits(*names: str) -> list[str]:
    """The container's limits as v1 has them, by another program's reading."""
    group = kernel.open_cgroup(f"/pycontain/{ID}")
    found = []
    for name in names:
        old, new = FILES[name]
        paths = [f"{directory}/{file}" for directory in group.directories for file in (old, new)]
        path = next(path for path in paths if Path(path).exists())
        text = cat(path)
        if path.endswith("/cpu.max"):
            text = text.split()[name == "period"]
        if path.endswith("/memory.swap.max") and text != "max":
            text = str(int(text) + int(limits("memory")[0]))
        if path.endswith("/cpu.weight"):
            text = next(shares for shares, weight in WEIGHTS.items() if weight == text)
        if int(text) > 1 << 62 if text.isdigit() else text == "-1":
            text = "max"
        found.append(text)
    return found


@pytest.mark.parametrize("state", ["created", "running", "paused"])
def test_every_common_limit(runtime: Runtime, start: Start, state: str) -> None:
    start(state=state)
    names = ("memory", "sum", "reservation", "shares", "quota", "period", "pids")
    assert limits(*names) == [str(64 << 20), str(128 << 20), str(24 << 20), "100", "500000", "1000000", "20"]
    options = "--memory 50m --memory-swap 100M --memory-reservation 32m --cpu-share 200 --cpu-quota 600000"
    options += " --cpu-period 900000 --cpu-burst 50000 --pids-limit 10 --cpuset-cpus 0 --cpuset-mems 0"
    runtime("update", ID, *options.split(), check=True)
    assert limits(*names) == [str(50 << 20), str(100 << 20), str(32 << 20), "200", "600000", "900000", "10"]
    assert limits("burst", "cpus", "mems") == ["50000", "0", "0"]
    kept = json.loads((runtime.root / ID / "config.json").read_text())["linux"]["resources"]
    assert kept["memory"] == {"limit": 50 << 20, "swap": 100 << 20, "reservation": 32 << 20}
    assert kept["cpu"] == {
        "shares": 200,
        "quota": 600000,
        "period": 900000,
        "burst": 50000,
        "cpus": "0",
        "mems": "0",
    }
    assert kept["pids"] == {"limit": 10}
    assert runtime.state(ID)["status"] == state


def test_one_limit_after_the_other(runtime: Runtime, start: Start) -> None:
    """As runc's own tests have it: what is not named stays, and -1 is no limit."""
    start()
    runtime("update", "--cpu-period", "900000", ID, check=True)
    assert limits("quota", "period") == ["500000", "900000"]
    runtime("update", "--cpu-quota=-1", ID, check=True)
    assert limits("quota", "period") == ["max", "900000"]
    runtime("update", "--memory", "40M", ID, check=True)
    assert limits("memory", "sum") == [str(40 << 20), str(128 << 20)]
    runtime("update", "--memory-swap", "80M", ID, check=True)
    assert limits("memory", "sum") == [str(40 << 20), str(80 << 20)]
    done = runtime("update", "--memory", "90M", ID)
    assert (done.returncode, limits("memory")) == (1, [str(40 << 20)])
    assert "the container's 83886080, the sum of memory and swap, is less than the new memory.limit" in done.stderr
    runtime("update", "--memory-swap", "-1", ID, check=True)
    assert limits("memory", "sum") == [str(40 << 20), "max"]
    runtime("update", "--memory", "90M", ID, check=True)
    assert limits("memory", "sum") == [str(90 << 20), "max"]
    runtime("update", "--memory", "-1", "--pids-limit", "-1", ID, check=True)
    assert limits("memory", "sum", "pids") == ["max", "max", "max"]
    runtime("update", "--cpu-idle", "1", ID, check=True)
    assert limits("idle") == ["1"]
    runtime("update", "--cpu-idle", "0", "--pids-limit", "0", ID, check=True)
    assert limits("idle", "pids") == ["0", "0"]


@pytest.mark.parametrize("way", ["file", "standard input"])
def test_resources_as_an_object(runtime: Runtime, start: Start, tmp_path: Path, way: str) -> None:
    start()
    asked = {**LIMITS, "cpu": {"shares": 1024, "cpus": "0"}, "blockIO": {"weight": 500}, "devices": None, "memory": {}}
    file = tmp_path / "resources.json"
    file.write_text(json.dumps({**asked, "memory": {"limit": 70 << 20}}))
    if way == "file":
        runtime("update", "-r", file, ID, check=True)
    else:
        with file.open() as stdin:
            runtime("update", "--resources", "-", ID, check=True, stdin=stdin)
    assert limits("memory", "shares", "quota", "cpus", "pids") == [str(70 << 20), "1024", "500000", "0", "20"]
    assert limits("weight")[0].split()[-1] in ("500", "4950")


def test_what_is_refused_changes_nothing(runtime: Runtime, start: Start) -> None:
    start()
    before = limits("memory", "pids", "shares", "quota")
    done = runtime("update", "--pids-limit", "5", "--cpu-share", "1024", "--cpu-quota", "100", ID)
    assert done.returncode == 1
    assert "$.linux.resources.cpu.quota: write '100" in done.stderr
    assert done.stderr.endswith(": EINVAL (invalid argument)\n")
    assert limits("memory", "pids", "shares", "quota") == before
    rules = json.dumps({"devices": [{"allow": True, "access": "rwm"}]})
    file = runtime.root.parent / "rules.json"
    file.write_text(rules)
    done = runtime("update", "-r", file, ID)
    assert done.stderr == (
        "pycontain-runtime: $.linux.resources.devices: the device rules of a container that exists cannot be changed\n"
    )
    kept = json.loads((runtime.root / ID / "config.json").read_text())["linux"]["resources"]
    assert {key: kept[key] for key in LIMITS} == LIMITS


def test_the_same_device_rules_are_no_change(runtime: Runtime, start: Start) -> None:
    """containerd sends the whole object, with the rules that the container has."""
    start()
    kept = json.loads((runtime.root / ID / "config.json").read_text())["linux"]["resources"]
    file = runtime.root.parent / "same.json"
    file.write_text(json.dumps({**kept, "pids": {"limit": 7}}))
    runtime("update", "-r", file, ID, check=True)
    assert limits("pids") == ["7"]


def test_a_new_limit_is_enforced(runtime: Runtime, start: Start) -> None:
    start()
    big = ("exec", ID, "dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1")
    assert runtime(*big).returncode == 137
    runtime("update", "--memory", "200m", "--memory-swap", "200m", "--pids-limit", "4", ID, check=True)
    assert runtime(*big).returncode == 0
    script = "for i in 1 2 3 4 5; do sleep 60 & done; echo all"
    assert "can't fork: Resource temporarily unavailable" in runtime("exec", ID, "sh", "-c", script).stderr


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((ID,), f"container {ID} does not exist"),
        (("--memory", "x", ID), "update --memory: found 'x', wanted bytes, such as 64m, or -1 for no limit"),
        (("-r", "/none", "--memory", "5m", ID), "update: --resources and --memory exclude each other"),
        (("-r", "/none", ID), "cannot read /none: it does not exist"),
        ((ID, "--l3-cache-schema", "L3:0=f"), "update --l3-cache-schema: schemas of Intel RDT are not supported"),
        ((ID, "more"), "update takes ID: found 2 arguments"),
    ],
)
def test_command_lines_that_are_refused(runtime: Runtime, arguments: tuple[str, ...], error: str) -> None:
    done = runtime("update", *arguments)
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, f"pycontain-runtime: {error}")


def test_a_stopped_container(runtime: Runtime, start: Start) -> None:
    start()
    runtime("kill", ID, "KILL", check=True)
    while runtime.state(ID)["status"] != "stopped":
        pass
    done = runtime("update", "--pids-limit", "5", ID)
    assert done.stderr == (
        f"pycontain-runtime: cannot update container {ID}: found it stopped, wanted created or running or paused\n"
    )
