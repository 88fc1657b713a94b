"""A small rtnetlink: requests as values, encoded by pure functions, sent by one transport.

The encoders need no privilege and no socket, so that a plan can hold finished requests which init sends
inside the container's network namespace. Numbers are those of linux/rtnetlink.h, linux/if_link.h and
linux/netlink.h; the formats are described in netlink(7) and rtnetlink(7).
"""

from __future__ import annotations

import _socket
import errno
import struct
from fcntl import ioctl

from pycontain.runtime.errors import KernelError
from pycontain.runtime.light import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_EXCL, NLM_F_CREATE = 0x200, 0x400
NLM_F_DUMP_INTR = 0x10
NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x200
NLMSG_ERROR, NLMSG_DONE = 2, 3

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_GETADDR = 20, 22
RTM_NEWROUTE, RTM_GETROUTE = 24, 26

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER = 1, 3, 4, 10
IFLA_LINKINFO, IFLA_NET_NS_PID, IFLA_IFALIAS, IFLA_AF_SPEC, IFLA_NET_NS_FD = 18, 19, 20, 26, 28
IFLA_NEW_IFINDEX = 49
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_INFO_SLAVE_KIND, IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
IFLA_BR_MCAST_SNOOPING = 23
IFLA_BRPORT_MODE = 4
IFLA_INET6_ADDR_GEN_MODE = 8
IN6_ADDR_GEN_MODE_NONE = 1
VETH_INFO_PEER = 1
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST = 1, 2, 4
RTA_DST, RTA_OIF, RTA_GATEWAY = 1, 4, 5
RT_TABLE_MAIN, RTPROT_BOOT, RTN_UNICAST = 254, 3, 1

RTMGRP_LINK = 1
_SIOCGIFINDEX = 0x8933  # linux/sockios.h

AF_UNSPEC, AF_INET, AF_INET6 = 0, 2, 10
IFF_UP = 0x1

LOOPBACK_INDEX = 1
CONTAINER_INDEX = 2
CONTAINER_NAME = "eth0"

_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK = 270, 10, 11, 12
_NLMSGERR_ATTR_MSG = 1
_HEADER = struct.Struct("=IHHII")
_DUMP_TRIES = 8


class Request(NamedTuple):
    """One request: what it does in words, its message type, its flags beyond REQUEST|ACK, and its body."""

    description: str
    kind: int
    flags: int
    body: bytes


class Link(NamedTuple):
    """A network interface of the current namespace; ``mac`` is the raw hardware address."""

    ifindex: int
    name: str
    kind: str
    up: bool
    mac: bytes
    mtu: int
    master: int
    alias: str


# Encoding


def attribute(kind: int, data: bytes) -> bytes:
    """One struct nlattr: length, type, data, zero padding to four bytes."""
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def encode(request: Request, sequence: int) -> bytes:
    """The complete message: header with NLM_F_REQUEST|NLM_F_ACK, the sequence number, port 0, and the body."""
    flags = request.flags | NLM_F_REQUEST | NLM_F_ACK
    return _HEADER.pack(_HEADER.size + len(request.body), request.kind, flags, sequence, 0) + request.body


def _link_header(index: int = 0, up: bool = False) -> bytes:
    """struct ifinfomsg; only IFF_UP is ever changed."""
    flag = IFF_UP if up else 0
    return struct.pack("=BxHiII", AF_UNSPEC, 0, index, flag, flag)


def link_name_attribute(name: str) -> bytes:
    """IFLA_IFNAME. The kernel takes 15 bytes; longer names are a mistake of ours, not of a user."""
    if not 0 < len(name.encode()) < 16:
        raise ValueError(f"interface name {name!r} is not 1 to 15 bytes")
    return _text(IFLA_IFNAME, name)


