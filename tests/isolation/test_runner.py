"""The order, the rounds and the records of a run, with levels and measures made for the test."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pycontain.isolation import facts, progress, results, runner
from pycontain.isolation.model import Claim, Ended, Job, Level, Measure, Outcome, Quantity, Sample, Tenant
from pycontain.isolation.world import World
from pycontain.runtime.errors import NotFound, PycontainError, Unsupported

WORLD: Any = None  # none of these measures looks at it
FACTS: dict[str, Any] = {
    "cpu": "a cpu", "cpus": 2, "memory": 1, "kernel": "6.1", "mitigations": {}, "cgroups": "v2", "accelerator": None,
    "versions": {"runc": "1.1"},
}  # fmt: skip
START = Quantity("start", "start", "ms", "a start")
FILE = Claim("file", "a file", "opens it", "files")


@dataclasses.dataclass
class Place:
    """A level that runs nothing."""

    name: str
    title: str = "a level"
    about: str = "of a test"
    why: str | None = None
    jobs: list[Job] = dataclasses.field(default_factory=list)

    def missing(self, world: World) -> str | None:
        return self.why

    def run(self, world: World, job: Job, timeout: float = 60.0) -> Ended:
        self.jobs.append(job)
        return Ended(0, b"", b"", None, 1.0)

    def start(self, world: World, job: Job) -> Tenant:
        raise AssertionError


class Clock:
    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


class Quiet:
    """``steps``: (part, text) of each step."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, str]] = []
        self.lines: list[str] = []

    def step(self, done: float, text: str) -> None:
        self.steps.append((done, text))

    def say(self, line: str) -> None:
        self.lines.append(line)

    def close(self) -> None:
        pass


Take = Callable[[World, Level], Iterable["Sample | Outcome"]]


def measure(name: str, take: Take, group: Any = "cost", **more: Any) -> Measure:
    return Measure(name, group, name, take, **{"quantities": (START,), "claims": (FILE,), **more})


class Bench:
    """A run of ``measures`` at ``levels`` into a file of ``directory``, by a clock that stands but where it is moved."""

    def __init__(self, directory: Path, levels: Sequence[Level], measures: Sequence[Measure], budget: float = 1e9) -> None:
        self.path = os.fspath(directory / "r.jsonl")
        self.clock = Clock()
        self.progress = Quiet()
        self.levels, self.measures, self.budget = levels, measures, budget

    def run(self, resume: bool = False, seed: int = 1) -> results.Results:
        writer = results.Writer(self.path, resume)
        if resume:
            found = results.load(self.path)
        else:
            first = runner.opening(runner.Options(seed=seed), FACTS, [(level, None) for level in self.levels], self.measures)
            found = results.begin(self.path, first)
            writer.write(first)
        control = next((level for level in self.levels if level.name == "container"), None)
        try:
            runner.Run(WORLD, self.levels, self.measures, found, writer, self.progress, self.budget, control, self.clock).go()
        finally:
            writer.close()
        assert found == results.load(self.path)  # what the run knows is what it wrote
        return found


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        (100, (36, 72)),  # all that is wanted fits
        (50, (36, 50)),
        (20, (20, 20)),  # the least number of rounds does not
        (5, (12, 12)),  # the first round is taken all the same
    ],
)
def test_no_run_is_expected_to_last_longer_than_its_budget_but_for_its_first_round(budget: float, told: tuple[float, float]) -> None:
    asked = [measure("a", giving(), rounds=(3, 6), seconds=1)]
    assert runner.estimate([Place("container"), Place("chroot"), Place("vm-tcg")], asked, budget) == told


def giving(*values: float) -> Take:
    """A taking that yields one value after the other, one a call, of the quantity "start"."""
    left = iter(values)
    return lambda world, level: [Sample("start", (next(left),))]


@pytest.mark.parametrize(
    ("values", "rounds", "taken"),
    [
        ((10, 10.1, 10.2, 10.1, 10, 10.2, 99), (2, 7), 6),  # narrow, as soon as six values make it 95 %
        (tuple(range(1, 10)), (2, 8), 8),  # never narrow: the greatest number
        ((3, 3, 99), (2, 9), 2),  # a count
        ((3, 3, 3, 3, 99), (4, 9), 4),  # at least four
    ],
)
def test_rounds_go_on_until_figures_are_narrow(tmp_path: Path, values: tuple[float, ...], rounds: tuple[int, int], taken: int) -> None:
    found = Bench(tmp_path, [Place("process")], [measure("m", giving(*values), rounds=rounds)]).run()
    assert found.rounds == {("process", "m"): taken}
    assert [record.round for record in found.samples["process", "start"]] == list(range(1, taken + 1))
    assert (found.complete, found.failed) == (True, {})


