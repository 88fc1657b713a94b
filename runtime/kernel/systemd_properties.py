"""Properties of systemd's units: what limits, device rules and annotations of config.json are there.

systemd.resource-control(5); a property is ``(name, (D-Bus signature, value))``.
"""

from __future__ import annotations

from pycontain.runtime.errors import SpecError, Unsupported
from pycontain.runtime.jsontext import dump
from pycontain.runtime.kernel.cgroup import RESOURCES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Value = tuple[str, Any]
    Property = tuple[str, Value]

ANNOTATION = "org.systemd.property."
INFINITY = (1 << 64) - 1

# Files of cgroup v2 and the property that stands for them; the third: whether 0 is a value that systemd takes.
_LIMITS = {
    "memory.max": ("MemoryMax", False),
    "memory.high": ("MemoryHigh", False),
    "memory.low": ("MemoryLow", True),
    "memory.min": ("MemoryMin", True),
    "memory.swap.max": ("MemorySwapMax", True),
    "pids.max": ("TasksMax", False),
    "cpu.weight": ("CPUWeight", False),
    "io.weight": ("IOWeight", False),
}
_SETS = {"cpuset.cpus": "AllowedCPUs", "cpuset.mems": "AllowedMemoryNodes"}
_SETS_SINCE = 244
_QUOTA_PERIOD_SINCE = 242
_IDLE_SINCE = 252

# What an annotation may not say: it is said elsewhere in config.json, ...
_OURS = frozenset(
    ("PIDs", "Slice", "Controller", "Delegate", "DelegateControllers", "DelegateSubgroup",
     "DevicePolicy", "DeviceAllow")
)  # fmt: skip
# ... or it starts or stops what is not the container (CVE-2024-3154).
_REACHES_OUT = frozenset(
    ("Requires", "Requisite", "Wants", "BindsTo", "PartOf", "Upholds", "Conflicts", "OnFailure", "OnSuccess",
     "PropagatesStopTo", "PropagatesReloadTo", "ReloadPropagatedFrom", "StopPropagatedFrom", "RequiresMountsFor",
     "RequiredBy", "WantedBy", "BoundBy", "ConflictedBy", "UpheldBy", "ConsistsOf", "RequisiteOf")
)  # fmt: skip


def version(text: str) -> int:
    """252 for ``252.38-1~deb12u1`` or ``v252``; 0 where there is no number."""
    digits = ""
    for c in text.lstrip("v"):
        if not c.isdigit():
            break
        digits += c
    return int(digits or 0)


def of_settings(settings: list[tuple[str, str, str]], systemd: int) -> list[Property]:
    """The properties for what is going to be written to files (``CgroupV2.settings``).

    A file without a property has none in systemd either, which then leaves it alone.
    """
    found: list[Property] = []
    for _, path, value in settings:
        name, words = path.rpartition("/")[2], value.split()
        if name in _LIMITS and words:
            key, nought = _LIMITS[name]
            number = INFINITY if words[-1] == "max" else int(words[-1]) if words[-1].isdigit() else None
            if number is not None and (number or nought) and (len(words) == 1 or words[0] == "default"):
                found.append((key, ("t", number)))
        elif name in _SETS and systemd >= _SETS_SINCE:
            found.append((_SETS[name], ("ay", bitmap(value))))
        elif name == "cpu.idle" and value == "1" and systemd >= _IDLE_SINCE:
            found.append(("CPUWeight", ("t", 0)))
        elif name == "cpu.max" and words:
            found += _quota(words, systemd)
    return found


