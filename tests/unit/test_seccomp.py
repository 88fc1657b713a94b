"""The seccomp compiler, by three witnesses: a plain reading of the rules, libseccomp, and exact error texts.

Programs are run by a small interpreter of classic BPF, so that nothing here needs a kernel or root.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import random
import struct
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from pycontain.runtime.errors import PycontainError, SpecError, Unsupported
from pycontain.runtime.plan import seccomp, syscall_tables
from pycontain.runtime.plan.seccomp import ALLOW, ERRNO, KILL_THREAD, compile_filter

numbers = functools.cache(syscall_tables.numbers)
AUDIT = {"x86_64": 0xC000003E, "x86": 0x40000003, "x32": 0xC000003E, "aarch64": 0xC00000B7, "arm": 0x40000028}


def run(program: bytes, arch: str, number: int, args: tuple[int, ...] = (0, 0, 0, 0, 0, 0)) -> int:
    """What the kernel would do with a call, by interpreting the program on its struct seccomp_data."""
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, AUDIT[arch], 0, *args)
    at = a = 0
    while True:
        code, jt, jf, k = struct.unpack_from("<HBBI", program, 8 * at)
        at += 1
        if code == 0x20:  # LD W ABS
            assert k % 4 == 0 and k <= 60
            a = int(struct.unpack_from("<I", data, k)[0])
        elif code == 0x54:  # ALU AND K
            a &= k
        elif code == 0x06:  # RET K
            return int(k)
        elif code == 0x05:  # JMP JA
            at += k
        else:  # JMP JEQ, JGT, JGE, JSET
            holds = {0x15: a == k, 0x25: a > k, 0x35: a >= k, 0x45: bool(a & k)}[code]
            at += jt if holds else jf


def well_formed(program: bytes) -> None:
    """What the kernel's checker asks: known codes, jumps inside the program, a RET at its end."""
    length = len(program) // 8
    assert len(program) % 8 == 0 and 0 < length <= 4096
    for at in range(length):
        code, jt, jf, k = struct.unpack_from("<HBBI", program, 8 * at)
        assert code in (0x20, 0x54, 0x06, 0x05, 0x15, 0x25, 0x35)
        if code == 0x05:
            assert at + 1 + k < length
        elif code in (0x15, 0x25, 0x35):
            assert at + 1 + max(jt, jf) < length
    assert struct.unpack_from("<H", program, 8 * (length - 1))[0] == 0x06


def profile(*rules: dict[str, Any], default: str = "SCMP_ACT_ERRNO", **more: Any) -> dict[str, Any]:
    return {"defaultAction": default, "syscalls": list(rules), **more}


def rule(names: str, action: str = "SCMP_ACT_ALLOW", *args: tuple[int, str, int, int], **more: Any) -> dict[str, Any]:
    entries = [{"index": i, "op": f"SCMP_CMP_{op}", "value": v, "valueTwo": w} for i, op, v, w in args]
    return {"names": names.split(), "action": action, "args": entries, **more}


def decide(config: dict[str, Any], number: int, args: tuple[int, ...] = (0,) * 6, arch: str = "x86_64") -> int:
    machine = "aarch64" if arch in ("aarch64", "arm") else "x86_64"
    program = compile_filter(config, machine).program
    well_formed(program)
    return run(program, arch, number, args)


# Plain cases


def test_actions() -> None:
    for name, value in {
        "SCMP_ACT_KILL": 0,
        "SCMP_ACT_KILL_THREAD": 0,
        "SCMP_ACT_KILL_PROCESS": 0x80000000,
        "SCMP_ACT_TRAP": 0x30000,
        "SCMP_ACT_ERRNO": 0x50001,
        "SCMP_ACT_TRACE": 0x7FF00001,
        "SCMP_ACT_LOG": 0x7FFC0000,
        "SCMP_ACT_ALLOW": 0x7FFF0000,
        "SCMP_ACT_NOTIFY": 0x7FC00000,
    }.items():
        assert decide(profile(rule("getpid", name), default="SCMP_ACT_LOG", listenerPath="/a"), 39) == value
        if name != "SCMP_ACT_NOTIFY":
            assert decide(profile(default=name), 39) == value
    assert decide(profile(rule("getpid", "SCMP_ACT_ERRNO", errnoRet=38)), 39) == ERRNO | 38
    assert decide(profile(rule("getpid", "SCMP_ACT_ERRNO", errnoRet=0)), 39) == ERRNO
    assert decide(profile(default="SCMP_ACT_TRACE", defaultErrnoRet=65535), 39) == 0x7FF0FFFF


def test_a_foreign_architecture_kills_the_thread() -> None:
    config = profile(default="SCMP_ACT_ALLOW")
    assert decide(config, 20, arch="x86") == KILL_THREAD
    assert decide(config, 20, arch="aarch64") == ALLOW
    assert run(compile_filter(config, "x86_64").program, "aarch64", 20) == KILL_THREAD
    assert decide({**config, "architectures": ["SCMP_ARCH_X86"]}, 20, arch="x86") == ALLOW
    assert decide({**config, "architectures": ["SCMP_ARCH_X86"]}, 20) == ALLOW, "the native one is implied"


def test_x32_is_foreign_unless_it_is_asked_for() -> None:
    config = profile(default="SCMP_ACT_ALLOW")
    assert decide(config, 0x40000000) == KILL_THREAD
    assert decide(config, 0x40000000 + 39) == KILL_THREAD
    assert decide(config, 0xFFFFFFFF) == ALLOW, "a tracer skips a call by making it number -1"
    assert decide({**config, "architectures": ["SCMP_ARCH_X32"]}, 0x40000000 + 39) == ALLOW


def test_architectures_that_cannot_run_here_are_skipped() -> None:
    compiled = compile_filter(profile(architectures=["SCMP_ARCH_S390X", "SCMP_ARCH_X86", "SCMP_ARCH_ARM"]), "x86_64")
    assert compiled.skipped == ["SCMP_ARCH_S390X", "SCMP_ARCH_ARM"]


def test_unknown_calls_are_skipped_and_told() -> None:
    config = profile(rule("getpid frobnicate - mmap2 riscv_hwprobe"), architectures=["SCMP_ARCH_X86"])
    assert compile_filter(config, "x86_64").skipped == ["frobnicate", "-", "riscv_hwprobe"]
    assert compile_filter(config, "aarch64").skipped == ["SCMP_ARCH_X86", "frobnicate", "-", "mmap2", "riscv_hwprobe"]


def test_a_machine_without_tables() -> None:
    with pytest.raises(Unsupported) as caught:
        compile_filter(profile(), "riscv64")
    assert str(caught.value) == "seccomp filters for riscv64 are not supported, only for x86_64 and aarch64"


def test_the_machine_is_found() -> None:
    if os.uname().machine in ("x86_64", "aarch64"):
        assert compile_filter(profile()).program == compile_filter(profile(), os.uname().machine).program


def test_calls_newer_than_the_profile_answer_enosys() -> None:
    config = profile(rule("read close_range frobnicate"), architectures=["SCMP_ARCH_X86", "SCMP_ARCH_X32"])
    for arch, base in (("x86_64", 0), ("x86", 0), ("x32", 0x40000000)):
        assert decide(config, base + 435, arch=arch) == ERRNO | 1
        assert decide(config, base + 436, arch=arch) == ALLOW
        assert decide(config, base + 437, arch=arch) == ERRNO | 38
        assert decide(config, base + 1000, arch=arch) == ERRNO | 38
    for permissive in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"):
        assert decide(profile(rule("read", "SCMP_ACT_TRAP"), default=permissive), 437) == decide(
            profile(default=permissive), 0
        )


def test_private_calls_of_arm_do_not_hide_new_calls() -> None:
    config = profile(rule("statx cacheflush"), architectures=["SCMP_ARCH_ARM"])
    assert decide(config, 0xF0002, arch="arm") == ALLOW
    assert decide(config, 398, arch="arm") == ERRNO | 38
    assert decide(config, 396, arch="arm") == ERRNO | 1


def test_flags() -> None:
    assert compile_filter(profile(), "x86_64").flags == 0
    names = ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]
    assert [compile_filter(profile(flags=[name]), "x86_64").flags for name in names] == [1, 2, 4]
    assert compile_filter(profile(flags=names), "x86_64").flags == 7


@pytest.mark.parametrize("number", [0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("op", ["NE", "LT", "LE", "EQ", "GE", "GT"])
def test_comparisons_are_of_64_bits(op: str, number: int) -> None:
    config = profile(rule("getpid", "SCMP_ACT_ALLOW", (5, op, number, 0)))
    for found in (number - 1, number, number + 1, number ^ 1 << 40, 0, 2**64 - 1):
        if 0 <= found < 2**64:
            holds = {"NE": found != number, "LT": found < number, "LE": found <= number, "EQ": found == number,
                     "GE": found >= number, "GT": found > number}[op]  # fmt: skip
            assert decide(config, 39, (0, 0, 0, 0, 0, found)) == (ALLOW if holds else ERRNO | 1)


def test_32_bit_calls_compare_what_the_kernel_looks_at() -> None:
    """A 64-bit process making a 32-bit call can leave anything in the high halves; the kernel ignores them."""
    config = profile(rule("personality", "SCMP_ACT_ERRNO", (0, "EQ", 8, 0)), default="SCMP_ACT_ALLOW",
                     architectures=["SCMP_ARCH_X86"])  # fmt: skip
    assert decide(config, 136, (8, 0, 0, 0, 0, 0), "x86") == ERRNO | 1
    assert decide(config, 136, (8 + (1 << 32), 0, 0, 0, 0, 0), "x86") == ERRNO | 1
    assert decide(config, 135, (8 + (1 << 32), 0, 0, 0, 0, 0)) == ALLOW


def test_an_argument_named_twice_is_an_or() -> None:
    config = profile(rule("getpid", "SCMP_ACT_ALLOW", (0, "EQ", 1, 0), (0, "EQ", 2, 0), (1, "EQ", 3, 0)))
    assert decide(config, 39, (1, 0, 0, 0, 0, 0)) == ALLOW
    assert decide(config, 39, (2, 0, 0, 0, 0, 0)) == ALLOW
    assert decide(config, 39, (0, 3, 0, 0, 0, 0)) == ALLOW
    assert decide(config, 39, (0, 0, 0, 0, 0, 0)) == ERRNO | 1


def test_order_of_rules() -> None:
    narrow, wide = (0, "EQ", 1, 0), (0, "LE", 1, 0)
    first = profile(rule("getpid", "SCMP_ACT_TRAP", narrow), rule("getpid", "SCMP_ACT_ALLOW", wide))
    assert decide(first, 39, (1, 0, 0, 0, 0, 0)) == 0x30000
    assert decide(first, 39, (0, 0, 0, 0, 0, 0)) == ALLOW
    always = profile(rule("getpid", "SCMP_ACT_TRAP", narrow), rule("getpid"), rule("getpid", "SCMP_ACT_LOG"))
    assert decide(always, 39, (1, 0, 0, 0, 0, 0)) == ALLOW
    same_as_default = profile(rule("getpid", "SCMP_ACT_ERRNO", narrow), rule("getpid", "SCMP_ACT_ALLOW", wide))
    assert decide(same_as_default, 39, (1, 0, 0, 0, 0, 0)) == ALLOW


# The doors of 32-bit x86

X86: dict[str, Any] = {"architectures": ["SCMP_ARCH_X86"]}


def test_socketcall_and_ipc_follow_the_calls_behind_them() -> None:
    config = profile(rule("bind sendmmsg send semop msgrcv"), **X86)
    for number, first, action in [
        (102, 2, ALLOW), (102, 20, ALLOW), (102, 9, ALLOW), (102, 1, ERRNO | 1), (102, 0, ERRNO | 1),
        (102, 21, ERRNO | 1), (117, 1, ALLOW), (117, 12, ALLOW), (117, 13, ERRNO | 1), (361, 0, ALLOW),
        # the version above ipc's call number
        (117, 0x1000C, ALLOW), (117, 0x1000D, ERRNO | 1),
    ]:  # fmt: skip
        assert decide(config, number, (first, 0, 0, 0, 0, 0), "x86") == action, (number, first)


def test_every_door() -> None:
    for name in [*seccomp.SOCKETCALL.split(), *seccomp.IPC]:
        number, _, value = seccomp._doors("x86")[name]
        assert decide(profile(rule(name), **X86), number, (value, 0, 0, 0, 0, 0), "x86") == ALLOW


def test_conditions_cannot_be_checked_behind_a_door() -> None:
    """A conditional permission opens nothing there, a conditional refusal refuses the call whole."""
    allow = profile(rule("socket", "SCMP_ACT_ALLOW", (0, "EQ", 2, 0)), **X86)
    assert decide(allow, 359, (2, 0, 0, 0, 0, 0), "x86") == ALLOW
    assert decide(allow, 102, (1, 2, 0, 0, 0, 0), "x86") == ERRNO | 1
    deny = profile(rule("socket", "SCMP_ACT_ERRNO", (0, "EQ", 38, 0)), default="SCMP_ACT_ALLOW", **X86)
    assert decide(deny, 359, (2, 0, 0, 0, 0, 0), "x86") == ALLOW
    assert decide(deny, 102, (1, 2, 0, 0, 0, 0), "x86") == ERRNO | 1
    assert decide(deny, 102, (2, 2, 0, 0, 0, 0), "x86") == ALLOW
    explicit = profile(rule("socketcall"), rule("socket", "SCMP_ACT_ALLOW", (0, "EQ", 2, 0)), **X86)
    assert decide(explicit, 102, (1, 2, 0, 0, 0, 0), "x86") == ALLOW


# Errors


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "$.linux.seccomp: is not an object"),
        ({}, "$.linux.seccomp.defaultAction: is missing, wanted one of ACTIONS"),
        ({"defaultAction": "ALLOW"}, "$.linux.seccomp.defaultAction: is 'ALLOW', wanted one of ACTIONS"),
        ({"defaultAction": 1}, "$.linux.seccomp.defaultAction: is 1, wanted one of ACTIONS"),
        (
            profile(default="SCMP_ACT_ALLOW", defaultErrnoRet=1),
            "$.linux.seccomp.defaultErrnoRet: is set, but SCMP_ACT_ALLOW returns no errno",
        ),
        (profile(defaultErrnoRet=4096), "$.linux.seccomp.defaultErrnoRet: is 4096, SCMP_ACT_ERRNO takes 0 to 4095"),
        (
            profile(defaultErrnoRet=-1),
            "$.linux.seccomp.defaultErrnoRet: is -1, wanted a number from 0 to 4294967295",
        ),
        (
            profile(defaultErrnoRet=True),
            "$.linux.seccomp.defaultErrnoRet: is True, wanted a number from 0 to 4294967295",
        ),
        (profile(architectures="X86"), "$.linux.seccomp.architectures: is not an array"),
        (
            profile(architectures=["SCMP_ARCH_X86", "amd64"]),
            "$.linux.seccomp.architectures[1]: is 'amd64', wanted a name such as SCMP_ARCH_X86_64",
        ),
        (
            profile(architectures=["SCMP_ARCH_"]),
            "$.linux.seccomp.architectures[0]: is 'SCMP_ARCH_', wanted a name such as SCMP_ARCH_X86_64",
        ),
        (
            profile(flags=["SECCOMP_FILTER_FLAG_NEW_LISTENER"]),
            "$.linux.seccomp.flags[0]: is 'SECCOMP_FILTER_FLAG_NEW_LISTENER', wanted one of SECCOMP_FILTER_FLAG_TSYNC "
            "SECCOMP_FILTER_FLAG_LOG SECCOMP_FILTER_FLAG_SPEC_ALLOW "
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
        ),
        (
            profile(listenerMetadata="x"),
            "$.linux.seccomp.listenerMetadata: is set, but listenerPath is not",
        ),
        ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": {}}, "$.linux.seccomp.syscalls: is not an array"),
        (profile(rule("read"), 5), "$.linux.seccomp.syscalls[1]: is not an object"),  # type: ignore[arg-type]
        (profile(rule("")), "$.linux.seccomp.syscalls[0].names: is empty, wanted at least one system call"),
        (
            profile({"action": "SCMP_ACT_ALLOW"}),
            "$.linux.seccomp.syscalls[0].names: is empty, wanted at least one system call",
        ),
        (
            profile({"names": ["read", 0], "action": "SCMP_ACT_ALLOW"}),
            "$.linux.seccomp.syscalls[0].names[1]: is 0, wanted the name of a system call",
        ),
        (
            profile({"names": ["read", ""], "action": "SCMP_ACT_ALLOW"}),
            "$.linux.seccomp.syscalls[0].names[1]: is '', wanted the name of a system call",
        ),
        (
            profile(rule("read"), rule("read", "SCMP_ACT_PERHAPS")),
            "$.linux.seccomp.syscalls[1].action: is 'SCMP_ACT_PERHAPS', wanted one of ACTIONS",
        ),
        (
            profile(rule("read", "SCMP_ACT_KILL", errnoRet=1)),
            "$.linux.seccomp.syscalls[0].errnoRet: is set, but SCMP_ACT_KILL returns no errno",
        ),
        (
            profile(rule("read", "SCMP_ACT_TRACE", errnoRet=65536)),
            "$.linux.seccomp.syscalls[0].errnoRet: is 65536, SCMP_ACT_TRACE takes 0 to 65535",
        ),
        (
            profile({**rule("read"), "args": [1]}),
            "$.linux.seccomp.syscalls[0].args[0]: is not an object",
        ),
        (
            profile(rule("read", "SCMP_ACT_ALLOW", (6, "EQ", 0, 0))),
            "$.linux.seccomp.syscalls[0].args[0].index: is 6, a system call has arguments 0 to 5",
        ),
        (
            profile(rule("read", "SCMP_ACT_ALLOW", (0, "EQ", 0, 0), (1, "IN", 0, 0))),
            "$.linux.seccomp.syscalls[0].args[1].op: is 'SCMP_CMP_IN', "
            "wanted SCMP_CMP_ and one of NE LT LE EQ GE GT MASKED_EQ",
        ),
        (
            profile(rule("read", "SCMP_ACT_ALLOW", (0, "EQ", 1 << 64, 0))),
            "$.linux.seccomp.syscalls[0].args[0].value: is 18446744073709551616, "
            "wanted a number from 0 to 18446744073709551615",
        ),
        (
            profile(rule("read", "SCMP_ACT_ALLOW", (0, "EQ", 1, -1))),
            "$.linux.seccomp.syscalls[0].args[0].valueTwo: is -1, wanted a number from 0 to 18446744073709551615",
        ),
        (
            profile({**rule("read"), "args": [{"op": "SCMP_CMP_EQ", "value": 1}]}),
            "$.linux.seccomp.syscalls[0].args[0].index: is None, wanted a number from 0 to 4294967295",
        ),
    ],
)
def test_malformed(config: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        compile_filter(config, "x86_64")
    assert str(caught.value) == message.replace("ACTIONS", " ".join(seccomp.ACTIONS))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            profile(default="SCMP_ACT_NOTIFY", listenerPath="/a"),
            "$.linux.seccomp.defaultAction: SCMP_ACT_NOTIFY would stop the process before its listener is handed over",
        ),
        (
            profile(rule("read", "SCMP_ACT_NOTIFY"), rule("read write", "SCMP_ACT_NOTIFY"), listenerPath="/a"),
            "$.linux.seccomp.syscalls[1].action: SCMP_ACT_NOTIFY of write would stop the process before its listener is "
            "handed over",
        ),
    ],
)
def test_notifications_that_would_never_be_answered(config: dict[str, Any], message: str) -> None:
    with pytest.raises(Unsupported) as caught:
        compile_filter(config, "x86_64")
    assert str(caught.value) == message


