"""Applying a layer: a tar from a stranger becomes one lower directory for overlayfs (image-spec, layer.md).

``.wh.name`` becomes a character device 0:0 and ``.wh..wh..opq`` the attribute trusted.overlay.opaque=y, both at the
end: they concern lower layers only, wherever in the archive they stand. A layer may use what lower layers have: a
parent directory (made like the lower one), a symbolic link on the way (followed inside the image), the target of a
hard link (copied up). tree.py says why nothing outside is reached.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from pycontain.images.compression import Limits, Plain, Source
from pycontain.images.failure import trying
from pycontain.images.pack import pack
from pycontain.images.tar import Entry, Reader, shown
from pycontain.images.tree import (
    HOST_XATTRS,
    PRIVATE_XATTR,
    Lowers,
    Path,
    Tree,
    copy_attributes,
    lstat,
    proc,
)
from pycontain.runtime.errors import KernelError, PycontainError, errno_text

__all__ = ["Limits", "Unpacked", "pack", "unpack"]

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_NAME_MAX = 255
# xattr(7); a tar made on another system has names that Linux cannot hold, such as com.apple.provenance.
_NAMESPACES = ("user.", "trusted.", "security.", "system.")
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MODES = {"character device": stat.S_IFCHR, "block device": stat.S_IFBLK, "fifo": stat.S_IFIFO}


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What a layer was: its digest uncompressed, bytes of files, entries, and whether it hides all layers below it."""

    diff_id: str
    size: int
    entries: int
    opaque: bool
    complete: bool


def unpack(stream: Source, directory: int, *, lowers: Sequence[int] = (), limits: Limits | None = None) -> Unpacked:
    """Apply a layer (plain, gzip or zstd) into an empty directory by fd; ``lowers``: fds of those below, top first.

    Raises PycontainError that names the entry (KernelError where the kernel refused). The directory is then
    half-written: unpack into a temporary one, compare ``diff_id``, and rename. Needs root.
    """
    limits = limits or Limits()
    plain = Plain(stream, limits)
    reader = Reader(io.BufferedReader(plain, 1 << 20))
    work = _Unpack(directory, lowers, limits, reader)
    try:
        work.root()
        for entry in reader:
            work.apply(entry)
        plain.drain()
        work.finish()
    finally:
        work.tree.close()
    return Unpacked(plain.diff_id, work.size, work.entries, () in work.lowers.opaque, reader.complete)


