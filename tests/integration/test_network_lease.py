"""Leases and links in the kernel: what is made, that it never collides, and that nothing is left of it."""

from __future__ import annotations

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from pycontain.network import links, netlink
from pycontain.network.lease import Network
from pycontain.network.ports import parse_publish
from pycontain.runtime.errors import Conflict, KernelError, NotFound, PycontainError
from tests.integration.network_hosts import Machine, ask, container, in_own_namespace, run, run_json

pytestmark = pytest.mark.needs("root", "bridge", "veth", "nft", "netns")

REPOSITORY = str(pathlib.Path(__file__).resolve().parents[2])


def link_names() -> set[str]:
    return {link["ifname"] for link in run_json("ip", "-j", "link")}


def python(script: str, *arguments: str) -> subprocess.Popen[str]:
    words = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-c", script, *arguments]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": REPOSITORY})


@in_own_namespace
def test_what_the_container_gets(tmp_path: pathlib.Path) -> None:
    network = Network(str(tmp_path))
    box = container(network, "0123456789abcdef")
    lease = box.lease
    assert lease.link == "pc01234567" and lease.gateway == "10.118.0.1" and lease.prefix == 16
    assert [text for text, _ in lease.netlink] == [
        "set lo up", f"add address {lease.address}/16 to eth0", "set eth0 up", "add default route via 10.118.0.1"
    ]
    listed = {link["ifname"]: link for link in json.loads(box.run("ip", "-j", "-d", "addr"))}
    assert set(listed) == {"lo", "eth0"}
    eth0 = listed["eth0"]
    assert eth0["ifindex"] == 2 and eth0["address"] == lease.mac and eth0["mtu"] == 1500
    assert "UP" in eth0["flags"] and "LOWER_UP" in eth0["flags"] and "UP" in listed["lo"]["flags"]
    (address,) = [entry for entry in eth0["addr_info"] if entry["family"] == "inet"]
    assert (address["local"], address["prefixlen"], address["broadcast"]) == (lease.address, 16, "10.118.255.255")
    (route,) = [entry for entry in json.loads(box.run("ip", "-j", "route")) if entry["dst"] == "default"]
    assert route["gateway"] == "10.118.0.1" and route["dev"] == "eth0"
    # The host's half, through another library.
    from pyroute2 import IPRoute

    with IPRoute() as other:
        (host,) = other.link("get", ifname="pc01234567")
        (bridge,) = other.link("get", ifname="pycontain0")
        assert host.get_attr("IFLA_MASTER") == bridge["index"] and host["state"] == "up"
        assert host.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_KIND") == "veth"
        assert bridge.get_attr("IFLA_ADDRESS") == "02:70:0a:76:00:01" and bridge["state"] == "up"
        assert [a.get_attr("IFA_LOCAL") for a in other.get_addr(index=bridge["index"])] == ["10.118.0.1"]


@in_own_namespace
def test_the_second_lookup_finds_the_same(tmp_path: pathlib.Path) -> None:
    network = Network(str(tmp_path))
    lease = network.take("box", "web", parse_publish("8080:80"))
    again = Network(str(tmp_path)).lease("box")
    assert again is not None and network.lease("other") is None
    assert (again.address, again.mac, again.netlink, again.ports) == (
        lease.address, lease.mac, lease.netlink, lease.ports
    )
    assert again.name == "web" and again.host_sockets == [] and len(lease.host_sockets) == 1
    assert network.leases() == {"box": lease.address}
    # Restarted, a container keeps its address, even where others came meanwhile.
    network.take("other")
    lease.close()
    assert network.take("box").address == lease.address
    network.release("box")
    assert network.take("box").address == lease.address


@in_own_namespace
def test_attach_replaces_what_an_earlier_attempt_left(tmp_path: pathlib.Path) -> None:
    network = Network(str(tmp_path))
    lease = network.take("box")
    dead, box = Machine("dead"), Machine("box")
    lease.attach(dead.pid)
    lease.attach(box.pid)
    box.configure(lease)
    assert "eth0" not in dead.run("ip", "link")
    assert ask("tcp", lease.address, 80) == "ECONNREFUSED"
    lease.detach()
    lease.detach()
    assert link_names() == {"lo", "pycontain0"}


