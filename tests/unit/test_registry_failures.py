"""Every way in which a pull fails: one line that says it exactly, and a store that shows nothing of it."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from pycontain.images.manifest import Platform
from pycontain.images.pull import pull
from pycontain.images.reference import parse
from pycontain.images.registry import Pace, RegistryUnreachable
from pycontain.images.settings import RegistrySettings, Settings
from pycontain.images.store import Store
from pycontain.runtime.errors import NotFound, PycontainError, Unsupported
from tests import registry_fixture as fixture
from tests.registry_fixture import Answer, Hostile, Image, Network, head, sha256, tiny_image

FAST = Pace(base=0.001, cap=0.002, longest=1)
AMD64 = Platform("linux", "amd64")


@pytest.fixture(autouse=True)
def no_system_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the machine's own takes longer than most of these tests."""
    monkeypatch.setenv("SSL_CERT_FILE", "/dev/null")


@pytest.fixture
def server() -> Iterator[Hostile]:
    with Hostile() as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def image(server: Hostile) -> Image:
    return server.add(tiny_image(layers=1))


def failure(store: Store, name: str, **more: Any) -> PycontainError:
    """The error of a pull, without its ``pull <name>: ``; asserts that it is one line and leaves nothing visible."""
    settings = {"attempts": 2, "connect_timeout": 2, "read_timeout": 2, **more.pop("settings", {})}
    with pytest.raises(PycontainError) as caught:
        pull(store, parse(name), platform=AMD64, settings=Settings(**settings), pace=FAST, **more)
    prefix = f"pull {parse(name).familiar()}: "
    assert str(caught.value).startswith(prefix)
    assert "\n" not in str(caught.value)
    assert store.refs() == {}
    caught.value.args = (str(caught.value).removeprefix(prefix),)
    return caught.value


def unreachable(store: Store, name: str, reason: str, **more: Any) -> str:
    error = failure(store, name, **more)
    assert isinstance(error, RegistryUnreachable)
    assert error.reason == reason
    assert fixture.store_is_clean(store.root)
    return str(error)


# The network


class Resolver(Network):
    def __init__(self, failure: Callable[[], Any]) -> None:
        super().__init__()
        self.failure = failure
        self.asked = 0

    def resolve(self, host: str, port: int) -> list[tuple[int, Any]]:
        self.asked += 1
        found: list[tuple[int, Any]] = self.failure()
        return found


def raises(error: Exception) -> Callable[[], Any]:
    def fail() -> None:
        raise error

    return fail


def test_a_name_that_does_not_exist(store: Store) -> None:
    resolver = Resolver(raises(socket.gaierror(socket.EAI_NONAME, "Name or service not known")))
    said = unreachable(store, "registry.invalid/x:1", "name", dialer=resolver)
    assert said == "resolve registry.invalid: name or service not known"
    assert resolver.asked == 1  # it will not exist in a second either


