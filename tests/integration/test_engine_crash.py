"""kill -9 at any moment leaves something that ``rm -f`` or ``system prune`` clears, and frees the name and the lease."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain.engine import supervise
from tests.engine_tools import IMAGE, Host

pytestmark = [pytest.mark.needs("root", "overlayfs", "bridge", "veth", "nft"), pytest.mark.timeout(300)]
LOOP = "while :; do sleep 0.05; done"
ROUNDS = int(os.environ.get("PYCONTAIN_CRASH_ROUNDS", "12"))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    made = Host(tmp_path_factory.mktemp("engine"))
    made.seed()
    made("run", "--rm", IMAGE, "true")
    yield made
    made.close()


def settled(host: Host, seconds: float = 10) -> list[str]:
    """What is left once the supervisors that are clearing up have done so."""
    end = time.monotonic() + seconds
    while (left := host.left()) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def start(host: Host, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        host.argv(*words),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=host.environment,
    )


def pids_of(host: Host) -> list[supervise.Processes]:
    found = []
    for path in Path(host.run_directory, "containers").glob("*/supervisor.pid"):
        processes = supervise.read_processes(str(path))
        if processes is not None:
            found.append(processes)
    return found


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_the_command_killed_at_a_random_moment(host: Host, seed: int) -> None:
    moment = random.Random(seed).uniform(0.02, 0.45)
    process = start(host, "run", "--rm", "--name", "victim", "-p", "127.0.0.1::80", IMAGE, "sh", "-c", LOOP)
    time.sleep(moment)
    host.note()
    process.kill()
    process.wait()
    host("rm", "-f", "victim", status=None)
    host("system", "prune", "-f")
    assert settled(host) == []
    assert host.out("run", "--rm", "--name", "victim", IMAGE, "echo", "again") == "again\n"


@pytest.mark.parametrize("seed", range(ROUNDS))
@pytest.mark.parametrize("who", ["supervisor", "init"])
def test_the_supervisor_or_init_killed(host: Host, who: str, seed: int) -> None:
    chance = random.Random(seed)
    process = start(host, "run", "--name", "victim", IMAGE, "sh", "-c", LOOP)
    end = time.monotonic() + 10
    # On a busy host the supervisor is there long before init is.
    while not any(who == "supervisor" or found.container_pid for found in pids_of(host)):
        assert time.monotonic() < end
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.1))
    host.note()
    for processes in pids_of(host):
        supervise.kill(processes, container=who == "init", wait=0)
    process.wait(20)
    host("rm", "-f", "victim", status=None)
    host("system", "prune", "-f")
    assert settled(host) == []


def test_a_killed_supervisor_of_a_detached_container_is_noticed(host: Host) -> None:
    host("run", "-d", "--name", "orphan", IMAGE, "sh", "-c", LOOP)
    (processes,) = pids_of(host)
    supervise.kill(processes)
    # The container itself goes on; it can still be seen, entered, stopped and removed.
    assert "Up" in host.out("ps")
    assert host.out("exec", "orphan", "echo", "in") == "in\n"
    host("stop", "-t", "0", "orphan")
    assert "Exited" in host.out("ps", "-a")
    host("rm", "orphan")
    assert settled(host) == []


def test_after_a_reboot_containers_are_stopped_and_leases_free(host: Host) -> None:
    """A reboot is another boot id, an empty run directory, and no process: forged in the record of a stopped one."""
    identifier = host.out("create", "--name", "old", IMAGE, "true").strip()
    path = host.data / "containers" / identifier / "container.json"
    record = json.loads(path.read_text())
    record["state"] = {
        "status": "running", "pid": os.getpid(), "start_time": supervise.start_time(os.getpid()),
        "boot_id": "00000000-0000-0000-0000-000000000000", "started": time.time_ns(),
    }  # fmt: skip
    path.write_text(json.dumps(record))
    assert host.out("ps", "-q") == ""
    assert "Exited (255)" in host.out("ps", "-a")
    assert host.out("start", "old") == "old\n"
    assert host.out("wait", "old") == "0\n"
    host("rm", "old")
    assert settled(host) == []


def test_prune_takes_what_no_record_leads_to_and_leaves_what_lives(host: Host) -> None:
    host("run", "-d", "--name", "alive", IMAGE, "sh", "-c", LOOP)
    host("create", "--name", "stopped", IMAGE)
    identifier = "ab" * 32
    (host.run_directory / "containers" / identifier).mkdir()
    (host.run_directory / "runtime" / identifier).mkdir()
    (host.data / "names" / "ghost").write_text(identifier)
    half = host.data / "containers" / ("cd" * 32)
    half.mkdir(mode=0o700)
    ingest = host.data / "images" / "ingest" / ("sha256-" + "ef" * 32)
    ingest.write_bytes(b"half a blob")
    out = host.out("system", "prune", "-f")
    assert "container stopped" in out
    assert "name ghost" in out
    assert host.out("ps", "-a", "--format", "json").count('"Names": "alive"') == 1
    assert not half.exists()
    assert not ingest.exists()
    assert host.out("exec", "alive", "echo", "yes") == "yes\n"
    assert "network" not in out
    host("rm", "-f", "alive")
    assert "network pycontain" in host.out("system", "prune", "-f")
    assert settled(host) == []


def test_prune_asks_first(host: Host) -> None:
    host("create", "--name", "stopped", IMAGE)
    done = host("system", "prune", input="n\n", status=1)
    assert done.stderr.endswith("Go on? [y/N] ")
    assert "stopped" in host.out("ps", "-a")
    assert "container stopped" in host.out("system", "prune", input="y\n")


def test_twenty_at_once_leave_nothing(host: Host) -> None:
    processes = [start(host, "run", "--rm", "--name", f"many-{number}", IMAGE, "true") for number in range(20)]
    assert [process.wait(120) for process in processes] == [0] * 20
    assert settled(host) == []


def test_signals_to_the_command_before_the_container_runs_leave_nothing(host: Host) -> None:
    for moment in (0.05, 0.1, 0.15):
        process = start(host, "run", "--rm", "--name", "early", IMAGE, "sh", "-c", LOOP)
        time.sleep(moment)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        host("rm", "-f", "early", status=None)
        host("system", "prune", "-f")
        assert settled(host) == []
