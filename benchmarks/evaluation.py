"""Training steps of the evaluation network: plain modules against kernels, in one process, taking turns.

    python benchmarks/evaluation.py --threads 1 2 --csv evaluation.csv

Plain: one module per operation, PyTorch's default memory format, its default optimizer and clipping. A step is forward with drop
path 0.2 and auxiliary head, backward, clipping, SGD. Times are medians of the process's own time, so read the ratios: they bear a
busy machine (of wall time with several threads). Saved bytes are those that autograd keeps for backward, the peak is how much
resident memory grows in a step. Takes about four minutes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from pdarts_tune.networks.build import clip_gradients
from pdarts_tune.networks.cost import saved_bytes
from pdarts_tune.networks.evaluation_network import EvalNetwork, NetworkConfig
from pdarts_tune.networks.kernels import build
from pdarts_tune.networks.runtime import give_back_freed_memory, keep_freed_memory, peak_bytes, reset_peak_bytes
from pdarts_tune.pdarts.published import PUBLISHED

# name: channels, cells, batch, image size
SHAPES = {
    "16 channels, 8 cells": (16, 8, 32, 32),
    "36 channels, 20 cells": (36, 20, 8, 32),
    "4 channels, 12 cells": (4, 12, 64, 32),
    "6 channels, 9 cells": (6, 9, 64, 8),
}
VARIANTS = ("plain", "kernels", "kernels, recompute")


class Contestant:
    """A network with its optimizer."""

    def __init__(self, variant: str, config: NetworkConfig, images: torch.Tensor, labels: torch.Tensor) -> None:
        torch.manual_seed(0)
        plain = variant == "plain"
        self.network = EvalNetwork(PUBLISHED["PDARTS_C10"].genotype, config)
        self.network.set_drop_path(0.2)
        self.network.evaluation = "plain" if plain else "kernels"
        for cell in self.network.cells:
            cell.recompute = variant.endswith("recompute")
        self.images, self.labels = images, labels
        self.clip: Callable[..., object] = nn.utils.clip_grad_norm_ if plain else clip_gradients
        fused = None if plain else True
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.025, momentum=0.9, weight_decay=3e-4, fused=fused)

    def loss(self) -> torch.Tensor:
        logits, auxiliary = self.network(self.images)
        return F.cross_entropy(logits, self.labels) + 0.4 * F.cross_entropy(auxiliary, self.labels)

    def step(self) -> None:
        self.loss().backward()
        self.clip(list(self.network.parameters()), 5.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def step_bytes(step: Callable[[], object]) -> int:
    """How much resident memory grows in a step at most."""
    cpu = torch.device("cpu")
    give_back_freed_memory(cpu)
    reset_peak_bytes(cpu)
    before = peak_bytes(cpu)
    step()
    return peak_bytes(cpu) - before


def compile_for(architecture: str | None) -> None:
    """Compiles the kernels for another instruction set than this machine's, e.g. x86-64-v3."""
    if architecture:
        build.FLAGS = tuple(f"-march={architecture}" if flag.startswith("-march") else flag for flag in build.FLAGS)


def measure(name: str, repeats: int) -> list[dict[str, object]]:
    channels, cells, batch, size = SHAPES[name]
    images, labels = torch.randn(batch, 3, size, size), torch.randint(10, (batch,))
    config = NetworkConfig(channels, cells, 10, size, "cifar")
    contestants = {variant: Contestant(variant, config, images, labels) for variant in VARIANTS}
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for repeat in range(repeats + 1):
        for variant, contestant in contestants.items():
            start = clock()
            contestant.step()
            if repeat > 0:  # the first step warms up
                seconds[variant].append(clock() - start)
    medians = {variant: statistics.median(times) for variant, times in seconds.items()}
    kept = {variant: saved_bytes(contestant.loss) for variant, contestant in contestants.items()}
    peaks = {variant: step_bytes(contestant.step) for variant, contestant in contestants.items()}
    return [
        {
            "shape": name,
            "threads": torch.get_num_threads(),
            "evaluation": variant,
            "seconds": medians[variant],
            "times_faster": medians["plain"] / medians[variant],
            "saved_bytes": kept[variant],
            "bytes_ratio": kept[variant] / kept["plain"],
            "peak_bytes": peaks[variant],
            "peak_ratio": peaks[variant] / peaks["plain"],
        }
        for variant in VARIANTS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), metavar="PREFIX", help="of the names, e.g. 16 36")
    parser.add_argument("--march", help="what kernels are compiled for, e.g. x86-64-v3; default: this machine")
    parser.add_argument("--csv", type=Path, help="where to write the table")
    arguments = parser.parse_args()
    compile_for(arguments.march)
    keep_freed_memory()  # as every trial does
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
