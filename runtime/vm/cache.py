"""What machines leave in the cache directory that nobody can use any more: for ``system prune``."""

from __future__ import annotations

import os
import shutil
from fcntl import LOCK_EX, LOCK_NB, flock

from pycontain.runtime.vm import initramfs, template


def sweep(cache: str) -> list[str]:
    """Remove it; a line for each template and initramfs. Raises NotFound where init is not built.

    Nothing goes that a machine of this installation could be started from.
    """
    if not os.path.isdir(cache):
        return []
    lines = [f"template {name}" for name in template.sweep(os.path.join(cache, "templates"))]
    prefix = initramfs.prefix()
    for name in sorted(os.listdir(cache)):
        path = os.path.join(cache, name)
        if name.startswith("initramfs-") and not name.startswith(prefix):
            os.unlink(path)
            lines.append(name)
        elif name.startswith(("initramfs-", "blank-")) and _abandoned(name):
            os.unlink(path)
    kernels = os.path.join(cache, "kernel")
    for name in os.listdir(kernels) if os.path.isdir(kernels) else ():
        if name.startswith(".") and _abandoned(name):
            shutil.rmtree(os.path.join(kernels, name), ignore_errors=True)
    _probe(cache)
    return lines


def _abandoned(name: str) -> bool:
    """NAME.PID is half a file, of a process that may be dead."""
    pid = name.rpartition(".")[2]
    return pid.isdigit() and not os.path.exists(f"/proc/{pid}")


def _probe(cache: str) -> None:
    """What a probe left that was killed; one that goes on has the lock."""
    try:
        fd = os.open(os.path.join(cache, "accel.lock"), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        flock(fd, LOCK_EX | LOCK_NB)
        shutil.rmtree(os.path.join(cache, "probe"), ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(fd)
