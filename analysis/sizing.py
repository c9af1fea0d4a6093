"""Sizes: how small may a training be that still tells cells apart?

python analysis/sizing.py --results results

Reads the tables of the study sizing, whose cells are trained twice or more by recipes of several sizes. A setting is a data set
with a recipe.
"""

from __future__ import annotations

import pandas as pd

import rq4_transfer
from common.question import Answer, Question
from common.section import show
from common.statistics import variance_components
from pdarts_tune.config.serialize import short_name

NOTES = {name: rq4_transfer.NOTES[name] for name in ("cells", "correlations")} | {
    "sizes": """\
How far cells differ in each setting, and how far trainings of one cell do: standard deviations of test errors, in points (analysis
of variance, unknown with one training a cell). *share*: the cells' part of the variance of one training. *seconds*: of one
training, on the study's device. A setting tells cells apart where the first deviation is well above the second."""
}


def fill(answer: Answer) -> None:
    evaluations = answer.study.evaluations
    sizes = split_spread(evaluations[evaluations["status"] == "completed"])
    answer.tables["sizes"] = sizes
    for row in sizes.to_dict("records"):
        between, within = (show(row[f"between_{name}_points"], 2) for name in ("cells", "trainings"))
        line = f"cells differ by {between} points, trainings of one cell by {within} (standard deviations)"
        answer.conclusion.append(f"{short_name(row['setting'])}: {line}; a training takes {show(row['seconds'], 0)} s.")
    rq4_transfer.compare_orders(answer)


def split_spread(finished: pd.DataFrame) -> pd.DataFrame:
    """A row a setting. `finished`: the study's completed evaluations."""
    rows = []
    for setting, runs in finished.groupby("setting", sort=False):
        errors = 100 * (1 - runs["accuracy"].astype(float))
        spread = variance_components(errors, runs["genotype_id"].tolist())
        row = {"setting": setting, "cells": spread.cells, "trainings": spread.evaluations, "error_percent": errors.mean()}
        row |= {"between_cells_points": spread.search_sd, "between_trainings_points": spread.evaluation_sd}
        rows.append(row | {"share_percent": 100 * spread.search_share, "seconds": runs["seconds"].astype(float).mean()})
    return pd.DataFrame(rows)


QUESTION = Question("sizing", "sizing", __doc__, NOTES, rq4_transfer.QUESTION.is_about, fill, across_settings=True)
build, main = QUESTION.build, QUESTION.main

if __name__ == "__main__":
    main()
