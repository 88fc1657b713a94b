"""Cgroup version 1, and hybrid hosts: one directory in each of the hierarchies (kernel: admin-guide/cgroup-v1)."""

from __future__ import annotations

import posix as os

from pycontain.runtime import errors
from pycontain.runtime.kernel.cgroup import (
    FREEZE_SECONDS,
    RESOURCES,
    Cgroup,
    any_rare,
    check,
    host_has_swap,
    write_settings,
)
from pycontain.runtime.kernel.files import read, read_int, read_table, write
from pycontain.runtime.kernel.hierarchies import Hierarchy, tree
from pycontain.runtime.paths import directory_of, exists

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontain.runtime.kernel.cgroup import Setting

    Key = tuple[str, str, str]  # (type c or b, major or *, minor or *)

# A page_counter without a limit reads as LONG_MAX rounded down to a page.
_UNLIMITED = 1 << 62

# OCI field, file; written as they are. The order is the one that works on a new cgroup.
_CPU = (
    ("shares", "cpu.shares"),
    ("period", "cpu.cfs_period_us"),
    ("quota", "cpu.cfs_quota_us"),
    ("burst", "cpu.cfs_burst_us"),
    ("realtimePeriod", "cpu.rt_period_us"),
    ("realtimeRuntime", "cpu.rt_runtime_us"),
    ("idle", "cpu.idle"),
)
# Here nought is no limit that anybody could want, but what some engines write for "not set".
_UNSET_IS_ZERO = frozenset(("shares", "period", "quota", "realtimePeriod", "realtimeRuntime"))


