"""Weights that DARTS-family code saved load by name, to the same logits, or the message says which tensor is wrong."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pdarts_tune.networks.darts_weights import find_state_dict, load_darts_state_dict, network_size
from pdarts_tune.networks.evaluation_network import EvalNetwork, NetworkConfig
from pdarts_tune.networks.supernet import Supernet
from pdarts_tune.pdarts.genotype import CellGenotype, Genotype
from pdarts_tune.pdarts.published import PUBLISHED
from pdarts_tune.pdarts.space import SearchSpace

GOLDEN = Path(__file__).parents[1] / "golden"
META = json.loads((GOLDEN / "evalnet_cifar.json").read_text())
GENOTYPE = Genotype.parse(json.dumps(META["genotype"]))
CONFIG = NetworkConfig(META["channels"], META["cells"], META["num_classes"], META["image_size"], "cifar")


@pytest.fixture
def state():
    with np.load(GOLDEN / "supernet_ops8.npz") as arrays:
        return {name[6:]: torch.from_numpy(array) for name, array in arrays.items() if name.startswith("state/")}


@pytest.fixture
def network():
    return Supernet(SearchSpace.full(), 5, 4, 10).double()


def test_weights_load_under_our_names_with_or_without_a_wrapper_prefix(state, network):
    load_darts_state_dict(network, {f"module.{name}": tensor for name, tensor in state.items()})
    edge = network.cells[1].edges[0]
    assert torch.equal(edge["sep_conv_5x5"].depthwise2.weight, state["cells.1.cell_ops.0.m_ops.5.op.5.weight"])
    assert torch.equal(edge["skip_connect"].conv2.weight, state["cells.1.cell_ops.0.m_ops.3.conv_2.weight"])
    assert torch.equal(network.alphas_reduce, state["alphas_reduce"])


def test_positions_are_those_among_the_kept_operations(state):
    kept = (("skip_connect", "dil_conv_3x3"),) * 14
    network = Supernet(SearchSpace(kept, kept), 5, 4, 10).double()
    pruned = {}
    for name, tensor in state.items():
        if name.startswith("alphas"):
            pruned[name] = tensor[:, [3, 6]]
        elif "m_ops.3" in name or "m_ops.6" in name:
            pruned[name.replace("m_ops.3", "m_ops.0").replace("m_ops.6", "m_ops.1")] = tensor
        elif "m_ops" not in name:
            pruned[name] = tensor
    load_darts_state_dict(network, pruned)
    assert torch.equal(network.cells[0].edges[5]["dil_conv_3x3"].pointwise.weight, state["cells.0.cell_ops.5.m_ops.6.op.2.weight"])


def test_running_statistics_load_too_when_there_are_any(state, network):
    mean = torch.rand(4, dtype=torch.double)
    with pytest.raises(ValueError, match="missing tensor"):
        load_darts_state_dict(network, {**state, "cells.0.cell_ops.0.m_ops.1.1.running_mean": mean})
    theirs = {f"cells.0.cell_ops.0.m_ops.1.1.{name}": value for name, value in (("running_mean", mean),)}
    ours = {name: tensor for name, tensor in network.state_dict().items() if name.endswith(("_mean", "_var", "_tracked"))}
    del ours["cells.0.edges.0.max_pool_3x3.bn.running_mean"]
    load_darts_state_dict(network, {**state, **theirs, **ours})
    assert torch.equal(network.cells[0].edges[0]["max_pool_3x3"].bn.running_mean, mean)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("classifier.bias"), r"^classifier.bias: missing tensor \(1 of"),
        (lambda s: s.update({"cells.9.cell_ops.0.m_ops.4.op.1.weight": torch.zeros(1)}), r"^cells.9\S+: unexpected tensor"),
        (lambda s: s.update({"alphas_normal": torch.zeros(14, 5)}), r"^alphas_normal: shape \(14, 5\), .* \(14, 8\)$"),
    ],
)
def test_a_wrong_tensor_is_named_and_nothing_is_loaded(state, network, change, message):
    before = network.alphas_reduce.clone()
    change(state)
    with pytest.raises(ValueError, match=message):
        load_darts_state_dict(network, state)
    assert torch.equal(network.alphas_reduce, before)


def test_other_modules_are_refused(state):
    with pytest.raises(TypeError, match="Linear"):
        load_darts_state_dict(nn.Linear(2, 2), state)


@pytest.fixture
def golden():
    with np.load(GOLDEN / "evalnet_cifar.npz") as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.fixture
def evaluation_state(golden):
    return {name.removeprefix("state/"): tensor for name, tensor in golden.items() if name.startswith("state/")}


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.", "module._orig_mod.", "net.module.model."])
def test_loaded_weights_give_the_reference_logits(golden, evaluation_state, prefix):
    network = EvalNetwork(GENOTYPE, CONFIG).double()
    wrapped = {prefix + name: tensor for name, tensor in evaluation_state.items()}
    load_darts_state_dict(network, wrapped)
    assert NetworkConfig(**network_size(wrapped), image_size=CONFIG.image_size) == CONFIG
    close(network.eval()(golden["input"])[0], golden["eval_logits"])
    logits, auxiliary = network.train()(golden["input"])
    close(logits, golden["train_logits"])
    close(auxiliary, golden["train_aux_logits"])


def test_a_network_without_auxiliary_head_leaves_the_heads_weights_out(golden, evaluation_state):
    network = EvalNetwork(GENOTYPE, CONFIG, auxiliary=False).double()
    load_darts_state_dict(network, evaluation_state)
    close(network.eval()(golden["input"])[0], golden["eval_logits"])


def test_a_wrapper_around_a_part_and_a_profilers_buffers_change_nothing(golden, evaluation_state):
    profile = {
        "total_ops": torch.zeros(1),
        "cells.0.total_params": torch.zeros(1),
        "model.cells.1._ops.0.total_ops": torch.zeros(1),
    }
    compiled = {name.replace("cells.1.", "cells.1._orig_mod."): tensor for name, tensor in evaluation_state.items()}
    network = EvalNetwork(GENOTYPE, CONFIG).double()
    load_darts_state_dict(network, compiled | profile)
    close(network.eval()(golden["input"])[0], golden["eval_logits"])


def test_weights_of_before_pytorch_0_4_1_lack_the_number_of_batches(golden, evaluation_state):
    old = {name: tensor for name, tensor in evaluation_state.items() if not name.endswith("num_batches_tracked")}
    assert len(old) < len(evaluation_state)
    network = EvalNetwork(GENOTYPE, CONFIG, auxiliary=False).double()
    load_darts_state_dict(network, old)
    close(network.eval()(golden["input"])[0], golden["eval_logits"])
    del old["stem.1.running_mean"]
    with pytest.raises(ValueError, match=r"^stem.1.running_mean: missing"):
        load_darts_state_dict(network, old)


def test_two_networks_in_one_state_dict_are_refused(evaluation_state):
    twice = evaluation_state | {f"ema.{name}": tensor for name, tensor in evaluation_state.items()}
    with pytest.raises(ValueError, match=r"^ema\.stem.0.weight: there are two tensors of this name"):
        load_darts_state_dict(EvalNetwork(GENOTYPE, CONFIG).double(), twice)


@pytest.mark.parametrize("keys", [(), ("state_dict",), ("model_state_dict",), ("model",), ("net",), ("model", "state_dict")])
def test_a_state_dict_is_found_in_its_checkpoint(keys):
    weights = {"stem.0.weight": torch.zeros(1)}
    saved = weights
    for key in keys:
        saved = {"epoch": 3, key: saved, "optimizer": {}}
    assert find_state_dict(saved) is weights


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        (
            {"epoch": 3, "weights": {}},
            "no state dict, it is a dict of epoch, weights; a state dict is looked for under",
        ),
        ([1, 2], "no state dict, it is a list"),
        ({"model": {}}, "no state dict, it is a dict of nothing"),
    ],
)
def test_a_file_without_a_state_dict_says_what_it_holds(saved, message):
    with pytest.raises(ValueError, match=message):
        find_state_dict(saved)


def test_a_network_with_an_auxiliary_head_needs_its_weights(evaluation_state):
    with pytest.raises(
        ValueError, match=r"^auxiliary_head\S+: missing tensor \(12 of \d+ are\), this network needs its shape \(128, 96, 1, 1\)$"
    ):
        load_darts_state_dict(
            EvalNetwork(GENOTYPE, CONFIG), {name: tensor for name, tensor in evaluation_state.items() if "auxiliary" not in name}
        )


def test_every_tensor_goes_to_its_place_in_networks_of_all_operations_and_both_stems():
    operations = ["sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7", "conv_7x1_1x7", "dil_conv_3x3", "dil_conv_5x5"]
    operations += ["skip_connect", "max_pool_3x3"]
    cell = CellGenotype(tuple((name, position % 2) for position, name in enumerate(operations)))
    for stem in ("cifar", "imagenet"):
        network = EvalNetwork(Genotype(cell, cell), NetworkConfig(4, 3, 5, 32, stem)).double()
        theirs = {darts_name(name, network): torch.full_like(tensor, index) for index, (name, tensor) in enumerate(named(network))}
        load_darts_state_dict(network, theirs)
        assert [tensor.double().mean().item() for _, tensor in named(network)] == list(range(len(theirs)))


def named(network):
    return list(network.state_dict().items())


# Our part of an operation to the family's position in its sequence; both sequences begin with a ReLU, which has no weights.
SEQUENCES = {
    "SepConv": ("depthwise1", "pointwise1", "bn1", None, "depthwise2", "pointwise2", "bn2"),
    "DilConv": ("depthwise", "pointwise", "bn"),
    "ReLUConvBN": ("conv", "bn"),
}


def darts_name(name, network):
    parts = name.split(".")
    if parts[0] != "cells":
        return name
    kind = type(network.get_submodule(".".join(parts[:-2]))).__name__
    if parts[2] == "operations":
        parts[2] = "_ops"
    if kind == "FactorizedReduce":
        parts[-2] = {"conv1": "conv_1", "conv2": "conv_2", "bn": "bn"}[parts[-2]]
    elif kind == "Conv7x1And1x7":
        parts[-2] = {"horizontal": "1", "vertical": "2", "bn": "3"}[parts[-2]]
    else:
        parts[-2] = f"op.{1 + SEQUENCES[kind].index(parts[-2])}"
    return ".".join(parts)


@pytest.mark.parametrize(
    ("genotype", "config", "message"),
    [
        (GENOTYPE, replace(CONFIG, channels=8), r"^stem.0.weight: shape \(18, 3, 3, 3\), this network needs \(24, 3, 3, 3\)$"),
        (GENOTYPE, replace(CONFIG, num_classes=10), r"^aux\S+: shape \(7, 768\), this network needs \(10, 768\)$"),
        (GENOTYPE, replace(CONFIG, cells=9), r"^cells.2.preprocess0\S+: .*needs"),
        (
            PUBLISHED["PDARTS_C10"].genotype,
            CONFIG,
            r"^cells.0._ops.0.op.1.weight: unexpected tensor of shape \(6, 1, 3, 3\), this network has no such weight$",
        ),
    ],
)
def test_a_checkpoint_of_another_genotype_or_width_is_refused_by_tensor_and_shape(evaluation_state, genotype, config, message):
    network = EvalNetwork(genotype, config)
    before = network.classifier.weight.clone()
    with pytest.raises(ValueError, match=message):
        load_darts_state_dict(network, evaluation_state)
    assert torch.equal(network.classifier.weight, before)
