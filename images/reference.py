"""Names of images, read by the rules that docker made common.

Grammar: ``[registry/]repository[:tag][@digest]``. The first component is a registry only if it has a
dot or a colon, is ``localhost``, or has an upper case letter; otherwise the registry is ``docker.io``,
and a repository of one component there lies below ``library/``.
"""

from __future__ import annotations

from pycontain.images.descriptor import HEXADECIMAL, check_digest
from pycontain.runtime.errors import PycontainError
from pycontain.runtime.light import NamedTuple

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
_OFFICIAL = "library/"
_MAX_REPOSITORY = 255

_DOMAIN = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_REGISTRY = rf"(?:{_DOMAIN}(?:\.{_DOMAIN})*|\[[0-9A-Fa-f:]+\])(?::[0-9]{{1,5}})?"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = rf"{_COMPONENT}(?:/{_COMPONENT})*"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"


class _Parts(NamedTuple):
    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None


class Reference(_Parts):
    """One image name, complete: ``registry`` and ``repository`` are always there, and a tag or a digest (or both).

    Raises PycontainError where a part is not of the grammar, so that every value is a valid name.
    """

    __slots__ = ()

    def __new__(cls, registry: str, repository: str, tag: str | None = None, digest: str | None = None) -> Reference:
        made = super().__new__(cls, registry, repository, tag, digest)
        _check(made, made.name)
        return made

    @property
    def name(self) -> str:
        """``docker.io/library/alpine``: without tag and digest."""
        return f"{self.registry}/{self.repository}"

    def __str__(self) -> str:
        return self.name + self._suffix()

    def familiar(self) -> str:
        """The shortest text that `parse` reads back as this reference, with its tag: ``alpine:latest``."""
        candidates = []
        if self.registry == DEFAULT_REGISTRY:
            if self.repository.startswith(_OFFICIAL):
                candidates.append(self.repository.removeprefix(_OFFICIAL))
            candidates.append(self.repository)
        for short in candidates:
            # A one-component name cannot be told from an image id, and "a.b/c" would name the registry a.b.
            if _split_registry(short) == (self.registry, self.repository) and not _is_identifier(short):
                return short + self._suffix()
        return str(self)

    def with_tag(self, tag: str) -> Reference:
        """The same repository under another tag, without a digest."""
        return Reference(self.registry, self.repository, tag)

    def with_digest(self, digest: str) -> Reference:
        """The same repository, by digest alone."""
        return Reference(self.registry, self.repository, None, digest)

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag is not None else "") + (f"@{self.digest}" if self.digest is not None else "")


def parse(text: str) -> Reference:
    """Read what a user wrote: ``alpine`` is ``docker.io/library/alpine:latest``.

    Raises PycontainError that names the text and the part of it that is wrong.
    """
    if not text:
        raise PycontainError(
            "image reference is empty", hint="name an image, such as alpine or docker.io/library/alpine:3.20"
        )
    if _is_identifier(text):
        raise _bad(text, "64 hexadecimal digits are an image id, not a name")
    rest, at, digest_text = text.partition("@")
    digest = digest_text if at else None
    tag: str | None = None
    head, colon, tail = rest.rpartition(":")
    if colon and "/" not in tail and not tail.endswith("]"):  # otherwise the colon belongs to registry:port or [v6]
        rest, tag = head, tail
    if tag is None and digest is None:
        tag = DEFAULT_TAG
    registry, repository = _split_registry(rest)
    _check_parts(text, registry, repository, tag, digest)
    return Reference(registry, repository, tag, digest)


def _split_registry(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        registry, repository = first, rest
    else:
        registry, repository = DEFAULT_REGISTRY, name
    if registry == "index.docker.io":
        registry = DEFAULT_REGISTRY
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = _OFFICIAL + repository
    return registry, repository


def _check(reference: Reference, text: str) -> None:
    _check_parts(text, reference.registry, reference.repository, reference.tag, reference.digest)
    if (reference.registry, reference.repository) != _split_registry(text):
        raise _bad(text, "not a complete name; parse it first")


def _check_parts(text: str, registry: str, repository: str, tag: str | None, digest: str | None) -> None:
    if not _fits(_REGISTRY, registry, "."):
        raise _bad(text, f"{registry!r} is not a registry's host[:port]")
    port = registry.rpartition(":")[2] if not registry.endswith("]") and ":" in registry else ""
    if port and not 0 < int(port) < 65536:
        raise _bad(text, f"port {port} is not between 1 and 65535")
    shown = repository.removeprefix(_OFFICIAL) if registry == DEFAULT_REGISTRY else repository
    if not shown:
        raise _bad(text, "the repository is empty")
    if len(repository) > _MAX_REPOSITORY:
        raise _bad(text, f"the repository has {len(repository)} characters, more than {_MAX_REPOSITORY}")
    if not (repository == repository.lower() and _fits(_REPOSITORY, repository, "/._-")):
        if _fits(_REPOSITORY, repository.lower(), "/._-"):
            raise _bad(text, f"repository {shown!r} must be lower case", hint=f"use {shown.lower()}")
        raise _bad(text, f"{shown!r} is not a repository (a-z and 0-9 in components joined by . _ __ - and /)")
    if tag is not None and not (len(tag) <= 128 and _fits(_TAG, tag, "._-")):
        raise _bad(text, f"{tag!r} is not a tag (1 to 128 of A-Z a-z 0-9 _ . -, not starting with . or -)")
    if digest is not None:
        try:
            check_digest(digest)
        except PycontainError as error:
            raise _bad(text, error.message) from None


def _is_identifier(text: str) -> bool:
    return len(text) == 64 and not text.strip(HEXADECIMAL)


def _fits(pattern: str, text: str, between: str) -> bool:
    """Whether all of ``text`` is of the grammar ``pattern``; ``re`` is imported only for what is not plain.

    Plain, and of each of the grammars: ASCII letters and digits with single characters of ``between`` in between.
    """
    plain = text
    for sign in between:
        plain = plain.replace(sign, " ")
    if text.isascii() and " " not in text and all(word.isalnum() for word in plain.split(" ")):
        return True
    import re

    return re.fullmatch(pattern, text, re.ASCII) is not None


def _bad(text: str, problem: str, *, hint: str | None = None) -> PycontainError:
    shown = text if len(text) <= 300 else text[:297] + "..."
    return PycontainError(f"image reference {shown!r}: {problem}", hint=hint)
