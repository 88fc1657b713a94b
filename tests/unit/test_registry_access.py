"""Being let in: passwords, tokens, certificates and proxies."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from pycontain.images.auth import Credential, CredentialFile
from pycontain.images.manifest import Platform
from pycontain.images.pull import pull
from pycontain.images.reference import parse
from pycontain.images.registry import Pace, RegistryUnreachable, login, logout
from pycontain.images.settings import RegistrySettings, Settings
from pycontain.images.store import Store
from pycontain.runtime.errors import PycontainError
from tests import registry_fixture as fixture
from tests.registry_fixture import Answer, Hostile, Network, Proxy, Raw, Request, tiny_image

FAST = Pace(base=0.001, cap=0.002, longest=1)
AMD64 = Platform("linux", "amd64")
BASIC = "Basic " + base64.b64encode(b"bob:sesame").decode()


@pytest.fixture(autouse=True)
def no_system_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the machine's own takes longer than most of these tests."""
    monkeypatch.setenv("SSL_CERT_FILE", "/dev/null")


@pytest.fixture
def server() -> Iterator[Hostile]:
    with Hostile() as running:
        running.add(tiny_image(layers=1))
        yield running


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def environ(tmp_path: Path, host: str, **entry: str) -> dict[str, str]:
    """An environment whose credential file knows one host."""
    path = tmp_path / "auth.json"
    path.write_text(json.dumps({"auths": {host: entry}}))
    return {"REGISTRY_AUTH_FILE": str(path)}


def bob(tmp_path: Path, host: str) -> dict[str, str]:
    return environ(tmp_path, host, auth=BASIC.removeprefix("Basic "))


def get(store: Store, name: str, dialer: Network | None = None, **settings: Any) -> Any:
    chosen = Settings(**{"attempts": 2, "connect_timeout": 2, "read_timeout": 2, **settings})
    return pull(store, parse(name), platform=AMD64, settings=chosen, dialer=dialer, pace=FAST)


def failure(store: Store, name: str, dialer: Network | None = None, **settings: Any) -> PycontainError:
    with pytest.raises(PycontainError) as caught:
        get(store, name, dialer, **settings)
    assert store.refs() == {}
    assert fixture.partial(store.root) == {}
    caught.value.args = (str(caught.value).removeprefix(f"pull {name}: "),)
    return caught.value


def wants(server: Hostile, authorization: str, challenge: str) -> None:
    """Everything needs this Authorization header."""

    def rule(request: Request) -> Answer | Raw | None:
        if request.headers.get("authorization") == authorization or request.path == "/token":
            return None
        return Answer(401, headers={"WWW-Authenticate": challenge})

    server.rules.append(rule)


def bearer(server: Hostile, token: str = "opened") -> str:
    return f'Bearer realm="http://{server.host}/token",service="here",scope="repository:ignored:pull"'


# Basic


def test_a_password_is_sent_once_it_is_asked_for(server: Hostile, store: Store, tmp_path: Path) -> None:
    wants(server, BASIC, 'Basic realm="x"')
    get(store, f"{server.host}/x:1", environ=bob(tmp_path, server.host))
    assert [request.headers.get("authorization") for request in server.requests] == [None] + [BASIC] * 3


def test_a_password_is_not_sent_to_who_does_not_ask(server: Hostile, store: Store, tmp_path: Path) -> None:
    get(store, f"{server.host}/x:1", environ=bob(tmp_path, server.host))
    assert {request.headers.get("authorization") for request in server.requests} == {None}


def test_a_wrong_password(server: Hostile, store: Store, tmp_path: Path) -> None:
    wants(server, "Basic other", 'Basic realm="x"')
    error = failure(store, f"{server.host}/x:1", environ=bob(tmp_path, server.host))
    assert str(error) == f"{server.host} refuses the password of user 'bob' (401 unauthorized)"
    assert error.hint == f"pycontain login {server.host}"
    assert len(server.requests) == 2


def test_no_password(server: Hostile, store: Store) -> None:
    wants(server, BASIC, 'Basic realm="x"')
    error = failure(store, f"{server.host}/x:1")
    assert (str(error), error.hint) == (
        f"{server.host} wants a login for x (401 unauthorized)",
        f"pycontain login {server.host}",
    )


