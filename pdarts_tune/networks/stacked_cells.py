"""What search and evaluation networks share: a stem, a stack of cells, and a classifier (Liu et al., 2019, section 2.1).

Plain PyTorch: `pdarts_tune.export` writes these definitions, and those of operations.py, into a file without imports of ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pdarts_tune.networks.operations import FURTHER_OPERATIONS, OPERATIONS, FactorizedReduce, ReLUConvBN

ALL_OPERATIONS = {**OPERATIONS, **FURTHER_OPERATIONS}


def conv_bn(in_channels: int, out_channels: int, stride: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(out_channels)


class StackedCells(nn.Module):
    """The stem has one 3x3 convolution for images of CIFAR's size, or three of stride 2 for ImageNet's (the mobile setting)."""

    def stack(self, stem: str, in_channels: int, channels: int, num_cells: int, num_classes: int) -> None:
        """Makes the modules. The reduction cells, at a third and two thirds of the depth, double the `channels`."""
        self.reduced_stem = after_reduction = stem == "imagenet"  # the first cell then reads two resolutions
        if self.reduced_stem:
            self.stem0 = nn.Sequential(*conv_bn(in_channels, channels // 2, 2), nn.ReLU(), *conv_bn(channels // 2, channels, 2))
            self.stem1 = nn.Sequential(nn.ReLU(), *conv_bn(channels, channels, 2))
        else:
            self.stem = nn.Sequential(*conv_bn(in_channels, 3 * channels, 1))
        before2 = before1 = channels if self.reduced_stem else 3 * channels
        self.cells = nn.ModuleList()
        for index in range(num_cells):
            reduction = index in (num_cells // 3, 2 * num_cells // 3)
            channels *= 1 + reduction
            cell, out_channels = self.make_cell(before2, before1, channels, reduction, after_reduction)
            self.cells.append(cell)
            before2, before1, after_reduction = before1, out_channels, reduction
        self.classifier = nn.Linear(before1, num_classes)

    def make_cell(self, before2: int, before1: int, channels: int, reduction: bool, after_reduction: bool) -> tuple[nn.Module, int]:
        """A cell that reads `before2` (at twice the resolution `after_reduction`) and `before1` channels, and how many it gives."""
        raise NotImplementedError

    def read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The stem's outputs, in place of two cells': the same one twice, or at a quarter and an eighth of the image's side."""
        if not self.reduced_stem:
            first = self.stem(images)
            return first, first
        first = self.stem0(images)
        return first, self.stem1(first)


class DerivedCell(nn.Module):
    """A cell of a derived network: a node is the sum of two operations, the output is the states of `concat` joined."""

    def __init__(
        self,
        edges: tuple[tuple[str, int], ...],  # two (operation, source state) a node
        concat: tuple[int, ...],
        before2: int,
        before1: int,
        channels: int,
        reduction: bool,
        after_reduction: bool,
    ) -> None:
        super().__init__()
        self.edges, self.concat = edges, concat
        adapt = FactorizedReduce if after_reduction else ReLUConvBN
        self.preprocess0 = adapt(before2, channels, affine=True)
        self.preprocess1 = ReLUConvBN(before1, channels, affine=True)
        strides = [2 if reduction and source < 2 else 1 for _, source in edges]
        self.operations = nn.ModuleList(
            ALL_OPERATIONS[name](channels, stride, True) for (name, _), stride in zip(edges, strides, strict=True)
        )

    def forward(self, before2: Tensor, before1: Tensor, drop_path: Tensor | None = None) -> Tensor:
        """`drop_path` has a factor for each edge and image, (edges, batch, 1, 1, 1). It leaves identity skip-connects alone."""
        states = [self.preprocess0(before2), self.preprocess1(before1)]
        outputs = []
        for edge, (operation, (_, source)) in enumerate(zip(self.operations, self.edges, strict=True)):
            out = operation(states[source])
            if drop_path is not None and not isinstance(operation, nn.Identity):
                out = out * drop_path[edge]
            outputs.append(out)
            if edge % 2:  # the node's second edge
                states.append(outputs[-2] + outputs[-1])
        return torch.cat([states[state] for state in self.concat], dim=1)
