"""Other people's firewalls on the host: let through where that is safe, reported where not, and put back."""

from __future__ import annotations

import pathlib
import subprocess

import pytest

from pycontain.network import nft
from pycontain.network.lease import Network
from pycontain.network.ports import parse_publish
from tests.integration.network_hosts import Machine, ask, container, in_own_namespace, neighbour, run

pytestmark = pytest.mark.needs("root", "bridge", "veth", "nft", "netns")

needs_iptables = pytest.mark.skipif(
    nft.find_program("iptables-nft") is None, reason="needs iptables-nft: not installed"
)
needs_legacy = pytest.mark.skipif(
    nft.find_program("iptables-legacy") is None, reason="needs iptables-legacy: not installed"
)

OURS = 'comment "pycontain: let pycontain0 through"'


def check_through(outside: Machine, box: Machine) -> None:
    """Out, in by a published port, and not in by any other."""
    assert box.ask("tcp", "10.9.0.2", 7000, 0.4) == "neighbour saw 10.9.0.1"
    assert outside.ask("tcp", "10.9.0.1", 8080, 0.4) == "box saw 10.9.0.2"
    assert outside.ask("tcp", box.lease.address, 82, 0.4) == "silence"


def serving(network: Network) -> tuple[Machine, Machine]:
    outside = neighbour()
    outside.serve("tcp", 7000)
    box = container(network, "box", "8080:80")
    box.serve("tcp", 80)
    box.serve("tcp", 82)
    return outside, box


@in_own_namespace
def test_a_dropping_forward_policy_is_admitted_to_and_put_back(tmp_path: pathlib.Path) -> None:
    run("nft", "add table ip filter")
    run("nft", "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }")
    before = run("nft", "list", "table", "ip", "filter")
    network = Network(str(tmp_path))
    outside, box = serving(network)
    check_through(outside, box)
    assert box.lease.problems == []
    # A second container adds nothing, and the last to go takes the rules away.
    network.take("second")
    assert run("nft", "list", "ruleset").count(OURS) == 2
    network.release("box")
    assert run("nft", "list", "ruleset").count(OURS) == 2
    network.release("second")
    assert run("nft", "list", "table", "ip", "filter") == before
    assert network.take("third").problems == []
    assert run("nft", "list", "ruleset").count(OURS) == 2


@in_own_namespace
def test_without_our_rules_such_a_chain_drops(tmp_path: pathlib.Path) -> None:
    """The twin: the admission is what lets packets through."""
    run("nft", "add table ip filter")
    run("nft", "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }")
    outside, box = serving(Network(str(tmp_path)))
    run("nft", "flush chain ip filter FORWARD")
    assert box.ask("tcp", "10.9.0.2", 7000, 0.4) == "silence"
    assert outside.ask("tcp", "10.9.0.1", 8080, 0.4) == "silence"


