"""The fast evaluation of the search network: one hand-written forward and backward per cell.

It computes what the modules of `supernet.Cell` compute one by one, in another order (`cell_kernels` has the identities):

- relu(state), the pools of a state and their norms are computed once, not once for every edge that leaves the state;
- `none` adds nothing, so it is not computed (its alpha's gradient is zero);
- a dilated convolution of stride 2 reads every second pixel only, so it is an ordinary one on those pixels;
- no batch norm's output, and of a final 1x1 convolution not even its input to the norm, is ever in memory;
- a cell's output stays four tensors, one per node: their consumers are linear in them or work channel by channel.

Backward keeps the depthwise convolutions' outputs and the pools; the rest follows from them and the states. With `recompute` it
keeps the pools only. It is first-order only: a gradient of a gradient needs `evaluation="plain"`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pdarts_tune.cell_kernels import add_row, add_scaled, as_images, channels_last, rows
from pdarts_tune.cell_nodes import SeparateNodes, WideNodes
from pdarts_tune.cell_ops import (
    CellPass,
    State,
    add_all,
    backward_convolutions,
    backward_pool,
    backward_reduces,
    backward_skips,
    even_pixels,
    forward_convolutions,
    forward_pool,
    forward_reduces,
    forward_skips,
    spread,
    target_shape,
)
from pdarts_tune.cell_plan import StatePlan, Statistics, running_statistics, split
from pdarts_tune.ops import shift
from pdarts_tune.space import NUM_NODES

WIDE_LIMIT = 2**23  # multiply-adds of a side-by-side 1x1 convolution above which its zeros cost more than the operations it saves


class Settings(NamedTuple):
    """How a cell is to be evaluated."""

    training: bool  # batch statistics and dropout
    recompute: bool  # keep less for backward
    kept: float  # share of elements that skip dropout keeps


class CellFunction(torch.autograd.Function):
    """The body of a cell: from two preprocessed states to four nodes.

    `constants` are the three of `cell_plan.mixing_order`; `masks` those of skip dropout, one per skip edge.
    """

    @staticmethod
    def forward(
        ctx: Any,
        plans: Sequence[StatePlan],
        settings: Settings,
        constants: tuple[Tensor, Tensor, Tensor],
        masks: Tensor | None,
        mixing: Tensor,
        state0: Tensor,
        state1: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        chosen = mixing.reshape(-1).index_select(0, constants[0])
        images = [channels_last(state0), channels_last(state1)]
        cell = open_pass(plans, settings, masks, images[0])
        groups = by_state(plans, parameters, chosen, constants[2])
        saved: list[list[Tensor | None]] = []
        for source, plan in enumerate(plans):
            state = State(plan, images[source], *groups[source])
            saved.append(forward_convolutions(state, cell) if state.outer else [])
            if state.reduce1:
                saved[-1] += forward_reduces(state, cell)
            for kind, edges in enumerate(plan.pools):
                if edges:
                    saved[-1] += forward_pool(state, cell, kind)
            if plan.skips:
                forward_skips(state, cell)
            if source > 0:
                images.append(as_images(cell.nodes.finish(source - 1, cell.sums[source - 1]), cell.shape))
        cell.statistics.update_running()
        ctx.plans, ctx.settings, ctx.constants, ctx.mixing_shape = plans, settings, constants, mixing.shape
        ctx.sizes = [len(plans), 2, len(parameters), *map(len, saved)]
        ctx.save_for_backward(*images[:-1], masks, chosen, *parameters, *(tensor for part in saved for tensor in part))
        return tuple(images[2:])

    @staticmethod
    def backward(ctx: Any, *node_grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        with full_precision(node_grads[0].device):
            return CellFunction._backward(ctx, node_grads)

    @staticmethod
    def _backward(ctx: Any, node_grads: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
        plans: Sequence[StatePlan] = ctx.plans
        images, (masks, chosen), parameters, *saved = split(ctx.saved_tensors, ctx.sizes)
        cell = open_pass(plans, ctx.settings, masks, images[0], [rows(channels_last(grad)) for grad in node_grads])
        groups = by_state(plans, parameters, chosen, ctx.constants[2])
        of_states: list[Tensor] = []
        of_parameters: list[Tensor] = []
        of_mixing: list[Tensor] = [chosen.new_zeros(1)]  # the last one is for `none` and padding
        for source in reversed(range(len(plans))):
            if source > 0:  # the first node that reads this state is complete now
                cell.sums[source - 1] = cell.nodes.matrix(source - 1).sum(0)
            of_image, of_weights, of_chosen = backward_state(
                State(plans[source], images[source], *groups[source]), cell, iter(saved[source])
            )
            of_parameters = of_weights + of_parameters
            of_mixing = of_chosen + of_mixing
            if source < 2:
                of_states.insert(0, of_image)
            else:
                cell.nodes.add_to(source - 2, rows(of_image))
        of_flat = torch.cat(of_mixing).index_select(0, ctx.constants[1])
        return None, None, None, None, of_flat.view(ctx.mixing_shape), *of_states, *of_parameters


def backward_state(state: State, cell: CellPass, saved: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The gradients of the state, of its parameters, and of its mixing weights in parts."""
    of_weights: list[Tensor] = []
    of_mixing: list[Tensor] = []
    of_relu: list[Tensor] = []
    of_image: list[Tensor] = []
    if state.outer:
        weights, mixing, relu = backward_convolutions(state, cell, saved)
        of_weights, of_mixing, of_relu = weights, [mixing], relu
    if state.reduce1:
        weights, mixing, relu = backward_reduces(state, cell, saved)
        of_weights, of_mixing, of_relu = of_weights + weights, [*of_mixing, mixing], of_relu + relu
    if of_relu:
        of_image.append(torch.ops.aten.threshold_backward(add_all(of_relu), state.image, 0))
    for kind, edges in enumerate(state.plan.pools):
        if edges:
            mixing, image = backward_pool(state, cell, saved, kind)
            of_mixing.append(mixing)
            of_image.append(image)
    if state.plan.skips:
        mixing, image = backward_skips(state, cell)
        of_mixing.append(mixing)
        of_image.append(image)
    return add_all(of_image) if of_image else torch.zeros_like(state.image), of_weights, of_mixing


