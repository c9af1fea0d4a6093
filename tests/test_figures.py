"""The pictures: what they show, that nothing in them collides, and that they are written whole."""

import itertools
import random
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh

from pdarts_tune.figures import draw_alphas, draw_depth_gap, draw_genotype, draw_learning_curves, draw_skips, save_figure
from pdarts_tune.genotype import PUBLISHED, CellGenotype, Genotype, random_genotype
from pdarts_tune.space import EDGES, PRIMITIVES

TWICE = CellGenotype(  # two operations between the same two states, at every node
    (
        ("skip_connect", 0),
        ("sep_conv_5x5", 0),
        ("max_pool_3x3", 2),
        ("avg_pool_3x3", 2),
        ("dil_conv_3x3", 1),
        ("dil_conv_5x5", 1),
        ("sep_conv_3x3", 0),
        ("sep_conv_5x5", 0),
    ),
    (3, 4, 5),
)
GENOTYPES = [
    Genotype(TWICE, TWICE),
    *(published.genotype for published in PUBLISHED.values()),
    *(random_genotype(random.Random(seed), 8) for seed in range(6)),
]


def alphas(keep=(8, 5, 3), epochs=2, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for stage, count in enumerate(keep, start=1):
        for epoch, cell, (edge, (source, node)) in itertools.product(range(epochs), ("normal", "reduce"), enumerate(EDGES)):
            for operation, p in zip(PRIMITIVES[:count], rng.dirichlet(np.ones(count)), strict=True):
                rows.append(("t", stage, epoch, cell, edge, source, node, operation, float(np.log(p)), p))
    names = ["trial_id", "stage", "epoch", "cell", "edge", "source", "node", "operation", "alpha", "probability"]
    return pd.DataFrame(rows, columns=names)


def gap_frame():
    rows = [("deep", "search", 0.80, 0.81, -9.0), ("deep", "search", 0.82, 0.81, -9.0), ("deep", "inherited", 0.3, 0.3, -9.0)]
    rows += [("deep", "evaluation", 0.90, 0.90, -9.0), ("random", "evaluation", 0.88, 0.88, np.nan)]
    return pd.DataFrame(rows, columns=["variant", "measure", "accuracy", "mean", "gap_points"])


def curves():
    rows = [(variant, 1 + epoch // 3, epoch, 0.5, 0.4, 0.6) for variant in ("a", "b") for epoch in range(6)]
    return pd.DataFrame(rows, columns=["variant", "stage", "running_epoch", "mean", "low", "high"])


def skips(variants):
    rows = [(f"{v}{t}", v, s, e, t + e, s) for v in variants for t in range(2) for s in (1, 2) for e in range(3)]
    return pd.DataFrame(rows, columns=["trial_id", "variant", "stage", "epoch", "normal_skip_count", "reduce_skip_count"])


@pytest.mark.parametrize("genotype", GENOTYPES)
def test_every_operation_of_a_genotype_has_a_label_and_no_two_labels_touch(genotype):
    figure = draw_genotype(genotype, "a title")
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    for panel, cell in zip(figure.axes, (genotype.normal, genotype.reduce), strict=True):
        shown = sorted(text.get_text().replace("skip_\n", "skip_").replace("\n", "_") for text in panel.texts)
        nodes = [str(node) for node in range(cell.num_nodes)]
        assert shown == sorted([operation for operation, _ in cell.edges] + nodes + ["$c_{k-2}$", "$c_{k-1}$", "$c_k$"])
        boxes = [text.get_window_extent(renderer) for text in panel.texts]
        assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
        assert all(figure.bbox.containsx(x) and figure.bbox.containsy(y) for box in boxes for x, y in box.corners())


def test_a_state_outside_the_concatenation_has_no_arrow_to_the_output():
    panel = draw_genotype(Genotype(TWICE, TWICE)).axes[0]
    assert len(panel.patches) == 8 + 3 + 7  # operations, concatenated states, states


def test_heat_maps_show_the_last_epoch_and_leave_dropped_operations_blank():
    frame = alphas()
    figure = draw_alphas(frame)
    panels = [panel for panel in figure.axes if panel.get_title()]
    assert [panel.get_title() for panel in panels] == [
        f"{cell} cell, stage {stage}" for cell in ("normal", "reduction") for stage in (1, 2, 3)
    ]
    (mesh,) = [child for child in panels[2].get_children() if isinstance(child, QuadMesh)]
    grid = mesh.get_array().reshape(len(EDGES), len(PRIMITIVES))
    assert grid.mask[:, 3:].all()
    assert not grid.mask[:, :3].any()
    last = frame[(frame["stage"] == 3) & (frame["epoch"] == 1) & (frame["cell"] == "normal")]
    np.testing.assert_allclose(grid[:, :3].compressed(), 3 * last["probability"])
    assert [label.get_text() for label in panels[0].get_yticklabels()][:5] == [
        "$c_{k-2}$→0",
        "$c_{k-1}$→0",
        "$c_{k-2}$→1",
        "$c_{k-1}$→1",
        "0→1",
    ]


def test_a_search_of_one_stage_has_its_heat_maps_too():
    assert len([panel for panel in draw_alphas(alphas(keep=(8,))).axes if panel.get_title()]) == 2


def test_heat_maps_of_two_trials_are_refused():
    frame = alphas(keep=(8,))
    with pytest.raises(ValueError, match="rows of 2 trials, draws one"):
        draw_alphas(pd.concat([frame, frame.assign(trial_id="u")]))


def test_learning_curves_break_between_stages_and_name_each_variant_once():
    figure = draw_learning_curves(curves())
    drawn = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 3]
    assert [list(line.get_xdata()) for line in drawn] == [[1, 2, 3], [4, 5, 6]] * 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert len({line.get_color() for line in drawn}) == 2


def test_depth_gap_has_a_dot_a_seed_the_means_and_the_gap_in_words():
    figure = draw_depth_gap(gap_frame())
    axes = figure.axes[0]
    dots = {line.get_marker(): list(line.get_xdata()) for line in axes.lines[:7] if line.get_linestyle() == "None"}
    assert dots == {"o": [80, 82], "D": [30], "s": [90]}
    assert [text.get_text() for text in axes.texts] == ["gap, points", "−9.0", "–"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["deep", "random"]
    assert len(figure.legends[0].get_texts()) == 3


def test_depth_gap_names_every_measure_even_when_the_first_variant_lacks_it():
    frame = gap_frame().iloc[::-1]
    assert len(draw_depth_gap(frame).legends[0].get_texts()) == 3


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7])
def test_skips_have_a_panel_a_variant_and_a_line_a_trial_cell_and_stage(count):
    figure = draw_skips(skips([f"v{index}" for index in range(count)]))
    panels = [panel for panel in figure.axes if panel.get_title(loc="left")]
    assert len(panels) == count
    assert sum(len(line.get_xdata()) == 3 for line in panels[-1].lines) == 2 * 2 * 2


@pytest.mark.parametrize(
    ("draw", "frame"),
    [(draw_alphas, alphas(keep=(3,))), (draw_learning_curves, curves()), (draw_depth_gap, gap_frame()), (draw_skips, skips("a"))],
)
def test_a_frame_without_a_column_or_without_rows_is_refused_in_one_line(draw, frame):
    column = frame.columns[-1]
    with pytest.raises(ValueError, match=f"^{draw.__name__}: no column {column}; needs "):
        draw(frame.drop(columns=column))
    with pytest.raises(ValueError, match=f"^{draw.__name__}: no rows, nothing to draw$"):
        draw(frame.iloc[:0])


def test_a_figure_is_saved_as_png_and_svg_under_a_name_with_a_dot_and_nothing_else_is_left(tmp_path):
    written = save_figure(draw_depth_gap(gap_frame()), tmp_path / "gap.v1")
    assert [path.name for path in written] == ["gap.v1.png", "gap.v1.svg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gap.v1.png", "gap.v1.svg"]
    assert written[0].read_bytes().startswith(b"\x89PNG")


def test_a_figure_drawn_twice_is_the_same_file(tmp_path):
    first = [path.read_bytes() for path in save_figure(draw_skips(skips("ab")), tmp_path / "skips")]
    again = [path.read_bytes() for path in save_figure(draw_skips(skips("ab")), tmp_path / "skips")]
    assert first == again


def test_a_figure_that_cannot_be_drawn_leaves_the_old_one(tmp_path):
    save_figure(draw_skips(skips("a")), tmp_path / "skips")
    before = (tmp_path / "skips.png").read_bytes()
    broken = draw_skips(skips("a"))
    broken.axes[0].set_title("$\\undefined$")
    with pytest.raises(ValueError, match="undefined"):
        save_figure(broken, tmp_path / "skips")
    assert (tmp_path / "skips.png").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_saving_into_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        save_figure(draw_skips(skips("a")), tmp_path / "missing" / "skips")


def test_drawing_touches_no_global_state_of_matplotlib():
    code = (
        "import sys, pdarts_tune.figures; print([m for m in ('matplotlib.pyplot', 'torch', 'ray', 'mlflow') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
