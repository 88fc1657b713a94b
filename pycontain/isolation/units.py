"""Numbers and texts for people: a value in the step of its unit that reads best, the ticks of an axis.

Prefixes of bytes are binary (IEC 80000-13), all others decimal. Whatever unit is not known here is left as it is.
"""

from __future__ import annotations

import math

_DECIMAL = (("", 1.0), ("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12))
_BINARY = tuple((prefix, 1024.0**power) for power, prefix in enumerate(("", "Ki", "Mi", "Gi", "Ti")))
_FAMILIES: tuple[tuple[tuple[str, float], ...], ...] = (
    (("ns", 1e-9), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)),
    tuple((f"{prefix}B", factor) for prefix, factor in _BINARY),
    tuple((f"{prefix}bit", factor) for prefix, factor in _DECIMAL),
)
_SIGNS = {"%", "×"}
_ALIASES = {"us": "µs", "byte": "B", "bytes": "B", "bits": "bit", "seconds": "s", "x": "×"}


def _family(unit: str) -> tuple[tuple[tuple[str, float], ...], float, str]:
    """The steps of a unit, the factor of the unit itself, and what follows it (``/s``); no steps where it has none."""
    head, slash, tail = unit.partition("/")
    head = _ALIASES.get(head, head)
    for family in _FAMILIES:
        for name, factor in family:
            if name == head:
                return family, factor, slash + tail
    return (), 1.0, ""


def is_binary(unit: str) -> bool:
    """Whether steps of the unit are powers of 1024."""
    return any(name == "KiB" for name, _ in _family(unit)[0])


def steps(unit: str) -> list[tuple[str, float]]:
    """Every step of a unit with how many of ``unit`` it is: ``("µs", 0.001)`` of ms. Itself where it has none."""
    family, own, tail = _family(unit)
    return [(name + tail, factor / own) for name, factor in family] or [(_ALIASES.get(unit, unit), 1.0)]


def step(value: float, unit: str) -> tuple[str, float]:
    """The step in which ``value`` reads best: the largest that leaves at least one of it (after rounding)."""
    found = steps(unit)
    if not value:
        return next(((name, size) for name, size in found if size == 1.0), found[0])
    fitting = [(name, size) for name, size in found if abs(value) * 1.0005 >= size]
    return fitting[-1] if fitting else found[0]


def number(value: float) -> str:
    """Three significant digits; whole numbers whole up to a million; then M and G."""
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    for factor, letter in ((1e9, " G"), (1e6, " M")):
        if size * 1.0005 >= factor:
            return number(value / factor) + letter if size < 1e15 else f"{value:.3g}"
    if value == int(value) or size >= 99.95:
        return f"{value:,.0f}"
    if size < 1e-4:
        return f"{value:.2e}"
    return f"{value:.{2 - math.floor(math.log10(size * 1.0005))}f}"


def text(value: float, unit: str) -> str:
    """``1.23 ms`` for 1230 and ``us``. A unit that is a sign (``%``, ``×``) follows without a space."""
    name, size = step(value, unit)
    return number(value / size) + joined(name)


def brief(value: float, unit: str) -> str:
    """As `text`, without the unit where it only says what is counted."""
    return number(value) if is_counted(unit) else text(value, unit)


def is_counted(unit: str) -> bool:
    """Whether the unit only says what is counted (``calls``), so that it can be left to a caption."""
    return len(steps(unit)) == 1 and _ALIASES.get(unit, unit) not in _SIGNS


def joined(unit: str) -> str:
    """A unit as it follows its number."""
    return unit if not unit or unit in _SIGNS else f"\u00a0{unit}"


def short(value: float) -> str:
    """A number for a tick: no zeros that say nothing."""
    found = number(value)
    return found.rstrip("0").rstrip(".") if "." in found and "e" not in found and " " not in found else found


def linear_ticks(low: float, high: float, most: int) -> list[float]:
    """At most ``most`` + 1 ticks at multiples of 1, 2 or 5 times a power of ten, the outer ones at or past the ends."""
    span = high - low
    if span <= 0:
        span = abs(high) or 1.0
        high = low + span
    raw = span / max(most, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    size = next(factor * power for factor in (1, 2, 5, 10, 20) if factor * power >= raw * 0.999999)
    first, last = math.floor(low / size + 1e-9), math.ceil(high / size - 1e-9)
    return [index * size for index in range(first, last + 1)]


def log_ticks(low: float, high: float, binary: bool) -> list[list[float]]:
    """Ticks for positive values in ``low``..``high`` on a log axis, from the densest choice to the thinnest: powers of
    two, or 1, 2 and 5 times powers of ten. Each has two or more."""
    if binary:
        powers = range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
        fine = decades = [2.0**power for power in powers]
    else:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        fine = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
        fine = [value for value in fine if low <= value <= high]
        decades = [10.0**power for power in powers if low <= 10.0**power <= high]
    found = [fine, *(decades[::stride] for stride in (1, 2, 3, 4, 5, 7, 10)), [fine[0], fine[-1]]]
    return [ticks for ticks in found if len(ticks) > 1]


def tick(value: float, unit: str) -> str:
    """The label of a tick on a log axis, with the step of its unit: ``10 ms``."""
    name, size = step(value, unit)
    return short(round(value / size, 9)) + ("" if is_counted(unit) else joined(name))


def shown(text: str) -> str:
    """A text of a hostile place with what would not be seen, or would change the order of what is seen, written out:
    control characters and Unicode's direction marks as ``\\u202e``."""
    return "".join(letter if letter.isprintable() or letter == "\u00a0" else f"\\u{ord(letter):04x}" for letter in text)
