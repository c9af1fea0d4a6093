"""What the fast evaluation of a cell does in which order, decided once from the cell's operations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pdarts_tune.networks.operations import DilConv, FactorizedReduce, PoolBN, SepConv
from pdarts_tune.pdarts.space import EDGES, NUM_NODES, CellOps

POOLS = ("max_pool_3x3", "avg_pool_3x3")
MANY = 4  # branches above which the zeros around a 3x3 kernel that is evaluated as a 5x5 one cost more than a further call


class Run(NamedTuple):
    """Consecutive branches that end in consecutive nodes."""

    branches: slice
    nodes: slice


@dataclass(frozen=True)
class Chunk:
    """Convolution branches that are evaluated side by side."""

    branches: slice  # of the state's convolution branches: separable ones, then dilated ones
    kernels: tuple[int, ...]
    runs: tuple[Run, ...]

    @property
    def kernel(self) -> int:
        return max(self.kernels)

    @property
    def count(self) -> int:
        return self.branches.stop - self.branches.start


# For large images and for small ones. Side by side, large images would no longer fit the processor's cache and zeros around small
# kernels cost more than they save: at most two branches of one kernel. Small images: as few chunks as possible.
Chunks = tuple[tuple[Chunk, ...], tuple[Chunk, ...]]


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

    separable_chunks: Chunks
    dilated_chunks: Chunks

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


def _chunks(branches: Sequence[tuple[int, str]], start: int) -> Chunks:
    """Chunks of branches, which come sorted by kernel."""
    kernels = [int(name[-1]) for _, name in branches]
    by_kernel = [[size for size in kernels if size == kernel] for kernel in (3, 5)]
    pairs = [sizes[first : first + 2] for sizes in by_kernel for first in range(0, len(sizes), 2)]
    large = tuple(_cut(branches, pairs, start))
    return large, tuple(_cut(branches, by_kernel if len(kernels) > MANY else [kernels], start))


def _cut(branches: Sequence[tuple[int, str]], groups: Sequence[Sequence[int]], start: int) -> Iterator[Chunk]:
    first = 0
    for kernels in filter(None, groups):
        last = first + len(kernels)
        runs = runs_of([edge for edge, _ in branches[first:last]])
        yield Chunk(slice(start + first, start + last), tuple(kernels), runs)
        first = last


def runs_of(edges: Sequence[int]) -> tuple[Run, ...]:
    """The nodes that edges end in, as few runs as possible."""
    return tuple(_runs([EDGES[edge][1] for edge in edges]))


def _runs(nodes: Sequence[int]) -> Iterator[Run]:
    start = 0
    for stop in range(1, len(nodes) + 1):
        if stop == len(nodes) or nodes[stop] != nodes[stop - 1] + 1:
            yield Run(slice(start, stop), slice(nodes[start], nodes[stop - 1] + 1))
            start = stop


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


def split(items: Any, sizes: Sequence[int]) -> list[Any]:
    """Consecutive groups of the given sizes, of a sequence or of a tensor's rows."""
    groups, start = [], 0
    for size in sizes:
        groups.append(items[start : start + size])
        start += size
    return groups
