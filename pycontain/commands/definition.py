"""The one definition of the command line: every command, option, argument, help line and example."""

from __future__ import annotations

from pycontain.commands.model import Argument, Command, Option

PROGRAM = "pycontain"
SUMMARY = "run containers from images, with nothing in the background"

GLOBAL_OPTIONS: tuple[Option, ...] = (
    Option(
        "root",
        "where images, containers and networks are kept (default /var/lib/pycontain, or PYCONTAIN_ROOT)",
        kind="value",
        metavar="DIRECTORY",
        complete="directory",
    ),
    Option(
        "run-root",
        "where the state of running containers is kept (default /run/pycontain, or PYCONTAIN_RUN)",
        kind="value",
        metavar="DIRECTORY",
        complete="directory",
    ),
    Option("debug", "print a traceback when pycontain itself fails"),
    Option("help", "print this help"),
    Option("version", "print the version"),
)

_INTERACTIVE = Option("interactive", "keep standard input open", short="i")
_TTY = Option("tty", "give the process a terminal", short="t")
_ENV = Option(
    "env",
    "set an environment variable; NAME alone takes this environment's value",
    short="e",
    kind="list",
    metavar="NAME[=VALUE]",
)
_ENV_FILE = Option(
    "env-file",
    "read environment variables from a file, one NAME=VALUE a line",
    kind="list",
    metavar="FILE",
    complete="file",
)
_WORKDIR = Option("workdir", "working directory in the container", short="w", kind="value", metavar="DIRECTORY")
_USER = Option("user", "user and group by name or number", short="u", kind="value", metavar="USER[:GROUP]")
_PRIVILEGED = Option("privileged", "all capabilities, all devices, no seccomp filter, nothing masked")
_DETACH_KEYS = Option(
    "detach-keys", "keys that detach from the container", kind="value", metavar="KEYS", default="ctrl-p,ctrl-q"
)
_SIG_PROXY = Option("sig-proxy", "pass received signals on to the container (default true)", default="true")
_DETACH = Option("detach", "run in the background and print the container's id", short="d")
_CONTAINER = Argument("CONTAINER", "name, id or unique start of an id", complete="container")
_CONTAINERS = Argument("CONTAINER", "names, ids or unique starts of ids", count="+", complete="container")
_IMAGE = Argument(
    "IMAGE", "an image, such as alpine, alpine:3.20 or registry.example:5000/team/app@sha256:...", complete="image"
)
_TIME = Option(
    "time",
    "seconds to wait before the container is killed (default 10, or what --stop-timeout said)",
    short="t",
    kind="value",
    metavar="SECONDS",
)
_FILTER = Option(
    "filter",
    "show only what fits, such as status=running, name=web or label=team",
    short="f",
    kind="list",
    metavar="KEY=VALUE",
)
_FORMAT = Option("format", "how to print", kind="value", metavar="FORMAT", choices=("table", "json"), default="table")
_TEXT_OR_JSON = Option(
    "format", "how to print", kind="value", metavar="FORMAT", choices=("text", "json"), default="text"
)
_NO_TRUNC = Option("no-trunc", "print ids and commands in full")
_QUIET = Option("quiet", "print only ids", short="q")
_PLATFORM = Option(
    "platform", "the image for this platform, such as linux/arm64", kind="value", metavar="OS/ARCH[/VARIANT]"
)

CREATE_OPTIONS: tuple[Option, ...] = (
    Option(
        "add-host",
        "add a line to /etc/hosts; host-gateway stands for the host's address",
        kind="list",
        metavar="NAME:ADDRESS",
    ),
    Option("cap-add", "add a capability (ALL for every one)", kind="list", metavar="CAPABILITY"),
    Option("cap-drop", "drop a capability (ALL for every one)", kind="list", metavar="CAPABILITY"),
    Option(
        "cidfile",
        "write the container's id to this file, which must not exist",
        kind="value",
        metavar="FILE",
        complete="file",
    ),
    Option(
        "cpu-shares",
        "weight against other containers when the processors are busy (usually 1024)",
        kind="value",
        metavar="NUMBER",
        short="c",
    ),
    Option("cpus", "how many processors' time it may use, such as 0.5", kind="value", metavar="NUMBER"),
    Option("cpuset-cpus", "which processors it may use, such as 0-2,4", kind="value", metavar="LIST"),
    Option(
        "device",
        "add a device of the host, with r, w and m as permissions",
        kind="list",
        metavar="HOST[:CONTAINER[:rwm]]",
        complete="file",
    ),
    Option("dns", "use this name server", kind="list", metavar="ADDRESS"),
    Option("entrypoint", "run this program instead of the image's entry point", kind="value", metavar="PROGRAM"),
    _ENV,
    _ENV_FILE,
    Option("group-add", "add a supplementary group by name or number", kind="list", metavar="GROUP"),
    Option(
        "hostname", "the container's host name (default: the start of its id)", short="h", kind="value", metavar="NAME"
    ),
    Option("init", "put a small init in front of the command, which passes signals on and reaps orphans"),
    _INTERACTIVE,
    Option(
        "ipc",
        "private, or the host's System V IPC and POSIX message queues",
        kind="value",
        metavar="MODE",
        choices=("private", "host"),
    ),
    Option(
        "isolation",
        "what isolates it: namespaces of this host (container) or a virtual machine of its own (vm)",
        kind="value",
        metavar="KIND",
        choices=("container", "vm"),
        default="container",
    ),
    Option("label", "attach a label", short="l", kind="list", metavar="NAME[=VALUE]"),
    Option("log-opt", "bound the log: max-size=SIZE, max-file=NUMBER", kind="list", metavar="NAME=VALUE"),
    Option("memory", "memory limit, such as 64m or 1g", short="m", kind="value", metavar="SIZE"),
    Option("memory-swap", "limit of memory and swap together; -1 for unlimited swap", kind="value", metavar="SIZE"),
    Option(
        "mount",
        "attach a file system: type=bind|volume|tmpfs,source=...,target=...[,readonly]",
        kind="list",
        metavar="KEY=VALUE[,...]",
    ),
    Option("name", "the container's name (default: two words at random)", kind="value", metavar="NAME"),
    Option(
        "network",
        "bridge (own address behind the host), none, host, or container:ID (that container's)",
        kind="value",
        metavar="NETWORK",
    ),
    Option("pid", "host: see and signal the host's processes", kind="value", metavar="MODE", choices=("host",)),
    Option(
        "pids-limit", "how many processes and threads it may have; -1 for unlimited", kind="value", metavar="NUMBER"
    ),
    _PLATFORM,
    _PRIVILEGED,
    Option(
        "publish",
        "publish a port of the container on the host",
        short="p",
        kind="list",
        metavar="[[IP:]HOST:]CONTAINER[/udp]",
    ),
    Option(
        "pull",
        "when to pull the image",
        kind="value",
        metavar="WHEN",
        choices=("missing", "always", "never"),
        default="missing",
    ),
    Option("read-only", "mount the root file system read-only"),
    Option("restart", 'restart policy; only "no" is built', kind="value", metavar="POLICY"),
    Option("rm", "remove the container when it has ended"),
    Option("security-opt", "no-new-privileges, seccomp=unconfined or seccomp=FILE", kind="list", metavar="OPTION"),
    Option("shm-size", "size of /dev/shm (default 64m)", kind="value", metavar="SIZE"),
    Option(
        "stop-signal", "signal that asks it to stop (default: the image's, or SIGTERM)", kind="value", metavar="SIGNAL"
    ),
    Option("stop-timeout", "seconds between asking and killing (default 10)", kind="value", metavar="SECONDS"),
    Option("tmpfs", "mount a tmpfs, with mount(8)'s options", kind="list", metavar="DIRECTORY[:OPTIONS]"),
    _TTY,
    Option("ulimit", "set a resource limit, such as nofile=1024:4096", kind="list", metavar="NAME=SOFT[:HARD]"),
    _USER,
    Option("userns", "user namespace mode (not built yet)", kind="value", metavar="MODE"),
    Option(
        "volume",
        "mount a directory or file of the host, or a named volume",
        short="v",
        kind="list",
        metavar="[SOURCE:]TARGET[:OPTIONS]",
        complete="file",
    ),
    _WORKDIR,
)

_RUN_ARGUMENTS = (
    _IMAGE,
    Argument("ARG", "command and its arguments, instead of the image's", count="rest", complete="command"),
)

