"""JSON for the start path: the interpreter's own C scanner and encoder, without importing ``json`` (13 ms).

In the launcher's own interpreter, where to load their module takes 0.2 ms, what is plain JSON does without them
(init/embedded_json.h, and ``_plain`` here).
"""

from __future__ import annotations

import sys

from pycontain.runtime import errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_launcher = __import__("_launcher") if "_launcher" in sys.builtin_module_names else None
_scan: Any = None


def _scanner() -> Any:
    global _scan
    if _scan is None:
        from _json import make_scanner

        class Context:
            strict = True
            object_hook = object_pairs_hook = None
            array_hook = None
            parse_float = float
            parse_int = int
            memo: dict[str, str] = {}

            @staticmethod
            def parse_constant(name: str) -> float:
                raise ValueError(f"found {name}, which JSON does not have")

        _scan = make_scanner(Context())  # type: ignore[arg-type]
    return _scan


def _scanned(text: str, start: int) -> Any:
    try:
        return _scanner()(text, start)
    except SystemError:  # its error's class is json.decoder's, which it finds only where that is imported already
        __import__("json.decoder")

        return _scanner()(text, start)


def parse(data: bytes, what: str) -> Any:
    """The value of a JSON text. ``what`` names the file in errors: PycontainError with line and column."""
    if _launcher is not None:
        value = _launcher.json(data)
        if value is not NotImplemented:
            return value
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise errors.PycontainError(
            f"cannot parse {what}: found a byte that is not UTF-8 at offset {error.start}"
        ) from None
    start = len(text) - len(text.lstrip(" \t\n\r"))
    try:
        value, end = _scanned(text, start)
        rest = text[end:].lstrip(" \t\n\r")
        if not rest:
            return value
        problem, at = "extra data", len(text) - len(rest)
    except StopIteration as stop:
        problem, at = "expecting value", stop.value
    except RecursionError:
        raise errors.PycontainError(f"cannot parse {what}: it is nested too deeply") from None
    except ValueError as error:  # json.JSONDecodeError
        message = getattr(error, "msg", None)
        problem, at = message.lower() if message else str(error), getattr(error, "pos", 0)
    line, column = text.count("\n", 0, at) + 1, at - (text.rfind("\n", 0, at) + 1) + 1
    raise errors.PycontainError(f"cannot parse {what}: {problem} at line {line} column {column}")


def loads(data: bytes) -> Any:
    """json.loads, which is imported only to read, or to refuse, what the scanner alone does not take."""
    try:
        return parse(data, "JSON")
    except errors.PycontainError:
        import json

        return json.loads(data)


def dump(value: Any) -> str:
    """Compact JSON text of plain dicts, lists, strings, numbers and None."""
    if _launcher is not None:
        try:
            return _plain(value)
        except ValueError:
            pass
    from _json import encode_basestring_ascii, make_encoder

    return "".join(make_encoder({}, _refuse, encode_basestring_ascii, None, ":", ",", False, False, False)(value, 0))


def _plain(value: Any) -> str:
    """The text of what has one that is beyond doubt; ValueError for anything else."""
    kind = type(value)
    if kind is str:
        if value.isascii() and value.isprintable() and '"' not in value and "\\" not in value:
            return f'"{value}"'
    elif kind is dict:
        if set(map(type, value)) <= {str}:
            return "{" + ",".join([f"{_plain(key)}:{_plain(item)}" for key, item in value.items()]) + "}"
    elif kind is list:
        return "[" + ",".join([_plain(item) for item in value]) + "]"
    elif kind is int:
        return str(value)
    elif value is None or kind is bool:
        return "null" if value is None else "true" if value else "false"
    raise ValueError


def _refuse(value: object) -> Any:
    raise TypeError(f"{type(value).__name__} has no JSON form")
