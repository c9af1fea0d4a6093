"""What the fast evaluation of a cell does in which order, decided once from the cell's operations; and its batch statistics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pdarts_tune.ops import DilConv, FactorizedReduce, PoolBN, SepConv
from pdarts_tune.space import EDGES, NUM_NODES, CellOps

POOLS = ("max_pool_3x3", "avg_pool_3x3")


@dataclass(frozen=True)
class Chunk:
    """Consecutive convolution branches that are evaluated side by side."""

    branches: slice
    nodes: tuple[int, ...]
    kernels: tuple[int, ...]

    @property
    def count(self) -> int:
        return len(self.nodes)


@dataclass(frozen=True)
class StatePlan:
    """The operations on the edges that leave one state; edges as positions in EDGES."""

    stride: int
    separable: tuple[tuple[int, SepConv], ...]
    dilated: tuple[tuple[int, DilConv], ...]
    reduces: tuple[tuple[int, FactorizedReduce], ...]  # skip-connects of stride 2
    pools: tuple[tuple[tuple[int, PoolBN], ...], ...]  # as POOLS
    skips: tuple[int, ...]  # skip-connects of stride 1
    mixed: tuple[tuple[int, str], ...]  # (edge, operation) of everything above, in order: where the mixing weights are

    separable_chunks: tuple[tuple[Chunk, ...], tuple[Chunk, ...]]  # one branch each; all side by side
    dilated_chunks: tuple[tuple[Chunk, ...], tuple[Chunk, ...]]  # these branches come after the separable ones

    def parameters(self) -> list[Tensor]:
        """Grouped as `split` takes them apart."""
        separable, dilated = [op for _, op in self.separable], [op for _, op in self.dilated]
        convolutions = [
            *(op.depthwise1 for op in separable),
            *(op.pointwise1 for op in separable),
            *(op.depthwise2 for op in separable),
            *(op.depthwise for op in dilated),
            *(op.pointwise2 for op in separable),
            *(op.pointwise for op in dilated),
            *(op.conv1 for _, op in self.reduces),
            *(op.conv2 for _, op in self.reduces),
        ]
        return [convolution.weight for convolution in convolutions]

    @property
    def parameter_groups(self) -> tuple[int, ...]:
        """Sizes: first depthwise, first pointwise, second depthwise, dilated depthwise, final pointwise, reduce 1, reduce 2."""
        separable, dilated, reduces = len(self.separable), len(self.dilated), len(self.reduces)
        return separable, separable, separable, dilated, separable + dilated, reduces, reduces

    @property
    def mixing_groups(self) -> tuple[int, ...]:
        """Sizes: final pointwise, reduces, max pools, average pools, skips."""
        return len(self.separable) + len(self.dilated), len(self.reduces), *map(len, self.pools), len(self.skips)


def plan_states(edges: Iterable[nn.Module], reduction: bool) -> tuple[StatePlan, ...]:
    """A plan for each state that an edge leaves."""
    by_name = [dict(operations.named_children()) for operations in edges]
    return tuple(_plan_state(by_name, source, 2 if reduction and source < 2 else 1) for source in range(NUM_NODES + 1))


def _plan_state(edges: Sequence[dict[str, nn.Module]], source: int, stride: int) -> StatePlan:
    leaving = [edge for edge, (start, _) in enumerate(EDGES) if start == source]

    def find(*names: str) -> list[tuple[int, str]]:
        return [(edge, name) for name in names for edge in leaving if name in edges[edge]]

    def modules(found: list[tuple[int, str]]) -> tuple[Any, ...]:
        return tuple((edge, edges[edge][name]) for edge, name in found)

    separable, dilated = find("sep_conv_3x3", "sep_conv_5x5"), find("dil_conv_3x3", "dil_conv_5x5")
    pools, skips = [find(name) for name in POOLS], find("skip_connect")
    return StatePlan(
        stride,
        modules(separable),
        modules(dilated),
        modules(skips) if stride == 2 else (),
        tuple(modules(pool) for pool in pools),
        tuple(edge for edge, _ in skips) if stride == 1 else (),
        (*separable, *dilated, *(skips if stride == 2 else ()), *pools[0], *pools[1], *(skips if stride == 1 else ())),
        _chunks(separable, 0),
        _chunks(dilated, len(separable)),
    )


def _chunks(branches: list[tuple[int, str]], start: int) -> tuple[tuple[Chunk, ...], tuple[Chunk, ...]]:
    nodes = tuple(EDGES[edge][1] for edge, _ in branches)
    kernels = tuple(int(name[-1]) for _, name in branches)
    single = tuple(
        Chunk(slice(start + index, start + index + 1), nodes[index : index + 1], kernels[index : index + 1])
        for index in range(len(branches))
    )
    return single, (Chunk(slice(start, start + len(branches)), nodes, kernels),) if branches else ()


def mixing_order(plans: Sequence[StatePlan], operations: CellOps) -> tuple[Tensor, Tensor, Tensor]:
    """Three constants of a cell: where the planned operations are in the flattened mixing weights; the way back, in which
    operations that are not planned get the position behind the last; and, per planned operation, its node as a one-hot row.
    """
    width = max(len(names) for names in operations)
    order = [edge * width + operations[edge].index(name) for plan in plans for edge, name in plan.mixed]
    inverse = [len(order)] * (len(operations) * width)
    for position, flat in enumerate(order):
        inverse[flat] = position
    nodes = [EDGES[edge][1] for plan in plans for edge, _ in plan.mixed]
    incidence = torch.zeros(len(order), NUM_NODES)
    incidence[range(len(order)), nodes] = 1
    return torch.tensor(order, dtype=torch.long), torch.tensor(inverse), incidence


def split(items: Sequence[Any], sizes: Sequence[int]) -> list[Sequence[Any]]:
    """Consecutive groups of the given sizes."""
    groups, start = [], 0
    for size in sizes:
        groups.append(items[start : start + size])
        start += size
    return groups


class Statistics:
    """The batch norms of one forward pass: where their statistics come from, and go to."""

    def __init__(self, training: bool) -> None:
        self.training = training
        self._norms: list[nn.BatchNorm2d] = []
        self._means: list[Tensor] = []
        self._variances: list[Tensor] = []

    def record(self, norms: Sequence[nn.BatchNorm2d], means: Tensor, variances: Tensor, pixels: int) -> None:
        """Notes the batch statistics of norms, (norms, channels). Variances are the biased ones, running ones are not."""
        if pixels < 2:
            raise ValueError("batch norm: a single pixel has no variance, train with larger images or batches")
        self._norms.extend(norms)
        self._means.extend(means.unbind())
        self._variances.extend((variances * (pixels / (pixels - 1))).unbind())

    def update_running(self) -> None:
        """Moves the running statistics towards what was recorded, as the modules themselves would."""
        if not self._norms:
            return
        momentum = self._norms[0].momentum
        assert momentum is not None
        torch._foreach_lerp_([_buffer(norm.running_mean) for norm in self._norms], self._means, momentum)
        torch._foreach_lerp_([_buffer(norm.running_var) for norm in self._norms], self._variances, momentum)
        torch._foreach_add_([_buffer(norm.num_batches_tracked) for norm in self._norms], 1)


def running_statistics(norms: Sequence[nn.BatchNorm2d]) -> tuple[Tensor, Tensor]:
    """Mean and 1 / standard deviation, (norms, channels)."""
    mean = torch.stack([_buffer(norm.running_mean) for norm in norms])
    var = torch.stack([_buffer(norm.running_var) for norm in norms])
    return mean, (var + norms[0].eps).rsqrt()


def _buffer(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
