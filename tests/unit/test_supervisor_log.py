"""The supervisor's log: format, split lines, rotation, a full disk."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain.engine import logs
from tests.supervisor_fixture import Case

STAMP = rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z"
LIMIT = 16384


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    made = Case(str(tmp_path))
    yield made
    made.kill()


def feed(case: Case, data: bytes, **options: int) -> None:
    """A container that prints exactly these bytes."""
    Path(case.directory, "data").write_bytes(data)
    case.shell(f"cat {case.directory}/data", **options)
    assert case.wait_exit(30).status == 0


def records(case: Case) -> list[tuple[str, bytes]]:
    return [("P" if record.partial else "F", record.data) for record in logs.read(case.log)]


def test_the_format(case: Case) -> None:
    feed(case, b"one\n\n two  words \nlast")
    text = Path(case.log).read_bytes()
    expected = [rb"stdout F one", rb"stdout F ", rb"stdout F  two  words ", rb"stdout P last"]
    lines = text.split(b"\n")
    assert lines.pop() == b""
    for line, wanted in zip(lines, expected, strict=True):
        assert re.fullmatch(STAMP + b" " + wanted, line)


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (b"x" * LIMIT + b"\n", [("F", LIMIT + 1)]),
        (b"x" * (LIMIT + 1) + b"\n", [("P", LIMIT), ("F", 2)]),
        (b"x" * LIMIT, [("P", LIMIT)]),
        (b"x" * (3 * LIMIT), [("P", LIMIT)] * 3),
        (b"x" * (3 * LIMIT) + b"\ny\n", [("P", LIMIT), ("P", LIMIT), ("F", LIMIT + 1), ("F", 2)]),
        (b"y\n" + b"x" * LIMIT + b"\n\n", [("F", 2), ("F", LIMIT + 1), ("F", 1)]),
        (b"", []),
    ],
)
def test_long_lines_are_split_and_marked(case: Case, data: bytes, parts: list[tuple[str, int]]) -> None:
    feed(case, data)
    found = records(case)
    assert [(flag, len(text)) for flag, text in found] == parts
    assert b"".join(text for _, text in found) == data


def test_lines_that_come_in_pieces_are_one_record(case: Case) -> None:
    case.shell("printf a; sleep 0.1; printf b; printf x >&2; sleep 0.1; echo c; echo y >&2")
    case.wait_exit()
    found = [(record.stream, record.data) for record in logs.read(case.log)]
    assert sorted(found) == [("stderr", b"xy\n"), ("stdout", b"abc\n")]


def test_any_bytes_are_kept(case: Case) -> None:
    data = random.Random(3).randbytes(600_000)
    feed(case, data)
    assert b"".join(text for _, text in records(case)) == data


def test_rotation_bounds_the_log_and_loses_only_the_oldest(case: Case) -> None:
    lines = [b"line %d %s\n" % (number, b"." * (number % 900)) for number in range(1000)]
    feed(case, b"".join(lines), log_max_size=40_000, log_max_files=3)
    sizes = [os.stat(f"{case.log}{suffix}").st_size for suffix in ("", ".1", ".2")]
    assert all(0 < size <= 40_000 for size in sizes) and sum(sizes) > 70_000
    assert not os.path.exists(f"{case.log}.3")
    assert all(os.stat(f"{case.log}{suffix}").st_mode & 0o7777 == 0o600 for suffix in ("", ".1", ".2"))
    kept = [text for _, text in records(case)]
    assert len(kept) > 100 and kept == lines[-len(kept) :]


def test_a_log_of_one_file_begins_anew(case: Case) -> None:
    feed(case, b"0123456789\n" * 10_000, log_max_size=50_000, log_max_files=1)
    assert 0 < os.stat(case.log).st_size <= 50_000
    assert not os.path.exists(f"{case.log}.1")


def test_a_second_run_appends(case: Case, tmp_path: Path) -> None:
    feed(case, b"first\n")
    case.wait_gone()
    os.unlink(case.exit_path)
    feed(case, b"second\n")
    assert [text for _, text in records(case)] == [b"first\n", b"second\n"]


def test_without_a_log_path_nothing_is_logged(case: Case) -> None:
    case.shell("echo x", log_path=None)
    case.wait_exit()
    assert not os.path.exists(case.log)


def test_a_log_that_cannot_grow_drops_records_counts_them_and_stays_readable(case: Case) -> None:
    # RLIMIT_FSIZE stands for the full disk: write(2) takes a part, then fails. The container never waits for it.
    program = (
        "import resource, sys; sys.path.insert(0, '.')\n"
        "from tests.supervisor_fixture import Case\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200000, 200000))\n"
        "Case(sys.argv[1]).shell('i=0; while [ $i -lt 9000 ]; do echo line $i; i=$((i+1)); done; exit 4')\n"
    )
    subprocess.run([sys.executable, "-c", program, case.directory], check=True)
    ended = case.wait_exit()
    assert ended.status == 4
    found = [text for _, text in records(case)]
    assert os.stat(case.log).st_size <= 200000
    assert Path(case.log).read_bytes().endswith(b"\n")
    assert ended.log_dropped > 1000 and len(found) + ended.log_dropped == 9000
    numbers = [int(text.split()[1]) for text in found]
    assert numbers == sorted(set(numbers)) and numbers[0] == 0
