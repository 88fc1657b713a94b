"""The start path's stand-ins for parts of the standard library do what those do."""

from __future__ import annotations

import contextlib
import copy
import os
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontain.engine.images import _is_id
from pycontain.engine.values import is_name
from pycontain.images.descriptor import _is_media_type, check_digest
from pycontain.images.reference import _REGISTRY, _REPOSITORY, _TAG, _fits
from pycontain.runtime import jsontext, light
from pycontain.runtime.errors import PycontainError


class Light(light.NamedTuple):
    """Two of each."""

    first: int
    second: str = "two"

    @property
    def both(self) -> str:
        return f"{self.first}{self.second}"


class Heavy(typing.NamedTuple):
    first: int
    second: str = "two"


class Below(Light):
    __slots__ = ()

    def __new__(cls, first: int) -> Below:
        return super().__new__(cls, first * 2)


def test_a_named_tuple_is_one() -> None:
    value = Light(1)
    assert value == (1, "two") == Heavy(1) and tuple(value) == Light(first=1, second="two")
    assert (value.first, value.second, value.both) == (1, "two", "1two") and hash(value) == hash((1, "two"))
    assert Light._fields == Heavy._fields and value._asdict() == Heavy(1)._asdict()
    assert value._replace(first=3) == Heavy(3) and type(value._replace(first=3)) is Light
    assert repr(value) == repr(Heavy(1)).replace("Heavy", "Light")
    assert copy.copy(value) == value
    assert type(Below(2)) is Below and Below(2).first == 4
    match value:
        case Light(first, second):
            assert (first, second) == (1, "two")
    for change in ("first", "other"):
        with pytest.raises(AttributeError):
            setattr(value, change, 1)


@pytest.mark.parametrize("values, named", [((), {}), ((1, "2", 3), {}), ((1,), {"first": 1}), ((1,), {"third": 1})])
def test_a_named_tuple_refuses_what_does_not_fit(values: tuple[Any, ...], named: dict[str, Any]) -> None:
    for kind in (Light, Heavy):
        with pytest.raises(TypeError):
            kind(*values, **named)


def body(seen: list[str], reaction: str) -> Iterator[str]:
    try:
        yield "value"
        seen.append("went on")
    except ValueError as error:
        seen.append(f"caught {error}")
        if reaction == "again":
            raise
        if reaction == "other":
            raise KeyError("other") from None
    finally:
        seen.append("ended")


@pytest.mark.parametrize("raised", [None, ValueError("a"), IndexError("b"), StopIteration("c")])
@pytest.mark.parametrize("reaction", ["again", "other", "swallow"])
def test_a_context_manager_behaves_as_the_standard_ones(raised: Exception | None, reaction: str) -> None:
    def use(decorator: Callable[..., Any]) -> list[str]:
        seen: list[str] = []
        try:
            with decorator(body)(seen, reaction=reaction) as value:
                seen.append(value)
                if raised is not None:
                    raise raised
        except Exception as error:
            seen.append(repr(error))
        return seen

    assert use(light.contextmanager) == use(contextlib.contextmanager)


def test_a_tree_is_removed_and_what_its_links_lead_to_is_not(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    (tmp_path / "tree/a/b/c").mkdir(parents=True)
    (tmp_path / "tree/a/b/file").touch()
    os.mkfifo(tmp_path / "tree/a/fifo")
    for place in ("tree/link", "tree/a/b/link"):
        (tmp_path / place).symlink_to(tmp_path / "kept")
    light.remove_tree(str(tmp_path / "tree"))
    assert os.listdir(tmp_path) == ["kept"] and os.listdir(tmp_path / "kept") == ["file"]
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    for path in ("link", "nothing"):
        with pytest.raises(OSError):
            light.remove_tree(str(tmp_path / path))


@given(st.text("aZ09._-/: \n\u00e9\u0661", max_size=12))
def test_names_are_read_without_expressions_as_with_them(text: str) -> None:
    def whole(pattern: str) -> bool:
        return re.fullmatch(pattern, text, re.ASCII) is not None

    assert _fits(_REGISTRY, text, ".") == whole(_REGISTRY)
    assert (text == text.lower() and _fits(_REPOSITORY, text, "/._-")) == whole(_REPOSITORY)
    assert _fits(_TAG, text, "._-") == whole(_TAG)
    assert is_name(text) == whole(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
    part = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
    assert _is_media_type(text) == whole(f"{part}/{part}")


@given(st.sampled_from(["", "sha256:", "sha512:", "md5:", "sha256"]), st.text("0afgA\n", max_size=4), st.sampled_from([0, 1, 60, 63, 64, 124, 128]))
def test_digests_and_ids(head: str, tail: str, zeros: int) -> None:
    text = head + "0" * zeros + tail
    try:
        check_digest(text)
        found = True
    except PycontainError:
        found = False
    assert found == (re.fullmatch(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", text) is not None)
    assert _is_id(text) == (re.fullmatch(r"(sha256:)?[0-9a-f]{3,64}", text) is not None)


def test_json_that_the_scanner_does_not_take_is_read_or_refused_by_the_module() -> None:
    assert jsontext.loads('\ufeff{"a": 1}'.encode()) == {"a": 1} == jsontext.loads('{"a": 1}'.encode("utf-16"))
    with pytest.raises(ValueError, match="line 1 column 2"):
        jsontext.loads(b"{")
    with pytest.raises(RecursionError):
        jsontext.loads(b"[" * 100_000)
