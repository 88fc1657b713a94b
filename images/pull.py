"""Pull: a name becomes verified content in the store, from the first server of several that can give it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from pycontain.images.descriptor import Descriptor
from pycontain.images.dialing import Dialer
from pycontain.images.manifest import Manifest, Platform, check_platform, image_config, select
from pycontain.images.progress import Progress, Silent
from pycontain.images.reference import Reference
from pycontain.images.registry import Client, Endpoint, Pace, RegistryUnreachable, endpoints
from pycontain.images.settings import Settings
from pycontain.images.store import Store
from pycontain.images.transport import Transport
from pycontain.runtime.errors import KernelError, PycontainError

__all__ = ["RegistryUnreachable", "pull"]


def pull(
    store: Store,
    reference: Reference,
    *,
    platform: Platform | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
    dialer: Dialer | None = None,
    pace: Pace | None = None,
) -> Manifest:
    """Fetch what is missing of an image, and let its name mean it.

    The mirrors of the registry are asked first, in their order, then the registry itself; a tag means what
    the first of them that can deliver the whole image says. The reference's name is set last, when everything that
    it needs is in the store, and names the index where the tag is one.

    Raises RegistryUnreachable where the last server asked could not be worked with for a reason of the network,
    NotFound where it has no such image or none for the platform, Unsupported for what is no container image, and
    PycontainError for everything else: no access, content that is not what its digest says. After an error the store
    has no new name; blobs that had arrived whole wait for the next pull or the next collection.
    """
    settings = settings or Settings()
    progress = progress or Silent()
    servers = endpoints(reference.registry, settings)
    with store.pin():
        for number, endpoint in enumerate(servers):
            try:
                top, manifest = _from(endpoint, store, reference, platform, settings, progress, dialer, pace)
                store.set_ref(str(reference), top)
                return manifest
            except PycontainError as error:
                # The kernel's refusals (a full disk) are ours; the next server cannot help.
                if number + 1 == len(servers) or isinstance(error, KernelError):
                    tried = f" (tried {', '.join(map(str, servers[: number + 1]))})" if number else ""
                    error.message = f"pull {reference.familiar()}: {error.message}{tried}"
                    error.args = (error.message,)
                    raise
                progress.note(f"mirror {endpoint} failed: {error.message}")
    raise AssertionError("unreachable: a registry is its own last server")


def _from(
    endpoint: Endpoint,
    store: Store,
    reference: Reference,
    platform: Platform | None,
    settings: Settings,
    progress: Progress,
    dialer: Dialer | None,
    pace: Pace | None,
) -> tuple[Descriptor, Manifest]:
    """The image from one server, whole; what its name means there, and its manifest."""
    with Transport(settings, dialer=dialer) as transport:
        client = Client(transport, endpoint, reference.repository, pace=pace, note=progress.note)
        client.ping()
        top = _resolve(client, store, reference)
        progress.resolved(reference.familiar(), top.digest)

        def fetch_manifest(descriptor: Descriptor) -> None:
            _, data = client.manifest(descriptor.digest, descriptor)
            _keep(store, descriptor, data)

        def fetch_blob(descriptor: Descriptor) -> None:
            _blob(client, store, descriptor, progress)

        manifest = select(store, top, platform, fetch=fetch_manifest)
        config = image_config(store, manifest, fetch=fetch_blob)
        check_platform(config, platform, reference.familiar())
        _in_parallel(transport, fetch_blob, list({layer.digest: layer for layer in manifest.layers}.values()))
        return top, manifest


def _resolve(client: Client, store: Store, reference: Reference) -> Descriptor:
    """What the reference means on this server; its document is in the store then."""
    known = store.refs().get(str(reference))
    here = known is not None and store.has(known.digest)
    if known is not None and here and reference.digest is not None:
        return known
    # Asking for the headers alone is worth a round trip only where the content may be here.
    if known is not None and here and reference.tag is not None:
        found = client.head(reference.tag)
        if found is not None and found.digest == known.digest:
            return known
    top, data = client.manifest(reference.digest or reference.tag or "")
    _keep(store, top, data)
    return top


def _keep(store: Store, descriptor: Descriptor, data: bytes) -> None:
    with store.ingest(descriptor.digest, descriptor.size) as ingest:
        ingest.restart()
        ingest.write(data)
        ingest.commit()


def _blob(client: Client, store: Store, descriptor: Descriptor, progress: Progress) -> None:
    digest = descriptor.digest
    if store.has(digest):
        if store.size(digest) != descriptor.size:
            found = store.size(digest)
            raise PycontainError(f"blob {digest} has {found} bytes, its descriptor names {descriptor.size}")
        progress.finished(digest, False)
        return
    with store.ingest(digest, descriptor.size) as ingest:
        if ingest.done:
            progress.finished(digest, False)
            return
        progress.started(digest, descriptor.size)
        client.blob(descriptor, ingest, lambda count: progress.position(digest, count))
    progress.finished(digest, True)


def _in_parallel(transport: Transport, fetch: Callable[[Descriptor], None], blobs: list[Descriptor]) -> None:
    """Fetch several blobs at once; the first failure stops the others where they are, and is raised."""
    with ThreadPoolExecutor(transport.settings.workers, thread_name_prefix="pycontain-pull") as pool:
        running: set[Future[None]] = {pool.submit(fetch, blob) for blob in blobs}
        try:
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
        except BaseException:
            transport.close()
            for future in running:
                future.cancel()
            raise
