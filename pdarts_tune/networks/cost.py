"""The cost of a network, from shapes alone: parameters, multiply-adds, and the memory that training takes.

Networks are built without memory and nothing is computed, so every figure is the same on every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from pdarts_tune.config.evaluation import EvalConfig
from pdarts_tune.config.execution import allows_graphs, cell_evaluation
from pdarts_tune.config.methods import SecondOrder, Snas, trains_alphas
from pdarts_tune.config.remedies import DropPath, FrozenOperations
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.networks.build import build_network
from pdarts_tune.networks.evaluation_network import EvalNetwork, NetworkConfig
from pdarts_tune.networks.graphs import GRAPHS
from pdarts_tune.networks.kernels.build import choose
from pdarts_tune.pdarts.genotype import Genotype
from pdarts_tune.pdarts.progressive_depth import Stage
from pdarts_tune.pdarts.space import SPACES, SearchSpace

MOBILE_MADDS = 600_000_000  # the limit of the mobile setting
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Cost:
    """The size of a derived network at inference, without the auxiliary head."""

    params: int
    macs: int  # multiply-accumulates of convolutions and the classifier, for one image
    madds: int  # macs, 2 per batch-norm output, 1 per ReLU, 1 per pooling input element: the count of the field's tables


@lru_cache(maxsize=4096)
def network_cost(genotype: Genotype, config: NetworkConfig) -> Cost:
    """The cost of a genotype's network. P-DARTS on ImageNet has 557M madds (arXiv 1904.12760, table 2)."""
    with torch.device("meta"):
        network = EvalNetwork(genotype, config, auxiliary=False).eval()
        image = torch.empty(1, config.in_channels, config.image_size, config.image_size)
    counter = FlopCounterMode(display=False, custom_mapping=_ELEMENTWISE)
    with torch.no_grad(), counter:
        network(image)
    counts = counter.get_flop_counts()["Global"]
    elementwise = sum(count for operation, count in counts.items() if operation in _ELEMENTWISE)
    macs = (sum(counts.values()) - elementwise) // 2  # PyTorch counts a multiplication and an addition as two
    return Cost(sum(parameter.numel() for parameter in network.parameters()), macs, macs + elementwise)


def _per_input(factor: int) -> Callable[..., int]:
    """A formula for PyTorch's counter: operations per input element."""
    return lambda shape, *_, out_shape, **__: factor * math.prod(shape)  # noqa: ARG005  (the counter passes it by name)


_ELEMENTWISE = {
    torch.ops.aten.relu: _per_input(1),
    torch.ops.aten.avg_pool2d: _per_input(1),
    torch.ops.aten.max_pool2d_with_indices: _per_input(1),
    torch.ops.aten.mean: _per_input(1),  # the global average pool
    # The counter sees one of these two, since PyTorch takes the first one apart where it can.
    torch.ops.aten.native_batch_norm: _per_input(2),
    torch.ops.aten._native_batch_norm_legit_no_training: _per_input(2),
}


class ImageShape(Protocol):
    """The part of a data set that decides a network's shape."""

    @property
    def num_classes(self) -> int: ...
    @property
    def image_size(self) -> int: ...  # pixels, height and width
    @property
    def in_channels(self) -> int: ...


def network_shape(genotype: Genotype, config: EvalConfig, data: ImageShape) -> NetworkConfig:
    """The network that a recipe builds of a genotype for the images of a data set."""
    shape = NetworkConfig(config.channels, config.cells, data.num_classes, data.image_size, config.stem, data.in_channels)
    return replace(shape, channels=widest_channels(genotype, shape)) if config.auto_width else shape


def widest_channels(genotype: Genotype, config: NetworkConfig, limit: int = MOBILE_MADDS) -> int:
    """The largest even number of channels at which the genotype's network has fewer than `limit` madds, `config` otherwise.

    Raises:
        ConfigError: even two channels are too many.
    """

    def fits(channels: int) -> bool:
        return network_cost(genotype, replace(config, channels=channels)).madds < limit

    if not fits(2):
        raise ConfigError(f"auto_width: 2 channels already take {limit} multiply-adds; take smaller images or fewer cells")
    fitting, too_wide = 2, 4
    while fits(too_wide):
        fitting, too_wide = too_wide, 2 * too_wide
    while too_wide - fitting > 2:
        middle = (fitting + too_wide) // 4 * 2
        fitting, too_wide = (middle, too_wide) if fits(middle) else (fitting, middle)
    return fitting


def check_madds(genotype: Genotype, config: EvalConfig, data: ImageShape, name: str, limit: int = MOBILE_MADDS) -> None:
    """Raises ConfigError if a recipe of the mobile setting would train a network above the setting's limit."""
    if config.stem == "imagenet":
        shape = network_shape(genotype, config, data)
        madds = network_cost(genotype, shape).madds
        if madds > limit:
            raise ConfigError(
                f"{name}: {madds / 1e6:.0f}M multiply-adds at {shape.channels} channels, the mobile setting allows "
                f"{limit / 1e6:.0f}M; leave it out, or take a recipe with auto_width"
            )


