import itertools
import math

import pytest
import torch
from scipy.stats import chisquare
from torch import nn

from pdarts_tune.config.methods import Snas
from pdarts_tune.networks.operations import OPERATIONS
from pdarts_tune.networks.supernet import Supernet
from pdarts_tune.pdarts.progressive_depth import Stage
from pdarts_tune.pdarts.space import PRIMITIVES, SearchSpace
from pdarts_tune.search.snas import (
    PENALTY_WEIGHTS,
    expected_cost,
    operation_cost,
    relative_costs,
    resource_costs,
    sample_choice,
    sample_mixing,
    temperature,
)


@pytest.mark.parametrize("degree", [0.1, 1.0])
def test_the_largest_choice_is_drawn_with_its_probability(degree):
    """At any temperature the largest entry of a draw is distributed as softmax(alpha): the Gumbel-max property."""
    alphas = torch.tensor([[0.3, -1.0, 0.0, 1.2, -0.4]]).expand(20_000, -1)
    kept = torch.ones_like(alphas, dtype=torch.bool)
    draws = sample_choice(alphas, kept, degree, torch.Generator().manual_seed(0)).argmax(dim=1)
    expected = 20_000 * alphas[0].double().softmax(0)
    assert chisquare(draws.bincount(minlength=5).numpy(), expected.numpy() * (20_000 / expected.sum().item())).pvalue > 0.01


def test_rows_sum_to_one_padding_stays_zero_and_a_low_temperature_chooses():
    alphas = torch.zeros(14, 8)
    kept = torch.ones(14, 8, dtype=torch.bool)
    kept[3, 5:] = False
    warm, cold = (sample_choice(alphas, kept, degree, torch.Generator().manual_seed(1)) for degree in (1.0, 0.01))
    for draw in (warm, cold):
        assert draw.sum(dim=1) == pytest.approx(torch.ones(14), abs=1e-6)
        assert draw[3, 5:].abs().max() == 0
    assert torch.equal(warm.argmax(dim=1), cold.argmax(dim=1))
    assert cold.amax(dim=1).median() > 0.999
    assert warm.amax(dim=1).median() < 0.9


def test_a_sample_gives_the_alphas_a_gradient_and_the_same_seed_the_same_sample():
    torch.manual_seed(0)
    network = Supernet(SearchSpace.full(), 3, 2, 3, 1)
    samples = [sample_mixing(network, 0.5, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*samples, strict=True))
    network(torch.randn(4, 1, 8, 8), samples[0]).sum().backward()
    assert all(alphas.grad.abs().max() > 0 for alphas in network.arch_parameters())


def test_the_temperature_falls_geometrically_once_alphas_train():
    stage = Stage(8, 8, epochs=7, warmup_epochs=2)
    found = [temperature(Snas(1.0, 0.1), stage, epoch) for epoch in range(7)]
    assert found == pytest.approx([1, 1, 1, 10**-0.25, 10**-0.5, 10**-0.75, 0.1])
    assert temperature(Snas(1.0, 0.1), Stage(8, 8, epochs=1, warmup_epochs=0), 0) == 1.0


def count_by_hand(network, size):
    """Parameters, multiply-adds and memory accesses of a network's cells without their preprocessing, from a real image."""
    macs = accesses = 0

    def count(module, inputs, output):
        nonlocal macs, accesses
        accesses += inputs[0].numel() + output.numel() + sum(weight.numel() for weight in module.parameters())
        if isinstance(module, nn.Conv2d):
            macs += output.numel() // module.out_channels * module.weight.numel()

    edges = [edge for cell in network.cells for edge in cell.edges]
    hooks = [
        module.register_forward_hook(count)
        for edge in edges
        for module in edge.modules()
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d | nn.Identity)
    ]
    network.eval()(torch.zeros(1, 1, size, size))
    for hook in hooks:
        hook.remove()
    return sum(parameter.numel() for edge in edges for parameter in edge.parameters()), macs, accesses


