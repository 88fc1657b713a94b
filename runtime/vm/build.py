"""A small kernel for machines, compiled from the distribution's source package: what kernel.fragment names and no more.

Nothing is installed and root is not needed. It boots in less than half the time of the distribution's, which has its
drivers in modules and wants a PCI bus.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
import time

from pycontain.runtime.errors import KernelError, NotFound, PycontainError, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

FRAGMENT = f"{__file__.rpartition('/')[0]}/kernel.fragment"
META_PACKAGE = "linux-source"
# What has to be there, and the package that brings it.
_TOOLS = {
    "make": "make", "gcc": "gcc", "ld": "binutils", "strip": "binutils", "flex": "flex", "bison": "bison", "bc": "bc",
    "tar": "tar", "xz": "xz-utils",
}  # fmt: skip
_HEADERS = {"stdlib.h": "libc6-dev", "libelf.h": "libelf-dev"}
_FETCHING = {"apt-get": "apt", "apt-cache": "apt", "dpkg": "dpkg"}
_BYTES = 3 << 30  # what the unpacked source and what is compiled of it take
_OPTIONAL = "# ---- not in every release"
_LINE = re.compile(r'(CONFIG_\w+)=(y|\d+|"[^"]*")|# (CONFIG_\w+) is not set')


class Built:
    """A kernel that was built: its file, its release as uname(2) will say, its size in bytes, the seconds it took."""

    def __init__(self, path: str, release: str, size: int, seconds: float) -> None:
        self.path = path
        self.release = release
        self.size = size
        self.seconds = seconds


def options(fragment: str) -> tuple[dict[str, str], dict[str, str]]:
    """``{option: value}`` that a fragment asks for, and what it asks for only where the source has it ("n": off).

    Raises PycontainError for a line that is none of .config's.
    """
    required: dict[str, str] = {}
    optional: dict[str, str] = {}
    found = required
    for number, line in enumerate(fragment.splitlines(), 1):
        if line.startswith(_OPTIONAL):
            found = optional
        match = _LINE.fullmatch(line)
        if match is None:
            if line and (not line.startswith("#") or line.startswith("# CONFIG_")):
                raise PycontainError(f"kernel.fragment:{number}: found {line!r}, wanted CONFIG_NAME=VALUE")
            continue
        name = match[1] or match[3]
        if name in required or name in optional:
            raise PycontainError(f"kernel.fragment:{number}: {name} is there twice")
        found[name] = match[2] or "n"
    return required, optional


def lacking(wanted: Mapping[str, str], config: str) -> list[str]:
    """The options that did not take, each as ``CONFIG_NAME: found VALUE, wanted VALUE``, from the text of a .config."""
    taken = {match[1]: match[2] for match in re.finditer(r"^(CONFIG_\w+)=(.*)$", config, re.MULTILINE)}
    return [
        f"{name}: found {taken.get(name, 'n')}, wanted {value}"
        for name, value in wanted.items()
        if taken.get(name, "n") != value
    ]


def missing(*, fetching: bool) -> dict[str, str]:
    """What a build needs and this host has not, with the package of each; ``fetching``: the source too."""
    tools = _TOOLS | (_FETCHING if fetching else {})
    found = {name: package for name, package in tools.items() if shutil.which(name) is None}
    if "gcc" not in found:
        for header, package in _HEADERS.items():
            command = ["gcc", "-E", "-x", "c", "-include", header, "-o", "/dev/null", "/dev/null"]
            if subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL).returncode:
                found[header] = package
    return found


def build(
    cache: str,
    *,
    output: str | None = None,
    source: str | None = None,
    jobs: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Built:
    """Build the kernel into ``output``, or into ``vmlinux-RELEASE`` in the ``cache``.

    ``source``: a tar archive of a kernel's source, else the distribution's is fetched; ``jobs``: compilers at once,
    else one a processor; ``say`` is told what is being done. Raises NotFound for tools that are missing, Unsupported,
    and PycontainError with what apt, tar or make said.
    """
    if platform.machine() != "x86_64":
        raise Unsupported(f"cannot build a kernel for {platform.machine()}: its options are written for x86_64 only")
    if source is not None and not os.path.isfile(source):
        raise NotFound(f"cannot build a kernel: {source} is not a file")
    if output is not None and (os.path.isdir(output) or not os.path.isdir(os.path.dirname(os.path.abspath(output)))):
        raise PycontainError(f"cannot build a kernel into {output}: wanted a file's name in a directory that is there")
    tools = missing(fetching=source is None)
    if tools:
        raise NotFound(
            f"cannot build a kernel: {', '.join(tools)} {'is' if len(tools) == 1 else 'are'} not there",
            hint=f"apt-get install {' '.join(sorted(set(tools.values())))}",
        )
    begun = time.monotonic()
    above = os.environ.get("TMPDIR") or "/var/tmp"
    work = _directory(above)
    try:
        if source is None:
            source = _fetched(work, say)
        say(f"unpacking {os.path.basename(source)}")
        tree = os.path.join(work, "linux")
        os.mkdir(tree)
        _call(["tar", "-xf", os.path.abspath(source), "-C", tree, "--strip-components=1", "--no-same-owner"])
        if not os.path.exists(os.path.join(tree, "Kconfig")):
            raise PycontainError(f"cannot build a kernel: {source} has no Kconfig in its first directory")
        _configure(tree)
        release = _call(["make", "-s", "kernelrelease"], tree).split()[-1]
        jobs = jobs or len(os.sched_getaffinity(0))
        say(f"compiling {release} with {jobs} jobs: some minutes")
        _call(["make", "-s", f"-j{jobs}", "vmlinux"], tree)
        path = os.path.abspath(output) if output is not None else os.path.join(cache, f"vmlinux-{release}")
        size = _put(os.path.join(tree, "vmlinux"), path)
        return Built(path, release, size, time.monotonic() - begun)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _directory(above: str) -> str:
    try:
        free = os.statvfs(above)
        if free.f_bavail * free.f_frsize < _BYTES:
            found = free.f_bavail * free.f_frsize >> 20
            raise PycontainError(
                f"cannot build a kernel in {above}: found {found} MiB free, wanted {_BYTES >> 20}",
                hint="TMPDIR=/a/larger/directory pycontain vm build-kernel",
            )
        return tempfile.mkdtemp(prefix="pycontain-kernel-", dir=above)
    except OSError as error:
        raise KernelError(f"cannot build a kernel in {above}", error.errno or 0) from None


def _fetched(work: str, say: Callable[[str], None]) -> str:
    """The archive of the distribution's newest source for this release, as its meta-package names it."""
    match = re.search(r"Depends: (linux-source-\S+)", _call(["apt-cache", "depends", META_PACKAGE]))
    if match is None:
        raise PycontainError(f"cannot build a kernel: apt knows no package {META_PACKAGE}", hint="apt-get update")
    say(f"fetching {match[1]}")
    _call(["apt-get", "download", match[1]], work)
    package = next((name for name in os.listdir(work) if name.endswith(".deb")), None)
    if package is None:
        raise PycontainError(f"cannot build a kernel: apt-get download {match[1]} left no package")
    _call(["dpkg", "-x", os.path.join(work, package), os.path.join(work, "package")])
    os.unlink(os.path.join(work, package))
    for folder, _, names in os.walk(os.path.join(work, "package")):
        for name in names:
            if name.startswith("linux-source-") and ".tar" in name:
                return os.path.join(folder, name)
    raise PycontainError(f"cannot build a kernel: {match[1]} holds no linux-source-*.tar")


