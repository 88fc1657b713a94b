"""Interference: how long a neighbour's small unit of work takes beside a hog, compared with alone."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pycontain.isolation import exhaustion
from pycontain.isolation.model import Bind, Measure, Quantity, Sample
from pycontain.isolation.neighbours import LIMITS, host, job, observe, parse, settle, tenant

if TYPE_CHECKING:
    from pycontain.isolation.model import Level
    from pycontain.isolation.world import World

_ALONE, _BESIDE = 0.3, 0.5  # seconds
_PARTS = {"p50": 0.5, "p99": 0.99}
_OWN_DISK = "its own disk, an image on the host's"
_BIND = "a directory of the host's disk, bound"


@dataclass(frozen=True, slots=True)
class Hog:
    """A hog, what its victim does, and the words for both. ``disk``: they write files, on the real disk."""

    name: str
    title: str
    does: str
    work: str
    unit: str
    disk: bool = False


HOGS = (
    Hog("cpu", "CPU hog", "four busy loops", "compute", "60,000 steps of a generator of random numbers"),
    Hog(
        "memory",
        "memory hog",
        "four processes that map, touch and unmap 16 MiB each",
        "memory",
        "256 KiB mapped, touched page by page, unmapped",
    ),
    Hog(
        "io",
        "disk hog",
        "four processes that write 64 KiB and call fsync(2)",
        "sync",
        "4 KiB written over the same place of a file, and fsync(2)",
        disk=True,
    ),
    Hog(
        "fork",
        "fork hog",
        "four processes that fork(2) and wait",
        "pipe",
        "a byte to another process and back by pipes",
    ),
    Hog(
        "network",
        "network hog",
        "four processes that send datagrams over their loopback interface",
        "loopback",
        "a datagram to another process and back over its loopback interface",
    ),
)


def take(hog: Hog, world: World, level: Level) -> Iterator[Sample]:
    """The victim alone, then beside the hog."""
    own = level.name.startswith("vm-")  # a machine with a bind is another machine: booted, with a file server
    with host(world) as inner:
        binds: list[tuple[Bind, ...]] = [(), ()]
        if hog.disk and not own:
            for number, name in enumerate(("victim", "hog")):
                path = world.scratch(name)
                os.chmod(path, 0o777)  # noqa: S103 - some levels' root is another user here
                binds[number] = (Bind(path, "/data", writable=True),)
        where = "dir=" + ("/var/tmp" if own or not hog.disk else "{data}")
        with tenant(inner, level, job("victim", f"work={hog.work}", where, binds=binds[0])) as victim:
            settle(victim)
            alone = observe(victim, _ALONE)
            with tenant(inner, level, job("hog", f"load={hog.name}", where, binds=binds[1])) as other:
                parse(other.line(20))
                beside = observe(victim, _BESIDE)
    detail = (_OWN_DISK if own else _BIND) if hog.disk else ""
    for name, part in _PARTS.items():
        yield Sample(f"interference.{hog.name}.alone.{name}", (alone.quantile(part),), detail)
        yield Sample(f"interference.{hog.name}.{name}", (beside.quantile(part) / alone.quantile(part),), detail)


def _quantities(hog: Hog) -> tuple[Quantity, ...]:
    clock = "the victim's CLOCK_MONOTONIC, from the moment at which it wanted to wake until its unit of work was done"
    cache = "warm"
    found = []
    for name in _PARTS:
        found.append(
            Quantity(
                f"interference.{hog.name}.{name}",
                f"{name} beside a {hog.title}",
                "x",
                f"The {name} of the time that a victim's unit of work takes ({hog.unit}; every 0.5 ms), beside another "
                f"tenant of the same level: {hog.does}. {LIMITS[0].upper()}{LIMITS[1:]}.",
                clock=clock,
                cache=cache,
                denominator=f"the same victim's {name} alone at the same level, right before",
            )
        )
        found.append(
            Quantity(
                f"interference.{hog.name}.alone.{name}",
                f"{name} of its victim alone",
                "us",
                f"The {name} of the same unit of work ({hog.unit}; every 0.5 ms) without a neighbour.",
                clock=clock,
                cache=cache,
            )
        )
    return tuple(found)


MEASURES: tuple[Measure, ...] = (
    *(
        Measure(
            f"interference.{hog.name}",
            "interference",
            f"beside a {hog.title}",
            functools.partial(take, hog),
            quantities=_quantities(hog),
            rounds=(1, 9),
            seconds=1.4,
        )
        for hog in HOGS
    ),
    *exhaustion.MEASURES,
)
