"""Figures of a study: variants beside each other, curves over epochs, and one search looked at closely."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from common.comparisons import tradeoff_frame
from common.section import Draw
from common.study_tables import CELLS, StudyTables, at_stage, first_cells
from pdarts_tune.pdarts.genotype import Genotype
from pdarts_tune.results.cell_figures import COLOURS, GRID, INK, PALE, draw_alpha_evolution, draw_genotype, mark_stages, style_of
from pdarts_tune.results.tables import read_rows

MOST_NAMES = 40  # of cells, in one legend

_MEASURES = {  # what draw_depth_gap shows, in the order a cell lives through them: label, colour, marker
    "search": ("search network, validation", "#0072B2", "o"),
    "inherited": ("derived cell, inherited weights", "#E69F00", "D"),
    "evaluation": ("derived cell, trained from scratch, test", "#D55E00", "s"),
}


def _open(height: float, width: float = 9.0, grid: Any = "both") -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(axis=grid, color=GRID)
    axes.set_axisbelow(True)
    return figure, axes


def draw_depth_gap(frame: pd.DataFrame) -> Figure:
    """Per variant: how accurate its search network, its derived cell with inherited weights and the retrained cell are.

    Args:
        frame: one row a variant, measure (search, inherited, evaluation) and seed: variant, measure, accuracy (fraction), mean
            (of that variant and measure over its seeds) and gap_points (of the variant, search minus evaluation; nan: unknown).
    """
    variants = list(frame["variant"].unique())
    figure, axes = _open(1.5 + 0.85 * len(variants), grid="x")
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
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=10)
    return figure


def draw_tradeoff(points: pd.DataFrame, costs: Mapping[str, str], label: str = "test error, %") -> Figure:
    """Error against each cost that is known: a point a variant with the ranges over its seeds, and the front of those that no other
    variant beats in both.

    Args:
        points: one row a variant: variant, mean, low, high (the error's), and for each cost `<cost>`, `<cost>_low`,
            `<cost>_high` and `<cost>_front` (whether it is on the front). Ends that are nan have no bar.
        costs: names of the costs, with the labels of their axes.
    """
    figure = Figure(figsize=(max(7.6, 4.6 * len(costs)), 4.8), layout="constrained")  # one panel is as wide as the legend needs
    styles = {name: style_of(index) for index, name in enumerate(points["variant"].unique())}
    for panel, (cost, name) in zip(figure.subplots(1, len(costs), squeeze=False, sharey=True)[0], costs.items(), strict=True):
        known = points.dropna(subset=[cost, "mean"])
        front = known[known[f"{cost}_front"].astype(bool)].sort_values(cost)
        panel.plot(front[cost], front["mean"], color=PALE, linewidth=6, alpha=0.6, zorder=1)
        for row in known.to_dict("records"):
            colour, _, marker = styles[row["variant"]]
            bars = {"yerr": [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]}
            bars["xerr"] = [[row[cost] - row[f"{cost}_low"]], [row[f"{cost}_high"] - row[cost]]]
            panel.errorbar(row[cost], row["mean"], **bars, fmt=marker, color=colour, markersize=8, elinewidth=1.2, zorder=3)
        panel.set_xlabel(name, fontsize=10)
        panel.grid(color=GRID)
        panel.set_axisbelow(True)
    figure.axes[0].set_ylabel(label, fontsize=10)
    shown = points.loc[points["mean"].notna() & points[list(costs)].notna().any(axis=1), "variant"].unique()
    keys = [Line2D([], [], color=styles[name][0], marker=styles[name][2], linestyle="none", label=name) for name in shown]
    keys.append(Line2D([], [], color=PALE, linewidth=6, alpha=0.6, label="front: nothing is better in both"))
    figure.legend(handles=keys, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def draw_costs(measures: pd.DataFrame, rng: np.random.Generator, costs: Mapping[str, str]) -> dict[str, Draw]:
    """`tradeoff`: the error of completed searches against those of the costs that are known; nothing where none is, or no error."""
    searched = measures[measures["status"] == "completed"]
    known = {cost: label for cost, label in costs.items() if searched[cost].notna().any()}
    if not known or searched["error_percent"].isna().all():
        return {}
    return {"tradeoff": lambda: draw_tradeoff(tradeoff_frame(searched, rng, *known), known)}


def draw_sweep(points: pd.DataFrame, across: str, column: str) -> Figure:
    """A measure against a numeric setting: a line for each value of `line`, bars for the intervals; logarithmic over wide ranges.

    Args:
        points: one row a variant: line, the columns `across` and `column`, ci_low and ci_high (nan: no interval).
    """
    figure, axes = _open(4.2, grid="y")
    lines, values = list(points["line"].unique()), sorted(points[across].unique())
    wide = values[0] > 0 and values[-1] >= 8 * values[0]
    for index, line in enumerate(lines):
        rows = points[points["line"] == line].sort_values(across)
        colour, style, marker = style_of(index)
        places = rows[across] + (0 if wide else 0.01 * (values[-1] - values[0])) * (index - (len(lines) - 1) / 2)
        reach = [rows[column] - rows["ci_low"].fillna(rows[column]), rows["ci_high"].fillna(rows[column]) - rows[column]]
        axes.errorbar(places, rows[column], yerr=reach, color=colour, linestyle=style, marker=marker, capsize=3, label=line)
    if wide:
        axes.set_xscale("log")
    axes.set_xticks(values, [f"{value:g}" for value in values], minor=False)
    axes.minorticks_off()
    axes.set(xlabel=across.replace("_", " "), ylabel=f"{' in '.join(column.rsplit('_', 1))}   (bars: over seeds)")
    if any(lines):
        figure.legend(loc="outside right upper", frameon=False, fontsize=10, handlelength=3)
    return figure


def draw_transfer(points: pd.DataFrame, across: str, down: str) -> Figure:
    """Errors of the same cells in two settings, as points with names; of more cells than can be told apart, points alone.

    Args:
        points: one row a cell: name, x, y (test errors, percent).
        across, down: the settings, for the axes' labels.
    """
    figure, axes = _open(5.0, width=6.4)
    named = len(points) <= MOST_NAMES
    for index, row in enumerate(points.to_dict("records") if named else ()):
        colour, _, marker = style_of(index)
        axes.plot(row["x"], row["y"], marker, color=colour, markersize=9, label=row["name"], linestyle="none")
    if not named:
        axes.plot(points["x"], points["y"], "o", color=style_of(0)[0], markersize=4, alpha=0.3, linestyle="none", rasterized=True)
    axes.margins(0.12)
    axes.set(xlabel=f"test error, %: {across}", ylabel=f"test error, %: {down}")
    if named:
        figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure


TOGETHER = 5  # variants; the bands of more would hide each other


def draw_learning_curves(curves: pd.DataFrame, label: str = "validation accuracy, %", scale: float = 100) -> Figure:
    """A measure of searches against the running epoch: a line a variant, a band over its seeds, breaks between stages.

    More variants than a picture can hold together have a panel each.

    Args:
        curves: one row a variant and epoch: variant, stage (1-based), running_epoch (0-based, counted over all stages), mean,
            low and high (the band's ends). Epochs without a value are left out.
        label: what is measured, in its unit after multiplication with `scale`.
    """
    variants = list(curves["variant"].unique())
    together = len(variants) <= TOGETHER
    down, across = (1, 1) if together else (-(-len(variants) // 3), 3)
    figure = Figure(figsize=(9.0, 4.6 if together else 0.8 + 2.0 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
    for index, name in enumerate(variants):
        axes = panels[0 if together else index]
        axes.margins(y=0.1)
        axes.grid(axis="y", color=GRID)
        colour, line, _ = style_of(index if together else 0)
        own = curves[curves["variant"] == name]
        for _, part in own.dropna(subset="mean").groupby("stage"):  # every stage trains a new network, so lines do not run on
            epoch = part["running_epoch"] + 1
            axes.fill_between(epoch, scale * part["low"], scale * part["high"], color=colour, alpha=0.15, linewidth=0)
            (drawn,) = axes.plot(epoch, scale * part["mean"], color=colour, linestyle=line, linewidth=1.8, marker=".")
        drawn.set_label(str(name))
        if not together:
            axes.set_title(str(name), fontsize=10, loc="left", color=INK)
            mark_stages(axes, own, labels=False)
    for panel in panels[len(variants) :]:
        panel.axis("off")
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
    variants = list(stages["variant"].unique())
    figure, axes = _open(1.2 + 0.5 * len(variants), grid="x")
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
    return figure


CURVES = {  # what draw_curves draws: column of `epochs`, label, scale
    "learning_curves": ("validation_accuracy", "validation accuracy, %", 100.0),
    "skips": ("normal_skip_count", "skip-connects of the normal cell", 1.0),
    "eigenvalue": ("hessian_eigenvalue", "largest eigenvalue of the Hessian", 1.0),
    "estimates": ("estimated_accuracy", "estimated accuracy of the cell derived now, %", 100.0),
}
SEARCH_NOTES = {
    "learning_curves": "Search networks, epoch by epoch; bands from the lowest to the highest seed.",
    "skips": "Skip-connects of the normal cell that would be derived, before refinement; bands from lowest to highest seed.",
    "eigenvalue": "Largest eigenvalue of the validation loss's Hessian by the alphas, where it was measured.",
    "estimates": "The estimated accuracy of the cell that would be derived after each epoch; bands from lowest to highest seed.",
    "anytime": "The estimated accuracy of the cell that would be derived after each quarter of a search, and its seconds.",
    "timeline": "Where the time of a search goes, stage by stage.",
    "cells": "Both cells that one search ended with: the first completed one of the variant that the others are compared with.",
    "alphas_normal": "The same search: probabilities of the operations on every edge of the normal cell.",
    "alphas_reduce": "And of the reduction cell.",
}


def draw_curves(study: StudyTables, *names: str) -> dict[str, Draw]:
    """Those of CURVES that the searches have values for: mean, lowest and highest over the seeds of a variant."""
    figures: dict[str, Draw] = {}
    for name in names:
        column, label, scale = CURVES[name]
        if column not in study.epochs:
            continue
        epochs = study.epochs[study.epochs.groupby("variant")[column].transform("count") > 0]
        if len(epochs):
            grouped = epochs.groupby(["variant", "stage", "running_epoch"], sort=False, as_index=False)
            curves = grouped.agg(mean=(column, "mean"), low=(column, "min"), high=(column, "max"))
            figures[name] = partial(draw_learning_curves, curves, label, scale)
    return figures


def gap_frame(measures: pd.DataFrame) -> pd.DataFrame:
    """What `draw_depth_gap` draws, of the rows of `measure_trials`."""
    columns = {"search_accuracy": "search", "inherited_accuracy": "inherited", "accuracy": "evaluation"}
    renamed = measures.rename(columns=columns)
    values = renamed.set_index(["variant", "seed"])[list(columns.values())].rename_axis("measure", axis="columns").astype(float)
    long = pd.Series(values.stack()).dropna().rename("accuracy").reset_index()
    long["mean"] = long.groupby(["variant", "measure"])["accuracy"].transform("mean")
    return long.assign(gap_points=long["variant"].map(measures.groupby("variant")["gap_points"].mean()))


def draw_search(study: StudyTables, variant: str | None) -> dict[str, Draw]:
    """The stage timeline of all variants, and cells and alphas of the first completed search of `variant`."""
    figures: dict[str, Draw] = {"timeline": lambda: draw_timeline(time_stages(study))} if len(study.epochs) else {}
    for cell in first_cells(study, [variant]):
        figures["cells"] = partial(draw_genotype, Genotype.parse(cell["genotype"]), cell["trial_id"])
        alphas = pd.DataFrame(read_rows(study.folder, "alphas", cell["trial_id"]))
        if len(alphas):
            figures |= {f"alphas_{name}": partial(draw_alpha_evolution, alphas, name) for name in CELLS}
    return figures


def time_stages(study: StudyTables) -> pd.DataFrame:
    """What `draw_timeline` draws: seconds of each stage of each variant, mean over its searches."""
    known = study.epochs.dropna(subset="seconds")
    spent = known.groupby(["variant", "trial_id", "stage"], sort=False, as_index=False)["seconds"].sum()
    means = spent.groupby(["variant", "stage"], sort=False, as_index=False)["seconds"].mean()
    plans = study.trials.drop_duplicates("variant").set_index("variant")
    labels = [
        f"{at_stage(plans.loc[variant, 'depths'], stage)}x{at_stage(plans.loc[variant, 'operations'], stage)}"
        for variant, stage in zip(means["variant"], means["stage"], strict=True)
    ]
    starts = means.groupby("variant", sort=False)["seconds"].cumsum() - means["seconds"]
    return means.assign(start_seconds=starts, label=labels)
