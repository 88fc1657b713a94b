"""Start and talk to the supervisor, the small C process that stays with each container.

docs/design/supervisor.md describes it. Nothing here forks, and nothing here changes the calling process:
the supervisor is started by posix_spawn(3) from a sealed memfd and leaves our process group by itself.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import stat
import struct
from _signal import SIGKILL, pidfd_send_signal, valid_signals

from pycontain.runtime import jsontext
from pycontain.runtime.errors import Conflict, KernelError, NotFound, PycontainError, Unsupported
from pycontain.runtime.light import NamedTuple
from pycontain.runtime.namespaces import sealed_memfd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Literal

FORMAT = 1
START_TIMEOUT = 30.0  # seconds; the supervisor answers within milliseconds unless the host is swapping

_CONTROL = struct.Struct("<BI")
_ANSWER = struct.Struct("<BII")
_FAILURES = {
    1: "start the supervisor: fork",
    2: "start the supervisor: make pipes",
    3: "write the supervisor's pid file",
    4: "execute the container's first stage",
    5: "take over the container's process",
    6: "open the container's log",
}
# Descriptors are moved up here first, so that placing one in its slot never overwrites another.
_MOVED = 100


class Exit(NamedTuple):
    """How a container ended: ``status`` 0-255, or 128 + ``signal``; ``finished`` in RFC 3339, UTC."""

    status: int
    signal: int | None
    finished: str
    log_dropped: int = 0


class Processes(NamedTuple):
    """A pid file: the supervisor and its container, each as pid and start time (ticks since boot, proc(5) field 22)."""

    pid: int
    start_time: int
    container_pid: int | None
    container_start_time: int | None

    def alive(self) -> bool:
        """True while the supervisor itself lives (it executes the teardown command under the same pid)."""
        return start_time(self.pid) == self.start_time

    def container_alive(self) -> bool:
        """True while the container's first process lives; without a supervisor it may be an orphan."""
        return self.container_pid is not None and start_time(self.container_pid) == self.container_start_time


class Supervisor:
    """A supervisor whose container is being started. Close it when the container runs; it then goes on alone."""

    __slots__ = ("_control", "child_pid", "pid")

    def __init__(self, control: _socket.socket, pid: int, child_pid: int) -> None:
        self._control: _socket.socket | None = control
        self.pid = pid
        self.child_pid = child_pid
        """The pid of the process that runs ``child_argv``."""

    def started(self, pid: int) -> None:
        """Name the container's first process, a child of the supervisor, and wait until that is on record.

        From here on its end is awaited, and closing this handle, even by dying, leaves the container running.
        Raises KernelError when ``pid`` is no child of the supervisor or the pid file cannot be written.
        """
        if self._control is None:
            raise Conflict(f"name process {pid} to supervisor {self.pid}: its start is over")
        self._control.send(_CONTROL.pack(ord("S"), pid))
        _answer(self._control, b"K")

    def abort(self) -> None:
        """Kill everything that the supervisor has started, and it; returns when all of it is gone.

        It leaves no exit status and runs no teardown: the caller, who knows what failed, cleans up.
        """
        control, self._control = self._control, None
        if control is None:
            return
        try:
            control.settimeout(START_TIMEOUT)
            control.send(_CONTROL.pack(ord("A"), 0))
            while control.recv(64):
                pass
        except OSError:
            pass  # it died before, which is as good
        control.close()

    def close(self) -> None:
        """Let the supervisor go on alone. Before `started` this is an abort with teardown, as if we had died."""
        control, self._control = self._control, None
        if control is not None:
            control.close()


