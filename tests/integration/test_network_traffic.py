"""Real packets between namespaces: what is published answers where it was asked to, and nothing else does."""

from __future__ import annotations

import pathlib
import socket
import subprocess
import sys

import pytest

from pycontain.network.lease import Network
from pycontain.network.ports import parse_publish
from pycontain.runtime.errors import KernelError
from tests.integration.network_hosts import Machine, ask, container, in_own_namespace, neighbour, run, serve

pytestmark = pytest.mark.needs("root", "bridge", "veth", "nft", "netns")

BINDER = """
import errno, socket, sys
kind, address, port, reuse = sys.argv[1:]
s = socket.socket(type=socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse))
try:
    s.bind((address, int(port)))
    if kind == "tcp": s.listen()
    print("bound")
except OSError as error: print(errno.errorcode[error.errno])
"""


def bind(kind: str, address: str, port: int, reuse: int) -> str:
    return run(sys.executable, "-c", BINDER, kind, address, str(port), str(reuse))


@in_own_namespace
def test_a_published_port_answers_everywhere(tmp_path: pathlib.Path) -> None:
    outside = neighbour()
    network = Network(str(tmp_path))
    box = container(network, "box", "8080:80", "8080:80/udp", "9000-9001:90-91")
    other = container(network, "other")
    gateway = box.lease.gateway
    for kind in ("tcp", "udp"):
        box.serve(kind, 80)
        assert outside.ask(kind, "10.9.0.1", 8080) == "box saw 10.9.0.2"
        assert ask(kind, "127.0.0.1", 8080) == f"box saw {gateway}"
        assert ask(kind, "127.0.0.2", 8080) == f"box saw {gateway}"
        assert ask(kind, "10.9.0.1", 8080) == "box saw 10.9.0.1"
        assert ask(kind, box.lease.address, 80) == f"box saw {gateway}"
        # Hairpin: another container, and the container itself, by the host's address.
        assert other.ask(kind, "10.9.0.1", 8080) == f"box saw {gateway}"
        assert box.ask(kind, "10.9.0.1", 8080) == f"box saw {gateway}"
        assert other.ask(kind, gateway, 8080) == f"box saw {gateway}"
        assert other.ask(kind, box.lease.address, 80) == f"box saw {other.lease.address}"
    box.serve("tcp", 91)
    assert outside.ask("tcp", "10.9.0.1", 9001) == "box saw 10.9.0.2"
    assert outside.ask("tcp", "10.9.0.1", 9000) == "ECONNREFUSED"
    network.release("box")
    box.lease.close()
    assert outside.ask("tcp", "10.9.0.1", 8080) == "ECONNREFUSED"
    assert ask("tcp", "127.0.0.1", 8080) == "ECONNREFUSED"


@in_own_namespace
def test_the_kernel_picks_a_host_port(tmp_path: pathlib.Path) -> None:
    box = container(Network(str(tmp_path)), "box", "80", "127.0.0.1::81")
    box.serve("tcp", 80)
    box.serve("tcp", 81)
    first, second = box.lease.ports
    assert first.host_port and second.host_port and second.host_ip == "127.0.0.1"
    assert ask("tcp", "127.0.0.1", first.host_port) == f"box saw {box.lease.gateway}"
    assert ask("tcp", "127.0.0.1", second.host_port) == f"box saw {box.lease.gateway}"
    assert bind("tcp", "127.0.0.1", first.host_port, 1) == "EADDRINUSE"


