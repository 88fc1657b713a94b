"""From an image's configuration and the user's wishes to the config.json that the runtime runs. Pure: no I/O.

The defaults (capabilities, mounts, masked and read-only paths, device rules) are those that docker users expect.
What an image says decides only about its own process: command, environment, directory. Its labels are data and reach
no runtime (CVE-2026-53488), its volumes and ports are the engine's to read.
"""

from __future__ import annotations

from pycontain.images.manifest import ImageConfig
from pycontain.runtime.errors import PycontainError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

OCI_VERSION = "1.0.2"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_SHM = 64 << 20
CPU_PERIOD = 100_000  # microseconds

# capabilities(7), in the order of their numbers.
CAPABILITIES = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
        "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT "
        "SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL "
        "SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
    ).split()
)
DEFAULT_CAPABILITIES = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT "
        "KILL AUDIT_WRITE"
    ).split()
)
MASKED_PATHS = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

# null, zero, full, random, urandom, tty, console, ptmx and the pseudo-terminals.
_DEVICES = ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, None))
_NAMESPACES = ("mount", "pid", "network", "ipc", "uts", "cgroup")


class RunOptions:
    """What the user asked for, checked and resolved: sizes in bytes, ids as numbers, paths absolute.

    ``entrypoint``: None keeps the image's, anything else replaces it (and its cmd). ``namespaces``: a type of
    "pid network ipc uts cgroup" → "new" (the default), "host", or the absolute path of one to join. ``mounts``: OCI
    mounts; one at the place of a default one replaces it. ``tmpfs``: path → mount options. ``devices``: OCI devices
    with "access" ("rwm") beside them. ``known_capabilities``: what this kernel has, for ALL and for ``privileged``.
    """

    args: Sequence[str] = ()
    entrypoint: Sequence[str] | None = None
    env: Sequence[str] = ()
    cwd: str | None = None
    user: Mapping[str, Any] = {"uid": 0, "gid": 0}
    home: str | None = None
    terminal: bool = False
    console_size: tuple[int, int] | None = None  # height, width
    hostname: str = ""
    read_only: bool = False
    mounts: Sequence[Mapping[str, Any]] = ()
    tmpfs: Mapping[str, str] = {}
    shm_size: int = DEFAULT_SHM
    cap_add: Sequence[str] = ()
    cap_drop: Sequence[str] = ()
    known_capabilities: Sequence[str] = CAPABILITIES
    privileged: bool = False
    seccomp: Mapping[str, Any] | None = None
    no_new_privileges: bool = False
    memory: int = 0
    memory_swap: int | None = None  # memory and swap together, -1 for no limit
    cpu_quota: int = 0  # microseconds in each CPU_PERIOD
    cpu_shares: int = 0
    cpuset_cpus: str = ""
    pids_limit: int = 0
    oom_score_adj: int | None = None
    ulimits: Sequence[Mapping[str, Any]] = ()  # {"type": "RLIMIT_NOFILE", "soft": n, "hard": n}
    devices: Sequence[Mapping[str, Any]] = ()
    sysctl: Mapping[str, str] = {}
    labels: Mapping[str, str] = {}  # the user's, not the image's
    namespaces: Mapping[str, str] = {}
    cgroups_path: str = ""
    root: str = "rootfs"

    def __init__(self, **wishes: Any) -> None:
        for name, value in wishes.items():
            if name not in RunOptions.__annotations__:
                raise TypeError(f"there is no option {name!r}")
            setattr(self, name, value)


def to_spec(image: ImageConfig, options: RunOptions) -> dict[str, Any]:
    """The OCI config.json. Raises PycontainError where neither the image nor the user names a command."""
    namespaces = {kind: options.namespaces.get(kind, "new") for kind in _NAMESPACES}
    spec: dict[str, Any] = {
        "ociVersion": OCI_VERSION,
        "process": _process(image, options),
        "root": {"path": options.root, "readonly": options.read_only},
        "mounts": _mounts(options, namespaces),
        "linux": _linux(options, namespaces),
    }
    if options.hostname and namespaces["uts"] != "host":  # it would rename the host
        spec["hostname"] = options.hostname
    if options.labels:
        spec["annotations"] = dict(options.labels)
    return spec


def command_line(image: ImageConfig, entrypoint: Sequence[str] | None, args: Sequence[str]) -> list[str]:
    """What runs: the entrypoint and the arguments, each the user's before the image's."""
    if entrypoint is None:
        result = [*image.entrypoint, *(args or image.cmd)]
    else:
        result = [*entrypoint, *args]
    if not result:
        raise PycontainError("the image names no command, and none was given", hint="name one after the image")
    if not result[0]:
        raise PycontainError("the command is empty", hint="name one after the image")
    return result


def environment(image: ImageConfig, options: RunOptions) -> list[str]:
    """NAME=value; the user's before the image's before the defaults, each name once."""
    values = {"PATH": DEFAULT_PATH}
    if options.hostname:
        values["HOSTNAME"] = options.hostname
    if options.terminal:
        values["TERM"] = "xterm"
    for item in (*image.env, *options.env):
        name, _, value = item.partition("=")
        values[name] = value
    if "HOME" not in values and options.home:
        values["HOME"] = options.home
    return [f"{name}={value}" for name, value in values.items()]


def capabilities(options: RunOptions) -> list[str]:
    """The names that the container gets, in the kernel's order; needed before a seccomp profile can be chosen."""
    known = list(options.known_capabilities)
    if options.privileged:
        return known
    wanted = set() if "ALL" in options.cap_drop else set(DEFAULT_CAPABILITIES)
    wanted |= set(known) if "ALL" in options.cap_add else set(options.cap_add)
    wanted -= set(options.cap_drop)
    return [name for name in known if name in wanted] + sorted(wanted.difference(known))


