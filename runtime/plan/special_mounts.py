"""What is rare in ``$.mounts``: id maps, links, copies of what is covered, remounts, peers of the host's mounts.

Off the start path: ``mounts`` imports it where a configuration asks for such.
"""

from __future__ import annotations

from pycontain.runtime import errors
from pycontain.runtime.plan.mounts import CLEARS, FLAGS, PROPAGATION
from pycontain.runtime.plan.ops import NO_FD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontain.runtime.plan.mounts import Options
    from pycontain.runtime.plan.ops import Op
    from pycontain.runtime.plan.plan import Plan

# Of bind and tree, as init/mounts.h has them.
RECURSIVE, NO_FOLLOW, COPY_LINK = 1, 2, 4
TREES_MAX = 128


def bind(mount: dict[str, Any], path: str, options: Options, source: str, target: str, p: Plan) -> list[Op]:
    """A bind mount with an option of this module's, with id mappings, or one that stays a peer of its source.

    Raises SpecError or Unsupported with the JSON path of the option at fault.
    """
    how, mapped, where, maps = RECURSIVE if options.rec else 0, 0, path, ""
    for option, at in options.special:
        name, _, value = option.partition("=")
        if name == "copy-symlink":
            how |= COPY_LINK
        elif name == "src-nofollow":
            how |= NO_FOLLOW
        elif name == "tmpcopyup":
            raise errors.SpecError(at, "found 'tmpcopyup': it is for the type tmpfs, a bind mount cannot have it")
        else:
            mapped, where, maps = 2 if name == "ridmap" else 1, at, value
    for key, other in (("uidMappings", "gidMappings"), ("gidMappings", "uidMappings")):
        if mount.get(key) and not mount.get(other):
            raise errors.SpecError(f"{path}.{other}", f"found nothing, wanted mappings beside those in {key}")
    mapped = mapped or int(bool(mount.get("uidMappings")))
    peer = p.shared and any(flag == PROPAGATION["shared"] for flag, _ in options.propagation)
    if not mapped and not peer:
        return [("bind", source, target, how), *options.attributes(target)]
    if how & COPY_LINK:
        raise errors.SpecError(where, "found 'copy-symlink' beside it: a link has neither ids to map nor peers")
    uids, gids, namespace = _maps(mount, path, where, maps, p) if mapped else ("", "", NO_FD)
    spread = 0 if peer else PROPAGATION["private" if p.private else "slave"]
    slot = len(p.early)
    if slot == TREES_MAX:
        raise errors.Unsupported(f"{path}: found more than {TREES_MAX} mounts that map ids or are shared with the host")
    p.early.append(("tree", slot, source, how, spread, mapped, namespace, uids, gids))
    return [("attach", slot, target), *options.attributes(target)]


def take_sources(p: Plan) -> None:
    """Let stage 0 take the sources of bind mounts: we may go where the root of a new user namespace may not."""
    spread = PROPAGATION["private" if p.private else "slave"]
    for i, op in enumerate(p.ops):
        slot = len(p.early)
        if op[0] == "bind" and not op[3] & COPY_LINK and slot < TREES_MAX:
            p.early.append(("tree", slot, op[1], op[3], spread, 0, NO_FD, "", ""))
            p.ops[i] = ("attach", slot, op[2])


def _maps(mount: dict[str, Any], path: str, where: str, written: str, p: Plan) -> tuple[str, str, int]:
    """``(uid_map, gid_map, descriptor of a user namespace instead)`` of an id-mapped mount."""
    if written:
        if mount.get("uidMappings"):
            raise errors.SpecError(where, f"found mappings here and in {path}.uidMappings, wanted one of them")
        return _written(written, where)
    for found, at in ((mount, path), ({"uidMappings": p.uid_maps, "gidMappings": p.gid_maps}, "$.linux")):
        if found.get("uidMappings"):
            uids, gids = (id_map(found[key], f"{at}.{key}") for key in ("uidMappings", "gidMappings"))
            return uids, gids, NO_FD
    joined = p.joined("user")
    if joined is None:
        raise errors.SpecError(
            where, "found nothing to map ids by: neither uidMappings of the mount nor a user namespace of the container"
        )
    return "", "", joined


