"""The project's pictures: cells, heat maps, curves. They draw tidy frames and compute nothing but where the ink goes.

Every function returns a matplotlib `Figure` that belongs to nobody else: no pyplot, no global state, so figures can be drawn in
any process and thread. Colours are those of Okabe & Ito (2008), told apart by readers with any colour vision; whatever a colour
says is said a second time by a label, a marker or a line style. Sizes suit a README column, about 850 pixels wide.
This is the place to import from; `cell_figures.py` has cells and alphas, `curve_figures.py` what happens over epochs,
`comparison_figures.py` variants beside each other. Every function that takes a frame raises ValueError, in one line, if a column is
missing or there are no rows.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from pdarts_tune.cell_figures import draw_alpha_evolution, draw_alphas, draw_genotype
from pdarts_tune.comparison_figures import draw_depth_gap, draw_limits, draw_tradeoff, draw_transfer
from pdarts_tune.curve_figures import draw_learning_curves, draw_timeline

__all__ = [
    "draw_alpha_evolution",
    "draw_alphas",
    "draw_depth_gap",
    "draw_genotype",
    "draw_learning_curves",
    "draw_limits",
    "draw_timeline",
    "draw_tradeoff",
    "draw_transfer",
    "save_figure",
]


def save_figure(figure: Figure, path: Path) -> tuple[Path, Path]:
    """Writes `path` + ".png" and ".svg", whole or not at all, and returns both. OSError if the folder cannot be written."""
    png, svg = (path.with_name(path.name + suffix) for suffix in (".png", ".svg"))  # a name may hold a dot
    # The salt and the missing date make a figure drawn twice the same file.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".figure-") as folder, matplotlib.rc_context({"svg.hashsalt": "0"}):
        figure.savefig(Path(folder) / png.name, dpi=150)
        figure.set_layout_engine("none")  # it is laid out, which takes as long as drawing it
        figure.savefig(Path(folder) / svg.name, metadata={"Date": None})
        return (Path(folder) / png.name).replace(png), (Path(folder) / svg.name).replace(svg)
