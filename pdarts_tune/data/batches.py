"""Batches of a data set on the device, shuffled, augmented and normalised.

All draws come from an explicit generator, which may be on the CPU or on the device. Sets are uint8, batches float32. They are
normalised before they are augmented, so the zeros that fill gaps are the mean colour.

Several processes can share a batch. Each draws for the whole batch and takes its own part of the draws, so that an image gets the
augmentation that it would get in one process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (the name that every PyTorch user knows)

from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.data.datasets import Dataset
from pdarts_tune.data.splits import Part


class Place(NamedTuple):
    """The place of a process's images in a batch that several processes share."""

    start: int  # of the process's images
    total: int  # images in the batch
    fewest: int  # images of the process that has the fewest


@dataclass(frozen=True)
class Workers:
    """The processes of one training. Rank is this process's number. More than one need an initialised `torch.distributed` group."""

    rank: int = 0
    count: int = 1

    def share(self, total: int) -> slice:
        """This process's images of a batch of `total`: consecutive, and as many as the others' give or take one."""
        return slice(total * self.rank // self.count, total * (self.rank + 1) // self.count)

    def place(self, total: int) -> Place:
        """The place of this process's share of a batch of `total`."""
        return Place(self.share(total).start, total, total // self.count)

    def find_place(self, own: int, device: torch.device) -> Place:
        """The same where each process has left out bad images and has `own` images now. The processes exchange their numbers."""
        counts = torch.zeros(self.count, dtype=torch.int64, device=device)
        counts[self.rank] = own
        numbers = self.total(counts).tolist()
        return Place(sum(numbers[: self.rank]), sum(numbers), min(numbers))

    def union(self, lines: set[str]) -> set[str]:
        """The union of all processes' sets."""
        sets: list[Any] = [lines] * self.count
        if self.count > 1:
            dist.all_gather_object(sets, lines)
        return set().union(*sets)

    def total(self, values: Tensor) -> Tensor:
        """The sum of all processes' values, the same in each of them."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def align_buffers(self, network: nn.Module) -> None:
        """Copies the first process's running statistics to all: without synchronised batch norms each process has its own."""
        if self.count > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)


class Batches:
    """One part of a data set, batch by batch on the device.

    Raises:
        ConfigError: a cutout as large as the images, which would blank them.
        ValueError: a cutout without augmentation.
    """

    def __init__(
        self, images: Part, dataset: Dataset, batch_size: int, device: torch.device, *, augment: bool, cutout: int = 0
    ) -> None:
        if cutout >= dataset.image_size:
            raise ConfigError(
                f"cutout: {cutout} would blank {dataset.name}'s images, it must be less than {dataset.image_size} pixels"
            )
        if cutout and not augment:
            raise ValueError(f"cutout: {cutout} is augmentation, and augment is off")
        self.device = device
        self.part = images.to(device)
        self.batch_size = batch_size
        self._augment, self._cutout, self._pad, self._flip = augment, cutout, dataset.pad, dataset.flip
        moments = (torch.tensor([255.0 * value for value in values], device=device) for values in (dataset.mean, dataset.std))
        self._offset, self._scale = (values.view(-1, 1, 1) for values in moments)

    def __len__(self) -> int:
        """Batches in an epoch. The last one may be smaller, but never a single image, on which batch norm cannot train."""
        whole, rest = divmod(len(self.part), self.batch_size)
        return whole + (rest > 1)

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (images float32 (B, C, H, W), labels int64 (B,)) once through the part, shuffled and perhaps augmented.

        Raises:
            ConfigError: batches of a single image.
        """
        return ((images, labels) for images, labels, _ in self.shared_epoch(generator, Workers()))

    def shared_epoch(self, generator: torch.Generator, workers: Workers) -> Iterator[tuple[Tensor, Tensor, Place]]:
        """The same for one of several processes: its share of every batch, and the place of the share.

        Together the shares of a batch are the batch that one process would get. No process reads the images of another.
        """
        if self.batch_size == 1 or len(self) == 0:
            raise ConfigError(
                f"batch_size: {self.batch_size} of {len(self.part)} images gives batches of one image, "
                f"batch norm needs at least 2 to train"
            )
        home = self.part.labels.device
        order = torch.randperm(len(self.part), generator=generator, device=generator.device).to(home)
        batches = order.split(self.batch_size)[: len(self)]
        for images, labels, place in self._fetch(batches, generator if self._augment else None, workers):
            if place.total < 2:  # the others were bad images
                continue
            if self._augment:
                if self._pad:
                    images = shift(images, self._pad, generator, place)
                if self._flip:
                    images = flip(images, generator, place)
                if self._cutout:
                    images = cutout(images, self._cutout, generator, place)
            yield images, labels, place

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields every image once, in file order and never augmented: for validation and test."""
        return ((images, labels) for images, labels, _ in self.shared_in_order(Workers()))

    def shared_in_order(self, workers: Workers) -> Iterator[tuple[Tensor, Tensor, Place]]:
        """The same for one of several processes: its share of every batch, and the place of the share."""
        order = torch.arange(len(self.part), device=self.part.labels.device)
        return self._fetch(order.split(self.batch_size), None, workers)

    def _fetch(
        self, batches: Sequence[Tensor], generator: torch.Generator | None, workers: Workers
    ) -> Iterator[tuple[Tensor, Tensor, Place]]:
        for batch, (images, labels) in zip(batches, self.part.fetch(batches, generator, workers.share), strict=True):
            # Without bad images processes need no exchange, which on a GPU stalls every step.
            place = workers.find_place(len(labels), self.device) if self.part.skip_bad else workers.place(len(batch))
            yield (images.float() - self._offset) / self._scale, labels, place


def shift(images: Tensor, pad: int, generator: torch.Generator, place: Place | None = None) -> Tensor:
    """Moves each image by up to `pad` pixels each way and fills with zeros: pad, then crop at random. (N, C, H, W) to the same."""
    count, _, height, width = images.shape
    top, left = (_uniform(2 * pad + 1, images, generator, place) for _ in range(2))
    # All possible crops as a view: the choice of one for each image then copies whole rows.
    windows = F.pad(images, (pad,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(count, device=images.device), :, top, left]


def flip(images: Tensor, generator: torch.Generator, place: Place | None = None) -> Tensor:
    """Mirrors each image left to right with probability one half. (N, C, H, W) to the same."""
    mirrored = _uniform(2, images, generator, place).view(-1, 1, 1, 1) == 1
    return torch.where(mirrored, images.flip(-1), images)


def cutout(images: Tensor, size: int, generator: torch.Generator, place: Place | None = None) -> Tensor:
    """Zeroes a square of `size` pixels in each image, its centre anywhere, cut off at the border (DeVries & Taylor, 2017)."""
    height, width = images.shape[2:]
    top = _uniform(height, images, generator, place)[:, None] - size // 2
    left = _uniform(width, images, generator, place)[:, None] - size // 2
    y = torch.arange(height, device=images.device)
    x = torch.arange(width, device=images.device)
    in_rows = (y >= top) & (y < top + size)
    in_columns = (x >= left) & (x < left + size)
    hole = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    return images.masked_fill(hole, 0.0)


def _uniform(high: int, images: Tensor, generator: torch.Generator, place: Place | None) -> Tensor:
    """A whole number below `high` for each image, int64 (N,)."""
    start, total = place[:2] if place else (0, len(images))
    numbers = torch.randint(high, (total,), generator=generator, device=generator.device)
    return numbers[start : start + len(images)].to(images.device)
