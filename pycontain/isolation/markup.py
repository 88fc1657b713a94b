"""Small parts of the page: elements, escaped text, signs, sections."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from pycontain.isolation.units import shown


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the page: its anchor, its title, and itself."""

    name: str
    title: str
    html: str


def text(value: str) -> str:
    """A text as HTML has it, in an element or in an attribute; what would not be seen is written out."""
    return escape(shown(value))


def tag(name: str, /, *inner: str, **attributes: str | int | None) -> str:
    """An element. ``inner`` is HTML; the values of attributes are texts, and None leaves one out. ``class_`` is class,
    ``aria_label`` is aria-label."""
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{said}>{''.join(inner)}</{name}>"


def sign(kind: str, label: bool = False) -> str:
    """The sign of a verdict or of a gap: its shape tells it, its colour as well. ``label``: with its name for those who
    listen to the page."""
    drawn = tag("svg", f'<use href="#{kind}"/>', class_=f"sign {kind}", aria_hidden="true")
    return drawn + tag("span", kind, class_="sr") if label else drawn


def head(*titles: str) -> str:
    """The heads of columns, which are texts."""
    return tag("thead", tag("tr", *(tag("th", text(title), scope="col") for title in titles)))


def row(title: str, *cells: str) -> str:
    """A line of a table: its head is HTML, the cells are elements."""
    return tag("tr", tag("th", title, scope="row"), *cells)


def table(caption: str, heads: str, rows: Iterable[str], kind: str | None = None) -> str:
    """A table with one body, whose caption is for those who listen to the page."""
    return tag("table", tag("caption", text(caption), class_="sr"), heads, tag("tbody", *rows), class_=kind)


def note(said: str) -> str:
    """A paragraph about what follows."""
    return tag("p", text(said), class_="note")


def section(name: str, title: str, *body: str) -> Section:
    """A section with its heading; ``body`` is HTML already."""
    return Section(name, title, tag("section", tag("h2", text(title)), *body, id=name))


def scroll(label: str, body: str) -> str:
    """A box of its own for what is wider than a telephone; reachable by keyboard."""
    return tag("div", body, class_="scroll", role="region", aria_label=label, tabindex=0)


def entry(title: str, *said: str, anchor: str | None = None) -> str:
    """An entry of a list of definitions; the title is HTML, what is said of it are elements."""
    return tag("div", tag("dt", title), *said, id=anchor)
