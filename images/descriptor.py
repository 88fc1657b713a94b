"""Digests and descriptors: how one piece of content names another (image-spec, descriptor.md)."""

from __future__ import annotations

import sys

from pycontain.runtime.errors import PycontainError, SpecError
from pycontain.runtime.light import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hashlib import _Hash as Hash
    from typing import Any

HEXADECIMAL = "0123456789abcdef"
_LENGTHS = {"sha256": 64, "sha512": 128}
_IN_MEDIA_TYPES = dict.fromkeys(map(ord, "!#$&^_.+-"))
_MAX_SIZE = 2**63 - 1
_PLATFORM_KEYS = ("os", "architecture", "variant", "os.version")


def check_digest(text: str) -> tuple[str, str]:
    """Split ``sha256:<64 hex>`` or ``sha512:<128 hex>`` into algorithm and hex; PycontainError for anything else."""
    algorithm, _, encoded = text.partition(":")
    if len(encoded) != _LENGTHS.get(algorithm) or encoded.strip(HEXADECIMAL):
        shown = text if len(text) <= 160 else text[:157] + "..."
        raise PycontainError(
            f"{shown!r} is not a digest (sha256: and 64, or sha512: and 128 lower case hexadecimal digits)"
        )
    return algorithm, encoded


def new_hash(algorithm: str) -> Hash:
    """The running hash of a digest's algorithm."""
    import hashlib

    return hashlib.sha512() if algorithm == "sha512" else hashlib.sha256()


def digest_of(data: bytes) -> str:
    """``sha256:<hex>`` of some bytes."""
    return "sha256:" + _sha256(data)


def small_digest(algorithm: str, data: bytes) -> str:
    """The hexadecimal digest of a small document."""
    if algorithm == "sha256":
        return _sha256(data)
    running = new_hash(algorithm)
    running.update(data)
    return running.hexdigest()


def _sha256(data: bytes) -> str:
    # hashlib loads OpenSSL, 2.5 ms of every container's start. The interpreter's own, which hashlib falls back to
    # where there is no OpenSSL, is slower on large data and there at once.
    try:
        if sys.version_info >= (3, 12):
            from _sha2 import sha256
        else:
            from _sha256 import sha256
    except ImportError:
        from hashlib import sha256
    result: str = sha256(data).hexdigest()
    return result


class Descriptor(NamedTuple):
    """What a piece of content is, how large (bytes), and its digest."""

    media_type: str
    digest: str
    size: int
    platform: dict[str, Any] | None = None
    annotations: dict[str, str] | None = None

    def to_json(self) -> dict[str, Any]:
        """The object of the image-spec; what is None is left out."""
        result: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.platform is not None:
            result["platform"] = self.platform
        if self.annotations is not None:
            result["annotations"] = self.annotations
        return result

    @classmethod
    def from_json(cls, value: object, path: str = "$") -> Descriptor:
        """Read and check one descriptor; SpecError with the JSON path below ``path`` for what is wrong."""
        if not isinstance(value, dict):
            raise SpecError(path, f"must be an object, found {kind(value)}")
        media_type = _member(value, "mediaType", str, path)
        if not _is_media_type(media_type):
            raise SpecError(f"{path}.mediaType", f"{media_type[:80]!r} is not a media type")
        digest = _member(value, "digest", str, path)
        try:
            check_digest(digest)
        except PycontainError as error:
            raise SpecError(f"{path}.digest", error.message) from None
        size = _member(value, "size", int, path)
        if not 0 <= size <= _MAX_SIZE:
            raise SpecError(f"{path}.size", f"{size} is not between 0 and {_MAX_SIZE}")
        return cls(
            media_type,
            digest,
            size,
            _platform(value.get("platform"), f"{path}.platform"),
            _annotations(value.get("annotations"), f"{path}.annotations"),
        )


def _is_media_type(text: str) -> bool:
    """RFC 6838, 4.2: two names of at most 127 letters, digits and !#$&^_.+- after a letter or digit."""
    names = text.split("/")
    return len(names) == 2 and all(
        0 < len(name) < 128 and name.isascii() and name[0].isalnum() and name.translate(_IN_MEDIA_TYPES).isalnum()
        for name in names
    )


def kind(value: object) -> str:
    """The JSON name of a value's type, for messages."""
    for types, name in (
        (dict, "an object"),
        (list, "an array"),
        (str, "a string"),
        (bool, "a boolean"),
        ((int, float), "a number"),
    ):
        if isinstance(value, types):
            return name
    return "null" if value is None else type(value).__name__


def _member(value: dict[str, Any], key: str, wanted: type, path: str) -> Any:
    if key not in value:
        raise SpecError(f"{path}.{key}", "is missing")
    found = value[key]
    if not isinstance(found, wanted) or isinstance(found, bool):
        name = {str: "a string", int: "an integer"}[wanted]
        raise SpecError(f"{path}.{key}", f"must be {name}, found {kind(found)}")
    return found


def _platform(value: object, path: str) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise SpecError(path, f"must be an object, found {kind(value)}")
    for key in _PLATFORM_KEYS:
        if key in value and not isinstance(value[key], str):
            raise SpecError(f"{path}.{key}", f"must be a string, found {kind(value[key])}")
    return value


def _annotations(value: object, path: str) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise SpecError(path, f"must be an object, found {kind(value)}")
    for key, text in value.items():
        if not isinstance(text, str):
            raise SpecError(f"{path}[{key!r}]", f"must be a string, found {kind(text)}")
    return value
