import gzip
import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdarts_tune.pdarts.genotype import CellGenotype, Genotype, derive_cell, most_skips, random_genotype, softmax
from pdarts_tune.pdarts.published import PUBLISHED
from pdarts_tune.pdarts.space import EDGES, PRIMITIVES, SPACES
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


def numpy_text(array="array({})", state="np.int64({})", operation="{!r}"):
    def edges(cell):
        return "[" + ", ".join(f"({operation.format(name)}, {state.format(source)})" for name, source in cell.edges) + "]"

    concat = array.format([2, 3, 4, 5])
    return f"Genotype(normal={edges(PDARTS.normal)}, normal_concat={concat}, reduce={edges(PDARTS.reduce)}, reduce_concat={concat})"


def per_node(cell):
    return [list(cell.edges[node : node + 2]) for node in range(0, 8, 2)]


def triples(cell):
    return [(name, 2 + index // 2, source) for index, (name, source) in enumerate(cell.edges)]


def late_first(cell):
    return triples(cell)[4:] + triples(cell)[:4]


def wrap(text, width):
    return "\n".join(text[start : start + width] for start in range(0, len(text), width))


TEXT = str(PDARTS)
DIALECTS = {
    "numpy 2": numpy_text(),
    "numpy texts": numpy_text("np.array({}, dtype=int32)", "{}", "np.str_({!r})"),
    "array without commas": numpy_text().replace("array([2, 3, 4, 5])", "[2 3\n 4 5]"),
    "array of texts": numpy_text("tensor({}, device='cuda:0')", "'{}'")
    .replace("normal=[", "normal=np.array([")
    .replace("], normal_c", "], dtype='<U12'), normal_c"),
    "numpy prints texts": numpy_text("{}", "'{}'").replace("', '", "' '"),
    "positional": re.sub(r"(normal|reduce)(_concat)?=", "", TEXT),
    "a list for each node": f"Genotype(normal={per_node(PDARTS.normal)}, reduce={per_node(PDARTS.reduce)})",
    "triples in any order of nodes": f"Genotype(normal={late_first(PDARTS.normal)}, reduce={triples(PDARTS.reduce)})",
    "further fields": TEXT[:-1] + ", layout=cell, epoch=49, drop={'a': 1})",
    "a space before the bracket": TEXT.replace("Genotype(", "Genotype ("),
    "a byte-order mark": "\ufeff" + TEXT,
    "a byte-order mark before JSON": "\ufeff" + PDARTS.to_json(),
    "a text in JSON": json.dumps({"epoch": 3, "genotype": TEXT.replace("'", '"')}),
    "JSON with further fields": PDARTS.to_json()[:-1] + ', "epoch": 3}',
    "colours": f"\x1b[32mgenotype = {TEXT.replace('reduce=', chr(27) + '[0mreduce=')}",
    "comments": TEXT.replace("), ", "),  # don't (count this\r\n   "),
    "twice the same": f"{TEXT}\n{TEXT}",
    "declared first": f"class Genotype(NamedTuple):\n    normal: list\n\nBEST: Genotype = {TEXT}",
    "a comment before": f"# OLD = {TEXT.replace('dil_conv_3x3', 'skip_connect')}\nNEW = {TEXT}",
    "a comment alone": f"# {TEXT}",
} | {f"wrapped at {width}": wrap(f"08:00 genotype = {TEXT}", width) for width in (19, 20, 77, 80)}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_way_in_which_people_keep_a_genotype_is_read(dialect):
    assert Genotype.parse(DIALECTS[dialect]) == PDARTS


OTHER = PUBLISHED["DARTS_V1"].genotype
LOG = f"args = Namespace(epochs=50)\n08:00 genotype = {OTHER}\nloss 0.1 (mean)\n09:00 genotype = {TEXT}\nloss 0.01\n"
MODULE = f"""from collections import namedtuple
Genotype = namedtuple('Genotype', 'normal normal_concat reduce reduce_concat')
FIRST = Genotype(
  normal={list(OTHER.normal.edges)}, normal_concat=[2, 3, 4, 5],
  reduce={list(OTHER.reduce.edges)}, reduce_concat=[2, 3, 4, 5])
SECOND = {TEXT}
MINE = SECOND
DARTS = MINE  # the one to train
"""


@pytest.mark.parametrize(
    ("text", "choice", "genotype"),
    [
        (LOG, "last", PDARTS),
        (LOG, "2", OTHER),
        (LOG, "4", PDARTS),
        (MODULE, "last", PDARTS),
        (MODULE, "FIRST", OTHER),
        (MODULE, "5", OTHER),
        (MODULE, "SECOND", PDARTS),
        (MODULE, "DARTS", PDARTS),
        (TEXT, "last", PDARTS),
        (PDARTS.to_json(), "1", PDARTS),
    ],
)
def test_one_of_several_genotypes_is_chosen_by_line_name_or_as_the_last(text, choice, genotype):
    assert Genotype.parse(text, choice) == genotype


def test_several_genotypes_are_listed_and_none_is_taken():
    with pytest.raises(
        ValueError, match=r"^2 genotypes; choose one by :last, :LINE or :NAME after the file's name, there are\n"
    ) as caught:
        Genotype.parse(LOG)
    assert str(caught.value).splitlines()[1:] == [
        f"  line 2, {OTHER.normal.skips} skip-connects in the normal cell: 08:00 genotype =",
        "  line 4, 2 skip-connects in the normal cell: 09:00 genotype =",
    ]
    for choice in ("3", "THIRD", "genotype"):
        with pytest.raises(ValueError, match=f"^'{choice}' is no line or variable with a genotype, there are\n  line 2, "):
            Genotype.parse(LOG, choice)
    with pytest.raises(ValueError, match=r"\n  line 3, genotype .*cut off.*: FIRST =\n  line 6, 2 skip"):
        Genotype.parse(MODULE.replace("5])\n", "5]\n"))
    with pytest.raises(ValueError, match=r"^60 genotypes; (.*\n){5}  48 others\n(.*\n){7}  line 60"):
        Genotype.parse("\n".join([str(OTHER), TEXT] * 30))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (str(PDARTS)[:-30], "cut off"),
        ("Genotype(normal=[('sep_conv_3x3', 0)", "cut off"),
        (str(PDARTS).replace("dil_conv_5x5", "dil_conv_9x9"), "unknown operation 'dil_conv_9x9'"),
        (str(PDARTS).replace("('skip_connect', 0)", "('skip_connect', 5)"), "state 5 does not exist yet"),
        (str(PDARTS).replace("('skip_connect', 0), ", "", 1), "7 edges: a cell has two for each node, node 3 (state 5) has 1"),
        (
            f"Genotype(normal={triples(PDARTS.normal)[:-1]}, reduce=[])",
            "7 edges: a cell has two for each node, node 3 (state 5) has 1",
        ),
        (f"Genotype(normal={triples(PDARTS.normal)[:2] + triples(PDARTS.normal)[4:]}, reduce=[])", "node 1 (state 3) has 0"),
        (f"Genotype(normal={[PDARTS.normal.edges[:3], *per_node(PDARTS.normal)[1:]]}, reduce=[])", "node 0 (state 2) has 3"),
        ("Genotype(normal=['sep_conv_3x3'], reduce=[])", "'sep_conv_3x3' is not a pair of an operation and a state"),
        ('{"normal_n2_p0": "sepconv3x3"}', "unknown part 'normal_n2_p0', known are normal, normal_concat, reduce, reduce_concat"),
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


@pytest.mark.parametrize("name", ["S1", "S2", "S3", "no_skip"])
def test_random_genotypes_of_a_space_use_its_operations_alone_and_all_of_them(name):
    space, rng, used = SPACES[name], random.Random(0), set()
    for _ in range(300):
        genotype = random_genotype(rng, 8, space=space)
        for normal, cell, offers in ((True, genotype.normal, space.normal), (False, genotype.reduce, space.reduce)):
            for index, (operation, source) in enumerate(cell.edges):
                edge = EDGES.index((source, index // 2))
                assert operation in offers[edge]
                used.add((normal, edge, operation))
    choices = (
        (cell, e, name)
        for cell, edges in ((True, space.normal), (False, space.reduce))
        for e, ops in enumerate(edges)
        for name in ops
    )
    assert used == {choice for choice in choices if choice[2] != "none"}
    most = most_skips(space)
    assert most == (0 if name == "no_skip" else 8)
    assert {random_genotype(rng, most, True, space).normal.skips for _ in range(3)} == {most}