def test_the_budget_ends_rounds_but_never_the_first(tmp_path: Path) -> None:
    def take(world: World, level: Level) -> Iterator[Sample]:
        bench.clock.at += 10
        yield Sample("start", (bench.clock.at,))

    bench = Bench(tmp_path, [Place("a"), Place("b")], [measure("m", take, rounds=(3, 9)), measure("n", take, rounds=(3, 9))], 65)
    found = bench.run()
    assert sorted(found.rounds.values()) == [1, 1, 2, 2]  # six takings of 10 s; a seventh would end after 65
    assert (found.seconds, found.complete) == (60, True)
    parts = [part for part, _ in bench.progress.steps]
    assert parts == sorted(parts) and parts[0] == 0 and 0.7 < parts[-1] < 1
    (tmp_path / "none").mkdir()
    bench = Bench(tmp_path / "none", [Place("a"), Place("b")], [measure("m", take, rounds=(3, 9))], 0)
    assert list(bench.run().rounds.values()) == [1, 1]


def test_a_slow_level_is_measured_less_often_and_the_others_not_less_for_it(tmp_path: Path) -> None:
    def take(world: World, level: Level) -> Iterator[Sample]:
        bench.clock.at += {"slow": 100, "quick": 1, "steady": 2}[level.name]
        yield Sample("start", (5 if level.name == "steady" else 1 + bench.clock.at % 10,))

    bench = Bench(tmp_path, [Place("slow"), Place("quick"), Place("steady")], [measure("m", take, rounds=(3, 20))], 150)
    found = bench.run()
    assert {level: rounds for (level, _), rounds in found.rounds.items()} == {"slow": 1, "quick": 20, "steady": 3}
    assert found.seconds == 126


def test_the_order_is_random_interleaved_and_the_seeds_own(tmp_path: Path) -> None:
    def order(name: str, seed: int) -> list[tuple[str, str]]:
        (tmp_path / name).mkdir()
        seen: list[tuple[str, str]] = []

        def note(name: str) -> Take:
            return lambda world, level: [seen.append((name, level.name)) or Sample("start", (len(seen),))]  # type: ignore[func-returns-value]

        measures = [measure(name, note(name), rounds=(2, 2)) for name in "mno"]
        Bench(tmp_path / name, [Place(name) for name in "abcd"], measures).run(seed=seed)
        return seen

    first = order("first", 1)
    assert first == order("again", 1) != order("other", 2)
    assert len(first) == 24
    blocks = [first[place : place + 4] for place in range(0, 24, 4)]
    for block in blocks:  # each measure at all levels, one beside the other
        assert len({name for name, _ in block}) == 1 and {level for _, level in block} == set("abcd")
    assert {block[0][0] for block in blocks[:3]} == set("mno") == {block[0][0] for block in blocks[3:]}
    assert len({tuple(level for _, level in block) for block in blocks}) > 1


def test_what_fails_is_recorded_and_ends_nothing(tmp_path: Path) -> None:
    def broken(world: World, level: Level) -> Iterator[Sample | Outcome]:
        yield Outcome("file", "held", "stays")
        yield Sample("start", (1,))
        raise PycontainError("it broke\nin two lines")

    def bug(world: World, level: Level) -> Iterator[Sample]:
        raise ValueError("what")
        yield

    def absent(world: World, level: Level) -> list[Sample]:
        raise Unsupported("no such verb")

    wrong = [[Sample("other", (1,))], [Sample("start", ())], [Sample("start", (float("nan"),))], ["text"]]
    wrongs = [measure(f"wrong{number}", lambda world, level, items=items: items) for number, items in enumerate(wrong)]
    measures = [measure("broken", broken), measure("bug", bug), measure("absent", absent), measure("good", giving(1)), *wrongs]
    bench = Bench(tmp_path, [Place("a")], measures)
    found = bench.run()
    assert found.complete and list(found.samples) == [("a", "start")] and len(found.samples["a", "start"]) == 1
    assert found.absent == {("a", "absent"): "no such verb"}
    assert found.rounds == {("a", "good"): 1}
    outcome = found.outcome("a", "file")
    assert outcome is not None and outcome.detail == "stays"
    failed = {name: why for (_, name), why in found.failed.items()}
    assert failed["broken"] == "it broke in two lines"
    assert failed["bug"].startswith("this is a bug: ValueError: what (test_runner.py:")
    assert [failed[f"wrong{number}"].partition(": ")[2] for number in range(4)] == [
        "$.quantity: found 'other', which line 1 does not have",
        "$.values: found an empty list, wanted 1 or more",
        "$.values[0]: found nan, wanted a finite number",
        "",
    ]
    assert failed["wrong3"] == "the measure wrong3 yielded a str"
    assert f"failed: bug at a: {failed['bug']}" in bench.progress.lines