def test_what_is_public_needs_no_password(server: Hostile, store: Store) -> None:
    """Some registries ask everybody who knocks, and have public images nevertheless."""
    server.on("/v2/", Answer(401, headers={"WWW-Authenticate": "Basic"}), times=1)
    get(store, f"{server.host}/x:1")


def test_a_password_is_asked_for_in_the_middle(server: Hostile, store: Store, tmp_path: Path) -> None:
    def rule(request: Request) -> Answer | None:
        if "/blobs/" in request.path and request.headers.get("authorization") != BASIC:
            return Answer(401, headers={"WWW-Authenticate": "Basic"})
        return None

    server.rules.append(rule)
    get(store, f"{server.host}/x:1", environ=bob(tmp_path, server.host))


# Bearer


def token_rule(server: Hostile, *answers: Any, authorization: str | None = None) -> None:
    """The token server's part: one answer after the other, the last one for ever."""
    left = list(answers)

    def rule(request: Request) -> Answer | None:
        if request.path != "/token":
            return None
        if authorization is not None and request.headers.get("authorization") != authorization:
            return Answer(401)
        answer = left.pop(0) if len(left) > 1 else left[0]
        return answer if isinstance(answer, Answer) else Answer(body=json.dumps(answer).encode())

    server.rules.insert(0, rule)


def test_a_token_for_everybody(server: Hostile, store: Store) -> None:
    wants(server, "Bearer opened", bearer(server))
    token_rule(server, {"token": "opened"})
    get(store, f"{server.host}/x/y:1")
    asked = server.asked("/token")
    assert len(asked) == 1
    assert "authorization" not in asked[0].headers
    assert parse_qs(urlsplit(asked[0].target).query) == {"service": ["here"], "scope": ["repository:x/y:pull"]}


def test_a_token_for_a_password(server: Hostile, store: Store, tmp_path: Path) -> None:
    wants(server, "Bearer opened", bearer(server))
    token_rule(server, {"access_token": "opened", "expires_in": 300}, authorization=BASIC)
    get(store, f"{server.host}/x:1", environ=bob(tmp_path, server.host))
    (asked,) = server.asked("/token")
    assert parse_qs(urlsplit(asked.target).query)["account"] == ["bob"]
    assert all(request.headers.get("authorization") != BASIC for request in server.requests if request is not asked)


def test_an_identity_token_is_exchanged(server: Hostile, store: Store, tmp_path: Path) -> None:
    wants(server, "Bearer opened", bearer(server))
    token_rule(server, {"access_token": "opened"})
    get(store, f"{server.host}/x:1", environ=environ(tmp_path, server.host, identitytoken="id entity"))
    (asked,) = server.asked("/token")
    assert (asked.method, asked.target) == ("POST", "/token")
    assert parse_qs(asked.body.decode()) == {
        "grant_type": ["refresh_token"],
        "refresh_token": ["id entity"],
        "client_id": ["pycontain"],
        "service": ["here"],
        "scope": ["repository:x:pull"],
    }


def test_a_registry_token_is_sent_as_it_is(server: Hostile, store: Store, tmp_path: Path) -> None:
    wants(server, "Bearer mine", bearer(server))
    get(store, f"{server.host}/x:1", environ=environ(tmp_path, server.host, registrytoken="mine"))
    assert not server.asked("/token")


def test_a_token_that_expired_is_renewed(server: Hostile, store: Store) -> None:
    wants(server, "Bearer second", bearer(server))
    token_rule(server, {"token": "first"}, {"token": "second"})
    get(store, f"{server.host}/x:1")
    assert len(server.asked("/token")) == 2


def test_a_short_lived_token_is_renewed_before_it_is_refused(server: Hostile, store: Store) -> None:
    wants(server, "Bearer opened", bearer(server))
    token_rule(server, {"token": "opened", "expires_in": 1e-6})
    get(store, f"{server.host}/x:1")
    assert len(server.asked("/token")) == 3  # one for each request but the first
    assert len([request for request in server.requests if request.path != "/token"]) == 4


