"""``update``: other limits for a container that exists, from runc's options or a resources object."""

from __future__ import annotations

import posix as os

from pycontain.runtime import spec
from pycontain.runtime.control import cgroup_of
from pycontain.runtime.errors import PycontainError, SpecError, Unsupported
from pycontain.runtime.jsontext import dump, parse
from pycontain.runtime.kernel.cgroup import RESOURCES
from pycontain.runtime.kernel.files import read, write
from pycontain.runtime.paths import MAX_BYTES, read_bounded
from pycontain.runtime.state import Container

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontain.runtime.kernel.cgroup import Cgroup, Setting

# option: (section and field of $.linux.resources, what its value is)
OPTIONS = {
    "--blkio-weight": ("blockIO", "weight", "count"),
    "--cpu-burst": ("cpu", "burst", "count"),
    "--cpu-idle": ("cpu", "idle", "number"),
    "--cpu-period": ("cpu", "period", "count"),
    "--cpu-quota": ("cpu", "quota", "number"),
    "--cpu-rt-period": ("cpu", "realtimePeriod", "count"),
    "--cpu-rt-runtime": ("cpu", "realtimeRuntime", "number"),
    "--cpu-share": ("cpu", "shares", "count"),
    "--cpuset-cpus": ("cpu", "cpus", "list"),
    "--cpuset-mems": ("cpu", "mems", "list"),
    "--kernel-memory": ("memory", "kernel", "bytes"),
    "--kernel-memory-tcp": ("memory", "kernelTCP", "bytes"),
    "--memory": ("memory", "limit", "bytes"),
    "--memory-reservation": ("memory", "reservation", "bytes"),
    "--memory-swap": ("memory", "swap", "bytes"),
    "--pids-limit": ("pids", "limit", "number"),
}
REFUSED = ("--l3-cache-schema", "--mem-bw-schema")
_UNITS = "kmgtp"
_MOST = (1 << 63) - 1


def resources_of(options: dict[str, str]) -> dict[str, Any]:
    """The resources object that ``options`` (name to text) ask for. Raises PycontainError, Unsupported."""
    for name in REFUSED:
        if options.get(name):
            raise Unsupported(f"update {name}: schemas of Intel RDT are not supported")
    resources: dict[str, Any] = {}
    for name, text in options.items():
        if name in OPTIONS and text:
            section, field, kind = OPTIONS[name]
            resources.setdefault(section, {})[field] = _value(name, text, kind)
    return resources


def _value(name: str, text: str, kind: str) -> int | str:
    if kind == "list":
        return text
    if kind == "bytes":
        value = -1 if text == "-1" else size(text)
        wanted = "bytes, such as 64m, or -1 for no limit"
    else:
        digits = text[1:] if kind == "number" and text[0] == "-" else text
        value = int(text) if digits.isascii() and digits.isdigit() and len(digits) < 20 else None
        wanted = "a whole number" if kind == "number" else "a whole number from 0 up"
    if value is None or not -_MOST <= value <= _MOST:
        raise PycontainError(f"update {name}: found {text!r}, wanted {wanted}")
    return value


