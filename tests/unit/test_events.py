"""Statistics in runc's form, from files such as the kernel's; durations of Go's."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontain.runtime import events
from pycontain.runtime.errors import PycontainError
from pycontain.runtime.kernel import cgroup_v1_events, cgroup_v2_events
from pycontain.runtime.kernel.cgroup_rare import numbers
from pycontain.runtime.kernel.cgroup_v1 import CgroupV1
from pycontain.runtime.kernel.cgroup_v2 import CgroupV2
from pycontain.runtime.kernel.hierarchies import Hierarchy

V2 = {
    "cpu.stat": "usage_usec 5000\nuser_usec 3000\nsystem_usec 2000\nnr_periods 7\nnr_throttled 2\nthrottled_usec 9\n",
    "cpu.pressure": "some avg10=0.50 avg60=0.00 avg300=1.25 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    "cpuset.cpus.effective": "0-1,3\n",
    "cpuset.mems.effective": "0\n",
    "memory.stat": "anon 10\nfile 20\n",
    "memory.current": "100\n",
    "memory.max": "1000\n",
    "memory.peak": "150\n",
    "memory.swap.current": "11\n",
    "memory.swap.max": "500\n",
    "pids.current": "3\n",
    "pids.max": "max\n",
    "io.stat": "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n253:16 \n",
    "hugetlb.2MB.current": "2097152\n",
    "hugetlb.2MB.rsvd.current": "4194304\n",
    "hugetlb.2MB.events": "max 5\n",
    "hugetlb.1GB.current": "0\n",
    "hugetlb.1GB.events": "max 0\n",
}
V1 = {
    "blkio/c/blkio.bfq.io_serviced_recursive": "Total 0\n",
    "blkio/c/blkio.throttle.io_serviced_recursive": "8:0 Read 3\n8:0 Total 3\nTotal 3\n",
    "blkio/c/blkio.throttle.io_service_bytes_recursive": "8:0 Read 4096\n8:0 Write 0\nTotal 4096\n",
    "hugetlb/c/hugetlb.2MB.usage_in_bytes": "1\n",
    "hugetlb/c/hugetlb.2MB.rsvd.usage_in_bytes": "2\n",
    "hugetlb/c/hugetlb.2MB.max_usage_in_bytes": "3\n",
    "hugetlb/c/hugetlb.2MB.rsvd.max_usage_in_bytes": "4\n",
    "hugetlb/c/hugetlb.2MB.failcnt": "5\n",
    "hugetlb/c/hugetlb.2MB.rsvd.failcnt": "6\n",
    "memory/c/memory.stat": "cache 7\nrss 8\n",
    "memory/c/memory.usage_in_bytes": "9\n",
    "memory/c/memory.max_usage_in_bytes": "10\n",
    "memory/c/memory.limit_in_bytes": "11\n",
    "memory/c/memory.failcnt": "12\n",
    "cpu/c/cpu.stat": "nr_periods 0\nnr_throttled 0\nthrottled_time 0\n",
}


def fill(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_v2(tmp_path: Path) -> None:
    fill(tmp_path / "c", V2)
    found = cgroup_v2_events.statistics(CgroupV2("/c", [Hierarchy(str(tmp_path), unified=True)]))
    flags = found["cpuset"]
    assert (flags.pop("cpus"), flags.pop("mems"), set(flags.values()), len(flags)) == ([0, 1, 3], [0], {0}, 9)
    del found["cpuset"]
    none = {"avg10": 0.0, "avg60": 0.0, "avg300": 0.0, "total": 0}
    assert found == {
        "cpu": {
            "usage": {"total": 5000000, "kernel": 2000000, "user": 3000000},
            "throttling": {"periods": 7, "throttledPeriods": 2, "throttledTime": 9000},
            "psi": {"some": {"avg10": 0.5, "avg60": 0.0, "avg300": 1.25, "total": 77}, "full": none},
        },
        "memory": {
            "cache": 20,
            "usage": {"limit": 1000, "usage": 100, "max": 150, "failcnt": 0},
            "swap": {"limit": 1500, "usage": 111, "failcnt": 0},
            "kernel": {"limit": 0, "failcnt": 0},
            "kernelTCP": {"limit": 0, "failcnt": 0},
            "raw": {"anon": 10, "file": 20},
        },
        "pids": {"current": 3},
        "blkio": {
            "ioServiceBytesRecursive": [
                {"major": 8, "op": "Read", "value": 1},
                {"major": 8, "op": "Write", "value": 2},
            ],
            "ioServicedRecursive": [{"major": 8, "op": "Read", "value": 3}, {"major": 8, "op": "Write", "value": 4}],
        },
        "hugetlb": {"1GB": {"failcnt": 0}, "2MB": {"usage": 4194304, "failcnt": 5}},
    }


def test_v2_without_any_controller(tmp_path: Path) -> None:
    fill(tmp_path / "c", {"cpu.stat": "usage_usec 1\nuser_usec 1\nsystem_usec 0\n", "memory.max": "max\n"})
    found = cgroup_v2_events.statistics(CgroupV2("/c", [Hierarchy(str(tmp_path), unified=True)]))
    assert found["cpu"] == {"usage": {"total": 1000, "kernel": 0, "user": 1000}, "throttling": {}}
    assert found["memory"]["usage"] == {"limit": (1 << 64) - 1, "failcnt": 0}
    assert found["memory"]["swap"] == {"limit": (1 << 64) - 1, "failcnt": 0}
    assert found["pids"] == found["blkio"] == found["hugetlb"] == {}


def test_v1(tmp_path: Path) -> None:
    fill(tmp_path, V1)
    names = ("blkio", "hugetlb", "memory", "cpu")
    group = CgroupV1("/c", [Hierarchy(f"{tmp_path}/{name}", (name,)) for name in names])
    none = {"limit": 0, "failcnt": 0}
    assert cgroup_v1_events.statistics(group) == {
        "cpu": {"usage": {}, "throttling": {}},
        "cpuset": {},
        "memory": {
            "cache": 7,
            "usage": {"limit": 11, "usage": 9, "max": 10, "failcnt": 12},
            "swap": none, "kernel": none, "kernelTCP": none,
            "raw": {"cache": 7, "rss": 8},
        },
        "pids": {},
        "blkio": {
            "ioServiceBytesRecursive": [{"major": 8, "op": "Read", "value": 4096}, {"major": 8, "op": "Write"}],
            "ioServicedRecursive": [{"major": 8, "op": "Read", "value": 3}, {"major": 8, "op": "Total", "value": 3}],
        },
        "hugetlb": {"2MB": {"usage": 2, "max": 4, "failcnt": 6}},
    }


def test_a_hybrid_hosts_huge_pages_are_on_its_cgroup2(tmp_path: Path) -> None:
    fill(tmp_path / "unified/c", V2)
    group = CgroupV1("/c", [Hierarchy(f"{tmp_path}/unified", unified=True)])
    assert cgroup_v1_events.statistics(group)["hugetlb"]["2MB"] == {"usage": 4194304, "failcnt": 5}


def test_what_a_guest_counts_in_the_same_form() -> None:
    found = events._of_guest(
        {
            "memory": {"usage": 5, "limit": None, "peak": 6, "swap": 0, "file": 2, "inactive_file": 1, "anon": 3},
            "cpu": {"usage": 7, "user": 4, "system": 3, "periods": 1, "throttled_periods": 0, "throttled": 0},
            "pids": {"current": 1, "limit": 9},
            "oom_kills": 0,
        }
    )
    assert found == {
        "cpu": {"usage": {"total": 7, "kernel": 3, "user": 4}, "throttling": {"periods": 1}},
        "memory": {"cache": 2, "usage": {"limit": (1 << 64) - 1, "usage": 5, "max": 6, "failcnt": 0}},
        "pids": {"current": 1, "limit": 9},
        "blkio": {},
        "hugetlb": {},
        "intel_rdt": {},
        "network_interfaces": None,
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5s", 5),
        ("1m30s", 90),
        ("0.5s", 0.5),
        ("250ms", 0.25),
        ("1h", 3600),
        ("1.5h", 5400),
        ("10us", 1e-5),
        ("3µs", 3e-6),
    ],
)
def test_durations(text: str, value: float) -> None:
    assert events.seconds(text) == pytest.approx(value)


@given(st.text(alphabet="0123456789.hmsuµn -", max_size=8))
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    try:
        assert events.seconds(text) > 0
    except PycontainError as error:
        assert error.message == f"events --interval: found {text!r}, wanted a time such as 5s or 1m30s"


@pytest.mark.parametrize(("text", "found"), [("", []), ("0\n", [0]), ("0-2,5", [0, 1, 2, 5]), ("7,9-9", [7, 9])])
def test_lists_of_processors(text: str, found: list[int]) -> None:
    assert numbers(text) == found
