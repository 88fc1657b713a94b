"""Networks and leases: addresses that never collide, and what the host needs so that they work.

A ``Network`` is a directory of small files (state.py) and a few kernel objects that are found by their names
(links.py, nft.py). Every change of either happens under the network's lock, in an order in which a crash leaves
something that ``reconcile`` removes: a lease is written before anything uses the address, and goes last.
"""

from __future__ import annotations

import _socket
import errno
import os
import time
import zlib

from pycontain.network import firewall, links, nft
from pycontain.network.firewall import Problem
from pycontain.network.netlink import Link, Netlink, container_messages, guest_messages
from pycontain.network.ports import ANY, Port, hold
from pycontain.network.state import Configuration, Directory, Record, Stamp, boot_id, namespace_id
from pycontain.runtime.errors import Conflict, KernelError, PycontainError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

DEFAULT = "pycontain0"
_TRIES = 16


class Lease:
    """A container's place on a network. What the executor reads: ``netlink``, and ``attach``.

    For a container in a machine it is ``tap`` in place of ``attach``, and ``guest_netlink`` before ``netlink``.

    ``address``, ``gateway`` and ``mac`` are text, ``prefix`` is the subnet's length. ``ports`` have the host
    ports that the kernel picked. ``host_sockets`` hold those; they belong to whoever outlives the command, and
    are empty on a lease that was looked up. ``problems`` are what the user should be told about this host's firewall.
    """

    def __init__(
        self, network: Network, configuration: Configuration, record: Record, sockets: list[_socket.socket],
        problems: Iterable[Problem] = (),
    ) -> None:
        self._network = network
        self._configuration = configuration
        self._record = record
        self.container_id = record.container
        self.name = record.name
        self.address = record.address
        self.prefix = configuration.subnet.prefix
        self.gateway = configuration.gateway
        self.mac = ":".join(f"{byte:02x}" for byte in links.mac_of(record.address))
        self.ports = list(record.ports)
        self.host_sockets = sockets
        self.problems = list(problems)
        self.netlink = container_messages(self.address, self.prefix, self.gateway)

    @property
    def link(self) -> str:
        """The name of the host's end of the veth pair, or of the tap."""
        return self._record.link

    def attach(self, pid: int | None = None, *, netns_fd: int | None = None) -> None:
        """Put eth0, down and with index 2, into the network namespace of ``pid`` or of ``netns_fd``.

        What an earlier attempt for this container left is replaced. KernelError when the kernel refuses, for example
        EEXIST when the namespace has an eth0 already, ESRCH when the process has gone.
        """
        bridge = links.find_bridge(self._configuration.bridge, self._configuration.id)
        mtu = self._configuration.mtu  # not the bridge's, which the kernel sets to that of its lowest port
        try:
            links.attach(self.link, bridge, self.address, mtu, pid=pid, netns_fd=netns_fd)
        except KernelError as error:
            if error.errno != errno.EEXIST:
                raise
            self._record = self._network.free_link(self._record)
            links.attach(self.link, bridge, self.address, mtu, pid=pid, netns_fd=netns_fd)

    def tap(self, vnet_hdr: bool = True) -> int:
        """Make a tap on the bridge, up, for a machine; its descriptor, close-on-exec. Gone with its last descriptor.

        ``vnet_hdr``: each frame is preceded by a struct virtio_net_hdr (10 bytes until TUNSETVNETHDRSZ). What an
        earlier attempt for this container left is replaced. KernelError when the kernel refuses.
        """
        bridge = links.find_bridge(self._configuration.bridge, self._configuration.id)
        mtu = self._configuration.mtu
        try:
            return links.tap(self.link, bridge, self.address, mtu, vnet_hdr)
        except KernelError as error:
            if error.errno != errno.EBUSY:
                raise
            self._record = self._network.free_link(self._record)
            return links.tap(self.link, bridge, self.address, mtu, vnet_hdr)

    def guest_netlink(self, pid: int) -> list[tuple[str, bytes]]:
        """(description, request) for a guest's first network namespace; ``netlink`` follows in the container's.

        They make the guest's eth0 what ``attach`` makes: this lease's hardware address and MTU, down, with index 2,
        in the network namespace of ``pid``, a number of the guest.
        """
        return guest_messages(links.mac_of(self.address), self._configuration.mtu, pid)

    def detach(self) -> None:
        """Delete the veth pair or the tap; nothing happens when it is gone."""
        links.detach(self.link)

    def close(self) -> None:
        """Close this process's copies of the sockets that hold the published ports."""
        for each in self.host_sockets:
            each.close()
        self.host_sockets = []


