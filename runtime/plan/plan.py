"""plan(): a specification and the facts of a host become a flat list of kernel operations.

A pure function: it opens nothing, creates nothing and needs no root. What it cannot honour it refuses by
name (Unsupported, SpecError with a JSON path). init carries the operations out in their order.
"""

from __future__ import annotations

from pycontain.runtime import errors
from pycontain.runtime.plan import ops as _ops
from pycontain.runtime.plan.mounts import ATTR_RDONLY, MS_REC, PROPAGATION, CgroupView, device_ops, mount_ops
from pycontain.runtime.plan.rights import ALL_CAPS, RLIMITS, caps_mask

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pycontain.runtime.kernel.host import Host
    from pycontain.runtime.plan.ops import Op
    from pycontain.runtime.spec import Spec

# Namespace types of config-linux.md and their clone(2) flags. A user namespace is joined first: it
# decides who may join the others.
NAMESPACES = {
    "user": 0x10000000,
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "pid": 0x20000000,
    "network": 0x40000000,
    "time": 0x00000080,
}
# What few ask for: its operations are planned by a module that is imported then.
_RARE = frozenset(("scheduler", "ioPriority", "execCPUAffinity", "apparmorProfile", "selinuxLabel"))
_CAP_SYS_ADMIN = 1 << 21
OOM_SCORE = "/proc/self/oom_score_adj"
_PERSONALITIES = {"LINUX": 0, "LINUX32": 8}


_LONGEST = 1 << 20  # of a hook, in seconds: poll(2) counts milliseconds in 31 bits


class Plan:
    """What is to be done. ``ops`` for init; the rest for the executor, which opens what ``files`` names.

    ``files``: paths (or open descriptors, which stay the caller's) of what the operations name by descriptor number, in
    the order of their slots.
    ``base``: the first descriptor that is ours (3 + preserved ones); slot 0 is the channel, slot 1 the plan, then the
    cgroup's descriptors, then ``files``, then the console socket and the listener where asked for.
    ``hint``: what to say of an operation that failed with an errno, where there is more to say.
    """

    __slots__ = (
        "base", "console", "early", "files", "gid_maps", "hint", "hooks", "into", "joins", "late", "net_devices", "ops",
        "private",
        "shared", "shares_mounts", "uid_maps", "warnings",
    )  # fmt: skip

    def __init__(self, base: int, into: bool, joins: int) -> None:
        self.ops: list[Op] = []
        self.early: list[Op] = []  # before all others: with the host's rights and mounts
        self.late: list[Op] = []
        self.shares_mounts = False  # what is mounted is mounted where the runtime is
        self.private = self.shared = False  # the root's propagation, where it is that
        self.base = base
        self.into = into
        self.joins = joins
        self.files: list[str | int] = []
        self.uid_maps: list[dict[str, int]] = []
        self.gid_maps: list[dict[str, int]] = []
        self.hooks: dict[str, list[dict[str, Any]]] = {}
        self.net_devices: dict[str, str] = {}  # to be moved in: the name here, the name there
        self.console = False
        self.hint: Callable[[Op, int], str | None] | None = None
        self.warnings: list[str] = []

    def file(self, path: str | int) -> int:
        """The descriptor number that init will see for ``path``, which may be an open descriptor too."""
        self.files.append(path)
        return self.after_files() - 1

    def after_files(self) -> int:
        """The first descriptor number behind ``files``."""
        return self.base + 2 + self.into + self.joins + len(self.files)

    def join(self, kind: str, path: str) -> None:
        """Enter a namespace by its file before the clone; the cgroup namespace after it.

        From inside a cgroup namespace, a process that is still outside of its root cannot be put into a cgroup, where
        cgroup2 is mounted with nsdelegate (as systemd does): ENOENT (kernel: admin-guide/cgroup-v2, "Delegation").
        """
        op = ("setns", self.file(path), NAMESPACES[kind])
        (self.late if kind == "cgroup" else self.ops).append(op)

    def joined(self, kind: str) -> int | None:
        """The descriptor of the namespace of that kind that is entered by its file, if one is."""
        return next((op[1] for op in self.ops if op[0] == "setns" and op[2] == NAMESPACES[kind]), None)

    def clone(self, flags: int, beside: list[Op] | None = None) -> None:
        """The first process, in its cgroup from its first moment where cgroup2 is there; the rest it joins itself.

        ``beside``: what its maker does meanwhile.
        """
        if beside:
            self.ops.append(("beside", len(beside)))
        self.ops.append(("clone", flags, self.base + 2 if self.into else _ops.NO_FD))
        self.ops.extend(beside or ())
        self.ops.extend(("join", self.base + 2 + self.into + i) for i in range(self.joins))
        self.ops.extend(self.late)


