"""What a level costs a program that computes and one that calls the kernel."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pycontain.isolation.cost_probe import INSIDE, PACE, Series, ask, per_second, quantities, samples
from pycontain.isolation.model import Level, Measure, Quantity, Sample

if TYPE_CHECKING:
    from pycontain.isolation.world import World

_MIB = 1 << 20


def _call(key: str, title: str, what: str, cache: str = "", of: str = "calls") -> Series:
    of += " in the batch"
    return Series(key, Quantity(f"syscall.{key}", title, "ns", what, "lower", INSIDE, cache, of))


_TRIPS = "round trips (two switches each)"
_SAME = "One processor for both, so that every hand-over is a context switch."
_EACH_PAGE = "a write to each 4 KiB page, munmap(2)"
_RUNS = "page cache warm: the program runs from it"
SYSCALLS = (
    _call("getpid", "getpid", "Into the kernel and back with nothing done there: getpid(2) by its number."),
    _call(
        "clock_gettime", "clock_gettime",
        "CLOCK_MONOTONIC by the C library: the vDSO, no system call where the clock source allows that.",
    ),
    _call("read", "read 1 byte", "read(2) of one byte from /dev/zero.", "no file behind it"),
    _call("pread", "pread 4 KiB", "pread(2) of the first 4 KiB of the probe's own program.", _RUNS),
    _call(
        "open", "open and close", "open(2) read-only and close(2) of the probe's own program.",
        "path warm: it was opened before", "pairs of calls",
    ),
    _call("stat", "stat", "stat(2) of the probe's own program.", "path warm: it was looked up before"),
    _call("mmap4k", "mmap 4 KiB", f"mmap(2) of 4 KiB of anonymous memory, {_EACH_PAGE}.", of="mappings"),
    _call("mmap64k", "mmap 64 KiB", f"mmap(2) of 64 KiB of anonymous memory, {_EACH_PAGE}.", of="mappings"),
    _call(
        "mmap1m", "mmap 1 MiB",
        f"mmap(2) of 1 MiB of anonymous memory, {_EACH_PAGE}: less than a huge page of x86-64.", of="mappings",
    ),
    _call(
        "futex", "futex hand-over",
        f"Two processes hand a word of shared memory to and fro by futex(2), a wake and a wait each. {_SAME}",
        of=_TRIPS,
    ),
    _call(
        "pipe", "pipe write and read", "A process writes a byte to a pipe and reads it back: nobody is woken.",
        of="pairs of calls",
    ),
    _call("switch", "pipe ping-pong", f"Two processes send a byte to and fro by two pipes. {_SAME}", of=_TRIPS),
    _call(
        "fork", "fork and exit",
        "fork(2) of a static program of some 100 KiB, _exit(2) in the child, waitpid(2): a large program costs more.",
        "memory of the parent warm", "processes",
    ),
    _call(
        "exec", "fork and exec",
        "fork(2), execve(2) of the same static program, which ends at once, waitpid(2): no dynamic linker.", _RUNS,
        "processes",
    ),
)  # fmt: skip


def _syscalls(world: World, level: Level) -> Iterator[Sample]:
    return samples(ask(world, level, "cost_syscalls", *PACE), SYSCALLS)


def _speed(key: str, title: str, unit: str, amount: float, what: str) -> Series:
    quantity = Quantity(f"cpu.{key}", title, unit, what, "higher", INSIDE, "all data in the first cache", "seconds")
    return Series(key, quantity, per_second(amount))


CPU = (
    _speed(
        "integer", "integer arithmetic", "Msteps/s", 1e-3,
        "Steps of x = x·a + b, x = x ^ x >> 29 in 64 bits, each of which needs the one before: latency, one core.",
    ),
    _speed(
        "float", "floating-point arithmetic", "Msteps/s", 1e-3,
        "Steps of x = x·a + 1 / (x + 2) in double precision, each of which needs the one before: mostly the latency of "
        "a division, one core.",
    ),
    _speed(
        "sort", "sort", "sorts/s", 1.0,
        "The C library's qsort(3) of 1024 numbers of 32 bits, made anew each time: branches that nobody can predict.",
    ),
)  # fmt: skip


def _cpu(world: World, level: Level) -> Iterator[Sample]:
    return samples(ask(world, level, "cost_cpu", *PACE), CPU)


def last_level_cache() -> int:
    """Bytes of the largest cache of this host's first processor (sysfs-devices-system-cpu); 0 where it is not told."""
    sizes = [0]
    for path in glob.glob("/sys/devices/system/cpu/cpu0/cache/index*/size"):
        with open(path) as file:
            text = file.read().strip()
        sizes.append(int(text.rstrip("KM")) << {"K": 10, "M": 20}.get(text[-1:], 0))
    return max(sizes)


def buffer_mib() -> int:
    """MiB of each of the two buffers: 64, or 128 where the last-level cache is larger than half of that."""
    return 64 if last_level_cache() <= 32 * _MIB else 128


_BUFFERS = (
    "64 MiB, or 128 where the last-level cache is larger than 32 (the sample says it): where it is larger than 64, "
    "part of what is measured is that cache"
)


def _stream(key: str, title: str, what: str) -> Series:
    what += f" One core, 1 MiB after the other through a buffer of {_BUFFERS}."
    quantity = Quantity(f"memory.{key}", title, "MiB/s", what, "higher", INSIDE, "every page mapped", "seconds")
    return Series(key, quantity, per_second(1.0))


MEMORY = (
    _stream("read", "memory read", "Sums of all 64-bit words."),
    _stream("write", "memory write", "memset(3) of the C library."),
    _stream("copy", "memory copy", "memcpy(3) of the C library to another buffer; a byte counts once."),
    Series(
        "chase",
        Quantity(
            "memory.latency", "memory latency", "ns",
            "A step of a walk through the 64-byte lines of both buffers in random order, where the next line is known "
            f"when this one is there: mostly a miss in every cache and in the TLB. Each buffer has {_BUFFERS}.",
            "lower", INSIDE, "every page mapped, of 4 KiB where the kernel does not choose larger ones",
            "steps in the batch",
        ),
    ),
)  # fmt: skip


def _memory(world: World, level: Level) -> Iterator[Sample]:
    mib = buffer_mib()
    found = ask(world, level, "cost_memory", f"mib={mib}", *PACE)
    return samples(found, MEMORY, f"buffers of {mib} MiB")


MEASURES = (
    Measure("syscalls", "cost", "system calls", _syscalls, quantities(SYSCALLS), rounds=(3, 9), seconds=0.6),
    Measure("cpu", "cost", "computing", _cpu, quantities(CPU), rounds=(3, 9), seconds=0.2),
    Measure("bandwidth", "cost", "memory bandwidth", _memory, quantities(MEMORY), rounds=(3, 9), seconds=0.6),
)