def new_bridge(name: str, mac: bytes, mtu: int) -> Request:
    """Create a bridge, down. A fixed address keeps the kernel from lending the bridge that of its lowest port."""
    # Without a querier on the segment, snooping would only delay multicast between containers.
    data = attribute(IFLA_BR_MCAST_SNOOPING, b"\0")
    body = _link_header() + link_name_attribute(name) + attribute(IFLA_ADDRESS, mac) + _u32(IFLA_MTU, mtu)
    body += attribute(IFLA_LINKINFO, _text(IFLA_INFO_KIND, "bridge") + attribute(IFLA_INFO_DATA, data))
    return Request(f"create bridge {name}", RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def new_veth(
    name: str,
    *,
    master: int,
    mtu: int,
    peer_mac: bytes,
    pid: int | None = None,
    netns_fd: int | None = None,
    peer_name: str = CONTAINER_NAME,
    peer_index: int = CONTAINER_INDEX,
) -> Request:
    """Create a veth pair: one end here as a port of ``master``, the peer straight in another network namespace.

    The namespace is that of ``pid`` (IFLA_NET_NS_PID) or the one ``netns_fd`` refers to (IFLA_NET_NS_FD). The peer
    is never visible here, so neither its name nor its index can clash with the host's.
    """
    if (pid is None) == (netns_fd is None):
        raise ValueError("exactly one of pid and netns_fd is wanted")
    if pid is not None:
        where, target = f"the network namespace of pid {pid}", _u32(IFLA_NET_NS_PID, pid)
    else:
        assert netns_fd is not None
        where, target = f"the network namespace of fd {netns_fd}", _u32(IFLA_NET_NS_FD, netns_fd)
    peer = _link_header(peer_index) + link_name_attribute(peer_name) + attribute(IFLA_ADDRESS, peer_mac)
    peer += _u32(IFLA_MTU, mtu) + target
    info = _text(IFLA_INFO_KIND, "veth") + attribute(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, peer))
    body = _link_header() + link_name_attribute(name) + _u32(IFLA_MTU, mtu)
    if master:
        body += _u32(IFLA_MASTER, master)
    body += attribute(IFLA_LINKINFO, info)
    tried = f"create veth {name} with its peer {peer_name} in {where}"
    return Request(tried, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)


def set_link(
    name: str, *, index: int = 0, up: bool = False, master: int | None = None, alias: str | None = None,
    no_ipv6_address: bool = False, hairpin: bool = False, mac: bytes | None = None, mtu: int | None = None,
) -> Request:
    """Change a link, found by ``index`` or, where that is 0, by name.

    ``no_ipv6_address`` keeps the kernel from making a link-local address when the link comes up. ``hairpin`` lets a
    bridge send a frame out of the port through which it came. ``mac`` is the raw hardware address, which many drivers
    take only while the link is down.
    """
    body, verbs = _link_header(index, up), []
    if not index:
        body += link_name_attribute(name)
    if mac is not None:
        body += attribute(IFLA_ADDRESS, mac)
        verbs.append(f"hardware address {mac.hex(':')}")
    if mtu is not None:
        body += _u32(IFLA_MTU, mtu)
        verbs.append(f"MTU {mtu}")
    if master is not None:
        body += _u32(IFLA_MASTER, master)
        verbs.append(f"make it a port of link {master}")
    if alias is not None:
        body += attribute(IFLA_IFALIAS, alias.encode())
        verbs.append("set its alias")
    if no_ipv6_address:
        mode = attribute(IFLA_INET6_ADDR_GEN_MODE, bytes([IN6_ADDR_GEN_MODE_NONE]))
        body += attribute(IFLA_AF_SPEC, attribute(AF_INET6, mode))
        verbs.append("keep it without an IPv6 address")
    if hairpin:
        data = attribute(IFLA_INFO_SLAVE_DATA, attribute(IFLA_BRPORT_MODE, b"\1"))
        body += attribute(IFLA_LINKINFO, _text(IFLA_INFO_SLAVE_KIND, "bridge") + data)
        verbs.append("reflect frames")
    if up:
        verbs.append("set it up")
    return Request(f"change link {name} ({', '.join(verbs)})", RTM_NEWLINK, 0, body)


