"""What the pictures share: colours, line styles, checks of the frames that they draw. Part of `figures.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

# Of Okabe & Ito (2008), told apart by readers with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES: tuple[Any, ...] = ("solid", (0, (5, 1.5)), (0, (6, 1.5, 1.5, 1.5)), (0, (1.5, 1.5)))
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
INK, PALE, GRID = "#333333", "#BBBBBB", "#E5E5E5"
CELLS = {"normal": "normal cell", "reduce": "reduction cell"}
INPUTS = ("$c_{k-2}$", "$c_{k-1}$")


def style_of(index: int) -> tuple[str, Any, str]:
    """Colour, line style and marker of the series `index`; they repeat after 84 series."""
    return COLOURS[index % len(COLOURS)], LINES[index % len(LINES)], MARKERS[(index // len(COLOURS) + index) % len(MARKERS)]


def require(frame: pd.DataFrame, columns: Sequence[str], where: str) -> None:
    """Raises ValueError if a column is missing or there are no rows."""
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ValueError(f"{where}: no column {', '.join(missing)}; needs {', '.join(columns)}")
    if frame.empty:
        raise ValueError(f"{where}: no rows, nothing to draw")


def mark_stages(axes: Axes, rows: pd.DataFrame, labels: bool = True) -> None:
    """A line where a stage begins: what follows is another network, trained anew."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    starts = rows.groupby(["variant", "stage"], as_index=False)["running_epoch"].min()[["running_epoch", "stage"]]
    starts = starts.drop_duplicates()
    alike = (
        starts["stage"].is_unique and len(starts) <= 6
    )  # where variants have other plans, lines of one would cross those of another
    for start, stage in starts.itertuples(index=False) if alike else ():
        axes.axvline(start + 0.5, color=PALE, linestyle=":", zorder=0)
        if labels:
            place = axes.get_xaxis_transform()
            axes.text(start + 0.6, 0.98, f"stage {stage}", va="top", fontsize=9, color="#777777", transform=place)
