"""How an operation reads, for ``explain`` and for errors; off the start path."""

from __future__ import annotations

from errno import EACCES, EBUSY, EPERM
from string import Formatter

from pycontain.runtime.plan.mounts import ATIME, CLEARS, FLAGS, MS_REC, PROPAGATION
from pycontain.runtime.plan.ops import NO_FD, REAP
from pycontain.runtime.plan.plan import NAMESPACES
from pycontain.runtime.plan.process import IO_CLASSES, MEMORY_FLAGS, MEMORY_MODES, POLICIES, SCHEDULER_FLAGS, listed
from pycontain.runtime.plan.rights import CAPS, RLIMITS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from pycontain.runtime.plan.ops import Op

_OFF = {sets: name for name, sets in CLEARS.items()}
# In the imperative: after "cannot " it has to read on. {0} is the first argument; names are those of _READINGS.
WORDS = {
    "setns": "join the {kinds[1]} namespace through descriptor {0}",
    "unshare": "leave for a new {kinds[0]} namespace",
    "write": "write {1!r} to {0}",
    "device_filter": "load the device filter ({0} bytes) on the cgroup",
    "clone": "clone the first process into new namespaces: {kinds[0]}",
    "join": "join the cgroup through descriptor {0}",
    "sync": "wait for id maps, links and hooks",
    "userns_root": "become root of the user namespace",
    "procfs": "open a private procfs",
    "propagation": "make {0} and what is below it {spread[1]}",
    "root_bind": "take {0} as root file system",
    "root_overlay": "mount overlay on {0} as root file system: lower {1}, upper {2}, work {3}{4}",
    "mount": "mount {2} ({0}) on {1}{mount}",
    "bind": "bind {0} on {1}{tree}",
    "tree": "take {1}{source} for mount {0}{ids}",
    "attach": "attach mount {0} on {1}",
    "remount": "remount {0}: {1}",
    "copy_up": "mount tmpfs ({0}) on {1} with a copy of what is there{words}",
    "mounted": "report what is mounted and wait for the runtime's hooks",
    "device": "bind the host's {node} {0}",
    "root": "take {0} as root directory",
    "chroot_to": "chroot into the directory at descriptor {0}",
    "attr": "set {0}{below} {attributes}",
    "mkdir": "make directory {0} (mode {1:04o}, owner {2}:{3}) if it is missing",
    "symlink": "make symbolic link {1} to {0}",
    "mknod": "make {node} {0} (mode {mode:04o}, owner {3}:{4})",
    "mask": "mask {0}",
    "readonly": "make {0} read-only",
    "sysctl": "set sysctl {0} to {1!r}",
    "hostname": "set host name {0}",
    "domainname": "set domain name {0}",
    "loopback": "bring the loopback link up",
    "netlink": "{0}",
    "pivot": "pivot into the root file system",
    "move_root": "move the root file system over / and chroot",
    "chroot": "chroot into the root file system",
    "ready": "report ready and wait for start",
    "hook": "run hook {1} ({0})",
    "session": "start a session",
    "terminal": "open a terminal of {1} rows, {2} columns and send it to the console socket",
    "keyring": "join session keyring {0}",
    "chdir": "change directory to {0}",
    "umask": "set umask {0:04o}",
    "rlimit": "set {limit} to {soft}:{hard}",
    "oom_score": "set the OOM score adjustment to {0}",
    "groups": "set supplementary groups: {groups}",
    "user": "become user {0}:{1}",
    "bounding": "bound capabilities to {caps[0]}",
    "caps": "set capabilities: effective {caps[0]}; permitted {caps[1]}; inheritable {caps[2]}",
    "ambient": "raise ambient capabilities: {caps[0]}",
    "no_new_privs": "set no new privileges",
    "seccomp": "load the seccomp filter ({0} bytes)",
    "personality": "set personality {0:#x}",
    "read": "read {0}",
    "find": "find {0}",
    "beside": "let stage 0 carry out the {0} operations behind the clone, beside the first process",
    "exec": "execute {0}",
    "enter_root": "take / as root file system",
    "dup": "make descriptor {0} descriptor {1}",
    "stand_in": "stand in for the process in the machine at descriptor {0}",
    "die_with_parent": "die when the stand-in does",
    "small_pages": "use no huge pages",
    "clock": "set the clock to {0} s",
    "reseed": "add {0} bytes to the random pool",
    "sync_disks": "write what is cached to the disks",
    "branch": "let another process, in new namespaces ({kinds[1]}), carry out the next {0} operations",
    "host_procfs": "take the procfs of the host",
    "dumpable": "let the user at our files in /proc and our descriptors: {0}",
    "file": "make file {0} (mode {1:04o}, {2} bytes)",
    "scheduler": "set the scheduling policy to {scheduler}",
    "io_priority": "set the I/O priority to {io}",
    "affinity": "keep to processors {mask}",
    "memory_policy": "set the memory policy to {memory}",
    "label": "set the process's attribute {0} to {1!r}",
    "raise_limit": "raise the hard limit of {limit} to {soft}",
    "seccomp_notify": "load the seccomp filter ({0} bytes) and hand over its listener",
}


def describe(op: Op) -> str:
    """One line for people: ``mount proc (proc) on /proc: nosuid,nodev,noexec``."""
    name, *values = op
    if name == "exec":
        return "execute " + " ".join(values[1]) + (" below a reaper" if values[3] & REAP else "")
    if name == "clone" and not values[0]:
        return "clone the process"
    shown = [len(v) if isinstance(v, bytes) else ":".join(v) if isinstance(v, list) else v for v in values]
    return Formatter().vformat(WORDS[name], shown, _Readings(values))


