"""A directory as a layer's tar: the same tree gives the same bytes."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from pycontain.images.failure import trying
from pycontain.images.tar import BLOCK, END, Entry, header
from pycontain.images.tree import HOST_XATTRS, OPAQUE, PRIVATE_XATTR, is_opaque, is_whiteout, proc
from pycontain.runtime.errors import PycontainError

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
}
_CHUNK = 1 << 18
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class _Pack:
    write: Callable[[bytes], object]
    links: dict[tuple[int, int], bytes]


def pack(directory: int, write: Callable[[bytes], object]) -> None:
    """Write a directory, given by fd, as a tar: names sorted, owners, modes, times and attributes as they are.

    overlayfs' marks become ``.wh.`` entries again, so that an unpacked layer or an upper directory can be packed.
    Sockets are left out. Links are never followed. Raises KernelError, and PycontainError for a file that shrinks
    while it is read.
    """
    with trying("pack a directory"):
        state = _Pack(write, {})
        _entry(state, b"./", os.fstat(directory), directory, directory)
        _directory(state, b"", directory)
    write(END)


def _directory(state: _Pack, prefix: bytes, directory: int) -> None:
    if is_opaque(directory):
        state.write(header(Entry(prefix + b".wh..wh..opq")))
    for name in sorted(map(os.fsencode, os.listdir(directory))):
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        path = prefix + name
        if is_whiteout(found):
            state.write(header(Entry(prefix + b".wh." + name)))
            continue
        if name.startswith(b".wh."):
            raise PycontainError(f"{os.fsdecode(path)!r} cannot be packed: layers use this name for deleted files")
        if stat.S_ISDIR(found.st_mode):
            inner = os.open(name, _DIRECTORY, dir_fd=directory)
            try:
                _entry(state, path + b"/", found, directory, inner)
                _directory(state, path + b"/", inner)
            finally:
                os.close(inner)
        elif stat.S_IFMT(found.st_mode) in _KINDS:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                _entry(state, path, found, directory, fd)
            finally:
                os.close(fd)


def _entry(state: _Pack, path: bytes, found: os.stat_result, directory: int, fd: int) -> None:
    """One entry; ``fd`` means the file itself (O_PATH, or a directory's)."""
    entry = Entry(path, _KINDS[stat.S_IFMT(found.st_mode)], mode=stat.S_IMODE(found.st_mode))
    entry.uid, entry.gid, entry.mtime_ns = found.st_uid, found.st_gid, found.st_mtime_ns
    if entry.kind != "directory" and found.st_nlink > 1:
        first = state.links.setdefault((found.st_dev, found.st_ino), path)
        if first != path:
            entry.kind, entry.link = "hard link", first
            state.write(header(entry))
            return
    for name in sorted(os.listxattr(proc(fd))):
        if not name.startswith(PRIVATE_XATTR) and name not in HOST_XATTRS and name != OPAQUE:
            entry.xattrs[name] = os.getxattr(proc(fd), name)
    if entry.kind == "symbolic link":
        entry.link = os.readlink(os.path.basename(path), dir_fd=directory)
    elif entry.kind.endswith("device"):
        entry.major, entry.minor = os.major(found.st_rdev), os.minor(found.st_rdev)
    if entry.kind != "file":
        state.write(header(entry))
        return
    entry.size = found.st_size
    state.write(header(entry))
    reading = os.open(proc(fd), os.O_RDONLY | os.O_CLOEXEC)
    try:
        left = entry.size
        while left:
            data = os.read(reading, min(left, _CHUNK))
            if not data:
                raise PycontainError(f"{os.fsdecode(path)!r} became shorter while it was packed")
            state.write(data)
            left -= len(data)
    finally:
        os.close(reading)
    state.write(bytes(-entry.size % BLOCK))
