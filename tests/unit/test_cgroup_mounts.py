"""Finding the hierarchies: the text of /proc/self/mountinfo on the kinds of hosts there are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pycontain.runtime.errors import SpecError, Unsupported
from pycontain.runtime.kernel import hierarchies

V2 = "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
HYBRID = """\
23 28 0:21 / /sys rw,nosuid,nodev,noexec,relatime shared:7 - sysfs sysfs rw
32 23 0:27 / /sys/fs/cgroup ro,nosuid,nodev,noexec shared:9 - tmpfs tmpfs ro,mode=755
33 32 0:28 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw
34 32 0:29 / /sys/fs/cgroup/systemd rw,nosuid shared:11 - cgroup cgroup rw,xattr,name=systemd
38 32 0:33 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:15 - cgroup cgroup rw,cpu,cpuacct
39 32 0:34 / /sys/fs/cgroup/net_cls,net_prio rw shared:16 - cgroup cgroup rw,net_cls,net_prio
40 32 0:35 / /sys/fs/cgroup/memory rw,nosuid shared:17 - cgroup cgroup rw,memory
"""


def rows(text: str) -> list[tuple[str, tuple[str, ...], str, bool]]:
    return [
        (item.mount, item.controllers, item.name, item.unified)
        for item in hierarchies.distinct(hierarchies.parse_mountinfo(text))
    ]


def test_pure_v2() -> None:
    assert rows(V2) == [("/sys/fs/cgroup", (), "", True)]
    assert hierarchies.mode_of(hierarchies.parse_mountinfo(V2)) == "v2"


def test_hybrid_with_controllers_mounted_together() -> None:
    assert rows(HYBRID) == [
        ("/sys/fs/cgroup/unified", (), "", True),
        ("/sys/fs/cgroup/systemd", (), "systemd", False),
        ("/sys/fs/cgroup/cpu,cpuacct", ("cpu", "cpuacct"), "", False),
        ("/sys/fs/cgroup/net_cls,net_prio", ("net_cls", "net_prio"), "", False),
        ("/sys/fs/cgroup/memory", ("memory",), "", False),
    ]
    assert hierarchies.mode_of(hierarchies.parse_mountinfo(HYBRID)) == "hybrid"


def test_v1_alone() -> None:
    text = "".join(line + "\n" for line in HYBRID.splitlines() if "cgroup2" not in line)
    assert hierarchies.mode_of(hierarchies.parse_mountinfo(text)) == "v1"


def test_a_named_hierarchy_alone_beside_cgroup2_is_still_v2() -> None:
    text = V2 + "36 35 0:31 / /run/openrc/cgroup rw - cgroup openrc rw,name=openrc\n"
    assert hierarchies.mode_of(hierarchies.parse_mountinfo(text)) == "v2"


def test_a_hierarchy_mounted_twice_counts_once_and_its_root_wins() -> None:
    text = (
        "40 32 0:35 /docker/abc /inner/memory rw - cgroup cgroup rw,memory\n"
        "41 32 0:35 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "42 32 0:35 / /again rw - cgroup cgroup rw,memory\n"
    )
    assert rows(text) == [("/sys/fs/cgroup/memory", ("memory",), "", False)]


def test_of_two_parts_of_a_hierarchy_the_first_counts() -> None:
    text = "40 32 0:35 /a /one rw - cgroup2 cgroup rw\n41 32 0:35 /b /two rw - cgroup2 cgroup rw\n"
    assert rows(text) == [("/one", (), "", True)]


def test_a_covered_mount_does_not_hide_a_visible_one_of_the_same_hierarchy(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "41 32 0:38 / /sys/fs/cgroup/unified rw - cgroup2 c rw\n42 32 0:38 / /sys/fs/cgroup rw - cgroup2 c rw\n"
    monkeypatch.setattr(hierarchies, "read", lambda path: text)
    monkeypatch.setattr(hierarchies.Hierarchy, "visible", lambda self: self.mount == "/sys/fs/cgroup")
    assert [item.mount for item in hierarchies.hierarchies()] == ["/sys/fs/cgroup"]


def test_blanks_in_a_mount_point_and_optional_fields() -> None:
    text = r"40 32 0:35 / /my\040cg\134x rw shared:1 master:2 - cgroup2 cgroup2 rw" + "\n"
    assert rows(text) == [("/my cg\\x", (), "", True)]


def test_lines_that_only_look_like_cgroups_are_left_out() -> None:
    assert rows("40 32 0:35 / /x rw - cgroupfs none rw,memory\n40 32 0:36 / /cgroup rw - tmpfs cgroup rw\n") == []


def test_no_hierarchy_at_all() -> None:
    with pytest.raises(Unsupported) as caught:
        hierarchies.mode_of([])
    assert caught.value.message == "no cgroup hierarchy is mounted on this host"
    assert caught.value.hint == "mount -t cgroup2 cgroup2 /sys/fs/cgroup"


def test_a_mount_that_something_else_covers_is_not_visible(tmp_path: Path) -> None:
    device = os.stat(tmp_path).st_dev
    own = f"{os.major(device)}:{os.minor(device)}"
    assert hierarchies.Hierarchy(str(tmp_path), (), "", True, own).visible()
    assert not hierarchies.Hierarchy(str(tmp_path), (), "", True, "0:99999").visible()
    assert not hierarchies.Hierarchy(str(tmp_path / "none"), (), "", True, own).visible()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/pycontain/web", "/pycontain/web"),
        ("web", "/pycontain/web"),
        ("a/b", "/pycontain/a/b"),
        ("//a/./b/", "/a/b"),
        ("/kubepods.slice:cri:1", "/kubepods.slice:cri:1"),
    ],
)
def test_names(path: str, name: str) -> None:
    assert hierarchies.absolute(path) == name


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("/", "'/' names no cgroup below the root of the hierarchy"),
        ("", "'' names no cgroup below the root of the hierarchy"),
        ("./.", "'./.' names no cgroup below the root of the hierarchy"),
        ("/a/../..", "'/a/../..' must not hold '..', a newline or NUL"),
        ("..", "'..' must not hold '..', a newline or NUL"),
        ("/a\nb", "'/a\\nb' must not hold '..', a newline or NUL"),
        ("/a\0b", "'/a\\x00b' must not hold '..', a newline or NUL"),
        ("/a\ud800", "'/a\\ud800' cannot be the name of a file"),
    ],
)
def test_names_that_are_refused(path: str, problem: str) -> None:
    with pytest.raises(SpecError) as caught:
        hierarchies.absolute(path)
    assert caught.value.message == f"$.linux.cgroupsPath: {problem}"
