import gzip
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdarts_tune.pdarts.genotype import CellGenotype, Genotype, derive_cell, random_genotype, softmax
from pdarts_tune.pdarts.published import PUBLISHED
from pdarts_tune.pdarts.space import EDGES, PRIMITIVES
from probabilities import cells

CASES = json.loads(gzip.decompress((Path(__file__).parents[1] / "golden" / "derivation.json.gz").read_bytes()))
PDARTS = PUBLISHED["PDARTS_C10"].genotype


@pytest.mark.parametrize("cell", ["normal", "reduce"])
def test_every_reference_case_derives_the_same_cell(cell):
    for case in CASES:
        derived = derive_cell(tuple(softmax(alphas) for alphas in case["stages"][2]["alphas"][cell]))
        assert [list(edge) for edge in derived.edges] == case["genotype"][cell], case["id"]
        assert list(derived.concat) == case["genotype"]["concat"]


@given(probs=cells())
def test_a_derived_cell_never_holds_none_and_takes_each_edges_best_operation(probs):
    for position, (operation, source) in enumerate(derive_cell(probs).edges):
        edge = probs[EDGES.index((source, position // 2))]
        assert operation != "none"
        assert edge[operation] == max(p for name, p in edge.items() if name != "none")


def test_strength_is_not_renormalised_without_none():
    # Edge (0, node 1) would win if `none` were taken out of its softmax; with it, the other two are stronger.
    weak = {"none": 0.8, "skip_connect": 0.2}
    strong = {"none": 0.0, "skip_connect": 0.4, "max_pool_3x3": 0.3, "avg_pool_3x3": 0.3}
    probs = (strong, strong, weak, strong, strong) + (strong,) * 9
    assert derive_cell(probs).edges[2:4] == (("skip_connect", 1), ("skip_connect", 2))


def test_of_equally_strong_edges_the_last_two_stay_and_of_equal_operations_the_last():
    cell = derive_cell((dict.fromkeys(PRIMITIVES, 0.125),) * 14)
    assert [source for _, source in cell.edges] == [0, 1, 1, 2, 2, 3, 3, 4]
    assert {operation for operation, _ in cell.edges} == {"dil_conv_5x5"}


def test_a_node_without_two_usable_edges_is_named():
    only_none = {"none": 1.0}
    with pytest.raises(ValueError, match="node 0: fewer than two edges"):
        derive_cell((only_none,) * 14)
    with pytest.raises(ValueError, match="13 edges, needs 14"):
        derive_cell(({"skip_connect": 1.0},) * 13)


@st.composite
def genotypes(draw):
    return random_genotype(random.Random(draw(st.integers(0, 2**32))), draw(st.integers(0, 8)))


@given(genotype=genotypes())
def test_text_and_json_read_back_to_the_same_genotype(genotype):
    assert Genotype.parse(str(genotype)) == genotype
    assert Genotype.parse(genotype.to_json()) == genotype


def test_other_concatenations_read_back_too():
    cell = CellGenotype(PDARTS.normal.edges, (3, 5))
    genotype = Genotype(cell, PDARTS.reduce)
    assert "normal_concat=[3, 5]" in str(genotype)
    assert Genotype.parse(str(genotype)) == genotype


def test_cells_of_other_shapes_read_back_and_join_all_their_nodes_unless_told():
    for name in ("NASNET_A", "AMOEBANET_A"):
        genotype = PUBLISHED[name].genotype
        assert genotype.normal.num_nodes == 5
        assert Genotype.parse(str(genotype)) == Genotype.parse(genotype.to_json()) == genotype
    nasnet = PUBLISHED["NASNET_A"].genotype
    without = f"Genotype(normal={list(nasnet.normal.edges)}, reduce={list(nasnet.normal.edges)})"
    assert Genotype.parse(without) == Genotype(nasnet.normal, nasnet.normal)


def test_a_cell_knows_the_states_that_its_output_depends_on():
    edges = (
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 2),
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 2),
    )
    assert CellGenotype(edges, (4,)).reached == {0, 2, 4}
    assert CellGenotype(edges, (3, 4)).reached == {0, 1, 2, 3, 4}
    assert PDARTS.normal.reached == set(range(6))


def test_a_line_of_a_log_is_read():
    line = f"11/24 08:00:00 AM genotype = {PDARTS}\n11/24 next line (unrelated"
    assert Genotype.parse(line) == PDARTS
    assert Genotype.parse(str(PDARTS).replace("range(2, 6)", "[2, 3, 4, 5]")) == PDARTS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (str(PDARTS)[:-30], "cut off"),
        ("Genotype(normal=[('sep_conv_3x3', 0)", "cut off"),
        (str(PDARTS).replace("dil_conv_5x5", "dil_conv_9x9"), "unknown operation 'dil_conv_9x9'"),
        (str(PDARTS).replace("('skip_connect', 0)", "('skip_connect', 5)"), "state 5 does not exist yet"),
        (str(PDARTS).replace("('skip_connect', 0), ", "", 1), "7 edges"),
        (str(PDARTS).replace("('skip_connect', 0)", "('none', 0)"), "unknown operation 'none'"),
        (str(PDARTS).replace("range(2, 6)", "range(2, 9)"), "state 6 does not exist"),
        (str(PDARTS).replace("normal_concat", "normal_cat"), "unknown part 'normal_cat'"),
        ("Genotype(normal=__import__('os').getcwd(), reduce=[])", "neither a list nor a range"),
        ("Genotype(reduce=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1)])", "no normal cell"),
        ("Genotype([1], [2])", "must be named"),
        ("PDARTS", "genotype 'PDARTS'"),
        ("[1, 2]", "needs normal and reduce cells"),
        ("", "genotype ''"),
    ],
)
def test_a_text_that_is_no_genotype_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match="genotype") as caught:
        Genotype.parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_random_genotypes_obey_the_skip_limit_and_are_uniform_over_sources():
    rng = random.Random(0)
    drawn = [random_genotype(rng, 2) for _ in range(3000)]
    assert max(genotype.normal.skips for genotype in drawn) == 2
    assert max(genotype.reduce.skips for genotype in drawn) > 2
    # Node 1 of the reduction cell has three equally likely pairs of sources: 1000 each, standard deviation 26.
    pairs = [tuple(source for _, source in genotype.reduce.edges[2:4]) for genotype in drawn]
    assert all(abs(pairs.count(pair) - 1000) < 130 for pair in ((0, 1), (0, 2), (1, 2)))
    operations = [operation for genotype in drawn for operation, _ in genotype.reduce.edges]
    assert all(abs(operations.count(name) - 24000 / 7) < 280 for name in PRIMITIVES[1:])


def test_depth_and_width_of_a_hand_counted_cell():
    chain = CellGenotype(
        tuple(("sep_conv_3x3", state) for node_states in ((0, 1), (0, 2), (0, 3), (0, 4)) for state in node_states)
    )
    assert (chain.depth, chain.width) == (5, 2.5)
    flat = CellGenotype((("skip_connect", 0), ("sep_conv_3x3", 1)) * 4)
    assert (flat.depth, flat.width, flat.skips) == (2, 4.0, 4)


def test_a_random_genotype_with_exactly_so_many_skip_connects_is_drawn_evenly():
    rng = random.Random(0)
    for skips in range(9):
        assert {random_genotype(rng, skips, exactly=True).normal.skips for _ in range(20)} == {skips}
    drawn = [random_genotype(rng, 2, exactly=True).normal for _ in range(4000)]
    where = Counter(position for cell in drawn for position, (name, _) in enumerate(cell.edges) if name == "skip_connect")
    assert all(abs(where[position] - 1000) < 120 for position in range(8))
