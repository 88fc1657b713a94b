"""Plots as SVG (SVG 2, W3C), written by hand: dot plots and scatters that need no script, no font and no network.

All lengths are in user units, which are CSS pixels at the size they are made for. Texts are at most as wide as
`width` says in any common sans serif font, so that what fits here fits on the page. Colours are classes of the page's
style sheet, which knows about dark and paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise

from pycontain.isolation import units
from pycontain.isolation.labels import LINE, leader, place_labels

SIZE = 11.0  # of all texts
# Widths in parts of the size, those of a wide font (DejaVu Sans).
_WIDTHS = {
    letter: wide
    for wide, letters in (
        (0.3, "'ijlIJ"), (0.36, " ,./:;\\|f-\u00a0"), (0.41, "()[]t!r"), (0.5, "\"*_`–"), (0.56, "sz?cL"),
        (0.61, "FkvxyPTYaoe"),
        (0.64, "ESbdghnpqu$0123456789{}µ"), (0.7, "KAVBRXZC"), (0.79, "UHNDG&OQ"), (0.86, "w#+<=>^~×M"), (1.0, "%mW@…"),
    )
    for letter in letters
}  # fmt: skip


def width(text: str) -> float:
    """How wide a text is at most, in any common sans serif font."""
    return SIZE * sum(_WIDTHS.get(letter, 1.05) for letter in text)


def fitted(text: str, room: float) -> str:
    """A text cut to a room, with an ellipsis where something is gone."""
    if width(text) <= room:
        return text
    while text and width(text + "…") > room:
        text = text[:-1]
    return text.rstrip() + "…"


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a dot plot: all values as points, the median, and its interval. Without values ``note`` says why."""

    label: str
    values: tuple[float, ...] = ()
    median: float = 0.0
    low: float = 0.0
    high: float = 0.0
    note: str = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class Point:
    """A labelled point of a scatter; ``title`` is shown where a pointer rests."""

    label: str
    x: float
    y: float
    title: str = ""


@dataclass(frozen=True, slots=True)
class Axis:
    """A scale from values to places. ``zero``: the place of zero on a logarithmic axis, where there is one."""

    low: float
    high: float
    start: float
    end: float
    unit: str
    log: bool = False
    zero: float | None = None
    ticks: list[tuple[float, str]] = field(default_factory=list)

    def at(self, value: float) -> float:
        if self.log:
            if value <= 0:
                return self.zero if self.zero is not None else self.start
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    @property
    def title(self) -> str:
        """What is written at the axis: its unit, and that it is logarithmic."""
        if self.log:  # where the unit has steps, every tick has its own
            found = units.steps(self.unit)
            return "log scale" if len(found) > 1 else f"{found[0][0] or 'number'}, log scale"
        return self.unit or "number"


def axis(values: Iterable[float], unit: str, start: float, end: float, log: bool | None = None) -> Axis:
    """An axis for values, from ``start`` to ``end``. Linear ones begin at zero. ``log``: None takes a logarithmic one
    where the largest is fifty times the smallest, and more."""
    found = sorted(values) or [0.0]
    positive = [value for value in found if value > 0]
    if log is None:
        log = found[0] >= 0 and bool(positive) and positive[-1] >= 50 * positive[0]
    return (
        _log_axis(positive, found[0] <= 0, unit, start, end)
        if log and positive
        else _linear_axis(found, unit, start, end)
    )


def _linear_axis(found: Sequence[float], unit: str, start: float, end: float) -> Axis:
    name, size = units.step(max(abs(found[0]), abs(found[-1])), unit)
    low, high = min(found[0] / size, 0.0), max(found[-1] / size, 0.0)
    made = Axis(low * size, high * size, start, end, name)
    for most in (6, 5, 4, 3, 2, 1):
        ticks = units.linear_ticks(low, high, most)
        inside = [value for value in ticks if low * 1.03 <= value <= high * 1.03]
        # An axis ends with its data, unless that left it with one tick.
        ticks = inside if len(inside) > 1 else ticks
        ends = min(low * 1.03, ticks[0]), max(high * 1.03, ticks[-1])
        made = Axis(ends[0] * size, ends[1] * size, start, end, name)
        made.ticks.extend((value * size, units.short(value)) for value in ticks)
        if _apart(made, made.ticks):
            break
    return made


