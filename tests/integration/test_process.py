"""What config.json says of the process, read back from the kernel by programs that know nothing of us."""

from __future__ import annotations

import array
import fcntl
import json
import os
import re
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime_tools import COMMAND, Runtime, write_bundle

pytestmark = pytest.mark.needs("root")

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    runtime = Runtime(tmp_path / "state")
    yield runtime
    runtime.clean()


class Started:
    """Makes bundles and starts them; ``pid`` is the host's number of the first process."""

    def __init__(self, runtime: Runtime, path: Path, rootfs: Path) -> None:
        self.runtime, self.path, self.rootfs = runtime, path, rootfs

    def bundle(self, *args: str, change: Change | None = None) -> Path:
        return write_bundle(self.path / "bundle", self.rootfs, *args, change=change)

    def __call__(self, id: str, change: Change, *args: str) -> int:
        bundle = self.bundle(*(args or ("sleep", "100")), change=change)
        self.runtime("create", "-b", bundle, "--pid-file", self.path / id, id, check=True)
        self.runtime("start", id, check=True)
        return int((self.path / id).read_text())

    def refused(self, change: Change, *args: str) -> str:
        """What ``run`` says; nothing is left."""
        done = self.runtime("run", "-b", self.bundle(*(args or ("true",)), change=change), "pr-refused")
        assert done.returncode == 1, done
        return done.stderr.removeprefix("pycontain-runtime: ").strip()


@pytest.fixture
def started(runtime: Runtime, tmp_path: Path, rootfs: Path) -> Started:
    return Started(runtime, tmp_path, rootfs)


def said(*command: object) -> str:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True).stdout


def of_process(**values: Any) -> Change:
    return lambda config: config["process"].update(values)


def of_linux(**values: Any) -> Change:
    return lambda config: config["linux"].update(values)


def status(pid: int | str, field: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{field}:"))


# Scheduling, I/O priority, processors, memory


@pytest.mark.parametrize(
    ("scheduler", "policy", "nice"),
    [
        ({"policy": "SCHED_BATCH", "nice": 7}, "SCHED_BATCH", 7),
        ({"policy": "SCHED_IDLE", "flags": ["SCHED_FLAG_RESET_ON_FORK"]}, "SCHED_IDLE|SCHED_RESET_ON_FORK", 0),
        ({"policy": "SCHED_OTHER", "nice": -3}, "SCHED_OTHER", -3),
    ],
)
def test_scheduler(started: Started, scheduler: dict[str, Any], policy: str, nice: int) -> None:
    pid = started("pr-sched", of_process(scheduler=scheduler))
    assert f"scheduling policy: {policy}\n" in said("chrt", "-p", pid)
    assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[16] == str(nice)


def test_deadline_scheduler(started: Started) -> None:
    scheduler = {"policy": "SCHED_DEADLINE", "runtime": 1_000_000, "deadline": 9_000_000, "period": 10_000_000}
    pid = started("pr-deadline", of_process(scheduler=scheduler))
    assert "runtime/deadline/period parameters: 1000000/9000000/10000000" in said("chrt", "-p", pid)


def test_real_time_scheduler(started: Started) -> None:
    """A cgroup of v1 has no time for it, where the kernel divides that among cgroups (CONFIG_RT_GROUP_SCHED)."""
    change = of_process(scheduler={"policy": "SCHED_RR", "priority": 5})
    if Path("/sys/fs/cgroup/cpu/cpu.rt_runtime_us").exists():
        assert started.refused(change) == (
            "cannot set the scheduling policy to SCHED_RR, nice 0, priority 5: EPERM (operation not permitted)\n\n"
            "hint: on cgroup v1 it wants $.linux.resources.cpu.realtimeRuntime, and the same of every cgroup above"
        )
    else:
        said_ = said("chrt", "-p", started("pr-rr", change))
        assert "scheduling policy: SCHED_RR\n" in said_ and "scheduling priority: 5\n" in said_


def test_what_the_kernel_says_of_a_scheduler(started: Started) -> None:
    scheduler = {"policy": "SCHED_DEADLINE", "runtime": 20_000, "deadline": 10_000, "period": 10_000}
    assert started.refused(of_process(scheduler=scheduler)) == (
        "cannot set the scheduling policy to SCHED_DEADLINE, nice 0, priority 0, runtime 20000 ns, deadline 10000 ns, "
        "period 10000 ns: EINVAL (invalid argument)"
    )


@pytest.mark.parametrize(
    ("name", "priority", "words"),
    [("RT", 3, "realtime: prio 3"), ("BE", 6, "best-effort: prio 6"), ("IDLE", 0, "idle")],
)
def test_io_priority(started: Started, name: str, priority: int, words: str) -> None:
    pid = started("pr-io", of_process(ioPriority={"class": f"IOPRIO_CLASS_{name}", "priority": priority}))
    assert said("ionice", "-p", pid).strip() == words


def test_memory_policy(started: Started) -> None:
    policy = {"mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}
    pid = started("pr-mem", of_linux(memoryPolicy=policy))
    assert " interleave=static:0 " in Path(f"/proc/{pid}/numa_maps").read_text().splitlines()[0]
    # A process of exec has it too.
    done = started.runtime("exec", "pr-mem", "head", "-n1", "/proc/self/numa_maps", check=True)
    assert " interleave=static:0 " in done.stdout


def test_memory_nodes_that_are_not_there(started: Started) -> None:
    policy = {"mode": "MPOL_BIND", "nodes": "999"}
    assert started.refused(of_linux(memoryPolicy=policy)) == (
        "cannot set the memory policy to MPOL_BIND on nodes 999: EINVAL (invalid argument)"
    )


def test_cpu_affinity_of_exec(started: Started) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        pytest.skip("needs two processors")
    pid = started("pr-cpu", of_process(execCPUAffinity={"initial": f"{cpus[0]}", "final": f"{cpus[1]}"}))
    assert said("taskset", "-cp", pid).split(": ")[1] == said("taskset", "-cp", os.getpid()).split(": ")[1], (
        "exec's alone"
    )
    inside = started.runtime("exec", "pr-cpu", "grep", "Cpus_allowed_list", "/proc/self/status", check=True).stdout
    assert inside.split() == ["Cpus_allowed_list:", str(cpus[1])]
    process = {"cwd": "/", "args": ["grep", "Cpus_allowed_list", "/proc/self/status"]}
    # Without "final" it is the kernel's decision: what clone3(2) puts into a cgroup2 may get all of its processors.
    first, second, every = str(cpus[0]), str(cpus[1]), status("self", "Cpus_allowed_list")
    for affinity, wanted in (({"initial": second}, {second, every}), ({"final": first}, {first})):
        (started.path / "process.json").write_text(json.dumps({**process, "execCPUAffinity": affinity}))
        done = started.runtime("exec", "--process", started.path / "process.json", "pr-cpu", check=True)
        assert done.stdout.split()[1] in wanted
    (started.path / "process.json").write_text(json.dumps({**process, "execCPUAffinity": {"final": "8000"}}))
    done = started.runtime("exec", "--process", started.path / "process.json", "pr-cpu")
    assert done.stderr == "pycontain-runtime: cannot keep to processors 8000: EINVAL (invalid argument)\n"


@pytest.mark.both_executors
def test_inside(runtime: Runtime, tmp_path: Path, rootfs: Path, executor: str) -> None:
    """As the container sees it itself: in a machine nobody else can."""

    def change(config: dict[str, Any]) -> None:
        config["process"].update(
            scheduler={"policy": "SCHED_BATCH", "nice": 3},
            ioPriority={"class": "IOPRIO_CLASS_BE", "priority": 6},
            user={"uid": 7, "gid": 8, "additionalGids": [9]},
        )
        config["linux"]["memoryPolicy"] = {"mode": "MPOL_BIND", "nodes": "0"}
        if executor == "vm":
            config["annotations"] = {"org.pycontain.isolation": "vm"}

    script = "read -r line < /proc/self/stat; set -- $line; shift 18; echo $1; shift 22; echo $1; id -G; "
    script += "head -n1 /proc/self/numa_maps; ionice -p $$ || ionice"
    done = runtime("run", "-b", write_bundle(tmp_path / "b", rootfs, "sh", "-c", script, change=change), "pr-inside")
    nice, policy, groups, policies, io = done.stdout.splitlines()
    assert (nice, policy, groups, io) == ("3", "3", "8 9", "best-effort: prio 6"), done
    assert " bind:0 " in policies


# Limits, identity


def test_every_resource_limit(started: Started) -> None:
    import resource

    names = "AS CORE CPU DATA FSIZE LOCKS MEMLOCK MSGQUEUE NICE NOFILE NPROC RSS RTPRIO RTTIME SIGPENDING STACK"
    wanted = {}
    for name in names.split():
        number = {"LOCKS": 10, "MSGQUEUE": 12, "NICE": 13, "RTPRIO": 14, "RTTIME": 15, "SIGPENDING": 11}.get(name)
        number = getattr(resource, f"RLIMIT_{name}") if number is None else number
        _, hard = resource.getrlimit(number)
        hard = 1 << 40 if hard == resource.RLIM_INFINITY else hard
        wanted[name] = (hard // 2, hard)
    limits = [{"type": f"RLIMIT_{name}", "soft": soft, "hard": hard} for name, (soft, hard) in wanted.items()]
    pid = started("pr-limits", of_process(rlimits=limits))
    for line in said("prlimit", "-p", pid, "--raw", "--noheadings", "-o", "RESOURCE,SOFT,HARD").splitlines():
        name, soft, hard = line.split()
        assert (int(soft), int(hard)) == wanted.pop(name), name
    assert not wanted


def test_five_sets_of_capabilities(started: Started) -> None:
    base = ["CAP_KILL", "CAP_NET_RAW", "CAP_CHOWN"]
    capabilities = {
        "bounding": [*base, "CAP_SYS_CHROOT"],
        "permitted": base,
        "effective": base[:1],
        "inheritable": base[:2],
        "ambient": [base[0], "CAP_CHOWN"],  # not inheritable: the kernel would refuse it
    }
    user = {"uid": 1000, "gid": 1000, "additionalGids": [7, 8], "umask": 0o27}
    pid = started("pr-caps", of_process(capabilities=capabilities, user=user))
    found = {name: int(status(pid, name), 16) for name in ("CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb")}
    kill, raw, chown, chroot = (1 << bit for bit in (5, 13, 0, 18))
    assert found == {
        "CapBnd": kill | raw | chown | chroot, "CapInh": kill | raw, "CapAmb": kill, "CapPrm": kill, "CapEff": kill,
    }  # fmt: skip
    assert status(pid, "Groups").split() == ["7", "8"]
    assert status(pid, "Uid").split() == ["1000"] * 4 and status(pid, "Gid").split() == ["1000"] * 4
    assert status(pid, "Umask") == "0027"
    assert status(pid, "NoNewPrivs") == "1"


@pytest.mark.needs("getpcaps")
def test_a_capability_that_cannot_be_granted_is_a_warning(started: Started) -> None:
    """In a restricted environment (config.md, Linux Process): here one without CAP_SYS_TIME, made by capsh."""
    names = ["CAP_SYS_TIME", "CAP_KILL"]
    change = of_process(capabilities=dict.fromkeys(("bounding", "effective", "permitted"), names))
    bundle = started.bundle("grep", "CapPrm", "/proc/self/status", change=change)
    command = [*COMMAND, "--root", str(started.runtime.root), "run", "-b", str(bundle), "pr-warn"]
    done = subprocess.run(
        ["capsh", "--drop=cap_sys_time", "--", "-c", " ".join(command)], capture_output=True, text=True, timeout=30
    )
    assert done.stdout.split() == ["CapPrm:", f"{1 << 5:016x}"]
    text = "pycontain-runtime: warning: $.process.capabilities.{}[0]: CAP_SYS_TIME is not in the bounding set here and "
    text += "cannot be granted, ignored\n"
    assert done.stderr == "".join(text.format(kind) for kind in ("bounding", "effective", "permitted"))


def test_console_size(started: Started) -> None:
    """The terminal's size is read on the other side, where an engine would hold it."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(started.path / "console.sock"))
    server.listen()
    change = of_process(terminal=True, consoleSize={"height": 65535, "width": 7})
    bundle = started.bundle("sleep", "100", change=change)
    started.runtime("create", "-b", bundle, "--console-socket", started.path / "console.sock", "pr-tty", check=True)
    client, _ = server.accept()
    _, (master,), _, _ = socket.recv_fds(client, 100, 1)
    rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(master, 0x5413, b"\0" * 8))  # TIOCGWINSZ
    assert (rows, columns) == (65535, 7)
    for one in (master, client.detach(), server.detach()):
        os.close(one)


def test_personality(started: Started) -> None:
    pid = started("pr-pers", of_linux(personality={"domain": "LINUX32"}))
    assert int(Path(f"/proc/{pid}/personality").read_text(), 16) & 0xFF == 8


@pytest.mark.parametrize("key", ["apparmorProfile", "selinuxLabel"])
def test_labels_are_refused_without_their_module(started: Started, key: str) -> None:
    name, there = ("AppArmor", "/sys/module/apparmor") if key == "apparmorProfile" else ("SELinux", "/sys/fs/selinux")
    if Path(there).exists():
        pytest.skip(f"needs a kernel without {name}")
    assert started.refused(of_process(**{key: "x"})) == (
        f"$.process.{key}: {name} is not on in this kernel\n\nhint: remove it from config.json"
    )


# Seccomp


def test_a_filter_does_not_refuse_what_init_does(started: Started) -> None:
    """Without no_new_privs too: what init calls to become the user comes before the filter."""
    names = "setgroups setresgid setresuid capset chdir getcwd umask setsid sendmsg recvmsg fchown setrlimit"
    rule = {"names": names.split(), "action": "SCMP_ACT_KILL_PROCESS"}

    def change(config: dict[str, Any]) -> None:
        config["process"].update(noNewPrivileges=False, user={"uid": 1000, "gid": 1000, "additionalGids": [5]})
        config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}

    done = started.runtime("run", "-b", started.bundle("echo", "alive", change=change), "pr-strict")
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")


def test_getcwd_may_be_refused(started: Started) -> None:
    """What the official program linux_seccomp does."""

    def change(config: dict[str, Any]) -> None:
        config["process"]["noNewPrivileges"] = False
        rule = {"names": ["getcwd"], "action": "SCMP_ACT_ERRNO"}
        config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}

    bundle = started.bundle("sh", "-c", "cd /tmp && /bin/pwd; echo $?; grep -c . /proc/self/status", change=change)
    done = started.runtime("run", "-b", bundle, "pr-getcwd")
    assert "Operation not permitted" in done.stderr and done.stdout.startswith("1\n"), done
    pid = started("pr-getcwd2", change)
    assert status(pid, "NoNewPrivs") == "0" and status(pid, "Seccomp") == "2"
    caps = [int(status(pid, name), 16) for name in ("CapPrm", "CapEff", "CapBnd")]
    assert caps == [1 << 5 | 1 << 10 | 1 << 29] * 3, "init's CAP_SYS_ADMIN has gone with execve"


class Agent:
    """A seccomp agent: takes listeners on a socket, and answers every notification with the same errno; 0: let it go on.

    It looks for one call of each listener, or (0) for all until the listener's processes are gone.
    """

    def __init__(self, path: Path, errno: int, connections: int = 1) -> None:
        self.states: list[dict[str, Any]] = []
        self.calls: list[int] = []
        self.errno = errno
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        self._server.settimeout(20)
        self._connections = connections
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        for _ in range(self._connections):
            client, _ = self._server.accept()
            data, fds, _, _ = socket.recv_fds(client, 65536, 1)
            while part := client.recv(65536):
                data += part
            client.close()
            self.states.append(json.loads(data))
            (listener,) = fds
            while True:
                request = array.array("B", bytes(80))  # struct seccomp_notif: id, pid, flags, data
                try:
                    fcntl.ioctl(listener, 0xC0502100, request)
                except FileNotFoundError:  # who asked is gone
                    break
                id, _, _, number = struct.unpack_from("<QIIi", request)
                self.calls.append(number)
                # struct seccomp_notif_resp: id, value, error, flags (SECCOMP_USER_NOTIF_FLAG_CONTINUE)
                fcntl.ioctl(listener, 0xC0182101, struct.pack("<QqiI", id, 0, -self.errno, int(not self.errno)))
                if self.errno and len(self.calls) == len(self.states):
                    break
            os.close(listener)

    def join(self) -> None:
        self._thread.join(20)
        self._server.close()


@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_notifications_reach_the_agent(started: Started, no_new_privileges: bool) -> None:
    """linux.seccomp.listenerPath: the listener and the container process state, one each connection."""
    path = started.path / "agent.sock"
    flags = ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]

    def change(config: dict[str, Any]) -> None:
        config["process"]["noNewPrivileges"] = no_new_privileges
        config["annotations"] = {"org.example.key": "value"}
        config["linux"]["seccomp"] = {
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": str(path),
            "listenerMetadata": "what=it is",
            "flags": flags,
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
        }

    agent = Agent(path, 122, connections=2)  # EDQUOT, which nothing else would say
    pid = started("pr-notify", change, "sh", "-c", "mkdir /tmp/x 2>/tmp/said; sleep 100")
    exec_ = started.runtime("exec", "pr-notify", "sh", "-c", "cat /tmp/said; mkdir /tmp/y")
    agent.join()
    # The words for EDQUOT are those of two C libraries.
    assert re.fullmatch("mkdir: can't create directory '/tmp/x': (Disk q|Q)uota exceeded\n", exec_.stdout)
    assert re.fullmatch("mkdir: can't create directory '/tmp/y': (Disk q|Q)uota exceeded\n", exec_.stderr)
    state = started.runtime.state("pr-notify")
    first, second = agent.states
    assert first == {
        "ociVersion": "1.3.0",
        "fds": ["seccompFd"],
        "pid": pid,
        "metadata": "what=it is",
        "state": {
            "ociVersion": "1.3.0",
            "id": "pr-notify",
            "status": "created",
            "pid": pid,
            "bundle": state["bundle"],
            "annotations": {"org.example.key": "value"},
        },
    }
    assert (second["state"]["status"], second["state"]["pid"]) == ("running", pid)
    assert second["pid"] != pid
    assert len(agent.calls) == 2


def test_the_agent_may_decide_about_what_init_calls(started: Started) -> None:
    """The one read(2) with which init waits, and execve(2)."""
    path = started.path / "agent.sock"
    seccomp = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": str(path),
        "syscalls": [{"names": ["read", "execve"], "action": "SCMP_ACT_NOTIFY"}],
    }
    agent = Agent(path, 0)
    done = started.runtime("run", "-b", started.bundle("true", change=of_linux(seccomp=seccomp)), "pr-decide")
    agent.join()
    assert (done.returncode, done.stderr) == (0, "")
    read, execve = (0, 59) if os.uname().machine == "x86_64" else (63, 221)
    assert agent.calls[0] == read and execve in agent.calls


def test_an_agent_that_is_not_there(started: Started) -> None:
    seccomp = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": "/run/nobody.sock",
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}],
    }
    assert started.refused(of_linux(seccomp=seccomp)) == (
        "$.linux.seccomp.listenerPath: cannot send the listener to /run/nobody.sock: ENOENT (no such file or directory)"
    )
