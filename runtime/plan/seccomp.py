"""OCI ``linux.seccomp`` to the classic BPF program that seccomp(2) takes; and the default profile.

The shape of a program: load the architecture; for each one that this machine can execute, load the call's
number and search it by halves; a leaf either returns an action or compares arguments first. Decisions are
those of libseccomp as runc drives it, but for the cases that docs/design/seccomp.md lists.
"""

from __future__ import annotations

from pycontain.runtime import errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, Final

    Condition = tuple[int, str, int, int]  # argument, operator, value, second value
    # The alternatives of a rule, each a conjunction; None is a rule without conditions.
    Rule = tuple[list[str], int, list[list[Condition]] | None]
    Leaf = int | bytes  # an action, or the instructions that find one

PATH: Final = "$.linux.seccomp"

# <linux/seccomp.h>; the low 16 bits of ERRNO and TRACE are data.
KILL_PROCESS: Final = 0x80000000
KILL_THREAD: Final = 0x00000000
TRAP: Final = 0x00030000
ERRNO: Final = 0x00050000
NOTIFY: Final = 0x7FC00000
TRACE: Final = 0x7FF00000
LOG: Final = 0x7FFC0000
ALLOW: Final = 0x7FFF0000
ACTIONS: Final = {
    "SCMP_ACT_KILL": KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": KILL_PROCESS,
    "SCMP_ACT_KILL_THREAD": KILL_THREAD,
    "SCMP_ACT_TRAP": TRAP,
    "SCMP_ACT_ERRNO": ERRNO,
    "SCMP_ACT_TRACE": TRACE,
    "SCMP_ACT_ALLOW": ALLOW,
    "SCMP_ACT_LOG": LOG,
    "SCMP_ACT_NOTIFY": NOTIFY,
}
EPERM: Final = 1
ENOSYS: Final = 38
DATA_MAX: Final = {ERRNO: 4095, TRACE: 0xFFFF}  # the kernel clips an errno to MAX_ERRNO

FLAGS: Final = {
    "SECCOMP_FILTER_FLAG_TSYNC": 1,
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 32,
}
NEW_LISTENER: Final = 8
TSYNC_ESRCH: Final = 16

OPERATORS: Final = ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")

# What a machine can execute, native first; and the numbers of <linux/audit.h> in seccomp_data.arch.
FAMILIES: Final = {"x86_64": ("x86_64", "x86", "x32"), "aarch64": ("aarch64", "arm")}
AUDIT_ARCHES: Final = {"x86_64": 0xC000003E, "x86": 0x40000003, "aarch64": 0xC00000B7, "arm": 0x40000028}
ARCHITECTURES: Final = (
    "X86 X86_64 X32 ARM AARCH64 MIPS MIPS64 MIPS64N32 MIPSEL MIPSEL64 MIPSEL64N32 PPC PPC64 PPC64LE "
    "S390 S390X PARISC PARISC64 RISCV64 LOONGARCH64 M68K SH SHEB"
)

# 32-bit x86 can reach these calls through one door as well: the first argument of socketcall(2) or ipc(2).
SOCKETCALL: Final = (
    "socket bind connect listen accept getsockname getpeername socketpair send recv sendto recvfrom shutdown "
    "setsockopt getsockopt sendmsg recvmsg accept4 recvmmsg sendmmsg"
)
IPC: Final = {
    "semop": 1, "semget": 2, "semctl": 3, "semtimedop": 4, "msgsnd": 11, "msgrcv": 12, "msgget": 13, "msgctl": 14,
    "shmat": 21, "shmdt": 22, "shmget": 23, "shmctl": 24,
}  # fmt: skip

# <linux/filter.h>: BPF_LD|BPF_W|BPF_ABS, BPF_ALU|BPF_AND|BPF_K, BPF_JMP|BPF_{JA,JEQ,JGT,JGE}|BPF_K, BPF_RET|BPF_K
LD: Final = 0x20
AND: Final = 0x54
JA: Final = 0x05
JEQ: Final = 0x15
JGT: Final = 0x25
JGE: Final = 0x35
RET: Final = 0x06
MAX_INSTRUCTIONS: Final = 4096  # BPF_MAXINSNS


