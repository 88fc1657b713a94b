"""What a start needs on disk and from the kernel: record, layers, lease, the three files of /etc, config.json."""

from __future__ import annotations

import os
import stat
import time

from pycontain.engine import files, mounts
from pycontain.engine.options import Options
from pycontain.runtime import jsontext, lifecycle
from pycontain.runtime.errors import Conflict, KernelError, NotFound, PycontainError, Unsupported
from pycontain.runtime.plan import identity, rights

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from pycontain.engine import Engine
    from pycontain.engine.containers import Container
    from pycontain.engine.images import Image
    from pycontain.images.config import RunOptions
    from pycontain.images.manifest import ImageConfig
    from pycontain.network.lease import Lease

_USER_FILES = ("etc/passwd", "etc/group")
# Of an image's configuration, what a later start needs; the image may be gone by then.
_KEPT = ("User", "Env", "Entrypoint", "Cmd", "WorkingDir")
_NOT_DEVICES = ("pts", "shm", "mqueue", "fd", "console", "tty", "ptmx", "null", "zero", "full", "random", "urandom")


def layers(engine: Engine, image: Image) -> list[str]:
    """The lower directories, top first; what is missing is unpacked. Call it under a pin."""
    from pycontain.images.rootfs import ensure_layers

    return ensure_layers(engine.images, image.manifest)


def record(
    engine: Engine, container: Container, options: Options, image: Image, args: list[str], lowers: Sequence[str]
) -> None:
    """Fill a new container's record; volumes are made here."""
    config = image.config
    wishes = mounts.combine(options.mounts, config.volumes)
    container.record.update(
        id=container.id,
        created=time.time_ns(),
        image={
            "name": image.name,
            "reference": image.reference,
            "id": image.id,
            "manifest": image.manifest.descriptor.digest,
            "layers": list(lowers),
        },
        image_config={name: value for name, value in (config.raw.get("config") or {}).items() if name in _KEPT},
        options=options.to_json(),
        args=args,
        command=options.args or ([] if options.entrypoint is not None else list(config.cmd)),
        entrypoint=list(config.entrypoint) if options.entrypoint is None else options.entrypoint,
        labels={**config.labels, **options.labels},
        stop_signal=options.stop_signal or config.stop_signal or "SIGTERM",
        hostname=_hostname(engine, container, options),
        mounts=mounts.realise(engine.data, wishes),
        network=None,
        state={"status": "created"},
    )


def _hostname(engine: Engine, container: Container, options: Options) -> str:
    if options.hostname:
        return options.hostname
    if options.network == "host":
        return os.uname().nodename
    if options.network.startswith("container:"):
        return str(joinable(engine, options.network.partition(":")[2]).record.get("hostname") or "")
    return container.id[:12]


def rootfs(container: Container) -> dict[str, Any]:
    """The overlay of a container, with the directory that init mounts it on."""
    from pycontain.images.rootfs import rootfs as overlay

    found = overlay(container.directory, container.record["image"]["layers"])
    files.make_directory(container.path("rootfs"))
    found["target"] = container.path("rootfs")
    return found


def machine_image(engine: Engine, container: Container) -> dict[str, Any]:
    """The root file system for a machine: the layers as one read-only image, and a disk for what is written."""
    from pycontain.images import erofs

    image = erofs.cached(erofs.directory(engine.data), container.record["image"]["layers"])
    return {"kind": "image", "path": image, "disk": container.path("disk")}


def image_path(engine: Engine, lowers: list[str]) -> str:
    """Where the image of these layers is, or will be."""
    from pycontain.images import erofs

    return os.path.join(erofs.directory(engine.data), os.path.basename(os.path.dirname(lowers[0])) + ".erofs")


def take_lease(engine: Engine, container: Container, warn: Callable[[str], None] | None) -> Lease | None:
    """An address on the bridge, and the published ports; None for every other network."""
    if container.options.get("network", "bridge") != "bridge":
        return None
    from pycontain.network.ports import Port

    lease = engine.network.take(
        container.id, container.name, [Port(**port) for port in container.options.get("ports") or []]
    )
    if warn is not None:
        for problem in lease.problems:
            warn(problem.message + (f" (hint: {problem.hint})" if problem.hint else ""))
    return lease


