"""What a machine is made of and what it refuses, as far as that is planned and not done."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import pytest

from pycontain.runtime import creation
from pycontain.runtime.errors import PycontainError
from pycontain.runtime.example import EXAMPLE
from pycontain.runtime.plan.ops import encode
from pycontain.runtime.plan.plan import Plan
from pycontain.runtime.vm import disk, guest, machine, parts, port, qemu

IMAGE = {"kind": "image", "path": "/images/alpine.erofs", "disk": "/disks/1"}


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "vm.toml"
    path.write_text('kernel = "/boot/vmlinux"\naccel = "tcg"\n')
    monkeypatch.setenv("PYCONTAIN_VM_CONFIG", str(path))


def config(**changes: Any) -> dict[str, Any]:
    """The example, to be run in a machine; a change is named by its path with __ for the dots."""
    made = copy.deepcopy(EXAMPLE)
    made["process"]["terminal"] = False
    made["annotations"] = {"org.pycontain.isolation": "vm"}
    for path, value in changes.items():
        at = made
        *keys, last = path.split("__")
        for key in keys:
            at = at.setdefault(key, {})
        at[last] = value
    return made


def made(config: dict[str, Any], rootfs: dict[str, Any] | None = None, **more: Any) -> machine.Machine:
    resources = creation.complete_resources(config)
    settings = {"bundle": "/b", "keyring": None, "reap": False, **more}
    found = machine.machine_for(config, "one", "/pycontain/one", rootfs or IMAGE, None, resources, **settings)
    assert found is not None
    return found


def a_machine(**changes: Any) -> qemu.Machine:
    settings: dict[str, Any] = {
        "name": "pycontain-one", "hypervisor": "/usr/bin/qemu", "kernel": "/secret/kernel", "initrd": "/secret/initrd",
        "kind": "microvm", "accel": "tcg", "memory": 128, "cpus": 1, "disks": [("/secret/0", False), ("/secret/1", True)],
        "ports": [20, 21], "qmp": 22, "log": 23, "tap": (24, "02:70:00:00:00:02"), "parameters": [],
    }  # fmt: skip
    return qemu.Machine(**{**settings, **changes})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"linux__namespaces": [{"type": "mount"}, {"type": "network", "path": "/proc/1/ns/net"}]},
         "$.linux.namespaces[1].path: a machine's container joins no namespace of the host"),
        ({"linux__devices": [{"type": "c", "path": "/dev/fuse", "major": 10, "minor": 229}]},
         "$.linux.devices[0]: '/dev/fuse': no device of the host is passed on to a machine"),
        ({"linux__netDevices": {"eth7": {}}},
         "$.linux.netDevices['eth7']: no device of the host is passed on to a machine"),
        ({"mounts": [{"destination": "/v", "source": "/srv/v", "options": ["bind", "copy-symlink"]}]},
         "$.mounts[0].options[1]: 'copy-symlink': a link of this host leads nowhere in a guest"),
        ({"hooks": {"createContainer": [{"path": "/bin/true"}]}},
         "$.hooks.createContainer: its programs are the host's, its namespaces the guest's"),
        ({"hooks": {"startContainer": [{"path": "/bin/true"}]}},
         "$.hooks.startContainer: its programs are the host's, its namespaces the guest's"),
        ({"vm": {"kernel": {"path": "/bin/true"}, "hwConfig": {"vcpus": 1000}}},
         "$.vm.hwConfig.vcpus: found 1000, wanted at most 8"),
        ({"process__apparmorProfile": "acme"},
         "$.process.apparmorProfile: the profiles and policies of this host are not a machine's"),
        ({"process__selinuxLabel": "a:b:c"},
         "$.process.selinuxLabel: the profiles and policies of this host are not a machine's"),
        ({"linux__mountLabel": "a:b:c"},
         "$.linux.mountLabel: the profiles and policies of this host are not a machine's"),
        ({"linux__seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/agent.sock",
                             "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}]}},
         "$.linux.seccomp.syscalls[0].action: SCMP_ACT_NOTIFY has its agent on this host, and its process in a machine"),
        ({"annotations": {"org.pycontain.isolation": "gvisor"}},
         "$.annotations['org.pycontain.isolation']: found 'gvisor', wanted vm or namespaces"),
    ],
)  # fmt: skip
def test_what_is_of_this_host_is_refused_by_name(
    changes: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    with pytest.raises(PycontainError) as caught:
        made(config(**changes))
    assert caught.value.message == text


def test_preserved_descriptors_are_refused() -> None:
    with pytest.raises(PycontainError, match="^--preserve-fds: a descriptor of the host does not get into a machine$"):
        made(config(), preserve_fds=1)


def test_readiness_is_not_told_from_a_machine() -> None:
    with pytest.raises(PycontainError, match="^NOTIFY_SOCKET: a socket of the host does not get into a machine$"):
        made(config(), notify=True)


def test_the_guest_has_the_limit_and_the_host_what_is_around_it() -> None:
    wanted = {"memory": {"limit": 64 << 20, "swap": 64 << 20}, "cpu": {"quota": 150_000, "period": 100_000}}
    lines = made(config(linux__resources=wanted)).explain()
    assert '"memory":{"limit":303038464}' in lines[0]  # 64 MiB, the guest's own 97, and 128 for QEMU
    assert lines[1] == "on this host: start a machine of 161 MiB and 2 cpus with /boot/vmlinux"
    assert "write '67108864' to /sys/fs/cgroup/pycontain/one/memory.max" in lines
    assert "write '150000 100000' to /sys/fs/cgroup/pycontain/one/cpu.max" in lines
    assert not any("swap" in line for line in lines[1:])


def test_processors_by_number_are_the_hosts() -> None:
    lines = made(config(linux__resources={"cpu": {"cpus": "1", "shares": 512}})).explain()
    assert '"cpu":{"shares":512,"cpus":"1"}' in lines[0]
    assert not any("cpuset.cpus" in line for line in lines[1:])


def test_directories_are_shared_and_the_bundles_own_files_copied() -> None:
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/v", "type": "bind", "source": "/srv/v", "options": ["rbind", "ro"]},
        {"destination": "/etc/hosts", "type": "bind", "source": "hosts", "options": ["bind"]},
    ]
    lines = made(config(mounts=mounts)).explain()
    assert "on this host: share /srv/v read-only" in lines
    assert "copy /b/hosts into the guest" in lines
    assert "bind /run/container/shares/0 on /v with what is mounted below it" in lines
    assert "bind /run/container/files/0 on /etc/hosts" in lines


def test_a_bundles_root_is_shared_too() -> None:
    lines = made(config(), {"kind": "directory", "path": "/b/rootfs"}).explain()
    assert "on this host: share /b/rootfs" in lines
    assert "take /run/container/shares/0 as root file system" in lines


def test_the_command_line_names_no_path_of_the_host_but_the_program() -> None:
    for kind in ("microvm", "q35"):
        words = qemu.command(a_machine(kind=kind))
        assert not any("/secret" in word for word in words)
        assert words[0] == "/usr/bin/qemu"
        assert "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny" in words
        assert "tap,id=net,fd=103" in words


def test_memory_goes_back_to_the_host_only_from_a_machine_that_owns_it() -> None:
    def balloon(**changes: Any) -> bool:
        return any("balloon" in word for word in qemu.command(a_machine(**changes)))

    assert balloon()
    assert not balloon(ram="/t/ram", incoming=30)
    assert not balloon(ram="/t/ram", outgoing=True, tap=(-1, "02:70:00:00:00:01"))


def test_what_is_shared_is_plugged_into_a_clone_whose_memory_is_a_copy() -> None:
    """The helper maps the guest's memory, and so would write into the template's."""
    shares = qemu.Shares("/usr/lib/qemu/virtiofsd", [("/a", True)], 40, 41)
    changes: dict[str, Any] = {"kind": "q35", "ram": "/t/ram", "incoming": 30}

    def backend(words: list[str]) -> str:
        return next(word for word in words if word.startswith("memory-backend-"))

    template = qemu.command(a_machine(**{**changes, "incoming": None}, outgoing=True))
    plain, sharing = (qemu.command(a_machine(**changes, shares=found)) for found in (None, shares))
    assert backend(template).endswith("mem-path=/vm/ram,share=on")
    assert backend(plain).endswith("mem-path=/vm/ram,share=off")
    assert backend(sharing).endswith("mem-path=/vm/memory/ram,share=on")
    for words in (template, plain, sharing):
        assert qemu.PLUG in words
        assert not any("vhost-user" in word for word in words)
    assert any("vhost-user-fs-pci" in word for word in qemu.command(a_machine(kind="q35", shares=shares)))
    assert qemu.PLUG not in qemu.command(a_machine(ram="/t/ram", incoming=30))  # microvm
    ops = qemu.machine_ops(Plan(3, True, 0), a_machine(**changes, shares=shares), uid=1, groups=b"")
    assert ("bind", "/t/ram", "/vm/ram", 0) not in ops
    bound = ops.index(("bind", "/t", "/vm/memory", 0))
    readonly = ops.index(("attr", "/", 1, 0, 0, 1), bound)
    copied = ops.index(("copy_up", "tmpfs", "/vm/memory", 14, ["size=144M", "mode=755"]), readonly)
    assert ("pivot",) in ops[copied:]


def test_only_a_kernel_that_notices_has_something_plugged_in(tmp_path: Path) -> None:
    (tmp_path / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\nkernel/drivers/pci/hotplug/acpiphp.ko\n")
    base = parts.Base.__new__(parts.Base)
    for kind, modules, plugs in (("q35", str(tmp_path), True), ("microvm", str(tmp_path), False), ("q35", "", False)):
        base.kind, base.kernel = kind, guest.Kernel("/k", "6", modules)
        assert base.plugs() == plugs
    (tmp_path / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    base.kind, base.kernel = "q35", guest.Kernel("/k", "6", str(tmp_path))
    assert not base.plugs()


def test_a_template_has_no_descriptor_of_a_tap() -> None:
    there = a_machine(ram="/t/ram", outgoing=True, tap=(-1, "02:70:00:00:00:01"))
    assert there.descriptors() == [20, 21, 22]
    assert "hubport,hubid=0,id=net" in qemu.command(there)
    assert qemu.incoming(a_machine(ram="/t/ram", incoming=30)) == "fd:104"


def test_qemus_plan_ends_without_rights_and_dies_with_its_parent() -> None:
    plan = Plan(3, True, 0)
    ops = qemu.machine_ops(plan, a_machine(), uid=1_700_000_000, groups=b"")
    names = [op[0] for op in ops]
    assert names[-1] == "exec"
    assert ("user", 1_700_000_000, 1_700_000_000) in ops
    assert ("caps", 0, 0, 0) in ops
    order = [names.index(name) for name in ("pivot", "bounding", "groups", "user", "caps", "no_new_privs", "seccomp")]
    assert order == sorted(order)
    assert names[-2] == "die_with_parent"
    assert encode(ops)


def test_only_a_clone_does_without_huge_pages() -> None:
    def small(**changes: Any) -> bool:
        return ("small_pages",) in qemu.machine_ops(Plan(3, True, 0), a_machine(**changes), uid=1, groups=b"")

    assert small(ram="/t/ram", incoming=30)
    assert not small()
    assert not small(ram="/t/ram", outgoing=True, tap=(-1, "02:70:00:00:00:01"))


def test_the_helper_comes_before_qemu_and_only_reads_what_is_read_only() -> None:
    shares = qemu.Shares("/usr/lib/qemu/virtiofsd", [("/a", True), ("/b", False)], 40, 41)
    ops = qemu.machine_ops(Plan(3, True, 0), a_machine(shares=shares), uid=1, groups=b"")
    at = [op[0] for op in ops].index("branch")
    count = ops[at][1]
    helper = ops[at + 1 : at + 1 + count]
    assert helper[-1][0] == "exec"
    assert helper[-1][1] == "/usr/lib/qemu/virtiofsd"
    assert ("attr", "/shares/0", 1, 0, 0, 1) in helper
    assert not any(op[:2] == ("attr", "/shares/1") for op in helper)
    assert [op[0] for op in ops].count("exec") == 2


def test_a_session_names_its_files() -> None:
    assert port.session(1, "/c", ["/a"]) == (
        b"\1\0\0\0\0\0\0\0" b"\2\0\0\0/c\0" b"\1\0\0\0" b"\2\0\0\0/a\0"
    )  # fmt: skip


def test_a_disk_is_copied_from_one_kind_of_file_system_to_another_too(tmp_path: Path) -> None:
    blank = tmp_path / "blank"
    with blank.open("wb") as file:
        file.truncate(64 << 20)
        for at in (0, 5 << 20, (64 << 20) - 4096):
            file.seek(at)
            file.write(b"data" * 1024)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:  # a tmpfs; the other one may be one too
        for target in (tmp_path / "copy", Path(other, "copy")):
            disk._copy(str(blank), str(target))
            assert target.read_bytes() == blank.read_bytes()
            assert target.stat().st_blocks * 512 < 1 << 20


def test_what_a_kernel_need_not_do() -> None:
    emulated, virtual = (qemu.command(a_machine(accel=accel)) for accel in ("tcg", "kvm"))
    assert emulated[emulated.index("-cpu") + 1] == "max,la57=off,erms=off"
    assert virtual[virtual.index("-cpu") + 1] == "host"
    first, second = (words[words.index("-append") + 1].split() for words in (emulated, virtual))
    assert "cryptomgr.notests" in first and "cryptomgr.notests" in second
    assert set(first) - set(second) == {"mitigations=off", "no_timer_check", "tsc=reliable"}