def test_a_token_that_opens_nothing(server: Hostile, store: Store, tmp_path: Path) -> None:
    wants(server, "Bearer other", bearer(server))
    token_rule(server, {"token": "opened"})
    assert str(failure(store, f"{server.host}/x:1")) == f"{server.host} wants a login for x (401 unauthorized)"
    error = failure(store, f"{server.host}/x:1", environ=bob(tmp_path, server.host))
    assert str(error) == f"{server.host} does not let user 'bob' pull x (401 unauthorized)"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(401), "{host} refuses the password of user 'bob' (401 unauthorized)"),
        (Answer(302, headers={"Location": "/other"}), "token server {host} answers 302 found"),
        (Answer(404), "token server {host} answers 404 not found"),
        (Answer(body=b"hello"), "token server {host} answers something that is not a JSON object"),
        (Answer(body=b"[" * 100_000), "token server {host} answers something that is not a JSON object"),
        ({}, "token server {host} answers no token"),
        ({"token": 7}, "token server {host} answers no token"),
        ({"token": "a\r\nX: y"}, "token server {host} answers no token"),
        ({"token": "x" * 20_000}, "token server {host} answers no token"),
        (Answer(body=b" " * ((1 << 20) + 1)), "{host}: the token is larger than 1048576 bytes"),
        (Answer(503), "{host} has a problem of its own (503 service unavailable), tried 2 times"),
    ],
)
def test_token_servers_that_fail(server: Hostile, store: Store, tmp_path: Path, answer: Any, said: str) -> None:
    wants(server, "Bearer opened", bearer(server))
    token_rule(server, answer)
    error = failure(store, f"{server.host}/x:1", environ=bob(tmp_path, server.host))
    assert str(error) == said.format(host=server.host)


def test_threads_share_one_token(store: Store) -> None:
    with Hostile() as server:
        server.add(tiny_image(layers=6))
        wants(server, "Bearer opened", bearer(server))
        token_rule(server, {"token": "opened"})
        get(store, f"{server.host}/x:1")
        assert len(server.asked("/token")) == 1


# Login


def test_login_is_tried_and_then_kept(server: Hostile, store: Store, tmp_path: Path) -> None:
    wants(server, BASIC, 'Basic realm="x"')
    settings = Settings(environ={"HOME": str(tmp_path)})
    with pytest.raises(PycontainError) as caught:
        login(server.host, "bob", "wrong", settings=settings, pace=FAST)
    assert str(caught.value) == (
        f"log in to {server.host}: {server.host} refuses the password of user 'bob' (401 unauthorized)"
    )
    assert caught.value.hint is None
    assert not (tmp_path / ".docker").exists()

    assert login(f"https://{server.host}/", "bob", "sesame", settings=settings, pace=FAST) == str(
        tmp_path / ".docker/config.json"
    )
    assert CredentialFile.find(settings.environ).get(server.host) == Credential("bob", "sesame")
    get(store, f"{server.host}/x:1", environ=settings.environ)
    assert logout(server.host, settings=settings) is True
    assert logout(server.host, settings=settings) is False


def test_login_by_token(server: Hostile, tmp_path: Path) -> None:
    wants(server, "Bearer opened", bearer(server))
    token_rule(server, {"token": "opened"}, authorization=BASIC)
    settings = Settings(environ={"HOME": str(tmp_path)})
    login(server.host, "bob", "sesame", settings=settings, pace=FAST)
    (asked,) = server.asked("/token")
    assert parse_qs(urlsplit(asked.target).query) == {"service": ["here"], "account": ["bob"]}
    with pytest.raises(PycontainError) as caught:
        login(server.host, "bob", "wrong", settings=settings, pace=FAST)
    assert str(caught.value).endswith("refuses the password of user 'bob' (401 unauthorized)")


def test_login_where_nobody_answers(tmp_path: Path) -> None:
    port = fixture.free_port()
    settings = Settings(environ={"HOME": str(tmp_path)}, attempts=1)
    with pytest.raises(RegistryUnreachable) as caught:
        login(f"127.0.0.1:{port}", "bob", "x", settings=settings, pace=FAST)
    assert str(caught.value) == (
        f"log in to 127.0.0.1:{port}: connect to 127.0.0.1:{port}: ECONNREFUSED (connection refused)"
    )


