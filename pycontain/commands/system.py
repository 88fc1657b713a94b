"""The verbs on the whole: info, version, prune, explain, completion, and the supervisor's call at the end."""

from __future__ import annotations

import sys

from pycontain.runtime.errors import NotFound, PycontainError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontain.engine import Engine

    Values = dict[str, Any]


def version(engine: Engine, values: Values) -> int:
    from pycontain import __version__

    print(f"pycontain {__version__}")
    return 0


def info(engine: Engine, values: Values) -> int:
    from pycontain.engine import info as facts

    found = facts.collect(engine)
    if values.get("format") == "json":
        import json

        print(json.dumps(found, indent=4, ensure_ascii=False))
        return 0
    _print_facts(found, "")
    return 0


def _print_facts(found: Values, indent: str) -> None:
    width = max(len(name) for name in found)
    for name, value in found.items():
        if isinstance(value, dict):
            print(f"{indent}{name}:")
            _print_facts(value, indent + "  ")
            continue
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        print(f"{indent}{name + ':':{width + 2}}{shown}")


def prune(engine: Engine, values: Values) -> int:
    from pycontain.engine import inspect
    from pycontain.engine import prune as pruning

    everything, volumes = bool(values.get("all")), bool(values.get("volumes"))
    if not values.get("force"):
        what = ["stopped containers", "what crashes left", "content that no image needs"]
        what += ["images that no container uses"] if everything else []
        what += ["volumes that no container uses"] if volumes else []
        sys.stderr.write(f"This removes {', '.join(what)}.\nGo on? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline(16).strip().lower() not in ("y", "yes"):
            return 1
    report = pruning.prune(engine, images=everything, volumes=volumes)
    for line in report.lines:
        print(line)
    print(f"Freed: {inspect.size_text(report.freed)}")
    return 0


def explain(engine: Engine, values: Values) -> int:
    from pycontain.engine import explain as explaining

    words = values["ARG"]
    if not words:
        raise PycontainError(
            '"pycontain explain" wants run and its arguments, a config.json or a bundle',
            hint="pycontain explain run alpine sh",
        )
    if words[0] in ("run", "create"):
        from pycontain.commands import definition, parser
        from pycontain.engine import options

        parsed = parser.Parsed()
        command = definition.find(words[0])
        assert command is not None
        parser.parse_command(command, words[1:], parsed)
        if parsed.wants_help:
            from pycontain.commands import help as help_texts

            sys.stdout.write(help_texts.command_help(command))
            return 0
        given: Values = parsed.values
        wanted = options.read(given["IMAGE"], given["ARG"], given)
        lines = explaining.run(engine, wanted)
    elif len(words) == 1:
        lines = explaining.bundle(words[0])
    else:
        raise PycontainError(
            f'"pycontain explain" knows run, a config.json or a bundle, not "{words[0]}"',
            hint="pycontain explain run alpine sh",
        )
    for line in lines:
        print(line)
    return 0


def completion(engine: Engine, values: Values) -> int:
    from pycontain.commands import completion as scripts

    sys.stdout.write(scripts.script(values["SHELL"]))
    return 0


def teardown(engine: Engine, values: Values) -> int:
    from pycontain.engine import teardown as tearing

    try:
        tearing.after_exit(engine, values["ID"])
    except NotFound:
        pass  # somebody removed it meanwhile
    return 0
