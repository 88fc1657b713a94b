"""Images into files: docker archives, OCI archives and OCI layouts, the same bytes for the same images."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Sequence
from typing import Any, BinaryIO, Protocol

from pycontain.images.compression import Limits, Plain
from pycontain.images.descriptor import Descriptor, digest_of
from pycontain.images.failure import trying
from pycontain.images.manifest import (
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Manifest,
    Platform,
    image_config,
    select,
)
from pycontain.images.reference import Reference
from pycontain.images.store import Store
from pycontain.images.tar import BLOCK, END, Entry, header
from pycontain.runtime.errors import Conflict, PycontainError, Unsupported

REF_NAME = "org.opencontainers.image.ref.name"
FULL_NAME = "io.containerd.image.name"
FORMATS = ("docker-archive", "oci-archive", "oci-layout")
_CHUNK = 1 << 18


def save(
    store: Store,
    references: Sequence[Reference],
    target: str | BinaryIO,
    format: str = "docker-archive",
    *,
    platform: Platform | None = None,
) -> None:
    """Write images to a file (or, for "oci-layout", a directory that is not there yet), or to a stream.

    Each with the manifest of one platform, this host's if None. Raises NotFound, Conflict where the directory exists,
    Unsupported for a format that is not in `FORMATS`.
    """
    if format not in FORMATS:
        raise Unsupported(f"format {format!r} is none of {', '.join(FORMATS)}")
    if not references:
        raise PycontainError("there is no image to save")
    with store.pin():
        images = [(reference, select(store, store.get_ref(str(reference)), platform)) for reference in references]
        if not isinstance(target, str):
            if format == "oci-layout":
                raise Unsupported("format 'oci-layout' is a directory, which cannot be written to a stream")
            _archive(store, images, _Tar(target), format)
            return
        with trying(f"save to {target}"):
            if format == "oci-layout":
                _save_directory(store, images, target)
            else:
                _save_file(store, images, target, format)


def _save_file(store: Store, images: list[tuple[Reference, Manifest]], target: str, format: str) -> None:
    temporary = f"{target}.{secrets.token_hex(6)}"
    try:
        with open(temporary, "xb") as file:
            _archive(store, images, _Tar(file), format)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, target)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def _save_directory(store: Store, images: list[tuple[Reference, Manifest]], target: str) -> None:
    if os.path.lexists(target) and not (os.path.isdir(target) and not os.listdir(target)):
        raise Conflict(f"{target} exists already", hint="save to a directory that does not exist")
    temporary = f"{target.rstrip('/')}.{secrets.token_hex(6)}"
    os.makedirs(temporary)
    try:
        _oci(store, images, _Folder(temporary))
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


class _Sink(Protocol):
    def put(self, path: str, data: bytes) -> None: ...

    def copy(self, path: str, source: Any, size: int) -> None: ...


class _Folder:
    def __init__(self, root: str) -> None:
        self._root = root

    def put(self, path: str, data: bytes) -> None:
        whole = os.path.join(self._root, path)
        os.makedirs(os.path.dirname(whole), exist_ok=True)
        with open(whole, "wb") as file:
            file.write(data)

    def copy(self, path: str, source: Any, size: int) -> None:
        whole = os.path.join(self._root, path)
        os.makedirs(os.path.dirname(whole), exist_ok=True)
        with open(whole, "wb") as file:
            shutil.copyfileobj(source, file, _CHUNK)


class _Tar:
    def __init__(self, target: BinaryIO) -> None:
        self._target = target

    def put(self, path: str, data: bytes) -> None:
        self._target.write(header(Entry(path.encode(), size=len(data))) + data + bytes(-len(data) % BLOCK))

    def copy(self, path: str, source: Any, size: int) -> None:
        self._target.write(header(Entry(path.encode(), size=size)))
        written = 0
        while data := source.read(_CHUNK):
            written += len(data)
            self._target.write(data)
        if written != size:
            raise PycontainError(f"{path} has {written} bytes, expected {size}")
        self._target.write(bytes(-size % BLOCK))

    def end(self) -> None:
        self._target.write(END)


def _archive(store: Store, images: list[tuple[Reference, Manifest]], tar: _Tar, format: str) -> None:
    if format == "oci-archive":
        _oci(store, images, tar)
    else:
        _docker(store, images, tar)
    tar.end()


def _oci(store: Store, images: list[tuple[Reference, Manifest]], sink: _Sink) -> None:
    sink.put("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    blobs: dict[str, Descriptor] = {}
    documents: dict[str, bytes] = {}
    entries = []
    for reference, manifest in images:
        descriptor, data = _oci_manifest(store, manifest)
        documents[descriptor.digest] = data
        for blob in (manifest.config, *manifest.layers):
            blobs[blob.digest] = blob
        config = image_config(store, manifest)
        platform = {"architecture": config.architecture, "os": config.os}
        if config.variant:
            platform["variant"] = config.variant
        notes = {FULL_NAME: str(reference)}
        if reference.tag is not None:
            notes[REF_NAME] = reference.tag
        entries.append(Descriptor(descriptor.media_type, descriptor.digest, descriptor.size, platform, notes).to_json())
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    sink.put("index.json", _json(index))
    for digest in sorted(documents):
        sink.put(_blob_path(digest), documents[digest])
    for digest in sorted(blobs):
        with store.open(digest) as source:
            sink.copy(_blob_path(digest), source, blobs[digest].size)


def _oci_manifest(store: Store, manifest: Manifest) -> tuple[Descriptor, bytes]:
    """The manifest as it is, or one of docker's in the words of the OCI, which some readers insist on."""
    data = store.read(manifest.descriptor.digest, manifest.descriptor.size)
    if manifest.descriptor.media_type != DOCKER_MANIFEST:
        return manifest.descriptor, data

    def layer_type(text: str) -> str:
        suffix = text.removeprefix("application/vnd.docker.image.rootfs.").removeprefix("foreign.")
        return OCI_LAYER + suffix.removeprefix("diff.tar").replace(".", "+")

    value = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": Descriptor(OCI_CONFIG, manifest.config.digest, manifest.config.size).to_json(),
        "layers": [
            Descriptor(layer_type(layer.media_type), layer.digest, layer.size).to_json() for layer in manifest.layers
        ],
    }
    data = _json(value)
    return Descriptor(OCI_MANIFEST, digest_of(data), len(data)), data


