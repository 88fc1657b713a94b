"""Subnets and names: arithmetic without a kernel."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontain.network import links
from pycontain.network.lease import Network
from pycontain.runtime.errors import PycontainError


def test_candidates_are_private_apart_and_not_those_of_others() -> None:
    found = [ipaddress.ip_network(str(subnet)) for subnet in links.candidates()]
    assert all(subnet.is_private for subnet in found)
    assert not any(one.overlaps(other) for one in found for other in found if one is not other)
    others = ("10.88.0.0/16", "10.89.0.0/16", "172.17.0.0/16", "192.168.122.0/24", "10.96.0.0/12", "10.244.0.0/16")
    assert not any(subnet.overlaps(ipaddress.ip_network(other)) for subnet in found for other in others)


@given(st.integers(0, 2**32 - 1), st.integers(0, 32), st.integers(0, 2**32 - 1), st.integers(0, 32))
def test_overlaps_as_the_standard_library_says(first: int, length: int, second: int, other: int) -> None:
    one = ipaddress.ip_network((first, length), strict=False)
    two = ipaddress.ip_network((second, other), strict=False)
    ours = links.Subnet(int(one.network_address), length), links.Subnet(int(two.network_address), other)
    assert ours[0].overlaps(ours[1]) is one.overlaps(two) and str(ours[0]) == str(one)


def test_the_first_free_is_chosen() -> None:
    assert str(links.choose_subnet([])) == "10.118.0.0/16"
    assert str(links.choose_subnet([links.parse_subnet("10.0.0.0/8")])) == "192.168.128.0/20"
    with pytest.raises(PycontainError) as caught:
        links.choose_subnet([links.Subnet(0, 0)])
    assert caught.value.message == (
        "no private subnet is free: each one that pycontain would take overlaps a route or an address of this host"
    )
    assert caught.value.hint == "see them with: ip route show table all"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("10.0.0.0", 'prefix length is "", wanted 8 to 29'),
        ("10.0.0.0/30", 'prefix length is "30", wanted 8 to 29'),
        ("10.0.0.0/7", 'prefix length is "7", wanted 8 to 29'),
        ("10.0.0.0/x", 'prefix length is "x", wanted 8 to 29'),
        ("10.0.0/16", '"10.0.0" is not an IPv4 address'),
        ("10.0.0.1/16", "10.0.0.1 is not its first address"),
    ],
)
def test_bad_subnets(text: str, problem: str) -> None:
    with pytest.raises(PycontainError) as caught:
        Network("/nowhere", subnet=text)
    assert caught.value.message == f'subnet "{text}": {problem}'


@pytest.mark.parametrize("name", ["", "a/b", "..", "1net", "sixteen-letters-", "a b", "é", "a\n"])
def test_bad_network_names(name: str) -> None:
    with pytest.raises(PycontainError) as caught:
        Network("/nowhere", name)
    assert caught.value.message == f'network name "{name}" is not 1 to 15 letters, digits, - and _ after a letter'


def test_link_names_fit_and_differ() -> None:
    assert links.link_name("0123456789abcdef") == "pc01234567"
    seen = {links.link_name(name) for name in ("web", "db", "0123456789abcdef", "UPPERCASE", "short", "x" * 300)}
    seen |= {links.link_name("0123456789abcdef", attempt) for attempt in range(1, 4)}
    assert len(seen) == 9
    assert all(len(name) == 10 and name.startswith("pc") for name in seen)


def test_macs_are_local_and_follow_the_address() -> None:
    assert links.mac_of("10.118.3.4").hex(":") == "02:70:0a:76:03:04"
    assert links.mac_of("10.118.3.4")[0] & 0b11 == 0b10  # locally administered, not multicast
