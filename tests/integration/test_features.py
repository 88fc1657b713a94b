"""``features`` says what is so: of each list that it prints, every item is tried, and the kernel is asked for itself."""

from __future__ import annotations

import ctypes
import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime_tools import Runtime, write_bundle

pytestmark = pytest.mark.needs("root")

_IDS = [{"containerID": 0, "hostID": 0, "size": 1 << 16}]


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    runtime = Runtime(tmp_path / "state")
    yield runtime
    runtime.clean()


@pytest.fixture
def features(runtime: Runtime) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(runtime("features", check=True).stdout)
    return found


class Run:
    """Runs a container with a changed configuration; what it printed."""

    def __init__(self, runtime: Runtime, path: Path, rootfs: Path) -> None:
        self.runtime, self.path, self.rootfs = runtime, path, rootfs

    def __call__(self, change: Callable[[dict[str, Any]], object], *args: str) -> str:
        bundle = write_bundle(self.path / "bundle", self.rootfs, *(args or ("true",)), change=change)
        return self.runtime("run", "-b", bundle, "ft", check=True).stdout


@pytest.fixture
def run(runtime: Runtime, tmp_path: Path, rootfs: Path) -> Run:
    return Run(runtime, tmp_path, rootfs)


def test_versions_and_hooks(features: dict[str, Any], run: Run, tmp_path: Path) -> None:
    for key in ("ociVersionMin", "ociVersionMax"):
        run(lambda config, key=key: config.update(ociVersion=features[key]))  # type: ignore[misc]
    assert features["hooks"] == [
        "prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop",
    ]  # fmt: skip

    def change(config: dict[str, Any]) -> None:
        config["hooks"] = {
            name: [{"path": "/bin/sh", "args": ["sh", "-c", f"echo {name} >> {tmp_path}/ran"]}]
            for name in features["hooks"]
        }
        config["hooks"]["startContainer"][0]["args"][2] = "true"  # its program and files are the container's

    run(change)
    assert (tmp_path / "ran").read_text().split() == [name for name in features["hooks"] if name != "startContainer"]


def test_namespaces(features: dict[str, Any], run: Run, rootfs: Path) -> None:
    files = {"network": "net", "mount": "mnt"}

    def change(config: dict[str, Any]) -> None:
        config["linux"]["namespaces"] = [{"type": name} for name in features["linux"]["namespaces"]]
        config["linux"].update(uidMappings=_IDS, gidMappings=_IDS)

    names = [files.get(name, name) for name in features["linux"]["namespaces"]]
    assert sorted(names) == ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"]
    out = run(change, "sh", "-c", "for n in " + " ".join(names) + "; do readlink /proc/self/ns/$n; done").split()
    ours = [str(Path(f"/proc/self/ns/{name}").readlink()) for name in names]
    assert [line.split(":")[0] for line in out] == names
    assert not set(out) & set(ours)


def test_capabilities(features: dict[str, Any], run: Run) -> None:
    names = features["linux"]["capabilities"]
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    assert len(set(names)) == last + 1, "every one that this kernel has"
    out = run(
        lambda config: config["process"].update(capabilities={"bounding": names}), "grep", "CapBnd", "/proc/self/status"
    )
    ours = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd"))
    assert out.split() == ours.split(), "and all that can be granted here are"


def test_mount_options(features: dict[str, Any], run: Run, rootfs: Path, tmp_path: Path) -> None:
    """One mount each, of a kind that can have the option; what the kernel shows of it is read in the container."""
    (tmp_path / "source").mkdir()
    shown = {
        "ro": "ro", "nosuid": "nosuid", "nodev": "nodev", "noexec": "noexec", "noatime": "noatime",
        "nodiratime": "nodiratime", "relatime": "relatime", "nosymfollow": "nosymfollow", "sync": "sync",
        "dirsync": "dirsync", "lazytime": "lazytime", "rro": "ro", "rnosuid": "nosuid", "rnodev": "nodev",
        "rnoexec": "noexec", "rnoatime": "noatime", "rnodiratime": "nodiratime", "rnosymfollow": "nosymfollow",
        "shared": "shared:", "rshared": "shared:", "unbindable": "unbindable", "runbindable": "unbindable",
    }  # fmt: skip
    options = [name for name in features["mountOptions"] if name not in ("remount", "idmap", "ridmap")]
    assert set(shown) <= set(options) and len(options) > 55

    def change(config: dict[str, Any]) -> None:
        for name in options:
            bind = name in ("bind", "rbind", "copy-symlink", "src-nofollow") or name[0] == "r" and name[1:] in shown
            kind = (
                {"type": "bind", "source": str(tmp_path / "source")} if bind else {"type": "tmpfs", "source": "tmpfs"}
            )
            mount = {"destination": f"/tmp/{name}", **kind, "options": [*(["rbind"] if bind else []), name]}
            config["mounts"].append(mount)
        config["mounts"].append(
            {"destination": "/tmp/ro", "type": "tmpfs", "source": "t", "options": ["remount", "ro"]}
        )

    out = run(change, "cat", "/proc/self/mountinfo")
    rows = {line.split()[4]: line for line in out.splitlines()}
    for name in options:
        row = rows[f"/tmp/{name}"]
        assert shown.get(name, "") in row.replace(f"/tmp/{name}", ""), row


