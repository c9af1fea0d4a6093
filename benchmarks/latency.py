"""The latency of candidate operations on the device at hand, for a search that is told to save it.

    python benchmarks/latency.py --out latency.json --preset laptop
    python studies/depth_gap.py --set penalty.resource=latency penalty.latencies=latency.json penalty.weight=0.5

Measures every operation in every shape that the search's networks have: plain modules in evaluation mode, forward alone. Operations
take turns, so that a busy moment hits all of them; a figure is the median over the turns of the mean of a few calls. The file is
written whole. It takes a few seconds for small images.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from tabulate import tabulate
from torch.utils.benchmark import Timer

from pdarts_tune.config.command_line import change_settings, parse
from pdarts_tune.config.presets import PRESETS
from pdarts_tune.config.remedies import Latencies, Latency
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError, from_dict, to_dict
from pdarts_tune.data.datasets import check_dataset
from pdarts_tune.evaluation.job import describe_device
from pdarts_tune.networks.operations import OPERATIONS
from pdarts_tune.networks.runtime import cuda_problem
from pdarts_tune.results.storage import Storage
from pdarts_tune.search.resources import needed_latencies

TURN_SECONDS = 2e-3  # of an operation; calls are repeated until they take so long


@dataclass(frozen=True)
class Arguments:
    out: Path
    """The file to write."""
    preset: str = "laptop"
    """Whose search: smoke, laptop, cifar-small or paper."""
    set: tuple[str, ...] = ()
    """NAME=VALUE of the search's settings, as a study takes them: space=S2 stages.operations=2."""
    channels: tuple[int, ...] = ()
    """Initial channels, one or several; without them, the search's."""
    image_size: int | None = None
    """Side of the images, in pixels; without it, the data set's."""
    device: Literal["cpu", "cuda"] = "cpu"
    batch: int = 1
    """Images of a batch."""
    threads: int = 1
    """Of the CPU."""
    turns: int = 25
    """Of every operation."""


def measure(needed: Sequence[tuple[str, int, int, int]], device: torch.device, batch: int, threads: int, turns: int) -> Latencies:
    """The median seconds of each operation (name, channels, stride, side of the images) on a batch."""
    timers = []
    for name, channels, stride, size in needed:
        operation = OPERATIONS[name](channels, stride, False).to(device).eval()
        names = {"operation": operation, "images": torch.randn(batch, channels, size, size, device=device)}
        timers.append(Timer("operation(images)", globals=names, num_threads=threads))  # it warms up, and waits for CUDA
    seconds: list[list[float]] = [[] for _ in timers]
    with torch.inference_mode():
        calls = [math.ceil(min(1000.0, TURN_SECONDS / timer.timeit(3).mean)) for timer in timers]
        for _ in range(turns):
            for timer, count, own in zip(timers, calls, seconds, strict=True):
                own.append(timer.timeit(count).mean)
    rows: list[Latency] = [(*place, statistics.median(own)) for place, own in zip(needed, seconds, strict=True)]
    return Latencies(describe_device(device), torch.__version__, threads, batch, tuple(rows))


def run(arguments: Arguments) -> None:
    """Raises ConfigError for wrong arguments, before it measures."""
    if arguments.preset not in PRESETS:
        raise ConfigError(f"preset: {arguments.preset!r} is unknown, known are {', '.join(PRESETS)}")
    for name in ("batch", "threads", "turns"):
        if getattr(arguments, name) < 1:
            raise ConfigError(f"{name}: {getattr(arguments, name)} is wrong, it must be at least 1")
    if arguments.out.is_dir():
        raise ConfigError(f"out: {arguments.out} is a folder, it must be a file")
    if arguments.device == "cuda" and (problem := cuda_problem()):
        raise ConfigError(f"device: PyTorch cannot use a GPU, {problem}")
    config = from_dict(SearchConfig, change_settings(to_dict(PRESETS[arguments.preset].search), arguments.set))
    size = arguments.image_size or check_dataset(config).image_size
    configs = [replace(config, channels=channels) for channels in arguments.channels or (config.channels,)]
    needed = sorted({place for own in configs for place in needed_latencies(own, size)})
    torch.set_num_threads(arguments.threads)
    table = measure(needed, torch.device(arguments.device), arguments.batch, arguments.threads, arguments.turns)
    Storage(arguments.out.parent).write(arguments.out.name, json.dumps(to_dict(table), indent=1).encode())
    shown = [[*row[:4], 1e6 * row[4]] for row in table.seconds]
    print(tabulate(shown, ["operation", "channels", "stride", "pixels", "microseconds"], floatfmt=".1f"))
    print(f"\n{arguments.out}: {len(needed)} latencies on {table.device}, batches of {table.batch}")


def main() -> None:
    arguments = parse(Arguments, description=(__doc__ or "").splitlines()[0])
    try:
        run(arguments)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