@pytest.mark.parametrize(("path", "found"), [({}, "found nothing"), ({"listenerPath": "a.sock"}, "found 'a.sock'")])
def test_notifications_want_a_listener(path: dict[str, str], found: str) -> None:
    with pytest.raises(SpecError) as caught:
        compile_filter(profile(rule("mkdir", "SCMP_ACT_NOTIFY"), **path), "x86_64")
    assert str(caught.value) == (
        f"$.linux.seccomp.listenerPath: {found}, wanted the socket to send the listener of SCMP_ACT_NOTIFY to"
    )


def test_flags_that_a_listener_wants() -> None:
    """seccomp(2): NEW_LISTENER 8, TSYNC_ESRCH 16, and WAIT_KILLABLE_RECV 32 with a listener only."""
    flags = [f"SECCOMP_FILTER_FLAG_{name}" for name in ("TSYNC", "LOG", "SPEC_ALLOW", "WAIT_KILLABLE_RECV")]
    plain = compile_filter(profile(flags=flags), "x86_64")
    assert (plain.flags, plain.notifies) == (1 | 2 | 4, False)
    mkdir = rule("mkdir", "SCMP_ACT_NOTIFY")
    notifying = compile_filter(profile(mkdir, flags=flags, listenerPath="/a"), "x86_64")
    assert (notifying.flags, notifying.notifies) == (1 | 2 | 4 | 8 | 16 | 32, True)
    assert compile_filter(profile(mkdir, listenerPath="/a"), "x86_64").flags == 8


