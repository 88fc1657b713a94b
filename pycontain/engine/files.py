"""Files that outlive a command: atomic, versioned, locked."""

from __future__ import annotations

import fcntl
import os

from pycontain.runtime.errors import KernelError, PycontainError
from pycontain.runtime.jsontext import dump, parse
from pycontain.runtime.light import remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

VERSION = 1
_MOST_BYTES = 64 << 20


def write_atomic(path: str, data: bytes, mode: int = 0o600, *, durable: bool = True) -> None:
    """Replace ``path``: a reader sees the old or the new content, also after a crash of ours.

    ``durable``: also after a crash of the host; without, for files that every start writes anew.
    """
    temporary = f"{path}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError as error:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise KernelError(f"cannot write {path}", error.errno or 0) from None


def write_json(path: str, data: dict[str, Any], *, durable: bool = True) -> None:
    write_atomic(path, dump({"version": VERSION, **data}).encode() + b"\n", durable=durable)


def read_json(path: str) -> dict[str, Any] | None:
    """The object in ``path``, None where there is no file. An unknown version or garbage is refused by name."""
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise KernelError(f"cannot read {path}", error.errno or 0) from None
    if not data:
        return None  # made, and lost to a crash of the host before its content was on the disk
    value = parse(data, path)
    if not isinstance(value, dict):
        raise PycontainError(f"{path} is damaged: not a JSON object")
    if value.get("version") != VERSION:
        raise PycontainError(
            f"{path} has the format version {value.get('version')!r}, but this pycontain knows only {VERSION}",
            hint="use the release of pycontain that wrote it",
        )
    return value


class Lock:
    """flock(2) on a file; a context manager. Dies with the process that holds it.

    ``create``: the file is made where it is missing. Without, FileNotFoundError: for a file in a directory that others
    may be removing, which a new file would keep them from.
    """

    def __init__(self, path: str, *, create: bool = True) -> None:
        self.path = path
        self.create = create
        self._fd = -1

    def acquire(self, *, wait: bool = True) -> bool:
        """False where ``wait`` is false and another holds it. FileNotFoundError: it, or its directory, is gone."""
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if self.create else 0), 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                # The file may have been removed with its directory while this waited for it.
                if os.fstat(fd).st_nlink:
                    self._fd = fd
                    return True
            except BlockingIOError:
                os.close(fd)
                return False
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def moved(self, path: str) -> Lock:
        """The same lock, still held, after its directory was renamed; it does not make its file again."""
        lock = Lock(path, create=False)
        lock._fd, self._fd = self._fd, -1
        return lock

    @property
    def held(self) -> bool:
        return self._fd >= 0

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def remove_directory(path: str) -> None:
    """Remove a directory of ours and what is in it, as far as that is there and can be removed."""
    try:
        remove_tree(path)
    except FileNotFoundError:
        pass
    except OSError:
        import shutil

        shutil.rmtree(path, ignore_errors=True)


def make_directory(path: str, mode: int = 0o700) -> None:
    """mkdir -p whose last part has ``mode`` whatever the umask is."""
    if os.path.isdir(path):
        return
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        try:
            os.mkdir(path, mode)
        except FileExistsError:
            return
        try:
            os.chmod(path, mode)
        except FileNotFoundError:
            pass  # removed by another process already: as well now as a moment later
    except OSError as error:
        hint = "run it as root" if error.errno in (1, 13) and os.geteuid() != 0 else None
        raise KernelError(f"cannot make the directory {path}", error.errno or 0, hint=hint) from None
