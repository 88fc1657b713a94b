"""A command of a level: arranged first, then let go by one byte, and timed by the host's monotonic clock."""

from __future__ import annotations

import os
import select
import selectors
import subprocess
import time
from collections.abc import Sequence

from pycontain.isolation.model import Ended
from pycontain.runtime.errors import KernelError, PycontainError
from pycontain.runtime.kernel.cgroup import Cgroup

_MOST = 64 << 20  # bytes of output that are kept


class Child:
    """A process in a cgroup, with pipes for its output, that has not executed its program yet.

    Nothing before `go` is in any figure: neither fork nor the join of the cgroup. Raises PycontainError where it
    cannot be prepared.
    """

    def __init__(
        self,
        probe: str,
        args: Sequence[str],
        group: Cgroup,
        *,
        program: str | None = None,
        root: str | None = None,
        mounts: int | None = None,
        user: int = 0,
        leave: str | None = None,
        tasks: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        timeout: float = 20.0,
    ) -> None:
        kind, joins = group.join_fds()
        fds = [*joins, *(os.open(path, os.O_WRONLY | os.O_CLOEXEC) for path in tasks)] if kind == "v1" else [joins]
        words = ["tasks=" + ",".join(map(str, fds)) if kind == "v1" else f"cgroup={joins}"]
        ready, said = os.pipe()
        wait, self._go = os.pipe()
        words += [f"ready={said}", f"go={wait}"]
        passed = [*fds, said, wait]
        for key, value in (
            ("program", program), ("root", root), ("mounts", mounts), ("user", user or None), ("leave", leave),
        ):  # fmt: skip
            if value is not None:
                words.append(f"{key}={value}")
        if mounts is not None:
            passed.append(mounts)
        self._selector = selectors.DefaultSelector()
        try:
            self.process = subprocess.Popen(
                [probe, "enter", *words, "--", *args],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=passed,
                env=environment or {},
            )
        except OSError as error:
            os.close(ready)
            os.close(self._go)
            self._selector.close()
            raise KernelError(f"start {probe}", error.errno or 0) from None
        finally:
            for fd in (*fds, said, wait):
                os.close(fd)
        self._pidfd = os.pidfd_open(self.process.pid)
        assert self.process.stdout is not None and self.process.stderr is not None
        self._out, self._err = self.process.stdout.fileno(), self.process.stderr.fileno()
        self._kept: dict[int, bytearray] = {self._out: bytearray(), self._err: bytearray()}
        self._open = {self._out, self._err}
        for fd in (self._out, self._err, self._pidfd):
            os.set_blocking(fd, False)
            self._selector.register(fd, selectors.EVENT_READ)
        self.started = 0.0
        self._first: float | None = None
        self._ended: float | None = None
        self._status = 0
        try:
            there = select.select([ready], [], [], timeout)[0]
            if not there or not os.read(ready, 1):
                self.kill()
                self._read(until=time.monotonic() + 5)
                said_ = bytes(self._kept[self._err]).decode(errors="replace").strip()
                raise PycontainError(f"cannot prepare {args[0]}: {said_ or 'it did not get ready'}")
        except BaseException:
            self.close()
            raise
        finally:
            os.close(ready)

    def go(self) -> None:
        """Let it execute its program: the clock starts."""
        go, self._go = self._go, -1
        self.started = time.monotonic()
        os.write(go, b"g")
        os.close(go)

    def _read(self, until: float, line: bool = False) -> bool:
        """Take in output until the process has ended and its pipes are closed, or with ``line`` until there is one.
        False where the time is over."""
        while self._open or self._ended is None:
            if line and b"\n" in self._kept[self._out]:
                return True
            if self._ended is not None:  # what holds its pipes now is not the command
                until = min(until, self._ended + 0.25)
            left = until - time.monotonic()
            if left <= 0:
                return self._ended is not None
            for key, _ in self._selector.select(left):
                fd = key.fd
                if fd == self._pidfd:
                    self._ended = time.monotonic()
                    self._status = self.process.wait()
                    self._selector.unregister(fd)
                    continue
                data = os.read(fd, 65536)
                if not data:
                    self._open.discard(fd)
                    self._selector.unregister(fd)
                    continue
                if fd == self._out and self._first is None:
                    self._first = time.monotonic()
                if len(self._kept[fd]) + len(data) > _MOST:
                    raise PycontainError(f"{self.process.args!r} wrote more than {_MOST >> 20} MiB")
                self._kept[fd] += data
        return True

    def wait(self, timeout: float) -> Ended | None:
        """How it ended, with the output that `line` has not taken; None where it has not after ``timeout`` seconds."""
        if not self._read(time.monotonic() + timeout):
            return None
        assert self._ended is not None
        first = None if self._first is None else (self._first - self.started) * 1000
        status = self._status if self._status >= 0 else 128 - self._status
        out, err = (bytes(self._kept[fd]) for fd in (self._out, self._err))
        return Ended(status, out, err, first, (self._ended - self.started) * 1000)

    def line(self, timeout: float) -> str:
        """The next line of its output. Raises PycontainError where none comes in time, or ever."""
        self._read(time.monotonic() + timeout, line=True)
        kept = self._kept[self._out]
        end = kept.find(b"\n")
        if end < 0:
            said = self._kept[self._err].decode(errors="replace").strip()
            what = "ended" if self._ended is not None else f"wrote no line within {timeout:g} s"
            raise PycontainError(f"the tenant {what}" + (f": {said[-500:]}" if said else ""))
        text = kept[:end].decode(errors="replace")
        del kept[: end + 1]
        return text

    def kill(self) -> None:
        if self._ended is None:
            self.process.kill()

    def close(self) -> None:
        """Let go of it: killed, if it still runs."""
        if self._go >= 0:
            os.close(self._go)
            self._go = -1
        self.kill()
        self.process.wait()
        self._selector.close()
        os.close(self._pidfd)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
