"""Figures of cells and alphas, and the style of all figures of the project.

Every function returns a matplotlib `Figure` of its own, without pyplot or other global state, so any process and thread can draw.
Every reader can tell the colours apart (Okabe & Ito, 2008), and a label, a marker or a line style repeats what a colour says. Sizes
suit a README column, about 850 pixels wide. A function that takes a frame raises ValueError, in one line, if a column is missing or
there are no rows.
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

from pdarts_tune.pdarts.genotype import CellGenotype, Genotype
from pdarts_tune.pdarts.space import EDGES, PRIMITIVES


def save_figure(figure: Figure, path: Path) -> tuple[Path, Path]:
    """Writes `path` + ".png" and ".svg", whole or not at all, and returns both. OSError if the folder cannot be written."""
    png, svg = (path.with_name(path.name + suffix) for suffix in (".png", ".svg"))  # a name may hold a dot
    # The salt and the missing date make a figure drawn twice the same file.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".figure-") as folder, matplotlib.rc_context({"svg.hashsalt": "0"}):
        figure.savefig(Path(folder) / png.name, dpi=150)
        figure.set_layout_engine("none")  # it is laid out already, which takes as long as drawing
        figure.savefig(Path(folder) / svg.name, metadata={"Date": None})
        return (Path(folder) / png.name).replace(png), (Path(folder) / svg.name).replace(svg)


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
    """A line where a stage begins, with another network that is trained anew."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    starts = rows.groupby(["variant", "stage"], as_index=False)["running_epoch"].min()[["running_epoch", "stage"]]
    starts = starts.drop_duplicates()
    alike = starts["stage"].is_unique and len(starts) <= 6  # else lines of one variant's stages cross another's curves
    for start, stage in starts.itertuples(index=False) if alike else ():
        axes.axvline(start + 0.5, color=PALE, linestyle=":", zorder=0)
        if labels:
            place = axes.get_xaxis_transform()
            axes.text(start + 0.6, 0.98, f"stage {stage}", va="top", fontsize=9, color="#777777", transform=place)


_FAMILY = {"skip": "#D55E00", "max": "#B07800", "avg": "#B07800", "sep": "#0072B2", "conv": "#0072B2", "dil": "#007A58"}
_RADIUS, _RISE, _FALL = 0.15, 0.36, 0.15  # of a cell's graph, where neighbouring states are 1 apart: circles, height per span
_OPERATION_STYLES = {  # families share a colour
    "none": ("#000000", LINES[3]),
    "max_pool_3x3": (COLOURS[4], LINES[0]),
    "avg_pool_3x3": (COLOURS[4], LINES[1]),
    "skip_connect": (COLOURS[1], LINES[0]),
    "sep_conv_3x3": (COLOURS[0], LINES[0]),
    "sep_conv_5x5": (COLOURS[0], LINES[1]),
    "dil_conv_3x3": (COLOURS[2], LINES[0]),
    "dil_conv_5x5": (COLOURS[2], LINES[1]),
}


def draw_genotype(genotype: Genotype, title: str = "") -> Figure:
    """Both cells as graphs: operations are arcs above the line of states, the concatenation that makes c_k runs below it."""
    cells = (genotype.normal, genotype.reduce)
    top = max(height for cell in cells for *_, height in _arcs(cell)) * _RISE + 0.3
    bottom = min(min(cell.concat) - cell.num_nodes - 2 for cell in cells) * _FALL - 0.2
    figure = Figure(figsize=(9.0, 2.5 * (top - bottom) + 1.0), layout="constrained")
    for panel, cell, name in zip(figure.subplots(2, 1), cells, CELLS.values(), strict=True):
        _draw_cell(panel, cell)
        panel.set(aspect="equal", xlim=(-0.35, cell.num_nodes + 2.35), ylim=(bottom, top))
        panel.axis("off")
        panel.set_title(name, fontsize=12, loc="left", color=INK)
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
        _draw_arc(axes, state, output, (state - output) * _FALL, color=PALE, linewidth=1.2, zorder=1)
    for state, name in enumerate([*INPUTS, *map(str, range(cell.num_nodes)), "$c_k$"]):
        face = "white" if 2 <= state < output else "#E8E8E8"
        axes.add_patch(Circle((state, 0), _RADIUS, facecolor=face, edgecolor=INK, zorder=4))
        axes.text(state, 0, name, ha="center", va="center_baseline", fontsize=11, color=INK, zorder=5)


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
    require(alphas, ("trial_id", "stage", "epoch", "cell", "edge", "operation", "probability"), "draw_alphas")
    if alphas["trial_id"].nunique() != 1:
        raise ValueError(f"draw_alphas: rows of {alphas['trial_id'].nunique()} trials, draws one")
    stages = sorted(alphas["stage"].unique())
    figure = Figure(figsize=(1.6 + 2.5 * len(stages), 8.6), layout="constrained")
    panels = figure.subplots(2, len(stages), squeeze=False, sharex=True, sharey=True)
    edges = [f"{[*INPUTS, 0, 1, 2][source]}→{node}" for source, node in EDGES]
    last = alphas[alphas["epoch"] == alphas.groupby("stage")["epoch"].transform("max")]
    kept = last.groupby(["stage", "cell", "edge"])["operation"].transform("size")
    last = last.assign(preference=last["probability"] * kept)
    reach = float((last["preference"] - 1).abs().max()) or 1.0  # even small differences of alphas decide
    scale = Normalize(1 - reach, 1 + reach)
    for (row, cell), (column, stage) in itertools.product(enumerate(CELLS), enumerate(stages)):
        here = last[(last["cell"] == cell) & (last["stage"] == stage)]
        grid = here.pivot(index="edge", columns="operation", values="preference").reindex(range(len(EDGES)), columns=PRIMITIVES)
        panel = panels[row, column]
        panel.set_facecolor("#EEEEEE")
        panel.patch.set(hatch="////", edgecolor=PALE, linewidth=0)
        image = panel.pcolormesh(
            np.ma.masked_invalid(grid.to_numpy(float)), cmap="PuOr_r", norm=scale, edgecolors="white", linewidth=0.8
        )
        panel.set_title(f"{CELLS[cell]}, stage {stage}", fontsize=11)
        panel.set_xticks(np.arange(len(PRIMITIVES)) + 0.5, PRIMITIVES, rotation=90, fontsize=10)
        panel.set_yticks(np.arange(len(EDGES)) + 0.5, edges, fontsize=10)
    panels[0, 0].invert_yaxis()
    label = "probability x operations of the edge (1: no preference); hatched: dropped"
    figure.colorbar(image, ax=panels, label=label, shrink=0.5, aspect=30)
    figure.supylabel("edge, source→node", fontsize=11)
    return figure


