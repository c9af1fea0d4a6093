"""The comparison of search methods on synthetic studies: planted differences are found, against P-DARTS and against chance."""

import numpy as np
import pytest

from analysis import baselines
from analysis.diagnostics import COLUMNS, summarize_epochs
from analysis.rq1_depth_gap import summarize_stages as rq1_stages
from analysis.rq2_approximation import summarize_stages
from analysis.rq3_regularization import count_collapses
from common import study_tables
from common.section import to_text
from common.statistics import holm
from pdarts_tune.config.methods import RandomSearch
from pdarts_tune.config.presets import PUBLISHED_SEARCHES
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.pdarts.progressive_depth import Stage
from pdarts_tune.results.tables import chosen_epoch, read_rows, read_table, write_rows
from synthetic import make_study, make_trial

NAMES = ("pdarts", "darts_first", "pc_darts", "random")


def study(root, seeds, names=NAMES, **accuracy):
    means = dict.fromkeys(names, 0.95) | accuracy
    variants = {name: PUBLISHED_SEARCHES[name] for name in names}
    return make_study(
        root, "baselines", variants, range(seeds), epochs=2, test_images=2000, accuracy=means, evaluation_seeds=(0, 1)
    )


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    root = tmp_path_factory.mktemp("eight")
    folder = study(root, 8, pdarts=0.97, darts_first=0.97)
    return folder, baselines.build(root)


def test_planted_differences_are_found_and_a_planted_null_is_not(eight):
    _, section = eight
    assert dict(section.tables["error_differences"].set_index("variant")["claimed"]) == {
        "darts_first": False,
        "pc_darts": True,
        "random": True,
    }
    chance = section.tables["against_random"].set_index("variant")
    assert dict(chance["claimed"]) == {"pdarts": True, "darts_first": True, "pc_darts": False}
    assert section.conclusion[-1] == "Shown to find cells that are better than random: pdarts, darts_first."


def test_p_darts_against_random_is_tested_once_and_stands_in_one_family(eight):
    _, section = eight
    family, chance = (section.tables[name].set_index("variant") for name in ("error_differences", "against_random"))
    once, shown = family.loc["random"], chance.loc["pdarts"]
    assert (shown["difference"], shown["ci_low"], shown["ci_high"]) == (-once["difference"], -once["ci_high"], -once["ci_low"])
    columns = ["n", "p", "min_p", "p_holm", "detectable", "claimed"]
    assert shown[columns].tolist() == once[columns].tolist()
    others = chance.drop("pdarts")
    assert list(others["p_holm"]) == pytest.approx(holm(others["p"].tolist()))  # corrected for two comparisons, not three
    assert "it is tested there, once" in " ".join(to_text(section).split())


def test_a_planted_null_is_reported_as_null(tmp_path):
    study(tmp_path, 6)
    section = baselines.build(tmp_path)
    assert not section.tables["against_random"]["claimed"].any()
    null, power = section.conclusion[-1].split(": ")
    assert null == "No method is shown to find better or worse cells than random ones (n = 6)"
    assert power == "no true difference, however large, could have been claimed."


def test_what_searching_adds_is_relative_to_random_cells(eight):
    _, section = eight
    methods = section.tables["methods"].set_index("variant")
    errors = methods["error_percent"]
    assert methods.loc["pdarts", "over_random_percent"] == pytest.approx(
        100 * (errors["random"] - errors["pdarts"]) / (100 - errors["random"])
    )
    assert np.isnan(methods.loc["random", "over_random_percent"])
    assert list(methods["method"]) == ["first_order", "first_order", "partial_channels", "random"]


