"""What ``events`` reads from cgroup v2: statistics in runc's shape, and the kernel's word of a lack of memory."""

from __future__ import annotations

import posix as os
from errno import EINVAL

from pycontain.runtime.errors import KernelError
from pycontain.runtime.kernel.cgroup_rare import blkio_entry, hugepage_files, numbers, some
from pycontain.runtime.kernel.files import number, read, read_int, read_table, table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontain.runtime.kernel.cgroup_v2 import CgroupV2

_UNLIMITED = (1 << 64) - 1  # what runc says where the kernel says "max"
_FLAGS = (
    "cpu_exclusive", "mem_hardwall", "mem_exclusive", "memory_migrate", "memory_spread_page", "memory_spread_slab",
    "memory_pressure", "sched_load_balance", "sched_relax_domain_level",
)  # fmt: skip
_IO = {
    "rbytes": ("ioServiceBytesRecursive", "Read"),
    "wbytes": ("ioServiceBytesRecursive", "Write"),
    "rios": ("ioServicedRecursive", "Read"),
    "wios": ("ioServicedRecursive", "Write"),
}
_POLLPRI = 2


def statistics(cgroup: CgroupV2) -> dict[str, Any]:
    """``data`` of a ``stats`` event (runc's types/events.go), without what is no cgroup's."""
    at = cgroup.at
    cpu = read_table(f"{at}/cpu.stat")
    usage = some(total=cpu.get("usage_usec", 0) * 1000)
    usage.update(kernel=cpu.get("system_usec", 0) * 1000, user=cpu.get("user_usec", 0) * 1000)
    throttling = some(
        periods=cpu.get("nr_periods"),
        throttledPeriods=cpu.get("nr_throttled"),
        throttledTime=cpu.get("throttled_usec", 0) * 1000,
    )
    cpuset = {name: numbers(_text(f"{at}/cpuset.{name}.effective")) for name in ("cpus", "mems")}
    return {
        "cpu": {"usage": usage, "throttling": throttling, **_pressure(f"{at}/cpu.pressure")},
        "cpuset": {**some(**cpuset), **dict.fromkeys(_FLAGS, 0)},  # flags of v1, which runc's shape has always
        "memory": {**_memory(at), **_pressure(f"{at}/memory.pressure")},
        "pids": some(current=read_int(f"{at}/pids.current"), limit=read_int(f"{at}/pids.max")),
        "blkio": {**_io(_text(f"{at}/io.stat")), **_pressure(f"{at}/io.pressure")},
        "hugetlb": hugetlb(at),
    }


def _text(path: str) -> str:
    try:
        return read(path)
    except OSError:
        return ""  # its controller is not enabled here


def _limit(path: str) -> int:
    text = _text(path).strip()
    return _UNLIMITED if text == "max" else number(text) or 0


def _memory(at: str) -> dict[str, Any]:
    raw = read_table(f"{at}/memory.stat")
    usage, limit = read_int(f"{at}/memory.current") or 0, _limit(f"{at}/memory.max")
    swap, swap_limit = read_int(f"{at}/memory.swap.current") or 0, _limit(f"{at}/memory.swap.max")
    # As v1 has it: the sum of memory and swap.
    both = _UNLIMITED if _UNLIMITED in (limit, swap_limit) else limit + swap_limit
    return {
        **some(cache=raw.get("file")),
        "usage": {"limit": limit, **some(usage=usage, max=read_int(f"{at}/memory.peak")), "failcnt": 0},
        "swap": {"limit": both, **some(usage=usage + swap), "failcnt": 0},
        "kernel": {"limit": 0, "failcnt": 0},
        "kernelTCP": {"limit": 0, "failcnt": 0},
        "raw": raw,
    }


def _io(text: str) -> dict[str, Any]:
    """``8:0 rbytes=1 wbytes=2 rios=3 ...`` a line, in the two tables that v1 has."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in text.splitlines():
        device, *fields = line.split()
        for field in fields:
            key, _, value = field.partition("=")
            if key in _IO:
                name, operation = _IO[key]
                found.setdefault(name, []).append(blkio_entry(f"{device} {operation}", number(value) or 0))
    return found


def _pressure(path: str) -> dict[str, Any]:
    """``psi`` of a pressure file's ``some avg10=0.00 avg60=0.00 avg300=0.00 total=0`` lines; {} without it."""
    found = {}
    for line in _text(path).splitlines():
        kind, *fields = line.split()
        pairs = [field.partition("=") for field in fields]
        found[kind] = {key: int(value) if key == "total" else float(value) for key, _, value in pairs}
    return {"psi": found} if found else {}


def hugetlb(at: str) -> dict[str, Any]:
    """``hugetlb`` of the event; {} where the controller is not."""
    found = {}
    for size, files in hugepage_files(at, ".current").items():
        failures = table(_text(f"{at}/hugetlb.{size}.events")).get("max", 0)
        found[size] = {**some(usage=read_int(files[-1])), "failcnt": failures}
    return found


def oom_fd(cgroup: CgroupV2) -> tuple[int, int, int]:
    """(descriptor, poll events, kills so far): memory.events is ready once it has changed since it was read."""
    file = f"{cgroup.at}/memory.events"
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(f"watch {file}", error.errno or EINVAL) from error
    return fd, _POLLPRI, oom_seen(cgroup, fd, 0)[1]


def oom_seen(cgroup: CgroupV2, fd: int, before: int) -> tuple[bool, int]:
    """Whether a process was killed for want of memory since ``before`` were; and how many were now."""
    try:
        now = table(os.pread(fd, 4096, 0).decode()).get("oom_kill", 0)
    except OSError:
        return False, before  # the cgroup is gone
    return now > before, now
