"""Every property of the specification's config.json, and what setting it does: a table, and the page made of it.

``FIELDS`` has a row for each property of config-schema.json (tests/conformance/test_fields.py holds the two against each
other). A row is a sample, and one of

- nothing more: with the sample the outcome is another than without (another plan, another setting of the cgroup);
- ``refused``: the sample is refused with this text;
- ``ignored``: the specification gives the property to another platform;
- ``by``: a test that exercises the property where a plan does not show it.

``python -m tests.conformance.fields`` writes docs/fields.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "fields.md"

Config = dict[str, Any]


@dataclass(frozen=True)
class Field:
    """``sample``: the property's value. ``beside``: what else the configuration needs, with and without the property."""

    sample: Any = None
    beside: Callable[[Config], object] | None = None
    refused: str = ""
    ignored: str = ""
    by: str = ""


def put(config: Config, path: str, value: Any) -> None:
    """Set ``$.a.b[].c`` to ``value``; ``[]`` is the list's first item and ``*`` any key, both made where missing."""
    parts = path.removeprefix("$.").replace("[]", ".[]").split(".")
    last = parts[-1]
    at: Any = config
    for part, after in pairwise(parts):
        if part == "[]":
            if not at:
                at.append([] if after == "[]" else {})
            at = at[0]
        elif part == "*":
            at = at.setdefault("eth7", {})
        else:
            at = at.setdefault(part, [] if after == "[]" else {})
    at[last] = copy.deepcopy(value)


def sets(**values: Any) -> Callable[[Config], None]:
    """A ``beside`` of ``path=value`` pairs, with ``__`` for the dot."""

    def change(config: Config) -> None:
        for path, value in values.items():
            put(config, "$." + path.replace("__", ".").replace("_0", "[]"), value)

    return change


def block(key: str, value: dict[str, Any]) -> Callable[[Config], None]:
    """A ``beside`` with ``value`` as the only item of the list at ``key``."""
    return lambda config: put(config, key, [dict(value)])


_HOOK = {"path": "/bin/true"}
_DEVICE = {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}
_RULE = {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "r"}
_CALL = {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}
_ARGUMENT = {"index": 0, "value": 5, "op": "SCMP_CMP_MASKED_EQ"}
_DISK = {"major": 8, "minor": 0, "rate": 1000}
_MAP = {"containerID": 0, "hostID": 100000, "size": 65536}
_MOUNT = {"destination": "/data", "type": "bind", "source": "/srv", "options": ["bind"]}
_OFFSETS = {"monotonic": {"secs": 1, "nanosecs": 1}, "boottime": {"secs": 1, "nanosecs": 1}}


def _own_users(config: Config) -> None:
    config["linux"]["namespaces"].append({"type": "user"})
    config["linux"]["uidMappings"], config["linux"]["gidMappings"] = [dict(_MAP)], [dict(_MAP)]


def _filter(config: Config) -> None:
    put(config, "$.linux.seccomp", {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [dict(_CALL)]})


def _filter_with_argument(config: Config) -> None:
    _filter(config)
    put(config, "$.linux.seccomp.syscalls[].args", [dict(_ARGUMENT)])


def _own_clock(config: Config) -> None:
    config["linux"]["namespaces"].append({"type": "time"})
    config["linux"]["timeOffsets"] = {name: dict(offset) for name, offset in _OFFSETS.items()}


def _scheduled(policy: str, **more: Any) -> Callable[[Config], None]:
    return lambda config: put(config, "$.process.scheduler", {"policy": policy, **more})


def _idmapped(config: Config) -> None:
    put(config, "$.mounts", [{**_MOUNT, "options": ["bind", "idmap"], "uidMappings": [dict(_MAP)], "gidMappings": [dict(_MAP)]}])


