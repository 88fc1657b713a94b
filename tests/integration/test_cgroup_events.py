"""``pycontain-runtime events``, beside runc's own where it is there; on v2 in the machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime_tools import COMMAND, Runtime, write_bundle

pytestmark = pytest.mark.needs("root")

ID = "cgx-events"
LIMITS = {
    "memory": {"limit": 64 << 20, "swap": 64 << 20},
    "cpu": {"quota": 50000, "period": 100000, "cpus": "0"},
    "pids": {"limit": 20},
}
BUSY = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; exec sleep 600"
Bundle = Callable[..., Path]


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    runtime = Runtime(tmp_path / "state")
    yield runtime
    runtime.clean()


@pytest.fixture
def bundle(rootfs: Path, tmp_path: Path) -> Bundle:
    def write(name: str) -> Path:
        def change(config: dict[str, Any]) -> None:
            config["ociVersion"] = "1.0.2"
            config["linux"]["resources"].update(LIMITS)
            config["linux"]["cgroupsPath"] = f"/pycontain/{name}"

        return write_bundle(tmp_path / name, rootfs, "sh", "-c", BUSY, change=change)

    return write


@pytest.fixture
def started(runtime: Runtime, bundle: Bundle) -> Runtime:
    runtime("create", "-b", bundle(ID), ID, check=True)
    runtime("start", ID, check=True)
    return runtime


def shape(value: Any) -> Any:
    """Names and kinds; lists by their first item."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    return type(value).__name__


@pytest.mark.needs("runc", "cgroup1")
def test_the_same_shape_as_runcs(started: Runtime, bundle: Bundle, tmp_path: Path) -> None:
    other = "cgx-events-runc"
    runc = ["runc", "--root", str(tmp_path / "runc")]
    null = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*runc, "run", "-d", "-b", bundle(other), other], check=True, timeout=30, **null)  # type: ignore[call-overload]
    try:
        time.sleep(0.3)  # until both have done their counting
        done = subprocess.run([*runc, "events", "--stats", other], capture_output=True, check=True, timeout=30)
        theirs = json.loads(done.stdout)
    finally:
        subprocess.run([*runc, "delete", "-f", other], check=True, timeout=30)
    ours = json.loads(started("events", "--stats", ID, check=True).stdout)
    assert list(ours) == list(theirs) == ["type", "id", "data"]
    assert ours["data"].keys() == theirs["data"].keys()
    # What is nought is left out, and which counters are nought is the moment's: those are compared by their kinds.
    mine, others = shape(ours["data"]), shape(theirs["data"])
    for path in (("cpu", "usage"), ("memory", "usage"), ("memory", "swap"), ("memory", "kernel"), ("memory", "raw")):
        a, b = mine[path[0]][path[1]], others[path[0]][path[1]]
        assert {key: a[key] for key in a.keys() & b.keys()} == {key: b[key] for key in a.keys() & b.keys()}
        assert a.keys() >= {"limit", "failcnt", "usage"} & b.keys() | {"kernel", "user", "total", "percpu"} & b.keys()
    assert mine["cpuset"] == others["cpuset"]
    assert mine["memory"]["raw"].keys() == others["memory"]["raw"].keys()
    for part in ("pids", "cpuset"):
        assert ours["data"][part] == theirs["data"][part]
    for name in ("usage", "swap", "kernel", "kernelTCP"):
        assert ours["data"]["memory"][name]["limit"] == theirs["data"]["memory"][name]["limit"]
    assert ours["data"]["intel_rdt"] == theirs["data"]["intel_rdt"]
    assert ours["data"]["network_interfaces"] is theirs["data"]["network_interfaces"] is None


def test_statistics_say_what_the_kernel_says(started: Runtime) -> None:
    time.sleep(0.3)
    event = json.loads(started("events", "--stats", ID, check=True).stdout)
    assert (event["type"], event["id"]) == ("stats", ID)
    data = event["data"]
    assert data["pids"] == {"current": 1, "limit": 20}
    assert data["memory"]["usage"]["limit"] == 64 << 20
    assert data["memory"]["swap"]["limit"] == 64 << 20
    assert 4096 <= data["memory"]["usage"]["usage"] <= 64 << 20
    assert data["cpu"]["usage"]["total"] >= 1_000_000
    assert {"kernel", "user"} <= data["cpu"]["usage"].keys()
    assert data["cpu"]["throttling"]["periods"] >= 1
    assert data["cpuset"]["cpus"] == [0]
    assert data["memory"]["raw"]["pgfault"] > 10


def lines(process: subprocess.Popen[str], count: int) -> list[dict[str, Any]]:
    assert process.stdout is not None
    return [json.loads(process.stdout.readline()) for _ in range(count)]


def test_the_lack_of_memory_is_told_while_it_happens(started: Runtime) -> None:
    command = [*COMMAND, "--root", str(started.root), "events", "--interval", "100ms", ID]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert [event["type"] for event in lines(process, 2)] == ["stats", "stats"]
        big = started("exec", ID, "dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1")
        assert big.returncode == 137
        found = []
        while not found or found[-1]["type"] != "oom":
            found += lines(process, 1)
        assert found[-1] == {"type": "oom", "id": ID}
        # It ends with the container.
        started("kill", ID, "KILL", check=True)
        rest, errors = process.communicate(timeout=20)
        assert (process.returncode, errors) == (0, "")
        assert "oom" not in rest
    finally:
        process.kill()
        process.communicate()


def test_an_interrupt_ends_it(started: Runtime) -> None:
    command = [*COMMAND, "--root", str(started.root), "events", "--interval", "50ms", ID]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert lines(process, 1)[0]["type"] == "stats"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (-signal.SIGINT, "")


def test_the_death_of_the_first_process_is_told(runtime: Runtime, rootfs: Path, tmp_path: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["linux"]["resources"].update(LIMITS)
        config["linux"]["cgroupsPath"] = f"/pycontain/{ID}"

    eater = ("dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1")
    runtime("create", "-b", write_bundle(tmp_path / "eater", rootfs, *eater, change=change), ID, check=True)
    command = [*COMMAND, "--root", str(runtime.root), "events", "--interval", "50ms", ID]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert lines(process, 1)[0]["type"] == "stats"
    runtime("start", ID, check=True)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert [json.loads(line)["type"] for line in output.splitlines()].count("oom") == 1, output


@pytest.mark.parametrize("text", ["0", "0s", "5", "-1s", "s", "1x", "", "1.2.3s", "1s5", "٣s"])
def test_times_that_are_none(runtime: Runtime, text: str) -> None:
    done = runtime("events", "--interval", text, "none")
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == (
        f"pycontain-runtime: events --interval: found {text!r}, wanted a time such as 5s or 1m30s"
    )


def test_a_container_that_is_not_there_or_has_ended(started: Runtime) -> None:
    done = started("events", "--stats", "none")
    assert done.stderr == "pycontain-runtime: container none does not exist\n"
    started("kill", ID, "KILL", check=True)
    while started.state(ID)["status"] != "stopped":
        os.sched_yield()
    done = started("events", "--stats", ID)
    assert done.stderr == (
        f"pycontain-runtime: cannot watch container {ID}: found it stopped, wanted created or running or paused\n"
    )
