"""Finds image sets in Parquet files as the Hugging Face hub has them: an `image` column of encoded bytes, a `label` column.

A part of a set is one file (`train.parquet`) or several (`train-00000-of-00004.parquet`, ...). Labels are read and checked whole,
images only where they are used: an image set costs what is taken from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pdarts_tune.cache import combined_key, file_digest
from pdarts_tune.config import ConfigError
from pdarts_tune.decoding import one_line


@dataclass(frozen=True)
class ParquetImages:
    """The encoded images of one part of a set.

    `labels` is int64 (N,), over all files in the order of their names. `class_names` and `mirror` (whether an image seen in a
    mirror keeps its class) are what the first file's metadata says, None where it says nothing.
    """

    paths: tuple[Path, ...]
    starts: tuple[int, ...]  # of each file, the first of its rows in the part
    labels: NDArray[np.int64]
    class_names: tuple[str, ...] | None
    mirror: bool | None

    @property
    def place(self) -> str:
        """Names the part in messages."""
        return str(self.paths[0])

    def where(self, row: int) -> str:
        """Names one image in messages."""
        file = int(np.searchsorted(self.starts, row, side="right")) - 1
        return f"{self.paths[file]}, row {row - self.starts[file]}"

    def encoded(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, bytes | None]]:
        """Yields (row, encoded image) for ascending rows; only row groups that hold some are read, one in memory at a time.

        Raises:
            ConfigError: a row group is damaged.
        """
        for path, first in zip(self.paths, self.starts, strict=True):
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    count = file.metadata.row_group(group).num_rows
                    wanted = rows[(rows >= first) & (rows < first + count)]
                    if len(wanted):
                        column = _read_images(file, group, f"{self.where(first)} and the {count - 1} after it")
                        for row in wanted.tolist():
                            value = column[row - first].as_py()
                            yield row, value["bytes"] if isinstance(value, dict) else value
                    first += count

    def content_key(self) -> str:
        """Hex digits that name the part by what its files hold."""
        return combined_key(*map(file_digest, self.paths))


def find_files(folder: Path) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """The files of the training part (train.parquet or train-*.parquet) and of the test part (test..., or else val...).

    Raises:
        ConfigError: the folder, or one of the parts, is not there, or is there both as one file and as several.
    """
    if not folder.is_dir():
        raise ConfigError(f"data: {folder} is not a folder; parquet:PATH needs one that holds train.parquet and test.parquet")
    return _find_part(folder, ("train",)), _find_part(folder, ("test", "val"))


def open_images(paths: tuple[Path, ...]) -> ParquetImages:
    """Reads the labels and the metadata of a part's files, no image.

    Raises:
        ConfigError: not a Parquet file, no rows, a column missing or of another type, a label missing, negative or not an integer,
            metadata that cannot be read.
    """
    labels, metadata = zip(*map(_read_labels, paths), strict=True)
    starts = np.cumsum([0, *map(len, labels[:-1])])
    return ParquetImages(
        paths, tuple(starts.tolist()), np.concatenate(labels), _class_names(paths[0], metadata[0]), _mirror(paths[0], metadata[0])
    )


def _find_part(folder: Path, names: tuple[str, ...]) -> tuple[Path, ...]:
    for name in names:
        single, several = folder / f"{name}.parquet", tuple(sorted(folder.glob(f"{name}-*.parquet")))
        if single.is_file() and several:
            raise ConfigError(f"data: {folder} holds both {single.name} and {several[0].name}, keep those of one form")
        if single.is_file():
            return (single,)
        if several:
            return several
    there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise ConfigError(f"data: {folder} has no {' or '.join(f'{name}.parquet' for name in names)}; it holds {there}")


def _read_labels(path: Path) -> tuple[NDArray[np.int64], dict[bytes, bytes]]:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"{path}: cannot be read as Parquet ({one_line(error)})") from None
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
    return numbers, schema.metadata or {}


def _read_images(file: pq.ParquetFile, group: int, where: str) -> Any:
    try:
        return file.read_row_group(group, columns=["image"]).column("image")
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"{where}: damaged ({one_line(error)})") from None


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
        raise ConfigError(f"{path}: the class names in its metadata cannot be read ({one_line(error)})") from None
    if names is None:
        return None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path}: the class names in its metadata must be a list of texts, are {str(names)[:60]}")
    return tuple(names)


def _mirror(path: Path, metadata: dict[bytes, bytes]) -> bool | None:
    value = metadata.get(b"mirror")
    if value not in (None, b"true", b"false"):
        raise ConfigError(f"{path}: mirror in its metadata is {value.decode(errors='replace')[:60]!r}, must be true or false")
    return None if value is None else value == b"true"


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
