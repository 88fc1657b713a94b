"""config-vm.md and vm.toml: what they say is what runs, and what is not built is refused by its JSON path."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pycontain.runtime import creation
from pycontain.runtime.ending import delete
from tests import machine_tools
from tests.runtime_tools import Runtime, write_bundle
from tests.vm import kernel

pytestmark = [pytest.mark.needs("root"), pytest.mark.timeout(120)]
BOOTS = pytest.mark.needs("qemu", "virtiofsd", "guest_kernel")
DEVICES = {"dtdevs": ["path/to/dev1_node"], "iomems": [{"firstMFN": 12288, "nrMFNs": 1}], "irqs": [11, 22]}


class Command:
    """The OCI command on a bundle with a given ``vm`` object."""

    def __init__(self, directory: Path, rootfs: Path) -> None:
        self.directory = directory
        self.rootfs = rootfs
        self.runtime = Runtime(directory / "state")
        self.settings = machine_tools.settings(directory, templates=False)

    def __call__(
        self,
        vm: object,
        *args: str,
        annotations: dict[str, str] | None = None,
        file: Path | None = None,
        **resources: Any,
    ) -> subprocess.CompletedProcess[str]:
        def change(config: dict[str, Any]) -> None:
            if vm is not None:
                config["vm"] = vm
            config["annotations"] = annotations or {}
            config["linux"]["resources"] = {**config["linux"].get("resources", {}), **resources}

        bundle = write_bundle(self.directory / "bundle", self.rootfs, *args, change=change)
        environment = {**os.environ, "PYCONTAIN_VM_CONFIG": str(file or self.settings)}
        return self.runtime("run", "-b", bundle, "t-config", env=environment)

    def refused(self, vm: object, **more: Any) -> str:
        """The error's text. Nothing is left, and nothing was traced."""
        done = self(vm, "true", **more)
        assert (done.returncode, done.stdout) == (1, ""), done
        assert "Traceback" not in done.stderr
        assert not self.runtime.root.exists() or os.listdir(self.runtime.root) == []
        assert done.stderr.startswith("pycontain-runtime: ")
        return done.stderr.removeprefix("pycontain-runtime: ").strip()


@pytest.fixture
def command(tmp_path: Path, rootfs: Path) -> Iterator[Command]:
    made = Command(tmp_path, rootfs)
    yield made
    made.runtime.clean()


def image() -> str:
    return os.environ.get("PYCONTAIN_TEST_KERNEL") or kernel.kernel().image


# ---- what runs


@BOOTS
def test_a_kernel_two_processors_and_an_amount_of_memory(command: Command) -> None:
    """The operator's kernel is another; config.json's is booted, with the parameters of the specification's example."""
    other = command.directory / "vmlinuz"
    other.write_bytes(b"no kernel")
    settings = machine_tools.settings(command.directory, kernel=str(other))
    vm = {
        "hypervisor": {"path": "/usr/bin/qemu-system-x86_64"},
        "kernel": {"path": image(), "parameters": ["foo=bar", "hello world"]},
        "hwConfig": {"vcpus": 2, "memory": 268435456},
    }
    script = "nproc; cat /proc/cmdline; uname -r; grep MemTotal /proc/meminfo"
    # The limit is the container's, within what the machine has.
    done = command(vm, "sh", "-c", script, file=settings, memory={"limit": 64 << 20})
    assert (done.returncode, done.stderr) == (0, "")
    processors, words, release, memory = done.stdout.splitlines()
    assert processors == "2"
    assert " foo=bar hello world" in words  # with virtio-mmio QEMU adds where its devices are
    assert release != os.uname().release
    assert release in Path(image()).name or os.environ.get("PYCONTAIN_TEST_KERNEL")
    assert 180 << 10 < int(memory.split()[1]) < 256 << 10


@BOOTS
@pytest.mark.parametrize("vm", [{}, {"hwConfig": {"memory": 134217728}}])
def test_without_a_kernel_it_is_the_operators(command: Command, vm: dict[str, Any]) -> None:
    done = command(vm, "sh", "-c", "cat /proc/cmdline; grep MemTotal /proc/meminfo")
    assert done.returncode == 0, done.stderr
    assert "rdinit=/init" in done.stdout
    found = re.search(r"MemTotal: +(\d+)", done.stdout)
    assert found is not None
    assert (int(found[1]) < 128 << 10) == bool(vm)


