"""The Python API: the same code as the command, with values instead of strings, and results instead of output.

Safe in a host with threads: nothing here forks, changes the working directory, the umask or a signal handler, or
waits for a child that is not its own. Errors are the classes of pycontain.runtime.errors.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any, TypedDict, Unpack

    from pycontain.engine import Engine
    from pycontain.engine.containers import Container as Found
    from pycontain.engine.run import Started

    Texts = Sequence[str] | Mapping[str, str]

    class Options(TypedDict, total=False):
        """The options of ``pycontain run``, by their long names with underscores; a list may be a mapping as well."""

        add_host: Texts
        cap_add: Sequence[str]
        cap_drop: Sequence[str]
        cidfile: str
        cpu_shares: int
        cpus: float | str
        cpuset_cpus: str
        device: Sequence[str]
        dns: Sequence[str]
        entrypoint: str | Sequence[str]
        env: Texts
        env_file: Sequence[str]
        group_add: Sequence[str]
        hostname: str
        init: bool
        ipc: str
        isolation: str
        label: Texts
        log_opt: Texts
        memory: int | str
        memory_swap: int | str
        mount: Sequence[str]
        name: str
        network: str
        pid: str
        pids_limit: int
        platform: str
        privileged: bool
        publish: Sequence[str]
        pull: str
        read_only: bool
        restart: str
        rm: bool
        security_opt: Sequence[str]
        shm_size: int | str
        stop_signal: str
        stop_timeout: int
        tmpfs: Sequence[str]
        ulimit: Texts
        user: str
        userns: str
        volume: Sequence[str]
        workdir: str


_SEPARATORS = {"add-host": ":"}


class Result:
    """How a command ended: ``exit_code`` 0 to 255 (128 + signal), what it wrote, and whether memory ran out."""

    __slots__ = ("exit_code", "oom_killed", "stderr", "stdout")

    def __init__(self, exit_code: int, stdout: bytes, stderr: bytes, oom_killed: bool = False) -> None:
        self.exit_code = exit_code
        self.stdout = stdout
        self.stderr = stderr
        self.oom_killed = oom_killed

    def __repr__(self) -> str:
        return (
            f"Result(exit_code={self.exit_code}, stdout={self.stdout!r}, stderr={self.stderr!r}, "
            f"oom_killed={self.oom_killed})"
        )


def run(
    image: str | None = None,
    args: Sequence[str] = (),
    *,
    bundle: str | os.PathLike[str] | None = None,
    input: bytes | None = None,
    root: str | None = None,
    run_root: str | None = None,
    **options: Unpack[Options],
) -> Result:
    """Run a container to its end and remove it (unless ``rm=False``).

    ``image`` is pulled where it is missing. With ``bundle``, an OCI bundle's directory, it is the runtime alone that
    works: the fastest way, without supervisor, network or image. ``input`` is all of standard input.

    Raises NotFound (image), Conflict (name, port), SpecError, Unsupported, KernelError, PycontainError; exit_code of
    an error is 126 where the program cannot be executed and 127 where it is not found. When this is interrupted
    (KeyboardInterrupt), the container is killed and removed.
    """
    if bundle is not None:
        if image is not None or args or options or input is not None:
            raise TypeError("run(bundle=...) takes everything from the bundle's config.json")
        from pycontain.engine import direct

        return Result(*direct.run(_engine(root, run_root).runtime_root, os.fspath(bundle)))
    if image is None:
        raise TypeError("run() wants an image or a bundle")
    from pycontain.engine import run as running

    options.setdefault("rm", True)
    engine = _engine(root, run_root)
    collected = _Collected(input)
    wanted = _read(image, args, dict(options), input is not None)
    status, oom = running.run(engine, wanted, attach=collected.attach, give_up=True)
    return Result(status, bytes(collected.stdout), bytes(collected.stderr), oom)


def create(
    image: str,
    args: Sequence[str] = (),
    *,
    root: str | None = None,
    run_root: str | None = None,
    **options: Unpack[Options],
) -> Container:
    """Create a container without starting it. Raises as `run` does."""
    from pycontain.engine import run as running

    engine = _engine(root, run_root)
    found = running.create(engine, _read(image, args, dict(options), False))
    found.lock.release()
    return Container(found.id, root=root, run_root=run_root)


def exec(
    container: str,
    args: Sequence[str],
    *,
    input: bytes | None = None,
    env: Mapping[str, str] | Sequence[str] = (),
    user: str | None = None,
    workdir: str | None = None,
    privileged: bool = False,
    root: str | None = None,
    run_root: str | None = None,
) -> Result:
    """Run one more command in a running container (name, id or start of an id)."""
    from pycontain.engine import run as running
    from pycontain.engine import values

    engine = _engine(root, run_root)
    collected = _Collected(input)
    status = running.exec_(
        engine,
        engine.containers.find(container),
        list(args),
        env=values.environment(_texts("env", env), (), os.environ),
        user=user,
        workdir=values.absolute("workdir", workdir, workdir, "/srv") if workdir else None,
        interactive=input is not None,
        privileged=privileged,
        attach=collected.attach,
    )
    return Result(status, bytes(collected.stdout), bytes(collected.stderr))


def pull(image: str, *, platform: str | None = None, root: str | None = None, run_root: str | None = None) -> str:
    """Download an image; its id (the digest of its configuration)."""
    from pycontain.engine import images

    return images.pull(_engine(root, run_root), image, platform=platform).id


class Container:
    """A container by name, id or the unique start of an id; it need not have been made by this process."""

    def __init__(self, name: str, *, root: str | None = None, run_root: str | None = None) -> None:
        self._engine = _engine(root, run_root)
        self._root, self._run_root = root, run_root
        self.id = self._engine.containers.find(name).id

    def __repr__(self) -> str:
        return f"Container({self.id[:12]!r})"

    @property
    def name(self) -> str:
        return self._found().name

    @property
    def status(self) -> str:
        """created, running, paused, exited or dead."""
        return self._found().status()

    def start(self) -> None:
        """Start it in the background. Raises Conflict where it runs already."""
        from pycontain.engine import run as running

        found = self._found()
        with found.locked():
            running.start(self._engine, found)

    def stop(self, timeout: int | None = None) -> None:
        """Ask it to stop, and kill it after ``timeout`` seconds (10, or what its stop_timeout says)."""
        from pycontain.engine import control

        control.stop(self._engine, self.id, timeout)

    def kill(self, signal: str | int = "KILL") -> None:
        """Send a signal to its first process."""
        from pycontain.engine import control

        control.kill(self._engine, self.id, str(int(signal)) if isinstance(signal, int) else signal)

    def wait(self) -> int:
        """Wait for its end; the exit status."""
        from pycontain.engine import control

        return control.wait(self._engine, self.id)

    def exec(
        self,
        args: Sequence[str],
        *,
        input: bytes | None = None,
        env: Mapping[str, str] | Sequence[str] = (),
        user: str | None = None,
        workdir: str | None = None,
        privileged: bool = False,
    ) -> Result:
        """Run one more command in it."""
        return exec(
            self.id,
            args,
            input=input,
            env=env,
            user=user,
            workdir=workdir,
            privileged=privileged,
            root=self._root,
            run_root=self._run_root,
        )

    def logs(self, *, tail: int | None = None) -> Iterator[tuple[str, bytes]]:
        """What it wrote so far: ("stdout" or "stderr", bytes) in order."""
        from pycontain.engine import logs

        for record in logs.read(self._found().path("log/container.log"), tail=tail):
            yield record.stream, record.data

    def remove(self, *, force: bool = False, volumes: bool = False) -> None:
        """Remove it; ``force`` kills it first where it runs, ``volumes`` removes its anonymous volumes too."""
        from pycontain.engine import teardown

        teardown.remove(self._engine, self.id, force=force, volumes=volumes)

    def inspect(self) -> dict[str, Any]:
        """All that is known of it, in docker's shape."""
        from pycontain.engine import inspect

        return inspect.container(self._engine, self._found())

    def _found(self) -> Found:
        return self._engine.containers.find(self.id)


