"""Content on its way into the store: checked while it arrives, resumable, and visible only when it is whole."""

from __future__ import annotations

import fcntl
import os

from pycontain.images.descriptor import check_digest, new_hash
from pycontain.images.failure import trying
from pycontain.runtime.errors import PycontainError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_CHUNK = 1 << 20


class Ingest:
    """One blob being received; a context manager, made by `Store.ingest`.

    ``offset`` is the number of bytes that are there already (resume from it); ``done`` is true where the
    store has the blob, then nothing need be fetched and what is written is ignored. Leaving the block without
    `commit` keeps the partial file for a later ingest of the same digest, or drops it if it is empty.

    The partial file's own flock serialises processes that fetch one digest: the second waits on entry, and
    then finds the blob done, or goes on where the first one broke off. The lock dies with its process.
    """

    def __init__(
        self, partial: str, blob: str, digest: str, size: int | None, commit: Callable[[str, str], None]
    ) -> None:
        self.digest = digest
        self.size = size
        self.offset = 0
        self.done = False
        self._partial = partial
        self._blob = blob
        self._move = commit
        self._fd = -1
        self._hash = new_hash(check_digest(digest)[0])

    def __enter__(self) -> Ingest:
        with trying(f"receive blob {self.digest}"):
            self._open()
        return self

    def _open(self) -> None:
        while True:
            fd = os.open(self._partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if same_file(fd, self._partial):  # else it was committed or collected while this one waited
                    break
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
        self._fd = fd
        try:
            if os.path.exists(self._blob):
                self._finish()
                os.unlink(self._partial)
            else:
                self._resume()
        except BaseException:
            self._close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd >= 0 and not self.done and self.offset == 0:
            os.unlink(self._partial)
        self._close()

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append bytes; PycontainError as soon as there are more than the descriptor names."""
        if self.done:
            return len(data)
        if self.size is not None and self.offset + len(data) > self.size:
            self.discard()
            raise PycontainError(
                f"blob {self.digest}: received more than the {self.size} bytes that its descriptor names"
            )
        with trying(f"write blob {self.digest}"):
            write_all(self._fd, data)
        self._hash.update(data)
        self.offset += len(data)
        return len(data)

    def restart(self) -> None:
        """Forget what was received: the other side cannot resume."""
        if self.done:
            return
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._hash = new_hash(check_digest(self.digest)[0])
        self.offset = 0

    def discard(self) -> None:
        """Drop the partial file."""
        if not self.done and self._fd >= 0:
            self.restart()

    def commit(self) -> None:
        """Verify size and digest, and make the blob visible; on a mismatch PycontainError, and nothing is kept."""
        if self.done:
            return
        if self.size is not None and self.offset != self.size:
            found = self.offset
            self.discard()
            raise PycontainError(f"blob {self.digest}: received {found} bytes, its descriptor names {self.size}")
        found_digest = f"{check_digest(self.digest)[0]}:{self._hash.hexdigest()}"
        if found_digest != self.digest:
            self.discard()
            raise PycontainError(f"blob {self.digest}: the content received has digest {found_digest}")
        with trying(f"commit blob {self.digest}"):
            os.fsync(self._fd)
            self._move(self._partial, self._blob)
            self._finish()

    def _finish(self) -> None:
        self.done = True
        self.offset = os.stat(self._blob).st_size

    def _resume(self) -> None:
        """Hash what an earlier ingest left; too much of it cannot be right, and is dropped."""
        found = os.fstat(self._fd).st_size
        if self.size is not None and found > self.size:
            self.restart()
            return
        while data := os.read(self._fd, _CHUNK):
            self._hash.update(data)
            self.offset += len(data)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    """write(2) until everything is written."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def same_file(fd: int, path: str) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)
