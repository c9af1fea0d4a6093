"""The search network agrees with the reference network in size and in every figure, and mixes operations as it says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from pdarts_tune.networks.darts_weights import load_darts_state_dict
from pdarts_tune.networks.evaluation_network import EvalNetwork, NetworkConfig
from pdarts_tune.networks.supernet import Dropout, Supernet
from pdarts_tune.pdarts.genotype import CellGenotype, Genotype
from pdarts_tune.pdarts.space import EDGES, PRIMITIVES, SearchSpace

GOLDEN = Path(__file__).parents[1] / "golden"
FULL = SearchSpace.full()
MIXED_CELL = tuple(tuple(PRIMITIVES[(edge + step) % 8] for step in range(1 + edge % 3)) for edge in range(len(EDGES)))
MIXED_CELL = tuple(tuple(sorted(names, key=PRIMITIVES.index)) for names in MIXED_CELL)
MIXED = SearchSpace(MIXED_CELL, MIXED_CELL[::-1])
GENOTYPE = Genotype(*[CellGenotype(tuple(("skip_connect" if i % 3 else "sep_conv_3x3", i % 2) for i in range(8)))] * 2)


@pytest.fixture
def golden():
    with np.load(GOLDEN / "supernet_ops8.npz") as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.fixture(params=["kernels", "plain"])
def golden_network(golden, request):
    network = Supernet(FULL, 5, 4, 10, evaluation=request.param).double()
    load_darts_state_dict(network, {name[6:]: tensor for name, tensor in golden.items() if name.startswith("state/")})
    return network


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cells", [5, 11, 17])
def test_sizes_equal_the_reference(cells):
    sizes = json.loads((GOLDEN / "supernet_sizes.json").read_text())
    expected = next(value for key, value in sizes.items() if f"{cells}_cells" in key)
    network = Supernet(FULL, cells, 16, 10, evaluation="plain")
    macs = []

    def count(module, inputs, output):
        macs.append(output[0].numel() // module.weight.shape[0] * module.weight.numel())

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    assert sum(parameter.numel() for parameter in network.weight_parameters()) == expected["weights"]
    assert sum(parameter.numel() for parameter in network.arch_parameters()) == expected["alphas"]
    parameters = dict(network.named_parameters())
    buffers = [tensor for name, tensor in network.state_dict().items() if name not in parameters]
    assert sum(buffer.numel() for buffer in buffers) == expected["buffers"]
    assert sum(macs) == expected["macs"]


def test_training_step_equals_the_reference(golden, golden_network):
    logits = golden_network(golden["input"])
    loss = F.cross_entropy(logits, golden["labels"])
    loss.backward()
    close(logits, golden["logits_train"])
    close(loss, golden["loss"])
    close(golden_network.alphas_normal.grad, golden["grad_alphas_normal"])
    close(golden_network.alphas_reduce.grad, golden["grad_alphas_reduce"])
    torch.optim.Adam(golden_network.arch_parameters(), lr=6e-4, betas=(0.5, 0.999), weight_decay=1e-3).step()
    close(golden_network.alphas_normal.detach(), golden["alphas_normal_after_adam"])
    close(golden_network.alphas_reduce.detach(), golden["alphas_reduce_after_adam"])


def test_running_statistics_and_weights_equal_the_reference(golden, golden_network):
    loss = F.cross_entropy(golden_network(golden["input"]), golden["labels"])
    with torch.no_grad():
        close(golden_network.eval()(golden["input"]), golden["logits_eval_after_train_forward"])
    loss.backward()
    weights = golden_network.weight_parameters()
    nn.utils.clip_grad_norm_(weights, 5.0)
    torch.optim.SGD(weights, lr=0.025, momentum=0.9, weight_decay=3e-4).step()
    with torch.no_grad():
        close(golden_network(golden["input"]), golden["logits_eval_after_sgd_step"])


def test_probabilities_are_the_softmax_over_the_kept_operations():
    torch.manual_seed(0)
    network = Supernet(MIXED, 3, 4, 10, alpha_init_scale=1.0)
    normal, reduce = network.probs()
    for probs, operations, alphas in (
        (normal, MIXED.normal, network.alphas_normal),
        (reduce, MIXED.reduce, network.alphas_reduce),
    ):
        for row, names, alpha in zip(probs, operations, alphas, strict=True):
            assert tuple(row) == names
            torch.testing.assert_close(torch.tensor(list(row.values())), alpha[: len(names)].softmax(0))


def test_padding_of_unequal_edges_stays_zero():
    torch.manual_seed(0)
    network = Supernet(MIXED, 3, 4, 10)
    assert network.alphas_normal.shape == (14, 3)
    optimizer = torch.optim.Adam(network.arch_parameters(), lr=0.1, weight_decay=1e-3)
    network(torch.randn(2, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    for alphas, operations in zip(network.arch_parameters(), (MIXED.normal, MIXED.reduce), strict=True):
        for row, names in zip(alphas, operations, strict=True):
            assert row[: len(names)].all()
            assert not row[len(names) :].any()


def test_initial_alphas_and_weights_follow_the_seed():
    networks = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        networks.append(Supernet(FULL, 3, 4, 10))
    first, same, other = networks
    assert torch.equal(first.alphas_normal, same.alphas_normal)
    assert not torch.equal(first.alphas_normal, other.alphas_normal)
    assert 5e-4 < first.alphas_normal.std() < 2e-3


def test_skip_dropout_follows_its_generator_and_only_acts_in_training():
    torch.manual_seed(0)
    network = Supernet(FULL, 3, 4, 10)
    images = torch.randn(2, 3, 8, 8)
    without = network(images)
    network.set_skip_dropout(0.5)
    outputs = []
    for seed in (0, 0, 1):
        network.dropout_generator = torch.Generator().manual_seed(seed)
        outputs.append(network(images))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])
    assert not torch.allclose(outputs[0], without)
    state = network.dropout_generator.get_state()
    network.eval()
    evaluated = network(images)
    network.set_skip_dropout(0.0)
    assert torch.equal(evaluated, network(images))
    assert torch.equal(state, network.dropout_generator.get_state())
    with pytest.raises(ValueError, match=r"rate: 1\.0"):
        network.set_skip_dropout(1.0)


def test_skip_dropout_keeps_the_expected_value():
    skip_only = (("skip_connect",),) * len(EDGES)
    network = Supernet(SearchSpace(skip_only, skip_only), 3, 4, 10)
    cell = network.cells[0]
    network.set_skip_dropout(0.3)
    network.dropout_generator = torch.Generator().manual_seed(0)
    masks = network._skip_masks(cell, torch.zeros(64, 12, 32, 32))
    assert masks.shape == (14, 64, 4, 32, 32)
    assert abs(masks.double().mean() - 0.7) < 1e-3


def test_one_hot_mixing_is_the_cell_of_the_genotype_alone():
    torch.manual_seed(0)
    network = Supernet(FULL, 3, 4, 10).eval()
    images = torch.randn(2, 3, 8, 8)
    mixing = network.one_hot_mixing(GENOTYPE)
    assert mixing[0].sum() == 8
    assert mixing[0][0, PRIMITIVES.index("sep_conv_3x3")] == 1.0
    before = network(images, mixing)
    for name, parameter in network.named_parameters():
        if "conv_5x5" in name or name.startswith("alphas"):
            nn.init.zeros_(parameter)
    assert torch.equal(network(images, mixing), before)


def test_one_hot_mixing_refuses_what_the_network_does_not_offer():
    with pytest.raises(ValueError, match=r"normal cell, edge 0: the network does not offer sep_conv_3x3"):
        Supernet(MIXED, 3, 4, 10).one_hot_mixing(GENOTYPE)


def test_odd_image_sizes_work():
    logits = Supernet(FULL, 5, 4, 10)(torch.randn(2, 3, 13, 13))
    assert logits.shape == (2, 10)


def test_skip_dropout_on_reductions_drops_elements_of_stride_2_skip_connects_too():
    def outputs(evaluation, dropout_on_reduce):
        torch.manual_seed(0)
        network = Supernet(FULL, 3, 4, 10, evaluation=evaluation, dropout_on_reduce=dropout_on_reduce).double()
        network.set_skip_dropout(0.5)
        network.dropout_generator = torch.Generator().manual_seed(0)
        images = torch.randn(4, 3, 8, 8).double()
        logits = network(images)
        logits.square().sum().backward()
        return network, logits, [parameter.grad for parameter in network.parameters()]

    network, ours, our_gradients = outputs("kernels", True)
    _, plain, plain_gradients = outputs("plain", True)
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)
    for ours, theirs in zip(our_gradients, plain_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8 * float(theirs.abs().max()))
    assert not torch.allclose(ours, outputs("kernels", False)[1])
    reduction = network.cells[1]
    assert [edge for edge in reduction.skip_edges if EDGES[edge][0] < 2], "no skip-connect of stride 2"
    assert network._skip_masks(reduction, torch.zeros(2, 16, 7, 7)).shape == (14, 2, 8, 4, 4)


def test_an_element_that_skip_dropout_kept_on_a_reduction_is_scaled_and_a_dropped_one_is_zero():
    skip_only = (("skip_connect",),) * len(EDGES)
    torch.manual_seed(0)
    cell = Supernet(SearchSpace(skip_only, skip_only), 3, 4, 10, evaluation="plain", dropout_on_reduce=True).cells[1]
    images = torch.randn(2, 12, 8, 8), torch.randn(2, 16, 8, 8)
    weights = torch.zeros(14, 1)
    weights[0] = 1.0  # the first node is its first edge alone
    masks = torch.rand(14, 2, 8, 4, 4) < 0.5
    whole, dropped = (cell(*images, weights, Dropout(chosen, kept))[:, :8] for chosen, kept in ((None, 1.0), (masks, 0.5)))
    torch.testing.assert_close(dropped, 2 * whole * masks[0])


@pytest.mark.parametrize("recompute", [False, True])
def test_the_imagenet_stem_is_that_of_the_evaluation_network_and_kernels_compute_it_alike(recompute):
    images, results = torch.randn(2, 3, 50, 50, dtype=torch.float64), []
    for evaluation in ("plain", "kernels"):
        torch.manual_seed(0)
        network = Supernet(MIXED, 3, 4, 10, stem="imagenet", evaluation=evaluation, recompute=recompute).double()
        logits = network(images)
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in network.parameters())])
    for plain, kernels in zip(*results, strict=True):
        torch.testing.assert_close(kernels, plain, rtol=1e-6, atol=1e-10)
    sizes = []
    network.evaluation = "plain"
    network.cells[0].register_forward_pre_hook(lambda _, states: sizes.extend(state.shape[1:] for state in states[:2]))
    network(images)
    assert sizes == [(4, 13, 13), (4, 7, 7)]  # a quarter and an eighth of 50
    twin = EvalNetwork(GENOTYPE, NetworkConfig(4, 3, 10, 50, "imagenet"))
    shapes = [{name: tensor.shape for name, tensor in net.state_dict().items() if name[:4] == "stem"} for net in (network, twin)]
    assert shapes[0] == shapes[1]
