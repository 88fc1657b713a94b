"""``system prune``: remove what has ended, and whatever a crash or a reboot left, without harm to what lives.

Every object of ours can be found from the host alone: containers' directories, cgroups below /pycontain, leases and
links by the network's files, run directories by their names. An object whose container does not exist is an orphan;
one whose container's lock is held is being worked on, and is left alone.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass, field

from pycontain.engine import images as image_store
from pycontain.engine import teardown
from pycontain.engine.containers import MAKING, Container
from pycontain.engine.files import Lock
from pycontain.runtime import lifecycle
from pycontain.runtime.errors import NotFound, PycontainError
from pycontain.runtime.kernel.cgroup import open_cgroup
from pycontain.runtime.kernel.hierarchies import hierarchies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pycontain.engine import Engine

_YOUNG_SECONDS = 30


@dataclass(slots=True)
class Report:
    """What was removed, a line each, and how many bytes of images that freed."""

    lines: list[str] = field(default_factory=list)
    freed: int = 0


def prune(engine: Engine, *, images: bool = False, volumes: bool = False) -> Report:
    """Remove stopped containers and orphans; with ``images`` those no container uses, with ``volumes`` likewise."""
    report = Report()
    for container in list(engine.containers.all()):
        _container(engine, container, report)
    _names(engine, report)
    _orphans(engine, report)
    freed = engine.network.reconcile(lambda identifier: _exists(engine, identifier))
    report.lines += [f"lease of {identifier[:12]}" for identifier in freed]
    if volumes:
        _volumes(engine, report)
    if images:
        _images(engine, report)
    _machines(report)
    report.freed = image_store.collect(engine)
    _users(engine)
    bridge = engine.network.destroy_unused()
    if bridge is not None:
        report.lines.append(f"network {bridge}")
    return report


def _container(engine: Engine, container: Container, report: Report) -> None:
    """One container: left alone where it runs, or where somebody holds its lock."""
    if container.status() in ("running", "paused"):
        return
    try:
        if not container.lock.acquire(wait=False):
            return
    except FileNotFoundError:
        if not os.path.exists(container.path("container.json")):
            shutil.rmtree(container.directory, ignore_errors=True)  # what is left of one that was being removed
        return
    try:
        container.reload()
        if container.status() in ("running", "paused"):
            return
        label = container.label
        teardown.kill_everything(container)
        teardown.finish(engine, container)
        teardown.discard(engine, container)
        report.lines.append(f"container {label}")
    except NotFound:
        return
    finally:
        container.lock.release()


def _exists(engine: Engine, identifier: str) -> bool:
    return engine.containers.exists(identifier)


def _names(engine: Engine, report: Report) -> None:
    for name, owner in engine.containers.names.all().items():
        if not _exists(engine, owner):
            engine.containers.names.free(name, owner)
            report.lines.append(f"name {name}")


def _orphans(engine: Engine, report: Report) -> None:
    """Run directories, runtime state and cgroups of containers that do not exist."""
    for name in _entries(engine.containers.directory):
        path = os.path.join(engine.containers.directory, name)
        lock = Lock(os.path.join(path, "lock"))
        if name.endswith(MAKING) and lock.acquire(wait=False):
            shutil.rmtree(path, ignore_errors=True)
            lock.release()
    for identifier in _entries(engine.containers.run_directory):
        if not _exists(engine, identifier):
            container = Container(engine.containers, identifier, None)
            teardown.kill_everything(container)
            shutil.rmtree(container.run_directory, ignore_errors=True)
            report.lines.append(f"run directory {identifier[:12]}")
    for identifier in _entries(engine.runtime_root):
        if not _exists(engine, identifier):
            try:
                lifecycle.delete(identifier, root=engine.runtime_root, force=True)
            except PycontainError:
                shutil.rmtree(os.path.join(engine.runtime_root, identifier), ignore_errors=True)
            report.lines.append(f"runtime state {identifier[:12]}")
    for identifier in sorted(_cgroups()):
        if not _exists(engine, identifier) and _abandoned(identifier):
            cgroup = open_cgroup(f"{teardown.CGROUPS}/{identifier}")
            cgroup.kill_all()
            cgroup.remove()
            report.lines.append(f"cgroup {identifier[:12]}")


def _abandoned(identifier: str) -> bool:
    """Another engine, with other directories, makes cgroups there too: one with processes, or a young one, stays."""
    cgroup = open_cgroup(f"{teardown.CGROUPS}/{identifier}")
    if cgroup.pids():
        return False
    ages = [time.time() - os.stat(directory).st_ctime for directory in cgroup.directories if os.path.exists(directory)]
    return bool(ages) and min(ages) > _YOUNG_SECONDS


def _cgroups() -> set[str]:
    """Names of 64 hexadecimal digits below /pycontain, in any hierarchy."""
    found: set[str] = set()
    for hierarchy in hierarchies():
        for name in _entries(f"{hierarchy.mount}{teardown.CGROUPS}"):
            if len(name) == 64 and not name.strip("0123456789abcdef"):
                found.add(name)
    return found


def _entries(directory: str) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


def _volumes(engine: Engine, report: Report) -> None:
    used = {
        wish["source"]
        for container in engine.containers.all()
        for wish in container.record.get("mounts") or []
        if wish["type"] == "volume"
    }
    for name in _entries(os.path.join(engine.data, "volumes")):
        if name not in used:
            shutil.rmtree(os.path.join(engine.data, "volumes", name), ignore_errors=True)
            report.lines.append(f"volume {name}")


def _users(engine: Engine) -> None:
    """What was kept of layers that are gone; see bundle."""
    folder = os.path.join(engine.data, "users")
    for chain in _entries(folder):
        if not os.path.isdir(os.path.join(engine.data, "images", "layers", chain)):
            shutil.rmtree(os.path.join(folder, chain), ignore_errors=True)


def _machines(report: Report) -> None:
    from pycontain.engine import machines

    try:
        report.lines += machines.sweep()
    except PycontainError:
        return  # no valid settings, or no init: whoever starts a machine is told


def _images(engine: Engine, report: Report) -> None:
    used = {(container.record.get("image") or {}).get("id") for container in engine.containers.all()}
    for image in list(image_store.images(engine)):
        if image.id not in used:
            try:
                engine.images.remove_ref(image.reference)
            except NotFound:
                continue
            report.lines.append(f"image {image.name}")
