"""Images per second of CIFAR batches: ours, on the device, against torchvision's per-image transforms in DataLoader workers.

    python benchmarks/data.py --data parquet:PATH --csv results/data.csv

takes about a minute on 2 cores. Both sides deliver shuffled float32 batches, shifted by up to 4 pixels, mirrored and normalised;
ours also with the 16-pixel cutout of the evaluation recipe. Rounds of the contenders take turns, so that what else the machine
does hits all of them; each figure is the median over rounds. torchvision's transforms come in both of its forms, and the
workers stay alive between epochs, as a careful user would have it.

    python benchmarks/data.py --share

needs no data set, and prints instead what part of a search step's time drawing and augmenting its batch takes, at the shapes of
benchmarks/supernet.py. A step is one of the weights; those of the alphas have a batch of their own.
"""

from __future__ import annotations

import csv
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms
from torchvision.transforms import v2

from pdarts_tune.config.command_line import parse
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.data.batches import Batches
from pdarts_tune.data.datasets import Dataset, load_dataset
from pdarts_tune.data.in_memory import ImageSet
from pdarts_tune.networks.supernet import Supernet
from supernet import SHAPES, random_space

PAD = 4
CUTOUT = 16


@dataclass(frozen=True)
class Arguments:
    data: str = "cifar10"
    csv: Path = Path("results/benchmark_data.csv")
    images: int = 10_000  # training images, enough for the rate to settle
    batch_size: int = 96
    workers: int = 2  # of torchvision's side
    rounds: int = 5
    device: str = "cpu"
    seed: int = 0
    share: bool = False  # the loader's part of a search step, in place of images per second


class PerImage(TorchDataset[tuple[Tensor, int]]):
    """CIFAR as torchvision's data sets hold it: an array of which each image becomes a PIL image, then goes through transforms."""

    def __init__(self, part: ImageSet, transform: Callable[[Image.Image], Tensor]) -> None:
        self.pixels = np.ascontiguousarray(part.images.permute(0, 2, 3, 1).numpy())
        self.labels = part.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def contenders(dataset: Dataset, part: ImageSet, arguments: Arguments) -> dict[str, Callable[[], Iterator[tuple[Tensor, Tensor]]]]:
    """By name, what starts an epoch."""
    device = torch.device(arguments.device)
    generator = torch.Generator(device).manual_seed(arguments.seed)
    normalise = (list(dataset.mean), list(dataset.std))
    first = transforms.Compose(
        [
            transforms.RandomCrop(dataset.image_size, padding=PAD),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(*normalise),
        ]
    )
    second = v2.Compose(
        [
            v2.RandomCrop(dataset.image_size, padding=PAD),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(*normalise),
        ]
    )

    def ours(cutout: int) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
        batches = Batches(part, dataset, arguments.batch_size, device, augment=True, cutout=cutout)
        return lambda: batches.epoch(generator)

    def theirs(transform: Callable[[Image.Image], Tensor]) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
        loader = DataLoader(
            PerImage(part, transform),
            arguments.batch_size,
            shuffle=True,
            num_workers=arguments.workers,
            persistent_workers=arguments.workers > 0,
            pin_memory=device.type == "cuda",
            generator=torch.Generator().manual_seed(arguments.seed),
        )
        return lambda: ((images.to(device), labels.to(device)) for images, labels in loader)

    return {
        "ours": ours(0),
        f"ours, with cutout {CUTOUT}": ours(CUTOUT),
        "torchvision transforms": theirs(first),
        "torchvision transforms.v2": theirs(second),
    }


def seconds(epoch: Callable[[], Iterator[tuple[Tensor, Tensor]]], device: str) -> tuple[float, int]:
    """How long an epoch takes, and how many images it has."""
    started = time.perf_counter()
    images = sum(len(labels) for _, labels in epoch())
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, images


def loader_shares(arguments: Arguments) -> list[dict[str, object]]:
    """Of each shape, the seconds of a batch and of a step. On a CPU processor time, which bears a busy machine."""
    clock = time.process_time if arguments.device == "cpu" else time.perf_counter
    device = torch.device(arguments.device)

    def median(work: Callable[[], object]) -> float:
        taken = []
        for _ in range(arguments.rounds + 1):
            started = clock()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(clock() - started)
        return statistics.median(taken[1:])

    rows: list[dict[str, object]] = []
    for name, (cells, operations, batch, size, channels) in SHAPES.items():
        pixels = torch.randint(256, (8 * batch, 3, size, size), dtype=torch.uint8)
        part = ImageSet(pixels, torch.randint(10, (8 * batch,)))
        dataset = Dataset("random", part, part, tuple("0123456789"), (0.5,) * 3, (0.2,) * 3, flip=True)
        batches = Batches(part, dataset, batch, device, augment=True)
        generator = torch.Generator(device).manual_seed(arguments.seed)
        images, labels = next(batches.epoch(generator))
        with torch.device(device):
            network = Supernet(random_space(operations), cells, channels, 10)
        optimizer = torch.optim.SGD(network.weight_parameters(), 0.025, momentum=0.9, weight_decay=3e-4)

        def step() -> None:
            optimizer.zero_grad()  # noqa: B023  used before the loop goes on
            cross_entropy(network(images), labels).backward()  # noqa: B023
            optimizer.step()  # noqa: B023

        loading = median(lambda: list(batches.epoch(generator))) / len(batches)  # noqa: B023
        stepping = median(step)
        rows.append(
            {
                "shape": name,
                "batch_ms": round(1000 * loading, 3),
                "step_ms": round(1000 * stepping, 1),
                "loader_percent": round(100 * loading / (loading + stepping), 3),
            }
        )
    return rows


def main(arguments: Arguments) -> None:
    torch.set_num_threads(1)  # a share of a machine that trains: the other cores are busy
    if arguments.share:
        print(tabulate(loader_shares(arguments), headers="keys"))
        return
    dataset = load_dataset(SearchConfig(data=arguments.data, train_images=arguments.images))
    part = dataset.train
    assert isinstance(part, ImageSet), "this is about sets that live on the device"
    entrants = contenders(dataset, part, arguments)
    rates: dict[str, list[float]] = {name: [] for name in entrants}
    for current in range(arguments.rounds + 1):  # the first warms up, and starts the workers
        for name, epoch in entrants.items():
            taken, images = seconds(epoch, arguments.device)
            if current:
                rates[name].append(images / taken)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    best = max(rate for name, rate in medians.items() if name.startswith("torchvision"))
    rows = [
        {
            "contender": name,
            "images_per_second": round(medians[name]),
            "slowest_round": round(min(values)),
            "fastest_round": round(max(values)),
            f"ms_per_batch_of_{arguments.batch_size}": round(1000 * arguments.batch_size / medians[name], 2),
            "times_the_best_of_torchvision": round(medians[name] / best, 2),
        }
        for name, values in rates.items()
    ]
    print(f"{arguments.data}, {len(part)} images, {arguments.rounds} rounds, {os.cpu_count()} cores, {arguments.workers} workers")
    widths = {column: max(len(column), *(len(str(row[column])) for row in rows)) for column in rows[0]}
    for row in ({column: column for column in rows[0]}, *rows):
        print("  ".join(str(row[column]).ljust(width) for column, width in widths.items()).rstrip())
    arguments.csv.parent.mkdir(parents=True, exist_ok=True)
    unfinished = arguments.csv.with_suffix(".unfinished")
    with unfinished.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    unfinished.replace(arguments.csv)
    print(f"written to {arguments.csv}")


if __name__ == "__main__":
    main(parse(Arguments, description=__doc__ or ""))