class Network:
    """A bridge network, kept in ``<root>/<name>``. Nothing is touched before the first call.

    ``subnet`` (``10.1.0.0/16``) is for the first ``ensure``; without it one that overlaps nothing is chosen.
    The bridge is called ``name`` where no link has that name, else the next free number.
    """

    def __init__(self, root: str, name: str = DEFAULT, *, subnet: str | None = None) -> None:
        # The name becomes a file's, a link's and an nftables table's.
        plain = name.isascii() and name.replace("-", "a").replace("_", "a").isalnum() and name[0].isalpha()
        if not plain or len(name) > 15:
            raise PycontainError(f'network name "{name}" is not 1 to 15 letters, digits, - and _ after a letter')
        self.name = name
        self._wanted = links.parse_subnet(subnet) if subnet is not None else None
        self._directory = Directory(f"{root}/{name}")

    @property
    def path(self) -> str:
        """The network's directory, which ``names.refresh`` wants."""
        return self._directory.path

    def ensure(self) -> list[Problem]:
        """Make the bridge, its address, forwarding and the firewall table what they should be; the host's problems.

        Cheap when all is well. Raises Conflict when a subnet or bridge name that is in use cannot be kept.
        """
        with self._directory as files:
            configuration, made = self._ensure_bridge(files)
            return list(self._ensure_firewall(files, configuration, changed=made).problems)

    def take(self, container_id: str, name: str = "", ports: Iterable[Port] = ()) -> Lease:
        """Lease an address for a container and publish its ports; the network is made first if need be.

        A container that has a lease keeps its address. The same id gets the same address again where that is free.
        Raises KernelError for a host port that is not to be had, PycontainError when no address is free.
        """
        sockets: list[_socket.socket] = []
        try:
            held = []
            for port in ports:
                holder, got = hold(port)
                sockets.append(holder)
                held.append(got)
            with self._directory as files:
                configuration, made = self._ensure_bridge(files)
                records = files.records()
                record, had_ports = self._lease(files, configuration, records, container_id, name, tuple(held))
                try:
                    stamp = self._ensure_firewall(files, configuration, changed=made or had_ports, new=record)
                except BaseException:
                    self._drop(files, configuration, [record])
                    raise
                for port in held:
                    nft.forget_unanswered(port)
        except BaseException:
            for each in sockets:
                each.close()
            raise
        return Lease(self, configuration, record, sockets, stamp.problems)

    def lease(self, container_id: str) -> Lease | None:
        """The lease that a container has, without its sockets, or None."""
        if not self._directory.exists():
            return None
        with self._directory as files:
            configuration = files.configuration()
            for record in files.records():
                if configuration is not None and record.container == container_id:
                    return Lease(self, configuration, record, [])
        return None

    def leases(self) -> dict[str, str]:
        """{container id: address} of every lease."""
        if not self._directory.exists():
            return {}
        with self._directory as files:
            return {record.container: record.address for record in files.records()}

    def release(self, container_id: str) -> None:
        """Give back all that a container has: its link, its published ports, its address. Idempotent."""
        links.await_end(links.link_name(container_id))  # before the lock, for which nobody need wait meanwhile
        self._free(lambda record: record.container == container_id)

    def reconcile(self, alive: Collection[str] | Callable[[str], bool]) -> list[str]:
        """Free the leases of containers that are gone, and links that no lease names; the ids that were freed.

        ``alive`` holds the ids that exist, or tells of one: a function is asked under the lock, so that a container
        which came after a set was made is not mistaken for a dead one.
        """
        exists = alive if callable(alive) else alive.__contains__
        freed = self._free(lambda record: not exists(record.container))
        if not self._directory.exists():
            return freed
        with self._directory as files:
            configuration = files.configuration()
            if configuration is not None:
                with Netlink() as kernel:
                    present = links.ports_of(kernel, configuration.bridge)
                records = files.records()
                for orphan in present - {record.link for record in records}:
                    links.detach(orphan)
                if not records:
                    self._withdraw(files, configuration)
        return freed

    def destroy(self) -> None:
        """Remove the bridge, the table, the rules in chains of others and the files; Conflict while leases exist."""
        if not self._directory.exists():
            return
        with self._directory as files:
            configuration = files.configuration()
            records = files.records()
            if records:
                raise Conflict(
                    f"network {self.name} is in use by {len(records)} containers, the first is {records[0].container}"
                )
            if configuration is not None:
                self._destroy(files, configuration)

    def destroy_unused(self) -> str | None:
        """``destroy`` where there is no lease and the bridge has no link of anybody's; the bridge's name, else None."""
        if not self._directory.exists():
            return None
        with self._directory as files:
            configuration = files.configuration()
            if configuration is None or files.records():
                return None
            with Netlink() as kernel:
                bridge = kernel.link(configuration.bridge)
                if bridge is not None and any(link.master == bridge.ifindex for link in kernel.links()):
                    return None
            self._destroy(files, configuration)
            return configuration.bridge

    def _destroy(self, files: Directory, configuration: Configuration) -> None:
        self._withdraw(files, configuration)
        nft.apply(nft.remove_table(configuration.bridge), f"remove the nftables table {configuration.bridge}")
        with Netlink() as kernel:
            present = kernel.link(configuration.bridge)
        if present is not None and present.alias == links.ALIAS + configuration.id:
            links.detach(configuration.bridge)
        files.erase()

    def free_link(self, record: Record) -> Record:
        """Make room for a lease's link: remove what has its name, or take another name if another lease has it."""
        with self._directory as files:
            taken = {other.link for other in files.records() if other.address != record.address}
            attempt = 0
            while record.link in taken:
                attempt += 1
                record = record._replace(link=links.link_name(record.container, attempt))
            files.replace(record)
        links.detach(record.link)
        return record

    def _lease(
        self, files: Directory, configuration: Configuration, records: list[Record], container_id: str, name: str,
        ports: tuple[Port, ...],
    ) -> tuple[Record, bool]:
        """The new or renewed record, and whether an old one had ports."""
        for old in records:
            if old.container == container_id:
                if old.ports:
                    files.write_stamp(None)  # until the table is written, the leases do not tell what is in it
                renewed = old._replace(name=name, ports=ports, taken=time.monotonic_ns())
                files.replace(renewed)
                return renewed, bool(old.ports)
        subnet = configuration.subnet
        # Not the network's own address, the gateway's or the broadcast address.
        usable = subnet.size - 3
        taken = {record.address for record in records}
        first = zlib.crc32(container_id.encode()) % usable
        for step in range(usable):
            address = links.dotted(subnet.base + 2 + (first + step) % usable)
            if address in taken:
                continue
            record = Record(
                address, container_id, name, boot_id(), links.link_name(container_id), time.monotonic_ns(), ports
            )
            if files.add(record):
                return record, False
        raise PycontainError(
            f"no address is free on network {self.name}: all {usable} of {subnet} are leased",
            hint="free those of containers that are gone: pycontain system prune",
        )

    def _free(self, chosen: Callable[[Record], bool]) -> list[str]:
        """Free the leases for which ``chosen`` says so, and return their containers' ids."""
        if not self._directory.exists():
            return []
        with self._directory as files:
            configuration = files.configuration()
            records = files.records()
            gone = [record for record in records if chosen(record)]
            if configuration is None or not gone:
                return []
            for record in gone:
                links.detach(record.link)
            self._drop(files, configuration, gone)
            if len(gone) == len(records):
                self._withdraw(files, configuration)
            return [record.container for record in gone]

    def _drop(self, files: Directory, configuration: Configuration, records: list[Record]) -> None:
        """Take back published ports, and then the leases: nothing may lead to an address that can be leased again."""
        published = [record for record in records if record.ports]
        if published or files.stamp() is None:
            self._ensure_firewall(files, configuration, changed=True, without=records)
            for record in published:
                nft.forget_connections(record.address)
        for record in records:
            files.drop(record)

    def _ensure_bridge(self, files: Directory) -> tuple[Configuration, bool]:
        """The configuration, and whether the bridge had to be made."""
        with Netlink() as kernel:
            configuration = files.configuration()
            if configuration is not None and self._wanted not in (None, configuration.subnet):
                raise Conflict(f"network {self.name} has subnet {configuration.subnet}, not {self._wanted}")
            if configuration is not None:
                bridge = kernel.link(configuration.bridge)
                if bridge is not None and bridge.alias == links.ALIAS + configuration.id:
                    links.finish_bridge(kernel, bridge, configuration.gateway, configuration.subnet.prefix)
                    links.write_sysctl("net/ipv4/ip_forward", "1")
                    return configuration, False
            for _ in range(_TRIES):
                configuration = self._configure(files, kernel, configuration)
                try:
                    bridge = links.create_bridge(
                        kernel, configuration.bridge, configuration.id, configuration.gateway, configuration.mtu
                    )
                except KernelError as error:
                    if error.errno != errno.EEXIST:
                        raise
                    continue  # somebody made a link of that name since we looked
                links.finish_bridge(kernel, bridge, configuration.gateway, configuration.subnet.prefix)
                rivals = links.used_subnets(kernel, besides=bridge.ifindex)
                if any(configuration.subnet.overlaps(rival) for rival in rivals) and self._wanted is None:
                    # Another pycontain with another root chose the same subnet at the same moment.
                    links.detach(configuration.bridge)
                    time.sleep(int.from_bytes(os.urandom(1), "big") / 2000)
                    continue
                self._reattach(files, kernel, bridge)
                links.write_sysctl("net/ipv4/ip_forward", "1")
                return configuration, True
            raise Conflict(f"no bridge could be made for network {self.name}: others took the name {_TRIES} times")

    def _configure(self, files: Directory, kernel: Netlink, old: Configuration | None) -> Configuration:
        """The configuration for a bridge that is not there: the old one if it still fits this host, or a new one."""
        used = links.used_subnets(kernel)
        if old is not None:
            foreign = kernel.link(old.bridge) is not None
            overlapping = next((other for other in used if old.subnet.overlaps(other)), None)
            if not foreign and overlapping is None:
                return old
            if files.records():
                problem = f"a link {old.bridge} of somebody else" if foreign else f"a route or address of {overlapping}"
                raise Conflict(
                    f"network {self.name} lost its bridge, and {problem} is in the way while its containers run",
                    hint="stop the containers, then start one again",
                )
        subnet = self._wanted
        if subnet is None:
            subnet = links.choose_subnet(used)
        else:
            overlapping = next((other for other in used if subnet.overlaps(other)), None)
            if overlapping is not None:
                raise Conflict(f"subnet {subnet} overlaps {overlapping}, a route or an address of this host")
        configuration = Configuration(
            os.urandom(8).hex(), links.free_bridge_name(kernel, self.name), subnet, links.uplink_mtu(kernel)
        )
        # Written first, so that a bridge which a crash leaves can be told to be ours.
        files.write_configuration(configuration)
        return configuration

    def _reattach(self, files: Directory, kernel: Netlink, bridge: Link) -> None:
        """Give the links of running containers to a bridge that somebody deleted and we made again."""
        present = {link.name for link in kernel.links()}
        for record in files.records():
            if record.link in present:
                links.reattach(kernel, record.link, bridge)

    def _ensure_firewall(
        self, files: Directory, configuration: Configuration, *, changed: bool, new: Record | None = None,
        without: Collection[Record] = (),
    ) -> Stamp:
        """Bring the table and the admissions up to date where anything changed: our ports, or anybody's rules.

        ``without`` are leases about to go, whose ports are left out. The whole table is written, unless the ports of a
        ``new`` lease are all that changed: a transaction that only adds is several times faster, since the kernel need
        not wait until nobody uses what it removes.
        """
        boot, namespace, legacy = boot_id(), namespace_id(), firewall.legacy_tables()
        before = nft.generation()
        name = configuration.bridge
        old = files.stamp()
        facts = (boot, namespace, before, legacy, f"{name} {configuration.subnet}")
        known = old is not None and facts == (old.boot, old.namespace, old.generation, old.legacy, old.table)
        if old is not None and known and not changed and (new is None or not new.ports):
            return old
        # The newest first: where a dead container's lease still names a port that a new one holds, the new one has it.
        gone = {record.address for record in without}
        records = [record for record in reversed(files.records()) if record.ports and record.address not in gone]
        others = [port for record in records if new and record.address != new.address for port in record.ports]
        clash = new is not None and any(port.conflicts(other) for port in new.ports for other in others)
        if new is not None and known and not changed and not clash:
            commands = nft.publish(name, new.published())
        else:
            commands = nft.table(name, name, str(configuration.subnet), [record.published() for record in records])
        nft.apply(commands, f"write the nftables table {name}")
        expected = before + 1
        if old is not None and known:
            stamp = old._replace(generation=expected)
        else:
            needed = firewall.admission(nft.ruleset(), name)
            problems = needed.problems + firewall.legacy_problems(name)
            if needed.insert:
                try:
                    nft.apply(needed.insert, f"let {name} through")
                    expected += 1
                except PycontainError as error:
                    problems.append(firewall.refused(needed.insert, name, error.message))
            stamp = Stamp(boot, namespace, expected, legacy, facts[4], needed.wanted, tuple(problems))
        # The drop rules are in force: now packets for 127/8 may be routed to the bridge.
        published = [port for record in records for port in record.ports]
        loopback = any(port.host_ip == ANY or port.host_ip.startswith("127.") for port in published)
        links.write_sysctl(f"net/ipv4/conf/{name}/route_localnet", "1" if loopback else "0")
        # Any other number means that somebody else changed something meanwhile: look again next time.
        files.write_stamp(stamp if nft.generation() == expected else stamp._replace(generation=0))
        return stamp

    def _withdraw(self, files: Directory, configuration: Configuration) -> None:
        """Take our rules out of the chains of others, if any were put there."""
        stamp = files.stamp()
        if stamp is None or not stamp.admitted:
            return
        commands = firewall.withdrawal(nft.ruleset(), configuration.bridge)
        if commands:
            nft.apply(commands, f"take the rules for {configuration.bridge} out of other tables")
        files.write_stamp(None)
