"""The OCI command, from the outside: what it did is read back from the kernel by other programs."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime_tools import COMMAND, HIERARCHIES, Runtime, left, make_rootfs, write_bundle

pytestmark = [pytest.mark.needs("root"), pytest.mark.both_executors]

Bundle = Callable[..., Path]


@pytest.fixture
def bundle(tmp_path: Path, rootfs: Path, executor: str) -> Bundle:
    def make(*args: str, change: Callable[[dict[str, Any]], object] | None = None, name: str = "bundle") -> Path:
        def and_executor(config: dict[str, Any]) -> None:
            if change is not None:
                change(config)
            if executor == "vm":
                config.setdefault("annotations", {})["org.pycontain.isolation"] = "vm"

        return write_bundle(tmp_path / name, rootfs, *args, change=and_executor)

    return make


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    runtime = Runtime(tmp_path / "state")
    yield runtime
    runtime.clean()


def wait_for(condition: Callable[[], object], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def namespaces_of(pid: int | str) -> dict[str, str]:
    return {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in os.listdir(f"/proc/{pid}/ns")}


@pytest.mark.parametrize("status", [0, 1, 42, 125, 255])
def test_exit_status(runtime: Runtime, bundle: Bundle, status: int) -> None:
    assert runtime("run", "-b", bundle("sh", "-c", f"exit {status}"), "t-exit").returncode == status
    assert not left("t-exit")


@pytest.mark.namespaces_only("a machine has processors of its own")
@pytest.mark.parametrize("one", [False, True])
def test_the_processors_are_the_callers(runtime: Runtime, bundle: Bundle, one: bool) -> None:
    """init is put on another one for a moment."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)} if one else before)
    try:
        done = runtime("run", "-b", bundle("grep", "Cpus_allowed:", "/proc/self/status"), "t-processors")
        mask = Path("/proc/thread-self/status").read_text()
    finally:
        os.sched_setaffinity(0, before)
    assert done.stdout == next(line for line in mask.splitlines(True) if line.startswith("Cpus_allowed:"))


def test_a_signal_adds_128(runtime: Runtime, bundle: Bundle) -> None:
    # pid 1 of a namespace is deaf to its own signals; its child is not.
    assert runtime("run", "-b", bundle("sh", "-c", "sh -c 'kill -9 $$'; exit $?"), "t-sig").returncode == 137
    process = subprocess.Popen([*COMMAND, "--root", runtime.root, "run", "-b", bundle("sleep", "60"), "t-sig2"])
    wait_for(lambda: runtime("state", "t-sig2").stdout and runtime.state("t-sig2")["status"] == "running")
    runtime("kill", "t-sig2", "KILL", check=True)
    assert process.wait(10) == 137


def test_the_whole_life(runtime: Runtime, bundle: Bundle, tmp_path: Path, executor: str) -> None:
    path = bundle("sleep", "100")
    runtime("create", "-b", path, "--pid-file", tmp_path / "pid", "t-life", check=True)
    pid = int((tmp_path / "pid").read_text())
    state = runtime.state("t-life")
    assert (state["status"], state["pid"], state["bundle"]) == ("created", pid, str(path))
    assert Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"pycontain-init\0")
    runtime("start", "t-life", check=True)
    assert "sleep 100" in runtime("ps", "t-life", check=True).stdout
    assert runtime.state("t-life")["status"] == "running"
    again = runtime("start", "t-life")
    assert again.stderr == "pycontain-runtime: cannot start container t-life: found it running, wanted created\n"
    refused = runtime("delete", "t-life")
    assert refused.stderr == (
        "pycontain-runtime: cannot delete container t-life: found it running, wanted stopped or created\n"
        "\nhint: pycontain-runtime delete --force t-life\n"
    )
    runtime("pause", "t-life", check=True)
    assert runtime.state("t-life")["status"] == "paused"
    runtime("resume", "t-life", check=True)
    rows = json.loads(runtime("list", "--format", "json", check=True).stdout)
    assert [(row["id"], row["pid"], row["status"], row["owner"]) for row in rows] == [
        ("t-life", pid, "running", "root")
    ]
    assert runtime("list", "-q").stdout == "t-life\n"
    table = runtime("list").stdout.splitlines()
    assert table[0].split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    pids = json.loads(runtime("ps", "--format", "json", "t-life", check=True).stdout)
    assert pids == [pid] if executor == "namespaces" else len(pids) == 1  # numbers of the guest
    counted = json.loads(runtime("events", "--stats", "t-life", check=True).stdout)["data"]
    assert counted["pids"]["current"] == 1
    assert 4096 <= counted["memory"]["usage"]["usage"] < 1 << 30
    updated = runtime("update", "--pids-limit", "50", "t-life")
    assert updated.stderr == (
        ""
        if executor == "namespaces"
        else "pycontain-runtime: cannot update container t-life: it is in a machine, whose size is settled when it boots\n"
    )
    runtime("kill", "t-life", "SIGKILL", check=True)
    wait_for(lambda: runtime.state("t-life")["status"] == "stopped")
    late = runtime("kill", "t-life")
    assert late.stderr == "pycontain-runtime: cannot kill container t-life: container not running (it is stopped)\n"
    runtime("delete", "t-life", check=True)
    gone = runtime("state", "t-life")
    assert (gone.returncode, gone.stderr) == (1, "pycontain-runtime: container t-life does not exist\n")
    assert runtime("delete", "t-life").returncode == 1
    assert runtime("delete", "--force", "t-life").returncode == 0