def _process(image: ImageConfig, options: RunOptions) -> dict[str, Any]:
    caps = capabilities(options)
    process: dict[str, Any] = {
        "terminal": options.terminal,
        "user": {"umask": 0o022, **options.user},
        "args": command_line(image, options.entrypoint, options.args),
        "env": environment(image, options),
        "cwd": _directory(options.cwd or image.working_dir),
        # Inheritable stays empty: CVE-2022-29162.
        "capabilities": {"bounding": caps, "effective": caps, "permitted": caps, "inheritable": [], "ambient": []},
        "noNewPrivileges": options.no_new_privileges,
    }
    if options.terminal and options.console_size is not None:
        process["consoleSize"] = {"height": options.console_size[0], "width": options.console_size[1]}
    if options.ulimits:
        process["rlimits"] = [dict(item) for item in options.ulimits]
    if options.oom_score_adj is not None:
        process["oomScoreAdj"] = options.oom_score_adj
    return process


def _directory(path: str) -> str:
    """Absolute and clean; an image may write ``app`` or ``/app/../x``, which mean what they would in its root."""
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/" + "/".join(parts)


def _mounts(options: RunOptions, namespaces: Mapping[str, str]) -> list[dict[str, Any]]:
    wished = [dict(mount) for mount in options.mounts]
    for path, text in options.tmpfs.items():
        chosen = [option for option in text.split(",") if option]
        wished.append(_mount(path, "tmpfs", "tmpfs", "nosuid", "nodev", "noexec", *chosen))
    taken = {_directory(str(mount["destination"])) for mount in wished}
    result = [
        mount
        for mount in _default_mounts(options, namespaces)
        if mount["destination"] not in taken
        # Who brings a /dev brings all of it.
        and not ("/dev" in taken and mount["destination"].startswith("/dev/"))
    ]
    # Parents before what is mounted inside them; otherwise the order that the user wrote.
    return sorted(result + wished, key=lambda mount: len(_directory(str(mount["destination"])).split("/")))


def _default_mounts(options: RunOptions, namespaces: Mapping[str, str]) -> list[dict[str, Any]]:
    safe = ("nosuid", "noexec", "nodev")
    write = () if options.privileged else ("ro",)
    mounts = [
        _mount("/proc", "proc", "proc", *safe),
        _mount("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount("/sys", "sysfs", "sysfs", *safe, *write),
        _mount(
            "/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"
        ),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", *safe, "relatime", *write),
        # The queues of whatever ipc namespace it is in, the host's too, where nobody need have mounted them.
        _mount("/dev/mqueue", "mqueue", "mqueue", *safe),
    ]
    if namespaces["ipc"] == "host":
        mounts.append(_mount("/dev/shm", "bind", "/dev/shm", "rbind", *safe))
    else:
        mounts.append(_mount("/dev/shm", "tmpfs", "shm", *safe, "mode=1777", f"size={options.shm_size}"))
    return mounts


def _mount(destination: str, kind: str, source: str, *options: str) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": list(options)}


def _linux(options: RunOptions, namespaces: Mapping[str, str]) -> dict[str, Any]:
    linux: dict[str, Any] = {
        "namespaces": [
            {"type": kind} if where == "new" else {"type": kind, "path": where}
            for kind, where in namespaces.items()
            if where != "host"
        ],
        "resources": _resources(options),
        "maskedPaths": [] if options.privileged else list(MASKED_PATHS),
        "readonlyPaths": [] if options.privileged else list(READONLY_PATHS),
    }
    if options.cgroups_path:
        linux["cgroupsPath"] = options.cgroups_path
    if options.devices:
        linux["devices"] = [{key: value for key, value in item.items() if key != "access"} for item in options.devices]
    sysctl: dict[str, str] = {}
    if namespaces["network"] == "new":
        # In its own network, a container's users may bind low ports and ping without capabilities.
        sysctl = {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}
    sysctl.update(options.sysctl)
    if sysctl:
        linux["sysctl"] = sysctl
    if options.seccomp is not None:
        linux["seccomp"] = dict(options.seccomp)
    return linux


def _resources(options: RunOptions) -> dict[str, Any]:
    resources: dict[str, Any] = {"devices": _device_rules(options)}
    memory = {}
    if options.memory:
        memory["limit"] = options.memory
    if options.memory_swap is not None:
        memory["swap"] = options.memory_swap
    if memory:
        resources["memory"] = memory
    cpu: dict[str, Any] = {}
    if options.cpu_quota:
        cpu.update(quota=options.cpu_quota, period=CPU_PERIOD)
    if options.cpu_shares:
        cpu["shares"] = options.cpu_shares
    if options.cpuset_cpus:
        cpu["cpus"] = options.cpuset_cpus
    if cpu:
        resources["cpu"] = cpu
    if options.pids_limit:
        resources["pids"] = {"limit": options.pids_limit}
    return resources


def _device_rules(options: RunOptions) -> list[dict[str, Any]]:
    """Default deny; making any node is allowed, opening it is not."""
    if options.privileged:
        return [{"allow": True, "access": "rwm"}]
    rules: list[dict[str, Any]] = [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "access": "m"},
        {"allow": True, "type": "b", "access": "m"},
    ]
    for major, minor in _DEVICES:
        rule: dict[str, Any] = {"allow": True, "type": "c", "major": major}
        if minor is not None:
            rule["minor"] = minor
        rules.append({**rule, "access": "rwm"})
    for item in options.devices:
        rules.append(
            {
                "allow": True,
                "type": "b" if item["type"] == "b" else "c",
                "major": item["major"],
                "minor": item["minor"],
                "access": item.get("access", "rwm"),
            }
        )
    return rules
