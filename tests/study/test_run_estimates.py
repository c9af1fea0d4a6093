"""A study's genotypes are estimated as soon as they are there, under a recipe of their own."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from benchmark import write_benchmark
from pdarts_tune.config.methods import Given
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.evaluation.estimates import open_estimator
from pdarts_tune.pdarts.genotype import Genotype
from pdarts_tune.pdarts.published import PUBLISHED
from pdarts_tune.results.storage import Storage
from pdarts_tune.results.tables import epoch_genotypes, read_rows, read_table
from pdarts_tune.study.cli import main
from pdarts_tune.study.plan import Arguments, Study, Variant, make_plan
from pdarts_tune.study.run import Source, StudyState
from synthetic import make_planned

STUDY = Study("ready", "?", lambda base: [Variant("pdarts", base), Variant("one", replace(base, max_skips=1))])


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    return write_benchmark(tmp_path_factory.mktemp("nb301"))


@pytest.fixture
def searched(tmp_path):
    """A study whose searches are done and whose genotypes nobody has trained."""
    plan = make_plan(STUDY, Arguments("smoke", seeds=2, evaluation_seeds=0))
    make_planned(tmp_path / "ready", plan)
    return tmp_path, plan


def rows_of(folder):
    return read_table(folder, "evaluations").set_index("genotype_id")


def test_estimates_alone_make_a_study_complete_and_are_made_once(searched, benchmark):
    results, plan = searched
    estimator = open_estimator(benchmark)
    assert StudyState(plan, results / "ready", (), estimator).is_done
    rows = rows_of(results / "ready")
    limits = read_table(results / "ready", "trials")[["trial_id", "max_skips"]]
    finals = read_table(results / "ready", "genotypes").merge(limits).sort_values("stage").groupby("trial_id").last()
    texts = dict(zip(finals["genotype_id"], finals["genotype"], strict=True))
    assert set(rows.index) == set(texts)
    for name, text in texts.items():
        (estimate,) = estimator.estimate([Genotype.parse(text)])
        assert rows.loc[name, "accuracy"] == estimate.accuracy
        assert rows.loc[name, "error_percent"] == pytest.approx(100 * (1 - estimate.accuracy))
    assert set(rows["recipe_id"]) == {estimator.recipe_id}
    assert set(rows["data"]) == {"cifar10"}
    assert rows["params"].isna().all()
    before = rows_of(results / "ready")
    assert StudyState(plan, results / "ready", (), estimator).is_done
    pd.testing.assert_frame_equal(rows_of(results / "ready"), before)


@pytest.mark.slow  # a study through Ray, with its report and its mirror
def test_a_smoke_study_of_estimates_alone_ends_in_a_report_that_says_so(benchmark, tmp_path):
    words = ["--preset", "smoke", "--variants", "progressive,shallow", "--evaluation-seeds", "0", "--estimate-every-epoch"]
    command = [sys.executable, "studies/depth_gap.py", *words, "--estimator", benchmark, "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(read_table(tmp_path, "evaluations")["recipe"]) == {"nb301"}
    first, *_ = (tmp_path / "depth_gap" / "report" / "rq1.md").read_text().splitlines()
    assert "estimates" in first


def test_every_epochs_cell_is_that_of_its_alphas_and_is_estimated(searched, benchmark):
    results, plan = searched
    estimator = open_estimator(benchmark)
    state = StudyState(plan, results / "ready", (), estimator, every_epoch=True)
    rows = rows_of(results / "ready")
    expected = set()
    for trial in plan.searches:
        genotypes = epoch_genotypes(results / "ready", trial.trial_id, trial.config.max_skips)
        assert len(genotypes) == sum(stage.epochs for stage in trial.config.stages)
        for row in read_rows(results / "ready", "genotypes", trial.trial_id):
            last = max(epoch for stage, epoch in genotypes if stage == row["stage"])
            if row["max_skips"] == trial.config.max_skips:
                assert str(genotypes[row["stage"], last]) == row["genotype"]
        expected |= {genotype.genotype_id for genotype in genotypes.values()}
    assert set(rows.index) == expected
    assert state.is_done
    assert "estimated error, %" in state.table()
    assert f"{100 * (1 - rows['accuracy'].max()):.0f}" in state.table()


def test_estimates_are_no_trainings(searched, benchmark):
    """A study with trainings still trains every genotype, compares them alone, and gives no estimate to another study."""
    results, _ = searched
    plan = make_plan(STUDY, Arguments("smoke", seeds=2))
    state = StudyState(plan, results / "ready", (), open_estimator(benchmark))
    assert not state.is_done
    assert "0/2" in state.table()
    assert not Source(results / "ready").evaluations


def test_a_cell_that_a_table_does_not_have_has_no_row(searched, tmp_path):
    results, plan = searched
    (tmp_path / "cells.csv").write_text(f'genotype,accuracy\n"{PUBLISHED["PDARTS_C10"].genotype}",97.5\n')
    StudyState(plan, results / "ready", (), open_estimator(f"table:{tmp_path / 'cells.csv'}"))
    assert "evaluations" not in Storage(results / "ready").folders()


def test_bad_input_is_refused_before_anything_is_written(benchmark, tmp_path, capsys):
    def variants(base):
        return [Variant("nasnet", replace(base, method=Given(str(PUBLISHED["NASNET_A"].genotype), "NASNET_A")))]

    given = Study("given", "?", variants)
    for study, words, match in (
        (STUDY, ["--evaluation-seeds", "0"], "evaluation_seeds: 0 is wrong without --estimator"),
        (STUDY, ["--estimate-every-epoch"], "estimate_every_epoch: has no effect without --estimator"),
        (STUDY, ["--estimator", f"{benchmark}@99"], "epoch 99 is wrong"),
        (STUDY, ["--estimator", "nb301:absent"], "cannot be read"),
        (given, ["--estimator", benchmark], "nasnet has no estimate, its normal cell has not four nodes"),
        (replace(STUDY, adaptive=True), ["--estimator", benchmark], "chooses its schedules by trainings"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(study, ["--preset", "smoke", "--results", str(tmp_path / "results"), *words])
        err = capsys.readouterr().err
        assert match in err
        assert err.count("\n") == 1
    assert not (tmp_path / "results").exists()
    recipe = replace(make_plan(STUDY, Arguments("smoke")).evaluation, recipe="nb301")
    with pytest.raises(ConfigError, match="'nb301' is an estimator's name"):
        replace(make_plan(STUDY, Arguments("smoke")), recipes=(recipe,))
