"""The operations that leave one state of a cell, forward and backward, a kind at a time.

`cell_backward` says what is exact about it and why. Each forward returns what its backward needs, as a flat list that the backward
reads in the same order; with `recompute` the outputs of convolutions are left out (None) and computed again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pdarts_tune.cell_depthwise import Reading, box_filter, box_filter_grad, depthwise, depthwise_input_grad
from pdarts_tune.cell_kernels import (
    Moments,
    Norms,
    add_row,
    add_scaled,
    apart,
    as_images,
    block_diagonal,
    channels_last,
    normalise_grads,
    normalise_with_batch,
    repeat_channels,
    rows,
    scaled,
    side_by_side,
    sum_channels,
)
from pdarts_tune.cell_nodes import Nodes, Targets
from pdarts_tune.cell_plan import Chunk, StatePlan, Statistics, running_statistics, split
from pdarts_tune.ops import shift
from pdarts_tune.space import EDGES

Saved = list[Tensor | None]


@dataclass
class CellPass:
    """What the states of a cell share in one forward or backward pass."""

    nodes: Nodes
    shape: torch.Size  # of a node, as images
    wide: bool  # branches side by side
    masks: dict[int, Tensor]  # skip dropout: elements kept, by edge
    kept: float  # the share of them
    statistics: Statistics
    recompute: bool
    sums: Tensor  # (nodes, channels). Forward: what the nodes must have subtracted. Backward: the sums of their gradients.

    @property
    def pixels(self) -> int:
        return self.shape[0] * self.shape[2] * self.shape[3]


@dataclass
class State:
    """A state and the parameters of the operations on it."""

    plan: StatePlan
    image: Tensor
    parameters: Sequence[Tensor]
    mixing: Tensor
    incidence: Tensor

    def __post_init__(self) -> None:
        (
            self.first,
            self.inner,
            self.second,
            self.dilated,
            self.outer,
            self.reduce1,
            self.reduce2,
        ) = split(self.parameters, self.plan.parameter_groups)
        self.on_outer, self.on_reduce, *self.on_pools, self.on_skips = self.mixing.split(self.plan.mixing_groups)
        self.at_outer, self.at_reduce, *self.at_pools, self.at_skips = self.incidence.split(self.plan.mixing_groups)

    @cached_property
    def relu(self) -> Tensor:
        return torch.relu(self.image)

    @cached_property
    def reading(self) -> Reading:
        return Reading(self.relu)

    @cached_property
    def dilated_reading(self) -> Reading:
        return self.reading if self.plan.stride == 1 else Reading(self.read_by_dilated)

    @cached_property
    def read_by_dilated(self) -> Tensor:
        """At stride 2 a convolution of dilation 2 reads every second pixel only, as an ordinary convolution."""
        return self.relu if self.plan.stride == 1 else even_pixels(self.relu)

    @property
    def dilation(self) -> int:
        return 2 if self.plan.stride == 1 else 1


# ------------------------------------------------------------------------------------------------------------ convolutions


def forward_convolutions(state: State, cell: CellPass) -> Saved:
    """Separable and dilated convolutions. Their last halves are alike, so they are treated together."""
    plan = state.plan
    separable, dilated = plan.separable_chunks[cell.wide], plan.dilated_chunks[cell.wide]
    saved: Saved = []
    outer: list[Tensor] = []
    if separable:
        moments, inner = Moments(), []
        for chunk in separable:
            inner.append(first_half(state, chunk))
            if cell.statistics.training:
                moments.add(inner[-1], inner[-1], chunk.count)
        norms = [operation.bn1 for _, operation in plan.separable]
        inner_norms = conv_norms(cell, norms, stack_pointwise(state.inner), moments)
        saved += [*([None] * len(inner) if cell.recompute else inner), *inner_norms]
    middle = iter(middles(separable, inner, inner_norms, cell) if separable else ())
    moments = Moments()
    for index, chunk in enumerate((*separable, *dilated)):
        outer.append(second_half(state, chunk, next(middle)) if index < len(separable) else dilated_half(state, chunk))
        if cell.statistics.training:
            moments.add(outer[-1], outer[-1], chunk.count)
    if outer:
        norms = [operation.bn2 for _, operation in plan.separable] + [operation.bn for _, operation in plan.dilated]
        outer_norms = conv_norms(cell, norms, stack_pointwise(state.outer), moments)
        weights, less = scaled(outer_norms, state.on_outer)
        for chunk, matrix in zip((*separable, *dilated), outer, strict=True):
            cell.nodes.add(targets_of(state, chunk), matrix, weights[chunk.branches])
        cell.sums.addmm_(state.at_outer.t(), less)
        saved += [*([None] * len(outer) if cell.recompute else outer), *outer_norms]
    return saved


def backward_convolutions(
    state: State, cell: CellPass, saved: Iterator[Tensor | None]
) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """The gradients of the parameters, of the mixing weights, and of relu(state) in parts."""
    plan, shape, pixels = state.plan, cell.shape, cell.pixels
    separable, dilated = plan.separable_chunks[cell.wide], plan.dilated_chunks[cell.wide]
    middle_images: list[Tensor] = []
    outer: list[Tensor] = []
    if separable:
        found = [next(saved) for _ in separable]
        inner = [first_half(state, chunk) if matrix is None else matrix for chunk, matrix in zip(separable, found, strict=True)]
        inner_norms = Norms.take(saved)
        middle_images = list(middles(separable, inner, inner_norms, cell))
    for index, chunk in enumerate((*separable, *dilated)):
        matrix = next(saved)
        if matrix is None and index < len(separable):
            matrix = second_half(state, chunk, middle_images[index])
        outer.append(dilated_half(state, chunk) if matrix is None else matrix)
    outer_norms = Norms.take(saved)

    products = torch.cat(
        [cell.nodes.products(targets_of(state, chunk), matrix) for chunk, matrix in zip((*separable, *dilated), outer, strict=True)]
    )
    grads = normalise_grads(outer_norms, state.on_outer, state.at_outer @ cell.sums, products, pixels)
    inner_moments = Moments()
    of_first: list[Tensor] = []
    of_second: list[Tensor] = []
    of_dilated: list[Tensor] = []
    of_relu: list[Tensor] = []
    of_middle: list[Tensor] = []
    of_inner_weights: list[Tensor] = []
    of_read: list[Tensor] = []
    for index, (chunk, matrix) in enumerate(zip((*separable, *dilated), outer, strict=True)):
        constants = None if grads.constant is None else grads.constant[chunk.branches]
        pulled = cell.nodes.pull(targets_of(state, chunk), grads.from_grad[chunk.branches], constants)
        if grads.from_input is not None:
            pulled.addmm_(matrix, block_diagonal(grads.from_input[chunk.branches]))
        grad = as_images(pulled, shape)
        if index < len(separable):
            weight, middle = side_by_side(state.second[chunk.branches]), middle_images[index]
            of_second += apart(Reading(middle).weight_grad(grad, weight.shape[-1]), chunk.kernels)
            grad = depthwise_input_grad(grad, weight, shape)
            of_middle.append(rows(torch.ops.aten.threshold_backward(grad, middle, 0)))
            inner_moments.add(of_middle[-1], inner[index], chunk.count)
        else:
            branches = slice(chunk.branches.start - len(plan.separable), chunk.branches.stop - len(plan.separable))
            weight = side_by_side(state.dilated[branches])
            read = state.read_by_dilated
            reading = state.dilated_reading if chunk.count == 1 else Reading(repeat_channels(read, chunk.count))
            of_dilated += apart(reading.weight_grad(grad, weight.shape[-1], 1, state.dilation), chunk.kernels)
            of_read.append(sum_channels(depthwise_input_grad(grad, weight, read.shape, 1, state.dilation), chunk.count))
    if of_read:
        total = add_all(of_read)
        of_relu.append(total if plan.stride == 1 else spread(total, state.image.shape, 0))
    if separable:
        inner_grads = normalise_grads(inner_norms, None, inner_moments.sums(), inner_moments.products(), pixels)
        of_inner_weights = as_pointwise(inner_grads.weight)
        for chunk, grad, matrix in zip(separable, of_middle, inner, strict=True):
            from_grad = block_diagonal(inner_grads.from_grad[chunk.branches])
            if inner_grads.constant is None or inner_grads.from_input is None:
                pulled = grad @ from_grad
            else:
                pulled = torch.addmm(inner_grads.constant[chunk.branches].flatten(), grad, from_grad)
                pulled.addmm_(matrix, block_diagonal(inner_grads.from_input[chunk.branches]))
            grad = as_images(pulled, shape)
            weight = side_by_side(state.first[chunk.branches])
            reading = state.reading if chunk.count == 1 else Reading(repeat_channels(state.relu, chunk.count))
            of_first += apart(reading.weight_grad(grad, weight.shape[-1], plan.stride), chunk.kernels)
            of_relu.append(sum_channels(depthwise_input_grad(grad, weight, state.image.shape, plan.stride), chunk.count))
    of_parameters = [*of_first, *of_inner_weights, *of_second, *of_dilated, *as_pointwise(grads.weight)]
    return of_parameters, grads.mixing, of_relu


def targets_of(state: State, chunk: Chunk) -> Targets:
    return Targets(chunk.nodes, state.at_outer[chunk.branches])


def first_half(state: State, chunk: Chunk) -> Tensor:
    """The first depthwise convolution of separable convolutions."""
    weight = side_by_side(state.first[chunk.branches])
    return rows(depthwise(repeat_channels(state.relu, chunk.count), weight, state.plan.stride))


def second_half(state: State, chunk: Chunk, middle: Tensor) -> Tensor:
    """The second depthwise convolution of separable convolutions."""
    return rows(depthwise(middle, side_by_side(state.second[chunk.branches])))


def dilated_half(state: State, chunk: Chunk) -> Tensor:
    """The depthwise convolution of dilated convolutions."""
    first = len(state.plan.separable)
    weight = side_by_side(state.dilated[chunk.branches.start - first : chunk.branches.stop - first])
    return rows(depthwise(repeat_channels(state.read_by_dilated, chunk.count), weight, 1, state.dilation))


def middles(chunks: Sequence[Chunk], inner: Sequence[Tensor], norms: Norms, cell: CellPass) -> Iterator[Tensor]:
    """What the second halves of separable convolutions read: the first halves through 1x1 convolution, norm and ReLU."""
    weights, less = scaled(norms, None)
    biases = less.neg()
    for chunk, matrix in zip(chunks, inner, strict=True):
        weight, bias = block_diagonal(weights[chunk.branches]), biases[chunk.branches].flatten()
        yield as_images(torch.addmm(bias, matrix, weight.t()).relu_(), cell.shape)


def conv_norms(cell: CellPass, norms: Sequence[nn.BatchNorm2d], weights: Tensor, moments: Moments) -> Norms:
    """The norms behind 1x1 convolutions; in training `moments` are those of their inputs."""
    if not cell.statistics.training:
        mean, rstd = running_statistics(norms)
        return Norms(weights, mean, rstd, None, None)
    sums = moments.sums().expand(len(norms), -1)
    result, var = normalise_with_batch(weights, sums, moments.products(), cell.pixels, norms[0].eps)
    cell.statistics.record(norms, result.mean, var, cell.pixels)
    return result


# ------------------------------------------------------------------------------------------- skip-connects and pools


def forward_reduces(state: State, cell: CellPass) -> Saved:
    """Skip-connects of stride 2: one 1x1 convolution each, of the even and the odd pixels side by side; half of it is zero."""
    matrix = torch.cat([rows(even_pixels(state.relu)), rows(even_pixels(shift(state.relu)))], dim=1)
    norms = [operation.bn for _, operation in state.plan.reduces]
    moments = Moments()
    if cell.statistics.training:
        moments.add(matrix, matrix, 1)
    found = conv_norms(cell, norms, stack_reduce(state.reduce1, state.reduce2), moments)
    weights, less = scaled(found, state.on_reduce)
    for index, node in enumerate(nodes_of(state.plan.reduces)):
        cell.nodes.add(Targets((node,), state.at_reduce[index : index + 1]), matrix, weights[index : index + 1])
    cell.sums.addmm_(state.at_reduce.t(), less)
    return [matrix, *found]


def backward_reduces(state: State, cell: CellPass, saved: Iterator[Tensor | None]) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    matrix, found = next(saved), Norms.take(saved)
    assert matrix is not None
    places = [Targets((node,), state.at_reduce[index : index + 1]) for index, node in enumerate(nodes_of(state.plan.reduces))]
    products = torch.cat([cell.nodes.products(targets, matrix) for targets in places])
    grads = normalise_grads(found, state.on_reduce, state.at_reduce @ cell.sums, products, cell.pixels)
    parts = []
    for index, targets in enumerate(places):
        constants = None if grads.constant is None else grads.constant[index : index + 1]
        parts.append(cell.nodes.pull(targets, grads.from_grad[index : index + 1], constants))
    total = add_all(parts)
    if grads.from_input is not None:
        total.addmm_(matrix, grads.from_input.sum(0))
    halves = as_images(total, cell.shape).chunk(2, dim=1)
    of_relu = [spread(half, state.image.shape, offset) for offset, half in enumerate(halves)]
    return unstack_reduce(grads.weight), grads.mixing, of_relu


def forward_pool(state: State, cell: CellPass, kind: int) -> Saved:
    """One pool and, in training, one norm for all edges; running statistics may differ between edges."""
    edges, stride = state.plan.pools[kind], state.plan.stride
    norms = [operation.bn for _, operation in edges]
    argmax = mean = None
    if kind == 0:
        pool, argmax = F.max_pool2d(state.image, 3, stride, 1, return_indices=True)
    else:
        pool = average(box_filter(state.image, stride), state.image, stride)
    matrix = rows(pool)
    if cell.statistics.training:  # the matrix is kept less its mean
        batch_mean = matrix.mean(0)
        matrix = add_row(matrix, -batch_mean, cell.shape[3])
        var = (matrix * matrix).mean(0)
        cell.statistics.record(norms, batch_mean.expand(len(edges), -1), var.expand(len(edges), -1), cell.pixels)
        rstd = (var + norms[0].eps).rsqrt().expand(len(edges), -1)
    else:
        mean, rstd = running_statistics(norms)
    scales, incidence = rstd * state.on_pools[kind].unsqueeze(1), state.at_pools[kind]
    cell.nodes.add_scaled(Targets(nodes_of(edges), incidence), matrix, scales)
    if mean is not None:
        cell.sums.addmm_(incidence.t(), mean * scales)
    return [matrix, argmax, rstd, mean]


def backward_pool(state: State, cell: CellPass, saved: Iterator[Tensor | None], kind: int) -> tuple[Tensor, Tensor]:
    """The gradients of the mixing weights and of the state."""
    matrix, argmax, rstd, mean = (next(saved) for _ in range(4))
    assert matrix is not None
    assert rstd is not None
    targets = Targets(nodes_of(state.plan.pools[kind]), state.at_pools[kind])
    scales = rstd * state.on_pools[kind].unsqueeze(1)
    correlation = cell.nodes.products_scaled(targets, matrix)
    sums = targets.incidence @ cell.sums
    if mean is not None:
        correlation = correlation - mean * sums
    correlation = correlation * rstd
    total = cell.nodes.pull_scaled(targets, scales)
    if mean is None:
        width = cell.shape[3]
        add_scaled(total, matrix, (scales * rstd * correlation).sum(0).div_(-cell.pixels).repeat(width))
        add_row(total, (scales * sums).sum(0).div_(-cell.pixels), width)
    grad, stride = as_images(total, cell.shape), state.plan.stride
    if kind == 0:
        assert argmax is not None
        window = [3, 3], [stride, stride], [1, 1], [1, 1], False
        of_image = torch.ops.aten.max_pool2d_with_indices_backward(grad, state.image, *window, argmax)
    else:
        of_image = box_filter_grad(average(grad, state.image, stride), state.image.shape, stride)
    return correlation.sum(1), of_image


def forward_skips(state: State, cell: CellPass) -> None:
    """Skip-connects of stride 1: the state itself, or what dropout leaves of it."""
    scales = (state.on_skips / cell.kept).unsqueeze(1).expand(-1, state.image.shape[1])
    for part, targets, mask in skip_parts(state, cell):
        passed = state.image if mask is None else state.image * mask
        cell.nodes.add_scaled(targets, rows(passed), scales[part])


def backward_skips(state: State, cell: CellPass) -> tuple[Tensor, Tensor]:
    """The gradients of the mixing weights and of the state."""
    scales = (state.on_skips / cell.kept).unsqueeze(1).expand(-1, state.image.shape[1])
    correlations, of_image = [], []
    for part, targets, mask in skip_parts(state, cell):
        passed = state.image if mask is None else state.image * mask
        correlations.append(cell.nodes.products_scaled(targets, rows(passed)).sum(1))
        grad = as_images(cell.nodes.pull_scaled(targets, scales[part]), cell.shape)
        of_image.append(grad if mask is None else grad.mul_(mask))
    return torch.cat(correlations) / cell.kept, add_all(of_image)


def skip_parts(state: State, cell: CellPass) -> Iterator[tuple[slice, Targets, Tensor | None]]:
    """Edges that pass the same: all of them, or with dropout each its own. Their positions, targets and mask."""
    edges = state.plan.skips
    if not cell.masks:
        yield slice(len(edges)), Targets(tuple(EDGES[edge][1] for edge in edges), state.at_skips), None
    else:
        for index, edge in enumerate(edges):
            part = slice(index, index + 1)
            yield part, Targets((EDGES[edge][1],), state.at_skips[part]), cell.masks[edge]


# ------------------------------------------------------------------------------------------------------------ small pieces


def nodes_of(edges: Sequence[tuple[int, nn.Module]]) -> tuple[int, ...]:
    return tuple(EDGES[edge][1] for edge, _ in edges)


def target_shape(image: Tensor, stride: int) -> torch.Size:
    """The shape of the nodes that an image is read into."""
    batch, channels, height, width = image.shape
    return torch.Size((batch, channels, -(-height // stride), -(-width // stride)))


def even_pixels(images: Tensor) -> Tensor:
    return channels_last(images[:, :, ::2, ::2])


def spread(images: Tensor, shape: torch.Size, offset: int) -> Tensor:
    """The inverse of taking every second pixel from `offset` on: zeros in between. Pixels beyond the image are dropped."""
    out = torch.zeros(shape[0], shape[2], shape[3], shape[1], dtype=images.dtype, device=images.device).permute(0, 3, 1, 2)
    part = out[:, :, offset::2, offset::2]
    part.copy_(images[:, :, : part.shape[2], : part.shape[3]])
    return out


def add_all(tensors: list[Tensor]) -> Tensor:
    """The sum, in the memory of the first."""
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total.add_(tensor)
    return total


def stack_pointwise(weights: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(weights)).flatten(2)


def as_pointwise(weights: Tensor) -> list[Tensor]:
    return list(weights[..., None, None].unbind())


def stack_reduce(weights1: Sequence[Tensor], weights2: Sequence[Tensor]) -> Tensor:
    """Factorized reductions as 1x1 convolutions of the even and the odd pixels side by side: (edges, out, 2 in), half zeros."""
    upper, lower = stack_pointwise(weights1), stack_pointwise(weights2)
    return torch.cat([F.pad(upper, (0, upper.shape[2])), F.pad(lower, (lower.shape[2], 0))], dim=1)


def unstack_reduce(weights: Tensor) -> list[Tensor]:
    out, both = weights.shape[1:]
    return [*as_pointwise(weights[:, : out // 2, : both // 2]), *as_pointwise(weights[:, out // 2 :, both // 2 :])]


def average(sums: Tensor, image: Tensor, stride: int) -> Tensor:
    """Divides 3x3 sums by the number of pixels inside the image, in place."""
    counts = box_filter(image.new_ones(1, 1, *image.shape[2:]), stride)
    batch, channels, height, width = sums.shape
    long = rows(sums).view(batch, height, width * channels)
    long.mul_(counts.view(height, width).reciprocal().repeat_interleave(channels, dim=1))
    return sums
