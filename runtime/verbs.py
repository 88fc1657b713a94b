"""``pycontain-runtime``: the commands that are not called for every container (``main`` has those), and help."""

from __future__ import annotations

import posix as os

from pycontain.runtime.errors import KernelError, PycontainError, SpecError, Unsupported
from pycontain.runtime.main import OFTEN, VERSION
from pycontain.runtime.making import Signals, console_of, ended, foreground, preserved, warn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_FORMAT = {"--format": ("format", "value"), "-f": ("format", "value")}
_LIMITS = (
    "--memory", "--memory-reservation", "--memory-swap", "--kernel-memory", "--kernel-memory-tcp", "--cpu-share",
    "--cpu-quota", "--cpu-period", "--cpu-burst", "--cpu-idle", "--cpu-rt-runtime", "--cpu-rt-period", "--cpuset-cpus",
    "--cpuset-mems", "--pids-limit", "--blkio-weight", "--l3-cache-schema", "--mem-bw-schema",
)  # fmt: skip
_IMAGES = {
    "--image-path": ("image_path", "value"),
    "--work-path": ("work_path", "value"),
    "--tcp-established": ("tcp_established", "bool"),
    "--ext-unix-sk": ("ext_unix_sk", "bool"),
    "--shell-job": ("shell_job", "bool"),
    "--file-locks": ("file_locks", "bool"),
    "--manage-cgroups-mode": ("manage_cgroups_mode", "value"),
    "--empty-ns": ("empty_ns", "list"),
    "--auto-dedup": ("auto_dedup", "bool"),
    "--lazy-pages": ("memory that is fetched when it is touched", "no"),
}
COMMANDS: dict[str, tuple[str, str, dict[str, tuple[str, str]]]] = {
    "create": OFTEN["create"],
    "start": OFTEN["start"],
    "state": ("ID", "print the state of a container as JSON", {}),
    "kill": OFTEN["kill"],
    "delete": OFTEN["delete"],
    "run": OFTEN["run"],
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
            "--apparmor": ("apparmor", "value"),
            "--process-label": ("process_label", "value"),
            "--cgroup": ("cgroup", "list"),
            "--ignore-paused": ("ignore_paused", "bool"),
            "--pidfd-socket": ("pidfd_socket", "value"),
        },
    ),
    "list": ("", "list containers", {**_FORMAT, "--quiet": ("quiet", "bool"), "-q": ("quiet", "bool")}),
    "ps": ("ID [PS OPTION...]", "list the processes of a container", dict(_FORMAT)),
    "pause": ("ID", "freeze a container", {}),
    "resume": ("ID", "let a paused container go on", {}),
    "checkpoint": (
        "ID",
        "write the processes of a container to files, and end it",
        {
            **_IMAGES,
            "--parent-path": ("parent_path", "value"),
            "--pre-dump": ("pre_dump", "bool"),
            "--leave-running": ("leave_running", "bool"),
            "--link-remap": ("link_remap", "bool"),
            "--page-server": ("a page server", "no value"),
            "--status-fd": ("a descriptor for the status of lazy pages", "no value"),
        },
    ),
    "restore": (
        "ID",
        "start a container from what checkpoint wrote",
        {
            **_IMAGES,
            "--bundle": ("bundle", "value"),
            "-b": ("bundle", "value"),
            "--detach": ("detach", "bool"),
            "-d": ("detach", "bool"),
            "--pid-file": ("pid_file", "value"),
            "--no-subreaper": ("no_subreaper", "bool"),
            "--console-socket": ("a terminal", "no value"),
            "--no-pivot": ("a root file system that is not pivoted into", "no"),
            "--lsm-profile": ("another AppArmor or SELinux profile", "no value"),
            "--lsm-mount-context": ("another SELinux context of mounts", "no value"),
        },
    ),
    "events": (
        "ID",
        "print statistics of a container every 5 seconds, and when its memory runs out",
        {"--stats": ("stats", "bool"), "--interval": ("interval", "value")},
    ),
    "update": (
        "ID",
        "change the limits of a container",
        {
            "--resources": ("resources", "value"),
            "-r": ("resources", "value"),
            **{option: (option[2:].replace("-", "_"), "value") for option in _LIMITS},
        },
    ),
    "spec": (
        "",
        "write a config.json to start from",
        {"--bundle": ("bundle", "value"), "-b": ("bundle", "value"), "--rootless": ("rootless_example", "bool")},
    ),
    "features": ("", "print what this build can do as JSON", {}),
}


def usage(name: str | None = None) -> int:
    if name is None:
        print("usage: pycontain-runtime [--root DIR] [--log FILE] [--log-format text|json] [--debug]")
        print("       [--cgroup-manager cgroupfs|systemd|disabled] [--rootless true|false|auto] COMMAND ...\n")
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


def _exec(root: str, options: dict[str, Any], words: list[str]) -> int:
    from pycontain.runtime import lifecycle

    process = _exec_process(root, options, words)
    console = console_of(options)
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
        preserve_fds=preserved(options),
        ignore_paused=options.get("ignore_paused", False),
        cgroup=options.get("cgroup"),
        pidfd_socket=options.get("pidfd_socket"),
    )
    warn(running, options)
    if console is not None:
        os.close(console)
    return 0 if signals is None else foreground(running, ours, signals)


