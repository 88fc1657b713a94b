"""Which acceleration a machine gets: KVM where a guest really boots with it, else emulation.

That /dev/kvm opens says little: inside another hypervisor it may answer every ioctl(2) and still run no kernel. So
``auto`` boots the configured kernel and initramfs once, without disks and network, and believes what comes of it. The
verdict is kept in ``accel.json`` in the cache directory, for this host's kernel and processor and all that was booted.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import time
from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SHRINK, LOCK_EX, LOCK_NB, fcntl, flock

from pycontain.runtime import channel, jsontext, namespaces
from pycontain.runtime.errors import KernelError, NotFound, PycontainError, errno_text
from pycontain.runtime.plan.plan import NAMESPACES, Plan
from pycontain.runtime.vm import guest, initramfs, port, qemu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontain.runtime.vm.settings import Settings

KVM = "/dev/kvm"
# A guest that KVM really runs answers within one second. One that it emulates may die of it after some three or four,
# and QEMU then says of what: it is the second of these that the probe waits for.
PROBE_SECONDS = 6.0
_WAIT_SECONDS = 2 * PROBE_SECONDS  # for another process's probe
_UNSURE_SECONDS = 86400  # how long a probe counts that ran out of time without a reason: the host may have been busy
_ERROR = "KVM internal error"  # how QEMU's words begin, before it stops the guest and stays
_KEPT = 16  # verdicts, the newest first
_SECOND = (1).to_bytes(8, "little") + bytes(8)  # as a timeval
_MIB = 256
_LOG_BYTES = 65536
_PORT = "p1"
_NEW = ("pid", "mount", "network", "ipc", "uts", "cgroup")


class Verdict:
    """``accel`` is ``kvm`` or ``tcg``, ``reason`` why; ``seconds`` is what the probe took and ``at`` when it was (Unix
    time), both 0.0 where nothing had to be probed.
    """

    def __init__(self, accel: str, reason: str, seconds: float = 0.0, at: float = 0.0, sure: bool = True) -> None:
        self.accel = accel
        self.reason = reason
        self.seconds = seconds
        self.at = at
        self.sure = sure


def choose(settings: Settings) -> str:
    """``kvm`` or ``tcg``. Probes, where no verdict is known."""
    return verdict(settings).accel


def known(settings: Settings) -> Verdict | None:
    """The verdict as far as it is known without a probe and without fetching a kernel."""
    found = _settled(settings)
    if found is None:
        facts = _facts(settings)
        found = _kept(settings, facts) if facts is not None else None
    return found


def verdict(settings: Settings, *, fresh: bool = False) -> Verdict:
    """The verdict, by a probe where none is known or where it is to be ``fresh``. Of several processes one probes.

    Raises PycontainError where there is no hypervisor, kernel or init to probe with.
    """
    from pycontain.runtime.vm.parts import kernel_of

    found = _settled(settings)
    if found is not None:
        return found
    kernel = kernel_of(settings)  # may have to be fetched
    facts = _facts(settings)
    found = None if fresh or facts is None else _kept(settings, facts)
    if found is not None:
        return found
    asked = time.time()
    lock = _lock(settings.cache)
    if lock is None:
        return Verdict("tcg", f"KVM: another process has been probing it for {_WAIT_SECONDS:.0f} s", sure=False)
    try:
        found = _kept(settings, facts) if facts is not None else None
        if found is not None and (not fresh or found.at >= asked):
            return found
        found = _probe(settings, kernel)
        if facts is not None:
            _keep(settings, facts, found)
        return found
    finally:
        os.close(lock)


def _settled(settings: Settings) -> Verdict | None:
    """What needs no probe."""
    if settings.accel != "auto":
        return Verdict(settings.accel, f'accel = "{settings.accel}" in the configuration')
    try:
        os.close(os.open(KVM, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Verdict("tcg", f"KVM: {KVM} does not exist")
    except OSError as error:
        return Verdict("tcg", f"KVM: open {KVM}: {errno_text(error.errno or 0)}")
    return None


# ---- what is known


def _facts(settings: Settings) -> dict[str, Any] | None:
    """All that a verdict depends on; None where a part of it is not there (yet)."""
    hypervisor = shutil.which(settings.hypervisor)
    try:
        device = os.stat(KVM)
        image = settings.kernel or fetched(settings.cache).image
        return {
            "host": os.uname().release,
            "processor": _processor(),
            "kvm": [device.st_mode, device.st_gid],
            "hypervisor": _identity(os.path.realpath(hypervisor or settings.hypervisor)),
            "kernel": _identity(image),
            "init": _identity(namespaces.INIT),
            "modules": list(initramfs.MODULES),
            "machine": settings.machine,
            "parameters": settings.parameters,
        }
    except (OSError, PycontainError):
        return None


def fetched(cache: str) -> guest.Kernel:
    """The distribution's kernel, where it is in the ``cache`` already. Raises OSError and NotFound."""
    kernels = os.path.join(cache, "kernel")
    for name in sorted(os.listdir(kernels), reverse=True):
        if not name.startswith("."):
            return guest.unpacked(os.path.join(kernels, name))
    raise NotFound(f"no kernel in {kernels}")


