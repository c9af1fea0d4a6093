"""Augmentation as pure functions of a batch of images on its device; all randomness comes from an explicit generator.

The generator may be on the CPU or on the images' device. Images are normalised, so the zeros that fill gaps are the mean colour.

Where several processes share a batch, each has some of its images: `place` is where they start in the batch, and how many the batch
has. Draws are made for all of them, so that an image gets what it would get in one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (the name that every PyTorch user knows)

from pdarts_tune.config.serialize import ConfigError

# MERGED DOCSTRING
# A data set in memory, and its training images parted at random with every class in proportion.
# MERGED DOCSTRING
# Batches of a data set on the device: images stay uint8 until they are asked for, then become normalised float32.

Rows = tuple[int, int]


def shift(images: Tensor, pad: int, generator: torch.Generator, place: Rows | None = None) -> Tensor:
    """Moves each image by up to `pad` pixels each way and fills with zeros: pad, then crop at random. (N, C, H, W) to the same."""
    count, _, height, width = images.shape
    top, left = (_uniform(2 * pad + 1, images, generator, place) for _ in range(2))
    # Every crop that could be drawn, as a view; taking one of each image then copies whole rows.
    windows = F.pad(images, (pad,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(count, device=images.device), :, top, left]


def flip(images: Tensor, generator: torch.Generator, place: Rows | None = None) -> Tensor:
    """Mirrors each image left to right with probability one half. (N, C, H, W) to the same."""
    mirrored = _uniform(2, images, generator, place).view(-1, 1, 1, 1) == 1
    return torch.where(mirrored, images.flip(-1), images)


def cutout(images: Tensor, size: int, generator: torch.Generator, place: Rows | None = None) -> Tensor:
    """Zeroes a square of `size` pixels in each image, its centre anywhere, cut off at the border (DeVries & Taylor, 2017)."""
    height, width = images.shape[2:]
    top = _uniform(height, images, generator, place)[:, None] - size // 2
    left = _uniform(width, images, generator, place)[:, None] - size // 2
    rows = torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    in_rows = (rows >= top) & (rows < top + size)
    in_columns = (columns >= left) & (columns < left + size)
    hole = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    return images.masked_fill(hole, 0.0)


def _uniform(high: int, images: Tensor, generator: torch.Generator, place: Rows | None) -> Tensor:
    """A whole number below `high` for each image, int64 (N,)."""
    start, total = place or (0, len(images))
    drawn = torch.randint(high, (total,), generator=generator, device=generator.device)
    return drawn[start : start + len(images)].to(images.device)


Share = Callable[[int], slice]  # of a batch of so many images, those that this process takes


def whole(total: int) -> slice:
    """All of a batch."""
    return slice(0, total)


class Part(Protocol):
    """Images of one size with labels: resident.ImageSet, or streaming.StreamedSet."""

    @property
    def labels(self) -> Tensor:
        """int64 (N,)."""

    @property
    def channels(self) -> int:
        """1 or 3."""

    @property
    def side(self) -> int:
        """Height and width, in pixels."""

    @property
    def pad(self) -> int:
        """How far augmentation shifts an image each way, in pixels; 0 where images are cropped at random as they are read."""

    @property
    def skip_bad(self) -> bool:
        """Whether `fetch` may give fewer images than were asked for, since some cannot be used."""

    def __len__(self) -> int: ...

    def select(self, indices: Tensor) -> Self:
        """The images at `indices`, int64 (M,), in that order."""

    def joined(self, other: Self) -> Self:
        """These images, then the other's, which must be of the same kind."""

    def to(self, device: torch.device) -> Self:
        """The same images, on the device or to be delivered there."""

    def fetch(self, batches: Sequence[Tensor], generator: torch.Generator | None, share: Share) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields images, uint8 (B, C, H, W), and labels for the share of each batch of indices. With a generator, for training."""


@dataclass(frozen=True)
class Dataset:
    """Training and test images of square shape, with what is needed to normalise and augment them."""

    name: str
    train: Part
    test: Part
    class_names: tuple[str, ...]
    mean: tuple[float, ...]  # per channel, taken from images scaled to [0, 1]
    std: tuple[float, ...]  # per channel; what they are then divided by
    flip: bool  # whether an image seen in a mirror keeps its class
    shared: int = 0  # test images that are among the training images too
    left_out: set[str] = field(default_factory=set)  # a line for each image that cannot be used, as they are come upon

    @property
    def in_channels(self) -> int:
        return self.train.channels

    @property
    def image_size(self) -> int:
        """Height and width, in pixels."""
        return self.train.side

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def pad(self) -> int:
        """How far augmentation shifts an image each way, in pixels."""
        return self.train.pad


@dataclass(frozen=True)
class Split:
    """The training images in three parts: those that train the weights, those that train the alphas, those held out."""

    weights: Part
    alphas: Part
    validation: Part


def split_train(images: Part, split_seed: int, validation_fraction: float) -> Split:
    """Parts the training images at random, each class in proportion: validation first, the rest halved for weights and alphas.

    With `validation_fraction` 0 the validation part *is* the alphas' part, the protocol of DARTS and P-DARTS. Otherwise the three
    parts are disjoint, and together are all the images. The same seed gives the same parts.

    Raises:
        ConfigError: so few images that a part would be empty, or of one class alone.
    """
    order = stratified_order(images.labels, torch.Generator().manual_seed(split_seed))
    held_out = round(validation_fraction * len(order))
    half = held_out + (len(order) - held_out + 1) // 2
    parts = [part.sort().values for part in (order[:held_out], order[held_out:half], order[half:])]
    if validation_fraction == 0.0:
        parts[0] = parts[2]
    for part, purpose in zip(parts, ("validation", "weights", "alphas"), strict=True):
        if len(part) == 0:
            raise ConfigError(
                f"validation_fraction: {validation_fraction} of {len(order)} training images leaves none for {purpose}; "
                f"take more images or another fraction"
            )
    for part, purpose in zip(parts, ("validation", "weights", "alphas"), strict=True):
        if len(images.labels[part].unique()) < 2:
            raise ConfigError(
                f"validation_fraction: {validation_fraction} of {len(order)} training images leaves images of one class alone for "
                f"{purpose}; take more images or another fraction"
            )
    validation, weights, alphas = (images.select(part) for part in parts)
    return Split(weights, alphas, validation)


def stratified_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """A random order of which every stretch holds the classes in proportion: shuffled, then sorted by quantile in the class."""
    shuffled = torch.randperm(len(labels), generator=generator)
    ranks, sizes = _ranks(labels[shuffled].numpy())
    return shuffled[torch.from_numpy(np.argsort((ranks + 0.5) / sizes, kind="stable"))]


def first_of_each_class(labels: NDArray[np.int64], count: int | None) -> NDArray[np.int64]:
    """The rows, ascending, of the first `count` images when the classes take turns; all rows if `count` is None."""
    if count is None:
        return np.arange(len(labels))
    ranks, _ = _ranks(labels)
    return np.sort(np.argsort(ranks, kind="stable")[:count])


def _ranks(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each image how many of its class come before it, and how large its class is."""
    by_class = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    first = np.cumsum(sizes) - sizes
    ranks = np.empty_like(labels)
    ranks[by_class] = np.arange(len(labels)) - first[labels[by_class]]
    return ranks, sizes[labels]