class _Unpack:
    def __init__(self, directory: int, lowers: Sequence[int], limits: Limits, reader: Reader) -> None:
        self.limits = limits
        self.reader = reader
        self.lowers = Lowers(list(lowers))
        self.tree = Tree(directory, self.lowers)
        self.below = list(lowers)
        self.size = 0
        self.entries = 0

    def root(self) -> None:
        """The root looks like the lower one until the layer says otherwise."""
        with trying("prepare the layer's root"):
            if self.below:
                found = os.fstat(self.below[0])
                copy_attributes(self.below[0], self.tree.root, found)
                self.tree.mtimes[()] = found.st_mtime_ns
            else:
                os.fchown(self.tree.root, 0, 0)
                os.fchmod(self.tree.root, 0o755)
                self.tree.mtimes[()] = 0

    def apply(self, entry: Entry) -> None:
        self.entries += 1
        if self.entries > self.limits.entries:
            raise PycontainError(f"the layer has more than {self.limits.entries} entries")
        try:
            self._apply(entry)
        except PycontainError as error:
            raise PycontainError(f"entry {shown(entry.name)}: {error.message}") from None
        except OSError as error:
            raise KernelError(f"unpack entry {shown(entry.name)}", error.errno or 0) from error

    def _apply(self, entry: Entry) -> None:
        path = self._path(entry.name)
        if not path:
            if entry.kind != "directory":
                raise PycontainError(f"the root of an image cannot be a {entry.kind}")
            self._directory_attributes(self.tree.root, entry, ())
            return
        parent, directory = self.tree.parent(path[:-1])
        name = path[-1]
        if name.startswith(_WHITEOUT):
            self._whiteout(entry, parent, name)
            return
        found = lstat(name, directory)
        if entry.kind == "hard link":
            self._link(entry, parent, name, directory)
            return
        if found is not None and not (entry.kind == "directory" and stat.S_ISDIR(found.st_mode)):
            self.tree.remove(name, directory, found)
            found = None
        if entry.kind == "directory":
            if found is None:
                os.mkdir(name, 0o700, dir_fd=directory)
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                self._directory_attributes(fd, entry, (*parent, name))
            finally:
                os.close(fd)
        elif entry.kind == "file":
            self._file(entry, name, directory)
        else:
            self._special(entry, name, directory)

    def _file(self, entry: Entry, name: bytes, directory: int) -> None:
        self._count(entry.size)
        fd = os.open(name, _CREATE, 0o600, dir_fd=directory)
        try:
            if entry.extents is None:
                for piece in self.reader.data():
                    _write(fd, piece)
            else:
                self._sparse(fd, entry)
            os.fchown(fd, entry.uid, entry.gid)
            _set_xattrs(fd, entry)
            os.fchmod(fd, entry.mode)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def _sparse(self, fd: int, entry: Entry) -> None:
        pieces = self.reader.data()
        piece = memoryview(b"")
        for offset, length in entry.extents or ():
            os.lseek(fd, offset, os.SEEK_SET)
            while length:
                if not piece:
                    piece = memoryview(next(pieces))
                _write(fd, piece[:length])
                written = min(length, len(piece))
                piece, length = piece[written:], length - written
        os.ftruncate(fd, entry.size)

    def _special(self, entry: Entry, name: bytes, directory: int) -> None:
        """Links, devices and pipes. Devices are made as the image has them; who may use them is the device cgroup's."""
        if entry.kind == "symbolic link":
            os.symlink(entry.link, name, dir_fd=directory)
        else:
            device = 0
            if entry.kind != "fifo":
                if not (entry.major < 1 << 12 and entry.minor < 1 << 20):
                    raise PycontainError(f"there is no device {entry.major}:{entry.minor}")
                device = os.makedev(entry.major, entry.minor)
                if entry.kind == "character device" and device == 0:
                    raise PycontainError("a character device 0:0 is what overlayfs takes for a deleted file")
            os.mknod(name, _MODES[entry.kind] | 0o600, device, dir_fd=directory)
        os.chown(name, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False)
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            _set_xattrs(proc(fd), entry)
            if entry.kind != "symbolic link":
                os.chmod(proc(fd), entry.mode)
        finally:
            os.close(fd)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=directory, follow_symlinks=False)

    def _link(self, entry: Entry, parent: Path, name: bytes, directory: int) -> None:
        target = self._path(entry.link, "the hard link's target ")
        if not target or target[-1].startswith(_WHITEOUT):
            raise PycontainError(f"the hard link's target {shown(entry.link)} is not a file")
        where = self.tree.resolve(target[:-1])
        if (*where, target[-1]) == (*parent, name):
            raise PycontainError("a hard link to itself")
        source = self.tree.open(where)
        found = lstat(target[-1], source) if source is not None else None
        if found is None:
            if source is not None:
                os.close(source)
            found = self.tree.copy_up(where, target[-1])
            if found is None:
                raise PycontainError(f"the hard link's target {shown(entry.link)} is not there")
            self._count(found.st_size if stat.S_ISREG(found.st_mode) else 0)
            source = self.tree.open(where)
        if source is None:
            raise PycontainError(f"the hard link's target {shown(entry.link)} is not there")
        try:
            if stat.S_ISDIR(found.st_mode):
                raise PycontainError(f"the hard link's target {shown(entry.link)} is a directory")
            there = lstat(name, directory)
            if there is not None:
                self.tree.remove(name, directory, there)
            os.link(target[-1], name, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
        finally:
            os.close(source)

    def _whiteout(self, entry: Entry, parent: Path, name: bytes) -> None:
        if entry.kind == "directory":
            raise PycontainError("a whiteout cannot be a directory")
        if name == _OPAQUE:
            self.lowers.opaque.add(parent)
        elif not name.startswith(b".wh..wh."):  # those are the private files of aufs
            hidden = name.removeprefix(_WHITEOUT)
            if hidden in (b"", b".", b".."):
                raise PycontainError(f"a whiteout of {shown(hidden)}")
            self.lowers.hidden.add((*parent, hidden))

    def finish(self) -> None:
        hidden, self.lowers.hidden = self.lowers.hidden, set()
        with trying("finish the layer"):
            for path in sorted(hidden):
                self._hide(path, hidden)
            self.tree.finish(self.lowers.opaque - {()})

    def _hide(self, path: Path, hidden: set[Path]) -> None:
        """Leave a mark only where a lower layer shows the name: overlayfs would list a needless one as a device."""
        if any(path[:depth] in hidden for depth in range(1, len(path))):
            return
        below = self.lowers.find(path[:-1], path[-1])
        directory = self.tree.open(path[:-1])
        try:
            if below is None or directory is None:
                return
            found = lstat(path[-1], directory)
            if found is None:
                os.mknod(path[-1], stat.S_IFCHR, 0, dir_fd=directory)
            elif stat.S_ISDIR(found.st_mode):
                self.lowers.opaque.add(path)
        finally:
            if below is not None:
                os.close(below[0])
            if directory is not None:
                os.close(directory)

    def _directory_attributes(self, fd: int, entry: Entry, real: Path) -> None:
        os.fchown(fd, entry.uid, entry.gid)
        for name in os.listxattr(fd):
            if not name.startswith(PRIVATE_XATTR) and name not in HOST_XATTRS:
                os.removexattr(fd, name)
        _set_xattrs(fd, entry)
        os.fchmod(fd, entry.mode)
        self.tree.mtimes[real] = entry.mtime_ns

    def _count(self, size: int) -> None:
        self.size += size
        if self.size > self.limits.total_bytes:
            raise PycontainError(f"the layer's files have more than {self.limits.total_bytes} bytes")

    def _path(self, name: bytes, what: str = "") -> Path:
        """The components of a name below the image's root; a leading slash means just that."""
        if len(name) > self.limits.path_bytes:
            raise PycontainError(f"{what}has {len(name)} bytes in its path, more than {self.limits.path_bytes}")
        path = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
        if len(path) > self.limits.path_components:
            raise PycontainError(
                f"{what}has {len(path)} components in its path, more than {self.limits.path_components}"
            )
        for part in path:
            if part == b"..":
                raise PycontainError(f"{what}has .. in its path")
            if len(part) > _NAME_MAX:
                raise PycontainError(f"{what}has a name of {len(part)} bytes, more than {_NAME_MAX}")
        return path


def _set_xattrs(target: int | str, entry: Entry) -> None:
    for name, value in entry.xattrs.items():
        if name.startswith(PRIVATE_XATTR):
            raise PycontainError(f"the attribute {name} is overlayfs' own")
        if name in HOST_XATTRS or not name.startswith(_NAMESPACES):
            continue
        try:
            os.setxattr(target, name, value)
        except OSError as error:
            raise PycontainError(f"set the attribute {name!r}: {errno_text(error.errno or 0)}") from error


def _write(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