def set_link_down(name: str) -> Request:
    """Set a link down."""
    body = struct.pack("=BxHiII", AF_UNSPEC, 0, 0, 0, IFF_UP) + link_name_attribute(name)
    return Request(f"set {name} down", RTM_NEWLINK, 0, body)


def move_link(name: str, pid: int, index: int) -> Request:
    """Move a link, which goes down, into the network namespace of ``pid``, where it is to have ``index``.

    EBUSY when the index is taken there, EEXIST when the name is. Before Linux 5.13 the index is not looked at, and the
    link keeps its own unless that is taken.
    """
    body = _link_header() + link_name_attribute(name) + _u32(IFLA_NET_NS_PID, pid) + _u32(IFLA_NEW_IFINDEX, index)
    return Request(f"move {name} to the network namespace of pid {pid}", RTM_NEWLINK, 0, body)


def delete_link(name: str) -> Request:
    """Delete a link by name; deleting one end of a veth pair deletes both."""
    return Request(f"delete link {name}", RTM_DELLINK, 0, _link_header() + link_name_attribute(name))


def add_address(name: str, index: int, address: str, prefix: int) -> Request:
    """Add an IPv4 address with its broadcast address; ``name`` is for the message only."""
    raw = _socket.inet_aton(address)
    host = (1 << (32 - prefix)) - 1
    broadcast = (int.from_bytes(raw, "big") | host).to_bytes(4, "big")
    body = struct.pack("=BBBBi", AF_INET, prefix, 0, 0, index)
    body += attribute(IFA_LOCAL, raw) + attribute(IFA_ADDRESS, raw) + attribute(IFA_BROADCAST, broadcast)
    return Request(f"add address {address}/{prefix} to {name}", RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body)


def add_default_route(gateway: str) -> Request:
    """Add 0.0.0.0/0 via ``gateway`` to the main table."""
    body = struct.pack("=BBBBBBBBI", AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, 0, RTN_UNICAST, 0)
    body += attribute(RTA_GATEWAY, _socket.inet_aton(gateway))
    return Request(f"add default route via {gateway}", RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, body)


def container_requests(address: str, prefix: int, gateway: str) -> list[Request]:
    """What a container's namespace needs once its eth0 is in it; see container_messages."""
    up = Request(f"set {CONTAINER_NAME} up", RTM_NEWLINK, 0, _link_header(CONTAINER_INDEX, up=True))
    return [
        loopback_up(),
        add_address(CONTAINER_NAME, CONTAINER_INDEX, address, prefix),
        up,
        add_default_route(gateway),
    ]


def loopback_up() -> Request:
    """Set lo up; the kernel adds 127.0.0.1/8 and ::1/128 itself."""
    return Request("set lo up", RTM_NEWLINK, 0, _link_header(LOOPBACK_INDEX, up=True))


def container_messages(address: str, prefix: int, gateway: str) -> list[tuple[str, bytes]]:
    """(description, complete request) in the order in which they are sent inside the network namespace.

    Sequence numbers count from 1. Every message asks for an acknowledgement.
    """
    return _numbered(container_requests(address, prefix, gateway))


def guest_messages(mac: bytes, mtu: int, pid: int) -> list[tuple[str, bytes]]:
    """(description, complete request) for the first network namespace of a guest, before container_messages.

    They give the machine's only network device what veth's peer is made with, and put it where that is made: eth0,
    down, with index 2, in the namespace of ``pid`` (a number of the guest).
    """
    # One request would do for a new device. That of a machine which has run before may be up, and many drivers then
    # refuse an address; the kernel sets flags last, so "down" is a request of its own.
    requests = [
        set_link_down(CONTAINER_NAME),
        set_link(CONTAINER_NAME, mac=mac, mtu=mtu),
        move_link(CONTAINER_NAME, pid, CONTAINER_INDEX),
    ]
    return _numbered(requests)


