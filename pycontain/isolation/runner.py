"""A run: which measures are taken at which levels, how often, and in what order.

In rounds. In each, the measures come in a random order, and for each measure the levels do: so what one level is
compared by was taken beside the others, and no level always comes first. The first round takes everything once; after
it a measure is taken again at a level until it was taken its least number of times and each of its figures is
narrow, or it was taken its greatest number of times, or its share of the budget is spent. A share is the same number
of seconds for every measure at every level, and what one does not need is the others': a level that is slow is
measured less often, and the others not less for its sake.
"""

from __future__ import annotations

import dataclasses
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import inf
from typing import TYPE_CHECKING, Any, get_args

from pycontain.isolation import schema
from pycontain.isolation.model import Ended, Group, Job, Level, Measure, Outcome, Sample, Tenant
from pycontain.isolation.results import OPENED, Results, Writer
from pycontain.runtime.errors import NotFound, PycontainError, Unsupported

if TYPE_CHECKING:
    from pycontain.isolation.progress import Progress
    from pycontain.isolation.world import World

GROUPS: tuple[str, ...] = get_args(Group)
BUDGET = {"quick": 11 * 60.0, "full": 3 * 3600.0}
# How much longer than in a container things last, for the estimate that is shown before anything is known.
_SLOWER = {"vm-tcg": 10.0, "runsc": 2.0}


@dataclass(frozen=True, slots=True)
class Options:
    """``mode``: quick or full. ``only``: names of levels, measures and groups; ``levels``: names of levels. Empty: all.
    ``budget``: seconds; None: the mode's. ``seed``: of the order; None: a new one."""

    mode: str = "quick"
    only: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()
    budget: float | None = None
    seed: int | None = None


class Opened:
    """A container without any of its defences: where each attack is to succeed, or the attack itself is broken."""

    name = OPENED
    title = "opened container"
    about = "the control: a container with all capabilities and the host's namespaces, without filter and masks"

    def __init__(self, base: Level) -> None:
        self._base = base

    def missing(self, world: World) -> str | None:
        return self._base.missing(world)

    def run(self, world: World, job: Job, timeout: float = 60.0) -> Ended:
        return self._base.run(world, dataclasses.replace(job, opened=True), timeout)

    def start(self, world: World, job: Job) -> Tenant:
        return self._base.start(world, dataclasses.replace(job, opened=True))

    def ready(self, world: World, job: Job) -> Tenant:
        return self._base.ready(world, dataclasses.replace(job, opened=True))


def select(
    options: Options, levels: Sequence[Level], measures: Sequence[Measure]
) -> tuple[list[Level], list[Measure]]:
    """What a run is of. Raises NotFound for a name that is neither a level nor a measure nor a group."""
    level_names = {level.name for level in levels}
    measure_names = {measure.name for measure in measures}
    for name in options.levels:
        if name not in level_names:
            raise NotFound(f'there is no level "{name}"', hint=_nearest("--level", name, level_names))
    known = level_names | measure_names | set(GROUPS)
    for name in options.only:
        if name not in known:
            raise NotFound(f'there is no level, measure or group "{name}"', hint=_nearest("--only", name, known))
    named = set(options.only)
    wanted_levels = (named & level_names) | set(options.levels)
    wanted = named - level_names
    chosen = [level for level in levels if not wanted_levels or level.name in wanted_levels]
    taken = [
        measure
        for measure in measures
        if measure.name in wanted
        or ((not wanted or measure.group in wanted) and (options.mode == "full" or measure.quick))
    ]
    if not taken:
        raise NotFound(
            f"no measure of {', '.join(sorted(wanted))} is part of --quick", hint="pycontain isolation run --full"
        )
    return chosen, taken


def _nearest(option: str, name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, sorted(known), 1)
    return f"pycontain isolation run {option} {near[0]}" if near else "pycontain isolation levels"


def estimate(levels: Sequence[Level], measures: Sequence[Measure], budget: float) -> tuple[float, float]:
    """About how many seconds a run at these levels lasts at least and at most: ``budget`` cuts off all but its first
    round."""
    costs = [(measure, expected(measure, level.name)) for measure in measures for level in levels]
    first = sum(seconds for _, seconds in costs)
    least, most = (sum(measure.rounds[end] * seconds for measure, seconds in costs) for end in (0, 1))
    return max(first, min(least, budget)), max(first, min(most, budget))


