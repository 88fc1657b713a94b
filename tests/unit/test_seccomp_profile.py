"""The default seccomp profile, read by the interpreter of test_seccomp: who may call what."""

from __future__ import annotations

import functools
import json

import pytest

from pycontain.runtime.errors import Unsupported
from pycontain.runtime.plan.rights import CAPS, DEFAULT_CAPS
from pycontain.runtime.plan.seccomp import ALLOW, ERRNO, compile_filter, default_profile
from pycontain.runtime.plan.seccomp_profile import ALLOWED, BY_CAPABILITY
from tests.unit.test_seccomp import numbers, run, well_formed

DENIED = ERRNO | 1
ARCHES = ["x86_64", "x86", "x32", "aarch64", "arm"]


@functools.cache
def program(caps: tuple[str, ...], image: str) -> bytes:
    machine = "aarch64" if image in ("aarch64", "arm") else "x86_64"
    compiled = compile_filter(default_profile(caps, image), machine).program
    well_formed(compiled)
    return compiled


def decide(caps: tuple[str, ...], name: str, *args: int, arch: str = "x86_64", image: str = "") -> int:
    machine = "aarch64" if arch in ("aarch64", "arm") else "x86_64"
    return run(program(caps, image or machine), arch, numbers(arch)[name], (*args, 0, 0, 0, 0, 0, 0)[:6])


def test_shape() -> None:
    profile = default_profile(DEFAULT_CAPS, "x86_64")
    assert profile == json.loads(json.dumps(profile))
    assert list(profile) == ["defaultAction", "defaultErrnoRet", "architectures", "syscalls"]
    assert profile["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    assert default_profile((), "aarch64")["architectures"] == ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]


def test_other_machines() -> None:
    with pytest.raises(Unsupported) as caught:
        default_profile((), "s390x")
    assert str(caught.value) == "there is no default seccomp profile for s390x, only for x86_64 x86 aarch64 arm"


def test_every_name_is_a_system_call_of_some_architecture() -> None:
    known = {name for arch in ARCHES for name in numbers(arch)} | {"riscv_hwprobe"}
    names = ALLOWED.split() + [name for calls in BY_CAPABILITY.values() for name in calls.split()]
    assert set(names) <= known
    assert len(ALLOWED.split()) == len(set(ALLOWED.split()))
    assert set(BY_CAPABILITY) <= set(CAPS)


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize(
    "name",
    """add_key keyctl request_key io_uring_setup io_uring_enter io_uring_register bpf perf_event_open userfaultfd
    kexec_load init_module finit_module delete_module mount umount2 pivot_root swapon swapoff reboot setns unshare
    open_by_handle_at acct quotactl settimeofday kcmp pidfd_getfd process_madvise move_pages
    migrate_pages mbind set_mempolicy get_mempolicy vhangup syslog sethostname setdomainname chroot fsopen fsconfig
    fsmount fspick open_tree move_mount mount_setattr clock_settime fanotify_init lsm_set_self_attr""".split(),
)  # fmt: skip
def test_refused_without_capabilities(name: str, arch: str) -> None:
    assert decide((), name, arch=arch) == DENIED


@pytest.mark.parametrize("arch", ARCHES)
def test_what_no_capability_opens(arch: str) -> None:
    for name in ("keyctl", "add_key", "request_key", "io_uring_setup", "userfaultfd", "kexec_load", "pivot_root"):
        assert decide(tuple(CAPS), name, arch=arch) == DENIED


@pytest.mark.parametrize("arch", ARCHES)
def test_what_every_program_needs(arch: str) -> None:
    for name in "read write openat close execve exit_group futex ptrace prctl ioctl getrandom statx seccomp".split():
        assert decide((), name, arch=arch) == ALLOW


@pytest.mark.parametrize("capability", sorted(BY_CAPABILITY))
def test_a_capability_opens_its_calls_and_no_others(capability: str) -> None:
    opened = {name for name, action in decide_all((capability,)).items() if action == ALLOW}
    plain = {name for name, action in decide_all(()).items() if action == ALLOW}
    assert opened - plain == set(BY_CAPABILITY[capability].split()) & set(numbers("x86_64")) - {"clone"}


def decide_all(caps: tuple[str, ...]) -> dict[str, int]:
    return {name: run(program(caps, "x86_64"), "x86_64", number) for name, number in numbers("x86_64").items()}


@pytest.mark.parametrize("arch", ARCHES)
def test_namespaces_need_sys_admin(arch: str) -> None:
    for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert decide((), "clone", flag | 17, arch=arch) == DENIED
        assert decide((), "clone", flag | 1 << 32, arch=arch) == DENIED
        assert decide(("CAP_SYS_ADMIN",), "clone", flag | 17, arch=arch) == ALLOW
    assert decide((), "clone", 17, arch=arch) == ALLOW
    assert decide((), "clone", 0x3D0F00, arch=arch) == ALLOW, "what a thread library passes"
    assert decide((), "clone3", arch=arch) == ERRNO | 38
    assert decide(("CAP_SYS_ADMIN",), "clone3", arch=arch) == ALLOW


@pytest.mark.parametrize("arch", ARCHES)
def test_address_families(arch: str) -> None:
    for family in range(48):
        wanted = DENIED if family in (38, 40) else ALLOW
        assert decide((), "socket", family, arch=arch) == wanted, family
        assert decide((), "socket", family | 1 << 32, arch=arch) == wanted, "the kernel sees 32 bits"
        assert decide((), "socket", family | 1 << 63, arch=arch) == wanted
    for family in (48, 64, 38 + 64, 40 + 128, 0xFFFFFFFF, 1 << 31):
        assert decide((), "socket", family, arch=arch) == DENIED


def test_socketcall_is_no_way_around() -> None:
    assert decide((), "socketcall", 1, arch="x86") == DENIED
    for call in range(2, 21):
        assert decide((), "socketcall", call, arch="x86") == ALLOW
    assert decide((), "socketcall", 1, arch="x86", image="x86") == ALLOW


@pytest.mark.parametrize("arch", ARCHES)
def test_personalities(arch: str) -> None:
    for value in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF):
        assert decide((), "personality", value, arch=arch) == ALLOW
    for value in (1, 0x0040000, 0x0400000, 0x20001):  # ADDR_NO_RANDOMIZE, READ_IMPLIES_EXEC
        assert decide((), "personality", value, arch=arch) == DENIED


def test_calls_newer_than_the_profile() -> None:
    for arch in ("x86_64", "x86", "aarch64", "arm"):
        assert decide((), "open_tree_attr", arch=arch) == ERRNO | 38


def test_size() -> None:
    assert len(compile_filter(default_profile(DEFAULT_CAPS, "x86_64"), "x86_64").program) // 8 < 1000
