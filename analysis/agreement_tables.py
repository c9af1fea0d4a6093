"""Tables of how far one measure can be trusted to tell another: ranks, seed noise, intervals of single means."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from frames import StudyTables
from pdarts_tune.statistics import mean_interval, tau_within_variants, variance_components

RANK_NOTES = """\
*tau*: Kendall's, between accuracy at search time and in evaluation, of pairs of cells that one variant found, all variants
together: search networks of two variants differ in depth, operations or method, so that their accuracies are not compared.
Searches of one variant that found the same cell are one, with the mean of their accuracies at search time. A cell that several
variants found is compared within each of them, and counts once in *n*, the number of cells. *95 % interval*: bootstrap of cells
within variants; none with fewer than 10 pairs. *p*: permutation test within variants. *seed tau*: between two evaluations of the
same cells that differ in nothing but the seed, of the same pairs; no measure can agree better with a single evaluation than they do
with each other. *disattenuated*: tau without that noise (a point estimate). Without a second evaluation seed both are unknown, and
a low tau may be noise of the evaluations rather than a gap between search and evaluation."""

SPREAD_NOTES = """\
Test error = mean of the variant + search + evaluation. *search*: standard deviation between true means of the cells that one
variant finds with several search seeds. *evaluation*: between trainings of one cell. Searches that found the same cell share its
evaluations: within a variant they are one, and over all variants its evaluations count once. Analysis of variance; unknown without
a second evaluation seed."""


def rank_table(study: StudyTables, measures: pd.DataFrame, columns: dict[str, str], rng: np.random.Generator) -> pd.DataFrame:
    """Kendall's tau of measures at search time with evaluation accuracy, within variants, one row a measure.

    Args:
        measures: one row a trial, with `genotype_id`.
        columns: columns of `measures`, with what readers call them.
    """
    finished = study.evaluations[study.evaluations["status"] == "completed"]
    seeds = finished.pivot_table(index="genotype_id", columns="seed", values="accuracy")  # nan where a seed is not there
    rows = []
    for column, name in columns.items():
        known = measures[measures[column].notna() & measures["genotype_id"].isin(seeds.index)]
        cells = known.astype({column: float}).groupby(["variant", "genotype_id"], sort=False)[column].mean().reset_index()
        row: dict[str, object] = {"measure": name, "n": 0, "pairs": 0}
        if len(cells):
            evaluated = seeds.loc[cells["genotype_id"]].to_numpy(dtype=float)
            found = tau_within_variants(cells[column], evaluated, cells["variant"].tolist(), cells["genotype_id"].tolist(), rng)
            row |= {"n": found.n, "pairs": found.pairs, "tau": found.tau, "ci_low": found.ci_low, "ci_high": found.ci_high}
            row |= {"p": found.p_value, "seed_tau": found.seed_tau, "disattenuated": found.disattenuated}
        rows.append(row)
    names = ["measure", "n", "pairs", "tau", "ci_low", "ci_high", "p", "seed_tau", "disattenuated"]
    return pd.DataFrame(rows).reindex(columns=names).astype(dict.fromkeys(names[3:], float))


def spread_table(study: StudyTables, measures: pd.DataFrame) -> pd.DataFrame:
    """Variance components of the test error: in each variant, and over all of them with their means taken out."""
    finished = study.evaluations[study.evaluations["status"] == "completed"]
    cells = measures[["variant", "genotype_id"]].dropna().drop_duplicates()
    joined = cells.merge(finished[["genotype_id", "accuracy"]], on="genotype_id")
    joined["error"] = 100 * (1 - joined["accuracy"])
    groups = [*joined.groupby("variant", sort=False), ("all variants", joined)]
    rows = []
    for name, part in groups if len(joined) else ():
        found = variance_components(part["error"], part["genotype_id"].tolist(), part["variant"].tolist())
        sizes = {"cells": found.cells, "evaluations": found.evaluations}
        spreads = {"search_sd_points": found.search_sd, "evaluation_sd_points": found.evaluation_sd}
        rows.append({"variant": name} | sizes | spreads | {"search_share_percent": 100 * found.search_share})
    return pd.DataFrame(rows)


def mean_intervals(measures: pd.DataFrame, column: str, rng: np.random.Generator) -> pd.DataFrame:
    """Mean of a measure over the searches of each variant with its 95 % interval (BCa bootstrap): n, mean, ci_low, ci_high.

    Searches that found the same cell share its evaluation. In what an evaluation gave, n is the number of distinct cells, which the
    interval is drawn from.
    """
    evaluated = column in ("error_percent", "gap_points")
    rows = []
    for variant, trials in measures.groupby("variant", sort=False):
        known = trials.dropna(subset=column)
        cells = known["genotype_id" if evaluated else "trial_id"].tolist()
        row = {"variant": variant, "n": len(set(cells)), "mean": math.nan, "ci_low": math.nan, "ci_high": math.nan}
        if len(known):
            values = known[column].astype(float).to_numpy()
            low, high = mean_interval(values, rng, cells)
            row |= {"mean": float(values.mean()), "ci_low": low, "ci_high": high}
        rows.append(row)
    return pd.DataFrame(rows)