def test_what_is_not_said_is_refused_by_its_path(features: dict[str, Any], runtime: Runtime, run: Run) -> None:
    linux = features["linux"]
    mount = {"destination": "/x", "type": "bind", "source": "/tmp", "options": ["bind", "idmap"]}
    for feature, key, value, path in (
        (linux["netDevices"], "netDevices", {"eth9": {}}, "$.linux.netDevices"),
        (linux["intelRdt"], "intelRdt", {"closID": "x"}, "$.linux.intelRdt"),
        (linux["mountExtensions"]["idmap"], "mounts", {**mount, "uidMappings": _IDS, "gidMappings": _IDS}, "$.mounts["),
    ):

        def change(config: dict[str, Any], key: str = key, value: Any = value) -> None:
            if key == "mounts":
                config["mounts"].append(value)
            else:
                config["linux"][key] = value

        done = runtime("run", "-b", write_bundle(run.path / key, run.rootfs, change=change), "ft-no")
        assert feature["enabled"] or done.stderr.startswith(f"pycontain-runtime: {path}"), done.stderr


def test_seccomp(features: dict[str, Any], run: Run, tmp_path: Path) -> None:
    """All names at once in filters that the kernel takes; actions by themselves are tried in test_seccomp_kernel.py."""
    found = features["linux"]["seccomp"]
    assert found["enabled"] is True
    assert set(found["supportedFlags"]) <= set(found["knownFlags"])
    rules = [{"names": ["acct"], "action": action} for action in found["actions"] if action != "SCMP_ACT_NOTIFY"]
    args = [{"index": 0, "op": operator, "value": 5, "valueTwo": 5} for operator in found["operators"]]
    rules += [{"names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5, "args": [arg]} for arg in args]
    assert len(rules) == 8 + 7

    def change(config: dict[str, Any]) -> None:
        config["linux"]["seccomp"] = {
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": found["archs"],
            "flags": found["supportedFlags"],
            "syscalls": rules,
        }

    assert run(change, "grep", "Seccomp:", "/proc/self/status").split() == ["Seccomp:", "2"]


def test_seccomp_flags_are_those_of_this_kernel(features: dict[str, Any]) -> None:
    """seccomp(2) looks at the flags first: a filter that is nowhere is EFAULT, a flag that it does not know EINVAL."""
    numbers = {"TSYNC": 1, "LOG": 2, "SPEC_ALLOW": 4, "WAIT_KILLABLE_RECV": 32}
    call = {"x86_64": 317, "aarch64": 277}[os.uname().machine]
    libc = ctypes.CDLL(None, use_errno=True)
    supported = []
    for name, number in numbers.items():
        flags = number | (8 if name == "WAIT_KILLABLE_RECV" else 0)  # which is of listeners only
        assert libc.syscall(call, 1, flags, None) == -1
        if ctypes.get_errno() == errno.EFAULT:
            supported.append(f"SECCOMP_FILTER_FLAG_{name}")
    assert features["linux"]["seccomp"]["supportedFlags"] == sorted(supported)


def test_memory_policies(features: dict[str, Any], run: Run) -> None:
    found = features["linux"]["memoryPolicy"]
    assert len(found["modes"]) == 7 and len(found["flags"]) == 3
    wanted = {
        "MPOL_DEFAULT": "default", "MPOL_PREFERRED": "prefer:0", "MPOL_BIND": "bind:0", "MPOL_INTERLEAVE": "interleave:0",
        "MPOL_LOCAL": "local", "MPOL_PREFERRED_MANY": "prefer (many):0",
        "MPOL_WEIGHTED_INTERLEAVE": "weighted interleave:0",
    }  # fmt: skip
    for mode in found["modes"]:
        if mode == "MPOL_WEIGHTED_INTERLEAVE" and not Path("/sys/kernel/mm/mempolicy/weighted_interleave").exists():
            continue  # younger than this kernel (6.9)
        policy = {"mode": mode, **({} if mode in ("MPOL_DEFAULT", "MPOL_LOCAL") else {"nodes": "0"})}
        out = run(
            lambda config, policy=policy: config["linux"].update(memoryPolicy=policy), "cat", "/proc/self/numa_maps"
        )  # type: ignore[misc]
        assert f" {wanted[mode]} " in out.splitlines()[0], (mode, out.splitlines()[0])
    for flag in found["flags"]:
        policy = {"mode": "MPOL_BIND", "nodes": "0", "flags": [flag]}
        run(lambda config, policy=policy: config["linux"].update(memoryPolicy=policy))  # type: ignore[misc]


def test_annotations_tell_of_the_host(features: dict[str, Any]) -> None:
    notes = features["annotations"]
    assert notes["org.pycontain.host.selinux"] == str(Path("/sys/fs/selinux/enforce").exists()).lower()
    assert notes["org.pycontain.host.apparmor"] == str(Path("/sys/module/apparmor").exists()).lower()
    assert notes["org.pycontain.host.cgroup"] in ("v1", "v2", "hybrid")
    assert all(isinstance(value, str) for value in notes.values())
