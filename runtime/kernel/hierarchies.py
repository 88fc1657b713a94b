"""Which cgroup hierarchies this host has (cgroups(7)), and the directories of a cgroup in them."""

from __future__ import annotations

import posix as os

from pycontain.runtime import errors
from pycontain.runtime.kernel.files import read
from pycontain.runtime.paths import is_directory, status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_PARENT = "/pycontain"
_V1_CONTROLLERS = frozenset(
    ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids",
     "net_cls", "net_prio", "perf_event", "hugetlb", "rdma", "misc")
)  # fmt: skip
_REMOVE_SECONDS = 2.0


class Hierarchy:
    """One mounted cgroup hierarchy.

    ``mount`` is its directory; ``controllers`` the v1 controllers on it (none on cgroup2 and on named
    hierarchies); ``name`` a named hierarchy's name (``systemd``) or ``""``; ``unified`` says cgroup2; ``device``
    (``0:28``) is the same for all mounts of one hierarchy; ``whole`` says that its root is mounted, not a part of it.
    """

    __slots__ = ("controllers", "device", "mount", "name", "unified", "whole")

    def __init__(
        self,
        mount: str,
        controllers: tuple[str, ...] = (),
        name: str = "",
        unified: bool = False,
        device: str = "",
        whole: bool = True,
    ) -> None:
        self.mount = mount
        self.controllers = controllers
        self.name = name
        self.unified = unified
        self.device = device
        self.whole = whole

    def visible(self) -> bool:
        """Whether the mount can be reached: another file system may be mounted over it (or over a parent)."""
        try:
            device = status(self.mount)[1]
        except OSError:
            return False
        return f"{os.major(device)}:{os.minor(device)}" == self.device


def parse_mountinfo(text: str) -> list[Hierarchy]:
    """The cgroup mounts in the text of /proc/self/mountinfo (proc_pid_mountinfo(5)), in its order."""
    found = []
    for line in text.splitlines():
        if " - cgroup" not in line:
            continue
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        kind, _, options = right.split(" ", 2)
        if kind not in ("cgroup", "cgroup2"):
            continue
        names = options.split(",")
        name = next((option[5:] for option in names if option.startswith("name=")), "")
        controllers = tuple(option for option in names if option in _V1_CONTROLLERS)
        mount = _unescape(fields[4])
        found.append(Hierarchy(mount, controllers, name, kind == "cgroup2", fields[2], fields[3] == "/"))
    return found


def distinct(mounts: list[Hierarchy]) -> list[Hierarchy]:
    """Each hierarchy once; of several mounts the first that shows its root, else the first."""
    found: dict[str, Hierarchy] = {}
    for item in mounts:
        before = found.get(item.device)
        if before is None or (item.whole and not before.whole):
            found[item.device] = item
    return list(found.values())


def _unescape(field: str) -> str:
    r"""mountinfo writes blank, tab, newline and backslash as ``\040`` and so on."""
    if "\\" not in field:
        return field
    first, *rest = field.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


def hierarchies() -> list[Hierarchy]:
    """The hierarchies that are mounted and reachable here, in the order of their mounts. ~0.1 ms, and less again."""
    text = read("/proc/self/mountinfo")
    if text not in _seen:
        _seen.clear()
        _seen[text] = distinct([item for item in parse_mountinfo(text) if item.visible()])
    return _seen[text]


_seen: dict[str, list[Hierarchy]] = {}  # one mount table, and what it says


def mode_of(found: list[Hierarchy]) -> str:
    """``v1``, ``v2`` or ``hybrid``; Unsupported where no cgroup file system is mounted."""
    unified = any(hierarchy.unified for hierarchy in found)
    controllers = any(hierarchy.controllers for hierarchy in found)
    if unified:
        return "hybrid" if controllers else "v2"
    if controllers:
        return "v1"
    raise errors.Unsupported(
        "no cgroup hierarchy is mounted on this host", hint="mount -t cgroup2 cgroup2 /sys/fs/cgroup"
    )


