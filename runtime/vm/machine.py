"""The executor in a machine: the same plan, carried out by init in a guest instead of on this host.

On the host the container is its stand-in (init/stand_in.h), a process with the container's pid, stdio, signals and
exit status, and QEMU below it. In the guest the container is made of namespaces and a cgroup as it would be here; the
plan is the same but for what it takes of the host: root file system, files, limits (docs/design/machine.md).
"""

from __future__ import annotations

import ast
import os
import time
from errno import EINVAL

from pycontain.runtime.errors import KernelError, PycontainError, SpecError, Unsupported
from pycontain.runtime.jsontext import dump
from pycontain.runtime.kernel.cgroup_v2 import CONTROLLERS, STATS, PlannedCgroup, counted
from pycontain.runtime.kernel.host import Host
from pycontain.runtime.light import contextmanager
from pycontain.runtime.plan.plan import NAMESPACES, Plan, exec_plan, plan
from pycontain.runtime.plan.rights import ALL_CAPS
from pycontain.runtime.vm import disk, port, qemu, settings
from pycontain.runtime.vm import template as template_
from pycontain.runtime.vm.parts import Base, Parts, uid_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from pycontain.runtime.dialogue import Process
    from pycontain.runtime.kernel.cgroup import Cgroup
    from pycontain.runtime.plan.ops import Op
    from pycontain.runtime.state import Container
    from pycontain.runtime.vm.qmp import Monitor

MIB = 1 << 20
COPY_SECONDS = 1.0  # another container's start waits for it
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOATIME = 1, 2, 4, 1024
_QEMU_MIB = 128  # what QEMU needs beside the guest's memory: its own, and 64 MiB of translated code
_PAGES_PER_STRUCT = 64  # a guest's kernel keeps 64 bytes about each page of 4 KiB
_FILE_MAX = 1 << 20
_KERNEL_FILE = 1 << 16
_MOST_PROCESSES = 1024
_CGROUPS = "/sys/fs/cgroup"
_OWN = "/run/container"  # in the guest: what belongs to the container
_NS_FILES = (
    ("user", "user"),
    ("pid", "pid"),
    ("network", "net"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("cgroup", "cgroup"),
    ("mount", "mnt"),
)
_NO_PATHS = {"createContainer", "startContainer"}
_NO_LSM = {"apparmor": False, "selinux": False}
_DEVICE_KVM = {"allow": True, "type": "c", "major": 10, "minor": 232, "access": "rwm"}


def machine_for(
    config: dict[str, Any], *arguments: Any, preserve_fds: int = 0, notify: bool = False, **settings_: Any
) -> Machine | None:
    """The machine for the container of ``config``, or None where it is to run in namespaces of this host."""
    if not settings.wanted(config):
        return None
    if preserve_fds:
        raise Unsupported("--preserve-fds: a descriptor of the host does not get into a machine")
    if notify:
        raise Unsupported("NOTIFY_SOCKET: a socket of the host does not get into a machine")
    return Machine(config, *arguments, **settings_)


class Machine:
    """A container to be made in a machine: its checks, its plans, its boot. Nothing is made before ``host_plan``."""

    def __init__(
        self,
        config: dict[str, Any],
        id: str,
        cgroup_path: str,
        rootfs: dict[str, Any],
        lease: Any,
        resources: dict[str, Any],
        *,
        bundle: str,
        keyring: str | None,
        reap: bool,
    ) -> None:
        self.id = id
        self._config = config
        self._rootfs = rootfs
        self._lease = lease
        self._resources = resources
        self._settings = settings.load(config)
        self._cgroup = PlannedCgroup(_CGROUPS, cgroup_path)
        self._bundle, self._keyring, self._reap = bundle, keyring, reap
        self._files: dict[str, str] = {}  # what is copied into the guest: path here, path there
        self._copied: dict[str, tuple[bytes, int]] = {}
        self._parts: Parts | None = None
        self._shares: list[tuple[str, bool]] = []
        self._sources: dict[str, str] = {}  # what of the host the configuration names: path, JSON path
        self._root = self._share(rootfs["path"], False) if rootfs["kind"] == "directory" else ""
        self._inside = self._guest_config(config)
        _size(self._settings, resources, (config.get("vm") or {}).get("hwConfig") or {})
        # What cannot be planned is refused before anything is made.
        self.plan = self._guest_plan({"bounding": ALL_CAPS})
        self.host_resources = self._around(resources)

    def _guest_config(self, config: dict[str, Any]) -> dict[str, Any]:
        """The configuration as the guest is to have it. Raises Unsupported for what would be another host's."""
        inside = {key: value for key, value in config.items() if key != "vm"}
        linux = dict(config.get("linux") or {})
        for i, namespace in enumerate(linux.get("namespaces") or ()):
            if namespace.get("path"):
                raise Unsupported(f"$.linux.namespaces[{i}].path: a machine's container joins no namespace of the host")
        for i, device in enumerate(linux.get("devices") or ()):
            raise Unsupported(
                f"$.linux.devices[{i}]: {device['path']!r}: no device of the host is passed on to a machine"
            )
        for name in linux.get("netDevices") or ():
            raise Unsupported(f"$.linux.netDevices[{name!r}]: no device of the host is passed on to a machine")
        for kind in _NO_PATHS & set(config.get("hooks") or {}):
            if config["hooks"][kind]:
                raise Unsupported(f"$.hooks.{kind}: its programs are the host's, its namespaces the guest's")
        _refuse_of_the_host(config.get("process") or {}, linux)
        inside["hooks"] = {}
        resources = dict(self._resources)
        # A guest has no swap; and which processors and memory nodes are meant, only the host knows.
        for kind, of_the_host in (("memory", ("swap",)), ("cpu", ("cpus", "mems"))):
            if resources.get(kind):
                resources[kind] = {key: value for key, value in resources[kind].items() if key not in of_the_host}
        linux["resources"] = resources
        inside["linux"] = linux
        inside["mounts"] = [self._mount(i, mount) for i, mount in enumerate(config.get("mounts") or ())]
        return inside

    def _mount(self, i: int, mount: dict[str, Any]) -> dict[str, Any]:
        options = mount.get("options") or []
        if mount.get("type") not in ("bind", "none") and not {"bind", "rbind"} & set(options):
            return mount
        if "remount" in options:
            return mount  # of what is mounted there by then
        for k, option in enumerate(options):
            if option.startswith(("copy-symlink", "src-nofollow")):
                at = f"$.mounts[{i}].options[{k}]"
                raise Unsupported(f"{at}: {option!r}: a link of this host leads nowhere in a guest")
        source = mount.get("source") or ""
        source = source if source.startswith("/") else f"{self._bundle}/{source}"
        self._sources[source] = f"$.mounts[{i}].source"
        if os.path.dirname(source) != self._bundle or os.path.isdir(source):
            return {**mount, "source": self._share(source, "ro" in options)}
        # A file of the bundle's own is copied, and needs no helper.
        inside = f"{_OWN}/files/{len(self._files)}"
        self._files[source] = inside
        return {**mount, "source": inside}

    def _share(self, path: str, readonly: bool) -> str:
        """Share a path of the host with the guest; the path there."""
        self._shares.append((path, readonly))
        return f"{_OWN}/shares/{len(self._shares) - 1}"

    def _guest_plan(self, facts: dict[str, Any]) -> Plan:
        rootfs: dict[str, Any] = {"kind": "directory", "path": self._root}
        image = {
            "kind": "overlay",
            "target": f"{_OWN}/merged",
            "lower": ["/images/0"],
            "upper": f"{_OWN}/disk/upper",
            "work": f"{_OWN}/disk/work",
        }
        rootfs = rootfs if self._root else image
        unified = {"mount": _CGROUPS, "controllers": list(CONTROLLERS), "name": "", "unified": True}
        host = Host.from_dict({"cgroups": [unified], "cgroup": "v2", **_NO_LSM, **facts})
        program = self._cgroup.device_program(self._resources)
        return plan(
            self._inside,
            host,
            rootfs,
            self._lease,
            bundle=self._bundle,
            cgroup=self._cgroup.path,
            into=True,
            device_program=program,
            keyring=self._keyring,
            reap=self._reap,
        )

    def _around(self, resources: dict[str, Any]) -> dict[str, Any]:
        """The host's limits around QEMU: the guest's whole memory and what QEMU needs, the same share of cpu."""
        around: dict[str, Any] = {"devices": [*resources["devices"], _DEVICE_KVM]}
        if (resources.get("memory") or {}).get("limit", -1) > 0:
            around["memory"] = {"limit": (self._settings.memory + _QEMU_MIB) * MIB}
        cpu = resources.get("cpu") or {}
        around["cpu"] = {key: cpu[key] for key in ("shares", "quota", "period", "cpus", "mems") if key in cpu}
        return around

    def explain(self) -> list[str]:
        """What is done on the host, then the plan in the guest, a line an operation; nothing is made."""
        from pycontain.runtime.plan.describe import describe

        found, around = self._settings, self.host_resources
        kernel = found.kernel or "the distribution's kernel"
        lines = [f"on this host: make cgroup {self._cgroup.path} around the machine: {dump(around)}"]
        lines.append(f"on this host: start a machine of {found.memory} MiB and {found.cpus} cpus with {kernel}")
        lines += [f"on this host: share {path}{' read-only' * ro}" for path, ro in self._shares]
        lines += [f"copy {source} into the guest" for source in self._files]
        lines += [describe(op) for op in self._cgroup.operations(self._inside["linux"]["resources"], list(CONTROLLERS))]
        return lines + [describe(op) for op in self.plan.ops]

    # ---- making it

    def host_plan(
        self,
        container: Container,
        cgroup: Cgroup,
        joining: tuple[bool, int],
        console: int | None,
        listener: int | None,
    ) -> Plan:
        """The plan of the stand-in and of QEMU; the descriptors it names are this object's until ``close``."""
        for source, where in self._sources.items():
            if not os.path.exists(source):
                raise SpecError(where, f"found {source!r}, which does not exist")
        base = Base(self._settings)
        directory = container.directory
        disks, sizes = [], []
        if self._rootfs["kind"] == "image":
            disks.append((self._rootfs["path"], False))
            sizes.append(template_.IMAGE)
        if "disk" in self._rootfs:
            disk.ensure(self._rootfs["disk"], self._settings.cache, uid_of(directory))
            disks.append((self._rootfs["disk"], True))
            sizes.append(disk.SIZE)
        template = None
        if self._settings.templates and (not self._shares or base.plugs()):
            template = template_.ensure(base, network=self._lease is not None, disks=sizes)
        tap = (self._lease.tap(), self._lease.mac) if self._lease is not None else None
        self._parts = parts = Parts(base, directory, disks, tap=tap, template=template, shares=self._shares)
        container.fields["machine"] = {
            "kind": base.kind,
            "accel": base.accel,
            "memory": self._settings.memory,
            "cpus": parts.machine.cpus,
            "ports": qemu.PORTS,
            "kernel": base.kernel.image,
            "template": template,
            "files": self._files,
        }
        into, joins = joining
        return parts.plan(
            oom=f"{directory}/oom",
            into=into,
            joins=joins,
            device_program=cgroup.device_program(self.host_resources),
            listener=listener,
            terminal=terminal_of(self._config["process"], console),
        )

    def close(self) -> None:
        """Close the descriptors that QEMU and the stand-in have by now."""
        if self._parts is not None:
            self._parts.close()

    def boot(self, process: Process, container: Container, state: bytes) -> None:
        """From the stand-in to a container that is ready: QEMU, the guest's agent, the plan. Raises PycontainError."""
        try:
            process.go(state)
            assert self._parts is not None
            self._parts.handed_over()
            process.takes(lambda: self.plan, port.START_SECONDS)
            with self._awake(container) as monitor, port.Caller(container.directory) as caller:
                facts = self._set_up(caller, monitor)
                container.fields["machine"].update(facts)
                self.plan = self._guest_plan(facts)
                _keep_plan(container, self.plan)
                flags = port.WANT_CONSOLE if self.plan.console else port.WANT_STDIO
                port.send_plan(process.channel, self.plan.ops, port.session(flags, f"{_CGROUPS}{self._cgroup.path}"))
                pid = process.unshared()
                container.fields["machine"]["pid"] = pid
                ops = [("write", f"/proc/{pid}/{name}", text) for name, text in _id_maps(self.plan)]
                if self._lease is not None:
                    ops += [("netlink", text, request) for text, request in self._lease.guest_netlink(pid)]
                if ops:
                    caller.call(ops)
                self._renew(caller)
            process.go(state)
        except (KernelError, SpecError, Unsupported):
            raise  # they say what failed, and on what
        except PycontainError as error:
            said = self._parts.said() if self._parts is not None else ""
            raise PycontainError(f"cannot boot the machine of {self.id}: {error.message}{said}") from None

    def _renew(self, caller: port.Caller) -> None:
        """Who has changed a file since it was copied did not wait for us."""
        ops: list[Op] = []
        for source, inside in self._files.items():
            found = _content(source, "$.mounts")
            if found != self._copied[source]:
                ops.append(("file", inside, found[1], found[0]))
        if ops:
            caller.call([("enter_root",), *ops])

    @contextmanager
    def _awake(self, container: Container) -> Iterator[Monitor | None]:
        """A clone goes on from its template; its monitor, None where it boots."""
        if not container.fields["machine"]["template"]:
            yield None
            return
        from pycontain.runtime.vm.qmp import Monitor

        assert self._parts is not None
        with Monitor(container.directory) as monitor:
            monitor.migrate_from(qemu.incoming(self._parts.machine))
            yield monitor

    def _set_up(self, caller: port.Caller, monitor: Monitor | None) -> dict[str, Any]:
        """What the guest needs before the plan, in one call; the facts about it."""
        ops: list[Op] = [("enter_root",), ("read", "/proc/sys/kernel/cap_last_cap", 16)]
        ops.append(("read", self._cgroup.controllers_file, 4096))
        # No more than two, so that two questions tell which is which.
        ops.append(("read", "/sys/block/vda/serial", 20))
        last_cap, controllers, serial = caller.call(ops, seconds=port.BOOT_SECONDS)
        if monitor is not None and self._shares:
            monitor.command("device_add", **qemu.shares_device())
        disks = ["/dev/vda", "/dev/vdb"] if serial == b"disk0" else ["/dev/vdb", "/dev/vda"]
        names = [name for name in (controllers or b"").decode("ascii", "replace").split() if name in CONTROLLERS]
        now = time.time_ns()
        ops = [
            ("reseed", os.urandom(64)),
            ("clock", now // 10**9, now % 10**9),
            ("enter_root",),
            # As on a host with plenty of memory: the cgroup limits what is used, not what is asked for.
            ("write", "/proc/sys/vm/overcommit_memory", "1"),
            *self._cgroup.operations(self._inside["linux"]["resources"], names),
            # To be passed through: the root of a user namespace is nobody to the guest's kernel.
            ("mount", "tmpfs", _OWN, "tmpfs", 0, "mode=0711", 0),
        ]
        if self._rootfs["kind"] == "image":
            ops.append(("mount", disks[0], "/images/0", "erofs", MS_RDONLY | MS_NOSUID | MS_NODEV, "", 0))
        if "disk" in self._rootfs:
            ops.append(("mount", disks[1], f"{_OWN}/disk", "ext4", MS_NOATIME, "", 0))
        ops += [("mkdir", f"{_OWN}/{name}", 0o755, 0, 0) for name in ("disk/upper", "disk/work", "merged", "files")]
        for source, inside in self._files.items():
            self._copied[source] = data, mode = _content(source, "$.mounts")
            ops.append(("file", inside, mode, data))
        caller.call(ops)
        if self._shares:
            _mount_shares(caller)
        return {"bounding": (2 << _last_cap(last_cap)) - 1}


def _mount_shares(caller: port.Caller) -> None:
    """Mount what is shared, as soon as the guest has found the device: into a clone it was plugged a moment ago."""
    deadline = time.monotonic() + port.ANSWER_SECONDS
    while True:
        try:
            caller.call([("enter_root",), ("mount", "shares", f"{_OWN}/shares", "virtiofs", 0, "", 0)])
            return
        except KernelError as error:
            if error.errno != EINVAL or time.monotonic() > deadline:  # so virtiofs says that there is no such tag
                raise
        time.sleep(0.005)


def _refuse_of_the_host(process: dict[str, Any], linux: dict[str, Any]) -> None:
    """Unsupported for what of a process only this host has: its security modules, its seccomp agents."""
    for where, key in ((process, "apparmorProfile"), (process, "selinuxLabel"), (linux, "mountLabel")):
        if where.get(key):
            path = f"$.{'process' if where is process else 'linux'}.{key}"
            raise Unsupported(f"{path}: the profiles and policies of this host are not a machine's")
    for i, rule in enumerate((linux.get("seccomp") or {}).get("syscalls") or ()):
        if rule.get("action") == "SCMP_ACT_NOTIFY":
            what = "SCMP_ACT_NOTIFY has its agent on this host, and its process in a machine"
            raise Unsupported(f"$.linux.seccomp.syscalls[{i}].action: {what}")


def _last_cap(said: bytes | None) -> int:
    text = (said or b"").strip()
    if not text.isdigit() or len(text) > 2:
        raise port.GuestGone(f"the guest has no last capability: it said {text!r}")
    return min(int(text), 63)


def terminal_of(process: dict[str, Any], console: int | None) -> tuple[int, int, int] | None:
    if console is None:
        return None
    size = process.get("consoleSize") or {}
    return console, size.get("height", 0), size.get("width", 0)


def _size(found: settings.Settings, resources: dict[str, Any], hardware: dict[str, Any]) -> None:
    """The guest's memory and processors, from the container's limits where $.vm.hwConfig does not say them."""
    limit = (resources.get("memory") or {}).get("limit") or 0
    if limit > 0 and "memory" not in hardware:
        mib = -(-limit // MIB)
        found.memory = mib + mib // _PAGES_PER_STRUCT + found.overhead
    cpu = resources.get("cpu") or {}
    if found.cpus is None:
        quota = cpu.get("quota") or 0
        found.cpus = max(1, -(-quota // (cpu.get("period") or 100_000))) if quota > 0 else 1
    available = len(os.sched_getaffinity(0))
    if found.cpus > max(available, 8):
        raise SpecError("$.vm.hwConfig.vcpus", f"found {found.cpus}, wanted at most {max(available, 8)}")


def _id_maps(p: Plan) -> list[tuple[str, str]]:
    found = []
    for name, maps in (("uid_map", p.uid_maps), ("gid_map", p.gid_maps)):
        if maps:
            found.append((name, "".join(f"{m['containerID']} {m['hostID']} {m['size']}\n" for m in maps)))
    return found


def _keep_plan(container: Container, p: Plan) -> None:
    """For the words of a failure: start may be another process's."""
    with open(f"{container.directory}/plan", "w") as file:
        file.write(repr(p.ops))


def kept_plan(container: Container) -> Plan:
    """The plan in the guest, as ``create`` made it."""
    with open(f"{container.directory}/plan") as file:
        p = Plan(3, True, 0)
        p.ops = ast.literal_eval(file.read())
        return p


def read_inside(container: Container, paths: list[str], limit: int) -> list[bytes | None]:
    """Files as the container sees them; in its root, by descriptor, as everything below it is the container's."""
    files = [f"/proc/{container.fields['machine']['pid']}/ns/mnt"]
    ops: list[Op] = [("setns", 5, NAMESPACES["mount"]), ("enter_root",), *(("read", path, limit) for path in paths)]
    with port.Caller(container.directory) as caller:
        return caller.call(ops, files=files)


def stats(container: Container) -> dict[str, Any]:
    """What the guest's kernel counts for the container, as ``Cgroup.stats`` has it."""
    at = f"{_CGROUPS}{container.fields['cgroup']}"
    with port.Caller(container.directory) as caller:
        found = caller.call([("enter_root",), *(("read", f"{at}/{name}", _KERNEL_FILE) for name in STATS)])
    return counted({name: data.decode("ascii", "replace") for name, data in zip(STATS, found) if data is not None})


def processes(container: Container) -> list[tuple[int, bytes, bytes, int]]:
    """The container's processes as the guest numbers them: pid, /proc/PID/stat, command line, effective user."""
    at = f"{_CGROUPS}{container.fields['cgroup']}/cgroup.procs"
    with port.Caller(container.directory) as caller:
        (listed,) = caller.call([("enter_root",), ("read", at, _KERNEL_FILE)])
        pids = [int(word) for word in (listed or b"").split() if word.isdigit() and len(word) < 8][:_MOST_PROCESSES]
        files = [("read", f"/proc/{pid}/{name}", 2048) for pid in pids for name in ("stat", "cmdline", "status")]
        found = iter(caller.call([("enter_root",), *files]))
    rows = []
    for pid, stat, command, status in zip(pids, found, found, found):
        user = (status or b"").partition(b"\nUid:")[2].split()[1:2]
        if stat is not None and user and user[0].isdigit():  # else it has ended
            rows.append((pid, stat, command or b"", int(user[0])))
    return rows


def copy_in(container: Container, source: str) -> None:
    """The new content of ``source`` for the guest's copy of it. A guest that does not answer at once is left alone."""
    inside = container.fields["machine"]["files"].get(source)
    if inside is None:
        return
    data, mode = _content(source, source)
    with port.Caller(container.directory, wait=COPY_SECONDS) as caller:
        caller.call([("enter_root",), ("file", inside, mode, data)], seconds=COPY_SECONDS)


def _content(source: str, where: str) -> tuple[bytes, int]:
    with open(source, "rb") as file:
        data = file.read(_FILE_MAX + 1)
        mode = os.fstat(file.fileno()).st_mode & 0o7777
    if len(data) > _FILE_MAX:
        raise Unsupported(f"{where}: {source} is too large to be copied: found more than {_FILE_MAX} bytes")
    return data, mode


class Exec:
    """One more process in the guest of a running container: a port of its own, its stand-in, its plan."""

    def __init__(
        self,
        container: Container,
        config: dict[str, Any],
        process: dict[str, Any],
        linux: dict[str, Any],
        *,
        console: int | None,
        preserve_fds: int,
    ) -> None:
        if preserve_fds:
            raise Unsupported("--preserve-fds: a descriptor of the host does not get into a machine")
        _refuse_of_the_host(process, {})
        machine = container.fields["machine"]
        kinds = {item["type"] for item in (config.get("linux") or {}).get("namespaces") or ()}
        join = [(kind, f"/proc/{machine['pid']}/ns/{file}") for kind, file in _NS_FILES if kind in kinds]
        host = Host.from_dict({"bounding": machine["bounding"], **_NO_LSM})
        self.plan = exec_plan(process, linux, host, into=True, joins=0, namespaces=join)
        self._files = [path for _, path in join]
        self._cgroup = f"{_CGROUPS}{container.fields['cgroup']}"
        self._terminal = terminal_of(process, console)
        self._uid = uid_of(container.directory)
        number, held = port.free(container.directory, machine["ports"])
        self._opened = [held]
        try:
            self._opened.append(port.connect(container.directory, f"p{number}").detach())
        except BaseException:
            self.close()
            raise

    def host_plan(self, into: bool, joins: int) -> Plan:
        """The stand-in's plan; the descriptors it names are this object's until ``close``."""
        held, connected = self._opened
        return qemu.host_plan(
            into=into,
            joins=joins,
            device_program=None,
            port=connected,
            listener=None,
            oom=None,
            hold=held,
            uid=self._uid,
            terminal=self._terminal,
        )

    def begin(self, process: Process) -> None:
        """From the stand-in to a process in the guest that waits for "go"."""
        process.go(b"")
        process.takes(lambda: self.plan, port.ANSWER_SECONDS)
        flags = port.WANT_CONSOLE if self.plan.console else port.WANT_STDIO
        port.send_plan(process.channel, self.plan.ops, port.session(flags, self._cgroup, self._files))
        process.unshared()

    def close(self) -> None:
        """Close the descriptors that the stand-in has by now."""
        for fd in self._opened:
            os.close(fd)
        self._opened = []
