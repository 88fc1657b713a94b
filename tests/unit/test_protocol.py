"""The numbers that Python and init share are one table, held in two files."""

from __future__ import annotations

import re

import pytest

from pycontain.runtime import channel
from pycontain.runtime.errors import PycontainError
from pycontain.runtime.failure import parse
from pycontain.runtime.plan import ops
from pycontain.runtime.plan.describe import WORDS, describe
from tests.runtime_tools import REPOSITORY

HEADER = (REPOSITORY / "runtime/init/protocol.h").read_text()


def test_operations_are_those_of_the_header() -> None:
    found = {name: (int(code), sig) for code, name, sig in re.findall(r'OP\((\d+), (\w+), "(\w*)"\)', HEADER)}
    assert found == ops.TABLE
    assert len({row[0] for row in ops.TABLE.values()}) == len(ops.TABLE)


def test_messages_are_those_of_the_header() -> None:
    found = {int(code): name for code, name in re.findall(r"MSG\((\d+), (\w+)\)", HEADER)}
    assert found == channel.NAMES


def test_bounds_are_those_of_the_header() -> None:
    assert "PLAN_VERSION 1" in HEADER and ops.VERSION == 1
    assert "PLAN_MAX_BYTES (16u << 20)" in HEADER and ops.MAX_BYTES == 16 << 20
    assert "PLAN_MAX_ITEMS 65536u" in HEADER and ops.MAX_ITEMS == 65536
    assert "MESSAGE_MAX_BYTES (1u << 20)" in HEADER and channel.MAX_BYTES == 1 << 20


def test_every_operation_reads_as_a_sentence() -> None:
    assert set(WORDS) | {"exec"} == set(ops.TABLE)
    samples = {"u": 0o020005, "s": "text", "b": b"\0\1", "l": ["a", "b"]}
    for name, (_, signature) in ops.TABLE.items():
        op = (name, *(samples[kind] for kind in signature))
        assert describe(op)
        assert "{" not in describe(op)
        assert ops.encode([op]).startswith(b"PCPL")


def test_what_cannot_be_encoded_is_refused() -> None:
    with pytest.raises(PycontainError, match=r"^cannot hostname 'a\\x00b': found a NUL character$"):
        ops.encode([("hostname", "a\0b")])
    with pytest.raises(PycontainError, match=r"^cannot exec: found 65537 strings, wanted at most 65536$"):
        ops.encode([("exec", "x", ["x"] * 65537, [], 0)])
    with pytest.raises(PycontainError, match=r"^the plan is too large: found more than 16777216 bytes of arguments"):
        ops.encode([("hostname", "x" * (16 << 20))])
    with pytest.raises(ValueError, match="operation join takes 1 arguments, not 2"):
        ops.encode([("join", 1, 2)])


def test_nonsense_from_init_is_refused() -> None:
    import os

    reader, writer = os.pipe()
    os.write(writer, (99).to_bytes(4, "little") + (4).to_bytes(4, "little"))
    with pytest.raises(PycontainError, match="^init sent nonsense: found message 99 of 4 bytes$"):
        channel.receive(reader)
    os.write(writer, (3).to_bytes(4, "little") + (2 << 20).to_bytes(4, "little"))
    with pytest.raises(PycontainError, match="^init sent nonsense: found message 3 of 2097152 bytes$"):
        channel.receive(reader)
    os.write(writer, b"\1")
    os.close(writer)
    assert channel.receive(reader) is None
    os.close(reader)
    with pytest.raises(PycontainError, match="less than 8 bytes"):
        parse(b"1234567")
