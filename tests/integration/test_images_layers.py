"""Layers as the kernel shows them: what overlayfs makes of our lower directories is what the image means."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import zstandard

from pycontain.images import manifest as m
from pycontain.images.descriptor import digest_of
from pycontain.images.layers import pack
from pycontain.images.layout import save
from pycontain.images.reference import parse
from pycontain.images.rootfs import ensure_layers, rootfs
from pycontain.images.store import Store
from pycontain.runtime.errors import PycontainError
from tests.images_tools import Item, directory, entry, file, hardlink, image, layer, symlink, unpacked

pytestmark = pytest.mark.needs("root", "overlayfs")

WALK = """
import json, os, stat, sys
out = {}
for base, dirs, files in os.walk("."):
    for name in ["."] + dirs + files:
        path = os.path.normpath(os.path.join(base, name)); s = os.lstat(path)
        data = os.readlink(path) if stat.S_ISLNK(s.st_mode) else open(path).read() if stat.S_ISREG(s.st_mode) else ""
        out[path] = [s.st_mode, s.st_uid, s.st_gid, s.st_mtime_ns // 10**9, data,
                     sorted(x for x in os.listxattr(path, follow_symlinks=False) if "overlay" not in x)]
json.dump(out, sys.stdout)
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "images"))


def merged(lowers: list[Path], work: Path) -> dict[str, Any]:
    """The tree as a container would see it, by the kernel, in a mount namespace of its own."""
    for name in ("up", "wk", "mp"):
        shutil.rmtree(work / name, ignore_errors=True)
        (work / name).mkdir(parents=True)
    found = rootfs(str(work / "c"), [str(path) for path in lowers])
    options = f"lowerdir={':'.join(found['lower'])},upperdir={found['upper']},workdir={found['work']}"
    script = 'mount -t overlay overlay -o "$1" "$2" && cd "$2" && exec "$3" -c "$4"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", options, str(work / "mp"), sys.executable, WALK],
        capture_output=True,
        text=True,
        check=True,
    )
    shutil.rmtree(work / "c")
    view: dict[str, Any] = json.loads(done.stdout)
    return view


class Model:
    """A root file system that changes from layer to layer; each change is written in one of the valid ways."""

    NAMES = ("a", "b", "c", "d")

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.tree: dict[str, dict[str, Any]] = {".": self.node("directory")}

    def node(self, kind: str) -> dict[str, Any]:
        return {
            "kind": kind,
            "mode": self.random.choice([0o755, 0o700, 0o1777, 0o2750]) if kind == "directory" else 0o4711,
            "uid": self.random.choice([0, 1000]),
            "gid": self.random.choice([0, 5]),
            "mtime": self.random.randrange(1, 10**9),
            "data": self.random.choice(["x", "yy", "a/b"]),
        }

    def change(self) -> bytes:
        before = {path: dict(node) for path, node in self.tree.items()}
        for _ in range(self.random.randrange(1, 8)):
            folder = self.random.choice([path for path, node in self.tree.items() if node["kind"] == "directory"])
            if folder.count("/") > 2:
                continue
            path = os.path.normpath(f"{folder}/{self.random.choice(self.NAMES)}")
            action = self.random.choice(["directory", "directory", "file", "file", "symbolic link", "remove", "remove"])
            old = self.tree.get(path)
            if action == "remove" or (old and (old["kind"] == "directory") != (action == "directory")):
                for inner in [key for key in self.tree if key == path or key.startswith(path + "/")]:
                    del self.tree[inner]
            if action != "remove":
                self.tree[path] = self.node(action)
        return self.layer(before)

    def layer(self, before: dict[str, dict[str, Any]]) -> bytes:
        items: list[tuple[str, Item]] = []
        opaque = {
            path
            for path, node in self.tree.items()
            if node["kind"] == "directory" and path in before and path != "." and self.random.random() < 0.3
        }
        for path, node in self.tree.items():
            hidden = any(path != base and path.startswith(base + "/") for base in opaque)
            if before.get(path) == node and not hidden and path not in opaque:
                continue
            items.append((path, self.item(path, node)))
        for path in opaque:
            items.append((path, file(f"{path}/.wh..wh..opq")))
        for path, node in before.items():
            parent = os.path.dirname(path) or "."
            replaced = path in self.tree and (node["kind"] == "directory") != (self.tree[path]["kind"] == "directory")
            if (path in self.tree and not replaced) or any(path.startswith(base + "/") for base in opaque):
                continue
            above = self.tree.get(parent)
            if above is None or above["kind"] != "directory" or before[parent]["kind"] != "directory":
                continue
            # A directory that takes a file's place needs no whiteout, and a file that takes a directory's neither.
            if not replaced or self.random.random() < 0.5:
                items.append((path, file(os.path.join(parent, ".wh." + os.path.basename(path)))))
        if self.random.random() < 0.5:
            self.random.shuffle(items)
            # Directories first: without its own entry, a name that was a link below would still be followed.
            items.sort(key=lambda item: (item[1][0].kind != "directory", len(item[0].split("/"))))
        else:
            items.sort(key=lambda item: (item[0], b".wh." not in item[1][0].name or b"opq" in item[1][0].name))
        return layer(item for _, item in items)

    def item(self, path: str, node: dict[str, Any]) -> Item:
        fields = {"mode": node["mode"], "uid": node["uid"], "gid": node["gid"], "mtime_ns": node["mtime"] * 10**9}
        if node["kind"] == "symbolic link":
            return symlink(path, node["data"], **fields)
        data = node["data"].encode() if node["kind"] == "file" else b""
        return entry("./" + path, node["kind"], data, **fields)

    def view(self) -> dict[str, Any]:
        result = {}
        for path, node in self.tree.items():
            kind = {"directory": stat.S_IFDIR, "file": stat.S_IFREG, "symbolic link": stat.S_IFLNK}[node["kind"]]
            mode = 0o777 if node["kind"] == "symbolic link" else node["mode"]
            data = "" if node["kind"] == "directory" else node["data"]
            result[path] = [kind | mode, node["uid"], node["gid"], node["mtime"], data, []]
        return result


