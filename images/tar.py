"""Tar as layers use it: a strict reader of a stream, and a deterministic writer (ustar, pax, GNU's extensions).

Not the standard ``tarfile``, because as of Python 3.11 it takes a damaged or truncated header for the end of the
archive, holds an extended header of any size in memory and keeps every member it has seen, and a negative size sends
it back into what it has read (CVE-2025-8194); in our tests it is the witness that both sides agree on honest archives.
Where two programs could read one archive differently (a size on an entry that has no data, an extended header that is
followed by another of its kind), this reader refuses it: layers are scanned by one program and run by another.
"""

from __future__ import annotations

import os

from pycontain.runtime.errors import PycontainError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    class Readable(Protocol):
        """What a tar is read from: bytes, none at the end."""

        def read(self, size: int, /) -> bytes: ...


BLOCK = 512
MAX_EXTENDED = 1 << 20  # bytes of one extended header
MAX_EXTENTS = 100_000  # pieces of one sparse file
MAX_ID = 2**32 - 2  # 2**32 - 1 means "leave as it is" to chown(2)
MAX_TIME = 10**12  # seconds either side of 1970
_CHUNK = 1 << 18
_ZERO = bytes(BLOCK)
_XATTR = b"SCHILY.xattr."
_SPARSE = b"GNU.sparse."
_KINDS = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"S": "file",
    b"1": "hard link",
    b"2": "symbolic link",
    b"3": "character device",
    b"4": "block device",
    b"5": "directory",
    b"6": "fifo",
}
_TYPES = {kind: flag for flag, kind in _KINDS.items() if flag not in (b"\0", b"7", b"S")}


class Entry:
    """One member. ``size`` is the file's length; with ``extents``, its data are these (offset, length) pieces."""

    __slots__ = (
        "extents",
        "gid",
        "kind",
        "link",
        "major",
        "minor",
        "mode",
        "mtime_ns",
        "name",
        "size",
        "stored",
        "uid",
        "xattrs",
    )

    def __init__(self, name: bytes, kind: str = "file", *, mode: int = 0o644, size: int = 0) -> None:
        self.name = name
        self.kind = kind
        self.mode = mode
        self.uid = 0
        self.gid = 0
        self.size = size
        self.stored = size
        self.mtime_ns = 0
        self.link = b""
        self.major = 0
        self.minor = 0
        self.xattrs: dict[str, bytes] = {}
        self.extents: list[tuple[int, int]] | None = None


def shown(name: bytes) -> str:
    """A name for a message: quoted, on one line, and not endless."""
    return repr(os.fsdecode(name if len(name) <= 200 else name[:197] + b"..."))


