"""Hooks in the runtime's own namespaces: prestart, createRuntime, poststart, poststop (config.md).

init runs them as it runs those inside the container: by the same operation, in a plan that has nothing else.
"""

from __future__ import annotations

import posix as os

from pycontain.runtime import errors, namespaces
from pycontain.runtime.jsontext import dump
from pycontain.runtime.plan.plan import Plan, hook_op

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def run_all(hooks: dict[str, Any], kind: str, state: dict[str, Any]) -> None:
    """Those of one kind, in order, in the bundle; raises HookFailed at the first that fails, with its JSON path."""
    ops = [hook_op(hook, f"$.hooks.{kind}[{i}]", state["bundle"]) for i, hook in enumerate(hooks.get(kind) or ())]
    if ops:
        _run(ops, state)


def poststop(hooks: list[dict[str, Any]], state: dict[str, Any]) -> None:
    """runtime.md, "Lifecycle" 13: a poststop hook that fails is worth a warning, and the others still run."""
    for i, hook in enumerate(hooks):
        try:
            _run([hook_op(hook, f"$.hooks.poststop[{i}]", state["bundle"])], state)
        except errors.PycontainError as error:
            os.write(2, f"warning: {error.message}\n".encode())


def inner_pid(pid: int) -> int:
    """The number that ``pid`` has in its own pid namespace (proc_pid_status(5), "NSpid")."""
    fd = os.open(f"/proc/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(fd, 8192)
    finally:
        os.close(fd)
    return int(text.partition(b"\nNSpid:")[2].partition(b"\n")[0].split()[-1])


def _run(ops: list[Any], state: dict[str, Any]) -> None:
    plan = Plan(3, False, 0)
    plan.ops = [("sync",), *ops]
    process = namespaces.launch(plan)
    try:
        process.go_to_end(dump(state).encode())
    finally:
        process.close()