class CgroupV1(Cgroup):
    """See :class:`Cgroup`. ``by_controller`` maps a controller to its directory (co-mounted ones share it)."""

    __slots__ = ("by_controller",)

    def __init__(self, path: str, found: list[Hierarchy]) -> None:
        super().__init__(path, found)
        self.by_controller = {name: item.mount + path for item in found for name in item.controllers}

    def _prepare(self) -> None:
        directory = self.by_controller.get("cpuset")
        if directory:
            _inherit_cpuset(directory)

    def apply(self, resources: dict[str, Any]) -> None:
        settings = self.settings(resources)
        if "devices" in resources:
            self._devices(resources["devices"] or [])
        write_settings(settings)

    def settings(self, resources: dict[str, Any]) -> list[Setting]:
        check(resources)
        settings: list[Setting] = []
        memory = resources.get("memory")
        if memory:
            self._memory(memory, settings)
        cpu = resources.get("cpu")
        if cpu:
            for field, file in _CPU:
                value = cpu.get(field)
                if value is not None and (value or field not in _UNSET_IS_ZERO):
                    settings.append((f"cpu.{field}", self.file("cpu", file, f"cpu.{field}"), str(value)))
            for field in ("cpus", "mems"):
                if cpu.get(field):
                    file = self.file("cpuset", f"cpuset.{field}", f"cpu.{field}")
                    settings.append((f"cpu.{field}", file, cpu[field]))
        limit = (resources.get("pids") or {}).get("limit")
        if limit is not None:
            value = "max" if limit == -1 else str(limit)
            settings.append(("pids.limit", self.file("pids", "pids.max", "pids.limit"), value))
        if any_rare(resources):
            from pycontain.runtime.kernel.cgroup_v1_rare import rare_settings

            settings += rare_settings(self, resources)
        return settings

    def _memory(self, memory: dict[str, Any], settings: list[Setting]) -> None:
        limit, swap = memory.get("limit"), memory.get("swap")
        if limit:
            settings.append(("memory.limit", self.file("memory", "memory.limit_in_bytes", "memory.limit"), str(limit)))
        if swap or limit == -1:
            file = self.file("memory", "memory.memsw.limit_in_bytes", "memory.swap")
            if exists(file):
                # Unlimited memory is possible only with unlimited memory+swap.
                settings.append(("memory.swap", file, str(swap or -1)))
            elif swap and swap != -1 and (swap != limit or host_has_swap()):
                raise errors.Unsupported(
                    f"{RESOURCES}memory.swap: this kernel does not account for swap (no {file})",
                    hint="boot with swapaccount=1 on the kernel's command line",
                )
        for field, name in (
            ("reservation", "memory.soft_limit_in_bytes"),
            ("kernelTCP", "memory.kmem.tcp.limit_in_bytes"),
            ("swappiness", "memory.swappiness"),
            ("disableOOMKiller", "memory.oom_control"),
        ):
            value = memory.get(field)
            if value is None or (not value and field in ("reservation", "kernelTCP")):
                continue
            settings.append((f"memory.{field}", self.file("memory", name, f"memory.{field}"), str(int(value))))

    def _devices(self, rules: list[dict[str, Any]]) -> None:
        """The list is an allowlist: what no rule allows is denied (GHSA-g54h-m393-cpwq was the other reading)."""
        directory = directory_of(self.file("devices", "devices.deny", "devices"))
        for file, text in device_writes(rules):
            try:
                write(f"{directory}/{file}", text)
            except OSError as error:
                tried = f"{RESOURCES}devices: write {text!r} to {directory}/{file}"
                raise errors.KernelError(tried, error.errno or errors.EINVAL) from error

    def file(self, controller: str, file: str, where: str) -> str:
        """The path of ``file``; Unsupported where its controller is in no hierarchy of v1."""
        directory = self.by_controller.get(controller)
        if directory is None:
            raise errors.Unsupported(f"{RESOURCES}{where}: this host has no {controller} controller")
        return f"{directory}/{file}"

    def writable(self, file: str, text: str) -> list[str]:
        # The one file that says more than it takes: "oom_kill_disable 0", and counters.
        return text.split()[1:2] if file.endswith("memory.oom_control") else text.splitlines()

    def join_fds(self) -> tuple[str, Any]:
        fds: list[int] = []
        try:
            for directory in self.directories:
                if directory != self.unified:
                    fds.append(self._open(f"{directory}/tasks", os.O_WRONLY))
        except errors.KernelError:
            for fd in fds:
                os.close(fd)
            raise
        return "v1", fds

    def device_program(self, resources: dict[str, Any]) -> bytes | None:
        return None

    def _process_directory(self) -> str:
        for controller in ("freezer", "pids", "devices"):
            if controller in self.by_controller:
                return self.by_controller[controller]
        return self.directories[0]

    def freeze(self, frozen: bool) -> None:
        directory = self.by_controller.get("freezer")
        if directory is None:
            raise errors.Unsupported(f"freeze cgroup {self.path}: this host has no freezer controller")
        wanted = "FROZEN" if frozen else "THAWED"
        from time import monotonic, sleep

        deadline = monotonic() + FREEZE_SECONDS
        pause = 0.0005
        try:
            while True:
                # Writing again catches what was forked while the state was FREEZING.
                write(f"{directory}/freezer.state", wanted)
                if read(f"{directory}/freezer.state").strip() == wanted:
                    return
                if monotonic() > deadline:
                    break
                sleep(pause)
                pause = min(pause * 2, 0.05)
            write(f"{directory}/freezer.state", "THAWED")
        except OSError as error:
            raise errors.KernelError(
                f"write {wanted} to {directory}/freezer.state", error.errno or errors.EINVAL
            ) from error
        raise errors.KernelError(f"wait for {wanted} in {directory}/freezer.state", errors.EBUSY)

    def _freeze_soon(self, frozen: bool) -> None:
        directory = self.by_controller.get("freezer")
        if directory:
            try:
                write(f"{directory}/freezer.state", "FROZEN" if frozen else "THAWED")
            except OSError:
                pass  # removed meanwhile: nothing is left to stop

    def oom_kills(self) -> int:
        # On v1 the counter is that of one cgroup alone, unlike memory.events of v2.
        directory = self.by_controller.get("memory")
        if directory is None:
            return 0
        return sum(read_table(f"{level}/memory.oom_control").get("oom_kill", 0) for level in tree(directory))

    def events(self) -> Any:
        from pycontain.runtime.kernel import cgroup_v1_events

        return cgroup_v1_events

    def stats(self) -> dict[str, Any]:
        result: dict[str, Any] = {"oom_kills": self.oom_kills()}
        at = self.by_controller
        if "memory" in at:
            base = at["memory"] + "/memory."
            usage = read_int(base + "usage_in_bytes") or 0
            both = read_int(base + "memsw.usage_in_bytes")
            limit = read_int(base + "limit_in_bytes")
            counts = read_table(base + "stat")
            result["memory"] = {
                "usage": usage,
                "limit": None if limit is None or limit >= _UNLIMITED else limit,
                "peak": read_int(base + "max_usage_in_bytes"),
                "swap": None if both is None else max(both - usage, 0),
                "file": counts.get("total_cache", 0),
                "inactive_file": counts.get("total_inactive_file", 0),
                "anon": counts.get("total_rss", 0),
            }
        cpu: dict[str, int | None] = {}
        if "cpuacct" in at:
            base = at["cpuacct"] + "/cpuacct.usage"
            cpu = {"usage": read_int(base), "user": read_int(base + "_user"), "system": read_int(base + "_sys")}
        if "cpu" in at:
            counts = read_table(at["cpu"] + "/cpu.stat")
            cpu["periods"] = counts.get("nr_periods", 0)
            cpu["throttled_periods"] = counts.get("nr_throttled", 0)
            cpu["throttled"] = counts.get("throttled_time", 0)
        if cpu:
            result["cpu"] = cpu
        if "pids" in at:
            result["pids"] = {
                "current": read_int(at["pids"] + "/pids.current"), "limit": read_int(at["pids"] + "/pids.max")
            }  # fmt: skip
        if "blkio" in at:
            result["io"] = _io(at["blkio"] + "/blkio.throttle.io_service_bytes_recursive")
        return result


