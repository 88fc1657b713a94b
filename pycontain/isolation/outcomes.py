"""Do attacks work? One take is one job: the probe tries every attack in a child of its own and says how far it came;
here is judged, by what only the host knows, whether that was the host."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

from pycontain.isolation import decoys
from pycontain.isolation.decoys import Decoys
from pycontain.isolation.model import Job, Level, Measure, Outcome
from pycontain.isolation.outcomes_claims import ATTACKS
from pycontain.isolation.outcomes_judge import Judge
from pycontain.isolation.world import World
from pycontain.runtime.errors import PycontainError

_SECONDS = 120.0


def take(world: World, level: Level) -> Iterator[Outcome]:
    """Every attack at this level, once. A claim that this host has no decoy for yields nothing. Raises
    PycontainError where the probe, or an attack, did not come to its end."""
    there = world.once(decoys.make)
    cookie = world.number()
    host, changed = socket.gethostname(), f"reached-{cookie}"
    arguments = (f"cookie={cookie}", f"name={changed}", *there.arguments)
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    with there.awake():
        ended = level.run(world, Job(("/probe", "outcomes", *arguments)), timeout=_SECONDS)
    found = answers(ended.stdout)
    named = socket.gethostname() == changed
    if named:
        socket.sethostname(host)
    if ended.status or "self" not in found:
        raise PycontainError(
            f"the attacks ended with status {ended.status}: {ended.stderr.decode(errors='replace').strip()[-500:]}"
        )
    yield from judged(there, found, before, cookie, named)


def judged(
    there: Decoys, found: dict[str, dict[str, Any]], before: float, cookie: int, named: bool
) -> Iterator[Outcome]:
    """The outcomes of what the probe said. Raises PycontainError, after the last one, where an attack has no end."""
    judge = Judge(there, found["self"], before, cookie, named)
    unended = []
    for one in ATTACKS:
        name = one.claim.name
        if name not in found or name in there.missing:  # some are of one architecture only
            continue
        verdict = judge.verdict(one, found[name])
        if verdict:
            yield Outcome(name, *verdict)
        else:
            unended.append(name)
    if unended:
        raise PycontainError(f"these attacks have not come to an end: {', '.join(unended)}")


def answers(output: bytes) -> dict[str, dict[str, Any]]:
    """The probe's lines, by the attack's name."""
    found: dict[str, dict[str, Any]] = {}
    for line in output.splitlines():
        answer = json.loads(line)
        found[answer["attack"]] = answer
    return found


MEASURES = (
    Measure(
        "outcomes",
        "outcome",
        "attacks",
        take,
        claims=tuple(one.claim for one in ATTACKS),
        seconds=1.0,
    ),
)