def size(text: str) -> int | None:
    """``64m``, ``1.5 GiB``, ``100kb`` or a plain number as bytes, in units of 1024 as docker and runc have them."""
    number = text.lower()
    for end in ("ib", "b"):
        number = number.removesuffix(end) if len(number) == len(text) else number
    unit = number[-1:] if number[-1:] in _UNITS else ""
    if text.lower().endswith("ib") and not unit:
        return None
    whole, dot, part = number.removesuffix(unit).rstrip(" ").partition(".")
    if not (whole + part).isascii() or not whole.isdigit() or len(whole) > 19 or (dot and not part.isdigit()):
        return None
    scale: int = 1024 ** (_UNITS.index(unit) + 1) if unit else 1
    return int(whole) * scale + (int(part[:19]) * scale // 10 ** len(part[:19]) if part else 0)


def read_resources(path: str) -> dict[str, Any]:
    """The resources object in a file, or on standard input for ``-``. Raises what reading and checking it raises."""
    if path == "-":
        data = b""
        while part := os.read(0, 65536):
            data += part
            if len(data) > MAX_BYTES:
                raise PycontainError(f"cannot read standard input: found more than {MAX_BYTES} bytes")
        return spec.check_resources(parse(data, "standard input"))
    return spec.check_resources(parse(read_bounded(path), path))


def update(id: str, resources: dict[str, Any], *, root: str) -> None:
    """Give a created, running or paused container other limits; what ``resources`` leaves out stays as it is.

    The record keeps the new ones. Where one value is refused, the others are as they were.
    Raises Conflict, SpecError, Unsupported, KernelError.
    """
    with Container.open(root, id) as container:
        container.require("update")
        if "machine" in container.fields:
            raise Unsupported(f"cannot update container {id}: it is in a machine, whose size is settled when it boots")
        path = f"{container.directory}/config.json"
        config = parse(read_bounded(path), path)
        linux = config.setdefault("linux", {})
        before = linux.get("resources") or {}
        devices = resources.get("devices")
        if devices and devices != before.get("devices"):
            raise Unsupported(f"{RESOURCES}devices: the device rules of a container that exists cannot be changed")
        change = {key: value for key, value in resources.items() if key != "devices"}
        if change.get("memory"):
            change["memory"] = _with_the_other_limit(change["memory"], before.get("memory") or {})
        if change.get("cpu"):
            change["cpu"] = _with_the_other_half(change["cpu"], before.get("cpu") or {})
        _apply(cgroup_of(container), change)
        linux["resources"] = merge(before, change)
        container.write_config(dump(config).encode())


def _with_the_other_limit(new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """Memory and memory+swap go together: v2 has the difference in its file, v1 refuses a sum below its part."""
    limit, swap = new.get("limit"), new.get("swap")
    if limit and not swap and limit != -1:
        swap = old.get("swap")
        if swap and 0 < swap < limit:
            raise SpecError(
                f"{RESOURCES}memory.swap",
                f"the container's {swap}, the sum of memory and swap, is less than the new memory.limit {limit}",
                hint="set both: --memory-swap, or memory.swap beside memory.limit",
            )
    elif swap and not limit:
        limit = old.get("limit")
    return {**new, **{key: value for key, value in (("limit", limit), ("swap", swap)) if value}}


def _with_the_other_half(new: dict[str, Any], old: dict[str, Any]) -> dict[str, Any]:
    """A quota is of a period: systemd knows no half of the pair, and takes its own period for one that is not said."""
    halves = {key: new.get(key) or old.get(key) for key in ("quota", "period")}
    return {**new, **{key: value for key, value in halves.items() if value and (new.get("quota") or new.get("period"))}}


def merge(old: Any, new: Any) -> Any:
    """``old`` with ``new`` in it: objects field by field, lists of objects by what names the object, others whole."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: merge(old.get(key), value) for key, value in new.items()}}
    if isinstance(old, list) and isinstance(new, list):
        found = {_name(item): item for item in old}
        for item in new:
            found[_name(item)] = merge(found.get(_name(item)), item)
        return list(found.values())
    return new


def _name(item: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(item.get(key) for key in ("major", "minor", "pageSize", "name"))


def _apply(cgroup: Cgroup, change: dict[str, Any]) -> None:
    settings = cgroup.settings(change)
    before = {file: _lines(cgroup, file) for _, file, _ in settings}
    try:
        cgroup.apply(change)
    except PycontainError as error:
        undo = _undo(settings, before)
        for file, line in undo + undo:  # twice, as some bound each other
            try:
                write(file, line)
            except OSError:
                continue  # what counts is what the files say in the end
        changed = sorted(file for file, lines in before.items() if _lines(cgroup, file) != lines)
        if changed:
            error.hint = f"this is not as it was before: {', '.join(changed)}"
        raise


def _lines(cgroup: Cgroup, file: str) -> list[str]:
    try:
        return cgroup.writable(file, read(file))
    except OSError:
        return []  # not there, and so refused when it is written


def _undo(settings: list[Setting], before: dict[str, list[str]]) -> list[tuple[str, str]]:
    """(file, line) of what to write so that the files of ``settings`` say again what they said."""
    undo = [(file, line) for file, lines in before.items() for line in lines]
    for _, file, value in settings:
        known = [line.split()[0] for line in before[file]]
        name, *words = value.split() or [""]
        if (":" in name or "=" in value) and name not in known:
            # A device without a line of its own yet: back to no limits, to the default weight, or to no rate.
            limits = [word.partition("=")[0] + "=max" for word in words if "=" in word]
            undo.append((file, " ".join([name, *(limits or ["default" if "default" in known else "0"])])))
    return undo
