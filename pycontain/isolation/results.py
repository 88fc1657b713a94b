"""What a run wrote, as JSON lines, and the figures that are made of it.

One record a line, whole or not there: a run that is killed loses the line that it was writing at most. The kinds of
records and their fields: `pycontain.isolation.schema`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pycontain.isolation import schema, statistics
from pycontain.isolation.model import Claim, Group, Quantity, Verdict
from pycontain.runtime.errors import KernelError, NotFound, PycontainError

OPENED = "opened"  # the level of control runs; not one of those that are compared


@dataclass(frozen=True, slots=True)
class LevelInfo:
    """``missing``: why this host could not run it; None where it could."""

    name: str
    title: str
    about: str
    missing: str | None


@dataclass(frozen=True, slots=True)
class MeasureInfo:
    name: str
    group: Group
    title: str


@dataclass(frozen=True, slots=True)
class SampleRecord:
    """Repetitions of a quantity at a level, of one round; ``at``: seconds since the run began."""

    level: str
    measure: str
    quantity: str
    round: int
    values: tuple[float, ...]
    detail: str
    at: float


@dataclass(frozen=True, slots=True)
class OutcomeRecord:
    level: str
    measure: str
    claim: str
    verdict: Verdict
    detail: str
    times: float | None
    at: float


@dataclass(frozen=True, slots=True)
class Figure:
    """A quantity at a level, in its unit: the median and its interval (`statistics.interval`), made of ``values``.

    ``values`` are the medians of the rounds, where there were several (repetitions of one round share what one start
    left to chance); of a single round, its repetitions, whose ``coverage`` is 0: they tell nothing of other rounds, and
    are ``narrow`` only where all are the same. ``points`` are all repetitions of all rounds. ``detail``: the
    variant of the workload, "" where it has none.
    """

    median: float
    low: float
    high: float
    n: int
    coverage: float
    narrow: bool
    values: tuple[float, ...]
    points: tuple[float, ...]
    rounds: int
    detail: str


@dataclass(slots=True)
class Results:
    """A run, validated. ``samples`` by (level, quantity), ``outcomes`` by (level, claim), ``absent`` (the level cannot
    have it) and ``failed`` (with the reason) by (level, measure); control runs are at the level OPENED. ``rounds``:
    how often a (level, measure) was taken; ``costs``: how many seconds that lasted in sum. ``seconds``: how long the
    run lasted. ``complete``: it was not interrupted. ``torn``: its last line was not whole, and is not in here."""

    path: str
    id: str
    started: str
    mode: str
    seed: int
    facts: dict[str, Any]
    levels: dict[str, LevelInfo]
    measures: dict[str, MeasureInfo]
    quantities: dict[str, Quantity]
    claims: dict[str, Claim]
    samples: dict[tuple[str, str], list[SampleRecord]] = field(default_factory=dict)
    outcomes: dict[tuple[str, str], OutcomeRecord] = field(default_factory=dict)
    absent: dict[tuple[str, str], str] = field(default_factory=dict)
    failed: dict[tuple[str, str], str] = field(default_factory=dict)
    rounds: dict[tuple[str, str], int] = field(default_factory=dict)
    costs: dict[tuple[str, str], float] = field(default_factory=dict)
    seconds: float = 0.0
    complete: bool = False
    torn: bool = False

    def figure(self, level: str, quantity: str) -> Figure | None:
        """The figure of a quantity at a level; None where there is none. Of several variants, the one taken most."""
        records = self.samples.get((level, quantity), [])
        if not records:
            return None
        detail = Counter(record.detail for record in records).most_common(1)[0][0]
        by_round: dict[int, list[float]] = {}
        for record in records:
            if record.detail == detail:
                by_round.setdefault(record.round, []).extend(record.values)
        points = tuple(value for values in by_round.values() for value in values)
        values = points if len(by_round) == 1 else tuple(statistics.median(values) for values in by_round.values())
        found = statistics.interval(values)
        several = len(by_round) > 1
        return Figure(
            found.median,
            found.low,
            found.high,
            found.n,
            found.coverage if several else 0.0,
            found.narrow and (several or found.low == found.high),
            values,
            points,
            len(by_round),
            detail,
        )

    def present(self) -> list[LevelInfo]:
        """The levels that this host could run, in their order."""
        return [level for level in self.levels.values() if level.missing is None]

    def outcome(self, level: str, claim: str) -> OutcomeRecord | None:
        return self.outcomes.get((level, claim))

    def measure_of(self, quantity_or_claim: str) -> str | None:
        """The measure that found a quantity or claim at some level; None where none did."""
        for (_, quantity), records in self.samples.items():
            if quantity == quantity_or_claim:
                return records[0].measure
        for (_, claim), record in self.outcomes.items():
            if claim == quantity_or_claim:
                return record.measure
        return None

    def add(self, record: dict[str, Any]) -> str | None:
        """Take in a record that follows the first; what is wrong with it, or None."""
        problem = self.wrong(record)
        if problem:
            return problem
        kind = record["kind"]
        values = {name: value for name, value in record.items() if name != "kind"}
        pair = (record.get("level", ""), record.get("measure", ""))
        self.complete = False
        self.seconds = max(self.seconds, record.get("at", 0.0))
        if kind == "sample":
            values["values"] = tuple(values["values"])
            self.samples.setdefault((record["level"], record["quantity"]), []).append(SampleRecord(**values))
        elif kind == "outcome":
            self.outcomes[record["level"], record["claim"]] = OutcomeRecord(**values)
        elif kind == "taken":
            self.failed.pop(pair, None)  # it failed before, and the run was resumed
            self.rounds[pair] = max(record["round"], self.rounds.get(pair, 0))
            self.costs[pair] = self.costs.get(pair, 0.0) + record["seconds"]
        elif kind in ("absent", "failed"):
            (self.absent if kind == "absent" else self.failed)[pair] = record["why"]
        else:
            self.seconds, self.complete = float(record["seconds"]), record["complete"]
        return None

    def wrong(self, record: dict[str, Any]) -> str | None:
        """What is wrong with a record that is to follow; None if nothing is."""
        kind = record.get("kind")
        if not isinstance(kind, str) or kind not in schema.RECORDS or kind == "run":
            kinds = ", ".join(name for name in schema.RECORDS if name != "run")
            return f"$.kind: found {kind!r}, wanted one of {kinds}"
        problem = schema.wrong(record, schema.RECORDS[kind])
        if problem or kind == "end":
            return problem
        if record["level"] != OPENED and record["level"] not in self.levels:
            return f"$.level: found {record['level']!r}, which line 1 does not have"
        known: dict[str, dict[str, Any]] = {
            "measure": self.measures,
            "quantity": self.quantities,
            "claim": self.claims,
        }
        for name, table in known.items():
            if name in record and record[name] not in table:
                return f"$.{name}: found {record[name]!r}, which line 1 does not have"
        return None


def begin(path: str, record: dict[str, Any]) -> Results:
    """The results that a run's first record begins. Raises PycontainError where it is not one."""
    problem = schema.wrong(record, schema.RECORDS["run"])
    if problem:
        raise PycontainError(_complaint(path, 1, problem))
    return Results(
        path,
        record["id"],
        record["started"],
        record["mode"],
        record["seed"],
        record["facts"],
        {level["name"]: LevelInfo(**level) for level in record["levels"]},
        {measure["name"]: MeasureInfo(**measure) for measure in record["measures"]},
        {quantity["name"]: Quantity(**quantity) for quantity in record["quantities"]},
        {claim["name"]: Claim(**claim) for claim in record["claims"]},
    )