@pytest.mark.parametrize(
    ("registry", "user", "said"),
    [
        ("a b", "bob", "'a b' is not a registry's host[:port]"),
        ("localhost/x", "bob", "'localhost/x' is not a registry's host[:port]"),
        ("localhost", "", "log in to localhost: a user's name is not empty and has no colon"),
        ("localhost", "a:b", "log in to localhost: a user's name is not empty and has no colon"),
    ],
)
def test_login_by_nonsense(registry: str, user: str, said: str) -> None:
    with pytest.raises(PycontainError) as caught:
        login(registry, user, "x", settings=Settings())
    assert str(caught.value) == said


# TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> fixture.Authority:
    return fixture.make_authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def certificate(authority: fixture.Authority) -> tuple[str, str]:
    return authority.certificate()


@pytest.fixture
def secure(certificate: tuple[str, str]) -> Iterator[Hostile]:
    with Hostile(tls=certificate) as running:
        running.add(tiny_image(layers=1))
        yield running


needs_openssl = pytest.mark.needs("openssl")


@needs_openssl
def test_a_ca_of_ones_own(secure: Hostile, store: Store, authority: fixture.Authority) -> None:
    get(store, f"{secure.host}/x:1", registries={secure.host: RegistrySettings(ca=authority.ca)})
    get(store, f"127.0.0.1:{secure.port}/x:1", registries={f"127.0.0.1:{secure.port}": RegistrySettings(authority.ca)})


@needs_openssl
def test_the_authorities_of_the_system(
    secure: Hostile, store: Store, authority: fixture.Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", authority.ca)  # what OpenSSL takes for the system's
    get(store, f"{secure.host}/x:1")


@needs_openssl
def test_a_ca_where_docker_looks_for_it(
    secure: Hostile, store: Store, authority: fixture.Authority, tmp_path: Path
) -> None:
    folder = tmp_path / "certs.d" / secure.host
    folder.mkdir(parents=True)
    (folder / "ca.crt").symlink_to(authority.ca)
    get(store, f"{secure.host}/x:1", certs_dir=str(tmp_path / "certs.d"))


@needs_openssl
def test_an_unknown_ca(secure: Hostile, store: Store) -> None:
    error = failure(store, f"{secure.host}/x:1")
    assert isinstance(error, RegistryUnreachable)
    assert (error.reason, str(error)) == (
        "tls",
        f"{secure.host}: its certificate is from an unknown authority (unable to get local issuer certificate)",
    )
    assert error.hint == f'add to /etc/pycontain/config.toml: [registry."{secure.host}"] ca = "/path/of/its/ca.crt"'
    assert secure.requests == []


@needs_openssl
def test_a_certificate_for_another_name(store: Store, authority: fixture.Authority) -> None:
    with Hostile(tls=authority.certificate("DNS:other.test", "other")) as server:
        error = failure(store, f"{server.host}/x:1", registries={server.host: RegistrySettings(ca=authority.ca)})
        assert isinstance(error, RegistryUnreachable)
        assert (error.reason, str(error)) == (
            "tls",
            f"{server.host}: its certificate is for another name "
            "(hostname mismatch, certificate is not valid for 'localhost')",
        )
        assert server.requests == []


@needs_openssl
def test_insecure_means_unverified(secure: Hostile, store: Store) -> None:
    get(store, f"{secure.host}/x:1", registries={secure.host: RegistrySettings(insecure=True)})


@needs_openssl
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, 'registry."{host}".ca: {path}: ENOENT (no such file or directory)'),
        ("hello", 'registry."{host}".ca: {path}: no certificate in PEM form is in this file'),
    ],
)
def test_a_ca_file_that_is_none(
    secure: Hostile, store: Store, tmp_path: Path, content: str | None, said: str
) -> None:
    path = tmp_path / "ca.crt"
    if content is not None:
        path.write_text(content)
    error = failure(store, f"{secure.host}/x:1", registries={secure.host: RegistrySettings(ca=str(path))})
    assert not isinstance(error, RegistryUnreachable)
    assert str(error) == said.format(host=secure.host, path=path)