def test_a_name_server_that_is_away(store: Store) -> None:
    resolver = Resolver(raises(socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")))
    said = unreachable(store, "registry.invalid/x:1", "name", dialer=resolver, settings={"attempts": 3})
    assert said == "resolve registry.invalid: temporary failure in name resolution"
    assert resolver.asked == 3


def test_the_real_resolver_knows_no_invalid_name(store: Store) -> None:
    started = time.monotonic()
    error = failure(store, "registry.invalid/x:1", settings={"connect_timeout": 1})
    assert isinstance(error, RegistryUnreachable)
    assert error.reason in ("name", "timeout")
    assert time.monotonic() - started < 4


def test_a_resolver_that_hangs(store: Store) -> None:
    gate = threading.Event()
    resolver = Resolver(lambda: gate.wait(20))
    said = unreachable(store, "registry.invalid/x:1", "timeout", dialer=resolver, settings={"connect_timeout": 0.2})
    gate.set()
    assert said == "resolve registry.invalid: no answer within 0.2 s"


def test_a_name_that_no_resolver_takes(store: Store) -> None:
    resolver = Resolver(raises(UnicodeError("label too long")))
    assert unreachable(store, f"{'x' * 70}.invalid/x:1", "name", dialer=resolver) == (
        f"resolve {'x' * 70}.invalid: not a name of a host"
    )


def test_nobody_listens(store: Store) -> None:
    port = fixture.free_port()
    said = unreachable(store, f"127.0.0.1:{port}/x:1", "refused")
    assert said == f"connect to 127.0.0.1:{port}: ECONNREFUSED (connection refused)"


def test_trying_again_does_not_outlast_the_limit(store: Store) -> None:
    """All tries to reach a registry are within connect_timeout, so that whoever has another plan gets on with it."""
    name = f"127.0.0.1:{fixture.free_port()}/x:1"
    started = time.monotonic()
    with pytest.raises(RegistryUnreachable):
        settings = Settings(attempts=20, connect_timeout=0.5)
        pull(store, parse(name), platform=AMD64, settings=settings, pace=Pace(base=0.2, cap=30))
    assert time.monotonic() - started < 1


def test_no_route(store: Store) -> None:
    class NoRoute(Network):
        def connect(self, family: int, address: Any, timeout: float) -> socket.socket:
            raise OSError(errno.ENETUNREACH, "Network is unreachable")

    said = unreachable(store, "198.51.100.1:5000/x:1", "route", dialer=NoRoute())
    assert said == "connect to 198.51.100.1:5000: ENETUNREACH (network is unreachable)"


def test_a_dead_address_leaves_time_for_the_next(server: Hostile, image: Image, store: Store) -> None:
    class Two(Network):
        def resolve(self, host: str, port: int) -> list[tuple[int, Any]]:
            return [(socket.AF_INET, ("198.51.100.9", port)), (socket.AF_INET, ("127.0.0.1", port))]

        def connect(self, family: int, address: Any, timeout: float) -> socket.socket:
            if address[0] == "198.51.100.9":
                assert timeout <= 1
                time.sleep(0.05)
                raise TimeoutError
            return super().connect(family, address, timeout)

    settings = Settings(connect_timeout=2)
    pull(store, parse(f"{server.host}/x:1"), platform=AMD64, settings=settings, dialer=Two(), pace=FAST)


def test_no_answer_to_tls(server: Hostile, store: Store) -> None:
    """Somebody accepts and never says a word; by default that is borne for five seconds."""
    assert Settings().connect_timeout == 5
    with socket.create_server(("127.0.0.1", 0)) as mute:
        started = time.monotonic()
        said = unreachable(
            store, f"127.0.0.1:{mute.getsockname()[1]}/x:1", "timeout", settings={"connect_timeout": 0.5}
        )
        assert said == f"127.0.0.1:{mute.getsockname()[1]} did not answer within 0.5 s"
        assert 0.45 <= time.monotonic() - started < 4


def test_no_answer_to_http(server: Hostile, store: Store) -> None:
    server.on("/v2/", fixture.silent)
    said = unreachable(store, f"{server.host}/x:1", "timeout", settings={"connect_timeout": 0.4})
    assert said == f"{server.host} did not answer within 0.4 s"
    assert len(server.requests) == 1


def test_no_answer_in_the_middle_of_a_pull(server: Hostile, image: Image, store: Store) -> None:
    server.on("/manifests/", fixture.silent)
    said = unreachable(store, f"{server.host}/x:1", "timeout", settings={"read_timeout": 0.3})
    assert said == f"{server.host} did not answer within 0.3 s, tried 2 times"


@pytest.mark.parametrize("part", ["/v2/", "/manifests/", "/blobs/"])
def test_a_head_that_drips_is_not_waited_for(server: Hostile, image: Image, store: Store, part: str) -> None:
    server.on(part, fixture.drip(head(200, Content_Length=0, X=f"{'x' * 1000}"), 0.02))
    started = time.monotonic()
    error = failure(store, f"{server.host}/x:1", settings={"read_timeout": 0.3, "connect_timeout": 0.3})
    assert str(error).startswith(f"{server.host} did not answer within 0.3 s")
    assert fixture.partial(store.root) == {}
    assert time.monotonic() - started < 3


def test_a_manifest_that_drips(server: Hostile, image: Image, store: Store) -> None:
    data = image.manifest
    reply = head(200, Content_Type=fixture.OCI_MANIFEST, Content_Length=len(data)) + data
    server.on("/manifests/", fixture.drip(reply, 0.001))
    said = unreachable(store, f"{server.host}/x:1", "timeout", settings={"read_timeout": 0.3})
    assert said == f"{server.host} is too slow: its answer stalled for 0.3 s, tried 2 times"


def test_a_blob_that_drips_keeps_what_came(server: Hostile, image: Image, store: Store) -> None:
    layer, digest = image.layers[0], sha256(image.layers[0])

    def slow(connection: socket.socket) -> None:
        connection.sendall(head(200, Content_Length=len(layer)) + layer[:10_000])
        fixture.drip(layer[10_000:], 0.02)(connection)

    server.on(digest, slow, times=1)
    server.on(digest, fixture.silent)
    error = failure(store, f"{server.host}/x:1", settings={"read_timeout": 0.4})
    assert str(error) == f"{server.host} did not answer within 0.4 s, tried 2 times"
    assert 10_000 <= fixture.partial(store.root)[digest] < 10_100


def test_a_registry_that_dies_half_way(server: Hostile, image: Image, store: Store) -> None:
    layer, digest = image.layers[0], sha256(image.layers[0])

    def die(connection: socket.socket) -> None:
        connection.sendall(head(200, Content_Length=len(layer)) + layer[:5000])
        server.die()

    server.on(digest, die, times=1)
    with pytest.raises(RegistryUnreachable) as caught:
        pull(
            store,
            parse(f"{server.host}/x:1"),
            platform=AMD64,
            settings=Settings(attempts=2),
            pace=FAST,
        )
    assert str(caught.value) == (
        f"pull {server.host}/x:1: connect to {server.host}: ECONNREFUSED (connection refused), tried 2 times"
    )
    assert store.refs() == {}
    assert digest not in fixture.visible(store.root)
    assert fixture.partial(store.root) == {digest: 5000}


# What the registry says


def test_no_such_image(server: Hostile, store: Store) -> None:
    error = failure(store, f"{server.host}/x/y:1")
    assert isinstance(error, NotFound)
    assert str(error) == f"{server.host} has no x/y:1 (404 not found: unknown here)"
    assert fixture.store_is_clean(store.root)


def test_a_blob_that_is_not_there(server: Hostile, image: Image, store: Store) -> None:
    digest = sha256(image.layers[0])
    del server.blobs[digest]
    error = failure(store, f"{server.host}/x:1")
    assert isinstance(error, NotFound)
    assert str(error) == f"{server.host} has no blob {digest} (404 not found: unknown here)"
    assert fixture.partial(store.root) == {}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(403), "{host} denies access to x/y (403 forbidden)"),
        (
            Answer(403, b'{"errors":[{"code":"DENIED","message":"not\\nyou"}]}'),
            "{host} denies access to x/y (403 forbidden: not\\nyou)",
        ),
        (Answer(403, b'{"errors":[{"code":"DENIED"}]}'), "{host} denies access to x/y (403 forbidden: DENIED)"),
        (Answer(403, b'{"errors":[]}'), "{host} denies access to x/y (403 forbidden)"),
        (Answer(418), "{host} answers 418 i'm a teapot"),
        (Answer(999), "{host} has a problem of its own (999), tried 2 times"),
        (Answer(204), "{host} answers 204 no content"),
        (Answer(401), "{host} asks for a login by no scheme at all, wanted Basic or Bearer"),
        (
            Answer(401, headers={"WWW-Authenticate": "Negotiate"}),
            "{host} asks for a login by negotiate, wanted Basic or Bearer",
        ),
        (
            Answer(401, headers={"WWW-Authenticate": "Bearer service=x"}),
            "{host} asks for a token and does not say from where",
        ),
    ],
)
def test_answers_that_are_no_content(server: Hostile, store: Store, answer: Answer, said: str) -> None:
    server.on("/manifests/", answer)
    assert str(failure(store, f"{server.host}/x/y:1")) == said.format(host=server.host)
    assert fixture.store_is_clean(store.root)


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({}, ", tried 2 times"),
        ({"Retry-After": "soon"}, ", tried 2 times"),
        ({"Retry-After": "3600"}, ", to be tried again in 3600 s"),
        (
            {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(days=1000))},
            ", to be tried again in 8640",
        ),
    ],
)
def test_too_many_requests(server: Hostile, store: Store, headers: dict[str, str], said: str) -> None:
    server.on("/manifests/", Answer(429, headers=headers))
    found = unreachable(store, f"{server.host}/x:1", "rate-limit")
    wanted = f"{server.host} allows no more requests for now (429 too many requests){said}"
    assert found == wanted or (said.endswith("8640") and found.startswith(wanted[:-4]))
    assert len(server.asked("/manifests/")) == (1 if "again" in said else 2)


