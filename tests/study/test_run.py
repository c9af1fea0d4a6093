"""What the tables say of a study's trials, and what is taken over from other studies."""

import importlib
import json
import os
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from analysis.publish import publish
from pdarts_tune.config.methods import RandomSampling, trains_alphas
from pdarts_tune.config.presets import PRESETS
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import config_id, from_dict
from pdarts_tune.pdarts.progressive_depth import search_work
from pdarts_tune.results.manifest import COMPLETED
from pdarts_tune.results.schemas import SCHEMAS
from pdarts_tune.results.storage import Storage
from pdarts_tune.results.tables import read_rows, read_table, write_rows
from pdarts_tune.study import forecast
from pdarts_tune.study import run as study_run
from pdarts_tune.study.cli import main
from pdarts_tune.study.plan import Study, Variant, make_plan
from pdarts_tune.study.run import Demands, find_same, found_genotypes, missing_trials, run_missing, take_over
from studies import regularization
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


EARLIER = Study("earlier", "What is there?", lambda base: [Variant("base", base), Variant("drawn", drawn(base))])
LATER = Study("later", "What joins?", lambda base: [Variant("control", drawn(base)), Variant("p_darts", base)])


def drawn(base):
    return replace(base, method=RandomSampling())


@pytest.fixture
def earlier(tmp_path):
    """The folder of a study that is finished with two seeds."""
    folder = tmp_path / "earlier"
    make_planned(folder, make_plan(EARLIER, "smoke", seeds=2))
    return folder


def rows_of(folder, trial_id, table):
    return [
        {column: value for column, value in row.items() if column not in ("study", "variant", "trial_id")}
        for row in read_rows(folder, table, trial_id)
    ]


def test_rows_are_taken_over_whole_and_named_as_the_study_names_them(earlier, tmp_path):
    plan = make_plan(LATER, "smoke", seeds=2)
    folder = Storage(tmp_path / "later")
    assert take_over(plan.searches(), [Storage(earlier)], folder) == 4
    assert not missing_trials(plan.searches(), "trials", folder)
    for seed in (0, 1):
        for ours, theirs in ((f"p_darts-seed{seed}", f"base-seed{seed}"), (f"control-seed{seed}", f"drawn-seed{seed}")):
            for table in ("trials", "epochs", "alphas", "genotypes"):
                assert rows_of(folder, ours, table) == rows_of(earlier, theirs, table)
            (row,) = read_rows(folder, "trials", ours)
            assert (row["study"], row["variant"]) == ("later", ours.split("-")[0])
    evaluations = plan.evaluations(found_genotypes(plan, folder))
    assert take_over(evaluations, [Storage(earlier)], folder) == len(evaluations) > 0
    assert not missing_trials(evaluations, "evaluations", folder)


@pytest.mark.parametrize(
    "changed", [{"learning_rate": 0.02}, {"split_seed": 7}, {"max_skips": 3}], ids=lambda changed: next(iter(changed))
)
def test_a_search_of_another_configuration_is_not_taken_over(earlier, changed):
    other = Study("other", "?", lambda base: [Variant("base", replace(base, **changed))])
    assert find_same(make_plan(other, "smoke", seeds=2).searches(), [Storage(earlier)]) == []


def test_a_seed_that_the_source_lacks_is_left_to_run(earlier):
    same = find_same(make_plan(LATER, "smoke", seeds=3).searches(), [Storage(earlier)])
    assert sorted(there for _, _, there in same) == ["base-seed0", "base-seed1", "drawn-seed0", "drawn-seed1"]


def test_what_the_docs_say_the_paper_s_studies_share_is_shared():
    scripts = {
        name: importlib.import_module(f"studies.{name}").STUDY
        for name in ("depth_gap", "approximation", "regularization", "baselines")
    }
    plans = {name: make_plan(study, "paper", data="cifar10") for name, study in scripts.items()}
    there = {config_id(trial.config) for trial in plans.pop("depth_gap").searches()}
    base = PRESETS["paper"].search.stages
    shared = {name: [trial.config for trial in plan.searches() if config_id(trial.config) in there] for name, plan in plans.items()}
    assert {name: len(configs) for name, configs in shared.items()} == {"approximation": 12, "regularization": 4, "baselines": 8}
    searched = [config for configs in shared.values() for config in configs if trains_alphas(config.method)]
    assert round(sum(search_work(config.stages) for config in searched) / search_work(base)) == 18


@pytest.mark.parametrize("status", ["running", "failed", "out_of_memory"])
def test_what_did_not_end_well_is_not_taken_over(earlier, status):
    (row,) = read_rows(earlier, "trials", "base-seed1")
    write_rows(earlier, "trials", "base-seed1", [row | {"status": status}])
    plan = make_plan(EARLIER, "smoke", seeds=2)
    same = find_same(plan.searches(), [Storage(earlier)])
    assert "base-seed1" not in {there for _, _, there in same}
    assert len(same) == 3
    evaluations = plan.evaluations(found_genotypes(plan, earlier))
    make_planned_evaluation(earlier, evaluations[0], status=status)
    assert len(find_same(evaluations, [Storage(earlier)])) == len(evaluations) - 1


def test_an_evaluation_by_another_recipe_or_seed_is_not_taken_over(earlier):
    plan = make_plan(EARLIER, "smoke", seeds=2)
    (first, *_) = plan.evaluations(found_genotypes(plan, earlier))
    longer = replace(first, config=replace(first.config, epochs=first.config.epochs + 1))
    seeded = replace(first, config=replace(first.config, seed=99))
    assert [there for _, _, there in find_same([first], [Storage(earlier)])] == [first.trial_id]
    assert find_same([longer, seeded], [Storage(earlier)]) == []


