"""Two tenants of one level side by side: a victim with a small unit of work, and a hog."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pycontain.isolation.model import Bind, Job
from pycontain.isolation.statistics import median, quantile
from pycontain.runtime.errors import PycontainError

if TYPE_CHECKING:
    from pycontain.isolation.model import Level, Tenant
    from pycontain.isolation.world import World

# The limits of either tenant, and the cap around both.
MEMORY, PIDS, CPUS = 192 << 20, 150, 1.0
CAP_MEMORY, CAP_PIDS = 896 << 20, 350
LIMITS = (
    f"each tenant may have {MEMORY >> 20} MiB of memory, {PIDS} processes and {CPUS:g} processor, where the level has "
    f"limits; both together are in a cgroup of {CAP_MEMORY >> 20} MiB, {CAP_PIDS} processes and two processors"
)
_BUFFERED = 0.02  # seconds: a line that comes sooner was written before


@dataclass(frozen=True, slots=True)
class Latency:
    """What a victim said in some time: microseconds of each unit, how many failed, and the last reason."""

    us: tuple[float, ...]
    failed: int
    why: str

    def quantile(self, part: float) -> float:
        return quantile(self.us, part)


@contextmanager
def host(world: World) -> Iterator[World]:
    """The world with two processors for the two tenants, so that they have to share on a larger host too."""
    processors = sorted(os.sched_getaffinity(0))[:2]
    with world.cgroup(
        "neighbours", memory=CAP_MEMORY, pids=CAP_PIDS, cpuset=",".join(map(str, processors))
    ) as inner:
        yield inner


def job(*args: str, binds: tuple[Bind, ...] = ()) -> Job:
    """A job with either tenant's limits."""
    return Job(("/probe", *args), memory=MEMORY, pids=PIDS, cpus=CPUS, binds=binds)


@contextmanager
def tenant(world: World, level: Level, job: Job) -> Iterator[Tenant]:
    """A tenant, until the block is left."""
    started = level.start(world, job)
    try:
        yield started
    finally:
        started.stop()


def observe(victim: Tenant, seconds: float, *, patience: float = 20.0) -> Latency:
    """What the victim says in at least so many seconds from now on; of what it wrote before, nothing. Raises
    PycontainError where it falls silent for ``patience`` seconds, or has ended."""
    while True:
        begun = time.monotonic()
        parse(victim.line(patience))
        if time.monotonic() - begun > _BUFFERED:
            break  # it was being written when we came: some of it is from before
    us: list[float] = []
    failed, why = 0, ""
    until = time.monotonic() + seconds
    while not us or time.monotonic() < until:
        said = parse(victim.line(patience))
        us += said["us"]
        failed += int(said["failed"])
        why = said.get("why", why)
    return Latency(tuple(us), failed, why)


def settle(victim: Tenant, seconds: float = 2.0) -> None:
    """Wait until it gets no faster: caches fill, and an emulator translates what it executes the first time."""
    until = time.monotonic() + seconds
    before = math.inf
    while time.monotonic() < until:
        said = parse(victim.line())
        now = median(said["us"])
        if now >= 0.9 * before:
            return
        before = now


def parse(line: str) -> Any:
    """A probe's line. Raises PycontainError where it says that it could not work."""
    said = json.loads(line)
    if "error" in said:
        raise PycontainError(f"the probe {said['probe']} could not work: {said['error']}")
    return said