@BOOTS
def test_the_annotation_goes_before_the_object(command: Command) -> None:
    done = command({"kernel": {"path": image()}}, "uname", "-r", annotations={"org.pycontain.isolation": "namespaces"})
    assert (done.stdout.strip(), done.stderr) == (os.uname().release, "")


# ---- what is refused


@pytest.mark.parametrize(
    ("vm", "error"),
    [
        # the specification's examples
        ({"hypervisor": {"path": "/path/to/vmm", "parameters": ["opts1=foo", "opts2=bar"]}}, "$.vm.hypervisor.parameters: "),
        ({"hypervisor": {"path": "/path/to/vmm"}}, "$.vm.hypervisor.path: found '/path/to/vmm', which is not a file"),
        ({"kernel": {"path": "/path/to/vmlinuz", "initrd": "/path/to/initrd.img"}}, "$.vm.kernel.path: found '/path/to/vmlinuz', which is not a file"),
        ({"kernel": {"path": "/bin/sh", "initrd": "/path/to/initrd.img"}}, "$.vm.kernel.initrd: found '/path/to/initrd.img', which is not a file"),
        ({"kernel": {"path": "/bin/sh", "initrd": "/bin/sh"}}, "$.vm.kernel.initrd: the machine boots from an initramfs that this runtime makes"),
        *(({"image": {"path": "/path/to/vm/rootfs.img", "format": form}}, "$.vm.image: ") for form in ("raw", "qcow2", "vdi", "vmdk", "vhd")),
        ({"image": {"path": "/path/to/vm/rootfs.img"}}, "$.vm.image: "),
        ({"hwConfig": {"deviceTree": "/path/to/vm/devicetree.dtb", "vcpus": 1, "memory": 4194304, **DEVICES}}, "$.vm.hwConfig.deviceTree: "),
        *(({"hwConfig": {key: value}}, f"$.vm.hwConfig.{key}: no device of the host is passed on to a machine") for key, value in DEVICES.items()),
        ({"hwConfig": {"memory": 4194304}}, "$.vm.hwConfig.memory: found 4194304 bytes, wanted at least 33554432"),
        # types and bounds
        ([], "$.vm: found a list, wanted an object"),
        ({"kernel": {}}, "$.vm.kernel.path: found nothing, wanted a string"),
        ({"kernel": {"path": 1}}, "$.vm.kernel.path: found 1, wanted a string"),
        ({"kernel": {"path": "boot/vmlinuz"}}, "$.vm.kernel.path: found 'boot/vmlinuz', wanted an absolute path"),
        ({"kernel": {"path": "/"}}, "$.vm.kernel.path: found '/', which is not a file"),
        ({"kernel": {"path": "/bin/sh", "parameters": "foo"}}, "$.vm.kernel.parameters: found 'foo', wanted a list"),
        ({"kernel": {"path": "/bin/sh", "parameters": [1]}}, "$.vm.kernel.parameters[0]: found 1, wanted a string"),
        ({"hypervisor": {}}, "$.vm.hypervisor.path: found nothing, wanted a string"),
        ({"hypervisor": {"path": "qemu"}}, "$.vm.hypervisor.path: found 'qemu', wanted an absolute path"),
        ({"image": {}}, "$.vm.image.path: found nothing, wanted a string"),
        ({"hwConfig": {"vcpus": -1}}, "$.vm.hwConfig.vcpus: found -1, wanted a non-negative integer"),
        ({"hwConfig": {"vcpus": "2"}}, "$.vm.hwConfig.vcpus: found '2', wanted a non-negative integer"),
        ({"hwConfig": {"vcpus": 0}}, "$.vm.hwConfig.vcpus: found 0, wanted at least 1"),
        ({"hwConfig": {"vcpus": 100000}}, "$.vm.hwConfig.vcpus: found 100000, wanted at most "),
        ({"hwConfig": {"memory": 0}}, "$.vm.hwConfig.memory: found 0 bytes, wanted at least 33554432"),
        ({"hwConfig": {"memory": 1 << 60}}, "$.vm.hwConfig.memory: found 1152921504606846976 bytes, wanted at most 1099511627776"),
        ({"hwConfig": {"iomems": [{"firstMFN": 1}]}}, "$.vm.hwConfig.iomems[0].nrMFNs: found nothing, wanted a non-negative integer"),
    ],
)  # fmt: skip
def test_what_is_refused(command: Command, vm: object, error: str) -> None:
    assert command.refused(vm).startswith(error)


