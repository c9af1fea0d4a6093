"""The search network: every edge of a cell is a weighted sum of its candidate operations (Liu et al., 2019, section 2.2).

The weights of the sum are the softmax of the edge's alphas. All cells of a type (normal, reduction) share their alphas. The search
space says which operations an edge has, so every stage of P-DARTS uses this network.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pdarts_tune.config.evaluation import Stem
from pdarts_tune.config.execution import CellEvaluation, Precision
from pdarts_tune.networks.graphs import Number, draw_ones
from pdarts_tune.networks.kernels.build import choose
from pdarts_tune.networks.kernels.function import Plan, Settings, as_nodes, evaluate, search_plan
from pdarts_tune.networks.operations import OPERATIONS, FactorizedReduce, ReLUConvBN, frozen_statistics
from pdarts_tune.networks.stacked_cells import StackedCells
from pdarts_tune.pdarts.genotype import CellGenotype, Genotype, Probs
from pdarts_tune.pdarts.space import EDGES, NUM_NODES, CellOps, SearchSpace

Mixing = tuple[Tensor, Tensor]  # weights of the candidate operations, normal and reduction, shaped like the alphas
NODE_EDGES = [[edge for edge, (_, end) in enumerate(EDGES) if end == node] for node in range(NUM_NODES)]


class Dropout(NamedTuple):
    """What a pass in training mode drops: elements that pass skip-connects, and whole paths."""

    masks: Tensor | None = None  # of the elements that are kept, one per edge of `skip_edges`
    kept: float | Tensor = 1.0  # the share of ones in the masks
    factors: Tensor | None = None  # of drop path, (edges, columns, batch); identities have none


NO_DROPOUT = Dropout()


class Cell(nn.Module):
    """One cell: two preprocessed inputs, four nodes, the nodes concatenated. A reduction cell reads its inputs at stride 2."""

    def __init__(
        self, operations: CellOps, before2: int, before1: int, channels: int, reduction: bool, after_reduction: bool, share: int = 1
    ) -> None:
        super().__init__()
        self.operations = operations
        self.share = share
        self.channels = channels // share  # of the operations; in `networks/partial_channels.py` the others pass by
        self.reduction = reduction
        self.after_reduction = after_reduction
        adapt = FactorizedReduce if after_reduction else ReLUConvBN
        self.preprocess0 = adapt(before2, channels, affine=False)
        self.preprocess1 = ReLUConvBN(before1, channels, affine=False)
        self.edges = nn.ModuleList(
            nn.ModuleDict({name: OPERATIONS[name](self.channels, self.stride(edge), False) for name in names})
            for edge, names in enumerate(operations)
        )
        self.auxiliary = nn.ModuleList()  # a skip-connect per edge without an alpha; its weights are the last column
        self.recompute = False  # keep the inputs alone for backward
        self.dropout_on_reduce = False  # skip dropout also acts on skip-connects of stride 2

    def stride(self, edge: int) -> int:
        return 2 if self.reduction and EDGES[edge][0] < 2 else 1

    @property
    def skip_edges(self) -> list[int]:
        """The edges with skip dropout: their skip-connect has stride 1, or any stride with `dropout_on_reduce`."""
        skips = [e for e, names in enumerate(self.operations) if "skip_connect" in names]
        return [e for e in skips if self.dropout_on_reduce or self.stride(e) == 1]

    def forward(self, before2: Tensor, before1: Tensor, weights: Tensor, dropout: Dropout = NO_DROPOUT) -> Tensor:
        """The plain evaluation: one module per operation, edge by edge.

        Args:
            before2: output of the cell before the last one, (batch, channels, height, width).
            before1: output of the last cell.
            weights: a row per edge, a column per operation.
        """
        states = [self.preprocess0(before2), self.preprocess1(before1)]
        masks = {} if dropout.masks is None else dict(zip(self.skip_edges, dropout.masks, strict=True))
        for node, edges in enumerate(NODE_EDGES):
            states.append(self.node(dict(zip(edges, states[: node + 2], strict=True)), weights, masks, dropout))
        return torch.cat(states[-NUM_NODES:], dim=1)

    def node(self, inputs: dict[int, Tensor], weights: Tensor, masks: dict[int, Tensor], dropout: Dropout) -> Tensor:
        """The weighted sum of all operations on the edges into a node. `inputs` and `masks` are by edge."""
        total: Tensor | None = None
        for edge, state in inputs.items():
            for index, (name, operation) in enumerate(self.edges[edge].items()):  # type: ignore[operator]
                out = operation(state)
                if name == "skip_connect" and edge in masks:
                    out = out * masks[edge] / dropout.kept
                if dropout.factors is not None and not isinstance(operation, nn.Identity):
                    out = out * dropout.factors[edge, index][:, None, None, None]
                out = weights[edge, index] * out
                total = out if total is None else total + out
            if self.auxiliary:
                total = total + weights[edge, -1] * self.auxiliary[edge](state)
        assert total is not None
        return total

    @cached_property
    def _plan(self) -> Plan:
        preprocess = self.preprocess0, self.preprocess1
        edges = [edge for edge in self.edges if isinstance(edge, nn.ModuleDict)]
        return search_plan(preprocess, edges, self.channels, self.reduction, self.skip_edges, list(self.auxiliary))

    def by_kernels(self, before2: Tensor, before1: Tensor, weights: Tensor, dropout: Dropout = NO_DROPOUT) -> Tensor:
        """The same by the C library. Inputs and output are (nodes, batch, height, width, channels)."""
        settings = Settings(self.training, self.recompute, float(dropout.kept))
        factors = None if dropout.factors is None else dropout.factors.flatten(0, 1)
        return evaluate(self._plan, settings, before2, before1, weights, dropout.masks, factors)


class Supernet(StackedCells):
    """The search network of one stage.

    Alphas are two tensors with a row per edge and a column per operation, in the order of the search space. Shorter rows are padded
    with zeros at the end. The padding has weight zero in the mixing and gradient zero, so no optimizer of the field moves it.

    Weights and alphas are drawn from PyTorch's global generator: seed it first. Skip dropout is off until `set_skip_dropout`. Its
    masks come from `dropout_generator`, which the caller owns and saves (None: the global generator).

    With the `imagenet` stem cells begin at an eighth of the image's side, as in an evaluation network with that stem.

    Remedies against collapse (`config/remedies.py`): with `auxiliary_skip` every edge has a skip-connect of weight
    `auxiliary_weight` beside its operations; with `independent` mixing weights are sigmoids; `drop_path` is the rate at which paths
    are dropped in training mode, by draws from `path_generator`.
    """

    cell_type: type[Cell] = Cell
    alphas_normal: nn.Parameter
    alphas_reduce: nn.Parameter
    kept_normal: Tensor
    kept_reduce: Tensor

    def __init__(
        self,
        space: SearchSpace,
        num_cells: int,
        channels: int,
        num_classes: int,
        in_channels: int = 3,
        *,
        alpha_init_scale: float = 1e-3,
        evaluation: CellEvaluation = "auto",
        recompute: bool = False,
        dropout_on_reduce: bool = False,
        stem: Stem = "cifar",
        auxiliary_skip: bool = False,
        independent: bool = False,
        share: int = 1,
    ) -> None:
        super().__init__()
        self.evaluation = evaluation
        self.space = space
        self.share = share
        self.dropout_generator: torch.Generator | None = None
        self.skip_dropout = 0.0
        self._kept = Number(1.0)  # the share of elements that skip dropout keeps
        self.auxiliary_weight = 0.0
        self.independent = independent
        self.drop_path = 0.0
        self.path_generator: torch.Generator | None = None
        self.precision: Precision = "fp32"  # bf16: mixed precision, see `config/execution.py`
        self.channels_last = False  # memory layout of plain cells; that of kernels is always channels-last
        self.stack(stem, in_channels, channels, num_cells, num_classes)
        for cell in self.search_cells():
            cell.recompute, cell.dropout_on_reduce = recompute, dropout_on_reduce
        for cell_type, operations in (("normal", space.normal), ("reduce", space.reduce)):
            width = max(map(len, operations))
            kept = torch.tensor([[column < len(names) for column in range(width)] for names in operations])
            alphas = nn.Parameter(alpha_init_scale * torch.randn(kept.shape).where(kept, 0.0))
            self.register_parameter(f"alphas_{cell_type}", alphas)
            self.register_buffer(f"kept_{cell_type}", kept, persistent=False)  # False in the padding
        self.auxiliary_skip = auxiliary_skip
        if auxiliary_skip:  # drawn last, so that all other weights are those of a search without it
            for cell in self.search_cells():
                skips = (OPERATIONS["skip_connect"](cell.channels, cell.stride(edge), False) for edge in range(len(EDGES)))
                cell.auxiliary.extend(skips)

    def make_cell(self, before2: int, before1: int, channels: int, reduction: bool, after_reduction: bool) -> tuple[Cell, int]:
        operations = self.space.reduce if reduction else self.space.normal
        cell = self.cell_type(operations, before2, before1, channels, reduction, after_reduction, self.share)
        return cell, NUM_NODES * channels

    def arch_parameters(self) -> list[nn.Parameter]:
        """The alphas: normal, reduction."""
        return [self.alphas_normal, self.alphas_reduce]

    def weight_parameters(self) -> list[nn.Parameter]:
        """Everything that trains but the alphas."""
        return [parameter for name, parameter in self.named_parameters() if not name.startswith("alphas_")]

    def set_skip_dropout(self, rate: float) -> None:
        """In training mode, zeroes each element that passes a stride-1 skip-connect with this probability.

        Raises:
            ValueError: a rate outside [0, 1).
        """
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"rate: {rate} is not in [0, 1)")
        self.skip_dropout = rate
        self._kept.set(1.0 - rate)

    def operation_weights(self) -> Mixing:
        """The weights of the candidate operations: the softmax of each edge's alphas (`independent`: their sigmoids), zero in the
        padding."""

        def weigh(alphas: Tensor, kept: Tensor) -> Tensor:
            masked = alphas.masked_fill(~kept, -torch.inf)
            return masked.sigmoid() if self.independent else masked.softmax(dim=-1)

        return weigh(self.alphas_normal, self.kept_normal), weigh(self.alphas_reduce, self.kept_reduce)

    def with_auxiliary(self, weights: Mixing) -> Mixing:
        """With the auxiliary skip-connect's weight as the last column, if there is one."""
        if not self.auxiliary_skip:
            return weights
        normal, reduce = (torch.cat([part, part.new_full((len(part), 1), self.auxiliary_weight)], dim=1) for part in weights)
        return normal, reduce

    def mixing(self) -> Mixing:
        """The weights of all that an edge adds up."""
        return self.with_auxiliary(self.operation_weights())

    def probs(self) -> tuple[Probs, Probs]:
        """The mixing weights, normal and reduction, per edge by operation name."""
        with torch.no_grad():
            normal, reduce = (weights.tolist() for weights in self.operation_weights())
        return _by_name(self.space.normal, normal), _by_name(self.space.reduce, reduce)

    def one_hot_mixing(self, genotype: Genotype) -> Mixing:
        """The mixing weights that make this network the genotype's: one for its operations, zero for the others.

        Raises:
            ValueError: the genotype uses an operation that its edge does not offer.
        """
        normal = _one_hot("normal", self.space.normal, genotype.normal, self.alphas_normal)
        return normal, _one_hot("reduce", self.space.reduce, genotype.reduce, self.alphas_reduce)

    def spread(self, mixing: Mixing) -> list[Tensor]:
        """The weights of each cell: those of its type."""
        return [mixing[cell.reduction] for cell in self.search_cells()]

    def forward(self, images: Tensor, mixing: Mixing | list[Tensor] | None = None) -> Tensor:
        """Images (batch, in_channels, height, width) to logits (batch, num_classes).

        `mixing` replaces the softmax of the alphas, e.g. by `one_hot_mixing`. Its padding must be zero. A list has the weights of
        every cell, as from `spread`.
        """
        if self.precision == "bf16":
            with torch.autocast(images.device.type, torch.bfloat16):
                return self._logits(images, mixing).to(self.classifier.weight.dtype)
        return self._logits(images, mixing)

    def _logits(self, images: Tensor, mixing: Mixing | list[Tensor] | None) -> Tensor:
        mixing = self.mixing() if mixing is None else mixing
        kernels = choose(self.evaluation, images.device) == "kernels"
        if kernels:
            images = images.contiguous(memory_format=torch.channels_last)
        first, second = self.read(images)
        if kernels:
            before2 = as_nodes(first)
        else:
            before2 = first.contiguous(memory_format=torch.channels_last) if self.channels_last else first
        before1 = before2 if second is first else as_nodes(second) if kernels else second
        kept = self._kept.value if kernels else self._kept.on(before1.device).to(self.alphas_normal.dtype)
        for cell, weights in zip(self.search_cells(), mixing if isinstance(mixing, list) else self.spread(mixing), strict=True):
            masks = self._skip_masks(cell, before1[0].permute(0, 3, 1, 2) if kernels else before1)
            evaluation = Cell.by_kernels if kernels else recomputed if cell.recompute else Cell.__call__
            out = evaluation(cell, before2, before1, weights, Dropout(masks, kept, self._path_factors(cell, len(images))))
            before2, before1 = before1, out
        pooled = before1.mean(dim=(2, 3)).transpose(0, 1).flatten(1) if kernels else before1.mean(dim=(2, 3))
        return self.classifier(pooled)

    def search_cells(self) -> list[Cell]:
        return [cell for cell in self.cells if isinstance(cell, Cell)]  # all are

    def _skip_masks(self, cell: Cell, before1: Tensor) -> Tensor | None:
        """A mask of kept elements per skip edge. One draw for all edges gives every evaluation of a cell the same masks."""
        if not self.training or self.skip_dropout == 0.0 or not cell.skip_edges:
            return None
        scale = 2 if cell.reduction else 1  # every node of a reduction cell has half the resolution
        batch, _, height, width = before1.shape
        shape = (len(cell.skip_edges), batch, -(-height // scale), -(-width // scale), cell.channels)
        masks = torch.empty(shape, dtype=torch.bool, device=before1.device)
        return draw_ones(masks, self._kept.on(masks.device), self.dropout_generator).permute(0, 1, 4, 2, 3)

    def _path_factors(self, cell: Cell, batch: int) -> Tensor | None:
        if not self.training or self.drop_path == 0.0:
            return None
        alphas = self.alphas_reduce if cell.reduction else self.alphas_normal
        factors = torch.empty((*alphas.shape, batch), dtype=alphas.dtype, device=alphas.device)
        kept = 1.0 - self.drop_path
        return factors.bernoulli_(kept, generator=self.path_generator).div_(kept)


def recomputed(cell: Cell, *inputs: Any) -> Tensor:
    """A plain cell that keeps its inputs alone, and is evaluated again for backward. Its running statistics move once."""
    contexts = nullcontext(), frozen_statistics(cell)
    return checkpoint(cell, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: contexts)


def _by_name(operations: CellOps, weights: list[list[float]]) -> Probs:
    return tuple(dict(zip(names, row, strict=False)) for names, row in zip(operations, weights, strict=True))


def _one_hot(cell_type: str, operations: CellOps, cell: CellGenotype, alphas: Tensor) -> Tensor:
    weights = torch.zeros_like(alphas, requires_grad=False)
    for index, (name, source) in enumerate(cell.edges):
        edge = EDGES.index((source, index // 2))
        if name not in operations[edge]:
            raise ValueError(
                f"{cell_type} cell, edge {edge}: the network does not offer {name}, only {', '.join(operations[edge])}"
            )
        weights[edge, operations[edge].index(name)] = 1.0
    return weights
