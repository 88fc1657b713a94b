"""The bridge of a network, the veth pairs and taps on it: everything is found again by its name.

Names are the only state: the bridge carries the network's identity in its alias, and a container's link has a name
made from the container's id. So whatever a crash leaves behind can be told from what is in use.
"""

from __future__ import annotations

import _socket
import errno
import os
import struct
import time
import zlib
from fcntl import ioctl

from pycontain.network import netlink
from pycontain.network.netlink import Netlink
from pycontain.runtime.errors import Conflict, KernelError, NotFound, PycontainError
from pycontain.runtime.light import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ALIAS = "pycontain network "
_LINK_PREFIX = "pc"
_MTU = 1500

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_TUN_EXCL = 0x0002, 0x1000, 0x4000, 0x8000
_TUN = "/dev/net/tun"


class Subnet(NamedTuple):
    """An IPv4 network: ``base`` is its first address as a number, ``prefix`` its length."""

    base: int
    prefix: int

    @property
    def size(self) -> int:
        """The number of addresses, with the network's own, the gateway's and the broadcast address."""
        return 1 << (32 - self.prefix)

    def __str__(self) -> str:
        return f"{dotted(self.base)}/{self.prefix}"

    def overlaps(self, other: Subnet) -> bool:
        """Whether any address is in both."""
        return self.base < other.base + other.size and other.base < self.base + self.size


def parse_subnet(text: str) -> Subnet:
    """``10.118.0.0/16``; PycontainError for anything that is not the first address of an IPv4 network of /8 to /29."""
    address, _, length = text.partition("/")
    try:
        raw = _socket.inet_pton(netlink.AF_INET, address)
    except OSError:
        raise PycontainError(f'subnet "{text}": "{address}" is not an IPv4 address') from None
    if not (length.isascii() and length.isdecimal() and 8 <= int(length) <= 29):
        raise PycontainError(f'subnet "{text}": prefix length is "{length}", wanted 8 to 29')
    subnet = Subnet(int.from_bytes(raw, "big"), int(length))
    if subnet.base % subnet.size:
        first = dotted(subnet.base - subnet.base % subnet.size)
        raise PycontainError(f'subnet "{text}": {address} is not its first address', hint=f"use {first}/{length}")
    return subnet


def dotted(number: int) -> str:
    """167772161 → ``10.0.0.1``."""
    return _socket.inet_ntoa(number.to_bytes(4, "big"))


def mac_of(address: str) -> bytes:
    """A locally administered hardware address made from the IPv4 address, so that neighbours' caches stay true."""
    return b"\x02\x70" + _socket.inet_aton(address)


def tap_mac_of(address: str) -> bytes:
    """The hardware address of the host's side of a tap; no other of ours begins so, in particular not the guest's.

    What is sent to the address of one of its ports a bridge delivers to the host.
    """
    return b"\xfe\x70" + _socket.inet_aton(address)


def candidates() -> Iterator[Subnet]:
    """Private networks in the order in which they are tried.

    Those that docker, podman, libvirt and the usual Kubernetes networks choose by default are left to them.
    """
    for second in range(118, 128):
        yield Subnet((10 << 24) | (second << 16), 16)
    for third in range(128, 256, 16):
        yield Subnet((192 << 24) | (168 << 16) | (third << 8), 20)
    for second in range(24, 32):
        yield Subnet((172 << 24) | (second << 16), 16)


def used_subnets(kernel: Netlink, besides: int = 0) -> list[Subnet]:
    """The subnets of every address and route of the host, except those of link ``besides``.

    Default routes, and the two halves that VPNs use in place of one, overlap everything and say nothing.
    """
    used = [(address, prefix) for index, address, prefix in kernel.addresses() if index != besides]
    used += [(address, prefix) for address, prefix, index in kernel.routes() if index != besides or not index]
    found = []
    for address, prefix in used:
        if prefix > 1:
            number = int.from_bytes(_socket.inet_aton(address), "big")
            size = 1 << (32 - prefix)
            found.append(Subnet(number - number % size, prefix))
    return found


def choose_subnet(used: Iterable[Subnet]) -> Subnet:
    """The first candidate that overlaps nothing in ``used``; PycontainError when there is none."""
    taken = list(used)
    for subnet in candidates():
        if not any(subnet.overlaps(other) for other in taken):
            return subnet
    raise PycontainError(
        "no private subnet is free: each one that pycontain would take overlaps a route or an address of this host",
        hint="see them with: ip route show table all",
    )


