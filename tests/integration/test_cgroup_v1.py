"""What only v1 has: its files as another library reads them, cpusets, device lists, and its own errors."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pycontain
from pycontain.runtime.errors import KernelError, Unsupported
from pycontain.runtime.kernel import cgroup as kernel
from pycontain.runtime.kernel import cgroup_v1
from pycontain.runtime.kernel.cgroup_v1 import CgroupV1
from pycontain.runtime.kernel.files import write
from pycontain.runtime.kernel.hierarchies import hierarchies
from tests.integration.cgroup_tools import cat, child, end, run, scratch, sleeper
from tests.runtime_tools import write_bundle

pytestmark = pytest.mark.needs("root", "cgroup1")


@pytest.fixture
def group() -> Iterator[CgroupV1]:
    with scratch("box") as opened:
        assert isinstance(opened, CgroupV1)
        opened.create()
        yield opened


def at(group: CgroupV1, controller: str) -> str:
    return next(d for d in group.directories if controller in d.removesuffix(group.path).rpartition("/")[2].split(","))


@pytest.mark.needs("cgroupspy")
def test_limits_as_cgroupspy_reads_them(group: CgroupV1) -> None:
    from cgroupspy import trees  # type: ignore[import-untyped]

    group.apply(
        {
            "memory": {"limit": 64 << 20, "swap": 96 << 20, "reservation": 32 << 20, "swappiness": 7},
            "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0", "mems": "0"},
            "pids": {"limit": 20},
        }
    )
    process = sleeper(group)
    try:
        tree = trees.Tree()
        nodes = {
            controller: tree.get_node_by_path(f"/{controller}{group.path}/")
            for controller in ("memory", "cpu", "cpuset", "cpuacct", "devices", "blkio")
        }
        memory, cpu = nodes["memory"].controller, nodes["cpu"].controller
        assert memory.limit_in_bytes == 64 << 20
        assert memory.memsw_limit_in_bytes == 96 << 20
        assert memory.soft_limit_in_bytes == 32 << 20
        assert memory.swappiness == 7
        assert (cpu.shares, cpu.cfs_quota_us, cpu.cfs_period_us) == (512, 50000, 100000)
        assert (nodes["cpuset"].controller.cpus, nodes["cpuset"].controller.mems) == ({0}, {0})
        for node in nodes.values():
            assert set(node.controller.procs) == {process.pid}
    finally:
        end(process)


def test_limits_as_cat_reads_them(group: CgroupV1) -> None:
    group.apply(
        {"memory": {"disableOOMKiller": True}, "cpu": {"quota": 20000, "burst": 5000, "idle": 1}, "pids": {"limit": -1}}
    )
    assert "oom_kill_disable 1" in cat(at(group, "memory") + "/memory.oom_control").splitlines()
    assert cat(at(group, "cpu") + "/cpu.cfs_burst_us") == "5000"
    assert cat(at(group, "cpu") + "/cpu.idle") == "1"
    assert cat(at(group, "pids") + "/pids.max") == "max"


def test_a_new_cpuset_has_its_parents_cpus_and_memory(group: CgroupV1) -> None:
    directory = at(group, "cpuset")
    top = directory.removesuffix(group.path)
    for file in ("cpuset.cpus", "cpuset.mems"):
        assert cat(f"{directory}/{file}") == cat(f"{top}/{file}") != ""


def test_a_cpuset_below_an_empty_one_that_somebody_else_made() -> None:
    with scratch("a/b/c") as opened:
        directory = opened.directories[[h.controllers for h in hierarchies()].index(("cpuset",))]
        os.makedirs(os.path.dirname(directory))
        assert cat(os.path.dirname(directory) + "/cpuset.cpus") == ""
        opened.create()
        assert cat(f"{directory}/cpuset.cpus") != ""
        assert run(opened, "print('joined')") == (0, "joined\n")


DEVICES = [
    {"allow": False, "access": "rwm"},
    {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "rwm"},
    {"allow": True, "type": "c", "major": 1, "minor": 7, "access": "r"},
    {"allow": True, "type": "c", "access": "m"},
]


def test_devices_are_denied_unless_allowed(group: CgroupV1, tmp_path: Path) -> None:
    group.apply({"devices": DEVICES})
    code = (
        "import os, stat\n"
        "def attempt(name, call):\n"
        "    try: call(); print(name, 'ok')\n"
        "    except OSError as error: print(name, error.strerror)\n"
        "attempt('zero', lambda: os.open('/dev/zero', os.O_RDWR))\n"
        "attempt('full for reading', lambda: os.open('/dev/full', os.O_RDONLY))\n"
        "attempt('full for writing', lambda: os.open('/dev/full', os.O_WRONLY))\n"
        "attempt('null', lambda: os.open('/dev/null', os.O_RDONLY))\n"
        f"attempt('mknod c', lambda: os.mknod({str(tmp_path / 'c')!r}, 0o600 | stat.S_IFCHR, os.makedev(1, 3)))\n"
        f"attempt('mknod b', lambda: os.mknod({str(tmp_path / 'b')!r}, 0o600 | stat.S_IFBLK, os.makedev(7, 0)))\n"
    )
    no = "Operation not permitted"
    assert run(group, code)[1].splitlines() == [
        "zero ok",
        "full for reading ok",
        f"full for writing {no}",
        f"null {no}",
        "mknod c ok",
        f"mknod b {no}",
    ]
    assert cat(at(group, "devices") + "/devices.list").splitlines() == ["c 1:5 rwm", "c 1:7 r", "c *:* m"]


def test_an_empty_device_list_allows_nothing(group: CgroupV1) -> None:
    group.apply({"devices": []})
    assert cat(at(group, "devices") + "/devices.list") == ""


def test_everything_allowed_as_for_a_privileged_container(group: CgroupV1) -> None:
    group.apply({"devices": DEVICES})
    group.apply({"devices": [{"allow": True, "access": "rwm"}]})
    assert cat(at(group, "devices") + "/devices.list") == "a *:* rwm"


def test_devices_that_are_not_mentioned_stay_as_they_are(group: CgroupV1) -> None:
    group.apply({"devices": DEVICES})
    group.apply({"pids": {"limit": 5}})
    assert cat(at(group, "devices") + "/devices.list").splitlines()[0] == "c 1:5 rwm"
    assert group.device_program({"devices": DEVICES}) is None


@pytest.mark.parametrize(
    ("resources", "text"),
    [
        ({"memory": {"swappiness": 201}}, "memory.swappiness: write '201' to {memory}/memory.swappiness: EINVAL"),
        ({"cpu": {"period": 10}}, "cpu.period: write '10' to {cpu}/cpu.cfs_period_us: EINVAL"),
        ({"cpu": {"quota": 20000, "burst": 30000}}, "cpu.burst: write '30000' to {cpu}/cpu.cfs_burst_us: EINVAL"),
        (
            {"devices": [{"allow": True, "type": "x", "major": 1, "minor": 1, "access": "r"}]},
            "devices: write 'x 1:1 r' to {devices}/devices.allow: EINVAL",
        ),
    ],
)  # fmt: skip
def test_what_the_kernel_refuses(group: CgroupV1, resources: dict[str, Any], text: str) -> None:
    with pytest.raises(KernelError) as caught:
        group.apply(resources)
    for controller in ("memory", "cpu", "devices"):
        text = text.replace("{" + controller + "}", at(group, controller))
    assert caught.value.message == f"$.linux.resources.{text} (invalid argument)"


def test_a_limit_below_the_use_is_refused_by_the_kernel(group: CgroupV1) -> None:
    process = child(group, "b = bytearray(b'x' * (20 << 20))\nprint('in', flush=True)\nimport time\ntime.sleep(600)")
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    try:
        with pytest.raises(KernelError) as caught:
            group.apply({"memory": {"limit": 8 << 20, "swap": 8 << 20}})
        assert caught.value.message == (
            f"$.linux.resources.memory.limit: write '8388608' to {at(group, 'memory')}/memory.limit_in_bytes: "
            "EBUSY (device or resource busy)"
        )
    finally:
        end(process)


def test_unified_values_of_controllers_on_v1_are_refused(group: CgroupV1) -> None:
    with pytest.raises(Unsupported) as caught:
        group.apply({"unified": {"memory.high": "1"}})
    assert caught.value.message == (
        '$.linux.resources.unified["memory.high"]: a file of cgroup v2, but this host has its memory controller on v1'
    )


@pytest.mark.needs("hybrid")
def test_on_a_hybrid_host_cgroup_kill_reaches_the_child_that_joined_cgroup2(
    group: CgroupV1, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = sleeper(group)
    monkeypatch.setattr("posix.kill", lambda *_: pytest.fail("one by one"))
    group.kill_all()
    process.communicate(timeout=10)
    assert process.returncode == -9


@pytest.mark.needs("hybrid", "unshare")
def test_the_structure_with_nothing_but_cgroup2_mounted() -> None:
    """In a private mount namespace: the v2 backend on this kernel, with the v1 mounts covered up."""
    tests = f"{Path(__file__).with_name('test_cgroup_any.py')}::TestStructure"
    script = 'mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@"'
    command = [
        "unshare",
        "-m",
        "sh",
        "-c",
        script,
        "sh",
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(
        [*command, "--must-have", "root", tests],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.needs("hybrid", "unshare")
def test_limits_with_nothing_but_a_bare_cgroup2_mounted_are_refused_by_name() -> None:
    code = (
        "from pycontain.runtime.kernel import cgroup, hierarchies\n"
        "from pycontain.runtime.errors import PycontainError\n"
        "group = cgroup.open_cgroup('pycontain-test-bare/x')\n"
        "print(hierarchies.detect(), group.path)\n"
        "group.create()\n"
        "for resources in ({'memory': {'limit': 1 << 26}}, {'pids': {'limit': 3}}, {'cpu': {'quota': 5000}}):\n"
        "    try: group.apply(resources)\n"
        "    except PycontainError as error: print(error)\n"
        "group.remove()\n"
        "cgroup.open_cgroup('pycontain-test-bare').remove()\n"
    )
    script = 'mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-c", code],
        capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "v2 /pycontain/pycontain-test-bare/x",
        "$.linux.resources.memory.limit: this host has no memory controller",
        "$.linux.resources.pids.limit: this host has no pids controller",
        "$.linux.resources.cpu.quota: this host has no cpu controller",
    ], done.stderr


DISK = next(iter(sorted(os.listdir("/sys/block"), key=lambda name: (not name.startswith(("vd", "sd", "nvme")), name))), "")


def device() -> tuple[int, int]:
    """The first disk's (major, minor)."""
    major, minor = cat(f"/sys/block/{DISK}/dev").split(":")
    return int(major), int(minor)