def test_a_listener_without_notifications_is_ignored_as_the_specification_says() -> None:
    compile_filter(profile(listenerPath="/run/agent.sock", listenerMetadata="x"), "x86_64")


def test_too_many_instructions() -> None:
    rules = [rule("getpid", "SCMP_ACT_ALLOW", *[(i, "GT", number, 0) for i in range(6)]) for number in range(200)]
    with pytest.raises(SpecError) as caught:
        compile_filter(profile(*rules), "x86_64")
    assert str(caught.value) == "$.linux.seccomp: compiles to 6215 instructions, the kernel takes 4096"


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**64) | st.text(max_size=4) | st.sampled_from(list(seccomp.ACTIONS)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from("defaultAction defaultErrnoRet syscalls names action args index op value flags".split()),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(_json)
def test_any_json_compiles_or_is_refused(config: Any) -> None:
    try:
        well_formed(compile_filter(config, "x86_64").program)
    except PycontainError as error:
        assert str(error).startswith("$.linux.seccomp")


# libseccomp and a plain reading as witnesses

NAMES = (
    "read write openat close socket socketcall bind send ipc semop clone clone3 personality mmap2 stat64 arch_prctl "
    "set_tls cacheflush time rt_sigaction ioctl execve statx landlock_restrict_self futex_time64 newfstatat "
    "arm_sync_file_range umount frobnicate"
).split()
CONDITIONAL = "read write openat clone personality rt_sigaction ioctl execve statx newfstatat mmap2".split()
OPS = {"NE": 1, "LT": 2, "LE": 3, "EQ": 4, "GE": 5, "GT": 6, "MASKED_EQ": 7}
SCMP_ARCH = {"x86_64": "x86_64", "x86": "x86", "x32": "x32", "aarch64": "aarch64", "arm": "arm"}
DOORS = {("x86", 102), ("x86", 117)}
EDGES = [0, 1, 2, 0x7E020000, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63, 2**64 - 2, 2**64 - 1]

_value = st.sampled_from(EDGES) | st.integers(0, 2**64 - 1)
_args = st.lists(st.tuples(st.integers(0, 5), st.sampled_from(list(OPS)), _value, _value), max_size=3)


@functools.cache
def libseccomp() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("needs libseccomp: libseccomp.so.2 is not installed")
    library.seccomp_init.restype = ctypes.c_void_p
    return library


class _Cmp(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def resolve(name: str, arch: str) -> int:
    library = libseccomp()
    token = library.seccomp_arch_resolve_name(SCMP_ARCH[arch].encode())
    return int(library.seccomp_syscall_resolve_name_arch(token, name.encode()))


def by_libseccomp(rules: list[dict[str, Any]], default: int, arches: list[str]) -> bytes:
    """The program that runc would load for these rules, without its ENOSYS prologue."""
    library = libseccomp()
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(default)))
    native = library.seccomp_arch_native()
    for arch in arches:
        token = library.seccomp_arch_resolve_name(SCMP_ARCH[arch].encode())
        if token != native:
            assert library.seccomp_arch_add(context, ctypes.c_uint32(token)) == 0
    if library.seccomp_arch_resolve_name(arches[0].encode()) != native:
        assert library.seccomp_arch_remove(context, ctypes.c_uint32(native)) == 0
    for entry in rules:
        action = seccomp._action(entry, "action", "errnoRet", "$")
        if action == default:
            continue
        cmps = [_Cmp(a["index"], OPS[a["op"][9:]], a["value"], a["valueTwo"]) for a in entry["args"]]
        repeated = len({cmp.arg for cmp in cmps}) < len(cmps)
        for name in entry["names"]:
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number == -1:
                continue
            for group in [[cmp] for cmp in cmps] if repeated else [cmps]:
                array = (_Cmp * max(1, len(group)))(*group)
                got = library.seccomp_rule_add_array(context, ctypes.c_uint32(action), number, len(group), array)
                assume(got != -errno.EEXIST)  # two verdicts on one call behind a door: it refuses the whole
                assert got == 0, (name, got)
    with tempfile.TemporaryFile() as file:
        assert library.seccomp_export_bpf(context, file.fileno()) == 0
        library.seccomp_release(context)
        file.seek(0)
        return file.read()