def _numbered(requests: list[Request]) -> list[tuple[str, bytes]]:
    return [(request.description, encode(request, number)) for number, request in enumerate(requests, 1)]


# Decoding


def attributes(data: bytes) -> dict[int, bytes]:
    """The struct nlattr sequence in ``data`` as {type: payload}; the last of a repeated type wins."""
    found: dict[int, bytes] = {}
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4 or offset + length > len(data):
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]  # the two top bits are flags
        offset += length + (-length % 4)
    return found


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(type, flags, sequence, body) of each message of a datagram."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            break
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += length + (-length % 4)


def _string(data: bytes) -> str:
    return data.rstrip(b"\0").decode("utf-8", "backslashreplace")


def _link(body: bytes) -> Link:
    _, _, index, flags, _ = struct.unpack_from("=BxHiII", body)
    found = attributes(body[16:])
    info = attributes(found.get(IFLA_LINKINFO, b""))
    return Link(
        ifindex=index,
        name=_string(found.get(IFLA_IFNAME, b"")),
        kind=_string(info.get(IFLA_INFO_KIND, b"")),
        up=bool(flags & IFF_UP),
        mac=found.get(IFLA_ADDRESS, b""),
        mtu=int.from_bytes(found.get(IFLA_MTU, b""), "little" if _LITTLE else "big"),
        master=int.from_bytes(found.get(IFLA_MASTER, b""), "little" if _LITTLE else "big"),
        alias=_string(found.get(IFLA_IFALIAS, b"")),
    )


_LITTLE = struct.pack("=H", 1) == b"\1\0"


# Transport


