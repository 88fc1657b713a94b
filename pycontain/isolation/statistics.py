"""The median, and what is known about it: no distribution is assumed, for times of a computer follow none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

CONFIDENCE = 0.95
NARROW = 0.05  # half of an interval's width, as a part of the median


@dataclass(frozen=True, slots=True)
class Interval:
    """The median of ``n`` values, and an interval for the median of all that could have been measured.

    ``coverage``: how sure the interval is (0 to 1). From six values on it is at least 95 %; below that not even the
    widest one, from the least value to the greatest, is, and this says what it reaches.
    """

    median: float
    low: float
    high: float
    n: int
    coverage: float

    @property
    def narrow(self) -> bool:
        """Is half of its width at most 5 % of the median, by 95 % or by all values being the same?"""
        if self.n > 1 and self.low == self.high:
            return True
        return self.coverage >= CONFIDENCE and (self.high - self.low) / 2 <= NARROW * abs(self.median)


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two middle ones. Raises ValueError where there is none."""
    if not values:
        raise ValueError("no values have no median")
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def quantile(values: Sequence[float], part: float) -> float:
    """The value below which ``part`` (0 to 1) of them are, linear between neighbours. Raises ValueError on none."""
    if not values:
        raise ValueError("no values have no quantile")
    ordered = sorted(values)
    place = part * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def interval(values: Sequence[float]) -> Interval:
    """The confidence interval of the median between two order statistics. Raises ValueError where there is no value.

    How many of n independent values lie below the true median follows the binomial distribution with p = 1/2, whatever
    the values' own one is; so between the k-th smallest and the k-th greatest it lies with 1 - 2 P(X < k). k is the
    greatest for which that is at least 95 % (Conover, Practical Nonparametric Statistics, "confidence interval for a
    quantile").
    """
    middle, n = median(values), len(values)
    ordered = sorted(values)
    tail, k = 1, 1  # tail: 2**n P(X < k)
    while 2 * (tail + comb(n, k)) <= (1 - CONFIDENCE) * 2**n:
        tail += comb(n, k)
        k += 1
    return Interval(middle, ordered[k - 1], ordered[n - k], n, max(0.0, 1 - 2 * tail / 2**n))
