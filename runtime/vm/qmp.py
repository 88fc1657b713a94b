"""QEMU's monitor (QMP), by way of the library ``qemu.qmp``, with our errors and a deadline for every answer."""

from __future__ import annotations

import os
import time

from pycontain.runtime.errors import PycontainError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

_SECONDS = 10.0


class Monitor:
    """A connection to the monitor of the machine whose state directory is ``directory``; use it with ``with``."""

    def __init__(self, directory: str) -> None:
        from asyncio import new_event_loop

        from qemu.qmp import QMPClient, QMPError

        self._error: type[Exception] = QMPError
        self._name = os.path.basename(directory)
        # By descriptor: a path may be longer than a socket's name can be.
        self._directory = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        # A loop of our own: that of this thread, and whether there is one, is our caller's affair.
        self._loop = new_event_loop()
        self._client = QMPClient("pycontain")
        try:
            self._wait(self._client.connect(f"/proc/self/fd/{self._directory}/qmp.sock"))
        except (QMPError, OSError, TimeoutError) as error:
            self._loop.close()
            os.close(self._directory)
            raise PycontainError(f"cannot reach the monitor of the machine of {self._name}: {error}") from None

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._wait(self._client.disconnect())
        except (self._error, OSError, EOFError, TimeoutError):
            pass  # QEMU has ended
        self._loop.close()
        os.close(self._directory)

    def _wait(self, answer: Coroutine[Any, Any, Any]) -> Any:
        import asyncio

        def run() -> Any:
            return self._loop.run_until_complete(asyncio.wait_for(answer, _SECONDS))

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return run()
        # Our caller was called by a loop of its own, and a thread runs one at a time.
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(run).result()

    def command(self, name: str, **arguments: Any) -> Any:
        """What QEMU returns (docs/interop/qemu-qmp-ref). Raises PycontainError with what it says instead."""
        try:
            return self._wait(self._client.execute(name, arguments or None))
        except (self._error, OSError, TimeoutError) as error:
            said = str(error) or type(error).__name__
            raise PycontainError(f"cannot {name} the machine of {self._name}: {said}") from None

    def ignore_shared(self) -> None:
        """Leave memory that is a file out of the state of a machine, and take it as it is in there."""
        self.command("migrate-set-capabilities", capabilities=[{"capability": "x-ignore-shared", "state": True}])

    def migrate_from(self, where: str) -> None:
        """Go on from the state of a template; returns when the guest runs.

        Before that nobody should connect to a port: an interrupt between the loading of the device and that of the
        interrupt controller is lost.
        """
        self.ignore_shared()
        self.command("migrate-incoming", uri=where)
        deadline = time.monotonic() + _SECONDS
        while not (status := self.command("query-status"))["running"]:
            if time.monotonic() > deadline:
                raise PycontainError(f"cannot wake the machine of {self._name}: its status is {status['status']!r}")
            time.sleep(0.001)

    def migrate_to(self, fd: int, seconds: float = _SECONDS) -> None:
        """Write the state of the devices into the file ``fd``, and of memory what is not shared; the guest stops."""
        self.ignore_shared()
        self._client.send_fd_scm(fd)
        self.command("getfd", fdname="state")
        self.command("migrate", uri="fd:state")
        deadline = time.monotonic() + seconds
        while True:
            found = self.command("query-migrate")
            status = found.get("status")
            if status == "completed":
                return
            if status not in ("setup", "active", "device", None) or time.monotonic() > deadline:
                why = found.get("error-desc") or f"its status is {status!r}"
                raise PycontainError(f"cannot take a template of the machine of {self._name}: {why}")
            time.sleep(0.005)