@in_own_namespace
def test_a_link_goes_with_its_namespace_and_is_deleted_where_that_stays(tmp_path: pathlib.Path) -> None:
    network = Network(str(tmp_path))
    ends, stays = "01234567ends", "89abcdefstays"
    boxes = {name: Machine(name) for name in (ends, stays)}
    for name, box in boxes.items():
        network.take(name).attach(box.pid)
    os.kill(boxes[ends].pid, signal.SIGKILL)
    links.await_end(links.link_name(ends), seconds=20)
    assert link_names() == {"lo", "pycontain0", links.link_name(stays)}
    links.await_end(links.link_name(stays), seconds=0.01)
    assert links.link_name(stays) in link_names()
    for name in boxes:
        network.release(name)
    assert link_names() == {"lo", "pycontain0"} and network.leases() == {}


@in_own_namespace
def test_attach_by_namespace_fd(tmp_path: pathlib.Path) -> None:
    lease = Network(str(tmp_path)).take("box")
    box = Machine("box")
    fd = os.open(f"/proc/{box.pid}/ns/net", os.O_RDONLY)
    lease.attach(netns_fd=fd)
    os.close(fd)
    box.configure(lease)
    assert ask("tcp", lease.address, 80) == "ECONNREFUSED"


@in_own_namespace
def test_attach_refusals(tmp_path: pathlib.Path) -> None:
    network = Network(str(tmp_path))
    lease = network.take("0123456789abcdef")
    gone = subprocess.Popen(["true"])
    gone.wait()
    with pytest.raises(KernelError) as caught:
        lease.attach(gone.pid)
    assert caught.value.message == (
        f"create veth pc01234567 with its peer eth0 in the network namespace of pid {gone.pid}: "
        "ESRCH (no such process)"
    )
    box = Machine("box")
    box.run("ip", "link", "add", "eth0", "type", "bridge")
    with pytest.raises(KernelError) as caught:
        lease.attach(box.pid)
    assert caught.value.message == (
        f"create veth pc01234567 with its peer eth0 in the network namespace of pid {box.pid}: EEXIST (file exists)"
    )
    assert link_names() == {"lo", "pycontain0"}
    run("ip", "link", "del", "pycontain0")
    with pytest.raises(NotFound) as missing:
        lease.attach(box.pid)
    assert missing.value.message == "bridge pycontain0 of this network is gone"


@in_own_namespace
def test_a_full_bridge_says_so(tmp_path: pathlib.Path) -> None:
    network = Network(str(tmp_path))
    lease, box = network.take("box"), Machine("box")
    with netlink.Netlink() as kernel:
        bridge = kernel.link("pycontain0")
        assert bridge is not None
        for number in range(1023):
            kernel.send(netlink.new_veth(
                f"x{number}", master=bridge.ifindex, mtu=1500, peer_mac=links.mac_of("10.0.0.1"), pid=box.pid,
                peer_name=f"e{number}", peer_index=0,
            ))
    other = Machine("other")
    with pytest.raises(KernelError) as caught:
        lease.attach(other.pid)
    assert caught.value.message.endswith(f"of pid {other.pid}: EXFULL (exchange full)")
    assert caught.value.hint == "a bridge takes 1023 containers: use a second network"


@in_own_namespace
def test_ids_that_begin_alike_do_not_share_a_link(tmp_path: pathlib.Path) -> None:
    network = Network(str(tmp_path))
    first, second = container(network, "0123456789abcdef"), container(network, "0123456700000000")
    assert first.lease.link == "pc01234567" != second.lease.link
    for box in (first, second):
        assert ask("tcp", box.lease.address, 80) == "ECONNREFUSED"
    network.release("0123456700000000")
    assert ask("tcp", first.lease.address, 80) == "ECONNREFUSED"
    assert link_names() == {"lo", "pycontain0", "pc01234567"}


@in_own_namespace
def test_the_kernel_s_own_words_reach_the_message(tmp_path: pathlib.Path) -> None:
    with netlink.Netlink() as kernel:
        kernel.send(netlink.new_bridge("br0", links.mac_of("10.0.0.1"), 1500))
        index = kernel.link("br0")
        assert index is not None
        with pytest.raises(KernelError) as caught:
            kernel.send(netlink.Request("add address 10.0.0.1/33 to br0", netlink.RTM_NEWADDR, 0, (
                bytes([netlink.AF_INET, 33, 0, 0]) + index.ifindex.to_bytes(4, sys.byteorder)
                + netlink.attribute(netlink.IFA_LOCAL, bytes(4))
            )))
        assert caught.value.message == (
            'add address 10.0.0.1/33 to br0 (kernel: "ipv4: Invalid prefix length"): EINVAL (invalid argument)'
        )
        with pytest.raises(KernelError) as caught:
            kernel.send(netlink.add_default_route("10.9.9.9"))
        assert caught.value.message == (
            'add default route via 10.9.9.9 (kernel: "Nexthop has invalid gateway"): '
            "ENETUNREACH (network is unreachable)"
        )
        with pytest.raises(KernelError) as caught:
            kernel.send(netlink.new_bridge("br0", links.mac_of("10.0.0.1"), 1500))
        assert caught.value.message == "create bridge br0: EEXIST (file exists)"
        assert kernel.link("nothing") is None
        # Of several requests in one datagram each is answered; the first refusal is the one that is told.
        with pytest.raises(KernelError) as caught:
            kernel.send(netlink.delete_link("br7"), netlink.delete_link("br0"), netlink.delete_link("br8"))
        assert caught.value.message == "delete link br7: ENODEV (no such device)"
        assert kernel.link("br0") is None


