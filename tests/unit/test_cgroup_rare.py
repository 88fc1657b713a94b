"""Block IO, huge pages, RDMA, network classes and unified files: from OCI fields to files and values."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontain.runtime.errors import PycontainError, SpecError, Unsupported
from pycontain.runtime.kernel import cgroup
from pycontain.runtime.kernel.cgroup_v1 import CgroupV1
from pycontain.runtime.kernel.cgroup_v2 import CgroupV2, PlannedCgroup
from pycontain.runtime.kernel.cgroup_v2_rare import weight_of_blkio
from pycontain.runtime.kernel.hierarchies import Hierarchy
from pycontain.runtime.spec import SCHEMA, check_resources

V1 = "blkio net_cls net_prio hugetlb rdma memory"
BFQ = "blkio/c/blkio.bfq.weight blkio/c/blkio.bfq.weight_device"
CFQ = "blkio/c/blkio.weight blkio/c/blkio.weight_device blkio/c/blkio.leaf_weight blkio/c/blkio.leaf_weight_device"
HUGE_V1 = "hugetlb/c/hugetlb.2MB.limit_in_bytes hugetlb/c/hugetlb.2MB.rsvd.limit_in_bytes hugetlb/c/hugetlb.1GB.limit_in_bytes"
HUGE_V2 = "hugetlb.2MB.max hugetlb.2MB.rsvd.max hugetlb.1GB.max hugetlb.1GB.rsvd.max hugetlb.2MB.current"
EVERYTHING: dict[str, Any] = {
    "blockIO": {
        "weight": 500,
        "weightDevice": [{"major": 8, "minor": 0, "weight": 100}, {"major": 8, "minor": 16, "weight": 1000}],
        "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1048576}],
        "throttleWriteBpsDevice": [{"major": 8, "minor": 0, "rate": 2097152}],
        "throttleReadIOPSDevice": [{"major": 8, "minor": 0, "rate": 120}, {"major": 8, "minor": 16, "rate": 0}],
        "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 1 << 40}],
    },
    "hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}, {"pageSize": "1GB", "limit": 0}],
    "rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10000}, "mlx4_0": {"hcaObjects": 0}},
}


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every (file, value) that is written, in its order."""
    calls: list[tuple[str, str]] = []
    monkeypatch.setattr(cgroup, "write", lambda path, value: calls.append((os.path.basename(path), value)))
    return calls


def fill(root: Path, names: str) -> None:
    for name in names.split():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")


def v1(root: Path, files: str = f"{BFQ} {HUGE_V1}", controllers: str = V1, beside: str | None = None) -> CgroupV1:
    fill(root, files)
    found = [Hierarchy(f"{root}/{name}", (name,), "", False, "0:1") for name in controllers.split()]
    if beside is not None:
        (root / "unified/c").mkdir(parents=True, exist_ok=True)
        for folder in ("unified", "unified/c"):
            (root / folder / "cgroup.controllers").write_text(beside)
        found.append(Hierarchy(f"{root}/unified", (), "", True, "0:2"))
    return CgroupV1("/c", found)


def v2(
    root: Path, files: str = f"io.weight io.max rdma.max {HUGE_V2}", controllers: str = "io hugetlb rdma memory"
) -> CgroupV2:
    fill(root / "c", f"cgroup.controllers {files}")
    (root / "cgroup.controllers").write_text(controllers)
    (root / "c/cgroup.controllers").write_text(controllers)
    return CgroupV2("/c", [Hierarchy(str(root), (), "", True, "0:1")])


