"""The levels without a container: a process, and one with another root directory."""

from __future__ import annotations

import os
from collections.abc import Sequence

from pycontain.isolation import rootfs
from pycontain.isolation.bundle import environment, place
from pycontain.isolation.child import Child
from pycontain.isolation.containers import opened
from pycontain.isolation.model import Job, Level
from pycontain.isolation.tenants import Base, Running
from pycontain.isolation.world import World
from pycontain.runtime.kernel import syscalls

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC = 1, 2, 4, 32, 0x1000, 0x4000
_MS_PRIVATE = 0x40000
_MNT_DETACH = 2


class _OfTheHost(Running):
    """A process of the host, which the command is."""

    def __init__(self, world: World, level: Level, job: Job) -> None:
        super().__init__(world, level, job)
        self.share_processors()

    def spawn(self, args: Sequence[str] | None) -> Child:
        words = place(self.job.args if args is None else tuple(args), self.job, inside=False)
        program = self.world.probe if words[0] == "/probe" else rootfs.image(self.world) + words[0]
        return self._child(words, program=program)

    def _child(self, words: Sequence[str], *, program: str | None = None, root: str | None = None) -> Child:
        return Child(
            self.world.probe,
            words,
            self.command,
            program=program,
            root=root,
            tasks=self.tasks,
            environment=environment(self.job),
        )

    def kill(self) -> None:
        self.command.kill_all()


class _WithRoot(_OfTheHost):
    """The same with a root directory of its own; the binds are mounts of the world below it."""

    def __init__(self, world: World, level: Level, job: Job) -> None:
        super().__init__(world, level, job)
        self.root = f"{self.directory}/rootfs"
        self._mounted: list[str] = []

    def prepare(self) -> None:
        os.mkdir(self.directory)
        rootfs.copy(self.world, self.root)
        # A mount of its own, so that what a tenant mounts below it in its own namespace does not come back to /run.
        self._bind(self.root, self.root, writable=True)
        syscalls.mount(None, self.root, None, _MS_PRIVATE)
        for name in ("proc", "sys", "dev"):
            self._bind(f"/{name}", f"{self.root}/{name}", writable=True)
        for bind in self.job.binds:
            target = self.root + bind.path
            if os.path.isdir(bind.source):
                os.makedirs(target, exist_ok=True)
            else:
                os.makedirs(os.path.dirname(target), exist_ok=True)
                open(target, "x").close()
            self._bind(bind.source, target, bind.writable)

    def _bind(self, source: str, target: str, writable: bool) -> None:
        syscalls.mount(source, target, None, _MS_BIND | _MS_REC)
        self._mounted.append(target)
        if not writable:
            flags = _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV
            syscalls.mount(None, target, None, flags)

    def spawn(self, args: Sequence[str] | None) -> Child:
        words = place(self.job.args if args is None else tuple(args), self.job, inside=True)
        return self._child(words, root=self.root)

    def clear(self) -> None:
        for target in reversed(self._mounted):
            syscalls.umount2(target, _MNT_DETACH)
        self._mounted.clear()


class Process(Base):
    """A process of the host, root's."""

    def tenant(self, world: World, job: Job) -> Running:
        return opened(world, self, job) if job.opened else _OfTheHost(world, self, job)


class Chroot(Base):
    """A process of the host, root's, with another root directory."""

    def tenant(self, world: World, job: Job) -> Running:
        return opened(world, self, job) if job.opened else _WithRoot(world, self, job)
