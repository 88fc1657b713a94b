"""A layer being written, seen through its lower layers; every step is one path component, by directory fd.

No path is ever handed to the kernel with a symbolic link in it that the kernel would follow: parents are opened
component by component with O_NOFOLLOW (or as a whole with RESOLVE_NO_SYMLINKS), and links of the image are followed
here, inside the image. So nothing outside the layer's directory can be named.
"""

from __future__ import annotations

import errno
import os
import stat

from pycontain.images.tar import shown
from pycontain.runtime.errors import PycontainError
from pycontain.runtime.light import remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

Path = tuple[bytes, ...]

OPAQUE = "trusted.overlay.opaque"
PRIVATE_XATTR = "trusted.overlay."
# The host's policy, not the image's: never copied.
HOST_XATTRS = ("security.selinux", "system.nfs4_acl")
_MAX_LINKS = 255
_MAX_DEPTH = 300  # of real directories, whatever links lead to them; rmtree goes down by recursion
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def lstat(name: bytes, directory: int) -> os.stat_result | None:
    """fstatat(2) without following; None where there is nothing."""
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None


def is_whiteout(found: os.stat_result) -> bool:
    """overlayfs' mark for a deleted name: a character device 0:0."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def is_opaque(directory: int) -> bool:
    """Does this directory hide those of the same name in lower layers?"""
    try:
        return os.getxattr(directory, OPAQUE) == b"y"
    except OSError:
        return False


def proc(fd: int) -> str:
    """A path that means exactly the file of an O_PATH descriptor, for calls that take no such descriptor."""
    return f"/proc/self/fd/{fd}"


def copy_attributes(source: int, target: int, found: os.stat_result) -> None:
    """Owner, extended attributes and mode (in this order: chown clears set-id bits), between two open files."""
    os.fchown(target, found.st_uid, found.st_gid)
    for name in os.listxattr(source):
        if not name.startswith(PRIVATE_XATTR) and name not in HOST_XATTRS:
            os.setxattr(target, name, os.getxattr(source, name))
    os.fchmod(target, stat.S_IMODE(found.st_mode))


class Lowers:
    """The merged view of the layers below, top first, as overlayfs shows it."""

    def __init__(self, roots: list[int]) -> None:
        self._roots = roots
        self.hidden: set[Path] = set()  # deleted by the layer being written
        self.opaque: set[Path] = set()  # directories of which it hides what is below

    def find(self, parent: Path, name: bytes) -> tuple[int, os.stat_result] | None:
        """A name in the real directory ``parent``: an fd of its directory (the caller closes it), and its stat."""
        if (*parent, name) in self.hidden:
            return None
        layers = self._directories(parent)
        try:
            for fd in layers:
                found = lstat(name, fd)
                if found is not None:
                    return None if is_whiteout(found) else (os.dup(fd), found)
        finally:
            for fd in layers:
                os.close(fd)
        return None

    def _directories(self, path: Path) -> list[int]:
        """One fd for each layer that contributes to the directory, top first."""
        layers = [] if () in self.opaque else [os.dup(root) for root in self._roots]
        for depth, name in enumerate(path):
            here = path[: depth + 1]
            below: list[int] = []
            try:
                if here not in self.hidden and here not in self.opaque:
                    self._descend(layers, name, below)
            finally:
                for fd in layers:
                    os.close(fd)
            layers = below
        return layers

    def _descend(self, layers: list[int], name: bytes, below: list[int]) -> None:
        for fd in layers:
            found = lstat(name, fd)
            if found is None:
                continue
            if not stat.S_ISDIR(found.st_mode):
                return
            inner = os.open(name, _DIRECTORY, dir_fd=fd)
            below.append(inner)
            if is_opaque(inner):
                return


class Tree:
    """The layer's own directory. ``mtimes`` collects what directories get at the end, when nothing changes them."""

    def __init__(self, root: int, lowers: Lowers) -> None:
        self.root = root
        self.lowers = lowers
        self.mtimes: dict[Path, int] = {}
        self._cached: tuple[Path, Path, int] | None = None

    def close(self) -> None:
        if self._cached is not None:
            os.close(self._cached[2])
            self._cached = None

    def resolve(self, path: Path) -> Path:
        """A directory's real path in the image: links of this layer and of the lower ones are followed inside it."""
        todo = list(reversed(path))
        real: list[bytes] = []
        links = 0
        while todo:
            name = todo.pop()
            if name == b"..":
                if real:
                    real.pop()
                continue
            target = self._link(tuple(real), name)
            if target is None:
                real.append(name)
                continue
            links += 1
            if links > _MAX_LINKS:
                raise PycontainError(f"more than {_MAX_LINKS} symbolic links on the way to {shown(b'/'.join(path))}")
            if target.startswith(b"/"):
                real.clear()
            todo += [part for part in reversed(target.split(b"/")) if part not in (b"", b".")]
            if len(todo) + len(real) > _MAX_DEPTH:
                raise PycontainError(f"the symbolic links on the way to {shown(b'/'.join(path))} lead too deep")
        return tuple(real)

    def _link(self, parent: Path, name: bytes) -> bytes | None:
        """The target, where the merged view has a symbolic link."""
        directory = self.open(parent)
        if directory is not None:
            try:
                found = lstat(name, directory)
                if found is not None:
                    return os.readlink(name, dir_fd=directory) if stat.S_ISLNK(found.st_mode) else None
            finally:
                os.close(directory)
        below = self.lowers.find(parent, name)
        if below is None:
            return None
        fd, found = below
        try:
            return os.readlink(name, dir_fd=fd) if stat.S_ISLNK(found.st_mode) else None
        finally:
            os.close(fd)

    def open(self, real: Path) -> int | None:
        """A directory of this layer by its real path, or None where it is not (a directory) here."""
        # Imports ctypes, 2 ms of every container's start if it stood above.
        from pycontain.runtime.kernel.syscalls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2

        inside = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
        try:
            return openat2(self.root, b"/".join(real) or b".", os.O_RDONLY | os.O_DIRECTORY, resolve=inside)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:  # a symbolic link is there
                return None
            raise

    def parent(self, path: Path) -> tuple[Path, int]:
        """The directory for an entry: its real path and an fd (valid until the next call). Made where missing."""
        if self._cached is not None and self._cached[0] == path:
            return self._cached[1], self._cached[2]
        # One call for the common case, in which the whole path is made of this layer's directories.
        real, fd = path, self.open(path)
        if fd is None:
            real = self.resolve(path)
            fd = self._make(real)
        self.close()
        self._cached = path, real, fd
        return real, fd

    def _make(self, real: Path) -> int:
        fd = os.dup(self.root)
        for depth, name in enumerate(real):
            found = lstat(name, fd)
            try:
                if found is None:
                    self._make_one(real[:depth], name, fd)
                elif not stat.S_ISDIR(found.st_mode):
                    raise PycontainError(f"{shown(b'/'.join(real[: depth + 1]))} is not a directory")
                inner = os.open(name, _DIRECTORY, dir_fd=fd)
            finally:
                os.close(fd)
            fd = inner
        return fd

    def _make_one(self, parent: Path, name: bytes, directory: int) -> None:
        """A directory that the archive does not mention: like the lower one, else 0755 and root's."""
        below = self.lowers.find(parent, name)
        if below is not None and not stat.S_ISDIR(below[1].st_mode):
            os.close(below[0])
            raise PycontainError(f"{shown(b'/'.join((*parent, name)))} is not a directory")
        os.mkdir(name, 0o700, dir_fd=directory)
        inner = os.open(name, _DIRECTORY, dir_fd=directory)
        try:
            if below is None:
                os.fchmod(inner, 0o755)
                self.mtimes[(*parent, name)] = 0
                return
            source = os.open(name, _DIRECTORY, dir_fd=below[0])
            try:
                copy_attributes(source, inner, below[1])
            finally:
                os.close(source)
                os.close(below[0])
            self.mtimes[(*parent, name)] = below[1].st_mtime_ns
        finally:
            os.close(inner)

    def remove(self, name: bytes, directory: int, found: os.stat_result) -> None:
        """Make room for an entry of another kind."""
        if not stat.S_ISDIR(found.st_mode):
            os.unlink(name, dir_fd=directory)
            return
        remove_tree(name, directory)

    def copy_up(self, parent: Path, name: bytes) -> os.stat_result | None:
        """Bring a lower layer's file, not a directory, into this layer; None where there is none."""
        below = self.lowers.find(parent, name)
        if below is None:
            return None
        source, found = below
        try:
            if stat.S_ISDIR(found.st_mode):
                return None
            directory = self._make(parent)
            try:
                _copy_file(name, source, directory, found)
            finally:
                os.close(directory)
        finally:
            os.close(source)
        return found

    def finish(self, opaque: Iterable[Path]) -> None:
        """Mark the opaque directories, then set the directories' times."""
        for path in opaque:
            fd = self.open(path)
            if fd is not None:
                try:
                    os.setxattr(fd, OPAQUE, b"y")
                finally:
                    os.close(fd)
        for path, mtime in self.mtimes.items():
            fd = self.open(path)
            if fd is not None:
                try:
                    os.utime(fd, ns=(mtime, mtime))
                finally:
                    os.close(fd)


def _copy_file(name: bytes, source: int, target: int, found: os.stat_result) -> None:
    kind = stat.S_IFMT(found.st_mode)
    if kind == stat.S_IFLNK:
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
    elif kind == stat.S_IFREG:
        reading = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            writing = os.open(name, flags, 0o600, dir_fd=target)
            try:
                while os.sendfile(writing, reading, None, 1 << 30):
                    pass
                copy_attributes(reading, writing, found)
            finally:
                os.close(writing)
        finally:
            os.close(reading)
    else:
        os.mknod(name, kind | 0o600, found.st_rdev, dir_fd=target)
        os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=target)
        try:
            os.chmod(proc(fd), stat.S_IMODE(found.st_mode))
        finally:
            os.close(fd)
    os.utime(name, ns=(found.st_mtime_ns, found.st_mtime_ns), dir_fd=target, follow_symlinks=False)
