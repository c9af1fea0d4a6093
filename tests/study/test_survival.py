"""What a study must survive, on the study of survival_study.py. What has to hold each time is in `assert_whole`.

The kill of a driver with all its processes is in test_study.py.
"""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pandas as pd
import pytest
import torch

from pdarts_tune.results.storage import Storage
from pdarts_tune.results.tables import read_table
from pdarts_tune.search.loop import Search
from pdarts_tune.search.records import alpha_rows
from pdarts_tune.study import cli, sweep
from pdarts_tune.study.plan import Arguments, make_plan
from pdarts_tune.study.progress import Progress
from survival_study import STUDY

TESTS = Path(__file__).parents[1]
EPOCHS = 3
KEYS = ["stage", "epoch", "cell", "edge", "operation"]


@pytest.fixture(scope="session")
def undisturbed():
    """The alphas of the study's search by variant and seed, from a process that nothing happens to."""
    known = {}

    def search(variant, seed):
        if (variant, seed) not in known:
            plan = make_plan(STUDY, Arguments("smoke", variants=variant, seeds=seed + 1))
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            records = Search(plan.searches[-1].config, torch.device("cpu")).epochs()
            known[variant, seed] = pd.DataFrame([row for record in records for row in alpha_rows(record)])
            torch.set_num_threads(threads)
        return known[variant, seed]

    return search


@contextmanager
def running(results, *arguments, env=None):
    """The study's command in a process group of its own, as a terminal starts it, and the file that it prints to."""
    command = [sys.executable, "tests/survival_study.py", "--preset", "smoke", "--results", str(results)]
    if "--variants" not in arguments:
        command += ["--variants", "steady"]
    output = Path(env["OUTPUT"]) if env else Path(results) / "output.txt"
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a+") as file:
        driver = subprocess.Popen(
            [*command, *arguments],
            cwd=TESTS.parent,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(TESTS.parent), **(env or {})},
        )
        try:
            yield driver, output
        finally:
            if driver.poll() is None:
                os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()


def finish(results, *arguments, code=0, **options):
    """The same command to its end."""
    with running(results, *arguments, **options) as (driver, output):
        assert driver.wait(timeout=400) == code, output.read_text()
        said = output.read_text()
    assert "\nTraceback" not in said  # but Ray shows what its workers were interrupted in
    return said


def wait_until(holds, driver, output):
    deadline = time.monotonic() + 240
    while not holds():
        assert driver.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.05)


def epoch_written(results, trial="steady-seed0"):
    return lambda: Storage(results).below("survival").stamp(f"epochs/{trial}.parquet") != ""


def assert_whole(results, undisturbed, searches=("steady-seed0",), before=None):
    """Every trial and epoch once, alphas as of an undisturbed study; what was on disk `before` was not done again."""
    trials, epochs, alphas = (read_table(results, table) for table in ("trials", "epochs", "alphas"))
    completed = trials[trials.status == "completed"]
    assert sorted(completed.trial_id) == sorted(searches)
    assert not epochs.duplicated(["trial_id", "stage", "epoch"]).any()
    evaluations = read_table(results, "evaluations")
    assert set(evaluations.status) == {"completed"}
    assert evaluations.trial_id.is_unique
    for trial_id in searches:
        variant, _, seed = trial_id.partition("-seed")
        assert len(epochs[epochs.trial_id == trial_id]) == EPOCHS
        both = undisturbed(variant, int(seed)).merge(alphas[alphas.trial_id == trial_id], on=KEYS, suffixes=("_expected", ""))
        assert len(both) == len(undisturbed(variant, int(seed))) == (alphas.trial_id == trial_id).sum()
        assert (both.alpha == both.alpha_expected).all()
    if before is not None:
        kept = before.merge(epochs, on=["trial_id", "stage", "epoch", "finished"])
        assert len(kept) == len(before), "an epoch that was on disk was run again"