def by_reading(rules: list[dict[str, Any]], default: int, arch: str, number: int, args: tuple[int, ...]) -> int:
    """The rules applied one after the other, without any cleverness."""
    bits = 0xFFFFFFFFFFFFFFFF if arch in ("x86_64", "aarch64") else 0xFFFFFFFF
    conditional = None
    for entry in rules:
        action = seccomp._action(entry, "action", "errnoRet", "$")
        if action == default or not any(numbers(arch).get(name) == number for name in entry["names"]):
            continue
        if not entry["args"]:
            return action
        holds = []
        for arg in entry["args"]:
            found, value, second = args[arg["index"]] & bits, arg["value"] & bits, arg["valueTwo"] & bits
            holds.append(
                {"NE": found != value, "LT": found < value, "LE": found <= value, "EQ": found == value,
                 "GE": found >= value, "GT": found > value, "MASKED_EQ": found & value == second & value}[arg["op"][9:]]
            )  # fmt: skip
        repeated = len({arg["index"] for arg in entry["args"]}) < len(holds)
        if conditional is None and (any(holds) if repeated else all(holds)):
            conditional = action
    return default if conditional is None else conditional


@pytest.mark.parametrize("arch", list(AUDIT))
def test_tables_are_those_of_libseccomp(arch: str) -> None:
    """Names that this libseccomp does not know are newer than it."""
    for name, number in numbers(arch).items():
        theirs = resolve(name, arch)
        assert theirs == number or theirs < 0, name
    if arch == "x86_64":
        assert all(resolve(name, arch) == number for name, number in numbers(arch).items() if number <= 334)


