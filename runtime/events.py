"""``events``: statistics of a container and its lacks of memory, in runc's form (its types/events.go)."""

from __future__ import annotations

import posix as os
from errno import EINVAL
from select import POLLIN, poll
from time import monotonic

from pycontain.runtime import lifecycle
from pycontain.runtime.control import cgroup_of
from pycontain.runtime.errors import Conflict, KernelError, NotFound, PycontainError
from pycontain.runtime.kernel.cgroup_rare import some
from pycontain.runtime.state import Container

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pycontain.runtime.kernel.cgroup import Cgroup

    Emit = Callable[[dict[str, Any]], object]

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_NOT_A_CGROUPS: dict[str, Any] = {"intel_rdt": {}, "network_interfaces": None}


def seconds(text: str) -> float:
    """A duration of Go's: ``5s``, ``1m30s``, ``0.5s``, ``250ms``. Raises PycontainError."""
    total, rest, good = 0.0, text, bool(text)
    while rest and good:
        number = rest[: len(rest) - len(rest.lstrip("0123456789."))]
        rest = rest[len(number) :]
        unit = rest[: len(rest) - len(rest.lstrip("hmsuµn"))]
        rest = rest[len(unit) :]
        good = unit in _UNITS and number.replace(".", "", 1).isdigit()
        total += float(number) * _UNITS[unit] if good else 0
    if not good or not total > 0:
        raise PycontainError(f"events --interval: found {text!r}, wanted a time such as 5s or 1m30s")
    return total


def statistics(id: str, *, root: str) -> dict[str, Any]:
    """A ``stats`` event. Raises NotFound, Conflict."""
    with Container.open(root, id) as container:
        container.require("watch")
        if "machine" not in container.fields:
            return _event(id, cgroup_of(container))
    return {"type": "stats", "id": id, "data": _of_guest(lifecycle.stats(id, root=root))}


def _event(id: str, cgroup: Cgroup) -> dict[str, Any]:
    try:
        data = cgroup.events().statistics(cgroup)
    except OSError as error:
        raise KernelError(f"read {error.filename}, a statistic of container {id}", error.errno or EINVAL) from error
    return {"type": "stats", "id": id, "data": {**data, **_NOT_A_CGROUPS}}


def _of_guest(found: dict[str, Any]) -> dict[str, Any]:
    """``Cgroup.stats``, which is what a guest counts, in the same form."""
    cpu, memory, pids = (found.get(name) or {} for name in ("cpu", "memory", "pids"))
    usage = some(total=cpu.get("usage"))
    usage.update(kernel=cpu.get("system", 0), user=cpu.get("user", 0))
    throttling = some(
        periods=cpu.get("periods"), throttledPeriods=cpu.get("throttled_periods"), throttledTime=cpu.get("throttled")
    )
    limit = memory.get("limit")
    entry = {
        "limit": (1 << 64) - 1 if limit is None else limit,
        **some(usage=memory.get("usage"), max=memory.get("peak")),
        "failcnt": 0,
    }
    return {
        "cpu": {"usage": usage, "throttling": throttling},
        "memory": {**some(cache=memory.get("file")), "usage": entry},
        "pids": some(current=pids.get("current"), limit=pids.get("limit")),
        "blkio": {},
        "hugetlb": {},
        **_NOT_A_CGROUPS,
    }


def watch(id: str, interval: float, emit: Emit, *, root: str) -> None:
    """A ``stats`` event every ``interval`` seconds, and an ``oom`` event for each lack of memory, until the end."""
    with Container.open(root, id) as container:
        container.require("watch")
        guest = "machine" in container.fields
        cgroup = cgroup_of(container)
        end = os.pidfd_open(container.pid)
        container.require("watch")  # it was this process that we opened, and not one after it
    waiting = poll()
    waiting.register(end, POLLIN)
    module = cgroup.events()
    kills = fd = 0
    if not guest:
        fd, events, kills = module.oom_fd(cgroup)
        waiting.register(fd, events)
    due = monotonic() + interval
    ended = False
    while not ended:
        ready = waiting.poll(max(0.0, due - monotonic()) * 1000)
        ended = any(number == end for number, _ in ready)
        if guest:
            before, kills = kills, int(lifecycle.guest_oom(id, root=root))
            seen = kills > before
        else:
            seen, kills = module.oom_seen(cgroup, fd, kills)
        if seen:
            emit({"type": "oom", "id": id})
        if not ended and monotonic() >= due:
            due = monotonic() + interval
            try:
                emit(statistics(id, root=root))
            except (Conflict, NotFound):
                continue  # it has ended by now, or it is a machine that is paused: there is nothing to tell
