"""Rules of the runtime specification that the official validation programs caught somebody breaking, in words of our own."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime_tools import COMMAND, Runtime, left, make_rootfs, write_bundle

pytestmark = pytest.mark.needs("root", "netns")
Bundle = Callable[..., Path]


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rootfs(tmp_path_factory.mktemp("conformance") / "rootfs")


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    runtime = Runtime(tmp_path / "state")
    yield runtime
    runtime.clean()


@pytest.fixture
def bundle(tmp_path: Path, rootfs: Path) -> Bundle:
    return lambda *args, **options: write_bundle(tmp_path / "bundle", rootfs, *args, **options)


def ended(runtime: Runtime, id: str) -> None:
    deadline = time.monotonic() + 10
    while runtime.state(id)["status"] != "stopped":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def mounts_below(path: Path) -> list[str]:
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(path) in line]


def no_mount_namespace(config: dict[str, Any]) -> None:
    config["linux"]["namespaces"] = [{"type": "pid"}, {"type": "uts"}]
    config["linux"]["maskedPaths"] = ["/proc/interrupts"]
    config["linux"]["readonlyPaths"] = ["/proc/sys"]
    config["mounts"] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k"]},
    ]


def test_a_namespace_that_is_not_listed_is_the_runtimes(runtime: Runtime, bundle: Bundle, rootfs: Path) -> None:
    """config-linux.md, "Namespaces": inherited, the mount namespace too; what was mounted goes with the container."""
    script = "wc -c </proc/interrupts; echo x >/proc/sys/kernel/domainname || echo ro; df /tmp | grep -c 64"
    runtime("create", "-b", bundle("sh", "-c", script, change=no_mount_namespace), "conf-ns", check=True)
    pid = runtime.state("conf-ns")["pid"]
    for kind in ("mnt", "ipc", "net", "user", "cgroup"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") == os.readlink(f"/proc/self/ns/{kind}"), kind
    for kind in ("pid", "uts"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind
    assert sorted({str(rootfs / "proc"), str(rootfs / "tmp"), str(rootfs)} - set(mounts_below(rootfs))) == []
    runtime("start", "conf-ns", check=True)
    ended(runtime, "conf-ns")
    runtime("delete", "conf-ns", check=True)
    assert mounts_below(rootfs) == []
    done = runtime("run", "-b", bundle("sh", "-c", script, change=no_mount_namespace), "conf-ns", check=True)
    assert done.stdout == "0\nro\n1\n"
    assert mounts_below(rootfs) == []


def test_what_was_there_before_stays(runtime: Runtime, bundle: Bundle, rootfs: Path) -> None:
    """A root that is a mount already, as engines give it, is that mount again afterwards; also where create fails."""
    subprocess.run(["mount", "--bind", rootfs, rootfs], check=True)
    try:
        before = mounts_below(rootfs)
        assert len(before) == 1
        runtime("run", "-b", bundle("true", change=no_mount_namespace), "conf-before", check=True)
        assert mounts_below(rootfs) == before

        def broken(config: dict[str, Any]) -> None:
            no_mount_namespace(config)
            config["mounts"].append({"destination": "/x", "type": "nosuchfs", "source": "x"})

        assert "nosuchfs" in runtime("create", "-b", bundle("true", change=broken), "conf-before").stderr
        assert mounts_below(rootfs) == before
    finally:
        subprocess.run(["umount", rootfs], check=True)


def test_a_change_of_the_configuration_comes_too_late(runtime: Runtime, bundle: Bundle) -> None:
    """runtime.md, "Lifecycle" 2: what config.json says after create is nothing to the container."""
    path = bundle("echo", "as it was", change=lambda config: config["linux"].update(rootfsPropagation="shared"))
    output = path / "output"
    with output.open("w") as out:
        runtime("create", "-b", path, "conf-late", check=True, stdout=out)
    (path / "config.json").write_text('{"ociVersion": "1.0.0"}')
    runtime("start", "conf-late", check=True)
    ended(runtime, "conf-late")
    assert output.read_text() == "as it was\n"


@pytest.mark.parametrize("kind", ["shared", "rshared", "slave", "private", "unbindable"])
def test_propagation_of_the_root(runtime: Runtime, bundle: Bundle, kind: str) -> None:
    """config-linux.md, "Rootfs Mount Propagation"; util-linux's names of it, from the outside."""
    change = lambda config: config["linux"].update(rootfsPropagation=kind)  # noqa: E731
    runtime("create", "-b", bundle("true", change=change), "conf-spread", check=True)
    pid = runtime.state("conf-spread")["pid"]
    (root,) = [line for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines() if line.split()[4] == "/"]
    tags = root.partition(" - ")[0].split()[6:]
    assert ("shared:" in " ".join(tags)) == kind.endswith("shared"), root
    assert ("unbindable" in tags) == (kind == "unbindable"), root
    if kind == "private":
        assert tags == [], root


