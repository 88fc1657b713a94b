"""create, start, run and exec: from options to a running process, and back to nothing where a step fails.

image → pin → layers → record            (create)
lease → files → config.json → supervisor → runtime create → start → record      (start)
attach → end → teardown                   (run in the foreground)
"""

from __future__ import annotations

import _socket
import os
import sys
import time

from pycontain.engine import supervise, teardown
from pycontain.engine.containers import Container
from pycontain.runtime import lifecycle
from pycontain.runtime.errors import Conflict, KernelError, NotFound, PycontainError
from pycontain.runtime.state import boot_id, start_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, TextIO

    from pycontain.engine import Engine
    from pycontain.engine.images import Image
    from pycontain.engine.options import Options

    Say = Callable[[str], None]

_LOG_SIZE, _LOG_FILES = 10_000_000, 3


class Started:
    """A process that runs, in ``container``. ``owner`` is our end of the owner's socket, None for one detached."""

    __slots__ = ("container", "interactive", "owner", "pid", "terminal")

    def __init__(
        self, container: Container, pid: int, owner: _socket.socket | None, *, terminal: bool, interactive: bool
    ) -> None:
        self.container = container
        self.pid = pid
        self.owner = owner
        self.terminal = terminal
        self.interactive = interactive

    def signal(self, number: int) -> None:
        """Send a signal to this process, by pidfd; nothing happens where it has ended."""
        from _signal import pidfd_send_signal

        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            # While the owner's socket is open the supervisor, its parent, has not let go of the pid.
            pidfd_send_signal(fd, number)
        except ProcessLookupError:
            pass
        finally:
            os.close(fd)


class Launcher:
    """Lets the supervisor start init, so that it and not we are the container's parent."""

    def __init__(self, **arguments: Any) -> None:
        self._arguments = arguments
        self.supervisor: supervise.Supervisor | None = None

    def launch(self, program: int, argv: list[str], fds: list[int], base: int) -> None:
        assert base == 3, "the supervisor places descriptors from 3 on"
        self.supervisor = supervise.spawn(argv, fds, exec_fd=program, **self._arguments)

    def started(self, pid: int) -> None:
        assert self.supervisor is not None
        self.supervisor.started(pid)

    def abort(self) -> None:
        if self.supervisor is not None:
            self.supervisor.abort()

    def close(self) -> None:
        if self.supervisor is not None:
            self.supervisor.close()


def create(engine: Engine, options: Options, *, progress: TextIO | None = None) -> Container:
    """A new container of an image, pulled where needed. It is locked: the caller starts it, or releases ``lock``.

    Raises NotFound (image), Conflict (name), and whatever pulling and unpacking raise; nothing is left behind then.
    """
    from pycontain.engine import bundle, images
    from pycontain.images.config import command_line

    with engine.images.pin():
        image = images.resolve(engine, options.image, platform=options.platform, policy=options.pull, stream=progress)
        _refuse_foreign(options, image)
        args = command_line(image.config, options.entrypoint, options.args)
        lowers = bundle.layers(engine, image)
        _write_cidfile_first(options)
        container = engine.containers.new(options.name, durable=not options.remove)
        try:
            bundle.record(engine, container, options, image, args, lowers)
            container.save()
            if options.cidfile:
                _write_cidfile(options.cidfile, container.id)
        except BaseException:
            teardown.discard(engine, container)
            raise
    return container


def _refuse_foreign(options: Options, image: Image) -> None:
    from pycontain.images.manifest import Platform

    if Platform.host().rank(image.config.platform) is None and not options.platform:
        raise Conflict(
            f'image "{image.name}" is for {image.config.platform}, this host is {Platform.host()}',
            hint=f"pycontain pull --platform {Platform.host()} {image.name}",
        )


def _write_cidfile_first(options: Options) -> None:
    if options.cidfile and os.path.lexists(options.cidfile):
        raise Conflict(f'--cidfile "{options.cidfile}": it exists already', hint=f"rm {options.cidfile}")