def _inherit_cpuset(directory: str) -> None:
    """Give a cpuset its parent's CPUs and memory nodes: a new one has none, and refuses every process (ENOSPC)."""
    for file in ("cpuset.cpus", "cpuset.mems"):
        if read(f"{directory}/{file}").strip():
            continue
        parent = directory_of(directory)
        value = read(f"{parent}/{file}").strip()
        if not value:
            _inherit_cpuset(parent)
            value = read(f"{parent}/{file}").strip()
        write(f"{directory}/{file}", value)


def _io(path: str) -> dict[str, int]:
    """Sum of ``MAJOR:MINOR Read N`` and ``... Write N`` lines."""
    total = {"read": 0, "written": 0}
    for key, value in read_table(path).items():
        if key.endswith(" Read"):
            total["read"] += value
        elif key.endswith(" Write"):
            total["written"] += value
    return total


def device_writes(rules: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """What to write to devices.deny and devices.allow, as (file, text), for OCI ``devices`` rules in their order.

    The rules are worked out here first, because the kernel's list knows exact entries only: where ``c 1:*`` is
    allowed, a later denial of ``c 1:3`` is taken and does nothing. Such a rule is refused (Unsupported) instead.
    """
    allow_all = False
    entries: dict[Key, set[str]] = {}  # exceptions from allow_all, or from its contrary
    for index, rule in enumerate(rules):
        allow = bool(rule.get("allow"))
        kind, access = rule.get("type") or "a", set(rule.get("access") or "rwm")
        major, minor = _number(rule.get("major")), _number(rule.get("minor"))
        if kind == "a" and (major, minor) == ("*", "*") and access == set("rwm"):
            allow_all, entries = allow, {}
            continue
        for letter in "bc" if kind == "a" else "c" if kind == "u" else kind:
            key = (letter, major, minor)
            if allow == allow_all:
                _subtract(entries, key, access, index)
            else:
                entries[key] = entries.get(key, set()) | access
    result = [("devices.allow" if allow_all else "devices.deny", "a")]
    file = "devices.deny" if allow_all else "devices.allow"
    for (kind, major, minor), access in entries.items():
        if access:
            result.append((file, f"{kind} {major}:{minor} {''.join(a for a in 'rwm' if a in access)}"))
    return result


def _number(value: int | None) -> str:
    return "*" if value is None or value == -1 else str(value)


def _subtract(entries: dict[Key, set[str]], key: Key, access: set[str], index: int) -> None:
    """Take ``access`` to the devices of ``key`` out of the exceptions; only whole exceptions can be changed."""
    for other, granted in entries.items():
        if (
            other[0] != key[0]
            or not granted & access
            or not all(a == b or "*" in (a, b) for a, b in zip(other[1:], key[1:], strict=True))
        ):
            continue
        if any(b not in ("*", a) for a, b in zip(other[1:], key[1:], strict=True)):
            kind, major, minor = other
            raise errors.Unsupported(
                f"{RESOURCES}devices[{index}]: {kind} {key[1]}:{key[2]} is part of an earlier rule "
                f"({kind} {major}:{minor}), and cgroup v1 cannot take a part out of it"
            )
        granted -= access