@pytest.mark.needs("assets", "jsonschema")
def test_state_and_features_are_the_schemas(runtime: Runtime, bundle: Bundle) -> None:
    import jsonschema
    import referencing
    from referencing.jsonschema import DRAFT4

    folder = Path(os.environ["PYCONTAIN_TEST_ASSETS"], "oci/runtime-spec")

    def validate(value: Any, schema: str) -> None:
        files = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
        # Each file refers to its neighbours by name, whatever its own "id" says.
        known = [
            (name, DRAFT4.create_resource({k: v for k, v in text.items() if k != "id"})) for name, text in files.items()
        ]
        registry: Any = referencing.Registry().with_resources(known)
        jsonschema.Draft4Validator({"$ref": schema}, registry=registry).validate(value)

    path = bundle("sleep", "9", change=lambda c: c.update(annotations={"org.example.a": "b"}))
    runtime("create", "-b", path, "t-schema", check=True)
    state = runtime.state("t-schema")
    assert state["annotations"]["org.example.a"] == "b"
    validate(state, "state-schema.json")
    validate(json.loads(runtime("features", check=True).stdout), "features-schema.json")
    runtime("spec", "--bundle", path.parent, check=True)
    validate(json.loads((path.parent / "config.json").read_text()), "config-schema.json")
    with pytest.raises(jsonschema.ValidationError):
        validate({**state, "status": 1}, "state-schema.json")


@pytest.mark.namespaces_only("another kernel numbers its namespaces for itself")
def test_own_namespaces(runtime: Runtime, bundle: Bundle) -> None:
    host = namespaces_of("self")
    script = "for n in pid net mnt ipc uts cgroup user; do readlink /proc/self/ns/$n; done"
    inside = runtime("run", "-b", bundle("sh", "-c", script), "t-ns", check=True).stdout.split()
    assert len(inside) == 7
    for name, link in zip(("pid", "net", "mnt", "ipc", "uts", "cgroup"), inside):
        assert link.startswith(f"{name}:[") and link != host[name]
    assert inside[6] == host["user"]


def test_no_host_descriptor(runtime: Runtime, bundle: Bundle) -> None:
    read, write = os.pipe()
    done = runtime("run", "-b", bundle("sh", "-c", "ls /proc/$$/fd; true"), "t-fd", check=True, pass_fds=(read, write))
    os.close(read)
    os.close(write)
    assert done.stdout.split() == ["0", "1", "2"]


@pytest.mark.namespaces_only("refused in a machine: test_vm_isolation.py has the words")
def test_preserved_descriptors(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("handed in")
    with open(tmp_path / "file") as file:
        fd = fcntl.fcntl(file, fcntl.F_DUPFD, 10)
        # A pipe behind it would be one descriptor more for a moment, and the last command takes the shell's place.
        path = bundle("sh", "-c", "cat <&3; ls /proc/$$/fd; :")
        command = (
            f"exec 3<&{fd} {fd}<&-; exec {' '.join(COMMAND)} --root {runtime.root} run --preserve-fds 1 -b {path} t-fds"
        )
        done = subprocess.run(
            ["bash", "-c", command], pass_fds=[fd], capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        os.close(fd)
    assert done.stdout.split() == ["handed", "in0", "1", "2", "3"], done.stderr


def test_the_process_as_configured(runtime: Runtime, bundle: Bundle) -> None:
    def change(config: dict[str, Any]) -> None:
        process = config["process"]
        process["user"] = {"uid": 1000, "gid": 1001, "additionalGids": [5, 3000], "umask": 0o27}
        process["env"].append("X=with space")
        process["cwd"] = "/made/on/demand"
        process["oomScoreAdj"] = 321
        process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 512, "hard": 600}]
        config["hostname"] = "inner"
        config["domainname"] = "example"
        config["root"]["readonly"] = False
        config["linux"]["sysctl"] = {"net.ipv4.ip_forward": "1", "kernel.msgmax": "9000"}

    script = (
        "id -u; id -g; id -G; umask; echo $X; pwd; cat /proc/self/oom_score_adj; ulimit -n; ulimit -Hn; hostname;"
        " cat /proc/sys/kernel/domainname /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax"
    )
    out = runtime("run", "-b", bundle("sh", "-c", script, change=change), "t-proc", check=True).stdout.splitlines()
    assert out == [
        "1000", "1001", "1001 5 3000", "0027", "with space", "/made/on/demand", "321", "512", "600", "inner",
        "example", "1", "9000",
    ]  # fmt: skip
    assert Path("/proc/sys/kernel/msgmax").read_text() != "9000\n"


