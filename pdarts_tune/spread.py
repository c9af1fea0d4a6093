"""How far values spread, and how much of it is the search's and how much the evaluation's.

Part of `statistics.py`, which is where to import from.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from pdarts_tune.paired import finite_values


def mean_sd(values: ArrayLike) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1); the latter is nan for a single value.

    Raises:
        ValueError: no values, or one that is not a finite number.
    """
    numbers = finite_values(values, "values")
    return float(numbers.mean()), float(numbers.std(ddof=1)) if numbers.size > 1 else math.nan


@dataclass(frozen=True)
class Components:
    """y = mean of its variant + search + evaluation, with independent effects of the search and of the evaluation seed."""

    cells: int  # distinct ones
    evaluations: int  # of all cells together
    search_sd: float  # of true means between cells that one variant found; 0 if they differ by less than evaluations explain
    evaluation_sd: float  # between evaluations of one cell

    @property
    def search_share(self) -> float:
        """The search seed's part of the variance of a single evaluation; nan if both are unknown or 0."""
        total = self.search_sd**2 + self.evaluation_sd**2
        return self.search_sd**2 / total if total > 0 else math.nan


def variance_components(values: ArrayLike, cells: Sequence[Hashable], variants: Sequence[Hashable] | None = None) -> Components:
    """Splits the spread of evaluations into that of the search seed and that of the evaluation seed.

    The analysis of variance estimator of the nested random effects model (Searle, Casella & McCulloch, 1992, section 3.6), which
    with equal numbers of evaluations is REML's wherever it is positive. Means of variants are taken out first. A component is nan
    where nothing was repeated that could show it: both without two evaluations of one cell.

    Searches of one variant that found the same cell are one. A cell of several variants is compared with the others of each, and
    the spread of its evaluations, which are the same ones, counts once.

    Args:
        values: one an evaluation, for each variant that found its cell.
        cells: the cell that each value is of.
        variants: the variant that each value is of; without it, all are of one.

    Raises:
        ValueError: not a non-empty list of finite numbers with as many labels, or a cell whose values differ between variants.
    """
    numbers = finite_values(values, "values")
    strata = list(variants) if variants is not None else [None] * numbers.size
    if len(cells) != numbers.size or len(strata) != numbers.size:
        raise ValueError(f"variance_components: {numbers.size} values, {len(cells)} cells, {len(strata)} variants")
    groups: dict[Hashable, dict[Hashable, list[float]]] = {}
    for number, cell, variant in zip(numbers, cells, strata, strict=True):
        groups.setdefault(variant, {}).setdefault(cell, []).append(float(number))
    between = unit = 0.0  # a sum of squares, and the sum that the average size of a cell follows from
    for found in groups.values():
        sizes = np.array([len(group) for group in found.values()])
        means = np.array([np.mean(group) for group in found.values()])
        between += float(np.sum(sizes * (means - np.average(means, weights=sizes)) ** 2))
        unit += float(np.sum(sizes) - np.sum(sizes**2) / np.sum(sizes))
    distinct: dict[Hashable, list[float]] = {}
    for found in groups.values():
        for cell, group in found.items():
            if sorted(distinct.setdefault(cell, group)) != sorted(group):
                raise ValueError(f"variance_components: cell {cell} has other evaluations in one variant than in another")
    within = sum(float(np.sum((np.array(group) - np.mean(group)) ** 2)) for group in distinct.values())
    count = sum(map(len, distinct.values()))
    free_between, free_within = sum(map(len, groups.values())) - len(groups), count - len(distinct)
    if not free_within:
        return Components(len(distinct), count, math.nan, math.nan)
    evaluation = within / free_within
    search = (between / free_between - evaluation) / (unit / free_between) if free_between else math.nan
    return Components(len(distinct), count, math.sqrt(max(search, 0.0)) if search == search else math.nan, math.sqrt(evaluation))


def brown_forsythe(*samples: ArrayLike) -> float:
    """The p-value of equal spreads (Brown & Forsythe, 1974: Levene's test about medians); nan if there is no spread to compare.

    Raises:
        ValueError: fewer than two samples, or one that is not a non-empty list of finite numbers.
    """
    if len(samples) < 2:
        raise ValueError(f"brown_forsythe: {len(samples)} samples, needs at least 2")
    numbers = [finite_values(sample, "samples") for sample in samples]
    if any(sample.size < 3 for sample in numbers) or all(np.ptp(sample) == 0 for sample in numbers):
        return math.nan  # of two values, both are equally far from their median
    return float(stats.levene(*numbers, center="median").pvalue)


def proportion_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson, 1927). ValueError if n < 1 or successes are not in 0 to n."""
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"proportion_interval: {successes} of {n} is no proportion")
    interval = stats.binomtest(successes, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)