def plan(
    spec: Spec,
    host: Host,
    rootfs: dict[str, Any],
    lease: Any = None,
    *,
    bundle: str = "/",
    cgroup: str = "/",
    into: bool = False,
    joins: int = 0,
    device_program: bytes | None = None,
    preserve_fds: int = 0,
    listen: bool = False,
    no_pivot: bool = False,
    keyring: str | None = None,
    reap: bool = False,
    beside: bool = False,
) -> Plan:
    """The plan of a container's creation and start.

    ``host``: the facts (``kernel.host.Host``); of the guest, where the plan is for a machine.
    ``rootfs``: ``{"kind": "directory", "path"}`` or ``{"kind": "overlay", "target", "lower", "upper", "work"}``.
    ``lease``: None, or an object whose ``netlink`` is [(description, rtnetlink request)].
    ``cgroup``: its absolute path in the hierarchies; ``into``: clone3(CLONE_INTO_CGROUP) takes its cgroup2 directory;
    ``joins``: how many v1 hierarchies the child joins itself.
    ``beside``: stage 0 loads the device filter (0.3 ms) while the first process makes its mounts already, and whoever
    starts the program waits for stage 0's end before.
    Raises SpecError and Unsupported, both with the JSON path at fault.
    """
    _refuse_unbuilt(spec)
    linux = spec.get("linux") or {}
    runs = "process" in spec
    if not runs:
        if not listen:
            raise errors.SpecError("$.process", "found nothing, wanted the process to run")
        spec = {**spec, "process": {"cwd": "/"}}  # required for start alone (config.md, "Process")
    if "root" not in spec:
        raise errors.SpecError("$.root", "found nothing, wanted the root file system")
    process = spec["process"]
    p = Plan(3 + preserve_fds, into, joins)
    p.console = bool(process.get("terminal"))
    p.hooks = spec.get("hooks") or {}
    for kind, hooks in p.hooks.items():
        for i, hook in enumerate(hooks):
            hook_op(hook, f"$.hooks.{kind}[{i}]")
    new = _namespaces(p, spec, linux)
    filters = [] if device_program is None else [("device_filter", device_program, p.base + 2)]
    if not beside:
        p.ops += filters
    p.clone(new & ~(NAMESPACES["cgroup"] | NAMESPACES["time"]), filters if beside else None)
    if new & NAMESPACES["cgroup"]:
        # Only now: the namespace's root is the cgroup that its maker is in.
        p.ops.append(("unshare", NAMESPACES["cgroup"]))
    p.ops.append(("sync",))
    if _user_namespace(p, new):
        p.ops.append(("userns_root",))
    if keyring is not None:
        p.ops.append(("keyring", keyring))
    p.ops.append(("session",))
    if linux.get("netDevices"):
        from pycontain.runtime.plan.netdevices import net_devices

        own = bool(new & NAMESPACES["network"]) or p.joined("network") is not None
        p.net_devices = net_devices(linux["netDevices"], own)
    if new & NAMESPACES["network"]:
        if lease is None:
            p.ops.append(("loopback",))
        else:
            p.ops.extend(("netlink", text, request) for text, request in lease.netlink)
    sysctls = _sysctls(linux, new, p)
    if sysctls or _needs_procfs(process, _user_namespace(p, new)):
        p.ops.append(("procfs",))
    _names(p, spec, new)
    _filesystem(p, spec, host, rootfs, bundle, new, cgroup)
    if linux.get("mountLabel"):
        from pycontain.runtime.plan.process import label_mounts

        label_mounts(p.ops, linux["mountLabel"], host)
    _oom_score(p, process, _user_namespace(p, new))
    p.ops.extend(sysctls)
    _enter_root(p, spec, new, no_pivot)
    if listen and runs and not p.hooks.get("startContainer"):  # such a hook may make the program
        p.ops.append(("find", process["args"][0], process["cwd"], process.get("env") or []))
    p.ops.append(("ready", p.after_files() + p.console if listen else _ops.NO_FD))
    if runs:
        process_ops(p, process, linux, host, reap=reap, user_namespace=_user_namespace(p, new))
    if process.get("execCPUAffinity"):
        from pycontain.runtime.plan.process import affinity

        affinity(process)  # of exec's processes, but a fault in it is this configuration's
    if p.hooks.get("startContainer") and runs:
        # With the program's rights, not with ours: it is the container's, whose image may be hostile.
        program = p.ops.pop()
        _hooks(p, "startContainer", "")
        p.ops.append(program)
    if new & NAMESPACES["user"]:
        from pycontain.runtime.plan.special_mounts import take_sources

        take_sources(p)
    if p.early:
        p.ops[:0] = p.early
    return p