@in_own_namespace
def test_a_neighbour_reaches_only_what_is_published_to_it(tmp_path: pathlib.Path) -> None:
    """CVE-2025-54388 and its kin: the neighbour takes this host as its router to the containers."""
    outside = neighbour()
    run("ip", "addr", "add", "10.9.0.77/24", "dev", "w1")
    network = Network(str(tmp_path))
    box = container(network, "box", "127.0.0.1:8080:80", "10.9.0.77:8081:81")
    for port in (80, 81, 82):
        box.serve("tcp", port)
        box.serve("udp", port)
    assert ask("tcp", "127.0.0.1", 8080) == f"box saw {box.lease.gateway}"
    assert ask("tcp", "127.0.0.2", 8080) == "ECONNREFUSED"
    assert ask("tcp", "127.0.0.1", 8081) == "ECONNREFUSED"
    assert outside.ask("tcp", "10.9.0.1", 8080) == "ECONNREFUSED"
    assert outside.ask("tcp", "10.9.0.1", 8081) == "ECONNREFUSED"
    assert outside.ask("tcp", "10.9.0.77", 8081) == "box saw 10.9.0.2"
    assert outside.ask("tcp", "10.9.0.77", 8080) == "ECONNREFUSED"
    for port in (80, 81, 82):
        for kind in ("tcp", "udp"):
            assert outside.ask(kind, box.lease.address, port, 0.4) == "silence"
    # The twin which shows that it is our rule that holds: without it the same question is answered.
    run("nft", "flush", "chain", "ip", "pycontain0", "forward")
    assert outside.ask("tcp", box.lease.address, 82) == "box saw 10.9.0.2"


@in_own_namespace
def test_nobody_outside_reaches_the_host_s_loopback_services(tmp_path: pathlib.Path) -> None:
    """Publishing on 127.0.0.1 sets route_localnet on the bridge: a container must not profit (CVE-2020-8558)."""
    outside = neighbour()
    network = Network(str(tmp_path))
    box = container(network, "box", "127.0.0.1:8080:80")
    box.serve("tcp", 80)
    secret = serve(["setpriv", "--pdeathsig", "KILL"], "tcp", 5000, "127.0.0.1", "secret")
    try:
        assert ask("tcp", "127.0.0.1", 5000) == "secret saw 127.0.0.1"
        for machine, router in ((box, box.lease.gateway), (outside, "10.9.0.1")):
            machine.run("ip", "addr", "flush", "dev", "lo")
            machine.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet")
            machine.run("ip", "route", "add", "127.0.0.0/8", "via", router)
            assert machine.ask("tcp", "127.0.0.1", 5000, 0.4) == "silence"
            assert machine.ask("udp", "127.0.0.1", 5000, 0.4) == "silence"
        # Even where something else made the wire's packets for 127/8 welcome, what is published there is not.
        run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/w1/route_localnet")
        assert outside.ask("tcp", "127.0.0.1", 5000) == "secret saw 10.9.0.2"
        assert outside.ask("tcp", "127.0.0.1", 8080) == "ECONNREFUSED"
        # A container that calls itself 127.0.0.1 is not taken for this host either.
        box.run("ip", "addr", "add", "127.0.0.1/32", "dev", "eth0")
        udp = "from socket import *; s = socket(2, SOCK_DGRAM); s.bind(('127.0.0.1', 0)); s.sendto(b'x', ('{}', 6000))"
        with socket.socket(type=socket.SOCK_DGRAM) as receiver:
            receiver.bind(("0.0.0.0", 6000))
            receiver.settimeout(0.4)
            box.run(sys.executable, "-c", udp.format(box.lease.gateway))
            with pytest.raises(TimeoutError):
                receiver.recv(10)
        # The twin: without the rule the container's question is answered.
        run("nft", "flush", "chain", "ip", "pycontain0", "raw")
        box.run("ip", "addr", "del", "127.0.0.1/32", "dev", "eth0")
        assert box.ask("tcp", "127.0.0.1", 5000) == f"secret saw {box.lease.address}"
    finally:
        secret.kill()
        secret.wait()


@in_own_namespace
def test_route_localnet_is_on_only_while_it_is_needed(tmp_path: pathlib.Path) -> None:
    network = Network(str(tmp_path))
    setting = pathlib.Path("/proc/sys/net/ipv4/conf/pycontain0/route_localnet")
    forwarding = pathlib.Path("/proc/sys/net/ipv4/ip_forward")
    forwarding.write_text("0")
    network.take("plain")
    assert setting.read_text() == "0\n"
    network.take("box", ports=parse_publish("8080:80"))
    assert setting.read_text() == "1\n"
    network.release("box")
    assert setting.read_text() == "0\n"
    assert forwarding.read_text() == "1\n"
    assert pathlib.Path("/proc/sys/net/ipv4/conf/lo/route_localnet").read_text() == "0\n"


