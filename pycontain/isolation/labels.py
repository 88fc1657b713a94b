"""Where the labels of points go, so that none is over another: the nearest free place for each, in a few orders."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter

LINE = 14.0  # how high a label is, in CSS pixels

Box = tuple[float, float, float, float]


def place_labels(places: Sequence[tuple[float, float]], widths: Sequence[float], room: Box) -> list[Box]:
    """A box (left, top, right, bottom) of one line for each label, none over another nor over any point, inside
    ``room``: beside its point where that is free, else the nearest free place that a line can be drawn to."""
    crowd = [sum(abs(place[0] - x) + abs(place[1] - y) < 60 for x, y in places) for place in places]
    orders: list[Callable[[int], float]] = [
        lambda one: -crowd[one],  # the crowded ones first: they have the least choice
        lambda one: places[one][0],
        lambda one: -places[one][0],
        lambda one: places[one][1],
        lambda one: -places[one][1],
    ]
    tries = [_placed(sorted(range(len(places)), key=order), places, widths, room) for order in orders]
    return min(tries, key=itemgetter(0))[1]


def _placed(
    order: Sequence[int], places: Sequence[tuple[float, float]], widths: Sequence[float], room: Box
) -> tuple[float, list[Box]]:
    """One label after another where it is least bad, and how bad all of it is."""
    boxes: dict[int, Box] = {}
    whole = 0.0
    for one in order:
        others = [(places[other], box) for other, box in boxes.items()]
        free = [box for box in _candidates(places[one], widths[one], room) if _free(box, boxes.values(), places)]
        best, least = _beside(places[one], widths[one], 9, 0), math.inf
        ranked = [(round(math.dist(places[one], leader(places[one], box)), 1), box) for box in free]
        for far, box in sorted(ranked, key=itemgetter(0)):  # of two as near the earlier one: right of the point
            if far >= least:
                break
            effort = far + 200 * _crossings(places[one], box, others, places)
            if effort < least:
                best, least = box, effort
        boxes[one] = best
        whole += least
    return whole, [boxes[one] for one in range(len(places))]


def leader(place: tuple[float, float], box: Box) -> tuple[float, float]:
    """Where a line from a point to its label ends: the nearest place of its box."""
    return min(max(place[0], box[0]), box[2]), min(max(place[1], box[1] + 2), box[3] - 2)


def _crossings(
    place: tuple[float, float],
    box: Box,
    others: Sequence[tuple[tuple[float, float], Box]],
    places: Sequence[tuple[float, float]],
) -> int:
    """How often lines to labels would run over labels and points, with one more label."""
    end = leader(place, box)
    return (
        sum(_crosses(place, end, other) for _, other in others)
        + sum(_crosses(other, leader(other, theirs), box) for other, theirs in others)
        + sum(_crosses(place, end, (x - 5, y - 5, x + 5, y + 5)) for x, y in places if (x, y) != place)
    )


def _crosses(start: tuple[float, float], end: tuple[float, float], box: Box) -> bool:
    """Whether a line goes through a box (by the part of it that is between its sides, of both pairs)."""
    low, high = 0.0, 1.0
    for side in (0, 1):
        way = end[side] - start[side]
        if way:
            near, far = sorted(((box[side] - start[side]) / way, (box[side + 2] - start[side]) / way))
            low, high = max(low, near), min(high, far)
        elif not box[side] < start[side] < box[side + 2]:
            return False
    return low < high


def _beside(place: tuple[float, float], wide: float, dx: float, dy: float) -> Box:
    """The box whose near end is ``dx`` right of the point (left, if negative) and whose middle is ``dy`` below it."""
    left = place[0] + dx if dx > 0 else place[0] + dx - wide if dx < 0 else place[0] - wide / 2
    return left, place[1] + dy - LINE / 2, left + wide, place[1] + dy + LINE / 2


def _candidates(place: tuple[float, float], wide: float, room: Box) -> Iterable[Box]:
    """Places inside the room: beside the point, then in rings around it."""
    for ring in range(1, 24):
        across, along = 9 + (ring - 1) * 6.0, 14 + (ring - 1) * 7.0
        for dx, dy in (
            (across, 0.0), (-across, 0.0), (0.0, -along), (0.0, along),
            (across, along - 4), (-across, along - 4), (across, 4 - along), (-across, 4 - along),
            (9.0, along), (-9.0, along), (9.0, -along), (-9.0, -along),
        ):  # fmt: skip
            box = _beside(place, wide, dx, dy)
            push = max(room[0] - box[0], 0) + min(room[2] - box[2], 0)
            box = box[0] + push, box[1], box[2] + push, box[3]
            if room[1] <= box[1] and box[3] <= room[3] and room[0] <= box[0] + 0.01 and box[2] <= room[2] + 0.01:
                yield box


def _free(box: Box, taken: Iterable[Box], places: Sequence[tuple[float, float]]) -> bool:
    clear = all(
        box[2] + 3 <= other[0] or other[2] + 3 <= box[0] or box[3] <= other[1] or other[3] <= box[1] for other in taken
    )
    return clear and not any(box[0] - 6 < x < box[2] + 6 and box[1] - 5 < y < box[3] + 5 for x, y in places)
