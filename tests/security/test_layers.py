"""Hostile layers (the published holes of unpackers): each attack is performed, a decoy outside stays as it was.

Every attack has a harmless twin, which unpacks. After an attack the store holds nothing half-written.
"""

from __future__ import annotations

import gzip
import os
import resource
import shutil
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain.images import manifest as m
from pycontain.images.compression import Limits
from pycontain.images.rootfs import ensure_layers
from pycontain.images.store import Store
from pycontain.images.tar import END, header
from pycontain.runtime.errors import PycontainError
from tests.images_tools import (
    Item,
    directory,
    entry,
    file,
    hardlink,
    image,
    layer,
    snapshot,
    symlink,
    unpacked,
)

pytestmark = pytest.mark.needs("root")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "data" / "images"))


@pytest.fixture
def decoy(tmp_path: Path) -> Iterator[Path]:
    """Files of the host beside the store; whatever the test did, they are as they were."""
    root = tmp_path / "decoy"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "shadow").write_text("root:secret")
    os.chmod(root / "etc" / "shadow", 0o600)
    before = snapshot(root)
    etc = os.stat("/etc"), os.stat("/etc/passwd")
    yield root
    assert snapshot(root) == before
    after = os.stat("/etc"), os.stat("/etc/passwd")
    assert [(s.st_mode, s.st_uid, s.st_nlink, s.st_mtime_ns) for s in after] == [
        (s.st_mode, s.st_uid, s.st_nlink, s.st_mtime_ns) for s in etc
    ]


def nothing_left(store: Store) -> None:
    assert os.listdir(os.path.join(store.root, "layers")) == []
    for name in ("ingest", "pins", "trash"):
        assert os.listdir(os.path.join(store.root, name)) == []


def refused(store: Store, *layers: list[Item] | bytes, limits: Limits | None = None) -> str:
    """The error, without the layer's digest."""
    with pytest.raises(PycontainError) as caught:
        unpacked(store, *layers, limits=limits)
    assert "\n" not in caught.value.message
    return (
        caught.value.message.partition(": ")[2] if caught.value.message.startswith("layer ") else caught.value.message
    )


# Symbolic links


def test_a_symbolic_link_at_the_root_is_refused(store: Store, decoy: Path) -> None:
    """CVE-2021-29136: ``/.`` becomes a link, and what follows lands behind it."""
    for name in ("/.", ".", "/", "./", "a/../", "//./"):
        message = refused(store, [symlink(name, decoy), file("etc/shadow", b"owned")])
        wanted = "has .. in its path" if ".." in name else "the root of an image cannot be a symbolic link"
        assert message == f"entry {name!r}: {wanted}"
    nothing_left(store)
    (lower,) = unpacked(store, [directory("./", mode=0o711), file("etc/shadow", b"own")])
    assert stat.S_IMODE(lower.stat().st_mode) == 0o711
    assert (lower / "etc/shadow").read_bytes() == b"own"


@pytest.mark.parametrize(
    "link", ["{decoy}/etc", "../../../../../../../../..{decoy}/etc", "x/../../../../../..{decoy}/etc"]
)
def test_a_file_below_a_symbolic_link_stays_inside(store: Store, decoy: Path, link: str) -> None:
    """The link is followed with the image as root, as the container would see it."""
    attack = [symlink("out", link.format(decoy=decoy)), file("out/shadow", b"owned", mode=0o777)]
    (lower,) = unpacked(store, attack)
    inside = lower / str(decoy / "etc/shadow").lstrip("/") if link.startswith(("{", "..")) else None
    if inside is not None:
        assert inside.read_bytes() == b"owned"
    (twin,) = unpacked(store, [directory("real"), symlink("link", "real"), file("link/f", b"fine")])
    assert (twin / "real/f").read_bytes() == b"fine" and (twin / "link").is_symlink()


def test_a_chain_of_links_longer_than_path_max(store: Store, decoy: Path) -> None:
    """CVE-2025-4517: a link that the checker cannot resolve, because the path is too long for it."""
    component = "d" * 240
    items: list[Item] = []
    path = ""
    for step in "abcdefghijklmnop":
        items += [directory(f"{path}{component}"), symlink(f"{path}{step}", component)]
        path += f"{step}/"
    escape = path + "/".join([".."] * 40) + str(decoy)
    items += [
        symlink("escape", escape[:4000]),
        file("escape/etc/shadow", b"owned"),
        hardlink("flag", "escape/etc/shadow"),
    ]
    try:
        unpacked(store, items)
    except PycontainError as error:
        assert "entry " in error.message or "unpack entry" in error.message
    (twin,) = unpacked(store, [directory("a/b/c"), symlink("l", "a/b"), file("l/c/f", b"fine")])
    assert (twin / "a/b/c/f").read_bytes() == b"fine"


