"""``explain``: the plan of a command or of a configuration, a line an operation. Nothing is made, pulled or started."""

from __future__ import annotations

import os

from pycontain.engine import bundle as bundles
from pycontain.engine import images, mounts
from pycontain.engine.options import Options
from pycontain.runtime import jsontext, lifecycle
from pycontain.runtime.errors import KernelError, NotFound, PycontainError
from pycontain.runtime.plan import identity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontain.engine import Engine
    from pycontain.engine.images import Image

_EXAMPLE_ID = "0" * 64
_MOST_BYTES = 8 << 20


class _Lease:
    """What a lease would give: its address is chosen only when the container starts."""

    address, prefix, gateway, mac = "10.0.0.2", 16, "10.0.0.1", ""
    ports: tuple[Any, ...] = ()
    host_sockets: tuple[Any, ...] = ()

    def __init__(self) -> None:
        from pycontain.network.netlink import container_messages

        self.netlink = container_messages(self.address, self.prefix, self.gateway)


def bundle(path: str) -> list[str]:
    """The plan of a bundle's directory or of a config.json."""
    file = os.path.join(path, "config.json") if os.path.isdir(path) else path
    try:
        with open(file, "rb") as stream:
            data = stream.read(_MOST_BYTES)
    except FileNotFoundError:
        raise NotFound(
            f'cannot explain "{path}": {file} does not exist', hint="pycontain explain run alpine sh"
        ) from None
    except OSError as error:
        raise KernelError(f'cannot explain "{path}": read {file}', error.errno or 0) from None
    config = jsontext.parse(data, file)
    if not isinstance(config, dict):
        raise PycontainError(f"{file}: found no JSON object, wanted a configuration")
    return lifecycle.explain(config, os.path.dirname(os.path.abspath(file)))


def run(engine: Engine, options: Options) -> list[str]:
    """The plan of ``run``. The image has to be here: explaining pulls nothing."""
    if not os.path.isdir(os.path.join(engine.data, "images")):
        raise NotFound(f'no such image: "{options.image}" is not here', hint=f"pycontain pull {options.image}")
    with engine.images.pin():
        image = images.find(engine, options.image, options.platform)
        return _run(engine, options, image)


def _run(engine: Engine, options: Options, image: Image) -> list[str]:
    from pycontain.images.config import command_line

    lowers = _lowers(engine, image)
    directory = os.path.join(engine.data, "containers", _EXAMPLE_ID)
    lease: Any = _Lease() if options.network == "bridge" else None
    record = {
        "image_config": dict(image.config.raw.get("config") or {}),
        "hostname": options.hostname or (os.uname().nodename if options.network == "host" else _EXAMPLE_ID[:12]),
        "args": command_line(image.config, options.entrypoint, options.args),
        "mounts": [
            {**wish, "source": wish["source"] or "<anonymous>"} if wish["type"] == "volume" else wish
            for wish in mounts.combine(options.mounts, image.config.volumes)
        ],
    }
    passwd, group = (_read(lowers, name) for name in ("etc/passwd", "etc/group"))
    config = bundles.configuration(
        engine, _EXAMPLE_ID, record, options, passwd, group, lease, lambda name: os.path.join(directory, name)
    )
    rootfs = {
        "kind": "overlay",
        "lower": lowers,
        "upper": os.path.join(directory, "upper"),
        "work": os.path.join(directory, "work"),
        "volatile": False,
        "target": os.path.join(directory, "rootfs"),
    }
    if options.isolation == "vm":
        rootfs = {"kind": "image", "path": bundles.image_path(engine, lowers), "disk": os.path.join(directory, "disk")}
    return lifecycle.explain(config, directory, id=_EXAMPLE_ID, rootfs=rootfs, lease=lease, reap=options.init)


def _lowers(engine: Engine, image: Image) -> list[str]:
    """Where the layers are, or will be once they are unpacked, top first."""
    from pycontain.images.store import chain_id

    folder = os.path.join(engine.images.root, "layers")
    found: list[str] = []
    chain = ""
    for diff_id in image.config.diff_ids:
        chain = chain_id([chain, diff_id]) if chain else diff_id
        found.insert(0, os.path.join(folder, chain.partition(":")[2], "diff"))
    return found or [os.path.join(folder, "empty", "diff")]


def _read(lowers: list[str], name: str) -> bytes | None:
    """A file of the topmost layer that has it; hostile links stay inside the layer."""
    from pycontain.runtime.kernel.syscalls import openat2

    for lower in lowers:
        try:
            root = os.open(lower, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fd = openat2(root, name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:
            continue
        finally:
            os.close(root)
        try:
            return os.read(fd, identity.FILE_MAX + 1)
        except OSError:
            continue
        finally:
            os.close(fd)
    return None