class Batches:
    """One part of a data set, batch by batch on the device, whether its images live there or stream from files.

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
        self._augment = augment
        self._cutout = cutout
        self._pad = dataset.pad
        self._flip = dataset.flip
        self._scale = torch.tensor([255.0 * std for std in dataset.std], device=device).view(-1, 1, 1)
        self._offset = torch.tensor([255.0 * mean for mean in dataset.mean], device=device).view(-1, 1, 1)

    def __len__(self) -> int:
        """Batches in an epoch. The last one is smaller if need be, but left out if it were a single image: batch norm
        cannot train on one."""
        whole, rest = divmod(len(self.part), self.batch_size)
        return whole + (rest > 1)

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (images float32 (B, C, H, W), labels int64 (B,)) once through the part, shuffled, augmented if this part is.

        All randomness comes from the generator, which may be on the CPU or on the images' device: the same state, the same epoch.

        Raises:
            ConfigError: batches of a single image.
        """
        return ((images, labels) for images, labels, _ in self.shared_epoch(generator, Workers()))

    def shared_epoch(self, generator: torch.Generator, workers: Workers) -> Iterator[tuple[Tensor, Tensor, Place]]:
        """The same, each of several processes with its own share of every batch, and where it stands in the batch.

        The shares of a batch put together are the batch that one process would get. No process reads the images of another.
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
            if place.total < 2:  # all others of a batch were left out because they are damaged
                continue
            if self._augment:
                where = place.start, place.total
                if self._pad:
                    images = shift(images, self._pad, generator, where)
                if self._flip:
                    images = flip(images, generator, where)
                if self._cutout:
                    images = cutout(images, self._cutout, generator, where)
            yield images, labels, place

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields every image once, in file order and never augmented, in the same form: for validation and test."""
        return ((images, labels) for images, labels, _ in self.shared_in_order(Workers()))

    def shared_in_order(self, workers: Workers) -> Iterator[tuple[Tensor, Tensor, Place]]:
        """The same, each of several processes with its own share of every batch, and where it stands in the batch."""
        order = torch.arange(len(self.part), device=self.part.labels.device)
        return self._fetch(order.split(self.batch_size), None, workers)

    def _fetch(
        self, batches: Sequence[Tensor], generator: torch.Generator | None, workers: Workers
    ) -> Iterator[tuple[Tensor, Tensor, Place]]:
        for batch, (images, labels) in zip(batches, self.part.fetch(batches, generator, workers.share), strict=True):
            # Only then do processes have to ask each other, which on a GPU stalls every step.
            place = workers.find_place(len(labels), self.device) if self.part.skip_bad else workers.place(len(batch))
            yield self._normalise(images), labels, place

    def _normalise(self, images: Tensor) -> Tensor:
        return (images.float() - self._offset) / self._scale


