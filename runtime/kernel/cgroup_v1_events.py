"""What ``events`` reads from cgroup v1: statistics in runc's shape, and the kernel's word of a lack of memory."""

from __future__ import annotations

import posix as os
from errno import EINVAL

from pycontain.runtime.errors import KernelError, Unsupported
from pycontain.runtime.kernel.cgroup_rare import blkio_entry, hugepage_files, numbers, some
from pycontain.runtime.kernel.cgroup_v2_events import hugetlb
from pycontain.runtime.kernel.files import read, read_int, read_table, write

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontain.runtime.kernel.cgroup_v1 import CgroupV1

_FLAGS = (
    "cpu_exclusive", "mem_hardwall", "mem_exclusive", "memory_migrate", "memory_spread_page", "memory_spread_slab",
    "memory_pressure", "sched_load_balance", "sched_relax_domain_level",
)  # fmt: skip
_BLKIO = (
    ("ioServiceBytesRecursive", "io_service_bytes"),
    ("ioServicedRecursive", "io_serviced"),
    ("ioQueueRecursive", "io_queued"),
    ("ioServiceTimeRecursive", "io_service_time"),
    ("ioWaitTimeRecursive", "io_wait_time"),
    ("ioMergedRecursive", "io_merged"),
    ("ioTimeRecursive", "time"),
    ("sectorsRecursive", "sectors"),
)

_POLLIN = 1


def statistics(cgroup: CgroupV1) -> dict[str, Any]:
    """``data`` of a ``stats`` event (runc's types/events.go), without what is no cgroup's."""
    at = cgroup.by_controller
    memory, pids = at.get("memory"), at.get("pids")
    found: dict[str, Any] = {"cpu": _cpu(cgroup), "cpuset": _cpuset(at["cpuset"]) if "cpuset" in at else {}}
    found["memory"] = _memory(f"{memory}/memory.") if memory else {}
    found["pids"] = some(current=read_int(f"{pids}/pids.current"), limit=read_int(f"{pids}/pids.max")) if pids else {}
    found["blkio"] = _blkio(at["blkio"]) if "blkio" in at else {}
    if "hugetlb" in at:
        found["hugetlb"] = _hugetlb(at["hugetlb"])
    else:
        found["hugetlb"] = hugetlb(cgroup.unified) if cgroup.unified else {}
    return found


def _cpu(cgroup: CgroupV1) -> dict[str, Any]:
    at = cgroup.by_controller
    usage: dict[str, Any] = {}
    if "cpuacct" in at:
        base = f"{at['cpuacct']}/cpuacct."
        ticks = read_table(base + "stat")
        # One line a processor: its number, nanoseconds in user mode, in the kernel.
        rows = [line.split() for line in read(base + "usage_all").splitlines()[1:]]
        usage = some(
            total=read_int(base + "usage"),
            percpu=[int(word) for word in read(base + "usage_percpu").split()],
            percpu_kernel=[int(row[2]) for row in rows],
            percpu_user=[int(row[1]) for row in rows],
        )
        tick = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
        usage.update(kernel=ticks.get("system", 0) * tick, user=ticks.get("user", 0) * tick)
    counts = read_table(f"{at['cpu']}/cpu.stat") if "cpu" in at else {}
    throttling = some(
        periods=counts.get("nr_periods"),
        throttledPeriods=counts.get("nr_throttled"),
        throttledTime=counts.get("throttled_time"),
    )
    return {"usage": usage, "throttling": throttling}


def _cpuset(directory: str) -> dict[str, Any]:
    lists = {name: numbers(read(f"{directory}/cpuset.{name}")) for name in ("cpus", "mems")}
    return {**lists, **{name: read_int(f"{directory}/cpuset.{name}") or 0 for name in _FLAGS}}


def _memory(base: str) -> dict[str, Any]:
    raw = read_table(base + "stat")
    entries = {}
    for name, kind in (("usage", ""), ("swap", "memsw."), ("kernel", "kmem."), ("kernelTCP", "kmem.tcp.")):
        entry = some(usage=read_int(f"{base}{kind}usage_in_bytes"), max=read_int(f"{base}{kind}max_usage_in_bytes"))
        limit, failures = (read_int(f"{base}{kind}{file}") or 0 for file in ("limit_in_bytes", "failcnt"))
        entries[name] = {"limit": limit, **entry, "failcnt": failures}
    return {**some(cache=raw.get("cache")), **entries, "raw": raw}


def _blkio(directory: str) -> dict[str, Any]:
    # Whoever schedules the disk counts; without a scheduler that does, the throttling layer.
    for kind in ("blkio.bfq.", "blkio.", "blkio.throttle."):
        found = {}
        for name, file in _BLKIO:
            table = read_table(f"{directory}/{kind}{file}_recursive")
            # One line is a sum over all devices, and names none.
            found[name] = [blkio_entry(key, value) for key, value in table.items() if ":" in key]
        if found["ioServicedRecursive"]:
            return some(**found)
    return {}


def _hugetlb(directory: str) -> dict[str, Any]:
    found = {}
    for size, files in hugepage_files(directory, ".usage_in_bytes").items():
        prefix = files[-1].removesuffix("usage_in_bytes")
        entry = some(usage=read_int(files[-1]), max=read_int(prefix + "max_usage_in_bytes"))
        found[size] = {**entry, "failcnt": read_int(prefix + "failcnt") or 0}
    return found


def oom_fd(cgroup: CgroupV1) -> tuple[int, int, int]:
    """(descriptor, poll events, 0): what becomes ready when memory runs out, an eventfd (memory.rst, "OOM Control")."""
    directory = cgroup.by_controller.get("memory")
    if directory is None:
        raise Unsupported(f"watch the memory of cgroup {cgroup.path}: this host has no memory controller")
    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    file = f"{directory}/memory.oom_control"
    try:
        control = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            write(f"{directory}/cgroup.event_control", f"{event} {control}")
        finally:
            os.close(control)
    except OSError as error:
        os.close(event)
        raise KernelError(f"watch {file}", error.errno or EINVAL) from error
    return event, _POLLIN, 0


def oom_seen(cgroup: CgroupV1, fd: int, before: int) -> tuple[bool, int]:
    """Whether memory has run out since the last call; and ``before``, as v2 counts."""
    try:
        os.read(fd, 8)
    except BlockingIOError:
        return False, before
    # The kernel's last word is that the cgroup is removed.
    return cgroup.exists(), before