def test_what_hooks_are_told(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    """config.md, "Prestart": after the environment has been created; "createRuntime" while it is being created."""

    kinds = ("prestart", "createRuntime", "poststart", "poststop")
    annotations = {"org.example.key": "a value"}

    def change(config: dict[str, Any]) -> None:
        config["annotations"] = annotations
        config["hooks"] = {
            kind: [{"path": "/bin/sh", "args": ["sh", "-c", f"cat >{tmp_path}/{kind}"]}] for kind in kinds
        }

    path = bundle("true", change=change)
    runtime("create", "-b", path, "conf-hooks", check=True)
    pid = runtime.state("conf-hooks")["pid"]
    runtime("start", "conf-hooks", check=True)
    ended(runtime, "conf-hooks")
    runtime("delete", "conf-hooks", check=True)
    states = {kind: json.loads((tmp_path / kind).read_text()) for kind in kinds}
    assert {kind: state["status"] for kind, state in states.items()} == {
        "prestart": "created", "createRuntime": "creating", "poststart": "running", "poststop": "stopped",
    }  # fmt: skip
    for kind, state in states.items():
        assert (state["id"], state["bundle"], state["annotations"]) == ("conf-hooks", str(path), annotations)
        assert state.get("pid", 0) == (0 if kind == "poststop" else pid)


def test_a_poststart_hook_that_fails_ends_the_container(runtime: Runtime, bundle: Bundle) -> None:
    """runtime.md 1.3, "Lifecycle" 9: an error, and the container is stopped and destroyed; earlier versions wanted a warning."""
    change = lambda config: config.update(hooks={"poststart": [{"path": "/bin/false"}]})  # noqa: E731
    runtime("create", "-b", bundle("sleep", "99", change=change), "conf-post", check=True)
    done = runtime("start", "conf-post")
    assert (done.returncode, done.stderr) == (
        1, "pycontain-runtime: $.hooks.poststart[0]: hook /bin/false ended with exit status 1\n",
    )  # fmt: skip
    assert runtime("state", "conf-post").stderr == "pycontain-runtime: container conf-post does not exist\n"


@pytest.mark.parametrize("no_new_privileges", [False, True])
def test_a_filter_does_not_stand_in_the_runtimes_way(runtime: Runtime, bundle: Bundle, no_new_privileges: bool) -> None:
    """The filter is the program's: that it refuses getcwd(2) is nothing to how the working directory is entered."""

    def change(config: dict[str, Any]) -> None:
        config["process"]["noNewPrivileges"] = no_new_privileges
        config["linux"]["seccomp"] = {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["getcwd"], "action": "SCMP_ACT_ERRNO"}],
        }

    done = runtime("run", "-b", bundle("sh", "-c", "readlink /proc/self/cwd; /bin/pwd -P", change=change), "conf-filter")
    assert done.returncode != 0 and done.stdout == "/\n", done.stderr


def test_a_capability_that_cannot_be_granted_is_worth_a_warning(runtime: Runtime, bundle: Bundle) -> None:
    """config.md, "Linux Process": logged, and no reason to fail."""

    def change(config: dict[str, Any]) -> None:
        names = ["CAP_KILL", "CAP_SYS_RESOURCE"]
        config["process"]["capabilities"] = dict.fromkeys(("bounding", "effective", "permitted"), names)

    path = bundle("grep", "CapEff", "/proc/self/status", change=change)
    # The bounding set of this process and of its children, without a capability that the container wants.
    command = ["setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource"]
    done = subprocess.run(
        [*command, *COMMAND, "--root", str(runtime.root), "run", "-b", str(path), "conf-caps"],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=50,
    )  # fmt: skip
    assert done.stdout == f"CapEff:\t{1 << 5:016x}\n", done.stderr
    assert done.returncode == 0 and "CAP_SYS_RESOURCE" in done.stderr and "warning" in done.stderr


