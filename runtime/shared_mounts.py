"""Mounts of a container without a mount namespace of its own: made in the runtime's, below its root, and undone here.

config-linux.md, "Namespaces": a type that is not listed is inherited from the runtime. Off the start path.
"""

from __future__ import annotations

from pycontain.runtime.errors import KernelError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8


def count(path: str) -> int:
    """How many mounts lie on ``path``, one over the other, in our namespace; a path without links."""
    with open("/proc/self/mountinfo", "rb") as file:
        points = [line.split()[4] for line in file]
    # proc_pid_mountinfo(5): space, tab, newline and backslash are written in octal.
    for character in b"\\ \t\n":
        path = path.replace(chr(character), f"\\{character:03o}")
    return points.count(path.encode("utf-8", "surrogateescape"))


def undo(fields: dict[str, Any]) -> None:
    """Take away what came on the root of a container's state, with all that is below it. Raises KernelError."""
    from pycontain.runtime.kernel.syscalls import umount2

    path: str = fields["rootfs"]
    for _ in range(count(path) - fields["mounts_before"]):
        try:
            umount2(path, _MNT_DETACH | _UMOUNT_NOFOLLOW)
        except OSError as error:
            raise KernelError(f"cannot unmount the container's root {path}", error.errno or 0) from None
