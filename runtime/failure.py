"""What init says when it fails, in words."""

from __future__ import annotations

from pycontain.runtime import channel, errors
from pycontain.runtime.plan.describe import advice, describe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontain.runtime.plan.plan import Plan

_NO_OP = 0xFFFFFFFF  # the index of a failure that is no operation's


def failure(plan: Plan, payload: bytes) -> errors.PycontainError:
    """A FAILED message as an error: what was tried, on what, and what the kernel said."""
    index, number, detail = parse(payload)
    if index == _NO_OP:
        return errors.KernelErrorText(f"cannot {detail}: {errors.errno_text(number)}", number)
    op = plan.ops[index] if index < len(plan.ops) else ("exec", "init", ["init"], [], 0)
    said = errors.errno_text(number) if number else ""
    where = detail.split("(")[0]  # a failed call is reported as its C text: the system call's name is enough
    if op[0] in ("exec", "find"):
        return _exec_failure(op, number, said)
    if op[0] == "hook":
        return errors.HookFailed(": ".join(part for part in (op[1], f"hook {op[2]} {where}", said) if part), number)
    if op[0].startswith("seccomp") and where == "syscall":
        where = "seccomp"
    parts = [f"cannot {describe(op)}", where if where != "syscall" else "", said]
    hint = advice(op, number) if plan.hint is None else plan.hint(op, number)
    return errors.KernelErrorText(": ".join(part for part in parts if part), number, hint=hint)


def _exec_failure(op: tuple[Any, ...], number: int, said: str) -> errors.PycontainError:
    program = op[1]
    if number == 2:
        where = "" if "/" in program else " in $PATH"
        return errors.KernelErrorText(
            f"cannot execute {program!r}: executable file not found{where}: {said}", number, exit_code=127
        )
    return errors.KernelErrorText(f"cannot execute {program!r}: {said}", number, exit_code=126)


def parse(payload: bytes) -> tuple[int, int, str]:
    """``(operation index, errno, detail)`` of a FAILED message; the detail is a call's text or says what was found."""
    if len(payload) < 8:
        raise errors.Nonsense("init sent nonsense: found a failure of less than 8 bytes")
    error = int.from_bytes(payload[4:8], "little", signed=True)
    detail = payload[8 : 8 + channel.DETAIL_BYTES].decode("utf-8", "replace")
    if not detail.isprintable():  # it goes to a terminal
        detail = "".join(c if c.isprintable() else "?" for c in detail)
    return int.from_bytes(payload[:4], "little"), error, detail
