"""The tables of the page: interference, every figure, what is missing, the host, the definitions."""

from __future__ import annotations

from pycontain.isolation import digest, units
from pycontain.isolation.markup import Section, entry, head, note, row, scroll, section, table, tag, text
from pycontain.isolation.model import Quantity
from pycontain.isolation.results import OPENED, LevelInfo, Results


def interference(results: Results) -> Section | None:
    """The ratios of a victim's latency beside each hog, p50 and p99 in one cell."""
    pairs = digest.disturbances(results)
    if not pairs:
        return None
    rows = []
    for level in results.present():
        cells = []
        for middle_name, tail_name in pairs.values():
            middle, tail = results.figure(level.name, middle_name), results.figure(level.name, tail_name)
            if middle is None or tail is None:
                cells.append(tag("td", "–", class_="none", title=digest.why_not(results, level.name, tail_name)))
                continue
            weight = round(100 * min(max(middle.median - 1, tail.median - 1, 0) / 9, 1))
            style = f"background:color-mix(in srgb, var(--noisy-soft) {weight}%, transparent)" if weight > 2 else None
            said = f"{units.text(middle.median, '×')} / {units.text(tail.median, '×')}"
            cells.append(tag("td", said, style=style))
        rows.append(row(text(level.title), *cells))
    said = (
        "How many times as long a victim waits while another tenant is a hog: the median (p50) / the slowest "
        "hundredth (p99). 1× is undisturbed."
    )
    made = table("Interference", head("Level", *pairs), rows, "heat")
    return section("interference", "Interference", note(said), scroll("Interference", made))


def numbers(results: Results) -> Section | None:
    """Every figure as text: median, interval, count; each quantity with its clock, cache and denominator."""
    made = []
    for group, title in digest.GROUPS:
        tables = [_numbers(results, quantity) for quantity in digest.taken(results, group)]
        made += [tag("h3", title), tag("div", *tables, class_="grid")] if tables else []
    said = (
        "n is the number of rounds, or of repetitions where there was one round. Intervals cover 95 % from six values "
        "on; of fewer they are the whole range, and what that covers is in brackets."
    )
    return section("numbers", "All figures", note(said), *made) if made else None


def _numbers(results: Results, quantity: Quantity) -> str:
    figures = {level.name: results.figure(level.name, quantity.name) for level in results.present()}
    variants = {figure.detail for figure in figures.values() if figure is not None}
    rows = []
    for level, figure in figures.items():
        if figure is None:
            why = digest.why_not(results, level, quantity.name)
            said = text(why.partition(":")[0])
            rows.append(row(text(level), tag("td", said, colspan=3, class_="none", title=why)))
            continue
        variant = f" {tag('small', text(figure.detail))}" if len(variants) > 1 and figure.detail else ""
        median, span = units.brief(figure.median, quantity.unit), digest.span_text(figure, quantity.unit)
        cells = (tag("td", text(said)) for said in (median, span, digest.count_text(figure)))
        rows.append(row(text(level) + variant, *cells))
    conditions = [f"unit: {quantity.unit or 'number'}", *digest.conditions(quantity)]
    conditions += [f"variant: {variant}" for variant in variants if len(variants) == 1 and variant]
    caption = tag("caption", text(digest.title(results, quantity)), tag("small", text("; ".join(conditions))))
    heads = head("Level", "Median", "Interval", "n")
    return tag("table", caption, heads, tag("tbody", *rows), class_="numbers")


def gaps(results: Results) -> Section | None:
    """What is not on this page, and why."""
    rows = [
        _gap(level.title, "everything", "missing", level.missing)
        for level in results.levels.values()
        if level.missing is not None
    ]
    for word, reasons in (("failed", results.failed), ("absent", results.absent)):
        for (level, measure), why in reasons.items():
            title = "control" if level == OPENED else results.levels[level].title
            rows.append(_gap(title, results.measures[measure].title, word, why))
    if not rows:
        return None
    said = (
        "Missing: this host cannot run the level. Absent: the level cannot have it. Failed: it should have worked, "
        "and did not."
    )
    made = table("What was not measured", head("Level", "Measure", "What", "Why"), rows, "text")
    return section("gaps", "What is not here, and why", note(said), made)


def _gap(level: str, measure: str, word: str, why: str) -> str:
    return row(text(level), *(tag("td", text(said)) for said in (measure, word, why)))


def facts(results: Results) -> Section:
    """The host, as the run found it."""
    rows = []
    for name, value in results.facts.items():
        flat = digest.flat_facts(value if isinstance(value, dict) else {name: value})
        if not isinstance(value, dict):
            rows.append(row(text(name), tag("td", text(flat[name]))))
            continue
        same: dict[str, list[str]] = {}
        for key, said in flat.items():
            same.setdefault(said, []).append(key)
        lines = (tag("div", text(f"{', '.join(keys)}: {said}")) for said, keys in same.items())
        rows.append(row(text(name), tag("td", *lines)))
    said = f"Run {results.id}, seed {results.seed}, begun {results.started}."
    return section("host", "The host", table("The host", "", rows, "facts text"), note(said))


def definitions(results: Results) -> Section:
    """Every level, quantity and claim of the run, whether it was taken or not."""
    levels = [
        _definition(level.title, level.name, "", level.about, anchor=anchor(results, level))
        for level in results.levels.values()
    ]
    quantities = [
        _definition(
            quantity.title,
            quantity.name,
            quantity.unit or "number",
            quantity.definition,
            "; ".join(digest.conditions(quantity)),
        )
        for quantity in results.quantities.values()
    ]
    claims = [_definition(claim.title, claim.name, claim.row, claim.attack) for claim in results.claims.values()]
    body = [
        part
        for title, items in (("Levels", levels), ("Quantities", quantities), ("Claims", claims))
        if items
        for part in (tag("h3", title), tag("dl", *items, class_="definitions"))
    ]
    return section("definitions", "Definitions", *body)


def anchor(results: Results, level: LevelInfo) -> str:
    """Where the page says what a level is. By its place: its name is a text of anybody's."""
    return f"level-{list(results.levels).index(level.name)}"


def _definition(title: str, name: str, more: str, *said: str, anchor: str | None = None) -> str:
    key = tag("dd", tag("code", text(name)), text(f", {more}" if more else ""))
    return entry(text(title), key, *(tag("dd", text(line)) for line in said if line), anchor=anchor)
