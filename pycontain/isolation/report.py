"""The page of a run: one HTML file that needs nothing else, for a screen, a telephone and paper.

HTML (WHATWG) and SVG, no script. Whatever comes from results is escaped: a detail may be what a hostile program wrote.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from string import Template

from pycontain.isolation import digest, report_plots, report_tables, units
from pycontain.isolation.digest import Finding, Sum
from pycontain.isolation.markup import Section, note, row, scroll, section, sign, table, tag, text
from pycontain.isolation.model import Claim, Quantity
from pycontain.isolation.results import OPENED, LevelInfo, Results

_PAGE = os.path.join(os.path.dirname(__file__), "page")
_SIGNS = {
    "held": "held",
    "leaked": "leaked: the attack worked",
    "noisy": "noisy: contained, but the neighbour notices",
    "failed": "the measure failed",
    "absent": "cannot be had at this level",
    "none": "not tried",
}


def html(results: Results) -> str:
    """The whole page."""
    sections = [
        report_plots.pictures(results),
        _matrix(results),
        _findings(results),
        report_plots.group(results, "surface"),
        report_plots.starts(results),
        report_plots.group(results, "cost"),
        report_tables.interference(results),
        report_plots.group(results, "interference"),
        report_tables.numbers(results),
        report_tables.gaps(results),
        report_tables.facts(results),
        report_tables.definitions(results),
    ]
    there = [found for found in sections if found is not None]
    links = (tag("li", tag("a", text(found.title), href=f"#{found.name}")) for found in there)
    nav = tag("nav", tag("ul", *links), aria_label="Sections")
    body = "\n".join(
        [
            tag("header", *_headline(results), nav),
            tag("main", _summary(results), *(found.html for found in there)),
            tag("footer", note(_footer(results))),
        ]
    )
    title = f"Isolation on {results.facts['cpu']}, Linux {results.facts['kernel']}"
    return Template(_read("page.html")).substitute(title=text(title), style=_read("style.css"), body=body)


def _read(name: str) -> str:
    with open(os.path.join(_PAGE, name), encoding="utf-8") as file:
        return file.read()


def _footer(results: Results) -> str:
    version = results.facts["versions"].get("pycontain")
    return f"Made by pycontain{f' {version}' if version else ''} of run {results.id}. All definitions are on this page."


def _headline(results: Results) -> list[str]:
    kind = {"quick": "a quick run", "full": "a full run", "only": "a run of some measures only"}[results.mode]
    lasted = f" of {digest.duration(results.seconds)}" if results.seconds else ""
    when = f"{digest.moment(results.started)}: {kind}{lasted}"
    lines = [
        tag("h1", "What isolation holds, and what it costs"),
        tag("p", text(digest.host(results)), "<br>", text(when), class_="host"),
    ]
    if not results.complete:
        warning = "This run was interrupted: what it had not taken by then is not here."
        lines.append(tag("p", warning, class_="warning"))
    return [*lines, tag("p", text(digest.lead(results)), class_="lead")]


# --- summary ----------------------------------------------------------------------------------------------------


def _summary(results: Results) -> str:
    heads = digest.headlines(results)
    sums = digest.sums(results)
    tops = [
        max((figure.median for one in sums if (figure := one.figures[at]) is not None), default=0.0)
        for at in range(len(heads))
    ]
    rows = [_summary_row(results, one, [quantity for _, quantity in heads], tops) for one in sums]
    for level in results.levels.values():
        if level.missing is not None:
            why = tag("td", text(f"not here: {level.missing}"), class_="gone", colspan=len(heads) + 1)
            rows.append(row(_level(results, level), why))
    titles = [tag("th", text(title), scope="col", title=quantity.title) for title, quantity in heads]
    first = [tag("th", title, scope="col") for title in ("Level", "Claims")]
    said = "".join(f"{title}: {quantity.title}. " for title, quantity in heads)
    caption = "Each level in a line"
    return tag(
        "section",
        tag("h2", "Summary"),
        _legend("held", "leaked", "noisy"),
        scroll(caption, table(caption, tag("thead", tag("tr", *first, *titles)), rows, "summary")),
        note(f"{said}Medians; every bar begins at zero and is linear."),
        id="summary",
    )


def _level(results: Results, level: LevelInfo) -> str:
    return tag("a", text(level.title), href=f"#{report_tables.anchor(results, level)}", title=level.about)


def _summary_row(results: Results, one: Sum, quantities: list[Quantity], tops: list[float]) -> str:
    counts = dict(zip(digest.VERDICTS, (one.held, one.leaked, one.noisy), strict=True))
    said = [tag("span", sign(kind), f" {count} ", tag("span", kind, class_="sr")) for kind, count in counts.items()]
    if one.untried:
        said.append(tag("span", f"{one.untried} not tried", class_="quiet"))
    bar = _bar([*counts.items(), ("empty", one.untried)])
    cells = [tag("td", tag("div", *said, class_="counts"), bar, class_="outcomes")]
    if not one.tried:
        cells = [tag("td", "–", class_="gone")]
    for figure, quantity, top in zip(one.figures, quantities, tops, strict=True):
        if figure is None:
            why = digest.why_not(results, one.level.name, quantity.name)
            cells.append(tag("td", text(why.partition(":")[0]), class_="gone", title=why))
            continue
        share = figure.median / top if top > 0 else 0.0
        hover = f"{quantity.title}: {digest.figure_text(figure, quantity.unit)}, n = {figure.n}"
        bar = _bar([("full", share), ("empty", 1 - share)])
        cells.append(tag("td", text(units.brief(figure.median, quantity.unit)), bar, title=hover))
    return row(_level(results, one.level), *cells)


def _bar(parts: Sequence[tuple[str, float]]) -> str:
    """A bar of parts, as wide as its cell."""
    whole = sum(size for _, size in parts) or 1.0
    place, made = 0.0, ""
    for kind, size in parts:
        share = 100 * max(size, 0.0) / whole
        if share:
            made += f'<rect class="{kind}" x="{place:.2f}" width="{share:.2f}" height="10"/>'
        place += share
    return tag("svg", made, class_="bar", viewBox="0 0 100 10", preserveAspectRatio="none", aria_hidden="true")


def _legend(*kinds: str) -> str:
    return tag("ul", *(tag("li", sign(kind), " ", _SIGNS[kind]) for kind in kinds), class_="legend")


# --- outcomes ---------------------------------------------------------------------------------------------------


def _matrix(results: Results) -> Section | None:
    kinds = digest.kinds(results)
    if not kinds:
        return None
    levels = results.present()
    controls = any(level == OPENED for level, _ in results.outcomes)
    columns = [OPENED] * controls + [level.name for level in levels]
    names = [("control", "a container without its defences")] * controls + [(one.name, one.title) for one in levels]
    heads = "".join(tag("th", tag("span", text(name)), scope="col", title=title) for name, title in names)
    unproven = digest.unproven(results)
    bodies = []
    for kind, claims in kinds.items():
        first = tag("tr", tag("th", text(kind), scope="rowgroup", colspan=len(columns) + 1), class_="kind")
        rows = (_matrix_row(results, claim, columns, claim.name in unproven) for claim in claims)
        bodies.append(tag("tbody", first, *rows))
    said = ""
    if controls:
        said = "The control is a container without its defences."
    if unproven:
        said += (
            f" There, and everywhere else, {len(unproven)} of the attacks do nothing on this host: their claims are "
            "marked “not shown”, and not counted."
        )
    title = "Which level holds which claim"
    matrix = tag(
        "table",
        tag("caption", title, class_="sr"),
        tag("thead", tag("tr", tag("th", tag("span", "Claim", class_="sr"), scope="col"), heads)),
        *bodies,
        class_="matrix",
    )
    return section("outcomes", "Outcomes", _legend(*_SIGNS), note(said) if said else "", scroll(title, matrix))


def _matrix_row(results: Results, claim: Claim, columns: list[str], unproven: bool) -> str:
    measures = digest.measures_of(results, claim.name)
    cells = []
    for level in columns:
        kind, detail = digest.cell(results, level, claim.name, measures)
        title = "control" if level == OPENED else results.levels[level].title
        classes = f"{kind} control" if level == OPENED else kind
        cells.append(tag("td", sign(kind, label=True), class_=classes, title=f"{title}: {kind}: {detail}"))
    more = [claim.row] if claim.row else []
    more += ["(not shown)"] if unproven else []
    first = text(claim.title) + "".join(f" {tag('span', text(said), class_='row')}" for said in more)
    head = tag("th", first, scope="row", title=claim.attack)
    return tag("tr", head, *cells, class_="unproven" if unproven else None)


def _findings(results: Results) -> Section | None:
    made = []
    for verdict, title in (("leaked", "What leaked"), ("noisy", "What the neighbour notices")):
        groups = digest.findings(results, verdict)
        if groups:
            made += [tag("h3", sign(verdict), f" {title}"), *(_same_levels(levels, found) for levels, found in groups)]
    if not made:
        return None
    said = "Grouped by the levels at which it was so; first what the last levels of the list did not hold."
    return section("findings", "Leaked and noisy, in words", note(said), *made)


def _same_levels(levels: list[LevelInfo], found: list[Finding]) -> str:
    items = []
    for one in found:
        parts = []
        for detail, at in one.details.items():
            where = f"{', '.join(level.name for level in at)}: " if len(one.details) > 1 else ""
            like = f" ({at[0].name}; with other numbers elsewhere)" if detail in one.alike else ""
            parts.append(f"{where}{detail.rstrip('.')}{like}")
        said = "; ".join(parts)
        items.append(tag("li", tag("b", text(one.claim.title)), text(f": {said}")))
    return tag("h4", text(", ".join(level.name for level in levels))) + tag("ul", *items, class_="findings")
