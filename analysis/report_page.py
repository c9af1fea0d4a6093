"""The parts of the page of report.py, and how they become HTML. All texts are escaped, all pictures lie in the page."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from checklist import SOURCE, Item
from common.section import NOTHING, NOTHING_MISSING, Section, as_text, heading

MOST_ROWS = 2000  # of a table on the page; the tables themselves have all
MOST_TEXT = 20_000  # characters of one error
MOST_FAILURES = 200
VECTOR_BYTES = 400_000  # a drawing whose SVG is larger becomes a picture of dots
_NUMBER = re.compile(r"^[\[(]?[+−-]?\d")


@dataclass(frozen=True)
class Block:
    """A table of the page, as a frame that `section.as_text` can show."""

    name: str
    caption: str
    table: pd.DataFrame
    note: str = ""


@dataclass(frozen=True)
class Part:
    """A question: its section, or why it could not be answered."""

    section: Section | None
    title: str
    refusal: str | None


@dataclass(frozen=True)
class Cell:
    variant: str
    figure: Figure | None
    caption: str
    genotype: str


@dataclass(frozen=True)
class Failure:
    study: str
    where: str
    status: str
    line: str
    text: str


@dataclass(frozen=True)
class StudyBlock:
    name: str
    refusal: str | None  # why its figures are not joined
    cells: Sequence[Cell]
    trials: Block


@dataclass(frozen=True)
class Page:
    title: str
    overview: Block
    parts: Sequence[Part]
    studies: Sequence[StudyBlock]
    failures: Sequence[Failure]
    environment: Block
    checklist: Sequence[Item]


def render(page: Page) -> str:
    """The page as HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"picture": picture, "prose": prose, "heading": heading, "anchor": anchor}
    environment.globals |= {"lay_out": lay_out}
    template = environment.get_template("report.html.j2")
    answered = [part for part in page.parts if part.section is not None]
    return template.render(
        page=page,
        answered=answered,
        source=SOURCE,
        most_text=MOST_TEXT,
        most_failures=MOST_FAILURES,
        nothing_missing=NOTHING_MISSING,
    )


@dataclass(frozen=True)
class LaidOut:
    """A table as the template shows it."""

    headers: Sequence[tuple[str, bool]]  # with whether the column holds numbers, which stand to the right
    rows: Sequence[Sequence[str]]
    left_out: int


def lay_out(table: pd.DataFrame) -> LaidOut:
    headers, rows = as_text(table.head(MOST_ROWS))
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(headers)
    numeric = [all(cell == NOTHING or _NUMBER.match(cell) for cell in column) and set(column) != {NOTHING} for column in columns]
    return LaidOut(list(zip(headers, numeric, strict=True)), rows, max(0, len(table) - MOST_ROWS))


def picture(figure: Figure) -> str:
    """A figure as a data address: SVG, or PNG where that would be too large."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "0"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    kind = "svg+xml"
    if buffer.tell() > VECTOR_BYTES:
        buffer, kind = io.BytesIO(), "png"
        figure.savefig(buffer, format="png", dpi=130)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def prose(text: str) -> Markup:
    """A note's Markdown, as far as notes use it: paragraphs, *emphasis*, `code`."""
    paragraphs = []
    for paragraph in text.strip().split("\n\n"):
        shown = str(escape(" ".join(paragraph.split())))
        shown = re.sub(r"`([^`]+)`", r"<code>\1</code>", shown)
        paragraphs.append(re.sub(r"(?<![\w*])\*([^*\s][^*]*)\*(?![\w*])", r"<em>\1</em>", shown))
    return Markup("".join(f"<p>{paragraph}</p>" for paragraph in paragraphs))  # noqa: S704  (escaped above)


def anchor(text: str) -> str:
    """A name for an element, from any text."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "x"
