"""The network's own nftables table, made anew as a whole in one transaction whenever a published port changes.

Rules are written by libnftables' JSON (``nft -j -f -``, libnftables-json(5)); whether anybody changed the ruleset is
asked by one netlink request of our own, since starting nft costs some milliseconds.
"""

from __future__ import annotations

import errno
import os
import struct

from pycontain.network.netlink import AF_INET, NETLINK_NETFILTER, Netlink, Request, attribute, attributes
from pycontain.network.ports import ANY, Port
from pycontain.runtime import jsontext
from pycontain.runtime.errors import KernelError, PycontainError
from pycontain.runtime.light import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    Json = dict[str, Any]

_SBIN = ("/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/local/bin")
_GETGEN, _NFTA_GEN_ID = (10 << 8) | 16, 1
_CT_DELETE = (1 << 8) | 2
_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY, _CTA_STATUS, _CTA_FILTER, _CTA_STATUS_MASK = 1, 2, 3, 25, 26
_CTA_TUPLE_IP, _CTA_IP_V4_SRC, _CTA_TUPLE_PROTO, _CTA_PROTO_NUM, _CTA_PROTO_DST_PORT = 1, 1, 2, 1, 3
_BY_SOURCE, _BY_PROTOCOL, _BY_DESTINATION_PORT = 1 << 0, 1 << 3, 1 << 5
_SEEN_REPLY, _SOURCE_TRANSLATED, _DESTINATION_TRANSLATED = 1 << 1, 1 << 4, 1 << 5
_UDP = 17
_NLA_NESTED = 0x8000
_LOOPBACK: Json = {"prefix": {"addr": "127.0.0.0", "len": 8}}


class Published(NamedTuple):
    """The ports of one container."""

    container_id: str
    address: str
    ports: tuple[Port, ...]


def generation() -> int:
    """The generation number of the namespace's nftables ruleset: every committed transaction of anybody adds one."""
    request = Request("ask for the nftables generation", _GETGEN, 0, struct.pack(">BBH", 0, 0, 0))
    with Netlink(NETLINK_NETFILTER) as netlink:
        answers = netlink.ask(request)
    return int.from_bytes(attributes(answers[0][4:])[_NFTA_GEN_ID], "big")


def forget_connections(address: str) -> None:
    """Drop the connection tracking entries from or to a container's address.

    Without that a UDP client which keeps sending from one port would go on to the address of a container that has
    gone, or to whoever gets it next. Kernels before 5.8 have no filter by address and are left alone.
    """
    source = attribute(_CTA_IP_V4_SRC, bytes(int(part) for part in address.split(".")))
    pair = attribute(_CTA_TUPLE_IP | _NLA_NESTED, source)
    for side in (_CTA_TUPLE_ORIG, _CTA_TUPLE_REPLY):
        _forget(f"forget the connections of {address}", side, pair, _BY_SOURCE)


def forget_unanswered(port: Port) -> None:
    """Drop tracking entries of UDP clients that asked for ``port`` before it was published, and had no answer.

    An entry is made once and used while packets come: a client that did not stop sending while a container was being
    replaced would never be led to the new one. Only entries that nobody answered and nobody translated are dropped.
    """
    if port.protocol == "udp":
        wanted = attribute(_CTA_PROTO_NUM, bytes([_UDP]))
        wanted += attribute(_CTA_PROTO_DST_PORT, port.host_port.to_bytes(2, "big"))
        mask = _SEEN_REPLY | _SOURCE_TRANSLATED | _DESTINATION_TRANSLATED
        status = attribute(_CTA_STATUS, bytes(4)) + attribute(_CTA_STATUS_MASK, mask.to_bytes(4, "big"))
        pair = attribute(_CTA_TUPLE_PROTO | _NLA_NESTED, wanted)
        tried = f"forget the unanswered packets for UDP port {port.host_port}"
        _forget(tried, _CTA_TUPLE_ORIG, pair, _BY_PROTOCOL | _BY_DESTINATION_PORT, status)


