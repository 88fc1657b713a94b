"""The results file: what is written is what is read, and what is not a result is told by line and path."""

from __future__ import annotations

import copy
import json
import os
import random
import resource
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycontain.isolation import results, schema, statistics
from pycontain.isolation.results import load
from pycontain.runtime.errors import KernelError, NotFound, PycontainError

RUN: dict[str, Any] = {
    "kind": "run", "schema": 1, "id": "a1", "started": "2026-01-02T03:04:05Z", "mode": "quick", "seed": 7,
    "facts": {
        "cpu": "a cpu", "cpus": 2, "memory": 1 << 30, "kernel": "6.1", "mitigations": {"meltdown": "Not affected"},
        "cgroups": "v2", "accelerator": None, "versions": {"runc": None, "crun": "1.8"},
    },
    "levels": [
        {"name": "process", "title": "a process", "about": "none", "missing": None},
        {"name": "vm-kvm", "title": "a machine", "about": "kvm", "missing": "no /dev/kvm"},
    ],
    "measures": [{"name": "start", "group": "cost", "title": "start"}, {"name": "files", "group": "outcome", "title": "files"}],
    "quantities": [
        {"name": "start.total", "title": "start", "unit": "ms", "definition": "d", "better": "lower", "clock": "", "cache": "", "denominator": ""}
    ],
    "claims": [{"name": "file", "title": "a file", "attack": "open", "kind": "files", "row": ""}],
}  # fmt: skip
SAMPLE = {"kind": "sample", "level": "process", "measure": "start", "quantity": "start.total", "round": 1, "values": [1.5, 2], "detail": "", "at": 0.5}
OUTCOME = {"kind": "outcome", "level": "opened", "measure": "files", "claim": "file", "verdict": "leaked", "detail": "read it", "times": None, "at": 1}
TAKEN = {"kind": "taken", "level": "process", "measure": "start", "round": 1, "seconds": 0.25}
FAILED = {"kind": "failed", "level": "process", "measure": "start", "why": "it broke", "at": 1}
END = {"kind": "end", "seconds": 2.5, "complete": True}


def write(path: Path, *records: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return os.fspath(path)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = os.fspath(tmp_path / "r.jsonl")
    writer = results.Writer(path)
    writer.write(RUN)
    writer.write(SAMPLE, {**SAMPLE, "round": 2, "values": [4]}, OUTCOME)
    writer.write({"kind": "absent", "level": "process", "measure": "files", "why": "no root", "at": 1}, END)
    writer.close()
    found = load(path)
    assert (found.id, found.seed, found.seconds, found.complete, found.torn) == ("a1", 7, 2.5, True, False)
    assert [level.name for level in found.present()] == ["process"]
    assert found.levels["vm-kvm"].missing == "no /dev/kvm"
    figure = found.figure("process", "start.total")
    assert figure is not None
    assert (figure.values, figure.points, figure.rounds) == ((1.75, 4), (1.5, 2, 4), 2)
    assert (figure.median, figure.low, figure.high, figure.coverage) == (2.875, 1.75, 4, 0.5)
    assert found.figure("vm-kvm", "start.total") is None
    outcome = found.outcome("opened", "file")
    assert outcome is not None and outcome.verdict == "leaked"
    assert found.absent == {("process", "files"): "no root"}
    assert (found.measure_of("start.total"), found.measure_of("file"), found.measure_of("other")) == ("start", "files", None)
    with pytest.raises(PycontainError, match="is there already") as caught:
        results.Writer(path)
    assert caught.value.hint == f"pycontain isolation run --resume {path}"


def test_repetitions_of_one_round_and_of_one_variant(tmp_path: Path) -> None:
    other = {**SAMPLE, "detail": "another program", "values": [100]}
    figure = load(write(tmp_path / "r", RUN, SAMPLE, other, {**SAMPLE, "values": [9]})).figure("process", "start.total")
    assert figure is not None
    assert (figure.values, figure.detail) == ((1.5, 2, 9), "")
    many = load(write(tmp_path / "s", RUN, {**SAMPLE, "values": [10 + 0.01 * step for step in range(9)]})).figure("process", "start.total")
    assert many is not None and (many.coverage, many.narrow, many.n) == (0, False, 9)  # of other rounds they tell nothing
    same = load(write(tmp_path / "t", RUN, {**SAMPLE, "values": [3, 3]})).figure("process", "start.total")
    assert same is not None and same.narrow


def test_a_failure_is_forgotten_when_a_later_taking_succeeds(tmp_path: Path) -> None:
    assert load(write(tmp_path / "a", RUN, FAILED)).failed == {("process", "start"): "it broke"}
    found = load(write(tmp_path / "b", RUN, FAILED, TAKEN, {**TAKEN, "round": 2}))
    assert (found.failed, found.rounds, found.costs) == ({}, {("process", "start"): 2}, {("process", "start"): 0.5})


def test_a_torn_last_line_is_left_out_and_cut_off(tmp_path: Path) -> None:
    path = write(tmp_path / "r", RUN, SAMPLE)
    with open(path, "a") as file:
        file.write(json.dumps(END)[:-4])
    found = load(path)
    assert found.torn and not found.complete and found.figure("process", "start.total")
    writer = results.Writer(path, resume=True)
    writer.write(END)
    writer.close()
    assert load(path).complete and not load(path).torn


def test_half_a_line_is_taken_back_where_the_disk_is_full(tmp_path: Path) -> None:
    path = os.fspath(tmp_path / "r")
    writer = results.Writer(path)
    writer.write(RUN)
    size = os.path.getsize(path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))  # setrlimit(2): EFBIG; Python ignores SIGXFSZ
    try:
        with pytest.raises(KernelError, match="cannot write results to .*: EFBIG"):
            writer.write(SAMPLE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.path.getsize(path) == size
    writer.write(END)
    writer.close()
    assert load(path).complete


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([SAMPLE], "line 1: $.kind: found 'sample', wanted 'run'"),
        ([{**RUN, "schema": 2}], "line 1: $.schema: found 2, wanted 1"),
        ([{**RUN, "facts": {}}], "line 1: $.facts.cpu: is missing"),
        ([RUN, SAMPLE, {**SAMPLE, "level": "moon"}], "line 3: $.level: found 'moon', which line 1 does not have"),
        ([RUN, {**SAMPLE, "quantity": "q"}], "line 2: $.quantity: found 'q', which line 1 does not have"),
        ([RUN, {**OUTCOME, "verdict": "fine"}], "line 2: $.verdict: found 'fine', wanted one of held, leaked, noisy"),
        ([RUN, {**SAMPLE, "values": [1, "2"]}], "line 2: $.values[1]: found '2', wanted number"),
        ([RUN, {**SAMPLE, "values": [float("nan")]}], "line 2: $.values[0]: found nan, wanted a finite number"),
        ([RUN, {**SAMPLE, "values": [10**400]}], "wanted a finite number"),
        ([RUN, {**SAMPLE, "round": True}], "line 2: $.round: found True, wanted integer"),
        ([RUN, {**SAMPLE, "more": 1}], "line 2: $.more: found a name that is not known"),
        ([RUN, {"kind": ["end"]}], "line 2: $.kind: found ['end'], wanted one of sample"),
        ([RUN, RUN], "line 2: $.kind: found 'run'"),
    ],
)  # fmt: skip
def test_what_is_not_a_result_is_told_by_line_and_path(tmp_path: Path, records: list[dict[str, Any]], says: str) -> None:
    path = write(tmp_path / "r", *records)
    with pytest.raises(PycontainError) as caught:
        load(path)
    assert caught.value.message.startswith(f"cannot take {path} as results: line ")
    assert says in caught.value.message


