"""What a tenant is told about the host: outcomes by comparing what it reads with what the host says of itself."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pycontain.isolation.model import Claim, Level, Measure, Outcome
from pycontain.isolation.surface import answer
from pycontain.isolation.world import PUBLIC

if TYPE_CHECKING:
    from pycontain.isolation.world import World

PROBE = "surface_information"
Told = dict[str, str]  # what the probe read, by the names of what it reads; one that it may not read is not there


@dataclass(frozen=True, slots=True)
class _Test:
    """``leaks``: what is leaked, or None; of what the tenant was told, and the host just before and after it."""

    name: str
    title: str
    attack: str
    leaks: Callable[[Told, Told, Told], str | None]


def _same(*names: str) -> Callable[[Told, Told, Told], str | None]:
    def leaks(told: Told, before: Told, after: Told) -> str | None:
        values = [told.get(name, "").strip() for name in names]
        if all(values) and values == [before.get(name, "").strip() for name in names]:
            return f"the host's: {' '.join(' '.join(values).split())[:80]}"
        return None

    return leaks


def _between(read: Callable[[Told], dict[str, float]], slack: float = 0.0) -> Callable[[Told, Told, Told], str | None]:
    """Counters and clocks go on: the host's own, if each lies between the host's before and after."""

    def leaks(told: Told, before: Told, after: Told) -> str | None:
        low, values, high = read(before), read(told), read(after)
        if values and values.keys() == low.keys() == high.keys():
            if all(low[key] - slack <= value <= high[key] + slack for key, value in values.items()):
                return "the host's: " + ", ".join(f"{key} {value:.15g}" for key, value in values.items())
        return None

    return leaks


def _uptime(told: Told) -> dict[str, float]:
    words = told.get("uptime", "").split()
    return {"uptime": float(words[0])} if words else {}


def _timers(told: Told) -> dict[str, float]:
    line = re.search(r"^now at (\d+) nsecs", told.get("timers", ""), re.MULTILINE)
    return {"clock": float(line[1])} if line else {}


def _statistics(told: Told) -> dict[str, float]:
    lines = re.findall(r"^(ctxt|processes) ([1-9]\d*)$", told.get("statistics", ""), re.MULTILINE)
    return {key: float(value) for key, value in lines}


def _interrupts(told: Told) -> dict[str, float]:
    """Of all processors, from lines like ``  24:   1   0  IO-APIC ...``."""
    rows = re.findall(r"^ *\w+:((?: +\d+)+)", told.get("interrupts", ""), re.MULTILINE)
    total = sum(int(value) for row in rows for value in row.split())
    return {"interrupts": float(total)} if total else {}


def _disks(told: Told, before: Told, after: Told) -> str | None:
    """Of the host's busiest disk, as others come and go: reads and writes completed (iostats.rst of the kernel)."""

    def read(told: Told) -> dict[str, int]:
        rows = [line.split() for line in told.get("disks", "").splitlines()]
        return {row[2]: int(row[3]) + int(row[7]) for row in rows if len(row) > 7}

    low, mine, high = read(before), read(told), read(after)
    name = max(low, key=lambda name: low[name], default="")
    if name in mine and name in high and 0 < low[name] <= mine[name] <= high[name]:
        return f"the host's: {mine[name]} transfers of {name}"
    return None


def _load(told: Told, before: Told, after: Told) -> str | None:
    """Averages are smooth, and the number of threads tells an idle host from an idle guest."""

    def read(told: Told) -> tuple[float, ...]:
        words = told.get("load", "").split()
        return (*map(float, words[1:3]), float(words[3].partition("/")[2])) if len(words) > 3 else ()

    mine, host = read(told), [found for found in (read(before), read(after)) if found]
    for five, fifteen, threads in host:
        near = mine and abs(mine[0] - five) <= 0.3 and abs(mine[1] - fifteen) <= 0.1
        if near and abs(mine[2] - threads) <= 0.3 * threads:
            return f"the host's: {mine[0]:g} in five minutes, of {mine[2]:g} threads"
    return None


def _processors(told: Told, before: Told, after: Told) -> str | None:
    def read(told: Told) -> tuple[int, list[str]]:
        text = told.get("processors", "")
        models = set(re.findall(r"^(?:model name|CPU part)\s*: *(.*)$", text, re.MULTILINE))
        return len(re.findall(r"^processor\s*:", text, re.MULTILINE)), sorted(models)

    count, models = read(told)
    if count and models and (count, models) == read(before):
        return f"the host's: {count} of {', '.join(models)}"
    return None