def _forget(tried: str, side: int, pair: bytes, compared: int, more: bytes = b"") -> None:
    """IPCTNL_MSG_CT_DELETE with a filter: every entry whose ``side`` agrees with ``pair`` in what is ``compared``."""
    # CTA_FILTER_ORIG_FLAGS and CTA_FILTER_REPLY_FLAGS have the numbers of the tuples.
    chosen = attribute(_CTA_FILTER | _NLA_NESTED, attribute(side, struct.pack("=I", compared)))
    body = struct.pack(">BBH", AF_INET, 0, 0) + attribute(side | _NLA_NESTED, pair) + chosen + more
    try:
        with Netlink(NETLINK_NETFILTER) as netlink:
            netlink.send(Request(tried, _CT_DELETE, 0, body))
    except KernelError as error:
        # None there; or no connection tracking, or none that can filter.
        if error.errno not in (errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL):
            raise


def table(name: str, bridge: str, subnet: str, published: Sequence[Published]) -> list[Json]:
    """The commands that replace the table ``ip <name>``; ``subnet`` is ``10.0.0.0/16``. Pure.

    Where two of ``published`` claim one host port, the earlier in the sequence has it.
    """
    here = {"family": "ip", "table": name}
    address, _, length = subnet.partition("/")
    ours: Json = {"prefix": {"addr": address, "len": int(length)}}
    inward, outward = _equal(_meta("iifname"), bridge), _equal(_meta("oifname"), bridge)
    elsewhere = _match("!=", _meta("oifname"), bridge)
    translated = _match("in", {"ct": {"key": "status"}}, "dnat")
    def chain(chain_name: str, kind: str, hook: str, priority: int, rules: list[list[Json]]) -> list[Json]:
        commands: list[Json] = [
            {"add": {"chain": {
                **here, "name": chain_name, "type": kind, "hook": hook, "prio": priority, "policy": "accept",
            }}}
        ]
        return commands + [{"add": {"rule": {**here, "chain": chain_name, "expr": rule}}} for rule in rules]

    own: Json = {"table": {"family": "ip", "name": name}}
    return [
        # `add` first, so that `delete` never misses; all of it is one transaction.
        {"add": own},
        {"delete": own},
        {"add": own},
        # route_localnet makes the bridge deliver packets for 127/8: none may come from a container.
        *chain("raw", "filter", "prerouting", -300, [
            [inward, _equal(_payload("ip", "daddr"), _LOOPBACK), {"drop": None}],
            [inward, _equal(_payload("ip", "saddr"), _LOOPBACK), {"drop": None}],
        ]),
        # What is published on a loopback address is for this host's own processes, which pass `output`.
        *chain("prerouting", "nat", "prerouting", -100, [
            [_equal(_payload("ip", "daddr"), _LOOPBACK), {"return": None}],
        ]),
        *chain("output", "nat", "output", -100, []),
        *chain("postrouting", "nat", "postrouting", 100, [
            # An answer to 127.0.0.1 would stay in the container, one to a neighbour would go to it directly.
            [outward, _equal(_payload("ip", "saddr"), _LOOPBACK), {"masquerade": None}],
            [outward, _equal(_payload("ip", "saddr"), ours), translated, {"masquerade": None}],
            [elsewhere, _equal(_payload("ip", "saddr"), ours), {"masquerade": None}],
        ]),
        # The host forwards, so any neighbour may use it as a router to the containers: only published ports answer.
        *chain("forward", "filter", "forward", 0, [
            [outward, _match("in", {"ct": {"key": "state"}}, ["established", "related"]), {"accept": None}],
            [outward, inward, {"accept": None}],
            [outward, translated, {"accept": None}],
            [outward, {"drop": None}],
        ]),
        *(command for each in published for command in publish(name, each)),
    ]


def publish(name: str, published: Published) -> list[Json]:
    """The commands that add one container's ports to the table, with its id as the rules' comment. Pure."""
    local = _equal({"fib": {"result": "type", "flags": ["daddr"]}}, "local")
    commands: list[Json] = []
    for key, elements in _maps(published):
        rule = [local, {"dnat": {"family": "ip", "addr": {"map": {"key": key, "data": {"set": elements}}}}}]
        commands += [
            {"add": {"rule": {
                "family": "ip", "table": name, "chain": chain, "expr": rule, "comment": published.container_id[:128],
            }}}
            for chain in ("prerouting", "output")
        ]
    return commands


