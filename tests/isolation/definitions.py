"""The tables of what is measured, and the schema of results, as pages: ``python -m tests.isolation.definitions``."""

from __future__ import annotations

import json
from pathlib import Path

from pycontain.isolation import schema
from pycontain.isolation.levels import LEVELS
from pycontain.isolation.measures import MEASURES
from pycontain.isolation.model import Measure, Quantity
from pycontain.isolation.runner import GROUPS

DOCS = Path(__file__).resolve().parents[2] / "docs"
TITLES = {
    "outcome": "Outcomes: what is tried",
    "surface": "Surface: what of the host is within reach",
    "cost": "Cost",
    "interference": "Interference: what a neighbour notices",
}


def pages() -> dict[str, str]:
    """File name below docs/ → text."""
    return {
        "isolation-measures.md": _measures(),
        "isolation-results.schema.json": json.dumps(schema.document(), indent=2) + "\n",
    }


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _measures() -> str:
    lines = ["# What the isolation comparison measures", ""]
    lines += [
        "Made by `python -m tests.isolation.definitions` from the tables that the measures themselves are taken by.",
        "[isolation.md](isolation.md) has the method.",
        "",
        "## Levels",
        "",
        "| level | |",
        "|---|---|",
    ]
    lines += [f"| `{level.name}` | {_cell(level.about)} |" for level in LEVELS]
    for group in GROUPS:
        lines += ["", f"## {TITLES[group]}"]
        for measure in MEASURES:
            if measure.group == group:
                lines += ["", f"### {measure.title} (`{measure.name}`)", "", _often(measure)]
                if measure.claims:
                    lines += ["", "| claim | kind | what is tried | published as |", "|---|---|---|---|"]
                    lines += [
                        f"| `{claim.name}`: {_cell(claim.title)} | {_cell(claim.kind)} | {_cell(claim.attack)} | {claim.row} |"
                        for claim in measure.claims
                    ]
                if measure.quantities:
                    lines += ["", "| quantity | unit | definition |", "|---|---|---|"]
                    lines += [
                        f"| `{quantity.name}`: {_cell(quantity.title)} | {_cell(quantity.unit)} | {_cell(_definition(quantity))} |"
                        for quantity in measure.quantities
                    ]
    return "\n".join(lines) + "\n"


def _often(measure: Measure) -> str:
    least, most = measure.rounds
    times = f"{least} to {most} rounds" if least != most else "once" if most == 1 else f"{most} rounds"
    return f"Taken {times if times == 'once' else 'in ' + times}{'' if measure.quick else ', with `--full` only'}."


def _definition(quantity: Quantity) -> str:
    parts = [quantity.definition]
    for name in ("clock", "cache", "denominator"):
        if getattr(quantity, name):
            parts.append(f"{name.capitalize()}: {getattr(quantity, name)}")
    if quantity.better != "neither":
        parts.append(f"{quantity.better.capitalize()} is better")
    return " ".join(part if part.endswith(".") else part + "." for part in parts)


def main() -> None:
    for name, text in pages().items():
        (DOCS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
