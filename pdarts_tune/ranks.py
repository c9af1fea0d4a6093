"""Does one measure order genotypes as another does?

Part of `statistics.py`, which is where to import from.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse, stats

from pdarts_tune.paired import BLOCK, RESAMPLES, finite_values

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