def remove_table(name: str) -> list[Json]:
    """The commands that remove the table, whether or not it is there. Pure."""
    own: Json = {"table": {"family": "ip", "name": name}}
    return [{"add": own}, {"delete": own}]


def _maps(published: Published) -> list[tuple[Json, list[Any]]]:
    """(key, elements) of up to two maps: ports of one host address each, and ports of every host address."""
    one: list[Any] = []
    every: list[Any] = []
    for port in published.ports:
        target = {"concat": [published.address, port.container_port]}
        if port.host_ip == ANY:
            every.append([{"concat": [port.protocol, port.host_port]}, target])
        else:
            one.append([{"concat": [port.protocol, port.host_ip, port.host_port]}, target])
    protocol, destination = _meta("l4proto"), _payload("th", "dport")
    maps: list[tuple[Json, list[Any]]] = []
    if one:
        maps.append(({"concat": [protocol, _payload("ip", "daddr"), destination]}, one))
    if every:
        maps.append(({"concat": [protocol, destination]}, every))
    return maps


def _match(operator: str, left: Json, right: object) -> Json:
    return {"match": {"op": operator, "left": left, "right": right}}


def _equal(left: Json, right: object) -> Json:
    return _match("==", left, right)


def _meta(key: str) -> Json:
    return {"meta": {"key": key}}


def _payload(protocol: str, field: str) -> Json:
    return {"payload": {"protocol": protocol, "field": field}}


# Running nft


def apply(commands: list[Json], tried: str) -> None:
    """Carry out the commands in one transaction. PycontainError says ``tried`` and nft's own first line."""
    run_nft(["-j", "-f", "-"], jsontext.dump({"nftables": commands}), tried)


def ruleset() -> list[Json]:
    """The whole ruleset of the namespace as nft lists it."""
    text = run_nft(["-j", "list", "ruleset"], "", "list the nftables ruleset")
    listed = jsontext.loads(text.encode() or b'{"nftables": []}')
    return list(listed["nftables"])


def run_nft(arguments: list[str], text: str, tried: str) -> str:
    """Run nft with ``text`` on its standard input and return its output; PycontainError when it fails."""
    program = find_program("nft")
    if program is None:
        raise PycontainError(f"{tried}: the program nft was not found", hint="apt-get install nftables")
    status, output, complaint = run([program, *arguments], text)
    if status != 0:
        lines = [line for line in complaint.splitlines() if line.strip()]
        said = lines[0] if lines else "nothing"
        raise PycontainError(f"{tried}: nft ended with status {status} and said: {said}")
    return output


def find_program(name: str) -> str | None:
    """The path of a system program, from the fixed list of system directories."""
    for folder in _SBIN:
        path = f"{folder}/{name}"
        if os.access(path, os.X_OK):
            return path
    return None


def run(command: list[str], text: str = "") -> tuple[int, str, str]:
    """Run a program to its end: (exit status or negative signal, its output, its error output).

    posix_spawn and files in memory instead of ``subprocess`` and pipes: no fork of a threaded host, no import.
    """
    fds = [os.memfd_create(f"pycontain-{part}") for part in ("input", "output", "error")]
    try:
        os.write(fds[0], text.encode())
        os.lseek(fds[0], 0, os.SEEK_SET)
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(fds)]
        environment = {"PATH": ":".join(_SBIN), "LC_ALL": "C"}
        try:
            pid = os.posix_spawn(command[0], command, environment, file_actions=actions)
        except OSError as error:
            raise KernelError(f"start {command[0]}", error.errno or errno.EIO) from None
        try:
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except ChildProcessError:
            # The host program ignores SIGCHLD, so the kernel keeps no status: only the error output can tell.
            status = 1 if os.fstat(fds[2]).st_size else 0
        return status, _whole(fds[1]), _whole(fds[2])
    finally:
        for fd in fds:
            os.close(fd)


def _whole(fd: int) -> str:
    return os.pread(fd, os.fstat(fd).st_size, 0).decode("utf-8", "replace")
