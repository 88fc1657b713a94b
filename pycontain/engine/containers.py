"""The containers that exist: one directory each, found by name, id or the unique start of an id.

    <data>/containers/<id>/container.json   what this module keeps, version 1
    <data>/containers/<id>/lock             flock: held while a verb changes the container, not while it runs
    <data>/names/<name>                     the id
    <run>/containers/<id>/                  what lives only as long as the machine is up: exit.json, sockets

Nothing here is trusted to be true after a crash: whether a container runs is asked of the kernel (pid, its start time
and the boot's id), never read from a file alone.
"""

from __future__ import annotations

import os
import time

from pycontain.engine import files, names
from pycontain.runtime.errors import Conflict, NotFound, PycontainError
from pycontain.runtime.light import contextmanager, remove_tree
from pycontain.runtime.state import boot_id, start_time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

MAKING = ".new"
_LOST_EXIT_CODE = 255  # ended while nobody watched: a reboot, or a killed supervisor


class Container:
    """One container's directory and record. `record` is what container.json holds; `save` writes it."""

    def __init__(self, store: Containers, identifier: str, record: dict[str, Any] | None) -> None:
        self.store = store
        self.id = identifier
        self.record: dict[str, Any] = record if record is not None else {"id": identifier, "name": "", "state": {}}
        self.complete = record is not None
        self.directory = os.path.join(store.directory, identifier)
        self.run_directory = os.path.join(store.run_directory, identifier)
        self.lock = files.Lock(os.path.join(self.directory, "lock"), create=False)

    @property
    def name(self) -> str:
        return str(self.record.get("name", ""))

    @property
    def label(self) -> str:
        """How messages call it."""
        return self.name or self.id[:12]

    @property
    def options(self) -> dict[str, Any]:
        found = self.record.get("options")
        return found if isinstance(found, dict) else {}

    @property
    def state(self) -> dict[str, Any]:
        found = self.record.setdefault("state", {})
        assert isinstance(found, dict)
        return found

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def save(self) -> None:
        record = {key: value for key, value in self.record.items() if key != "version"}
        # One that goes when it ends is not missed after a crash of the host.
        files.write_json(self.path("container.json"), record, durable=not self.options.get("remove"))
        self.complete = True

    def reload(self) -> None:
        """Read the record again, as after taking the lock. NotFound: removed meanwhile."""
        record = files.read_json(self.path("container.json"))
        if record is None and not os.path.isdir(self.directory):
            raise NotFound(f'no such container: "{self.label}"', hint="pycontain ps -a")
        if record is not None:
            self.record = record
            self.complete = True

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock, with the record as it is now. Raises NotFound where the container is gone."""
        try:
            self.lock.acquire()
        except FileNotFoundError:
            raise NotFound(f'no such container: "{self.label}"', hint="pycontain ps -a") from None
        try:
            self.reload()
            yield
        finally:
            self.lock.release()

    @property
    def alive(self) -> bool:
        """Whether the container's first process runs now, asked of the kernel."""
        state = self.state
        pid = int(state.get("pid") or 0)
        return pid > 0 and state.get("boot_id") == boot_id() and start_time(pid) == state.get("start_time")

    def status(self) -> str:
        """created, running, paused, exited, or dead (a crash left it half made or half removed)."""
        if not self.complete:
            return "dead"
        recorded = str(self.state.get("status", "dead"))
        if recorded in ("running", "paused") and not self.alive and not self._ending():
            return "exited"
        return recorded

    def _ending(self) -> bool:
        """Between the process's end and its record: its supervisor lives, and has not written yet how it ended."""
        from pycontain.engine import supervise

        if self.state.get("boot_id") != boot_id() or os.path.exists(os.path.join(self.run_directory, "exit.json")):
            return False
        try:
            found = supervise.read_processes(os.path.join(self.run_directory, "supervisor.pid"))
        except PycontainError:
            return False
        return found is not None and found.alive()

    def exit_state(self) -> dict[str, Any]:
        """{"exit_code", "finished" (ns since the epoch), "oom_killed"} of a container that has ended."""
        state = self.state
        if state.get("status") == "exited":
            return {key: state.get(key) for key in ("exit_code", "finished", "oom_killed")}
        from pycontain.engine import supervise

        path = os.path.join(self.run_directory, "exit.json")
        seen = None
        if state.get("boot_id") == boot_id():
            try:
                seen = supervise.read_exit(path)
            except PycontainError:
                seen = None
        if seen is None:
            return {"exit_code": _LOST_EXIT_CODE, "finished": time.time_ns(), "oom_killed": False}
        return {"exit_code": seen.status, "finished": os.stat(path).st_mtime_ns, "oom_killed": False}

    def running_or_refuse(self, verb: str) -> None:
        status = self.status()
        if status not in ("running", "paused"):
            raise Conflict(
                f'cannot {verb} container "{self.label}": it is not running ({status})',
                hint=f"pycontain start {self.label}",
            )


