"""The figures as a table for people; the JSON beside it has everything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

PEERS = ("runc", "crun", "podman")
MEMORY = {"peak_kib": "peak memory of one run", "companion_pss_kib": "memory (Pss) beside a container"}


def table(report: dict[str, Any]) -> str:
    """Markdown, also readable as it is."""
    lines = [facts(report["facts"]), ""]
    for suite in report["suites"]:
        lines += [f"### {suite['title']}", "", *rows(suite), ""]
        lines += [f"{name}: left out ({why})" for name, why in suite["absent"].items()]
    return "\n".join(lines)


def facts(found: dict[str, Any]) -> str:
    versions = "; ".join(f"{value}" for value in found["versions"].values() if value != "absent")
    machine = f"Linux {found['kernel']} {found['machine']}, {found['cpus']} x {found['processor']}"
    rest = f"{found['memory_gib']} GiB, cgroups {found['cgroups']}, Python {found['python']}"
    return f"{machine}, {rest}, load {found['load_at_start']:.2f}; {versions}"


def rows(suite: dict[str, Any]) -> Iterator[str]:
    peers = [peer for peer in PEERS if any(row["name"] == peer for row in suite["timings"])]
    heads = ["discipline", "gap", "contender", "median ms", "best ms", "p10 to p90", *(f"x {peer}" for peer in peers)]
    yield f"| {' | '.join(heads)} |"
    yield "|---|---|---|---:|---:|---:|" + "---:|" * len(peers)
    medians = {(row["discipline"], row["idle"], row["name"]): row["median_ms"] for row in suite["timings"]}
    for row in suite["timings"]:
        ratios = []
        for peer in peers:
            other = medians.get((row["discipline"], row["idle"], peer))
            ratios.append(f"{row['median_ms'] / other:.2f}" if other else "")
        gap = "150 ms" if row["idle"] else "none"
        yield (
            f"| {row['discipline']} | {gap} | {row['name']} | {row['median_ms']:.1f} "
            f"| {row['best_ms']:.1f} | {row['p10_ms']:.1f} to {row['p90_ms']:.1f} | {' | '.join(ratios)} |"
        )
    for title, key in (
        ("peak memory of one run", "peak_kib"),
        ("memory (Pss) beside a container", "companion_pss_kib"),
    ):
        for name, kib in suite.get(key, {}).items():
            yield f"| {title} | | {name} | {kib} KiB | | | " + " | ".join("" for _ in peers) + " |"
