"""The levels with a container: one bundle, and who runs it."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from pycontain.isolation import bundle, rootfs
from pycontain.isolation.bundle import Kind
from pycontain.isolation.child import Child
from pycontain.isolation.model import Ended, Job, Level
from pycontain.isolation.tenants import Base, Running
from pycontain.isolation.users import delegate, reachable
from pycontain.isolation.world import World
from pycontain.runtime.errors import PycontainError
from pycontain.runtime.kernel.hierarchies import hierarchies, mode_of
from pycontain.runtime.vm import accel
from pycontain.runtime.vm import settings as vm_settings

_VERB_SECONDS = 20.0


class Contained(Running):
    """A container: ``RUNTIME run --bundle B ID`` in the foreground, with pipes as its output."""

    leave: str | None = None  # a directory of the host that the runtime is started with as descriptor 3

    def __init__(self, world: World, level: Level, job: Job, runtime: Sequence[str], kind: Kind) -> None:
        super().__init__(world, level, job)
        self.runtime = list(runtime)
        self.kind = kind
        self.environment = {"PATH": os.environ.get("PATH", os.defpath)}
        self.bundle = self.directory
        self.user = 0
        self.mounts: int | None = None

    def prepare(self) -> None:
        os.mkdir(self.directory)
        owner = bundle.FIRST_ID if self.kind.mapped else self.user
        if not self.kind.machine:
            rootfs.copy(self.world, f"{self.bundle}/rootfs", owner=owner)
        self.write()

    def write(self) -> None:
        config = bundle.configuration(
            self.job, self.kind, root="rootfs", cgroup=self.container.path, hostname=self.id
        )
        bundle.write(self.bundle, config)

    def run_words(self) -> list[str]:
        return [*self.runtime, "run", "--bundle", self.bundle, self.id]

    def spawn(self, args: Sequence[str] | None) -> Child:
        words = self.run_words()
        if args is not None:
            words = [*self.runtime, "exec", self.id, *bundle.place(tuple(args), self.job, inside=True)]
        return Child(
            self.world.probe,
            words,
            self.command,
            user=self.user,
            mounts=self.mounts,
            tasks=self.tasks,
            leave=self.leave if args is None else None,
            environment=self.environment,
        )

    def verb(self, *words: str) -> bool:
        """One more command of the runtime's: whether it ended well, which it need not, as the container may be gone."""
        child = Child(
            self.world.probe,
            [*self.runtime, *words],
            self.command,
            user=self.user,
            mounts=self.mounts,
            tasks=self.tasks,
            environment=self.environment,
        )
        try:
            child.go()
            ended = child.wait(_VERB_SECONDS)
            return ended is not None and ended.status == 0
        finally:
            child.close()

    def kill(self) -> None:
        self.verb("kill", self.id, "KILL")

    def clear(self) -> None:
        if self.known():
            self.verb("delete", "--force", self.id)

    def known(self) -> bool:
        """Whether the runtime still keeps something of the container."""
        root = self.runtime[self.runtime.index("--root") + 1]
        return os.path.isdir(root) and any(
            name == self.id or name.startswith((f"{self.id}.", f"{self.id}_")) for name in os.listdir(root)
        )


class _Opened(Contained):
    """The control of an outcome: the same container, all its defences off. Whoever starts it is careless, too: the
    session's keyring, the host's mounts below the root and, as descriptor 3, the host's root directory are left."""

    leave = "/"
    careless = ("--no-pivot", "--no-new-keyring", "--preserve-fds", "1")

    def run_words(self) -> list[str]:
        return [*self.runtime, "run", *self.careless, "--bundle", self.bundle, self.id]


def opened(world: World, level: Level, job: Job) -> Running:
    return _Opened(world, level, job, mine(world), Kind(seccomp=False, limits=False))


def mine(world: World) -> list[str]:
    return [*world.mine, "--root", f"{world.directory}/state/pycontain"]


class Container(Base):
    """A container by pycontain-runtime."""

    def __init__(self, name: str, title: str, about: str, kind: Kind) -> None:
        super().__init__(name, title, about)
        self.kind = kind

    def tenant(self, world: World, job: Job) -> Running:
        return opened(world, self, job) if job.opened else self.made(world, job)

    def made(self, world: World, job: Job) -> Running:
        return Contained(world, self, job, mine(world), self.kind)


