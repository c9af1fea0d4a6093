"""Weights that DARTS-family code saved, in our networks.

Those codes share their names of parameters, which this file translates. `cells.0.cell_ops.3.m_ops.4.op.1.weight` belongs to a
search network: cell, edge, position among the operations that the edge keeps. `cells.0._ops.3.op.1.weight` belongs to an
evaluation network: cell, edge of the genotype.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pdarts_tune.networks.evaluation_network import EvalNetwork
from pdarts_tune.networks.supernet import Supernet

_SEP_CONV = {"op.1": "depthwise1", "op.2": "pointwise1", "op.3": "bn1", "op.5": "depthwise2", "op.6": "pointwise2", "op.7": "bn2"}
_DIL_CONV = {"op.1": "depthwise", "op.2": "pointwise", "op.3": "bn"}
_FACTORIZED_REDUCE = {"conv_1": "conv1", "conv_2": "conv2", "bn": "bn"}
_PREPROCESS = {"op.1": "conv", "op.2": "bn", **_FACTORIZED_REDUCE}
# From the name of a module within an operation to ours.
_OPERATION_PARTS: Mapping[str, Mapping[str, str]] = {
    "none": {},
    "max_pool_3x3": {"1": "bn"},
    "avg_pool_3x3": {"1": "bn"},
    "skip_connect": _FACTORIZED_REDUCE,
    "sep_conv_3x3": _SEP_CONV,
    "sep_conv_5x5": _SEP_CONV,
    "dil_conv_3x3": _DIL_CONV,
    "dil_conv_5x5": _DIL_CONV,
    "sep_conv_7x7": _SEP_CONV,
    "conv_7x1_1x7": {"1": "horizontal", "2": "vertical", "3": "bn"},
}
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def load_darts_state_dict(network: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Loads a state dict that DARTS-family code saved, e.g. with `torch.save(model.state_dict(), ...)`.

    The prefix `module.` of parallel wrappers is dropped. So are the weights of an auxiliary head if the network has none. A state
    dict without running statistics leaves the network's as they are. After an error the network is unchanged.

    Raises:
        ValueError: a tensor is missing, unexpected, not finite or of another shape. The message names the first such tensor.
        TypeError: the network is neither a Supernet nor an EvalNetwork.
    """
    if not isinstance(network, Supernet | EvalNetwork):
        raise TypeError(f"network: a {type(network).__name__}, neither a Supernet nor an EvalNetwork")
    headless = isinstance(network, EvalNetwork) and network.auxiliary_head is None
    ours = network.state_dict()
    loaded = {}
    for name, tensor in state_dict.items():
        target = _our_name(network, name.removeprefix("module."))
        if headless and target.startswith("auxiliary_head."):
            continue
        if target not in ours:
            raise ValueError(f"{name}: unexpected tensor of shape {tuple(tensor.shape)}, this network has no such weight")
        if ours[target].shape != tensor.shape:
            raise ValueError(f"{name}: shape {tuple(tensor.shape)}, this network needs {tuple(ours[target].shape)}")
        if not tensor.isfinite().all():
            raise ValueError(f"{name}: holds nan or an infinity, weights must be finite")
        loaded[target] = tensor
    has_statistics = any(name.endswith(_STATISTICS) for name in loaded)
    missing = [name for name in ours if name not in loaded and (has_statistics or not name.endswith(_STATISTICS))]
    if missing:
        shape = tuple(ours[missing[0]].shape)
        raise ValueError(f"{missing[0]}: missing tensor ({len(missing)} of {len(ours)} are), this network needs its shape {shape}")
    with torch.no_grad():
        network.load_state_dict({**ours, **loaded})


def network_size(state_dict: Mapping[str, Tensor]) -> dict[str, int | str]:
    """The `cells`, `channels` and `stem` of the evaluation network that saved a state dict, as far as its names tell."""
    shapes = {name.removeprefix("module."): tuple(tensor.shape) for name, tensor in state_dict.items()}
    size: dict[str, int | str] = {}
    if cells := [int(name.split(".")[1]) for name in shapes if re.match(r"cells\.\d+\.", name)]:
        size["cells"] = 1 + max(cells)
    for stem, weight, copies in (("cifar", "stem.0.weight", 3), ("imagenet", "stem1.1.weight", 1)):
        if len(shapes.get(weight, ())) == 4:
            size |= {"channels": shapes[weight][0] // copies, "stem": stem}
    return size


def _our_name(network: Supernet | EvalNetwork, name: str) -> str:
    """Our name of a tensor. Stems, classifiers, alphas, and whatever the network does not have, keep their name."""
    preprocess = re.fullmatch(r"(cells\.\d+\.preprocess[01])\.(.+)\.(\w+)", name)
    if preprocess:
        cell_input, part, tensor = preprocess.groups()
        return f"{cell_input}.{_PREPROCESS.get(part, part)}.{tensor}"
    operation = re.fullmatch(r"cells\.(\d+)\.(?:cell_ops\.(\d+)\.m_ops|_ops)\.(\d+)\.(.+)\.(\w+)", name)
    if not operation or (operation[2] is None) == isinstance(network, Supernet):
        return name
    cell, edge, position, part, tensor = operation.groups()
    try:
        module: Any = network.cells[int(cell)]
        if edge is not None:
            kind = module.operations[int(edge)][int(position)]
            place = f"edges.{edge}.{kind}"
        else:
            kind, _ = module.genotype.edges[int(position)]
            place = f"operations.{position}"
        return f"cells.{cell}.{place}.{_OPERATION_PARTS[kind][part]}.{tensor}"
    except (IndexError, KeyError):
        return name
