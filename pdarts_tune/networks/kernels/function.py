"""A cell as one autograd function: tables for `cells.c`, and one call each way."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pdarts_tune.networks.kernels import build
from pdarts_tune.networks.operations import Conv7x1And1x7, DilConv, FactorizedReduce, PoolBN, SepConv, Zero
from pdarts_tune.pdarts.genotype import CellGenotype
from pdarts_tune.pdarts.space import EDGES, NUM_NODES

INPUT, MAX_POOL, AVERAGE_POOL, SKIP, REDUCE, SEPARABLE, DILATED = range(7)
SLACK = 64  # numbers behind a buffer that vectors may read, see `vectors.h`

# Columns of an operation's row, see `operation` in cells.c.
SOURCE, NODE, KIND, KERNEL, MIX, FACTOR, MASK = range(7)
WEIGHTS = 7  # depthwise, product, depthwise of the last half, product of the last half; then their gradients
KEPT = 15  # what backward needs of the first half and of the last one
NORMS = 17, 24  # gamma, beta, their gradients, running mean, running variance, batches
WIDTH = 31
DEVICES = ("cpu", "meta")  # on the latter nothing is computed, and memory can be predicted
CHUNK = 2**24  # bytes: larger ones would go back to the system when they are freed, see `keep_freed_memory`

Table = np.ndarray[Any, np.dtype[np.int64]]
Drawn = Sequence[Tensor | None]  # masks, factors, mixing


class Edge(NamedTuple):
    """An operation on an edge of a cell."""

    source: int  # a state
    node: int
    operation: nn.Module
    mix: int = 0  # position in the flattened mixing weights
    factor: int = -1  # row of the drop path factors; -1: never dropped
    mask: int = -1  # row of the skip dropout masks; -1: none


class Settings(NamedTuple):
    training: bool  # batch statistics
    recompute: bool = False  # keep the cell's inputs alone for backward
    kept: float = 1.0  # the share of elements that skip dropout keeps


class _Input(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "of_x")),
        *((name, ctypes.c_int64) for name in ("node", "image", "nodes", "channels", "height", "width", "halves")),
    ]


class _Cell(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "channels", "height", "width", "in_height", "in_width", "stride")),
        *((name, ctypes.c_int64) for name in ("nodes", "operations", "training", "recompute", "threads")),
        *((name, ctypes.c_double) for name in ("eps", "momentum", "kept")),
        ("inputs", _Input * 2),
        *((name, ctypes.c_void_p) for name in ("mixing", "factors", "masks", "of_mixing", "nodes_out", "of_nodes", "stats", "op")),
    ]


class Plan:
    """The operations of a cell, as the tables that its calls fill with addresses.

    Raises:
        ValueError: an operation that has no kernel.
    """

    def __init__(self, preprocess: Sequence[nn.Module], edges: Sequence[Edge], channels: int, nodes: int, stride: int) -> None:
        edges = sorted((edge for edge in edges if not isinstance(edge.operation, Zero)), key=lambda edge: edge[:2])
        inputs = [Edge(source, -1, operation) for source, operation in enumerate(preprocess)]
        self.channels, self.nodes, self.stride = channels, nodes, stride
        self.in_channels = [_parts(operation)[0][-1].shape[1] for operation in preprocess]
        self.halves = [2 if isinstance(operation, FactorizedReduce) else 1 for operation in preprocess]
        self.parameters: list[Tensor] = []
        self.norms: list[nn.BatchNorm2d] = []
        self.table = np.zeros((len(edges) + 2, WIDTH), np.int64)
        kept: list[tuple[int, int]] = []
        places: list[tuple[int, int, int]] = []  # of parameters: row, column, column of the gradient
        self._norm_places: list[tuple[int, int]] = []
        for row, edge in enumerate([*inputs, *edges]):
            operation, is_input = edge.operation, row < 2
            kind = INPUT if is_input else _kind(operation)
            weights, norms = _parts(operation)
            kernel = weights[0].shape[-1] if kind in (SEPARABLE, DILATED) else 3
            self.table[row, :WEIGHTS] = (edge.source, edge.node, kind, kernel, edge.mix, edge.factor, edge.mask)
            for weight, column in zip(weights, range(WEIGHTS + 4 - len(weights), WEIGHTS + 4), strict=True):
                places.append((row, column, column + 4))
                self.parameters.append(weight)
            for norm, column in zip(norms, NORMS[-len(norms) :] if norms else (), strict=True):
                self.norms.append(norm)
                self._norm_places.append((row, column + 4))
                for index, parameter in enumerate((norm.weight, norm.bias) if norm.affine else ()):
                    places.append((row, column + index, column + index + 2))
                    self.parameters.append(parameter)
            if not is_input:
                kept += [(row, KEPT + half) for half in (0, 1) if kind == SEPARABLE or (half and kind in (REDUCE, DILATED))]
        rows, columns, gradients = np.array(places).T
        self._parameter_places, self._gradient_places = (rows, columns), (rows, gradients)
        rows, columns = np.array(self._norm_places).T
        self._buffer_places = np.stack([rows] * 3, 1).ravel(), np.stack([columns, columns + 1, columns + 2], 1).ravel()
        self.kept_places = tuple(np.array(kept, np.int64).reshape(-1, 2).T)
        self.sizes = [parameter.numel() for parameter in self.parameters]
        self.shapes = [parameter.shape for parameter in self.parameters]
        self._offsets = np.cumsum([0, *self.sizes[:-1]])
        self.total = sum(self.sizes)

    def addresses(self, parameters: Sequence[Tensor], dtype: torch.dtype) -> Table:
        """The table with the addresses of parameters and running statistics."""
        table = self.table.copy()
        for parameter, shape in zip(parameters, self.shapes, strict=True):
            if parameter.dtype != dtype or parameter.shape != shape or not parameter.is_contiguous():
                raise ValueError(
                    f"a parameter is {tuple(parameter.shape)} of {parameter.dtype}, expected {tuple(shape)} of {dtype}"
                )
        table[self._parameter_places] = [parameter.data_ptr() for parameter in parameters]
        buffers = [norm._buffers for norm in self.norms]
        table[self._buffer_places] = [
            part[name].data_ptr()  # type: ignore[union-attr]
            for part in buffers
            for name in ("running_mean", "running_var", "num_batches_tracked")
        ]
        return table

    def gradients(self, table: Table, flat: Tensor) -> list[Tensor]:
        """Parts of `flat` for the gradients of the parameters; their addresses go to the table."""
        table[self._gradient_places] = flat.data_ptr() + flat.element_size() * self._offsets
        return [part.view(shape) for part, shape in zip(flat.split(self.sizes), self.shapes, strict=True)]

    def chunks(self, node: Tensor) -> list[Tensor]:
        """Memory for what backward needs: a node's size for each of `kept_places`."""
        left, at_once = len(self.kept_places[0]), _units_of_chunk(node)
        return [_buffer((min(at_once, left - start) * node.numel(),), node) for start in range(0, left, at_once)]

    def place(self, table: Table, states: Sequence[Tensor], saved: Sequence[Tensor], node: Tensor) -> None:
        """The addresses of it all go to the table."""
        table[:2, KEPT + 1] = [state.data_ptr() for state in states]
        if saved:
            at_once, size, starts = _units_of_chunk(node), node.numel() * node.element_size(), [part.data_ptr() for part in saved]
            table[self.kept_places] = [starts[i // at_once] + i % at_once * size for i in range(len(self.kept_places[0]))]

    def call(self, settings: Settings, before: Sequence[Tensor], output: Tensor, stats: Tensor, drawn: Drawn) -> _Cell:
        norm = self.norms[0]  # all are alike; whoever freezes statistics sets their momentum
        _, batch, height, width, channels = output.shape
        state, threads = self.state_size(before[1], 1), min(torch.get_num_threads(), batch)
        shape = batch, channels, height, width, *state, self.stride, self.nodes, len(self.table)
        cell = _Cell(*shape, settings.training, settings.recompute, threads, norm.eps, norm.momentum, settings.kept)
        for index, (tensor, halves) in enumerate(zip(before, self.halves, strict=True)):
            nodes, _, height, width, channels = tensor.shape
            cell.inputs[index] = _Input(tensor.data_ptr(), None, *tensor.stride()[:2], nodes, channels, height, width, halves)
        cell.masks, cell.factors, cell.mixing = (None if tensor is None else tensor.data_ptr() for tensor in drawn)
        cell.nodes_out, cell.stats = output.data_ptr(), stats.data_ptr()
        return cell

    def state_size(self, before: Tensor, index: int) -> tuple[int, int]:
        halves = self.halves[index]
        return -(-before.shape[2] // halves), -(-before.shape[3] // halves)


def search_plan(
    preprocess: Sequence[nn.Module],
    edges: Sequence[nn.ModuleDict],
    channels: int,
    reduction: bool,
    skip_edges: Sequence[int],
    auxiliary: Sequence[nn.Module] = (),
) -> Plan:
    """The plan of a search network's cell: a module for each candidate operation of each edge.

    Skip dropout masks, where there are any, belong to `skip_edges` in this order. Drop path factors have a row for each edge and
    column of alphas; identities are never dropped. `auxiliary` modules, one an edge, have the last column of the mixing weights.
    """
    columns = max(len(operations) for operations in edges)
    width = columns + bool(auxiliary)
    found = []
    for index, ((source, node), operations) in enumerate(zip(EDGES, edges, strict=True)):
        for column, (name, operation) in enumerate(operations.items()):
            mask = skip_edges.index(index) if name == "skip_connect" and index in skip_edges else -1
            factor = -1 if isinstance(operation, nn.Identity) else index * columns + column
            found.append(Edge(source, node, operation, mix=index * width + column, factor=factor, mask=mask))
        if auxiliary:
            found.append(Edge(source, node, auxiliary[index], mix=index * width + columns))
    return Plan(preprocess, found, channels, NUM_NODES, 1 + reduction)


def evaluation_plan(
    preprocess: Sequence[nn.Module], operations: Sequence[nn.Module], genotype: CellGenotype, channels: int, reduction: bool
) -> Plan | None:
    """The plan of an evaluation network's cell, without operations that have no kernel: the caller adds their outputs to the nodes.

    None if another edge reads such a node, or the output has a state before the nodes. Drop path factors have a row for each edge;
    identities are never dropped.
    """
    sources = {source for _, source in genotype.edges}
    added = {2 + index // 2 for index, operation in enumerate(operations) if isinstance(operation, Conv7x1And1x7)}
    if min(genotype.concat) < 2 or sources & added:
        return None
    edges = [
        Edge(source, index // 2, operation, factor=-1 if isinstance(operation, nn.Identity) else index)
        for index, (operation, (_, source)) in enumerate(zip(operations, genotype.edges, strict=True))
        if not isinstance(operation, Conv7x1And1x7)
    ]
    return Plan(preprocess, edges, channels, genotype.num_nodes, 1 + reduction)


def evaluate(
    plan: Plan,
    settings: Settings,
    before2: Tensor,
    before1: Tensor,
    mixing: Tensor | None = None,
    masks: Tensor | None = None,
    factors: Tensor | None = None,
) -> Tensor:
    """A cell's nodes, (nodes, batch, height, width, channels), from those of the cells before. Images are a single node.

    `mixing` is a row per edge (search), `masks` are (skip edges, batch, channels, height, width), `factors` (edges, batch).
    """
    masks = None if masks is None else masks.permute(0, 1, 3, 4, 2)
    return CellFunction.apply(plan, settings, masks, factors, mixing, before2, before1, *plan.parameters)


def as_nodes(images: Tensor) -> Tensor:
    """Images as a single node: (1, batch, height, width, channels)."""
    return images.permute(0, 2, 3, 1).contiguous().unsqueeze(0)


def joined(nodes: Tensor) -> Tensor:
    """Nodes, (nodes, batch, height, width, channels), as images: side by side along the channels."""
    return nodes.permute(1, 0, 4, 2, 3).flatten(1, 2)


class CellFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plan: Plan, settings: Settings, *tensors: Any) -> Tensor:
        """Of masks, factors, mixing, before2, before1 and the plan's parameters. Saved for backward: all that it reads."""
        before, parameters = [_rows_contiguous(tensor) for tensor in tensors[3:5]], tensors[5:]
        _, batch, *_ = before[1].shape
        height, width = plan.state_size(before[1], 1)
        like, table = before[1], plan.addresses(parameters, before[1].dtype)
        check(plan, settings, tensors[:3], before)
        drawn = [None if tensor is None else tensor.contiguous() for tensor in tensors[:3]]
        size = batch, -(-height // plan.stride), -(-width // plan.stride), plan.channels
        output = _buffer((plan.nodes, *size), like)
        states = [_buffer((batch, height, width, plan.channels), like) for _ in before]
        saved = [] if settings.recompute else plan.chunks(output[0])
        plan.place(table, states, saved, output[0])
        stats = like.new_empty(4 * len(table) * plan.channels)
        cell = plan.call(settings, before, output, stats, drawn)
        cell.op = table.ctypes.data
        if not output.is_meta:
            run(build.load(like.dtype).forward, cell)
        ctx.plan, ctx.settings = plan, settings
        ctx.save_for_backward(*drawn, output, stats, *before, *states, *parameters, *saved)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("the kernels are first-order only: for higher orders use plain cells")
        plan, settings = ctx.plan, ctx.settings
        tensors = ctx.saved_tensors
        drawn, (output, stats), before, states = tensors[:3], tensors[3:5], tensors[5:7], tensors[7:9]
        parameters, saved = tensors[9 : 9 + len(plan.sizes)], tensors[9 + len(plan.sizes) :]
        table = plan.addresses(parameters, output.dtype)
        plan.place(table, states, saved, output[0])
        of_parameters = plan.gradients(table, output.new_empty(plan.total))
        of_nodes = _buffer(output.shape, output).copy_(grad)
        of_before = [torch.empty_like(t) if needed else None for t, needed in zip(before, ctx.needs_input_grad[5:7], strict=True)]
        of_mixing = None if drawn[2] is None else torch.zeros_like(drawn[2])
        cell = plan.call(settings, before, output, stats, drawn)
        cell.of_nodes, cell.of_mixing = of_nodes.data_ptr(), None if of_mixing is None else of_mixing.data_ptr()
        cell.op = table.ctypes.data
        for part, of_part in zip(cell.inputs, of_before, strict=True):
            part.of_x = None if of_part is None else of_part.data_ptr()
        run(build.load(output.dtype).backward, cell)
        return None, None, None, None, of_mixing, *of_before, *of_parameters


def run(function: Any, cell: _Cell) -> None:
    if function(ctypes.addressof(cell)):
        raise MemoryError("kernels: not enough memory for a cell")


def check(plan: Plan, settings: Settings, drawn: Drawn, before: Sequence[Tensor]) -> None:
    """What C relies on, before it is given an address. Raises ValueError: a tensor of another size or type than the cell's."""
    batch, dtype, (height, width) = before[1].shape[1], before[1].dtype, plan.state_size(before[1], 1)
    node = batch, -(-height // plan.stride), -(-width // plan.stride), plan.channels
    if batch < 1 or height < 1 or width < 1:
        raise ValueError(f"no pixels: {tuple(before[1].shape)}")
    if settings.training and math.prod(node[:3]) < 2:
        raise ValueError("batch norm: a single pixel has no variance, train with larger images or batches")
    for index, tensor in enumerate(before):
        if tensor.dtype != dtype or tensor.device.type not in DEVICES or tensor.shape[1] != batch:
            raise ValueError(
                f"input {index}: {tensor.dtype}, {tensor.device}, batch {tensor.shape[1]}; expected {dtype}, cpu, {batch}"
            )
        wanted = plan.in_channels[index]
        if tensor.shape[0] * tensor.shape[4] != wanted or plan.state_size(tensor, index) != (height, width):
            raise ValueError(f"input {index}: {tuple(tensor.shape)}; expected {wanted} channels, and states of {height} x {width}")
    columns = ("masks", MASK, torch.bool, node), ("factors", FACTOR, dtype, (batch,)), ("mixing", MIX, dtype, ())
    for (name, column, kind, shape), given in zip(columns, drawn, strict=True):
        rows = 1 + int(plan.table[2:, column].max(initial=-1))
        if given is None:
            if name == "mixing" and rows > 1:
                raise ValueError("mixing: there is none")
            continue
        length = given.numel() if name == "mixing" else len(given)
        if given.dtype != kind or given.device.type not in DEVICES or length < rows or (shape and given.shape[1:] != shape):
            raise ValueError(f"{name}: {tuple(given.shape)} of {given.dtype}; expected {rows} rows of {shape}, {kind}")


def _kind(operation: nn.Module) -> int:
    """Which kernel computes an operation. Raises ValueError if none does."""
    kind = _KINDS.get(type(operation.pool if isinstance(operation, PoolBN) else operation))
    if kind is None:
        raise ValueError(f"{type(operation).__name__} has no kernel")
    return kind


_KINDS: dict[type[nn.Module], int] = {
    SepConv: SEPARABLE,
    DilConv: DILATED,
    FactorizedReduce: REDUCE,
    nn.Identity: SKIP,
    nn.MaxPool2d: MAX_POOL,
    nn.AvgPool2d: AVERAGE_POOL,
}


def _parts(operation: nn.Module) -> tuple[list[Tensor], list[nn.BatchNorm2d]]:
    """The weights, in the order of the table, and the norms."""
    weights = [module.weight for module in operation.children() if isinstance(module, nn.Conv2d)]
    norms = [module for module in operation.children() if isinstance(module, nn.BatchNorm2d)]
    return (weights[::-1] if isinstance(operation, FactorizedReduce) else weights), norms


def _units_of_chunk(node: Tensor) -> int:
    return max(1, CHUNK // (node.numel() * node.element_size()))


def _buffer(shape: Sequence[int], like: Tensor) -> Tensor:
    """Not initialised; there is memory behind it that vectors may read."""
    count = math.prod(shape)
    return like.new_empty(count + SLACK)[:count].view(shape)


def _rows_contiguous(nodes: Tensor) -> Tensor:
    """(nodes, batch, height, width, channels): images must be contiguous, they may lie anywhere."""
    _, _, _, width, channels = nodes.shape
    return nodes if nodes.stride()[2:] == (width * channels, channels, 1) else nodes.contiguous()
