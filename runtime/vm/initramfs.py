"""The initramfs: init as the guest's agent, and the kernel modules that it loads."""

from __future__ import annotations

import hashlib
import os

from pycontain.runtime import namespaces
from pycontain.runtime.errors import NotFound
from pycontain.runtime.vm import guest

AGENT = namespaces.INIT  # what the guest starts with
# What the distribution's kernel needs; dependencies are found, built-in ones are passed over.
MODULES = (
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "virtio_net",
    "virtio-rng",
    "virtio_balloon",
    "virtiofs",
    "erofs",
    "overlay",
)


def initramfs(kernel: guest.Kernel, cache: str) -> str:
    """The path of the initramfs for ``kernel``, made the first time. A kernel without modules has them built in."""
    init = _agent()
    of = hashlib.sha256(f"{kernel.release}\0{kernel.modules}\0{MODULES}".encode()).hexdigest()[:12]
    path = os.path.join(cache, f"{_prefix(init)}{of}")
    if os.path.exists(path):
        return path
    files: dict[str, tuple[int, bytes]] = {"init": (0o100755, init)}
    if kernel.modules:
        modules = guest.modules(kernel, MODULES)
        files |= {"m": (0o40755, b""), "m/list": (0o100644, "".join(f"{name}\n" for name, _ in modules).encode())}
        files |= {f"m/{name}": (0o100644, data) for name, data in modules}
    os.makedirs(cache, 0o700, exist_ok=True)
    part = f"{path}.{os.getpid()}"
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o444)
    with open(fd, "wb") as file:
        file.write(guest.cpio(files))
    os.rename(part, path)
    return path


def prefix() -> str:
    """What the names of all initramfs files begin with that this agent is in. Raises NotFound."""
    return _prefix(_agent())


def _prefix(agent: bytes) -> str:
    return f"initramfs-{hashlib.sha256(agent).hexdigest()[:12]}-"


def _agent() -> bytes:
    try:
        with open(AGENT, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise NotFound(f"cannot make an initramfs: {AGENT} does not exist", hint="make -C runtime/init") from None
