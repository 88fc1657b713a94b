"""The encoders, read again by another library; the decoder against truncated and hostile input."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontain.network import netlink

pyroute2 = pytest.importorskip("pyroute2", reason="pyroute2 is not installed")

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg  # noqa: E402
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg  # noqa: E402
from pyroute2.netlink.rtnl.rtmsg import rtmsg  # noqa: E402

REQUEST, ACK, CREATE, EXCL = 0x1, 0x4, 0x400, 0x200


def decode(kind: type[Any], message: bytes) -> Any:
    found = kind(message)
    found.decode()
    return found


def test_container_messages_say_what_they_should() -> None:
    messages = netlink.container_messages("10.118.3.4", 16, "10.118.0.1")
    assert [text for text, _ in messages] == [
        "set lo up", "add address 10.118.3.4/16 to eth0", "set eth0 up", "add default route via 10.118.0.1"
    ]
    lo, address, eth0, route = (
        decode(kind, message)
        for kind, (_, message) in zip((ifinfmsg, ifaddrmsg, ifinfmsg, rtmsg), messages, strict=True)
    )
    for number, (found, (_, raw)) in enumerate(zip((lo, address, eth0, route), messages, strict=True), 1):
        assert found["header"]["sequence_number"] == number
        assert found["header"]["length"] == len(raw)
        assert found["header"]["pid"] == 0
    assert (lo["header"]["type"], lo["header"]["flags"]) == (netlink.RTM_NEWLINK, REQUEST | ACK)
    assert (lo["index"], lo["flags"], lo["change"]) == (1, 1, 1)
    assert (eth0["index"], eth0["flags"], eth0["change"]) == (2, 1, 1)
    assert (address["header"]["type"], address["header"]["flags"]) == (20, REQUEST | ACK | CREATE | EXCL)
    assert (address["family"], address["prefixlen"], address["index"]) == (2, 16, 2)
    assert address.get_attr("IFA_LOCAL") == address.get_attr("IFA_ADDRESS") == "10.118.3.4"
    assert address.get_attr("IFA_BROADCAST") == "10.118.255.255"
    assert (route["header"]["type"], route["header"]["flags"]) == (24, REQUEST | ACK | CREATE | EXCL)
    assert (route["family"], route["dst_len"], route["table"], route["type"], route["scope"]) == (2, 0, 254, 1, 0)
    assert route.get_attr("RTA_GATEWAY") == "10.118.0.1" and route.get_attr("RTA_DST") is None


def test_guest_messages_say_what_they_should() -> None:
    messages = netlink.guest_messages(b"\x02\x70\x0a\x76\x03\x04", 1400, 4242)
    assert [text for text, _ in messages] == [
        "set eth0 down", "change link eth0 (hardware address 02:70:0a:76:03:04, MTU 1400)",
        "move eth0 to the network namespace of pid 4242",
    ]
    found = [decode(ifinfmsg, message) for _, message in messages]
    for number, (each, (_, raw)) in enumerate(zip(found, messages, strict=True), 1):
        header = each["header"]
        assert (header["sequence_number"], header["length"], header["pid"]) == (number, len(raw), 0)
        assert (header["type"], header["flags"]) == (netlink.RTM_NEWLINK, REQUEST | ACK)
        assert each["index"] == 0 and each.get_attr("IFLA_IFNAME") == "eth0"
    down, change, move = found
    assert (down["flags"], down["change"]) == (0, 1) and change["change"] == move["change"] == 0
    assert change.get_attr("IFLA_ADDRESS") == "02:70:0a:76:03:04" and change.get_attr("IFLA_MTU") == 1400
    assert move.get_attr("IFLA_NET_NS_PID") == 4242 and move.get_attr("IFLA_NEW_IFINDEX") == 2


def test_bridge() -> None:
    request = netlink.new_bridge("pycontain0", b"\x02\x70\x0a\x76\x00\x01", 1400)
    found = decode(ifinfmsg, netlink.encode(request, 7))
    assert found["header"]["flags"] == REQUEST | ACK | CREATE | EXCL and found["index"] == 0 and found["flags"] == 0
    assert found.get_attr("IFLA_IFNAME") == "pycontain0" and found.get_attr("IFLA_MTU") == 1400
    assert found.get_attr("IFLA_ADDRESS") == "02:70:0a:76:00:01"
    info = found.get_attr("IFLA_LINKINFO")
    assert info.get_attr("IFLA_INFO_KIND") == "bridge"
    assert info.get_attr("IFLA_INFO_DATA").get_attr("IFLA_BR_MCAST_SNOOPING") == 0


@pytest.mark.parametrize(("where", "name"), [({"pid": 4242}, "PID"), ({"netns_fd": 9}, "FD")])
def test_veth(where: dict[str, int], name: str) -> None:
    request = netlink.new_veth("pc01234567", master=5, mtu=1450, peer_mac=b"\x02\x70\x0a\x76\x03\x04", **where)
    value = next(iter(where.values()))
    words = f"pid {value}" if name == "PID" else f"fd {value}"
    assert request.description == (
        f"create veth pc01234567 with its peer eth0 in the network namespace of {words}"
    )
    found = decode(ifinfmsg, netlink.encode(request, 1))
    assert found.get_attr("IFLA_IFNAME") == "pc01234567" and found.get_attr("IFLA_MASTER") == 5
    info = found.get_attr("IFLA_LINKINFO")
    assert info.get_attr("IFLA_INFO_KIND") == "veth"
    peer = info.get_attr("IFLA_INFO_DATA").get_attr("VETH_INFO_PEER")
    assert peer["index"] == 2 and peer["flags"] == 0
    assert peer.get_attr("IFLA_IFNAME") == "eth0" and peer.get_attr("IFLA_MTU") == 1450
    assert peer.get_attr("IFLA_ADDRESS") == "02:70:0a:76:03:04"
    assert peer.get_attr(f"IFLA_NET_NS_{name}") == value
    assert found.get_attr("IFLA_NET_NS_PID") is None and found.get_attr("IFLA_NET_NS_FD") is None


def test_veth_wants_one_namespace() -> None:
    for where in ({}, {"pid": 1, "netns_fd": 2}):
        with pytest.raises(ValueError, match="exactly one"):
            netlink.new_veth("pc0", master=1, mtu=1500, peer_mac=bytes(6), **where)


def test_change_and_delete() -> None:
    request = netlink.set_link("pc0", master=3, alias="a network", no_ipv6_address=True, hairpin=True, up=True)
    assert request.description == (
        "change link pc0 (make it a port of link 3, set its alias, keep it without an IPv6 address, "
        "reflect frames, set it up)"
    )
    found = decode(ifinfmsg, netlink.encode(request, 1))
    assert found["header"]["flags"] == REQUEST | ACK
    assert found.get_attr("IFLA_MASTER") == 3 and found.get_attr("IFLA_IFALIAS") == "a network"
    info = found.get_attr("IFLA_LINKINFO")
    assert info.get_attr("IFLA_INFO_SLAVE_KIND") == "bridge"
    assert info.get_attr("IFLA_INFO_SLAVE_DATA").get_attr("IFLA_BRPORT_MODE") == 1
    assert (found["flags"], found["change"]) == (1, 1)
    by_index = decode(ifinfmsg, netlink.encode(netlink.set_link("pc0", index=8, up=True), 1))
    assert by_index["index"] == 8 and by_index.get_attr("IFLA_IFNAME") is None
    gone = decode(ifinfmsg, netlink.encode(netlink.delete_link("pc0"), 1))
    assert gone["header"]["type"] == 17 and gone.get_attr("IFLA_IFNAME") == "pc0"


@pytest.mark.parametrize("name", ["", "a" * 16, "é" * 8])
def test_names_that_the_kernel_does_not_take(name: str) -> None:
    with pytest.raises(ValueError, match="is not 1 to 15 bytes"):
        netlink.delete_link(name)


@given(st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=40)), unique_by=lambda pair: pair[0]))
def test_attributes_are_read_as_they_were_written(pairs: list[tuple[int, bytes]]) -> None:
    data = b"".join(netlink.attribute(kind, value) for kind, value in pairs)
    assert netlink.attributes(data) == dict(pairs)
    assert len(data) % 4 == 0


@given(st.binary(max_size=80))
def test_the_decoder_takes_anything(data: bytes) -> None:
    for value in netlink.attributes(data).values():
        assert len(value) <= len(data)
    for _, _, _, body in netlink._messages(data):
        assert len(body) <= len(data)


def test_a_length_of_zero_does_not_loop() -> None:
    assert netlink.attributes(struct.pack("=HH", 0, 1) * 3) == {}
    assert list(netlink._messages(struct.pack("=IHHII", 0, 1, 0, 0, 0))) == []