def _needs_procfs(process: dict[str, Any], user_namespace: bool) -> bool:
    return bool(process.get("apparmorProfile") or process.get("selinuxLabel")) or (
        process.get("oomScoreAdj") is not None and not user_namespace
    )


def _oom_score(p: Plan, process: dict[str, Any], user_namespace: bool) -> None:
    score = process.get("oomScoreAdj")
    if score is not None:
        if not -1000 <= score <= 1000:  # proc_pid_oom_score_adj(5)
            raise errors.SpecError("$.process.oomScoreAdj", f"found {score}, wanted -1000 to 1000")
        if user_namespace:
            # By stage 0, whose children inherit it: our file in /proc is not for the root of a user namespace, and no
            # procfs is to be had there where the one in sight is partly covered.
            p.ops.insert(0, ("write", OOM_SCORE, str(score)))
        else:
            p.ops.append(("oom_score", str(score)))


def _refuse_unbuilt(spec: Spec) -> None:
    if (spec.get("linux") or {}).get("intelRdt") is not None:
        raise errors.Unsupported(
            "$.linux.intelRdt: groups of resctrl are not built yet", hint="remove it from config.json"
        )
    for key in ("windows", "solaris", "zos", "freebsd"):
        if spec.get(key):
            raise errors.Unsupported(f"$.{key}: this runtime makes Linux containers")


def _namespaces(p: Plan, spec: Spec, linux: dict[str, Any]) -> int:
    """Joins what has a path, returns the clone flags of what is new."""
    new = 0
    asked: dict[str, str] = {}
    for i, namespace in enumerate(linux.get("namespaces") or ()):
        kind, path = namespace["type"], namespace.get("path") or ""
        if kind not in NAMESPACES:
            raise errors.SpecError(
                f"$.linux.namespaces[{i}].type", f"found {kind!r}, wanted one of {', '.join(NAMESPACES)}"
            )
        if path and not path.startswith("/"):
            raise errors.SpecError(f"$.linux.namespaces[{i}].path", f"found {path!r}, wanted an absolute path")
        asked[kind] = path
    for kind in NAMESPACES:
        if asked.get(kind):
            p.join(kind, asked[kind])
        elif kind in asked:
            new |= NAMESPACES[kind]
    offsets = linux.get("timeOffsets") or {}
    if offsets and not new & NAMESPACES["time"]:
        raise errors.SpecError("$.linux.timeOffsets", "found offsets, but no new time namespace in $.linux.namespaces")
    if new & NAMESPACES["time"]:
        # Children of the unsharing process enter it; the offsets are writable until the first one does.
        p.ops.append(("unshare", NAMESPACES["time"]))
        for clock, offset in offsets.items():
            if clock not in ("monotonic", "boottime"):
                raise errors.SpecError(f"$.linux.timeOffsets[{clock!r}]", "wanted monotonic or boottime")
            text = f"{clock} {offset.get('secs', 0)} {offset.get('nanosecs', 0)}"
            p.ops.append(("write", "/proc/self/timens_offsets", text))
    uid_maps, gid_maps = linux.get("uidMappings") or [], linux.get("gidMappings") or []
    if new & NAMESPACES["user"]:
        if not uid_maps or not gid_maps:
            raise errors.SpecError("$.linux.uidMappings", "found nothing, wanted mappings for the new user namespace")
        p.uid_maps, p.gid_maps = uid_maps, gid_maps
    elif (uid_maps or gid_maps) and not asked.get("user"):  # one that is joined has its own; podman gives dummies then
        raise errors.SpecError("$.linux.uidMappings", "found mappings, but no new user namespace in $.linux.namespaces")
    return new


def _user_namespace(p: Plan, new: int) -> bool:
    """Whether the container is in another user namespace than ours, new or joined."""
    return bool(new & NAMESPACES["user"]) or p.joined("user") is not None


