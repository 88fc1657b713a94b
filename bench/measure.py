"""Timing: contenders take turns, so that whatever else the machine does hits all of them alike."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

IDLE_SECONDS = 0.150


@dataclass(slots=True)
class Series:
    """Milliseconds of one contender in one discipline."""

    name: str
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def to_json(self) -> dict[str, object]:
        ordered = sorted(self.values)
        return {
            "name": self.name,
            "rounds": len(ordered),
            "median_ms": round(self.median, 3),
            "best_ms": round(ordered[0], 3),
            "p10_ms": round(ordered[len(ordered) // 10], 3),
            "p90_ms": round(ordered[len(ordered) * 9 // 10], 3),
        }


def interleave(contenders: Mapping[str, Callable[[], float]], rounds: int, *, idle: bool) -> list[Series]:
    """Call each contender ``rounds`` times after one call that does not count; each returns milliseconds.

    Every round is in an order of its own (the same in every bench), so that nobody always runs behind the same other:
    on cgroup v1 whoever follows runc finds a grace period that has just passed, and saves 7 ms.
    With ``idle`` the machine rests before every call: the kernel makes a process wait for a grace period when it
    moves between cgroups, unless one has just passed, so back-to-back runs hide that cost.
    """
    series = [Series(name) for name in contenders]
    turns = list(zip(series, contenders.values(), strict=True))
    order = random.Random(rounds)
    for number in range(rounds + 1):
        order.shuffle(turns)
        for one, call in turns:
            if idle:
                time.sleep(IDLE_SECONDS)
            value = call()
            if number:
                one.values.append(value)
    return series


def timed(argv: list[str], *, environment: Mapping[str, str] | None = None, status: int = 0) -> float:
    """Milliseconds from before the command is started until it has ended. RuntimeError for another exit status."""
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
    ]
    start = time.perf_counter()
    pid = os.posix_spawnp(argv[0], argv, environment or os.environ, file_actions=actions)
    _, found = os.waitpid(pid, 0)
    spent = (time.perf_counter() - start) * 1000
    if os.waitstatus_to_exitcode(found) != status:
        raise RuntimeError(f"{' '.join(argv)}: exit status {os.waitstatus_to_exitcode(found)}, wanted {status}")
    return spent


def proportional_kib(pid: int) -> int:
    """Pss of a process: its own pages, and its share of those that it has in common with others."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
