"""Two devices train the network that one device trains, and a killed process costs at most its epoch."""

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pdarts_tune.config.evaluation import EvalConfig
from pdarts_tune.config.serialize import ConfigError, to_dict
from pdarts_tune.evaluation.job import EvalJob, run_eval_job
from pdarts_tune.pdarts.published import PUBLISHED
from pdarts_tune.results.tables import read_rows

CPU = torch.device("cpu")
CONFIG = EvalConfig(
    recipe="tiny",
    data="digits",
    train_images=90,  # of which 72 train, in batches of 20 and one of 12
    test_images=31,
    validation_fraction=0.2,
    cells=3,
    channels=4,
    epochs=2,
    batch_size=20,
    cutout=2,
)

# Ray opens sockets and files that its processes share with others and that Python finds open when they end.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]


def job(folder, config, trial_id="a"):
    return EvalJob(trial_id, str(folder), str(PUBLISHED["PDARTS_C10"].genotype), to_dict(config), keep_weights=True)


def result(finished):
    (row,) = read_rows(Path(finished.folder), "evaluations", finished.trial_id)
    return row, torch.load(Path(finished.folder) / finished.weights, weights_only=True)["state_dict"]


@pytest.mark.slow
def test_two_processes_train_the_network_that_one_trains(tmp_path):
    from pdarts_tune.evaluation.distributed import train_on_devices

    one, two = job(tmp_path / "one", CONFIG), job(tmp_path / "two", CONFIG)
    run_eval_job(one, CPU, print)
    train_on_devices(two, 2)
    (row, weights), (other, others) = result(one), result(two)
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-3, atol=1e-5)
    for column in ("loss", "train_accuracies", "validation_accuracies", "correct"):
        assert other[column] == pytest.approx(row[column], rel=1e-4)
    assert other["device"].startswith("2 x ")


@pytest.mark.slow
def test_a_killed_process_costs_at_most_its_epoch(tmp_path):
    from pdarts_tune.evaluation.distributed import train_on_devices

    config = replace(CONFIG, epochs=12)
    undisturbed, killed = job(tmp_path / "whole", config), job(tmp_path / "killed", config)
    train_on_devices(undisturbed, 2)

    def kill():
        while not (Path(killed.folder) / killed.checkpoint).exists():
            time.sleep(0.05)
        os.kill(worker_pids()[0], signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    train_on_devices(killed, 2)
    thread.join()
    (_, weights), (row, others) = result(undisturbed), result(killed)
    assert (row["status"], row["attempts"]) == ("completed", 2)
    epochs = [int(line.split()[1].split("/")[0]) for line in killed.log.read_text().splitlines()]
    assert sorted(set(epochs)) == list(range(1, 13))
    assert len(epochs) <= 13, "more than the epoch that was running was trained again"
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def worker_pids():
    """The processes of Ray Train below this process, by rank."""
    import ray  # noqa: F401  (psutil comes with it)

    import psutil  # isort: skip

    children = psutil.Process().children(recursive=True)
    return [child.pid for child in children if "RayTrainWorker" in " ".join(child.cmdline())]


@pytest.mark.slow
def test_the_error_of_any_process_is_the_reason_and_not_that_its_fellows_lost_it():
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError

    from pdarts_tune.evaluation.distributed import _reason

    closed = UserExceptionWithTraceback(RuntimeError(), "Traceback (most recent call last):\nRuntimeError: connection closed")
    bad = "Traceback (most recent call last):\npdarts_tune.config.serialize.ConfigError: a/004.png: not an image"
    bad_image = UserExceptionWithTraceback(ConfigError("a/004.png: not an image"), bad)
    assert _reason(WorkerGroupError("two", {0: closed, 1: bad_image})) == "ConfigError: a/004.png: not an image"
    assert _reason(WorkerGroupError("one", {0: closed})) == "RuntimeError: connection closed"
    lost = WorkerHealthCheckFailedError("gone", failure=RuntimeError("actor died"))
    assert _reason(WorkerGroupError("lost", {1: lost})).startswith("a process of the training died")


@pytest.mark.slow
def test_more_devices_than_there_are_is_refused(tmp_path):
    from pdarts_tune.evaluation.distributed import train_on_devices

    with pytest.raises(ConfigError, match="devices: 4096 asked for, the cluster has"):
        train_on_devices(job(tmp_path, CONFIG), 4096)
