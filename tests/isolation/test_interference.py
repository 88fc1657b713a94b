"""Hogs: each claim leaks where nothing is limited, and holds where the level limits what is taken."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pycontain.isolation import exhaustion, interference, neighbours
from pycontain.isolation.levels import level
from pycontain.isolation.model import Outcome, Sample
from pycontain.isolation.world import World
from pycontain.runtime.errors import PycontainError
from pycontain.runtime.kernel.hierarchies import hierarchies, mode_of

pytestmark = pytest.mark.needs("root")
# A container without a quota shares the disk; the hardened one writes to a tmpfs of its own.
HOLDS = {want.name: "hardened" if want.disk else "container" for want in exhaustion.WANTS}


def verdict(world: World, want: exhaustion.Want, name: str) -> Outcome:
    (found,) = exhaustion.take(want, world, level(name))
    assert found.claim in {claim.name for measure in exhaustion.MEASURES for claim in measure.claims}
    return found


@pytest.mark.parametrize("want", exhaustion.WANTS, ids=[want.name for want in exhaustion.WANTS])
def test_exhaustion_leaks_without_limits_and_is_held_by_them(world: World, want: exhaustion.Want, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "CAP_MEMORY", 320 << 20)  # what takes the longest is to fill it
    leaked = verdict(world, want, "process")
    assert leaked.verdict == "leaked", leaked
    held = verdict(world, want, HOLDS[want.name])
    assert held.verdict in ("held", "noisy"), held  # how much the neighbour notices is nothing to assert on a busy host
    if want.name in ("disk", "inodes"):
        assert verdict(world, want, "container").verdict == "leaked"


@pytest.mark.parametrize("hog", interference.HOGS, ids=[hog.name for hog in interference.HOGS])
def test_a_victim_is_timed_alone_and_beside_each_hog(world: World, hog: interference.Hog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interference, "_ALONE", 0.1)
    monkeypatch.setattr(interference, "_BESIDE", 0.1)
    found = list(interference.take(hog, world, level("container")))
    measure = next(measure for measure in interference.MEASURES if measure.name == f"interference.{hog.name}")
    assert all(isinstance(sample, Sample) and len(sample.values) == 1 and sample.values[0] > 0 for sample in found)
    assert {sample.quantity for sample in found if isinstance(sample, Sample)} == {quantity.name for quantity in measure.quantities}


def test_both_tenants_share_two_processors_and_a_cap(world: World) -> None:
    with neighbours.host(world) as inner, neighbours.tenant(inner, level("process"), neighbours.job("victim", "work=pipe")) as victim:
        said = neighbours.parse(victim.line())
        assert said["us"] and said["failed"] == 0
        pid = victim.pids()[0]
        assert len(os.sched_getaffinity(pid)) == min(2, len(os.sched_getaffinity(0)))
        assert inner.cap in Path(f"/proc/{pid}/cgroup").read_text()
        assert share(pid) == inner.cap  # four loops of a neighbour are four competitors
        with neighbours.tenant(inner, level("container"), neighbours.job("victim", "work=pipe")) as contained:
            contained.line()
            assert all(share(pid).startswith(f"{inner.cap}/tenant-") for pid in contained.pids())


def share(pid: int) -> str:
    """The cgroup by which a process gets its share of the processors."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        number, names, place = line.split(":", 2)
        if "cpu" in names.split(","):
            return place
        if number == "0" and mode_of(hierarchies()) == "v2":
            above = Path(hierarchies()[0].mount)
            while not (above / place[1:] / "cpu.weight").exists():
                place = os.path.dirname(place)
            return place
    raise AssertionError("the processors are nobody's")


def test_a_probe_that_cannot_work_is_an_error_and_no_figure(world: World) -> None:
    job = neighbours.job("victim", "work=sync", "dir=/no/such/directory")
    with neighbours.tenant(world, level("process"), job) as victim, pytest.raises(PycontainError, match="the probe victim could not work: No such file"):
        neighbours.observe(victim, 0.1)
    assert json.loads(level("process").run(world, neighbours.job("exhaust", "of=nothing")).stdout)["error"]
