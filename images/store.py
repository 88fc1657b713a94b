"""The content store: blobs by digest, names, and what must not be collected.

    blobs/sha256/<hex>   whole, verified content; appears by rename, never changes
    ingest/<alg>-<hex>   what was received of a blob so far, flocked while somebody writes it
    layers/<hex>/        an unpacked layer by chain id (rootfs.py); appears by rename
    refs.json            {"version": 1, "refs": {name: descriptor}}, replaced atomically under refs.lock
    pins/<name>          one per running user of content: the digests it relies on, flocked while it lives
    trash/<name>         on its way out
    lock                 shared for the instant in which a pin notes a digest; exclusive for a collection's decision

Why nothing is lost: whoever holds a pin notes each digest *and* looks for its file inside one shared lock, so a
collection (exclusive) sees either the note, and keeps the file, or comes before, and the file is found missing. Under
the exclusive lock a collection only reads and renames; what it renamed to the trash is deleted afterwards, so nobody
waits for a deletion, and a long pull never blocks a prune. A pin dies with its process: its flock is gone, and the next
collection removes it.
"""

from __future__ import annotations

import fcntl
import os
from _thread import allocate_lock

from pycontain.images.descriptor import Descriptor, check_digest, digest_of, new_hash, small_digest
from pycontain.images.failure import trying
from pycontain.images.ingest import Ingest, write_all
from pycontain.runtime import jsontext
from pycontain.runtime.errors import NotFound, PycontainError, SpecError
from pycontain.runtime.light import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from contextlib import AbstractContextManager
    from typing import Any, BinaryIO

    from pycontain.images.compression import Source

__all__ = ["Descriptor", "Ingest", "Pin", "Store"]

VERSION = 1
_MAX_REFS = 64 << 20
_MAX_DOCUMENT = 4 << 20  # manifests, indexes and configs; nothing larger is searched for digests
_CHUNK = 1 << 20


class Pin:
    """What one user of the store relies on; see `Store.pin`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        os.write(self._fd, b'{"version":%d}\n' % VERSION)
        self._seen: set[str] = set()

    def note(self, name: str) -> None:
        """Add a digest, or ``layer:<hex>``; the caller holds the store's shared lock."""
        if name not in self._seen:
            os.write(self._fd, name.encode() + b"\n")
            self._seen.add(name)

    def release(self) -> None:
        # Unlinked before the lock goes: a collection that sees the file sees it locked or dead.
        os.unlink(self._path)
        os.close(self._fd)


