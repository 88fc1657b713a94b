"""Cgroup version 2, alone on its host (kernel: admin-guide/cgroup-v2)."""

from __future__ import annotations

import posix as os

from pycontain.runtime import errors
from pycontain.runtime.kernel.cgroup import FREEZE_SECONDS, RESOURCES, Cgroup, any_rare, asked, check, host_has_swap
from pycontain.runtime.kernel.files import number, read, read_int, read_table, table, write
from pycontain.runtime.kernel.hierarchies import Hierarchy
from pycontain.runtime.paths import directory_of, exists

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from pycontain.runtime.kernel.cgroup import Setting

CONTROLLERS = ("cpuset", "cpu", "io", "memory", "pids")  # those that a limit of the specification needs


class CgroupV2(Cgroup):
    """See :class:`Cgroup`. ``mount`` is where cgroup2 is mounted, ``at`` the cgroup's one directory."""

    __slots__ = ("at", "mount")

    def __init__(self, path: str, found: list[Hierarchy]) -> None:
        hierarchy = next(item for item in found if item.unified)
        super().__init__(path, [hierarchy])
        self.mount = hierarchy.mount
        self.at = hierarchy.mount + path

    def _prepare(self) -> None:
        self.enable(read(f"{self.mount}/cgroup.controllers").split())

    def enable(self, wanted: list[str]) -> None:
        """A controller reaches a cgroup when every level above has it in cgroup.subtree_control."""
        if set(wanted) <= set(read(f"{self.at}/cgroup.controllers").split()):
            return
        level = self.mount
        for part in self.path.split("/")[1:]:
            self._enable(level, wanted)
            level += "/" + part

    def _enable(self, level: str, controllers: list[str]) -> None:
        file = f"{level}/cgroup.subtree_control"
        try:
            write(file, " ".join("+" + name for name in controllers))
        except OSError:
            # All or nothing, so one by one: EBUSY where the level holds processes itself, EINVAL for cpu where
            # realtime processes run. What is missing in the end is named when a value is written for it.
            for name in controllers:
                try:
                    write(file, "+" + name)
                except OSError:
                    continue

    def settings(self, resources: dict[str, Any]) -> list[Setting]:
        check(resources)
        settings: list[Setting] = []
        memory = resources.get("memory")
        if memory:
            self._memory(memory, settings)
        cpu = resources.get("cpu")
        if cpu:
            self._cpu(cpu, settings)
        limit = (resources.get("pids") or {}).get("limit")
        if limit is not None:
            settings.append(("pids.limit", self.file("pids.max", "pids.limit"), _limit(limit)))
        if any_rare(resources):
            from pycontain.runtime.kernel.cgroup_v2_rare import rare_settings

            settings += rare_settings(self, resources)
        return settings

    def _memory(self, memory: dict[str, Any], settings: list[Setting]) -> None:
        for field in ("swappiness", "disableOOMKiller", "kernelTCP"):
            value = memory.get(field)
            if value is not None and value is not False and (field != "kernelTCP" or value > 0):
                raise errors.Unsupported(f"{RESOURCES}memory.{field}: cgroup v2 has no such setting")
        limit, swap = memory.get("limit"), memory.get("swap")
        if limit:
            file = self.file("memory.max", "memory.limit")
            if memory.get("checkBeforeUpdate") and limit != -1:
                self._check_usage(limit)
            settings.append(("memory.limit", file, _limit(limit)))
        swap_max = swap_value(limit, swap)
        if swap_max is not None:
            file = self.file("memory.swap.max", "memory.swap")
            if exists(file):
                settings.append(("memory.swap", file, swap_max))
            elif swap_max != "max" and (swap_max != "0" or host_has_swap()):
                raise errors.Unsupported(
                    f"{RESOURCES}memory.swap: this kernel does not account for swap (no {file})",
                    hint="boot with swapaccount=1 on the kernel's command line",
                )
        reservation = memory.get("reservation")
        if reservation:
            file = self.file("memory.low", "memory.reservation")
            settings.append(("memory.reservation", file, _limit(reservation)))

    def _check_usage(self, limit: int) -> None:
        # v1 refuses a limit below the usage; v2 takes it and kills, unless somebody looks first.
        usage = read_int(f"{self.at}/memory.current") or 0
        if usage > limit:
            raise errors.KernelError(
                f"{RESOURCES}memory.limit: {limit} is less than the {usage} bytes in use", errors.EBUSY
            )

    def _cpu(self, cpu: dict[str, Any], settings: list[Setting]) -> None:
        for field in ("realtimePeriod", "realtimeRuntime"):
            if cpu.get(field):
                raise errors.Unsupported(f"{RESOURCES}cpu.{field}: cgroup v2 has no such setting")
        if cpu.get("shares"):
            weight = str(weight_of_shares(cpu["shares"]))
            settings.append(("cpu.shares", self.file("cpu.weight", "cpu.shares"), weight))
        quota, period = cpu.get("quota") or 0, cpu.get("period") or 0
        if quota or period:
            where = "cpu.quota" if quota else "cpu.period"
            file = self.file("cpu.max", where)
            first = str(quota) if quota > 0 else "max" if quota else read(file).split()[0]
            settings.append((where, file, f"{first} {period}" if period else first))
        for field, name in (("burst", "cpu.max.burst"), ("idle", "cpu.idle")):
            if cpu.get(field) is not None:
                settings.append((f"cpu.{field}", self.file(name, f"cpu.{field}"), str(cpu[field])))
        for field in ("cpus", "mems"):
            if cpu.get(field):
                settings.append((f"cpu.{field}", self.file(f"cpuset.{field}", f"cpu.{field}"), cpu[field]))

    def file(self, file: str, where: str) -> str:
        """The path of ``file``, once its controller is known to be there."""
        path = f"{self.at}/{file}"
        controller = file.partition(".")[0]
        if controller != "cgroup" and not exists(path):
            self.need(controller, where)
        return path

    def need(self, controller: str, where: str) -> None:
        """Raises Unsupported where the host has no such controller, or the cgroup has not got it."""
        if controller not in read(f"{self.mount}/cgroup.controllers").split():
            raise errors.Unsupported(f"{RESOURCES}{where}: this host has no {controller} controller")
        if controller not in read(f"{self.at}/cgroup.controllers").split():
            raise errors.Unsupported(
                f"{RESOURCES}{where}: the {controller} controller is not enabled for {self.path}",
                hint=f"move the processes out of the cgroups above it and enable it: "
                f"echo +{controller} > {directory_of(self.at)}/cgroup.subtree_control",
            )

    def join_fds(self) -> tuple[str, Any]:
        return "v2", self._open(self.at, os.O_RDONLY | os.O_DIRECTORY)

    def device_program(self, resources: dict[str, Any]) -> bytes | None:
        if "devices" not in resources:
            return None
        from pycontain.runtime.kernel.device_filter import compiled

        return compiled(resources["devices"] or [])

    def _process_directory(self) -> str:
        return self.at

    def freeze(self, frozen: bool) -> None:
        file, wanted = f"{self.at}/cgroup.freeze", int(frozen)
        from time import monotonic, sleep

        deadline = monotonic() + FREEZE_SECONDS
        pause = 0.0005
        try:
            write(file, str(wanted))
            while read_table(f"{self.at}/cgroup.events").get("frozen") != wanted:
                if monotonic() > deadline:
                    write(file, "0")
                    raise errors.KernelError(f"wait for frozen {wanted} in {self.at}/cgroup.events", errors.EBUSY)
                sleep(pause)
                pause = min(pause * 2, 0.05)
        except OSError as error:
            raise errors.KernelError(f"write {wanted} to {file}", error.errno or errors.EINVAL) from error

    def _freeze_soon(self, frozen: bool) -> None:
        try:
            write(f"{self.at}/cgroup.freeze", str(int(frozen)))
        except OSError:
            pass  # removed meanwhile: nothing is left to stop

    def oom_kills(self) -> int:
        return read_table(f"{self.at}/memory.events").get("oom_kill", 0)

    def events(self) -> Any:
        from pycontain.runtime.kernel import cgroup_v2_events

        return cgroup_v2_events

    def stats(self) -> dict[str, Any]:
        texts = {}
        for name in STATS:
            try:
                texts[name] = read(f"{self.at}/{name}")
            except OSError:
                pass
        return counted(texts)