def advice(op: Op, number: int) -> str | None:
    """A hint for what the kernel refused with errno ``number``, where there is one."""
    if op[0] == "scheduler" and number == EPERM and op[1] in (POLICIES["SCHED_FIFO"], POLICIES["SCHED_RR"]):
        return "on cgroup v1 it wants $.linux.resources.cpu.realtimeRuntime, and the same of every cgroup above"
    if op[0] == "attach" and number == EACCES and op[2] == "/run/notify":
        return "unset NOTIFY_SOCKET, or mount a /run that the root of the user namespace may write to"
    if op[0] == "clone" and number == EBUSY and op[2] != NO_FD:
        return "its cgroup gives controllers to those below it, and can hold no process itself (man 7 cgroups)"
    return None


class _Readings(dict[str, "Any"]):
    """Readings of an operation's arguments, made when the words ask for them."""

    def __init__(self, values: list[Any]) -> None:
        super().__init__()
        self._values = values

    def __missing__(self, key: str) -> Any:
        return _READINGS[key](self._values)


def _names(mask: int, table: Iterable[tuple[str, int]]) -> str:
    return ",".join(name for name, bit in table if bit and mask & bit == bit)


def _kinds(values: list[Any]) -> list[str]:
    return [_names(v, NAMESPACES.items()) or "none" if isinstance(v, int) else "" for v in values]


def _capabilities(values: list[Any]) -> list[str]:
    every = [(name.removeprefix("CAP_").lower(), 1 << number) for name, number in CAPS.items()]
    return [_names(v, every) or "none" for v in values]


def _mount(values: list[Any]) -> str:
    options = _names(values[3], ((name, flag) for name, (flag, _) in FLAGS.items()))
    words = ",".join(part for part in (options, values[4]) if part)
    return f": {words}" if words else ""


def _attributes(values: list[Any]) -> str:
    _, sets, clears, spread, _ = values
    on = [name for name, (_, attr) in FLAGS.items() if attr and sets & attr == attr]
    off = [_OFF[name] for name, (_, attr) in FLAGS.items() if attr and not attr & ATIME and clears & attr]
    if clears & ATIME and not sets & ATIME:
        on.append("relatime")
    return ",".join([*on, *off, *([_spread(spread)] if spread else [])]) or "as it is"


def _spread(value: Any) -> str:
    return _names(value & ~MS_REC, PROPAGATION.items()) if isinstance(value, int) else ""


def _source(how: int) -> str:
    words = (" with what is mounted below it", ", the link itself,", " (or copy the link that it is)")
    return "".join(text for i, text in enumerate(words) if how >> i & 1)


def _ids(values: list[Any]) -> str:
    if not values[4]:
        return ""
    below = " below it too" if values[4] == 2 else ""
    if values[5] != NO_FD:
        return f", its ids{below} mapped by the user namespace at descriptor {values[5]}"
    maps = ("; ".join(text.strip().splitlines()) for text in values[6:8])
    return f", its ids{below} mapped: users {{}}, groups {{}}".format(*maps)


def _flags(attributes: int) -> int:
    return sum(flag for flag, attr in FLAGS.values() if attr and attributes & attr == attr)


def _node(values: list[Any]) -> str:
    kind = {0o020000: "character device", 0o060000: "block device", 0o010000: "fifo"}[values[1] & 0o170000]
    number = values[2]
    return kind if kind == "fifo" else f"{kind} {number >> 8 & 0xFFF}:{number & 0xFF | number >> 12 & 0xFFF00}"


def _limit(value: int) -> str:
    return "unlimited" if value == (1 << 64) - 1 else str(value)


def _name(number: int, table: dict[str, int]) -> str:
    return next((name for name, value in table.items() if value == number), str(number))


def _scheduler(values: list[Any]) -> str:
    policy, flags, nice, priority, *times = values
    words = [_name(policy, POLICIES), f"nice {nice}", f"priority {priority}"]
    words += [f"{key} {value} ns" for key, value in zip(("runtime", "deadline", "period"), times) if value]
    return ", ".join([*words, *filter(None, [_names(flags, SCHEDULER_FLAGS.items())])])


def _memory(values: list[Any]) -> str:
    flags = sum(MEMORY_FLAGS.values())
    words = [_name(values[0] & ~flags, MEMORY_MODES), _names(values[0], MEMORY_FLAGS.items())]
    return " ".join(filter(None, [*words, f"on nodes {listed(values[1])}" if values[1] else ""]))


_READINGS: dict[str, Callable[[list[Any]], Any]] = {
    "kinds": _kinds,
    "caps": _capabilities,
    "mount": _mount,
    "attributes": _attributes,
    "below": lambda values: " and what is below it" if values[4] else "",
    "tree": lambda values: _source(values[2]),
    "source": lambda values: _source(values[2]),
    "ids": lambda values: _ids(values),
    "words": lambda values: _mount(["", "", "", _flags(values[2]), ",".join(values[3])]),
    "spread": lambda values: [_spread(v) for v in values],
    "node": _node,
    "mode": lambda values: values[1] & 0o7777,
    "scheduler": _scheduler,
    "io": lambda values: f"{_name(values[0] >> 13, IO_CLASSES)} {values[0] & 7}",
    "mask": lambda values: listed(values[0]),
    "memory": _memory,
    "limit": lambda values: next((name for name, number in RLIMITS.items() if number == values[0]), str(values[0])),
    "soft": lambda values: _limit(values[1]),
    "hard": lambda values: _limit(values[2]),
    "groups": lambda values: (
        ",".join(str(int.from_bytes(values[0][i : i + 4], "little")) for i in range(0, len(values[0]), 4)) or "none"
    ),
}
