import gzip
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdarts_tune.approximation import prune
from pdarts_tune.genotype import softmax
from pdarts_tune.space import PRIMITIVES
from probabilities import cells

CASES = json.loads(gzip.decompress((Path(__file__).parent / "golden" / "derivation.json.gz").read_bytes()))


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
