"""DARTS' second order: the gradient of the alphas through one unrolled step of the weights (Liu et al., 2019, section 2.3).

Both functions take losses as functions without arguments, so that they know nothing of networks. A loss must be the same function
at each call (same images, same dropout masks): a finite difference of two different draws would be noise over a small number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Loss = Callable[[], Tensor]


def mixed_product(
    loss: Loss, weights: Sequence[nn.Parameter], alphas: Sequence[nn.Parameter], vector: Sequence[Tensor], distance: float
) -> list[Tensor]:
    """The second derivative of the loss by alphas and weights, times a vector shaped like the weights (equation 8).

    A central difference of the alphas' gradient: weights are moved by `distance` to either side along the vector, and put back to
    the very bits. Only first derivatives are taken, so any evaluation of the network will do. Returns a tensor for each of the
    alphas.

    On smooth networks it is within 1e-4 of the exact product at the paper's distance, 0.01. A search network is not smooth: at each
    ReLU whose sign changes on the way, the alphas' gradient jumps, and of jumps the exact product at a point knows nothing. On new
    networks of the laptop preset (8 operations, batch 64) the two have a cosine of 0.3 at 0.01 and are four to five times the
    product's norm apart; a smaller distance divides fewer jumps by a smaller number and is further off, in float64 as well.
    """
    saved = [weight.detach().clone() for weight in weights]
    norm = torch.stack([part.norm() for part in vector]).norm()
    # A vector of zeros has the product zero; the smallest positive number keeps 0 / 0 out of it.
    step = distance / norm.clamp_min(torch.finfo(norm.dtype).tiny)
    sides = []
    for sign in (1, -1):
        _assign(weights, [weight + sign * step * part for weight, part in zip(saved, vector, strict=True)])
        sides.append(torch.autograd.grad(loss(), list(alphas)))
    _assign(weights, saved)
    return [(above - below) / (2 * step) for above, below in zip(*sides, strict=True)]


def unrolled_gradient(
    train_loss: Loss,
    validation_loss: Loss,
    weights: Sequence[nn.Parameter],
    alphas: Sequence[nn.Parameter],
    update: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    learning_rate: float,
    distance: float,
) -> list[Tensor]:
    """The alphas' gradient of the validation loss at the weights that one training step would lead to (equation 7).

    Args:
        update: what the weights' optimizer makes of a gradient before it multiplies by the learning rate (momentum, weight
            decay), a tensor for each weight.
        learning_rate: the step of the weights, xi in the paper.
        distance: see `mixed_product`.

    Returns:
        A tensor for each of the alphas. The weights are as before.
    """
    saved = [weight.detach().clone() for weight in weights]
    steps = update(torch.autograd.grad(train_loss(), list(weights)))
    _assign(weights, [weight - learning_rate * step for weight, step in zip(saved, steps, strict=True)])
    gradients = torch.autograd.grad(validation_loss(), [*alphas, *weights])
    at_alphas, at_weights = gradients[: len(alphas)], gradients[len(alphas) :]
    _assign(weights, saved)
    products = mixed_product(train_loss, weights, alphas, at_weights, distance)
    return [direct - learning_rate * product for direct, product in zip(at_alphas, products, strict=True)]


def _assign(weights: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for weight, value in zip(weights, values, strict=True):
            weight.copy_(value)


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Passes in training mode that leave the batch norms' running statistics and counters as they are."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter
