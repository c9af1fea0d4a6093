"""The statistics, against values worked out by hand, SciPy's own permutation test and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from common import comparisons
from common.comparisons import compare_pairs
from common.statistics import holm, mean_sd, minimum_detectable_difference, paired_comparison, smallest_p

values = st.floats(-100, 100, allow_nan=False).map(lambda value: round(value, 3))
pairs = st.lists(st.tuples(values, values), min_size=1, max_size=9)


def compare(a, b, seed=0):
    return paired_comparison(a, b, np.random.default_rng(seed))


def test_three_pairs_that_agree_by_hand():
    result = compare([3.0, 4.0, 5.0], [2.0, 2.0, 2.0])
    assert (result.n, result.mean_difference) == (3, 2.0)
    assert result.p_value == result.min_p == 0.25  # of the 8 flips of 1, 2, 3 only +++ and --- reach a sum of 6
    assert 1.0 <= result.ci_low < 2.0 < result.ci_high <= 3.0


def test_three_pairs_that_disagree_by_hand():
    # Flips of 1, 2, -4: sums -1, 7, -5, 3, and their mirror images; all 8 are at least as far from 0 as the observed -1.
    assert compare([1.0, 2.0, 0.0], [0.0, 0.0, 4.0]).p_value == 1.0
    # Flips of 1, 2, 4: the observed 7 and its mirror image, of 8. Of -1, 2, 4: 5 and 7, so 4 of 8.
    assert compare([1.0, 2.0, 4.0], [0.0, 0.0, 0.0]).p_value == 0.25
    assert compare([-1.0, 2.0, 4.0], [0.0, 0.0, 0.0]).p_value == 0.5


@pytest.mark.parametrize("n", [2, 3, 6, 10])
def test_exact_p_is_that_of_scipys_permutation_test(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.5, 1, n), rng.normal(0, 1, n)
    reference = stats.permutation_test(
        (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    assert compare(a, b).p_value == pytest.approx(reference.pvalue)


def test_exact_p_counts_ties_that_rounding_tears_apart():
    # 0.3 - 0.2 and 0.2 - 0.1 differ in the last bit; the 8 flips of three equal differences hold 2 as extreme as the observed.
    a, b = [0.3, 0.2, 0.4], [0.2, 0.1, 0.3]
    assert len(set(np.subtract(a, b))) > 1
    result = compare(a, b)
    assert result.p_value == 0.25
    assert math.isnan(result.ci_low)
    assert math.isnan(result.ci_high)


def test_no_difference_at_all_has_p_one_and_no_interval():
    result = compare([0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
    assert (result.mean_difference, result.p_value) == (0.0, 1.0)
    assert math.isnan(result.ci_low)


@pytest.mark.parametrize("n", [1, 2])
def test_fewer_than_three_pairs_have_no_interval(n):
    result = compare([1.0, 3.0][:n], [0.0, 0.0][:n])
    assert math.isnan(result.ci_low)
    assert math.isnan(result.ci_high)
    assert result.p_value == result.min_p == [1.0, 0.5][n - 1]


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
    assert compare(differences, np.zeros(21)).p_value == pytest.approx(exact, abs=0.01)
    surest = compare(np.ones(40), np.zeros(40))
    assert surest.p_value == surest.min_p == pytest.approx(1 / 20_001)


def test_a_true_null_is_rejected_at_most_as_often_as_the_level_says():
    rng = np.random.default_rng(7)
    p_values = [compare(rng.normal(size=8), rng.normal(size=8)).p_value for _ in range(400)]
    assert np.mean(np.array(p_values) < 0.05) < 0.08


@settings(deadline=None, max_examples=60)
@given(pairs)
def test_p_is_between_the_smallest_possible_and_one_and_swapping_turns_the_sign(drawn):
    a, b = zip(*drawn, strict=True)
    forth, back = compare(a, b), compare(b, a)
    assert forth.min_p == smallest_p(len(drawn))
    assert forth.min_p <= forth.p_value <= 1.0
    assert back.p_value == forth.p_value
    assert back.mean_difference == pytest.approx(-forth.mean_difference, abs=1e-9)
    if not math.isnan(forth.ci_low):
        assert forth.ci_low <= forth.ci_high


@settings(deadline=None, max_examples=30)
@given(pairs, st.floats(0.1, 10))
def test_p_does_not_depend_on_the_unit(drawn, scale):
    a, b = np.array(drawn).T
    assert compare(scale * a, scale * b).p_value == compare(a, b).p_value


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
    with pytest.raises(ValueError, match="0 pairs"):
        smallest_p(0)


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
    with pytest.raises(ValueError, match="non-empty"):
        mean_sd([])


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
    assert comparisons.say_power(found) == "no true difference, however large, could have been claimed"


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
