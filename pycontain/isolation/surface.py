"""What a tenant can see and call, and what of the host's kernel takes part when it works."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from pycontain.isolation.model import Job, Level, Measure, Quantity, Sample
from pycontain.isolation.tracing import tracer
from pycontain.runtime.errors import PycontainError, Unsupported
from pycontain.runtime.plan.syscall_tables import numbers

if TYPE_CHECKING:
    from pycontain.isolation.world import World

ENOSYS = 38  # of both architectures that have a table of calls here
_PASSES = {"syscalls": 10, "functions": 1}
_LIMIT_SECONDS = 60.0


def answer(world: World, level: Level, *words: str) -> dict[str, Any]:
    """What a probe says at a level. Raises PycontainError where it fails."""
    ended = level.run(world, Job(("/probe", *words)), _LIMIT_SECONDS)
    if not ended.stdout:
        why = ended.stderr.decode(errors="replace").strip() or "it says nothing"
        raise PycontainError(f"the probe {words[0]} at level {level.name}: status {ended.status}: {why}")
    return said(ended.stdout.decode(), words[0], level)


def said(line: str, probe: str, level: Level) -> dict[str, Any]:
    """A line of a probe as an object. Raises PycontainError where it is an error."""
    found: dict[str, Any] = json.loads(line)
    if "error" in found:
        raise PycontainError(f"the probe {probe} at level {level.name}: {found['error']}")
    return found


# ---- system calls that may be made


def calls() -> dict[str, int]:
    """The system calls of this machine, by name. Raises Unsupported where there is no table."""
    machine = os.uname().machine
    if machine not in ("x86_64", "aarch64"):
        raise Unsupported(f"there is no table of the system calls of {machine}")
    return numbers(machine)


def let_through(found: dict[str, Any], table: dict[str, int]) -> set[str]:
    """The calls that no filter refuses, of what the probe surface_syscalls says."""
    return {name for name, number in table.items() if found["filter"][number] == 0}


def allowed(found: dict[str, Any], table: dict[str, int]) -> set[str]:
    """Those of them that the kernel has."""
    return {name for name in let_through(found, table) if found["kernel"][table[name]] != ENOSYS}


def _take_syscalls(world: World, level: Level) -> Iterable[Sample]:
    table = calls()
    found = answer(world, level, "surface_syscalls", f"calls={max(table.values()) + 1}")
    yield Sample("surface.syscalls.allowed", (len(allowed(found, table)),))


# ---- files, rights


def _take_files(world: World, level: Level) -> Iterable[Sample]:
    found = answer(world, level, "surface_files")
    for place in ("proc", "sys"):
        for kind, value in zip(("files", "readable", "writable"), found[place], strict=True):
            yield Sample(f"surface.{place}.{kind}", (value,))
    for kind, value in zip(("character", "block"), found["devices"], strict=True):
        yield Sample(f"surface.devices.{kind}", (value,))
    yield Sample("surface.setuid", (found["setuid"],))
    for kind in ("effective", "bounding"):
        yield Sample(f"surface.capabilities.{kind}", (found[kind],))


# ---- what reaches the host's kernel


def reached(world: World, level: Level, kind: Literal["syscalls", "functions"]) -> dict[str, int]:
    """How often each system call (its number) or function of the host's kernel is reached by the workload's passes, by
    any process that is there because of the tenant. Raises Unsupported, PycontainError."""
    words = ("surface_workload", "directory=/tmp", f"passes={_PASSES[kind]}")
    with tracer(world, kind) as trace:
        trace.follow()
        tenant = level.start(world, Job(("/probe", *words)))
        try:
            for moment in ("begin", "end"):
                found = said(tenant.line(_LIMIT_SECONDS), words[0], level)
                if found["said"] != moment:
                    raise PycontainError(f"the probe {words[0]} at level {level.name} says {found}, not {moment}")
                if moment == "begin":
                    trace.on()
            trace.off()
            return trace.counted()
        finally:
            tenant.stop()


def _take_host_syscalls(world: World, level: Level) -> Iterable[Sample]:
    found = reached(world, level, "syscalls")
    yield Sample("surface.host_syscalls.distinct", (len(found),))
    yield Sample("surface.host_syscalls.total", (sum(found.values()) / _PASSES["syscalls"],))


def _take_host_functions(world: World, level: Level) -> Iterable[Sample]:
    yield Sample("surface.host_functions", (len(reached(world, level, "functions")),))


# ---- the tables

_SEEN = (
    "counted by access(2), without opening: what modes, capabilities, read-only mounts, and the cgroup's device rules "
    "permit, not what a driver would say"
)

_DEVICES = f"nodes in /dev that may be read or written; {_SEEN}"


def _files(place: Literal["proc", "sys"], left_out: str) -> tuple[Quantity, ...]:
    where = f"regular files below /{place}{left_out}"
    name, title = f"surface.{place}", f"files in /{place}"
    return (
        Quantity(f"{name}.files", title, "files", f"{where} that can be seen"),
        Quantity(f"{name}.readable", f"readable {title}", "files", f"{where} that may be read; {_SEEN}"),
        Quantity(f"{name}.writable", f"writable {title}", "files", f"{where} that may be written; {_SEEN}"),
    )


_WORKLOAD = (
    "one pass of a fixed workload (a file of 16 KiB written, read, mapped, renamed, removed; 1 MiB of memory; a "
    "process that executes a program; a TCP connection over loopback; a signal; a thread)"
)

MEASURES: tuple[Measure, ...] = (
    Measure(
        "surface.syscalls",
        "surface",
        "system calls that may be made",
        _take_syscalls,
        quantities=(
            Quantity(
                "surface.syscalls.allowed",
                "system calls allowed",
                "calls",
                "native system calls that filters let through with arguments of all zeros or of all ones, and that the "
                "kernel which serves the tenant has: it answers other than ENOSYS. A call that this kernel refuses for "
                "want of a capability counts, as its code is reached",
            ),
        ),
        seconds=0.7,
    ),
    Measure(
        "surface.files",
        "surface",
        "files, devices and rights in sight",
        _take_files,
        quantities=(
            *_files("proc", ", without those of processes and threads,"),
            *_files("sys", ", other file systems mounted there included except cgroups,"),
            Quantity("surface.devices.character", "character devices", "devices", _DEVICES),
            Quantity("surface.devices.block", "block devices", "devices", _DEVICES),
            Quantity(
                "surface.setuid",
                "set-user-ID programs",
                "programs",
                "set-user-ID and set-group-ID programs in the directories of programs and one level below those of "
                "libraries, if they give rights there (neither nosuid nor no_new_privs)",
            ),
            Quantity(
                "surface.capabilities.effective",
                "effective capabilities",
                "capabilities",
                "capabilities of the program, over the user namespace that it is in, as its own kernel says",
            ),
            Quantity(
                "surface.capabilities.bounding",
                "capabilities in the bounding set",
                "capabilities",
                "capabilities that the program could get by executing another one, over its user namespace",
            ),
        ),
        seconds=0.7,
    ),
    Measure(
        "surface.host_syscalls",
        "surface",
        "system calls that reach the host",
        _take_host_syscalls,
        quantities=(
            Quantity(
                "surface.host_syscalls.distinct",
                "distinct host system calls",
                "calls",
                f"different system calls that reach the host's kernel during ten times {_WORKLOAD}, of all processes "
                "that are there because of the tenant; 0.1 s of rest are in it",
                cache="warm: the workload ran once before",
            ),
            Quantity(
                "surface.host_syscalls.total",
                "host system calls",
                "calls",
                f"system calls that reach the host's kernel, of the same processes, during {_WORKLOAD}",
                cache="warm: the workload ran once before",
                denominator="passes of the workload",
            ),
        ),
        rounds=(1, 5),
        seconds=0.9,
    ),
    Measure(
        "surface.host_functions",
        "surface",
        "functions of the host's kernel that are reached",
        _take_host_functions,
        quantities=(
            Quantity(
                "surface.host_functions",
                "distinct host kernel functions",
                "functions",
                f"different functions of the host's kernel that are entered during {_WORKLOAD}, by all processes that "
                "are there because of the tenant, outside of hardware interrupts; functions that the compiler put in "
                "line are not seen",
                cache="warm: the workload ran once before",
            ),
        ),
        rounds=(1, 3),
        seconds=2.0,
    ),
)
