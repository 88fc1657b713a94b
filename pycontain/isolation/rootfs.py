"""The root file system that every level has: the embedded image's tree, and the probes in it as /probe."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from pycontain.images import embedded, erofs
from pycontain.images.manifest import select
from pycontain.images.rootfs import ensure_layers
from pycontain.images.store import Store

if TYPE_CHECKING:
    from pycontain.isolation.world import World


def image(world: World) -> str:
    """The directory that all root file systems are copies of. Raises NotFound where there is no static busybox."""
    return world.once(_image)


def _image(world: World) -> str:
    store = Store(f"{world.directory}/images")
    reference = embedded.ensure(store)
    with store.pin():
        lower = ensure_layers(store, select(store, store.get_ref(str(reference))))[0]
        path = f"{world.directory}/image"
        shutil.copytree(lower, path, symlinks=True)
    shutil.copy(world.probe, f"{path}/probe")
    return path


def copy(world: World, path: str, *, owner: int = 0) -> None:
    """A tenant's own root file system at ``path``; everything in it belongs to ``owner``."""
    shutil.copytree(image(world), path, symlinks=True)
    if owner:
        os.chown(path, owner, owner)
        for folder, directories, files in os.walk(path):
            for name in (*directories, *files):
                os.chown(f"{folder}/{name}", owner, owner, follow_symlinks=False)


def disk(world: World) -> str:
    """The same as one read-only file, which a machine has as its disk."""
    return world.once(_disk)


def _disk(world: World) -> str:
    path = f"{world.directory}/image.erofs"
    erofs.build([image(world)], path)
    return path
