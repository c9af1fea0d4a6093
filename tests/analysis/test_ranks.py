"""Kendall's tau with its interval and without seed noise, and partial correlation: by hand, against SciPy, by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from common import ranks
from common.ranks import kendall_tau, minimum_detectable_tau, partial_correlation, tau_within_variants
from common.statistics import holm


def correlated(rng, n, rho):
    first = rng.standard_normal(n)
    return first, rho * first + math.sqrt(1 - rho**2) * rng.standard_normal(n)


def test_tau_by_hand():
    result = kendall_tau([1, 2, 3, 4], [1, 3, 2, 4])  # of 6 pairs, 5 agree
    assert (result.n, result.tau) == (4, pytest.approx(4 / 6))
    assert all(map(math.isnan, (result.ci_low, result.seed_tau, result.disattenuated)))


def test_tau_and_p_are_scipys_and_the_interval_is_fishers():
    first, second = correlated(np.random.default_rng(0), 14, 0.6)
    result, reference = kendall_tau(first, second), stats.kendalltau(first, second)
    assert (result.tau, result.p) == (reference.statistic, reference.pvalue)
    reach = 1.959964 * math.sqrt(0.437 / 10)
    assert result.ci_low == pytest.approx(math.tanh(math.atanh(result.tau) - reach), abs=1e-6)
    assert result.ci_high == pytest.approx(math.tanh(math.atanh(result.tau) + reach), abs=1e-6)


@pytest.mark.parametrize(("n", "rho"), [(6, 0.5), (10, 0.0), (15, 0.5), (30, 0.8)])
def test_interval_of_tau_covers_the_truth_within_three_points_of_what_it_says(n, rho):
    rng = np.random.default_rng(n)
    truth = 2 / math.pi * math.asin(rho)
    found = [kendall_tau(*correlated(rng, n, rho)) for _ in range(500)]
    assert np.mean([result.ci_low <= truth <= result.ci_high for result in found]) == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize(("n", "family"), [(6, 1), (9, 3), (12, 1), (30, 6), (31, 1)])
def test_the_detectable_tau_is_claimed_by_the_whole_rule_four_times_in_five(n, family):
    rng = np.random.default_rng(n)
    rho = math.sin(math.pi / 2 * minimum_detectable_tau(n, family))
    found = [kendall_tau(*correlated(rng, n, rho)) for _ in range(1000)]
    claims = [tau.ci_low > 0 and holm([tau.p, *[1.0] * (family - 1)])[0] < 0.05 for tau in found]
    assert np.mean(claims) == pytest.approx(0.8, abs=0.04)


def test_a_tau_that_no_interval_or_no_corrected_p_can_show_is_not_detectable():
    for n, comparisons in ((1, 1), (4, 1), (5, 1), (6, 20)):
        assert minimum_detectable_tau(n, comparisons) == math.inf
    surest = kendall_tau(range(6), range(6))
    assert surest.ci_low > 0
    assert holm([surest.p, *[1.0] * 19])[0] > 0.05
    assert minimum_detectable_tau(6, 17) < 1
    for comparisons, power in ((1, 0.2), (0, 0.8)):
        with pytest.raises(ValueError, match="minimum_detectable_tau: "):
            minimum_detectable_tau(9, comparisons, power)


def test_two_equal_orders_have_the_interval_of_one_turned_pair_up_to_one():
    result = kendall_tau(range(6), range(6))
    nearest = kendall_tau([1, 0, 2, 3, 4, 5], range(6))
    assert (result.tau, result.ci_low, result.ci_high) == pytest.approx((1.0, nearest.ci_low, 1.0))
    assert kendall_tau(range(6), range(6, 0, -1)).ci_high == pytest.approx(-result.ci_low)


def test_disattenuation_by_hand():
    # Both seeds give the order 1 2 3 4 and 2 1 3 4 of what was seen: seed-to-seed tau 4/6, and 1/2 is its correlation's place.
    seen, first, second = [1, 2, 3, 4], [1, 2, 3, 4], [2, 1, 3, 4]
    result = kendall_tau(seen, np.column_stack([first, second]))
    assert result.seed_tau == pytest.approx(4 / 6)
    single = math.sin(math.pi / 2 * 4 / 6)
    reliability = 2 * single / (1 + single)
    corrected = math.sin(math.pi / 2 * result.tau) / math.sqrt(reliability)
    assert result.disattenuated == pytest.approx(2 / math.pi * math.asin(min(1, corrected)))
    assert result.disattenuated > result.tau


@pytest.mark.parametrize("seeds", [2, 4])
def test_disattenuated_tau_is_the_one_without_seed_noise(seeds):
    rng = np.random.default_rng(seeds)
    seen, quality = correlated(rng, 3000, 0.6)
    noisy = quality[:, None] + rng.normal(0, 1.2, (3000, seeds))
    truth = 2 / math.pi * math.asin(0.6)
    result = kendall_tau(seen, noisy)
    assert result.tau < truth - 0.04
    assert result.disattenuated == pytest.approx(truth, abs=0.025)


def test_a_gap_that_is_all_noise_has_no_disattenuated_tau():
    rng = np.random.default_rng(8)
    evaluations = np.column_stack([np.arange(6.0), -np.arange(6.0)])  # the second seed turns the order round
    result = kendall_tau(rng.standard_normal(6), evaluations + 0.01 * rng.standard_normal((6, 2)))
    assert result.seed_tau < 0
    assert math.isnan(result.disattenuated)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=12))
def test_tau_does_not_change_under_monotone_transforms_and_stays_in_range(rows):
    seen, first, second = np.array(rows, dtype=float).T
    result = kendall_tau(seen, np.column_stack([first, second]))
    again = kendall_tau(np.exp(seen), np.column_stack([first, second]))
    assert again == result or math.isnan(result.tau) or any(map(math.isnan, (result.ci_low, result.seed_tau, result.disattenuated)))
    for value in (result.tau, result.ci_low, result.ci_high, result.seed_tau, result.disattenuated):
        assert math.isnan(value) or -1 - 1e-9 <= value <= 1 + 1e-9


def test_no_differences_have_no_tau():
    assert math.isnan(kendall_tau([1.0, 1.0], [1.0, 2.0]).tau)
    assert math.isnan(kendall_tau([1.0], [1.0]).tau)


@pytest.mark.parametrize(
    ("a", "b"),
    [([1.0], [1.0, 2.0]), ([], []), ([1.0, 2.0], [[math.nan, math.nan], [1.0, 2.0]]), ([1.0, 2.0], [[1.0, math.inf], [1.0, 2.0]])],
)
def test_what_does_not_fit_together_is_refused(a, b):
    with pytest.raises(ValueError, match=r"kendall_tau: |search: "):
        kendall_tau(a, b)


def test_partial_correlation_is_the_textbook_formula_and_without_controls_scipys():
    rng = np.random.default_rng(3)
    hidden = rng.normal(size=20)
    a, b = hidden + rng.normal(size=20), hidden + rng.normal(size=20)
    plain = stats.spearmanr(a, b)
    result = partial_correlation(a, b)
    assert (result.correlation, result.p) == (pytest.approx(plain.statistic), pytest.approx(plain.pvalue))
    ab, ac, bc = (stats.spearmanr(x, y).statistic for x, y in ((a, b), (a, hidden), (b, hidden)))
    partial = partial_correlation(a, b, hidden[:, None])
    assert partial.correlation == pytest.approx((ab - ac * bc) / math.sqrt((1 - ac**2) * (1 - bc**2)))
    assert partial.ci_low < partial.correlation < partial.ci_high


def test_a_correlation_that_is_all_of_the_controls_goes_and_one_that_is_not_stays():
    rng = np.random.default_rng(6)
    params = rng.normal(size=300)
    a, b = params + 0.3 * rng.normal(size=300), params + 0.3 * rng.normal(size=300)
    assert partial_correlation(a, b).correlation > 0.8
    assert abs(partial_correlation(a, b, params[:, None]).correlation) < 0.2
    shared = rng.normal(size=300)
    kept = partial_correlation(a + shared, b + shared, np.column_stack([params, 2 * params]))  # the second says nothing new
    assert kept.correlation > 0.5
    assert kept == partial_correlation(a + shared, b + shared, params[:, None]) or kept.correlation == pytest.approx(
        partial_correlation(a + shared, b + shared, params[:, None]).correlation
    )


def test_too_few_values_for_the_controls_have_no_correlation():
    result = partial_correlation([1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [[1.0], [3.0], [2.0]])
    assert math.isnan(result.correlation)
    with pytest.raises(ValueError, match="partial_correlation: 2 and 2 values, controls of shape"):
        partial_correlation([1.0, 2.0], [1.0, 2.0], [[1.0]])


def within(search, evaluations, variants, cells=None, seed=0):
    cells = list(range(len(search))) if cells is None else cells
    return tau_within_variants(search, evaluations, variants, cells, np.random.default_rng(seed))


def test_tau_within_variants_by_hand():
    # Variant a: of 3 pairs, 2 agree (+1); variant b: one pair, which disagrees (-1). The 6 pairs between them say nothing.
    result = within([1, 2, 3, 11, 12], [1, 3, 2, 9, 8], list("aaabb"))
    assert (result.n, result.pairs, result.tau) == (5, 4, 0.0)
    assert math.isnan(result.ci_low)  # of fewer than 10 pairs
    tied = within([1, 2, 2, 11, 12], [1, 3, 2, 9, 8], list("aaabb"))  # of 4 pairs, 3 differ in both: 2 agree, 1 does not
    assert tied.tau == pytest.approx(1 / math.sqrt(3 * 4))
    assert within([1, 2, 3], [1, 2, 3], list("abc")).pairs == 0  # one cell a variant: nothing is compared
    assert math.isnan(within([1, 2, 3], [1, 2, 3], list("abc")).tau)


def test_tau_within_one_variant_is_kendalls_and_its_p_that_of_all_permutations():
    first, second = correlated(np.random.default_rng(1), 9, 0.5)
    result, reference = within(first, second, ["a"] * 9), stats.kendalltau(first, second)
    assert result.tau == pytest.approx(reference.statistic)
    assert result.p == pytest.approx(reference.pvalue, abs=0.02)
    assert result == within(first, second, ["a"] * 9)  # of one seed, one interval


def test_offsets_between_variants_neither_make_nor_hide_an_agreement():
    rng = np.random.default_rng(4)
    variants, offset = np.repeat(["a", "b"], 60), np.repeat([0.0, 9.0], 60)
    first, second = rng.standard_normal(120), rng.standard_normal(120)
    assert kendall_tau(first + offset, second + offset).ci_low > 0.3  # all of it is the offset
    none = within(first + offset, second + offset, variants)
    assert abs(none.tau) < 0.15
    assert none.ci_low < 0 < none.ci_high
    assert none.p > 0.05
    agreeing = first + 0.3 * second
    assert kendall_tau(first + offset, agreeing - offset).ci_high < 0.2
    found = within(first + offset, agreeing - offset, variants)
    sides = [stats.kendalltau(first[side], agreeing[side]).statistic for side in (slice(60), slice(60, 120))]
    assert found.tau == pytest.approx(np.mean(sides))
    assert found.ci_low > 0.6
    assert found.p < 0.001


@pytest.mark.parametrize(("sizes", "rho"), [((6, 6, 6, 6), 0.0), ((6, 6, 6, 6), 0.6), ((3, 3, 3, 3), 0.3), ((10, 3, 3), 0.5)])
def test_interval_within_variants_covers_the_truth_and_p_is_right(sizes, rho, monkeypatch):
    monkeypatch.setattr(ranks, "RESAMPLES", 499)
    rng, variants = np.random.default_rng(sum(sizes)), np.repeat(np.arange(len(sizes)), sizes)
    truth = 2 / math.pi * math.asin(rho)
    found = []
    for seed in range(300):
        first, second = correlated(rng, len(variants), rho)
        found.append(within(first + 5 * variants, second - 3 * variants, variants.tolist(), seed=seed))
    assert 0.92 <= np.mean([result.ci_low <= truth <= result.ci_high for result in found]) <= 0.995
    if rho == 0:
        assert np.mean([result.p <= 0.05 for result in found]) == pytest.approx(0.05, abs=0.03)


def test_cells_that_all_variants_share_are_not_so_many_measurements():
    rng = np.random.default_rng(0)
    quality = np.tile(rng.standard_normal(8), 4)  # four variants found the same eight cells
    search = 0.6 * quality + rng.standard_normal(32)
    variants = np.repeat(list("abcd"), 8).tolist()
    shared, apart = within(search, quality, variants, np.tile(np.arange(8), 4).tolist()), within(search, quality, variants)
    assert (shared.n, apart.n, shared.tau) == (8, 32, apart.tau)
    assert shared.ci_high - shared.ci_low > 1.1 * (apart.ci_high - apart.ci_low)
    with pytest.raises(ValueError, match="each cell once in a variant"):
        within([1, 2], [1, 2], ["a", "a"], ["x", "x"])


def test_seed_to_seed_tau_is_within_variants_and_of_the_cells_that_have_both_seeds():
    # Variant means are far apart in both seeds, and within variants the seeds give opposite orders.
    seeds = np.array([[1.0, 2.0], [2.0, 1.0], [11.0, 12.0], [12.0, 11.0]])
    assert within([1, 2, 3, 4], seeds, list("aabb")).seed_tau == -1.0
    assert kendall_tau([1, 2, 3, 4], seeds).seed_tau > 0
    partial = within([1, 2, 3, 4], [[1.0, 1.0], [2.0, 2.0], [3.0, math.nan], [4.0, 1.0]], list("aabb"))
    assert (partial.tau, partial.seed_tau) == (0.0, 1.0)  # means 1, 2 and 3, 2.5


def test_with_very_many_pairs_interval_and_p_are_normal_ones_and_agree_with_those_drawn(monkeypatch):
    rng = np.random.default_rng(2)
    search, quality = rng.integers(0, 9, 40), rng.integers(0, 9, 40)  # with ties
    variants, cells = np.repeat(list("ab"), [25, 15]).tolist(), [*range(25), *range(15)]  # which share 15 cells
    for found in (quality, search + quality / 2):
        drawn = within(search, found, variants, cells)
        with monkeypatch.context() as patch:
            patch.setattr(ranks, "DRAWN_UP_TO", 0)
            patch.setattr(ranks, "COMPARED_UP_TO", 0)
            normal = within(search, found, variants, cells)
        assert (normal.tau, normal.pairs) == (pytest.approx(drawn.tau), drawn.pairs)
        assert normal.p == pytest.approx(drawn.p, abs=0.02)
        assert (normal.ci_low, normal.ci_high) == pytest.approx((drawn.ci_low, drawn.ci_high), abs=0.06)
