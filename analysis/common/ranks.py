"""Orders and correlations: does one measure of cells order them as another does? Pure functions of arrays, as `statistics`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse, stats

from common.statistics import BLOCK, RESAMPLES, SIMULATED, finite_values

SIMULATED_UP_TO = 30  # genotypes, for the power of a claim
TAU_VARIANCE = 0.437  # times 1 / (n - 4): of Fisher's z of Kendall's tau (Fieller, Hartley & Pearson, 1957)
FEWEST_PAIRS = 10  # for an interval: the pairs of 5 cells of one variant
COMPARED_UP_TO = 100  # values whose pairs are compared all at once; more are sorted
DRAWN_UP_TO = 10_000  # pairs; beyond, interval and p are those of normal distributions

Pair = tuple[NDArray[np.float64], NDArray[np.float64]]  # of the cells of one variant: the search's measure and the evaluation's


@dataclass(frozen=True)
class RankAgreement:
    """Kendall's tau between a measure of the search and the evaluations: the columns of a table of ranks."""

    n: int  # distinct cells in the pairs
    pairs: int  # of cells that were compared
    tau: float  # tau-b, with the mean over evaluation seeds; nan without a pair, or without differences
    ci_low: float  # 95 % interval; nan with fewer than 5 cells, or 10 pairs
    ci_high: float
    p: float
    seed_tau: float  # between evaluations of the same cells with two seeds, over all pairs of seeds; nan with one seed
    disattenuated: float  # tau as it would be without the evaluations' seed noise; nan where that is unknown


def kendall_tau(search: ArrayLike, evaluations: ArrayLike) -> RankAgreement:
    """How well a measure orders cells of one kind as their evaluations do; for cells of several variants see `tau_within_variants`.

    Two trainings of the same cells do not agree on their order either, so a low tau can be seed noise and no "depth gap". The
    disattenuated tau corrects for that (Spearman, 1904). Tau becomes the correlation that it has under normality, r = sin(pi/2 tau)
    (Greiner, 1909). That is divided by the root of the reliability of a mean over seeds (Spearman-Brown, from the seed-to-seed
    tau), cut at -1 and 1, and turned back.

    The interval is Fisher's z with variance 0.437 / (n - 4) (Fieller, Hartley & Pearson, 1957), which assumes monotone transforms
    of normal values. At a tau of 1 it starts where that of one pair in another order does. p is SciPy's.

    Args:
        search: (n,) a measure of each cell.
        evaluations: (n,) or (n, seeds), its accuracy with each evaluation seed; nan where a seed was not evaluated.

    Raises:
        ValueError: other shapes, values that are not finite, or a cell without an evaluation.
    """
    measure, accuracies = _check(search, evaluations, "kendall_tau")
    means = np.nanmean(accuracies, axis=1)
    size, tau, p = measure.size, math.nan, math.nan
    if size > 1 and np.ptp(measure) and np.ptp(means):
        tau, p = map(float, stats.kendalltau(measure, means))
    variance = TAU_VARIANCE / (size - 4) if size > 4 else math.nan
    low, high = _fisher(tau, variance)
    if size > 4 and abs(tau) >= 1 - 1e-12:  # z is infinite: from the nearest other order, which has one pair turned round
        low, high = _fisher(math.copysign(1 - 4 / (size * (size - 1)), tau), variance)
        low, high = (low, 1.0) if tau > 0 else (-1.0, high)
    return RankAgreement(size, math.comb(size, 2), tau, low, high, p, *_without_noise(tau, accuracies, [np.arange(size)]))


