"""The evaluation network agrees with the reference network, and drop path does what the paper's regularization says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.networks.evaluation_network import CIFAR, IMAGENET_MOBILE, EvalNetwork, NetworkConfig
from pdarts_tune.pdarts.genotype import CellGenotype, Genotype

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = json.loads((GOLDEN / "sizes.json").read_text())
TINY = NetworkConfig(4, 3, 5, 16, "cifar", in_channels=2)


def cell(*edges):
    return CellGenotype(tuple(edges))


SKIPS = cell(*[("skip_connect", source) for source in (0, 1, 0, 2, 1, 3, 2, 4)])
CONVOLUTIONS = cell(*[("sep_conv_3x3", source) for source in (0, 1, 0, 2, 1, 3, 2, 4)])
MIXED = Genotype(
    cell(*zip(("max_pool_3x3", "skip_connect", "dil_conv_3x3", "dil_conv_5x5") * 2, (0, 1, 0, 2, 1, 3, 2, 4), strict=True)),
    cell(*zip(("avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5") * 2, (0, 1, 0, 2, 1, 3, 2, 4), strict=True)),
)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.fixture
def golden():
    with np.load(GOLDEN / "evalnet_cifar.npz") as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.fixture
def golden_network(golden):
    meta = json.loads((GOLDEN / "evalnet_cifar.json").read_text())
    config = NetworkConfig(meta["channels"], meta["cells"], meta["num_classes"], meta["image_size"], "cifar")
    network = EvalNetwork(Genotype.parse(json.dumps(meta["genotype"])), config).double()
    assert sum(parameter.numel() for parameter in network.parameters()) == meta["params"]
    # Both networks list their tensors in the order in which data flows, so positions tell which is which.
    reference = [tensor for name, tensor in golden.items() if name.startswith("state/")]
    network.load_state_dict(dict(zip(network.state_dict(), reference, strict=True)))
    return network


def test_logits_in_training_equal_the_reference(golden, golden_network):
    logits, auxiliary = golden_network.train()(golden["input"])
    close(logits, golden["train_logits"])
    close(auxiliary, golden["train_aux_logits"])


def test_logits_in_evaluation_equal_the_reference(golden, golden_network):
    logits, auxiliary = golden_network.eval()(golden["input"])
    close(logits, golden["eval_logits"])
    assert auxiliary is None


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(("setting", "config"), [("cifar10", CIFAR), ("imagenet", IMAGENET_MOBILE)])
def test_parameters_with_the_auxiliary_head_equal_the_reference(name, setting, config):
    with torch.device("meta"):
        network = EvalNetwork(Genotype.parse(json.dumps(SIZES[name]["genotype"])), config)
    assert sum(parameter.numel() for parameter in network.parameters()) == SIZES[name][setting]["params_incl_aux"]


@pytest.mark.parametrize("size", [8, 16, 28, 32, 33])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_any_image_size_gives_logits_of_both_heads(size, stem):
    network = EvalNetwork(MIXED, NetworkConfig(4, 4, 5, size, stem, in_channels=1)).train()
    logits, auxiliary = network(torch.randn(2, 1, size, size))
    assert logits.shape == auxiliary.shape == (2, 5)


def test_each_reduction_halves_the_image_and_doubles_the_channels():
    network = EvalNetwork(MIXED, NetworkConfig(4, 6, 5, 16, "cifar"))
    shapes = []

    def note(module, inputs, output):
        shapes.append(tuple(output.shape[1:]))

    for module in network.cells:
        module.register_forward_hook(note)
    network(torch.zeros(2, 3, 16, 16))
    assert shapes == [(16, 16, 16), (16, 16, 16), (32, 8, 8), (32, 8, 8), (64, 4, 4), (64, 4, 4)]


def test_a_cell_joins_only_the_states_that_its_genotype_names():
    short = CellGenotype(MIXED.normal.edges, concat=(4, 5))
    network = EvalNetwork(Genotype(short, MIXED.reduce), TINY)
    assert network(torch.zeros(2, 2, 16, 16))[0].shape == (2, 5)
    assert network.cells[1].preprocess1.conv.in_channels == 8


def test_without_an_auxiliary_head_there_are_no_auxiliary_logits():
    network = EvalNetwork(MIXED, TINY, auxiliary=False).train()
    assert network(torch.zeros(2, 2, 16, 16))[1] is None
    assert not any(name.startswith("auxiliary") for name, _ in network.named_parameters())


def test_identity_skips_are_never_dropped():
    network = EvalNetwork(Genotype(SKIPS, SKIPS), NetworkConfig(4, 6, 5, 16, "cifar")).train()
    reductions = [cell for cell in network.cells if any(not isinstance(op, nn.Identity) for op in cell.operations)]
    assert len(reductions) == 2
    normal = network.cells[0]
    images = torch.randn(2, 12, 16, 16)
    dropped = torch.zeros(8, 2, 1, 1, 1)
    assert torch.equal(normal(images, images, None), normal(images, images, dropped))


def test_drop_path_drops_whole_edges_per_image_at_its_rate():
    network = EvalNetwork(Genotype(CONVOLUTIONS, CONVOLUTIONS), TINY).train()
    network.drop_path_generator = torch.Generator().manual_seed(0)
    network.set_drop_path(0.3)
    factors = network._drop_path_factors(torch.zeros(500, 1))
    assert factors.shape == (3, 8, 500, 1, 1, 1)
    assert torch.equal(factors.unique(), torch.tensor([0.0, 1 / 0.7]))
    torch.testing.assert_close(factors.mean(dim=(0, 2)).flatten(), torch.ones(8), atol=0.06, rtol=0)
    assert not torch.equal(factors[0, 0], factors[0, 1])
    assert not torch.equal(factors[0, 0], factors[1, 0])


def test_an_image_whose_edges_are_all_dropped_leaves_zeros_and_the_others_are_untouched():
    network = EvalNetwork(Genotype(CONVOLUTIONS, CONVOLUTIONS), TINY).eval()
    images = torch.randn(2, 12, 16, 16)
    factors = torch.ones(8, 2, 1, 1, 1)
    factors[:, 1] = 0.0
    out = network.cells[0](images, images, factors)
    assert torch.equal(out[1], torch.zeros_like(out[1]))
    assert torch.equal(out[0], network.cells[0](images, images, None)[0])


def test_drop_path_repeats_with_its_generator_and_is_off_in_evaluation():
    torch.manual_seed(0)
    network = EvalNetwork(MIXED, TINY).double().train()
    images = torch.randn(4, 2, 16, 16, dtype=torch.float64)
    plain, _ = network(images)
    network.set_drop_path(0.5)
    network.drop_path_generator = torch.Generator().manual_seed(1)
    first, _ = network(images)
    second, _ = network(images)
    network.drop_path_generator.manual_seed(1)
    again, _ = network(images)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, plain)
    network.eval()
    evaluated, _ = network(images)
    network.set_drop_path(0.0)
    assert torch.equal(evaluated, network(images)[0])


def test_every_weight_gets_a_gradient():
    network = EvalNetwork(MIXED, TINY).train()
    logits, auxiliary = network(torch.randn(3, 2, 16, 16))
    (logits.sum() + auxiliary.square().sum()).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("stem", "mnist", "unknown stem 'mnist', known are cifar, imagenet"),
        ("cells", 2, "cells: 2 is too few"),
        ("channels", 0, "channels: 0"),
        ("num_classes", -1, "num_classes: -1"),
        ("image_size", 0, "image_size: 0"),
    ],
)
def test_impossible_networks_are_refused_by_name(field, value, words):
    settings = {"channels": 4, "cells": 3, "num_classes": 5, "image_size": 16, "stem": "cifar", field: value}
    with pytest.raises(ConfigError, match=words):
        NetworkConfig(**settings)


def test_odd_channels_are_refused_behind_the_imagenet_stem():
    with pytest.raises(ConfigError, match="channels: 5 is odd"):
        NetworkConfig(5, 3, 5, 224, "imagenet")


def test_a_drop_path_rate_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"rate: 1.0 is not in \[0, 1\)"):
        EvalNetwork(MIXED, TINY).set_drop_path(1.0)