def open_pass(
    plans: Sequence[StatePlan], settings: Settings, masks: Tensor | None, image: Tensor, grads: Sequence[Tensor] | None = None
) -> CellPass:
    shape = target_shape(image, plans[0].stride)
    pixels, channels = shape[0] * shape[2] * shape[3], shape[1]
    widest = channels * max(max(len(plan.separable), len(plan.dilated)) for plan in plans)
    wide = pixels * widest**2 <= WIDE_LIMIT
    edges = sorted(edge for plan in plans for edge in plan.skips)
    return CellPass(
        (WideNodes if wide else SeparateNodes)(shape, image, grads),
        shape,
        wide,
        {} if masks is None else dict(zip(edges, masks.unbind(), strict=True)),
        1.0 if masks is None else settings.kept,
        Statistics(settings.training),
        settings.recompute,
        image.new_zeros(NUM_NODES, channels),
    )


def by_state(
    plans: Sequence[StatePlan], parameters: Sequence[Tensor], mixing: Tensor, incidence: Tensor
) -> list[tuple[Sequence[Tensor], Tensor, Tensor]]:
    """Each state's parameters, mixing weights and incidence."""
    sizes = [len(plan.mixed) for plan in plans]
    grouped = split(parameters, [sum(plan.parameter_groups) for plan in plans])
    return list(zip(grouped, mixing.split(sizes), incidence.split(sizes), strict=True))


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
        with full_precision(grad.device):
            return AdaptFunction._backward(ctx, grad)

    @staticmethod
    def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        state, rstd, *tensors = ctx.saved_tensors
        weights, images = tensors[: ctx.halves], tensors[ctx.halves :]
        matrix, width = rows(channels_last(grad)), state.shape[3]
        of_out = add_scaled(None, matrix, rstd.repeat(width))
        if ctx.training:
            add_scaled(of_out, rows(state), (-rstd * (matrix * rows(state)).mean(0)).repeat(width))
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


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Switches mixed precision off: products of moments cannot bear it. A cell computes in the precision of its weights."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def refuse_second_order() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError("the fast evaluation is first-order only: for higher orders build Supernet(..., evaluation='plain')")
