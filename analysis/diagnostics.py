"""What the searches looked like

python analysis/diagnostics.py --results results               # of the study baselines
python analysis/diagnostics.py --results results/depth_gap     # of any study

A figure a variant, from the table `epochs`: skip-connects and operations' entropy, the Hessian's eigenvalue, the agreement between
cells, and the accuracy of the derived cell in inherited weights, each against the epoch, a line per seed. The tables are of
the epochs that cells were taken from.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.question import Answer, Question
from common.study_tables import Configs, StudyTables, chosen_epochs
from pdarts_tune.config.methods import Snas
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.pdarts.regularization import COLLAPSED_SKIPS

NORMAL, REDUCTION = "#D55E00", "#0072B2"  # colours
_PANELS = {  # titles, with the limits of the axis (None: from the figures, and 0)
    "skip-connects of the cell derived now": (-0.3, 8.3),
    "entropy of operations, nats (all equally probable: 8 operations 2.08, 5 operations 1.61, 3 operations 1.10)": (0.0, 2.2),
    "largest eigenvalue of the alphas' Hessian, nats": None,
    "cosine of the alphas' gradients between cells": (-1.05, 1.05),
    "validation accuracy": (0.0, 1.02),
}
_LINES = (  # panel, column, label, style, colour
    (0, "normal_skip_count", "normal", "-", NORMAL),
    (0, "reduce_skip_count", "reduction", "--", REDUCTION),
    (1, "alpha_entropy", "", "-", NORMAL),
    (2, "hessian_eigenvalue", "", "-", NORMAL),
    (3, "normal_agreement", "normal, all pairs", "-", NORMAL),
    (3, "normal_first_last", "normal, first and last", ":", NORMAL),
    (3, "reduce_agreement", "reduction", "--", REDUCTION),
    (4, "validation_accuracy", "search network", "--", REDUCTION),
    (4, "inherited_accuracy", "derived cell, inherited weights", "-", NORMAL),
)
RESOURCES = {  # column: its name in the report, factor
    "params": ("params_thousands", 1e-3),
    "macs": ("macs_millions", 1e-6),
    "latency_seconds": ("latency_milliseconds", 1e3),
}
COLUMNS = (
    *("phase", "reduce_skip_count", "alpha_entropy", "alpha_margin", "normal_agreement", "normal_first_last"),
    *("reduce_agreement", "inherited_accuracy", "diagnostic_seconds"),
    *(f"{kind}_{column}" for column in RESOURCES for kind in ("expected", "derived")),
)
MEANS = {  # columns, with their names in the table
    "normal_skip_count": "skip_connects",
    "alpha_entropy": "entropy",
    "alpha_margin": "margin",
    "normal_agreement": "agreement",
    "validation_accuracy": "search_accuracy",
    "inherited_accuracy": "inherited_accuracy",
}
NOTES = {
    "chosen_epochs": """\
Means over completed searches, of the epochs that they took their cells from. *eigenvalue growth*: the last over the first of the
epochs of the last stage that train alphas. *looking*: the time of the diagnostics in percent of that of training and validation, as
often as this study asks for them.""",
    "resources": """\
