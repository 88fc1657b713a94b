"""The verbs of the comparison: isolation run, report, compare, levels."""

from __future__ import annotations

import os
import sys

from pycontain.commands.parser import UsageError
from pycontain.runtime.errors import KernelError, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontain.engine import Engine

    Values = dict[str, Any]


def run(engine: Engine, values: Values) -> int:
    from pycontain.isolation import runner, session

    if values.get("quick") and values.get("full"):
        raise UsageError('"pycontain isolation run" cannot be both --quick and --full')
    if values.get("resume"):
        fixed = [name for name in ("output", "only", "level", "seed") if values.get(name)]
        if fixed:
            raise UsageError(f"--resume goes on as the run began: it has no use for --{fixed[0]}")
    options = runner.Options(
        mode="full" if values.get("full") else "quick",
        only=tuple(values.get("only", ())),
        levels=tuple(values.get("level", ())),
        budget=_number(values, "budget"),
        seed=_number(values, "seed"),
    )
    return session.take(options, values.get("output"), values.get("resume"))


def _number(values: Values, name: str) -> int | None:
    given = values.get(name)
    if given is None:
        return None
    if not given.isdecimal() or len(given) > 9:
        raise UsageError(f'--{name} of "pycontain isolation run" cannot be "{given}": wanted a whole number')
    return int(given)


def levels(engine: Engine, values: Values) -> int:
    from pycontain.isolation.levels import LEVELS
    from pycontain.isolation.measures import MEASURES
    from pycontain.isolation.runner import GROUPS

    if values.get("quiet"):
        names = [level.name for level in LEVELS]
        if values.get("measures"):
            names += [*GROUPS, *(measure.name for measure in MEASURES)]
        print("\n".join(names))
        return 0
    from pycontain.isolation import session

    found = session.examine()
    if values.get("format") == "json":
        import json

        listed: Values = {"levels": found}
        if values.get("measures"):
            listed["measures"] = [
                {"name": measure.name, "group": measure.group, "title": measure.title, "quick": measure.quick}
                for measure in MEASURES
            ]
        print(json.dumps(listed, indent=4, ensure_ascii=False))
        return 0
    for level in found:
        state = "missing" if level["missing"] else "ok"
        print(f"{state:8} {level['name']:20} {level['missing'] or level['about']}")
    if values.get("measures"):
        print()
        for measure in MEASURES:
            print(f"{measure.group:13} {measure.name:20} {measure.title}{'' if measure.quick else ' (--full)'}")
    return 0


def report(engine: Engine, values: Values) -> int:
    from pycontain.isolation import markdown, results
    from pycontain.isolation import report as pages

    found = results.load(values.get("FILE") or _newest())
    html, text = values.get("html"), values.get("markdown")
    if html is None and text is None:
        html = os.path.splitext(found.path)[0] + ".html"
    for path, make in ((html, pages.html), (text, markdown.markdown)):
        if path is not None:
            _put(path, make(found))
    return 0


def _newest() -> str:
    """The last results that ``isolation run`` wrote here under a name of its own choice."""
    names = [name for name in os.listdir() if name.startswith("isolation-") and name.endswith(".jsonl")]
    if not names:
        raise NotFound("there are no results in this directory", hint="pycontain isolation run --quick")
    return max(names, key=lambda name: os.stat(name).st_mtime_ns)


def _put(path: str, text: str) -> None:
    """Write a page and say where it is; "-" is standard output."""
    if path == "-":
        sys.stdout.write(text)
        return
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise KernelError(f"cannot write the report to {path}", error.errno or 0) from None
    print(path)


def compare(engine: Engine, values: Values) -> int:
    from pycontain.isolation import compare as comparing
    from pycontain.isolation import results

    found = comparing.compare(results.load(values["OLD"]), results.load(values["NEW"]))
    sys.stdout.write(found.text())
    return 1 if found.regressions else 0
