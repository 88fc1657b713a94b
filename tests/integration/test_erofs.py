"""Erofs files of merged layers: the kernel mounts them, and shows what overlayfs shows of the same layers."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pycontain.engine import images as engine_images
from pycontain.images import erofs
from pycontain.images.rootfs import ensure_layers
from pycontain.images.store import Store
from pycontain.runtime.errors import KernelError, NotFound, PycontainError, Unsupported
from tests.engine_tools import Host
from tests.images_tools import directory, entry, file, hardlink, symlink, unpacked

pytestmark = pytest.mark.needs("root", "overlayfs", "erofs", "unshare")

WALK = """
import json, os, stat, sys
out, links = {}, {}
def look(path):
    try:
        s = os.lstat(path)
    except FileNotFoundError:
        return  # a whiteout in a directory that is not merged: listed, and not there
    is_dir, is_file = stat.S_ISDIR(s.st_mode), stat.S_ISREG(s.st_mode)
    name = path.decode("latin-1")
    if not is_dir:
        links.setdefault((s.st_dev, s.st_ino), []).append(name)
    out[name] = [
        oct(s.st_mode), s.st_uid, s.st_gid, s.st_mtime_ns, None if is_dir else s.st_size,
        s.st_rdev if stat.S_ISCHR(s.st_mode) or stat.S_ISBLK(s.st_mode) else None,
        os.readlink(path).decode("latin-1") if stat.S_ISLNK(s.st_mode) else None,
        open(path, "rb").read().decode("latin-1") if is_file else None,
        sorted((key, os.getxattr(path, key, follow_symlinks=False).hex()) for key in os.listxattr(path, follow_symlinks=False)),
    ]
    if is_dir:
        for entry in os.listdir(path):
            look(os.path.join(path, entry))