def test_the_same_images_are_compared_by_what_each_network_gets_right(eight):
    folder, section = eight
    row = section.tables["same_images"].set_index("variant").loc["random"]
    genotypes = (
        read_table(folder, "genotypes").query("max_skips == 2").sort_values("stage").groupby("trial_id").last()["genotype_id"]
    )
    flags = [
        np.array(read_rows(folder, "evaluations", f"eval-{genotypes[f'baselines-{name}-s0']}-s0")[0]["correct"])
        for name in ("random", "pdarts")
    ]
    assert (row["images"], row["only_it_right"]) == (2000, int(np.sum(flags[0] & ~flags[1])))
    assert row["only_pdarts_right"] == int(np.sum(flags[1] & ~flags[0]))
    assert row["p"] < 0.01


def test_without_random_cells_or_p_darts_the_report_says_what_it_lacks(tmp_path):
    study(tmp_path, 1, names=("darts_first",))
    section = baselines.build(tmp_path)
    assert section.conclusion[0].startswith("No search runs in several stages")
    assert any("no cells drawn at random" in line for line in section.missing)


def test_the_script_writes_what_it_shows(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(baselines, "draw_search", lambda *_: {})  # slow, and RQ1's test draws them
    study(tmp_path, 1, names=("pdarts", "random"))
    baselines.main(["--results", str(tmp_path)])
    assert "| pdarts" in capsys.readouterr().out
    out = tmp_path / "baselines" / "report"
    assert all((out / f"baselines_{name}.png").exists() for name in ("tradeoff", "learning_curves"))
    assert "Yang et al." in (out / "baselines.md").read_text()


def test_a_search_is_shown_with_the_accuracy_of_the_network_that_its_cell_is_from(tmp_path):
    """Of a random search that is the chosen candidate's, of a search that was stopped early the epoch's whose alphas decided."""
    folder = make_study(tmp_path, "baselines", {"pdarts": SearchConfig()}, (0,), epochs=2)
    config = SearchConfig(stages=(Stage(5, 8, epochs=2, warmup_epochs=2),), method=RandomSearch(3))
    make_trial(folder, "baselines-random_search-s0", "random_search", config)
    rows = read_rows(folder, "epochs", "baselines-random_search-s0")
    accuracies = [(0.1, 0.6), (0.2, 0.9), (0.3, 0.7)]  # of each candidate, after either epoch
    candidates = [
        row | {"stage": stage, "validation_accuracy": accuracy, "collapsed": stage == 2}
        for stage, both in enumerate(accuracies, start=1)
        for row, accuracy in zip(rows, both, strict=True)
    ]
    write_rows(folder, "epochs", "baselines-random_search-s0", candidates)
    stopped = read_rows(folder, "epochs", "baselines-pdarts-s0")
    stopped[-1]["derived_epoch"], stopped[-2]["validation_accuracy"] = 0, 0.25
    write_rows(folder, "epochs", "baselines-pdarts-s0", stopped)
    seen = {"pdarts": 0.25, "random_search": 0.9}

    study = study_tables.read_study(folder)
    measures = study_tables.measure_trials(study).set_index("variant")
    assert measures["search_accuracy"].to_dict() == seen
    assert measures["gap_points"].to_dict() == {name: 100 * (seen[name] - measures.loc[name, "accuracy"]) for name in seen}
    assert dict(summarize_stages(study).groupby("variant")["search_percent"].last()) == {"pdarts": 25.0, "random_search": 70.0}
    assert rq1_stages(study).groupby("variant")["search_percent"].last()["pdarts"] == 25.0
    ended = count_collapses(study).set_index("variant")["collapsed_at_end"]
    assert ended.to_dict() == {"pdarts": 0, "random_search": 1}
    inside = summarize_epochs(study_tables.read_study(folder, COLUMNS)).set_index("variant")
    assert inside["search_accuracy"].to_dict() == seen
    for name, accuracy in seen.items():
        trial_id = f"baselines-{name}-s0"
        (trial,) = read_rows(folder, "trials", trial_id)
        assert chosen_epoch(trial, read_rows(folder, "epochs", trial_id))["validation_accuracy"] == accuracy
