"""Children that sit in a cgroup, for the cgroup tests of every backend."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pycontain.runtime.kernel import cgroup as kernel
from pycontain.runtime.kernel.cgroup import Cgroup

# The single-threaded child writes itself into every v1 hierarchy; on cgroup2 it has no clone3 and uses cgroup.procs.
_JOIN = """\
import os, sys
for number in sys.argv[1].split(","):
    os.write(int(number), b"0")
"""


@contextmanager
def joining(group: Cgroup, *, unified: bool = True) -> Iterator[list[int]]:
    """The fds to which a child writes ``0`` to join; ``unified`` says whether cgroup2 is among them on hybrid hosts."""
    kind, value = group.join_fds()
    opened = list(value) if kind == "v1" else [value]
    fds = list(value) if kind == "v1" else []
    if group.unified and (unified or kind == "v2"):
        fds.append(os.open(f"{group.unified}/cgroup.procs", os.O_WRONLY))
        opened.append(fds[-1])
    try:
        yield fds
    finally:
        for fd in opened:
            os.close(fd)


def child(group: Cgroup, code: str, *, unified: bool = True) -> subprocess.Popen[str]:
    """Python code that runs after joining ``group``; its output is piped, both streams in one."""
    with joining(group, unified=unified) as fds:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _JOIN + code, ",".join(map(str, fds))],
            pass_fds=fds,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def run(group: Cgroup, code: str) -> tuple[int, str]:
    """``child`` to its end: (return code as subprocess has it, output)."""
    process = child(group, code)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def sleeper(group: Cgroup, *, unified: bool = True) -> subprocess.Popen[str]:
    """A child that has joined, has said so, and sleeps."""
    process = child(group, 'print("in", flush=True)\nimport time\ntime.sleep(600)', unified=unified)
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    return process


def end(process: subprocess.Popen[str]) -> int:
    """Kill, reap and close a child; its return code."""
    process.kill()
    process.communicate(timeout=30)
    return process.returncode


def until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def cat(path: str) -> str:
    """A kernel file as another program reads it."""
    return subprocess.run(["cat", path], capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def of_process(pid: int) -> dict[str, str]:
    """/proc/PID/cgroup: hierarchy (controllers, or "" for cgroup2) to path."""
    rows = (line.split(":", 2) for line in cat(f"/proc/{pid}/cgroup").splitlines())
    return {controllers: path for _, controllers, path in rows}


@contextmanager
def scratch(name: str) -> Iterator[Cgroup]:
    """An opened, not yet created cgroup below a parent of this test's own; nothing of either is left afterwards."""
    parent = f"/pycontain-test-{os.getpid()}"
    group = kernel.open_cgroup(f"{parent}/{name}")
    try:
        yield group
    finally:
        whole = kernel.open_cgroup(parent)
        whole.kill_all()
        whole.remove()
        assert not whole.exists()