What the cells' operations cost in the last search network, means over completed searches. *expected*: all 14 edges of a cell draw
their operations by the probabilities; *derived*: of the derived cells, which keep 8 edges. *saves*: weight and resource of the
penalty.""",
}


def draw_diagnostics(epochs: pd.DataFrame, title: str) -> Figure:
    """Five panels over the running epoch, a line per seed.

    Grey: epochs in which alphas are frozen. Lines break where a stage ends, since the next one has another network.
    """
    figure = Figure(figsize=(10.5, 10.0), layout="constrained")
    ends = epochs.groupby("stage")["running_epoch"].max().sort_values()[:-1]
    frozen = epochs.loc[epochs["phase"] == "weights", "running_epoch"].unique()
    panels = figure.subplots(len(_PANELS), 1, sharex=True)
    for place, column, label, line, colour in _LINES:
        style: dict[str, Any] = {"linestyle": line, "marker": "o", "markersize": 3, "color": colour, "alpha": 0.8}
        for index, (_, part) in enumerate(epochs.dropna(subset=[column]).groupby(["trial_id", "stage"])):
            panels[place].plot(part["running_epoch"], part[column], label=None if index else label, **style)
    for panel, (name, limits) in zip(panels, _PANELS.items(), strict=True):
        panel.set_title(name, loc="left", fontsize=10)
        panel.grid(color="#E0E0E0")
        panel.spines[["top", "right"]].set_visible(False)
        if not panel.lines:
            panel.text(0.5, 0.5, "not measured", transform=panel.transAxes, ha="center", va="center", color="#777777")
        elif panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        for epoch in frozen:
            panel.axvspan(epoch - 0.5, epoch + 0.5, color="#F0F0F0", linewidth=0, zorder=0)
        for end in ends:
            panel.axvline(end + 0.5, color="#999999", linestyle=":", linewidth=1)
        if limits:
            panel.set_ylim(*limits)
        else:  # from 0, so that a flat curve looks flat
            panel.set_ylim(min(0.0, panel.get_ylim()[0]), max(0.0, panel.get_ylim()[1]))
    panels[0].axhline(COLLAPSED_SKIPS, color="#D55E00", linewidth=0.8, alpha=0.6)
    panels[0].text(0.0, COLLAPSED_SKIPS + 0.2, " collapsed", transform=panels[0].get_yaxis_transform(), fontsize=8)
    panels[3].axhline(0.0, color="#999999", linewidth=0.8)
    panels[-1].set_xlabel("epoch, all stages in a row (grey: alphas frozen)")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(title, fontsize=12)
    return figure


def summarize_epochs(study: StudyTables) -> pd.DataFrame:
    """One row a variant, mean over its completed searches, of the epochs that these took their cells from: see `chosen_epochs`."""
    epochs, chosen = study.epochs, chosen_epochs(study)
    last_stage = epochs[(epochs["phase"] == "both") & (epochs["stage"] == epochs.groupby("trial_id")["stage"].transform("max"))]
    eigenvalues = last_stage.dropna(subset=["hessian_eigenvalue"]).groupby("trial_id")["hessian_eigenvalue"]
    growth = eigenvalues.last() / eigenvalues.first()  # of one network: those of two stages do not compare
    figures = chosen[[*MEANS]].astype(float).rename(columns=MEANS).assign(eigenvalue_growth=chosen["trial_id"].map(growth))
    means = figures.groupby(chosen["variant"], sort=False).mean()
    seconds = epochs.groupby("variant", sort=False)[["seconds", "diagnostic_seconds"]].sum()
    looking = 100 * seconds["diagnostic_seconds"] / seconds["seconds"]
    return means.reindex(seconds.index).assign(looking_percent=looking).reset_index()


def compare_resources(study: StudyTables, configs: Configs) -> dict[str, pd.DataFrame]:
    """The table `resources`, one row a variant: expected figures beside those of the derived cells. None in earlier studies."""
    chosen = chosen_epochs(study)
    figures = pd.DataFrame(
        {
            f"{kind}_{name}": scale * chosen[f"{kind}_{column}"].astype(float)
            for column, (name, scale) in RESOURCES.items()
            for kind in ("expected", "derived")
        }
    ).dropna(axis=1, how="all")
    if figures.empty:
        return {}
    means = figures.groupby(chosen["variant"], sort=False).mean().reset_index()
    means.insert(1, "saves", [_saves(configs[variant]) for variant in means["variant"]])
    return {"resources": means}


def _saves(config: SearchConfig) -> str:
    if isinstance(config.method, Snas):
        return config.method.penalty
    return f"{config.penalty.weight:g} x {config.penalty.resource}" if config.penalty.weight else "nothing"


def list_collapses(epochs: pd.DataFrame) -> list[str]:
    """A line for each trial whose normal cell ever collapsed; while alphas are frozen, and of candidates, a cell is as drawn."""
    collapsed = epochs[epochs["collapsed"] & (epochs["phase"] == "both")].groupby("trial_id")["running_epoch"].agg(["min", "size"])
    return [
        f"{trial}: {COLLAPSED_SKIPS} skip-connects or more in the normal cell in {size} epochs, first in epoch {first}."
        for trial, first, size in collapsed.itertuples()
    ]


def fill(answer: Answer) -> None:
    study = answer.study
    if study.epochs.empty:
        raise ConfigError(f"{study.folder}: holds no epochs yet")
    for name, epochs in study.epochs.groupby("variant", sort=False):
        answer.figures[str(name)] = partial(draw_diagnostics, epochs, f"{study.folder.name}: {name}")
    answer.conclusion += list_collapses(study.epochs) or ["No normal cell collapsed to skip-connects."]
    answer.tables["chosen_epochs"] = summarize_epochs(study)
    answer.tables |= compare_resources(study, answer.configs)


QUESTION = Question("diagnostics", "baselines", __doc__, NOTES, lambda _: True, fill, epoch_columns=COLUMNS)
build, main = QUESTION.build, QUESTION.main

if __name__ == "__main__":
    main()
