"""What few containers ask of their cgroup, as far as both backends say it alike: checked values and lines.

``cgroup_v1_rare`` and ``cgroup_v2_rare`` have the files. See config-linux.md, "Block IO", "Huge page limits", "RDMA".
"""

from __future__ import annotations

import posix as os

from pycontain.runtime.errors import SpecError
from pycontain.runtime.kernel.cgroup import RESOURCES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from pycontain.runtime.kernel.cgroup import Setting

# Of $.linux.resources.blockIO: what is limited, in bytes or operations a second.
THROTTLES = ("throttleReadBpsDevice", "throttleWriteBpsDevice", "throttleReadIOPSDevice", "throttleWriteIOPSDevice")


def weight(value: int, where: str) -> int:
    """``value`` itself, if it is a weight of block IO. Raises SpecError."""
    if not 10 <= value <= 1000:
        raise SpecError(RESOURCES + where, f"found {value}, wanted 10 to 1000")
    return value


def device(entry: dict[str, Any]) -> str:
    """``MAJOR:MINOR`` of an entry for a device."""
    return f"{entry['major']}:{entry['minor']}"


def device_weights(block: dict[str, Any]) -> Iterator[tuple[str, str, str, int]]:
    """(field, JSON path, device, weight) of every weight in ``blockIO.weightDevice``. Raises SpecError."""
    for i, entry in enumerate(block.get("weightDevice") or ()):
        where = f"blockIO.weightDevice[{i}]"
        fields = [field for field in ("weight", "leafWeight") if entry.get(field)]
        if not fields:
            raise SpecError(RESOURCES + where, "found neither a weight nor a leafWeight")
        for field in fields:
            yield field, f"{where}.{field}", device(entry), weight(entry[field], f"{where}.{field}")


def throttles(block: dict[str, Any]) -> Iterator[tuple[str, str, str, int]]:
    """(field, JSON path, device, rate) of every ``blockIO.throttle*``; a rate of nought is none, as on v1."""
    for field in THROTTLES:
        for i, entry in enumerate(block.get(field) or ()):
            yield field, f"blockIO.{field}[{i}]", device(entry), entry["rate"]


def hugepage_files(directory: str, suffix: str) -> dict[str, list[str]]:
    """For each size of huge pages its files with ``suffix``: what is used and, since Linux 5.7, what is reserved."""
    files = [name for name in os.listdir(directory) if name.startswith("hugetlb.") and name.endswith(suffix)]
    sizes = sorted(name[8 : -len(suffix)] for name in files)
    return {
        size: [f"{directory}/hugetlb.{name}{suffix}" for name in (size, f"{size}.rsvd") if name in sizes]
        for size in sizes
        if "." not in size
    }


def hugepages(limits: list[dict[str, Any]], directory: str, suffix: str) -> list[Setting]:
    """A limit for each size, in both of its files. Raises SpecError for a size that the kernel does not have."""
    found: list[Setting] = []
    files = hugepage_files(directory, suffix)
    for i, entry in enumerate(limits):
        where, size = f"hugepageLimits[{i}]", entry["pageSize"]
        if size not in files:
            raise SpecError(f"{RESOURCES}{where}.pageSize", f"found {size!r}, wanted one of {', '.join(files)}")
        found.extend((f"{where}.limit", file, str(entry["limit"])) for file in files[size])
    return found


def rdma(limits: dict[str, dict[str, int]], file: Callable[[str], str]) -> list[Setting]:
    """A line for each device; ``file`` gives the path for a JSON path. Raises SpecError."""
    found = []
    for name, entry in limits.items():
        where = f"rdma[{name!r}]"
        fields = (("hca_handle", "hcaHandles"), ("hca_object", "hcaObjects"))
        words = [f"{word}={entry[field]}" for word, field in fields if entry.get(field) is not None]
        if not words:
            raise SpecError(RESOURCES + where, "found neither hcaHandles nor hcaObjects")
        if not name or not name.isprintable() or " " in name:
            raise SpecError(RESOURCES + where, "not the name of a device")
        found.append((where, file(where), " ".join([name, *words])))
    return found


def some(**fields: Any) -> dict[str, Any]:
    """The fields that say something: what is nought, empty or unknown is left out, as runc leaves it out."""
    return {name: value for name, value in fields.items() if value}


def numbers(text: str) -> list[int]:
    """``0-2,5`` as [0, 1, 2, 5]."""
    found: list[int] = []
    for part in text.strip().split(",") if text.strip() else ():
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def blkio_entry(key: str, value: int) -> dict[str, Any]:
    """``8:0 Read`` and a count as an entry of the statistics of block IO."""
    device, _, operation = key.partition(" ")
    major, _, minor = device.partition(":")
    return some(major=int(major), minor=int(minor), op=operation, value=value)