def test_a_file_that_is_no_results_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there are no results at"):
        load(os.fspath(tmp_path / "none"))
    for content, says in ((b"", "is empty"), (b"{}", "is empty"), (b"[1]\n", "found list"), (b"\xff\n", "line 1: is not JSON")):
        (tmp_path / "r").write_bytes(content)
        with pytest.raises(PycontainError, match=says):
            load(os.fspath(tmp_path / "r"))


JSON = st.recursive(st.none() | st.booleans() | st.integers(-2, 3) | st.floats(-1, 2) | st.sampled_from(["", "x", "run", "held"]), lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "kind", "level"]), inner, max_size=2), max_leaves=4)  # fmt: skip


@settings(max_examples=150)
@given(st.sampled_from([RUN, SAMPLE, OUTCOME, TAKEN, FAILED, END]), st.randoms(use_true_random=False), JSON, st.booleans())
def test_any_record_is_judged_as_a_json_schema_program_judges_it(record: dict[str, Any], chance: random.Random, value: Any, drop: bool) -> None:
    record = copy.deepcopy(record)
    place: Any = record
    while True:
        key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], (dict, list)) or not place[key] or chance.random() < 0.3:
            break
        place = place[key]
    if drop:
        del place[key]
    else:
        place[key] = value
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in schema.RECORDS:
        return
    mine = schema.wrong(record, schema.RECORDS[kind])
    theirs = jsonschema.Draft202012Validator(schema.RECORDS[kind]).is_valid(record)
    assert theirs == (mine is None) or "integer" in (mine or ""), mine  # 1.0 is an integer there


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
def test_an_interval_holds_its_median_and_says_how_sure_it_is(values: list[float]) -> None:
    found = statistics.interval(values)
    assert min(values) <= found.low <= found.median <= found.high <= max(values)
    assert (found.coverage >= 0.95) == (len(values) >= 6)
    assert found.n >= 9 or (found.low, found.high) == (min(values), max(values))


def test_the_interval_covers_as_often_as_it_says() -> None:
    chance = random.Random(1)
    for n in (3, 6, 15):
        held = sum(found.low <= 0.5 <= found.high for found in (statistics.interval([chance.random() for _ in range(n)]) for _ in range(4000)))
        assert abs(held / 4000 - statistics.interval(range(n)).coverage) < 0.02


def test_narrow() -> None:
    assert statistics.interval([100, 101, 102, 103, 104, 105]).narrow
    assert not statistics.interval([100, 101, 102, 103, 104, 120]).narrow
    assert not statistics.interval([100, 101]).narrow  # two values say little
    assert statistics.interval([3, 3]).narrow  # a count
    with pytest.raises(ValueError):
        statistics.interval([])
    assert statistics.quantile([1, 2, 3, 4], 0.5) == 2.5
