"""What is known about containers: docker's inspect document, and the rows of ps."""

from __future__ import annotations

import time

from pycontain.engine.containers import Container

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontain.engine import Engine

_NEVER = "0001-01-01T00:00:00Z"


def rfc3339(nanoseconds: int) -> str:
    """UTC with nanoseconds, as docker prints times; its word for "never" where 0."""
    if not nanoseconds:
        return _NEVER
    whole, rest = divmod(nanoseconds, 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{rest:09d}Z"


def ago(nanoseconds: int) -> str:
    """``3 minutes``: the time since then, in the largest unit that fits."""
    seconds = max(0, int((time.time_ns() - nanoseconds) / 1e9))
    for unit, length in (("week", 604800), ("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length or (seconds >= length and unit == "minute"):
            count = seconds // length
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{seconds} second{'' if seconds == 1 else 's'}"


def container(engine: Engine, found: Container) -> dict[str, Any]:
    """docker's document for one container, as far as its fields have a meaning here."""
    record, options = found.record, found.options
    status = found.status()
    running = status in ("running", "paused")
    ended = found.exit_state() if status == "exited" else {}
    state = found.state
    args = record.get("args") or []
    image = record.get("image") or {}
    config = record.get("image_config") or {}
    return {
        "Id": found.id,
        "Created": rfc3339(int(record.get("created") or 0)),
        "Path": args[0] if args else "",
        "Args": args[1:],
        "State": {
            "Status": status,
            "Running": running,
            "Paused": status == "paused",
            "Restarting": False,
            "OOMKilled": bool(ended.get("oom_killed")),
            "Dead": status == "dead",
            "Pid": state.get("pid", 0) if running else 0,
            "ExitCode": int(ended.get("exit_code") or 0),
            "Error": state.get("error", ""),
            "StartedAt": rfc3339(int(state.get("started") or 0)),
            "FinishedAt": rfc3339(int(ended.get("finished") or 0)),
        },
        "Image": image.get("id", ""),
        "Name": f"/{found.name}",
        "RestartCount": 0,
        "Driver": "overlay",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "LogPath": found.path("log/container.log"),
        "HostsPath": found.path("hosts"),
        "HostnamePath": found.path("hostname"),
        "ResolvConfPath": found.path("resolv.conf"),
        "SeccompProfile": seccomp_name(options),
        "HostConfig": _host_config(options),
        "Mounts": [_mount(engine, wish) for wish in record.get("mounts") or []],
        "Config": {
            "Hostname": record.get("hostname", ""),
            "User": options.get("user") or config.get("User", ""),
            "Tty": bool(options.get("terminal")),
            "OpenStdin": bool(options.get("interactive")),
            "Env": record.get("env") or [],
            "Cmd": record.get("command") or [],
            "Entrypoint": record.get("entrypoint") or None,
            "Image": image.get("name", ""),
            "WorkingDir": record.get("cwd", "/"),
            "Labels": record.get("labels") or {},
            "StopSignal": record.get("stop_signal", "SIGTERM"),
            "StopTimeout": options.get("stop_timeout"),
        },
        "NetworkSettings": _network(record.get("network") if running else None, options),
        "Machine": _machine(engine, found) if running and options.get("isolation") == "vm" else None,
    }


def _machine(engine: Engine, found: Container) -> dict[str, Any] | None:
    """What a running container's machine is; None where it has ended meanwhile."""
    from pycontain.runtime import lifecycle
    from pycontain.runtime.errors import PycontainError

    try:
        machine = lifecycle.in_machine(found.id, root=engine.runtime_root) or {}
    except PycontainError:
        return None
    return {
        "Kind": machine.get("kind", ""),
        "Acceleration": machine.get("accel", ""),
        "Kernel": machine.get("kernel", ""),
        "Memory": int(machine.get("memory") or 0) << 20,
        "Cpus": machine.get("cpus") or 0,
        "Template": machine.get("template") or "",
    }


def seccomp_name(options: dict[str, Any]) -> str:
    """``default``, ``unconfined`` or ``file``."""
    if options.get("privileged"):
        return "unconfined"
    profile = options.get("seccomp", "default")
    return profile if isinstance(profile, str) else "file"


def _host_config(options: dict[str, Any]) -> dict[str, Any]:
    security = ["no-new-privileges"] if options.get("no_new_privileges") else []
    if seccomp_name(options) != "default":
        security.append(f"seccomp={seccomp_name(options)}")
    return {
        "AutoRemove": bool(options.get("remove")),
        "Binds": [
            f"{wish['source']}:{wish['target']}{':ro' if wish['read_only'] else ''}"
            for wish in options.get("mounts") or []
            if wish["type"] != "tmpfs"
        ],
        "CapAdd": options.get("cap_add") or None,
        "CapDrop": options.get("cap_drop") or None,
        "CpuPeriod": 100_000 if options.get("cpu_quota") else 0,
        "CpuQuota": options.get("cpu_quota") or 0,
        "CpuShares": options.get("cpu_shares") or 0,
        "CpusetCpus": options.get("cpuset_cpus") or "",
        "Devices": [
            {
                "PathOnHost": device["host"],
                "PathInContainer": device["container"],
                "CgroupPermissions": device["permissions"],
            }
            for device in options.get("devices") or []
        ],
        "Dns": options.get("dns") or [],
        "ExtraHosts": options.get("add_hosts") or None,
        "GroupAdd": options.get("groups") or None,
        "Init": bool(options.get("init")),
        "IpcMode": options.get("ipc_mode", "private"),
        "Isolation": options.get("isolation", "container"),
        "Memory": options.get("memory") or 0,
        "MemorySwap": options.get("memory_swap") or 0,
        "NanoCpus": (options.get("cpu_quota") or 0) * 10_000,
        "NetworkMode": options.get("network", "bridge"),
        "PidMode": "" if options.get("pid_mode") == "private" else options.get("pid_mode", ""),
        "PidsLimit": options.get("pids_limit") or None,
        "PortBindings": _bindings(options.get("ports") or []),
        "Privileged": bool(options.get("privileged")),
        "ReadonlyRootfs": bool(options.get("read_only")),
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "SecurityOpt": security or None,
        "ShmSize": options.get("shm_size") or 0,
        "Tmpfs": {
            wish["target"]: ",".join(wish["options"]) for wish in options.get("mounts") or [] if wish["type"] == "tmpfs"
        },
        "Ulimits": [
            {
                "Name": limit["type"].removeprefix("RLIMIT_").lower(),
                "Soft": limit["soft"],
                "Hard": limit["hard"],
            }
            for limit in options.get("ulimits") or []
        ],
        "LogConfig": {
            "Type": "json-lines",
            "Config": {key: str(value) for key, value in (options.get("log") or {}).items()},
        },
    }


def _mount(engine: Engine, wish: dict[str, Any]) -> dict[str, Any]:
    from pycontain.engine.mounts import volume_path

    found = {"Type": wish["type"], "Source": wish["source"], "Destination": wish["target"], "RW": not wish["read_only"]}
    if wish["type"] == "volume":
        found |= {"Name": wish["source"], "Source": volume_path(engine.data, wish["source"]), "Driver": "local"}
    propagation = [word for word in wish["options"] if word.removeprefix("r") in ("private", "shared", "slave")]
    return found | {"Mode": "ro" if wish["read_only"] else "", "Propagation": propagation[0] if propagation else ""}


def _bindings(ports: list[dict[str, Any]]) -> dict[str, list[dict[str, str]]]:
    result: dict[str, list[dict[str, str]]] = {}
    for port in ports:
        entry = {"HostIp": str(port["host_ip"]), "HostPort": str(port["host_port"] or "")}
        result.setdefault(f"{port['container_port']}/{port['protocol']}", []).append(entry)
    return result


def _network(network: dict[str, Any] | None, options: dict[str, Any]) -> dict[str, Any]:
    found = network or {}
    plain = {
        "IPAddress": found.get("address", ""),
        "IPPrefixLen": found.get("prefix", 0),
        "Gateway": found.get("gateway", ""),
        "MacAddress": found.get("mac", ""),
    }
    kind = str(options.get("network", "bridge"))
    networks = {kind: plain} if not kind.startswith("container:") else {}
    return {**plain, "Ports": _bindings(found.get("ports") or []), "Networks": networks}


def status_text(found: Container) -> str:
    """ps's STATUS column: ``Up 3 minutes``, ``Exited (0) 5 seconds ago``, ``Created``."""
    status = found.status()
    if status in ("running", "paused"):
        return f"Up {ago(int(found.state.get('started') or 0))}" + (" (Paused)" if status == "paused" else "")
    if status == "exited":
        ended = found.exit_state()
        return f"Exited ({ended['exit_code']}) {ago(int(ended['finished'] or 0))} ago"
    return status.capitalize()


def ports_text(found: Container) -> str:
    if found.status() not in ("running", "paused"):
        return ""
    network = found.record.get("network") or {}
    return ", ".join(
        f"{port['host_ip']}:{port['host_port']}->{port['container_port']}/{port['protocol']}"
        for port in network.get("ports") or []
    )


def size_text(size: int) -> str:
    """``64 MiB``."""
    for unit, bytes_ in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= bytes_:
            return f"{size / bytes_:.4g} {unit}"
    return f"{size} B"


def fits(found: Container, name: str, value: str) -> bool:
    """One filter of ps."""
    if name == "status":
        return found.status() == value
    if name == "name":
        return value in found.name
    if name == "id":
        return found.id.startswith(value)
    if name == "exited":
        return found.status() == "exited" and str(found.exit_state()["exit_code"]) == value
    if name == "ancestor":
        image = found.record.get("image") or {}
        names = (
            image.get("name", ""),
            image.get("reference"),
            image.get("id"),
            str(image.get("name")).partition(":")[0],
        )
        return value in names
    key, equals, wanted = value.partition("=")
    labels = found.record.get("labels") or {}
    return key in labels and (not equals or labels[key] == wanted)


def row(found: Container) -> dict[str, Any]:
    """One line of ps, by docker's names."""
    record = found.record
    return {
        "ID": found.id,
        "Image": (record.get("image") or {}).get("name", ""),
        "Command": " ".join(record.get("args") or []),
        "CreatedAt": rfc3339(int(record.get("created") or 0)),
        "RunningFor": f"{ago(int(record.get('created') or 0))} ago",
        "State": found.status(),
        "Status": status_text(found),
        "Ports": ports_text(found),
        "Names": found.name,
        "Labels": ",".join(f"{key}={value}" for key, value in (record.get("labels") or {}).items()),
    }
