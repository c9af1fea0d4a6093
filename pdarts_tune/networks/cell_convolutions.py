"""The separable and the dilated convolutions on the edges that leave one state of a cell, forward and backward.

A separable convolution is two halves, each depthwise convolution, 1x1 convolution, norm; a dilated one is a second half alone. The
last halves are alike, so they are treated together: identity 2 of `cell_norms` takes them from the output of the depthwise
convolution to the node. Forward returns what its backward needs, as a flat list that the backward reads in the same order; with
`recompute` the outputs of convolutions are left out (None) and computed again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from pdarts_tune.networks.cell_depthwise import Reading, depthwise, depthwise_input_grad
from pdarts_tune.networks.cell_layout import add_all, add_multiplied, as_images, branches, join, moments, multiply, rows, spread
from pdarts_tune.networks.cell_norms import (
    Moments,
    NormGrads,
    Norms,
    moments_of_batch,
    moments_of_running,
    normalise,
    normalise_grad,
    norms_of_batch,
    running_statistics,
    scaled,
    scaled_grads,
)
from pdarts_tune.networks.cell_plan import Chunk
from pdarts_tune.networks.cell_state import CellPass, Saved, State


def forward_convolutions(state: State, cell: CellPass) -> Saved:
    separable, dilated = chunks_of(state, cell)
    saved: Saved = []
    outer: list[Tensor] = []
    found = Moments()
    for chunk in separable:
        first, second, across = weights_of(state, chunk)
        inner = first_half(state, chunk, first)
        middle, mean, var = forward_middle(state, cell, chunk, inner, across)
        outer.append(rows(depthwise(middle, second)))
        if cell.statistics.training:
            found.add(outer[-1], chunk.count)
        saved += [first, second, across, mean, var, None if cell.recompute else inner]
    for chunk in dilated:
        weight = dilated_weight(state, chunk)
        outer.append(dilated_half(state, chunk, weight))
        if cell.statistics.training:
            found.add(outer[-1], chunk.count)
        saved.append(weight)
    chunks = (*separable, *dilated)
    norms = outer_norms(state, cell, found)
    weights, less = scaled(norms, state.on_outer)
    for chunk, matrix in zip(chunks, outer, strict=True):
        parts, across = branches(matrix, chunk.count), weights[chunk.branches].mT
        for run in chunk.runs:
            cell.nodes[run.nodes].baddbmm_(parts[run.branches], across[run.branches])
    cell.sums.addmm_(state.at_outer.t(), less)
    return [*saved, *([None] * len(outer) if cell.recompute else outer), *norms]


def backward_convolutions(
    state: State, cell: CellPass, saved: Iterator[Tensor | None]
) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """The gradients of the parameters, of the mixing weights, and of relu(state) in parts."""
    plan, shape = state.plan, cell.shape
    separable_chunks, dilated_chunks = chunks_of(state, cell)
    separable = [Separable.take(saved) for _ in separable_chunks]
    dilated = [weight for weight in itertools.islice(saved, len(dilated_chunks)) if weight is not None]
    outer: list[Tensor] = []
    for chunk, part in zip(separable_chunks, separable, strict=True):
        part.complete(state, cell, chunk)
        matrix = next(saved)
        outer.append(rows(depthwise(part.middle.image, part.second)) if matrix is None else matrix)
    for chunk, weight in zip(dilated_chunks, dilated, strict=True):
        matrix = next(saved)
        outer.append(dilated_half(state, chunk, weight) if matrix is None else matrix)
    grads = node_grads(state, cell, (*separable_chunks, *dilated_chunks), outer, Norms.take(saved))

    of_first: list[Tensor] = []
    of_inner: list[Tensor] = []
    of_second: list[Tensor] = []
    of_dilated: list[Tensor] = []
    of_relu: list[Tensor] = []
    of_read: list[Tensor] = []
    for chunk, part, matrix in zip(separable_chunks, separable, outer, strict=False):
        grad = as_images(pull(cell, chunk, matrix, grads), shape)
        of_second += apart(part.middle.weight_grad(grad, chunk.kernel), chunk)
        grad = torch.ops.aten.threshold_backward(depthwise_input_grad(grad, part.second, shape), part.middle.source, 0)
        if cell.statistics.training:
            matrix = rows(normalise_grad(grad, part.middle.source, part.rstd, cell.unit))
        else:
            matrix = rows(grad) * part.rstd
        of_inner += moments(matrix, part.inner, chunk.count)
        grad = as_images(multiply(matrix, part.across), shape)
        reading = state.read(chunk.count, dilated=False)
        of_first += apart(reading.weight_grad(grad, chunk.kernel, plan.stride), chunk)
        of_relu += depthwise_input_grad(grad, part.first, reading.image.shape, plan.stride).chunk(chunk.count, dim=1)
    for chunk, weight, matrix in zip(dilated_chunks, dilated, outer[len(separable) :], strict=True):
        grad = as_images(pull(cell, chunk, matrix, grads), shape)
        reading = state.read(chunk.count, dilated=True)
        of_dilated += apart(reading.weight_grad(grad, chunk.kernel, 1, state.dilation), chunk)
        of_read += depthwise_input_grad(grad, weight, reading.image.shape, 1, state.dilation).chunk(chunk.count, dim=1)
    of_relu = [add_all(of_relu)] if of_relu else []
    if of_read:
        total = add_all(of_read)
        of_relu.append(total if plan.stride == 1 else spread(total, state.image.shape, 0))
    of_pointwise = [weight[..., None, None] for weight in (*of_inner, *grads.weight)]
    split = len(of_inner)
    return [*of_first, *of_pointwise[:split], *of_second, *of_dilated, *of_pointwise[split:]], grads.mixing, of_relu


# ------------------------------------------------------------------------------------------------------------------- halves


@dataclass
class Separable:
    """What forward kept of the separable convolutions of a chunk; `complete` computes what it did not keep."""

    first: Tensor  # first depthwise weights
    second: Tensor
    across: Tensor  # first 1x1 weights: (branches, out, in)
    mean: Tensor  # of the norms behind them
    var: Tensor
    inner: Tensor  # the output of the first depthwise convolution

    @classmethod
    def take(cls, saved: Iterator[Any]) -> Separable:
        return cls(*itertools.islice(saved, len(fields(cls))))

    def complete(self, state: State, cell: CellPass, chunk: Chunk) -> None:
        if self.inner is None:
            self.inner = first_half(state, chunk, self.first)
        norm = state.plan.separable[0][1].bn1
        self.rstd = (self.var + norm.eps).rsqrt_()
        # As forward did, to the last bit: else a ReLU could pass on what it has stopped.
        across = as_images(multiply(self.inner, self.across.mT), cell.shape)
        self.middle = Reading(normalise(across, self.mean, self.var, norm.eps), cell.scratch, "middle", relu=True)


def chunks_of(state: State, cell: CellPass) -> tuple[tuple[Chunk, ...], tuple[Chunk, ...]]:
    return state.plan.separable_chunks[cell.small], state.plan.dilated_chunks[cell.small]


def weights_of(state: State, chunk: Chunk) -> tuple[Tensor, Tensor, Tensor]:
    """As in `Separable`."""
    first, second = side_by_side(state.first[chunk.branches]), side_by_side(state.second[chunk.branches])
    return first, second, pointwise(state.inner[chunk.branches])


def first_half(state: State, chunk: Chunk, weight: Tensor) -> Tensor:
    """The first depthwise convolution of separable convolutions."""
    return rows(depthwise(state.read(chunk.count, dilated=False).image, weight, state.plan.stride))


def forward_middle(state: State, cell: CellPass, chunk: Chunk, inner: Tensor, across: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the second halves of separable convolutions read; mean and variance of the norms before it."""
    norms = [operation.bn1 for _, operation in state.plan.separable[chunk.branches]]
    image = as_images(multiply(inner, across.mT), cell.shape)
    if cell.statistics.training:
        mean, var = moments_of_batch(image)
        cell.statistics.record(norms, mean.view(chunk.count, -1), var.view(chunk.count, -1))
    else:
        mean, var = moments_of_running(norms)
    return normalise(image, mean, var, norms[0].eps).relu_(), mean, var