def _quota(words: list[str], systemd: int) -> list[Property]:
    period = int(words[1]) if len(words) > 1 else 100_000
    found: list[Property] = []
    if len(words) > 1 and systemd >= _QUOTA_PERIOD_SINCE:
        found.append(("CPUQuotaPeriodUSec", ("t", period)))
    # Whole percents are all that systemd keeps: rounded up, and the file has the exact value.
    per_second = INFINITY if words[0] == "max" else -(-int(words[0]) * 100 // period) * 10_000
    return [*found, ("CPUQuotaPerSecUSec", ("t", per_second))]


def bitmap(ranges: str) -> bytes:
    """``0-2,8`` as bits, the lowest first: ``07 01``. Raises SpecError."""
    bits = 0
    for part in ranges.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or dash and not last.isdigit() or int(last or first) > 65535:
            raise SpecError(f"{RESOURCES}cpu", f"found {ranges!r}, wanted a list such as 0-2,8")
        for i in range(int(first), int(last or first) + 1):
            bits |= 1 << i
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


def of_devices(rules: list[dict[str, Any]]) -> list[Property]:
    """DevicePolicy and DeviceAllow for ``$.linux.resources.devices``, beside the program that decides.

    systemd has a list of what is allowed and nothing else: rules that are not one leave its filter open, and ours,
    which knows them all, decides alone.
    """
    allowed: list[tuple[str, str]] = []
    everything = True
    for rule in rules:
        kind, major, minor = rule.get("type") or "a", rule.get("major", -1), rule.get("minor", -1)
        access = rule.get("access") or "rwm"
        if kind == "a":
            everything, allowed = bool(rule.get("allow")), []
        elif not rule.get("allow") or everything or major == -1 and minor != -1:
            return _OPEN
        elif major == -1:
            allowed.append(("char-*" if kind in "cu" else "block-*", access))
        elif minor == -1:
            allowed.append((f"{'char' if kind in 'cu' else 'block'}-{major}", access))
        else:
            allowed.append((f"/dev/{'char' if kind in 'cu' else 'block'}/{major}:{minor}", access))
    if everything:
        return _OPEN
    # An empty list takes away what is there.
    return [("DevicePolicy", ("s", "strict")), ("DeviceAllow", ("a(ss)", [])), ("DeviceAllow", ("a(ss)", allowed))]


_OPEN: list[Property] = [("DevicePolicy", ("s", "auto")), ("DeviceAllow", ("a(ss)", []))]


def annotated(annotations: dict[str, str]) -> list[Property]:
    """The properties that annotations ask for, each by its own: ``org.systemd.property.TimeoutStopUSec``: ``uint64 5``.

    A name is letters alone, so that no separator gets through (CVE-2022-0811). Raises SpecError, Unsupported.
    """
    found: list[Property] = []
    for key, text in annotations.items():
        if not key.startswith(ANNOTATION):
            continue
        name, where = key[len(ANNOTATION) :], f"$.annotations[{dump(key)}]"
        if len(name) < 3 or not name.isascii() or not name.isalpha():
            raise SpecError(where, f"found {name!r}, wanted the name of a property, which is letters alone")
        if name in _OURS:
            raise SpecError(where, f"{name} is what $.linux.cgroupsPath and $.linux.resources say, not an annotation")
        if name in _REACHES_OUT or name.endswith("Action"):
            raise Unsupported(f"{where}: {name} acts on more than the container")
        signature, value = _Text(text, where).whole()
        if name.endswith("Sec") and not name.endswith("USec"):
            # As people write it and D-Bus does not know it.
            if signature not in "ynqiuxtd":
                raise SpecError(where, f"found {text!r}, wanted a number of seconds")
            name, signature, value = name[:-3] + "USec", "t", int(value * 1_000_000)
        found.append((name, (signature, value)))
    return found


class _Text:
    """GVariant's text format: booleans, numbers, strings, arrays of them, and types in front where they are wanted."""

    _TYPES = {
        "byte": "y", "int16": "n", "uint16": "q", "int32": "i", "uint32": "u", "int64": "x", "uint64": "t",
        "double": "d", "boolean": "b", "string": "s",
    }  # fmt: skip
    _BITS = {"y": (0, 8), "n": (1, 16), "q": (0, 16), "i": (1, 32), "u": (0, 32), "x": (1, 64), "t": (0, 64)}
    _ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"'}

    def __init__(self, text: str, where: str) -> None:
        self._text = text
        self._at = 0
        self._where = where

    def whole(self) -> Value:
        value = self._value("")
        self._blank()
        if self._at != len(self._text):
            raise self._wrong()
        return value

    def _wrong(self) -> SpecError:
        wanted = "wanted one value in the GVariant text format, such as true, uint64 5, 'text' or ['a', 'b']"
        return SpecError(self._where, f"found {self._text!r}, {wanted}")

    def _blank(self) -> None:
        while self._text[self._at : self._at + 1] in (" ", "\t", "\n"):
            self._at += 1

    def _word(self) -> str:
        start = self._at
        while self._at < len(self._text) and self._text[self._at] not in " \t\n,[]'\"":
            self._at += 1
        return self._text[start : self._at]

    def _value(self, wanted: str) -> Value:
        self._blank()
        c = self._text[self._at : self._at + 1]
        if c in ("'", '"'):
            return self._typed("s", self._string(c), wanted)
        if c == "[":
            return self._array(wanted)
        word = self._word()
        if word.startswith("@"):
            signature = word[1:]
            if signature.lstrip("a") not in (*self._BITS, "b", "s", "d"):
                raise self._wrong()
            return self._value(signature)
        if word in self._TYPES:
            return self._value(self._TYPES[word])
        if word in ("true", "false"):
            return self._typed("b", word == "true", wanted)
        return self._number(word, wanted)

    def _typed(self, signature: str, value: Any, wanted: str) -> Value:
        if wanted not in ("", signature):
            raise self._wrong()
        return signature, value

    def _number(self, word: str, wanted: str) -> Value:
        try:
            if wanted == "d" or not wanted and "." in word:
                return "d", float(word)
            value = int(word, 0)
        except ValueError:
            raise self._wrong() from None
        signature = wanted or "i"
        if signature not in self._BITS:
            raise self._wrong()
        signed, bits = self._BITS[signature]
        if not (-(1 << bits - 1) if signed else 0) <= value < 1 << bits - signed:
            raise self._wrong()
        return signature, value

    def _string(self, quote: str) -> str:
        self._at += 1
        found = ""
        while True:
            c = self._text[self._at : self._at + 1]
            self._at += 1
            if c == quote:
                return found
            if c == "\\":
                c = self._ESCAPES.get(self._text[self._at : self._at + 1], "")
                self._at += 1
            if not c:
                raise self._wrong()
            found += c

    def _array(self, wanted: str) -> Value:
        if wanted and wanted[0] != "a":
            raise self._wrong()
        inner, items = wanted[1:], []
        self._at += 1
        self._blank()
        while self._text[self._at : self._at + 1] != "]":
            inner, item = self._value(inner)
            items.append(item)
            self._blank()
            if self._text[self._at : self._at + 1] == ",":
                self._at += 1
            elif self._text[self._at : self._at + 1] != "]":
                raise self._wrong()
        self._at += 1
        if not inner:
            raise self._wrong()  # an empty array without a type is of no type
        return "a" + inner, items
