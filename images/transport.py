"""HTTP for registries: one request, no redirect, no retry, and no moment at which a peer can hold us forever.

urllib3 (imported with the first request) does the HTTP; names, sockets, certificates, proxies and time limits are
decided here. A socket timeout alone bounds only the silence between two bytes, so one watchdog thread shuts a
connection down when its deadline has passed: for connecting (name, TCP, proxy, TLS together), for the head of the
answer, and for the next few kilobytes of a body.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from pycontain.images.auth import HUB, HUB_SERVER, printable
from pycontain.images.dialing import (
    Dialer,
    Guard,
    RegistryUnreachable,
    Url,
    Watchdog,
    exempt,
    explain_tls,
    read_proxy,
    shown_proxy,
    trust,
)
from pycontain.images.settings import RegistrySettings, Settings, local_name, loopback_name
from pycontain.runtime.errors import PycontainError, errno_text

if TYPE_CHECKING:
    import urllib3

_STALL_BYTES = 4096
_CHUNK = 65536


class _Call(threading.local):
    """What the request of this thread may do; read by the connection that urllib3 picks for it."""

    deadline = 0.0  # for being connected, monotonic
    until: float | None = None  # for the head of the answer, where that is not read_timeout from now
    guarded = False  # local addresses are refused
    proxy: str | None = None  # its URL without a password, where it is asked
    guard: Guard | None = None


class Response:
    """One answer: ``status``, ``headers`` (case-insensitive) and a body that is read once; a context manager."""

    def __init__(self, transport: Transport, url: Url, raw: urllib3.BaseHTTPResponse, guard: Guard) -> None:
        self.url = url
        self.status = raw.status
        self.headers: Mapping[str, str] = raw.headers
        self._raw = raw
        self._guard = guard
        self._transport = transport

    def __enter__(self) -> Response:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def reason(self) -> str:
        """``404 not found``."""
        from http import HTTPStatus

        try:
            return f"{self.status} {HTTPStatus(self.status).phrase.lower()}"
        except ValueError:
            return str(self.status)

    def length(self) -> int | None:
        """Content-Length; None where there is none, PycontainError where it is no number."""
        text = self.headers.get("Content-Length")
        if text is None:
            return None
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise PycontainError(f"{self.url.netloc}: Content-Length {printable(text)!r} is not a number")
        return int(text)

    def chunks(self, size: int, seconds: float) -> Iterator[bytes]:
        """The body, until its end or until there is more than ``size`` bytes of it (one byte more is handed out).

        RegistryUnreachable (``timeout``) unless 4096 bytes come in every ``seconds``, or all of the rest of them.
        """
        left, window = size, 0
        self._guard.deadline = time.monotonic() + seconds
        while True:
            data = self._read(min(_CHUNK, left) if left else 1, seconds)
            if not data:
                return
            yield data
            if len(data) > left:
                return
            left -= len(data)
            window += len(data)
            if window >= _STALL_BYTES:
                window = 0
                self._guard.deadline = time.monotonic() + seconds

    def read(self, limit: int, seconds: float, what: str) -> bytes:
        """The whole of a small body within ``seconds``; PycontainError where it is larger than ``limit`` bytes."""
        announced = self.length()
        data = bytearray()
        if announced is None or announced <= limit:
            self._guard.deadline = time.monotonic() + seconds
            while len(data) <= limit and (chunk := self._read(min(_CHUNK, limit + 1 - len(data)), seconds)):
                data += chunk
            if len(data) <= limit:
                return bytes(data)
        raise PycontainError(f"{self.url.netloc}: {what} is larger than {limit} bytes")

    def drain(self) -> None:
        """Read what little is left, so that the connection can serve again; errors do not matter here."""
        try:
            self.read(_CHUNK, 1.0, "body")
        except PycontainError:
            pass

    def close(self) -> None:
        """Let go of the connection, which is closed unless the whole body was read."""
        self._transport.unwatch(self._guard)
        self._raw.close()
        self._raw.release_conn()

    def _read(self, size: int, seconds: float) -> bytes:
        import urllib3.exceptions as errors

        try:
            # read1: what has arrived, rather than waiting until `size` bytes are together
            data = self._raw.read1(size)
        except (errors.HTTPError, OSError, ValueError) as error:
            if self._guard.fired or isinstance(error, (errors.ReadTimeoutError, TimeoutError)):
                raise self._late(seconds) from None
            raise RegistryUnreachable(
                f"{self.url.netloc} broke off in the middle of its answer", reason="cut", transient=True
            ) from error
        if not data:
            if self._guard.fired:
                raise self._late(seconds)
            self._guard.deadline = float("inf")  # the connection may serve another thread already
        return data

    def _late(self, seconds: float) -> RegistryUnreachable:
        if self._transport.stopped.is_set():
            return RegistryUnreachable(f"{self.url.netloc}: stopped", reason="cut")
        return RegistryUnreachable(
            f"{self.url.netloc} is too slow: its answer stalled for {seconds:g} s", reason="timeout", transient=True
        )


class Transport:
    """Connections to registries, kept open for reuse; one per pull. Threads may share it."""

    def __init__(self, settings: Settings, *, dialer: Dialer | None = None) -> None:
        self.settings = settings
        self.stopped = threading.Event()
        self._dialer = dialer or Dialer()
        self._watchdog = Watchdog()
        self._call = _Call()
        self._lock = threading.Lock()
        self._managers: dict[tuple[str, str, int, bool], urllib3.PoolManager] = {}
        self._peers: dict[tuple[str, int], set[bool]] = {}

    def __enter__(self) -> Transport:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection; a request that is under way in another thread fails at once."""
        self.stopped.set()
        self._watchdog.fire_all()
        with self._lock:
            managers = list(self._managers.values())
            self._managers.clear()
        for manager in managers:
            manager.clear()

    def request(
        self,
        method: str,
        url: Url,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        guarded: bool = False,
        until: float | None = None,
    ) -> Response:
        """One request and the head of its answer, which must have come ``until`` then (monotonic seconds).

        ``guarded``: whoever named this URL must not reach services of this machine through us; loopback, unspecified
        and link-local addresses are refused with PycontainError, also where a name leads to them. RegistryUnreachable
        for everything that the network does.
        """
        import urllib3.exceptions as errors

        if self.stopped.is_set():
            raise RegistryUnreachable(f"{url.netloc}: stopped", reason="cut")
        if guarded and local_name(url.host):
            raise PycontainError(f"{url} is this machine, and a server elsewhere sent us there: refused")
        call = self._call
        call.until = until
        call.deadline = time.monotonic() + self.settings.connect_timeout if until is None else until
        call.proxy = shown_proxy(self.proxy_for(url))
        call.guarded = guarded and call.proxy is None
        call.guard = None
        manager = self._manager(url, guarded)
        try:
            raw = manager.urlopen(
                method,
                str(url),
                headers={"User-Agent": "pycontain", "Accept-Encoding": "identity", **headers},
                body=body,
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
                assert_same_host=False,
                timeout=self._timeout(),
            )
        except BaseException as error:
            if guard := self._guard():
                self.unwatch(guard)
                guard.abandon()
            if isinstance(error, (errors.HTTPError, OSError, ValueError)):
                raise self._explain(url, error, call) from error
            raise
        guard = self._guard()
        assert guard is not None
        if guard.fired:  # http.client takes a head that breaks off for a whole one
            self.unwatch(guard)
            guard.abandon()
            raise self._explain(url, TimeoutError(), call)
        return Response(self, url, raw, guard)

    def _guard(self) -> Guard | None:
        return self._call.guard

    def loopback(self, url: Url) -> bool:
        """Is this origin on this machine: by its name, or because every connection to it went to loopback?"""
        return loopback_name(url.host) or self._peers.get((url.host, url.port)) == {True}

    def unwatch(self, guard: Guard) -> None:
        """The answer on this connection is done with."""
        self._watchdog.remove(guard)

    def may_be_plain(self, url: Url) -> bool:
        """May plain http be spoken with this host: it is configured as insecure, or it is named as loopback?"""
        return loopback_name(url.host) or self._configured(url).insecure

    def proxy_for(self, url: Url) -> str | None:
        """The proxy of curl's variables, or None.

        Unlike curl's, a loopback name has none: its plain http, with passwords, would leave the machine.
        """
        environ = self.settings.environ
        if loopback_name(url.host) or exempt(url.host, environ.get("no_proxy") or environ.get("NO_PROXY") or ""):
            return None
        # HTTP_PROXY in upper case is not read: a CGI program's client sets it by sending the header "Proxy:".
        names = ["http_proxy"] if url.scheme == "http" else ["https_proxy", "HTTPS_PROXY"]
        for name in [*names, "all_proxy", "ALL_PROXY"]:
            if environ.get(name):
                return read_proxy(environ[name], name)
        return None

    def _configured(self, url: Url) -> RegistrySettings:
        name = HUB if url.host == HUB_SERVER else url.netloc
        return self.settings.registry(name if name in self.settings.registries else f"{url.host}:{url.port}")

    def _timeout(self) -> urllib3.Timeout:
        from urllib3 import Timeout

        return Timeout(connect=self.settings.connect_timeout, read=self.settings.read_timeout)

    def _manager(self, url: Url, guarded: bool) -> urllib3.PoolManager:
        key = (*url.origin, guarded)
        with self._lock:
            if self.stopped.is_set():
                raise RegistryUnreachable(f"{url.netloc}: stopped", reason="cut")
            found = self._managers.get(key)
            if found is None:
                found = self._managers[key] = self._make_manager(url)
            return found

    def _make_manager(self, url: Url) -> urllib3.PoolManager:
        import urllib3

        options: dict[str, Any] = {"num_pools": 2, "maxsize": self.settings.workers, "ssl_context": self._tls(url)}
        proxy = self.proxy_for(url)
        manager: urllib3.PoolManager
        if proxy is None:
            manager = urllib3.PoolManager(**options)
        else:
            parts = urlsplit(proxy)
            if parts.scheme not in ("http", "https"):
                raise RegistryUnreachable(
                    f"proxy {shown_proxy(proxy)}: only http and https proxies are spoken to",
                    reason="proxy",
                    hint="set https_proxy to an http proxy, or no_proxy=" + url.host,
                )
            headers = None
            if parts.username is not None:
                user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
                headers = urllib3.make_headers(proxy_basic_auth=user)
            host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
            port = parts.port or (443 if parts.scheme == "https" else 1080)
            manager = urllib3.ProxyManager(f"{parts.scheme}://{host}:{port}", proxy_headers=headers, **options)
        manager.pool_classes_by_scheme = self._pools(self._configured(url).insecure)
        return manager

    def _tls(self, url: Url) -> ssl.SSLContext | None:
        if url.scheme != "https":
            return None
        context = ssl.create_default_context()
        configured = self._configured(url)
        if configured.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            return context
        for name in {url.netloc, f"{url.host}:{url.port}"}:
            path = os.path.join(self.settings.certs_dir, name, "ca.crt")
            if os.path.exists(path):
                trust(context, path, path)
        if configured.ca is not None:
            trust(context, configured.ca, f'registry."{url.netloc}".ca: {configured.ca}')
        return context

    def _pools(self, unverified: bool) -> dict[str, Any]:
        """urllib3's classes, with our way to a socket and our deadlines."""
        from urllib3.connection import HTTPConnection, HTTPSConnection
        from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
        from urllib3.response import HTTPResponse

        transport = self

        class Plain(HTTPConnection):
            def _new_conn(self) -> socket.socket:
                return transport.dial(self._dns_host, self.port or 80)

            def connect(self) -> None:
                with transport.connecting():
                    super().connect()

            def getresponse(self) -> HTTPResponse:  # type: ignore[override]
                transport.answering(self.sock)
                return super().getresponse()

        class Tls(HTTPSConnection):
            def _new_conn(self) -> socket.socket:
                return transport.dial(self._dns_host, self.port or 443)

            def connect(self) -> None:
                with transport.connecting():
                    super().connect()
                # The settings asked for no verification; urllib3 would warn about it with every connection.
                self.is_verified = self.is_verified or unverified

            def getresponse(self) -> HTTPResponse:  # type: ignore[override]
                transport.answering(self.sock)
                return super().getresponse()

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = Plain

        class TlsPool(HTTPSConnectionPool):
            ConnectionCls = Tls

        return {"http": PlainPool, "https": TlsPool}

    # What the connections call back

    def dial(self, host: str, port: int) -> socket.socket:
        """A connected socket, within what is left of this thread's connect deadline."""
        call = self._call
        shown = f"proxy {call.proxy}" if call.proxy else (f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        candidates = self._resolve(host, port, call)
        local = [local_name(address[0]) for _, address in candidates]
        if call.guarded and any(local):
            address = candidates[local.index(True)][1][0]
            raise PycontainError(f"{shown} is {address}, this machine, and a server elsewhere sent us there: refused")
        failure: OSError | None = None
        for number, (family, address) in enumerate(candidates):
            left = call.deadline - time.monotonic()
            if left <= 0:
                break
            try:
                # An even share each, so that one dead route does not use up the time of the next address
                connection = self._dialer.connect(family, address, left / (len(candidates) - number))
            except OSError as error:
                failure = error
                continue
            connection.settimeout(max(call.deadline - time.monotonic(), 0.001))
            with self._lock:
                self._peers.setdefault((host, port), set()).add(loopback_name(address[0]))
            call.guard = self._watchdog.add(connection.dup(), call.deadline)
            return connection
        if failure is None or isinstance(failure, TimeoutError):
            reason, said = "timeout", f"no answer within {self.settings.connect_timeout:g} s"
        else:
            reason = "refused" if isinstance(failure, ConnectionRefusedError) else "route"
            said = errno_text(failure.errno or 0)
        raise RegistryUnreachable(
            f"connect to {shown}: {said}", reason="proxy" if call.proxy else reason, transient=reason != "timeout"
        )

    @contextmanager
    def connecting(self) -> Iterator[None]:
        """TCP, the proxy's part and the TLS handshake end at the connect deadline."""
        call = self._call
        fired = False
        try:
            try:
                yield
            finally:
                guard, call.guard = call.guard, None
                if guard is not None:
                    self._watchdog.remove(guard)
                    guard.connection.close()
                    fired = guard.fired
        except Exception:
            if not fired:
                raise
        if fired:
            raise TimeoutError

    def answering(self, connection: Any) -> None:
        """The head of the answer is awaited on this connection."""
        until = self._call.until
        until = time.monotonic() + self.settings.read_timeout if until is None else until
        self._call.guard = self._watchdog.add(connection, until)

    def _resolve(self, host: str, port: int, call: _Call) -> list[tuple[int, Any]]:
        """getaddrinfo knows no time limit, hence a thread of its own, left behind where it hangs."""
        done: list[list[tuple[int, Any]] | Exception] = []

        def work() -> None:
            try:
                done.append(self._dialer.resolve(host, port))
            except Exception as error:
                done.append(error)

        thread = threading.Thread(target=work, name="pycontain-resolve", daemon=True)
        thread.start()
        thread.join(max(call.deadline - time.monotonic(), 0))
        if not done:
            limit = f"{self.settings.connect_timeout:g} s"
            raise RegistryUnreachable(f"resolve {host}: no answer within {limit}", reason="timeout")
        if isinstance(done[0], list):
            return done[0]
        again = isinstance(done[0], socket.gaierror) and done[0].errno == socket.EAI_AGAIN
        said = done[0].strerror if isinstance(done[0], OSError) else None
        raise RegistryUnreachable(
            f"resolve {host}: {(said or 'not a name of a host').lower()}",
            reason="proxy" if call.proxy else "name",
            transient=again,
        )

    def _explain(self, url: Url, error: Exception, call: _Call) -> PycontainError:
        """urllib3's many exceptions as ours, by what the user can do about them."""
        import urllib3.exceptions as errors

        host = url.netloc
        if self.stopped.is_set():
            return RegistryUnreachable(f"{host}: stopped", reason="cut")
        original = error
        while isinstance(original, (errors.HTTPError, OSError)) and original.args:
            inner = getattr(original, "original_error", None) or original.args[-1]
            if not isinstance(inner, Exception):
                break
            original = inner
        fired = call.guard is not None and call.guard.fired
        if fired or isinstance(original, (errors.TimeoutError, TimeoutError)):
            connecting = call.guard is None or call.until is not None
            seconds = self.settings.connect_timeout if connecting else self.settings.read_timeout
            return RegistryUnreachable(f"{host} did not answer within {seconds:g} s", reason="timeout", transient=True)
        if isinstance(error, errors.ProxyError):
            said = printable(str(original)) or type(original).__name__
            return RegistryUnreachable(f"proxy {call.proxy} for {host}: {said[:1].lower()}{said[1:]}", reason="proxy")
        if isinstance(original, ssl.SSLError):
            return explain_tls(host, original)
        if isinstance(original, (errors.ProtocolError, OSError)):
            said = "closed the connection without an answer"
            if isinstance(original, OSError) and not isinstance(original, ConnectionError):
                said = f"cannot be talked to: {errno_text(original.errno or 0)}"
            return RegistryUnreachable(f"{host} {said}", reason="cut", transient=True)
        return PycontainError(f"{host} answers what is not HTTP: {printable(str(original))}")