def _identity(path: str) -> list[Any]:
    found = os.stat(path)
    return [path, found.st_mtime_ns, found.st_size]


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return ""


def _file(settings: Settings) -> str:
    return os.path.join(settings.cache, "accel.json")


def _verdicts(settings: Settings) -> list[dict[str, Any]]:
    """The file's entries. What cannot be read counts as nothing: the next probe writes it anew."""
    try:
        with open(_file(settings), "rb") as file:
            entries = jsontext.parse(file.read(1 << 20), _file(settings))
    except (OSError, PycontainError):
        return []
    kinds = {"facts": dict, "accel": str, "reason": str, "seconds": float, "at": float, "sure": bool}
    return [
        entry
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict)
        and all(type(entry.get(name)) is kind for name, kind in kinds.items())
        and entry["accel"] in ("kvm", "tcg")
    ]


def _kept(settings: Settings, facts: dict[str, Any]) -> Verdict | None:
    for entry in _verdicts(settings):
        if entry["facts"] == facts and (entry["sure"] or 0 <= time.time() - entry["at"] < _UNSURE_SECONDS):
            return Verdict(*(entry[name] for name in ("accel", "reason", "seconds", "at", "sure")))
    return None


def _keep(settings: Settings, facts: dict[str, Any], found: Verdict) -> None:
    others = [entry for entry in _verdicts(settings) if entry["facts"] != facts]
    text = jsontext.dump([{"facts": facts, **vars(found)}, *others][:_KEPT])
    part = f"{_file(settings)}.part"  # only who holds the lock writes
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w") as file:
        file.write(text)
    os.rename(part, _file(settings))


