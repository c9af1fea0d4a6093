"""Random operation probabilities of a cell, for property tests."""

from hypothesis import strategies as st

from pdarts_tune.pdarts.genotype import softmax
from pdarts_tune.pdarts.space import EDGES, PRIMITIVES


@st.composite
def edges(draw, minimum=3):
    """3 to 8 operations with alphas from nearly equal to so far apart that probabilities round to 0 and 1."""
    names = sorted(draw(st.sets(st.sampled_from(PRIMITIVES), min_size=minimum)), key=PRIMITIVES.index)
    scale = draw(st.sampled_from([0.0, 1e-3, 1.0, 1000.0]))
    return softmax({name: scale * draw(st.integers(-8, 8)) for name in names})


def cells(minimum=3):
    return st.tuples(*[edges(minimum)] * len(EDGES))
