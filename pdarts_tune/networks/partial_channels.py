"""PC-DARTS: a search network whose operations see a part of the channels (Xu et al., 2020, section 3).

The candidate operations of an edge work on the first 1/k of the channels; the others pass by (equation 2), through a 2x2 max pool
where the edge has stride 2. The channels of a node are then shuffled, so that the next cells' operations see others. With edge
normalisation every edge has a weight of its own, beta, and a node is the sum of its edges weighted by their softmax (equation 3).

What an edge adds to a node is linear in what passes by, and the shuffle is the same for all edges: both are done once a node.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pdarts_tune.networks.supernet import Cell, Mixing, Supernet
from pdarts_tune.pdarts.genotype import CellGenotype, Genotype
from pdarts_tune.pdarts.space import EDGES, NUM_NODES, SearchSpace

EDGES_PER_NODE = [sum(end == node for _, end in EDGES) for node in range(NUM_NODES)]  # EDGES is in the order of nodes


class PartialCell(Cell):
    """A cell with `channels // share` channels for the operations. Its mixing weights have the edge's weight as last column."""

    def forward(self, before2: Tensor, before1: Tensor, weights: Tensor, skip_masks: Tensor | None, kept: float | Tensor) -> Tensor:
        states = [self.preprocess0(before2), self.preprocess1(before1)]
        masks = {} if skip_masks is None else dict(zip(self.skip_edges, skip_masks, strict=True))
        edge = 0
        for node in range(NUM_NODES):
            mixed: Tensor | None = None
            passed: Tensor | None = None
            for source in range(node + 2):
                seen, beside = states[source][:, : self.channels], states[source][:, self.channels :]
                for index, (name, operation) in enumerate(self.edges[edge].items()):  # type: ignore[operator]
                    out = operation(seen)
                    if name == "skip_connect" and edge in masks:
                        out = out * masks[edge] / kept
                    out = weights[edge, index] * out
                    mixed = out if mixed is None else mixed + out
                if beside.shape[1]:
                    if self.stride(edge) == 2:
                        beside = F.max_pool2d(beside, 2, 2, ceil_mode=True)
                    beside = weights[edge, -1] * beside
                    passed = beside if passed is None else passed + beside
                edge += 1
            assert mixed is not None
            states.append(mixed if passed is None else shuffle(torch.cat([mixed, passed], dim=1), self.channels))
        return torch.cat(states[-NUM_NODES:], dim=1)


class PartialSupernet(Supernet):
    """The search network of PC-DARTS: `alphas` choose the operation of an edge, `betas` weigh the edges of a node.

    Without edge normalisation there are no betas and every edge has weight 1.

    Raises:
        ValueError: `share` does not divide the channels.
    """

    betas_normal: nn.Parameter
    betas_reduce: nn.Parameter

    def __init__(
        self,
        space: SearchSpace,
        num_cells: int,
        channels: int,
        num_classes: int,
        in_channels: int = 3,
        *,
        share: int,
        edge_normalization: bool,
        alpha_init_scale: float = 1e-3,
        dropout_on_reduce: bool = False,
    ) -> None:
        if channels % share:
            raise ValueError(f"share: {share} does not divide the {channels} channels")
        super().__init__(
            space,
            num_cells,
            channels,
            num_classes,
            in_channels,
            alpha_init_scale=alpha_init_scale,
            evaluation="plain",
            dropout_on_reduce=dropout_on_reduce,
            make_cell=functools.partial(PartialCell, share=share),
        )
        self.edge_normalization = edge_normalization
        if edge_normalization:
            for cell_type in ("normal", "reduce"):
                self.register_parameter(f"betas_{cell_type}", nn.Parameter(alpha_init_scale * torch.randn(len(EDGES))))

    def arch_parameters(self) -> list[nn.Parameter]:
        """The alphas, then the betas if there are any: normal, reduction."""
        return super().arch_parameters() + ([self.betas_normal, self.betas_reduce] if self.edge_normalization else [])

    def weight_parameters(self) -> list[nn.Parameter]:
        return [parameter for name, parameter in self.named_parameters() if not name.startswith(("alphas_", "betas_"))]

    def edge_weights(self) -> tuple[Tensor, Tensor]:
        """For each cell type a weight for each edge, the softmax of the betas over the edges into the same node."""
        if not self.edge_normalization:
            ones = self.alphas_normal.new_ones(len(EDGES))
            return ones, ones
        return normalise_edges(self.betas_normal), normalise_edges(self.betas_reduce)

    def mixing(self) -> Mixing:
        """The softmax of each edge's alphas times the edge's weight, which is the last column."""
        normal, reduce = (
            torch.cat([edges[:, None] * operations, edges[:, None]], dim=1)
            for operations, edges in zip(super().mixing(), self.edge_weights(), strict=True)
        )
        return normal, reduce

    def one_hot_mixing(self, genotype: Genotype) -> Mixing:
        """The genotype's edges at weight 1; the others add nothing, not even the channels that pass by."""
        normal, reduce = (
            torch.cat([operations, _chosen(cell, operations)[:, None]], dim=1)
            for operations, cell in zip(super().one_hot_mixing(genotype), (genotype.normal, genotype.reduce), strict=True)
        )
        return normal, reduce


def normalise_edges(betas: Tensor) -> Tensor:
    """The softmax over the edges into each node, an entry per edge in EDGES order."""
    return torch.cat([of_node.softmax(dim=0) for of_node in betas.split(EDGES_PER_NODE)])


def shuffle(images: Tensor, width: int) -> Tensor:
    """Channels taken in turn from each group of `width` channels, so that the first `width` come from all of them."""
    batch, channels, height, rows = images.shape
    return images.view(batch, channels // width, width, height, rows).transpose(1, 2).reshape(images.shape)


def _chosen(cell: CellGenotype, like: Tensor) -> Tensor:
    weights = torch.zeros(len(EDGES), dtype=like.dtype, device=like.device)
    for index, (_, source) in enumerate(cell.edges):
        weights[EDGES.index((source, index // 2))] = 1.0
    return weights
