"""Options of a new container: what the user wrote, checked once, as plain data that container.json keeps.

The command line and the Python API both end here: `read` takes the values by their long names, so that the same
rules and the same error texts hold for both.
"""

from __future__ import annotations

import os

from pycontain.engine import mounts, values
from pycontain.runtime.errors import PycontainError, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

_DEFAULT_SHM = 64 << 20


class Options:
    """Sizes in bytes, times in seconds; None and empty mean "not asked for"."""

    image: str = ""
    args: list[str]
    name: str | None = None
    entrypoint: list[str] | None = None
    env: list[str]
    user: str | None = None
    groups: list[str]
    workdir: str | None = None
    hostname: str | None = None
    terminal: bool = False
    interactive: bool = False
    detach: bool = False
    remove: bool = False
    init: bool = False
    read_only: bool = False
    privileged: bool = False
    isolation: str = "container"
    no_new_privileges: bool = False
    seccomp: str | dict[str, Any] = "default"
    cap_add: list[str]
    cap_drop: list[str]
    mounts: list[dict[str, Any]]
    devices: list[dict[str, str]]
    ulimits: list[dict[str, Any]]
    labels: dict[str, str]
    memory: int = 0
    memory_swap: int | None = None
    cpu_quota: int = 0
    cpu_shares: int = 0
    cpuset_cpus: str = ""
    pids_limit: int = 0
    shm_size: int = _DEFAULT_SHM
    network: str = "bridge"
    ports: list[dict[str, Any]]
    add_hosts: list[str]
    dns: list[str]
    pid_mode: str = "private"
    ipc_mode: str = "private"
    platform: str | None = None
    pull: str = "missing"
    cidfile: str | None = None
    stop_signal: str | None = None
    stop_timeout: int | None = None
    log: dict[str, int]

    def __init__(self, **known: Any) -> None:
        self.args = []
        self.env = []
        self.groups = []
        self.cap_add = []
        self.cap_drop = []
        self.mounts = []
        self.devices = []
        self.ulimits = []
        self.labels = {}
        self.ports = []
        self.add_hosts = []
        self.dns = []
        self.log = {}
        for name, value in known.items():
            setattr(self, name, value)

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in Options.__annotations__}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Options:
        """Of container.json; what a newer release added is unknown here and left alone."""
        return cls(**{name: value for name, value in data.items() if name in Options.__annotations__})


def read(
    image: str, args: Sequence[str], given: Mapping[str, object], environ: Mapping[str, str] | None = None
) -> Options:
    """Check ``given`` (long option name → bool, str or list[str]). Raises PycontainError, Unsupported."""
    options = Options(image=image, args=[_clean("ARG", arg) for arg in args])
    _refused(given)
    _identity(options, given, os.environ if environ is None else environ)
    _switches(options, given)
    _limits(options, given)
    _security(options, given)
    _network(options, given)
    _files(options, given)
    if options.isolation == "vm":
        _refused_in_machine(options)
    return options


def _refused_in_machine(options: Options) -> None:
    """What a container in a machine of its own cannot have: whatever is a part of this host."""
    asked = [
        (f"--network {options.network}", options.network not in ("bridge", "none"), "--network bridge"),
        ("--pid host", options.pid_mode == "host", "leave out --pid"),
        ("--ipc host", options.ipc_mode == "host", "leave out --ipc"),
        ("--device", bool(options.devices), "leave out --device"),
    ]
    for name, found, hint in asked:
        if found:
            raise Unsupported(f"{name}: a container in a machine shares nothing with this host", hint=hint)


def _text(given: Mapping[str, object], name: str) -> str | None:
    value = given.get(name)
    return None if value is None else str(value)


def _list(given: Mapping[str, object], name: str) -> list[str]:
    value = given.get(name)
    return [str(item) for item in value] if isinstance(value, (list, tuple)) else []