def test_v1(tmp_path: Path, writes: list[tuple[str, str]]) -> None:
    network = {"classID": 1048577, "priorities": [{"name": "eth0", "priority": 500}, {"name": "lo", "priority": 0}]}
    v1(tmp_path).apply({**EVERYTHING, "network": network})
    assert writes == [
        ("blkio.bfq.weight", "500"),
        ("blkio.bfq.weight_device", "8:0 100"),
        ("blkio.bfq.weight_device", "8:16 1000"),
        ("blkio.throttle.read_bps_device", "8:0 1048576"),
        ("blkio.throttle.write_bps_device", "8:0 2097152"),
        ("blkio.throttle.read_iops_device", "8:0 120"),
        ("blkio.throttle.read_iops_device", "8:16 0"),
        ("blkio.throttle.write_iops_device", "8:0 1099511627776"),
        ("net_cls.classid", "1048577"),
        ("net_prio.ifpriomap", "eth0 500"),
        ("net_prio.ifpriomap", "lo 0"),
        ("hugetlb.2MB.limit_in_bytes", "4194304"),
        ("hugetlb.2MB.rsvd.limit_in_bytes", "4194304"),
        ("hugetlb.1GB.limit_in_bytes", "0"),
        ("rdma.max", "mlx5_1 hca_handle=3 hca_object=10000"),
        ("rdma.max", "mlx4_0 hca_object=0"),
    ]


def test_v1_with_the_weights_of_cfq(tmp_path: Path, writes: list[tuple[str, str]]) -> None:
    block = {
        "weight": 10,
        "leafWeight": 1000,
        "weightDevice": [
            {"major": 8, "minor": 0, "weight": 20, "leafWeight": 30},
            {"major": 9, "minor": 1, "leafWeight": 40},
        ],
    }
    v1(tmp_path, f"{BFQ} {CFQ}").apply({"blockIO": block})
    assert writes == [
        ("blkio.weight", "10"),
        ("blkio.leaf_weight", "1000"),
        ("blkio.weight_device", "8:0 20"),
        ("blkio.leaf_weight_device", "8:0 30"),
        ("blkio.leaf_weight_device", "9:1 40"),
    ]


def test_v2(tmp_path: Path, writes: list[tuple[str, str]]) -> None:
    v2(tmp_path).apply(EVERYTHING)
    assert writes == [
        ("io.weight", "4950"),
        ("io.weight", "8:0 910"),
        ("io.weight", "8:16 10000"),
        ("io.max", "8:0 rbps=1048576"),
        ("io.max", "8:0 wbps=2097152"),
        ("io.max", "8:0 riops=120"),
        ("io.max", "8:16 riops=max"),
        ("io.max", "8:0 wiops=1099511627776"),
        ("hugetlb.2MB.max", "4194304"),
        ("hugetlb.2MB.rsvd.max", "4194304"),
        ("hugetlb.1GB.max", "0"),
        ("hugetlb.1GB.rsvd.max", "0"),
        ("rdma.max", "mlx5_1 hca_handle=3 hca_object=10000"),
        ("rdma.max", "mlx4_0 hca_object=0"),
    ]


def test_v2_with_bfq_keeps_the_weights(tmp_path: Path, writes: list[tuple[str, str]]) -> None:
    block = {"weight": 500, "weightDevice": [{"major": 8, "minor": 0, "weight": 100, "leafWeight": 0}]}
    v2(tmp_path, "io.bfq.weight io.weight").apply({"blockIO": block})
    assert writes == [("io.bfq.weight", "500"), ("io.bfq.weight", "8:0 100")]


def test_a_hybrid_host_gives_what_it_can_to_its_cgroup2(tmp_path: Path, writes: list[tuple[str, str]]) -> None:
    group = v1(tmp_path, BFQ, "blkio memory", beside="hugetlb rdma")
    fill(tmp_path / "unified/c", f"{HUGE_V2} rdma.max cgroup.max.depth")
    asked = {**EVERYTHING, "unified": {"cgroup.max.depth": "5", "hugetlb.2MB.max": "0"}}
    asked.pop("blockIO")
    group.apply(asked)
    assert writes == [
        ("hugetlb.2MB.max", "4194304"),
        ("hugetlb.2MB.rsvd.max", "4194304"),
        ("hugetlb.1GB.max", "0"),
        ("hugetlb.1GB.rsvd.max", "0"),
        ("rdma.max", "mlx5_1 hca_handle=3 hca_object=10000"),
        ("rdma.max", "mlx4_0 hca_object=0"),
        ("cgroup.max.depth", "5"),
        ("hugetlb.2MB.max", "0"),
    ]