def test_capabilities_are_exactly_those_asked_for(runtime: Runtime, bundle: Bundle) -> None:
    script = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status"
    out = runtime("run", "-b", bundle("sh", "-c", script), "t-caps", check=True).stdout
    mask = 1 << 5 | 1 << 10 | 1 << 29  # kill, net_bind_service, audit_write
    values = dict(line.replace("\t", "").split(":") for line in out.splitlines())
    assert {name: int(values[name], 16) for name in values if name.startswith("Cap")} == {
        "CapInh": 0,
        "CapPrm": mask,
        "CapEff": mask,
        "CapBnd": mask,
        "CapAmb": 0,
    }
    assert values["NoNewPrivs"] == "1"


def test_capabilities_that_nobody_knows_are_worth_a_warning(runtime: Runtime, bundle: Bundle) -> None:
    def change(config: dict[str, Any]) -> None:
        config["process"]["capabilities"] = {"bounding": ["CAP_KILL", "CAP_MAGIC"]}

    done = runtime("run", "-b", bundle("grep", "CapBnd", "/proc/self/status", change=change), "t-warn", check=True)
    assert int(done.stdout.split()[1], 16) == 1 << 5
    assert done.stderr == (
        "pycontain-runtime: warning: $.process.capabilities.bounding[1]: CAP_MAGIC is not a capability, ignored\n"
    )


def test_mounts_as_configured(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "file").write_text("from the host")

    def change(config: dict[str, Any]) -> None:
        config["mounts"] += [
            {
                "destination": "/vol",
                "type": "bind",
                "source": str(source),
                "options": ["rbind", "ro", "nosuid", "nodev", "noexec"],
            },
            {"destination": "/one/file", "source": str(source / "file"), "options": ["bind", "noatime"]},
            {
                "destination": "/scratch",
                "type": "tmpfs",
                "source": "t",
                "options": ["size=1m", "mode=700", "rslave", "nosymfollow"],
            },
        ]
        config["root"]["readonly"] = False

    script = "cat /one/file; touch /vol/x; df -k /scratch | tail -1; cat /proc/self/mountinfo"
    done = runtime("run", "-b", bundle("sh", "-c", script, change=change), "t-mounts", check=True)
    first, *mounts = done.stdout.splitlines()
    assert first.startswith("from the host")
    assert "Read-only file system" in done.stderr
    flags = {line.split()[4]: set(line.split()[5].split(",")) for line in mounts if " - " in line}
    assert flags["/vol"] >= {"ro", "nosuid", "nodev", "noexec"}
    assert flags["/one/file"] >= {"rw", "noatime"}
    assert flags["/scratch"] >= {"nosymfollow"}
    assert flags["/proc/bus"] >= {"ro"}
    assert flags["/sys"] >= {"ro"}
    assert "/proc/keys" in flags
    assert not any(" master:" in line or " shared:" in line for line in mounts if line.split()[4:5] == ["/scratch"])


def test_masked_paths_are_empty(runtime: Runtime, bundle: Bundle) -> None:
    script = "cat /proc/keys /proc/timer_list | wc -c; ls /sys/firmware /proc/acpi | grep -v : | grep -c ."
    assert runtime("run", "-b", bundle("sh", "-c", script), "t-mask").stdout.split() == ["0", "0"]


