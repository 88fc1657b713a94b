"""``start``: a created container's program runs. Imports what that takes and no more (see control.py)."""

from __future__ import annotations

import posix as os

from pycontain.runtime import errors, sockets
from pycontain.runtime.dialogue import Process
from pycontain.runtime.jsontext import dump
from pycontain.runtime.state import Container

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycontain.runtime.plan.plan import Plan


def start(id: str, *, root: str) -> None:
    """Let a created container's program run. Raises Conflict, NotFound; KernelError with exit_code 126 or 127."""
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
                from pycontain.runtime.ending import wait_gone

                wait_gone(container)
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


def _destroy(container: Container) -> None:
    from pycontain.runtime.ending import destroy

    destroy(container)
