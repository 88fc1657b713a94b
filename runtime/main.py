"""``pycontain-runtime``: the OCI command, with runc's commands, options and output formats.

A face of ``runtime`` alone. Its parser is this file's own thirty lines: argparse alone costs 14 ms at every start.
"""

from __future__ import annotations

import posix as os
import sys

from pycontain.runtime.errors import KernelError, PycontainError, SpecError, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

VERSION = "0.1.0"
DEFAULT_ROOT = "/run/pycontain/oci"

# option: (key, kind); kinds: bool, value, list; "no" and "no value" are refused by name.
_GLOBAL = {
    "--root": ("root", "value"),
    "--log": ("log", "value"),
    "--log-format": ("log_format", "value"),
    "--debug": ("debug", "bool"),
    "--systemd-cgroup": ("the systemd cgroup driver", "no"),
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
}
_FORMAT = {"--format": ("format", "value"), "-f": ("format", "value")}
COMMANDS: dict[str, tuple[str, str, dict[str, tuple[str, str]]]] = {
    "create": ("ID", "make a container from a bundle", _CREATE),
    "start": ("ID", "run the program of a created container", {}),
    "state": ("ID", "print the state of a container as JSON", {}),
    "kill": (
        "ID [SIGNAL]",
        "send a signal (SIGTERM) to a container",
        {"--all": ("all", "bool"), "-a": ("all", "bool")},
    ),
    "delete": ("ID", "remove a container", {"--force": ("force", "bool"), "-f": ("force", "bool")}),
    "run": (
        "ID",
        "create and start a container, and wait for it",
        {**_CREATE, "--detach": ("detach", "bool"), "-d": ("detach", "bool"), "--keep": ("keep", "bool")},
    ),
    "exec": (
        "ID [COMMAND [ARG...]]",
        "run another program in a container",
        {
            "--console-socket": ("console_socket", "value"),
            "--cwd": ("cwd", "value"),
            "--env": ("env", "list"),
            "-e": ("env", "list"),
            "--tty": ("tty", "bool"),
            "-t": ("tty", "bool"),
            "--user": ("user", "value"),
            "-u": ("user", "value"),
            "--additional-gids": ("gids", "list"),
            "-g": ("gids", "list"),
            "--process": ("process", "value"),
            "-p": ("process", "value"),
            "--detach": ("detach", "bool"),
            "-d": ("detach", "bool"),
            "--pid-file": ("pid_file", "value"),
            "--cap": ("cap", "list"),
            "-c": ("cap", "list"),
            "--no-new-privs": ("no_new_privs", "bool"),
            "--preserve-fds": ("preserve_fds", "value"),
            "--apparmor": ("an AppArmor profile", "no value"),
            "--process-label": ("a process label", "no value"),
            "--cgroup": ("a cgroup of its own", "no value"),
        },
    ),
    "list": ("", "list containers", {**_FORMAT, "--quiet": ("quiet", "bool"), "-q": ("quiet", "bool")}),
    "ps": ("ID [PS OPTION...]", "list the processes of a container", dict(_FORMAT)),
    "pause": ("ID", "freeze a container", {}),
    "resume": ("ID", "let a paused container go on", {}),
    "spec": (
        "",
        "write a config.json to start from",
        {"--bundle": ("bundle", "value"), "-b": ("bundle", "value"), "--rootless": ("a rootless configuration", "no")},
    ),
    "features": ("", "print what this build can do as JSON", {}),
}


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
        options, rest = parse(argv, _GLOBAL, "pycontain-runtime")
        if options.get("version"):
            print(f"pycontain-runtime version {VERSION}\nspec: 1.3.0\npython: {sys.version.split()[0]}")
            return 0
        if options.get("help") or not rest:
            return usage()
        name, *rest = rest
        if name == "help":
            return usage()
        if name not in COMMANDS:
            raise PycontainError(f"unknown command {name!r}", hint="pycontain-runtime --help")
        arguments, table = COMMANDS[name][0], COMMANDS[name][2]
        mine, words = parse(rest, {**table, "--help": ("help", "bool"), "-h": ("help", "bool")}, name)
        if mine.get("help"):
            return usage(name)
        needed = arguments.split(" [")[0].split()
        if len(words) < len(needed) or len(words) > len(needed) and "[" not in arguments:
            raise PycontainError(
                f"{name} takes {arguments or 'no arguments'}: found {len(words)} arguments",
                hint=f"pycontain-runtime {name} --help",
            )
        result: int = globals()[f"_{name}"](options.get("root", DEFAULT_ROOT), mine, words)
        return result
    except PycontainError as error:
        report(error, options)
        return error.exit_code
    except BrokenPipeError:
        return 1
    except Exception as error:
        if options.get("debug"):
            raise
        report(PycontainError(f"bug: {type(error).__name__}: {error}", hint="--debug shows where"), options)
        return 1


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
            raise PycontainError(
                f"{where}: unknown option {name}",
                hint=f"pycontain-runtime {where if where in COMMANDS else ''} --help".replace("  ", " "),
            )
        key, kind = table[name]
        i += 1
        if kind in ("bool", "no"):
            on = not equals or value.lower() in ("true", "1", "t")
            if kind == "no" and on:
                raise Unsupported(f"{where} {name}: {key} is not built yet")
            found[key] = on
            continue
        if not equals:
            if i == len(argv):
                raise PycontainError(f"{where}: {name} wants a value")
            value = argv[i]
            i += 1
        if kind == "no value":
            raise Unsupported(f"{where} {name}: {key} is not built yet")
        if kind == "auto" and value not in ("auto", "false"):
            raise Unsupported(f"{name} {value}: rootless containers are not built yet")
        if kind == "list":
            found.setdefault(key, []).append(value)
        else:
            found[key] = value
    return found, argv[i:]


