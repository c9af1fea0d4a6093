"""What the tables say of a study's trials, and what is taken over from other studies."""

import importlib
import json
import math
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from analysis.publish import publish
from pdarts_tune.config.methods import RandomSampling, trains_alphas
from pdarts_tune.config.presets import PRESETS
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import config_id, from_dict
from pdarts_tune.pdarts.genotype import Genotype
from pdarts_tune.pdarts.progressive_depth import search_work
from pdarts_tune.results.manifest import COMPLETED, check_definition
from pdarts_tune.results.schemas import SCHEMAS
from pdarts_tune.results.storage import Storage
from pdarts_tune.results.tables import read_rows, read_table, write_rows
from pdarts_tune.study import forecast
from pdarts_tune.study import run as study_run
from pdarts_tune.study.cli import main
from pdarts_tune.study.plan import Arguments, SearchTrial, Study, Variant, define, make_plan
from pdarts_tune.study.run import Outcomes, Source, StudyState
from studies import depth_gap, regularization
from synthetic import make_planned, make_planned_evaluation, make_trial

STUDY = Study("ready", "Is there anything left to do?", lambda base: [Variant("a", base), Variant("b", replace(base, max_skips=1))])
OPTIONS = ("--preset", "smoke", "--seeds", "2")


@pytest.fixture
def finished(tmp_path):
    """The results folder of a study whose searches and evaluations are all in the tables, and its plan."""
    plan = make_plan(STUDY, Arguments("smoke", seeds=2))
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
    assert all(trial.trial_id in said for trial in plan.searches)
    assert not asked
    main(STUDY, ["--preset", "smoke", "--seeds", "3", "--results", str(results), "--dry-run"])
    assert capsys.readouterr().out.rstrip().endswith("seconds and bytes")
    assert len(asked) == 1


def test_a_dry_run_marks_what_is_done_and_forecasts_the_rest(finished, capsys, monkeypatch):
    results, plan = finished
    monkeypatch.setattr(forecast, "probe_stage", lambda *_: forecast.StepTimes(1.0, 1.0, 0.0))
    monkeypatch.setattr(forecast, "probe_evaluation", lambda *_: forecast.StepTimes(3.0, 3.0, 0.0))
    *_, last = StudyState(plan, Storage(results / "ready")).found
    (results / "ready" / "evaluations" / f"{last}.parquet").unlink()
    main(STUDY, [*OPTIONS, "--results", str(results), "--dry-run"])
    said = capsys.readouterr().out
    assert said.count("\n  done  ") == 2 * 2 + 3
    assert f"\n        {last}\n" in said
    seconds = 2 * math.ceil(240 * 0.8 / 48) * 3
    assert f"{seconds} seconds each, at most 1\n" in said
    assert f"total: {seconds / 3600:.3g} CPU core-hours" in said
    assert "\nsearches: done\n" in said
    main(STUDY, ["--preset", "smoke", "--seeds", "3", "--results", str(results), "--dry-run"])
    assert f"{seconds} seconds each, at most 3\n" in capsys.readouterr().out  # the cells of two new searches


def test_completed_is_true_whatever_commands_ran_in_the_folder(finished):
    results, plan = finished
    outcomes = Outcomes(results / "ready")
    definition = check_definition(define(plan), None, "ready")
    assert outcomes.missing_of(definition) == ([], [])
    assert "evaluations" not in definition  # the manifest of a study with the usual evaluations is as it was
    further = replace(plan, recipes=(plan.evaluation, replace(plan.evaluation, recipe="another", epochs=3)))
    limits = replace(plan, variants=(replace(plan.variants[0], skip_limits=(0, 2)), plan.variants[1]))
    seeds, evaluation_seeds = replace(plan, seeds=3), replace(plan, evaluation_seeds=2)
    for begun, searches in ((further, 0), (evaluation_seeds, 0), (limits, 0), (seeds, 2)):
        manifest = check_definition(define(begun), json.dumps(definition).encode(), "ready")
        merged = check_definition(define(plan), json.dumps(manifest).encode(), "ready")
        assert merged == manifest
        state = StudyState(begun, results / "ready")
        left = len(state.found) - len(state.completed & state.found.keys())
        assert (left > 0) == (searches == 0)
        assert [len(missing) for missing in outcomes.missing_of(merged)] == [searches, left]


