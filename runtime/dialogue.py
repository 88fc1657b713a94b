"""The dialogue with init, which becomes a process of a container: what it is told, and what it says."""

from __future__ import annotations

import posix as os

from pycontain.runtime import channel, errors, sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pycontain.runtime.plan.plan import Plan
    from pycontain.runtime.state import Container

_UNSHARED_SECONDS = 10.0
_PID_MAX = 1 << 22  # proc_sys_kernel(5)


class Process:
    """A process that init becomes. ``pid`` after ``unshared()``; ``channel`` is ours until it is closed.

    ``plan``: for the words of a failure; None until ``takes``.
    """

    def __init__(self, plan: Callable[[], Plan] | None, stage0: int, fd: int) -> None:
        self._plan = plan
        self.pid = 0
        self.channel = fd
        self._stage0 = stage0
        self._started = False
        self._went = False
        self._early: tuple[int, bytes] | None = None
        self._seconds = 0.0

    @property
    def plan(self) -> Plan:
        assert self._plan is not None
        return self._plan()

    def unshared(self) -> int:
        """Waits until the first process exists; its pid."""
        # Killed between clone and message, stage 0 leaves a child that waits for us: hence a limit.
        if not self._seconds:
            sockets.timeout(self.channel, _UNSHARED_SECONDS)
        message = self._next()
        if self._went and message is not None and message[0] in (channel.READY, channel.FAILED):
            self._early = message  # the first process was faster than its maker with the word of it
            message = self._next() or message
        payload = self._checked(message, channel.UNSHARED)
        if not self._seconds:
            sockets.timeout(self.channel, 0)
        pid = int.from_bytes(payload[:8], "little")
        if len(payload) != 4 or not 0 < pid <= _PID_MAX:
            raise errors.Nonsense(f"init sent nonsense: found process {pid}")
        self.pid = self.pid or pid
        if not self._went:
            self._stage0_done()
        return pid

    def takes(self, plan: Callable[[], Plan], seconds: float = 0.0) -> None:
        """From here on this is the plan. ``seconds``: and a guest speaks, behind a stand-in: in time, for each word."""
        self._plan = plan
        if seconds:
            self._seconds = seconds
            sockets.timeout(self.channel, seconds)

    def go_soon(self, state: bytes) -> None:
        """Before ``unshared``: let init make the container as soon as it is cloned. ``go`` has to follow."""
        self._send(channel.GO, state)
        self._went = True

    def go(self, state: bytes, *, start_too: bool = False) -> None:
        """Let init make the container; returns when it is ready. ``start_too``: and let the program run after that."""
        if not self._went:
            self._send(channel.GO, state)
        self._stage0_done()
        if start_too:
            self.start(state)
        self._expect(channel.READY)

    def mounted(self, state: bytes) -> None:
        """Let init mount what is configured; ``go`` lets it go on when the hooks that are due then have run."""
        self._send(channel.GO, state)
        self._expect(channel.MOUNTED)

    def go_to_end(self, state: bytes) -> None:
        """Let init carry out a plan that ends without a program; returns when it has."""
        self._send(channel.GO, state)
        message = self._receive()
        if message is not None:
            raise self._failure(message)

    def go_exec(self, state: bytes, container: Container) -> None:
        """Let init go all the way to execve; returns when the program runs."""
        self._send(channel.GO, state)
        self.running(container)

    def start(self, state: bytes) -> None:
        """Let the container's program run, once; ``running`` says whether it does."""
        if not self._started:
            self._send(channel.START, state)
            self._started = True

    def running(self, container: Container | None = None) -> None:
        """execve closes the channel; a message is a failure, or a seccomp listener that the container's agent gets."""
        message = self._receive()
        if message is not None and message[0] == channel.LISTENER and container is not None:
            from pycontain.runtime.seccomp_agent import hand_over

            hand_over(container, self.pid, message[1])
            self._send(channel.GO, b"")
            message = self._receive()
        if message is not None:
            raise self._failure(message)
        self.close()

    def read(self) -> bytes | None:
        """The answer to a "read" operation: the bytes, or None where there is no such file."""
        payload = self._expect(channel.DATA)
        error = int.from_bytes(payload[:4], "little")
        if error in (0, 2):
            return None if error else payload[4:]
        raise errors.KernelError("cannot read a file of the root file system", error)

    def _send(self, kind: int, payload: bytes) -> None:
        try:
            channel.send(self.channel, kind, payload)
        except BrokenPipeError:
            pass  # the reason is still to be read
        except BlockingIOError:
            raise self._silent() from None

    def _receive(self) -> tuple[int, bytes] | None:
        if self._early is not None:
            early, self._early = self._early, None
            return early
        return self._next()

    def _next(self) -> tuple[int, bytes] | None:
        try:
            return channel.receive(self.channel)
        except BlockingIOError:
            raise self._silent() from None

    def _silent(self) -> errors.ChannelClosed:
        return errors.ChannelClosed(
            f"init said nothing for {self._seconds or _UNSHARED_SECONDS:.0f} s and was given up"
        )

    def _expect(self, kind: int) -> bytes:
        return self._checked(self._receive(), kind)

    def _checked(self, message: tuple[int, bytes] | None, kind: int) -> bytes:
        if message is None:
            raise errors.ChannelClosed(f"init ended before it said {channel.NAMES[kind]!r} (was it killed?)")
        if message[0] != kind:
            raise self._failure(message)
        return message[1]

    def _failure(self, message: tuple[int, bytes]) -> errors.PycontainError:
        if message[0] != channel.FAILED:
            return errors.Nonsense(f"init sent nonsense: found message {channel.NAMES[message[0]]!r} out of order")
        from pycontain.runtime.failure import failure

        return failure(self.plan, message[1])

    def _stage0_done(self) -> None:
        """No program runs before stage 0 has done what it does beside the first process, such as the device filter."""
        status = self._reap_stage0()
        if status and status > 0:  # it has said why, perhaps behind what the first process said
            message = self._receive()
            if message is not None and message[0] == channel.READY:
                message = self._receive()
            if message is not None:
                raise self._failure(message)
        if status:
            raise errors.ChannelClosed("init ended before it had done its part (was it killed?)")

    def _reap_stage0(self) -> int:
        """Its exit status, or minus the signal that killed it; 0 too where there is none of ours."""
        pid, self._stage0 = self._stage0, 0
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if pid else 0

    def close(self) -> None:
        if self.channel >= 0:
            os.close(self.channel)
            self.channel = -1
            self._reap_stage0()