def uplink_mtu(kernel: Netlink) -> int:
    """The MTU for the network: that of the default route's link, at most 1500.

    A container that takes 1500 where the host's way out takes less depends on ICMP messages which are often filtered.
    """
    mtus = {link.ifindex: link.mtu for link in kernel.links()}
    ways_out = [mtus[index] for _, prefix, index in kernel.routes() if prefix == 0 and index in mtus]
    return max(576, min([_MTU, *ways_out]))


def free_bridge_name(kernel: Netlink, wanted: str) -> str:
    """``wanted``, or the same name with the next number that no link has."""
    stem = wanted.rstrip("0123456789")[:12]
    taken = {link.name for link in kernel.links()}
    for name in [wanted, *(f"{stem}{number}" for number in range(1000))]:
        if name not in taken:
            return name
    raise Conflict(f"no bridge name is free: {stem}0 to {stem}999 are taken")


def find_bridge(name: str, network_id: str) -> netlink.Link:
    """The bridge of a network; NotFound when it is not there or the link of that name is not this network's."""
    with Netlink() as kernel:
        link = kernel.link(name)
    if link is None or link.alias != ALIAS + network_id:
        raise NotFound(f"bridge {name} of this network is gone", hint="start the container again, which makes it")
    return link


def create_bridge(kernel: Netlink, name: str, network_id: str, gateway: str, mtu: int) -> netlink.Link:
    """Create the bridge with its alias, down and without an address; finish_bridge does the rest."""
    # One datagram: the kernel carries out both requests before a signal can end this process.
    kernel.send(
        netlink.new_bridge(name, mac_of(gateway), mtu), netlink.set_link(name, alias=ALIAS + network_id)
    )
    link = kernel.link(name)
    if link is None:
        raise KernelError(f"find the bridge {name} just made", errno.ENODEV)
    return link


def finish_bridge(kernel: Netlink, bridge: netlink.Link, gateway: str, prefix: int) -> None:
    """Give the bridge its address and set it up, as far as that is not so yet."""
    if not bridge.up:
        # The network is IPv4 only. Without this, containers would reach the host's services over link-local
        # addresses, and could send it router advertisements.
        write_sysctl(f"net/ipv6/conf/{bridge.name}/disable_ipv6", "1", missing_ok=True)
        kernel.send(netlink.set_link(bridge.name, index=bridge.ifindex, up=True))
    if (bridge.ifindex, gateway, prefix) not in kernel.addresses(bridge.ifindex):
        try:
            kernel.send(netlink.add_address(bridge.name, bridge.ifindex, gateway, prefix))
        except KernelError as error:
            if error.errno != errno.EEXIST:
                raise


def link_name(container_id: str, attempt: int = 0) -> str:
    """A container's link on the host, veth or tap: ``pc`` and eight hex digits, those of the id where it begins so."""
    head = container_id[:8]
    if attempt or len(head) < 8 or not set(head) <= set("0123456789abcdef"):
        head = f"{zlib.crc32(f'{container_id}/{attempt}'.encode()):08x}"
    return _LINK_PREFIX + head


def attach(
    name: str, bridge: netlink.Link, address: str, mtu: int, *, pid: int | None = None, netns_fd: int | None = None
) -> None:
    """Make the veth pair: ``name`` on the bridge, eth0 with index 2 in the namespace of ``pid`` or ``netns_fd``.

    KernelError EEXIST when a link ``name`` is there, or the namespace has an eth0 or a link with index 2; EXFULL when
    the bridge has 1023 ports (BR_MAX_PORTS of the kernel).
    """
    create = netlink.new_veth(
        name, master=bridge.ifindex, mtu=mtu, peer_mac=mac_of(address), pid=pid, netns_fd=netns_fd
    )
    with Netlink() as kernel:
        _make_port(kernel, create)
        _finish_port(kernel, name)


