"""SNAS: architectures sampled from the concrete distribution (Xie et al., 2019). `search/resources.py` has their expected cost.

An edge's choice of operation is softmax((alpha + G) / temperature) with G from the Gumbel distribution (section 2.2). All cells of
a type share a draw. At temperature 0 the choice is one-hot, operation o with probability softmax(alpha)[o].
"""

from __future__ import annotations

import torch
from torch import Tensor

from pdarts_tune.config.methods import Snas
from pdarts_tune.networks.supernet import Mixing, Supernet
from pdarts_tune.pdarts.progressive_depth import Stage


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
