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
_STATISTICS = ("running_mean", "running_var")
_STEPS = "num_batches_tracked"  # batch norms have it since PyTorch 0.4.1; ours never use it
_PROFILE = ("total_ops", "total_params")  # buffers that the profiler thop leaves in a network
_MODULES = ("stem", "stem0", "stem1", "cells", "auxiliary_head", "classifier", "alphas_normal", "alphas_reduce")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network")  # keys under which checkpoints keep a state dict


def find_state_dict(saved: object) -> Mapping[str, Tensor]:
    """The state dict in a checkpoint: `saved` itself, or what lies under a key such as `state_dict`, `model` or `net`.

    Raises:
        ValueError: there is none.
    """
    if isinstance(saved, Mapping):
        if saved and all(isinstance(value, Tensor) for value in saved.values()):
            return saved
        for key in _WRAPPERS:
            if isinstance(saved.get(key), Mapping):
                return find_state_dict(saved[key])
    kind = f"a dict of {', '.join(map(str, saved)) or 'nothing'}" if isinstance(saved, Mapping) else f"a {type(saved).__name__}"
    raise ValueError(f"no state dict, it is {kind[:120]}; a state dict is looked for under {', '.join(_WRAPPERS)}")


def load_darts_state_dict(network: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Loads a state dict that DARTS-family code saved, e.g. with `torch.save(model.state_dict(), ...)`.

    The prefixes of wrappers (`module.`, `model.`, `_orig_mod.`) are dropped. So are a profiler's buffers, and the weights of an
    auxiliary head if the network has none. A state dict without running statistics leaves the network's as they are. After an
    error the network is unchanged.

    Raises:
        ValueError: a tensor is missing, unexpected, not finite or of another shape. The message names the first such tensor.
        TypeError: the network is neither a Supernet nor an EvalNetwork.
    """
    if not isinstance(network, Supernet | EvalNetwork):
        raise TypeError(f"network: a {type(network).__name__}, neither a Supernet nor an EvalNetwork")
    headless = isinstance(network, EvalNetwork) and network.auxiliary_head is None
    ours = network.state_dict()
    loaded: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        target = _our_name(network, _without_wrappers(name))
        if name.endswith(_PROFILE) or (headless and target.startswith("auxiliary_head.")):
            continue
        if target in loaded:
            raise ValueError(f"{name}: there are two tensors of this name, with and without a prefix; save one network alone")
        if target not in ours:
            raise ValueError(f"{name}: unexpected tensor of shape {tuple(tensor.shape)}, this network has no such weight")
        if ours[target].shape != tensor.shape:
            raise ValueError(f"{name}: shape {tuple(tensor.shape)}, this network needs {tuple(ours[target].shape)}")
        if not tensor.isfinite().all():
            raise ValueError(f"{name}: holds nan or an infinity, weights must be finite")
        loaded[target] = tensor
    has_statistics = any(name.endswith(_STATISTICS) for name in loaded)
    optional = (_STEPS,) if has_statistics else (_STEPS, *_STATISTICS)
    missing = [name for name in ours if name not in loaded and not name.endswith(optional)]
    if missing:
        shape = tuple(ours[missing[0]].shape)
        raise ValueError(f"{missing[0]}: missing tensor ({len(missing)} of {len(ours)} are), this network needs its shape {shape}")
    with torch.no_grad():
        network.load_state_dict({**ours, **loaded})


def network_size(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of `NetworkConfig` that the names and shapes of an evaluation network's state dict tell."""
    shapes = {_without_wrappers(name): tuple(tensor.shape) for name, tensor in state_dict.items()}
    size: dict[str, Any] = {}
    if cells := [int(name.split(".")[1]) for name in shapes if re.match(r"cells\.\d+\.", name)]:
        size["cells"] = 1 + max(cells)
    for stem, first, last, copies in (("cifar", "stem.0", "stem.0", 3), ("imagenet", "stem0.0", "stem1.1", 1)):
        if len(shapes.get(f"{first}.weight", ())) == len(shapes.get(f"{last}.weight", ())) == 4:
            in_channels, channels = shapes[f"{first}.weight"][1], shapes[f"{last}.weight"][0] // copies
            size |= {"channels": channels, "stem": stem, "in_channels": in_channels}
    return size | ({"num_classes": shapes["classifier.bias"][0]} if shapes.get("classifier.bias") else {})


def _without_wrappers(name: str) -> str:
    parts = [part for part in name.split(".") if part != "_orig_mod"]  # torch.compile can wrap any module
    return ".".join(parts[next((index for index, part in enumerate(parts) if part in _MODULES), 0) :])


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
            kind, _ = module.edges[int(position)]
            place = f"operations.{position}"
        return f"cells.{cell}.{place}.{_OPERATION_PARTS[kind][part]}.{tensor}"
    except (IndexError, KeyError):
        return name