def _sysctls(linux: dict[str, Any], new: int, p: Plan) -> list[Op]:
    """Only keys of a namespace that is the container's own: any other would change the host."""
    joined = {op[2] for op in p.ops if op[0] == "setns"}
    own = new | sum(joined)
    ops: list[Op] = []
    for key, value in (linux.get("sysctl") or {}).items():
        path = f"$.linux.sysctl[{key!r}]"
        name = key.replace(".", "/") if "/" not in key else key
        parts = name.split("/")
        if len(parts) < 2 or not all(parts) or ".." in parts or any(c in key for c in " \n=") or "\n" in value:
            raise errors.SpecError(path, "found a malformed name or value, wanted one key and one value")
        kind = {"net": "network", "user": "user"}.get(parts[0], "")
        if name.startswith("fs/mqueue/") or parts[0] == "kernel" and (parts[1][:3] in ("msg", "sem", "shm")):
            kind = "ipc"
        elif name in ("kernel/hostname", "kernel/domainname"):
            kind = "uts"
        if not kind:
            raise errors.SpecError(path, "it is not of a namespace: setting it would change the host")
        if not own & NAMESPACES[kind]:
            raise errors.SpecError(path, f"it belongs to the {kind} namespace, and the container has none of its own")
        ops.append(("sysctl", name, value))
    return ops


def _names(p: Plan, spec: Spec, new: int) -> None:
    joined_uts = any(op[0] == "setns" and op[2] == NAMESPACES["uts"] for op in p.ops)
    for key, op in (("hostname", "hostname"), ("domainname", "domainname")):
        if spec.get(key):
            if not (new & NAMESPACES["uts"] or joined_uts):
                raise errors.SpecError(f"$.{key}", "found a name, but no uts namespace in $.linux.namespaces")
            p.ops.append((op, spec[key]))


def _filesystem(p: Plan, spec: Spec, host: Host, rootfs: dict[str, Any], bundle: str, new: int, cgroup: str) -> None:
    linux, process = spec.get("linux") or {}, spec["process"]
    wish = linux.get("rootfsPropagation")
    propagation = wish or "rslave"
    kind = propagation[1:] if propagation[0] == "r" else propagation
    if kind not in PROPAGATION:
        raise errors.SpecError(
            "$.linux.rootfsPropagation",
            f"found {propagation!r}, wanted private, slave, unbindable or shared, or one of them with an r before it",
        )
    own, joined = new & NAMESPACES["mount"], p.joined("mount") is not None
    if not own and not joined:
        from pycontain.runtime.plan.special_mounts import shared_mounts

        shared_mounts(p, spec, rootfs)
    else:
        p.private, p.shared = kind in ("private", "unbindable"), kind == "shared"
        if own:
            # Always all of them: what is mounted from here on must not reach the host.
            p.ops.append(("propagation", "/", PROPAGATION["private" if p.private else "slave"] | MS_REC))
        p.ops.append(_overlay(rootfs) if rootfs["kind"] == "overlay" else ("root_bind", rootfs["path"]))
    in_cgroup_namespace = bool(new & NAMESPACES["cgroup"] or p.late)
    view = CgroupView(host.cgroups, "" if cgroup == "/" else cgroup, in_cgroup_namespace)
    late: list[Op] = []
    bound_dev = False
    for i, mount in enumerate(spec.get("mounts") or ()):
        ops, after = mount_ops(mount, f"$.mounts[{i}]", bundle, view, p)
        p.ops += ops
        late += after
        if mount["destination"].rstrip("/") == "/dev":
            bound_dev = bool(ops) and ops[0][0] in ("bind", "attach")
    if not bound_dev:
        p.ops += device_ops(linux.get("devices") or [], _user_namespace(p, new))
    if p.hooks.get("prestart") or p.hooks.get("createRuntime"):
        p.ops.append(("mounted",))
    _hooks(p, "createContainer", bundle)
    p.ops.append(("mkdir", process["cwd"], 0o755, 0, 0))
    p.ops += late
    p.ops.extend(("mask", path) for path in linux.get("maskedPaths") or ())
    p.ops.extend(("readonly", path) for path in linux.get("readonlyPaths") or ())
    if process.get("terminal"):
        p.ops.append(_terminal(p, process, bind=True))


def _terminal(p: Plan, process: dict[str, Any], *, bind: bool) -> Op:
    size = process.get("consoleSize") or {}
    for key, value in size.items():
        if value > 0xFFFF:  # struct winsize, ioctl_tty(2)
            raise errors.SpecError(f"$.process.consoleSize.{key}", f"found {value}, wanted at most 65535")
    uid = (process.get("user") or {}).get("uid", 0)
    return ("terminal", p.after_files(), size.get("height", 0), size.get("width", 0), uid, int(bind))


