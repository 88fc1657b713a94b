"""$.linux.netDevices: network devices of the host moved into the container's network namespace (config-linux.md).

By rtnetlink(7), with the host's rights, once the namespace exists; the other end by a socket made inside of it. A
device keeps its permanent addresses of global scope and is set up. What happens to it later is up to the kernel: with
its namespace a virtual device ends, a physical one comes back (network_namespaces(7)). Only an error before the
container is made takes it back from here.
Off the start path.
"""

from __future__ import annotations

import _socket
import os
import struct
from errno import ENODEV

from pycontain.runtime.errors import KernelError, SpecError
from pycontain.runtime.kernel.syscalls import setns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_CLONE_NEWNET = 0x40000000
_NEWLINK, _GETLINK, _SETLINK, _NEWADDR, _GETADDR = 16, 18, 19, 20, 22
_REQUEST, _ACK, _DUMP, _EXCL, _CREATE = 1, 4, 0x300, 0x200, 0x400
_ERROR, _DONE = 2, 3
_IFNAME, _NET_NS_FD, _NEW_IFINDEX = 3, 28, 49
_IFF_UP = 1
# Of an address: itself, its peer, broadcast, flags, metric, protocol. Its label holds the old name, its age is over.
_KEPT = {1, 2, 4, 8, 9, 11}
_FLAGS, _PERMANENT = 8, 0x80
_GIVEN = 0x02 | 0x10 | 0x100 | 0x200  # flags that are a wish: nodad, homeaddress, managetempaddr, noprefixroute


class _Link:
    """A device where it is: index, name, whether it is up."""

    def __init__(self, body: bytes) -> None:
        self.index, flags = struct.unpack_from("=iI", body, 4)
        self.up = bool(flags & _IFF_UP)
        self.name = dict(_attributes(body[16:]))[_IFNAME].rstrip(b"\0").decode()


class Moved:
    """Devices that are in the container's namespace, until the container is made: ``done``, or ``undo``."""

    def __init__(self, pid: int) -> None:
        self._taken: list[tuple[str, _Link, int, list[bytes]]] = []
        self._fds = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in ("/proc/self/ns/net", f"/proc/{pid}/ns/net")]
        try:
            self._here = _route_socket()
            setns(self._fds[1], _CLONE_NEWNET)  # of this thread alone
            try:
                self._there = _route_socket()
            finally:
                setns(self._fds[0], _CLONE_NEWNET)
        except OSError as error:
            self._close()
            raise KernelError("cannot enter the container's network namespace", error.errno or 0) from None

    def move(self, devices: dict[str, str]) -> None:
        """Move each device to the name that it is to have. Raises SpecError and KernelError with its JSON path."""
        if os.path.sameopenfile(*self._fds):
            raise SpecError("$.linux.netDevices", "the container's network namespace is the one that they are in")
        for name, new in devices.items():
            path = f"$.linux.netDevices[{name!r}]"
            try:
                self._move(name, new, path)
            except OSError as error:
                raise KernelError(f"{path}: cannot move network device {name} to {new}", error.errno or 0) from None

    def _move(self, name: str, new: str, path: str) -> None:
        try:
            link = next(_links(self._here, name))
        except OSError as error:
            if error.errno != ENODEV:
                raise
            raise SpecError(path, "the host has no network device of that name") from None
        there = {other.name: other.index for other in _links(self._there)}
        if new in there:
            raise SpecError(path, f"the container's network namespace has a device {new!r} already")
        addresses = _addresses(self._here, link.index)
        taken = there.values()
        index = link.index if link.index not in taken else max(taken) + 1
        # The move ends with a new name; a template (%d) becomes one there.
        _ask(self._here, _SETLINK, 0, _move_to(link.index, self._fds[1], new, index))
        self._taken.append((name, link, index, addresses))
        for address in addresses:
            _ask(self._there, _NEWADDR, _CREATE | _EXCL, _for_device(address, index))
        _ask(self._there, _SETLINK, 0, struct.pack("=BxHiII", 0, 0, index, _IFF_UP, _IFF_UP))

    def done(self) -> None:
        """The container has them."""
        self._close()

    def undo(self) -> None:
        """Take them back, as they were but for their routes: the container is not to be. A failure is a warning."""
        for name, link, index, addresses in reversed(self._taken):
            try:
                _ask(self._there, _SETLINK, 0, _move_to(index, self._fds[0], name, link.index))
                for address in addresses:
                    _ask(self._here, _NEWADDR, _CREATE | _EXCL, _for_device(address, link.index))
                if link.up:
                    _ask(self._here, _SETLINK, 0, struct.pack("=BxHiII", 0, 0, link.index, _IFF_UP, _IFF_UP))
            except OSError as error:
                os.write(2, f"warning: cannot take back network device {name}: {error.strerror}\n".encode())
        self._close()

    def _close(self) -> None:
        for name in ("_here", "_there"):
            if hasattr(self, name):
                getattr(self, name).close()
        for fd in self._fds:
            os.close(fd)


def _route_socket() -> _socket.socket:
    return _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, 0)


def _links(sock: _socket.socket, name: str = "") -> Iterator[_Link]:
    body = bytes(16) + (_attribute(_IFNAME, name.encode() + b"\0") if name else b"")
    return map(_Link, _ask(sock, _GETLINK, 0 if name else _DUMP, body))


def _addresses(sock: _socket.socket, index: int) -> list[bytes]:
    """The permanent addresses of global scope, each as the body of a request but for the device's index."""
    found = []
    for body in _ask(sock, _GETADDR, _DUMP, bytes(8)):
        family, prefix, flags, scope, at = struct.unpack_from("=BBBBI", body)
        given = dict(_attributes(body[8:]))
        flags = int.from_bytes(given.get(_FLAGS, bytes([flags])), "little")
        if at != index or scope or not flags & _PERMANENT:
            continue
        given[_FLAGS] = struct.pack("=I", flags & _GIVEN)
        kept = b"".join(_attribute(kind, data) for kind, data in given.items() if kind in _KEPT)
        found.append(struct.pack("=BBBBI", family, prefix, 0, 0, 0) + kept)
    return found


def _for_device(address: bytes, index: int) -> bytes:
    return address[:4] + struct.pack("=I", index) + address[8:]


def _move_to(index: int, namespace: int, name: str, wanted: int) -> bytes:
    where = _attribute(_NET_NS_FD, struct.pack("=I", namespace)) + _attribute(_NEW_IFINDEX, struct.pack("=i", wanted))
    return struct.pack("=BxHiII", 0, 0, index, 0, 0) + _attribute(_IFNAME, name.encode() + b"\0") + where


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        size, kind = struct.unpack_from("=HH", data)
        if size < 4:
            return
        yield kind & 0x3FFF, data[4:size]
        data = data[size + 3 & ~3 :]


def _ask(sock: _socket.socket, kind: int, flags: int, body: bytes) -> list[bytes]:
    """The bodies of the answer. Raises OSError with the kernel's errno."""
    sock.send(struct.pack("=IHHII", 16 + len(body), kind, flags | _REQUEST | _ACK, 0, 0) + body)
    found: list[bytes] = []
    while True:
        data = sock.recv(1 << 17)
        while len(data) >= 16:
            size, answer, _, _, _ = struct.unpack_from("=IHHII", data)
            if answer in (_ERROR, _DONE):
                error = -struct.unpack_from("=i", data, 16)[0]
                if error:
                    raise OSError(error, os.strerror(error))
                return found
            found.append(data[16:size])
            data = data[size + 3 & ~3 :]
