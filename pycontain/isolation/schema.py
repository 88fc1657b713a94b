"""The records of a results file, as JSON Schema, and what of JSON Schema they need.

One table for the loader, for docs/isolation.schema.json and for other programs.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite
from typing import Any, get_args

from pycontain.isolation.model import Group, Verdict

VERSION = 1
MODES = ("quick", "full", "only")

_TEXT = {"type": "string"}
_NAME = {"type": "string", "minLength": 1}
_COUNT = {"type": "integer", "minimum": 0}
_SECONDS = {"type": "number", "minimum": 0}


def _object(kind: str | None = None, /, optional: dict[str, Any] | None = None, **properties: Any) -> dict[str, Any]:
    first = {"kind": {"const": kind}} if kind else {}
    return {
        "type": "object",
        "required": [*first, *properties],
        "properties": {**first, **properties, **(optional or {})},
        "additionalProperties": False,
    }


def _choice(*values: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


def _texts() -> dict[str, Any]:
    return {"type": "object", "additionalProperties": {"type": ["string", "null"]}}


_FACTS = {
    "type": "object",
    "required": ["cpu", "cpus", "memory", "kernel", "mitigations", "cgroups", "accelerator", "versions"],
    "properties": {
        "cpu": _TEXT,
        "cpus": {"type": "integer", "minimum": 1},
        "memory": _COUNT,
        "kernel": _TEXT,
        "mitigations": _texts(),
        "cgroups": _TEXT,
        "accelerator": {"type": ["string", "null"]},
        "versions": _texts(),
    },
    "additionalProperties": True,
}
RECORDS: dict[str, dict[str, Any]] = {
    "run": _object(
        "run",
        schema={"const": VERSION},
        id=_NAME,
        started=_NAME,
        mode=_choice(*MODES),
        seed=_COUNT,
        facts=_FACTS,
        levels={
            "type": "array",
            "items": _object(name=_NAME, title=_NAME, about=_TEXT, missing={"type": ["string", "null"]}),
        },
        measures={
            "type": "array",
            "items": _object(name=_NAME, group=_choice(*get_args(Group)), title=_NAME),
        },
        quantities={
            "type": "array",
            "items": _object(
                name=_NAME,
                title=_NAME,
                unit=_TEXT,
                definition=_TEXT,
                better=_choice("lower", "higher", "neither"),
                clock=_TEXT,
                cache=_TEXT,
                denominator=_TEXT,
            ),
        },
        claims={
            "type": "array",
            "items": _object(name=_NAME, title=_NAME, attack=_TEXT, kind=_NAME, row=_TEXT),
        },
    ),
    "sample": _object(
        "sample",
        level=_NAME,
        measure=_NAME,
        quantity=_NAME,
        round={"type": "integer", "minimum": 1},
        values={"type": "array", "minItems": 1, "items": {"type": "number"}},
        detail=_TEXT,
        at=_SECONDS,
    ),
    "outcome": _object(
        "outcome",
        level=_NAME,
        measure=_NAME,
        claim=_NAME,
        verdict=_choice(*get_args(Verdict)),
        detail=_TEXT,
        times={"type": ["number", "null"]},
        at=_SECONDS,
    ),
    "absent": _object("absent", level=_NAME, measure=_NAME, why=_NAME, at=_SECONDS),
    "failed": _object("failed", level=_NAME, measure=_NAME, why=_NAME, at=_SECONDS),
    "taken": _object("taken", level=_NAME, measure=_NAME, round={"type": "integer", "minimum": 1}, seconds=_SECONDS),
    "end": _object("end", seconds=_SECONDS, complete={"type": "boolean"}),
}


def document() -> dict[str, Any]:
    """The schema of one line, for other programs (JSON Schema 2020-12)."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "One line of the results of pycontain isolation",
        "description": "The first line is a run, the last one an end.",
        "type": "object",
        "oneOf": list(RECORDS.values()),
    }


_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


def wrong(value: Any, schema: dict[str, Any], where: str = "$") -> str | None:
    """What of ``value`` is not as ``schema`` says: its JSON path, what was found and what was wanted; None if all is.

    Knows the keywords that RECORDS uses. A number is to be finite, an integer to be written as one.
    """
    if "const" in schema:
        same = value == schema["const"] and type(value) is type(schema["const"])
        return None if same else f"{where}: found {_show(value)}, wanted {_show(schema['const'])}"
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(isinstance(value, _TYPES[name]) and (name == "boolean") >= isinstance(value, bool) for name in types):
        return f"{where}: found {_show(value)}, wanted {' or '.join(types)}"
    if isinstance(value, str):
        if value not in schema.get("enum", (value,)):
            return f"{where}: found {_show(value)}, wanted one of {', '.join(schema['enum'])}"
        if len(value) < schema.get("minLength", 0):
            return f"{where}: found nothing, wanted a text"
    elif isinstance(value, (int, float)):
        if not _finite(value):
            return f"{where}: found {_show(value)}, wanted a finite number"
        if value < schema.get("minimum", value):
            return f"{where}: found {value}, wanted {schema['minimum']} or more"
    elif isinstance(value, list):
        if len(value) < schema.get("minItems", 0):
            return f"{where}: found an empty list, wanted {schema['minItems']} or more"
        return _first(wrong(item, schema["items"], f"{where}[{index}]") for index, item in enumerate(value))
    elif isinstance(value, dict):
        return _wrong_object(value, schema, where)
    return None


def _wrong_object(value: dict[str, Any], schema: dict[str, Any], where: str) -> str | None:
    known = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            return f"{where}.{name}: is missing"
    rest = schema["additionalProperties"]
    for name, inner in value.items():
        if name in known:
            problem = wrong(inner, known[name], f"{where}.{name}")
        elif rest is False:
            return f"{where}.{name}: found a name that is not known, wanted one of {', '.join(known)}"
        else:
            problem = None if rest is True else wrong(inner, rest, f"{where}.{name}")
        if problem:
            return problem
    return None


def _finite(value: float) -> bool:
    try:
        return isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


def _first(problems: Iterable[str | None]) -> str | None:
    return next((problem for problem in problems if problem), None)


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
