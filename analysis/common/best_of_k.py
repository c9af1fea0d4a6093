"""Best of k searches: DARTS' protocol, which searches k times and keeps the cell with the best validation accuracy.

A paper that reports the best of k reports less error than a search has on average. How much less depends on k, on the spread of the
cells, and on how well the figure that chooses agrees with the test error.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from common.figures import draw_sweep
from common.question import Answer
from common.statistics import RESAMPLES
from common.study_tables import StudyTables
from pdarts_tune.config.evaluation import ESTIMATORS
from pdarts_tune.results.tables import read_table

MOST = 20  # searches of which the best is taken
SHORT = 6  # DARTS chooses by trainings of 100 epochs and reports those of 600 (Liu et al., 2019, section 3.2)
CHOICES = {  # who chooses: column of the table, column of the searches' figures, highest first
    "by_search_accuracy": "search_accuracy",
    "by_inherited_accuracy": "inherited_accuracy",
    "by_short_training": "short_training",
    "best_possible": "accuracy",
}
NOTE = """\
What is reported where a method searches k times and keeps the cell with the best figure: the mean test error over all sets of k of
the *n* searches that have every figure. k = 1 is the mean of all. *best possible*: chosen by the test error itself, which nobody
may do. Intervals: 95 % bootstrap of searches (percentiles), where k is at most half of the distinct cells; beyond, resampling says
nothing of a best. With 8 searches they hold the true figure in 81 to 90 % of simulated cases, that of the best possible in 69 to
88 % (normal and log-normal errors, 400 studies each)."""


def expected_best(
    errors: NDArray[np.float64], scores: NDArray[np.float64], most: int, counts: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """(most, collections): the mean error of the highest score over all subsets of k = 1, ..., `most` searches.

    The j-th best of n is the best of C(n - j, k - 1) of the C(n, k) subsets, so nothing is drawn. Of equal scores each is chosen
    equally often. A collection of fewer than k searches has its best one.

    Args:
        errors, scores: (n,) of the searches.
        counts: (collections, n) how often a search is in each collection; by default once, in one.
    """
    counts = np.ones((1, errors.size), dtype=np.int64) if counts is None else counts
    places = np.unique(-scores, return_inverse=True)[1]  # from the highest score down
    ties = (places[:, None] == np.arange(places.max() + 1)).astype(np.float64)
    sizes = counts @ ties
    means = (counts * errors) @ ties / np.maximum(sizes, 1)
    total = counts.sum(axis=1, keepdims=True)
    worse = total - np.cumsum(sizes, axis=1)
    all_worse = np.ones_like(worse)  # the share of subsets whose searches all have lower scores
    results = []
    for k in range(most):
        all_worse *= np.where(total > k, np.maximum(worse - k, 0) / np.maximum(total - k, 1), 1)
        results.append((-np.diff(all_worse, axis=1, prepend=1.0) * means).sum(axis=1))
    return np.array(results)


def add_best_of_k(answer: Answer, shown: str | None) -> None:
    """Adds the table `best_of_k` of all variants, and the picture `best_of_k_curves` of the variant `shown`."""
    short, words = short_trainings(answer.study)
    table = answer.tables["best_of_k"] = compare_choices(answer.measures, short, answer.rng)
    answer.notes["best_of_k"] = f"{NOTE}{words}"
    rows = table[table["variant"] == shown]
    if len(rows) > 1:
        answer.notes["best_of_k_curves"] = f"The rows of {shown} in the table Best of k."
        answer.figures["best_of_k_curves"] = partial(draw_choices, rows)


def compare_choices(measures: pd.DataFrame, short: pd.Series, rng: np.random.Generator) -> pd.DataFrame:
    """The expected test error of the best of k completed searches, for each variant and k.

    Columns: variant, n (searches), k, and for each of CHOICES that some search has a figure for `NAME_percent` with the ends of its
    interval, `NAME_percent_low` and `NAME_percent_high`.

    Args:
        measures: one row a search, as `measure_trials` gives them.
        short: of `short_trainings`.
    """
    measures = measures[measures["status"] == "completed"].assign(short_training=measures["genotype_id"].map(short))
    choices = {name: column for name, column in CHOICES.items() if measures[column].notna().any()}
    rows = []
    for variant, searches in measures.groupby("variant", sort=False):
        own = {name: column for name, column in choices.items() if searches[column].notna().any()}  # random cells have no search
        searches = searches.dropna(subset=[*own.values(), "error_percent"]).astype(dict.fromkeys(own.values(), float))
        if "best_possible" not in own or searches.empty:
            continue
        n = len(searches)
        cells, distinct = pd.factorize(searches["genotype_id"])  # searches that found the same cell share its evaluation
        counts = rng.multinomial(len(distinct), np.full(len(distinct), 1 / len(distinct)), RESAMPLES)[:, cells]
        errors, most = searches["error_percent"].to_numpy(), min(n, MOST)
        known = len(distinct) // 2 if len(distinct) > 2 else 0  # the largest k that has an interval
        part = pd.DataFrame({"variant": variant, "n": n, "k": range(1, most + 1)})
        for name, column in own.items():
            scores = searches[column].to_numpy()
            ends = np.full((2, most), np.nan)
            if known:
                drawn = expected_best(errors, scores, min(known, most), counts)
                ends[:, : len(drawn)] = np.quantile(drawn, (0.025, 0.975), axis=1)
            part[f"{name}_percent"] = expected_best(errors, scores, most)[:, 0]
            part[f"{name}_percent_low"], part[f"{name}_percent_high"] = ends
        rows.append(part)
    columns = ["variant", "n", "k", *(f"{name}_{part}" for name in choices for part in ("percent", "percent_low", "percent_high"))]
    table = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()
    return table.reindex(columns=columns)


def short_trainings(study: StudyTables) -> tuple[pd.Series, str]:
    """By genotype_id, the validation accuracy of a short training, mean over evaluation seeds; and what it is, for readers.

    That is the accuracy after a sixth of the epochs of the recipe whose error is reported, or, if that has no validation images,
    the last one of a recipe on the same data with fewer epochs. Empty where there is neither.
    """
    columns = ["genotype_id", "data", "recipe", "recipe_id", "epochs", "status", "validation_accuracies"]
    only = {"data": list(study.evaluations["data"].unique()), "status": ["completed"]}
    runs = read_table(study.folder, "evaluations", columns, only=only)
    runs = runs[~runs["recipe"].isin(ESTIMATORS)]
    own = runs[runs["recipe_id"].isin(study.evaluations["recipe_id"])]
    followed = own.dropna(subset="validation_accuracies")
    if len(followed):
        epochs = int(followed["epochs"].iloc[0])
        epoch = max(1, epochs // SHORT)
        words = f"that after epoch {epoch} of {epochs} of the reported training"
    else:
        shorter = runs[runs["epochs"] < own["epochs"].max()].dropna(subset="validation_accuracies")
        if shorter.empty:
            return pd.Series(dtype=float), ""
        recipe = shorter["recipe_id"].value_counts().index[0]
        followed, epoch = shorter[shorter["recipe_id"] == recipe], 0
        words = f"the last one of the recipe {recipe}"
    accuracies = followed["validation_accuracies"].map(lambda curve: curve[epoch - 1])
    return accuracies.groupby(followed["genotype_id"]).mean(), f"\n*by short training*: by validation accuracy, {words}."


def draw_choices(rows: pd.DataFrame) -> Figure:
    """The rows of one variant: a line for each way to choose."""
    names = {"ci_low": "percent_low", "ci_high": "percent_high", "error_percent": "percent"}
    lines = [
        rows[["k"]].assign(line=name.replace("_", " "), **{to: rows[f"{name}_{part}"] for to, part in names.items()})
        for name in CHOICES
        if f"{name}_percent" in rows
    ]
    return draw_sweep(pd.concat(lines).dropna(subset="error_percent"), "k", "error_percent")
