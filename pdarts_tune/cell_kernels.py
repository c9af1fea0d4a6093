"""The identities that the fast evaluation of a cell rests on, as pure functions of tensors.

Images are (batch, channels, height, width) in channels-last memory, so that `rows` sees the same memory as a matrix with a row
per pixel and 1x1 convolutions are matrix products. Three identities:

1. A depthwise convolution's gradients are depthwise *forward* convolutions. For the input: of the gradient with the flipped
   kernel. For the weight: of the input with the gradient as the kernel, each image of the batch a channel of its own; stride and
   dilation change roles. Forward kernels are the ones that libraries tune.

2. A 1x1 convolution followed by a batch norm needs no normalised output in memory. With z = P d (d the input of the convolution,
   a row per pixel), the mean of z is P mean(d) and its covariance P cov(d) P', so the norm is the convolution with the weight
   `rstd * P` and the bias `-rstd * mean(z)`, known before it runs; and a weighted sum of such outputs is a sum of products with
   scaled weights. Backward needs of the gradient g only mean(g) and the cross covariance of g and d: both the gradient of P and
   that of the mixing weight follow from these small matrices, and the gradient of d is g A - d Q + c with small A, Q and c.

3. A batch norm without convolution is the same with a diagonal P, i.e. with vectors instead of matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.nn.grad import conv2d_weight

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


def add_scaled(total: Tensor | None, matrix: Tensor, scale: Tensor, width: int) -> Tensor:
    """total + matrix * scale, in place if there is a total; `scale` has an entry per column.

    Elementwise kernels want long rows, so `width` pixels are taken as one row and the scale is repeated.
    """
    long, scale = matrix.view(-1, width * matrix.shape[1]), scale.repeat(width)
    if total is None:
        return (long * scale).view_as(matrix)
    total.view_as(long).addcmul_(long, scale)
    return total


def add_row(matrix: Tensor, row: Tensor, width: int) -> Tensor:
    """Adds the row to every row of the matrix, in place."""
    matrix.view(-1, width * matrix.shape[1]).add_(row.repeat(width))
    return matrix


# ---------------------------------------------------------------------------------------------------- depthwise convolutions


def depthwise(x: Tensor, weight: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    """Depthwise convolution that keeps the image size (divided by the stride)."""
    padding = dilation * (weight.shape[-1] // 2)
    return channels_last(F.conv2d(x, weight, None, stride, padding, dilation, weight.shape[0]))


def depthwise_input_grad(grad: Tensor, weight: Tensor, size: torch.Size, stride: int = 1, dilation: int = 1) -> Tensor:
    """The gradient of the input, whose height and width end `size`."""
    if stride == 1:
        return depthwise(grad, weight.flip(2, 3), 1, dilation)
    padding = dilation * (weight.shape[-1] // 2)
    reached = [(n - 1) * stride + 1 for n in grad.shape[-2:]]  # pixels of the input between the first and last window centre
    beyond = [size[-2] - reached[0], size[-1] - reached[1]]
    return channels_last(F.conv_transpose2d(grad, weight, None, stride, padding, beyond, weight.shape[0], dilation))


def depthwise_weight_grad(x: Tensor, grad: Tensor, kernel: int, stride: int = 1, dilation: int = 1) -> Tensor:
    """The gradient of the weight, (channels, 1, kernel, kernel)."""
    batch, channels, height, width = x.shape
    padding = dilation * (kernel // 2)
    if kernel == 3 and dilation == 1:  # small kernels have a tuned backward
        return conv2d_weight(x, (channels, 1, kernel, kernel), grad, stride, padding, dilation, channels)
    groups = batch * channels
    image = x.contiguous().view(1, groups, height, width)
    window = grad.contiguous().view(groups, 1, *grad.shape[-2:])
    taps = F.conv2d(image, window, None, stride=dilation, padding=padding, dilation=stride, groups=groups)
    return taps[..., :kernel, :kernel].reshape(batch, channels, 1, kernel, kernel).sum(0)


def box_filter(images: Tensor, stride: int) -> Tensor:
    """The sum of the 3x3 pixels around each pixel."""
    ones = images.new_ones(images.shape[1], 1, 3, 3)
    return depthwise(images, ones, stride)


def box_filter_grad(grad: Tensor, size: torch.Size, stride: int) -> Tensor:
    ones = grad.new_ones(grad.shape[1], 1, 3, 3)
    return depthwise_input_grad(grad, ones, size, stride)


# ------------------------------------------------------------------------------------------------- normalised 1x1 convolutions


@dataclass
class Norms:
    """K batch norms, each behind a 1x1 convolution P: the normalised output is rstd * (P d - mean).

    With batch statistics (training) `mean_in` and `weighted_cov` = P cov(d) are kept for backward; with running statistics they
    are None, and mean and rstd are constants.
    """

    weight: Tensor  # P: (K, out, in)
    mean: Tensor  # (K, out)
    rstd: Tensor  # (K, out)
    mean_in: Tensor | None  # (K, in)
    weighted_cov: Tensor | None  # (K, out, in)


@dataclass
class NormGrads:
    """What the gradients g of K weighted outputs w * norm(P d) turn into."""

    weight: Tensor  # of P
    mixing: Tensor  # of w, (K,)
    from_grad: Tensor  # A: (K, out, in)
    from_input: Tensor | None  # Q: (K, in, in)
    constant: Tensor | None  # c: (K, in)


def moments(inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean (K, in) and covariance (K, in, in) of the columns of K matrices."""
    pixels, width = inputs[0].shape
    mean = inputs[0].new_empty(len(inputs), width)
    products = inputs[0].new_empty(len(inputs), width, width)
    for index, matrix in enumerate(inputs):
        torch.sum(matrix, 0, out=mean[index])
        torch.mm(matrix.t(), matrix, out=products[index])
    mean /= pixels
    cov = products.div_(pixels).baddbmm_(mean.unsqueeze(2), mean.unsqueeze(1), alpha=-1)
    return mean, cov