@pytest.mark.parametrize("status", ["running", "failed", "out_of_memory"])
def test_a_study_is_not_done_before_its_last_evaluation_is(finished, status):
    results, plan = finished
    folder = Storage(results / "ready")
    state = StudyState(plan, folder)
    assert state.is_done
    *_, last = state.found.values()
    make_planned_evaluation(folder, last, status)
    assert StudyState(plan, folder).take() == last
    folder.remove(f"evaluations/{last.trial_id}.parquet")
    assert StudyState(plan, folder).take() == last


def test_the_genotypes_are_those_of_each_searchs_last_stage_at_its_variants_limits(finished):
    results, plan = finished
    expected = set()
    for trial in plan.searches:
        rows = read_rows(results / "ready", "genotypes", trial.trial_id)
        last = max(row["stage"] for row in rows)
        (row,) = [row for row in rows if row["stage"] == last and row["max_skips"] == trial.config.max_skips]
        expected.add(row["genotype"])
    assert {trial.genotype for trial in StudyState(plan, results / "ready").found.values()} == expected
    assert len(expected) > 1
    limits = replace(plan, variants=tuple(replace(variant, skip_limits=(0, 8)) for variant in plan.variants))
    skips = {Genotype.parse(trial.genotype).normal.skips for trial in StudyState(limits, results / "ready").found.values()}
    assert min(skips) == 0


def test_tables_are_read_once_and_then_the_rows_of_each_trial_that_ends(finished, monkeypatch):
    results, plan = finished
    folder = Storage(results / "ready")
    names = [trial.trial_id for trial in plan.searches]
    for name in names:
        folder.remove(f"trials/{name}.parquet")
    reads, read = [], study_run._read
    monkeypatch.setattr(study_run, "_read", lambda *given: reads.append(given[1]) or read(*given))
    state = StudyState(plan, folder)
    assert sorted(reads) == ["evaluations", "trials"]
    make_planned(results / "ready", plan)
    reads.clear()
    while trial := state.take():
        state.end(trial.trial_id)
    assert not reads
    assert not state.missing


def test_a_search_over_its_memory_limit_is_not_missing_but_one_out_of_memory_is(finished):
    results, plan = finished
    folder = Storage(results / "ready")
    first, second, *_ = plan.searches
    for trial, error in ((first, "MemoryLimitError: stage 2 would take 9 GB"), (second, "OutOfMemoryError: CUDA")):
        (row,) = read_rows(folder, "trials", trial.trial_id)
        write_rows(folder, "trials", trial.trial_id, [row | {"status": "out_of_memory", "error": error}])
    state = StudyState(plan, folder)
    assert state.missing == [second]
    assert state.over_limit == {first.trial_id}
    assert state.failed_tables == ["trials"]


def run(state, folder, slots=2):
    """Runs a study as a sweep does, without Ray and training: returns the order in which trials start."""
    order, live = [], []
    while not state.is_exhausted or live:
        while len(live) < slots and (trial := state.take()):
            live.append(trial)
            order.append(trial.trial_id)
        trial = live.pop(0)
        if isinstance(trial, SearchTrial):
            make_trial(folder, trial.trial_id, trial.variant, trial.config, evaluation_seeds=())
        else:
            make_planned_evaluation(folder, trial)
        state.end(trial.trial_id)
    return order


def kinds(order):
    return [name if "smoke" not in name else f"evaluation-{name[-5:]}" for name in order]


def test_evaluations_start_when_their_search_has_ended_and_before_the_searches_of_the_next_seed(tmp_path):
    plan = make_plan(STUDY, Arguments("smoke", seeds=2, evaluation_seeds=2))
    order = kinds(run(StudyState(plan, tmp_path), tmp_path, slots=1))
    assert order == [
        *("a-seed0", "evaluation-seed0", "b-seed0", "evaluation-seed0"),
        *("evaluation-seed1", "evaluation-seed1", "a-seed1", "evaluation-seed0", "b-seed1", "evaluation-seed0"),
        *("evaluation-seed1", "evaluation-seed1"),
    ]
    assert StudyState(plan, tmp_path).is_done


