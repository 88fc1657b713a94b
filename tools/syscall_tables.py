"""Write runtime/plan/syscall_tables.py from the kernel's own headers.

    python tools/syscall_tables.py X86_64 X86 X32 ARM AARCH64 > runtime/plan/syscall_tables.py

Each argument is the include directory of a Linux userspace header package: Debian's linux-libc-dev has the
first three in /usr/include/x86_64-linux-gnu, linux-libc-dev-armhf-cross and -arm64-cross the others in
/usr/<triplet>/include. Linux numbers every call after 423 alike on all architectures, so that calls newer
than the headers are added here by hand, in NEWER.
"""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap

# arch, the header below the include directory, macros that choose the ABI in it
HEADERS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("x86_64", "asm/unistd_64.h", ()),
    ("x86", "asm/unistd_32.h", ()),
    ("x32", "asm/unistd_x32.h", ("-D__X32_SYSCALL_BIT=0",)),
    ("arm", "asm/unistd.h", ("-D__ARM_EABI__",)),
    ("aarch64", "asm/unistd.h", ("-D__LP64__",)),
)
NEWER = (
    (451, "cachestat fchmodat2 map_shadow_stack futex_wake futex_wait futex_requeue"),  # 6.5 to 6.7
    (457, "statmount listmount lsm_get_self_attr lsm_set_self_attr lsm_list_modules mseal"),  # 6.8 to 6.10
    (463, "setxattrat getxattrat listxattrat removexattrat open_tree_attr"),  # 6.13 to 6.15
    (468, "file_getattr file_setattr listns rseq_slice_yield"),  # 6.17 to 7.0
)
UPROBES = {"uretprobe": 335, "uprobe": 336}  # x86_64 only, 6.11 and 6.17
UNIFIED = 424
# Not calls of the kernel's table: the OABI base, and the number of calls.
NO_CALLS = {
    "SYSCALL_BASE",
    "OABI_SYSCALL_BASE",
    "SYSCALL_MASK",
    "syscalls",
    "sync_file_range2",
    "arch_specific_syscall",
}


def read(include: str, header: str, macros: tuple[str, ...]) -> dict[str, int]:
    """Name → number, by asking the C preprocessor for every __NR_ macro and then for its value."""
    base = ["cc", "-E", "-nostdinc", "-I", include, *macros]
    source = f"#include <{header}>\n"
    listing = subprocess.run([*base, "-dM", "-"], input=source, capture_output=True, text=True, check=True).stdout
    names = [name for name in re.findall(r"#define __NR_(\w+) ", listing) if name not in NO_CALLS]
    source += "".join(f"= {name} __NR_{name}\n" for name in names)
    output = subprocess.run([*base, "-P", "-"], input=source, capture_output=True, text=True, check=True).stdout
    table = {}
    for name, value in re.findall(r"^= (\w+) (.+)$", output, re.MULTILINE):
        table[name] = sum(int(part, 0) for part in re.findall(r"\w+", value))
    for first, added in NEWER:
        for offset, name in enumerate(added.split()):
            assert table.setdefault(name, first + offset) == first + offset, name
    if re.search(r"private|__ARM_NR_BASE", listing):
        for name, offset in (
            ("breakpoint", 1),
            ("cacheflush", 2),
            ("usr26", 3),
            ("usr32", 4),
            ("set_tls", 5),
            ("get_tls", 6),
        ):
            table[name] = 0x0F0000 + offset
    return table


def segments(table: dict[str, int]) -> list[tuple[int, list[str]]]:
    """Runs of consecutive numbers; short gaps are filled with "-"."""
    by_number = {number: name for name, number in sorted(table.items(), reverse=True)}
    runs: list[tuple[int, list[str]]] = []
    for number in sorted(by_number):
        if runs and number - (runs[-1][0] + len(runs[-1][1])) < 8:
            runs[-1][1].extend(["-"] * (number - runs[-1][0] - len(runs[-1][1])))
            runs[-1][1].append(by_number[number])
        else:
            runs.append((number, [by_number[number]]))
    return runs


