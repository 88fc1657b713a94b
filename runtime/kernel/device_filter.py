"""The device rules of a container on cgroup v2, as an eBPF program (BPF_PROG_TYPE_CGROUP_DEVICE).

The kernel asks it about every mknod(2) and open(2) of a device: one ``struct bpf_cgroup_dev_ctx`` (linux/bpf.h) in,
1 (allowed) or 0 (EPERM) out. Start path: imports nothing but the errors.
"""

from __future__ import annotations

from pycontain.runtime import errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Kinds and accesses as the context has them (BPF_DEVCG_*).
_KINDS = {"b": 1, "c": 2, "u": 2}
_ACCESS = {"m": 1, "r": 2, "w": 4}
_ALL = 7

_LOAD_WORD, _AND, _SHIFT_RIGHT, _MOVE, _COPY = 0x61, 0x57, 0x77, 0xB7, 0xBF
_JUMP_IF_EQUAL, _JUMP_UNLESS_EQUAL, _EXIT = 0x15, 0x55, 0x95
_RESULT, _CONTEXT, _KIND, _WANTED, _MAJOR, _MINOR = range(6)  # registers


_last: tuple[list[dict[str, Any]], bytes] = ([], b"")


def compiled(rules: list[dict[str, Any]]) -> bytes:
    """``compile_devices``, once for the same rules again and again, as a program that stays has them."""
    global _last
    known, program = _last
    if not program or known != rules:
        program = compile_devices(rules)
        _last = [dict(rule) for rule in rules], program
    return program


def compile_devices(rules: list[dict[str, Any]]) -> bytes:
    """The program for OCI ``linux.resources.devices``, an array of ``struct bpf_insn`` (8 bytes each).

    For each access the last rule that fits decides, and what no rule fits is denied. So the program goes through
    the rules from the last to the first with the set of accesses that are still undecided: an allowing rule takes
    its own away (none left: allowed), a denying one that holds any of them denies. Raises SpecError.
    """
    code = [
        _instruction(_LOAD_WORD, _KIND, _CONTEXT, 0),
        _instruction(_COPY, _WANTED, _KIND),
        _instruction(_AND, _KIND, value=0xFFFF),
        _instruction(_SHIFT_RIGHT, _WANTED, value=16),
        _instruction(_LOAD_WORD, _MAJOR, _CONTEXT, 4),
        _instruction(_LOAD_WORD, _MINOR, _CONTEXT, 8),
    ]
    for index in range(len(rules) - 1, -1, -1):
        conditions, access, allow = _parse(rules[index], f"$.linux.resources.devices[{index}]")
        if not conditions and access == _ALL:
            # Nothing before it counts, and the verifier refuses instructions that are never reached.
            return b"".join(code) + _answer(allow)
        if allow:
            body = [
                _instruction(_AND, _WANTED, value=_ALL & ~access),
                _instruction(_JUMP_UNLESS_EQUAL, _WANTED, offset=2),
            ]
        else:
            body = [
                _instruction(_COPY, _RESULT, _WANTED),
                _instruction(_AND, _RESULT, value=access),
                _instruction(_JUMP_IF_EQUAL, _RESULT, offset=2),
            ]
        length = len(body) + 2
        for register, value in reversed(conditions):
            # Past the rest of this rule: the conditions after this one, and the body.
            body.insert(0, _instruction(_JUMP_UNLESS_EQUAL, register, offset=length, value=value))
            length += 1
        code += body
        code.append(_answer(allow))
    return b"".join(code) + _answer(False)


def _instruction(operation: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return bytes((operation, target | source << 4)) + offset.to_bytes(2, "little") + value.to_bytes(4, "little")


def _answer(allow: bool) -> bytes:
    return _instruction(_MOVE, _RESULT, value=int(allow)) + _instruction(_EXIT)


def _parse(rule: dict[str, Any], path: str) -> tuple[list[tuple[int, int]], int, bool]:
    """What must be equal, as (register, value); the accesses it speaks of; whether it allows them."""
    conditions = []
    kind = rule.get("type") or "a"
    if kind != "a":
        if kind not in _KINDS:
            raise errors.SpecError(f"{path}.type", f"found {kind!r}, wanted a, b, c or u")
        conditions.append((_KIND, _KINDS[kind]))
    for field, register in (("major", _MAJOR), ("minor", _MINOR)):
        number = rule.get(field)
        if number is None or number == -1:
            continue
        if not 0 <= number < 1 << 31:
            raise errors.SpecError(f"{path}.{field}", f"found {number}, wanted a device number or -1")
        conditions.append((register, number))
    access = 0
    for letter in rule.get("access") or "rwm":
        if letter not in _ACCESS:
            raise errors.SpecError(f"{path}.access", f"found {rule['access']!r}, wanted letters of rwm")
        access |= _ACCESS[letter]
    return conditions, access, bool(rule.get("allow"))
