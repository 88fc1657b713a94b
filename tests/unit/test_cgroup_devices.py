"""The device program of cgroup v2, run by a small interpreter and held against the plain meaning of the rules."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontain.runtime.errors import SpecError
from pycontain.runtime.kernel.device_filter import compile_devices, compiled

KINDS = {"b": 1, "c": 2}
ACCESS = {"m": 1, "r": 2, "w": 4}


def execute(program: bytes, kind: str, major: int, minor: int, access: str) -> bool:
    """Interprets the instructions in use; refuses any other, jumps backwards or out of the program, and no end."""
    mask = sum(ACCESS[letter] for letter in access)
    context = (mask << 16 | KINDS[kind], major, minor)
    registers = {1: 0}  # the context's address
    at = 0
    for _ in range(10_000):
        operation, pair = program[at], program[at + 1]
        target, source = pair & 15, pair >> 4
        offset = int.from_bytes(program[at + 2 : at + 4], "little", signed=True)
        value = int.from_bytes(program[at + 4 : at + 8], "little", signed=True)
        at += 8
        if operation == 0x61:
            assert registers[source] == 0
            registers[target] = context[offset // 4]
        elif operation == 0xBF:
            registers[target] = registers[source]
        elif operation == 0x57:
            registers[target] &= value
        elif operation == 0x77:
            registers[target] >>= value
        elif operation == 0xB7:
            registers[target] = value
        elif operation in (0x15, 0x55):
            assert offset > 0
            if (registers[target] == value) == (operation == 0x15):
                at += 8 * offset
        elif operation == 0x95:
            assert registers[0] in (0, 1)
            return registers[0] == 1
        else:
            raise AssertionError(f"operation {operation:#x}")
    raise AssertionError("it does not end")


def meaning(rules: list[dict[str, Any]], kind: str, major: int, minor: int, access: str) -> bool:
    """Everything is denied; for each access the last rule that fits decides."""

    def one(letter: str) -> bool:
        allowed = False
        for rule in rules:
            if (
                rule.get("type", "a") in ("a", kind)
                and rule.get("major", -1) in (None, -1, major)
                and rule.get("minor", -1) in (None, -1, minor)
                and letter in (rule.get("access") or "rwm")
            ):
                allowed = rule["allow"]
        return allowed

    return all(one(letter) for letter in access)


number = st.sampled_from([None, -1, 1, 2])
rules = st.lists(
    st.fixed_dictionaries(
        {"allow": st.booleans()},
        optional={
            "type": st.sampled_from("abc"),
            "access": st.sampled_from(["", "r", "w", "m", "rw", "rwm"]),
            "major": number,
            "minor": number,
        },
    ),
    max_size=7,
)


@given(rules, st.sampled_from("bc"), st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 3]))
def test_the_program_does_what_the_rules_say(rules: list[dict[str, Any]], kind: str, major: int, minor: int) -> None:
    program = compile_devices(rules)
    for access in ("r", "w", "m", "rw", "rm", "wm", "rwm"):
        assert execute(program, kind, major, minor, access) == meaning(rules, kind, major, minor, access)


@given(st.lists(rules, min_size=1, max_size=4))
def test_a_program_is_kept_for_the_same_rules_alone(several: list[list[dict[str, Any]]]) -> None:
    for rules in several:
        for _ in range(2):
            assert compiled(rules) == compile_devices(rules)
        rules.append({"allow": True, "access": "r"})  # whoever asked may change them
        assert compiled(rules) == compile_devices(rules)


def test_no_rules_allow_nothing() -> None:
    assert not execute(compile_devices([]), "c", 1, 3, "r")


def test_what_a_later_rule_covers_is_left_out() -> None:
    """The verifier refuses a program with instructions that are never reached."""
    allow = {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"}
    deny_all = {"allow": False, "access": "rwm"}
    assert compile_devices([allow, allow, deny_all]) == compile_devices([])
    assert compile_devices([deny_all, {"allow": True}]) == compile_devices([{"allow": True}])
    assert execute(compile_devices([{"allow": True}]), "b", 9, 9, "rwm")


def test_minors_go_up_to_twenty_bits() -> None:
    program = compile_devices([{"allow": True, "type": "c", "major": 4095, "minor": 1048575, "access": "r"}])
    assert execute(program, "c", 4095, 1048575, "r")
    assert not execute(program, "c", 4095, 1048574, "r")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"allow": True, "type": "x"}, "$.linux.resources.devices[1].type: found 'x', wanted a, b, c or u"),
        ({"allow": True, "major": -2}, "$.linux.resources.devices[1].major: found -2, wanted a device number or -1"),
        (
            {"allow": True, "minor": 1 << 31},
            "$.linux.resources.devices[1].minor: found 2147483648, wanted a device number or -1",
        ),
        ({"allow": True, "access": "rx"}, "$.linux.resources.devices[1].access: found 'rx', wanted letters of rwm"),
    ],
)
def test_rules_that_are_refused(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        compile_devices([{"allow": False}, rule])
    assert caught.value.message == message