class Store:
    """Content below one directory (mode 0700, made where missing). Safe among threads and processes."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        self._pins: list[Pin] = []
        self._mutex = allocate_lock()
        with trying(f"make the image store {self.root}"):
            for name in ("blobs/sha256", "blobs/sha512", "ingest", "layers", "pins", "trash"):
                os.makedirs(os.path.join(self.root, name), 0o700, exist_ok=True)
            for name in ("", "blobs", "layers"):  # makedirs gives its mode to the last directory only
                if os.stat(os.path.join(self.root, name)).st_mode & 0o077:
                    os.chmod(os.path.join(self.root, name), 0o700)

    # Content

    def has(self, digest: str) -> bool:
        """Is the whole blob here? Under a pin, it then stays."""
        blob = self._blob(digest)
        with self._noting(digest):
            return os.path.exists(blob)

    def path(self, digest: str) -> str:
        """The blob's file, for reading; NotFound where it is missing."""
        if not self.has(digest):
            raise NotFound(f"blob {digest} is not in the store {self.root}")
        return self._blob(digest)

    def open(self, digest: str) -> BinaryIO:
        """The blob, for reading as a stream; it stays readable even when it is collected meanwhile."""
        try:
            return open(self.path(digest), "rb")
        except FileNotFoundError:
            raise NotFound(f"blob {digest} is not in the store {self.root}") from None

    def size(self, digest: str) -> int:
        """Bytes of a blob; NotFound where it is missing."""
        return os.stat(self.path(digest)).st_size

    def read(self, digest: str, limit: int) -> bytes:
        """The bytes of a small blob, verified again; PycontainError where it has more than ``limit`` of them."""
        with self.open(digest) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise PycontainError(f"blob {digest} is larger than {limit} bytes")
        algorithm, encoded = check_digest(digest)
        found = small_digest(algorithm, data)
        if found != encoded:
            raise PycontainError(
                f"blob {digest} in {self.root} is damaged: its content has digest {algorithm}:{found}",
                hint="remove the image with rmi and pull it again",
            )
        return data

    def put(self, data: bytes, *, media_type: str) -> Descriptor:
        """Add bytes whose digest is not known beforehand (sha256)."""
        descriptor = Descriptor(media_type, digest_of(data), len(data))
        with self.ingest(descriptor.digest, len(data)) as ingest:
            ingest.restart()
            ingest.write(data)
            ingest.commit()
        return descriptor

    def put_stream(self, stream: Source, *, media_type: str, limit: int | None = None) -> Descriptor:
        """Add a stream of unknown digest (sha256); PycontainError beyond ``limit`` bytes."""
        running, size = new_hash("sha256"), 0
        with trying(f"write to the image store {self.root}"):
            with self._shared():
                name = os.path.join(self.root, "ingest", "new-" + os.urandom(8).hex())
                fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                fcntl.flock(fd, fcntl.LOCK_EX)
            try:
                while data := stream.read(_CHUNK):
                    size += len(data)
                    if limit is not None and size > limit:
                        raise PycontainError(f"content is larger than {limit} bytes")
                    running.update(data)
                    write_all(fd, data)
                digest = "sha256:" + running.hexdigest()
                os.fsync(fd)
                with self._noting(digest):
                    self._move(name, self._blob(digest))
            except BaseException:
                os.unlink(name)
                raise
            finally:
                os.close(fd)
        return Descriptor(media_type, digest, size)

    def ingest(self, digest: str, size: int | None) -> Ingest:
        """Receive a blob of known digest (and size, if not None); use it as a context manager."""
        algorithm, encoded = check_digest(digest)
        with self._noting(digest):
            pass
        partial = os.path.join(self.root, "ingest", f"{algorithm}-{encoded}")
        return Ingest(partial, self._blob(digest), digest, size, self._commit)

    # Protection

    @contextmanager
    def pin(self) -> Iterator[None]:
        """While held, what this Store object adds, reads or finds present is not collected.

        Hold it until something else refers to the content: a reference, or a container's record.
        """
        with self._shared():
            pin = Pin(os.path.join(self.root, "pins", f"{os.getpid()}-{os.urandom(8).hex()}"))
            with self._mutex:
                self._pins.append(pin)
        try:
            yield
        finally:
            with self._mutex:
                self._pins.remove(pin)
            pin.release()

    def note_layer(self, chain: str) -> str:
        """The directory of an unpacked layer (there or not); under a pin it stays."""
        _, encoded = check_digest(chain)
        with self._noting("layer:" + encoded):
            return os.path.join(self.root, "layers", encoded)

    # Names

    def set_ref(self, name: str, descriptor: Descriptor) -> None:
        """Let a name (a complete reference) mean this manifest or index."""

        def change(refs: dict[str, Any]) -> None:
            refs[name] = descriptor.to_json()

        with self._noting(descriptor.digest):
            if not os.path.exists(self._blob(descriptor.digest)):
                raise NotFound(f"image {name}: blob {descriptor.digest} is not in the store {self.root}")
            self._change_refs(change)

    def get_ref(self, name: str) -> Descriptor:
        """What a name means; NotFound where it means nothing. Under a pin, its content stays."""
        with self._shared():
            refs = self._read_refs()
            if name in refs:
                self._note(refs[name].digest)
                return refs[name]
        raise NotFound(f"image {name} is not in the store", hint=f"pycontain pull {name}")

    def refs(self) -> dict[str, Descriptor]:
        """Every name and what it means, in the order of the names."""
        return dict(sorted(self._read_refs().items()))

    def remove_ref(self, name: str) -> None:
        """Forget a name; its content goes with the next collection. NotFound where it means nothing."""

        def change(refs: dict[str, Any]) -> None:
            if refs.pop(name, None) is None:
                raise NotFound(f"image {name} is not in the store")

        self._change_refs(change)

    # Collection

    def gc(
        self,
        in_use_layers: Iterable[str] | Callable[[], Iterable[str]],
        derived: Callable[[Collection[str]], int] | None = None,
    ) -> int:
        """Remove what no name, container or pin needs: blobs, layers, broken-off ingests; the freed bytes.

        ``in_use_layers``: chain ids, or lower directories as `rootfs.ensure_layers` returned them. Give a function
        where containers may be created meanwhile: it is called when no pin can be taken or used, and after the pins
        were read, so a container that was recorded before its pin was released is always seen. (It must not call
        this store.) ``derived``: called with the chain ids (hexadecimal) of the layers that stay, while nobody can ask
        for another one; removes what somebody made of the others and kept elsewhere, and returns the bytes.
        """
        freed = 0
        with trying(f"collect in the image store {self.root}"), self._exclusive():
            digests, layers = self._read_pins()
            used = in_use_layers() if callable(in_use_layers) else in_use_layers
            layers.update(map(self._layer_name, used))
            digests.update(ref.digest for ref in self._read_refs().values())
            self._reach(digests, layers)
            self._sweep(digests, layers)
            if derived is not None:
                freed = derived(layers)
        return freed + self._empty_trash()

    def _sweep(self, digests: set[str], layers: set[str]) -> None:
        for algorithm in ("sha256", "sha512"):
            folder = os.path.join(self.root, "blobs", algorithm)
            for name in os.listdir(folder):
                if f"{algorithm}:{name}" not in digests:
                    self._discard(os.path.join(folder, name))
        folder = os.path.join(self.root, "layers")
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            if name.startswith("."):  # being unpacked: flocked by its maker
                self._discard_unlocked(path)
            elif name not in layers:
                self._discard(path)
        folder = os.path.join(self.root, "ingest")
        for name in os.listdir(folder):
            if name.replace("-", ":", 1) not in digests:
                self._discard_unlocked(os.path.join(folder, name))

    def _reach(self, digests: set[str], layers: set[str]) -> None:
        """Close ``digests`` over what manifests and indexes name, and add the chain ids of the configs."""
        todo = list(digests)
        while todo:
            document = self._document(todo.pop())
            for digest in _children(document):
                if digest not in digests:
                    digests.add(digest)
                    todo.append(digest)
            layers.update(_chain_names(document))

    def _document(self, digest: str) -> dict[str, Any]:
        """A blob as a JSON object; {} where it is none, or missing."""
        try:
            with open(self._blob(digest), "rb") as file:
                data = file.read(1)
                if data != b"{" and not data.isspace():
                    return {}
                data += file.read(_MAX_DOCUMENT)
            value = jsontext.loads(data) if len(data) <= _MAX_DOCUMENT else None
        except (OSError, ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    def _read_pins(self) -> tuple[set[str], set[str]]:
        digests: set[str] = set()
        layers: set[str] = set()
        folder = os.path.join(self.root, "pins")
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            if self._discard_unlocked(path):
                continue
            try:
                with open(path, "rb") as file:
                    lines = file.read().splitlines()
            except FileNotFoundError:
                continue  # released just now; what it was for is recorded elsewhere
            _check_version(jsontext.loads(lines[0]) if lines else None, path)
            for line in map(bytes.decode, lines[1:]):
                kind, _, rest = line.partition(":")
                if kind == "layer":
                    layers.add(rest)
                else:
                    digests.add(line)
        return digests, layers

    def _layer_name(self, used: str) -> str:
        if used.startswith("/"):
            return os.path.relpath(used, os.path.join(self.root, "layers")).partition("/")[0]
        return check_digest(used)[1]

    def _discard(self, path: str) -> None:
        try:
            os.rename(path, os.path.join(self.root, "trash", os.urandom(16).hex()))
        except FileNotFoundError:
            pass

    def _discard_unlocked(self, path: str) -> bool:
        """Discard unless a living process holds its flock; renamed while locked here, so nobody starts to use it."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        else:
            self._discard(path)
            return True
        finally:
            os.close(fd)

    def _empty_trash(self) -> int:
        """Delete; two collections may meet here, each counts what it saw and neither minds the other."""
        import shutil

        freed = 0
        folder = os.path.join(self.root, "trash")
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            if os.path.islink(path) or not os.path.isdir(path):
                freed += _remove_file(path)
                continue
            # By fd, because a path inside a layer may fill PATH_MAX on its own.
            try:
                for _, _, files, fd in os.fwalk(path):
                    for file in files:
                        freed += _remove_file(file, fd)
            except FileNotFoundError:
                pass
            shutil.rmtree(path, ignore_errors=True)
        return freed

    # Files and locks

    def _blob(self, digest: str) -> str:
        algorithm, encoded = check_digest(digest)
        return os.path.join(self.root, "blobs", algorithm, encoded)

    def _commit(self, partial: str, blob: str) -> None:
        with self._shared():
            self._move(partial, blob)

    def _move(self, source: str, blob: str) -> None:
        os.rename(source, blob)
        _sync_directory(os.path.dirname(blob))

    def _note(self, name: str) -> None:
        with self._mutex:
            for pin in self._pins:
                pin.note(name)

    @contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        with self._shared():
            self._note(name)
            yield

    @contextmanager
    def _flock(self, name: str, how: int) -> Iterator[None]:
        fd = os.open(os.path.join(self.root, name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, how)
            yield
        finally:
            os.close(fd)

    def _shared(self) -> AbstractContextManager[None]:
        return self._flock("lock", fcntl.LOCK_SH)

    def _exclusive(self) -> AbstractContextManager[None]:
        return self._flock("lock", fcntl.LOCK_EX)

    def _read_refs(self) -> dict[str, Descriptor]:
        path = os.path.join(self.root, "refs.json")
        try:
            with open(path, "rb") as file:
                data = file.read(_MAX_REFS)
        except FileNotFoundError:
            return {}
        try:
            value = jsontext.loads(data)
        except ValueError as error:
            raise PycontainError(f"{path} is not JSON: {str(error).lower()}") from None
        _check_version(value, path)
        refs = value.get("refs")
        if not isinstance(refs, dict):
            raise SpecError("$.refs", f"must be an object in {path}")
        return {name: Descriptor.from_json(item, f"$.refs[{name!r}]") for name, item in refs.items()}

    def _change_refs(self, change: Callable[[dict[str, Any]], None]) -> None:
        with trying(f"write {self.root}/refs.json"), self._flock("refs.lock", fcntl.LOCK_EX):
            refs = {name: descriptor.to_json() for name, descriptor in self._read_refs().items()}
            change(refs)
            value = {"version": VERSION, "refs": dict(sorted(refs.items()))}
            import json

            temporary = os.path.join(self.root, f".refs.json.{os.urandom(8).hex()}")
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                with open(fd, "w", encoding="utf-8") as file:
                    json.dump(value, file, indent=1)
                    file.write("\n")
                    file.flush()
                    os.fsync(fd)
                os.rename(temporary, os.path.join(self.root, "refs.json"))
            except BaseException:
                os.unlink(temporary)
                raise
            _sync_directory(self.root)


def chain_id(diff_ids: Iterable[str]) -> str:
    """The identity of a stack of layers (image-spec, config.md, "Layer ChainID")."""
    chain = ""
    for diff_id in diff_ids:
        chain = digest_of(f"{chain} {diff_id}".encode()) if chain else diff_id
    return chain


def _children(document: dict[str, Any]) -> Iterator[str]:
    """The digests that an index or a manifest names, leniently: what is malformed here is refused where it is used."""
    items: list[Any] = [document.get("config")]
    for key in ("manifests", "layers"):
        found = document.get(key)
        if isinstance(found, list):
            items += found
    for item in items:
        digest = item.get("digest") if isinstance(item, dict) else None
        if isinstance(digest, str):
            try:
                check_digest(digest)
            except PycontainError:
                continue
            yield digest


def _chain_names(document: dict[str, Any]) -> Iterator[str]:
    rootfs = document.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(diff_ids, list):
        return
    chain = ""
    for diff_id in diff_ids:
        if not isinstance(diff_id, str):
            return
        chain = chain_id([chain, diff_id]) if chain else diff_id
        yield chain.partition(":")[2]


def _check_version(value: object, path: str) -> None:
    if not isinstance(value, dict):
        raise PycontainError(f"{path} is not an object with a version")
    if value.get("version") != VERSION:
        raise PycontainError(
            f"{path} has version {value.get('version')!r}, this pycontain knows version {VERSION}",
            hint="use the pycontain that wrote it, or a newer one",
        )


def _remove_file(path: str, directory: int | None = None) -> int:
    try:
        found = os.stat(path, dir_fd=directory, follow_symlinks=False)
        os.unlink(path, dir_fd=directory)
    except FileNotFoundError:
        return 0
    return found.st_blocks * 512 if found.st_nlink == 1 else 0


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
