"""What it costs to start a level, one at a time and many at once, and to run another program in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pycontain.isolation.cost_memory import available, idle, pss
from pycontain.isolation.cost_probe import answer
from pycontain.isolation.model import Ended, Job, Level, Measure, Quantity, Sample, Tenant
from pycontain.runtime.errors import PycontainError, Unsupported

if TYPE_CHECKING:
    from pycontain.isolation.world import World

_FIRST = ("/probe", "first")
# A join of a cgroup waits for what the kernel does lazily, and a start right after another one hides that.
_REST = 0.15
_STARTS = 3

_ONE = "CLOCK_MONOTONIC of the host, from before the command of the level is started until"
_WARM = "the files of the runtime, of the image and of a machine's template warm: the level was started before"
_ROOT = "The copy of the root file system and of the bundle is made before."
FIRST = Quantity(
    "start.first", "start to first instruction", "ms",
    f"One start: until the first byte that a static program writes has reached the host. {_ROOT}",
    clock=f"{_ONE} that byte is there", cache=_WARM, denominator="one start, 0.15 s of rest before it",
)  # fmt: skip
TOTAL = Quantity(
    "start.total", "start to end", "ms",
    f"One start of a static program that ends at once: until the command has exited, everything cleared up. {_ROOT}",
    clock=f"{_ONE} the command has cleared up and ended", cache=_WARM, denominator=FIRST.denominator,
)  # fmt: skip


def _finished(ended: Ended, level: Level) -> tuple[float, float]:
    answer(ended, level, "first")
    if ended.status or ended.first is None:
        raise PycontainError(f"first at {level.name} ended with {ended.status}")
    return ended.first, ended.total


def _start(world: World, level: Level) -> Iterator[Sample]:
    found = []
    for _ in range(_STARTS):
        time.sleep(_REST)
        found.append(_finished(level.run(world, Job(_FIRST)), level))
    firsts, totals = zip(*found, strict=True)
    yield Sample(FIRST.name, firsts)
    yield Sample(TOTAL.name, totals)


def _many(count: int) -> tuple[Quantity, ...]:
    together = f"{count} starts at once, each of another tenant, on all processors of the host."
    return (
        Quantity(
            f"start{count}.first", f"first instruction, {count} at once", "ms", f"One of {together}",
            clock=f"{_ONE} the first byte is there", cache=_WARM, denominator=f"one of {count} starts",
        ),
        Quantity(
            f"start{count}.rate", f"starts a second, {count} at once", "starts/s",
            f"The throughput of {together} Each to its end. {_ROOT}", "higher",
            clock="CLOCK_MONOTONIC of the host, from before the first command is started until the last has ended",
            cache=_WARM, denominator="seconds",
        ),
    )  # fmt: skip


def at_once(world: World, level: Level, count: int) -> tuple[list[Ended], float]:
    """Let ``count`` prepared tenants go at one moment: how each ended, and the seconds until the last one had.

    Raises what the first that failed raised. All are cleared up after the last one's end.
    """
    tenants: list[Tenant] = []
    with ThreadPoolExecutor(count) as pool:  # a thread for each, so that each byte and each end is seen when it comes
        try:
            for _ in range(count):
                tenants.append(level.ready(world, Job(_FIRST)))
            waiting = [pool.submit(tenant.wait, 300.0) for tenant in tenants]
            time.sleep(_REST)
            begun = time.monotonic()
            went = []
            for tenant in tenants:
                went.append(time.monotonic() - begun)
                tenant.go()
            ended = [one.result() for one in waiting]
        finally:
            for tenant in tenants:
                tenant.stop()
    return ended, max(at + one.total / 1000 for at, one in zip(went, ended, strict=True))


def _at_once(count: int) -> Callable[[World, Level], Iterator[Sample]]:
    first, rate = _many(count)

    def take(world: World, level: Level) -> Iterator[Sample]:
        if count > 10:
            _room(world, level, count)
        ended, seconds = at_once(world, level, count)
        yield Sample(first.name, tuple(_finished(one, level)[0] for one in ended))
        yield Sample(rate.name, (count / seconds,))

    return take


def _room(world: World, level: Level, count: int) -> None:
    """Raises Unsupported where so many would take more than half of the memory that the host has left."""
    with idle(world, level, 1) as (tenant,):
        one = pss(tenant.pids())
    if one * count > available() // 2:
        left = available() >> 20
        raise Unsupported(f"{count} at once, {one >> 20} MiB each, are more than half of the {left} MiB available")


EXEC_FIRST = Quantity(
    "exec.first", "exec to first instruction", "ms",
    "Another static program in a tenant that runs already, by the level's own verb (a process: another one).",
    clock=f"{_ONE} its first byte is there", cache=_WARM, denominator="one exec",
)  # fmt: skip
EXEC_TOTAL = Quantity(
    "exec.total", "exec to end", "ms",
    "Another static program, which ends at once, in a tenant that runs already, by the level's own verb.",
    clock=f"{_ONE} the command has ended", cache=_WARM, denominator="one exec",
)  # fmt: skip
_EXECS = 5


def _exec(world: World, level: Level) -> Iterator[Sample]:
    with idle(world, level, 1) as (tenant,):
        found = [_finished(tenant.exec(_FIRST), level) for _ in range(_EXECS)]
    firsts, totals = zip(*found, strict=True)
    yield Sample(EXEC_FIRST.name, firsts)
    yield Sample(EXEC_TOTAL.name, totals)


MEASURES = (
    Measure("start", "cost", "start", _start, (FIRST, TOTAL), rounds=(3, 9), seconds=0.8),
    Measure("start10", "cost", "10 starts at once", _at_once(10), _many(10), rounds=(2, 7), seconds=0.8),
    Measure("start50", "cost", "50 starts at once", _at_once(50), _many(50), rounds=(3, 5), seconds=4.0, quick=False),
    Measure("exec", "cost", "exec", _exec, (EXEC_FIRST, EXEC_TOTAL), rounds=(2, 7), seconds=0.5),
)
