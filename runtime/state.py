"""The state of containers on disk: one directory each, a table of transitions, a lock, atomic writes.

``<root>/<id>/`` (0700) holds state.json (version 1), config.json (the specification as it was at create) and,
between create and start, control.sock. The lock is flock(2) on the directory itself.
"""

from __future__ import annotations

import posix as os
import sys

from pycontain.runtime import errors
from pycontain.runtime.jsontext import dump, parse
from pycontain.runtime.paths import make_directories, read_bounded

if "_launcher" in sys.builtin_module_names:  # to import fcntl takes 0.05 ms
    from _launcher import lock as flock
else:
    from fcntl import flock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = 1
LOCK_EX, LOCK_NB = 2, 4  # flock(2)

# verb → (states it is taken in, state after it); runtime.md, "State" and "Lifecycle".
TRANSITIONS = {
    "start": (("created",), "running"),
    "pause": (("running",), "paused"),
    "resume": (("paused",), "running"),
    "exec": (("running", "created"), None),
    "kill": (("created", "running", "paused"), None),
    "checkpoint": (("running",), None),
    "update": (("created", "running", "paused"), None),
    "watch": (("created", "running", "paused"), None),
    "delete": (("stopped", "created"), None),
}


def check_id(id: str) -> str:
    """``id`` itself, if it can name a directory. Raises PycontainError."""
    letters = id.replace("_", "a").replace("-", "a").replace("+", "a").replace(".", "a")
    if id in (".", "..") or len(id) > 200 or not (letters.isalnum() and id.isascii()):
        raise errors.PycontainError(f"invalid container id {id!r}: wanted letters, digits and _ + - . only")
    return id


def start_time(pid: int) -> int | None:
    """Clock ticks after boot at which ``pid`` began (proc_pid_stat(5), field 22); None if it is gone or a zombie."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        text = os.read(fd, 4096)
    except ProcessLookupError:
        return None
    finally:
        os.close(fd)
    fields = text[text.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _locked(fd: int, seconds: float) -> bool:
    from time import monotonic, sleep

    deadline = monotonic() + seconds
    while True:
        try:
            flock(fd, LOCK_EX | LOCK_NB)
            return True
        except BlockingIOError:
            if monotonic() >= deadline:
                return False
            sleep(0.005)


_boot_id: list[str] = []


def boot_id() -> str:
    """This boot's name: a pid and a start time mean nothing in another."""
    if not _boot_id:
        _boot_id.append(read_bounded("/proc/sys/kernel/random/boot_id", 64).decode().strip())
    return _boot_id[0]


