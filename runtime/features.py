"""What ``features`` prints (features.md, features-linux.md): read from tables that do the work, or asked of plan()."""

from __future__ import annotations

from pycontain.runtime.errors import SpecError, Unsupported
from pycontain.runtime.example import EXAMPLE
from pycontain.runtime.kernel.cgroup import RARE
from pycontain.runtime.kernel.host import Host
from pycontain.runtime.kernel.managers import NAMES
from pycontain.runtime.plan.mounts import CLEARS, FLAGS, PROPAGATION, SPECIAL
from pycontain.runtime.plan.plan import NAMESPACES, plan
from pycontain.runtime.plan.process import MEMORY_FLAGS, MEMORY_MODES
from pycontain.runtime.plan.rights import ALL_CAPS, CAPS
from pycontain.runtime.plan.seccomp import ACTIONS, ARCHITECTURES, FAMILIES, OPERATORS
from pycontain.runtime.plan.seccomp import FLAGS as SECCOMP_FLAGS
from pycontain.runtime.spec import SCHEMA

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Since which Linux seccomp(2) takes what is younger than the oldest kernel that we run on.
_FLAG_SINCE = {"SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": (5, 19)}
_IDS = [{"containerID": 0, "hostID": 0, "size": 1}]


def features(host: Host, version: str) -> dict[str, Any]:
    """The features object. As the specification wants it, it is about this build; what is about the kernel of
    ``host`` is ``supportedFlags``, and the annotations."""
    has = {
        "apparmor": host.apparmor,
        "selinux": host.selinux,
        "seccomp": host.seccomp and host.arch in FAMILIES,
        "cgroup": host.cgroup,
    }
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.3.0",
        "hooks": list(SCHEMA["hooks"]),
        "mountOptions": _mount_options(),
        "annotations": {
            "org.pycontain.version": version,
            **{
                f"org.pycontain.host.{name}": value if isinstance(value, str) else str(value).lower()
                for name, value in has.items()
            },
        },
        # Which executor runs the container, and what systemd is told about its scope.
        "potentiallyUnsafeConfigAnnotations": ["org.pycontain.isolation", "org.systemd.property."],
        "linux": {
            "namespaces": sorted(NAMESPACES),
            "capabilities": list(CAPS),
            "cgroup": {
                "v1": True,
                "v2": True,
                "systemd": "systemd" in NAMES,
                "systemdUser": "systemd" in NAMES,
                "rdma": "rdma" in RARE,
            },
            "seccomp": {
                "enabled": True,
                "actions": sorted(ACTIONS),
                "operators": sorted(f"SCMP_CMP_{name}" for name in OPERATORS),
                "archs": sorted(f"SCMP_ARCH_{name}" for name in ARCHITECTURES.split()),
                "knownFlags": sorted(SECCOMP_FLAGS),
                "supportedFlags": sorted(
                    name for name in SECCOMP_FLAGS if host.kernel >= _FLAG_SINCE.get(name, host.kernel)
                ),
            },
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "intelRdt": {"enabled": _takes({"linux": {"intelRdt": {"closID": "x"}}})},
            "memoryPolicy": {"modes": sorted(MEMORY_MODES), "flags": sorted(MEMORY_FLAGS)},
            "mountExtensions": {"idmap": {"enabled": _takes(_mount("idmap", uidMappings=_IDS, gidMappings=_IDS))}},
            "netDevices": {"enabled": _takes({"linux": {"netDevices": {"eth0": {}}}})},
        },
    }


def _mount_options() -> list[str]:
    """Those of the tables that a mount of some kind can have, and those that change how it is mounted."""
    known = {"bind", "rbind", "remount", "defaults", *SPECIAL, *FLAGS, *CLEARS, *PROPAGATION}
    known |= {f"r{name}" for name in (*FLAGS, *CLEARS, *PROPAGATION)}
    mapped = {"uidMappings": _IDS, "gidMappings": _IDS}
    kinds: tuple[dict[str, Any], ...] = ({"type": "tmpfs"}, {}, mapped)
    return sorted(name for name in known if any(_takes(_mount(name, **more)) for more in kinds))


def _mount(option: str, **more: Any) -> dict[str, Any]:
    options = [option] if "type" in more else ["rbind", option]
    return {"mounts": [{"destination": "/x", "source": "/x", "type": "bind", "options": options, **more}]}


def _takes(change: dict[str, Any]) -> bool:
    """Whether a configuration with ``change`` can be planned."""
    linux = {**EXAMPLE["linux"], **change.pop("linux", {})}
    process = {**EXAMPLE["process"], "terminal": False}
    facts = {"cgroup": "v2", "cgroups": [], "bounding": ALL_CAPS, "apparmor": False, "selinux": False}
    mounts = [mount for mount in EXAMPLE["mounts"] if mount["type"] != "cgroup"]
    config = {**EXAMPLE, "process": process, "linux": linux, "mounts": [*mounts, *change.pop("mounts", [])], **change}
    try:
        plan(config, Host.from_dict(facts), {"kind": "directory", "path": "/x"})
    except (SpecError, Unsupported):
        return False
    return True
