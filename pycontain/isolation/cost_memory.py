"""What an instance that does nothing costs: memory."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pycontain.isolation.model import Job, Level, Measure, Quantity, Sample, Tenant
from pycontain.runtime.errors import NotFound, Unsupported
from pycontain.runtime.kernel.cgroup import open_cgroup

if TYPE_CHECKING:
    from pycontain.isolation.world import World

IDLE = ("/probe", "cost_idle")
_INSTANCES = 5
_SETTLE = 0.3

PSS = Quantity(
    "idle.pss", "memory of one instance", "KiB",
    "The proportional set size (a page that n processes map counts as one nth) of every process that is there because "
    "of one idle instance: the program, the runtime's command, which waits for it, a sentry, a VMM and its helpers. "
    "Neither kernel memory nor a page of the page cache that nobody maps is in it.",
    clock="0.3 s after its first line", cache="no other instance of the level", denominator="one instance",
)  # fmt: skip
MARGINAL = Quantity(
    "idle.marginal", "memory of one more instance", "KiB",
    f"The same sum over {_INSTANCES} instances, less that of one, for each of the {_INSTANCES - 1} further ones: what "
    "instances share is paid for once.",
    clock="0.3 s after the last one's first line", cache=f"{_INSTANCES} instances of the level at once",
    denominator=f"{_INSTANCES - 1} instances",
)  # fmt: skip
FIT = Quantity(
    "idle.fit", "idle instances that fit in 1 GiB", "instances",
    "1 GiB divided by the memory of one more instance: derived, not tried; kernel memory and other limits (processes, "
    "links) come on top.",
    "higher", clock=MARGINAL.clock, cache=MARGINAL.cache, denominator="GiB",
)  # fmt: skip
KERNEL = Quantity(
    "idle.kernel", "kernel memory of one instance", "KiB",
    f"Kernel memory (stacks, page tables, slabs) that is charged to the cgroup around {_INSTANCES} idle instances, for "
    "each of them. What the kernel charges to nobody, as most of a network namespace, is not in it.",
    clock=MARGINAL.clock, cache=MARGINAL.cache, denominator=f"{_INSTANCES} instances",
)  # fmt: skip


def available() -> int:
    """MemAvailable of this host in bytes (proc_meminfo(5))."""
    with open("/proc/meminfo") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    raise NotFound("/proc/meminfo has no MemAvailable")


def pss(pids: Iterable[int]) -> int:
    """The sum of Pss in bytes (proc_pid_smaps(5)). A process that has ended counts nothing."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup") as file:
                lines = file.read().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total


def kernel_memory(cgroup: str) -> int | None:
    """Bytes of kernel memory that are charged to a cgroup and those below it; None where this host does not count."""
    group = open_cgroup(cgroup)
    memory = group.events().statistics(group).get("memory") or {}
    usage = memory.get("kernel", {}).get("usage", memory.get("raw", {}).get("kernel"))
    return None if usage is None else int(usage)


@contextmanager
def idle(world: World, level: Level, count: int) -> Iterator[list[Tenant]]:
    """So many instances that have said their first line, and wait."""
    tenants: list[Tenant] = []
    try:
        for _ in range(count):
            tenants.append(level.start(world, Job(IDLE)))
            tenants[-1].line(60.0)
        yield tenants
    finally:
        for tenant in tenants:
            tenant.stop()


def _memory(world: World, level: Level) -> Iterator[Sample]:
    with world.cgroup("idle") as inside, idle(inside, level, 1) as first:
        time.sleep(_SETTLE)
        one = pss(first[0].pids())
        with idle(inside, level, _INSTANCES - 1) as others:
            time.sleep(_SETTLE)
            every = pss(pid for tenant in (*first, *others) for pid in tenant.pids())
            kernel = kernel_memory(inside.cap)
    marginal = (every - one) / (_INSTANCES - 1)
    yield Sample(PSS.name, (one / 1024,))
    yield Sample(MARGINAL.name, (marginal / 1024,))
    yield Sample(FIT.name, ((1 << 30) / marginal,))
    if kernel is None:
        raise Unsupported("this host's memory cgroups do not count kernel memory")
    yield Sample(KERNEL.name, (kernel / 1024 / _INSTANCES,))


MEASURES = (
    Measure(
        "idle", "cost", "memory of idle instances", _memory, (PSS, MARGINAL, FIT, KERNEL), rounds=(2, 6), seconds=1.2
    ),
)