@needs_iptables
@in_own_namespace
def test_docker_s_chains(tmp_path: pathlib.Path) -> None:
    """As docker sets them up through iptables-nft, which must still understand its table afterwards."""
    for words in (
        "-P FORWARD DROP", "-N DOCKER-USER", "-A FORWARD -j DOCKER-USER", "-A DOCKER-USER -j RETURN",
        "-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    ):
        run("iptables-nft", *words.split())
    before = run("iptables-nft", "-S")
    network = Network(str(tmp_path))
    outside, box = serving(network)
    check_through(outside, box)
    listed = run("iptables-nft", "-S", "DOCKER-USER").splitlines()
    assert listed[0] == "-N DOCKER-USER" and listed[-1] == "-A DOCKER-USER -j RETURN"
    assert [line.split(" -m ")[0].split(" -j ")[0] for line in listed[1:-1]] == [
        "-A DOCKER-USER -o pycontain0", "-A DOCKER-USER -i pycontain0",
    ]
    assert "pycontain0" not in run("iptables-nft", "-S", "FORWARD")
    network.release("box")
    assert run("iptables-nft", "-S") == before


@in_own_namespace
def test_a_final_reject_counts_as_dropping(tmp_path: pathlib.Path) -> None:
    """firewalld's shape: policy accept, a last rule that rejects, in a table of the family inet."""
    run("nft", "add table inet firewalld")
    run("nft", "add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; policy accept; }")
    run("nft", "add rule inet firewalld filter_FORWARD ct state established,related accept")
    run("nft", "add rule inet firewalld filter_FORWARD counter reject with icmpx type admin-prohibited")
    outside, box = serving(Network(str(tmp_path)))
    check_through(outside, box)
    assert run("nft", "list", "ruleset").count(OURS) == 2


@needs_iptables
@in_own_namespace
def test_an_iptables_reject_at_the_end_counts_as_dropping(tmp_path: pathlib.Path) -> None:
    run("iptables-nft", "-A", "FORWARD", "-j", "REJECT", "--reject-with", "icmp-host-prohibited")
    outside, box = serving(Network(str(tmp_path)))
    check_through(outside, box)


@needs_iptables
@in_own_namespace
def test_a_firewall_that_comes_later_is_seen_by_the_next_container(tmp_path: pathlib.Path) -> None:
    network = Network(str(tmp_path))
    outside, box = serving(network)
    check_through(outside, box)
    run("iptables-nft", "-P", "FORWARD", "DROP")
    assert box.ask("tcp", "10.9.0.2", 7000, 0.4) == "silence"
    network.take("second")
    check_through(outside, box)


@in_own_namespace
def test_a_flushed_ruleset_comes_back_with_the_next_container(tmp_path: pathlib.Path) -> None:
    network = Network(str(tmp_path))
    outside, box = serving(network)
    run("nft", "flush", "ruleset")
    assert outside.ask("tcp", "10.9.0.1", 8080) == "ECONNREFUSED"
    network.ensure()
    check_through(outside, box)


@needs_iptables
@in_own_namespace
def test_accepting_firewalls_are_left_alone(tmp_path: pathlib.Path) -> None:
    run("iptables-nft", "-A", "FORWARD", "-s", "10.44.0.0/16", "-j", "DROP")
    run("nft", "add table inet t")
    run("nft", "add chain inet t input { type filter hook input priority 0; policy drop; }")
    assert Network(str(tmp_path)).take("box").problems == []
    assert OURS not in run("nft", "list", "ruleset")


@in_own_namespace
def test_a_chain_that_may_not_be_changed_is_reported(tmp_path: pathlib.Path) -> None:
    """A table with an owner (firewalld has it since 2.3) is the owner's alone."""
    script = (
        "add table inet firewalld { flags owner; }\n"
        "add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; policy drop; }\n"
    )
    owner = subprocess.Popen(["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdin is not None
    owner.stdin.write(script)
    owner.stdin.flush()
    while "filter_FORWARD" not in run("nft", "list", "ruleset"):
        pass
    lease = Network(str(tmp_path)).take("box")
    (problem,) = lease.problems
    assert problem.message == (
        "the nftables chain inet firewalld filter_FORWARD drops what is forwarded and could not be changed: let "
        "pycontain0 through: nft ended with status 1 and said: internal:0:0-0: Error: Could not process rule: "
        "Operation not permitted"
    )
    assert problem.hint == (
        "firewall-cmd --permanent --zone=trusted --add-interface=pycontain0 && firewall-cmd --reload"
    )
    # Said again to the next container, which finds nothing changed.
    assert Network(str(tmp_path)).take("second").problems == [problem]
    owner.kill()
    owner.communicate()


@needs_legacy
@in_own_namespace
def test_legacy_iptables_are_reported(tmp_path: pathlib.Path) -> None:
    network = Network(str(tmp_path))
    assert network.take("first").problems == []
    run("iptables-legacy", "-P", "FORWARD", "DROP")
    (problem,) = network.take("second").problems
    said = "the legacy iptables chain FORWARD drops what is forwarded: containers reach no other host"
    assert problem.message == said
    assert problem.hint == (
        "iptables-legacy -I FORWARD -i pycontain0 -j ACCEPT; iptables-legacy -I FORWARD -o pycontain0 -j ACCEPT"
    )
    run("sh", "-c", problem.hint or "")
    run("nft", "add table ip anything")  # legacy changes have no generation number; any nftables change has
    assert network.take("third").problems == []


@in_own_namespace
def test_the_table_is_not_written_again_for_nothing(tmp_path: pathlib.Path) -> None:
    network = Network(str(tmp_path))
    network.ensure()
    number = nft.generation()
    network.take("box")
    network.release("box")
    network.ensure()
    assert nft.generation() == number
    network.take("box", ports=parse_publish("8080:80")).close()
    assert nft.generation() == number + 1
    assert ask("tcp", "127.0.0.1", 8080, 0.2) in ("silence", "EHOSTUNREACH")


@in_own_namespace
def test_rules_carry_the_container_s_id(tmp_path: pathlib.Path) -> None:
    network = Network(str(tmp_path))
    first = network.take("1" * 64, ports=parse_publish("8080:80"))
    second = network.take("2" * 64, ports=parse_publish("127.0.0.1:8081:80/udp"))
    for _ in range(2):  # added to the table, and in the table made anew
        listed = run("nft", "list", "table", "ip", "pycontain0")
        assert f"map {{ tcp . 8080 : {first.address} . 80 }} comment \"{'1' * 64}\"" in listed
        assert f"map {{ udp . 127.0.0.1 . 8081 : {second.address} . 80 }} comment \"{'2' * 64}\"" in listed
        run("nft", "add table ip other")
        network.ensure()
    network.release("1" * 64)
    listed = run("nft", "list", "table", "ip", "pycontain0")
    assert "8080" not in listed and listed.count("8081") == 2


@in_own_namespace
def test_a_port_of_a_dead_container_goes_to_the_next(tmp_path: pathlib.Path) -> None:
    """The supervisor that held the port was killed, and nobody has cleaned up yet."""
    network = Network(str(tmp_path))
    network.take("dead", ports=parse_publish("8080:80")).close()
    for name, publish in (("next", "8080:80"), ("last", "127.0.0.1:8080:80")):
        box = container(network, name, publish)
        box.serve("tcp", 80)
        assert ask("tcp", "127.0.0.1", 8080) == f"{name} saw {box.lease.gateway}"
        box.lease.close()
        network.take(f"other-{name}")
        run("nft", "flush", "ruleset")
        network.ensure()
        assert ask("tcp", "127.0.0.1", 8080) == f"{name} saw {box.lease.gateway}"
