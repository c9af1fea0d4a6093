"""The fast evaluation of the search network: one hand-written forward and backward per cell.

It computes what the modules of `supernet.Cell` compute one by one, in another order. What makes it exact, and where:

- relu(state), the pools of a state and their norms are computed once, not once for every edge that leaves the state (`cell_pools`);
- branches with kernels of one size that leave a state are evaluated side by side (`cell_layout`, `cell_convolutions`);
- no output of a norm before a node is ever in memory, and of a final 1x1 convolution not even its own (`cell_norms`);
- gradients of depthwise convolutions are what libraries are fast at (`cell_depthwise`);
- `none` adds nothing, so it is not computed (its alpha's gradient is zero);
- a dilated convolution of stride 2 reads every second pixel only, so it is an ordinary one on those pixels;
- a cell's output stays four nodes: their consumers are linear in them or work channel by channel (`cell_adapt`).

Backward keeps the depthwise convolutions' outputs and the pools; the rest follows from them and the states. With `recompute` it
keeps the states only. It is first-order only: a gradient of a gradient needs `evaluation="plain"`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pdarts_tune.networks.cell_adapt import full_precision, refuse_second_order
from pdarts_tune.networks.cell_convolutions import backward_convolutions, forward_convolutions
from pdarts_tune.networks.cell_layout import add_all, channels_last, rows, target_shape
from pdarts_tune.networks.cell_norms import Statistics
from pdarts_tune.networks.cell_plan import StatePlan, split
from pdarts_tune.networks.cell_pools import (
    backward_pool,
    backward_reduces,
    backward_skips,
    forward_pool,
    forward_reduces,
    forward_skips,
)
from pdarts_tune.networks.cell_state import CellPass, State
from pdarts_tune.pdarts.space import NUM_NODES


class Settings(NamedTuple):
    """How a cell is to be evaluated."""

    training: bool  # batch statistics and dropout
    recompute: bool  # keep less for backward
    kept: float  # share of elements that skip dropout keeps


class CellFunction(torch.autograd.Function):
    """The body of a cell: from two preprocessed states to its nodes, (nodes, batch, height, width, channels).

    `constants` are the three of `cell_plan.mixing_order` and a `cell_norms.unit`; `masks` those of skip dropout, one per skip edge.
    """

    @staticmethod
    def forward(
        ctx: Any,
        plans: Sequence[StatePlan],
        settings: Settings,
        constants: tuple[Tensor, Tensor, Tensor, Tensor],
        masks: Tensor | None,
        mixing: Tensor,
        state0: Tensor,
        state1: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        chosen = mixing.reshape(-1).index_select(0, constants[0])
        states = channels_last(state0), channels_last(state1)
        shape = target_shape(states[0], plans[0].stride)
        batch, channels, height, width = shape
        cell = open_pass(
            plans, settings, masks, shape, states[0].new_zeros(NUM_NODES, batch * height * width, channels), constants[3]
        )
        groups = by_state(plans, parameters, chosen, constants[2])
        saved: list[list[Tensor | None]] = []
        for source, plan in enumerate(plans):
            state = State(plan, states[source] if source < 2 else cell.images(source - 2), *groups[source], cell.scratch)
            saved.append(forward_convolutions(state, cell) if state.outer else [])
            if state.reduce1:
                saved[-1] += forward_reduces(state, cell)
            for kind, edges in enumerate(plan.pools):
                if edges:
                    saved[-1] += forward_pool(state, cell, kind)
            if plan.skips:
                forward_skips(state, cell)
            if source > 0:  # the last edge into this node has been added
                cell.subtract(source - 1)
        cell.statistics.update_running()
        output = cell.nodes.view(NUM_NODES, batch, height, width, channels)
        ctx.plans, ctx.settings, ctx.constants, ctx.mixing_shape = plans, settings, constants, mixing.shape
        ctx.sizes = [2, 3, len(parameters), *map(len, saved)]
        ctx.save_for_backward(*states, output, masks, chosen, *parameters, *(tensor for part in saved for tensor in part))
        return output

    @staticmethod
    def backward(ctx: Any, node_grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_order()
        with full_precision(node_grads.device):
            return CellFunction._backward(ctx, node_grads.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def _backward(ctx: Any, node_grads: Tensor) -> tuple[Tensor | None, ...]:
        plans: Sequence[StatePlan] = ctx.plans
        states, (output, masks, chosen), parameters, *saved = split(ctx.saved_tensors, ctx.sizes)
        images = [*states, *output.permute(0, 1, 4, 2, 3)]
        cell = open_pass(plans, ctx.settings, masks, images[2].shape, node_grads.flatten(1, 3), ctx.constants[3])
        groups = by_state(plans, parameters, chosen, ctx.constants[2])
        of_states: list[Tensor] = []
        of_parameters: list[Tensor] = []
        of_mixing: list[Tensor] = [chosen.new_zeros(1)]  # the last one is for `none` and padding
        for source in reversed(range(len(plans))):
            if source > 0:  # the first node that reads this state is complete now
                torch.sum(cell.nodes[source - 1], 0, out=cell.sums[source - 1])
            of_image, of_weights, of_chosen = backward_state(
                State(plans[source], images[source], *groups[source], cell.scratch), cell, iter(saved[source])
            )
            of_parameters = of_weights + of_parameters
            of_mixing = of_chosen + of_mixing
            if source < 2:
                of_states.insert(0, of_image)
            else:
                cell.nodes[source - 2].add_(rows(of_image))
        of_flat = torch.cat(of_mixing).index_select(0, ctx.constants[1])
        return None, None, None, None, of_flat.view(ctx.mixing_shape), *of_states, *of_parameters


def backward_state(state: State, cell: CellPass, saved: Iterator[Tensor | None]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
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
            of_edges, image = backward_pool(state, cell, saved, kind)
            of_mixing += of_edges
            of_image.append(image)
    if state.plan.skips:
        of_edges, image = backward_skips(state, cell)
        of_mixing += of_edges
        of_image.append(image)
    return add_all(of_image) if of_image else torch.zeros_like(state.image), of_weights, of_mixing


def open_pass(
    plans: Sequence[StatePlan], settings: Settings, masks: Tensor | None, shape: torch.Size, nodes: Tensor, unit: Tensor
) -> CellPass:
    edges = sorted(edge for plan in plans for edge in plan.skips)
    return CellPass(
        nodes,
        nodes.new_zeros(NUM_NODES, shape[1]),
        shape,
        {} if masks is None else dict(zip(edges, masks.unbind(), strict=True)),
        1.0 if masks is None else settings.kept,
        Statistics(settings.training, nodes.shape[1]),
        settings.recompute,
        unit,
    )


def by_state(
    plans: Sequence[StatePlan], parameters: Sequence[Tensor], mixing: Tensor, incidence: Tensor
) -> list[tuple[Sequence[Tensor], Tensor, Tensor]]:
    """Each state's parameters, mixing weights and incidence."""
    sizes = [len(plan.mixed) for plan in plans]
    grouped = split(parameters, [sum(plan.parameter_groups) for plan in plans])
    return list(zip(grouped, split(mixing, sizes), split(incidence, sizes), strict=True))
