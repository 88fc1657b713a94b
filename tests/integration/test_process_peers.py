"""The same process under runc and under us: what the kernel says of it must be the same."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runtime_tools import Runtime, write_bundle

pytestmark = pytest.mark.needs("root", "runc")

STATUS = (
    "Umask Uid Gid Groups CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp Seccomp_filters SigBlk SigIgn SigCgt NSpid "
    "NSpgid NSsid CoreDumping"
).split()
SHOWN = [
    "cat",
    "/proc/self/status",
    "/proc/self/limits",
    "/proc/self/oom_score_adj",
    "/proc/self/personality",
    "/proc/self/cgroup",
]


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Runtime]:
    runtime = Runtime(tmp_path / "state")
    yield runtime
    runtime.clean()


def facts(text: str) -> dict[str, str]:
    rows = dict(line.partition(":")[::2] for line in text.splitlines() if ":" in line)
    found = {name: " ".join(rows[name].split()) for name in STATUS if name in rows}
    found["limits"] = "\n".join(line for line in text.splitlines() if line.startswith("Max "))
    return found


def process(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda config: config["process"].update(values)


def caps(**sets: list[str]) -> Callable[[dict[str, Any]], object]:
    return process(capabilities=sets, noNewPrivileges=False)


def filtered(no_new_privileges: bool) -> Callable[[dict[str, Any]], object]:
    def change(config: dict[str, Any]) -> None:
        rule = {"names": ["acct", "no_such_call"], "action": "SCMP_ACT_ERRNO"}
        config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}
        config["process"]["noNewPrivileges"] = no_new_privileges

    return change


KILL, CHOWN, RAW = "CAP_KILL", "CAP_CHOWN", "CAP_NET_RAW"
CASES = {
    "the example": lambda config: None,
    "a user": process(user={"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o27}),
    "no capabilities": caps(),
    "bounded root": caps(bounding=[KILL, CHOWN], permitted=[KILL], effective=[]),
    "inheritable root": caps(bounding=[KILL, CHOWN], permitted=[KILL], effective=[KILL], inheritable=[KILL]),
    "ambient": lambda config: (
        caps(bounding=[KILL, RAW], permitted=[KILL, RAW], effective=[KILL], inheritable=[KILL], ambient=[KILL])(config),
        config["process"].update(user={"uid": 7, "gid": 7}),
    ),
    "limits": process(
        rlimits=[
            {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            {"type": "RLIMIT_STACK", "soft": 1 << 20, "hard": 1 << 22},
        ]
    ),
    "oom": process(oomScoreAdj=500),
    "a filter": filtered(True),
    "a filter without no_new_privs": filtered(False),
}


@pytest.mark.parametrize("case", CASES)
def test_the_kernel_says_the_same_of_both(runtime: Runtime, rootfs: Path, tmp_path: Path, case: str) -> None:
    bundle = write_bundle(tmp_path / "bundle", rootfs, *SHOWN, change=CASES[case])
    ours = runtime("run", "-b", bundle, "pp-ours", check=True).stdout
    config = json.loads((bundle / "config.json").read_text())
    config["ociVersion"] = "1.0.2"  # what runc 1.1 takes
    (bundle / "config.json").write_text(json.dumps(config))
    command = ["runc", "--root", str(tmp_path / "runc"), "run", "-b", str(bundle), "pp-theirs"]
    theirs = subprocess.run(command, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    assert theirs.returncode == 0, theirs.stderr
    witness = facts(theirs.stdout)
    # runc leaves signals 32 and 33, which are the C library's own, ignored where its caller has them so.
    witness["SigIgn"] = f"{int(witness['SigIgn'], 16) & ~(3 << 31):016x}"
    assert facts(ours) == witness
    assert len(facts(ours)) > 15
    # The score is the last line.
    assert ours.splitlines()[-1] == theirs.stdout.splitlines()[-1]
