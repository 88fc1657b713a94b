"""Reads a command line against the definition, with docker's habits.

Why not argparse: it refuses values that look like options (``-e -x``), has no ``--rm=false``, knows prefixes of
long options, and costs 14 ms at every start. What is read here: ``--name value``, ``--name=value``, ``-n value``,
``-nvalue``, ``-n=value``, bundled flags (``-it``), ``--flag=false`` and ``--`` to end the options.
"""

from __future__ import annotations

from pycontain.commands.definition import COMMANDS, GLOBAL_OPTIONS, PROGRAM, find
from pycontain.commands.model import Argument, Command, Option
from pycontain.runtime.errors import PycontainError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_TRUE = ("true", "1", "t", "T", "TRUE", "True")
_FALSE = ("false", "0", "f", "F", "FALSE", "False")


class UsageError(PycontainError):
    """The command line itself is wrong; ends with 125 as docker's does."""

    exit_code = 125


class Parsed:
    """``command`` is None where only global options were given; ``wants_help`` says that help was asked for.

    ``values`` holds what was given and nothing else: flags as bool, values as str, lists as list[str], positional
    arguments by their upper-case name (str for "1", str or absent for "?", list[str] otherwise).
    """

    __slots__ = ("command", "global_values", "values", "wants_help", "words")

    def __init__(self) -> None:
        self.command: Command | None = None
        self.global_values: dict[str, object] = {}
        self.values: dict[str, object] = {}
        self.wants_help = False
        self.words: list[str] = []


def parse(argv: Sequence[str]) -> Parsed:
    """Parse what follows the program's name. Raises UsageError."""
    parsed = Parsed()
    rest = _options(GLOBAL_OPTIONS, list(argv), parsed.global_values, True, f'"{PROGRAM}"', f"{PROGRAM} --help")[0]
    parsed.wants_help = bool(parsed.global_values.get("help"))
    if not rest:
        return parsed
    parsed.command, rest = _command(rest, parsed)
    if parsed.command is None or parsed.wants_help:
        return parsed
    parse_command(parsed.command, rest, parsed)
    return parsed


def parse_command(command: Command, argv: Sequence[str], parsed: Parsed) -> None:
    owner = f'"{PROGRAM} {command.name}"'
    hint = f"{PROGRAM} {command.name} --help"
    table = (*command.options, Option("help", "print this help"))
    positional, _ = _options(table, list(argv), parsed.values, command.stop_at_argument, owner, hint)
    if parsed.values.pop("help", False):
        parsed.wants_help = True
        return
    _arguments(command, positional, parsed.values, owner, hint)


def _command(words: list[str], parsed: Parsed) -> tuple[Command | None, list[str]]:
    """The command that ``words`` start with; two words ("system prune") go before one."""
    if words[0] == "help":
        parsed.wants_help = True
        words = words[1:]
        if not words:
            return None, []
    if len(words) > 1:
        command = find(f"{words[0]} {words[1]}")
        if command is not None:
            return command, words[2:]
    command = find(words[0])
    if command is not None:
        return command, words[1:]
    inner = [other.name for other in COMMANDS if other.name.startswith(words[0] + " ")]
    if inner:
        if len(words) == 1 or words[1] in ("--help", "-h"):
            parsed.wants_help = True
            return None, []
        raise UsageError(f'unknown command "{words[0]} {words[1]}"', hint=f"{PROGRAM} {inner[0]}")
    raise UsageError(f'unknown command "{words[0]}"', hint=_nearest(words[0]))


