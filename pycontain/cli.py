"""The user's command: reads the command line, calls the verb, prints one error. The only printer of this face."""

from __future__ import annotations

import os
import sys

from pycontain.commands import parser
from pycontain.runtime.errors import PycontainError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pycontain.commands.parser import Parsed

_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (sys.argv where None) and return its exit status.

    Called without arguments, as by the installed command, it does not return: tearing an interpreter down costs 2 ms.
    """
    status = run(sys.argv[1:] if argv is None else argv)
    if argv is None:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                status = status or 1
        os._exit(status)
    return status


def run(argv: Sequence[str]) -> int:
    parsed = None
    try:
        parsed = parser.parse(argv)
        return _call(parsed)
    except PycontainError as error:
        print_error(error.message, error.hint)
        _trace(argv)
        command = parsed.command.name if parsed is not None and parsed.command is not None else ""
        return 125 if command == "run" and error.exit_code == 1 else error.exit_code
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read standard output has had enough; what is still buffered for it goes nowhere, in silence.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except Exception as error:
        _trace(argv)
        text = " ".join(str(error).split()) or "no more is known"
        print_error(
            f"this is a bug: {type(error).__name__}: {text}",
            f"pycontain --debug {' '.join(argv)}   (the traceback, for a report)",
        )
        return 125


def _call(parsed: Parsed) -> int:
    if parsed.global_values.get("version"):
        from pycontain.commands import system
        from pycontain.engine import Engine

        return system.version(Engine(), {})
    if parsed.wants_help or parsed.command is None:
        from pycontain.commands import help as help_texts

        text = help_texts.command_help(parsed.command) if parsed.command is not None else help_texts.program_help()
        (sys.stdout if parsed.wants_help else sys.stderr).write(text)
        return 0 if parsed.wants_help else 125
    if os.geteuid() != 0 and parsed.command.group == "containers":
        raise PycontainError(
            f'"pycontain {parsed.command.name}" wants root: user namespaces are not built yet '
            f"(found user {os.geteuid()})",
            hint=f"sudo pycontain {parsed.command.name} ...",
        )
    from pycontain.engine import Engine

    module, _, function = parsed.command.handler.partition(":")
    handler = getattr(__import__(f"pycontain.commands.{module}", fromlist=[function]), function)
    values = parsed.global_values
    root, run_root = values.get("root"), values.get("run-root")
    status = handler(Engine(str(root) if root else None, str(run_root) if run_root else None), parsed.values)
    return int(status)


def _trace(argv: Sequence[str]) -> None:
    """With --debug before the command, where the error came from."""
    if "--debug" in argv[:5]:
        import traceback

        traceback.print_exc()


def print_error(message: str, hint: str | None) -> None:
    """``pycontain: message`` and, after a blank line, ``hint: ...``, on standard error."""
    sys.stdout.flush()
    lines = [f"pycontain: {message}"]
    if hint:
        lines += ["", f"hint: {hint}"]
    # A message quotes what the user or an image wrote; control characters would act on the terminal.
    text = "\n".join(lines)
    shown = "".join(
        character if character.isprintable() or character == "\n" else _escaped(character) for character in text
    )
    sys.stderr.write(shown + "\n")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