def test_the_first_rows_of_a_study_of_many_seeds_are_whole_after_its_first_searches(tmp_path):
    plan = make_plan(depth_gap.STUDY, Arguments("smoke", seeds=8, variants="progressive,shallow,random"))
    order = run(StudyState(plan, tmp_path), tmp_path)
    assert order[:2] == ["progressive-seed0", "shallow-seed0"]
    assert kinds(order[2:4]) == ["evaluation-seed0"] * 2
    assert order[4:6] == ["random-seed0", "progressive-seed1"]


def test_a_study_killed_anywhere_goes_on_with_the_rest(tmp_path):
    plan = make_plan(STUDY, Arguments("smoke", seeds=2))
    whole = run(StudyState(plan, tmp_path / "whole"), tmp_path / "whole")
    state = StudyState(plan, tmp_path / "killed")
    first = state.take()
    make_trial(tmp_path / "killed", first.trial_id, first.variant, first.config, evaluation_seeds=())
    again = run(StudyState(plan, tmp_path / "killed"), tmp_path / "killed")
    assert sorted([*again, whole[0]]) == sorted(whole)
    assert "smoke" in again[0]


def test_a_genotype_that_two_searches_find_is_evaluated_once(tmp_path):
    alike = Study("alike", "?", lambda base: [Variant("one", base), Variant("other", replace(base, learning_rate=0.02))])
    plan = make_plan(alike, Arguments("smoke", seeds=1, evaluation_seeds=2))
    state = StudyState(plan, tmp_path)
    assert state.most_evaluations == 4
    for trial in plan.searches:
        assert state.take(lambda _: False) is None
        assert state.take() == trial
        make_trial(tmp_path, trial.trial_id, trial.variant, trial.config, evaluation_seeds=())
    genotypes = read_rows(tmp_path, "genotypes", "one-seed0")
    write_rows(tmp_path, "genotypes", "other-seed0", [row | {"trial_id": "other-seed0"} for row in genotypes])
    state.end("one-seed0")
    first = state.take()
    state.end("other-seed0")
    assert (len(state.found), state.most_evaluations) == (2, 2)
    assert state.take() == replace(first, trial_id=first.trial_id[:-1] + "1", config=replace(first.config, seed=1))


def test_the_table_of_variants_has_what_is_there_and_what_is_planned(finished):
    results, plan = finished
    folder = Storage(results / "ready")
    larger = replace(plan, seeds=3)
    header, first, _ = StudyState(larger, folder).table().splitlines()
    assert header.split("  ")[0] == "variant"
    accuracies = [
        max(read_rows(folder, "epochs", f"a-seed{seed}"), key=lambda row: (row["stage"], row["epoch"])) for seed in (0, 1)
    ]
    found = [100 * row["validation_accuracy"] for row in accuracies]
    mean, deviation = sum(found) / 2, abs(found[0] - found[1]) / 2**0.5
    errors = [row["error_percent"] for row in StudyState(plan, folder).evaluations.values()]
    assert first.split()[:2] == ["a", "2/3"]
    assert f"{mean:.1f} ± {deviation:.1f}" in first
    assert "2/3" in first.split()[5:]
    assert min(errors) <= float(first.split()[6]) <= max(errors)


def test_a_damaged_file_of_the_tables_is_named_in_one_line(finished, capsys):
    results, plan = finished
    path = results / "ready" / "genotypes" / f"{plan.searches[1].trial_id}.parquet"
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
    make_planned(folder, make_plan(EARLIER, Arguments("smoke", seeds=2)))
    return folder


def rows_of(folder, trial_id, table):
    return [
        {column: value for column, value in row.items() if column not in ("study", "variant", "trial_id")}
        for row in read_rows(folder, table, trial_id)
    ]


def test_rows_are_taken_over_whole_and_named_as_the_study_names_them(earlier, tmp_path):
    plan = make_plan(LATER, Arguments("smoke", seeds=2))
    folder = Storage(tmp_path / "later")
    assert not StudyState(plan, folder, [Source(earlier)]).missing
    for seed in (0, 1):
        for ours, theirs in ((f"p_darts-seed{seed}", f"base-seed{seed}"), (f"control-seed{seed}", f"drawn-seed{seed}")):
            for table in ("trials", "epochs", "alphas", "genotypes"):
                assert rows_of(folder, ours, table) == rows_of(earlier, theirs, table)
            (row,) = read_rows(folder, "trials", ours)
            assert (row["study"], row["variant"]) == ("later", ours.split("-")[0])
    state = StudyState(plan, folder)
    assert state.is_done
    assert state.found


