"""Being let in: what a server asks for with a 401, and the tokens that another server gives for a password.

A password goes to the server itself (Basic), or to the token server that it names. The latter may be any host, and gets
the password only over TLS, exactly as with docker: the registry that has our trust says who keeps its users. Over plain
http nothing is sent but to hosts that are configured as insecure, or are loopback by name.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from pycontain.images.auth import Credential, CredentialFile, parse_challenges, printable
from pycontain.images.dialing import Url, parse_url
from pycontain.images.transport import Response
from pycontain.runtime.errors import PycontainError

if TYPE_CHECKING:
    from pycontain.images.registry import Client

_MAX_TOKEN = 1 << 20  # bytes of a token server's answer
_MAX_TOKEN_TEXT = 16384  # characters of a token, which is a header of every request
_TOKEN_LIFE = 60.0  # seconds, where a token server names none (docker's token specification)


class Authorizer:
    """What a server asks for, and what it is given: a password (Basic) or a token from the server that it names."""

    def __init__(self, client: Client, credential: Credential | None) -> None:
        self._client = client
        self._given = credential
        self._stored: list[Credential | None] = []
        self._lock = threading.RLock()
        self._basic = False
        self._bearer: dict[str, str] | None = None
        self._token: tuple[str, float] | None = None

    def header(self) -> str | None:
        """The Authorization header for the next request, once the server has asked for one."""
        with self._lock:
            if self._basic:
                credential = self._credential()
                return credential.basic() if credential is not None else None
            if self._bearer is None:
                return None
            if self._token is None or self._token[1] <= time.monotonic():
                self._token = self._fetch(self._bearer)
            return f"Bearer {self._token[0]}"

    def expect(self, response: Response) -> None:
        """Note what a 401 to a mere knock asks for; who has nothing to give may still be let in to what is public."""
        try:
            self.learn(response, None)
        except PycontainError:
            pass

    def learn(self, response: Response, sent: str | None) -> None:
        """Note what a 401 asks for; PycontainError where that cannot be given, or was given and refused."""
        with self._lock:
            asked = parse_challenges(response.headers.get("WWW-Authenticate", ""))
            found = {item.scheme: item.parameters for item in reversed(asked)}  # the first of a kind counts
            credential = self._credential()
            if "bearer" in found:
                if sent is not None and self._token is not None and sent == f"Bearer {self._token[0]}":
                    self._token = None  # it may have expired; a second refusal ends in _open
                if "realm" not in found["bearer"]:
                    raise PycontainError(f"{self._client.host} asks for a token and does not say from where")
                self._bearer, self._basic = found["bearer"], False
            elif "basic" in found:
                if sent is not None or credential is None or not credential.username:
                    raise self.refused(sent)
                self._basic = True
            else:
                names = ", ".join(printable(name) for name in found) or "no scheme at all"
                raise PycontainError(f"{self._client.host} asks for a login by {names}, wanted Basic or Bearer")

    def refused(self, sent: str | None) -> PycontainError:
        client, credential = self._client, self._credential()
        hint = f"pycontain login {client.endpoint.name}"
        if credential is None:
            what = f" for {client.repository}" if client.repository else ""
            return PycontainError(f"{client.host} wants a login{what} (401 unauthorized)", hint=hint)
        user = _user(credential)
        if sent is not None and sent.startswith("Bearer ") and client.repository:
            said = f"{client.host} does not let {user} pull {client.repository} (401 unauthorized)"
            return PycontainError(said, hint=hint)
        return PycontainError(f"{client.host} refuses the password of {user} (401 unauthorized)", hint=hint)

    def _credential(self) -> Credential | None:
        if self._given is not None:
            return self._given
        if not self._stored:
            found = CredentialFile.find(self._client.settings.environ).get(self._client.endpoint.name)
            self._stored.append(found)
        return self._stored[0]

    def _fetch(self, challenge: Mapping[str, str]) -> tuple[str, float]:
        """A token, and until when it may be used (monotonic seconds)."""
        client, credential = self._client, self._credential()
        if credential is not None and credential.registry_token:
            return credential.registry_token, float("inf")
        try:
            realm = parse_url(challenge["realm"])
        except PycontainError as error:
            raise PycontainError(f"{client.host} names a token server that is no such: {error.message}") from None
        if realm.scheme == "http" and not client.transport.may_be_plain(realm):
            raise PycontainError(
                f"{client.host} names a token server without TLS, {realm.scheme}://{realm.netloc}: refused",
                hint=f'to allow it, add to /etc/pycontain/config.toml: [registry."{realm.netloc}"] insecure = true',
            )
        query = {"service": challenge["service"]} if "service" in challenge else {}
        if client.scope:
            query["scope"] = client.scope
        if credential is not None and credential.identity_token:
            form = {**query, "grant_type": "refresh_token", "client_id": "pycontain"}
            body = urlencode({**form, "refresh_token": credential.identity_token}).encode()
            answer = self._ask("POST", realm, {"Content-Type": "application/x-www-form-urlencoded"}, body, None)
        else:
            authorization = None
            if credential is not None:
                query["account"] = credential.username
                authorization = credential.basic()
            target = f"{realm.target}{'&' if '?' in realm.target else '?'}{urlencode(query)}" if query else realm.target
            answer = self._ask("GET", realm.at(target), {}, None, authorization)
        return _token(answer, realm)

    def _ask(
        self, method: str, url: Url, headers: Mapping[str, str], body: bytes | None, authorization: str | None
    ) -> bytes:
        client = self._client
        # A server elsewhere must not make us talk to this machine.
        guarded = not client.transport.loopback(client.base) and url.origin != client.base.origin
        sent = {**headers, "Authorization": authorization} if authorization else headers

        def attempt() -> bytes:
            with client.transport.request(method, url, headers=sent, body=body, guarded=guarded) as response:
                client.check_busy(response)
                if response.status in (400, 401, 403):
                    credential = self._credential()
                    if credential is None:
                        raise self.refused(None)
                    raise PycontainError(
                        f"{url.netloc} refuses the password of {_user(credential)} ({response.reason()})",
                        hint=f"pycontain login {client.endpoint.name}",
                    )
                if response.status != 200:  # a redirect too: what is sent is a secret, and the realm is its place
                    raise PycontainError(f"token server {url.netloc} answers {response.reason()}")
                return response.read(_MAX_TOKEN, client.settings.read_timeout, "the token")

        return client.retrying(attempt)


def _user(credential: Credential) -> str:
    return f"user {credential.username!r}" if credential.username else "the stored token"


def _token(answer: bytes, realm: Url) -> tuple[str, float]:
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise PycontainError(f"token server {realm.netloc} answers something that is not a JSON object")
    token = value.get("token") or value.get("access_token")
    if not isinstance(token, str) or not token.isascii() or not token.isprintable() or len(token) > _MAX_TOKEN_TEXT:
        raise PycontainError(f"token server {realm.netloc} answers no token")
    life = value.get("expires_in")
    if isinstance(life, bool) or not isinstance(life, (int, float)) or not 0 < life < 1e9:
        life = _TOKEN_LIFE
    return token, time.monotonic() + life * 0.9
