"""What only v2 has, on a kernel whose controllers are all on it; test_in_vm.py runs this in the machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from pycontain.runtime.errors import KernelError, SpecError, Unsupported
from pycontain.runtime.kernel import cgroup as kernel
from pycontain.runtime.kernel.cgroup_v2 import CgroupV2
from tests.integration.cgroup_tools import cat, child, end, run, scratch, sleeper

pytestmark = pytest.mark.needs("root", "cgroup2")


@pytest.fixture
def group() -> Iterator[CgroupV2]:
    with scratch("deep/box") as opened:
        assert isinstance(opened, CgroupV2)
        opened.create()
        yield opened


def files(group: CgroupV2, *names: str) -> list[str]:
    return [cat(f"{group.directories[0]}/{name}") for name in names]


def test_controllers_reach_a_new_cgroup_through_new_parents(group: CgroupV2) -> None:
    top = group.directories[0].removesuffix(group.path)
    assert files(group, "cgroup.controllers")[0].split() == cat(f"{top}/cgroup.controllers").split()


def test_limits_as_cat_reads_them(group: CgroupV2) -> None:
    group.apply(
        {
            "memory": {"limit": 64 << 20, "swap": 96 << 20, "reservation": 32 << 20},
            "cpu": {"shares": 2000, "quota": 50000, "period": 100000, "burst": 5000, "cpus": "0", "mems": "0"},
            "pids": {"limit": 20},
            "unified": {"memory.high": "60M", "cgroup.max.descendants": "3"},
        }
    )
    names = "memory.max memory.swap.max memory.low memory.high cpu.weight cpu.max cpu.max.burst cpuset.cpus cpuset.mems"
    assert files(group, *names.split(), "pids.max", "cgroup.max.descendants") == [
        *(str(64 << 20), str(32 << 20), str(32 << 20), str(60 << 20), "170", "50000 100000", "5000", "0", "0"),
        *("20", "3"),
    ]


def test_unlimited(group: CgroupV2) -> None:
    group.apply({"memory": {"limit": 64 << 20, "swap": 64 << 20}, "cpu": {"quota": 5000}, "pids": {"limit": 3}})
    group.apply({"memory": {"limit": -1}, "cpu": {"quota": -1}, "pids": {"limit": -1}})
    assert files(group, "memory.max", "memory.swap.max", "cpu.max", "pids.max") == ["max", "max", "max 100000", "max"]


def test_a_period_alone_keeps_the_quota(group: CgroupV2) -> None:
    group.apply({"cpu": {"quota": 30000}})
    group.apply({"cpu": {"period": 50000}})
    assert files(group, "cpu.max") == ["30000 50000"]


def test_a_limit_below_the_use_is_refused_when_asked_to_look(group: CgroupV2) -> None:
    process = child(group, "b = bytearray(b'x' * (20 << 20))\nprint('in', flush=True)\nimport time\ntime.sleep(600)")
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        with pytest.raises(KernelError, match=r"memory\.limit: 1048576 is less than the \d+ bytes in use: EBUSY"):
            group.apply({"memory": {"limit": 1 << 20, "checkBeforeUpdate": True}})
        assert files(group, "memory.max") == ["max"]
        assert process.poll() is None
    finally:
        end(process)


def test_join_by_the_directory(group: CgroupV2) -> None:
    kind, fd = group.join_fds()
    assert kind == "v2"
    assert os.path.samestat(os.fstat(fd), os.stat(group.directories[0]))
    os.close(fd)


def test_a_level_that_holds_processes_is_named(group: CgroupV2) -> None:
    """v2 gives a cgroup either processes or controllers for its children, never both."""
    inner = kernel.open_cgroup(group.path + "/inner")
    process = child(group, "print('in', flush=True)\nimport time\ntime.sleep(600)")
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        inner.create()
        with pytest.raises(Unsupported) as caught:
            inner.apply({"memory": {"limit": 1 << 26}})
        assert caught.value.message == (
            f"$.linux.resources.memory.limit: the memory controller is not enabled for {inner.path}"
        )
        assert caught.value.hint == (
            "move the processes out of the cgroups above it and enable it: "
            f"echo +memory > {group.directories[0]}/cgroup.subtree_control"
        )
    finally:
        end(process)


@pytest.mark.parametrize(
    ("resources", "error", "text"),
    [
        ({"memory": {"swappiness": 60}}, Unsupported, "memory.swappiness: cgroup v2 has no such setting"),
        (
            {"memory": {"swap": 5}},
            SpecError,
            "memory.swap: 5 is the sum of memory and swap, and needs memory.limit beside it",
        ),
        (
            {"unified": {"memory.no": "1"}},
            Unsupported,
            'unified["memory.no"]: this kernel has no memory.no ({at}/memory.no)',
        ),
        ({"unified": {"colour.max": "1"}}, Unsupported, 'unified["colour.max"]: this host has no colour controller'),
        (
            {"unified": {"pids.max": "many"}},
            KernelError,
            "unified[\"pids.max\"]: write 'many' to {at}/pids.max: EINVAL (invalid argument)",
        ),
        (
            {"rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10000}}},
            KernelError,
            "rdma['mlx5_1']: write 'mlx5_1 hca_handle=3 hca_object=10000' to {at}/rdma.max: ENODEV (no such device)",
        ),
        (
            {"hugepageLimits": [{"pageSize": "3MB", "limit": 1}]},
            SpecError,
            "hugepageLimits[0].pageSize: found '3MB', wanted one of 1GB, 2MB",
        ),
        (
            {"blockIO": {"throttleReadIOPSDevice": [{"major": 4000, "minor": 0, "rate": 5}]}},
            KernelError,
            "blockIO.throttleReadIOPSDevice[0]: write '4000:0 riops=5' to {at}/io.max: ENODEV (no such device)",
        ),
        ({"cpu": {"period": 10}}, KernelError, "cpu.period: write 'max 10' to {at}/cpu.max: EINVAL (invalid argument)"),
    ],
)
def test_what_is_refused(group: CgroupV2, resources: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        group.apply(resources)
    assert str(caught.value) == "$.linux.resources." + text.replace("{at}", group.directories[0])


def test_io_is_counted(group: CgroupV2) -> None:
    folder = os.environ.get("TMPDIR", "/var/tmp")
    code = (
        f"fd = os.open({folder!r} + '/pycontain-io', os.O_CREAT | os.O_WRONLY, 0o600)\n"
        "os.write(fd, b'x' * (4 << 20)); os.fsync(fd); os.close(fd)\n"
        f"os.unlink({folder!r} + '/pycontain-io')\n"
    )
    assert run(group, code) == (0, "")
    assert group.stats()["io"]["written"] >= 4 << 20


def disk() -> tuple[str, int, int]:
    """Of the disk under TMPDIR: its number as ``8:0``, major and minor."""
    number = os.stat(os.environ.get("TMPDIR", "/var/tmp")).st_dev
    return f"{os.major(number)}:{os.minor(number)}", os.major(number), os.minor(number)


def of_disk(kind: str, rate: int) -> dict[str, Any]:
    _, major, minor = disk()
    return {kind: [{"major": major, "minor": minor, "rate": rate}]}


def test_block_io_as_cat_reads_it(group: CgroupV2) -> None:
    name, major, minor = disk()
    limits = {
        **of_disk("throttleReadBpsDevice", 1 << 20),
        **of_disk("throttleWriteBpsDevice", 2 << 20),
        **of_disk("throttleReadIOPSDevice", 300),
        **of_disk("throttleWriteIOPSDevice", 400),
    }
    group.apply({"blockIO": {"weight": 500, **limits}})
    assert files(group, "io.weight", "io.max") == [
        "default 4950",
        f"{name} rbps=1048576 wbps=2097152 riops=300 wiops=400",
    ]
    group.apply({"blockIO": of_disk("throttleReadBpsDevice", 0), "unified": {"io.max": f"{name} wiops=max riops=max"}})
    assert files(group, "io.max") == [f"{name} rbps=max wbps=2097152 riops=max wiops=max"]
    subprocess.run(["modprobe", "bfq"], check=True, timeout=30)
    # Its file takes the place of the other one; for a device it wants that device to be scheduled by it.
    weights = {"weight": 300, "weightDevice": [{"major": major, "minor": minor, "weight": 200}]}
    scheduler = f"/sys/dev/block/{name}/queue/scheduler"
    with open(scheduler, "w") as file:
        file.write("bfq")
    try:
        group.apply({"blockIO": weights})
        assert files(group, "io.bfq.weight") == [f"default 300\n{name} 200"]
    finally:
        with open(scheduler, "w") as file:
            file.write("none")


@pytest.mark.parametrize(
    ("kind", "mode"), [("throttleWriteBpsDevice", "O_WRONLY"), ("throttleReadBpsDevice", "O_RDONLY")]
)
def test_the_disk_is_held_back(group: CgroupV2, kind: str, mode: str) -> None:
    """Five quarters of a megabyte at one a second: past all caches, and not at once whatever else goes on."""
    path = f"{os.environ.get('TMPDIR', '/var/tmp')}/pycontain-io-max"
    with open(path, "wb") as file:
        file.write(b"x" * (2 << 20))
        os.fsync(file.fileno())
    group.apply({"blockIO": of_disk(kind, 1 << 20)})
    code = (
        "import mmap, time\n"
        f"fd = os.open({path!r}, os.{mode} | os.O_DIRECT)\n"
        "page = mmap.mmap(-1, 1 << 18)\n"
        "start = time.monotonic()\n"
        f"for _ in range(5): {'os.write(fd, page)' if mode == 'O_WRONLY' else 'os.readv(fd, [page])'}\n"
        "print(time.monotonic() - start)\n"
    )
    try:
        status, output = run(group, code)
        assert (status, float(output) > 0.7) == (0, True), output
    finally:
        os.unlink(path)


def test_huge_pages_are_held_back(group: CgroupV2) -> None:
    before = cat("/proc/sys/vm/nr_hugepages")
    with open("/proc/sys/vm/nr_hugepages", "w") as file:
        file.write("4")
    try:
        group.apply({"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]})
        assert files(group, "hugetlb.2MB.max", "hugetlb.2MB.rsvd.max") == [str(4 << 20)] * 2
        code = (
            "import mmap\n"
            "pages = []\n"
            "try:\n"
            "    while True:\n"
            "        pages.append(mmap.mmap(-1, 2 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000))\n"
            "        pages[-1][0] = 1\n"
            "except OSError as error: print(len(pages), error.strerror)\n"
        )
        assert run(group, code) == (0, "2 Cannot allocate memory\n")
    finally:
        with open("/proc/sys/vm/nr_hugepages", "w") as file:
            file.write(before)


def test_processors_are_held_back(group: CgroupV2) -> None:
    group.apply({"cpu": {"cpus": "1"}})
    assert files(group, "cpuset.cpus.effective") == ["1"]
    assert run(group, "print(sorted(os.sched_getaffinity(0)))") == (0, "[1]\n")


def test_all_of_a_cgroup_is_killed_together_when_it_asks_for_that(group: CgroupV2) -> None:
    group.apply({"memory": {"limit": 64 << 20, "swap": 64 << 20}, "unified": {"memory.oom.group": "1"}})
    assert files(group, "memory.oom.group") == ["1"]
    bystander = sleeper(group)
    assert run(group, "b = bytearray(100 << 20)") == (-9, "")
    assert bystander.wait(timeout=10) == -9
    bystander.communicate()


def test_a_program_for_the_devices() -> None:
    group = kernel.open_cgroup("/pycontain-test/none")
    assert group.device_program({}) is None
    program = group.device_program({"devices": [{"allow": False, "access": "rwm"}]})
    assert program is not None
    assert len(program) > 0
    assert len(program) % 8 == 0
