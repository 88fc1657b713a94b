"""The command line is read with docker's habits, and every wrong one has its own text."""

from __future__ import annotations

from typing import Any

import pytest

from pycontain.commands.definition import COMMANDS, GLOBAL_OPTIONS
from pycontain.commands.parser import UsageError, parse


def values(*argv: str) -> dict[str, Any]:
    parsed = parse(argv)
    assert not parsed.wants_help
    return parsed.values


def test_short_flags_bundle_and_the_last_may_take_a_value() -> None:
    assert values("run", "-itm64m", "alpine") == {
        "interactive": True, "tty": True, "memory": "64m", "IMAGE": "alpine", "ARG": [],
    }  # fmt: skip


@pytest.mark.parametrize("words", [["-m", "64m"], ["-m64m"], ["-m=64m"], ["--memory", "64m"], ["--memory=64m"]])
def test_a_value_has_five_spellings(words: list[str]) -> None:
    assert values("run", *words, "alpine")["memory"] == "64m"


def test_options_end_at_the_image_so_that_the_containers_own_are_left_alone() -> None:
    found = values("run", "--rm", "alpine", "ls", "-l", "--rm=false", "--", "-m")
    assert found == {"rm": True, "IMAGE": "alpine", "ARG": ["ls", "-l", "--rm=false", "--", "-m"]}


def test_options_may_follow_arguments_where_no_command_of_a_container_follows() -> None:
    assert values("rm", "web", "-f", "db") == {"force": True, "CONTAINER": ["web", "db"]}


def test_two_dashes_end_the_options() -> None:
    assert values("rm", "--", "-f") == {"CONTAINER": ["-f"]}


def test_a_value_may_look_like_an_option() -> None:
    assert values("run", "-e", "-x", "--entrypoint", "--help", "alpine")["env"] == ["-x"]


def test_lists_collect_and_values_keep_the_last() -> None:
    found = values("run", "-e", "A=1", "--name", "a", "--env=B=2", "--name=b", "alpine")
    assert (found["env"], found["name"]) == (["A=1", "B=2"], "b")


@pytest.mark.parametrize(
    ("word", "meaning"), [("--rm", True), ("--rm=true", True), ("--rm=0", False), ("-i=false", False)]
)
def test_flags_can_be_denied(word: str, meaning: bool) -> None:
    name = "rm" if "rm" in word else "interactive"
    assert values("run", word, "alpine")[name] is meaning


def test_h_is_the_host_name_of_run_and_help_elsewhere() -> None:
    assert values("run", "-h", "web", "alpine")["hostname"] == "web"
    assert parse(["ps", "-h"]).wants_help


def test_net_is_dockers_old_spelling_of_network() -> None:
    assert values("run", "--net", "none", "alpine")["network"] == "none"


def test_global_options_stand_before_the_command() -> None:
    parsed = parse(["--root", "/x", "ps", "-a"])
    assert parsed.command is not None
    assert (parsed.global_values, parsed.command.name, parsed.values) == ({"root": "/x"}, "ps", {"all": True})


@pytest.mark.parametrize(
    "words", [["help", "run"], ["run", "--help"], ["run", "--rm", "--help", "alpine"], ["--help", "run"]]
)
def test_help_is_asked_for_in_four_ways(words: list[str]) -> None:
    parsed = parse(words)
    assert parsed.wants_help
    assert parsed.command is not None
    assert parsed.command.name == "run"


def test_two_words_make_one_command() -> None:
    parsed = parse(["system", "prune", "-f"])
    assert parsed.command is not None
    assert (parsed.command.name, parsed.values) == ("system prune", {"force": True})


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["rn"], 'unknown command "rn"', "pycontain run"),
        (["zzzzz"], 'unknown command "zzzzz"', "pycontain --help"),
        (["system", "x"], 'unknown command "system x"', "pycontain system prune"),
        (["--frob", "ps"], 'unknown option --frob of "pycontain"', "pycontain --help"),
        (["run", "--frob"], 'unknown option --frob of "pycontain run"', "pycontain run --help"),
        (["run", "--mem", "1g", "x"], 'unknown option --mem of "pycontain run"', "pycontain run --help"),
        (["run", "-iX", "x"], 'unknown option -X of "pycontain run"', "pycontain run --help"),
        (["run", "--memory"], '--memory of "pycontain run" wants a value: SIZE', "pycontain run --help"),
        (["run", "-m"], '-m of "pycontain run" wants a value: SIZE', "pycontain run --help"),
        (["run"], '"pycontain run" wants an argument: IMAGE', "pycontain run --help"),
        (["rm"], '"pycontain rm" wants an argument: CONTAINER', "pycontain rm --help"),
        (["ps", "x"], '"pycontain ps" has no use for "x"', "pycontain ps --help"),
        (
            ["run", "--rm=maybe", "x"],
            '--rm of "pycontain run" cannot be "maybe": wanted true or false',
            "pycontain run --help",
        ),
        (
            ["run", "--pull", "often", "x"],
            '--pull of "pycontain run" cannot be "often": wanted missing, always or never',
            "pycontain run --help",
        ),
        (["run", "--pid", "x", "x"], '--pid of "pycontain run" cannot be "x": wanted host', "pycontain run --help"),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(words: list[str], message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(words)
    assert (caught.value.message, caught.value.hint, caught.value.exit_code) == (message, hint, 125)


def test_the_definition_contradicts_itself_nowhere() -> None:
    names = [command.name for command in COMMANDS]
    assert len(names) == len(set(names))
    for table in (GLOBAL_OPTIONS, *(command.options for command in COMMANDS)):
        spellings = [option.name for option in table] + [option.short for option in table if option.short]
        assert len(spellings) == len(set(spellings))
        for option in table:
            assert (option.metavar != "") == (option.kind != "flag"), option.name
            assert option.help[0].islower() or not option.help[0].isalpha(), option.name
            assert not option.help.endswith("."), option.name
    for command in COMMANDS:
        assert command.hidden or command.examples, command.name


def test_every_handler_exists() -> None:
    from importlib import import_module

    for command in COMMANDS:
        module, _, function = command.handler.partition(":")
        assert callable(getattr(import_module(f"pycontain.commands.{module}"), function)), command.name