@st.composite
def configs(draw: st.DrawFn, overlapping: bool) -> tuple[str, list[str], dict[str, Any]]:
    """(machine, architectures, linux.seccomp); not overlapping: at most one set of conditions for each call."""
    machine = draw(st.sampled_from(["x86_64", "aarch64"]))
    others = draw(st.lists(st.sampled_from(["x86", "x32"] if machine == "x86_64" else ["arm"]), unique=True))
    known = list(NAMES)
    if not overlapping:
        # libseccomp 2.5.4 forgets to load the number where the first call of an architecture is none of its own.
        known = [name for name in NAMES if all(name in numbers(arch) for arch in [machine, *others])]
    left = [name for name in CONDITIONAL if name in known]
    rules = []
    for _ in range(draw(st.integers(0, 8))):
        action = draw(st.sampled_from(list(seccomp.ACTIONS)))
        notifies = action == "SCMP_ACT_NOTIFY"
        args = draw(_args)
        if args and left:
            names = draw(st.lists(st.sampled_from(left), min_size=1, max_size=4, unique=True))
            if not overlapping:
                left = [name for name in left if name not in names]
                # It takes a mask of nothing for no condition, which then decides alone.
                args = list({arg[0]: arg for arg in args}.values())
                args = [(i, op, v if op != "MASKED_EQ" or v % 2**32 else v + 1, w) for i, op, v, w in args]
        else:
            names = draw(st.lists(st.sampled_from(known), min_size=1, max_size=12, unique=True))
            args = []
        names = [name for name in names if not (notifies and name == "write")]
        if names:
            rules.append(rule(" ".join(names), action, *args))
    config = {
        "defaultAction": draw(st.sampled_from([name for name in seccomp.ACTIONS if name != "SCMP_ACT_NOTIFY"])),
        "listenerPath": "/run/agent.sock",
        "architectures": [f"SCMP_ARCH_{arch.upper()}" for arch in others],
        "syscalls": rules,
    }
    return machine, [machine, *others], config