def _write_cidfile(path: str, identifier: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, identifier.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise KernelError(f'--cidfile "{path}": cannot be written', error.errno or 0) from None


def start(
    engine: Engine,
    container: Container,
    *,
    own: bool = False,
    warn: Say | None = None,
    size: tuple[int, int] | None = None,
) -> Started:
    """Start a created or ended container whose lock the caller holds; the lock is kept.

    ``own``: the caller will attach as its owner and clear up itself. ``size``: (rows, columns) of its terminal.
    Raises Conflict where it runs already; after any error the container is as it was before, and holds nothing.
    """
    if container.status() in ("running", "paused"):
        raise Conflict(f'cannot start container "{container.label}": it is {container.status()}')
    if os.path.exists(container.run_directory) or os.path.exists(os.path.join(engine.runtime_root, container.id)):
        teardown.remove_leftover(engine, container)
    opened: list[int] = []
    launcher: Launcher | None = None
    owner: _socket.socket | None = None
    lease = None
    try:
        from pycontain.engine import bundle, files

        files.make_directory(os.path.dirname(container.run_directory))
        files.make_directory(container.run_directory)
        files.make_directory(container.path("log"))
        lease = bundle.take_lease(engine, container, warn)
        rootfs = bundle.rootfs(container)
        vm = container.options.get("isolation") == "vm"
        machine = bundle.machine_image(engine, container) if vm else None
        config = bundle.prepare(engine, container, rootfs, lease, size)
        arguments, owner, console = _plumbing(engine, container, config, lease, opened, own)
        launcher = Launcher(**arguments)
        running = lifecycle.create(
            container.id,
            container.directory,
            root=engine.runtime_root,
            rootfs=rootfs if machine is None else machine,
            lease=lease,
            console=console,
            launcher=launcher,
            listen=False,
            reap=bool(container.options.get("init")),
        )
        # On record before it runs: whoever finds the program running finds the container running too.
        container.record["network"] = bundle.network_record(lease)
        container.state.update(
            status="running",
            pid=running.pid,
            start_time=start_time(running.pid),
            boot_id=boot_id(),
            started=time.time_ns(),
            finished=0,
            exit_code=0,
            oom_killed=False,
            error="",
        )
        container.save()
        running.start()
        launcher.close()
        return Started(
            container,
            running.pid,
            owner,
            terminal=bool(container.options.get("terminal")),
            interactive=bool(container.options.get("interactive")),
        )
    except BaseException as error:
        if launcher is not None:
            launcher.abort()
        if owner is not None:
            owner.close()
        container.state.update(status="created", pid=0, start_time=0)
        teardown.remove_leftover(engine, container)
        if isinstance(error, PycontainError):
            container.state["error"] = error.message
        if container.complete:
            container.save()
        raise
    finally:
        for fd in opened:
            os.close(fd)
        if lease is not None:
            lease.close()


def _plumbing(
    engine: Engine, container: Container, config: dict[str, Any], lease: Any, opened: list[int], own: bool
) -> tuple[dict[str, Any], _socket.socket | None, int | None]:
    """The supervisor's arguments, our end of the owner's socket, and the socket that init sends a terminal to."""
    options = container.options
    listener = supervise.listen(teardown.attach_socket(container))
    opened.append(listener)
    arguments: dict[str, Any] = {
        "exit_path": teardown.exit_file(container),
        "pid_file": teardown.pid_file(container),
        "stdin": "pipe" if options.get("interactive") else "null",
        "log_path": container.path("log/container.log"),
        "log_max_size": int((options.get("log") or {}).get("max_size") or _LOG_SIZE),
        "log_max_files": int((options.get("log") or {}).get("max_file") or _LOG_FILES),
        "attach_listen_fd": listener,
        "teardown_argv": teardown_command(engine, container.id),
        "env": {"PATH": os.environ.get("PATH") or os.defpath},
        "hold_fds": [held.fileno() for held in lease.host_sockets] if lease is not None else [],
    }
    owner = console = None
    if own:
        owner, theirs = _socket.socketpair()
        opened.append(theirs.detach())
        arguments["owner_fd"] = opened[-1]
    if config["process"].get("terminal"):
        ours, theirs = _socket.socketpair()
        opened += [ours.detach(), theirs.detach()]
        console, arguments["console_fd"] = opened[-2], opened[-1]
    return arguments, owner, console


def teardown_command(engine: Engine, identifier: str) -> list[str]:
    """What the supervisor executes at the end: this very interpreter and package, whatever PATH says by then."""
    import pycontain

    home = os.path.dirname(os.path.dirname(os.path.abspath(pycontain.__file__ or "")))
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from pycontain.cli import main; main()"
    words = ["--root", engine.data, "--run-root", engine.run, "_teardown", identifier]
    return [sys.executable or "/usr/bin/python3", "-I", "-S", "-X", "utf8", "-c", code, home, *words]


def run(
    engine: Engine,
    options: Options,
    *,
    progress: TextIO | None = None,
    warn: Say | None = None,
    attach: Callable[[Started], Any],
    oom: Callable[[str, int], None] | None = None,
    size: tuple[int, int] | None = None,
    give_up: bool = False,
) -> tuple[int, bool]:
    """``run`` in the foreground: create, start, ``attach`` until the end, clear up. (exit status, whether OOM killed).

    ``attach`` moves the bytes and returns an `attach.Ended`; where that says detached, the container goes on alone.
    A container that could not be started is removed again. ``oom`` is told the name and the memory limit.
    ``give_up``: when ``attach`` raises, the container is killed and removed, not left alone in the background.
    """
    container = create(engine, options, progress=progress)
    try:
        try:
            started = start(engine, container, own=True, warn=warn, size=size)
        except BaseException:
            _discard(engine, container, options)
            raise
    finally:
        container.lock.release()
    try:
        status = follow(engine, started, attach, oom=oom)
    except BaseException:
        if give_up:
            try:
                teardown.remove(engine, container.id, force=True)
            except NotFound:
                pass
        raise
    return status, bool(container.state.get("oom_killed"))


def follow(
    engine: Engine,
    started: Started,
    attach: Callable[[Started], Any],
    *,
    oom: Callable[[str, int], None] | None = None,
) -> int:
    """Attach as the owner; at the end clear up and return the exit status (0 where the user detached)."""
    from pycontain.engine import attach as attaching

    container, owner = started.container, started.owner
    assert owner is not None
    try:
        ended = attach(started)
    except BaseException:
        owner.close()
        raise
    if ended.status is None:
        owner.close()
        return 0
    try:
        with container.locked():
            teardown.finish(engine, container)
            if container.options.get("remove"):
                teardown.discard(engine, container)
    except NotFound:
        pass  # `system prune` or `rm -f` was faster than we; how it ended we have from the supervisor
    finally:
        attaching.done(owner)
    if oom is not None and container.state.get("oom_killed"):
        oom(container.label, int(container.options.get("memory") or 0))
    return int(ended.status)


def run_detached(engine: Engine, options: Options, *, progress: TextIO | None = None, warn: Say | None = None) -> str:
    """``run -d``: the container's id, when its program runs."""
    container = create(engine, options, progress=progress)
    try:
        try:
            start(engine, container, warn=warn)
        except BaseException:
            _discard(engine, container, options)
            raise
    finally:
        container.lock.release()
    return container.id


def _discard(engine: Engine, container: Container, options: Options) -> None:
    """Take back what `create` made."""
    teardown.discard(engine, container)
    if options.cidfile:
        os.unlink(options.cidfile)


def exec_(
    engine: Engine,
    container: Container,
    args: Sequence[str],
    *,
    env: Sequence[str] = (),
    user: str | None = None,
    workdir: str | None = None,
    terminal: bool = False,
    interactive: bool = False,
    privileged: bool = False,
    size: tuple[int, int] | None = None,
    attach: Callable[[Started], Any] | None = None,
) -> int:
    """One more process in a running container; its exit status (0 when it was left in the background).

    Its bytes go through a supervisor of its own, so that no descriptor of ours, and no terminal, gets inside.
    """
    from pycontain.engine import bundle, files

    if container.status() == "paused":
        raise Conflict(
            f'cannot exec in container "{container.label}": it is paused', hint=f"pycontain unpause {container.label}"
        )
    container.running_or_refuse("exec in")
    process = bundle.exec_process(
        engine, container, args, env=env, user=user, workdir=workdir, terminal=terminal, privileged=privileged
    )
    if terminal and size is not None:
        process["consoleSize"] = {"height": size[0], "width": size[1]}
    directory = os.path.join(container.run_directory, f"exec-{os.urandom(8).hex()}")
    files.make_directory(directory)
    opened: list[int] = []
    owner: _socket.socket | None = None
    console = None
    launcher = None
    detach = attach is None
    try:
        arguments: dict[str, Any] = {
            "exit_path": os.path.join(directory, "exit.json"),
            "pid_file": os.path.join(directory, "supervisor.pid"),
            "stdin": "pipe" if interactive else "null",
            "env": {},
        }
        if not detach:
            owner, theirs = _socket.socketpair()
            opened.append(theirs.detach())
            arguments["owner_fd"] = opened[-1]
        if terminal:
            ours, theirs = _socket.socketpair()
            opened += [ours.detach(), theirs.detach()]
            console, arguments["console_fd"] = opened[-2], opened[-1]
        launcher = Launcher(**arguments)
        running = lifecycle.exec(container.id, process, root=engine.runtime_root, console=console, launcher=launcher)
        launcher.close()
        if attach is None or owner is None:
            return 0
        ended = attach(Started(container, running.pid, owner, terminal=terminal, interactive=interactive))
        detach = ended.status is None
        return 0 if ended.status is None else int(ended.status)
    except BaseException:
        if launcher is not None:
            launcher.abort()
        raise
    finally:
        for fd in opened:
            os.close(fd)
        if owner is not None:
            from pycontain.engine import attach as attaching

            attaching.done(owner)
        if not detach:
            files.remove_directory(directory)
