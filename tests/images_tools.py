"""Images made by hand for the tests of images/: any entries in any layers, honest or not."""

from __future__ import annotations

import gzip
import json
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pycontain.images import manifest as m
from pycontain.images import tar
from pycontain.images.compression import Limits
from pycontain.images.descriptor import Descriptor, digest_of
from pycontain.images.manifest import Manifest
from pycontain.images.rootfs import ensure_layers
from pycontain.images.store import Store
from pycontain.images.tar import Entry

Item = tuple[Entry, bytes]


def entry(name: str | bytes, kind: str = "file", data: bytes = b"", **fields: Any) -> Item:
    """One entry of a layer; ``fields`` are attributes of Entry."""
    made = Entry(os.fsencode(name), kind, mode=fields.pop("mode", 0o755 if kind == "directory" else 0o644))
    made.size = len(data)
    for key, value in fields.items():
        setattr(made, key, os.fsencode(value) if key == "link" else value)
    return made, data


def file(name: str | bytes, data: bytes = b"", **fields: Any) -> Item:
    return entry(name, "file", data, **fields)


def directory(name: str | bytes, **fields: Any) -> Item:
    return entry(name, "directory", **fields)


def symlink(name: str | bytes, link: str | bytes, **fields: Any) -> Item:
    return entry(name, "symbolic link", link=link, **fields)


def hardlink(name: str | bytes, link: str | bytes) -> Item:
    return entry(name, "hard link", link=link)


def layer(items: Iterable[Item]) -> bytes:
    return b"".join(tar.header(made) + data + bytes(-len(data) % 512) for made, data in items) + tar.END


def image(
    store: Store,
    *layers: bytes,
    compress: Callable[[bytes], bytes] | None = gzip.compress,
    diff_ids: list[str] | None = None,
    config: dict[str, Any] | None = None,
) -> Descriptor:
    """An image of these layers (tars); its manifest's descriptor."""
    blobs = [
        store.put(compress(data) if compress else data, media_type=m.OCI_LAYER + ("+gzip" if compress else ""))
        for data in layers
    ]
    document = {
        "os": "linux",
        "architecture": m.Platform.host().architecture,
        "rootfs": {"type": "layers", "diff_ids": diff_ids or [digest_of(data) for data in layers]},
        "config": config or {},
    }
    described = store.put(json.dumps(document).encode(), media_type=m.OCI_CONFIG)
    manifest = {
        "schemaVersion": 2,
        "mediaType": m.OCI_MANIFEST,
        "config": described.to_json(),
        "layers": [blob.to_json() for blob in blobs],
    }
    return store.put(json.dumps(manifest).encode(), media_type=m.OCI_MANIFEST)


def unpacked(store: Store, *layers: Iterable[Item] | bytes, limits: Limits | None = None) -> list[Path]:
    """The lower directories of an image of these layers, top first."""
    tars = [item if isinstance(item, bytes) else layer(item) for item in layers]
    found: Manifest = m.select(store, image(store, *tars))
    return [Path(path) for path in ensure_layers(store, found, limits=limits)]


def snapshot(root: Path) -> list[tuple[Any, ...]]:
    """Everything about a tree that an attack could change."""
    result = []
    for base, directories, files in os.walk(root):
        for name in [".", *directories, *files]:
            path = os.path.join(base, name)
            found = os.lstat(path)
            content: bytes | str = b""
            if stat.S_ISREG(found.st_mode):
                content = Path(path).read_bytes()
            elif stat.S_ISLNK(found.st_mode):
                content = os.readlink(path)
            attributes = sorted((key, os.getxattr(path, key, follow_symlinks=False)) for key in _listxattr(path))
            result.append(
                (
                    path,
                    found.st_mode,
                    found.st_uid,
                    found.st_gid,
                    found.st_nlink,
                    found.st_mtime_ns,
                    content,
                    attributes,
                )
            )
    return sorted(result)


def _listxattr(path: str) -> list[str]:
    return os.listxattr(path, follow_symlinks=False)
