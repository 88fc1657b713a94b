"""``python -m pycontain.isolation.boot ROOT BUNDLE IMAGE DISK ID NETWORK``: pycontain-runtime's ``run`` from an image.

The OCI command takes a directory, and a machine that shares one with the host cannot be a clone of a template. The
engine gives a machine an image and a disk of its own, and a lease of the network that is kept in NETWORK ("": none);
so does this. All else is as ``run`` does it.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from pycontain.runtime import creation
from pycontain.runtime.ending import delete
from pycontain.runtime.errors import PycontainError
from pycontain.runtime.main import report
from pycontain.runtime.making import Signals, ended, foreground

if TYPE_CHECKING:
    from pycontain.network.lease import Lease


def run(root: str, bundle: str, image: str, disk: str, id: str, network: str) -> int:
    """The status of the container's program; the container is deleted then. Raises what `creation.create` raises."""
    if not network:
        return _run(None, root, bundle, image, disk, id)
    from pycontain.network.lease import Network

    on = Network(network)
    try:
        return _run(on.take(id), root, bundle, image, disk, id)
    finally:
        on.release(id)


def _run(lease: Lease | None, root: str, bundle: str, image: str, disk: str, id: str) -> int:
    signals = Signals()
    rootfs = {"kind": "image", "path": image, "disk": disk}
    running = creation.create(id, bundle, root=root, rootfs=rootfs, lease=lease, listen=False)
    try:
        running.start()
        status = foreground(running, None, signals)
    except BaseException:
        delete(id, root=root, force=True)
        os.waitpid(running.pid, 0)
        raise
    ended(id, root)
    return status


def main() -> None:
    try:
        status = run(*sys.argv[1:])
    except PycontainError as error:
        report(error, {})
        status = error.exit_code
    os._exit(status)


if __name__ == "__main__":
    main()
