"""Reading and following logs, while files are renamed below the reader."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pycontain.engine import logs
from pycontain.runtime.errors import KernelError, PycontainError


def line(text: str, *, stream: str = "stdout", flag: str = "F", second: int = 0) -> str:
    return f"2026-01-01T00:00:{second:02d}.000000000Z {stream} {flag} {text}\n"


def texts(records: Iterator[logs.Record]) -> list[str]:
    return [record.data.decode() for record in records]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def test_all_files_are_read_oldest_first(log: Path) -> None:
    Path(f"{log}.2").write_text(line("a"))
    Path(f"{log}.1").write_text(line("b") + line("c"))
    log.write_text(line("d", stream="stderr"))
    assert texts(logs.read(str(log))) == ["a\n", "b\n", "c\n", "d\n"]
    assert next(logs.read(str(log), tail=1)) == logs.Record("2026-01-01T00:00:00.000000000Z", "stderr", False, b"d\n")


def test_no_log_is_an_empty_log(log: Path) -> None:
    assert texts(logs.read(str(log))) == []


def test_between_two_renames_the_older_files_are_still_read(log: Path) -> None:
    Path(f"{log}.1").write_text(line("a"))
    assert texts(logs.read(str(log))) == ["a\n"]


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (0, []),
        (1, ["d\n"]),
        (2, ["b", "c\n", "d\n"]),
        (3, ["a\n", "b", "c\n", "d\n"]),
        (99, ["a\n", "b", "c\n", "d\n"]),
    ],
)
def test_tail_counts_whole_lines(log: Path, tail: int, expected: list[str]) -> None:
    Path(f"{log}.1").write_text(line("a") + line("b", flag="P"))
    log.write_text(line("c") + line("d"))
    assert texts(logs.read(str(log), tail=tail)) == expected


def test_tail_of_streams_that_alternate_within_a_line(log: Path) -> None:
    log.write_text(line("a", flag="P") + line("E", stream="stderr") + line("b") + line("c"))
    assert texts(logs.read(str(log), tail=2)) == ["E\n", "c\n"]
    assert texts(logs.read(str(log), tail=3)) == ["a", "b\n", "E\n", "c\n"]


def test_since(log: Path) -> None:
    log.write_text("".join(line(str(second), second=second) for second in range(5)))
    since = logs.parse_since("2026-01-01T00:00:03Z")
    assert texts(logs.read(str(log), since=since)) == ["3\n", "4\n"]
    assert texts(logs.read(str(log), since=since, tail=1)) == ["4\n"]


@pytest.mark.parametrize(
    "bad",
    [
        "2026-01-01T00:00:09.000000000Z stdout F torn",
        "2026-01-01T00:00:09.0",
        "nonsense\n",
        "a b c d\n",
        "t stdout X d\n",
        "\n",
        "t stdout F\n",
        "\0\0\0\n",
        "x" * 100_000,
    ],
)
def test_what_is_not_a_record_is_skipped(log: Path, bad: str) -> None:
    Path(f"{log}.1").write_text(line("a") + bad)
    log.write_text(line("b") + bad)
    assert texts(logs.read(str(log))) == ["a\n", "b\n"]
    assert texts(logs.follow(str(log), ended=lambda: True)) == ["a\n", "b\n"]


def test_records_larger_than_the_read_buffer(log: Path) -> None:
    wanted = [("x" * 16384 + "\n") if number % 2 else f"{number}\n" for number in range(40)]
    log.write_text("".join(line(text[:-1]) for text in wanted))
    assert texts(logs.read(str(log))) == wanted


def test_the_log_is_not_read_through_a_link(log: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(line("secret"))
    log.symlink_to(tmp_path / "secret")
    with pytest.raises(KernelError) as caught:
        texts(logs.read(str(log)))
    assert str(caught.value) == f"read log {log}: ELOOP (too many levels of symbolic links)"


def test_no_descriptor_is_left_open(log: Path) -> None:
    Path(f"{log}.1").write_text(line("a") * 3)
    log.write_text(line("b") * 3)
    before = len(os.listdir("/proc/self/fd"))
    for make in (lambda: logs.read(str(log)), lambda: logs.follow(str(log), ended=lambda: False)):
        records = make()
        next(records)
        records.close()  # type: ignore[attr-defined]
    texts(logs.follow(str(log), ended=lambda: True))
    assert len(os.listdir("/proc/self/fd")) == before


# ---------------------------------------------------------------- follow


class Writer:
    """Writes a log as the supervisor does, and rotates it."""

    def __init__(self, log: Path, files: int = 3) -> None:
        self.log, self.files = log, files
        self.over = False

    def write(self, text: str) -> None:
        with open(self.log, "a") as file:
            file.write(text)

    def rotate(self) -> None:
        if self.files == 1:
            os.unlink(self.log)
        for number in range(self.files - 1, 0, -1):
            source = self.log if number == 1 else Path(f"{self.log}.{number - 1}")
            if source.exists():
                os.rename(source, f"{self.log}.{number}")
        self.write("")


class Follower(threading.Thread):
    def __init__(self, writer: Writer, tail: int | None = None) -> None:
        super().__init__()
        self.writer = writer
        self.tail = tail
        self.seen: list[str] = []
        self.start()

    def run(self) -> None:
        path = str(self.writer.log)
        for record in logs.follow(path, ended=lambda: self.writer.over, interval=0.005, tail=self.tail):
            self.seen.append(record.data.decode())

    def wait(self, count: int) -> list[str]:
        end = time.monotonic() + 5
        while len(self.seen) < count and time.monotonic() < end:
            time.sleep(0.005)
        return self.seen

    def finish(self) -> list[str]:
        self.writer.over = True
        self.join(5)
        assert not self.is_alive()
        return self.seen


def test_follow_shows_what_is_there_and_what_comes(log: Path) -> None:
    writer = Writer(log)
    writer.write(line("a"))
    follower = Follower(writer)
    assert follower.wait(1) == ["a\n"]
    writer.write(line("b")[:30])
    time.sleep(0.03)
    assert follower.seen == ["a\n"], "half a record is not shown"
    writer.write(line("b")[30:])
    assert follower.wait(2) == ["a\n", "b\n"]
    writer.over = True
    writer.write(line("c"))
    follower.join(5)
    assert follower.seen[:2] == ["a\n", "b\n"]


def test_follow_waits_for_a_log_that_is_not_there_yet(log: Path) -> None:
    writer = Writer(log)
    follower = Follower(writer)
    time.sleep(0.03)
    writer.write(line("a"))
    assert follower.wait(1) == ["a\n"]
    assert follower.finish() == ["a\n"]


def test_what_was_written_before_the_end_is_shown(log: Path) -> None:
    log.write_text(line("a"))

    def ended() -> bool:
        with open(log, "a") as file:
            file.write(line("last"))
        return True

    assert texts(logs.follow(str(log), ended=ended)) == ["a\n", "last\n"]


@pytest.mark.parametrize("files", [1, 2, 3])
def test_follow_across_rotations(log: Path, files: int) -> None:
    writer = Writer(log, files)
    follower = Follower(writer)
    wanted = []
    for number in range(60):
        writer.write(line(str(number)))
        wanted.append(f"{number}\n")
        if number % 7 == 6:
            # where the rotated file is deleted at once, only what has been read by then can be shown
            follower.wait(len(wanted))
            writer.rotate()
    follower.wait(60)
    assert follower.finish() == wanted


def test_several_rotations_between_two_looks(log: Path) -> None:
    writer = Writer(log)
    writer.write(line("a"))
    looks = 0

    def ended() -> bool:
        nonlocal looks
        looks += 1
        if looks == 2:
            for text in ("b", "c"):
                writer.rotate()
                writer.write(line(text))
        if looks == 4:
            for text in ("d", "e", "f", "g", "h"):
                writer.rotate()
                writer.write(line(text))
        return looks > 8

    # three files: of the five written at once, d and e were deleted before anybody looked
    assert texts(logs.follow(str(log), ended=ended, interval=0)) == [f"{text}\n" for text in "abcfgh"]


def test_follow_with_tail(log: Path) -> None:
    writer = Writer(log)
    writer.write("".join(line(str(number)) for number in range(10)))
    follower = Follower(writer, tail=2)
    assert follower.wait(2) == ["8\n", "9\n"]
    writer.write(line("10"))
    assert follower.wait(3) == ["8\n", "9\n", "10\n"]
    follower.finish()


# ---------------------------------------------------------------- write, times


def test_streams_are_split_and_stamped_per_line(tmp_path: Path, log: Path) -> None:
    log.write_text(line("a", flag="P") + line("E", stream="stderr") + line("b") + line("c") + line("end", flag="P"))
    for timestamps, out, err in (
        (False, b"ab\nc\nend", b"E\n"),
        (
            True,
            b"%(t)bab\n%(t)bc\n%(t)bend" % {b"t": b"2026-01-01T00:00:00.000000000Z "},
            b"2026-01-01T00:00:00.000000000Z E\n",
        ),
    ):
        with open(tmp_path / "out", "wb") as stdout, open(tmp_path / "err", "wb") as stderr:
            records = logs.read(str(log))
            logs.write(records, stdout=stdout.fileno(), stderr=stderr.fileno(), timestamps=timestamps)
        assert ((tmp_path / "out").read_bytes(), (tmp_path / "err").read_bytes()) == (out, err)


def test_a_reader_that_left_ends_the_writing(log: Path) -> None:
    log.write_text(line("a") * 3)
    read, write = os.pipe()
    os.close(read)
    logs.write(logs.read(str(log)), stdout=write)
    os.close(write)
    with pytest.raises(KernelError) as caught:
        logs.write(logs.read(str(log)), stdout=write)
    assert str(caught.value) == "write log records: EBADF (bad file descriptor)"


NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("10m", "2026-05-01T11:50:00.000000000Z"),
        ("1h30m", "2026-05-01T10:30:00.000000000Z"),
        ("1.5s", "2026-05-01T11:59:58.500000000Z"),
        ("2d", "2026-04-29T12:00:00.000000000Z"),
        ("0", "1970-01-01T00:00:00.000000000Z"),
        ("1700000000.25", "2023-11-14T22:13:20.250000000Z"),
        ("2026-05-01T10:00:00Z", "2026-05-01T10:00:00.000000000Z"),
        ("2026-05-01T10:00:00+02:00", "2026-05-01T08:00:00.000000000Z"),
        ("2026-05-01", "2026-05-01T00:00:00.000000000Z"),
        ("2026-05-01T10:00:00.123456789Z", "2026-05-01T10:00:00.123456000Z"),
    ],
)
def test_times(text: str, wanted: str) -> None:
    assert logs.parse_since(text, now=NOW) == wanted


@pytest.mark.parametrize(
    "text", ["", "m", "10x", "-5m", "yesterday", "1e400", "99999999999999d", "9" * 30, "10m ago", "١m"]
)
def test_bad_times(text: str) -> None:
    with pytest.raises(PycontainError) as caught:
        logs.parse_since(text, now=NOW)
    assert str(caught.value) == f"read time {text!r}: found neither a duration, nor seconds since 1970, nor RFC 3339"
    assert caught.value.hint == "such as 10m, 1h30m, 1700000000 or 2024-05-01T12:00:00Z"
