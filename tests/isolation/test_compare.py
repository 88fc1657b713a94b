"""The rules by which two runs agree, and what is said of those that do not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontain.isolation import compare, statistics
from pycontain.isolation.results import Figure, Results
from tests.isolation import results_tools

LINES = results_tools.records()
Line = dict[str, Any]


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return results_tools.written(tmp_path_factory.mktemp("before") / "run.jsonl", LINES)


def after(tmp_path: Path, change: Any) -> Results:
    return results_tools.written(tmp_path / "after.jsonl", results_tools.changed(LINES, change))


def figure(*values: float, detail: str = "") -> Figure:
    found = statistics.interval(values)
    return Figure(found.median, found.low, found.high, found.n, found.coverage, found.narrow, values, values, 1, detail)


def about(middle: float, count: int = 7, spread: float = 0.01) -> Figure:
    return figure(*(middle * (1 + spread * (index - count // 2)) for index in range(count)))


@pytest.mark.parametrize(
    ("old", "new", "exact", "same"),
    [
        (about(100), about(100), False, True),
        (about(100), about(103), False, True),  # intervals overlap
        (about(100), about(129), False, True),  # they do not, and it is less than three tenths
        (about(100), about(132), False, False),
        (about(132), about(100), False, False),
        (about(100, spread=0.05), about(125, spread=0.05), False, True),  # far, and uncertain
        (about(100, 3), about(195, 3), False, True),  # three values reach no 95 %
        (about(100, 3), about(206, 3), False, False),
        (about(100, 3), about(206), False, False),
        (figure(0, 0, 0, 0, 0, 0), figure(0, 0, 0, 0, 0, 0), False, True),
        (figure(0, 0, 0, 0, 0, 0), about(1), False, False),
        (figure(340), figure(341), True, False),
        (figure(340), figure(340), True, True),
        (figure(340), figure(341), False, True),
        (figure(13_441), figure(13_549), True, True),
        (figure(13_441), figure(27_000), True, False),
    ],
)
def test_when_figures_agree(old: Figure, new: Figure, exact: bool, same: bool) -> None:
    assert compare.agrees(old, new, exact) is same
    assert compare.agrees(new, old, exact) is same


@given(
    st.lists(st.floats(0, 1e9), min_size=1, max_size=12), st.lists(st.floats(0, 1e9), min_size=1, max_size=12), st.booleans()
)
def test_agreement_has_no_side(old: list[float], new: list[float], exact: bool) -> None:
    one, other = figure(*old), figure(*new)
    assert compare.agrees(one, other, exact) == compare.agrees(other, one, exact)
    assert compare.agrees(one, one, exact)


def test_a_run_agrees_with_itself_and_with_its_like(before: Results, tmp_path: Path) -> None:
    same = compare.compare(before, before)
    assert (same.changes, same.facts, same.uncompared) == ([], [], [])
    assert same.agreed == sum(level != "opened" for level, _ in (*before.samples, *before.outcomes))
    again = results_tools.written(tmp_path / "again.jsonl", results_tools.records(seed=8))
    found = compare.compare(before, again)
    assert found.regressions == [] and found.agreed == same.agreed
    assert f"{same.agreed} agree; 0 worse; 0 better; 0 different\n" in found.text()


def test_a_container_without_its_filter_is_caught(before: Results, tmp_path: Path) -> None:
    leaked = {"kernel.2", "devices.1"}

    def change(line: Line) -> Line:
        if line.get("level") == "container":
            if line.get("claim") in leaked:
                line |= {"verdict": "leaked", "detail": "io_uring_setup made a ring"}
            if line.get("quantity") == "surface.syscalls.allowed":
                line["values"] = [361.0]
        return line

    found = compare.compare(before, after(tmp_path, change))
    said = [str(one) for one in found.regressions]
    assert len(said) == 3 and not found.improvements
    assert all("container: " in one and "held → leaked: io_uring_setup made a ring" in one for one in said[:2])  # the worst first
    assert said[2] == "container: System calls that are allowed: 340 → 361 calls"
    text = found.text()
    assert text.index("worse (3):") < text.index("io_uring_setup") < text.index("340 → 361 calls")
    assert text.endswith(f"{found.agreed} agree; 3 worse; 0 better; 0 different\n")


@pytest.mark.parametrize(
    ("old", "new", "direction"),
    [
        ("held", "noisy", "worse"), ("held", "leaked", "worse"), ("noisy", "leaked", "worse"),
        ("noisy", "held", "better"), ("leaked", "held", "better"), ("leaked", "noisy", "better"),
        ("held", "held", None), ("noisy", "noisy", None), ("leaked", "leaked", None),
    ],
)  # fmt: skip
def test_outcomes(tmp_path: Path, old: str, new: str, direction: str | None) -> None:
    first = {**LINES[0], "quantities": []}
    runs = []
    for verdict in (old, new):
        outcome = {"kind": "outcome", "level": "runc", "measure": "attacks", "claim": "files.0", "verdict": verdict, "detail": "\x1b[31mseen" * 99, "times": None, "at": 1}
        runs.append(results_tools.written(tmp_path / f"{len(runs)}.jsonl", [first, outcome]))
    found = compare.compare(*runs)
    assert [one.direction for one in found.changes] == ([direction] if direction else [])
    assert bool(found.regressions) is (direction == "worse")
    assert "\x1b" not in found.text() and all(len(line) < 300 for line in found.text().splitlines()[2:])


@pytest.mark.parametrize(("old", "new", "direction"), [(1.2, 2.3, None), (2.3, 1.2, None), (1.2, 2.5, "worse"), (2.5, 1.2, "better"), (1.2, None, "worse")])
def test_a_neighbour_that_is_slowed_down_about_as_much(tmp_path: Path, old: float, new: float | None, direction: str | None) -> None:
    runs = []
    for times in (old, new):
        verdict = "leaked" if times is None else "noisy" if times >= 2 else "held"
        outcome = {"kind": "outcome", "level": "runc", "measure": "attacks", "claim": "files.0", "verdict": verdict, "detail": "slow", "times": times, "at": 1}
        runs.append(results_tools.written(tmp_path / f"{len(runs)}.jsonl", [{**LINES[0], "quantities": []}, outcome]))
    found = compare.compare(*runs)
    assert [one.direction for one in found.changes] == ([direction] if direction else [])
    if direction is None:
        assert f"its work took {old} and {new} times as long as alone, which chance can do" in found.text()


@pytest.mark.parametrize(
    ("quantity", "factor", "direction"),
    [
        ("start.first", 1.5, "worse"), ("start.first", 0.6, "better"), ("start.first", 1.02, None),
        ("file.sequential.read", 0.6, "worse"), ("file.sequential.read", 1.5, "better"),
        ("timer.drift", 1.6, "differs"), ("timer.drift", 0.4, "differs"),
        ("surface.functions", 2.1, "worse"), ("surface.functions", 1.01, None), ("surface.capabilities", 1.1, "worse"),
    ],
)  # fmt: skip
def test_figures_have_a_better_side(before: Results, tmp_path: Path, quantity: str, factor: float, direction: str | None) -> None:
    def change(line: Line) -> Line:
        if line.get("quantity") == quantity and line["level"] == "crun":
            line["values"] = [value * factor for value in line["values"]]
        return line

    # Three rounds have no interval of 95 %: more of them, so that the tolerance is the narrow one.
    def more(lines: list[Line]) -> list[Line]:
        added = [{**copy.deepcopy(line), "round": line["round"] + shift} for shift in (3, 6) for line in lines if line.get("quantity") == quantity]
        return [*lines[:-1], *added, lines[-1]]

    old = results_tools.written(tmp_path / "old.jsonl", more(LINES))
    new = results_tools.written(tmp_path / "new.jsonl", results_tools.changed(more(LINES), change))
    found = compare.compare(old, new)
    assert [(one.direction, one.level) for one in found.changes] == ([(direction, "crun")] if direction else [])
    assert len(compare.compare(new, old).changes) == len(found.changes)


def test_swapped_runs_swap_sides(before: Results, tmp_path: Path) -> None:
    other = results_tools.written(tmp_path / "other.jsonl", results_tools.records(seed=3, missing={}, facts={"kernel": "6.19.0"}))

    def scatter(line: Line) -> Line:
        factor = 1 + (len(line.get("quantity", "")) + len(line.get("level", ""))) % 4
        return {**line, "values": [value * factor for value in line["values"]]} if line["kind"] == "sample" else line

    wild = after(tmp_path, scatter)
    for old, new in ((before, other), (before, wild), (other, wild)):
        there, back = compare.compare(old, new), compare.compare(new, old)
        for mine, theirs in ((there.regressions, back.improvements), (there.improvements, back.regressions)):
            assert sorted(one.level for one in mine) == sorted(one.level for one in theirs)
        assert there.agreed == back.agreed
    assert len(compare.compare(before, wild).regressions) > 100
    assert len(compare.compare(before, wild).text().splitlines()) < 60


def test_what_is_not_compared_is_said(before: Results, tmp_path: Path) -> None:
    def change(line: Line) -> Line | None:
        if line["kind"] == "run":
            line["facts"]["kernel"] = "6.19.0"
            line["facts"]["versions"]["crun"] = None
            line["levels"][6]["missing"] = "no program runc in $PATH"
        if line.get("level") == "runc" and line["kind"] != "run":
            return None
        if line.get("detail") == "ext4":
            line["detail"] = "overlay on ext4"
        return None if line.get("quantity") == "start.first" and line["level"] == "process" else line

    found = compare.compare(before, after(tmp_path, change))
    assert found.facts == [("kernel", "6.18.0", "6.19.0"), ("versions: crun", "1.8.1", "none")]
    assert found.changes == []
    assert "runc: new run: no program runc in $PATH" in map(str, found.uncompared)
    assert "process: Start: command to first instruction: only the old run has it" in map(str, found.uncompared)
    assert "container: File I/O: random.read, page cache warm: variants differ: ext4 MiB/s, overlay on ext4 MiB/s" in map(str, found.uncompared)
    lines = found.text().splitlines()
    assert lines[2:5] == ["facts that differ:", "  kernel: 6.18.0 → 6.19.0", "  versions: crun: 1.8.1 → none"]


def test_two_values_are_not_compared(before: Results, tmp_path: Path) -> None:
    def change(line: Line) -> Line | None:
        if line.get("quantity") == "idle.pss" and line["level"] == "runc":
            return {**line, "values": [9e9]} if line["round"] < 3 else None
        return line

    found = compare.compare(before, after(tmp_path, change))
    assert found.changes == []
    assert [str(one) for one in found.uncompared] == ["runc: Memory of an idle instance (Pss): fewer than 3 values in one of the runs"]


def test_a_measure_that_fails_now_is_a_regression(before: Results, tmp_path: Path) -> None:
    def change(line: Line) -> Line | None:
        if line.get("level") == "crun" and line.get("measure") == "parallel":
            return {"kind": "failed", "level": "crun", "measure": "parallel", "why": "crun: cannot fork", "at": 9.0}
        return line

    new = after(tmp_path, change)
    found = compare.compare(before, new)
    assert [str(one) for one in found.regressions] == ["crun: Many at once: fails now: crun: cannot fork"]
    back = compare.compare(new, before)
    assert [str(one) for one in back.improvements] == ["crun: Many at once: failed before: crun: cannot fork"] and not back.regressions


def test_runs_that_know_different_things(before: Results, tmp_path: Path) -> None:
    """A version that has a claim and a quantity less."""

    def change(line: Line) -> Line | None:
        if line["kind"] == "run":
            line["claims"] = [claim for claim in line["claims"] if claim["name"] != "files.0"]
            line["quantities"] = [quantity for quantity in line["quantities"] if quantity["name"] != "exec.first"]
        return None if "files.0" in line.values() or "exec.first" in line.values() else line

    less = after(tmp_path, change)
    for old, new, word in ((before, less, "old"), (less, before, "new")):
        found = compare.compare(old, new)
        assert found.changes == [] and len(found.uncompared) == 2 * len(before.present())
        assert f"runc: Read a file of the host, way 0: only the {word} run has it" in map(str, found.uncompared)
        assert f"runc: Another program in a running container: only the {word} run has it" in map(str, found.uncompared)


def test_a_control_that_shows_nothing_is_said(before: Results, tmp_path: Path) -> None:
    def change(line: Line) -> Line:
        return {**line, "verdict": "held"} if line.get("level") == "opened" and line.get("claim") == "files.3" else line

    found = compare.compare(before, after(tmp_path, change))
    assert found.changes == []
    assert [str(one) for one in found.uncompared] == ["control: Load a module, way 3: in the new run the attack fails without any defence"]


def test_a_99th_percentile_of_few_rounds_is_named_and_not_worse(before: Results, tmp_path: Path) -> None:
    def change(line: Line) -> Line:
        if str(line.get("quantity")).startswith("interference.cpu.p") and line["level"] == "crun":
            line["values"] = [value * 4 for value in line["values"]]
        return line

    found = compare.compare(before, after(tmp_path, change))
    assert [one.quantity.name for one in found.changes if isinstance(one, compare.Shift)] == ["interference.cpu.p50"]
    assert [str(one) for one in found.uncompared if "99th" in one.why] == [
        "crun: Victim beside a cpu hog: p99 against none: a 99th percentile of few rounds differs"
    ]
