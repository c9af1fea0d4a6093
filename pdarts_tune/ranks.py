"""Does one measure order genotypes as another does?

Part of `statistics.py`, which is where to import from.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from pdarts_tune.paired import finite_values

_Z = float(stats.norm.ppf(0.975))
_TAU_VARIANCE = 0.437  # times 1 / (n - 4): of Fisher's z of Kendall's tau (Fieller, Hartley & Pearson, 1957)


@dataclass(frozen=True)
class RankAgreement:
    """Kendall's tau between what a search saw and what evaluations found."""

    n: int  # genotypes
    tau: float  # tau-b, with the mean over evaluation seeds; nan with fewer than 2 genotypes or no differences
    ci_low: float  # 95 % interval; nan with fewer than 5 genotypes
    ci_high: float
    p_value: float
    seed_tau: float  # between evaluations of the same genotypes with two seeds, mean over pairs of seeds; nan with one seed
    disattenuated: float  # tau as it would be without the evaluations' seed noise; nan where that is unknown


def kendall_tau(search: ArrayLike, evaluations: ArrayLike) -> RankAgreement:
    """How well accuracy at search time orders genotypes, as their evaluations do.

    Two trainings of the same genotypes do not agree on their order either, so a low tau can be seed noise and no "depth gap". The
    disattenuated tau corrects for that (Spearman, 1904): tau becomes the correlation that it has under normality, r = sin(pi/2 tau)
    (Greiner, 1909), which is divided by the root of the reliability of a mean over seeds (Spearman-Brown, from the seed-to-seed
    tau) and cut at -1 and 1, and turned back. It is a point estimate: with few genotypes the reliability is itself uncertain.

    The interval is Fisher's z with variance 0.437 / (n - 4) (Fieller, Hartley & Pearson, 1957), which assumes no more than
    monotone transforms of normal values; at a tau of 1 it starts where that of one pair in another order does. p is SciPy's, exact
    up to 33 genotypes without ties.

    Args:
        search: (n,) a figure of each genotype at search time.
        evaluations: (n,) or (n, seeds), its accuracy with each evaluation seed.

    Raises:
        ValueError: other shapes, or values that are not finite.
    """
    seen = finite_values(search, "search")
    found = np.asarray(evaluations, dtype=np.float64)
    found = found[:, None] if found.ndim == 1 else found
    if found.ndim != 2 or found.shape[0] != seen.size or not found.shape[1] or not np.isfinite(found).all():
        raise ValueError(f"kendall_tau: evaluations of shape {found.shape}, needs finite numbers, one row for each of {seen.size}")
    tau, p_value = _tau(seen, found.mean(axis=1))
    low, high = _fisher(tau, _TAU_VARIANCE / (seen.size - 4) if seen.size > 4 else math.nan)
    if seen.size > 4 and abs(tau) >= 1 - 1e-12:  # z is infinite: from the nearest other order, which has one pair turned round
        low, high = _fisher(math.copysign(1 - 4 / (seen.size * (seen.size - 1)), tau), _TAU_VARIANCE / (seen.size - 4))
        low, high = (low, 1.0) if tau > 0 else (-1.0, high)
    pairs = itertools.combinations(range(found.shape[1]), 2)
    taus = [_tau(found[:, first], found[:, second])[0] for first, second in pairs]
    seed_tau = float(np.mean(taus)) if taus else math.nan
    return RankAgreement(seen.size, tau, low, high, p_value, seed_tau, _disattenuate(tau, seed_tau, found.shape[1]))


def minimum_detectable_tau(n: int, power: float = 0.8) -> float:
    """The true tau whose interval, as `kendall_tau` gives it, lies above 0 with the given power, or with
    more where genotypes are few; nan with fewer than 5.

    Raises:
        ValueError: power is not such that 0.5 <= power < 1.
    """
    if not 0.5 <= power < 1.0:
        raise ValueError(f"minimum_detectable_tau: power {power} is not such that 0.5 <= power < 1")
    if n < 5:
        return math.nan
    return math.tanh((_Z + float(stats.norm.ppf(power))) * math.sqrt(_TAU_VARIANCE / (n - 4)))


def _tau(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[float, float]:
    if first.size < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return math.nan, math.nan
    result = stats.kendalltau(first, second)
    return float(result.statistic), float(result.pvalue)


def _fisher(correlation: float, variance: float) -> tuple[float, float]:
    if math.isnan(correlation) or math.isnan(variance) or abs(correlation) >= 1 - 1e-12:
        return math.nan, math.nan
    centre, reach = math.atanh(correlation), _Z * math.sqrt(variance)
    return math.tanh(centre - reach), math.tanh(centre + reach)


def _disattenuate(tau: float, seed_tau: float, seeds: int) -> float:
    if math.isnan(tau) or not seed_tau > 0:
        return math.nan
    single = math.sin(math.pi / 2 * seed_tau)
    reliability = seeds * single / (1 + (seeds - 1) * single)
    correlation = math.sin(math.pi / 2 * tau) / math.sqrt(reliability)
    return 2 / math.pi * math.asin(min(1.0, max(-1.0, correlation)))


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of two measures, with others partialled out."""

    n: int
    correlation: float  # nan where there are no differences left to correlate
    ci_low: float  # 95 % interval; nan with too few values
    ci_high: float
    p_value: float


def partial_correlation(a: ArrayLike, b: ArrayLike, controls: ArrayLike | None = None) -> Correlation:
    """Correlates the ranks of a and b after taking out what is linear in the ranks of the controls.

    The interval is Fisher's z with variance 1 / (n - 3 - k) and p that of a t-test with n - 2 - k degrees of freedom, for k
    controls that are not multiples of each other (Fisher, 1924).

    Args:
        a, b: (n,).
        controls: (n, k), such as parameters and multiply-adds; none: the plain rank correlation.

    Raises:
        ValueError: other shapes, or values that are not finite.
    """
    first, second = finite_values(a, "a"), finite_values(b, "b")
    others = np.empty((first.size, 0)) if controls is None else np.asarray(controls, dtype=np.float64)
    if first.size != second.size or others.ndim != 2 or others.shape[0] != first.size or not np.isfinite(others).all():
        raise ValueError(f"partial_correlation: {first.size} and {second.size} values, controls of shape {others.shape}")
    design = np.column_stack([np.ones(first.size), *(stats.rankdata(column) for column in others.T)])
    left = [_residuals(design, stats.rankdata(values)) for values in (first, second)]
    free = first.size - 1 - int(np.linalg.matrix_rank(design))  # n - 2 - k
    scale = [float(np.sqrt(np.sum(values**2))) for values in left]
    if free < 1 or min(scale) < 1e-9 * first.size:
        return Correlation(first.size, math.nan, math.nan, math.nan, math.nan)
    r = float(np.clip(left[0] @ left[1] / (scale[0] * scale[1]), -1.0, 1.0))
    low, high = _fisher(r, 1 / (free - 1) if free > 1 else math.nan)
    p_value = 0.0 if abs(r) == 1 else float(2 * stats.t.sf(abs(r) * math.sqrt(free / (1 - r**2)), free))
    return Correlation(first.size, r, low, high, p_value)


def _residuals(design: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    residuals: NDArray[np.float64] = values - design @ np.linalg.lstsq(design, values)[0]
    return residuals
