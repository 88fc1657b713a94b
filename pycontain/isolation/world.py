"""A throw-away host: private namespaces of this one, in which every level runs beside every other."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class World:
    """Where a comparison happens. ``directory``: the world's own, on a tmpfs that ends with it, mode 0700."""

    directory: str
