"""Data sets that come decoded: scikit-learn's embedded digits, and CIFAR as torchvision downloads and reads it."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray

from pdarts_tune.config.serialize import ConfigError, short_name
from pdarts_tune.data.batches import Dataset, Part, first_of_each_class, stratified_order
from pdarts_tune.data.cache import DATA_VARIABLE, data_folder
from pdarts_tune.data.files import (
    FolderImages,
    ParquetImages,
    count_shared,
    find_files,
    image_layout,
    one_line,
    open_folders,
    open_images,
    unpack,
)
from pdarts_tune.data.in_memory import ImageSet, Moments, check_resident, count_equal, decode_part, pixel_moments
from pdarts_tune.data.streaming import StreamedSet, sample_moments

# MERGED DOCSTRING
# Data sets by name, loaded and checked. What the rest of the platform needs of data is imported from here.
#
# | name | what it is |
# |---|---|
# | `digits` | scikit-learn's 1,797 scans of handwritten digits, embedded |
# | `cifar10`, `cifar100` | below the data folder (cache.py), downloaded there if there is internet |
# | `imagenet` | train/ and val/ with a folder a class, in the folder imagenet of the data folder |
# | `folder:PATH` | the same layout in any folder, train/ and test/ or val/ (folders.py) |
# | `parquet:PATH` | a folder with Parquet files as on the Hugging Face hub, train and test or val (parquet.py) |
#
# Without an `image_size` a set's images must be square and of one size; they live on the device whole, and augmentation shifts
# them. With one (recipes for ImageNet have it) they may have any shape: they stream from files, cropped at random to that size.
#
# To train, images that live on the device are normalised with the mean and the deviation of the training images, and those that
# stream with ImageNet's (grayscale: with those of a sample of the training images). Whoever tests weights gives what they were
# trained with; nothing is measured then.

CIFAR = ("cifar10", "cifar100")
DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer: a machine without internet must say so, not hang


@dataclass(frozen=True)
class ArrayImages:
    """The images of one part of a set, uint8 (N, C, H, W), and their labels, int64 (N,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@lru_cache(maxsize=1)
def read_digits() -> ArrayImages:
    """The 1,797 scans of handwritten digits, uint8 (N, 1, 8, 8) in the full range, and their labels."""
    from sklearn.datasets import load_digits  # takes a second to import, and only this data set needs it

    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return ArrayImages(images, labels.astype(np.int64))


def read_cifar(name: str) -> tuple[ArrayImages, ArrayImages, tuple[str, ...]]:
    """Training part, test part and class names of `cifar10` or `cifar100` (its 100 fine labels), images (N, 3, 32, 32).

    The files are those of https://www.cs.toronto.edu/~kriz/cifar.html below `cache.data_folder()`; torchvision checks their MD5
    sums, and downloads them if they are not there.

    Raises:
        ConfigError: they are neither there nor can be downloaded. The message says which folder was looked in and how to put them
            there.
    """
    from torchvision.datasets import CIFAR10, CIFAR100  # takes a second to import

    reader = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    folder = data_folder()
    try:
        train = reader(str(folder), train=True)
    except RuntimeError:  # not there, or not whole
        _download(name, reader, folder)
        train = reader(str(folder), train=True)
    test = reader(str(folder), train=False)
    return _arrays(train), _arrays(test), tuple(train.classes)


def _arrays(part: Any) -> ArrayImages:
    return ArrayImages(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)), np.array(part.targets, dtype=np.int64))


def _download(name: str, reader: Any, folder: Path) -> None:
    timeout = socket.getdefaulttimeout()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name}.lock"):  # one process downloads, those that start at the same time wait for it
            socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
            reader(str(folder), download=True)
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"data: {name} is not in {folder} and cannot be downloaded ({one_line(error)}); put {reader.filename} from "
            f"{reader.url}, or its folder {reader.base_folder}, there, or let {DATA_VARIABLE} name the folder that has it"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)


KNOWN = (
    "digits, cifar10, cifar100, imagenet, folder:PATH (holds train/ and val/), parquet:PATH (holds train.parquet and test.parquet)"
)
DIGITS_TEST_FRACTION = 0.2

# Of ImageNet's training images, as everybody normalises them: https://pytorch.org/vision/stable/models.html
IMAGENET_MOMENTS: Moments = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# What trainings of the DARTS family take, whose weights do not say it.
FAMILIES: Mapping[str, Moments] = {
    "ImageNet": IMAGENET_MOMENTS,
    "CIFAR-10": ((0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)),
    "CIFAR-100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "digits": ((0.3053,), (0.3759,)),
}
CIFAR_SIDE = 32

Images = ArrayImages | FolderImages | ParquetImages


@dataclass(frozen=True)
class DatasetInfo:
    """What a data set offers, known without decoding it."""

    in_channels: int
    image_size: int  # height and width, in pixels
    num_classes: int
    train_images: int
    test_images: int


@dataclass(frozen=True)
class _Opened:
    """A data set whose labels are known and checked; encoded images are not decoded yet."""

    train: Images
    test: Images
    class_names: tuple[str, ...]
    mirror: bool


