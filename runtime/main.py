"""``pycontain-runtime``: the OCI command, with runc's commands, options and output formats.

A face of ``runtime`` alone. Its parser is this file's own thirty lines: argparse alone costs 14 ms at every start.
"""

from __future__ import annotations

import posix as os
import sys

from pycontain.runtime import errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

PROGRAM = "pycontain-runtime"
VERSION = "0.1.0"
DEFAULT_ROOT = "/run/pycontain/oci"

# option: (key, kind); kinds: bool, value, list; "no" and "no value" are refused by name.
_GLOBAL = {
    "--root": ("root", "value"),
    "--log": ("log", "value"),
    "--log-format": ("log_format", "value"),
    "--debug": ("debug", "bool"),
    "--systemd-cgroup": ("systemd", "bool"),
    "--cgroup-manager": ("cgroup_manager", "value"),
    "--rootless": ("rootless", "auto"),
    "--version": ("version", "bool"),
    "-v": ("version", "bool"),
    "--help": ("help", "bool"),
    "-h": ("help", "bool"),
}
_CREATE = {
    "--bundle": ("bundle", "value"),
    "-b": ("bundle", "value"),
    "--console-socket": ("console_socket", "value"),
    "--pid-file": ("pid_file", "value"),
    "--no-pivot": ("no_pivot", "bool"),
    "--no-new-keyring": ("no_new_keyring", "bool"),
    "--preserve-fds": ("preserve_fds", "value"),
    "--pidfd-socket": ("pidfd_socket", "value"),
    "--no-subreaper": ("no_subreaper", "bool"),  # this and the next: what we do in any case (docs/design/runtime.md)
    "--no-mount-fallback": ("no_mount_fallback", "bool"),
    "--config": ("config", "value"),
}
# What an engine calls for every container: (arguments, text, options). The other verbs are in a module of their own.
OFTEN: dict[str, tuple[str, str, dict[str, tuple[str, str]]]] = {
    "create": ("ID", "make a container from a bundle", _CREATE),
    "run": (
        "ID",
        "create and start a container, and wait for it",
        {**_CREATE, "--detach": ("detach", "bool"), "-d": ("detach", "bool"), "--keep": ("keep", "bool")},
    ),
    "start": ("ID", "run the program of a created container", {}),
    "kill": (
        "ID [SIGNAL]", "send a signal (SIGTERM) to a container", {"--all": ("all", "bool"), "-a": ("all", "bool")}
    ),
    "delete": ("ID", "remove a container", {"--force": ("force", "bool"), "-f": ("force", "bool")}),
}  # fmt: skip


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command of ``argv`` (default: the process's arguments) and end with its exit status."""
    status = run(sys.argv[1:] if argv is None else argv)
    try:
        sys.stdout.flush()
    except OSError:
        status = status or 1
    os._exit(status)  # nothing of ours waits for the interpreter's end, which takes 2 ms


def run(argv: list[str]) -> int:
    """Exit status of a command line; errors are printed, and logged where --log says."""
    options: dict[str, Any] = {}
    try:
        options, rest = parse(argv, _GLOBAL, PROGRAM)
        if options.get("version"):
            print(f"pycontain-runtime version {VERSION}\nspec: 1.3.0\npython: {sys.version.split()[0]}")
            return 0
        name, *rest = rest or ("help",)
        if options.get("help"):
            name = "help"
        if name not in ("start", "delete"):  # nothing to undo: they may end wherever they are
            __import__("_signal")  # has SIGINT raise KeyboardInterrupt, if nothing has yet (init/embedded.c)
        if name in OFTEN:
            arguments, _, table = OFTEN[name]
            verb = globals()[f"_{name}"]
        else:
            from pycontain.runtime import verbs

            if name == "help":
                return verbs.usage()
            if name not in verbs.COMMANDS:
                raise errors.PycontainError(f"unknown command {name!r}", hint="pycontain-runtime --help")
            arguments, _, table = verbs.COMMANDS[name]
            verb = getattr(verbs, f"_{name}")
        table = {**table, "--help": ("help", "bool"), "-h": ("help", "bool")}
        mine: dict[str, Any] = {}
        words: list[str] = []
        while rest:  # options may stand behind the id too, as runc takes them; not where a command line begins there
            more, rest = parse(rest, table, name)
            mine.update(more)
            count = len(rest) if "..." in arguments else 1
            words, rest = words + rest[:count], rest[count:]
        if mine.get("help"):
            from pycontain.runtime.verbs import usage

            return usage(name)
        needed = arguments.split(" [")[0].split()
        if len(words) < len(needed) or len(words) > len(needed) and "[" not in arguments:
            raise errors.PycontainError(
                f"{name} takes {arguments or 'no arguments'}: found {len(words)} arguments",
                hint=f"pycontain-runtime {name} --help",
            )
        for key in ("rootless", "log", "log_format"):
            mine[key] = options.get(key)
        mine["manager"] = _manager(options) if options.get("systemd") or "cgroup_manager" in options else None
        result: int = verb(options.get("root") or state_root(), mine, words)
        return result
    except errors.PycontainError as error:
        report(error, options)
        return error.exit_code
    except BrokenPipeError:
        return 1
    except Exception as error:
        if options.get("debug"):
            raise
        report(errors.PycontainError(f"bug: {type(error).__name__}: {error}", hint="--debug shows where"), options)
        return 1


def state_root() -> str:
    """Where the state of containers is where --root does not say it. Raises PycontainError."""
    from pycontain.runtime.kernel.host import privileged

    if privileged():
        return DEFAULT_ROOT
    from pycontain.runtime import rootless

    return rootless.state_root(DEFAULT_ROOT)


def parse(argv: list[str], table: dict[str, tuple[str, str]], where: str) -> tuple[dict[str, Any], list[str]]:
    """``(options, rest)``: options up to the first word that is none; ``--x v``, ``--x=v`` and Go's ``-x v``."""
    found: dict[str, Any] = {}
    i = 0
    while i < len(argv) and argv[i].startswith("-") and argv[i] != "-":
        if argv[i] == "--":
            i += 1
            break
        name, equals, value = argv[i].partition("=")
        if name not in table and "-" + name in table:
            name = "-" + name
        if name not in table:
            raise errors.PycontainError(
                f"{where}: unknown option {name}",
                hint=f"{'' if where == PROGRAM else PROGRAM + ' '}{where} --help",
            )
        key, kind = table[name]
        i += 1
        if kind in ("bool", "no"):
            on = not equals or value.lower() in ("true", "1", "t")
            if kind == "no" and on:
                raise errors.Unsupported(f"{where} {name}: {key} is not built yet")
            found[key] = on
            continue
        if not equals:
            if i == len(argv):
                raise errors.PycontainError(f"{where}: {name} wants a value")
            value = argv[i]
            i += 1
        if kind == "no value":
            raise errors.Unsupported(f"{where} {name}: {key} is not built yet")
        if kind == "auto" and value not in ("auto", "true", "false"):
            raise errors.PycontainError(f"{name}: found {value!r}, wanted auto, true or false")
        if kind == "list":
            found.setdefault(key, []).append(value)
        else:
            found[key] = value
    return found, argv[i:]


def _manager(options: dict[str, Any]) -> str | None:
    """Who makes cgroups: None is this runtime. Containers remember it: it is for those that are made now."""
    from pycontain.runtime.kernel.managers import NAMES

    name = options.get("cgroup_manager") or "systemd"
    if name not in NAMES:
        raise errors.PycontainError(f"--cgroup-manager: found {name!r}, wanted one of {', '.join(NAMES)}")
    if options.get("systemd") and name != "systemd":
        raise errors.PycontainError(f"found --systemd-cgroup and --cgroup-manager {name}: they contradict each other")
    return None if name == "cgroupfs" else name


def report(error: errors.PycontainError, options: dict[str, Any]) -> None:
    """On standard error, for people; as runc's last log line where --log says, for engines."""
    text = f"pycontain-runtime: {error.message}\n"
    if error.hint:
        text += f"\nhint: {error.hint}\n"
    os.write(2, text.encode("utf-8", "surrogateescape"))
    if options.get("log"):
        log("error", error.message, options)


def log(level: str, message: str, options: dict[str, Any]) -> None:
    from time import gmtime, strftime

    from pycontain.runtime.jsontext import dump

    path, now = options["log"], strftime("%Y-%m-%dT%H:%M:%SZ", gmtime())
    if options.get("log_format") == "json":
        line = dump({"level": level, "msg": message, "time": now})
    else:
        line = f'time="{now}" level={level} msg={dump(message)}'
    try:
        with open(path, "ab", buffering=0) as file:
            file.write(line.encode() + b"\n")
    except OSError as failure:
        os.write(2, f"pycontain-runtime: cannot write the log {path}: {failure.strerror}\n".encode())


def _create(root: str, options: dict[str, Any], words: list[str]) -> int:
    from pycontain.runtime.making import create

    return create(root, options, words)


def _run(root: str, options: dict[str, Any], words: list[str]) -> int:
    from pycontain.runtime.making import run

    return run(root, options, words)


def _start(root: str, options: dict[str, Any], words: list[str]) -> int:
    from pycontain.runtime.starting import start

    if b"NOTIFY_SOCKET" not in os.environ:
        start(words[0], root=root)
        return 0
    from pycontain.runtime.handover import readiness
    from pycontain.runtime.lifecycle import state

    pid = state(words[0], root=root).get("pid", 0)
    waiting = readiness(f"{root}/{words[0]}")
    start(words[0], root=root)
    if waiting is not None:
        waiting.pass_on(pid)
    return 0


def _kill(root: str, options: dict[str, Any], words: list[str]) -> int:
    from pycontain.runtime import control
    from pycontain.runtime.plan.identity import parse_signal

    if len(words) > 2:
        raise errors.PycontainError(
            f"kill takes ID [SIGNAL]: found {len(words)} arguments", hint="pycontain-runtime kill --help"
        )
    number = parse_signal(words[1] if len(words) > 1 else "SIGTERM")
    control.kill(words[0], number, root=root, all=options.get("all", False))
    return 0


def _delete(root: str, options: dict[str, Any], words: list[str]) -> int:
    from pycontain.runtime.ending import delete

    delete(words[0], root=root, force=options.get("force", False))
    return 0


if __name__ == "__main__":
    main()
