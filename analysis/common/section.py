"""A question's answer: a section of tables, figures and sentences, and the files that it becomes.

A table is a frame of plain numbers, which the CSV holds in full. A column's name decides how readers see it: the suffix is the unit
(see `_DIGITS`), `x` with `x_sd` becomes mean ± standard deviation, `x` with `x_low` and `x_high` a figure with its interval,
`ci_low` with `ci_high` an interval.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from tabulate import tabulate

from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.results.cell_figures import save_figure

NOTHING = "–"
NOTHING_MISSING = "Nothing: every search and every evaluation is there."
PUBLISHED = "published"  # a table whose name starts with this holds other people's figures, and its heading says so

UNITS = {
    "percent": "%",
    "points": "points",
    "thousands": "k",
    "millions": "M",
    "seconds": "s",
    "milliseconds": "ms",
    "mebibytes": "MiB",
    "hours": "h",
}
UNITS |= {"thousands": "k", "milliseconds": "ms"}
_DIGITS = {"seconds": 0, "mebibytes": 0, "p": 3, "min_p": 3, "p_holm": 3}
_DIGITS |= dict.fromkeys(("search_percent", "inherited_percent", "hours", "skips", "depth", "width"), 1)
_HEADINGS = {"two_by_two": "Dropout x refinement", "non_inferiority": "Non-inferiority", "by_limit": "Limits on skip-connects"}
_COLUMNS = {"p_holm": "p (Holm)", "min_p": "smallest p"}
_SIGNED = ("difference", "interaction", "gap", "change")


Draw = Callable[[], Figure]  # called where the figure is written or shown, and not before


@dataclass(kw_only=True)
class Section:
    """The answer to one question, as far as a results folder gives it."""

    name: str  # of its files, such as "rq1"
    title: str
    about: str = ""  # where the figures come from: data, recipe, device, code
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)  # the first is the main table
    figures: dict[str, Draw] = field(default_factory=dict)
    conclusion: list[str] = field(default_factory=list)  # sentences
    missing: list[str] = field(default_factory=list)  # what the figures lack, one line each
    notes: dict[str, str] = field(default_factory=dict)  # how to read a table or a figure, by its name

    @property
    def main_table(self) -> pd.DataFrame:
        return next(iter(self.tables.values()))


def show(value: float | None, digits: int, sign: bool = False) -> str:
    """A number for readers, with a true minus sign; a dash where there is none."""
    if value is None or math.isnan(value):
        return NOTHING
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def show_interval(low: float, high: float, digits: int) -> str:
    return NOTHING if math.isnan(low) else f"[{show(low, digits, True)}, {show(high, digits, True)}]"


def span(counts: Iterable[int]) -> str:
    """The smallest and the largest of some counts; one number if they are equal."""
    values = list(counts)
    return " to ".join(dict.fromkeys((str(min(values)), str(max(values)))))


def heading(name: str) -> str:
    """The heading of a table or figure in readers' words."""
    words = name.replace("_", " ")
    if name.startswith(PUBLISHED):
        about = words.removeprefix(PUBLISHED).strip()
        return "Published, not measured here" + (f": {about}" if about else "")
    return _HEADINGS.get(name, words[:1].upper() + words[1:])


def as_text(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Headers and rows as readers see them; a dash where there is no figure."""
    columns: dict[str, list[str]] = {}
    names = set(table.columns)
    with_interval = {name for name in names if {f"{name}_low", f"{name}_high"} <= names}
    parts = {f"{name}_{end}" for name in with_interval for end in ("low", "high")} | {f"{name}_sd" for name in names}
    for name in table.columns:
        if name == "ci_high" or name in parts:
            continue
        if name == "ci_low":
            columns["95 % interval"] = [show_interval(*ends, 2) for ends in zip(table["ci_low"], table["ci_high"], strict=True)]
            continue
        suffix = name.removesuffix("_sd").rsplit("_", 1)[-1]
        unit = UNITS.get(suffix)
        words = (name.rsplit("_", 1)[0] if unit else name).replace("_", " ")
        digits = _DIGITS.get(name.removesuffix("_sd"), _DIGITS.get(suffix, 2))
        cells = [_cell(value, name, digits) for value in table[name]]
        if f"{name}_sd" in table.columns:
            spreads = [_cell(value, f"{name}_sd", digits) for value in table[f"{name}_sd"]]
            cells = [f"{mean} ± {sd}" if sd != NOTHING else mean for mean, sd in zip(cells, spreads, strict=True)]
        if name in with_interval:
            low, high = ([_cell(value, name, digits) for value in table[f"{name}_{end}"]] for end in ("low", "high"))
            ends = zip(cells, low, high, strict=True)
            cells = [f"{mean} [{least}, {most}]" if least != NOTHING else mean for mean, least, most in ends]
        columns[_COLUMNS.get(name, f"{words}, {unit}" if unit else words)] = cells
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def _cell(value: Any, name: str, digits: int) -> str:
    if not isinstance(value, str) and pd.isna(value):
        return NOTHING
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str | int):
        return str(value)
    if name == "detectable" and math.isinf(value):
        return "none"
    return show(value, digits, sign=name.startswith(_SIGNED) and not name.endswith("_sd"))


def table_markdown(table: pd.DataFrame, style: str = "github") -> str:
    headers, rows = as_text(table)
    align = ["left", *["right"] * (len(headers) - 1)]
    return tabulate(rows, headers, tablefmt=style, disable_numparse=True, colalign=align if rows else None)


def table_latex(table: pd.DataFrame) -> str:
    """A booktabs table in plain ASCII."""
    text = table_markdown(table, "latex_booktabs")
    for character, command in (("±", r"$\pm$"), ("−", "$-$"), (NOTHING, "--")):
        text = text.replace(character, command)
    return text + "\n"


def to_text(section: Section) -> str:
    """The section in Markdown; its figures lie beside it."""
    parts = [f"# {section.title}", " ".join(section.conclusion), section.about]
    for name, table in section.tables.items():
        if len(table):
            parts += [f"## {heading(name)}", table_markdown(table), section.notes.get(name, "")]
    for name in section.figures:
        parts += [f"## {heading(name)}", f"![{heading(name)}]({section.name}_{name}.png)", section.notes.get(name, "")]
    parts += ["## What is missing", "\n".join(f"- {line}" for line in section.missing) or NOTHING_MISSING]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_text(path: Path, text: str) -> None:
    """Writes the whole file or nothing."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def write_section(section: Section, out: Path) -> Path:
    """Writes `<name>.md`, `<name>_<table>.csv` and `.tex` (booktabs), `<name>_<figure>.png` and `.svg`, each whole or not at all.

    Returns the Markdown file. OSError if the folder cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name, table in section.tables.items():
        write_text(out / f"{section.name}_{name}.csv", table.to_csv(index=False))
        write_text(out / f"{section.name}_{name}.tex", table_latex(table))
    for name, draw in section.figures.items():
        save_figure(draw(), out / f"{section.name}_{name}")
    path = out / f"{section.name}.md"
    write_text(path, to_text(section))
    return path


def show_section(section: Section, out: Path) -> None:
    """Writes a section to a folder, prints its main table and its conclusion. OSError if the folder cannot be written."""
    path = write_section(section, out)
    print(table_markdown(section.main_table))
    print("", *section.conclusion, f"report: {path}", sep="\n")


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """What cannot be read or written ends the process with one line and exit code 2."""
    try:
        yield
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