def dilated_half(state: State, chunk: Chunk, weight: Tensor) -> Tensor:
    """The depthwise convolution of dilated convolutions."""
    return rows(depthwise(state.read(chunk.count, dilated=True).image, weight, 1, state.dilation))


def dilated_weight(state: State, chunk: Chunk) -> Tensor:
    first = len(state.plan.separable)
    return side_by_side(state.dilated[chunk.branches.start - first : chunk.branches.stop - first])


def side_by_side(weights: Sequence[Tensor]) -> Tensor:
    """Depthwise kernels as one. A smaller kernel is a larger one with a border of zeros."""
    if len(weights) == 1:
        return weights[0]
    largest = max(weight.shape[-1] for weight in weights)
    borders = [(largest - weight.shape[-1]) // 2 for weight in weights]
    return torch.cat([F.pad(weight, (border,) * 4) if border else weight for weight, border in zip(weights, borders, strict=True)])


def apart(grad: Tensor, chunk: Chunk) -> list[Tensor]:
    """The inverse of `side_by_side`, of gradients."""
    parts = []
    for part, kernel in zip(grad.chunk(chunk.count), chunk.kernels, strict=True):
        border = (chunk.kernel - kernel) // 2
        parts.append(part[..., border : border + kernel, border : border + kernel] if border else part)
    return parts


def pointwise(weights: Sequence[Tensor]) -> Tensor:
    """(branches, out, in)"""
    return weights[0].flatten(1).unsqueeze(0) if len(weights) == 1 else torch.stack(list(weights)).flatten(2)


# ---------------------------------------------------------------------------------------------- between last halves and nodes


def outer_norms(state: State, cell: CellPass, found: Moments) -> Norms:
    """The norms behind the last 1x1 convolutions; in training from the inputs of these."""
    plan = state.plan
    norms = [operation.bn2 for _, operation in plan.separable] + [operation.bn for _, operation in plan.dilated]
    weights = pointwise(state.outer)
    if not cell.statistics.training:
        return Norms(weights, *running_statistics(norms), None, None)
    result, var = norms_of_batch(weights, found, cell.pixels, norms[0].eps)
    cell.statistics.record(norms, result.mean, var)
    return result


def node_grads(state: State, cell: CellPass, chunks: Sequence[Chunk], outer: Sequence[Tensor], norms: Norms) -> NormGrads:
    """What the gradients of the nodes turn into at the last 1x1 convolutions."""
    products = []
    for chunk, matrix in zip(chunks, outer, strict=True):
        parts = branches(matrix, chunk.count)
        products += [torch.bmm(cell.nodes[run.nodes].mT, parts[run.branches]) for run in chunk.runs]
    return scaled_grads(norms, state.on_outer, state.at_outer @ cell.sums, join(products), cell.pixels)


def pull(cell: CellPass, chunk: Chunk, matrix: Tensor, grads: NormGrads) -> Tensor:
    """The gradient of the inputs of the last 1x1 convolutions, side by side as `matrix`, from the gradients of the nodes."""
    from_grad = grads.from_grad[chunk.branches]
    pulled = torch.empty_like(matrix)
    parts = branches(pulled, chunk.count)
    for run in chunk.runs:
        out = parts[run.branches]
        if grads.constant is None:
            torch.bmm(cell.nodes[run.nodes], from_grad[run.branches], out=out)
        else:
            constant = grads.constant[chunk.branches][run.branches].unsqueeze(1)
            torch.baddbmm(constant, cell.nodes[run.nodes], from_grad[run.branches], out=out)
    if grads.from_input is not None:
        add_multiplied(pulled, matrix, grads.from_input[chunk.branches])
    return pulled
