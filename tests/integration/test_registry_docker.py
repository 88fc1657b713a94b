"""Against Debian's docker-registry with TLS and a password, filled by skopeo: what arrives, and what fails how."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pycontain.images.manifest import Platform, image_config
from pycontain.images.progress import Silent
from pycontain.images.pull import pull
from pycontain.images.reference import parse
from pycontain.images.registry import Pace, RegistryUnreachable, login
from pycontain.images.settings import RegistrySettings, Settings, load
from pycontain.images.store import Store
from pycontain.runtime.errors import NotFound, PycontainError
from tests import registry_fixture as fixture
from tests.registry_fixture import Image, Registry, sha256

pytestmark = pytest.mark.needs("docker_registry", "skopeo", "openssl", "htpasswd")
USER = ("bob", "open sesame")
AMD64 = Platform("linux", "amd64")
FAST = Pace(base=0.001, cap=0.002, longest=1)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> fixture.Authority:
    return fixture.make_authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def certificate(authority: fixture.Authority) -> tuple[str, str]:
    return authority.certificate()


@pytest.fixture
def registry(tmp_path: Path, certificate: tuple[str, str]) -> Iterator[Registry]:
    with fixture.docker_registry(tmp_path / "registry", tls=certificate, user=USER) as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def settings(tmp_path: Path, registry: Registry, authority: fixture.Authority) -> Settings:
    """As a user has them: a file with the CA, and a home without credentials."""
    path = tmp_path / "config.toml"
    path.write_text(f'[registry."{registry.host}"]\nca = "{authority.ca}"\n[pull]\nattempts = 2\n')
    return load({"PYCONTAIN_CONFIG": str(path), "HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"]})


@pytest.fixture
def logged_in(registry: Registry, settings: Settings) -> Settings:
    login(registry.host, *USER, settings=settings)
    return settings


def alpine() -> Image:
    """The root filesystem of Alpine 3.20.3 as an image of one layer."""
    path = Path(os.environ["PYCONTAIN_TEST_ASSETS"]) / "images/alpine-minirootfs-3.20.3-x86_64.tar.gz"
    layer = path.read_bytes()
    return fixture.make_image(gzip.decompress(layer), compressed=[layer])


def skopeo(authority: fixture.Authority, *arguments: str) -> str:
    command = ["skopeo", "--insecure-policy", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def push(
    registry: Registry, authority: fixture.Authority, folder: Path, image: Image, name: str, *options: str
) -> None:
    fixture.write_layout(folder, image, "it")
    access = ["--dest-creds", ":".join(USER), "--dest-cert-dir", str(authority.trust)]
    skopeo(authority, "copy", "-q", *options, *access, f"oci:{folder}:it", f"docker://{registry.host}/{name}")


def inspect(registry: Registry, authority: fixture.Authority, name: str) -> dict[str, Any]:
    access = ["--creds", ":".join(USER), "--cert-dir", str(authority.trust)]
    found: dict[str, Any] = json.loads(skopeo(authority, "inspect", *access, f"docker://{registry.host}/{name}"))
    return found


def get(store: Store, registry: Registry, settings: Settings, name: str = "team/it:1", progress: Any = None) -> Any:
    reference = parse(f"{registry.host}/{name}")
    return pull(store, reference, platform=AMD64, settings=settings, progress=progress, pace=FAST)


def failure(store: Store, registry: Registry, settings: Settings, name: str = "team/it:1") -> PycontainError:
    with pytest.raises(PycontainError) as caught:
        get(store, registry, settings, name)
    assert store.refs() == {}
    assert "\n" not in str(caught.value)
    caught.value.args = (str(caught.value).removeprefix(f"pull {registry.host}/{name}: "),)
    return caught.value


@pytest.mark.parametrize("form", ["oci", "v2s2"])
@pytest.mark.parametrize("which", ["tiny", pytest.param("alpine", marks=pytest.mark.needs("assets"))])
def test_what_arrives_is_what_skopeo_sees(
    registry: Registry,
    authority: fixture.Authority,
    logged_in: Settings,
    store: Store,
    tmp_path: Path,
    which: str,
    form: str,
) -> None:
    image = alpine() if which == "alpine" else fixture.tiny_image(layers=4)
    push(registry, authority, tmp_path / "layout", image, "team/it:3.20", "--format", form)
    manifest = get(store, registry, logged_in, "team/it:3.20")
    seen = inspect(registry, authority, "team/it:3.20")
    assert store.get_ref(f"{registry.host}/team/it:3.20").digest == seen["Digest"] == manifest.descriptor.digest
    assert [layer.digest for layer in manifest.layers] == seen["Layers"]
    for digest in (manifest.descriptor.digest, manifest.config.digest, *seen["Layers"]):
        with open(store.path(digest), "rb") as file:
            assert f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == digest
    layers = [store.path(layer.digest) for layer in manifest.layers]
    diff_ids = [sha256(gzip.decompress(Path(path).read_bytes())) for path in layers]
    assert list(image_config(store, manifest).diff_ids) == diff_ids
    assert fixture.partial(store.root) == {}


def test_an_index_made_by_skopeo(
    registry: Registry, authority: fixture.Authority, logged_in: Settings, store: Store, tmp_path: Path
) -> None:
    images = {
        name: fixture.make_image(fixture.layer_of({"arch": name.encode()}), architecture=name)
        for name in ("amd64", "arm64")
    }
    folder = tmp_path / "layout"
    fixture.write_layout(folder, images["amd64"], "it")
    entries = []
    for name, image in images.items():
        for data in (image.manifest, image.config, *image.layers):
            (folder / "blobs/sha256" / sha256(data)[7:]).write_bytes(data)
        platform = {"os": "linux", "architecture": name}
        entries.append(fixture.descriptor(fixture.OCI_MANIFEST, image.manifest, platform=platform))
    index = json.dumps({"schemaVersion": 2, "mediaType": fixture.OCI_INDEX, "manifests": entries}).encode()
    (folder / "blobs/sha256" / sha256(index)[7:]).write_bytes(index)
    entry = fixture.descriptor(fixture.OCI_INDEX, index, annotations={"org.opencontainers.image.ref.name": "it"})
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    access = ["--dest-creds", ":".join(USER), "--dest-cert-dir", str(authority.trust)]
    target = f"docker://{registry.host}/team/it:1"
    skopeo(authority, "copy", "-q", "--all", *access, f"oci:{folder}:it", target)

    manifest = get(store, registry, logged_in)
    assert manifest.descriptor.digest == images["amd64"].digest
    assert store.get_ref(f"{registry.host}/team/it:1").digest == sha256(index)
    assert not store.has(images["arm64"].digest)


@pytest.fixture
def pushed(registry: Registry, authority: fixture.Authority, tmp_path: Path) -> Image:
    image = fixture.tiny_image(layers=2)
    push(registry, authority, tmp_path / "layout", image, "team/it:1")
    return image


def test_a_password_of_docker_login_is_found(
    registry: Registry, pushed: Image, settings: Settings, store: Store, tmp_path: Path
) -> None:
    """skopeo writes the file that docker and podman write."""
    folder = tmp_path / "home/.docker"
    folder.mkdir(parents=True)
    command = ["skopeo", "login", "--tls-verify=false", "--authfile", str(folder / "config.json"), "-u", USER[0]]
    command += ["--password-stdin", registry.host]
    subprocess.run(command, input=USER[1].encode(), check=True, capture_output=True, timeout=30)
    assert get(store, registry, settings).descriptor.digest == pushed.digest


def test_our_login_is_found_by_skopeo(
    registry: Registry, authority: fixture.Authority, pushed: Image, logged_in: Settings, tmp_path: Path
) -> None:
    path = tmp_path / "home/.docker/config.json"
    access = ["--authfile", str(path), "--cert-dir", str(authority.trust)]
    seen = json.loads(skopeo(authority, "inspect", *access, f"docker://{registry.host}/team/it:1"))
    assert seen["Digest"] == pushed.digest


def test_a_wrong_password(registry: Registry, pushed: Image, settings: Settings, store: Store) -> None:
    with pytest.raises(PycontainError) as caught:
        login(registry.host, "bob", "wrong", settings=settings)
    assert str(caught.value) == (
        f"log in to {registry.host}: {registry.host} refuses the password of user 'bob' (401 unauthorized)"
    )
    error = failure(store, registry, settings)
    assert str(error) == f"{registry.host} wants a login for team/it (401 unauthorized)"
    assert error.hint == f"pycontain login {registry.host}"
    assert fixture.store_is_clean(store.root)


def test_an_unknown_ca(registry: Registry, pushed: Image, store: Store, tmp_path: Path) -> None:
    error = failure(store, registry, Settings(environ={"HOME": str(tmp_path)}))
    assert isinstance(error, RegistryUnreachable)
    assert error.reason == "tls"
    assert str(error) == (
        f"{registry.host}: its certificate is from an unknown authority (unable to get local issuer certificate)"
    )
    assert fixture.store_is_clean(store.root)


def test_no_such_image(registry: Registry, pushed: Image, logged_in: Settings, store: Store) -> None:
    error = failure(store, registry, logged_in, "team/it:2")
    assert isinstance(error, NotFound)
    assert str(error) == f"{registry.host} has no team/it:2 (404 not found: manifest unknown)"
    assert fixture.store_is_clean(store.root)


def test_a_truncated_blob(registry: Registry, pushed: Image, logged_in: Settings, store: Store) -> None:
    digest = sha256(pushed.layers[0])
    os.truncate(registry.blob(digest), 1000)
    error = failure(store, registry, logged_in)
    assert str(error) == (
        f"{registry.host} announces 1000 bytes for blob {digest}, its descriptor names {len(pushed.layers[0])}"
    )
    assert digest not in fixture.visible(store.root)
    assert digest not in fixture.partial(store.root)


def test_a_wrong_digest(registry: Registry, pushed: Image, logged_in: Settings, store: Store) -> None:
    digest, size = sha256(pushed.layers[1]), len(pushed.layers[1])
    registry.blob(digest).write_bytes(bytes(size))
    error = failure(store, registry, logged_in)
    assert str(error) == f"blob {digest}: the content received has digest {sha256(bytes(size))}"
    assert digest not in fixture.visible(store.root)
    assert digest not in fixture.partial(store.root)


def test_a_registry_that_dies_half_way(
    registry: Registry,
    authority: fixture.Authority,
    certificate: tuple[str, str],
    logged_in: Settings,
    store: Store,
    tmp_path: Path,
) -> None:
    image = fixture.tiny_image(size=24 << 20, layers=1)
    push(registry, authority, tmp_path / "layout", image, "team/it:1")
    digest = sha256(image.layers[0])

    class Kill(Silent):
        def position(self, found: str, count: int) -> None:
            if found == digest and registry.process.poll() is None:
                registry.process.kill()
                registry.process.wait()

    with pytest.raises(RegistryUnreachable) as caught:
        get(store, registry, logged_in, progress=Kill())
    assert str(caught.value) == (
        f"pull {registry.host}/team/it:1: connect to {registry.host}: ECONNREFUSED (connection refused), tried 2 times"
    )
    assert store.refs() == {}
    assert digest not in fixture.visible(store.root)
    left = fixture.partial(store.root)
    assert list(left) == [digest]
    assert 0 < left[digest] < len(image.layers[0])

    process = fixture.spawn_registry(registry.folder, registry.port, certificate, USER)
    try:
        assert fixture.answers(process, registry.port)
        seen: list[int] = []

        class Watch(Silent):
            def position(self, found: str, count: int) -> None:
                seen.append(count)

        assert get(store, registry, logged_in, progress=Watch()).descriptor.digest == image.digest
        assert seen[0] > left[digest]  # it went on, and did not start again
    finally:
        process.kill()
        process.wait()


def test_plain_http_on_loopback_without_a_password(tmp_path: Path, store: Store) -> None:
    """What `docker-registry` is without any configuration; and as a mirror of the hub."""
    image = fixture.tiny_image()
    fixture.write_layout(tmp_path / "layout", image, "it")
    with fixture.docker_registry(tmp_path / "plain") as plain:
        source, target = f"oci:{tmp_path}/layout:it", f"docker://{plain.host}/library/alpine:latest"
        subprocess.run(
            ["skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false", source, target],
            check=True,
            capture_output=True,
            timeout=30,
        )
        started = time.monotonic()
        assert get(store, plain, Settings(), "library/alpine:latest").descriptor.digest == image.digest
        mirrored = Settings({"docker.io": RegistrySettings(mirrors=(f"http://{plain.host}",))})
        dialer = fixture.NoHub()
        manifest = pull(store, parse("alpine"), platform=AMD64, settings=mirrored, pace=FAST, dialer=dialer)
        assert manifest.descriptor.digest == image.digest
        assert time.monotonic() - started < 10