def usage(name: str | None = None) -> int:
    if name is None:
        print("usage: pycontain-runtime [--root DIR] [--log FILE] [--log-format text|json] [--debug] COMMAND ...\n")
        for command, (arguments, text, _) in COMMANDS.items():
            print(f"  {command + ' ' + arguments:<28} {text}")
    else:
        arguments, text, table = COMMANDS[name]
        print(f"usage: pycontain-runtime {name} [OPTION...] {arguments}\n\n{text}\n")
        for option, (key, kind) in table.items():
            takes = {"bool": "", "no": "  (not built yet)", "no value": " VALUE  (not built yet)"}.get(
                kind, " " + key.upper().replace("_", "-")
            )
            print(f"  {option}{takes}")
    return 0


def report(error: PycontainError, options: dict[str, Any]) -> None:
    """On standard error, for people; as runc's last log line where --log says, for engines."""
    text = f"pycontain-runtime: {error.message}\n"
    if error.hint:
        text += f"\nhint: {error.hint}\n"
    os.write(2, text.encode("utf-8", "surrogateescape"))
    path = options.get("log")
    if not path:
        return
    from time import gmtime, strftime

    from pycontain.runtime.jsontext import dump

    now = strftime("%Y-%m-%dT%H:%M:%SZ", gmtime())
    if options.get("log_format") == "json":
        line = dump({"level": "error", "msg": error.message, "time": now})
    else:
        line = f'time="{now}" level=error msg={dump(error.message)}'
    try:
        with open(path, "ab", buffering=0) as file:
            file.write(line.encode() + b"\n")
    except OSError as failure:
        os.write(2, f"pycontain-runtime: cannot write the log {path}: {failure.strerror}\n".encode())


def _number(options: dict[str, Any], key: str, default: int = 0) -> int:
    text = options.get(key)
    if text is None:
        return default
    if not text.isdigit() or len(text) > 6:
        raise PycontainError(f"--{key.replace('_', '-')}: found {text!r}, wanted a number")
    return int(text)


