"""Tables of how far one measure can be trusted to tell another: ranks, seed noise, intervals of single means."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from frames import StudyTables
from pdarts_tune.statistics import kendall_tau, mean_interval, variance_components

RANK_NOTES = """\
*tau*: Kendall's, over the evaluated cells of all variants, between accuracy at search time and in evaluation. *seed tau*: between
two evaluations of the same cells that differ in nothing but the seed; no measure can agree better with a single evaluation than
they do with each other. *disattenuated*: tau without that noise (a point estimate). Without a second evaluation seed both are
unknown, and a low tau may be noise of the evaluations rather than a gap between search and evaluation."""

SPREAD_NOTES = """\
Test error = mean of the variant + search + evaluation. *search*: standard deviation between true means of the cells that one
variant finds with several search seeds. *evaluation*: between trainings of one cell. Analysis of variance; unknown without a second
evaluation seed."""


def rank_table(study: StudyTables, measures: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    """Kendall's tau of measures at search time with evaluation accuracy, one row a measure.

    Args:
        measures: one row a trial, with `genotype_id`.
        columns: columns of `measures`, with what readers call them.
    """
    seeds = evaluations_by_seed(study)
    rows = []
    for column, name in columns.items():
        known = measures.dropna(subset=[column, "genotype_id"])
        known = known[known["genotype_id"].isin(seeds.index)]
        row: dict[str, object] = {"measure": name, "n": len(known)}
        if len(known) > 1:
            found = kendall_tau(known[column].astype(float), seeds.loc[known["genotype_id"]].to_numpy())
            row |= {"tau": found.tau, "ci_low": found.ci_low, "ci_high": found.ci_high, "p": found.p_value}
            row |= {"seed_tau": found.seed_tau, "disattenuated": found.disattenuated}
        rows.append(row)
    names = ["measure", "n", "tau", "ci_low", "ci_high", "p", "seed_tau", "disattenuated"]
    return pd.DataFrame(rows).reindex(columns=names).astype(dict.fromkeys(names[2:], float))


def evaluations_by_seed(study: StudyTables) -> pd.DataFrame:
    """Accuracy by genotype (rows) and evaluation seed (columns), of the genotypes that were evaluated with every seed."""
    finished = study.evaluations[study.evaluations["status"] == "completed"]
    return finished.pivot_table(index="genotype_id", columns="seed", values="accuracy").dropna()


def spread_table(study: StudyTables, measures: pd.DataFrame) -> pd.DataFrame:
    """Variance components of the test error: in each variant, and over all of them with their means taken out."""
    finished = study.evaluations[study.evaluations["status"] == "completed"]
    joined = measures[["variant", "trial_id", "genotype_id"]].merge(finished[["genotype_id", "accuracy"]], on="genotype_id")
    joined["error"] = 100 * (1 - joined["accuracy"])
    groups = [*joined.groupby("variant", sort=False), ("all variants", joined)]
    rows = []
    for name, part in groups if len(joined) else ():
        found = variance_components(part["error"], part["trial_id"].tolist(), part["variant"].tolist())
        sizes = {"searches": found.searches, "evaluations": found.evaluations}
        spreads = {"search_sd_points": found.search_sd, "evaluation_sd_points": found.evaluation_sd}
        rows.append({"variant": name} | sizes | spreads | {"search_share_percent": 100 * found.search_share})
    return pd.DataFrame(rows)


def mean_intervals(measures: pd.DataFrame, column: str, rng: np.random.Generator) -> pd.DataFrame:
    """Mean of a measure over the seeds of each variant with its 95 % interval (BCa bootstrap): n, mean, ci_low, ci_high."""
    rows = []
    for variant, trials in measures.groupby("variant", sort=False):
        values = trials[column].dropna().astype(float).to_numpy()
        row = {"variant": variant, "n": len(values), "mean": math.nan, "ci_low": math.nan, "ci_high": math.nan}
        if len(values):
            low, high = mean_interval(values, rng)
            row |= {"mean": float(values.mean()), "ci_low": low, "ci_high": high}
        rows.append(row)
    return pd.DataFrame(rows)
