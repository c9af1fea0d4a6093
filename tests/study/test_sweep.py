import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.search import Searcher

from pdarts_tune.results.storage import Storage
from pdarts_tune.study import sweep
from pdarts_tune.study.cli import Arguments
from pdarts_tune.study.forecast import MOST_TRIALS, gpu_fraction, trials_that_fit
from pdarts_tune.study.plan import Study, Variant, make_plan
from pdarts_tune.study.progress import Progress
from pdarts_tune.study.run import StudyState
from pdarts_tune.study.sweep import WAITING, Grants, Queue, Sweep
from synthetic import make_planned_evaluation, make_trial

GIGABYTE = 10**9
STUDY = Study("queue", "?", lambda base: [Variant(name, replace(base, channels=4 + place)) for place, name in enumerate("abcd")])


def test_small_trials_share_a_gpu_and_large_ones_have_it_alone():
    assert trials_that_fit(3 * GIGABYTE, 16 * GIGABYTE) == 3  # 3 x (3.75 + 0.6) is 13.05, a fourth would make 17.4
    assert gpu_fraction(3 * GIGABYTE, 16 * GIGABYTE) == 0.3333
    assert gpu_fraction(9 * GIGABYTE, 16 * GIGABYTE) == 1.0
    assert trials_that_fit(14 * GIGABYTE, 16 * GIGABYTE) == 0
    assert gpu_fraction(14 * GIGABYTE, 16 * GIGABYTE) == 1.0
    assert trials_that_fit(1, 80 * GIGABYTE) == MOST_TRIALS


@given(needed=st.integers(0, 100 * GIGABYTE), gpu_bytes=st.integers(GIGABYTE, 200 * GIGABYTE))
def test_trials_that_share_a_gpu_fit_on_it_with_headroom(needed, gpu_bytes):
    fraction = gpu_fraction(needed, gpu_bytes)
    together = int(1 / fraction)
    assert 0 < fraction <= 1
    assert together <= MOST_TRIALS
    assert together == 1 or together * 1.25 * needed <= gpu_bytes


@pytest.fixture
def make_queue(tmp_path, monkeypatch):
    """A queue over a cluster with these resources. `needs`: bytes by variant; `refuse`: no evaluation may run."""

    def make(resources, refuse=False, needs=None, seeds=8, **settings):
        monkeypatch.setattr(sweep.ray, "cluster_resources", lambda: resources)
        state = StudyState(make_plan(STUDY, "smoke", seeds=seeds), tmp_path)
        grants = Grants([resources], None, 16 * GIGABYTE if "GPU" in resources else None)

        monkeypatch.setattr(sweep, "refuse_large", lambda trial, _: "too large" if refuse and "smoke" in trial.trial_id else None)
        monkeypatch.setattr(sweep, "predict_need", lambda trial: (needs or {}).get(trial.trial_id[0], 0))
        progress = Progress({"searches": 4 * seeds, "evaluations": 4 * seeds}, {"searches": 0, "evaluations": 0}, 1)
        return Queue(state, Sweep(Storage(tmp_path), grants, Arguments(**settings), "commit"), progress)

    return make


def take(queue):
    """What Tune gets now: it asks until it gets no trial."""
    given = []
    while isinstance(answer := queue.suggest("tune's id"), dict):
        given.append(answer["trial"]["trial_id"])
    return given


def finish(queue, trial_id):
    """The trial ends well, on disk and for Tune."""
    state = queue.state
    trial = state.under_way[trial_id]
    if trial_id in state.searches:
        make_trial(state.folder.path, trial_id, trial.variant, trial.config, evaluation_seeds=())
    else:
        make_planned_evaluation(state.folder, trial)
    queue.display.on_trial_complete(0, [], SimpleNamespace(config={"trial": {"trial_id": trial_id, "genotype": ""}}))


def test_a_trial_starts_when_there_is_room_so_an_evaluation_overtakes_the_searches_that_wait(make_queue):
    queue = make_queue({"CPU": 2.0})
    assert take(queue) == ["a-seed0", "b-seed0"]
    finish(queue, "b-seed0")
    (evaluation,) = take(queue)
    assert "smoke" in evaluation
    finish(queue, evaluation)
    assert take(queue) == ["c-seed0"]


def test_trials_of_different_memory_share_a_gpu_as_far_as_it_goes(make_queue):
    queue = make_queue(
        {"GPU": 1.0, "CPU": 16.0}, needs={"a": 3 * GIGABYTE, "b": 5 * GIGABYTE, "c": 3 * GIGABYTE, "d": 3 * GIGABYTE}
    )
    assert take(queue) == ["a-seed0", "b-seed0"]  # a third and a half; another third is too much
    finish(queue, "b-seed0")
    assert len(take(queue)) == 0  # an evaluation whose need is not known has a GPU alone
    finish(queue, "a-seed0")
    assert "smoke" in take(queue)[0]


def test_at_most_so_many_trials_run_as_are_asked_for(make_queue):
    assert len(take(make_queue({"CPU": 8.0}, max_trials=3))) == 3
    assert len(take(make_queue({"GPU": 4.0, "CPU": 16.0}, max_trials=1, address="auto"))) == 1


def test_a_cluster_that_grows_sees_trials_that_wait_and_this_machine_does_not(make_queue):
    assert len(take(make_queue({"CPU": 2.0}))) == 2
    queue = make_queue({"CPU": 2.0}, address="auto")
    first, second, *waiting = take(queue)
    assert len(waiting) == WAITING - 2
    queue.display.progress.running = {first: None, second: None}
    assert len(take(queue)) == 2


def test_a_refused_trial_takes_no_place_and_counts_as_failed(make_queue):
    queue = make_queue({"CPU": 1.0}, refuse=True, seeds=1)
    for name in ("a-seed0", "b-seed0", "c-seed0", "d-seed0"):
        assert take(queue) == [name]
        assert queue.suggest("x") is None  # until the search ends nobody knows what comes
        finish(queue, name)
    assert queue.suggest("x") == Searcher.FINISHED
    assert queue.display.progress.failed == len(queue.state.found)


def test_an_error_of_the_queue_ends_the_study_with_itself_and_not_as_tune_wraps_it(make_queue, monkeypatch):
    queue = make_queue({"CPU": 1.0})
    monkeypatch.setattr(sweep, "refuse_large", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        queue.suggest("x")
    assert isinstance(queue.display.error, OSError)


def test_a_process_that_may_use_one_cpu_runs_one_trial_at_a_time():
    script = "import os, joblib; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(joblib.cpu_count())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