def saved_bytes(forward: Callable[[], Any]) -> int:
    """The bytes that autograd keeps for backward while `forward` runs: each storage once, without parameters."""
    storages: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        root = tensor if tensor._base is None else tensor._base
        if not (root.is_leaf and root.requires_grad):
            storage = tensor.untyped_storage()
            storages[storage._cdata] = storage  # held, so that no other storage takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in storages.values())


def predict_stage_bytes(
    config: SearchConfig,
    stage: Stage,
    image_size: int,
    num_classes: int,
    in_channels: int = 3,
    space: SearchSpace | None = None,
    device: torch.device = CPU,
) -> int:
    """The memory that a stage takes, in bytes: the saved tensors of a step at their most, weights, running statistics and the
    optimizers' state.

    Where steps are CUDA graphs, their memory stays theirs, and a step outside them (a kind's first, a short batch, a diagnosis)
    takes its own. An estimate of the Hessian's eigenvalue saves what its second derivatives need, with plain cells.

    Args:
        space: the kept operations; None: an even spread over the edges, since only the search decides.
        device: where the step would run, which decides how cells are evaluated.
    """
    if space is None:
        space = even_space(stage.operations, config.start)
    # Mixed precision does not know the meta device. Fake tensors, which are slower, pretend to be on a real one.
    with FakeTensorMode() if config.execution.precision == "bf16" else torch.device("meta"):
        network = build_network(config, space, stage.cells, num_classes, in_channels, seed=0)
        network.evaluation = choose(network.evaluation, device)
        network.set_skip_dropout(stage.skip_dropout)
        network.drop_path = next((remedy.rate for remedy in config.remedies if isinstance(remedy, DropPath)), 0.0)
        images = torch.empty(config.batch_size, in_channels, image_size, image_size)
        groups = network.weight_parameters(), network.arch_parameters()
        at_once = any(isinstance(remedy, FrozenOperations) for remedy in config.remedies)
        if at_once or isinstance(config.method, Snas | SecondOrder):
            steps = [(True, True)]  # weights and alphas both need gradients
        else:
            steps = [(True, False), (False, True)] if trains_alphas(config.method) else [(True, False)]
        saved = 0
        for trained in steps:
            for group, on in zip(groups, trained, strict=True):
                for parameter in group:
                    parameter.requires_grad_(on)
            saved = max(saved, saved_bytes(lambda: network(images)))
        outside = saved
        if config.eigenvalue_every:
            network.evaluation = "plain"
            network.set_skip_dropout(0.0)
            for parameter in (parameter for group in groups for parameter in group):
                parameter.requires_grad_(True)
            labels = torch.zeros(config.batch_size, dtype=torch.int64)
            gradient = partial(torch.autograd.grad, create_graph=True)
            # A product with the Hessian makes about as many bytes again as it finds saved: 0.9 to 1.05 times as measured on a CPU.
            outside = max(saved, 2 * saved_bytes(lambda: gradient(cross_entropy(network(images), labels), groups[1])))
    if device.type in GRAPHS and allows_graphs(config.execution, config.method, config.remedies):
        outside += saved
    weights, alphas = (sum(tensor.nbytes for tensor in group) for group in groups)
    statistics = sum(buffer.nbytes for buffer in network.buffers())
    return outside + statistics + 2 * weights + 3 * alphas  # SGD keeps a momentum per weight, Adam two moments per alpha


def even_space(operations: int, start: SearchSpace = SPACES["full"]) -> SearchSpace:
    """A part of a search space with so many operations on every edge, each operation on about as many edges."""
    normal, reduce = (
        tuple(
            tuple(name for index, name in enumerate(names) if (index - edge * operations) % len(names) < operations)
            for edge, names in enumerate(cell)
        )
        for cell in (start.normal, start.reduce)
    )
    return SearchSpace(normal, reduce)


def predict_evaluation_bytes(genotype: Genotype, shape: NetworkConfig, config: EvalConfig, device: torch.device = CPU) -> int:
    """The memory that a training of a genotype's network takes, in bytes: the saved tensors at their most, weights with gradients
    and momenta, and running statistics. Where steps are CUDA graphs, those outside them take memory of their own."""
    mixed = config.precision == "bf16"
    with FakeTensorMode() if mixed else torch.device("meta"):
        network = EvalNetwork(genotype, shape, auxiliary=config.auxiliary_weight > 0)
        network.evaluation = choose(cell_evaluation(config.execution), device)
        images = torch.empty(config.batch_size, shape.in_channels, shape.image_size, shape.image_size)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            saved = saved_bytes(lambda: network(images))
    if device.type in GRAPHS and allows_graphs(config.execution):
        saved *= 2
    return saved + sum(buffer.nbytes for buffer in network.buffers()) + 3 * sum(p.nbytes for p in network.parameters())
