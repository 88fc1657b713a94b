"""Images in and out of files, with skopeo and umoci as witnesses on the other side."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import zstandard

from pycontain.images import layout
from pycontain.images import manifest as m
from pycontain.images.descriptor import Descriptor, digest_of
from pycontain.images.layout import import_tar, load, save
from pycontain.images.reference import Reference, parse
from pycontain.images.rootfs import ensure_layers
from pycontain.images.store import Store
from pycontain.runtime.errors import Conflict, NotFound, PycontainError, Unsupported
from tests.images_tools import directory, file, image, layer, symlink

NAME = "docker.io/library/test:1"
LAYERS = (
    layer([directory("etc"), file("etc/a", b"one"), symlink("l", "etc/a")]),
    layer([file("etc/b", b"two"), file("etc/.wh.a")]),
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "images"))


@pytest.fixture
def other(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "other"))


def fill(store: Store, name: str = NAME, *layers: bytes) -> Descriptor:
    found = image(store, *(layers or LAYERS), config={"Cmd": ["/bin/sh"], "Labels": {"k": "v"}})
    store.set_ref(name, found)
    return found


def config_digest(store: Store, name: str = NAME) -> str:
    return m.select(store, store.get_ref(name)).config.digest


def skopeo(*arguments: str) -> str:
    return subprocess.run(
        ["skopeo", "--insecure-policy", *arguments], check=True, capture_output=True, text=True, timeout=60
    ).stdout


def names(references: list[Reference]) -> list[str]:
    return [str(reference) for reference in references]


@pytest.mark.parametrize("format", ["docker-archive", "oci-archive", "oci-layout"])
def test_what_is_saved_is_loaded_again(store: Store, other: Store, tmp_path: Path, format: str) -> None:
    descriptor = fill(store)
    fill(store, "ghcr.io/o/r:2")
    target = str(tmp_path / "out")
    save(store, [parse("test:1"), parse("ghcr.io/o/r:2")], target, format)
    assert sorted(names(load(other, target))) == sorted([NAME, "ghcr.io/o/r:2"])
    assert config_digest(other) == config_digest(store)
    if format != "docker-archive":
        assert other.get_ref(NAME).digest == descriptor.digest
        # And the other way round the same bytes.
        save(other, [parse("test:1"), parse("ghcr.io/o/r:2")], str(tmp_path / "again"), format)
        if format == "oci-archive":
            assert (tmp_path / "again").read_bytes() == Path(target).read_bytes()
    assert os.listdir(os.path.join(other.root, "ingest")) == []


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_a_compressed_archive_and_a_stream_are_loaded(store: Store, other: Store, compress: Any) -> None:
    fill(store)
    for format in ("docker-archive", "oci-archive"):
        out = io.BytesIO()
        save(store, [parse("test:1")], out, format)
        assert names(load(other, io.BytesIO(compress(out.getvalue())))) == [NAME]
        other.remove_ref(NAME)


@pytest.mark.needs("skopeo")
@pytest.mark.parametrize("transport", ["docker-archive", "oci-archive", "oci"])
def test_skopeo_reads_what_is_saved(store: Store, tmp_path: Path, transport: str) -> None:
    descriptor = fill(store)
    target = str(tmp_path / "out")
    save(store, [parse("test:1")], target, "oci-layout" if transport == "oci" else transport)
    found = json.loads(skopeo("inspect", f"{transport}:{target}"))
    assert (found["Os"], found["Labels"]) == ("linux", {"k": "v"})
    assert len(found["Layers"]) == 2
    assert json.loads(skopeo("inspect", "--config", f"{transport}:{target}"))["config"]["Cmd"] == ["/bin/sh"]
    if transport == "docker-archive":
        assert skopeo("inspect", "--format", "{{.RepoTags}}", f"docker-archive:{target}:docker.io/library/test:1")
    else:
        assert found["Digest"] == descriptor.digest


@pytest.mark.needs("skopeo")
@pytest.mark.parametrize("transport", ["docker-archive", "oci-archive", "oci"])
@pytest.mark.parametrize("source", ["oci", "docker-archive"])
def test_what_skopeo_writes_is_loaded(store: Store, other: Store, tmp_path: Path, transport: str, source: str) -> None:
    fill(store)
    first = str(tmp_path / "first")
    save(store, [parse("test:1")], first, "oci-layout" if source == "oci" else source)
    target = str(tmp_path / "out.tar")
    skopeo("copy", f"{source}:{first}", f"{transport}:{target}:example.org/x/y:z")
    assert names(load(other, target)) == ["example.org/x/y:z"]
    # skopeo spells a configuration of docker's anew; the layers' content is what must be the same
    manifest = m.select(other, other.get_ref("example.org/x/y:z"))
    assert m.image_config(other, manifest).diff_ids == tuple(map(digest_of, LAYERS))


@pytest.mark.needs("skopeo", "root")
def test_a_docker_image_becomes_an_oci_image(store: Store, other: Store, tmp_path: Path) -> None:
    """docker's media types come in with an archive of its; an OCI layout goes out with the OCI's."""
    fill(store)
    save(store, [parse("test:1")], str(tmp_path / "d.tar"), "docker-archive")
    load(other, str(tmp_path / "d.tar"))
    assert other.get_ref(NAME).media_type == m.DOCKER_MANIFEST
    save(other, [parse("test:1")], str(tmp_path / "o.tar"), "oci-archive")
    found = json.loads(skopeo("inspect", "--raw", f"oci-archive:{tmp_path / 'o.tar'}"))
    assert found["mediaType"] == m.OCI_MANIFEST
    assert [item["mediaType"] for item in found["layers"]] == [m.OCI_LAYER] * 2
    assert load(store, str(tmp_path / "o.tar"))


@pytest.mark.needs("umoci", "root")
def test_umoci_unpacks_what_is_saved_and_the_other_way_round(store: Store, other: Store, tmp_path: Path) -> None:
    fill(store)
    target = tmp_path / "layout"
    save(store, [parse("test:1")], str(target), "oci-layout")
    bundle = tmp_path / "bundle"
    subprocess.run(["umoci", "unpack", "--image", f"{target}:1", str(bundle)], check=True, capture_output=True)
    assert sorted(os.listdir(bundle / "rootfs" / "etc")) == ["b"]
    (bundle / "rootfs" / "new").write_text("new")
    (bundle / "rootfs" / "etc" / "b").unlink()
    subprocess.run(["umoci", "repack", "--image", f"{target}:next", str(bundle)], check=True, capture_output=True)
    assert names(load(other, str(target))) == [NAME, "docker.io/library/test:next"]
    top, _, _ = ensure_layers(other, m.select(other, other.get_ref("docker.io/library/test:next")))
    assert Path(top, "new").read_text() == "new"
    assert os.stat(os.path.join(top, "etc", "b")).st_rdev == 0


@pytest.mark.needs("assets", "skopeo", "root")
def test_alpine_is_imported_saved_and_read(store: Store, tmp_path: Path) -> None:
    source = os.path.join(os.environ["PYCONTAIN_TEST_ASSETS"], "images", "alpine-minirootfs-3.20.3-x86_64.tar.gz")
    descriptor = import_tar(store, source, parse("alpine:3.20"), config={"Cmd": ["/bin/sh"]})
    assert store.get_ref("docker.io/library/alpine:3.20") == descriptor
    manifest = m.select(store, descriptor)
    assert manifest.layers[0].digest == digest_of(Path(source).read_bytes())
    assert manifest.layers[0].media_type == m.OCI_LAYER + "+gzip"
    (lower,) = ensure_layers(store, manifest)
    assert "Alpine Linux v3.20" in Path(lower, "etc/os-release").read_text()
    save(store, [parse("alpine:3.20")], str(tmp_path / "a.tar"))
    skopeo("copy", f"docker-archive:{tmp_path / 'a.tar'}", f"dir:{tmp_path / 'dir'}")


def test_importing_the_same_gives_the_same(store: Store, other: Store) -> None:
    found = [
        import_tar(each, io.BytesIO(LAYERS[0]), parse("x"), created="2020-01-01T00:00:00Z") for each in (store, other)
    ]
    assert found[0] == found[1]
    zipped = import_tar(store, io.BytesIO(zstandard.compress(LAYERS[0])), parse("y"))
    assert m.select(store, zipped).layers[0].media_type == m.OCI_LAYER + "+zstd"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (LAYERS[0][:-1024], "the tar archive is truncated: its end marker is missing"),
        (LAYERS[0][:1000], "the tar archive is truncated"),
        (gzip.compress(LAYERS[0])[:-9], "the gzip stream is damaged: "),
        (b"", "the tar archive is truncated: its end marker is missing"),
    ],
)
def test_a_broken_root_file_system_is_not_imported(store: Store, data: bytes, message: str) -> None:
    with pytest.raises(PycontainError) as caught:
        import_tar(store, io.BytesIO(data), parse("x"))
    assert caught.value.message.startswith(message)
    assert store.refs() == {}
    store.gc([])
    assert os.listdir(os.path.join(store.root, "blobs", "sha256")) == []


def test_an_old_docker_archive_with_links(store: Store) -> None:
    """docker before 25: directories by layer, a shared layer as a symbolic link, configurations beside them."""
    config = json.dumps(
        {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [digest_of(LAYERS[0])] * 2}}
    ).encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:

        def add(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))

        link = tarfile.TarInfo("two/layer.tar")
        link.type, link.linkname = tarfile.SYMTYPE, "../one/layer.tar"
        made.addfile(link)
        add("one/VERSION", b"1.0")
        add("one/json", b"{}")
        add("one/layer.tar", LAYERS[0])
        add("c.json", config)
        images = [{"Config": "c.json", "RepoTags": ["old:1", "old:2"], "Layers": ["one/layer.tar", "two/layer.tar"]}]
        add("manifest.json", json.dumps(images).encode())
        add("repositories", b"{}")
    assert names(load(store, io.BytesIO(out.getvalue()))) == ["docker.io/library/old:1", "docker.io/library/old:2"]
    manifest = m.select(store, store.get_ref("docker.io/library/old:1"))
    assert manifest.config.digest == digest_of(config)
    assert [item.digest for item in manifest.layers] == [digest_of(LAYERS[0])] * 2


def archive(**files: Any) -> bytes:
    return layer(
        [
            file(
                name.replace("__", "/").replace("_json", ".json"),
                value if isinstance(value, bytes) else json.dumps(value).encode(),
            )
            for name, value in files.items()
        ]
    )


GOOD = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [digest_of(b"x")]}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            archive(a=b"x"),
            "the archive is neither an OCI layout (index.json) nor a docker archive (manifest.json)",
        ),
        (archive(manifest_json=b"{"), "manifest.json is not JSON: expecting property name"),
        (archive(manifest_json={}), "manifest.json: $: must be an array, found an object"),
        (archive(manifest_json=[]), "the docker archive has no images"),
        (archive(manifest_json=[1]), "manifest.json: $[0]: must be an object, found a number"),
        (archive(manifest_json=[{}]), "manifest.json: $[0].Config: must be a string, found null"),
        (
            archive(manifest_json=[{"Config": "c.json", "Layers": [1]}]),
            "manifest.json: $[0].Layers: must be an array of",
        ),
        (
            archive(manifest_json=[{"Config": "c.json", "Layers": ["../../etc/passwd"]}]),
            "the archive lacks '../../etc/passwd', which its manifest.json names",
        ),
        (
            archive(manifest_json=[{"Config": "../x", "Layers": []}]),
            "the archive lacks '../x', which its manifest.json names",
        ),
        (
            archive(c_json=GOOD, l=b"y", manifest_json=[{"Config": "c.json", "Layers": ["l"]}]),
            f"manifest.json: $[0]: layer {digest_of(b'y')}: the image's config names {digest_of(b'x')}",
        ),
        (archive(blobs__sha256__00=b"x", manifest_json=[]), "'sha256:00' is not a digest"),
        (
            layer([file("blobs/sha256/" + "0" * 64, b"x")]),
            "blob sha256:" + "0" * 64 + ": the content received has digest " + digest_of(b"x"),
        ),
        (archive(**{"oci-layout": {}, "index_json": {}}), "the OCI layout has version None"),
        (
            archive(
                **{"oci-layout": {"imageLayoutVersion": "1.0.0"}, "index_json": {"schemaVersion": 2, "manifests": []}}
            ),
            "the OCI layout has no images",
        ),
        (
            archive(
                **{
                    "oci-layout": {"imageLayoutVersion": "1.0.0"},
                    "index_json": {
                        "schemaVersion": 2,
                        "manifests": [{"mediaType": m.OCI_MANIFEST, "digest": "sha256:" + "0" * 64, "size": 1}],
                    },
                }
            ),
            "the archive lacks blob sha256:" + "0" * 64,
        ),
        (layer([file("x.json", bytes((4 << 20) + 1))]), "entry 'x.json': larger than 4194304 bytes"),
    ],
)
def test_a_malformed_archive_names_nothing(store: Store, data: bytes, message: str) -> None:
    with pytest.raises(PycontainError) as caught:
        load(store, io.BytesIO(data))
    assert caught.value.message.startswith(message)
    assert store.refs() == {}
    store.gc([])
    assert os.listdir(os.path.join(store.root, "blobs", "sha256")) == []
    assert os.listdir(os.path.join(store.root, "ingest")) == []


def test_a_layout_with_a_link_to_a_file_of_the_host(store: Store, other: Store, tmp_path: Path) -> None:
    fill(store)
    target = tmp_path / "layout"
    save(store, [parse("test:1")], str(target), "oci-layout")
    blob = target / "blobs" / "sha256" / store.get_ref(NAME).digest[7:]
    outside = tmp_path / "outside"
    blob.rename(outside)
    blob.symlink_to(outside)
    with pytest.raises(PycontainError, match=r"ELOOP"):
        load(other, str(target))
    blob.unlink()
    with pytest.raises(NotFound, match=f"lacks blob {store.get_ref(NAME).digest}"):
        load(other, str(target))
    assert other.refs() == {}


def test_an_index_is_loaded_with_the_platforms_that_are_there(store: Store, other: Store, tmp_path: Path) -> None:
    here = fill(store)
    absent = Descriptor(m.OCI_MANIFEST, "sha256:" + "0" * 64, 5, {"os": "linux", "architecture": "s390x"})
    entry = Descriptor(
        here.media_type, here.digest, here.size, {"os": "linux", "architecture": m.Platform.host().architecture}
    )
    index = {"schemaVersion": 2, "manifests": [absent.to_json(), entry.to_json()]}
    top = store.put(json.dumps(index).encode(), media_type=m.OCI_INDEX)
    target = tmp_path / "l"
    save(store, [parse("test:1")], str(target), "oci-layout")
    (target / "blobs" / "sha256" / top.digest[7:]).write_bytes(json.dumps(index).encode())
    (target / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top.to_json()]}))
    assert names(load(other, str(target))) == ["localhost/l:latest"]
    assert m.select(other, other.get_ref("localhost/l:latest")).descriptor.digest == here.digest


def test_refusals_of_save(store: Store, tmp_path: Path) -> None:
    fill(store)
    one = [parse("test:1")]
    with pytest.raises(Unsupported, match=r"^format 'zip' is none of docker-archive, oci-archive, oci-layout$"):
        save(store, one, str(tmp_path / "x"), "zip")
    with pytest.raises(PycontainError, match=r"^there is no image to save$"):
        save(store, [], str(tmp_path / "x"))
    with pytest.raises(NotFound, match=r"^image docker\.io/library/none:latest is not in the store$"):
        save(store, [parse("none")], str(tmp_path / "x"))
    with pytest.raises(Unsupported, match="cannot be written to a stream"):
        save(store, one, io.BytesIO(), "oci-layout")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "f").touch()
    with pytest.raises(Conflict, match=r"full exists already$"):
        save(store, one, str(tmp_path / "full"), "oci-layout")
    with pytest.raises(PycontainError, match=r"^save to /nowhere/x: ENOENT \(no such file or directory\)$"):
        save(store, one, "/nowhere/x")
    assert sorted(os.listdir(tmp_path)) == ["full", "images"]


def test_the_public_names_are_in_one_module() -> None:
    assert {"load", "save", "import_tar"} <= set(layout.__all__)