def literal(name: str, runs: list[tuple[int, list[str]]]) -> str:
    entries = "".join(f'    ({first}, """\n{wrap(names)}\n"""),\n' for first, names in runs)
    return f"# fmt: off\n{name}: Final = (\n{entries})\n# fmt: on"


def wrap(names: list[str]) -> str:
    return textwrap.fill(" ".join(names), 118, break_long_words=False, break_on_hyphens=False)


def main(includes: list[str]) -> None:
    tables = {
        arch: read(include, header, macros) for (arch, header, macros), include in zip(HEADERS, includes, strict=True)
    }
    tables["x86_64"] |= UPROBES
    tables["x32"] |= UPROBES
    unified = {name: number for name, number in tables["x86_64"].items() if number >= UNIFIED}
    time64 = {name: number for name, number in tables["x86"].items() if 403 <= number < UNIFIED}
    absent = {}
    for arch, table in tables.items():
        absent[arch] = sorted(name for name in unified if name not in table)
        assert {name: table[name] for name in unified if name in table}.items() <= unified.items(), arch
        for name in [*unified, *(time64 if arch in ("x86", "arm") else ())]:
            table.pop(name, None)
    calls_64_only = set(tables["x86_64"]) - set(tables["x32"])
    for name in list(tables["x32"]):
        if tables["x86_64"].get(name) == tables["x32"][name]:
            del tables["x32"][name]
    # x32 shares the numbers of x86_64, but for those calls whose structures differ: they moved to 512 and up.
    print(HEAD)
    for arch in ("x86_64", "x86", "aarch64", "arm"):
        print(literal(arch.upper(), segments(tables[arch])) + "\n")
    print(literal("X32", segments(tables["x32"])) + "\n")
    print("# x86_64 calls that x32 does not have at all.")
    print(f'X32_ABSENT: Final = """\n{wrap(sorted(calls_64_only))}\n"""\n')
    print("# The calls with 64-bit times of the 32-bit architectures.")
    print(literal("TIME64", segments(time64)) + "\n")
    print("# Every architecture has these numbers.")
    print(literal("UNIFIED", segments(unified)) + "\n")
    print("# ... but for those which an architecture did not wire up.")
    missing = {arch: " ".join(names) for arch, names in absent.items() if names}
    entries = ", ".join(f'"{arch}": "{names}"' for arch, names in missing.items())
    print(f"ABSENT: Final = {{{entries}}}")
    print(TAIL, end="")


HEAD = '''"""System call numbers, written by tools/syscall_tables.py from the headers of Linux; do not edit.

Each entry is (number of the first name, names of consecutive numbers), "-" where a number is free.
Read only when a filter is compiled.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final
'''

TAIL = '''
X32_BIT: Final = 0x40000000
ARM_PRIVATE: Final = 0x0F0000  # arm's calls that are not in the kernel's table


def numbers(arch: str) -> dict[str, int]:
    """Name → number of ``x86_64``, ``x86``, ``x32``, ``aarch64`` or ``arm``, as seccomp_data.nr carries it."""
    table: dict[str, int] = {}
    base = 0
    if arch == "x86_64":
        _fill(table, X86_64)
    elif arch == "x32":
        base = X32_BIT
        _fill(table, X86_64, base)
        for name in X32_ABSENT.split():
            del table[name]
        _fill(table, X32, base)
    elif arch == "x86":
        _fill(table, X86)
        _fill(table, TIME64)
    elif arch == "aarch64":
        _fill(table, AARCH64)
    else:
        _fill(table, ARM)
        _fill(table, TIME64)
        table["sync_file_range2"] = table["arm_sync_file_range"]  # one call, two names
    _fill(table, UNIFIED, base)
    for name in ABSENT.get(arch, "").split():
        del table[name]
    table.pop("-", None)
    return table


def _fill(table: dict[str, int], segments: tuple[tuple[int, str], ...], base: int = 0) -> None:
    for first, text in segments:
        names = text.split()
        table.update(zip(names, range(base + first, base + first + len(names)), strict=True))
'''

if __name__ == "__main__":
    main(sys.argv[1:])
