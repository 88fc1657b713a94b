"""What several files of integration tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine_tools import Host


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """An engine with an image, for the tests of one file."""
    made = Host(tmp_path_factory.mktemp("engine"))
    made.seed()
    yield made
    made.close()


@pytest.fixture
def host(machine: Host) -> Iterator[Host]:
    """Every test leaves nothing behind: no record, name, lease, mount, cgroup, link or process."""
    yield machine
    assert machine.left() == []
