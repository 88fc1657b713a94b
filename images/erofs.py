"""An image's layers as one read-only erofs file: the root disk of a microVM, whose guest lays an overlay over it.

<directory>/<chain>.erofs    the merged layers below the topmost one of that chain id; 0444, appears by rename
<directory>/.<chain>.erofs   one being made, flocked by its maker; what a crash leaves, the next maker or a gc removes

mkfs.erofs packs what the kernel itself merges, so there is no second opinion about whiteouts and opaque directories.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from pycontain.images.failure import trying
from pycontain.images.ingest import same_file
from pycontain.runtime.errors import NotFound, PycontainError, Unsupported

if TYPE_CHECKING:
    from subprocess import Popen

_PROGRAM = "mkfs.erofs"
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_PATH_MAX = 4096  # linux/limits.h, with the NUL
_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_SLAVE = 0x4000, 0x80000


def directory(data: str) -> str:
    """Where an engine with its data in ``data`` keeps these files."""
    return os.path.join(data, "erofs")


def cached(store_directory: str, lower: Sequence[str]) -> str:
    """The erofs file of these layers, made the first time; ``lower`` as `rootfs.ensure_layers` returned it.

    Who asks for one that is being made waits. Hold a pin of the store around this call, until the container that
    uses the file is recorded. Raises what `build` raises.
    """
    chain = os.path.basename(os.path.dirname(lower[0]))
    path = os.path.join(store_directory, f"{chain}.erofs")
    if not os.path.exists(path):
        with trying(f"make {store_directory}"):
            os.makedirs(store_directory, 0o700, exist_ok=True)
        _make(lower, path, once=True)
    return path


def build(lower: Sequence[str], path: str) -> None:
    """Make the erofs file ``path`` (0444) of the overlay of the directories ``lower``, topmost first.

    The file is what overlayfs shows: owners, modes, times, attributes, hard links, devices. It appears whole, in place
    of one that was there. Raises NotFound without mkfs.erofs, Unsupported for what that cannot pack, KernelError, and
    PycontainError with mkfs.erofs' own words. Needs CAP_SYS_ADMIN.
    """
    _make(lower, path, once=False)


def sweep(store_directory: str, chains: Collection[str]) -> int:
    """Remove leftovers, and the files of layers whose chain ids (hexadecimal) are not in ``chains``; the bytes."""
    freed = 0
    try:
        names = os.listdir(store_directory)
    except FileNotFoundError:
        return 0
    for name in names:
        path = os.path.join(store_directory, name)
        if name.startswith("."):
            freed += _remove_unlocked(path)
        elif name.removesuffix(".erofs") not in chains:
            freed += _remove(path)
    return freed


def _make(lower: Sequence[str], path: str, *, once: bool) -> None:
    import shutil

    program = shutil.which(_PROGRAM)
    if program is None:
        raise NotFound(f"make {path}: {_PROGRAM} is not installed", hint="apt-get install erofs-utils")
    with trying(f"make {path}"), _temporary(path) as (fd, temporary):
        if once and os.path.exists(path):
            return  # made by another one while this one waited
        top = os.path.realpath(lower[0])
        dropped, marked = _look(lower, len(os.fsencode(top)))
        if dropped and _version(program) < (1, 6):
            copy = _that_skips_nothing(program)
            if copy is None:
                raise Unsupported(
                    f"make {path}: found {dropped!r}, and this {_PROGRAM} leaves out whatever is named lost+found",
                    hint="install erofs-utils 1.6 or newer",
                )
            with open(copy, "rb"):
                _mkfs(f"/proc/self/fd/{copy}", top, lower, marked, (fd, copy), path)
        else:
            _mkfs(program, top, lower, marked, (fd,), path)
        os.fchmod(fd, 0o444)
        os.fsync(fd)
        os.rename(temporary, path)
        above = os.open(os.path.dirname(temporary), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(above)
        finally:
            os.close(above)


@contextmanager
def _temporary(path: str) -> Iterator[tuple[int, str]]:
    """A file beside ``path``, flocked; gone at the end unless it was renamed."""
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f".{name}")
    while True:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if same_file(fd, temporary):  # else it was renamed or removed while this one waited
                break
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
    try:
        yield fd, temporary
    finally:
        if same_file(fd, temporary):
            os.unlink(temporary)
        os.close(fd)


def _look(lower: Sequence[str], prefix: int) -> tuple[str | None, set[bytes]]:
    """What needs care in the layers: a name that mkfs.erofs 1.5 drops, and the directories with whiteouts in them.

    Raises Unsupported for a path that is longer than mkfs.erofs can name below a directory of ``prefix`` bytes.
    """
    dropped = None
    marked = set()
    for layer in lower:
        todo = [b""]
        while todo:
            folder = todo.pop()
            with os.scandir(os.path.join(os.fsencode(layer), folder)) as entries:
                for entry in entries:
                    path = os.path.join(folder, entry.name)
                    if prefix + 1 + len(path) >= _PATH_MAX:
                        raise Unsupported(f"{_PROGRAM} cannot name a path of {len(path)} bytes in {layer}")
                    if entry.name.startswith(b"lost+found"):
                        dropped = os.fsdecode(path)
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(path)
                    elif not entry.is_file(follow_symlinks=False) and not entry.is_symlink():
                        found = entry.stat(follow_symlinks=False)
                        if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
                            marked.add(folder)
    return dropped, marked


def _version(program: str) -> tuple[int, int]:
    """Of mkfs.erofs; (0, 0) where it does not tell."""
    import re
    import subprocess

    # 1.5 says what it is, and then that it knows no such option.
    said = subprocess.run([program, "-V"], stdin=subprocess.DEVNULL, capture_output=True, check=False).stdout
    found = re.search(rb"\b(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _that_skips_nothing(program: str) -> int | None:
    """A copy of mkfs.erofs 1.5 in memory, in which the name that it skips is one that no file can have.

    None where it is not built so that the name is found in it, once.
    """
    with open(program, "rb") as file:
        code = file.read()
    if code.count(b"lost+found") != 1:
        return None
    fd = os.memfd_create(_PROGRAM, os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(code.replace(b"lost+found", b"lost/found"))
    return fd


def _mkfs(program: str, top: str, lower: Sequence[str], marked: set[bytes], fds: tuple[int, ...], path: str) -> None:
    """Let mkfs.erofs write the merged layers into the first of ``fds``, which is to be ``path``; it keeps them all."""
    import threading

    started: list[Popen[bytes]] = []
    failed: list[BaseException] = []

    def apart() -> None:
        try:
            with trying(f"make {path}: merge {len(lower)} layers"):
                _merge(top, lower, marked)
            started.append(_start(program, top, fds))
        except BaseException as error:
            failed.append(error)

    # A namespace belongs to a thread, not to the process: this one takes a new one, mounts, starts the program, which
    # inherits it, and ends. No fork, nothing mounted that anybody else sees, nothing to unmount whatever happens.
    thread = threading.Thread(target=apart, name="erofs")
    thread.start()
    try:
        thread.join()
        if failed:
            raise failed[0]
        _, complaint = started[0].communicate()
    finally:
        thread.join()
        for process in started:
            with process:
                process.kill()  # nothing to it where it has ended
    code = started[0].returncode
    if code:
        lines = complaint.decode("utf-8", "replace").strip().splitlines()
        why = f"killed by signal {-code}" if code < 0 else lines[-1].strip() if lines else f"exit status {code}"
        raise PycontainError(f"make {path}: {_PROGRAM}: {why}")


def _merge(top: str, lower: Sequence[str], marked: set[bytes]) -> None:
    """Mount the merged layers over the topmost one, in a mount namespace of this thread's own.

    That path is the one which mkfs.erofs, its libraries and the file that is made surely do not lie below.
    """
    _call("unshare", _CLONE_NEWNS)  # implies CLONE_FS: the working directory is this thread's own as well
    # As a slave: what the host unmounts is unmounted here too, and not kept busy.
    _call("mount", None, b"/", None, _MS_REC | _MS_SLAVE, None)
    with ExitStack() as stack:
        # Opened here: overlayfs takes directories of its own mount namespace only.
        layers = [_open(layer, stack) for layer in lower]
        # overlayfs lists a directory that is not merged as it is, whiteouts included, and wants two layers at least. So
        # there is one more below all, with nothing in it but the directories that hold whiteouts: those are merged
        # then. It adds none: what hides one of them in a layer above, hides this one's.
        target = os.fsencode(top)
        _call("mount", b"tmpfs", target, b"tmpfs", 0, b"mode=755")
        for folder in marked:
            os.makedirs(os.path.join(target, folder), exist_ok=True)
        layers.append(_open(top, stack))
        # By number, as init does it: mount(2) takes one page of options, and paths may have commas and colons in them.
        os.chdir("/proc/self/fd")
        _call("mount", b"overlay", target, b"overlay", 0, b"lowerdir=" + b":".join(b"%d" % layer for layer in layers))
        os.chdir("/")


def _start(program: str, top: str, fds: tuple[int, ...]) -> Popen[bytes]:
    """mkfs.erofs on its way.

    It calls lstat, readlink, llistxattr and opens regular files and directories only, by paths in which every other
    component is a directory that it found itself: no link of the image leads it anywhere.

    Not compressed: lz4 would make the file half as large, beside layers that are unpacked on the same disk anyway, and
    every guest would pay for it with each page it reads (docs/design/images.md has the figures).
    """
    import subprocess

    # It inherits the descriptor, and so the lock, in case this process is killed: nobody else writes meanwhile.
    # The environment is made new because SOURCE_DATE_EPOCH would change the files' times.
    return subprocess.Popen(
        [program, "--quiet", f"/proc/self/fd/{fds[0]}", top],
        cwd="/",
        env={"LC_ALL": "C"},
        pass_fds=fds,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def _call(name: str, *arguments: int | bytes | None) -> None:
    """unshare(2) or mount(2); OSError with the kernel's errno."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*(ctypes.c_ulong(item) if isinstance(item, int) else item for item in arguments)) < 0:
        raise OSError(ctypes.get_errno(), name)


def _open(path: str, stack: ExitStack) -> int:
    fd = os.open(path, _DIRECTORY)
    stack.callback(os.close, fd)
    return fd


def _remove_unlocked(path: str) -> int:
    """Remove unless a living process holds its flock; unlinked while locked here, so nobody starts to use it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return 0
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    else:
        return _remove(path)
    finally:
        os.close(fd)


def _remove(path: str) -> int:
    with suppress(FileNotFoundError):
        freed = os.stat(path, follow_symlinks=False).st_blocks * 512
        os.unlink(path)
        return freed
    return 0
