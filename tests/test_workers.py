"""Two processes train, to the rounding of float64, the network that one process trains; and both hold the same network."""

import os
import socket
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from pdarts_tune import training
from pdarts_tune.config import EvalConfig
from pdarts_tune.genotype import PUBLISHED, CellGenotype, Genotype
from pdarts_tune.workers import Workers

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


@pytest.mark.parametrize("total", [1, 7, 20])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_shares_are_the_batch_in_parts_of_nearly_equal_size(total, count):
    shares = [list(range(total))[Workers(rank, count).share(total)] for rank in range(count)]
    assert [image for share in shares for image in share] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


class DoubleNetwork(training.EvalNetwork):
    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.double()


def train(genotype, config, workers):
    """Trains in float64, where rounding is too small to grow into a difference."""
    training.EvalNetwork = DoubleNetwork
    evaluation = training.Evaluation(genotype, config, CPU, workers)
    for batches in (evaluation.batches, evaluation.validation_batches):
        batches._scale = batches._scale.double()
    records = [replace(record, seconds=0.0) for record in evaluation.epochs()]
    return evaluation.network.state_dict(), records


def work(rank, port, genotype, config, folder):
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.save(train(genotype, config, Workers(rank, 2)), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def train_in_two(genotype, config, folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(work, (port, genotype, config, folder), nprocs=2)
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])
    assert first[1] == second[1]
    return first


@pytest.mark.parametrize("genotype", [PDARTS, DEAD_ENDS], ids=["PDARTS", "dead ends"])
def test_two_processes_train_the_network_that_one_trains(tmp_path, monkeypatch, genotype):
    monkeypatch.setattr(training, "EvalNetwork", training.EvalNetwork)
    weights, records = train(genotype, CONFIG, Workers())
    others, other_records = train_in_two(genotype, CONFIG, tmp_path)
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-9, atol=1e-11)
    for one, other in zip(records, other_records, strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, rel=1e-6)
        assert (other.train_accuracy, other.validation_accuracy) == (one.train_accuracy, one.validation_accuracy)


def test_statistics_of_each_share_give_another_network_but_the_same_one_in_both_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "EvalNetwork", training.EvalNetwork)
    config = replace(CONFIG, sync_batch_norm=False, epochs=2)
    weights, _ = train(PDARTS, config, Workers())
    others, _ = train_in_two(PDARTS, config, tmp_path)
    assert not torch.allclose(others["classifier.weight"], weights["classifier.weight"], rtol=1e-6)