def test_a_published_copy_is_a_source_too(earlier, tmp_path):
    (earlier / COMPLETED).write_text("{}")
    (earlier / "study.json").write_text("{}")
    publish(earlier, tmp_path / "copy" / "earlier", "")
    plan = make_plan(LATER, "smoke", seeds=2)
    folder = Storage(tmp_path / "later")
    assert take_over(plan.searches(), [Storage(tmp_path / "copy" / "earlier")], folder) == 4
    assert rows_of(folder, "p_darts-seed0", "alphas") == rows_of(earlier, "base-seed0", "alphas")


def test_a_published_copy_has_the_same_data_if_its_folder_has_the_same_name(tmp_path):
    make_planned(tmp_path / "earlier", make_plan(EARLIER, "smoke", seeds=1, data="parquet:/theirs/photos"))
    (tmp_path / "earlier" / COMPLETED).write_text("{}")
    (tmp_path / "earlier" / "study.json").write_text("{}")
    publish(tmp_path / "earlier", tmp_path / "copy" / "earlier", "")
    copy = Storage(tmp_path / "copy" / "earlier")
    assert find_same(make_plan(LATER, "smoke", seeds=1, data="parquet:/ours/drawings").searches(), [copy]) == []
    assert find_same(make_plan(LATER, "smoke", seeds=1, data="folder:/ours/photos").searches(), [copy]) == []
    unpublished = Storage(tmp_path / "earlier")
    plan, folder = make_plan(LATER, "smoke", seeds=1, data="parquet:/ours/photos"), Storage(tmp_path / "later")
    assert find_same(plan.searches(), [unpublished]) == []
    assert take_over(plan.searches(), [copy], folder) == 2
    assert take_over(plan.evaluations(found_genotypes(plan, folder)), [copy], folder) > 0
    assert set(read_table(folder, "evaluations").data) == {"parquet:/ours/photos"}
    for trial in plan.searches():
        (row,) = read_rows(folder, "trials", trial.trial_id)
        assert (row["data"], row["config_id"]) == ("parquet:/ours/photos", config_id(trial.config))
        assert from_dict(SearchConfig, json.loads(row["config"])) == trial.config


def test_a_study_whose_trials_are_all_there_already_runs_none(earlier, tmp_path, capsys):
    main_exits(0, [*OPTIONS, "--results", str(tmp_path), "--reuse", str(earlier)])
    said = capsys.readouterr().out
    assert "4 searches taken over from " in said
    assert "all of them done" in said
    assert json.loads((tmp_path / "later" / COMPLETED).read_text())["searches"] == 4
    before = {path: path.read_bytes() for table in SCHEMAS for path in (tmp_path / "later" / table).iterdir()}
    main_exits(0, [*OPTIONS, "--results", str(tmp_path), "--reuse", str(earlier)])
    assert "taken over" not in capsys.readouterr().out
    assert before == {path: path.read_bytes() for table in SCHEMAS for path in (tmp_path / "later" / table).iterdir()}


def test_the_dry_run_says_what_would_be_taken_over_and_writes_nothing(earlier, tmp_path, capsys):
    main(LATER, [*OPTIONS, "--results", str(tmp_path), "--reuse", str(earlier), "--dry-run", "--probe-seconds", "0"])
    assert f"4 searches would be taken over from {earlier}" in capsys.readouterr().out
    assert not (tmp_path / "later").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--reuse", "{}/nowhere"], "is not the folder of a study"),
        (["--reuse", "{}"], "is not the folder of a study"),
        (["--reuse", "{}/later"], "is the study itself"),
        (["--reuse", "{}/earlier", "--keep-weights"], "takes over rows of tables and no weights"),
    ],
)
def test_a_wrong_source_is_refused_before_anything_is_written(earlier, tmp_path, capsys, options, says):
    if "itself" in says:
        (tmp_path / "later" / "trials").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    main_exits(2, [*OPTIONS, "--results", str(tmp_path), *(option.format(tmp_path) for option in options)])
    error = capsys.readouterr().err
    assert error.startswith("error: reuse: ")
    assert says in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def main_exits(code, options):
    with pytest.raises(SystemExit) as ended:
        main(LATER, options)
    assert ended.value.code == code


def test_a_random_control_is_drawn_when_its_pair_is_finished_and_is_not_taken_over(tmp_path, monkeypatch):
    """A sweep that runs nothing: the same search elsewhere says nothing of what the pair found here."""
    plan = make_plan(regularization.STUDY, "smoke", seeds=2, variants="random_same_skips,dropout,no_dropout")
    make_planned(tmp_path / "regularization", plan)
    batches = []
    sweep = SimpleNamespace(
        grants=SimpleNamespace(gpu_bytes=None),
        threads=lambda _: 1,
        run=lambda specs, what, **_: batches.append((what, [spec["trial_id"] for spec in specs])) or 0,
    )
    monkeypatch.setattr("pdarts_tune.study.sweep.open_sweep", lambda *_: nullcontext(sweep))
    signals = SimpleNamespace(install=lambda: None)
    demands = Demands(None, None, 0, False, [])
    assert run_missing(plan, demands, Storage(tmp_path / "empty" / "regularization"), signals) == 0
    searches = [f"{name}-seed{seed}" for seed in (0, 1) for name in ("dropout", "no_dropout")]
    controls = [f"random_same_skips-seed{seed}" for seed in (0, 1)]
    assert batches == [("searches", searches), ("controls", controls), ("evaluations", [])]
    batches.clear()
    demands = replace(demands, sources=[Storage(tmp_path / "regularization")])
    run_missing(plan, demands, Storage(tmp_path / "another" / "regularization"), signals)
    assert [batch for batch in batches if batch[1]] == [("controls", controls)]