FIELDS: dict[str, Field] = {
    "$.ociVersion": Field("2.0.0", refused="$.ociVersion: found 2.0.0, wanted 1.x: this runtime knows no other major version"),
    "$.annotations": Field({"org.example": "1"}),
    "$.hostname": Field("box"),
    "$.domainname": Field("example.org"),
    "$.root.path": Field("/srv/other"),
    "$.root.readonly": Field(False),
    "$.mounts[].destination": Field("/elsewhere", block("$.mounts", _MOUNT)),
    "$.mounts[].source": Field("/var", block("$.mounts", _MOUNT)),
    "$.mounts[].type": Field("tmpfs", block("$.mounts", {"destination": "/data", "type": "ramfs"})),
    "$.mounts[].options": Field(["rbind", "ro"], block("$.mounts", _MOUNT)),
    "$.process.args": Field(["/bin/false"]),
    "$.process.commandLine": Field("true", ignored="Windows"),
    "$.process.consoleSize.height": Field(24, sets(process__terminal=True, process__consoleSize={"height": 1, "width": 1})),
    "$.process.consoleSize.width": Field(80, sets(process__terminal=True, process__consoleSize={"height": 1, "width": 1})),
    "$.process.cwd": Field("/tmp"),
    "$.process.env": Field(["A=b"]),
    "$.process.terminal": Field(True),
    "$.process.user.uid": Field(1000),
    "$.process.user.gid": Field(1000),
    "$.process.user.umask": Field(0o77),
    "$.process.user.additionalGids": Field([5]),
    "$.process.user.username": Field("me", ignored="Windows"),
    "$.process.apparmorProfile": Field("confined", refused="$.process.apparmorProfile: AppArmor is not on in this kernel"),
    "$.process.selinuxLabel": Field("system_u:system_r:t:s0", refused="$.process.selinuxLabel: SELinux is not on in this kernel"),
    "$.process.oomScoreAdj": Field(500),
    "$.process.noNewPrivileges": Field(True),
    "$.process.ioPriority.class": Field("IOPRIO_CLASS_IDLE", sets(process__ioPriority={"class": "IOPRIO_CLASS_BE"})),
    "$.process.ioPriority.priority": Field(3, sets(process__ioPriority={"class": "IOPRIO_CLASS_BE"})),
    "$.process.scheduler.policy": Field("SCHED_BATCH", _scheduled("SCHED_OTHER")),
    "$.process.scheduler.nice": Field(5, _scheduled("SCHED_OTHER")),
    "$.process.scheduler.priority": Field(7, _scheduled("SCHED_FIFO", priority=1)),
    "$.process.scheduler.flags": Field(["SCHED_FLAG_RESET_ON_FORK"], _scheduled("SCHED_OTHER")),
    "$.process.scheduler.runtime": Field(2000000, _scheduled("SCHED_DEADLINE", runtime=1000000, deadline=9000000, period=9000000)),
    "$.process.scheduler.deadline": Field(8000000, _scheduled("SCHED_DEADLINE", runtime=1000000, deadline=9000000, period=9000000)),
    "$.process.scheduler.period": Field(9500000, _scheduled("SCHED_DEADLINE", runtime=1000000, deadline=9000000, period=9000000)),
    "$.process.rlimits[].type": Field("RLIMIT_CPU", block("$.process.rlimits", {"type": "RLIMIT_CORE", "soft": 1, "hard": 1})),
    "$.process.rlimits[].soft": Field(0, block("$.process.rlimits", {"type": "RLIMIT_CORE", "soft": 1, "hard": 1})),
    "$.process.rlimits[].hard": Field(2, block("$.process.rlimits", {"type": "RLIMIT_CORE", "soft": 1, "hard": 1})),
    "$.process.execCPUAffinity.initial": Field("0"),
    "$.process.execCPUAffinity.final": Field("0"),
    "$.linux.devices[].type": Field("b", block("$.linux.devices", _DEVICE)),
    "$.linux.devices[].path": Field("/dev/other", block("$.linux.devices", _DEVICE)),
    "$.linux.devices[].fileMode": Field(0o600, block("$.linux.devices", _DEVICE)),
    "$.linux.devices[].major": Field(11, block("$.linux.devices", _DEVICE)),
    "$.linux.devices[].minor": Field(230, block("$.linux.devices", _DEVICE)),
    "$.linux.devices[].uid": Field(5, block("$.linux.devices", _DEVICE)),
    "$.linux.devices[].gid": Field(5, block("$.linux.devices", _DEVICE)),
    "$.linux.netDevices.*.name": Field("inside"),
    "$.linux.namespaces[].type": Field("time"),
    "$.linux.namespaces[].path": Field("/proc/1/ns/pid"),
    "$.linux.cgroupsPath": Field("/elsewhere/box"),
    "$.linux.rootfsPropagation": Field("rprivate"),
    "$.linux.sysctl": Field({"net.ipv4.ip_forward": "1"}),
    "$.linux.maskedPaths": Field(["/proc/kcore"]),
    "$.linux.readonlyPaths": Field(["/proc/sys"]),
    "$.linux.mountLabel": Field("system_u:object_r:t:s0", refused="$.linux.mountLabel: SELinux is not on in this kernel"),
    "$.linux.intelRdt.closID": Field("group", refused="$.linux.intelRdt: groups of resctrl are not built yet"),
    "$.linux.intelRdt.schemata": Field(["L3:0=f"], refused="$.linux.intelRdt: groups of resctrl are not built yet"),
    "$.linux.intelRdt.l3CacheSchema": Field("L3:0=f", refused="$.linux.intelRdt: groups of resctrl are not built yet"),
    "$.linux.intelRdt.memBwSchema": Field("MB:0=50", refused="$.linux.intelRdt: groups of resctrl are not built yet"),
    "$.linux.intelRdt.enableMonitoring": Field(True, refused="$.linux.intelRdt: groups of resctrl are not built yet"),
    "$.linux.memoryPolicy.mode": Field("MPOL_BIND", sets(linux__memoryPolicy={"mode": "MPOL_INTERLEAVE", "nodes": "0"})),
    "$.linux.memoryPolicy.nodes": Field("0-1", sets(linux__memoryPolicy={"mode": "MPOL_INTERLEAVE", "nodes": "0"})),
    "$.linux.memoryPolicy.flags": Field(["MPOL_F_STATIC_NODES"], sets(linux__memoryPolicy={"mode": "MPOL_BIND", "nodes": "0"})),
    "$.linux.personality.domain": Field("LINUX32", sets(linux__personality={"domain": "LINUX"})),
    "$.linux.personality.flags": Field(["ADDR_NO_RANDOMIZE"], sets(linux__personality={"domain": "LINUX"}), refused="$.linux.personality.flags[0]: found 'ADDR_NO_RANDOMIZE', but the specification defines no flags"),
    "$.linux.timeOffsets.boottime.secs": Field(7, _own_clock),
    "$.linux.timeOffsets.boottime.nanosecs": Field(7, _own_clock),
    "$.linux.timeOffsets.monotonic.secs": Field(7, _own_clock),
    "$.linux.timeOffsets.monotonic.nanosecs": Field(7, _own_clock),
    "$.linux.seccomp.defaultAction": Field("SCMP_ACT_LOG", _filter),
    "$.linux.seccomp.defaultErrnoRet": Field(
        38, sets(linux__seccomp={"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{**_CALL, "action": "SCMP_ACT_ALLOW"}]})
    ),
    "$.linux.seccomp.flags": Field(["SECCOMP_FILTER_FLAG_LOG"], _filter),
    "$.linux.seccomp.listenerPath": Field(by="tests/integration/test_process.py"),
    "$.linux.seccomp.listenerMetadata": Field(by="tests/integration/test_process.py"),
    "$.linux.seccomp.architectures": Field(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"], _filter),
    "$.linux.seccomp.syscalls[].names": Field(["chmod"], _filter),
    "$.linux.seccomp.syscalls[].action": Field("SCMP_ACT_KILL_PROCESS", _filter),
    "$.linux.seccomp.syscalls[].errnoRet": Field(38, _filter),
    "$.linux.seccomp.syscalls[].args[].index": Field(1, _filter_with_argument),
    "$.linux.seccomp.syscalls[].args[].value": Field(6, _filter_with_argument),
    "$.linux.seccomp.syscalls[].args[].valueTwo": Field(4, _filter_with_argument),
    "$.linux.seccomp.syscalls[].args[].op": Field("SCMP_CMP_NE", _filter_with_argument),
    "$.linux.resources.unified": Field({"memory.high": "1048576"}),
    "$.linux.resources.devices[].allow": Field(False, block("$.linux.resources.devices", _RULE)),
    "$.linux.resources.devices[].type": Field("b", block("$.linux.resources.devices", _RULE)),
    "$.linux.resources.devices[].major": Field(11, block("$.linux.resources.devices", _RULE)),
    "$.linux.resources.devices[].minor": Field(5, block("$.linux.resources.devices", _RULE)),
    "$.linux.resources.devices[].access": Field("rw", block("$.linux.resources.devices", _RULE)),
    "$.linux.resources.pids.limit": Field(20),
    "$.linux.resources.blockIO.weight": Field(500),
    "$.linux.resources.blockIO.leafWeight": Field(500),
    "$.linux.resources.cpu.cpus": Field("0"),
    "$.linux.resources.cpu.mems": Field("0"),
    "$.linux.resources.cpu.period": Field(50000),
    "$.linux.resources.cpu.quota": Field(50000),
    "$.linux.resources.cpu.burst": Field(1000, sets(linux__resources={"cpu": {"quota": 50000}})),
    "$.linux.resources.cpu.realtimePeriod": Field(1000000),
    "$.linux.resources.cpu.realtimeRuntime": Field(1000),
    "$.linux.resources.cpu.shares": Field(512),
    "$.linux.resources.cpu.idle": Field(1),
    "$.linux.resources.hugepageLimits[].pageSize": Field(
        "1GB", block("$.linux.resources.hugepageLimits", {"pageSize": "2MB", "limit": 0})
    ),
    "$.linux.resources.hugepageLimits[].limit": Field(
        4 << 20, block("$.linux.resources.hugepageLimits", {"pageSize": "2MB", "limit": 0})
    ),
    "$.linux.resources.memory.kernel": Field(1 << 20, refused="$.linux.resources.memory.kernel: not possible, Linux 5.16 dropped limits of kernel memory"),
    "$.linux.resources.memory.kernelTCP": Field(1 << 20),
    "$.linux.resources.memory.limit": Field(1 << 26),
    "$.linux.resources.memory.reservation": Field(1 << 25),
    "$.linux.resources.memory.swap": Field(1 << 27, sets(linux__resources={"memory": {"limit": 1 << 26}})),
    "$.linux.resources.memory.swappiness": Field(10),
    "$.linux.resources.memory.disableOOMKiller": Field(True),
    "$.linux.resources.memory.useHierarchy": Field(False, refused="$.linux.resources.memory.useHierarchy: false is not possible, Linux 5.11 made it always true"),
    "$.linux.resources.memory.checkBeforeUpdate": Field(by="tests/integration/test_cgroup_v2.py"),
    "$.linux.resources.network.classID": Field(0x100001),
    "$.linux.resources.network.priorities[].name": Field(
        "eth0", block("$.linux.resources.network.priorities", {"name": "lo", "priority": 1})
    ),
    "$.linux.resources.network.priorities[].priority": Field(
        2, block("$.linux.resources.network.priorities", {"name": "lo", "priority": 1})
    ),
    "$.linux.resources.rdma.*.hcaHandles": Field(3),
    "$.linux.resources.rdma.*.hcaObjects": Field(3),
    **{f"$.{name}": Field({"any": 1}, refused=f"$.{name}: this runtime makes Linux containers") for name in ("solaris", "windows", "zos", "freebsd")},
    **{
        f"$.hooks.{kind}[].{name}": Field(value, block(f"$.hooks.{kind}", _HOOK))
        for kind in ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
        for name, value in (("path", "/bin/false"), ("args", ["true", "1"]), ("env", ["A=b"]), ("timeout", 5))
    },
    **{
        f"$.{where}.{name}": Field(value, beside)
        for where, beside in (
            ("linux.uidMappings[]", _own_users), ("linux.gidMappings[]", _own_users),
            ("mounts[].uidMappings[]", _idmapped), ("mounts[].gidMappings[]", _idmapped),
        )
        for name, value in (("containerID", 1), ("hostID", 200000), ("size", 1000))
    },
    **{
        f"$.process.capabilities.{name}": Field(["CAP_KILL", "CAP_SYS_TIME"], sets(process__capabilities=_SETS))
        for _SETS in [{name: ["CAP_KILL", "CAP_SYS_TIME"] for name in ("permitted", "inheritable")} | {"effective": [], "bounding": []}]
        for name in ("bounding", "effective", "ambient")
    },
    **{f"$.process.capabilities.{name}": Field(["CAP_KILL"]) for name in ("permitted", "inheritable")},
    **{
        f"$.linux.resources.blockIO.throttle{kind}Device[].{name}": Field(
            value, block(f"$.linux.resources.blockIO.throttle{kind}Device", _DISK)
        )
        for kind in ("ReadBps", "WriteBps", "ReadIOPS", "WriteIOPS")
        for name, value in (("major", 9), ("minor", 1), ("rate", 2000))
    },
    **{
        f"$.linux.resources.blockIO.weightDevice[].{name}": Field(
            value, block("$.linux.resources.blockIO.weightDevice", {"major": 8, "minor": 0, "weight": 100})
        )
        for name, value in (("major", 9), ("minor", 1), ("weight", 200), ("leafWeight", 200))
    },
    # A machine's: the plan is made of the guest's facts.
    **{
        f"$.vm.{name}": Field(by="tests/integration/test_vm_config.py")
        for name in (
            "hypervisor.path", "hypervisor.parameters", "kernel.path", "kernel.parameters", "kernel.initrd", "image.path", "image.format",
            "hwConfig.deviceTree", "hwConfig.vcpus", "hwConfig.memory", "hwConfig.dtdevs", "hwConfig.iomems", "hwConfig.irqs",
        )
    },
}  # fmt: skip


def render() -> str:
    """docs/fields.md."""
    lines = [
        "# Every property of config.json",
        "",
        "What `pycontain-runtime` does with each property of the specification's config.json (1.3). Made by",
        "`python -m tests.conformance.fields` from the table that `tests/conformance/test_fields.py` tries, row by row: with the",
        "property the plan, or what is written to the cgroup, is another one than without; or it is refused with the text shown.",
        "",
        "| property | |",
        "|---|---|",
    ]
    for path, field in sorted(FIELDS.items()):
        what = "honoured"
        if field.refused:
            what = f"refused: `{field.refused}`"
        elif field.ignored:
            what = f"ignored: it is for {field.ignored}"
        elif field.by:
            what = f"tried by [{field.by.rpartition('/')[2]}](../{field.by})"
        lines.append(f"| `{path}` | {what} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render())
