"""Variants beside each other. Part of `figures.py`, which is where to import from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pdarts_tune.figure_style import GRID, INK, PALE, require, style_of

MOST_NAMES = 40  # of cells, in one legend

_MEASURES = {  # what draw_depth_gap shows, in the order a cell lives through them: label, colour, marker
    "search": ("search network, validation", "#0072B2", "o"),
    "inherited": ("derived cell, inherited weights", "#E69F00", "D"),
    "evaluation": ("derived cell, trained from scratch, test", "#D55E00", "s"),
}


def draw_depth_gap(frame: pd.DataFrame) -> Figure:
    """Per variant: how accurate its search network, its derived cell with inherited weights and the retrained cell are.

    Args:
        frame: one row a variant, measure (search, inherited, evaluation) and seed: variant, measure, accuracy (fraction), mean
            (of that variant and measure over its seeds) and gap_points (of the variant, search minus evaluation; nan: unknown).
    """
    require(frame, ("variant", "measure", "accuracy", "mean", "gap_points"), "draw_depth_gap")
    variants = list(frame["variant"].unique())
    figure = Figure(figsize=(9.0, 1.5 + 0.85 * len(variants)), layout="constrained")
    axes = figure.subplots()
    margin: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "center", "fontsize": 11, "color": INK}
    axes.text(1.13, -0.55, "gap, points", **(margin | {"va": "bottom"}))
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
    axes.grid(axis="x", color=GRID)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=10)
    return figure


def draw_tradeoff(points: pd.DataFrame, costs: dict[str, str], label: str = "test error, %") -> Figure:
    """Error against each of several costs: a point a variant with the ranges over its seeds, and the front of those that no other
    variant beats in both.

    Args:
        points: one row a variant: variant, mean, low, high (the error's), and for each cost `<cost>`, `<cost>_low`,
            `<cost>_high` and `<cost>_front` (whether it is on the front).
        costs: names of the costs, with the labels of their axes.
    """
    needed = [f"{cost}{part}" for cost in costs for part in ("", "_low", "_high", "_front")]
    require(points, ("variant", "mean", "low", "high", *needed), "draw_tradeoff")
    figure = Figure(figsize=(max(7.6, 4.6 * len(costs)), 4.8), layout="constrained")  # one panel is as wide as the legend needs
    variants = list(points["variant"].unique())
    for panel, (cost, name) in zip(figure.subplots(1, len(costs), squeeze=False, sharey=True)[0], costs.items(), strict=True):
        known = points.dropna(subset=[cost, "mean"])
        front = known[known[f"{cost}_front"].astype(bool)].sort_values(cost)
        panel.plot(front[cost], front["mean"], color=PALE, linewidth=6, alpha=0.6, zorder=1)
        for row in known.to_dict("records"):
            colour, _, marker = style_of(variants.index(row["variant"]))
            reach = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
            spread = [[row[cost] - row[f"{cost}_low"]], [row[f"{cost}_high"] - row[cost]]]
            panel.errorbar(
                row[cost], row["mean"], yerr=reach, xerr=spread, fmt=marker, color=colour, markersize=8, elinewidth=1.2, zorder=3
            )
        panel.set_xlabel(name, fontsize=10)
        panel.grid(color=GRID)
        panel.set_axisbelow(True)
    figure.axes[0].set_ylabel(label, fontsize=10)
    shown = set(points.loc[points["mean"].notna() & points[list(costs)].notna().any(axis=1), "variant"])
    keys = [
        Line2D([], [], color=style_of(index)[0], marker=style_of(index)[2], linestyle="none", label=variant)
        for index, variant in enumerate(variants)
        if variant in shown
    ]
    keys.append(Line2D([], [], color=PALE, linewidth=6, alpha=0.6, label="front: nothing is better in both"))
    figure.legend(handles=keys, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def draw_limits(points: pd.DataFrame) -> Figure:
    """Evaluation error against the limit M on skip-connects: a line a variant, bars over its seeds.

    Args:
        points: one row a variant and limit: variant, max_skips, mean, low, high.
    """
    require(points, ("variant", "max_skips", "mean", "low", "high"), "draw_limits")
    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    axes = figure.subplots()
    variants = list(points["variant"].unique())
    for index, variant in enumerate(variants):
        rows = points[points["variant"] == variant].sort_values("max_skips")
        colour, line, marker = style_of(index)
        places = rows["max_skips"] + 0.08 * (index - (len(variants) - 1) / 2)
        reach = [rows["mean"] - rows["low"], rows["high"] - rows["mean"]]
        axes.errorbar(places, rows["mean"], yerr=reach, color=colour, linestyle=line, marker=marker, capsize=3, label=variant)
    axes.set(xlabel="M, skip-connects allowed in the normal cell   (8: no limit)", ylabel="test error, %   (bars: over seeds)")
    axes.set_xticks(sorted(points["max_skips"].unique()))
    axes.grid(axis="y", color=GRID)
    figure.legend(loc="outside right upper", frameon=False, fontsize=10, handlelength=3)
    return figure


def draw_transfer(points: pd.DataFrame, across: str, down: str) -> Figure:
    """Errors of the same cells in two settings, as points with names; of more cells than can be told apart, points alone.

    Args:
        points: one row a cell: name, x, y (test errors, percent).
        across, down: the settings, for the axes' labels.
    """
    require(points, ("name", "x", "y"), "draw_transfer")
    figure = Figure(figsize=(6.4, 5.0), layout="constrained")
    axes = figure.subplots()
    named = len(points) <= MOST_NAMES
    for index, row in enumerate(points.to_dict("records") if named else ()):
        colour, _, marker = style_of(index)
        axes.plot(row["x"], row["y"], marker, color=colour, markersize=9, label=row["name"], linestyle="none")
    if not named:
        axes.plot(points["x"], points["y"], "o", color=style_of(0)[0], markersize=4, alpha=0.3, linestyle="none", rasterized=True)
    axes.margins(0.12)
    axes.set(xlabel=f"test error, %: {across}", ylabel=f"test error, %: {down}")
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    if named:
        figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure
