"""Images in files: OCI layouts (directory or tar), docker archives, and plain root file systems.

A tar may have its parts in any order and is read once, from a pipe as well: whole blobs go straight into the store,
and what names them is looked at when everything has been seen. Nothing is ever written under a name of the archive.
"""

from __future__ import annotations

import io
import json
import os
import posixpath
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

from pycontain.images.compression import Limits, Plain
from pycontain.images.descriptor import Descriptor, kind
from pycontain.images.export import FULL_NAME, REF_NAME, save
from pycontain.images.failure import trying
from pycontain.images.manifest import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    INDEX_TYPES,
    MANIFEST_TYPES,
    MAX_DOCUMENT,
    MAX_LAYERS,
    MAX_NESTING,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Platform,
    image_config,
    parse_index,
    parse_manifest,
)
from pycontain.images.reference import Reference, parse
from pycontain.images.store import Store
from pycontain.images.tar import Entry, Reader, shown
from pycontain.runtime.errors import KernelError, NotFound, PycontainError, Unsupported

__all__ = ["admit", "import_tar", "load", "save", "write_image"]

_MAX_DOCUMENTS = 64 << 20
_BLOB = re.compile(r"blobs/(sha256|sha512)/([0-9a-f]+)", re.ASCII)
_NOT_IN_NAME = re.compile(r"[^a-z0-9]+")
_ENDINGS = re.compile(r"(\.(tar|tgz|gz|zst|oci|docker))+$")


def load(store: Store, source: str | BinaryIO) -> list[Reference]:
    """Add the images of a layout directory or of an archive (path or stream); their names, as they were set.

    An image that has no name of its own, or only a tag, is named ``localhost/<file name>``. Raises NotFound,
    PycontainError for what is incomplete or malformed; no name is set then.
    """
    with store.pin():
        if isinstance(source, str):
            with trying(f"load {source}"):
                name = _name_of(source)
                if os.path.isdir(source):
                    found = _load_directory(store, source, name)
                else:
                    with open(source, "rb") as file:
                        found = _load_tar(store, file, name)
        else:
            found = _load_tar(store, source, "image")
        for reference, descriptor in found:
            store.set_ref(str(reference), descriptor)
    return [reference for reference, _ in found]


def import_tar(
    store: Store,
    source: str | BinaryIO,
    reference: Reference,
    *,
    config: dict[str, Any] | None = None,
    created: str | None = None,
) -> Descriptor:
    """Make an image of one layer from a root file system's tar (plain, gzip or zstd; path or stream), and name it.

    ``config`` is the image configuration's "config" object; ``created`` is RFC 3339, now if None. Raises
    PycontainError for a malformed or truncated archive.
    """
    with store.pin():
        if isinstance(source, str):
            with trying(f"import {source}"), open(source, "rb") as file:
                layer = store.put_stream(file, media_type=OCI_LAYER)
        else:
            layer = store.put_stream(source, media_type=OCI_LAYER)
        with store.open(layer.digest) as stream:
            plain = Plain(stream, Limits())
            reader = Reader(io.BufferedReader(plain, 1 << 20))
            for _ in reader:
                pass
            plain.drain()
        if not reader.complete:
            raise PycontainError("the tar archive is truncated: its end marker is missing")
        suffix = "" if plain.compression == "tar" else f"+{plain.compression}"
        layer = Descriptor(OCI_LAYER + suffix, layer.digest, layer.size)
        return write_image(store, reference, [(layer, plain.diff_id)], config or {}, created or _now())


def write_image(
    store: Store, reference: Reference, layers: Sequence[tuple[Descriptor, str]], config: dict[str, Any], created: str
) -> Descriptor:
    """Name an image for this host of layers that are in the store, each with its diff id, bottom first."""
    platform = Platform.host()
    document: dict[str, Any] = {"created": created, "architecture": platform.architecture, "os": "linux"}
    if platform.variant:
        document["variant"] = platform.variant
    document["config"] = config
    document["rootfs"] = {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]}
    described = store.put(_json(document), media_type=OCI_CONFIG)
    descriptor = _put_manifest(store, OCI_MANIFEST, described, [layer for layer, _ in layers])
    if store.refs().get(str(reference)) != descriptor:
        store.set_ref(str(reference), descriptor)
    return descriptor