@in_own_namespace
def test_the_subnet_avoids_what_the_host_has(tmp_path: pathlib.Path) -> None:
    for number, subnet in enumerate(("10.118.3.1/24", "10.96.0.1/11")):
        run("ip", "link", "add", f"br{number}", "type", "bridge")
        run("ip", "addr", "add", subnet, "dev", f"br{number}")
        run("ip", "link", "set", f"br{number}", "up", "mtu", "1400")
    run("ip", "route", "add", "192.168.128.0/19", "via", "10.118.3.2", "table", "77")
    run("ip", "route", "add", "0.0.0.0/1", "via", "10.118.3.2")
    run("ip", "route", "add", "default", "via", "10.118.3.2")
    network = Network(str(tmp_path))
    network.ensure()
    kept = json.loads((tmp_path / "pycontain0/network.json").read_text())
    assert kept["version"] == 1 and kept["subnet"] == "192.168.160.0/20" and kept["mtu"] == 1400
    lease = network.take("box")
    assert lease.gateway == "192.168.160.1" and lease.prefix == 20
    for name in ("box", "next"):
        box = container(network, name)
        mtus = {link["ifname"]: link["mtu"] for link in run_json("ip", "-j", "link")}
        assert mtus["pycontain0"] == mtus[box.lease.link] == 1400
        assert '"mtu":1400' in box.run("ip", "-j", "link", "show", "eth0")
        network.release(name)


@in_own_namespace
def test_the_choice_of_a_subnet_lasts_as_long_as_it_fits(tmp_path: pathlib.Path) -> None:
    network = Network(str(tmp_path))
    network.ensure()
    run("ip", "link", "del", "pycontain0")  # as after a reboot
    network.ensure()
    assert [entry[1] for entry in netlink.Netlink().addresses() if entry[0] != 1] == ["10.118.0.1"]
    run("ip", "link", "del", "pycontain0")
    run("ip", "link", "add", "pycontain0", "type", "bridge")
    run("ip", "addr", "add", "10.118.9.1/24", "dev", "pycontain0")
    assert network.take("box").gateway == "10.119.0.1"
    assert "pycontain1" in link_names()
    run("ip", "link", "del", "pycontain1")
    run("ip", "link", "add", "pycontain1", "type", "bridge")
    with pytest.raises(Conflict) as caught:
        network.take("other")
    assert caught.value.message == (
        "network pycontain0 lost its bridge, and a link pycontain1 of somebody else is in the way "
        "while its containers run"
    )


@in_own_namespace
def test_a_subnet_of_one_s_own(tmp_path: pathlib.Path) -> None:
    network = Network(str(tmp_path), "small", subnet="10.5.0.0/29")
    taken = {network.take(f"box{number}").address for number in range(5)}
    assert taken == {f"10.5.0.{number}" for number in range(2, 7)}
    with pytest.raises(PycontainError) as caught:
        network.take("box5")
    assert caught.value.message == "no address is free on network small: all 5 of 10.5.0.0/29 are leased"
    assert caught.value.hint == "free those of containers that are gone: pycontain system prune"
    network.release("box3")
    network.take("box5")
    with pytest.raises(Conflict) as conflict:
        Network(str(tmp_path), "small", subnet="10.6.0.0/29").ensure()
    assert conflict.value.message == "network small has subnet 10.5.0.0/29, not 10.6.0.0/29"
    with pytest.raises(Conflict) as conflict:
        Network(str(tmp_path), "other", subnet="10.5.0.0/16").ensure()
    assert conflict.value.message == "subnet 10.5.0.0/16 overlaps 10.5.0.0/29, a route or an address of this host"