def test_v2_unified_values_go_to_their_files_line_by_line(tmp_path: Path, writes: list[tuple[str, str]]) -> None:
    v2(tmp_path, "memory.high io.max memory.oom.group").apply(
        {
            "unified": {
                "memory.high": "1000",
                "io.max": "8:0 rbps=1\n8:16 rbps=2\n",
                "cgroup.max.descendants": "3",
                "memory.oom.group": "1",
            }
        }
    )
    assert writes == [
        ("memory.high", "1000"),
        ("io.max", "8:0 rbps=1"),
        ("io.max", "8:16 rbps=2"),
        ("cgroup.max.descendants", "3"),
        ("memory.oom.group", "1"),
    ]


def test_what_nobody_set_writes_nothing(tmp_path: Path, writes: list[tuple[str, str]]) -> None:
    """As engines write it: empty objects and lists, noughts, nulls."""
    nothing = {
        "blockIO": {"weight": 0, "leafWeight": 0, "weightDevice": [], "throttleReadBpsDevice": None},
        "hugepageLimits": [],
        "network": {"classID": 0, "priorities": []},
        "rdma": {},
        "unified": None,
    }
    v1(tmp_path / "1").apply(nothing)
    v2(tmp_path / "2").apply(nothing)
    assert writes == []


def throttle(**fields: int) -> dict[str, Any]:
    return {"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1, **fields}]}}


BOTH = [
    ({"blockIO": {"weight": 9}}, "blockIO.weight: found 9, wanted 10 to 1000"),
    ({"blockIO": {"weight": 1001}}, "blockIO.weight: found 1001, wanted 10 to 1000"),
    (
        {"blockIO": {"weightDevice": [{"major": 1, "minor": 1, "weight": 1}]}},
        "blockIO.weightDevice[0].weight: found 1, wanted 10 to 1000",
    ),
    (
        {"blockIO": {"weightDevice": [{"major": 1, "minor": 1}]}},
        "blockIO.weightDevice[0]: found neither a weight nor a leafWeight",
    ),
    (
        {"hugepageLimits": [{"pageSize": "2MB", "limit": 1}, {"pageSize": "3MB", "limit": 1}]},
        "hugepageLimits[1].pageSize: found '3MB', wanted one of 1GB, 2MB",
    ),
    (
        {"hugepageLimits": [{"pageSize": "2MB.rsvd", "limit": 1}]},
        "hugepageLimits[0].pageSize: found '2MB.rsvd', wanted one of 1GB, 2MB",
    ),
    ({"rdma": {"mlx5_1": {}, "x": {"hcaHandles": 1}}}, "rdma['mlx5_1']: found neither hcaHandles nor hcaObjects"),
    ({"rdma": {"a b": {"hcaHandles": 1}}}, "rdma['a b']: not the name of a device"),
]


@pytest.mark.parametrize("make", [v1, v2])
@pytest.mark.parametrize(("resources", "problem"), BOTH)
def test_values_that_are_none(make: Any, resources: Any, problem: str, tmp_path: Path, writes: list[object]) -> None:
    with pytest.raises(SpecError) as caught:
        make(tmp_path).apply(resources)
    assert caught.value.message == f"$.linux.resources.{problem}"
    assert writes == []


NONE = "cgroup v2 has no such setting"


@pytest.mark.parametrize(
    ("resources", "problem"),
    [
        ({"blockIO": {"leafWeight": 10}}, f"blockIO.leafWeight: {NONE}"),
        (
            {"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "weight": 10, "leafWeight": 10}]}},
            f"blockIO.weightDevice[0].leafWeight: {NONE}",
        ),
        ({"network": {"classID": 1}}, f"network.classID: {NONE}"),
        ({"network": {"priorities": [{"name": "a", "priority": 1}]}}, f"network.priorities: {NONE}"),
        ({"unified": {"misc.max": "1"}}, 'unified["misc.max"]: this host has no misc controller'),
    ],
)
def test_what_v2_has_not(resources: Any, problem: str, tmp_path: Path, writes: list[object]) -> None:
    with pytest.raises(Unsupported) as caught:
        v2(tmp_path).apply(resources)
    assert caught.value.message == f"$.linux.resources.{problem}"
    assert writes == []


@pytest.mark.parametrize(
    ("resources", "problem"),
    [
        (throttle(), "blockIO.throttleReadBpsDevice[0]: this host has no {io} controller"),
        ({"blockIO": {"weight": 10}}, "blockIO.weight: this host has no {io} controller"),
        ({"hugepageLimits": [{"pageSize": "2MB", "limit": 1}]}, "hugepageLimits: this host has no hugetlb controller"),
        ({"rdma": {"x": {"hcaHandles": 1}}}, "rdma{rdma}: this host has no rdma controller"),
    ],
)
def test_controllers_that_a_host_has_not(resources: Any, problem: str, tmp_path: Path, writes: list[object]) -> None:
    for make, words in (
        (lambda: v1(tmp_path / "1", "", "memory"), {"io": "blkio", "rdma": ""}),
        (lambda: v1(tmp_path / "h", "", "memory", beside="pids"), {"io": "blkio", "rdma": "['x']"}),
        (lambda: v2(tmp_path / "2", "", "memory"), {"io": "io", "rdma": "['x']"}),
    ):
        with pytest.raises(Unsupported) as caught:
            make().apply(resources)
        assert caught.value.message == f"$.linux.resources.{problem.format(**words)}"
    assert writes == []


@pytest.mark.parametrize(
    ("network", "problem"),
    [
        ({"classID": 1 << 32}, "network.classID: found 4294967296, wanted at most 4294967295"),
        (
            {"priorities": [{"name": "lo", "priority": 1 << 32}]},
            "network.priorities[0].priority: found 4294967296, wanted at most 4294967295",
        ),
        (
            {"priorities": [{"name": "lo\n", "priority": 1}, {"name": "a b", "priority": 1}]},
            "network.priorities[1].name: found 'a b', wanted the name of a network interface",
        ),
        (
            {"priorities": [{"name": "sixteen-letters-", "priority": 1}]},
            "network.priorities[0].name: found 'sixteen-letters-', wanted the name of a network interface",
        ),
    ],
)
def test_network_values_that_are_none(network: Any, problem: str, tmp_path: Path, writes: list[object]) -> None:
    with pytest.raises(SpecError) as caught:
        v1(tmp_path).apply({"network": network})
    assert caught.value.message == f"$.linux.resources.{problem}"
    assert writes == []


@pytest.mark.parametrize(
    ("beside", "key", "problem"),
    [
        (None, "colour.max", "unified: files of cgroup v2, but this host has v1 alone"),
        ("hugetlb", "memory.oom.group", 'unified["memory.oom.group"]: a file of cgroup v2, but this host has its memory controller on v1'),
        ("hugetlb", "colour.max", 'unified["colour.max"]: this host has no colour controller'),
    ],
)  # fmt: skip
def test_unified_files_where_controllers_are_on_v1(beside: str | None, key: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported) as caught:
        v1(tmp_path, "", "memory", beside=beside).apply({"unified": {key: "1"}})
    assert caught.value.message == f"$.linux.resources.{problem}"


def test_a_weight_that_the_kernel_has_no_file_for(tmp_path: Path) -> None:
    group = v1(tmp_path, "", "blkio")
    (tmp_path / "blkio/c").mkdir(parents=True)
    for field in ("weight", "leafWeight"):
        with pytest.raises(Unsupported) as caught:
            group.apply({"blockIO": {field: 100}})
        name = "blkio.weight" if field == "weight" else "blkio.leaf_weight"
        assert caught.value.message == (
            f"$.linux.resources.blockIO.{field}: this kernel has no {name} ({tmp_path}/blkio/c/{name})"
        )


@pytest.mark.parametrize("section", ["blockIO", "hugepageLimits", "network", "rdma"])
def test_in_a_machine_devices_are_not_the_hosts(section: str) -> None:
    asked = {**EVERYTHING, "network": {"classID": 5}}[section]
    with pytest.raises(Unsupported) as caught:
        PlannedCgroup("/sys/fs/cgroup", "/c").operations({section: asked}, [])
    assert caught.value.message == f"$.linux.resources.{section}: not in a machine, whose devices are not the host's"


@pytest.mark.parametrize(
    ("weight", "converted"), [(10, 1), (11, 11), (100, 910), (500, 4950), (999, 9989), (1000, 10000)]
)
def test_weights(weight: int, converted: int) -> None:
    """The ends are the ends; the middle as crun's manual has it: 1 + (x - 10) * 9999 / 990."""
    assert weight_of_blkio(weight) == converted


@given(st.integers(10, 999))
def test_weights_rise_and_stay_in_range(weight: int) -> None:
    assert 1 <= weight_of_blkio(weight) < weight_of_blkio(weight + 1) <= 10000


devices = st.tuples(st.integers(0, 255), st.integers(0, 255))
rates = st.lists(st.tuples(devices, st.integers(0, (1 << 64) - 1)), max_size=4)


@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(EVERYTHING["blockIO"].keys() - {"weight", "weightDevice"}, rates))
)
def test_throttles_say_the_same_on_both(tmp_path_factory: pytest.TempPathFactory, block: Any) -> None:
    """What a device may do, read as each kernel reads it: v1's nought is v2's max."""
    block = {
        field: [{"major": major, "minor": minor, "rate": rate} for (major, minor), rate in entries]
        for field, entries in block.items()
    }
    one = {}
    for _, file, value in v1(Path("/nowhere"), "").settings({"blockIO": block}):
        device, rate = value.split()
        kind = file.rpartition(".")[2].split("_")
        one[device, kind[0][0] + kind[1]] = int(rate) or None
    other = {}
    folder = tmp_path_factory.getbasetemp() / "v2"
    for _, _, value in v2(folder, "io.max").settings({"blockIO": block}):
        device, rate = value.split()
        kind, _, number = rate.partition("=")
        other[device, kind] = None if number == "max" else int(number)
    assert one == other