def _log_axis(positive: Sequence[float], zero: bool, unit: str, start: float, end: float) -> Axis:
    low, high = positive[0], positive[-1]
    low, high = (low / 2.5, high * 2.5) if high < low * 5 else (low / 1.12, high * 1.12)
    place = start if zero else None
    made = Axis(low, high, start + 22 if zero else start, end, unit, True, place)
    binary = units.is_binary(unit)
    bottom = next((size for name, size in units.steps(unit) if name.startswith("B")), 1.0) if binary else 1.0
    labels: list[tuple[float, str]] = []
    for ticks in units.log_ticks(low / bottom, high / bottom, binary):
        labels = [(0.0, "0")] * zero + [(value * bottom, units.tick(value * bottom, unit)) for value in ticks]
        if _apart(made, labels):
            break
    made.ticks.extend(labels)
    return made


def _apart(made: Axis, labels: Sequence[tuple[float, str]]) -> bool:
    edges = [(made.at(value) - width(text) / 2, made.at(value) + width(text) / 2) for value, text in labels]
    return len(labels) <= 9 and all(left[1] + 6 <= right[0] for left, right in pairwise(edges))


class Drawing:
    """An SVG in the making. ``name`` is part of the ids, so it is unique on a page."""

    def __init__(self, name: str, wide: float, title: str, description: str) -> None:
        self.name, self.wide, self.title, self.description = name, wide, title, description
        self._parts: list[str] = []

    def add(self, element: str) -> None:
        self._parts.append(element)

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start", title: str = "") -> None:
        hover = f"<title>{_text(title)}</title>" if title else ""
        kind = f' class="{kind}"' if kind else ""
        self.add(f'<text x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}"{kind}>{_text(text)}{hover}</text>')

    def path(self, kind: str, data: str) -> None:
        if data:
            self.add(f'<path class="{kind}" d="{data}"/>')

    def svg(self, high: float, kind: str = "") -> str:
        size = f'viewBox="0 0 {_n(self.wide)} {_n(high)}" width="{_n(self.wide)}" height="{_n(high)}"'
        names = f"{self.name}-t", f"{self.name}-d"
        return (
            f'<svg class="plot {kind}" role="img" {size} aria-labelledby="{names[0]} {names[1]}">'
            f'<title id="{names[0]}">{_text(self.title)}</title>'
            f'<desc id="{names[1]}">{_text(self.description)}</desc>{"".join(self._parts)}</svg>'
        )


def _text(text: str) -> str:
    return escape(units.shown(text))


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _foot(drawing: Drawing, scale: Axis, top: float, bottom: float, title: str) -> float:
    """The grid, the ticks and the title of a horizontal axis. Returns where it ends."""
    drawing.path("guide", "".join(f"M{_n(scale.at(value))} {_n(top)}V{_n(bottom + 3)}" for value, _ in scale.ticks))
    left = 0.0
    for value, label in scale.ticks:
        half = width(label) / 2
        middle = min(max(scale.at(value), left + half), drawing.wide - half)
        drawing.text(middle, bottom + LINE, label, "tick", "middle")
        left = middle + half + 2
    room = drawing.wide
    title = fitted(title, room)
    middle = min(max((scale.start + scale.end) / 2, width(title) / 2), room - width(title) / 2)
    drawing.text(middle, bottom + 2 * LINE, title, "axis", "middle")
    return bottom + 2 * LINE + 5


def dots(
    name: str, rows: Sequence[Row], unit: str, title: str, description: str, wide: float = 330.0, kind: str = "",
    quartiles: bool = False,
) -> str:  # fmt: skip
    """A horizontal dot plot: a line for each of ``rows``, every value as a point, the interval of the median as a bar,
    the median as a stroke and in figures at the right. ``quartiles``: the middle half of the values in a box."""
    drawing = Drawing(name, wide, title, description)
    pitch = 26.0 if quartiles else 17.0
    figures = [units.brief(row.median, unit) if row.values else row.note for row in rows]
    notes = max((width(figure) for row, figure in zip(rows, figures) if row.values), default=0.0)
    right = min(max(notes, max((width(figure) for figure in figures), default=0.0)), max(notes, wide * 0.24))
    left = min(max((width(row.label) for row in rows), default=0.0), wide * 0.4)
    start, end = left + 12, wide - right - 14
    everything = [value for row in rows for value in ((*row.values, row.low, row.high) if row.values else ())]
    scale = axis(everything, unit, start, end)
    bottom = 4 + pitch * len(rows)
    foot = _foot(drawing, scale, 4, bottom, scale.title)
    for index, (row, figure) in enumerate(zip(rows, figures)):
        middle = 4 + pitch * (index + 0.5)
        drawing.text(
            0,
            middle + 4,
            fitted(row.label, left + 2),
            "label" if row.values else "label none",
            title=row.title or row.label,
        )
        drawing.text(wide, middle + 4, fitted(figure, right + 2), "figure" if row.values else "none", "end")
        drawing.path("rail", f"M{_n(start)} {_n(middle)}H{_n(end)}")
        if row.values and not scale.log:
            drawing.path("stem", f"M{_n(scale.at(0))} {_n(middle)}H{_n(scale.at(row.median))}")
        if row.values:
            _marks(drawing, scale, row, middle, pitch, quartiles)
    return drawing.svg(foot, kind)