@pytest.mark.parametrize("value", ["", "VM", "kvm", "none"])
def test_the_annotation_with_another_value(command: Command, value: str) -> None:
    text = command.refused(None, annotations={"org.pycontain.isolation": value})
    assert text == f"$.annotations['org.pycontain.isolation']: found {value!r}, wanted vm or namespaces"


VM = {"org.pycontain.isolation": "vm"}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("kernels = 1\n", "FILE: found 'kernels', wanted one of accel, cache, cpus, "),
        ("memory = '1'\n", "FILE: memory: found '1', wanted a number"),
        ("memory = true\n", "FILE: memory: found True, wanted a number"),
        ("memory = 0\n", "FILE: memory: found 0, wanted at least 1"),
        ("cpus = 1.5\n", "FILE: cpus: found 1.5, wanted a number"),
        ("templates = 'no'\n", "FILE: templates: found 'no', wanted true or false"),
        ("parameters = 'quiet'\n", "FILE: parameters: found 'quiet', wanted a list of strings"),
        ("parameters = [1]\n", "FILE: parameters: found [1], wanted a list of strings"),
        ("accel = 'xen'\n", "FILE: accel: found 'xen', wanted one of auto, kvm, tcg"),
        ("kernel = 'vmlinux'\n", "FILE: kernel: found 'vmlinux', wanted an absolute path"),
        ("[vm]\n", "FILE: found 'vm', wanted one of "),
        ("memory = \n", "cannot read FILE: Invalid value (at line 1, column 10)"),
        ("memory = \xff\n", "cannot read FILE: 'utf-8' codec can't decode byte 0xff in position 9"),
        (None, "cannot read FILE, which PYCONTAIN_VM_CONFIG names: it does not exist"),
        ("kernel = '/no/such'\n", "cannot boot /no/such: it is not a file"),
        ("kernel = '/bin/sh'\nhypervisor = 'no-such-qemu'\n", "cannot start a machine: no-such-qemu is not installed"),
        ("kernel = '/bin/sh'\ncache = '/dev/null/x'\n", "cannot make a machine: cache /dev/null/x: ENOTDIR (not a directory)"),
    ],
)  # fmt: skip
def test_faults_of_the_operators_file(command: Command, text: str | None, error: str) -> None:
    path = command.directory / "faulty.toml"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    assert command.refused(None, annotations=VM, file=path).startswith(error.replace("FILE", str(path)))


@BOOTS
@pytest.mark.parametrize("content", [b"text", b"\x7fELF" + bytes(64)])
def test_a_kernel_that_is_none(command: Command, content: bytes) -> None:
    path = command.directory / "vmlinuz"
    path.write_bytes(content)
    text = command.refused({"kernel": {"path": str(path)}})
    assert text.startswith("cannot boot the machine of t-config: "), text
    assert "it said last 'qemu" in text


@BOOTS
def test_a_hypervisor_that_is_none(command: Command) -> None:
    text = command.refused({"hypervisor": {"path": "/bin/true"}, "kernel": {"path": image()}})
    assert text.startswith("cannot boot the machine of t-config: ")


def test_features_name_the_annotation(command: Command) -> None:
    found = json.loads(command.runtime("features", check=True).stdout)
    assert "org.pycontain.isolation" in found["potentiallyUnsafeConfigAnnotations"]


# ---- overcommit


PARENT = "/pycontain-t-overcommit"
MACHINES, MIB, PART_MIB = 3, 512, 160
LIMIT_MIB = MACHINES * MIB * 2 // 3


