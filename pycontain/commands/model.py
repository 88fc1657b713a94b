"""What a command line is made of: options, arguments and commands as plain data, without behaviour.

Parser, help, completions, man pages and Markdown pages are all generated from these objects. Nothing here
imports anything, because every command pays for it.
"""

from __future__ import annotations


class Option:
    """One option. ``kind`` is "flag" (true or false), "value" (the last one counts) or "list" (repeatable).

    ``name`` is the long spelling without dashes and the key of the parsed value; ``complete`` says what a shell offers
    as the value: "file", "directory", "container", "image", "level", "measure", "command" or "" (nothing), unless
    ``choices`` are given.
    """

    __slots__ = ("choices", "complete", "default", "help", "hidden", "kind", "metavar", "name", "short")

    def __init__(
        self,
        name: str,
        help: str,
        *,
        short: str = "",
        kind: str = "flag",
        metavar: str = "",
        default: str = "",
        choices: tuple[str, ...] = (),
        complete: str = "",
        hidden: bool = False,
    ) -> None:
        self.name = name
        self.short = short
        self.kind = kind
        self.metavar = metavar
        self.help = help
        self.default = default
        self.choices = choices
        self.complete = complete
        self.hidden = hidden

    def spelling(self) -> str:
        """How help and pages show it: ``-m, --memory SIZE``."""
        text = f"-{self.short}, --{self.name}" if self.short else f"--{self.name}"
        return f"{text} {self.metavar}" if self.metavar else text


class Argument:
    """One positional argument; ``count`` is "1", "?", "*", "+" or "rest" (all that follows, options included)."""

    __slots__ = ("complete", "count", "help", "name")

    def __init__(self, name: str, help: str, *, count: str = "1", complete: str = "") -> None:
        self.name = name
        self.help = help
        self.count = count
        self.complete = complete

    def spelling(self) -> str:
        return {
            "1": self.name,
            "?": f"[{self.name}]",
            "*": f"[{self.name}...]",
            "+": f"{self.name} [{self.name}...]",
            "rest": f"[{self.name}...]",
        }[self.count]


class Command:
    """One verb. ``handler`` is "module:function" below ``pycontain.commands``, imported only when it is called.

    ``stop_at_argument`` ends the options at the first positional argument, so that those of the container's own
    command are left alone. ``examples`` are (what it does, command line) pairs, shown on the pages.
    """

    __slots__ = (
        "aliases",
        "arguments",
        "description",
        "examples",
        "group",
        "handler",
        "hidden",
        "name",
        "options",
        "stop_at_argument",
        "summary",
    )

    def __init__(
        self,
        name: str,
        summary: str,
        handler: str,
        *,
        group: str,
        arguments: tuple[Argument, ...] = (),
        options: tuple[Option, ...] = (),
        description: str = "",
        examples: tuple[tuple[str, str], ...] = (),
        stop_at_argument: bool = False,
        aliases: tuple[str, ...] = (),
        hidden: bool = False,
    ) -> None:
        self.name = name
        self.summary = summary
        self.handler = handler
        self.group = group
        self.arguments = arguments
        self.options = options
        self.description = description
        self.examples = examples
        self.stop_at_argument = stop_at_argument
        self.aliases = aliases
        self.hidden = hidden

    def usage(self) -> str:
        """``pycontain run [OPTIONS] IMAGE [ARG...]``."""
        parts = ["pycontain", self.name]
        if self.options:
            parts.append("[OPTIONS]")
        parts += [argument.spelling() for argument in self.arguments]
        return " ".join(parts)
