"""create, and what belongs to it: start of what this process created, wait. Spec → Plan → executor → State.

The start path: what ``pycontain-runtime run`` does not need is in ``lifecycle``. Whatever is made is made in an order
that ``delete --force`` can undo after a kill -9 at any line: the state directory first, with the cgroup's name in it;
mounts live in the container's own namespace only.
"""

from __future__ import annotations

import posix as os

from pycontain.runtime import errors, namespaces, sockets, spec
from pycontain.runtime.jsontext import dump, parse
from pycontain.runtime.kernel.cgroup import open_cgroup
from pycontain.runtime.kernel.hierarchies import absolute, hierarchies
from pycontain.runtime.kernel.host import privileged, probe
from pycontain.runtime.paths import is_directory, read_bounded, real
from pycontain.runtime.state import Container, check_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pycontain.runtime.dialogue import Process
    from pycontain.runtime.kernel.cgroup import Cgroup
    from pycontain.runtime.kernel.host import Host
    from pycontain.runtime.namespaces import Launcher
    from pycontain.runtime.netdevices import Moved
    from pycontain.runtime.plan.plan import Plan

OCI_VERSION = "1.3.0"
_AHEAD = {"network": 0x40000000, "ipc": 0x08000000, "uts": 0x04000000}


class Running:
    """A process that this process started: its pid, and the way to start it for good and to wait for it."""

    def __init__(self, pid: int, process: Process, container: Container | None = None) -> None:
        self.pid = pid
        self.process = process
        self._container = container

    def start(self) -> None:
        """Run the program of a container created with ``listen=False``; once. Raises what ``start`` raises."""
        from pycontain.runtime.starting import started

        assert self._container is not None
        with self._container as container:
            started(container, self.process)

    def wait(self) -> int:
        """Waits for it to end; 0–255, or 128 + the signal that killed it. Only for its parent."""
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return status if status >= 0 else 128 - status


def cgroup_path(config: dict[str, Any], id: str) -> str:
    """Where the container's cgroup is: ``$.linux.cgroupsPath``, or ``/pycontain/<id>``."""
    return absolute((config.get("linux") or {}).get("cgroupsPath") or f"/pycontain/{id}")