def assert_mirrored(database, trials=("steady-seed0",)):
    """One run for each trial, none of them still running."""
    with closing(sqlite3.connect(database)) as connection:
        runs = connection.execute("select name, status from runs where lifecycle_stage = 'active'").fetchall()
    assert Counter(name for name, _ in runs) == dict.fromkeys(trials, 1)
    assert all(status in ("FINISHED", "FAILED") for _, status in runs)


def descendants(pid):
    """The ids and command lines of all processes below one."""
    parents, lines = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            lines[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ").strip()
        except OSError:
            continue  # gone since
    found, level = {}, {pid}
    while level:
        level = {child for child, parent in parents.items() if parent in level}
        found |= {child: lines.get(child, "") for child in level}
    return found


def trial_processes(driver):
    return [pid for pid, line in descendants(driver.pid).items() if line.startswith("ray::ImplicitFunc")]


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory):
    """A study of a trial whose process is killed once, and of one whose loss is never finite."""
    results = tmp_path_factory.mktemp("results")
    arguments = "--variants", "steady,nan", "--max-failures", "2"  # the second trial's process is killed too
    with running(results, *arguments) as (driver, output):
        wait_until(epoch_written(results), driver, output)
        before = read_table(results, "epochs")
        processes = trial_processes(driver)
        assert processes
        for pid in processes:
            os.kill(pid, signal.SIGKILL)
        assert driver.wait(timeout=400) == 1, output.read_text()
        said = output.read_text()
    return results, before, said


@pytest.mark.slow  # a study with Ray
@pytest.mark.timeout(600)
def test_a_trial_whose_process_is_killed_goes_on_from_its_last_epoch(disturbed, undisturbed):
    results, before, said = disturbed
    assert len(before) >= 1
    assert "started again after the process of the trial died" in said
    assert_whole(results, undisturbed, before=before)
    trials = read_table(results, "trials").set_index("trial_id")
    assert trials.attempts["steady-seed0"] == 2
    assert_mirrored(results / "mlflow.db", ("steady-seed0", "nan-seed0"))


@pytest.mark.slow  # uses the study above
@pytest.mark.timeout(600)
def test_a_trial_whose_loss_is_not_finite_is_tried_again_named_and_does_not_stop_the_study(disturbed):
    results, _, said = disturbed
    failed = read_table(results, "trials").set_index("trial_id").loc["nan-seed0"]
    assert failed.status == "failed"
    assert failed.error.startswith("FloatingPointError: stage 1, epoch 0: training loss is nan")
    assert "Traceback" in failed.error
    assert failed.attempts == 3
    assert "nan-seed0: failed: FloatingPointError: stage 1, epoch 0" in said
    assert "failed   1 (the reasons are in the table trials; the same command tries again)" in said
    assert "disk     " in said


@pytest.mark.slow  # a study with Ray
@pytest.mark.timeout(600)
def test_a_search_whose_processes_die_before_their_first_row_has_one_and_the_last_line_names_its_table(tmp_path):
    script = (
        "import os, signal\nfrom pdarts_tune import main\nfrom pdarts_tune.study import sweep\nfrom survival_study import STUDY\n"
        "def die(settings):\n    os.kill(os.getpid(), signal.SIGKILL)\nsweep.run_trial = die\nmain(STUDY)\n"
    )
    arguments = ["--preset", "smoke", "--variants", "steady", "--max-failures", "1", "--results", str(tmp_path)]
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    (row,) = read_table(tmp_path, "trials").to_dict("records")
    assert (row["status"], row["error"], row["attempts"]) == ("failed", sweep.DIED, 2)
    assert "failed   1 (the reasons are in the table trials; the same command tries again)" in done.stdout
    assert not (tmp_path / "survival" / "evaluations").exists()


