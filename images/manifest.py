"""Indexes, manifests and image configurations, read with bounds (image-spec; docker's schema 2 beside it).

What comes from a registry is hostile: every document has a size limit, an index may nest once, a layer count is
bounded, and a document that reads as two things at once is refused. Errors name the document and the JSON path.
"""

from __future__ import annotations

import os

from pycontain.images.descriptor import Descriptor, check_digest, kind
from pycontain.images.store import Store
from pycontain.runtime import jsontext
from pycontain.runtime.errors import NotFound, PycontainError, SpecError, Unsupported
from pycontain.runtime.light import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    Fetch = Callable[[Descriptor], None]

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"

INDEX_TYPES = frozenset((OCI_INDEX, DOCKER_INDEX))
MANIFEST_TYPES = frozenset((OCI_MANIFEST, DOCKER_MANIFEST))
CONFIG_TYPES = frozenset((OCI_CONFIG, DOCKER_CONFIG))
# What a client asks a registry for, best first.
ACCEPT = (OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST)

MAX_DOCUMENT = 4 << 20  # bytes of an index, a manifest or a configuration
MAX_LAYERS = 127  # what docker stacks, well below the 500 of overlayfs
MAX_NESTING = 2  # an index of indexes of manifests
MAX_TEXTS = 10_000  # entries of one list of a configuration