class Netlink:
    """A netlink socket in the calling thread's network namespace. A context manager; not shared between threads."""

    def __init__(self, protocol: int = NETLINK_ROUTE, groups: int = 0) -> None:
        try:
            self._socket = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, protocol)
            self._socket.bind((0, groups))
        except OSError as error:
            raise KernelError("open a netlink socket", error.errno or errno.EIO) from None
        # The ext ack carries the kernel's own sentence about a refusal; kernels before 4.12 have none.
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
            try:
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            except OSError:
                pass
        self._sequence = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, *requests: Request) -> None:
        """Send requests as one datagram, carried out in order; the first that is refused is raised as KernelError.

        Those after a refused one are still tried by the kernel: only put together what may be.
        """
        first = self._sequence + 1
        self._transmit(requests)
        refused: KernelError | None = None
        awaited = {first + number: request for number, request in enumerate(requests)}
        while awaited:
            for kind, flags, sequence, body in self._receive():
                if kind != NLMSG_ERROR or sequence not in awaited:
                    continue
                refused = refused or _refusal(awaited[sequence], flags, body)
                del awaited[sequence]
        if refused is not None:
            raise refused

    def ask(self, request: Request) -> list[bytes]:
        """Send a request and return the bodies of its answers; KernelError when the kernel refuses."""
        for _ in range(_DUMP_TRIES):
            answers, interrupted = self._ask(request)
            if not interrupted:
                return answers
        raise KernelError(request.description, errno.EINTR)

    def _ask(self, request: Request) -> tuple[list[bytes], bool]:
        self._transmit((request,))
        answers: list[bytes] = []
        interrupted = False
        while True:
            for kind, flags, sequence, body in self._receive():
                if sequence != self._sequence:
                    continue
                # A dump that raced with a change says so, and has to be taken again.
                interrupted = interrupted or bool(flags & NLM_F_DUMP_INTR)
                if kind == NLMSG_ERROR:
                    refused = _refusal(request, flags, body)
                    if refused is not None:
                        raise refused
                    return answers, interrupted
                if kind == NLMSG_DONE:
                    return answers, interrupted
                answers.append(body)

    def links(self) -> list[Link]:
        """All links of the namespace."""
        request = Request("list links", RTM_GETLINK, NLM_F_DUMP, _link_header())
        return [_link(body) for body in self.ask(request)]

    def has_link(self, name: str) -> bool:
        """Whether there is a link called ``name``; netdevice(7), for netlink waits for the kernel's lock."""
        try:
            ioctl(self._socket, _SIOCGIFINDEX, struct.pack("16s24x", name.encode()))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise KernelError(f"find link {name}", error.errno or errno.EIO) from None
            return False
        return True

    def wait(self, seconds: float) -> None:
        """Wait for a message to the ``groups`` of this socket, and drop it."""
        self._socket.settimeout(seconds)
        try:
            self._socket.recv(1 << 16)
        except TimeoutError:
            pass
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # more messages than there was room for
                raise KernelError("wait for an event of the network", error.errno or errno.EIO) from None

    def link(self, name: str) -> Link | None:
        """The link called ``name``, or None."""
        request = Request(f"find link {name}", RTM_GETLINK, 0, _link_header() + link_name_attribute(name))
        try:
            answers = self.ask(request)
        except KernelError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return _link(answers[0])

    def addresses(self, index: int = 0) -> list[tuple[int, str, int]]:
        """(link index, IPv4 address, prefix length) of the link ``index``, or of all for 0."""
        body = struct.pack("=BBBBi", AF_INET, 0, 0, 0, index)
        found = []
        for answer in self.ask(Request("list addresses", RTM_GETADDR, NLM_F_DUMP, body)):
            _, prefix, _, _, owner = struct.unpack_from("=BBBBi", answer)
            local = attributes(answer[8:]).get(IFA_LOCAL)
            # Kernels before 4.20 ignore the filter.
            if local is not None and index in (0, owner):
                found.append((owner, _socket.inet_ntoa(local), prefix))
        return found

    def routes(self) -> list[tuple[str, int, int]]:
        """(destination, prefix length, output link or 0) of every IPv4 route of every table."""
        body = struct.pack("=BBBBBBBBI", AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)
        found = []
        for answer in self.ask(Request("list routes", RTM_GETROUTE, NLM_F_DUMP, body)):
            prefix = answer[1]
            known = attributes(answer[12:])
            output = int.from_bytes(known.get(RTA_OIF, b""), "little" if _LITTLE else "big")
            found.append((_socket.inet_ntoa(known.get(RTA_DST, bytes(4))), prefix, output))
        return found

    def _transmit(self, requests: tuple[Request, ...]) -> None:
        data = b""
        for request in requests:
            self._sequence += 1
            message = encode(request, self._sequence)
            data += message + bytes(-len(message) % 4)
        try:
            self._socket.sendto(data, (0, 0))
        except OSError as error:
            raise KernelError(requests[0].description, error.errno or errno.EIO) from None

    def _receive(self) -> list[tuple[int, int, int, bytes]]:
        while True:
            try:
                data, (sender, _) = self._socket.recvfrom(1 << 17)
            except OSError as error:
                raise KernelError("read the kernel's netlink answer", error.errno or errno.EIO) from None
            if sender == 0:  # the kernel; anything else was sent by some process
                return list(_messages(data))


def _refusal(request: Request, flags: int, body: bytes) -> KernelError | None:
    """The KernelError of a struct nlmsgerr, or None for an acknowledgement (netlink(7), NLMSG_ERROR)."""
    code = struct.unpack_from("=i", body)[0]
    if code == 0:
        return None
    tried = request.description
    if flags & NLM_F_ACK_TLVS:
        # The TLVs follow the header of the refused request, and its payload too unless that was capped.
        length = struct.unpack_from("=I", body, 4)[0]
        start = 4 + (_HEADER.size if flags & NLM_F_CAPPED else length + (-length % 4))
        text = attributes(body[start:]).get(_NLMSGERR_ATTR_MSG)
        if text:
            tried += f' (kernel: "{_string(text)}")'
    return KernelError(tried, -code)
