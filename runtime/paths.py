"""The few path functions of the start path, which uses ``posix``: importing ``os``, which wraps it, costs 1 ms."""

from __future__ import annotations

import posix
import sys

from pycontain.runtime import errors

if "_launcher" in sys.builtin_module_names:
    from _launcher import status as status
else:

    def status(path: str) -> tuple[int, int, int]:
        """stat(2): mode, device, time of the last change in ns."""
        found = posix.stat(path)
        return found.st_mode, found.st_dev, found.st_mtime_ns


MAX_BYTES = 8 << 20


def exists(path: str) -> bool:
    try:
        status(path)
    except OSError:
        return False
    return True


def is_directory(path: str) -> bool:
    try:
        mode: int = status(path)[0]
    except OSError:
        return False
    return mode & 0o170000 == 0o040000


def real(path: str) -> str:
    """``path`` without links, as the kernel knows it; ``path`` itself where there is no such thing."""
    try:
        fd = posix.open(path, posix.O_PATH | posix.O_CLOEXEC)
    except OSError:
        return path
    try:
        return posix.readlink(f"/proc/self/fd/{fd}")
    finally:
        posix.close(fd)


def directory_of(path: str) -> str:
    return path.rstrip("/").rpartition("/")[0] or ("/" if path.startswith("/") else ".")


def make_directories(path: str, mode: int) -> None:
    """mkdir -p; OSError where a part cannot be made."""
    try:
        posix.mkdir(path, mode)
    except FileExistsError:
        return
    except FileNotFoundError:
        make_directories(directory_of(path), mode)
        make_directories(path, mode)


def read_bounded(path: str, limit: int = MAX_BYTES, *, directory: int | None = None) -> bytes:
    """A whole regular file of at most ``limit`` bytes. Raises NotFound, KernelError or PycontainError.

    ``directory``: a descriptor of the one that the file is in, whatever its path leads to by now.
    """
    try:
        name = path if directory is None else path.rpartition("/")[2]
        fd = posix.open(name, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK, dir_fd=directory)
    except FileNotFoundError:
        raise errors.NotFound(f"cannot read {path}: it does not exist") from None
    except OSError as error:
        raise errors.KernelError(f"cannot read {path}", error.errno or 0) from None
    try:
        data = b""
        # A buffer of the limit's size would be a mapping of its own, with a huge page to be cleared.
        while part := posix.read(fd, min(limit + 1 - len(data), 65536)):
            data += part
    except OSError as error:
        raise errors.KernelError(f"cannot read {path}", error.errno or 0) from None
    finally:
        posix.close(fd)
    if len(data) > limit:
        raise errors.PycontainError(f"cannot read {path}: found more than {limit} bytes")
    return data
