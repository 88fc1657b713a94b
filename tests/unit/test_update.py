"""``update``: from options and files to resources, what is kept of it, and how a refusal is undone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontain.runtime import update
from pycontain.runtime.errors import KernelError, PycontainError, SpecError, Unsupported
from pycontain.runtime.kernel import cgroup
from pycontain.runtime.kernel.cgroup_v1 import CgroupV1
from pycontain.runtime.kernel.cgroup_v2 import CgroupV2
from pycontain.runtime.kernel.hierarchies import Hierarchy
from pycontain.runtime.update import merge, resources_of, size
from pycontain.runtime.verbs import COMMANDS


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0), ("67108864", 67108864), ("32b", 32), ("32k", 32768), ("32kb", 32768), ("32Kib", 32768), ("32 MiB", 32 << 20),
        ("32m", 32 << 20), ("64G", 64 << 30), ("1t", 1 << 40), ("2PB", 2 << 50), ("1.5g", 3 << 29), ("0.25 kB", 256), ("32.5", 32),
    ],
)  # fmt: skip
def test_sizes_as_docker_reads_them(text: str, value: int) -> None:
    """The cases of docker's go-units, and of runc's tests."""
    assert size(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "m",
        "-5",
        "+5",
        "1 2",
        "1.",
        ".5",
        "1..2",
        "5x",
        "5ib",
        "5i",
        "5mm",
        "5 m b",
        "1_000",
        "٣",
        "1e3",
        "9" * 20,
    ],
)
def test_what_is_no_size(text: str) -> None:
    assert size(text) is None


@given(st.text(alphabet="0123456789. kKmMgGtTpPiIbB-_٣", max_size=8))
def test_any_text_is_a_size_or_none(text: str) -> None:
    value = size(text)
    assert value is None or (value >= 0 and text[0].isdigit())


def test_every_option_is_in_its_field() -> None:
    options = {
        "--blkio-weight": "100", "--cpu-burst": "5", "--cpu-idle": "1", "--cpu-period": "100000", "--cpu-quota": "-1",
        "--cpu-rt-period": "1000", "--cpu-rt-runtime": "10", "--cpu-share": "200", "--cpuset-cpus": "0-1", "--cpuset-mems": "0",
        "--kernel-memory": "-1", "--kernel-memory-tcp": "16m", "--memory": "64m", "--memory-reservation": "32m",
        "--memory-swap": "-1", "--pids-limit": "0",
    }  # fmt: skip
    assert resources_of(options) == {
        "blockIO": {"weight": 100},
        "cpu": {
            "burst": 5, "idle": 1, "period": 100000, "quota": -1, "realtimePeriod": 1000, "realtimeRuntime": 10, "shares": 200,
            "cpus": "0-1", "mems": "0",
        },
        "memory": {"kernel": -1, "kernelTCP": 16 << 20, "limit": 64 << 20, "reservation": 32 << 20, "swap": -1},
        "pids": {"limit": 0},
    }  # fmt: skip
    asked = {f"--{key.replace('_', '-')}" for key, _ in COMMANDS["update"][2].values()} - {"--resources"}
    assert asked == set(options) | set(update.REFUSED)


def test_options_without_a_text_change_nothing() -> None:
    """As engines pass on what nobody set."""
    assert resources_of({"--memory": "", "--cpuset-cpus": "", "--l3-cache-schema": ""}) == {}


@pytest.mark.parametrize(
    ("option", "text", "wanted"),
    [
        ("--memory", "much", "bytes, such as 64m, or -1 for no limit"),
        ("--memory", "-2", "bytes, such as 64m, or -1 for no limit"),
        ("--memory-swap", "8192P", "bytes, such as 64m, or -1 for no limit"),
        ("--cpu-quota", "1.5", "a whole number"),
        ("--cpu-quota", "-", "a whole number"),
        ("--cpu-quota", "--1", "a whole number"),
        ("--pids-limit", "9223372036854775808", "a whole number"),
        ("--cpu-period", "-1", "a whole number from 0 up"),
        ("--cpu-share", "+5", "a whole number from 0 up"),
        ("--blkio-weight", "1_0", "a whole number from 0 up"),
    ],
)
def test_texts_that_are_none(option: str, text: str, wanted: str) -> None:
    with pytest.raises(PycontainError) as caught:
        resources_of({option: text})
    assert caught.value.message == f"update {option}: found {text!r}, wanted {wanted}"


@pytest.mark.parametrize("option", update.REFUSED)
def test_schemas_are_refused_by_name(option: str) -> None:
    with pytest.raises(Unsupported) as caught:
        resources_of({option: "L3:0=f"})
    assert caught.value.message == f"update {option}: schemas of Intel RDT are not supported"


def test_a_file_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text('{"memory": {"limit": "64m"}}')
    with pytest.raises(SpecError) as caught:
        update.read_resources(str(file))
    assert caught.value.message == "$.memory.limit: found '64m', wanted an integer"
    file.write_text('{"memory": {"limit": 5, "swap": null}, "cpu": null, "x": 1}')
    assert update.read_resources(str(file)) == {"memory": {"limit": 5}, "x": 1}


def test_merged() -> None:
    old = {
        "memory": {"limit": 5, "swap": 9},
        "blockIO": {
            "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1}, {"major": 8, "minor": 1, "rate": 2}]
        },
        "hugepageLimits": [{"pageSize": "2MB", "limit": 1}],
        "devices": [{"allow": False}],
    }
    new = {
        "memory": {"limit": 6},
        "blockIO": {"weight": 10, "throttleReadBpsDevice": [{"major": 8, "minor": 1, "rate": 3}, {"major": 8, "minor": 2, "rate": 4}]},
        "hugepageLimits": [{"pageSize": "1GB", "limit": 2}],
        "unified": {"a.b": "c"},
    }  # fmt: skip
    assert merge(old, new) == {
        "memory": {"limit": 6, "swap": 9},
        "blockIO": {
            "weight": 10,
            "throttleReadBpsDevice": [
                {"major": 8, "minor": 0, "rate": 1},
                {"major": 8, "minor": 1, "rate": 3},
                {"major": 8, "minor": 2, "rate": 4},
            ],
        },
        "hugepageLimits": [{"pageSize": "2MB", "limit": 1}, {"pageSize": "1GB", "limit": 2}],
        "devices": [{"allow": False}],
        "unified": {"a.b": "c"},
    }


@pytest.mark.parametrize(
    ("new", "old", "both"),
    [
        ({"limit": 5}, {}, {"limit": 5}),
        ({"limit": 5}, {"limit": 9, "swap": 10}, {"limit": 5, "swap": 10}),
        ({"limit": 5}, {"limit": 9, "swap": -1}, {"limit": 5, "swap": -1}),
        ({"limit": -1}, {"limit": 9, "swap": 10}, {"limit": -1}),
        ({"swap": 20}, {"limit": 9, "swap": 10}, {"limit": 9, "swap": 20}),
        (
            {"limit": 5, "swap": 6, "reservation": 1},
            {"limit": 9, "swap": 10},
            {"limit": 5, "swap": 6, "reservation": 1},
        ),
        ({"reservation": 1}, {"limit": 9, "swap": 10}, {"reservation": 1}),
    ],
)
def test_memory_and_the_sum_go_together(new: Any, old: Any, both: Any) -> None:
    assert update._with_the_other_limit(new, old) == both


@pytest.mark.parametrize(
    ("new", "old", "both"),
    [
        ({"quota": 5}, {"quota": 1, "period": 9}, {"quota": 5, "period": 9}),
        ({"period": 5}, {"quota": 1, "period": 9}, {"quota": 1, "period": 5}),
        ({"quota": -1}, {"period": 9}, {"quota": -1, "period": 9}),
        ({"quota": 5, "shares": 3}, {}, {"quota": 5, "shares": 3}),
        ({"shares": 5}, {"quota": 1, "period": 9}, {"shares": 5}),
        ({"quota": 0, "period": 0}, {"quota": 1, "period": 9}, {"quota": 0, "period": 0}),
    ],
)
def test_a_quota_goes_with_its_period(new: Any, old: Any, both: Any) -> None:
    assert update._with_the_other_half(new, old) == both


def test_a_limit_above_the_sum_that_the_container_has() -> None:
    with pytest.raises(SpecError) as caught:
        update._with_the_other_limit({"limit": 300}, {"limit": 100, "swap": 200})
    assert caught.value.message == (
        "$.linux.resources.memory.swap: the container's 200, the sum of memory and swap, is less than the new "
        "memory.limit 300"
    )
    assert caught.value.hint == "set both: --memory-swap, or memory.swap beside memory.limit"


FILES_V2 = {
    "pids.max": "max\n",
    "cpu.max": "50000 100000\n",
    "io.weight": "default 100\n8:0 50\n",
    "io.max": "8:0 rbps=1 wbps=max riops=max wiops=max\n",
}
CHANGE = {
    "pids": {"limit": 5},
    "cpu": {"quota": 70000},
    "blockIO": {
        "weight": 500,
        "weightDevice": [{"major": 8, "minor": 0, "weight": 10}, {"major": 8, "minor": 9, "weight": 10}],
        "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 7}, {"major": 8, "minor": 9, "rate": 7}],
    },
}


def test_what_a_refusal_writes_back_on_v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c").mkdir()
    for name, text in FILES_V2.items():
        (tmp_path / "c" / name).write_text(text)
    calls: list[tuple[str, str]] = []

    def write(path: str, value: str) -> None:
        if value.startswith("8:9 rbps="):
            raise OSError(19, "")
        calls.append((path.rpartition("/")[2], value))

    monkeypatch.setattr(cgroup, "write", write)
    monkeypatch.setattr(update, "write", write)
    with pytest.raises(KernelError) as caught:
        update._apply(CgroupV2("/c", [Hierarchy(str(tmp_path), unified=True)]), CHANGE)
    assert caught.value.message.endswith("ENODEV (no such device)")
    assert caught.value.hint is None
    before = [("cpu.max", "70000"), ("pids.max", "5")]
    before += [("io.weight", value) for value in ("4950", "8:0 1", "8:9 1")] + [("io.max", "8:0 rbps=7")]
    assert calls[:6] == before
    after = [("cpu.max", "50000 100000"), ("pids.max", "max"), ("io.weight", "default 100"), ("io.weight", "8:0 50")]
    after += [("io.max", "8:0 rbps=1 wbps=max riops=max wiops=max"), ("io.weight", "8:9 default")]
    assert calls[6:] == after + after


def test_what_a_refusal_writes_back_on_v1(tmp_path: Path) -> None:
    files = {
        "memory/c/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
        "blkio/c/blkio.bfq.weight_device": "default 100\n",
        "blkio/c/blkio.throttle.read_bps_device": "8:0 5\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    group = CgroupV1("/c", [Hierarchy(f"{tmp_path}/{name}", (name,)) for name in ("memory", "blkio")])
    change = {"memory": {"disableOOMKiller": True}, "blockIO": {**CHANGE["blockIO"], "weight": 0}}
    settings = group.settings(change)
    undo = update._undo(settings, {file: update._lines(group, file) for _, file, _ in settings})
    assert [(file.rpartition("/")[2], value) for file, value in undo] == [
        ("memory.oom_control", "0"),
        ("blkio.bfq.weight_device", "default 100"),
        ("blkio.throttle.read_bps_device", "8:0 5"),
        ("blkio.bfq.weight_device", "8:0 default"),
        ("blkio.bfq.weight_device", "8:9 default"),
        ("blkio.throttle.read_bps_device", "8:9 0"),
    ]


def test_a_refusal_that_cannot_be_undone_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c/pids.max").write_text("max\n")

    def write(path: str, value: str) -> None:
        (tmp_path / "c/pids.max").write_text("7")
        raise OSError(5, "")

    monkeypatch.setattr(cgroup, "write", write)
    monkeypatch.setattr(update, "write", write)
    with pytest.raises(KernelError) as caught:
        update._apply(CgroupV2("/c", [Hierarchy(str(tmp_path), unified=True)]), {"pids": {"limit": 5}})
    assert caught.value.hint == f"this is not as it was before: {tmp_path}/c/pids.max"
