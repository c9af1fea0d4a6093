"""PC-DARTS: a search network whose operations see a part of the channels (Xu et al., 2020, section 3).

The candidate operations of an edge work on the first 1/k of the channels. The other channels bypass them (equation 2), through a
2x2 max pool on edges of stride 2. A shuffle of each node's channels gives the next operations other ones. With edge normalisation
every edge has a weight beta, and a node is the sum of its edges weighted by the softmax of their betas (equation 3).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pdarts_tune.config.evaluation import Stem
from pdarts_tune.networks.supernet import NODE_EDGES, Cell, Dropout, Mixing, Supernet
from pdarts_tune.pdarts.genotype import CellGenotype, Genotype
from pdarts_tune.pdarts.space import EDGES, SearchSpace


class PartialCell(Cell):
    """A cell with `channels // share` channels for the operations. The last column of its mixing weights weighs the edges."""

    def node(self, inputs: dict[int, Tensor], weights: Tensor, masks: dict[int, Tensor], dropout: Dropout) -> Tensor:
        """The shuffle is the same for all edges into a node, so their sums are shuffled, and not each of them."""
        mixed = super().node({edge: state[:, : self.channels] for edge, state in inputs.items()}, weights, masks, dropout)
        if self.share == 1:
            return mixed
        total: Tensor | None = None
        for edge, state in inputs.items():
            bypass = state[:, self.channels :]
            if self.stride(edge) == 2:
                bypass = F.max_pool2d(bypass, 2, 2, ceil_mode=True)
            bypass = weights[edge, -1] * bypass
            total = bypass if total is None else total + bypass
        assert total is not None
        return shuffle(torch.cat([mixed, total], dim=1), self.channels)


class PartialSupernet(Supernet):
    """The search network of PC-DARTS: `alphas` weigh the operations of an edge, `betas` the edges of a node.

    Without edge normalisation there are no betas, and every edge has weight 1.

    Raises:
        ValueError: `share` does not divide the channels.
    """

    cell_type = PartialCell
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
        stem: Stem = "cifar",
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
            stem=stem,
            share=share,
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
        """A weight per edge for each cell type: the softmax of the betas over the edges into the same node."""
        if not self.edge_normalization:
            ones = self.alphas_normal.new_ones(len(EDGES))
            return ones, ones
        return normalise_edges(self.betas_normal), normalise_edges(self.betas_reduce)

    def mixing(self) -> Mixing:
        """The softmax of each edge's alphas times the edge's weight. The last column is the edge's weight."""
        normal, reduce = (
            torch.cat([edges[:, None] * operations, edges[:, None]], dim=1)
            for operations, edges in zip(super().mixing(), self.edge_weights(), strict=True)
        )
        return normal, reduce

    def one_hot_mixing(self, genotype: Genotype) -> Mixing:
        """The genotype's edges at weight 1. The other edges add nothing, not even their bypass."""
        normal, reduce = (
            torch.cat([operations, _edge_mask(cell, operations)[:, None]], dim=1)
            for operations, cell in zip(super().one_hot_mixing(genotype), (genotype.normal, genotype.reduce), strict=True)
        )
        return normal, reduce


def normalise_edges(betas: Tensor) -> Tensor:
    """The softmax over the edges into each node, an entry per edge in EDGES order."""
    return torch.cat([part.softmax(dim=0) for part in betas.split([len(edges) for edges in NODE_EDGES])])


def shuffle(images: Tensor, width: int) -> Tensor:
    """Takes channels in turn from each group of `width` channels, so that the first `width` come from all groups."""
    batch, channels, height, rows = images.shape
    return images.view(batch, channels // width, width, height, rows).transpose(1, 2).reshape(images.shape)


def _edge_mask(cell: CellGenotype, like: Tensor) -> Tensor:
    """1 for each edge of the cell, 0 for the others."""
    weights = torch.zeros(len(EDGES), dtype=like.dtype, device=like.device)
    for index, (_, source) in enumerate(cell.edges):
        weights[EDGES.index((source, index // 2))] = 1.0
    return weights
