"""The verbs on machines: vm doctor, vm kernel, vm build-kernel."""

from __future__ import annotations

import sys

from pycontain.commands.parser import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontain.engine import Engine

    Values = dict[str, Any]


def doctor(engine: Engine, values: Values) -> int:
    from pycontain.engine import machines

    checks, able = machines.examine()
    if values.get("format") == "json":
        import json

        print(json.dumps({"able": able, "checks": checks}, indent=4, ensure_ascii=False))
        return 0 if able else 1
    for check in checks:
        print(f"{check['state']:8} {check['name']:11} {check['found']}")
        if check["command"]:
            print(f"{'':20} -> {check['command']}")
    print(f"\n{'Machines can be started.' if able else 'No machine can be started: see what is missing.'}")
    return 0 if able else 1


def kernel(engine: Engine, values: Values) -> int:
    from pycontain.engine import machines

    print(machines.kernel())
    return 0


def build_kernel(engine: Engine, values: Values) -> int:
    from pycontain.engine import machines

    jobs = values.get("jobs")
    if jobs is not None and (not jobs.isdecimal() or int(jobs) < 1):
        raise UsageError(f'--jobs of "pycontain vm build-kernel" cannot be "{jobs}": wanted a number from 1 on')
    built = machines.build_kernel(values.get("output"), values.get("source"), int(jobs) if jobs else None, _say)
    print(f"{built.path}: {built.release}, {built.size >> 10} KiB, built in {built.seconds:.0f} s")
    print(f'To use it, write this into {machines.FILE}:\n\n    kernel = "{built.path}"')
    return 0


def _say(line: str) -> None:
    """Progress, apart from the result."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
