import pytest

from pdarts_tune.pdarts.space import EDGES, PRIMITIVES, SearchSpace


def test_edges_are_node_major_and_each_node_reads_all_earlier_states():
    assert EDGES[:5] == ((0, 0), (1, 0), (0, 1), (1, 1), (2, 1))
    assert [sum(node == n for _, node in EDGES) for n in range(4)] == [2, 3, 4, 5]
    assert all(source < node + 2 for source, node in EDGES)


def test_the_full_space_offers_every_operation_on_every_edge():
    space = SearchSpace.full()
    assert space.normal == space.reduce == (PRIMITIVES,) * 14


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ((PRIMITIVES,) * 13, "13 edges, needs 14"),
        ((PRIMITIVES,) * 13 + ((),), "edge 13: no candidate operation"),
        ((("conv_9x9",),) + (PRIMITIVES,) * 13, "unknown operation 'conv_9x9'"),
        ((("skip_connect", "none"),) + (PRIMITIVES,) * 13, "not in PRIMITIVES order"),
        ((("none", "none"),) + (PRIMITIVES,) * 13, "not in PRIMITIVES order"),
    ],
)
def test_an_impossible_space_is_refused_with_the_edge_named(cell, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace(cell, (PRIMITIVES,) * 14)
