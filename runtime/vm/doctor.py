"""What a machine needs of this host, looked up one by one: what there is, what is missing, and what brings it."""

from __future__ import annotations

import os
import shutil
import subprocess

from pycontain.runtime import namespaces
from pycontain.runtime.errors import PycontainError, errno_text
from pycontain.runtime.vm import accel, guest, initramfs, parts, qemu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycontain.runtime.vm.settings import Settings

OK, LACKING, MISSING = "ok", "lacking", "missing"
_QEMU = "apt-get install qemu-system-x86"
_SECONDS = 20
_TUN = "/dev/net/tun"
_SBIN = ":/usr/sbin:/sbin"


class Check:
    """One line. ``state``: ``ok``, ``lacking`` (machines start, with less) or ``missing`` (none starts); ``found`` says
    what there is; ``command`` is the one that brings what there is not, or "".
    """

    def __init__(self, name: str, state: str, found: str, command: str = "") -> None:
        self.name = name
        self.state = state
        self.found = found
        self.command = command


def checks(settings: Settings) -> list[Check]:
    """Every check, in the order in which a start needs them. Boots a guest under KVM where there is one to try."""
    user = os.geteuid()
    found = [Check("user", OK if user == 0 else MISSING, f"{user}", "" if user == 0 else "sudo pycontain vm doctor")]
    found += _hypervisor(settings)
    found.append(_init())
    kernel, line = _kernel(settings)
    found.append(line)
    able = all(check.state != MISSING for check in found)
    if kernel is not None:
        found.append(_initramfs(settings, kernel) if able else Check("initramfs", LACKING, "not made yet"))
    found.append(_kvm(settings, able and kernel is not None))
    found.append(_program("images", "mkfs.erofs", "erofs-utils"))
    found.append(_program("disks", "mkfs.ext4", "e2fsprogs"))
    found.append(_tun())
    found.append(_virtiofsd())
    return found


def able(found: list[Check]) -> bool:
    """Whether a machine can be started."""
    return all(check.state != MISSING for check in found)


def version(hypervisor: str) -> str:
    """QEMU's, as it says it (``7.2.22``). Raises PycontainError."""
    words = _call([hypervisor, "--version"]).split()
    return words[words.index("version") + 1] if "version" in words[:-1] else "unknown"


