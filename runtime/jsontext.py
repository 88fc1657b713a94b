"""JSON for the start path: the interpreter's own C scanner and encoder, without importing ``json`` (13 ms)."""

from __future__ import annotations

import _json

from pycontain.runtime.errors import PycontainError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Context:
    strict = True
    object_hook = object_pairs_hook = None
    array_hook = None
    parse_float = float
    parse_int = int
    memo: dict[str, str] = {}

    @staticmethod
    def parse_constant(name: str) -> float:
        raise ValueError(f"found {name}, which JSON does not have")


_scan = _json.make_scanner(_Context())  # type: ignore[arg-type]


def parse(data: bytes, what: str) -> Any:
    """The value of a JSON text. ``what`` names the file in errors: PycontainError with line and column."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise PycontainError(f"cannot parse {what}: found a byte that is not UTF-8 at offset {error.start}") from None
    start = len(text) - len(text.lstrip(" \t\n\r"))
    try:
        value, end = _scan(text, start)
        rest = text[end:].lstrip(" \t\n\r")
        if not rest:
            return value
        problem, at = "extra data", len(text) - len(rest)
    except StopIteration as stop:
        problem, at = "expecting value", stop.value
    except RecursionError:
        raise PycontainError(f"cannot parse {what}: it is nested too deeply") from None
    except ValueError as error:  # json.JSONDecodeError, imported by the scanner itself when it needs it
        message = getattr(error, "msg", None)
        problem, at = message.lower() if message else str(error), getattr(error, "pos", 0)
    line, column = text.count("\n", 0, at) + 1, at - (text.rfind("\n", 0, at) + 1) + 1
    raise PycontainError(f"cannot parse {what}: {problem} at line {line} column {column}")


def loads(data: bytes) -> Any:
    """json.loads, which is imported only to read, or to refuse, what the scanner alone does not take."""
    try:
        return parse(data, "JSON")
    except PycontainError:
        import json

        return json.loads(data)


def dump(value: Any) -> str:
    """Compact JSON text of plain dicts, lists, strings, numbers and None."""
    encoder = _json.make_encoder({}, _refuse, _json.encode_basestring_ascii, None, ":", ",", False, False, False)
    return "".join(encoder(value, 0))


def _refuse(value: object) -> Any:
    raise TypeError(f"{type(value).__name__} has no JSON form")
