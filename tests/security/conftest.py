"""What the attack tests share: the hostile image, the weakened builds, and the fields they meet on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.security.attacks import Arena, Build, Patch, make_image


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image(tmp_path_factory.mktemp("attacks") / "image")


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[Patch, ...]], Build]:
    """Each weakened build is made once a session."""
    made: dict[tuple[Patch, ...], Build] = {}

    def make(patches: tuple[Patch, ...]) -> Build:
        if patches not in made:
            made[patches] = Build(tmp_path_factory.mktemp("build") / "tree", patches)
        return made[patches]

    return make


@pytest.fixture
def arena(image: Path, build: Callable[[tuple[Patch, ...]], Build]) -> Iterator[Callable[[tuple[Patch, ...]], Arena]]:
    arenas: list[Arena] = []

    def make(patches: tuple[Patch, ...]) -> Arena:
        # Not below pytest's directories, which a user namespace's root may not pass.
        path = Path(tempfile.mkdtemp(prefix="pycontain-attack-"))
        path.chmod(0o755)
        arenas.append(Arena(path, image, build(patches)))
        return arenas[0]

    yield make
    for each in arenas:
        each.close()