def _exec_process(root: str, options: dict[str, Any], words: list[str]) -> dict[str, Any]:
    from pycontain.runtime.jsontext import parse as parse_json
    from pycontain.runtime.paths import read_bounded
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
        from pycontain.runtime.plan.identity import parse_user

        if not options["user"]:
            raise PycontainError("--user: found an empty string, wanted uid[:gid]")
        user = parse_user(options["user"], None, None)
        process["user"] = {**(process.get("user") or {}), "uid": user["uid"], "gid": user["gid"]}
    for text in options.get("gids", ()):
        from pycontain.runtime.plan.identity import parse_user

        gid = parse_user(text, None, None)["uid"]
        process.setdefault("user", {}).setdefault("additionalGids", []).append(gid)
    if "cap" in options:
        from pycontain.runtime.plan.identity import parse_cap

        caps = process.setdefault("capabilities", {})
        names = [parse_cap(text) for text in options["cap"]]
        for kind in ("bounding", "effective", "permitted"):
            caps[kind] = [*(caps.get(kind) or ()), *names]
    if options.get("no_new_privs"):
        process["noNewPrivileges"] = True
    for option, key in (("apparmor", "apparmorProfile"), ("process_label", "selinuxLabel")):
        if option in options:
            process[key] = options[option]
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
            "owner": _user(c["owner"]),
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


def _user(uid: int) -> str:
    """A user's name, or as runc has it where there is none."""
    from pwd import getpwuid

    try:
        return getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"


def _ps(root: str, options: dict[str, Any], words: list[str]) -> int:
    from pycontain.runtime import lifecycle

    form = options.get("format", "table")
    if form in ("json", "table") and lifecycle.in_machine(words[0], root=root):
        return _ps_guest(root, form, words)
    pids = lifecycle.ps(words[0], root=root)
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


def _ps_guest(root: str, form: str, words: list[str]) -> int:
    """A guest has no ps(1) of ours; pids are its own."""
    from pycontain.runtime import lifecycle

    if words[1:]:
        raise Unsupported(f"ps {' '.join(words[1:])}: the processes of a machine are listed without options of ps(1)")
    rows = lifecycle.top(words[0], root=root)
    if form == "json":
        print("[" + ",".join(str(row["pid"]) for row in rows) + "]")
        return 0
    print("UID          PID    PPID     TIME CMD")
    for row in rows:
        minutes, seconds = divmod(row["seconds"], 60)
        time = f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"
        print(f"{row['uid']:<10} {row['pid']:>5} {row['ppid']:>7} {time} {row['command']}")
    return 0


def _pause(root: str, options: dict[str, Any], words: list[str]) -> int:
    from pycontain.runtime import control

    control.pause(words[0], root=root)
    return 0


def _resume(root: str, options: dict[str, Any], words: list[str]) -> int:
    from pycontain.runtime import control

    control.resume(words[0], root=root)
    return 0


def _checkpoint(root: str, options: dict[str, Any], words: list[str]) -> int:
    from pycontain.runtime import checkpoint

    images = options.get("image_path", "checkpoint")
    checkpoint.checkpoint(words[0], images, root=root, work=options.get("work_path"), options=options)
    return 0


def _restore(root: str, options: dict[str, Any], words: list[str]) -> int:
    from pycontain.runtime import checkpoint
    from pycontain.runtime.ending import delete

    signals = None if options.get("detach") else Signals()
    running = checkpoint.restore(
        words[0],
        options.get("bundle", "."),
        options.get("image_path", "checkpoint"),
        root=root,
        work=options.get("work_path"),
        pid_file=options.get("pid_file"),
        manager=options.get("manager"),
        options=options,
    )
    if signals is None:
        return 0
    try:
        status = foreground(running, None, signals)
    except BaseException:
        delete(words[0], root=root, force=True)
        os.waitpid(running.pid, 0)
        raise
    ended(words[0], root)
    return status


def _events(root: str, options: dict[str, Any], words: list[str]) -> int:
    from pycontain.runtime import events
    from pycontain.runtime.jsontext import dump

    def emit(event: dict[str, Any]) -> None:
        print(dump(event), flush=True)

    interval = events.seconds(options.get("interval", "5s"))
    if options.get("stats"):
        emit(events.statistics(words[0], root=root))
        return 0
    from _signal import SIG_DFL, SIGINT, signal

    signal(SIGINT, SIG_DFL)  # the way to end it
    events.watch(words[0], interval, emit, root=root)
    return 0


def _update(root: str, options: dict[str, Any], words: list[str]) -> int:
    from pycontain.runtime import update

    path = options.get("resources")
    limits = {
        name: options[key] for name, (key, _) in COMMANDS["update"][2].items() if key in options and key != "resources"
    }
    if path and limits:
        raise PycontainError(f"update: --resources and {min(limits)} exclude each other")
    resources = update.read_resources(path) if path else update.resources_of(limits)
    update.update(words[0], resources, root=root)
    return 0


def _spec(root: str, options: dict[str, Any], words: list[str]) -> int:
    from pycontain.runtime.example import EXAMPLE, rootless

    example = rootless(os.geteuid(), os.getegid()) if options.get("rootless_example") else EXAMPLE
    path = f"{options.get('bundle', '.')}/config.json"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        raise PycontainError(f"cannot write {path}: it exists", hint=f"rm {path}") from None
    except OSError as error:
        raise KernelError(f"cannot write {path}", error.errno or 0) from None
    with open(fd, "w") as file:
        file.write(pretty(example, "\t") + "\n")
    return 0


def _features(root: str, options: dict[str, Any], words: list[str]) -> int:
    from pycontain.runtime.features import features
    from pycontain.runtime.kernel.host import probe

    print(pretty(features(probe(), VERSION)))
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
