"""The verbs on containers: those of ``creation`` and ``control``, and all that look into one that exists."""

from __future__ import annotations

import posix as os

from pycontain.runtime import namespaces, spec
from pycontain.runtime.control import cgroup_of
from pycontain.runtime.control import kill as kill
from pycontain.runtime.control import pause as pause
from pycontain.runtime.control import resume as resume
from pycontain.runtime.creation import (
    Running,
    cgroup_path,
    complete_resources,
    config_of,
    join_fds,
    joining,
    plan_for,
    write_pid_file,
)
from pycontain.runtime.creation import create as create
from pycontain.runtime.creation import read_config as read_config
from pycontain.runtime.ending import delete as delete
from pycontain.runtime.errors import Conflict, KernelError, PycontainError, Unsupported
from pycontain.runtime.jsontext import dump
from pycontain.runtime.kernel.cgroup import open_cgroup
from pycontain.runtime.kernel.files import number, read
from pycontain.runtime.kernel.hierarchies import hierarchies
from pycontain.runtime.kernel.host import probe
from pycontain.runtime.plan.plan import exec_plan, read_plan
from pycontain.runtime.state import Container

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontain.runtime.kernel.cgroup import Cgroup
    from pycontain.runtime.namespaces import Launcher

_COPY_SECONDS = 0.1
_OF_A_PROCESS = ("seccomp", "personality", "memoryPolicy")  # of $.linux: what an exec's process has too
_NS_FILES = (
    ("user", "user"),
    ("pid", "pid"),
    ("network", "net"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("cgroup", "cgroup"),
    ("time", "time_for_children"),
    ("mount", "mnt"),
)


def state(id: str, *, root: str) -> dict[str, Any]:
    """The OCI state object (runtime.md, "State")."""
    with Container.open(root, id) as container:
        return container.oci()


def exec(
    id: str,
    process: dict[str, Any],
    *,
    root: str,
    stdio: tuple[int, int, int] | None = None,
    console: int | None = None,
    launcher: Launcher | None = None,
    pid_file: str | None = None,
    preserve_fds: int = 0,
    ignore_paused: bool = False,
    cgroup: list[str] | None = None,
    pidfd_socket: str | None = None,
) -> Running:
    """One more process in a running container. ``process`` is the specification's process object.

    ``cgroup``: cgroups below the container's own to join (``handover.cgroup_fds``). ``pidfd_socket``: gets a pidfd.
    ``ignore_paused``: start it in a paused container as well, where it waits to go on.
    """
    spec.check_process(process, "$", shape=True)
    with Container.open(root, id) as container:
        if container.status != "paused":
            container.require("exec")
        elif "machine" in container.fields:
            _awake(container, "exec in")
        elif not ignore_paused:
            hint = f"pycontain-runtime resume {id}, or --ignore-paused"
            raise Conflict(f"cannot exec in container {id}: it is paused", hint=hint)
        config = config_of(container)
        own = cgroup_of(container)
        linux = {key: value for key, value in (config.get("linux") or {}).items() if key in _OF_A_PROCESS}
        guest = None
        if "machine" in container.fields:
            from pycontain.runtime.vm.machine import Exec

            guest = Exec(container, config, process, linux, console=console, preserve_fds=preserve_fds)
        cgroup_fds = _join_fds(container, own, cgroup)
        try:
            into, joins = joining(own)
            if guest is not None:
                p, console = guest.host_plan(into, joins), None
            else:
                join = _namespaces(id, container.pid)
                spaces = (config.get("linux") or {}).get("namespaces") or ()
                own_mounts = any(n["type"] == "mount" and not n.get("path") for n in spaces)
                p = exec_plan(
                    process,
                    linux,
                    probe(),
                    into=into,
                    joins=joins,
                    namespaces=join,
                    preserve_fds=preserve_fds,
                    root=None if own_mounts else f"/proc/{container.pid}/root",
                )
                if "rootless" in container.fields:
                    from pycontain.runtime import rootless

                    rootless.adapt_exec(p, process, container.pid)
            started = namespaces.launch(p, cgroup_fds=cgroup_fds, stdio=stdio, console=console, launcher=launcher)
        finally:
            for fd in cgroup_fds:
                os.close(fd)
            if guest is not None:
                guest.close()
    try:
        new = started.unshared()
        if launcher is not None:
            launcher.started(new)
        if guest is not None:
            guest.begin(started)
        started.go_exec(b"{}", container)
    except BaseException:
        started.close()
        if started.pid and launcher is None:
            if guest is not None:
                os.kill(started.pid, 9)  # our child; what it stands in for may not end for our sake
            os.waitpid(started.pid, 0)
        raise
    if pid_file is not None:
        write_pid_file(pid_file, new)
    if pidfd_socket is not None:
        from pycontain.runtime.handover import send_pidfd

        send_pidfd(pidfd_socket, new)
    return Running(new, started)


def _join_fds(container: Container, cgroup: Cgroup, wanted: list[str] | None) -> tuple[int, ...]:
    """The container's cgroup or, below it, those that are wanted, or that its first process has moved to."""
    if "machine" in container.fields:
        if wanted:
            raise Unsupported(f"--cgroup {wanted[0]}: a machine's processes are in the one cgroup of its guest")
        return join_fds(cgroup)
    moved = ""
    if wanted and not cgroup.directories:
        raise Unsupported(f"--cgroup {wanted[0]}: the container has no cgroup")
    if wanted is None and cgroup.unified is not None:
        rows = (line.split(":", 2) for line in read(f"/proc/{container.pid}/cgroup").splitlines())
        now = next((path for number, _, path in rows if number == "0"), "")
        if now.startswith(cgroup.path + "/"):
            from pycontain.runtime.kernel.cgroup_v2 import only_a_parent

            moved = now[len(cgroup.path) :] if only_a_parent(cgroup.unified) else ""
    if wanted is None and not moved:
        return join_fds(cgroup)
    from pycontain.runtime.handover import cgroup_fds

    return cgroup_fds(cgroup.directories, cgroup.unified, hierarchies(), wanted or [], moved)


def _namespaces(id: str, pid: int) -> list[tuple[str, str]]:
    """(type, file) of the container's namespaces that are not ours."""
    join = []
    for kind, name in _NS_FILES:
        path = f"/proc/{pid}/ns/{name}"
        try:
            if os.readlink(path) != os.readlink(f"/proc/self/ns/{name}"):
                join.append((kind, path))
        except FileNotFoundError:
            if kind != "time":
                raise Conflict(f"cannot exec in container {id}: container not running") from None
        except OSError as error:
            raise KernelError(f"cannot exec in container {id}: cannot look at {path}", error.errno or 0) from None
    return join


def ps(id: str, *, root: str) -> list[int]:
    """The pids of the container's processes, as the host numbers them."""
    with Container.open(root, id) as container:
        return sorted(cgroup_of(container).pids())


def top(id: str, *, root: str) -> list[dict[str, Any]]:
    """The processes: pid, user id, parent, seconds of processor time, command line.

    Pids are this host's, or the guest's for a container in a machine.
    """
    with Container.open(root, id) as container:
        guest = "machine" in container.fields
        if guest:
            _awake(container, "list the processes of")
            found = []
        else:
            found = [row for pid in cgroup_of(container).pids() if (row := _process(pid))]
    if guest:  # without the lock: it may be deaf, and others have something to do with it
        from pycontain.runtime.vm import machine

        found = machine.processes(container)
    ticks = os.sysconf("SC_CLK_TCK")
    return [_listed(*row, ticks) for row in sorted(found) if len(row[1].rpartition(b")")[2].split()) > 12]


def _process(pid: int) -> tuple[int, bytes, bytes, int] | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return pid, stat, file.read(4096), os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None  # it has ended


def _listed(pid: int, stat: bytes, command: bytes, uid: int, ticks: int) -> dict[str, Any]:
    head, _, rest = stat.rpartition(b")")
    fields = rest.split()
    line = command.replace(b"\0", b" ").strip() or b"[" + head.partition(b"(")[2] + b"]"
    return {
        "pid": pid,
        "uid": uid,
        "ppid": number(fields[1].decode("ascii", "replace")) or 0,
        "seconds": sum(number(field.decode("ascii", "replace")) or 0 for field in fields[11:13]) // ticks,
        "command": line.decode(errors="backslashreplace"),
    }


def in_machine(id: str, *, root: str) -> dict[str, Any] | None:
    """What is on record about the container's machine; None where it has none."""
    with Container.open(root, id) as container:
        found: dict[str, Any] | None = container.fields.get("machine")
        return found


def _awake(container: Container, what: str) -> None:
    if container.status == "paused":
        raise Conflict(f"cannot {what} container {container.id}: it is paused, and its machine with it")
    container.require("exec")


def stats(id: str, *, root: str) -> dict[str, Any]:
    """What the kernel counts for the container (``Cgroup.stats``): its guest's where it is in a machine."""
    with Container.open(root, id) as container:
        if "machine" not in container.fields:
            return cgroup_of(container).stats()
        if container.status == "stopped":  # the guest is gone; its stand-in wrote this down
            return {"oom_kills": int(guest_oom(id, root=root))}
        _awake(container, "ask for the statistics of")
    from pycontain.runtime.vm import machine

    return machine.stats(container)


def containers(root: str) -> list[dict[str, Any]]:
    """Every container below ``root``: the state's fields, ``status`` and ``pid`` as they are now, ``owner`` (a uid)."""
    found = []
    try:
        names = sorted(os.listdir(root))
    except FileNotFoundError:
        return []
    for name in names:
        try:
            with Container.open(root, name) as container:
                status = container.status
                owner = os.stat(container.directory).st_uid
                pid = 0 if status == "stopped" else container.pid
                found.append({**container.fields, "status": status, "pid": pid, "owner": owner})
        except (PycontainError, FileNotFoundError):
            continue  # deleted meanwhile, or not a container's directory
    return found


def read_in_root(rootfs: dict[str, Any], paths: list[str], limit: int = 1 << 20) -> list[bytes | None]:
    """Files below a root file system, each at most ``limit`` bytes of it; None where there is no such file.

    The root is mounted in a private namespace by init and is gone when this returns.
    """
    process = namespaces.launch(read_plan(rootfs, paths, limit))
    try:
        return [process.read() for _ in paths]
    finally:
        process.close()


def read_inside(id: str, paths: list[str], limit: int, *, root: str) -> list[bytes | None]:
    """Files as a container in a machine sees them, at most ``limit`` bytes of each; None where there is none."""
    from pycontain.runtime.vm import machine

    with Container.open(root, id) as container:
        container.require("exec")
    return machine.read_inside(container, paths, limit)


def copy_in(id: str, source: str, *, root: str) -> None:
    """Give a container in a machine the new content of a file that it got as a copy of ``source``.

    For other containers' sake it waits neither for a lock nor for a guest: one that is being made looks again itself.
    """
    from pycontain.runtime.vm import machine

    try:
        with Container.open(root, id, wait=_COPY_SECONDS) as container:
            running = container.status == "running"  # one that is paused gets it when it goes on
    except Conflict:
        return
    if running:
        machine.copy_in(container, source)


def guest_oom(id: str, *, root: str) -> bool:
    """Whether a process of a container in a machine was killed by the guest's kernel for want of memory."""
    try:
        return os.stat(f"{root}/{id}/oom").st_size > 0
    except OSError:
        return False


def explain(
    config: dict[str, Any],
    bundle: str,
    *,
    id: str = "example",
    rootfs: dict[str, Any] | None = None,
    lease: Any = None,
    reap: bool = False,
) -> list[str]:
    """The plan that ``config`` leads to, a line an operation; nothing is made or opened."""
    spec.check(config)
    path = cgroup_path(config, id)
    cgroup = open_cgroup(path)
    if rootfs is None:
        root = (config.get("root") or {}).get("path", "")
        rootfs = {"kind": "directory", "path": root if root.startswith("/") else f"{bundle}/{root}"}
    resources = complete_resources(config)
    settings: dict[str, Any] = {"bundle": bundle, "keyring": f"_ses.{id}", "reap": reap}
    if config.get("vm") or "org.pycontain.isolation" in (config.get("annotations") or ()):
        from pycontain.runtime.vm.machine import machine_for

        machine = machine_for(config, id, path, rootfs, lease, resources, **settings)
        if machine is not None:
            return machine.explain()
    p = plan_for(cgroup, config, resources, probe(), rootfs, lease, **settings)
    from pycontain.runtime.plan.describe import describe

    lines = [f"make cgroup {path}"]
    lines += [f"set {key} of the cgroup: {dump(value)}" for key, value in resources.items()]
    lines += [f"move network device {old} in, as {new}" for old, new in p.net_devices.items()]
    return lines + [describe(op) for op in p.ops]
