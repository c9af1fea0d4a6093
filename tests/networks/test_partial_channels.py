from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from pdarts_tune.config.methods import FirstOrder, PartialChannels
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.networks.partial_channels import PartialSupernet, normalise_edges, shuffle
from pdarts_tune.networks.supernet import Supernet
from pdarts_tune.pdarts.progressive_depth import Stage
from pdarts_tune.pdarts.published import PUBLISHED
from pdarts_tune.pdarts.space import EDGES, SearchSpace
from pdarts_tune.search.loop import Search

IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def build(share, edges, seed=0, channels=4):
    torch.manual_seed(seed)
    return PartialSupernet(SearchSpace.full(), 4, channels, 3, 1, share=share, edge_normalization=edges)


def test_with_k_1_and_edge_weights_1_it_is_darts():
    """Logits and statistics to the bit, gradients up to the order of summation; with dropout on skip-connects too."""
    partial = build(1, edges=False)
    darts = Supernet(SearchSpace.full(), 4, 4, 3, 1, evaluation="plain")
    darts.load_state_dict(partial.state_dict())
    losses, gradients = [], []
    for network in (darts, partial):
        network.dropout_generator = torch.Generator().manual_seed(1)
        network.set_skip_dropout(0.3)
        losses.append(cross_entropy(network(IMAGES), LABELS))
        losses[-1].backward()
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    assert torch.equal(*losses)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(*gradients, strict=True))
    statistics = partial.state_dict()
    assert all(torch.equal(tensor, statistics[name]) for name, tensor in darts.state_dict().items())


def test_a_whole_search_with_k_1_and_edge_weights_1_is_that_of_darts():
    """Up to rounding: kernels evaluate DARTS, plain cells PC-DARTS."""
    stages = (Stage(3, 8, epochs=1, warmup_epochs=0),)
    config = SearchConfig(stages=stages, data="digits", train_images=120, validation_fraction=0.2, channels=2, batch_size=24)
    partial, darts = (
        next(Search(replace(config, method=method), torch.device("cpu")).epochs())
        for method in (PartialChannels(k=1, edge_normalization=False), FirstOrder())
    )
    assert partial.train_loss == pytest.approx(darts.train_loss, rel=1e-4)
    assert partial.validation_loss == pytest.approx(darts.validation_loss, rel=1e-3)
    for ours, theirs in zip(partial.alphas["normal"], darts.alphas["normal"], strict=True):
        assert ours == pytest.approx(theirs, abs=3e-4)


def test_edge_weights_are_the_softmax_over_the_edges_into_a_node():
    betas = torch.arange(14.0)
    weights = normalise_edges(betas)
    for node in range(4):
        into = [edge for edge, (_, target) in enumerate(EDGES) if target == node]
        assert weights[into] == pytest.approx(betas[into].softmax(0))


def test_operations_have_a_quarter_of_the_channels_and_the_rest_passes_by():
    network = build(4, edges=True)
    assert network.cells[0].edges[0]["sep_conv_3x3"].pointwise1.weight.shape[:2] == (1, 1)
    assert [p.shape for p in network.arch_parameters()] == [(14, 8), (14, 8), (14,), (14,)]
    assert not {id(p) for p in network.arch_parameters()} & {id(p) for p in network.weight_parameters()}
    cell = network.cells[0]
    operations = torch.zeros(14, 8)
    passing = torch.cat([operations, torch.ones(14, 1)], dim=1)
    stem = network.stem(IMAGES)
    states = [cell.preprocess0(stem), cell.preprocess1(stem)]
    first_node = cell(stem, stem, passing)[:, :4]
    expected = states[0] + states[1]
    expected[:, :1] = 0  # the operations' part, all of weight 0
    assert torch.allclose(first_node, shuffle(expected, 1))


def test_the_shuffle_spreads_the_operations_channels():
    channels = torch.arange(8.0).view(1, 8, 1, 1)
    assert shuffle(channels, 2).flatten().tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    assert shuffle(channels, 8).flatten().tolist() == list(range(8))


def test_every_weight_trains_and_betas_get_a_gradient():
    network = build(2, edges=True)
    cross_entropy(network(IMAGES), LABELS).backward()
    assert all(beta.grad.abs().max() > 0 for beta in network.arch_parameters()[2:])
    one_hot = network.one_hot_mixing(PUBLISHED["PDARTS_C10"].genotype)
    assert [mixing[:, -1].sum().item() for mixing in one_hot] == [8, 8]


def test_a_share_that_does_not_divide_the_channels_is_refused():
    with pytest.raises(ValueError, match="share: 3 does not divide the 4 channels"):
        build(3, edges=True)
