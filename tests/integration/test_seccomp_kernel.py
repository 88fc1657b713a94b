"""Filters in the kernel: a child loads one and tries the calls."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from pycontain.runtime.plan.rights import DEFAULT_CAPS
from pycontain.runtime.plan.seccomp import compile_filter, default_profile
from pycontain.runtime.plan.syscall_tables import numbers

MACHINE = os.uname().machine
pytestmark = pytest.mark.skipif(MACHINE not in ("x86_64", "aarch64"), reason=f"no filters for {MACHINE}")
SECCOMP_NR = {"x86_64": 317, "aarch64": 277}.get(MACHINE, 0)
NATIVE = numbers(MACHINE) if SECCOMP_NR else {}

# Reads {"program": hex, "flags": n, "calls": [[number, arguments...]], "code": python} from its standard input,
# loads the filter and prints what each call returned: a number, or minus an errno.
CHILD = """
import ctypes, json, mmap, sys
job = json.load(sys.stdin)
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

class Fprog(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]

def call(number, *args):
    ctypes.set_errno(0)
    result = libc.syscall(*[ctypes.c_long(value) for value in (number, *args)])
    return -ctypes.get_errno() if result == -1 else result

def int80():
    # A function that makes a 32-bit call from this 64-bit process: int80(number, ebx, ecx, edx). Its page lies
    # below 4 GiB (MAP_32BIT), so that the second half can hold what pointers point at.
    page = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40, prot=7)
    page.write(bytes.fromhex("53 89f8 4889f3 4887d1 cd80 5b c3"))
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_long] * 4)(address), page, address + 2048

