"""Two runs against each other: of two hosts, or of two versions on one.

The rules, of which each is the same with the runs swapped:

- An outcome is worse if it goes from held to noisy or leaked, or from noisy to leaked. That is always a regression, but
  for a neighbour that was slowed down by factors on both sides of the border between held and noisy which, each of one
  round, are within FEW_TOLERANCE of each other: that is named.
- A count of the surface that came out the same every time in both runs is compared exactly: more is worse. One above
  EXACT_UP_TO (files below /sys) follows what else the host does: it agrees within FEW_TOLERANCE.
- Any other figure agrees if the intervals overlap, or if the medians differ by no more than TOLERANCE of the smaller
  one; FEW_TOLERANCE where an interval stands on so few values that it does not reach 95 %.
- A figure that has no better side can differ, and is never worse.
- A figure of fewer than FEWEST values is not compared unless it is such a count: two pairs of values of the same thing
  lie apart by chance in one case of three.
- A measure that failed in the new run and had not in the old one is a regression.
- A 99th percentile that differs is named, and not worse, where its interval reaches 95 % in one run only or none:
  of few rounds it is chance's.
- Figures of different variants of a workload are not compared, and nothing is where only one run has it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from pycontain.isolation import digest, statistics, units
from pycontain.isolation.model import Claim, Quantity
from pycontain.isolation.results import OPENED, Figure, OutcomeRecord, Results
from pycontain.isolation.units import shown

EXACT_UP_TO = 500
TOLERANCE = 0.30
FEW_TOLERANCE = 1.0
FEWEST = 3
LINES = 20  # of each kind, in a text
LETTERS = 240  # of a line

Direction = Literal["worse", "better", "differs"]
_RANK = {"held": 0, "noisy": 1, "leaked": 2}


@dataclass(frozen=True, slots=True)
class Turn:
    """An outcome that is another one now."""

    level: str
    claim: Claim
    old: OutcomeRecord
    new: OutcomeRecord

    @property
    def direction(self) -> Direction:
        return "worse" if _RANK[self.new.verdict] > _RANK[self.old.verdict] else "better"

    @property
    def weight(self) -> tuple[float, ...]:
        return 3, max(_RANK[self.old.verdict], _RANK[self.new.verdict])

    def __str__(self) -> str:
        said = f"{self.old.verdict} → {self.new.verdict}: {shown(self.new.detail)}"
        return f"{self.level}: {shown(self.claim.title)}: {said}"


@dataclass(frozen=True, slots=True)
class Shift:
    """A figure that is another one now. ``ratio``: new by old (infinite where the old one is zero). ``exact``: it is a
    count that never varied."""

    level: str
    quantity: Quantity
    title: str
    old: Figure
    new: Figure
    direction: Direction
    ratio: float
    exact: bool

    @property
    def weight(self) -> tuple[float, ...]:
        size = abs(math.log(self.ratio)) if 0 < self.ratio < math.inf else math.inf
        return 1 if self.exact else 0, size

    def __str__(self) -> str:
        unit = self.quantity.unit
        if self.exact:
            sides = [units.number(figure.median) for figure in (self.old, self.new)]
            return f"{self.level}: {self.title}: {sides[0]} → {sides[1]} {unit}".rstrip()
        old, new = (digest.figure_text(figure, unit) for figure in (self.old, self.new))
        times = f", {units.number(self.ratio)}×" if 0 < self.ratio < math.inf else ""
        return f"{self.level}: {self.title}: {old} → {new}{times}".replace("\u00a0", " ")


@dataclass(frozen=True, slots=True)
class Failure:
    """A measure that one of the runs could take, and the other could not."""

    level: str
    measure: str
    why: str
    direction: Direction

    @property
    def weight(self) -> tuple[float, ...]:
        return 2, 0

    def __str__(self) -> str:
        word = "fails now" if self.direction == "worse" else "failed before"
        return f"{self.level}: {shown(self.measure)}: {word}: {shown(self.why)}"


@dataclass(frozen=True, slots=True)
class Uncompared:
    """Something that could not be compared, and why."""

    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"


@dataclass(slots=True)
class Comparison:
    """``facts``: those that differ, with both values. ``changes``: all that does not agree. ``agreed``: how many
    outcomes and figures do."""

    old: Results
    new: Results
    facts: list[tuple[str, str, str]] = field(default_factory=list)
    changes: list[Turn | Shift | Failure] = field(default_factory=list)
    agreed: int = 0
    uncompared: list[Uncompared] = field(default_factory=list)

    @property
    def regressions(self) -> list[Turn | Shift | Failure]:
        """What became worse, the worst first."""
        return self._those("worse")

    @property
    def improvements(self) -> list[Turn | Shift | Failure]:
        """What became better, the most so first."""
        return self._those("better")

    def _those(self, direction: Direction) -> list[Turn | Shift | Failure]:
        found = [change for change in self.changes if change.direction == direction]
        return sorted(found, key=lambda change: change.weight, reverse=True)

    def text(self) -> str:
        """For a terminal: the runs, facts that differ, then what changed, the worst first."""
        lines = [f"{word}: {_run(results)}" for word, results in (("old", self.old), ("new", self.new))]
        if self.facts:
            lines.append("facts that differ:")
            lines += _few([f"{name}: {old} → {new}" for name, old, new in self.facts])
        others = self._those("differs")
        for title, changes in (("worse", self.regressions), ("better", self.improvements), ("other", others)):
            if changes:
                lines.append(f"{title} ({len(changes)}):")
                lines += _few([str(change) for change in changes])
        if self.uncompared:
            lines.append(f"not compared ({len(self.uncompared)}):")
            lines += _few(_by_reason(self.uncompared))
        counts = [(len(self.regressions), "worse"), (len(self.improvements), "better"), (len(others), "different")]
        lines.append("; ".join([f"{self.agreed} agree", *(f"{count} {word}" for count, word in counts)]))
        return "\n".join(lines) + "\n"


def compare(old: Results, new: Results) -> Comparison:
    """Everything that both runs have, by the rules above."""
    made = Comparison(old, new, _facts(old, new))
    for name in dict.fromkeys([*old.levels, *new.levels]):
        why = [_missing(results, name) for results in (old, new)]
        if not any(why):
            _outcomes(made, name)
            _figures(made, name)
            _failures(made, name)
        elif not all(why):
            made.uncompared.append(Uncompared(name, f"old run: {why[0]}" if why[0] else f"new run: {why[1]}"))
    _controls(made)
    return made


def _missing(results: Results, level: str) -> str | None:
    return shown(results.levels[level].missing or "") if level in results.levels else "it does not have this level"


def _facts(old: Results, new: Results) -> list[tuple[str, str, str]]:
    before, after = (digest.flat_facts(results.facts) for results in (old, new))
    names = dict.fromkeys([*before, *after])
    pairs = ((name, before.get(name, "not known"), after.get(name, "not known")) for name in names)
    return [(shown(name), shown(one), shown(other)) for name, one, other in pairs if one != other]


def _outcomes(made: Comparison, level: str) -> None:
    for claim in (made.old.claims | made.new.claims).values():
        old, new = made.old.outcome(level, claim.name), made.new.outcome(level, claim.name)
        if old is not None and new is not None:
            if old.verdict == new.verdict:
                made.agreed += 1
            elif _by_chance(old, new):
                why = f"its work took {old.times:.2g} and {new.times:.2g} times as long as alone, which chance can do"
                made.uncompared.append(Uncompared(f"{level}: {shown(claim.title)}", why))
            else:
                made.changes.append(Turn(level, claim, old, new))
        elif old is not None or new is not None:
            why = f"only the {'old' if old else 'new'} run has it"
            made.uncompared.append(Uncompared(f"{level}: {shown(claim.title)}", why))


def _by_chance(old: OutcomeRecord, new: OutcomeRecord) -> bool:
    """Whether a neighbour was slowed down about as much in both runs, on whichever side of noisy."""
    if old.times is None or new.times is None:
        return False
    return max(old.times, new.times) <= (1 + FEW_TOLERANCE) * min(old.times, new.times)


def _figures(made: Comparison, level: str) -> None:
    surface = {quantity.name for run in (made.old, made.new) for quantity in digest.taken(run, "surface")}
    for quantity in (made.old.quantities | made.new.quantities).values():
        title = shown(digest.title(made.new if quantity.name in made.new.quantities else made.old, quantity))
        old, new = made.old.figure(level, quantity.name), made.new.figure(level, quantity.name)
        if old is None or new is None:
            if old is not None or new is not None:
                why = f"only the {'old' if old else 'new'} run has it"
                made.uncompared.append(Uncompared(f"{level}: {title}", why))
            continue
        before = made.old.quantities[quantity.name]
        if old.detail != new.detail or before.unit != quantity.unit:
            sides = [shown(f"{one.detail} {unit}".strip()) for one, unit in ((old, before.unit), (new, quantity.unit))]
            made.uncompared.append(Uncompared(f"{level}: {title}", f"variants differ: {sides[0]}, {sides[1]}"))
            continue
        exact = quantity.name in surface and _steady(old) and _steady(new)
        if min(old.n, new.n) < FEWEST and not exact:
            made.uncompared.append(Uncompared(f"{level}: {title}", f"fewer than {FEWEST} values in one of the runs"))
            continue
        if agrees(old, new, exact):
            made.agreed += 1
        elif quantity.name.endswith(".p99") and min(old.coverage, new.coverage) < statistics.CONFIDENCE:
            made.uncompared.append(Uncompared(f"{level}: {title}", "a 99th percentile of few rounds differs"))
        else:
            made.changes.append(_shift(level, quantity, title, old, new, exact))


def _steady(figure: Figure) -> bool:
    return figure.low == figure.high == figure.median


def agrees(old: Figure, new: Figure, exact: bool = False) -> bool:
    """Whether two figures are the same, by the rules above; ``exact``: they are counts that never varied."""
    if old.median == new.median:
        return True
    if exact and max(old.median, new.median) <= EXACT_UP_TO:
        return False
    if old.low <= new.high and new.low <= old.high:
        return True
    few = min(old.coverage, new.coverage) < statistics.CONFIDENCE
    tolerance = FEW_TOLERANCE if few else TOLERANCE
    return abs(new.median - old.median) <= tolerance * min(abs(old.median), abs(new.median))


def _shift(level: str, quantity: Quantity, title: str, old: Figure, new: Figure, exact: bool) -> Shift:
    direction: Direction = "differs"
    if quantity.better != "neither":
        direction = "worse" if (new.median > old.median) == (quantity.better == "lower") else "better"
    ratio = new.median / old.median if old.median else math.inf
    return Shift(level, quantity, title, old, new, direction, ratio, exact)


def _failures(made: Comparison, level: str) -> None:
    for name, measure in (made.old.measures | made.new.measures).items():
        before, after = (results.failed.get((level, name)) for results in (made.old, made.new))
        if after and not before and _has(made.old, level, name):
            made.changes.append(Failure(level, measure.title, after, "worse"))
        elif before and not after and _has(made.new, level, name):
            made.changes.append(Failure(level, measure.title, before, "better"))


def _has(results: Results, level: str, measure: str) -> bool:
    """Whether a measure found anything at a level."""
    samples = any(
        record.measure == measure for (at, _), records in results.samples.items() if at == level for record in records
    )
    return samples or any(record.measure == measure for (at, _), record in results.outcomes.items() if at == level)


def _controls(made: Comparison) -> None:
    """An attack that does nothing even where there is no defence shows nothing, in whichever run that is."""
    for word, results, other in (("old", made.old, made.new), ("new", made.new, made.old)):
        for claim in results.claims.values():
            here, there = results.outcome(OPENED, claim.name), other.outcome(OPENED, claim.name)
            if here and there and here.verdict == "held" != there.verdict:
                why = f"in the {word} run the attack fails without any defence"
                made.uncompared.append(Uncompared(f"control: {shown(claim.title)}", why))


def _run(results: Results) -> str:
    said = f"{digest.moment(results.started)}, {results.mode}: {digest.host(results)}"
    return f"{results.path}: {shown(said).replace(chr(0xA0), ' ')}{'' if results.complete else ' (interrupted)'}"


def _by_reason(found: list[Uncompared]) -> list[str]:
    """Each reason with what it is about, or, where that is much, with how much it is."""
    reasons: dict[str, list[Uncompared]] = {}
    for one in found:
        reasons.setdefault(one.why, []).append(one)
    return [
        line
        for why, those in reasons.items()
        for line in (map(str, those) if len(those) <= 3 else [f"{len(those)} figures and outcomes: {why}"])
    ]


def _few(lines: Iterable[str]) -> list[str]:
    found = [f"  {line}" if len(line) <= LETTERS else f"  {line[:LETTERS]}…" for line in lines]
    return found if len(found) <= LINES else [*found[:LINES], f"  and {len(found) - LINES} more"]
