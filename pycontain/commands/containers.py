"""The verbs on containers: values of the command line in, lines and an exit status out."""

from __future__ import annotations

import os
import sys

from pycontain.runtime.errors import Conflict, NotFound, PycontainError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pycontain.engine import Engine
    from pycontain.engine.run import Started

    Values = dict[str, Any]

_NOT_FILTERS = "filters are status=, name=, id=, label=, ancestor= and exited="


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def warn(text: str) -> None:
    say(f"pycontain: warning: {text}")


def run(engine: Engine, values: Values) -> int:
    from pycontain.engine import options as reading
    from pycontain.engine import run as running

    options = reading.read(values["IMAGE"], values["ARG"], values)
    if options.detach:
        print(running.run_detached(engine, options, progress=sys.stderr, warn=warn))
        return 0
    _terminal_wanted(options.terminal, options.interactive)
    status, _ = running.run(
        engine,
        options,
        progress=sys.stderr,
        warn=warn,
        attach=_foreground(engine, values),
        oom=_oom,
        size=_terminal_size(),
    )
    return status


def _oom(label: str, limit: int) -> None:
    from pycontain.engine.inspect import size_text

    bound = f" (memory limit {size_text(limit)})" if limit else ""
    say(f"pycontain: container {label} was OOM killed{bound}")


def _terminal_wanted(terminal: bool, interactive: bool) -> None:
    """docker's rule: with -i and -t, standard input has to be a terminal, or its owner would wait for ever."""
    if terminal and interactive and not os.isatty(0):
        raise PycontainError("-t wants a terminal, but standard input is none", hint="leave out -t")


def _terminal_size() -> tuple[int, int] | None:
    """(rows, columns) of the terminal that we are on, so that a program finds it when it starts."""
    for fd in (0, 1, 2):
        try:
            columns, rows = os.get_terminal_size(fd)
        except OSError:
            continue
        return rows, columns
    return None


def _foreground(engine: Engine, values: Values) -> Callable[[Started], Any]:
    from pycontain.engine import attach as attaching
    from pycontain.engine import control

    keys = detach_keys(str(values.get("detach-keys") or "ctrl-p,ctrl-q"))
    proxy = values.get("sig-proxy", True)

    def attach(started: Started) -> Any:
        container = started.container
        assert started.owner is not None

        def pass_on(number: int) -> None:
            try:
                control.send(engine, container, number)
            except Conflict:
                pass  # it has just ended

        return attaching.run_foreground(
            started.owner,
            tty=bool(started.terminal),
            interactive=bool(started.interactive),
            owner=True,
            detach_keys=keys,
            on_signal=pass_on if proxy else None,
        )

    return attach


def detach_keys(text: str) -> bytes:
    """``ctrl-p,ctrl-q`` → b"\\x10\\x11": single characters, or ctrl- and one of a-z @ [ \\ ] ^ _."""
    result = b""
    for key in text.split(","):
        name = key.removeprefix("ctrl-")
        if len(key) == 1 and key.isascii():
            result += key.encode()
        elif key.startswith("ctrl-") and len(name) == 1 and "@" <= name.upper() <= "_":
            result += bytes([ord(name.upper()) - 64])
        else:
            raise PycontainError(
                f'--detach-keys "{text}": "{key}" is not a key (wanted one character, or ctrl- and one)',
                hint="--detach-keys ctrl-p,ctrl-q",
            )
    return result


def create(engine: Engine, values: Values) -> int:
    from pycontain.engine import options as reading
    from pycontain.engine import run as running

    container = running.create(engine, reading.read(values["IMAGE"], values["ARG"], values), progress=sys.stderr)
    container.lock.release()
    print(container.id)
    return 0


def start(engine: Engine, values: Values) -> int:
    from pycontain.engine import run as running

    follow = bool(values.get("attach") or values.get("interactive"))
    if follow and len(values["CONTAINER"]) > 1:
        raise PycontainError("only one container can be attached to at once", hint="leave out -a and -i")

    def one(text: str) -> None:
        container = engine.containers.find(text)
        with container.locked():
            if container.status() not in ("running", "paused"):
                running.start(engine, container, warn=warn)
        print(text)

    if not follow:
        return each(values["CONTAINER"], one)
    container = engine.containers.find(values["CONTAINER"][0])
    with container.locked():
        started = running.start(engine, container, own=True, warn=warn, size=_terminal_size())
    started.interactive = started.interactive and bool(values.get("interactive"))
    return running.follow(engine, started, _foreground(engine, values), oom=_oom)


