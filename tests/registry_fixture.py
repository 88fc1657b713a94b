"""Registries for tests, on loopback only: Debian's docker-registry, and one of our own that misbehaves on demand."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import socket
import ssl
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pycontain.images.dialing import Dialer

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# Images


@dataclass
class Image:
    """A made-up image: its documents and blobs by digest."""

    manifest: bytes
    config: bytes
    layers: list[bytes]

    @property
    def digest(self) -> str:
        return sha256(self.manifest)

    @property
    def blobs(self) -> dict[str, bytes]:
        return {sha256(data): data for data in (self.config, *self.layers)}


def descriptor(media_type: str, data: bytes, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": sha256(data), "size": len(data), **more}


def layer_of(files: dict[str, bytes]) -> bytes:
    """A tar of plain files, not compressed."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def make_image(
    *tars: bytes, architecture: str = "amd64", manifest_type: str = OCI_MANIFEST, compressed: list[bytes] | None = None
) -> Image:
    """An image of these layers (tars; compressed here unless that is given)."""
    layers = compressed or [gzip.compress(tar, mtime=0, compresslevel=1) for tar in tars]
    rootfs = {"type": "layers", "diff_ids": [sha256(tar) for tar in tars]}
    config = json.dumps({"os": "linux", "architecture": architecture, "config": {}, "rootfs": rootfs}).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": manifest_type,
        "config": descriptor(OCI_CONFIG, config),
        "layers": [descriptor(OCI_LAYER_GZIP, layer) for layer in layers],
    }
    return Image(json.dumps(manifest).encode(), config, layers)


def tiny_image(*, size: int = 20_000, layers: int = 2) -> Image:
    """Layers of bytes that do not compress, so that a blob is about ``size`` bytes."""
    content = [hashlib.shake_256(b"layer %d" % number).digest(size) for number in range(layers)]
    return make_image(*(layer_of({f"file{number}": data}) for number, data in enumerate(content)))


def write_layout(folder: Path, image: Image, tag: str) -> None:
    """An OCI image layout with one image."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for digest, data in {**image.blobs, image.digest: image.manifest}.items():
        (blobs / digest.partition(":")[2]).write_bytes(data)
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    entry = descriptor(OCI_MANIFEST, image.manifest, annotations={"org.opencontainers.image.ref.name": tag})
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))


# Certificates


@dataclass
class Authority:
    """A certificate authority of the test's own, made with openssl."""

    folder: Path

    @property
    def ca(self) -> str:
        return str(self.trust / "ca.crt")

    @property
    def trust(self) -> Path:
        """A folder with nothing but the authority, as --cert-dir and certs.d want it."""
        return self.folder / "trust"

    def certificate(self, names: str = "DNS:localhost,IP:127.0.0.1", name: str = "server") -> tuple[str, str]:
        """Certificate and key for these subject alternative names."""
        key, request, crt = (str(self.folder / f"{name}.{end}") for end in ("key", "csr", "crt"))
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={names}\n")
        _openssl("req", "-newkey", "ec", *_CURVE, "-nodes", "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        signing = ["-CA", self.ca, "-CAkey", str(self.folder / "ca.key"), "-CAcreateserial", "-days", "2"]
        _openssl("x509", "-req", "-in", request, *signing, "-extfile", str(extensions), "-out", crt)
        return crt, key


_CURVE = ["-pkeyopt", "ec_paramgen_curve:prime256v1"]


def make_authority(folder: Path) -> Authority:
    made = Authority(folder)
    made.trust.mkdir(parents=True)
    key = str(folder / "ca.key")
    subject = ["-subj", "/CN=test authority", "-days", "2"]
    _openssl("req", "-x509", "-newkey", "ec", *_CURVE, "-nodes", "-keyout", key, "-out", made.ca, *subject)
    return made


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=20)


# Debian's registry


@dataclass
class Registry:
    """A running docker-registry."""

    port: int
    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def host(self) -> str:
        return f"localhost:{self.port}"

    def blob(self, digest: str) -> Path:
        """Where it keeps a blob."""
        algorithm, _, encoded = digest.partition(":")
        return self.folder / f"data/docker/registry/v2/blobs/{algorithm}/{encoded[:2]}/{encoded}/data"


@contextlib.contextmanager
def docker_registry(
    folder: Path, *, tls: tuple[str, str] | None = None, user: tuple[str, str] | None = None
) -> Iterator[Registry]:
    """Run docker-registry on 127.0.0.1. ``tls`` is certificate and key, ``user`` a name and password."""
    for _ in range(5):
        port = free_port()
        process = spawn_registry(folder, port, tls, user)
        try:
            if answers(process, port):
                yield Registry(port, process, folder)
                return
        finally:
            process.kill()
            process.wait()
    raise AssertionError(f"docker-registry does not start: {(folder / 'log').read_text()}")


