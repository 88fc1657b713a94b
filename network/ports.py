"""Published ports: what ``-p`` means, and the sockets that hold the host's side of it."""

from __future__ import annotations

import _socket
import errno

from pycontain.runtime.errors import KernelError, PycontainError, Unsupported
from pycontain.runtime.light import NamedTuple

ANY = "0.0.0.0"
_HINT = "-p [ip:][host:]container[/tcp|/udp], such as -p 127.0.0.1:8080:80"


class Port(NamedTuple):
    """One published port: host address (``0.0.0.0`` is every one), host port (0: the kernel picks), container port."""

    container_port: int
    host_port: int = 0
    host_ip: str = ANY
    protocol: str = "tcp"

    def __str__(self) -> str:
        return f"{self.host_ip}:{self.host_port}->{self.container_port}/{self.protocol}"

    def conflicts(self, other: Port) -> bool:
        """Whether both take packets for one host port."""
        same = (self.protocol, self.host_port) == (other.protocol, other.host_port)
        return same and (self.host_ip == other.host_ip or ANY in (self.host_ip, other.host_ip))


def parse_publish(text: str) -> list[Port]:
    """The ports of one ``-p`` value: ``[ip:][host[-host]:]container[-container][/tcp|/udp]``.

    Ranges pair up in order. Raises PycontainError with the text that the user wrote; Unsupported for what is
    well-formed and not built (IPv6 host addresses, sctp).
    """
    specification, slash, protocol = text.partition("/")
    if not slash:
        protocol = "tcp"
    if protocol.lower() == "sctp":
        raise Unsupported(f'publish "{text}": protocol sctp is not supported, only tcp and udp', hint=_HINT)
    if protocol.lower() not in ("tcp", "udp"):
        raise _bad(text, f'protocol is "{protocol}", wanted tcp or udp')
    if "[" in specification or specification.count(":") > 2:
        raise Unsupported(f'publish "{text}": the bridge carries IPv4 only, an IPv6 host address is not supported')
    parts = specification.split(":")
    container = _range(text, "container port", parts[-1], 1)
    address = ANY
    if len(parts) == 3:
        address = _address(text, parts[0])
    if len(parts) == 1 or (len(parts) == 3 and not parts[1]):
        host = [0] * len(container)
    else:
        host = list(_range(text, "host port", parts[-2], 0))
    if len(host) != len(container):
        raise _bad(text, f"{len(host)} host ports for {len(container)} container ports, wanted as many")
    return [Port(inner, outer, address, protocol.lower()) for outer, inner in zip(host, container, strict=True)]


def hold(port: Port) -> tuple[_socket.socket, Port]:
    """Reserve the host's side of ``port``: an open socket, and the port with the number that it got.

    While the socket lives, nobody else can bind the port, and a port that somebody has makes this a KernelError.
    Packets do not reach the socket: the nftables rules take them before. Should the rules be gone, a TCP client is
    refused as if nobody were there, since the socket does not listen.
    """
    kind = _socket.SOCK_STREAM if port.protocol == "tcp" else _socket.SOCK_DGRAM
    holder = _socket.socket(_socket.AF_INET, kind | _socket.SOCK_CLOEXEC)
    try:
        if port.protocol == "tcp" and port.host_port:
            _bind_unheard(holder, (port.host_ip, port.host_port))
        else:
            holder.bind((port.host_ip, port.host_port))
        return holder, port._replace(host_port=holder.getsockname()[1])
    except OSError as error:
        holder.close()
        number = error.errno or errno.EIO
        wanted = f"{port.host_ip}:{port.host_port}/{port.protocol}"
        raise KernelError(f"cannot publish port {wanted}", number, hint=_bind_hint(port, number)) from None


def _bind_unheard(holder: _socket.socket, address: tuple[str, int]) -> None:
    """Bind a TCP socket so that connections lately closed do not stand in the way, and nobody can bind beside it.

    Without SO_REUSEADDR a connection in TIME_WAIT makes the port busy for a minute after a server has gone. With it,
    two sockets may be bound to one port until one of them listens: so this one listens for a moment, which is when
    the kernel compares it with all others, and drops the option, which is what later ones are compared with.
    shutdown(2) of a listening socket ends the listening and keeps the port, because it was bound explicitly.
    """
    holder.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
    holder.bind(address)
    holder.listen(0)
    holder.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 0)
    holder.shutdown(_socket.SHUT_RD)


def _bind_hint(port: Port, number: int) -> str | None:
    if number == errno.EADDRINUSE:
        letter = "t" if port.protocol == "tcp" else "u"
        return f"see who has it: ss -{letter}lnp sport = :{port.host_port}; or publish another host port"
    if number == errno.EADDRNOTAVAIL:
        return f"{port.host_ip} is not an address of this host: ip -br address"
    return None


def _bad(text: str, problem: str) -> PycontainError:
    return PycontainError(f'publish "{text}": {problem}', hint=_HINT)


def _address(text: str, address: str) -> str:
    parts = address.split(".")
    # inet_aton takes 127.1 and octal numbers too; what people mean by those differs.
    if len(parts) != 4 or not all(_number(part, 255) and str(int(part)) == part for part in parts):
        raise _bad(text, f'host address is "{address}", wanted an IPv4 address')
    return address


def _number(digits: str, largest: int) -> bool:
    return digits.isascii() and digits.isdecimal() and len(digits) <= 5 and int(digits) <= largest


def _range(text: str, what: str, digits: str, smallest: int) -> range:
    first, dash, last = digits.partition("-")
    if not dash:
        last = first
    for end in (first, last):
        if not _number(end, 65535) or int(end) < smallest:
            raise _bad(text, f'{what} is "{digits}", wanted a number from {smallest} to 65535 or a range of them')
    if int(last) < int(first):
        raise _bad(text, f'{what} range "{digits}" ends before it begins')
    if dash and int(first) == 0:
        raise _bad(text, f'{what} range "{digits}" begins at 0, wanted 1 to 65535')
    return range(int(first), int(last) + 1)
