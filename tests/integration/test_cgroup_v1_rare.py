"""Controllers that few v1 hosts mount, on v1: in the test machine, before anybody there uses them on v2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.cgroup_tools import cat, until

pytestmark = pytest.mark.needs("root", "rare_v1", "unshare")

# In a mount namespace of its own, whose v1 hierarchies are these two.
SCRIPT = """
mount -t tmpfs t /sys/fs/cgroup && cd /sys/fs/cgroup && mkdir hugetlb rdma &&
mount -t cgroup -o hugetlb none hugetlb && mount -t cgroup -o rdma none rdma || exit 1
"$@"; status=$?; cd /; umount /sys/fs/cgroup/hugetlb /sys/fs/cgroup/rdma; exit $status
"""
CODE = """
import mmap, os, subprocess
from pycontain.runtime.kernel.cgroup import open_cgroup
from pycontain.runtime.kernel.hierarchies import detect
print(detect(), flush=True)
group = open_cgroup("/box")
group.create()
group.apply({"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]})
for name in ("hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.rsvd.limit_in_bytes"):
    subprocess.run(["cat", "/sys/fs/cgroup/hugetlb/box/" + name], check=True)
for resources in (
    {"rdma": {"mlx5_1": {"hcaHandles": 3}}},
    {"hugepageLimits": [{"pageSize": "3MB", "limit": 1}]},
    {"unified": {"hugetlb.2MB.max": "0"}},
    {"unified": {"memory.high": "0"}},
):
    try: group.apply(resources)
    except Exception as error: print(error, flush=True)
child = os.fork()
if not child:
    for directory in group.directories:
        with open(directory + "/tasks", "w") as file: file.write("0")
    pages = []
    try:
        while True: pages.append(mmap.mmap(-1, 2 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000))
    except OSError as error: print(len(pages), error.strerror, flush=True)
    os._exit(0)
os.waitpid(child, 0)
from pycontain.runtime.kernel.cgroup_v1_events import statistics
print(statistics(group)["hugetlb"]["2MB"]["failcnt"])
group.remove()
"""


def test_huge_pages_and_rdma_on_v1() -> None:
    before = cat("/proc/sys/vm/nr_hugepages")
    Path("/proc/sys/vm/nr_hugepages").write_text("4")
    try:
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", SCRIPT, "sh", sys.executable, "-c", CODE],
            capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
    finally:
        Path("/proc/sys/vm/nr_hugepages").write_text(before)
    assert done.stdout.splitlines() == [
        "v1",
        str(4 << 20),
        str(4 << 20),
        "$.linux.resources.rdma['mlx5_1']: write 'mlx5_1 hca_handle=3' to /sys/fs/cgroup/rdma/box/rdma.max: "
        "ENODEV (no such device)",
        "$.linux.resources.hugepageLimits[0].pageSize: found '3MB', wanted one of 1GB, 2MB",
        '$.linux.resources.unified["hugetlb.2MB.max"]: a file of cgroup v2, but this host has its hugetlb controller on v1',
        "$.linux.resources.unified: files of cgroup v2, but this host has v1 alone",
        "2 Cannot allocate memory",
        "1",
    ], done.stderr
    # Hierarchies live on for a moment; then v2 has its controllers again.
    assert until(lambda: {"hugetlb", "rdma"} <= set(cat("/sys/fs/cgroup/cgroup.controllers").split()), 30)
