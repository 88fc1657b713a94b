"""From OCI resources to files and values, on both backends, against plain files in place of the kernel's."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontain.runtime.errors import KernelError, PycontainError, SpecError, Unsupported
from pycontain.runtime.kernel import cgroup, cgroup_v1, cgroup_v2
from pycontain.runtime.kernel.cgroup_v1 import CgroupV1, device_writes
from pycontain.runtime.kernel.cgroup_v2 import CgroupV2, swap_value, weight_of_shares
from pycontain.runtime.kernel.hierarchies import Hierarchy

V1_FILES = """
    memory/memory.limit_in_bytes memory/memory.memsw.limit_in_bytes memory/memory.soft_limit_in_bytes
    memory/memory.swappiness memory/memory.oom_control memory/memory.kmem.tcp.limit_in_bytes cpu/cpu.shares cpu/cpu.cfs_period_us cpu/cpu.cfs_quota_us
    cpu/cpu.cfs_burst_us cpu/cpu.rt_period_us cpu/cpu.rt_runtime_us cpu/cpu.idle cpuset/cpuset.cpus
    cpuset/cpuset.mems pids/pids.max
"""
V2_FILES = """
    memory.max memory.swap.max memory.low memory.high cpu.weight cpu.max cpu.max.burst cpu.idle cpuset.cpus
    cpuset.mems pids.max cgroup.max.descendants io.max