@pytest.mark.namespaces_only("refused in a machine: test_vm_isolation.py has the words")
def test_devices(runtime: Runtime, bundle: Bundle) -> None:
    def change(config: dict[str, Any]) -> None:
        config["linux"]["devices"] = [
            {"path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 3, "gid": 4},
            {"path": "/dev/pipe", "type": "p"},
            {"path": "/dev/mem2", "type": "c", "major": 1, "minor": 1},
        ]
        config["linux"]["resources"]["devices"] = [
            {"allow": False, "access": "rwm"},
            {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "r"},
        ]
        config["process"]["user"] = {"uid": 3, "gid": 4}

    script = (
        "stat -c '%F %t:%T %a %u %g' /dev/mine /dev/pipe /dev/null; head -c 3 /dev/mine | wc -c;"
        " (head -c 1 /dev/mem2) 2>&1; for d in full random zero tty urandom; do [ -c /dev/$d ] || echo no $d; done;"
        " for l in fd stdin ptmx; do readlink /dev/$l; done"
    )
    out = runtime("run", "-b", bundle("sh", "-c", script, change=change), "t-dev", check=True).stdout.splitlines()
    assert out == [
        "character special file 1:5 640 3 4",
        "fifo 0:0 666 0 0",
        "character special file 1:3 666 0 0",
        "3",
        "head: /dev/mem2: Operation not permitted",
        "/proc/self/fd",
        "/proc/self/fd/0",
        "pts/ptmx",
    ]


def limited(config: dict[str, Any]) -> None:
    config["linux"]["resources"].update(
        memory={"limit": 64 << 20}, pids={"limit": 20}, cpu={"quota": 50000, "period": 100000}
    )


@pytest.mark.namespaces_only("it reads this host's cgroup; in a machine only the test after it counts")
def test_limits_are_in_the_kernel(runtime: Runtime, bundle: Bundle) -> None:
    runtime("create", "-b", bundle("sleep", "60", change=limited), "t-limit", check=True)
    pid = runtime.state("t-limit")["pid"]
    wanted = ("memory.max", "memory.limit_in_bytes", "cpu.max", "cpu.cfs_quota_us", "pids.max")
    files = {
        path.name: path.read_text().strip() for n in wanted for path in HIERARCHIES.glob(f"**/pycontain/t-limit/{n}")
    }
    if "memory.max" in files:
        assert (files["memory.max"], files["cpu.max"]) == (str(64 << 20), "50000 100000")
    else:
        assert (files["memory.limit_in_bytes"], files["cpu.cfs_quota_us"]) == (str(64 << 20), "50000")
    assert files["pids.max"] == "20"
    assert "/pycontain/t-limit\n" in Path(f"/proc/{pid}/cgroup").read_text()


def test_limits_hold(runtime: Runtime, bundle: Bundle) -> None:
    runtime("create", "-b", bundle("sleep", "60", change=limited), "t-limit", check=True)
    runtime("start", "t-limit", check=True)
    hog = runtime("exec", "t-limit", "dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1")
    assert (hog.returncode, hog.stdout) == (137, "")
    bomb = runtime("exec", "t-limit", "sh", "-c", "for i in $(seq 30); do sleep 5 & done; wait")
    assert "can't fork" in bomb.stderr


def test_exec(runtime: Runtime, bundle: Bundle, tmp_path: Path, executor: str) -> None:
    runtime("create", "-b", bundle("sleep", "60"), "t-exec", check=True)
    runtime("start", "t-exec", check=True)
    pid = runtime.state("t-exec")["pid"]

    done = runtime("exec", "-e", "A=1", "--cwd", "/tmp", "-u", "1000:1001", "-g", "7", "t-exec", "sh", "-c",
                   "echo $A; pwd; id -u; id -G; ls /proc/$$/fd; exit 9")  # fmt: skip
    assert done.stdout.split() == ["1", "/tmp", "1000", "1001", "7", "0", "1", "2"]
    assert done.returncode == 9
    links = "for n in pid net mnt ipc uts cgroup; do readlink /proc/{}/ns/$n; done"
    inside = runtime("exec", "t-exec", "sh", "-c", links.format("self")).stdout.split()
    assert inside == runtime("exec", "t-exec", "sh", "-c", links.format(1)).stdout.split()
    assert len(inside) == 6
    if executor == "namespaces":
        theirs = namespaces_of(pid)
        assert inside == [theirs[n] for n in ("pid", "net", "mnt", "ipc", "uts", "cgroup")]
    missing = runtime("exec", "t-exec", "nowhere")
    assert (missing.returncode, missing.stderr) == (
        127,
        "pycontain-runtime: cannot execute 'nowhere': executable file not found in $PATH: "
        "ENOENT (no such file or directory)\n",
    )
    assert runtime("exec", "t-exec", "/etc").returncode == 126

    process = {"args": ["sh", "-c", "echo from a file"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
    (tmp_path / "process.json").write_text(json.dumps(process))
    assert runtime("exec", "-p", tmp_path / "process.json", "t-exec").stdout == "from a file\n"

    runtime("exec", "-d", "--pid-file", tmp_path / "pid", "t-exec", "sleep", "50", check=True)
    second = int((tmp_path / "pid").read_text())
    assert "sleep 50" in runtime("ps", "t-exec").stdout
    pids = json.loads(runtime("ps", "-f", "json", "t-exec").stdout)
    assert set(pids) == {pid, second} if executor == "namespaces" else len(pids) == 2
    cgroups = Path(f"/proc/{second}/cgroup").read_text()
    assert cgroups == Path(f"/proc/{pid}/cgroup").read_text() and "/t-exec" in cgroups


def test_exec_capabilities_and_bad_options(runtime: Runtime, bundle: Bundle, executor: str) -> None:
    runtime("create", "-b", bundle("sleep", "60"), "t-cap", check=True)
    runtime("start", "t-cap", check=True)
    out = runtime("exec", "--cap", "CAP_SYS_TIME", "t-cap", "grep", "CapEff", "/proc/self/status", check=True).stdout
    assert int(out.split()[1], 16) == 1 << 5 | 1 << 10 | 1 << 29 | 1 << 25
    if executor == "vm":
        for option, text in {
            "--apparmor": "$.process.apparmorProfile: the profiles and policies of this host are not a machine's",
            "--process-label": "$.process.selinuxLabel: the profiles and policies of this host are not a machine's",
            "--cgroup": "--cgroup x: a machine's processes are in the one cgroup of its guest",
        }.items():
            assert runtime("exec", option, "x", "t-cap", "true").stderr == f"pycontain-runtime: {text}\n"
    assert runtime("exec", "t-cap").stderr.startswith("pycontain-runtime: exec wants a COMMAND, or --process FILE\n")


def test_user_namespace(runtime: Runtime, bundle: Bundle, executor: str) -> None:
    def change(config: dict[str, Any]) -> None:
        config["linux"]["namespaces"].append({"type": "user"})
        for key in ("uidMappings", "gidMappings"):
            config["linux"][key] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
        # The root of a user namespace is nobody to the host: it must be able to reach the directory.
        config["root"]["path"] = str(rootfs)

    with tempfile.TemporaryDirectory(dir="/var/tmp") as public:
        os.chmod(public, 0o755)
        rootfs = make_rootfs(Path(public, "rootfs"))
        _user_namespace(runtime, bundle("sleep", "60", change=change), executor)
        runtime("delete", "--force", "t-user", check=True)


def _user_namespace(runtime: Runtime, path: Path, executor: str) -> None:
    runtime("create", "-b", path, "t-user", check=True)
    runtime("start", "t-user", check=True)
    if executor == "namespaces":
        pid = runtime.state("t-user")["pid"]
        assert "\nUid:\t100000\t100000\t100000\t100000\n" in Path(f"/proc/{pid}/status").read_text()
    inside = runtime("exec", "t-user", "cat", "/proc/1/uid_map", "/proc/1/gid_map", check=True).stdout
    assert inside.split() == ["0", "100000", "65536"] * 2
    assert (
        runtime("exec", "t-user", "sh", "-c", "id -u; echo > /dev/null && echo fine", check=True).stdout == "0\nfine\n"
    )


def test_time_namespace(runtime: Runtime, bundle: Bundle, executor: str) -> None:
    def change(config: dict[str, Any]) -> None:
        config["linux"]["namespaces"].append({"type": "time"})
        config["linux"]["timeOffsets"] = {"boottime": {"secs": 864000}}

    out = runtime("run", "-b", bundle("cat", "/proc/uptime", change=change), "t-time", check=True).stdout
    ours = float(Path("/proc/uptime").read_text().split()[0]) if executor == "namespaces" else 0  # it has just booted
    assert abs(float(out.split()[0]) - ours - 864000) < 60


@pytest.mark.namespaces_only("refused in a machine: test_vm_isolation.py has the words")
def test_joined_namespace(runtime: Runtime, bundle: Bundle) -> None:
    runtime("create", "-b", bundle("sleep", "60"), "t-first", check=True)
    pid = runtime.state("t-first")["pid"]

    def change(config: dict[str, Any]) -> None:
        for namespace in config["linux"]["namespaces"]:
            if namespace["type"] in ("network", "uts", "pid"):
                namespace["path"] = f"/proc/{pid}/ns/{namespace['type'][:3]}"
        del config["hostname"]

    script = "readlink /proc/self/ns/net; readlink /proc/self/ns/uts"
    out = runtime("run", "-b", bundle("sh", "-c", script, change=change, name="two"), "t-second", check=True).stdout
    theirs = namespaces_of(pid)
    assert out.split() == [theirs["net"], theirs["uts"]]


@pytest.mark.namespaces_only("createContainer and startContainer are refused in a machine, see below")
def test_hooks(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    log = tmp_path / "hooks"

    def change(config: dict[str, Any]) -> None:
        def hook(name: str) -> list[dict[str, Any]]:
            script = f'read state; echo "{name} $FROM $(hostname) $state" >> {log}'
            return [
                {
                    "path": "/bin/sh",
                    "args": ["sh", "-c", script],
                    "env": ["FROM=env", "PATH=/bin:/usr/bin"],
                    "timeout": 5,
                }
            ]

        config["hooks"] = {
            k: hook(k) for k in ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
        }
        config["hooks"]["startContainer"] = [{"path": "/bin/sh", "args": ["sh", "-c", "cat > /dev/shm/state"]}]

    out = runtime("run", "-b", bundle("cat", "/dev/shm/state", change=change), "t-hooks", check=True).stdout
    assert json.loads(out)["status"] == "created"
    lines = [line.split(" ", 3) for line in log.read_text().splitlines()]
    here = os.uname().nodename
    statuses = [(name, env, host, json.loads(state)["status"]) for name, env, host, state in lines]
    assert statuses == [
        ("prestart", "env", here, "created"),
        ("createRuntime", "env", here, "creating"),
        ("createContainer", "env", "pycontain", "creating"),
        ("poststart", "env", here, "running"),
        ("poststop", "env", here, "stopped"),
    ]


@pytest.mark.namespaces_only("it is about a process of this host")
def test_a_broken_pipe_of_the_runtime_is_not_the_containers(runtime: Runtime, bundle: Bundle) -> None:
    """As one of a hook that ends without reading its state: other signals are passed on, SIGPIPE is not."""
    path = bundle("sh", "-c", "trap 'echo broken' PIPE; echo up; read line; echo $line")
    command = [*COMMAND, "--root", str(runtime.root), "run", "-b", str(path), "t-pipe"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as run:
        assert run.stdin is not None and run.stdout is not None
        assert run.stdout.readline() == b"up\n"
        run.send_signal(signal.SIGPIPE)
        assert run.communicate(b"lives\n", timeout=20) == (b"lives\n", None)
        assert run.returncode == 0


@pytest.mark.parametrize(
    ("kind", "hook", "error"),
    [
        ("prestart", {"path": "/bin/false"}, "$.hooks.prestart[0]: hook /bin/false ended with exit status 1"),
        (
            "createRuntime",
            {"path": "/bin/sleep", "args": ["sleep", "9"], "timeout": 1},
            "$.hooks.createRuntime[0]: hook /bin/sleep was killed after its timeout of 1 s",
        ),
        (
            "createRuntime",
            {"path": "/no/such"},
            "$.hooks.createRuntime[0]: hook /no/such cannot be executed: ENOENT (no such file or directory)",
        ),
        (
            "createContainer",
            {"path": "/bin/false"},
            "$.hooks.createContainer[0]: hook /bin/false ended with exit status 1",
        ),
        (
            "startContainer",
            {"path": "/bin/sleep", "args": ["sleep", "9"], "timeout": 1},
            "$.hooks.startContainer[0]: hook /bin/sleep was killed after its timeout of 1 s",
        ),
        ("poststart", {"path": "/bin/false"}, "$.hooks.poststart[0]: hook /bin/false ended with exit status 1"),
    ],
)
def test_a_hook_that_fails_fails_the_container(
    runtime: Runtime, bundle: Bundle, kind: str, hook: dict[str, Any], error: str, executor: str
) -> None:
    if executor == "vm" and kind in ("createContainer", "startContainer"):
        error = f"$.hooks.{kind}: its programs are the host's, its namespaces the guest's"
    done = runtime("run", "-b", bundle("sleep", "30", change=lambda c: c.update(hooks={kind: [hook]})), "t-bad")
    assert (done.returncode, done.stderr) == (1, f"pycontain-runtime: {error}\n")
    assert runtime("state", "t-bad").returncode == 1
    assert not left("t-bad")


def terminal(*command: object, size: tuple[int, int] = (33, 101)) -> tuple[int, int]:
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(COMMAND[0], [str(word) for word in command])
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    return pid, fd


def expect(fd: int, text: str, seconds: float = 10) -> str:
    """Reads until ``text`` has come."""
    import select

    seen, deadline = "", time.monotonic() + seconds
    while text not in seen:
        ready, _, _ = select.select([fd], [], [], max(0, deadline - time.monotonic()))
        assert ready, f"{text!r} did not come; seen: {seen!r}"
        try:
            data = os.read(fd, 4096)
        except OSError:
            data = b""
        assert data, f"it ended before {text!r}; seen: {seen!r}"
        seen += data.decode()
    return seen


def test_terminal(runtime: Runtime, bundle: Bundle) -> None:
    path = bundle("sh", change=lambda c: c["process"].update(terminal=True))
    pid, fd = terminal(*COMMAND, "--root", runtime.root, "run", "-b", path, "t-tty")
    expect(fd, "# ")
    os.write(fd, b"stty size; tty; ls -l /dev/console | cut -c1\r")
    assert "/dev/pts/0" in expect(fd, "\r\nc\r\n")
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    time.sleep(0.2)
    os.write(fd, b"stty size\r")
    expect(fd, "40 120")
    os.write(fd, b"sleep 100\r")
    time.sleep(0.3)
    os.write(fd, b"\x03")  # Ctrl-C goes to the sleep, not to the shell and not to us
    os.write(fd, b"echo status $?\r")
    expect(fd, "status 130")
    os.write(fd, b"sleep 100 &\r")
    os.write(fd, b"jobs\r")
    expect(fd, "Running")
    os.write(fd, b"kill %1; exit 17\r")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 17
    os.close(fd)


def test_exec_terminal(runtime: Runtime, bundle: Bundle) -> None:
    runtime("create", "-b", bundle("sleep", "60"), "t-etty", check=True)
    runtime("start", "t-etty", check=True)
    pid, fd = terminal(*COMMAND, "--root", runtime.root, "exec", "-t", "t-etty", "sh", "-c", "tty; stty size; exit 3")
    expect(fd, "33 101")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    os.close(fd)


def test_console_socket(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    import array
    import socket

    path = bundle("sh", "-c", "stty size; read x; echo got $x", change=lambda c: c["process"].update(
        terminal=True, consoleSize={"height": 11, "width": 22}))  # fmt: skip
    refused = runtime("create", "-b", path, "t-sock")
    assert "$.process.terminal is true, but there is no console socket" in refused.stderr
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "console"))
    server.listen()
    runtime("create", "-b", path, "--console-socket", tmp_path / "console", "t-sock", check=True)
    connection, _ = server.accept()
    _, control, _, _ = connection.recvmsg(64, socket.CMSG_SPACE(4))
    master = array.array("i", control[0][2])[0]
    runtime("start", "t-sock", check=True)
    expect(master, "11 22")
    os.write(master, b"word\n")
    expect(master, "got word")
    for closing in (connection, server):
        closing.close()
    os.close(master)


def test_signals_are_passed_on(runtime: Runtime, bundle: Bundle) -> None:
    script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    command = [*COMMAND, "--root", str(runtime.root), "run", "-b", str(bundle("sh", "-c", script)), "t-pass"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == "caught\n"
    assert process.returncode == 5


def test_detached_and_kept(runtime: Runtime, bundle: Bundle) -> None:
    done = runtime("run", "-d", "-b", bundle("sleep", "30"), "t-det", check=True)
    assert done.returncode == 0
    assert runtime.state("t-det")["status"] == "running"
    runtime("run", "--keep", "-b", bundle("true", name="keep"), "t-keep", check=True)
    assert runtime.state("t-keep")["status"] == "stopped"


def test_no_pivot(runtime: Runtime, bundle: Bundle) -> None:
    out = runtime("run", "--no-pivot", "--no-new-keyring", "-b", bundle("ls", "/"), "t-nopivot", check=True).stdout
    assert "proc" in out.split() and "lost+found" not in out.split()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["frob"], "unknown command 'frob'"),
        (["--frob", "list"], "pycontain-runtime: unknown option --frob"),
        (["run", "--frob", "x"], "run: unknown option --frob"),
        (["--root"], "pycontain-runtime: --root wants a value"),
        (["--cgroup-manager", "openrc", "list"], "--cgroup-manager: found 'openrc', wanted one of cgroupfs, systemd"),
        (["--systemd-cgroup", "--cgroup-manager", "cgroupfs", "list"], "found --systemd-cgroup and --cgroup-manager"),
        (["--rootless=maybe", "list"], "--rootless: found 'maybe', wanted auto, true or false"),
        (["run"], "run takes ID: found 0 arguments"),
        (["run", "a", "b"], "run takes ID: found 2 arguments"),
        (["run", "-b", "/no/such", "x"], "bundle /no/such does not exist"),
        (["run", "-b", "/etc", "x"], "cannot read /etc/config.json: it does not exist"),
        (["run", "a/b"], "invalid container id 'a/b': wanted letters, digits and _ + - . only"),
        (["run", ".."], "invalid container id '..': wanted letters, digits and _ + - . only"),
        (["start", "none"], "container none does not exist"),
        (["exec", "none", "true"], "container none does not exist"),
        (["kill", "none", "SIGFOO"], "signal 'SIGFOO'"),
        (["run", "--preserve-fds", "x", "a"], "--preserve-fds: found 'x', wanted a number"),
        (["run", "--preserve-fds", "900", "a"], "--preserve-fds 900: descriptor 3 is not open: EBADF"),
        (["list", "--format", "xml"], "--format: found 'xml', wanted table or json"),
    ],
)
def test_bad_command_lines(runtime: Runtime, arguments: list[str], error: str) -> None:
    done = runtime(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"pycontain-runtime: {error}"), done.stderr
    assert not runtime.root.exists() or os.listdir(runtime.root) == []


def test_log_as_engines_read_it(runtime: Runtime, tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    runtime("--log", log, "--log-format", "json", "state", "none")
    entry = json.loads(log.read_text().splitlines()[-1])
    assert (entry["level"], entry["msg"]) == ("error", "container none does not exist")
    runtime("--log", tmp_path / "log", "state", "none")
    assert 'level=error msg="container none does not exist"' in (tmp_path / "log").read_text()


def test_a_taken_id(runtime: Runtime, bundle: Bundle) -> None:
    path = bundle("sleep", "60")
    runtime("create", "-b", path, "t-taken", check=True)
    done = runtime("create", "-b", path, "t-taken")
    assert done.stderr == (
        "pycontain-runtime: cannot create container t-taken: a container with that id exists\n"
        "\nhint: pycontain-runtime delete t-taken, or choose another id\n"
    )
    assert runtime.state("t-taken")["status"] == "created"


def test_failures_leave_nothing(runtime: Runtime, bundle: Bundle) -> None:
    def unknown_filesystem(config: dict[str, Any]) -> None:
        config["mounts"].append({"destination": "/x", "type": "nosuchfs", "source": "x"})

    done = runtime("run", "-b", bundle("true", change=unknown_filesystem), "t-fs")
    assert done.stderr == "pycontain-runtime: cannot mount nosuchfs (x) on /x: mount: ENODEV (no such device)\n"
    done = runtime("run", "-b", bundle("nowhere", name="n"), "t-127")
    assert done.returncode == 127
    done = runtime("run", "-b", bundle("/etc/passwd", name="p"), "t-126")
    assert done.returncode == 126
    done = runtime(
        "create", "-b", bundle("true", name="r", change=lambda c: c["root"].update(path="/no/root")), "t-root"
    )
    assert done.stderr == "pycontain-runtime: $.root.path: found '/no/root', which is not a directory\n"
    done = runtime("create", "--pid-file", "/no/dir/pid", "-b", bundle("true", name="pid"), "t-pid")
    assert (
        done.stderr == "pycontain-runtime: cannot write the pid file /no/dir/pid: ENOENT (no such file or directory)\n"
    )
    assert os.listdir(runtime.root) == []
    assert not left("t-fs", "t-127", "t-126", "t-root", "t-pid")


@pytest.mark.namespaces_only("it is about a file, and every start of a machine takes its time")
def test_an_unknown_format_version_is_refused(runtime: Runtime, bundle: Bundle) -> None:
    runtime("create", "-b", bundle("sleep", "5"), "t-version", check=True)
    path = runtime.root / "t-version/state.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "version": 99}))
    done = runtime("state", "t-version")
    assert done.stderr == f"pycontain-runtime: cannot read {path}: found format version 99, wanted 1\n"
    path.write_text(json.dumps(fields))


@pytest.mark.needs("runc")
def test_a_bundle_made_by_runc_spec(runtime: Runtime, rootfs: Path, tmp_path: Path) -> None:
    subprocess.run(["runc", "spec"], cwd=tmp_path, check=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["root"]["path"] = str(rootfs)
    (tmp_path / "config.json").write_text(json.dumps(config))
    pid, fd = terminal(*COMMAND, "--root", runtime.root, "run", "-b", tmp_path, "t-runc")
    expect(fd, "# ")
    os.write(fd, b"hostname; exit 4\r")
    expect(fd, "runc")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4
    os.close(fd)
