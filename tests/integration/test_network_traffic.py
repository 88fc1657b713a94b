"""Real packets between namespaces: what is published answers, and nothing else does."""

from __future__ import annotations

import pathlib

import pytest

from pycontain.network.lease import Network
from pycontain.network.ports import parse_publish
from tests.integration.network_hosts import Machine, ask, in_own_namespace, neighbour, run, run_json

pytestmark = pytest.mark.needs("root", "bridge", "veth", "nft", "netns")


def container(network: Network, container_id: str, *publish: str) -> Machine:
    ports = [port for text in publish for port in parse_publish(text)]
    lease = network.take(container_id, ports=ports)
    machine = Machine(container_id).join(lease)
    machine.address = lease.address  # type: ignore[attr-defined]
    machine.lease = lease  # type: ignore[attr-defined]
    return machine


@in_own_namespace
def test_published_port_answers_everywhere(tmp_path: pathlib.Path) -> None:
    outside = neighbour()
    network = Network(str(tmp_path))
    box = container(network, "a" * 64, "8080:80", "8080:80/udp")
    other = container(network, "b" * 64)
    for kind in ("tcp", "udp"):
        box.serve(kind, 80)
        assert outside.ask(kind, "10.9.0.1", 8080) == f"{'a' * 64} saw 10.9.0.2"
        assert ask(kind, "127.0.0.1", 8080) == f"{'a' * 64} saw {box.lease.gateway}"
        assert ask(kind, "127.0.0.2", 8080) == f"{'a' * 64} saw {box.lease.gateway}"
        assert ask(kind, "10.9.0.1", 8080) == f"{'a' * 64} saw 10.9.0.1"
        assert ask(kind, box.address, 80) == f"{'a' * 64} saw {box.lease.gateway}"
        # hairpin: another container, and the container itself, by the host's published port
        assert other.ask(kind, "10.9.0.1", 8080) == f"{'a' * 64} saw {box.lease.gateway}"
        assert box.ask(kind, "10.9.0.1", 8080) == f"{'a' * 64} saw {box.lease.gateway}"
        assert other.ask(kind, box.lease.gateway, 8080) == f"{'a' * 64} saw {box.lease.gateway}"
        assert other.ask(kind, box.address, 80) == f"{'a' * 64} saw {other.address}"
    network.release("a" * 64)
    assert outside.ask("tcp", "10.9.0.1", 8080, 0.5) == "ECONNREFUSED"