def _written(text: str, where: str) -> tuple[str, str, int]:
    """crun's ``idmap=uids=0-1000-10#10-2000-5;gids=0-1000-10``: file system's id, id on this host, number of ids."""
    found = {}
    for part in text.split(";"):
        kind, _, triplets = part.partition("=")
        rows = [triplet.split("-") for triplet in triplets.split("#")]
        if kind not in ("uids", "gids") or not all(len(row) == 3 and all(n.isdecimal() for n in row) for row in rows):
            raise errors.SpecError(where, f"found {part!r}, wanted uids=FS-HOST-SIZE[#...] or gids=FS-HOST-SIZE[#...]")
        found[kind] = [{"containerID": int(a), "hostID": int(b), "size": int(c)} for a, b, c in rows]
    if len(found) != 2:
        raise errors.SpecError(where, f"found {text!r}, wanted both uids= and gids=, divided by a semicolon")
    return id_map(found["uids"], where), id_map(found["gids"], where), NO_FD


def id_map(maps: list[dict[str, int]], path: str) -> str:
    """As /proc/PID/uid_map takes it (user_namespaces(7))."""
    lines = []
    for i, row in enumerate(maps):
        inside, outside, size = row["containerID"], row["hostID"], row["size"]
        if size == 0 or max(inside, outside) + size > 1 << 32:
            raise errors.SpecError(
                f"{path}[{i}]", f"found {size} ids from {inside} and {outside}, wanted ids below 2^32"
            )
        lines.append(f"{inside} {outside} {size}\n")
    return "".join(lines)


def remount(path: str, given: list[str], options: Options, target: str) -> list[Op]:
    """``remount``: with ``bind`` the flags of the mount alone, without it its file system's too (mount(8))."""
    for _, at in options.special:
        raise errors.SpecError(at, "found 'remount' beside it: it is for a mount that is made")
    ops: list[Op] = []
    if options.bind:
        if options.superblock or options.data:
            word = options.superblock or options.data
            raise errors.SpecError(
                f"{path}.options", f"found {word!r}: it belongs to a file system, not to one mount of it"
            )
    else:
        # The kernel knows these words for a superblock; silent and loud are for its log, and say nothing here.
        words = [o for o in given if o in ("ro", "rw") or _of_superblock(o)] + [o for o in options.data.split(",") if o]
        if words:
            ops.append(("remount", target, words))
    return ops + options.attributes(target)


def _of_superblock(option: str) -> bool:
    name = CLEARS.get(option, option)
    return name in FLAGS and FLAGS[name][1] is None and name != "silent"


def mount(path: str, given: list[str], options: Options, kind: str, source: str, target: str) -> list[Op]:
    """A file system with an option of this module's: a tmpfs with ``tmpcopyup``, or a refusal."""
    for option, at in options.special:
        if option == "tmpcopyup" and kind == "tmpfs":
            continue
        if option.startswith(("idmap", "ridmap")):
            raise errors.Unsupported(
                f"{at}: {option!r} of a file system of type {kind!r}: ids are mapped for bind mounts"
            )
        raise errors.SpecError(at, f"found {option!r}: a file system of type {kind!r} cannot have it")
    words = [o for o in given if _of_superblock(o)] + [o for o in options.data.split(",") if o]
    ops: list[Op] = [("copy_up", source or kind, target, options.attr_set, words)]
    return ops + options.attributes(target)


def shared_mounts(p: Plan, spec: dict[str, Any], rootfs: dict[str, Any]) -> None:
    """The root of a container that shares the runtime's mounts, entered by chroot(2).

    What is mounted for it is mounted where the runtime is, below a private mount of the root, taken away with the
    container (``runtime.shared_mounts``).
    """
    linux = spec.get("linux") or {}
    why = "needs a mount namespace of the container's own"
    hint = 'add {"type": "mount"} to $.linux.namespaces'
    if rootfs["kind"] != "directory":
        raise errors.Unsupported(f"$.linux.namespaces: an image's root file system {why}", hint=hint)
    if p.uid_maps or p.joined("user") is not None:
        raise errors.Unsupported(f"$.linux.namespaces: a user namespace {why}", hint=hint)
    p.shares_mounts = bool(
        spec.get("mounts")
        or any(linux.get(key) for key in ("maskedPaths", "readonlyPaths", "rootfsPropagation"))
        or spec["root"].get("readonly")
        or spec["process"].get("terminal")
    )
    if p.shares_mounts:
        # Private: a peer of the mount below it would pass on what is mounted here, and keep it.
        p.ops += [("root_bind", rootfs["path"]), ("attr", "/", 0, 0, PROPAGATION["private"], 1)]
    else:
        p.ops.append(("root", rootfs["path"]))


