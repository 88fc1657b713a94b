"""The executor in fresh namespaces: starts init with a plan, and holds the dialogue with it.

init is started from a sealed memfd with posix_spawn(3), which runs no Python in the child and takes no fork
handlers: safe in a host with threads.
"""

from __future__ import annotations

import posix as os

from pycontain.runtime import channel, errors, sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from pycontain.runtime.plan.plan import Plan
    from pycontain.runtime.state import Container

    class Launcher(Protocol):
        """Who starts init in our stead and becomes the container's parent (the supervisor of the engine)."""

        def launch(self, program: int, argv: list[str], fds: list[int], base: int) -> None: ...

        def started(self, pid: int) -> None: ...


_EXEC, _NOEXEC_SEAL = 0x10, 8  # of memfd_create(2), since Linux 6.3
INIT = f"{__file__.rpartition('/')[0]}/init/pycontain-init"
_UNSHARED_SECONDS = 10.0
_COPY_BYTES = 1 << 30
_PID_MAX = 1 << 22  # proc_sys_kernel(5)


def sealed_memfd(name: str, data: bytes | int, *, executable: bool = False) -> int:
    """A memfd that nobody, the container included, can change or extend (memfd_create(2)).

    ``data``: what is in it, or the descriptor of a file whose bytes these are, which the kernel copies by itself.

    ``executable``: says so to a kernel that makes none executable by itself. Raises KernelError where it never does.
    """
    from fcntl import F_ADD_SEALS, F_SEAL_GROW, F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_WRITE, fcntl

    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create(name, flags | (_EXEC if executable else _NOEXEC_SEAL))
    except OSError as error:
        if error.errno != errors.EINVAL:
            hint = "sysctl -w vm.memfd_noexec=1" if error.errno == errors.EACCES else None
            raise errors.KernelError(f"cannot hold {name} in memory", error.errno or 0, hint=hint) from None
        fd = os.memfd_create(name, flags)
    if isinstance(data, int):
        while os.sendfile(fd, data, None, _COPY_BYTES):
            pass
    else:
        while data:
            data = data[os.write(fd, data) :]
    fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
    return fd


