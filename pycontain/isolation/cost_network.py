"""What a network costs at a level: over its own loopback, and over a link to another network namespace."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from pycontain.isolation.cost_probe import INSIDE, PACE, Series, answer, ask, per_second, quantities, samples
from pycontain.isolation.model import Ended, Job, Level, Measure, Quantity, Sample, Tenant
from pycontain.network import netlink
from pycontain.network.lease import Network
from pycontain.network.netlink import Netlink
from pycontain.runtime.errors import KernelError, Unsupported
from pycontain.runtime.kernel import syscalls

if TYPE_CHECKING:
    from pycontain.isolation.world import World

_CLONE_NEWNET = 0x40000000
PORT = 7007
_SERVER = ("/probe", "cost_server", f"port={PORT}")
_MTU = 1500
# Of the block that is for benchmarks of network devices (RFC 2544, appendix C.2.2).
_PEER, _TENANT, _PREFIX = "198.18.0.1", "198.18.0.2", 30

T = TypeVar("T")


def _series(prefix: str, title: str, where: str, clock: str) -> tuple[Series, ...]:
    def trip(key: str, name: str, what: str) -> Series:
        quantity = Quantity(
            f"{prefix}.{key}", f"{name}, {title}", "ns", f"{what} {where}", clock=clock,
            cache="connection open", denominator="round trips in the batch",
        )  # fmt: skip
        return Series(key, quantity)

    return (
        trip("tcp", "TCP round trip", "One byte to a process that sends it back, TCP_NODELAY, one at a time."),
        trip("udp", "UDP round trip", "A datagram of one byte to a process that sends it back, one at a time."),
        Series(
            "stream",
            Quantity(
                f"{prefix}.stream", f"TCP bandwidth, {title}", "MiB/s",
                f"One connection, writes of 64 KiB, until the reader says that it has everything. {where}",
                "higher", clock, "connection open, windows as the batches before left them", "seconds",
            ),
            per_second(1 / 16),
        ),
    )  # fmt: skip


LOOPBACK = _series(
    "loopback", "loopback",
    "Two processes in the same level, by its own 127.0.0.1: no packet leaves the level.", INSIDE,
)  # fmt: skip
LINK = _series(
    "link", "link",
    f"From a process of the host in a network namespace of its own to one in the level, by a veth pair of MTU {_MTU} "
    "and nothing else. A machine is on the engine's bridge with a tap, and the process is where the bridge is.",
    "CLOCK_MONOTONIC of the host, around a batch of many",
)  # fmt: skip


def _loopback(world: World, level: Level) -> Iterator[Sample]:
    return samples(ask(world, level, "cost_loopback", f"port={PORT}", *PACE), LOOPBACK)


def _link(world: World, level: Level) -> Iterator[Sample]:
    if level.name == "runsc":
        raise Unsupported("it is run with --network=none: its network stack has a loopback and nothing else")
    found = _tap(world, level) if level.name.startswith("vm-") else _veth(world, level)
    return samples(found, LINK)


def _client(world: World, level: Level, address: str) -> dict[str, Any]:
    words = [world.probe, "cost_client", f"host={address}", f"port={PORT}", *PACE]
    done = subprocess.run(words, capture_output=True, timeout=120)
    return answer(Ended(done.returncode, done.stdout, done.stderr, None, 0.0), level, "cost_client")


def _tap(world: World, level: Level) -> dict[str, Any]:
    root = f"{world.directory}/network-{world.number()}"
    network = Network(root)
    network.ensure()
    try:
        tenant = level.start(world, Job(_SERVER, link=root))
        try:
            tenant.line(120.0)
            (address,) = network.leases().values()
            return _client(world, level, address)
        finally:
            tenant.stop()
    finally:
        network.reconcile(())
        network.destroy()


def _veth(world: World, level: Level) -> dict[str, Any]:
    peer = _fresh()
    tenant = None
    try:
        tenant = level.start(world, Job(_SERVER))
        tenant.line()
        inside = _namespace_of(tenant)
        try:
            _connect(peer, inside)
        finally:
            os.close(inside)
        return _within(peer, lambda: _client(world, level, _TENANT))
    finally:
        _within(peer, _disconnect)
        os.close(peer)
        if tenant is not None:
            tenant.stop()


def _connect(peer: int, inside: int) -> None:
    """A veth pair between two network namespaces, with an address at each end."""
    _within(peer, lambda: _make("cost0", inside, "cost1"))
    _within(peer, lambda: _address("cost0", _PEER))
    _within(inside, lambda: _address("cost1", _TENANT))


def _make(name: str, other: int, other_name: str) -> None:
    mac = bytes([2, 0xC0, 0x57, 0, 0, 2])  # locally administered
    with Netlink() as kernel:
        kernel.send(
            netlink.new_veth(name, master=0, mtu=_MTU, peer_mac=mac, netns_fd=other, peer_name=other_name, peer_index=0)
        )


def _disconnect() -> None:
    """Both ends: with its namespace a link would go too, but some time later."""
    with Netlink() as kernel:
        if kernel.link("cost0") is not None:
            kernel.send(netlink.delete_link("cost0"))


def _address(name: str, address: str) -> None:
    with Netlink() as kernel:
        link = kernel.link(name)
        assert link is not None
        up = netlink.set_link(name, index=link.ifindex, up=True)
        kernel.send(netlink.add_address(name, link.ifindex, address, _PREFIX), up)


def _namespace_of(tenant: Tenant) -> int:
    """A descriptor of the tenant's network namespace: one that is not this process's, or else that."""
    own = os.stat("/proc/self/ns/net").st_ino
    found = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    for pid in tenant.pids():
        try:
            fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, ProcessLookupError):
            continue
        if os.fstat(fd).st_ino != own:
            os.close(found)
            return fd
        os.close(fd)
    return found


def _within(namespace: int, call: Callable[[], T]) -> T:
    """What ``call`` gives in a network namespace: in a thread of its own, as namespaces are a thread's."""

    def enter() -> T:
        syscalls.setns(namespace, _CLONE_NEWNET)
        return call()

    return _thread(enter)


def _fresh() -> int:
    """A descriptor of a fresh network namespace."""

    def make() -> int:
        syscalls.unshare(_CLONE_NEWNET)
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    return _thread(make)


def _thread(call: Callable[[], T]) -> T:
    found: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            found.append(call())
        except OSError as error:
            failures.append(KernelError("enter a network namespace", error.errno or 0))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return found[0]


MEASURES = (
    Measure("loopback", "cost", "network: loopback", _loopback, quantities(LOOPBACK), rounds=(3, 9), seconds=0.3),
    Measure("link", "cost", "network: a link", _link, quantities(LINK), rounds=(3, 9), seconds=0.5),
)