def _docker(store: Store, images: list[tuple[Reference, Manifest]], tar: _Tar) -> None:
    """Layers uncompressed and named by their diff ids, as ``docker load`` and skopeo read them."""
    entries: dict[str, dict[str, Any]] = {}
    layers: dict[str, Descriptor] = {}
    for reference, manifest in images:
        config = image_config(store, manifest)
        for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
            layers.setdefault(diff_id, layer)
        entry = entries.setdefault(
            manifest.config.digest,
            {
                "Config": manifest.config.digest.partition(":")[2] + ".json",
                "RepoTags": [],
                "Layers": [diff_id.partition(":")[2] + ".tar" for diff_id in config.diff_ids],
            },
        )
        if reference.tag is not None:
            entry["RepoTags"].append(Reference(reference.registry, reference.repository, reference.tag).familiar())
    for digest, entry in entries.items():
        tar.put(entry["Config"], store.read(digest, 4 << 20))
    for diff_id, layer in layers.items():
        _docker_layer(store, diff_id, layer, tar)
    tar.put("manifest.json", _json(list(entries.values())))


def _docker_layer(store: Store, diff_id: str, layer: Descriptor, tar: _Tar) -> None:
    """Read twice: a tar's header wants the size first."""
    size = layer.size
    if layer.media_type not in (DOCKER_LAYER, OCI_LAYER):
        with store.open(layer.digest) as stream:
            plain = Plain(stream, Limits())
            plain.drain()
            size = plain.size
    with store.open(layer.digest) as stream:
        plain = Plain(stream, Limits())
        tar.copy(diff_id.partition(":")[2] + ".tar", plain, size)
    if plain.diff_id != diff_id:
        raise PycontainError(f"layer {layer.digest} unpacks to {plain.diff_id}, the image's config names {diff_id}")


def _blob_path(digest: str) -> str:
    algorithm, _, encoded = digest.partition(":")
    return f"blobs/{algorithm}/{encoded}"


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
