"""The disk that takes what a container in a machine writes: a sparse ext4 image, copied from a blank one."""

from __future__ import annotations

import os
import shutil
import subprocess
from errno import EXDEV

from pycontain.runtime.errors import KernelError, NotFound, PycontainError

MIB = 1 << 20
SIZE = 16 << 10  # MiB; sparse: what is not written takes no room


def ensure(path: str, cache: str, uid: int) -> None:
    """The disk at ``path``, blank where it is new, and ``uid``'s own. Raises NotFound, KernelError, PycontainError."""
    if not os.path.exists(path):
        blank = _blank(cache)
        part = f"{path}.{os.getpid()}"
        try:
            _copy(blank, part)
            os.rename(part, path)
        except OSError as error:
            raise KernelError(f"cannot make the disk {path}", error.errno or 0) from None
        finally:
            if os.path.exists(part):
                os.unlink(part)
    os.chown(path, uid, uid)


def _blank(cache: str) -> str:
    """A blank file system, made once. The journal is small, and its blocks and inode tables are not written ahead."""
    path = os.path.join(cache, f"blank-{SIZE}.ext4")
    if os.path.exists(path):
        return path
    program = shutil.which("mkfs.ext4", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise NotFound("cannot make a disk: mkfs.ext4 is not installed", hint="apt-get install e2fsprogs")
    os.makedirs(cache, 0o700, exist_ok=True)
    part = f"{path}.{os.getpid()}"
    with open(part, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.truncate(SIZE * MIB)
    options = ["-q", "-F", "-m", "0", "-J", "size=8", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"]
    try:
        done = subprocess.run([program, *options, part], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise PycontainError(f"cannot make a disk: mkfs.ext4: {said}")
        os.rename(part, path)
    finally:
        if os.path.exists(part):
            os.unlink(part)
    return path


def _copy(source: str, target: str) -> None:
    """Only what is data (lseek(2), SEEK_DATA)."""
    with open(source, "rb", buffering=0) as a, open(target, "xb", buffering=0) as b:
        os.fchmod(b.fileno(), 0o600)
        size = os.fstat(a.fileno()).st_size
        os.ftruncate(b.fileno(), size)
        at = 0
        while at < size:
            try:
                at = os.lseek(a.fileno(), at, os.SEEK_DATA)
            except OSError:
                return  # ENXIO: only a hole is left
            end = os.lseek(a.fileno(), at, os.SEEK_HOLE)
            while at < end:
                at += _copy_range(a.fileno(), b.fileno(), at, end - at)


def _copy_range(source: int, target: int, at: int, size: int) -> int:
    """As much as the kernel takes at once."""
    try:
        return os.copy_file_range(source, target, size, at, at)
    except OSError as error:
        if error.errno != EXDEV:  # two kinds of file systems, since Linux 5.19 (copy_file_range(2))
            raise
    os.lseek(target, at, os.SEEK_SET)
    return os.sendfile(target, source, at, size)