def test_plain_http_elsewhere_needs_leave(server: Hostile, store: Store) -> None:
    host = f"registry.test:{server.port}"
    network = Network(registry_test="198.51.100.1")
    error = failure(store, f"{host}/x:1", network)
    assert isinstance(error, RegistryUnreachable)
    assert (error.reason, str(error)) == ("not-tls", f"{host} does not speak TLS (wrong version number)")
    assert error.hint == f'if that is meant so, add to /etc/pycontain/config.toml: [registry."{host}"] insecure = true'
    assert server.requests == []
    get(store, f"{host}/x:1", network, registries={host: RegistrySettings(insecure=True)})


def test_without_a_port_plain_http_is_port_80(server: Hostile, store: Store) -> None:
    class Ports(Network):
        def connect(self, family: int, address: Any, timeout: float) -> socket.socket:
            if address[1] == 443:
                raise ConnectionRefusedError(111, "Connection refused")
            assert address[1] == 80
            return super().connect(family, ("127.0.0.1", server.port), timeout)

    get(store, "localhost/x:1", Ports(localhost="127.0.0.1"))


# Proxies


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy() as running:
        yield running


def through(proxy: Proxy, name: str = "https_proxy", **more: str) -> dict[str, str]:
    return {name: f"http://bob:ses%20ame@127.0.0.1:{proxy.port}", **more}


class OnlyProxy(Network):
    """Names are the proxy's business."""

    def resolve(self, host: str, port: int) -> list[tuple[int, Any]]:
        assert host == "127.0.0.1", f"{host} was looked up beside the proxy"
        return super().resolve(host, port)


@needs_openssl
@pytest.mark.parametrize("variable", ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])
def test_tls_goes_through_a_proxy(
    store: Store, proxy: Proxy, authority: fixture.Authority, variable: str, tmp_path: Path
) -> None:
    with Hostile(tls=authority.certificate("DNS:registry.test", "proxied")) as server:
        server.add(tiny_image(layers=1))
        host = f"registry.test:{server.port}"
        wants(server, BASIC, "Basic")
        environ = {**through(proxy, variable), **bob(tmp_path, host)}
        get(store, f"{host}/x:1", OnlyProxy(), registries={host: RegistrySettings(authority.ca)}, environ=environ)
    assert proxy.heads[0].startswith(f"CONNECT {host} HTTP/1".encode())
    secret = base64.b64encode(b"bob:ses ame")
    assert all(b"proxy-authorization: basic " + secret.lower() in head.lower() for head in proxy.heads)
    assert all(BASIC.encode() not in head for head in proxy.heads)
    assert all("proxy-authorization" not in request.headers for request in server.requests)


def test_plain_http_goes_through_a_proxy(server: Hostile, store: Store, proxy: Proxy) -> None:
    host = f"registry.test:{server.port}"
    registries = {
        host: RegistrySettings(insecure=True),
        "docker.io": RegistrySettings(mirrors=(f"http://{host}",)),
    }
    server.add(tiny_image(layers=1), tag="latest")
    get(store, "alpine", OnlyProxy(), registries=registries, environ=through(proxy, "http_proxy"))
    assert proxy.heads[0].startswith(f"GET http://{host}/v2/ HTTP/1.1".encode())


def test_a_proxy_on_this_machine_may_lead_elsewhere_but_not_back(server: Hostile, store: Store, proxy: Proxy) -> None:
    """That the proxy's own address is loopback is the user's choice; where a registry sends us is not."""
    host = f"registry.test:{server.port}"
    options = {"registries": {host: RegistrySettings(insecure=True)}, "environ": through(proxy, "http_proxy")}
    network = Network(registry_test="198.51.100.1")  # https is tried first, and that has no proxy here
    target = ["other.test"]

    def rule(request: Request) -> Answer | None:
        if "/blobs/" not in request.path or "/moved/" in request.path:
            return None
        path = f"/moved/blobs/{request.path.rpartition('/')[2]}"
        return Answer(307, headers={"Location": f"http://{target[0]}:{server.port}{path}"})

    server.rules.append(rule)
    get(store, f"{host}/x:1", network, **options)
    target[0] = "localhost"
    other = Store(store.root + "-other")
    error = failure(other, f"{host}/x:1", network, **options)
    assert str(error).endswith("is this machine, and a server elsewhere sent us there: refused")