def test_outcomes_have_a_control_in_a_container_that_is_opened(tmp_path: Path) -> None:
    def take(world: World, level: Level) -> list[Outcome]:
        level.run(world, Job(("/probe",)))
        return [Outcome("file", "leaked" if level.name in ("opened", "process") else "held", "")]

    process, container = Place("process"), Place("container")
    found = Bench(tmp_path, [process, container], [measure("files", take, "outcome"), measure("m", giving(1, 2))]).run()
    assert {level: record.verdict for (level, _), record in found.outcomes.items()} == {
        "process": "leaked", "container": "held", "opened": "leaked",
    }  # fmt: skip
    assert sorted(job.opened for job in container.jobs) == [False, True] and len(process.jobs) == 1
    assert {level for level, _ in found.samples} == {"process", "container"}


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    calls: list[str] = []

    def take(world: World, level: Level) -> list[Sample]:
        calls.append(level.name)
        bench.clock.at += 1
        if len(calls) == 3:
            raise KeyboardInterrupt
        if len(calls) == 2:
            raise PycontainError("once")
        return [Sample("start", (len(calls),))]

    bench = Bench(tmp_path, [Place(name) for name in "abc"], [measure("m", take, rounds=(2, 2))])
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    found = results.load(bench.path)
    assert (found.complete, len(found.rounds), len(found.failed), found.seconds) == (False, 1, 1, 3)
    calls += [""] * 10
    found = bench.run(resume=True)
    assert len(calls) == 3 + 10 + 5  # one was taken in the first round: what failed or was interrupted is taken again
    assert (found.complete, found.failed, set(found.rounds.values()), found.seconds) == (True, {}, {2}, 8)
    with open(bench.path, "a") as file:
        file.write('{"kind":"sam')
    assert bench.run(resume=True).complete and len(calls) == 18


LEVELS = [Place("process"), Place("container"), Place("runc")]
MEASURES = [measure("cost.start", giving()), measure("cost.cpu", giving(), quick=False), measure("files", giving(), "outcome")]


@pytest.mark.parametrize(
    ("options", "levels", "measures"),
    [
        ({}, "process container runc", "cost.start files"),
        ({"mode": "full"}, "process container runc", "cost.start cost.cpu files"),
        ({"only": ("runc",)}, "runc", "cost.start files"),
        ({"only": ("runc", "cost"), "levels": ("process",)}, "process runc", "cost.start"),
        ({"only": ("cost.cpu", "outcome")}, "process container runc", "cost.cpu files"),
    ],
)
def test_what_a_run_is_of(options: dict[str, Any], levels: str, measures: str) -> None:
    chosen, taken = runner.select(runner.Options(**options), LEVELS, MEASURES)
    assert " ".join(level.name for level in chosen) == levels
    assert " ".join(measure.name for measure in taken) == measures


def test_names_that_are_not_there_and_definitions_that_differ() -> None:
    with pytest.raises(NotFound, match='there is no level "run"') as caught:
        runner.select(runner.Options(levels=("run",)), LEVELS, MEASURES)
    assert caught.value.hint == "pycontain isolation run --level runc"
    with pytest.raises(NotFound, match='there is no level, measure or group "cots"') as caught:
        runner.select(runner.Options(only=("cots",)), LEVELS, MEASURES)
    assert caught.value.hint == "pycontain isolation run --only cost"
    with pytest.raises(NotFound, match="no measure of interference is part of --quick"):
        runner.select(runner.Options(only=("interference",)), LEVELS, MEASURES)
    other = measure("other", giving(), quantities=(dataclasses.replace(START, unit="s"),))
    with pytest.raises(PycontainError, match='measure other defines "start" otherwise'):
        runner.opening(runner.Options(), FACTS, [], [MEASURES[0], other])


def test_facts_are_a_record_and_tell_what_changed(tmp_path: Path) -> None:
    now = facts.collect()
    first = runner.opening(runner.Options(), now, [(level, None) for level in LEVELS], MEASURES)
    assert results.begin("r", first).facts["kernel"] == os.uname().release
    assert facts.changed(now, facts.collect()) == []
    then = {**now, "load": 99.0, "kernel": "5.4", "versions": {**now["versions"], "python": "3.9.1"}}
    assert [line.partition(" then")[0] for line in facts.changed(then, now)] == ["kernel: 5.4", "versions of python: 3.9.1"]
    (tmp_path / "program").write_text("#!/bin/sh\necho program version: 1.2, x\n")
    (tmp_path / "program").chmod(0o755)
    assert facts.version(os.fspath(tmp_path / "program")) == "1.2"
    assert facts.version("no-such-program") is None


def test_progress_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    shown = progress.make()
    shown.step(0.25, "start: a container")
    shown.step(0.5, "not shown, so soon after")
    shown.say("failed: m at a: why")
    shown.close()
    assert capsys.readouterr().err == "   0:00  25 % start: a container\nfailed: m at a: why\n"
    bar = progress.Bar()
    bar.step(0.5, "start: a [bold]container")
    bar.say("failed: [red]m")
    bar.close()
    told = capsys.readouterr().err
    assert "failed: [red]m\n" in told and "50 %" in told and "start: a [bold]container" in told
    assert (progress.clock(125), progress.clock(3723)) == ("2:05", "1:02:03")
