"""plan() is pure: facts in, operations out; and it refuses by name what it cannot honour."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontain.runtime import spec as spec_module
from pycontain.runtime.errors import PycontainError, SpecError, Unsupported
from pycontain.runtime.example import EXAMPLE
from pycontain.runtime.kernel.host import Host
from pycontain.runtime.plan.describe import describe
from pycontain.runtime.plan.mounts import CLEARS, FLAGS, PROPAGATION, SPECIAL, Options
from pycontain.runtime.plan.ops import NO_FD, REAP, encode
from pycontain.runtime.plan.plan import Plan, exec_plan, plan, read_plan
from pycontain.runtime.plan.rights import ALL_CAPS


def hierarchy(mount: str, *controllers: str, name: str = "", unified: bool = False) -> dict[str, Any]:
    return {"mount": f"/sys/fs/cgroup{mount}", "controllers": list(controllers), "name": name, "unified": unified}


FACTS = {"bounding": ALL_CAPS, "apparmor": False, "selinux": False}
V2 = Host.from_dict({"cgroup": "v2", "cgroups": [hierarchy("", unified=True)], **FACTS})
V1S = [
    hierarchy("/cpu,cpuacct", "cpu", "cpuacct"),
    hierarchy("/memory", "memory"),
    hierarchy("/systemd", name="systemd"),
    hierarchy("/unified", unified=True),
]
HYBRID = Host.from_dict({"cgroup": "hybrid", "cgroups": V1S, **FACTS})


ROOTFS = {"kind": "directory", "path": "/bundle/rootfs"}
OVERLAY = {"kind": "overlay", "target": "/t", "lower": ["/l"], "upper": "/u", "work": "/w"}
ONE_ID = [{"containerID": 0, "hostID": 0, "size": 1}]


def plan_of(host: Any = V2, rootfs: dict[str, Any] = ROOTFS, change: Any = None, **options: Any) -> Plan:
    config: dict[str, Any] = copy.deepcopy(EXAMPLE)
    config["process"]["terminal"] = False
    if change:
        change(config)
    return plan(spec_module.check(config), host, rootfs, bundle="/bundle", **options)


def planned(*args: Any, **options: Any) -> list[Any]:
    return plan_of(*args, **options).ops


def names(ops: list[Any]) -> list[str]:
    return [op[0] for op in ops]


def test_the_example_on_v2() -> None:
    ops = planned(into=True, cgroup="/pycontain/x")
    assert ops[0] == ("clone", 0x6C020000, 5)
    assert ops[1] == ("unshare", 0x02000000)  # a cgroup namespace's root is the cgroup that its maker is in
    order = names(ops)
    for earlier, later in (
        ("clone", "sync"),
        ("sync", "root_bind"),
        ("root_bind", "mount"),
        ("mount", "mknod"),
        ("mknod", "mask"),
        ("mask", "pivot"),
        ("pivot", "ready"),
        ("ready", "rlimit"),
        ("bounding", "user"),
        ("user", "caps"),
        ("caps", "no_new_privs"),
        ("no_new_privs", "exec"),
    ):
        assert order.index(earlier) < order.index(later), (earlier, later)
    assert order[-1] == "exec"
    assert ("loopback",) in ops
    assert ("attr", "/", 1, 0, 0, 0) == ops[order.index("pivot") + 1]
    assert encode(ops)


def test_the_device_filter_beside_the_first_process() -> None:
    before = planned(into=True, joins=1, device_program=b"\0" * 8)
    assert names(before)[:3] == ["device_filter", "clone", "join"]
    beside = planned(into=True, joins=1, device_program=b"\0" * 8, beside=True)
    assert beside == [("beside", 1), before[1], before[0], *before[2:]]
    assert "beside" not in names(planned(joins=1, beside=True))


def test_joins_on_a_hybrid_host() -> None:
    ops = planned(HYBRID, into=True, joins=3)
    assert ops[0][0::2] == ("clone", 5)
    assert ops[1:4] == [("join", 6), ("join", 7), ("join", 8)]
    assert planned(HYBRID, joins=3)[0] == ("clone", 0x6C020000, NO_FD)


def test_cgroup_mount_on_a_hybrid_host() -> None:
    ops = planned(HYBRID, joins=3)
    mounts = {op[2]: op for op in ops if op[0] == "mount"}
    assert mounts["/sys/fs/cgroup"][3] == "tmpfs"
    assert mounts["/sys/fs/cgroup/memory"][3:6] == ("cgroup", mounts["/sys/fs/cgroup/memory"][4], "memory")
    assert mounts["/sys/fs/cgroup/unified"][3] == "cgroup2"
    assert ("symlink", "cpu,cpuacct", "/sys/fs/cgroup/cpuacct") in ops
    assert ("attr", "/sys/fs/cgroup", 1, 0, 0, 0) in ops


def test_cgroup_mount_without_a_namespace_shows_the_containers_own() -> None:
    def change(c: dict[str, Any]) -> None:
        c["linux"]["namespaces"] = [n for n in c["linux"]["namespaces"] if n["type"] != "cgroup"]

    ops = planned(change=change, into=True, cgroup="/pycontain/x")
    assert ("bind", "/sys/fs/cgroup/pycontain/x", "/sys/fs/cgroup", 0) in ops
    assert ("attr", "/sys/fs/cgroup", 1 | 2 | 4 | 8, 0x70, 0, 0) in ops, "as read-only as it was asked for"


def test_a_joined_user_namespace_is_entered_as_root_and_gets_no_nodes() -> None:
    """The kernel lets nobody make device nodes outside of the first user namespace: they are bound, as in a new one."""
    ops = planned(change=lambda c: c["linux"]["namespaces"].append({"type": "user", "path": "/proc/9/ns/user"}))
    assert names(ops)[:2] == ["raise_limit", "setns"] and ("userns_root",) in ops
    assert "mknod" not in names(ops) and ("device", "/dev/null", 0o020000, 0x103, 1) in ops


def test_preserved_descriptors_move_ours_up() -> None:
    assert planned(preserve_fds=4, into=True)[0][2] == 9


def test_lease_replaces_loopback() -> None:
    class Lease:
        netlink = [("bring lo up", b"abcd")]

    config = copy.deepcopy(EXAMPLE)
    config["process"]["terminal"] = False
    ops = plan(config, V2, ROOTFS, Lease).ops
    assert ("netlink", "bring lo up", b"abcd") in ops
    assert ("loopback",) not in ops


def test_overlay() -> None:
    rootfs = {
        "kind": "overlay",
        "target": "/c/rootfs",
        "lower": ["/d/b", "/d/a,:"],
        "upper": "/c/u",
        "work": "/c/w",
        "volatile": True,
    }
    op = ("root_overlay", "/c/rootfs", ["/d/b", "/d/a,:"], "/c/u", "/c/w", ",volatile")
    assert op in planned(rootfs=rootfs)
    assert read_plan(rootfs, ["etc/passwd"], 10).ops[-2:] == [op, ("read", "etc/passwd", 10)]
    assert describe(op) == (
        "mount overlay on /c/rootfs as root file system: lower /d/b:/d/a,:, upper /c/u, work /c/w,volatile"
    )


def test_nothing_comes_between_the_filter_and_the_program() -> None:
    """A filter may refuse any call, so that init makes none after it; without no_new_privs it wants CAP_SYS_ADMIN."""

    def change(c: dict[str, Any]) -> None:
        c["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW"}
        c["process"]["noNewPrivileges"] = False

    ops = planned(change=change)
    assert names(ops)[-3:] == ["caps", "seccomp", "exec"]
    wanted = 1 << 5 | 1 << 10 | 1 << 29
    assert ops[-3] == ("caps", wanted | 1 << 21, wanted | 1 << 21, 0)
    # What is not executed gives it up itself.
    assert planned(change=change, reap=True)[-2] == ("caps", wanted, wanted, 0)

    def and_no_new_privileges(c: dict[str, Any]) -> None:
        change(c)
        c["process"]["noNewPrivileges"] = True

    order = names(planned(change=and_no_new_privileges))
    assert order[-3:] == ["no_new_privs", "seccomp", "exec"]


def test_reaper_and_user() -> None:
    def change(c: dict[str, Any]) -> None:
        c["process"]["user"] = {"uid": 7, "gid": 8, "additionalGids": [1, 70000], "umask": 0o27}

    ops = planned(change=change, reap=True)
    assert ops[-1][4] == REAP
    assert ("user", 7, 8) in ops
    assert ("umask", 0o27) in ops
    assert ("groups", b"\1\0\0\0\x70\x11\1\0") in ops


def test_exec_joins_and_does_not_mount() -> None:
    process = {"args": ["id"], "cwd": "/", "env": []}
    p = exec_plan(
        process, {}, V2, into=True, joins=0, namespaces=[("pid", "/proc/9/ns/pid"), ("mount", "/proc/9/ns/mnt")]
    )
    assert p.ops[:3] == [("setns", 6, 0x20000000), ("setns", 7, 0x20000), ("clone", 0, 5)]
    assert p.files == ["/proc/9/ns/pid", "/proc/9/ns/mnt"]
    assert "mount" not in names(p.ops)


def test_exec_enters_the_cgroup_namespace_only_when_it_is_in_the_cgroup() -> None:
    process = {"args": ["id"], "cwd": "/", "env": []}
    joined = [("cgroup", "/proc/9/ns/cgroup"), ("mount", "/proc/9/ns/mnt")]
    p = exec_plan(process, {}, V2, into=True, joins=1, namespaces=joined)
    assert p.ops[:4] == [("setns", 8, 0x20000), ("clone", 0, 5), ("join", 6), ("setns", 7, 0x2000000)]


def update(path: str, value: Any) -> Any:
    def change(config: dict[str, Any]) -> None:
        at: Any = config
        *parents, last = path.split(".")
        for key in parents:
            at = at[int(key)] if key.isdigit() else at.setdefault(key, {})
        if isinstance(at, list):
            at[int(last)] = value
        else:
            at[last] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "error"),
    [
        ("process.apparmorProfile", "x", "$.process.apparmorProfile: AppArmor is not on in this kernel"),
        ("process.selinuxLabel", "x", "$.process.selinuxLabel: SELinux is not on in this kernel"),
        ("linux.mountLabel", "x", "$.linux.mountLabel: SELinux is not on in this kernel"),
        ("linux.intelRdt", {}, "$.linux.intelRdt: groups of resctrl are not built yet"),
        (
            "linux.netDevices",
            {"eth0": {}, "eth1": {"name": "eth0"}},
            "$.linux.netDevices['eth1'].name: found 'eth0' a second time",
        ),
        (
            "linux.netDevices",
            {"a b": {}},
            "$.linux.netDevices['a b']: found 'a b', wanted the name of a network device: 1 to 15 bytes",
        ),
        (
            "linux.netDevices",
            {"eth0": {"name": "eth%d%d"}},
            "$.linux.netDevices['eth0'].name: found 'eth%d%d', wanted the name of a network device: 1 to 15 bytes",
        ),
        ("windows", {"layerFolders": []}, "$.windows: this runtime makes Linux containers"),
        (
            "linux.rootfsPropagation",
            "wild",
            "$.linux.rootfsPropagation: found 'wild', wanted private, slave, unbindable or shared, or one of them with an r",
        ),
        (
            "linux.namespaces.0.type",
            "disk",
            "$.linux.namespaces[0].type: found 'disk', wanted one of user, mount, cgroup, uts, ipc, pid, network, time",
        ),
        ("linux.namespaces.0.path", "x", "$.linux.namespaces[0].path: found 'x', wanted an absolute path"),
        (
            "linux.namespaces",
            [],
            "$.hostname: found a name, but no uts namespace in $.linux.namespaces",
        ),
        (
            "linux.namespaces",
            [{"type": "user"}, {"type": "mount"}],
            "$.linux.uidMappings: found nothing, wanted mappings for the new user namespace",
        ),
        (
            "linux.uidMappings",
            [{"containerID": 0, "hostID": 0, "size": 1}],
            "$.linux.uidMappings: found mappings, but no new user namespace in $.linux.namespaces",
        ),
        (
            "linux.timeOffsets",
            {"boottime": {"secs": 1}},
            "$.linux.timeOffsets: found offsets, but no new time namespace in $.linux.namespaces",
        ),
        (
            "linux.sysctl",
            {"kernel.core_pattern": "|/x"},
            "$.linux.sysctl['kernel.core_pattern']: it is not of a namespace: setting it would change the host",
        ),
        (
            "linux.sysctl",
            {"net.x\nkernel.y": "1"},
            "$.linux.sysctl['net.x\\nkernel.y']: found a malformed name or value, wanted one key and one value",
        ),
        (
            "linux.sysctl",
            {"kernel": "1"},
            "$.linux.sysctl['kernel']: found a malformed name or value, wanted one key and one value",
        ),
        (
            "linux.sysctl",
            {"user.max_user_namespaces": "1"},
            "$.linux.sysctl['user.max_user_namespaces']: it belongs to the user namespace, and the container has none",
        ),
        (
            "linux.sysctl",
            {"net/../kernel/core_pattern": "1"},
            "$.linux.sysctl['net/../kernel/core_pattern']: found a malformed name or value, wanted one key and one value",
        ),
        (
            "process.rlimits.0.type",
            "RLIMIT_X",
            "$.process.rlimits[0].type: found 'RLIMIT_X', wanted one of ",
        ),
        ("process.rlimits.0.soft", 9999, "$.process.rlimits[0].soft: found 9999, wanted at most the hard limit 1024"),
        ("process.user.uid", 2**32 - 1, "$.process.user.uid: found 4294967295, wanted at most 4294967294"),
        (
            "mounts.0.options",
            ["idmap"],
            "$.mounts[0].options[0]: 'idmap' of a file system of type 'proc': ids are mapped for bind mounts",
        ),
        (
            "mounts.0",
            {"destination": "/x", "source": "/y", "options": ["bind", "idmap"]},
            "$.mounts[0].options[1]: found nothing to map ids by: neither uidMappings of the mount nor a user namespace",
        ),
        (
            "mounts.0",
            {"destination": "/x", "source": "/y", "options": ["bind", "ridmap"], "uidMappings": ONE_ID},
            "$.mounts[0].gidMappings: found nothing, wanted mappings beside those in uidMappings",
        ),
        (
            "mounts.0",
            {"destination": "/x", "source": "/y", "options": ["bind"], "gidMappings": ONE_ID},
            "$.mounts[0].uidMappings: found nothing, wanted mappings beside those in gidMappings",
        ),
        (
            "mounts.0",
            {"destination": "/x", "source": "/y", "options": ["bind", "idmap=uids=0-1"]},
            "$.mounts[0].options[1]: found 'uids=0-1', wanted uids=FS-HOST-SIZE[#...] or gids=FS-HOST-SIZE[#...]",
        ),
        (
            "mounts.0",
            {"destination": "/x", "source": "/y", "options": ["bind", "idmap=uids=0-1-1"]},
            "$.mounts[0].options[1]: found 'uids=0-1-1', wanted both uids= and gids=, divided by a semicolon",
        ),
        (
            "mounts.0",
            {"destination": "/x", "source": "/y", "options": ["bind", "idmap=uids=0-1-1;gids=0-4294967295-2"]},
            "$.mounts[0].options[1][0]: found 2 ids from 0 and 4294967295, wanted ids below 2^32",
        ),
        (
            "mounts.0",
            {"destination": "/x", "source": "/y", "options": ["bind", "idmap", "copy-symlink"],
             "uidMappings": ONE_ID, "gidMappings": ONE_ID},
            "$.mounts[0].options[1]: found 'copy-symlink' beside it: a link has neither ids to map nor peers",
        ),
        (
            "mounts.0",
            {"destination": "/x", "source": "/y", "options": ["bind", "tmpcopyup"]},
            "$.mounts[0].options[1]: found 'tmpcopyup': it is for the type tmpfs, a bind mount cannot have it",
        ),
        (
            "mounts.0.options",
            ["tmpcopyup"],
            "$.mounts[0].options[0]: found 'tmpcopyup': a file system of type 'proc' cannot have it",
        ),
        (
            "mounts.0.options",
            ["remount", "src-nofollow"],
            "$.mounts[0].options[1]: found 'remount' beside it: it is for a mount that is made",
        ),
        (
            "mounts.0.options",
            ["remount", "bind", "hidepid=2"],
            "$.mounts[0].options: found 'hidepid=2': it belongs to a file system, not to one mount of it",
        ),
        ("mounts.0.destination", "/..", "$.mounts[0].destination: found '/..', wanted a path below the root file system"),
        (
            "linux.devices",
            [{"path": "/dev/x", "type": "c", "major": 4096, "minor": 0}],
            "$.linux.devices[0].major: found 4096, wanted 0 to 4095",
        ),
        (
            "linux.devices",
            [{"path": "/dev/x", "type": "b", "major": 8, "minor": -1}],
            "$.linux.devices[0].minor: found -1, wanted 0 to 1048575",
        ),
        (
            "linux.devices",
            [{"path": "/dev/x", "type": "p", "uid": 4294967295}],
            "$.linux.devices[0].uid: found 4294967295, wanted at most 4294967294",
        ),
        (
            "mounts.0.options",
            ["rsync"],
            "$.mounts[0].options[0]: found 'rsync': the kernel has no recursive form of 'sync'",
        ),
        ("mounts.0.type", "", "$.mounts[0].type: found nothing, wanted a file system type or the option bind"),
        (
            "mounts.0",
            {"destination": "/x", "type": "bind"},
            "$.mounts[0].source: found nothing, wanted the path to bind",
        ),
        (
            "mounts.0",
            {"destination": "/x", "source": "/y", "options": ["bind", "sync"]},
            "$.mounts[0].options: found 'sync': it belongs to a file system, a bind mount cannot have it",
        ),
        (
            "mounts.0.uidMappings",
            ONE_ID,
            "$.mounts[0].uidMappings: a file system of type 'proc': ids are mapped for bind mounts",
        ),
        ("linux.devices", [{"path": "/dev/x", "type": "z"}], "$.linux.devices[0].type: found 'z', wanted c, b, u or p"),
        (
            "linux.devices",
            [{"path": "/dev/x", "type": "c"}],
            "$.linux.devices[0].major: found nothing, wanted the device's major and minor number",
        ),
        ("hooks", {"poststop": [{"path": "x"}]}, "$.hooks.poststop[0].path: found 'x', wanted an absolute path"),
        (
            "hooks",
            {"createContainer": [{"path": "x"}]},
            "$.hooks.createContainer[0].path: found 'x', wanted an absolute path",
        ),
        (
            "hooks",
            {"startContainer": [{"path": "/x", "timeout": 0}]},
            "$.hooks.startContainer[0].timeout: found 0, wanted more than zero seconds",
        ),
    ],
)
def test_refused_by_name(path: str, value: Any, error: str) -> None:
    with pytest.raises(PycontainError) as caught:
        planned(change=update(path, value))
    assert caught.value.message.startswith(error)


SHARING = {"namespaces": [{"type": "pid"}]}


@pytest.mark.parametrize(
    ("path", "value", "what"),
    [
        ("linux.uidMappings", ONE_ID, "$.linux.namespaces: a user namespace needs"),
        ("", None, "$.linux.namespaces: an image's root file system needs"),
    ],
)
def test_what_cannot_be_without_a_mount_namespace_is_refused(path: str, value: Any, what: str) -> None:
    def change(c: dict[str, Any]) -> None:
        c.update(linux=dict(SHARING), mounts=[], hostname="", root={"path": "rootfs"})
        if path:
            c["linux"].update(namespaces=[{"type": "user"}], gidMappings=ONE_ID)
            update(path, value)(c)

    with pytest.raises(Unsupported) as caught:
        planned(change=change, rootfs=ROOTFS if path else OVERLAY)
    assert caught.value.message.startswith(f"{what} a mount namespace of the container's own")
    assert caught.value.hint == 'add {"type": "mount"} to $.linux.namespaces'


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("mounts", [{"destination": "/x", "type": "tmpfs"}]),
        ("linux.maskedPaths", ["/x"]),
        ("linux.readonlyPaths", ["/x"]),
        ("linux.rootfsPropagation", "slave"),
        ("root.readonly", True),
        ("process.terminal", True),
        ("annotations", {}),
    ],
)
def test_what_is_mounted_for_the_host_lies_on_a_mount_that_can_be_taken_away(path: str, value: Any) -> None:
    def change(c: dict[str, Any]) -> None:
        c.update(linux=dict(SHARING), mounts=[], hostname="", root={"path": "rootfs"})
        update(path, value)(c)

    p = plan_of(change=change)
    found = names(p.ops)
    assert p.shares_mounts == (path != "annotations")
    assert "propagation" not in found and "pivot" not in found and "chroot" in found
    first = p.ops[found.index("root_bind" if p.shares_mounts else "root") + 1]
    assert (first == ("attr", "/", 0, 0, PROPAGATION["private"], 1)) == p.shares_mounts


def test_data_of_a_bind_mount_is_worth_a_warning() -> None:
    mount = {"destination": "/x", "source": "/y", "options": ["bind", "size=5"]}
    p = plan_of(change=update("mounts.0", mount))
    assert p.warnings == ["$.mounts[0].options: 'size=5' belongs to a file system, ignored for a bind mount"]


@given(st.lists(st.sampled_from(["ro", "rw", "rbind", "rprivate", "rro", "rnoatime", *FLAGS, *CLEARS])))
def test_the_last_option_wins(options: list[str]) -> None:
    try:
        sorted_out = Options(options, "$.x")
    except SpecError:
        return
    last = next((o for o in reversed(options) if o in ("ro", "rw")), None)
    assert bool(sorted_out.flags & 1) == (last == "ro")
    assert bool(sorted_out.attr_set & 1) == (last == "ro")
    assert bool(sorted_out.attr_clear & 1) == (last == "rw")
    assert not sorted_out.attr_set & sorted_out.attr_clear & ~0x70


SECTIONS = st.sampled_from(
    [
        "namespaces",
        "devices",
        "sysctl",
        "maskedPaths",
        "resources",
        "rootfsPropagation",
        "personality",
        "seccomp",
        "timeOffsets",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 40) | st.text(max_size=8) | st.sampled_from(["pid", "mount", "c"]),
    lambda x: (
        st.lists(x, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "path", "names", "domain", "a"]), x, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(SECTIONS, JSON, max_size=3), st.booleans())
def test_any_configuration_is_planned_or_refused(linux: dict[str, Any], terminal: bool) -> None:
    config: dict[str, Any] = copy.deepcopy(EXAMPLE)
    config["linux"].update(linux)
    config["process"]["terminal"] = terminal
    try:
        ops = plan(spec_module.check(config), V2, ROOTFS).ops
    except PycontainError as error:
        assert error.message
    else:
        assert encode(ops)


OPTIONS = st.sampled_from(
    ["bind", "rbind", "remount", "defaults", "size=1m", "idmap=uids=0-1-1;gids=0-1-1", "idmap=@", "\u0100=\ud800", ""]
    + [f"{r}{name}" for name in (*FLAGS, *CLEARS, *PROPAGATION) for r in ("", "r")]
    + list(SPECIAL)
)
IDS = st.lists(
    st.fixed_dictionaries({key: st.integers(0, 1 << 33) for key in ("containerID", "hostID", "size")}), max_size=2
)
MOUNTS = st.lists(
    st.fixed_dictionaries(
        {"destination": st.sampled_from(["/x", "/dev", "/", "rel", "", "/a/../..", "/sys/fs/cgroup"])},
        optional={
            "type": st.sampled_from(["", "bind", "none", "tmpfs", "proc", "sysfs", "cgroup", "x" * 99]),
            "source": st.sampled_from(["", "/y", "y", "."]),
            "options": st.lists(OPTIONS, max_size=5),
            "uidMappings": IDS,
            "gidMappings": IDS,
        },
    ),
    max_size=4,
)


@given(MOUNTS, st.sampled_from(["", "shared", "rslave", "unbindable"]), st.sampled_from(["mount", "user", "none", "path"]))
def test_any_mounts_are_planned_or_refused_with_their_path(mounts: list[Any], spread: str, spaces: str) -> None:
    config: dict[str, Any] = copy.deepcopy(EXAMPLE)
    config["process"]["terminal"] = False
    config["mounts"] = mounts
    config["linux"]["rootfsPropagation"] = spread
    found = [{"type": kind} for kind in ("pid", "uts") + (("mount",) if spaces != "none" else ())]
    if spaces == "user":
        found.append({"type": "user"})
        config["linux"].update(uidMappings=ONE_ID, gidMappings=ONE_ID)
    elif spaces == "path":
        found[-1]["path"] = "/proc/9/ns/mnt"
        found.append({"type": "user", "path": "/proc/9/ns/user"})
    config["linux"]["namespaces"] = found
    try:
        ops = plan(spec_module.check(config), HYBRID, ROOTFS, bundle="/bundle", joins=3).ops
    except PycontainError as error:
        assert error.message.startswith("$."), error.message
    else:
        assert encode(ops)
        assert all(describe(op) for op in ops)


@pytest.mark.parametrize(
    ("op", "words"),
    [
        (("clone", 0x6C020000, 5), "clone the first process into new namespaces: mount,uts,ipc,pid,network"),
        (("setns", 6, 0x10000000), "join the user namespace through descriptor 6"),
        (("propagation", "/", 1 << 19 | 16384), "make / and what is below it slave"),
        (
            ("mount", "proc", "/proc", "proc", 15, "hidepid=2", 1),
            "mount proc (proc) on /proc: ro,nosuid,nodev,noexec,hidepid=2",
        ),
        (("mount", "t", "/t", "tmpfs", 0, "", 0), "mount tmpfs (t) on /t"),
        (("attr", "/v", 3, 4, 0, 1), "set /v and what is below it ro,nosuid,dev"),
        (("attr", "/v", 0, 0x70, 0, 0), "set /v relatime"),
        (("attr", "/v", 0, 0, 1 << 18, 0), "set /v private"),
        (("mknod", "/dev/null", 0o020666, 0x103, 0, 0), "make character device 1:3 /dev/null (mode 0666, owner 0:0)"),
        (("mknod", "/dev/p", 0o010600, 0, 1, 2), "make fifo /dev/p (mode 0600, owner 1:2)"),
        (("rlimit", 7, 1024, (1 << 64) - 1), "set RLIMIT_NOFILE to 1024:unlimited"),
        (("groups", b"\1\0\0\0\5\0\0\0"), "set supplementary groups: 1,5"),
        (("groups", b""), "set supplementary groups: none"),
        (("bounding", 1 << 5 | 1 << 10), "bound capabilities to kill,net_bind_service"),
        (("caps", 0, 1, 0), "set capabilities: effective none; permitted chown; inheritable none"),
        (("exec", "sh", ["sh", "-c", "id"], [], REAP), "execute sh -c id below a reaper"),
        (("seccomp", b"12345678", 0), "load the seccomp filter (8 bytes)"),
    ],
)
def test_how_operations_read(op: Any, words: str) -> None:
    assert describe(op) == words
