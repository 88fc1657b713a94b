"""From an image's layers to the root file system of a container.

layers/<chain>/layer.json   {"version": 1, "diff_id": ..., "size": bytes, "opaque": hides everything below}
layers/<chain>/diff/        the lower directory
layers/.<chain>/            one being made, flocked by its maker; what a crash leaves, the next maker or gc removes
"""

from __future__ import annotations

import fcntl
import os
import stat

from pycontain.images.descriptor import Descriptor, digest_of
from pycontain.images.failure import trying
from pycontain.images.ingest import same_file
from pycontain.images.manifest import Manifest, image_config
from pycontain.images.store import Store, chain_id
from pycontain.images.tree import copy_attributes
from pycontain.runtime import jsontext
from pycontain.runtime.errors import KernelError, NotFound, PycontainError
from pycontain.runtime.light import remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack
    from typing import Any

    from pycontain.images.compression import Limits

VERSION = 1
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def ensure_layers(
    store: Store,
    manifest: Manifest,
    *,
    limits: Limits | None = None,
    starting: Callable[[Descriptor], None] | None = None,
) -> list[str]:
    """Unpack what is missing; the lower directories of an image, top first (one empty one for an image without layers).

    Each stack of layers is unpacked once, whoever asks for it at the same time. ``starting`` is called with the
    descriptor of each layer that is about to be unpacked. Hold a pin of ``store`` around this call, until the
    container that uses the directories is recorded. Raises PycontainError that names layer and entry.
    """
    config = image_config(store, manifest)
    if not manifest.layers:
        return [_ensure(store, digest_of(b""), None, [], limits, starting)]
    lowers: list[str] = []
    chain = ""
    for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
        chain = chain_id([chain, diff_id]) if chain else diff_id
        path = _ensure(store, chain, (layer, diff_id), lowers, limits, starting)
        if _record(path)["opaque"]:
            # overlayfs merges the roots of all layers, whatever attribute they carry.
            lowers = []
        lowers.insert(0, path)
    return lowers


def rootfs(container_dir: str, lowers: Sequence[str], *, volatile: bool = False) -> dict[str, Any]:
    """The overlay of a container: ``upper`` and ``work`` are made in its directory, where they are missing.

    The upper directory is the root that the container sees, so it looks like the image's in every attribute.
    ``volatile`` lets the kernel skip every sync: for containers that do not outlive their run.
    """
    upper, work = os.path.join(container_dir, "upper"), os.path.join(container_dir, "work")
    with trying(f"prepare the root file system in {container_dir}"):
        os.makedirs(work, 0o700, exist_ok=True)
        if not os.path.isdir(upper):
            # Made under another name, so that a crash does not leave one with the wrong owner.
            making = upper + ".new"
            os.makedirs(making, 0o700, exist_ok=True)
            source = os.open(lowers[0], _DIRECTORY)
            try:
                target = os.open(making, _DIRECTORY)
                try:
                    found = os.fstat(source)
                    copy_attributes(source, target, found)
                    os.utime(target, ns=(found.st_mtime_ns, found.st_mtime_ns))
                finally:
                    os.close(target)
            finally:
                os.close(source)
            os.rename(making, upper)
    return {"kind": "overlay", "lower": list(lowers), "upper": upper, "work": work, "volatile": volatile}


def _ensure(
    store: Store,
    chain: str,
    layer: tuple[Descriptor, str] | None,
    lowers: list[str],
    limits: Limits | None,
    starting: Callable[[Descriptor], None] | None,
) -> str:
    """One layer's lower directory; ``layer`` is its blob and diff id, None for the empty one."""
    final = store.note_layer(chain)
    diff = os.path.join(final, "diff")
    if os.path.isdir(final):
        return diff
    import json
    import shutil
    from contextlib import ExitStack

    temporary = os.path.join(os.path.dirname(final), "." + os.path.basename(final))
    what = f"layer {layer[0].digest if layer else chain}"
    with trying(f"unpack {what}"), ExitStack() as stack:
        fd = _lock(temporary)
        stack.callback(os.close, fd)
        if os.path.isdir(final):
            os.rmdir(temporary)
            return diff
        try:
            _clear(fd)
            os.mkdir("diff", 0o700, dir_fd=fd)
            target = os.open("diff", _DIRECTORY, dir_fd=fd)
            stack.callback(os.close, target)
            if layer is None:
                os.fchmod(target, 0o755)
                record = {"version": VERSION, "diff_id": None, "size": 0, "opaque": False}
            else:
                if starting is not None:
                    starting(layer[0])
                record = _unpack(store, *layer, target, [_open(path, stack) for path in lowers], limits)
            with open(os.path.join(temporary, "layer.json"), "w", encoding="utf-8") as file:
                json.dump(record, file)
            from pycontain.runtime.kernel.syscalls import syncfs

            syncfs(fd)
            os.rename(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync(os.path.dirname(final))
    return diff


def _unpack(
    store: Store, layer: Descriptor, diff_id: str, target: int, lowers: list[int], limits: Limits | None
) -> dict[str, Any]:
    from pycontain.images.layers import unpack  # not needed where every layer is unpacked already

    with store.open(layer.digest) as stream:
        try:
            found = unpack(stream, target, lowers=lowers, limits=limits)
        except KernelError:
            raise
        except PycontainError as error:
            raise type(error)(f"layer {layer.digest}: {error.message}", hint=error.hint) from None
    if found.diff_id != diff_id:
        raise PycontainError(f"layer {layer.digest} unpacks to {found.diff_id}, the image's config names {diff_id}")
    return {"version": VERSION, "diff_id": diff_id, "size": found.size, "opaque": found.opaque}


def _record(diff: str) -> dict[str, Any]:
    path = os.path.join(os.path.dirname(diff), "layer.json")
    try:
        with open(path, "rb") as file:
            value = jsontext.loads(file.read(1 << 16))
    except FileNotFoundError:
        raise NotFound(f"{path} is missing", hint="pycontain system prune") from None
    except ValueError:
        raise PycontainError(f"{path} is not JSON", hint="pycontain system prune") from None
    if not isinstance(value, dict) or value.get("version") != VERSION:
        version = value.get("version") if isinstance(value, dict) else None
        raise PycontainError(f"{path} has version {version!r}, this pycontain knows version {VERSION}")
    return value


def _lock(path: str) -> int:
    """The directory, flocked; made where missing, and again where somebody renamed it while this one waited."""
    while True:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        try:
            fd = os.open(path, _DIRECTORY)
        except FileNotFoundError:
            continue
        fcntl.flock(fd, fcntl.LOCK_EX)
        if same_file(fd, path):
            return fd
        os.close(fd)


def _clear(fd: int) -> None:
    """Remove what a killed unpack left."""
    for name in os.listdir(fd):
        if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            remove_tree(name, fd)
        else:
            os.unlink(name, dir_fd=fd)


def _open(path: str, stack: ExitStack) -> int:
    fd = os.open(path, _DIRECTORY)
    stack.callback(os.close, fd)
    return fd


def _sync(path: str) -> None:
    fd = os.open(path, _DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
