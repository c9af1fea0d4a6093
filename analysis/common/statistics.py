"""Pairs: is a different from b, is it at least not worse, and what difference could have been claimed?

Part of `statistics.py`, which is where to import from.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse, special, stats

# MERGED DOCSTRING
# Does one measure order genotypes as another does?
#
# Part of `statistics.py`, which is where to import from.
# MERGED DOCSTRING
# How far values spread, and how much of it is the search's and how much the evaluation's.
#
# Part of `statistics.py`, which is where to import from.
# MERGED DOCSTRING
# What a study's figures support: comparisons, intervals, corrections, and what could have been claimed.
#
# Pure functions of arrays. Whatever draws at random takes a NumPy generator, so that a report made twice is the same report.
# Units are those of the values given in. This is the place to import from; `paired.py` has pairs, `ranks.py` orders and
# correlations, `spread.py` standard deviations and where they come from.

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


_Z = float(stats.norm.ppf(0.975))
_SIMULATED = 2_000  # studies, for the power of a claim
_SIMULATED_UP_TO = 30  # genotypes
_TAU_VARIANCE = 0.437  # times 1 / (n - 4): of Fisher's z of Kendall's tau (Fieller, Hartley & Pearson, 1957)
_FEWEST_PAIRS = 10  # for an interval: those of 5 cells of one variant
_AT_ONCE = 100  # values whose pairs are compared all at once; more are sorted
_DRAWN_UP_TO = 10_000  # pairs; with more, interval and p are those of normal distributions


@dataclass(frozen=True)
class RankAgreement:
    """Kendall's tau between what a search saw and what evaluations found."""

    n: int  # distinct cells that a pair was made of
    pairs: int  # of cells that were compared
    tau: float  # tau-b, with the mean over evaluation seeds; nan without a pair, or without differences
    ci_low: float  # 95 % interval; nan with fewer than 5 cells, or 10 pairs
    ci_high: float
    p_value: float
    seed_tau: float  # between evaluations of the same cells with two seeds, over all pairs of seeds; nan with one seed
    disattenuated: float  # tau as it would be without the evaluations' seed noise; nan where that is unknown


def kendall_tau(search: ArrayLike, evaluations: ArrayLike) -> RankAgreement:
    """How well one measure of cells orders them, as their evaluations do. All cells are of one kind; see `tau_within_variants`.

    Two trainings of the same cells do not agree on their order either, so a low tau can be seed noise and no "depth gap". The
    disattenuated tau corrects for that (Spearman, 1904): tau becomes the correlation that it has under normality, r = sin(pi/2 tau)
    (Greiner, 1909), which is divided by the root of the reliability of a mean over seeds (Spearman-Brown, from the seed-to-seed
    tau) and cut at -1 and 1, and turned back. It is a point estimate: with few cells the reliability is itself uncertain.

    The interval is Fisher's z with variance 0.437 / (n - 4) (Fieller, Hartley & Pearson, 1957), which assumes no more than
    monotone transforms of normal values; at a tau of 1 it starts where that of one pair in another order does. p is SciPy's, exact
    up to 33 cells without ties.

    Args:
        search: (n,) a figure of each cell.
        evaluations: (n,) or (n, seeds), its accuracy with each evaluation seed; nan where a seed was not evaluated.

    Raises:
        ValueError: other shapes, values that are not finite, or a cell without an evaluation.
    """
    seen, found = _check(search, evaluations, "kendall_tau")
    means = np.nanmean(found, axis=1)
    tau, p_value = _tau(seen, means)
    low, high = _fisher(tau, _TAU_VARIANCE / (seen.size - 4) if seen.size > 4 else math.nan)
    if seen.size > 4 and abs(tau) >= 1 - 1e-12:  # z is infinite: from the nearest other order, which has one pair turned round
        low, high = _fisher(math.copysign(1 - 4 / (seen.size * (seen.size - 1)), tau), _TAU_VARIANCE / (seen.size - 4))
        low, high = (low, 1.0) if tau > 0 else (-1.0, high)
    again, corrected = _without_noise(tau, found, [np.arange(seen.size)])
    return RankAgreement(seen.size, math.comb(seen.size, 2), tau, low, high, p_value, again, corrected)


