"""All that is measured."""

from __future__ import annotations

from pycontain.isolation import cost, information, interference, outcomes, outcomes_entering, surface
from pycontain.isolation.model import Measure

MEASURES: tuple[Measure, ...] = (
    *outcomes.MEASURES,
    *outcomes_entering.MEASURES,
    *information.MEASURES,
    *surface.MEASURES,
    *cost.MEASURES,
    *interference.MEASURES,
)
