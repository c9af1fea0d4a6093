"""Pairs: is a different from b, is it at least not worse, and what difference could have been claimed?

Part of `statistics.py`, which is where to import from.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

EXACT_UP_TO = 20  # pairs; beyond, 2^n sign flips are too many to visit
RANDOM_FLIPS = 20_000
RESAMPLES = 9_999
BLOCK = 10_000_000  # numbers in memory at once, where there are thousands of pairs
NON_INFERIORITY_LEVEL = 0.025  # one-sided, as the two-sided 95 % interval implies

SIMULATED = 2_000  # studies, for the power of a claim
SIMULATED_MEANS = 100  # of each; a normal sample's mean is independent of the rest, and takes the middles of as many equal shares
SIMULATED_RESAMPLES = 999  # an interval's end moves by a twelfth of the mean's standard error, either way, so power hardly does
SIMULATED_FLIPS_UP_TO = 14  # pairs; beyond, Student's t has the sign-flip test's critical value closely enough
SIMULATED_UP_TO = 200  # pairs; beyond, power depends on the difference times the root of n alone


@dataclass(frozen=True)
class Comparison:
    """Paired samples a and b, compared by the mean of a - b."""

    n: int  # pairs
    mean_difference: float
    ci_low: float  # 95 % interval of the mean difference; nan where the data cannot give one
    ci_high: float
    p_value: float  # two-sided sign-flip permutation test
    min_p: float  # the smallest p-value that the test can give for n pairs


def paired_comparison(a: ArrayLike, b: ArrayLike, rng: np.random.Generator) -> Comparison:
    """Compares paired samples without assuming a distribution.

    The interval is the bias-corrected and accelerated bootstrap (Efron, 1987; `scipy.stats.bootstrap`, 9,999 resamples of the
    pairs). It is nan with fewer than 3 pairs and where all differences are equal: resampling them tells nothing. With few pairs
    it is narrower than it says, which is why no claim rests on it alone: of normal differences it holds the true mean in 84 %, 87 %
    and 91 % of cases with 5, 6 and 10 pairs, and in 94 % from 30 on; of exponential ones in 82 %, 83 % and 87 %, and in 94 % with
    50 (1,500 simulated data sets each).

    The p-value is that of the sign-flip permutation test of the mean (Fisher, 1935), two-sided: exact over all 2^n flips up to 20
    pairs; beyond, of 20,000 random flips, the observed one counted among them, so that it is never 0. It is valid wherever the
    differences are symmetric about 0 if there is no effect, as those of exchangeable pairs are, at every n.

    Raises:
        ValueError: not two equally long, non-empty lists of finite numbers.
    """
    first, second = finite_values(a, "a"), finite_values(b, "b")
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
    """The smallest two-sided p-value of `paired_comparison` for n pairs. ValueError if n < 1.

    It is that of equal signs: 2 flips of 2^n. Of random flips, it is the observed one.
    """
    if n < 1:
        raise ValueError(f"smallest_p: {n} pairs, needs at least 1")
    return 2.0 ** (1 - n) if n <= EXACT_UP_TO else 1 / (1 + RANDOM_FLIPS)


def mean_interval(values: ArrayLike, rng: np.random.Generator, cells: Sequence[Hashable] | None = None) -> tuple[float, float]:
    """The 95 % interval of a mean, as `paired_comparison` has it; nan where the values cannot give one.

    Args:
        cells: of which cell each value is. Values of one cell share its evaluation, so they are drawn together.

    Raises:
        ValueError: not a non-empty list of finite numbers, with as many cells.
    """
    numbers = finite_values(values, "values")
    if cells is None or len(set(cells)) == numbers.size:
        return _bootstrap_interval(numbers, rng)
    if len(cells) != numbers.size:
        raise ValueError(f"mean_interval: {numbers.size} values, {len(cells)} cells")
    places = {cell: place for place, cell in enumerate(dict.fromkeys(cells))}
    place = np.array([places[cell] for cell in cells])
    sums, counts = np.bincount(place, numbers), np.bincount(place)
    if counts.size < 3 or np.ptp(numbers) <= 1e-12 * np.abs(numbers).max():
        return math.nan, math.nan

    def mean(sums: NDArray[np.float64], counts: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        means: NDArray[np.float64] = sums.sum(axis=axis) / counts.sum(axis=axis)
        return means

    batch = max(1, BLOCK // counts.size)
    result = stats.bootstrap((sums, counts), mean, n_resamples=RESAMPLES, batch=batch, paired=True, vectorized=True, rng=rng)
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _bootstrap_interval(differences: NDArray[np.float64], rng: np.random.Generator) -> tuple[float, float]:
    # Differences of decimals that ought to be equal are so up to rounding.
    if differences.size < 3 or np.ptp(differences) <= 1e-12 * np.abs(differences).max():
        return math.nan, math.nan
    result = stats.bootstrap(
        (differences,), np.mean, n_resamples=RESAMPLES, batch=max(1, BLOCK // differences.size), method="BCa", rng=rng
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def _sign_flip_p(differences: NDArray[np.float64], rng: np.random.Generator, two_sided: bool = True) -> float:
    """Two-sided: flips whose mean is as far from 0. One-sided: flips whose mean is as low."""
    # Flips that tie with the observed one in exact arithmetic must count however their sums were rounded.
    slack = 1e-12 * np.abs(differences).sum()
    if differences.size <= EXACT_UP_TO:
        sums = np.zeros(1)
        for difference in differences:
            sums = np.concatenate([sums + difference, sums - difference])
        as_extreme = _as_extreme(sums, differences.sum(), slack, two_sided)
        return float(np.mean(as_extreme))
    reached, flips, at_once = 0, RANDOM_FLIPS, max(1, BLOCK // differences.size)
    while flips:
        size = min(at_once, flips), -(-differences.size // 8)
        kept = np.unpackbits(rng.integers(0, 256, size, dtype=np.uint8), axis=1, count=differences.size)  # a bit a sign
        sums = 2.0 * (kept.astype(np.float64) @ differences) - differences.sum()
        reached += int(np.sum(_as_extreme(sums, differences.sum(), slack, two_sided)))
        flips -= len(kept)
    return (1 + reached) / (1 + RANDOM_FLIPS)


def _as_extreme(sums: NDArray[np.float64], observed: float, slack: float, two_sided: bool) -> NDArray[np.bool_]:
    return np.abs(sums) >= abs(observed) - slack if two_sided else sums <= observed + slack


def minimum_detectable_difference(sd: float, n: int, comparisons: int = 1, power: float = 0.8, level: float = 0.05) -> float:
    """The smallest true mean difference that is claimed with the given power; inf where none is, however large.

    A difference is claimed if its interval excludes 0 and its p, adjusted by Holm for all `comparisons` of its family, is below
    `level`, both as `paired_comparison` has them. The studies are simulated, with normal differences of the given spread and
    always the same draws. The family's other comparisons have no difference in them, so that Holm's correction asks for a p below
    level / comparisons. (Now and then one of them is claimed by mistake, and eases it: that adds less than a point of power.)

    Interval and p move with a shift of the differences, so each simulated study has a least shift from which on it is claimed, and
    the power of a difference is the share of studies whose least shift is smaller.

    Args:
        sd: standard deviation of the differences, in their unit, which is also the result's.

    Raises:
        ValueError: no pair or comparison, a negative or infinite sd, or power and level not such that 0 < level < power < 1.
    """
    if not 0.0 <= sd < math.inf:
        raise ValueError(f"minimum_detectable_difference: sd {sd} is not a finite number of at least 0")
    if n < 1 or comparisons < 1:
        raise ValueError(f"minimum_detectable_difference: {n} pairs and {comparisons} comparisons, needs at least 1 of each")
    if not 0.0 < level < power < 1.0:
        raise ValueError(f"minimum_detectable_difference: power {power} and level {level} are not such that 0 < level < power < 1")
    if n < 3 or not smallest_p(n) < level / comparisons:
        return math.inf
    simulated = min(n, SIMULATED_UP_TO)
    least = np.quantile(_least_shifts(simulated, level / comparisons), power)
    return sd * math.sqrt(simulated / n) * float(least)


@lru_cache
def _least_shifts(n: int, level: float) -> NDArray[np.float64]:
    """Of simulated studies of n standard normal differences, by their deviations and their mean: what must be added for interval
    and p to claim a difference above 0."""
    drawn = np.random.default_rng(0).standard_normal((SIMULATED, n))
    centred = drawn - drawn.mean(axis=1, keepdims=True)
    means = special.ndtri((np.arange(SIMULATED_MEANS) + 0.5) / SIMULATED_MEANS) / math.sqrt(n)
    # The interval of `_bootstrap_interval`, of all studies at once, with the same resamples; of a mean the jackknife is known.
    counts = np.random.default_rng(1).multinomial(n, np.full(n, 1 / n), SIMULATED_RESAMPLES)
    resampled = np.sort(centred @ counts.T / n, axis=1)
    bias = special.ndtri(((resampled < 0).mean(axis=1) + (resampled <= 0).mean(axis=1)) / 2)
    acceleration = (centred**3).sum(axis=1) / (6 * (centred**2).sum(axis=1) ** 1.5)
    reach = bias + special.ndtri(0.025)
    place = special.ndtr(bias + reach / (1 - acceleration * reach)) * (SIMULATED_RESAMPLES - 1)
    below = place.astype(int)[:, None]
    ends = np.take_along_axis(resampled, np.hstack([below, below + 1]), axis=1)
    low = ends[:, 0] + (place - below[:, 0]) * (ends[:, 1] - ends[:, 0])
    if n > SIMULATED_FLIPS_UP_TO:
        tested = stats.t.isf(level / 2, n - 1) * centred.std(axis=1, ddof=1) / math.sqrt(n)
        return np.maximum(-low, tested)[:, None] - means
    # The flips that are as extreme as differences with a sum above 0 are, up to the sign of all, those that turn a set of pairs
    # whose sum is 0 or less. So p falls with every such set that a shift lifts above 0, and this many may be left.
    allowed = math.ceil(level * 2 ** (n - 1)) - 2
    sets = (np.arange(1, 2**n)[:, None] >> np.arange(n)) & 1
    weights = (sets / sets.sum(axis=1, keepdims=True)).T
    tested = np.empty(SIMULATED)
    for part in np.array_split(np.arange(SIMULATED), -(-SIMULATED * 2**n // BLOCK)):
        needed = -centred[part] @ weights
        tested[part] = np.partition(needed, -1 - allowed, axis=1)[:, -1 - allowed]
    return np.maximum(-low, tested)[:, None] - means


@dataclass(frozen=True)
class NonInferiority:
    """Whether a is at most `margin` above b, where less is better (an error)."""

    n: int  # pairs
    mean_difference: float  # of a - b
    ci_high: float  # upper end of the 95 % interval of the mean difference; nan where the data cannot give one
    margin: float
    p_value: float  # one-sided sign-flip permutation test of "a - b is margin or more"
    min_p: float  # the smallest that n pairs can give
    shown: bool  # ci_high < margin and p_value < 0.025; of several such tests, correct the p-values first


def non_inferiority(a: ArrayLike, b: ArrayLike, margin: float, rng: np.random.Generator) -> NonInferiority:
    """Tests whether `a` is worse than `b` by less than `margin`, for paired values of which less is better.

    That a difference is not significant never shows that there is none; this test is the one that can. It asks for both the
    interval of `paired_comparison` to end below the margin and a one-sided exact p below 0.025, as its two-sided 95 % level asks
    (Piaggio et al., JAMA 2012, CONSORT for non-inferiority trials). The margin must be chosen before looking.

    Raises:
        ValueError: not two equally long, non-empty lists of finite numbers, or a margin that is not more than 0.
    """
    if not 0.0 < margin < math.inf:
        raise ValueError(f"non_inferiority: margin {margin} is not a finite number of more than 0")
    found = paired_comparison(a, b, rng)
    shifted = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64) - margin
    p_value = _sign_flip_p(shifted, rng, two_sided=False)
    min_p = found.min_p / 2 if found.n <= EXACT_UP_TO else found.min_p  # of exact tests, one flip of 2^n rather than two
    shown = found.ci_high < margin and p_value < NON_INFERIORITY_LEVEL
    return NonInferiority(found.n, found.mean_difference, found.ci_high, margin, p_value, min_p, bool(shown))


@dataclass(frozen=True)
class Discordance:
    """Two classifiers on the same examples, by those that only one of them gets right."""

    n: int  # examples
    only_a: int  # examples that a alone gets right
    only_b: int
    p_value: float  # two-sided exact McNemar test


def mcnemar(a: ArrayLike, b: ArrayLike) -> Discordance:
    """Compares per-example correctness of two trained networks (McNemar, 1947; exact: a binomial test of the discordant ones).

    It says whether these two networks differ on images like these, and nothing about another training of the same genotypes.

    Args:
        a, b: one flag an example, in the same order.

    Raises:
        ValueError: not two equally long, non-empty lists of flags.
    """
    first, second = np.asarray(a), np.asarray(b)
    if first.dtype != np.bool_ or second.dtype != np.bool_ or first.ndim != 1 or first.shape != second.shape or not first.size:
        raise ValueError("mcnemar: needs two equally long, non-empty lists of flags")
    only_a, only_b = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    p_value = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return Discordance(first.size, only_a, only_b, p_value)


def finite_values(values: ArrayLike, name: str) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or numbers.size == 0 or not np.isfinite(numbers).all():
        raise ValueError(f"{name}: needs a non-empty list of finite numbers")
    return numbers
