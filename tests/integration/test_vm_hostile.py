"""A guest that was taken over: whatever it says, leaves out or floods, the command ends in time and names a reason.

tests/vm/hostile.c takes the agent's place. Beside it run a container in namespaces and a good machine, which must not
feel it. Nothing of it is left: no process, cgroup, socket or state.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests import machine_tools
from tests.engine_tools import IMAGE, Host
from tests.runtime_tools import COMMAND, REPOSITORY, Runtime, cgroups, left, make_rootfs, write_bundle

pytestmark = [
    pytest.mark.needs("root", "qemu", "virtiofsd", "guest_kernel"),
    pytest.mark.timeout(120),
]
SOURCE = REPOSITORY / "tests/vm/hostile.c"
MORE_KIB = 8 << 10
BOOT, ANSWER = 45.0, 2.0
AT_ONCE = 3
NONSENSE = "init sent nonsense: found "
NAME = "cannot boot the machine of {id}: "
CALL = f"{NAME}the machine of {{id}}"
GIVEN_UP = f"init said nothing for {ANSWER:.0f} s and was given up"
SILENT = NAME + GIVEN_UP
STAND_IN = "cannot understand the guest, which sent "
# mode: how the text of the error begins
CREATED = {
    "silent": f"{CALL} did not answer in time",
    "hello-stall": f"{CALL} did not answer in time",
    "nonsense": f"{CALL}: {NONSENSE}message 542393671 of 1414012975 bytes",
    "huge": f"{CALL}: {NONSENSE}message 8 of 4294967295 bytes",
    "other-hello": f"{CALL} answered a hello with something else",
    "call-data": f"{CALL} sent 'data' out of order",
    "call-large": f"{CALL}: {NONSENSE}message 7 of 1048576 bytes",
    "call-drip": f"{CALL} did not answer in time",
    "call-deaf": f"{CALL} did not answer in time",
    "call-fails": "cannot ?[2Jclear the screen?: EPERM",
    "call-exits": f"{CALL} could not carry out a call",
    "call-silent": f"{CALL} left a question without an answer",
    "call-letters": f"{NAME}the guest has no last capability: it said b'zzz'",
    "flood-data": STAND_IN + "a message of no known type",
    "flood-unshared": f"{NAME}{NONSENSE}process 0",
    "flood-early": STAND_IN + "more of a stream than was granted",
    "exited-early": f"{NAME}init ended before it said 'unshared' (was it killed?)",
    "fails": "cannot ?]0;title?: EPERM",
    "no-unshared": SILENT,
    "pid-0": f"{NAME}{NONSENSE}process 0",
    "pid-max": f"{NAME}{NONSENSE}process 4294967295",
    "no-ready": SILENT,
    "reopen": STAND_IN + "a message that is too long",
    "reboot": f"{NAME}init ended before it said 'ready' (was it killed?)",
}
# mode: exit status
RUNNING = {
    "flood-stream": 137,
    "flood-ready": 137,
    "exited-twice": 3,
    "exited-odd": 255,
    "reboot-running": 137,
}
KILLED = ["serial", "deaf"]
SHORT = ["silent", "hello-stall"]  # what waits for the whole of BOOT
EXEC = {
    "exec-stall": [GIVEN_UP] * 2,
    "exec-running": [GIVEN_UP] * 2,
    "exec-flood": [STAND_IN + "more of a stream than was granted", GIVEN_UP],  # it stalls after that
    "exec-nonsense": [STAND_IN + "a message that is too long"] * 2,
}
# The command in a process of its own, so that its memory can be told: create, start, wait, delete.
DRIVE = """
import json, os, re, sys, time
from pycontain.runtime import creation, lifecycle
from pycontain.runtime.errors import PycontainError
from pycontain.runtime.vm import initramfs, port
wanted = json.loads(sys.argv[1])
initramfs.AGENT = wanted["agent"]
port.BOOT_SECONDS, port.START_SECONDS, port.ANSWER_SECONDS = wanted["boot"], wanted["answer"], wanted["answer"]
root, id = wanted["root"], wanted["id"]
found = {"error": "", "type": "", "status": None, "state": "none"}
begun = time.monotonic()
running = None
try:
    null, unread = os.open("/dev/null", os.O_RDWR), os.pipe()
    stdio = (null, unread[1], null)
    running = creation.create(id, wanted["bundle"], root=root, rootfs=wanted["rootfs"], listen=False, stdio=stdio)
    found["stand_in"] = running.pid
    begun = time.monotonic()
    running.start()
    if wanted["exec"]:
        found["execs"] = []
        for i in range(2):
            at = time.monotonic()
            try:
                process = {"cwd": "/", "args": ["true"]}
                lifecycle.exec(id, process, root=root, stdio=stdio).wait()
            except PycontainError as error:
                found["execs"].append([error.message, time.monotonic() - at])
    if wanted["kill"]:
        time.sleep(0.3)
        lifecycle.kill(id, 9, root=root)
    found["status"] = running.wait()
