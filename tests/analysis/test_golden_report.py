"""The report of studies whose answer is known: a planted effect is claimed with its size, a planted null is called none.

`golden/report.md` is what a reader gets to read; `golden/report_other.md` of studies in which the questions that had an effect have
none, and the other way round. Their words must be the same; their numbers, which rest on random draws of NumPy and
SciPy, must be close.
"""

import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest

import report
import rq1_depth_gap
import rq2_approximation
import rq3_regularization
from common.section import to_text
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.pdarts.progressive_depth import PDARTS_CIFAR10, with_depths, with_operations
from pdarts_tune.results.tables import read_rows, read_table, write_rows
from synthetic import make_study
from synthetic_limits import make_limits_study

GOLDEN = Path(__file__).parents[1] / "golden"
EFFECT = 4.0  # points of test error that searching shallow networks costs; everything else costs nothing
BASE = SearchConfig()
DEPTHS = {
    "progressive": BASE,
    "shallow": replace(BASE, stages=with_depths(PDARTS_CIFAR10, (5, 5, 5))),
    "deep": replace(BASE, stages=with_depths(PDARTS_CIFAR10, (17, 17, 17))),
}
DROPPING = {
    "lowest": BASE,
    "at_random": replace(BASE, dropping="random"),
    "none": replace(BASE, stages=with_operations(PDARTS_CIFAR10, (8, 8, 8))),
}
_NUMBER = re.compile(r"[+−-]?\d+\.\d+")