@pytest.mark.parametrize(
    "changed", [{"learning_rate": 0.02}, {"split_seed": 7}, {"max_skips": 3}], ids=lambda changed: next(iter(changed))
)
def test_a_search_of_another_configuration_is_not_taken_over(earlier, changed):
    other = Study("other", "?", lambda base: [Variant("base", replace(base, **changed))])
    assert not any(map(Source(earlier).find, make_plan(other, Arguments("smoke", seeds=2)).searches))


def test_a_seed_that_the_source_lacks_is_left_to_run(earlier):
    same = [Source(earlier).find(trial) for trial in make_plan(LATER, Arguments("smoke", seeds=3)).searches]
    assert same == ["drawn-seed0", "base-seed0", "drawn-seed1", "base-seed1", None, None]


def test_what_the_docs_say_the_paper_s_studies_share_is_shared():
    scripts = {
        name: importlib.import_module(f"studies.{name}").STUDY
        for name in ("depth_gap", "approximation", "regularization", "baselines")
    }
    plans = {name: make_plan(study, Arguments("paper", data="cifar10")) for name, study in scripts.items()}
    there = {config_id(trial.config) for trial in plans.pop("depth_gap").searches}
    base = PRESETS["paper"].search.stages
    shared = {name: [trial.config for trial in plan.searches if config_id(trial.config) in there] for name, plan in plans.items()}
    assert {name: len(configs) for name, configs in shared.items()} == {"approximation": 12, "regularization": 4, "baselines": 8}
    searched = [config for configs in shared.values() for config in configs if trains_alphas(config.method)]
    assert round(sum(search_work(config.stages) for config in searched) / search_work(base)) == 18


@pytest.mark.parametrize("status", ["running", "failed", "out_of_memory"])
def test_what_did_not_end_well_is_not_taken_over(earlier, status):
    (row,) = read_rows(earlier, "trials", "base-seed1")
    write_rows(earlier, "trials", "base-seed1", [row | {"status": status}])
    plan = make_plan(EARLIER, Arguments("smoke", seeds=2))
    assert [Source(earlier).find(trial) for trial in plan.searches] == ["base-seed0", "drawn-seed0", None, "drawn-seed1"]
    first, *others = StudyState(plan, earlier).found.values()
    make_planned_evaluation(earlier, first, status=status)
    assert list(map(Source(earlier).find, [first, *others])) == [None, *(trial.trial_id for trial in others)]


def test_an_evaluation_by_another_recipe_or_seed_is_not_taken_over(earlier):
    plan = make_plan(EARLIER, Arguments("smoke", seeds=2))
    first, *_ = StudyState(plan, earlier).found.values()
    longer = replace(first, config=replace(first.config, epochs=first.config.epochs + 1))
    seeded = replace(first, config=replace(first.config, seed=99))
    assert list(map(Source(earlier).find, [first, longer, seeded])) == [first.trial_id, None, None]


def test_a_published_copy_is_a_source_too(earlier, tmp_path):
    (earlier / COMPLETED).write_text("{}")
    (earlier / "study.json").write_text("{}")
    publish(earlier, tmp_path / "copy" / "earlier", "")
    plan = make_plan(LATER, Arguments("smoke", seeds=2))
    folder = Storage(tmp_path / "later")
    assert StudyState(plan, folder, [Source(tmp_path / "copy" / "earlier")]).is_done
    assert rows_of(folder, "p_darts-seed0", "alphas") == rows_of(earlier, "base-seed0", "alphas")


def test_a_published_copy_has_the_same_data_if_its_folder_has_the_same_name(tmp_path):
    make_planned(tmp_path / "earlier", make_plan(EARLIER, Arguments("smoke", seeds=1, data="parquet:/theirs/photos")))
    (tmp_path / "earlier" / COMPLETED).write_text("{}")
    (tmp_path / "earlier" / "study.json").write_text("{}")
    publish(tmp_path / "earlier", tmp_path / "copy" / "earlier", "")
    copy, unpublished = Source(tmp_path / "copy" / "earlier"), Source(tmp_path / "earlier")
    for data in ("parquet:/ours/drawings", "folder:/ours/photos"):
        assert not any(map(copy.find, make_plan(LATER, Arguments("smoke", seeds=1, data=data)).searches))
    plan, folder = make_plan(LATER, Arguments("smoke", seeds=1, data="parquet:/ours/photos")), Storage(tmp_path / "later")
    assert not any(map(unpublished.find, plan.searches))
    assert StudyState(plan, folder, [copy]).is_done
    assert set(read_table(folder, "evaluations").data) == {"parquet:/ours/photos"}
    for trial in plan.searches:
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


