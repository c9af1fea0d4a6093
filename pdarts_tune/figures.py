"""The project's pictures: cells, heat maps, curves. They draw tidy frames and compute nothing but where the ink goes.

Every function returns a matplotlib `Figure` that belongs to nobody else: no pyplot, no global state, so figures can be drawn in
any process and thread. Colours are those of Okabe & Ito (2008), told apart by readers with any colour vision; whatever a colour
says is said a second time by a label, a marker or a line style. Sizes suit a README column, about 850 pixels wide.
Every function that takes a frame raises ValueError, in one line, if a column is missing or there are no rows.
"""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyArrowPatch
from matplotlib.path import Path as Curve
from matplotlib.ticker import MaxNLocator

from pdarts_tune.genotype import CellGenotype, Genotype
from pdarts_tune.space import EDGES, PRIMITIVES

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("solid", (0, (5, 1.5)), (0, (6, 1.5, 1.5, 1.5)), (0, (1.5, 1.5)))
_INK, _PALE, _GRID = "#333333", "#BBBBBB", "#E5E5E5"
_FAMILY = {"skip": "#D55E00", "max": "#B07800", "avg": "#B07800", "sep": "#0072B2", "conv": "#0072B2", "dil": "#007A58"}
_INPUTS = ("$c_{k-2}$", "$c_{k-1}$")
_CELLS = {"normal": "normal cell", "reduce": "reduction cell"}
_CELL_STYLES: dict[str, dict[str, Any]] = {"normal": {"color": "#D55E00"}, "reduce": {"color": "#0072B2", "linestyle": _LINES[1]}}
_MEASURES = {  # what draw_depth_gap shows, in the order a cell lives through them: label, colour, marker
    "search": ("search network, validation", "#0072B2", "o"),
    "inherited": ("derived cell, inherited weights", "#E69F00", "D"),
    "evaluation": ("derived cell, trained from scratch, test", "#D55E00", "s"),
}
_RADIUS, _RISE, _FALL = 0.15, 0.36, 0.15  # of a cell's graph, where neighbouring states are 1 apart: circles, height per span


def draw_genotype(genotype: Genotype, title: str = "") -> Figure:
    """Both cells as graphs: operations are arcs above the line of states, the concatenation that makes c_k runs below it."""
    cells = (genotype.normal, genotype.reduce)
    top = max(height for cell in cells for *_, height in _arcs(cell)) * _RISE + 0.3
    bottom = min(min(cell.concat) - cell.num_nodes - 2 for cell in cells) * _FALL - 0.2
    figure = Figure(figsize=(9.0, 2.5 * (top - bottom) + 1.0), layout="constrained")
    for panel, cell, name in zip(figure.subplots(2, 1), cells, _CELLS.values(), strict=True):
        _draw_cell(panel, cell)
        panel.set(aspect="equal", xlim=(-0.35, cell.num_nodes + 2.35), ylim=(bottom, top))
        panel.axis("off")
        panel.set_title(name, fontsize=12, loc="left", color=_INK)
    figure.suptitle(title, fontsize=13)
    return figure


def _arcs(cell: CellGenotype) -> list[tuple[str, int, int, int]]:
    # (operation, source, node, height) of every edge. An arc's height is its span, so no two labels meet: arcs of one height
    # have centres a unit apart. The second operation between the same two states goes one higher, where every other arc's
    # centre is at least half a unit away.
    arcs = []
    for index, (operation, source) in enumerate(cell.edges):
        node = 2 + index // 2
        repeated = index % 2 == 1 and cell.edges[index - 1][1] == source
        arcs.append((operation, source, node, node - source + repeated))
    return arcs


