"""The search network of a configuration, its optimizers, and what training does to gradients and weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pdarts_tune.config.execution import cell_evaluation
from pdarts_tune.config.methods import PartialChannels
from pdarts_tune.config.remedies import AuxiliarySkip, IndependentWeights
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.networks.partial_channels import PartialSupernet
from pdarts_tune.networks.supernet import Supernet
from pdarts_tune.pdarts.space import SearchSpace


def build_network(config: SearchConfig, space: SearchSpace, cells: int, num_classes: int, in_channels: int, seed: int) -> Supernet:
    """The search network of the configuration's method. Its weights and alphas come from `seed` alone."""
    method, execution, shape = config.method, config.execution, (space, cells, config.channels, num_classes, in_channels)
    network: Supernet
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(method, PartialChannels):
            network = PartialSupernet(
                *shape,
                share=method.k,
                edge_normalization=method.edge_normalization,
                alpha_init_scale=config.alpha_init_scale,
                stem=config.stem,
            )
        else:
            network = Supernet(
                *shape,
                alpha_init_scale=config.alpha_init_scale,
                evaluation=cell_evaluation(execution, method),
                stem=config.stem,
                auxiliary_skip=any(isinstance(remedy, AuxiliarySkip) for remedy in config.remedies),
                independent=any(isinstance(remedy, IndependentWeights) for remedy in config.remedies),
            )
    network.precision, network.channels_last = execution.precision, execution.channels_last
    for cell in network.search_cells():
        cell.recompute, cell.dropout_on_reduce = execution.recompute, config.dropout_on_reduce
    return network


def build_optimizers(config: SearchConfig, network: Supernet) -> tuple[torch.optim.SGD, torch.optim.Adam]:
    """SGD of the weights, Adam of the alphas (paper, section 4.2.1)."""
    weights, alphas = network.weight_parameters(), network.arch_parameters()
    fused = in_one_call(weights)
    return (
        torch.optim.SGD(weights, lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay, fused=fused),
        torch.optim.Adam(
            alphas,
            lr=config.alpha_learning_rate,
            betas=config.alpha_betas,
            weight_decay=config.alpha_weight_decay,
            fused=fused,
            capturable=alphas[0].is_cuda,  # by a CUDA graph
        ),
    )


def clip_gradients(parameters: Sequence[nn.Parameter], norm: float) -> None:
    """Scales all gradients so that their common norm is at most `norm`."""
    nn.utils.clip_grad_norm_(parameters, norm, foreach=in_one_call(parameters))


def in_one_call(parameters: Sequence[nn.Parameter]) -> bool | None:
    """Whether to use kernels that take all tensors in one call, which PyTorch does not by default on a CPU. None: it decides."""
    return True if parameters[0].device.type in ("cpu", "cuda") else None


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with nan or an infinity; None if all are finite. Waits for a GPU once if all are."""
    numbers = [tensor for tensor in tensors.values() if tensor.is_floating_point() and tensor.numel()]
    if not numbers or math.isfinite(nn.utils.get_total_norm(numbers, math.inf).item()):
        return None
    return next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)