def detect() -> str:
    """``v1``, ``v2`` or ``hybrid``, from /proc/self/mountinfo."""
    return mode_of(hierarchies())


def absolute(path: str) -> str:
    """The normal form of a ``cgroupsPath``; a relative one is below ``/pycontain``. Raises SpecError."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts:
        raise errors.SpecError("$.linux.cgroupsPath", f"{path!r} names no cgroup below the root of the hierarchy")
    if ".." in parts or "\0" in path or "\n" in path:
        raise errors.SpecError("$.linux.cgroupsPath", f"{path!r} must not hold '..', a newline or NUL")
    if not path.isascii() and not path.isprintable():
        raise errors.SpecError("$.linux.cgroupsPath", f"{path!r} cannot be the name of a file")
    name = "/" + "/".join(parts)
    return name if path.startswith("/") else DEFAULT_PARENT + name


def remove_directories(directories: list[str]) -> None:
    """Remove a cgroup's directories, and what the container made below them; what is not there is no error.

    EBUSY right after the last process's death passes by itself (the kernel lets go of the dying task a
    moment later), so it is retried for up to 2 s; then KernelError, naming the processes left.
    """
    left = try_remove(directories)
    if left:
        number, directory = left
        pids = ", ".join([str(pid) for level in tree(directory) for pid in procs(level)][:5])
        hint = f"end the processes that are left in it: {pids}" if pids else None
        raise errors.KernelError(f"remove cgroup {directory}", number, hint=hint)


def try_remove(directories: list[str]) -> tuple[int, str] | None:
    """``remove_directories`` without its words: what the kernel said, and of which directory; None where all went."""
    deadline = 0.0
    pause = 0.0005
    while True:
        left: list[str] = []
        failed: tuple[int, str] | None = None
        for directory in directories:
            number = _rmdir_tree(directory)
            if number:
                left.append(directory)
                failed = failed or (number, directory)
        if not failed or failed[0] != errors.EBUSY:
            return failed
        from time import monotonic, sleep  # 0.1 ms, most of it to find the time zone; most often nobody waits

        deadline = deadline or monotonic() + _REMOVE_SECONDS
        if monotonic() > deadline:
            return failed
        directories = left
        sleep(pause)
        pause = min(pause * 2, 0.1)


def tree(directory: str) -> Iterator[str]:
    """``directory`` and every cgroup below it, parents first; nothing if it is gone."""
    if not is_directory(directory):
        return
    yield directory
    try:
        with os.scandir(directory) as entries:
            children = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return
    for child in children:
        yield from tree(child)


def procs(directory: str) -> list[int]:
    """The processes of one cgroup as this pid namespace sees them; [] if it is gone or threaded."""
    try:
        text = read(f"{directory}/cgroup.procs")
    except OSError as error:
        # A cgroup removed meanwhile: ENOENT or ENODEV. A threaded one: EOPNOTSUPP, its domain lists its processes.
        if error.errno not in (errors.ENOENT, errors.ENODEV, errors.EOPNOTSUPP):
            raise errors.KernelError(f"read {directory}/cgroup.procs", error.errno or errors.EINVAL) from error
        return []
    return [pid for pid in map(int, text.split()) if pid]


def _rmdir_tree(directory: str) -> int:
    """Remove ``directory``, and the cgroups below it if it has any; 0, or the errno that stopped it."""
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return 0
    except OSError as error:
        if error.errno not in (errors.EBUSY, errors.ENOTEMPTY):
            return error.errno or errors.EINVAL
    else:
        return 0
    number = 0
    for level in reversed(list(tree(directory))):
        try:
            os.rmdir(level)
        except FileNotFoundError:
            pass
        except OSError as error:
            number = error.errno or errors.EINVAL
    return errors.EBUSY if number == errors.ENOTEMPTY else number