def _draw_cell(axes: Axes, cell: CellGenotype) -> None:
    output = 2 + cell.num_nodes
    size = 10 if cell.num_nodes < 5 else 8.5
    text: dict[str, Any] = {"ha": "center", "va": "center", "linespacing": 0.95, "fontsize": size, "zorder": 3}
    box = {"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none"}
    for operation, source, node, height in _arcs(cell):
        colour = _FAMILY[operation.split("_")[0]]
        _draw_arc(axes, source, node, height * _RISE, color=colour, linewidth=1.8, zorder=2)
        label = "skip_\nconnect" if operation == "skip_connect" else re.sub(r"_(\dx)", r"\n\1", operation)
        axes.text((source + node) / 2, height * _RISE, label, color=colour, bbox=box, **text)
    for state in cell.concat:
        _draw_arc(axes, state, output, (state - output) * _FALL, color=_PALE, linewidth=1.2, zorder=1)
    for state, name in enumerate([*_INPUTS, *map(str, range(cell.num_nodes)), "$c_k$"]):
        face = "white" if 2 <= state < output else "#E8E8E8"
        axes.add_patch(Circle((state, 0), _RADIUS, facecolor=face, edgecolor=_INK, zorder=4))
        axes.text(state, 0, name, ha="center", va="center_baseline", fontsize=11, color=_INK, zorder=5)


def _draw_arc(axes: Axes, start: float, end: float, apex: float, **style: Any) -> None:
    # A cubic Bezier curve, whose apex lies at three quarters of its control points' height, cut where it meets the circles.
    t = np.linspace(0, 1, 200)
    lean = 0.12 * (end - start)
    x = start * (1 - t) ** 3 + 3 * (start + lean) * t * (1 - t) ** 2 + 3 * (end - lean) * t**2 * (1 - t) + end * t**3
    y = 4 * apex * t * (1 - t)
    outside = (np.hypot(x - start, y) > _RADIUS) & (np.hypot(x - end, y) > _RADIUS + 0.02)
    path = Curve(np.column_stack([x[outside], y[outside]]))
    axes.add_patch(FancyArrowPatch(path=path, arrowstyle="-|>", mutation_scale=13, **style))


def draw_alphas(alphas: pd.DataFrame) -> Figure:
    """Heat maps of one trial's operation probabilities at the last epoch of each stage, relative to no preference.

    Args:
        alphas: rows of the table `alphas`. Raises ValueError if they belong to more than one trial.
    """
    _require(alphas, ("trial_id", "stage", "epoch", "cell", "edge", "operation", "probability"), "draw_alphas")
    if alphas["trial_id"].nunique() != 1:
        raise ValueError(f"draw_alphas: rows of {alphas['trial_id'].nunique()} trials, draws one")
    stages = sorted(alphas["stage"].unique())
    figure = Figure(figsize=(1.6 + 2.5 * len(stages), 8.6), layout="constrained")
    panels = figure.subplots(2, len(stages), squeeze=False, sharex=True, sharey=True)
    edges = [f"{[*_INPUTS, 0, 1, 2][source]}→{node}" for source, node in EDGES]
    last = alphas[alphas["epoch"] == alphas.groupby("stage")["epoch"].transform("max")]
    kept = last.groupby(["stage", "cell", "edge"])["operation"].transform("size")
    last = last.assign(preference=last["probability"] * kept)
    reach = float((last["preference"] - 1).abs().max()) or 1.0  # alphas hardly differ early on, and yet they decide
    scale = Normalize(1 - reach, 1 + reach)
    for (row, cell), (column, stage) in itertools.product(enumerate(_CELLS), enumerate(stages)):
        here = last[(last["cell"] == cell) & (last["stage"] == stage)]
        grid = here.pivot(index="edge", columns="operation", values="preference").reindex(range(len(EDGES)), columns=PRIMITIVES)
        panel = panels[row, column]
        panel.set_facecolor("#EEEEEE")
        panel.patch.set(hatch="////", edgecolor=_PALE, linewidth=0)
        image = panel.pcolormesh(
            np.ma.masked_invalid(grid.to_numpy(float)), cmap="PuOr_r", norm=scale, edgecolors="white", linewidth=0.8
        )
        panel.set_title(f"{_CELLS[cell]}, stage {stage}", fontsize=11)
        panel.set_xticks(np.arange(len(PRIMITIVES)) + 0.5, PRIMITIVES, rotation=90, fontsize=10)
        panel.set_yticks(np.arange(len(EDGES)) + 0.5, edges, fontsize=10)
    panels[0, 0].invert_yaxis()
    label = "probability x operations of the edge (1: no preference); hatched: dropped"
    figure.colorbar(image, ax=panels, label=label, shrink=0.5, aspect=30)
    figure.supylabel("edge, source→node", fontsize=11)
    return figure


