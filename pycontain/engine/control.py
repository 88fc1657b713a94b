"""Verbs on containers that exist: signals, stop, pause, wait, rename, attach."""

from __future__ import annotations

import os

from pycontain.engine import teardown
from pycontain.engine.containers import Container
from pycontain.runtime import lifecycle
from pycontain.runtime.errors import Conflict, NotFound, PycontainError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontain.engine import Engine

DEFAULT_STOP_SECONDS = 10


def signal_number(text: str) -> int:
    """``HUP``, ``SIGHUP`` or ``1``."""
    from pycontain.runtime.plan.identity import parse_signal

    return int(parse_signal(text))


def kill(engine: Engine, text: str, signal: str = "KILL") -> None:
    """Send a signal to the first process. Raises NotFound, Conflict (not running)."""
    number = signal_number(signal)
    container = engine.containers.find(text)
    container.running_or_refuse("kill")
    if container.status() == "paused" and number == 9:
        # On cgroup v1 a frozen process does not even die.
        _resume(engine, container)
    send(engine, container, number)


def send(engine: Engine, container: Container, number: int) -> None:
    try:
        lifecycle.kill(container.id, number, root=engine.runtime_root)
    except (NotFound, Conflict):
        raise Conflict(
            f'cannot send signal {number} to container "{container.label}": it has ended',
            hint=f"pycontain start {container.label}",
        ) from None


def stop(engine: Engine, text: str, seconds: int | None = None) -> None:
    """Ask, wait, kill; returns when the container is cleared up. Nothing happens where it has ended already."""
    container = engine.containers.find(text)
    if container.status() not in ("running", "paused"):
        teardown.settle(engine, container)
        return
    if container.status() == "paused":
        _resume(engine, container)
    if seconds is None:
        chosen = container.options.get("stop_timeout")
        seconds = DEFAULT_STOP_SECONDS if chosen is None else int(chosen)
    try:
        send(engine, container, _stop_signal(container))
        if not _ended_within(container, seconds):
            send(engine, container, 9)
            _ended_within(container, DEFAULT_STOP_SECONDS)
    except Conflict:
        pass  # it ended by itself meanwhile
    teardown.settle(engine, container)


def _stop_signal(container: Container) -> int:
    """The user's, or the image's; an image that names nonsense does not make its containers unstoppable."""
    try:
        return signal_number(str(container.record.get("stop_signal") or "TERM"))
    except PycontainError:
        return 15


def _ended_within(container: Container, seconds: int) -> bool:
    """Wait for the end of the first process; -1 waits for ever."""
    import select

    pid = int(container.state.get("pid") or 0)
    try:
        fd = os.pidfd_open(pid)
    except (ProcessLookupError, OSError):
        return True
    try:
        if not container.alive:
            return True
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(None if seconds < 0 else seconds * 1000))
    finally:
        os.close(fd)


def wait(engine: Engine, text: str) -> int:
    """The exit status, when the container has ended and is cleared up."""
    container = engine.containers.find(text)
    status: int | None = None
    if container.state.get("status") in ("running", "paused"):
        from pycontain.engine import attach

        try:
            ended = attach.wait(teardown.attach_socket(container))
            status = ended.status if ended is not None else None
        except PycontainError:
            _ended_within(container, -1)  # its supervisor was killed, or has just done its work
        teardown.settle(engine, container)
    if status is None:
        container.reload()
        status = int(container.exit_state()["exit_code"] or 0) if container.status() == "exited" else 0
    return status


def pause(engine: Engine, text: str) -> None:
    container = engine.containers.find(text)
    with container.locked():
        if container.status() == "paused":
            raise Conflict(f'cannot pause container "{container.label}": it is paused already')
        container.running_or_refuse("pause")
        lifecycle.pause(container.id, root=engine.runtime_root)
        container.state["status"] = "paused"
        container.save()


def unpause(engine: Engine, text: str) -> None:
    container = engine.containers.find(text)
    if container.status() != "paused":
        raise Conflict(f'cannot unpause container "{container.label}": it is {container.status()}')
    _resume(engine, container)


def _resume(engine: Engine, container: Container) -> None:
    with container.locked():
        if container.status() == "paused":
            lifecycle.resume(container.id, root=engine.runtime_root)
            container.state["status"] = "running"
            container.save()
            if container.options.get("isolation") == "vm":
                try:  # names of the network that have changed meanwhile
                    lifecycle.copy_in(container.id, container.path("hosts"), root=engine.runtime_root)
                except PycontainError:
                    pass  # a guest may be deaf on purpose, and goes on all the same


def rename(engine: Engine, text: str, name: str) -> None:
    """Take the new name, then give back the old one; other containers learn of it. Raises Conflict (taken)."""
    from pycontain.engine import values

    values.container_name(name)
    container = engine.containers.find(text)
    with container.locked():
        old = container.name
        if name == old:
            raise Conflict(f'cannot rename container "{old}": that is its name already')
        try:
            engine.containers.names.reserve(name, container.id, engine.containers.exists)
        except Conflict as error:
            raise Conflict(error.message.replace("create container", f'rename "{old}"'), hint=error.hint) from None
        container.record["name"] = name
        container.save()
        engine.containers.names.free(old, container.id)
    if container.record.get("network"):
        from pycontain.engine import members

        members.refresh(engine)


def top(engine: Engine, text: str) -> list[dict[str, Any]]:
    """``lifecycle.top``. Raises Conflict where it does not run, or its machine is paused."""
    container = engine.containers.find(text)
    container.running_or_refuse("list the processes of")
    if container.options.get("isolation") == "vm" and container.status() == "paused":
        raise Conflict(
            f'cannot list the processes of container "{container.label}": it is paused, and its machine with it',
            hint=f"pycontain unpause {container.label}",
        )
    return lifecycle.top(container.id, root=engine.runtime_root)
