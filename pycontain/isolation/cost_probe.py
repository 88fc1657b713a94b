"""How figures come out of a probe: one run of it, one line of JSON, a series of values for each quantity."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pycontain.isolation.model import Bind, Ended, Job, Level, Quantity, Sample
from pycontain.runtime.errors import PycontainError

if TYPE_CHECKING:
    from pycontain.isolation.world import World

# What every figure of a probe that times batches has in common.
# A batch is shorter than a slice of the scheduler's: on a busy host most are not interrupted, and the median is one of
# those.
PACE = ("ms=1", "batches=15")
INSIDE = "CLOCK_MONOTONIC inside the level, around a batch of many; the level's own start is not in it"


@dataclass(frozen=True, slots=True)
class Series:
    """A member of a probe's answer, an array of numbers, and the quantity that they become by ``convert``."""

    key: str
    quantity: Quantity
    convert: Callable[[float], float] = float


def per_second(amount: float) -> Callable[[float], float]:
    """From nanoseconds for ``amount`` of something to that something a second."""
    return lambda ns: amount * 1e9 / ns


def quantities(series: tuple[Series, ...]) -> tuple[Quantity, ...]:
    return tuple(one.quantity for one in series)


@contextmanager
def writable(world: World, name: str) -> Iterator[str]:
    """A fresh directory on the host's disk that every user may write to: root of a user namespace is somebody else."""
    path = world.scratch(name)
    os.chmod(path, 0o1777)  # noqa: S103
    try:
        yield path
    finally:
        shutil.rmtree(path)


def ask(
    world: World, level: Level, *args: str, binds: tuple[Bind, ...] = (), timeout: float = 120.0
) -> dict[str, Any]:
    """The answer of ``/probe args...`` at a level. Raises PycontainError where it has none, or could not do a part."""
    return answer(level.run(world, Job(("/probe", *args), binds=binds), timeout), level, args[0])


def answer(ended: Ended, level: Level, probe: str) -> dict[str, Any]:
    """The one line that a probe wrote. Raises PycontainError: ``error`` and ``failed.KEY`` are the probe's words."""
    try:
        found = json.loads(ended.stdout)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        said = ended.stderr.decode(errors="replace").strip()[-300:]
        raise PycontainError(f"{probe} at {level.name} ended with {ended.status} and without an answer: {said}")
    failures = [f"{key.removeprefix('failed.')}: {text}" for key, text in found.items() if key.startswith("failed.")]
    if "error" in found:
        said = ended.stderr.decode(errors="replace").strip()[-300:]
        failures.append(found["error"] + (f" ({said})" if said else ""))
    if failures:
        raise PycontainError(f"{probe} at {level.name} failed: {'; '.join(failures)}")
    return found


def samples(found: Mapping[str, Any], series: tuple[Series, ...], detail: str = "") -> Iterator[Sample]:
    """A Sample for each series. Raises PycontainError where the answer lacks one."""
    for one in series:
        values = found.get(one.key)
        if not isinstance(values, list) or not values:
            raise PycontainError(f"{found.get('probe')} gave no {one.key}: found {', '.join(found)}")
        yield Sample(one.quantity.name, tuple(one.convert(value) for value in values), detail)