def tap(name: str, bridge: netlink.Link, address: str, mtu: int, vnet_hdr: bool = True) -> int:
    """Make the tap ``name`` on the bridge, up; its descriptor, close-on-exec, which carries one Ethernet frame a call.

    With ``vnet_hdr`` a struct virtio_net_hdr is before each frame, 10 bytes unless TUNSETVNETHDRSZ says otherwise:
    segments and checksums then stay undone between guests. The device is gone with the last copy of the descriptor.
    KernelError EBUSY when a link ``name`` is there, EXFULL as in attach, ENOENT or ENODEV without the tun driver.
    Kernel: Documentation/networking/tuntap.rst, drivers/net/tun.c.
    """
    try:
        fd = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise _tap_refused(f"open {_TUN} for tap {name}", error) from None
    try:
        # Exclusive: without it, the name of a tap that is there and has no reader is no error but leads to that tap.
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_TUN_EXCL | (_IFF_VNET_HDR if vnet_hdr else 0)
        try:
            ioctl(fd, _TUNSETIFF, struct.pack("=16sH22x", name.encode(), flags))
        except OSError as error:
            raise _tap_refused(f"create tap {name}", error) from None
        with Netlink() as kernel:
            # The kernel's own choice of an address is random, hence could be anybody's. A tap has a carrier as soon as
            # it is up, and would have its IPv6 address before a request that sets it up gets to preventing that.
            port = netlink.set_link(
                name, mac=tap_mac_of(address), mtu=mtu, master=bridge.ifindex, no_ipv6_address=has_ipv6()
            )
            _make_port(kernel, port)
            _finish_port(kernel, name)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _tap_refused(tried: str, error: OSError) -> KernelError:
    missing = error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO)
    return KernelError(tried, error.errno or errno.EIO, hint="modprobe tun" if missing else None)


def _make_port(kernel: Netlink, request: netlink.Request) -> None:
    try:
        kernel.send(request)
    except KernelError as error:
        if error.errno == errno.EXFULL:
            error.hint = "a bridge takes 1023 containers: use a second network"
        raise


def reattach(kernel: Netlink, name: str, bridge: netlink.Link) -> None:
    """Make a container's link, whose bridge was deleted, a port of the bridge made in its place."""
    kernel.send(netlink.set_link(name, master=bridge.ifindex))
    _finish_port(kernel, name)


def _finish_port(kernel: Netlink, name: str) -> None:
    # br_netfilter translates published ports while a frame is still in the bridge: what a container sends to its own
    # published port then has to leave by the port it came from.
    hairpin = read_sysctl("net/bridge/bridge-nf-call-iptables") == "1"
    kernel.send(netlink.set_link(name, up=True, no_ipv6_address=has_ipv6(), hairpin=hairpin))


def await_end(name: str, seconds: float = 0.05) -> None:
    """Wait until a container's link has gone with its namespace, if that is ending; ``seconds`` at most.

    The kernel takes a link out of use and of sight early on, and goes on for as long again. A request to delete it
    waits for the kernel's lock, and for grace periods of its own: 10 ms and more.
    """
    end = time.monotonic() + seconds
    with Netlink(groups=netlink.RTMGRP_LINK) as kernel:
        while kernel.has_link(name) and (left := end - time.monotonic()) > 0:
            kernel.wait(left)


def detach(name: str) -> None:
    """Delete a link by name; one that is gone is fine (it goes with its namespace)."""
    try:
        with Netlink() as kernel:
            if kernel.has_link(name):
                kernel.send(netlink.delete_link(name))
    except KernelError as error:
        if error.errno != errno.ENODEV:
            raise


def ports_of(kernel: Netlink, bridge: str) -> set[str]:
    """The names of the container links on the bridge."""
    links = kernel.links()
    masters = {link.ifindex for link in links if link.name == bridge}
    return {link.name for link in links if link.master in masters and link.name.startswith(_LINK_PREFIX)}


def has_ipv6() -> bool:
    """Whether the kernel has IPv6 in this namespace."""
    return read_sysctl("net/ipv6/conf/all/disable_ipv6") is not None


def read_sysctl(name: str) -> str | None:
    """The value of /proc/sys/``name`` of the calling thread's network namespace, or None where there is no such."""
    try:
        with open(f"/proc/sys/{name}") as file:
            return file.read().strip()
    except FileNotFoundError:
        return None


def write_sysctl(name: str, value: str, missing_ok: bool = False) -> None:
    """Set /proc/sys/``name`` if it is not so yet; KernelError when the kernel refuses."""
    found = read_sysctl(name)
    if found == value or (found is None and missing_ok):
        return
    try:
        with open(f"/proc/sys/{name}", "w") as file:
            file.write(value)
    except OSError as error:
        raise KernelError(f"set sysctl {name.replace('/', '.')} to {value}", error.errno or errno.EIO) from None
