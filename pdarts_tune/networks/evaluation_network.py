"""The evaluation network: a genotype's cells, stacked, for training from scratch (Liu et al., 2019, section 3.2).

The stem has one 3x3 convolution for images of CIFAR's size, and three of stride 2 for ImageNet's (the mobile setting).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pdarts_tune.config.evaluation import STEMS
from pdarts_tune.config.execution import CellEvaluation
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.networks.graphs import Number, draw_ones
from pdarts_tune.networks.kernels.build import choose
from pdarts_tune.networks.kernels.function import Plan, Settings, as_nodes, evaluate, evaluation_plan, joined
from pdarts_tune.networks.operations import (
    FURTHER_OPERATIONS,
    OPERATIONS,
    Conv7x1And1x7,
    FactorizedReduce,
    ReLUConvBN,
    cifar_stem,
    frozen_statistics,
    imagenet_stem,
)
from pdarts_tune.pdarts.genotype import CellGenotype, Genotype
from pdarts_tune.pdarts.progressive_depth import reduction_cells


@dataclass(frozen=True)
class NetworkConfig:
    """The shape of an evaluation network, without its cells.

    Raises:
        ConfigError: a value out of range.
    """

    channels: int  # of the first cell's operations; doubled at each of the two reduction cells
    cells: int
    num_classes: int
    image_size: int  # height and width, in pixels
    stem: str  # "cifar": full resolution; "imagenet": an eighth of it
    in_channels: int = 3

    def __post_init__(self) -> None:
        if self.stem not in STEMS:
            raise ConfigError(f"stem: unknown stem {self.stem!r}, known are {', '.join(STEMS)}")
        if self.cells < 3:
            raise ConfigError(f"cells: {self.cells} is too few, a network with two reduction cells needs at least 3")
        for field in ("channels", "num_classes", "image_size", "in_channels"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field}: {getattr(self, field)} is not at least 1")
        if self.stem == "imagenet" and self.channels % 2:
            raise ConfigError(f"channels: {self.channels} is odd, the imagenet stem halves it")


CIFAR = NetworkConfig(36, 20, 10, 32, "cifar")
IMAGENET_MOBILE = NetworkConfig(48, 14, 1000, 224, "imagenet")


class Cell(nn.Module):
    """A cell of a derived network: a node is the sum of two operations, the output is the nodes of `concat` concatenated."""

    def __init__(
        self, genotype: CellGenotype, before2: int, before1: int, channels: int, reduction: bool, reduction_before: bool
    ) -> None:
        super().__init__()
        self.genotype = genotype
        self.out_channels = channels * len(genotype.concat)
        self._channels, self._reduction = channels, reduction
        self.recompute = False  # of the kernels: keep the inputs alone for backward
        self._plan: Plan | None = None  # of the kernels, made at their first use
        adapt = FactorizedReduce if reduction_before else ReLUConvBN
        self.preprocess0 = adapt(before2, channels, affine=True)
        self.preprocess1 = ReLUConvBN(before1, channels, affine=True)
        operations = {**OPERATIONS, **FURTHER_OPERATIONS}
        self.operations = nn.ModuleList(
            operations[name](channels, 2 if reduction and source < 2 else 1, True) for name, source in genotype.edges
        )

    def forward(self, before2: Tensor, before1: Tensor, drop_path: Tensor | None) -> Tensor:
        """`drop_path` has a factor for each edge and image, (edges, batch, 1, 1, 1). It leaves identity skip-connects alone."""
        states = [self.preprocess0(before2), self.preprocess1(before1)]
        outputs = []
        for edge, (operation, (_, source)) in enumerate(zip(self.operations, self.genotype.edges, strict=True)):
            out = operation(states[source])
            if drop_path is not None and not isinstance(operation, nn.Identity):
                out = out * drop_path[edge]
            outputs.append(out)
            if edge % 2:  # the node's second edge
                states.append(outputs[-2] + outputs[-1])
        return torch.cat([states[state] for state in self.genotype.concat], dim=1)

    def by_kernels(self, before2: Tensor, before1: Tensor, drop_path: Tensor | None) -> Tensor:
        """The same, evaluated by the C library. Inputs and the output are (nodes, batch, height, width, channels): where the plain
        evaluation concatenates nodes along the channels, this one keeps them one after the other."""
        if self._plan is None:
            preprocess, operations = (self.preprocess0, self.preprocess1), list(self.operations)
            self._plan = evaluation_plan(preprocess, operations, self.genotype, self._channels, self._reduction)
        if self._plan is None:
            return as_nodes(self(joined(before2), joined(before1), drop_path))
        factors = None if drop_path is None else drop_path.flatten(1)
        nodes = evaluate(self._plan, Settings(self.training, self.recompute), before2, before1, factors=factors)
        for edge, (operation, (_, source)) in enumerate(zip(self.operations, self.genotype.edges, strict=True)):
            if not isinstance(operation, Conv7x1And1x7):
                continue
            if source < 2:  # the library does not give the state, and has moved its running statistics already
                adapt: nn.Module = self.preprocess1 if source else self.preprocess0
                with frozen_statistics(adapt):
                    state = adapt(joined(before1 if source else before2))
            else:
                state = joined(nodes[source - 2 : source - 1])
            out = operation(state) if drop_path is None else operation(state) * drop_path[edge]
            nodes = nodes.index_add(0, torch.tensor([edge // 2]), as_nodes(out))
        concat = [state - 2 for state in self.genotype.concat]
        return nodes if concat == list(range(len(nodes))) else nodes[concat]


class EvalNetwork(nn.Module):
    """The network of a genotype.

    Weights are drawn from PyTorch's global generator: seed it first. Drop path is off until `set_drop_path`. Its masks come from
    `drop_path_generator`, which the caller owns and saves (None: the global generator).

    Raises:
        ValueError: a width that a factorized reduction cannot halve.
    """

    def __init__(self, genotype: Genotype, config: NetworkConfig, auxiliary: bool = True) -> None:
        super().__init__()
        self.genotype = genotype
        self.config = config
        self.drop_path = 0.0
        self._kept = Number(1.0)  # the share of outputs that drop path keeps
        self.drop_path_generator: torch.Generator | None = None
        self.evaluation: CellEvaluation = "plain"
        self._share: tuple[int, int] | None = None
        channels = config.channels
        if config.stem == "cifar":
            before2 = before1 = 3 * channels
            self.stem = cifar_stem(config.in_channels, 3 * channels)
            size = config.image_size
        else:
            before2 = before1 = channels
            self.stem0, self.stem1 = imagenet_stem(config.in_channels, channels)
            size = -(-config.image_size // 8)
        # The second part of the imagenet stem halves the image, so for the first cell it is like a reduction cell.
        reduction_before = config.stem == "imagenet"
        reductions = reduction_cells(config.cells)
        self.cells = nn.ModuleList()
        self.auxiliary_head: AuxiliaryHead | None = None
        for index in range(config.cells):
            reduction = index in reductions
            channels *= 1 + reduction
            size = -(-size // (1 + reduction))
            cell = Cell(genotype.reduce if reduction else genotype.normal, before2, before1, channels, reduction, reduction_before)
            self.cells.append(cell)
            before2, before1, reduction_before = before1, cell.out_channels, reduction
            if auxiliary and index == reductions[1]:
                self.auxiliary_head = AuxiliaryHead(before1, size, config.num_classes)
        self.classifier = nn.Linear(before1, config.num_classes)

    def set_drop_path(self, rate: float) -> None:
        """In training mode, drops each edge's output for each image with this probability, and scales the others up.

        Raises:
            ValueError: a rate outside [0, 1).
        """
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"rate: {rate} is not in [0, 1)")
        self.drop_path = rate
        self._kept.set(1.0 - rate)

    def set_share(self, start: int, total: int) -> None:
        """The next images are those from `start` on of a batch of `total`, which several processes share.

        Drop-path masks are drawn for the whole batch, so that each image gets the same mask as in one process.
        """
        self._share = (start, total)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images (N, in_channels, image_size, image_size) to logits (N, num_classes), and to those of the auxiliary head.

        The latter are None in evaluation mode, and without an auxiliary head.
        """
        kernels = choose(self.evaluation, images.device) == "kernels"
        if kernels:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.config.stem == "cifar":
            before2 = before1 = self.stem(images)
        else:
            before2 = self.stem0(images)
            before1 = self.stem1(before2)
        auxiliary = None
        factors = self._drop_path_factors(images if kernels else before1)
        if kernels:
            before2, before1 = as_nodes(before2), as_nodes(before1)
        for index, cell in enumerate(self.cells):
            assert isinstance(cell, Cell)
            drop_path = None if factors is None else factors[index]
            out = cell.by_kernels(before2, before1, drop_path) if kernels else cell(before2, before1, drop_path)
            before2, before1 = before1, out
            if self.training and self.auxiliary_head is not None and index == reduction_cells(len(self.cells))[1]:
                auxiliary = self.auxiliary_head(joined(before1) if kernels else before1)
        pooled = before1.mean(dim=(2, 3)).transpose(0, 1).flatten(1) if kernels else before1.mean(dim=(2, 3))
        return self.classifier(pooled), auxiliary

    def _drop_path_factors(self, images: Tensor) -> Tensor | None:
        """Factors 0 or 1 / (1 - rate) for each cell, edge and image, (cells, edges, N, 1, 1, 1)."""
        if not self.training or self.drop_path == 0.0:
            return None
        edges = max(len(self.genotype.normal.edges), len(self.genotype.reduce.edges))
        generator = self.drop_path_generator
        start, total = self._share or (0, len(images))
        factors = torch.empty(
            (len(self.cells), edges, total, 1, 1, 1), device=images.device if generator is None else generator.device
        )
        kept = self._kept.on(factors.device)
        draw_ones(factors, kept, generator).div_(kept)
        return factors[:, :, start : start + len(images)].to(images)


class AuxiliaryHead(nn.Module):
    """A second classifier after the last reduction cell, for training only. It shortens the way from the loss to early cells."""

    def __init__(self, channels: int, size: int, num_classes: int) -> None:
        super().__init__()
        # Average pools to 2x2: the field's own for maps of 8 pixels (CIFAR) and of 7 (ImageNet).
        pools: dict[int, nn.Module] = {8: nn.AvgPool2d(5, stride=3), 7: nn.AvgPool2d(5, stride=2)}
        self.features = nn.Sequential(
            nn.ReLU(),
            pools.get(size, nn.AdaptiveAvgPool2d(2)),
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits
