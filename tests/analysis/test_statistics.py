"""The statistics, against values worked out by hand, SciPy, statsmodels and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from common import comparisons, statistics
from common.comparisons import compare_pairs
from common.statistics import (
    NON_INFERIORITY_LEVEL,
    brown_forsythe,
    holm,
    mcnemar,
    mean_interval,
    mean_sd,
    minimum_detectable_difference,
    non_inferiority,
    paired_comparison,
    proportion_interval,
    smallest_p,
    variance_components,
)

values = st.floats(-100, 100, allow_nan=False).map(lambda value: round(value, 3))
pairs = st.lists(st.tuples(values, values), min_size=1, max_size=9)


def compare(a, b, seed=0):
    return paired_comparison(a, b, np.random.default_rng(seed))


def test_three_pairs_that_agree_by_hand():
    result = compare([3.0, 4.0, 5.0], [2.0, 2.0, 2.0])
    assert (result.n, result.difference) == (3, 2.0)
    assert result.p == result.min_p == 0.25  # of the 8 flips of 1, 2, 3 only +++ and --- reach a sum of 6
    assert 1.0 <= result.ci_low < 2.0 < result.ci_high <= 3.0


def test_three_pairs_that_disagree_by_hand():
    # Flips of 1, 2, -4: sums -1, 7, -5, 3, and their mirror images; all 8 are at least as far from 0 as the observed -1.
    assert compare([1.0, 2.0, 0.0], [0.0, 0.0, 4.0]).p == 1.0
    # Flips of 1, 2, 4: the observed 7 and its mirror image, of 8. Of -1, 2, 4: 5 and 7, so 4 of 8.
    assert compare([1.0, 2.0, 4.0], [0.0, 0.0, 0.0]).p == 0.25
    assert compare([-1.0, 2.0, 4.0], [0.0, 0.0, 0.0]).p == 0.5


@pytest.mark.parametrize("n", [2, 3, 6, 10])
def test_exact_p_is_that_of_scipys_permutation_test(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.5, 1, n), rng.normal(0, 1, n)
    reference = stats.permutation_test(
        (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    assert compare(a, b).p == pytest.approx(reference.pvalue)


def test_exact_p_counts_ties_that_rounding_tears_apart():
    # 0.3 - 0.2 and 0.2 - 0.1 differ in the last bit; the 8 flips of three equal differences hold 2 as extreme as the observed.
    a, b = [0.3, 0.2, 0.4], [0.2, 0.1, 0.3]
    assert len(set(np.subtract(a, b))) > 1
    result = compare(a, b)
    assert result.p == 0.25
    assert math.isnan(result.ci_low)
    assert math.isnan(result.ci_high)


def test_no_difference_at_all_has_p_one_and_no_interval():
    result = compare([0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
    assert (result.difference, result.p) == (0.0, 1.0)
    assert math.isnan(result.ci_low)


@pytest.mark.parametrize("n", [1, 2])
def test_fewer_than_three_pairs_have_no_interval(n):
    result = compare([1.0, 3.0][:n], [0.0, 0.0][:n])
    assert math.isnan(result.ci_low)
    assert math.isnan(result.ci_high)
    assert result.p == result.min_p == [1.0, 0.5][n - 1]


def test_interval_is_scipys_bca_with_the_given_generator():
    rng = np.random.default_rng(3)
    a, b = rng.normal(1, 1, 12), rng.normal(0, 1, 12)
    reference = stats.bootstrap((a - b,), np.mean, n_resamples=9999, method="BCa", rng=np.random.default_rng(5)).confidence_interval
    result = compare(a, b, seed=5)
    assert (result.ci_low, result.ci_high) == (reference.low, reference.high)
    assert compare(a, b, seed=5) == result
    assert compare(a, b, seed=6) != result


def test_beyond_twenty_pairs_random_flips_come_close_to_the_exact_p_and_never_give_zero():
    differences = np.random.default_rng(1).normal(0.25, 1, 21)
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    exact = np.mean(np.abs(sums) >= abs(differences.sum()) - 1e-9)
    assert 0.01 < exact < 0.5
    assert compare(differences, np.zeros(21)).p == pytest.approx(exact, abs=0.01)
    surest = compare(np.ones(40), np.zeros(40))
    assert surest.p == surest.min_p == pytest.approx(1 / 20_001)


def test_a_true_null_is_rejected_at_most_as_often_as_the_level_says():
    rng = np.random.default_rng(7)
    p_values = [compare(rng.normal(size=8), rng.normal(size=8)).p for _ in range(400)]
    assert np.mean(np.array(p_values) < 0.05) < 0.08


@settings(deadline=None, max_examples=60)
@given(pairs)
def test_p_is_between_the_smallest_possible_and_one_and_swapping_turns_the_sign(drawn):
    a, b = zip(*drawn, strict=True)
    forth, back = compare(a, b), compare(b, a)
    assert forth.min_p == smallest_p(len(drawn))
    assert forth.min_p <= forth.p <= 1.0
    assert back.p == forth.p
    assert back.difference == pytest.approx(-forth.difference, abs=1e-9)
    if not math.isnan(forth.ci_low):
        assert forth.ci_low <= forth.ci_high


@settings(deadline=None, max_examples=30)
@given(pairs, st.floats(0.1, 10))
def test_p_does_not_depend_on_the_unit(drawn, scale):
    a, b = np.array(drawn).T
    assert compare(scale * a, scale * b).p == compare(a, b).p


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1.0], [1.0, 2.0], "1 values in a, 2 in b"),
        ([], [], "a: needs a non-empty list"),
        ([1.0, math.nan], [1.0, 2.0], "a: needs a non-empty list of finite numbers"),
        ([1.0], [math.inf], "b: needs"),
    ],
)
def test_what_is_not_pairs_of_numbers_is_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        compare(a, b)


def test_smallest_p_by_hand():
    assert [smallest_p(n) for n in (1, 2, 3, 5, 6, 8, 21)] == [1.0, 0.5, 0.25, 0.0625, 0.03125, 0.0078125, 1 / 20_001]


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, never falling: 0.04, 0.06, 0.06, 0.06.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p_values):
    adjusted = holm(p_values)
    assert all(p <= q <= min(1.0, len(p_values) * max(p_values)) or q == p for p, q in zip(p_values, adjusted, strict=True))
    ranked = [q for _, q in sorted(zip(p_values, adjusted, strict=True))]
    assert ranked == sorted(ranked)


def test_holm_refuses_what_is_not_a_probability():
    with pytest.raises(ValueError, match="not all in"):
        holm([0.1, math.nan])


def test_mean_and_sd_by_hand():
    assert mean_sd([1.0, 2.0, 3.0]) == (2.0, 1.0)
    mean, sd = mean_sd([4.0])
    assert mean == 4.0
    assert math.isnan(sd)
    assert all(map(math.isnan, mean_sd([])))
    with pytest.raises(ValueError, match="finite"):
        mean_sd([1.0, math.nan])


@pytest.mark.parametrize(
    ("n", "family"), [(8, 2), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((6, 1), (8, 4), (20, 3)))]
)
def test_the_whole_rule_claims_the_detectable_difference_in_80_percent_of_400_simulated_studies(n, family):
    effect, claims = minimum_detectable_difference(1.0, n, family), []
    for study in range(400):
        rng = np.random.default_rng(study)
        sides = [np.column_stack([rng.normal(mean, 1.0, n), np.zeros(n)]) for mean in (effect, *[0.0] * (family - 1))]
        claims.append(compare_pairs(dict(enumerate(sides)), rng)["claimed"][0])
    assert np.mean(claims) == pytest.approx(0.8, abs=0.04)


@pytest.mark.parametrize(("n", "family"), [(2, 1), (5, 1), (6, 2), (6, 4), (7, 4)])
def test_where_no_difference_however_large_is_claimed_none_is_called_detectable(n, family):
    assert minimum_detectable_difference(1.0, n, family) == minimum_detectable_difference(0.0, n, family) == math.inf
    noise = np.random.default_rng(0).normal(size=n)
    huge, null = np.column_stack([1e6 + noise, np.zeros(n)]), np.column_stack([noise, -noise])
    found = compare_pairs({"huge": huge} | {f"null {index}": null for index in range(1, family)}, np.random.default_rng(0))
    assert not found["claimed"].any()
    assert (found["detectable"] == math.inf).all()
    assert comparisons.describe_power(found) == "no true difference, however large, could have been claimed"


def test_more_comparisons_and_fewer_pairs_need_a_larger_difference_in_the_unit_of_the_spread():
    found = [minimum_detectable_difference(1.0, *case) for case in ((12, 1), (12, 2), (12, 8), (8, 4))]
    assert found == sorted(found)
    assert minimum_detectable_difference(0.3, 12, 2) == pytest.approx(0.3 * found[1])
    assert minimum_detectable_difference(0.0, 12) == 0.0


@pytest.mark.parametrize(("n", "effect"), [(20, 0.6604), (100, 0.2829), (1600, 0.0701)])  # statsmodels 0.15, TTestPower
def test_with_many_pairs_the_detectable_difference_is_that_of_a_paired_t_test_within_three_percent(n, effect):
    assert minimum_detectable_difference(1.0, n) == pytest.approx(effect, rel=0.03)


@pytest.mark.parametrize(
    ("sd", "n", "comparisons", "power"),
    [(1.0, 0, 1, 0.8), (1.0, 9, 0, 0.8), (-1.0, 3, 1, 0.8), (math.nan, 3, 1, 0.8), (1.0, 3, 1, 0.01), (1.0, 3, 1, 1.0)],
)
def test_impossible_power_questions_are_refused(sd, n, comparisons, power):
    with pytest.raises(ValueError, match="minimum_detectable_difference: "):
        minimum_detectable_difference(sd, n, comparisons, power)


def test_holm_is_that_of_statsmodels_on_random_values():
    p_values = np.random.default_rng(0).uniform(0, 0.1, 6).tolist()
    reference = [0.191088506196, 0.107914685506, 0.020486761968, 0.009916581317, 0.191088506196, 0.191088506196]
    assert holm(p_values) == pytest.approx(reference, abs=1e-11)  # statsmodels 0.15, multipletests(method="holm")


def test_sign_flip_p_is_uniform_under_the_null():
    rng = np.random.default_rng(11)
    # With 10 pairs and no ties, p is one of 1/512, 2/512, ..., 1, each as likely; heavy tails must not matter.
    p_values = [paired_p(rng.standard_t(2, size=10), rng.standard_t(2, size=10)) for _ in range(2000)]
    assert {round(512 * p) / 512 for p in p_values} == set(p_values)
    counts = np.histogram(p_values, bins=np.arange(17) / 16 + 1 / 1024)[0]
    assert stats.chisquare(counts).pvalue > 0.01
    for level in (0.01, 0.05, 0.2, 0.5):
        assert np.mean(np.array(p_values) <= level) == pytest.approx(level, abs=3.5 * math.sqrt(level * (1 - level) / 2000))


def paired_p(a, b):
    return statistics._sign_flip_p(a - b, np.random.default_rng(0))


@pytest.mark.parametrize("pairs", [9, 20])  # the bits of the last byte are not all signs, whatever the number of pairs
def test_random_flips_agree_with_all_flips(pairs, monkeypatch):
    differences = np.random.default_rng(3).normal(0.3, 1.0, pairs)
    exact = [statistics._sign_flip_p(differences, np.random.default_rng(0), sided) for sided in (True, False)]
    monkeypatch.setattr(statistics, "EXACT_UP_TO", 0)
    drawn = [statistics._sign_flip_p(differences, np.random.default_rng(0), sided) for sided in (True, False)]
    assert 0.05 < exact[0] < 0.95
    for p, reference in zip(drawn, exact, strict=True):
        assert p == pytest.approx(reference, abs=4 * math.sqrt(reference * (1 - reference) / statistics.RANDOM_FLIPS))


def test_the_interval_of_a_mean_is_that_of_pairs_with_nothing():
    values = np.random.default_rng(5).normal(2.0, 1.0, 12)
    found = paired_comparison(values, np.zeros(12), np.random.default_rng(0))
    assert mean_interval(values, np.random.default_rng(0)) == (found.ci_low, found.ci_high)
    assert all(math.isnan(bound) for bound in mean_interval([1.0, 2.0], np.random.default_rng(0)))
    with pytest.raises(ValueError, match="values: needs"):
        mean_interval([], np.random.default_rng(0))


@pytest.mark.parametrize(("draw", "truth", "n"), [("standard_normal", 0.0, 30), ("standard_exponential", 1.0, 50)])
def test_interval_covers_the_truth_within_three_points_of_what_it_says_with_enough_pairs(draw, truth, n, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 999)  # quicker, and a little less exact than what is published
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(500):
        found = paired_comparison(getattr(rng, draw)(n), np.zeros(n), rng)
        hits += found.ci_low <= truth <= found.ci_high
    assert abs(hits / 500 - 0.95) <= 0.03


def test_interval_with_five_pairs_covers_less_than_it_says_as_its_documentation_warns(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 999)
    rng = np.random.default_rng(5)
    found = [paired_comparison(rng.standard_normal(5), np.zeros(5), rng) for _ in range(300)]
    coverage = np.mean([comparison.ci_low <= 0 <= comparison.ci_high for comparison in found])
    assert 0.75 < coverage < 0.90


def judge(differences, margin, seed=0):
    return non_inferiority(differences, np.zeros(len(differences)), margin, np.random.default_rng(seed))


def shown(differences, margin, seed=0):
    result = judge(differences, margin, seed)
    return result.ci_high < margin and result.p < NON_INFERIORITY_LEVEL


def test_non_inferiority_by_hand():
    # Less a margin of 3: -2.9, -3.1, -3.0, -2.8, -3.2, -3.05, the lowest sum of all 64 flips.
    result = judge([0.1, -0.1, 0.0, 0.2, -0.2, -0.05], 3.0)
    assert (result.n, result.p, result.min_p) == (6, 1 / 64, 1 / 64)
    assert result.ci_high < 3.0
    # Less a margin of 1: 1, 1, -2. Sums of the 8 flips: 4, 2, 2, 0, 0, -2, -2, -4; five are as low as the observed 0.
    result = judge([2.0, 2.0, -1.0], 1.0)
    assert result.p == 5 / 8


def test_five_pairs_can_never_show_non_inferiority():
    result = judge([0.0, 0.01, -0.01, 0.02, -0.02], 100.0)
    assert result.p == result.min_p == 1 / 32
    assert result.ci_high < 1
    assert result.p > NON_INFERIORITY_LEVEL


def test_what_is_clearly_worse_is_not_shown_to_be_no_worse_however_many_pairs():
    rng = np.random.default_rng(1)
    assert not shown(rng.normal(1.0, 0.2, 15), 0.5)
    assert shown(rng.normal(0.0, 0.2, 15), 0.5)


def test_a_difference_of_just_the_margin_is_called_non_inferior_at_most_as_often_as_the_level_says():
    rng = np.random.default_rng(2)
    found = [shown(rng.normal(0.5, 1.0, 12), 0.5, seed) for seed in range(400)]
    assert np.mean(found) <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / 400)


@pytest.mark.parametrize("margin", [0.0, -1.0, math.nan, math.inf])
def test_a_margin_that_is_none_is_refused(margin):
    with pytest.raises(ValueError, match="non_inferiority: margin"):
        judge([1.0, 2.0], margin)


def test_mcnemar_by_hand():
    a = np.array([1, 1, 1, 1, 1, 0, 0], dtype=bool)
    b = np.array([0, 0, 0, 0, 1, 0, 1], dtype=bool)
    result = mcnemar(a, b)
    assert result[:2] == (4, 1)
    assert result[2] == pytest.approx(12 / 32)  # of 5 coins: 2 (C(5, 4) + C(5, 5)) of 32
    assert mcnemar(b, a)[2] == result[2]
    assert mcnemar(a, a)[2] == 1.0


def test_mcnemar_is_that_of_statsmodels_on_random_flags():
    rng = np.random.default_rng(1)
    result = mcnemar(rng.random(500) < 0.9, rng.random(500) < 0.86)
    assert result[:2] == (77, 43)
    assert result[2] == pytest.approx(0.0024468567628141724)  # statsmodels 0.15, mcnemar(exact=True)


@pytest.mark.parametrize(("a", "b"), [([], []), ([True], [True, False]), ([1, 0], [0, 1]), ([0.5], [True])])
def test_what_are_not_two_lists_of_flags_is_refused(a, b):
    with pytest.raises(ValueError, match="mcnemar: needs two equally long"):
        mcnemar(a, b)


def test_an_interval_of_a_mean_knows_that_equal_cells_are_one_measurement():
    rng = np.random.default_rng(3)
    cells = rng.standard_normal(8)
    once = mean_interval(cells, np.random.default_rng(0))
    fourfold = mean_interval(np.tile(cells, 4), np.random.default_rng(0), np.tile(np.arange(8), 4).tolist())
    assert fourfold == pytest.approx(once, abs=0.02)
    unaware = mean_interval(np.tile(cells, 4), np.random.default_rng(0))
    assert unaware[1] - unaware[0] < 0.7 * (once[1] - once[0])
    assert mean_interval(cells, np.random.default_rng(0), list(range(8))) == once
    assert all(map(math.isnan, mean_interval([1.0, 1.0, 2.0, 2.0], rng, list("aabb"))))  # two cells


def test_components_by_hand():
    # Two searches, two evaluations each: means 2 and 6, deviations +-1. MS within = 4/2 = 2, MS between = 2 (4 + 4) / 1 = 16.
    result = variance_components([1.0, 3.0, 5.0, 7.0], ["a", "a", "b", "b"])
    assert (result.cells, result.evaluations) == (2, 4)
    assert result.evaluation_sd == pytest.approx(math.sqrt(2))
    assert result.search_sd == pytest.approx(math.sqrt((16 - 2) / 2))
    assert result.search_share == pytest.approx(7 / 9)


def test_components_are_those_of_statsmodels_mixed_model():
    rng = np.random.default_rng(2)
    search, variant = np.repeat(np.arange(12), 4), np.repeat([0, 1, 2], 16)
    values = np.array([0.0, 2.0, 5.0])[variant] + rng.normal(0, 1.0, 12)[search] + rng.normal(0, 0.5, 48)
    result = variance_components(values, search.tolist(), variant.tolist())
    assert result.search_sd == pytest.approx(0.928344, abs=1e-5)  # statsmodels 0.15, mixedlm("y ~ C(variant)", REML)
    assert result.evaluation_sd == pytest.approx(0.526933, abs=1e-5)


def test_components_come_back_from_unequal_numbers_of_evaluations():
    rng = np.random.default_rng(3)
    sizes = rng.integers(1, 6, 3000)
    search = np.repeat(np.arange(3000), sizes)
    values = rng.normal(0, 0.4, 3000)[search] + rng.normal(0, 0.7, len(search))
    result = variance_components(values, search.tolist())
    assert (result.search_sd, result.evaluation_sd) == (pytest.approx(0.4, abs=0.03), pytest.approx(0.7, abs=0.03))


def test_searches_that_differ_by_less_than_their_evaluations_have_no_spread_of_their_own():
    assert variance_components([1.0, 9.0, 1.1, 9.1], ["a", "a", "b", "b"]).search_sd == 0.0


def test_what_was_not_repeated_is_unknown():
    single = variance_components([1.0, 2.0, 3.0], ["a", "b", "c"])
    assert math.isnan(single.search_sd)
    assert math.isnan(single.evaluation_sd)
    one_search = variance_components([1.0, 2.0], ["a", "a"])
    assert math.isnan(one_search.search_sd)
    assert one_search.evaluation_sd == pytest.approx(math.sqrt(0.5))


def test_brown_forsythe_is_scipys_and_says_nothing_where_there_is_nothing():
    rng = np.random.default_rng(0)
    samples = [rng.normal(0, scale, 9) for scale in (1, 4)]
    assert brown_forsythe(*samples) == stats.levene(*samples, center="median").pvalue
    assert brown_forsythe([1.0, 2.0, 3.0, 4.0], [10.0, 30.0, 20.0, 45.0]) < 0.05
    assert math.isnan(brown_forsythe([1.0, 2.0], [1.0, 3.0]))
    assert math.isnan(brown_forsythe([1.0, 1.0, 1.0], [2.0, 2.0, 2.0]))


def test_interval_of_a_proportion_by_hand():
    # Wilson: centre (p + z^2/2n) / (1 + z^2/n), here with p = 1/2 and n = 4: 1/2; reach z sqrt(1/16 + z^2/64) / (1 + z^2/4).
    z = 1.959964
    reach = z * math.sqrt(1 / 16 + z**2 / 64) / (1 + z**2 / 4)
    assert proportion_interval(2, 4) == pytest.approx((0.5 - reach, 0.5 + reach), abs=1e-6)
    assert proportion_interval(0, 3)[0] == 0.0
    assert proportion_interval(0, 3)[1] > 0.5  # none of three says little


def test_a_cell_of_two_variants_is_one_measurement_of_the_evaluations_spread():
    # Variant 1: cells a and b, variant 2: cells a and c; a's evaluations are 1 and 3 in both. Within: (2 + 2 + 8) / 3 = 4.
    # Between: means 2, 6 and 2, 10, of two evaluations each: (16 + 64) / 2 = 40.
    values, cells = [1.0, 3.0, 5.0, 7.0, 1.0, 3.0, 8.0, 12.0], list("aabbaacc")
    result = variance_components(values, cells, [1, 1, 1, 1, 2, 2, 2, 2])
    assert (result.cells, result.evaluations) == (3, 6)
    assert result.evaluation_sd == pytest.approx(2.0)
    assert result.search_sd == pytest.approx(math.sqrt((40 - 4) / 2))
