"""The identities that the fast evaluation of a cell rests on, as pure functions of tensors.

Images are (batch, channels, height, width) in channels-last memory, so that `rows` sees the same memory as a matrix with a row
per pixel and 1x1 convolutions are matrix products. `cell_depthwise` has the depthwise convolutions. Two identities:

1. A 1x1 convolution followed by a batch norm needs no normalised output in memory. With z = P d (d the input of the convolution,
   a row per pixel), the mean of z is P mean(d) and its covariance P cov(d) P', so the norm is the convolution with the weight
   `rstd * P` and the bias `-rstd * mean(z)`, known before it runs; and a weighted sum of such outputs is a sum of products with
   scaled weights. Backward needs of the gradient g only mean(g) and the cross covariance of g and d: both the gradient of P and
   that of the mixing weight follow from these small matrices, and the gradient of d is g A - d Q + c with small A, Q and c.

2. A batch norm without convolution is the same with a diagonal P, i.e. with vectors instead of matrices.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

# ------------------------------------------------------------------------------------------------------------- memory layout


def rows(images: Tensor) -> Tensor:
    """A row per pixel: (batch * height * width, channels). A view if the images are channels-last."""
    return images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])


def as_images(matrix: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `rows`: a channels-last view with the batch, height and width of `shape`."""
    batch, _, height, width = shape
    return matrix.view(batch, height, width, -1).permute(0, 3, 1, 2)


def channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def add_scaled(total: Tensor | None, matrix: Tensor, scale: Tensor) -> Tensor:
    """total + matrix * scale, in place if there is a total.

    `scale` has an entry per column, repeated for as many rows as one likes: elementwise kernels want long rows.
    """
    long = matrix.view(-1, scale.shape[0])
    if total is None:
        return (long * scale).view_as(matrix)
    total.view_as(long).addcmul_(long, scale)
    return total


def add_row(matrix: Tensor, row: Tensor, width: int) -> Tensor:
    """Adds the row to every row of the matrix, in place."""
    matrix.view(-1, width * matrix.shape[1]).add_(row.repeat(width))
    return matrix


# ------------------------------------------------------------------------------------------------- normalised 1x1 convolutions


class Norms(NamedTuple):
    """K batch norms, each behind a 1x1 convolution P: the normalised output is rstd * (P d - mean).

    With batch statistics (training) `mean_in` and `weighted_cov` = P cov(d) are kept for backward; with running statistics they
    are None, and mean and rstd are constants.
    """

    weight: Tensor  # P: (K, out, in)
    mean: Tensor  # (K, out)
    rstd: Tensor  # (K, out)
    mean_in: Tensor | None  # (K, in)
    weighted_cov: Tensor | None  # (K, out, in)

    @classmethod
    def take(cls, tensors: Iterator[Any]) -> Norms:
        """Reads one from a flat list."""
        return cls(*itertools.islice(tensors, len(cls._fields)))


class NormGrads(NamedTuple):
    """What the gradients g of K weighted outputs w * norm(P d) turn into."""

    weight: Tensor  # of P
    mixing: Tensor  # of w, (K,)
    from_grad: Tensor  # A: (K, out, in)
    from_input: Tensor | None  # -Q: (K, in, in)
    constant: Tensor | None  # c: (K, in)


class Moments:
    """Of K branches, side by side in chunks: the column sums of each chunk, and its products with another.

    Add a chunk as soon as it is computed, while it is in the processor's cache.
    """

    def __init__(self) -> None:
        self._sums: list[Tensor] = []
        self._products: list[Tensor] = []

    def add(self, matrix: Tensor, other: Tensor, count: int) -> None:
        self._sums.append(matrix.sum(0).view(count, -1))
        self._products.append(diagonal_blocks(matrix.t() @ other, count))

    def sums(self) -> Tensor:
        """(K, channels)"""
        return torch.cat(self._sums)

    def products(self) -> Tensor:
        """(K, channels, channels)"""
        return torch.cat(self._products)


def normalise_with_batch(weight: Tensor, sums: Tensor, products: Tensor, pixels: int, eps: float) -> tuple[Norms, Tensor]:
    """Identity 1 with batch statistics. Also returns the variances (K, out), which running statistics need."""
    mean_in = sums / pixels
    cov = torch.baddbmm(products, mean_in.unsqueeze(2), mean_in.unsqueeze(1), beta=1 / pixels, alpha=-1)
    weighted_cov = weight @ cov
    mean = (weight @ mean_in.unsqueeze(2)).squeeze(2)
    var = (weighted_cov * weight).sum(2).clamp_min_(0)
    return Norms(weight, mean, (var + eps).rsqrt_(), mean_in, weighted_cov), var


