"""What the attack tests share: the hostile image, the weakened builds, and the fields they meet on."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.security.attacks import Arena, Build, Patch, make_image


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_image(tmp_path_factory.mktemp("attacks") / "image")


@pytest.fixture(scope="session")
def build() -> Iterator[Callable[[tuple[Patch, ...]], Build]]:
    """Each weakened build is made once a session."""
    made: dict[tuple[Patch, ...], Build] = {}
    # Not below pytest's directories, which no user but root may pass.
    home = Path(tempfile.mkdtemp(prefix="pycontain-builds-"))
    home.chmod(0o755)

    def make(patches: tuple[Patch, ...]) -> Build:
        if patches not in made:
            made[patches] = Build(Path(tempfile.mkdtemp(dir=home)), patches)
        return made[patches]

    yield make
    shutil.rmtree(home)


@pytest.fixture
def arena(image: Path, build: Callable[[tuple[Patch, ...]], Build]) -> Iterator[Callable[[tuple[Patch, ...]], Arena]]:
    arenas: list[Arena] = []

    def make(patches: tuple[Patch, ...]) -> Arena:
        made = build(patches)
        path = Path(tempfile.mkdtemp(prefix="pycontain-attack-"))
        path.chmod(0o755)
        arenas.append(Arena(path, image, made))
        return arenas[0]

    yield make
    for each in arenas:
        each.close()