_LAYER_TYPES = frozenset(
    base + suffix
    for base, sign in (
        (OCI_LAYER, "+"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar", "+"),
        (DOCKER_LAYER, "."),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar", "."),
    )
    for suffix in ("", f"{sign}gzip", f"{sign}zstd")
)
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1"

# What uname calls a machine, and what images call it (GOARCH).
_MACHINES = {
    "x86_64": ("amd64", None),
    "aarch64": ("arm64", None),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i386": ("386", None),
    "i686": ("386", None),
    "ppc64le": ("ppc64le", None),
    "s390x": ("s390x", None),
    "riscv64": ("riscv64", None),
}
_DEFAULT_VARIANT = {"arm64": "v8", "arm": "v7", "amd64": "v1"}
_IN_PLATFORMS = "abcdefghijklmnopqrstuvwxyz0123456789_.-"


class Platform(NamedTuple):
    """``os/architecture[/variant]``, by Go's names."""

    os: str
    architecture: str
    variant: str | None = None

    def __str__(self) -> str:
        return f"{self.os}/{self.architecture}" + (f"/{self.variant}" if self.variant else "")

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Read ``linux/arm64``, ``linux/arm/v7`` or just ``arm64``."""
        parts = text.lower().split("/")
        if len(parts) > 3 or not all(part and not part.strip(_IN_PLATFORMS) for part in parts):
            raise PycontainError(f"platform {text!r} is not os/architecture[/variant]", hint="such as linux/arm64")
        if len(parts) == 1:
            parts.insert(0, "linux")
        architecture, variant = _MACHINES.get(parts[1], (parts[1], None))
        return cls(parts[0], architecture, parts[2] if len(parts) == 3 else variant)

    @classmethod
    def host(cls) -> Platform:
        """This machine's."""
        machine = os.uname().machine
        architecture, variant = _MACHINES.get(machine, (machine, None))
        return cls("linux", architecture, variant)

    def rank(self, other: Platform) -> int | None:
        """How well this platform runs an image for ``other``: 0 is best, None is not at all.

        A 32 bit arm runs older variants as well; elsewhere a variant must match, a missing one is the common one.
        """
        if (self.os, self.architecture) != (other.os, other.architecture):
            return None
        default = _DEFAULT_VARIANT.get(self.architecture)
        mine, theirs = self.variant or default, other.variant or default
        if mine == theirs:
            return 0
        if self.architecture == "arm" and mine and theirs and _number(theirs) < _number(mine):
            return _number(mine) - _number(theirs)
        return None


class Manifest(NamedTuple):
    """An image for one platform: its configuration and its layers, bottom first."""

    descriptor: Descriptor
    config: Descriptor
    layers: tuple[Descriptor, ...]


class ImageConfig(NamedTuple):
    """The configuration that an image brings; ``raw`` is the whole document as it came."""

    os: str
    architecture: str
    variant: str | None
    diff_ids: tuple[str, ...]
    created: str | None = None
    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""
    volumes: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()
    labels: Mapping[str, str] = {}
    stop_signal: str | None = None
    raw: Mapping[str, Any] = {}

    @property
    def platform(self) -> Platform:
        return Platform(self.os, self.architecture, self.variant)


def select(
    store: Store, descriptor: Descriptor, platform: Platform | None = None, *, fetch: Fetch | None = None
) -> Manifest:
    """The manifest that a descriptor of an index or manifest leads to, for a platform (this host's if None).

    ``fetch`` is called for each document that is not in the store yet, and must put it there. Raises NotFound where
    the index has nothing for the platform, Unsupported for what is no container image, PycontainError for bad
    documents.
    """
    nesting = 0
    while descriptor.media_type not in MANIFEST_TYPES:
        if descriptor.media_type not in INDEX_TYPES:
            raise _no_image(descriptor)
        nesting += 1
        if nesting > MAX_NESTING:
            raise PycontainError(f"image index {descriptor.digest}: indexes are nested more than {MAX_NESTING} deep")
        manifests = parse_index(_read(store, descriptor, fetch), descriptor)
        descriptor = choose(manifests, platform or Platform.host(), descriptor)
    return parse_manifest(_read(store, descriptor, fetch), descriptor)


def image_config(store: Store, manifest: Manifest, *, fetch: Fetch | None = None) -> ImageConfig:
    """The configuration of an image, checked against its manifest."""
    config = parse_config(_read(store, manifest.config, fetch), manifest.config)
    if len(config.diff_ids) != len(manifest.layers):
        raise PycontainError(
            f"image config {manifest.config.digest}: $.rootfs.diff_ids: has {len(config.diff_ids)} entries, "
            f"the manifest has {len(manifest.layers)} layers"
        )
    return config


def check_platform(config: ImageConfig, platform: Platform | None, name: str) -> None:
    """Refuse an image that is not for linux, or not for the platform that the user asked for by name."""
    if config.os != "linux" or (platform is not None and platform.rank(config.platform) is None):
        raise NotFound(f"image {name} is for {config.platform}, wanted {platform or Platform.host()}")


def choose(manifests: tuple[Descriptor, ...], platform: Platform, index: Descriptor) -> Descriptor:
    """The entry of an index that suits a platform best; the first one among equals (image-spec, image-index.md)."""
    best: tuple[int, Descriptor] | None = None
    offered = []
    for item in manifests:
        if item.platform is None:
            if len(manifests) == 1:
                return item
            continue
        theirs = _platform_of(item.platform)
        if theirs.os != "unknown":  # attestations hide behind unknown/unknown
            offered.append(str(theirs))
        rank = platform.rank(theirs)
        if rank is not None and (best is None or rank < best[0]):
            best = rank, item
    if best is None:
        shown = ", ".join(offered[:20]) or "no platform at all"
        raise NotFound(f"image index {index.digest} has nothing for {platform}; it has {shown}")
    return best[1]


def parse_index(data: bytes, descriptor: Descriptor) -> tuple[Descriptor, ...]:
    """The entries of an image index or docker manifest list."""
    with _Document("image index", descriptor.digest) as document:
        value = document.load(data, descriptor.media_type)
        for key in ("layers", "config"):  # a manifest posing as an index: CVE-2021-41190
            if key in value:
                raise SpecError(f"$.{key}", "does not belong into an index")
        return tuple(
            Descriptor.from_json(item, f"$.manifests[{number}]")
            for number, item in enumerate(_list(value, "manifests", "$"))
        )


def parse_manifest(data: bytes, descriptor: Descriptor) -> Manifest:
    """An image manifest."""
    with _Document("image manifest", descriptor.digest) as document:
        value = document.load(data, descriptor.media_type)
        if "manifests" in value:
            raise SpecError("$.manifests", "does not belong into a manifest")
        config = Descriptor.from_json(value.get("config"), "$.config")
        if config.media_type not in CONFIG_TYPES:
            raise Unsupported(
                f"$.config.mediaType: {config.media_type!r} is not the configuration of a container image"
            )
        if config.size > MAX_DOCUMENT:
            raise SpecError("$.config.size", f"{config.size} is more than {MAX_DOCUMENT}")
        items = _list(value, "layers", "$")
        if len(items) > MAX_LAYERS:
            raise SpecError("$.layers", f"has {len(items)} entries, more than {MAX_LAYERS}")
        layers = tuple(Descriptor.from_json(item, f"$.layers[{number}]") for number, item in enumerate(items))
        for number, layer in enumerate(layers):
            if layer.media_type not in _LAYER_TYPES:
                raise Unsupported(f"$.layers[{number}].mediaType: {layer.media_type!r} is not a file system layer")
        return Manifest(descriptor, config, layers)


def parse_config(data: bytes, descriptor: Descriptor) -> ImageConfig:
    """An image configuration (image-spec, config.md)."""
    with _Document("image config", descriptor.digest) as document:
        value = document.load(data, None)
        rootfs = _object(value, "rootfs", "$", required=True)
        if rootfs.get("type") != "layers":
            raise SpecError("$.rootfs.type", f"must be 'layers', found {rootfs.get('type')!r}")
        diff_ids = _texts(rootfs, "diff_ids", "$.rootfs")
        if len(diff_ids) > MAX_LAYERS:
            raise SpecError("$.rootfs.diff_ids", f"has {len(diff_ids)} entries, more than {MAX_LAYERS}")
        for number, diff_id in enumerate(diff_ids):
            try:
                check_digest(diff_id)
            except PycontainError as error:
                raise SpecError(f"$.rootfs.diff_ids[{number}]", error.message) from None
        config = _object(value, "config", "$")
        env = _texts(config, "Env", "$.config")
        for number, item in enumerate(env):
            if item.find("=") < 1:
                raise SpecError(f"$.config.Env[{number}]", f"{item[:80]!r} is not NAME=value")
        labels = _object(config, "Labels", "$.config")
        return ImageConfig(
            os=_text(value, "os", "$") or "linux",
            architecture=_text(value, "architecture", "$") or "unknown",
            variant=_text(value, "variant", "$") or None,
            diff_ids=diff_ids,
            created=_text(value, "created", "$") or None,
            user=_text(config, "User", "$.config"),
            env=env,
            entrypoint=_texts(config, "Entrypoint", "$.config"),
            cmd=_texts(config, "Cmd", "$.config"),
            working_dir=_text(config, "WorkingDir", "$.config"),
            volumes=_names(config, "Volumes", "$.config"),
            exposed_ports=_names(config, "ExposedPorts", "$.config"),
            labels={key: _text(labels, key, "$.config.Labels") for key in labels},
            stop_signal=_text(config, "StopSignal", "$.config") or None,
            raw=value,
        )


class _Document:
    """Reads one JSON document, and puts its name before every problem found in it."""

    def __init__(self, what: str, digest: str) -> None:
        self._name = f"{what} {digest}"

    def __enter__(self) -> _Document:
        return self

    def __exit__(self, _: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, SpecError):
            raise PycontainError(f"{self._name}: {error.message}", hint=error.hint) from None
        if isinstance(error, Unsupported):
            raise Unsupported(f"{self._name}: {error.message}", hint=error.hint) from None

    def load(self, data: bytes, media_type: str | None) -> dict[str, Any]:
        """The object; with a media type, one of schema version 2 that does not call itself something else."""
        if len(data) > MAX_DOCUMENT:
            raise SpecError("$", f"has {len(data)} bytes, more than {MAX_DOCUMENT}")
        try:
            value = jsontext.loads(data)
        except RecursionError:
            raise SpecError("$", "is nested too deep") from None
        except ValueError as error:
            raise SpecError("$", f"is not JSON: {str(error).lower()}") from None
        if not isinstance(value, dict):
            raise SpecError("$", f"must be an object, found {kind(value)}")
        if media_type is not None:
            if value.get("schemaVersion") != 2:
                raise SpecError("$.schemaVersion", f"must be 2, found {value.get('schemaVersion')!r}")
            own = _text(value, "mediaType", "$")
            if own and own != media_type:
                raise SpecError("$.mediaType", f"{own!r}, but it was named as {media_type!r}")
        return value


def _read(store: Store, descriptor: Descriptor, fetch: Fetch | None) -> bytes:
    if fetch is not None and not store.has(descriptor.digest):
        fetch(descriptor)
    return store.read(descriptor.digest, MAX_DOCUMENT)


def _no_image(descriptor: Descriptor) -> Unsupported:
    if descriptor.media_type.startswith(_SCHEMA_1):
        return Unsupported(f"image {descriptor.digest} is of docker's schema 1, which registries no longer serve")
    return Unsupported(f"{descriptor.digest} is of type {descriptor.media_type!r}, not a container image")


def _platform_of(value: dict[str, Any]) -> Platform:
    return Platform(value.get("os", ""), value.get("architecture", ""), value.get("variant") or None)


def _number(variant: str) -> int:
    digits = variant.removeprefix("v")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 4 else 0


def _list(value: dict[str, Any], key: str, path: str) -> list[Any]:
    found = value.get(key)
    if found is None and key not in value:
        raise SpecError(f"{path}.{key}", "is missing")
    if found is None:  # Go's encoder writes null for an empty slice
        return []
    if not isinstance(found, list):
        raise SpecError(f"{path}.{key}", f"must be an array, found {kind(found)}")
    return found


def _object(value: dict[str, Any], key: str, path: str, *, required: bool = False) -> dict[str, Any]:
    found = value.get(key)
    if found is None and not required:
        return {}
    if not isinstance(found, dict):
        problem = f"must be an object, found {kind(found)}" if key in value else "is missing"
        raise SpecError(f"{path}.{key}", problem)
    return found


def _text(value: dict[str, Any], key: str, path: str) -> str:
    found = value.get(key)
    if found is None:
        return ""
    return _checked(found, f"{path}.{key}")


def _checked(found: object, path: str) -> str:
    if not isinstance(found, str):
        raise SpecError(path, f"must be a string, found {kind(found)}")
    if "\0" in found:
        raise SpecError(path, "has a NUL character")
    return found


def _texts(value: dict[str, Any], key: str, path: str) -> tuple[str, ...]:
    found = value.get(key)
    if found is None:
        return ()
    if not isinstance(found, list):
        raise SpecError(f"{path}.{key}", f"must be an array, found {kind(found)}")
    if len(found) > MAX_TEXTS:
        raise SpecError(f"{path}.{key}", f"has {len(found)} entries, more than {MAX_TEXTS}")
    return tuple(_checked(item, f"{path}.{key}[{number}]") for number, item in enumerate(found))


def _names(value: dict[str, Any], key: str, path: str) -> tuple[str, ...]:
    """The keys of a Go set, ``{"/data": {}}``."""
    found = _object(value, key, path)
    return tuple(sorted(_checked(name, f"{path}.{key}") for name in found))
