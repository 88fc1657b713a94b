"""The one-file start: a cache that is used only while it is true."""

from __future__ import annotations

import json
import marshal
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from pycontain.runtime import start, start_cache
from tests.runtime_tools import REPOSITORY
from tests.unit.test_import_budget import code

CODE = """
import os, posix, json, sys
real = posix._exit
def report(status):
    found = {n: "start" if type(m.__spec__.loader).__name__ == "SimpleNamespace" else "file"
             for n, m in sys.modules.items() if n.split(".")[0] == "pycontain" and n != "pycontain.runtime.start"}
    print(json.dumps(found), file=sys.stderr, flush=True)
    real(status)
os._exit = posix._exit = report
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package, somewhere else, without caches."""
    for name in ("pycontain", "runtime", "images", "network"):
        ignore = shutil.ignore_patterns("__pycache__", "fuzz*")
        shutil.copytree(REPOSITORY / name, tmp_path / "home" / name, symlinks=True, ignore=ignore)
    return tmp_path / "home"


def command(home: Path, *arguments: str, which: str = "RUNTIME") -> list[str]:
    """What the launcher becomes, and a report of where each module came from."""
    return [sys.executable, "-I", "-S", "-c", CODE + code(which), "pycontain", str(home), "/nowhere", *arguments]


def loaders(home: Path, *arguments: str, which: str = "RUNTIME") -> dict[str, str]:
    words = command(home, *arguments, which=which)
    with tempfile.TemporaryFile() as said:  # a container that stays would keep a pipe open
        subprocess.run(words, stdin=subprocess.DEVNULL, stdout=said, stderr=said, timeout=30)
        said.seek(0)
        found: dict[str, str] = json.loads(said.read().splitlines()[-1])
    return found


def cache(home: Path) -> Path:
    return home / f"runtime/__pycache__/start.4.{sys.implementation.cache_tag}"


def test_written_once_used_and_made_anew(copy: Path) -> None:
    assert set(loaders(copy, "--version").values()) == {"file"}
    written = cache(copy).stat().st_mtime_ns
    assert loaders(copy, "--version") == dict.fromkeys(
        ("pycontain", "pycontain.runtime", "pycontain.runtime.errors", "pycontain.runtime.main"), "start"
    )
    assert cache(copy).stat().st_mtime_ns == written

    source = copy / "runtime/main.py"
    source.write_text(source.read_text().replace('VERSION = "0.1.0"', 'VERSION = "9.9.9"'))
    changed = subprocess.run(command(copy, "--version"), capture_output=True, text=True, timeout=30)
    assert "version 9.9.9" in changed.stdout
    assert not cache(copy).exists()
    assert set(loaders(copy, "--version").values()) == {"file"}
    assert set(loaders(copy, "--version").values()) == {"start"}


def test_a_copied_tree_does_not_run_the_code_of_the_first(copy: Path, tmp_path: Path) -> None:
    loaders(copy, "--version")
    shutil.copytree(copy, tmp_path / "second", symlinks=True)
    assert set(loaders(tmp_path / "second", "--version").values()) == {"file"}
    assert set(loaders(tmp_path / "second", "--version").values()) == {"start"}


@pytest.mark.parametrize("damage", [b"", b"\0", b"nonsense", b"\xff" * 1000])
def test_a_damaged_cache_is_no_harm(copy: Path, damage: bytes) -> None:
    loaders(copy, "--version")
    cache(copy).write_bytes(damage)
    assert "pycontain.runtime.main" in loaders(copy, "--version")
    assert set(loaders(copy, "--version").values()) == {"start"}


def test_the_users_command_has_a_cache_of_its_own(copy: Path) -> None:
    first = loaders(copy, "--version", which="ENGINE")
    assert set(first.values()) == {"file"}
    second = loaders(copy, "--version", which="ENGINE")
    assert set(second.values()) == {"start"} and {"pycontain.cli", "pycontain.engine"} <= set(second) <= set(first)
    assert not cache(copy).exists()

    source = copy / "pycontain/__init__.py"
    source.write_text(source.read_text().replace('"0.1.0"', '"9.9.9"'))
    words = command(copy, "--version", which="ENGINE")
    assert subprocess.run(words, capture_output=True, text=True, timeout=30).stdout == "pycontain 9.9.9\n"
    assert set(loaders(copy, "--version", which="ENGINE").values()) == {"file"}
    assert set(loaders(copy, "--version", which="ENGINE").values()) == {"start"}


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@pytest.mark.needs("root")
def test_the_lists_are_what_the_verbs_load(copy: Path, tmp_path: Path) -> None:
    from tests.runtime_tools import make_rootfs, write_bundle

    bundle = write_bundle(tmp_path / "bundle", make_rootfs(tmp_path / "rootfs"), "sleep", "1000")
    shutil.copytree(REPOSITORY / "runtime/init", copy / "runtime/init", dirs_exist_ok=True)
    backend = {f"pycontain.runtime.kernel.{name}" for name in ("cgroup_v1", "cgroup_v2", "device_filter")}
    state, id = str(tmp_path / "state"), "t-start"
    verbs = {
        "create": ("-b", str(bundle), id), "start": (id,), "exec": (id, "true"), "delete": (id,),
        "run": ("-b", str(write_bundle(tmp_path / "short", tmp_path / "rootfs", "true")), id),
    }  # fmt: skip
    loaders(copy, "--version")
    try:
        for verb, arguments in verbs.items():
            found = loaders(copy, "--root", state, verb, *arguments)
            assert set(found) - backend == set(start_cache.VERBS[verb]), verb
            assert {loader for name, loader in found.items() if name not in backend} == {"start"}
            if verb == "exec":  # what is deleted has most often ended
                loaders(copy, "--root", state, "kill", id, "KILL")
                while not ended(json.loads((tmp_path / f"state/{id}/state.json").read_text())["pid"]):
                    time.sleep(0.01)
    finally:
        loaders(copy, "--root", state, "delete", "--force", id)
    assert os.listdir(tmp_path / "state") == []


def test_what_another_took_the_place_of_is_not_read_from(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command goes on for long and imports something late, when the package was replaced meanwhile."""
    loaders(copy, "--version")
    data = cache(copy).read_bytes()
    _, table = marshal.loads(data[-8 - int.from_bytes(data[-8:], "little") : -8])  # noqa: S302
    monkeypatch.setattr(start, "_cache", str(cache(copy)))
    monkeypatch.setattr(start, "_table", table)
    assert "pycontain.runtime.hooks" in start._read(table[4])
    (copy / "other").write_bytes(bytes(8) + data[8:])
    (copy / "other").replace(cache(copy))
    assert start._read(table[4]) is None