def draw_learning_curves(curves: pd.DataFrame) -> Figure:
    """Validation accuracy of the search network against the running epoch: a line a variant, a band over its seeds.

    Args:
        curves: one row a variant and epoch: variant, stage (1-based), running_epoch (0-based, counted over all stages), mean,
            low and high (fractions; the band's ends).
    """
    _require(curves, ("variant", "stage", "running_epoch", "mean", "low", "high"), "draw_learning_curves")
    figure = Figure(figsize=(9.0, 4.6), layout="constrained")
    axes = figure.subplots()
    for index, (name, rows) in enumerate(curves.groupby("variant", sort=False)):
        colour, line = _COLOURS[index % len(_COLOURS)], _LINES[index % len(_LINES)]
        for _, part in rows.groupby("stage"):  # every stage trains a new network, so lines do not run on
            epoch = part["running_epoch"] + 1
            axes.fill_between(epoch, 100 * part["low"], 100 * part["high"], color=colour, alpha=0.15, linewidth=0)
            (drawn,) = axes.plot(epoch, 100 * part["mean"], color=colour, linestyle=line, linewidth=1.8, marker=".")
        drawn.set_label(str(name))
    axes.margins(y=0.1)
    axes.grid(axis="y", color=_GRID)
    _mark_stages(axes, curves)
    axes.set(xlabel="epoch, counted over all stages", ylabel="validation accuracy, %   (bands: over seeds)")
    figure.legend(loc="outside right upper", frameon=False, fontsize=10, handlelength=3)
    return figure


def draw_depth_gap(frame: pd.DataFrame) -> Figure:
    """Per variant: how accurate its search network, its derived cell with inherited weights and the retrained cell are.

    Args:
        frame: one row a variant, measure (search, inherited, evaluation) and seed: variant, measure, accuracy (fraction), mean
            (of that variant and measure over its seeds) and gap_points (of the variant, search minus evaluation; nan: unknown).
    """
    _require(frame, ("variant", "measure", "accuracy", "mean", "gap_points"), "draw_depth_gap")
    variants = list(frame["variant"].unique())
    figure = Figure(figsize=(9.0, 1.5 + 0.85 * len(variants)), layout="constrained")
    axes = figure.subplots()
    margin: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "center", "fontsize": 11, "color": _INK}
    axes.text(1.13, -0.55, "gap, points", **margin)
    for place, variant in enumerate(variants):
        rows = frame[frame["variant"] == variant]
        means = {str(name): 100 * mean for name, mean in rows.groupby("measure")["mean"].first().items()}
        if {"search", "evaluation"} <= means.keys():
            axes.plot([means["search"], means["evaluation"]], [place] * 2, color="#DDDDDD", linewidth=14, solid_capstyle="butt")
        for offset, (measure, (label, colour, marker)) in zip((-0.2, 0.0, 0.2), _MEASURES.items(), strict=True):
            dots = 100 * rows.loc[rows["measure"] == measure, "accuracy"]
            style: dict[str, Any] = {"color": colour, "markersize": 6.5, "markeredgecolor": "white", "zorder": 4}
            axes.plot(dots, [place + offset] * len(dots), marker, label=None if place else label, **style)
            if measure in means:
                axes.plot([means[measure]] * 2, [place - 0.33, place + 0.33], color=colour, linewidth=3, zorder=3)
        gap = rows["gap_points"].iloc[0]
        axes.text(1.13, place, "–" if np.isnan(gap) else f"{gap:+.1f}".replace("-", "−"), **margin)
    axes.set_yticks(range(len(variants)), variants, fontsize=11)
    axes.set_ylim(len(variants) - 0.5, -0.5)
    axes.set_xlabel("accuracy, %   (a dot a seed, upright bars: means, grey: from search to evaluation)", fontsize=11)
    axes.grid(axis="x", color=_GRID)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=10)
    return figure


