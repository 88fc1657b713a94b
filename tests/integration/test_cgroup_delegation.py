"""A container that manages cgroups of its own, on a kernel whose controllers are all on v2; run in the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cgroup_tools import cat, of_process, scratch, until
from tests.runtime_tools import Runtime, write_bundle

pytestmark = pytest.mark.needs("root", "cgroup2")

ID = "cgx-own"
AT = f"/sys/fs/cgroup/pycontain/{ID}"
# Moves itself down, gives controllers to what is below, limits it; then tries to raise its own limit.
SCRIPT = """
cd /sys/fs/cgroup
mkdir inner && echo $$ > inner/cgroup.procs && echo '+pids +memory' > cgroup.subtree_control && echo 7 > inner/pids.max
cat inner/pids.max /proc/self/cgroup
for file in pids.max memory.max; do echo max > $file && echo raised $file; done
touch /tmp/done
exec sleep 600
"""


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    runtime = Runtime(tmp_path / "state")
    yield runtime
    runtime.clean()


def own(config: dict[str, Any]) -> None:
    """A user namespace of its own, its cgroups writable."""
    config["linux"]["namespaces"] += [{"type": "user"}, {"type": "cgroup"}]
    kinds = {item["type"]: item for item in config["linux"]["namespaces"]}
    config["linux"]["namespaces"] = list(kinds.values())
    for kind in ("uidMappings", "gidMappings"):
        config["linux"][kind] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    config["linux"]["resources"].update({"pids": {"limit": 30}, "memory": {"limit": 100 << 20}})
    config["linux"]["cgroupsPath"] = f"/pycontain/{ID}"
    config["mounts"] = [mount for mount in config["mounts"] if mount["destination"] != "/sys/fs/cgroup"]
    config["mounts"] += [
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw", "nosuid"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
    ]


def test_a_container_shares_out_what_is_its_own(runtime: Runtime, rootfs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    bundle = write_bundle(tmp_path / "bundle", rootfs, "sh", "-c", SCRIPT, change=own)
    with out.open("w") as file:
        runtime("run", "-d", "-b", bundle, ID, check=True, stdout=file, stderr=subprocess.STDOUT)
    pid = runtime.state(ID)["pid"]
    assert until(lambda: os.path.exists(f"/proc/{pid}/root/tmp/done")), out.read_text()
    text = out.read_text()
    assert text.splitlines()[:2] == ["7", "0::/inner"], text
    assert "raised" not in text
    assert text.count("can't create") == 2
    # As the host sees it: the kernel's list and no more, and the limits are those that were asked for.
    names = set(cat("/sys/kernel/cgroup/delegate").split())
    owners = {name: os.stat(f"{AT}/{name}").st_uid for name in os.listdir(AT) if name != "inner"}
    assert {name for name, uid in owners.items() if uid == 100000} == names & owners.keys()
    assert set(owners.values()) == {0, 100000}
    assert (os.stat(AT).st_uid, os.stat(os.path.dirname(AT)).st_uid) == (100000, 0)
    assert (cat(f"{AT}/pids.max"), cat(f"{AT}/memory.max")) == ("30", str(100 << 20))
    assert of_process(pid)[""] == f"/pycontain/{ID}/inner"
    # One more process goes where the first one is, as the cgroup itself takes none any more.
    assert cat(f"{AT}/cgroup.subtree_control").split() == ["memory", "pids"]
    assert runtime("exec", ID, "cat", "/proc/self/cgroup", check=True).stdout == "0::/inner\n"


def test_read_only_cgroups_stay_roots(runtime: Runtime, rootfs: Path, tmp_path: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        own(config)
        config["mounts"][-2]["options"] = ["ro", "nosuid"]

    bundle = write_bundle(tmp_path / "bundle", rootfs, "sleep", "600", change=change)
    runtime("create", "-b", bundle, ID, check=True)
    assert {os.stat(path).st_uid for path in (AT, *(f"{AT}/{name}" for name in os.listdir(AT)))} == {0}


def test_a_cgroup_below_the_callers_own() -> None:
    """A user who was given a cgroup makes, limits and removes others below it, and can do nothing above."""
    with scratch("given") as group:
        group.create()
        user, given = 65534, group.directories[0]
        os.mkdir(f"{given}/self")
        for path in (given, f"{given}/self"):
            for name in ("", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
                os.chown(f"{path}/{name}", user, user)
        code = (
            f"import os, sys; sys.path[:0] = {[path for path in sys.path if path]!r}\n"
            f"open({given!r} + '/self/cgroup.procs', 'w').write('0')\n"
            f"os.setresgid({user}, {user}, {user}); os.setgroups([]); os.setresuid({user}, {user}, {user})\n"
            "from pycontain.runtime.kernel.cgroup import open_cgroup\n"
            f"box = open_cgroup({group.path!r} + '/box')\n"
            "box.create()\n"
            "box.apply({'memory': {'limit': 64 << 20}, 'pids': {'limit': 5}, 'cpu': {'shares': 200}})\n"
            "import subprocess\n"
            "subprocess.run(['cat', *(box.at + '/' + name for name in ('memory.max', 'pids.max', 'cpu.weight'))])\n"
            "child = os.fork()\n"
            "if not child:\n"
            "    open(box.at + '/cgroup.procs', 'w').write('0')\n"
            "    os.execlp('grep', 'grep', '0::', '/proc/self/cgroup')\n"
            "os.waitpid(child, 0)\n"
            "box.remove()\n"
            "for path in (" + repr(group.path) + ", '/pycontain-test-above'):\n"
            "    try: open_cgroup(path).create() if 'above' in path else open_cgroup(path).apply({'pids': {'limit': 9}})\n"
            "    except Exception as error: print(error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=60, cwd="/"
        )
        assert done.stdout.splitlines() == [
            str(64 << 20),
            "5",
            "29",
            f"0::{group.path}/box",
            f"$.linux.resources.pids.limit: write '9' to {given}/pids.max: EACCES (permission denied)",
            "create cgroup /sys/fs/cgroup/pycontain-test-above: EACCES (permission denied)",
        ], done.stderr