class _Collected:
    """Attaches as the owner and keeps what is written."""

    def __init__(self, input: bytes | None) -> None:
        self.input = input
        self.stdout, self.stderr = bytearray(), bytearray()

    def attach(self, started: Started) -> Any:
        from pycontain.engine import attach

        assert started.owner is not None
        return attach.stream(
            started.owner, stdin=self.input, stdout=self.stdout.extend, stderr=self.stderr.extend, owner=True
        )


def _engine(root: str | None, run_root: str | None) -> Engine:
    from pycontain.engine import Engine

    return Engine(root, run_root)


def _read(image: str, args: Sequence[str], options: dict[str, Any], interactive: bool) -> Any:
    from pycontain.commands.definition import CREATE_OPTIONS
    from pycontain.engine import options as reading
    from pycontain.runtime.errors import PycontainError

    known = {option.name: option for option in CREATE_OPTIONS}
    given: dict[str, object] = {}
    for name, value in options.items():
        option = known.get(name.replace("_", "-"))
        if option is None:
            raise TypeError(f"there is no option {name!r}")
        if value is None:
            continue
        if option.kind == "flag":
            given[option.name] = bool(value)
        elif option.kind == "list":
            given[option.name] = _texts(option.name, value)
        elif isinstance(value, (list, tuple)):
            given[option.name] = list(value)
        else:
            given[option.name] = str(value)
            if option.choices and given[option.name] not in option.choices:
                raise PycontainError(f'--{option.name} cannot be "{value}": wanted {" or ".join(option.choices)}')
    if interactive:
        given["interactive"] = True
    return reading.read(image, list(args), given)


def _texts(name: str, value: Any) -> list[str]:
    if isinstance(value, str):
        raise TypeError(f"{name} is a list of strings, not one string")
    if hasattr(value, "items"):
        return [f"{key}{_SEPARATORS.get(name, '=')}{item}" for key, item in value.items()]
    return [str(item) for item in value]