def calls(config: dict[str, Any], seed: int) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """(architecture, number, arguments) of calls around those that the rules speak of."""
    mentioned = [name for entry in config["syscalls"] for name in entry["names"]]
    values = [arg["value"] for entry in config["syscalls"] for arg in entry["args"]] + EDGES
    chance = random.Random(seed)  # drawing each call would make shrinking endless
    for _ in range(80):
        arch = chance.choice(list(AUDIT))
        base = 1 << 30 if arch == "x32" else 0
        number = base + chance.randrange(500)
        if chance.random() < 0.8:
            number = numbers(arch).get(chance.choice([*mentioned, *NAMES]), number)
        number = max(base, number + chance.choice([0, 0, 0, 1, -1]))
        yield arch, number, tuple((chance.choice(values) + chance.choice([0, 0, 1, -1])) % 2**64 for _ in range(6))


def with_enosys(action: int, config: dict[str, Any], arch: str, number: int) -> int:
    """What runc's prologue makes of a decision: ENOSYS above the highest number that the filter mentions."""
    mentioned = [numbers(arch).get(name, 0) for entry in config["syscalls"] for name in entry["names"]]
    newest = max([n for n in mentioned if n & ~0xFF != 0xF0000], default=0)
    restrictive = config["defaultAction"] not in ("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE")
    default = seccomp._action(config, "defaultAction", "defaultErrnoRet", "$")
    return ERRNO | 38 if restrictive and newest and number > newest and action == default else action


EXAMPLES = int(os.environ.get("PYCONTAIN_FUZZ_EXAMPLES", "100"))


@settings(deadline=None, max_examples=EXAMPLES)
@given(configs(overlapping=True), st.integers(0, 2**32))
def test_decisions_are_those_of_a_plain_reading(drawn: tuple[str, list[str], dict[str, Any]], seed: int) -> None:
    machine, arches, config = drawn
    default = seccomp._action(config, "defaultAction", "defaultErrnoRet", "$")
    program = compile_filter(config, machine).program
    well_formed(program)
    for arch, number, args in calls(config, seed):
        if arch in arches and (arch, number) not in DOORS:
            wanted = with_enosys(by_reading(config["syscalls"], default, arch, number, args), config, arch, number)
            assert run(program, arch, number, args) == wanted, (arch, number, args)


@settings(deadline=None, max_examples=EXAMPLES)
@given(configs(overlapping=False), st.integers(0, 2**32))
def test_decisions_are_those_of_libseccomp(drawn: tuple[str, list[str], dict[str, Any]], seed: int) -> None:
    """One conditional rule for each call: where several meet, libseccomp merges them, and not always rightly."""
    machine, arches, config = drawn
    default = seccomp._action(config, "defaultAction", "defaultErrnoRet", "$")
    ours = compile_filter(config, machine).program
    theirs = by_libseccomp(config["syscalls"], default, arches)
    for arch, number, args in calls(config, seed):
        wanted = run(theirs, arch, number, args)
        if arch in arches and (arch, number) not in DOORS:
            wanted = with_enosys(wanted, config, arch, number)
        if (arch, number) in DOORS and run(ours, arch, number, args) == ERRNO | 38:
            continue  # newer than a very small profile
        assert run(ours, arch, number, args) == wanted, (arch, number, args)


@example([], [0])
@given(st.lists(st.integers(0, 600), max_size=400, unique=True), st.lists(st.integers(0, 700), max_size=20))
def test_searching_long_tables(numbers_in: list[int], asked: list[int]) -> None:
    """Every leaf is found whatever the size of the tree: jumps above 255 instructions included."""
    leaves: dict[int, int | bytes] = {number: 0x10000 + number for number in numbers_in}
    floor = [(0, 7), (450, 8), (650, 9)]
    code = seccomp._ins(0x20, 0) + seccomp._search(seccomp._ranges(floor, leaves), {})
    well_formed(code)
    for number in [*asked, *numbers_in, 0, 449, 450, 649, 650, 0xFFFFFFFF]:
        base = 7 if number < 450 else 8 if number < 650 else 9
        assert run(code, "x86_64", number) == leaves.get(number, base)