def _create(root: str, options: dict[str, Any], words: list[str]) -> int:
    from pycontain.runtime import lifecycle

    console = _console(options)
    bundle = options.get("bundle", ".")
    _warn(lifecycle.create(words[0], bundle, root=root, console=console, **_create_options(options)))
    return 0


def _warn(running: Any) -> None:
    """What the specification wants logged and not refused (config.md: capabilities that this kernel does not have)."""
    for warning in running.process.plan.warnings:
        os.write(2, f"pycontain-runtime: warning: {warning}\n".encode())


def _create_options(options: dict[str, Any]) -> dict[str, Any]:
    return {
        "pid_file": options.get("pid_file"),
        "no_pivot": options.get("no_pivot", False),
        "no_new_keyring": options.get("no_new_keyring", False),
        "preserve_fds": _preserved(options),
    }


def _preserved(options: dict[str, Any]) -> int:
    count = _number(options, "preserve_fds")
    for fd in range(3, 3 + count):
        try:
            os.set_inheritable(fd, True)
        except OSError as error:
            raise KernelError(f"--preserve-fds {count}: descriptor {fd} is not open", error.errno or 0) from None
    return count


def _console(options: dict[str, Any]) -> int | None:
    if "console_socket" not in options:
        return None
    from pycontain.runtime.terminal import connect

    return connect(options["console_socket"])


def _run(root: str, options: dict[str, Any], words: list[str]) -> int:
    from pycontain.runtime import lifecycle
    from pycontain.runtime.state import check_id

    id, bundle = check_id(words[0]), options.get("bundle", ".")
    settings = _create_options(options)
    console = _console(options)
    ours = None
    if console is None and not options.get("detach") and _wants_terminal(bundle):
        from pycontain.runtime import terminal

        ours, console = terminal.pair()
        settings["console_size"] = terminal.size(0)
    signals = Signals() if not options.get("detach") else None
    running = lifecycle.create(id, bundle, root=root, console=console, listen=False, **settings)
    _warn(running)
    try:
        if console is not None:
            os.close(console)
        running.start()
        if signals is None:
            return 0
        status = _foreground(running, ours, signals)
    except BaseException:
        lifecycle.delete(id, root=root, force=True)
        os.waitpid(running.pid, 0)
        raise
    if not options.get("keep"):
        lifecycle.delete(id, root=root)
    return status


def _wants_terminal(bundle: str) -> bool:
    from pycontain.runtime.jsontext import parse as parse_json
    from pycontain.runtime.lifecycle import read_config

    config = parse_json(read_config(bundle), f"{bundle}/config.json")
    process = config.get("process") if isinstance(config, dict) else None
    return isinstance(process, dict) and process.get("terminal") is True


class Signals:
    """Signals that we get, kept until there is a process to pass them on to."""

    def __init__(self) -> None:
        from _signal import SIGCHLD, SIGKILL, SIGSTOP, SIGURG, SIGWINCH, signal

        self.pid = 0
        self.kept: list[int] = []
        for number in range(1, 32):
            if number not in (SIGCHLD, SIGKILL, SIGSTOP, SIGURG, SIGWINCH):
                signal(number, self._forward)

    def _forward(self, number: int, _: object) -> None:
        if not self.pid:
            self.kept.append(number)
            return
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            pass  # gone, though not reaped by us yet: its status is on the way

    def to(self, pid: int) -> None:
        self.pid = pid
        for number in self.kept:
            self._forward(number, None)


def _foreground(running: Any, ours: int | None, signals: Signals) -> int:
    """Wait for the process; signals go to it, its terminal to ours."""
    signals.to(running.pid)
    if ours is not None:
        from pycontain.runtime import terminal

        master = terminal.receive(ours)
        terminal.relay(master, running.pid)
    status: int = running.wait()
    return status


