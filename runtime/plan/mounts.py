"""Mounts of a specification → operations: every option string, cgroup mounts, devices, masks."""

from __future__ import annotations

from pycontain.runtime import errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontain.runtime.plan.ops import Op
    from pycontain.runtime.plan.plan import Plan

# mount(2) flags, and mount_setattr(2) attributes (None: not an attribute of one mount but of its file system).
_MS_REMOUNT, _MS_BIND, MS_REC = 32, 4096, 16384
ATTR_RDONLY = 1
ATIME = 0x70  # a field, not a bit: whoever sets a value clears it first
FLAGS: dict[str, tuple[int, int | None]] = {
    "ro": (1, ATTR_RDONLY),
    "nosuid": (2, 2),
    "nodev": (4, 4),
    "noexec": (8, 8),
    "sync": (16, None),
    "mand": (64, None),
    "dirsync": (128, None),
    "nosymfollow": (256, 0x200000),
    "noatime": (1024, 0x10),
    "nodiratime": (2048, 0x80),
    "silent": (1 << 15, None),
    "acl": (1 << 16, None),
    "relatime": (1 << 21, 0),
    "iversion": (1 << 23, None),
    "strictatime": (1 << 24, 0x20),
    "lazytime": (1 << 25, None),
}
CLEARS = {
    "rw": "ro",
    "suid": "nosuid",
    "dev": "nodev",
    "exec": "noexec",
    "async": "sync",
    "nomand": "mand",
    "symfollow": "nosymfollow",
    "atime": "noatime",
    "diratime": "nodiratime",
    "loud": "silent",
    "noacl": "acl",
    "norelatime": "relatime",
    "noiversion": "iversion",
    "nostrictatime": "strictatime",
    "nolazytime": "lazytime",
}
PROPAGATION = {"unbindable": 1 << 17, "private": 1 << 18, "slave": 1 << 19, "shared": 1 << 20}
SPECIAL = ("tmpcopyup", "idmap", "ridmap", "copy-symlink", "src-nofollow")  # the last two are crun's


class Options:
    """A mount's option strings, sorted out. Masks are mount(2)'s (``flags``) and mount_setattr(2)'s (the rest)."""

    __slots__ = (
        "attr_clear",
        "attr_set",
        "bind",
        "data",
        "flags",
        "propagation",
        "rec",
        "rec_clear",
        "rec_set",
        "remount",
        "special",
        "superblock",
    )

    def __init__(self, options: list[str], path: str) -> None:
        self.flags = self.attr_set = self.attr_clear = self.rec_set = self.rec_clear = 0
        self.bind = self.rec = self.remount = False
        self.propagation: list[tuple[int, bool]] = []
        self.special: list[tuple[str, str]] = []  # options of special_mounts, each with its JSON path
        self.superblock: str | None = None
        data = []
        for i, option in enumerate(options):
            name, recursive = option, False
            if option[:1] == "r" and (option[1:] in FLAGS or option[1:] in CLEARS or option[1:] in PROPAGATION):
                name, recursive = option[1:], True
            if name in PROPAGATION:
                self.propagation.append((PROPAGATION[name], recursive))
            elif name in FLAGS or name in CLEARS:
                self._flag(name, recursive, f"{path}[{i}]")
            elif option in ("bind", "rbind"):
                self.bind, self.rec = True, option == "rbind" or self.rec
            elif option == "remount":
                self.remount = True
            elif option.split("=")[0] in SPECIAL:
                self.special.append((option, f"{path}[{i}]"))
            elif option != "defaults":
                data.append(option)
        self.data = ",".join(data)

    def _flag(self, name: str, recursive: bool, path: str) -> None:
        sets = name in FLAGS
        flag, attr = FLAGS[name if sets else CLEARS[name]]
        if recursive and attr is None:
            raise errors.SpecError(path, f"found {'r' + name!r}: the kernel has no recursive form of {name!r}")
        if attr is None:
            self.superblock = self.superblock or name
        elif attr & ATIME or name in ("relatime", "norelatime", "atime", "nostrictatime"):
            value = attr if sets else 0
            if recursive:
                self.rec_set, self.rec_clear = self.rec_set & ~ATIME | value, self.rec_clear | ATIME
            else:
                self.attr_set, self.attr_clear = self.attr_set & ~ATIME | value, self.attr_clear | ATIME
        elif recursive:
            self.rec_set, self.rec_clear = _switch(self.rec_set, self.rec_clear, attr, sets)
        else:
            self.attr_set, self.attr_clear = _switch(self.attr_set, self.attr_clear, attr, sets)
        if not recursive:
            self.flags = self.flags | flag if sets else self.flags & ~flag

    def attributes(self, target: str) -> list[Op]:
        """The operations that follow the mount itself: its attributes (binds), recursive ones, propagation."""
        ops: list[Op] = []
        if (self.bind or self.remount) and (self.attr_set or self.attr_clear):
            ops.append(("attr", target, self.attr_set, self.attr_clear, 0, 0))
        if self.rec_set or self.rec_clear:
            ops.append(("attr", target, self.rec_set, self.rec_clear, 0, 1))
        ops.extend(("attr", target, 0, 0, flag, int(recursive)) for flag, recursive in self.propagation)
        return ops