def _log(told: Told, before: Told, after: Told) -> str | None:
    def lines(text: str) -> list[str]:
        return [line for line in text.splitlines() if len(line) > 30]

    host = {*lines(before.get("log", "")), *lines(after.get("log", ""))}
    for line in lines(told.get("log", "")):
        if line in host:
            return f"the host's: {line[:80]}"
    return None


def _symbols(told: Told, before: Told, after: Told) -> str | None:
    lines = [line for line in told.get("symbols", "").splitlines() if not line.startswith("0000000000000000 ")]
    if lines and told["symbols"] == before.get("symbols"):
        return f"the host's: {lines[0]}"
    return None


def _mounts(told: Told) -> set[tuple[str, str, str]]:
    """(device, directory in its file system, mount point) of each mount (proc_pid_mountinfo(5))."""
    rows = [line.split(" ") for line in told.get("mounts", "").splitlines()]
    return {(row[2], row[3], row[4]) for row in rows if len(row) > 5}


def _paths(told: Told, before: Told, after: Told) -> str | None:
    mine, host = _mounts(told), _mounts(before)
    for device, directory, _ in mine:
        for other, above, point in host:
            if device == other and above == "/" and f"{point}{directory}".startswith(f"{PUBLIC}/"):
                return f"a path of the host: {point}{directory}"
    if len(mine & host) * 2 > len(host):
        return f"{len(mine & host)} of the host's {len(host)} mounts"
    return None


_TESTS = (
    _Test(
        "kernel",
        "The kernel's version",
        "uname(2): the host's release and version.",
        _same("release", "version"),
    ),
    _Test(
        "boot_id",
        "The boot's id",
        "/proc/sys/kernel/random/boot_id: the host's, by which two tenants know that they share it.",
        _same("boot_id"),
    ),
    _Test("command_line", "The kernel's command line", "/proc/cmdline: the host's.", _same("command_line")),
    _Test(
        "host_name",
        "The host's name",
        "uname(2), in the uts namespace of process 1 where that may be entered: the host's name.",
        _same("host_name"),
    ),
    _Test("memory", "The host's memory", "MemTotal of /proc/meminfo: the host's, to the KiB.", _same("memory")),
    _Test("processors", "The processors", "/proc/cpuinfo: as many as the host has, and of its model.", _processors),
    _Test(
        "uptime",
        "The host's uptime",
        "/proc/uptime: between the host's before and after.",
        _between(_uptime, 0.011),  # it is told to 0.01 s
    ),
    _Test(
        "load",
        "The host's load",
        "/proc/loadavg: the host's averages, and about its number of threads.",
        _load,
    ),
    _Test(
        "log",
        "The kernel's log",
        "syslog(2), SYSLOG_ACTION_READ_ALL: a line of the host's log, its time included.",
        _log,
    ),
    _Test(
        "statistics",
        "Context switches and forks of everybody",
        "/proc/stat: counters between the host's before and after; neighbours can be watched by them.",
        _between(_statistics),
    ),
    _Test(
        "interrupts",
        "Interrupts of everybody",
        "/proc/interrupts: their number between the host's before and after; neighbours can be watched by it.",
        _between(_interrupts),
    ),
    _Test(
        "disks",
        "Transfers of the host's disks",
        "/proc/diskstats: those of the host's busiest disk between its before and after; neighbours can be watched.",
        _disks,
    ),
    _Test(
        "timers",
        "The kernel's timers",
        "/proc/timer_list: its clock is between the host's before and after.",
        _between(_timers),
    ),
    _Test("symbols", "Addresses of the kernel", "/proc/kallsyms: the host's addresses, not zeros.", _symbols),
    _Test(
        "paths",
        "Paths of the host",
        "/proc/self/mountinfo: where on the host the root directory is, or most of the host's own mounts.",
        _paths,
    ),
)


def _host(world: World) -> Told:
    done = subprocess.run([world.probe, PROBE], capture_output=True, check=True, timeout=20)
    found: Told = json.loads(done.stdout)
    return found


def _take(world: World, level: Level) -> Iterable[Outcome]:
    before = _host(world)
    told: Told = answer(world, level, PROBE)
    after = _host(world)
    for test in _TESTS:
        leak = test.leaks(told, before, after)
        name = f"information.{test.name}"
        yield Outcome(name, "held", "not the host's") if leak is None else Outcome(name, "leaked", leak)


MEASURES: tuple[Measure, ...] = (
    Measure(
        "information",
        "outcome",
        "what is told about the host",
        _take,
        claims=tuple(Claim(f"information.{test.name}", test.title, test.attack, "information") for test in _TESTS),
        seconds=0.2,
    ),
)