except PycontainError as error:
    found.update(error=error.message, type=type(error).__name__, state="left" if os.path.exists(f"{root}/{id}") else "none")
found["seconds"] = time.monotonic() - begun
lifecycle.delete(id, root=root, force=True)
with open("/proc/self/status") as file:
    found["memory"] = int(re.search(r"VmHWM:\\s+(\\d+)", file.read())[1])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("hostile") / "hostile"
    musl = ["musl-gcc", "-idirafter", "/usr/include", "-idirafter", "/usr/include/x86_64-linux-gnu"]
    compiler = musl if shutil.which("musl-gcc") else ["cc"]
    subprocess.run([*compiler, "-static", "-Os", "-Wall", "-Wextra", "-Werror", "-o", program, SOURCE], check=True)
    return program


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the hostile machines alone; the kernel is the tests' own."""
    made = tmp_path_factory.mktemp("cache")
    (made / "kernel").symlink_to(machine_tools.cache() / "kernel")
    return made


class Neighbours:
    """A container in namespaces and one in a machine."""

    def __init__(self, directory: Path) -> None:
        self.runtime = Runtime(directory / "state")
        rootfs = make_rootfs(directory / "rootfs")
        settings = machine_tools.settings(directory)
        self._environment = {**os.environ, "PYCONTAIN_VM_CONFIG": str(settings)}
        for name, isolation in (("t-beside-ns", "namespaces"), ("t-beside-vm", "vm")):

            def change(config: dict[str, Any], isolation: str = isolation) -> None:
                config["annotations"] = {"org.pycontain.isolation": isolation}

            bundle = write_bundle(directory / name, rootfs, "sleep", "1000", change=change)
            self.runtime("run", "-d", "-b", bundle, name, check=True, env=self._environment)

    def are_well(self) -> None:
        for name in ("t-beside-ns", "t-beside-vm"):
            done = self.runtime("exec", name, "echo", "here", env=self._environment)
            assert (done.stdout, done.stderr, done.returncode) == ("here\n", "", 0)


@pytest.fixture(scope="module")
def neighbours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Neighbours]:
    made = Neighbours(tmp_path_factory.mktemp("neighbours"))
    yield made
    made.runtime.clean()


def processes(marker: str) -> dict[int, str]:
    """Processes in a cgroup named ``marker``, with their names."""
    found = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if f"/{marker}\n" in Path(f"/proc/{entry}/cgroup").read_text():
                found[int(entry)] = Path(f"/proc/{entry}/comm").read_text().strip()
        except OSError:
            continue  # it ended meanwhile
    return found


def stand_in_peak(id: str) -> int:
    """The most memory that a stand-in of container ``id`` had so far, in KiB; 0 where there is none.

    VmHWM is of the address space, and what becomes QEMU is a copy of the stand-in until execve(2) gives it a new one,
    and then its name. Both come out of one read, for which the kernel takes hold of the address space first: next to a
    name read earlier it would be QEMU's memory.
    """
    most = 0
    try:
        pids = [pid for cgroup in cgroups(id)[:1] for pid in (cgroup / "cgroup.procs").read_text().split()]
    except OSError:
        return 0  # it was removed meanwhile
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue  # it ended meanwhile
        values = dict(line.split(":\t", 1) for line in lines)
        if not values["Name"].startswith("qemu"):
            most = max(most, int(values.get("VmHWM", "0 kB").split()[0]))  # a zombie has none
    return most


