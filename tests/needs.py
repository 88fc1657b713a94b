"""What tests may need of the machine: one registry of named probes.

A probe returns None where the need is met and otherwise one line that says why not. Each runs at most
once, and only when a selected test asks for it. A probe tries the thing; it does not guess from versions.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable

Probe = Callable[[], "str | None"]
_PROBES: dict[str, Probe] = {}


def probe(name: str) -> Callable[[Probe], Probe]:
    def register(function: Probe) -> Probe:
        _PROBES[name] = functools.cache(function)
        return function

    return register


def names() -> list[str]:
    """Every need that a test may name."""
    return sorted(_PROBES)


def missing(name: str) -> str | None:
    """None where the machine has ``name``, else why not. KeyError for a name that is not registered."""
    return _PROBES[name]()


def _try(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        return f"{command[0]} is not installed"
    except subprocess.TimeoutExpired:
        return f"{' '.join(command)} hung"
    if done.returncode == 0:
        return None
    lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
    return f"{' '.join(command)}: {lines[-1]}"


def _cgroup_mounts() -> dict[str, str]:
    """Mount point -> "cgroup2" or the v1 controllers ("cpu,cpuacct")."""
    found = {}
    with open("/proc/self/mountinfo") as file:
        for line in file:
            head, _, tail = line.partition(" - ")
            kind, _, options = tail.split()[:3]
            if kind == "cgroup2":
                found[head.split()[4]] = "cgroup2"
            elif kind == "cgroup":
                found[head.split()[4]] = options.removeprefix("rw,").removeprefix("ro,")
    return found


@probe("root")
def _root() -> str | None:
    return None if os.geteuid() == 0 else f"effective user is {os.geteuid()}, not 0"


@probe("tracefs")
def _tracefs() -> str | None:
    path = f"/sys/kernel/tracing/instances/pycontain-need-{os.getpid()}"
    try:
        os.mkdir(path)
        os.rmdir(path)
    except OSError as error:
        return f"tracefs: make {path}: {os.strerror(error.errno or 0)}"
    return None


@probe("cgroup1")
def _cgroup1() -> str | None:
    v1 = {name for kind in _cgroup_mounts().values() if kind != "cgroup2" for name in kind.split(",")}
    lacking = {"memory", "pids", "cpu", "devices", "freezer"} - v1
    return f"no v1 hierarchy for {', '.join(sorted(lacking))}" if lacking else None


@probe("cgroup2")
def _cgroup2() -> str | None:
    """cgroup v2 holds the controllers that limits are made of (not a hybrid host's bare hierarchy)."""
    for mount, kind in _cgroup_mounts().items():
        if kind == "cgroup2":
            with open(os.path.join(mount, "cgroup.controllers")) as file:
                lacking = {"memory", "pids", "cpu"} - set(file.read().split())
            return f"cgroup2 at {mount} lacks {', '.join(sorted(lacking))}" if lacking else None
    return "no cgroup2 is mounted"


@probe("hybrid")
def _hybrid() -> str | None:
    kinds = set(_cgroup_mounts().values())
    if "cgroup2" not in kinds:
        return "no cgroup2 is mounted"
    return None if len(kinds) > 1 else "no cgroup v1 hierarchy is mounted"


@probe("net_classes")
def _net_classes() -> str | None:
    """The v1 hierarchies of net_cls and net_prio, mounted by nobody else and so free to be mounted."""
    script = "mount -t cgroup -o net_cls,net_prio none /mnt && umount /mnt"
    return _root() or _try("unshare", "-m", "sh", "-c", script)


@probe("rare_v1")
def _rare_v1() -> str | None:
    """Controllers that are on cgroup v2 and used by nobody, so that v1 hierarchies of them can be mounted."""
    script = "mount -t cgroup -o hugetlb none /mnt && umount /mnt && mount -t cgroup -o rdma none /mnt && umount /mnt"
    return _root() or _cgroup2() or _try("unshare", "-m", "sh", "-c", script)


@probe("overlayfs")
def _overlayfs() -> str | None:
    script = (
        "mount -t tmpfs t /mnt && cd /mnt && mkdir l u w m && mount -t overlay o -o lowerdir=l,upperdir=u,workdir=w m"
    )
    return _root() or _try("unshare", "-m", "sh", "-c", script)


@probe("erofs")
def _erofs() -> str | None:
    """The kernel mounts what mkfs.erofs makes, from a loop device."""
    script = (
        "mount -t tmpfs t /mnt && cd /mnt && mkdir tree m && mkfs.erofs --quiet file tree && mount -t erofs -o loop file m"
    )
    return _root() or _try("mkfs.erofs", "--help") or _try("unshare", "-m", "sh", "-c", script)


@probe("loop")
def _loop() -> str | None:
    return _root() or _try("losetup", "--find")


@probe("netns")
def _netns() -> str | None:
    return _root() or _try("unshare", "-n", "true")


@probe("bridge")
def _bridge() -> str | None:
    return _root() or _try("unshare", "-n", "ip", "link", "add", "probe0", "type", "bridge")


@probe("veth")
def _veth() -> str | None:
    return _root() or _try("unshare", "-n", "ip", "link", "add", "probe0", "type", "veth", "peer", "name", "probe1")


@probe("nft")
def _nft() -> str | None:
    return _root() or _try("unshare", "-n", "nft", "add", "table", "inet", "probe")


@probe("userns")
def _userns() -> str | None:
    return _try("unshare", "-U", "-r", "true")


@probe("criu")
def _criu() -> str | None:
    """It can read this kernel."""
    return _root() or _try("criu", "check")


@probe("sys_resource")
def _sys_resource() -> str | None:
    """CAP_SYS_RESOURCE, which raises a hard limit (capabilities(7))."""
    with open("/proc/self/status") as file:
        effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    return None if effective & 1 << 24 else "this process lacks CAP_SYS_RESOURCE"


@probe("systemd")
def _systemd() -> str | None:
    """It is pid 1 and answers on the bus."""
    if not os.path.isdir("/run/systemd/system"):
        return "systemd is not running"
    return _try("busctl", "--no-pager", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.DBus.Peer", "Ping")


@probe("apparmor")
def _apparmor() -> str | None:
    """AppArmor is on in this kernel, and there is what loads its profiles."""
    try:
        with open("/sys/module/apparmor/parameters/enabled") as file:
            if file.read().strip() != "Y":
                return "AppArmor is off"
    except FileNotFoundError:
        return "this kernel has no AppArmor"
    return _try("apparmor_parser", "--version")


@probe("assets")
def _assets() -> str | None:
    """PYCONTAIN_TEST_ASSETS: Alpine's root filesystem and the OCI schemas."""
    folder = os.environ.get("PYCONTAIN_TEST_ASSETS")
    if not folder:
        return "PYCONTAIN_TEST_ASSETS is not set"
    for name in ("images/alpine-minirootfs-3.20.3-x86_64.tar.gz", "oci/runtime-spec/config-schema.json"):
        if not os.path.exists(os.path.join(folder, name)):
            return f"PYCONTAIN_TEST_ASSETS has no {name}"
    return None


@probe("docker_registry")
def _docker_registry() -> str | None:
    return _try("docker-registry", "--version")


@probe("conmon")
def _conmon() -> str | None:
    return _try("conmon", "--version")


@probe("docker")
def _docker() -> str | None:
    """The daemon, and the client that came with it: another of that name may be first on PATH."""
    return _try("dockerd", "--version") or _try("/usr/bin/docker", "--version")


@probe("qemu")
def _qemu() -> str | None:
    return _try("qemu-system-x86_64", "--version")


@probe("kvm")
def _kvm() -> str | None:
    """The device is there; whether it runs a guest is what the tests find out."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/kvm: {error.strerror}"
    return None


@probe("vm")
def _vm() -> str | None:
    """A machine with a real cgroup v2 kernel; the kernel's package is fetched by apt where it was not yet."""
    from tests.vm import kernel, machine

    try:
        kernel.kernel()
    except kernel.Unavailable as why:
        return str(why)
    return machine.missing()


@probe("guest_kernel")
def _guest_kernel() -> str | None:
    """A kernel for containers in machines: the one that PYCONTAIN_TEST_KERNEL names, or the distribution's."""
    from tests.vm import kernel

    chosen = os.environ.get("PYCONTAIN_TEST_KERNEL")
    if chosen:
        return None if os.path.isfile(chosen) else f"PYCONTAIN_TEST_KERNEL names {chosen}, which is not a file"
    try:
        kernel.kernel()
    except kernel.Unavailable as why:
        return str(why)
    return None


@probe("tun")
def _tun() -> str | None:
    """Taps are made, not only the device opened."""
    return _root() or _try("unshare", "-n", "ip", "tuntap", "add", "probe0", "mode", "tap")


@probe("virtiofsd")
def _virtiofsd() -> str | None:
    path = "/usr/libexec:/usr/lib/qemu"  # Debian's places, of its two implementations
    return None if shutil.which("virtiofsd", path=path) else "virtiofsd is not installed"


@probe("mkfs.ext4")
def _mkfs_ext4() -> str | None:
    return _try("mkfs.ext4", "-V")


@probe("libpython")
def _libpython() -> str | None:
    """What the OCI command's launcher is linked with (embedded.c)."""
    at = sysconfig.get_config_var
    for path in (f"{sysconfig.get_path('include')}/Python.h", f"{at('LIBPL')}/{at('LIBRARY')}"):
        if not os.path.exists(path):
            return f"{path} is not there (libpython3-dev)"
    return None


@probe("musl_gcc")
def _musl_gcc() -> str | None:
    return _try("musl-gcc", "--version")


@probe("busybox")
def _busybox() -> str | None:
    """A statically linked busybox, the stuff of the embedded image."""
    path = shutil.which("busybox")
    if path is None:
        return "busybox is not installed"
    with open(path, "rb") as file:
        return None if b"/ld-" not in file.read(4096) else f"{path} is not statically linked"


def _command(name: str) -> None:
    @probe(name)
    def _probe() -> str | None:
        return None if shutil.which(name) else f"{name} is not installed"


def _module(name: str) -> None:
    @probe(name)
    def _probe() -> str | None:
        return None if importlib.util.find_spec(name) else f"the Python module {name} is not installed"


for _name in ("newuidmap", "runc", "crun", "podman", "getpcaps", "skopeo", "umoci", "clang", "htpasswd", "openssl", "unshare", "strace", "cpio", "mkfs.erofs", "containerd"):
    _command(_name)
for _name in ("cgroupspy", "pyroute2", "jsonschema", "prctl"):
    _module(_name)
