"""What -p means, to the letter of its errors, and the sockets that hold ports."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycontain.network.ports import Port, hold, parse_publish
from pycontain.runtime.errors import KernelError, PycontainError, Unsupported

HINT = "-p [ip:][host:]container[/tcp|/udp], such as -p 127.0.0.1:8080:80"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("80", [Port(80)]),
        ("8080:80", [Port(80, 8080)]),
        ("0:80", [Port(80, 0)]),
        ("127.0.0.1:8080:80", [Port(80, 8080, "127.0.0.1")]),
        ("127.0.0.1::80", [Port(80, 0, "127.0.0.1")]),
        ("0.0.0.0:8080:80", [Port(80, 8080)]),
        ("53:53/udp", [Port(53, 53, protocol="udp")]),
        ("53:53/UDP", [Port(53, 53, protocol="udp")]),
        ("80-81", [Port(80), Port(81)]),
        ("8080-8081:80-81", [Port(80, 8080), Port(81, 8081)]),
        (
            "127.0.0.1:8080-8081:80-81/udp",
            [Port(80, 8080, "127.0.0.1", "udp"), Port(81, 8081, "127.0.0.1", "udp")],
        ),
        ("65535:65535", [Port(65535, 65535)]),
    ],
)
def test_good(text: str, wanted: list[Port]) -> None:
    assert parse_publish(text) == wanted


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", 'container port is "", wanted a number from 1 to 65535 or a range of them'),
        (":", 'container port is "", wanted a number from 1 to 65535 or a range of them'),
        (":80", 'host port is "", wanted a number from 0 to 65535 or a range of them'),
        ("0", 'container port is "0", wanted a number from 1 to 65535 or a range of them'),
        ("8080:0", 'container port is "0", wanted a number from 1 to 65535 or a range of them'),
        ("8080:65536", 'container port is "65536", wanted a number from 1 to 65535 or a range of them'),
        ("http:80", 'host port is "http", wanted a number from 0 to 65535 or a range of them'),
        ("-1:80", 'host port is "-1", wanted a number from 0 to 65535 or a range of them'),
        ("8080:8०", 'container port is "8०", wanted a number from 1 to 65535 or a range of them'),
        ("8080:+80", 'container port is "+80", wanted a number from 1 to 65535 or a range of them'),
        ("8080 :80", 'host port is "8080 ", wanted a number from 0 to 65535 or a range of them'),
        ("8081-8080:80-81", 'host port range "8081-8080" ends before it begins'),
        ("0-1:80-81", 'host port range "0-1" begins at 0, wanted 1 to 65535'),
        ("8080-8082:80-81", "3 host ports for 2 container ports, wanted as many"),
        ("8080:80-81", "1 host ports for 2 container ports, wanted as many"),
        ("80/icmp", 'protocol is "icmp", wanted tcp or udp'),
        ("80/", 'protocol is "", wanted tcp or udp'),
        ("localhost:8080:80", 'host address is "localhost", wanted an IPv4 address'),
        ("127.1:8080:80", 'host address is "127.1", wanted an IPv4 address'),
        ("0127.0.0.1:8080:80", 'host address is "0127.0.0.1", wanted an IPv4 address'),
        ("256.0.0.1:8080:80", 'host address is "256.0.0.1", wanted an IPv4 address'),
        (":8080:80", 'host address is "", wanted an IPv4 address'),
    ],
)
def test_bad(text: str, problem: str) -> None:
    with pytest.raises(PycontainError) as caught:
        parse_publish(text)
    assert caught.value.message == f'publish "{text}": {problem}'
    assert caught.value.hint == HINT


@pytest.mark.parametrize("text", ["[::1]:8080:80", "::1:8080:80", "[::]:80"])
def test_ipv6_is_refused_by_name(text: str) -> None:
    with pytest.raises(Unsupported) as caught:
        parse_publish(text)
    assert caught.value.message == (
        f'publish "{text}": the bridge carries IPv4 only, an IPv6 host address is not supported'
    )


def test_sctp_is_refused_by_name() -> None:
    with pytest.raises(Unsupported) as caught:
        parse_publish("80/sctp")
    assert caught.value.message == 'publish "80/sctp": protocol sctp is not supported, only tcp and udp'


@given(st.text(max_size=30))
def test_anything_is_parsed_or_refused(text: str) -> None:
    try:
        ports = parse_publish(text)
    except PycontainError:
        return
    assert all(0 < port.container_port < 65536 and 0 <= port.host_port < 65536 for port in ports)


def test_which_ports_conflict() -> None:
    port = Port(80, 8080, "127.0.0.1")
    assert port.conflicts(Port(81, 8080)) and Port(81, 8080).conflicts(port) and port.conflicts(port)
    assert not port.conflicts(Port(80, 8081, "127.0.0.1"))
    assert not port.conflicts(Port(80, 8080, "127.0.0.2"))
    assert not port.conflicts(Port(80, 8080, "127.0.0.1", "udp"))


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_held_port_is_nobody_else_s(protocol: str) -> None:
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    holder, picked = hold(Port(80, 0, "127.0.0.1", protocol))
    assert picked.host_port != 0 and picked.container_port == 80
    with pytest.raises(KernelError) as caught:
        hold(picked)
    holder.close()
    assert caught.value.message == (
        f"cannot publish port 127.0.0.1:{picked.host_port}/{protocol}: EADDRINUSE (address already in use)"
    )
    # The same number, now asked for by name.
    holder, again = hold(picked)
    assert again == picked
    for reuse in (0, 1):
        with socket.socket(type=kind) as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
            with pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", picked.host_port))
    if protocol == "tcp":
        # It is held, and answers as if nobody were there.
        with socket.socket() as client, pytest.raises(ConnectionRefusedError):
            client.connect(("127.0.0.1", picked.host_port))
    holder.close()
    with socket.socket(type=kind) as other:
        other.bind(("127.0.0.1", picked.host_port))


def test_holders_are_not_inherited_by_chance() -> None:
    holder, _ = hold(Port(80, 0, "127.0.0.1"))
    assert not os.get_inheritable(holder.fileno())
    holder.close()