def _configure(tree: str) -> None:
    """All off but what the fragment names; then every line of it is looked up in what came out."""
    with open(FRAGMENT) as file:
        required, _ = options(file.read())
    _call(["make", "-s", f"KCONFIG_ALLCONFIG={FRAGMENT}", "allnoconfig"], tree)
    _call(["make", "-s", "olddefconfig"], tree)
    with open(os.path.join(tree, ".config")) as file:
        wrong = lacking(required, file.read())
    if wrong:
        raise PycontainError(f"cannot build a kernel: of kernel.fragment did not take: {'; '.join(wrong)}")


def _put(vmlinux: str, path: str) -> int:
    """Strip it into its place, whole or not at all; its size."""
    part = f"{path}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        try:
            _call(["strip", "-o", part, vmlinux])
            os.chmod(part, 0o644)
            os.rename(part, path)
        finally:
            if os.path.exists(part):
                os.unlink(part)
        return os.stat(path).st_size
    except OSError as error:
        raise KernelError(f"cannot write {path}", error.errno or 0) from None


def _call(command: list[str], cwd: str | None = None) -> str:
    environment = {**os.environ, "LC_ALL": "C", "KBUILD_BUILD_USER": "pycontain", "KBUILD_BUILD_HOST": "pycontain"}
    try:
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise NotFound(f"cannot build a kernel: {command[0]} is not installed") from None
    if done.returncode:
        lines = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
        # make says last that it failed; the first error says why.
        said = next((line for line in lines if re.search(r"\berror\b|^E:", line)), lines[-1] if lines else "")
        text = " ".join(os.path.basename(word) if word.startswith("/") else word for word in command)
        raise PycontainError(f"cannot build a kernel: {text}: {said or f'exit status {done.returncode}'}")
    return done.stdout