def _call(command: list[str]) -> str:
    text = " ".join(command)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise PycontainError(f"{text}: {errno_text(error.errno or 0)}") from None
    except subprocess.TimeoutExpired:
        raise PycontainError(f"{text}: no answer within {_SECONDS} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        raise PycontainError(f"{text}: {said[-1]}")
    return done.stdout


def _hypervisor(settings: Settings) -> list[Check]:
    try:
        path = parts.hypervisor_path(settings.hypervisor)
        found = [Check("hypervisor", OK, f"{path} ({version(path)})")]
    except PycontainError as error:
        return [Check("hypervisor", MISSING, error.message, error.hint or _QEMU)]
    try:
        _call([path, "-sandbox", "on", "--version"])
        found.append(Check("sandbox", OK, "seccomp"))
    except PycontainError as error:
        found.append(Check("sandbox", MISSING, error.message, _QEMU))
    try:
        known = {line.split()[0] for line in _call([path, "-machine", "help"]).splitlines() if line.strip()}
        kinds = ("microvm", "q35") if settings.machine == "auto" else (settings.machine,)
        absent = [kind for kind in kinds if kind not in known]
        state = MISSING if len(absent) == len(kinds) else LACKING if absent else OK
        words = f"{', '.join(kinds)}{f': found no {absent[0]}' if absent else ''}"
        found.append(Check("machine", state, words, _QEMU if absent else ""))
    except PycontainError as error:
        found.append(Check("machine", MISSING, error.message, _QEMU))
    return found


def _init() -> Check:
    if os.path.isfile(namespaces.INIT):
        return Check("init", OK, namespaces.INIT)
    return Check("init", MISSING, f"{namespaces.INIT} does not exist", "make -C runtime/init")


def _kernel(settings: Settings) -> tuple[guest.Kernel | None, Check]:
    """The kernel as far as it is here, and the line about it: one that apt can fetch is as good."""
    if settings.kernel is not None:
        try:
            kernel = parts.kernel_of(settings)
            return kernel, Check("kernel", OK, f"{kernel.image} (configured, {qemu.kind_of(kernel.image)})")
        except (PycontainError, OSError) as error:
            said = error.message if isinstance(error, PycontainError) else str(error)
            return None, Check("kernel", MISSING, said, "pycontain vm build-kernel")
    try:
        kernel = accel.fetched(settings.cache)
        return kernel, Check("kernel", OK, f"{kernel.image} (the distribution's, {qemu.kind_of(kernel.image)})")
    except (PycontainError, OSError):
        pass
    absent = [name for name in ("apt-cache", "apt-get", "dpkg") if shutil.which(name) is None]
    if absent:
        found = f"none is configured, and none can be fetched: found no {', '.join(absent)}"
        return None, Check("kernel", MISSING, found, "pycontain vm build-kernel --source linux.tar.xz")
    return None, Check("kernel", LACKING, "the distribution's is fetched when it is needed", "pycontain vm kernel")


def _initramfs(settings: Settings, kernel: guest.Kernel) -> Check:
    """Made here, as the first start would: so its modules are known to be there."""
    try:
        path = initramfs.initramfs(kernel, settings.cache)
        modules = "with modules" if kernel.modules else "no modules needed"
        return Check("initramfs", OK, f"{path} ({os.stat(path).st_size >> 10} KiB, {modules})")
    except (PycontainError, OSError) as error:
        said = error.message if isinstance(error, PycontainError) else str(error)
        return Check("initramfs", MISSING, said, "pycontain vm build-kernel")


def _kvm(settings: Settings, able: bool) -> Check:
    found = accel.verdict(settings, fresh=True) if able else accel.known(settings)
    if found is None:
        return Check("kvm", LACKING, "not probed: what is missing comes first")
    if found.accel == "kvm":
        if settings.accel == "kvm" and not os.access(accel.KVM, os.R_OK | os.W_OK):
            return Check("kvm", MISSING, f"{found.reason}: {accel.KVM} cannot be opened", "modprobe kvm")
        return Check("kvm", OK, found.reason)
    return Check("kvm", LACKING, f"emulation (tcg): {found.reason}", _bringing_kvm(settings))


def _bringing_kvm(settings: Settings) -> str:
    """What may help, where anything does: QEMU runs as a user of its own, and may open what the device's group may."""
    if settings.accel != "auto":
        return ""
    if not os.path.exists(accel.KVM):
        return "modprobe kvm-intel || modprobe kvm-amd"
    if os.stat(accel.KVM).st_mode & 0o060 != 0o060:
        return f"chgrp kvm {accel.KVM} && chmod 660 {accel.KVM}"
    return ""


def _program(name: str, program: str, package: str) -> Check:
    path = shutil.which(program, path=f"{os.environ.get('PATH', '')}{_SBIN}")
    if path is None:
        return Check(name, MISSING, f"{program} is not installed", f"apt-get install {package}")
    return Check(name, OK, path)


def _tun() -> Check:
    try:
        os.close(os.open(_TUN, os.O_RDWR | os.O_CLOEXEC))
        return Check("network", OK, _TUN)
    except OSError as error:
        said = f"open {_TUN}: {errno_text(error.errno or 0)}: containers have no network but none"
        return Check("network", LACKING, said, "modprobe tun")


def _virtiofsd() -> Check:
    """Only directories that are shared with a container need it."""
    path = next((path for path in parts.VIRTIOFSD if os.access(path, os.X_OK)), None)
    if path is None:
        return Check(
            "volumes", LACKING, "virtiofsd is not installed: no directory is shared", "apt-get install virtiofsd"
        )
    return Check("volumes", OK, path)