def draw_skips(epochs: pd.DataFrame) -> Figure:
    """Skip-connects of the cell that would be derived, epoch by epoch: a panel a variant, a line a trial and cell.

    Args:
        epochs: rows of the table `epochs` with a column `variant` added.
    """
    _require(epochs, ("variant", "trial_id", "stage", "epoch", "normal_skip_count", "reduce_skip_count"), "draw_skips")
    variants = list(epochs["variant"].unique())
    columns = 2 if len(variants) == 4 else min(3, len(variants))
    rows = -(-len(variants) // columns)
    figure = Figure(figsize=(9.0, 0.9 + 2.1 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for panel, variant in zip(panels, variants, strict=False):
        trials = epochs[epochs["variant"] == variant].sort_values(["stage", "epoch"])
        trials = trials.assign(running_epoch=trials.groupby("trial_id").cumcount())
        for cell, (_, part) in itertools.product(_CELLS, trials.groupby(["trial_id", "stage"])):
            style = {"linewidth": 1.6, "alpha": 0.6, "marker": ".", "markersize": 3} | _CELL_STYLES[cell]
            panel.plot(part["running_epoch"] + 1, part[f"{cell}_skip_count"], **style)
        _mark_stages(panel, trials)
        panel.set_title(variant, fontsize=11, loc="left")
        panel.set(ylim=(-0.4, 9.4), yticks=range(0, 9, 2))
        panel.grid(axis="y", color=_GRID)
    for panel in panels[len(variants) :]:
        panel.axis("off")
    figure.supxlabel("epoch, counted over all stages", fontsize=10)
    figure.supylabel("skip-connects in the cell", fontsize=10)
    keys = [Line2D([], [], label=_CELLS[cell], **style) for cell, style in _CELL_STYLES.items()]
    figure.legend(handles=keys, loc="outside upper right", ncols=2, frameon=False, fontsize=10)
    return figure


def _mark_stages(axes: Axes, rows: pd.DataFrame) -> None:
    # Between two stages stands a line: what follows is another network, trained anew.
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    starts = rows.groupby(["variant", "stage"], as_index=False)["running_epoch"].min()[["running_epoch", "stage"]]
    for start, stage in starts.drop_duplicates().itertuples(index=False):
        axes.axvline(start + 0.5, color=_PALE, linestyle=":", zorder=0)
        place = axes.get_xaxis_transform()
        axes.text(start + 0.6, 0.98, f"stage {stage}", va="top", fontsize=9, color="#777777", transform=place)


def _require(frame: pd.DataFrame, columns: Sequence[str], where: str) -> None:
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ValueError(f"{where}: no column {', '.join(missing)}; needs {', '.join(columns)}")
    if frame.empty:
        raise ValueError(f"{where}: no rows, nothing to draw")


def save_figure(figure: Figure, path: Path) -> tuple[Path, Path]:
    """Writes `path` + ".png" and ".svg", whole or not at all, and returns both. OSError if the folder cannot be written."""
    png, svg = (path.with_name(path.name + suffix) for suffix in (".png", ".svg"))  # a name may hold a dot
    # The salt and the missing date make a figure drawn twice the same file.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".figure-") as folder, matplotlib.rc_context({"svg.hashsalt": "0"}):
        figure.savefig(Path(folder) / png.name, dpi=150)
        figure.savefig(Path(folder) / svg.name, metadata={"Date": None})
        return (Path(folder) / png.name).replace(png), (Path(folder) / svg.name).replace(svg)
