"""A world for the tests of a module: its namespaces are the test process's own, until the module's last test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pycontain.isolation import world as worlds


@pytest.fixture(scope="module")
def world() -> Iterator[worlds.World]:
    with worlds.here() as made:
        yield made
