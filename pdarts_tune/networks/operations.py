"""The candidate operations, one module each: those of DARTS (Liu et al., 2019, section 3.1.1).

Convolutions are ReLU, convolution, batch norm. With `affine=False` an operation is for the search network: batch norms have no
scale and shift, which would compete with the mixing weights. A batch norm follows pools too, so every candidate but `none` and the
identity enters the weighted sum at unit variance. With `affine=True` it is for the evaluation network: batch norms have scale and
shift, pools are bare.

Every operation maps (batch, channels, height, width) to (batch, channels, ceil(height / stride), ceil(width / stride)).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (the name that every PyTorch user knows)


class Zero(nn.Module):
    """`none`: no connection. It takes probability from the other candidates and adds nothing."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.stride, :: self.stride] * 0


class PoolBN(nn.Module):
    """3x3 max or average pool, then a batch norm without scale and shift. Averages count pixels inside the image only."""

    def __init__(self, kind: str, channels: int, stride: int) -> None:
        super().__init__()
        self.pool = _pool(kind, stride)
        self.bn = nn.BatchNorm2d(channels, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.pool(x))


class ReLUConvBN(nn.Module):
    """ReLU, 1x1 convolution, batch norm: brings the output of an earlier cell to the width of a cell."""

    def __init__(self, in_channels: int, out_channels: int, affine: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(F.relu(x)))


class FactorizedReduce(nn.Module):
    """Halves the image: two 1x1 convolutions of stride 2, the second one a pixel further down and right.

    In an image of odd size the second one reads zeros beyond the last row and column.

    Raises:
        ValueError: an odd number of output channels.
    """

    def __init__(self, in_channels: int, out_channels: int, affine: bool) -> None:
        super().__init__()
        if out_channels % 2:
            raise ValueError(f"out_channels: {out_channels} is odd, a factorized reduction joins two halves of equal width")
        self.conv1 = nn.Conv2d(in_channels, out_channels // 2, 1, stride=2, bias=False)
        self.conv2 = nn.Conv2d(in_channels, out_channels // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        return self.bn(torch.cat([_halve(self.conv1, x), _halve(self.conv2, shift(x))], dim=1))


def _halve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution of stride 2. On a CPU channels-last images are subsampled first.

    There oneDNN's kernel (torch 2.14.1), with fewer than 8 channels and without AVX-512, writes past its memory in backward.
    """
    if x.device.type == "cpu" and x.stride(1) == 1:
        return F.conv2d(x[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last), conv.weight)
    return conv(x)


class SepConv(nn.Module):
    """Two depthwise-separable convolutions in a row; the first one has the stride."""

    def __init__(self, channels: int, kernel: int, stride: int, affine: bool) -> None:
        super().__init__()
        self.depthwise1 = _depthwise(channels, kernel, stride)
        self.pointwise1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels, affine=affine)
        self.depthwise2 = _depthwise(channels, kernel, 1)
        self.pointwise2 = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.pointwise1(self.depthwise1(F.relu(x))))
        return self.bn2(self.pointwise2(self.depthwise2(F.relu(x))))


class DilConv(nn.Module):
    """A depthwise-separable convolution whose kernel reads every second pixel."""

    def __init__(self, channels: int, kernel: int, stride: int, affine: bool) -> None:
        super().__init__()
        self.depthwise = _depthwise(channels, kernel, stride, dilation=2)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.pointwise(self.depthwise(F.relu(x))))


class Conv7x1And1x7(nn.Module):
    """A factorized 7x7 convolution: 1x7, then 7x1, across all channels (AmoebaNet's cells have it)."""

    def __init__(self, channels: int, stride: int, affine: bool) -> None:
        super().__init__()
        self.horizontal = nn.Conv2d(channels, channels, (1, 7), stride=(1, stride), padding=(0, 3), bias=False)
        self.vertical = nn.Conv2d(channels, channels, (7, 1), stride=(stride, 1), padding=(3, 0), bias=False)
        self.bn = nn.BatchNorm2d(channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.vertical(self.horizontal(F.relu(x))))


def shift(x: Tensor) -> Tensor:
    """Moves the image one pixel up and left, so that even positions hold the odd pixels; zeros beyond an odd size."""
    height, width = x.shape[-2:]
    x = x[:, :, 1:, 1:]
    return F.pad(x, (0, width % 2, 0, height % 2)) if height % 2 or width % 2 else x


def _depthwise(channels: int, kernel: int, stride: int, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    return nn.Conv2d(channels, channels, kernel, stride=stride, padding=padding, dilation=dilation, groups=channels, bias=False)


def _pool(kind: str, stride: int) -> nn.Module:
    if kind == "max":
        return nn.MaxPool2d(3, stride=stride, padding=1)
    return nn.AvgPool2d(3, stride=stride, padding=1, count_include_pad=False)


# From PRIMITIVES names to (channels, stride, affine) -> module.
OPERATIONS: Mapping[str, Callable[[int, int, bool], nn.Module]] = {
    "none": lambda channels, stride, affine: Zero(stride),  # noqa: ARG005
    "max_pool_3x3": lambda channels, stride, affine: _pool("max", stride) if affine else PoolBN("max", channels, stride),
    "avg_pool_3x3": lambda channels, stride, affine: _pool("avg", stride) if affine else PoolBN("avg", channels, stride),
    "skip_connect": lambda channels, stride, affine: nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine),
    "sep_conv_3x3": lambda channels, stride, affine: SepConv(channels, 3, stride, affine),
    "sep_conv_5x5": lambda channels, stride, affine: SepConv(channels, 5, stride, affine),
    "dil_conv_3x3": lambda channels, stride, affine: DilConv(channels, 3, stride, affine),
    "dil_conv_5x5": lambda channels, stride, affine: DilConv(channels, 5, stride, affine),
}

# Operations of published cells outside the search space (see `pdarts/genotype.py`), for evaluation networks alone.
FURTHER_OPERATIONS: Mapping[str, Callable[[int, int, bool], nn.Module]] = {
    "sep_conv_7x7": lambda channels, stride, affine: SepConv(channels, 7, stride, affine),
    "conv_7x1_1x7": lambda channels, stride, affine: Conv7x1And1x7(channels, stride, affine),
}


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Passes in training mode leave the batch norms' running statistics and counters as they are."""
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
