"""The one maker of bundles: what a level is, is the difference between two configurations."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pycontain.images.config import CAPABILITIES, CPU_PERIOD, DEFAULT_CAPABILITIES, DEFAULT_PATH, RunOptions, to_spec
from pycontain.images.manifest import ImageConfig, Platform
from pycontain.runtime.plan import rights
from pycontain.runtime.plan.seccomp import default_profile

if TYPE_CHECKING:
    from pycontain.isolation.model import Job

# Ids of no user: those of containers with a user namespace, and of the user who runs the rootless ones.
FIRST_ID, COUNT = 1 << 30, 65536
USER = 1_000_001


@dataclass(frozen=True, slots=True)
class Kind:
    """What sets a container apart. ``seccomp``: our default filter; ``mapped``: a user namespace with ids of its own;
    ``bare``: no capabilities, read-only, no new privileges; ``rootless``: an unprivileged user's; ``machine``: in a
    microVM; ``limits``: whether the runtime is told of the job's."""

    seccomp: bool = True
    mapped: bool = False
    bare: bool = False
    rootless: bool = False
    machine: bool = False
    limits: bool = True


def place(args: tuple[str, ...], job: Job, *, inside: bool) -> list[str]:
    """The arguments with each ``{NAME}`` replaced: by the place of that bind inside, or by its source."""
    found = list(args)
    for bind in job.binds:
        name = "{" + bind.path.lstrip("/") + "}"
        found = [arg.replace(name, bind.path if inside else bind.source) for arg in found]
    return found


def environment(job: Job) -> dict[str, str]:
    """What a job's program finds in its environment, at the levels without a container too."""
    return {"PATH": DEFAULT_PATH, "HOME": "/root", **job.environment}


def configuration(job: Job, kind: Kind, *, root: str, cgroup: str, hostname: str) -> dict[str, Any]:
    """config.json of ``job``: that of pycontain's engine (docker's defaults), and what ``kind`` changes in it."""
    options = RunOptions(
        args=place(job.args, job, inside=True),
        env=[f"{name}={value}" for name, value in environment(job).items()],
        user={"uid": 0, "gid": 0},
        hostname=hostname,
        cgroups_path=cgroup if kind.limits or not kind.rootless else "",
        root=root,
        mounts=[
            {
                "destination": bind.path,
                "type": "bind",
                "source": bind.source,
                "options": ["rbind", "nosuid", "nodev", "rw" if bind.writable else "ro"],
            }
            for bind in job.binds
        ],
        known_capabilities=bounding(),
        ulimits=[{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1024}],
    )
    if kind.limits:
        options.memory = job.memory or 0
        options.pids_limit = job.pids or 0
        options.cpu_quota = int((job.cpus or 0) * CPU_PERIOD)
    if kind.bare:
        options.cap_drop = ["ALL"]
        options.read_only = options.no_new_privileges = True
        options.tmpfs = {"/tmp": "mode=1777,size=64m"}
    if job.opened:
        options.privileged = True
        options.namespaces = dict.fromkeys(("pid", "ipc", "network", "uts", "cgroup"), "host")
        options.mounts = [
            *options.mounts,
            {"destination": "/host", "type": "bind", "source": "/", "options": ["rbind", "rw"]},
            # Not the host's mount, which need not be there; the same queues, as they are the ipc namespace's.
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec"]},
        ]
    elif kind.seccomp:
        options.seccomp = default_profile([] if kind.bare else DEFAULT_CAPABILITIES)
    host = Platform.host()
    image = ImageConfig(host.os, host.architecture, host.variant, ())
    config = to_spec(image, options)
    if job.opened:
        config["process"]["capabilities"]["inheritable"] = config["process"]["capabilities"]["bounding"]
    linux = config["linux"]
    if kind.mapped or kind.rootless:
        first, size = (USER, 1) if kind.rootless else (FIRST_ID, COUNT)
        linux["namespaces"].append({"type": "user"})
        for key in ("uidMappings", "gidMappings"):
            linux[key] = [{"containerID": 0, "hostID": first, "size": size}]
        linux["sysctl"] = {"net.ipv4.ip_unprivileged_port_start": "0"}  # the range of groups may hold mapped ids only
    if kind.rootless:
        del linux["resources"]["devices"]  # a user makes no nodes, and opens those only that a user may open
        for mount in config["mounts"]:  # gid=5 is not mapped
            mount["options"] = [option for option in mount["options"] if not option.startswith("gid=")]
    if kind.machine:
        config["annotations"] = {"org.pycontain.isolation": "vm"}
    return config


def write(directory: str, config: dict[str, Any]) -> None:
    """The bundle's config.json."""
    with open(os.path.join(directory, "config.json"), "w") as file:
        json.dump(config, file)


def bounding() -> list[str]:
    """Our own bounding set (capabilities(7)): more than that nobody can be given."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        line = next(line for line in file if line.startswith("CapBnd:"))
    mask = int(line.split()[1], 16)
    return [name for name in CAPABILITIES if mask >> rights.CAPS[name] & 1]
