"""Attacks on whoever enters a container: one program lies in wait in it while others are started there from outside."""

from __future__ import annotations

import glob
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from pycontain.isolation import decoys
from pycontain.isolation.model import Job, Level, Measure, Outcome
from pycontain.isolation.outcomes_claims import ENTERING
from pycontain.isolation.outcomes_judge import same_kernel
from pycontain.isolation.world import World
from pycontain.runtime.errors import PycontainError

_TIMES = 4  # that somebody enters: how long there is something to be seen of each is a matter of milliseconds
_SECONDS = 30.0
_PEERS = ("runc", "crun", "runsc")


def take(world: World, level: Level) -> Iterator[Outcome]:
    """Both claims at this level. Raises Unsupported where nobody can enter it, PycontainError where nobody was seen."""
    there = world.once(decoys.make)
    file = next(word for word in there.arguments if word.startswith("file="))
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    job = Job(("/probe", "entering", f"count={_TIMES}", f"ms={_SECONDS * 1000:.0f}", file))
    tenant = level.start(world, job)
    try:
        self_ = json.loads(tenant.line(2 * _SECONDS))
        for _ in range(_TIMES):
            tenant.exec(("/bin/sleep", "0.05"))
        found = json.loads(tenant.line(2 * _SECONDS))
    finally:
        tenant.stop()
    if not found["ended"]:
        raise PycontainError("the program that lies in wait has not seen anybody enter")
    ours = same_kernel(self_, before, time.clock_gettime(time.CLOCK_BOOTTIME))
    followed, replaced = (one.claim.name for one in ENTERING)
    if found["found"] == there.secrets[followed]:
        yield Outcome(followed, "leaked", f"Read what is in the decoy: {found['how']}.")
    else:
        yield Outcome(followed, "held", "No way back from who entered.")
    yield _program(replaced, found, programs(world) if ours else {})


def _program(claim: str, found: dict[str, Any], host: dict[str, str]) -> Outcome:
    reached = found["programs"].split(",") if found["programs"] else []
    theirs = [host[one] for one in reached if one in host]
    if theirs:
        return Outcome(claim, "leaked", f"Could have written to {', '.join(theirs)}.")
    if reached:
        return Outcome(claim, "held", "Could have written to programs of the container's own only.")
    return Outcome(claim, "held", "No program of who entered could be taken hold of.")


def programs(world: World) -> dict[str, str]:
    """The programs of this host that start a level, by ``DEVICE:INODE``."""
    beside = os.path.join(os.path.dirname(os.path.realpath(sys.modules["pycontain.runtime"].__path__[0])), "init")
    paths = [world.probe, world.mine[0], sys.executable, *glob.glob(f"{beside}/pycontain-*")]
    paths += [path for path in map(world.bin, _PEERS) if path]
    found = {}
    for path in paths:
        status = os.stat(path)
        found[f"{status.st_dev}:{status.st_ino}"] = os.path.realpath(path)
    return found


MEASURES = (
    Measure(
        "entering",
        "outcome",
        "attacks on who enters",
        take,
        claims=tuple(one.claim for one in ENTERING),
        seconds=1.0,
    ),
)
