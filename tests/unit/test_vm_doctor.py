"""What a machine needs, looked up: `vm doctor`, `vm kernel` and the machines of `info`, on hosts that lack this and that."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pycontain import cli
from pycontain.engine import machines
from pycontain.runtime.vm import accel, doctor, parts

QEMU = """#!/bin/sh
case "$*" in
*help) printf 'Supported machines are:\\nmicrovm  a\\nq35  b\\n' ;;
*) echo 'QEMU emulator version 9.9.1 (Test)' ;;
esac
"""


class Host:
    """A host with all that a machine needs, in a directory; a test takes something away."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.program("qemu-system-x86_64", QEMU)
        for name in ("mkfs.erofs", "mkfs.ext4", "virtiofsd", "apt-get", "apt-cache", "dpkg"):
            self.program(name, "#!/bin/sh\n")
        for name in ("vmlinux", "init", "tun", "kvm"):
            (folder / name).write_bytes(b"\x7fELF")
        self.configure(f'kernel = "{folder}/vmlinux"\n')
        monkeypatch.setenv("PATH", str(self.bin))
        monkeypatch.setenv("PYCONTAIN_VM_CONFIG", str(folder / "vm.toml"))
        monkeypatch.setenv("PYCONTAIN_ROOT", str(folder / "data"))
        monkeypatch.setenv("PYCONTAIN_RUN", str(folder / "run"))
        monkeypatch.setattr(doctor, "_SBIN", "")
        monkeypatch.setattr(doctor, "_TUN", str(folder / "tun"))
        monkeypatch.setattr(parts, "VIRTIOFSD", (str(self.bin / "virtiofsd"),))
        monkeypatch.setattr(accel, "KVM", str(folder / "kvm"))
        monkeypatch.setattr(accel.namespaces, "INIT", str(folder / "init"))
        monkeypatch.setattr(accel, "_probe", self.probe)
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        self.verdict = accel.Verdict("kvm", "KVM: a guest answered within 0.40 s", 0.4, 1000.0)
        self.probed = 0

    def probe(self, *_: object) -> accel.Verdict:
        self.probed += 1
        return self.verdict

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def configure(self, text: str) -> None:
        (self.folder / "vm.toml").write_text(f'cache = "{self.folder}/cache"\n{text}')

    def checks(self) -> dict[str, dict[str, str]]:
        return {check["name"]: check for check in machines.examine()[0]}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_a_host_with_everything(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["vm", "doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"ok       hypervisor  {host.bin}/qemu-system-x86_64 (9.9.1)"
    assert [line.split()[0] for line in lines[:-2]] == ["ok"] * 12
    assert lines[-2:] == ["", "Machines can be started."]
    assert host.probed == 1
    assert cli.main(["vm", "doctor", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["able"] is True
    assert found["checks"][5] == {
        "name": "kernel", "state": "ok", "found": f"{host.folder}/vmlinux (configured, microvm)", "command": "",
    }  # fmt: skip
    assert host.probed == 2  # each time


@pytest.mark.parametrize(
    ("gone", "name", "state", "found", "command"),
    [
        ("bin/qemu-system-x86_64", "hypervisor", "missing", "cannot start a machine: qemu-system-x86_64 is not installed", "apt-get install qemu-system-x86"),
        ("bin/mkfs.erofs", "images", "missing", "mkfs.erofs is not installed", "apt-get install erofs-utils"),
        ("bin/mkfs.ext4", "disks", "missing", "mkfs.ext4 is not installed", "apt-get install e2fsprogs"),
        ("init", "init", "missing", "{}/init does not exist", "make -C runtime/init"),
        ("vmlinux", "kernel", "missing", "cannot boot {}/vmlinux: it is not a file", "pycontain vm build-kernel"),
        ("bin/virtiofsd", "volumes", "lacking", "virtiofsd is not installed: no directory is shared", "apt-get install virtiofsd"),
        ("tun", "network", "lacking", "open {}/tun: ENOENT (no such file or directory): containers have no network but none", "modprobe tun"),
        ("kvm", "kvm", "lacking", "emulation (tcg): KVM: {}/kvm does not exist", "modprobe kvm-intel || modprobe kvm-amd"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_with_the_command_that_brings_it(
    host: Host, capsys: pytest.CaptureFixture[str], gone: str, name: str, state: str, found: str, command: str
) -> None:
    (host.folder / gone).unlink()
    check = host.checks()[name]
    assert check == {"name": name, "state": state, "found": found.format(host.folder), "command": command}
    assert cli.main(["vm", "doctor"]) == (1 if state == "missing" else 0)
    text = capsys.readouterr().out
    assert f"{'':20} -> {command}\n" in text
    assert ("No machine can be started" in text) == (state == "missing")


def test_what_stops_every_start_is_not_probed_with(host: Host) -> None:
    (host.folder / "init").unlink()
    assert host.checks()["kvm"]["found"] == "not probed: what is missing comes first"
    assert host.probed == 0


def test_a_hypervisor_that_fails_or_lacks_something(host: Host) -> None:
    host.program("qemu-system-x86_64", QEMU.replace("microvm", "pc").replace("*help", "-sandbox*) exit 1 ;;\n*help"))
    found = host.checks()
    path = f"{host.bin}/qemu-system-x86_64"
    assert (found["sandbox"]["state"], found["sandbox"]["found"]) == (
        "missing",
        f"{path} -sandbox on --version: exit status 1",
    )
    assert (found["machine"]["state"], found["machine"]["found"]) == ("lacking", "microvm, q35: found no microvm")
    host.program("qemu-system-x86_64", "#!/bin/sh\necho 'no library' >&2; exit 127")
    assert host.checks()["hypervisor"]["found"] == f"{path} --version: no library"


def test_a_broken_kvm_is_no_reason_not_to_start(host: Host) -> None:
    host.verdict = accel.Verdict("tcg", 'KVM: the probe\'s guest came to a stop: QEMU said "x"', 3.5, 1000.0)
    os.chmod(accel.KVM, 0o660)
    check = host.checks()["kvm"]
    assert (check["state"], check["command"]) == ("lacking", "")
    assert check["found"] == f"emulation (tcg): {host.verdict.reason}"
    os.chmod(accel.KVM, 0o600)
    assert host.checks()["kvm"]["command"] == f"chgrp kvm {accel.KVM} && chmod 660 {accel.KVM}"


def test_the_distributions_kernel_is_fetched_later_or_cannot_be(host: Host) -> None:
    host.configure("")
    check = host.checks()["kernel"]
    assert (check["state"], check["command"]) == ("lacking", "pycontain vm kernel")
    assert machines.examine()[1] is True and not os.path.exists(host.folder / "cache")
    (host.bin / "dpkg").unlink()
    check = host.checks()["kernel"]
    assert (check["state"], check["found"]) == ("missing", "none is configured, and none can be fetched: found no dpkg")
    assert machines.examine()[1] is False


def fetched(host: Host) -> str:
    tree = host.folder / "cache/kernel/linux-image-9.9"
    (tree / "boot").mkdir(parents=True)
    (tree / "boot/vmlinuz-9.9").write_bytes(b"MZ")
    (tree / "lib/modules/9.9").mkdir(parents=True)
    (tree / "lib/modules/9.9/modules.builtin").touch()
    host.configure("")
    return f"{tree}/boot/vmlinuz-9.9"


def test_a_kernel_without_a_module_that_is_needed(host: Host) -> None:
    image = fetched(host)
    found = host.checks()
    assert found["kernel"]["found"] == f"{image} (the distribution's, q35)"
    assert (found["initramfs"]["state"], found["initramfs"]["found"]) == (
        "missing",
        "kernel 9.9 has no module virtio_pci",
    )


def test_another_user_is_told_so(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = host.checks()
    assert (found["user"]["state"], found["user"]["command"]) == ("missing", "sudo pycontain vm doctor")
    assert host.probed == 0


def test_info_says_what_is_known_and_starts_nothing(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--format", "json"]) == 0
    known = {
        "Hypervisor": f"{host.bin}/qemu-system-x86_64 (9.9.1)",
        "Kernel": f"{host.folder}/vmlinux (configured)",
        "Machine": "microvm",
        "Acceleration": "not probed yet",
    }
    assert json.loads(capsys.readouterr().out)["Machines"] == known
    assert (host.probed, os.path.exists(host.folder / "cache")) == (0, False)
    host.checks()
    assert machines.facts(1000.0 + 3 * 3600) == known | {
        "Acceleration": "kvm",
        "Reason": "KVM: a guest answered within 0.40 s",
        "Probed": "3 hours ago, in 0.40 s",
    }
    assert cli.main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index("Machines:") + 4] == "  Acceleration: kvm"


def test_info_on_hosts_that_lack_this_and_that(host: Host) -> None:
    (host.folder / "vmlinux").unlink()
    (host.bin / "qemu-system-x86_64").unlink()
    found = machines.facts(0.0)
    assert found["Hypervisor"] == "cannot start a machine: qemu-system-x86_64 is not installed"
    assert (found["Kernel"], found["Machine"]) == (f"{host.folder}/vmlinux (configured, but not there)", "auto")
    host.configure('accel = "kvm"\nmachine = "q35"\n')
    found = machines.facts(0.0)
    assert (found["Kernel"], found["Machine"]) == ("the distribution's, not fetched yet", "q35")
    assert (found["Acceleration"], found["Reason"]) == ("kvm", 'accel = "kvm" in the configuration')
    image = fetched(host)
    found = machines.facts(0.0)
    assert (found["Kernel"], found["Machine"]) == (f"{image} (the distribution's)", "q35")
    host.configure("nosuch = 1\n")
    assert machines.facts(0.0)["Configuration"].startswith(f"{host.folder}/vm.toml: found 'nosuch', wanted one of ")


@pytest.mark.parametrize(("seconds", "age"), [(-5, "0 seconds"), (119, "119 seconds"), (120, "2 minutes"), (7199, "119 minutes"), (200_000, "2 days")])  # fmt: skip
def test_the_age_of_a_verdict(seconds: float, age: str) -> None:
    assert machines._age(seconds) == age


def test_the_kernel_that_would_be_booted(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["vm", "kernel"]) == 0
    assert capsys.readouterr().out == f"{host.folder}/vmlinux\n"
    image = fetched(host)
    assert cli.main(["vm", "kernel"]) == 0
    assert capsys.readouterr().out == f"{image}\n"


def test_build_kernel_says_how_to_use_it(
    host: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pycontain.runtime.vm import build

    def made(cache: str, **given: object) -> build.Built:
        assert (cache, given["jobs"], given["output"], given["source"]) == (
            f"{host.folder}/cache",
            2,
            None,
            "linux.tar",
        )
        given["say"]("working")  # type: ignore[operator]
        return build.Built("/x/vmlinux", "9.9", 4096, 60.4)

    monkeypatch.setattr(build, "build", made)
    assert cli.main(["vm", "build-kernel", "-j2", "--source", "linux.tar"]) == 0
    text = capsys.readouterr()
    assert text.err == "working\n"
    assert text.out.splitlines()[0] == "/x/vmlinux: 9.9, 4 KiB, built in 60 s"
    assert text.out.splitlines()[-1] == '    kernel = "/x/vmlinux"'
    for jobs in ("0", "many", "-1"):
        assert cli.main(["vm", "build-kernel", "--jobs", jobs]) == 125
        assert f'cannot be "{jobs}": wanted a number from 1 on' in capsys.readouterr().err