def spawn(
    child_argv: Sequence[str],
    child_fds: Sequence[int] = (),
    *,
    exec_fd: int,
    base: int = 3,
    exit_path: str,
    pid_file: str,
    stdin: Literal["pipe", "null"] = "null",
    console_fd: int | None = None,
    log_path: str | None = None,
    log_max_size: int = 10_000_000,
    log_max_files: int = 3,
    attach_listen_fd: int | None = None,
    owner_fd: int | None = None,
    hold_fds: Sequence[int] = (),
    teardown_argv: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    program: str | None = None,
) -> Supervisor:
    """Start a supervisor, which at once executes ``exec_fd`` (a binary, not a script) with ``child_argv``.

    The child gets ``child_fds`` as descriptors ``base``, ``base`` + 1, ... and nothing else beside its stdio. That
    is three pipes (stdin /dev/null unless ``"pipe"``), or, with ``console_fd``, /dev/null: then the supervisor awaits
    a pty master by SCM_RIGHTS on that socket. ``attach_listen_fd`` is from `listen`, ``owner_fd`` one end of a
    socketpair whose other end goes to `attach.run_foreground`. ``hold_fds`` are kept open for the container's life.
    ``teardown_argv`` (an absolute path first) is executed when the container has ended and no owner has said done,
    or when we die before `Supervisor.started`. ``log_path`` None: no log; ``log_max_size`` is bytes per file, at
    least 32768.

    All descriptors stay the caller's: close those that the container's end should be seen on.
    Raises KernelError (start refused by the kernel), NotFound (the program was not built), PycontainError.
    """
    if not child_argv or any("\0" in text for text in [*child_argv, *teardown_argv]):
        raise PycontainError("start the supervisor: a command must have arguments, and none with a NUL byte")
    if teardown_argv and not os.path.isabs(teardown_argv[0]):
        raise PycontainError(f"start the supervisor: teardown command {teardown_argv[0]!r} is not an absolute path")
    if log_max_size < 32768 or log_max_files < 1:
        raise PycontainError(
            f"start the supervisor: found a log of {log_max_files} × {log_max_size} bytes, wanted at least 1 × 32768"
        )
    environment = os.environ if env is None else env
    opened: list[int] = []
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        opened.append(theirs.detach())
        exit_dir = _open_dir(exit_path, opened)
        pid_dir = _open_dir(pid_file, opened)
        log_dir = -1 if log_path is None else _open_dir(log_path, opened)
        slots: dict[int, int] = {}
        free = 3

        def slot(fd: int | None) -> int:
            nonlocal free
            if fd is None or fd < 0:
                return -1
            slots[free] = fd
            free += 1
            return free - 1

        numbers = [FORMAT, slot(opened[0]), slot(exec_fd), slot(exit_dir), slot(pid_dir), slot(log_dir)]
        numbers += [slot(attach_listen_fd), slot(owner_fd), slot(console_fd)]
        # The supervisor copies these down to ``base`` one after the other, so they have to start above it.
        free = max(free, base + 1)
        numbers += [free, len(child_fds), base]
        for fd in [*child_fds, *hold_fds]:
            slot(fd)
        numbers += [free - 1, stdin == "pipe", log_max_files, log_max_size, len(child_argv)]
        names = [os.path.basename(path) for path in (exit_path, pid_file, log_path or "")]
        argv = ["pycontain-supervisor", ",".join(str(int(number)) for number in numbers), *names]
        argv += [*child_argv, "", *teardown_argv]
        actions: list[Any] = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            (os.POSIX_SPAWN_DUP2, 0, 2),
        ]
        above = max(_MOVED, free)
        for number, fd in slots.items():
            opened.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above))
            actions.append((os.POSIX_SPAWN_DUP2, opened[-1], number))
        image = _sealed(program or _program())
        opened.append(image)
        opened.append(fcntl.fcntl(image, fcntl.F_DUPFD_CLOEXEC, above))
        try:
            # Every signal is blocked until the supervisor has left our process group: a Ctrl-C is for us.
            path, blocked = f"/proc/self/fd/{opened[-1]}", valid_signals()
            pid = os.posix_spawn(path, argv, environment, file_actions=actions, setsigmask=blocked)
        except OSError as error:
            raise KernelError("start the supervisor: posix_spawn", error.errno or 0) from error
    except OSError as error:
        ours.close()
        raise KernelError("start the supervisor: hand over descriptors", error.errno or 0) from error
    except BaseException:
        ours.close()
        raise
    finally:
        for fd in opened:
            os.close(fd)
    # This process only forks the real one and exits. A host that ignores SIGCHLD has no status for us.
    try:
        _, code = os.waitpid(pid, 0)
    except ChildProcessError:
        code = 0
    try:
        if code:
            raise PycontainError(f"start the supervisor: it ended with status {os.waitstatus_to_exitcode(code)}")
        daemon, child = _answer(ours, b"R")
    except BaseException:
        ours.close()
        raise
    return Supervisor(ours, daemon, child)


def listen(path: str) -> int:
    """Make the attach socket, mode 0600, in a directory that is nobody else's; returns the listening descriptor.

    A socket of that name that was left behind is replaced. The path may be longer than sun_path's 108 bytes.
    """
    directory = _open_dir(path, [])
    server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK)
    name = os.path.basename(path)
    try:
        found = os.stat(directory)
        if found.st_mode & 0o077 or found.st_uid != os.geteuid():
            raise Conflict(
                f"make attach socket {path}: found its directory with mode {stat.S_IMODE(found.st_mode):04o} "
                f"and owner {found.st_uid}, wanted 0700 and {os.geteuid()}",
                hint=f"chmod 0700 {os.path.dirname(path)}",
            )
        try:
            os.unlink(name, dir_fd=directory)
        except FileNotFoundError:
            pass
        # unix_bind gives the file the mode of the socket's own inode: no umask, which is process-wide, is touched.
        os.fchmod(server.fileno(), 0o600)
        server.bind(f"/proc/self/fd/{directory}/{name}")
        server.listen(16)
    except OSError as error:
        server.close()
        raise KernelError(f"make attach socket {path}", error.errno or 0) from error
    except BaseException:
        server.close()
        raise
    finally:
        os.close(directory)
    return server.detach()