def scaled(norms: Norms, mixing: Tensor | None) -> tuple[Tensor, Tensor]:
    """The 1x1 convolution that includes norm and mixing: the weight (K, out, in), and what it needs subtracted (K, out)."""
    scale = norms.rstd if mixing is None else norms.rstd * mixing.unsqueeze(1)
    return norms.weight * scale.unsqueeze(2), norms.mean * scale


def normalise_grads(norms: Norms, mixing: Tensor | None, grad_sums: Tensor, products: Tensor, pixels: int) -> NormGrads:
    """Backward of identity 1.

    `mixing` is w, (K,), or None for ones; `grad_sums` the sum of g over the pixels, (K, out); `products` that of g d',
    (K, out, in).
    """
    scale = (norms.rstd if mixing is None else norms.rstd * mixing.unsqueeze(1)).unsqueeze(2)
    from_grad = norms.weight * scale
    if norms.mean_in is None or norms.weighted_cov is None:
        correlation = norms.rstd * ((products * norms.weight).sum(2) - norms.mean * grad_sums)
        return NormGrads(products * scale, correlation.sum(1), from_grad, None, None)
    products = torch.baddbmm(products, grad_sums.unsqueeze(2), norms.mean_in.unsqueeze(1), alpha=-1)  # now centred
    correlation = norms.rstd * (products * norms.weight).sum(2)  # of g and the normalised output, times the pixels
    share = (norms.rstd * correlation).unsqueeze(2)
    weight = torch.addcmul(products, norms.weighted_cov, share, value=-1).mul_(scale)
    from_input = from_grad.transpose(1, 2) @ (norms.weight * (share / -pixels))
    offset = norms.mean_in.unsqueeze(1) @ from_input
    constant = offset.baddbmm_(grad_sums.unsqueeze(1), from_grad, alpha=1 / pixels).neg_().squeeze(1)
    return NormGrads(weight, correlation.sum(1), from_grad, from_input, constant)


# -------------------------------------------------------------------------------------------------- branches side by side
# The columns of several branches make one wide matrix, a chunk. Their 1x1 convolutions are then one with a block-diagonal weight:
# more arithmetic, fewer operations, so it pays for small images. A chunk of one branch is nothing special.


def block_diagonal(weights: Tensor) -> Tensor:
    """(K, out, in) to (K out, K in)."""
    count, out, width = weights.shape
    if count == 1:
        return weights[0]
    return torch.diag_embed(weights.permute(1, 2, 0), dim1=0, dim2=2).reshape(count * out, count * width)


def diagonal_blocks(matrix: Tensor, count: int) -> Tensor:
    """(K out, K in) to (K, out, in)."""
    if count == 1:
        return matrix.unsqueeze(0)
    out, width = matrix.shape[0] // count, matrix.shape[1] // count
    return matrix.view(count, out, count, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def repeat_channels(images: Tensor, count: int) -> Tensor:
    """The images `count` times side by side: a product with unit matrices, which is faster than a strided copy."""
    if count == 1:
        return images
    return as_images(rows(images) @ unit_matrices(images, count), images.shape)


def sum_channels(images: Tensor, count: int) -> Tensor:
    """The sum of `count` images side by side."""
    if count == 1:
        return images
    return as_images(rows(images) @ unit_matrices(images, count, images.shape[1] // count).t(), images.shape)


def unit_matrices(like: Tensor, count: int, size: int | None = None) -> Tensor:
    unit = torch.eye(like.shape[1] if size is None else size, dtype=like.dtype, device=like.device)
    return unit.repeat(1, count)


def side_by_side(weights: Sequence[Tensor]) -> Tensor:
    """Depthwise kernels as one. A smaller kernel is a larger one with a border of zeros."""
    if len(weights) == 1:
        return weights[0]
    largest = max(weight.shape[-1] for weight in weights)
    return torch.cat([F.pad(weight, ((largest - weight.shape[-1]) // 2,) * 4) for weight in weights])


def apart(grad: Tensor, kernels: Sequence[int]) -> list[Tensor]:
    """The inverse of `side_by_side`, of gradients."""
    cropped = []
    for part, kernel in zip(grad.chunk(len(kernels)), kernels, strict=True):
        border = (grad.shape[-1] - kernel) // 2
        cropped.append(part[..., border : border + kernel, border : border + kernel])
    return cropped