def _nearest(word: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(word, [command.name for command in COMMANDS if not command.hidden], 1)
    return f"{PROGRAM} {near[0]}" if near else f"{PROGRAM} --help"


def _options(
    table: Sequence[Option], words: list[str], values: dict[str, object], stop_at_argument: bool, owner: str, hint: str
) -> tuple[list[str], bool]:
    """Store the options of ``words`` in ``values``; returns the words that are none."""
    positional: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word == "--":
            positional += words[position:]
            return positional, True
        if word.startswith("--"):
            name, equals, given = word[2:].partition("=")
            option = _by_name(table, name)
            if option is None:
                raise UsageError(f"unknown option --{name} of {owner}", hint=hint)
            if option.kind == "flag":
                values[option.name] = _truth(option, given, owner, hint) if equals else True
                continue
            if not equals:
                if position == len(words):
                    raise UsageError(f"--{option.name} of {owner} wants a value: {option.metavar}", hint=hint)
                given = words[position]
                position += 1
            _store(option, given, values, owner, hint)
        elif word.startswith("-") and word != "-":
            position = _bundle(table, word, words, position, values, owner, hint)
        elif stop_at_argument:
            positional += words[position - 1 :]
            return positional, False
        else:
            positional.append(word)
    return positional, False


def _bundle(
    table: Sequence[Option],
    word: str,
    words: list[str],
    position: int,
    values: dict[str, object],
    owner: str,
    hint: str,
) -> int:
    """``-it``, ``-m64m``, ``-m=64m`` or ``-m 64m``; returns the position after what was used."""
    letters = word[1:]
    while letters:
        letter, letters = letters[0], letters[1:]
        option = _by_letter(table, letter)
        if option is None:
            raise UsageError(f"unknown option -{letter} of {owner}", hint=hint)
        if option.kind == "flag":
            if letters.startswith("="):
                values[option.name] = _truth(option, letters[1:], owner, hint)
                return position
            values[option.name] = True
            continue
        if letters:
            given = letters.removeprefix("=")
        elif position < len(words):
            given = words[position]
            position += 1
        else:
            raise UsageError(f"-{letter} of {owner} wants a value: {option.metavar}", hint=hint)
        _store(option, given, values, owner, hint)
        return position
    return position


def _by_name(table: Sequence[Option], name: str) -> Option | None:
    for option in table:
        if option.name == name:
            return option
    # docker's other spellings
    return _by_name(table, {"net": "network"}[name]) if name == "net" else None


def _by_letter(table: Sequence[Option], letter: str) -> Option | None:
    for option in table:
        if option.short == letter:
            return option
    if letter == "h":
        return _by_name(table, "help")
    return _by_name(table, "version") if letter == "v" else None


def _store(option: Option, given: str, values: dict[str, object], owner: str, hint: str) -> None:
    if option.choices and given not in option.choices:
        wanted = (
            " or ".join((", ".join(option.choices[:-1]), option.choices[-1]))
            if option.choices[1:]
            else option.choices[0]
        )
        raise UsageError(f'--{option.name} of {owner} cannot be "{given}": wanted {wanted}', hint=hint)
    if option.kind == "list":
        known = values.setdefault(option.name, [])
        assert isinstance(known, list)
        known.append(given)
    else:
        values[option.name] = given


def _truth(option: Option, given: str, owner: str, hint: str) -> bool:
    if given in _TRUE:
        return True
    if given in _FALSE:
        return False
    raise UsageError(f'--{option.name} of {owner} cannot be "{given}": wanted true or false', hint=hint)


def _arguments(command: Command, words: list[str], values: dict[str, object], owner: str, hint: str) -> None:
    for argument in command.arguments:
        _argument(argument, words, values, owner, hint)
    if words:
        raise UsageError(f'{owner} has no use for "{words[0]}"', hint=hint)


def _argument(argument: Argument, words: list[str], values: dict[str, object], owner: str, hint: str) -> None:
    if argument.count in ("1", "+") and not words:
        raise UsageError(f"{owner} wants an argument: {argument.name}", hint=hint)
    if argument.count == "1" or (argument.count == "?" and words):
        values[argument.name] = words.pop(0)
    elif argument.count != "?":
        values[argument.name] = list(words)
        words.clear()