look(b".")
json.dump([out, sorted(sorted(names) for names in links.values() if len(names) > 1)], sys.stdout)
"""
# mkfs.erofs as $PATH has it, with something before or instead.
WRAPPER = """#!/bin/sh
case $1 in -V) exec {real} -V;; esac
{script}
exec {real} "$@"
"""
REAL = shutil.which("mkfs.erofs")


def walked(mount: str, *words: str, cwd: Path | None = None) -> Any:
    """A tree as the kernel shows it, mounted on /mnt in a mount namespace of its own."""
    script = f'{mount} && cd /mnt && exec "$PYTHON" -c "$WALK"'
    environment = {**os.environ, "PYTHON": sys.executable, "WALK": WALK}
    command = ["unshare", "-m", "sh", "-c", script, "sh", *words]
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def merged(lower: list[Path], work: Path) -> Any:
    """What overlayfs shows; the layers under names that need no escaping."""
    here = work / "witness"
    shutil.rmtree(here, ignore_errors=True)
    (here / "none").mkdir(parents=True)
    for index, path in enumerate(lower):
        (here / str(index)).symlink_to(path)
    names = ":".join([*(str(index) for index in range(len(lower))), "none"])
    return walked('mount -t overlay o -o "lowerdir=$1" /mnt', names, cwd=here)


def packed(path: str | Path) -> Any:
    """What the kernel shows of an erofs file; fsck.erofs agrees that it is one."""
    checked = subprocess.run(["fsck.erofs", str(path)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    return walked('mount -t erofs -o loop,ro "$1" /mnt', str(path))


def same(lower: list[Path], work: Path) -> dict[str, Any]:
    """Build, compare, and give what was found."""
    before = Path("/proc/self/mountinfo").read_text()
    path = work / "made.erofs"
    erofs.build([str(layer) for layer in lower], str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert not (work / ".made.erofs").exists()
    assert Path("/proc/self/mountinfo").read_text() == before
    assert "erofs" not in [thread.name for thread in threading.enumerate()]
    found, links = packed(path)
    wanted, wanted_links = merged(lower, work)
    assert sorted(found) == sorted(wanted)
    for name in wanted:
        assert found[name] == wanted[name], name
    assert links == wanted_links
    return dict(found)


def layers(work: Path, count: int) -> list[Path]:
    made = [work / f"layer {index}" for index in range(count)]
    for path in made:
        path.mkdir()
    return made


def wrapper(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    folder.mkdir(exist_ok=True)
    program = folder / "mkfs.erofs"
    program.write_text(WRAPPER.format(real=REAL, script=script))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def everything(root: Path, tag: str) -> None:
    """One of each kind of thing, with each kind of attribute."""
    (root / "file").write_bytes(tag.encode() * 3000)
    (root / "empty").touch()
    (root / "block").write_bytes(bytes(4096))
    (root / "exact").write_bytes(b"x" * 8192)
    (root / "setuid").write_text("s")
    os.chown(root / "setuid", 70000, 4294967294)
    os.chmod(root / "setuid", 0o6755)
    os.setxattr(root / "setuid", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    os.setxattr(root / "file", "user.note", b"a\0b" * 100)
    os.setxattr(root / "file", "user.nothing", b"")
    os.setxattr(root / "file", "trusted.ours", b"t")
    os.mkfifo(root / "fifo", 0o602)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o640, os.makedev(259, 70000))
    with socket.socket(socket.AF_UNIX) as sock:
        here = os.getcwd()
        os.chdir(root)  # a socket's path has room for 107 bytes
        sock.bind("socket")
        os.chdir(here)
    (root / "sticky").mkdir()
    os.chmod(root / "sticky", 0o1777)
    os.setxattr(root / "sticky", "user.kind", b"directory")
    # linux/posix_acl_xattr.h: version 2; user::rw-, user:5:r--, group::r--, mask::r--, other::---
    acl = b"".join(
        number.to_bytes(2, "little") + may.to_bytes(2, "little") + who.to_bytes(4, "little")
        for number, may, who in ((1, 6, 2**32 - 1), (2, 4, 5), (4, 4, 2**32 - 1), (16, 4, 2**32 - 1), (32, 0, 2**32 - 1))
    )
    (root / "listed").touch()
    os.setxattr(root / "listed", "system.posix_acl_access", (2).to_bytes(4, "little") + acl)
    for name, target in (("absolute", "/etc/passwd"), ("up", "../../../../etc"), ("loop", "loop"), ("long", "x" * 4000)):
        (root / name).symlink_to(target)
    os.chown(root / "absolute", 3, 4, follow_symlinks=False)
    os.setxattr(root / "absolute", "trusted.link", b"not of what it leads to", follow_symlinks=False)
    os.link(root / "file", root / "sticky" / "linked")
    os.link(root / "null", root / "sticky" / "null too")
    os.link(root / "loop", root / "loop too")
    os.utime(root / "file", ns=(0, 1234567890123456789))
    os.utime(root / "empty", ns=(0, -86400 * 10**9))
    os.utime(root / "block", ns=(0, 4102444800 * 10**9))
    os.utime(root / "absolute", ns=(0, 86400 * 10**9 + 1), follow_symlinks=False)
    os.utime(root / "sticky", ns=(0, 999999999))


def whiteout(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR, 0)


def opaque(path: Path) -> None:
    os.setxattr(path, "trusted.overlay.opaque", b"y")


def test_one_layer_with_one_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")  # mkfs.erofs would clamp every time to it
    (layer,) = layers(tmp_path, 1)
    everything(layer, "a")
    os.chown(layer, 5, 6)
    os.chmod(layer, 0o751)
    os.setxattr(layer, "user.root", b"r")
    os.utime(layer, ns=(0, 5 * 10**9))
    found = same([layer], tmp_path)
    assert found["."][:4] == ["0o40751", 5, 6, 5 * 10**9]
    assert found["./setuid"][:3] == ["0o106755", 70000, 4294967294]
    assert found["./disk"][5] == os.makedev(259, 70000)
    assert [name for name, _ in found["./file"][8]] == ["trusted.ours", "user.note", "user.nothing"]


def test_layers_are_merged(tmp_path: Path) -> None:
    top, middle, bottom = layers(tmp_path, 3)
    for layer in (bottom, middle, top):
        for name in ("own", "hidden", "cut", "both"):
            (layer / name).mkdir()
        everything(layer / "own", layer.name)
        (layer / "both" / f"of {layer.name}").write_text("x")
    for name in ("gone", "replaced"):
        (bottom / name).mkdir()
        (bottom / name / "inside").touch()
    shutil.rmtree(middle / "hidden")
    whiteout(middle / "hidden")
    (top / "hidden" / "new").touch()
    opaque(middle / "cut")
    (bottom / "cut" / "old").touch()
    (middle / "cut" / "new").touch()
    whiteout(top / "gone")
    whiteout(middle / "both" / f"of {bottom.name}")
    (top / "replaced").write_text("now a file")
    (middle / "replaced").mkdir()
    found = same([top, middle, bottom], tmp_path)
    assert "./hidden/new" in found
    assert "./cut/new" in found and "./cut/old" not in found
    assert "./gone" not in found and found["./replaced"][0] == "0o100644"
    assert {name for name in found if name.startswith("./both/")} == {"./both/of layer 0", "./both/of layer 1"}
    assert not any("overlay" in key for item in found.values() for key, _ in item[8])


def test_whiteouts_that_hide_nothing_vanish_from_a_single_layer(tmp_path: Path) -> None:
    (layer,) = layers(tmp_path, 1)
    (layer / "a" / "b").mkdir(parents=True)
    for folder in (layer, layer / "a", layer / "a" / "b"):
        whiteout(folder / "mark")
        (folder / "kept").touch()
    os.utime(layer / "a" / "b", ns=(0, 7))
    os.chmod(layer / "a", 0o700)
    found = same([layer], tmp_path)
    assert sorted(found) == [".", "./a", "./a/b", "./a/b/kept", "./a/kept", "./kept"]


def test_names_and_links_lead_nowhere(tmp_path: Path) -> None:
    """The layers' own paths have every character that a mount option could trip over; so have the names in them."""
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_bytes(b"not for the image: " + b"\x17" * 64)
    made = []
    for index in range(2):
        layer = tmp_path / f"a,b:c\\d e\n{index}\udcff"
        layer.mkdir()
        made.append(layer)
        for name in ("new\nline", "co:lon", "com,ma", "back\\slash", "-z", "\udcff\udcfe", "n" * 255, " ", "$(id)", "*"):
            (layer / f"{name[:250]}{index}").write_text(name[:3].encode("utf-8", "replace").decode())
            (layer / f"d{name[:250]}").mkdir()
            (layer / f"d{name[:250]}" / "x").symlink_to(secret / "file")
        (layer / "directory").symlink_to(secret)
        (layer / "proc").symlink_to("/proc/self/fd")
    (made[0] / "was a directory").symlink_to(secret)
    (made[1] / "was a directory").mkdir()
    (made[1] / "was a directory" / "file").touch()
    found = same(made, tmp_path)
    assert found["./was a directory"][6] == str(secret)
    assert b"\x17" * 64 not in (tmp_path / "made.erofs").read_bytes()


