"""Containers on the bridge reach each other by name: the hosts files of all of them, kept true."""

from __future__ import annotations

import os

from pycontain.engine import files
from pycontain.network import names
from pycontain.runtime import lifecycle
from pycontain.runtime.errors import NotFound, PycontainError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycontain.engine import Engine
    from pycontain.engine.containers import Container


def refresh(engine: Engine, starting: Container | None = None) -> list[str]:
    """Write who is there into every member's hosts file; what could not be written, in words.

    Called after a lease was taken (``starting`` is not on record as running yet), given back, or a name changed.
    """
    root = os.path.join(engine.data, "network")
    files.make_directory(root)
    guests: dict[str, tuple[str, bytes]] = {}
    # The list is made under the lock, so that an older one never overwrites a newer one.
    with files.Lock(os.path.join(root, "members.lock")):
        members = []
        for identifier, address in engine.network.leases().items():
            if starting is not None and identifier == starting.id:
                container = starting
            else:
                try:
                    container = engine.containers.load(identifier)
                except (NotFound, PycontainError):
                    continue
            if os.path.exists(container.path("hosts")):
                members.append(_member(container, address))
                if container.options.get("isolation") == "vm" and container is not starting:
                    guests[identifier] = container.path("hosts"), _content(container.path("hosts"))
        problems = names.refresh(os.path.join(root, engine.network.name), members)
    return problems + _tell_guests(engine, guests)


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(1 << 20)
    except FileNotFoundError:
        return b""  # its container has just been removed


def _tell_guests(engine: Engine, guests: dict[str, tuple[str, bytes]]) -> list[str]:
    """A machine has a copy of the file. Without the lock, and not for long: a guest may be deaf on purpose."""
    problems = []
    for identifier, (path, before) in guests.items():
        if _content(path) != before:
            try:
                lifecycle.copy_in(identifier, path, root=engine.runtime_root)
            except PycontainError as error:
                problems.append(f"write the names into the machine of container {identifier[:12]}: {error.message}")
    return problems


def _member(container: Container, address: str) -> names.Member:
    aliases = [container.id[:12], str(container.record.get("hostname") or "")]
    name = container.name
    try:
        names.check_hostname(name)
    except PycontainError:
        name = container.id[:12]  # a container's name may be what no host's name can be ("web-")
    return names.Member(
        container.id,
        name,
        address,
        container.path("hosts"),
        tuple(alias for alias in aliases if alias and alias != name),
    )