STATS = (
    "memory.events", "memory.current", "memory.max", "memory.peak", "memory.swap.current", "memory.stat",
    "cpu.stat", "pids.current", "pids.max", "io.stat",
)  # fmt: skip


def counted(texts: Mapping[str, str]) -> dict[str, Any]:
    """``Cgroup.stats`` of the texts of those files of ``STATS`` that are there: this host's or a guest's."""
    result: dict[str, Any] = {"oom_kills": table(texts.get("memory.events")).get("oom_kill", 0)}
    usage = number(texts.get("memory.current"))
    if usage is not None:
        counts = table(texts.get("memory.stat"))
        result["memory"] = {
            "usage": usage,
            "limit": number(texts.get("memory.max")),
            "peak": number(texts.get("memory.peak")),
            "swap": number(texts.get("memory.swap.current")),
            "file": counts.get("file", 0),
            "inactive_file": counts.get("inactive_file", 0),
            "anon": counts.get("anon", 0),
        }
    counts = table(texts.get("cpu.stat"))
    if counts:
        cpu = {name: counts.get(f"{name}_usec", 0) * 1000 for name in ("usage", "user", "system")}
        if "nr_periods" in counts:
            cpu["periods"] = counts["nr_periods"]
            cpu["throttled_periods"] = counts.get("nr_throttled", 0)
            cpu["throttled"] = counts.get("throttled_usec", 0) * 1000
        result["cpu"] = cpu
    current = number(texts.get("pids.current"))
    if current is not None:
        result["pids"] = {"current": current, "limit": number(texts.get("pids.max"))}
    if "io.stat" in texts:
        result["io"] = _io(texts["io.stat"])
    return result


