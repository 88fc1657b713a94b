"""Limits of real containers, through the OCI command: on whatever cgroups this host has, and on v2 in the machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pycontain.runtime.kernel import cgroup as kernel
from tests.integration.cgroup_tools import cat, of_process, until
from tests.runtime_tools import Runtime, left, write_bundle

pytestmark = pytest.mark.needs("root")

Start = Callable[..., int]
LIMITS = {
    "memory": {"limit": 64 << 20, "swap": 64 << 20},
    "cpu": {"quota": 50000, "period": 100000},
    "pids": {"limit": 20},
}


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    runtime = Runtime(tmp_path / "state")
    yield runtime
    runtime.clean()


@pytest.fixture
def make(tmp_path: Path, rootfs: Path) -> Callable[..., Path]:
    def bundle(resources: dict[str, Any], *args: str) -> Path:
        def change(config: dict[str, Any]) -> None:
            config["linux"]["resources"].update(resources)
            for kind in ("bounding", "effective", "permitted"):
                config["process"]["capabilities"][kind].append("CAP_MKNOD")

        return write_bundle(tmp_path / "bundle", rootfs, *args, change=change)

    return bundle


@pytest.fixture
def start(runtime: Runtime, make: Callable[..., Path]) -> Start:
    """A container ``t-cgroup`` that sleeps under ``resources``; its pid."""

    def started(resources: dict[str, Any]) -> int:
        runtime("create", "-b", make(resources, "sleep", "600"), "t-cgroup", check=True)
        runtime("start", "t-cgroup", check=True)
        pid: int = runtime.state("t-cgroup")["pid"]
        return pid

    return started


def group() -> kernel.Cgroup:
    return kernel.open_cgroup("/pycontain/t-cgroup")


def limits_of(pid: int) -> dict[str, str]:
    """The limits in the files of ``pid``'s cgroup, found by way of /proc, read by another program."""
    found: dict[str, str] = {}
    for hierarchy in kernel.hierarchies():
        names = ",".join(hierarchy.controllers) or (f"name={hierarchy.name}" if hierarchy.name else "")
        place = of_process(pid)[names]
        for name in ("memory.limit_in_bytes", "memory.max", "cpu.cfs_quota_us", "cpu.max", "pids.max"):
            file = Path(hierarchy.mount + place, name)
            if file.exists():
                found[name] = cat(str(file))
    return found


def test_limits_read_back(start: Start) -> None:
    limits = limits_of(start(LIMITS))
    if "memory.max" in limits:
        assert limits == {"memory.max": "67108864", "cpu.max": "50000 100000", "pids.max": "20"}
    else:
        assert limits == {"memory.limit_in_bytes": "67108864", "cpu.cfs_quota_us": "50000", "pids.max": "20"}


def test_the_container_and_what_is_executed_in_it_are_in_every_hierarchy(runtime: Runtime, start: Start) -> None:
    pid = start(LIMITS)
    places = of_process(pid)
    assert [path for path in places.values() if path == "/pycontain/t-cgroup"] == ["/pycontain/t-cgroup"] * len(
        kernel.hierarchies()
    )
    runtime("exec", "-d", "--pid-file", runtime.root.parent / "second", "t-cgroup", "sleep", "600", check=True)
    second = int((runtime.root.parent / "second").read_text())
    assert of_process(second) == places
    assert sorted(group().pids()) == sorted([pid, second])


def test_100_megabytes_do_not_fit_into_64(runtime: Runtime, start: Start) -> None:
    pid = start(LIMITS)
    small = runtime("exec", "t-cgroup", "dd", "if=/dev/zero", "of=/dev/null", "bs=20M", "count=1")
    assert small.returncode == 0, small.stderr
    assert group().oom_kills() == 0
    big = runtime("exec", "t-cgroup", "dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1")
    assert (big.returncode, big.stdout) == (137, "")
    assert group().oom_kills() == 1
    assert runtime.state("t-cgroup")["pid"] == pid


