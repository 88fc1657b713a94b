"""Device programs in the kernel: a child joins a throwaway cgroup that has one and makes and opens device nodes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pycontain.runtime.kernel.device_filter import compile_devices
from pycontain.runtime.plan.syscall_tables import numbers

pytestmark = pytest.mark.needs("root")

# Reads {"program": hex, "bpf": number, "cgroup": path, "nodes": [[kind, major, minor]]} from its standard input.
# Loads, attaches, joins, and prints for each node what r, w, rw and m were answered: 0 or an errno.
CHILD = """
import ctypes, json, os, stat, sys
job = json.load(sys.stdin)
libc = ctypes.CDLL(None, use_errno=True)
for index, (kind, major, minor) in enumerate(job["nodes"]):
    os.mknod(str(index), (stat.S_IFCHR if kind == "c" else stat.S_IFBLK) | 0o600, os.makedev(major, minor))

def bpf(command, *fields):
    attr = b"".join(value.to_bytes(size, "little") for value, size in fields).ljust(128, b"\\0")
    result = libc.syscall(job["bpf"], command, attr, len(attr))
    assert result >= 0, (command, os.strerror(ctypes.get_errno()))
    return result

def tried(function, *args):
    try:
        fd = function(*args)
    except OSError as error:
        return error.errno
    if fd is not None:
        os.close(fd)
    return 0

instructions = ctypes.create_string_buffer(bytes.fromhex(job["program"]))
license = ctypes.create_string_buffer(b"Apache-2.0")
# BPF_PROG_LOAD of BPF_PROG_TYPE_CGROUP_DEVICE, then BPF_PROG_ATTACH as BPF_CGROUP_DEVICE, allowing others
program = bpf(5, (15, 4), (len(instructions.raw) // 8, 4), (ctypes.addressof(instructions), 8),
              (ctypes.addressof(license), 8))
directory = os.open(job["cgroup"], os.O_RDONLY | os.O_DIRECTORY)
bpf(8, (directory, 4), (program, 4), (6, 4), (2, 4))
with open(job["cgroup"] + "/cgroup.procs", "w") as file:
    file.write("0")
answers = []
for index, (kind, major, minor) in enumerate(job["nodes"]):
    flags = os.O_NONBLOCK | os.O_NOCTTY
    answers.append([
        tried(os.open, str(index), flags | os.O_RDONLY),
        tried(os.open, str(index), flags | os.O_WRONLY),
        tried(os.open, str(index), flags | os.O_RDWR),
        tried(os.mknod, f"{index}.new", (stat.S_IFCHR if kind == "c" else stat.S_IFBLK) | 0o600,
              os.makedev(major, minor)),
    ])
print(json.dumps(answers))
"""

NULL, ZERO, FULL, RANDOM = ["c", 1, 3], ["c", 1, 5], ["c", 1, 7], ["c", 1, 8]
NODES = [NULL, ZERO, FULL, RANDOM, ["b", 1, 0], ["b", 7, 0]]
ASKED = ("r", "w", "rw", "m")
EPERM = 1


@pytest.fixture
def cgroup() -> Iterator[str]:
    with open("/proc/self/mountinfo") as file:
        mounts = [line.split()[4] for line in file if line.partition(" - ")[2].startswith("cgroup2 ")]
    if not mounts:
        pytest.skip("no cgroup2 hierarchy is mounted")
    path = f"{mounts[0]}/pycontain-test-{uuid.uuid4().hex[:12]}"
    os.mkdir(path)
    yield path
    os.rmdir(path)


def answers(rules: list[dict[str, Any]], cgroup: str, where: Path) -> dict[str, list[int]]:
    job = {
        "program": compile_devices(rules).hex(),
        "bpf": numbers(os.uname().machine)["bpf"],
        "cgroup": cgroup,
        "nodes": NODES,
    }
    where.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=json.dumps(job), capture_output=True, text=True, timeout=60, cwd=where
    )
    assert done.returncode == 0, done.stderr
    return {
        f"{k} {major}:{minor}": list(got) for (k, major, minor), got in zip(NODES, json.loads(done.stdout), strict=True)
    }


def meaning(rules: list[dict[str, Any]], node: list[Any], access: str) -> bool:
    """For each letter the last rule that fits decides; what none fits is denied."""

    def one(letter: str) -> bool:
        fits = [
            rule["allow"]
            for rule in rules
            if rule.get("type", "a") in ("a", node[0])
            and rule.get("major", node[1]) == node[1]
            and rule.get("minor", node[2]) == node[2]
            and letter in rule.get("access", "rwm")
        ]
        return bool(fits and fits[-1])

    return all(one(letter) for letter in access)


def test_the_program_alone_decides(cgroup: str, tmp_path: Path) -> None:
    """The harmless twin: with everything allowed these nodes can be made, and the character devices be opened."""
    found = answers([{"allow": True}], cgroup, tmp_path / "d")
    assert [found[f"c 1:{minor}"] for minor in (3, 5, 7, 8)] == [[0, 0, 0, 0]] * 4
    assert EPERM not in [answer for got in found.values() for answer in got]


def test_a_list_of_devices_is_an_allow_list(cgroup: str, tmp_path: Path) -> None:
    """GHSA-g54h: devices were denied by the list, and all others allowed."""
    found = answers([{"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"}], cgroup, tmp_path / "d")
    assert found.pop("c 1:3") == [0, 0, 0, EPERM]
    assert set(map(tuple, found.values())) == {(EPERM,) * 4}


def test_no_list_is_no_device(cgroup: str, tmp_path: Path) -> None:
    assert set(map(tuple, answers([], cgroup, tmp_path / "d").values())) == {(EPERM,) * 4}


@pytest.mark.parametrize("seed", range(12))
def test_any_list(seed: int, cgroup: str, tmp_path: Path) -> None:
    """The verifier takes the program, and the kernel's answers are what the rules mean."""
    chance = random.Random(seed)
    rules: list[dict[str, Any]] = []
    for _ in range(chance.randrange(1, 9)):
        kind, major, minor = chance.choice(NODES)
        rule: dict[str, Any] = {"allow": chance.random() < 0.6}
        for field, value in (("type", kind), ("major", major), ("minor", minor)):
            if chance.random() < 0.7:
                rule[field] = value
        if chance.random() < 0.7:
            rule["access"] = chance.choice(["r", "w", "m", "rw", "rm", "wm", "rwm"])
        rules.append(rule)
    found = answers(rules, cgroup, tmp_path / "d")
    for node in NODES:
        got = found[f"{node[0]} {node[1]}:{node[2]}"]
        refused = [answer == EPERM for answer in got]
        assert refused == [not meaning(rules, node, access) for access in ASKED], (rules, node, got)