@pytest.mark.parametrize("seed", range(40))
def test_any_sequence_of_changes_gives_the_tree_that_was_meant(tmp_path: Path, store: Store, seed: int) -> None:
    model = Model(seed)
    layers = [layer([model.item("", model.tree["."])])]
    for _ in range(model.random.randrange(2, 7)):
        layers.append(model.change())
    view = merged(unpacked(store, *layers), tmp_path)
    assert view == model.view()


@pytest.mark.needs("umoci")
@pytest.mark.parametrize("seed", range(100, 106))
def test_umoci_sees_the_same_tree(tmp_path: Path, store: Store, seed: int) -> None:
    model = Model(seed)
    layers = [layer([model.item("", model.tree["."])]), *(model.change() for _ in range(4))]
    store.set_ref("docker.io/library/x:1", image(store, *layers))
    save(store, [parse("x:1")], str(tmp_path / "l"), "oci-layout")
    target = tmp_path / "bundle"
    subprocess.run(["umoci", "raw", "unpack", "--image", f"{tmp_path / 'l'}:1", str(target)], check=True)
    done = subprocess.run([sys.executable, "-c", WALK], cwd=target, check=True, capture_output=True, text=True)
    theirs, mine = json.loads(done.stdout), merged(unpacked(store, *layers), tmp_path)
    for view in (theirs, mine):  # umoci lets later whiteouts touch the times of directories
        for path, node in view.items():
            if stat.S_ISDIR(node[0]) or path == ".":
                node[3] = 0
    assert mine == theirs


def names(view: dict[str, Any]) -> list[str]:
    return sorted(view)


