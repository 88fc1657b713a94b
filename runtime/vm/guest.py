"""What a guest boots with: the distribution's kernel, fetched and unpacked without being installed, and an initramfs.

The kernel's modules are taken in the order of their own ``depends=`` fields, so that whoever loads them needs no
modprobe, and unpacked, so that the guest's kernel need not know how they were compressed.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess

from pycontain.runtime.errors import NotFound, PycontainError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Debian's kernels for virtual machines, by uname(2)'s machine.
META_PACKAGES = {"x86_64": "linux-image-cloud-amd64", "aarch64": "linux-image-cloud-arm64"}
_SECONDS = 300
_COMPRESSED = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")


class Kernel:
    """A kernel to boot. ``image``: its file; ``release``: as uname(2) will say; ``modules``: their directory."""

    def __init__(self, image: str, release: str, modules: str) -> None:
        self.image = image
        self.release = release
        self.modules = modules


def unpacked(tree: str) -> Kernel:
    """The kernel below ``tree``, which is an unpacked package (``boot/``, ``lib/modules/``). Raises NotFound."""
    boot = os.path.join(tree, "boot")
    names = sorted(os.listdir(boot)) if os.path.isdir(boot) else []
    for name in reversed(names):
        release = name.removeprefix("vmlinuz-")
        modules = os.path.join(tree, "lib/modules", release)
        if release != name and os.path.isdir(modules):
            return Kernel(os.path.join(boot, name), release, modules)
    raise NotFound(f"no kernel with its modules in {tree}: wanted boot/vmlinuz-RELEASE and lib/modules/RELEASE")


def beside(image: str) -> Kernel:
    """A kernel by its file. As a package has it, boot/vmlinuz-RELEASE, its modules are in ../lib/modules/RELEASE."""
    folder, name = os.path.split(os.path.realpath(image))
    release = name.removeprefix("vmlinuz-")
    modules = os.path.join(os.path.dirname(folder), "lib/modules", release)
    if release != name and os.path.exists(os.path.join(modules, "modules.builtin")):
        return Kernel(image, release, modules)
    return Kernel(image, "", "")  # all that it needs is built in


def distribution(cache: str) -> Kernel:
    """The distribution's kernel for virtual machines, from ``cache``, fetched by apt into it the first time.

    Nothing is installed, and root is not needed. Raises PycontainError, with what apt or dpkg said.
    """
    os.makedirs(cache, 0o700, exist_ok=True)
    for name in sorted(os.listdir(cache), reverse=True):
        if not name.startswith("."):
            return unpacked(os.path.join(cache, name))
    return _fetch(cache)


def _fetch(cache: str) -> Kernel:
    package = _package()
    done, work = os.path.join(cache, package), os.path.join(cache, f".{package}.{os.getpid()}")
    tree = os.path.join(work, "root")
    os.makedirs(work)
    try:
        _call(["apt-get", "download", package], cwd=work)
        archive = next(name for name in os.listdir(work) if name.endswith(".deb"))
        _call(["dpkg", "-x", os.path.join(work, archive), tree])
        if os.path.isdir(f"{tree}/usr/lib/modules") and not os.path.exists(f"{tree}/lib"):
            os.symlink("usr/lib", f"{tree}/lib")  # a package made for hosts where /lib is that link
        kernel = unpacked(tree)
        if shutil.which("depmod"):
            # With an index of its own the guest's kernel can ask for more of its modules.
            _call(["depmod", "-b", tree, kernel.release])
        try:
            os.rename(tree, done)
        except OSError:
            if not os.path.isdir(done):  # else another process was faster
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return unpacked(done)


def _package() -> str:
    """The package that the meta-package depends on today."""
    machine = platform.machine()
    if machine not in META_PACKAGES:
        raise PycontainError(f"no package with a kernel is known for {machine}: wanted {', '.join(META_PACKAGES)}")
    found = re.search(r"Depends: (linux-image-\S+)", _call(["apt-cache", "depends", META_PACKAGES[machine]]))
    if found is None:
        raise PycontainError(f"apt knows no package {META_PACKAGES[machine]}", hint="apt-get update")
    return found[1]


def _call(command: list[str], cwd: str | None = None) -> str:
    text = " ".join(command)
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=_SECONDS, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise PycontainError(f"cannot fetch a kernel: {command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise PycontainError(f"cannot fetch a kernel: {text}: no answer within {_SECONDS} s") from None
    if done.returncode:
        last = ((done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise PycontainError(f"cannot fetch a kernel: {text}: {last}")
    return done.stdout


def module_bytes(path: str) -> bytes:
    """A module as the kernel takes it, whatever it was compressed with."""
    with open(path, "rb") as file:
        data = file.read()
    if path.endswith(".xz"):
        import lzma

        return lzma.decompress(data)
    if path.endswith(".gz"):
        import gzip

        return gzip.decompress(data)
    if path.endswith(".zst"):
        try:
            from compression import zstd  # type: ignore[import-not-found]  # Python 3.14
        except ImportError:
            import zstandard

            return zstandard.ZstdDecompressor().decompressobj().decompress(data)
        return bytes(zstd.decompress(data))
    return data


def built_in(kernel: Kernel) -> set[str]:
    """The modules that this kernel, one with modules, has in itself; with ``_`` for ``-``."""
    with open(os.path.join(kernel.modules, "modules.builtin")) as file:
        return {os.path.basename(line.strip()).partition(".")[0].replace("-", "_") for line in file}


def modules(kernel: Kernel, wanted: Iterable[str]) -> list[tuple[str, bytes]]:
    """``(name, module)`` of the modules ``wanted`` and all that they depend on, in an order in which they load.

    What is built into the kernel is left out. Raises NotFound for one that this kernel does not have.
    """
    files: dict[str, str] = {}
    for folder, _, names in os.walk(kernel.modules):
        for name in names:
            stem, dot, ending = name.partition(".")
            if dot + ending in _COMPRESSED:
                files[stem.replace("-", "_")] = os.path.join(folder, name)
    present = built_in(kernel)
    order: dict[str, bytes] = {}

    def add(name: str, pending: tuple[str, ...]) -> None:
        name = name.replace("-", "_")
        if name in present or name in order:
            return
        if name in pending:
            raise PycontainError(f"the modules of kernel {kernel.release} depend on each other: {' '.join(pending)}")
        if name not in files:
            raise NotFound(f"kernel {kernel.release} has no module {name}")
        data = module_bytes(files[name])
        # modinfo(8): NUL-terminated "depends=a,b" in the section .modinfo.
        match = re.search(rb"\0depends=([^\0]*)\0", data)
        for needed in match[1].decode().split(",") if match and match[1] else ():
            add(needed, (*pending, name))
        order[name] = data

    for name in wanted:
        add(name, ())
    return list(order.items())


def cpio(files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """A newc archive (kernel: driver-api/early-userspace/buffer-format) of ``path: (mode, content)``.

    The kernel unpacks several of them one after the other, later files over earlier ones.
    """
    archive = bytearray()
    for number, (name, (mode, data)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))], 1):
        path = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        archive += b"\0" * (-len(archive) % 4) + data
        archive += b"\0" * (-len(archive) % 4)
    return bytes(archive)
