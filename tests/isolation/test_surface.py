"""The surface of a level, by independent witnesses: the filter that the kernel holds, what find(1) sees, exact counts."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pycontain.isolation import information, surface, tracing
from pycontain.isolation.levels import level
from pycontain.isolation.model import Job, Outcome
from pycontain.isolation.runner import Opened
from pycontain.isolation.surface import allowed, answer, calls, let_through
from pycontain.isolation.sweeping import INSTANCES, PREFIX
from pycontain.isolation.world import World
from pycontain.runtime.errors import PycontainError, Unsupported
from pycontain.runtime.plan.seccomp import compile_filter
from tests.isolation.test_levels import available
from tests.unit import test_seccomp

pytestmark = pytest.mark.needs("root")
ALLOW, MARK = 0x7FFF0000, 0x5CA1AB1E
ARGUMENTS = ((0,) * 5 + (MARK,), ((1 << 64) - 1,) * 5 + (MARK,))
# seccomp(2): calls that the kernel itself has put into a program are not filtered.
UNFILTERED = {"uretprobe", "uprobe"}
_PTRACE_SEIZE, _PTRACE_INTERRUPT, _PTRACE_DETACH, _PTRACE_SECCOMP_GET_FILTER = 0x4206, 0x4207, 17, 0x420C
_WALL = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def ptrace(request: int, pid: int, address: int = 0, data: Any = 0) -> int:
    done = int(_libc.ptrace(ctypes.c_long(request), pid, ctypes.c_void_p(address), data))
    if done < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return done


def filters(pid: int) -> list[bytes]:
    """The filters of a process, the newest first, as the kernel has them (ptrace(2))."""
    ptrace(_PTRACE_SEIZE, pid)
    try:
        ptrace(_PTRACE_INTERRUPT, pid)
        os.waitpid(pid, _WALL)
        found: list[bytes] = []
        while True:
            try:
                count = ptrace(_PTRACE_SECCOMP_GET_FILTER, pid, len(found), None)
            except OSError as error:
                assert error.errno in (errno.ENOENT, errno.EINVAL)  # no more of them, or none at all
                return found
            program = ctypes.create_string_buffer(8 * count)
            ptrace(_PTRACE_SECCOMP_GET_FILTER, pid, len(found), program)
            found.append(program.raw)
    finally:
        ptrace(_PTRACE_DETACH, pid)


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="no table of this machine's system calls")
def test_system_calls_are_those_that_the_filter_in_the_kernel_lets_through(world: World) -> None:
    table = calls()
    count = f"calls={max(table.values()) + 1}"
    names = ("process", "container", "container-noseccomp", "hardened")
    found = {name: answer(world, level(name), "surface_syscalls", count) for name in names}
    may = {name: allowed(found[name], table) for name in names}

    tenant = level("container").start(world, Job(("/bin/sh", "-c", "echo up; exec sleep 100")))
    try:
        assert tenant.line() == "up"
        held = [program for pid in tenant.pids() for program in filters(pid)]
    finally:
        tenant.stop()
    assert len(held) == 1
    machine = os.uname().machine
    ruled = {
        name
        for name, number in table.items()
        if name in UNFILTERED or any(test_seccomp.run(held[0], machine, number, args) == ALLOW for args in ARGUMENTS)
    }
    assert may["container"] == may["process"] & ruled
    assert let_through(found["process"], table) == set(table)
    assert may["container-noseccomp"] == may["process"] > may["container"] >= may["hardened"]
    assert {"read", "execve", "exit", "exit_group", "rt_sigreturn", "sync", "futex", "personality", "clone"} <= may["hardened"]
    assert {"reboot", "bpf", "mount", "clone3", "vhangup"} <= may["process"] - may["container"]
    assert not {"lookup_dcookie", "nfsservctl"} & may["process"]  # no kernel of our time has them


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="no table of this machine's system calls")
def test_every_kind_of_refusal_is_told_from_the_kernels_own_answer(world: World) -> None:
    """Among them two that end the process which asks."""
    actions = {"reboot": "KILL_PROCESS", "mount": "TRAP", "swapon": "ERRNO", "acct": "LOG", "umask": "ERRNO"}
    rules = [{"names": [name], "action": f"SCMP_ACT_{action}", "errnoRet": 1000} for name, action in actions.items()]
    for one, action in zip(rules, actions.values(), strict=True):
        if action != "ERRNO":
            del one["errnoRet"]
    program = compile_filter({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}).program

    class Fprog(ctypes.Structure):
        _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]

    def confine() -> None:
        fprog = Fprog(len(program) // 8, program)
        assert _libc.prctl(38, 1, 0, 0, 0) == 0 and _libc.prctl(22, 2, ctypes.byref(fprog)) == 0

    table = calls()
    words = [world.probe, "surface_syscalls", f"calls={max(table.values()) + 1}"]
    found = json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True, preexec_fn=confine).stdout)
    answers = {name: found["filter"][number] for name, number in table.items()}
    assert {name: value for name, value in answers.items() if value} == {"reboot": -1, "mount": -1, "swapon": 1000, "umask": 1000}
    assert found["kernel"][table["reboot"]] == found["kernel"][table["umask"]] == -2  # not made


def _seen(world: World, name: str) -> dict[str, float]:
    return {sample.quantity.removeprefix("surface."): sample.values[0] for sample in surface._take_files(world, level(name))}


def _programs_with_rights() -> int:
    """Of this host, as the quantity is defined."""
    count = 0
    for top in ("/bin", "/sbin", "/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/lib", "/usr/lib", "/usr/libexec"):
        if os.path.islink(top) or not os.path.isdir(top):
            continue
        folders = [top] if "lib" not in top else [top, *(entry.path for entry in os.scandir(top) if entry.is_dir(follow_symlinks=False))]
        for entry in (entry for folder in folders for entry in os.scandir(folder)):
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISREG(mode) and (mode & 0o4100 == 0o4100 or mode & 0o2010 == 0o2010):
                count += not os.statvfs(entry.path).f_flag & os.ST_NOSUID
    return count


def test_files_devices_and_rights_are_those_that_others_see(world: World) -> None:
    names = ("process", "container", "hardened")
    found = {name: _seen(world, name) for name in names}
    script = "find /proc -type f | grep -vcE '^/proc/[0-9]+/'; find /sys -type f | wc -l; find /dev -type c | wc -l; find /dev -type b | wc -l"
    lines = level("container").run(world, Job(("/bin/sh", "-c", script))).stdout.split()
    proc, sys, character, block = (int(line) for line in lines)
    container = found["container"]
    # What is plugged in meanwhile moves them a little.
    assert container["proc.files"] == pytest.approx(proc, rel=0.02) and container["sys.files"] == pytest.approx(sys, rel=0.02)
    assert (container["devices.character"], container["devices.block"]) == (character, block)
    assert container["sys.writable"] == 0
    assert found["process"]["proc.writable"] > 5 * container["proc.writable"] > 5 * found["hardened"]["proc.writable"]
    assert found["process"]["devices.character"] > container["devices.character"]
    for place in ("proc", "sys"):
        for one in found.values():
            assert one[f"{place}.files"] >= one[f"{place}.readable"] and one[f"{place}.files"] >= one[f"{place}.writable"] >= 0
    assert (found["process"]["setuid"], container["setuid"]) == (_programs_with_rights(), 0)

    tenant = level("container").start(world, Job(("/bin/sh", "-c", "echo up; exec sleep 100")))
    try:
        assert tenant.line() == "up"
        text = next(text for text in (Path(f"/proc/{pid}/status").read_text() for pid in tenant.pids()) if "Seccomp:\t2" in text)
    finally:
        tenant.stop()
    masks = [int(line.split()[1], 16) for line in text.splitlines() if line.startswith(("CapEff", "CapBnd"))]
    assert [container["capabilities.effective"], container["capabilities.bounding"]] == [mask.bit_count() for mask in masks] == [14, 14]
    assert found["hardened"]["capabilities.effective"] == found["hardened"]["capabilities.bounding"] == 0
    own = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    assert found["process"]["capabilities.effective"] == int(own.split()[1], 16).bit_count()


@pytest.fixture
def traces() -> Iterator[None]:
    """Other instances of the host's tracer stay, and none of ours does."""
    before = sorted(os.listdir(INSTANCES))
    yield
    assert sorted(os.listdir(INSTANCES)) == before


