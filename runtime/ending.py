"""``delete``: what is left of a container goes. Imports what that takes and no more (see control.py)."""

from __future__ import annotations

from pycontain.runtime import errors
from pycontain.runtime.kernel.hierarchies import absolute, hierarchies, remove_directories
from pycontain.runtime.state import TRANSITIONS, Container


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
        if not force and status not in ("creating", *TRANSITIONS["delete"][0]):
            container.require("delete")
        destroy(container, status)


def destroy(container: Container, status: str = "running") -> None:
    """runtime.md, "Lifecycle" 12 and 13: what create made is undone, and poststop hooks run."""
    fields = container.fields
    if fields.get("cgroup") is not None:
        # pid_namespaces(7): the end of its first process is the end of all in a pid namespace.
        ended = status == "stopped" and fields.get("own_pids")
        if ended and fields["cgroup"] and not ("manager" in fields or "rootless" in fields):
            name = absolute(fields["cgroup"])
            remove_directories([item.mount + name for item in hierarchies()])
        else:
            from pycontain.runtime.control import cgroup_of

            cgroup = cgroup_of(container)
            if not ended:
                cgroup.kill_all()
            cgroup.remove()
    if status != "stopped":
        wait_gone(container)
    if "mounts_before" in container.fields:
        from pycontain.runtime.shared_mounts import undo

        undo(container.fields)
    state = container.oci("stopped")
    container.remove()
    if container.fields.get("poststop"):
        from pycontain.runtime import hooks as _hooks

        _hooks.poststop(container.fields["poststop"], state)


def wait_gone(container: Container) -> None:
    """A killed pid 1 lingers until its namespace is empty; bounded, and none of our business after that."""
    if not container.alive():
        return
    from time import monotonic, sleep

    deadline = monotonic() + 5
    while container.alive() and monotonic() < deadline:
        sleep(0.001)
