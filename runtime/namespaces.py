"""The executor in fresh namespaces: starts init with a plan. dialogue.py is what is said then.

init is started from a sealed memfd with posix_spawn(3), which runs no Python in the child and takes no fork
handlers: safe in a host with threads.
"""

from __future__ import annotations

import posix as os

from pycontain.runtime import channel, errors, sockets
from pycontain.runtime.dialogue import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from pycontain.runtime.plan.plan import Plan

    class Launcher(Protocol):
        """Who starts init in our stead and becomes the container's parent (the supervisor of the engine)."""

        def launch(self, program: int, argv: list[str], fds: list[int], base: int) -> None: ...

        def started(self, pid: int) -> None: ...


_EXEC, _NOEXEC_SEAL = 0x10, 8  # of memfd_create(2), since Linux 6.3
INIT = f"{__file__.rpartition('/')[0]}/init/pycontain-init"
_COPY_BYTES = 1 << 30


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


def obey(
    process: Process,
    plan: Plan,
    *,
    cgroup_fds: tuple[int, ...] = (),
    console: int | None = None,
    listener: int | None = None,
) -> None:
    """Give ``begin``'s init its plan, and the descriptors that this names by number, which stay the caller's."""
    from pycontain.runtime.plan.ops import encode

    process.takes(lambda: plan)
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
            sockets.send_fds(process.channel, channel.message(channel.PLAN), fds)
        except BrokenPipeError:
            pass  # as in Process._send
    finally:
        for fd in opened:
            os.close(fd)


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
        obey(process, plan, **given)
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
        except BaseException:
            os.close(ours)
            raise
        process = Process(None, stage0, ours)
        if stage0 and ahead:
            try:
                _put_apart(stage0)
            except BaseException:
                process.close()
                raise
        return process
    finally:
        os.close(program)
        if theirs >= 0:
            os.close(theirs)


_online = 0


def _put_apart(pid: int) -> None:
    """Let a process that has something to do beside us do it on another processor.

    A scheduler that saves processors (of a virtual machine, after a rest) queues it behind us. To take our processor
    from its mask moves it at once; the mask is whole again before it has a plan, and thus a child.
    """
    global _online
    processors = os.sched_getaffinity(0)
    _online = _online or os.cpu_count() or 1
    if not 2 <= len(processors) == _online:
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
