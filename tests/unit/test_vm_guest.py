"""What a guest boots with: kernels found and refused, modules in loading order, archives. The booted VM is the witness
of the rest (``tests/integration/test_in_vm.py`` starts with this kernel, these modules and this archive)."""

from __future__ import annotations

import gzip
import lzma
import os
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontain.runtime.errors import NotFound, PycontainError
from pycontain.runtime.vm import guest


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-qc"], input=data, capture_output=True, check=True).stdout


COMPRESS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd}


def module(depends: str) -> bytes:
    return b"\x7fELF...\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0"


@pytest.fixture
def kernel(tmp_path: Path) -> guest.Kernel:
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/vmlinuz-6.1.0-test").write_bytes(b"MZ")
    tree = tmp_path / "lib/modules/6.1.0-test/kernel"
    tree.mkdir(parents=True)
    (tree.parent / "modules.builtin").write_text("kernel/fs/built-in-one.ko\n")
    for number, (ending, compress) in enumerate(COMPRESS.items()):
        needed = f"mod_{number + 1}" if number + 1 < len(COMPRESS) else "built_in_one"
        (tree / f"mod-{number}.ko{ending}").write_bytes(compress(module(needed)))
    (tree / "a.ko").write_bytes(module("b"))
    (tree / "b.ko").write_bytes(module("a"))
    return guest.unpacked(str(tmp_path))


def test_the_kernel_is_the_one_with_modules(kernel: guest.Kernel, tmp_path: Path) -> None:
    (tmp_path / "boot/vmlinuz-9.9.9-none").write_bytes(b"MZ")
    found = guest.unpacked(str(tmp_path))
    assert (found.release, os.path.basename(found.image)) == ("6.1.0-test", "vmlinuz-6.1.0-test")
    assert found.modules == str(tmp_path / "lib/modules/6.1.0-test")


def test_a_tree_without_a_kernel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        guest.unpacked(str(tmp_path))
    wanted = "wanted boot/vmlinuz-RELEASE and lib/modules/RELEASE"
    assert caught.value.message == f"no kernel with its modules in {tmp_path}: {wanted}"


def test_dependencies_come_first_whatever_they_are_compressed_with(kernel: guest.Kernel) -> None:
    found = guest.modules(kernel, ["mod-0", "mod_2", "built-in-one"])
    assert [name for name, _ in found] == ["mod_3", "mod_2", "mod_1", "mod_0"]
    assert found[0][1] == module("built_in_one") and all(data.startswith(b"\x7fELF") for _, data in found)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nosuch", "kernel 6.1.0-test has no module nosuch"),
        ("a", "the modules of kernel 6.1.0-test depend on each other: a b"),
    ],
)
def test_modules_that_cannot_be_loaded_are_refused(kernel: guest.Kernel, name: str, text: str) -> None:
    with pytest.raises(PycontainError) as caught:
        guest.modules(kernel, [name])
    assert caught.value.message == text


def programs(folder: Path, **scripts: str) -> None:
    for name, script in scripts.items():
        path = folder / name.replace("_", "-")
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)


PACKAGE = "linux-image-6.1.0-test"
DEPENDS = f'printf "meta\\n  Depends: {PACKAGE}\\n"'
UNPACK = (
    'mkdir -p "$3/boot" "$3/lib/modules/6.1.0-test"; touch "$3/boot/vmlinuz-6.1.0-test"; '
    'touch "$3/lib/modules/6.1.0-test/modules.builtin"'
)


@pytest.mark.parametrize(
    ("scripts", "text"),
    [
        ({}, "cannot fetch a kernel: apt-cache is not installed"),
        ({"apt_cache": "echo meta"}, "apt knows no package META"),
        (
            {"apt_cache": DEPENDS, "apt_get": "echo 'E: Unable to fetch' >&2; exit 100"},
            f"cannot fetch a kernel: apt-get download {PACKAGE}: E: Unable to fetch",
        ),
    ],
)
def test_a_kernel_that_cannot_be_fetched_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripts: dict[str, str], text: str
) -> None:
    (tmp_path / "bin").mkdir()
    programs(tmp_path / "bin", **scripts)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(guest, "META_PACKAGES", {os.uname().machine: "META"})
    with pytest.raises(PycontainError) as caught:
        guest.distribution(str(tmp_path / "cache"))
    assert caught.value.message == text
    assert os.listdir(tmp_path / "cache") == []


def test_a_kernel_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    fetch = f'echo x >> "{tmp_path}/fetched"; touch kernel.deb'
    programs(tmp_path / "bin", apt_cache=DEPENDS, apt_get=fetch, dpkg=UNPACK)
    for name in ("mkdir", "touch"):
        (tmp_path / "bin" / name).symlink_to(f"/bin/{name}")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(guest, "META_PACKAGES", {os.uname().machine: "META"})
    for _ in range(2):
        found = guest.distribution(str(tmp_path / "cache"))
        assert found.image == str(tmp_path / "cache" / PACKAGE / "boot/vmlinuz-6.1.0-test")
    assert (tmp_path / "fetched").read_text() == "x\n"
    assert os.listdir(tmp_path / "cache") == [PACKAGE]


@pytest.mark.needs("cpio")
@given(st.dictionaries(st.from_regex("[a-z0-9]{1,9}", fullmatch=True), st.binary(max_size=40), max_size=5))
def test_cpio_unpacks_what_the_archive_was_made_of(files: dict[str, bytes]) -> None:
    modes = {name: stat.S_IFREG | (0o755 if data else 0o600) for name, data in files.items()}
    archive = guest.cpio({name: (modes[name], data) for name, data in files.items()})
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["cpio", "-i", "--quiet"], input=archive, cwd=folder, check=True)
        assert {path.name: path.read_bytes() for path in Path(folder).iterdir()} == files
        assert {path.name: path.stat().st_mode for path in Path(folder).iterdir()} == modes
