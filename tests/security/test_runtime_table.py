"""The table of docs/design/security.md and the attacks agree."""

from __future__ import annotations

import re

from tests.runtime_tools import REPOSITORY
from tests.security import test_runtime_paths, test_runtime_process, test_runtime_rights
from tests.security.attacks import ATTACKS, WEAKENINGS, place

MODULES = (test_runtime_paths, test_runtime_process, test_runtime_rights)


def rows() -> list[list[str]]:
    lines = (REPOSITORY / "docs/design/security.md").read_text().splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert table[0] == ["row", "mechanism", "what holds it", "tests", "weakened by"]
    return table[2:]


def test_every_row_has_its_attacks_and_no_cell_is_blank() -> None:
    found = {}
    for row in rows():
        assert len(row) == 5 and all(row), row
        found[row[0]] = re.findall(r"`(test_\w+)`", row[3])
    assert found == ATTACKS


def test_every_weakening_fits_the_source() -> None:
    """All at once, without a compiler: whoever changes what one takes away learns it here first."""
    for patch in WEAKENINGS:
        place(REPOSITORY, patch)


def test_every_attack_is_a_test_that_runs() -> None:
    for tests in ATTACKS.values():
        for name in tests:
            assert sum(callable(getattr(module, name, None)) for module in MODULES) == 1, name
