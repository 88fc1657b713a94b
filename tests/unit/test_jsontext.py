"""What the launcher reads and writes as plain JSON, beside what ``json`` makes of it."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import random
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from typing import Any

import pytest

from pycontain.runtime import jsontext
from pycontain.runtime.example import EXAMPLE
from tests.runtime_tools import REPOSITORY

MODULE = """
#include <Python.h>
#include "embedded_json.h"
static PyMethodDef functions[] = {{"json", json_plain, METH_O, ""}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "plain", .m_size = -1, .m_methods = functions};
PyMODINIT_FUNC PyInit_plain(void) { return PyModule_Create(&module); }
"""
TAKEN = [
    "{}", " [ ] ", "0", "-0", "-12", "999999999999999999", "true", "false", "null", '""', '"grün \u00e9 \U0001f600 \x7f"',
    '{"a":1,"a":[2]}', '\r\n\t {"a" : [ null , true ] , "b" : { "c" : "d" } } \n', json.dumps(EXAMPLE), "[" * 99 + "]" * 99,
]  # fmt: skip
LEFT = [
    "", " ", "01", "-", "--1", "+1", "1.5", "1e3", "1E3", "1000000000000000000", "tru", "nul", "NaN", "Infinity", "-Infinity",
    "[1,]", "[,1]", "[1 2]", '{"a":1,}', '{"a" 1}', "{1:2}", "{", "[", '"', '"a', '"\\n"', '"\n"', '"\x00"', "[]]", "[] x",
    "\x00", "[]\x00", "[\x00]", "\ufeff{}", "'a'", "[" * 101 + "]" * 101, "[" * 100_000, '{"a":' * 100_000, "1,",
]  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], Any]:
    folder = tmp_path_factory.mktemp("plain")
    source, library = folder / "plain.c", folder / "plain.so"
    source.write_text(MODULE)
    include = ["-isystem", sysconfig.get_path("include"), "-I", str(REPOSITORY / "runtime/init")]
    strict = ["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run(["cc", *strict, *include, "-o", str(library), str(source)], check=True)
    loader = importlib.machinery.ExtensionFileLoader("plain", str(library))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("plain", loader))  # type: ignore[arg-type]
    loader.exec_module(module)
    found: Callable[[bytes], Any] = module.json
    return found


@pytest.mark.needs("libpython")
def test_what_is_plain_is_read_as_json_reads_it(plain: Callable[[bytes], Any]) -> None:
    for text in TAKEN:
        assert repr(plain(text.encode())) == repr(json.loads(text)), text


@pytest.mark.needs("libpython")
def test_what_is_not_is_left_to_the_scanner(plain: Callable[[bytes], Any]) -> None:
    for text in LEFT:
        assert plain(text.encode()) is NotImplemented, text
    for data in (b'"\xff"', b'"\xed\xa0\x80"', b"\xff", bytearray(b"{}"), None):
        assert plain(data) is NotImplemented  # type: ignore[arg-type]


@pytest.mark.needs("libpython")
def test_nothing_is_taken_that_json_refuses(plain: Callable[[bytes], Any]) -> None:
    chance, taken = random.Random(1), 0
    seeds = [text.encode() for text in TAKEN]
    for _ in range(20_000):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(data) + 1)
            data[at : at + chance.randint(0, 2)] = chance.choice((b"", b'"', b",", b"]", b"}", b"0", b"\\", b" ", b"\xc3", b":"))
        found = plain(bytes(data))
        if found is not NotImplemented:
            taken += 1
            assert repr(found) == repr(json.loads(data.decode())), data
    assert taken > 1000


@pytest.mark.needs("libpython")
def test_nothing_is_kept(plain: Callable[[bytes], Any]) -> None:
    texts = [text.encode() for text in (*TAKEN, '{"a":[1,{"b":', '["a","b",1.5]')]
    counts = []
    for _ in range(3):
        for text in texts * 10:
            plain(text)
        counts.append(sys.getallocatedblocks())
    assert counts[2] - counts[1] < 20, counts


def test_plain_text_is_as_json_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def text(value: object) -> str:
        return json.dumps(value, separators=(",", ":"))

    plain = [None, True, False, 0, -1, 1 << 80, "", "a b/~", [], {}, [1, "x", [None]], {"a": {"b": [True, 2]}}, EXAMPLE]
    for value in plain:
        assert jsontext._plain(value) == text(value) == jsontext.dump(value)
    other = ["é", '"', "\\", "\n", "\x7f", 1.5, (1, 2), {1: 2}, {"a": "ü"}, [1, "\ud800"], {"é": 1}, {None: 1}]
    monkeypatch.setattr(jsontext, "_launcher", object())
    for value in other:
        with pytest.raises(ValueError):
            jsontext._plain(value)
        assert jsontext.dump(value) == text(value)
    with pytest.raises(TypeError, match="set has no JSON form"):
        jsontext.dump({"a": set()})