def tau_within_variants(
    search: ArrayLike, evaluations: ArrayLike, variants: Sequence[Hashable], cells: Sequence[Hashable], rng: np.random.Generator
) -> RankAgreement:
    """How well accuracy at search time orders the cells of one variant, as their evaluations do; all variants together.

    Search networks of two variants differ in depth, operations or method, and so in accuracy, whatever their cells are worth.
    Counted are therefore pairs of cells of one variant alone: tau-b is concordant less discordant pairs over the geometric mean of
    those that differ in either measure. Seed-to-seed and disattenuated tau, as `kendall_tau` has them, are of the same pairs.

    The interval is the percentile bootstrap's of cells, drawn within each variant. A cell that several variants found has one
    evaluation and is one cell: variants that share cells are drawn from together. There is none where all draws agree. p is that of
    a permutation test: of the search's figures within each variant, which is valid whatever evaluations are shared. Of
    thousands of cells, the interval is Fisher's z with the jackknife's variance, and p that of the permutations' normal limit.

    Args:
        search, evaluations: as `kendall_tau` has them; a row is a cell that a variant found.
        variants, cells: the variant and the cell of each row; a cell stands in a variant once.

    Raises:
        ValueError: other shapes, values that are not finite, or a cell twice in a variant.
    """
    seen, found = _check(search, evaluations, "tau_within_variants")
    if not len(variants) == len(cells) == seen.size or len(set(zip(variants, cells, strict=True))) < seen.size:
        raise ValueError(f"tau_within_variants: {seen.size} values need as many variants and cells, each cell once in a variant")
    rows: dict[Hashable, list[int]] = {}
    for row, variant in enumerate(variants):
        rows.setdefault(variant, []).append(row)
    groups = [np.array(group) for group in rows.values() if len(group) > 1]
    names = {cell: index for index, cell in enumerate(dict.fromkeys(cells[row] for group in groups for row in group))}
    means = np.nanmean(found, axis=1)
    sides = [(seen[group], means[group]) for group in groups]
    members = [np.array([names[cells[row]] for row in group]) for group in groups]
    pairs = sum(math.comb(len(group), 2) for group in groups)
    sums = sum((_sums(*side) for side in sides), np.zeros(3))
    tau, many = _tau_of(sums), pairs > _DRAWN_UP_TO
    low = high = p_value = math.nan
    if not math.isnan(tau):
        p_value = _normal_p(sums[0], sides) if many else _permutation_p(sides, rng)
    if not math.isnan(tau) and pairs >= _FEWEST_PAIRS:
        low, high = (
            _fisher(tau, _jackknife(sums, sides, members, len(names))) if many else _bootstrap(sides, members, len(names), rng)
        )
    return RankAgreement(len(names), pairs, tau, low, high, p_value, *_without_noise(tau, found, groups))


Side = tuple[NDArray[np.float64], NDArray[np.float64]]  # of one variant: what was seen and what was found of each cell


