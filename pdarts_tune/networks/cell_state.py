"""What the kinds of operations share in one forward or backward pass of a cell: the nodes, and the state that edges leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from pdarts_tune.networks.cell_depthwise import Reading, Scratch
from pdarts_tune.networks.cell_layout import as_images, even_pixels, repeat
from pdarts_tune.networks.cell_norms import Statistics
from pdarts_tune.networks.cell_plan import Run, StatePlan, split

Saved = list[Tensor | None]
SMALL = 2**17  # elements of a node: what a processor's second-level cache holds with its neighbours


@dataclass
class CellPass:
    """One pass through a cell. `nodes` are sums that edges add to or, in backward, gradients that edges read."""

    nodes: Tensor  # (nodes, pixels, channels)
    sums: Tensor  # (nodes, channels). Forward: what the nodes must have subtracted. Backward: the sums of their gradients.
    shape: torch.Size  # of a node, as images
    masks: dict[int, Tensor]  # skip dropout: elements kept, by edge
    kept: float  # the share of them
    statistics: Statistics
    recompute: bool
    unit: Tensor  # zeros, ones: see `cell_norms.unit`
    inverse_counts: dict[int, Tensor] = field(default_factory=dict)  # of average pools, by stride
    scratch: Scratch = field(default_factory=dict)

    @property
    def small(self) -> bool:
        return self.nodes[0].numel() <= SMALL

    @property
    def pixels(self) -> int:
        return self.nodes.shape[1]

    def images(self, node: int) -> Tensor:
        return as_images(self.nodes[node], self.shape)

    def subtract(self, node: int) -> None:
        """Subtracts from a node what it must have subtracted. Elementwise kernels want long rows, hence a line of pixels."""
        width = self.shape[3]
        self.nodes[node].view(-1, width * self.shape[1]).sub_(self.sums[node].repeat(width))

    def flat(self, run: Run) -> Tensor:
        """A row per node."""
        return self.nodes[run.nodes].flatten(1)


@dataclass
class State:
    """A state and the parameters of the operations on it."""

    plan: StatePlan
    image: Tensor
    parameters: Sequence[Tensor]
    mixing: Tensor
    incidence: Tensor
    scratch: Scratch
    _repeated: dict[tuple[bool, int], Reading] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (
            self.first,
            self.inner,
            self.second,
            self.dilated,
            self.outer,
            self.reduce1,
            self.reduce2,
        ) = split(self.parameters, self.plan.parameter_groups)
        self.on_outer, self.on_reduce, *self.on_pools, self.on_skips = split(self.mixing, self.plan.mixing_groups)
        self.at_outer, self.at_reduce, *_ = split(self.incidence, self.plan.mixing_groups)

    @cached_property
    def relu(self) -> Tensor:
        return torch.relu(self.image)

    def read(self, count: int, dilated: bool) -> Reading:
        """relu(state) as it is read by `count` branches side by side.

        At stride 2 a convolution of dilation 2 reads every second pixel only, as an ordinary convolution.
        """
        halved = dilated and self.plan.stride == 2
        if (halved, count) not in self._repeated:
            if count > 1:
                image = repeat(self.read(1, dilated).image, count)
            else:
                image = even_pixels(self.relu) if halved else self.relu
            self._repeated[halved, count] = Reading(image, self.scratch, "halved" if halved else "state")
        return self._repeated[halved, count]

    @property
    def dilation(self) -> int:
        return 2 if self.plan.stride == 1 else 1