def test_the_expected_cost_of_each_resource_is_its_mean_over_all_architectures():
    """Two edges of the normal cell and one of the reduction cell have a choice: all eight architectures as networks of their own,
    counted from an image that passes through them, each with its probability."""
    torch.manual_seed(0)
    choices = {
        ("normal", 0): ("skip_connect", "sep_conv_3x3"),
        ("normal", 13): ("none", "dil_conv_5x5"),
        ("reduce", 1): ("max_pool_3x3", "sep_conv_5x5"),
    }

    def space(chosen):
        return SearchSpace(*(tuple(chosen.get((cell, e), ("none",)) for e in range(14)) for cell in ("normal", "reduce")))

    network = Supernet(space(choices), 4, 4, 10, 1, alpha_init_scale=1.0)
    chances = dict(zip(("normal", "reduce"), network.probs(), strict=True))
    means = [0.0, 0.0, 0.0]
    for picks in itertools.product(*choices.values()):
        single = Supernet(
            space({place: (name,) for place, name in zip(choices, picks, strict=True)}), 4, 4, 10, 1, evaluation="plain"
        )
        chance = math.prod(chances[cell][edge][name] for (cell, edge), name in zip(choices, picks, strict=True))
        means = [mean + chance * count for mean, count in zip(means, count_by_hand(single, 9), strict=True)]
    for (resource, costs), mean in zip(resource_costs(network, 9).items(), means, strict=True):
        assert mean > 0, resource
        assert expected_cost(network.mixing(), costs).item() == pytest.approx(mean, rel=1e-6), resource


def test_a_stronger_penalty_moves_the_alphas_further_towards_cheap_operations():
    """Descending the penalty alone, by each of its three strengths."""
    found = []
    for name in ("mild", "moderate", "aggressive"):
        torch.manual_seed(0)
        network = Supernet(SearchSpace.full(), 4, 4, 10, 1)
        costs = relative_costs(network, 8)
        optimizer = torch.optim.SGD(network.arch_parameters(), 10.0)
        for _ in range(20):
            optimizer.zero_grad()
            (PENALTY_WEIGHTS[name] * expected_cost(network.mixing(), costs)).backward()
            optimizer.step()
        found.append(expected_cost(network.mixing(), costs).item())
    assert found[0] > found[1] > found[2]


def test_the_mean_cost_of_sampled_choices_approaches_the_expected_one():
    torch.manual_seed(0)
    network = Supernet(SearchSpace.full(), 4, 4, 10, 1, alpha_init_scale=1.0)
    costs = relative_costs(network, 8)
    generator = torch.Generator().manual_seed(0)
    alphas = network.alphas_normal.detach().expand(4000, -1, -1).reshape(-1, 8)
    drawn = sample_choice(alphas, torch.ones_like(alphas, dtype=torch.bool), 1.0, generator).argmax(dim=1).view(4000, 14)
    mean = costs[0][torch.arange(14), drawn].sum(dim=1).mean().item()
    assert mean == pytest.approx(expected_cost([network.mixing()[0]], [costs[0]]).item(), rel=0.01)


def test_costs_by_hand():
    # 4 channels, 6 x 6 pixels: two depthwise 3x3 (36 weights) and two pointwise (16) convolutions.
    cost = operation_cost("sep_conv_3x3", 4, 1, 6)
    assert cost.params == 2 * (36 + 16)
    assert cost.macs == 36 * 2 * (36 + 16)
    assert cost.accesses == 4 * 2 * 144 + cost.params
    skip, none = operation_cost("skip_connect", 4, 1, 6), operation_cost("none", 4, 1, 6)
    assert (skip.params, skip.macs, skip.accesses) == (0, 0, 2 * 144)
    assert (none.params, none.macs, none.accesses) == (0, 0, 0)
    assert operation_cost("max_pool_3x3", 4, 2, 6).accesses == 144 + 36
    for name in PRIMITIVES:
        assert operation_cost(name, 4, 2, 6).params == sum(p.numel() for p in OPERATIONS[name](4, 2, False).parameters())


def test_the_costliest_network_costs_one_and_nothing_costs_nothing():
    network = Supernet(SearchSpace.full(), 5, 4, 10, 1)
    costs = relative_costs(network, 8)
    assert sum(cost.amax(dim=1).sum().item() for cost in costs) == pytest.approx(1.0, abs=1e-6)
    assert all(cost[:, 0].abs().max() == 0 for cost in costs)  # none
    order = [PRIMITIVES.index(name) for name in ("skip_connect", "dil_conv_3x3", "sep_conv_3x3", "sep_conv_5x5")]
    assert (costs[0][:, order].diff(dim=1) > 0).all()


def test_with_the_imagenet_stem_costs_are_those_of_an_eighth_of_the_side():
    eighth = relative_costs(Supernet(SearchSpace.full(), 4, 4, 10, 3), 8)
    for cost, own in zip(eighth, relative_costs(Supernet(SearchSpace.full(), 4, 4, 10, 3, stem="imagenet"), 64), strict=True):
        assert torch.equal(cost, own)
