"""ReLU, 1x1 convolution, norm: what a cell preprocesses the outputs of the cells before with."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pdarts_tune.networks.cell_layout import as_images, channels_last, rows
from pdarts_tune.networks.cell_norms import Statistics, moments_of_batch, moments_of_running, normalise, normalise_grad


class AdaptFunction(torch.autograd.Function):
    """From the nodes of a cell, (nodes, batch, height, width, channels), to a state of a later one, as channels-last images.

    Nodes stand for their concatenation along the channels. The norm's output is a state, so it is in memory anyway, and is all
    that the norm's backward needs. A factorized reduction is two such convolutions, of the even and of the odd pixels; their
    outputs side by side share the norm.
    """

    @staticmethod
    def forward(ctx: Any, norm: nn.BatchNorm2d, unit: Tensor, training: bool, nodes: Tensor, *weights: Tensor) -> Tensor:
        halves = len(weights)
        _, batch, height, width, channels = nodes.shape
        shape = torch.Size((batch, channels, -(-height // halves), -(-width // halves)))
        parts = [
            torch.addbmm(unit[0, :1], read, blocks(weight, nodes).mT, beta=0)
            for read, weight in zip(read_pixels(nodes, halves), weights, strict=True)
        ]
        out = as_images(parts[0] if halves == 1 else torch.cat(parts, dim=1), shape)
        statistics = Statistics(training, len(rows(out)))
        if training:
            mean, var = moments_of_batch(out)
            statistics.record([norm], mean, var)
            statistics.update_running()
        else:
            mean, var = moments_of_running([norm])
        state, rstd = normalise(out, mean, var, norm.eps), (var + norm.eps).rsqrt_()
        ctx.save_for_backward(state, rstd, nodes, *weights)
        ctx.training, ctx.unit = training, unit
        return state

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        with full_precision(grad.device):
            return AdaptFunction._backward(ctx, channels_last(grad))

    @staticmethod
    def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        state, rstd, nodes, *weights = ctx.saved_tensors
        halves = len(weights)
        if ctx.training:
            of_out = rows(normalise_grad(grad, state, rstd, ctx.unit))
        else:
            of_out = rows(grad) * rstd
        of_weights, of_reads = [], []
        for read, weight, part in zip(read_pixels(nodes, halves), weights, of_out.chunk(halves, dim=1), strict=True):
            many = part.expand(len(read), -1, -1)
            of_weights.append(torch.bmm(many.mT, read).transpose(0, 1).reshape(weight.shape))
            of_reads.append(torch.bmm(many, blocks(weight, nodes)))
        if halves == 1:
            of_relu = of_reads[0].view(nodes.shape)
        else:
            of_relu = torch.zeros_like(nodes)
            for offset, part in enumerate(of_reads):
                pixels = of_relu[:, :, offset::2, offset::2]
                part = part.view(len(nodes), -1, *state.shape[2:], nodes.shape[4])
                pixels.add_(part[:, :, : pixels.shape[2], : pixels.shape[3]])
        return None, None, None, torch.ops.aten.threshold_backward(of_relu, nodes, 0), *of_weights


def read_pixels(nodes: Tensor, halves: int) -> list[Tensor]:
    """relu(nodes) as each convolution reads it: (nodes, pixels, channels)."""
    relu = nodes.relu()
    if halves == 1:
        return [relu.flatten(1, 3)]
    _, _, height, width, _ = nodes.shape
    shifted = relu[:, :, 1:, 1:]  # odd sizes read zeros beyond the last row and column, see `ops.shift`
    if height % 2 or width % 2:
        shifted = F.pad(shifted, (0, 0, 0, width % 2, 0, height % 2))
    return [part[:, :, ::2, ::2].flatten(1, 3) for part in (relu, shifted)]


def blocks(weight: Tensor, nodes: Tensor) -> Tensor:
    """A 1x1 convolution's weight as a matrix for each node: (nodes, out, in)."""
    return weight.view(weight.shape[0], len(nodes), -1).transpose(0, 1)


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Switches mixed precision off: products of moments cannot bear it. A cell computes in the precision of its weights."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def refuse_second_order() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError("the fast evaluation is first-order only: for higher orders build Supernet(..., evaluation='plain')")
