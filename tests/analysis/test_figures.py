"""The pictures: what they show, that nothing in them collides, and that they are written whole."""

import itertools
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import QuadMesh

from common.figures import draw_depth_gap, draw_learning_curves, draw_sweep, draw_timeline, draw_tradeoff, draw_transfer
from pdarts_tune.pdarts.genotype import CellGenotype, Genotype, random_genotype
from pdarts_tune.pdarts.published import PUBLISHED
from pdarts_tune.pdarts.space import EDGES, PRIMITIVES
from pdarts_tune.results.cell_figures import draw_alpha_evolution, draw_alphas, draw_genotype, save_figure

ANALYSIS = Path(__file__).parents[2] / "analysis"

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


def timeline():
    rows = [("a", 1, 0.0, 40.0, "5x8"), ("a", 2, 40.0, 60.0, "11x5"), ("b", 1, 0.0, 2.0, "5x8")]
    return pd.DataFrame(rows, columns=["variant", "stage", "start_seconds", "seconds", "label"])


def tradeoff():
    rows = [("a", 3.0, 2.8, 3.2, 10.0, 9.0, 11.0, True), ("b", 2.5, 2.4, 2.6, 20.0, 20.0, 20.0, True)]
    rows += [("c", 3.5, 3.5, 3.5, 30.0, 29.0, 31.0, False), ("unknown", 3.0, 3.0, 3.0, np.nan, np.nan, np.nan, False)]
    return pd.DataFrame(rows, columns=["variant", "mean", "low", "high", "bytes", "bytes_low", "bytes_high", "bytes_front"])


def limits():
    rows = [(variant, limit, 3.0 + limit / 10, 2.9, 3.9) for variant in ("a", "b") for limit in (0, 2, 8)]
    return pd.DataFrame(rows, columns=["line", "max_skips", "error_percent", "ci_low", "ci_high"])


def cells():
    return pd.DataFrame([("one", 2.5, 25.0), ("two", 3.0, 27.0)], columns=["name", "x", "y"])


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


def test_a_stage_is_marked_where_it_begins_though_its_first_epochs_have_no_value():
    """As of the eigenvalue, which is measured every few epochs."""
    rows = curves()
    sparse = rows.assign(mean=rows["mean"].where(rows["running_epoch"] % 3 > 0))
    dotted = [
        [line.get_xdata()[0] for line in draw_learning_curves(frame).axes[0].lines if line.get_linestyle() == ":"]
        for frame in (rows, sparse)
    ]
    assert dotted[0] == dotted[1] == [0.5, 3.5]
    drawn = [list(line.get_xdata()) for line in draw_learning_curves(sparse).axes[0].lines]
    assert [2, 3] in drawn
    assert [1, 2, 3] not in drawn


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


def test_many_variants_have_a_panel_each_and_no_band_hides_another():
    many = pd.concat([curves().assign(variant=f"v{index}") for index in range(7)]).drop_duplicates()
    figure = draw_learning_curves(many, "skip-connects", 1)
    assert [panel.get_title(loc="left") for panel in figure.axes if panel.get_title(loc="left")] == [f"v{i}" for i in range(7)]
    assert all(len(panel.collections) == 2 for panel in figure.axes[:7])
    assert list(figure.axes[0].lines[0].get_ydata()) == [0.5] * 3
    assert not figure.legends


def test_variants_with_other_stage_plans_share_no_stage_marks():
    other = curves().assign(variant="c", stage=1 + (curves()["running_epoch"] >= 2))
    alike, mixed = draw_learning_curves(curves()), draw_learning_curves(pd.concat([curves(), other]))
    assert [text.get_text() for text in alike.axes[0].texts] == ["stage 1", "stage 2"]
    assert not mixed.axes[0].texts


def test_alpha_evolution_has_a_panel_an_edge_and_crosses_where_operations_are_dropped():
    frame = alphas(epochs=3)
    figure = draw_alpha_evolution(frame)
    panels = [panel for panel in figure.axes if panel.get_title(loc="left")]
    assert len(panels) == len(EDGES)
    assert panels[0].get_title(loc="left") == "$c_{k-2}$ → 0"
    crosses = [line for line in panels[0].lines if line.get_marker() == "x"]
    assert sorted(line.get_xdata()[0] for line in crosses) == [3, 3, 3, 6, 6]  # 8 to 5 after stage 1, 5 to 3 after stage 2
    drawn = [line for line in panels[0].lines if len(line.get_xdata()) == 3]
    assert len(drawn) == 8 + 5 + 3
    edge = frame[(frame["cell"] == "normal") & (frame["edge"] == 0)]
    last = edge[(edge["stage"] == 3) & (edge["operation"] == "none")]["probability"]
    np.testing.assert_allclose(
        next(line.get_ydata() for line in drawn if line.get_xdata()[0] == 7 and line.get_color() == "#000000"), 3 * last
    )
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*PRIMITIVES, "dropped after this stage"]


def test_alpha_evolution_of_two_trials_is_refused():
    frame = alphas(keep=(8,))
    with pytest.raises(ValueError, match="rows of 2 trials, draws one"):
        draw_alpha_evolution(pd.concat([frame, frame.assign(trial_id="u")]))


