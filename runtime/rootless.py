"""A user who is not the host's root: what that user may do here, and which cgroups are the user's.

Either somebody with another id, or root of a user namespace that somebody made (podman runs us so): "fake root". Off
the start path of the host's root.
"""

from __future__ import annotations

import posix as os
from errno import EACCES, EINVAL, ENOSPC, EPERM
from fcntl import ioctl

from pycontain.runtime.errors import KernelError, PycontainError
from pycontain.runtime.idmaps import is_own
from pycontain.runtime.kernel.cgroup import open_cgroup
from pycontain.runtime.kernel.cgroup_none import HINT, NoCgroup
from pycontain.runtime.kernel.files import read
from pycontain.runtime.kernel.hierarchies import absolute, hierarchies
from pycontain.runtime.kernel.host import probe
from pycontain.runtime.paths import directory_of, exists, is_directory
from pycontain.runtime.plan.rootless import adapt as adapt_plan
from pycontain.runtime.plan.rootless import adapt_config, check_user

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontain.runtime.kernel.cgroup import Cgroup
    from pycontain.runtime.kernel.hierarchies import Hierarchy
    from pycontain.runtime.kernel.host import Host
    from pycontain.runtime.plan.ops import Op
    from pycontain.runtime.plan.plan import Plan
    from pycontain.runtime.state import Container

_NS_GET_USERNS = 0xB701  # ioctl_nsfs(2)
_FILES = {"network": "net", "mount": "mnt", "pid": "pid", "ipc": "ipc", "uts": "uts", "cgroup": "cgroup"}


def state_root(default: str) -> str:
    """Where the state of this user's containers is. ``default``: the host's root's. Raises PycontainError."""
    uid = os.geteuid()
    given = os.environ.get(b"XDG_RUNTIME_DIR", b"").decode("utf-8", "surrogateescape")
    if given.startswith("/") and (uid or _owned(given)):
        return f"{given}/pycontain/oci"
    if not uid:
        return default
    usual = f"/run/user/{uid}"
    if not _owned(usual):
        raise PycontainError(
            f"there is no place for the state of user {uid}'s containers: "
            f"XDG_RUNTIME_DIR is not set, and {usual} is not a directory of this user",
            hint="export XDG_RUNTIME_DIR=DIR, or pycontain-runtime --root DIR",
        )
    return f"{usual}/pycontain/oci"


def _owned(path: str) -> bool:
    return is_directory(path) and os.stat(path).st_uid == os.geteuid()


def prepare(
    config: dict[str, Any], id: str, *, compulsory: bool, cgroup: Cgroup | None = None
) -> tuple[dict[str, Any], Cgroup, dict[str, Any], dict[str, Any]]:
    """``(configuration, cgroup, resources, facts)`` of a new container of this user.

    ``compulsory``: a cgroup is wanted in any case; ``cgroup``: it is settled already.
    Raises SpecError, Unsupported, KernelError.
    """
    cgroup = cgroup or choose_cgroup(config, id, compulsory=compulsory)
    # Only root can set device rules. It needs none who makes no nodes and opens those only that the user may open.
    resources = dict((config.get("linux") or {}).get("resources") or {})
    resources.pop("devices", None)
    if not cgroup.directories:
        cgroup.apply(resources)  # refuses limits
    found = facts(config, probe(), cgroup)
    return adapt_config(config, found), cgroup, resources, found


def adapt(p: Plan, facts: dict[str, Any]) -> None:
    """See ``plan.rootless``; and failures get a hint."""
    adapt_plan(p, facts)
    p.hint = hint


def facts(config: dict[str, Any], host: Host, cgroup: Cgroup) -> dict[str, Any]:
    """What ``plan.rootless`` has to know of this user, for a container of ``config``."""
    linux = config.get("linux") or {}
    asked = {namespace["type"]: namespace.get("path") or "" for namespace in linux.get("namespaces") or ()}
    new_user = asked.get("user") == ""
    uids: list[list[int]] | None = None
    gids: list[list[int]] | None = None
    if new_user:
        uids = [[m["containerID"], m["size"]] for m in linux.get("uidMappings") or ()]
        gids = [[m["containerID"], m["size"]] for m in linux.get("gidMappings") or ()]
    elif "user" not in asked:
        uids, gids = _ids("self", "uid"), _ids("self", "gid")
    setgroups = _setgroups("self")
    if new_user and os.geteuid() and is_own(linux.get("gidMappings") or [], os.getegid()):
        setgroups = False
    return {
        "uid": os.geteuid(),
        "new_user": new_user,
        "uids": uids,
        "gids": gids,
        "setgroups": setgroups,
        "owned": [kind for kind in _FILES if _rules(kind, asked)],
        "cgroup": bool(cgroup.directories),
        "kernel": list(host.kernel),
    }


def adapt_exec(p: Plan, process: dict[str, Any], pid: int) -> None:
    """Change the plan of one more process in the container of process ``pid``. Raises SpecError and Unsupported."""
    inside = {
        "uid": os.geteuid(),
        "new_user": False,
        "uids": _ids(str(pid), "uid"),
        "gids": _ids(str(pid), "gid"),
        "setgroups": _setgroups(str(pid)),
    }
    check_user(process.get("user") or {}, inside)
    adapt(p, inside)


def _ids(pid: str, kind: str) -> list[list[int]]:
    rows = (line.split() for line in read(f"/proc/{pid}/{kind}_map").splitlines())
    return [[int(first), int(count)] for first, _, count in rows]


