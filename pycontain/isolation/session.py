"""A run from the command line: prepared on the host, taken inside a world, kept in a file that it can go on from."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from pycontain.isolation import facts, progress, results, runner, world
from pycontain.isolation.containers import Machine
from pycontain.isolation.levels import LEVELS
from pycontain.isolation.measures import MEASURES
from pycontain.isolation.model import Level, Measure
from pycontain.isolation.progress import Progress
from pycontain.isolation.results import Results, Writer
from pycontain.isolation.runner import Options
from pycontain.isolation.world import World
from pycontain.runtime.errors import Conflict, PycontainError
from pycontain.runtime.vm import accel, settings

INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
_CONTROL = "container"
_BUSY = 0.5  # load for each processor from which on figures are wide


def take(options: Options, output: str | None = None, resume: str | None = None) -> int:
    """Take a run into the file ``output`` (None: isolation-DATE-TIME.jsonl here), or go on with that in ``resume``.

    Returns what the command ends with: 0 where nothing failed, 1 where something did, 130 where it was interrupted.
    Raises PycontainError where nothing can be taken at all.
    """
    found = None if resume is None else _resumed(resume)
    levels, measures = runner.select(options, LEVELS, MEASURES) if found is None else _known(found)
    _prepare(levels)
    now = facts.collect()
    if found is not None:
        _unchanged(found, now)
    path = resume or output or time.strftime("isolation-%Y%m%d-%H%M%S.jsonl")
    writer = Writer(path, resume is not None)
    try:
        return world.enter(lambda inside: _inside(inside, options, now, levels, measures, found, writer))
    finally:
        writer.close()


def _prepare(levels: Sequence[Level]) -> None:
    """What wants a network, which the world has not: a kernel for machines. With it KVM is tried, for the facts."""
    if any(isinstance(level, Machine) for level in levels):
        try:
            accel.verdict(settings.load({}))
        except PycontainError:
            pass  # the level says what it lacks


def _resumed(path: str) -> Results:
    """What is there. Raises Conflict where it is complete."""
    found = results.load(path)
    if found.complete and not found.failed:
        raise Conflict(f"{path} is complete", hint=f"pycontain isolation report {path}")
    return found


def _unchanged(found: Results, now: dict[str, Any]) -> None:
    """Raises Conflict where this is not the host any more that ``found`` is of."""
    changes = facts.changed(found.facts, now)
    if changes:
        raise Conflict(
            f"cannot go on with {found.path}: its host was another one: {'; '.join(changes)}",
            hint="pycontain isolation run",
        )


def _known(found: Results) -> tuple[list[Level], list[Measure]]:
    """The levels and measures that a run is of. Raises Conflict where this build does not have one of them."""
    levels = {level.name: level for level in LEVELS}
    measures = {measure.name: measure for measure in MEASURES}
    gone = [name for name in [*found.levels, *found.measures] if name not in levels and name not in measures]
    if gone:
        raise Conflict(f"cannot go on with {found.path}: this version does not have {', '.join(gone)}")
    return [levels[name] for name in found.levels], [measures[name] for name in found.measures]


def _inside(
    inside: World,
    options: Options,
    now: dict[str, Any],
    levels: Sequence[Level],
    measures: Sequence[Measure],
    found: Results | None,
    writer: Writer,
) -> int:
    shown = progress.make()
    shown.step(0.0, "trying the levels")
    try:
        tried = [(level, level.missing(inside)) for level in levels]
        control = next(level for level in LEVELS if level.name == _CONTROL)
        no_control = dict(tried)[control] if control in levels else control.missing(inside)
        first = runner.opening(options, now, tried, measures)
        if found is None:
            found = results.begin(writer.path, first)
            writer.write(first)
        else:
            _same(found, first)
        present = [level for level, missing in tried if missing is None]
        budget = options.budget or runner.BUDGET["full" if found.mode == "full" else options.mode]
        _announce(shown, now, tried, present, measures, budget)
        if not present:
            raise PycontainError("this host can run none of the levels that were asked for")
        runner.Run(inside, present, measures, found, writer, shown, budget, None if no_control else control).go()
    except KeyboardInterrupt:
        shown.close()
        if found is None:
            shown.say("interrupted before anything was taken")
        else:
            shown.say(f"interrupted; what was taken is in {writer.path}\n")
            shown.say(f"hint: pycontain isolation run --resume {writer.path}")
        return INTERRUPTED
    finally:
        shown.close()
    print(writer.path)
    for (level, measure), why in found.failed.items():
        shown.say(f"failed: {measure} at {level}: {why}")
    shown.say(f"{progress.clock(found.seconds)} in all; to read it: pycontain isolation report {writer.path}")
    return 1 if found.failed else 0


def _same(found: Results, first: dict[str, Any]) -> None:
    """Raises Conflict where the first record of a run that is gone on with would not be the same today."""
    today = results.begin(found.path, first)
    tables: tuple[Callable[[Results], object], ...] = (
        lambda of: {level.name: level.missing is None for level in of.levels.values()},
        lambda of: of.measures,
        lambda of: of.quantities,
        lambda of: of.claims,
    )
    for what, table in zip(("levels that this host has", "measures", "quantities", "claims"), tables, strict=True):
        if table(found) != table(today):
            raise Conflict(f"cannot go on with {found.path}: the {what} are others now", hint="pycontain isolation run")


def _announce(
    shown: Progress,
    now: dict[str, Any],
    tried: Sequence[tuple[Level, str | None]],
    present: Sequence[Level],
    measures: Sequence[Measure],
    budget: float,
) -> None:
    for level, missing in tried:
        if missing is not None:
            shown.say(f"missing: {level.name}: {missing}")
    if now["load"] > _BUSY * now["cpus"]:
        shown.say(f"busy: the load is {now['load']:.1f} on {now['cpus']} processors, figures will be wide")
    least, most = (progress.clock(seconds) for seconds in runner.estimate(present, measures, budget))
    lasts = f"about {least}" if least == most else f"about {least} at least, {most} at most"
    shown.say(f"{_count(measures, 'measure')} at {_count(present, 'level')}: {lasts}")


def _count(things: Sequence[object], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def examine() -> list[dict[str, Any]]:
    """Every level, in its order: name, title, about and why it is missing here (None: it is there)."""
    _prepare(LEVELS)
    read, write = os.pipe2(os.O_CLOEXEC)

    def tell(inside: World) -> int:
        for level in LEVELS:
            line = {"name": level.name, "title": level.title, "about": level.about, "missing": level.missing(inside)}
            os.write(write, json.dumps(line).encode() + b"\n")
        return 0

    try:
        status = world.enter(tell)
    finally:
        os.close(write)
    with open(read, "rb") as lines:
        found = [json.loads(line) for line in lines]
    if status:
        raise PycontainError(f"the trial of the levels ended with {status}")
    return found
