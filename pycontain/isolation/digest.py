"""What a report says first, made of results: each level in a line, leaks in groups, the figures that come first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pycontain.isolation import statistics, units
from pycontain.isolation.model import Claim, Group, Quantity, Verdict
from pycontain.isolation.results import OPENED, Figure, LevelInfo, Results

VERDICTS: tuple[Verdict, ...] = ("held", "leaked", "noisy")
GROUPS: tuple[tuple[Group, str], ...] = (("surface", "Surface"), ("cost", "Cost"), ("interference", "Interference"))
# The figures that a summary has room for: its head, and the quantities of which the first one that was taken is it.
HEADLINES = (
    ("Calls allowed", ("surface.syscalls.allowed",)),
    ("Start", ("start.first",)),
    ("Memory, idle", ("idle.pss",)),
)
# What a scatter has on its x axis.
PRICES = (("Start", ("start.first",)), ("System call", ("syscall.getpid",)))
# What a summary without plots has room for, besides: names, or how they begin.
MAIN = (
    "surface.syscalls",
    "surface.host_syscalls.distinct",
    "surface.capabilities.effective",
    "start.",
    "exec.first",
    "idle.",
    "syscall.getpid",
    "syscall.open",
    "syscall.fork",
    "work.",
)
_NUMBER = re.compile(r"\d[\d.]*")


@dataclass(frozen=True, slots=True)
class Sum:
    """A level in one line: how many claims it held, leaked and was noisy about, how many were not tried, and the
    figures of `headlines`."""

    level: LevelInfo
    held: int
    leaked: int
    noisy: int
    untried: int
    figures: tuple[Figure | None, ...]

    @property
    def tried(self) -> int:
        return self.held + self.leaked + self.noisy

    @property
    def comparable(self) -> bool:
        """Whether enough claims were tried for their share to be set beside that of another level: four fifths."""
        return self.tried > 0 and self.tried >= 4 * self.untried


@dataclass(slots=True)
class Finding:
    """A claim that some levels did not hold, and what was seen there: each detail with its levels. ``alike``: the
    details of which only the numbers differ, at the other levels that are listed with them."""

    claim: Claim
    details: dict[str, list[LevelInfo]] = field(default_factory=dict)
    alike: set[str] = field(default_factory=set)

    def add(self, detail: str, level: LevelInfo, exactly: bool) -> None:
        """Another level; unless ``exactly``, with a detail that is there but for its numbers."""
        shape = _NUMBER.sub("0", detail)
        near = next((known for known in self.details if _NUMBER.sub("0", known) == shape), detail)
        if not exactly and near != detail:
            self.alike.add(near)
            detail = near
        self.details.setdefault(detail, []).append(level)


def first_taken(results: Results, names: Iterable[str]) -> Quantity | None:
    """The first of the quantities that this run has a sample of."""
    taken = {quantity for level, quantity in results.samples if level != OPENED}
    return next((results.quantities[name] for name in names if name in taken and name in results.quantities), None)


def headlines(results: Results) -> list[tuple[str, Quantity]]:
    """The figures of a summary: their heads and quantities, those that were taken."""
    found = [(title, first_taken(results, names)) for title, names in HEADLINES]
    return [(title, quantity) for title, quantity in found if quantity is not None]


def sums(results: Results) -> list[Sum]:
    """A line for each level that could be run. Claims that are `unproven` are not counted."""
    counted = {claim for _, claim in results.outcomes} - unproven(results)
    quantities = [quantity for _, quantity in headlines(results)]
    made = []
    for level in results.present():
        records = (results.outcome(level.name, claim) for claim in counted)
        verdicts = [record.verdict for record in records if record is not None]
        held, leaked, noisy = (verdicts.count(verdict) for verdict in VERDICTS)
        figures = tuple(results.figure(level.name, quantity.name) for quantity in quantities)
        made.append(Sum(level, held, leaked, noisy, len(counted) - len(verdicts), figures))
    return made


def unproven(results: Results) -> set[str]:
    """The claims that nothing was seen to break: they hold at every level, and even without any defence. Their attack
    does not work on this host, and says nothing."""
    broken = {claim for (_, claim), record in results.outcomes.items() if record.verdict != "held"}
    return {claim for level, claim in results.outcomes if level == OPENED} - broken


def kinds(results: Results) -> dict[str, list[Claim]]:
    """The claims by their kind, those for which there is an outcome anywhere."""
    tried = {claim for _, claim in results.outcomes}
    made: dict[str, list[Claim]] = {}
    for claim in results.claims.values():
        if claim.name in tried:
            made.setdefault(claim.kind, []).append(claim)
    return made


def findings(results: Results, verdict: str) -> list[tuple[list[LevelInfo], list[Finding]]]:
    """Everything that leaked or was noisy, by the levels at which it did. Those first that the levels at the end of
    the list did not hold."""
    levels = results.present()
    made: dict[tuple[int, ...], list[Finding]] = {}
    for claim in (claim for claims in kinds(results).values() for claim in claims):
        found, where = Finding(claim), []
        for place, level in enumerate(levels):
            record = results.outcome(level.name, claim.name)
            if record is not None and record.verdict == verdict:
                found.add(record.detail, level, exactly=verdict == "noisy")
                where.append(place)
        if where:
            made.setdefault(tuple(where), []).append(found)
    order = sorted(made, key=lambda where: where[::-1], reverse=True)
    return [([levels[place] for place in where], made[where]) for where in order]


def taken(results: Results, group: Group) -> list[Quantity]:
    """The quantities of a group of which there is a sample at a level, in their order."""
    names = {
        quantity
        for (level, quantity), records in results.samples.items()
        if level != OPENED and results.measures[records[0].measure].group == group
    }
    return [quantity for name, quantity in results.quantities.items() if name in names]


def main_figures(results: Results) -> list[Quantity]:
    """The quantities of MAIN that were taken, in their order."""
    groups = [taken(results, group) for group, _ in GROUPS]
    return [quantity for found in groups for quantity in found if quantity.name.startswith(MAIN)]


def title(results: Results, quantity: Quantity) -> str:
    """The title of a quantity, with its name where another one has the same title."""
    same = sum(other.title == quantity.title for other in results.quantities.values())
    return quantity.title if same == 1 else f"{quantity.title} ({quantity.name})"


def why_not(results: Results, level: str, quantity: str) -> str:
    """Why a level has no figure of a quantity, as far as it is known: ``absent`` or ``failed``, with the reason."""
    measure = results.measure_of(quantity) or ""
    for word, table in (("failed", results.failed), ("absent", results.absent)):
        if (level, measure) in table:
            return f"{word}: {table[level, measure]}"
    return "not taken"


def measures_of(results: Results, claim: str) -> list[str]:
    """The measures that have an outcome of a claim at some level."""
    return sorted({record.measure for (_, name), record in results.outcomes.items() if name == claim})


def cell(results: Results, level: str, claim: str, measures: Sequence[str]) -> tuple[str, str]:
    """What a cell of the matrix holds, and its detail: a verdict; ``failed``, ``absent`` or ``none`` and why."""
    record = results.outcome(level, claim)
    if record is not None:
        return record.verdict, record.detail
    for word, reasons in (("failed", results.failed), ("absent", results.absent)):
        for measure in measures:
            if (level, measure) in reasons:
                return word, reasons[level, measure]
    return "none", "not tried"


# A victim's latency beside a hog: all of a quantity's name but its last word says which, and that the percentile.
_PERCENTILE = re.compile(r"(.+)\.(p50|p99)$")


def disturbances(results: Results) -> dict[str, tuple[str, str]]:
    """Of each hog the quantities of a victim's p50 and p99 beside it, as ratios; only hogs of which both were taken."""
    parts: dict[str, dict[str, str]] = {}
    for quantity in taken(results, "interference"):
        found = _PERCENTILE.match(quantity.name)
        if found and quantity.unit in {"x", "×"}:
            parts.setdefault(found[1].rpartition(".")[2], {})[found[2]] = quantity.name
    return {hog: (names["p50"], names["p99"]) for hog, names in parts.items() if len(names) == 2}


