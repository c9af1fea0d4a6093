"""Images that live on the device whole. A large set is decoded once; later processes map the decoded array from the cache."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.data.cache import cached_folder, combined_key
from pdarts_tune.data.decoding import POOL_ABOVE, decode_all, one_line
from pdarts_tune.data.files import FolderImages, ParquetImages, digest

MEMORY_LIMIT = 4 * 2**30  # decoded bytes of one part; larger parts must stream
FORMAT = "1"  # part of the cache's keys: another format leaves the old files unused

Share = Callable[[int], slice]  # the images of a batch of N that this process takes; `slice` itself is all of them


@dataclass(frozen=True)
class ImageSet:
    """Square images with labels, in memory or on a device."""

    images: Tensor  # uint8 (N, C, H, W)
    labels: Tensor  # int64 (N,)
    skip_bad: ClassVar[bool] = False  # `fetch` never gives fewer images than the batch has

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    @property
    def side(self) -> int:
        """Height and width, in pixels."""
        return self.images.shape[-1]

    @property
    def pad(self) -> int:
        """How far augmentation shifts an image, in pixels: 4 at 32 pixels, as is usual on CIFAR, and in proportion elsewhere."""
        return self.side // 8

    def select(self, indices: Tensor) -> ImageSet:
        """The images at `indices`, int64 (M,), in that order."""
        return ImageSet(self.images[indices], self.labels[indices])

    def joined(self, other: ImageSet) -> ImageSet:
        """These images, then the other's."""
        return ImageSet(torch.cat((self.images, other.images)), torch.cat((self.labels, other.labels)))

    def to(self, device: torch.device) -> ImageSet:
        return ImageSet(self.images.to(device), self.labels.to(device))

    def fetch(
        self,
        batches: Sequence[Tensor],
        generator: torch.Generator | None = None,  # noqa: ARG002  (images are augmented later, on the device)
        share: Share = slice,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields images, uint8 (B, C, H, W), and labels for this process's share of each batch of indices."""
        for batch in batches:
            indices = batch[share(len(batch))]
            yield self.images[indices], self.labels[indices]


def check_memory(count: int, channels: int, side: int) -> None:
    """Raises ConfigError if `count` images are too large to live on a device."""
    size = count * channels * side * side
    if size > MEMORY_LIMIT:
        raise ConfigError(
            f"data: {count} images of {side} pixels decode to {size / 2**30:.1f} GiB, more than the {MEMORY_LIMIT / 2**30:.0f} "
            f"GiB that are kept on a device; give an image_size, so that they stream, or take fewer images"
        )


def decode_part(
    images: FolderImages | ParquetImages, rows: NDArray[np.int64], channels: int, side: int, *, skip_bad: bool
) -> tuple[ImageSet, list[str]]:
    """The images of ascending `rows`, and a line for each bad image, which is left out.

    Raises:
        ConfigError: the part is too large to live on a device; an image is bad and `skip_bad` is off (the first is named); the
            cache cannot be written or is damaged.
    """
    check_memory(len(rows), channels, side)
    shape = (len(rows), channels, side, side)
    if np.prod(shape) <= POOL_ABOVE:
        pixels = np.zeros(shape, np.uint8)
        errors = decode_all(images.encoded(rows), pixels)
    else:
        pixels, errors = _decode_cached(images, rows, shape)
    lines = [f"{images.where(int(rows[index]))}: {error}" for index, error in sorted(errors.items())]
    if lines and not skip_bad:
        raise ConfigError(lines[0] + (f"; so are {len(lines) - 1} others" if len(lines) > 1 else ""))
    labels = images.labels[rows]
    if lines:
        good = np.setdiff1d(np.arange(len(rows)), list(errors))
        pixels, labels = pixels[good], labels[good]
    return ImageSet(torch.from_numpy(pixels), torch.from_numpy(labels)), lines


def _decode_cached(
    images: FolderImages | ParquetImages, rows: NDArray[np.int64], shape: tuple[int, ...]
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    def build(folder: Path) -> None:
        array = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
        errors = decode_all(images.encoded(rows), array)
        array.flush()
        (folder / "wrong.json").write_text(json.dumps(errors))

    key = combined_key(FORMAT, images.content_key(), str(shape), ",".join(map(str, rows.tolist())))
    folder = cached_folder(f"images-{key}", build)
    try:
        errors = {int(index): error for index, error in json.loads((folder / "wrong.json").read_text()).items()}
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from None
    return _map_images(folder), errors


def average_squares(part: ImageSet, side: int) -> ImageSet:
    """The images with every square of `side` x `side` pixels as one pixel: the rounded mean. They come from the cache.

    Raises:
        ConfigError: the cache cannot be written or is damaged.
    """
    if side == 1:
        return part

    def build(folder: Path) -> None:
        means = [functional.avg_pool2d(images.float(), side).round().to(torch.uint8) for images in part.images.split(4096)]
        np.save(folder / "images.npy", torch.cat(means).numpy())

    key = combined_key(FORMAT, digest(part.images.numpy().tobytes()).hex(), str(tuple(part.images.shape)), str(side))
    return ImageSet(torch.from_numpy(_map_images(cached_folder(f"averaged-{key}", build))), part.labels)


def _map_images(folder: Path) -> NDArray[np.uint8]:
    """The cached images. Processes share their pages; a process that writes gets its own copy."""
    try:
        pixels: NDArray[np.uint8] = np.load(folder / "images.npy", mmap_mode="c")
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from None
    return pixels


def _damaged(folder: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{folder}: damaged ({one_line(error)}), delete it and the images are decoded anew")


def count_equal(train: ImageSet, test: ImageSet) -> int:
    """How many test images have the pixels of a training image."""
    train_digests, test_digests = ([digest(image.tobytes()) for image in part.images.numpy()] for part in (train, test))
    return sum(map(set(train_digests).__contains__, test_digests))