def read_processes(pid_file: str) -> Processes | None:
    """The pid file, or None where there is none. Unsupported for a format version that is not ours."""
    data = _read_json(pid_file, "pid file")
    if data is None:
        return None
    try:
        values = [data["pid"], data["start_time"], data["container_pid"], data["container_start_time"]]
        if not all(isinstance(value, int) for value in values[:2]):
            raise TypeError
        return Processes(*values)
    except (KeyError, TypeError):
        raise PycontainError(f"read pid file {pid_file}: found no pid with start time") from None


def read_exit(exit_path: str) -> Exit | None:
    """The exit record, or None while there is none. Unsupported for a format version that is not ours."""
    data = _read_json(exit_path, "exit record")
    if data is None:
        return None
    try:
        return Exit(int(data["status"]), data["signal"], str(data["finished"]), int(data.get("log_dropped", 0)))
    except (KeyError, TypeError, ValueError):
        raise PycontainError(f"read exit record {exit_path}: found no status") from None


def finished(exit_path: str, pid_file: str) -> bool:
    """True when the container's end is on record, or nobody is left who could record it (for `logs.follow`)."""
    if os.path.exists(exit_path):
        return True
    found = read_processes(pid_file)
    return found is None or not found.alive()


def kill(processes: Processes, *, container: bool = False, number: int = SIGKILL, wait: float = 10.0) -> bool:
    """Send a signal to the supervisor (or its container) by pidfd, never to a process that has got the same pid.

    For SIGKILL it also waits, up to ``wait`` seconds, until the process is gone. False where it was gone already.
    """
    import select

    pid = processes.container_pid if container else processes.pid
    wanted = processes.container_start_time if container else processes.start_time
    if pid is None:
        return False
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    except OSError as error:
        raise KernelError(f"open process {pid}", error.errno or 0) from error
    try:
        # The descriptor is of whoever has the pid now; if the start time fits while we hold it, it is ours.
        if start_time(pid) != wanted:
            return False
        try:
            pidfd_send_signal(fd, number)
        except ProcessLookupError:
            return False
        except OSError as error:
            raise KernelError(f"send signal {int(number)} to process {pid}", error.errno or 0) from error
        if number == SIGKILL:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            poll.poll(wait * 1000)
        return True
    finally:
        os.close(fd)


def start_time(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (proc(5)): ticks since boot. None where there is no such process, or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[0] in (b"Z", b"X"):
        return None
    return int(fields[19])


def _answer(control: _socket.socket, wanted: bytes) -> tuple[int, int]:
    control.settimeout(START_TIMEOUT)
    try:
        message = control.recv(64)
    except TimeoutError:
        raise PycontainError(f"start the supervisor: no answer within {START_TIMEOUT:.0f} s") from None
    except OSError as error:
        raise KernelError("start the supervisor: read its answer", error.errno or 0) from error
    if len(message) != _ANSWER.size:
        raise PycontainError("start the supervisor: it died before it was ready")
    kind, first, second = _ANSWER.unpack(message)
    if kind == ord("E"):
        raise KernelError(_FAILURES.get(second, "start the supervisor"), first)
    if kind != wanted[0]:
        raise PycontainError(f"start the supervisor: found answer {kind}, wanted {wanted[0]}")
    return first, second


def _open_dir(path: str, opened: list[int]) -> int:
    directory = os.path.dirname(os.path.abspath(path))
    try:
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(f"open directory {directory}", error.errno or 0) from error
    opened.append(fd)
    return fd


def _program() -> str:
    from pycontain import runtime

    return os.path.join(os.path.dirname(runtime.__file__), "init", "pycontain-supervisor")


def _sealed(path: str) -> int:
    """A memfd with the program that nobody, not even root in a container (CVE-2019-5736), can write to any more."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        raise NotFound(f"start the supervisor: {path} is not there", hint="build it: make -C runtime/init") from None
    except OSError as error:
        raise KernelError(f"read {path}", error.errno or 0) from error
    return sealed_memfd("pycontain-supervisor", data, executable=True)


def _read_json(path: str, what: str) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as file:
            data = jsontext.loads(file.read(4096))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KernelError(f"read {what} {path}", error.errno or 0) from error
    except ValueError:
        raise PycontainError(f"read {what} {path}: it is not JSON") from None
    if not isinstance(data, dict):
        raise PycontainError(f"read {what} {path}: it is not a JSON object")
    if data.get("version") != FORMAT:
        raise Unsupported(
            f"read {what} {path}: found format version {data.get('version')!r}, wanted {FORMAT}",
            hint="it was written by another version of pycontain; use that one to remove the container",
        )
    return data