def _lock(cache: str) -> int | None:
    """The descriptor of the lock on probing, or None where another process does not let go of it."""
    try:
        os.makedirs(cache, 0o700, exist_ok=True)
        fd = os.open(os.path.join(cache, "accel.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise KernelError(f"cannot probe KVM: write to {cache}", error.errno or 0) from None
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            flock(fd, LOCK_EX | LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(fd)
                return None
            time.sleep(0.02)


# ---- the probe


def _probe(settings: Settings, kernel: guest.Kernel) -> Verdict:
    """Boot a guest under KVM, confined as any machine, until its agent answers."""
    from pycontain.runtime.vm import parts

    directory = os.path.join(settings.cache, "probe")
    shutil.rmtree(directory, ignore_errors=True)  # of a process that was killed
    os.mkdir(directory, 0o700)
    opened: list[int] = []
    connected: socket.socket | None = None
    pid = 0
    begun = time.monotonic()
    try:
        log = os.memfd_create("pycontain-probe", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        opened.append(log)
        os.ftruncate(log, _LOG_BYTES)
        fcntl(log, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK)
        opened += [port.listen(directory, f"{_PORT}.sock"), port.listen(directory, "qmp.sock")]
        connected = port.connect(directory, _PORT)  # before QEMU, which may have ended before it accepts anything
        machine = qemu.Machine(
            name="pycontain-probe",
            hypervisor=parts.hypervisor_path(settings.hypervisor),
            kernel=kernel.image,
            initrd=initramfs.initramfs(kernel, settings.cache),
            kind=settings.machine if settings.machine != "auto" else qemu.kind_of(kernel.image),
            accel="kvm",
            memory=_MIB,
            cpus=1,
            disks=[],
            ports=[opened[1]],
            qmp=opened[2],
            log=log,
            tap=None,
            parameters=settings.parameters,
        )
        groups = os.stat(KVM).st_gid.to_bytes(4, "little")
        plan = Plan(3, False, 0)
        plan.clone(sum(NAMESPACES[kind] for kind in _NEW))
        plan.ops += qemu.machine_ops(plan, machine, uid=parts.uid_of(directory), groups=groups)
        begun = time.monotonic()
        try:
            process = namespaces.launch(plan)
            try:
                pid = process.unshared()
                process.running()
            finally:
                process.close()
        except PycontainError as error:
            seconds = round(time.monotonic() - begun, 3)
            return Verdict("tcg", f"KVM: the probe did not start: {error.message}", seconds, time.time())
        for fd in opened[1:]:
            os.close(fd)  # with QEMU's end they hang up
        del opened[1:]
        failed, sure = _answer(connected, log, begun + PROBE_SECONDS)
        seconds = round(time.monotonic() - begun, 3)
        if failed is None:
            return Verdict("kvm", f"KVM: a guest answered within {seconds:.2f} s", seconds, time.time())
        said = _said(log)
        said = f': QEMU said "{said}"' if said else ""
        return Verdict("tcg", f"KVM: {failed.format(seconds)}{said}", seconds, time.time(), sure or bool(said))
    finally:
        if pid:
            _end(pid)
        if connected is not None:
            connected.close()
        for fd in opened:
            os.close(fd)
        shutil.rmtree(directory, ignore_errors=True)


def _answer(connected: socket.socket, log: int, deadline: float) -> tuple[str | None, bool]:
    """(None, ...) where the agent answered a hello, else (what happened instead, whether it would happen again)."""
    nonce = os.urandom(8)
    fd = connected.fileno()
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _SECOND)
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    try:
        channel.send(fd, channel.HELLO, nonce)
        while not waiting.poll(50):
            if time.monotonic() >= deadline:
                return f"the probe did not answer within {PROBE_SECONDS:.0f} s", False
            if _ERROR in _text(log):
                time.sleep(0.05)  # for the lines after it
                return "the probe's guest came to a stop after {:.1f} s", True
        message = channel.receive(fd)
    except (BrokenPipeError, ConnectionResetError):
        message = None
    except BlockingIOError:
        return "the probe answered half a hello", True
    except PycontainError as error:
        return error.message.replace("{", "{{").replace("}", "}}"), True
    if message is None:
        return "the probe's QEMU ended after {:.2f} s", True
    if message != (channel.HELLO, nonce):
        return "the probe answered something else than the hello", True
    return None, True


def _text(log: int) -> str:
    return os.pread(log, _LOG_BYTES, 0).rstrip(b"\0").decode("utf-8", "replace")


def _said(log: int) -> str:
    """What of the log says most: KVM's own error, QEMU's first line, or the last one of all."""
    lines = [line.strip() for line in _text(log).splitlines() if line.strip()]
    for i, line in enumerate(lines):
        if _ERROR in line:
            why = [other for other in lines[i + 1 :] if not other.startswith("extra data") and "=" not in other]
            return ": ".join([line.rstrip("."), *why[:1]])
    named = [line for line in lines if "qemu" in line.partition(":")[0]]
    return (named[:1] or lines[-1:] or [""])[0]


def _end(pid: int) -> None:
    """QEMU is our child; after an error of KVM's it would stay, stopped."""
    import signal

    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass  # who embeds us may reap whatever ends