def _check(search: ArrayLike, evaluations: ArrayLike, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    seen = finite_values(search, "search")
    found = np.asarray(evaluations, dtype=np.float64)
    found = found[:, None] if found.ndim == 1 else found
    if found.ndim != 2 or found.shape[0] != seen.size or np.isinf(found).any() or not np.isfinite(found).any(axis=1).all():
        raise ValueError(f"{name}: evaluations of shape {found.shape}, needs a finite number in each row, and {seen.size} rows")
    return seen, found


def _signs(values: NDArray[np.float64]) -> NDArray[np.float64]:
    signs: NDArray[np.float64] = np.sign(values[:, None] - values)
    return signs


def _sums(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Concordant less discordant pairs, and those that differ in each measure; every pair twice."""
    if one.size <= _AT_ONCE:
        first, second = _signs(one), _signs(other)
        return np.array([np.sum(first * second), np.sum(first**2), np.sum(second**2)])
    differing = [values.size**2 - float(np.sum(np.unique(values, return_counts=True)[1] ** 2)) for values in (one, other)]
    tau = float(stats.kendalltau(one, other, method="asymptotic").statistic) if all(differing) else 0.0
    return np.array([tau * math.sqrt(differing[0] * differing[1]), *differing])


def _tau_of(sums: NDArray[np.float64]) -> float:
    return float(sums[0] / math.sqrt(sums[1] * sums[2])) if sums[1] and sums[2] else math.nan


def _permutation_p(sides: Sequence[Side], rng: np.random.Generator) -> float:
    signs = [(_signs(one), _signs(other)) for one, other in sides]
    observed = abs(sum(float(np.sum(one * other)) for one, other in signs))
    drawn = np.zeros(RESAMPLES)
    for one, other in signs:
        size = len(one)
        for block in np.array_split(drawn, math.ceil(RESAMPLES * size**2 / BLOCK)):  # views
            orders = rng.permuted(np.tile(np.arange(size), (len(block), 1)), axis=1)
            block += np.einsum("ij,bij->b", one, other[orders[:, :, None], orders[:, None, :]])
    return (1 + int(np.sum(np.abs(drawn) >= observed - 0.5))) / (1 + RESAMPLES)


def _normal_p(observed: float, sides: Sequence[Side]) -> float:
    """With the variance over all permutations (Daniels, 1944), which knows of ties."""
    variance = 0.0
    for one, other in sides:
        size, (_, *squares) = one.size, _sums(one, other)
        paths = [
            float(np.sum((2 * stats.rankdata(values) - size - 1) ** 2)) - square
            for values, square in zip((one, other), squares, strict=True)
        ]
        variance += 4 * paths[0] * paths[1] / (size * (size - 1) * (size - 2)) if size > 2 else 0.0
        variance += 2 * squares[0] * squares[1] / (size * (size - 1))
    return float(2 * stats.norm.sf(abs(observed) / math.sqrt(variance)))


def _jackknife(sums: NDArray[np.float64], sides: Sequence[Side], members: Sequence[NDArray[np.int64]], count: int) -> float:
    """The variance of Fisher's z of tau: of what it becomes without each row of a variant, summed for rows of one cell."""
    shifts = np.zeros(count)
    for (one, other), cells in zip(sides, members, strict=True):
        rows = np.zeros((one.size, 3))
        for block in np.array_split(np.arange(one.size), math.ceil(one.size**2 / BLOCK)):
            first, second = (np.sign(values[block, None] - values) for values in (one, other))
            rows[block] = np.stack([np.sum(values, axis=1) for values in (first * second, first**2, second**2)], axis=1)
        left = sums - 2 * rows
        without = np.arctanh(np.clip(left[:, 0] / np.sqrt(left[:, 1] * left[:, 2]), -1 + 1e-12, 1 - 1e-12))
        shifts[cells] += without - without.mean()
    return float(np.sum(shifts**2))


def _bootstrap(
    sides: Sequence[Side], members: Sequence[NDArray[np.int64]], count: int, rng: np.random.Generator
) -> tuple[float, float]:
    links = sparse.coo_array((count, count))
    for cells in members:
        links = links + sparse.coo_array((np.ones(cells.size), (np.full(cells.size, cells[0]), cells)), (count, count))
    part_of = sparse.csgraph.connected_components(links, directed=False)[1]
    weights = np.zeros((RESAMPLES, count))
    for part in range(part_of.max() + 1):
        chosen = np.flatnonzero(part_of == part)
        weights[:, chosen] = rng.multinomial(chosen.size, np.full(chosen.size, 1 / chosen.size), RESAMPLES)
    sums = np.zeros((3, RESAMPLES))
    for (one, other), cells in zip(sides, members, strict=True):
        first, second, drawn = _signs(one), _signs(other), weights[:, cells]
        sums += [np.sum((drawn @ products) * drawn, axis=1) for products in (first * second, first**2, second**2)]
    known = (sums[1] > 0) & (sums[2] > 0)
    taus = sums[0, known] / np.sqrt(sums[1, known] * sums[2, known])
    if np.ptp(taus) < 1e-12:
        return math.nan, math.nan
    low, high = np.quantile(taus, [0.025, 0.975])
    return float(low), float(high)


def _without_noise(tau: float, found: NDArray[np.float64], groups: Sequence[NDArray[np.int64]]) -> tuple[float, float]:
    """Seed-to-seed tau and disattenuated tau; the number of seeds is the harmonic mean over cells."""
    sums = np.zeros(3)
    for one, other in itertools.combinations(found.T, 2):
        for group in groups:
            both = group[np.isfinite(one[group]) & np.isfinite(other[group])]
            sums += _sums(one[both], other[both])
    again = _tau_of(sums)
    if math.isnan(tau) or not again > 0:
        return again, math.nan
    single = math.sin(math.pi / 2 * again)
    seeds = 1 / float(np.mean(1 / np.isfinite(found[np.concatenate(groups)]).sum(axis=1)))
    reliability = seeds * single / (1 + (seeds - 1) * single)
    correlation = math.sin(math.pi / 2 * tau) / math.sqrt(reliability)
    return again, 2 / math.pi * math.asin(min(1.0, max(-1.0, correlation)))


def minimum_detectable_tau(n: int, comparisons: int = 1, power: float = 0.8) -> float:
    """The true tau that is claimed with the given power; inf where none is, however large.

    It is claimed if its interval lies above 0 and its p, adjusted by Holm for all `comparisons` of its family, is below 0.05, both
    as `kendall_tau` has them. The others of the family have no agreement in them, so that Holm's correction asks for a p below
    0.05 / comparisons. Values are normal, up to monotone transforms: up to 30 genotypes 2,000 studies are simulated, always with
    the same draws; beyond, the interval's normal approximation has the answer.

    Raises:
        ValueError: no comparison, or power is not such that 0.5 <= power < 1.
    """
    if comparisons < 1 or not 0.5 <= power < 1.0:
        needed = "at least 1 comparison and 0.5 <= power < 1"
        raise ValueError(f"minimum_detectable_tau: {comparisons} comparisons and power {power}, needs {needed}")
    level = 0.05 / comparisons
    if n > _SIMULATED_UP_TO:
        return math.tanh(float(stats.norm.isf(level / 2) + stats.norm.ppf(power)) * math.sqrt(_TAU_VARIANCE / (n - 4)))
    turned = _turned_pairs(n, level)
    if turned < 0:
        return math.inf
    # Of second = slope * first + noise, a pair has the order of the first from the slope on that outweighs its noise.
    first, noise = np.random.default_rng(0).standard_normal((2, _SIMULATED, n))
    one, other = np.triu_indices(n, 1)
    slopes = (noise[:, other] - noise[:, one]) / (first[:, one] - first[:, other])
    least = np.partition(slopes, -1 - turned, axis=1)[:, -1 - turned]
    return 2 / math.pi * math.atan(float(np.quantile(least, power)))


def _turned_pairs(n: int, level: float) -> int:
    """How many pairs may be turned round in an order of n for its agreement to be claimed; -1 if not even none."""
    for turned in range(n * (n - 1) // 2 + 1):
        left, rest, order = list(range(n)), turned, []
        while left:
            rest -= (step := min(rest, len(left) - 1))
            order.append(left.pop(step))
        found = kendall_tau(range(n), order)
        if not (found.ci_low > 0 and found.p_value < level):
            return turned - 1
    return -1


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
