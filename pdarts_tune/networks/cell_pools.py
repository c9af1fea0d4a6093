"""The pools and skip-connects on the edges that leave one state of a cell, forward and backward.

Edges that pass on the same images differ in their mixing weights alone: so do all edges with the same pool while their norms use
the statistics of the batch, and all stride-1 skip-connects without dropout. The images are then computed once and added to each
node with the edge's weight. Skip-connects of stride 2 read the same pixels through 1x1 convolutions of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from pdarts_tune.networks.cell_depthwise import depthwise, depthwise_input_grad
from pdarts_tune.networks.cell_layout import add_all, as_images, channels_last, even_pixels, rows, spread
from pdarts_tune.networks.cell_norms import (
    Moments,
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
from pdarts_tune.networks.cell_plan import Run, runs_of
from pdarts_tune.networks.cell_state import CellPass, Saved, State
from pdarts_tune.networks.operations import shift


class Passed(NamedTuple):
    """The same images for one or more edges."""

    images: Tensor
    edges: slice  # of those of one kind that leave the state
    runs: tuple[Run, ...]  # branches counted from the first of these edges


def add_passed(cell: CellPass, passed: Passed, weights: Tensor) -> None:
    """Adds the images to their nodes, with a weight for each edge."""
    vector = rows(passed.images).flatten()
    weights = weights[passed.edges].unsqueeze(1)
    for run in passed.runs:
        cell.flat(run).addcmul_(vector, weights[run.branches])


def pull_passed(cell: CellPass, passed: Passed, weights: Tensor) -> tuple[list[Tensor], Tensor]:
    """The gradients of the weights, in parts, and of the images."""
    vector = rows(passed.images).flatten()
    of_weights = [torch.mv(cell.flat(run), vector) for run in passed.runs]
    total: Tensor | None = None
    singly = weights[passed.edges].unbind()
    for run in passed.runs:
        for grad, weight in zip(cell.flat(run), singly[run.branches], strict=True):
            total = grad * weight if total is None else total.addcmul_(grad, weight)
    assert total is not None
    return of_weights, as_images(total.view(-1, cell.shape[1]), cell.shape)


# -------------------------------------------------------------------------------------------------------------------- pools


def forward_pool(state: State, cell: CellPass, kind: int) -> Saved:
    pool, argmax = pool_of(state, cell, kind)
    saved: Saved = [None if cell.recompute else argmax]
    for passed, rstd in normalised_pools(state, cell, kind, pool):
        add_passed(cell, passed, state.on_pools[kind])
        saved += [None if cell.recompute else passed.images, rstd]
    return saved


def backward_pool(state: State, cell: CellPass, saved: Iterator[Tensor | None], kind: int) -> tuple[list[Tensor], Tensor]:
    """The gradients of the mixing weights, in parts, and of the state."""
    argmax = next(saved)
    again = None
    if cell.recompute:
        pool, argmax = pool_of(state, cell, kind)
        again = normalised_pools(state, cell, kind, pool)
    of_weights: list[Tensor] = []
    of_pool: list[Tensor] = []
    for edges, runs in sharing(state.plan.pools[kind], cell.statistics.training):
        images, rstd = next(saved), next(saved)
        if again is not None:
            images = next(again)[0].images
        assert images is not None
        assert rstd is not None
        of_edges, grad = pull_passed(cell, Passed(images, edges, runs), state.on_pools[kind])
        of_weights += of_edges
        of_pool.append(normalise_grad(grad, images, rstd, cell.unit) if cell.statistics.training else grad * rstd[:, None, None])
    grad, image, stride = add_all(of_pool), state.image, state.plan.stride
    if kind == 0:
        assert argmax is not None
        window = [3, 3], [stride, stride], [1, 1], [1, 1], False
        return of_weights, torch.ops.aten.max_pool2d_with_indices_backward(grad, image, *window, argmax)
    return of_weights, depthwise_input_grad(average(cell, grad, image, stride), box(cell, image), image.shape, stride)


def pool_of(state: State, cell: CellPass, kind: int) -> tuple[Tensor, Tensor | None]:
    image, stride = state.image, state.plan.stride
    if kind == 0:
        pool, argmax = F.max_pool2d(image, 3, stride, 1, return_indices=True)
        return channels_last(pool), argmax
    return average(cell, depthwise(image, box(cell, image), stride), image, stride), None


def normalised_pools(state: State, cell: CellPass, kind: int, pool: Tensor) -> Iterator[tuple[Passed, Tensor]]:
    """What edges pass on, and the norms' 1 / standard deviations."""
    pools = state.plan.pools[kind]
    norms = [operation.bn for _, operation in pools]
    for edges, runs in sharing(pools, cell.statistics.training):
        if cell.statistics.training:
            mean, var = moments_of_batch(pool)
            cell.statistics.record(norms, mean, var)
        else:
            mean, var = moments_of_running(norms[edges])
        images = normalise(pool, mean, var, norms[0].eps)
        rstd = (var + norms[0].eps).rsqrt_()
        yield Passed(images, edges, runs), rstd


def sharing(edges: Sequence[tuple[int, object]], together: bool) -> Iterator[tuple[slice, tuple[Run, ...]]]:
    """Edges that pass on the same: all of them, or each its own."""
    if together:
        yield slice(len(edges)), runs_of([edge for edge, _ in edges])
    else:
        for index, (edge, _) in enumerate(edges):
            yield slice(index, index + 1), runs_of([edge])


