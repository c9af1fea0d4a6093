"""Encoded images as ranges of files, so that any process can read any of them in any order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pdarts_tune.cache import cached_folder, combined_key
from pdarts_tune.config import ConfigError
from pdarts_tune.decoding import EncodedImages, digest, progress_line

FORMAT = "1"  # of the unpacked files; a change of it leaves the old ones unused
SHARED_LIMIT = 200_000  # images: larger sets are not searched for files in both parts, opening so many takes too long
_TAIL = 1024  # bytes at an image's end, which hardly ever agree between two that are not the same


class ImageRanges(Protocol):
    """Encoded images, each a range of a file."""

    @property
    def labels(self) -> NDArray[np.int64]: ...

    def where(self, row: int) -> str:
        """Names one image in messages."""

    def location(self, row: int) -> tuple[str, int, int]:
        """File, offset and length of an image's bytes; length -1: to the end."""


@dataclass(frozen=True)
class UnpackedImages:
    """Encoded images end to end in one file: row i of `source` has the bytes from offsets[i] to offsets[i + 1]."""

    source: EncodedImages
    file: Path
    offsets: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.source.labels

    def where(self, row: int) -> str:
        return self.source.where(row)

    def location(self, row: int) -> tuple[str, int, int]:
        return str(self.file), int(self.offsets[row]), int(self.offsets[row + 1] - self.offsets[row])


def unpack(source: EncodedImages) -> UnpackedImages:
    """Images whose file can only be read in large compressed pieces (Parquet), copied once into a file of the cache.

    Raises:
        ConfigError: the source is damaged, the cache cannot be written or is damaged.
    """

    def build(folder: Path) -> None:
        offsets = [0]
        with (folder / "encoded.bin").open("wb") as file, progress_line(len(source.labels), "unpacking images") as progress:
            for _, image in source.encoded(np.arange(len(source.labels))):
                file.write(image or b"")  # an image without bytes is found out, and named, where it is used
                offsets.append(file.tell())
                progress.update()
        np.save(folder / "offsets.npy", np.array(offsets, np.int64))

    folder = cached_folder(f"encoded-{combined_key(FORMAT, source.content_key())}", build)
    file = folder / "encoded.bin"
    try:
        offsets = np.load(folder / "offsets.npy")
        whole = file.stat().st_size == offsets[-1] and len(offsets) == len(source.labels) + 1
    except (OSError, ValueError):
        whole = False
    if not whole:
        raise ConfigError(f"{folder}: damaged, delete it and the images are unpacked anew")
    return UnpackedImages(source, file, offsets)


def read_range(path: str, offset: int, length: int) -> bytes:
    """`length` bytes of a file from `offset`; with length -1 all of the rest. Raises ConfigError if they cannot be read."""
    try:
        with Path(path).open("rb") as file:
            file.seek(offset)
            return file.read(length)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def count_shared(train: ImageRanges, test: ImageRanges) -> int:
    """How many test images are byte for byte among the training images; 0 for sets of more than SHARED_LIMIT images.

    Only images of equal length are opened, and only those with equal ends are read whole.
    """
    if len(train.labels) + len(test.labels) > SHARED_LIMIT:
        return 0
    parts = [list(_ranges(part)) for part in (train, test)]
    for name in (_length, _ending, _content):
        names = [[name(*location) for location in part] for part in parts]
        both = set.intersection(*map(set, names))
        parts = [[location for location, own in zip(*pair, strict=True) if own in both] for pair in zip(parts, names, strict=True)]
    return len(parts[1])


def _length(path: str, offset: int, length: int) -> bytes:  # noqa: ARG001  (one of three ways to name an image)
    return length.to_bytes(8)


def _ending(path: str, offset: int, length: int) -> bytes:
    tail = min(_TAIL, length)
    return length.to_bytes(8) + read_range(path, offset + length - tail, tail)


def _content(path: str, offset: int, length: int) -> bytes:
    return digest(read_range(path, offset, length))


def _ranges(images: ImageRanges) -> Iterator[tuple[str, int, int]]:
    for row in range(len(images.labels)):
        path, offset, length = images.location(row)
        yield path, offset, Path(path).stat().st_size - offset if length < 0 else length
