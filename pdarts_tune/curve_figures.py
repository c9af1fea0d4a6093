"""Curves over epochs and the time that stages take. Part of `figures.py`, which is where to import from."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from pdarts_tune.figure_style import COLOURS, GRID, INK, mark_stages, require, style_of

TOGETHER = 5  # variants; the bands of more would hide each other


def draw_learning_curves(
    curves: pd.DataFrame, label: str = "validation accuracy, %", scale: float = 100, *, logarithmic: bool = False
) -> Figure:
    """A measure of searches against the running epoch: a line a variant, a band over its seeds, breaks between stages.

    More variants than a picture can hold together have a panel each.

    Args:
        curves: one row a variant and epoch: variant, stage (1-based), running_epoch (0-based, counted over all stages), mean,
            low and high (the band's ends). Epochs without a value are left out.
        label: what is measured, in its unit after multiplication with `scale`.
        logarithmic: of the vertical axis; values that are not positive are not shown.
    """
    require(curves, ("variant", "stage", "running_epoch", "mean", "low", "high"), "draw_learning_curves")
    variants = list(curves["variant"].unique())
    together = len(variants) <= TOGETHER
    columns = 1 if together else 3
    rows = 1 if together else -(-len(variants) // columns)
    figure = Figure(figsize=(9.0, 4.6 if together else 0.8 + 2.0 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for index, name in enumerate(variants):
        axes = panels[0 if together else index]
        colour, line, _ = style_of(index) if together else style_of(0)
        own = curves[curves["variant"] == name]
        for _, part in own.groupby("stage"):  # every stage trains a new network, so lines do not run on
            epoch = part["running_epoch"] + 1
            axes.fill_between(epoch, scale * part["low"], scale * part["high"], color=colour, alpha=0.15, linewidth=0)
            (drawn,) = axes.plot(epoch, scale * part["mean"], color=colour, linestyle=line, linewidth=1.8, marker=".")
        drawn.set_label(str(name))
        if not together:
            axes.set_title(str(name), fontsize=10, loc="left", color=INK)
            mark_stages(axes, own, labels=False)
    for panel in panels[len(variants) if not together else 1 :]:
        panel.axis("off")
    for panel in panels[: 1 if together else len(variants)]:
        panel.margins(y=0.1)
        panel.grid(axis="y", color=GRID)
        if logarithmic and (curves["mean"] > 0).any():
            panel.set_yscale("log")
    if together:
        mark_stages(panels[0], curves)
        figure.legend(loc="outside right upper", frameon=False, fontsize=10, handlelength=3)
    figure.supxlabel("epoch, counted over all stages", fontsize=10)
    figure.supylabel(f"{label}   (bands: over seeds)", fontsize=10)
    return figure


def draw_timeline(stages: pd.DataFrame) -> Figure:
    """How long each stage of each variant takes: bars in a row, with what is trained in them.

    Args:
        stages: one row a variant and stage: variant, stage, start_seconds, seconds (means over seeds), label (short).
    """
    require(stages, ("variant", "stage", "start_seconds", "seconds", "label"), "draw_timeline")
    variants = list(stages["variant"].unique())
    figure = Figure(figsize=(9.0, 1.2 + 0.5 * len(variants)), layout="constrained")
    axes = figure.subplots()
    longest = (stages["start_seconds"] + stages["seconds"]).max()
    unit, scale = ("hours", 3600) if longest > 7200 else ("minutes", 60) if longest > 300 else ("seconds", 1)
    for row in stages.to_dict("records"):
        place = variants.index(row["variant"])
        colour = COLOURS[(int(row["stage"]) - 1) % len(COLOURS)]
        start, width = row["start_seconds"] / scale, row["seconds"] / scale
        axes.barh(place, width, left=start, height=0.72, color=colour, alpha=0.35, edgecolor="white")
        if row["seconds"] > 0.07 * longest:  # else the label would not fit
            axes.text(start + width / 2, place, row["label"], ha="center", va="center", fontsize=9, color=INK)
    axes.set_yticks(range(len(variants)), variants, fontsize=10)
    axes.set_ylim(len(variants) - 0.4, -0.6)
    axes.set_xlabel(f"{unit} of search, mean over seeds   (a bar a stage: cells x operations an edge)", fontsize=10)
    axes.grid(axis="x", color=GRID)
    axes.set_axisbelow(True)
    return figure
