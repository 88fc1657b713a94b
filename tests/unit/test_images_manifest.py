"""Indexes, manifests and configurations: the right one is chosen, and hostile ones are refused by JSON path."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pycontain.images import manifest as m
from pycontain.images.descriptor import Descriptor, digest_of
from pycontain.images.manifest import Platform
from pycontain.images.store import Store
from pycontain.runtime.errors import NotFound, PycontainError, Unsupported

DIGEST = "sha256:" + "0" * 64
DIGESTS = "(sha256: and 64, or sha512: and 128 lower case hexadecimal digits)"
GZIP = m.OCI_LAYER + "+gzip"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "images"))


def descriptor(media_type: str = GZIP, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": DIGEST, "size": 3, **more}


def manifest(**more: Any) -> dict[str, Any]:
    return {"schemaVersion": 2, "config": descriptor(m.OCI_CONFIG), "layers": [descriptor()], **more}


def put(store: Store, value: object, media_type: str) -> Descriptor:
    return store.put(json.dumps(value).encode(), media_type=media_type)


def index_entry(found: Descriptor, **platform: str) -> dict[str, Any]:
    return found.to_json() | ({"platform": platform} if platform else {})


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("linux/amd64", "linux/amd64"),
        ("arm64", "linux/arm64"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm/v6", "linux/arm/v6"),
        ("Linux/X86_64", "linux/amd64"),
    ],
)
def test_platforms_are_read(text: str, shown: str) -> None:
    assert str(Platform.parse(text)) == shown


@pytest.mark.parametrize("text", ["", "a/b/c/d", "linux/", "linux/a b"])
def test_a_bad_platform_is_refused(text: str) -> None:
    with pytest.raises(PycontainError) as caught:
        Platform.parse(text)
    assert caught.value.message == f"platform {text!r} is not os/architecture[/variant]"


@pytest.mark.parametrize(
    ("host", "image", "rank"),
    [
        ("linux/amd64", "linux/amd64", 0),
        ("linux/amd64", "linux/amd64/v1", 0),
        ("linux/amd64", "linux/amd64/v3", None),
        ("linux/amd64", "linux/arm64", None),
        ("linux/arm64", "linux/arm64/v8", 0),
        ("linux/arm/v7", "linux/arm", 0),
        ("linux/arm/v7", "linux/arm/v5", 2),
        ("linux/arm/v6", "linux/arm/v7", None),
        ("linux/amd64", "windows/amd64", None),
    ],
)
def test_what_runs_where(host: str, image: str, rank: int | None) -> None:
    assert Platform.parse(host).rank(Platform.parse(image)) == rank


def test_select_takes_a_manifest_as_it_is(store: Store) -> None:
    for media_type in (m.OCI_MANIFEST, m.DOCKER_MANIFEST):
        found = m.select(store, put(store, manifest(mediaType=media_type), media_type))
        assert found.config.digest == DIGEST
        assert [layer.media_type for layer in found.layers] == [GZIP]


def test_select_finds_the_best_platform_in_an_index(store: Store) -> None:
    entries = {
        name: put(store, manifest(annotations={"name": name}), m.OCI_MANIFEST) for name in ("v5", "v6", "amd", "note")
    }
    index = {
        "schemaVersion": 2,
        "manifests": [
            index_entry(entries["note"], os="unknown", architecture="unknown"),
            index_entry(entries["v5"], os="linux", architecture="arm", variant="v5"),
            index_entry(entries["v6"], os="linux", architecture="arm", variant="v6"),
            index_entry(entries["amd"], os="linux", architecture="amd64"),
        ],
    }
    for media_type in (m.OCI_INDEX, m.DOCKER_INDEX):
        top = put(store, index, media_type)
        assert m.select(store, top, Platform.parse("linux/arm/v7")).descriptor.digest == entries["v6"].digest
        assert m.select(store, top, Platform.parse("linux/amd64")).descriptor.digest == entries["amd"].digest
        with pytest.raises(NotFound) as caught:
            m.select(store, top, Platform.parse("linux/s390x"))
        assert caught.value.message == (
            f"image index {top.digest} has nothing for linux/s390x; it has linux/arm/v5, linux/arm/v6, linux/amd64"
        )


def test_a_lone_entry_needs_no_platform(store: Store) -> None:
    only = put(store, manifest(), m.OCI_MANIFEST)
    top = put(store, {"schemaVersion": 2, "manifests": [only.to_json()]}, m.OCI_INDEX)
    assert m.select(store, top).descriptor == only


def test_fetch_is_asked_for_what_is_missing(store: Store) -> None:
    body = json.dumps(manifest()).encode()
    wanted = Descriptor(m.OCI_MANIFEST, digest_of(body), len(body))
    top = put(store, {"schemaVersion": 2, "manifests": [wanted.to_json()]}, m.OCI_INDEX)
    asked = []

    def fetch(missing: Descriptor) -> None:
        asked.append(missing)
        store.put(body, media_type=missing.media_type)

    with pytest.raises(NotFound, match=re.escape(wanted.digest)):
        m.select(store, top)
    m.select(store, top, fetch=fetch)
    m.select(store, top, fetch=fetch)
    assert asked == [wanted]


def test_an_index_nests_once_and_no_deeper(store: Store) -> None:
    found = put(store, manifest(), m.OCI_MANIFEST)
    for _ in range(2):
        found = put(store, {"schemaVersion": 2, "manifests": [found.to_json()]}, m.OCI_INDEX)
    assert m.select(store, found).layers
    third = put(store, {"schemaVersion": 2, "manifests": [found.to_json()]}, m.OCI_INDEX)
    with pytest.raises(PycontainError, match="indexes are nested more than 2 deep"):
        m.select(store, third)


@pytest.mark.parametrize(
    ("media_type", "problem"),
    [
        ("application/vnd.docker.distribution.manifest.v1+prettyjws", "is of docker's schema 1"),
        ("text/html", "is of type 'text/html', not a container image"),
    ],
)
def test_what_is_no_image_is_refused_by_name(store: Store, media_type: str, problem: str) -> None:
    with pytest.raises(Unsupported, match=re.escape(problem)):
        m.select(store, put(store, {}, media_type))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("x", "$: is not JSON: expecting value: line 1 column 1 (char 0)"),
        ("[" * 100_000, "$: is nested too deep"),
        ([], "$: must be an object, found an array"),
        ({}, "$.schemaVersion: must be 2, found None"),
        (manifest(schemaVersion=1), "$.schemaVersion: must be 2, found 1"),
        (manifest(mediaType=m.OCI_INDEX), f"$.mediaType: {m.OCI_INDEX!r}, but it was named as {m.OCI_MANIFEST!r}"),
        (manifest(manifests=[]), "$.manifests: does not belong into a manifest"),
        (manifest(config=None), "$.config: must be an object, found null"),
        (
            manifest(config=descriptor("application/x")),
            "$.config.mediaType: 'application/x' is not the configuration of a container image",
        ),
        (manifest(config=descriptor(m.OCI_CONFIG) | {"size": 5 << 20}), "$.config.size: 5242880 is more than 4194304"),
        (manifest(layers="x"), "$.layers: must be an array, found a string"),
        (manifest(layers=[descriptor()] * 128), "$.layers: has 128 entries, more than 127"),
        (manifest(layers=[descriptor(), {}]), "$.layers[1].mediaType: is missing"),
        (manifest(layers=[descriptor("a/b")]), "$.layers[0].mediaType: 'a/b' is not a file system layer"),
    ],
)
def test_a_bad_manifest_is_refused_by_path(value: object, problem: str) -> None:
    data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
    with pytest.raises(PycontainError) as caught:
        m.parse_manifest(data, Descriptor(m.OCI_MANIFEST, DIGEST, len(data)))
    assert caught.value.message == f"image manifest {DIGEST}: {problem}"


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"schemaVersion": 2}, "$.manifests: is missing"),
        ({"schemaVersion": 2, "manifests": [], "layers": []}, "$.layers: does not belong into an index"),
        ({"schemaVersion": 2, "manifests": [1]}, "$.manifests[0]: must be an object, found a number"),
    ],
)
def test_a_bad_index_is_refused_by_path(value: object, problem: str) -> None:
    with pytest.raises(PycontainError) as caught:
        m.parse_index(json.dumps(value).encode(), Descriptor(m.OCI_INDEX, DIGEST, 1))
    assert caught.value.message == f"image index {DIGEST}: {problem}"


def test_documents_are_bounded(store: Store) -> None:
    data = b" " * (m.MAX_DOCUMENT + 1)
    with pytest.raises(PycontainError, match=r"\$: has 4194305 bytes, more than 4194304$"):
        m.parse_manifest(data, Descriptor(m.OCI_MANIFEST, DIGEST, len(data)))
    with pytest.raises(PycontainError, match=r"is larger than 4194304 bytes$"):
        m.select(store, store.put(data, media_type=m.OCI_MANIFEST))


def config(**more: Any) -> dict[str, Any]:
    return {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [DIGEST]}, **more}


def test_a_configuration_is_read() -> None:
    value = config(
        created="2024-01-01T00:00:00Z",
        variant="v1",
        config={
            "User": "1000",
            "Env": ["A=b", "C="],
            "Entrypoint": ["/e"],
            "Cmd": None,
            "WorkingDir": "/w",
            "Volumes": {"/b": {}, "/a": {}},
            "ExposedPorts": {"80/tcp": {}},
            "Labels": {"k": "v"},
            "StopSignal": "SIGQUIT",
        },
    )
    found = m.parse_config(json.dumps(value).encode(), Descriptor(m.OCI_CONFIG, DIGEST, 1))
    assert found.platform == Platform("linux", "amd64", "v1")
    assert (found.user, found.env, found.entrypoint, found.cmd) == ("1000", ("A=b", "C="), ("/e",), ())
    assert (found.working_dir, found.volumes, found.exposed_ports) == ("/w", ("/a", "/b"), ("80/tcp",))
    assert (found.labels, found.stop_signal, found.raw) == ({"k": "v"}, "SIGQUIT", value)
    assert m.parse_config(json.dumps(config(config=None)).encode(), Descriptor(m.OCI_CONFIG, DIGEST, 1)).env == ()


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({}, "$.rootfs: is missing"),
        (config(rootfs={}), "$.rootfs.type: must be 'layers', found None"),
        (config(rootfs={"type": "layers", "diff_ids": [1]}), "$.rootfs.diff_ids[0]: must be a string, found a number"),
        (
            config(rootfs={"type": "layers", "diff_ids": ["x"]}),
            "$.rootfs.diff_ids[0]: 'x' is not a digest " + DIGESTS,
        ),
        (
            config(rootfs={"type": "layers", "diff_ids": [DIGEST] * 128}),
            "$.rootfs.diff_ids: has 128 entries, more than 127",
        ),
        (config(config=[]), "$.config: must be an object, found an array"),
        (config(config={"Env": ["A"]}), "$.config.Env[0]: 'A' is not NAME=value"),
        (config(config={"Env": ["=A"]}), "$.config.Env[0]: '=A' is not NAME=value"),
        (config(config={"Env": ["A=\0"]}), "$.config.Env[0]: has a NUL character"),
        (config(config={"Cmd": "x"}), "$.config.Cmd: must be an array, found a string"),
        (config(config={"Cmd": ["x"] * 10_001}), "$.config.Cmd: has 10001 entries, more than 10000"),
        (config(config={"User": 0}), "$.config.User: must be a string, found a number"),
        (config(config={"Labels": {"a": 1}}), "$.config.Labels.a: must be a string, found a number"),
        (config(config={"Volumes": ["/a"]}), "$.config.Volumes: must be an object, found an array"),
    ],
)
def test_a_bad_configuration_is_refused_by_path(value: object, problem: str) -> None:
    with pytest.raises(PycontainError) as caught:
        m.parse_config(json.dumps(value).encode(), Descriptor(m.OCI_CONFIG, DIGEST, 1))
    assert caught.value.message == f"image config {DIGEST}: {problem}"


def test_configuration_and_manifest_must_agree(store: Store) -> None:
    inner = put(store, config(), m.OCI_CONFIG)
    top = put(store, manifest(config=inner.to_json(), layers=[]), m.OCI_MANIFEST)
    with pytest.raises(PycontainError) as caught:
        m.image_config(store, m.select(store, top))
    assert caught.value.message == (
        f"image config {inner.digest}: $.rootfs.diff_ids: has 1 entries, the manifest has 0 layers"
    )


def test_a_platform_asked_for_by_name_is_held(store: Store) -> None:
    found = m.parse_config(json.dumps(config()).encode(), Descriptor(m.OCI_CONFIG, DIGEST, 1))
    m.check_platform(found, None, "x")
    m.check_platform(found, Platform.parse("linux/amd64"), "x")
    with pytest.raises(NotFound) as caught:
        m.check_platform(found, Platform.parse("linux/arm64"), "x")
    assert caught.value.message == "image x is for linux/amd64, wanted linux/arm64"
    windows = m.parse_config(json.dumps(config(os="windows")).encode(), Descriptor(m.OCI_CONFIG, DIGEST, 1))
    with pytest.raises(NotFound, match="image x is for windows/amd64, wanted linux/"):
        m.check_platform(windows, None, "x")
