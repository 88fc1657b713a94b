"""Giving a container its own cgroup: to make cgroups below it, and to share out what it has got.

On cgroup v2 alone, where the container sees its cgroup as the root and writable (config-linux.md, "Cgroup ownership").
"""

from __future__ import annotations

import posix as os
from errno import EINVAL

from pycontain.runtime.errors import KernelError
from pycontain.runtime.kernel.files import read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontain.runtime.kernel.cgroup import Cgroup

# Which files are safe to give: the kernel says it since Linux 4.15; the specification has these where it does not.
_DELEGATE = "/sys/kernel/cgroup/delegate"
_OLD_DELEGATE = "cgroup.procs\ncgroup.subtree_control\ncgroup.threads\n"


def is_wanted(config: dict[str, Any]) -> bool:
    """Whether the container mounts its cgroups writable, and is the root of a cgroup namespace of its own."""
    namespaces = (config.get("linux") or {}).get("namespaces") or ()
    if not any(item["type"] == "cgroup" and not item.get("path") for item in namespaces):
        return False
    return any(
        mount["destination"] == "/sys/fs/cgroup"
        and mount.get("source") == "cgroup"
        and "ro" not in (mount.get("options") or ())
        for mount in config.get("mounts") or ()
    )


def owner(config: dict[str, Any], uid_maps: list[dict[str, int]]) -> int | None:
    """The user of this host that the container's process runs as; None where only a joined namespace knows that."""
    uid: int = (config["process"].get("user") or {}).get("uid", 0)
    for item in uid_maps:
        if 0 <= uid - item["containerID"] < item["size"]:
            return item["hostID"] + uid - item["containerID"]
    namespaces = (config.get("linux") or {}).get("namespaces") or ()
    return None if uid_maps or any(item["type"] == "user" for item in namespaces) else uid


def give(cgroup: Cgroup, config: dict[str, Any], uid_maps: list[dict[str, int]]) -> None:
    """Make the container's user the owner of its cgroup, if it is to have it. Raises KernelError."""
    if cgroup.unified is None or len(cgroup.directories) > 1 or not is_wanted(config):
        return
    user = owner(config, uid_maps)
    if user is None or user == os.geteuid():
        return
    try:
        names = read(_DELEGATE)
    except FileNotFoundError:
        names = _OLD_DELEGATE
    for path in (cgroup.unified, *(f"{cgroup.unified}/{name}" for name in names.split())):
        try:
            os.chown(path, user, -1)
        except FileNotFoundError:
            continue  # not every cgroup has every file
        except OSError as error:
            raise KernelError(f"give {path} to user {user}, who runs the container", error.errno or EINVAL) from error
