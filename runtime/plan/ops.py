"""The operations of a plan: their numbers, and how each is encoded for init.

An operation is a tuple ``(name, *arguments)``. The table here and ``init/protocol.h`` are the same table.
"""

from __future__ import annotations

from pycontain.runtime import errors

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

# name: (code, signature); the signature's letters are those of init/protocol.h.
TABLE = {
    "setns": (1, "uu"),
    "unshare": (2, "u"),
    "write": (3, "ss"),
    "device_filter": (4, "bu"),
    "clone": (5, "uu"),
    "join": (6, "u"),
    "sync": (7, ""),
    "userns_root": (8, ""),
    "procfs": (9, ""),
    "propagation": (10, "su"),
    "root_bind": (11, "s"),
    "root_overlay": (12, "slsss"),
    "mount": (13, "sssusu"),
    "bind": (14, "ssu"),
    "attr": (15, "suuuu"),
    "mkdir": (16, "suuu"),
    "symlink": (17, "ss"),
    "mknod": (18, "suuuuu"),
    "mask": (19, "s"),
    "readonly": (20, "s"),
    "sysctl": (21, "ss"),
    "hostname": (22, "s"),
    "domainname": (23, "s"),
    "loopback": (24, ""),
    "netlink": (25, "sb"),
    "pivot": (26, ""),
    "move_root": (27, ""),
    "chroot": (28, ""),
    "ready": (29, "u"),
    "hook": (30, "ssllus"),
    "session": (31, ""),
    "terminal": (32, "uuuuu"),
    "keyring": (33, "s"),
    "chdir": (34, "su"),
    "umask": (35, "u"),
    "rlimit": (36, "uuu"),
    "oom_score": (37, "s"),
    "groups": (38, "b"),
    "user": (39, "uu"),
    "bounding": (40, "u"),
    "caps": (41, "uuu"),
    "ambient": (42, "u"),
    "no_new_privs": (43, ""),
    "seccomp": (44, "bu"),
    "personality": (45, "u"),
    "read": (46, "su"),
    "exec": (47, "sllu"),
    "enter_root": (48, ""),
    "dup": (49, "uu"),
    "stand_in": (50, "uuuuuu"),
    "die_with_parent": (51, ""),
    "small_pages": (105, ""),
    "clock": (52, "uu"),
    "reseed": (53, "b"),
    "sync_disks": (54, ""),
    "file": (55, "sub"),
    "branch": (56, "uu"),
    "tree": (70, "usuuuuss"),
    "attach": (71, "us"),
    "remount": (72, "sl"),
    "copy_up": (73, "ssul"),
    "mounted": (74, ""),
    "device": (75, "suuu"),
    "root": (76, "s"),
    "chroot_to": (77, "u"),
    "scheduler": (85, "uuuuuuu"),
    "io_priority": (86, "u"),
    "affinity": (87, "b"),
    "memory_policy": (88, "ub"),
    "label": (89, "ss"),
    "raise_limit": (90, "uu"),
    "seccomp_notify": (91, "bu"),
    "dumpable": (100, "u"),
    "host_procfs": (102, ""),
    "find": (110, "ssl"),
    "beside": (111, "u"),
}


def encode(ops: Sequence[Op]) -> bytes:
    """The plan as init reads it. Raises PycontainError for what cannot be encoded (a NUL, a plan over 16 MiB)."""
    body: list[bytes] = []
    size = 16
    for op in ops:
        code, signature = TABLE[op[0]]
        if len(op) != len(signature) + 1:
            raise ValueError(f"operation {op[0]} takes {len(signature)} arguments, not {len(op) - 1}")
        parts: list[bytes] = []
        for kind, value in zip(signature, op[1:]):
            if kind == "u":
                parts.append((value & NO_FD).to_bytes(8, "little"))
                continue
            if kind == "b":
                parts += (len(value).to_bytes(4, "little"), value)
                continue
            if kind == "s":
                value = (value,)
            elif len(value) > MAX_ITEMS:
                raise errors.PycontainError(f"cannot {op[0]}: found {len(value)} strings, wanted at most {MAX_ITEMS}")
            else:
                parts.append(len(value).to_bytes(4, "little"))
            for text in value:
                data = text.encode("utf-8", "surrogateescape")
                if 0 in data:
                    raise errors.PycontainError(f"cannot {op[0]} {text!r}: found a NUL character")
                parts += (len(data).to_bytes(4, "little"), data, b"\0")
        arguments = b"".join(parts)
        body += (code.to_bytes(4, "little"), len(arguments).to_bytes(4, "little"), arguments)
        size += 8 + len(arguments)
        if size > MAX_BYTES:
            raise errors.PycontainError(
                f"the plan is too large: found more than {MAX_BYTES} bytes of arguments and environment"
            )
    head = b"PCPL" + VERSION.to_bytes(4, "little") + len(ops).to_bytes(4, "little") + size.to_bytes(4, "little")
    return head + b"".join(body)