class Containers:
    """Every container below ``data``; the paths may not exist yet."""

    def __init__(self, data: str, run: str) -> None:
        self.directory = os.path.join(data, "containers")
        self.run_directory = os.path.join(run, "containers")
        self.names = names.Names(os.path.join(data, "names"))

    def new(self, name: str | None, *, durable: bool = True) -> Container:
        """Make a directory, lock it and reserve a name. The caller holds ``container.lock`` and saves or removes it.

        ``durable``: the name is on the disk when this returns.

        Raises Conflict where the name is taken.
        """
        for directory in (os.path.dirname(self.directory), self.directory, self.names.directory):
            files.make_directory(directory)
        while True:
            identifier = os.urandom(32).hex()
            container = Container(self, identifier, None)
            # Its directory appears with the lock in it, and taken: nobody ever sees one that is not spoken for.
            making = container.directory + MAKING
            files.make_directory(making)
            container.lock = files.Lock(os.path.join(making, "lock"))
            try:
                container.lock.acquire()
                break
            except FileNotFoundError:
                continue  # a prune took it for what a crash left
        try:
            os.rename(making, container.directory)
            container.lock = container.lock.moved(os.path.join(container.directory, "lock"))
            container.record["name"] = self._take_name(name, identifier, durable)
        except BaseException:
            self.discard(container)
            raise
        return container

    def _take_name(self, name: str | None, identifier: str, durable: bool) -> str:
        if name is not None:
            self.names.reserve(name, identifier, self.exists, durable=durable)
            return name
        for attempt in range(1, 1000):
            candidate = names.random_name()
            if attempt > 20:
                candidate = f"{candidate}-{attempt}"
            try:
                self.names.reserve(candidate, identifier, self.exists, durable=durable)
            except Conflict:
                continue
            return candidate
        return identifier[:12]

    def exists(self, identifier: str) -> bool:
        """Whether the container is there, or being made by a living process."""
        container = Container(self, identifier, None)
        if not os.path.isdir(container.directory):
            return False
        try:
            if not container.lock.acquire(wait=False):
                return True
        except FileNotFoundError:
            return False
        # Looked for under the lock: its maker writes the record before letting go.
        found = os.path.exists(container.path("container.json"))
        container.lock.release()
        return found

    def discard(self, container: Container) -> None:
        """Remove the container's directories and its name; the caller holds the lock, which is given back.

        The lock file goes last, so that a process which waits for it finds nothing left to do.
        """
        files.remove_directory(container.run_directory)
        record = container.path("container.json")
        if os.path.exists(record):
            os.unlink(record)
        if container.name:
            self.names.free(container.name, container.id)
        for entry in os.listdir(container.directory) if os.path.isdir(container.directory) else ():
            path = container.path(entry)
            if entry == "lock":
                continue
            if os.path.isdir(path) and not os.path.islink(path):
                remove_tree(path)
            else:
                os.unlink(path)
        files.remove_directory(container.directory)
        container.lock.release()

    def load(self, identifier: str) -> Container:
        container = Container(self, identifier, None)
        container.reload()
        return container

    def ids(self) -> list[str]:
        try:
            return sorted(entry for entry in os.listdir(self.directory) if len(entry) == 64)
        except FileNotFoundError:
            return []

    def all(self) -> Iterator[Container]:
        """Every container; one that vanishes meanwhile is left out."""
        for identifier in self.ids():
            try:
                yield self.load(identifier)
            except NotFound:
                continue

    def find(self, text: str) -> Container:
        """By name, by id, or by the unique start of an id. Raises NotFound, Conflict (several fit)."""
        owner = self.names.owner(text) if text and "/" not in text and not text.startswith(".") else None
        if owner is not None and os.path.isdir(os.path.join(self.directory, owner)):
            return self.load(owner)
        fitting = [identifier for identifier in self.ids() if text and identifier.startswith(text)]
        if not fitting:
            raise NotFound(f'no such container: "{text}"', hint="pycontain ps -a")
        if len(fitting) > 1:
            shown = ", ".join(identifier[:12] for identifier in fitting[:5])
            raise Conflict(f'"{text}" is the start of {len(fitting)} ids: {shown}', hint="write more of the id")
        return self.load(fitting[0])