def check_dataset(
    name: str,
    train_images: int | None = None,
    test_images: int | None = None,
    image_size: int | None = None,
    *,
    skip_bad_images: bool = False,
) -> DatasetInfo:
    """Checks a data set before anything is spent on it: names, metadata and all labels; decodes one image. Downloads CIFAR.

    The counts that it returns are those of the whole set; `train_images` and `test_images` are only checked against them.

    Raises:
        ConfigError: what `load_dataset` would raise, but for images other than the first that cannot be used.
    """
    opened = _open(name, 0)
    counts = []
    channels, side = _layout(name, opened.train, image_size, skip_bad_images)
    for field, asked, part in (("train_images", train_images, opened.train), ("test_images", test_images, opened.test)):
        counts.append(len(part.labels))
        taken = _checked_count(field, asked, len(part.labels), name)
        if image_size is None:
            check_resident(taken, channels, side)
    return DatasetInfo(channels, side, len(opened.class_names), *counts)


def load_dataset(
    name: str,
    split_seed: int = 0,
    train_images: int | None = None,
    test_images: int | None = None,
    image_size: int | None = None,
    *,
    skip_bad_images: bool = False,
    moments: Moments | None = None,
) -> Dataset:
    """Opens a data set: decodes it into memory (or maps what was decoded before), or, with `image_size`, prepares it to stream.

    A stratified fifth of `digits`, drawn by `split_seed`, is the test part. Other sets come with one, and `split_seed` plays no
    role. `train_images` and `test_images` take so many images, the same number of each class as far as possible, the first in
    the file. Grayscale images of a colour set get three equal channels, transparency is ignored. `skip_bad_images` leaves out
    images that cannot be used, warns of their number and lists them in the set's `left_out` (for a set that streams: as they are
    come upon); one such image is else an error. `moments` are what the images are normalised with; None: as for a new training.

    Warns of test images that are among the training images too: equal pixels, or for a set that streams equal files (sets of
    more than `ranges.SHARED_LIMIT` images are not searched).

    Raises:
        ConfigError: an unknown name, a file missing or damaged, a label or an image that cannot be used, more images asked for
            than there are, images that differ in size or are too many to live on a device and no `image_size`. One line that
            names the file, and the row if it has rows.
    """
    opened = _open(name, split_seed)
    train_count = _checked_count("train_images", train_images, len(opened.train.labels), name)
    test_count = _checked_count("test_images", test_images, len(opened.test.labels), name)
    channels, side = _layout(name, opened.train, image_size, skip_bad_images)
    if moments is not None:
        check_moments(moments, channels, name)
    train: Part
    test: Part
    left_out: set[str] = set()
    if image_size is None:
        settings = (channels, side, skip_bad_images, opened.class_names, left_out)
        train = resident_train = _load(opened.train, train_count, *settings)
        test = resident_test = _load(opened.test, test_count, *settings)
        mean, std = moments or pixel_moments(resident_train.images)
        shared = count_equal(resident_train, resident_test)
    else:
        train = streamed_train = _stream(opened.train, train_count, channels, side, skip_bad_images, left_out)
        test = streamed_test = _stream(opened.test, test_count, channels, side, skip_bad_images, left_out)
        mean, std = moments or (IMAGENET_MOMENTS if channels == 3 else sample_moments(streamed_train))
        shared = count_shared(streamed_train.source, streamed_test.source)
    if shared:
        warnings.warn(f"data: {shared} of {name}'s test images are among its training images too", stacklevel=2)
    for channel, value in enumerate(() if moments else std):
        if value == 0.0:
            raise ConfigError(
                f"data: channel {channel} of {name}'s training images has one value everywhere, nothing can be learnt"
            )
    return Dataset(name, train, test, opened.class_names, mean, std, opened.mirror, shared, left_out)


def check_moments(moments: Moments, channels: int, name: str) -> None:
    """Raises ConfigError for a mean or deviation that the images of a data set cannot be normalised with."""
    for field, values, right, fits in (
        ("mean", moments[0], "in [0, 1]: of images scaled to that", lambda value: 0 <= value <= 1),
        ("std", moments[1], "more than 0 and at most 1: of images scaled to [0, 1]", lambda value: 0 < value <= 1),
    ):
        if len(values) != channels:
            raise ConfigError(f"{field}: {len(values)} values, {name}'s images have {channels} channels and need one for each")
        for value in values:
            if not fits(value):
                raise ConfigError(f"{field}: {value} is wrong, it must be {right}")


def check_saved_moments(state: Mapping[str, Any], dataset: Dataset) -> None:
    """Raises ValueError if a run's saved state is of other normalised images. Those of earlier releases do not say it."""
    if "mean" in state and (tuple(state["mean"]), tuple(state["std"])) != (dataset.mean, dataset.std):
        raise ValueError(
            f"the checkpoint is of images normalised with {state['mean']}, {state['std']}, this is {dataset.mean}, {dataset.std}"
        )


