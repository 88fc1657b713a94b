"""Streams in and out of gzip and zstd, told apart by their magic, and bounded: a small file may hold a large one."""

from __future__ import annotations

import io
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from pycontain.images.descriptor import new_hash
from pycontain.runtime.errors import PycontainError, Unsupported

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_BUFFER = 1 << 20
_CHUNK = 1 << 18
_ZSTD_WINDOW = 27  # log2 of the bytes of history, the most that the zstd tool takes without being asked
_REFUSED = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"LZIP": "lzip", b"\x04\x22\x4d\x18": "lz4", b"PK\3\4": "zip"}


class Source(Protocol):
    """A byte stream: `read` gives at most so many bytes, none at the end."""

    def read(self, size: int, /) -> bytes: ...


class Limits(NamedTuple):
    """What an archive may make of itself. The defaults let every honest image through."""

    total_bytes: int = 64 << 30  # of all files together, holes included
    entries: int = 2_000_000
    path_bytes: int = 4095  # PATH_MAX without its NUL: nothing longer can be opened
    path_components: int = 256
    ratio: int = 200  # uncompressed to compressed, looked at only beyond ...
    ratio_floor: int = 1 << 30  # ... this many uncompressed bytes


class _Count(io.RawIOBase):
    """What was read of the compressed stream."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.size = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        data = self._source.read(len(view))
        view[: len(data)] = data
        self.size += len(data)
        return len(data)


class Plain(io.RawIOBase):
    """The uncompressed stream: hashes what is read (sha256), and refuses a bomb. Wrap it in a BufferedReader."""

    def __init__(self, source: Source, limits: Limits) -> None:
        self._count = _Count(source)
        self._limits = limits
        self._hash = new_hash("sha256")
        self.size = 0
        buffered = io.BufferedReader(self._count, _BUFFER)
        self.compression, self._stream = _decompress(buffered)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        try:
            size = self._stream.readinto(view)
        except OSError as error:
            if error.errno is not None:
                raise
            raise self._damaged(error) from None
        except (EOFError, ValueError) as error:
            raise self._damaged(error) from None
        except Exception as error:
            if type(error).__name__ not in ("error", "IsalError", "ZstdError"):  # their modules are loaded on demand
                raise
            raise self._damaged(error) from None
        self._hash.update(view[:size])
        self.size += size
        limits = self._limits
        if self.size > limits.ratio_floor and self.size > limits.ratio * self._count.size:
            raise PycontainError(
                f"{self._count.size} bytes of {self.compression} became more than {self.size}, "
                f"over {limits.ratio} times as many"
            )
        return size

    @property
    def diff_id(self) -> str:
        """The digest of everything read so far."""
        return "sha256:" + self._hash.hexdigest()

    def drain(self) -> None:
        """Read to the end: padding after a tar belongs to its digest."""
        buffer = bytearray(_CHUNK)
        while self.readinto(buffer):
            pass

    def _damaged(self, error: Exception) -> PycontainError:
        text = str(error).lower().rstrip(".") or type(error).__name__
        return PycontainError(f"the {self.compression} stream is damaged: {text}")


class _Reads(Protocol):
    def readinto(self, buffer: memoryview, /) -> int: ...


def _decompress(source: io.BufferedReader[Any]) -> tuple[str, _Reads]:
    magic = source.peek(8)[:8]
    if magic.startswith(b"\x1f\x8b"):
        return "gzip", _gunzip(source)
    if magic.startswith(b"\x28\xb5\x2f\xfd") or (magic[1:4] == b"\x2a\x4d\x18" and magic[0] & 0xF0 == 0x50):
        return "zstd", _unzstd(source)
    for start, name in _REFUSED.items():
        if magic.startswith(start):
            raise Unsupported(f"archives compressed with {name} are not supported", hint=f"uncompress it with {name}")
    return "tar", cast("_Reads", source)


def _gunzip(source: IO[bytes]) -> _Reads:
    try:
        from isal.igzip import IGzipFile
    except ImportError:  # no wheel for this machine: half as fast (15 and 31 ms for Alpine's 8 MB)
        from gzip import GzipFile

        return cast("_Reads", GzipFile(fileobj=source, mode="rb"))
    return cast("_Reads", IGzipFile(fileobj=source, mode="rb"))  # type: ignore[no-untyped-call]


def _unzstd(source: IO[bytes]) -> _Reads:
    try:
        from zstandard import ZstdDecompressor
    except ImportError:
        try:
            from compression import zstd  # type: ignore[import-not-found]  # Python 3.14
        except ImportError:
            raise Unsupported("archives compressed with zstd need a module", hint="pip install zstandard") from None
        options = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW}
        return cast("_Reads", zstd.ZstdFile(source, "rb", options=options))
    decompressor = ZstdDecompressor(max_window_size=1 << _ZSTD_WINDOW)
    return cast("_Reads", decompressor.stream_reader(source, read_across_frames=True))
