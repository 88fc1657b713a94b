"""Resource limits above those of the caller, which take CAP_SYS_RESOURCE; read back by prlimit(1)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime_tools import COMMAND, Runtime, write_bundle

pytestmark = pytest.mark.needs("root", "sys_resource")

# What the caller has as soft and hard limit, little enough to be raised and enough to start with.
LITTLE = {
    "AS": 16 << 30, "CORE": 0, "CPU": 1000, "DATA": 16 << 30, "FSIZE": 1 << 30, "LOCKS": 10, "MEMLOCK": 64 << 10,
    "MSGQUEUE": 1000, "NICE": 0, "NOFILE": 256, "NPROC": 1000, "RSS": 1 << 30, "RTPRIO": 0, "RTTIME": 1000,
    "SIGPENDING": 100, "STACK": 8 << 20,
}  # fmt: skip


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    runtime = Runtime(tmp_path / "state")
    yield runtime
    runtime.clean()


def limits(raised: dict[str, int]) -> list[dict[str, Any]]:
    return [{"type": f"RLIMIT_{name}", "soft": value - 1, "hard": value} for name, value in raised.items()]


def of_process(pid: int) -> dict[str, tuple[int, int]]:
    columns = ["--raw", "--noheadings", "-o", "RESOURCE,SOFT,HARD"]
    said = subprocess.run(["prlimit", "-p", str(pid), *columns], capture_output=True, text=True, check=True).stdout
    rows = (line.replace("unlimited", "-1").split() for line in said.splitlines())
    return {name: (int(soft), int(hard)) for name, soft, hard in rows}


@pytest.mark.parametrize("user_namespace", [False, True])
def test_every_limit_is_raised_above_the_callers(runtime: Runtime, rootfs: Path, tmp_path: Path, user_namespace: bool) -> None:
    raised = {name: value * 2 + 20 for name, value in LITTLE.items()}
    raised["NICE"] = 40

    def change(config: dict[str, Any]) -> None:
        config["process"]["rlimits"] = limits(raised)
        if user_namespace:
            config["linux"]["namespaces"].append({"type": "user"})
            for kind in ("uidMappings", "gidMappings"):
                config["linux"][kind] = [{"containerID": 0, "hostID": 0, "size": 65536}]

    bundle = write_bundle(tmp_path / "bundle", rootfs, "sleep", "100", change=change)
    options = [f"--{name.lower()}={value}:{value}" for name, value in LITTLE.items()]
    command = ["prlimit", *options, *COMMAND, "--root", str(runtime.root), "run", "-d", "-b", str(bundle), "t-raised"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=50)
    assert done.returncode == 0
    pid = runtime.state("t-raised")["pid"]
    assert of_process(pid) == {name: (value - 1, value) for name, value in raised.items()}


def test_more_files_than_the_kernel_allows_anybody(runtime: Runtime, rootfs: Path, tmp_path: Path) -> None:
    most = int(Path("/proc/sys/fs/nr_open").read_text())

    def change(config: dict[str, Any]) -> None:
        config["process"]["rlimits"] = limits({"NOFILE": most + 1})

    done = runtime("run", "-b", write_bundle(tmp_path / "bundle", rootfs, "true", change=change), "t-most")
    assert done.returncode == 1
    assert "RLIMIT_NOFILE" in done.stderr and "EPERM" in done.stderr


def test_exec_has_limits_of_its_own_and_an_oom_score_below_its_makers(runtime: Runtime, rootfs: Path, tmp_path: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["process"]["oomScoreAdj"] = -900
        config["process"]["rlimits"] = limits({"NOFILE": 1000})

    bundle = write_bundle(tmp_path / "bundle", rootfs, "sleep", "100", change=change)
    runtime("run", "-d", "-b", bundle, "t-exec", check=True)
    pid = runtime.state("t-exec")["pid"]
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "-900\n"
    process = json.loads((bundle / "config.json").read_text())["process"]
    process["rlimits"] = limits({"NOFILE": 1 << 20, "MEMLOCK": 1 << 40})
    (tmp_path / "process.json").write_text(json.dumps(process))
    pid_file = tmp_path / "pid"
    runtime("exec", "-d", "--pid-file", pid_file, "--process", tmp_path / "process.json", "t-exec", check=True)
    found = of_process(int(pid_file.read_text()))
    assert (found["NOFILE"], found["MEMLOCK"]) == (((1 << 20) - 1, 1 << 20), ((1 << 40) - 1, 1 << 40))
