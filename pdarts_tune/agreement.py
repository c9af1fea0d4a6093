"""Whether the cells of a search network want the same architecture: the depth gap, seen from inside.

All cells of a type share their alphas, so the alphas' gradient is a sum over cells. Here each cell gets a copy of its own; the
cosines between the copies' gradients say how far shallow and deep cells agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from pdarts_tune.supernet import Cell, Supernet


@dataclass(frozen=True)
class Agreement:
    """Cosines between the alphas' gradients of single cells; None where a network has fewer than two cells of the type."""

    normal_pairs: float | None  # mean over all pairs of normal cells
    normal_first_last: float | None
    reduce_pairs: float | None


def measure_agreement(network: Supernet, images: Tensor, labels: Tensor) -> Agreement:
    """Agreement on one batch, with the batch norms' batch statistics; costs one forward and one backward pass."""
    normal, reduce = cell_gradients(network, images, labels)
    return Agreement(
        mean_cosine(normal),
        cosine_similarity(normal[0], normal[-1], dim=0).item() if len(normal) > 1 else None,
        mean_cosine(reduce),
    )


def cell_gradients(network: Supernet, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the loss by each cell's own copy of the alphas, (cells of the type, alphas), in the order of depth.

    Their sum over the cells of a type is the gradient of the shared alphas. Edge weights of PC-DARTS count as alphas.
    """
    parameters = network.arch_parameters()
    wanted = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    mixing = network.mixing()
    copies = [weights.detach().requires_grad_() for weights in network.spread(mixing)]
    by_weights = torch.autograd.grad(cross_entropy(network(images, copies), labels), copies)
    by_type: tuple[list[Tensor], list[Tensor]] = ([], [])
    for cell, gradient in zip(network.cells, by_weights, strict=True):
        assert isinstance(cell, Cell)
        found = torch.autograd.grad(mixing[cell.reduction], parameters, gradient, retain_graph=True, allow_unused=True)
        by_type[cell.reduction].append(torch.cat([part.flatten() for part in found if part is not None]))
    for parameter, on in zip(parameters, wanted, strict=True):
        parameter.requires_grad_(on)
    return torch.stack(by_type[0]), torch.stack(by_type[1])


def mean_cosine(gradients: Tensor) -> float | None:
    """The mean cosine over all pairs of rows; 1 if all agree. None if there is no pair."""
    count = len(gradients)
    if count < 2:
        return None
    units = torch.nn.functional.normalize(gradients.double(), dim=1)
    return ((units.sum(dim=0).square().sum() - units.square().sum()) / (count * (count - 1))).item()
