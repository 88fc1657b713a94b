"""All that is measured."""

from __future__ import annotations

from pycontain.isolation.model import Measure

MEASURES: tuple[Measure, ...] = ()