def _switch(sets: int, clears: int, bit: int, on: bool) -> tuple[int, int]:
    return (sets | bit, clears & ~bit) if on else (sets & ~bit, clears | bit)


def mount_ops(mount: dict[str, Any], path: str, bundle: str, cgroup: CgroupView, p: Plan) -> tuple[list[Op], list[Op]]:
    """``(operations, operations due after the devices are made)`` of one entry of ``$.mounts``.

    Raises SpecError or Unsupported with the JSON path of the option at fault.
    """
    target = mount["destination"]
    if target[:1] != "/":
        target = f"/{target}"  # deprecated, and to be taken as relative to the root (config.md, "Mounts")
    given = mount.get("options") or []
    options = Options(given, f"{path}.options")
    kind, source = mount.get("type") or "", mount.get("source") or ""
    mapped = mount.get("uidMappings") or mount.get("gidMappings")
    if options.remount:
        from pycontain.runtime.plan.special_mounts import remount

        return remount(path, given, options, target), []
    if not target.strip("/."):
        raise errors.SpecError(f"{path}.destination", f"found {target!r}, wanted a path below the root file system")
    if options.bind or kind in ("bind", "none"):
        options.bind = True
        if not source:
            raise errors.SpecError(f"{path}.source", "found nothing, wanted the path to bind")
        if options.superblock:
            raise errors.SpecError(
                f"{path}.options",
                f"found {options.superblock!r}: it belongs to a file system, a bind mount cannot have it",
            )
        if options.data:  # mount(2): the kernel takes no data with MS_BIND; runc, crun and mount(8) let it pass
            p.warnings.append(f"{path}.options: {options.data!r} belongs to a file system, ignored for a bind mount")
        if source[0] != "/":
            source = f"{bundle}/{source}"
        if options.special or mapped or p.shared:
            from pycontain.runtime.plan.special_mounts import bind

            return bind(mount, path, options, source, target, p), []
        return [("bind", source, target, int(options.rec)), *options.attributes(target)], []
    if not kind:
        raise errors.SpecError(f"{path}.type", "found nothing, wanted a file system type or the option bind")
    if mapped:
        raise errors.Unsupported(f"{path}.uidMappings: a file system of type {kind!r}: ids are mapped for bind mounts")
    if options.special:
        from pycontain.runtime.plan.special_mounts import mount as special_mount

        return special_mount(path, given, options, kind, source, target), []
    if kind == "cgroup":
        return cgroup.mounts(target, options), []
    late: list[Op] = []
    flags = options.flags
    if flags & 1 and target.rstrip("/") == "/dev":  # the devices are made first
        flags &= ~1
        late.append(("attr", target, ATTR_RDONLY, 0, 0, 0))
    strict = int(kind in ("proc", "sysfs"))
    return [("mount", source or kind, target, kind, flags, options.data, strict), *options.attributes(target)], late


