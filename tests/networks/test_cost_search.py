"""The costs of training a search network: bytes saved for backward, operators, and a stage's memory before it runs."""

import random
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from pdarts_tune.config.execution import Execution
from pdarts_tune.config.methods import FirstOrder, PartialChannels, Snas
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.networks.build import build_network
from pdarts_tune.networks.cost import operator_count, predict_stage_bytes, saved_bytes
from pdarts_tune.networks.supernet import Supernet
from pdarts_tune.pdarts.progressive_depth import PDARTS_CIFAR10, Stage
from pdarts_tune.pdarts.space import EDGES, PRIMITIVES, SearchSpace
from pdarts_tune.search.steps import build_steps


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


def measured_bytes(config, stage, space, size):
    """What real steps of weights and of alphas save, with the tensors that are there for good."""
    torch.manual_seed(0)
    network = build_network(config, space, stage.cells, 10, 3, seed=0)
    network.dropout_generator = generator = torch.Generator().manual_seed(0)
    network.set_skip_dropout(stage.skip_dropout)
    weights = torch.optim.SGD(network.weight_parameters(), 0.025, momentum=0.9)
    alphas = torch.optim.Adam(network.arch_parameters(), 6e-4)
    steps = build_steps(config, stage, network, (weights, alphas), size, generator)
    batch = torch.randn(config.batch_size, 3, size, size), torch.randint(10, (config.batch_size,))
    saved = saved_bytes(lambda: steps.train_weights(batch, True))
    if steps.trains_alphas_apart:
        saved = max(saved, saved_bytes(lambda: steps.train_alphas(batch, batch)))
    state = sum(
        value.nbytes
        for optimizer in (weights, alphas)
        for values in optimizer.state.values()
        for value in values.values()
        if value is not None
    )
    return saved + state + sum(tensor.nbytes for tensor in network.parameters())


SMALL = SearchConfig(channels=4, batch_size=16)
PLAIN = Execution(cell_evaluation="plain")
FIRST, SECOND, THIRD = Stage(3, 8, 0.0), Stage(4, 5, 0.4), Stage(5, 3, 0.7)
CASES = {
    "stage 1": (SMALL, FIRST),
    "stage 2": (SMALL, SECOND),
    "stage 3": (SMALL, THIRD),
    "stage 1, recompute": (replace(SMALL, execution=Execution(recompute=True)), FIRST),
    "stage 3, recompute": (replace(SMALL, execution=Execution(recompute=True)), THIRD),
    "stage 3, plain": (replace(SMALL, execution=PLAIN), THIRD),
    "stage 3, bf16": (replace(SMALL, execution=replace(PLAIN, precision="bf16")), THIRD),
    "stage 3, PC-DARTS": (replace(SMALL, method=PartialChannels(2)), THIRD),
    "stage 3, SNAS": (replace(SMALL, method=Snas()), THIRD),
}


@pytest.mark.parametrize("case", CASES)
def test_a_stages_memory_is_predicted_from_its_configuration(case):
    config, stage = CASES[case]
    space = pruned(stage.operations)
    predicted = predict_stage_bytes(config, stage, 16, 10, space=space)
    assert predicted == pytest.approx(measured_bytes(config, stage, space, 16), rel=0.1)


@pytest.mark.slow  # real steps of the paper's networks
@pytest.mark.parametrize("method", [FirstOrder(), PartialChannels(4)])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_memory_of_the_papers_stages_is_predicted(number, recompute, method):
    if recompute and isinstance(method, PartialChannels):
        pytest.skip("PC-DARTS has no fast cells")
    config = SearchConfig(batch_size=4, method=method, execution=Execution(recompute=recompute))
    stage, space = PDARTS_CIFAR10[number], pruned(PDARTS_CIFAR10[number].operations)
    predicted = predict_stage_bytes(config, stage, 32, 10, space=space)
    assert predicted == pytest.approx(measured_bytes(config, stage, space, 32), rel=0.1)


def test_bf16_halves_most_of_what_is_saved():
    plain, mixed = (
        predict_stage_bytes(replace(SMALL, execution=e), THIRD, 16, 10) for e in (PLAIN, replace(PLAIN, precision="bf16"))
    )
    assert 0.4 < mixed / plain < 0.75


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