@pytest.mark.slow  # starts a study twice
@pytest.mark.timeout(600)
def test_ctrl_c_twice_stops_at_once_and_the_same_command_continues(tmp_path, undisturbed):
    with running(tmp_path) as (driver, output):
        wait_until(epoch_written(tmp_path), driver, output)
        before = read_table(tmp_path, "epochs")
        below = descendants(driver.pid)
        os.killpg(driver.pid, signal.SIGINT)  # a terminal sends it to every process of the study
        wait_until(lambda: "stopping" in output.read_text(), driver, output)
        os.killpg(driver.pid, signal.SIGINT)
        started = time.monotonic()
        assert driver.wait(timeout=20) == 130
        assert time.monotonic() - started < 10
        said = output.read_text()
    assert "the same command continues the study" in said
    assert "\nTraceback" not in said  # but Ray shows what its workers were interrupted in
    finish(tmp_path)
    assert_whole(tmp_path, undisturbed, before=before)
    assert_mirrored(tmp_path / "mlflow.db")
    deadline = time.monotonic() + 60
    while (left := {pid: line for pid, line in below.items() if Path(f"/proc/{pid}").exists()}) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not left, "the first study's processes have outlived it"


def kill_driver_alone(results):
    with running(results) as (driver, output):
        wait_until(epoch_written(results), driver, output)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()


@pytest.mark.slow  # starts a study twice
@pytest.mark.timeout(600)
def test_a_driver_that_is_killed_alone_leaves_no_trial_behind_that_disturbs_the_next(tmp_path, undisturbed):
    kill_driver_alone(tmp_path)
    before = read_table(tmp_path, "epochs")
    finish(tmp_path)
    assert_whole(tmp_path, undisturbed, before=before)
    assert_mirrored(tmp_path / "mlflow.db")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 MB. Needs the right to mount; the same is tested without a mount below."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", disk], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("cannot mount a small file system here")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(path):
    """Writes until the disk is full."""
    with suppress(OSError), path.open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(2**16))


@pytest.mark.slow  # starts a study twice
@pytest.mark.timeout(600)
def test_a_full_disk_ends_a_study_in_one_line_and_it_goes_on_when_there_is_room(small_disk, undisturbed, tmp_path):
    env = {"OUTPUT": str(tmp_path / "output.txt")}
    with running(small_disk, env=env) as (driver, output):
        wait_until(epoch_written(small_disk), driver, output)
        before = read_table(small_disk, "epochs")
        fill(small_disk / "filler")
        code = driver.wait(timeout=200)
        said = output.read_text()
    assert code == 1, said
    assert "error: results cannot be written: No space left on device" in said
    assert "the same command continues the study" in said
    assert "\nTraceback" not in said  # but Ray shows what its workers were interrupted in
    (small_disk / "filler").unlink()
    finish(small_disk, env=env)
    assert_whole(small_disk, undisturbed, before=before)
    assert_mirrored(small_disk / "mlflow.db")


def test_a_folder_that_cannot_be_written_is_refused_before_anything_starts(tmp_path, capsys, monkeypatch):
    from pdarts_tune.study.cli import main

    def refuse(path, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(SystemExit) as stopped:
        main(STUDY, ["--preset", "smoke", "--results", str(tmp_path / "results")])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith("survival cannot be written (Permission denied)\n")


@pytest.mark.slow  # a study with Ray, whose memory monitor takes every trial for too large
def test_a_trial_that_rays_memory_monitor_kills_is_out_of_memory_and_says_what_to_change(tmp_path):
    env = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "250", "OUTPUT": str(tmp_path / "output.txt")}
    output = finish(tmp_path, "--max-failures", "1", code=1, env=env)
    reason = "out of memory: Ray killed the process of the trial, the machine had no memory left"
    assert f"steady-seed0: started again after {reason}" in output
    assert f"steady-seed0: failed: {reason}" in output
    (row,) = read_table(tmp_path, "trials").to_dict("records")
    assert (row["status"], row["attempts"]) == ("out_of_memory", 2)
    assert "run fewer trials at a time (--max-trials 1), give --recompute, or take a smaller batch_size" in row["error"]
    assert_mirrored(tmp_path / "mlflow.db")


