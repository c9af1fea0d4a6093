"""The fast evaluation of the search network: one hand-written forward and backward per cell.

It computes what the modules of `supernet.Cell` compute one by one, in another order (`cell_kernels` has the identities):

- relu(state), the pools of a state and their norms are computed once, not once for every edge that leaves the state;
- `none` adds nothing, so it is not computed (its alpha's gradient is zero);
- a dilated convolution of stride 2 reads every second pixel only, so it is an ordinary one on those pixels;
- no batch norm's output, and of a final 1x1 convolution not even its input to the norm, is ever in memory;
- a cell's output stays four tensors, one per node: their consumers are linear in them or work channel by channel.

Backward keeps the depthwise convolutions' outputs and the pools; the rest follows from them and the states.
It is first-order only: a gradient of a gradient needs `evaluation="plain"`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pdarts_tune.cell_kernels import (
    NormGrads,
    Norms,
    add_row,
    add_scaled,
    as_images,
    box_filter,
    box_filter_grad,
    channels_last,
    depthwise,
    depthwise_input_grad,
    depthwise_weight_grad,
    input_grad,
    moments,
    normalise_grads,
    normalise_with_batch,
    normalised_weight,
    rows,
)
from pdarts_tune.cell_plan import StatePlan, Statistics, pack, running_statistics, split, unpack
from pdarts_tune.ops import shift
from pdarts_tune.space import EDGES, NUM_NODES


@dataclass
class Pool:
    """A pooled state, a row per pixel, less its mean in training; and its norm on each edge, (edges, channels)."""

    matrix: Tensor
    rstd: Tensor
    mean: Tensor | None  # None: zero, because the matrix is centred
    argmax: Tensor | None


@dataclass
class Saved:
    """What backward needs of the operations on one state."""

    inner: list[Tensor] = field(default_factory=list)  # outputs of separable convolutions' first depthwise convolution
    inner_norms: Norms | None = None
    outer: list[Tensor] = field(default_factory=list)  # inputs of the final 1x1 convolutions
    outer_norms: Norms | None = None
    reduced: Tensor | None = None  # input of the factorized reductions
    reduce_norms: Norms | None = None
    pools: list[Pool | None] = field(default_factory=list)


@dataclass
class Dropout:
    """Masks of kept elements by edge, and the share that is kept."""

    masks: dict[int, Tensor]
    kept: float

    @classmethod
    def of(cls, plans: Sequence[StatePlan], masks: Tensor | None, kept: float) -> Dropout:
        edges = sorted(edge for plan in plans for edge in plan.skips)
        return cls({} if masks is None else dict(zip(edges, masks.unbind(), strict=True)), 1.0 if masks is None else kept)


class Nodes:
    """The sums that the edges of a cell add up to, a row per pixel."""

    def __init__(self) -> None:
        self.totals: list[Tensor | None] = [None] * NUM_NODES
        self.constants: list[list[Tensor]] = [[] for _ in range(NUM_NODES)]

    def add_product(self, edge: int, matrix: Tensor, weight: Tensor) -> None:
        node = EDGES[edge][1]
        total = self.totals[node]
        self.totals[node] = matrix @ weight.t() if total is None else total.addmm_(matrix, weight.t())

    def add_scaled(self, edge: int, matrix: Tensor, scale: Tensor, width: int) -> None:
        node = EDGES[edge][1]
        self.totals[node] = add_scaled(self.totals[node], matrix, scale, width)

    def add_constant(self, edge: int, row: Tensor) -> None:
        self.constants[EDGES[edge][1]].append(row)

    def finish(self, node: int, like: Tensor, shape: torch.Size) -> Tensor:
        total = self.totals[node]
        if total is None:
            total = like.new_zeros(shape[0] * shape[2] * shape[3], shape[1])
        if self.constants[node]:
            total = add_row(total, torch.stack(self.constants[node]).sum(0), shape[3])
        return as_images(total, shape)


def conv_norms(statistics: Statistics, norms: Sequence[nn.BatchNorm2d], weights: Tensor, inputs: list[Tensor] | Tensor) -> Norms:
    """The norms behind 1x1 convolutions (identity 2). `inputs` is one matrix if the convolutions share it."""
    if not statistics.training:
        mean, rstd = running_statistics(norms)
        return Norms(weights, mean, rstd, None, None)
    mean_in, cov = moments(inputs if isinstance(inputs, list) else [inputs])
    result, var = normalise_with_batch(weights, mean_in.expand(len(norms), -1), cov, norms[0].eps)
    statistics.record(norms, result.mean, var, (inputs[0] if isinstance(inputs, list) else inputs).shape[0])
    return result


def forward_state(
    plan: StatePlan,
    image: Tensor,
    parameters: Sequence[Tensor],
    mixing: Tensor,
    dropout: Dropout,
    nodes: Nodes,
    statistics: Statistics,
) -> Saved:
    """Adds what leaves a state to the nodes."""
    saved = Saved()
    first, inner, second, dilated, outer, reduce1, reduce2 = split(parameters, plan.parameter_groups)
    on_outer, on_reduce, *on_pools, on_skips = mixing.split(plan.mixing_groups)
    relu = torch.relu(image)
    stride, width = plan.stride, -(-image.shape[3] // plan.stride)

    if inner:
        saved.inner = [rows(depthwise(relu, weight, stride)) for weight in first]
        norms = [operation.bn1 for _, operation in plan.separable]
        saved.inner_norms = conv_norms(statistics, norms, stack_pointwise(inner), saved.inner)
        for weight, middle in zip(second, middles(saved, target_shape(image, stride)), strict=True):
            saved.outer.append(rows(depthwise(middle, weight)))
    if dilated:
        pixels, dilation = (relu, 2) if stride == 1 else (even_pixels(relu), 1)
        saved.outer.extend(rows(depthwise(pixels, weight, 1, dilation)) for weight in dilated)
    if outer:
        norms = [operation.bn2 for _, operation in plan.separable] + [operation.bn for _, operation in plan.dilated]
        saved.outer_norms = conv_norms(statistics, norms, stack_pointwise(outer), saved.outer)
        weights, biases = scaled(saved.outer_norms, on_outer)
        for index, (edge, _) in enumerate((*plan.separable, *plan.dilated)):
            nodes.add_product(edge, saved.outer[index], weights[index])
            nodes.add_constant(edge, biases[index])
    if reduce1:
        saved.reduced = torch.cat([rows(even_pixels(relu)), rows(even_pixels(shift(relu)))], dim=1)
        norms = [operation.bn for _, operation in plan.reduces]
        saved.reduce_norms = conv_norms(statistics, norms, stack_reduce(reduce1, reduce2), saved.reduced)
        weights, biases = scaled(saved.reduce_norms, on_reduce)
        for index, (edge, _) in enumerate(plan.reduces):
            nodes.add_product(edge, saved.reduced, weights[index])
            nodes.add_constant(edge, biases[index])
    for kind, edges in enumerate(plan.pools):
        pool = None
        if edges:
            pool = pooled(kind, image, stride, [operation.bn for _, operation in edges], statistics)
            scales = pool.rstd * on_pools[kind].unsqueeze(1)
            for index, (edge, _) in enumerate(edges):
                nodes.add_scaled(edge, pool.matrix, scales[index], width)
                if pool.mean is not None:
                    nodes.add_constant(edge, -scales[index] * pool.mean[index])
        saved.pools.append(pool)
    scales = (on_skips / dropout.kept).unsqueeze(1).expand(-1, image.shape[1])
    for index, edge in enumerate(plan.skips):
        passed = image * dropout.masks[edge] if edge in dropout.masks else image
        nodes.add_scaled(edge, rows(passed), scales[index], width)
    return saved


def backward_state(
    plan: StatePlan,
    image: Tensor,
    parameters: Sequence[Tensor],
    mixing: Tensor,
    dropout: Dropout,
    saved: Saved,
    grads: Sequence[Tensor],
    mean_grads: Sequence[Tensor],
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """From the gradients of the nodes, a row per pixel: those of the state, of its parameters and of its mixing weights."""
    first, _, second, dilated, outer, reduce1, _ = split(parameters, plan.parameter_groups)
    on_outer, on_reduce, *on_pools, on_skips = mixing.split(plan.mixing_groups)
    relu = torch.relu(image)
    stride, small = plan.stride, target_shape(image, plan.stride)
    pixels = small[0] * small[2] * small[3]
    of_relu: list[Tensor] = []
    parameter_grads: list[list[Tensor]] = [[] for _ in plan.parameter_groups]
    mixing_grads: list[Tensor] = []

    def norm_grads(norms: Norms, mixing: Tensor, edges: list[int], inputs: list[Tensor]) -> NormGrads:
        products = torch.stack([grads[EDGES[edge][1]].t() @ matrix for edge, matrix in zip(edges, inputs, strict=True)])
        means = torch.stack([mean_grads[EDGES[edge][1]] for edge in edges])
        return normalise_grads(norms, mixing, means, products, pixels)

    if outer:
        assert saved.outer_norms is not None
        edges = [edge for edge, _ in (*plan.separable, *plan.dilated)]
        found = norm_grads(saved.outer_norms, on_outer, edges, saved.outer)
        mixing_grads.append(found.mixing)
        parameter_grads[4] = as_pointwise(found.weight)
        of_outer = [
            as_images(input_grad(found, index, grads[EDGES[edge][1]], saved.outer[index]), small)
            for index, edge in enumerate(edges)
        ]
    if first:
        assert saved.inner_norms is not None
        of_inner = []
        for weight, middle, grad in zip(second, middles(saved, small), of_outer[: len(first)], strict=True):
            parameter_grads[2].append(depthwise_weight_grad(middle, grad, weight.shape[-1]))
            grad = depthwise_input_grad(grad, weight, small)
            of_inner.append(rows(torch.ops.aten.threshold_backward(grad, middle, 0)))
        means = torch.stack([grad.sum(0) for grad in of_inner]) / pixels
        products = torch.stack([grad.t() @ matrix for grad, matrix in zip(of_inner, saved.inner, strict=True)])
        found = normalise_grads(saved.inner_norms, None, means, products, pixels)
        parameter_grads[1] = as_pointwise(found.weight)
        for index, weight in enumerate(first):
            grad = as_images(input_grad(found, index, of_inner[index], saved.inner[index]), small)
            parameter_grads[0].append(depthwise_weight_grad(relu, grad, weight.shape[-1], stride))
            of_relu.append(depthwise_input_grad(grad, weight, relu.shape, stride))
    if dilated:
        pixels_read, dilation = (relu, 2) if stride == 1 else (even_pixels(relu), 1)
        of_even = []
        for weight, grad in zip(dilated, of_outer[len(first) :], strict=True):
            parameter_grads[3].append(depthwise_weight_grad(pixels_read, grad, weight.shape[-1], 1, dilation))
            of_even.append(depthwise_input_grad(grad, weight, pixels_read.shape, 1, dilation))
        total = add_all(of_even)
        of_relu.append(total if stride == 1 else spread(total, relu.shape, 0))
    if reduce1:
        assert saved.reduce_norms is not None
        assert saved.reduced is not None
        edges = [edge for edge, _ in plan.reduces]
        found = norm_grads(saved.reduce_norms, on_reduce, edges, [saved.reduced] * len(edges))
        mixing_grads.append(found.mixing)
        parameter_grads[5], parameter_grads[6] = unstack_reduce(found.weight)
        total = add_all([input_grad(found, index, grads[EDGES[edge][1]], saved.reduced) for index, edge in enumerate(edges)])
        for offset, half in enumerate(as_images(total, small).chunk(2, dim=1)):
            of_relu.append(spread(half, relu.shape, offset))
    of_image = []
    if of_relu:
        of_image.append(torch.ops.aten.threshold_backward(add_all(of_relu), relu, 0))
    for kind, edges_and_pools in enumerate(plan.pools):
        if edges_and_pools:
            pool = saved.pools[kind]
            assert pool is not None
            edges = [edge for edge, _ in edges_and_pools]
            of_pool, of_mixing = pooled_grad(pool, edges, on_pools[kind], grads, mean_grads, small[3])
            mixing_grads.append(of_mixing)
            of_image.append(unpooled(kind, pool, as_images(of_pool, small), image, stride))
    if plan.skips:
        scales = (on_skips / dropout.kept).unsqueeze(1).expand(-1, image.shape[1])
        total_skip: Tensor | None = None
        of_skips = []
        for index, edge in enumerate(plan.skips):
            grad = grads[EDGES[edge][1]]
            if edge in dropout.masks:
                grad = rows(as_images(grad, image.shape) * dropout.masks[edge])
            of_skips.append(torch.dot(grad.reshape(-1), rows(image).reshape(-1)))
            total_skip = add_scaled(total_skip, grad, scales[index], small[3])
        assert total_skip is not None
        mixing_grads.append(torch.stack(of_skips) / dropout.kept)
        of_image.append(as_images(total_skip, image.shape))
    return (
        rows(add_all(of_image)) if of_image else torch.zeros_like(rows(image)),
        [grad for group in parameter_grads for grad in group],
        mixing_grads,
    )


# ------------------------------------------------------------------------------------------------------------ small pieces


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


def middles(saved: Saved, shape: torch.Size) -> Any:
    """What the second halves of separable convolutions read: the first halves, normalised, after ReLU."""
    assert saved.inner_norms is not None
    weights, biases = normalised_weight(saved.inner_norms)
    for matrix, weight, bias in zip(saved.inner, weights, biases, strict=True):
        yield as_images(torch.addmm(bias, matrix, weight.t()).relu_(), shape)


def scaled(norms: Norms, mixing: Tensor) -> tuple[Tensor, Tensor]:
    weights, biases = normalised_weight(norms)
    return weights * mixing[:, None, None], biases * mixing[:, None]


def stack_pointwise(weights: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(weights)).flatten(2)


def as_pointwise(weights: Tensor) -> list[Tensor]:
    return list(weights[..., None, None].unbind())


def stack_reduce(weights1: Sequence[Tensor], weights2: Sequence[Tensor]) -> Tensor:
    """Factorized reductions as 1x1 convolutions of the even and the odd pixels side by side: (edges, out, 2 in), half zeros."""
    upper, lower = stack_pointwise(weights1), stack_pointwise(weights2)
    return torch.cat([F.pad(upper, (0, upper.shape[2])), F.pad(lower, (lower.shape[2], 0))], dim=1)


def unstack_reduce(weights: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    out, both = weights.shape[1:]
    return as_pointwise(weights[:, : out // 2, : both // 2]), as_pointwise(weights[:, out // 2 :, both // 2 :])


def pooled(kind: int, image: Tensor, stride: int, norms: list[nn.BatchNorm2d], statistics: Statistics) -> Pool:
    """Identity 3: one pool and, in training, one norm for all edges. Running statistics may differ between edges."""
    argmax = None
    if kind == 0:
        pool, argmax = F.max_pool2d(image, 3, stride, 1, return_indices=True)
    else:
        pool = average(box_filter(image, stride), image, stride)
    matrix = rows(pool)
    if not statistics.training:
        mean, rstd = running_statistics(norms)
        return Pool(matrix, rstd, mean, argmax)
    mean = matrix.mean(0)
    matrix = add_row(matrix, -mean, pool.shape[3])
    var = (matrix * matrix).mean(0)
    statistics.record(norms, mean.expand(len(norms), -1), var.expand(len(norms), -1), matrix.shape[0])
    return Pool(matrix, (var + norms[0].eps).rsqrt().expand(len(norms), -1), None, argmax)


def average(sums: Tensor, image: Tensor, stride: int) -> Tensor:
    """Divides 3x3 sums by the number of pixels inside the image, in place."""
    counts = box_filter(image.new_ones(1, 1, *image.shape[2:]), stride)
    batch, channels, height, width = sums.shape
    long = rows(sums).view(batch, height, width * channels)
    long.mul_(counts.view(height, width).reciprocal().repeat_interleave(channels, dim=1))
    return sums


def pooled_grad(
    pool: Pool, edges: list[int], mixing: Tensor, grads: Sequence[Tensor], mean_grads: Sequence[Tensor], width: int
) -> tuple[Tensor, Tensor]:
    """Backward of identity 3: the gradient of the pooled state, and of the mixing weights."""
    pixels = pool.matrix.shape[0]
    of_nodes = [grads[EDGES[edge][1]] for edge in edges]
    mean_grad = torch.stack([mean_grads[EDGES[edge][1]] for edge in edges])
    correlation = torch.stack([(grad * pool.matrix).sum(0) for grad in of_nodes]) / pixels
    if pool.mean is not None:
        correlation -= pool.mean * mean_grad
    correlation *= pool.rstd
    scales = pool.rstd * mixing.unsqueeze(1)
    total: Tensor | None = None
    for index, grad in enumerate(of_nodes):
        total = add_scaled(total, grad, scales[index], width)
    assert total is not None
    if pool.mean is None:
        add_scaled(total, pool.matrix, -(scales * pool.rstd * correlation).sum(0), width)
        add_row(total, -(scales * mean_grad).sum(0), width)
    return total, correlation.sum(1) * pixels


def unpooled(kind: int, pool: Pool, grad: Tensor, image: Tensor, stride: int) -> Tensor:
    if kind == 0:
        window = [3, 3], [stride, stride], [1, 1], [1, 1], False
        return torch.ops.aten.max_pool2d_with_indices_backward(grad, image, *window, pool.argmax)
    return box_filter_grad(average(grad, image, stride), image.shape, stride)


# ------------------------------------------------------------------------------------------------------ autograd functions


class CellFunction(torch.autograd.Function):
    """The body of a cell: from two preprocessed states to four nodes."""

    @staticmethod
    def forward(
        ctx: Any,
        plans: Sequence[StatePlan],
        order: Tensor,
        inverse: Tensor,
        training: bool,
        masks: Tensor | None,
        kept: float,
        mixing: Tensor,
        state0: Tensor,
        state1: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        chosen = list(mixing.reshape(-1).index_select(0, order).split([len(plan.mixed) for plan in plans]))
        grouped = split(parameters, [sum(plan.parameter_groups) for plan in plans])
        statistics, nodes = Statistics(training), Nodes()
        states = [channels_last(state0), channels_last(state1)]
        shape = target_shape(state0, plans[0].stride)
        dropout = Dropout.of(plans, masks, kept)
        saved = []
        for source, plan in enumerate(plans):
            saved.append(forward_state(plan, states[source], grouped[source], chosen[source], dropout, nodes, statistics))
            if source > 0:
                states.append(nodes.finish(source - 1, state0, shape))
        statistics.update_running()
        tensors: list[Tensor] = []
        ctx.tree = pack([states[:-1], chosen, list(parameters), masks, saved], tensors)
        ctx.save_for_backward(*tensors)
        ctx.plans, ctx.inverse, ctx.mixing_shape, ctx.kept = plans, inverse, mixing.shape, kept
        return tuple(states[2:])

    @staticmethod
    def backward(ctx: Any, *node_grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        states, chosen, parameters, masks, saved = unpack(ctx.tree, ctx.saved_tensors)
        plans: Sequence[StatePlan] = ctx.plans
        grouped = split(parameters, [sum(plan.parameter_groups) for plan in plans])
        dropout = Dropout.of(plans, masks, ctx.kept)
        grads = [rows(channels_last(grad)) for grad in node_grads]
        mean_grads = [grads[-1].mean(0)] * NUM_NODES  # each is replaced before its node's turn
        of_states: list[Tensor] = []
        of_parameters: list[list[Tensor]] = []
        of_mixing: list[list[Tensor]] = []
        for source in reversed(range(len(plans))):
            of_state, of_weights, of_chosen = backward_state(
                plans[source], states[source], grouped[source], chosen[source], dropout, saved[source], grads, mean_grads
            )
            of_parameters.insert(0, of_weights)
            of_mixing.insert(0, of_chosen)
            if source < 2:
                of_states.insert(0, as_images(of_state, states[source].shape))
            else:
                grads[source - 2] = of_state.add_(grads[source - 2])
                mean_grads[source - 2] = grads[source - 2].mean(0)
        zero = mean_grads[0].new_zeros(1)  # for `none` and padding
        flat = torch.cat([*(grad for group in of_mixing for grad in group), zero]).index_select(0, ctx.inverse)
        return (
            *(None,) * 6,
            flat.view(ctx.mixing_shape),
            *of_states,
            *(grad for group in of_parameters for grad in group),
        )


class AdaptFunction(torch.autograd.Function):
    """ReLU, 1x1 convolution, norm of a list of images that stand for their concatenation: what cells preprocess inputs with.

    Its norm's output is a state, so it is in memory anyway, and is all that the norm's backward needs. A factorized reduction is
    two such convolutions (`halves` = 2), of the even and of the odd pixels; their outputs side by side share the norm.
    """

    @staticmethod
    def forward(ctx: Any, norm: nn.BatchNorm2d, training: bool, halves: int, *tensors: Tensor) -> Tensor:
        weights, images = tensors[:halves], [channels_last(image) for image in tensors[halves:]]
        shape = target_shape(images[0], halves)
        out = images[0].new_empty(shape[0] * shape[2] * shape[3], halves * weights[0].shape[0])
        for index, blocks in enumerate(adapt_blocks(weights, images)):
            for matrix, weight, part in zip(adapt_inputs(images[index], halves), blocks, out.chunk(halves, 1), strict=True):
                if index == 0:
                    torch.mm(matrix, weight.t(), out=part)
                else:
                    part.addmm_(matrix, weight.t())
        long = out.view(-1, shape[3] * out.shape[1])
        if training:
            mean = out.mean(0)
            add_row(out, -mean, shape[3])
            var = (out * out).mean(0)
            statistics = Statistics(training)
            statistics.record([norm], mean.unsqueeze(0), var.unsqueeze(0), out.shape[0])
            statistics.update_running()
            rstd = (var + norm.eps).rsqrt()
        else:
            (mean,), (rstd,) = running_statistics([norm])
            add_row(out, -mean, shape[3])
        long.mul_(rstd.repeat(shape[3]))
        state = as_images(out, shape)
        ctx.save_for_backward(state, rstd, *weights, *images)
        ctx.training, ctx.halves = training, halves
        return state

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        state, rstd, *tensors = ctx.saved_tensors
        weights, images = tensors[: ctx.halves], tensors[ctx.halves :]
        matrix, width = rows(channels_last(grad)), state.shape[3]
        of_out = add_scaled(None, matrix, rstd, width)
        if ctx.training:
            add_scaled(of_out, rows(state), -rstd * (matrix * rows(state)).mean(0), width)
            add_row(of_out, -rstd * matrix.mean(0), width)
        of_weights: list[list[Tensor]] = [[] for _ in weights]
        of_images = []
        for image, blocks in zip(images, adapt_blocks(weights, images), strict=True):
            of_inputs = []
            parts = of_out.chunk(ctx.halves, 1)
            for half, (read, weight, part) in enumerate(zip(adapt_inputs(image, ctx.halves), blocks, parts, strict=True)):
                of_weights[half].append(part.t() @ read)
                of_inputs.append(as_images(part @ weight, state.shape))
            if ctx.halves == 2:
                of_inputs = [spread(part, image.shape, offset) for offset, part in enumerate(of_inputs)]
            of_images.append(torch.ops.aten.threshold_backward(add_all(of_inputs), image, 0))
        return None, None, None, *(torch.cat(part, 1)[..., None, None] for part in of_weights), *of_images


def adapt_inputs(image: Tensor, halves: int) -> list[Tensor]:
    relu = torch.relu(image)
    return [rows(relu)] if halves == 1 else [rows(even_pixels(relu)), rows(even_pixels(shift(relu)))]


def adapt_blocks(weights: Sequence[Tensor], images: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """Per image, the columns of each weight that read it."""
    widths = [image.shape[1] for image in images]
    return list(zip(*(weight.flatten(1).split(widths, 1) for weight in weights), strict=True))


def refuse_second_order() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError("the fast evaluation is first-order only: for higher orders build Supernet(..., evaluation='plain')")
