"""What HTTP stands on: URLs, sockets, time limits, trust and proxies, and the error for a network that fails."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

from pycontain.images.auth import printable
from pycontain.runtime.errors import PycontainError, errno_text

_MAX_URL = 8192
_TICK = 0.05
_UNKNOWN_AUTHORITY = (2, 18, 19, 20, 21)  # X509_V_ERR_*: no issuer, or self-signed
_WRONG_NAME = (62, 64)
# What OpenSSL calls an answer that is not TLS at all
_NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "UNEXPECTED_EOF_WHILE_READING")


class RegistryUnreachable(PycontainError):
    """No answer, or none to work with, for a reason of the network and not of the image.

    ``reason``: ``name``, ``route``, ``refused``, ``timeout``, ``proxy``, ``tls``, ``not-tls``, ``cut`` (broke off),
    ``rate-limit`` (429) or ``server`` (5xx). ``transient`` says that trying again may help, after
    ``retry_after`` seconds where the registry named a time.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        hint: str | None = None,
        transient: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.reason = reason
        self.transient = transient
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Url:
    """An absolute http or https URL. ``host`` has no brackets; ``target`` is the path with its query."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def netloc(self) -> str:
        """host[:port] as a user writes it: without the scheme's own port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.target}"

    def at(self, target: str) -> Url:
        """Another path of the same origin."""
        return Url(self.scheme, self.host, self.port, target)

    def join(self, location: str) -> Url:
        """What a Location header means here (RFC 9110, 10.2.2); PycontainError where it cannot be followed."""
        text = location.strip()
        try:
            return parse_url(urljoin(str(self), text))
        except ValueError:  # urljoin's own, of brackets that are not closed
            raise PycontainError(f"{printable(text)!r} is not a URL") from None


def parse_url(text: str) -> Url:
    """Read an absolute URL strictly; PycontainError for another scheme, a user in it, or what no URL has."""
    shown = printable(text)
    if len(text) > _MAX_URL or not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
        raise PycontainError(f"{shown!r} is not a URL")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise PycontainError(f"{shown!r} is not a URL") from None
    if parts.scheme not in ("http", "https"):
        raise PycontainError(f"{shown!r} is neither http nor https")
    if not parts.hostname or port == 0:
        raise PycontainError(f"{shown!r} names no host")
    if "@" in parts.netloc:
        raise PycontainError(f"{parts.scheme}://{parts.hostname}: a URL with a user in it is refused")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Url(parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80), target)


class Dialer:
    """Names to addresses to sockets; what tests replace to stand for a network that they do not have."""

    def resolve(self, host: str, port: int) -> list[tuple[int, Any]]:
        """Address family and socket address of each candidate, best first; socket.gaierror as getaddrinfo."""
        return [
            (family, address) for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        ]

    def connect(self, family: int, address: Any, timeout: float) -> socket.socket:
        """A connected stream; OSError as connect(2)."""
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout)
            connection.connect(address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            connection.close()
            raise
        return connection


class Guard:
    """One socket and the moment (monotonic seconds) at which it is shut down."""

    __slots__ = ("connection", "deadline", "fired")

    def __init__(self, connection: Any, deadline: float) -> None:
        self.connection = connection
        self.deadline = deadline
        self.fired = False

    def fire(self) -> None:
        """Wake whoever waits for this socket, with an end of file."""
        self.fired = True
        try:
            # Not SSLSocket.shutdown: that forgets the TLS layer, and a reader would go on with ciphertext.
            socket.socket.shutdown(self._inner(), socket.SHUT_RDWR)
        except OSError:
            pass

    def abandon(self) -> None:
        """Close for good: where reading a head failed, urllib3 forgets the file that keeps the socket open."""
        fd = self._inner().detach()
        if fd >= 0:
            os.close(fd)

    def _inner(self) -> socket.socket:
        found: socket.socket = getattr(self.connection, "socket", self.connection)  # TLS in the TLS of a proxy
        return found


class Watchdog:
    """Shuts down what is late; its thread lives while something is watched."""

    def __init__(self) -> None:
        self._guards: set[Guard] = set()
        self._lock = threading.Lock()
        self._running = False
        self._ended = False

    def add(self, connection: Any, deadline: float) -> Guard:
        guard = Guard(connection, deadline)
        with self._lock:
            if self._ended:
                guard.fire()
            self._guards.add(guard)
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="pycontain-deadlines", daemon=True).start()
        return guard

    def remove(self, guard: Guard) -> None:
        with self._lock:
            self._guards.discard(guard)

    def fire_all(self) -> None:
        """Shut down everything, and whatever is added from now on."""
        with self._lock:
            self._ended = True
            for guard in self._guards:
                guard.fire()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._guards:
                    self._running = False
                    return
                now = time.monotonic()
                for guard in self._guards:
                    if not guard.fired and guard.deadline <= now:
                        guard.fire()
            time.sleep(_TICK)


def explain_tls(host: str, error: ssl.SSLError) -> RegistryUnreachable:
    if isinstance(error, ssl.SSLCertVerificationError):
        said = error.verify_message.rstrip(".")
        said = said[:1].lower() + said[1:]
        if error.verify_code in _WRONG_NAME:
            return RegistryUnreachable(f"{host}: its certificate is for another name ({said})", reason="tls")
        if error.verify_code in _UNKNOWN_AUTHORITY:
            return RegistryUnreachable(
                f"{host}: its certificate is from an unknown authority ({said})",
                reason="tls",
                hint=f'add to /etc/pycontain/config.toml: [registry."{host}"] ca = "/path/of/its/ca.crt"',
            )
        return RegistryUnreachable(f"{host}: its certificate is refused ({said})", reason="tls")
    name = (error.reason or type(error).__name__).lower().replace("_", " ")
    if error.reason in _NOT_TLS or isinstance(error, ssl.SSLEOFError):
        return RegistryUnreachable(
            f"{host} does not speak TLS ({name})",
            reason="not-tls",
            hint=f'if that is meant so, add to /etc/pycontain/config.toml: [registry."{host}"] insecure = true',
        )
    return RegistryUnreachable(f"{host}: TLS failed ({name})", reason="tls")


def trust(context: ssl.SSLContext, path: str, shown: str) -> None:
    try:
        context.load_verify_locations(cafile=path)
    except ssl.SSLError:
        raise PycontainError(f"{shown}: no certificate in PEM form is in this file") from None
    except OSError as error:
        raise PycontainError(f"{shown}: {errno_text(error.errno or 0)}") from error


def exempt(host: str, rules: str) -> bool:
    """Is this host named by no_proxy, as curl reads it: names and what is below them, addresses, networks, ``*``?"""
    import ipaddress

    try:
        address: Any = ipaddress.ip_address(host)
    except ValueError:
        address = None
    name = host.rstrip(".").lower()
    for rule in rules.replace(",", " ").lower().split():
        if rule == "*":
            return True
        if address is not None:
            try:
                if address in ipaddress.ip_network(rule.strip("[]"), strict=False):
                    return True
            except ValueError:
                pass
            continue
        rule = rule.strip(".")
        if rule and (name == rule or name.endswith("." + rule)):
            return True
    return False


def read_proxy(text: str, variable: str) -> str:
    """The URL of a proxy, which may be written as host:port; never shown, as there may be a password in it."""
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        fine = bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise RegistryUnreachable(
            f"the proxy in the variable {variable} is not a URL", reason="proxy", hint=f"unset {variable}"
        )
    return url


def shown_proxy(proxy: str | None) -> str | None:
    """A proxy's URL without the user and password in it."""
    if proxy is None:
        return None
    parts = urlsplit(proxy)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