def spawn_registry(
    folder: Path, port: int, tls: tuple[str, str] | None, user: tuple[str, str] | None
) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    http: dict[str, Any] = {"addr": f"127.0.0.1:{port}", "secret": "not a secret"}
    config: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": http,
    }
    if tls is not None:
        http["tls"] = {"certificate": tls[0], "key": tls[1]}
    if user is not None:
        made = subprocess.run(["htpasswd", "-Bbn", "-C", "4", *user], check=True, capture_output=True, timeout=20)
        (folder / "htpasswd").write_bytes(made.stdout)
        config["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    with open(folder / "log", "wb") as log:
        command = ["docker-registry", "serve", str(folder / "config.yml")]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def answers(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return True
        except OSError:
            time.sleep(0.02)
    return False


# A registry that misbehaves


@dataclass
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


@dataclass
class Answer:
    """``length`` replaces Content-Length; None leaves it out, and the connection ends the body."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | str | None = "right"


Raw = Callable[[socket.socket], None]
Rule = Callable[[Request], "Answer | Raw | None"]


class Hostile:
    """A registry in this process. A rule may answer a request, or take over the connection, or leave it to the next.

    Without rules it is a good registry for ``images`` (by ``repository:tag``); ``requests`` is what it was asked.
    """

    def __init__(self, *, tls: tuple[str, str] | None = None) -> None:
        self.requests: list[Request] = []
        self.rules: list[Rule] = []
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self._context: ssl.SSLContext | None = None
        if tls is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(*tls)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def host(self) -> str:
        return f"localhost:{self.port}"

    def add(self, image: Image, tag: str = "1", media_type: str = OCI_MANIFEST) -> Image:
        self.manifests[tag] = self.manifests[image.digest] = (media_type, image.manifest)
        self.blobs.update(image.blobs)
        return image

    def asked(self, part: str) -> list[Request]:
        return [request for request in self.requests if part in request.target]

    def on(self, part: str, answer: Answer | Raw, *, times: int = 1 << 30) -> None:
        """Answer requests whose target contains ``part``, the first ``times`` of them."""
        left = [times]

        def rule(request: Request) -> Answer | Raw | None:
            if part not in request.target or left[0] <= 0:
                return None
            left[0] -= 1
            return answer

        self.rules.append(rule)

    def __enter__(self) -> Hostile:
        return self

    def __exit__(self, *_: object) -> None:
        self.die()
        for thread in self._threads:
            thread.join(10)

    def die(self) -> None:
        """Listen no more, and close every connection."""
        with contextlib.suppress(OSError):  # close() alone does not wake a thread that is blocked in accept()
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with self._lock:
                self._connections.add(connection)
            if self._context is not None:
                connection.settimeout(10)
                connection = self._context.wrap_socket(connection, server_side=True)
            elif connection.recv(1, socket.MSG_PEEK) == b"\x16":  # a TLS handshake, and this is plain http
                connection.sendall(head(400, Content_Length=0))
                return
            connection.settimeout(20)
            with self._lock:
                self._connections.add(connection)
            with connection.makefile("rb") as stream:
                while (request := self._read(stream)) is not None:
                    self.requests.append(request)
                    answer = self._answer(request)
                    if not isinstance(answer, Answer):
                        answer(connection)
                        return
                    if not self._send(connection, request, answer):
                        return
        except (OSError, ValueError):
            pass
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()

    def _read(self, stream: Any) -> Request | None:
        first = stream.readline(65536).decode("latin-1").split()
        if len(first) != 3:
            return None
        headers: dict[str, str] = {}
        while line := stream.readline(65536).decode("latin-1").strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return Request(first[0], first[1], headers, stream.read(int(headers.get("content-length", "0"))))

    def _answer(self, request: Request) -> Answer | Raw:
        for rule in list(self.rules):
            found = rule(request)
            if found is not None:
                return found
        name = request.path.rpartition("/")[2]
        if request.path == "/v2/":
            return Answer(body=b"{}")
        if "/manifests/" in request.path and name in self.manifests:
            media_type, data = self.manifests[name]
            return Answer(body=data, headers={"Content-Type": media_type, "Docker-Content-Digest": sha256(data)})
        if "/blobs/" in request.path and name in self.blobs:
            return ranged(request, self.blobs[name])
        return Answer(404, b'{"errors":[{"code":"NAME_UNKNOWN","message":"unknown here"}]}')

    def _send(self, connection: socket.socket, request: Request, answer: Answer) -> bool:
        head = [f"HTTP/1.1 {answer.status} Whatever", *(f"{name}: {value}" for name, value in answer.headers.items())]
        if answer.length is not None:
            head.append(f"Content-Length: {len(answer.body) if answer.length == 'right' else answer.length}")
        body = b"" if request.method == "HEAD" else answer.body
        connection.sendall("\r\n".join([*head, "", ""]).encode("latin-1") + body)
        return answer.length == "right"


def ranged(request: Request, data: bytes) -> Answer:
    """The whole of some content, or what a Range header asks of it."""
    wanted = request.headers.get("range", "")
    if not wanted:
        return Answer(body=data, headers={"Content-Type": "application/octet-stream"})
    start = int(wanted.removeprefix("bytes=").rstrip("-"))
    if start >= len(data):
        return Answer(416)
    return Answer(206, data[start:], {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})


def head(status: int = 200, **headers: Any) -> bytes:
    """The head of an answer, for rules that write to the connection themselves."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([f"HTTP/1.1 {status} Whatever", *lines, "", ""]).encode()


def drip(data: bytes, every: float) -> Raw:
    """One byte now and then, until the other side has had enough."""

    def run(connection: socket.socket) -> None:
        for byte in data:
            connection.sendall(bytes([byte]))
            time.sleep(every)

    return run


def sends(data: bytes) -> Raw:
    """Write this and close."""

    def run(connection: socket.socket) -> None:
        connection.sendall(data)

    return run


def silent(connection: socket.socket) -> None:
    """Never answer; ends when the other side closes."""
    with contextlib.suppress(OSError):
        while connection.recv(4096):
            pass


class Network(Dialer):
    """Stands for a network: names lead to 198.51.100.x (which no machine has), and those to 127.0.0.1, port by port."""

    def __init__(self, **names: str) -> None:
        self.names = {name.replace("_", "."): address for name, address in names.items()}
        self.dialed: list[str] = []

    def resolve(self, host: str, port: int) -> list[tuple[int, Any]]:
        return [(socket.AF_INET, (self.names.get(host, host), port))]

    def connect(self, family: int, address: Any, timeout: float) -> socket.socket:
        self.dialed.append(address[0])
        if address[0].startswith("198.51.100."):
            address = ("127.0.0.1", address[1])
        return super().connect(family, address, timeout)


class NoHub(Network):
    """Only this machine; the hub cannot be reached, whatever network there is."""

    def resolve(self, host: str, port: int) -> list[tuple[int, Any]]:
        if host != "localhost":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return super().resolve("127.0.0.1", port)


class Proxy:
    """An http proxy that finds every host on 127.0.0.1; ``heads`` is what it was sent, ``status`` what it answers."""

    def __init__(self, status: int = 200) -> None:
        self.heads: list[bytes] = []
        self._status = status
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._sockets):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.add(connection)
            self._start(self._serve, connection)

    def _start(self, target: Callable[..., None], *arguments: Any) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            received = b""
            while b"\r\n\r\n" not in received:
                if not (data := client.recv(65536)):
                    return
                received += data
            self.heads.append(received)
            method, target, _ = received.split(b" ", 2)
            if self._status != 200:
                client.sendall(head(self._status, Content_Length=0))
                return
            authority = target if method == b"CONNECT" else target.split(b"/")[2]
            with socket.create_connection(("127.0.0.1", int(authority.rpartition(b":")[2])), 5) as server:
                self._sockets.add(server)
                if method == b"CONNECT":
                    client.sendall(head(200))
                else:
                    server.sendall(received.replace(b"http://" + authority, b"", 1))
                back = self._start(_relay, server, client)
                _relay(client, server)
                back.join(10)


def _relay(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)


def store_is_clean(root: str) -> bool:
    """Nothing of a failed pull is left: no blob, no partial content, no name."""
    kinds = ("blobs/sha256", "blobs/sha512", "ingest")
    left = [name for kind in kinds for name in os.listdir(os.path.join(root, kind))]
    return not left and not os.path.exists(os.path.join(root, "refs.json"))


def visible(root: str) -> list[str]:
    """The digests that a store has as content."""
    folder = os.path.join(root, "blobs", "sha256")
    return sorted("sha256:" + name for name in os.listdir(folder))


def partial(root: str) -> dict[str, int]:
    """What waits to be resumed: digests and bytes."""
    folder = os.path.join(root, "ingest")
    return {name.replace("-", ":"): os.stat(os.path.join(folder, name)).st_size for name in os.listdir(folder)}
