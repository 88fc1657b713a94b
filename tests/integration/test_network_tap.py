"""A lease as a tap: what is made of it on the host and in a guest, that frames pass, and that nothing is left of it.

A guest is played twice: by a few lines that answer ARP and ICMP on the tap's descriptor, and by a network namespace
whose eth0 is joined to the tap frame by frame, which is all that QEMU and virtio-net do.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import pathlib
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pycontain.network import links, netlink
from pycontain.network.lease import Lease, Network
from pycontain.network.ports import parse_publish
from pycontain.runtime.errors import KernelError, NotFound
from tests.integration.network_hosts import SENDER, Machine, ask, container, in_own_namespace, run, run_json

pytestmark = [
    pytest.mark.needs("root", "bridge", "veth", "nft", "netns"),
    pytest.mark.skipif(not os.path.exists("/dev/net/tun"), reason="needs tun: there is no /dev/net/tun"),
]

REPOSITORY = str(pathlib.Path(__file__).resolve().parents[2])

# linux/if_tun.h, the values of asm-generic
TUNSETIFF, TUNSETPERSIST, TUNGETIFF, TUNSETVNETHDRSZ = 0x400454CA, 0x400454CB, 0x800454D2, 0x400454D8
TAP, NO_PI, VNET_HDR = 0x2, 0x1000, 0x4000

PING = """
import os, socket, struct, sys, time
address, timeout = sys.argv[1], float(sys.argv[2])
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP); s.settimeout(0.2)
body = struct.pack("!BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, 7) + os.urandom(1000)
total = sum(struct.unpack(f"!{len(body) // 2}H", body)); total = (total >> 16) + (total & 0xFFFF); total += total >> 16
body = body[:2] + struct.pack("!H", ~total & 0xFFFF) + body[4:]
end = time.monotonic() + timeout
while time.monotonic() < end:
    try:
        s.sendto(body, (address, 0))
        while True:
            packet, (peer, _) = s.recvfrom(2000)
            reply = packet[20:]
            if peer == address and reply[0] == 0 and reply[4:] == body[4:]: print("answered"); sys.exit()
    except TimeoutError: pass
    except OSError as error: print(os.strerror(error.errno)); sys.exit()
print("silence")
"""


def ping(address: str, by: Machine | None = None, timeout: float = 3) -> str:
    """``answered``, ``silence``, or what the kernel said."""
    return run(*(by.command() if by else []), sys.executable, "-c", PING, address, str(timeout))


def link_names(machine: Machine | None = None) -> set[str]:
    words = ("ip", "-j", "link")
    return {link["ifname"] for link in json.loads(machine.run(*words) if machine else run(*words))}


def one_link(name: str) -> dict[str, Any]:
    (found,) = run_json("ip", "-j", "-d", "link", "show", name)
    assert isinstance(found, dict)
    return found


def internet_checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def answer(frame: bytes, mac: bytes, address: bytes) -> bytes | None:
    """The answer of a host to an ARP request or an echo request for it; None to anything else."""
    sender, kind = frame[6:12], frame[12:14]
    if kind == b"\x08\x06" and frame[20:22] == b"\0\1" and frame[38:42] == address:
        return sender + mac + frame[12:20] + b"\0\2" + mac + address + frame[22:32]
    if kind == b"\x08\x00" and frame[:6] == mac and frame[23] == 1 and frame[30:34] == address and frame[34] == 8:
        length = 14 + int.from_bytes(frame[16:18], "big")
        echo = b"\0\0\0\0" + frame[38:length]
        echo = echo[:2] + internet_checksum(echo).to_bytes(2, "big") + echo[4:]
        return sender + mac + frame[12:26] + address + frame[26:30] + echo  # the IP header's checksum stays right
    return None


class Loop:
    """A thread that calls ``step(fd)`` whenever one of ``fds`` can be read; ``close`` ends it, and closes them."""

    def __init__(self, step: Callable[[int], None], *fds: int) -> None:
        self.fds, self.step = fds, step
        self.reader, self.writer = os.pipe()
        self.thread = threading.Thread(target=self.loop, daemon=True)
        self.thread.start()

    def loop(self) -> None:
        while True:
            ready = select.select([self.reader, *self.fds], [], [])[0]
            if self.reader in ready:
                return
            for fd in ready:
                self.step(fd)

    def close(self) -> None:
        os.write(self.writer, b"x")
        self.thread.join()
        for fd in (self.reader, self.writer, *self.fds):
            os.close(fd)


def responder(fd: int, lease: Lease, header: int) -> Loop:
    """A guest with the lease's addresses behind the tap. ``header`` bytes precede each frame."""
    mac, address = bytes.fromhex(lease.mac.replace(":", "")), socket.inet_aton(lease.address)

    def step(fd: int) -> None:
        reply = answer(os.read(fd, 65536)[header:], mac, address)
        if reply is not None:
            os.write(fd, bytes(header) + reply)

    return Loop(step, fd)


@contextlib.contextmanager
def inside(machine: Machine) -> Iterator[None]:
    """This thread in the machine's network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as back, open(f"/proc/{machine.pid}/ns/net") as there:
        assert libc.setns(there.fileno(), 0) == 0
        try:
            yield
        finally:
            assert libc.setns(back.fileno(), 0) == 0


def plain_tap(name: str, flags: int = TAP | NO_PI | VNET_HDR) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    return fd


def virtual_machine(tap: int, name: str = "guest") -> tuple[Machine, Loop]:
    """A guest whose eth0 is the other end of ``tap``, with an address and an MTU of somebody else."""
    guest = Machine(name)
    with inside(guest):
        device = plain_tap("eth0")
    guest.run("ip", "link", "set", "eth0", "address", "52:54:00:12:34:56", "mtu", "1300")
    for fd in (tap, device):
        fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", 12))  # as QEMU does for a virtio 1.0 device
        os.set_blocking(fd, False)

    def step(fd: int) -> None:
        with contextlib.suppress(OSError):  # one side is down
            os.write(device if fd == tap else tap, os.read(fd, 65536))

    return guest, Loop(step, tap, device)


def send(machine: Machine, messages: list[tuple[str, bytes]]) -> None:
    machine.run(sys.executable, "-c", SENDER, text="".join(f"{message.hex()}\n" for _, message in messages))


def fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


# The host's side


@pytest.mark.parametrize("vnet_hdr", [True, False])
@in_own_namespace
def test_a_tap_is_a_port_like_any_other(tmp_path: pathlib.Path, vnet_hdr: bool) -> None:
    run("ip", "link", "add", "up0", "type", "bridge")
    run("ip", "addr", "add", "10.9.0.1/24", "dev", "up0")
    run("ip", "link", "set", "up0", "up", "mtu", "1400")
    run("ip", "route", "add", "default", "via", "10.9.0.2")
    network = Network(str(tmp_path))
    lease, veth = network.take("0123456789abcdef"), container(network, "box")
    fd = lease.tap(vnet_hdr)
    assert fcntl.fcntl(fd, fcntl.F_GETFD) == fcntl.FD_CLOEXEC
    told = fcntl.ioctl(fd, TUNGETIFF, bytes(40))
    assert told[:16].rstrip(b"\0") == b"pc01234567"
    assert struct.unpack_from("H", told, 16)[0] == TAP | NO_PI | (VNET_HDR if vnet_hdr else 0)
    found, twin = one_link("pc01234567"), one_link(veth.lease.link)
    assert found["linkinfo"]["info_kind"] == "tun"
    assert {"type": "tap", "pi": False, "vnet_hdr": vnet_hdr, "persist": False}.items() <= found["linkinfo"]["info_data"].items()
    assert "user" not in found["linkinfo"]["info_data"]
    for each in (found, twin):
        assert each["mtu"] == 1400 and each["master"] == "pycontain0"
        assert {"UP", "LOWER_UP"} <= set(each["flags"]) and each["inet6_addr_gen_mode"] == "none"
        assert "inet" not in run("ip", "addr", "show", each["ifname"])
    same = ("hairpin", "learning", "isolated", "guard", "flood", "state", "mcast_flood")
    assert [found["linkinfo"]["info_slave_data"][key] for key in same] == [twin["linkinfo"]["info_slave_data"][key] for key in same]
    ports = {port["ifname"]: port for port in run_json("bridge", "-j", "link")}
    assert ports["pc01234567"]["state"] == "forwarding" and ports["pc01234567"]["master"] == "pycontain0"

    from pyroute2 import IPRoute

    with IPRoute() as other:
        (tap,) = other.link("get", ifname="pc01234567")
        (bridge,) = other.link("get", ifname="pycontain0")
        assert tap.get_attr("IFLA_MASTER") == bridge["index"] and tap["state"] == "up"
        assert tap.get_attr("IFLA_MTU") == 1400 and tap.get_attr("IFLA_CARRIER") == 1
    os.close(fd)
    assert link_names() == {"lo", "up0", "pycontain0", veth.lease.link}


@in_own_namespace
def test_hardware_addresses_never_meet(tmp_path: pathlib.Path) -> None:
    """The guest's, the tap's and the bridge's are three; the bridge's stays whatever comes and goes."""
    network = Network(str(tmp_path))
    network.ensure()
    before = one_link("pycontain0")["address"]
    opened, seen = [], {before}
    for number in range(5):
        lease = network.take(f"box{number}")
        opened.append(lease.tap())
        port = one_link(lease.link)["address"]
        digits = socket.inet_aton(lease.address).hex(":")
        assert (lease.mac, port) == (f"02:70:{digits}", f"fe:70:{digits}")
        assert one_link("pycontain0")["address"] == before
        # The bridge delivers what is for one of these to the host: they must be no guest's.
        local = {entry["mac"] for entry in run_json("bridge", "-j", "fdb", "show", "dev", lease.link) if entry["state"] == "permanent"}
        assert port in local and lease.mac not in local
        assert not {lease.mac, port} & seen
        seen |= {lease.mac, port}
    for fd in opened:
        os.close(fd)
    assert one_link("pycontain0")["address"] == before == "02:70:0a:76:00:01"


@pytest.mark.parametrize("vnet_hdr", [True, False])
@in_own_namespace
def test_frames_pass(tmp_path: pathlib.Path, vnet_hdr: bool) -> None:
    network = Network(str(tmp_path))
    lease, box = network.take("0123456789abcdef"), container(network, "box")
    fd = lease.tap(vnet_hdr)
    assert ping(lease.address, timeout=0.3) == "silence"
    guest = responder(fd, lease, 10 if vnet_hdr else 0)
    assert ping(lease.address) == "answered"
    (known,) = run_json("ip", "-j", "neigh", "show", lease.address)
    assert known["lladdr"] == lease.mac and known["dev"] == "pycontain0"
    assert ping(lease.address, by=box) == "answered"
    assert lease.mac in run("bridge", "fdb", "show", "dev", lease.link)
    guest.close()
    assert link_names() == {"lo", "pycontain0", box.lease.link}
    assert ping(lease.address, by=box, timeout=0.3) == "silence"


@in_own_namespace
def test_two_machines_reach_each_other(tmp_path: pathlib.Path) -> None:
    network = Network(str(tmp_path))
    leases = [network.take(name) for name in ("one", "two")]
    first, second = (lease.tap() for lease in leases)
    answering = responder(first, leases[0], 10)
    assert ping(leases[0].address) == "answered"
    # The second asks the first by hand: who has that address?
    mac, address = bytes.fromhex(leases[1].mac.replace(":", "")), socket.inet_aton(leases[1].address)
    target = socket.inet_aton(leases[0].address)
    question = b"\xff" * 6 + mac + bytes.fromhex("0806000108000604" "0001") + mac + address + bytes(6) + target
    os.write(second, bytes(10) + question)
    os.set_blocking(second, False)
    expected = answer(question, bytes.fromhex(leases[0].mac.replace(":", "")), target)
    assert expected is not None
    got, end = b"", time.monotonic() + 5
    while got[10 : 10 + len(expected)] != expected:
        assert time.monotonic() < end and select.select([second], [], [], 5)[0]
        got = os.read(second, 65536)
    answering.close()
    assert link_names() == {"lo", "pycontain0", leases[1].link}
    os.close(second)


# Nothing is left


HOLDER = """
import sys, time
from pycontain.network.lease import Network
lease = Network(sys.argv[1]).take("box")
lease.tap()
print(lease.link, flush=True)
time.sleep(1000)
"""


@in_own_namespace
def test_a_tap_is_gone_with_its_last_descriptor(tmp_path: pathlib.Path) -> None:
    network = Network(str(tmp_path))
    lease = network.take("box")
    fd = lease.tap()
    copy = os.dup(fd)
    os.close(fd)
    assert lease.link in link_names()
    os.close(copy)
    assert link_names() == {"lo", "pycontain0"}
    words = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-c", HOLDER, str(tmp_path)]
    holder = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": REPOSITORY})
    assert holder.stdout is not None and holder.stdout.readline() == f"{lease.link}\n"
    assert lease.link in link_names()
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert link_names() == {"lo", "pycontain0"}
    os.close(lease.tap())
    # Nor does a program that is executed inherit it.
    fd = lease.tap()
    assert str(fd) not in run("ls", "/proc/self/fd").split()[3:]
    lease.detach()
    lease.detach()
    assert link_names() == {"lo", "pycontain0"}
    os.close(fd)


@pytest.mark.parametrize("how", ["release", "reconcile", "detach"])
@pytest.mark.parametrize("persistent", [False, True])
@in_own_namespace
def test_an_open_tap_is_removed(tmp_path: pathlib.Path, how: str, persistent: bool) -> None:
    """Also one that its holder has made persistent, which takes no capability."""
    network = Network(str(tmp_path))
    lease, other = network.take("box"), network.take("other")
    fd, kept = lease.tap(), other.tap()
    if persistent:
        fcntl.ioctl(fd, TUNSETPERSIST, 1)
    if how == "release":
        network.release("box")
    elif how == "reconcile":
        assert network.reconcile({"other"}) == ["box"]
    else:
        lease.detach()
    assert link_names() == {"lo", "pycontain0", other.link}
    with pytest.raises(OSError) as caught:
        os.read(fd, 2000)
    assert caught.value.errno == errno.EBADFD
    os.close(fd)
    os.close(kept)
    assert link_names() == {"lo", "pycontain0"}


@in_own_namespace
def test_reconcile_removes_a_tap_without_a_lease(tmp_path: pathlib.Path) -> None:
    network = Network(str(tmp_path))
    lease, other = network.take("box"), network.take("other")
    fd, kept = lease.tap(), other.tap()
    os.unlink(tmp_path / "pycontain0/leases" / lease.address)
    stranger = plain_tap("tap0")
    run("ip", "link", "set", "tap0", "master", "pycontain0")
    assert network.reconcile({"other"}) == []
    assert link_names() == {"lo", "pycontain0", "tap0", other.link}
    for each in (fd, kept, stranger):
        os.close(each)


@pytest.mark.parametrize("leftover", ["open tap", "persistent tap", "veth", "bridge"])
@in_own_namespace
def test_what_has_the_name_is_replaced(tmp_path: pathlib.Path, leftover: str) -> None:
    network = Network(str(tmp_path))
    lease = network.take("box")
    old = None
    if leftover == "open tap":
        old = lease.tap()
    elif leftover == "veth":
        lease.attach(Machine("dead").pid)
    elif leftover == "bridge":
        run("ip", "link", "add", lease.link, "type", "bridge")
    else:
        run("ip", "tuntap", "add", "dev", lease.link, "mode", "tap", "vnet_hdr")
    guest = responder(lease.tap(), lease, 10)
    assert link_names() == {"lo", "pycontain0", lease.link}
    assert ping(lease.address) == "answered"
    if old is not None:
        os.close(old)
        assert ping(lease.address) == "answered"
    guest.close()
    assert link_names() == {"lo", "pycontain0"}
    # The other way round: a machine's tap does not hinder a container.
    box, fd = Machine("box"), lease.tap()
    box.join(lease)
    os.close(fd)
    assert ask("tcp", lease.address, 80) == "ECONNREFUSED"


@in_own_namespace
def test_ids_that_begin_alike_do_not_share_a_tap(tmp_path: pathlib.Path) -> None:
    network = Network(str(tmp_path))
    first, second = network.take("0123456789abcdef"), network.take("0123456700000000")
    taps = [responder(lease.tap(), lease, 10) for lease in (first, second)]
    assert first.link == "pc01234567" != second.link
    assert ping(first.address) == ping(second.address) == "answered"
    network.release("0123456700000000")
    assert link_names() == {"lo", "pycontain0", "pc01234567"} and ping(first.address) == "answered"
    taps[0].close()


@in_own_namespace
def test_a_bridge_made_again_gets_its_taps_back(tmp_path: pathlib.Path) -> None:
    network = Network(str(tmp_path))
    lease = network.take("box")
    guest = responder(lease.tap(), lease, 10)
    run("ip", "link", "del", "pycontain0")
    assert lease.link in link_names()
    network.ensure()
    assert ping(lease.address) == "answered"
    guest.close()


@in_own_namespace
def test_tap_refusals_leave_nothing(tmp_path: pathlib.Path) -> None:
    network = Network(str(tmp_path))
    lease = network.take("0123456789abcdef")
    before = fds()
    real, links._TUN = links._TUN, str(tmp_path / "tun")
    with pytest.raises(KernelError) as caught:
        lease.tap()
    assert caught.value.message == f"open {tmp_path}/tun for tap pc01234567: ENOENT (no such file or directory)"
    assert caught.value.hint == "modprobe tun"
    os.mknod(tmp_path / "tun", 0o20600, os.makedev(10, 254))  # a node without a driver
    with pytest.raises(KernelError) as caught:
        lease.tap()
    assert caught.value.errno in (errno.ENODEV, errno.ENXIO) and caught.value.hint == "modprobe tun"
    links._TUN = "/dev/null"
    with pytest.raises(KernelError) as caught:
        lease.tap()
    assert caught.value.message == "create tap pc01234567: ENOTTY (inappropriate ioctl for device)"
    assert caught.value.hint is None
    links._TUN = real
    # A step after the device's making.
    bridge = links.find_bridge("pycontain0", json.loads((tmp_path / "pycontain0/network.json").read_text())["id"])
    with pytest.raises(KernelError) as caught:
        links.tap("pc01234567", bridge._replace(ifindex=1), lease.address, 1500)
    assert caught.value.message.startswith(f"change link pc01234567 (hardware address fe:70:{socket.inet_aton(lease.address).hex(':')}, MTU 1500, ")
    assert link_names() == {"lo", "pycontain0"} and fds() == before
    run("ip", "link", "del", "pycontain0")
    with pytest.raises(NotFound) as missing:
        lease.tap()
    assert missing.value.message == "bridge pycontain0 of this network is gone"
    assert link_names() == {"lo"} and fds() == before


@in_own_namespace
def test_a_full_bridge_refuses_a_tap(tmp_path: pathlib.Path) -> None:
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
    with pytest.raises(KernelError) as caught:
        lease.tap()
    assert caught.value.errno == errno.EXFULL
    assert caught.value.hint == "a bridge takes 1023 containers: use a second network"
    assert lease.link not in link_names()


# The guest's side


@pytest.mark.parametrize("kind", ["tap", "veth"])
@in_own_namespace
def test_the_guest_s_eth0_becomes_the_container_s(tmp_path: pathlib.Path, kind: str) -> None:
    """From a template's, which is up, has addresses and another index; the witness is another library."""
    run("ip", "link", "add", "up0", "type", "bridge")
    run("ip", "addr", "add", "10.9.0.1/24", "dev", "up0")
    run("ip", "link", "set", "up0", "up", "mtu", "1400")
    run("ip", "route", "add", "default", "via", "10.9.0.2")
    lease = Network(str(tmp_path)).take("box")
    guest, box = Machine("guest"), Machine("box")
    guest.run("ip", "link", "add", "other0", "type", "bridge")
    if kind == "veth":
        guest.run("ip", "link", "add", "eth0", "index", "7", "type", "veth")
    else:
        guest.run("ip", "tuntap", "add", "dev", "eth0", "mode", "tap")
    assert json.loads(guest.run("ip", "-j", "link", "show", "eth0"))[0]["ifindex"] != 2
    guest.run("ip", "link", "set", "eth0", "address", "52:54:00:12:34:56", "mtu", "1300", "up")
    guest.run("ip", "addr", "add", "10.7.0.2/24", "dev", "eth0")
    messages = lease.guest_netlink(box.pid)
    assert [text for text, _ in messages] == [
        "set eth0 down", f"change link eth0 (hardware address {lease.mac}, MTU 1400)",
        f"move eth0 to the network namespace of pid {box.pid}",
    ]
    send(guest, messages)
    assert "eth0" not in link_names(guest)

    from pyroute2 import IPRoute

    with inside(box), IPRoute() as other:
        found = {link.get_attr("IFLA_IFNAME"): link for link in other.get_links()}
        assert set(found) == {"lo", "eth0"}
        eth0 = found["eth0"]
        assert (eth0["index"], eth0["state"]) == (2, "down")
        assert (eth0.get_attr("IFLA_ADDRESS"), eth0.get_attr("IFLA_MTU")) == (lease.mac, 1400)
        assert list(other.get_addr()) == []
    box.configure(lease)
    with inside(box), IPRoute() as other:
        (address,) = other.get_addr(index=2, family=socket.AF_INET)
        assert (address.get_attr("IFA_LOCAL"), address["prefixlen"]) == (lease.address, lease.prefix)
        (route,) = other.get_default_routes(family=socket.AF_INET)
        assert route.get_attr("RTA_GATEWAY") == lease.gateway and route.get_attr("RTA_OIF") == 2
        assert {link["state"] for link in other.get_links()} == {"up"}


@in_own_namespace
def test_refusals_in_the_guest(tmp_path: pathlib.Path) -> None:
    lease = Network(str(tmp_path)).take("box")
    guest, index_taken, name_taken = Machine("guest"), Machine("index"), Machine("name")
    index_taken.run("ip", "link", "add", "other", "index", "2", "type", "bridge")
    name_taken.run("ip", "link", "add", "eth0", "index", "5", "type", "bridge")
    gone = subprocess.Popen(["true"])
    gone.wait()
    with pytest.raises(AssertionError, match=f"refused: -{errno.ENODEV}"):
        send(guest, lease.guest_netlink(index_taken.pid))
    guest.run("ip", "link", "add", "eth0", "type", "veth")
    for pid, expected in ((index_taken.pid, errno.EBUSY), (name_taken.pid, errno.EEXIST), (gone.pid, errno.ESRCH)):
        with pytest.raises(AssertionError, match=f"refused: -{expected}"):
            send(guest, lease.guest_netlink(pid))
        assert "eth0" in link_names(guest)
    send(guest, lease.guest_netlink(Machine("fresh").pid))


@in_own_namespace
def test_a_container_in_a_machine(tmp_path: pathlib.Path) -> None:
    """All of it together, with containers on both kinds of link."""
    network = Network(str(tmp_path))
    lease = network.take("inner", ports=parse_publish("8080:80"))
    guest, wire = virtual_machine(lease.tap())
    box, plain = Machine("inner"), container(network, "plain")
    plain.serve("tcp", 81)
    assert ping(lease.address, timeout=0.3) == "silence"
    send(guest, lease.guest_netlink(box.pid))
    box.configure(lease)
    assert link_names(guest) == {"lo"}
    box.serve("tcp", 80)
    box.serve("udp", 80)
    assert ping(lease.address) == ping(lease.address, by=plain) == "answered"
    assert ping(lease.gateway, by=box) == ping(plain.lease.address, by=box) == "answered"
    assert ask("tcp", "127.0.0.1", 8080) == f"inner saw {lease.gateway}"
    assert plain.ask("tcp", lease.address, 80) == plain.ask("udp", lease.address, 80) == f"inner saw {plain.lease.address}"
    assert box.ask("tcp", plain.lease.address, 81) == f"plain saw {lease.address}"
    # Its own published port, by way of the host.
    assert box.ask("tcp", lease.gateway, 8080) == f"inner saw {lease.gateway}"
    second = network.take("second")
    other_guest, other_wire = virtual_machine(second.tap(), "guest2")
    other = Machine("second")
    send(other_guest, second.guest_netlink(other.pid))
    other.configure(second)
    assert other.ask("tcp", lease.address, 80) == f"inner saw {second.address}"
    lease.close()
    network.release("inner")
    assert ping(lease.address, timeout=0.3) != "answered"
    assert other.ask("tcp", plain.lease.address, 81) == f"plain saw {second.address}"
    other_wire.close()
    assert link_names() == {"lo", "pycontain0", plain.lease.link}
    wire.close()