def test_a_random_control_is_drawn_when_its_pair_is_finished_and_is_not_taken_over(tmp_path):
    """The same search elsewhere says nothing of what the pair found here."""
    plan = make_plan(regularization.STUDY, Arguments("smoke", seeds=2, variants="random_same_skips,dropout,no_dropout"))
    first, second = tmp_path / "first" / "regularization", tmp_path / "second" / "regularization"
    order = [name for name in run(StudyState(plan, first), first, slots=6) if "smoke" not in name]
    searches = [f"{name}-seed{seed}" for seed in (0, 1) for name in ("dropout", "no_dropout")]
    assert order[:4] == searches
    assert set(order[4:]) == {"random_same_skips-seed0", "random_same_skips-seed1"}
    order = run(StudyState(plan, second, [Source(first)]), second)
    assert order == ["random_same_skips-seed0", "random_same_skips-seed1"]


def test_evaluations_are_taken_over_as_soon_as_their_search_has_ended(tmp_path, capsys):
    plan = make_plan(EARLIER, Arguments("smoke", seeds=1))
    make_planned(tmp_path / "there", plan)
    for trial in plan.searches:  # of these only the evaluations are there
        Storage(tmp_path / "there").remove(f"trials/{trial.trial_id}.parquet")
    state = StudyState(plan, tmp_path / "here", [Source(tmp_path / "there")])
    assert kinds(run(state, tmp_path / "here")) == ["base-seed0", "drawn-seed0"]
    assert StudyState(plan, tmp_path / "here").is_done
    assert capsys.readouterr().out.count("1 evaluations taken over from ") == 2


def run_finished(results, *options):
    with pytest.raises(SystemExit) as stopped:
        main(STUDY, [*OPTIONS, "--results", str(results), *options])
    assert stopped.value.code == 0


def test_a_finished_study_is_marked_with_what_its_tables_hold(finished):
    results, _ = finished
    run_finished(results, "--variants", "a")
    marked = json.loads((results / "ready" / "completed.json").read_text())
    evaluations = len(list((results / "ready" / "evaluations").iterdir()))
    assert (marked["searches"], marked["evaluations"], marked["seeds"]) == (4, evaluations, {"a": 2})


def test_a_study_is_not_marked_as_finished_by_a_command_for_a_part_of_it(finished, capsys):
    results, plan = finished
    (results / "ready" / "study.json").write_text(json.dumps(define(plan)))
    (results / "ready" / "trials" / "b-seed1.parquet").unlink()
    run_finished(results, "--variants", "a")
    assert not (results / "ready" / "completed.json").exists()
    assert "missing  1 searches of the study, which this command does not run: b-seed1" in capsys.readouterr().out


def test_keep_weights_says_which_finished_trials_have_none(finished, capsys):
    results, _ = finished
    (results / "ready" / "weights").mkdir()
    (results / "ready" / "weights" / "a-seed0.pt").touch()
    run_finished(results, "--keep-weights")
    said = capsys.readouterr().out
    assert f"weights  {results}/ready/weights, of 1 of " in said
    assert "a-seed1, b-seed0, b-seed1" in said
    assert "ended before without --keep-weights;\n         another results folder runs them anew" in said


def test_a_recipe_that_joins_a_finished_study_runs_its_evaluations_alone(finished):
    results, _ = finished
    longer = replace(STUDY, evaluations=lambda base, _: [base, replace(base, recipe="longer", epochs=9)])
    state = StudyState(make_plan(longer, Arguments("smoke", seeds=2)), results / "ready")
    assert not state.missing
    missing = [trial for name, trial in state.found.items() if name not in state.completed]
    assert {trial.config.recipe for trial in missing} == {"longer"}
    assert len(missing) == len(state.found) / 2
