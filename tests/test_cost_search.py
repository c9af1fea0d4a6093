"""The costs of training a search network: bytes saved for backward, operators, and a stage's memory before it runs."""

import random

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from pdarts_tune.config import SearchConfig
from pdarts_tune.cost import operator_count, predict_stage_bytes, saved_bytes
from pdarts_tune.space import EDGES, PRIMITIVES, SearchSpace
from pdarts_tune.stages import PDARTS_CIFAR10, Stage
from pdarts_tune.supernet import Supernet


def pruned(operations: int, seed: int = 0) -> SearchSpace:
    rng = random.Random(seed)

    def cell():
        return tuple(tuple(sorted(rng.sample(PRIMITIVES, operations), key=PRIMITIVES.index)) for _ in EDGES)

    return SearchSpace(cell(), cell())


def test_saved_bytes_counts_each_storage_once_and_no_parameters():
    weight = torch.nn.Parameter(torch.randn(4, 4))
    x = torch.randn(8, 4)
    assert saved_bytes(lambda: x @ weight.t()) == x.nbytes
    assert saved_bytes(lambda: (x @ weight) + (x.view(8, 4) @ weight)) == x.nbytes
    assert saved_bytes(lambda: (x @ weight).exp().sum()) == 2 * x.nbytes


def test_operators_that_launch_work_are_counted():
    x = torch.randn(4, 4, requires_grad=True)
    assert operator_count(lambda: x.detach().view(2, 8).t()) == 0
    assert operator_count(lambda: torch.empty(3)) == 0
    assert operator_count(lambda: (x * 2).sum()) == 2
    assert operator_count(lambda: x.detach().add_(1)) == 1


def measured_bytes(config, stage, space, recompute, size=16):
    network = Supernet(space, stage.cells, config.channels, 10, recompute=recompute)
    network.set_skip_dropout(stage.skip_dropout)
    images, labels = torch.randn(config.batch_size, 3, size, size), torch.randint(10, (config.batch_size,))
    weights = torch.optim.SGD(network.weight_parameters(), 0.025, momentum=0.9)
    alphas = torch.optim.Adam(network.arch_parameters(), 6e-4)
    saved = saved_bytes(lambda: F.cross_entropy(network(images), labels))
    F.cross_entropy(network(images), labels).backward()
    weights.step()
    alphas.step()
    state = sum(
        value.nbytes
        for optimizer in (weights, alphas)
        for values in optimizer.state.values()
        for value in values.values()
        if value is not None
    )
    return saved + state + sum(tensor.nbytes for tensor in network.parameters())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("stage", [Stage(5, 8, 0.0), Stage(8, 5, 0.4), Stage(11, 3, 0.7)])
def test_a_stages_memory_is_predicted_from_its_configuration(stage, recompute):
    config = SearchConfig(channels=4, batch_size=16)
    space = pruned(stage.operations)
    predicted = predict_stage_bytes(config, stage, 16, 10, space=space, recompute=recompute)
    assert predicted == pytest.approx(measured_bytes(config, stage, space, recompute), rel=0.1)


def test_pdarts_stages_need_similar_memory_which_is_what_approximation_is_for():
    config = SearchConfig(batch_size=32)
    first, second, third = (predict_stage_bytes(config, stage, 32, 10) for stage in PDARTS_CIFAR10)
    assert 0.5 < second / first < 2
    assert 0.5 < third / first < 2


def test_the_fast_evaluation_saves_a_third_of_the_bytes():
    images, labels = torch.randn(8, 3, 16, 16), torch.randint(10, (8,))
    bytes_ = {}
    for name, options in {"plain": {"evaluation": "plain"}, "fast": {}, "recompute": {"recompute": True}}.items():
        network = Supernet(SearchSpace.full(), 5, 8, 10, **options)
        bytes_[name] = saved_bytes(lambda network=network: F.cross_entropy(network(images), labels))
    assert bytes_["fast"] <= 0.35 * bytes_["plain"]
    assert bytes_["recompute"] <= 0.12 * bytes_["plain"]