def network_record(lease: Lease | None) -> dict[str, Any] | None:
    if lease is None:
        return None
    return {
        "address": lease.address,
        "prefix": lease.prefix,
        "gateway": lease.gateway,
        "mac": lease.mac,
        "ports": [port._asdict() for port in lease.ports],
    }


def prepare(
    engine: Engine,
    container: Container,
    overlay: dict[str, Any],
    lease: Lease | None,
    size: tuple[int, int] | None,
) -> dict[str, Any]:
    """Write config.json and the files that it binds; the configuration. ``size`` is its terminal's, (rows, columns)."""
    passwd, group = _user_files(engine, container, overlay)
    options = Options.from_json(container.options)
    config = configuration(engine, container.id, container.record, options, passwd, group, lease, container.path)
    if options.terminal and size is not None:
        config["process"]["consoleSize"] = {"height": size[0], "width": size[1]}
    write_etc(engine, container, options, lease)
    files.write_atomic(container.path("config.json"), jsontext.dump(config).encode(), durable=False)
    return config


def _user_files(engine: Engine, container: Container, overlay: dict[str, Any]) -> list[bytes | None]:
    """passwd and group as the container will see them.

    Before a container's first start they are the image's, which is the same for every container of these layers:
    what init read in-root is kept by the topmost layer's chain id (users/<chain>/), and saves the next start a mount.
    """
    if container.state.get("started") and container.options.get("isolation") != "vm":
        return lifecycle.read_in_root(overlay, list(_USER_FILES), identity.FILE_MAX + 1)
    chain = os.path.basename(os.path.dirname(overlay["lower"][0]))
    cache = os.path.join(engine.data, "users", chain)
    found: list[bytes | None] = []
    for name in _USER_FILES:
        path = os.path.join(cache, os.path.basename(name))
        try:
            with open(path, "rb") as file:
                # The first byte says whether there is such a file in the image.
                data = file.read()
        except FileNotFoundError:
            break
        found.append(data[1:] if data[:1] == b"+" else None)
    if len(found) < len(_USER_FILES):
        found = lifecycle.read_in_root(overlay, list(_USER_FILES), identity.FILE_MAX + 1)
        files.make_directory(cache)
        for name, content in zip(_USER_FILES, found, strict=True):
            kept = b"-" if content is None else b"+" + content
            files.write_atomic(os.path.join(cache, os.path.basename(name)), kept)
    return found


def configuration(
    engine: Engine,
    identifier: str,
    record: dict[str, Any],
    options: Options,
    passwd: bytes | None,
    group: bytes | None,
    lease: Lease | None,
    path: Callable[[str], str],
) -> dict[str, Any]:
    """config.json of a container; nothing is made. ``path`` gives the path of one of its own files."""
    from pycontain.images.config import to_spec

    image = image_of(record["image_config"])
    user = identity.parse_user(options.user or image.user, passwd, group)
    wishes = run_options(options, str(record["hostname"]), user)
    for text in options.groups:
        gid = identity.parse_group(text, group)
        if gid not in user["additionalGids"]:
            user["additionalGids"].append(gid)
    wishes.user = {key: user[key] for key in ("uid", "gid", "additionalGids")}
    target = _network_target(engine, options)
    if target is not None:
        wishes.namespaces = {**wishes.namespaces, "network": f"/proc/{target.state['pid']}/ns/net"}
    etc = target.path if target is not None else path
    own = mounts.oci(engine.data, record["mounts"])
    taken = {mount["destination"] for mount in own}
    access = "ro" if options.read_only else "rw"
    for name in ("hosts", "hostname", "resolv.conf"):
        if f"/etc/{name}" not in taken:
            choices = ["bind", "rprivate", access]
            own.append({"destination": f"/etc/{name}", "type": "bind", "source": etc(name), "options": choices})
    wishes.mounts = own
    wishes.cgroups_path = f"/pycontain/{identifier}"
    config = to_spec(image, wishes)
    if options.isolation == "vm":
        config.setdefault("annotations", {})["org.pycontain.isolation"] = "vm"
    return config


def image_of(config: dict[str, Any]) -> ImageConfig:
    """The ``config`` object of an image as the record keeps it, which outlives the image."""
    from pycontain.images.manifest import ImageConfig, Platform

    host = Platform.host()
    return ImageConfig(
        os=host.os,
        architecture=host.architecture,
        variant=host.variant,
        diff_ids=(),
        user=str(config.get("User") or ""),
        env=tuple(config.get("Env") or ()),
        entrypoint=tuple(config.get("Entrypoint") or ()),
        cmd=tuple(config.get("Cmd") or ()),
        working_dir=str(config.get("WorkingDir") or ""),
    )


