"""Which acceleration a machine gets: what is settled without a probe, and what is known from one. The probe itself is
taken from tests/integration/test_vm_accel.py."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pycontain.runtime.errors import KernelError, PycontainError
from pycontain.runtime.vm import accel, guest
from pycontain.runtime.vm.settings import Settings


class Probes:
    """Stands in for the probe: counts, and answers what it is told."""

    def __init__(self) -> None:
        self.done = 0
        self.verdict = accel.Verdict("tcg", "KVM: broken", 3.5, 1000.0)

    def __call__(self, settings: Settings, kernel: guest.Kernel) -> accel.Verdict:
        self.done += 1
        return self.verdict


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> Probes:
    made = Probes()
    monkeypatch.setattr(accel, "_probe", made)
    return made


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(accel, "KVM", str(tmp_path / "kvm"))
    monkeypatch.setattr(accel.namespaces, "INIT", str(tmp_path / "init"))
    made = Settings()
    made.hypervisor, made.kernel, made.cache = (
        str(tmp_path / "qemu"),
        str(tmp_path / "vmlinux"),
        str(tmp_path / "cache"),
    )
    for name in ("kvm", "qemu", "vmlinux", "init"):
        (tmp_path / name).write_bytes(b"x")
        (tmp_path / name).chmod(0o755)
    return made


def said(verdict: accel.Verdict | None) -> tuple[str, str]:
    assert verdict is not None
    return verdict.accel, verdict.reason


@pytest.mark.parametrize("wanted", ["kvm", "tcg"])
def test_what_is_configured_is_taken_as_it_is(settings: Settings, probes: Probes, wanted: str) -> None:
    settings.accel = wanted
    os.unlink(accel.KVM)
    assert accel.choose(settings) == wanted
    assert said(accel.known(settings)) == (wanted, f'accel = "{wanted}" in the configuration')
    assert (probes.done, os.path.exists(settings.cache)) == (0, False)


def test_without_the_device_nothing_is_probed(settings: Settings, probes: Probes) -> None:
    os.unlink(accel.KVM)
    assert said(accel.verdict(settings)) == ("tcg", f"KVM: {accel.KVM} does not exist")
    os.mkdir(accel.KVM)
    assert said(accel.verdict(settings)) == ("tcg", f"KVM: open {accel.KVM}: EISDIR (is a directory)")
    assert probes.done == 0


def test_a_verdict_is_reached_once(settings: Settings, probes: Probes) -> None:
    assert accel.known(settings) is None
    for _ in range(2):
        assert said(accel.verdict(settings)) == ("tcg", "KVM: broken")
    kept = accel.known(settings)
    assert kept is not None and vars(kept) == vars(probes.verdict)
    assert probes.done == 1
    assert sorted(os.listdir(settings.cache)) == ["accel.json", "accel.lock"]


def test_a_fresh_verdict_takes_the_place_of_the_old_one(settings: Settings, probes: Probes) -> None:
    accel.verdict(settings)
    probes.verdict = accel.Verdict("kvm", "KVM: works", 0.5, 2000.0)
    assert accel.verdict(settings, fresh=True).accel == "kvm"
    assert (accel.choose(settings), probes.done) == ("kvm", 2)
    assert len(json.loads(Path(settings.cache, "accel.json").read_text())) == 1


@pytest.mark.parametrize("what", ["kvm", "qemu", "vmlinux", "init", "parameters", "machine"])
def test_whatever_was_part_of_the_probe_makes_a_new_one(
    settings: Settings, probes: Probes, tmp_path: Path, what: str
) -> None:
    accel.verdict(settings)
    if what == "parameters":
        settings.parameters = ["debug"]
    elif what == "machine":
        settings.machine = "q35"
    elif what == "kvm":
        os.chmod(accel.KVM, 0o660)
    else:
        (tmp_path / what).write_bytes(b"xx")
    assert accel.known(settings) is None
    accel.verdict(settings)
    assert probes.done == 2


def test_verdicts_on_several_kernels_are_kept_but_not_without_end(
    settings: Settings, probes: Probes, tmp_path: Path
) -> None:
    kernels = [tmp_path / f"vmlinux{i}" for i in range(20)]
    for kernel in kernels:
        kernel.write_bytes(b"x")
        settings.kernel = str(kernel)
        accel.verdict(settings)
    assert len(json.loads(Path(settings.cache, "accel.json").read_text())) == 16
    accel.verdict(settings)
    assert probes.done == 20
    settings.kernel = str(kernels[0])
    assert accel.known(settings) is None


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff", b"null", b"{}", b"[1]", b'[{"facts": {}}]', b'["facts", "accel"]',
        b'[{"facts":{},"accel":"xen","reason":"","seconds":1.0,"at":1.0,"sure":true}]',
    ],
)  # fmt: skip
def test_a_file_that_says_nothing_is_written_anew(settings: Settings, probes: Probes, content: bytes) -> None:
    os.makedirs(settings.cache)
    Path(settings.cache, "accel.json").write_bytes(content)
    assert accel.known(settings) is None
    assert [accel.choose(settings) for _ in range(2)] == ["tcg", "tcg"]
    assert probes.done == 1


def test_a_probe_that_ran_out_of_time_counts_for_a_day(
    settings: Settings, probes: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes.verdict = accel.Verdict("tcg", "KVM: no answer", 6.0, 10_000.0, sure=False)
    now = [10_000.0]
    monkeypatch.setattr(accel.time, "time", lambda: now[0])
    for moment, probed in ((10_001.0, 1), (96_399.0, 1), (96_401.0, 2), (9_000.0, 3)):
        now[0] = moment
        accel.verdict(settings)
        assert probes.done == probed


def test_a_probe_that_another_process_does_not_end_is_not_waited_for_without_end(
    settings: Settings, probes: Probes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accel, "_WAIT_SECONDS", 0.1)
    held = accel._lock(settings.cache)
    assert held is not None
    assert said(accel.verdict(settings)) == ("tcg", "KVM: another process has been probing it for 0 s")
    os.close(held)
    assert (accel.known(settings), probes.done) == (None, 0)


def test_a_cache_that_cannot_be_written_is_named(settings: Settings, probes: Probes, tmp_path: Path) -> None:
    settings.cache = str(tmp_path / "kvm" / "cache")
    with pytest.raises(KernelError) as caught:
        accel.verdict(settings)
    assert caught.value.message == f"cannot probe KVM: write to {settings.cache}: ENOTDIR (not a directory)"


def test_without_a_kernel_there_is_nothing_to_probe_with(settings: Settings, probes: Probes) -> None:
    settings.kernel = "/nosuch"
    assert accel.known(settings) is None
    with pytest.raises(PycontainError, match="cannot boot /nosuch"):
        accel.verdict(settings)
    settings.kernel = None
    assert accel.known(settings) is None  # and nothing was fetched for it
    assert (probes.done, os.path.exists(settings.cache)) == (0, False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ""),
        ("early\nlast words\n", "last words"),
        (
            "Booting\nqemu-system-x86_64: -accel kvm: no\nqemu-system-x86_64: more\n",
            "qemu-system-x86_64: -accel kvm: no",
        ),
        (
            "KVM internal error. Suberror: 1\nextra data[0]: 0x1\nextra data[1]: 0x2\nemulation failure\nEAX=00000000 EBX=0\n",
            "KVM internal error. Suberror: 1: emulation failure",
        ),
        ("KVM internal error. Suberror: 3\nEAX=00000000 EBX=0\n", "KVM internal error. Suberror: 3"),
    ],
)
def test_of_the_log_the_line_that_says_most_is_quoted(text: str, words: str) -> None:
    log = os.memfd_create("log")
    os.write(log, text.encode() + bytes(100))
    assert accel._said(log) == words
    os.close(log)