class Hostile:
    def __init__(self, directory: Path, agent: Path, cache: Path) -> None:
        self.directory, self.agent, self.cache = directory, agent, cache
        (directory / "image").write_bytes(bytes(4096))
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._results: dict[str, Future[dict[str, Any]]] = {}

    def begin(self, modes: list[str]) -> None:
        """Most of the time goes into booting, and into waiting for who says nothing: several at once."""
        self._results = {mode: self._pool.submit(self.run, mode) for mode in modes}

    def result(self, mode: str) -> dict[str, Any]:
        return self._results[mode].result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(self, mode: str) -> dict[str, Any]:
        """The driver's report, with the peak of the stand-in's memory; nothing is left."""
        id, directory = f"t-hostile-{mode}", self.directory / mode
        directory.mkdir()
        settings = machine_tools.settings(directory, cache=str(self.cache), templates=False, memory=128)
        with settings.open("a") as file:
            file.write(f'parameters = ["hostile={mode}"]\n')

        def change(config: dict[str, Any]) -> None:
            config["annotations"] = {"org.pycontain.isolation": "vm"}

        wanted = {
            "agent": str(self.agent),
            "root": str(directory / "state"),
            "bundle": str(write_bundle(directory, Path("/"), "true", change=change)),
            "rootfs": {"kind": "image", "path": str(self.directory / "image")},
            "id": id, "boot": 5.0 if mode in SHORT else BOOT, "answer": ANSWER,
            "kill": mode in KILLED or mode in EXEC or mode == "polite", "exec": mode in EXEC,
        }  # fmt: skip
        environment = {**os.environ, "PYCONTAIN_VM_CONFIG": str(settings), "PYTHONPATH": str(REPOSITORY)}
        process = subprocess.Popen(
            [sys.executable, "-c", DRIVE, json.dumps(wanted)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        stand_in = 0
        while process.poll() is None:
            stand_in = max(stand_in, stand_in_peak(id))
            time.sleep(0.02)
        out, err = process.communicate(timeout=10)
        assert err == ""
        found: dict[str, Any] = json.loads(out)
        assert found["state"] == "none" or found["stand_in"]
        assert processes(id) == {}
        assert left(id) == []
        assert os.listdir(directory / "state") == []
        assert not [line for line in Path("/proc/net/unix").read_text().splitlines() if f"/{mode}/" in line]
        return {**found, "stand_in": stand_in}


@pytest.fixture(scope="module")
def hostile(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, agent: Path, cache: Path
) -> Iterator[Hostile]:
    made = Hostile(tmp_path_factory.mktemp("machines"), agent, cache)
    modes = [
        item.callspec.params["mode"]
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec")
    ]
    made.begin(["polite", *modes])
    yield made
    made.close()


@pytest.fixture(scope="module")
def normal(hostile: Hostile) -> dict[str, Any]:
    """One without fault, for comparison."""
    found = hostile.result("polite")
    assert (found["error"], found["status"]) == ("", 137)
    return found


def bounded(found: dict[str, Any], normal: dict[str, Any]) -> None:
    for what in ("memory", "stand_in"):
        assert found[what] < normal[what] + MORE_KIB, (what, found, normal)


@pytest.mark.parametrize("mode", CREATED)
def test_create_fails_and_says_why(hostile: Hostile, neighbours: Neighbours, normal: dict[str, Any], mode: str) -> None:
    short = mode in SHORT
    found = hostile.result(mode)
    assert found["error"].startswith(CREATED[mode].format(id=f"t-hostile-{mode}")), found
    assert len(found["error"]) < 600
    assert found["error"].isprintable()
    assert found["state"] == "none"
    assert found["seconds"] < (5.0 if short else BOOT) + 3
    bounded(found, normal)
    neighbours.are_well()


@pytest.mark.parametrize("mode", RUNNING)
def test_what_runs_ends(hostile: Hostile, neighbours: Neighbours, normal: dict[str, Any], mode: str) -> None:
    found = hostile.result(mode)
    assert (found["error"], found["status"]) == ("", RUNNING[mode])
    assert found["seconds"] < 10
    bounded(found, normal)
    neighbours.are_well()


@pytest.mark.parametrize("mode", ["no-running"])
def test_a_start_that_never_comes_to_execve(hostile: Hostile, normal: dict[str, Any], mode: str) -> None:
    found = hostile.result(mode)
    assert found["error"] == GIVEN_UP
    assert found["seconds"] < ANSWER + 4
    bounded(found, normal)


@pytest.mark.parametrize("mode", KILLED)
def test_one_that_talks_or_hears_nothing_can_be_killed(
    hostile: Hostile, neighbours: Neighbours, normal: dict[str, Any], mode: str
) -> None:
    found = hostile.result(mode)
    assert (found["error"], found["status"]) == ("", 137)
    assert found["seconds"] < 10
    bounded(found, normal)
    neighbours.are_well()


@pytest.mark.parametrize("mode", EXEC)
def test_an_exec_fails_in_time_and_again(hostile: Hostile, normal: dict[str, Any], mode: str) -> None:
    found = hostile.result(mode)
    assert [text.partition(": E")[0] for text, _ in found["execs"]] == EXEC[mode], found
    assert all(seconds < ANSWER + 4 for _, seconds in found["execs"])
    assert found["status"] == 137
    bounded(found, normal)


# The engine, with another agent for the machines that it starts.
ENGINE = "import sys; from pycontain.runtime.vm import initramfs; initramfs.AGENT = sys.argv.pop(1); from pycontain.cli import main; main()"


@pytest.mark.needs("overlayfs", "bridge", "veth", "nft", "tun", "mkfs.erofs", "mkfs.ext4")
def test_a_deaf_guest_holds_up_no_other_container(
    agent: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start on the bridge tells every machine the new names, and gives up the one that does not listen."""
    settings = machine_tools.settings(tmp_path, cache=str(cache), templates=False)
    settings.write_text(settings.read_text() + 'parameters = ["hostile=deaf"]\n')
    host = Host(tmp_path / "engine")
    host.directory.mkdir()
    host.seed()
    host("run", "--rm", IMAGE, "true")
    monkeypatch.setenv("PYCONTAIN_VM_CONFIG", str(settings))
    words = host.argv("run", "-d", "--name", "deaf", "--isolation", "vm", IMAGE, "true")
    started = subprocess.run(
        [sys.executable, "-c", ENGINE, str(agent), *words[3:]],
        env=host.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    host.note()
    assert started.returncode == 0, started.stderr
    assert "Up" in host.out("ps", "--filter", "name=deaf")
    begun = time.monotonic()
    done = host("run", "--rm", "--name", "other", IMAGE, "cat", "/etc/hosts")
    assert time.monotonic() - begun < 6  # one second each for its coming and its going
    assert "deaf" in done.stdout
    asking = subprocess.Popen(
        host.argv("top", "deaf"), env=host.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    time.sleep(0.5)
    begun = time.monotonic()
    host("rm", "-f", "deaf")
    assert time.monotonic() - begun < 5
    assert "Traceback" not in asking.communicate(timeout=20)[1]
    assert host.left() == []
    host.close()


def test_an_exec_whose_command_is_killed_leaves_nothing(neighbours: Neighbours) -> None:
    """Each of its stand-ins would hold one of the machine's ports."""
    before = processes("t-beside-vm")
    dice = random.Random(1)
    for _ in range(12):
        process = subprocess.Popen(
            [*COMMAND, "--root", neighbours.runtime.root, "exec", "t-beside-vm", "true"], stdin=subprocess.DEVNULL
        )
        time.sleep(dice.uniform(0.05, 0.2))
        process.kill()
        process.wait()
    end = time.monotonic() + 5
    while processes("t-beside-vm") != before:
        assert time.monotonic() < end, processes("t-beside-vm")
        time.sleep(0.05)
    neighbours.are_well()
