"""What a machine is started with: its sockets in a directory, its log, its command line; the host's side of it."""

from __future__ import annotations

import os
import socket
import zlib
from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SHRINK, fcntl

from pycontain.runtime.errors import KernelError, NotFound, PycontainError
from pycontain.runtime.vm import accel, guest, initramfs, port, qemu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontain.runtime.plan.plan import Plan
    from pycontain.runtime.vm.settings import Settings

_LOG_BYTES = 65536
_SAID = 200  # characters of its last line
VIRTIOFSD = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd")


class Base:
    """What machines of the same ``settings`` have in common, looked up once: programs, kernel, kind, acceleration."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        try:
            self.kernel = kernel_of(settings)
            self.hypervisor = hypervisor_path(settings.hypervisor)
            self.initrd = initramfs.initramfs(self.kernel, settings.cache)
        except OSError as error:
            raise KernelError(f"cannot make a machine: cache {settings.cache}", error.errno or 0) from None
        self.kind = settings.machine if settings.machine != "auto" else qemu.kind_of(self.kernel.image)
        self.accel = accel.choose(settings)

    def plugs(self) -> bool:
        """Whether a running machine takes a device more: microvm has no bus for that, and the kernel has to notice."""
        return self.kind == "q35" and bool(self.kernel.modules) and "acpiphp" in guest.built_in(self.kernel)


class Parts:
    """One machine's, in its state directory; the descriptors are this object's until ``close``.

    It is a clone of ``template`` (its directory), or is to become one, with its memory in the file ``ram``, or neither.
    """

    def __init__(
        self,
        base: Base,
        directory: str,
        disks: list[tuple[str, bool]],
        *,
        tap: tuple[int, str] | None = None,
        template: str | None = None,
        ram: str | None = None,
        shares: list[tuple[str, bool]] | None = None,
    ) -> None:
        outgoing = ram is not None
        self.base = base
        self.directory = directory
        self._alive = -1
        self._opened: list[int] = [tap[0]] if tap and not outgoing else []
        try:
            self.log = self._keep(os.memfd_create("pycontain-machine", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
            os.ftruncate(self.log, _LOG_BYTES)
            # A guest may talk without end; what it says is kept as far as it goes.
            fcntl(self.log, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK)
            ports = [self._keep(port.listen(directory, f"p{i}.sock")) for i in range(1, qemu.PORTS + 1)]
            self.machine = qemu.Machine(
                name=f"pycontain-{os.path.basename(directory)[:64]}",
                hypervisor=base.hypervisor,
                kernel=kernel_in(template) or base.kernel.image,
                initrd=base.initrd,
                kind=base.kind,
                accel=base.accel,
                memory=base.settings.memory,
                cpus=base.settings.cpus or 1,
                disks=disks,
                ports=ports,
                qmp=self._keep(port.listen(directory, "qmp.sock")),
                log=self.log,
                tap=tap,
                parameters=base.settings.parameters,
                tsc_khz=tsc_khz(),
                ram=f"{template}/ram" if template else ram,
                incoming=self._keep(os.open(f"{template}/state", os.O_RDONLY | os.O_CLOEXEC)) if template else None,
                outgoing=outgoing,
                shares=self._shares(shares) if shares else None,
            )
            if outgoing:
                # A template's stand-in speaks with nobody, and dies when we do.
                self._stand_in, self._alive = (self._keep(end.detach()) for end in socket.socketpair())
            else:
                self._stand_in = self._keep(port.connect(directory, f"p{port.STAND_IN}").detach())
        except BaseException:
            self.close()
            raise

    def _shares(self, sources: list[tuple[str, bool]]) -> qemu.Shares:
        helper = next((path for path in VIRTIOFSD if os.access(path, os.X_OK)), None)
        if helper is None:
            raise NotFound(
                f"cannot share {sources[0][0]} with a machine: virtiofsd is not installed",
                hint="apt-get install qemu-system-common",
            )
        listening = self._keep(port.listen(self.directory, "shares.sock"))
        return qemu.Shares(helper, sources, listening, self._keep(port.connect(self.directory, "shares").detach()))

    def _keep(self, fd: int) -> int:
        self._opened.append(fd)
        return fd

    def plan(self, *, oom: str | None = None, **more: Any) -> Plan:
        """The host's plan: the stand-in, and QEMU below it."""
        groups = os.stat("/dev/kvm").st_gid.to_bytes(4, "little") if self.base.accel == "kvm" else b""
        written = None
        if oom is not None:
            written = self._keep(os.open(oom, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        return qemu.host_plan(
            port=self._stand_in,
            oom=written,
            uid=uid_of(self.directory),
            machine=self.machine,
            groups=groups,
            **more,
        )

    def said(self) -> str:
        """What QEMU or the guest said last, for the words of a failure; ``""`` for nothing."""
        text = os.pread(self.log, _LOG_BYTES, 0).rstrip(b"\0").decode("utf-8", "replace").strip()
        lines = text.splitlines()
        # Its helper says of every end that it ends.
        last = next((line for line in reversed(lines) if line.startswith("qemu")), lines[-1] if lines else "")
        return f": it said last {last.strip()[-_SAID:]!r}" if last else ""

    def handed_over(self) -> None:
        """QEMU and the stand-in have their descriptors. Ours would keep calls waiting on a QEMU that has ended."""
        for fd in self._opened:
            if fd not in (self.log, self._alive):
                os.close(fd)
        self._opened = [fd for fd in (self.log, self._alive) if fd >= 0]

    def close(self) -> None:
        for fd in self._opened:
            os.close(fd)
        self._opened = []


def kernel_in(template: str | None) -> str | None:
    """The kernel that QEMU is to have beside a template's memory, where it is not the whole one."""
    path = f"{template}/kernel"
    return path if template and os.path.exists(path) else None


def kernel_of(settings: Settings) -> guest.Kernel:
    """The kernel of the configuration, with the modules that lie beside it, or the distribution's, fetched once."""
    if settings.kernel is None:
        return guest.distribution(os.path.join(settings.cache, "kernel"))
    if not os.path.isfile(settings.kernel):
        raise PycontainError(f"cannot boot {settings.kernel}: it is not a file", hint="pycontain vm doctor")
    return guest.beside(settings.kernel)


def hypervisor_path(name: str) -> str:
    """Where QEMU is, without links. Raises NotFound."""
    import shutil

    path = shutil.which(name)
    if path is None:
        raise NotFound(f"cannot start a machine: {name} is not installed", hint="apt-get install qemu-system-x86")
    return os.path.realpath(path)


def uid_of(directory: str) -> int:
    """A user of this machine's own: of no entry in passwd, the same for the same state directory."""
    return 0x60000000 + (zlib.crc32(directory.encode()) & 0xFFFFFFF)


def tsc_khz() -> int:
    """The host's time-stamp counter, as far as it is known (proc_cpuinfo(5)); 0: the guest finds out."""
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("cpu MHz"):
                return int(float(line.partition(":")[2]) * 1000)
    return 0
