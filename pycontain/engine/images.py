"""Images as the engine's users see them: found by name or id, pulled where missing, listed, tagged, removed."""

from __future__ import annotations

import os

from pycontain.images import manifest as manifests
from pycontain.images import reference as references
from pycontain.images.descriptor import HEXADECIMAL
from pycontain.runtime.errors import Conflict, NotFound, PycontainError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from typing import Any, BinaryIO, TextIO

    from pycontain.engine import Engine
    from pycontain.images.descriptor import Descriptor
    from pycontain.images.manifest import ImageConfig, Manifest, Platform
    from pycontain.images.reference import Reference


class Image:
    """``name``: what the user reads; ``id``: the digest of the configuration, as docker's image ids."""

    __slots__ = ("config", "descriptor", "manifest", "name", "reference")

    def __init__(
        self, name: str, reference: str, descriptor: Descriptor, manifest: Manifest, config: ImageConfig
    ) -> None:
        self.name = name
        self.reference = reference
        self.descriptor = descriptor
        self.manifest = manifest
        self.config = config

    @property
    def id(self) -> str:
        return self.manifest.config.digest

    @property
    def size(self) -> int:
        """Bytes of the compressed layers and the configuration."""
        return self.manifest.config.size + sum(layer.size for layer in self.manifest.layers)


def _is_id(text: str) -> bool:
    """Whether it may be an image's id or the start of one."""
    digits = text.removeprefix("sha256:")
    return 3 <= len(digits) <= 64 and not digits.strip(HEXADECIMAL)


def _platform(text: str | None) -> Platform | None:
    return manifests.Platform.parse(text) if text else None


def _read(engine: Engine, name: str, descriptor: Descriptor, platform: Platform | None) -> Image:
    manifest = manifests.select(engine.images, descriptor, platform)
    config = manifests.image_config(engine.images, manifest)
    manifests.check_platform(config, platform, name)
    return Image(references.parse(name).familiar(), name, descriptor, manifest, config)


def find(engine: Engine, text: str, platform: str | None = None) -> Image:
    """A local image by name, or by its id or the start of it. Raises NotFound, Conflict (several ids fit).

    Call it under ``engine.images.pin()`` where the content must stay.
    """
    refs = engine.images.refs()
    if _is_id(text):
        by_id = _by_id(engine, text, refs)
        if by_id is not None:
            return by_id
    reference = references.parse(text)
    descriptor = _descriptor(engine, reference, refs)
    if descriptor is None:
        raise NotFound(
            f'no such image: "{reference.familiar()}" is not here', hint=f"pycontain pull {reference.familiar()}"
        )
    return _read(engine, str(reference), descriptor, _platform(platform))


def _descriptor(engine: Engine, reference: Reference, refs: dict[str, Descriptor]) -> Descriptor | None:
    name = str(reference)
    if name in refs:
        return engine.images.get_ref(name)
    if reference.digest is not None:
        # A digest says what it is, under whatever name of the repository it was pulled.
        for other, descriptor in refs.items():
            if descriptor.digest == reference.digest and other.startswith((f"{reference.name}:", f"{reference.name}@")):
                return engine.images.get_ref(other)
    return None


def _by_id(engine: Engine, text: str, refs: dict[str, Descriptor]) -> Image | None:
    if text in {references.parse(name).familiar().rpartition(":")[0] for name in refs}:
        return None  # a name that happens to look like an id ("cafe") goes first
    wanted = text.removeprefix("sha256:")
    fitting = {image.id: image for image in images(engine) if image.id.removeprefix("sha256:").startswith(wanted)}
    if len(fitting) > 1:
        raise Conflict(f'"{text}" is the start of {len(fitting)} image ids', hint="write more of the id")
    return next(iter(fitting.values()), None)


