"""Help texts, made of the definition."""

from __future__ import annotations

from pycontain.commands.definition import COMMANDS, GLOBAL_OPTIONS, GROUPS, PROGRAM, SUMMARY
from pycontain.commands.model import Command, Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_WIDTH = 100


def program_help() -> str:
    lines = [f"Usage: {PROGRAM} [OPTIONS] COMMAND", "", SUMMARY.capitalize() + "."]
    for key, title in GROUPS:
        lines += ["", f"{title}:"]
        commands = [command for command in COMMANDS if command.group == key and not command.hidden]
        width = max(len(command.name) for command in commands)
        lines += [f"  {command.name:{width}}  {command.summary}" for command in commands]
    lines += ["", "Options:", *_option_lines(GLOBAL_OPTIONS), "", f"More about a command: {PROGRAM} COMMAND --help"]
    return "\n".join(lines) + "\n"


def command_help(command: Command) -> str:
    lines = [f"Usage: {command.usage()}", "", command.summary.capitalize() + "."]
    if command.description:
        lines += ["", *_wrap(command.description, 0)]
    if command.arguments:
        lines += ["", "Arguments:"]
        width = max(len(argument.name) for argument in command.arguments)
        lines += [f"  {argument.name:{width}}  {argument.help}" for argument in command.arguments]
    if command.options:
        lines += ["", "Options:", *_option_lines(command.options)]
    if command.examples:
        lines += ["", "Examples:"]
        for what, line in command.examples:
            lines += [f"  # {what}", f"  {line}"]
    return "\n".join(lines) + "\n"


def option_help(option: Option) -> str:
    """The help line with what the value may be."""
    notes = []
    if option.choices:
        notes.append("one of " + ", ".join(option.choices) if len(option.choices) > 1 else f"only {option.choices[0]}")
    if option.default and option.kind != "flag":
        notes.append(f"default {option.default}")
    return f"{option.help} ({'; '.join(notes)})" if notes else option.help


def _option_lines(options: Sequence[Option]) -> list[str]:
    shown = [option for option in options if not option.hidden]
    spellings = [option.spelling() if option.short else f"    {option.spelling()}" for option in shown]
    width = min(max(len(spelling) for spelling in spellings), 34)
    lines = []
    for option, spelling in zip(shown, spellings, strict=True):
        wrapped = _wrap(option_help(option), width + 4)
        if len(spelling) > width:
            lines += [f"  {spelling}", *wrapped]
        else:
            lines += [f"  {spelling:{width}}  {wrapped[0].lstrip()}", *wrapped[1:]]
    return lines


def _wrap(text: str, indent: int) -> list[str]:
    lines = [" " * indent]
    for word in text.split():
        if len(lines[-1]) + 1 + len(word) > _WIDTH and lines[-1].strip():
            lines.append(" " * indent)
        lines[-1] += word if not lines[-1].strip() else f" {word}"
    return lines
