"""What is done to a container by its state alone: start, kill, pause, resume, delete.

These verbs are short, and an engine calls each of them in a process of its own: what creating a container takes
(specification, plan, mounts) is not imported for them.
"""

from __future__ import annotations

import posix as os

from pycontain.runtime import errors
from pycontain.runtime.jsontext import dump
from pycontain.runtime.state import Container

TYPE_CHECKING = False
if TYPE_CHECKING:

    from pycontain.runtime.kernel.cgroup import Cgroup
    from pycontain.runtime.namespaces import Process
    from pycontain.runtime.plan.plan import Plan

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


def start(id: str, *, root: str) -> None:
    """Let a created container's program run. Raises Conflict, NotFound; KernelError with exit_code 126 or 127."""
    from pycontain.runtime import sockets
    from pycontain.runtime.namespaces import Process

    with Container.open(root, id) as container:
        container.require("start")
        if container.fields.get("no_process"):  # runtime.md, "Start"; the container stays as it is
            raise errors.SpecError("$.process", "found nothing, wanted the process to run")
        directory = os.open(container.directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            client = sockets.connect(f"/proc/self/fd/{directory}/control.sock")
        except OSError as error:
            # It took a start before, and whoever sent that was killed before the state was written.
            container.transition("start")
            raise errors.Conflict(f"cannot start container {id}: it was started before ({error.strerror})") from None
        finally:
            os.close(directory)

        def plan() -> Plan:  # for the words of a failure
            from pycontain.runtime.creation import plan_again

            return plan_again(container)

        process = Process(plan, 0, client)
        if "machine" in container.fields:
            from pycontain.runtime.vm.port import START_SECONDS

            process.takes(plan, START_SECONDS)
        try:
            started(container, process)
        except errors.PycontainError:
            # containerd deletes at once what did not start, if it has ended by then, and never where it has not.
            if "machine" not in container.fields:
                _wait_gone(container)
            raise


def started(container: Container, process: Process) -> None:
    """The second half of create: the program runs, poststart hooks, state "running".

    Where a hook fails, the container is no more when this raises HookFailed (runtime.md, "Lifecycle", 7 and 9).
    """
    try:
        state = b"{}"
        if "inner_pid" in container.fields:  # there are hooks
            state = dump({**container.oci("created"), "pid": container.fields["inner_pid"]}).encode()
        process.start(state)
        container.transition("start")  # on record while execve is under way; a process that fails is "stopped" anyway
        process.running(container)
    except errors.HookFailed:
        process.close()
        _destroy(container)
        raise
    finally:
        process.close()
    try:
        os.unlink(f"{container.directory}/control.sock")
    except FileNotFoundError:
        pass
    hooks = container.fields["poststart"]
    if hooks:
        from pycontain.runtime import hooks as _hooks

        try:
            _hooks.run_all({"poststart": hooks}, "poststart", container.oci("running"))
        except errors.HookFailed:
            _destroy(container)
            raise


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


def delete(id: str, *, root: str, force: bool = False) -> None:
    """Remove what is left: processes (``force``, or not yet started), cgroup, state. Raises Conflict, NotFound."""
    try:
        container = Container.open(root, id)
    except errors.NotFound:
        if force:
            return
        raise
    with container:
        status = container.status
        if not force and status != "creating":
            container.require("delete")
        _destroy(container, status)


def _destroy(container: Container, status: str = "running") -> None:
    """runtime.md, "Lifecycle" 12 and 13: what create made is undone, and poststop hooks run."""
    fields = container.fields
    if fields.get("cgroup") is not None:
        # pid_namespaces(7): the end of its first process is the end of all in a pid namespace.
        ended = status == "stopped" and fields.get("own_pids")
        if ended and fields["cgroup"] and not ("manager" in fields or "rootless" in fields):
            from pycontain.runtime.kernel.cgroup import remove

            remove(fields["cgroup"])
        else:
            cgroup = cgroup_of(container)
            if not ended:
                cgroup.kill_all()
            cgroup.remove()
    _wait_gone(container)
    if "mounts_before" in container.fields:
        from pycontain.runtime.shared_mounts import undo

        undo(container.fields)
    state = container.oci("stopped")
    container.remove()
    if container.fields.get("poststop"):
        from pycontain.runtime import hooks as _hooks

        _hooks.poststop(container.fields["poststop"], state)


def _wait_gone(container: Container) -> None:
    """A killed pid 1 lingers until its namespace is empty; bounded, and none of our business after that."""
    if not container.alive():
        return
    from time import monotonic, sleep

    deadline = monotonic() + 5
    while container.alive() and monotonic() < deadline:
        sleep(0.001)