@pytest.fixture
def parent() -> Iterator[tuple[Path, str]]:
    """A cgroup limited in memory: its directory, and the name of the file with its usage."""
    for mount, limit, usage in (
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
    ):
        controllers = Path(mount, "cgroup.controllers")
        if not Path(mount, limit).exists() and not (controllers.exists() and "memory" in controllers.read_text()):
            continue
        path = Path(mount + PARENT)
        path.mkdir()
        if controllers.exists():
            Path(mount, "cgroup.subtree_control").write_text("+memory")
        (path / limit).write_text(str(LIMIT_MIB << 20))
        yield path, usage
        for found in {path, *Path("/sys/fs/cgroup").glob(f"*{PARENT}")}:
            found.rmdir()
        return
    pytest.skip("no memory controller that a cgroup can be limited with")


@BOOTS
def test_machines_of_more_memory_than_there_is(parent: tuple[Path, str], command: Command) -> None:
    """What a guest has freed is another's: each of them fills a part of its memory, and none is killed."""
    directory, usage = parent
    runtime = command.runtime
    environment = {**os.environ, "PYCONTAIN_VM_CONFIG": str(command.settings)}
    names = [f"t-over-{i}" for i in range(MACHINES)]

    def used() -> int:
        return int((directory / usage).read_text()) >> 20

    for name in names:

        def change(config: dict[str, Any], name: str = name) -> None:
            config["vm"] = {"hwConfig": {"memory": MIB << 20}}
            config["linux"]["cgroupsPath"] = f"{PARENT}/{name}"
            config["mounts"].append({"destination": "/t", "type": "tmpfs", "source": "t", "options": ["size=200m"]})

        bundle = write_bundle(command.directory / name, command.rootfs, "sleep", "1000", change=change)
        runtime("run", "-d", "-b", bundle, name, check=True, env=environment)
    peaks: list[int] = []
    before = used()
    for name in names:
        script = f"dd if=/dev/zero of=/t/f bs=1M count={PART_MIB} 2>/dev/null && echo done"
        done = runtime("exec", name, "sh", "-c", script, env=environment)
        assert (done.stdout, done.stderr) == ("done\n", "")
        peaks.append(used())
        runtime("exec", name, "rm", "/t/f", check=True, env=environment)
        # A guest reports what is free some two seconds later.
        until(lambda: used() < peaks[-1] - PART_MIB // 2, 15)
    print(before, peaks, used())
    assert all(runtime.state(name)["status"] == "running" for name in names)
    assert max(peaks) >= before + PART_MIB // 2
    until(lambda: used() < before + PART_MIB // 2, 15)
    for name in names:
        assert "virtio-balloon" in qemu_of(runtime.state(name)["pid"])


def until(ready: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.05)


def qemu_of(pid: int) -> str:
    """The command line of the machine below a stand-in."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")


@BOOTS
@pytest.mark.needs("busybox", "mkfs.erofs")
@pytest.mark.parametrize("templates", [True, False])
def test_only_who_owns_its_memory_gives_it_back(
    command: Command, monkeypatch: pytest.MonkeyPatch, templates: bool
) -> None:
    """QEMU would discard it from the template's file, and so from the other clones."""
    image = command.directory / "image"
    (command.directory / "tree/bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", command.directory / "tree/bin/busybox")
    subprocess.run(["mkfs.erofs", "--quiet", image, command.directory / "tree"], check=True)

    def change(config: dict[str, Any]) -> None:
        config["annotations"] = VM

    bundle = write_bundle(command.directory / "bundle", Path("/"), "/bin/busybox", "sleep", "1000", change=change)
    settings = machine_tools.settings(command.directory, templates=templates)
    monkeypatch.setenv("PYCONTAIN_VM_CONFIG", str(settings))
    root = str(command.runtime.root)
    running = creation.create("t-balloon", str(bundle), root=root, rootfs={"kind": "image", "path": str(image)})
    line = qemu_of(running.pid)
    delete("t-balloon", root=root, force=True)
    running.wait()
    assert ("-incoming" in line, "virtio-balloon" in line) == (templates, not templates)
