"""The files of a network: its configuration, one file per leased address, and what was last seen of the firewall.

All of them are read and written under the network's lock. A lease is void after a reboot, so a lease file is never
synced to the disk: one that a power failure tore is void as well.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os

from pycontain.network.firewall import Problem
from pycontain.network.links import Subnet, dotted, parse_subnet
from pycontain.network.nft import Published
from pycontain.network.ports import Port
from pycontain.runtime import jsontext
from pycontain.runtime.errors import Conflict, KernelError, PycontainError
from pycontain.runtime.light import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

VERSION = 1
_TEMPORARY = ".new"
_SO_NETNS_COOKIE = 71


class Configuration(NamedTuple):
    """What a network is, chosen once: its identity, its bridge, its subnet and its MTU."""

    id: str
    bridge: str
    subnet: Subnet
    mtu: int

    @property
    def gateway(self) -> str:
        """The bridge's own address, the first of the subnet."""
        return dotted(self.subnet.base + 1)


class Record(NamedTuple):
    """One leased address. ``taken`` is nanoseconds of the monotonic clock, to tell which lease is newer."""

    address: str
    container: str
    name: str
    boot: str
    link: str
    taken: int
    ports: tuple[Port, ...] = ()

    def published(self) -> Published:
        """The ports as the firewall wants them."""
        return Published(self.container, self.address, self.ports)


class Stamp(NamedTuple):
    """The ruleset as it was when it was last known to be right; equal facts mean that nobody touched it since."""

    boot: str
    namespace: str
    generation: int
    legacy: str
    table: str
    admitted: bool = False
    problems: tuple[Problem, ...] = ()


class Directory:
    """The directory of one network. A context manager that holds its lock (flock, gone with the process)."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._leases = f"{path}/leases"
        self._lock = -1

    def __enter__(self) -> Directory:
        private_directory(self._leases)
        self._lock = locked(f"{self.path}/lock")
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)
        self._lock = -1

    def exists(self) -> bool:
        """Whether the network was ever set up."""
        return os.path.exists(f"{self.path}/network.json")

    def configuration(self) -> Configuration | None:
        """The network's configuration, or None before the first ``ensure``."""
        found = self._read("network.json")
        if found is None:
            return None
        return Configuration(found["id"], found["bridge"], parse_subnet(found["subnet"]), found["mtu"])

    def write_configuration(self, configuration: Configuration) -> None:
        """Write network.json; on the disk when this returns."""
        fields = {"id": configuration.id, "bridge": configuration.bridge, "mtu": configuration.mtu}
        self._write("network.json", {**fields, "subnet": str(configuration.subnet)}, durable=True)

    def stamp(self) -> Stamp | None:
        """What was last seen of the firewall, or None."""
        found = self._read("firewall.json")
        if found is None:
            return None
        found["problems"] = tuple(Problem(**problem) for problem in found["problems"])
        return Stamp(**found)

    def write_stamp(self, stamp: Stamp | None) -> None:
        """Remember, or with None forget, what the firewall looks like."""
        if stamp is not None:
            self._write("firewall.json", {**stamp._asdict(), "problems": [each._asdict() for each in stamp.problems]})
        else:
            _unlink(f"{self.path}/firewall.json")

    def records(self) -> list[Record]:
        """The leases of this boot, oldest first. Files of an earlier boot, and what a crash left, are removed."""
        boot = boot_id()
        found = []
        for name in os.listdir(self._leases):
            record = None if name == _TEMPORARY else self._record(name)
            if record is None or record.boot != boot:
                _unlink(f"{self._leases}/{name}")
            else:
                found.append(record)
        return sorted(found, key=lambda record: record.taken)

    def add(self, record: Record) -> bool:
        """Write a new lease; False when the address is leased already."""
        self._prepare(f"leases/{_TEMPORARY}", _lease_json(record))
        try:
            os.link(f"{self._leases}/{_TEMPORARY}", f"{self._leases}/{record.address}")
        except FileExistsError:
            return False
        finally:
            os.unlink(f"{self._leases}/{_TEMPORARY}")
        return True

    def replace(self, record: Record) -> None:
        """Write a lease over the one of the same address."""
        self._write(f"leases/{record.address}", _lease_json(record), temporary=f"leases/{_TEMPORARY}")

    def drop(self, record: Record) -> None:
        """Free an address."""
        _unlink(f"{self._leases}/{record.address}")

    def erase(self) -> None:
        """Remove every file of the network but its lock, which others may be waiting for."""
        for name in ("network.json", "firewall.json", _TEMPORARY):
            _unlink(f"{self.path}/{name}")

    def _record(self, name: str) -> Record | None:
        try:
            found = self._read(f"leases/{name}", torn_ok=True)
            if found is None:
                return None
            ports = tuple(Port(**port) for port in found.pop("ports"))
            record = Record(**found, ports=ports)
        except (TypeError, KeyError, AttributeError):
            return None
        return record if record.address == name else None

    def _read(self, name: str, torn_ok: bool = False) -> dict[str, Any] | None:
        path = f"{self.path}/{name}"
        try:
            with open(path, "rb") as file:
                found = jsontext.loads(file.read())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise KernelError(f"read {path}", error.errno or errno.EIO) from None
        except ValueError:
            if torn_ok:
                return None
            raise PycontainError(f"{path} is not JSON", hint=f"without containers on the network: rm {path}") from None
        if not isinstance(found, dict):
            return None
        version = found.pop("version", None)
        if version != VERSION:
            raise Conflict(f"{path} has version {version}, wanted {VERSION}: it was written by another pycontain")
        return found

    def _write(self, name: str, content: Mapping[str, Any], durable: bool = False, temporary: str = _TEMPORARY) -> None:
        self._prepare(temporary, content, durable)
        os.rename(f"{self.path}/{temporary}", f"{self.path}/{name}")

    def _prepare(self, temporary: str, content: Mapping[str, Any], durable: bool = False) -> None:
        path = f"{self.path}/{temporary}"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                data = jsontext.dump({"version": VERSION, **content}).encode() + b"\n"
                while data:  # a disk that fills up takes a part first
                    data = data[os.write(fd, data) :]
                if durable:
                    os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise KernelError(f"write {path}", error.errno or errno.EIO) from None


def private_directory(path: str) -> None:
    """Make a directory that is this user's alone, and its parents likewise, where they are not there yet."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except FileNotFoundError:
        private_directory(os.path.dirname(path))
        private_directory(path)
    except OSError as error:
        raise KernelError(f"make directory {path}", error.errno or errno.EIO) from None


def locked(path: str) -> int:
    """A file descriptor that holds the lock of the file ``path`` until it is closed."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise KernelError(f"open {path}", error.errno or errno.EIO) from None
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def boot_id() -> str:
    """The kernel's name for the time since the last boot."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def namespace_id() -> str:
    """A name for the calling thread's network namespace that is not used twice in one boot."""
    inode = os.stat("/proc/thread-self/ns/net").st_ino
    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        # Inode numbers come back once a namespace is gone; cookies (Linux 5.14) never do.
        cookie = probe.getsockopt(_socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8).hex()
    except OSError:
        cookie = ""
    finally:
        probe.close()
    return f"{inode}:{cookie}"


def _lease_json(record: Record) -> dict[str, Any]:
    return {**record._asdict(), "ports": [port._asdict() for port in record.ports]}


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