def box(cell: CellPass, image: Tensor) -> Tensor:
    """The depthwise weight that sums the 3x3 pixels around each pixel."""
    return cell.unit[1, : 9 * image.shape[1]].view(-1, 1, 3, 3)


def average(cell: CellPass, sums: Tensor, image: Tensor, stride: int) -> Tensor:
    """Divides 3x3 sums by the number of pixels inside the image, in place."""
    if stride not in cell.inverse_counts:
        counts = depthwise(image.new_ones(1, 1, *image.shape[2:]), box(cell, image)[:1], stride)[0, 0]
        cell.inverse_counts[stride] = counts.reciprocal().repeat_interleave(image.shape[1], dim=1)
    inverse = cell.inverse_counts[stride]
    rows(sums).view(-1, *inverse.shape).mul_(inverse)
    return sums


# ------------------------------------------------------------------------------------------------------------ skip-connects


def forward_skips(state: State, cell: CellPass) -> None:
    """Skip-connects of stride 1: the state itself, or what dropout leaves of it."""
    for passed, _ in skip_parts(state, cell):
        add_passed(cell, passed, state.on_skips / cell.kept if cell.masks else state.on_skips)


def backward_skips(state: State, cell: CellPass) -> tuple[list[Tensor], Tensor]:
    """The gradients of the mixing weights, in parts, and of the state."""
    weights = state.on_skips / cell.kept if cell.masks else state.on_skips
    of_weights: list[Tensor] = []
    of_image: list[Tensor] = []
    for passed, mask in skip_parts(state, cell):
        of_edges, grad = pull_passed(cell, passed, weights)
        of_weights += of_edges
        of_image.append(grad if mask is None else grad.mul_(mask))
    if cell.masks:
        of_weights = [torch.cat(of_weights) / cell.kept]
    return of_weights, add_all(of_image)


def skip_parts(state: State, cell: CellPass) -> Iterator[tuple[Passed, Tensor | None]]:
    for part, runs in sharing([(edge, None) for edge in state.plan.skips], not cell.masks):
        mask = cell.masks[state.plan.skips[part.start]] if cell.masks else None
        yield Passed(state.image if mask is None else state.image * mask, part, runs), mask


# ------------------------------------------------------------------------------------------------ skip-connects of stride 2


def forward_reduces(state: State, cell: CellPass) -> Saved:
    """One 1x1 convolution each, of the even and the odd pixels side by side; half of it is zero."""
    matrix = both_pixels(state)
    norms = [operation.bn for _, operation in state.plan.reduces]
    weights = stack_reduce(state.reduce1, state.reduce2)
    if cell.statistics.training:
        sums = Moments()
        sums.add(matrix, 1)
        found, var = norms_of_batch(weights, sums, cell.pixels, norms[0].eps)
        cell.statistics.record(norms, found.mean, var)
    else:
        found = Norms(weights, *running_statistics(norms), None, None)
    weights, less = scaled(found, state.on_reduce)
    for run in reduce_runs(state):
        part = weights[run.branches].mT
        cell.nodes[run.nodes].baddbmm_(matrix.expand(len(part), -1, -1), part)
    cell.sums.addmm_(state.at_reduce.t(), less)
    return [None if cell.recompute else matrix, *found]


def backward_reduces(state: State, cell: CellPass, saved: Iterator[Tensor | None]) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """The gradients of the parameters, of the mixing weights, and of relu(state) in parts."""
    matrix, found = next(saved), Norms.take(saved)
    matrix = both_pixels(state) if matrix is None else matrix
    runs = reduce_runs(state)
    products = torch.cat([torch.matmul(cell.nodes[run.nodes].mT, matrix) for run in runs])
    grads = scaled_grads(found, state.on_reduce, state.at_reduce @ cell.sums, products, cell.pixels)
    total = torch.zeros_like(matrix) if grads.constant is None else grads.constant.sum(0).expand(matrix.shape).contiguous()
    for run in runs:
        total = torch.addbmm(total, cell.nodes[run.nodes], grads.from_grad[run.branches])
    if grads.from_input is not None:
        total.addmm_(matrix, grads.from_input.sum(0))
    halves = as_images(total, cell.shape).chunk(2, dim=1)
    of_relu = [spread(half, state.image.shape, offset) for offset, half in enumerate(halves)]
    return unstack_reduce(grads.weight), grads.mixing, of_relu


def reduce_runs(state: State) -> tuple[Run, ...]:
    return runs_of([edge for edge, _ in state.plan.reduces])


def both_pixels(state: State) -> Tensor:
    return torch.cat([rows(even_pixels(state.relu)), rows(even_pixels(shift(state.relu)))], dim=1)


def stack_reduce(weights1: Sequence[Tensor], weights2: Sequence[Tensor]) -> Tensor:
    """Factorized reductions as 1x1 convolutions of the even and the odd pixels side by side: (edges, out, 2 in), half zeros."""
    upper, lower = (torch.stack(list(weights)).flatten(2) for weights in (weights1, weights2))
    return torch.cat([F.pad(upper, (0, upper.shape[2])), F.pad(lower, (lower.shape[2], 0))], dim=1)


def unstack_reduce(weights: Tensor) -> list[Tensor]:
    out, both = weights.shape[1:]
    upper, lower = weights[:, : out // 2, : both // 2], weights[:, out // 2 :, both // 2 :]
    return [*upper[..., None, None].unbind(), *lower[..., None, None].unbind()]