class Container:
    """One container's directory, locked while it is open (use it with ``with``)."""

    def __init__(self, root: str, id: str, fd: int, fields: dict[str, Any]) -> None:
        self.root = root
        self.id = id
        self.directory = f"{root}/{id}"
        self.fields = fields
        self._fd = fd

    @classmethod
    def make(cls, root: str, id: str, fields: dict[str, Any], config: bytes) -> Container:
        """A new directory in state "creating". Raises Conflict if the id is taken."""
        check_id(id)
        try:
            make_directories(root, 0o700)
            os.mkdir(f"{root}/{id}", 0o700)
        except FileExistsError:
            raise errors.Conflict(
                f"cannot create container {id}: a container with that id exists",
                hint=f"pycontain-runtime delete {id}, or choose another id",
            ) from None
        except OSError as error:
            raise errors.KernelError(f"cannot make the state directory {root}/{id}", error.errno or 0) from None
        fd = os.open(f"{root}/{id}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        flock(fd, LOCK_EX)
        container = cls(root, id, fd, {"version": VERSION, "id": id, "status": "creating", "pid": 0, **fields})
        container.write_config(config)
        container.save()
        return container

    @classmethod
    def open(cls, root: str, id: str, *, wait: float | None = None) -> Container:
        """An existing container, locked. Raises NotFound; PycontainError for a format of another version.

        Raises Conflict where somebody else has the lock for ``wait`` seconds.
        """
        check_id(id)
        path = f"{root}/{id}/state.json"
        fields: dict[str, Any] = {}
        while True:
            try:
                fd = os.open(f"{root}/{id}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                raise errors.NotFound(f"container {id} does not exist") from None
            if wait is None:
                flock(fd, LOCK_EX)
            elif not _locked(fd, wait):
                os.close(fd)
                raise errors.Conflict(f"cannot look at container {id}: somebody else is at work on it")
            try:
                fields = parse(read_bounded(path, directory=fd), path)
                break
            except errors.NotFound:
                if os.fstat(fd).st_nlink:
                    # Killed between mkdir and the first write: nothing else was made yet.
                    fields = {"version": VERSION, "id": id, "status": "creating", "pid": 0}
                    break
                os.close(fd)  # it was deleted while we waited
            except errors.PycontainError:
                os.close(fd)
                raise
        if fields.get("version") != VERSION:
            os.close(fd)
            raise errors.PycontainError(
                f"cannot read {path}: found format version {fields.get('version')}, wanted {VERSION}"
            )
        return cls(root, id, fd, fields)

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def save(self) -> None:
        self._write("state.json", dump(self.fields).encode())

    def write_config(self, data: bytes) -> None:
        self._write("config.json", data)

    def _write(self, name: str, data: bytes) -> None:
        """Atomic for whoever reads. No fsync: the directory lives on a tmpfs, and a crash of the host ends it all."""
        temporary = f"{self.directory}/.{name}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.write(fd, data)
        os.close(fd)
        os.rename(temporary, f"{self.directory}/{name}")

    def remove(self) -> None:
        for name in os.listdir(self.directory):
            path = f"{self.directory}/{name}"
            try:
                os.unlink(path)
            except IsADirectoryError:  # "notify", of sd_notify(3)
                for inner in os.listdir(path):
                    os.unlink(f"{path}/{inner}")
                os.rmdir(path)
        os.rmdir(self.directory)
        self.close()

    @property
    def pid(self) -> int:
        pid: int = self.fields["pid"]
        return pid

    def set_pid(self, pid: int) -> None:
        self.fields["pid"] = pid
        self.fields["start_time"] = start_time(pid)
        self.fields["boot_id"] = boot_id()

    def alive(self) -> bool:
        """The very process that was started, not another with its number."""
        if not self.pid or self.fields.get("boot_id") != boot_id():
            return False
        return start_time(self.pid) == self.fields.get("start_time") is not None

    @property
    def status(self) -> str:
        status: str = self.fields["status"]
        if status == "creating" or self.alive():
            return status
        return "stopped"

    def require(self, verb: str) -> None:
        """Raises Conflict if the state has no such transition."""
        if self.status not in TRANSITIONS[verb][0]:
            if verb in ("kill", "exec"):
                raise errors.Conflict(f"cannot {verb} container {self.id}: container not running (it is {self.status})")
            hint = f"pycontain-runtime delete --force {self.id}" if verb == "delete" else None
            wanted = " or ".join(TRANSITIONS[verb][0])
            raise errors.Conflict(
                f"cannot {verb} container {self.id}: found it {self.status}, wanted {wanted}", hint=hint
            )

    def transition(self, verb: str) -> None:
        after = TRANSITIONS[verb][1]
        if after is not None:
            self.fields["status"] = after
            self.save()

    def oci(self, status: str | None = None) -> dict[str, Any]:
        """The state object of runtime.md."""
        status = status or self.status
        fields = self.fields
        state = {"ociVersion": fields.get("ociVersion", "1.0.0"), "id": self.id, "status": status}
        if status != "stopped":
            state["pid"] = self.pid
        state["bundle"] = fields.get("bundle", "")
        if fields.get("annotations"):
            state["annotations"] = fields["annotations"]
        return state
