"""A whole run: from the command line, in a world, into a file, interrupted and gone on with."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain import cli
from pycontain.isolation import facts, results, session, sweeping
from pycontain.isolation.levels import LEVELS
from pycontain.isolation.model import Job, Level, Measure, Quantity, Sample
from pycontain.isolation.world import World
from pycontain.runtime.errors import PycontainError
from tests.isolation import results_tools

STATUS = Quantity("status", "exit status", "", "what a program ends with", better="neither")


def take(world: World, level: Level) -> Iterator[Sample]:
    yield Sample("status", (level.run(world, Job(("/bin/sh", "-c", "exit 7"))).status,))


def interrupt(world: World, level: Level) -> Iterator[Sample]:
    if os.path.exists("interrupt"):
        os.unlink("interrupt")
        os.kill(os.getpid(), signal.SIGINT)
    yield Sample("status", (7,))


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the test, and two measures instead of all."""
    monkeypatch.chdir(tmp_path)
    measures = (
        Measure("status", "cost", "exit status", take, (STATUS,), rounds=(2, 2), seconds=0.1),
        Measure("other", "surface", "another", interrupt, (STATUS,), rounds=(2, 2), seconds=0.1),
    )
    monkeypatch.setattr(session, "MEASURES", measures)
    return tmp_path


def run(*words: str) -> int:
    return cli.run(["isolation", "run", *words])


@pytest.mark.needs("root", "busybox")
def test_a_run_is_interrupted_and_gone_on_with(directory: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (directory / "interrupt").touch()
    assert run("--level", "process", "--level", "container", "--seed", "1", "-o", "r.jsonl") == 130
    told = capfd.readouterr()
    assert "2 measures at 2 levels: about 0:00\n" in told.err
    assert told.err.endswith("interrupted; what was taken is in r.jsonl\n\nhint: pycontain isolation run --resume r.jsonl\n")
    found = results.load("r.jsonl")
    assert not found.complete and sum(found.rounds.values()) < 8 and found.mode == "only"
    before = (directory / "r.jsonl").read_bytes()

    assert run("--resume", "r.jsonl") == 0
    assert capfd.readouterr().out == "r.jsonl\n"
    found = results.load("r.jsonl")
    assert found.complete and set(found.rounds.values()) == {2} and len(found.rounds) == 4
    assert (directory / "r.jsonl").read_bytes().startswith(before)
    for level in ("process", "container"):
        figure = found.figure(level, "status")
        assert figure is not None and set(figure.points) == {7.0}
    assert [id for id in sweeping.leftovers() if id.startswith(f"{os.getpid()}-")] == []

    assert run("--resume", "r.jsonl") == 1
    assert "r.jsonl is complete" in capfd.readouterr().err
    (directory / "r.jsonl").write_bytes(before)
    now = facts.collect()
    monkeypatch.setattr(facts, "collect", lambda: {**now, "kernel": "7.0"})
    assert run("--resume", "r.jsonl") == 1
    assert f"its host was another one: kernel: {now['kernel']} then, 7.0 now" in capfd.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(directory)
    assert run("--resume", "r.jsonl") == 1  # all measures are back
    assert "this version does not have status, other\n" in capfd.readouterr().err


@pytest.mark.needs("root", "busybox")
def test_a_failure_is_told_and_the_status_says_so(directory: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(world: World, level: Level) -> Iterator[Sample]:
        raise PycontainError("it broke")
        yield

    monkeypatch.setattr(session, "MEASURES", (Measure("bad", "cost", "bad", fail), session.MEASURES[0]))
    assert run("--level", "process") == 1
    told = capfd.readouterr()
    path = told.out.strip()
    assert path.startswith("isolation-2") and path.endswith(".jsonl")
    assert "failed: bad at process: it broke\n" in told.err
    found = results.load(path)
    assert found.complete and found.failed == {("process", "bad"): "it broke"} and found.rounds == {("process", "status"): 2}


def test_what_is_wrong_is_told_before_anything_is_done(directory: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert run() == 1
    assert "the effective user is 1000, not root" in capfd.readouterr().err
    for words, says in (
        (("--quick", "--full"), "cannot be both --quick and --full"),
        (("--resume", "r", "--only", "cost"), "it has no use for --only"),
        (("--budget", "soon"), '--budget of "pycontain isolation run" cannot be "soon": wanted a whole number'),
    ):
        assert run(*words) == 125
        assert says in capfd.readouterr().err
    assert run("--only", "containr") == 1
    assert "hint: pycontain isolation run --only container\n" in capfd.readouterr().err
    assert run("--resume", "r") == 1
    assert "there are no results at r\n" in capfd.readouterr().err
    assert os.listdir() == []


def test_the_names_of_levels_for_a_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["isolation", "levels", "--quiet", "--measures"]) == 0
    names = capsys.readouterr().out.split()
    assert names[: len(LEVELS)] == [level.name for level in LEVELS] and "interference" in names


@pytest.mark.needs("root", "busybox")
def test_levels_are_tried_and_listed(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "LEVELS", LEVELS[:3])
    assert cli.run(["isolation", "levels", "--format", "json"]) == 0
    listed = json.loads(capfd.readouterr().out)["levels"]
    assert [(level["name"], level["missing"]) for level in listed] == [("process", None), ("chroot", None), ("container", None)]


def test_reports_and_a_comparison_from_the_command_line(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["isolation", "report"]) == 1
    assert "there are no results in this directory" in capfd.readouterr().err
    lines = results_tools.records()
    results_tools.written("isolation-20260101-000000.jsonl", lines)
    os.utime("isolation-20260101-000000.jsonl", (1, 1))
    worse = results_tools.changed(lines, lambda line: {**line, "verdict": "leaked"} if line["kind"] == "outcome" else line)
    results_tools.written("isolation-20250101-000000.jsonl", worse)

    assert cli.run(["isolation", "report"]) == 0  # of the newest by its time, not by its name
    assert capfd.readouterr().out == "isolation-20250101-000000.html\n"
    assert "<html" in (directory / "isolation-20250101-000000.html").read_text()
    assert cli.run(["isolation", "report", "--markdown", "-", "isolation-20260101-000000.jsonl"]) == 0
    assert capfd.readouterr().out.startswith("## ")
    assert not (directory / "isolation-20260101-000000.html").exists()
    assert cli.run(["isolation", "report", "--html", "none/page"]) == 1
    assert "cannot write the report to none/page: ENOENT" in capfd.readouterr().err

    names = ["isolation-20260101-000000.jsonl", "isolation-20250101-000000.jsonl"]
    assert cli.run(["isolation", "compare", *names]) == 1
    assert "worse (" in capfd.readouterr().out
    assert cli.run(["isolation", "compare", names[0], names[0]]) == 0
    assert "worse (" not in capfd.readouterr().out
