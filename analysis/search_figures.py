"""One search of a variant looked at closely: its cells, how its alphas moved, and how long its stages took."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

import frames
from frames import StudyTables
from pdarts_tune.figures import draw_alpha_evolution, draw_genotype, draw_timeline
from pdarts_tune.genotype import Genotype
from pdarts_tune.results import read_rows

SEARCH_NOTES = {
    "timeline": "Where the time of a search goes, stage by stage.",
    "cells": "Both cells that one search ended with: the first completed one of the variant that the others are compared with.",
    "alphas_normal": "The same search: probabilities of the operations on every edge of the normal cell.",
    "alphas_reduce": "And of the reduction cell.",
}


def draw_search(study: StudyTables, variant: str | None) -> dict[str, Figure]:
    """The stage timeline of all variants, and cells and alphas of the first completed search of `variant`."""
    figures = {}
    if len(study.epochs):
        figures["timeline"] = draw_timeline(label_stages(study))
    done = study.trials[(study.trials["variant"] == variant) & (study.trials["status"] == "completed")]
    if done.empty:
        return figures
    trial = done.sort_values(["seed", "split_seed"]).iloc[0]
    ends = [row for row in read_rows(study.folder, "genotypes", trial["trial_id"]) if row["max_skips"] == trial["max_skips"]]
    if ends:
        last = max(ends, key=lambda row: row["stage"])
        figures["cells"] = draw_genotype(Genotype.parse(last["genotype"]), trial["trial_id"])
    alphas = pd.DataFrame(read_rows(study.folder, "alphas", trial["trial_id"]))
    if len(alphas):
        for cell in ("normal", "reduce"):
            figures[f"alphas_{cell}"] = draw_alpha_evolution(alphas, cell)
    return figures


def label_stages(study: StudyTables) -> pd.DataFrame:
    """frames.stage_times with cells x operations of each stage."""
    plans = study.trials.drop_duplicates("variant").set_index("variant")
    times = frames.stage_times(study.epochs)

    def part(column: str, variant: str, stage: int) -> str:
        values = str(plans.loc[variant, column]).split("-")
        return values[min(stage, len(values)) - 1]  # candidates of a random search share the plan's one stage

    labels = [
        f"{part('depths', variant, stage)}x{part('operations', variant, stage)}"
        for variant, stage in zip(times["variant"], times["stage"], strict=True)
    ]
    return times.assign(label=labels)