def _start(root: str, options: dict[str, Any], words: list[str]) -> int:
    from pycontain.runtime import lifecycle

    lifecycle.start(words[0], root=root)
    return 0


def _state(root: str, options: dict[str, Any], words: list[str]) -> int:
    from pycontain.runtime.state import Container

    with Container.open(root, words[0]) as container:
        state = container.oci()
        fields = container.fields
        state = {
            "pid": 0,
            **state,
            "rootfs": fields.get("rootfs", ""),
            "created": fields.get("created", ""),
            "owner": "",
        }
    print(pretty(state))
    return 0


def _kill(root: str, options: dict[str, Any], words: list[str]) -> int:
    from pycontain.runtime import lifecycle
    from pycontain.runtime.plan.identity import parse_signal

    if len(words) > 2:
        raise PycontainError(
            f"kill takes ID [SIGNAL]: found {len(words)} arguments", hint="pycontain-runtime kill --help"
        )
    number = parse_signal(words[1] if len(words) > 1 else "SIGTERM")
    lifecycle.kill(words[0], number, root=root, all=options.get("all", False))
    return 0


def _delete(root: str, options: dict[str, Any], words: list[str]) -> int:
    from pycontain.runtime import lifecycle

    lifecycle.delete(words[0], root=root, force=options.get("force", False))
    return 0


def _exec(root: str, options: dict[str, Any], words: list[str]) -> int:
    from pycontain.runtime import lifecycle

    process = _exec_process(root, options, words)
    console = _console(options)
    ours = None
    if process.get("terminal") and console is None:
        if options.get("detach"):
            raise PycontainError("exec --detach --tty wants --console-socket: nobody else would hold the terminal")
        from pycontain.runtime import terminal

        ours, console = terminal.pair()
        process.setdefault("consoleSize", terminal.size(0) or {"height": 0, "width": 0})
    signals = Signals() if not options.get("detach") else None
    running = lifecycle.exec(
        words[0],
        process,
        root=root,
        console=console,
        pid_file=options.get("pid_file"),
        preserve_fds=_preserved(options),
    )
    if console is not None:
        os.close(console)
    return 0 if signals is None else _foreground(running, ours, signals)


def _exec_process(root: str, options: dict[str, Any], words: list[str]) -> dict[str, Any]:
    from pycontain.runtime.jsontext import parse as parse_json
    from pycontain.runtime.plan.identity import parse_cap, parse_user
    from pycontain.runtime.spec import read_bounded
    from pycontain.runtime.state import Container

    if "process" in options:
        path = options["process"]
        process: dict[str, Any] = parse_json(read_bounded(path), path)
    else:
        if len(words) < 2:
            raise PycontainError("exec wants a COMMAND, or --process FILE", hint="pycontain-runtime exec --help")
        with Container.open(root, words[0]) as container:
            path = f"{container.directory}/config.json"
        process = parse_json(read_bounded(path), path).get("process") or {}
        process["terminal"] = False
        process["args"] = words[1:]
    if not isinstance(process, dict):
        raise SpecError("$", "found no object, wanted a process")
    if "cwd" in options:
        process["cwd"] = options["cwd"]
    process["env"] = [*(process.get("env") or ()), *options.get("env", ())]
    if options.get("tty"):
        process["terminal"] = True
    if "user" in options:
        if not options["user"]:
            raise PycontainError("--user: found an empty string, wanted uid[:gid]")
        user = parse_user(options["user"], None, None)
        process["user"] = {**(process.get("user") or {}), "uid": user["uid"], "gid": user["gid"]}
    for text in options.get("gids", ()):
        gid = parse_user(text, None, None)["uid"]
        process.setdefault("user", {}).setdefault("additionalGids", []).append(gid)
    if "cap" in options:
        caps = process.setdefault("capabilities", {})
        names = [parse_cap(text) for text in options["cap"]]
        for kind in ("bounding", "effective", "permitted"):
            caps[kind] = [*(caps.get(kind) or ()), *names]
    if options.get("no_new_privs"):
        process["noNewPrivileges"] = True
    return process