def lead(results: Results) -> str:
    """What a person wants to know first, in two sentences."""
    found = [one for one in sums(results) if one.comparable]
    said = []
    if found:
        rates = [one.held / one.tried for one in found]
        parts = []
        for rate in dict.fromkeys((max(rates), min(rates))):
            these = [one for one, its in zip(found, rates, strict=True) if its == rate]
            names = _listed([one.level.title for one in these])
            parts.append(f"{names} held {these[0].held} of {these[0].tried}")
        said.append(f"Of the claims, {', '.join(parts)}.")
    quantity = first_taken(results, ("start.first",))
    if quantity is not None:
        times = {
            one.title: figure.median for one in results.present() if (figure := results.figure(one.name, quantity.name))
        }
        ends = (best(times, key=lambda title: times[title]) for best in (min, max))
        parts = [f"{units.text(times[title], quantity.unit)} ({title})" for title in ends]
        said.append(f"A start took from {' to '.join(parts)}.")
    return " ".join(said) or "No claim was tried in this run, and no start timed."


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def conditions(quantity: Quantity) -> list[str]:
    """The clock, the cache and the denominator of a quantity, those that it has."""
    parts = (("clock", quantity.clock), ("cache", quantity.cache), ("divided by", quantity.denominator))
    return [f"{name}: {said}" for name, said in parts if said]


