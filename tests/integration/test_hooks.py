"""All six hooks, by config.md and runtime.md 1.3: when and where each runs, with what, and what becomes of one that fails.

What a hook saw it wrote down itself; runc, where it follows the same rule, is asked for the same.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime_tools import Runtime, left, write_bundle

pytestmark = pytest.mark.needs("root")
RUNTIME_HOOKS = ("prestart", "createRuntime", "poststart", "poststop")
KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
NAME = f"hk-{os.getpid()}"


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    found = Runtime(tmp_path / "state")
    yield found
    found.clean()


@pytest.fixture
def log(tmp_path: Path, rootfs: Path) -> Iterator[Path]:
    """One file for all hooks; inside the container it is mounted at the same place."""
    path = tmp_path / "log"
    path.touch()
    yield path


def hooked(log: Path, *, kinds: tuple[str, ...] = KINDS, fails: str = "") -> Callable[[dict[str, Any]], None]:
    """Each hook writes: its kind, number and working directory, its namespaces and rights, and its stdin."""
    script = (
        'echo "$0 $(pwd) $(readlink /proc/self/ns/mnt) $(readlink /proc/self/ns/net) $(readlink /proc/self/ns/pid)'
        f""" $(grep CapEff /proc/self/status | cut -f2) $(cat)" >> {shlex.quote(str(log))}"""
    )

    def change(config: dict[str, Any]) -> None:
        def entry(kind: str, number: int) -> dict[str, Any]:
            return {"path": "/bin/sh", "args": ["sh", "-c", script, f"{kind}-{number}"], "env": ["PATH=/bin:/usr/bin"]}

        config["hooks"] = {kind: [entry(kind, 1), entry(kind, 2)] for kind in kinds}
        if fails:
            config["hooks"][fails].insert(1, {"path": "/bin/false"})
        config["annotations"] = {"org.example.note": "kept", "org.example.long": "x" * 200_000}
        config["mounts"] += [
            {"destination": str(log), "source": str(log), "options": ["bind"]},
            {"destination": "/run/marker", "type": "tmpfs", "source": "tmpfs"},
        ]

    return change


class Entry:
    def __init__(self, line: str) -> None:
        self.name, self.cwd, self.mnt, self.net, self.pid, self.caps, state = line.split(" ", 6)
        self.state = json.loads(state)


def entries(log: Path) -> list[Entry]:
    return [Entry(line) for line in log.read_text().splitlines()]


def test_when_where_and_with_what_they_run(runtime: Runtime, rootfs: Path, log: Path, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", rootfs, "sleep", "60", change=hooked(log))
    runtime("create", "-b", bundle, NAME, check=True)
    assert [e.name for e in entries(log)] == [f"{k}-{n}" for k in KINDS[:3] for n in (1, 2)]
    pid = runtime.state(NAME)["pid"]
    inside = {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("mnt", "net", "pid")}
    runtime("start", NAME, check=True)
    assert [e.name for e in entries(log)] == [f"{k}-{n}" for k in KINDS[:5] for n in (1, 2)]
    runtime("kill", NAME, "KILL", check=True)
    runtime("delete", "--force", NAME, check=True)
    found = {e.name[:-2]: e for e in entries(log)}
    assert [e.name for e in entries(log)] == [f"{k}-{n}" for k in KINDS for n in (1, 2)]
    here = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "net", "pid")}
    statuses = dict(zip(KINDS, ("created", "creating", "creating", "created", "running", "stopped")))
    every = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "CapEff" in line)
    for kind, entry in found.items():
        place = here if kind in RUNTIME_HOOKS else inside
        assert (entry.mnt, entry.net, entry.pid) == (place["mnt"], place["net"], place["pid"]), kind
        assert entry.state["status"] == statuses[kind]
        assert entry.state["id"] == NAME and entry.state["bundle"] == str(bundle)
        assert entry.state["annotations"] == {"org.example.note": "kept", "org.example.long": "x" * 200_000}
        # runtime.md, "State": in the runtime's namespaces the runtime's number, in the container's the container's
        wanted = {"poststop": None, "createContainer": 1, "startContainer": 1}.get(kind, pid)
        assert entry.state.get("pid") == wanted, kind
        assert entry.cwd == ("/" if kind == "startContainer" else str(bundle))
        assert entry.caps == (every if kind != "startContainer" else "0000000020000420"), kind


@pytest.mark.needs("runc")
def test_the_reference_agrees_where_it_follows_the_rule(rootfs: Path, log: Path, tmp_path: Path, runtime: Runtime) -> None:
    def change(config: dict[str, Any]) -> None:
        hooked(log)(config)
        config["ociVersion"] = "1.0.2"
        config["linux"]["cgroupsPath"] = f"/pycontain/{NAME}"

    seen = []
    bundle = write_bundle(tmp_path / "bundle", rootfs, "true", change=change)
    for command in (["unshare", "-m", "runc", "--root", str(tmp_path / "runc")], None):
        if command:
            subprocess.run([*command, "run", "-b", bundle, NAME], check=True, timeout=30, stdin=subprocess.DEVNULL)
        else:
            runtime("run", "-b", bundle, NAME, check=True)
        of = []
        for entry in entries(log):
            # runc's createContainer runs in the root file system, and names other states in prestart and poststart
            cwd = entry.cwd.removesuffix("/rootfs") if entry.name.startswith("createC") else entry.cwd
            cwd = "" if entry.name.startswith("createContainer") else cwd
            status = "" if entry.name.startswith(("prestart", "poststart")) else entry.state["status"]
            of.append((entry.name, cwd, entry.caps, status, entry.state.get("pid") == 1))
        # runc runs poststart hooks when the start is under way, and startContainer's then come before them or after
        seen.append(sorted(of, key=lambda row: KINDS.index(row[0][:-2])))
        log.write_text("")
    assert seen[0] == seen[1] and len(seen[0]) == 12