"""
CONTROLLERS = "cpuset cpu io memory pids"


def fill(root: Path, files: Iterable[str], text: str = "") -> None:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def v1(root: Path, *, without: Iterable[str] = (), controllers: str = "memory cpu cpuset pids") -> CgroupV1:
    fill(root, (name.replace("/", "/c/", 1) for name in V1_FILES.split() if name not in without))
    return CgroupV1("/c", [Hierarchy(f"{root}/{name}", (name,), "", False, "0:1") for name in controllers.split()])


def v2(root: Path, *, without: Iterable[str] = (), enabled: str = CONTROLLERS) -> CgroupV2:
    fill(root / "c", (name for name in V2_FILES.split() if name not in without))
    (root / "cgroup.controllers").write_text(CONTROLLERS + "\n")
    (root / "c/cgroup.controllers").write_text(enabled + "\n")
    return CgroupV2("/c", [Hierarchy(str(root), (), "", True, "0:1")])


def written(root: Path) -> dict[str, str]:
    found = {}
    for path in root.rglob("*"):
        if path.is_file() and path.name != "cgroup.controllers" and path.read_text():
            found[path.name] = path.read_text()
    return found


def message(call: Any, *arguments: Any) -> str:
    with pytest.raises(PycontainError) as caught:
        call(*arguments)
    return caught.value.message


FULL: dict[str, Any] = {
    "memory": {"limit": 67108864, "swap": 100000000, "reservation": 33554432},
    "cpu": {"shares": 1024, "quota": 50000, "period": 100000, "burst": 1000, "cpus": "0-1", "mems": "0", "idle": 0},
    "pids": {"limit": 20},
}


def test_v1_writes_every_field_as_it_is(tmp_path: Path) -> None:
    more = {"swappiness": 0, "disableOOMKiller": True, "kernelTCP": 16777216, **FULL["memory"]}
    cpu = {"realtimePeriod": 1000000, "realtimeRuntime": 950000, **FULL["cpu"]}
    v1(tmp_path).apply({"memory": more, "cpu": cpu, "pids": FULL["pids"]})
    assert written(tmp_path) == {
        "memory.limit_in_bytes": "67108864",
        "memory.memsw.limit_in_bytes": "100000000",
        "memory.soft_limit_in_bytes": "33554432",
        "memory.swappiness": "0",
        "memory.oom_control": "1",
        "memory.kmem.tcp.limit_in_bytes": "16777216",
        "cpu.shares": "1024",
        "cpu.cfs_period_us": "100000",
        "cpu.cfs_quota_us": "50000",
        "cpu.cfs_burst_us": "1000",
        "cpu.rt_period_us": "1000000",
        "cpu.rt_runtime_us": "950000",
        "cpu.idle": "0",
        "cpuset.cpus": "0-1",
        "cpuset.mems": "0",
        "pids.max": "20",
    }


def test_v2_converts_what_has_another_form_there(tmp_path: Path) -> None:
    v2(tmp_path).apply(FULL)
    assert written(tmp_path) == {
        "memory.max": "67108864",
        "memory.swap.max": "32891136",
        "memory.low": "33554432",
        "cpu.weight": "100",
        "cpu.max": "50000 100000",
        "cpu.max.burst": "1000",
        "cpu.idle": "0",
        "cpuset.cpus": "0-1",
        "cpuset.mems": "0",
        "pids.max": "20",
    }


@pytest.mark.parametrize("make", [v1, v2])
def test_nothing_asked_writes_nothing(make: Any, tmp_path: Path) -> None:
    make(tmp_path).apply(
        {
            "memory": {"limit": 0, "swap": 0, "kernel": -1, "kernelTCP": 0},
            "cpu": {"shares": 0, "quota": 0, "cpus": ""},
            "pids": None,
            "blockIO": {},
        }
    )
    assert written(tmp_path) == {}


@pytest.mark.parametrize("make", [v1, v2])
def test_a_pids_limit_of_nought_is_one(make: Any, tmp_path: Path) -> None:
    make(tmp_path).apply({"pids": {"limit": 0}})
    assert written(tmp_path) == {"pids.max": "0"}


@pytest.mark.parametrize("make", [v1, v2])
def test_no_pids_limit(make: Any, tmp_path: Path) -> None:
    make(tmp_path).apply({"pids": {"limit": -1}})
    assert written(tmp_path) == {"pids.max": "max"}


def test_v1_unlimited_memory_lifts_the_sum_too(tmp_path: Path) -> None:
    v1(tmp_path).apply({"memory": {"limit": -1}})
    assert written(tmp_path) == {"memory.limit_in_bytes": "-1", "memory.memsw.limit_in_bytes": "-1"}


def test_v2_unlimited_memory_lifts_the_swap_too(tmp_path: Path) -> None:
    v2(tmp_path).apply({"memory": {"limit": -1}})
    assert written(tmp_path) == {"memory.max": "max", "memory.swap.max": "max"}


@pytest.mark.parametrize(
    ("cpu", "text"),
    [
        ({"quota": 5000}, "5000"),
        ({"quota": -1}, "max"),
        ({"quota": -1, "period": 20000}, "max 20000"),
        ({"period": 20000}, "7000 20000"),
    ],
)
def test_v2_quota_and_period_share_a_file(cpu: dict[str, int], text: str, tmp_path: Path) -> None:
    group = v2(tmp_path)
    (tmp_path / "c/cpu.max").write_text("7000 100000\n" if cpu.keys() == {"period"} else "")
    group.apply({"cpu": cpu})
    assert (tmp_path / "c/cpu.max").read_text().startswith(text)


@pytest.mark.parametrize(
    ("limit", "swap", "value"),
    [
        (None, None, None),
        (100, None, None),
        (100, 0, None),
        (100, -1, "max"),
        (None, -1, "max"),
        (-1, None, "max"),
        (-1, -1, "max"),
        (100, 100, "0"),
        (100, 300, "200"),
    ],
)
def test_swap_alone_from_memory_and_swap(limit: int | None, swap: int | None, value: str | None) -> None:
    assert swap_value(limit, swap) == value


@pytest.mark.parametrize("limit", [None, 0, -1])
def test_a_sum_without_its_memory_part(limit: int | None) -> None:
    assert message(swap_value, limit, 300) == (
        "$.linux.resources.memory.swap: 300 is the sum of memory and swap, and needs memory.limit beside it"
    )


@pytest.mark.parametrize(
    ("shares", "weight"), [(2, 1), (3, 2), (100, 17), (512, 59), (1024, 100), (2000, 170), (262144, 10000)]
)
def test_weight(shares: int, weight: int) -> None:
    """1024 → 100 and 2000 → 170 are published results of runc 1.4.0 (its issue 4896)."""
    assert weight_of_shares(shares) == weight


@given(st.integers(2, 262143))
def test_weight_never_falls_and_stays_in_range(shares: int) -> None:
    assert 1 <= weight_of_shares(shares) <= weight_of_shares(shares + 1) <= 10000


REFUSED_BY_BOTH = [
    ({"memory": {"kernel": 1}}, "memory.kernel: not possible, Linux 5.16 dropped limits of kernel memory"),
    ({"memory": {"kernelTCP": 1 << 63}}, "memory.kernelTCP: 9223372036854775808 is more than 2^63-1"),
    ({"memory": {"useHierarchy": False}}, "memory.useHierarchy: false is not possible, Linux 5.11 made it always true"),
    (
        {"memory": {"limit": 200, "swap": 100}},
        "memory.swap: 100 is less than memory.limit 200, but it is the sum of memory and swap",
    ),
    ({"memory": {"limit": 1 << 64}}, "memory.limit: 18446744073709551616 is more than 2^63-1"),
    ({"memory": {"swap": 1 << 63}}, "memory.swap: 9223372036854775808 is more than 2^63-1"),
    ({"memory": {"reservation": 1 << 63}}, "memory.reservation: 9223372036854775808 is more than 2^63-1"),
    ({"memory": {"limit": -2}}, "memory.limit: -2 is less than -1, no limit"),
    ({"memory": {"limit": -(1 << 63), "checkBeforeUpdate": True}}, f"memory.limit: {-(1 << 63)} is less than -1, no limit"),
    ({"memory": {"limit": 5, "swap": -3}}, "memory.swap: -3 is less than -1, no limit"),
    ({"memory": {"reservation": -2}}, "memory.reservation: -2 is less than -1, no limit"),
    ({"cpu": {"shares": 1}}, "cpu.shares: 1 is not between 2 and 262144"),
    ({"cpu": {"shares": 262145}}, "cpu.shares: 262145 is not between 2 and 262144"),
]


@pytest.mark.parametrize("make", [v1, v2])
@pytest.mark.parametrize(("resources", "problem"), REFUSED_BY_BOTH)
def test_refused_by_both_before_anything_is_written(
    make: Any, resources: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    group = make(tmp_path)
    assert message(group.apply, {"pids": {"limit": 5}, **resources}) == f"$.linux.resources.{problem}"
    assert written(tmp_path) == {}


@pytest.mark.parametrize(
    ("resources", "problem"),
    [
        ({"memory": {"swappiness": 10}}, "memory.swappiness: cgroup v2 has no such setting"),
        ({"memory": {"swappiness": 0, "limit": 5}}, "memory.swappiness: cgroup v2 has no such setting"),
        ({"memory": {"disableOOMKiller": True}}, "memory.disableOOMKiller: cgroup v2 has no such setting"),
        ({"memory": {"kernelTCP": 5}}, "memory.kernelTCP: cgroup v2 has no such setting"),
        ({"cpu": {"realtimeRuntime": 10}}, "cpu.realtimeRuntime: cgroup v2 has no such setting"),
        ({"cpu": {"realtimePeriod": 10}}, "cpu.realtimePeriod: cgroup v2 has no such setting"),
        ({"unified": {"../x.y": "1"}}, 'unified["../x.y"]: not the name of a cgroup file'),
        ({"unified": {"memory": "1"}}, 'unified["memory"]: not the name of a cgroup file'),
        ({"unified": {"\udcff": "1"}}, 'unified["\\udcff"]: not the name of a cgroup file'),
        ({"unified": {"misc.max": "1"}}, 'unified["misc.max"]: this host has no misc controller'),
        (
            {"unified": {"memory.no": "1"}},
            'unified["memory.no"]: this kernel has no memory.no ({root}/c/memory.no)',
        ),
    ],
)
def test_v2_refuses_by_name(resources: dict[str, Any], problem: str, tmp_path: Path) -> None:
    group = v2(tmp_path)
    wanted = "$.linux.resources." + problem.replace("{root}", str(tmp_path))
    assert message(group.apply, resources) == wanted
    assert written(tmp_path) == {}


def test_v2_says_false_and_missing_values_are_nothing(tmp_path: Path) -> None:
    v2(tmp_path).apply({"memory": {"disableOOMKiller": False, "swappiness": None}})
    assert written(tmp_path) == {}


def test_v1_without_the_controller(tmp_path: Path) -> None:
    group = v1(tmp_path, controllers="cpu")
    assert message(group.apply, {"memory": {"limit": 5}}) == (
        "$.linux.resources.memory.limit: this host has no memory controller"
    )
    assert message(group.apply, {"devices": []}) == "$.linux.resources.devices: this host has no devices controller"


def test_v2_controller_not_enabled_below_a_level_with_processes(tmp_path: Path) -> None:
    group = v2(tmp_path, without=["memory.max"], enabled="cpu")
    with pytest.raises(Unsupported) as caught:
        group.apply({"memory": {"limit": 5}})
    assert caught.value.message == "$.linux.resources.memory.limit: the memory controller is not enabled for /c"
    assert caught.value.hint == (
        "move the processes out of the cgroups above it and enable it: "
        f"echo +memory > {tmp_path}/cgroup.subtree_control"
    )


def test_v1_file_that_the_kernel_is_too_old_for(tmp_path: Path) -> None:
    group = v1(tmp_path, without=["cpu/cpu.idle"])
    assert message(group.apply, {"cpu": {"idle": 1}}) == (
        f"$.linux.resources.cpu.idle: this kernel has no cpu.idle ({tmp_path}/cpu/c/cpu.idle)"
    )


SWAP_FILE: dict[Any, str] = {v1: "memory/memory.memsw.limit_in_bytes", v2: "memory.swap.max"}


@pytest.mark.parametrize("make", [v1, v2])
@pytest.mark.parametrize(
    ("memory", "host_swaps", "refused"),
    [
        ({"limit": 5}, True, False),
        ({"limit": 5, "swap": -1}, True, False),
        ({"limit": 5, "swap": 5}, False, False),
        ({"limit": 5, "swap": 5}, True, True),
        ({"limit": 5, "swap": 10}, False, True),
    ],
)
def test_kernels_that_do_not_count_swap(
    make: Any, memory: dict[str, int], host_swaps: bool, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (cgroup_v1, cgroup_v2):
        monkeypatch.setattr(module, "host_has_swap", lambda: host_swaps)
    group = make(tmp_path, without=[SWAP_FILE[make]])
    if not refused:
        group.apply({"memory": memory})
        return
    with pytest.raises(
        Unsupported, match=r"^\$\.linux\.resources\.memory\.swap: this kernel does not account for swap \(no "
    ) as e:
        group.apply({"memory": memory})
    assert e.value.hint == "boot with swapaccount=1 on the kernel's command line"


def test_v2_looks_at_the_usage_first_when_asked_to(tmp_path: Path) -> None:
    group = v2(tmp_path)
    (tmp_path / "c/memory.current").write_text("5000\n")
    group.apply({"memory": {"limit": 5000, "checkBeforeUpdate": True}})
    with pytest.raises(KernelError) as caught:
        group.apply({"memory": {"limit": 4096, "checkBeforeUpdate": True}})
    assert caught.value.message == (
        "$.linux.resources.memory.limit: 4096 is less than the 5000 bytes in use: EBUSY (device or resource busy)"
    )
    assert (tmp_path / "c/memory.max").read_text() == "5000"


def test_values_that_bound_each_other_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"/limit": 10, "/sum": 20}

    def kernel(path: str, value: str) -> None:
        state_after = {**state, path: int(value)}
        if state_after["/limit"] > state_after["/sum"]:
            raise OSError(errno.EINVAL, "")
        state.update(state_after)

    monkeypatch.setattr(cgroup, "write", kernel)
    cgroup.write_settings([("limit", "/limit", "50"), ("sum", "/sum", "60")])
    assert state == {"/limit": 50, "/sum": 60}
    cgroup.write_settings([("sum", "/sum", "5"), ("limit", "/limit", "4")])
    assert state == {"/limit": 4, "/sum": 5}
    with pytest.raises(KernelError) as caught:
        cgroup.write_settings([("limit", "/limit", "9"), ("sum", "/sum", "8")])
    assert caught.value.message == "$.linux.resources.limit: write '9' to /limit: EINVAL (invalid argument)"
    assert state == {"/limit": 4, "/sum": 8}


DENY_ALL = {"allow": False, "access": "rwm"}


def char(
    major: int | None, minor: int | None, access: str = "rwm", allow: bool = True, kind: str = "c"
) -> dict[str, Any]:
    return {"allow": allow, "type": kind, "major": major, "minor": minor, "access": access}


@pytest.mark.parametrize(
    ("rules", "writes"),
    [
        ([], [("devices.deny", "a")]),
        ([DENY_ALL], [("devices.deny", "a")]),
        ([char(1, 3)], [("devices.deny", "a"), ("devices.allow", "c 1:3 rwm")]),
        ([DENY_ALL, char(1, 3, "wr")], [("devices.deny", "a"), ("devices.allow", "c 1:3 rw")]),
        ([char(None, -1, "m"), char(None, None, "m", kind="b")],
         [("devices.deny", "a"), ("devices.allow", "c *:* m"), ("devices.allow", "b *:* m")]),
        ([char(1, 3, "r"), char(1, 3, "w")], [("devices.deny", "a"), ("devices.allow", "c 1:3 rw")]),
        ([char(1, 3, "rw"), char(1, 3, "w", allow=False)], [("devices.deny", "a"), ("devices.allow", "c 1:3 r")]),
        ([char(1, 3, "w"), char(1, None, "w", allow=False)], [("devices.deny", "a")]),
        ([{"allow": True}], [("devices.allow", "a")]),
        ([{"allow": True, "type": "a", "access": "rwm"}, char(1, 3, "m", allow=False)],
         [("devices.allow", "a"), ("devices.deny", "c 1:3 m")]),
        ([{"allow": True}, char(1, 3, "m", allow=False), char(1, 3)], [("devices.allow", "a")]),
        ([{"allow": True}, DENY_ALL, char(1, 5)], [("devices.deny", "a"), ("devices.allow", "c 1:5 rwm")]),
        ([{"allow": True, "type": "a", "access": "m"}],
         [("devices.deny", "a"), ("devices.allow", "b *:* m"), ("devices.allow", "c *:* m")]),
        ([char(4, 64, kind="u")], [("devices.deny", "a"), ("devices.allow", "c 4:64 rwm")]),
    ],
)  # fmt: skip
def test_device_rules(rules: list[dict[str, Any]], writes: list[tuple[str, str]]) -> None:
    assert device_writes(rules) == writes


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        ([DENY_ALL, char(1, None), char(1, 3, allow=False)],
         "devices[2]: c 1:3 is part of an earlier rule (c 1:*), and cgroup v1 cannot take a part out of it"),
        ([{"allow": True}, char(1, None, allow=False), char(1, 3)],
         "devices[2]: c 1:3 is part of an earlier rule (c 1:*), and cgroup v1 cannot take a part out of it"),
        ([char(None, 3), char(1, None, allow=False)],
         "devices[1]: c 1:* is part of an earlier rule (c *:3), and cgroup v1 cannot take a part out of it"),
    ],
)  # fmt: skip
def test_device_rules_that_the_kernel_would_take_and_not_do(rules: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(Unsupported) as caught:
        device_writes(rules)
    assert caught.value.message == f"$.linux.resources.{problem}"


def _allowed(writes: list[tuple[str, str]], kind: str, major: int, minor: int, access: str) -> bool:
    """The kernel's own reading of devices.allow and devices.deny (admin-guide/cgroup-v1/devices.rst)."""
    behaviour = writes[0] == ("devices.allow", "a")
    for _, text in writes[1:]:
        letter, numbers, letters = text.split()
        first, second = numbers.split(":")
        if letter == kind and first in ("*", str(major)) and second in ("*", str(minor)) and access in letters:
            return not behaviour
    return behaviour


number = st.sampled_from([None, 1, 2])
rule = st.fixed_dictionaries(
    {"allow": st.booleans(), "type": st.sampled_from("abc"), "access": st.sampled_from(["r", "rw", "m", "rwm"])},
    optional={"major": number, "minor": number},
)


@given(st.lists(rule, max_size=6))
def test_device_rules_mean_what_their_order_says(rules: list[dict[str, Any]]) -> None:
    """Against the plain reading: everything is denied, and the last rule that fits decides."""
    try:
        writes = device_writes(rules)
    except Unsupported:
        return
    for kind in "bc":
        for major in (1, 2, 3):
            for minor in (1, 2, 3):
                for access in "rwm":
                    wanted = False
                    for item in rules:
                        if (
                            item["type"] in ("a", kind)
                            and item.get("major") in (None, major)
                            and item.get("minor") in (None, minor)
                            and access in item["access"]
                        ):
                            wanted = item["allow"]
                    assert _allowed(writes, kind, major, minor, access) == wanted


def test_spec_errors_carry_their_path(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        v2(tmp_path).apply({"cpu": {"shares": 1}})
    assert caught.value.path == "$.linux.resources.cpu.shares"