def test_a_loop_of_links_ends(store: Store, decoy: Path) -> None:
    message = refused(store, [symlink("a", "b"), symlink("b", "a"), file("a/f", b"x")])
    assert message == "entry 'a/f': more than 255 symbolic links on the way to 'a'"
    assert "lead too deep" in refused(store, [symlink("a", "a/" * 2000), file("a/f", b"x")])
    nothing_left(store)
    (twin,) = unpacked(store, [symlink("a", "b"), symlink("b", "a"), file("c/f", b"x")])
    assert os.readlink(twin / "a") == "b"


def test_links_do_not_lead_deeper_than_a_name_could(store: Store, decoy: Path) -> None:
    """Each name is short enough, but the directory behind it is deep: what is made must be removable."""
    deep = "/".join(["d"] * 250)
    items = [directory(deep), symlink("l", deep), file("l/" + "/".join(["e"] * 100), b"x")]
    assert refused(store, items).endswith(f"the symbolic links on the way to 'l{'/e' * 99}' lead too deep")
    nothing_left(store)
    (twin,) = unpacked(store, [directory(deep), symlink("l", deep), file("l/e/e", b"x")])
    assert (twin / deep / "e/e").read_bytes() == b"x"
    shutil.rmtree(twin)


def test_a_link_replaced_by_a_directory_and_back(store: Store, decoy: Path) -> None:
    """The path was checked as a directory, then it is a link."""
    (lower,) = unpacked(
        store,
        [
            directory("d"),
            file("d/f", b"1"),
            symlink("d", str(decoy / "etc")),
            file("d/shadow", b"owned"),
            directory("d/", mode=0o777),
            file("d/shadow", b"mine"),
        ],
    )
    assert (lower / "d").is_dir() and not (lower / "d").is_symlink()
    assert sorted(os.listdir(lower / "d")) == ["shadow"]


def test_directory_times_are_not_set_through_a_link(store: Store, decoy: Path) -> None:
    """CPython's CVE-2024-12718: metadata is applied at the end, when the name means something else."""
    (lower,) = unpacked(
        store, [directory("d", mtime_ns=1, mode=0o777, uid=7), directory("d/e", mtime_ns=1), symlink("d", str(decoy))]
    )
    assert (lower / "d").is_symlink()
    (twin,) = unpacked(store, [directory("d", mtime_ns=10**9), file("d/f"), directory("e", mtime_ns=2 * 10**9)])
    assert (twin / "d").stat().st_mtime == 1 and (twin / "e").stat().st_mtime == 2


def test_modes_and_owners_are_not_set_through_a_link(store: Store, decoy: Path) -> None:
    """CVE-2021-32760: chmod of the entry follows the link of the same name."""
    target = str(decoy / "etc" / "shadow")
    (lower,) = unpacked(
        store,
        [
            symlink("a", target, mode=0o777, uid=1000, gid=1000, mtime_ns=1),
            symlink("b", target, mode=0o6777),
            hardlink("c", "b"),
            file("a", b"new", mode=0o4777, uid=1000),
        ],
    )
    assert (lower / "a").read_bytes() == b"new" and stat.S_IMODE((lower / "a").stat().st_mode) == 0o4777
    assert os.readlink(lower / "c") == target


# Hard links


@pytest.mark.parametrize(
    ("link", "problem"),
    [
        ("{decoy}/etc/shadow", "the hard link's target '{decoy}/etc/shadow' is not there"),
        ("../../../decoy/etc/shadow", "the hard link's target has .. in its path"),
        ("/etc/passwd", "the hard link's target '/etc/passwd' is not there"),
        ("out/shadow", "the hard link's target 'out/shadow' is not there"),
        ("", "the hard link's target '' is not a file"),
        ("/", "the hard link's target '/' is not a file"),
        ("dir", "the hard link's target 'dir' is a directory"),
        ("link", "a hard link to itself"),
        ("dir/.wh.x", "the hard link's target 'dir/.wh.x' is not a file"),
    ],
)
def test_a_hard_link_to_a_file_of_the_host(store: Store, decoy: Path, link: str, problem: str) -> None:
    attack = [directory("dir"), symlink("out", str(decoy / "etc")), hardlink("link", link.format(decoy=decoy))]
    assert refused(store, [*attack, file("link", b"owned")]) == f"entry 'link': {problem.format(decoy=decoy)}"
    nothing_left(store)
    (twin,) = unpacked(store, [file("dir/f", b"x"), hardlink("/link", "/dir/f")])
    assert (twin / "link").stat().st_ino == (twin / "dir/f").stat().st_ino