def test_options_of_a_file_system_do_not_stop_a_bind_mount(runtime: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    mount = {"destination": "/tmp", "type": "bind", "source": str(tmp_path), "options": ["rbind", "mode=755", "size=1k"]}
    done = runtime("run", "-b", bundle("ls", "/tmp/bundle", change=lambda c: c["mounts"].append(mount)), "conf-bind")
    assert (done.returncode, done.stdout) == (0, "config.json\n")
    assert "warning: $.mounts[" in done.stderr and "'mode=755,size=1k'" in done.stderr


@pytest.mark.parametrize("format", ["json", "text"])
def test_a_warning_goes_to_the_log_where_there_is_one(
    runtime: Runtime, bundle: Bundle, tmp_path: Path, format: str
) -> None:
    """Standard error is the container's as well: engines would show our words as its own."""
    log = tmp_path / "log"
    mount = {"destination": "/tmp", "type": "bind", "source": str(tmp_path), "options": ["bind", "size=1k"]}
    path = bundle("echo", "hello", change=lambda config: config["mounts"].append(mount))
    done = runtime("--log", log, "--log-format", format, "run", "-b", path, "conf-log", check=True)
    assert (done.stdout, done.stderr) == ("hello\n", "")
    words = "options: 'size=1k' belongs to a file system, ignored for a bind mount"
    (line,) = log.read_text().splitlines()
    if format == "json":
        entry = json.loads(line)
        assert entry["level"] == "warning" and entry["msg"].endswith(words)
    else:
        assert "level=warning" in line and words in line


def test_what_is_refused_has_no_effect(runtime: Runtime, bundle: Bundle) -> None:
    """runtime.md, "Operations": errors of start, kill and delete in the wrong state leave the container as it is."""
    path = bundle("sh", "-c", "while true; do sleep 1; done")
    assert runtime("start", "conf-none").stderr == "pycontain-runtime: container conf-none does not exist\n"
    runtime("create", "-b", path, "conf-state", check=True)
    again = runtime("create", "-b", path, "conf-state")
    assert again.returncode == 1 and "a container with that id exists" in again.stderr
    runtime("start", "conf-state", check=True)
    before = runtime.state("conf-state")
    assert "found it running, wanted created" in runtime("start", "conf-state").stderr
    assert "found it running, wanted stopped or created" in runtime("delete", "conf-state").stderr
    assert runtime.state("conf-state") == before
    runtime("kill", "conf-state", "KILL", check=True)
    ended(runtime, "conf-state")
    assert "container not running (it is stopped)" in runtime("kill", "conf-state", "KILL").stderr
    assert "found it stopped, wanted created" in runtime("start", "conf-state").stderr
    assert runtime.state("conf-state")["status"] == "stopped"
    runtime("delete", "conf-state", check=True)
    assert "does not exist" in runtime("delete", "conf-state").stderr


def test_a_paused_container_can_be_killed(runtime: Runtime, bundle: Bundle) -> None:
    """runtime.md, "Kill": engines wait for its end, which in a frozen cgroup of v1 would not come. Other signals wait."""
    script = "trap 'exit 3' TERM; while true; do sleep 0.05; done"
    for number, after in (("TERM", "paused"), ("KILL", "stopped")):
        runtime("create", "-b", bundle("sh", "-c", script), "conf-paused", check=True)
        runtime("start", "conf-paused", check=True)
        runtime("pause", "conf-paused", check=True)
        runtime("kill", "conf-paused", number, check=True)
        if after == "stopped":
            ended(runtime, "conf-paused")
        assert runtime.state("conf-paused")["status"] == after
        runtime("delete", "--force", "conf-paused", check=True)


def test_only_its_own_resources_are_deleted(runtime: Runtime, bundle: Bundle) -> None:
    """runtime.md, "Delete": what was not made by the container is not taken away with it: a sibling's cgroup is there still."""
    change = lambda config: config["linux"].update(cgroupsPath="/pycontain/conf-parent/child")  # noqa: E731
    runtime("create", "-b", bundle("true", change=change), "conf-child", check=True)
    pid = runtime.state("conf-child")["pid"]
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    inside = {line.split(":", 2)[2] for line in lines}
    assert "/pycontain/conf-parent/child" in inside
    sibling = Path("/sys/fs/cgroup/pids/pycontain/conf-parent/sibling")
    if not sibling.parent.is_dir():
        sibling = Path("/sys/fs/cgroup/pycontain/conf-parent/sibling")
    sibling.mkdir()
    try:
        runtime("delete", "--force", "conf-child", check=True)
        assert sibling.is_dir() and not (sibling.parent / "child").exists()
    finally:
        sibling.rmdir()
        for top in Path("/sys/fs/cgroup").glob("**/pycontain/conf-parent"):
            top.rmdir()
    assert left("conf-child") == []


@pytest.mark.parametrize("program", ["nosuch", "/nosuch", "./nosuch", ""])
def test_a_program_that_is_not_there_fails_create(runtime: Runtime, bundle: Bundle, program: str) -> None:
    """As with runc: podman says 127 only of what create refuses. With a startContainer hook, which may make it, start does."""
    wanted = f"cannot execute {program!r}: executable file not found{'' if '/' in program else ' in $PATH'}: ENOENT"
    done = runtime("create", "-b", bundle(program), "conf-find")
    assert done.returncode == 127 and wanted in done.stderr, done.stderr
    assert not runtime.root.exists() or os.listdir(runtime.root) == []

    def change(config: dict[str, Any]) -> None:
        config["hooks"] = {"startContainer": [{"path": "/bin/true"}]}

    runtime("create", "-b", bundle(program, change=change), "conf-find", check=True)
    done = runtime("start", "conf-find")
    assert done.returncode == 127 and wanted in done.stderr, done.stderr


@pytest.mark.parametrize("program", ["sh", "/bin/sh", "./sh", "../bin/sh", "relative"])
def test_a_program_that_is_there_passes_create(runtime: Runtime, bundle: Bundle, program: str, tmp_path: Path) -> None:
    """Relative to the working directory, in the order of $PATH, also by an entry that is relative itself."""
    (tmp_path / "relative").write_text("#!/bin/sh\n")
    (tmp_path / "relative").chmod(0o755)

    def change(config: dict[str, Any]) -> None:
        config["process"].update(cwd="/bin", env=["PATH=:/nowhere:../tmp:/bin"])
        config["mounts"].append({"destination": "/tmp", "type": "bind", "source": str(tmp_path), "options": ["bind"]})

    runtime("create", "-b", bundle(program, "-c", "exit 0", change=change), "conf-there", check=True)
    runtime("start", "conf-there", check=True)
    ended(runtime, "conf-there")


def test_a_container_without_a_process_can_be_created_and_not_started(runtime: Runtime, bundle: Bundle) -> None:
    """config.md, "Process": required when start is called; runtime.md, "Start": an error that changes nothing."""
    path = bundle(change=lambda config: config.pop("process"))
    (path / "process.json").write_text('{"args": ["true"], "cwd": "/", "env": ["PATH=/bin"]}')
    runtime("create", "-b", path, "conf-idle", check=True)
    before = runtime.state("conf-idle")
    assert before["status"] == "created"
    done = runtime("start", "conf-idle")
    assert (done.returncode, done.stderr) == (
        1, "pycontain-runtime: $.process: found nothing, wanted the process to run\n",
    )  # fmt: skip
    assert runtime.state("conf-idle") == before
    runtime("exec", "--process", path / "process.json", "conf-idle", check=True)
    runtime("kill", "conf-idle", "KILL", check=True)
    ended(runtime, "conf-idle")
    runtime("delete", "conf-idle", check=True)
    assert runtime("run", "-b", path, "conf-idle").stderr == done.stderr
