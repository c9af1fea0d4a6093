"""Two processes train, to the rounding of float64, the network that one process trains; a killed one costs at most its epoch."""

import os
import signal
import socket
import threading
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from images import write_folders
from pdarts_tune.config.evaluation import EvalConfig
from pdarts_tune.config.serialize import ConfigError, to_dict
from pdarts_tune.data import streaming
from pdarts_tune.data.batches import Batches, Workers
from pdarts_tune.evaluation import training
from pdarts_tune.evaluation.job import EvalJob, run_eval_job
from pdarts_tune.pdarts.genotype import CellGenotype, Genotype
from pdarts_tune.pdarts.published import PUBLISHED
from pdarts_tune.results.tables import read_rows

CPU = torch.device("cpu")
CONFIG = EvalConfig(
    recipe="tiny",
    data="digits",
    train_images=91,  # of which 73 train, in three batches of 20 and one of 13, which two cannot share equally
    test_images=31,
    validation_fraction=0.2,
    cells=3,
    channels=4,
    epochs=3,
    batch_size=20,
    cutout=2,
    drop_path=0.5,
    label_smoothing=0.1,
)
PDARTS = PUBLISHED["PDARTS_C10"].genotype
# Nodes 0 and 1 lead nowhere: their weights never get a gradient.
DEAD_ENDS = Genotype(CellGenotype(PDARTS.normal.edges[:4] + PDARTS.normal.edges[:4], (4, 5)), PDARTS.reduce)
ON_RAY = replace(CONFIG, train_images=90, epochs=2, drop_path=0.3, label_smoothing=0.0)

# Ray opens sockets and files that its processes share with others and that Python finds open when they end.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]


class DoubleNetwork(training.EvalNetwork):
    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.double()


def train(genotype, config, workers):
    """Trains in float64, where rounding is too small to grow into a difference."""
    training.EvalNetwork = DoubleNetwork
    streaming.MAX_WORKERS = 0  # reading processes below these would take longer to start than all of the training
    with warnings.catch_warnings(action="ignore"):
        evaluation = training.Evaluation(genotype, config, CPU, workers)
        test = Batches(evaluation.dataset.test, evaluation.dataset, config.batch_size, CPU, augment=False)
        for batches in (evaluation.batches, evaluation.validation_batches, test):
            batches._scale = batches._scale.double()
        records = [replace(record, seconds=0.0) for record in evaluation.epochs()]
        result = training.evaluate(evaluation.network, test, config, "test", workers)
    return evaluation.network.state_dict(), records, result.correct, evaluation.dataset.left_out


def work(rank, port, trainings, folder):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.save({name: train(*training, Workers(rank, 2)) for name, training in trainings.items()}, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def train_in_two(trainings, folder):
    """Of genotypes with their configurations, by name. Processes take longer to start than to train."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(work, (port, trainings, folder), nprocs=2)
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    for name, (weights, *figures) in first.items():
        others, *other_figures = second[name]
        assert all(torch.equal(tensor, others[key]) for key, tensor in weights.items())
        assert figures == other_figures
    return first


STREAMS = {"all usable": 0, "nine bad": 9}


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    """Genotypes and configurations by name."""
    found = {"whole": (PDARTS, CONFIG), "shares": (PDARTS, replace(CONFIG, sync_batch_norm=False, epochs=2))}
    for name, bad in STREAMS.items():
        folder = tmp_path_factory.mktemp("streams")
        data = write_folders(folder, train=30, test=11, size=12)
        for file in sorted((folder / "train").rglob("*.png"))[:bad]:
            file.write_bytes(b"not an image")
        config = replace(CONFIG, data=data, train_images=None, test_images=None, image_size=10, skip_bad_images=True)
        found[name] = PDARTS, replace(config, batch_size=4, epochs=1)
    return found


@pytest.fixture(scope="module")
def in_two(trainings, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PDARTS_TUNE_DATA", str(tmp_path_factory.mktemp("data")))
        return train_in_two(trainings, tmp_path_factory.mktemp("two"))


@pytest.fixture(autouse=True)
def usual_network(monkeypatch):
    monkeypatch.setattr(training, "EvalNetwork", training.EvalNetwork)
    monkeypatch.setattr(streaming, "MAX_WORKERS", streaming.MAX_WORKERS)


def test_two_processes_train_the_network_that_one_trains(trainings, in_two):
    assert_same(train(*trainings["whole"], Workers()), in_two["whole"])


@pytest.mark.slow  # processes of its own
def test_two_processes_train_a_network_with_nodes_that_lead_nowhere(tmp_path):
    assert_same(train(DEAD_ENDS, CONFIG, Workers()), train_in_two({"dead ends": (DEAD_ENDS, CONFIG)}, tmp_path)["dead ends"])


def assert_same(one, two, rtol=1e-9, atol=1e-11):
    (weights, records, *result), (others, other_records, *other_result) = one, two
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=rtol, atol=atol)
    for first, second in zip(records, other_records, strict=True):
        assert second.train_loss == pytest.approx(first.train_loss, rel=1e-6)
        assert (second.train_accuracy, second.validation_accuracy) == (first.train_accuracy, first.validation_accuracy)
    assert other_result == result


@pytest.mark.parametrize("name", STREAMS)
def test_two_processes_read_half_of_a_set_that_streams_and_train_the_network_that_one_trains(name, trainings, in_two):
    one = train(*trainings[name], Workers())
    assert len(one[-1]) == STREAMS[name]
    # Batches of two images, as bad ones leave them, let rounding grow further; another image or mask would change some 1e-2.
    assert_same(one, in_two[name], rtol=1e-5, atol=1e-8)


def test_statistics_of_each_share_give_another_network_but_the_same_one_in_both_processes(trainings, in_two):
    weights, *_ = train(*trainings["shares"], Workers())
    assert not torch.allclose(in_two["shares"][0]["classifier.weight"], weights["classifier.weight"], rtol=1e-6)


def job(folder, config, trial_id="a"):
    return EvalJob(trial_id, str(folder), str(PUBLISHED["PDARTS_C10"].genotype), to_dict(config), keep_weights=True)


def result(finished):
    (row,) = read_rows(Path(finished.folder), "evaluations", finished.trial_id)
    return row, torch.load(Path(finished.folder) / finished.weights, weights_only=True)["state_dict"]


@pytest.mark.slow
def test_ray_train_gives_the_network_that_one_process_trains(tmp_path):
    from pdarts_tune.evaluation.distributed import train_on_devices

    one, two = job(tmp_path / "one", ON_RAY), job(tmp_path / "two", ON_RAY)
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

    config = replace(ON_RAY, epochs=12)
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
        train_on_devices(job(tmp_path, ON_RAY), 4096)