class Reader:
    """Iterates over the entries of a stream; `data` gives the current one's bytes, what is not asked for is skipped.

    ``complete`` is true after the end marker was seen (a stream may also just end between two entries, as Go's tar
    takes it). Raises PycontainError for everything malformed.
    """

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._left = 0  # bytes of the current entry's data not yet read
        self._padding = 0
        self._position = 0
        self.complete = False

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self._next()) is not None:
            yield entry

    def data(self) -> Iterator[bytes]:
        """The stored bytes of the current entry, in pieces."""
        while self._left:
            piece = self._stream.read(min(self._left, _CHUNK))
            if not piece:
                raise self._truncated()
            self._left -= len(piece)
            self._position += len(piece)
            yield piece

    def _next(self) -> Entry | None:
        self._skip()
        long_name = long_link = None
        pax: dict[bytes, bytes] | None = None
        while True:
            header = self._header()
            if header is None:
                if pax is not None or long_name is not None or long_link is not None:
                    raise self._bad("an extended header is not followed by an entry")
                return None
            flag = header[156:157]
            if flag in (b"L", b"K"):
                if pax is not None:
                    raise self._bad("a GNU long name after a pax header")
                if (long_name if flag == b"L" else long_link) is not None:
                    raise self._bad("two GNU long names for one entry")
                text = self._extended(header).partition(b"\0")[0]
                long_name, long_link = (text, long_link) if flag == b"L" else (long_name, text)
            elif flag == b"x":
                if pax is not None:
                    raise self._bad("two pax headers for one entry")
                pax = self._pax(self._extended(header))
            elif flag == b"g":
                for key in self._pax(self._extended(header)):
                    if key in (b"path", b"linkpath", b"size") or key.startswith(_SPARSE):
                        raise self._bad(f"a global pax header sets {shown(key)}")
            else:
                return self._entry(header, pax or {}, long_name, long_link)

    def _entry(self, header: bytes, pax: dict[bytes, bytes], long_name: bytes | None, long_link: bytes | None) -> Entry:
        flag = header[156:157]
        kind = _KINDS.get(flag)
        if kind is None:
            raise self._bad(f"entries of type {flag.decode('latin-1')!r} are not supported")
        name = header[:100].partition(b"\0")[0]
        posix = header[257:263] == b"ustar\0"
        if posix and header[345] and flag != b"S":
            name = header[345:500].partition(b"\0")[0] + b"/" + name
        name = self._either(name, long_name, pax.get(b"path"))
        if flag == b"\0" and name.endswith(b"/"):
            kind = "directory"
        entry = Entry(name, kind)
        entry.link = self._either(header[157:257].partition(b"\0")[0], long_link, pax.get(b"linkpath"))
        if b"\0" in entry.name or b"\0" in entry.link:
            raise self._bad(f"the name {shown(entry.name)} has a NUL byte")
        entry.mode = self._number(header[100:108], "mode") & 0o7777
        entry.uid = self._id(header[108:116], pax.get(b"uid"), "uid")
        entry.gid = self._id(header[116:124], pax.get(b"gid"), "gid")
        entry.mtime_ns = self._time(header[136:148], pax.get(b"mtime"))
        entry.size = self._number(header[124:136], "size")
        if b"size" in pax:
            entry.size = self._decimal(pax[b"size"], "size")
        if kind in ("character device", "block device"):
            entry.major = self._number(header[329:337], "major number")
            entry.minor = self._number(header[337:345], "minor number")
        entry.xattrs = {os.fsdecode(key[len(_XATTR) :]): value for key, value in pax.items() if key.startswith(_XATTR)}
        entry.stored = entry.size
        if kind != "file" and entry.size:
            raise PycontainError(f"entry {shown(entry.name)}: a {kind} with {entry.size} bytes of data")
        if kind == "file" and name.endswith(b"/"):
            raise PycontainError(f"entry {shown(entry.name)}: a file whose name ends in a slash")
        self._left = entry.stored
        self._padding = -entry.stored % BLOCK
        if flag == b"S":
            self._old_sparse(entry, header)
        elif any(key.startswith(_SPARSE) for key in pax):
            self._pax_sparse(entry, pax)
        return entry

    def _either(self, plain: bytes, long: bytes | None, pax: bytes | None) -> bytes:
        if long is not None and pax is not None and long != pax:
            raise self._bad(f"two different names for one entry, {shown(long)} and {shown(pax)}")
        return long if long is not None else pax if pax is not None else plain

    # Sparse files: GNU tar's manual, "Storing Sparse Files"

    def _old_sparse(self, entry: Entry, header: bytes) -> None:
        numbers: list[int] = []
        block, count, more, real = header[386:482], 4, header[482], self._number(header[483:495], "real size")
        while True:
            for index in range(count):
                piece = block[index * 24 : index * 24 + 24]
                if piece[0]:
                    numbers += [self._number(piece[:12], "offset"), self._number(piece[12:], "length")]
            if not more:
                break
            block, count = self._exactly(BLOCK), 21
            more = block[504]
            if len(numbers) > 2 * MAX_EXTENTS:
                break
        self._extents(entry, numbers, real)

    def _pax_sparse(self, entry: Entry, pax: dict[bytes, bytes]) -> None:
        def get(key: bytes) -> bytes | None:
            return pax.get(_SPARSE + key)

        version = (get(b"major"), get(b"minor"))
        if entry.kind != "file":
            raise PycontainError(f"entry {shown(entry.name)}: a {entry.kind} with a sparse map")
        real = get(b"realsize") or get(b"size")
        if real is None or (version != (b"1", b"0") and get(b"map") is None):
            raise PycontainError(f"entry {shown(entry.name)}: this sparse format is not supported")
        name = get(b"name")
        if name is not None:
            if b"\0" in name:
                raise self._bad(f"the name {shown(name)} has a NUL byte")
            entry.name = name
        if version == (b"1", b"0"):
            numbers: list[int] = self._sparse_map(entry)
        else:
            texts = (get(b"map") or b"").split(b",")
            numbers = [self._decimal(text, "sparse map") for text in texts if text]
        self._extents(entry, numbers, self._decimal(real, "real size"))

    def _sparse_map(self, entry: Entry) -> list[int]:
        """Format 1.0: a count, then offsets and lengths, each on a line, filling blocks before the data."""
        text, wanted = b"", 1
        numbers: list[int] = []
        while len(numbers) < wanted:
            while b"\n" not in text:
                if self._left < BLOCK or len(text) > BLOCK:
                    raise PycontainError(f"entry {shown(entry.name)}: its sparse map is damaged")
                text += self._exactly(BLOCK)
                self._left -= BLOCK
                entry.stored -= BLOCK
            line, _, text = text.partition(b"\n")
            numbers.append(self._decimal(line, "sparse map"))
            if len(numbers) == 1:
                wanted = 1 + 2 * min(numbers[0], MAX_EXTENTS + 1)
        return numbers[1:]

    def _extents(self, entry: Entry, numbers: list[int], real: int) -> None:
        if len(numbers) % 2 or len(numbers) > 2 * MAX_EXTENTS:
            raise PycontainError(f"entry {shown(entry.name)}: its sparse map is damaged, or has too many pieces")
        extents = list(zip(numbers[::2], numbers[1::2], strict=True))
        end = 0
        for offset, length in extents:
            if offset < end:
                raise PycontainError(f"entry {shown(entry.name)}: its sparse map is not in order")
            end = offset + length
        if end > real or sum(length for _, length in extents) != entry.stored:
            raise PycontainError(f"entry {shown(entry.name)}: its sparse map does not fit its size")
        entry.extents = extents
        entry.size = real

    # Fields

    def _header(self) -> bytes | None:
        first = self._stream.read(BLOCK)
        if not first:
            return None
        header = first if len(first) == BLOCK else first + self._rest(BLOCK - len(first))
        self._position += BLOCK
        if header == _ZERO:
            second = self._stream.read(BLOCK)
            if second.strip(b"\0"):
                raise self._bad("there is content after the end marker")
            self.complete = True
            return None
        plain = sum(header) - sum(header[148:156]) + 8 * 32
        if self._number(header[148:156], "checksum") != plain:
            raise self._bad("the header's checksum is wrong")
        return header

    def _extended(self, header: bytes) -> bytes:
        size = self._number(header[124:136], "size")
        if size > MAX_EXTENDED:
            raise self._bad(f"an extended header has {size} bytes, more than {MAX_EXTENDED}")
        return self._exactly(size + -size % BLOCK)[:size]

    def _pax(self, data: bytes) -> dict[bytes, bytes]:
        """Records ``<length> <key>=<value>\\n``; the length counts all of it. An empty value takes the key back."""
        result: dict[bytes, bytes] = {}
        position = 0
        while position < len(data):
            space = data.find(b" ", position, position + 12)
            digits = data[position:space] if space > 0 else b""
            end = position + int(digits) if digits.isdigit() else 0
            key, equals, value = data[space + 1 : end - 1].partition(b"=")
            if end <= space or end > len(data) or data[end - 1 : end] != b"\n" or not equals or not key:
                raise self._bad("a pax header is damaged")
            if key in (_SPARSE + b"offset", _SPARSE + b"numbytes"):
                raise self._bad("GNU's sparse format 0.0 is not supported")
            if value or key.startswith(_XATTR):
                result[key] = value
            else:
                result.pop(key, None)
            position = end
        return result

    def _number(self, field: bytes, what: str) -> int:
        """Octal digits, or with the high bit set GNU's base 256."""
        if field[0] & 0x80:
            if field[0] != 0x80:
                raise self._bad(f"the {what} is negative or too large")
            return int.from_bytes(field[1:], "big")
        digits = field.partition(b"\0")[0].strip(b" ")
        if not digits:
            return 0
        if not digits.isdigit() or b"8" in digits or b"9" in digits:
            raise self._bad(f"the {what} is not a number")
        return int(digits, 8)

    def _decimal(self, text: bytes, what: str) -> int:
        if not text.isdigit() or len(text) > 19:
            raise self._bad(f"the {what} of a pax header is not a number")
        return int(text)

    def _id(self, field: bytes, pax: bytes | None, what: str) -> int:
        number = self._number(field, what) if pax is None else self._decimal(pax, what)
        if number > MAX_ID:
            raise self._bad(f"the {what} {number} is more than {MAX_ID}")
        return number

    def _time(self, field: bytes, pax: bytes | None) -> int:
        if pax is None:
            if field[0] == 0xFF:  # before 1970
                result = int.from_bytes(field, "big", signed=True) * 10**9
            else:
                result = self._number(field, "mtime") * 10**9
        else:
            whole, _, fraction = pax.removeprefix(b"-").partition(b".")
            if not whole.isdigit() or len(whole) > 15 or (fraction and not fraction.isdigit()):
                raise self._bad("the mtime of a pax header is not a number")
            result = int(whole) * 10**9 + int(fraction[:9].ljust(9, b"0"))
            if pax.startswith(b"-"):
                result = -result
        if abs(result) > MAX_TIME * 10**9:
            raise self._bad("the mtime is too far away")
        return result

    # Bytes

    def _skip(self) -> None:
        for _ in self.data():
            pass
        if self._padding:
            self._exactly(self._padding)
            self._padding = 0

    def _exactly(self, size: int) -> bytes:
        data = self._rest(size)
        self._position += size
        return data

    def _rest(self, size: int) -> bytes:
        pieces = []
        while size:
            piece = self._stream.read(size)
            if not piece:
                raise self._truncated()
            pieces.append(piece)
            size -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _truncated(self) -> PycontainError:
        return PycontainError("the tar archive is truncated")

    def _bad(self, problem: str) -> PycontainError:
        return PycontainError(f"the tar archive is damaged near byte {self._position}: {problem}")


