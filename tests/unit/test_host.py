"""The host's facts: plain, read once and only when asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from pycontain.runtime.errors import KernelError
from pycontain.runtime.kernel import files, hierarchies, host
from pycontain.runtime.kernel.host import Host


@pytest.mark.parametrize(
    ("release", "numbers"),
    [
        ("6.18.44-cloud", (6, 18)),
        ("6.1.0-31-cloud-amd64", (6, 1)),
        ("6.1-rc2", (6, 1)),
        ("5.10+", (5, 10)),
        ("6", (6, 0)),
        ("next", (0, 0)),
    ],
)
def test_release(release: str, numbers: tuple[int, int]) -> None:
    assert host.parse_release(release) == numbers


def test_facts_agree_with_other_programs() -> None:
    here = host.probe()
    machine, release = subprocess.check_output(["uname", "-m", "-r"], text=True).split()[::-1]
    assert (here.arch, here.release) == (machine, release)
    assert here.euid == int(subprocess.check_output(["id", "-u"], text=True))
    assert {"mnt", "pid", "net", "uts", "ipc"} <= set(here.namespaces)
    assert not any("children" in name for name in here.namespaces)
    assert "proc" in here.filesystems
    assert 36 <= here.last_cap < 64
    assert here.bounding >> (here.last_cap + 1) == 0
    grep = subprocess.run(["grep", "-c", "^Seccomp:", "/proc/self/status"], capture_output=True, text=True, check=False)
    assert here.seccomp == (grep.stdout.strip() == "1")
    assert isinstance(here.apparmor, bool)
    assert isinstance(here.selinux, bool)


def test_in_userns() -> None:
    with open("/proc/self/uid_map") as file:
        assert host.probe().in_userns == (file.read().split() != ["0", "0", "4294967295"])


def test_own_cgroup_is_what_proc_says() -> None:
    own = host.probe().own_cgroup
    with open("/proc/self/cgroup") as file:
        assert [f"{controllers}:{path}" for controllers, path in own.items()] == [
            line.rstrip("\n").partition(":")[2] for line in file
        ]


def test_nothing_is_read_before_it_is_asked_for_and_then_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    real = files.read

    def counting(path: str) -> str:
        reads.append(path)
        return real(path)

    monkeypatch.setattr(host, "read", counting)
    monkeypatch.setattr(hierarchies, "read", counting)
    here = host.probe()
    assert reads == []
    assert here.last_cap == here.last_cap
    assert reads == ["/proc/sys/kernel/cap_last_cap"]


def test_given_facts_never_look_at_this_machine() -> None:
    given = Host.from_dict({"kernel": [5, 4], "cgroup": "v2", "last_cap": 37})
    assert (given.kernel, given.cgroup, given.last_cap) == ((5, 4), "v2", 37)
    with pytest.raises(AttributeError, match=r"^this Host was not given the fact 'arch'$"):
        _ = given.arch


def test_a_fact_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match=r"^no such fact: 'colour'$"):
        Host.from_dict({"colour": "blue"})
    with pytest.raises(AttributeError):
        _ = host.probe().colour


def test_facts_survive_json() -> None:
    here = host.probe()
    again = Host.from_dict(json.loads(json.dumps(here.to_dict())))
    assert again.to_dict() == here.to_dict()
    assert again.kernel == here.kernel
    assert again.cgroups[0].keys() == {"mount", "controllers", "name", "unified"}


def test_a_fact_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(path: str) -> str:
        raise FileNotFoundError(2, os.strerror(2), path)

    monkeypatch.setattr(host, "read", gone)
    with pytest.raises(KernelError) as caught:
        _ = host.probe().last_cap
    assert caught.value.message == (
        "read /proc/sys/kernel/cap_last_cap, for the fact 'last_cap': ENOENT (no such file or directory)"
    )
    assert host.probe().apparmor is False


def test_it_imports_nothing_heavy() -> None:
    code = (
        "import sys\nbefore = set(sys.modules)\n"
        f"sys.path[:0] = [{os.path.abspath(__file__ + '/../../..')!r}]\n"
        "import pycontain.runtime.kernel.host, pycontain.runtime.kernel.cgroup_v1, pycontain.runtime.kernel.cgroup_v2\n"
        "print(*sorted(name for name in set(sys.modules) - before if not name.startswith('pycontain')))"
    )
    output = subprocess.check_output([sys.executable, "-I", "-S", "-c", code], text=True)
    light = {
        "__future__",
        "errno",
        "os",
        "os.path",
        "posixpath",
        "genericpath",
        "stat",
        "_stat",
        "_collections_abc",
        "abc",
    }
    assert set(output.split()) <= light
