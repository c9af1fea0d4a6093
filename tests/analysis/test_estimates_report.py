"""Reports work on estimates where nothing is trained, say so first, and never mix them with trainings."""

import numpy as np
import pytest
from scipy.stats import kendalltau

import compare
import rq1_depth_gap
from benchmark import write_benchmark
from common.figures import draw_curves
from common.section import to_text
from common.study_tables import read_study
from pdarts_tune.evaluation.estimates import open_estimator
from pdarts_tune.pdarts.genotype import Genotype
from pdarts_tune.results.tables import epoch_genotypes, read_table, write_rows
from synthetic import VARIANTS, make_study

STUDY = {"study": "depth_gap", "variants": {name: VARIANTS[name] for name in ("pdarts", "shallow", "random")}, "seeds": (0, 1, 2)}


@pytest.fixture(scope="module")
def estimator(tmp_path_factory):
    return open_estimator(write_benchmark(tmp_path_factory.mktemp("nb301")))


def study(tmp_path, estimator, every_epoch=False, **settings):
    folder = make_study(tmp_path, **STUDY, epochs=4, **settings)
    genotypes = [Genotype.parse(text) for text in read_table(folder, "genotypes")["genotype"].unique()]
    if every_epoch:
        for trial, limit in read_table(folder, "trials")[["trial_id", "max_skips"]].itertuples(index=False):
            genotypes += epoch_genotypes(folder, trial, limit).values()
    genotypes = list(dict.fromkeys(genotypes))
    for genotype, estimate in zip(genotypes, estimator.estimate(genotypes), strict=True):
        row = estimator.row(genotype, estimate)
        write_rows(folder, "evaluations", row["trial_id"], [row])
    return folder, {
        genotype.genotype_id: estimate.accuracy for genotype, estimate in zip(genotypes, estimator.estimate(genotypes), strict=True)
    }


def test_a_page_on_estimates_alone_says_so_in_its_first_line_and_has_their_figures(tmp_path, estimator):
    folder, accuracies = study(tmp_path, estimator, evaluation_seeds=())
    for section in (rq1_depth_gap.build(tmp_path), compare.build(folder)):
        first, *_ = to_text(section).splitlines()
        assert first.endswith(f"(errors are estimates by {estimator.recipe_id}: nothing was trained)")
    section = rq1_depth_gap.build(tmp_path)
    cells = read_study(folder).cells
    last = cells[(cells["stage"] == cells.groupby("trial_id")["stage"].transform("max")) & (cells["variant"] == "pdarts")]
    expected = [100 * (1 - accuracies[name]) for name in last["genotype_id"]]
    row = section.main_table.set_index("variant").loc["pdarts"]
    assert row["error_percent"] == pytest.approx(np.mean(expected))
    assert "anytime" not in section.tables
    assert not [name for name in section.tables["ranks"]["measure"] if name.startswith("estimate")]


def test_beside_trainings_estimates_change_no_error_and_have_a_rank_agreement(tmp_path, estimator):
    without = make_study(tmp_path / "without", **STUDY, epochs=4)
    folder, accuracies = study(tmp_path / "with", estimator)
    old, new = (rq1_depth_gap.build(path.parent) for path in (without, folder))
    assert old.title == new.title
    assert old.main_table.equals(new.main_table)
    assert old.conclusion == new.conclusion
    row = new.tables["ranks"].set_index("measure").loc[f"estimate ({estimator.recipe_id})"]
    trained = read_table(folder, "evaluations")
    trained = trained[trained["recipe"] != "nb301"].groupby("genotype_id")["accuracy"].mean()
    cells = read_study(folder).cells
    last = cells[cells["stage"] == cells.groupby("trial_id")["stage"].transform("max")]
    agreements, pairs = [], 0
    for _, own in last.drop_duplicates(["variant", "genotype_id"]).groupby("variant"):
        names = [name for name in own["genotype_id"] if name in trained]
        if len(names) > 1:
            count = len(names) * (len(names) - 1) // 2
            agreements.append(count * kendalltau([accuracies[name] for name in names], [trained[name] for name in names]).statistic)
            pairs += count
    assert row["pairs"] == pairs
    assert row["tau"] == pytest.approx(sum(agreements) / pairs)


def test_estimates_of_every_epoch_are_an_anytime_curve_against_epochs_and_seconds(tmp_path, estimator):
    folder, accuracies = study(tmp_path, estimator, every_epoch=True, evaluation_seeds=())
    assert set(draw_curves(read_study(folder), "skips", "estimates")) == {"skips", "estimates"}
    table = rq1_depth_gap.build(tmp_path).tables["anytime"]
    rows = table[table["variant"] == "pdarts"]
    assert list(rows["epochs"]) == [3, 6, 9, 12]
    epochs = read_study(folder).epochs
    for _, row in rows.iterrows():
        values, seconds = [], []
        for trial, own in epochs[epochs["variant"] == "pdarts"].groupby("trial_id"):
            at = own.iloc[row["epochs"] - 1]
            genotype = epoch_genotypes(folder, trial, 2)[at["stage"], at["epoch"]]
            values.append(100 * accuracies[genotype.genotype_id])
            seconds.append(own["seconds"].iloc[: row["epochs"]].sum())
        assert row["estimated_percent"] == pytest.approx(np.mean(values))
        assert row["search_seconds"] == pytest.approx(np.mean(seconds))
    assert "random" not in set(table["variant"])  # drawn without alphas