def images(engine: Engine) -> Iterator[Image]:
    """Every image that can be read, in the order of the names; one for another platform shows its own."""
    for name, descriptor in engine.images.refs().items():
        try:
            yield _read(engine, name, descriptor, None)
        except PycontainError:
            try:
                yield _any_platform(engine, name, descriptor)
            except PycontainError:
                continue  # damaged, or removed meanwhile


def _any_platform(engine: Engine, name: str, descriptor: Descriptor) -> Image:
    """An image pulled with ``--platform``: the first entry of its index that is here."""
    store = engine.images
    for entry in manifests.parse_index(store.read(descriptor.digest, manifests.MAX_DOCUMENT), descriptor):
        if store.has(entry.digest):
            manifest = manifests.select(store, entry)
            return Image(
                references.parse(name).familiar(), name, descriptor, manifest, manifests.image_config(store, manifest)
            )
    raise NotFound(f"image {name} has no content")


def resolve(engine: Engine, text: str, *, platform: str | None, policy: str, stream: TextIO | None = None) -> Image:
    """The image to run: the local one, pulled before where ``policy`` (missing, always, never) says so.

    Call it under a pin. A pull shows its progress on ``stream``. No image ever stands in for another.
    """
    if policy != "always":
        try:
            return find(engine, text, platform)
        except NotFound:
            if policy == "never" or len(text.removeprefix("sha256:")) == 64:
                raise
    try:
        return pull_shown(engine, text, platform, stream)
    except PycontainError as error:
        if error.hint is None:
            error.hint = (
                f"an image that is on this machine already: pycontain load -i FILE, or pycontain import FILE {text}"
            )
        raise


def pull(engine: Engine, text: str, *, platform: str | None = None, progress: Any = None) -> Image:
    """Download an image and name it. Raises what the images' room raises for every way that this can fail."""
    from pycontain.images import pull as pulling
    from pycontain.images import settings

    reference = references.parse(text)
    with engine.images.pin():
        pulling.pull(
            engine.images,
            reference,
            platform=_platform(platform),
            settings=settings.load(os.environ),
            progress=progress,
        )
        return find(engine, text, platform)


def users(engine: Engine, image: Image) -> list[str]:
    """The containers (their names) that were made of an image."""
    return [
        container.label
        for container in engine.containers.all()
        if (container.record.get("image") or {}).get("id") == image.id
    ]


def remove(engine: Engine, text: str, *, force: bool = False) -> list[str]:
    """Forget a name and collect what nothing else needs; the lines to print.

    Raises Conflict where containers were made of it and no other name keeps it (``force`` forgives stopped ones).
    """
    with engine.images.pin():
        image = find(engine, text)
    names = [other.reference for other in images(engine) if other.id == image.id]
    by_id = _is_id(text) and not image.name.startswith(text)
    going = names if by_id else [image.reference]
    if len(names) == len(going):
        using = users(engine, image)
        running = [c.label for c in engine.containers.all() if c.label in using and c.status() in ("running", "paused")]
        if running or (using and not force):
            shown = (running or using)[0]
            raise Conflict(
                f'cannot remove image "{image.name}": it is in use by container {shown}',
                hint=f"pycontain rm {'-f ' if running else ''}{shown}",
            )
    lines = []
    for name in going:
        engine.images.remove_ref(name)
        lines.append(f"Untagged: {references.parse(name).familiar()}")
    collect(engine)
    if len(names) == len(going):
        lines.append(f"Deleted: {image.id}")
    return lines


def tag(engine: Engine, text: str, target: str) -> None:
    new = references.parse(target)
    if new.digest is not None:
        raise PycontainError(f'cannot tag "{target}": a new name has a tag, not a digest')
    with engine.images.pin():
        image = find(engine, text)
        engine.images.set_ref(str(new), image.descriptor)


