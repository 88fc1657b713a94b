"""Cgroups: what both backends share. Which hierarchies this host has is in :mod:`hierarchies`.

A cgroup is named by one absolute path, such as ``/pycontain/web``, which is the same in every hierarchy and
starts at the hierarchy's mount, never at the cgroup of the calling process. ``open_cgroup`` gives the backend
that fits: :mod:`cgroup_v1` (also for hybrid hosts, where the controllers are on v1 and a cgroup2 mount stands
beside them) or :mod:`cgroup_v2`. What differs between the two is in their files, and only there. See
``docs/design/cgroups.md``, cgroups(7).
"""

from __future__ import annotations

import posix as os

from pycontain.runtime import errors
from pycontain.runtime.kernel.files import read, write
from pycontain.runtime.kernel.hierarchies import (
    Hierarchy,
    absolute,
    hierarchies,
    mode_of,
    procs,
    remove_directories,
    tree,
    try_remove,
)
from pycontain.runtime.paths import directory_of, is_directory, make_directories

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Setting = tuple[str, str, str]  # (JSON path below $.linux.resources, file, value)

RESOURCES = "$.linux.resources."

_KILL_SECONDS = 10.0
_DYING_SECONDS = 0.02
FREEZE_SECONDS = 5.0


def open_cgroup(path: str, found: list[Hierarchy] | None = None) -> Cgroup:
    """The cgroup ``path`` (absolute, or relative to ``/pycontain``) in this host's hierarchies; creates nothing.

    ``found``: what ``hierarchies()`` said a moment ago, for a caller that asks more than once.

    Raises SpecError for a name that leaves its place, Unsupported where the host has no cgroups.
    """
    found = hierarchies() if found is None else found
    name = absolute(path)
    if mode_of(found) == "v2":
        from pycontain.runtime.kernel.cgroup_v2 import CgroupV2

        return CgroupV2(name, found)
    from pycontain.runtime.kernel.cgroup_v1 import CgroupV1

    return CgroupV1(name, found)


class Cgroup:
    """One container's cgroup in every hierarchy of the host. Subclassed by the two backends.

    ``path`` is its name; ``directories`` are its directories, one per hierarchy; ``unified`` is the one on
    cgroup2, or None. Resources are OCI ``linux.resources`` (config-linux.md), validated before.
    """

    __slots__ = ("directories", "path", "unified")

    def __init__(self, path: str, found: list[Hierarchy]) -> None:
        self.path = path
        self.directories = [hierarchy.mount + path for hierarchy in found]
        self.unified = next((hierarchy.mount + path for hierarchy in found if hierarchy.unified), None)

    # What the backends implement.

    def settings(self, resources: dict[str, Any]) -> list[Setting]:
        """What ``apply`` writes, in its order, but for the device rules.

        Raises Unsupported (JSON path) for what this host or backend cannot do, SpecError for values that
        contradict each other.
        """
        raise NotImplementedError

    def join_fds(self) -> tuple[str, Any]:
        """``("v1", [fd, ...])``: O_WRONLY on ``tasks`` of each hierarchy, to which a single-threaded child writes
        ``0``; or ``("v2", fd)``: the directory for clone3(CLONE_INTO_CGROUP). The caller closes them.

        The cgroup2 of a hybrid host is not in the list: a write to its cgroup.procs waits for an RCU grace
        period (7 ms on an idle machine; ``tasks`` of v1: 0.04 ms). ``clone_fd`` joins it for nothing.
        """
        raise NotImplementedError

    def freeze(self, frozen: bool) -> None:
        """Stop (or let go on) every process, and wait until that is so. KernelError after 5 s, thawed again."""
        raise NotImplementedError

    def stats(self) -> dict[str, Any]:
        """What the kernel counts; a section is left out where its controller is.

        ``memory`` (bytes): ``usage``, ``limit`` (None: none), ``peak``, ``swap``, ``file``, ``inactive_file``,
        ``anon``;
        ``cpu`` (nanoseconds): ``usage``, ``user``, ``system``, ``throttled``, and ``periods``, ``throttled_periods``;
        ``pids``: ``current``, ``limit``; ``io`` (bytes): ``read``, ``written``; ``oom_kills``: a count.
        """
        raise NotImplementedError

    def oom_kills(self) -> int:
        """How many processes of this cgroup and those below it the kernel killed for want of memory."""
        raise NotImplementedError

    def events(self) -> Any:
        """The module of what ``events`` reads: ``statistics``, ``oom_fd`` and ``oom_seen``."""
        raise NotImplementedError

    def device_program(self, resources: dict[str, Any]) -> bytes | None:
        """The eBPF program for ``resources.devices``, to be attached to the cgroup; None where files do it."""
        raise NotImplementedError

    def _prepare(self) -> None:
        """After the directories are made: give the cgroup what it needs before a process can enter."""
        raise NotImplementedError

    def _freeze_soon(self, frozen: bool) -> None:
        """Ask for the freeze (or thaw) without waiting; nothing where the host has no freezer."""
        raise NotImplementedError

    def _process_directory(self) -> str:
        """The directory whose cgroup.procs counts as the list of the container's processes."""
        raise NotImplementedError

    # What they share.

    def apply(self, resources: dict[str, Any]) -> None:
        """Write ``resources``; also for a change later. What is left out stays as it is.

        Raises what ``settings`` raises, and KernelError (JSON path, value, file, errno) for what the kernel refuses.
        Nothing is undone on failure: the caller removes the cgroup.
        """
        write_settings(self.settings(resources))

    def writable(self, file: str, text: str) -> list[str]:
        """What to write to ``file``, a line at a time, to have it say ``text`` again."""
        return text.splitlines()

    def entered(self, pid: int) -> None:
        """The container's first process is in it. For whoever has to know: a scope of systemd, no cgroup at all."""

    def exists(self) -> bool:
        """Whether a directory of this cgroup is there in any hierarchy."""
        return any(is_directory(directory) for directory in self.directories)

    def create(self) -> None:
        """Make the cgroup, fresh, in every hierarchy; missing parents too.

        An empty cgroup of that name is a leftover, whose limits nobody asked for now: it is made anew. One
        that holds processes is a Conflict. On any failure what was made is removed again.
        """
        made: list[str] = []
        try:
            for directory in self.directories:
                self._make(directory)
                made.append(directory)
            self._prepare()
        except OSError as error:
            try_remove(made)
            tried = f"create cgroup {error.filename or self.path}"
            raise errors.KernelError(tried, error.errno or errors.EINVAL, hint=_create_hint(error.errno)) from error
        except errors.Conflict:
            try_remove(made)
            raise

    def _make(self, directory: str) -> None:
        try:
            os.mkdir(directory, 0o755)
        except FileNotFoundError:
            make_directories(directory_of(directory), 0o755)
            os.mkdir(directory, 0o755)
        except FileExistsError:
            pids = [pid for level in tree(directory) for pid in procs(level)]
            if pids:
                shown = ", ".join(map(str, pids[:5])) + (", ..." if len(pids) > 5 else "")
                raise errors.Conflict(
                    f"create cgroup {directory}: it is there already and holds processes ({shown})",
                    hint="choose another $.linux.cgroupsPath, or end these processes",
                ) from None
            try_remove([directory])
            os.mkdir(directory, 0o755)

    def clone_fd(self) -> int | None:
        """The cgroup2 directory for clone3(CLONE_INTO_CGROUP), on v2 and hybrid hosts; None on v1."""
        if self.unified is None:
            return None
        return self._open(self.unified, os.O_RDONLY | os.O_DIRECTORY)

    def pids(self) -> list[int]:
        """The processes in this cgroup and in those that the container made below it; [] if it is gone."""
        return [pid for level in tree(self._process_directory()) for pid in procs(level)]

    def kill_all(self, timeout: float = _KILL_SECONDS) -> None:
        """SIGKILL everything in the cgroup and wait until it is empty.

        By cgroup.kill (Linux 5.14) where there is a cgroup2; by freezing, killing and thawing else, which a
        fork bomb cannot outrun either. The v1 freezer holds a process even against SIGKILL until it is thawed,
        so every round ends with a thaw. KernelError (EBUSY) if something is left after ``timeout`` seconds.
        """
        from time import monotonic, sleep

        deadline = monotonic() + timeout
        pause = 0.0005
        kill_file = self.unified is not None
        while self.pids():
            if kill_file:
                kill_file = self._kill_by_file()
            if not kill_file:
                self._freeze_soon(True)
                for pid in self.pids():
                    try:
                        os.kill(pid, 9)
                    except ProcessLookupError:
                        pass
            self._freeze_soon(False)
            if not self.pids():
                return
            if monotonic() > deadline:
                left = ", ".join(map(str, self.pids()[:5]))
                raise errors.KernelError(f"kill the processes of cgroup {self.path}: {left} still there", errors.EBUSY)
            sleep(pause)
            pause = min(pause * 2, 0.05)
            # On a hybrid host a process may sit in the v1 hierarchies alone: then the file does not reach it. What it
            # did reach is listed there for a moment longer.
            dying = monotonic() < deadline - timeout + _DYING_SECONDS
            kill_file = kill_file and (dying or self._process_directory() == self.unified)

    def _kill_by_file(self) -> bool:
        try:
            write(f"{self.unified}/cgroup.kill", "1")
        except OSError:
            return False
        return True

    def remove(self) -> None:
        """Remove the cgroup and what the container made below it; what is not there is no error. Raises KernelError."""
        remove_directories(self.directories)

    def _open(self, path: str, flags: int) -> int:
        try:
            return os.open(path, flags | os.O_CLOEXEC)
        except OSError as error:
            raise errors.KernelError(f"open {path} of cgroup {self.path}", error.errno or errors.EINVAL) from error


def write_settings(settings: list[Setting]) -> None:
    """Write each value to its file.

    Some files bound each other (v1 limit and memory+swap, quota and burst, shares and idle), so the order that
    works depends on the values before: what the kernel refuses with EINVAL or EBUSY is tried again after the
    others, as long as that gets further.
    """
    while settings:
        refused: list[Setting] = []
        first: OSError | None = None
        for setting in settings:
            try:
                write(setting[1], setting[2])
            except OSError as error:
                if error.errno not in (errors.EINVAL, errors.EBUSY):
                    raise _refusal(setting, error) from error
                refused.append(setting)
                first = first or error
        if first is not None and len(refused) == len(settings):
            raise _refusal(refused[0], first) from first
        settings = refused


def _refusal(setting: Setting, error: OSError) -> errors.KernelError | errors.Unsupported:
    where, file, value = setting
    if error.errno == errors.ENOENT:
        return errors.Unsupported(f"{RESOURCES}{where}: this kernel has no {file.rpartition('/')[2]} ({file})")
    return errors.KernelError(f"{RESOURCES}{where}: write {value!r} to {file}", error.errno or errors.EINVAL)


def check(resources: dict[str, Any]) -> None:
    """What is the same on both backends: values that the kernel would bend.

    cpu.shares out of range are clamped by the kernel without a word; memory+swap below memory is EINVAL with
    no word about which. Raises Unsupported or SpecError.
    """
    memory = resources.get("memory") or {}
    if (memory.get("kernel") or 0) > 0:
        # v1 still has the file: it takes any value and limits nothing.
        raise errors.Unsupported(f"{RESOURCES}memory.kernel: not possible, Linux 5.16 dropped limits of kernel memory")
    if memory.get("useHierarchy") is False:
        raise errors.Unsupported(
            f"{RESOURCES}memory.useHierarchy: false is not possible, Linux 5.11 made it always true"
        )
    for field in ("limit", "swap", "reservation", "kernelTCP"):
        if (memory.get(field) or 0) >= 1 << 63:
            # The kernel would take the lower 64 bits: 2^64 bytes is a limit of nought.
            raise errors.SpecError(f"{RESOURCES}memory.{field}", f"{memory[field]} is more than 2^63-1")
        if (memory.get(field) or 0) < -1:
            raise errors.SpecError(f"{RESOURCES}memory.{field}", f"{memory[field]} is less than -1, no limit")
    limit, swap = memory.get("limit") or 0, memory.get("swap") or 0
    if 0 < swap < limit:
        raise errors.SpecError(
            f"{RESOURCES}memory.swap", f"{swap} is less than memory.limit {limit}, but it is the sum of memory and swap"
        )
    shares = (resources.get("cpu") or {}).get("shares")
    if shares and not 2 <= shares <= 262144:
        raise errors.SpecError(f"{RESOURCES}cpu.shares", f"{shares} is not between 2 and 262144")


# Sections whose settings are in modules of their own, as few containers have any.
RARE = ("blockIO", "hugepageLimits", "network", "rdma", "unified")


def asked(value: Any) -> bool:
    """Whether a section says anything: engines write empty objects and noughts for what nobody set."""
    if isinstance(value, dict):
        return any(asked(item) for item in value.values())
    return bool(value)


def any_rare(resources: dict[str, Any]) -> bool:
    """Whether anything of ``RARE`` is asked for."""
    return any(asked(resources.get(section)) for section in RARE)


def host_has_swap() -> bool:
    """Whether any swap area is in use (/proc/swaps holds more than its heading)."""
    return len(read("/proc/swaps").splitlines()) > 1


def _create_hint(number: int | None) -> str | None:
    if number in (errors.EPERM, errors.EACCES, errors.EROFS):
        return "run as root, on a host whose cgroup file system is mounted read-write"
    return None
