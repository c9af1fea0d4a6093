"""The largest eigenvalue of the loss's Hessian in the alphas, which grows before a search collapses (Zela et al., 2020, section 4).

Products of the Hessian with a vector are exact, by differentiating twice; for that the network is evaluated plainly. Lanczos'
method finds the eigenvalue from a few of them, without the Hessian itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pdarts_tune.supernet import Supernet

ITERATIONS = 30
TOLERANCE = 0.01  # of the residual relative to the eigenvalue, whose own error is of the order of the residual's square


def alpha_eigenvalue(network: Supernet, images: Tensor, labels: Tensor, seed: int) -> float:
    """The largest eigenvalue on one batch, with the batch norms' batch statistics and the softmax of the alphas as mixing weights
    (also for methods that sample). Edge weights of PC-DARTS count as alphas.

    It holds the graph of two differentiations in memory, about three times that of a training step's plain evaluation.

    Args:
        seed: of the vector that Lanczos' method starts from.
    """
    alphas = network.arch_parameters()
    wanted, evaluation = [parameter.requires_grad for parameter in alphas], network.evaluation
    network.evaluation = "plain"
    for parameter in alphas:
        parameter.requires_grad_(True)
    try:
        product, size = hessian_product(lambda: cross_entropy(network(images), labels), alphas)
        start = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=alphas[0].dtype).to(alphas[0].device)
        return largest_eigenvalue(product, start)
    finally:
        network.evaluation = evaluation
        for parameter, on in zip(alphas, wanted, strict=True):
            parameter.requires_grad_(on)


def hessian_product(loss: Callable[[], Tensor], parameters: list[torch.nn.Parameter]) -> tuple[Callable[[Tensor], Tensor], int]:
    """A function from a flat vector to the Hessian of the loss times it, and the vector's length."""
    gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss(), parameters, create_graph=True)])

    def product(vector: Tensor) -> Tensor:
        found = torch.autograd.grad(gradient, parameters, vector, retain_graph=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in found])

    return product, len(gradient)


def largest_eigenvalue(product: Callable[[Tensor], Tensor], start: Tensor) -> float:
    """The largest (not the largest in size) eigenvalue of a symmetric matrix, from its products with vectors.

    Lanczos' method with every vector made orthogonal to all before, at most ITERATIONS of them: exact up to rounding for matrices
    no larger than that, else until the residual is below TOLERANCE.
    """
    basis = [start.double() / start.double().norm()]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    value = float("-inf")
    for _ in range(min(ITERATIONS, len(start))):
        image = product(basis[-1].to(start.dtype)).double()
        diagonal.append(image @ basis[-1])
        found = torch.stack(basis)
        for _ in range(2):  # once leaves rounding errors that grow
            image = image - found.t() @ (found @ image)
        small = torch.diag(torch.stack(diagonal))
        if beside:
            small = small + torch.diag(torch.stack(beside), 1) + torch.diag(torch.stack(beside), -1)
        values, vectors = torch.linalg.eigh(small)
        norm, value = image.norm(), values[-1].item()
        residual = (norm * vectors[-1, -1].abs()).item()  # of the eigenvector that the basis knows so far
        if residual <= TOLERANCE * abs(value):
            break
        beside.append(norm)
        basis.append(image / norm)
    return value