def _clean(what: str, text: str) -> str:
    if "\0" in text:
        raise values.wrong(what, text.replace("\0", "\\0"), "contains a NUL byte")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise values.wrong(what, text.encode(errors="surrogateescape").decode(errors="backslashreplace"), "not UTF-8")
    return text


def _refused(given: Mapping[str, object]) -> None:
    """What is known by name and not built; ignoring it would be a lie."""
    restart = _text(given, "restart")
    if restart not in (None, "", "no"):
        raise Unsupported(f'--restart "{restart}": only "no" is built', hint="leave out --restart")
    if _text(given, "userns") not in (None, "", "host"):
        raise Unsupported(f'--userns "{given["userns"]}": user namespaces are not built yet', hint="leave out --userns")
    if given.get("detach") and given.get("attach"):
        raise PycontainError("--detach and --attach exclude each other")


def _identity(options: Options, given: Mapping[str, object], environ: Mapping[str, str]) -> None:
    name = _text(given, "name")
    options.name = values.container_name(name) if name is not None else None
    hostname = _text(given, "hostname")
    if hostname:
        from pycontain.network.names import check_hostname

        options.hostname = check_hostname(hostname)
    entrypoint = given.get("entrypoint")
    if isinstance(entrypoint, (list, tuple)):
        options.entrypoint = [str(part) for part in entrypoint]
    elif entrypoint is not None:
        # An empty program resets the image's entry point, as with docker.
        options.entrypoint = [_clean("entrypoint", str(entrypoint))] if entrypoint else []
    options.env = values.environment(_list(given, "env"), _list(given, "env-file"), environ)
    user = _text(given, "user")
    if user:
        options.user = _clean("user", user)
    options.groups = [_clean("group-add", group) for group in _list(given, "group-add")]
    workdir = _text(given, "workdir")
    if workdir:
        options.workdir = values.absolute("workdir", workdir, workdir, "/srv")
    options.labels = values.labels(_list(given, "label"))
    platform = _text(given, "platform")
    if platform:
        from pycontain.images.manifest import Platform

        options.platform = str(Platform.parse(platform))
    options.pull = _text(given, "pull") or "missing"
    signal = _text(given, "stop-signal")
    if signal:
        from pycontain.runtime.plan.identity import parse_signal

        parse_signal(signal)
        options.stop_signal = signal
    timeout = _text(given, "stop-timeout")
    if timeout is not None:
        options.stop_timeout = values.number("stop-timeout", timeout, -1, 10**9, "10")


def _switches(options: Options, given: Mapping[str, object]) -> None:
    options.terminal = bool(given.get("tty"))
    options.interactive = bool(given.get("interactive"))
    options.detach = bool(given.get("detach"))
    options.remove = bool(given.get("rm"))
    options.init = bool(given.get("init"))
    options.read_only = bool(given.get("read-only"))
    options.privileged = bool(given.get("privileged"))
    options.isolation = _text(given, "isolation") or "container"
    if options.isolation not in ("container", "vm"):
        raise values.wrong("isolation", options.isolation, "no such isolation (wanted container or vm)", "vm")
    options.cidfile = _text(given, "cidfile")


def _limits(options: Options, given: Mapping[str, object]) -> None:
    memory, swap = _text(given, "memory"), _text(given, "memory-swap")
    options.memory = values.memory(memory) if memory else 0
    if swap and swap != "0":
        options.memory_swap = values.memory_swap(swap, options.memory)
    cpus, shares, cpuset = _text(given, "cpus"), _text(given, "cpu-shares"), _text(given, "cpuset-cpus")
    options.cpu_quota = values.cpu_quota(cpus) if cpus else 0
    if shares and shares != "0":
        options.cpu_shares = values.number("cpu-shares", shares, 2, 262144, "512")
    options.cpuset_cpus = values.cpu_list("cpuset-cpus", cpuset) if cpuset else ""
    pids = _text(given, "pids-limit")
    options.pids_limit = values.number("pids-limit", pids, -1, 4194304, "20") if pids else 0
    shm = _text(given, "shm-size")
    options.shm_size = values.size("shm-size", shm) if shm else _DEFAULT_SHM
    if options.shm_size == 0:
        raise values.wrong("shm-size", str(shm), "must be more than 0", "64m")
    from pycontain.runtime.plan.identity import parse_ulimit

    options.ulimits = [dict(parse_ulimit(text)) for text in _list(given, "ulimit")]
    options.log = values.log_options(_list(given, "log-opt"))


def _security(options: Options, given: Mapping[str, object]) -> None:
    from pycontain.runtime.plan.identity import parse_cap

    options.cap_add = [parse_cap(text) for text in _list(given, "cap-add")]
    options.cap_drop = [parse_cap(text) for text in _list(given, "cap-drop")]
    for text in _list(given, "security-opt"):
        import re

        name, found, value = re.sub("^([a-z-]+):", r"\1=", text).partition("=")
        if name == "no-new-privileges" and (not found or value in ("true", "false")):
            options.no_new_privileges = value != "false"
        elif name == "seccomp" and value == "unconfined":
            options.seccomp = "unconfined"
        elif name == "seccomp" and value:
            from pycontain.engine.profile import read_profile

            options.seccomp = read_profile(value)
        else:
            raise Unsupported(
                f'--security-opt "{text}": only no-new-privileges, seccomp=unconfined and seccomp=FILE are built',
                hint="--security-opt no-new-privileges",
            )


def _network(options: Options, given: Mapping[str, object]) -> None:
    network = _text(given, "network") or "bridge"
    kind, _, other = network.partition(":")
    if kind == "default":
        network = "bridge"
    elif kind == "container" and not other:
        raise values.wrong("network", network, "no container after the colon", "container:web")
    elif network not in ("bridge", "none", "host") and kind != "container":
        raise values.wrong("network", network, "no such network (wanted bridge, none, host or container:ID)", "bridge")
    options.network = network
    published = _list(given, "publish")
    if published:
        from pycontain.network.ports import parse_publish

        options.ports = [port._asdict() for text in published for port in parse_publish(text)]
    taken = set()
    for port in options.ports:
        key = (port["host_ip"], port["host_port"], port["protocol"])
        if port["host_port"] and key in taken:
            raise PycontainError(f"--publish names the host port {port['host_port']}/{port['protocol']} twice")
        taken.add(key)
    for text in _list(given, "add-host"):
        from pycontain.network.names import check_hostname, parse_add_host

        name, _, address = text.partition(":")
        if address == "host-gateway":
            check_hostname(name)
        else:
            parse_add_host(text)
        options.add_hosts.append(text)
    options.dns = [values.check_address("dns", text, text) for text in _list(given, "dns")]
    if network != "bridge" and options.ports:
        raise PycontainError(
            f"--publish wants a network of the container's own, but --network is {network}", hint="--network bridge"
        )
    if kind == "container":
        for name in ("hostname", "dns", "add-host"):
            if given.get(name):
                raise PycontainError(f"--{name} and --network {network} exclude each other: that container has its own")
    for name in ("pid", "ipc"):
        mode = _text(given, name)
        if mode not in (None, "", "private", "host"):
            raise Unsupported(f'--{name} "{mode}": only host is built', hint=f"--{name} host")
        setattr(options, f"{name}_mode", mode or "private")


def _files(options: Options, given: Mapping[str, object]) -> None:
    options.mounts = [
        *(mounts.volume(text) for text in _list(given, "volume")),
        *(mounts.mount(text) for text in _list(given, "mount")),
        *(mounts.tmpfs(text) for text in _list(given, "tmpfs")),
    ]
    mounts.combine(options.mounts, ())
    options.devices = [values.device(text) for text in _list(given, "device")]
    for device in options.devices:
        if not os.path.exists(device["host"]):
            raise values.wrong("device", device["host"], "not there on this host", "/dev/fuse")
