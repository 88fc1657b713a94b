"""Who makes a container's cgroup, where it is not this runtime by itself: systemd, or nobody.

Off the start path: ``--cgroup-manager cgroupfs``, the default, never comes here.
"""

from __future__ import annotations

from pycontain.runtime.errors import Unsupported
from pycontain.runtime.kernel.cgroup import RESOURCES, asked
from pycontain.runtime.kernel.cgroup_none import NoCgroup
from pycontain.runtime.kernel.hierarchies import hierarchies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontain.runtime.kernel.cgroup import Cgroup
    from pycontain.runtime.state import Container

NAMES = ("cgroupfs", "systemd", "disabled")
_HINT = "--cgroup-manager cgroupfs or systemd makes one"
_MAKES_DEVICES = ("CAP_MKNOD", "CAP_SYS_ADMIN")


def planned(manager: str, config: dict[str, Any], id: str) -> Cgroup:
    """The cgroup that ``manager`` is going to make for a new container. Raises SpecError, Unsupported."""
    if manager == "systemd":
        from pycontain.runtime.kernel.systemd import SystemdCgroup

        return SystemdCgroup.planned(config, id)
    _check_disabled(config)
    return NoCgroup(hint=_HINT)


def managed(container: Container) -> Cgroup:
    """The cgroup of a container that is on record with its manager."""
    fields = container.fields
    if fields["manager"] == "systemd":
        from pycontain.runtime.kernel.systemd import SystemdCgroup

        return SystemdCgroup(fields["cgroup"], hierarchies())
    return NoCgroup(container.pid if container.alive() else 0, fields["own_pids"], _HINT)


def _check_disabled(config: dict[str, Any]) -> None:
    """What only a cgroup can do is refused: limits, device rules that somebody could break, an end for everybody."""
    linux = config.get("linux") or {}
    new = {n["type"] for n in linux.get("namespaces") or () if not n.get("path")}
    if "pid" not in new:
        raise Unsupported(
            "$.linux.namespaces: without a cgroup only a new pid namespace holds a container's processes together",
            hint='add {"type": "pid"}',
        )
    for section, value in (linux.get("resources") or {}).items():
        if section != "devices" and asked(value):
            raise Unsupported(f"{RESOURCES}{section}: without a cgroup there are no limits", hint=_HINT)
    sets = ((config.get("process") or {}).get("capabilities") or {}).items()
    for kind, names in sets:
        for name in names or ():
            if name in _MAKES_DEVICES and "user" not in new:
                raise Unsupported(
                    f"$.process.capabilities.{kind}: with {name} a container makes devices, and without a cgroup no "
                    f"rule of {RESOURCES}devices holds",
                    hint=_HINT,
                )
    for i, mount in enumerate(config.get("mounts") or ()):
        if mount.get("type") in ("cgroup", "cgroup2") and "cgroup" not in new:
            raise Unsupported(
                f"$.mounts[{i}]: without a cgroup of its own, and without a cgroup namespace, it would show the host's",
                hint='add {"type": "cgroup"} to $.linux.namespaces',
            )