@in_own_namespace
def test_a_deleted_bridge_comes_back_with_its_containers(tmp_path: pathlib.Path) -> None:
    network = Network(str(tmp_path))
    box = container(network, "box", "127.0.0.1:8080:80")
    box.serve("tcp", 80)
    run("ip", "link", "del", "pycontain0")
    assert ask("tcp", "127.0.0.1", 8080, 0.3) != f"box saw {box.lease.gateway}"
    network.ensure()
    assert ask("tcp", "127.0.0.1", 8080) == f"box saw {box.lease.gateway}"
    run("nft", "flush", "ruleset")
    network.release("box")
    box.lease.close()
    again = network.take("box", ports=parse_publish("8080:80"))
    again.attach(Machine("new").pid)
    run("ip", "link", "del", "pycontain0")
    network.ensure()
    port = json.loads(run("ip", "-j", "-d", "link", "show", again.link))[0]["linkinfo"]["info_slave_data"]
    assert port["state"] in ("forwarding", "disabled")
    setting = pathlib.Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    assert port["hairpin"] is (setting.exists() and setting.read_text() == "1\n")


@in_own_namespace
def test_reconcile_frees_what_nobody_uses(tmp_path: pathlib.Path) -> None:
    network = Network(str(tmp_path))
    boxes = {name: container(network, name, f"{port}:80") for name, port in (("a", 8080), ("b", 8081), ("c", 8082))}
    directory = tmp_path / "pycontain0"
    old = json.loads((directory / "leases" / boxes["c"].lease.address).read_text())
    # An earlier boot, a torn file, a temporary file and a link without a lease.
    (directory / "leases/10.118.7.7").write_text(
        json.dumps({**old, "boot": "another", "address": "10.118.7.7", "container": "d"})
    )
    (directory / "leases/10.118.7.8").write_text('{"version": 1, "contai')
    (directory / "leases/.new").write_text("")
    run("ip", "link", "add", "pcdeadbeef", "master", "pycontain0", "type", "veth", "peer", "name", "x1")
    assert sorted(network.reconcile({"a"})) == ["b", "c"]
    assert os.listdir(directory / "leases") == [boxes["a"].lease.address]
    assert link_names() == {"lo", "pycontain0", boxes["a"].lease.link}
    assert ask("tcp", "127.0.0.1", 8080, 0.5) == "ECONNREFUSED"
    listed = run("nft", "list", "ruleset")
    assert "8080" in listed and "8081" not in listed and "8082" not in listed
    assert network.reconcile(lambda container_id: container_id == "a") == []
    assert network.reconcile(set()) == ["a"]
    assert link_names() == {"lo", "pycontain0"}
    assert Network(str(tmp_path / "never")).reconcile(set()) == []
    assert not (tmp_path / "never").exists()


@in_own_namespace
def test_destroy_leaves_nothing(tmp_path: pathlib.Path) -> None:
    network = Network(str(tmp_path))
    run("nft", "add table ip filter")
    run("nft", "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }")
    before = run("nft", "list", "ruleset")
    network.take("box", ports=parse_publish("8080:80")).close()
    with pytest.raises(Conflict) as caught:
        network.destroy()
    assert caught.value.message == "network pycontain0 is in use by 1 containers, the first is box"
    assert network.destroy_unused() is None
    network.release("box")
    run("ip", "link", "add", "guest", "type", "veth", "peer", "name", "other")
    run("ip", "link", "set", "guest", "master", "pycontain0")
    assert network.destroy_unused() is None
    run("ip", "link", "del", "guest")
    assert network.destroy_unused() == "pycontain0"
    assert link_names() == {"lo"}
    assert run("nft", "list", "ruleset") == before
    assert sorted(os.listdir(tmp_path / "pycontain0")) == ["leases", "lock"]
    assert os.listdir(tmp_path / "pycontain0/leases") == []
    network.destroy()
    assert network.destroy_unused() is None
    network.release("box")
    assert network.take("box").gateway == "10.118.0.1"


@in_own_namespace
def test_a_failing_firewall_gives_the_lease_back(tmp_path: pathlib.Path) -> None:
    network = Network(str(tmp_path))
    network.ensure()
    run("nft", "add table ip other")
    (tmp_path / "pycontain0/firewall.json").write_text('{"version": 2}')
    with pytest.raises(Conflict) as caught:
        network.take("box", ports=parse_publish("8080:80"))
    assert caught.value.message == (
        f"{tmp_path}/pycontain0/firewall.json has version 2, wanted 1: it was written by another pycontain"
    )
    (tmp_path / "pycontain0/firewall.json").unlink()
    network.take("box", ports=parse_publish("8080:80"))


TAKER = """
import sys
from pycontain.network.lease import Network
network = Network(sys.argv[1])
for number in range(int(sys.argv[3])):
    print(network.take(f"{sys.argv[2]}-{number}").address, flush=True)
"""


