"""The few system calls that Python's ``os`` lacks, by ctypes; thin, nothing clever.

Off the start path of the OCI command: importing ctypes costs some 5 ms, and there the static
init makes these calls itself. Every function raises OSError with the kernel's errno.
"""

from __future__ import annotations

import ctypes
import os

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

_NR_OPENAT2 = 437  # the same numbers on every architecture (asm-generic unified table)
_NR_PIDFD_GETFD = 438

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def _check(result: int, path: str | bytes | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


def openat2(dirfd: int, path: str | bytes, flags: int, mode: int = 0, resolve: int = RESOLVE_IN_ROOT) -> int:
    """openat2(2): open ``path`` below ``dirfd``; O_CLOEXEC is always added. Linux 5.6.

    With RESOLVE_IN_ROOT (the default) absolute paths and symbolic links are resolved as if ``dirfd``
    were the root directory. The kernel may answer EAGAIN when a rename races: it is retried here.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, mode if flags & (os.O_CREAT | os.O_TMPFILE) else 0, resolve)
    name = os.fsencode(path)
    fd = -1
    for _ in range(128):
        fd = _libc.syscall(_NR_OPENAT2, dirfd, name, ctypes.byref(how), ctypes.sizeof(how))
        if fd >= 0 or ctypes.get_errno() != 11:
            break
    return _check(fd, path)


def umount2(path: str, flags: int) -> None:
    """umount2(2)."""
    _check(_libc.umount2(os.fsencode(path), flags), path)


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    words = (None if word is None else os.fsencode(word) for word in (source, target, kind))
    text = None if data is None else os.fsencode(data)
    _check(_libc.mount(*words, ctypes.c_ulong(flags), text), target)


def unshare(flags: int) -> None:
    """unshare(2): new namespaces of these kinds (CLONE_NEW...) for this process, a pid namespace for its children."""
    _check(_libc.unshare(flags))


def die_with_parent() -> None:
    """prctl(2), PR_SET_PDEATHSIG: SIGKILL for this process when the thread that made it ends."""
    _check(_libc.prctl(1, ctypes.c_ulong(9), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)))


def setns(fd: int, kind: int) -> None:
    """setns(2): this thread enters the namespace of that kind (CLONE_NEW...)."""
    _check(_libc.setns(fd, kind))


def syncfs(fd: int) -> None:
    """syncfs(2): write out everything of the file system that ``fd`` is on. Linux 2.6.39."""
    _check(_libc.syncfs(fd))


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """pidfd_getfd(2): a copy of another process's descriptor, close-on-exec. Linux 5.6."""
    return _check(_libc.syscall(_NR_PIDFD_GETFD, pidfd, fd, 0))
