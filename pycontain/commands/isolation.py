"""The verbs of the comparison: isolation run, isolation levels."""

from __future__ import annotations

from pycontain.commands.parser import UsageError

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