def tau_within_variants(
    search: ArrayLike, evaluations: ArrayLike, variants: Sequence[Hashable], cells: Sequence[Hashable], rng: np.random.Generator
) -> RankAgreement:
    """How well accuracy at search time orders the cells of one variant as their evaluations do, all variants together.

    Only pairs of cells of one variant count, since search networks of two variants differ in accuracy whatever their cells are
    worth: tau-b is concordant less discordant pairs over the geometric mean of those that differ in either measure. Seed-to-seed
    and disattenuated tau, as `kendall_tau` has them, are of the same pairs.

    The interval is the percentile bootstrap's of cells, drawn within each variant; variants that share cells are drawn from
    together. There is none where all draws agree. p is that of a permutation test of the search's figures within each variant. With
    more than 10,000 pairs, the interval is Fisher's z with the jackknife's variance, and p that of the permutations' normal limit.

    Args:
        search, evaluations: as `kendall_tau` has them; a row is a cell of a variant.
        variants, cells: the variant and the cell of each row; a cell stands in a variant once.

    Raises:
        ValueError: other shapes, values that are not finite, or a cell twice in a variant.
    """
    measure, accuracies = _check(search, evaluations, "tau_within_variants")
    if not len(variants) == len(cells) == measure.size or len(set(zip(variants, cells, strict=True))) < measure.size:
        needed = f"{measure.size} values need as many variants and cells, each cell once in a variant"
        raise ValueError(f"tau_within_variants: {needed}")
    rows = pd.DataFrame({"cell": list(cells), "variant": list(variants)})
    groups = [np.asarray(group) for group in rows.groupby("variant", sort=False).indices.values() if len(group) > 1]
    names = rows["cell"].iloc[np.concatenate([*groups, []]).astype(int)].unique()
    means = np.nanmean(accuracies, axis=1)
    sides = [(measure[group], means[group]) for group in groups]
    members = [pd.Index(names).get_indexer(rows["cell"].iloc[group]) for group in groups]
    pairs = sum(math.comb(len(group), 2) for group in groups)
    sums = sum((_pair_sums(*side) for side in sides), np.zeros(3))
    tau, p, interval = _tau_of(sums), math.nan, (math.nan, math.nan)
    if not math.isnan(tau) and pairs > DRAWN_UP_TO:
        p, interval = _normal_p(sums[0], sides), _fisher(tau, _jackknife(sums, sides, members, len(names)))
    elif not math.isnan(tau):
        p = _permutation_p(sides, rng)
        interval = _bootstrap(sides, members, len(names), rng) if pairs >= FEWEST_PAIRS else interval
    return RankAgreement(len(names), pairs, tau, *interval, p, *_without_noise(tau, accuracies, groups))


