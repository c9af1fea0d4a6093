"""The evaluation network: a genotype's cells, stacked, for training from scratch (Liu et al., 2019, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from pdarts_tune.config.evaluation import STEMS
from pdarts_tune.config.execution import CellEvaluation
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.networks.graphs import Number, draw_ones
from pdarts_tune.networks.kernels.build import choose
from pdarts_tune.networks.kernels.function import Plan, Settings, as_nodes, evaluate, evaluation_plan, joined
from pdarts_tune.networks.operations import Conv7x1And1x7, frozen_statistics
from pdarts_tune.networks.stacked_cells import DerivedCell, StackedCells
from pdarts_tune.pdarts.genotype import CellGenotype, Genotype
from pdarts_tune.pdarts.progressive_depth import reduction_cells


@dataclass(frozen=True)
class NetworkConfig:
    """The shape of an evaluation network, without its cells. Raises ConfigError: a value out of range."""

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


class Cell(DerivedCell):
    """A cell that the C library can evaluate too."""

    def __init__(
        self, genotype: CellGenotype, before2: int, before1: int, channels: int, reduction: bool, after_reduction: bool
    ) -> None:
        super().__init__(genotype.edges, genotype.concat, before2, before1, channels, reduction, after_reduction)
        self._shape = genotype, channels, reduction
        self.recompute = False  # of the kernels: keep the inputs alone for backward

    @cached_property
    def _plan(self) -> Plan | None:
        return evaluation_plan((self.preprocess0, self.preprocess1), list(self.operations), *self._shape)

    def by_kernels(self, before2: Tensor, before1: Tensor, drop_path: Tensor | None) -> Tensor:
        """The same, evaluated by the C library. Inputs and the output are (nodes, batch, height, width, channels): where the plain
        evaluation concatenates nodes along the channels, this one keeps them one after the other."""
        if self._plan is None:
            return as_nodes(self(joined(before2), joined(before1), drop_path))
        factors = None if drop_path is None else drop_path.flatten(1)
        nodes = evaluate(self._plan, Settings(self.training, self.recompute), before2, before1, factors=factors)
        for edge, (operation, (_, source)) in enumerate(zip(self.operations, self.edges, strict=True)):
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
        concat = [state - 2 for state in self.concat]
        return nodes if concat == list(range(len(nodes))) else nodes[concat]


class EvalNetwork(StackedCells):
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
        # The first of the next images in a batch that several processes share, and the batch's size. Masks of drop path are drawn
        # for the whole batch, so that each image gets the same mask as in one process.
        self.share: tuple[int, int] | None = None
        self.auxiliary_head: AuxiliaryHead | None = None
        self._auxiliary_cell = reduction_cells(config.cells)[1] if auxiliary else -1
        self.stack(config.stem, config.in_channels, config.channels, config.cells, config.num_classes)

    def make_cell(self, before2: int, before1: int, channels: int, reduction: bool, after_reduction: bool) -> tuple[Cell, int]:
        genotype = self.genotype.reduce if reduction else self.genotype.normal
        cell, out_channels = (
            Cell(genotype, before2, before1, channels, reduction, after_reduction),
            channels * len(genotype.concat),
        )
        if len(self.cells) == self._auxiliary_cell:  # drawn between the cells
            halvings = 2 + 3 * self.reduced_stem
            self.auxiliary_head = AuxiliaryHead(out_channels, -(-self.config.image_size // 2**halvings), self.config.num_classes)
        return cell, out_channels

    def set_drop_path(self, rate: float) -> None:
        """In training mode, drops each edge's output for each image with this probability, and scales the others up.

        Raises:
            ValueError: a rate outside [0, 1).
        """
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"rate: {rate} is not in [0, 1)")
        self.drop_path = rate
        self._kept.set(1.0 - rate)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images (N, in_channels, image_size, image_size) to logits (N, num_classes), and to those of the auxiliary head.

        The latter are None in evaluation mode, and without an auxiliary head.
        """
        kernels = choose(self.evaluation, images.device) == "kernels"
        if kernels:
            images = images.contiguous(memory_format=torch.channels_last)
        before2, before1 = self.read(images)
        auxiliary = None
        factors = self._drop_path_factors(images if kernels else before1)
        if kernels:
            before2, before1 = as_nodes(before2), as_nodes(before1)
        for index, cell in enumerate(self.cells):
            assert isinstance(cell, Cell)
            drop_path = None if factors is None else factors[index]
            out = cell.by_kernels(before2, before1, drop_path) if kernels else cell(before2, before1, drop_path)
            before2, before1 = before1, out
            if self.training and self.auxiliary_head is not None and index == self._auxiliary_cell:
                auxiliary = self.auxiliary_head(joined(before1) if kernels else before1)
        pooled = before1.mean(dim=(2, 3)).transpose(0, 1).flatten(1) if kernels else before1.mean(dim=(2, 3))
        return self.classifier(pooled), auxiliary

    def _drop_path_factors(self, images: Tensor) -> Tensor | None:
        """Factors 0 or 1 / (1 - rate) for each cell, edge and image, (cells, edges, N, 1, 1, 1)."""
        if not self.training or self.drop_path == 0.0:
            return None
        edges = max(len(self.genotype.normal.edges), len(self.genotype.reduce.edges))
        generator = self.drop_path_generator
        start, total = self.share or (0, len(images))
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
        return self.classifier(self.features(x).flatten(1))
