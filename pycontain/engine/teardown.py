"""What happens after a container's end, and how it is removed. Everything here may be repeated after a crash.

The order: first the processes, then what the kernel holds for them (cgroup, veth, firewall), then the state on the
tmpfs, then the record; so that whatever is left after a kill -9 still has a record that leads to it.
"""

from __future__ import annotations

import os

from pycontain.engine import files, supervise
from pycontain.engine.containers import Container
from pycontain.runtime import lifecycle
from pycontain.runtime.errors import Conflict, NotFound, PycontainError
from pycontain.runtime.kernel.cgroup import open_cgroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycontain.engine import Engine

CGROUPS = "/pycontain"
_ENDED = ("running", "paused")


def pid_file(container: Container) -> str:
    return os.path.join(container.run_directory, "supervisor.pid")


def exit_file(container: Container) -> str:
    return os.path.join(container.run_directory, "exit.json")


def attach_socket(container: Container) -> str:
    return os.path.join(container.run_directory, "attach.sock")


def processes(container: Container) -> supervise.Processes | None:
    """The supervisor and the container's first process, if the files of this boot know them."""
    try:
        return supervise.read_processes(pid_file(container))
    except PycontainError:
        return None


def finish(engine: Engine, container: Container) -> None:
    """Free what an ended container held, and record how it ended. The caller holds the lock; no process is spared."""
    state = container.state
    cgroup = open_cgroup(f"{CGROUPS}/{container.id}")
    ended = container.exit_state() if state.get("status") in _ENDED else None
    if ended is not None and cgroup.exists():
        ended["oom_killed"] = cgroup.oom_kills() > 0 or lifecycle.guest_oom(container.id, root=engine.runtime_root)
    lifecycle.delete(container.id, root=engine.runtime_root, force=True)
    if cgroup.exists():
        cgroup.kill_all()
        cgroup.remove()
    if container.options.get("network", "bridge") == "bridge":
        from pycontain.engine import members

        engine.network.release(container.id)
        members.refresh(engine)
    files.remove_directory(container.run_directory)
    if ended is not None:
        state.update(ended)
        state.update(status="exited", pid=0, start_time=0)
        container.record["network"] = None
        if not container.options.get("remove"):
            container.save()


def after_exit(engine: Engine, identifier: str) -> None:
    """The supervisor's last act (``pycontain _teardown ID``): idempotent, and silent where all is done already."""
    container = engine.containers.load(identifier)
    with container.locked():
        found = processes(container)
        if found is None:
            return
        if found.container_alive():
            return  # it was started again meanwhile, and is somebody else's to clear up
        finish(engine, container)
        if container.options.get("remove"):
            discard(engine, container)


def discard(engine: Engine, container: Container, *, volumes: bool = True) -> None:
    """Remove an ended container and its files. The caller holds the lock, which is given back."""
    from pycontain.engine import mounts

    wishes = container.record.get("mounts") or []
    engine.containers.discard(container)
    if volumes:
        mounts.remove_volumes(engine.data, wishes)


def kill_everything(container: Container) -> None:
    """The supervisor first, so that it does not start a teardown of its own, then every process of the container."""
    found = processes(container)
    if found is not None:
        supervise.kill(found)
    cgroup = open_cgroup(f"{CGROUPS}/{container.id}")
    if cgroup.exists():
        cgroup.kill_all()


def remove(engine: Engine, text: str, *, force: bool = False, volumes: bool = False) -> str:
    """``rm``: remove a container; its name or id as it was given.

    Raises NotFound; Conflict where it runs and ``force`` is false.
    """
    container = engine.containers.find(text)
    with container.locked():
        if container.status() in _ENDED and not force:
            raise Conflict(
                f'cannot remove container "{container.label}": it is {container.status()}',
                hint=f"pycontain rm -f {container.label}",
            )
        kill_everything(container)
        finish(engine, container)
        discard(engine, container, volumes=volumes or bool(container.options.get("remove")))
    return text


def remove_leftover(engine: Engine, container: Container) -> None:
    """After a failed start: nothing of it may stay. The lock is held, and stays held."""
    kill_everything(container)
    finish(engine, container)


def wait_gone(found: supervise.Processes | None, seconds: float) -> bool:
    """Wait until the supervisor (and the teardown that it becomes) has gone; False where it stays."""
    import select

    if found is None:
        return True
    try:
        fd = os.pidfd_open(found.pid)
    except ProcessLookupError:
        return True
    try:
        if supervise.start_time(found.pid) != found.start_time:
            return True
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
    finally:
        os.close(fd)


def settle(engine: Engine, container: Container, *, seconds: float = 10.0) -> None:
    """Wait until an ended container is cleared up: by its supervisor, or, where that was killed, by us."""
    found = processes(container)
    wait_gone(found, seconds)
    try:
        with container.locked():
            if container.state.get("status") in _ENDED and not container.alive:
                finish(engine, container)
                if container.options.get("remove"):
                    discard(engine, container)
    except NotFound:
        pass
