"""What a network costs: parameters, multiply-adds, memory for training it, and the memory that a process has used."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pdarts_tune.config.evaluation import EvalConfig
from pdarts_tune.config.methods import Method, SecondOrder, Snas, trains_alphas
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.networks.build import build_network
from pdarts_tune.networks.evaluation_network import EvalNetwork, NetworkConfig
from pdarts_tune.pdarts.genotype import Genotype
from pdarts_tune.pdarts.progressive_depth import Stage
from pdarts_tune.pdarts.space import EDGES, PRIMITIVES, SearchSpace

# MERGED DOCSTRING
# The network that a recipe builds of a genotype: its shape follows from the recipe and the data set, its width perhaps too.


@dataclass(frozen=True)
class Cost:
    """The size of a derived network at inference: the auxiliary head, which only training uses, is left out."""

    params: int
    macs: int  # multiply-accumulates of convolutions and the classifier, for one image
    madds: int  # macs, 2 per batch-norm output, 1 per ReLU, 1 per pooling input element: the count behind the field's tables


@lru_cache(maxsize=4096)
def network_cost(genotype: Genotype, config: NetworkConfig) -> Cost:
    """The cost of a genotype's network. Nothing is computed: shapes alone pass through a network without weights.

    `madds` gives the 557M that P-DARTS reports on ImageNet (arXiv 1904.12760, table 2).
    """
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


def reset_peak_bytes(device: torch.device) -> None:
    """Starts the peak anew, so that a process that runs several trials reports the peak of each."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():  # Linux: 5 resets the peak resident set to the present one
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """The most memory used since `reset_peak_bytes`: on CUDA, what PyTorch had allocated at once; elsewhere the largest resident
    set of this process, libraries included (where there is no /proc, since the process started)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux gives kibibytes, macOS bytes


def saved_bytes(forward: Callable[[], Any]) -> int:
    """The bytes that autograd keeps for backward while `forward` runs: each storage once, parameters left out.

    A figure of shapes alone: it is the same on every device, the meta device included.
    """
    storages: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        root = tensor if tensor._base is None else tensor._base
        if not (root.is_leaf and root.requires_grad):
            storage = tensor.untyped_storage()
            storages[storage._cdata] = storage  # held, so that no other storage takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in storages.values())


def operator_count(step: Callable[[], Any]) -> int:
    """How many operators that launch work a step dispatches: views, allocations and detaches are not counted."""
    counter = _OperatorCounter()
    with counter:
        step()
    return counter.count


def predict_stage_bytes(
    config: SearchConfig,
    stage: Stage,
    image_size: int,
    num_classes: int,
    in_channels: int = 3,
    space: SearchSpace | None = None,
) -> int:
    """The memory that a training step of a stage takes, in bytes, from shapes alone: what is saved for backward at its fullest,
    weights and running statistics, and the optimizers' state.

    It evaluates the configuration's own network, in its precision, on tensors without memory, so it knows whatever a change of the
    evaluation saves. Without a space, the stage's number of operations is spread evenly over the edges, since it is the search that
    decides.
    """
    if space is None:
        space = even_space(stage.operations)
    # Mixed precision does not know the meta device; fake tensors, which are slower, say that they are on a real one.
    with FakeTensorMode() if config.execution.precision == "bf16" else torch.device("meta"):
        network = build_network(config, space, stage.cells, num_classes, in_channels, seed=0)
        network.set_skip_dropout(stage.skip_dropout)
        images = torch.empty(config.batch_size, in_channels, image_size, image_size)
        groups = network.weight_parameters(), network.arch_parameters()
        saved = 0
        for trained in _trained_together(config.method):
            for group, on in zip(groups, trained, strict=True):
                for parameter in group:
                    parameter.requires_grad_(on)
            saved = max(saved, saved_bytes(lambda: network(images)))
    weights, alphas = (sum(tensor.nbytes for tensor in group) for group in groups)
    statistics = sum(buffer.nbytes for buffer in network.buffers())
    return saved + statistics + 2 * weights + 3 * alphas  # SGD keeps a momentum per weight, Adam two moments per alpha


def _trained_together(method: Method) -> list[tuple[bool, bool]]:
    """For each kind of step, whether weights and whether alphas need gradients: what is saved depends on it."""
    if isinstance(method, Snas | SecondOrder):
        return [(True, True)]
    return [(True, False), (False, True)] if trains_alphas(method) else [(True, False)]


def predict_evaluation_bytes(genotype: Genotype, shape: NetworkConfig, config: EvalConfig) -> int:
    """The memory that a training step of a genotype's network takes, in bytes, from shapes alone: what is saved for backward at
    its fullest, weights with their gradients and momenta, and running statistics."""
    with torch.device("meta"):
        network = EvalNetwork(genotype, shape, auxiliary=config.auxiliary_weight > 0)
        images = torch.empty(config.batch_size, shape.in_channels, shape.image_size, shape.image_size)
        saved = saved_bytes(lambda: network(images))
    return saved + sum(buffer.nbytes for buffer in network.buffers()) + 3 * sum(p.nbytes for p in network.parameters())


def even_space(operations: int) -> SearchSpace:
    """A search space with so many operations on every edge, each operation on about as many edges."""
    cell = tuple(_evenly(edge, operations) for edge in range(len(EDGES)))
    return SearchSpace(cell, cell)


def _evenly(edge: int, operations: int) -> tuple[str, ...]:
    chosen = {(edge * operations + step) % len(PRIMITIVES) for step in range(operations)}
    return tuple(name for index, name in enumerate(PRIMITIVES) if index in chosen)


class _OperatorCounter(TorchDispatchMode):
    _NO_WORK = frozenset(("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "_unsafe_view"))

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        views = [value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns]
        name = func._schema.name.removeprefix("aten::")
        self.count += not (name in self._NO_WORK or (views and all(views)))
        return func(*args, **(kwargs or {}))


def _inputs(shape: tuple[int, ...], *_: Any, out_shape: Any, **__: Any) -> int:  # noqa: ARG001
    return math.prod(shape)


def _twice_inputs(shape: tuple[int, ...], *_: Any, out_shape: Any, **__: Any) -> int:  # noqa: ARG001
    return 2 * math.prod(shape)


# Formulas for PyTorch's counter, from the shapes of an operation's arguments.
_ELEMENTWISE = {
    torch.ops.aten.relu: _inputs,
    torch.ops.aten.avg_pool2d: _inputs,
    torch.ops.aten.max_pool2d_with_indices: _inputs,
    torch.ops.aten.mean: _inputs,  # the global average pool
    # The counter takes an operation apart where PyTorch can; whichever of the two is left is counted, never both.
    torch.ops.aten.native_batch_norm: _twice_inputs,
    torch.ops.aten._native_batch_norm_legit_no_training: _twice_inputs,
}

MOBILE_MADDS = 600_000_000  # what the mobile setting allows


class ImageShape(Protocol):
    """What a network must know of a data set."""

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


def check_madds(genotype: Genotype, config: EvalConfig, data: ImageShape, name: str, limit: int = MOBILE_MADDS) -> None:
    """Raises ConfigError if a recipe of the mobile setting would train a network of more multiply-adds than that allows."""
    if config.stem == "imagenet":
        shape = network_shape(genotype, config, data)
        madds = network_cost(genotype, shape).madds
        if madds > limit:
            raise ConfigError(
                f"{name}: {madds / 1e6:.0f}M multiply-adds at {shape.channels} channels, the mobile setting allows "
                f"{limit / 1e6:.0f}M; leave it out, or take a recipe with auto_width"
            )


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
