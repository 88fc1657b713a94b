"""When a container gets its own cgroup, and as whose: the rules of config-linux.md, "Cgroup ownership"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pycontain.runtime.errors import KernelError
from pycontain.runtime.kernel import cgroup_v2_delegation as delegation
from pycontain.runtime.kernel.cgroup_v1 import CgroupV1
from pycontain.runtime.kernel.cgroup_v2 import CgroupV2
from pycontain.runtime.kernel.hierarchies import Hierarchy

MOUNT = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw", "nosuid"]}
MAPS = [{"containerID": 0, "hostID": 100000, "size": 1000}, {"containerID": 1000, "hostID": 5, "size": 1}]


def config(
    uid: int = 0, *, mount: dict[str, Any] = MOUNT, namespaces: tuple[str, ...] = ("cgroup", "user")
) -> dict[str, Any]:
    return {
        "process": {"user": {"uid": uid}},
        "mounts": [{"destination": "/proc"}, mount],
        "linux": {"namespaces": [{"type": name} for name in namespaces]},
    }


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, True),
        ({"mount": {**MOUNT, "options": ["ro"]}}, False),
        ({"mount": {**MOUNT, "destination": "/cgroup"}}, False),
        ({"mount": {**MOUNT, "source": "/sys/fs/cgroup", "type": "bind"}}, False),
        ({"mount": {**MOUNT, "options": None}}, True),
        ({"namespaces": ("user", "mount")}, False),
    ],
)
def test_what_it_takes(change: dict[str, Any], wanted: bool) -> None:
    assert delegation.is_wanted(config(**change)) is wanted


def test_a_joined_cgroup_namespace_is_not_its_own() -> None:
    joined = config()
    joined["linux"]["namespaces"][0]["path"] = "/proc/1/ns/cgroup"
    assert not delegation.is_wanted(joined)


@pytest.mark.parametrize(
    ("uid", "maps", "namespaces", "owner"),
    [
        (0, MAPS, ("cgroup", "user"), 100000),
        (999, MAPS, ("cgroup", "user"), 100999),
        (1000, MAPS, ("cgroup", "user"), 5),
        (1001, MAPS, ("cgroup", "user"), None),
        (33, [], ("cgroup",), 33),
        (33, [], ("cgroup", "user"), None),
    ],
)
def test_the_owner(uid: int, maps: list[dict[str, int]], namespaces: tuple[str, ...], owner: int | None) -> None:
    assert delegation.owner(config(uid, namespaces=namespaces), maps) == owner


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    calls: list[tuple[str, int, int]] = []

    def chown(path: str, uid: int, gid: int) -> None:
        Path(path).stat()
        calls.append((Path(path).name, uid, gid))

    monkeypatch.setattr(delegation.os, "chown", chown)  # type: ignore[attr-defined]
    return calls


def v2(root: Path) -> CgroupV2:
    (root / "c").mkdir()
    for name in ("cgroup.procs", "cgroup.subtree_control", "memory.max", "memory.oom.group"):
        (root / "c" / name).write_text("")
    return CgroupV2("/c", [Hierarchy(str(root), unified=True)])


def test_the_kernels_own_list(tmp_path: Path, given: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "delegate").write_text("cgroup.procs\ncgroup.threads\nmemory.oom.group\n")
    monkeypatch.setattr(delegation, "_DELEGATE", str(tmp_path / "delegate"))
    delegation.give(v2(tmp_path), config(), MAPS)
    assert given == [("c", 100000, -1), ("cgroup.procs", 100000, -1), ("memory.oom.group", 100000, -1)]


def test_the_specifications_list_where_the_kernel_has_none(
    tmp_path: Path, given: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delegation, "_DELEGATE", str(tmp_path / "none"))
    delegation.give(v2(tmp_path), config(), MAPS)
    assert given == [("c", 100000, -1), ("cgroup.procs", 100000, -1), ("cgroup.subtree_control", 100000, -1)]


def test_nothing_is_given_on_v1_and_beside_it(tmp_path: Path, given: list[object]) -> None:
    beside = [Hierarchy(f"{tmp_path}/pids", ("pids",)), Hierarchy(f"{tmp_path}/unified", unified=True)]
    delegation.give(CgroupV1("/c", beside), config(), MAPS)
    delegation.give(CgroupV1("/c", beside[:1]), config(), MAPS)
    assert given == []


def test_a_refusal_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chown(path: str, uid: int, gid: int) -> None:
        raise OSError(1, "")

    monkeypatch.setattr(delegation.os, "chown", chown)  # type: ignore[attr-defined]
    with pytest.raises(KernelError) as caught:
        delegation.give(v2(tmp_path), config(), MAPS)
    assert caught.value.message == (
        f"give {tmp_path}/c to user 100000, who runs the container: EPERM (operation not permitted)"
    )