def test_a_hard_link_to_a_symbolic_link_is_that_link(store: Store, decoy: Path) -> None:
    (lower,) = unpacked(store, [symlink("s", str(decoy / "etc/shadow")), hardlink("h", "s"), file("h2", b"")])
    assert (lower / "h").is_symlink() and os.lstat(lower / "h").st_nlink == 2


def test_writing_to_a_hard_link_replaces_it(store: Store, decoy: Path) -> None:
    """A later entry of the same name must not write into the inode of a lower layer's file."""
    lower, base = unpacked(
        store, [file("f", b"base", mtime_ns=5)], [hardlink("g", "f"), file("g", b"changed"), file("f", b"changed")]
    )
    assert (base / "f").read_bytes() == b"base"
    assert (lower / "g").read_bytes() == b"changed"


# Names


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("../decoy/etc/shadow", "has .. in its path"),
        ("a/../../decoy/etc/shadow", "has .. in its path"),
        ("/../x", "has .. in its path"),
        ("..", "has .. in its path"),
        ("a" * 256, "has a name of 256 bytes, more than 255"),
        ("a/" * 2048 + "b", "has 4097 bytes in its path, more than 4095"),
        ("a/" * 100_000 + "b", "has 200001 bytes in its path, more than 4095"),
        ("a/" * 300 + "b", "has 301 components in its path, more than 256"),
    ],
)
def test_names_that_lead_out_or_nowhere(store: Store, decoy: Path, name: str, problem: str) -> None:
    shown = name if len(name) <= 200 else name[:197] + "..."
    assert refused(store, [file(name, b"owned")]) == f"entry {shown!r}: {problem}"
    nothing_left(store)


def test_absolute_and_odd_names_stay_inside(store: Store, decoy: Path) -> None:
    names = [f"{decoy}/etc/shadow", "//etc//passwd", "./x/./y", "new\nline", "t\tab", "*", "-rf", "...", "a\\b"]
    (lower,) = unpacked(store, [file(name, b"own") for name in names] + [file(b"\xff\xfe", b"own")])
    for name in names:
        assert (lower / name.lstrip("/")).read_bytes() == b"own", name
    assert Path(os.fsdecode(os.fsencode(lower) + b"/\xff\xfe")).read_bytes() == b"own"


def test_the_longest_path_is_taken_and_collected_again(store: Store, decoy: Path) -> None:
    """255 components, 4095 bytes: below a store, that is more than PATH_MAX."""
    name = "/".join(["d" * 15] * 255) + "/" + "f" * 15
    assert len(name) == 4095
    unpacked(store, [file(name, b"deep")])
    store.gc([])
    nothing_left(store)


def test_a_name_with_a_nul_byte(store: Store, decoy: Path) -> None:
    pax = b"19 path=a\0../decoy\n"
    body = header(entry(b"x", data=pax)[0])
    body = body[:156] + b"x" + body[157:]
    body = body[:148] + b" " * 8 + body[156:]
    body = body[:148] + b"%06o\0 " % sum(body) + body[156:]
    attack = body + pax + bytes(-len(pax) % 512) + layer([file("f")])
    assert refused(store, attack).endswith(r"the name 'a\x00../decoy' has a NUL byte")
    nothing_left(store)


def test_sizes_that_two_programs_read_differently(store: Store, decoy: Path) -> None:
    """RUSTSEC-2025-0111 and after: a size that one reader skips and another ignores smuggles entries."""
    smuggled = header(file("etc/smuggled", b"")[0])
    attack = bytearray(header(symlink("l", "x")[0]))
    attack[124:136] = b"00000001000\0"
    attack[148:156] = b" " * 8
    attack[148:156] = b"%06o\0 " % sum(attack)
    assert refused(store, bytes(attack) + smuggled + END) == "entry 'l': a symbolic link with 512 bytes of data"
    nothing_left(store)


