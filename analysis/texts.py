"""Numbers, tables and files as readers get them: signs, dashes, Markdown, LaTeX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

NOTHING = "–"


def show(value: float | None, digits: int, sign: bool = False) -> str:
    """A number for readers, with a true minus sign; a dash where there is none."""
    if value is None or math.isnan(value):
        return NOTHING
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def show_interval(low: float, high: float, digits: int) -> str:
    return NOTHING if math.isnan(low) else f"[{show(low, digits, True)}, {show(high, digits, True)}]"


def to_markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = ["left", *["right"] * (len(headers) - 1)]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=align if rows else None)


def to_latex(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A booktabs table in plain ASCII."""
    align = ["left", *["right"] * (len(headers) - 1)]
    text = tabulate(rows, headers, tablefmt="latex_booktabs", disable_numparse=True, colalign=align if rows else None)
    for character, command in (("±", r"$\pm$"), ("−", "$-$"), (NOTHING, "--")):
        text = text.replace(character, command)
    return text + "\n"


def write_text(path: Path, text: str) -> None:
    """Writes the whole file or nothing."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def first_line(text: str) -> str:
    """Of a failure, what happened."""
    return text.split("\n", 1)[0]  # the traceback follows