_TEXT = st.text(st.characters(exclude_characters="\0"), max_size=5)  # the shape is checked before, keys too


def of_schema(schema: Any) -> st.SearchStrategy[Any]:
    """Values that have the shape of a part of ``spec.SCHEMA``; names and numbers that mean something are likely."""
    if isinstance(schema, list):
        return st.lists(of_schema(schema[0]), max_size=3)
    if isinstance(schema, dict) and "*" in schema:
        names = st.sampled_from(
            ["memory.high", "rdma.max", "io.max", "mlx5_1", "cgroup.type", ".", "..", "", "a b"]
        )
        return st.dictionaries(names | _TEXT, of_schema(schema["*"]), max_size=3)
    if isinstance(schema, dict):
        needed = {key: of_schema(kind) for key, kind in schema.items() if str(kind).endswith("!")}
        others = {key: of_schema(kind) for key, kind in schema.items() if key not in needed}
        return st.fixed_dictionaries(needed, optional=others)
    low, high = (0, (1 << 64) - 1) if schema.startswith("uint") else (-(1 << 63), (1 << 64) - 1)
    numbers = st.sampled_from([0, 1, 2, 10, 500, 1 << 20]) | st.integers(low, high)
    text = st.sampled_from(["2MB", "lo", "0-1", "c", "rwm", "max\nmax"]) | _TEXT
    return {"str": text, "bool": st.booleans()}.get(schema.rstrip("!"), numbers)


@given(of_schema(SCHEMA["linux"]["resources"]))
def test_any_resources_are_settings_or_refused_by_name(
    tmp_path_factory: pytest.TempPathFactory, resources: dict[str, Any]
) -> None:
    check_resources(resources)
    folder = tmp_path_factory.getbasetemp() / "any"
    controllers = "cpu cpuset pids devices"
    hybrid = v1(folder / "1", controllers=f"{V1} {controllers}", beside="misc")
    for group in (hybrid, v2(folder / "2", controllers=f"io hugetlb rdma memory {controllers}")):
        fill(folder / "2/c", "cpu.max")
        (folder / "2/c/cpu.max").write_text("max 100000\n")
        try:
            settings = group.settings(resources)
        except PycontainError as error:
            assert error.message.startswith("$.linux.resources."), error.message
            continue
        for where, path, value in settings:
            assert where.partition(".")[0].partition("[")[0] in SCHEMA["linux"]["resources"]
            assert path.startswith(str(folder)) and ".." not in path.split("/")
            assert isinstance(value, str)
