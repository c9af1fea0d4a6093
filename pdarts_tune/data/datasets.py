"""Data sets by name.

| name | what it is |
|---|---|
| `digits` | scikit-learn's 1,797 scans of handwritten digits, part of the package |
| `cifar10`, `cifar100` | in the data folder (cache.py), downloaded there if there is internet |
| `imagenet` | class folders in the folder imagenet of the data folder |
| `folder:PATH` | class folders in any folder (layouts.py) |
| `parquet:PATH` | a folder of Parquet files as on the Hugging Face hub (layouts.py) |

Without an `image_size` the images of a set must be square and of one size. They live on the device whole, and augmentation shifts
them; `downsample` makes them smaller first. With an `image_size` (recipes for ImageNet have one) images of any shape stream from
files, cropped to that size.
"""

from __future__ import annotations

import socket
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pdarts_tune.config.evaluation import EvalConfig
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.data.cache import DATA_VARIABLE, data_folder
from pdarts_tune.data.decoding import one_line
from pdarts_tune.data.files import FolderImages, ParquetImages, count_shared, image_layout, unpack
from pdarts_tune.data.in_memory import ImageSet, average_squares, check_memory, count_equal, decode_part
from pdarts_tune.data.layouts import Source, open_folders, open_parquet
from pdarts_tune.data.normalisation import IMAGENET_MOMENTS, Moments, check_moments, pixel_moments, sample_moments
from pdarts_tune.data.splits import Part, first_of_each_class, stratified_order
from pdarts_tune.data.streaming import StreamedSet
from pdarts_tune.results.storage import hold_lock

KNOWN = (
    "digits, cifar10, cifar100, imagenet, folder:PATH (holds train/ and val/), parquet:PATH (holds train.parquet and test.parquet)"
)
DIGITS_TEST_FRACTION = 0.2
DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer: without internet the download must fail, not hang