class Place(NamedTuple):
    """Where a process's images stand in a batch that several processes share."""

    start: int  # of them
    total: int  # images in the batch
    fewest: int  # images that any of the processes has


@dataclass(frozen=True)
class Workers:
    """The processes of one training, and which of them this is. More than one need an initialised `torch.distributed` group."""

    rank: int = 0
    count: int = 1

    def share(self, total: int) -> slice:
        """This process's images of a batch of `total`: consecutive, as equal in number as can be."""
        return slice(total * self.rank // self.count, total * (self.rank + 1) // self.count)

    def place(self, total: int) -> Place:
        """Where this process's share of a batch of `total` stands."""
        return Place(self.share(total).start, total, total // self.count)

    def find_place(self, own: int, device: torch.device) -> Place:
        """The same where only each process knows how many images it has, since it left some out."""
        counts = torch.zeros(self.count, dtype=torch.int64, device=device)
        counts[self.rank] = own
        each = self.total(counts).tolist()
        return Place(sum(each[: self.rank]), sum(each), min(each))

    def union(self, lines: set[str]) -> set[str]:
        """What any of the processes has in its set."""
        every: list[Any] = [lines] * self.count
        if self.count > 1:
            dist.all_gather_object(every, lines)
        return set().union(*every)

    def total(self, values: Tensor) -> Tensor:
        """The sum of all processes' values, the same in each of them."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def align_buffers(self, network: nn.Module) -> None:
        """Gives every process the first one's running statistics: without shared ones each has those of its own share."""
        if self.count > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)
