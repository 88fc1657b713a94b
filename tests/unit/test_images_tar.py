"""The tar reader and writer: the standard library is the witness for honest archives, dishonest ones are refused."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontain.images import tar
from pycontain.images.tar import Entry
from pycontain.runtime.errors import PycontainError


def archive(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    """As the standard library writes it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as file:
        for info, data in members:
            info.size = len(data) if info.isreg() else info.size
            file.addfile(info, io.BytesIO(data))
    return out.getvalue()


def member(name: str, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def read(data: bytes) -> list[tuple[Entry, bytes]]:
    reader = tar.Reader(io.BytesIO(data))
    return [(entry, b"".join(reader.data())) for entry in reader]


def raw(name: bytes, flag: bytes = b"0", data: bytes = b"", **fields: bytes) -> bytes:
    """A header with any bytes in its fields and a right checksum, with its data."""
    block = bytearray(tar.header(Entry(b"x", size=len(data))))
    places = {"mode": 100, "uid": 108, "gid": 116, "size": 124, "mtime": 136, "link": 157, "magic": 257, "prefix": 345}
    block[:100] = name.ljust(100, b"\0")
    block[156:157] = flag
    for key, value in fields.items():
        block[places[key] : places[key] + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data + bytes(-len(data) % 512)


def pax(*records: bytes, flag: bytes = b"x") -> bytes:
    body = b"".join(records)
    return raw(b"pax", flag, body)


def record(text: bytes) -> bytes:
    for length in range(len(text) + 3, len(text) + 12):
        line = b"%d %s\n" % (length, text)
        if len(line) == length:
            return line
    raise AssertionError


END = tar.END
FIELDS: dict[str, Callable[[tarfile.TarInfo], object]] = {
    "0": lambda info: info.size,
    "1": lambda info: info.linkname,
    "2": lambda info: info.linkname,
    "3": lambda info: (info.devmajor, info.devminor),
    "4": lambda info: (info.devmajor, info.devminor),
}

names = st.from_regex(r"[^\0/\ud800-\udfff]{1,40}(/[^\0/\ud800-\udfff]{1,60}){0,5}", fullmatch=True)


@given(
    names,
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.integers(0, 2**32 - 2),
    st.integers(0, 2**33),
    st.binary(max_size=2000),
    names,
)
def test_reads_what_the_standard_library_writes(
    name: str, format: int, uid: int, mtime: int, data: bytes, link: str
) -> None:
    made = archive(
        (member(name, uid=uid, mtime=mtime, mode=0o4755), data),
        (member("l", type=b"2", linkname=link), b""),
        (member("h", type=b"1", linkname=name), b""),
        (member("d", type=b"5", mode=0o1777), b""),
        (member("c", type=b"3", devmajor=1, devminor=3), b""),
        format=format,
    )
    (file, content), (symbolic, _), (hard, _), (directory, _), (device, _) = read(made)
    assert (file.name, file.kind, file.uid, file.mtime_ns) == (name.encode(), "file", uid, mtime * 10**9)
    assert (file.mode, content, file.size) == (0o4755, data, len(data))
    assert (symbolic.kind, symbolic.link) == ("symbolic link", link.encode())
    assert (hard.kind, hard.link) == ("hard link", name.encode())
    assert (directory.kind, directory.mode) == ("directory", 0o1777)
    assert (device.kind, device.major, device.minor) == ("character device", 1, 3)


@given(
    names,
    st.integers(0, 2**32 - 2),
    st.integers(-(10**18), 10**19),
    st.dictionaries(st.sampled_from(["user.a", "user.b", "security.capability"]), st.binary(max_size=50)),
    names,
)
def test_the_standard_library_reads_what_is_written(
    name: str, uid: int, mtime_ns: int, xattrs: dict[str, bytes], link: str
) -> None:
    entry = Entry(name.encode(), "symbolic link", mode=0o777)
    entry.uid, entry.gid, entry.mtime_ns, entry.xattrs, entry.link = uid, uid, mtime_ns, xattrs, link.encode()
    data = tar.header(entry)
    assert data == tar.header(entry)
    ((mine, _),) = read(data + END)
    for slot in ("name", "kind", "uid", "gid", "mtime_ns", "xattrs", "link", "mode"):
        assert getattr(mine, slot) == getattr(entry, slot), slot
    with tarfile.open(fileobj=io.BytesIO(data + END)) as file:
        (info,) = file.getmembers()
    assert (info.name, info.linkname, info.uid) == (name, link, uid)
    assert abs(info.mtime - mtime_ns / 10**9) < 2e-6 * max(1, abs(info.mtime))


def test_bytes_that_are_no_text_survive(tmp_path: Path) -> None:
    entry = Entry(b"\xff\xfe/" + b"a" * 120, size=0)
    assert read(tar.header(entry) + END)[0][0].name == entry.name


@pytest.mark.parametrize("format", ["gnu", "oldgnu", "posix"])
def test_reads_the_sparse_files_of_gnu_tar(tmp_path: Path, format: str) -> None:
    if shutil.which("tar") is None:
        pytest.fail("GNU tar is missing")
    data = bytearray(1 << 20)
    for offset in (0, 65536, 300_000, 400_000, 500_000, 600_000, 700_000):
        data[offset : offset + 3] = b"abc"
    with open(tmp_path / "f", "wb") as file:
        for offset in (0, 65536, 300_000, 400_000, 500_000, 600_000, 700_000):
            file.seek(offset)
            file.write(b"abc")
        file.truncate(1 << 20)
    (tmp_path / "after").write_bytes(b"after")
    made = subprocess.run(
        ["tar", "-c", "-S", f"--format={format}", "-C", str(tmp_path), "f", "after"], check=True, capture_output=True
    ).stdout
    assert len(made) < 1 << 19
    (entry, stored), (after, content) = read(made)
    assert (entry.name, entry.size) == (b"f", 1 << 20)
    rebuilt = bytearray(1 << 20)
    position = 0
    assert entry.extents
    for offset, length in entry.extents:
        rebuilt[offset : offset + length] = stored[position : position + length]
        position += length
    assert rebuilt == data
    assert (after.name, content) == (b"after", b"after")


def test_what_is_not_asked_for_is_skipped() -> None:
    made = archive((member("a"), b"x" * 1000), (member("b"), b"y"))
    assert [entry.name for entry in tar.Reader(io.BytesIO(made))] == [b"a", b"b"]


@pytest.mark.parametrize(
    ("data", "complete"), [(raw(b"a") + END, True), (raw(b"a"), False), (b"", False), (raw(b"a") + bytes(512), True)]
)
def test_the_end_marker_is_seen(data: bytes, complete: bool) -> None:
    reader = tar.Reader(io.BytesIO(data))
    list(reader)
    assert reader.complete is complete


HUGE = b"\x80" + b"\xff" * 11
DAMAGED = "the tar archive is damaged near byte "


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (raw(b"a")[:300], "the tar archive is truncated"),
        (raw(b"a", data=b"x" * 600)[:1100], "the tar archive is truncated"),
        (raw(b"a", data=b"x" * 600)[:-1], "the tar archive is truncated"),
        (raw(b"a") + b"garbage!" * 64, DAMAGED + "1024: the checksum is not a number"),
        (raw(b"a")[:-1] + b"x", DAMAGED + "512: the header's checksum is wrong"),
        (raw(b"a") + bytes(512) + raw(b"b"), DAMAGED + "1024: there is content after the end marker"),
        (raw(b"a", size=b"\xff" * 12), DAMAGED + "512: the size is negative or too large"),
        (raw(b"a", size=b"-0000000010\0"), DAMAGED + "512: the size is not a number"),
        (raw(b"a", size=b"0_0000000010"), DAMAGED + "512: the size is not a number"),
        (raw(b"a", size=b"00000000018\0"), DAMAGED + "512: the size is not a number"),
        (raw(b"a", uid=b"\x80\0\0\0\xff\xff\xff\xff"), DAMAGED + "512: the uid 4294967295 is more than 4294967294"),
        (raw(b"a", mtime=HUGE), DAMAGED + "512: the mtime is too far away"),
        (raw(b"a", b"V"), DAMAGED + "512: entries of type 'V' are not supported"),
        (raw(b"l", b"2", size=b"00000000010\0"), "entry 'l': a symbolic link with 8 bytes of data"),
        (raw(b"d/", b"5", size=b"00000000010\0"), "entry 'd/': a directory with 8 bytes of data"),
        (raw(b"f/"), "entry 'f/': a file whose name ends in a slash"),
        (pax(record(b"size=5")) + raw(b"l", b"1"), "entry 'l': a hard link with 5 bytes of data"),
        (pax(record(b"size=-5")) + raw(b"l"), DAMAGED + "1536: the size of a pax header is not a number"),
        (pax(record(b"path=a\0b")) + raw(b"l"), DAMAGED + "1536: the name 'a\\x00b' has a NUL byte"),
        (pax(record(b"linkpath=a\0b")) + raw(b"l", b"2"), DAMAGED + "1536: the name 'l' has a NUL byte"),
        (pax(b"9999 path=x\n") + raw(b"l"), DAMAGED + "1024: a pax header is damaged"),
        (pax(b"5 a=b\n") + raw(b"l"), DAMAGED + "1024: a pax header is damaged"),
        (pax(b"0 a=b\n") + raw(b"l"), DAMAGED + "1024: a pax header is damaged"),
        (pax(b"x") + raw(b"l"), DAMAGED + "1024: a pax header is damaged"),
        (pax(record(b"mtime=now")) + raw(b"l"), DAMAGED + "1536: the mtime of a pax header is not a number"),
        (pax(record(b"uid=4294967295")) + raw(b"l"), DAMAGED + "1536: the uid 4294967295 is more than 4294967294"),
        (pax(record(b"a=b")) * 2 + raw(b"l"), DAMAGED + "1536: two pax headers for one entry"),
        (pax(record(b"a=b")), DAMAGED + "1536: an extended header is not followed by an entry"),
        (pax(record(b"size=0"), flag=b"g") + raw(b"l"), DAMAGED + "1024: a global pax header sets 'size'"),
        (pax(record(b"a=b")) + raw(b"L", b"L", b"x") + raw(b"l"), DAMAGED + "1536: a GNU long name after a pax header"),
        (raw(b"L", b"L", b"x") * 2 + raw(b"l"), DAMAGED + "1536: two GNU long names for one entry"),
        (
            raw(b"L", b"L", b"x") + pax(record(b"path=y")) + raw(b"l"),
            DAMAGED + "2560: two different names for one entry, 'x' and 'y'",
        ),
        (
            raw(b"L", b"L", size=b"00777777777\0"),
            DAMAGED + "512: an extended header has 134217727 bytes, more than 1048576",
        ),
        (raw(b"x", b"x", size=HUGE), DAMAGED + f"512: an extended header has {2**88 - 1} bytes, more than 1048576"),
        (pax(record(b"GNU.sparse.offset=0")) + raw(b"l"), DAMAGED + "1024: GNU's sparse format 0.0 is not supported"),
        (
            pax(record(b"GNU.sparse.map=0,9"), record(b"GNU.sparse.size=9")) + raw(b"l", data=b"123"),
            "entry 'l': its sparse map does not fit its size",
        ),
        (
            pax(record(b"GNU.sparse.map=5,1,0,2"), record(b"GNU.sparse.size=9")) + raw(b"l", data=b"123"),
            "entry 'l': its sparse map is not in order",
        ),
        (
            pax(record(b"GNU.sparse.major=1"), record(b"GNU.sparse.minor=0"), record(b"GNU.sparse.realsize=9"))
            + raw(b"l", data=b"1\n"),
            "entry 'l': its sparse map is damaged",
        ),
        (pax(record(b"GNU.sparse.major=2")) + raw(b"l"), "entry 'l': this sparse format is not supported"),
    ],
)
def test_a_dishonest_archive_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(PycontainError) as caught:
        read(data if "truncated" in message else data + END)
    assert caught.value.message == message


def test_a_size_of_nearly_everything_is_not_believed() -> None:
    with pytest.raises(PycontainError, match=r"^the tar archive is truncated$"):
        read(raw(b"a", size=b"\x80" + b"\0" * 3 + b"\x7f" + b"\xff" * 7) + END)


@given(st.binary(max_size=3000), st.integers(0, 2000), st.integers(0, 255))
def test_damage_is_an_error_or_nothing(extra: bytes, place: int, value: int) -> None:
    made = bytearray(
        archive((member("a" * 150, pax_headers={"SCHILY.xattr.user.a": "b"}), b"data"), (member("b"), b"")) + extra
    )
    made[place] = value
    try:
        read(bytes(made))
    except PycontainError as error:
        assert "\n" not in error.message
