"""The levels: one job, run with ever more between it and the host."""

from __future__ import annotations

from pycontain.isolation.bundle import Kind
from pycontain.isolation.containers import Container, Machine, Peer, Rootless, Sandbox
from pycontain.isolation.plain import Chroot, Process
from pycontain.isolation.tenants import Base

LEVELS: tuple[Base, ...] = (
    Process(
        "process",
        "process",
        "a process of the host, as root: no isolation, no limits; the floor that everything else is measured against",
    ),
    Chroot(
        "chroot",
        "chroot",
        "a process of the host, as root, with another root directory (chroot(2)), with /proc, /sys and /dev in it; no "
        "limits",
    ),
    Container(
        "container",
        "container",
        "namespaces, cgroups, docker's 14 capabilities, the default seccomp filter, masked paths; by pycontain-runtime",
        Kind(),
    ),
    Container(
        "container-noseccomp",
        "container without seccomp",
        "the same container without its seccomp filter",
        Kind(seccomp=False),
    ),
    Container(
        "hardened",
        "hardened container",
        "the same container in a user namespace with ids of its own, its root read-only beside a /tmp of 64 MiB, no "
        "capabilities, no new privileges",
        Kind(mapped=True, bare=True),
    ),
    Rootless(
        "rootless",
        "rootless container",
        "the same container made by pycontain-runtime in the name of an unprivileged user, who may map one id; its "
        "limits are nobody's on cgroup v1, where a user has no cgroup",
        Kind(rootless=True),
    ),
    Peer("runc", "container by runc", "the bundle of the level container, run by runc", Kind()),
    Peer("crun", "container by crun", "the bundle of the level container, run by crun", Kind()),
    Sandbox(
        "runsc",
        "gVisor (runsc)",
        "the bundle of the level container, run by gVisor's runsc: a kernel in user space, on its ptrace platform; "
        "the limits hold for kernel and program together",
        Kind(),
    ),
    Machine(
        "vm-tcg",
        "microVM (TCG)",
        "the same container in a guest of its own kernel, whose processor QEMU emulates (TCG); cloned from a template",
        Kind(machine=True),
        "tcg",
    ),
    Machine(
        "vm-kvm",
        "microVM (KVM)",
        "the same container in a guest of its own kernel, on the processor itself (KVM); cloned from a template",
        Kind(machine=True),
        "kvm",
    ),
)


def level(name: str) -> Base:
    """The level of that name. Raises KeyError."""
    return {level.name: level for level in LEVELS}[name]