COMMANDS: tuple[Command, ...] = (
    Command(
        "run",
        "create a container from an image and start it",
        "containers:run",
        group="containers",
        arguments=_RUN_ARGUMENTS,
        options=(*CREATE_OPTIONS, _DETACH, _DETACH_KEYS, _SIG_PROXY),
        stop_at_argument=True,
        description="The image is pulled where it is not here yet. The exit status is the command's own (128 plus the "
        "number of the signal that ended it), or 125 when pycontain failed, 126 when the command could not be "
        "executed, and 127 when it was not found.",
        examples=(
            ("a shell that leaves nothing behind", "pycontain run --rm -it alpine sh"),
            (
                "a web server in the background, on port 8080 of the host",
                "pycontain run -d --name web -p 8080:80 nginx",
            ),
            (
                "half a processor, 64 MiB of memory, twenty processes",
                "pycontain run --rm --cpus 0.5 -m 64m --pids-limit 20 alpine sh -c 'cat /proc/meminfo'",
            ),
            (
                "work on this directory as yourself",
                "pycontain run --rm -v .:/src -w /src -u $(id -u):$(id -g) python python build.py",
            ),
        ),
    ),
    Command(
        "create",
        "create a container without starting it",
        "containers:create",
        group="containers",
        arguments=_RUN_ARGUMENTS,
        options=CREATE_OPTIONS,
        stop_at_argument=True,
        description="Prints the new container's id. Its options are those of run.",
        examples=(("create now, start later", "pycontain create --name job alpine sleep 10"),),
    ),
    Command(
        "start",
        "start stopped containers",
        "containers:start",
        group="containers",
        arguments=(_CONTAINERS,),
        options=(
            Option("attach", "attach to its output and pass signals on", short="a"),
            _DETACH_KEYS,
            Option("interactive", "attach to its standard input", short="i"),
            _SIG_PROXY,
        ),
        examples=(("start again and watch", "pycontain start -a job"),),
    ),
    Command(
        "exec",
        "run a command in a running container",
        "containers:exec_",
        group="containers",
        arguments=(_CONTAINER, Argument("ARG", "command and its arguments", count="rest", complete="command")),
        options=(_DETACH, _DETACH_KEYS, _ENV, _ENV_FILE, _INTERACTIVE, _PRIVILEGED, _TTY, _USER, _WORKDIR),
        stop_at_argument=True,
        description="The command joins the container's namespaces, its cgroup and its limits. "
        "The exit status is its own.",
        examples=(
            ("a second shell", "pycontain exec -it web sh"),
            ("as another user", "pycontain exec -u nobody web id"),
        ),
    ),
    Command(
        "attach",
        "attach to a running container",
        "containers:attach",
        group="containers",
        arguments=(_CONTAINER,),
        options=(_DETACH_KEYS, Option("no-stdin", "do not attach standard input"), _SIG_PROXY),
        examples=(("come back to a shell (leave it with ctrl-p ctrl-q)", "pycontain attach web"),),
    ),
    Command(
        "stop",
        "ask containers to stop, then kill them",
        "containers:stop",
        group="containers",
        arguments=(_CONTAINERS,),
        options=(_TIME,),
        description="Sends the container's stop signal, waits, and sends SIGKILL to what is still there.",
        examples=(("give a database half a minute", "pycontain stop -t 30 db"),),
    ),
    Command(
        "kill",
        "send a signal to containers",
        "containers:kill",
        group="containers",
        arguments=(_CONTAINERS,),
        options=(
            Option("signal", "signal by name or number (default KILL)", short="s", kind="value", metavar="SIGNAL"),
        ),
        examples=(("reload a server's configuration", "pycontain kill -s HUP web"),),
    ),
    Command(
        "restart",
        "stop containers and start them again",
        "containers:restart",
        group="containers",
        arguments=(_CONTAINERS,),
        options=(_TIME,),
        examples=(("restart at once", "pycontain restart -t 0 web"),),
    ),
    Command(
        "pause",
        "freeze all processes of containers",
        "containers:pause",
        group="containers",
        arguments=(_CONTAINERS,),
        examples=(("freeze", "pycontain pause web"),),
    ),
    Command(
        "unpause",
        "let frozen containers go on",
        "containers:unpause",
        group="containers",
        arguments=(_CONTAINERS,),
        examples=(("go on", "pycontain unpause web"),),
    ),
    Command(
        "wait",
        "wait until containers end, and print their exit status",
        "containers:wait",
        group="containers",
        arguments=(_CONTAINERS,),
        examples=(("wait for a job", "pycontain wait job"),),
    ),
    Command(
        "rm",
        "remove containers",
        "containers:rm",
        group="containers",
        arguments=(_CONTAINERS,),
        options=(
            Option("force", "kill it first where it runs, and forgive what does not exist", short="f"),
            Option("volumes", "remove its anonymous volumes too", short="v"),
        ),
        examples=(("away with it, whatever it does", "pycontain rm -f web"),),
    ),
    Command(
        "rename",
        "give a container another name",
        "containers:rename",
        group="containers",
        arguments=(_CONTAINER, Argument("NAME", "the new name")),
        description="Other containers reach it by the new name from then on.",
        examples=(("rename", "pycontain rename web old-web"),),
    ),
    Command(
        "ps",
        "list containers",
        "containers:ps",
        group="containers",
        options=(Option("all", "list stopped ones too", short="a"), _FILTER, _FORMAT, _NO_TRUNC, _QUIET),
        examples=(
            ("everything, stopped or not", "pycontain ps -a"),
            ("remove what has ended", "pycontain rm $(pycontain ps -aq --filter status=exited)"),
        ),
    ),
    Command(
        "top",
        "list a container's processes",
        "containers:top",
        group="containers",
        arguments=(_CONTAINER,),
        examples=(("list", "pycontain top web"),),
    ),
    Command(
        "logs",
        "print what a container wrote",
        "containers:logs",
        group="containers",
        arguments=(_CONTAINER,),
        options=(
            Option("follow", "go on as long as the container runs", short="f"),
            Option(
                "since",
                "only what came after a time (2026-01-31T10:00:00Z, or 10m for ten minutes ago)",
                kind="value",
                metavar="TIME",
            ),
            Option("tail", "only the last lines", short="n", kind="value", metavar="NUMBER"),
            Option("timestamps", "print when each line was written", short="t"),
        ),
        examples=(("the last ten lines and what comes", "pycontain logs -f -n 10 web"),),
    ),
    Command(
        "inspect",
        "print all that is known about containers and images",
        "containers:inspect",
        group="containers",
        arguments=(Argument("NAME", "containers or images", count="+", complete="container"),),
        options=(
            Option(
                "type",
                "look only for containers, or only for images",
                kind="value",
                metavar="KIND",
                choices=("container", "image"),
            ),
        ),
        description="Prints a JSON array in docker's shape.",
        examples=(("the address", "pycontain inspect web | jq -r '.[0].NetworkSettings.IPAddress'"),),
    ),
    Command(
        "images",
        "list images",
        "images:list_",
        group="images",
        options=(_FORMAT, _NO_TRUNC, _QUIET),
        examples=(("list", "pycontain images"),),
    ),
    Command(
        "pull",
        "download an image from its registry",
        "images:pull",
        group="images",
        arguments=(_IMAGE,),
        options=(_PLATFORM, Option("quiet", "print only the image's name", short="q")),
        examples=(("one version", "pycontain pull alpine:3.20"),),
    ),
    Command(
        "load",
        "load images from a tar archive or an OCI layout",
        "images:load",
        group="images",
        options=(
            Option(
                "input",
                "archive or directory (default: standard input)",
                short="i",
                kind="value",
                metavar="FILE",
                complete="file",
            ),
            Option("quiet", "print nothing", short="q"),
        ),
        examples=(("what docker save wrote", "pycontain load -i app.tar"),),
    ),
    Command(
        "save",
        "save images to a tar archive",
        "images:save",
        group="images",
        arguments=(Argument("IMAGE", "images", count="+", complete="image"),),
        options=(
            Option(
                "format",
                "which archive",
                kind="value",
                metavar="FORMAT",
                choices=("docker-archive", "oci-archive"),
                default="docker-archive",
            ),
            Option(
                "output",
                "where to write (default: standard output)",
                short="o",
                kind="value",
                metavar="FILE",
                complete="file",
            ),
        ),
        examples=(("for another machine", "pycontain save -o app.tar app:1.0"),),
    ),
    Command(
        "import",
        "make an image of a root file system's tar archive",
        "images:import_",
        group="images",
        arguments=(
            Argument("FILE", "the archive, or - for standard input", complete="file"),
            Argument("IMAGE", "the image's name"),
        ),
        examples=(("from a minirootfs", "pycontain import alpine-minirootfs.tar.gz alpine:local"),),
    ),
    Command(
        "rmi",
        "remove images",
        "images:rmi",
        group="images",
        arguments=(Argument("IMAGE", "images", count="+", complete="image"),),
        options=(Option("force", "forgive images that do not exist or are used by stopped containers", short="f"),),
        examples=(("remove", "pycontain rmi alpine:3.19"),),
    ),
    Command(
        "tag",
        "give an image another name",
        "images:tag",
        group="images",
        arguments=(_IMAGE, Argument("TARGET", "the new name")),
        examples=(("tag", "pycontain tag app registry.example:5000/app:1.0"),),
    ),
    Command(
        "login",
        "store the password of a registry",
        "images:login",
        group="images",
        arguments=(Argument("SERVER", "the registry (default docker.io)", count="?"),),
        options=(
            Option("password-stdin", "read the password from standard input"),
            Option("username", "user name", short="u", kind="value", metavar="NAME"),
        ),
        examples=(("from a script", "pycontain login -u me --password-stdin registry.example:5000 < password"),),
    ),
    Command(
        "logout",
        "forget the password of a registry",
        "images:logout",
        group="images",
        arguments=(Argument("SERVER", "the registry (default docker.io)", count="?"),),
        examples=(("forget", "pycontain logout registry.example:5000"),),
    ),
    Command(
        "info",
        "print facts about this host and what is stored",
        "system:info",
        group="system",
        options=(_TEXT_OR_JSON,),
        examples=(("facts", "pycontain info"),),
    ),
    Command(
        "version", "print the version", "system:version", group="system", examples=(("version", "pycontain version"),)
    ),
    Command(
        "system prune",
        "remove stopped containers and everything that nobody uses",
        "system:prune",
        group="system",
        options=(
            Option("all", "images that no container uses too, not only what has no name", short="a"),
            Option("force", "do not ask", short="f"),
            Option("volumes", "volumes that no container uses too", short=""),
        ),
        description="Also clears what a crash or a reboot left: cgroups, network interfaces, address leases, firewall "
        "rules, state directories and half-finished downloads; and the bridge with its firewall table where nobody is "
        "on it (the next container makes it again).",
        examples=(("tidy up without a question", "pycontain system prune -f"),),
    ),
    Command(
        "vm doctor",
        "check what machines need of this host",
        "machines:doctor",
        group="system",
        options=(_TEXT_OR_JSON,),
        description="Prints a line for each thing that --isolation vm needs: ok, lacking (machines start, with less) "
        "or missing (none starts), and the one command that brings it. Whether KVM works is found out by booting a "
        "guest with it, each time; the verdict is kept for the machines to come. The exit status is 0 where a machine "
        "can be started, else 1.",
        examples=(
            ("what is there, and what is missing", "pycontain vm doctor"),
            ("only what none starts without", "pycontain vm doctor | grep -A 1 ^missing"),
        ),
    ),
    Command(
        "vm kernel",
        "print the path of the kernel that machines boot",
        "machines:kernel",
        group="system",
        description="It is the one of /etc/pycontain/vm.toml, else the distribution's, which is fetched by apt and "
        "unpacked the first time, without being installed.",
        examples=(("fetch it before it is needed", "pycontain vm kernel"),),
    ),
    Command(
        "vm build-kernel",
        "build a small kernel for machines",
        "machines:build_kernel",
        group="system",
        options=(
            Option("jobs", "compilers at once (default: one a processor)", short="j", kind="value", metavar="NUMBER"),
            Option(
                "output",
                "where to write it (default: vmlinux-RELEASE in the cache directory)",
                short="o",
                kind="value",
                metavar="FILE",
                complete="file",
            ),
            Option(
                "source",
                "a tar archive of a kernel's source (default: the distribution's, fetched by apt)",
                kind="value",
                metavar="FILE",
                complete="file",
            ),
        ),
        description="The kernel has what a container in a machine needs built in, and nothing else: no modules, no "
        "PCI, no ACPI. Nothing is installed. It takes some minutes, and 3 GiB below TMPDIR (default /var/tmp) while it "
        "is built.",
        examples=(
            ("with the distribution's source", "pycontain vm build-kernel"),
            ("with another one", "pycontain vm build-kernel --source linux-6.12.tar.xz -o /opt/vmlinux"),
        ),
    ),
    Command(
        "isolation run",
        "measure what each kind of isolation holds and costs on this host",
        "isolation:run",
        group="isolation",
        options=(
            Option("quick", "only measures that are short, in a quarter of an hour (the default)"),
            Option("full", "all measures, as often as it takes, in three hours at most"),
            Option(
                "only",
                "only this level, measure or group (outcome, surface, cost, interference)",
                kind="list",
                metavar="NAME",
                complete="measure",
            ),
            Option("level", "only this level", kind="list", metavar="NAME", complete="level"),
            Option(
                "output",
                "where to write the results (default isolation-DATE-TIME.jsonl)",
                short="o",
                kind="value",
                metavar="FILE",
                complete="file",
            ),
            Option(
                "resume",
                "go on with an interrupted run; what failed is tried again",
                kind="value",
                metavar="FILE",
                complete="file",
            ),
            Option("budget", "seconds after which nothing is repeated any more", kind="value", metavar="SECONDS"),
            Option("seed", "the number that the order of measures comes from", kind="value", metavar="NUMBER"),
        ),
        description="Runs the same programs as a process, in containers of several kinds and by several runtimes, and "
        "in machines, and records what they could reach, what of the kernel they reach, how fast they are and what "
        "they notice of each other. Everything happens in namespaces of its own, with decoys in the place of the "
        "host's files and processes. Levels that this host cannot run are named with the reason. In a random order, "
        "in rounds, until the figures are narrow or the time is spent. Wants root. Results are JSON lines. The exit "
        "status is 0 where nothing failed, else 1.",
        examples=(
            ("in a quarter of an hour", "pycontain isolation run --quick"),
            ("what two runtimes cost", "pycontain isolation run --only cost --level runc --level container"),
            ("go on after Ctrl-C", "pycontain isolation run --resume isolation-20260102-030405.jsonl"),
        ),
    ),
    Command(
        "isolation report",
        "make a page of results",
        "isolation:report",
        group="isolation",
        arguments=(
            Argument("FILE", "results (default: the newest isolation-*.jsonl here)", count="?", complete="file"),
        ),
        options=(
            Option(
                "html",
                "where to write the page, - for standard output (default: beside FILE)",
                kind="value",
                metavar="FILE",
                complete="file",
            ),
            Option(
                "markdown",
                "where to write a summary in Markdown, - for standard output",
                kind="value",
                metavar="FILE",
                complete="file",
            ),
        ),
        description="The page is one file that needs no network: tables, plots and every figure's definition.",
        examples=(
            ("the page of the last run", "pycontain isolation report"),
            ("a summary to read here", "pycontain isolation report --markdown - isolation-20260102-030405.jsonl"),
        ),
    ),
    Command(
        "isolation compare",
        "compare the results of two hosts or two versions",
        "isolation:compare",
        group="isolation",
        arguments=(
            Argument("OLD", "results", complete="file"),
            Argument("NEW", "results to compare with them", complete="file"),
        ),
        description="The exit status is 1 where something is worse in the second: an attack that was held, a figure "
        "by more than both intervals allow.",
        examples=(("before and after a change", "pycontain isolation compare before.jsonl after.jsonl"),),
    ),
    Command(
        "isolation levels",
        "list the kinds of isolation, and which of them this host has",
        "isolation:levels",
        group="isolation",
        options=(
            Option("measures", "the measures too"),
            Option("quiet", "print only names, and try nothing", short="q"),
            _TEXT_OR_JSON,
        ),
        description="Each level is tried, which takes some seconds and wants root.",
        examples=(
            ("what can be compared here", "pycontain isolation levels"),
            ("every name that --only takes", "pycontain isolation levels --quiet --measures"),
        ),
    ),
    Command(
        "explain",
        "print what a command or a configuration would do, without doing it",
        "system:explain",
        group="system",
        arguments=(
            Argument(
                "ARG",
                "run and its options and arguments, or a config.json, or a bundle's directory",
                count="rest",
                complete="file",
            ),
        ),
        stop_at_argument=True,
        description="Prints the flat list of kernel operations that the command leads to. Nothing is created.",
        examples=(
            ("what a run would do", "pycontain explain run --rm -m 64m alpine sh"),
            ("what a bundle leads to", "pycontain explain ./bundle"),
        ),
    ),
    Command(
        "completion",
        "print a completion script for a shell",
        "system:completion",
        group="system",
        arguments=(Argument("SHELL", "bash, zsh or fish"),),
        examples=(("for this bash", "source <(pycontain completion bash)"),),
    ),
    Command(
        "_teardown",
        "clear up after a container that has ended",
        "system:teardown",
        group="system",
        hidden=True,
        arguments=(Argument("ID", "full id"),),
    ),
)

GROUPS: tuple[tuple[str, str], ...] = (
    ("containers", "Containers"),
    ("images", "Images"),
    ("isolation", "Isolation"),
    ("system", "System"),
)


def find(name: str) -> Command | None:
    for command in COMMANDS:
        if command.name == name or name in command.aliases:
            return command
    return None