def test_what_lower_layers_have_is_used(tmp_path: Path, store: Store) -> None:
    """Parents by their looks, links on the way, targets of hard links; the lower layer itself is never written."""
    base = [
        directory("./", mode=0o751, uid=3),
        directory("data", mode=0o2770, uid=7, gid=8, mtime_ns=5 * 10**9, xattrs={"user.a": b"1"}),
        file(
            "data/f",
            b"base",
            mode=0o4755,
            uid=9,
            mtime_ns=6 * 10**9,
            xattrs={"user.b": b"2", "security.capability": CAP},
        ),
        directory("usr/lib"),
        symlink("lib", "usr/lib"),
        symlink("abs", "/usr/lib"),
    ]
    top = [
        file("data/new", b"n"),
        hardlink("h", "data/f"),
        file("lib/x", b"x"),
        file("abs/y", b"y"),
        hardlink("k", "lib"),
    ]
    upper, lower = unpacked(store, base, top)
    assert sorted(os.listdir(lower / "data")) == ["f"] and sorted(os.listdir(lower / "usr/lib")) == []
    assert os.lstat(lower / "data/f").st_nlink == 1
    view = merged([upper, lower], tmp_path)
    assert view["data"][:4] == [stat.S_IFDIR | 0o2770, 7, 8, 5] and view["data"][5] == ["user.a"]
    assert view["."][:2] == [stat.S_IFDIR | 0o751, 3]
    for path in ("h", "data/f"):
        assert view[path] == [stat.S_IFREG | 0o4755, 9, 0, 6, "base", ["security.capability", "user.b"]]
    assert os.lstat(upper / "h").st_ino == os.lstat(upper / "data/f").st_ino
    assert os.getxattr(upper / "h", "security.capability") == CAP
    assert view["usr/lib/x"][4] == "x" and view["usr/lib/y"][4] == "y"
    assert view["k"][4] == "usr/lib" and stat.S_ISLNK(view["lib"][0])


CAP = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw=ep


def test_whiteouts_mean_lower_layers_wherever_they_stand(tmp_path: Path, store: Store) -> None:
    base = [
        directory("d"),
        file("d/old", b"1"),
        directory("d/sub"),
        file("d/sub/x", b"1"),
        file("f", b"1"),
        directory("e"),
    ]
    again = [
        file("d/new", b"2"),
        file(".wh.d"),
        file("f", b"2"),
        file(".wh.f"),
        file("e/.wh.nothing"),
        file("e/g", b"2"),
    ]
    for items in (again, list(reversed(again))):
        upper, lower = unpacked(store, base, items)
        view = merged([upper, lower], tmp_path)
        assert names(view) == [".", "d", "d/new", "e", "e/g", "f"]
        assert view["f"][4] == "2"
        assert os.listdir(upper / "e") == ["g"]  # a mark that hides nothing would be listed as a device


def test_an_opaque_root_hides_every_layer_below(tmp_path: Path, store: Store) -> None:
    """overlayfs merges the roots whatever attribute they carry, so the layers below are left out."""
    lowers = unpacked(store, [file("old", b"")], [file(".wh..wh..opq"), file("new", b"")], [file("newer", b"")])
    assert len(lowers) == 2
    assert names(merged(lowers, tmp_path)) == [".", "new", "newer"]


def test_private_files_of_aufs_are_skipped(tmp_path: Path, store: Store) -> None:
    items = [directory(".wh..wh.plnk")]
    with pytest.raises(PycontainError, match="a whiteout cannot be a directory"):
        unpacked(store, [], items)
    lowers = unpacked(
        store, [file("a", b"")], [file(".wh..wh.aufs"), hardlink(".wh.a", ".wh..wh.aufs"), file("b", b"")]
    )
    assert names(merged(lowers, tmp_path)) == [".", "b"]


