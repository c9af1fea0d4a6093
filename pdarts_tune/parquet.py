"""Reads image sets from Parquet files as the Hugging Face hub has them: an `image` column of encoded bytes, a `label` column.

Labels are read and checked whole, images only where they are used: an image set costs what is taken from it.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from pdarts_tune.config import ConfigError

GRAYSCALE_MODES = ("1", "L", "LA")
WIDE_MODES = ("I", "F")  # more than 8 bits a channel, and I;16 and its like
_CHUNK = 64  # images a thread decodes at a time; one by one, small images cost more in handing over than in decoding


@dataclass(frozen=True)
class ParquetImages:
    """One file of encoded images. `labels` is int64 (N,); `class_names` are those that the file's metadata names, if any."""

    path: Path
    labels: NDArray[np.int64]
    class_names: tuple[str, ...] | None


def find_files(folder: Path) -> tuple[Path, Path]:
    """The training and the test file of a folder: train.parquet, and test.parquet or else val.parquet.

    Raises:
        ConfigError: the folder, or one of the files, is not there.
    """
    if not folder.is_dir():
        raise ConfigError(f"data: {folder} is not a folder; parquet:PATH needs one that holds train.parquet and test.parquet")
    for names in (("train.parquet",), ("test.parquet", "val.parquet")):
        if not any((folder / name).is_file() for name in names):
            there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
            raise ConfigError(f"data: {folder} has no {' or '.join(names)}; it holds {there}")
    test = folder / "test.parquet"
    return folder / "train.parquet", test if test.is_file() else folder / "val.parquet"


def open_images(path: Path) -> ParquetImages:
    """Reads the labels and the metadata of a file, no image.

    Raises:
        ConfigError: not a Parquet file, no rows, a column missing or of another type, a label missing, negative or not an integer.
    """
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as Parquet ({_line(error)})") from None
    with file:
        schema = file.schema_arrow
        for column in ("image", "label"):
            if column not in schema.names:
                raise ConfigError(f"{path}: no column {column!r}, it has {', '.join(schema.names)}")
        kind = schema.field("image").type
        if not (_is_binary(kind) or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)):
            raise ConfigError(f"{path}: column 'image' is {kind}, needs encoded images: bytes, or a struct with a field 'bytes'")
        labels = file.read(columns=["label"]).column("label")
    if len(labels) == 0:
        raise ConfigError(f"{path}: has no rows")
    if not pa.types.is_integer(labels.type):
        raise ConfigError(f"{path}, row 0: label {labels[0].as_py()!r} is not an integer (column 'label' is {labels.type})")
    if labels.null_count:
        raise ConfigError(f"{path}, row {labels.is_null().index(True).as_py()}: the label is missing")
    numbers = labels.to_numpy().astype(np.int64)
    if (numbers < 0).any():
        row = int(np.argmax(numbers < 0))
        raise ConfigError(f"{path}, row {row}: label {numbers[row]} is negative, labels count from 0")
    return ParquetImages(path, numbers, _class_names(path, schema.metadata or {}))


def image_layout(images: ParquetImages) -> tuple[int, int]:
    """The channels (1 or 3) and the side, in pixels, that the set's images have; decodes the first image.

    A set is grayscale only if all its images are: grayscale images among colour images are common (ImageNet has them).
    Headers are read up to the first colour image.

    Raises:
        ConfigError: an image that cannot be read, or a first image that is not square.
    """
    with pq.ParquetFile(images.path) as file:
        for row, encoded in _encoded(file, images.path, np.arange(len(images.labels))):
            header = _open(encoded, images.path, row)
            if row == 0:
                side = _check_size(header, header.size[0], images.path, row)
                _decode(encoded, 3, side, images.path, row)
            if header.mode not in GRAYSCALE_MODES:
                return 3, side
    return 1, side


def decode_rows(images: ParquetImages, rows: NDArray[np.int64], channels: int, side: int) -> NDArray[np.uint8]:
    """The images of ascending `rows`, uint8 (len(rows), channels, side, side); only row groups that hold some are read.

    Raises:
        ConfigError: an image that cannot be read, or is not `side` pixels wide and high; the message names its row.
    """
    decoded = np.empty((len(rows), channels, side, side), dtype=np.uint8)

    def decode(chunk: Sequence[tuple[int, bytes | None]], start: int) -> None:
        for offset, (row, encoded) in enumerate(chunk):
            decoded[start + offset] = _decode(encoded, channels, side, images.path, row)

    with pq.ParquetFile(images.path) as file, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        futures = []
        chunk: list[tuple[int, bytes | None]] = []
        start = 0
        for item in _encoded(file, images.path, rows):
            chunk.append(item)
            if len(chunk) == _CHUNK or start + len(chunk) == len(rows):
                futures.append(pool.submit(decode, chunk, start))
                start += len(chunk)
                chunk = []
                if len(futures) > 64:  # do not hold all encoded images of a large file at once
                    futures.pop(0).result()
        for future in futures:
            future.result()
    return decoded


def _encoded(file: pq.ParquetFile, path: Path, rows: NDArray[np.int64]) -> Iterator[tuple[int, bytes | None]]:
    """Yields (row, encoded image) for ascending rows, one row group in memory at a time."""
    first = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        wanted = rows[(rows >= first) & (rows < first + count)]
        if len(wanted):
            try:
                column = file.read_row_group(group, columns=["image"]).column("image")
            except (pa.ArrowInvalid, OSError) as error:
                raise ConfigError(f"{path}, rows {first} to {first + count - 1}: damaged ({_line(error)})") from None
            for row in wanted.tolist():
                value = column[row - first].as_py()
                yield row, value["bytes"] if isinstance(value, dict) else value
        first += count


def _open(encoded: bytes | None, path: Path, row: int) -> Image.Image:
    if encoded is None:
        raise ConfigError(f"{path}, row {row}: the image is missing, its bytes must be in the file")
    try:
        return Image.open(io.BytesIO(encoded))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise ConfigError(f"{path}, row {row}: not an image that can be read ({len(encoded)} bytes)") from None


def _check_size(image: Image.Image, side: int, path: Path, row: int) -> int:
    width, height = image.size
    if (width, height) != (side, side):
        raise ConfigError(
            f"{path}, row {row}: the image is {width}x{height} pixels, all must be square and of one size ({side}x{side})"
        )
    if image.mode.startswith(WIDE_MODES):
        raise ConfigError(f"{path}, row {row}: the image has more than 8 bits a channel (mode {image.mode}), needs 8")
    return side


def _decode(encoded: bytes | None, channels: int, side: int, path: Path, row: int) -> NDArray[np.uint8]:
    image = _open(encoded, path, row)
    _check_size(image, side, path, row)
    try:
        pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError(f"{path}, row {row}: the image is damaged ({_line(error)})") from None
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _class_names(path: Path, metadata: dict[bytes, bytes]) -> tuple[str, ...] | None:
    try:
        if b"class_names" in metadata:
            names = json.loads(metadata[b"class_names"])
        elif b"huggingface" in metadata:
            features = json.loads(metadata[b"huggingface"])["info"]["features"]
            names = features.get("label", {}).get("names")
        else:
            return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: the class names in its metadata cannot be read ({_line(error)})") from None
    if names is None:
        return None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path}: the class names in its metadata must be a list of texts, are {str(names)[:60]}")
    return tuple(names)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