def test_block_io_as_cat_reads_it(group: CgroupV1) -> None:
    major, minor = device()
    limits = {
        "throttleReadBpsDevice": 1 << 20,
        "throttleWriteBpsDevice": 2 << 20,
        "throttleReadIOPSDevice": 300,
        "throttleWriteIOPSDevice": 400,
    }
    group.apply(
        {
            "blockIO": {
                "weight": 200,
                **{name: [{"major": major, "minor": minor, "rate": rate}] for name, rate in limits.items()},
            }
        }
    )
    directory = at(group, "blkio")
    names = [f"blkio.throttle.{kind}_device" for kind in ("read_bps", "write_bps", "read_iops", "write_iops")]
    assert [cat(f"{directory}/{name}") for name in names] == [f"{major}:{minor} {rate}" for rate in limits.values()]
    weight = "blkio.weight" if os.path.exists(f"{directory}/blkio.weight") else "blkio.bfq.weight"
    assert cat(f"{directory}/{weight}").split()[-1] == "200"
    group.apply({"blockIO": {"throttleReadBpsDevice": [{"major": major, "minor": minor, "rate": 0}]}})
    assert cat(f"{directory}/{names[0]}") == ""


def test_a_disk_that_is_not_there(group: CgroupV1) -> None:
    with pytest.raises(KernelError) as caught:
        group.apply({"blockIO": {"throttleWriteIOPSDevice": [{"major": 4000, "minor": 0, "rate": 5}]}})
    assert caught.value.message == (
        "$.linux.resources.blockIO.throttleWriteIOPSDevice[0]: write '4000:0 5' to "
        f"{at(group, 'blkio')}/blkio.throttle.write_iops_device: ENODEV (no such device)"
    )


def test_a_weight_for_the_leaves_went_with_cfq(group: CgroupV1) -> None:
    file = f"{at(group, 'blkio')}/blkio.leaf_weight"
    with pytest.raises(Unsupported) as caught:
        group.apply({"blockIO": {"leafWeight": 100}})
    assert caught.value.message == f"$.linux.resources.blockIO.leafWeight: this kernel has no blkio.leaf_weight ({file})"


def test_memory_of_tcp_as_cat_reads_it(group: CgroupV1) -> None:
    group.apply({"memory": {"kernelTCP": 16 << 20}})
    assert cat(at(group, "memory") + "/memory.kmem.tcp.limit_in_bytes") == str(16 << 20)


@pytest.mark.needs("hybrid")
def test_huge_pages_and_unified_files_on_the_cgroup2_of_a_hybrid_host(group: CgroupV1) -> None:
    assert group.unified is not None
    if "hugetlb" in cat(f"{group.unified.removesuffix(group.path)}/cgroup.controllers").split():
        group.apply({"hugepageLimits": [{"pageSize": "2MB", "limit": 6 << 20}], "unified": {"hugetlb.1GB.max": "0"}})
        names = ("hugetlb.2MB.max", "hugetlb.2MB.rsvd.max", "hugetlb.1GB.max")
        assert [cat(f"{group.unified}/{name}") for name in names] == [str(6 << 20), str(6 << 20), "0"]
    group.apply({"unified": {"cgroup.max.depth": "7"}})
    assert cat(f"{group.unified}/cgroup.max.depth") == "7"


