"""What the tables say of a study: what is finished, read again only where a file changed, and the dry run of a finished one."""

import os
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from pdarts_tune.results.storage import Storage
from pdarts_tune.results.tables import read_rows, write_rows
from pdarts_tune.study import forecast
from pdarts_tune.study import run as study_run
from pdarts_tune.study.cli import main
from pdarts_tune.study.plan import Study, Variant, make_plan
from synthetic import make_planned, make_planned_evaluation

STUDY = Study("ready", "Is there anything left to do?", lambda base: [Variant("a", base), Variant("b", replace(base, max_skips=1))])
OPTIONS = ("--preset", "smoke", "--seeds", "2")


@pytest.fixture
def finished(tmp_path):
    """The results folder of a study whose searches and evaluations are all in the tables, and its plan."""
    plan = make_plan(STUDY, "smoke", seeds=2)
    folder = tmp_path / "ready"
    make_planned(folder, plan)
    return tmp_path, plan


def test_the_dry_run_of_a_finished_study_says_so_and_forecasts_nothing(finished, capsys, monkeypatch):
    results, plan = finished
    asked = []
    monkeypatch.setattr(forecast, "forecast_here", lambda *arguments: asked.append(arguments) or "seconds and bytes")
    main(STUDY, [*OPTIONS, "--results", str(results), "--dry-run"])
    said = capsys.readouterr().out
    assert said.rstrip().endswith("all of them done, and their evaluations; nothing is left to run")
    assert all(trial.trial_id in said for trial in plan.searches())
    assert not asked
    main(STUDY, ["--preset", "smoke", "--seeds", "3", "--results", str(results), "--dry-run"])
    assert capsys.readouterr().out.rstrip().endswith("seconds and bytes")
    assert len(asked) == 1


@pytest.mark.parametrize("status", ["running", "failed", "out_of_memory"])
def test_a_study_is_not_done_before_its_last_evaluation_is(finished, status):
    results, plan = finished
    folder = Storage(results / "ready")
    assert study_run.study_is_done(plan, folder)
    *_, last = plan.evaluations(study_run.found_genotypes(plan, folder))
    make_planned_evaluation(folder, last, status)
    assert not study_run.study_is_done(plan, folder)
    folder.remove(f"evaluations/{last.trial_id}.parquet")
    assert not study_run.study_is_done(plan, folder)


def test_the_genotypes_are_those_of_each_searchs_last_stage_at_its_variants_limits(finished):
    results, plan = finished
    found = study_run.found_genotypes(plan, results / "ready")
    expected = {}
    for trial in plan.searches():
        rows = read_rows(results / "ready", "genotypes", trial.trial_id)
        last = max(row["stage"] for row in rows)
        (row,) = [row for row in rows if row["stage"] == last and row["max_skips"] == trial.config.max_skips]
        expected[row["genotype_id"]] = row["genotype"]
    assert found == expected
    assert len(found) > 1


def test_a_table_is_read_again_only_when_one_of_its_files_has_changed(finished, monkeypatch):
    results, plan = finished
    folder = Storage(results / "ready")
    reads = []
    read = study_run.read_table
    monkeypatch.setattr(study_run, "read_table", lambda *given, **named: reads.append(given[1]) or read(*given, **named))
    study_run._read_once.cache_clear()
    trials = plan.searches()
    assert not study_run.missing_trials(trials, "trials", folder)
    assert not study_run.missing_trials(trials, "trials", folder)
    assert reads == ["trials"]

    path = results / "ready" / "trials" / f"{trials[0].trial_id}.parquet"
    content = path.read_bytes()
    row = read_rows(folder, "trials", trials[0].trial_id)[0]
    write_rows(folder, "trials", trials[0].trial_id, [row | {"status": "failed", "error": "ValueError: no"}])
    assert study_run.missing_trials(trials, "trials", folder) == [trials[0]]
    assert reads == ["trials"] * 2

    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    assert not study_run.missing_trials(trials, "trials", folder)
    assert reads == ["trials"] * 3

    path.unlink()
    assert study_run.missing_trials(trials, "trials", folder) == [trials[0]]
    assert reads == ["trials"] * 4


def test_a_search_over_its_memory_limit_is_not_missing_but_one_out_of_memory_is(finished):
    results, plan = finished
    folder = Storage(results / "ready")
    first, second, *_ = plan.searches()
    for trial, error in ((first, "MemoryLimitError: stage 2 would take 9 GB"), (second, "OutOfMemoryError: CUDA")):
        (row,) = read_rows(folder, "trials", trial.trial_id)
        write_rows(folder, "trials", trial.trial_id, [row | {"status": "out_of_memory", "error": error}])
    assert study_run.missing_trials(plan.searches(), "trials", folder) == [second]
    assert study_run.over_limit(folder) == {first.trial_id}


def test_a_damaged_file_of_the_tables_is_named_in_one_line(finished, capsys):
    results, plan = finished
    path = results / "ready" / "genotypes" / f"{plan.searches()[1].trial_id}.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns("genotype"), path)
    with pytest.raises(SystemExit) as stopped:
        main(STUDY, [*OPTIONS, "--results", str(results), "--dry-run"])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path}: is not of schema version" in line