def _overlay(rootfs: dict[str, Any]) -> Op:
    extra = ",volatile" if rootfs.get("volatile") else ""
    return ("root_overlay", rootfs["target"], rootfs["lower"], rootfs["upper"], rootfs["work"], extra)


def _enter_root(p: Plan, spec: Spec, new: int, no_pivot: bool) -> None:
    if not new & NAMESPACES["mount"]:
        # pivot_root(2) would take the old root from under all others in the namespace.
        p.ops.append(("chroot",))
    else:
        p.ops.append(("move_root",) if no_pivot else ("pivot",))
    wish = (spec.get("linux") or {}).get("rootfsPropagation") or ""
    if wish.endswith(("shared", "unbindable")):
        # Not before: a shared mount is nothing to pivot into, and of an unbindable one nothing can be masked.
        kind = "shared" if p.shared else "unbindable"
        p.ops.append(("attr", "/", 0, 0, PROPAGATION[kind], int(wish[0] == "r")))
    if spec["root"].get("readonly"):
        p.ops.append(("attr", "/", ATTR_RDONLY, 0, 0, 0))


def _hooks(p: Plan, kind: str, directory: str) -> None:
    for i, hook in enumerate(p.hooks.get(kind) or ()):
        p.ops.append(hook_op(hook, f"$.hooks.{kind}[{i}]", directory))


def hook_op(hook: dict[str, Any], path: str, directory: str = "") -> Op:
    """``directory``: where it runs; "" for the working directory of the process, which a container's own hook has."""
    if not hook["path"].startswith("/"):
        raise errors.SpecError(f"{path}.path", f"found {hook['path']!r}, wanted an absolute path")
    timeout = hook.get("timeout")
    if timeout is not None and timeout <= 0:
        raise errors.SpecError(f"{path}.timeout", f"found {timeout}, wanted more than zero seconds")
    seconds = min(timeout or 0, _LONGEST)
    return ("hook", path, hook["path"], hook.get("args") or [hook["path"]], hook.get("env") or [], seconds, directory)


def process_ops(
    p: Plan,
    process: dict[str, Any],
    linux: dict[str, Any],
    host: Host,
    *,
    reap: bool = False,
    user_namespace: bool = False,
) -> None:
    """From the container's inside to execve: limits, identity, filter, program; for the first process and for exec."""
    ops = p.ops
    user = process.get("user") or {}
    uid, gid = user.get("uid", 0), user.get("gid", 0)
    for name, value in (("uid", uid), ("gid", gid)):
        if value > 0xFFFFFFFE:
            raise errors.SpecError(f"$.process.user.{name}", f"found {value}, wanted at most 4294967294")
    if process.get("rlimits"):
        _rlimits(p, process, user_namespace)
    personality = linux.get("personality")
    if personality:
        if personality["domain"] not in _PERSONALITIES:
            raise errors.SpecError(
                "$.linux.personality.domain", f"found {personality['domain']!r}, wanted LINUX or LINUX32"
            )
        if personality.get("flags"):
            flag = personality["flags"][0]
            raise errors.SpecError(
                "$.linux.personality.flags[0]", f"found {flag!r}, but the specification defines no flags"
            )
        ops.append(("personality", _PERSONALITIES[personality["domain"]]))
    if not _RARE.isdisjoint(process) or "memoryPolicy" in linux:
        from pycontain.runtime.plan.process import process_ops as rare

        ops += rare(process, linux, host)
    caps = process.get("capabilities") or {}
    # A new user namespace gives its first process every capability, whatever ours are (user_namespaces(7)).
    grantable = ALL_CAPS if user_namespace else host.bounding
    masks = {
        name: caps_mask(caps.get(name) or [], f"$.process.capabilities.{name}", grantable, p.warnings)
        for name in ("bounding", "effective", "permitted", "inheritable", "ambient")
    }
    # capabilities(7): no capability is ambient that is not permitted and inheritable too. `runc spec` writes such.
    masks["ambient"] &= masks["permitted"] & masks["inheritable"]
    ops.append(("bounding", masks["bounding"]))
    groups = b""
    for i, group in enumerate(user.get("additionalGids") or ()):
        if group > 0xFFFFFFFE:
            raise errors.SpecError(f"$.process.user.additionalGids[{i}]", f"found {group}, wanted at most 4294967294")
        groups += group.to_bytes(4, "little")
    ops.append(("groups", groups))
    if "umask" in user:
        ops.append(("umask", user["umask"]))
    if uid or gid:
        # Once with root's rights, once more as the user, who has the last word on what is not there for root either.
        ops.append(("chdir", process["cwd"], 1))
    ops.append(("user", uid, gid))
    ops.append(("chdir", process["cwd"], 0))
    filter_op = _seccomp(linux)
    last = ("caps", masks["effective"], masks["permitted"], masks["inheritable"])
    early = filter_op is not None and not process.get("noNewPrivileges")
    if early:
        # Without no_new_privs a filter wants CAP_SYS_ADMIN, and nothing may come between it and execve that it could
        # refuse. So this one capability goes with execve, which makes its own permitted set (capabilities(7)).
        extra = _CAP_SYS_ADMIN & grantable
        ops.append(("caps", last[1] | extra, last[2] | extra, last[3]))
    else:
        ops.append(last)
    if masks["ambient"]:
        ops.append(("ambient", masks["ambient"]))
    if process.get("noNewPrivileges"):
        ops.append(("no_new_privs",))
    if filter_op:
        ops.append(filter_op)
        if early and reap:
            ops.append(last)  # the reaper is not executed
    ops.append(("exec", process["args"][0], process["args"], process.get("env") or [], _ops.REAP if reap else 0))


