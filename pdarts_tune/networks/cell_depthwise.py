"""Depthwise convolutions of channels-last images, and their gradients by the kernels that libraries tune.

- The gradient of the input is a depthwise *forward* convolution, of the gradient with the flipped kernel.
- The gradient of a 3x3 weight has a tuned kernel, and so has any weight of three columns. Columns of a weight have gradients of
  their own, so a 5x5 weight is two of 5x3 that overlap in the middle column. Both read the same memory: pixels in rows that have
  two zeros between them, from two offsets, the second one two pixels after the first.
- A convolution of dilation 2 is an ordinary convolution on each of the four pixel phases (even or odd row, even or odd column).
  As the weight is the same for all, the phases are four times as many images.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from pdarts_tune.networks.cell_layout import channels_last, rows


def depthwise(x: Tensor, weight: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    """Depthwise convolution that keeps the image size (divided by the stride)."""
    weight = within(weight, x.shape, dilation)
    padding = dilation * (weight.shape[-1] // 2)
    return channels_last(F.conv2d(x, weight, None, stride, padding, dilation, weight.shape[0]))


def depthwise_input_grad(grad: Tensor, weight: Tensor, shape: torch.Size, stride: int = 1, dilation: int = 1) -> Tensor:
    """The gradient of the input, whose shape is `shape`."""
    if stride == 1:
        return depthwise(grad, weight.flip(2, 3), 1, dilation)
    weight = within(weight, shape, dilation)
    padding = dilation * (weight.shape[-1] // 2)
    reached = [(n - 1) * stride + 1 for n in grad.shape[-2:]]  # pixels of the input between the first and last window centre
    beyond = [shape[-2] - reached[0], shape[-1] - reached[1]]
    return channels_last(F.conv_transpose2d(grad, weight, None, stride, padding, beyond, weight.shape[0], dilation))


Scratch = dict[tuple[str, torch.Size], Tensor]  # memory to use again, by purpose and shape


class Reading:
    """An image that depthwise convolutions have read, or its ReLU: what the gradients of their weights need of it.

    `scratch` keeps the memory of images with a border of zeros, so that the border is written once; one reading for each purpose
    is in use at a time.
    """

    def __init__(self, source: Tensor, scratch: Scratch, purpose: str, relu: bool = False) -> None:
        self.source, self.scratch, self.purpose, self.relu = source, scratch, purpose, relu

    def weight_grad(self, grad: Tensor, kernel: int, stride: int = 1, dilation: int = 1) -> Tensor:
        """The gradient of the weight, (channels, 1, kernel, kernel). Kernels are 3 or 5; dilation 2 comes with stride 1."""
        if dilation == 2:
            return self.phases.weight_grad(phases(grad), kernel)
        if kernel == 3:
            return tuned_weight_grad(self.image, grad, (3, 3), stride, 1)
        left, right = (tuned_weight_grad(part, grad, (5, 3), stride, 0) for part in self.column_triples)
        return torch.cat([left, right[..., 1:]], dim=3)

    @cached_property
    def image(self) -> Tensor:
        return self.source.relu() if self.relu else self.source

    @cached_property
    def column_triples(self) -> tuple[Tensor, Tensor]:
        """The image as the first three and as the last three columns of a 5x5 weight read it, its border of zeros included."""
        batch, channels, height, width = self.source.shape
        height, width = height + 4, width + 2
        pixels = batch * height * width
        key = self.purpose, self.source.shape
        if key not in self.scratch:
            self.scratch[key] = self.source.new_zeros(pixels + 2, channels)
        matrix = self.scratch[key]
        inside = matrix[:pixels].view(batch, height, width, channels)[:, 2:-2, 2:].permute(0, 3, 1, 2)
        if self.relu:
            torch.clamp_min(self.source, 0, out=inside)
        else:
            inside.copy_(self.source)
        first, last = (part.view(batch, height, width, channels).permute(0, 3, 1, 2) for part in (matrix[:pixels], matrix[2:]))
        return first, last

    @cached_property
    def phases(self) -> Reading:
        return Reading(phases(self.image), self.scratch, self.purpose)


def tuned_weight_grad(image: Tensor, grad: Tensor, kernel: tuple[int, int], stride: int, padding: int) -> Tensor:
    """The gradient of a depthwise weight, (channels, 1, *kernel), by the library's own kernel."""
    channels = grad.shape[1]
    like = grad.new_empty(1).expand(channels, 1, *kernel)  # its shape alone is looked at
    _, of_weight, _ = torch.ops.aten.convolution_backward(
        grad, image, like, None, (stride,) * 2, (padding,) * 2, (1, 1), False, (0, 0), channels, (False, True, False)
    )
    return of_weight


def phases(images: Tensor) -> Tensor:
    """(batch, channels, height, width) to (4 batch, channels, height / 2, width / 2); odd sizes get a row, a column of zeros."""
    batch, channels, height, width = images.shape
    if height % 2 or width % 2:
        images = channels_last(F.pad(images, (0, width % 2, 0, height % 2)))
    high, wide = -(-height // 2), -(-width // 2)
    parts = rows(images).view(batch, high, 2, wide, 2, channels).permute(2, 4, 0, 1, 3, 5)
    return parts.reshape(4 * batch, high, wide, channels).permute(0, 3, 1, 2)


def within(weight: Tensor, shape: torch.Size, dilation: int) -> Tensor:
    """The taps that can meet pixels: those beyond meet the padding only. Libraries are slow where a kernel exceeds the image."""
    reach = min(weight.shape[-1] // 2, (max(shape[-2:]) - 1) // dilation)
    border = weight.shape[-1] // 2 - reach
    return weight[..., border : weight.shape[-1] - border, border : weight.shape[-1] - border] if border else weight
