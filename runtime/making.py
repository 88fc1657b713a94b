"""``create`` and ``run`` from the command line, and what else makes a process and may stay in front of it."""

from __future__ import annotations

import posix as os

from pycontain.runtime import creation, errors
from pycontain.runtime.main import log
from pycontain.runtime.state import check_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def _number(options: dict[str, Any], key: str, default: int = 0) -> int:
    text = options.get(key)
    if text is None:
        return default
    if not text.isdigit() or len(text) > 6:
        raise errors.PycontainError(f"--{key.replace('_', '-')}: found {text!r}, wanted a number")
    return int(text)


def create(root: str, options: dict[str, Any], words: list[str]) -> int:
    console = console_of(options)
    bundle = options.get("bundle", ".")
    warn(creation.create(words[0], bundle, root=root, console=console, **_create_options(options)), options)
    return 0


def warn(running: Any, options: dict[str, Any]) -> None:
    """What the specification wants logged and not refused (config.md: capabilities that this kernel does not have).

    To the log where there is one: standard error is the container's too.
    """
    for warning in running.process.plan.warnings:
        if options.get("log"):
            log("warning", warning, options)
        else:
            os.write(2, f"pycontain-runtime: warning: {warning}\n".encode())


def _create_options(options: dict[str, Any]) -> dict[str, Any]:
    settings = {
        "pid_file": options.get("pid_file"),
        "no_pivot": options.get("no_pivot", False),
        "no_new_keyring": options.get("no_new_keyring", False),
        "rootless": {"true": True, "false": False}.get(options["rootless"] or ""),
        "manager": options.get("manager"),
        "pidfd_socket": options.get("pidfd_socket"),
        "config_file": options.get("config"),
        "notify": b"NOTIFY_SOCKET" in os.environ,
    }
    sockets = 0
    if b"LISTEN_FDS" in os.environ:
        from pycontain.runtime.handover import listening

        sockets, settings["environment"] = listening()
    settings["preserve_fds"] = preserved(options, sockets)
    return settings


def preserved(options: dict[str, Any], sockets: int = 0) -> int:
    """How many descriptors from 3 on the container gets: ``sockets`` of LISTEN_FDS, then those of --preserve-fds."""
    count = sockets + _number(options, "preserve_fds")
    for fd in range(3, 3 + count):
        try:
            os.set_inheritable(fd, True)
        except OSError as error:
            what = f"LISTEN_FDS={sockets}" if fd < 3 + sockets else f"--preserve-fds {count - sockets}"
            raise errors.KernelError(f"{what}: descriptor {fd} is not open", error.errno or 0) from None
    return count


def console_of(options: dict[str, Any]) -> int | None:
    if "console_socket" not in options:
        return None
    from pycontain.runtime.terminal import connect

    return connect(options["console_socket"])


def run(root: str, options: dict[str, Any], words: list[str]) -> int:
    id, bundle = check_id(words[0]), options.get("bundle", ".")
    settings = _create_options(options)
    console = console_of(options)
    ours = signals = None

    def make_console() -> tuple[int, dict[str, int] | None]:
        nonlocal ours, console
        from pycontain.runtime import terminal

        ours, console = terminal.pair()
        return console, terminal.size(0)

    if not options.get("detach"):
        settings["make_console"] = make_console
        signals = Signals()
    running = creation.create(id, bundle, root=root, console=console, listen=False, **settings)
    warn(running, options)
    try:
        if console is not None:
            os.close(console)
        waiting = None
        if settings["notify"]:
            from pycontain.runtime.handover import readiness

            waiting = readiness(f"{root}/{id}")
        running.start()
        if signals is None:
            if waiting is not None:
                waiting.pass_on(running.pid)
            return 0
        if waiting is not None:
            from _thread import start_new_thread

            start_new_thread(waiting.pass_on, (running.pid,))
        status = foreground(running, ours, signals)
    except BaseException:
        from pycontain.runtime.ending import delete

        delete(id, root=root, force=True)
        os.waitpid(running.pid, 0)
        raise
    if not options.get("keep"):
        ended(id, root)
    return status


def ended(id: str, root: str) -> None:
    """Delete a container that has ended; a checkpoint, or whoever else deletes, may have done so."""
    from pycontain.runtime.ending import delete

    try:
        delete(id, root=root)
    except errors.NotFound:
        pass


class Signals:
    """Signals that we get, kept until there is a process to pass them on to."""

    def __init__(self) -> None:
        from _signal import SIGCHLD, SIGKILL, SIGPIPE, SIGSTOP, SIGURG, SIGWINCH, signal

        self.pid = 0
        self.kept: list[int] = []
        for number in range(1, 32):
            # SIGPIPE is about a pipe of ours, such as that of a hook that does not read its state.
            if number not in (SIGCHLD, SIGKILL, SIGPIPE, SIGSTOP, SIGURG, SIGWINCH):
                signal(number, self._forward)

    def _forward(self, number: int, _: object) -> None:
        if not self.pid:
            self.kept.append(number)
            return
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            pass  # gone, though not reaped by us yet: its status is on the way

    def to(self, pid: int) -> None:
        self.pid = pid
        for number in self.kept:
            self._forward(number, None)


def foreground(running: Any, ours: int | None, signals: Signals) -> int:
    """Wait for the process; signals go to it, its terminal to ours."""
    signals.to(running.pid)
    if ours is not None:
        from pycontain.runtime import terminal

        master = terminal.receive(ours)
        terminal.relay(master, running.pid)
    status: int = running.wait()
    return status
