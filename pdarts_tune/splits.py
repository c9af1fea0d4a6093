"""A data set in memory, and its training images parted at random with every class in proportion."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pdarts_tune.config import ConfigError

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