def test_everything_about_a_file_arrives(tmp_path: Path, store: Store) -> None:
    os.umask(previous := os.umask(0o077))
    assert previous != 0o077
    items = [
        file("f", b"data", mode=0o6755, uid=4_000_000_000, gid=70_000, mtime_ns=1_500_000_000_123_456_789),
        file("cap", b"", mode=0o755, xattrs={"security.capability": CAP, "user.x": bytes(range(256))}),
        symlink("s", "nowhere", uid=5, mtime_ns=7 * 10**9),
        file("mac", b"", xattrs={"com.apple.provenance": b"1", "security.selinux": b"theirs", "user.kept": b"1"}),
        entry("p", "fifo", mode=0o622),
        directory("t", mode=0o1777, mtime_ns=3 * 10**9),
        file("t/inside", b""),
        file("old", b"", mtime_ns=-86400 * 10**9),
    ]
    (lower,) = unpacked(store, items)
    found = os.lstat(lower / "f")
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o6755, 4_000_000_000, 70_000)
    assert found.st_mtime_ns == 1_500_000_000_123_456_789
    assert os.getxattr(lower / "cap", "security.capability") == CAP
    assert os.listxattr(lower / "mac") == ["user.kept"]
    assert os.getxattr(lower / "cap", "user.x") == bytes(range(256))
    assert (os.lstat(lower / "s").st_uid, os.lstat(lower / "s").st_mtime) == (5, 7)
    assert stat.S_ISFIFO(os.lstat(lower / "p").st_mode) and stat.S_IMODE(os.lstat(lower / "p").st_mode) == 0o622
    assert os.lstat(lower / "t").st_mtime == 3 and stat.S_IMODE(os.lstat(lower / "t").st_mode) == 0o1777
    assert os.lstat(lower / "old").st_mtime == -86400


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_the_umask_changes_nothing(tmp_path: Path, umask: int) -> None:
    """In a process of its own: a umask is the whole process's."""
    program = (
        "import os, sys; sys.path[:0] = sys.argv[3].split(':'); os.umask(int(sys.argv[2]))\n"
        "from pycontain.images.store import Store; from tests.images_tools import *\n"
        "items = [directory('d', mode=0o777), file('d/f', b'', mode=0o666), file('e/g', b'')]\n"
        "lower, = unpacked(Store(sys.argv[1]), items)\n"
        "print(*[oct(os.lstat(lower / p).st_mode & 0o7777) for p in ('.', 'd', 'd/f', 'e', 'e/g')])"
    )
    arguments = [str(tmp_path / "s"), str(umask), ":".join(sys.path)]
    done = subprocess.run([sys.executable, "-c", program, *arguments], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["0o755", "0o777", "0o666", "0o755", "0o644"]


@pytest.mark.parametrize("format", ["gnu", "oldgnu", "posix"])
def test_a_sparse_file_keeps_its_holes(tmp_path: Path, store: Store, format: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with open(source / "f", "wb") as out:
        for offset in range(0, 16 << 20, 2 << 20):
            out.seek(offset)
            out.write(b"data")
        out.truncate(20 << 20)
    made = subprocess.run(
        ["tar", "-c", "-S", f"--format={format}", "-C", str(source), "f"], check=True, capture_output=True
    ).stdout
    (lower,) = unpacked(store, made)
    assert (lower / "f").read_bytes() == (source / "f").read_bytes()
    assert os.stat(lower / "f").st_blocks * 512 < 1 << 20


@pytest.mark.parametrize(
    "compress", [zstandard.compress, lambda data: two_members(data), None], ids=["zstd", "gzip", "tar"]
)
def test_every_compression(store: Store, compress: Any) -> None:
    data = layer([file("f", os.urandom(100_000))])
    found = image(store, data, compress=compress)
    (lower,) = ensure_layers(store, m.select(store, found))
    assert Path(lower, "f").stat().st_size == 100_000


def two_members(data: bytes) -> bytes:
    import gzip

    return gzip.compress(data[:1000]) + gzip.compress(data[1000:])


# Packing


def test_what_is_packed_unpacks_to_the_same(tmp_path: Path, store: Store) -> None:
    items = [
        directory("./", mode=0o750),
        file("f", b"data" * 1000, mode=0o4755, uid=5, mtime_ns=1_500_000_000_123_456_789, xattrs={"user.a": b"\xff\0"}),
        hardlink("h", "f"),
        symlink("s", "f" * 300),
        directory("d" * 200),
        file("d" * 200 + "/" + "e" * 200, b""),
        entry("c", "character device", mode=0o600, major=1, minor=3),
        entry("p", "fifo"),
        file(b"\xff\xfe", b""),
    ]
    base = [file("gone", b""), directory("o"), file("o/x", b"")]
    upper, lower = unpacked(store, base, [*items, file(".wh.gone"), file("o/.wh..wh..opq")])
    packed = packed_of(upper)
    assert packed == packed_of(upper)
    again, _ = unpacked(store, base, packed)
    assert packed_of(again) == packed
    assert merged([again, lower], tmp_path) == merged([upper, lower], tmp_path)
    with tarfile.open(fileobj=io.BytesIO(packed)) as made:
        found = made.getnames()
        assert made.getmember("./.wh.gone" if "./.wh.gone" in found else ".wh.gone").size == 0
    assert "o/.wh..wh..opq" in found and "gone" not in found


def packed_of(path: Path) -> bytes:
    out = io.BytesIO()
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        pack(fd, out.write)
    finally:
        os.close(fd)
    return out.getvalue()


def test_a_name_that_layers_reserve_is_not_packed(tmp_path: Path) -> None:
    (tmp_path / ".wh.x").touch()
    with pytest.raises(PycontainError, match=r"^'\.wh\.x' cannot be packed: layers use this name for deleted files$"):
        packed_of(tmp_path)


# The store's layers


def test_an_image_without_layers_has_an_empty_root(tmp_path: Path, store: Store) -> None:
    (lower,) = unpacked(store)
    assert os.listdir(lower) == []
    assert names(merged([lower], tmp_path)) == ["."]


def test_the_upper_directory_looks_like_the_images_root(tmp_path: Path, store: Store) -> None:
    lowers = [str(path) for path in unpacked(store, [directory("./", mode=0o1711, uid=5, gid=6)])]
    container = tmp_path / "c"
    container.mkdir()
    found = rootfs(str(container), lowers, volatile=True)
    assert found == {
        "kind": "overlay",
        "lower": lowers,
        "upper": str(container / "upper"),
        "work": str(container / "work"),
        "volatile": True,
    }
    upper = os.stat(container / "upper")
    assert (stat.S_IMODE(upper.st_mode), upper.st_uid, upper.st_gid) == (0o1711, 5, 6)
    (container / "upper" / "kept").touch()
    rootfs(str(container), lowers)
    assert (container / "upper" / "kept").exists()


def test_each_layer_is_unpacked_once(tmp_path: Path, store: Store) -> None:
    base, one, two = layer([file("base", b"")]), layer([file("one", b"")]), layer([file("two", b"")])
    starting: list[str] = []
    for data in (one, two, one):
        found = m.select(store, image(store, base, data))
        ensure_layers(store, found, starting=lambda blob: starting.append(blob.digest))
    assert len(starting) == 3
    assert len(os.listdir(os.path.join(store.root, "layers"))) == 3


def test_a_layer_of_another_format_is_refused(store: Store) -> None:
    found = m.select(store, image(store, layer([file("f", b"")])))
    (lower,) = ensure_layers(store, found)
    record = Path(lower).parent / "layer.json"
    record.write_text('{"version": 9}')
    with pytest.raises(PycontainError) as caught:
        ensure_layers(store, found)
    assert caught.value.message == f"{record} has version 9, this pycontain knows version 1"


PROGRAM = """
import sys
sys.path[:0] = sys.argv[2].split(":")
from pycontain.images.store import Store
from pycontain.images import manifest as m
from pycontain.images.rootfs import ensure_layers
store = Store(sys.argv[1])
print(*ensure_layers(store, m.select(store, store.get_ref("x"))))
"""


def spawn(store: Store) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, store.root, ":".join(sys.path)], stdout=subprocess.PIPE, text=True
    )


