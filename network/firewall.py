"""Other people's firewalls: chains that drop what is forwarded, and how our bridge is let through them.

An accept in one chain does not overrule a drop in another chain of the same hook. So a chain of docker, ufw, firewalld
or an administrator which drops by default needs an accept of its own; what our own table accepts is not enough.
"""

from __future__ import annotations

from pycontain.network import nft
from pycontain.runtime.light import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pycontain.network.nft import Json

_LEGACY_TABLES = "/proc/net/ip_tables_names"


class Problem(NamedTuple):
    """Something on this host that will keep containers from being reached, and one pasteable step against it."""

    message: str
    hint: str | None


class Admission(NamedTuple):
    """What a ruleset needs: commands to ``insert``, whether rules of ours are ``wanted`` in chains of others at all."""

    insert: list[Json]
    wanted: bool
    problems: list[Problem]


def comment(bridge: str) -> str:
    """The comment on the rules that we put into chains of others; how they are found again."""
    return f"pycontain: let {bridge} through"


def admission(ruleset: list[Json], bridge: str) -> Admission:
    """What the listed ruleset needs, so that it lets ``bridge`` through. Pure.

    The rules go into docker's DOCKER-USER where the dropping chain jumps there, which docker leaves to others and
    keeps over its own restarts; else to the head of the dropping chain itself.
    """
    chains = [entry["chain"] for entry in ruleset if "chain" in entry]
    rules = [entry["rule"] for entry in ruleset if "rule" in entry]
    insert: list[Json] = []
    problems: list[Problem] = []
    wanted = False
    for chain in chains:
        if chain.get("hook") != "forward":
            continue
        own = [rule for rule in rules if _place(rule) == (chain["family"], chain["table"], chain["name"])]
        if not _drops(chain, own):
            continue
        if chain["family"] == "bridge":
            problems.append(Problem(
                f"the nftables chain {_words(chain)} drops frames between the ports of a bridge, "
                "likely also between containers",
                f"nft insert rule {_words(chain)} meta ibrname {bridge} accept",
            ))
        if chain["family"] not in ("ip", "inet"):
            continue
        target = {"family": chain["family"], "table": chain["table"], "chain": chain["name"]}
        if any(_jumps(rule, "DOCKER-USER") for rule in own):
            target["chain"] = "DOCKER-USER"
        present = [
            rule
            for rule in rules
            if _place(rule) == (target["family"], target["table"], target["chain"])
            and rule.get("comment") == comment(bridge)
        ]
        wanted = True
        for key in ("iifname", "oifname"):
            if not any(_names(rule, key) for rule in present):
                rule = {**target, "expr": _accept(key, bridge), "comment": comment(bridge)}
                insert.append({"insert": {"rule": rule}})
    return Admission(insert, wanted, problems)


def withdrawal(ruleset: list[Json], bridge: str) -> list[Json]:
    """The commands that delete the rules which admission inserted. Pure."""
    return [
        {"delete": {"rule": {key: entry["rule"][key] for key in ("family", "table", "chain", "handle")}}}
        for entry in ruleset
        if "rule" in entry and entry["rule"].get("comment") == comment(bridge)
    ]


def refused(commands: list[Json], bridge: str, reason: str) -> Problem:
    """What is said when a chain did not take our rules, with what the user can do."""
    rule = commands[0]["insert"]["rule"]
    place = f"{rule['family']} {rule['table']} {rule['chain']}"
    if rule["table"] == "firewalld":
        step = f"firewall-cmd --permanent --zone=trusted --add-interface={bridge} && firewall-cmd --reload"
    else:
        step = f"nft insert rule {place} iifname {bridge} accept; nft insert rule {place} oifname {bridge} accept"
    return Problem(f"the nftables chain {place} drops what is forwarded and could not be changed: {reason}", step)


def legacy_tables() -> str:
    """The names of the tables of legacy iptables that exist in this namespace, "" for none."""
    try:
        with open(_LEGACY_TABLES) as file:
            return " ".join(file.read().split())
    except OSError:
        return ""


def legacy_problems(bridge: str) -> list[Problem]:
    """Whether legacy iptables (x_tables, not nftables) drops what is forwarded: those rules are reported, not changed.

    A legacy and an nftables ruleset that exist side by side are most often a mistake which only the user can undo.
    """
    if "filter" not in legacy_tables().split():
        return []
    step = f"iptables-legacy -I FORWARD -i {bridge} -j ACCEPT; iptables-legacy -I FORWARD -o {bridge} -j ACCEPT"
    program = nft.find_program("iptables-legacy")
    if program is None:
        return [Problem("legacy iptables rules are loaded and iptables-legacy was not found to read them", step)]
    # -w 1: a lock that somebody holds must not hold us.
    status, output, complaint = nft.run([program, "-w", "1", "-S", "FORWARD"])
    if status != 0:
        said = complaint.strip().splitlines() or ["nothing"]
        return [Problem(f"legacy iptables rules are loaded and cannot be read: {said[0]}", step)]
    lines = output.splitlines()
    last = lines[-1] if lines else ""
    drops = "-P FORWARD DROP" in lines or last.startswith(("-A FORWARD -j DROP", "-A FORWARD -j REJECT"))
    if not drops or all(f"-A FORWARD -{side} {bridge} -j ACCEPT" in lines for side in ("i", "o")):
        return []
    return [Problem("the legacy iptables chain FORWARD drops what is forwarded: containers reach no other host", step)]


def _place(rule: Json) -> tuple[Any, Any, Any]:
    return rule["family"], rule["table"], rule["chain"]


def _words(chain: Json) -> str:
    return f"{chain['family']} {chain['table']} {chain['name']}"


def _accept(key: str, bridge: str) -> list[Json]:
    return [{"match": {"op": "==", "left": {"meta": {"key": key}}, "right": bridge}}, {"accept": None}]


def _names(rule: Json, key: str) -> bool:
    return any(entry.get("match", {}).get("left") == {"meta": {"key": key}} for entry in rule["expr"])


def _jumps(rule: Json, chain: str) -> bool:
    return any(entry.get("jump", {}).get("target") == chain for entry in rule["expr"] if entry.get("jump"))


def _drops(chain: Json, rules: list[Json]) -> bool:
    """Whether a packet that no rule decides about is dropped: by policy, or by a last rule for all packets."""
    if chain.get("policy") == "drop":
        return True
    if not rules:
        return False
    verdict = [entry for entry in rules[-1]["expr"] if not entry.keys() & {"counter", "log"}]
    # nft shows the targets of iptables that it has no words for, such as REJECT, as "xt".
    return len(verdict) == 1 and bool(verdict[0].keys() & {"drop", "reject", "xt"})