def duration(seconds: float) -> str:
    """``13 min 32 s``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"


def moment(started: str) -> str:
    """``26 November 2025, 22:10 UTC`` of an ISO 8601 time; the text itself where it is none."""
    try:
        when = datetime.fromisoformat(started)
    except ValueError:
        return started
    when = when.astimezone(UTC) if when.tzinfo else when
    return f"{when.day} {when:%B %Y, %H:%M}{' UTC' if when.tzinfo else ''}"


def host(results: Results) -> str:
    """The host in one line."""
    facts = results.facts
    processors = f"{facts['cpus']} processor{'s' if facts['cpus'] != 1 else ''}"
    memory = units.text(facts["memory"], "B")
    return f"{facts['cpu']}, {processors}, {memory}, Linux {facts['kernel']}, cgroups {facts['cgroups']}"


def flat_facts(facts: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Facts by name, nested ones as ``versions: runc``; bytes with their unit."""
    made: dict[str, str] = {}
    for name, value in facts.items():
        if isinstance(value, dict):
            made |= flat_facts(value, f"{prefix}{name}: ")
        elif name == "memory" and isinstance(value, int):
            made[prefix + name] = units.text(value, "B")
        elif isinstance(value, list):
            made[prefix + name] = ", ".join(map(str, value))
        elif value is None or isinstance(value, bool):
            made[prefix + name] = {None: "none", True: "yes", False: "no"}[value]
        else:
            made[prefix + name] = units.number(value) if isinstance(value, float) else str(value)
    return made


def figure_text(figure: Figure, unit: str) -> str:
    """``1.23 ms`` with its interval, if it has one: ``1.23 ms (1.20 to 1.31 ms)``."""
    said = units.text(figure.median, unit)
    return f"{said} ({span_text(figure, unit)})" if figure.n > 1 else said


def span_text(figure: Figure, unit: str) -> str:
    """The interval of a figure in the step of its median: ``1.20 to 1.31 ms``; a dash where there is but one value."""
    if figure.n < 2:
        return "–"
    name, size = units.step(figure.median, unit)
    ending = "" if units.is_counted(unit) else units.joined(name)
    return f"{units.number(figure.low / size)} to {units.number(figure.high / size)}{ending}"


def count_text(figure: Figure) -> str:
    """``7``, or ``3 (75 %)`` where so few values do not reach the 95 %."""
    sure = figure.coverage >= statistics.CONFIDENCE or figure.low == figure.high
    return str(figure.n) if sure else f"{figure.n} ({100 * figure.coverage:.0f}\u00a0%)"