def test_too_many_requests_at_the_door(server: Hostile, store: Store) -> None:
    server.on("/v2/", Answer(429, headers={"Retry-After": "600"}))
    assert unreachable(store, f"{server.host}/x:1", "rate-limit") == (
        f"{server.host} allows no more requests for now (429 too many requests), to be tried again in 600 s"
    )


def test_no_word_at_all(server: Hostile, store: Store) -> None:
    server.on("/v2/", fixture.sends(b""))
    said = unreachable(store, f"{server.host}/x:1", "cut")
    assert said == f"{server.host} closed the connection without an answer"


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "SSH-2.0-OpenSSH\\r\\n"),
        (head(200, **{f"x{number}": "y" for number in range(200)}), "got more than 100 headers"),
        (head(200, X="y" * 70_000), "got more than 65536 bytes when reading header line"),
    ],
)
def test_what_is_no_http(server: Hostile, store: Store, reply: bytes, said: str) -> None:
    server.on("/v2/", fixture.sends(reply))
    error = failure(store, f"{server.host}/x:1")
    assert str(error) == f"{server.host} answers what is not HTTP: {said}"
    assert fixture.store_is_clean(store.root)
    assert len(server.requests) == 1


def test_a_connection_that_the_kernel_gives_up(server: Hostile, store: Store) -> None:
    class Down(Network):
        def connect(self, family: int, address: Any, timeout: float) -> socket.socket:
            class Dead(socket.socket):
                def sendall(self, *_: Any) -> None:
                    raise OSError(errno.ENETDOWN, "Network is down")

            found = super().connect(family, address, timeout)
            return Dead(fileno=found.detach())

    settings = Settings({server.host: RegistrySettings(mirrors=(f"http://{server.host}",))}, attempts=1)
    with pytest.raises(RegistryUnreachable) as caught:
        pull(store, parse(f"{server.host}/x:1"), platform=AMD64, settings=settings, dialer=Down(), pace=FAST)
    assert "cannot be talked to: ENETDOWN (network is down)" in str(caught.value)


