"""QEMU: its command line, and the plan that confines it. Pure functions of a ``Machine``; nothing is opened here.

QEMU is started by init with a plan of its own, as a container would be: own pid, mount, network, ipc, uts and cgroup
namespaces, a root with nothing in it but the system's libraries and the machine's files read-only, a user of its own
without a capability, its own seccomp filter. What it may use of the host it is given as descriptors.
"""

from __future__ import annotations

import os

from pycontain.runtime.plan.mounts import ATTR_RDONLY, MS_REC, PROPAGATION
from pycontain.runtime.plan.ops import NO_FD
from pycontain.runtime.plan.plan import NAMESPACES, Plan
from pycontain.runtime.plan.rights import CAPS
from pycontain.runtime.plan.seccomp import compile_filter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycontain.runtime.plan.ops import Op

PORTS = 16
# What machines of any kind boot with; a panic ends QEMU. The kernel tests its own ciphers as it boots
# (crypto/testmgr.c), a fifth of a boot under emulation; where the law wants that (fips=1), it does so all the same.
BOOT = ("console=ttyS0", "quiet", "panic=-1", "reboot=t", "rdinit=/init", "cryptomgr.notests")
# A kernel that finds five levels of page tables uses them (LA57), and each miss of QEMU's TLB walks one more. One that
# finds ERMS clears and copies pages by "rep stosb" and "rep movsb", which QEMU does byte by byte.
EMULATED = "max,la57=off,erms=off"
PLUG = "pcie-root-port,id=plug,chassis=1,slot=1"  # where a clone's shares are plugged in
_BESIDE_MIB = 16  # of a template, beside its memory
_FDS = 100  # where QEMU finds its descriptors: the log is 0 to 2, then these
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_NEW = ("pid", "mount", "network", "ipc", "uts", "cgroup")
_ROOT = "/sys"  # where QEMU's root is mounted, in its own namespace: a directory that holds nothing for it
_LIBRARIES = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache")
_NOSUID_NODEV = 2 | 4
# capabilities(7): what it takes to be any user among files; the last two are to lock itself in, and go with that.
_SHARE_CAPS = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "SETGID", "SETUID", "MKNOD", "SETFCAP",
    "SYS_CHROOT", "SETPCAP",
)  # fmt: skip
# netdevice(7), tun(4): the holder of a tap may give it another's address, or make it stay. QEMU does neither.
_TAP_REQUESTS = {"SIOCSIFHWADDR": 0x8924, "TUNSETPERSIST": 0x400454CB}
_DENIED = [
    {"names": ["ioctl"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": number, "op": "SCMP_CMP_EQ"}]}
    for number in _TAP_REQUESTS.values()
]


class Shares:
    """What a machine's guest sees of this host: ``sources`` are (path, read-only), numbered from 0.

    ``helper`` is virtiofsd's path; ``listening`` and ``connected`` are the two ends between it and QEMU.
    """

    def __init__(self, helper: str, sources: list[tuple[str, bool]], listening: int, connected: int) -> None:
        self.helper = helper
        self.sources = sources
        self.listening = listening
        self.connected = connected


class Machine:
    """One machine to be. Paths are the host's; ``name`` is for its list of processes.

    ``kind`` is ``microvm`` (virtio-mmio) or ``q35`` (virtio-pci); ``accel`` ``kvm`` or ``tcg``; ``memory`` is in MiB;
    ``disks`` are raw images, (path, writable); ``tap`` is (descriptor, MAC) or None; ``ram`` a template's file
    of the guest's memory, ``incoming`` its state, to go on from, ``outgoing``: whether this is one to be, which writes
    into ``ram`` and has no ``tap`` behind its network card; ``ports``, ``qmp`` are listening sockets, ``log`` takes
    what the guest and QEMU say.
    """

    def __init__(
        self,
        *,
        name: str,
        hypervisor: str,
        kernel: str,
        initrd: str,
        kind: str,
        accel: str,
        memory: int,
        cpus: int,
        disks: list[tuple[str, bool]],
        ports: list[int],
        qmp: int,
        log: int,
        tap: tuple[int, str] | None,
        parameters: list[str],
        tsc_khz: int = 0,
        ram: str | None = None,
        incoming: int | None = None,
        outgoing: bool = False,
        shares: Shares | None = None,
    ) -> None:
        self.name = name
        self.hypervisor = hypervisor
        self.kernel = kernel
        self.initrd = initrd
        self.kind = kind
        self.accel = accel
        self.memory = memory
        self.cpus = cpus
        self.disks = disks
        self.ports = ports
        self.qmp = qmp
        self.log = log
        self.tap = tap
        self.parameters = parameters
        self.tsc_khz = tsc_khz
        self.ram = ram
        self.incoming = incoming
        self.outgoing = outgoing
        self.shares = shares

    def descriptors(self) -> list[int]:
        """What QEMU inherits, in the order of its numbers from 100 on."""
        tap = [self.tap[0]] if self.tap and not self.outgoing else []
        more = [] if self.incoming is None else [self.incoming]
        return [*self.ports, self.qmp, *tap, *([self.shares.connected] if self.shares else []), *more]


def kind_of(kernel: str) -> str:
    """``microvm`` for an uncompressed kernel (ELF, with a PVH entry), which has its drivers built in; else ``q35``."""
    with open(kernel, "rb") as file:
        return "microvm" if file.read(4) == b"\x7fELF" else "q35"


def command(machine: Machine) -> list[str]:
    """The command line; paths as QEMU sees them in its root."""
    bus = "device" if machine.kind == "microvm" else "pci"
    argv = [machine.hypervisor, "-name", machine.name, "-nodefaults", "-no-user-config", "-display", "none"]
    argv += ["-no-reboot", "-sandbox", _SANDBOX]
    if machine.kind == "microvm":
        # With ACPI, QEMU's microvm hangs in the calibration of the TSC under TCG; the clock chip costs nothing.
        argv += ["-M", "microvm,acpi=off,x-option-roms=off,memory-backend=ram"]
        argv += ["-global", "virtio-mmio.force-legacy=false"]
    else:
        argv += ["-M", "q35,sata=off,smbus=off,usb=off,vmport=off,memory-backend=ram"]
    if machine.ram is not None:
        share = "on" if machine.outgoing or machine.shares else "off"
        path = "/vm/memory/ram" if machine.shares else "/vm/ram"
        argv += ["-object", f"memory-backend-file,id=ram,size={machine.memory}M,mem-path={path},share={share}"]
    elif machine.shares:  # virtiofsd answers in the guest's own memory
        argv += ["-object", f"memory-backend-memfd,id=ram,size={machine.memory}M,share=on"]
    else:
        argv += ["-object", f"memory-backend-ram,id=ram,size={machine.memory}M"]
    if machine.ram is None:
        # What the guest frees goes back to the host. Never where memory is a template's file: QEMU punches holes into
        # the file even where it is mapped privately, and with them into the memory of the other clones.
        argv += ["-device", f"virtio-balloon-{bus},free-page-reporting=on"]
    if machine.accel == "kvm":
        argv += ["-accel", "kvm", "-cpu", "host"]
    else:
        thread = "single" if machine.cpus == 1 else "multi"
        argv += ["-accel", f"tcg,thread={thread},tb-size=64", "-cpu", EMULATED]
    argv += ["-m", f"{machine.memory}M", "-smp", str(machine.cpus)]
    argv += ["-kernel", "/vm/kernel", "-initrd", "/vm/initrd", "-append", " ".join(kernel_parameters(machine))]
    argv += ["-chardev", "stdio,id=log,signal=off", "-serial", "chardev:log"]
    numbers = iter(range(_FDS, _FDS + len(machine.descriptors())))
    argv += ["-device", f"virtio-serial-{bus},max_ports={len(machine.ports) + 1}"]
    for i, _ in enumerate(machine.ports, 1):
        argv += ["-chardev", f"socket,id=p{i},fd={next(numbers)},server=on,wait=off"]
        argv += ["-device", f"virtserialport,chardev=p{i},nr={i},name=p{i}"]
    argv += ["-chardev", f"socket,id=qmp,fd={next(numbers)},server=on,wait=off", "-mon", "chardev=qmp,mode=control"]
    for i, (_, writable) in enumerate(machine.disks):
        access = "read-only=off,discard=unmap" if writable else "read-only=on"
        argv += ["-blockdev", f"driver=file,node-name=f{i},filename=/vm/disk{i},{access},locking=off"]
        argv += ["-blockdev", f"driver=raw,node-name=d{i},file=f{i},{access}"]
        # The guest finds it by its serial number: the order of the names is the machine type's.
        argv += ["-device", f"virtio-blk-{bus},drive=d{i},serial=disk{i}"]
    if machine.tap:
        rom = ",romfile=" if bus == "pci" else ""
        argv += ["-netdev", "hubport,hubid=0,id=net" if machine.outgoing else f"tap,id=net,fd={next(numbers)}"]
        argv += ["-device", f"virtio-net-{bus},netdev=net,mac={machine.tap[1]}{rom}"]
    if machine.ram is not None and machine.kind == "q35":
        argv += ["-device", PLUG]
    if machine.shares:
        argv += ["-chardev", f"socket,id=shares,fd={next(numbers)}"]
        if machine.ram is None:
            argv += ["-device", f"vhost-user-fs-{bus},chardev=shares,tag=shares"]
    if machine.incoming is not None:
        argv += ["-incoming", "defer"]  # what is in ``ram`` already is left out: a capability, set over the monitor
    argv += ["-object", "rng-builtin,id=rng", "-device", f"virtio-rng-{bus},rng=rng"]
    return argv


def incoming(machine: Machine) -> str:
    """Where the state of a template is read from, for the monitor's "migrate-incoming"."""
    return f"fd:{_FDS + len(machine.descriptors()) - 1}"


def shares_device() -> dict[str, str]:
    """What is plugged into a clone ("device_add"): a template cannot have it, as QEMU does not save its state."""
    return {"driver": "vhost-user-fs-pci", "chardev": "shares", "tag": "shares", "bus": "plug"}


def kernel_parameters(machine: Machine) -> list[str]:
    """The kernel's command line; ``ports`` is for the agent."""
    words = [*BOOT, f"ports={len(machine.ports)}"]
    if machine.accel == "tcg":
        # Under emulation the guest's counter is the host's: nothing is to be calibrated, and it is no attack's aim.
        words += ["mitigations=off", "no_timer_check", "tsc=reliable"]
        if machine.tsc_khz:
            words.append(f"tsc_early_khz={machine.tsc_khz}")
    return words + machine.parameters


def machine_ops(plan: Plan, machine: Machine, *, uid: int, groups: bytes) -> list[Op]:
    """From the new process in new namespaces to QEMU's execve, with its helper beside it."""
    null = plan.file("/dev/null")
    log = plan.file(machine.log)
    stdio: list[Op] = [("dup", null, 0), ("dup", log, 1), ("dup", log, 2)]
    given = [plan.file(fd) for fd in machine.descriptors()]
    ops: list[Op] = [*stdio, ("session",)]
    if machine.shares:
        beside = [*stdio, ("dup", plan.file(machine.shares.listening), _FDS), *share_ops(machine.shares)]
        ops += [("branch", len(beside), NAMESPACES["mount"]), *beside]
    ops += [("dup", slot, _FDS + i) for i, slot in enumerate(given)]
    ops += root_ops(machine.hypervisor)
    files = {"kernel": machine.kernel, "initrd": machine.initrd}
    files |= {f"disk{i}": path for i, (path, _) in enumerate(machine.disks)}
    if machine.ram:
        files |= {"memory": os.path.dirname(machine.ram)} if machine.shares else {"ram": machine.ram}
    ops += [("bind", path, f"/vm/{name}", 0) for name, path in files.items()]
    devices = ["/dev/null", "/dev/urandom", *(["/dev/kvm"] if machine.accel == "kvm" else [])]
    ops += [("bind", path, path, 0) for path in devices]
    ops.append(("attr", "/", ATTR_RDONLY, 0, 0, 1))
    written = [f"disk{i}" for i, (_, writable) in enumerate(machine.disks) if writable]
    ops += [("attr", f"/vm/{name}", 0, ATTR_RDONLY, 0, 0) for name in [*written, *({"ram"} & set(files))]]
    if "memory" in files:
        # The helper answers in the guest's own memory, so what both map is a copy, without the pages never written.
        options = [f"size={machine.memory + _BESIDE_MIB}M", "mode=755"]
        ops.append(("copy_up", "tmpfs", "/vm/memory", _NOSUID_NODEV | 8, options))
    ops += [("pivot",), ("bounding", 0), ("groups", groups), ("user", uid, uid), ("caps", 0, 0, 0), ("no_new_privs",)]
    filter_ = compile_filter({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": _DENIED})
    ops.append(("seccomp", filter_.program, filter_.flags))
    if machine.incoming is not None:
        # A clone has hardly any memory of its own, and huge pages round every piece of it up: 2 MiB where QEMU's
        # translations begin a new one, and all of its heap where transparent_hugepage is "always".
        ops.append(("small_pages",))
    return [*ops, ("die_with_parent",), ("exec", machine.hypervisor, command(machine), [], 0)]


def root_ops(program: str) -> list[Op]:
    """An empty root with the system's libraries, for ``program``; still writable, for what else is to be mounted."""
    ops: list[Op] = [("propagation", "/", PROPAGATION["private"] | MS_REC), ("enter_root",)]
    ops.append(("mount", "tmpfs", _ROOT, "tmpfs", _NOSUID_NODEV, "mode=0755,size=64k", 0))
    ops.append(("root_bind", _ROOT))
    for path in [*_LIBRARIES, *([] if program.startswith("/usr/") else [program])]:
        if os.path.islink(path):
            ops.append(("symlink", os.readlink(path), path))
        elif os.path.exists(path):
            ops.append(("bind", path, path, 1))
    return ops


def share_ops(shares: Shares) -> list[Op]:
    """virtiofsd: it sees what is shared and nothing else, and has the capabilities over files and no other.

    It is a child of QEMU, in QEMU's pid namespace, and ends with it.
    """
    ops = root_ops(shares.helper)
    ops += [("bind", "/dev/null", "/dev/null", 0), ("mkdir", "/shares", 0o755, 0, 0), ("mkdir", "/proc", 0o755, 0, 0)]
    ops.append(("attr", "/", ATTR_RDONLY, 0, 0, 1))
    ops.append(("mount", "tmpfs", "/shares", "tmpfs", _NOSUID_NODEV, "mode=0755,size=64k", 0))
    for i, (path, readonly) in enumerate(shares.sources):
        ops.append(("bind", path, f"/shares/{i}", 1))
        if readonly:
            ops.append(("attr", f"/shares/{i}", ATTR_RDONLY, 0, 0, 1))
    ops += [("mount", "proc", "/proc", "proc", _NOSUID_NODEV | 8, "", 1), ("pivot",)]
    mask = sum(1 << CAPS[f"CAP_{name}"] for name in _SHARE_CAPS)
    argv = [
        shares.helper,
        f"--fd={_FDS}",
        "--rlimit-nofile=0",
        "-o",
        "source=/shares,sandbox=chroot,xattr,cache=auto,no_posix_lock",
    ]
    ops += [("bounding", mask), ("groups", b""), ("user", 0, 0), ("caps", mask, mask, 0), ("no_new_privs",)]
    return [*ops, ("exec", shares.helper, argv, ["TZ=UTC0"], 0)]


def host_plan(
    *,
    into: bool,
    joins: int,
    device_program: bytes | None,
    terminal: tuple[int, int, int] | None,
    port: int,
    listener: int | None,
    oom: int | None,
    uid: int,
    machine: Machine | None = None,
    groups: bytes = b"",
    hold: int | None = None,
) -> Plan:
    """The plan of a process's stand-in, with the machine below it for a container's first.

    ``terminal`` is (console, rows, columns) where the process has one. ``port`` is connected to the guest. ``hold``:
    a descriptor that is to be kept as long as the stand-in lives.
    """
    p = Plan(3, into, joins)
    p.console = terminal is not None
    if device_program is not None:
        p.ops.append(("device_filter", device_program, p.base + 2))
    p.clone(0)
    p.ops += [("sync",), ("session",)]
    slots = [NO_FD if fd is None else p.file(fd) for fd in (port, listener, oom)]
    if hold is not None:
        p.file(hold)
    if terminal is not None:
        console, rows, columns = terminal
        p.ops += [("enter_root",), ("terminal", p.file(console), rows, columns, 0, 0)]
    flags = sum(NAMESPACES[kind] for kind in _NEW) if machine is not None else 0
    p.ops.append(("stand_in", *slots, flags, uid, int(terminal is not None)))
    if machine is not None:
        p.ops += machine_ops(p, machine, uid=uid, groups=groups)
    return p