scope = {"call": call, "int80": int80, "libc": libc, "ctypes": ctypes}
exec(job.get("before", ""), scope)
program = bytes.fromhex(job["program"])
if program:
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    fprog = Fprog(len(program) // 8, program)
    assert libc.syscall(job["seccomp"], 1, job["flags"], ctypes.byref(fprog)) == 0, ctypes.get_errno()
results = [call(*one) for one in job["calls"]]
exec(job.get("code", ""), scope)
print(json.dumps({"results": results, "out": scope.get("out")}))
"""


def child(config: dict[str, Any] | None, *calls: list[int], **more: str) -> subprocess.CompletedProcess[str]:
    compiled = compile_filter(config) if config is not None else None
    job = {
        "program": compiled.program.hex() if compiled else "",
        "flags": compiled.flags if compiled else 0,
        "seccomp": SECCOMP_NR,
        "calls": calls,
        **{name: textwrap.dedent(code) for name, code in more.items()},
    }
    return subprocess.run(
        [sys.executable, "-c", CHILD], input=json.dumps(job), capture_output=True, text=True, timeout=60
    )


def results(config: dict[str, Any] | None, *calls: list[int]) -> list[int]:
    done = child(config, *calls)
    assert done.returncode == 0, done
    return list(json.loads(done.stdout)["results"])


def out(config: dict[str, Any] | None, code: str, before: str = "") -> Any:
    done = child(config, code=code, before=before)
    assert done.returncode == 0, done
    return json.loads(done.stdout)["out"]


def default(refusal: int = errno.EPERM) -> dict[str, Any]:
    """The profile of a container with the default capabilities; ``refusal`` may be an errno that gives itself away."""
    return {**default_profile(DEFAULT_CAPS), "defaultErrnoRet": refusal}


def ruled(name: str, action: str, default_action: str = "SCMP_ACT_ALLOW", **more: Any) -> dict[str, Any]:
    return {"defaultAction": default_action, "syscalls": [{"names": [name], "action": action, **more}]}


# Arguments that harm nothing, should a filter fail to refuse the call.
BAD = [-1, -1, -1, -1, -1]
REFUSED = """add_key request_key keyctl io_uring_setup io_uring_enter io_uring_register bpf perf_event_open userfaultfd
kexec_load kexec_file_load init_module finit_module delete_module mount umount2 pivot_root swapon swapoff reboot setns
unshare open_by_handle_at acct quotactl settimeofday clock_settime kcmp pidfd_getfd process_madvise move_pages
migrate_pages mbind set_mempolicy sethostname setdomainname fsopen fsconfig fsmount fspick open_tree move_mount
mount_setattr fanotify_init""".split()


def test_refused_by_the_default_profile() -> None:
    """AF_ALG/keyring/io_uring class: an errno that the kernel has not proves that the filter answered."""
    answers = results(default(1000), *[[NATIVE[name], *BAD] for name in REFUSED])
    assert dict(zip(REFUSED, answers, strict=True)) == dict.fromkeys(REFUSED, -1000)


def test_refusals_are_eperm() -> None:
    assert results(default(), [NATIVE["keyctl"], 0, 0], [NATIVE["io_uring_setup"], 1, 0]) == [-1, -1]


def test_the_same_calls_reach_the_kernel_without_a_filter() -> None:
    harmless = [[NATIVE["keyctl"], -1], [NATIVE["io_uring_setup"], 0, 0], [NATIVE["clone3"], 0, 0]]
    assert not {-1000, -1} & set(results(None, *harmless))


def test_new_namespaces() -> None:
    flags = [0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000]
    # CLONE_SIGHAND without CLONE_VM is EINVAL wherever the filter lets it through.
    answers = results(default(1000), *[[NATIVE["clone"], flag | 0x800] for flag in [*flags, 0]])
    assert answers == [-1000] * 7 + [-errno.EINVAL]
    assert results(default(), [NATIVE["clone3"], 0, 0]) == [-errno.ENOSYS]
    admin = {**default_profile(["CAP_SYS_ADMIN"]), "defaultErrnoRet": 1000}
    assert results(admin, [NATIVE["clone"], 0x10000000 | 0x800], [NATIVE["clone3"], 0, 0]) == [-errno.EINVAL] * 2


def test_sockets() -> None:
    """AF_ALG and AF_VSOCK, also with rubbish above the 32 bits that the kernel looks at."""
    number = NATIVE["socket"]
    for family in (38, 40):
        for high in (0, 1 << 32, 1 << 40, -(1 << 63)):
            assert results(default(1000), [number, family + high, 5, 0]) == [-1000]
    for family in (1, 2, 16):
        assert all(fd > 2 for fd in results(default(1000), [number, family, 2, 0], [number, family + (1 << 32), 2, 0]))


def test_a_call_that_is_newer_than_the_profile() -> None:
    assert results(default(), [NATIVE["open_tree_attr"], *BAD], [600]) == [-errno.ENOSYS] * 2


def test_programs_run_under_the_default_profile(tmp_path: Path) -> None:
    code = f"""
    import os, socket, subprocess, threading, tempfile, select, signal
    thread = threading.Thread(target=lambda: None); thread.start(); thread.join()
    os.mkdir({str(tmp_path / "d")!r}); os.symlink("d", {str(tmp_path / "l")!r})
    with open({str(tmp_path / "f")!r}, "w") as file: file.write("x"); os.fsync(file.fileno())
    listener = socket.create_server(("127.0.0.1", 0)); client = socket.create_connection(listener.getsockname())
    select.epoll().register(client); os.memfd_create("m"); os.getrandom(8); os.sched_getaffinity(0)
    signal.setitimer(signal.ITIMER_REAL, 5); signal.setitimer(signal.ITIMER_REAL, 0)
    ls = subprocess.run(["sh", "-c", "ls / | wc -l; exit 7"], capture_output=True)
    out = [ls.returncode, ls.stderr.decode(), call({NATIVE["personality"]}, 0xFFFFFFFF), os.waitpid(os.spawnlp(
        os.P_NOWAIT, "true", "true"), 0)[1]]
    """
    assert out(default(1000), code) == [7, "", 0, 0]


def test_actions() -> None:
    getppid = NATIVE["getppid"]
    assert results(ruled("getppid", "SCMP_ACT_ERRNO", errnoRet=17), [getppid]) == [-17]
    assert results(ruled("getppid", "SCMP_ACT_ERRNO", errnoRet=0), [getppid]) == [0]
    assert results(ruled("getppid", "SCMP_ACT_TRACE"), [getppid]) == [-errno.ENOSYS], "no tracer"
    assert results(ruled("getppid", "SCMP_ACT_LOG"), [getppid]) == [os.getpid()]
    for action in ("SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"):
        assert child(ruled("getppid", action), [getppid]).returncode == -31, action
        assert child(ruled("getppid", action)).returncode == 0, action


def test_arguments() -> None:
    number = NATIVE["getppid"]
    args = [{"index": 1, "op": "SCMP_CMP_GT", "value": 1 << 33}, {"index": 5, "op": "SCMP_CMP_NE", "value": 4}]
    config = ruled("getppid", "SCMP_ACT_ERRNO", args=args, errnoRet=1000)
    assert results(config, [number, 0, (1 << 33) + 1]) == [-1000]
    assert results(config, [number, 0, 1 << 33], [number, 0, (1 << 33) + 1, 0, 0, 0, 4]) == [os.getpid()] * 2


def test_flags_are_the_kernels() -> None:
    names = ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]
    config = {"defaultAction": "SCMP_ACT_ALLOW", "flags": names}
    assert compile_filter(config).flags == 7
    assert results(config, [NATIVE["getppid"]]) == [os.getpid()]


# 32-bit calls of a 64-bit process

needs_int80 = pytest.mark.skipif(MACHINE != "x86_64", reason="int 0x80 is x86")
INT80 = "invoke, page, memory = int80()"


def has_int80() -> None:
    done = child(None, code=INT80 + "\nout = invoke(20, 0, 0, 0)")
    if done.returncode:
        pytest.skip("this kernel has no 32-bit system calls")
    assert json.loads(done.stdout)["out"] > 1


@needs_int80
def test_foreign_calls_kill() -> None:
    has_int80()
    native_only = {"defaultAction": "SCMP_ACT_ALLOW"}
    assert child(native_only, before=INT80, code="invoke(20, 0, 0, 0)").returncode == -31
    both = {**native_only, "architectures": ["SCMP_ARCH_X86"]}
    assert child(both, before=INT80, code="invoke(20, 0, 0, 0)").returncode == 0
    assert child(native_only, [0x40000000 + 39]).returncode == -31, "x32"


@needs_int80
def test_32_bit_calls_are_no_way_around() -> None:
    """AF_ALG through socket, socketcall and rubbish in the high halves; the keyring; io_uring."""
    has_int80()
    code = """
    import struct
    def socketcall(*words):
        page[2048:2048 + 4 * len(words) - 4] = struct.pack("<%dI" % (len(words) - 1), *words[1:])
        return invoke(102, words[0], memory, 0)
    fd = invoke(359, 2, 2, 0)
    out = {
        "socket": [invoke(359, 38, 5, 0), invoke(359, 38 + (1 << 32), 5, 0), invoke(359, 40 - (1 << 63), 5, 0)],
        "socketcall": [socketcall(1, 38, 5, 0), socketcall(1, 2, 1, 0), socketcall(1 + (1 << 32), 38, 5, 0)],
        "keyring": [invoke(288, 0, 0, 0), invoke(286, 0, 0, 0), invoke(287, 0, 0, 0)],
        "io_uring": [invoke(425, 0, 0, 0)],
        "works": fd > 2 and socketcall(4, fd, 1) == -95 and invoke(20, 0, 0, 0) > 1,
    }
    """
    assert out(default(1000), code, before=INT80) == {
        "socket": [-1000] * 3,
        "socketcall": [-1000] * 3,
        "keyring": [-1000] * 3,
        "io_uring": [-1000],
        "works": True,
    }