# Content that is not what it should be: refused, and nothing is kept, not even to be resumed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: bytes(len(data)), "blob {digest}: the content received has digest {zeros}"),
        (lambda data: data[:-1], "{host} announces {less} bytes for blob {digest}, its descriptor names {size}"),
        (lambda data: data + b"x", "{host} announces {more} bytes for blob {digest}, its descriptor names {size}"),
    ],
    ids=["other", "shorter", "longer"],
)
def test_a_blob_that_is_another(
    server: Hostile, image: Image, store: Store, change: Callable[[bytes], bytes], said: str
) -> None:
    layer, digest = image.layers[0], sha256(image.layers[0])
    server.blobs[digest] = change(layer)
    size = len(layer)
    error = failure(store, f"{server.host}/x:1")
    assert not isinstance(error, RegistryUnreachable)
    assert str(error) == said.format(
        host=server.host, digest=digest, size=size, less=size - 1, more=size + 1, zeros=sha256(bytes(size))
    )
    assert fixture.partial(store.root) == {}
    assert digest not in fixture.visible(store.root)
    assert len(server.asked(digest)) == 1


def test_a_truncated_blob(server: Hostile, image: Image, store: Store) -> None:
    layer, digest = image.layers[0], sha256(image.layers[0])
    server.on(digest, fixture.sends(head(200, Content_Length=len(layer)) + layer[:100]), times=1)
    server.on(digest, fixture.sends(head(206, Content_Range=f"bytes 100-{len(layer) - 1}/{len(layer)}") + b"x" * 50))
    error = failure(store, f"{server.host}/x:1")
    assert isinstance(error, RegistryUnreachable)
    assert error.reason == "cut"
    assert str(error) == f"{server.host} broke off after 150 of {len(layer)} bytes of blob {digest}, tried 2 times"
    assert digest not in fixture.visible(store.root)


