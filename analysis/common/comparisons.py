"""Variants against a baseline, paired by seed: the tables, and the sentences that they support.

A difference is claimed if its interval excludes 0 and its Holm-adjusted p-value is below 0.05, and not otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.ranks import RankAgreement, tau_within_variants
from common.section import show, show_interval
from common.statistics import (
    holm,
    mean_interval,
    mean_sd,
    minimum_detectable_difference,
    paired_comparison,
    smallest_p,
    variance_components,
)
from common.study_tables import OF_EVALUATIONS, StudyTables, estimate_note

LEVEL = 0.05

COMPARISON_NOTES = """\
*95 % interval*: bias-corrected and accelerated bootstrap of the pairs, too narrow with few of them. *p*: exact two-sided sign-flip
permutation test. *smallest p*: the smallest that n pairs can give (0.25 with 3, 0.008 with 8). The rows are one family: *p (Holm)*
is adjusted for all of them. A difference is claimed if its interval excludes 0 and its Holm-adjusted p is below 0.05, and not
otherwise. That none is claimed does not show that there is none. *detectable*: the true difference that is claimed, by all of this
rule, in 80 % of simulated studies (normal differences of the spread seen here; no difference in the family's other rows). *none*:
these pairs cannot claim one, however large."""

RANK_NOTES = """\
*tau*: Kendall's, between accuracy at search time and in evaluation. It counts pairs of cells of one variant, all variants
together: search networks of two variants differ in depth, operations or method, so their accuracies do not compare. Searches of one
variant that found the same cell are one, with the mean of their accuracies at search time. A cell of several variants is compared
within each of them, and counts once in *n*, the number of cells. *95 % interval*: bootstrap of cells within variants; none with
fewer than 10 pairs. *p*: permutation test within variants. *seed tau*: between two evaluations of the same cells that differ in the
seed alone, of the same pairs. No measure can agree better with a single evaluation than they do with each other. *disattenuated*:
tau without that noise (a point estimate). Without a second evaluation seed both are unknown, and a low tau may be noise of the
evaluations rather than a gap between search and evaluation."""

SPREAD_NOTES = """\
Test error = mean of the variant + search + evaluation. *search*: standard deviation between true means of the cells that one
variant finds with several search seeds. *evaluation*: between trainings of one cell. Searches that found the same cell share its
evaluations: within a variant they are one, and over all variants its evaluations count once. Analysis of variance; unknown without
a second evaluation seed."""

_FIGURES = ["difference", "ci_low", "ci_high", "p", "min_p", "p_holm", "detectable"]
_RANKS = [field.name for field in fields(RankAgreement)]


def summarize(measures: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """One row a variant: how many seeds, how many of them evaluated; of completed searches each column's mean and `_sd`."""
    rows = []
    for variant, trials in measures.groupby("variant", sort=False):
        completed = trials[trials["status"] == "completed"]
        row: dict[str, Any] = {"variant": variant, "seeds": len(trials), "evaluated": int(trials["error_percent"].count())}
        for column in columns:
            row[column], row[f"{column}_sd"] = mean_sd(completed[column].dropna().astype(float))
        rows.append(row)
    return pd.DataFrame(rows)


def adjust(table: pd.DataFrame, p: str = "p") -> None:
    """Sets the column `<p>_holm`: the p-values of the table, one family, adjusted."""
    tested = table[p].notna()
    table.loc[tested, f"{p}_holm"] = holm(table.loc[tested, p].tolist())


def compare_variants(measures: pd.DataFrame, column: str, baseline: str, rng: np.random.Generator) -> pd.DataFrame:
    """Every other variant minus `baseline` in the measure `column`, in its unit; see `compare_pairs`."""
    others = [str(variant) for variant in measures["variant"].unique() if variant != baseline]
    return compare_pairs({variant: pair_up(measures, column, variant, baseline) for variant in others}, rng)


def pair_up(measures: pd.DataFrame, column: str, variant: str, baseline: str) -> NDArray[np.float64]:
    """(n, 2): the measure of both variants, for the seeds that have it for both."""
    keyed = measures.dropna(subset=column).set_index(["seed", "split_seed"])
    sides = [keyed.loc[keyed["variant"] == name, column].astype(float) for name in (variant, baseline)]
    pairs: NDArray[np.float64] = pd.concat(sides, axis=1, join="inner").to_numpy(dtype=float)
    return pairs


def compare_pairs(pairs: Mapping[str, NDArray[np.float64]], rng: np.random.Generator, names: str = "variant") -> pd.DataFrame:
    """The family of comparisons of one question: of each (n, 2) array, the first column minus the second.

    Columns: `names`, n (pairs), difference, ci_low, ci_high, p, min_p (the smallest that n pairs can give), p_holm (adjusted for
    the rows that have a p), detectable (claimed with 80 % power at the spread seen; inf: none is, however large) and claimed.
    """
    rows = []
    tests = sum(len(sides) > 0 for sides in pairs.values())
    for name, sides in pairs.items():
        row: dict[str, Any] = {names: name, "n": len(sides)}
        if len(sides):
            row |= vars(paired_comparison(sides[:, 0], sides[:, 1], rng))
            apart = sides[:, 0] - sides[:, 1]
            spread = mean_sd(apart)[1] if np.ptp(apart) > 1e-9 else 0.0
            row["detectable"] = minimum_detectable_difference(spread, len(sides), tests) or math.nan  # nan: the spread is unknown
        rows.append(row)
    table = pd.DataFrame(rows, columns=[names, "n", *_FIGURES]).astype({"n": int} | dict.fromkeys(_FIGURES, float))
    adjust(table)
    excludes_zero = (table["ci_low"] > 0) | (table["ci_high"] < 0)
    return table.assign(claimed=excludes_zero & (table["p_holm"] < LEVEL))


def conclude(
    comparisons: pd.DataFrame, baseline: str, measure: str, hypothesis: str, among: str = "variant", unit: str = "points"
) -> tuple[str, str]:
    """Two sentences: what the comparisons show or why they cannot, and what could have been claimed.

    Args:
        measure: what is compared, such as "evaluation error".
        hypothesis: what a null result does not support, such as "growing the depth finds better cells".
        among: what is compared with the baseline, such as "variant outside the 2 x 2 table".
    """
    tested = comparisons[comparisons["n"] > 0]
    if tested.empty:
        nothing = f"Nothing can be compared: no {among} shares a seed with {baseline} for which both have a finished evaluation."
        return nothing, f"So these data say nothing about whether {hypothesis}."
    rows = tested.to_dict("records")
    power = describe_power(tested[~tested["claimed"]], unit)
    if tested["claimed"].any():
        shown = "; ".join(f"{row['variant']} {describe_row(row, unit)}" for row in rows if row["claimed"])
        rest = ", ".join(row["variant"] for row in rows if not row["claimed"])
        first = f"Shown, as difference in {measure} from {baseline} (positive: {baseline} has the lower): {shown}."
        return first, (f"Not shown for {rest}: {power}." if rest else "Every comparison of this question is shown.")
    widest = max(rows, key=lambda row: abs(row["difference"]))
    second = f"The largest difference in {measure} is that of {widest['variant']}, {describe_row(widest, unit)}"
    reason = cannot_show(tested)
    if reason is not None:
        return f"W{reason[1:]}: these data cannot show that {hypothesis}.", f"{second}."
    first = f"No {among} is shown to differ from {baseline} (smallest Holm-adjusted p {show(tested['p_holm'].min(), 3)}): "
    return first + f"these data do not support that {hypothesis}.", f"{second}; {power}."


def describe_power(comparisons: pd.DataFrame, unit: str = "points") -> str:
    """What true difference could have been claimed, from the comparison with the most power to that with the least."""
    known = comparisons.dropna(subset="detectable")
    sizes = known.loc[np.isfinite(known["detectable"]), "detectable"]
    never = known.loc[np.isinf(known["detectable"]), known.columns[0]]
    if known.empty:
        return "the pairs give no idea of what difference could have been claimed"
    if sizes.empty:
        return "no true difference, however large, could have been claimed"
    span = " to ".join(dict.fromkeys(show(size, 2) for size in (sizes.min(), sizes.max())))
    text = f"a true difference of {span} {unit} could have been claimed (80 % power)"
    return text + (f", but none, however large, of {', '.join(never)}" if len(never) else "")


def cannot_show(comparisons: pd.DataFrame) -> str | None:
    """Why no difference, however large, could be claimed in this family; None where one could be."""
    tested = comparisons[comparisons["n"] > 0]
    pairs = int(tested["n"].max())
    smallest = smallest_p(pairs)
    adjusted = min(1.0, len(tested) * smallest)
    if adjusted < LEVEL:
        return None
    reason = f"smallest possible p {show(smallest, 3)}"
    if smallest < LEVEL:
        reason += f", {show(adjusted, 3)} after Holm's correction for {len(tested)} comparisons"
    return f"with n = {pairs} a paired sign-flip test cannot reach {LEVEL} ({reason})"


def describe_row(row: Mapping[Any, Any], unit: str = "points") -> str:
    interval = show_interval(row["ci_low"], row["ci_high"], 2)
    p_values = f"p {show(row['p'], 3)}, Holm {show(row['p_holm'], 3)}"
    return f"{show(row['difference'], 2, sign=True)} {unit} (95 % interval {interval}, {p_values})"


def rank_table(study: StudyTables, measures: pd.DataFrame, columns: Mapping[str, str], rng: np.random.Generator) -> pd.DataFrame:
    """Kendall's tau of measures at search time, and of estimates, with evaluation accuracy, within variants, one row a measure.

    Args:
        measures: one row a trial, with `genotype_id`.
        columns: columns of `measures`, with their names for readers.
    """
    completed = study.evaluations[study.evaluations["status"] == "completed"]
    seeds = completed.pivot_table(index="genotype_id", columns="seed", values="accuracy")  # nan where a seed is not there
    if not estimate_note(study):  # else both sides would be the same estimates
        for recipe in map(str, study.estimates["recipe_id"].unique()):
            known = study.estimates[study.estimates["recipe_id"] == recipe]
            measures = measures.assign(**{recipe: measures["genotype_id"].map(known.set_index("genotype_id")["accuracy"])})
            columns = {**columns, recipe: f"estimate ({recipe})"}
    rows = []
    for column, name in columns.items():
        known = measures[measures[column].notna() & measures["genotype_id"].isin(seeds.index)]
        cells = known.astype({column: float}).groupby(["variant", "genotype_id"], sort=False)[column].mean().reset_index()
        row: dict[str, object] = {"measure": name, "n": 0, "pairs": 0}
        if len(cells):
            evaluations = seeds.loc[cells["genotype_id"]].to_numpy(dtype=float)
            names = cells["variant"].tolist(), cells["genotype_id"].tolist()
            row |= vars(tau_within_variants(cells[column], evaluations, *names, rng))
        rows.append(row)
    return pd.DataFrame(rows, columns=["measure", *_RANKS]).astype(dict.fromkeys(_RANKS[2:], float))


def anytime_table(study: StudyTables) -> dict[str, pd.DataFrame]:
    """`anytime`: the estimated accuracy of the cell that would be derived after quarters of a search, by variant.

    Means over the searches with estimates of their epochs; nothing where there are none.
    """
    if "estimated_accuracy" not in study.epochs:
        return {}
    epochs = study.epochs.assign(search_seconds=study.epochs.groupby("trial_id")["seconds"].cumsum())
    last = epochs.groupby("trial_id")["running_epoch"].transform("max")
    quarters = [epochs["running_epoch"] == (share * (last + 1)).round().clip(lower=1) - 1 for share in (0.25, 0.5, 0.75, 1)]
    points = epochs[np.any(quarters, axis=0)].dropna(subset="estimated_accuracy")
    points = points.assign(epochs=points["running_epoch"] + 1, percent=100 * points["estimated_accuracy"])
    columns = {"n": ("trial_id", "size"), "search_seconds": ("search_seconds", "mean")}
    columns |= {"estimated_percent": ("percent", "mean"), "estimated_percent_sd": ("percent", "std")}
    return {"anytime": points.groupby(["variant", "epochs"], sort=False, as_index=False).agg(**columns)}


def spread_table(study: StudyTables, measures: pd.DataFrame) -> pd.DataFrame:
    """Variance components of the test error: in each variant, and over all of them with their means taken out."""
    completed = study.evaluations[study.evaluations["status"] == "completed"]
    cells = measures[["variant", "genotype_id"]].dropna().drop_duplicates()
    joined = cells.merge(completed[["genotype_id", "accuracy"]], on="genotype_id")
    joined["error"] = 100 * (1 - joined["accuracy"])
    rows = []
    for name, part in [*joined.groupby("variant", sort=False), ("all variants", joined)] if len(joined) else ():
        spread = variance_components(part["error"], part["genotype_id"], part["variant"])
        row = {"variant": name, "cells": spread.cells, "evaluations": spread.evaluations}
        row |= {"search_sd_points": spread.search_sd, "evaluation_sd_points": spread.evaluation_sd}
        rows.append(row | {"search_share_percent": 100 * spread.search_share})
    return pd.DataFrame(rows)


def mean_intervals(measures: pd.DataFrame, column: str, rng: np.random.Generator) -> pd.DataFrame:
    """Mean of a measure over the searches of each variant with its 95 % interval (BCa bootstrap): n, mean, ci_low, ci_high.

    Searches that found the same cell share its evaluation. Of measures of evaluations, n is the number of distinct cells, and the
    interval is drawn from those.
    """
    key = "genotype_id" if column in OF_EVALUATIONS else "trial_id"
    rows = []
    for variant, trials in measures.groupby("variant", sort=False):
        known = trials.dropna(subset=column)
        values, cells = known[column].to_numpy(dtype=float), known[key].tolist()
        low, high = mean_interval(values, rng, cells) if len(known) else (math.nan, math.nan)
        rows.append({"variant": variant, "n": len(set(cells)), "mean": mean_sd(values)[0], "ci_low": low, "ci_high": high})
    return pd.DataFrame(rows)


def tradeoff_frame(measures: pd.DataFrame, rng: np.random.Generator, *costs: str) -> pd.DataFrame:
    """What `draw_tradeoff` draws of completed searches: error against costs; the fronts are those of the means."""
    searched = measures[measures["status"] == "completed"]
    points = mean_intervals(searched, "error_percent", rng).rename(columns={"ci_low": "low", "ci_high": "high"})
    for cost in costs:
        points[[cost, f"{cost}_low", f"{cost}_high"]] = mean_intervals(searched, cost, rng)[["mean", "ci_low", "ci_high"]]
        points[f"{cost}_front"] = find_front(points[["mean", cost]].to_numpy(dtype=float))
    return points


def find_front(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which rows no other row dominates. A row dominates if no value of it is larger and one is smaller; (rows, values)."""
    beaten = [np.any(np.all(values <= row, axis=1) & np.any(values < row, axis=1)) for row in values]
    return ~np.array(beaten, dtype=bool)
