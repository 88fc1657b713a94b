"""The words of the comparison: levels, jobs, measures, and what a measure finds.

A *measure* is taken at a *level* in a *world*; it yields `Sample`s of its quantities and `Outcome`s of its claims.
Nothing here runs anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from pycontain.isolation.world import World

Group = Literal["outcome", "surface", "cost", "interference"]
Verdict = Literal["held", "leaked", "noisy"]


@dataclass(frozen=True, slots=True)
class Bind:
    """A directory or file of the host that a job has at ``path`` as well; read-only unless ``writable``."""

    source: str
    path: str
    writable: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """A program to be run in a level, described the same way for all of them.

    ``args[0]`` is absolute, in the world's root file system: ``/probe`` (the program with all probes in it) or a
    busybox applet. In every argument ``{NAME}`` becomes the place of the bind whose path is ``/NAME``: ``/NAME``
    where the level has a root of its own, the source where it has not. Limits: ``memory`` bytes, ``pids`` processes,
    ``cpus`` processors; None: none but the world's own. ``opened``: the control of an outcome, a container without
    any of its defences (all capabilities, the host's pid, ipc and network namespaces, the host's root at /host, no
    filter, nothing masked). ``link``: the directory of the engine's network that a machine is to be on, as it gets its
    network device at its start; every other level can be given one later.
    """

    args: tuple[str, ...]
    memory: int | None = None
    pids: int | None = None
    cpus: float | None = None
    binds: tuple[Bind, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    opened: bool = False
    link: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a job ended. ``status``: as a shell has it (128 + signal). ``first`` and ``total``: milliseconds on the
    host's CLOCK_MONOTONIC from before the command of the level was started until the first byte of its output was
    there, and until it had ended and was cleared up; ``first`` is None where it wrote nothing."""

    status: int
    stdout: bytes
    stderr: bytes
    first: float | None
    total: float


class Tenant(Protocol):
    """A job that runs on. Its output is a stream of lines."""

    level: Level

    def go(self) -> None:
        """Let a job that `Level.ready` has prepared run: its clock starts."""

    def wait(self, timeout: float = 60.0) -> Ended:
        """How it ended by itself; it is not cleared up yet. Raises PycontainError where it does not end in time."""

    def line(self, timeout: float = 20.0) -> str:
        """The next line that it writes, without its end. Raises PycontainError where none comes in time."""

    def exec(self, args: Sequence[str], timeout: float = 60.0) -> Ended:
        """Another program in the same container. Raises Unsupported where the level has no such verb."""

    def pids(self) -> list[int]:
        """Every process of this host that is there because of the tenant, VMM, sentry and supervisor included."""

    def stop(self) -> None:
        """Kill it, clear up after it. Does nothing the second time."""


class Level(Protocol):
    """A kind of isolation. ``name`` is its key in results; ``title`` and ``about`` are for people."""

    name: str
    title: str
    about: str

    def missing(self, world: World) -> str | None:
        """Why this host cannot run it, by name; None where it can."""

    def run(self, world: World, job: Job, timeout: float = 60.0) -> Ended:
        """Run a job to its end. Raises PycontainError where it cannot be started, or does not end in time."""

    def start(self, world: World, job: Job) -> Tenant:
        """Start a job that runs on. Raises as `run` does."""

    def ready(self, world: World, job: Job) -> Tenant:
        """Prepare a job, so that many can be let go at one moment. Raises PycontainError where it cannot be."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A figure: ``name`` is its key (``syscall.getpid``). ``clock`` says which clock and between which two moments,
    ``cache`` in what state caches are, ``denominator`` what it is divided by ("" where it is absolute),
    ``definition`` one sentence for people, its limit included. ``better``: which way is better, if any is."""

    name: str
    title: str
    unit: str
    definition: str
    better: Literal["lower", "higher", "neither"] = "lower"
    clock: str = ""
    cache: str = ""
    denominator: str = ""


@dataclass(frozen=True, slots=True)
class Claim:
    """Something that an isolation is to hold. ``attack`` says what is tried and where a success is told from a failure.
    ``row``: the published hole that it replays, if it is one (``CVE-2024-21626``). ``kind`` groups claims in tables."""

    name: str
    title: str
    attack: str
    kind: str
    row: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """What was found of a quantity, in its unit; every value is a repetition of its own. ``detail`` says which variant
    of a workload it was, where hosts differ; only samples of one variant are compared."""

    quantity: str
    values: tuple[float, ...]
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an attack: ``held``, ``leaked`` (``detail``: what), or ``noisy`` (``detail``: how much):
    contained, but the neighbour notices. ``detail`` is for people, one sentence. ``times``: how many times as long as
    alone the neighbour's work takes, where it is that which was held or noisy."""

    claim: str
    verdict: Verdict
    detail: str
    times: float | None = None


@dataclass(frozen=True, slots=True)
class Measure:
    """Something that can be taken at a level. ``take`` raises Unsupported (the reason is recorded) where the level
    cannot have it, and PycontainError where it failed. ``rounds``: how often at least and at most; an outcome is
    taken once. ``seconds``: about how long one taking lasts at the level ``container``. ``quick``: part of
    ``--quick``."""

    name: str
    group: Group
    title: str
    take: Callable[[World, Level], Iterable[Sample | Outcome]]
    quantities: tuple[Quantity, ...] = ()
    claims: tuple[Claim, ...] = ()
    rounds: tuple[int, int] = (1, 1)
    seconds: float = 1.0
    quick: bool = True