def collect(engine: Engine) -> int:
    """Remove content that no name and no container needs; the freed bytes."""
    from pycontain.images import erofs

    def layers() -> list[str]:
        return [
            layer
            for container in engine.containers.all()
            for layer in (container.record.get("image") or {}).get("layers", [])
        ]

    def derived(chains: Collection[str]) -> int:
        return erofs.sweep(erofs.directory(engine.data), chains)

    return engine.images.gc(layers, derived)


def pull_shown(engine: Engine, text: str, platform: str | None, stream: TextIO | None) -> Image:
    """`pull` with its progress on a stream: bars on a terminal, lines elsewhere, nothing where None."""
    if stream is None:
        return pull(engine, text, platform=platform)
    from pycontain.images.progress import show_on

    with show_on(stream) as progress:
        return pull(engine, text, platform=platform, progress=progress)


def row(image: Image) -> dict[str, Any]:
    """One line of ``images``, by docker's names."""
    from pycontain.engine import inspect

    reference = references.parse(image.reference)
    name = reference.familiar()
    suffix = f":{reference.tag}" if reference.tag else f"@{reference.digest}"
    return {
        "Name": name,
        "Repository": name.removesuffix(suffix),
        "Tag": reference.tag or "<none>",
        "Digest": image.descriptor.digest,
        "ID": image.id,
        "CreatedAt": image.config.created or "",
        "CreatedSince": _since(image.config.created),
        "Platform": str(image.config.platform),
        "Size": inspect.size_text(image.size),
        "Bytes": image.size,
    }


def _since(created: str | None) -> str:
    import calendar
    import re

    from pycontain.engine import inspect

    match = re.match(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)", created or "")
    if match is None:
        return ""
    seconds = calendar.timegm((*map(int, match.groups()), 0, 0, 0))
    return f"{inspect.ago(seconds * 10**9)} ago"


def inspect(engine: Engine, text: str) -> dict[str, Any]:
    """docker's document for one image."""
    with engine.images.pin():
        image = find(engine, text)
        raw = image.config.raw
        names = [references.parse(other.reference) for other in images(engine) if other.id == image.id]
        return {
            "Id": image.id,
            "RepoTags": [name.familiar() for name in names if name.tag],
            "RepoDigests": [f"{names[0].name}@{image.descriptor.digest}"] if names else [],
            "Created": image.config.created,
            "Architecture": image.config.architecture,
            "Variant": image.config.variant or "",
            "Os": image.config.os,
            "Size": image.size,
            "Author": raw.get("author", ""),
            "Config": raw.get("config") or {},
            "RootFS": {"Type": "layers", "Layers": list(image.config.diff_ids)},
            "Descriptor": image.descriptor.to_json(),
            "Manifest": image.manifest.descriptor.to_json(),
            "Layers": [layer.to_json() for layer in image.manifest.layers],
        }


def login(server: str, username: str, password: str) -> str:
    """Try the password at the registry and keep it; where it is kept."""
    from pycontain.images import registry, settings

    return registry.login(server, username, password, settings=settings.load(os.environ))


def logout(server: str) -> bool:
    from pycontain.images import registry, settings

    return registry.logout(server, settings=settings.load(os.environ))


def load(engine: Engine, source: str | BinaryIO) -> list[str]:
    """Add the images of an archive or layout (path or stream); their names."""
    from pycontain.images import layout

    with engine.images.pin():
        return [reference.familiar() for reference in layout.load(engine.images, source)]


def save(engine: Engine, names: list[str], target: str | BinaryIO, form: str) -> None:
    """Write images to a file or a stream as ``form`` (docker-archive, oci-archive)."""
    from pycontain.images import export

    with engine.images.pin():
        found = [find(engine, name) for name in names]
        export.save(engine.images, [references.parse(image.reference) for image in found], target, form)


def import_tar(engine: Engine, source: str | BinaryIO, name: str) -> str:
    """Make an image of a root file system's archive; its id."""
    from pycontain.images import layout

    reference = references.parse(name)
    with engine.images.pin():
        layout.import_tar(engine.images, source, reference)
        return find(engine, str(reference)).id
