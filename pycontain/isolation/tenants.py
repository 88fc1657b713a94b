"""What all levels share: a tenant has a cgroup below the world's cap, a command, and a way to clear up after it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

from pycontain.isolation import cgroup_v2
from pycontain.isolation.child import Child
from pycontain.isolation.model import Ended, Job, Level
from pycontain.isolation.sweeping import remove_cgroup
from pycontain.isolation.world import CAP_MEMORY, CAP_PIDS, World, make_cgroup
from pycontain.runtime.errors import PycontainError
from pycontain.runtime.kernel.cgroup import open_cgroup
from pycontain.runtime.kernel.hierarchies import hierarchies, mode_of

STOP_SECONDS = 20.0


class Running:
    """A tenant of any level; the levels fill in what is theirs.

    Its cgroup has the outer cap; below it ``command`` holds what the level executes (the program itself, or the
    runtime), and ``container`` is for the container.
    """

    level: Level

    def __init__(self, world: World, level: Level, job: Job) -> None:
        self.world = world
        self.level = level
        self.job = job
        self.id = f"tenant-{world.number()}"
        self.directory = f"{world.public}/{self.id}"
        self._group = make_cgroup(f"{world.cap}/{self.id}", memory=CAP_MEMORY, pids=CAP_PIDS)
        self.command = make_cgroup(f"{self._group.path}/command")
        self.container = open_cgroup(f"{self._group.path}/container")
        self.child: Child | None = None
        self.tasks: list[str] = []  # of version 1: what the command joins instead of its cgroup's own
        self._stopped = False

    def share_processors(self) -> None:
        """Have no share of one's own: what a level without cgroups does, beside others of its kind."""
        if not self.world.together:
            return
        for hierarchy in hierarchies():
            if "cpu" in hierarchy.controllers:
                self.tasks.append(f"{hierarchy.mount}{self.world.cap}/tasks")
            elif hierarchy.unified and mode_of(hierarchies()) == "v2":
                cgroup_v2.share_processors(hierarchy.mount + self._group.path, hierarchy.mount + self.world.cap)

    # What a level says of itself.

    def prepare(self) -> None:
        """Make what the command needs. Nothing of it is timed."""

    def spawn(self, args: Sequence[str] | None) -> Child:
        """The command that runs the job, or ``args`` beside it, not let go yet."""
        raise NotImplementedError

    def kill(self) -> None:
        """End the job from outside, as the level does it."""

    def clear(self) -> None:
        """Remove what ``prepare`` has made, and what the command has not removed itself."""

    # What is the same for all.

    def ready(self) -> None:
        """Prepare all of it, up to the command's execve. Raises PycontainError; nothing is left then."""
        try:
            self.prepare()
            self.child = self.spawn(None)
        except BaseException:
            self.stop()
            raise

    def go(self) -> None:
        """Let it run: the clock starts."""
        assert self.child is not None
        self.child.go()

    def wait(self, timeout: float = 60.0) -> Ended:
        assert self.child is not None
        found = self.child.wait(timeout)
        if found is None:
            raise PycontainError(f"{' '.join(self.job.args)} at level {self.level.name}: no end within {timeout:g} s")
        return found

    def line(self, timeout: float = 20.0) -> str:
        assert self.child is not None
        return self.child.line(timeout)

    def exec(self, args: Sequence[str], timeout: float = 60.0) -> Ended:
        child = self.spawn(args)
        try:
            child.go()
            found = child.wait(timeout)
            if found is None:
                raise PycontainError(f"exec {' '.join(args)} at level {self.level.name}: no end within {timeout:g} s")
            return found
        finally:
            child.close()

    def pids(self) -> list[int]:
        return self._group.pids()

    def stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        try:
            if self.child is not None and self.child.process.poll() is None:
                self.kill()
                self.child.wait(STOP_SECONDS)
        finally:
            # Whatever the level's own way has left ends with its cgroup.
            if self.child is not None:
                self.child.close()
            self._group.kill_all()
            self.clear()
            remove_cgroup(self._group)
            if os.path.isdir(self.directory):
                shutil.rmtree(self.directory)


class Base:
    """A level: how it is called, and which tenants it makes."""

    def __init__(self, name: str, title: str, about: str) -> None:
        self.name = name
        self.title = title
        self.about = about

    def tenant(self, world: World, job: Job) -> Running:
        raise NotImplementedError

    def lacks(self, world: World) -> str | None:
        """What is known to be missing without a trial."""
        return None

    def missing(self, world: World) -> str | None:
        """Why this host cannot run it: what it lacks, or what a trial says."""
        why = self.lacks(world)
        if why is None:
            try:
                found = self.run(world, Job(("/probe", "first")))
            except PycontainError as error:
                return error.message
            if found.status:
                lines = (found.stderr or found.stdout).decode(errors="replace").strip().splitlines()
                why = lines[-1] if lines else f"a trial ended with status {found.status}"
        return why

    def run(self, world: World, job: Job, timeout: float = 60.0) -> Ended:
        tenant = self.start(world, job)
        try:
            return tenant.wait(timeout)
        finally:
            tenant.stop()

    def ready(self, world: World, job: Job) -> Running:
        """A tenant that waits for its ``go``: for those that are to start at once."""
        tenant = self.tenant(world, job)
        tenant.ready()
        return tenant

    def start(self, world: World, job: Job) -> Running:
        tenant = self.ready(world, job)
        tenant.go()
        return tenant

