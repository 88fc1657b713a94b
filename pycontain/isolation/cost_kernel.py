"""What a level costs a program that computes and one that calls the kernel."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pycontain.isolation.cost_probe import INSIDE, Series, ask, per_second, quantities, samples
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
    return samples(ask(world, level, "cost_syscalls", "ms=4", "batches=5"), SYSCALLS)


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
        "The C library's qsort(3) of 4096 numbers of 32 bits, made anew each time: branches that nobody can predict.",
    ),
)  # fmt: skip


def _cpu(world: World, level: Level) -> Iterator[Sample]:
    return samples(ask(world, level, "cost_cpu", "ms=8", "batches=5"), CPU)


def last_level_cache() -> int:
    """Bytes of the largest cache of this host's first processor (sysfs-devices-system-cpu); 0 where it is not told."""
    sizes = [0]
    for path in glob.glob("/sys/devices/system/cpu/cpu0/cache/index*/size"):
        with open(path) as file:
            text = file.read().strip()
        sizes.append(int(text.rstrip("KM")) << {"K": 10, "M": 20}.get(text[-1:], 0))
    return max(sizes)


def buffer_mib() -> int:
    """The size of the buffer in MiB: twice the last-level cache, but from 64 to 128, so that it fits in any level."""
    return min(128, max(64, 2 * last_level_cache() // _MIB))


_BUFFER = (
    "a buffer of twice the last-level cache, but from 64 to 128 MiB (the sample says its size): "
    "on a host with a cache larger than that, some of it is cached"
)


def _pass(key: str, title: str, mib: int, what: str) -> Series:
    quantity = Quantity(
        f"memory.{key}", title, "MiB/s", f"{what} One core.", "higher", INSIDE, f"pages mapped; {_BUFFER}", "seconds"
    )
    return Series(key, quantity, per_second(mib))


def _memory_series(mib: int) -> tuple[Series, ...]:
    return (
        _pass("read", "memory read", mib, "Sums of all 64-bit words of the buffer."),
        _pass("write", "memory write", mib, "memset(3) of the buffer by the C library."),
        _pass("copy", "memory copy", mib, "memcpy(3) of the buffer to another; a byte that is copied counts once."),
        Series(
            "chase",
            Quantity(
                "memory.latency", "memory latency", "ns",
                "A step of a walk through all 64-byte lines of the buffer in random order, where each line says the "
                "next: a miss in every cache, and mostly one in the TLB as well.",
                clock=INSIDE, cache=f"pages mapped, of 4 KiB where the kernel does not choose larger ones; {_BUFFER}",
                denominator="steps in the batch",
            ),
        ),
    )  # fmt: skip


def _memory(world: World, level: Level) -> Iterator[Sample]:
    mib = buffer_mib()
    found = ask(world, level, "cost_memory", f"mib={mib}", "ms=20", "batches=5")
    return samples(found, _memory_series(mib), f"a buffer of {mib} MiB")


_BANDWIDTH = quantities(_memory_series(1))
MEASURES = (
    Measure("syscalls", "cost", "system calls", _syscalls, quantities(SYSCALLS), rounds=(3, 9), seconds=0.6),
    Measure("cpu", "cost", "computing", _cpu, quantities(CPU), rounds=(3, 9), seconds=0.2),
    Measure("bandwidth", "cost", "memory bandwidth", _memory, _BANDWIDTH, rounds=(3, 9), seconds=0.6),
)