def expected(measure: Measure, level: str) -> float:
    return measure.seconds * _SLOWER.get(level, 1.0)


def opening(
    options: Options,
    facts: dict[str, Any],
    levels: Sequence[tuple[Level, str | None]],
    measures: Sequence[Measure],
) -> dict[str, Any]:
    """The first record of a run. ``levels``: each with why it is missing. Raises PycontainError where two measures
    define one name differently."""
    quantities: dict[str, Any] = {}
    claims: dict[str, Any] = {}
    for measure in measures:
        for table, items in ((quantities, measure.quantities), (claims, measure.claims)):
            for item in items:
                if table.setdefault(item.name, item) != item:
                    raise PycontainError(f'measure {measure.name} defines "{item.name}" otherwise than one before it')
    return {
        "kind": "run",
        "schema": schema.VERSION,
        "id": os.urandom(8).hex(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "mode": "only" if options.only or options.levels else options.mode,
        "seed": options.seed if options.seed is not None else int.from_bytes(os.urandom(4), "big"),
        "facts": facts,
        "levels": [
            {"name": level.name, "title": level.title, "about": level.about, "missing": missing}
            for level, missing in levels
        ],
        "measures": [{"name": measure.name, "group": measure.group, "title": measure.title} for measure in measures],
        "quantities": [dataclasses.asdict(quantity) for quantity in quantities.values()],
        "claims": [dataclasses.asdict(claim) for claim in claims.values()],
    }


class Run:
    """A run that goes on: ``found`` has all that was recorded, of a run that is resumed as well."""

    def __init__(
        self,
        world: World,
        levels: Sequence[Level],
        measures: Sequence[Measure],
        found: Results,
        writer: Writer,
        progress: Progress,
        budget: float,
        control: Level | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """``levels``: those that this host has. ``budget``: seconds, those of a resumed run's past included.
        ``control``: the level that outcomes are taken at once more, opened."""
        self.found = found
        self._world = world
        self._levels = list(levels)
        self._measures = list(measures)
        self._writer = writer
        self._progress = progress
        self._budget = budget
        self._now = now
        self._begun = now() - found.seconds
        self._quantities = {measure.name: [quantity.name for quantity in measure.quantities] for measure in measures}
        self._share = 0.0
        self._over: set[tuple[str, str]] = set(found.absent)
        self._control = [Opened(control)] if control is not None else []

    def go(self) -> None:
        """Take what is to be taken, and write the end. Ctrl-C ends it with what it has: KeyboardInterrupt."""
        complete = False
        try:
            for number, measure, level in self._order():
                if self._due(number, measure, level):
                    self._progress.step(self._part(), f"{measure.title}: {level.title}")
                    self._take(number, measure, level)
            complete = True
        finally:
            self._record({"kind": "end", "seconds": self._elapsed(), "complete": complete})

    def _levels_of(self, measure: Measure) -> list[Level]:
        return [*self._levels, *self._control] if measure.group == "outcome" else self._levels

    def _pairs(self) -> Iterator[tuple[tuple[str, str], Measure]]:
        for measure in self._measures:
            for level in self._levels_of(measure):
                yield (level.name, measure.name), measure

    def _order(self) -> Iterator[tuple[int, Measure, Level]]:
        for number in range(1, max((measure.rounds[1] for measure in self._measures), default=0) + 1):
            self._share = self._fair()
            chance = random.Random(f"{self.found.seed}/{number}")
            for measure in chance.sample(self._measures, len(self._measures)):
                levels = self._levels_of(measure)
                for level in chance.sample(levels, len(levels)):
                    yield number, measure, level

    def _due(self, number: int, measure: Measure, level: Level) -> bool:
        pair = (level.name, measure.name)
        taken = self.found.rounds.get(pair, 0)
        if pair in self._over or taken >= number or number > measure.rounds[1]:
            return False
        if number > measure.rounds[0] and self._narrow(*pair):
            return False
        if number == 1:
            return True
        spent, cost = self.found.costs[pair], self.found.costs[pair] / taken
        # Half of a taking: to the nearest number of them.
        return spent + cost / 2 <= self._share and self._elapsed() + cost <= self._budget

    def _fair(self) -> float:
        """The share: the seconds at which all that is still wanted, cut off there, lasts as long as the budget."""
        spent = sum(self.found.costs.values())
        left = self._budget - (self._elapsed() - spent)
        wants = []
        for pair, measure in self._pairs():
            taken = self.found.rounds.get(pair, 0)
            if taken and pair not in self._over:
                cost = self.found.costs[pair]
                done = taken >= measure.rounds[0] and self._narrow(*pair)
                wants.append((cost, cost if done else cost / taken * measure.rounds[1]))
        if sum(most for _, most in wants) <= left:
            return inf
        low, high = 0.0, max(most for _, most in wants)
        for _ in range(50):
            share = (low + high) / 2
            if sum(min(max(share, least), most) for least, most in wants) <= left:
                low = share
            else:
                high = share
        return high

    def _narrow(self, level: str, measure: str) -> bool:
        figures = (self.found.figure(level, name) for name in self._quantities[measure])
        return all(figure.narrow for figure in figures if figure is not None)

    def _take(self, number: int, measure: Measure, level: Level) -> None:
        where = {"level": level.name, "measure": measure.name}
        begun = self._now()
        records: list[dict[str, Any]] = []
        try:
            for item in measure.take(self._world, level):
                records.append(self._checked(item, number, where))
            records.append({"kind": "taken", **where, "round": number, "seconds": round(self._now() - begun, 3)})
        except Unsupported as error:
            records.append({"kind": "absent", **where, "why": _told(error), "at": self._elapsed()})
            self._over.add((level.name, measure.name))
        except Exception as error:
            # Half of a round's repetitions would be a figure of another thing; a verdict stands by itself.
            records = [record for record in records if record["kind"] == "outcome"]
            why = _told(error)
            records.append({"kind": "failed", **where, "why": why, "at": self._elapsed()})
            self._over.add((level.name, measure.name))
            self._progress.say(f"failed: {measure.name} at {level.name}: {why}")
        self._record(*records)

    def _checked(self, item: object, number: int, where: dict[str, Any]) -> dict[str, Any]:
        """The record of what a measure yielded. Raises PycontainError where it is nothing that it may yield."""
        if isinstance(item, Outcome):
            record = {"kind": "outcome", **where, "claim": item.claim, "verdict": item.verdict}
            record |= {"detail": item.detail, "times": item.times}
        elif isinstance(item, Sample):
            values = [float(value) for value in item.values]
            record = {"kind": "sample", **where, "quantity": item.quantity, "round": number, "values": values}
            record["detail"] = item.detail
        else:
            raise PycontainError(f"the measure {where['measure']} yielded a {type(item).__name__}")
        record["at"] = self._elapsed()
        problem = self.found.wrong(record)
        if problem:
            raise PycontainError(f"the measure {where['measure']} yielded what results cannot have: {problem}")
        return record

    def _record(self, *records: dict[str, Any]) -> None:
        for record in records:
            problem = self.found.add(record)
            assert problem is None, problem
        self._writer.write(*records)

    def _elapsed(self) -> float:
        return round(self._now() - self._begun, 3)

    def _part(self) -> float:
        """The part of the run that is over, by what the rest is expected to last."""
        elapsed, least, more = self._elapsed(), 0.0, 0.0
        for pair, measure in self._pairs():
            if pair not in self._over:
                taken = self.found.rounds.get(pair, 0)
                seconds = self.found.costs[pair] / taken if taken else expected(measure, pair[0])
                least += seconds * (not taken)
                wanted = measure.rounds[0] if taken and self._narrow(*pair) else measure.rounds[1]
                more += seconds * max(0, wanted - max(taken, 1))
        left = least + min(more, max(0.0, self._budget - elapsed - least))
        return elapsed / (elapsed + left) if left else 1.0


def _told(error: Exception) -> str:
    """An error's words, in one line; an exception that is none of ours with the place that it came from."""
    if isinstance(error, PycontainError):
        return " ".join(error.message.split()) or type(error).__name__
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f" ({os.path.basename(place.tb_frame.f_code.co_filename)}:{place.tb_lineno})" if place else ""
    return f"this is a bug: {type(error).__name__}: {' '.join(str(error).split())}{where}"