def _check(search: ArrayLike, evaluations: ArrayLike, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The measure (n,) and the evaluations (n, seeds)."""
    measure = finite_values(search, "search")
    accuracies = np.asarray(evaluations, dtype=np.float64)
    accuracies = accuracies[:, None] if accuracies.ndim == 1 else accuracies
    known = np.isfinite(accuracies)
    if accuracies.ndim != 2 or len(accuracies) != measure.size or np.isinf(accuracies).any() or not known.any(axis=1).all():
        needed = f"a finite number in each row, and {measure.size} rows"
        raise ValueError(f"{name}: evaluations of shape {accuracies.shape}, needs {needed}")
    return measure, accuracies


def _signs(values: NDArray[np.float64], rows: NDArray[np.int64] | slice = slice(None)) -> NDArray[np.float64]:
    """(rows, n): which value of each pair is larger."""
    signs: NDArray[np.float64] = np.sign(values[rows, None] - values)
    return signs


def _pair_sums(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Concordant less discordant pairs, and the pairs that differ in each measure; every pair twice."""
    if one.size <= COMPARED_UP_TO:
        first, second = _signs(one), _signs(other)
        return np.array([np.sum(first * second), np.sum(first**2), np.sum(second**2)])
    differing = [values.size**2 - float(np.sum(np.unique(values, return_counts=True)[1] ** 2)) for values in (one, other)]
    tau = float(stats.kendalltau(one, other, method="asymptotic").statistic) if all(differing) else 0.0
    return np.array([tau * math.sqrt(differing[0] * differing[1]), *differing])


def _tau_of(sums: NDArray[np.float64]) -> float:
    return float(sums[0] / math.sqrt(sums[1] * sums[2])) if sums[1] and sums[2] else math.nan


def _permutation_p(sides: Sequence[Pair], rng: np.random.Generator) -> float:
    signs = [(_signs(one), _signs(other)) for one, other in sides]
    observed = abs(sum(float(np.sum(one * other)) for one, other in signs))
    permuted = np.zeros(RESAMPLES)
    for one, other in signs:
        size = len(one)
        for block in np.array_split(permuted, math.ceil(RESAMPLES * size**2 / BLOCK)):  # views
            orders = rng.permuted(np.tile(np.arange(size), (len(block), 1)), axis=1)
            block += np.einsum("ij,bij->b", one, other[orders[:, :, None], orders[:, None, :]])
    return (1 + int(np.sum(np.abs(permuted) >= observed - 0.5))) / (1 + RESAMPLES)


def _normal_p(observed: float, sides: Sequence[Pair]) -> float:
    """With the variance over all permutations, ties included (Daniels, 1944)."""
    variance = 0.0
    for one, other in sides:
        size, (_, *squares) = one.size, _pair_sums(one, other)
        paths = [
            float(np.sum((2 * stats.rankdata(values) - size - 1) ** 2)) - square
            for values, square in zip((one, other), squares, strict=True)
        ]
        variance += 4 * paths[0] * paths[1] / (size * (size - 1) * (size - 2)) if size > 2 else 0.0
        variance += 2 * squares[0] * squares[1] / (size * (size - 1))
    return float(2 * stats.norm.sf(abs(observed) / math.sqrt(variance)))


def _jackknife(sums: NDArray[np.float64], sides: Sequence[Pair], members: Sequence[NDArray[np.int64]], count: int) -> float:
    """The variance of Fisher's z of tau: of its change without each row of a variant, summed for rows of one cell."""
    shifts = np.zeros(count)
    for (one, other), cells in zip(sides, members, strict=True):
        rows = np.zeros((one.size, 3))
        for block in np.array_split(np.arange(one.size), math.ceil(one.size**2 / BLOCK)):
            first, second = _signs(one, block), _signs(other, block)
            rows[block] = np.stack([np.sum(values, axis=1) for values in (first * second, first**2, second**2)], axis=1)
        rest = sums - 2 * rows
        without = np.arctanh(np.clip(rest[:, 0] / np.sqrt(rest[:, 1] * rest[:, 2]), -1 + 1e-12, 1 - 1e-12))
        shifts[cells] += without - without.mean()
    return float(np.sum(shifts**2))


def _bootstrap(
    sides: Sequence[Pair], members: Sequence[NDArray[np.int64]], count: int, rng: np.random.Generator
) -> tuple[float, float]:
    ends = np.concatenate([np.full(cells.size, cells[0]) for cells in members]), np.concatenate(members)
    links = sparse.coo_array((np.ones(ends[0].size), ends), (count, count))
    parts = sparse.csgraph.connected_components(links, directed=False)[1]
    weights = np.zeros((RESAMPLES, count))
    for part in range(parts.max() + 1):
        cells = np.flatnonzero(parts == part)
        weights[:, cells] = rng.multinomial(cells.size, np.full(cells.size, 1 / cells.size), RESAMPLES)
    sums = np.zeros((3, RESAMPLES))
    for (one, other), cells in zip(sides, members, strict=True):
        first, second, times = _signs(one), _signs(other), weights[:, cells]
        sums += [np.sum((times @ products) * times, axis=1) for products in (first * second, first**2, second**2)]
    known = (sums[1] > 0) & (sums[2] > 0)
    taus = sums[0, known] / np.sqrt(sums[1, known] * sums[2, known])
    if np.ptp(taus) < 1e-12:
        return math.nan, math.nan
    low, high = np.quantile(taus, [0.025, 0.975])
    return float(low), float(high)


def _without_noise(tau: float, accuracies: NDArray[np.float64], groups: Sequence[NDArray[np.int64]]) -> tuple[float, float]:
    """Seed-to-seed tau and disattenuated tau; the number of seeds is the harmonic mean over cells."""
    sums = np.zeros(3)
    for one, other in itertools.combinations(accuracies.T, 2):
        for group in groups:
            both = group[np.isfinite(one[group]) & np.isfinite(other[group])]
            sums += _pair_sums(one[both], other[both])
    seed_tau = _tau_of(sums)
    if math.isnan(tau) or not seed_tau > 0:
        return seed_tau, math.nan
    single = math.sin(math.pi / 2 * seed_tau)
    seeds = 1 / float(np.mean(1 / np.isfinite(accuracies[np.concatenate(groups)]).sum(axis=1)))
    reliability = seeds * single / (1 + (seeds - 1) * single)
    correlation = math.sin(math.pi / 2 * tau) / math.sqrt(reliability)
    return seed_tau, 2 / math.pi * math.asin(min(1.0, max(-1.0, correlation)))


def minimum_detectable_tau(n: int, comparisons: int = 1, power: float = 0.8) -> float:
    """The true tau that is claimed with the given power; inf where none is, however large.

    The rule of a claim is that of `minimum_detectable_difference`, with interval and p of `kendall_tau`. Values are normal, up to
    monotone transforms. Up to 30 genotypes studies are simulated; beyond, the power is that of the interval's normal approximation.
    """
    if comparisons < 1 or not 0.5 <= power < 1.0:
        needed = "at least 1 comparison and 0.5 <= power < 1"
        raise ValueError(f"minimum_detectable_tau: {comparisons} comparisons and power {power}, needs {needed}")
    level = 0.05 / comparisons
    if n > SIMULATED_UP_TO:
        return math.tanh(float(stats.norm.isf(level / 2) + stats.norm.ppf(power)) * math.sqrt(TAU_VARIANCE / (n - 4)))
    turned = _turned_pairs(n, level)
    if turned < 0:
        return math.inf
    # Of second = slope * first + noise, a pair has the order of the first from the slope on that outweighs its noise.
    first, noise = np.random.default_rng(0).standard_normal((2, SIMULATED, n))
    one, other = np.triu_indices(n, 1)
    slopes = (noise[:, other] - noise[:, one]) / (first[:, one] - first[:, other])
    least = np.partition(slopes, -1 - turned, axis=1)[:, -1 - turned]
    return 2 / math.pi * math.atan(float(np.quantile(least, power)))


def _turned_pairs(n: int, level: float) -> int:
    """How many pairs may be turned round in an order of n that is claimed to agree; -1 if not even none."""
    for turned in range(n * (n - 1) // 2 + 1):
        places, rest, order = list(range(n)), turned, []
        while places:
            rest -= (step := min(rest, len(places) - 1))
            order.append(places.pop(step))
        agreement = kendall_tau(range(n), order)
        if not (agreement.ci_low > 0 and agreement.p < level):
            return turned - 1
    return -1


def _fisher(correlation: float, variance: float) -> tuple[float, float]:
    if math.isnan(correlation) or math.isnan(variance) or abs(correlation) >= 1 - 1e-12:
        return math.nan, math.nan
    centre, reach = math.atanh(correlation), float(stats.norm.ppf(0.975)) * math.sqrt(variance)
    return math.tanh(centre - reach), math.tanh(centre + reach)


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of two measures, with others partialled out."""

    n: int
    correlation: float  # nan where there are no differences left to correlate
    ci_low: float  # 95 % interval; nan with too few values
    ci_high: float
    p: float


def partial_correlation(a: ArrayLike, b: ArrayLike, controls: ArrayLike | None = None) -> Correlation:
    """Correlates the ranks of a and b (n,) without what is linear in the ranks of the controls (n, k), if there are any.

    The interval is Fisher's z with variance 1 / (n - 3 - k). p is that of a t-test with n - 2 - k degrees of freedom, for k
    controls that are not multiples of each other (Fisher, 1924). ValueError for other shapes or values that are not finite.
    """
    first, second = finite_values(a, "a"), finite_values(b, "b")
    others = np.empty((first.size, 0)) if controls is None else np.asarray(controls, dtype=np.float64)
    if first.size != second.size or others.ndim != 2 or len(others) != first.size or not np.isfinite(others).all():
        raise ValueError(f"partial_correlation: {first.size} and {second.size} values, controls of shape {others.shape}")
    design = np.column_stack([np.ones(first.size), *(stats.rankdata(column) for column in others.T)])
    ranks = np.column_stack([stats.rankdata(first), stats.rankdata(second)])
    residuals = ranks - design @ np.linalg.lstsq(design, ranks)[0]
    scale = np.sqrt(np.sum(residuals**2, axis=0))
    free = first.size - 1 - int(np.linalg.matrix_rank(design))  # n - 2 - k
    if free < 1 or scale.min() < 1e-9 * first.size:
        return Correlation(first.size, math.nan, math.nan, math.nan, math.nan)
    r = float(np.clip(residuals[:, 0] @ residuals[:, 1] / scale.prod(), -1.0, 1.0))
    low, high = _fisher(r, 1 / (free - 1) if free > 1 else math.nan)
    p = 0.0 if abs(r) == 1 else float(2 * stats.t.sf(abs(r) * math.sqrt(free / (1 - r**2)), free))
    return Correlation(first.size, r, low, high, p)