def draw_alpha_evolution(alphas: pd.DataFrame, cell: str = "normal") -> Figure:
    """One trial's preferences, epoch by epoch: a panel an edge, nodes below each other, sources side by side.

    The y axis is the probability times the number of the edge's operations: 1 is no preference in every stage. Every stage starts
    anew, so lines break between stages. The line of a dropped operation ends with a cross.

    Args:
        alphas: rows of the table `alphas`. Raises ValueError if they belong to more than one trial.
    """
    require(alphas, ("trial_id", "stage", "epoch", "cell", "edge", "operation", "probability"), "draw_alpha_evolution")
    if alphas["trial_id"].nunique() != 1:
        raise ValueError(f"draw_alpha_evolution: rows of {alphas['trial_id'].nunique()} trials, draws one")
    rows = alphas[alphas["cell"] == cell]
    require(rows, (), "draw_alpha_evolution")
    times = rows[["stage", "epoch"]].drop_duplicates().sort_values(["stage", "epoch"], ignore_index=True)
    rows = rows.merge(times.rename_axis("running_epoch").reset_index(), on=["stage", "epoch"])
    kept = rows.groupby(["stage", "epoch", "edge"])["operation"].transform("size")
    rows = rows.assign(preference=rows["probability"] * kept).sort_values("running_epoch")
    figure = Figure(figsize=(12.0, 8.4))  # an automatic layout of twenty panels takes seconds
    figure.subplots_adjust(left=0.07, right=0.99, bottom=0.08, top=0.92, wspace=0.06, hspace=0.22)
    panels = figure.subplots(4, 5, sharex=True, sharey=True)
    for panel in panels.ravel():
        panel.axis("off")
    for edge, (source, node) in enumerate(EDGES):
        panel = panels[node, source]
        panel.axis("on")
        _draw_edge(panel, rows[rows["edge"] == edge], int(times["stage"].max()))
        for start in np.flatnonzero(times["stage"].diff() > 0):
            panel.axvline(start + 0.5, color=PALE, linestyle=":", zorder=0)
        panel.set_title(f"{[*INPUTS, 0, 1, 2][source]} → {node}", fontsize=11, loc="left", color=INK, y=1.0)
        panel.grid(axis="y", color=GRID)
        panel.tick_params(labelbottom=node == 3, labelleft=source == 0)
    shown = [name for name in PRIMITIVES if name in set(rows["operation"])]
    keys = [Line2D([], [], color=_OPERATION_STYLES[name][0], linestyle=_OPERATION_STYLES[name][1], label=name) for name in shown]
    keys.append(Line2D([], [], color=INK, linestyle="none", marker="x", label="dropped after this stage"))
    legend = figure.legend(
        handles=keys, loc="upper right", bbox_to_anchor=(0.98, 0.93), frameon=False, fontsize=11, handlelength=3.2
    )
    legend.set_in_layout(False)  # it lies in the room of edges that do not exist
    figure.suptitle(f"{CELLS[cell]}, {alphas['trial_id'].iloc[0]}", fontsize=12)
    figure.supxlabel("epoch, counted over all stages; dotted: a new stage, whose alphas start anew", fontsize=10)
    figure.supylabel("probability x operations of the edge (1: no preference)", fontsize=10)
    return figure


def _draw_edge(axes: Axes, rows: pd.DataFrame, last_stage: int) -> None:
    kept = set(zip(rows["stage"], rows["operation"], strict=True))
    for stage, operation in sorted(kept):
        line = rows[(rows["stage"] == stage) & (rows["operation"] == operation)]
        colour, dashes = _OPERATION_STYLES[str(operation)]
        axes.plot(line["running_epoch"] + 1, line["preference"], color=colour, linestyle=dashes, linewidth=1.5)
        if stage < last_stage and (stage + 1, operation) not in kept:
            end = line.iloc[-1]
            axes.plot(end["running_epoch"] + 1, end["preference"], "x", color=colour, markersize=6, markeredgewidth=1.6)
