"""The operations of a plan: their numbers, how each is encoded for init, how each reads in `explain`.

An operation is a tuple ``(name, *arguments)``. The table here and ``init/protocol.h`` are the same table.
"""

from __future__ import annotations

from pycontain.runtime.errors import PycontainError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    Op = tuple[Any, ...]

VERSION = 1
MAX_BYTES = 16 << 20
MAX_ITEMS = 65536
NO_FD = (1 << 64) - 1
REAP = 1

# name: (code, signature, how it reads). The signature's letters are those of init/protocol.h.
TABLE = {
    "setns": (1, "uu", "join namespace {1:#x} through descriptor {0}"),
    "unshare": (2, "u", "leave for new namespaces {0:#x}"),
    "write": (3, "ss", "write {1!r} to {0}"),
    "device_filter": (4, "bu", "load the device filter ({0} bytes) on the cgroup"),
    "clone": (5, "uu", "clone the first process into new namespaces {0:#x}"),
    "join": (6, "u", "join the cgroup through descriptor {0}"),
    "sync": (7, "", "wait for id maps, links and hooks"),
    "userns_root": (8, "", "become root of the user namespace"),
    "procfs": (9, "", "open a private procfs"),
    "propagation": (10, "su", "set propagation of {0} to {1:#x}"),
    "root_bind": (11, "s", "take {0} as root file system"),
    "root_overlay": (12, "slsss", "mount overlay on {0} as root file system: lower {1}, upper {2}, work {3}{4}"),
    "mount": (13, "sssusu", "mount {2} ({0}) on {1} with flags {3:#x}, data {4!r}"),
    "bind": (14, "ssu", "bind {0} on {1}"),
    "attr": (15, "suuuu", "set mount attributes of {0}: set {1:#x}, clear {2:#x}, propagation {3:#x}"),
    "mkdir": (16, "suuu", "make directory {0} with mode {1:o} for {2}:{3}"),
    "symlink": (17, "ss", "make symbolic link {1} to {0}"),
    "mknod": (18, "suuuu", "make device {0} with mode {1:o}, number {2:#x} for {3}:{4}"),
    "mask": (19, "s", "mask {0}"),
    "readonly": (20, "s", "make {0} read-only"),
    "sysctl": (21, "ss", "set sysctl {0} to {1!r}"),
    "hostname": (22, "s", "set host name {0}"),
    "domainname": (23, "s", "set domain name {0}"),
    "loopback": (24, "", "bring the loopback link up"),
    "netlink": (25, "sb", "{0}"),
    "pivot": (26, "", "pivot into the root file system"),
    "move_root": (27, "", "move the root file system over / and chroot"),
    "chroot": (28, "", "chroot into the root file system"),
    "ready": (29, "u", "report ready and wait for start"),
    "hook": (30, "ssllu", "run hook {1} ({0})"),
    "session": (31, "", "start a session"),
    "terminal": (32, "uuuuu", "open a terminal of {1} rows, {2} columns and send it to the console socket"),
    "keyring": (33, "s", "join session keyring {0}"),
    "chdir": (34, "su", "change directory to {0}"),
    "umask": (35, "u", "set umask {0:04o}"),
    "rlimit": (36, "uuu", "set resource limit {0} to {1}:{2}"),
    "oom_score": (37, "s", "set the OOM score adjustment to {0}"),
    "groups": (38, "b", "set supplementary groups ({0} bytes)"),
    "user": (39, "uu", "become user {0}:{1}"),
    "bounding": (40, "u", "bound capabilities to {0:#x}"),
    "caps": (41, "uuu", "set capabilities: effective {0:#x}, permitted {1:#x}, inheritable {2:#x}"),
    "ambient": (42, "u", "raise ambient capabilities {0:#x}"),
    "no_new_privs": (43, "", "set no new privileges"),
    "seccomp": (44, "bu", "load the seccomp filter ({0} bytes)"),
    "personality": (45, "u", "set personality {0:#x}"),
    "read": (46, "su", "read {0}"),
    "exec": (47, "sllu", "execute {0}"),
    "enter_root": (48, "", "take / as root file system"),
}


def encode(ops: Sequence[Op]) -> bytes:
    """The plan as init reads it. Raises PycontainError for what cannot be encoded (a NUL, a plan over 16 MiB)."""
    body = bytearray()
    for op in ops:
        code, signature, _ = TABLE[op[0]]
        if len(op) != len(signature) + 1:
            raise ValueError(f"operation {op[0]} takes {len(signature)} arguments, not {len(op) - 1}")
        start = len(body)
        body += code.to_bytes(4, "little") + b"\0\0\0\0"
        for kind, value in zip(signature, op[1:]):
            if kind == "u":
                body += (value & NO_FD).to_bytes(8, "little")
            elif kind == "s":
                body += _string(value, op[0])
            elif kind == "b":
                body += len(value).to_bytes(4, "little") + value
            else:
                if len(value) > MAX_ITEMS:
                    raise PycontainError(f"cannot {op[0]}: found {len(value)} strings, wanted at most {MAX_ITEMS}")
                body += len(value).to_bytes(4, "little")
                for item in value:
                    body += _string(item, op[0])
        body[start + 4 : start + 8] = (len(body) - start - 8).to_bytes(4, "little")
        if len(body) > MAX_BYTES - 16:
            raise PycontainError(
                f"the plan is too large: found more than {MAX_BYTES} bytes of arguments and environment"
            )
    head = b"PCPL" + VERSION.to_bytes(4, "little") + len(ops).to_bytes(4, "little")
    return head + (len(body) + 16).to_bytes(4, "little") + bytes(body)


def _string(value: str, name: str) -> bytes:
    data = value.encode("utf-8", "surrogateescape")
    if b"\0" in data:
        raise PycontainError(f"cannot {name} {value!r}: found a NUL character")
    return len(data).to_bytes(4, "little") + data + b"\0"


def describe(op: Op) -> str:
    """One line for people, in the imperative: ``mount proc (proc) on /proc with flags 0xe, data ''``."""
    name, *values = op
    if name == "exec":
        return "execute " + " ".join(values[1]) + (" below a reaper" if values[3] & REAP else "")
    shown = (len(v) if isinstance(v, bytes) else ":".join(v) if isinstance(v, list) else v for v in values)
    return TABLE[name][2].format(*shown)
