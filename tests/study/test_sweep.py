import subprocess
import sys
import time
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
from ray.exceptions import AuthenticationError
from ray.tune.search import Searcher

from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError, to_dict
from pdarts_tune.results.storage import Storage
from pdarts_tune.results.tables import read_rows, write_rows
from pdarts_tune.study import sweep
from pdarts_tune.study.plan import Arguments, Study, Variant, make_plan
from pdarts_tune.study.progress import Progress
from pdarts_tune.study.run import StudyState
from pdarts_tune.study.shares import Grants
from pdarts_tune.study.sweep import (
    WAITING,
    Display,
    KilledForMemoryError,
    Queue,
    Sweep,
    explain_start_error,
    open_sweep,
    record_failure,
)
from pdarts_tune.study.trainable import TrialSpec
from synthetic import make_planned_evaluation, make_trial, shrink

GIGABYTE = 10**9
STUDY = Study("queue", "?", lambda base: [Variant(name, replace(base, channels=4 + place)) for place, name in enumerate("abcd")])


@pytest.fixture
def make_queue(tmp_path, monkeypatch):
    """A queue over a cluster with these resources. `needs`: bytes by variant; `refuse`: no evaluation may run."""

    def make(resources, refuse=False, needs=None, seeds=8, **settings):
        monkeypatch.setattr(sweep.ray, "cluster_resources", lambda: resources)
        state = StudyState(make_plan(STUDY, Arguments("smoke", seeds=seeds)), tmp_path)
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
        {"GPU": 1.0, "CPU": 16.0}, needs={"a": 2 * GIGABYTE, "b": 5 * GIGABYTE, "c": 2 * GIGABYTE, "d": 2 * GIGABYTE}
    )
    # A quarter and a half, then a quarter; no other fits. 32 trials are ready, so memory alone decides.
    assert take(queue) == ["a-seed0", "b-seed0", "c-seed0"]
    assert [queue._live[name]["gpu"] for name in ("a-seed0", "b-seed0", "c-seed0")] == [0.25, 0.5, 0.25]
    finish(queue, "b-seed0")
    assert len(take(queue)) == 0  # an evaluation whose need is not known has a GPU alone
    for name in ("a-seed0", "c-seed0"):
        finish(queue, name)
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


LONG = "validate_socket_filename failed: AF_UNIX path length cannot exceed 107 bytes: /tmp/long/ray/session/sockets/plasma_store"
VERSIONS = (
    "Version mismatch: The cluster was started with:\n    Ray: 2.1.0\n    Python: 3.9.1\n"
    "This process on 1.2.3.4 was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
)


@pytest.mark.parametrize(
    ("error", "address", "message"),
    [
        (OSError(LONG), None, "RAY_TMPDIR: /scratch/me is too long a name for Ray's sockets; set it to a short one"),
        (
            PermissionError(13, "Permission denied", "/scratch/me/ray"),
            None,
            "RAY_TMPDIR: /scratch/me/ray cannot be written (Permiss",
        ),
        (RuntimeError("no\nroom"), None, "Ray does not start on this machine: RuntimeError: no room"),
        (RuntimeError(VERSIONS), "h:1", "address: the cluster at 'h:1' runs Ray: 2.1.0 Python: 3.9.1, here are Ray: 2.60.0"),
        (
            AuthenticationError("No token"),
            "h:1",
            "address: the cluster at 'h:1' wants another token than this user's; RAY",
        ),
        (
            ConnectionRefusedError(111, "Connection refused"),
            "h:1",
            "address: no Ray cluster at 'h:1' ([Errno 111] Conn",
        ),
    ],
)
def test_an_error_of_rays_start_is_one_line_that_names_the_setting(monkeypatch, error, address, message):
    monkeypatch.setenv("RAY_TMPDIR", "/scratch/me")
    line = explain_start_error(error, address)
    assert line.startswith(message)
    assert "\n" not in line


