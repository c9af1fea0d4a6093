"""What a study's figures support: comparisons, intervals, corrections, and what could have been claimed.

Pure functions of arrays. Whatever draws at random takes a NumPy generator, so that a report made twice is the same report.
Units are those of the values given in. This is the place to import from; `paired.py` has pairs, `ranks.py` orders and
correlations, `spread.py` standard deviations and where they come from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pdarts_tune.paired import (
    NON_INFERIORITY_LEVEL,
    Comparison,
    Discordance,
    NonInferiority,
    mcnemar,
    mean_interval,
    minimum_detectable_difference,
    non_inferiority,
    paired_comparison,
    smallest_p,
)
from pdarts_tune.ranks import (
    Correlation,
    RankAgreement,
    kendall_tau,
    minimum_detectable_tau,
    partial_correlation,
    tau_within_variants,
)
from pdarts_tune.spread import Components, brown_forsythe, mean_sd, proportion_interval, variance_components

__all__ = [
    "NON_INFERIORITY_LEVEL",
    "Comparison",
    "Components",
    "Correlation",
    "Discordance",
    "NonInferiority",
    "RankAgreement",
    "brown_forsythe",
    "holm",
    "kendall_tau",
    "mcnemar",
    "mean_interval",
    "mean_sd",
    "minimum_detectable_difference",
    "minimum_detectable_tau",
    "non_inferiority",
    "paired_comparison",
    "partial_correlation",
    "proportion_interval",
    "relative_improvement",
    "smallest_p",
    "tau_within_variants",
    "variance_components",
]


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for being one of several (Holm, 1979), in the order given.

    Raises:
        ValueError: a p-value is not in [0, 1].
    """
    if not all(0.0 <= p <= 1.0 for p in p_values):
        raise ValueError(f"holm: {list(p_values)} are not all in [0, 1]")
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def relative_improvement(accuracy: float, random_accuracy: float) -> float:
    """By how many percent a method is more accurate than a random cell of its search space (Yang et al., ICLR 2020, section 3).

    It tells what a search adds to what its space and its training recipe give anyway. Both accuracies in one unit.

    Raises:
        ValueError: an accuracy is not a finite number, or that of the random cell is not more than 0.
    """
    if not (math.isfinite(accuracy) and 0.0 < random_accuracy < math.inf):
        raise ValueError(f"relative_improvement: accuracies {accuracy} and {random_accuracy} (random) have no ratio")
    return 100.0 * (accuracy - random_accuracy) / random_accuracy