def find_family(name: str, info: DatasetInfo, stem: str, image_size: int | None) -> str | None:
    """Which of FAMILIES a network was most likely normalised as whose weights do not say it; None: nobody can know.

    ImageNet's by its stem, or where images stream; CIFAR's by the side of the images, CIFAR-100's by its name or number of
    classes.
    """
    if name == "digits":
        return name
    if info.in_channels != 3:
        return None
    if stem == "imagenet" or image_size is not None:
        return "ImageNet"
    if info.image_size != CIFAR_SIDE:
        return None
    hundred = "cifar100" in short_name(name).lower().replace("-", "").replace("_", "") or info.num_classes == 100
    return "CIFAR-100" if hundred else "CIFAR-10"


def _open(name: str, split_seed: int) -> _Opened:
    kind, _, path = name.partition(":")
    if name == "digits":
        digits = read_digits()
        order = stratified_order(torch.from_numpy(digits.labels), torch.Generator().manual_seed(split_seed)).numpy()
        test_count = round(DIGITS_TEST_FRACTION * len(order))
        train, test = (
            ArrayImages(digits.images[rows], digits.labels[rows]) for rows in map(np.sort, (order[test_count:], order[:test_count]))
        )
        # A digit in a mirror is another sign; photographs of things are not hurt.
        return _Opened(train, test, tuple(str(digit) for digit in range(10)), mirror=False)
    if name in CIFAR:
        return _Opened(*read_cifar(name), mirror=True)
    if kind == "parquet" and path:
        return _checked(*map(open_images, find_files(Path(path).expanduser())))
    if name == "imagenet" or (kind == "folder" and path):
        return _checked(*open_folders(Path(path).expanduser() if path else data_folder() / name, name))
    raise ConfigError(f"data: unknown data set {name!r}, known are {KNOWN}")


def _checked(train: FolderImages | ParquetImages, test: FolderImages | ParquetImages) -> _Opened:
    names = train.class_names or test.class_names or tuple(str(label) for label in range(int(train.labels.max()) + 1))
    if len(names) < 2:
        raise ConfigError(f"{train.place}: has one class alone ({names[0]}), a classifier needs at least 2")
    for part in (train, test):
        if part.class_names not in (None, names):
            raise ConfigError(f"{part.place}: its class names are not those of {train.place}")
        wrong = part.labels >= len(names)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ConfigError(f"{part.where(row)}: label {part.labels[row]} is out of range, there are {len(names)} classes")
        empty = np.flatnonzero(np.bincount(part.labels, minlength=len(names)) == 0)
        if len(empty):
            raise ConfigError(f"{part.place}: class {empty[0]} ({names[empty[0]]}) has no image")
    if None not in (train.mirror, test.mirror) and train.mirror != test.mirror:
        raise ConfigError(f"{test.place}: mirror is {test.mirror}, in {train.place} it is {train.mirror}")
    return _Opened(train, test, names, mirror=False not in (train.mirror, test.mirror))


def _checked_count(field: str, asked: int | None, there: int, name: str) -> int:
    if asked is not None and not 1 <= asked <= there:
        raise ConfigError(f"{field}: {asked} asked for, {name} has {there}")
    return there if asked is None else asked


def _layout(name: str, images: Images, image_size: int | None, skip_bad: bool) -> tuple[int, int]:
    if image_size is not None and image_size < 1:
        raise ConfigError(f"image_size: {image_size} is wrong, it must be at least 1, or nothing for the images' own")
    if not isinstance(images, ArrayImages):
        return image_layout(images, image_size, skip_bad)
    _, channels, _, side = images.images.shape
    if image_size is not None:
        raise ConfigError(f"image_size: {name}'s images have {side} pixels and do not stream, leave image_size out")
    return channels, side


def _load(
    images: Images, count: int, channels: int, side: int, skip_bad: bool, class_names: tuple[str, ...], left_out: set[str]
) -> ImageSet:
    rows = first_of_each_class(images.labels, count)
    if isinstance(images, ArrayImages):
        part = ImageSet(torch.from_numpy(images.images), torch.from_numpy(images.labels))
        return part if count == len(part) else part.select(torch.from_numpy(rows))
    part, skipped = decode_part(images, rows, channels, side, skip_bad=skip_bad)
    left_out.update(skipped)
    if skipped:
        warnings.warn(f"data: left out {len(skipped)} images that cannot be used, the first is {skipped[0]}", stacklevel=3)
        lost = set(images.labels[rows].tolist()) - set(part.labels.tolist())
        if lost:
            raise ConfigError(f"{images.place}: class {min(lost)} ({class_names[min(lost)]}) has no image that can be used")
    return part


def _stream(images: Images, count: int, channels: int, side: int, skip_bad: bool, left_out: set[str]) -> StreamedSet:
    assert not isinstance(images, ArrayImages), "_layout refuses them"
    rows = torch.from_numpy(first_of_each_class(images.labels, count))
    source = unpack(images) if isinstance(images, ParquetImages) else images
    return StreamedSet(source, rows, torch.from_numpy(images.labels)[rows], channels, side, skip_bad, left_out)