def exec_(engine: Engine, values: Values) -> int:
    from pycontain.engine import run as running
    from pycontain.engine import values as reading

    if not values["ARG"]:
        raise PycontainError('"pycontain exec" wants a command', hint=f"pycontain exec {values['CONTAINER']} sh")
    detach = bool(values.get("detach"))
    terminal, interactive = bool(values.get("tty")), bool(values.get("interactive"))
    if not detach:
        _terminal_wanted(terminal, interactive)
    workdir = values.get("workdir")
    return running.exec_(
        engine,
        engine.containers.find(values["CONTAINER"]),
        values["ARG"],
        env=reading.environment(values.get("env", []), values.get("env-file", []), os.environ),
        user=values.get("user"),
        workdir=reading.absolute("workdir", workdir, workdir, "/srv") if workdir else None,
        terminal=terminal,
        interactive=interactive,
        privileged=bool(values.get("privileged")),
        size=_terminal_size() if terminal else None,
        attach=None if detach else _foreground_exec(engine, values),
    )


def _foreground_exec(engine: Engine, values: Values) -> Callable[[Started], Any]:
    """As `_foreground`, but a signal goes to the one process."""
    from pycontain.engine import attach as attaching

    keys = detach_keys(str(values.get("detach-keys") or "ctrl-p,ctrl-q"))

    def attach(started: Started) -> Any:
        assert started.owner is not None
        return attaching.run_foreground(
            started.owner,
            tty=started.terminal,
            interactive=started.interactive,
            owner=True,
            detach_keys=keys,
            on_signal=started.signal,
        )

    return attach


def attach(engine: Engine, values: Values) -> int:
    from pycontain.engine import attach as attaching
    from pycontain.engine import control, teardown

    container = engine.containers.find(values["CONTAINER"])
    container.running_or_refuse("attach to")
    proxy = values.get("sig-proxy", True)

    def pass_on(number: int) -> None:
        try:
            control.send(engine, container, number)
        except Conflict:
            pass

    with attaching.connect(teardown.attach_socket(container)) as sock:
        ended = attaching.run_foreground(
            sock,
            tty=bool(container.options.get("terminal")),
            interactive=bool(container.options.get("interactive")) and not values.get("no-stdin"),
            detach_keys=detach_keys(str(values.get("detach-keys") or "ctrl-p,ctrl-q")),
            on_signal=pass_on if proxy else None,
        )
    return 0 if ended.status is None else int(ended.status)


def stop(engine: Engine, values: Values) -> int:
    from pycontain.engine import control

    seconds = _seconds(values)

    def one(text: str) -> None:
        control.stop(engine, text, seconds)
        print(text)

    return each(values["CONTAINER"], one)


def _seconds(values: Values) -> int | None:
    from pycontain.engine import values as reading

    return reading.number("time", values["time"], -1, 10**9, "10") if "time" in values else None


def kill(engine: Engine, values: Values) -> int:
    from pycontain.engine import control

    control.signal_number(values.get("signal", "KILL"))

    def one(text: str) -> None:
        control.kill(engine, text, values.get("signal", "KILL"))
        print(text)

    return each(values["CONTAINER"], one)


def restart(engine: Engine, values: Values) -> int:
    from pycontain.engine import control
    from pycontain.engine import run as running

    seconds = _seconds(values)

    def one(text: str) -> None:
        container = engine.containers.find(text)
        if container.options.get("remove") and container.status() == "running":
            raise Conflict(
                f'cannot restart container "{container.label}": it was made with --rm and goes when it stops'
            )
        control.stop(engine, text, seconds)
        with container.locked():
            running.start(engine, container, warn=warn)
        print(text)

    return each(values["CONTAINER"], one)


def pause(engine: Engine, values: Values) -> int:
    from pycontain.engine import control

    def one(text: str) -> None:
        control.pause(engine, text)
        print(text)

    return each(values["CONTAINER"], one)


def unpause(engine: Engine, values: Values) -> int:
    from pycontain.engine import control

    def one(text: str) -> None:
        control.unpause(engine, text)
        print(text)

    return each(values["CONTAINER"], one)


def wait(engine: Engine, values: Values) -> int:
    from pycontain.engine import control

    def one(text: str) -> None:
        print(control.wait(engine, text))

    return each(values["CONTAINER"], one)


def rm(engine: Engine, values: Values) -> int:
    from pycontain.engine import teardown

    force, volumes = bool(values.get("force")), bool(values.get("volumes"))

    def one(text: str) -> None:
        try:
            print(teardown.remove(engine, text, force=force, volumes=volumes))
        except NotFound:
            if not force:
                raise

    return each(values["CONTAINER"], one)