@pytest.mark.parametrize(
    ("variable", "rules"),
    [
        ("HTTP_PROXY", ""),  # as curl: a CGI program's client could set it
        ("all_proxy", "other.test, registry.test"),
        ("all_proxy", ".test"),
        ("all_proxy", "*"),
    ],
)
def test_no_proxy(server: Hostile, store: Store, proxy: Proxy, variable: str, rules: str) -> None:
    host = f"registry.test:{server.port}"
    environ = through(proxy, variable, NO_PROXY=rules)
    network = Network(registry_test="198.51.100.1")
    get(store, f"{host}/x:1", network, registries={host: RegistrySettings(insecure=True)}, environ=environ)
    assert proxy.heads == []


@pytest.mark.parametrize(
    ("host", "rules", "exempt"),
    [
        ("a.test", "a.test", True),
        ("a.test", ".a.test", True),
        ("x.a.test", "a.test", True),
        ("xa.test", "a.test", False),
        ("A.TEST.", "a.test", True),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("11.1.2.3", "b, 11.1.2.3", True),
        ("2001:db8::1", "[2001:db8::1]", True),
        ("a.test", "", False),
    ],
)
def test_rules_of_no_proxy(host: str, rules: str, exempt: bool) -> None:
    from pycontain.images.dialing import exempt as asked

    assert asked(host, rules) is exempt


def test_loopback_never_goes_through_a_proxy(server: Hostile, store: Store, proxy: Proxy) -> None:
    get(store, f"{server.host}/x:1", environ=through(proxy, "all_proxy"))
    assert proxy.heads == []


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (407, "proxy http://127.0.0.1:{port} for registry.test: tunnel connection failed: 407 Whatever"),
        (502, "proxy http://127.0.0.1:{port} for registry.test: tunnel connection failed: 502 Whatever"),
    ],
)
def test_a_proxy_that_refuses(store: Store, status: int, said: str) -> None:
    with Proxy(status) as proxy:
        error = failure(store, "registry.test/x:1", OnlyProxy(), environ=through(proxy))
        assert isinstance(error, RegistryUnreachable)
        assert (error.reason, str(error)) == ("proxy", said.format(port=proxy.port))


def test_a_proxy_that_is_away(store: Store) -> None:
    url = f"http://bob:secret@127.0.0.1:{fixture.free_port()}"
    error = failure(store, "registry.test/x:1", OnlyProxy(), environ={"https_proxy": url})
    assert isinstance(error, RegistryUnreachable)
    shown = url.replace("bob:secret@", "")
    assert (error.reason, str(error)) == (
        "proxy",
        f"connect to proxy {shown}: ECONNREFUSED (connection refused)",
    )


def test_a_proxy_of_another_kind(store: Store) -> None:
    error = failure(store, "registry.test/x:1", environ={"ALL_PROXY": "socks5://user:secret@127.0.0.1:1080"})
    assert isinstance(error, RegistryUnreachable)
    assert (error.reason, str(error)) == (
        "proxy",
        "proxy socks5://127.0.0.1:1080: only http and https proxies are spoken to",
    )
    assert error.hint == "set https_proxy to an http proxy, or no_proxy=registry.test"


@pytest.mark.parametrize("url", ["http://", "http://host:port", "http://[::1", "bob:secret@host:0"])
def test_a_proxy_that_is_no_url(store: Store, url: str) -> None:
    error = failure(store, "registry.test/x:1", environ={"https_proxy": url})
    assert isinstance(error, RegistryUnreachable)
    assert (error.reason, str(error)) == ("proxy", "the proxy in the variable https_proxy is not a URL")
    assert error.hint == "unset https_proxy"


def test_a_pull_leaves_no_thread_behind(server: Hostile, store: Store) -> None:
    get(store, f"{server.host}/x:1")
    for thread in threading.enumerate():
        if thread.name.startswith("pycontain"):
            thread.join(2)
            assert not thread.is_alive()
