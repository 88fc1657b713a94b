"""Man pages (roff) and Markdown pages, made of the definition: ``python -m pycontain.commands.pages DOCS``.

Format: man(7) macros, one page for the program and one for each command, named as git and docker name theirs
(pycontain-run(1)).
"""

from __future__ import annotations

import os
import sys

from pycontain.commands.definition import COMMANDS, GLOBAL_OPTIONS, GROUPS, PROGRAM, SUMMARY
from pycontain.commands.help import option_help
from pycontain.commands.model import Command, Option


def pages() -> dict[str, str]:
    """Every generated page: path below docs/ → text."""
    made = {f"man/{PROGRAM}.1": _program_man(), "commands/README.md": _program_markdown()}
    for command in _shown():
        stem = command.name.replace(" ", "-")
        made[f"man/{PROGRAM}-{stem}.1"] = _command_man(command)
        made[f"commands/{stem}.md"] = _command_markdown(command)
    return made


def _shown() -> list[Command]:
    return [command for command in COMMANDS if not command.hidden]


def _roff(text: str) -> str:
    """roff(7): a backslash and a dash are special anywhere, a dot or an apostrophe at the start of a line."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text


def _header(name: str) -> list[str]:
    return [f'.TH "{_roff(name.upper())}" "1" "" "{PROGRAM}" "{PROGRAM} manual"', ".nh", ".ad l"]


def _roff_options(options: tuple[Option, ...]) -> list[str]:
    lines = []
    for option in options:
        if not option.hidden:
            flags = f"\\fB\\-{option.short}\\fR, " if option.short else ""
            value = f" \\fI{_roff(option.metavar)}\\fR" if option.metavar else ""
            lines += [".TP", f"{flags}\\fB\\-\\-{_roff(option.name)}\\fR{value}", _roff(option_help(option))]
    return lines


def _program_man() -> str:
    lines = [*_header(PROGRAM), ".SH NAME", f"{PROGRAM} \\- {_roff(SUMMARY)}", ".SH SYNOPSIS"]
    lines += [f"\\fB{PROGRAM}\\fR [\\fIOPTIONS\\fR] \\fICOMMAND\\fR", ".SH COMMANDS"]
    for key, title in GROUPS:
        lines.append(f".SS {title}")
        for command in _shown():
            if command.group == key:
                page = _roff(f"{PROGRAM}-{command.name.replace(' ', '-')}")
                lines += [".TP", f"\\fB{page}\\fR(1)", _roff(command.summary)]
    lines += [".SH OPTIONS", *_roff_options(GLOBAL_OPTIONS)]
    lines += [".SH EXIT STATUS", "0 on success, 1 where a command failed, 125 where the command line was wrong."]
    return "\n".join(lines) + "\n"


def _command_man(command: Command) -> str:
    name = f"{PROGRAM}-{command.name.replace(' ', '-')}"
    lines = [*_header(name), ".SH NAME", f"{_roff(name)} \\- {_roff(command.summary)}", ".SH SYNOPSIS"]
    lines += [_roff(command.usage()), ".SH DESCRIPTION", _roff(command.summary.capitalize() + ".")]
    if command.description:
        lines += [".PP", _roff(command.description)]
    if command.arguments:
        lines.append(".SH ARGUMENTS")
        for argument in command.arguments:
            lines += [".TP", f"\\fI{_roff(argument.name)}\\fR", _roff(argument.help)]
    if command.options:
        lines += [".SH OPTIONS", *_roff_options(command.options)]
    if command.examples:
        lines.append(".SH EXAMPLES")
        for what, line in command.examples:
            lines += [".PP", _roff(what.capitalize() + ":"), ".PP", ".RS 4", ".nf", _roff(line), ".fi", ".RE"]
    lines += [".SH SEE ALSO", f"\\fB{PROGRAM}\\fR(1)"]
    return "\n".join(lines) + "\n"


def _program_markdown() -> str:
    lines = [
        "# Commands",
        "",
        "Generated from `pycontain/commands/definition.py` by `python -m pycontain.commands.pages docs`.",
    ]
    for key, title in GROUPS:
        lines += ["", f"## {title}", "", "| command | what it does |", "|---|---|"]
        lines += [
            f"| [`{command.name}`]({command.name.replace(' ', '-')}.md) | {command.summary} |"
            for command in _shown()
            if command.group == key
        ]
    lines += ["", "## Options before the command", "", *_markdown_options(GLOBAL_OPTIONS)]
    return "\n".join(lines) + "\n"


def _markdown_options(options: tuple[Option, ...]) -> list[str]:
    rows = ["| option | meaning |", "|---|---|"]
    for option in options:
        if not option.hidden:
            spelling = option.spelling().replace("|", "\\|")
            rows.append(f"| `{spelling}` | {option_help(option).replace('|', chr(92) + '|')} |")
    return rows


def _command_markdown(command: Command) -> str:
    lines = [f"# {PROGRAM} {command.name}", "", command.summary.capitalize() + ".", "", f"    {command.usage()}"]
    if command.description:
        lines += ["", command.description]
    if command.arguments:
        lines += ["", "## Arguments", "", "| argument | meaning |", "|---|---|"]
        lines += [f"| `{argument.name}` | {argument.help} |" for argument in command.arguments]
    if command.options:
        lines += ["", "## Options", "", *_markdown_options(command.options)]
    if command.examples:
        lines += ["", "## Examples"]
        for what, line in command.examples:
            lines += ["", what.capitalize() + ":", "", f"    {line}"]
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """Write every page below ``argv[0]``, and remove pages of commands that are gone."""
    made = pages()
    for folder in ("man", "commands"):
        os.makedirs(os.path.join(argv[0], folder), exist_ok=True)
        for name in os.listdir(os.path.join(argv[0], folder)):
            if f"{folder}/{name}" not in made and name.startswith((PROGRAM + ".", PROGRAM + "-")) == (folder == "man"):
                os.unlink(os.path.join(argv[0], folder, name))
    for path, text in made.items():
        with open(os.path.join(argv[0], path), "w", encoding="utf-8") as file:
            file.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
