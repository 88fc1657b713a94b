"""checkpoint and restore, by criu(8): what it cannot know of a container is said to it, the rest is its work.

The image directory is criu's; ``pycontain.json`` beside its files holds what restore has to say to it again: the keys
of mounts, namespaces and descriptors that are not the container's own. criu's log names what it could not do.
"""

from __future__ import annotations

import os
import stat

from pycontain.runtime import spec
from pycontain.runtime.control import cgroup_of
from pycontain.runtime.creation import (
    OCI_VERSION,
    Running,
    cgroup_path,
    complete_resources,
    join_fds,
    now,
    own_pids,
    read_config,
    rootfs_of,
    write_pid_file,
)
from pycontain.runtime.ending import delete
from pycontain.runtime.errors import KernelError, NotFound, PycontainError, SpecError, Unsupported
from pycontain.runtime.jsontext import dump, parse
from pycontain.runtime.kernel.cgroup import Cgroup, open_cgroup
from pycontain.runtime.kernel.host import privileged
from pycontain.runtime.paths import read_bounded, real
from pycontain.runtime.plan.plan import Plan
from pycontain.runtime.state import Container, check_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

RECORD = "pycontain.json"
_FLAGS = {
    "tcp_established": "--tcp-established", "ext_unix_sk": "--ext-unix-sk", "shell_job": "--shell-job",
    "file_locks": "--file-locks", "auto_dedup": "--auto-dedup", "link_remap": "--link-remap",
}  # fmt: skip
# Namespaces that criu takes from outside by their file; the others it would have to make.
_EXTERNAL = {"network": "net", "pid": "pid"}
_NULL = os.makedev(1, 3)


class Restored(Running):
    """A first process that criu made, as our child."""

    def __init__(self, pid: int) -> None:
        self.pid = pid


def checkpoint(id: str, images: str, *, root: str, work: str | None = None, options: dict[str, Any]) -> None:
    """Write the processes of a running container to ``images``, and delete it where it is not to go on.

    ``options``: the command's (``verbs.COMMANDS``). Raises Conflict, Unsupported; PycontainError with criu's word.
    """
    manages(options)
    leave = bool(options.get("leave_running") or options.get("pre_dump"))
    with Container.open(root, id) as container:
        container.require("checkpoint")
        if "machine" in container.fields:
            raise Unsupported(f"cannot checkpoint container {id}: its memory is in a machine, not criu's to write")
        config = parse(read_bounded(f"{container.directory}/config.json"), f"{container.directory}/config.json")
        _check(config)
        pid = container.pid
        images, work = _directory(images), _directory(work or images)
        keys = _mounts(config, pid)
        descriptors = _descriptors(pid)
        named = _named_namespaces(config)
        arguments = ["pre-dump" if options.get("pre_dump") else "dump", "--tree", str(pid)]
        arguments += [f"--external=mnt[{place}]:{key}" for place, key in keys.items()]
        arguments += [f"--external={key}" for key in descriptors.values() if key.startswith("file[")]
        arguments += [f"--external={_EXTERNAL[kind]}[{os.stat(path).st_ino}]:{kind}" for kind, path in named.items()]
        if "pre_dump" in options or "parent_path" in options:
            arguments.append("--track-mem")
        if options.get("parent_path"):
            arguments.append(f"--prev-images-dir={options['parent_path']}")
        if options.get("leave_running") and not options.get("pre_dump"):
            arguments.append("--leave-running")
        freezer = cgroup_of(container).unified
        if freezer is not None:
            arguments.append(f"--freeze-cgroup={freezer}")
        arguments += _common(options, images, work, arguments[0])
        record = {"mounts": keys, "descriptors": {str(fd): descriptors[fd] for fd in descriptors}, "named": list(named)}
        with open(f"{images}/{RECORD}", "w") as file:
            file.write(dump(record))
        status = _criu(arguments)
        if status:
            raise _failure(f"checkpoint container {id}", f"{work}/{arguments[0]}.log", status)
    if not leave:
        delete(id, root=root, force=True)