@pytest.mark.needs("tracefs")
def test_system_calls_of_the_workload_are_counted_one_by_one(world: World, traces: None) -> None:
    table = calls()
    # Each is made so often in one pass, by the source of the workload, and by nothing else in it.
    once = ("connect", "listen", "accept", "execve", "pipe2", "getrandom", "shutdown", "poll", "ftruncate", "uname")
    for name in ("process", "container"):
        found = surface.reached(world, level(name), "syscalls")
        made = {one: found.get(str(table[one]), 0) / 10 for one in once if one in table}
        assert made == dict.fromkeys(made, 1.0), name
        assert 60 * 10 < sum(found.values()) < 120 * 10
    available(world, "runsc")
    sandbox = surface.reached(world, level("runsc"), "syscalls")
    # The sandbox's kernel has sockets and signals of its own.
    assert str(table["connect"]) not in sandbox and str(table["ptrace"]) in sandbox and len(sandbox) < len(found)


@pytest.mark.needs("tracefs")
def test_a_trace_that_lost_lines_is_no_figure(world: World, traces: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_BUFFER_KIB", 4)
    with pytest.raises(PycontainError, match=r"cpu\d: \d+ of the trace's lines were lost"):
        surface.reached(world, level("process"), "syscalls")
    # One at a time.
    with tracing.tracer(world, "syscalls"), pytest.raises(Unsupported, match=rf"make {INSTANCES}/{PREFIX}.*: File exists"):
        surface.reached(world, level("process"), "syscalls")


def _told(world: World, name: str) -> dict[str, Outcome]:
    chosen = Opened(level("container")) if name == "opened" else level(name)
    return {outcome.claim.removeprefix("information."): outcome for outcome in information._take(world, chosen)}


def test_what_is_told_about_the_host(world: World) -> None:
    claims = {claim.name.removeprefix("information.") for claim in information.MEASURES[0].claims}
    for name in ("process", "opened"):
        found = _told(world, name)
        assert set(found) == claims
        assert [outcome for outcome in found.values() if outcome.verdict != "leaked"] == [], name
    assert found["boot_id"].detail.endswith(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    for name in ("container", "hardened"):
        held = {claim for claim, outcome in _told(world, name).items() if outcome.verdict == "held"}
        assert held == {"host_name", "log", "interrupts", "timers", "symbols"}, name


def test_another_machines_answers_are_not_taken_for_the_hosts(world: World) -> None:
    host = information._host(world)
    later = information._host(world)
    guest = {
        **host,
        "host_name": "guest",
        "version": "#2 SMP",
        "boot_id": "00000000-0000-4000-8000-000000000000\n",
        "command_line": "quiet\n",
        "memory": "MemTotal:         480260 kB\n",
        "processors": "processor\t: 0\nmodel name\t: QEMU TCG CPU version 2.5+\n",
        "uptime": "8.53 0.16\n",
        "load": "0.08 0.02 0.01 1/51 1\n",
        "log": "<6>[    0.000000] Linux version of another machine, which is no older than this\n",
        "statistics": "intr 1201 197\nctxt 4000\nbtime 1\nprocesses 90\n",
        "interrupts": "           CPU0\n  4:        197   IO-APIC   4-edge      ttyS0\n",
        "disks": " 254       0 vda 6 0 168 55 0 0 0 0 0 52 55 0 0 0 0 0 0\n",
        "timers": "Timer List Version: v0.9\nnow at 8530000000 nsecs\n",
        "symbols": "ffffffff90000000 T _stext\n",
        "mounts": "43 30 0:27 / / rw,relatime - overlay overlay rw,lowerdir=3\n",
    }
    nothing: dict[str, str] = {}
    emptied = dict.fromkeys(host, "")
    for test in information._TESTS:
        assert test.leaks(host, host, later) is not None, test.name
        for told in (guest, nothing, emptied):
            assert test.leaks(told, host, later) is None, (test.name, told)
    assert dataclasses.asdict(information.MEASURES[0].claims[0])["kind"] == "information"


def test_functions_are_read_from_what_the_tracer_writes(tmp_path: Path) -> None:
    """Where the function tracer may not be used, which is on this kernel's say, its lines still have their meaning."""
    (tmp_path / "per_cpu" / "cpu0").mkdir(parents=True)
    (tmp_path / "per_cpu" / "cpu0" / "stats").write_text("entries: 5\noverrun: 0\ncommit overrun: 0\n")
    (tmp_path / "trace").write_text(
        "# tracer: function\n#\n#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION\n"
        "           probe-7211    [001] ..... 12770.648228: vfs_read <-ksys_read\n"
        "   a-name with-9-7211    [001] ..... 12770.648229: vfs_read <-ksys_read\n"
        "           probe-7211    [001] d.h1. 12770.648230: tick_sched_timer <-__hrtimer_run_queues\n"
        "           probe-7211    [001] ..s1. 12770.648231: tcp_v4_rcv <-ip_protocol_deliver_rcu\n"
        "          python-7000    [000] ..... 12770.648232: vfs_write <-ksys_write\n"
    )
    trace = tracing.Tracer(str(tmp_path), "functions")
    trace._ourselves = "7000"
    assert trace.counted() == {"vfs_read": 2, "tcp_v4_rcv": 1}
