"""Images in files, encoded: one file an image, or Parquet files. They are read on demand."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.data.cache import cached_folder, combined_key, file_digest
from pdarts_tune.data.decoding import GRAYSCALE_MODES, ImageError, decode, one_line, open_image, progress_line, read_range

UNPACKED_FORMAT = "1"  # part of the cache's keys: another format leaves the old files unused
SHARED_LIMIT = 200_000  # images: larger sets are not searched for files in both parts, since they would all have to be opened
SIZE_SAMPLE = 100  # images, evenly spread, whose most frequent size is that of a set
PARQUET_ERRORS = (pa.ArrowException, OSError, ValueError)  # what pyarrow raises for damaged files
_BATCH_BYTES = 64 * 2**20  # of encoded images that are in memory at a time
_TAIL = 1024  # bytes at an image's end, which two different images almost never share

Location = tuple[str, int, int]  # file, offset and length of an image's bytes; length -1: to the end


@dataclass(frozen=True)
class FolderImages:
    """One part of a set: `files` below `path`, sorted by class and name."""

    labels: NDArray[Any]  # int64 (N,)
    path: Path
    files: tuple[str, ...]

    @property
    def place(self) -> str:
        """Names the part in messages."""
        return str(self.path)

    def where(self, row: int) -> str:
        """Names one image in messages."""
        return f"{self.path}/{self.files[row]}"

    def location(self, row: int) -> Location:
        return self.where(row), 0, -1

    def encoded(self, rows: NDArray[np.int64]) -> Iterator[bytes | str]:
        """Yields the encoded images of `rows`, or why one cannot be read."""
        for row in rows.tolist():
            try:
                yield read_range(self.where(row), 0, -1)
            except ImageError as error:
                yield str(error)

    def content_key(self) -> str:
        """Hex digits of the content of all files."""
        key = hashlib.sha256()
        for label, image in zip(self.labels, self.encoded(np.arange(len(self.files))), strict=True):
            key.update(f"{label}/{len(image)}/".encode())
            key.update(image if isinstance(image, bytes) else image.encode())
        return key.hexdigest()


@dataclass(frozen=True)
class ParquetImages:
    """One part of a set: the images of `column` in all files, in the order of their names."""

    labels: NDArray[Any]  # int64 (N,)
    paths: tuple[Path, ...]
    starts: tuple[int, ...]  # the first row of each file
    column: str

    @property
    def place(self) -> str:
        """Names the part in messages."""
        return str(self.paths[0])

    def where(self, row: int) -> str:
        """Names one image in messages."""
        file = int(np.searchsorted(self.starts, row, side="right")) - 1
        return f"{self.paths[file]}, row {row - self.starts[file]}"

    def encoded(self, rows: NDArray[np.int64]) -> Iterator[bytes | None]:
        """Yields the encoded images of ascending `rows`. Reads only row groups that hold some of them, piece by piece.

        Raises:
            ConfigError: a file is damaged.
        """
        for path, first in zip(self.paths, self.starts, strict=True):
            # Without buffers of its own pyarrow reads a row group whole; groups of 2 GiB cannot even be converted so.
            with pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:
                for group in range(file.num_row_groups):
                    metadata = file.metadata.row_group(group)
                    end = first + metadata.num_rows
                    if len(rows[(rows >= first) & (rows < end)]):
                        count = max(1, _BATCH_BYTES * metadata.num_rows // max(1, metadata.total_byte_size))
                        try:
                            for batch in file.iter_batches(count, row_groups=[group], columns=[self.column]):
                                for row in rows[(rows >= first) & (rows < first + len(batch))].tolist():
                                    value = batch.column(0)[row - first].as_py()
                                    yield value["bytes"] if isinstance(value, dict) else value
                                first += len(batch)
                        except PARQUET_ERRORS as error:
                            raise ConfigError(f"{self.where(first)} or one after it: damaged ({one_line(error)})") from None
                    first = end

    def content_key(self) -> str:
        """Hex digits of the content of all files."""
        return combined_key(*map(file_digest, self.paths))


def image_layout(images: FolderImages | ParquetImages, image_size: int | None, skip_bad: bool) -> tuple[int, int]:
    """The channels (1 or 3) and the side, in pixels, of a set's images. Decodes the first image (or good image).

    A set is grayscale only if all its images are: colour sets often hold grayscale images (ImageNet does). Headers are read up to
    the first colour image. With an `image_size` images will be cropped to it, and may have any shape; without one, the size that
    most images of a sample have is the set's.

    Raises:
        ConfigError: an image cannot be read, or, without `image_size`, the first image has another size or is not square; with
            `skip_bad`, all are so.
    """
    if image_size is None:
        sizes: Counter[tuple[int, int]] = Counter()
        for encoded in images.encoded(np.unique(np.linspace(0, len(images.labels) - 1, SIZE_SAMPLE).astype(np.int64))):
            with suppress(ImageError):
                sizes[open_image(encoded).size] += 1
    side = image_size or next((size[0] for size, _ in sizes.most_common(1)), 0)
    decoded = False
    for row, encoded in enumerate(images.encoded(np.arange(len(images.labels)))):
        try:
            header = open_image(encoded)
            if not decoded:
                decode(encoded, 3, None if image_size else side)
        except ImageError as error:
            if skip_bad:
                continue
            raise ConfigError(f"{images.where(row)}: {error}") from None
        decoded = True
        if header.mode not in GRAYSCALE_MODES:
            return 3, side
    if not decoded:
        raise ConfigError(f"{images.where(0)}: like all other images of the set it cannot be used")
    return 1, side


@dataclass(frozen=True)
class UnpackedImages(ParquetImages):
    """The same, end to end in one file: row i has the bytes from offsets[i] to offsets[i + 1]."""

    file: Path
    offsets: NDArray[np.int64]

    def location(self, row: int) -> Location:
        return str(self.file), int(self.offsets[row]), int(self.offsets[row + 1] - self.offsets[row])


def unpack(source: ParquetImages) -> UnpackedImages:
    """Copies images once into a file of the cache, since Parquet can only be read in large compressed pieces.

    Raises:
        ConfigError: the source is damaged; the cache cannot be written or is damaged.
    """

    def build(folder: Path) -> None:
        offsets = [0]
        with (folder / "encoded.bin").open("wb") as file, progress_line(len(source.labels), "unpacking images") as progress:
            for image in source.encoded(np.arange(len(source.labels))):
                file.write(image or b"")  # the reader names an image without bytes
                offsets.append(file.tell())
                progress.update()
        np.save(folder / "offsets.npy", np.array(offsets, np.int64))

    folder = cached_folder(f"encoded-{combined_key(UNPACKED_FORMAT, source.content_key())}", build)
    file = folder / "encoded.bin"
    try:
        offsets = np.load(folder / "offsets.npy")
        complete = file.stat().st_size == offsets[-1] and len(offsets) == len(source.labels) + 1
    except (OSError, ValueError):
        complete = False
    if not complete:
        raise ConfigError(f"{folder}: damaged, delete it and the images are unpacked anew")
    return UnpackedImages(source.labels, source.paths, source.starts, source.column, file, offsets)


def count_shared(train: FolderImages | UnpackedImages, test: FolderImages | UnpackedImages) -> int:
    """How many test images equal a training image byte for byte; 0 for sets of more than SHARED_LIMIT images.

    Opens only images of equal length, and reads only those with equal ends whole. Empty images equal no other.
    """
    if len(train.labels) + len(test.labels) > SHARED_LIMIT:
        return 0
    parts = [[_with_length(images.location(row)) for row in range(len(images.labels))] for images in (train, test)]
    parts = [[location for location in part if location[2]] for part in parts]
    keys: list[list[object]]
    for key in (lambda _, __, length: length, _ending, _content):
        keys = [[key(*location) for location in part] for part in parts]
        shared = set.intersection(*map(set, keys))
        parts = [[location for location, own in zip(*pair, strict=True) if own in shared] for pair in zip(parts, keys, strict=True)]
    return len(parts[1])


def _with_length(location: Location) -> Location:
    path, offset, length = location
    with suppress(OSError):  # a broken link
        length = Path(path).stat().st_size - offset if length < 0 else length
    return path, offset, max(0, length)


def _ending(path: str, offset: int, length: int) -> bytes:
    tail = min(_TAIL, length)
    return length.to_bytes(8) + _content(path, offset + length - tail, tail)


def _content(path: str, offset: int, length: int) -> bytes:
    try:
        return digest(read_range(path, offset, length))
    except ImageError:
        return path.encode()  # an image that cannot be read equals no other


def digest(data: bytes) -> bytes:
    """Sixteen bytes that stand for some content."""
    return blake2b(data, digest_size=16).digest()
