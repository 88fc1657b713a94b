"""Exhaustion: a tenant takes all there is of something. Does its neighbour notice, and by how much?"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pycontain.isolation.model import Claim, Measure, Outcome
from pycontain.isolation.neighbours import LIMITS, Latency, host, job, observe, parse, settle, tenant
from pycontain.runtime.errors import PycontainError

if TYPE_CHECKING:
    from pycontain.isolation.model import Level, Tenant
    from pycontain.isolation.world import World

NOISY = 2.0  # times its median alone
_ALONE, _BESIDE = 0.2, 0.3  # seconds
_FULL_SECONDS = 40.0
_PATIENCE = 5.0
_HOLD = 48 << 20  # the victim's memory: more than any single process of a hog has
_DISK, _INODES = 96 << 20, 4000


@dataclass(frozen=True, slots=True)
class Want:
    """What is taken (the probe's name for it), by what, and what the victim does meanwhile."""

    name: str
    of: str
    title: str
    attack: str
    work: str
    unit: str
    disk: bool = False
    hold: int = 0
    most: int = 0  # after as many it gives up, where nobody refuses it: twice what there is


_KILLED = f"; the victim has {_HOLD >> 20} MiB in use, so that a kernel that looks for a large process finds it"
_SHARED = (
    f"; all tenants' root file systems are on one disk of {_DISK >> 20} MiB and {_INODES} inodes, and both write where "
    "their level lets them"
)
WANTS = (
    Want("fork-bomb", "bomb", "a fork bomb", "processes that fork as fast as they can, all of them", "fork", "fork(2)"),
    Want("pids", "pids", "all process ids", "idle processes, until fork(2) is refused", "fork", "fork(2)"),
    Want(
        "memory",
        "memory",
        "all memory",
        "a process after another that touches 16 MiB, until one is refused or killed" + _KILLED,
        "memory",
        "mmap(2)",
        hold=_HOLD,
    ),
    Want(
        "descriptors",
        "fds",
        "all descriptors",
        "a process after another that opens as many sockets as it may and fills the buffer of each, which is the "
        "kernel's memory, until one is refused or killed" + _KILLED,
        "open",
        "open(2)",
        hold=_HOLD,
    ),
    Want(
        "inodes",
        "inodes",
        "all inodes",
        "empty files, until open(2) is refused" + _SHARED,
        "create",
        "a new file",
        disk=True,
        most=2 * _INODES,
    ),
    Want(
        "disk",
        "disk",
        "all of the disk",
        "a file that grows until write(2) is refused" + _SHARED,
        "write",
        "a new file of 64 KiB, and fsync(2)",
        disk=True,
        most=2 * _DISK,
    ),
)


def take(want: Want, world: World, level: Level) -> Iterator[Outcome]:
    """The victim alone, then beside a tenant that has been refused more."""
    with ExitStack() as stack:
        inner = stack.enter_context(host(world))
        where = "/tmp"
        if want.disk:
            inner = stack.enter_context(inner.small_disk(_DISK, _INODES))
            # The hardened container's root is read-only: it has a small tmpfs of its own.
            where = {"process": inner.scratch("any"), "hardened": "/tmp"}.get(level.name, "/var/tmp")
        victim = stack.enter_context(
            tenant(inner, level, job("victim", f"work={want.work}", f"dir={where}", f"hold={want.hold}"))
        )
        settle(victim)
        alone = observe(victim, _ALONE)
        if alone.failed:
            raise PycontainError(f"the victim's {want.unit} fails without any neighbour: {alone.why}")
        taking = job("exhaust", f"of={want.of}", f"dir={where}", f"most={want.most}")
        hog = stack.enter_context(tenant(inner, level, taking))
        found = _outcome(want, alone, victim, _full(hog, inner.public if want.disk else None))
    yield found


def _full(hog: Tenant, disk: str | None) -> str:
    """What became of the hog. Raises PycontainError where it has not come to an end of its taking in time."""
    until = time.monotonic() + _FULL_SECONDS
    while time.monotonic() < until:
        try:
            line = hog.line(1.0)
        except PycontainError:
            if not hog.pids():
                return "the hog was killed as a whole"
            if disk is not None and os.statvfs(disk).f_bfree == 0:
                return "the hog stands still on a full disk"
            continue
        said = parse(line)
        if said["why"] == "enough":
            return f"the hog was not refused {said['got']:.0f} ({said['full']})"
        return f"the hog was refused after {said['got']:.0f} ({said['full']}: {said['why']})"
    raise PycontainError(f"the hog has not got all there is in {_FULL_SECONDS:g} s")


def _outcome(want: Want, alone: Latency, victim: Tenant, got: str) -> Outcome:
    claim = f"exhaustion.{want.name}"
    try:
        beside = observe(victim, _BESIDE, patience=_PATIENCE)
    except PycontainError as error:
        what = "the victim was killed" if not victim.pids() else f"the victim does nothing any more ({error.message})"
        return Outcome(claim, "leaked", f"{what}; {got}")
    if beside.failed:
        part = 100 * beside.failed / len(beside.us)
        return Outcome(claim, "leaked", f"{part:.0f} % of the victim's tries failed ({want.unit}: {beside.why}); {got}")
    ratio = beside.quantile(0.5) / alone.quantile(0.5)
    said = f"{want.unit} took the victim {ratio:.2g} times as long as alone ({beside.quantile(0.5):.0f} us); {got}"
    return Outcome(claim, "noisy" if ratio >= NOISY else "held", said, ratio)


MEASURES: tuple[Measure, ...] = tuple(
    Measure(
        f"exhaustion.{want.name}",
        "interference",
        f"a neighbour that takes {want.title}",
        functools.partial(take, want),
        claims=(
            Claim(
                f"exhaustion.{want.name}",
                f"a neighbour that takes {want.title}",
                f"Another tenant of the same level: {want.attack}. {LIMITS[0].upper()}{LIMITS[1:]}. Held: the victim's "
                f"{want.unit} takes less than {NOISY:g} times its median alone; noisy: longer; leaked: it fails, or "
                "the victim is killed.",
                "exhaustion",
            ),
        ),
        seconds=1.2,
    )
    for want in WANTS
)