def restore(
    id: str,
    bundle: str,
    images: str,
    *,
    root: str,
    work: str | None = None,
    pid_file: str | None = None,
    manager: str | None = None,
    options: dict[str, Any],
) -> Running:
    """A container, of the bundle that it was made of, as ``checkpoint`` left it; running, and a child of ours.

    Its stdio is this process's. Raises what ``create`` raises, and PycontainError with criu's word; nothing is left.
    """
    manages(options)
    check_id(id)
    bundle, images = real(bundle), real(images)
    raw = read_config(bundle)
    config = spec.read(raw, f"{bundle}/config.json")
    _check(config)
    try:
        record = parse(read_bounded(f"{images}/{RECORD}"), f"{images}/{RECORD}")
    except NotFound:
        raise NotFound(
            f"--image-path {images}: found no {RECORD} there: it is no checkpoint of a container",
            hint="pycontain-runtime checkpoint --image-path DIR writes one",
        ) from None
    work = _directory(work or images)
    if manager is None:
        cgroup = open_cgroup(cgroup_path(config, id))
    else:
        from pycontain.runtime.kernel.managers import planned

        cgroup = planned(manager, config, id)
    rootfs = rootfs_of(config, bundle)["path"]
    resources = complete_resources(config)
    fields = {
        "ociVersion": OCI_VERSION,
        "bundle": bundle,
        "cgroup": cgroup.path if cgroup.directories else "",
        "annotations": config.get("annotations") or {},
        "rootfs": rootfs,
        "created": now(),
        "operations": 0,
        "poststart": [],
        "poststop": (config.get("hooks") or {}).get("poststop") or [],
        "own_pids": own_pids(config),
        **({} if manager is None else {"manager": manager}),
    }
    container = Container.make(root, id, fields, raw)
    made = False
    pid = 0
    try:
        cgroup.create()
        made = True
        _filter_devices(cgroup, resources)
        sources = _sources(config, bundle, cgroup, record["mounts"])
        arguments = ["restore", "--restore-detached", "--restore-sibling", f"--pidfile={container.directory}/restored"]
        arguments += [f"--external=mnt[{key}]:{source}" for key, source in sources.items()]
        keep, inherited = _inherited(config, record)
        arguments += inherited
        arguments += [f"--root={rootfs}", *_common(options, images, work, "restore")]
        try:
            status = _criu_inside(arguments, cgroup, rootfs, config)
        finally:
            for fd in keep:
                os.close(fd)
        if status:
            raise _failure(f"restore container {id}", f"{work}/restore.log", status)
        pid = int(read_bounded(f"{container.directory}/restored"))
        os.unlink(f"{container.directory}/restored")
        cgroup.entered(pid)
        cgroup.apply(resources)
        container.set_pid(pid)
        container.fields["status"] = "running"
        if pid_file is not None:
            write_pid_file(pid_file, pid)
        container.save()
        container.close()
    except BaseException:
        if made:
            cgroup.entered(pid)
            cgroup.kill_all()
            if pid:
                os.waitpid(pid, 0)
            cgroup.remove()
        container.remove()
        raise
    return Restored(pid)


def manages(options: dict[str, Any]) -> None:
    """Raises Unsupported where criu is to care for cgroups: this runtime does, by config.json."""
    mode = options.get("manage_cgroups_mode", "soft")
    if mode not in ("soft", "ignore"):
        raise Unsupported(f"--manage-cgroups-mode {mode}: the container's cgroup is made anew from config.json (soft)")


def _check(config: dict[str, Any]) -> None:
    """What neither checkpoint nor restore can do."""
    if not privileged():
        raise Unsupported("checkpoint and restore take the host's root")
    if config.get("vm") is not None or (config.get("annotations") or {}).get("org.pycontain.isolation") == "vm":
        raise Unsupported("$.vm: a machine's memory is not criu's to write or to read")
    if (config.get("process") or {}).get("terminal"):
        raise Unsupported("$.process.terminal: the terminal of a container cannot be checkpointed or restored")
    for kind in ("prestart", "createRuntime", "createContainer", "startContainer", "poststart"):
        if (config.get("hooks") or {}).get(kind):
            raise Unsupported(f"$.hooks.{kind}: a restored container passes no such point: nothing would run it")
    if not any(n["type"] == "mount" for n in (config.get("linux") or {}).get("namespaces") or ()):
        raise Unsupported("$.linux.namespaces: without a mount namespace it cannot be checkpointed or restored")
    for i, namespace in enumerate((config.get("linux") or {}).get("namespaces") or ()):
        kind = namespace["type"]
        if namespace.get("path") and kind not in _EXTERNAL or kind in ("user", "time"):
            what = f"{kind} namespace" + (" by its path" if namespace.get("path") else "")
            raise Unsupported(f"$.linux.namespaces[{i}]: a container with a {what} cannot be checkpointed or restored")


