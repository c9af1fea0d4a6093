"""The search network: plain modules against kernels, in one process, taking turns.

    python benchmarks/supernet.py --threads 1 --csv supernet.csv

Plain: one module per operation, each edge on its own, PyTorch's default memory format, optimizers and clipping. A step is forward,
backward, clipping and both optimizers: a search's own with kernels. Times are medians of the process's own time (of wall time with
several threads); read the ratios, since they bear a busy machine. Saved bytes are those that autograd keeps for backward, the peak
is how much resident memory grows in a step. Operators are those of PyTorch that launch work, in a step and in its forward and
backward pass alone. Takes about four minutes.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode

from pdarts_tune.config.presets import PRESETS
from pdarts_tune.networks.build import build_optimizers, clip_gradients
from pdarts_tune.networks.cost import saved_bytes
from pdarts_tune.networks.runtime import keep_freed_memory
from pdarts_tune.networks.supernet import Supernet
from pdarts_tune.pdarts.space import EDGES, PRIMITIVES, CellOps, SearchSpace

if __package__:  # a test imports this file
    from benchmarks.evaluation import compile_for, step_bytes
else:
    from evaluation import compile_for, step_bytes

# name: cells, operations per edge, batch, image size, channels
SHAPES = {
    "stage 1: 5 cells, 8 operations": (5, 8, 16, 32, 16),
    "stage 2: 11 cells, 5 operations": (11, 5, 16, 32, 16),
    "stage 3: 17 cells, 3 operations": (17, 3, 16, 32, 16),
    "small: 5 cells, 8 operations": (5, 8, 64, 8, 4),
}
VARIANTS = ("plain", "kernels", "kernels, recompute")


class Contestant:
    """A network with its optimizers."""

    def __init__(
        self, variant: str, space: SearchSpace, cells: int, channels: int, images: torch.Tensor, labels: torch.Tensor
    ) -> None:
        torch.manual_seed(0)
        evaluation: Literal["plain", "kernels"] = "plain" if variant == "plain" else "kernels"
        self.network = Supernet(space, cells, channels, 10, evaluation=evaluation, recompute=variant.endswith("recompute"))
        self.images, self.labels = images, labels
        groups = self.network.weight_parameters(), self.network.arch_parameters()
        self.clip: Callable[[Sequence[nn.Parameter], float], object] = nn.utils.clip_grad_norm_
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.SGD(groups[0], 0.025, momentum=0.9, weight_decay=3e-4),
            torch.optim.Adam(groups[1], 6e-4, betas=(0.5, 0.999), weight_decay=1e-3),
        )
        if variant != "plain":
            self.clip, self.optimizers = clip_gradients, build_optimizers(PRESETS["paper"].search, self.network)

    def loss(self) -> torch.Tensor:
        return F.cross_entropy(self.network(self.images), self.labels)

    def step(self) -> None:
        self.loss().backward()
        for optimizer in self.optimizers:
            self.clip(optimizer.param_groups[0]["params"], 5.0)
            optimizer.step()
            optimizer.zero_grad()


def random_space(operations: int) -> SearchSpace:
    rng = random.Random(0)

    def cell() -> CellOps:
        return tuple(tuple(sorted(rng.sample(PRIMITIVES, operations), key=PRIMITIVES.index)) for _ in EDGES)

    return SearchSpace(cell(), cell())


class OperatorCounter(TorchDispatchMode):
    """Counts the operators that launch work: no views, allocations and detaches."""

    _NO_WORK = frozenset(("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "_unsafe_view"))

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        views = [value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns]
        name = func._schema.name.removeprefix("aten::")
        self.count += not (name in self._NO_WORK or (views and all(views)))
        return func(*args, **(kwargs or {}))


def operator_count(step: Callable[[], Any]) -> int:
    with OperatorCounter() as counter:
        step()
    return counter.count


def measure(name: str, repeats: int) -> list[dict[str, object]]:
    cells, operations, batch, size, channels = SHAPES[name]
    space = random_space(operations)
    images, labels = torch.randn(batch, 3, size, size), torch.randint(10, (batch,))
    contestants = {variant: Contestant(variant, space, cells, channels, images, labels) for variant in VARIANTS}
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for repeat in range(repeats + 1):
        for variant, contestant in contestants.items():
            start = clock()
            contestant.step()
            if repeat > 0:  # the first step warms up
                seconds[variant].append(clock() - start)
    rows: list[dict[str, object]] = []
    first: tuple[float, int, int, int, int] | None = None
    for variant, contestant in contestants.items():
        found = (
            statistics.median(seconds[variant]),
            saved_bytes(contestant.loss),
            operator_count(contestant.step),
            operator_count(lambda contestant=contestant: contestant.loss().backward()),  # type: ignore[misc]
            step_bytes(contestant.step),
        )
        first = first or found
        rows.append(
            {
                "shape": name,
                "threads": torch.get_num_threads(),
                "evaluation": variant,
                "seconds": found[0],
                "times_faster": first[0] / found[0],
                "saved_bytes": found[1],
                "bytes_ratio": found[1] / first[1],
                "peak_bytes": found[4],
                "peak_ratio": found[4] / first[4],
                "operators": found[2],
                "operators_ratio": found[2] / first[2],
                "passes_operators": found[3],
                "passes_operators_ratio": found[3] / first[3],
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), metavar="PREFIX", help="of the names, e.g. small 'stage 1'")
    parser.add_argument("--march", help="what kernels are compiled for, e.g. x86-64-v3; default: this machine")
    parser.add_argument("--csv", type=Path, help="where to write the table")
    arguments = parser.parse_args()
    compile_for(arguments.march)
    keep_freed_memory()  # as every trial does; of use to the plain network, too
    rows = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for name in SHAPES:
            if name.startswith(tuple(arguments.shapes)):
                rows += measure(name, arguments.repeats)
    table = pd.DataFrame(rows)
    print(table.to_markdown(index=False, floatfmt=".3f"))
    if arguments.csv:
        table.to_csv(arguments.csv, index=False)


if __name__ == "__main__":
    main()