def test_a_failed_trial_stops_the_study_if_nothing_can_be_written_any_more(tmp_path, monkeypatch):
    """The driver's part of a full disk, without a disk."""

    class Trial:
        config = {"trial": {"trial_id": "t", "genotype": ""}}  # noqa: RUF012
        pickled_error_file = error_file = None

    monkeypatch.setattr(sweep, "record_failure", lambda *_: "OSError: no space\ntraceback")
    with Progress({"searches": 1}, {"searches": 0}, 1) as progress:
        display = sweep.Display(progress, Storage(tmp_path))
        display.on_trial_error(0, [], Trial())
        assert (progress.failed, display.error) == (1, None)
        assert list(tmp_path.iterdir()) == []

        def fill(*arguments):
            raise OSError(28, "No space left on device", "somewhere")

        monkeypatch.setattr(Storage, "write", fill)
        with pytest.raises(OSError, match="No space left"):
            display.on_trial_error(0, [], Trial())
    assert cli.explain_storage_error(display.error) == (
        "results cannot be written: No space left on device (somewhere); when that is solved, the same command continues the study"
    )
    assert cli.explain_storage_error(FileNotFoundError(2, "No such file", "x")) is None


def test_a_cluster_without_nodes_ends_the_study_in_place_of_waiting_for_ever(monkeypatch, tmp_path):
    alive = [True]
    monkeypatch.setattr(sweep, "LOOK_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(sweep.ray, "nodes", lambda: [{"Alive": alive[0]}])
    display = sweep.Display(Progress({"searches": 1}, {"searches": 0}, 1), Storage(tmp_path))
    display.on_step_begin(1, [])
    alive[0] = False
    with pytest.raises(cli.ClusterLostError, match="no node of the Ray cluster is alive any more"):
        display.on_step_begin(2, [])
    assert isinstance(display.error, cli.ClusterLostError)


@pytest.mark.slow  # three Ray nodes
@pytest.mark.timeout(600)
def test_a_node_that_is_lost_costs_the_epoch_under_way(tmp_path, undisturbed, monkeypatch):
    from ray.cluster_utils import Cluster

    # Ray refuses to declare more GPUs than this variable names, and these nodes' GPUs are only declared.
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PDARTS_TUNE_PRETEND_GPUS", str(80 * 10**9))
    searches = ["steady-seed0", "steady-seed1"]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=1, num_gpus=1) for _ in range(2)]
        arguments = "--seeds", "2", "--address", cluster.address
        with running(tmp_path, *arguments) as (driver, output):
            wait_until(lambda: all(epoch_written(tmp_path, trial)() for trial in searches), driver, output)
            before = read_table(tmp_path, "epochs")
            cluster.remove_node(nodes[1], allow_graceful=False)
            assert driver.wait(timeout=400) == 0, output.read_text()
            said = output.read_text()
    finally:
        cluster.shutdown()
    assert "started again after" in said
    assert_whole(tmp_path, undisturbed, searches, before)
    assert sorted(read_table(tmp_path, "trials").attempts) == [1, 2]
    assert_mirrored(tmp_path / "mlflow.db", searches)


def test_tune_shows_no_trials_beside_our_display(tmp_path, capsys):
    """Its own display says a line of a trial that ends without a result, such as one that was continued at its very end."""
    from ray.tune.utils.callback import _create_default_callbacks

    class Trial:
        config = {"trial": {"trial_id": "t", "genotype": ""}}  # noqa: RUF012
        last_result = {}  # noqa: RUF012

    with Progress({"searches": 1}, {"searches": 0}, 1) as progress:
        for callback in _create_default_callbacks([sweep.Display(progress, Storage(tmp_path))]):
            callback.on_trial_complete(0, [], Trial())
    said = capsys.readouterr()
    assert "Last result" not in said.out + said.err
    assert "searches 1/1 t: done" in said.out + said.err