def test_127_layers(tmp_path: Path) -> None:
    made = layers(tmp_path, 127)
    for index, layer in enumerate(made):
        (layer / "shared").mkdir()
        (layer / "shared" / str(index)).write_text(str(index))
    assert len(same(made, tmp_path)) == 2 + 127


@pytest.mark.needs("assets")
def test_alpine(tmp_path: Path) -> None:
    (layer,) = layers(tmp_path, 1)
    archive = os.path.join(os.environ["PYCONTAIN_TEST_ASSETS"], "images/alpine-minirootfs-3.20.3-x86_64.tar.gz")
    subprocess.run(["tar", "-xpzf", archive, "-C", str(layer)], check=True)
    assert len(same([layer], tmp_path)) > 500


def test_lost_and_found_is_packed(tmp_path: Path) -> None:
    (layer,) = layers(tmp_path, 1)
    (layer / "lost+found").mkdir(0o700)
    (layer / "var" / "lost+found").mkdir(parents=True)
    (layer / "var" / "lost+found" / "lost+found.txt").write_text("found")
    found = same([layer], tmp_path)
    assert sorted(found) == [".", "./lost+found", "./var", "./var/lost+found", "./var/lost+found/lost+found.txt"]


def test_a_mkfs_that_leaves_something_out_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of version 1.5, and built otherwise than the one that is known."""
    (layer,) = layers(tmp_path, 1)
    (layer / "var").mkdir()
    (layer / "var" / "lost+found.txt").write_text("found")
    program = tmp_path / "bin" / "mkfs.erofs"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho mkfs.erofs 1.5\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    with pytest.raises(Unsupported, match=r"found 'var/lost\+found.txt', and this mkfs.erofs leaves out") as caught:
        erofs.build([str(layer)], str(tmp_path / "x.erofs"))
    assert caught.value.hint == "install erofs-utils 1.6 or newer"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["bin", layer.name])


def test_a_path_that_mkfs_cannot_name_is_refused(tmp_path: Path) -> None:
    (layer,) = layers(tmp_path, 1)
    fd = os.open(layer, os.O_RDONLY)
    for _ in range(17):
        os.mkdir("d" * 250, dir_fd=fd)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    with pytest.raises(Unsupported, match=r"^mkfs.erofs cannot name a path of \d{4} bytes in /"):
        erofs.build([str(layer)], str(tmp_path / "x.erofs"))
    assert not (tmp_path / "x.erofs").exists()
    shutil.rmtree(layer)


# What goes wrong


def test_without_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotFound) as caught:
        erofs.build([str(tmp_path)], str(tmp_path / "x.erofs"))
    assert caught.value.message == f"make {tmp_path}/x.erofs: mkfs.erofs is not installed"
    assert caught.value.hint == "apt-get install erofs-utils"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo one >&2; echo '  two ' >&2; exit 3", "two"),
        ("exit 3", "exit status 3"),
        ("kill -9 $$", "killed by signal 9"),
    ],
)
def test_a_failure_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str) -> None:
    wrapper(tmp_path / "bin", monkeypatch, script)
    (layer,) = layers(tmp_path, 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x.erofs").write_text("the one before")
    with pytest.raises(PycontainError) as caught:
        erofs.build([str(layer)], str(tmp_path / "out" / "x.erofs"))
    assert caught.value.message == f"make {tmp_path}/out/x.erofs: mkfs.erofs: {said}"
    assert os.listdir(tmp_path / "out") == ["x.erofs"]
    assert (tmp_path / "out" / "x.erofs").read_text() == "the one before"


def test_a_missing_layer(tmp_path: Path) -> None:
    (layer,) = layers(tmp_path, 1)
    with pytest.raises(KernelError, match=r"^make .*x.erofs: ENOENT"):
        erofs.build([str(layer), str(tmp_path / "none")], str(tmp_path / "x.erofs"))
    assert [path.name for path in tmp_path.iterdir()] == [layer.name]


def test_a_full_disk(tmp_path: Path) -> None:
    (layer,) = layers(tmp_path, 1)
    for index in range(8):
        (layer / str(index)).write_bytes(os.urandom(1 << 20))
    script = """
