"""A kernel of one's own: the fragment, the look-up of what took, tools that are missing, a build whose make is a script.

No test compiles a kernel."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pycontain.runtime.errors import NotFound, PycontainError, Unsupported
from pycontain.runtime.vm import build

FRAGMENT = Path(build.FRAGMENT)
REAL = ("tar", "xz", "cat", "mkdir", "cp", "sh", "touch", "chmod")


def test_the_fragment_is_one() -> None:
    required, optional = build.options(FRAGMENT.read_text())
    assert required["CONFIG_PVH"] == required["CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES"] == "y"
    assert required["CONFIG_LOCALVERSION"] == '"-pycontain"'
    assert required["CONFIG_MODULES"] == required["CONFIG_PCI"] == "n"
    assert optional and set(optional) & set(required) == set()


@pytest.mark.parametrize(
    "options",
    [
        "VIRTIO_BLK VIRTIO_NET VIRTIO_CONSOLE VIRTIO_BALLOON VIRTIO_FS HW_RANDOM_VIRTIO",  # the machine's devices
        "EROFS_FS OVERLAY_FS EXT4_FS TMPFS_XATTR DEVTMPFS UNIX98_PTYS",
        "UTS_NS IPC_NS USER_NS PID_NS NET_NS TIME_NS",
        "CPUSETS MEMCG BLK_CGROUP BLK_DEV_THROTTLING CGROUP_PIDS CFS_BANDWIDTH CGROUP_BPF",
        "SECCOMP_FILTER UNIX INET IPV6 PACKET",
    ],
)
def test_the_fragment_has_what_the_plan_of_a_container_needs(options: str) -> None:
    required, _ = build.options(FRAGMENT.read_text())
    assert [name for name in options.split() if required.get(f"CONFIG_{name}") != "y"] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("CONFIG_A=y\nCONFIG_B\n", "kernel.fragment:2: found 'CONFIG_B', wanted CONFIG_NAME=VALUE"),
        ("CONFIG_A=m\n", "kernel.fragment:1: found 'CONFIG_A=m', wanted CONFIG_NAME=VALUE"),
        ("CONFIG_A=y  # why\n", "kernel.fragment:1: found 'CONFIG_A=y  # why', wanted CONFIG_NAME=VALUE"),
        ("# CONFIG_A is off\n", "kernel.fragment:1: found '# CONFIG_A is off', wanted CONFIG_NAME=VALUE"),
        ("CONFIG_A=y\n# CONFIG_A is not set\n", "kernel.fragment:2: CONFIG_A is there twice"),
        ("CONFIG_A=y\n# ---- not in every release\nCONFIG_A=y\n", "kernel.fragment:3: CONFIG_A is there twice"),
    ],
)
def test_a_line_that_kconfig_would_pass_over_is_refused(text: str, message: str) -> None:
    with pytest.raises(PycontainError) as caught:
        build.options(text)
    assert caught.value.message == message


def test_every_option_that_did_not_take_is_named() -> None:
    config = '# CONFIG_OFF is not set\nCONFIG_ON=y\nCONFIG_NUMBER=8\nCONFIG_TEXT="-x"\nCONFIG_ONE=y\n'
    good = {"CONFIG_OFF": "n", "CONFIG_ON": "y", "CONFIG_NUMBER": "8", "CONFIG_TEXT": '"-x"', "CONFIG_ABSENT": "n"}
    assert build.lacking(good, config) == []
    bad = {"CONFIG_OFF": "y", "CONFIG_ON": "n", "CONFIG_NUMBER": "64", "CONFIG_TEXT": '"-y"', "CONFIG_ABSENT": "y"}
    assert build.lacking(bad, config) == [
        "CONFIG_OFF: found n, wanted y",
        "CONFIG_ON: found y, wanted n",
        "CONFIG_NUMBER: found 8, wanted 64",
        'CONFIG_TEXT: found "-x", wanted "-y"',
        "CONFIG_ABSENT: found n, wanted y",
    ]
    assert build.lacking({"CONFIG_O": "n"}, config) == []  # whole names


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PATH is a directory in which everything succeeds that a build calls, and make, apt and dpkg are scripts."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in REAL:
        (folder / name).symlink_to(f"/bin/{name}" if os.path.exists(f"/bin/{name}") else f"/usr/bin/{name}")
    for name in ("gcc", "ld", "flex", "bison", "bc"):
        script(folder, name, "exit 0")
    script(folder, "strip", 'cp "$3" "$2"')
    script(folder, "make", MAKE)
    script(folder, "apt-cache", 'printf "linux-source\\n  Depends: linux-source-9.9\\n"')
    script(folder, "apt-get", f'cp "{tmp_path}/linux.tar.xz" package.deb; echo "$@" >> "{tmp_path}/fetched"')
    script(folder, "dpkg", 'mkdir -p "$3/usr/src"; cp "$2" "$3/usr/src/linux-source-9.9.tar.xz"')
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "work"))
    (tmp_path / "work").mkdir()
    return folder


MAKE = """
case "$*" in
*allnoconfig) cat ${2#KCONFIG_ALLCONFIG=} > .config ;;
*kernelrelease) echo 9.9.0-pycontain ;;
*vmlinux) echo kernel > vmlinux; echo "$*" > ../../jobs ;;
esac"""


def script(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def source(tmp_path: Path) -> str:
    (tmp_path / "linux-9.9").mkdir()
    (tmp_path / "linux-9.9/Kconfig").touch()
    subprocess.run(["tar", "-C", tmp_path, "-cJf", tmp_path / "linux.tar.xz", "linux-9.9"], check=True)
    return str(tmp_path / "linux.tar.xz")


def test_the_kernel_is_put_into_the_cache_and_nothing_else_stays(source: str, programs: Path, tmp_path: Path) -> None:
    said: list[str] = []
    cache = tmp_path / "cache"
    for _ in range(2):  # the second takes the place of the first
        built = build.build(str(cache), source=source, jobs=3, say=said.append)
    assert (built.path, built.release, built.size) == (f"{cache}/vmlinux-9.9.0-pycontain", "9.9.0-pycontain", 7)
    assert Path(built.path).read_text() == "kernel\n" and os.stat(built.path).st_mode & 0o777 == 0o644
    assert os.listdir(cache) == ["vmlinux-9.9.0-pycontain"]
    assert os.listdir(tmp_path / "work") == ["jobs"]
    assert (tmp_path / "work/jobs").read_text() == "-s -j3 vmlinux\n"
    assert said[:2] == ["unpacking linux.tar.xz", "compiling 9.9.0-pycontain with 3 jobs: some minutes"]


def test_the_distributions_source_is_fetched(source: str, programs: Path, tmp_path: Path) -> None:
    said: list[str] = []
    built = build.build("/nosuch", output=str(tmp_path / "vmlinux"), say=said.append)
    assert built.path == str(tmp_path / "vmlinux")
    assert (tmp_path / "fetched").read_text() == "download linux-source-9.9\n"
    assert said[:2] == ["fetching linux-source-9.9", "unpacking linux-source-9.9.tar.xz"]


@pytest.mark.parametrize(
    ("absent", "text", "hint"),
    [
        (["flex"], "flex is not there", "apt-get install flex"),
        (["flex", "bison", "bc"], "flex, bison, bc are not there", "apt-get install bc bison flex"),
        (["ld", "strip"], "ld, strip are not there", "apt-get install binutils"),
        (["apt-get", "dpkg"], "apt-get, dpkg are not there", "apt-get install apt dpkg"),
        (["make", "gcc"], "make, gcc are not there", "apt-get install gcc make"),
    ],
)
def test_tools_that_are_missing_are_named_with_their_packages(
    programs: Path, tmp_path: Path, absent: list[str], text: str, hint: str
) -> None:
    for name in absent:
        (programs / name).unlink()
    with pytest.raises(NotFound) as caught:
        build.build(str(tmp_path / "cache"))
    assert (caught.value.message, caught.value.hint) == (f"cannot build a kernel: {text}", hint)
    assert os.listdir(tmp_path / "work") == []


def test_headers_that_are_missing_are_named_too(source: str, programs: Path, tmp_path: Path) -> None:
    script(programs, "gcc", 'case "$*" in *libelf.h*) exit 1 ;; esac')
    (programs / "apt-get").unlink()  # which nobody needs where there is a source
    with pytest.raises(NotFound) as caught:
        build.build(str(tmp_path / "cache"), source=source)
    assert caught.value.message == "cannot build a kernel: libelf.h is not there"
    assert caught.value.hint == "apt-get install libelf-dev"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "make",
            MAKE.replace("cat ${2#KCONFIG_ALLCONFIG=}", "printf 'CONFIG_PCI=y\\n'"),
            "cannot build a kernel: of kernel.fragment did not take: CONFIG_LOCALVERSION: found n, wanted \"-pycontain\"; ",
        ),
        (
            "make",
            MAKE.replace("echo kernel > vmlinux", "echo 'a.c:1: error: no'; echo 'make: *** Error 1' >&2; exit 2"),
            "cannot build a kernel: make -s -j1 vmlinux: a.c:1: error: no",
        ),
        ("apt-cache", "echo none", "cannot build a kernel: apt knows no package linux-source"),
        (
            "apt-get",
            "echo 'W: old'; echo 'E: Unable to fetch' >&2; exit 100",
            "cannot build a kernel: apt-get download linux-source-9.9: E: Unable to fetch",
        ),
        ("apt-get", "true", "cannot build a kernel: apt-get download linux-source-9.9 left no package"),
        ("dpkg", 'mkdir "$3"', "cannot build a kernel: linux-source-9.9 holds no linux-source-*.tar"),
        ("strip", "echo 'strip: no' >&2; exit 1", "cannot build a kernel: strip -o "),
    ],
)  # fmt: skip
def test_what_fails_is_quoted_and_leaves_nothing(
    source: str, programs: Path, tmp_path: Path, name: str, text: str, message: str
) -> None:
    script(programs, name, text)
    with pytest.raises(PycontainError) as caught:
        build.build(str(tmp_path / "cache"), jobs=1)
    assert caught.value.message.startswith(message)
    assert [name for name in os.listdir(tmp_path / "work") if name != "jobs"] == []
    assert not os.path.exists(tmp_path / "cache") or os.listdir(tmp_path / "cache") == []


def test_an_archive_of_something_else_is_refused(programs: Path, tmp_path: Path) -> None:
    (tmp_path / "other/deep").mkdir(parents=True)
    subprocess.run(["tar", "-C", tmp_path, "-cf", tmp_path / "other.tar", "other"], check=True)
    with pytest.raises(PycontainError) as caught:
        build.build("/nosuch", source=str(tmp_path / "other.tar"))
    assert caught.value.message == f"cannot build a kernel: {tmp_path}/other.tar has no Kconfig in its first directory"


def test_what_cannot_be_is_refused_before_anything_is_fetched(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for output in ("/", "/nosuch/vmlinux"):
        with pytest.raises(PycontainError, match=f"^cannot build a kernel into {output}: wanted a file's name"):
            build.build("/nosuch", output=output)
    with pytest.raises(NotFound, match="^cannot build a kernel: /nosuch is not a file$"):
        build.build("/nosuch", source="/nosuch")
    monkeypatch.setattr(build, "_BYTES", 1 << 62)
    with pytest.raises(PycontainError, match=r"MiB free, wanted 4398046511104$"):
        build.build("/nosuch")
    monkeypatch.setattr(build.platform, "machine", lambda: "aarch64")
    with pytest.raises(Unsupported, match="^cannot build a kernel for aarch64"):
        build.build("/nosuch")
    assert not os.path.exists(tmp_path / "fetched")