def rename(engine: Engine, values: Values) -> int:
    from pycontain.engine import control

    control.rename(engine, values["CONTAINER"], values["NAME"])
    return 0


def each(texts: list[str], verb: Callable[[str], None]) -> int:
    """``verb`` for each; an error is printed and the rest still done. With one container the error is raised."""
    if len(texts) == 1:
        verb(texts[0])
        return 0
    from pycontain.cli import print_error

    status = 0
    for text in texts:
        try:
            verb(text)
        except PycontainError as error:
            print_error(error.message, error.hint)
            status = 1
    return status


def ps(engine: Engine, values: Values) -> int:
    from pycontain.engine import inspect
    from pycontain.engine.containers import Container

    filters = [text.partition("=") for text in values.get("filter", [])]
    for name, equals, _ in filters:
        if not equals or name not in ("status", "name", "id", "label", "ancestor", "exited"):
            raise PycontainError(
                f'--filter "{name}{equals}": no such filter ({_NOT_FILTERS})', hint="--filter status=running"
            )
    everything = bool(values.get("all")) or any(name in ("status", "exited") for name, _, _ in filters)

    def shown(container: Container) -> bool:
        if not everything and container.status() not in ("running", "paused"):
            return False
        by_name: dict[str, list[str]] = {}
        for name, _, value in filters:
            by_name.setdefault(name, []).append(value)
        return all(any(inspect.fits(container, name, value) for value in wanted) for name, wanted in by_name.items())

    found = sorted(
        (container for container in engine.containers.all() if shown(container)),
        key=lambda container: -int(container.record.get("created") or 0),
    )
    whole = bool(values.get("no-trunc"))
    if values.get("quiet"):
        for container in found:
            print(container.id if whole else container.id[:12])
        return 0
    rows = [inspect.row(container) for container in found]
    if values.get("format") == "json":
        _json_lines(rows)
        return 0
    table = [["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]]
    for row in rows:
        command = row["Command"] if whole or len(row["Command"]) <= 20 else row["Command"][:19] + "…"
        identifier = row["ID"] if whole else row["ID"][:12]
        table.append(
            [identifier, row["Image"], f'"{command}"', row["RunningFor"], row["Status"], row["Ports"], row["Names"]]
        )
    print_table(table)
    return 0


def print_table(rows: list[list[str]]) -> None:
    """Columns three spaces apart; what an image or a user named is kept from acting on the terminal."""
    rows = [["".join(c if c.isprintable() else "?" for c in cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _json_lines(rows: list[dict[str, Any]]) -> None:
    import json

    for row in rows:
        print(json.dumps(row, ensure_ascii=False))


def top(engine: Engine, values: Values) -> int:
    from pycontain.engine import control

    table = [["UID", "PID", "PPID", "TIME", "CMD"]]
    for process in control.top(engine, values["CONTAINER"]):
        hours, rest = divmod(process["seconds"], 3600)
        time = f"{hours:02}:{rest // 60:02}:{rest % 60:02}"
        table.append([str(process["uid"]), str(process["pid"]), str(process["ppid"]), time, process["command"]])
    print_table(table)
    return 0


def logs(engine: Engine, values: Values) -> int:
    from pycontain.engine import logs as reading
    from pycontain.engine import values as checking

    container = engine.containers.find(values["CONTAINER"])
    tail = values.get("tail", "all")
    lines = None if tail in ("all", "-1") else checking.number("tail", tail, 0, 10**9, "10")
    since = reading.parse_since(values["since"]) if "since" in values else None
    path = container.path("log/container.log")

    def ended() -> bool:
        try:
            container.reload()
        except NotFound:
            return True
        return container.status() not in ("running", "paused")

    if values.get("follow"):
        records = reading.follow(path, ended=ended, tail=lines, since=since)
    else:
        records = reading.read(path, tail=lines, since=since)
    sys.stdout.flush()
    reading.write(records, timestamps=bool(values.get("timestamps")))
    return 0


def inspect(engine: Engine, values: Values) -> int:
    import json

    from pycontain.engine import images
    from pycontain.engine import inspect as looking

    kind = values.get("type")
    found = []
    for text in values["NAME"]:
        if kind != "image":
            try:
                found.append(looking.container(engine, engine.containers.find(text)))
                continue
            except NotFound:
                if kind == "container":
                    raise
        try:
            found.append(images.inspect(engine, text))
        except NotFound:
            if kind == "image":
                raise
            raise NotFound(f'no such container or image: "{text}"', hint="pycontain ps -a; pycontain images") from None
    print(json.dumps(found, indent=4, ensure_ascii=False))
    return 0
