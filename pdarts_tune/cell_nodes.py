"""The four nodes of a cell: the sums that edges add to and, in backward, the gradients that they read.

Two layouts with the same methods. `SeparateNodes` are four matrices with a row per pixel, for chunks of one branch each.
`WideNodes` are one matrix with the nodes side by side: a product with one weight then reaches all nodes of a chunk at once.

`weights` are (branches, out, in), for branches that are one after the other in the columns of the chunk; `scales` are
(edges, channels), for edges that all read the same matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pdarts_tune.cell_kernels import add_row, add_scaled
from pdarts_tune.space import NUM_NODES


class Targets(NamedTuple):
    """The nodes in which branches or edges end, in integers and as one-hot rows."""

    nodes: tuple[int, ...]
    incidence: Tensor


class SeparateNodes:
    def __init__(self, shape: torch.Size, like: Tensor, grads: Sequence[Tensor] | None = None) -> None:
        self.shape, self.like = shape, like
        self.matrices: list[Tensor | None] = [None] * NUM_NODES if grads is None else list(grads)

    def matrix(self, node: int) -> Tensor:
        found = self.matrices[node]
        batch, channels, height, width = self.shape
        return self.like.new_zeros(batch * height * width, channels) if found is None else found

    def finish(self, node: int, less: Tensor) -> Tensor:
        """The node's sum less a row."""
        return add_row(self.matrix(node), -less, self.shape[3])

    def add_to(self, node: int, matrix: Tensor) -> None:
        """Adds a matrix that may be overwritten."""
        found = self.matrices[node]
        self.matrices[node] = matrix if found is None else matrix.add_(found)

    def add(self, targets: Targets, matrix: Tensor, weights: Tensor) -> None:
        found, transposed = self.matrices[targets.nodes[0]], weights[0].t()
        self.matrices[targets.nodes[0]] = torch.mm(matrix, transposed) if found is None else found.addmm_(matrix, transposed)

    def products(self, targets: Targets, matrix: Tensor) -> Tensor:
        return torch.mm(self.matrix(targets.nodes[0]).t(), matrix).unsqueeze(0)

    def pull(self, targets: Targets, weights: Tensor, constants: Tensor | None) -> Tensor:
        if constants is None:
            return torch.mm(self.matrix(targets.nodes[0]), weights[0])
        return torch.addmm(constants[0], self.matrix(targets.nodes[0]), weights[0])

    def add_scaled(self, targets: Targets, matrix: Tensor, scales: Tensor) -> None:
        for node, scale in zip(targets.nodes, scales.repeat(1, self.shape[3]), strict=True):
            self.matrices[node] = add_scaled(self.matrices[node], matrix, scale)

    def products_scaled(self, targets: Targets, matrix: Tensor) -> Tensor:
        return torch.stack([(self.matrix(node) * matrix).sum(0) for node in targets.nodes])

    def pull_scaled(self, targets: Targets, scales: Tensor) -> Tensor:
        total: Tensor | None = None
        for node, scale in zip(targets.nodes, scales.repeat(1, self.shape[3]), strict=True):
            total = add_scaled(total, self.matrix(node), scale)
        assert total is not None
        return total


class WideNodes:
    def __init__(self, shape: torch.Size, like: Tensor, grads: Sequence[Tensor] | None = None) -> None:
        batch, self.channels, height, width = shape
        pixels = batch * height * width
        self.wide = like.new_zeros(pixels, NUM_NODES * self.channels) if grads is None else torch.cat(list(grads), dim=1)

    def matrix(self, node: int) -> Tensor:
        return self.wide[:, node * self.channels : (node + 1) * self.channels]

    def finish(self, node: int, less: Tensor) -> Tensor:
        return self.matrix(node) - less

    def add_to(self, node: int, matrix: Tensor) -> None:
        self.matrix(node).add_(matrix)

    def add(self, targets: Targets, matrix: Tensor, weights: Tensor) -> None:
        self.wide.addmm_(matrix, _spread(weights, targets.incidence).t())

    def products(self, targets: Targets, matrix: Tensor) -> Tensor:
        products = torch.mm(self.wide.t(), matrix).view(NUM_NODES, self.channels, len(targets.nodes), -1)
        return (products * _mask(targets.incidence)).sum(0).permute(1, 0, 2)

    def pull(self, targets: Targets, weights: Tensor, constants: Tensor | None) -> Tensor:
        if constants is None:
            return torch.mm(self.wide, _spread(weights, targets.incidence))
        return torch.addmm(constants.flatten(), self.wide, _spread(weights, targets.incidence))

    def add_scaled(self, targets: Targets, matrix: Tensor, scales: Tensor) -> None:
        self.wide.addmm_(matrix, _diagonal(scales, targets.incidence).t())

    def products_scaled(self, targets: Targets, matrix: Tensor) -> Tensor:
        products = torch.mm(self.wide.t(), matrix).view(NUM_NODES, self.channels, self.channels)
        return targets.incidence @ products.diagonal(dim1=1, dim2=2)

    def pull_scaled(self, targets: Targets, scales: Tensor) -> Tensor:
        return torch.mm(self.wide, _diagonal(scales, targets.incidence))


Nodes = SeparateNodes | WideNodes


def _mask(incidence: Tensor) -> Tensor:
    return incidence.t()[:, None, :, None]


def _spread(weights: Tensor, incidence: Tensor) -> Tensor:
    """The weight from a chunk to all nodes: (nodes out, branches in)."""
    branches, out, width = weights.shape
    return (weights.transpose(0, 1) * _mask(incidence)).reshape(NUM_NODES * out, branches * width)


def _diagonal(scales: Tensor, incidence: Tensor) -> Tensor:
    """The weight from one matrix to all nodes that scales its columns: (nodes channels, channels)."""
    return torch.diag_embed(incidence.t() @ scales).flatten(0, 1)
