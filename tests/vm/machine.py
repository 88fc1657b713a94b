"""Boots a small virtual machine with a real cgroup v2 kernel and runs one command in it.

The guest's root is this host's ``/``, shared read-only and overlaid with a tmpfs, so that the checkout, its
environment and every installed program are there under the same paths, and nothing that the guest writes comes
back. /scratch is an ext4 disk (TMPDIR and /var/lib/pycontain are on it). Emulated (TCG), so it runs on any machine;
its times are no measure of anything.
"""

from __future__ import annotations

import os
import selectors
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from pycontain.runtime.vm import guest
from tests.vm import kernel
from tests.vm.kernel import Unavailable

QEMU = "qemu-system-x86_64"
VIRTIOFSD = "/usr/lib/qemu/virtiofsd"
_PASSED_ON = ("HOME", "LANG", "PATH", "PYCONTAIN_TEST_ASSETS", "USER")
_DISK_BYTES = 4 << 30
# All but those that test_cgroup_v1_rare.py mounts for itself: nothing else mounts them either.
_NO_V1 = "cpu,cpuacct,cpuset,memory,devices,freezer,blkio,pids,perf_event,misc,named"
_ALONE = "[Unit]\nDefaultDependencies=no\n"  # without what a whole system starts first
# All that systemd starts where it is pid 1: the bus, and a file that says that it answers.
UNITS = {
    "dbus.socket.d/alone.conf": _ALONE,
    "dbus.service.d/alone.conf": _ALONE,
    "ready.service": f"{_ALONE}Requires=dbus.service\nAfter=dbus.service\n"
    "[Service]\nType=oneshot\nExecStart=/bin/touch /run/ready\nStandardOutput=null\nStandardError=null\n",
    "ready.target": f"{_ALONE}Requires=ready.service\n",
}


class MachineError(Exception):
    """The machine ended without the command's exit status; the text says what it said last."""


def missing() -> str | None:
    """None where this host has what the machine needs (its kernel may still have to be fetched), else why not."""
    if shutil.which(QEMU) is None:
        return f"{QEMU} is not installed"
    if not os.access(VIRTIOFSD, os.X_OK):
        return f"{VIRTIOFSD} is not installed"
    if shutil.which("mkfs.ext4") is None:
        return "mkfs.ext4 is not installed"
    if os.geteuid() != 0:
        return "sharing / with the machine takes root"
    return None


def run(
    command: Sequence[str],
    *,
    output: BinaryIO,
    cwd: str | None = None,
    environment: Mapping[str, str] | None = None,
    memory: int = 2048,
    cpus: int = 2,
    timeout: float = 600.0,
    systemd: bool = False,
    parameters: str = "",
) -> int:
    """Run ``command`` in a fresh machine; its stdout and stderr go to ``output`` as they come.

    ``cwd`` is a path of the host (this process's by default); ``environment`` is added to the few variables that
    are passed on; ``memory`` in MiB; ``systemd``: it is pid 1 there, with its bus and nothing else; ``parameters``:
    more of them for the kernel. Returns the exit status as a shell has it (128 + signal). Raises Unavailable where
    the machine cannot be made, MachineError where it died, TimeoutError after ``timeout`` seconds.
    """
    why = missing()
    if why:
        raise Unavailable(why)
    found = kernel.kernel()
    deadline = time.monotonic() + timeout
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pycontain-vm-")))
        _initramfs(found, folder, command, cwd or str(Path.cwd()), environment or {}, systemd)
        _scratch_disk(folder / "disk")
        _share_root(stack, folder)
        streams = [os.pipe(), os.pipe()]
        readers = [stack.enter_context(open(read, "rb", buffering=0)) for read, _ in streams]
        writers = [write for _, write in streams]
        try:
            qemu = _start([QEMU, *_arguments(found, folder, memory, cpus, parameters, *writers)], folder / "qemu.log", writers)
        finally:
            for writer in writers:
                os.close(writer)
        stack.callback(_end, qemu)
        said = _pump(readers[0], readers[1], output, deadline)
        for line in said.splitlines():
            if line.startswith("exit "):
                return int(line[5:])
        log = "".join((folder / name).read_text(errors="replace")[-2000:] for name in ("qemu.log", "console.log"))
        raise MachineError(f"the machine ended before its command: {said.strip() or log.strip()}")


