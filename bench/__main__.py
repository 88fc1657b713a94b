"""``python -m bench [--rounds N] [--json FILE] [--only SUITE]``: needs root and the peers; prints a table."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import Any

from bench import engines, host, machines, oci, report, warm

TITLES = {
    "v1": "OCI runtimes, cgroup v1",
    "v2": "OCI runtimes, cgroup v2",
    "host": "OCI runtimes, the machine's own cgroups",
    "engines": "Engines, with a network, cgroup v1",
    "machines": "Machines beside namespaces, with a network, cgroup v1",
}
# Where engines write whatever their options say, besides /run (host.in_view).
PRIVATE = """
ip link set lo up
for folder in /var/lib /etc/cni; do [ ! -d $folder ] || mount -t tmpfs private $folder; done
exec "$@"
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="how often each contender is timed (default: 40)")
    parser.add_argument("--json", metavar="FILE", help="write every figure to FILE")
    parser.add_argument("--only", action="append", choices=list(TITLES), help="only this suite (repeatable)")
    parser.add_argument("--bin", default=os.path.dirname(sys.executable), help="where our commands are")
    parser.add_argument("--suite", choices=list(TITLES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("containers and cgroups are timed here: run it as root")
    if options.suite:
        json.dump(run(options.suite, options.rounds, options.bin), sys.stdout)
        return 0
    facts = host.facts()
    suites = [start(suite, options.rounds, options.bin) for suite in options.only or chosen(facts)]
    result = {"version": 1, "facts": facts, "suites": suites}
    if options.json:
        os.makedirs(os.path.dirname(options.json) or ".", exist_ok=True)
        with open(options.json, "w") as file:
            json.dump(result, file, indent=1)
            file.write("\n")
    print(report.table(result))
    return 0


def chosen(facts: dict[str, object]) -> list[str]:
    """A hybrid host can show both versions, and is a case of its own; another host shows what it has."""
    hybrid = facts["cgroups"] == "hybrid"
    return [*(("v1", "v2", "host") if hybrid else ("host",)), "engines", "machines"]


def start(suite: str, rounds: int, folder: str) -> dict[str, Any]:
    """Run one suite in mount (and network) namespaces of its own; what it measured."""
    print(f"timing: {TITLES[suite]}", file=sys.stderr)
    inner = [sys.executable, "-m", "bench", "--suite", suite, "--rounds", str(rounds), "--bin", folder]
    own = suite in ("engines", "machines")
    view = ("v1" if host.cgroups() == "hybrid" else "host") if own else suite
    if suite == "machines":
        machines.prepare()
    if own:
        inner = ["unshare", "--net", "sh", "-c", PRIVATE, "sh", *inner]
    done = subprocess.run(host.in_view(view, inner), stdout=subprocess.PIPE, text=True, check=True)
    return {"suite": suite, "title": TITLES[suite], **json.loads(done.stdout)}


def run(suite: str, rounds: int, folder: str) -> dict[str, object]:
    if suite == "engines":
        return engines.suite(os.path.join(folder, "pycontain"), rounds)
    if suite == "machines":
        return machines.suite(os.path.join(folder, "pycontain"), rounds)
    return oci.suite(os.path.join(folder, "pycontain-runtime"), rounds, suite, warm.run)


if __name__ == "__main__":
    sys.exit(main())
