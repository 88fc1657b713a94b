"""Help, pages and completions come from the one definition, and the committed pages are up to date."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from pycontain.commands import completion, help, pages
from pycontain.commands.definition import COMMANDS
from pycontain.runtime.errors import PycontainError

DOCS = os.path.join(os.path.dirname(__file__), "..", "..", "docs")


def test_the_committed_pages_are_what_the_definition_makes() -> None:
    stale = []
    for path, text in pages.pages().items():
        try:
            with open(os.path.join(DOCS, path), encoding="utf-8") as file:
                if file.read() == text:
                    continue
        except FileNotFoundError:
            pass
        stale.append(path)
    assert stale == [], "run: python -m pycontain.commands.pages docs"
    there = {f"{folder}/{name}" for folder in ("man", "commands") for name in os.listdir(os.path.join(DOCS, folder))}
    mine = {name for name in there if name.startswith(("man/pycontain.1", "man/pycontain-", "commands/"))}
    assert {name for name in mine - set(pages.pages()) if not name.startswith("man/pycontain-runtime")} == set()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_names_every_option_and_fits_a_terminal(command: object) -> None:
    from pycontain.commands.model import Command

    assert isinstance(command, Command)
    text = help.command_help(command)
    for option in command.options:
        assert f"--{option.name}" in text
    assert max(len(line) for line in text.splitlines()) <= 112


def test_man_pages_hide_nothing_from_roff() -> None:
    for path, text in pages.pages().items():
        if path.endswith(".1"):
            for line in text.splitlines():
                assert not line.startswith("'"), (path, line)
                assert not line.startswith(".") or line.split()[0] in {
                    ".TH", ".SH", ".SS", ".TP", ".PP", ".RS", ".RE", ".nf", ".fi", ".nh", ".ad",
                }, (path, line)  # fmt: skip


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_groff_reads_the_man_pages_without_a_warning() -> None:
    for path, text in pages.pages().items():
        if path.endswith(".1"):
            done = subprocess.run(["groff", "-man", "-Tutf8", "-ww"], input=text, capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (0, ""), path


def test_bash_completes_commands_options_and_choices(tmp_path: object) -> None:
    script = completion.script("bash") + (
        'ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _pycontain; echo "${COMPREPLY[*]}"; }\n'
        "ask pycontain ru\nask pycontain run --mem\nask pycontain run --pull ''\nask pycontain system pr\n"
        "ask pycontain --root /x lo\n"
    )
    done = subprocess.run(["bash", "-u"], input=script, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "run", "--memory --memory-swap", "missing always never", "prune", "logs load login logout",
    ]  # fmt: skip


@pytest.mark.parametrize(("shell", "check"), [("zsh", ["zsh", "-n"]), ("fish", ["fish", "--no-execute"])])
def test_the_other_shells_can_read_their_scripts(shell: str, check: list[str]) -> None:
    script = completion.script(shell)
    for command in COMMANDS:
        assert command.hidden or command.name.split()[-1] in script
    if shutil.which(shell):
        done = subprocess.run([*check, "/dev/stdin"], input=script, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_an_unknown_shell_is_refused_by_name() -> None:
    with pytest.raises(PycontainError) as caught:
        completion.script("csh")
    assert caught.value.message == 'no completion for the shell "csh": wanted bash, zsh or fish'