def admit(store: Store, descriptor: Descriptor, fetch: Callable[[Descriptor], None], depth: int = 0) -> None:
    """Bring an image's content into the store by ``fetch``, and check it; of an index, the platforms that are there."""
    if descriptor.media_type in MANIFEST_TYPES:
        if not store.has(descriptor.digest):
            fetch(descriptor)
        manifest = parse_manifest(store.read(descriptor.digest, MAX_DOCUMENT), descriptor)
        image_config(store, manifest, fetch=fetch)
        for layer in manifest.layers:
            if not store.has(layer.digest):
                fetch(layer)
        return
    if descriptor.media_type not in INDEX_TYPES:
        raise Unsupported(f"{descriptor.digest} is of type {descriptor.media_type!r}, not a container image")
    if depth == MAX_NESTING:
        raise PycontainError(f"image index {descriptor.digest}: indexes are nested more than {MAX_NESTING} deep")
    if not store.has(descriptor.digest):
        fetch(descriptor)
    missing: PycontainError = NotFound(f"image index {descriptor.digest} is empty")
    complete = 0
    for child in parse_index(store.read(descriptor.digest, MAX_DOCUMENT), descriptor):
        try:
            admit(store, child, fetch, depth + 1)
            complete += 1
        except (NotFound, Unsupported) as error:  # other platforms may be absent, and attestations are no images
            missing = error
    if not complete:
        raise missing


