"""Weights saved by DARTS-family code, read into our networks.

Those codes share parameter names (`cells.0.cell_ops.3.m_ops.4.op.1.weight`, `cells.0._ops.3.op.1.weight`); tables of rules rename
them to ours. The position of an operation in `m_ops` is its position among the operations that its edge keeps, as in our search
space; the position in `_ops` is that of the edge in the genotype.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pdarts_tune.networks.evaluation_network import EvalNetwork
from pdarts_tune.networks.supernet import Supernet
from pdarts_tune.pdarts.progressive_depth import reduction_cells

Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], str]]

_SEP_CONV = {"1": "depthwise1", "2": "pointwise1", "3": "bn1", "5": "depthwise2", "6": "pointwise2", "7": "bn2"}
_DIL_CONV = {"1": "depthwise", "2": "pointwise", "3": "bn"}
_FACTORIZED_REDUCE = {"conv_1": "conv1", "conv_2": "conv2", "bn": "bn"}
_PREPROCESS = {"op.1": "conv", "op.2": "bn", **_FACTORIZED_REDUCE}
# Within an operation, from their module name to ours.
_OPERATION_PARTS: Mapping[str, Mapping[str, str]] = {
    "none": {},
    "max_pool_3x3": {"1": "bn"},
    "avg_pool_3x3": {"1": "bn"},
    "skip_connect": _FACTORIZED_REDUCE,
    "sep_conv_3x3": {f"op.{position}": part for position, part in _SEP_CONV.items()},
    "sep_conv_5x5": {f"op.{position}": part for position, part in _SEP_CONV.items()},
    "dil_conv_3x3": {f"op.{position}": part for position, part in _DIL_CONV.items()},
    "dil_conv_5x5": {f"op.{position}": part for position, part in _DIL_CONV.items()},
    "sep_conv_7x7": {f"op.{position}": part for position, part in _SEP_CONV.items()},
    "conv_7x1_1x7": {"1": "horizontal", "2": "vertical", "3": "bn"},
}
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def load_darts_state_dict(network: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Loads a state dict that DARTS-family code saved, e.g. with `torch.save(model.state_dict(), ...)`.

    Prefixes `module.` of parallel wrappers are dropped, and so are the weights of an auxiliary head if the network has none (only
    training uses it; DARTS' own head for ImageNet lacks a batch norm that everyone else's has). A state dict without any running
    statistics leaves the network's as they are. The network is unchanged if anything is wrong.

    Raises:
        ValueError: a tensor is missing, unexpected, or of another shape, as in a checkpoint of another genotype or width; the
            message names the first such tensor and both shapes. Or a tensor that the network takes is not finite.
        TypeError: a network of a kind that DARTS-family code does not have.
    """
    if isinstance(network, Supernet):
        rename = _supernet_names(network)
    elif isinstance(network, EvalNetwork):
        rename = _evalnet_names(network)
    else:
        raise TypeError(f"network: a {type(network).__name__}, neither a Supernet nor an EvalNetwork")
    headless = isinstance(network, EvalNetwork) and network.auxiliary_head is None
    ours = network.state_dict()
    named = {}
    for name, tensor in state_dict.items():
        target = rename(name.removeprefix("module."))
        if headless and target.startswith("auxiliary_head."):
            continue
        if target not in ours:
            raise ValueError(f"{name}: unexpected tensor of shape {tuple(tensor.shape)}, this network has no such weight")
        if ours[target].shape != tensor.shape:
            raise ValueError(f"{name}: shape {tuple(tensor.shape)}, this network needs {tuple(ours[target].shape)}")
        if not tensor.isfinite().all():
            raise ValueError(f"{name}: holds nan or an infinity, weights must be finite")
        named[target] = tensor
    keep_statistics = not any(name.endswith(_STATISTICS) for name in named)
    missing = [name for name in ours if name not in named and not (keep_statistics and name.endswith(_STATISTICS))]
    if missing:
        shape = tuple(ours[missing[0]].shape)
        raise ValueError(f"{missing[0]}: missing tensor ({len(missing)} of {len(ours)} are), this network needs its shape {shape}")
    with torch.no_grad():
        network.load_state_dict({**ours, **named})


def _supernet_names(network: Supernet) -> Callable[[str], str]:
    """From their names of the search network's tensors to ours; other names stay as they are."""
    spaces = [network.space.reduce if cell.reduction else network.space.normal for cell in network.cells]

    def rename(name: str) -> str:
        found = re.fullmatch(r"cells\.(\d+)\.cell_ops\.(\d+)\.m_ops\.(\d+)\.(.+)\.(\w+)", name)
        if found:
            cell, edge, position = (int(group) for group in found.groups()[:3])
            try:
                operation = spaces[cell][edge][position]
                part = _OPERATION_PARTS[operation][found[4]]
            except (IndexError, KeyError):
                return name
            return f"cells.{cell}.edges.{edge}.{operation}.{part}.{found[5]}"
        return _preprocess_name(name)

    return rename


def _evalnet_names(network: EvalNetwork) -> Callable[[str], str]:
    """From their names of an evaluation network's tensors to ours; stems, classifiers and other names stay as they are."""
    reductions = reduction_cells(network.config.cells)
    operations = [
        [name for name, _ in (network.genotype.reduce if cell in reductions else network.genotype.normal).edges]
        for cell in range(network.config.cells)
    ]

    def rename(name: str) -> str:
        found = re.fullmatch(r"cells\.(\d+)\._ops\.(\d+)\.(.+)\.(\w+)", name)
        if found:
            cell, edge = int(found[1]), int(found[2])
            try:
                return f"cells.{cell}.operations.{edge}.{_OPERATION_PARTS[operations[cell][edge]][found[3]]}.{found[4]}"
            except (IndexError, KeyError):
                return name
        return _preprocess_name(name)

    return rename


def _preprocess_name(name: str) -> str:
    found = re.fullmatch(r"(cells\.\d+\.preprocess[01])\.(.+)\.(\w+)", name)
    if found and found[2] in _PREPROCESS:
        return f"{found[1]}.{_PREPROCESS[found[2]]}.{found[3]}"
    return name