class CgroupView:
    """What the container sees at its cgroup mount. ``hierarchies``: the host's (``Host.cgroups``)."""

    __slots__ = ("hierarchies", "namespaced", "path")

    def __init__(self, hierarchies: list[dict[str, Any]], path: str, namespaced: bool) -> None:
        self.hierarchies = hierarchies
        self.path = path
        self.namespaced = namespaced

    def mounts(self, target: str, options: Options) -> list[Op]:
        if all(hierarchy["unified"] for hierarchy in self.hierarchies):
            # A bind takes no flags of mount(2): without this, "ro" would be lost (CVE-2023-25809).
            given = [] if self.namespaced else [("attr", target, options.attr_set, options.attr_clear, 0, 0)]
            return [self._one(self.hierarchies[0], target, options), *given, *options.attributes(target)]
        # A tmpfs with one directory a hierarchy. Read-only last, when its directories are there.
        ops: list[Op] = [("mount", "tmpfs", target, "tmpfs", options.flags & ~1, "mode=755", 1)]
        for hierarchy in self.hierarchies:
            name = hierarchy["mount"].rpartition("/")[2]
            ops.append(self._one(hierarchy, f"{target}/{name}", options))
            if not self.namespaced:
                ops.append(("attr", f"{target}/{name}", options.attr_set, options.attr_clear, 0, 0))
            if len(hierarchy["controllers"]) > 1:
                aliases = (alias for alias in hierarchy["controllers"] if alias != name)
                ops.extend(("symlink", name, f"{target}/{alias}") for alias in aliases)
        if options.flags & 1:
            ops.append(("attr", target, ATTR_RDONLY, 0, 0, 0))
        return [*ops, *options.attributes(target)]

    def _one(self, hierarchy: dict[str, Any], target: str, options: Options) -> Op:
        if not self.namespaced:
            return ("bind", hierarchy["mount"] + self.path, target, 0)
        if hierarchy["unified"]:
            return ("mount", "cgroup", target, "cgroup2", options.flags, "", 1)
        which = ",".join(hierarchy["controllers"]) or f"name={hierarchy['name']}"
        return ("mount", "cgroup", target, "cgroup", options.flags, which, 1)


DEFAULT_DEVICES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
_LINKS = (
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
)
_TYPES = {"c": 0o020000, "u": 0o020000, "b": 0o060000, "p": 0o010000}


def device_ops(devices: list[dict[str, Any]], bind: bool) -> list[Op]:
    """The default devices of config-linux.md, then ``$.linux.devices``; bind mounts where mknod(2) is not allowed.

    A default device takes the place of what the image has there; one that is asked for must not (config-linux.md).
    """
    ops: list[Op] = []
    asked = {d["path"] for d in devices}
    for name, major, minor in DEFAULT_DEVICES:
        path = f"/dev/{name}"
        if path in asked:
            continue
        if bind:
            ops.append(("device", path, 0o020000, _dev(major, minor), 1))
        else:
            ops.append(("mknod", path, 0o020666, _dev(major, minor), 0, 0, 0))
    for i, device in enumerate(devices):
        ops.append(_device(device, f"$.linux.devices[{i}]", bind))
    ops.extend(("symlink", target, f"/dev/{name}") for target, name in _LINKS)
    if "/dev/ptmx" not in asked:
        ops.append(("symlink", "pts/ptmx", "/dev/ptmx"))
    return ops


def _device(device: dict[str, Any], where: str, bind: bool) -> Op:
    path, kind = device["path"], device["type"]
    if kind not in _TYPES:
        raise errors.SpecError(f"{where}.type", f"found {kind!r}, wanted c, b, u or p")
    if path[:1] != "/":
        raise errors.SpecError(f"{where}.path", f"found {path!r}, wanted an absolute path")
    mode, uid, gid = device.get("fileMode"), device.get("uid") or 0, device.get("gid") or 0
    for name, value in (("uid", uid), ("gid", gid)):
        if value > 0xFFFFFFFE:
            raise errors.SpecError(f"{where}.{name}", f"found {value}, wanted at most 4294967294")
    number = 0
    if kind != "p":
        if "major" not in device or "minor" not in device:
            raise errors.SpecError(f"{where}.major", "found nothing, wanted the device's major and minor number")
        for name, most in (("major", 0xFFF), ("minor", 0xFFFFF)):  # the kernel keeps 12 and 20 bits of them
            if not 0 <= device[name] <= most:
                raise errors.SpecError(f"{where}.{name}", f"found {device[name]}, wanted 0 to {most}")
        number = _dev(device["major"], device["minor"])
        if bind:
            if uid or gid:
                key = "uid" if uid else "gid"
                raise errors.Unsupported(
                    f"{where}.{key}: in a user namespace the device is the host's node, with its owner"
                )
            return ("device", path, _TYPES[kind] | (mode or 0) & 0o7777, number, int(mode is None))
    return ("mknod", path, _TYPES[kind] | (0o666 if mode is None else mode) & 0o7777, number, uid, gid, 1)


def _dev(major: int, minor: int) -> int:
    """makedev(3) as the C library encodes a device number: minor bits below and above the major number's."""
    return major << 8 | minor & 0xFF | (minor & ~0xFF) << 12
