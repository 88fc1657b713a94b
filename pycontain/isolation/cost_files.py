"""What files cost at a level: in a directory of the host's disk, and in its own root file system."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pycontain.isolation.cost_probe import INSIDE, PACE, Series, ask, per_second, quantities, samples, writable
from pycontain.isolation.model import Bind, Level, Measure, Quantity, Sample
from pycontain.runtime.errors import KernelError, Unsupported

if TYPE_CHECKING:
    from pycontain.isolation.world import World

MIB = 16
_COLD = 5, 64  # batches, reads in each

_DISK = "In a directory of the host's disk that the level may write to."
_ROOT = (
    "In /tmp of the level's own root file system: a tmpfs of the host, or a machine's disk image."
)


def _series(prefix: str, at: str, place: str, written: str) -> tuple[Series, ...]:
    warm = "page cache warm at every layer: the same program wrote the file right before"

    def time(key: str, title: str, what: str, cache: str, of: str) -> Series:
        of += " in the batch"
        found = Quantity(f"{prefix}.{key}", f"{title}, {at}", "ns", f"{what} {place}", "lower", INSIDE, cache, of)
        return Series(key, found)

    def speed(key: str, title: str, what: str, cache: str, mib: int) -> Series:
        what += f" {place}"
        of = "seconds, fsync's included"
        found = Quantity(f"{prefix}.{key}", f"{title}, {at}", "MiB/s", what, "higher", INSIDE, cache, of)
        return Series(key, found, per_second(mib))

    return (
        time("open", "open and close", "open(2) read-only and close(2) of one file.", "path warm", "pairs of calls"),
        time(
            "create", "create and remove a file",
            "open(2) of a new file, close(2), unlink(2); a journal is not waited for.", "directory warm", "files",
        ),
        time("random", "random read, warm", f"pread(2) of 4 KiB anywhere in a file of {MIB} MiB.", warm, "reads"),
        speed("read", "sequential read, warm", f"pread(2) of 1 MiB after the other of a file of {MIB} MiB.", warm, 1),
        speed(
            "write", "sequential write",
            f"A file of {MIB} MiB is emptied and written anew, 1 MiB after the other, {written}.",
            "nothing of the file there: its room is to be found anew", MIB,
        ),
    )  # fmt: skip


DISK = _series(
    "file", "disk", _DISK,
    "until fsync(2) says that it is on the disk; that this is so, is the word of the level's lowest layer",
)  # fmt: skip
ROOT = _series("root", "root", _ROOT, "then fsync(2), which has nothing to do on a tmpfs")
COLD = (
    Series(
        "cold",
        Quantity(
            "file.cold", "random read, cold, disk", "ns",
            f"pread(2) of 4 KiB anywhere in a file of {MIB} MiB, no place twice, without read-ahead. {_DISK}",
            clock=INSIDE, denominator="reads in the batch",
            cache="nothing of the file in the host's page cache (posix_fadvise(2), seen by mincore(2)), a sentry or "
            "guest that is fresh; a cache below the host's disk is not ours to empty",
        ),
    ),
)  # fmt: skip


def _disk(world: World, level: Level) -> Iterator[Sample]:
    with writable(world, "cost") as source:
        binds = (Bind(source, "/data", writable=True),)
        found = ask(world, level, "cost_file", "dir={data}", f"mib={MIB}", *PACE, binds=binds)
    return samples(found, DISK)


def _root(world: World, level: Level) -> Iterator[Sample]:
    if level.name == "process":
        raise Unsupported("a process of the host has no root file system of its own")
    return samples(ask(world, level, "cost_file", "dir=/tmp", f"mib={MIB}", *PACE), ROOT)


def cached(fd: int) -> int:
    """How many pages of a file are in the page cache (mincore(2); a read that may not wait would start to fetch them).
    Raises KernelError."""
    size = os.fstat(fd).st_size
    pages = -(-size // mmap.PAGESIZE)
    vector = (ctypes.c_ubyte * pages)()
    with mmap.mmap(fd, size, access=mmap.ACCESS_COPY) as mapping:
        start = ctypes.c_char.from_buffer(mapping)  # a private mapping that nobody has touched: the file's own pages
        failed = ctypes.CDLL(None, use_errno=True).mincore(ctypes.byref(start), ctypes.c_size_t(size), vector)
        del start
    if failed:
        raise KernelError("see what of a file is in the page cache", ctypes.get_errno())
    return sum(page & 1 for page in vector)


def evict(fd: int) -> bool:
    """Write a file to the disk and take it out of the page cache: whether that worked, which a tmpfs never lets."""
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return not cached(fd)


def _cold(world: World, level: Level) -> Iterator[Sample]:
    batches, count = _COLD
    with writable(world, "cost") as source:
        with open(f"{source}/cold", "w+b", buffering=0) as file:
            os.chmod(file.name, 0o644)
            file.write(os.urandom(MIB << 20))
            if not evict(file.fileno()):
                raise Unsupported(f"{file.name} stays in the page cache: its file system keeps files in memory")
        words = ("cost_cold", "file={data}/cold", f"count={count}", f"batches={batches}")
        found = ask(world, level, *words, binds=(Bind(source, "/data"),))
    return samples(found, COLD)


MEASURES = (
    Measure("files", "cost", "files on the disk", _disk, quantities(DISK), rounds=(2, 9), seconds=0.6),
    Measure("files-cold", "cost", "files on the disk, not cached", _cold, quantities(COLD), rounds=(2, 9), seconds=0.4),
    Measure("files-root", "cost", "files of the root file system", _root, quantities(ROOT), rounds=(2, 9), seconds=0.4),
)
