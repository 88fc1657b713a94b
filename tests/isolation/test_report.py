"""The page and the Markdown of a run: whole, escaped, without anything from outside, and nothing in it overlaps."""

from __future__ import annotations

import os
import random
import re
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycontain.isolation import digest, markdown, plots, report, units
from pycontain.isolation.results import Results
from tests.isolation import results_tools

VOID = {"meta", "br"}
Box = tuple[float, float, float, float]


class Page(HTMLParser):
    """Every element with its attributes and its text; complains of one that is closed wrongly."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[int] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.ends: list[int] = []  # of each element the index after the last one in it
        self.problems: list[str] = []
        self.feed(source)
        self.close()
        self.problems += [f"{self.elements[at][0]} is not closed" for at in self.open]

    def add(self, tag: str, attributes: list[tuple[str, str | None]]) -> int:
        self.elements.append((tag, dict(attributes)))
        self.texts.append("")
        self.ends.append(len(self.elements))
        return len(self.elements) - 1

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        at = self.add(tag, attributes)
        if tag not in VOID:
            self.open.append(at)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.add(tag, attributes)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.elements[self.open[-1]][0] != tag:
            self.problems.append(f"line {self.getpos()[0]}: </{tag}>")
        else:
            self.ends[self.open.pop()] = len(self.elements)

    def handle_data(self, data: str) -> None:
        for at in self.open:
            self.texts[at] += data

    def all(self, tag: str, **wanted: str) -> list[int]:
        return [at for at, (name, has) in enumerate(self.elements) if name == tag and wanted.items() <= has.items()]

    def inside(self, outer: int, tag: str) -> list[int]:
        return [at for at in range(outer + 1, self.ends[outer]) if self.elements[at][0] == tag]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return results_tools.written(tmp_path_factory.mktemp("run") / "run.jsonl", results_tools.records())


@pytest.fixture(scope="module")
def source(results: Results) -> str:
    return report.html(results)


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return results_tools.written(tmp_path_factory.mktemp("hostile") / "run.jsonl", results_tools.records(hostile=True))


@pytest.fixture(scope="module")
def hostile_source(hostile: Results) -> str:
    return report.html(hostile)


@pytest.fixture(scope="module")
def hostile_page(hostile_source: str) -> Page:
    return Page(hostile_source)


def boxes(page: Page, svg: int) -> list[tuple[str, Box]]:
    """The texts of a plot and the most room that they can take."""
    found = []
    for at in page.inside(svg, "text"):
        has, (said, hover) = page.elements[at][1], (page.texts[at], "".join(page.texts[one] for one in page.inside(at, "title")))
        said = said.removesuffix(hover) if hover else said
        x, y, wide = float(has["x"] or 0), float(has["y"] or 0), plots.width(said)
        left = x - {"start": 0.0, "middle": wide / 2, "end": wide}[has["text-anchor"] or ""]
        found.append((said, (left, y - 9, left + wide, y + 3)))
    return found


def check_plots(page: Page) -> int:
    """Whether no text of a plot touches another one or leaves the plot, and each has its words and the unit of its axes."""
    drawn = [at for at, (name, has) in enumerate(page.elements) if name == "svg" and "plot" in (has.get("class") or "").split()]
    for svg in drawn:
        has = page.elements[svg][1]
        _, _, wide, high = map(float, (has["viewbox"] or "").split())
        texts = boxes(page, svg)
        name = page.texts[page.inside(svg, "title")[0]]
        for said, box in texts:
            assert box[0] >= -0.6 and box[2] <= wide + 0.6 and box[1] >= 0 and box[3] <= high, (name, said, box, wide, high)
        for (one, first), (other, second) in combinations(texts, 2):
            apart = first[2] <= second[0] or second[2] <= first[0] or first[3] <= second[1] or second[3] <= first[1]
            assert apart, (name, one, first, other, second)
        axes = [page.texts[at] for at in page.inside(svg, "text") if page.elements[at][1].get("class") == "axis"]
        ticks = [page.texts[at] for at in page.inside(svg, "text") if page.elements[at][1].get("class") == "tick"]
        assert axes and len(ticks) >= 2, name
        for axis in axes:
            if "log scale" in axis and "," not in axis:  # then every tick has the unit
                own = [tick for tick in ticks if tick not in {"0", "20", "40", "60", "80", "100"}]
                assert own and all(re.search(r"\d( [MG])?\u00a0\S+$", tick) for tick in own), (name, ticks)
        assert page.texts[page.inside(svg, "desc")[0]]
    return len(drawn)


def test_the_page_is_well_formed_and_whole(results: Results, page: Page) -> None:
    assert page.problems == []
    ids = [has["id"] for _, has in page.elements if "id" in has]
    assert len(ids) == len(set(ids))
    whole = page.texts[page.all("body")[0]]
    for level in results.levels.values():
        assert level.title in whole and level.about in whole
    for claim in results.claims.values():
        assert claim.title in whole and claim.attack in whole
    for quantity in results.quantities.values():
        assert quantity.title in whole and quantity.definition in whole and quantity.name in whole
    for reason in (*results.absent.values(), *results.failed.values(), *results_tools.MISSING.values()):
        assert reason in whole
    for link in page.all("a"):
        assert (page.elements[link][1]["href"] or "").removeprefix("#") in ids
    for table in page.all("table"):
        assert page.inside(table, "caption") and page.inside(table, "th")
    for said in ("quick run", "13 min 32 s", "26 November 2025, 22:10 UTC", "Imaginary(R) Processor 9000", "6.18.0"):
        assert said in whole


def test_every_verdict_is_in_the_matrix_with_its_detail(results: Results, page: Page) -> None:
    matrix = page.all("table", **{"class": "matrix"})[0]
    cells = page.inside(matrix, "td")
    kinds = [(page.elements[at][1]["class"] or "").split()[0] for at in cells]
    levels = len(results.present())
    assert len(cells) == len(results.claims) * (levels + 1)
    for verdict in digest.VERDICTS:
        assert kinds.count(verdict) == sum(one.verdict == verdict for one in results.outcomes.values())
    assert kinds.count("none") == 1  # of runsc there is one outcome less
    for at, kind in zip(cells, kinds, strict=True):
        assert page.texts[at] == kind  # for who does not see the sign
        assert kind in (page.elements[at][1]["title"] or "")
    details = page.texts[page.all("section", id="findings")[0]]
    for outcome in results.outcomes.values():
        if outcome.level != "opened" and outcome.verdict != "held":
            assert outcome.detail in details
    assert "(not shown)" in page.texts[matrix]


def test_every_figure_is_in_the_tables_and_in_the_plots(results: Results, page: Page) -> None:
    numbers = page.texts[page.all("section", id="numbers")[0]]
    captions = [page.texts[at] for at in page.all("figcaption")]
    for (level, name), _ in results.samples.items():
        quantity, figure = results.quantities[name], results.figure(level, name)
        assert figure is not None
        assert f"{level}{units.brief(figure.median, quantity.unit)}" in numbers
        assert any(caption.startswith(quantity.title) for caption in captions)
    assert "absent" in numbers and "failed" in numbers and "not taken" in numbers


def test_no_text_of_a_plot_is_cut_or_touches_another(page: Page, hostile_page: Page) -> None:
    assert check_plots(page) > 60
    assert check_plots(hostile_page) > 60


def test_nothing_comes_from_outside(page: Page, hostile_page: Page, source: str) -> None:
    for shown in (page, hostile_page):
        assert shown.problems == []
        assert {name for name, _ in shown.elements}.isdisjoint({"script", "img", "link", "iframe", "object", "embed", "base", "form", "input"})
        for name, has in shown.elements:
            assert not any(key.startswith("on") or key in {"src", "srcset", "action", "background"} for key in has), (name, has)
            assert all((value or "").startswith("#") for key, value in has.items() if "href" in key), (name, has)
            assert "url(" not in (has.get("style") or "")
        style = "".join(shown.texts[at] for at in shown.all("style"))
        assert not re.search(r"url\(|@import|https?:|//|src\s*=", style)
    # In the page of a run that nobody made hostile not even a word looks like an address.
    assert not re.search(r"https?:|//|url\(|@import|src\s*=", source)


def test_hostile_details_stay_text(hostile: Results, hostile_source: str) -> None:
    assert "<script" not in hostile_source and "\x1b" not in hostile_source and "\u202e" not in hostile_source
    for said in ("&lt;script&gt;alert(1)&lt;/script&gt;", "\\u202e", "\\u001b"):
        assert said in hostile_source
    summary = markdown.markdown(hostile)
    assert "<script" not in summary and "\u202e" not in summary and "://" not in summary
    lines = [line for line in summary.splitlines() if line.startswith("|")]
    assert all(line.count("|") == 13 for line in lines if "alert" in line)


def test_markdown_has_levels_outcomes_and_figures(results: Results) -> None:
    made = markdown.markdown(results)
    assert "\n| process | 4 | 30 | 7 | 0 | 340 | 1.0" in made
    assert "not here: microVM with KVM: /dev/kvm answers" in made
    row = next(line for line in made.splitlines() if line.startswith("| Write to core&#95;pattern, way 5 |"))
    assert row.split(" | ")[1:4] == ["✗", "✗", "✗"] and " · " in row
    assert "| Start: command to first instruction |" in made
    for block in re.findall(r"(?:^\|.*\n)+", made, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_details_that_differ_in_numbers_are_said_once(results: Results) -> None:
    levels = results.present()
    finding = digest.Finding(results.claims["files.0"])
    for level, detail in zip(levels, ("uptime 15.2", "uptime 16", "a path: /x1", "uptime"), strict=False):
        finding.add(detail, level, exactly=False)
    assert [(said, [level.name for level in at]) for said, at in finding.details.items()] == [
        ("uptime 15.2", ["process", "chroot"]), ("a path: /x1", ["container"]), ("uptime", ["container-noseccomp"])
    ]  # fmt: skip
    assert finding.alike == {"uptime 15.2"}
    finding.add("uptime 17", levels[4], exactly=True)
    assert "uptime 17" in finding.details


def test_a_level_at_which_little_was_tried_is_not_set_beside_others(tmp_path: Path) -> None:
    def change(line: dict[str, Any]) -> dict[str, Any] | None:
        few = line.get("level") == "chroot" and line["kind"] == "outcome" and not line["claim"].startswith("files.")
        return None if few else line

    found = results_tools.written(tmp_path / "run.jsonl", results_tools.changed(results_tools.records(), change))
    chroot, runsc = (next(one for one in digest.sums(found) if one.level.name == name) for name in ("chroot", "runsc"))
    assert (chroot.tried, chroot.untried, chroot.comparable) == (7, 34, False)
    assert (runsc.tried, runsc.untried, runsc.comparable) == (40, 1, True)
    page = Page(report.html(found))
    assert "Too few claims were tried for: chroot." in page.texts[page.all("section", id="picture")[0]]
    summary = page.texts[page.all("section", id="summary")[0]]
    assert "34 not tried" in summary and "1 not tried" in summary
    assert "chroot" not in digest.lead(found)


def test_a_page_of_hardly_anything(tmp_path: Path) -> None:
    """A run that was interrupted at once, and one with a single sample."""
    first, *rest = results_tools.records()
    bare = results_tools.written(tmp_path / "bare.jsonl", [first])
    made = Page(report.html(bare))
    assert made.problems == [] and "interrupted" in made.texts[made.all("header")[0]]
    assert not made.all("table", **{"class": "matrix"})
    assert "interrupted" in markdown.markdown(bare)
    sample = next(line for line in rest if line["kind"] == "sample" and line["quantity"] == "start.first")
    sample["values"] = [0.25]
    single = results_tools.written(tmp_path / "single.jsonl", [first, sample, rest[-1]])
    made = Page(report.html(single))
    assert made.problems == [] and check_plots(made) == 2
    assert "250\u00a0µs" in made.texts[made.all("section", id="numbers")[0]]
    assert "250\u00a0µs–1" in made.texts[made.all("section", id="numbers")[0]]  # one value has no interval


LABELS = st.text("mWiAgpäx-.0123456789", min_size=1, max_size=24)
VALUES = st.one_of(
    st.floats(0, 1e12, allow_subnormal=False).map(lambda value: value if value > 1e-9 else 0.0),
    st.integers(0, 500).map(float),
)
UNITS = st.sampled_from(["ms", "us", "ns", "s", "KiB", "B", "MiB/s", "Gbit/s", "calls", "%", "×", "", "starts/s", "capabilities"])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(LABELS, st.lists(VALUES, max_size=12)), min_size=1, max_size=12), UNITS, st.booleans())
def test_dot_plots_of_anything(rows: list[tuple[str, list[float]]], unit: str, quartiles: bool) -> None:
    made = [
        plots.Row(label, tuple(values), sorted(values)[len(values) // 2], min(values), max(values)) if values else plots.Row(label, note="not taken")
        for label, values in rows
    ]
    source = plots.dots("a", made, unit, "A title", "What is to be seen", 560.0 if quartiles else 330.0, quartiles=quartiles)
    check_plots(Page(source))
    assert not re.search(r"nan|inf", re.sub(r"<title.*?</title>|<text.*?</text>", "", source))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(1e-3, 1e6), st.integers(0, 42)), min_size=1, max_size=11), st.booleans())
def test_scatters_of_anything(points: list[tuple[float, int]], narrow: bool) -> None:
    names = list(results_tools.LEVELS)
    made = [plots.Point(name, x, 100 * held / 42) for name, (x, held) in zip(names, points)]
    size = (330.0, 340.0) if narrow else (560.0, 360.0)
    source = plots.scatter("a", made, ("ms", "%"), ("start", "claims held"), "A title", "What is to be seen", size)
    check_plots(Page(source))


def test_the_check_itself_sees_overlaps_and_cuts() -> None:
    def drawn(*texts: tuple[float, float, str]) -> Page:
        drawing = plots.Drawing("a", 200, "A title", "What is to be seen")
        for x, y, said in texts:
            drawing.text(x, y, said)
        drawing.text(0, 90, "ms", "axis")
        drawing.text(50, 90, "0", "tick")
        drawing.text(90, 90, "1", "tick")
        return Page(drawing.svg(100))

    check_plots(drawn((0, 20, "one"), (100, 20, "two")))
    for wrong in (((0.0, 20.0, "one"), (10.0, 22.0, "two")), ((190.0, 20.0, "too wide"),), ((0.0, 5.0, "too high"),)):
        with pytest.raises(AssertionError):
            check_plots(drawn(*wrong))


def test_colours_can_be_told_from_what_is_behind_them() -> None:
    """WCAG 2.1: 4.5 to 1 for texts, 3 to 1 for signs and bars; on a light, a dark and a white ground."""

    def light(colour: str) -> float:
        parts = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    def contrast(one: str, other: str) -> float:
        low, high = sorted((light(one), light(other)))
        return (high + 0.05) / (low + 0.05)

    with open(os.path.join(os.path.dirname(report.__file__), "page", "style.css")) as file:
        blocks = re.findall(r":root \{(.*?)\}", file.read(), re.DOTALL)
    day, night, paper = (dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block)) for block in blocks)
    for colours in (day, night, {**day, **paper}):
        ground = colours["ground"]
        assert all(contrast(colours[name], ground) >= 4.5 for name in ("ink", "muted", "accent")), colours
        assert all(contrast(colours[name], ground) >= 4.5 for name in ("held", "leaked", "noisy")), colours
        assert contrast(colours["leaked"], colours["leaked-soft"]) >= 3 and contrast(colours["noisy"], colours["noisy-soft"]) >= 3
        assert all(contrast(colours["on"], colours[name]) >= 3 for name in ("leaked", "noisy"))
        assert contrast(colours["ink"], colours["noisy-soft"]) >= 4.5


def test_many_points_are_drawn_once() -> None:
    chance = random.Random(1)
    row = plots.Row("a", tuple(chance.random() for _ in range(50_000)), 0.5, 0.4, 0.6)
    assert len(plots.dots("a", [row], "s", "A title", "What is to be seen")) < 60_000


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (0, "ms", "0 ms"), (0.999, "ms", "999 µs"), (0.9999, "ms", "1.00 ms"), (1234, "us", "1.23 ms"), (61_000, "s", "61,000 s"),
        (1536, "B", "1.50 KiB"), (1_048_576, "KiB", "1 GiB"), (340, "calls", "340 calls"), (3.14159, "x", "3.14×"), (12.5, "%", "12.5%"),
        (2_300_000, "rounds/s", "2.30 M rounds/s"), (0.00001, "ratio", "1.00e-05 ratio"), (99.99, "", "100"), (-2.5, "ms", "-2.50 ms"), (1500, "Mbit/s", "1.50 Gbit/s"),
    ],
)  # fmt: skip
def test_numbers_with_their_units(value: float, unit: str, said: str) -> None:
    assert units.text(value, unit).replace("\u00a0", " ") == said


@given(st.floats(-1e14, 1e14, allow_nan=False, allow_subnormal=False), UNITS)
def test_a_number_says_its_value(value: float, unit: str) -> None:
    _, size = units.step(value, unit)
    said = units.number(value / size).replace(",", "")
    factor = {"M": 1e6, "G": 1e9}.get(said[-1], 1.0)
    assert float(said.rstrip(" MG")) * factor * size == pytest.approx(value, rel=0.006, abs=0)


def test_facts_and_texts_of_any_kind() -> None:
    facts: dict[str, Any] = {"cpu": "x", "memory": 2048, "versions": {"runc": None, "crun": "1"}, "flags": ["a", "b"], "smt": True, "load": 10.4951}
    assert digest.flat_facts(facts) == {"cpu": "x", "memory": "2\u00a0KiB", "versions: runc": "none", "versions: crun": "1", "flags": "a, b", "smt": "yes", "load": "10.5"}
    assert digest.duration(9.26) == "9.3 s" and digest.duration(59.9) == "1 min 0 s" and digest.duration(7260) == "2 h 1 min"
    assert digest.moment("yesterday") == "yesterday"
    assert units.shown("a\tb\u200b") == "a\\u0009b\\u200b"
