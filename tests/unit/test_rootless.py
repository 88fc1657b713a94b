"""What changes in configurations and plans without root: pure functions of the facts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from pycontain.runtime import example, rootless
from pycontain.runtime.errors import PycontainError, SpecError, Unsupported
from pycontain.runtime.idmaps import is_own
from pycontain.runtime.kernel.cgroup_none import NoCgroup
from pycontain.runtime.kernel.host import Host
from pycontain.runtime.plan.plan import Plan, exec_plan, plan
from pycontain.runtime.plan.rootless import adapt, adapt_config
from tests.unit.test_plan import FACTS, ROOTFS

HOST = Host.from_dict({"cgroup": "v2", "cgroups": [{"mount": "/sys/fs/cgroup", "controllers": [], "name": "", "unified": True}], **FACTS})  # fmt: skip
NEW = {"new_user": True, "uids": [[0, 1]], "gids": [[0, 1]], "setgroups": False}
FAKE = {"uid": 0, "new_user": False, "uids": [[0, 1000]], "gids": [[0, 1000]], "setgroups": True}


def facts(**more: Any) -> dict[str, Any]:
    owned = ["mount", "pid", "ipc", "uts", "cgroup"]
    return {"uid": 4242, **NEW, "owned": owned, "cgroup": False, "kernel": [6, 18], **more}


def config(**linux: Any) -> dict[str, Any]:
    made = copy.deepcopy(example.rootless(4242, 4242))
    made["process"]["terminal"] = False
    made["linux"].update(linux)
    return made


def adapted(made: dict[str, Any], **more: Any) -> Plan:
    found = facts(**more)
    p = plan(adapt_config(made, found), HOST, ROOTFS)
    adapt(p, found)
    return p


def names(p: Plan) -> list[str]:
    return [op[0] for op in p.ops]


def test_the_files_in_proc_are_open_for_the_maps_only() -> None:
    found = names(adapted(config()))
    assert found.index("dumpable") < found.index("clone")
    start = found.index("sync")
    became = found.index("userns_root")
    assert found[start + 1 : became] == ["dumpable", "tree"]  # the source of /sys is taken by who we are
    p = adapted(config())
    assert [op for op in p.ops if op[0] == "dumpable"] == [("dumpable", 1), ("dumpable", 0)]
    assert "dumpable" not in names(adapted(config(), **FAKE))


def test_groups_go_where_they_can() -> None:
    assert "groups" not in names(adapted(config()))
    assert "groups" in names(adapted(config(), setgroups=True))


def test_the_score_is_written_before_anything_is_joined() -> None:
    made = config()
    made["process"]["oomScoreAdj"] = 100
    p = adapted(made)
    assert p.ops[:2] == [("dumpable", 1), ("write", "/proc/self/oom_score_adj", "100")]
    assert "oom_score" not in names(p)
    process = {"args": ["x"], "cwd": "/", "oomScoreAdj": 5}
    joined = [("user", "/proc/1/ns/user"), ("mount", "/proc/1/ns/mnt")]
    e = exec_plan(process, {}, HOST, into=False, joins=0, namespaces=joined)
    adapt(e, facts(new_user=False))
    assert e.ops[:3] == [("dumpable", 1), ("write", "/proc/self/oom_score_adj", "5"), ("dumpable", 0)]
    assert names(e)[3] == "setns" and "readonly" not in names(e)


def test_who_is_not_root_inside_does_not_become_it() -> None:
    maps = [{"containerID": 1000, "hostID": 4242, "size": 1}]
    made = config(uidMappings=maps, gidMappings=maps)
    made["process"]["user"] = {"uid": 1000, "gid": 1000}
    assert "userns_root" not in names(adapted(made, uids=[[1000, 1]], gids=[[1000, 1]]))


def test_clocks_are_offset_from_inside() -> None:
    made = config()
    made["linux"]["namespaces"].append({"type": "time"})
    made["linux"]["timeOffsets"] = {"boottime": {"secs": 1, "nanosecs": 0}}
    found = names(adapted(made))
    sync = found.index("sync")
    assert found[sync + 1 : sync + 4] == ["unshare", "write", "dumpable"]
    with pytest.raises(Unsupported, match="a new time namespace beside a new user namespace wants Linux 6.2"):
        adapted(made, kernel=[6, 1])
    found = names(adapted(made, **FAKE))
    assert found.index("unshare") < found.index("write") < found.index("clone")


@pytest.mark.parametrize(
    ("kind", "namespace", "place"),
    [("sysfs", "network", "/sys"), ("proc", "pid", "/proc"), ("mqueue", "ipc", "/dev/mqueue")],
)
def test_what_may_not_be_mounted_is_bound(kind: str, namespace: str, place: str) -> None:
    made = config()
    made["mounts"] = [{"destination": "/x", "type": kind, "source": kind, "options": ["nosuid"]}]
    owned = ["network", "pid", "ipc"]
    kept = adapt_config(made, facts(owned=owned))["mounts"]
    assert kept == made["mounts"]
    owned.remove(namespace)
    bound = adapt_config(made, facts(owned=owned))["mounts"]
    assert bound == [{"destination": "/x", "type": "none", "source": place, "options": ["rbind", "nosuid"]}]


def test_the_hosts_cgroups_are_read_only_unless_they_are_the_containers() -> None:
    shut = ("readonly", "/sys/fs/cgroup")
    assert shut not in adapted(config()).ops  # a cgroup namespace, and a mount of it
    made = config()
    made["mounts"] = [m for m in made["mounts"] if m["type"] != "cgroup"]
    found = adapted(made).ops
    assert found.index(shut) < found.index(("pivot",))
    made = config()
    made["linux"]["namespaces"] = [n for n in made["linux"]["namespaces"] if n["type"] != "cgroup"]
    assert shut in adapted(made).ops


@pytest.mark.parametrize(
    ("resources", "path"),
    [
        ({"memory": {"limit": 5}}, "memory.limit"),
        ({"pids": {"limit": 0}, "cpu": {"quota": -1, "cpus": "0"}}, "cpu.cpus"),
        ({"hugepageLimits": [{"pageSize": "2MB", "limit": 0}]}, "hugepageLimits[0]"),
        ({"unified": {"memory.high": "5"}}, "unified.memory.high"),
        ({"devices": [{"allow": True}], "memory": {"limit": -1, "disableOOMKiller": False}}, None),
    ],
)
def test_limits_want_a_cgroup(resources: dict[str, Any], path: str | None) -> None:
    if path is None:
        NoCgroup().apply(resources)
        return
    with pytest.raises(Unsupported) as refused:
        NoCgroup().apply(resources)
    assert str(refused.value) == f"$.linux.resources.{path}: there is no cgroup that this user may set it in"


def test_without_a_user_namespace() -> None:
    made = config()
    made["linux"]["namespaces"] = [{"type": "mount"}]
    with pytest.raises(SpecError, match="^.*found no user namespace: without one user 4242, who is not root"):
        adapt_config(made, facts())
    assert adapt_config(made, facts(**FAKE))["mounts"]


def test_only_the_own_id_is_mapped_without_help() -> None:
    assert is_own([{"containerID": 7, "hostID": 4242, "size": 1}], 4242)
    for hosts in ([4242, 5], [5]):
        assert not is_own([{"containerID": i, "hostID": id, "size": 1} for i, id in enumerate(hosts)], 4242)
    assert not is_own([{"containerID": 0, "hostID": 4242, "size": 2}], 4242)


def test_the_setting_that_forbids_user_namespaces_is_named(tmp_path: Path) -> None:
    for name, value, wanted in (
        ("user/max_user_namespaces", "0", "user.max_user_namespaces=28633"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"),
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{value}\n")
        said = rootless._user_namespaces(str(tmp_path))
        assert said == f"this host lets users have no user namespaces: sysctl -w {wanted}"
        (tmp_path / name).write_text(f"{1 - int(value)}\n")
    assert rootless._user_namespaces(str(tmp_path)) is None


def test_where_the_state_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment: dict[bytes, bytes] = {b"XDG_RUNTIME_DIR": bytes(tmp_path)}
    monkeypatch.setattr(rootless.os, "environ", environment)
    monkeypatch.setattr(rootless.os, "geteuid", lambda: 4242)
    assert rootless.state_root("/run/x") == f"{tmp_path}/pycontain/oci"
    environment[b"XDG_RUNTIME_DIR"] = b"relative"
    with pytest.raises(PycontainError, match="XDG_RUNTIME_DIR is not set, and /run/user/4242 is not a directory"):
        rootless.state_root("/run/x")
    monkeypatch.setattr(rootless.os, "geteuid", lambda: 0)
    assert rootless.state_root("/run/x") == "/run/x"