def load(path: str) -> Results:
    """Read and check a results file.

    Raises NotFound where there is none, PycontainError (file, line, JSON path, found and wanted) where it is not one.
    A last line without its end is what a killed run was writing: it is left out, and ``torn`` is set.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise NotFound(f"there are no results at {path}", hint="pycontain isolation run --quick") from None
    except OSError as error:
        raise KernelError(f"cannot read results from {path}", error.errno or 0) from None
    whole, _, torn = data.rpartition(b"\n")
    lines = whole.split(b"\n") if whole else []
    if not lines:
        raise PycontainError(f"{path} is empty: wanted the record of a run in line 1")
    results = None
    for number, line in enumerate(lines, 1):
        record = _record(path, number, line)
        if results is None:
            if record.get("kind") != "run":
                raise PycontainError(_complaint(path, number, f"$.kind: found {record.get('kind')!r}, wanted 'run'"))
            results = begin(path, record)
            continue
        problem = results.add(record)
        if problem:
            raise PycontainError(_complaint(path, number, problem))
    assert results is not None
    results.torn = bool(torn)
    return results


def _record(path: str, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PycontainError(_complaint(path, number, f"is not JSON: {str(error).lower()}")) from None
    if not isinstance(value, dict):
        raise PycontainError(_complaint(path, number, f"$: found {type(value).__name__}, wanted object"))
    return value


def _complaint(path: str, number: int, problem: str) -> str:
    return f"cannot take {path} as results: line {number}: {problem}"


class Writer:
    """Appends to a results file. What a call writes is in the file, in whole lines, when it returns."""

    def __init__(self, path: str, resume: bool = False) -> None:
        """Make the file, or go on in one, without its torn last line. Raises PycontainError where it cannot be made."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | (0 if resume else os.O_CREAT | os.O_EXCL)
        try:
            self._file = os.open(path, flags, 0o644)
        except FileExistsError:
            raise PycontainError(
                f"cannot write results to {path}: it is there already",
                hint=f"pycontain isolation run --resume {path}",
            ) from None
        except OSError as error:
            raise KernelError(f"cannot write results to {path}", error.errno or 0) from None
        self.path = path
        if resume:
            size = os.fstat(self._file).st_size
            data = os.pread(self._file, size, 0)
            os.ftruncate(self._file, data.rfind(b"\n") + 1)

    def write(self, *records: dict[str, Any]) -> None:
        """Append records, one line each. Raises KernelError; none of them is in the file then."""
        size = os.fstat(self._file).st_size
        data = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records).encode()
        while data:
            try:
                data = data[os.write(self._file, data) :]
            except OSError as error:
                os.ftruncate(self._file, size)
                raise KernelError(f"cannot write results to {self.path}", error.errno or 0) from None

    def close(self) -> None:
        """A file that nothing was written to is removed."""
        if os.fstat(self._file).st_size == 0:
            os.unlink(self.path)
        os.close(self._file)
