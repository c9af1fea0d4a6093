"""Weights that DARTS-family code saved load by name, or the message says which tensor is wrong."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pdarts_tune.networks.darts_weights import load_darts_state_dict
from pdarts_tune.networks.supernet import Supernet
from pdarts_tune.pdarts.space import SearchSpace

GOLDEN = Path(__file__).parents[1] / "golden"


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