def complete_resources(config: dict[str, Any]) -> dict[str, Any]:
    """``$.linux.resources`` with complete device rules: nothing is allowed that no rule allows."""
    from pycontain.runtime.plan.mounts import DEFAULT_DEVICES  # when init has started

    resources = dict((config.get("linux") or {}).get("resources") or {})
    deny = {"allow": False, "type": "a", "access": "rwm"}
    # What every container may do besides: make nodes (a node alone opens nothing), and use the default devices of
    # config-linux.md, pseudo-terminals and their multiplexer.
    more = [{"allow": True, "type": kind, "access": "m"} for kind in "cb"] + [
        {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
        for major, minor in [*(d[1:] for d in DEFAULT_DEVICES), (5, 2), (136, -1)]
    ]
    resources["devices"] = [deny, *(resources.get("devices") or ()), *more]
    return resources


def rootfs_of(config: dict[str, Any], bundle: str) -> dict[str, Any]:
    path = (config.get("root") or {}).get("path")
    if path is None:
        raise errors.SpecError("$.root.path", "found nothing, wanted a directory")
    path = path if path.startswith("/") else f"{bundle}/{path}"
    if not is_directory(path):
        raise errors.SpecError("$.root.path", f"found {path!r}, which is not a directory")
    # The mount's parent is found by name: no links in the way.
    return {"kind": "directory", "path": real(path)}


def join_fds(cgroup: Cgroup) -> tuple[int, ...]:
    """Descriptors for the plan's cgroup slots, as many as ``joining`` says."""
    kind, fds = cgroup.join_fds()
    if kind == "v2":
        return (fds,)
    into = cgroup.clone_fd()
    return (*(() if into is None else (into,)), *fds)


def create(
    id: str,
    bundle: str,
    *,
    root: str,
    rootfs: dict[str, Any] | None = None,
    lease: Any = None,
    stdio: tuple[int, int, int] | None = None,
    console: int | None = None,
    make_console: Callable[[], tuple[int, dict[str, int] | None]] | None = None,
    launcher: Launcher | None = None,
    pid_file: str | None = None,
    no_pivot: bool = False,
    no_new_keyring: bool = False,
    preserve_fds: int = 0,
    reap: bool = False,
    listen: bool = True,
    rootless: bool | None = None,
    manager: str | None = None,
    config_file: str | None = None,
    environment: list[str] | None = None,
    notify: bool = False,
    pidfd_socket: str | None = None,
) -> Running:
    """The container of ``bundle`` up to the point where its program would start.

    ``rootfs``: None for the bundle's own, or an overlay. ``lease``: an object with ``netlink`` and ``attach(pid)``.
    ``console``: a connected socket that the terminal's master is sent to, wanted exactly if $.process.terminal.
    ``make_console``: asked for a console (the caller closes it) and its size, where a terminal is wanted, none given.
    ``listen``: whether another process will start it; without, only ``Running.start`` can.
    ``reap``: a reaper as pid 1, in front of the program.
    ``rootless``: whether to do without a cgroup where none can be had; None: where we are not the host's root.
    ``manager``: whoever is to make the cgroup in our stead (``kernel.managers``).
    ``config_file``: another file than the bundle's config.json. ``environment``: more of it, for the program.
    ``notify``: a socket for sd_notify(3) in the container, ``handover.readiness``. ``pidfd_socket``: gets a pidfd.
    Raises Conflict, SpecError, Unsupported, KernelError, PycontainError; nothing is left behind then.
    """
    check_id(id)
    bundle = real(bundle)
    raw = read_config(bundle, config_file)
    config = spec.read(raw, config_file or f"{bundle}/config.json")
    if environment and "process" in config:
        config["process"]["env"] = [*(config["process"].get("env") or ()), *environment]
    if notify and "process" in config:
        from pycontain.runtime.handover import offer

        offer(config, f"{root}/{id}")
    terminal = bool((config.get("process") or {}).get("terminal"))
    if terminal and console is None and make_console is not None:
        console, size = make_console()
        if size is not None:
            config["process"].setdefault("consoleSize", size)
    if terminal and console is None:
        raise errors.PycontainError(
            "cannot create a container with a terminal: $.process.terminal is true, but there is no console socket",
            hint="--console-socket PATH",
        )
    if console is not None and not terminal:
        raise errors.PycontainError(
            "found a console socket, but $.process.terminal is not true", hint="set $.process.terminal to true"
        )
    # Before all that takes a while: init starts, and makes what it can of the namespaces, beside it.
    process = namespaces.begin(
        3 + preserve_fds, stdio=stdio, launcher=launcher, ahead=namespaces_ahead(config) if privileged() else 0
    )
    container: Container | None = None
    machine: Any = None
    p: Plan | None = None
    moved: Moved | None = None
    listener = -1
    made: Cgroup | None = None
    try:
        found = hierarchies()
        facts = asked = None
        if manager is not None:
            from pycontain.runtime.kernel.managers import planned

            asked = planned(manager, config, id)
        if privileged():
            cgroup = asked or open_cgroup(cgroup_path(config, id), found)
            resources = complete_resources(config)
        else:
            from pycontain.runtime import rootless as _rootless

            config, cgroup, resources, facts = _rootless.prepare(config, id, compulsory=rootless is False, cgroup=asked)
        path = cgroup.path if cgroup.directories else ""
        # Where nobody has anything to do in between, init need not wait for us.
        alone = not (config.get("hooks") or lease or launcher or notify)
        ahead = alone and not (listen or pid_file or pidfd_socket)
        beside = alone and facts is None and manager is None
        rootfs = rootfs or rootfs_of(config, bundle)
        keyring = None if no_new_keyring else f"_ses.{id}"
        if config.get("vm") is not None or "org.pycontain.isolation" in (config.get("annotations") or ()):
            from pycontain.runtime.vm.machine import machine_for

            machine = machine_for(
                config, id, path, rootfs, lease, resources, bundle=bundle, keyring=keyring, reap=reap,
                preserve_fds=preserve_fds, notify=notify,
            )  # fmt: skip
        if machine is not None:
            if manager is not None:
                raise errors.Unsupported(
                    f"--cgroup-manager {manager}: a container in a machine has its cgroups by their files"
                )
            resources = machine.host_resources
        fields = {
            "ociVersion": OCI_VERSION,
            "bundle": bundle,
            "cgroup": path,
            "annotations": config.get("annotations") or {},
        }
        fields["rootfs"] = rootfs.get("path") or rootfs["target"]
        hooks = config.get("hooks") or {}
        fields["created"] = now()
        fields["poststart"] = hooks.get("poststart") or []
        fields["poststop"] = hooks.get("poststop") or []
        fields["own_pids"] = own_pids(config)
        if "process" not in config:
            fields["no_process"] = True
        if facts is not None:
            fields["rootless"] = facts
        if manager is not None:
            fields["manager"] = manager
        container = Container.make(root, id, fields, raw)
        if notify:
            os.mkdir(f"{container.directory}/notify", 0o755)
        cgroup.create()
        made = cgroup
        if listen:
            listener = _listen(f"{container.directory}/control.sock")
        cgroup_fds = join_fds(cgroup)
        try:
            named = listener if listen else None
            if machine is not None:
                p = machine.plan
                host = machine.host_plan(container, cgroup, joining(cgroup), console, named)
                namespaces.obey(process, host, cgroup_fds=cgroup_fds)
            else:
                p = plan_for(
                    cgroup,
                    config,
                    resources,
                    probe(found),
                    rootfs,
                    lease,
                    bundle=bundle,
                    preserve_fds=preserve_fds,
                    listen=listen,
                    no_pivot=no_pivot,
                    keyring=keyring,
                    reap=reap,
                    facts=facts,
                    beside=beside,
                )
                if p.shares_mounts:
                    from pycontain.runtime.shared_mounts import count

                    container.fields["mounts_before"] = count(str(fields["rootfs"]))
                    container.save()
                namespaces.obey(process, p, cgroup_fds=cgroup_fds, console=console, listener=named)
        finally:
            for fd in cgroup_fds:
                os.close(fd)
        container.fields["operations"] = len(p.ops)
        # While init clones: its child does nothing before "go". Until the last of v1's device rules is written it could
        # not even make a node, as the first denies everything.
        try:
            cgroup.apply(resources)
            if beside and machine is None and not (p.uid_maps or p.net_devices):
                process.go_soon(b"{}")
        finally:
            pid = process.unshared()
        cgroup.entered(pid)
        if launcher is not None:
            launcher.started(pid)
        container.set_pid(pid)
        if machine is None:
            if p.uid_maps:
                from pycontain.runtime import idmaps

                idmaps.write(pid, p.uid_maps, p.gid_maps)
            if facts is None and (p.uid_maps or ((config.get("process") or {}).get("user") or {}).get("uid")):
                from pycontain.runtime.kernel.cgroup_v2_delegation import give

                give(cgroup, config, p.uid_maps)
            if lease is not None:
                lease.attach(pid)
            if p.net_devices:
                from pycontain.runtime.netdevices import Moved

                moved = Moved(pid)
                moved.move(p.net_devices)
        inside = b"{}"
        if hooks:
            from pycontain.runtime import hooks as _hooks

            state = container.oci("creating")
            if machine is None:
                # runtime.md, "State": to hooks that run inside it is the pid that the container sees.
                container.fields["inner_pid"] = _hooks.inner_pid(pid)
                inside = dump({**state, "pid": container.fields["inner_pid"]}).encode()
                if hooks.get("prestart") or hooks.get("createRuntime"):
                    process.mounted(b"{}")
            # "after the runtime environment has been created" (config.md, "Prestart"); crun says so too.
            _hooks.run_all(hooks, "prestart", {**state, "status": "created"})
            _hooks.run_all(hooks, "createRuntime", state)
        if machine is not None:
            machine.boot(process, container, inside)
        else:
            process.go(inside, start_too=ahead)
        if moved is not None:
            moved.done()
            moved = None
        container.fields["status"] = "created"
        if pid_file is not None:
            write_pid_file(pid_file, pid)
        if pidfd_socket is not None:
            from pycontain.runtime.handover import send_pidfd

            send_pidfd(pidfd_socket, pid)
        if not listen:
            return Running(pid, process, container)
        process.close()
        container.save()
        container.close()
        return Running(pid, process)
    except BaseException as error:
        process.close()
        if moved is not None:
            moved.undo()
        if made is not None:
            _undo(made, process, launcher)
        if container is not None:
            if p is not None and p.shares_mounts:
                from pycontain.runtime.shared_mounts import undo

                undo(container.fields)
            container.remove()  # a cgroup that could not be made may be another container's
            if isinstance(error, errors.HookFailed):
                from pycontain.runtime import hooks as _hooks

                _hooks.poststop(container.fields["poststop"], container.oci("stopped"))
        raise
    finally:
        if listener >= 0:
            os.close(listener)
        if machine is not None:
            machine.close()


def namespaces_ahead(config: dict[str, Any]) -> int:
    """The new namespaces (flags of clone(2)) that init may make before it knows its plan.

    None of them where others are joined, which comes first, or where they are to belong to a new user namespace.
    """
    flags = 0
    for namespace in (config.get("linux") or {}).get("namespaces") or ():
        if namespace.get("path") or namespace["type"] == "user":
            return 0
        flags |= _AHEAD.get(namespace["type"], 0)
    return flags


def joining(cgroup: Cgroup) -> tuple[bool, int]:
    """``(clone into cgroup2, v1 hierarchies to join)``, before the cgroup exists."""
    unified = cgroup.unified is not None
    return unified, len(cgroup.directories) - unified


def plan_for(
    cgroup: Cgroup,
    config: dict[str, Any],
    resources: dict[str, Any],
    host: Host,
    rootfs: dict[str, Any],
    lease: Any = None,
    *,
    facts: dict[str, Any] | None = None,
    **settings: Any,
) -> Plan:
    """``plan``, with what it has to know of the cgroup, and of a user who is not root (``facts``)."""
    from pycontain.runtime.plan.plan import plan

    into, joins = joining(cgroup)
    program = cgroup.device_program(resources)
    p = plan(
        config, host, rootfs, lease, cgroup=cgroup.path, into=into, joins=joins, device_program=program, **settings
    )
    if facts is not None:
        from pycontain.runtime import rootless

        rootless.adapt(p, facts)
    return p


def _undo(cgroup: Cgroup, process: Process, launcher: Any) -> None:
    if process.pid and not cgroup.directories:
        os.kill(process.pid, 9)  # our child, and in no cgroup that would know it
    cgroup.kill_all()
    if process.pid and launcher is None:
        os.waitpid(process.pid, 0)
    cgroup.remove()


def _listen(path: str) -> int:
    """A listening socket in the state directory, which only root can enter; by descriptor, as paths may be long."""
    directory = os.open(path.rsplit("/", 1)[0], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        server: int = sockets.listen(f"/proc/self/fd/{directory}/control.sock")
        return server
    finally:
        os.close(directory)


def write_pid_file(path: str, pid: int) -> None:
    """The pid in decimal, without a newline, as runc's; atomic."""
    try:
        temporary = f"{path}.{pid}.tmp"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        os.write(fd, str(pid).encode())
        os.close(fd)
        os.rename(temporary, path)
    except OSError as error:
        raise errors.KernelError(f"cannot write the pid file {path}", error.errno or 0) from None


def read_config(bundle: str, file: str | None = None) -> bytes:
    """The bytes of a bundle's config.json, or of ``file``. Raises NotFound with a hint."""
    if not is_directory(bundle):
        raise errors.NotFound(
            f"bundle {bundle} does not exist", hint="--bundle PATH names a directory with a config.json"
        )
    if file is not None:
        return read_bounded(file)
    try:
        return read_bounded(f"{bundle}/config.json")
    except errors.NotFound as error:
        raise errors.NotFound(error.message, hint="pycontain-runtime spec makes one") from None


def now() -> str:
    """RFC 3339 with nanoseconds, UTC, without the ``datetime`` module."""
    from time import gmtime, time_ns

    nanoseconds = time_ns()
    t = gmtime(nanoseconds // 1_000_000_000)
    return f"{t[0]:04}-{t[1]:02}-{t[2]:02}T{t[3]:02}:{t[4]:02}:{t[5]:02}.{nanoseconds % 1_000_000_000:09}Z"


def own_pids(config: dict[str, Any]) -> bool:
    namespaces_ = (config.get("linux") or {}).get("namespaces") or []
    return any(n["type"] == "pid" and not n.get("path") for n in namespaces_)


def config_of(container: Container) -> dict[str, Any]:
    """The specification as it was at create; {} where a crash left none."""
    path = f"{container.directory}/config.json"
    try:
        config: dict[str, Any] = parse(read_bounded(path), path)
    except errors.NotFound:
        return {}
    return config


def plan_again(container: Container) -> Plan:
    """The plan as create made it, for the words of a failure: the operations' numbers, counted from the end."""
    if "machine" in container.fields:
        from pycontain.runtime.vm.machine import kept_plan

        return kept_plan(container)
    from pycontain.runtime.control import cgroup_of

    config = config_of(container)
    cgroup = cgroup_of(container)
    rootfs = {"kind": "directory", "path": "/"}
    facts = container.fields.get("rootless")
    p = plan_for(cgroup, config, complete_resources(config), probe(), rootfs, listen=True, keyring="", facts=facts)
    more = container.fields["operations"] - len(p.ops)  # a network has more operations than the loopback alone
    p.ops = [("sync",)] * more + p.ops[max(0, -more) :]
    return p
