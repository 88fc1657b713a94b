"""The systemd cgroup driver where systemd is pid 1; systemctl and the kernel's files say what became of it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime_tools import Runtime, write_bundle

pytestmark = [pytest.mark.needs("root", "systemd", "cgroup2"), pytest.mark.timeout(200)]

CGROUPS = Path("/sys/fs/cgroup")
Make = Callable[..., Path]


class Systemd(Runtime):
    def __call__(self, *args: object, check: bool = False, **options: Any) -> subprocess.CompletedProcess[str]:
        return super().__call__("--systemd-cgroup", *args, check=check, **options)


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    runtime = Systemd(tmp_path / "state")
    yield runtime
    runtime.clean()
    assert units() == []


@pytest.fixture
def make(tmp_path: Path, rootfs: Path) -> Make:
    def bundle(path: str, *args: str, annotations: dict[str, str] | None = None, **resources: Any) -> Path:
        def change(config: dict[str, Any]) -> None:
            config["linux"]["cgroupsPath"] = path
            config["linux"]["resources"].update(resources)
            config["annotations"] = annotations or {}
            for kind in ("bounding", "effective", "permitted"):
                config["process"]["capabilities"][kind].append("CAP_MKNOD")

        return write_bundle(tmp_path / "bundle", rootfs, *args, change=change)

    return bundle


def units() -> list[str]:
    """The scopes of ours that systemd knows, failed ones too."""
    listed = subprocess.run(
        ["systemctl", "list-units", "--all", "--plain", "--no-legend", "--no-pager", "t-*.scope"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [line.split()[0] for line in listed.stdout.splitlines()]


def show(unit: str) -> dict[str, str]:
    done = subprocess.run(["systemctl", "show", unit], capture_output=True, text=True, check=True)
    found: dict[str, str] = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition("=")
        found[name] = f"{found[name]}\n{value}" if name in found else value  # DeviceAllow has a line for each
    return found


def read(unit: str, file: str) -> str:
    return (CGROUPS / show(unit)["ControlGroup"].lstrip("/") / file).read_text().strip()


def test_the_life_of_a_scope(runtime: Runtime, make: Make) -> None:
    bundle = make(
        "t-a.slice:t:life", "sleep", "600",
        annotations={
            "org.systemd.property.TimeoutStopUSec": "uint64 7000000",
            "org.systemd.property.CollectMode": "'inactive-or-failed'",
            "org.systemd.property.RuntimeMaxSec": "600",
            "org.systemd.property.After": "['dbus.service']",
        },
        memory={"limit": 64 << 20, "swap": 96 << 20, "reservation": 16 << 20},
        cpu={"quota": 33333, "period": 100000, "shares": 1024, "cpus": "1"},
        pids={"limit": 20},
        unified={"memory.high": "50331648"},
    )  # fmt: skip
    runtime("create", "-b", bundle, "life", check=True)
    found = show("t-life.scope")
    wanted = {
        "ActiveState": "active", "Slice": "t-a.slice", "ControlGroup": "/t.slice/t-a.slice/t-life.scope",
        "Transient": "yes", "Delegate": "yes", "Description": "pycontain container t-life",
        "MemoryMax": str(64 << 20), "MemorySwapMax": str(32 << 20), "MemoryLow": str(16 << 20), "MemoryHigh": str(48 << 20),
        "CPUQuotaPerSecUSec": "340ms", "CPUQuotaPeriodUSec": "100ms", "CPUWeight": "100", "AllowedCPUs": "1",
        "TasksMax": "20", "MemoryAccounting": "yes", "TasksAccounting": "yes",
        "DevicePolicy": "strict", "TimeoutStopUSec": "7s", "CollectMode": "inactive-or-failed", "RuntimeMaxUSec": "10min",
    }  # fmt: skip
    assert {name: found.get(name) for name in wanted} == wanted
    assert "dbus.service" in found["After"].split()
    assert "char-136 rwm" in found["DeviceAllow"] and "/dev/char/1:3 rwm" in found["DeviceAllow"]
    # What systemd rounds is exact in the file; and nobody but the container is in the scope.
    assert read("t-life.scope", "cpu.max") == "33333 100000"
    pid = runtime.state("life")["pid"]
    assert read("t-life.scope", "cgroup.procs") == str(pid)
    runtime("start", "life", check=True)
    inside = runtime("exec", "life", "cat", "/proc/self/cgroup", check=True).stdout
    assert inside == "0::/\n"
    assert runtime("ps", "--format", "json", "life", check=True).stdout == f"[{pid}]\n"
    runtime("pause", "life", check=True)
    assert "frozen 1" in read("t-life.scope", "cgroup.events")
    runtime("resume", "life", check=True)
    # A reload writes what systemd takes the limits for.
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    for file, value in (("memory.max", "67108864"), ("memory.high", "50331648"), ("pids.max", "20"), ("cpuset.cpus", "1")):
        assert read("t-life.scope", file) == value
    limits = ("--memory", "80m", "--memory-swap", "100m", "--pids-limit", "30", "--cpu-quota", "60000")
    runtime("update", *limits, "life", check=True)
    found = show("t-life.scope")
    names = ("MemoryMax", "MemorySwapMax", "TasksMax", "CPUQuotaPerSecUSec", "CPUQuotaPeriodUSec")
    assert [found[name] for name in names] == [str(80 << 20), str(20 << 20), "30", "600ms", "100ms"]
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    for file, value in (("memory.max", str(80 << 20)), ("pids.max", "30"), ("cpu.max", "60000 100000")):
        assert read("t-life.scope", file) == value
    runtime("kill", "--all", "life", "KILL", check=True)
    runtime("delete", "--force", "life", check=True)
    assert units() == []
    assert not (CGROUPS / "t.slice/t-a.slice/t-life.scope").exists()


def test_device_rules_hold(runtime: Runtime, make: Make) -> None:
    # 1:1 is /dev/mem: a node may be made, not opened.
    script = "mknod /tmp/mem c 1 1 && ! cat /tmp/mem && cat /dev/null && head -c 1 /dev/zero | wc -c"
    done = runtime("run", "-b", make(":t:devices", "sh", "-c", script), "devices")
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr
    assert "Operation not permitted" in done.stderr
    assert units() == []


def test_the_default_place_and_an_end_by_itself(runtime: Runtime, make: Make) -> None:
    bundle = make("", "sleep", "600")
    runtime("run", "-d", "-b", bundle, "t-default", check=True)
    assert show("pycontain-t-default.scope")["ControlGroup"] == "/system.slice/pycontain-t-default.scope"
    runtime("kill", "t-default", "KILL", check=True)
    # The kernel and systemd remove what is empty; the container is on record until it is deleted.
    runtime("delete", "t-default", check=True)
    assert show("pycontain-t-default.scope")["ActiveState"] == "inactive"


def test_a_unit_that_is_there_is_left_alone(runtime: Runtime, make: Make) -> None:
    bundle = make("system.slice:t:taken", "sleep", "600")
    runtime("run", "-d", "-b", bundle, "taken-1", check=True)
    done = runtime("create", "-b", bundle, "taken-2")
    assert done.returncode == 1
    assert "cannot start t-taken.scope: a unit of that name is there already" in done.stderr
    assert runtime.state("taken-1")["status"] == "running"
    runtime("delete", "--force", "taken-1", check=True)


def test_a_unit_that_has_failed_gives_its_name_back(runtime: Runtime, make: Make) -> None:
    command = ["systemd-run", "--scope", "--unit", "t-failed", "-p", "RuntimeMaxSec=100ms", "sleep", "60"]
    subprocess.run(command, capture_output=True, timeout=30)
    assert show("t-failed.scope")["ActiveState"] == "failed"
    assert runtime("run", "-b", make("system.slice:t:failed", "true"), "failed").returncode == 0


def test_what_fails_leaves_no_scope(runtime: Runtime, make: Make) -> None:
    for path, resources, asked, text in (
        ("system.slice:t:no", {"pids": {"limit": 5}}, {}, "cannot execute 'no-such'"),
        ("system.slice:t:no", {"unified": {"cpu.weight": "100000"}}, {}, "systemd refused to set"),
        ("system.slice:t:no", {}, {"org.systemd.property.NoSuchThing": "true"}, "cannot start t-no.scope: systemd refused it"),
    ):  # fmt: skip
        done = runtime("run", "-b", make(path, "no-such", annotations=asked, **resources), "no")
        assert done.returncode != 0
        assert text in done.stderr
        assert not (runtime.root / "no").exists()
        assert units() == []


def test_pids_limit_counts_the_container_alone(runtime: Runtime, make: Make) -> None:
    done = runtime("run", "-b", make("system.slice:t:one", "sh", "-c", "true & wait", pids={"limit": 1}), "one")
    assert "can't fork" in done.stderr


def test_no_bus(runtime: Runtime, make: Make) -> None:
    environment = {"DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/run/no-such-bus"}
    done = runtime("create", "-b", make("", "true"), "nobus", env=environment)
    assert done.stderr == (
        "pycontain-runtime: cannot reach systemd over the system bus at /run/no-such-bus: No such file or directory\n"
        "\nhint: --cgroup-manager cgroupfs does without systemd\n"
    )