@pytest.mark.parametrize("address", ["127.0.0.1:9", "auto"])
def test_an_address_at_which_nothing_answers_is_refused_at_once(tmp_path, monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")  # of `auto`
    begun = time.monotonic()
    with (
        pytest.raises(ConfigError, match=rf"address: no Ray cluster at '{address}'"),
        open_sweep(Storage(tmp_path), Arguments(address=address), "commit"),
    ):
        pass
    assert time.monotonic() - begun < 20


def test_a_trial_that_is_killed_for_memory_says_so_with_its_peak_and_what_to_change(tmp_path):
    config = shrink(SearchConfig(), 2)
    make_trial(tmp_path, "t", "pdarts", config, status="running", epochs_done=2)
    spec = TrialSpec("t", str(tmp_path), "", to_dict(config), variant="pdarts", threads=1, commit="commit")
    peak = max(row["peak_bytes"] for row in read_rows(tmp_path, "epochs", "t"))
    reason = record_failure({"trial": asdict(spec)}, KilledForMemoryError("the kernel"))
    assert reason.startswith("out of memory: the kernel killed the process of the trial, the machine had no memory left; its peak")
    assert f"its peak until then was {peak / 1e9:.1f} GB; run fewer trials at a time (--max-trials 1)" in reason
    (row,) = read_rows(tmp_path, "trials", "t")
    assert (row["status"], row["error"], row["peak_bytes"]) == ("out_of_memory", reason, peak)


def test_rays_and_the_kernels_kills_for_memory_are_told_from_other_deaths(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(sweep, "record_failure", lambda _, error: seen.append(error) or "reason")
    monkeypatch.setattr(sweep, "kernel_kills", lambda: 3)
    display = Display(None, Storage(tmp_path))
    low = "1 worker(s) were killed due to the node running low on memory"
    for failure, error, kills in (
        (low, None, 3),
        ("died", None, 3),
        ("died", None, 4),
        ("died", None, 4),
        ("x", ValueError("x"), 5),
    ):
        with (tmp_path / "error.txt").open("a") as file:  # as Tune writes it
            file.write(f"Failure # 1 (occurred at 2026-11-26_05-26-49)\n{failure}\n")
        monkeypatch.setattr(sweep, "_python_error", lambda _, error=error: error)
        monkeypatch.setattr(sweep, "kernel_kills", lambda kills=kills: kills)
        display._reason(SimpleNamespace(config={}, error_file=str(tmp_path / "error.txt")))
    assert [str(error) for error in seen] == ["Ray", "None", "the kernel", "None", "x"]


def test_few_trials_take_all_gpus(make_queue):
    """By memory alone these four would sit on one of eight GPUs."""
    queue = make_queue({"GPU": 8.0, "CPU": 64.0}, needs=dict.fromkeys("abcd", GIGABYTE), seeds=1)
    assert len(take(queue)) == 4
    assert all(taken["gpu"] == 1.0 for taken in queue._live.values())


class TuneTrial(SimpleNamespace):
    """What Tune's callbacks get."""

    def set_config(self, config):
        self.config = config

    def update_resources(self, request):
        self.request = request.required_resources


GPU_RAN_OUT = "StageMemoryError: stage 2: takes 9 bytes by prediction; CUDA out of memory. Tried to allocate 2.00 GiB"
HOST_RAN_OUT = KilledForMemoryError("Ray").explain(None)


def ran_out(queue, name, error, monkeypatch):
    """The trial fails so and starts again. Returns Tune's trial."""
    trial, folder = queue.state.under_way[name], queue.state.folder.path
    make_trial(folder, name, trial.variant, trial.config, status="out_of_memory", evaluation_seeds=())
    write_rows(folder, "trials", name, [row | {"error": error} for row in read_rows(folder, "trials", name)])
    spec = queue.sweep.describe(trial, queue._live[name]["gpu"])
    again = TuneTrial(config={"trial": spec}, request={"GPU": spec["gpus"]})
    monkeypatch.setattr(queue.display, "_reason", lambda _: error)
    queue.display.on_trial_recover(0, [], again)
    return again


@pytest.mark.parametrize(("error", "shares"), [(GPU_RAN_OUT, (0.5, 1.0, 1.0)), (HOST_RAN_OUT, (0.25, 0.25))])
def test_a_trial_whose_gpu_ran_out_of_memory_starts_again_with_twice_its_share(make_queue, monkeypatch, error, shares):
    """Not so one that the machine's memory was too small for."""
    queue = make_queue({"GPU": 1.0, "CPU": 16.0}, needs={"a": 2 * GIGABYTE}, seeds=8)
    take(queue)
    for share in shares:
        trial = ran_out(queue, "a-seed0", error, monkeypatch)
        assert trial.config["trial"]["gpus"] == queue._live["a-seed0"]["gpu"] == trial.request["GPU"] == share


@pytest.mark.parametrize(("error", "share"), [(GPU_RAN_OUT, 0.5), (HOST_RAN_OUT, 0.25)])
def test_a_study_that_is_continued_gives_it_a_larger_share_too(make_queue, monkeypatch, error, share):
    first = make_queue({"GPU": 1.0, "CPU": 16.0}, needs={"a": 2 * GIGABYTE})
    take(first)
    assert first._live["a-seed0"]["gpu"] == 0.25
    ran_out(first, "a-seed0", error, monkeypatch)
    again = make_queue({"GPU": 1.0, "CPU": 16.0}, needs={"a": 2 * GIGABYTE})
    take(again)
    assert again._live["a-seed0"]["gpu"] == share
