"""The start path's budget: what one call of the OCI command loads, read from the interpreter's own account."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# Each of these costs more than all of a start besides (docs/dependencies.md has the figures).
HEAVY = {
    "argparse", "asyncio", "collections", "contextlib", "ctypes", "dataclasses", "enum", "functools", "inspect", "json",
    "logging", "pathlib", "random", "re", "shutil", "signal", "socket", "struct", "subprocess", "tarfile", "tempfile",
    "threading", "typing", "isal", "rich", "urllib3", "zstandard",
}  # fmt: skip


def code(name: str = "RUNTIME") -> str:
    """The program that the launcher gives to the interpreter (RUNTIME or ENGINE), from its C source."""
    with open(os.path.join(ROOT, "runtime", "init", "launcher.c")) as file:
        text = file.read()
    head = re.search(r"#define HEAD(.*?)\n\n", text, re.DOTALL)
    own = re.search(rf"{name}\[\] = HEAD (.*?) TAIL;", text, re.DOTALL)
    tail = re.search(r"#define TAIL(.*?)\n\n", text, re.DOTALL)
    assert head and own and tail
    literals = re.findall(r'"(?:[^"\\]|\\.)*"', head[1] + own[1] + tail[1])
    return "".join(json.loads(literal) for literal in literals)


def loaded(*arguments: str, status: int = 0) -> set[str]:
    """Every module imported by ``pycontain-runtime ARGUMENTS``, from start to exit."""
    command = [
        sys.executable,
        "-I",
        "-S",
        "-X",
        "utf8",
        "-X",
        "importtime",
        "-c",
        code(),
        "pycontain-runtime",
        ROOT,
        ROOT,
    ]
    # After a change one start finds the cache of runtime/start.py stale and the next makes it, which not every start does.
    for _ in range(2):
        subprocess.run([*command, "--version"], capture_output=True, timeout=30, stdin=subprocess.DEVNULL)
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    lines = done.stderr.splitlines()
    assert done.returncode == status, "\n".join(line for line in lines if not line.startswith("import time:"))
    names = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert "pycontain.runtime.main" in names or "run" in arguments  # where runtime/start.py makes it without an import
    return names


def heavy(names: set[str]) -> set[str]:
    return {name for name in names if name.partition(".")[0] in HEAVY}


@pytest.mark.parametrize("arguments", [("--version",), ("features",), ("--help",)])
def test_the_command_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert heavy(loaded(*arguments)) == set()


@pytest.mark.needs("root", "busybox")
def test_a_whole_run_loads_nothing_heavy(tmp_path: object) -> None:
    bundle = os.fspath(tmp_path)  # type: ignore[call-overload]
    os.makedirs(f"{bundle}/rootfs/bin")
    busybox = shutil.which("busybox")
    assert busybox
    shutil.copy2(busybox, f"{bundle}/rootfs/bin/true")
    spec = ["--root", f"{bundle}/state", "spec", "--bundle", bundle]
    assert heavy(loaded(*spec)) == set()
    with open(f"{bundle}/config.json") as file:
        config = json.load(file)
    config["process"]["args"] = ["/bin/true"]
    config["process"]["terminal"] = False
    with open(f"{bundle}/config.json", "w") as file:
        json.dump(config, file)
    name = f"budget-{os.getpid()}"
    assert heavy(loaded("--root", f"{bundle}/state", "run", "--bundle", bundle, name)) == set()


def test_importing_the_package_is_light() -> None:
    probe = f"import sys; before = set(sys.modules); sys.path.insert(0, {ROOT!r}); import pycontain; "
    probe += "print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", probe], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert heavy(set(done.stdout.split())) == set()
