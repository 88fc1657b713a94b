"""The kernel's own tracer (tracefs), on one tenant: the system calls and the functions of the host that it leads to.

An instance of our own keeps it apart from whatever else traces on the host. The tracer follows this thread and every
process and thread that comes of it after `follow`, wherever it goes: runtimes, sentries and machine monitors too.

Source: the kernel's Documentation/trace/ftrace.rst (instances, set_event_pid, event-fork, set_ftrace_pid,
function-fork).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from pycontain.isolation.sweeping import INSTANCES, PREFIX
from pycontain.runtime.errors import PycontainError, Unsupported

if TYPE_CHECKING:
    from pycontain.isolation.world import World

_BUFFER_KIB = 16384  # of each processor
_HARD_IRQ = "hHzZ"

# "            bash-21989   [000] d.h1. 12770.648228: sys_enter: NR 33 (3, 1, ...)", or "...: vfs_read <-ksys_read"
_LINE = re.compile(r"^.*?-(?P<pid>\d+) +\[\d+\] (?P<flags>\S+) +[\d.]+: (?P<what>.*)$", re.MULTILINE)


class Tracer:
    """An instance that records nothing yet. ``kind``: what it is to record."""

    def __init__(self, directory: str, kind: Literal["syscalls", "functions"]) -> None:
        self._directory = directory
        self._kind = kind
        self._ourselves = ""

    def follow(self) -> None:
        """From now on, what this thread starts is traced, once the tracer is `on`. Raises Unsupported."""
        self.on()
        self._write("trace_marker", "here")
        self.off()
        # The number that the kernel's own pid namespace has for us; nothing in ours tells.
        here = [line["pid"] for line in _LINE.finditer(self._read("trace")) if "here" in line["what"]]
        if len(here) != 1:
            raise PycontainError(f"{self._directory}: a mark of ours is there {len(here)} times in the trace, not once")
        self._ourselves = here[0]
        self._write("trace", "")
        self._write("buffer_size_kb", str(_BUFFER_KIB))
        for name in ("event", "function") if self._kind == "functions" else ("event",):
            self._write(f"options/{name}-fork", "1")
            self._write("set_ftrace_pid" if name == "function" else "set_event_pid", self._ourselves)
        if self._kind == "functions":
            self._write("current_tracer", "function")
        else:
            self._write("events/raw_syscalls/sys_enter/enable", "1")

    def on(self) -> None:
        self._write("tracing_on", "1")

    def off(self) -> None:
        self._write("tracing_on", "0")

    def counted(self) -> Counter[str]:
        """How often each was reached between `on` and `off`: numbers of system calls, or names of functions. What
        this thread did itself, and what ran in hardware interrupts, is not in it. Raises PycontainError where more was
        recorded than the buffer holds."""
        for name in sorted(os.listdir(f"{self._directory}/per_cpu")):
            lost = re.search(r"^overrun: (\d+)$", self._read(f"per_cpu/{name}/stats"), re.MULTILINE)
            if lost is None or int(lost[1]):
                raise PycontainError(f"{name}: {lost[1] if lost else '?'} of the trace's lines were lost")
        found: Counter[str] = Counter()
        for line in _LINE.finditer(self._read("trace")):
            if line["pid"] == self._ourselves or line["flags"][2:3] in _HARD_IRQ:
                continue
            what = line["what"]
            if self._kind == "functions":
                found[what.partition(" ")[0]] += 1
            elif what.startswith("sys_enter: NR "):
                found[what.split(" ", 3)[2]] += 1
        return found

    def _read(self, name: str) -> str:
        with open(f"{self._directory}/{name}", encoding="ascii", errors="replace") as file:
            return file.read()

    def _write(self, name: str, value: str) -> None:
        """Raises Unsupported where the file is not there or refuses."""
        try:
            with open(f"{self._directory}/{name}", "w") as file:
                file.write(value)
        except OSError as error:
            raise _refused(f"write {value!r} to {name}", error) from None


@contextmanager
def tracer(world: World, kind: Literal["syscalls", "functions"]) -> Iterator[Tracer]:
    """A tracer of our own, which is removed at the end, with all that it has changed. Raises Unsupported."""
    if not os.path.isdir(INSTANCES):
        raise Unsupported(
            f"{INSTANCES} is not there: this kernel has no tracer, or tracefs is not mounted",
            hint="mount -t tracefs tracefs /sys/kernel/tracing",
        )
    directory = f"{INSTANCES}/{PREFIX}{world.id}"  # the world's sweeper knows it by this name
    try:
        os.mkdir(directory)
    except OSError as error:
        raise _refused(f"make {directory}", error) from None
    try:
        yield Tracer(directory, kind)
    finally:
        os.rmdir(directory)


def _refused(what: str, error: OSError) -> Unsupported:
    return Unsupported(f"this kernel's tracer: {what}: {os.strerror(error.errno or 0)}")
