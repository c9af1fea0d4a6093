"""Batch norms without affine parameters: the identities that spare their outputs.

1. A batch norm's backward from its output alone. With the normalised output y = (z - mean) rstd, the gradient of z is
   rstd (g - mean(g) - y mean(g y)). This is the backward of a norm whose input is y, with mean 0, deviation 1 and weight rstd,
   so z need not be in memory where y is anyway.

2. A 1x1 convolution followed by a batch norm and a weight needs none of its outputs in memory. With z = P d (d the input of the
   convolution, a row per pixel), the mean of z is P mean(d) and its covariance P cov(d) P', so the norm is the convolution with the
   weight `rstd * P` and the bias `-rstd * mean(z)`, known before it runs; and a weighted sum of such outputs is a sum of products
   with scaled weights. Backward needs of the gradient g only mean(g) and the cross covariance of g and d: both the gradient of P
   and that of the mixing weight follow from these small matrices, and the gradient of d is g A - d Q + c with small A, Q and c.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pdarts_tune.networks.cell_layout import channels_last, join, moments, rows


def moments_of_batch(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel. The library's own norm adds channels-last pixels up one by one, which loses two
    digits in single precision."""
    matrix = rows(images)
    mean = matrix.mean(0)
    return mean, torch.addcmul((matrix * matrix).mean(0), mean, mean, value=-1).clamp_min_(0)


def moments_of_running(norms: Sequence[nn.BatchNorm2d]) -> tuple[Tensor, Tensor]:
    """The running mean and variance of norms side by side."""
    return join([_buffer(norm.running_mean) for norm in norms]), join([_buffer(norm.running_var) for norm in norms])


def normalise(images: Tensor, mean: Tensor, var: Tensor, eps: float) -> Tensor:
    """(images - mean) / sqrt(var + eps), to the last bit the same every time."""
    return channels_last(torch.native_batch_norm(images, None, None, mean, var, False, 0.0, eps)[0])


def unit(channels: int) -> Tensor:
    """Zeros and ones: the mean and the deviation of what is normalised, (2, channels)."""
    return torch.stack([torch.zeros(channels), torch.ones(channels)])


def normalise_grad(grad: Tensor, normalised: Tensor, rstd: Tensor, unit: Tensor) -> Tensor:
    """Identity 1: the gradient of the images that `normalise` was given with their own moments.

    `unit` has as many channels or more.
    """
    zeros, ones = unit[:, : rstd.shape[0]]
    of_images, _, _ = torch.ops.aten.native_batch_norm_backward(
        grad, normalised, rstd, None, None, zeros, ones, True, 0.0, [True, False, False]
    )
    return channels_last(of_images)


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
    """Sums over the pixels of the inputs d of 1x1 convolutions. Add each as soon as it is computed, while it is in the cache."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []
        self._products: list[Tensor] = []

    def add(self, matrix: Tensor, count: int) -> None:
        """The inputs of `count` branches side by side."""
        self._sums.append(matrix.sum(0).view(count, -1))
        self._products.append(moments(matrix, matrix, count))

    def sums(self) -> Tensor:
        """Of d: (branches, channels)."""
        return join(self._sums)

    def products(self) -> Tensor:
        """Of d d': (branches, channels, channels)."""
        return join(self._products)


def norms_of_batch(weight: Tensor, found: Moments, pixels: int, eps: float) -> tuple[Norms, Tensor]:
    """Identity 2 with the statistics of the batch; and the variances (K, out). K convolutions may share a single input."""
    mean_in = (found.sums() / pixels).expand(weight.shape[0], -1)
    cov = torch.baddbmm(found.products(), mean_in.unsqueeze(2), mean_in.unsqueeze(1), beta=1 / pixels, alpha=-1)
    weighted_cov = torch.bmm(weight, cov)
    mean = torch.bmm(weight, mean_in.unsqueeze(2)).squeeze(2)
    var = (weighted_cov * weight).sum(2).clamp_min_(0)
    return Norms(weight, mean, (var + eps).rsqrt_(), mean_in, weighted_cov), var


def scaled(norms: Norms, mixing: Tensor) -> tuple[Tensor, Tensor]:
    """The 1x1 convolution that includes norm and mixing: the weight (K, out, in), and what it needs subtracted (K, out)."""
    scale = norms.rstd * mixing.unsqueeze(1)
    return norms.weight * scale.unsqueeze(2), norms.mean * scale


def scaled_grads(norms: Norms, mixing: Tensor, grad_sums: Tensor, products: Tensor, pixels: int) -> NormGrads:
    """Backward of identity 2, from the sums over the pixels of g, (K, out), and of g d', (K, out, in)."""
    scale = (norms.rstd * mixing.unsqueeze(1)).unsqueeze(2)
    from_grad = norms.weight * scale
    if norms.mean_in is None or norms.weighted_cov is None:
        correlation = norms.rstd * ((products * norms.weight).sum(2) - norms.mean * grad_sums)
        return NormGrads(products * scale, correlation.sum(1), from_grad, None, None)
    products = torch.baddbmm(products, grad_sums.unsqueeze(2), norms.mean_in.unsqueeze(1), alpha=-1)  # now centred
    correlation = norms.rstd * (products * norms.weight).sum(2)  # of g and the normalised output, times the pixels
    share = (norms.rstd * correlation).unsqueeze(2)
    weight = torch.addcmul(products, norms.weighted_cov, share, value=-1).mul_(scale)
    from_input = torch.baddbmm(share[:, :1], from_grad.mT, norms.weight * share, beta=0, alpha=-1 / pixels)
    offset = torch.bmm(norms.mean_in.unsqueeze(1), from_input)
    constant = offset.baddbmm_(grad_sums.unsqueeze(1), from_grad, beta=-1, alpha=-1 / pixels).squeeze(1)
    return NormGrads(weight, correlation.sum(1), from_grad, from_input, constant)


class Statistics:
    """The batch norms of one forward pass: where their statistics come from, and go to."""

    def __init__(self, training: bool, pixels: int) -> None:
        if training and pixels < 2:
            raise ValueError("batch norm: a single pixel has no variance, train with larger images or batches")
        self.training, self.pixels = training, pixels
        self._norms: list[nn.BatchNorm2d] = []
        self._means: list[Tensor] = []
        self._variances: list[Tensor] = []

    def record(self, norms: Sequence[nn.BatchNorm2d], means: Tensor, variances: Tensor) -> None:
        """Notes the batch statistics of norms: (norms, channels), or (channels,) if they share them. Variances are biased."""
        self._norms.extend(norms)
        self._means.append(means.expand(len(norms), -1))
        self._variances.append(variances.expand(len(norms), -1))

    def update_running(self) -> None:
        """Moves the running statistics towards what was recorded, as the modules themselves would: variances are unbiased."""
        if not self._norms:
            return
        momentum = self._norms[0].momentum
        assert momentum is not None
        variances = join(self._variances) * (self.pixels / (self.pixels - 1))
        means = [mean for part in self._means for mean in part.unbind()]
        torch._foreach_lerp_([_buffer(norm.running_mean) for norm in self._norms], means, momentum)
        torch._foreach_lerp_([_buffer(norm.running_var) for norm in self._norms], list(variances.unbind()), momentum)
        torch._foreach_add_([_buffer(norm.num_batches_tracked) for norm in self._norms], 1)


def running_statistics(norms: Sequence[nn.BatchNorm2d]) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation, (norms, channels)."""
    mean, var = (values.view(len(norms), -1) for values in moments_of_running(norms))
    return mean, (var + norms[0].eps).rsqrt()


def _buffer(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
