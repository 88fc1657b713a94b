"""What few processes ask for: scheduling, processors, memory policy, labels of security modules. Off the start path.

Pure: the process object and linux object of the specification go in, operations come out (config.md, "Linux Process";
config-linux.md, "Memory policy"). Every function raises SpecError or Unsupported, both with a JSON path.
"""

from __future__ import annotations

from pycontain.runtime import errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from pycontain.runtime.kernel.host import Host
    from pycontain.runtime.plan.ops import Op

# sched(7); 4 was kept for SCHED_ISO, which no kernel has.
POLICIES: Final = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_ISO": 4,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
SCHEDULER_FLAGS: Final = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}
IO_CLASSES: Final = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}  # ioprio_set(2)
# set_mempolicy(2), <linux/mempolicy.h>
MEMORY_MODES: Final = {
    "MPOL_DEFAULT": 0,
    "MPOL_PREFERRED": 1,
    "MPOL_BIND": 2,
    "MPOL_INTERLEAVE": 3,
    "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5,
    "MPOL_WEIGHTED_INTERLEAVE": 6,
}
MEMORY_FLAGS: Final = {
    "MPOL_F_STATIC_NODES": 1 << 15,
    "MPOL_F_RELATIVE_NODES": 1 << 14,
    "MPOL_F_NUMA_BALANCING": 1 << 13,
}
CPUS_MAX: Final = 8192  # the largest CONFIG_NR_CPUS
NODES_MAX: Final = 1024  # MAX_NUMNODES
# These take no "context" of their own: their labels are the policy's, or their source's.
_UNLABELLED: Final = frozenset(("proc", "sysfs", "mqueue", "cgroup", "cgroup2"))


def process_ops(process: dict[str, Any], linux: dict[str, Any], host: Host) -> list[Op]:
    """Scheduler, I/O priority, memory policy and labels, in this order, for a process that has root's rights still."""
    ops: list[Op] = []
    scheduler = process.get("scheduler")
    if scheduler is not None:
        ops.append(_scheduler(scheduler))
    priority = process.get("ioPriority")
    if priority is not None:
        ops.append(_io_priority(priority))
    policy = linux.get("memoryPolicy")
    if policy is not None:
        ops.append(_memory_policy(policy))
    return ops + _labels(process, host)


def affinity(process: dict[str, Any]) -> tuple[list[Op], list[Op]]:
    """``execCPUAffinity``: what to do before the cgroup is joined, and after it."""
    wanted = process.get("execCPUAffinity") or {}
    ops: list[list[Op]] = [[], []]
    for where, key in enumerate(("initial", "final")):
        mask = _mask(wanted.get(key) or "", f"$.process.execCPUAffinity.{key}", "processors", CPUS_MAX)
        if mask:
            ops[where].append(("affinity", mask))
    return ops[0], ops[1]


def label_mounts(ops: list[Op], label: str, host: Host) -> None:
    """``$.linux.mountLabel`` on the file systems that ``ops`` mount (mount(8), "context="), in place."""
    _want(host.selinux, "$.linux.mountLabel", "SELinux")
    if '"' in label or "\n" in label:
        raise errors.SpecError("$.linux.mountLabel", f"found {label!r}, wanted no quotation mark and no newline")
    for i, op in enumerate(ops):
        if op[0] == "mount" and op[3] not in _UNLABELLED:
            data = f'{op[5]},context="{label}"' if op[5] else f'context="{label}"'
            ops[i] = (*op[:5], data, *op[6:])
        elif op[0] == "root_overlay":
            ops[i] = (*op[:5], f'{op[5]},context="{label}"')
        elif op[0] == "copy_up":
            ops[i] = (*op[:4], [*op[4], f"context={label}"])


def _scheduler(scheduler: dict[str, Any]) -> Op:
    path = "$.process.scheduler"
    policy = scheduler["policy"]
    number = _named(policy, POLICIES, f"{path}.policy")
    if policy == "SCHED_ISO":
        raise errors.Unsupported(f"{path}.policy: no kernel has SCHED_ISO")
    nice, priority = scheduler.get("nice") or 0, scheduler.get("priority") or 0
    if not -20 <= nice <= 19:
        raise errors.SpecError(f"{path}.nice", f"found {nice}, wanted -20 to 19")
    real_time = policy in ("SCHED_FIFO", "SCHED_RR")
    if real_time and not 1 <= priority <= 99:
        raise errors.SpecError(f"{path}.priority", f"found {priority}, wanted 1 to 99 for {policy}")
    if priority and not real_time:
        raise errors.SpecError(f"{path}.priority", f"found {priority}, but {policy} knows no priority")
    times = [scheduler.get(key) or 0 for key in ("runtime", "deadline", "period")]
    for key, value in zip(("runtime", "deadline", "period"), times):
        if value and policy != "SCHED_DEADLINE":
            raise errors.SpecError(f"{path}.{key}", f"found {value}, but {policy} knows no {key}")
    flags = _flags(scheduler, SCHEDULER_FLAGS, path)
    return ("scheduler", number, flags, nice, priority, *times)