Images = ImageSet | FolderImages | ParquetImages
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Dataset:
    """Training and test images, with what normalises and augments them."""

    name: str
    train: Part
    test: Part
    class_names: tuple[str, ...]
    mean: tuple[float, ...]  # per channel, of images scaled to [0, 1]
    std: tuple[float, ...]
    flip: bool  # whether a mirrored image keeps its class
    shared: int = 0  # test images that are among the training images too
    left_out: set[str] = field(default_factory=set)  # a line for each bad image so far

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

    def check_saved_moments(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError if a run's saved state has other moments. States of earlier releases have none."""
        if "mean" in state and (tuple(state["mean"]), tuple(state["std"])) != (self.mean, self.std):
            raise ValueError(
                f"the checkpoint is of images normalised with {state['mean']}, {state['std']}, this is {self.mean}, {self.std}"
            )


@dataclass(frozen=True)
class DatasetInfo:
    """The shape and the size of a data set, known before its images are decoded."""

    in_channels: int
    image_size: int  # height and width, in pixels
    num_classes: int
    train_images: int  # those that the configuration takes
    test_images: int


def load_dataset(config: SearchConfig | EvalConfig, moments: Moments | None = None) -> Dataset:
    """Opens the data set that a configuration names: decodes it (or maps the decoded cache), or prepares it to stream.

    It reads `data`; `train_images` and `test_images` (at most so many images, each class in equal number as far as possible);
    `image_size`; `downsample` (images are averaged over squares of so many pixels a side, once: the means are cached);
    `skip_bad_images` (leave bad images out and warn, rather than refuse the set); `split_seed` (draws the test part of `digits`, a
    stratified fifth; other sets come with a test part). Grayscale images of a colour set get three equal channels.
    `moments` normalise the images; None: those of a new training (normalisation.py).

    Warns of test images that equal a training image: in pixels, or where images stream in bytes (files.SHARED_LIMIT).

    Raises:
        ConfigError: the name is unknown; a file is missing or damaged; a label or an image is bad; the set has too few images;
            without `image_size` the images differ in size or are too many to live on a device. One line names the file and row.
    """
    name, skip_bad = config.data, config.skip_bad_images
    source = _open(name, config.split_seed)
    rows = [_chosen_rows(config.train_images, source.train), _chosen_rows(config.test_images, source.test)]
    channels, side = _layout(source.train, config)
    if moments is not None:
        check_moments(moments, channels, name)
    left_out: set[str] = set()
    if config.image_size is None:
        train, test = (
            _decode(images, part, channels, side, skip_bad, source.class_names, left_out)
            for images, part in zip((source.train, source.test), rows, strict=True)
        )
        train, test = (average_squares(images, config.downsample) for images in (train, test))
        mean, std = moments or pixel_moments(train.images)
        parts: tuple[Part, Part] = train, test
        shared = count_equal(train, test)
    else:
        streams = []
        for images, part in zip((source.train, source.test), rows, strict=True):
            assert not isinstance(images, ImageSet), "_layout refuses them"
            files = unpack(images) if isinstance(images, ParquetImages) else images
            labels = torch.from_numpy(images.labels[part])
            streams.append(StreamedSet(files, torch.from_numpy(part), labels, channels, side, skip_bad, left_out))
        mean, std = moments or (IMAGENET_MOMENTS if channels == 3 else sample_moments(streams[0]))
        parts = streams[0], streams[1]
        shared = count_shared(streams[0].source, streams[1].source)
    if shared:
        warnings.warn(f"data: {shared} of {name}'s test images are among its training images too", stacklevel=2)
    if not any(std):
        raise ConfigError(f"data: all of {name}'s training images are of one colour, nothing can be learnt")
    std = tuple(deviation or 1.0 for deviation in std)  # a channel with one value everywhere stays so
    return Dataset(name, *parts, source.class_names, mean, std, source.mirror, shared, left_out)


def check_dataset(config: SearchConfig | EvalConfig) -> DatasetInfo:
    """Checks a data set before any work: names, metadata and all labels; decodes one image. Downloads CIFAR.

    Raises:
        ConfigError: as `load_dataset`, but for bad images other than the first.
    """
    source = _open(config.data, config.split_seed)
    channels, side = _layout(source.train, config)
    counts = [len(_chosen_rows(*part)) for part in ((config.train_images, source.train), (config.test_images, source.test))]
    for count in counts if config.image_size is None else ():
        check_memory(count, channels, side)
    return DatasetInfo(channels, side // config.downsample, len(source.class_names), *counts)


def _chosen_rows(count: int | None, images: Images) -> Rows:
    """The first `count` images, each class in turn; all, if there are fewer."""
    total = len(images.labels)
    if count is None or count >= total:
        return np.arange(total)
    return first_of_each_class(np.asarray(images.labels), count)


def _layout(images: Images, config: SearchConfig | EvalConfig) -> tuple[int, int]:
    """Channels and side of the images in pixels, before they are averaged."""
    if isinstance(images, ImageSet):
        channels, side = images.channels, images.side
        if config.image_size is not None:
            raise ConfigError(f"image_size: {config.data}'s images have {side} pixels and do not stream, leave image_size out")
    else:
        channels, side = image_layout(images, config.image_size, config.skip_bad_images)
    if config.downsample > 1 and config.image_size is not None:
        raise ConfigError(f"downsample: images with an image_size ({side}) stream and are cropped to it, leave one of the two out")
    if side % config.downsample:
        raise ConfigError(f"downsample: {config.downsample} does not divide the {side} pixels of {config.data}'s images")
    return channels, side


def _decode(
    images: Images, rows: Rows, channels: int, side: int, skip_bad: bool, class_names: tuple[str, ...], left_out: set[str]
) -> ImageSet:
    if isinstance(images, ImageSet):
        return images if len(rows) == len(images) else images.select(torch.from_numpy(rows))
    part, lines = decode_part(images, rows, channels, side, skip_bad=skip_bad)
    left_out.update(lines)
    if lines:
        warnings.warn(f"data: left out {len(lines)} images that cannot be used, the first is {lines[0]}", stacklevel=4)
        lost = set(images.labels[rows].tolist()) - set(part.labels.tolist())
        if lost:
            raise ConfigError(f"{images.place}: class {min(lost)} ({class_names[min(lost)]}) has no image that can be used")
    return part


def _open(name: str, split_seed: int) -> Source:
    kind, _, path = name.partition(":")
    if name == "digits":
        return _open_digits(split_seed)
    if name in ("cifar10", "cifar100"):
        return _open_cifar(name)
    if kind == "parquet" and path:
        return open_parquet(Path(path).expanduser())
    if name == "imagenet" or (kind == "folder" and path):
        return open_folders(Path(path).expanduser() if path else data_folder() / name, name)
    raise ConfigError(f"data: unknown data set {name!r}, known are {KNOWN}")


def _open_digits(split_seed: int) -> Source:
    digits = _read_digits()
    order = stratified_order(digits.labels, torch.Generator().manual_seed(split_seed))
    test_count = round(DIGITS_TEST_FRACTION * len(order))
    train, test = (digits.select(rows.sort().values) for rows in (order[test_count:], order[:test_count]))
    return Source(train, test, tuple(str(digit) for digit in range(10)), mirror=False)  # a mirrored digit is another sign


@lru_cache(maxsize=1)
def _read_digits() -> ImageSet:
    """All scans, uint8 (N, 1, 8, 8) in the full range."""
    from sklearn.datasets import load_digits  # takes a second to import

    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return ImageSet(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))


def _open_cifar(name: str) -> Source:
    """CIFAR-10, or CIFAR-100 with fine labels, from https://www.cs.toronto.edu/~kriz/cifar.html. torchvision checks MD5 sums."""
    from torchvision.datasets import CIFAR10, CIFAR100  # takes a second to import

    reader = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    folder = data_folder()
    try:
        train = reader(str(folder), train=True)
    except RuntimeError:  # the files are missing or damaged
        _download(name, reader, folder)
        train = reader(str(folder), train=True)
    train_set, test_set = (
        ImageSet(torch.from_numpy(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))), torch.tensor(part.targets))
        for part in (train, reader(str(folder), train=False))
    )
    return Source(train_set, test_set, tuple(train.classes), mirror=True)


def _download(name: str, reader: Any, folder: Path) -> None:
    timeout = socket.getdefaulttimeout()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with hold_lock(folder / f".{name}.lock"):  # one process downloads, the others wait
            socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
            reader(str(folder), download=True)
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"data: {name} is not in {folder} and cannot be downloaded ({one_line(error)}); put {reader.filename} from "
            f"{reader.url}, or its folder {reader.base_folder}, there, or let {DATA_VARIABLE} name the folder that has it"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
