"""SNAS: architectures sampled from the concrete distribution, and their expected cost (Xie et al., 2019).

An edge's choice of operation is softmax((alpha + G) / temperature) with G from the Gumbel distribution (section 2.2). All cells of
a type share a draw. At temperature 0 the choice is one-hot, operation o with probability softmax(alpha)[o], so the expected cost of
an architecture is the sum of every operation's cost times its probability (section 2.4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from pdarts_tune.config.methods import Snas
from pdarts_tune.networks.operations import OPERATIONS
from pdarts_tune.networks.supernet import Cell, Mixing, Supernet
from pdarts_tune.pdarts.progressive_depth import Stage

# The factor of the expected relative cost in the loss. The paper names three levels (section 2.4, table 1) but gives no figures;
# these are our own.
PENALTY_WEIGHTS: Mapping[str, float] = {"none": 0.0, "mild": 0.1, "moderate": 0.5, "aggressive": 2.0}


def temperature(method: Snas, stage: Stage, epoch: int) -> float:
    """The temperature of an epoch (from 0): constant while alphas are frozen, then it falls geometrically."""
    falls = stage.epochs - stage.warmup_epochs - 1
    if epoch < stage.warmup_epochs or falls < 1:
        return method.temperature
    progress = (epoch - stage.warmup_epochs) / falls
    return float(method.temperature * (method.final_temperature / method.temperature) ** progress)


def sample_choice(alphas: Tensor, kept: Tensor, temperature: float | Tensor, generator: torch.Generator) -> Tensor:
    """A draw from the concrete distribution per row: shaped like the alphas, rows sum to 1, zero where not `kept`."""
    exponential = torch.empty_like(alphas, requires_grad=False).exponential_(generator=generator)
    # -log of an exponential variable is a Gumbel variable; of a draw that rounds to 0 it would be infinite.
    gumbel = -exponential.clamp_min(torch.finfo(alphas.dtype).tiny).log()
    return ((alphas + gumbel) / temperature).masked_fill(~kept, -torch.inf).softmax(dim=-1)


def sample_mixing(network: Supernet, temperature: float | Tensor, generator: torch.Generator) -> Mixing:
    """Mixing weights of one sampled architecture, through which the alphas get their gradient."""
    normal = sample_choice(network.alphas_normal, network.kept_normal, temperature, generator)
    reduce = sample_choice(network.alphas_reduce, network.kept_reduce, temperature, generator)
    return normal, reduce


@dataclass(frozen=True)
class OperationCost:
    """One operation on one image."""

    params: int
    macs: int  # multiply-accumulates of convolutions
    accesses: int  # numbers read and written by convolutions, pools and the identity, weights included


@lru_cache(maxsize=1024)
def operation_cost(name: str, channels: int, stride: int, size: int) -> OperationCost:
    """The cost of a candidate operation on `channels` square images of `size` pixels a side, from shapes alone."""
    with torch.device("meta"):
        operation = OPERATIONS[name](channels, stride, False)
        image = torch.empty(1, channels, size, size)
    macs = accesses = 0

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal macs, accesses
        accesses += inputs[0].numel() + output.numel()
        if isinstance(module, nn.Conv2d):
            accesses += module.weight.numel()
            macs += output.numel() * module.weight[0].numel()

    for module in operation.modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d | nn.Identity):
            module.register_forward_hook(count)
    operation(image)
    return OperationCost(sum(parameter.numel() for parameter in operation.parameters()), macs, accesses)


def resource_costs(network: Supernet, image_size: int) -> dict[str, Mixing]:
    """The cost that each operation adds to the whole network, by resource, for one image of `image_size` pixels a side.

    The tensors are shaped like the alphas, with zeros in the padding. Stem, preprocessing and classifier, which are the same for
    all architectures, do not count.
    """
    kept = network.kept_normal, network.kept_reduce
    totals = {
        resource.name: (torch.zeros_like(kept[0], dtype=torch.float64), torch.zeros_like(kept[1], dtype=torch.float64))
        for resource in fields(OperationCost)
    }
    size = -(-image_size // 8) if network.reduced_stem else image_size
    for cell in network.cells:
        assert isinstance(cell, Cell)
        for edge, names in enumerate(cell.operations):
            here = -(-size // 2) if cell.reduction and cell.stride(edge) == 1 else size  # within a reduction cell
            for column, name in enumerate(names):
                cost = operation_cost(name, cell.channels, cell.stride(edge), here)
                for resource, total in totals.items():
                    total[cell.reduction][edge, column] += getattr(cost, resource)
        if cell.reduction:
            size = -(-size // 2)
    return totals


def relative_costs(network: Supernet, image_size: int) -> Mixing:
    """The mean of the paper's three resources (parameters, multiply-adds, memory access), shaped like the alphas.

    Each resource is relative to the costliest architecture of the search space, so an architecture's costs sum to at most 1.
    """
    shares = []
    for total in resource_costs(network, image_size).values():
        most = sum(part.amax(dim=1).sum() for part in total)
        shares.append([part / most for part in total])
    dtype = network.alphas_normal.dtype
    normal, reduce = (torch.stack(of_type).mean(dim=0).to(dtype) for of_type in zip(*shares, strict=True))
    return normal, reduce


def expected_cost(probabilities: Sequence[Tensor], costs: Sequence[Tensor]) -> Tensor:
    """The mean cost over architectures, with independent draws of the operations by these probabilities (rows sum to 1)."""
    return torch.stack([(chance * cost).sum() for chance, cost in zip(probabilities, costs, strict=True)]).sum()
