"""Read and follow the logs that the supervisor writes.

The format is Kubernetes' CRI log format, one record per line: ``TIME STREAM F|P DATA``. TIME is RFC 3339 with
nanoseconds in UTC. P says that DATA is a part of a longer line, which the stream's next record continues. A log is the
files ``path``, ``path.1`` (older), ``path.2``...; the supervisor renames them while we read.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pycontain.runtime.errors import KernelError, PycontainError

_CHUNK = 65536
# The supervisor writes at most 16384 bytes of data in a record; what is longer is not a record.
_LONGEST = 20000


@dataclass(frozen=True, slots=True)
class Record:
    """One record: ``stream`` is "stdout" or "stderr"; ``data`` has its newline unless it is ``partial``."""

    time: str
    stream: str
    partial: bool
    data: bytes


def read(path: str, *, tail: int | None = None, since: str | None = None) -> Iterator[Record]:
    """The log as it is now, oldest record first; nothing where there is no log.

    ``tail``: the last so many lines only (a line and all of its parts count once). ``since``: as `parse_since`
    returns it. What is not a record (a torn last line after a crash) is skipped. Raises KernelError.
    """
    yield from _select(_records(_open_all(path)), tail, since)


def follow(
    path: str,
    *,
    ended: Callable[[], bool],
    tail: int | None = None,
    since: str | None = None,
    interval: float = 0.1,
) -> Iterator[Record]:
    """`read`, and then what is added, across rotations, until ``ended()`` and everything has been read.

    The log is looked at every ``interval`` seconds. A reader that falls behind by more than all of the log's files
    misses what has been deleted meanwhile, and goes on with the oldest record there is.
    """
    files = _open_all(path)
    current = files.pop() if files else None
    rest = b""
    try:
        older = _records(files)
        if current is None:
            yield from _select(older, tail, since)
        else:
            # The newest file's last line may be in the making: what follows its last newline is kept for later.
            data, rest = _complete(_read_on(current))
            yield from _select(_chain(older, data), tail, since)
        while True:
            over = ended()  # before reading: what it wrote before its end is then read below
            if current is None:
                opened = _open_all(path)
                current = opened.pop(0) if opened else None
                _close(opened)
            data = b"" if current is None else _read_on(current)
            lines, rest = _complete(rest + data)
            yield from _select(_parse(lines), None, since)
            if current is not None:
                newer = _successor(path, current)
                if newer is not None:
                    # It was renamed, so nothing is added any more; one last look, then on to the next.
                    lines, _ = _complete(rest + _read_on(current))
                    os.close(current)
                    current, rest = newer, b""
                    yield from _select(_parse(lines), None, since)
                    continue
            if over:
                return
            if not data:
                time.sleep(interval)
    finally:
        _close([] if current is None else [current])
        _close(files)


def write(records: Iterable[Record], *, stdout: int = 1, stderr: int = 2, timestamps: bool = False) -> None:
    """Write records to two descriptors as the container wrote them; ``timestamps`` puts TIME before each line.

    Returns early when the reader of one has gone. Raises KernelError for any other failure.
    """
    continues = {"stdout": False, "stderr": False}
    try:
        for record in records:
            stamp = record.time.encode() + b" " if timestamps and not continues[record.stream] else b""
            continues[record.stream] = record.partial
            view = memoryview(stamp + record.data)
            while view:
                view = view[os.write(stdout if record.stream == "stdout" else stderr, view) :]
    except BrokenPipeError:
        return
    except OSError as error:
        raise KernelError("write log records", error.errno or 0) from error


def parse_since(text: str, *, now: datetime | None = None) -> str:
    """A time for ``since``: ``10m``, ``1h30m``, ``45s``, ``2d``, seconds since 1970, or RFC 3339 (UTC if it says none).

    Returns the log's own form of it, which compares as text. Raises PycontainError.
    """
    import re

    moment: datetime | None = None
    try:
        if re.fullmatch(r"(\d+(\.\d+)?[smhd])+", text, re.ASCII):
            names = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
            ago = timedelta()
            for value, _, unit in re.findall(r"(\d+(\.\d+)?)([smhd])", text, re.ASCII):
                ago += timedelta(**{names[unit]: float(value)})
            moment = (now or datetime.now(UTC)) - ago
        elif re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
            moment = datetime.fromtimestamp(float(text), UTC)
        else:
            # fromisoformat takes at most microseconds from 3.11 on, and cuts what is finer
            moment = datetime.fromisoformat(text)
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=UTC)
        moment = moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise PycontainError(
            f"read time {text!r}: found neither a duration, nor seconds since 1970, nor RFC 3339",
            hint="such as 10m, 1h30m, 1700000000 or 2024-05-01T12:00:00Z",
        ) from None
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond:06d}000Z"


def _select(records: Iterable[Record], tail: int | None, since: str | None) -> Iterator[Record]:
    if since is not None:
        records = (record for record in records if record.time >= since)
    if tail is None:
        yield from records
        return
    # Whole lines are kept together: each entry holds a line's parts, and the parts of both streams may alternate.
    lines: deque[list[Record]] = deque(maxlen=tail)
    open_lines: dict[str, list[Record]] = {}
    for record in records:
        line = open_lines.get(record.stream)
        if line is None:
            line = []
            lines.append(line)
            open_lines[record.stream] = line
        line.append(record)
        if not record.partial:
            del open_lines[record.stream]
    for line in lines:
        yield from line


def _parse(lines: bytes) -> Iterator[Record]:
    for line in lines.split(b"\n")[:-1]:
        fields = line.split(b" ", 3)
        if len(fields) != 4 or fields[1] not in (b"stdout", b"stderr") or fields[2] not in (b"F", b"P"):
            continue
        partial = fields[2] == b"P"
        stamp = fields[0].decode("ascii", "replace")
        yield Record(stamp, fields[1].decode(), partial, fields[3] if partial else fields[3] + b"\n")


def _records(files: list[int]) -> Iterator[Record]:
    """The records of all files, in order. Closes them."""
    try:
        while files:
            rest = b""
            while data := os.read(files[0], _CHUNK):
                lines, rest = _complete(rest + data)
                yield from _parse(lines)
            os.close(files.pop(0))
    finally:
        _close(files)


def _chain(records: Iterator[Record], lines: bytes) -> Iterator[Record]:
    yield from records
    yield from _parse(lines)


def _complete(data: bytes) -> tuple[bytes, bytes]:
    """Whole lines, and what follows them; that is thrown away where it is too long to be a record."""
    end = data.rfind(b"\n") + 1
    rest = data[end:]
    return data[:end], rest if len(rest) <= _LONGEST else b""


def _read_on(fd: int) -> bytes:
    parts = []
    while data := os.read(fd, _CHUNK):
        parts.append(data)
    return b"".join(parts)


def _open_all(path: str) -> list[int]:
    """Every file of the log, oldest first, each once even if it is renamed meanwhile."""
    files: list[int] = []
    seen: set[int] = set()
    number = 0
    # From the newest to the oldest: a rename during the walk shows a file twice, and never hides one.
    while True:
        try:
            fd = os.open(path if number == 0 else f"{path}.{number}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            # Between two renames there is no newest file.
            if number > 0:
                return files[::-1]
        except OSError as error:
            _close(files)
            raise KernelError(f"read log {path}", error.errno or 0) from error
        else:
            inode = os.fstat(fd).st_ino
            if inode in seen:
                os.close(fd)
            else:
                seen.add(inode)
                files.append(fd)
        number += 1


def _successor(path: str, current: int) -> int | None:
    """The file that was begun after ``current``, when that has been renamed or deleted; None while it is the newest."""
    inode = os.fstat(current).st_ino
    try:
        if os.stat(path, follow_symlinks=False).st_ino == inode:
            return None
    except OSError:
        pass  # between two renames; the other files tell
    files = _open_all(path)
    # An inode number in use by our descriptor is not given to another file.
    inodes = [os.fstat(fd).st_ino for fd in files]
    at = inodes.index(inode) + 1 if inode in inodes else 0
    if at == len(files):
        _close(files)
        return None
    fd = files.pop(at)
    _close(files)
    return fd


def _close(files: list[int]) -> None:
    while files:
        os.close(files.pop())
