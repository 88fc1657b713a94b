"""The table and the admissions as pure functions; that the kernel takes them is tried in the integration tests."""

from __future__ import annotations

import json
from typing import Any

from pycontain.network import firewall, nft
from pycontain.network.ports import Port

OURS = "pycontain: let pycontain0 through"


def chain(policy: str | None = None, *, hook: str | None = "forward", family: str = "ip", name: str = "FORWARD") -> Any:
    found: dict[str, Any] = {"family": family, "table": "filter", "name": name, "handle": 1}
    if hook:
        found |= {"type": "filter", "hook": hook, "prio": 0, "policy": policy or "accept"}
    return {"chain": found}


def rule(*expr: Any, name: str = "FORWARD", family: str = "ip", comment: str | None = None, handle: int = 9) -> Any:
    found: dict[str, Any] = {"family": family, "table": "filter", "chain": name, "handle": handle, "expr": list(expr)}
    if comment:
        found["comment"] = comment
    return {"rule": found}


def match(key: str, value: str = "pycontain0") -> dict[str, Any]:
    return {"match": {"op": "==", "left": {"meta": {"key": key}}, "right": value}}


def places(found: firewall.Admission) -> list[tuple[str, str]]:
    return [
        (command["insert"]["rule"]["chain"], command["insert"]["rule"]["expr"][0]["match"]["left"]["meta"]["key"])
        for command in found.insert
    ]


def test_an_empty_ruleset_needs_nothing() -> None:
    assert firewall.admission([{"metainfo": {}}], "pycontain0") == firewall.Admission([], False, [])


def test_a_drop_policy_needs_both_directions() -> None:
    found = firewall.admission([chain("drop")], "pycontain0")
    assert places(found) == [("FORWARD", "iifname"), ("FORWARD", "oifname")]
    assert found.wanted and found.problems == []
    assert found.insert[0]["insert"]["rule"] == {
        "family": "ip", "table": "filter", "chain": "FORWARD", "comment": OURS,
        "expr": [match("iifname"), {"accept": None}],
    }


def test_only_what_is_missing_is_inserted() -> None:
    half = [chain("drop"), rule(match("iifname"), {"accept": None}, comment=OURS)]
    assert places(firewall.admission(half, "pycontain0")) == [("FORWARD", "oifname")]
    whole = [*half, rule(match("oifname"), {"accept": None}, comment=OURS)]
    found = firewall.admission(whole, "pycontain0")
    assert found.insert == [] and found.wanted
    # Another network's rules are not ours.
    assert len(firewall.admission(whole, "pycontain1").insert) == 2


def test_docker_user_is_preferred_where_it_is_jumped_to() -> None:
    user = chain(hook=None, name="DOCKER-USER")
    unused = firewall.admission([chain("drop"), user], "pycontain0")
    assert places(unused)[0][0] == "FORWARD"
    jump = rule({"counter": {"packets": 0, "bytes": 0}}, {"jump": {"target": "DOCKER-USER"}})
    used = firewall.admission([chain("drop"), user, jump], "pycontain0")
    assert places(used) == [("DOCKER-USER", "iifname"), ("DOCKER-USER", "oifname")]


def test_what_counts_as_dropping() -> None:
    counter = {"counter": {"packets": 0, "bytes": 0}}

    def wanted(*entries: Any) -> bool:
        return firewall.admission(list(entries), "pycontain0").wanted

    assert wanted(chain(), rule(counter, {"reject": {"type": "icmp", "expr": "host-prohibited"}}))
    assert wanted(chain(), rule(counter, {"reject": None}))
    assert wanted(chain(), rule({"log": {"prefix": "x"}}, {"drop": None}))
    assert wanted(chain(), rule(counter, {"xt": None}))
    assert wanted(chain(family="inet"), rule({"drop": None}, family="inet"))
    assert not wanted(chain())
    assert not wanted(chain(), rule(counter))
    assert not wanted(chain(), rule(match("iifname", "eth0"), {"drop": None}))
    assert not wanted(chain(), rule({"limit": {"rate": 5, "per": "second"}}, {"drop": None}))
    assert not wanted(chain(), rule({"drop": None}), rule(counter, {"accept": None}))
    assert not wanted(chain("drop", hook="input"))
    assert not wanted(chain("drop", family="ip6"))
    assert not wanted(chain(), rule({"drop": None}, family="inet"))