def _setgroups(pid: str) -> bool:
    return read(f"/proc/{pid}/setgroups").strip() == "allow"


def _rules(kind: str, asked: dict[str, str]) -> bool:
    """Whether the container's user namespace rules over its namespace of that kind (namespaces(7))."""
    if asked.get(kind) == "":
        return True
    if asked.get("user") == "" or kind not in asked and "user" in asked:
        return False
    try:
        fd = os.open(asked.get(kind) or f"/proc/self/ns/{_FILES[kind]}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        owner = ioctl(fd, _NS_GET_USERNS)  # EPERM: above our own user namespace
        found = os.fstat(owner)
        os.close(owner)
        wanted = os.stat(asked.get("user") or "/proc/self/ns/user")
    except OSError:
        return False
    finally:
        os.close(fd)
    return "user" not in asked or found.st_ino == wanted.st_ino


def choose_cgroup(config: dict[str, Any], id: str, *, compulsory: bool) -> Cgroup:
    """The container's cgroup in those hierarchies where this user may make it and enter it; a NoCgroup where in none.

    ``$.linux.cgroupsPath`` is wanted as it is written; a relative one, and none, stand for one beside our own cgroup.
    Raises KernelError where ``$.linux.cgroupsPath``, or ``compulsory``, asks for one that is not to be had.
    """
    path = (config.get("linux") or {}).get("cgroupsPath") or ""
    found = hierarchies()
    own = {}
    for line in read("/proc/self/cgroup").splitlines():
        _, controllers, place = line.split(":", 2)
        own[controllers] = place
    if path.startswith("/"):
        names = [absolute(path)]
    else:
        absolute(path or id)
        beside = directory_of(own.get("", "/")).rstrip("/")
        names = [f"/pycontain/{path or id}", f"{beside}/{path or f'pycontain-{id}'}"]
    for name in names:
        usable = [h for h in found if _obstacle(h, name, own) is None]
        if usable:
            return open_cgroup(name, usable)
    if path or compulsory:
        where = "$.linux.cgroupsPath" if path else "--rootless=false"
        obstacle = next((o for h in reversed(found) if (o := _obstacle(h, names[-1], own))), "none is mounted")
        raise KernelError(f"{where}: user {os.geteuid()} cannot have cgroup {names[-1]}: {obstacle}", EACCES, hint=HINT)
    return NoCgroup()


def _obstacle(hierarchy: Hierarchy, name: str, own: dict[str, str]) -> str | None:
    """What keeps us from making cgroup ``name`` and moving a child of ours into it; None where nothing does."""
    above = hierarchy.mount + name
    while not is_directory(above):
        above = directory_of(above)
    if not os.access(above, os.W_OK, effective_ids=True):
        return above
    if hierarchy.unified:
        # cgroup-v2, "Delegation containment": whoever moves a process writes to what both places have in common.
        common = hierarchy.mount
        for mine, its in zip(own.get("", "/").split("/")[1:], name.split("/")[1:]):
            if not mine or mine != its:
                break
            common += f"/{mine}"
        if not os.access(f"{common}/cgroup.procs", os.W_OK, effective_ids=True):
            return f"{common}/cgroup.procs"
    return None


def cgroup_of(container: Container) -> Cgroup:
    """The cgroup of a container on record: in the hierarchies where it still has one."""
    name = container.fields["cgroup"]
    found = [h for h in hierarchies() if name and is_directory(h.mount + name)]
    if found:
        return open_cgroup(name, found)
    return NoCgroup(container.pid if container.alive() else 0, container.fields.get("own_pids", True))


def hint(op: Op, number: int) -> str | None:
    """What is behind an operation's failure that root would not have had."""
    if op[0] in ("clone", "unshare") and number in (EPERM, ENOSPC, EACCES):
        return _user_namespaces("/proc/sys")
    if op[0] == "write" and op[1].endswith("oom_score_adj") and number in (EPERM, EACCES):
        return "without root $.process.oomScoreAdj can be raised, but not be less than it was"
    if op[0] in ("bind", "tree") and number == EINVAL and not op[3] & 1:
        return 'something is mounted below it, which a user namespace may not uncover: use "rbind"'
    if op[0] == "attr" and number == EPERM:
        return "what the host has set (ro, nosuid, nodev, noexec, atime) a user namespace cannot take off a mount"
    if op[0] == "mount" and number == EPERM:
        return f"without root {op[3]} is mounted in a namespace of the container's own only, if at all: bind the host's"
    if op[0] in ("rlimit", "raise_limit") and number == EPERM:
        return "without root a limit can be lowered, but not be raised above its hard value"
    if op[0] in ("root_bind", "bind", "mkdir", "mount") and number == EACCES:
        return "the ids that the user namespace maps must be able to reach it: chmod a+x on the way"
    return None


def _user_namespaces(sysctls: str) -> str | None:
    """Which of the host's settings forbids user namespaces to users."""
    for name, bad in (
        ("kernel/unprivileged_userns_clone", "0"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1"),
        ("user/max_user_namespaces", "0"),
    ):
        path = f"{sysctls}/{name}"
        if exists(path) and read(path).strip() == bad:
            wanted = {"0": "28633" if name[0] == "u" else "1", "1": "0"}[bad]
            return f"this host lets users have no user namespaces: sysctl -w {name.replace('/', '.')}={wanted}"
    return None
