"""The test machine's kernel: the distribution's, fetched once, and an initramfs with the modules that tests use."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

from pycontain.runtime.errors import PycontainError
from pycontain.runtime.vm import guest

# What the machine boots with, then what containers use. Dependencies are found; built-in ones are passed over.
MODULES = """
    virtio_pci virtio_blk virtio_console virtio-rng virtiofs overlay crc32c-intel
    bridge veth tun dummy macvlan ipvlan vxlan loop
    nf_tables nfnetlink nft_chain_nat nft_masq nft_nat nft_redir nft_ct nft_compat nft_reject_inet nft_reject_ipv4
    nft_fib_inet nft_log nft_limit nft_numgen nft_hash
    xt_MASQUERADE xt_conntrack xt_comment xt_addrtype xt_nat xt_mark xt_tcpudp xt_multiport xt_REDIRECT
    nf_conntrack_netlink
"""


class Unavailable(Exception):
    """The machine cannot be made here; the text says why."""


def cache() -> Path:
    """Where kernels are kept: PYCONTAIN_TEST_CACHE, or ``~/.cache/pycontain-test``."""
    return Path(os.environ.get("PYCONTAIN_TEST_CACHE") or Path.home() / ".cache/pycontain-test")


def kernel() -> guest.Kernel:
    """The unpacked kernel, fetched on the first call. Raises Unavailable."""
    if platform.machine() != "x86_64":
        raise Unavailable(f"the test machine is for x86_64 only, this is {platform.machine()}")
    try:
        return guest.distribution(str(cache() / "kernel"))
    except PycontainError as error:
        raise Unavailable(error.message) from None


def base_initramfs(found: guest.Kernel) -> Path:
    """The initramfs of this kernel, with init and modules, kept in the cache and made again when init.c is newer."""
    source = Path(__file__).with_name("init.c")
    made = cache() / f"initramfs-{found.release}.cpio"
    newest = max(source.stat().st_mtime, Path(__file__).stat().st_mtime)
    if made.exists() and made.stat().st_mtime > newest:
        return made
    init = made.with_name(f"init.{os.getpid()}")
    _compile(source, init)
    modules = guest.modules(found, MODULES.split())
    files: dict[str, tuple[int, bytes]] = {"m": (0o40755, b""), "cfg": (0o40755, b""), "dev": (0o40755, b"")}
    files["init"] = (0o100755, init.read_bytes())
    files["m/list"] = (0o100644, "".join(f"{name}\n" for name, _ in modules).encode())
    files |= {f"m/{name}": (0o100644, data) for name, data in modules}
    init.unlink()
    part = made.with_name(f"initramfs.{os.getpid()}")
    part.write_bytes(guest.cpio(files))
    part.rename(made)
    return made


def _compile(source: Path, target: Path) -> None:
    """musl starts ten times faster than a static glibc; either does."""
    triplet = f"{platform.machine()}-linux-gnu"
    musl = ["musl-gcc", "-idirafter", "/usr/include", "-idirafter", f"/usr/include/{triplet}"]
    compiler = musl if shutil.which("musl-gcc") else ["cc"]
    command = [*compiler, "-static", "-Os", "-Wall", "-Wextra", "-Werror", "-o", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise Unavailable(f"{' '.join(command)}: {done.stderr.strip()}")