def test_a_bridge_chain_is_reported() -> None:
    found = firewall.admission([chain("drop", family="bridge")], "pycontain0")
    assert found.insert == [] and not found.wanted
    assert found.problems == [
        firewall.Problem(
            "the nftables chain bridge filter FORWARD drops frames between the ports of a bridge, "
            "likely also between containers",
            "nft insert rule bridge filter FORWARD meta ibrname pycontain0 accept",
        )
    ]


def test_withdrawal_takes_ours_alone() -> None:
    listed = [
        chain("drop"),
        rule({"accept": None}, comment=OURS, handle=4),
        rule({"accept": None}, comment="pycontain: let pycontain1 through", handle=5),
        rule({"accept": None}, handle=6),
    ]
    assert firewall.withdrawal(listed, "pycontain0") == [
        {"delete": {"rule": {"family": "ip", "table": "filter", "chain": "FORWARD", "handle": 4}}}
    ]


def test_refusals_carry_a_step() -> None:
    insert = firewall.admission([chain("drop")], "pycontain0").insert
    assert firewall.refused(insert, "pycontain0", "why") == firewall.Problem(
        "the nftables chain ip filter FORWARD drops what is forwarded and could not be changed: why",
        "nft insert rule ip filter FORWARD iifname pycontain0 accept; "
        "nft insert rule ip filter FORWARD oifname pycontain0 accept",
    )


def test_ports_lie_in_one_map_for_each_shape() -> None:
    ports = (Port(80, 8080), Port(81, 8081, "127.0.0.1"), Port(53, 5353, protocol="udp"))
    commands = nft.publish("t", nft.Published("c" * 64, "10.118.0.9", ports))
    rules = [command["add"]["rule"] for command in commands]
    assert [entry["chain"] for entry in rules] == ["prerouting", "output"] * 2
    assert {entry["comment"] for entry in rules} == {"c" * 64}
    one, every = (entry["expr"][1]["dnat"]["addr"]["map"]["data"]["set"] for entry in rules[::2])
    assert one == [[{"concat": ["tcp", "127.0.0.1", 8081]}, {"concat": ["10.118.0.9", 81]}]]
    assert every == [
        [{"concat": ["tcp", 8080]}, {"concat": ["10.118.0.9", 80]}],
        [{"concat": ["udp", 5353]}, {"concat": ["10.118.0.9", 53]}],
    ]
    assert nft.publish("t", nft.Published("c", "10.118.0.9", ())) == []


def test_the_table_replaces_itself_in_one_go() -> None:
    published = [nft.Published(name, "10.118.0.9", (Port(80, 8080),)) for name in ("newer", "older")]
    commands = nft.table("pycontain0", "pycontain0", "10.118.0.0/16", published)
    assert [next(iter(command)) for command in commands[:3]] == ["add", "delete", "add"]
    assert all("table" in command[next(iter(command))] for command in commands[:3])
    comments = [command["add"]["rule"].get("comment") for command in commands if "rule" in command.get("add", {})]
    assert [comment for comment in comments if comment] == ["newer", "newer", "older", "older"]
    json.dumps(commands)
    bases = {
        command["add"]["chain"]["name"]: command["add"]["chain"]["prio"]
        for command in commands
        if "chain" in command.get("add", {})
    }
    # Before connection tracking (-200), so that the drops see what was on the wire.
    assert bases == {"raw": -300, "prerouting": -100, "output": -100, "postrouting": 100, "forward": 0}
