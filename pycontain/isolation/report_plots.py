"""The plots of the page: cost against isolation, distributions of starts, and a small one for every quantity."""

from __future__ import annotations

from pycontain.isolation import digest, plots
from pycontain.isolation.markup import Section, note, section, tag, text
from pycontain.isolation.model import Group, Quantity
from pycontain.isolation.results import Results

_TITLES: dict[Group, str] = {"surface": "Surface", "cost": "Cost", "interference": "Interference, every figure"}


def pictures(results: Results) -> Section | None:
    """What each level costs, against the share of attacks that it held."""
    figures = []
    for index, (title, names) in enumerate(digest.PRICES):
        quantity = digest.first_taken(results, names)
        points = _points(results, quantity) if quantity is not None else []
        if quantity is not None and points:
            figures.append(_scatter(f"scatter-{index}", title, quantity, points))
    if not figures:
        return None
    said = (
        "Up is safer, left is cheaper. A share of claims is no probability: it says how many of those on this page "
        "held, each counted the same."
    )
    few = [one.level.title for one in digest.sums(results) if not one.comparable]
    if few:
        said += f" Too few claims were tried for: {', '.join(few)}."
    return section("picture", "Cost against isolation", note(said), tag("div", *figures, class_="pair"))


def _points(results: Results, quantity: Quantity) -> list[plots.Point]:
    points = []
    for one in digest.sums(results):
        figure = results.figure(one.level.name, quantity.name)
        if figure is not None and figure.median > 0 and one.comparable:
            cost = digest.figure_text(figure, quantity.unit)
            said = f"{one.level.title}: {one.held} of {one.tried} held, {cost}"
            points.append(plots.Point(one.level.name, figure.median, 100 * one.held / one.tried, said))
    return points


def _scatter(name: str, title: str, quantity: Quantity, points: list[plots.Point]) -> str:
    said = "; ".join(point.title for point in points)
    drawn = [
        plots.scatter(
            f"{name}-{kind}",
            points,
            (quantity.unit, "%"),
            (title, "claims held"),
            f"Claims held against {quantity.title}",
            said,
            size,
            kind,
        )
        for kind, size in (("large", (560.0, 360.0)), ("narrow", (330.0, 340.0)))
    ]
    return tag("figure", _caption(f"Claims held against {quantity.title}", quantity, ""), *drawn)


def _caption(title: str, quantity: Quantity, variant: str) -> str:
    better = {"lower": "lower is better", "higher": "higher is better", "neither": ""}[quantity.better]
    said = [better, *digest.conditions(quantity), f"variant: {variant}" if variant else ""]
    return tag("figcaption", text(title), tag("small", text("; ".join(part for part in said if part))))


def _rows(results: Results, quantity: Quantity) -> tuple[list[plots.Row], str]:
    """A line of a plot for each level, and the variant of the workload, where all have the same."""
    rows, variants = [], set()
    for level in results.present():
        figure = results.figure(level.name, quantity.name)
        if figure is None:
            why = digest.why_not(results, level.name, quantity.name)
            rows.append(plots.Row(level.name, note=why.partition(":")[0], title=f"{level.title}: {why}"))
            continue
        variants.add(figure.detail)
        said = f"{level.title}: {digest.figure_text(figure, quantity.unit)}, n = {figure.n}"
        rows.append(plots.Row(level.name, figure.points, figure.median, figure.low, figure.high, title=said))
    return rows, " or ".join(sorted(filter(None, variants)))


def _dots(results: Results, quantity: Quantity, name: str, distribution: bool = False) -> str:
    rows, variant = _rows(results, quantity)
    title, said = digest.title(results, quantity), "; ".join(row.title for row in rows)
    sizes = (("large", 560.0), ("narrow", 330.0)) if distribution else (("", 330.0),)
    drawn = [
        plots.dots(f"{name}{kind}", rows, quantity.unit, title, said, wide, kind, distribution)
        for kind, wide in sizes
    ]
    return tag("figure", _caption(title, quantity, variant), *drawn)


def _is_start(quantity: Quantity) -> bool:
    return quantity.name.startswith("start")


def starts(results: Results) -> Section | None:
    """The distribution of each time of a start."""
    quantities = [quantity for quantity in digest.taken(results, "cost") if _is_start(quantity)]
    if not quantities:
        return None
    figures = [_dots(results, quantity, f"start-{index}", True) for index, quantity in enumerate(quantities)]
    said = (
        "Every sample is a point; the box holds the middle half of them, the stroke is the median, "
        "the bar its interval (95 % from six values on)."
    )
    return section("start", "Start", note(said), tag("div", *figures, class_="pair"))


def group(results: Results, name: Group) -> Section | None:
    """A small plot for every quantity of a group, starts not among them."""
    quantities = [quantity for quantity in digest.taken(results, name) if not _is_start(quantity)]
    if not quantities:
        return None
    figures = [_dots(results, quantity, f"{name}-{index}") for index, quantity in enumerate(quantities)]
    said = "Every sample is a point, the stroke is the median, the bar its interval (95 % from six values on)."
    return section(f"{name}-plots", _TITLES[name], note(said), tag("div", *figures, class_="grid"))