def run_options(options: Options, hostname: str, user: identity.User | None = None) -> RunOptions:
    """Our options as the images' room takes them, without what is looked up at the start."""
    from pycontain.images.config import RunOptions, capabilities
    from pycontain.runtime.kernel.cgroup import host_has_swap

    known = _known_capabilities()
    for name in options.cap_add:
        if name != "ALL" and name not in known:
            raise Unsupported(f"--cap-add {name}: pycontain itself does not have that capability", hint="capsh --print")
    namespaces = {"pid": options.pid_mode, "ipc": options.ipc_mode}
    if options.network == "host":
        namespaces["network"] = "host"
    swap = options.memory_swap
    if swap is None and options.memory and host_has_swap():
        swap = options.memory  # the limit is the limit: nobody asked for swap on top of it
    wishes = RunOptions(
        args=options.args,
        entrypoint=options.entrypoint,
        env=options.env,
        cwd=options.workdir,
        home=user["home"] if user is not None else None,
        terminal=options.terminal,
        hostname=hostname,
        read_only=options.read_only,
        shm_size=options.shm_size,
        cap_add=options.cap_add,
        cap_drop=options.cap_drop,
        known_capabilities=known,
        privileged=options.privileged,
        no_new_privileges=options.no_new_privileges,
        memory=options.memory,
        memory_swap=swap,
        cpu_quota=options.cpu_quota,
        cpu_shares=options.cpu_shares,
        cpuset_cpus=options.cpuset_cpus,
        pids_limit=max(0, options.pids_limit),
        ulimits=options.ulimits,
        devices=_devices(options),
        namespaces={kind: mode for kind, mode in namespaces.items() if mode == "host"},
    )
    wishes.seccomp = _seccomp(options, capabilities(wishes))
    return wishes


def _known_capabilities() -> list[str]:
    """What this process may give away: its bounding set (capabilities(7)); more than that execve would refuse."""
    with open("/proc/self/status", "rb") as file:
        line = next(line for line in file if line.startswith(b"CapBnd:"))
    mask = int(line.split()[1], 16)
    return [name for name, number in rights.CAPS.items() if mask >> number & 1]


def _seccomp(options: Options, caps: list[str]) -> dict[str, Any] | None:
    if options.privileged or options.seccomp == "unconfined":
        return None
    if isinstance(options.seccomp, dict):
        from pycontain.engine.profile import resolve_profile

        return resolve_profile(options.seccomp, set(caps))
    from pycontain.runtime.plan.seccomp import default_profile

    return default_profile(caps)


def joinable(engine: Engine, text: str) -> Container:
    """The container of ``--network container:text``. Raises NotFound, and Unsupported for one in a machine."""
    target = engine.containers.find(text)
    if target.options.get("isolation") == "vm":
        raise Unsupported(
            f'--network container:{text}: container "{target.label}" is in a machine of its own, which shares nothing',
            hint="--network bridge",
        )
    return target


def _network_target(engine: Engine, options: Options) -> Container | None:
    if not options.network.startswith("container:"):
        return None
    text = options.network.partition(":")[2]
    target = joinable(engine, text)
    if target.status() not in ("running", "paused"):
        raise Conflict(
            f'--network container:{text}: container "{target.label}" is not running',
            hint=f"pycontain start {target.label}",
        )
    return target


def _devices(options: Options) -> list[dict[str, Any]]:
    """OCI devices with their "access"; for a privileged container all of the host's too."""
    wanted = list(options.devices)
    if options.privileged and options.isolation != "vm":
        named = {entry["container"] for entry in wanted}
        wanted = [
            {"host": path, "container": path, "permissions": "rwm"} for path in _host_devices() if path not in named
        ] + wanted
    return [_device(entry) for entry in wanted]


def _host_devices() -> list[str]:
    found = []
    for folder, folders, names in os.walk("/dev"):
        folders[:] = sorted(name for name in folders if name not in _NOT_DEVICES)
        for name in sorted(names):
            if folder == "/dev" and name in _NOT_DEVICES:
                continue
            path = os.path.join(folder, name)
            try:
                mode = os.lstat(path).st_mode
            except OSError:
                continue
            if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
                found.append(path)
    return found