# Whiteouts


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        (file(".wh..."), "entry '.wh...': a whiteout of '..'"),
        (file(".wh.."), "entry '.wh..': a whiteout of '.'"),
        (file("a/.wh."), "entry 'a/.wh.': a whiteout of ''"),
        (file("../.wh.decoy"), "entry '../.wh.decoy': has .. in its path"),
        (file("a/../../.wh..wh..opq"), "entry 'a/../../.wh..wh..opq': has .. in its path"),
        (directory("a/.wh.b"), "entry 'a/.wh.b': a whiteout cannot be a directory"),
        (file(".wh.a/b"), None),
        (
            entry("c", "character device"),
            "entry 'c': a character device 0:0 is what overlayfs takes for a deleted file",
        ),
        (
            directory("a", xattrs={"trusted.overlay.redirect": b"/../decoy"}),
            "entry 'a': the attribute trusted.overlay.redirect is overlayfs' own",
        ),
        (
            file("a", xattrs={"trusted.overlay.metacopy": b""}),
            "entry 'a': the attribute trusted.overlay.metacopy is overlayfs' own",
        ),
    ],
)
def test_whiteouts_of_what_is_not_below(store: Store, decoy: Path, item: Item, problem: str | None) -> None:
    base = [file("keep", b"x"), file("a/b", b"x")]
    if problem is not None:
        assert refused(store, base, [item]) == problem
    else:
        unpacked(store, base, [item])
    top, _ = unpacked(store, base, [file(".wh.keep"), file("a/.wh.b")])
    for name in ("keep", "a/b"):
        found = os.lstat(top / name)
        assert stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def test_an_opaque_mark_outside_through_a_link(store: Store, decoy: Path) -> None:
    (lower,) = unpacked(store, [symlink("out", str(decoy)), file("out/.wh..wh..opq"), file("out/.wh.etc")])
    assert os.listxattr(decoy) == [] and (decoy / "etc").is_dir()
    assert os.listxattr(lower / str(decoy).lstrip("/")) == ["trusted.overlay.opaque"]


# Devices, set-id bits


