"""config.json: what is malformed is refused with its JSON path, in every section."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontain.runtime import jsontext, lifecycle, paths, spec
from pycontain.runtime.errors import NotFound, PycontainError, SpecError
from pycontain.runtime.example import EXAMPLE


def changed(path: str, value: Any) -> dict[str, Any]:
    config: Any = copy.deepcopy(EXAMPLE)
    *parents, last = path.split(".")
    at = config
    for key in parents:
        at = at[int(key)] if key.isdigit() else at.setdefault(key, {})
    if value is KeyError:
        del at[last]
    elif last.isdigit():
        at[int(last)] = value
    else:
        at[last] = value
    result: dict[str, Any] = config
    return result


@pytest.mark.parametrize(
    ("path", "value", "error"),
    [
        ("ociVersion", KeyError, "$.ociVersion: found nothing, wanted a string"),
        ("ociVersion", 1, "$.ociVersion: found 1, wanted a string"),
        ("ociVersion", "one", "$.ociVersion: found 'one', wanted a version such as 1.3.0"),
        ("ociVersion", "2.0.0", "$.ociVersion: found 2.0.0, wanted 1.x: this runtime knows no other major version"),
        ("process", [], "$.process: found a list, wanted an object"),
        ("process.args", [], "$.process.args: found nothing, wanted at least the program to run"),
        ("process.args", "sh", "$.process.args: found 'sh', wanted a list"),
        ("process.args", ["sh", 1], "$.process.args[1]: found 1, wanted a string"),
        ("process.args", ["a\0b"], "$.process.args[0]: found 'a\\x00b', wanted a string"),
        ("process.args", ["\ud800"], "$.process.args[0]: found '\\ud800', wanted a string"),
        ("annotations", {"\ud800": ""}, "$.annotations['\\ud800']: found '\\ud800', wanted a string"),
        ("process.cwd", "tmp", "$.process.cwd: found 'tmp', wanted an absolute path"),
        ("process.cwd", KeyError, "$.process.cwd: found nothing, wanted a string"),
        ("process.env", ["A"], "$.process.env[0]: found 'A', wanted NAME=value"),
        ("process.env", ["=x"], "$.process.env[0]: found '=x', wanted NAME=value"),
        ("process.user.uid", -1, "$.process.user.uid: found -1, wanted a non-negative integer"),
        ("process.user.uid", True, "$.process.user.uid: found true, wanted a non-negative integer"),
        ("process.user.umask", "22", "$.process.user.umask: found '22', wanted a non-negative integer"),
        ("process.terminal", 1, "$.process.terminal: found 1, wanted true or false"),
        ("process.capabilities", [], "$.process.capabilities: found a list, wanted an object"),
        ("process.rlimits.0.soft", 1.5, "$.process.rlimits[0].soft: found 1.5, wanted a non-negative integer"),
        ("process.rlimits.0", {"type": "X"}, "$.process.rlimits[0].hard: found nothing, wanted a non-negative integer"),
        ("root", "rootfs", "$.root: found 'rootfs', wanted an object"),
        ("root.path", "", "$.root.path: found an empty string, wanted a directory"),
        ("hostname", {}, "$.hostname: found an object, wanted a string"),
        ("mounts", {}, "$.mounts: found an object, wanted a list"),
        ("mounts.0.destination", KeyError, "$.mounts[0].destination: found nothing, wanted a string"),
        ("mounts.0.options", "ro", "$.mounts[0].options: found 'ro', wanted a list"),
        ("hooks", {"prestart": [{}]}, "$.hooks.prestart[0].path: found nothing, wanted a string"),
        ("annotations", {"a": 1}, "$.annotations['a']: found 1, wanted a string"),
        ("linux.namespaces.0", {}, "$.linux.namespaces[0].type: found nothing, wanted a string"),
        ("linux.namespaces.1.type", "pid", "$.linux.namespaces[1].type: found 'pid' a second time"),
        ("linux.sysctl", {"net.x": 1}, "$.linux.sysctl['net.x']: found 1, wanted a string"),
        ("linux.resources.memory", {"limit": "64m"}, "$.linux.resources.memory.limit: found '64m', wanted an integer"),
        (
            "linux.resources.devices.0",
            {},
            "$.linux.resources.devices[0].allow: found nothing, wanted true or false",
        ),
        ("linux.devices", [{"path": "/dev/x"}], "$.linux.devices[0].type: found nothing, wanted a string"),
        ("linux.seccomp", {}, "$.linux.seccomp.defaultAction: found nothing, wanted a string"),
        ("linux.maskedPaths", [None], "$.linux.maskedPaths[0]: found null, wanted a string"),
        (
            "linux.uidMappings",
            [{"containerID": 0}],
            "$.linux.uidMappings[0].hostID: found nothing, wanted a non-negative integer",
        ),
    ],
)
def test_malformed(path: str, value: Any, error: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec.check(changed(path, value))
    assert caught.value.message == error
    assert error.startswith(caught.value.path)


def test_null_means_absent_and_the_unknown_is_ignored() -> None:
    config = changed("process.capabilities", None)
    config["linux"]["seccomp"] = None
    config["org.example.extension"] = {"any": "thing"}
    checked = spec.check(config)
    assert "capabilities" not in checked["process"]
    assert "seccomp" not in checked["linux"]
    assert checked["org.example.extension"] == {"any": "thing"}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"", "cannot parse config: expecting value at line 1 column 1"),
        (b'{"a": }', "cannot parse config: expecting value at line 1 column 7"),
        (b'{\n "a": 1\n} x', "cannot parse config: extra data at line 3 column 3"),
        (b"\xff", "cannot parse config: found a byte that is not UTF-8 at offset 0"),
        (b"[" * 100_000, "cannot parse config: it is nested too deeply"),
        (b'{"a": "', "cannot parse config: unterminated string starting at at line 1 column 7"),
        (b"NaN", "cannot parse config: found NaN, which JSON does not have at line 1 column 1"),
    ],
)
def test_malformed_json(text: bytes, error: str) -> None:
    with pytest.raises(PycontainError) as caught:
        jsontext.parse(text, "config")
    assert caught.value.message == error


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
)


@given(VALUES)
def test_json_round_trip(value: Any) -> None:
    assert jsontext.parse(jsontext.dump(value).encode(), "x") == value
    assert json.loads(jsontext.dump(value)) == value


@given(st.dictionaries(st.sampled_from(sorted(spec.SCHEMA)), VALUES))
def test_any_json_is_checked_or_refused(value: dict[str, Any]) -> None:
    try:
        spec.check({**value, "ociVersion": "1.0.2"})
    except SpecError as error:
        assert error.message.startswith("$")


def test_a_bundle_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=f"^bundle {tmp_path}/none does not exist$"):
        lifecycle.read_config(f"{tmp_path}/none")
    with pytest.raises(NotFound, match=f"^cannot read {tmp_path}/config.json: it does not exist$"):
        lifecycle.read_config(str(tmp_path))


def test_reads_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 101)
    with pytest.raises(PycontainError, match="found more than 100 bytes$"):
        paths.read_bounded(str(tmp_path / "big"), 100)
    os.mkfifo(tmp_path / "fifo")
    assert paths.read_bounded(str(tmp_path / "fifo"), 100) == b""


def test_what_was_right_once_is_right_again_and_nothing_else() -> None:
    good = json.dumps(EXAMPLE).encode()
    for _ in range(2):
        assert spec.read(good, "config.json") == EXAMPLE
    spec.read(good, "config.json")["process"]["args"] = []  # whoever got it may change it
    assert spec.read(good, "config.json") == EXAMPLE
    bad = json.dumps(changed("process.cwd", "relative")).encode()
    for _ in range(2):
        with pytest.raises(SpecError, match=r"^\$\.process\.cwd: found 'relative', wanted an absolute path$"):
            spec.read(bad, "config.json")
    for _ in range(2):  # null means absent, each time
        assert spec.read(json.dumps(changed("hostname", None)).encode(), "config.json") == changed("hostname", KeyError)