class _Peers(Contained):
    """By another runtime, which may let the program go before it has written down that there is a container: crun."""

    def exec(self, args: Sequence[str], timeout: float = 60.0) -> Ended:
        until = time.monotonic() + _VERB_SECONDS
        while not self.verb("state", self.id) and time.monotonic() < until:
            time.sleep(0.01)
        return super().exec(args, timeout)


class Peer(Container):
    """The same by another runtime, which the level is named after."""

    options: tuple[str, ...] = ()

    def lacks(self, world: World) -> str | None:
        return None if world.bin(self.name) else f"{self.name} is not installed"

    def made(self, world: World, job: Job) -> Running:
        runtime = [world.bin(self.name) or self.name, "--root", f"{world.directory}/state/{self.name}", *self.options]
        return _Peers(world, self, job, runtime, self.kind)


class Sandbox(Peer):
    """gVisor's runsc. Its ptrace platform runs everywhere."""

    options = ("--platform=ptrace", "--network=none")


class _Users(Contained):
    """A container of an unprivileged user's. Where cgroups are version 2, that user has the tenant's (delegation)."""

    def __init__(self, world: World, level: Level, job: Job, kind: Kind) -> None:
        self.state = f"{world.public}/state-{bundle.USER}"
        super().__init__(world, level, job, [*world.mine, "--root", self.state], kind)
        self.user = bundle.USER
        self.mounts = reachable(world)
        if not kind.limits:
            self.share_processors()
        self.environment["HOME"] = "/"

    def prepare(self) -> None:
        if not os.path.isdir(self.state):
            os.mkdir(self.state, 0o700)
            os.chown(self.state, self.user, self.user)
        if self.kind.limits:
            delegate(self._group, self.user)
            delegate(self.command, self.user)
        super().prepare()


class Rootless(Container):
    """pycontain-runtime in the name of a user who is not root."""

    def made(self, world: World, job: Job) -> Running:
        return _Users(world, self, job, replace(self.kind, limits=mode_of(hierarchies()) == "v2"))


class _Guest(Contained):
    """A container in a machine. With a bind in it the machine is booted, else it is a clone of a template."""

    def __init__(self, world: World, level: Machine, job: Job) -> None:
        super().__init__(world, level, job, mine(world), level.kind)
        self.environment["PYCONTAIN_VM_CONFIG"] = level.settings_file(world)
        self.disk = ""

    def prepare(self) -> None:
        self.disk = f"{self.world.scratch(self.id)}/disk"
        super().prepare()

    def run_words(self) -> list[str]:
        root = self.runtime[self.runtime.index("--root") + 1]
        front = [sys.executable, "-P", "-m", "pycontain.isolation.boot"]
        return [*front, root, self.bundle, rootfs.disk(self.world), self.disk, self.id, self.job.link]

    def clear(self) -> None:
        super().clear()
        folder = os.path.dirname(self.disk)
        if os.path.isdir(folder):
            shutil.rmtree(folder)


class Machine(Container):
    """The container in a microVM."""

    def __init__(self, name: str, title: str, about: str, kind: Kind, accel: str) -> None:
        super().__init__(name, title, about, kind)
        self.accel = accel

    def lacks(self, world: World) -> str | None:
        settings = vm_settings.load({})
        if world.bin(settings.hypervisor) is None:
            return f"{settings.hypervisor} is not installed"
        if settings.kernel is None:
            try:
                accel.fetched(settings.cache)
            except (OSError, PycontainError):
                return f"there is no kernel for machines in {settings.cache}"
        if self.accel == "kvm":
            settings.accel = "auto"
            found = accel.verdict(settings)
            return None if found.accel == "kvm" else found.reason
        return None

    def made(self, world: World, job: Job) -> Running:
        return _Guest(world, self, job)

    def settings_file(self, world: World) -> str:
        """The operator's settings with this acceleration."""
        path = f"{world.directory}/{self.name}.toml"
        if not os.path.exists(path):
            settings = {**vars(vm_settings.load({})), "accel": self.accel}
            with open(path, "w") as file:
                for key, value in settings.items():
                    if value is not None:  # JSON's strings, numbers, booleans and lists are TOML's
                        file.write(f"{key} = {json.dumps(value)}\n")
        return path