def _named_namespaces(config: dict[str, Any]) -> dict[str, str]:
    namespaces = (config.get("linux") or {}).get("namespaces") or ()
    return {n["type"]: n["path"] for n in namespaces if n.get("path")}


def _directory(path: str) -> str:
    try:
        os.makedirs(path, 0o700, exist_ok=True)
    except OSError as error:
        raise KernelError(f"cannot make the directory {path}", error.errno or 0) from None
    return real(path)


def _binds(config: dict[str, Any], bundle: str) -> dict[str, str]:
    """Destination → source of the mounts that bind something of the host."""
    found = {}
    for mount in config.get("mounts") or ():
        options = mount.get("options") or ()
        if "bind" in options or "rbind" in options or mount.get("type") in ("bind", "none"):
            source = mount.get("source") or ""
            found[os.path.normpath(mount["destination"])] = source if source.startswith("/") else f"{bundle}/{source}"
    return found


def _mounts(config: dict[str, Any], pid: int) -> dict[str, str]:
    """Place → key of the mounts in the container's namespace whose content is not its own."""
    binds = _binds(config, "/")
    masked = (config.get("linux") or {}).get("maskedPaths") or ()
    found: dict[str, str] = {}
    with open(f"/proc/{pid}/mountinfo") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            fields = left.split(" ")
            place, kind = fields[4], right.split(" ")[0]
            inside = any(place == bound or place.startswith(f"{bound}/") for bound in binds)
            null = place in masked and os.stat(f"/proc/{pid}/root{place}").st_rdev == _NULL
            if place != "/" and (inside or null or kind in ("cgroup", "cgroup2")):
                if "\\" in place or "]" in place:
                    raise Unsupported(f"cannot checkpoint a mount at {place}: criu takes no blanks and brackets")
                found[place] = f"m{len(found)}"
    return found


def _sources(config: dict[str, Any], bundle: str, cgroup: Cgroup, keys: dict[str, str]) -> dict[str, str]:
    """Key → what to mount there, by the configuration as it is now."""
    binds = _binds(config, bundle)
    views = [os.path.normpath(m["destination"]) for m in config.get("mounts") or () if m.get("type") == "cgroup"]
    hierarchies = {directory[: -len(cgroup.path)].rpartition("/")[2]: directory for directory in cgroup.directories}
    found = {}
    for place, key in keys.items():
        view = next((view for view in views if place == view or place.startswith(f"{view}/")), None)
        bound = max((b for b in binds if place == b or place.startswith(f"{b}/")), key=len, default=None)
        if bound is not None:
            found[key] = binds[bound] + place[len(bound) :]
        elif place == view and cgroup.unified is not None:
            found[key] = cgroup.unified
        elif view is not None and place.rpartition("/")[2] in hierarchies:
            found[key] = hierarchies[place.rpartition("/")[2]]
        elif place in ((config.get("linux") or {}).get("maskedPaths") or ()):
            found[key] = "/dev/null"
        else:
            raise SpecError("$.mounts", f"found nothing at {place}, where the checkpoint has a mount of the host")
    return found


def _descriptors(pid: int) -> dict[int, str]:
    """Descriptor → criu's key of what the first process has for stdin, stdout and stderr."""
    with open(f"/proc/{pid}/mountinfo") as file:
        own = {line.split(" ", 1)[0] for line in file}
    found = {}
    for fd in (0, 1, 2):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
            about = os.stat(f"/proc/{pid}/fd/{fd}")
            with open(f"/proc/{pid}/fdinfo/{fd}") as file:
                mount = next(line.split()[1] for line in file if line.startswith("mnt_id:"))
        except FileNotFoundError:
            continue
        if stat.S_ISFIFO(about.st_mode) and target.startswith("pipe:"):
            found[fd] = target
        elif stat.S_ISSOCK(about.st_mode):
            found[fd] = target
        elif mount not in own:
            found[fd] = f"file[{int(mount):x}:{about.st_ino:x}]"
    return found