def _initramfs(
    found: guest.Kernel, folder: Path, command: Sequence[str], cwd: str, environment: Mapping[str, str], systemd: bool
) -> None:
    variables = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    variables |= {"TMPDIR": "/scratch/tmp", **environment}
    modules = Path(found.modules)
    texts = {
        "cfg/argv": "".join(f"{word}\0" for word in command),
        "cfg/env": "".join(f"{name}={value}\0" for name, value in variables.items()),
        "cfg/cwd": cwd,
        "cfg/modules": str(modules) if (modules / "modules.dep").exists() else "",
    }
    files = {name: (0o100644, text.encode()) for name, text in texts.items()}
    if systemd:
        files |= {f"cfg/{name}": (0o40755, b"") for name in ("units", "units/dbus.socket.d", "units/dbus.service.d")}
        files |= {f"cfg/units/{name}": (0o100644, text.encode()) for name, text in UNITS.items()}
    # The kernel unpacks one archive after the other.
    with (folder / "initramfs").open("wb") as file:
        file.write(kernel.base_initramfs(found).read_bytes())
        file.write(guest.cpio(files))


def _scratch_disk(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(_DISK_BYTES)
    options = "lazy_itable_init=1,lazy_journal_init=1,discard"
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", "-E", options, str(path)], check=True, timeout=60)


def _share_root(stack: ExitStack, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(folder / "root.sock"))
        listener.listen(1)
        fd = listener.fileno()
        # The other sandbox pivots into its source, which cannot be the root. --rlimit-nofile=0 leaves the limit as it
        # is: raising it takes a capability that root may not have.
        options = ["-o", "source=/,sandbox=chroot,cache=always,xattr", "--rlimit-nofile=0"]
        stack.callback(_end, _start([VIRTIOFSD, f"--fd={fd}", *options], folder / "virtiofsd.log", [fd]))


def _arguments(
    found: guest.Kernel, folder: Path, memory: int, cpus: int, parameters: str, output: int, status: int
) -> list[str]:
    # The kernel tests its own ciphers as it boots (crypto/testmgr.c), which is a fifth of an emulated boot.
    line = f"console=ttyS0 quiet loglevel=4 panic=-1 cgroup_no_v1={_NO_V1} random.trust_cpu=on mitigations=off nokaslr"
    line = f"{line} cryptomgr.notests {parameters}"
    return [
        # One thread for both processors: of two, one would spin for a lock while the other, which has it, has to wait.
        *("-machine", "q35,memory-backend=memory", "-accel", "tcg,thread=single"),
        # The kernel would clear and copy by "rep movsb", of which TCG does one byte at a time; so it takes "rep movsq".
        *("-cpu", "max,la57=off,erms=off,fsrm=off"),
        *("-smp", str(cpus), "-m", f"{memory}M", "-object", f"memory-backend-memfd,id=memory,size={memory}M,share=on"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", found.image, "-initrd", str(folder / "initramfs"), "-append", line),
        *("-chardev", f"file,id=console,path={folder}/console.log", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=root,path={folder}/root.sock"),
        *("-device", "vhost-user-fs-pci,chardev=root,tag=root,queue-size=1024"),
        *("-drive", f"if=none,id=disk,file={folder}/disk,format=raw,cache=unsafe,discard=unmap"),
        *("-device", "virtio-blk-pci,drive=disk", "-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
        # Not -chardev stdio, which stops the guest's writer once our stdin has ended.
        *("-chardev", f"file,id=output,path=/dev/fd/{output},append=on"),
        *("-device", "virtserialport,chardev=output,name=output"),
        *("-chardev", f"file,id=status,path=/dev/fd/{status},append=on"),
        *("-device", "virtserialport,chardev=status,name=status"),
    ]


def _start(command: list[str], log: Path, fds: list[int]) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, pass_fds=fds)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _pump(source: BinaryIO, status: BinaryIO, output: BinaryIO, deadline: float) -> str:
    """Copies the command's output until the machine has ended; what it said on its status port."""
    said = b""
    with selectors.DefaultSelector() as selector:
        selector.register(source, selectors.EVENT_READ)
        selector.register(status, selectors.EVENT_READ)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("the command in the machine took too long")
            for key, _ in selector.select(left):
                data = os.read(key.fd, 65536)
                if not data:
                    selector.unregister(key.fileobj)
                elif key.fileobj is source:
                    output.write(data)
                    output.flush()
                else:
                    said += data
    return said.decode(errors="replace")
