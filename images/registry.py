"""A client of the distribution-spec 1.1 for one repository on one server: manifests and blobs, each verified.

The server is not trusted. What it names is checked against the digest and size that led there, the size of all else
is bounded, and so is where it sends us: a redirect carries no credentials to another origin, and leads neither from
https to http nor from a server elsewhere to this machine.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pycontain.images.auth import HUB, HUB_SERVER, Credential, CredentialFile, printable
from pycontain.images.descriptor import Descriptor, check_digest, new_hash
from pycontain.images.dialing import Dialer, RegistryUnreachable, Url, parse_url
from pycontain.images.ingest import Ingest
from pycontain.images.manifest import ACCEPT, INDEX_TYPES, MANIFEST_TYPES, MAX_DOCUMENT
from pycontain.images.reference import Reference
from pycontain.images.settings import Settings, split_mirror
from pycontain.images.tokens import Authorizer
from pycontain.images.transport import Response, Transport
from pycontain.runtime.errors import KernelError, NotFound, PycontainError, Unsupported

__all__ = ["Client", "Endpoint", "Pace", "RegistryUnreachable", "endpoints", "login", "logout"]

_T = TypeVar("_T")
_MAX_REDIRECTS = 5
_MAX_ERROR = 65536
_FRESH = 1 << 20  # bytes: a blob that got this much further has its tries again
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1"


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds between tries: ``base`` doubles up to ``cap``, half of it random; nobody makes us wait ``longest``."""

    base: float = 0.25
    cap: float = 8.0
    longest: float = 30.0

    def delay(self, failures: int) -> float:
        """Before the next try, after so many failures (1 or more)."""
        return min(self.cap, self.base * 2.0 ** min(failures - 1, 30)) * random.uniform(0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server to ask: where it is, the name under which its credentials are kept, and the path above its repositories.

    ``fixed``: the user wrote the scheme. Else https is tried, and plain http after it where that is allowed.
    """

    base: Url
    name: str
    prefix: str = ""
    fixed: bool = False

    @classmethod
    def of(cls, registry: str) -> Endpoint:
        """The server behind a reference's registry."""
        host = HUB_SERVER if registry == HUB else registry
        return cls(parse_url(f"https://{host}/"), registry)

    def __str__(self) -> str:
        return f"{self.base}{self.prefix}".rstrip("/") if self.fixed else self.base.netloc


def endpoints(registry: str, settings: Settings) -> list[Endpoint]:
    """The mirrors of a registry in their order, and then the registry itself."""
    found = []
    for mirror in settings.registry(registry).mirrors:
        scheme, host, prefix = split_mirror(mirror)
        found.append(Endpoint(parse_url(f"{scheme}://{host}/"), host, prefix, fixed=True))
    return [*found, Endpoint.of(registry)]


class Client:
    """Pulls from one repository on one server; threads may share it.

    ``repository`` is without registry; None where only a login is tried. ``credential`` replaces what is stored.
    ``note`` is told what a user may want to know (a retry, a warning of the server).
    """

    def __init__(
        self,
        transport: Transport,
        endpoint: Endpoint,
        repository: str | None,
        *,
        credential: Credential | None = None,
        pace: Pace | None = None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.base = endpoint.base
        self.transport = transport
        self.settings = transport.settings
        self.repository = "/".join(filter(None, (endpoint.prefix, repository)))
        self._pace = pace or Pace()
        self._note = note or (lambda text: None)
        self._warned: set[str] = set()
        self._auth = Authorizer(self, credential)
        if self.base.scheme == "http" and not transport.may_be_plain(self.base):
            raise PycontainError(
                f"{self.base.netloc} is not configured as insecure: plain http is refused",
                hint=f'add to /etc/pycontain/config.toml: [registry."{self.base.netloc}"] insecure = true',
            )

    @property
    def host(self) -> str:
        """For messages."""
        return self.base.netloc

    @property
    def scope(self) -> str:
        """What a token is asked for."""
        return f"repository:{self.repository}:pull" if self.repository else ""

    # The four requests

    def ping(self) -> None:
        """Is it there, does it speak TLS, what does it ask for?

        RegistryUnreachable unless its first answer comes within connect_timeout, all tries included.
        """

        def attempt() -> None:
            with self._reach() as response:
                self.check_busy(response)
                if response.status == 401 and response.url.origin == self.base.origin:
                    self._auth.expect(response)
                response.drain()

        self.retrying(attempt)

    def check_login(self) -> None:
        """Do the credentials work? PycontainError where the registry refuses them."""

        def attempt() -> None:
            with self._open("GET", "/v2/") as response:
                response.drain()

        self.retrying(attempt)

    def head(self, reference: str) -> Descriptor | None:
        """What a tag means now, by the headers alone; None where the registry does not say it that way.

        Unverified: only good for finding out that the same digest is here already.
        """
        target = f"/v2/{self.repository}/manifests/{reference}"

        def attempt() -> Descriptor | None:
            with self._open("HEAD", target, headers=_ACCEPT_MANIFEST) as response:
                digest, size = response.headers.get("Docker-Content-Digest"), response.length()
                media_type = _media_type(response)
                if digest is None or size is None or media_type not in INDEX_TYPES | MANIFEST_TYPES:
                    return None
                check_digest(digest)
                return Descriptor(media_type, digest, size)

        try:
            return self.retrying(attempt)
        except RegistryUnreachable:
            raise
        except PycontainError:  # a GET will say what is wrong, if it is
            return None

    def manifest(self, reference: str, expected: Descriptor | None = None) -> tuple[Descriptor, bytes]:
        """An index or manifest by tag or digest, at most 4 MiB, and its verified bytes; NotFound where there is none.

        With ``expected`` (of an index's entry) type and size must be the same.
        """
        if expected is not None and expected.size > MAX_DOCUMENT:
            size = f"{expected.size} bytes, more than {MAX_DOCUMENT}"
            raise PycontainError(f"{self.host}: manifest {expected.digest} is said to have {size}")

        target = f"/v2/{self.repository}/manifests/{reference}"

        def attempt() -> tuple[Descriptor, bytes]:
            with self._open("GET", target, self._image(reference), headers=_ACCEPT_MANIFEST) as response:
                data = response.read(MAX_DOCUMENT, self.settings.read_timeout, "the manifest")
                return self._verified(response, reference, expected, data), data

        return self.retrying(attempt)

    def blob(self, descriptor: Descriptor, ingest: Ingest, position: Callable[[int], None] | None = None) -> None:
        """Receive a blob into an entered ingest and commit it; ``position`` is told the bytes that are there.

        What broke off is resumed by Range (RFC 9110, 14.2). RegistryUnreachable leaves the partial content for another
        try; after every other error the ingest holds nothing.
        """
        position = position or (lambda count: None)
        failures = 0
        furthest = ingest.offset  # what was got before and lost again is no progress
        stitched = ingest.offset > 0
        try:
            while not ingest.done:
                try:
                    self._receive(descriptor, ingest, position)
                except RegistryUnreachable as error:
                    failures += 1
                    if ingest.offset >= furthest + _FRESH:
                        failures, furthest = 1, ingest.offset
                    stitched = stitched or ingest.offset > 0
                    self._wait(error, failures)
                    continue
                try:
                    ingest.commit()
                except PycontainError as error:
                    # The parts of a resumed blob may be of two minds; all of one piece has one more chance.
                    if not stitched or isinstance(error, KernelError):
                        raise
                    stitched = False
                    self._note(f"{descriptor.digest}: the resumed content does not match, fetched again from its start")
                    ingest.restart()
        except RegistryUnreachable:
            raise
        except Exception:
            ingest.discard()
            raise

    def _receive(self, descriptor: Descriptor, ingest: Ingest, position: Callable[[int], None]) -> None:
        """One GET of what is missing of a blob."""
        where = f"blob {descriptor.digest}"
        headers = {"Range": f"bytes={ingest.offset}-"} if ingest.offset else {}
        if ingest.offset == descriptor.size:  # an empty blob, or one that only its verification is missing of
            return
        target = f"/v2/{self.repository}/blobs/{descriptor.digest}"
        with self._open("GET", target, where, headers=headers, accept=(416,)) as response:
            if response.status == 416 or (response.status == 206 and not self._resumes(response, ingest, descriptor)):
                ingest.restart()
                raise RegistryUnreachable(f"{self.host} cannot resume {where}", reason="cut", transient=True)
            if response.status == 200 and ingest.offset:
                ingest.restart()
            left = descriptor.size - ingest.offset
            announced = response.length()
            if announced is not None and announced != left:
                raise PycontainError(
                    f"{self.host} announces {announced} bytes for {where}, of which {left} are missing"
                    if ingest.offset
                    else f"{self.host} announces {announced} bytes for {where}, its descriptor names {left}"
                )
            try:
                for data in response.chunks(left, self.settings.read_timeout):
                    ingest.write(data)
                    position(ingest.offset)
            except RegistryUnreachable as error:
                if error.reason == "cut" and error.transient:
                    raise self._truncated(descriptor, ingest) from error
                raise
        if ingest.offset < descriptor.size:
            raise self._truncated(descriptor, ingest)

    def _truncated(self, descriptor: Descriptor, ingest: Ingest) -> RegistryUnreachable:
        return RegistryUnreachable(
            f"{self.host} broke off after {ingest.offset} of {descriptor.size} bytes of blob {descriptor.digest}",
            reason="cut",
            transient=True,
        )

    def _resumes(self, response: Response, ingest: Ingest, descriptor: Descriptor) -> bool:
        """Is a 206 the part that was asked for (RFC 9110, 14.4)?"""
        found = response.headers.get("Content-Range", "")
        last = descriptor.size - 1
        return found in (f"bytes {ingest.offset}-{last}/{last + 1}", f"bytes {ingest.offset}-{last}/*")

    def _verified(
        self, response: Response, reference: str, expected: Descriptor | None, data: bytes
    ) -> Descriptor:
        what = self._image(reference)
        media_type = _media_type(response)
        if media_type == "":  # the header is only a SHOULD; then the document must say it itself
            media_type = _own_media_type(data)
        if media_type.startswith(_SCHEMA_1):
            raise Unsupported(f"{self.host}: {what} is a manifest of docker's schema 1, which is not supported")
        if media_type not in INDEX_TYPES | MANIFEST_TYPES:
            found = printable(media_type)
            raise Unsupported(f"{self.host}: {what} is of type {found!r}, wanted an image's manifest or index")
        for wanted, teller in ((response.headers.get("Docker-Content-Digest"), "its header"), (reference, "its name")):
            if wanted is None or ":" not in wanted:
                continue
            algorithm, encoded = check_digest(wanted)
            running = new_hash(algorithm)
            running.update(data)
            if running.hexdigest() != encoded:
                found = f"{algorithm}:{running.hexdigest()}"
                raise PycontainError(f"{self.host}: manifest {what} has digest {found}, {teller} says {wanted}")
        if expected is not None and (expected.media_type, expected.size) != (media_type, len(data)):
            raise PycontainError(
                f"{self.host}: manifest {what} is {len(data)} bytes of type {media_type!r}, "
                f"its index names {expected.size} of type {expected.media_type!r}"
            )
        if ":" in reference:
            return Descriptor(media_type, reference, len(data))
        running = new_hash("sha256")
        running.update(data)
        return Descriptor(media_type, f"sha256:{running.hexdigest()}", len(data))

    def _image(self, reference: str) -> str:
        return f"{self.repository}{'@' if ':' in reference else ':'}{reference}"

    def _reach(self) -> Response:
        until = time.monotonic() + self.settings.connect_timeout
        failures = 0
        while True:
            try:
                return self._follow("GET", self.base.at("/v2/"), {}, None, until=until)
            except RegistryUnreachable as error:
                plain = self._plain_twin(error)
                if plain is not None:
                    self.base = plain
                    continue
                failures += 1
                delay = self._pace.delay(failures)
                last = failures >= self.settings.attempts or time.monotonic() + delay >= until
                if not error.transient or error.reason == "timeout" or last:
                    error.transient = False
                    raise
                self._sleep(delay)

    def _plain_twin(self, error: RegistryUnreachable) -> Url | None:
        """Where plain http is to be tried after https failed, for a host with which that may be spoken."""
        if self.endpoint.fixed or self.base.scheme != "https" or not self.transport.may_be_plain(self.base):
            return None
        no_port = self.base.port == 443 and not self.endpoint.name.endswith(":443")
        if error.reason == "not-tls" or (error.reason == "refused" and no_port):
            return Url("http", self.base.host, 80 if no_port else self.base.port, "/")
        return None

    def _open(
        self,
        method: str,
        target: str,
        what: str = "/v2/",
        *,
        headers: Mapping[str, str] | None = None,
        accept: tuple[int, ...] = (),
    ) -> Response:
        """An answer of 200 or 206 (or ``accept``), logged in as far as the registry asks for it."""
        sent: str | None = None
        for _ in range(3):
            sent = self._auth.header()
            response = self._follow(method, self.base.at(target), headers or {}, sent)
            try:
                if response.status != 401 or response.url.origin != self.base.origin:
                    return self._check(response, what, accept)
                self._auth.learn(response, sent)
                response.drain()
            except BaseException:
                response.close()
                raise
            response.close()
        raise self._auth.refused(sent)

    def _follow(
        self,
        method: str,
        url: Url,
        headers: Mapping[str, str],
        authorization: str | None,
        *,
        until: float | None = None,
    ) -> Response:
        """Go where redirects lead: never from https to http, never from elsewhere to this machine, never with
        credentials to another origin, five times at most."""
        first = url
        guarded = False
        for _ in range(_MAX_REDIRECTS + 1):
            sent = dict(headers)
            if authorization is not None and url.origin == first.origin:
                sent["Authorization"] = authorization
            response = self.transport.request(method, url, headers=sent, guarded=guarded, until=until)
            location = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or location is None:
                self._warn(response)
                return response
            try:
                response.drain()
                target = url.join(location)
            except PycontainError as error:
                raise PycontainError(f"{url.netloc} redirects to where nobody may follow: {error.message}") from None
            finally:
                response.close()
            if url.scheme == "https" and target.scheme != "https":
                raise PycontainError(
                    f"{url.netloc} redirects from https to {target.scheme}://{target.netloc}: refused"
                )
            guarded = guarded or not self.transport.loopback(url)
            url, until = target, None
        raise PycontainError(f"{first.netloc} redirects more than {_MAX_REDIRECTS} times")

    def _check(self, response: Response, what: str, accept: tuple[int, ...]) -> Response:
        status = response.status
        if status in (200, 206, *accept):
            return response
        self.check_busy(response)
        said = _registry_says(response, self.settings.read_timeout)
        where = response.url.netloc
        if status == 404:
            raise NotFound(f"{where} has no {what} (404 not found{said})")
        if status in (401, 403):
            raise PycontainError(f"{where} denies access to {self.repository} ({response.reason()}{said})")
        raise PycontainError(f"{where} answers {response.reason()}{said}")

    def check_busy(self, response: Response) -> None:
        """429 and 5xx are for another time."""
        if response.status != 429 and response.status < 500:
            return
        limit = response.status == 429
        what = "allows no more requests for now" if limit else "has a problem of its own"
        said = _registry_says(response, self.settings.read_timeout)
        raise RegistryUnreachable(
            f"{response.url.netloc} {what} ({response.reason()}{said})",
            reason="rate-limit" if limit else "server",
            transient=True,
            retry_after=_retry_after(response.headers.get("Retry-After")),
        )

    def _warn(self, response: Response) -> None:
        """Warning headers (distribution-spec, "Warnings"): told once each, and nothing is done about them."""
        text = response.headers.get("Warning", "")
        if text.startswith('299 - "') and text.endswith('"') and len(self._warned) < 10 and text not in self._warned:
            self._warned.add(text)
            self._note(f"{response.url.netloc} warns: {printable(text[7:-1])}")

    def retrying(self, attempt: Callable[[], _T]) -> _T:
        failures = 0
        while True:
            try:
                return attempt()
            except RegistryUnreachable as error:
                failures += 1
                self._wait(error, failures)

    def _wait(self, error: RegistryUnreachable, failures: int) -> None:
        """Sleep before the next try, or raise the error where there is none."""
        if not error.transient or self.transport.stopped.is_set():
            raise error
        if failures >= self.settings.attempts:
            if failures > 1:
                error.message = f"{error.message}, tried {failures} times"
                error.args = (error.message,)
            error.transient = False
            raise error
        delay = self._pace.delay(failures)
        if error.retry_after is not None:
            if error.retry_after > self._pace.longest:
                error.message = f"{error.message}, to be tried again in {error.retry_after:.0f} s"
                error.args = (error.message,)
                error.transient = False
                raise error
            delay = max(delay, error.retry_after)
        self._note(f"{error.message}; next try in {delay:.1f} s")
        self._sleep(delay)

    def _sleep(self, seconds: float) -> None:
        self.transport.stopped.wait(seconds)


def login(
    registry: str,
    username: str,
    password: str,
    *,
    settings: Settings,
    dialer: Dialer | None = None,
    pace: Pace | None = None,
) -> str:
    """Try the password, and keep it only if the registry takes it; where it is kept (a path, or a helper's name).

    ``registry`` is host[:port]. Raises PycontainError where it is refused, RegistryUnreachable where nobody answers.
    """
    registry = _registry_name(registry)
    if ":" in username or not username:
        raise PycontainError(f"log in to {registry}: a user's name is not empty and has no colon")
    credential = Credential(username, password)
    with Transport(settings, dialer=dialer) as transport:
        try:
            client = Client(transport, Endpoint.of(registry), None, credential=credential, pace=pace)
            client.ping()
            client.check_login()
        except PycontainError as error:
            error.message = f"log in to {registry}: {error.message}"
            error.args = (error.message,)
            if not isinstance(error, RegistryUnreachable):
                error.hint = None  # "log in" is no advice here
            raise
    return CredentialFile.find(settings.environ).put(registry, credential)


def logout(registry: str, *, settings: Settings) -> bool:
    """Forget a registry's password; False where none was kept."""
    return CredentialFile.find(settings.environ).remove(_registry_name(registry))


def _registry_name(text: str) -> str:
    """Check host[:port] by the grammar of references."""
    name = text.removeprefix("https://").removeprefix("http://").rstrip("/")
    if name in ("index.docker.io", "index.docker.io/v1", HUB_SERVER):
        return HUB
    try:
        return Reference(name, "library/x" if name == HUB else "x", "x").registry
    except PycontainError:
        raise PycontainError(f"{text!r} is not a registry's host[:port]") from None


_ACCEPT_MANIFEST = {"Accept": ", ".join(ACCEPT)}


def _media_type(response: Response) -> str:
    """The Content-Type without its parameters."""
    return response.headers.get("Content-Type", "").partition(";")[0].strip().lower()


def _own_media_type(data: bytes) -> str:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return ""
    found = value.get("mediaType") if isinstance(value, dict) else None
    return found if isinstance(found, str) else ""


def _retry_after(text: str | None) -> float | None:
    """Retry-After (RFC 9110, 10.2.3): seconds, or a date."""
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    try:
        return max((parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None


def _registry_says(response: Response, seconds: float) -> str:
    """``: <what the body of an error says>`` (distribution-spec, "Error Codes"), or nothing."""
    try:
        value: Any = json.loads(response.read(_MAX_ERROR, min(seconds, 5.0), "error"))
        error = value["errors"][0]
        said = error.get("message") or error["code"]
    except (PycontainError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
    return f": {printable(said)}" if isinstance(said, str) and said else ""