class Filter:
    """A compiled filter.

    ``program``: array of struct sock_filter (8 bytes each, little endian); ``flags``: for seccomp(2),
    SECCOMP_SET_MODE_FILTER; ``skipped``: names of the configuration that mean nothing on this machine;
    ``notifies``: whether seccomp(2) returns a listener, which somebody has to listen to.
    """

    __slots__ = ("flags", "notifies", "program", "skipped")

    def __init__(self, program: bytes, flags: int, skipped: list[str]) -> None:
        self.program = program
        self.flags = flags
        self.skipped = skipped
        self.notifies = bool(flags & NEW_LISTENER)


def compile_filter(seccomp: Mapping[str, Any], arch: str | None = None) -> Filter:
    """Compile OCI ``linux.seccomp`` (config-linux.md, Seccomp) for a machine, ``x86_64`` or ``aarch64``.

    SpecError: malformed, with its JSON path, or more instructions than the kernel takes.
    Unsupported: SCMP_ACT_NOTIFY where init could not go on, or another machine.
    """
    machine = _machine(arch)
    if not isinstance(seccomp, dict):
        raise errors.SpecError(PATH, "is not an object")
    default = _action(seccomp, "defaultAction", "defaultErrnoRet", PATH)
    skipped: list[str] = []
    arches = _architectures(seccomp, machine, skipped)
    flags = _flags(seccomp)
    if seccomp.get("listenerMetadata") and not seccomp.get("listenerPath"):
        raise errors.SpecError(f"{PATH}.listenerMetadata", "is set, but listenerPath is not")
    rules = [_rule(entry, f"{PATH}.syscalls[{i}]") for i, entry in enumerate(_array(seccomp, "syscalls"))]
    flags = _listening(seccomp, flags, default, rules)
    program = _program(rules, default, arches, skipped)
    if len(program) > 8 * MAX_INSTRUCTIONS:
        raise errors.SpecError(
            PATH, f"compiles to {len(program) // 8} instructions, the kernel takes {MAX_INSTRUCTIONS}"
        )
    return Filter(program, flags, skipped)


def default_profile(caps: Iterable[str], arch: str | None = None) -> dict[str, Any]:
    """The profile of a container that asks for none, as OCI ``linux.seccomp``.

    ``caps``: the bounding set by OCI names, each of which opens the calls that it is about. ``arch``: that of
    the image, ``x86_64``, ``aarch64``, or the 32-bit ``x86`` and ``arm``; None means the host's.
    """
    from pycontain.runtime.plan.seccomp_profile import build

    return build(frozenset(caps), arch or _machine(None))


def _machine(arch: str | None) -> str:
    if arch is None:
        from posix import uname

        arch = uname().machine
    if arch not in FAMILIES:
        raise errors.Unsupported(f"seccomp filters for {arch} are not supported, only for {' and '.join(FAMILIES)}")
    return arch


# Reading the configuration


def _array(where: Mapping[str, Any], key: str, path: str = PATH) -> list[Any]:
    value = where.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise errors.SpecError(f"{path}.{key}", "is not an array")
    return value