def _limit(value: int) -> str:
    return "max" if value == -1 else str(value)


def _io(text: str) -> dict[str, int]:
    """Sum of rbytes and wbytes over the ``MAJOR:MINOR rbytes=N wbytes=N ...`` lines of io.stat."""
    total = {"read": 0, "written": 0}
    for field in text.split():
        key, _, value = field.partition("=")
        if key == "rbytes":
            total["read"] += number(value) or 0
        elif key == "wbytes":
            total["written"] += number(value) or 0
    return total


def swap_value(limit: int | None, swap: int | None) -> str | None:
    """memory.swap.max for the OCI's (v1's) memory+swap, which counts both; None: leave it as it is.

    Unlimited memory asks for unlimited swap as well, as it must on v1. Raises SpecError where a sum is given and
    the memory's part of it is not.
    """
    if not swap:
        return "max" if limit == -1 else None
    if swap == -1:
        return "max"
    if not limit or limit == -1:
        problem = f"{swap} is the sum of memory and swap, and needs memory.limit beside it"
        raise errors.SpecError(f"{RESOURCES}memory.swap", problem)
    return str(swap - limit)


def weight_of_shares(shares: int) -> int:
    """cpu.weight (1 to 10000, default 100) for v1's cpu.shares (2 to 262144, default 1024).

    A quadratic through the three pairs (2, 1), (1024, 100) and (262144, 10000) in logarithms, as runc (since
    1.3.2) and crun (since 1.23) have it; the linear map of older runtimes made the default 1024 a weight of 39.
    """
    from math import ceil, log2

    power = log2(shares)
    return min(max(ceil(10 ** ((power * power + 125 * power) / 612 - 7 / 34)), 1), 10000)


def only_a_parent(directory: str) -> bool:
    """Whether processes can be below this cgroup only, as it gives controllers to its children (cgroups(7))."""
    return bool(read(f"{directory}/cgroup.subtree_control").strip())


class PlannedCgroup(CgroupV2):
    """A cgroup of a machine's guest: what ``create`` and ``apply`` would do here, as operations of a plan."""

    __slots__ = ("controllers_file",)

    def __init__(self, mount: str, path: str) -> None:
        super().__init__(path, [Hierarchy(mount, (), "", True)])
        self.controllers_file = f"{mount}/cgroup.controllers"

    def operations(self, resources: dict[str, Any], controllers: list[str]) -> list[tuple[Any, ...]]:
        """Make the cgroup, with the guest's ``controllers``, and set what ``$.linux.resources`` asks for."""
        ops: list[tuple[Any, ...]] = []
        level = self.mount
        for part in self.path.strip("/").split("/"):
            ops.append(("write", f"{level}/cgroup.subtree_control", " ".join(f"+{name}" for name in controllers)))
            level += f"/{part}"
            ops.append(("mkdir", level, 0o755, 0, 0))
        return ops + [("write", file, value) for _, file, value in self.settings(resources)]

    def settings(self, resources: dict[str, Any]) -> list[Setting]:
        for section in ("blockIO", "hugepageLimits", "network", "rdma"):
            if asked(resources.get(section)):
                raise errors.Unsupported(f"{RESOURCES}{section}: not in a machine, whose devices are not the host's")
        return super().settings(resources)

    def file(self, file: str, where: str) -> str:
        return f"{self.at}/{file}"
