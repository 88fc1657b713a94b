"""The pages about the comparison say what it does."""

from __future__ import annotations

import re

import jsonschema
import pytest

from pycontain.isolation import schema
from pycontain.isolation.levels import LEVELS
from pycontain.isolation.measures import MEASURES
from pycontain.isolation.model import Measure
from pycontain.isolation.runner import GROUPS
from tests.isolation import definitions


def test_the_committed_pages_are_what_the_tables_make() -> None:
    for name, text in definitions.pages().items():
        assert (definitions.DOCS / name).read_text(encoding="utf-8") == text, "run: python -m tests.isolation.definitions"
    jsonschema.Draft202012Validator.check_schema(schema.document())


def test_no_two_things_have_one_name() -> None:
    names = [level.name for level in LEVELS] + [measure.name for measure in MEASURES] + list(GROUPS)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_every_figure_has_its_definition(measure: Measure) -> None:
    assert measure.group in GROUPS and measure.title and 1 <= measure.rounds[0] <= measure.rounds[1] and measure.seconds > 0
    assert measure.quantities or measure.claims
    for quantity in measure.quantities:
        assert re.fullmatch(r"[a-z0-9]+([.\-_][a-z0-9]+)*", quantity.name) and quantity.title
        assert quantity.definition, quantity.name
        assert quantity.unit not in ("s", "ms", "us", "µs", "ns") or quantity.clock, f"{quantity.name} is a time without a clock"
    for claim in measure.claims:
        assert claim.title and claim.attack and claim.kind
