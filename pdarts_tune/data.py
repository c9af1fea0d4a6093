"""Data sets, splits, and batches that live on the device: images stay uint8 there.

A data set's name says where it comes from: `digits`, or `parquet:PATH` for a folder of Parquet files (see parquet.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pdarts_tune.augmentation import cutout, flip, shift
from pdarts_tune.config import ConfigError
from pdarts_tune.parquet import ParquetImages, decode_rows, find_files, image_layout, open_images

KNOWN = "digits, parquet:PATH (a folder that holds train.parquet and test.parquet)"
DIGITS_TEST_FRACTION = 0.2


@dataclass(frozen=True)
class ImageSet:
    """Images and what they show."""

    images: Tensor  # uint8 (N, C, H, W)
    labels: Tensor  # int64 (N,)

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: Tensor) -> ImageSet:
        """The images at `indices`, int64 (M,), in that order."""
        return ImageSet(self.images[indices], self.labels[indices])

    def joined(self, other: ImageSet) -> ImageSet:
        """These images, then the other's."""
        return ImageSet(torch.cat((self.images, other.images)), torch.cat((self.labels, other.labels)))


@dataclass(frozen=True)
class Dataset:
    """Training and test images of square shape, with what is needed to normalise and augment them."""

    name: str
    train: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    mean: tuple[float, ...]  # per channel, of the training images scaled to [0, 1]
    std: tuple[float, ...]
    flip: bool  # whether an image seen in a mirror keeps its class

    @property
    def in_channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def image_size(self) -> int:
        """Height and width, in pixels."""
        return self.train.images.shape[-1]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def pad(self) -> int:
        """How far augmentation shifts an image, in pixels: 4 at 32 pixels, as is usual on CIFAR, in proportion elsewhere."""
        return self.image_size // 8


@dataclass(frozen=True)
class DatasetInfo:
    """What a data set offers, known without decoding it."""

    in_channels: int
    image_size: int  # height and width, in pixels
    num_classes: int
    train_images: int
    test_images: int


@dataclass(frozen=True)
class Split:
    """The training images in three parts: those that train the weights, those that train the alphas, those held out."""

    weights: ImageSet
    alphas: ImageSet
    validation: ImageSet


def check_dataset(name: str, train_images: int | None = None, test_images: int | None = None) -> DatasetInfo:
    """Checks a data set before anything is spent on it: names, metadata and all labels; decodes one image.

    The counts that it returns are those of the whole set; `train_images` and `test_images` are only checked against them.

    Raises:
        ConfigError: what `load_dataset` would raise, but for images other than the first that cannot be decoded.
    """
    if name == "digits":
        everything = _digits()
        test = round(DIGITS_TEST_FRACTION * len(everything))
        info = DatasetInfo(1, everything.images.shape[-1], 10, len(everything) - test, test)
    else:
        train_file, test_file, class_names = _open_folder(name)
        channels, side = image_layout(train_file)
        info = DatasetInfo(channels, side, len(class_names), len(train_file.labels), len(test_file.labels))
    _check_count("train_images", train_images, info.train_images, name)
    _check_count("test_images", test_images, info.test_images, name)
    return info


def load_dataset(name: str, split_seed: int = 0, train_images: int | None = None, test_images: int | None = None) -> Dataset:
    """Loads a data set into memory.

    `digits` are scikit-learn's 1,797 scans of handwritten digits, 8x8 pixels, one channel; a stratified fifth of them, drawn by
    `split_seed`, is the test part. Sets of Parquet files come with a test part, and `split_seed` plays no role.

    `train_images` and `test_images` take so many images, the same number of each class as far as possible, the first in the
    file. Grayscale images of a colour set get three equal channels, transparency is ignored.

    Raises:
        ConfigError: an unknown name, a file missing or damaged, a label or an image that cannot be used, more images asked for
            than there are. One line that names the file and the row.
    """
    if name == "digits":
        everything = _digits()
        order = _stratified_order(everything.labels, _seeded(split_seed))
        test_count = round(DIGITS_TEST_FRACTION * len(everything))
        train = everything.select(order[test_count:].sort().values)
        test = everything.select(order[:test_count].sort().values)
        _check_count("train_images", train_images, len(train), name)
        _check_count("test_images", test_images, len(test), name)
        train = train.select(torch.from_numpy(_first_of_each_class(train.labels.numpy(), train_images)))
        test = test.select(torch.from_numpy(_first_of_each_class(test.labels.numpy(), test_images)))
        class_names = tuple(str(digit) for digit in range(10))
    else:
        train_file, test_file, class_names = _open_folder(name)
        _check_count("train_images", train_images, len(train_file.labels), name)
        _check_count("test_images", test_images, len(test_file.labels), name)
        channels, side = image_layout(train_file)
        train, test = (
            _read(file, _first_of_each_class(file.labels, count), channels, side)
            for file, count in ((train_file, train_images), (test_file, test_images))
        )
    mean, std = _moments(train.images, name)
    # A digit in a mirror is another sign; photographs of things are not hurt.
    return Dataset(name, train, test, class_names, mean, std, flip=name != "digits")


def split_train(images: ImageSet, split_seed: int, validation_fraction: float) -> Split:
    """Parts the training images at random, each class in proportion: validation first, the rest halved for weights and alphas.

    With `validation_fraction` 0 the validation part *is* the alphas' part, the protocol of DARTS and P-DARTS. Otherwise the three
    parts are disjoint, and together are all the images. The same seed gives the same parts.

    Raises:
        ConfigError: so few images that a part would be empty.
    """
    order = _stratified_order(images.labels, _seeded(split_seed))
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
    validation, weights, alphas = (images.select(part) for part in parts)
    return Split(weights, alphas, validation)


