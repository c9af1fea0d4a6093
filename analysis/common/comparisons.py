"""Variants against a baseline, paired by seed: the figures, the table and the two sentences that they support.

A difference is claimed if its interval excludes 0 and its Holm-adjusted p-value is below 0.05, and not otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.section import show, show_interval
from common.statistics import (
    holm,
    mean_interval,
    mean_sd,
    minimum_detectable_difference,
    paired_comparison,
    smallest_p,
    tau_within_variants,
    variance_components,
)
from common.study_tables import StudyTables

# MERGED DOCSTRING
# Tables of how far one measure can be trusted to tell another: ranks, seed noise, intervals of single means.

LEVEL = 0.05

COMPARISON_NOTES = """\
*95 % interval*: bias-corrected and accelerated bootstrap of the pairs, too narrow with few of them. *p*: exact two-sided sign-flip
permutation test; *smallest p*: what n pairs can give at best (0.25 with 3, 0.008 with 8). The rows are one family: *p (Holm)* is
adjusted for all of them. A difference is claimed if its interval excludes 0 and its Holm-adjusted p is below 0.05, and not
otherwise; that none is claimed does not show that there is none. *detectable*: the true difference that is claimed, by all of that
rule, in 80 % of simulated studies (normal differences of the spread seen here; no difference in the family's other rows); *none*:
these pairs cannot claim one, however large."""


_COLUMNS = ["n", "difference", "ci_low", "ci_high", "p", "min_p", "p_holm", "detectable"]


def compare_variants(measures: pd.DataFrame, column: str, baseline: str, rng: np.random.Generator) -> pd.DataFrame:
    """Every other variant minus `baseline` in the measure `column`, in its unit; see compare_pairs."""
    others = [str(variant) for variant in measures["variant"].unique() if variant != baseline]
    return compare_pairs({variant: pair_up(measures, column, variant, baseline) for variant in others}, rng)


def pair_up(measures: pd.DataFrame, column: str, variant: str, baseline: str) -> NDArray[np.float64]:
    """(n, 2): the measure of both variants, for the seeds that have it for both."""
    keyed = measures.dropna(subset=column).set_index(["seed", "split_seed"])
    sides = [keyed.loc[keyed["variant"] == name, column].astype(float) for name in (variant, baseline)]
    pairs: NDArray[np.float64] = pd.concat(sides, axis=1, join="inner").to_numpy(dtype=float)
    return pairs


def compare_pairs(pairs: Mapping[str, NDArray[np.float64]], rng: np.random.Generator, names: str = "variant") -> pd.DataFrame:
    """The family of comparisons that one question asks: of each (n, 2) array, the first column minus the second.

    Columns: `names`, n (pairs), difference, ci_low, ci_high, p, min_p (the smallest that n pairs can give), p_holm (adjusted for
    the rows that have a p), detectable (claimed with 80 % power at the spread seen; inf: none is, however large) and claimed.
    """
    rows = []
    tests = sum(len(sides) > 0 for sides in pairs.values())
    for name, sides in pairs.items():
        row: dict[str, Any] = {names: name} | dict.fromkeys(_COLUMNS, math.nan) | {"n": len(sides)}
        if len(sides):
            found = paired_comparison(sides[:, 0], sides[:, 1], rng)
            apart = sides[:, 0] - sides[:, 1]
            spread = mean_sd(apart)[1] if np.ptp(apart) > 1e-9 else 0.0
            row |= {"difference": found.mean_difference, "ci_low": found.ci_low, "ci_high": found.ci_high}
            row |= {"p": found.p_value, "min_p": found.min_p}
            row["detectable"] = minimum_detectable_difference(spread, len(sides), tests) or math.nan  # nan: no idea of the spread
        rows.append(row)
    comparisons = pd.DataFrame(rows, columns=[names, *_COLUMNS]).astype({"n": int} | dict.fromkeys(_COLUMNS[1:], float))
    tested = comparisons["p"].notna()
    comparisons.loc[tested, "p_holm"] = holm(comparisons.loc[tested, "p"].tolist())
    excludes_zero = (comparisons["ci_low"] > 0) | (comparisons["ci_high"] < 0)
    return comparisons.assign(claimed=excludes_zero & (comparisons["p_holm"] < LEVEL))


def conclude(comparisons: pd.DataFrame, baseline: str, measure: str, hypothesis: str, among: str = "variant") -> tuple[str, str]:
    """Two sentences: what the comparisons show or why they cannot, and what could have been claimed.

    Args:
        measure: what is compared, in points, such as "evaluation error".
        hypothesis: what a null result does not support, such as "growing the depth finds better cells".
        among: what is compared with the baseline, such as "variant outside the 2 x 2 table".
    """
    tested = comparisons[comparisons["n"] > 0]
    if tested.empty:
        nothing = f"Nothing can be compared: no {among} shares a seed with {baseline} for which both have a finished evaluation."
        return nothing, f"So these data say nothing about whether {hypothesis}."
    rows = tested.to_dict("records")
    claimed = [row for row in rows if row["claimed"]]
    power = say_power(tested[~tested["claimed"]])
    if claimed:
        shown = "; ".join(f"{row['variant']} {describe_row(row)}" for row in claimed)
        rest = ", ".join(row["variant"] for row in rows if not row["claimed"])
        first = f"Shown, as difference in {measure} from {baseline} (positive: {baseline} has the lower): {shown}."
        return first, (f"Not shown for {rest}: {power}." if rest else "Every comparison of this question is shown.")
    widest = max(rows, key=lambda row: abs(row["difference"]))
    second = f"The largest difference in {measure} is that of {widest['variant']}, {describe_row(widest)}"
    reason = cannot_show(tested)
    if reason is not None:
        return f"W{reason[1:]}: these data cannot show that {hypothesis}.", f"{second}."
    second = f"{second}; {power}."
    first = f"No {among} is shown to differ from {baseline} (smallest Holm-adjusted p {show(tested['p_holm'].min(), 3)}): "
    return first + f"these data do not support that {hypothesis}.", second


def say_power(comparisons: pd.DataFrame) -> str:
    """What true difference could have been claimed, from the comparison that sees most to the one that sees least."""
    known = comparisons.dropna(subset="detectable")
    sizes = known.loc[np.isfinite(known["detectable"]), "detectable"]
    never = known.loc[np.isinf(known["detectable"]), known.columns[0]]
    if known.empty:
        return "the pairs give no idea of what difference could have been claimed"
    if sizes.empty:
        return "no true difference, however large, could have been claimed"
    span = " to ".join(dict.fromkeys(show(size, 2) for size in (sizes.min(), sizes.max())))
    text = f"a true difference of {span} points could have been claimed (80 % power)"
    return text + (f", but none, however large, of {', '.join(never)}" if len(never) else "")


def cannot_show(comparisons: pd.DataFrame) -> str | None:
    """Why no difference, however large, could be claimed in this family; None where one could be."""
    tested = comparisons[comparisons["n"] > 0]
    pairs = int(tested["n"].max())
    smallest, adjusted = smallest_p(pairs), min(1.0, len(tested) * smallest_p(pairs))
    if adjusted < LEVEL:
        return None
    reason = f"smallest possible p {show(smallest, 3)}"
    if smallest < LEVEL:
        reason += f", {show(adjusted, 3)} after Holm's correction for {len(tested)} comparisons"
    return f"with n = {pairs} a paired sign-flip test cannot reach {LEVEL} ({reason})"


def describe_row(row: dict[Any, Any]) -> str:
    interval = show_interval(row["ci_low"], row["ci_high"], 2)
    p_values = f"p {show(row['p'], 3)}, Holm {show(row['p_holm'], 3)}"
    return f"{show(row['difference'], 2, sign=True)} points (95 % interval {interval}, {p_values})"


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
