"""The one-file start: a cache that is used only while it is true."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime_tools import REPOSITORY

CODE = """
import sys
home = sys.argv.pop(1)
sys.path.insert(0, home)
from pycontain.runtime import start
from pycontain.runtime.start import main
import atexit, posix, json
real = posix._exit
def report(status):
    found = {n: type(m.__spec__.loader).__name__ if not isinstance(m.__spec__.loader, type) else m.__spec__.loader.__name__
             for n, m in sys.modules.items() if n.startswith("pycontain.runtime.") and n != "pycontain.runtime.start"}
    print(json.dumps(found), file=sys.stderr, flush=True)
    real(status)
posix._exit = report
main()
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package, somewhere else, without caches."""
    for name in ("pycontain", "runtime", "images", "network"):
        ignore = shutil.ignore_patterns("__pycache__", "fuzz*")
        shutil.copytree(REPOSITORY / name, tmp_path / "home" / name, symlinks=True, ignore=ignore)
    return tmp_path / "home"


def loaders(home: Path, *arguments: str) -> dict[str, str]:
    command = [sys.executable, "-I", "-S", "-c", CODE, str(home), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    found: dict[str, str] = json.loads(done.stderr.splitlines()[-1])
    return found


def cache(home: Path) -> Path:
    return home / f"runtime/__pycache__/start.{sys.implementation.cache_tag}"


def test_written_once_used_and_made_anew(copy: Path) -> None:
    assert set(loaders(copy, "--version").values()) == {"SourceFileLoader"}
    written = cache(copy).stat().st_mtime_ns
    assert loaders(copy, "--version") == {"pycontain.runtime.errors": "Finder", "pycontain.runtime.main": "Finder"}
    assert cache(copy).stat().st_mtime_ns == written

    source = copy / "runtime/main.py"
    source.write_text(source.read_text().replace('VERSION = "0.1.0"', 'VERSION = "9.9.9"'))
    command = [sys.executable, "-I", "-S", "-c", CODE, str(copy), "--version"]
    changed = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert "version 9.9.9" in changed.stdout
    assert set(loaders(copy, "--version").values()) == {"Finder"}


@pytest.mark.parametrize("damage", [b"", b"\0", b"nonsense", b"\xff" * 1000])
def test_a_damaged_cache_is_no_harm(copy: Path, damage: bytes) -> None:
    loaders(copy, "--version")
    cache(copy).write_bytes(damage)
    assert "pycontain.runtime.main" in loaders(copy, "--version")
    assert set(loaders(copy, "--version").values()) == {"Finder"}


@pytest.mark.needs("root")
def test_the_list_is_what_a_run_loads(copy: Path, tmp_path: Path) -> None:
    from pycontain.runtime.start import MODULES
    from tests.runtime_tools import make_rootfs, write_bundle

    bundle = write_bundle(tmp_path / "bundle", make_rootfs(tmp_path / "rootfs"), "true")
    arguments = ["--root", str(tmp_path / "state"), "run", "-b", str(bundle), "t-start"]
    shutil.copytree(REPOSITORY / "runtime/init", copy / "runtime/init", dirs_exist_ok=True)
    loaders(copy, *arguments)
    found = loaders(copy, *arguments)
    backend = {"kernel.cgroup_v1", "kernel.cgroup_v2", "kernel.device_filter"}
    names = {name.removeprefix("pycontain.runtime."): loader for name, loader in found.items()}
    assert set(names) - backend == set(MODULES) - backend
    assert {loader for name, loader in names.items() if name not in backend} == {"Finder"}
    assert os.listdir(tmp_path / "state") == []
