"""What a study's figures support: paired comparisons, intervals, corrections and what could have been detected.

Pure functions of arrays. Whatever draws at random takes a NumPy generator, so that a report made twice is the same report.
Units are those of the values given in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

EXACT_UP_TO = 20  # pairs; beyond, 2^n sign flips are too many to visit
RANDOM_FLIPS = 20_000
RESAMPLES = 9_999


@dataclass(frozen=True)
class Comparison:
    """Paired samples a and b, compared by the mean of a - b."""

    n: int  # pairs
    mean_difference: float
    ci_low: float  # 95 % interval of the mean difference; nan where the data cannot give one
    ci_high: float
    p_value: float  # two-sided sign-flip permutation test
    min_p: float  # the smallest p-value that n pairs can give


def paired_comparison(a: ArrayLike, b: ArrayLike, rng: np.random.Generator) -> Comparison:
    """Compares paired samples without assuming a distribution.

    The interval is the bias-corrected and accelerated bootstrap (Efron, 1987; `scipy.stats.bootstrap`, 9,999 resamples of the
    pairs). It is nan with fewer than 3 pairs and where all differences are equal: resampling them tells nothing. With few pairs
    it is narrower than it should be, which is why the p-value stands beside it. The p-value is that of the sign-flip
    permutation test of the mean (Fisher, 1935), two-sided: exact over all 2^n flips up to 20 pairs; beyond, of 20,000 random
    flips, the observed one counted among them, so that it is never 0.

    Raises:
        ValueError: not two equally long, non-empty lists of finite numbers.
    """
    first, second = _finite(a, "a"), _finite(b, "b")
    if first.size != second.size:
        raise ValueError(f"paired_comparison: {first.size} values in a, {second.size} in b; pairs need as many")
    differences = first - second
    low, high = _bootstrap_interval(differences, rng)
    return Comparison(
        n=differences.size,
        mean_difference=float(differences.mean()),
        ci_low=low,
        ci_high=high,
        p_value=_sign_flip_p(differences, rng),
        min_p=smallest_p(differences.size),
    )


def smallest_p(n: int) -> float:
    """The smallest two-sided p-value of a sign-flip test of n pairs: that of equal signs, 2 flips of 2^n. ValueError if n < 1."""
    if n < 1:
        raise ValueError(f"smallest_p: {n} pairs, needs at least 1")
    return 2.0 ** (1 - n)


def _bootstrap_interval(differences: NDArray[np.float64], rng: np.random.Generator) -> tuple[float, float]:
    # Differences of decimals that ought to be equal are so up to rounding.
    if differences.size < 3 or np.ptp(differences) <= 1e-12 * np.abs(differences).max():
        return math.nan, math.nan
    result = stats.bootstrap((differences,), np.mean, n_resamples=RESAMPLES, confidence_level=0.95, method="BCa", rng=rng)
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _sign_flip_p(differences: NDArray[np.float64], rng: np.random.Generator) -> float:
    # Flips that tie with the observed one in exact arithmetic must count however their sums were rounded.
    reached = abs(differences.sum()) - 1e-12 * np.abs(differences).sum()
    if differences.size <= EXACT_UP_TO:
        sums = differences[:1]  # the first sign stays: a flip and its mirror image are equally extreme
        for difference in differences[1:]:
            sums = np.concatenate([sums + difference, sums - difference])
        return float(np.mean(np.abs(sums) >= reached))
    signs = rng.choice(np.array([-1.0, 1.0]), size=(RANDOM_FLIPS, differences.size))
    return float((1 + np.sum(np.abs(signs @ differences) >= reached)) / (1 + RANDOM_FLIPS))


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


def mean_sd(values: ArrayLike) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1); the latter is nan for a single value.

    Raises:
        ValueError: no values, or one that is not a finite number.
    """
    numbers = _finite(values, "values")
    return float(numbers.mean()), float(numbers.std(ddof=1)) if numbers.size > 1 else math.nan


def minimum_detectable_difference(sd: float, n: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """The true mean difference that a two-sided paired t-test of n pairs finds with the given power.

    Args:
        sd: standard deviation of the differences, in their unit, which is also the result's.

    Raises:
        ValueError: fewer than 2 pairs, a negative or infinite sd, or power and alpha not such that 0 < alpha < power < 1.
    """
    if n < 2:
        raise ValueError(f"minimum_detectable_difference: {n} pairs, needs at least 2")
    if not 0.0 <= sd < math.inf:
        raise ValueError(f"minimum_detectable_difference: sd {sd} is not a finite number of at least 0")
    if not 0.0 < alpha < power < 1.0:
        raise ValueError(f"minimum_detectable_difference: power {power} and alpha {alpha} are not such that 0 < alpha < power < 1")
    critical = stats.f.isf(alpha, 1, n - 1)  # of t squared, which has both tails in one

    def missing_power(effect: float) -> float:
        return float(stats.ncf.sf(critical, 1, n - 1, n * effect**2)) - power

    upper = 1.0
    while missing_power(upper) < 0:
        upper *= 2
    return sd * float(optimize.brentq(missing_power, 1e-9, upper))


def _finite(values: ArrayLike, name: str) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or numbers.size == 0 or not np.isfinite(numbers).all():
        raise ValueError(f"{name}: needs a non-empty list of finite numbers")
    return numbers
