import gzip
import json
import math
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdarts_tune.pdarts.approximation import draw_operations, keep_choice, prune
from pdarts_tune.pdarts.genotype import softmax
from pdarts_tune.pdarts.regularization import limit_skips
from pdarts_tune.pdarts.space import PRIMITIVES
from probabilities import cells

CASES = json.loads(gzip.decompress((Path(__file__).parents[1] / "golden" / "derivation.json.gz").read_bytes()))


@pytest.mark.parametrize("cell", ["normal", "reduce"])
def test_every_reference_case_keeps_the_same_operations(cell):
    for case in CASES:
        for stage, keep in ((0, 5), (1, 3)):
            probs = tuple(softmax(alphas) for alphas in case["stages"][stage]["alphas"][cell])
            kept = prune(probs, keep)
            assert [list(edge) for edge in kept] == case["stages"][stage]["kept"][cell], (case["id"], stage)
            assert [list(edge) for edge in kept] == [list(edge) for edge in case["stages"][stage + 1]["alphas"][cell]]


@given(probs=cells(), keep=st.integers(1, 3))
def test_prune_keeps_exactly_the_k_most_probable_in_order(probs, keep):
    for edge, kept in zip(probs, prune(probs, keep), strict=True):
        assert len(kept) == keep
        assert list(kept) == sorted(kept, key=PRIMITIVES.index)
        dropped = [p for name, p in edge.items() if name not in kept]
        assert all(p <= min(edge[name] for name in kept) for p in dropped)


def test_of_equal_operations_the_lowest_index_is_dropped_first():
    assert prune((dict.fromkeys(PRIMITIVES, 0.125),), 5) == (PRIMITIVES[3:],)


def test_none_competes_like_any_other_operation():
    assert prune(({"none": 0.6, "skip_connect": 0.3, "sep_conv_3x3": 0.1},), 2) == (("none", "skip_connect"),)


def test_keeping_more_than_there_is_is_refused():
    with pytest.raises(ValueError, match="edge 0 has 2 operations, cannot keep 3"):
        prune(({"none": 0.5, "skip_connect": 0.5},), 3)
    with pytest.raises(ValueError, match="keep: 0"):
        prune(({"none": 1.0},), 0)


def test_softmax_sums_to_one():
    assert math.isclose(sum(softmax({"a": 3.0, "b": -700.0}).values()), 1.0)


@given(seed=st.integers(0, 999), keep=st.integers(1, 8))
def test_drawn_operations_are_so_many_of_the_edges_own_with_a_choice_among_them(seed, keep):
    full = (PRIMITIVES,) * 14
    drawn = draw_operations(random.Random(seed), full, keep)
    assert drawn == draw_operations(random.Random(seed), full, keep)
    for names in drawn:
        assert len(names) == len(set(names)) == keep
        assert list(names) == sorted(names, key=PRIMITIVES.index)
        assert keep == 1 or set(names) - {"none", "skip_connect"}


def test_operations_are_drawn_evenly():
    drawn = [draw_operations(random.Random(seed), (PRIMITIVES,) * 5, 3) for seed in range(400)]
    counts = Counter(name for edges in drawn for edge in edges for name in edge)
    assert all(abs(counts[name] - 750) < 100 for name in PRIMITIVES)


def test_drawing_more_than_there_is_is_refused():
    with pytest.raises(ValueError, match="edge 0 has 2 operations, cannot keep 3"):
        draw_operations(random.Random(0), (("none", "skip_connect"),), 3)
    with pytest.raises(ValueError, match="keep: 0"):
        draw_operations(random.Random(0), (PRIMITIVES,), 0)


@given(probs=cells(), keep=st.integers(2, 3))
def test_every_skip_limit_can_be_kept_with_the_operations_that_stay(probs, keep):
    kept = keep_choice(probs, prune(probs, keep))
    left = tuple({name: edge[name] for name in names} for edge, names in zip(probs, kept, strict=True))
    assert [len(names) for names in kept] == [keep] * 14
    for limit in range(9):
        assert limit_skips(left, limit).skips <= limit


def test_an_edge_with_a_choice_keeps_just_what_pruning_kept():
    edge = {"none": 0.5, "skip_connect": 0.3, "sep_conv_3x3": 0.15, "max_pool_3x3": 0.05}
    assert keep_choice((edge,), (("none", "sep_conv_3x3"),)) == (("none", "sep_conv_3x3"),)
    assert keep_choice((edge,), (("none", "skip_connect"),)) == (("none", "sep_conv_3x3"),)
    assert keep_choice((edge | {"none": 0.2},), (("none", "skip_connect"),)) == (("skip_connect", "sep_conv_3x3"),)
