"""The probe of KVM: with the real hypervisor and kernel, and with hypervisors that answer, hang, fail and stop.

Each is confined as any machine: the fake ones see of the host what QEMU would. None leaves a process or a file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain.runtime.vm import accel
from pycontain.runtime.vm.settings import Settings

pytestmark = pytest.mark.needs("root", "kvm")

ROOT = Path(__file__).resolve().parents[2]
FAKE = """#!{python} -IS
import os, socket, time
BEHAVIOUR
time.sleep(60)
"""
ANSWER = """
connected = socket.socket(fileno=100).accept()[0]
connected.sendall(connected.recv(16))
"""


def left(word: str) -> list[str]:
    """Command lines of processes that ``word`` is in."""
    found = []
    for number in filter(str.isdecimal, os.listdir("/proc")):
        try:
            text = Path("/proc", number, "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if word in text and int(number) != os.getpid():
            found.append(text)
    return found


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    made = Settings()
    made.cache = str(tmp_path / "cache")
    made.kernel = str(tmp_path / "vmlinux")
    (tmp_path / "vmlinux").write_bytes(b"\x7fELF")
    yield made
    assert left(str(tmp_path)) == []
    assert not os.path.exists(f"{made.cache}/probe")


def fake(settings: Settings, tmp_path: Path, behaviour: str) -> None:
    path = tmp_path / "hypervisor"
    path.write_text(FAKE.format(python=os.path.realpath(sys.executable)).replace("BEHAVIOUR", behaviour))
    path.chmod(0o755)
    settings.hypervisor = str(path)


def descriptors() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


def test_a_guest_that_answers_is_kvm(settings: Settings, tmp_path: Path) -> None:
    fake(settings, tmp_path, ANSWER)
    before = descriptors()
    verdict = accel.verdict(settings)
    assert (verdict.accel, verdict.sure) == ("kvm", True)
    assert verdict.reason == f"KVM: a guest answered within {verdict.seconds:.2f} s"
    assert 0 < verdict.seconds < accel.PROBE_SECONDS
    assert descriptors() == before


@pytest.mark.parametrize(
    ("behaviour", "reason", "sure"),
    [
        ("", "the probe did not answer within 1 s", False),
        ("os.write(1, b'Booting...\\n')", 'the probe did not answer within 1 s: QEMU said "Booting..."', True),
        ("os.write(2, b'qemu: no KVM\\n'); raise SystemExit(1)", 'the probe\'s QEMU ended after T s: QEMU said "qemu: no KVM"', True),
        ("raise SystemExit(0)", "the probe's QEMU ended after T s", True),
        (
            "os.write(2, b'KVM internal error. Suberror: 1\\nextra data[0]: 1\\nemulation failure\\n')",
            'the probe\'s guest came to a stop after T s: QEMU said "KVM internal error. Suberror: 1: emulation failure"',
            True,
        ),
        (ANSWER.replace("connected.recv(16)", "b'x' * 8"), "init sent nonsense: found message 2021161080 of 2021161080 bytes", True),
        (ANSWER.replace("connected.recv(16)", "b'x' * 4"), "the probe answered half a hello", True),
        (ANSWER.replace("recv(16)", "recv(16)[:8] + b'12345678'"), "the probe answered something else than the hello", True),
    ],
)  # fmt: skip
def test_anything_else_is_emulation(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behaviour: str, reason: str, sure: bool
) -> None:
    monkeypatch.setattr(accel, "PROBE_SECONDS", 1.0)
    fake(settings, tmp_path, behaviour)
    before = descriptors()
    verdict = accel.verdict(settings)
    took = next(
        (form for form in (f"{verdict.seconds:.1f}", f"{verdict.seconds:.2f}") if f"after {form} s" in verdict.reason),
        "-",
    )
    assert (verdict.accel, verdict.reason) == ("tcg", f"KVM: {reason.replace('after T s', f'after {took} s')}")
    assert verdict.sure is sure
    assert verdict.seconds < 2.5
    assert descriptors() == before


def test_a_hypervisor_that_cannot_be_started_is_emulation(settings: Settings, tmp_path: Path) -> None:
    fake(settings, tmp_path, "")
    Path(settings.hypervisor).write_text("#!/nosuch/interpreter\n")
    verdict = accel.verdict(settings)
    assert verdict.accel == "tcg"
    assert verdict.reason.startswith(f"KVM: the probe did not start: cannot execute '{settings.hypervisor}'")


def test_the_second_call_starts_nothing(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(settings, tmp_path, ANSWER)
    first = accel.verdict(settings)
    monkeypatch.setattr(accel.namespaces, "launch", None)  # which could not be called
    second = accel.verdict(settings)
    assert vars(second) == vars(first)


PROBE = """
import json, sys
from pycontain.runtime.vm import accel
from pycontain.runtime.vm.settings import Settings
settings = Settings()
vars(settings).update(json.loads(sys.argv[1]))
accel.PROBE_SECONDS = float(sys.argv[2])
print(json.dumps(vars(accel.verdict(settings))))
"""


def elsewhere(settings: Settings, seconds: float, *before: str) -> subprocess.Popen[str]:
    """A verdict in another process."""
    command = [*before, sys.executable, "-c", PROBE, json.dumps(vars(settings)), str(seconds)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def test_of_processes_at_once_one_probes(settings: Settings, tmp_path: Path) -> None:
    fake(settings, tmp_path, "time.sleep(0.5)\n" + ANSWER)
    processes = [elsewhere(settings, 5) for _ in range(4)]
    found = {process.communicate(timeout=30)[0] for process in processes}
    assert len(found) == 1
    assert json.loads(found.pop())["accel"] == "kvm"


def test_with_who_probes_the_guest_is_gone(settings: Settings, tmp_path: Path) -> None:
    fake(settings, tmp_path, "")
    process = elsewhere(settings, 30)
    deadline = time.monotonic() + 10
    # Its interpreter is started by path: until then it is init, or the other process's command line.
    while not any("-IS" in text for text in left(settings.hypervisor)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    while left(settings.hypervisor):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    fake(settings, tmp_path, ANSWER)  # and what it left does not stand in the way of the next
    assert os.path.exists(f"{settings.cache}/probe")
    assert accel.verdict(settings).accel == "kvm"


@pytest.fixture
def real(settings: Settings) -> Settings:
    from tests.vm import kernel

    found = kernel.kernel()
    settings.kernel = None
    os.makedirs(f"{settings.cache}/kernel")
    os.symlink(Path(found.image).parents[1], f"{settings.cache}/kernel/linux")
    return settings


def device(mode: str) -> list[str]:
    """The words before a command that has a /dev/kvm of its own, with this mode."""
    script = f"mount -t tmpfs -o mode=755 t /mnt && mknod -m {mode} /mnt/kvm c 10 232 && mount --bind /mnt/kvm /dev/kvm"
    return ["unshare", "-m", "sh", "-c", f'{script} && exec "$@"', "sh"]


@pytest.mark.needs("qemu", "vm", "unshare")
def test_the_real_one_answers_or_is_found_to_be_broken(real: Settings) -> None:
    found = json.loads(elsewhere(real, accel.PROBE_SECONDS, *device("666")).communicate(timeout=40)[0])
    assert found["seconds"] < accel.PROBE_SECONDS + 1
    if found["accel"] == "kvm":
        assert found["reason"] == f"KVM: a guest answered within {found['seconds']:.2f} s"
    elif found["sure"]:
        assert ': QEMU said "' in found["reason"]
    else:
        assert found["reason"] == "KVM: the probe did not answer within 6 s"


@pytest.mark.needs("qemu", "vm", "unshare")
def test_a_device_that_the_hypervisors_user_may_not_open_is_said_so(real: Settings) -> None:
    found = json.loads(elsewhere(real, 12, *device("600")).communicate(timeout=40)[0])
    assert found["accel"] == "tcg"
    assert "ermission denied" in found["reason"]