def _inherited(config: dict[str, Any], record: dict[str, Any]) -> tuple[list[int], list[str]]:
    """``(descriptors that we opened, arguments)``: what of ours the container gets for what it had of others."""
    found, seen = [], set()
    for fd, key in record["descriptors"].items():
        if key not in seen:
            found.append(f"--inherit-fd=fd[{fd}]:{key}")
            seen.add(key)
    opened = []
    named = _named_namespaces(config)
    if sorted(named) != sorted(record["named"]):
        raise SpecError(
            "$.linux.namespaces", f"found paths for {sorted(named)}, and the checkpoint has {sorted(record['named'])}"
        )
    for kind, path in named.items():
        try:
            opened.append(os.open(path, os.O_RDONLY))
        except OSError as error:
            raise KernelError(f"cannot open namespace {path}", error.errno or 0) from None
        os.set_inheritable(opened[-1], True)
        found.append(f"--inherit-fd=fd[{opened[-1]}]:{kind}")
    return opened, found


def _common(options: dict[str, Any], images: str, work: str, name: str) -> list[str]:
    found = [f"--images-dir={images}", f"--work-dir={work}", f"--log-file={name}.log", "-v4", "--manage-cgroups=ignore"]
    found += [flag for key, flag in _FLAGS.items() if options.get(key)]
    for kind in options.get("empty_ns", ()):
        if kind not in ("network", "net"):
            raise Unsupported(f"--empty-ns {kind}: network alone can be left empty")
        found.append("--empty-ns=net")
    return found


def _criu(arguments: list[str]) -> int:
    try:
        return os.waitstatus_to_exitcode(_wait(os.posix_spawnp("criu", ["criu", *arguments], os.environ)))
    except FileNotFoundError:
        raise _absent() from None


def _absent() -> Unsupported:
    return Unsupported("cannot checkpoint or restore: criu is not installed", hint="apt-get install criu")


def _wait(pid: int) -> int:
    return os.waitpid(pid, 0)[1]


# $0 is the root file system, which has to be a mount, $1 how it is mounted; then comes criu with its arguments.
_SCRIPT = 'mount --rbind "$0" "$0" && mount -o "remount,bind,$1" "$0" && shift && exec "$@"'


def _criu_inside(arguments: list[str], cgroup: Cgroup, rootfs: str, config: dict[str, Any]) -> int:
    """criu in the container's cgroup and in the cgroup namespace that the container is to have: tasks inherit both.

    As it is our child and restores siblings, so is the container's first process.
    """
    import shutil

    if shutil.which("criu") is None:
        raise _absent()
    kinds = {n["type"] for n in (config.get("linux") or {}).get("namespaces") or () if not n.get("path")}
    command = ["unshare", "--mount", "--propagation", "slave", *(["--cgroup"] if "cgroup" in kinds else []), "--"]
    mode = "ro" if config["root"].get("readonly") else "rw"
    command += ["sh", "-c", _SCRIPT, rootfs, mode, "criu", *arguments]
    pid = os.fork()
    if pid == 0:
        try:
            for directory in cgroup.directories:
                with open(f"{directory}/cgroup.procs", "wb", buffering=0) as file:
                    file.write(b"0")
            os.execvp(command[0], command)
        except OSError as error:
            os.write(2, f"pycontain-runtime: cannot start criu in cgroup {cgroup.path}: {error}\n".encode())
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(_wait(pid))


def _filter_devices(cgroup: Cgroup, resources: dict[str, Any]) -> None:
    """On cgroup v2, where rules are a program: init attaches it, and does nothing else."""
    program = cgroup.device_program(resources)
    if program is None:
        return
    from pycontain.runtime import namespaces

    p = Plan(3, True, 0)
    p.ops.append(("device_filter", program, p.base + 2))
    fds = join_fds(cgroup)
    try:
        process = namespaces.launch(p, cgroup_fds=fds)
    finally:
        for fd in fds:
            os.close(fd)
    process.running()


def _failure(what: str, log: str, status: int) -> PycontainError:
    """criu's first error is the cause, and what follows comes of it; the log has all of them."""
    line = f"criu ended with status {status}"
    try:
        with open(log, errors="replace") as file:
            errors = [text.strip() for text in file if "Error (" in text]
    except FileNotFoundError:
        return PycontainError(f"cannot {what}: {line}, and wrote no log {log}")
    if errors:
        line = errors[0].partition("Error (")[2].partition("): ")[2]
    return PycontainError(f"cannot {what}: criu: {line}", hint=f"less {log}")
