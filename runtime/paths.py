"""The few path functions of the start path, which uses ``posix``: importing ``os``, which wraps it, costs 1 ms."""

from __future__ import annotations

import posix


def exists(path: str) -> bool:
    try:
        posix.stat(path)
    except OSError:
        return False
    return True


def is_directory(path: str) -> bool:
    try:
        return posix.stat(path).st_mode & 0o170000 == 0o040000
    except OSError:
        return False


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