def _device(entry: dict[str, str]) -> dict[str, Any]:
    try:
        status = os.stat(entry["host"])
    except OSError as error:
        raise KernelError(f'--device "{entry["host"]}": cannot be looked up', error.errno or 0) from None
    kind = "c" if stat.S_ISCHR(status.st_mode) else "b" if stat.S_ISBLK(status.st_mode) else ""
    if not kind:
        raise PycontainError(f'--device "{entry["host"]}": it is not a device')
    return {
        "type": kind,
        "path": entry["container"],
        "major": os.major(status.st_rdev),
        "minor": os.minor(status.st_rdev),
        "fileMode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
        "access": entry["permissions"],
    }


def write_etc(engine: Engine, container: Container, options: Options, lease: Lease | None) -> None:
    """hosts, hostname and resolv.conf in the container's directory, where other members' names are added."""
    from pycontain.engine import members
    from pycontain.network import names

    if options.network.startswith("container:"):
        return
    hostname = str(container.record["hostname"])
    gateway = lease.gateway if lease is not None else "127.0.0.1"
    extra = []
    for text in options.add_hosts:
        name, _, address = text.partition(":")
        extra.append((name, gateway if address == "host-gateway" else address))
    if options.network == "host":
        with open("/etc/hosts", "rb") as file:
            hosts = file.read(1 << 20) + "".join(f"{address}\t{name}\n" for name, address in extra).encode()
    else:
        # On a network the container's own line comes with those of the other members.
        hosts = names.hosts_text("" if lease is not None else hostname, "", extra).encode()
    _replace(container.path("hosts"), hosts)
    _replace(container.path("hostname"), f"{hostname}\n".encode())
    host = names.read_resolv_conf() if options.network != "host" else names.parse_resolv_conf(_text(names.RESOLV_CONF))
    _replace(container.path("resolv.conf"), names.resolv_conf(host, options.dns).text().encode())
    if lease is not None:
        members.refresh(engine, starting=container)


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 16)
    except OSError:
        return ""


def _replace(path: str, data: bytes) -> None:
    """These files are bind mounts' sources and belong to root in the container: readable by everybody there."""
    files.write_atomic(path, data, 0o644, durable=False)
    os.chmod(path, 0o644)


def exec_process(
    engine: Engine,
    container: Container,
    args: Sequence[str],
    *,
    env: Sequence[str],
    user: str | None,
    workdir: str | None,
    terminal: bool,
    privileged: bool,
) -> dict[str, Any]:
    """The process object of an exec: the container's own, with what the user changed."""
    path = container.path("config.json")
    try:
        with open(path, "rb") as file:
            config = jsontext.parse(file.read(8 << 20), path)
    except FileNotFoundError:
        raise NotFound(f'container "{container.label}" has no config.json') from None
    process = dict(config["process"])
    process.pop("consoleSize", None)
    merged = {entry.partition("=")[0]: entry for entry in process.get("env") or []}
    if terminal:
        merged.setdefault("TERM", "TERM=xterm")
    if user is not None:
        if container.options.get("isolation") == "vm":
            root = engine.runtime_root
            passwd, group = lifecycle.read_inside(container.id, list(_USER_FILES), identity.FILE_MAX + 1, root=root)
        else:
            passwd, group = (_read_inside(int(container.state["pid"]), name) for name in _USER_FILES)
        found = identity.parse_user(user, passwd, group)
        process["user"] = {key: found[key] for key in ("uid", "gid", "additionalGids")}
        merged["HOME"] = f"HOME={found['home']}"
    merged |= {entry.partition("=")[0]: entry for entry in env}
    if privileged:
        every = list(rights.CAPS)
        process["capabilities"] = {"bounding": every, "effective": every, "permitted": every}
    process.update(
        args=list(args),
        env=list(merged.values()),
        cwd=workdir or process["cwd"],
        terminal=terminal,
    )
    return process


def _read_inside(pid: int, name: str) -> bytes | None:
    """A file as the container sees it. It is the container's to swap: in-root, never blocking, regular files only."""
    from pycontain.runtime.kernel.syscalls import openat2

    try:
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fd = openat2(root, name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return None
    finally:
        os.close(root)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        return os.pread(fd, identity.FILE_MAX + 1, 0)
    finally:
        os.close(fd)