def test_timeline_has_a_bar_a_stage_in_place_and_labels_where_they_fit():
    axes = draw_timeline(timeline()).axes[0]
    assert [(bar.get_x(), bar.get_width(), round(bar.get_y() + 0.36)) for bar in axes.patches] == [
        (0, 40, 0),
        (40, 60, 0),
        (0, 2, 1),
    ]
    assert [text.get_text() for text in axes.texts] == ["5x8", "11x5"]
    long = timeline().assign(seconds=36000.0, start_seconds=0.0)
    assert draw_timeline(long).axes[0].get_xlabel().startswith("hours")


def test_tradeoff_has_a_point_a_variant_with_its_ranges_and_the_front():
    figure = draw_tradeoff(tradeoff(), {"bytes": "peak, MiB"})
    (panel,) = figure.axes
    front = panel.lines[0]
    assert (list(front.get_xdata()), list(front.get_ydata())) == ([10.0, 20.0], [3.0, 2.5])
    assert len(panel.containers) == 3  # the variant of unknown cost has no place
    # ... nor a line in the legend
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["a", "b", "c", "front: nothing is better in both"]


def test_a_sweep_has_a_line_for_each_of_other_settings_and_a_wide_one_is_logarithmic():
    figure = draw_sweep(limits(), "max_skips", "error_percent")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert list(figure.axes[0].get_xticks()) == [0, 2, 8]
    assert figure.axes[0].get_xscale() == "linear"
    assert figure.axes[0].get_ylabel() == "error in percent   (bars: over seeds)"
    rates = limits().rename(columns={"max_skips": "rate"}).assign(rate=[1e-4, 1e-3, 1e-2] * 2)
    assert draw_sweep(rates, "rate", "error_percent").axes[0].get_xscale() == "log"


def test_transfer_has_a_point_a_cell():
    axes = draw_transfer(cells(), "CIFAR-10", "ImageNet").axes[0]
    assert [(line.get_label(), line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines] == [
        ("one", 2.5, 25),
        ("two", 3, 27),
    ]
    assert axes.get_ylabel() == "test error, %: ImageNet"


@pytest.mark.parametrize(
    ("draw", "frame"),
    [
        (draw_alphas, alphas(keep=(3,))),
        (draw_alpha_evolution, alphas(keep=(3,))),
    ],
)
def test_a_frame_without_a_column_or_without_rows_is_refused_in_one_line(draw, frame):
    column = frame.columns[-1]
    with pytest.raises(ValueError, match=f"^draw_[a-z_]+: no column {column}; needs "):
        draw(frame.drop(columns=column))
    with pytest.raises(ValueError, match=r"^draw_[a-z_]+: no rows, nothing to draw$"):
        draw(frame.iloc[:0])


def test_a_figure_is_saved_as_png_and_svg_under_a_name_with_a_dot_and_nothing_else_is_left(tmp_path):
    written = save_figure(draw_depth_gap(gap_frame()), tmp_path / "gap.v1")
    assert [path.name for path in written] == ["gap.v1.png", "gap.v1.svg"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gap.v1.png", "gap.v1.svg"]
    assert written[0].read_bytes().startswith(b"\x89PNG")


def test_a_figure_drawn_twice_is_the_same_file(tmp_path):
    first = [path.read_bytes() for path in save_figure(draw_timeline(timeline()), tmp_path / "skips")]
    again = [path.read_bytes() for path in save_figure(draw_timeline(timeline()), tmp_path / "skips")]
    assert first == again


def test_a_figure_that_cannot_be_drawn_leaves_the_old_one(tmp_path):
    save_figure(draw_timeline(timeline()), tmp_path / "skips")
    before = (tmp_path / "skips.png").read_bytes()
    broken = draw_timeline(timeline())
    broken.axes[0].set_title("$\\undefined$")
    with pytest.raises(ValueError, match="undefined"):
        save_figure(broken, tmp_path / "skips")
    assert (tmp_path / "skips.png").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_saving_into_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        save_figure(draw_timeline(timeline()), tmp_path / "missing" / "skips")


def test_drawing_touches_no_global_state_of_matplotlib():
    heavy = ("matplotlib.pyplot", "torch", "ray", "mlflow")
    code = f"import sys, pdarts_tune.results.cell_figures, common.figures; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ANALYSIS, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("costs", [{"seconds": "seconds"}, {"seconds": "seconds", "peak": "MiB"}])
def test_the_legend_of_a_tradeoff_lies_in_the_picture(costs):
    names = [f"variant_{index}_of_nine" for index in range(9)]
    columns = {f"{cost}{part}": 1.0 for cost in ("seconds", "peak") for part in ("", "_low", "_high")}
    points = pd.DataFrame(
        {"variant": names, "mean": 1.0, "low": 1.0, "high": 1.0, "seconds_front": True, "peak_front": True} | columns
    )
    figure = draw_tradeoff(points, costs)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    extent = legend.get_window_extent()
    assert 0 <= extent.x0 < extent.x1 <= figure.bbox.width