def test_devices_are_the_images_own_and_nobody_reaches_them(store: Store, decoy: Path) -> None:
    """A device node is data of the image: the store's directories let nobody but root through."""
    items = [
        entry("dev/mem", "character device", mode=0o666, major=1, minor=1),
        entry("dev/disk", "block device", mode=0o666, major=8, minor=0),
        file("su", b"#!", mode=0o4755),
    ]
    (lower,) = unpacked(store, items)
    found = os.lstat(lower / "dev/mem")
    assert stat.S_ISCHR(found.st_mode) and found.st_rdev == os.makedev(1, 1) and stat.S_IMODE(found.st_mode) == 0o666
    assert stat.S_ISBLK(os.lstat(lower / "dev/disk").st_mode)
    assert stat.S_IMODE(os.lstat(lower / "su").st_mode) == 0o4755
    for path in (lower.parent, lower.parent.parent, lower.parent.parent.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert refused(store, [entry("d", "block device", major=1 << 13)]) == "entry 'd': there is no device 8192:0"


# Bombs


def repeated(start: bytes, piece: bytes, times: int) -> bytes:
    """A gzip stream of a piece many times over, packed once (its end, with the checksum, is missing)."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    result = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    return result + (packer.compress(piece) + packer.flush(zlib.Z_FULL_FLUSH)) * times


def test_gigabytes_of_zeros_in_a_small_gzip(store: Store, decoy: Path) -> None:
    bomb = repeated(header(entry("zeros", size=4 << 30)[0]), bytes(1 << 24), 256)
    assert len(bomb) < 5 << 20
    found = image(store, b"", diff_ids=["sha256:" + "0" * 64], compress=lambda _: bomb)
    with pytest.raises(PycontainError) as caught:
        ensure_layers(store, m.select(store, found))
    assert "entry 'zeros': " in caught.value.message
    assert "bytes of gzip became more than 107" in caught.value.message
    assert caught.value.message.endswith(", over 200 times as many")
    nothing_left(store)
    honest = bytes(32 << 20)
    (twin,) = unpacked(store, [file("zeros", honest)])
    assert (twin / "zeros").stat().st_size == len(honest)


def test_files_larger_together_than_the_limit(store: Store, decoy: Path) -> None:
    limits = Limits(total_bytes=1000)
    items = [file("a", b"x" * 600), file("b", b"x" * 401)]
    assert refused(store, items, limits=limits) == "entry 'b': the layer's files have more than 1000 bytes"
    nothing_left(store)
    unpacked(store, [file("a", b"x" * 600), file("b", b"x" * 400)], limits=limits)


def test_a_hole_counts_as_bytes(store: Store, decoy: Path) -> None:
    made, _ = entry("hole")
    records = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n37 GNU.sparse.realsize=1000000000000\n"
    pax = entry(b"p", data=records)[0]
    head = bytearray(header(pax))
    head[156:157] = b"x"
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    made.size = 512
    attack = bytes(head) + records + bytes(-len(records) % 512) + header(made) + b"0\n".ljust(512, b"\0") + END
    assert refused(store, attack) == "entry 'hole': the layer's files have more than 68719476736 bytes"


def test_a_million_entries(store: Store, decoy: Path) -> None:
    """More than the limit are refused; memory does not grow with them."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    attack = repeated(b"", header(directory("d")[0]) * 1000, 1010)
    limits = Limits(entries=100_000)
    found = image(store, b"", diff_ids=["sha256:" + "0" * 64], compress=lambda _: attack)
    with pytest.raises(PycontainError) as caught:
        ensure_layers(store, m.select(store, found), limits=limits)
    assert caught.value.message.endswith(": the layer has more than 100000 entries")
    nothing_left(store)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB
    unpacked(store, [file(str(number)) for number in range(1000)], limits=Limits(entries=1000))


def test_an_extended_header_of_gigabytes(store: Store, decoy: Path) -> None:
    """The header is refused by its size, before a byte of it is held."""
    head = bytearray(header(entry("p", size=2 << 30)[0]))
    head[156:157] = b"x"
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    assert refused(store, bytes(head)) == (
        "the tar archive is damaged near byte 512: an extended header has 2147483648 bytes, more than 1048576"
    )


# Duplicates, digests, damage


def test_a_later_entry_replaces_an_earlier_one(store: Store, decoy: Path) -> None:
    (lower,) = unpacked(
        store,
        [
            file("x", b"1", mode=0o4755, xattrs={"user.a": b"1"}),
            file("x", b"2", mode=0o600),
            directory("y"),
            file("y/inner", b"gone"),
            file("y", b"file"),
            file("z", b"file"),
            directory("z", mode=0o700, xattrs={"user.b": b"1"}),
            file("z/inner", b"kept"),
            directory("z", mode=0o711),
            symlink("s", "x"),
            file("s", b"not through the link"),
        ],
    )
    assert ((lower / "x").read_bytes(), stat.S_IMODE((lower / "x").stat().st_mode)) == (b"2", 0o600)
    assert os.listxattr(lower / "x") == []
    assert (lower / "y").read_bytes() == b"file"
    assert (lower / "z/inner").read_bytes() == b"kept"
    assert stat.S_IMODE((lower / "z").stat().st_mode) == 0o711 and os.listxattr(lower / "z") == []
    assert not (lower / "s").is_symlink()


def test_a_file_cannot_be_a_parent(store: Store, decoy: Path) -> None:
    assert refused(store, [file("f"), file("f/g")]) == "entry 'f/g': 'f' is not a directory"
    assert refused(store, [file("f")], [file("f/g")]) == "entry 'f/g': 'f' is not a directory"


def test_a_layer_that_is_not_what_the_config_names(store: Store, decoy: Path) -> None:
    wrong = "sha256:" + "0" * 64
    found = m.select(store, image(store, layer([file("f")]), diff_ids=[wrong]))
    with pytest.raises(PycontainError) as caught:
        ensure_layers(store, found)
    (blob,) = found.layers
    assert caught.value.message.startswith(f"layer {blob.digest} unpacks to sha256:")
    assert caught.value.message.endswith(f", the image's config names {wrong}")
    nothing_left(store)


@pytest.mark.parametrize(
    ("blob", "problem"),
    [
        (gzip.compress(layer([file("f", os.urandom(5000))]))[:-2000], "the gzip stream is damaged: "),
        (gzip.compress(layer([file("f", b"x")]))[:-6] + b"\0\0\0\0\0\0", "the gzip stream is damaged: "),
        (b"\x28\xb5\x2f\xfd" + b"garbage" * 10, "the zstd stream is damaged: "),
        (b"BZh91AY", "archives compressed with bzip2 are not supported"),
        (b"\xfd7zXZ\0\0", "archives compressed with xz are not supported"),
        (b"not a tar at all", "the tar archive is truncated"),
        (b"x" * 600, "the tar archive is damaged near byte 512: the checksum is not a number"),
    ],
)
def test_damaged_and_foreign_archives(store: Store, decoy: Path, blob: bytes, problem: str) -> None:
    found = image(store, b"", diff_ids=["sha256:" + "0" * 64], compress=lambda _: blob)
    with pytest.raises(PycontainError) as caught:
        ensure_layers(store, m.select(store, found))
    assert problem in caught.value.message and "\n" not in caught.value.message
    nothing_left(store)