def _marks(drawing: Drawing, scale: Axis, row: Row, middle: float, pitch: float, quartiles: bool) -> None:
    low, high = scale.at(row.low), scale.at(row.high)
    if quartiles and len(row.values) >= 4:
        ordered = sorted(row.values)
        first, third = (scale.at(ordered[round((len(ordered) - 1) * share)]) for share in (0.25, 0.75))
        place = f'x="{_n(first)}" y="{_n(middle - 8)}" width="{_n(max(third - first, 1))}" height="16"'
        drawing.add(f'<rect class="half" {place} rx="2"/>')
    drawing.path("interval", f"M{_n(low)} {_n(middle)}H{_n(max(high, low + 0.5))}")
    reach = 6.0 if quartiles else 3.5
    lanes = (0.0, 1.0, -1.0, 0.5, -0.5)
    places = {
        (round(scale.at(value) * 2) / 2, round(middle + reach * lanes[index % len(lanes)], 1)): None
        for index, value in enumerate(row.values)
    }
    drawing.path("points", "".join(f"M{_n(x)} {_n(y)}h0" for x, y in places))
    half = pitch / 2 - 3
    drawing.path("median", f"M{_n(scale.at(row.median))} {_n(middle - half)}v{_n(2 * half)}")


def scatter(
    name: str, points: Sequence[Point], unit: tuple[str, str], titles: tuple[str, str], title: str, description: str,
    size: tuple[float, float] = (560.0, 380.0), kind: str = "",
) -> str:  # fmt: skip
    """A scatter with a logarithmic x axis and a y axis from 0 to 100, in ``unit``; every point has its label, and no
    two labels touch. ``titles``: what x and y are, without their units."""
    wide, high = size
    drawing = Drawing(name, wide, title, description)
    ticks = [(value, units.short(value)) for value in units.linear_ticks(0.0, 100.0, 5)]
    upright = Axis(0.0, 100.0, high - 2 * LINE - 14, LINE + 34, unit[1], ticks=ticks)
    left = max(width(label) for _, label in upright.ticks) + 10
    scale = axis((point.x for point in points), unit[0], left + 14, wide - 16, True)
    drawing.text(0, LINE - 2, fitted(f"{titles[1]} ({upright.unit})", wide), "axis")
    drawing.path("guide", "".join(f"M{_n(left)} {_n(upright.at(value))}H{_n(wide)}" for value, _ in upright.ticks))
    for value, label in upright.ticks:
        drawing.text(left - 6, upright.at(value) + 4, label, "tick", "end")
    bottom = upright.start + 6
    foot = _foot(drawing, scale, upright.end - 24, bottom, f"{titles[0]} ({scale.title})")
    places = [(scale.at(point.x), upright.at(point.y)) for point in points]
    boxes = place_labels(
        places, [width(point.label) for point in points], (left + 2, upright.end - 28, wide - 1, bottom - 2)
    )
    for (x, y), box in zip(places, boxes, strict=True):
        near_x, near_y = leader((x, y), box)
        if math.hypot(near_x - x, near_y - y) > 10:
            drawing.path("leader", f"M{_n(x)} {_n(y)}L{_n(near_x)} {_n(near_y)}")
    for point, (x, y), box in zip(points, places, boxes, strict=True):
        hover = f"<title>{_text(point.title or point.label)}</title>"
        drawing.add(f'<circle class="point" cx="{_n(x)}" cy="{_n(y)}" r="5">{hover}</circle>')
        drawing.text(box[0], box[3] - 4, point.label, "label", title=point.title)
    return drawing.svg(foot, kind)