def test_a_chunked_body_that_breaks_off(server: Hostile, image: Image, store: Store) -> None:
    layer, digest = image.layers[0], sha256(image.layers[0])
    chunk = b"%x\r\n%s\r\n" % (100, layer[:100])
    server.on(digest, fixture.sends(head(200, Transfer_Encoding="chunked") + chunk + b"40\r\nabc"))
    error = failure(store, f"{server.host}/x:1", settings={"attempts": 1})
    assert str(error) == f"{server.host} broke off after 103 of {len(layer)} bytes of blob {digest}"


def test_a_manifest_that_breaks_off(server: Hostile, image: Image, store: Store) -> None:
    reply = head(200, Content_Type=fixture.OCI_MANIFEST, Content_Length=len(image.manifest)) + image.manifest[:50]
    server.on("/manifests/", fixture.sends(reply))
    said = unreachable(store, f"{server.host}/x:1", "cut")
    assert said == f"{server.host} broke off in the middle of its answer, tried 2 times"


def test_a_manifest_with_another_digest(server: Hostile, image: Image, store: Store) -> None:
    other = json.dumps({**json.loads(image.manifest), "annotations": {}}).encode()
    server.manifests[image.digest] = (fixture.OCI_MANIFEST, other)
    server.on("/manifests/", Answer(body=other, headers={"Content-Type": fixture.OCI_MANIFEST}))
    error = failure(store, f"{server.host}/x@{image.digest}")
    assert str(error) == (
        f"{server.host}: manifest x@{image.digest} has digest {sha256(other)}, its name says {image.digest}"
    )
    assert fixture.store_is_clean(store.root)


def test_a_manifest_whose_header_lies(server: Hostile, image: Image, store: Store) -> None:
    headers = {"Content-Type": fixture.OCI_MANIFEST, "Docker-Content-Digest": sha256(b"")}
    server.on("/manifests/", Answer(body=image.manifest, headers=headers))
    error = failure(store, f"{server.host}/x:1")
    assert str(error) == f"{server.host}: manifest x:1 has digest {image.digest}, its header says {sha256(b'')}"
    assert fixture.store_is_clean(store.root)


@pytest.mark.parametrize(
    ("media_type", "said"),
    [
        ("text/html", "x:1 is of type 'text/html', wanted an image's manifest or index"),
        (
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            "x:1 is a manifest of docker's schema 1, which is not supported",
        ),
        (
            "application/vnd.docker.distribution.manifest.v1+json",
            "x:1 is a manifest of docker's schema 1, which is not supported",
        ),
    ],
)
def test_types_that_are_no_manifest(
    server: Hostile, image: Image, store: Store, media_type: str, said: str
) -> None:
    server.add(image, media_type=media_type)
    error = failure(store, f"{server.host}/x:1")
    assert isinstance(error, Unsupported)
    assert str(error) == f"{server.host}: {said}"
    assert fixture.store_is_clean(store.root)


def test_a_type_that_the_document_denies(server: Hostile, image: Image, store: Store) -> None:
    server.add(image, media_type=fixture.OCI_INDEX)
    error = failure(store, f"{server.host}/x:1")
    assert str(error).startswith(f"image index {image.digest}: ")


def test_an_entry_that_is_not_what_its_index_says(server: Hostile, image: Image, store: Store) -> None:
    entry = fixture.descriptor(fixture.OCI_MANIFEST, image.manifest, platform={"os": "linux", "architecture": "amd64"})
    entry["size"] += 1
    index = json.dumps({"schemaVersion": 2, "mediaType": fixture.OCI_INDEX, "manifests": [entry]}).encode()
    server.manifests["1"] = (fixture.OCI_INDEX, index)
    error = failure(store, f"{server.host}/x:1")
    size = len(image.manifest)
    assert str(error) == (
        f"{server.host}: manifest x@{image.digest} is {size} bytes of type '{fixture.OCI_MANIFEST}', "
        f"its index names {size + 1} of type '{fixture.OCI_MANIFEST}'"
    )


def test_a_full_disk_is_not_the_mirrors_fault(server: Hostile, image: Image, store: Store) -> None:
    settings = Settings({server.host: RegistrySettings(mirrors=(f"http://{server.host}/mirror",))})
    os.rmdir(os.path.join(store.root, "ingest"))
    os.symlink("/proc/none", os.path.join(store.root, "ingest"))
    with pytest.raises((PycontainError, OSError)):
        pull(store, parse(f"{server.host}/x:1"), platform=AMD64, settings=settings, pace=FAST)
    assert not server.asked("/v2/x/")  # the second server was not bothered