def _io_priority(wanted: dict[str, Any]) -> Op:
    number = _named(wanted["class"], IO_CLASSES, "$.process.ioPriority.class")
    level = wanted.get("priority") or 0
    if not 0 <= level <= 7:
        raise errors.SpecError("$.process.ioPriority.priority", f"found {level}, wanted 0 to 7")
    return ("io_priority", number << 13 | level)


def _memory_policy(policy: dict[str, Any]) -> Op:
    path = "$.linux.memoryPolicy"
    mode = policy.get("mode")
    if mode is None:
        raise errors.SpecError(f"{path}.mode", f"found nothing, wanted one of {', '.join(MEMORY_MODES)}")
    number = _named(mode, MEMORY_MODES, f"{path}.mode")
    nodes = _mask(policy.get("nodes") or "", f"{path}.nodes", "memory nodes", NODES_MAX)
    if nodes and mode in ("MPOL_DEFAULT", "MPOL_LOCAL"):
        raise errors.SpecError(f"{path}.nodes", f"found {policy['nodes']!r}, but {mode} takes no nodes")
    if not nodes and mode not in ("MPOL_DEFAULT", "MPOL_LOCAL", "MPOL_PREFERRED"):
        raise errors.SpecError(f"{path}.nodes", f"found nothing, but {mode} wants at least one node")
    flags = _flags(policy, MEMORY_FLAGS, path)
    return ("memory_policy", number | flags, nodes)


def _labels(process: dict[str, Any], host: Host) -> list[Op]:
    ops: list[Op] = []
    profile, label = process.get("apparmorProfile"), process.get("selinuxLabel")
    if profile and (profile != "unconfined" or host.apparmor):  # without AppArmor everything is
        _want(host.apparmor, "$.process.apparmorProfile", "AppArmor")
        if "\n" in profile:
            raise errors.SpecError("$.process.apparmorProfile", f"found {profile!r}, wanted no newline")
        ops.append(("label", "apparmor/exec", f"exec {profile}"))
    if label:
        _want(host.selinux, "$.process.selinuxLabel", "SELinux")
        ops.append(("label", "exec", label))
    return ops


def _want(there: bool, path: str, module: str) -> None:
    if not there:
        raise errors.Unsupported(f"{path}: {module} is not on in this kernel", hint="remove it from config.json")


def _named(name: str, table: dict[str, int], path: str) -> int:
    if name not in table:
        raise errors.SpecError(path, f"found {name!r}, wanted one of {', '.join(table)}")
    return table[name]


def _flags(where: dict[str, Any], table: dict[str, int], path: str) -> int:
    flags = 0
    for i, name in enumerate(where.get("flags") or ()):
        flags |= _named(name, table, f"{path}.flags[{i}]")
    return flags


def _mask(text: str, path: str, what: str, most: int) -> bytes:
    """``0-3,7`` as a bit mask of whole 64-bit words, little endian; empty for an empty list."""
    mask = 0
    for part in text.split(",") if text.strip() else ():
        first, dash, last = part.strip().partition("-")
        low, high = _number(first), _number(last if dash else first)
        if low is None or high is None or not low <= high < most:
            raise errors.SpecError(path, f"found {text!r}, wanted {what} from 0 to {most - 1} such as 0-3,7")
        mask |= (1 << high + 1) - (1 << low)
    return mask.to_bytes(-(-mask.bit_length() // 64) * 8, "little")


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else None


def listed(mask: bytes) -> str:
    """The list that a mask is made from: ``0-3,7``."""
    bits = [i for i in range(8 * len(mask)) if mask[i // 8] >> i % 8 & 1]
    ranges: list[list[int]] = []
    for bit in bits:
        if ranges and ranges[-1][1] == bit - 1:
            ranges[-1][1] = bit
        else:
            ranges.append([bit, bit])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)
