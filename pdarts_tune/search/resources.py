"""What the architectures of a search network cost: parameters, multiply-adds, memory access, measured latency.

If every edge draws its operation by its probability, the expected cost of an architecture is the sum of each operation's cost times
its probability (SNAS; Xie et al., 2019, section 2.4). A penalty on it may go with any method whose mixing weights are
probabilities. Stem, preprocessing and classifier, which are the same for all architectures, do not count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from pdarts_tune.config.methods import Given, RandomSampling, Snas
from pdarts_tune.config.remedies import Latencies, Shape
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.networks.build import build_network
from pdarts_tune.networks.operations import OPERATIONS
from pdarts_tune.networks.supernet import Cell, Mixing, Supernet
from pdarts_tune.pdarts.genotype import Genotype
from pdarts_tune.pdarts.space import EDGES, CellOps, SearchSpace

# The factors of SNAS. Its paper names three levels (section 2.4, table 1) but gives no figures; these are our own.
SNAS_WEIGHTS: Mapping[str, float] = {"none": 0.0, "mild": 0.1, "moderate": 0.5, "aggressive": 2.0}


@dataclass(frozen=True)
class OperationCost:
    """One operation on one image."""

    params: int
    macs: int  # multiply-accumulates of convolutions
    accesses: int  # numbers read and written by convolutions, pools and the identity, weights included


@lru_cache(maxsize=1024)
def operation_cost(name: str, channels: int, stride: int, size: int) -> OperationCost:
    """The cost of a candidate operation on `channels` square images of `size` pixels a side, from shapes alone."""
    with torch.device("meta"):
        operation = OPERATIONS[name](channels, stride, False)
        image = torch.empty(1, channels, size, size)
    macs = accesses = 0

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal macs, accesses
        accesses += inputs[0].numel() + output.numel()
        if isinstance(module, nn.Conv2d):
            accesses += module.weight.numel()
            macs += output.numel() * module.weight[0].numel()

    for module in operation.modules():
        if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d | nn.Identity):
            module.register_forward_hook(count)
    operation(image)
    return OperationCost(sum(parameter.numel() for parameter in operation.parameters()), macs, accesses)


def edge_shapes(network: Supernet, image_size: int) -> Iterator[tuple[bool, int, Shape]]:
    """Of every edge of every cell: whether the cell is a reduction, the edge, and the shape of its operations."""
    size = -(-image_size // 8) if network.reduced_stem else image_size
    for cell in network.cells:
        assert isinstance(cell, Cell)
        half = -(-size // 2) if cell.reduction else size
        for edge in range(len(EDGES)):
            stride = cell.stride(edge)
            yield cell.reduction, edge, (cell.channels, stride, size if stride == 2 else half)
        size = half


@dataclass(frozen=True)
class Resource:
    """What every operation adds to the cost of the whole network, by edge and name, in normal and in reduction cells."""

    costs: tuple[list[dict[str, float]], list[dict[str, float]]]
    most: float  # the cost of the costliest architecture

    def expected(self, probabilities: Mapping[str, Sequence[Mapping[str, float]]]) -> float:
        """The mean over architectures, by the probabilities of each cell type, edge and operation."""
        edges = zip([*probabilities["normal"], *probabilities["reduce"]], [*self.costs[0], *self.costs[1]], strict=True)
        return sum(chance * costs[name] for chances, costs in edges for name, chance in chances.items())

    def derived(self, genotype: Genotype) -> float:
        """The cost of the genotype's operations; edges that it leaves out cost nothing."""
        return sum(
            costs[EDGES.index((source, index // 2))][name]
            for cell, costs in zip((genotype.normal, genotype.reduce), self.costs, strict=True)
            for index, (name, source) in enumerate(cell.edges)
        )


def count_resources(
    network: Supernet, image_size: int, start: SearchSpace | None = None, latencies: Latencies | None = None
) -> dict[str, Resource]:
    """The resources of a search network for one image of `image_size` pixels a side, by name: those of OperationCost, and `latency`
    in seconds if there is a table.

    Args:
        start: the space whose costliest architecture is `most`, which holds the network's; None: the network's own.

    Raises:
        ConfigError: the table lacks a shape.
    """
    space = _cells(start or network.space)
    seconds = None if latencies is None else latencies.by_shape
    costs: dict[str, Any] = {}
    for reduction, edge, shape in edge_shapes(network, image_size):
        for name in {*space[reduction][edge], "none"}:
            own: dict[str, float] = asdict(operation_cost(name, *shape))
            if seconds is not None:  # a derived cell has no `none`
                own["latency"] = 0.0 if name == "none" else _look_up(seconds, name, shape)
            for resource, cost in own.items():
                cells = costs.setdefault(resource, ([{} for _ in EDGES], [{} for _ in EDGES]))
                cells[reduction][edge][name] = cells[reduction][edge].get(name, 0) + cost
    return {name: Resource(cells, sum(max(edge.values()) for edges in cells for edge in edges)) for name, cells in costs.items()}


def relative_costs(resources: Sequence[Resource], network: Supernet) -> Mixing:
    """The mean of some resources, each relative to its costliest architecture. Shaped like the alphas, with zeros in the padding.

    The costliest is that of the space that a search starts from, in a network as deep as the stage's. So a change of one edge from
    one operation to another saves about the same in every stage, and a penalty's weight means the same in all of them.
    """
    parts = []
    for reduction, (operations, alphas) in enumerate(zip(_cells(network.space), network.arch_parameters()[:2], strict=True)):
        rows = [
            [fmean(r.costs[reduction][edge][name] / (r.most or 1.0) for r in resources) for name in names]
            + [0.0] * (alphas.shape[1] - len(names))
            for edge, names in enumerate(operations)
        ]
        parts.append(torch.tensor(rows, dtype=alphas.dtype, device=alphas.device))
    return parts[0], parts[1]


def expected_cost(probabilities: Sequence[Tensor], costs: Sequence[Tensor]) -> Tensor:
    """The mean cost over architectures, with independent draws of the operations by these probabilities (rows sum to 1)."""
    return torch.stack([(chance * cost).sum() for chance, cost in zip(probabilities, costs, strict=True)]).sum()


def penalty_of(config: SearchConfig) -> tuple[float, Sequence[str]]:
    """The factor of the expected relative cost in the alphas' loss, and the resources of which it is the mean."""
    if isinstance(config.method, Snas):
        return SNAS_WEIGHTS[config.method.penalty], ("params", "macs", "accesses")
    return config.penalty.weight, (config.penalty.resource,)


def needed_latencies(config: SearchConfig, image_size: int) -> list[tuple[str, int, int, int]]:
    """Every operation and shape that a search's networks have, in order; none if it trains no network."""
    if isinstance(config.method, RandomSampling | Given):
        return []
    any_space = SearchSpace.uniform("none")  # shapes do not depend on the operations
    with torch.device("meta"):
        networks = [build_network(config, any_space, cells, 2, 1, seed=0) for cells in {stage.cells for stage in config.stages}]
    shapes = {place for network in networks for place in edge_shapes(network, image_size)}
    start = _cells(config.start)
    return sorted({(name, *shape) for reduction, edge, shape in shapes for name in start[reduction][edge] if name != "none"})


def check_latencies(config: SearchConfig, image_size: int) -> None:
    """Raises ConfigError if the search's table of latencies lacks a shape."""
    if config.penalty.latencies is not None:
        seconds = config.penalty.latencies.by_shape
        for name, *shape in needed_latencies(config, image_size):
            _look_up(seconds, name, (shape[0], shape[1], shape[2]))


def _look_up(seconds: Mapping[tuple[str, int, int, int], float], name: str, shape: Shape) -> float:
    if (name, *shape) not in seconds:
        channels, stride, size = shape
        raise ConfigError(
            f"penalty.latencies: has no {name} with {channels} channels, stride {stride}, {size} pixels; "
            "benchmarks/latency.py with the settings of this search measures it"
        )
    return seconds[(name, *shape)]


def _cells(space: SearchSpace) -> tuple[CellOps, CellOps]:
    return space.normal, space.reduce
