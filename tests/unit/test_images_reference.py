"""Image references: what docker's grammar takes, what it refuses, and in which words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontain.images.reference import Reference, parse
from pycontain.runtime.errors import PycontainError

HEX = "0123456789abcdef" * 4
DIGEST = "sha256:" + HEX
GRAMMAR = " (a-z and 0-9 in components joined by . _ __ - and /)"
DIGESTS = "(sha256: and 64, or sha512: and 128 lower case hexadecimal digits)"


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("alpine", "docker.io/library/alpine:latest", "alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20", "alpine:3.20"),
        ("docker.io/alpine", "docker.io/library/alpine:latest", "alpine:latest"),
        ("index.docker.io/library/alpine:1", "docker.io/library/alpine:1", "alpine:1"),
        ("user/app", "docker.io/user/app:latest", "user/app:latest"),
        ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
        ("localhost:5000/a/b:c", "localhost:5000/a/b:c", "localhost:5000/a/b:c"),
        ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest", "127.0.0.1:5000/a:latest"),
        ("[::1]:5000/a:b", "[::1]:5000/a:b", "[::1]:5000/a:b"),
        ("[::1]/a", "[::1]/a:latest", "[::1]/a:latest"),
        ("Host/app", "Host/app:latest", "Host/app:latest"),
        ("ghcr.io/o/r@" + DIGEST, "ghcr.io/o/r@" + DIGEST, "ghcr.io/o/r@" + DIGEST),
        ("alpine:3@" + DIGEST, "docker.io/library/alpine:3@" + DIGEST, "alpine:3@" + DIGEST),
        ("pycontain.local/busybox:embedded", "pycontain.local/busybox:embedded", "pycontain.local/busybox:embedded"),
        ("docker.io/a.b/c", "docker.io/a.b/c:latest", "docker.io/a.b/c:latest"),
        ("docker.io/library/" + HEX, f"docker.io/library/{HEX}:latest", f"library/{HEX}:latest"),
        ("a__b/c--d.e_f", "docker.io/a__b/c--d.e_f:latest", "a__b/c--d.e_f:latest"),
    ],
)
def test_reads_names_as_docker_does(text: str, full: str, familiar: str) -> None:
    reference = parse(text)
    assert str(reference) == full
    assert reference.familiar() == familiar
    assert parse(familiar) == reference


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "image reference is empty"),
        ("Alpine", "image reference 'Alpine': repository 'Alpine' must be lower case"),
        (
            "alpine:",
            "image reference 'alpine:': '' is not a tag (1 to 128 of A-Z a-z 0-9 _ . -, not starting with . or -)",
        ),
        (
            "alpine:-x",
            "image reference 'alpine:-x': '-x' is not a tag (1 to 128 of A-Z a-z 0-9 _ . -, not starting with . or -)",
        ),
        (":x", "image reference ':x': the repository is empty"),
        (
            "a//b",
            "image reference 'a//b': 'a//b' is not a repository (a-z and 0-9 in components joined by . _ __ - and /)",
        ),
        (
            "../etc",
            "image reference '../etc': '..' is not a registry's host[:port]",
        ),
        (
            "x/../y",
            "image reference 'x/../y': 'x/../y' is not a repository" + GRAMMAR,
        ),
        ("a.b:0/x", "image reference 'a.b:0/x': port 0 is not between 1 and 65535"),
        ("a.b:65536/x", "image reference 'a.b:65536/x': port 65536 is not between 1 and 65535"),
        ("a.b:x/y", "image reference 'a.b:x/y': 'a.b:x' is not a registry's host[:port]"),
        ("-a.b/y", "image reference '-a.b/y': '-a.b' is not a registry's host[:port]"),
        (HEX, f"image reference '{HEX}': 64 hexadecimal digits are an image id, not a name"),
        (
            "alpine@sha256:12",
            "image reference 'alpine@sha256:12': 'sha256:12' is not a digest " + DIGESTS,
        ),
        (
            "a\nb",
            "image reference 'a\\nb': 'a\\nb' is not a repository (a-z and 0-9 in components joined by . _ __ - and /)",
        ),
        (
            "alpine\n",
            "image reference 'alpine\\n': 'alpine\\n' is not a repository" + GRAMMAR,
        ),
        ("r.io/" + "a" * 256, f"image reference 'r.io/{'a' * 256}': the repository has 256 characters, more than 255"),
    ],
)
def test_refuses_in_plain_words(text: str, message: str) -> None:
    with pytest.raises(PycontainError) as caught:
        parse(text)
    assert caught.value.message == message


def test_the_hint_for_upper_case_can_be_pasted() -> None:
    with pytest.raises(PycontainError) as caught:
        parse("ghcr.io/Owner/App:1")
    assert caught.value.hint == "use owner/app"


def test_a_reference_made_by_hand_is_checked_too() -> None:
    with pytest.raises(PycontainError, match="not a complete name"):
        Reference("docker.io", "alpine", "latest")
    with pytest.raises(PycontainError, match="must be lower case"):
        Reference("docker.io", "library/Alpine", "latest")


def test_derived_references() -> None:
    reference = parse("alpine:3.20")
    assert str(reference.with_tag("edge")) == "docker.io/library/alpine:edge"
    assert str(reference.with_digest(DIGEST)) == "docker.io/library/alpine@" + DIGEST


label = st.from_regex(r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,8}[a-zA-Z0-9])?", fullmatch=True)
registries = st.one_of(
    st.just("docker.io"),
    st.just("localhost"),
    st.builds(
        lambda parts, port: ".".join(parts) + port,
        st.lists(label, min_size=2, max_size=3),
        st.sampled_from(["", ":1", ":65535"]),
    ),
    st.just("[::1]:443"),
)
component = st.from_regex(r"[a-z0-9]{1,6}((\.|_|__|-{1,3})[a-z0-9]{1,6}){0,2}", fullmatch=True)
tags = st.one_of(st.none(), st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,12}", fullmatch=True))
digests = st.one_of(st.none(), st.from_regex(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", fullmatch=True))


@given(registries, st.lists(component, min_size=1, max_size=4), tags, digests)
def test_every_reference_survives_both_of_its_texts(
    registry: str, parts: list[str], tag: str | None, digest: str | None
) -> None:
    text = f"{registry}/{'/'.join(parts)}" + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")
    reference = parse(text)
    assert reference.repository.endswith("/".join(parts))
    assert reference.tag == (tag or (None if digest else "latest"))
    assert reference.digest == digest
    assert parse(str(reference)) == reference
    assert parse(reference.familiar()) == reference
    assert str(parse(str(reference))) == str(reference)


@given(st.text(max_size=40))
def test_any_text_is_a_reference_or_a_one_line_error(text: str) -> None:
    try:
        reference = parse(text)
    except PycontainError as error:
        assert "\n" not in error.message
    else:
        assert parse(str(reference)) == reference