LIMITS = [("with", 8), ("with", 2), ("without", 8), ("without", 2), ("drawn", 2)]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Shallow networks cost accuracy, dropout and refinement gain some; what is dropped makes no difference."""
    limits = dict.fromkeys(LIMITS, 0.96) | {("without", 8): 0.93, ("without", 2): 0.94, ("with", 8): 0.95}
    return write_reports(tmp_path_factory.mktemp("known"), {"shallow": 0.96 - EFFECT / 100}, limits)


@pytest.fixture(scope="module")
def other_texts(tmp_path_factory):
    """Dropping at random costs accuracy; neither depth nor regularizers make a difference."""
    return write_reports(tmp_path_factory.mktemp("other"), {"at_random": 0.96 - EFFECT / 100}, dict.fromkeys(LIMITS, 0.96), seeds=9)


def write_reports(root, planted, limits, seeds=8):
    """What report.html says without its pictures, which other tests draw, and what rq1.md, rq2.md and rq3.md say."""
    accuracy = dict.fromkeys([*DEPTHS, *DROPPING], 0.96) | planted
    settings = {"epochs": 1, "evaluation_seeds": (0,), "test_images": 2000, "accuracy": accuracy}
    make_study(root, "depth_gap", DEPTHS, range(seeds), **settings)
    make_study(root, "approximation", DROPPING, range(seeds), **settings)
    make_limits_study(root, seeds, limits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "picture", lambda _: "")
        html = report.render(report.build_page(root))
    return html, "".join(to_text(script.build(root)) for script in (rq1_depth_gap, rq2_approximation, rq3_regularization))


def answers(html):
    """The title and the conclusion of every question on the page, in Markdown; the comparisons have a test of their own."""
    found = re.findall(r'<h2 id="question-\d">(.*?)</h2>\s*<div class="answer"><p>(.*?)</p>', html, re.DOTALL)
    found = [(title, text) for title, text in found if title.startswith("RQ")]
    return "\n\n".join(f"# {unescape(title)}\n\n{unescape(text)}" for title, text in found) + "\n"


@pytest.mark.parametrize(("fixture", "name"), [("texts", "report.md"), ("other_texts", "report_other.md")])
def test_the_page_says_what_the_golden_report_says(fixture, name, request):
    found, golden = answers(request.getfixturevalue(fixture)[0]), (GOLDEN / name).read_text(encoding="utf-8")
    assert _NUMBER.sub("0", found) == _NUMBER.sub("0", golden)
    numbers = [[float(text.replace("−", "-")) for text in _NUMBER.findall(side)] for side in (found, golden)]
    assert numbers[0] == pytest.approx(numbers[1], abs=0.03)


def test_the_planted_effect_is_claimed_with_its_size_and_nothing_else_is(texts):
    depth, dropping, regularizers = answers(texts[0]).split("# ")[1:]
    claim = re.search(
        r"Shown, as difference in evaluation error .*?: (\w+) \+([\d.]+) points \(95 % interval \[\+([\d.]+), \+([\d.]+)\]", depth
    )
    assert claim
    variant, size, low, high = claim.groups()
    assert variant == "shallow"
    assert float(size) == pytest.approx(EFFECT, abs=0.3)
    assert float(low) < EFFECT < float(high)
    assert depth.count(" points (95 % interval") == 1
    assert re.search(r"Not shown for deep: a true difference of [\d.]+ points could have been claimed", depth)
    assert "No variant is shown to differ from lowest" in dropping
    assert re.search(r"a true difference of [\d.]+ to [\d.]+ points could have been claimed", dropping)
    assert "Shown" not in dropping
    found = re.search(
        r"Shown in evaluation error: dropout −([\d.]+) points; refinement to 2 skip-connects −([\d.]+) points", regularizers
    )
    assert found
    assert [float(size) for size in found.groups()] == pytest.approx([2.0, 1.0], abs=0.3)
    assert re.search(r"Not shown for their interaction with n = 8: a true difference of [\d.]+ points could", regularizers)


def test_where_the_effect_is_anothers_it_is_claimed_there_and_nowhere_else(other_texts):
    depth, dropping, regularizers = answers(other_texts[0]).split("# ")[1:]
    assert "Shown" not in depth + regularizers
    claim = re.search(r"Shown, as difference in evaluation error .*?: (\w+) \+([\d.]+) points", dropping)
    assert claim
    assert claim[1] == "at_random"
    assert float(claim[2]) == pytest.approx(EFFECT, abs=0.4)
    assert "Not shown for none: a true difference of" in dropping
    for null, start in ((depth, "No variant is shown to differ"), (regularizers, "No effect of either regularizer is shown")):
        assert start in null
        assert re.search(r"a true difference of [\d.]+ to [\d.]+ points could have been claimed", null)


def test_the_scripts_say_the_same_in_markdown_as_the_page(texts):
    html, markdown = texts
    for part in answers(html).split("\n\n"):
        assert part.strip() in markdown


RANKS = re.compile(r"\| search network +\| +(\d+) \| +(\d+) \| +([+−]?[\d.]+) \| +\[([+−][\d.]+), ([+−][\d.]+)\] \| +([\d.]+) \|")


def write_ranks(root, agreement, offset):
    """What rq1.md says of ranks: n, pairs, tau, interval and p. `offset`: of the second variant's search and test accuracy."""
    names = ("progressive", "shallow")
    folder = make_study(root, "depth_gap", {name: DEPTHS[name] for name in names}, range(8), epochs=1, evaluation_seeds=(0,))
    rng = np.random.default_rng(0)
    cells = read_table(folder, "genotypes").query("stage == 3 and max_skips == 2").set_index("trial_id")["genotype_id"]
    for place, name in enumerate(names):
        for seed in range(8):
            quality, noise = rng.uniform(-0.02, 0.02, 2)
            trial_id = f"depth_gap-{name}-s{seed}"
            epochs = read_rows(folder, "epochs", trial_id)
            epochs[-1]["validation_accuracy"] = 0.5 + quality + place * offset[0]
            write_rows(folder, "epochs", trial_id, epochs)
            evaluation_id = f"eval-{cells[trial_id]}-s0"
            (row,) = read_rows(folder, "evaluations", evaluation_id)
            accuracy = 0.8 + (quality + 0.2 * noise if agreement else noise) + place * offset[1]
            write_rows(folder, "evaluations", evaluation_id, [row | {"accuracy": accuracy, "error_percent": 100 * (1 - accuracy)}])
    text = to_text(rq1_depth_gap.build(root))
    found = RANKS.search(text)
    assert found, text
    return [float(number.replace("−", "-")) for number in found.groups()]


def test_variants_that_differ_in_depth_and_cells_that_do_not_agree_have_a_tau_near_0(tmp_path):
    # Over both variants together tau would be 0.5, since one is better in both accuracies.
    n, pairs, tau, low, high, p = write_ranks(tmp_path, agreement=False, offset=(0.2, 0.1))
    assert (n, pairs) == (16, 56)
    assert abs(tau) < 0.2
    assert low < 0 < high
    assert p > 0.3


def test_variants_whose_offsets_are_opposed_do_not_hide_the_agreement_of_their_cells(tmp_path):
    # Over both variants together tau would be near 0, or below.
    n, pairs, tau, low, high, p = write_ranks(tmp_path, agreement=True, offset=(0.2, -0.1))
    assert (n, pairs) == (16, 56)
    assert tau > 0.7
    assert 0.4 < low < tau < high
    assert p < 0.001
