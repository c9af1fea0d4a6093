"""Images that live on the device whole: decoded once, kept as an array file that later processes map into memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.data.cache import cached_folder, combined_key
from pdarts_tune.data.files import POOL_ABOVE, EncodedImages, decode_rows, digest, one_line

RESIDENT_LIMIT = 4 * 2**30  # decoded bytes of one part; a set that is larger must stream
FORMAT = "1"  # of the array files; a change of it leaves the old ones unused

Moments = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation per channel, of images scaled to [0, 1]


@dataclass(frozen=True)
class ImageSet:
    """Images and what they show, in memory or on a device."""

    images: Tensor  # uint8 (N, C, H, W), H = W
    labels: Tensor  # int64 (N,)

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
        """How far augmentation shifts an image, in pixels: 4 at 32 pixels, as is usual on CIFAR, in proportion elsewhere."""
        return self.side // 8

    @property
    def skip_bad(self) -> bool:
        """Never: images that cannot be used were left out when the set was decoded."""
        return False

    def select(self, indices: Tensor) -> ImageSet:
        """The images at `indices`, int64 (M,), in that order."""
        return ImageSet(self.images[indices], self.labels[indices])

    def joined(self, other: ImageSet) -> ImageSet:
        """These images, then the other's."""
        return ImageSet(torch.cat((self.images, other.images)), torch.cat((self.labels, other.labels)))

    def to(self, device: torch.device) -> ImageSet:
        """The same images on a device."""
        return ImageSet(self.images.to(device), self.labels.to(device))

    def fetch(
        self,
        batches: Sequence[Tensor],
        generator: torch.Generator | None,  # noqa: ARG002
        share: Callable[[int], slice],
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields images, uint8 (B, C, H, W), and labels for the share of each batch. No randomness: they are shifted later."""
        for batch in batches:
            indices = batch[share(len(batch))]
            yield self.images[indices], self.labels[indices]


def check_resident(count: int, channels: int, side: int) -> None:
    """Refuses a part of `count` images that is too large to live on a device. Raises ConfigError."""
    size = count * channels * side * side
    if size > RESIDENT_LIMIT:
        raise ConfigError(
            f"data: {count} images of {side} pixels decode to {size / 2**30:.1f} GiB, more than the {RESIDENT_LIMIT / 2**30:.0f} "
            f"GiB that are kept on a device; give an image_size, so that they stream, or take fewer images"
        )


def decode_part(
    images: EncodedImages, rows: NDArray[np.int64], channels: int, side: int, *, skip_bad: bool
) -> tuple[ImageSet, list[str]]:
    """The images of ascending `rows`, and a line for each that cannot be used and was left out.

    Large parts are decoded at the first call and mapped into memory from the cache after that.

    Raises:
        ConfigError: the part is too large to live on a device; an image cannot be used and `skip_bad` is off (the first is named);
            the cache cannot be written or is damaged.
    """
    check_resident(len(rows), channels, side)
    if len(rows) * channels * side * side <= POOL_ABOVE:
        pixels, wrong = decode_rows(images, rows, channels, side)
    else:
        pixels, wrong = _decode_cached(images, rows, channels, side)
    lines = [f"{images.where(int(rows[place]))}: {error}" for place, error in sorted(wrong.items())]
    if lines and not skip_bad:
        raise ConfigError(lines[0] + (f"; so are {len(lines) - 1} others" if len(lines) > 1 else ""))
    labels = images.labels[rows]
    if lines:
        good = np.setdiff1d(np.arange(len(rows)), list(wrong))
        pixels, labels = pixels[good], labels[good]
    return ImageSet(torch.from_numpy(pixels), torch.from_numpy(labels)), lines


def pixel_moments(images: Tensor) -> Moments:
    """Mean and standard deviation per channel of uint8 images (N, C, H, W) scaled to [0, 1].

    From counts of the 256 values: exact for any number of images.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        counts = torch.zeros(256, dtype=torch.float64)
        for part in images.split(1000):  # bounded memory: a count needs the values of one channel side by side
            counts += torch.bincount(part[:, channel].flatten(), minlength=256)
        shares = counts / counts.sum()
        mean = (shares * values).sum()
        means.append(mean.item())
        stds.append((shares * (values - mean) ** 2).sum().sqrt().item())
    return tuple(means), tuple(stds)


def count_equal(train: ImageSet, test: ImageSet) -> int:
    """How many test images have the pixels of a training image."""
    known, asked = ([digest(image.tobytes()) for image in part.images.numpy()] for part in (train, test))
    return sum(map(set(known).__contains__, asked))


def _decode_cached(
    images: EncodedImages, rows: NDArray[np.int64], channels: int, side: int
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    shape = (len(rows), channels, side, side)

    def build(folder: Path) -> None:
        array = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
        _, wrong = decode_rows(images, rows, channels, side, into=array)
        array.flush()
        (folder / "wrong.json").write_text(json.dumps(wrong))

    key = combined_key(FORMAT, images.content_key(), str(shape), ",".join(map(str, rows.tolist())))
    folder = cached_folder(f"images-{key}", build)
    try:
        # Copy on write: pages are shared between processes, and torch gets memory that it may write.
        pixels = np.load(folder / "images.npy", mmap_mode="c")
        wrong = {int(place): error for place, error in json.loads((folder / "wrong.json").read_text()).items()}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: damaged ({one_line(error)}), delete it and the images are decoded anew") from None
    return pixels, wrong