def header(entry: Entry) -> bytes:
    """The header blocks of an entry, the same bytes for the same entry; data and padding follow it."""
    pax: dict[bytes, bytes] = {}
    name, link = entry.name, entry.link
    if len(name) > 100 or not name.isascii():
        pax[b"path"] = name
        name = name[:100] if name.isascii() else b"pax-entry"
    if len(link) > 100 or not link.isascii():
        pax[b"linkpath"] = link
        link = link[:100] if link.isascii() else b"pax-link"
    for key, number, width in ((b"uid", entry.uid, 7), (b"gid", entry.gid, 7), (b"size", entry.size, 11)):
        if number >= 8**width:
            pax[key] = b"%d" % number
    seconds, fraction = divmod(entry.mtime_ns, 10**9)
    if fraction or not 0 <= seconds < 8**11:
        sign, (whole, part) = ("-" if entry.mtime_ns < 0 else ""), divmod(abs(entry.mtime_ns), 10**9)
        pax[b"mtime"] = f"{sign}{whole}.{part:09}".rstrip("0").rstrip(".").encode()
    for key_text, value in entry.xattrs.items():
        pax[_XATTR + os.fsencode(key_text)] = value
    result = b""
    if pax:
        records = b"".join(_record(key, pax[key]) for key in sorted(pax))
        extended = Entry(b"PaxHeaders/" + name[-80:].lstrip(b"/"), mode=0o644, size=len(records))
        result = _block(extended, extended.name, b"", b"x") + records + bytes(-len(records) % BLOCK)
    return result + _block(entry, name, link, _TYPES[entry.kind])


def _record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 1
    while length != len(body) + len(str(length)):
        length = len(body) + len(str(length))
    return str(length).encode() + body


def _block(entry: Entry, name: bytes, link: bytes, flag: bytes) -> bytes:
    seconds = entry.mtime_ns // 10**9

    def octal(number: int, width: int) -> bytes:
        return b"%0*o\0" % (width, number if 0 <= number < 8**width else 0)

    block = b"".join(
        (
            name.ljust(100, b"\0"),
            octal(entry.mode, 7),
            octal(entry.uid, 7),
            octal(entry.gid, 7),
            octal(entry.size, 11),
            octal(seconds, 11),
            b" " * 8,
            flag,
            link.ljust(100, b"\0"),
            b"ustar\00000",
            bytes(64),
            octal(entry.major, 7),
            octal(entry.minor, 7),
            bytes(167),
        )
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


END = bytes(2 * BLOCK)