def test_processes_that_unpack_the_same_share_it(store: Store) -> None:
    layers = [layer([file(f"{number}/{index}", os.urandom(1000)) for index in range(300)]) for number in range(3)]
    store.set_ref("x", image(store, *layers))
    processes = [spawn(store) for _ in range(6)]
    outputs = {process.communicate(timeout=60)[0] for process in processes}
    assert all(process.returncode == 0 for process in processes) and len(outputs) == 1
    assert len(os.listdir(os.path.join(store.root, "layers"))) == 3


def test_a_killed_unpack_leaves_nothing_that_counts(store: Store) -> None:
    data = layer([file(f"{index}", os.urandom(3000)) for index in range(3000)])
    store.set_ref("x", image(store, data, compress=None))
    folder = os.path.join(store.root, "layers")
    killed = 0
    for attempt in range(8):
        process = spawn(store)
        deadline = time.monotonic() + 10
        while process.poll() is None and not os.listdir(folder) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01 * attempt)
        process.send_signal(signal.SIGKILL)
        if process.wait() == -signal.SIGKILL:
            killed += 1
        process.communicate()
        assert all(
            name.startswith(".") or len(os.listdir(f"{folder}/{name}/diff")) == 3000 for name in os.listdir(folder)
        )
        store.gc([])
        if attempt % 2:
            assert not any(name.startswith(".") for name in os.listdir(folder))
            shutil.rmtree(os.path.join(folder, digest_of(data)[7:]), ignore_errors=True)
    assert killed
    process = spawn(store)
    lower = process.communicate(timeout=60)[0].strip()
    assert len(os.listdir(lower)) == 3000
    assert not any(name.startswith(".") for name in os.listdir(folder))


