"""A run as Markdown (CommonMark with tables, as GitHub and GitLab have them): for a README, or for an issue."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pycontain.isolation import digest, units
from pycontain.isolation.results import OPENED, Results
from pycontain.isolation.units import shown

SIGNS = {"held": "✓", "leaked": "✗", "noisy": "~", "failed": "?", "absent": "–", "none": "·"}
# Markup, HTML, mentions, numbers of issues, and the colon that makes a link; as entities they are none of it.
_SPECIAL = re.compile(r"[\\`*_\[\]|~$<>&@#]|^[-+=]|:(?=//)")


def markdown(results: Results) -> str:
    """Levels in a table, outcomes in a matrix of signs, the figures that come first."""
    parts = [
        f"## Isolation on {text(results.facts['cpu'])}",
        f"{text(digest.host(results))}. {text(digest.moment(results.started))}, {results.mode}"
        f"{f', {digest.duration(results.seconds)}' if results.seconds else ''}.",
        "" if results.complete else "**This run was interrupted.**",
        _levels(results),
        _outcomes(results),
        _figures(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def text(value: str) -> str:
    """A text that shows as it is: no markup, no HTML, no link, no mention of anybody."""
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", shown(value)).replace("www.", "www&#46;")


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], align: str = "---:") -> str:
    lines = [heads, ["---"] + [align] * (len(heads) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _levels(results: Results) -> str:
    heads = digest.headlines(results)
    rows = []
    for one in digest.sums(results):
        counts = [str(count) for count in (one.held, one.leaked, one.noisy, one.untried)]
        figures = [
            text(units.brief(figure.median, quantity.unit)) if figure else "–"
            for figure, (_, quantity) in zip(one.figures, heads, strict=True)
        ]
        rows.append([text(one.level.title), *counts, *figures])
    titles = ["Level", "held", "leaked", "noisy", "not tried", *(text(title) for title, _ in heads)]
    missing = [level for level in results.levels.values() if level.missing is not None]
    gone = "".join(f"\n- not here: {text(level.title)}: {text(level.missing or '')}" for level in missing)
    return _table(titles, rows) + (f"\n{gone}" if gone else "")


def _outcomes(results: Results) -> str:
    levels = [level.name for level in results.present()]
    columns = [OPENED] * any(level == OPENED for level, _ in results.outcomes) + levels
    rows: list[list[str]] = []
    for kind, claims in digest.kinds(results).items():
        rows.append([f"**{text(kind)}**", *[""] * len(columns)])
        for claim in claims:
            measures = digest.measures_of(results, claim.name)
            cells = (digest.cell(results, level, claim.name, measures)[0] for level in columns)
            rows.append([text(claim.title), *(SIGNS[kind] for kind in cells)])
    if not rows:
        return ""
    legend = (
        "✓ held, ✗ leaked, ~ noisy (contained, but the neighbour notices), ? failed, – cannot be had, · not tried; "
        "control: a container without its defences."
    )
    heads = ["Claim", *("control" if level == OPENED else text(level) for level in columns)]
    return f"### Outcomes\n\n{legend}\n\n{_table(heads, rows, ':-:')}"


def _figures(results: Results) -> str:
    quantities = digest.main_figures(results)
    if not quantities:
        return ""
    rows = []
    for quantity in quantities:
        figures = (results.figure(level.name, quantity.name) for level in results.present())
        cells = [text(units.brief(figure.median, quantity.unit)) if figure else "–" for figure in figures]
        unit = f" ({quantity.unit})" if units.is_counted(quantity.unit) and quantity.unit else ""
        rows.append([text(digest.title(results, quantity) + unit), *cells])
    heads = ["Median", *(text(level.name) for level in results.present())]
    return f"### Figures\n\n{_table(heads, rows)}"