@in_own_namespace
def test_many_processes_never_lease_one_address_twice(tmp_path: pathlib.Path) -> None:
    takers = [python(TAKER, str(tmp_path), str(number), "25") for number in range(8)]
    found = [address for taker in takers for address in taker.communicate()[0].split()]
    assert len(found) == len(set(found)) == 200
    assert set(Network(str(tmp_path)).leases().values()) == set(found)
    # So on a subnet with hardly any room, where the same addresses are tried by all.
    network = Network(str(tmp_path), "small", subnet="10.5.0.0/26")
    network.ensure()
    script = TAKER.replace("sys.argv[1])", "sys.argv[1], 'small')")
    takers = [python(script, str(tmp_path), str(number), "15") for number in range(4)]
    found = [address for taker in takers for address in taker.communicate()[0].split()]
    assert len(found) == len(set(found)) == 60


@in_own_namespace
def test_roots_that_start_together_get_different_networks(tmp_path: pathlib.Path) -> None:
    takers = [python(TAKER, str(tmp_path / str(number)), "box", "1") for number in range(6)]
    found = [taker.communicate()[0].split()[0] for taker in takers]
    assert len({address.rpartition(".")[0].rpartition(".")[0] for address in found}) == 6
    assert link_names() == {"lo"} | {f"pycontain{number}" for number in range(6)}


DIER = """
import os, sys
from pycontain.network import lease, nft
from pycontain.network.ports import parse_publish
network = lease.Network(sys.argv[1])
before, step = sys.argv[2] == "before", sys.argv[3]
real = nft.apply
def apply(*arguments):
    if not before:
        real(*arguments)
    os._exit(9)
nft.apply = apply
if step == "release":
    network.release("box")
else:
    network.take("box", ports=parse_publish(step) if step != "none" else [])
"""


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", ["release", "none", "8081:81"])
@in_own_namespace
def test_death_at_the_firewall_s_change_leads_nobody_astray(tmp_path: pathlib.Path, moment: str, step: str) -> None:
    """However a lease with ports is changed: once it is gone, no rule leads to its address."""
    network = Network(str(tmp_path))
    network.take("other")
    network.take("box", ports=parse_publish("8080:80")).close()
    dying = python(DIER, str(tmp_path), moment, step)
    dying.communicate()
    assert dying.returncode == 9
    network.release("box")
    listed = run("nft", "list", "ruleset")
    assert "8080" not in listed and "8081" not in listed and "type nat hook output" in listed


@in_own_namespace
def test_rules_in_chains_of_others_do_not_outlive_a_crash(tmp_path: pathlib.Path) -> None:
    run("nft", "add table ip filter")
    run("nft", "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }")
    network = Network(str(tmp_path))
    lease = network.take("box")
    assert "pycontain0" in run("nft", "list", "table", "ip", "filter")
    (tmp_path / "pycontain0/leases" / lease.address).unlink()  # where release was killed just before its last step
    assert network.reconcile(set()) == []
    assert "pycontain0" not in run("nft", "list", "table", "ip", "filter")


CRASHER = """
import sys
from pycontain.network.lease import Network
from pycontain.network.ports import parse_publish
network = Network(sys.argv[1])
number = 0
print("ready", flush=True)
while True:
    number += 1
    lease = network.take(f"box{number % 3}", ports=parse_publish("8080:80") if number % 2 else [])
    lease.attach(int(sys.argv[2]))
    if number % 4:
        lease.detach()
        network.release(f"box{number % 3}")
    lease.close()
    lease.detach()
"""


@pytest.mark.timeout(120)
@in_own_namespace
def test_kill_at_any_moment_leaves_nothing_that_reconcile_does_not_free(tmp_path: pathlib.Path) -> None:
    chance = random.Random(7)
    box = Machine("box")
    network = Network(str(tmp_path))
    for _ in range(25):
        crasher = python(CRASHER, str(tmp_path), str(box.pid))
        assert crasher.stdout is not None and crasher.stdout.readline() == "ready\n"
        time.sleep(chance.random() * 0.15)
        os.kill(crasher.pid, signal.SIGKILL)
        crasher.communicate()
        network.reconcile(set())
        assert network.leases() == {}
        assert link_names() <= {"lo", "pycontain0"}
        # A change that was cut off is either there or not; what is taken next is right.
        lease = network.take("probe", ports=parse_publish("8080:80"))
        lease.attach(box.pid)
        lease.close()
        network.release("probe")
        assert "8080" not in run("nft", "list", "ruleset")
    network.destroy()
    assert link_names() == {"lo"} and run("nft", "list", "ruleset") == ""
