"""Non-inferiority, McNemar's test, and how the sign-flip test and the interval behave over many simulated data sets."""

import math

import numpy as np
import pytest
from scipy import stats

from common import statistics
from common.statistics import mcnemar, mean_interval, non_inferiority, paired_comparison


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


def test_non_inferiority_by_hand():
    # Less a margin of 3: -2.9, -3.1, -3.0, -2.8, -3.2, -3.05, the lowest sum of all 64 flips.
    result = judge([0.1, -0.1, 0.0, 0.2, -0.2, -0.05], 3.0)
    assert (result.n, result.p_value, result.min_p, result.margin) == (6, 1 / 64, 1 / 64, 3.0)
    assert result.shown
    # Less a margin of 1: 1, 1, -2. Sums of the 8 flips: 4, 2, 2, 0, 0, -2, -2, -4; five are as low as the observed 0.
    result = judge([2.0, 2.0, -1.0], 1.0)
    assert result.p_value == 5 / 8
    assert not result.shown


def test_five_pairs_can_never_show_non_inferiority():
    result = judge([0.0, 0.01, -0.01, 0.02, -0.02], 100.0)
    assert result.p_value == result.min_p == 1 / 32
    assert result.ci_high < 1
    assert not result.shown


def test_what_is_clearly_worse_is_not_shown_to_be_no_worse_however_many_pairs():
    rng = np.random.default_rng(1)
    assert not judge(rng.normal(1.0, 0.2, 15), 0.5).shown
    assert judge(rng.normal(0.0, 0.2, 15), 0.5).shown


def test_a_difference_of_just_the_margin_is_called_non_inferior_at_most_as_often_as_the_level_says():
    rng = np.random.default_rng(2)
    shown = [judge(rng.normal(0.5, 1.0, 12), 0.5, seed).shown for seed in range(400)]
    assert np.mean(shown) <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / 400)


@pytest.mark.parametrize("margin", [0.0, -1.0, math.nan, math.inf])
def test_a_margin_that_is_none_is_refused(margin):
    with pytest.raises(ValueError, match="non_inferiority: margin"):
        judge([1.0, 2.0], margin)


def test_mcnemar_by_hand():
    a = np.array([1, 1, 1, 1, 1, 0, 0], dtype=bool)
    b = np.array([0, 0, 0, 0, 1, 0, 1], dtype=bool)
    result = mcnemar(a, b)
    assert (result.n, result.only_a, result.only_b) == (7, 4, 1)
    assert result.p_value == pytest.approx(12 / 32)  # of 5 coins: 2 (C(5, 4) + C(5, 5)) of 32
    assert mcnemar(b, a).p_value == result.p_value
    assert mcnemar(a, a).p_value == 1.0


def test_mcnemar_is_that_of_statsmodels_on_random_flags():
    rng = np.random.default_rng(1)
    result = mcnemar(rng.random(500) < 0.9, rng.random(500) < 0.86)
    assert (result.only_a, result.only_b) == (77, 43)
    assert result.p_value == pytest.approx(0.0024468567628141724)  # statsmodels 0.15, mcnemar(exact=True)


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
    with pytest.raises(ValueError, match="4 values, 3 cells"):
        mean_interval([1.0, 1.0, 2.0, 2.0], rng, list("aab"))
