"""All that is measured."""

from __future__ import annotations

from pycontain.isolation import outcomes, outcomes_entering
from pycontain.isolation.model import Measure

MEASURES: tuple[Measure, ...] = (*outcomes.MEASURES, *outcomes_entering.MEASURES)