@in_own_namespace
def test_outbound_is_masqueraded(tmp_path: pathlib.Path) -> None:
    outside = neighbour()
    outside.run("ip", "route", "del", "default")  # it knows nothing of our subnet
    outside.serve("tcp", 7000)
    outside.serve("udp", 7000)
    box = container(Network(str(tmp_path)), "box")
    assert box.ask("tcp", "10.9.0.2", 7000) == "neighbour saw 10.9.0.1"
    assert box.ask("udp", "10.9.0.2", 7000) == "neighbour saw 10.9.0.1"


@in_own_namespace
def test_a_host_port_is_held_against_others(tmp_path: pathlib.Path) -> None:
    network = Network(str(tmp_path))
    lease = network.take("box", ports=parse_publish("8080:80") + parse_publish("127.0.0.1:53:53/udp"))
    for reuse in (0, 1):
        assert bind("tcp", "0.0.0.0", 8080, reuse) == "EADDRINUSE"
        assert bind("tcp", "127.0.0.1", 8080, reuse) == "EADDRINUSE"
        assert bind("udp", "127.0.0.1", 53, reuse) == "EADDRINUSE"
        assert bind("udp", "127.0.0.2", 53, reuse) == "bound"
        assert bind("udp", "0.0.0.0", 8080, reuse) == "bound"
    with pytest.raises(KernelError) as caught:
        network.take("second", ports=parse_publish("127.0.0.1:8080:80"))
    assert caught.value.message == "cannot publish port 127.0.0.1:8080/tcp: EADDRINUSE (address already in use)"
    assert caught.value.hint == "see who has it: ss -tlnp sport = :8080; or publish another host port"
    assert network.leases() == {"box": lease.address}
    # Inherited copies hold the port too, as those of a supervisor do.
    copy = subprocess.Popen(["sleep", "1000"], pass_fds=[each.fileno() for each in lease.host_sockets])
    lease.close()
    assert bind("tcp", "127.0.0.1", 8080, 1) == "EADDRINUSE"
    copy.kill()
    copy.wait()
    assert bind("tcp", "127.0.0.1", 8080, 1) == "bound"


@in_own_namespace
def test_a_host_port_that_somebody_has_is_refused(tmp_path: pathlib.Path) -> None:
    network = Network(str(tmp_path))
    for kind in ("tcp", "udp"):
        process = serve(["setpriv", "--pdeathsig", "KILL"], kind, 8080, "127.0.0.1", "other")
        for text in ("8080:80", "127.0.0.1:8080:80"):
            with pytest.raises(KernelError) as caught:
                network.take("box", ports=parse_publish(f"81:81/{kind}") + parse_publish(f"{text}/{kind}"))
            address = text.rpartition(":8080")[0] or "0.0.0.0"
            wanted = f"cannot publish port {address}:8080/{kind}: EADDRINUSE (address already in use)"
            assert caught.value.message == wanted
        assert bind(kind, "0.0.0.0", 81, 0) == "bound"  # the one that was had is given back
        process.kill()
        process.wait()
    assert network.leases() == {}
    with pytest.raises(KernelError) as caught:
        network.take("box", ports=parse_publish("10.77.0.1:8080:80"))
    assert caught.value.message == (
        "cannot publish port 10.77.0.1:8080/tcp: EADDRNOTAVAIL (cannot assign requested address)"
    )
    assert caught.value.hint == "10.77.0.1 is not an address of this host: ip -br address"


@in_own_namespace
def test_connections_lately_closed_do_not_hold_a_port(tmp_path: pathlib.Path) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 8080))
        listener.listen()
        with socket.create_connection(("127.0.0.1", 8080)) as client:
            accepted, _ = listener.accept()
            accepted.close()  # the side that closes first keeps TIME_WAIT
            assert client.recv(1) == b""
    assert "TIME-WAIT" in run("ss", "-tan", "sport", "=", ":8080")
    assert bind("tcp", "0.0.0.0", 8080, 0) == "EADDRINUSE"
    lease = Network(str(tmp_path)).take("box", ports=parse_publish("8080:80"))
    assert bind("tcp", "127.0.0.1", 8080, 1) == "EADDRINUSE"
    lease.close()


@in_own_namespace
def test_connections_survive_the_changes_of_others(tmp_path: pathlib.Path) -> None:
    outside = neighbour()
    network = Network(str(tmp_path))
    box = container(network, "box", "8080:80")
    script = (
        "import socket\ns = socket.socket(); s.bind(('0.0.0.0', 80)); s.listen(); print('ready', flush=True)\n"
        "c, _ = s.accept()\nwhile True: c.sendall(c.recv(10))"
    )
    server = subprocess.Popen(box.command(sys.executable, "-c", script), stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None and server.stdout.readline() == "ready\n"
    talk = (
        "import socket, sys\ns = socket.create_connection(('10.9.0.1', 8080)); s.settimeout(3)\n"
        "for line in sys.stdin: s.sendall(line.encode()); print(s.recv(10).decode(), end='', flush=True)"
    )
    client = subprocess.Popen(
        outside.command(sys.executable, "-c", talk), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert client.stdin is not None and client.stdout is not None
    for turn in range(5):
        client.stdin.write(f"{turn}\n")
        client.stdin.flush()
        assert client.stdout.readline() == f"{turn}\n"
        network.take(f"other{turn}", ports=parse_publish(f"{9000 + turn}:80")).close()
    network.reconcile({"box"})
    client.stdin.write("last\n")
    client.stdin.flush()
    assert client.stdout.readline() == "last\n"
    for process in (client, server):
        process.kill()
        process.communicate()


@in_own_namespace
def test_a_udp_client_follows_the_port_to_its_next_container(tmp_path: pathlib.Path) -> None:
    """Connection tracking would keep sending a chatty client to the container that has gone."""
    network = Network(str(tmp_path))
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.settimeout(3)
        client.connect(("127.0.0.1", 5353))
        for name in ("first", "second"):
            box = container(network, name, "5353:53/udp")
            box.serve("udp", 53)
            client.send(b"?")
            assert client.recv(100).decode() == f"{name} saw {box.lease.gateway}"
            box.close()
            network.release(name)
            box.lease.close()
            # What it sends in between is tracked as well, as a connection to this host itself.
            client.send(b"?")
            with pytest.raises(ConnectionRefusedError):
                client.recv(1)


@in_own_namespace
def test_two_networks_do_not_reach_each_other(tmp_path: pathlib.Path) -> None:
    """Two roots on one host: bridges, subnets and tables of their own; published ports are the way across."""
    first, second = Network(str(tmp_path / "a")), Network(str(tmp_path / "b"))
    one, two = container(first, "one", "8080:80"), container(second, "two", "8081:80")
    one.serve("tcp", 80)
    two.serve("tcp", 80)
    assert {one.lease.gateway, two.lease.gateway} == {"10.118.0.1", "10.119.0.1"}
    assert one.ask("tcp", two.lease.address, 80, 0.4) == "silence"
    assert two.ask("tcp", one.lease.address, 80, 0.4) == "silence"
    assert one.ask("tcp", one.lease.gateway, 8081) == f"two saw {two.lease.gateway}"
    assert ask("tcp", "127.0.0.1", 8080) == f"one saw {one.lease.gateway}"
    assert ask("tcp", "127.0.0.1", 8081) == f"two saw {two.lease.gateway}"


@in_own_namespace
def test_nothing_is_reached_over_ipv6(tmp_path: pathlib.Path) -> None:
    box = container(Network(str(tmp_path)), "box")
    assert "inet6" not in run("ip", "addr", "show", "dev", "pycontain0")
    assert "inet6" not in run("ip", "addr", "show", "dev", box.lease.link)


def test_machines_end(tmp_path: pathlib.Path) -> None:
    """The tests' own scaffolding: a closed machine has no process left."""
    machine = Machine("x")
    machine.close()
    assert not pathlib.Path(f"/proc/{machine.pid}").exists()