import os, sys
from pycontain.images import erofs
from pycontain.runtime.errors import PycontainError
try:
    erofs.build([sys.argv[1]], "/mnt/x.erofs")
except PycontainError as error:
    print(error.message)
print(os.listdir("/mnt"))
"""
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=2m t /mnt && exec "$0" -c "$@"', sys.executable, script, str(layer)],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    first, second = done.stdout.splitlines()
    assert first.startswith("make /mnt/x.erofs: mkfs.erofs: "), done
    assert second == "[]"


# The cache


def test_kept_by_the_chain(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "images"))
    lower = unpacked(
        store,
        [directory("etc"), file("etc/a", b"1"), file("etc/b", b"2"), hardlink("c", "etc/b"), entry("pipe", "fifo")],
        [file("etc/.wh.a"), symlink("d", "/etc/b"), file("etc/e", b"3", mode=0o4711, uid=9)],
    )
    folder = tmp_path / "data" / "erofs"
    assert erofs.directory(str(tmp_path / "data")) == str(folder)
    path = erofs.cached(str(folder), [str(layer) for layer in lower])
    assert path == str(folder / f"{lower[0].parent.name}.erofs")
    assert packed(path) == merged(lower, tmp_path)
    made = os.stat(path)
    assert erofs.cached(str(folder), [str(layer) for layer in lower]) == path
    assert (os.stat(path).st_ino, os.stat(path).st_mtime_ns) == (made.st_ino, made.st_mtime_ns)
    other = unpacked(store, [file("other")])
    assert erofs.cached(str(folder), [str(layer) for layer in other]) != path
    assert sorted(os.listdir(folder)) == sorted(f"{chain[0].parent.name}.erofs" for chain in (lower, other))


CALL = "import sys; from pycontain.images import erofs; getattr(erofs, sys.argv[1])(*map(eval, sys.argv[2:]))"


def call(name: str, *arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", CALL, name, *map(repr, arguments)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": ":".join(sys.path)})


def test_made_once_by_whoever_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper(tmp_path / "bin", monkeypatch, f"echo made >>{tmp_path}/log; sleep 0.5")
    layer = tmp_path / "layers" / "chain" / "diff"
    layer.mkdir(parents=True)
    (layer / "file").write_text("x")
    processes = [call("cached", str(tmp_path / "erofs"), [str(layer)]) for _ in range(6)]
    assert [process.wait(30) for process in processes] == [0] * 6
    assert (tmp_path / "log").read_text() == "made\n"
    assert os.listdir(tmp_path / "erofs") == ["chain.erofs"]
    assert packed(tmp_path / "erofs" / "chain.erofs") == merged([layer], tmp_path)


def test_builders_of_one_path_do_not_mix(tmp_path: Path) -> None:
    made = layers(tmp_path, 2)
    for index, layer in enumerate(made):
        for name in range(200):
            (layer / f"{index} {name}").write_bytes(os.urandom(5000))
    (tmp_path / "out").mkdir()
    processes = [call("build", [str(made[index % 2])], str(tmp_path / "out" / "x.erofs")) for index in range(8)]
    assert [process.wait(30) for process in processes] == [0] * 8
    assert os.listdir(tmp_path / "out") == ["x.erofs"]
    assert packed(tmp_path / "out" / "x.erofs") in [merged([layer], tmp_path) for layer in made]


def waited(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_a_killed_builder_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mkfs.erofs may live on, and holds the lock as long as it writes."""
    wrapper(tmp_path / "bin", monkeypatch, f"echo $$ >{tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; exec sleep 100")
    layer = tmp_path / "layers" / "chain" / "diff"
    layer.mkdir(parents=True)
    folder = tmp_path / "erofs"
    process = call("cached", str(folder), [str(layer)])
    waited((tmp_path / "pid").exists)
    process.kill()
    process.wait()
    assert os.listdir(folder) == [".chain.erofs"]
    assert erofs.sweep(str(folder), []) == 0
    assert os.listdir(folder) == [".chain.erofs"]
    (tmp_path / "bin" / "mkfs.erofs").unlink()
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    fd = os.open(folder / ".chain.erofs", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)  # gone with the program
    os.write(fd, b"half" * 10000)
    os.close(fd)
    path = erofs.cached(str(folder), [str(layer)])
    assert os.listdir(folder) == ["chain.erofs"]
    assert packed(path) == merged([layer], tmp_path)
    (folder / ".other.erofs").write_bytes(b"half" * 10000)
    assert erofs.sweep(str(folder), ["chain"]) >= 40000
    assert os.listdir(folder) == ["chain.erofs"]
    assert erofs.sweep(str(folder), []) >= 4096
    assert os.listdir(folder) == []
    assert erofs.sweep(str(tmp_path / "none"), []) == 0