def _rlimits(p: Plan, process: dict[str, Any], user_namespace: bool) -> None:
    seen = set()
    for i, limit in enumerate(process["rlimits"]):
        path = f"$.process.rlimits[{i}]"
        kind, soft, hard = limit["type"], limit["soft"], limit["hard"]
        if kind not in RLIMITS:
            raise errors.SpecError(f"{path}.type", f"found {kind!r}, wanted one of {', '.join(RLIMITS)}")
        if kind in seen:
            raise errors.SpecError(f"{path}.type", f"found {kind!r} a second time")
        seen.add(kind)
        if soft > hard:
            raise errors.SpecError(f"{path}.soft", f"found {soft}, wanted at most the hard limit {hard}")
        p.ops.append(("rlimit", RLIMITS[kind], soft, hard))
    if user_namespace:
        # Root of a user namespace cannot raise a hard limit: that is done before it is entered.
        p.ops[:0] = [("raise_limit", RLIMITS[limit["type"]], limit["hard"]) for limit in process["rlimits"]]


def _seccomp(linux: dict[str, Any]) -> Op | None:
    if not linux.get("seccomp"):
        return None
    from pycontain.runtime.plan.seccomp import compile_filter

    compiled = compile_filter(linux["seccomp"])
    return ("seccomp_notify" if compiled.notifies else "seccomp", compiled.program, compiled.flags)


def exec_plan(
    process: dict[str, Any],
    linux: dict[str, Any],
    host: Host,
    *,
    into: bool,
    joins: int,
    namespaces: list[tuple[str, str]],
    preserve_fds: int = 0,
    root: str | None = None,
) -> Plan:
    """The plan of one more process in a running container.

    ``namespaces``: (type, path such as /proc/PID/ns/mnt) of those to join, user first, mount last.
    ``root``: the root directory of a container whose mount namespace is not its own, and has another one.
    """
    p = Plan(3 + preserve_fds, into, joins)
    p.console = bool(process.get("terminal"))
    for kind, path in namespaces:
        p.join(kind, path)
    before: list[Op] = []
    after: list[Op] = []
    if process.get("execCPUAffinity"):
        from pycontain.runtime.plan.process import affinity

        before, after = affinity(process)
    p.ops += before
    p.clone(0)
    user = any(kind == "user" for kind, _ in namespaces)
    if user:
        p.ops.append(("userns_root",))
    p.ops += [("sync",), *after, ("session",)]
    p.ops.append(("enter_root",) if root is None else ("chroot_to", p.file(root)))
    if _needs_procfs(process, user):
        p.ops.append(("procfs",))
    _oom_score(p, process, user)
    if p.console:
        p.ops.append(_terminal(p, process, bind=False))
    process_ops(p, process, linux, host, user_namespace=user)
    return p


def read_plan(rootfs: dict[str, Any], paths: list[str], limit: int) -> Plan:
    """Mount a root file system where nobody else sees it, and read files below it."""
    p = Plan(3, False, 0)
    p.ops += [("unshare", NAMESPACES["mount"]), ("propagation", "/", PROPAGATION["private"] | MS_REC)]
    p.ops.append(_overlay(rootfs) if rootfs["kind"] == "overlay" else ("root_bind", rootfs["path"]))
    p.ops.extend(("read", path, limit) for path in paths)
    return p
