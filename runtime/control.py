"""What is done to a container that runs, by its state alone: kill, pause, resume.

These verbs, ``start`` (starting.py) and ``delete`` (ending.py) are short, and an engine calls each of them in a process
of its own: what creating a container takes (specification, plan, mounts) is not imported for them.
"""

from __future__ import annotations

import posix as os

from pycontain.runtime import errors
from pycontain.runtime.state import Container

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycontain.runtime.kernel.cgroup import Cgroup

GUEST_KILL = 64  # SIGRTMAX to a machine's stand-in: SIGKILL to the process in the guest, as init/stand_in.h has it
_GUEST_KILL_MS = 2000


def cgroup_of(container: Container) -> Cgroup:
    """The cgroup of a container that is on record, of whoever was to make it."""
    if "manager" in container.fields:
        from pycontain.runtime.kernel.managers import managed

        return managed(container)
    if "rootless" in container.fields:
        from pycontain.runtime import rootless

        return rootless.cgroup_of(container)
    from pycontain.runtime.kernel.cgroup import open_cgroup

    return open_cgroup(container.fields["cgroup"])


def kill(id: str, signal: int, *, root: str, all: bool = False) -> None:
    """Send ``signal`` to the container's first process (by pidfd), or to every process of it."""
    with Container.open(root, id) as container:
        if all and container.status == "stopped":
            pass
        else:
            container.require("kill")
        if all or (signal == 9 and not container.fields["own_pids"]):
            cgroup = cgroup_of(container)
            if signal == 9:
                cgroup.kill_all()
            else:
                for pid in cgroup.pids():
                    _signal(pid, signal)
        elif signal == 9 and "machine" in container.fields and container.status == "running":
            _kill_guest(container)
        else:
            paused = container.status == "paused"
            _signal(container.pid, signal)
            if paused and signal == 9:  # a frozen process of cgroup v1 dies when it is thawed, and not before
                cgroup_of(container).freeze(False)


def _kill_guest(container: Container) -> None:
    """Let the guest kill the process, so that its disks are written; kill the machine where it does not soon."""
    from select import poll

    _signal(container.pid, GUEST_KILL)
    try:
        fd = os.pidfd_open(container.pid)
    except ProcessLookupError:
        return
    try:
        end = poll()
        end.register(fd)
        if not end.poll(_GUEST_KILL_MS):
            _signal(container.pid, 9)
    finally:
        os.close(fd)


def _signal(pid: int, signal: int) -> None:
    from _signal import pidfd_send_signal

    try:
        fd = os.pidfd_open(pid)
        try:
            pidfd_send_signal(fd, signal)
        finally:
            os.close(fd)
    except ProcessLookupError:
        raise errors.Conflict(f"cannot send signal {signal} to process {pid}: no such process") from None
    except OSError as error:
        raise errors.KernelError(f"cannot send signal {signal} to process {pid}", error.errno or 0) from None


def pause(id: str, *, root: str) -> None:
    """Freeze every process of the container."""
    with Container.open(root, id) as container:
        container.require("pause")
        cgroup_of(container).freeze(True)
        container.transition("pause")


def resume(id: str, *, root: str) -> None:
    """Let a paused container go on."""
    with Container.open(root, id) as container:
        container.require("resume")
        cgroup_of(container).freeze(False)
        container.transition("resume")
