"""Without root: what changes in a configuration before it is planned, and in the plan after.

``facts`` (from ``runtime.rootless``) are plain data:
``uid``: the effective user; ``new_user``: whether the container gets a user namespace of its own;
``uids``, ``gids``: the ids that its user namespace has, as ``[[first, count], ...]``; None where nobody knows before;
``setgroups``: whether setgroups(2) is allowed in it; ``owned``: the types of the namespaces that it rules over, new or
joined; ``cgroup``: whether the container has a cgroup; ``kernel``: ``[major, minor]``.
"""

from __future__ import annotations

from pycontain.runtime.errors import SpecError, Unsupported
from pycontain.runtime.plan.plan import NAMESPACES, OOM_SCORE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontain.runtime.plan.ops import Op
    from pycontain.runtime.plan.plan import Plan

_CGROUPS = "/sys/fs/cgroup"
# Who does not rule over the namespace that these show may not mount them, but see the host's: type → (that, place).
_BOUND = {"sysfs": ("network", "/sys"), "proc": ("pid", "/proc"), "mqueue": ("ipc", "/dev/mqueue")}
_TIME_ON_EXEC = (6, 2)


def adapt_config(config: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """``config``, with the host's /sys, /proc or /dev/mqueue bound where a mount of its own is not allowed.

    Raises SpecError and Unsupported for what cannot work without root, with the JSON path.
    """
    linux = config.get("linux") or {}
    kinds = {namespace["type"] for namespace in linux.get("namespaces") or ()}
    if facts["uid"] and "user" not in kinds:
        raise SpecError(
            "$.linux.namespaces",
            f"found no user namespace: without one user {facts['uid']}, who is not root, can make no container",
            hint="pycontain-runtime spec --rootless",
        )
    if config.get("vm") is not None or "org.pycontain.isolation" in (config.get("annotations") or ()):
        raise Unsupported("a container in a machine of its own needs root: $.vm, or org.pycontain.isolation")
    check_user((config.get("process") or {}).get("user") or {}, facts)
    mounts = []
    for i, mount in enumerate(config.get("mounts") or ()):
        options = mount.get("options") or []
        for k, option in enumerate(options):
            key, _, value = option.partition("=")
            if key in ("uid", "gid") and value.isdigit():
                _mapped(facts, key, int(value), f"$.mounts[{i}].options[{k}]", option)
        namespace, place = _BOUND.get(mount.get("type") or "", ("", ""))
        if place and namespace not in facts["owned"] and not {"bind", "rbind"} & set(options):
            mount = {**mount, "type": "none", "source": place, "options": ["rbind", *options]}
        mounts.append(mount)
    return {**config, "mounts": mounts}


def check_user(user: dict[str, Any], facts: dict[str, Any]) -> None:
    """The ids of ``$.process.user`` are there in the user namespace. Raises SpecError and Unsupported."""
    for key in ("uid", "gid"):
        _mapped(facts, key, user.get(key, 0), f"$.process.user.{key}", str(user.get(key, 0)))
    for i, gid in enumerate(user.get("additionalGids") or ()):
        path = f"$.process.user.additionalGids[{i}]"
        if not facts["setgroups"]:
            raise Unsupported(
                f"{path}: the user namespace has no setgroups(2), as user {facts['uid']} has mapped its group itself",
                hint="map a range of /etc/subgid in $.linux.gidMappings, or leave additional groups out",
            )
        _mapped(facts, "gid", gid, path, str(gid))


def _mapped(facts: dict[str, Any], key: str, id: int, path: str, found: str) -> None:
    ranges = facts[key + "s"]
    if ranges is not None and not _has(ranges, id):
        raise SpecError(path, f"found {found}, but the user namespace has no {key} {id}")


def _has(ranges: list[list[int]] | None, id: int) -> bool:
    return ranges is None or any(first <= id < first + count for first, count in ranges)


def adapt(p: Plan, facts: dict[str, Any]) -> None:
    """Change the plan of a container, or of one more process in one, in place. Raises Unsupported."""
    clone = next(i for i, op in enumerate(p.ops) if op[0] == "clone")
    sync = next(i for i, op in enumerate(p.ops) if op[0] == "sync")
    stage0, mapped = p.ops[:clone], []
    # Fake root's is no private procfs either: the OOM score is for stage 0 to write.
    first: list[Op] = [("write", OOM_SCORE, op[1]) for op in p.ops if op[0] == "oom_score"]
    first += [op for op in stage0 if op[:2] == ("write", OOM_SCORE)]
    stage0 = [op for op in stage0 if op not in first]
    # Our files in /proc are nobody's but root's while we are not dumpable, which we are never beside a container.
    if facts["new_user"] and facts["uid"]:
        first.insert(0, ("dumpable", 1))
        mapped.append(("dumpable", 0))
    elif first and facts["uid"]:
        first = [("dumpable", 1), *first, ("dumpable", 0)]
    if facts["new_user"] and ("unshare", NAMESPACES["time"]) in stage0:
        # Not stage 0's to make; execve takes a process into the one that it has made for its children.
        if tuple(facts["kernel"]) < _TIME_ON_EXEC:
            raise Unsupported("$.linux.namespaces: a new time namespace beside a new user namespace wants Linux 6.2")
        time = [op for op in stage0 if op == ("unshare", NAMESPACES["time"]) or op[1] == "/proc/self/timens_offsets"]
        stage0 = [op for op in stage0 if op not in time]
        mapped = [*time, *mapped]
    made = p.ops[sync + 1 :]
    if facts["uid"]:
        # Sources are not stage 0's to take either. But until the child becomes root of its namespace it is who we are.
        mapped += [op for op in stage0 if op[0] == "tree"]
        stage0 = [op for op in stage0 if op[0] != "tree"]
    if ("mounted",) in made and facts["uid"]:
        # The runtime's hooks are the user's, and come to the container by its files in /proc.
        at = made.index(("mounted",))
        made = [*made[:at], ("dumpable", 1), ("mounted",), ("dumpable", 0), *made[at + 1 :]]
    ops = [*first, *stage0, *p.ops[clone : sync + 1], *mapped, *made]
    # The groups of the user stay where setgroups(2) is denied: it could not take them away either.
    dropped = {"oom_score"} if facts["setgroups"] else {"oom_score", "groups"}
    if not (_has(facts["uids"], 0) and _has(facts["gids"], 0)):
        dropped.add("userns_root")
    if not any(op[0] in ("sysctl", "label") for op in ops):
        dropped.add("procfs")
    p.ops = [_node(op) for op in ops if op[0] not in dropped]
    inside = next((i for i, op in enumerate(p.ops) if op[0] in ("pivot", "move_root")), None)
    if inside is None or any(op[0] == "setns" and op[2] == NAMESPACES["mount"] for op in p.ops):
        return
    # Of procfs the kernel grants none where the one in sight is partly covered; that one is the host's up to here, and
    # sysctls of a namespace are the caller's in any.
    p.ops = [("host_procfs",) if op[0] == "procfs" else op for op in p.ops]
    notify = next((i for i, op in enumerate(p.ops) if op[0] == "seccomp_notify"), None)
    if facts["uid"] and notify is not None and any(op[0] == "clone" and op[1] & NAMESPACES["pid"] for op in p.ops):
        # pidfd_getfd(2) takes the listener from who may be traced; nobody else is in this pid namespace yet.
        p.ops.insert(notify, ("dumpable", 1))
    if not _own_cgroups(p.ops):
        p.ops.insert(inside, ("readonly", _CGROUPS))
    for i, op in enumerate(p.ops):
        if op[0] == "mount" and op[3] == "cgroup2" and any(o[0] in ("tree", "bind") and o[3] & 1 for o in p.ops[:i]):
            # The kernel mounts nothing on itself (EBUSY), and a recursive bind of /sys may have brought it along.
            p.ops.insert(i, ("mount", "tmpfs", op[2], "tmpfs", op[4], "size=0k,nr_inodes=1", 1))
            break


def _node(op: Op) -> Op:
    """mknod(2) of a device is for root alone: the host's node is bound in its place, if it is that very device."""
    if op[0] == "mknod" and op[2] & 0o170000 != 0o010000:
        return ("device", op[1], op[2], op[3], 1)
    return op


def _own_cgroups(ops: list[Op]) -> bool:
    """Whether what the container sees at /sys/fs/cgroup is a cgroup namespace of its own.

    Anything else there is the host's, and the user's to write to where the user was given cgroups (CVE-2023-25809).
    """
    return ("unshare", NAMESPACES["cgroup"]) in ops and any(
        op[0] == "mount" and op[2].rstrip("/") == _CGROUPS and op[3] in ("cgroup2", "tmpfs") for op in ops
    )
