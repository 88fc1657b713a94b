"""Facts about the host, as plain data: what ``plan`` may know of the machine it plans for.

``probe()`` costs nothing; each fact is read when it is first asked for, and kept. ``Host.from_dict`` makes one
from given facts (in tests, or the guest's for a microVM): such a one never looks at this machine. Start path:
imports the module of hierarchies alone.
"""

from __future__ import annotations

import posix as os

from pycontain.runtime import errors
from pycontain.runtime.kernel import hierarchies
from pycontain.runtime.kernel.files import read
from pycontain.runtime.paths import exists

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Host:
    """The facts. Asking for one that ``from_dict`` was not given is an AttributeError.

    ``release``, ``arch``: as uname(2) has them; ``kernel``: (major, minor);
    ``cgroup``: ``v1``, ``v2`` or ``hybrid``; ``cgroups``: each hierarchy as ``{mount, controllers, name, unified}``;
    ``own_cgroup``: /proc/self/cgroup as controllers (``memory``, ``name=systemd``, ``""`` for cgroup2) to path;
    ``namespaces``: the kinds that the kernel has (``cgroup ipc mnt net pid time user uts``);
    ``filesystems``: /proc/filesystems (``overlay``, ``mqueue``, ... as far as loaded);
    ``last_cap``: the highest capability number; ``bounding``: this process's bounding set, as a mask;
    ``seccomp``: whether filters are possible; ``apparmor``, ``selinux``: whether they are on;
    ``euid``: effective user; ``in_userns``: whether this is another than the first user namespace.
    """

    __slots__ = (
        "_probes",
        "apparmor",
        "arch",
        "bounding",
        "cgroup",
        "cgroups",
        "euid",
        "filesystems",
        "in_userns",
        "kernel",
        "last_cap",
        "namespaces",
        "own_cgroup",
        "release",
        "seccomp",
        "selinux",
    )

    if TYPE_CHECKING:
        _probes: dict[str, Callable[[], Any]]
        apparmor: bool
        arch: str
        bounding: int
        cgroup: str
        cgroups: list[dict[str, Any]]
        euid: int
        filesystems: list[str]
        in_userns: bool
        kernel: tuple[int, int]
        last_cap: int
        namespaces: list[str]
        own_cgroup: dict[str, str]
        release: str
        seccomp: bool
        selinux: bool

    def __init__(self, probes: dict[str, Callable[[], Any]]) -> None:
        self._probes = probes

    def __getattr__(self, name: str) -> Any:
        # Only called for a slot that is still empty.
        probe = self._probes.get(name)
        if probe is None:
            raise AttributeError(f"this Host was not given the fact {name!r}")
        try:
            value = probe()
        except OSError as error:
            raise errors.KernelError(
                f"read {error.filename}, for the fact {name!r}", error.errno or errors.EINVAL
            ) from error
        setattr(self, name, value)
        return value

    @classmethod
    def from_dict(cls, facts: dict[str, Any]) -> Host:
        """A Host of these facts only (JSON shapes: ``kernel`` may be a list). ValueError for an unknown fact."""
        host = cls({})
        for name, value in facts.items():
            if name not in _PROBES:
                raise ValueError(f"no such fact: {name!r}")
            setattr(host, name, tuple(value) if name == "kernel" else value)
        return host

    def to_dict(self) -> dict[str, Any]:
        """Every fact, read if need be, in a form that JSON can hold and ``from_dict`` takes."""
        facts = {name: getattr(self, name) for name in self.__slots__ if name != "_probes"}
        facts["kernel"] = list(self.kernel)
        return facts


def probe(found: list[hierarchies.Hierarchy] | None = None) -> Host:
    """This machine, as the calling process sees it. ``found``: what ``hierarchies.hierarchies()`` has just said."""
    host = Host(_PROBES)
    if found is not None:
        host.cgroups = _as_dicts(found)
        host.cgroup = hierarchies.mode_of(found)
    return host


_FIRST_USER_NAMESPACE = "user:[4026531837]"  # on every kernel that has them


def privileged() -> bool:
    """Whether we are the host's root: no other user, and not only root of a user namespace that somebody made."""
    return os.geteuid() == 0 and (os.readlink("/proc/self/ns/user") == _FIRST_USER_NAMESPACE or not _in_userns())


def parse_release(release: str) -> tuple[int, int]:
    """``6.18.44-fc`` → (6, 18); ``6.1-rc2`` → (6, 1); (0, 0) for what starts with no number."""
    numbers = []
    for part in release.split(".")[:2]:
        digits = ""
        for letter in part:
            if not letter.isdigit():
                break
            digits += letter
        numbers.append(int(digits or 0))
    return (numbers[0], numbers[1] if len(numbers) > 1 else 0)


def _status(field: str) -> str | None:
    for line in read("/proc/self/status").splitlines():
        if line.startswith(field + ":"):
            return line.partition(":")[2].strip()
    return None


def _as_dicts(found: list[hierarchies.Hierarchy]) -> list[dict[str, Any]]:
    return [
        {"mount": item.mount, "controllers": list(item.controllers), "name": item.name, "unified": item.unified}
        for item in found
    ]


def _own_cgroup() -> dict[str, str]:
    rows = (line.split(":", 2) for line in read("/proc/self/cgroup").splitlines())
    return {controllers: path for _, controllers, path in rows}


def _namespaces() -> list[str]:
    return sorted(name for name in os.listdir("/proc/self/ns") if not name.endswith("_for_children"))


def _apparmor() -> bool:
    try:
        return read("/sys/module/apparmor/parameters/enabled").strip() == "Y"
    except FileNotFoundError:
        return False


def _in_userns() -> bool:
    # The first user namespace maps every id to itself, in one line.
    return read("/proc/self/uid_map").split() != ["0", "0", "4294967295"]


_PROBES: dict[str, Callable[[], Any]] = {
    "apparmor": _apparmor,
    "arch": lambda: os.uname().machine,
    "bounding": lambda: int(_status("CapBnd") or "0", 16),
    "cgroup": hierarchies.detect,
    "cgroups": lambda: _as_dicts(hierarchies.hierarchies()),
    "euid": os.geteuid,
    "filesystems": lambda: [line.split()[-1] for line in read("/proc/filesystems").splitlines()],
    "in_userns": _in_userns,
    "kernel": lambda: parse_release(os.uname().release),
    "last_cap": lambda: int(read("/proc/sys/kernel/cap_last_cap")),
    "namespaces": _namespaces,
    "own_cgroup": _own_cgroup,
    "release": lambda: os.uname().release,
    "seccomp": lambda: _status("Seccomp") is not None,
    "selinux": lambda: exists("/sys/fs/selinux/enforce"),
}
