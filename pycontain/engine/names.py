"""Names for containers: two words of our own, and the directory in which each name is taken once."""

from __future__ import annotations

import os

from pycontain.engine import files
from pycontain.runtime.errors import Conflict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_FIRST = """
    amber brisk calm candid clever copper coral crisp dapper eager early fair fleet fond gentle glad golden hardy
    honest humble jolly keen kind lively loyal lucid mellow merry mild modest neat nimble noble opal patient plain
    plucky polite proud quick quiet ready rosy sage sharp silver sly smart snug solid spry steady stout sunny
    swift tidy vivid warm wise witty young zesty
"""
_SECOND = """
    acorn alder anchor apple aspen badger barge basin beech birch bobbin brook bucket canoe cedar clover cobble
    comet cork crane creek daisy dove elm falcon fern ferry finch gable ginkgo harbor hazel heron ivy jetty kettle
    lantern larch linden lark magnet maple meadow mill moss newt oak orchard otter owl pebble pine plum poppy
    quill raven reed robin rook sparrow spruce thistle tulip walnut willow wren
"""


def random_name() -> str:
    """``swift-otter``; some 4000 of them, numbered by `reserve`'s caller where one is taken."""
    low = int.from_bytes(os.urandom(4), "big")
    first, second = _FIRST.split(), _SECOND.split()
    return f"{first[low % len(first)]}-{second[(low >> 16) % len(second)]}"


class Names:
    """``<data>/names/<name>``: a file that holds the id of the container with that name."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def reserve(self, name: str, identifier: str, alive: Callable[[str], bool], *, durable: bool = True) -> None:
        """Take ``name`` for ``identifier``; ``alive`` says whether the present owner still exists.

        Raises Conflict where another container has it. A name whose owner is gone (a crash) is taken over.
        """
        with files.Lock(os.path.join(self.directory, ".lock")):
            owner = self.owner(name)
            if owner is not None and owner != identifier and alive(owner):
                raise Conflict(
                    f'cannot create container: the name "{name}" is in use by container {owner[:12]}',
                    hint=f"pycontain rm -f {name}",
                )
            files.write_atomic(os.path.join(self.directory, name), identifier.encode() + b"\n", durable=durable)

    def free(self, name: str, identifier: str) -> None:
        """Give ``name`` back, if ``identifier`` (still) has it."""
        if not os.path.isdir(self.directory):
            return
        with files.Lock(os.path.join(self.directory, ".lock")):
            if self.owner(name) == identifier:
                os.unlink(os.path.join(self.directory, name))

    def owner(self, name: str) -> str | None:
        try:
            with open(os.path.join(self.directory, name), "rb") as file:
                return file.read(128).decode("ascii").strip() or None
        except (OSError, ValueError):
            return None

    def all(self) -> dict[str, str]:
        """name → id."""
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return {}
        owners = {name: self.owner(name) for name in names if not name.startswith(".") and not name.endswith(".tmp")}
        return {name: owner for name, owner in owners.items() if owner is not None}
