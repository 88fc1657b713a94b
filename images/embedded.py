"""The embedded image: a root file system made on the spot of the distribution's static busybox.

It has a name of its own, under a registry that cannot exist, so that nobody takes it for another image.
"""

from __future__ import annotations

import struct
import subprocess

from pycontain.images.config import DEFAULT_PATH
from pycontain.images.failure import trying
from pycontain.images.layout import write_image
from pycontain.images.manifest import OCI_LAYER
from pycontain.images.reference import Reference
from pycontain.images.store import Store
from pycontain.images.tar import BLOCK, END, Entry, header
from pycontain.runtime.errors import NotFound, PycontainError

REFERENCE = Reference("pycontain.local", "busybox", "embedded")
BUSYBOX = "/bin/busybox"
_HINT = "apt-get install busybox-static"
_MAX_BYTES = 64 << 20
_CREATED = "1970-01-01T00:00:00Z"
_DIRECTORIES = (
    ("bin", 0o755),
    ("dev", 0o755),
    ("etc", 0o755),
    ("home", 0o755),
    ("mnt", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("var", 0o755),
    ("var/tmp", 0o1777),
)
_LINKS = (("sbin", "bin"), ("usr/bin", "../bin"), ("usr/sbin", "../bin"), ("var/run", "../run"))
_FILES = {
    "etc/group": "root:x:0:\ntty:x:5:\nusers:x:100:\nnogroup:x:65534:\n",
    "etc/os-release": (
        'NAME="pycontain embedded image"\nID=pycontain-embedded\nPRETTY_NAME="pycontain embedded image ({version})"\n'
    ),
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/shells": "/bin/sh\n",
}


def ensure(store: Store, *, busybox: str = BUSYBOX) -> Reference:
    """Put the embedded image into the store; its name. The same busybox gives the same digests.

    Raises NotFound where there is no busybox, PycontainError where it is not static or does not run.
    """
    data = _program(busybox)
    applets = _run(busybox, "--list").split()
    version = _run(busybox).partition("\n")[0].partition(" (")[0] or "busybox"
    with store.pin():
        layer = store.put(_layer(data, applets, version), media_type=OCI_LAYER)
        config = {"Env": ["PATH=" + DEFAULT_PATH], "Cmd": ["/bin/sh"], "WorkingDir": "/"}
        write_image(store, REFERENCE, [(layer, layer.digest)], config, _CREATED)
    return REFERENCE


def _layer(busybox: bytes, applets: list[str], version: str) -> bytes:
    entries: dict[str, tuple[Entry, bytes]] = {"./": (Entry(b"./", "directory", mode=0o755), b"")}
    for path, mode in _DIRECTORIES:
        entries[path + "/"] = Entry(path.encode() + b"/", "directory", mode=mode), b""
    links = [*_LINKS, *((f"bin/{name}", "busybox") for name in applets if name != "busybox" and "/" not in name)]
    for path, target in links:
        entry = Entry(path.encode(), "symbolic link", mode=0o777)
        entry.link = target.encode()
        entries[path] = entry, b""
    for path, text in _FILES.items():
        content = text.replace("{version}", version.replace('"', "")).encode()
        entries[path] = Entry(path.encode(), mode=0o644, size=len(content)), content
    entries["bin/busybox"] = Entry(b"bin/busybox", mode=0o755, size=len(busybox)), busybox
    pieces = []
    for path in sorted(entries):
        entry, content = entries[path]
        pieces += [header(entry), content, bytes(-len(content) % BLOCK)]
    return b"".join(pieces) + END


def _program(path: str) -> bytes:
    """The bytes of a static ELF executable: one that names no interpreter (elf(5), PT_INTERP)."""
    try:
        with trying(f"read {path}"), open(path, "rb") as file:
            data = file.read(_MAX_BYTES)
    except PycontainError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise NotFound(f"the embedded image needs a static busybox: {path} is not there", hint=_HINT) from None
        raise
    if data[:4] != b"\x7fELF" or len(data) < 64 or data[4] != 2:
        raise PycontainError(f"the embedded image needs a static busybox: {path} is not a 64 bit program", hint=_HINT)
    order = "<" if data[5] == 1 else ">"
    (offset,) = struct.unpack_from(order + "Q", data, 32)
    size, count = struct.unpack_from(order + "HH", data, 54)
    for number in range(count):
        place = offset + number * size
        if place + 4 <= len(data) and struct.unpack_from(order + "I", data, place)[0] == 3:
            raise PycontainError(f"the embedded image needs a static busybox: {path} is not static", hint=_HINT)
    return data


def _run(*command: str) -> str:
    try:
        with trying(f"run {command[0]}"):
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False, env={}, close_fds=True
            )
    except subprocess.TimeoutExpired:
        raise PycontainError(f"{command[0]} did not end within 20 seconds", hint=_HINT) from None
    if done.returncode:
        raise PycontainError(f"{' '.join(command)} ended with status {done.returncode}", hint=_HINT)
    return done.stdout.decode("ascii", "replace")