def test_an_interrupt_ends_mkfs_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper(tmp_path / "bin", monkeypatch, f"echo $$ >{tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; exec sleep 100")
    (layer,) = layers(tmp_path, 1)
    (tmp_path / "out").mkdir()
    process = call("build", [str(layer)], str(tmp_path / "out" / "x.erofs"))
    waited((tmp_path / "pid").exists)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) != 0
    assert os.listdir(tmp_path / "out") == []
    waited(lambda: not os.path.exists(f"/proc/{(tmp_path / 'pid').read_text().strip()}"))


def test_goes_with_the_layers(host: Host) -> None:
    """`system prune` leaves what an image needs, and takes what no layer is left for; so does `rmi`."""
    host("tag", "alpine", "erofs-test:1")
    with host.engine.images.pin():
        image = engine_images.find(host.engine, "alpine")
        lower = ensure_layers(host.engine.images, image.manifest)
        path = erofs.cached(erofs.directory(str(host.data)), lower)
    stray = os.path.join(os.path.dirname(path), "0" * 64 + ".erofs")
    shutil.copy(path, stray)
    host("system", "prune", "-f")
    assert os.path.exists(path) and not os.path.exists(stray)
    host("rmi", "erofs-test:1")
    assert os.path.exists(path)
    host("rmi", "alpine")
    assert not os.path.exists(path)
    host.seed()
