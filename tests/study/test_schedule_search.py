"""Schedules as points of a space, and the search over them: what is asked, stopped, retried and shown."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState

from analysis import schedule_search as schedule_front
from common.comparisons import find_front
from pdarts_tune.config.presets import PRESETS, SMOKE
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError, config_id, from_dict, to_dict
from pdarts_tune.evaluation.training import Evaluation
from pdarts_tune.pdarts.progressive_depth import Stage
from pdarts_tune.results.tables import read_rows, read_table, write_rows
from pdarts_tune.study import schedule_search, sweep, trainable
from pdarts_tune.study.plan import Arguments, define, make_plan
from pdarts_tune.study.schedule_search import depth_range, point_of, suggest_schedule
from pdarts_tune.study.trainable import TrialSpec
from studies import schedule_search as study
from synthetic import make_trial
from synthetic_rows import evaluation_row


class Fixed:
    """Answers with the values of a point, and knows which were asked for."""

    def __init__(self, point):
        self.point, self.asked = point, []

    def suggest_int(self, name, low, high):
        return self._answer(name, low, high)

    suggest_float = suggest_int

    def _answer(self, name, low, high):
        self.asked.append(name)
        assert low <= self.point[name] <= high, name
        return self.point[name]


class Drawn(Fixed):
    def __init__(self, data):
        self.data, self.asked = data, []

    def suggest_int(self, name, low, high):
        self.asked.append(name)
        return self.data.draw(st.integers(low, high), name)

    def suggest_float(self, name, low, high):
        self.asked.append(name)
        return self.data.draw(st.floats(low, high), name)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_base_is_a_point_of_the_space(preset):
    base = PRESETS[preset].search
    trial = Fixed(point_of(base))
    assert suggest_schedule(trial, base) == base
    assert set(trial.asked) == set(trial.point)


@given(data=st.data())
def test_every_point_is_a_schedule_and_only_its_own_stages_are_asked_for(data):
    base = SearchConfig()
    trial = Drawn(data)
    config = suggest_schedule(trial, base)  # SearchConfig refuses stages that make no search
    assert 2 <= len(config.stages) <= 4
    assert {name for name in trial.asked if name.startswith("depth_")} == {f"depth_{n + 1}" for n in range(len(config.stages))}
    assert len(trial.asked) == len(set(trial.asked)) == 1 + 3 * len(config.stages)
    assert trial.asked[-1] == "max_skips"
    kept = [stage.operations for stage in config.stages]
    assert kept[0] == 8
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] >= 2


def test_depths_reach_from_the_shallowest_stage_to_beyond_the_deepest():
    assert depth_range(SearchConfig().stages) == (5, 18)


ROOT = Path(__file__).parents[2]


def test_the_front_is_what_no_other_beats_in_everything():
    values = np.array([[1.0, 5.0, 1.0], [2.0, 1.0, 1.0], [2.0, 5.0, 1.0], [1.0, 5.0, 1.0], [0.5, 9.0, 0.5]])
    assert find_front(values).tolist() == [True, True, False, True, True]
    assert find_front(np.empty((0, 3))).tolist() == []


def test_schedules_are_not_chosen_by_test_images():
    plan = make_plan(study.STUDY, Arguments("paper"))
    assert plan.evaluation.validation_fraction == 0.1  # the paper itself trains on everything
    with pytest.raises(ConfigError, match="validation_fraction: 0 is wrong, schedules are chosen by the validation error"):
        replace(plan, recipes=(replace(plan.evaluation, validation_fraction=0.0),))


def test_a_trial_that_was_under_way_is_asked_for_again_before_any_other():
    known = optuna.create_study(directions=["minimize"] * 3)
    constants = {"trial": {"config": to_dict(SMOKE.search)}, "evaluation": {}}
    known.enqueue_trial(point_of(SMOKE.search))
    first = schedule_search.suggest_trial(known.ask(), constants)
    known.ask()  # killed before it was asked for anything
    schedule_search.retry_trials(known)
    assert [trial.state.name for trial in known.trials] == ["FAIL", "FAIL", "WAITING"]
    again = schedule_search.suggest_trial(known.ask(), constants)
    assert again == first
    assert again["trial"]["trial_id"] == f"schedule-{config_id(SMOKE.search)}"


def test_a_schedule_over_its_memory_limit_is_the_worst_there_is(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(trainable.tune, "report", told.append)
    monkeypatch.setattr("pdarts_tune.study.trainable.ray.get_gpu_ids", list)  # which would start Ray
    plan = make_plan(study.STUDY, Arguments("smoke", memory_limit=1000))
    (search,) = plan.searches
    spec = asdict(TrialSpec("schedule-x", str(tmp_path), "", to_dict(search.config), variant="x", threads=1, commit=""))
    trainable.run_schedule({"trial": spec, "evaluation": to_dict(plan.evaluation)})
    (row,) = read_rows(tmp_path, "trials", "schedule-x")
    assert row["status"] == "out_of_memory"
    assert told[1:] == [{"evaluation_error": 100.0, "search_seconds": 0.0, "peak_bytes": row["peak_bytes"]}]


def schedule_settings(folder):
    plan = make_plan(study.STUDY, Arguments("smoke"))
    tiny = replace(SMOKE.search, stages=(Stage(3, 8, epochs=1, warmup_epochs=0),), channels=2, train_images=60)
    evaluation = replace(plan.evaluation, epochs=2, cells=3, channels=4, train_images=60, test_images=30)
    spec = TrialSpec("schedule-x", str(folder), "", to_dict(tiny), variant="x", threads=1, commit="")
    return {"trial": asdict(spec), "evaluation": to_dict(evaluation)}, f"schedule-x-{evaluation.recipe_id}-seed0"


def test_a_failed_evaluation_has_its_own_row_and_is_tried_again_without_its_finished_search(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(trainable.tune, "report", told.append)
    monkeypatch.setattr("pdarts_tune.study.trainable.ray.get_gpu_ids", list)  # which would start Ray
    settings, evaluation_id = schedule_settings(tmp_path)

    def fail(*_):
        raise FloatingPointError("test: the loss of 3 of 30 images is not finite")

    monkeypatch.setattr(Evaluation, "test", fail)
    with pytest.raises(FloatingPointError) as raised:
        trainable.run_schedule(settings)
    searched = (tmp_path / "trials" / "schedule-x.parquet").read_bytes()
    assert sweep.record_failure(settings, raised.value).startswith("FloatingPointError: test: the loss of 3 of 30")
    (row,) = read_rows(tmp_path, "evaluations", evaluation_id)
    assert (row["status"], row["attempts"]) == ("failed", 1)
    assert sweep.record_failure(settings, None) == sweep.DIED  # killed before its row, on the next attempt
    (row,) = read_rows(tmp_path, "evaluations", evaluation_id)
    assert (row["status"], row["failure"], row["attempts"]) == ("failed", sweep.DIED, 2)
    assert (tmp_path / "trials" / "schedule-x.parquet").read_bytes() == searched
    assert read_rows(tmp_path, "trials", "schedule-x")[0]["status"] == "completed"

    monkeypatch.undo()
    monkeypatch.setattr("pdarts_tune.study.trainable.ray.get_gpu_ids", list)
    told.clear()
    monkeypatch.setattr(trainable.tune, "report", told.append)
    trainable.run_schedule(settings)
    (row,) = read_rows(tmp_path, "evaluations", evaluation_id)
    assert (row["status"], row["failure"], row["attempts"]) == ("completed", None, 3)
    assert [report for report in told if "position" in report] == []  # both epochs were on disk: only the test was left
    assert told[-1]["evaluation_error"] == pytest.approx(100 * (1 - row["last_validation_accuracy"]))
    assert (tmp_path / "trials" / "schedule-x.parquet").read_bytes() == searched
    assert sweep.record_failure(settings, None) is None


def test_a_schedule_that_failed_is_asked_for_again_until_it_is_complete():
    known = optuna.create_study(directions=["minimize"] * 3)
    constants = {"trial": {"config": to_dict(SMOKE.search)}, "evaluation": {}}
    known.enqueue_trial(point_of(SMOKE.search))
    first = schedule_search.suggest_trial(known.ask(), constants)
    known.tell(0, state=TrialState.FAIL)
    for _ in range(2):  # a driver that asks for none of them leaves no second one
        schedule_search.retry_trials(known)
    assert [trial.state.name for trial in known.trials] == ["FAIL", "WAITING"]
    assert schedule_search.suggest_trial(known.ask(), constants) == first
    known.tell(1, [1.0, 1.0, 1.0])
    schedule_search.retry_trials(known)
    assert [trial.state.name for trial in known.trials] == ["FAIL", "COMPLETE"]


def test_the_report_has_the_front_and_says_what_was_stopped_early(tmp_path):
    folder = tmp_path / "schedule_search"
    plan = make_plan(study.STUDY, Arguments("smoke"))
    names = [config_id(SMOKE.search), "aaa", "bbb"]
    for name, config in zip(
        names, (SMOKE.search, replace(SMOKE.search, channels=6), replace(SMOKE.search, channels=8)), strict=True
    ):
        make_trial(folder, f"schedule-{name}", name, config, evaluation_seeds=())
    (folder / "study.json").write_text(json.dumps(define(plan)))
    for name, accuracy, seconds in ((names[0], 0.8, 10.0), ("aaa", 0.7, 20.0)):
        (row,) = read_rows(folder, "trials", f"schedule-{name}")
        write_rows(folder, "trials", f"schedule-{name}", [row | {"seconds": seconds, "peak_bytes": 2**30}])
        found = read_rows(folder, "genotypes", f"schedule-{name}")[0]
        evaluation = f"schedule-{name}-smoke-0-seed0"
        made = evaluation_row(evaluation, found, plan.evaluation, np.random.default_rng(0), row["started"], 0.9)
        write_rows(folder, "evaluations", evaluation, [made | {"last_validation_accuracy": accuracy}])
    section = schedule_front.build(tmp_path)
    front = section.main_table
    assert list(front["schedule"]) == [names[0]]  # less error in less time than the other, and the same memory
    assert front["validation_error_percent"].tolist() == pytest.approx([20.0])
    assert section.missing == ["bbb: stopped early"]
    failed = read_rows(folder, "evaluations", f"schedule-{names[0]}-smoke-0-seed0")[0] | {"status": "failed", "failure": "nan"}
    write_rows(folder, "evaluations", "schedule-bbb-smoke-0-seed0", [failed | {"trial_id": "schedule-bbb-smoke-0-seed0"}])
    assert schedule_front.build(tmp_path).missing == ["bbb: evaluation failed"]
    assert section.conclusion[0].startswith(
        f"1 of 3 schedules are on the Pareto front; the base's own ({names[0]}) is on the front"
    )
    assert "pareto_front" in section.figures


def start(results, output):
    command = [sys.executable, "studies/schedule_search.py", "--preset", "smoke", "--samples", "3", "--results", str(results)]
    return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)


@pytest.mark.slow  # three schedules through Ray Tune, the driver killed on the way
@pytest.mark.timeout(1200)
def test_a_killed_schedule_search_goes_on_and_ends_with_a_pareto_front(tmp_path):
    with (tmp_path / "output.txt").open("w+") as output:
        driver = start(tmp_path, output)
        try:
            deadline = time.monotonic() + 400
            while len(list(tmp_path.glob("schedule_search/genotypes/*.parquet"))) < 2:
                assert driver.poll() is None, (tmp_path / "output.txt").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
        finally:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
        before = read_table(tmp_path, "epochs")
        assert start(tmp_path, output).wait(timeout=700) == 0, (tmp_path / "output.txt").read_text()
    trials, epochs, evaluations = (read_table(tmp_path, table) for table in ("trials", "epochs", "evaluations"))
    assert len(before.merge(epochs, on=["trial_id", "stage", "epoch", "finished"])) == len(before)
    assert not epochs.duplicated(["trial_id", "stage", "epoch"]).any()
    assert set(trials["status"]) == {"completed"}
    assert f"schedule-{config_id(SMOKE.search)}" in set(trials["trial_id"])
    assert 1 <= len(evaluations) <= len(trials) == 3
    with sqlite3.connect(tmp_path / "schedule_search" / "optuna.db") as database:
        states = [state for (state,) in database.execute("select state from trials")]
    assert states.count("COMPLETE") == 3
    assert set(states) <= {"COMPLETE", "FAIL"}
    definition = json.loads((tmp_path / "schedule_search" / "study.json").read_text())
    assert definition == define(make_plan(study.STUDY, Arguments("smoke")))
    assert from_dict(SearchConfig, definition["variants"]["base"]) == SMOKE.search
    report = (tmp_path / "schedule_search" / "report" / "schedule_search.md").read_text()
    assert "Pareto front" in report
    assert list((tmp_path / "schedule_search" / "report").glob("*pareto_front*.p*"))
