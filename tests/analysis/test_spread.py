"""Where spread comes from: variance components by hand, against statsmodels and simulation; equal spreads against SciPy."""

import math

import numpy as np
import pytest
from scipy import stats

from common.statistics import brown_forsythe, proportion_interval, relative_improvement, variance_components


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
    with pytest.raises(ValueError, match="2 values, 1 cells"):
        variance_components([1.0, 2.0], ["a"])


def test_brown_forsythe_is_scipys_and_says_nothing_where_there_is_nothing():
    rng = np.random.default_rng(0)
    samples = [rng.normal(0, scale, 9) for scale in (1, 1, 4)]
    assert brown_forsythe(*samples) == stats.levene(*samples, center="median").pvalue
    assert brown_forsythe([1.0, 2.0, 3.0, 4.0], [10.0, 30.0, 20.0, 45.0]) < 0.05
    assert math.isnan(brown_forsythe([1.0, 2.0], [1.0, 3.0]))
    assert math.isnan(brown_forsythe([1.0, 1.0, 1.0], [2.0, 2.0, 2.0]))
    with pytest.raises(ValueError, match="1 samples"):
        brown_forsythe([1.0, 2.0, 3.0])


def test_relative_improvement_by_hand():
    assert relative_improvement(0.99, 0.90) == pytest.approx(10.0)
    assert relative_improvement(90.0, 100.0) == pytest.approx(-10.0)
    with pytest.raises(ValueError, match="no ratio"):
        relative_improvement(0.9, 0.0)


def test_interval_of_a_proportion_by_hand():
    # Wilson: centre (p + z^2/2n) / (1 + z^2/n), here with p = 1/2 and n = 4: 1/2; reach z sqrt(1/16 + z^2/64) / (1 + z^2/4).
    z = 1.959964
    reach = z * math.sqrt(1 / 16 + z**2 / 64) / (1 + z**2 / 4)
    assert proportion_interval(2, 4) == pytest.approx((0.5 - reach, 0.5 + reach), abs=1e-6)
    assert proportion_interval(0, 3)[0] == 0.0
    assert proportion_interval(0, 3)[1] > 0.5  # none of three says little
    with pytest.raises(ValueError, match="4 of 3"):
        proportion_interval(4, 3)


def test_a_cell_of_two_variants_is_one_measurement_of_the_evaluations_spread():
    # Variant 1: cells a and b, variant 2: cells a and c; a's evaluations are 1 and 3 in both. Within: (2 + 2 + 8) / 3 = 4.
    # Between: means 2, 6 and 2, 10, of two evaluations each: (16 + 64) / 2 = 40.
    values, cells = [1.0, 3.0, 5.0, 7.0, 1.0, 3.0, 8.0, 12.0], list("aabbaacc")
    result = variance_components(values, cells, [1, 1, 1, 1, 2, 2, 2, 2])
    assert (result.cells, result.evaluations) == (3, 6)
    assert result.evaluation_sd == pytest.approx(2.0)
    assert result.search_sd == pytest.approx(math.sqrt((40 - 4) / 2))
    with pytest.raises(ValueError, match="cell a has other evaluations in one variant than in another"):
        variance_components([1.0, 2.0, 1.0, 3.0], list("aaaa"), [1, 1, 2, 2])