def normalise_with_batch(weight: Tensor, mean_in: Tensor, cov: Tensor, eps: float) -> tuple[Norms, Tensor]:
    """Identity 2 with batch statistics. Also returns the variances (K, out), which running statistics need."""
    mean = (weight @ mean_in.unsqueeze(2)).squeeze(2)
    weighted_cov = weight @ cov
    var = (weighted_cov * weight).sum(2).clamp_min_(0)
    return Norms(weight, mean, (var + eps).rsqrt_(), mean_in, weighted_cov), var


def normalised_weight(norms: Norms) -> tuple[Tensor, Tensor]:
    """The 1x1 convolution that includes the norm: weight (K, out, in) and bias (K, out)."""
    return norms.weight * norms.rstd.unsqueeze(2), -norms.rstd * norms.mean


def normalise_grads(norms: Norms, mixing: Tensor | None, mean_grad: Tensor, products: Tensor, pixels: int) -> NormGrads:
    """Backward of identity 2.

    `mixing` is w, (K,), or None for ones; `mean_grad` the mean of g over the pixels, (K, out); `products` the sum over the pixels
    of g d', (K, out, in).
    """
    scale = norms.rstd if mixing is None else norms.rstd * mixing.unsqueeze(1)
    products = products / pixels
    if norms.mean_in is None or norms.weighted_cov is None:
        correlation = norms.rstd * ((products * norms.weight).sum(2) - norms.mean * mean_grad)
        weight = products * (pixels * scale).unsqueeze(2)
        from_grad = norms.weight * scale.unsqueeze(2)
        return NormGrads(weight, correlation.sum(1) * pixels, from_grad, None, None)
    products = torch.baddbmm(products, mean_grad.unsqueeze(2), norms.mean_in.unsqueeze(1), alpha=-1)  # now centred
    correlation = norms.rstd * (products * norms.weight).sum(2)  # of g and the normalised output
    share = norms.rstd * correlation
    weight = torch.addcmul(products, norms.weighted_cov, share.unsqueeze(2), value=-1) * (pixels * scale).unsqueeze(2)
    from_grad = norms.weight * scale.unsqueeze(2)
    from_input = norms.weight.transpose(1, 2) @ (norms.weight * (scale * share).unsqueeze(2))
    constant = (norms.mean_in.unsqueeze(1) @ from_input - mean_grad.unsqueeze(1) @ from_grad).squeeze(1)
    return NormGrads(weight, correlation.sum(1) * pixels, from_grad, from_input, constant)


def input_grad(grads: NormGrads, index: int, grad: Tensor, matrix: Tensor) -> Tensor:
    """The gradient of the input of the convolution: g A - d Q + c."""
    if grads.from_input is None or grads.constant is None:
        return grad @ grads.from_grad[index]
    out = torch.addmm(grads.constant[index], grad, grads.from_grad[index])
    return out.addmm_(matrix, grads.from_input[index], alpha=-1)