@pytest.mark.parametrize("kind", KINDS[:5])
def test_one_that_fails_ends_the_container(runtime: Runtime, rootfs: Path, log: Path, tmp_path: Path, kind: str) -> None:
    """runtime.md, "Lifecycle", 3 to 5, 7 and 9: an error, the container is stopped and destroyed, poststop hooks run."""
    bundle = write_bundle(tmp_path / "bundle", rootfs, "sleep", "60", change=hooked(log, fails=kind))
    done = runtime("create", "-b", bundle, NAME)
    if kind in ("startContainer", "poststart"):
        assert done.returncode == 0
        pid = runtime.state(NAME)["pid"]
        done = runtime("start", NAME)
        assert not Path(f"/proc/{pid}").exists() or "Z (zombie)" in Path(f"/proc/{pid}/status").read_text()
    assert (done.returncode, done.stderr) == (
        1,
        f"pycontain-runtime: $.hooks.{kind}[1]: hook /bin/false ended with exit status 1\n",
    )
    before = KINDS[: KINDS.index(kind)]
    wanted = [f"{k}-{n}" for k in before for n in (1, 2)] + [f"{kind}-1", "poststop-1", "poststop-2"]
    assert [e.name for e in entries(log)] == wanted  # none of what was to come
    assert entries(log)[-1].state["status"] == "stopped"
    assert runtime("state", NAME).stderr.endswith(f"container {NAME} does not exist\n")
    assert not left(NAME)


def test_poststop_that_fails_is_a_warning(runtime: Runtime, rootfs: Path, log: Path, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", rootfs, "true", change=hooked(log, kinds=("poststop",), fails="poststop"))
    done = runtime("run", "-b", bundle, NAME, check=True)
    assert done.stderr == "warning: $.hooks.poststop[1]: hook /bin/false ended with exit status 1\n"
    assert [e.name for e in entries(log)] == ["poststop-1", "poststop-2"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_environment_is_exactly_what_was_given(runtime: Runtime, rootfs: Path, tmp_path: Path, kind: str) -> None:
    def change(config: dict[str, Any]) -> None:
        cat = {"path": "/bin/cat", "args": ["cat", "/proc/self/environ"]}
        config["hooks"] = {kind: [{**cat, "env": ["A=1", "A=2", "ODD", "E="]}, cat]}

    done = runtime("run", "-b", write_bundle(tmp_path / "bundle", rootfs, "true", change=change), NAME, check=True)
    assert done.stdout == "A=1\0A=2\0ODD\0E=\0"  # and of the second, which gives none: nothing


def test_the_mounts_are_there_before_the_runtimes_hooks_run(runtime: Runtime, rootfs: Path, tmp_path: Path) -> None:
    """config.md, "CreateRuntime Hooks": mounts have been made, the root has not been changed."""
    script = 'pid=$(grep -o "\\"pid\\": *[0-9]*" | tr -dc 0-9); cat /proc/$pid/mountinfo > "$0"; readlink /proc/$pid/root >> "$0"'

    def change(config: dict[str, Any]) -> None:
        config["mounts"].append({"destination": "/run/marker", "type": "tmpfs", "source": "tmpfs"})
        config["hooks"] = {
            kind: [{"path": "/bin/sh", "args": ["sh", "-c", script, str(tmp_path / kind)], "env": ["PATH=/bin:/usr/bin"]}]
            for kind in ("prestart", "createRuntime")
        }

    runtime("run", "-b", write_bundle(tmp_path / "bundle", rootfs, "true", change=change), NAME, check=True)
    for kind in ("prestart", "createRuntime"):
        seen = (tmp_path / kind).read_text()
        assert re.search(rf" {rootfs}/run/marker .* - tmpfs ", seen)
        assert seen.endswith("\n/\n") and re.search(r" /proc/sys/net| / / ", seen)


def test_a_hook_gets_no_descriptor_but_its_three(runtime: Runtime, rootfs: Path, tmp_path: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        for kind in ("prestart", "createContainer", "startContainer"):
            ls = {"path": "/bin/ls", "args": ["ls", "/proc/self/fd"], "env": ["PATH=/bin"]}
            config.setdefault("hooks", {})[kind] = [ls]

    read, write = os.pipe()
    bundle = write_bundle(tmp_path / "bundle", rootfs, "true", change=change)
    command = f'exec 3<&{read}; exec "$@"'
    with open(tmp_path / "out", "w") as out:
        args = ["run", "--preserve-fds", "1", "-b", str(bundle), NAME]
        from tests.runtime_tools import COMMAND

        subprocess.run(
            ["bash", "-c", command, "bash", *COMMAND, "--root", str(runtime.root), *args],
            pass_fds=[read], stdout=out, stdin=subprocess.DEVNULL, check=True, timeout=30,
        )  # fmt: skip
    os.close(read)
    os.close(write)
    assert (tmp_path / "out").read_text().split() == ["0", "1", "2", "3"] * 3  # the fourth is ls's own, of the directory