def init_program() -> int:
    """A sealed memfd with the static init, a new one each time: one that a container got hold of starts no other.

    Raises NotFound where init was not built.
    """
    try:
        fd = os.open(INIT, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        hint = "make -C runtime/init"
        raise errors.NotFound(f"cannot start a container: cannot read {INIT}: it does not exist", hint=hint) from None
    except OSError as error:
        raise errors.KernelError(f"cannot read {INIT}", error.errno or 0) from None
    try:
        return sealed_memfd("pycontain-init", fd, executable=True)
    finally:
        os.close(fd)


class Process:
    """A process that init becomes. ``pid`` after ``unshared()``; ``channel`` is ours until it is closed.

    ``plan``: for the words of a failure; None until ``obey``.
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

    def obey(
        self,
        plan: Plan,
        *,
        cgroup_fds: tuple[int, ...] = (),
        console: int | None = None,
        listener: int | None = None,
    ) -> None:
        """Give ``begin``'s init its plan, and the descriptors that this names by number, which stay the caller's."""
        from pycontain.runtime.plan.ops import encode  # not for those who start what another process created

        self._plan = lambda: plan
        opened = [sealed_memfd("pycontain-plan", encode(plan.ops))]
        try:
            fds = [*opened, *cgroup_fds]
            for path in plan.files:
                if not isinstance(path, int):
                    try:
                        opened.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
                    except OSError as error:
                        raise errors.KernelError(f"cannot open namespace {path}", error.errno or 0) from None
                    path = opened[-1]
                fds.append(path)
            fds += [fd for fd in (console, listener) if fd is not None]
            try:
                sockets.send_fds(self.channel, channel.message(channel.PLAN), fds)
            except BrokenPipeError:
                pass  # as in _send
        finally:
            for fd in opened:
                os.close(fd)

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

    def takes(self, plan: Callable[[], Plan], seconds: float) -> None:
        """From here on it is a guest, behind a stand-in, that speaks, about its plan: in time, for each word."""
        self._plan = plan
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


def failure(plan: Plan, payload: bytes) -> errors.PycontainError:
    """A FAILED message as an error: what was tried, on what, and what the kernel said."""
    index, number, detail = channel.failure(payload)
    if index == channel.NO_OP:
        return errors.KernelErrorText(f"cannot {detail}: {errors.errno_text(number)}", number)
    op = plan.ops[index] if index < len(plan.ops) else ("exec", "init", ["init"], [], 0)
    said = errors.errno_text(number) if number else ""
    where = detail.split("(")[0]  # a failed call is reported as its C text: the system call's name is enough
    if op[0] in ("exec", "find"):
        return _exec_failure(op, number, said)
    if op[0] == "hook":
        return errors.HookFailed(": ".join(part for part in (op[1], f"hook {op[2]} {where}", said) if part), number)
    if op[0].startswith("seccomp") and where == "syscall":
        where = "seccomp"
    from pycontain.runtime.plan.describe import advice, describe

    parts = [f"cannot {describe(op)}", where if where != "syscall" else "", said]
    hint = advice(op, number) if plan.hint is None else plan.hint(op, number)
    return errors.KernelErrorText(": ".join(part for part in parts if part), number, hint=hint)


def _exec_failure(op: tuple[Any, ...], number: int, said: str) -> errors.PycontainError:
    program = op[1]
    if number == 2:
        where = "" if "/" in program else " in $PATH"
        return errors.KernelErrorText(
            f"cannot execute {program!r}: executable file not found{where}: {said}", number, exit_code=127
        )
    return errors.KernelErrorText(f"cannot execute {program!r}: {said}", number, exit_code=126)


def launch(
    plan: Plan,
    *,
    stdio: tuple[int, int, int] | None = None,
    launcher: Launcher | None = None,
    **given: Any,
) -> Process:
    """``begin`` and ``obey`` with ``given``, at once."""
    process = begin(plan.base, stdio=stdio, launcher=launcher)
    try:
        process.obey(plan, **given)
    except BaseException:
        process.close()
        raise
    return process


def begin(
    base: int, *, stdio: tuple[int, int, int] | None = None, launcher: Launcher | None = None, ahead: int = 0
) -> Process:
    """Start an init, which waits for a plan with that ``base``. Raises KernelError.

    ``ahead``: new namespaces (flags of clone(2)) of its first process, which it makes meanwhile: one for the network
    takes 0.5 ms. Only for a plan that joins none, and makes no user namespace, to which they would have to belong.
    """
    program = init_program()
    theirs = -1
    try:
        ours, theirs = sockets.pair()
        argv = ["pycontain-init", str(base), str(ahead)]
        stage0 = 0
        try:
            if launcher is not None:
                launcher.launch(program, argv, [theirs], base)
            else:
                stage0 = _spawn(program, argv, [theirs], base, stdio)
                if ahead:
                    _put_apart(stage0)
        except BaseException:
            os.close(ours)
            raise
        return Process(None, stage0, ours)
    finally:
        os.close(program)
        if theirs >= 0:
            os.close(theirs)


def _put_apart(pid: int) -> None:
    """Let a process that has something to do beside us do it on another processor.

    A scheduler that saves processors (of a virtual machine, after a rest) queues it behind us. To take our processor
    from its mask moves it at once; the mask is whole again before it has a plan, and thus a child.
    """
    processors = os.sched_getaffinity(0)
    if len(processors) < 2 or len(processors) != os.cpu_count():
        return  # a mask that was set is to be inherited as it is
    fd = os.open("/proc/thread-self/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        own = int(os.read(fd, 1024).rpartition(b")")[2].split()[36])  # proc_pid_stat(5): processor
    finally:
        os.close(fd)
    try:
        os.sched_setaffinity(pid, processors - {own})
        os.sched_setaffinity(pid, processors)
    except ProcessLookupError:
        pass  # it has ended, which is seen where it is waited for


def _spawn(program: int, argv: list[str], fds: list[int], base: int, stdio: tuple[int, int, int] | None) -> int:
    """posix_spawn(3) with ``fds`` at ``base`` and on. Sources are moved out of the way of the targets first."""
    from fcntl import F_DUPFD_CLOEXEC, fcntl

    above = base + len(fds) + 8
    moved = [fcntl(fd, F_DUPFD_CLOEXEC, above) for fd in (program, *fds, *(stdio or ()))]
    try:
        actions: list[tuple[int, int, int]] = []
        for i, fd in enumerate(moved[1 : 1 + len(fds)]):
            actions.append((os.POSIX_SPAWN_DUP2, fd, base + i))
        for i, fd in enumerate(moved[1 + len(fds) :]):
            actions.append((os.POSIX_SPAWN_DUP2, fd, i))
        return os.posix_spawn(f"/proc/self/fd/{moved[0]}", argv, {}, file_actions=actions)
    except OSError as error:
        raise errors.KernelError("cannot start init", error.errno or 0) from None
    finally:
        for fd in moved:
            os.close(fd)