RACE = """
import json, os, random, shutil, sys, time
sys.path[:0] = sys.argv[2].split(":")
from pycontain.images.store import Store
from pycontain.images import manifest as m
from pycontain.images.layout import load
from pycontain.images.rootfs import ensure_layers
from pycontain.runtime.errors import NotFound
root, _, archive, seconds, seed = sys.argv[1:]
store, rng, mine = Store(root), random.Random(int(seed)), []
containers = os.path.join(os.path.dirname(root), "containers")

def in_use():
    result = []
    for name in os.listdir(containers):
        try:
            if name.endswith(".tmp"):
                continue
            with open(os.path.join(containers, name)) as file:
                result += json.load(file)
        except FileNotFoundError:
            pass
    return result

def check(lowers):
    for lower in lowers:
        assert len(os.listdir(lower)) == 40, lower

end, done = time.monotonic() + float(seconds), {}
while time.monotonic() < end:
    action = rng.choice(["pull", "run", "run", "rm", "rmi", "prune"])
    done[action] = done.get(action, 0) + 1
    if action == "pull":
        load(store, archive)
    elif action == "run":
        try:
            with store.pin():
                lowers = ensure_layers(store, m.select(store, store.get_ref("docker.io/library/x:1")))
                path = os.path.join(containers, f"{seed}-{rng.random()}")
                with open(path + ".tmp", "w") as file:
                    json.dump(lowers, file)
                os.rename(path + ".tmp", path)
                mine.append((path, lowers))
        except NotFound as error:
            assert error.message == "image docker.io/library/x:1 is not in the store", error.message
            done["absent"] = done.get("absent", 0) + 1
        else:
            check(lowers)
    elif action == "rm" and mine:
        path, lowers = mine.pop()
        check(lowers)
        os.unlink(path)
    elif action == "rmi":
        try:
            store.remove_ref("docker.io/library/x:1")
        except NotFound:
            pass
        store.gc(in_use)
    elif action == "prune":
        store.gc(in_use)
    for _, lowers in mine:
        check(lowers)
for path, _ in mine:
    os.unlink(path)
print(json.dumps(done))
"""


def test_eight_processes_pull_run_remove_and_prune(tmp_path: Path, store: Store) -> None:
    """Nothing but "not in the store" is ever said, no layer in use is touched, and nothing stays."""
    seconds = os.environ.get("PYCONTAIN_RACE_SECONDS", "6")
    layers = [layer([file(f"{index}", os.urandom(500)) for index in range(40)]) for _ in range(3)]
    store.set_ref("docker.io/library/x:1", image(store, *layers))
    archive = str(tmp_path / "x.tar")
    save(store, [parse("x:1")], archive, "oci-archive")
    (tmp_path / "containers").mkdir()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, store.root, ":".join(sys.path), archive, seconds, str(seed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(8)
    ]
    outputs = [process.communicate(timeout=float(seconds) + 60) for process in processes]
    assert [error for _, error in outputs if error] == []
    done = [json.loads(out) for out, _ in outputs]
    assert all(sum(counts.get(action, 0) for counts in done) for action in ("pull", "run", "rm", "rmi", "prune"))
    for name in store.refs():
        store.remove_ref(name)
    store.gc([])
    for name in ("blobs/sha256", "blobs/sha512", "layers", "ingest", "pins", "trash"):
        assert os.listdir(os.path.join(store.root, name)) == [], name