class Batches:
    """One part of a data set on the device: images stay uint8 there, and become normalised float32 batch by batch.

    Raises:
        ConfigError: a cutout as large as the images, which would blank them.
        ValueError: a cutout without augmentation.
    """

    def __init__(
        self, images: ImageSet, dataset: Dataset, batch_size: int, device: torch.device, *, augment: bool, cutout: int = 0
    ) -> None:
        if cutout >= dataset.image_size:
            raise ConfigError(
                f"cutout: {cutout} would blank {dataset.name}'s images, it must be less than {dataset.image_size} pixels"
            )
        if cutout and not augment:
            raise ValueError(f"cutout: {cutout} is augmentation, and augment is off")
        self.images = images.images.to(device)
        self.labels = images.labels.to(device)
        self.batch_size = batch_size
        self._augment = augment
        self._cutout = cutout
        self._pad = dataset.pad
        self._flip = dataset.flip
        self._scale = torch.tensor([255.0 * std for std in dataset.std], device=device).view(-1, 1, 1)
        self._offset = torch.tensor([255.0 * mean for mean in dataset.mean], device=device).view(-1, 1, 1)

    @property
    def device(self) -> torch.device:
        return self.images.device

    def __len__(self) -> int:
        """Batches in an epoch. The last one is smaller if need be, but left out if it were a single image: batch norm
        cannot train on one."""
        whole, rest = divmod(len(self.labels), self.batch_size)
        return whole + (rest > 1)

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (images float32 (B, C, H, W), labels int64 (B,)) once through the part, shuffled, augmented if this part is.

        All randomness comes from the generator, which may be on the CPU or on the images' device: the same state, the same epoch.

        Raises:
            ConfigError: batches of a single image.
        """
        if self.batch_size == 1 or len(self) == 0:
            raise ConfigError(
                f"batch_size: {self.batch_size} of {len(self.labels)} images gives batches of one image, "
                f"batch norm needs at least 2 to train"
            )
        order = torch.randperm(len(self.labels), generator=generator, device=generator.device).to(self.labels.device)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            indices = order[start : start + self.batch_size]
            images = self._normalise(self.images[indices])
            if self._augment:
                images = shift(images, self._pad, generator)
                if self._flip:
                    images = flip(images, generator)
                if self._cutout:
                    images = cutout(images, self._cutout, generator)
            yield images, self.labels[indices]

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields every image once, in file order and never augmented, in the same form: for validation and test."""
        for start in range(0, len(self.labels), self.batch_size):
            part = slice(start, start + self.batch_size)
            yield self._normalise(self.images[part]), self.labels[part]

    def _normalise(self, images: Tensor) -> Tensor:
        return (images.float() - self._offset) / self._scale


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _stratified_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """A random order of which every stretch holds the classes in proportion: shuffled, then sorted by quantile in the class."""
    shuffled = torch.randperm(len(labels), generator=generator)
    ranks, sizes = _ranks(labels[shuffled].numpy())
    return shuffled[torch.from_numpy(np.argsort((ranks + 0.5) / sizes, kind="stable"))]


def _first_of_each_class(labels: NDArray[np.int64], count: int | None) -> NDArray[np.int64]:
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


@lru_cache(maxsize=1)
def _digits() -> ImageSet:
    from sklearn.datasets import load_digits  # takes a second to import, and only this data set needs it

    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return ImageSet(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))


def _open_folder(name: str) -> tuple[ParquetImages, ParquetImages, tuple[str, ...]]:
    kind, _, path = name.partition(":")
    if kind != "parquet" or not path:
        raise ConfigError(f"data: unknown data set {name!r}, known are {KNOWN}")
    train, test = (open_images(file) for file in find_files(Path(path).expanduser()))
    names = train.class_names or test.class_names or tuple(str(label) for label in range(int(train.labels.max()) + 1))
    for file in (train, test):
        if file.class_names not in (None, names):
            raise ConfigError(f"{file.path}: its class names are not those of {train.path}")
        wrong = file.labels >= len(names)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ConfigError(f"{file.path}, row {row}: label {file.labels[row]} is out of range, there are {len(names)} classes")
        empty = np.flatnonzero(np.bincount(file.labels, minlength=len(names)) == 0)
        if len(empty):
            raise ConfigError(f"{file.path}: class {empty[0]} ({names[empty[0]]}) has no image")
    return train, test, names


def _read(file: ParquetImages, rows: NDArray[np.int64], channels: int, side: int) -> ImageSet:
    return ImageSet(torch.from_numpy(decode_rows(file, rows, channels, side)), torch.from_numpy(file.labels[rows]))


def _check_count(field: str, asked: int | None, there: int, name: str) -> None:
    if asked is not None and not 1 <= asked <= there:
        raise ConfigError(f"{field}: {asked} asked for, {name} has {there}")


def _moments(images: Tensor, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 images scaled to [0, 1], from counts: exact for any number of images."""
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        shares = counts / counts.sum()
        mean = (shares * values).sum()
        std = (shares * (values - mean) ** 2).sum().sqrt().item()
        if std == 0.0:
            raise ConfigError(
                f"data: channel {channel} of {name}'s training images has one value everywhere, nothing can be learnt"
            )
        means.append(mean.item())
        stds.append(std)
    return tuple(means), tuple(stds)