def _list(root: str, options: dict[str, Any], words: list[str]) -> int:
    from pycontain.runtime import lifecycle

    found = lifecycle.containers(root)
    form = options.get("format", "table")
    rows = [
        {
            "ociVersion": c.get("ociVersion", ""),
            "id": c["id"],
            "pid": c["pid"],
            "status": c["status"],
            "bundle": c.get("bundle", ""),
            "rootfs": c.get("rootfs", ""),
            "created": c.get("created", ""),
            "owner": "root",
        }
        for c in found
    ]
    if options.get("quiet"):
        for row in rows:
            print(row["id"])
    elif form == "json":
        from pycontain.runtime.jsontext import dump

        print(dump(rows))
    elif form == "table":
        keys = ("id", "pid", "status", "bundle", "created", "owner")
        lines = [[k.upper() for k in keys]] + [[str(row[k]) for k in keys] for row in rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(keys))]
        for line in lines:
            print("   ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    else:
        raise PycontainError(f"--format: found {form!r}, wanted table or json")
    return 0


def _ps(root: str, options: dict[str, Any], words: list[str]) -> int:
    from pycontain.runtime import lifecycle

    pids = lifecycle.ps(words[0], root=root)
    form = options.get("format", "table")
    if form == "json":
        print("[" + ",".join(map(str, pids)) + "]")
        return 0
    if form != "table":
        raise PycontainError(f"--format: found {form!r}, wanted table or json")
    import subprocess

    arguments = words[1:] or ["-ef"]
    try:
        done = subprocess.run(["ps", *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", "") or str(error)
        raise PycontainError(f"cannot run ps {' '.join(arguments)}: {detail.strip().splitlines()[0]}") from None
    head, *lines = done.stdout.splitlines()
    try:
        column = head.split().index("PID")
    except ValueError:
        raise PycontainError(f"cannot read ps {' '.join(arguments)}: found no PID column in {head!r}") from None
    print(head)
    for line in lines:
        if int(line.split()[column]) in pids:
            print(line)
    return 0


def _pause(root: str, options: dict[str, Any], words: list[str]) -> int:
    from pycontain.runtime import lifecycle

    lifecycle.pause(words[0], root=root)
    return 0


def _resume(root: str, options: dict[str, Any], words: list[str]) -> int:
    from pycontain.runtime import lifecycle

    lifecycle.resume(words[0], root=root)
    return 0


def _spec(root: str, options: dict[str, Any], words: list[str]) -> int:
    from pycontain.runtime.example import EXAMPLE

    path = f"{options.get('bundle', '.')}/config.json"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        raise PycontainError(f"cannot write {path}: it exists", hint=f"rm {path}") from None
    except OSError as error:
        raise KernelError(f"cannot write {path}", error.errno or 0) from None
    with open(fd, "w") as file:
        file.write(pretty(EXAMPLE, "\t") + "\n")
    return 0


def _features(root: str, options: dict[str, Any], words: list[str]) -> int:
    from pycontain.runtime.example import features

    print(pretty(features()))
    return 0


def pretty(value: Any, indent: str = "  ", level: int = 0) -> str:
    """Indented JSON text."""
    from pycontain.runtime.jsontext import dump

    if not value or not isinstance(value, (dict, list)):
        return dump(value)
    inner, outer = "\n" + indent * (level + 1), "\n" + indent * level
    if isinstance(value, dict):
        items = [f"{dump(k)}: {pretty(v, indent, level + 1)}" for k, v in value.items()]
        return "{" + inner + ("," + inner).join(items) + outer + "}"
    return "[" + inner + ("," + inner).join(pretty(v, indent, level + 1) for v in value) + outer + "]"


if __name__ == "__main__":
    main()
