"""The test machine's kernel: Debian's cloud kernel, fetched by apt once, and an initramfs made of its modules."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

META_PACKAGE = "linux-image-cloud-amd64"

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


def kernel() -> Path:
    """The unpacked kernel package (``boot/``, ``lib/modules/``), fetched on the first call. Raises Unavailable."""
    if platform.machine() != "x86_64":
        raise Unavailable(f"the test machine is for x86_64 only, this is {platform.machine()}")
    found = sorted(cache().glob("kernel/*/boot/vmlinuz-*"))
    return found[-1].parent.parent if found else _fetch()


def _fetch() -> Path:
    package = _package()
    done = cache() / "kernel" / package
    work = cache() / "kernel" / f".{package}.{os.getpid()}"
    work.mkdir(parents=True)
    try:
        _run(["apt-get", "download", package], cwd=work)
        archive = next(work.glob("*.deb"))
        _run(["dpkg", "-x", str(archive), str(work / "root")])
        if shutil.which("depmod"):
            # With its own index of the modules, the guest's kernel can load more of them when it is asked to.
            _run(["depmod", "-b", str(work / "root"), next((work / "root/lib/modules").iterdir()).name])
        try:
            (work / "root").rename(done)
        except OSError:
            if not done.exists():  # else another run was faster
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return done


def _package() -> str:
    """The package that the meta-package depends on today."""
    output = _run(["apt-cache", "depends", META_PACKAGE])
    match = re.search(r"Depends: (linux-image-\S+)", output)
    if match is None:
        raise Unavailable(f"apt knows no {META_PACKAGE}: apt-get update")
    return match[1]


def _run(command: list[str], cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise Unavailable(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{' '.join(command)}: no answer within 300 s") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise Unavailable(f"{' '.join(command)}: {lines[-1]}")
    return done.stdout


def loading_order(tree: Path, wanted: list[str]) -> list[Path]:
    """The files of ``wanted`` and of all that they depend on, dependencies first. Raises Unavailable."""
    files = {path.stem.replace("-", "_"): path for path in tree.rglob("*.ko")}
    built_in = {Path(line).stem.replace("-", "_") for line in (tree / "modules.builtin").read_text().splitlines()}
    order: list[Path] = []

    def add(name: str) -> None:
        if name in built_in:
            return
        if name not in files:
            raise Unavailable(f"{tree.name} has no module {name}")
        if files[name] in order:
            return
        # modinfo's field: NUL-terminated "depends=a,b" in the section .modinfo.
        match = re.search(rb"\0depends=([^\0]*)\0", files[name].read_bytes())
        for needed in match[1].decode().split(",") if match and match[1] else []:
            add(needed.replace("-", "_"))
        order.append(files[name])

    for name in wanted:
        add(name.replace("-", "_"))
    return order


def cpio(files: dict[str, tuple[int, bytes]]) -> bytes:
    """A newc archive (kernel: driver-api/early-userspace/buffer-format) of ``path: (mode, content)``."""
    chunks: list[bytes] = []

    def pad() -> None:
        chunks.append(b"\0" * (-sum(map(len, chunks)) % 4))

    for number, (name, (mode, data)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))], 1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name.encode()) + 1, 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        chunks[:] = [b"".join(chunks), header]
        pad()
        chunks.append(data)
        pad()
    return b"".join(chunks)


def base_initramfs(tree: Path) -> Path:
    """The initramfs of this kernel, with init and modules, kept in the cache and made again when init.c is newer."""
    source = Path(__file__).with_name("init.c")
    made = tree / "initramfs.cpio"
    newest = max(source.stat().st_mtime, Path(__file__).stat().st_mtime)
    if made.exists() and made.stat().st_mtime > newest:
        return made
    init = tree / f"init.{os.getpid()}"
    _compile(source, init)
    modules = loading_order(next((tree / "lib/modules").iterdir()), MODULES.split())
    files: dict[str, tuple[int, bytes]] = {"m": (0o40755, b""), "cfg": (0o40755, b""), "dev": (0o40755, b"")}
    files["init"] = (0o100755, init.read_bytes())
    files["m/list"] = (0o100644, "".join(f"{path.name}\n" for path in modules).encode())
    for path in modules:
        files[f"m/{path.name}"] = (0o100644, path.read_bytes())
    init.unlink()
    part = tree / f"initramfs.{os.getpid()}"
    part.write_bytes(cpio(files))
    part.rename(made)
    return made


def _compile(source: Path, target: Path) -> None:
    """musl starts ten times faster than a static glibc; either does."""
    triplet = f"{platform.machine()}-linux-gnu"
    musl = ["musl-gcc", "-idirafter", "/usr/include", "-idirafter", f"/usr/include/{triplet}"]
    compiler = musl if shutil.which("musl-gcc") else ["cc"]
    _run([*compiler, "-static", "-Os", "-Wall", "-Wextra", "-Werror", "-o", str(target), str(source)])