@pytest.mark.needs("unshare", "net_classes")
def test_network_classes_and_priorities_as_cat_reads_them() -> None:
    """In a private mount namespace, as these hierarchies are mounted on few hosts."""
    name = f"pycontain-test-net-{os.getpid()}"
    code = (
        "from pycontain.runtime.kernel.cgroup import open_cgroup\n"
        f"group = open_cgroup('/{name}')\n"
        "group.create()\n"
        "group.apply({'network': {'classID': 1048577, 'priorities': [{'name': 'lo', 'priority': 5}]}})\n"
        "import subprocess\n"
        "for file in ('net_cls.classid', 'net_prio.ifpriomap'):\n"
        f"    subprocess.run(['cat', '/mnt/net/{name}/' + file], check=True)\n"
        "try: group.apply({'network': {'priorities': [{'name': 'none0', 'priority': 5}]}})\n"
        "except Exception as error: print(error, flush=True)\n"
        "group.remove()\n"
    )
    script = (
        "mount -t tmpfs t /mnt && mkdir /mnt/net && mount -t cgroup -o net_cls,net_prio none /mnt/net || exit 1\n"
        '"$@"; status=$?; umount /mnt/net; exit $status'
    )
    done = subprocess.run(
        ["unshare", "-mn", "sh", "-c", script, "sh", sys.executable, "-c", code],
        capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines[:2] + lines[-1:] == [
        "1048577",
        "lo 5",
        f"$.linux.resources.network.priorities[0]: write 'none0 5' to /mnt/net/{name}/net_prio.ifpriomap: "
        "ENODEV (no such device)",
    ], done.stderr


def test_realtime_as_cat_reads_it() -> None:
    """A level has no more than the one above it, and a new one has none."""
    asked = {"cpu": {"realtimePeriod": 500000, "realtimeRuntime": 20000}}
    with scratch("rt") as inner:
        inner.create()
        outer = kernel.open_cgroup(os.path.dirname(inner.path))
        file = f"{inner.directories[[h.controllers for h in hierarchies()].index(('cpu',))]}/cpu.rt_runtime_us"
        with pytest.raises((KernelError, Unsupported)) as caught:
            inner.apply(asked)
        if not os.path.exists(file):  # a kernel without CONFIG_RT_GROUP_SCHED
            assert "this kernel has no cpu.rt_" in caught.value.message
            return
        assert caught.value.message == (
            f"$.linux.resources.cpu.realtimeRuntime: write '20000' to {file}: EINVAL (invalid argument)"
        )
        outer.apply(asked)
        inner.apply(asked)
        assert [cat(file), cat(file.replace("runtime", "period"))] == ["20000", "500000"]


def test_init_makes_no_node_before_the_last_rule_is_written(
    rootfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first rule denies everything, nodes too: an init that is as far by then has to wait."""
    written = []

    def slowly(path: str, text: str) -> None:
        write(path, text)
        written.append(text)
        if path.endswith("/devices.deny"):
            time.sleep(0.2)

    monkeypatch.setattr(cgroup_v1, "write", slowly)
    monkeypatch.setenv("PYCONTAIN_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("PYCONTAIN_RUN", str(tmp_path / "run"))
    result = pycontain.run(bundle=write_bundle(tmp_path / "b", rootfs, "sh", "-c", "[ -c /dev/null ] && echo made"))
    assert (result.exit_code, result.stdout) == (0, b"made\n")
    assert "a" in written