def _unsigned(value: object, path: str, bits: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << bits:
        raise errors.SpecError(path, f"is {value!r}, wanted a number from 0 to {(1 << bits) - 1}")
    return value


def _action(where: Mapping[str, Any], key: str, errno_key: str, path: str) -> int:
    name = where.get(key)
    if not isinstance(name, str) or name not in ACTIONS:
        found = "is missing" if name is None else f"is {name!r}"
        raise errors.SpecError(f"{path}.{key}", f"{found}, wanted one of {' '.join(ACTIONS)}")
    action = ACTIONS[name]
    data = where.get(errno_key)
    if data is None:
        return action | EPERM if action in DATA_MAX else action
    if action not in DATA_MAX:
        raise errors.SpecError(f"{path}.{errno_key}", f"is set, but {name} returns no errno")
    value = _unsigned(data, f"{path}.{errno_key}", 32)
    if value > DATA_MAX[action]:
        raise errors.SpecError(f"{path}.{errno_key}", f"is {value}, {name} takes 0 to {DATA_MAX[action]}")
    return action | value


def _architectures(seccomp: Mapping[str, Any], machine: str, skipped: list[str]) -> list[str]:
    """Those of the configuration that the machine can execute; the native one is always among them."""
    wanted = {machine}
    for index, name in enumerate(_array(seccomp, "architectures")):
        short = name[10:] if isinstance(name, str) and name.startswith("SCMP_ARCH_") else ""
        if not short or short not in ARCHITECTURES.split():
            raise errors.SpecError(
                f"{PATH}.architectures[{index}]", f"is {name!r}, wanted a name such as SCMP_ARCH_X86_64"
            )
        if short.lower() in FAMILIES[machine]:
            wanted.add(short.lower())
        else:
            skipped.append(name)  # no process of this machine can make such a call
    return [arch for arch in FAMILIES[machine] if arch in wanted]


def _flags(seccomp: Mapping[str, Any]) -> int:
    flags = 0
    for index, name in enumerate(_array(seccomp, "flags")):
        path = f"{PATH}.flags[{index}]"
        if not isinstance(name, str) or name not in FLAGS:
            raise errors.SpecError(path, f"is {name!r}, wanted one of {' '.join(FLAGS)}")
        flags |= FLAGS[name]
    return flags


def _listening(seccomp: Mapping[str, Any], flags: int, default: int, rules: list[Rule]) -> int:
    """The flags with what a listener wants. Raises SpecError and Unsupported for one that cannot be had."""
    if default == NOTIFY:
        raise errors.Unsupported(
            f"{PATH}.defaultAction: SCMP_ACT_NOTIFY would stop the process before its listener is handed over"
        )
    notified = [i for i, rule in enumerate(rules) if rule[1] == NOTIFY]
    if not notified:
        # It says how to wait for the answer to a notification; seccomp(2): EINVAL without a listener.
        return flags & ~FLAGS["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]
    for i in notified:
        if "write" in rules[i][0]:
            what = "SCMP_ACT_NOTIFY of write would stop the process before its listener is handed over"
            raise errors.Unsupported(f"{PATH}.syscalls[{i}].action: {what}")
    path = seccomp.get("listenerPath")
    if not isinstance(path, str) or not path.startswith("/"):
        found = "found nothing" if not path else f"found {path!r}"
        wanted = "wanted the socket to send the listener of SCMP_ACT_NOTIFY to"
        raise errors.SpecError(f"{PATH}.listenerPath", f"{found}, {wanted}")
    if flags & FLAGS["SECCOMP_FILTER_FLAG_TSYNC"]:
        flags |= TSYNC_ESRCH  # else the two cannot go together: both say something with the return value
    return flags | NEW_LISTENER


def _rule(entry: object, path: str) -> Rule:
    if not isinstance(entry, dict):
        raise errors.SpecError(path, "is not an object")
    names = _array(entry, "names", path)
    if not names:
        raise errors.SpecError(f"{path}.names", "is empty, wanted at least one system call")
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise errors.SpecError(f"{path}.names[{index}]", f"is {name!r}, wanted the name of a system call")
    action = _action(entry, "action", "errnoRet", path)
    conditions = [_condition(arg, f"{path}.args[{index}]") for index, arg in enumerate(_array(entry, "args", path))]
    if not conditions:
        return names, action, None
    if len({condition[0] for condition in conditions}) == len(conditions):
        return names, action, [conditions]
    # An argument named twice: runc makes each condition a rule of its own, and profiles rely on that "or".
    return names, action, [[condition] for condition in conditions]


def _condition(arg: object, path: str) -> Condition:
    if not isinstance(arg, dict):
        raise errors.SpecError(path, "is not an object")
    index = _unsigned(arg.get("index"), f"{path}.index", 32)
    if index > 5:
        raise errors.SpecError(f"{path}.index", f"is {index}, a system call has arguments 0 to 5")
    op = arg.get("op")
    if not isinstance(op, str) or not op.startswith("SCMP_CMP_") or op[9:] not in OPERATORS:
        raise errors.SpecError(f"{path}.op", f"is {op!r}, wanted SCMP_CMP_ and one of {' '.join(OPERATORS)}")
    value = _unsigned(arg.get("value"), f"{path}.value", 64)
    second = arg.get("valueTwo")
    return index, op[9:], value, 0 if second is None else _unsigned(second, f"{path}.valueTwo", 64)


# Generating the program


def _ins(code: int, k: int, jt: int = 0, jf: int = 0) -> bytes:
    """One struct sock_filter; jt and jf, and k of JA, count the instructions that a jump passes over."""
    return (code | jt << 16 | jf << 24 | k << 32).to_bytes(8, "little")


def _program(rules: list[Rule], default: int, arches: list[str], skipped: list[str]) -> bytes:
    from pycontain.runtime.plan.syscall_tables import ARM_PRIVATE, numbers

    names = dict.fromkeys([name for rule in rules for name in rule[0]])
    unknown = set(names)
    leaves: dict[str, dict[int, Leaf]] = {}
    highest: dict[str, int] = {}
    for arch in arches:
        table = numbers(arch)
        doors = _doors(arch)
        unknown -= table.keys() | doors.keys()
        leaves[arch] = _leaves(rules, default, table, doors, arch in ("x86_64", "aarch64"))
        # arm's private calls lie far above its table
        known = [table[name] for name in names if name in table and table[name] & ~0xFF != ARM_PRIVATE]
        highest[arch] = max(known, default=0)
    skipped.extend(name for name in names if name in unknown)

    program = _ins(LD, 4)
    for arch in arches:
        if arch == "x32":
            continue
        calls = leaves[arch]
        floor = _floor(0, highest[arch], default)
        if arch == "x86_64":
            # x32 calls come with the same architecture and bit 30 set in the number. Where the filter is
            # not about them they are a foreign architecture; -1 is how a tracer skips a call.
            if "x32" in arches:
                calls |= leaves["x32"]
                floor += _floor(1 << 30, highest["x32"], default)
            else:
                floor += [(1 << 30, KILL_THREAD), (0xFFFFFFFF, default)]
        body = _ins(LD, 0) + _search(_ranges(floor, calls), {})
        program += _ins(JEQ, AUDIT_ARCHES[arch], 1, 0) + _ins(JA, len(body) // 8) + body
    return program + _ins(RET, KILL_THREAD)


def _doors(arch: str) -> dict[str, tuple[int, int, int]]:
    """Calls behind socketcall(2) and ipc(2) of 32-bit x86: name → (number, mask of the first argument, its value).

    The kernel takes the upper half of ipc's first argument for a version and ignores it when choosing the call.
    """
    if arch != "x86":
        return {}
    doors = {name: (102, 0xFFFFFFFF, index) for index, name in enumerate(SOCKETCALL.split(), 1)}
    doors |= {name: (117, 0xFFFF, index) for name, index in IPC.items()}
    return doors


def _leaves(
    rules: list[Rule], default: int, table: dict[str, int], doors: dict[str, tuple[int, int, int]], wide: bool
) -> dict[int, Leaf]:
    """Number → leaf. A call's first rule without conditions decides alone, else the first whose conditions hold."""
    always: dict[int, int] = {}
    guarded: dict[int, list[tuple[list[Condition], int]]] = {}
    for names, action, alternatives in rules:
        if action == default:
            continue
        found = [table[name] for name in names if name in table]
        if alternatives is None:
            always = dict.fromkeys(found, action) | always
        else:
            for number in found:
                guarded.setdefault(number, []).extend([(conditions, action) for conditions in alternatives])
        if doors and (alternatives is None or action not in (ALLOW, LOG)):
            # The arguments behind the door are in memory, out of reach: a conditional refusal refuses
            # the call whole there, a conditional permission opens nothing.
            for name in names:
                if name in doors:
                    number, mask, value = doors[name]
                    guarded.setdefault(number, []).append(([(0, "MASKED_EQ", mask, value)], action))
    leaves: dict[int, Leaf] = dict(always)
    for number, choices in guarded.items():
        if number not in always:
            leaves[number] = _guard(choices, default, wide)
    return leaves


def _floor(first: int, highest: int, default: int) -> list[tuple[int, int]]:
    """What numbers from ``first`` without a rule get: [(first number, action)].

    A restrictive filter answers ENOSYS above the highest number that it knows of, as runc does, so that C
    libraries fall back from calls that are newer than the profile.
    """
    if highest == 0 or default in (ALLOW, LOG) or default & ~0xFFFF == TRACE:
        return [(first, default)]
    return [(first, default), (highest + 1, ERRNO | ENOSYS)]


def _ranges(floor: list[tuple[int, int]], leaves: dict[int, Leaf]) -> list[tuple[int, Leaf]]:
    """Ranges of numbers with one leaf: [(first number, leaf)], from 0 upwards."""
    ranges: list[tuple[int, Leaf]] = []
    last: Leaf | None = None
    numbers = [*sorted(leaves), 1 << 32]
    at = 0
    for (first, action), (end, _) in zip(floor, [*floor[1:], (1 << 32, 0)], strict=True):
        free = first
        while numbers[at] < end:
            number = numbers[at]
            leaf = leaves[number]
            if free < number and last != action:
                ranges.append((free, action))
                last = action
            if last != leaf:
                ranges.append((number, leaf))
                last = leaf
            free = number + 1
            at += 1
        if free < end and last != action:
            ranges.append((free, action))
            last = action
    return ranges


def _search(ranges: list[tuple[int, Leaf]], returns: dict[int, bytes]) -> bytes:
    """Binary search; jumps reach 255 instructions, so that a longer left half is jumped over by JA."""
    if len(ranges) == 1:
        leaf = ranges[0][1]
        if isinstance(leaf, bytes):
            return leaf
        if leaf not in returns:
            returns[leaf] = _ins(RET, leaf)
        return returns[leaf]
    middle = len(ranges) // 2
    pivot = ranges[middle][0]
    left = _search(ranges[:middle], returns)
    over = len(left) // 8
    jump = _ins(JGE, pivot, over, 0) if over < 256 else _ins(JGE, pivot, 0, 1) + _ins(JA, over)
    return jump + left + _search(ranges[middle:], returns)


def _guard(alternatives: list[tuple[list[Condition], int]], default: int, wide: bool) -> bytes:
    code: list[bytes] = []
    for conditions, action in alternatives:
        block = [_compare(condition, wide) for condition in conditions]
        left = sum(map(len, block))  # instructions up to this alternative's RET
        for instructions in block:
            for at, (op, k, jump_true, jump_false) in enumerate(instructions):
                targets = {"": 0, "pass": len(instructions) - at - 1, "fail": left - at}
                code.append(_ins(op, k, targets[jump_true], targets[jump_false]))
            left -= len(instructions)
        code.append(_ins(RET, action))
    code.append(_ins(RET, default))
    return b"".join(code)


def _compare(condition: Condition, wide: bool) -> list[tuple[int, int, str, str]]:
    """Instructions of one comparison: (code, k, where to go if true, if false); "" is the next one.

    Arguments are 64-bit and BPF words 32-bit, so that the high word goes first. 32-bit architectures compare
    the low word alone: in a 64-bit process that makes 32-bit calls the kernel ignores what is above it.
    """
    arg, op, value, second = condition
    low, high = 16 + 8 * arg, 20 + 8 * arg
    vlow, vhigh = value & 0xFFFFFFFF, value >> 32
    if op == "MASKED_EQ":
        second &= value
        code = [(LD, low, "", ""), (AND, vlow, "", ""), (JEQ, second & 0xFFFFFFFF, "", "fail")]
        if not wide or not vhigh:
            return code
        return [(LD, high, "", ""), (AND, vhigh, "", ""), (JEQ, second >> 32, "", "fail"), *code]
    if op == "EQ":
        code = [(LD, low, "", ""), (JEQ, vlow, "", "fail")]
        return [(LD, high, "", ""), (JEQ, vhigh, "", "fail"), *code] if wide else code
    if op == "NE":
        code = [(LD, low, "", ""), (JEQ, vlow, "fail", "")]
        return [(LD, high, "", ""), (JEQ, vhigh, "", "pass"), *code] if wide else code
    jump = JGT if op in ("GT", "LE") else JGE
    if op in ("GT", "GE"):
        code = [(LD, low, "", ""), (jump, vlow, "", "fail")]
        return [(LD, high, "", ""), (JGT, vhigh, "pass", ""), (JEQ, vhigh, "", "fail"), *code] if wide else code
    code = [(LD, low, "", ""), (jump, vlow, "fail", "")]
    return [(LD, high, "", ""), (JGT, vhigh, "fail", ""), (JEQ, vhigh, "", "pass"), *code] if wide else code
