"""Templates: a machine that was booted once, up to its agent's first answer, and from which others are cloned.

``<cache>/templates/<key>/``: ``ram``, the guest's memory, which every clone maps privately (copy on write),
``state``, that of its devices, and ``kernel``, what QEMU has to see of one that it would read as a whole. What a clone
has of its own (random numbers, clock, MAC address) it gets with its first call, as every machine does. The pages that
clones have in common are a side channel between them, so a template is for one trust domain, and ``templates = false``
in the operator's file boots every machine for itself.

The key is of everything that matters: for another kernel, initramfs, QEMU, processor or amount of memory there is
another template.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from fcntl import LOCK_EX, LOCK_NB, flock

from pycontain.runtime import jsontext, namespaces
from pycontain.runtime.errors import ChannelClosed, Conflict, PycontainError
from pycontain.runtime.vm import initramfs, port, qemu
from pycontain.runtime.vm.parts import Base, Parts, uid_of

MIB = 1 << 20
_MADE_OF = "made-of"
_UNUSED_SECONDS = 7 * 86400
_BUILD_SECONDS = 90.0  # longer than a builder that runs waits for anything
_BZIMAGE_START = 64 << 10
IMAGE = 64 << 10  # sparse: the guest keeps the size that the template's first disk had


def ensure(base: Base, *, network: bool, disks: list[int]) -> str:
    """The directory of the template, made the first time. ``disks``: their sizes in MiB; IMAGE is that of an image's.

    Raises PycontainError where it cannot be made.
    """
    root = os.path.join(base.settings.cache, "templates")
    done = os.path.join(root, key(base, network=network, disks=disks))
    try:
        os.utime(done)  # used today: see sweep
        return done
    except FileNotFoundError:
        pass
    os.makedirs(root, 0o700, exist_ok=True)
    lock = _lock(done)
    try:
        if not os.path.exists(done):
            _make(base, done, network=network, disks=disks)
    except BaseException:
        shutil.rmtree(f"{done}.part", ignore_errors=True)
        raise
    finally:
        os.close(lock)
    return done


def _lock(done: str) -> int:
    """The descriptor of the builder's lock, with our pid in it. Raises Conflict where another holds it for too long."""
    deadline = time.monotonic() + _BUILD_SECONDS
    while True:
        fd = os.open(f"{done}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            flock(fd, LOCK_EX | LOCK_NB)
            if os.fstat(fd).st_nlink:  # else it was swept away while we waited
                os.ftruncate(fd, 0)
                os.write(fd, b"%d" % os.getpid())
                return fd
        except BlockingIOError:
            if time.monotonic() >= deadline:
                pid = os.pread(fd, 20, 0).decode("ascii", "replace")
                os.close(fd)
                raise Conflict(
                    f"cannot make a template: process {pid} has not made it within {_BUILD_SECONDS:.0f} s",
                    hint=f"kill -9 {pid}, if it is stopped",
                ) from None
            time.sleep(0.01)
        os.close(fd)


def sweep(root: str) -> list[str]:
    """Remove what builders left that are dead, and templates that no machine can or does use; their names.

    A clone has its template's files open: they go when it does.
    """
    removed = []
    names = sorted(os.listdir(root)) if os.path.isdir(root) else []
    for name in sorted({name.partition(".")[0] for name in names}):
        done = os.path.join(root, name)
        lock = os.open(f"{done}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            flock(lock, LOCK_EX | LOCK_NB)
            shutil.rmtree(f"{done}.part", ignore_errors=True)
            if os.path.isdir(done):
                if usable(done):
                    continue
                os.rename(done, f"{done}.part")  # at once, for whoever is about to clone it
                shutil.rmtree(f"{done}.part", ignore_errors=True)
                removed.append(name)
            os.unlink(f"{done}.lock")
        except BlockingIOError:
            continue  # it is being built
        finally:
            os.close(lock)
    return removed


def usable(done: str) -> bool:
    """Whether a machine of today can be a clone of it, and one was in the last days."""
    path = f"{done}/{_MADE_OF}"
    try:
        with open(path, "rb") as file:
            made = jsontext.parse(file.read(1 << 16), path)
        same = all(_identity(found[0]) == found for found in made["files"])
        own = str(made["initrd"]).startswith(initramfs.prefix())
        return same and own and time.time() - os.stat(done).st_mtime < _UNUSED_SECONDS
    except (OSError, PycontainError, LookupError, TypeError):
        return False


def _identity(path: str) -> list[object]:
    found = os.stat(path)
    return [path, found.st_mtime_ns, found.st_size, found.st_ino]


def _files(base: Base) -> list[list[object]]:
    return [_identity(path) for path in (base.hypervisor, base.kernel.image)]


def key(base: Base, *, network: bool, disks: list[int]) -> str:
    """Names the template that a machine of these settings is a clone of."""
    parts: list[object] = [base.kind, base.accel, base.settings.memory, base.settings.cpus, base.settings.parameters]
    parts += [base.settings.domain, network, disks, qemu.PORTS, qemu.BOOT, qemu.EMULATED, qemu.PLUG]
    parts += [os.path.basename(base.initrd), _processor()]
    parts += _files(base)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        return next((line for line in file if line.startswith("model name")), "")


def _make(base: Base, done: str, *, network: bool, disks: list[int]) -> None:
    work = f"{done}.part"
    shutil.rmtree(work, ignore_errors=True)  # of a builder that was killed: we have the lock
    os.mkdir(work, 0o700)
    ram, state = f"{work}/ram", f"{work}/state"
    uid = uid_of(work)
    sizes = [(f"{work}/disk{i}", mib) for i, mib in enumerate(disks)]
    for path, mib in [(ram, base.settings.memory), *sizes]:
        with open(path, "xb") as file:
            file.truncate(mib * MIB)
            os.fchown(file.fileno(), uid, uid)
    images = [(path, mib != IMAGE) for path, mib in sizes]
    parts = Parts(base, work, images, ram=ram, tap=(-1, "02:70:00:00:00:01") if network else None)
    process = None
    try:
        p = parts.plan(into=False, joins=0, device_program=None, terminal=None, listener=None)
        process = namespaces.launch(p)
        process.unshared()
        process.go(b"")
        parts.handed_over()
        with port.Caller(work) as caller:
            caller.call([("enter_root",)], seconds=port.BOOT_SECONDS)
        from pycontain.runtime.vm.qmp import Monitor

        with Monitor(work) as monitor, open(state, "xb") as file:
            monitor.migrate_to(file.fileno())
    except (port.GuestGone, ChannelClosed) as error:
        raise PycontainError(f"cannot make a template: {error.message}{parts.said()}") from None
    finally:
        parts.close()
        if process is not None:
            process.close()
            if process.pid:
                os.kill(process.pid, 9)  # our child, not yet waited for
                os.waitpid(process.pid, 0)
    for name in os.listdir(work):
        if name not in ("ram", "state"):
            os.unlink(f"{work}/{name}")
    _keep_header(base.kernel.image, f"{work}/kernel")
    with open(f"{work}/{_MADE_OF}", "x") as made:
        made.write(jsontext.dump({"files": _files(base), "initrd": os.path.basename(base.initrd)}))
    # QEMU before 8.2 opens the file for writing even where it maps it privately; nobody else reaches this directory.
    os.chmod(ram, 0o666)  # noqa: S103
    os.rename(work, done)


def _keep_header(kernel: str, path: str) -> None:
    """What a clone's QEMU has to see of a bzImage, which it holds in memory of its own: 14 MiB of a kernel that runs.

    The header and the real-mode code are at most 64 sectors (kernel: arch/x86/boot). An ELF file is mapped, not read.
    """
    with open(kernel, "rb") as file:
        start = file.read(_BZIMAGE_START)
    if start[0x202:0x206] == b"HdrS":
        with open(path, "xb") as kept:
            kept.write(start)