def test_the_21st_process_cannot_start(runtime: Runtime, start: Start) -> None:
    start(LIMITS)
    # The container's own process and the shell are two of the twenty.
    script = "i=0; while [ $i -lt 30 ]; do sleep 60 & i=$((i+1)); echo $i; done"
    done = runtime("exec", "t-cgroup", "sh", "-c", script)
    assert done.stdout.split()[-1] == "18"
    assert "can't fork: Resource temporarily unavailable" in done.stderr


def test_half_a_processor(runtime: Runtime, start: Start) -> None:
    start({"cpu": {"quota": 20000, "period": 100000}})
    runtime("exec", "-d", "t-cgroup", "sh", "-c", "while :; do :; done", check=True)
    before = group().stats()["cpu"]["usage"]
    time.sleep(2)
    used = (group().stats()["cpu"]["usage"] - before) / 1e9
    assert 0.05 < used < 1.0
    assert group().stats()["cpu"]["throttled_periods"] > 0


def test_pause_and_resume(runtime: Runtime, start: Start) -> None:
    start({})
    runtime("exec", "-d", "t-cgroup", "sh", "-c", "while :; do :; done", check=True)

    def runs() -> bool:
        before = group().stats()["cpu"]["usage"]
        time.sleep(0.2)
        return bool(group().stats()["cpu"]["usage"] - before > 5_000_000)

    assert until(runs)
    runtime("pause", "t-cgroup", check=True)
    assert runtime.state("t-cgroup")["status"] == "paused"
    assert not runs()
    runtime("resume", "t-cgroup", check=True)
    assert until(runs)


def test_a_paused_container_can_be_deleted(runtime: Runtime, start: Start) -> None:
    start({})
    runtime("pause", "t-cgroup", check=True)
    runtime("delete", "--force", "t-cgroup", check=True)
    assert left("t-cgroup") == []


def test_cgroups_made_below_are_removed_too(runtime: Runtime, start: Start) -> None:
    start({})
    inner = kernel.open_cgroup("/pycontain/t-cgroup/inner/most")
    inner.create()
    runtime("delete", "--force", "t-cgroup", check=True)
    assert left("t-cgroup") == []


def test_devices_are_denied_unless_allowed(runtime: Runtime, make: Callable[..., Path]) -> None:
    """/dev/full is one of the defaults, /dev/mem and /dev/loop0 are not, though the container may make their nodes."""
    script = (
        "mknod /dev/a c 1 7; mknod /dev/b c 1 1; mknod /dev/c b 7 0;"
        " for d in a b c; do head -c 1 /dev/$d | wc -c; done; cat /dev/b /dev/c"
    )
    devices = {"devices": [{"allow": False, "access": "rwm"}]}
    bundle = make(devices, "sh", "-c", script)
    done = runtime("run", "-b", bundle, "t-cgroup")
    assert done.stdout.split() == ["1", "0", "0"], done.stderr
    assert done.stderr.count("Operation not permitted") == 4


def test_a_value_that_the_kernel_refuses_leaves_nothing(runtime: Runtime, make: Callable[..., Path]) -> None:
    done = runtime("create", "-b", make({"cpu": {"quota": 100}}, "true"), "t-cgroup")
    assert done.returncode == 1
    assert "$.linux.resources.cpu.quota: write '100" in done.stderr
    assert done.stderr.rstrip().endswith("EINVAL (invalid argument)")
    assert left("t-cgroup") == []


def test_a_value_out_of_range_is_refused_by_name(runtime: Runtime, make: Callable[..., Path]) -> None:
    done = runtime("create", "-b", make({"blockIO": {"weight": 5}}, "true"), "t-cgroup")
    assert done.returncode == 1
    assert done.stderr == "pycontain-runtime: $.linux.resources.blockIO.weight: found 5, wanted 10 to 1000\n"
    assert left("t-cgroup") == []
