import pytest
import torch
from scipy.stats import chisquare

from pdarts_tune.config.methods import Snas
from pdarts_tune.networks.supernet import Supernet
from pdarts_tune.pdarts.progressive_depth import Stage
from pdarts_tune.pdarts.space import SearchSpace
from pdarts_tune.search.resources import count_resources, expected_cost, relative_costs
from pdarts_tune.search.steps import sample_choice, sample_mixing, temperature


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


def test_the_mean_cost_of_sampled_choices_approaches_the_expected_one():
    torch.manual_seed(0)
    network = Supernet(SearchSpace.full(), 4, 4, 10, 1, alpha_init_scale=1.0)
    costs = relative_costs([count_resources(network, 8)["macs"]], network)
    generator = torch.Generator().manual_seed(0)
    alphas = network.alphas_normal.detach().expand(4000, -1, -1).reshape(-1, 8)
    drawn = sample_choice(alphas, torch.ones_like(alphas, dtype=torch.bool), 1.0, generator).argmax(dim=1).view(4000, 14)
    mean = costs[0][torch.arange(14), drawn].sum(dim=1).mean().item()
    assert mean == pytest.approx(expected_cost([network.mixing()[0]], [costs[0]]).item(), rel=0.01)