def _load_directory(store: Store, path: str, name: str) -> list[tuple[Reference, Descriptor]]:
    def read(file: str) -> bytes:
        try:
            with open(os.path.join(path, file), "rb") as stream:
                return stream.read(MAX_DOCUMENT + 1)
        except FileNotFoundError:
            raise NotFound(f"{path} is not an OCI layout: {file} is missing") from None

    def fetch(descriptor: Descriptor) -> None:
        algorithm, _, encoded = descriptor.digest.partition(":")
        try:
            fd = os.open(os.path.join(path, "blobs", algorithm, encoded), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise NotFound(f"{path} lacks blob {descriptor.digest}") from None
            raise KernelError(f"open blob {descriptor.digest} of {path}", error.errno or 0) from None
        with open(fd, "rb") as stream:
            _ingest(store, descriptor.digest, descriptor.size, iter(lambda: stream.read(1 << 18), b""))

    return _from_index(store, _document(read("oci-layout"), "oci-layout"), read("index.json"), name, fetch)


def _load_tar(store: Store, source: BinaryIO, name: str) -> list[tuple[Reference, Descriptor]]:
    archive = _Archive(store)
    plain = Plain(source, Limits())
    reader = Reader(io.BufferedReader(plain, 1 << 20))
    for entry in reader:
        archive.add(entry, reader.data)

    def fetch(descriptor: Descriptor) -> None:
        raise NotFound(f"the archive lacks blob {descriptor.digest}")

    documents = archive.documents
    if "oci-layout" in documents and "index.json" in documents:
        layout = _document(documents["oci-layout"], "oci-layout")
        return _from_index(store, layout, documents["index.json"], name, fetch)
    if "manifest.json" in documents:
        return _from_docker(store, archive, name)
    raise PycontainError(
        "the archive is neither an OCI layout (index.json) nor a docker archive (manifest.json)",
        hint="for the tar of a root file system: pycontain import",
    )


def _from_index(
    store: Store, layout: Any, index: bytes, name: str, fetch: Callable[[Descriptor], None]
) -> list[tuple[Reference, Descriptor]]:
    version = layout.get("imageLayoutVersion") if isinstance(layout, dict) else None
    if version != "1.0.0":
        raise PycontainError(f"the OCI layout has version {version!r}, this pycontain knows version '1.0.0'")
    here = Descriptor("application/vnd.oci.image.index.v1+json", "of the layout", len(index))
    result = []
    for descriptor in parse_index(index, here):
        admit(store, descriptor, fetch)
        notes = descriptor.annotations or {}
        plain = Descriptor(descriptor.media_type, descriptor.digest, descriptor.size)
        result.append((_named(notes.get(FULL_NAME), notes.get(REF_NAME), name), plain))
    if not result:
        raise NotFound("the OCI layout has no images")
    return result


class _Archive:
    """The files of a tar: documents are kept, blobs go into the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.documents: dict[str, bytes] = {}
        self._size = 0
        self._blobs: dict[str, Descriptor] = {}
        self._links: dict[str, str] = {}

    def add(self, entry: Entry, data: Callable[[], Iterator[bytes]]) -> None:
        path = posixpath.normpath(os.fsdecode(entry.name)).lstrip("/")
        if entry.kind in ("symbolic link", "hard link"):
            # docker's older archives name a layer that two images share once, and link to it.
            target = os.fsdecode(entry.link)
            base = posixpath.dirname(path) if entry.kind == "symbolic link" else ""
            self._links[path] = posixpath.normpath(posixpath.join(base, target)).lstrip("/")
        if entry.kind != "file" or posixpath.basename(path) in ("VERSION", "json"):
            return
        if entry.extents is not None:
            raise PycontainError(f"entry {shown(entry.name)}: a sparse file in an image archive")
        blob = _BLOB.fullmatch(path)
        if blob:
            digest = f"{blob[1]}:{blob[2]}"
            _ingest(self._store, digest, entry.size, data())
            self._blobs[path] = Descriptor(DOCKER_LAYER, digest, entry.size)
        elif path.endswith(".json") or path in ("oci-layout", "repositories"):
            self._size += entry.size
            if entry.size > MAX_DOCUMENT or self._size > _MAX_DOCUMENTS:
                raise PycontainError(f"entry {shown(entry.name)}: larger than {MAX_DOCUMENT} bytes")
            self.documents[path] = b"".join(data())
        else:
            self._blobs[path] = self._store.put_stream(_Pieces(data()), media_type=DOCKER_LAYER)

    def document(self, path: str) -> Descriptor:
        """A configuration, in the store."""
        path = self._resolve(path)
        if path in self.documents:
            return self._store.put(self.documents[path], media_type=DOCKER_CONFIG)
        found = self.blob(path)
        return Descriptor(DOCKER_CONFIG, found.digest, found.size)

    def blob(self, path: str) -> Descriptor:
        found = self._blobs.get(self._resolve(path))
        if found is None:
            raise NotFound(f"the archive lacks {path!r}, which its manifest.json names")
        return found

    def _resolve(self, path: str) -> str:
        path = posixpath.normpath(path).lstrip("/")
        for _ in range(8):
            path = self._links.get(path, path)
        return path


class _Pieces(io.RawIOBase):
    """An iterator of bytes as a stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def read(self, size: int = -1) -> bytes:
        return next(self._pieces, b"")


def _from_docker(store: Store, archive: _Archive, name: str) -> list[tuple[Reference, Descriptor]]:
    images = _document(archive.documents["manifest.json"], "manifest.json")
    if not isinstance(images, list):
        raise PycontainError(f"manifest.json: $: must be an array, found {kind(images)}")
    result = []
    for number, image in enumerate(images):
        path = f"manifest.json: $[{number}]"
        if not isinstance(image, dict):
            raise PycontainError(f"{path}: must be an object, found {kind(image)}")
        config = image.get("Config")
        if not isinstance(config, str):
            raise PycontainError(f"{path}.Config: must be a string, found {kind(config)}")
        layers, tags = _strings(image, "Layers", path), _strings(image, "RepoTags", path)
        if len(layers) > MAX_LAYERS:
            raise PycontainError(f"{path}.Layers: has {len(layers)} entries, more than {MAX_LAYERS}")
        blobs = [_typed(store, archive.blob(layer)) for layer in layers]
        descriptor = _put_manifest(store, DOCKER_MANIFEST, archive.document(config), blobs)
        manifest = parse_manifest(store.read(descriptor.digest, MAX_DOCUMENT), descriptor)
        found = image_config(store, manifest)
        for layer, diff_id in zip(blobs, found.diff_ids, strict=True):
            if layer.media_type == DOCKER_LAYER and layer.digest != diff_id:
                raise PycontainError(f"{path}: layer {layer.digest}: the image's config names {diff_id}")
        for text in tags or ["latest"]:
            result.append((_reference(text, name), descriptor))
    if not result:
        raise NotFound("the docker archive has no images")
    return result


def _strings(value: dict[str, Any], key: str, path: str) -> list[str]:
    found = value.get(key)
    if found is None:  # Go's encoder writes null for an empty slice
        return []
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise PycontainError(f"{path}.{key}: must be an array of strings")
    return found


def _typed(store: Store, layer: Descriptor) -> Descriptor:
    with store.open(layer.digest) as stream:
        compression = Plain(stream, Limits()).compression
    suffix = "" if compression == "tar" else f".{compression}"
    return Descriptor(DOCKER_LAYER + suffix, layer.digest, layer.size)


def _put_manifest(store: Store, media_type: str, config: Descriptor, layers: Sequence[Descriptor]) -> Descriptor:
    document = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": config.to_json(),
        "layers": [layer.to_json() for layer in layers],
    }
    return store.put(_json(document), media_type=media_type)


def _ingest(store: Store, digest: str, size: int, pieces: Iterator[bytes]) -> None:
    with store.ingest(digest, size) as ingest:
        ingest.restart()
        for piece in pieces:
            ingest.write(piece)
        ingest.commit()


def _named(full: str | None, ref: str | None, name: str) -> Reference:
    """By the full name, where there is one; a tag beside it that differs is newer (umoci writes only that one)."""
    if not full or (ref and ("/" in ref or ":" in ref)):
        return _reference(ref or "latest", name)
    reference = parse(full)
    return reference.with_tag(ref) if ref and reference.tag != ref else reference


def _reference(text: str, name: str) -> Reference:
    """A whole name, or a tag of the name that the file gives."""
    return parse(text if "/" in text or ":" in text else f"localhost/{name}:{text}")


def _name_of(path: str) -> str:
    base = _ENDINGS.sub("", os.path.basename(os.path.abspath(path)).lower())
    return _NOT_IN_NAME.sub("-", base).strip("-") or "image"


def _document(data: bytes, name: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PycontainError(f"{name} is not JSON: {str(error).lower()}") from None


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
