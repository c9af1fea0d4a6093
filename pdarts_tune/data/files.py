"""Image sets in files: class folders, and Parquet files as on the Hugging Face hub. Labels are read whole, images on demand.

Folders have torchvision's `ImageFolder` layout: PATH/train/CLASS/..., and PATH/val/CLASS/... or PATH/test/CLASS/... A file
PATH/dataset.json may hold `{"mirror": false}`: a mirrored image would show another class (digits, letters).

Parquet files have a column `image` of encoded bytes and a column `label`. A part of a set is one file (`train.parquet`) or several
(`train-00000-of-00004.parquet`, ...). The metadata of the first may hold class names and `mirror`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
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

METADATA = "dataset.json"
UNPACKED_FORMAT = "1"  # part of the cache's keys: another format leaves the old files unused
SHARED_LIMIT = 200_000  # images: larger sets are not searched for files in both parts, since they would all have to be opened
_TAIL = 1024  # bytes at an image's end, which two different images almost never share

Location = tuple[str, int, int]  # file, offset and length of an image's bytes; length -1: to the end


@dataclass(frozen=True)
class FolderImages:
    """One part of a set: `files` below `path`, sorted by class and name; `labels` is int64 (N,)."""

    path: Path
    files: tuple[str, ...]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    mirror: bool | None

    @property
    def place(self) -> str:
        """Names the part in messages."""
        return str(self.path)

    def where(self, row: int) -> str:
        """Names one image in messages."""
        return str(self.path / self.files[row])

    def location(self, row: int) -> Location:
        return self.where(row), 0, -1

    def encoded(self, rows: NDArray[np.int64]) -> Iterator[bytes]:
        """Yields the encoded images of `rows`. Raises ConfigError for a file that is gone or may not be read."""
        for row in rows.tolist():
            yield read_range(self.where(row), 0, -1)

    def content_key(self) -> str:
        """Hex digits of the content of all files."""
        key = hashlib.sha256()
        for label, image in zip(self.labels, self.encoded(np.arange(len(self.files))), strict=True):
            key.update(f"{label}/{len(image)}/".encode())
            key.update(image)
        return key.hexdigest()


def open_folders(folder: Path, name: str) -> tuple[FolderImages, FolderImages]:
    """The training part (train/) and the test part (test/, or else val/) of the data set `name`. Lists files, reads no image.

    Raises:
        ConfigError: a folder is missing or has no class folders; the parts have different classes; the metadata is wrong.
    """
    if not folder.is_dir():
        raise ConfigError(f"data: {folder} is not a folder; {name} needs one that holds train/ and val/, with a folder a class")
    for parts in (("train",), ("val", "test")):
        if not any((folder / part).is_dir() for part in parts):
            raise ConfigError(f"data: {folder} has no folder {' or '.join(parts)}; it holds {_listing(folder)}")
    mirror = _folder_mirror(folder / METADATA)
    train = _list_images(folder / "train", mirror)
    test = _list_images(folder / ("test" if (folder / "test").is_dir() else "val"), mirror)
    for label in sorted(set(train.class_names) ^ set(test.class_names)):
        one, other = (train, test) if label in train.class_names else (test, train)
        raise ConfigError(f"{other.path}: has no folder for class {label}, which {one.path} has")
    return train, test


def _listing(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"


def _list_images(path: Path, mirror: bool | None) -> FolderImages:
    from torchvision.datasets import ImageFolder  # takes a second to import

    try:
        folder = ImageFolder(str(path), allow_empty=True)
    except OSError as error:
        raise ConfigError(f"{path}: {one_line(error)}; it must hold one folder for each class") from None
    files = tuple(str(Path(file).relative_to(path)) for file, _ in folder.samples)
    return FolderImages(path, files, np.array(folder.targets, dtype=np.int64), tuple(folder.classes), mirror)


def _folder_mirror(path: Path) -> bool | None:
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({one_line(error)})") from None
    if not isinstance(values, dict) or set(values) - {"mirror"} or not isinstance(values.get("mirror", True), bool):
        raise ConfigError(f'{path}: must be {{"mirror": true}} or {{"mirror": false}}, is {json.dumps(values)[:60]}')
    mirror: bool | None = values.get("mirror")
    return mirror


@dataclass(frozen=True)
class ParquetImages:
    """One part of a set.

    `labels` is int64 (N,), over all files in the order of their names. `class_names` and `mirror` (whether a mirrored image keeps
    its class) are from the first file's metadata, None if they are not there.
    """

    paths: tuple[Path, ...]
    starts: tuple[int, ...]  # the first row of each file
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

    def encoded(self, rows: NDArray[np.int64]) -> Iterator[bytes | None]:
        """Yields the encoded images of ascending `rows`. Reads only row groups that hold some of them, one at a time.

        Raises:
            ConfigError: a row group is damaged.
        """
        for path, first in zip(self.paths, self.starts, strict=True):
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    count = file.metadata.row_group(group).num_rows
                    part = rows[(rows >= first) & (rows < first + count)]
                    if len(part):
                        column = _read_images(file, group, f"{self.where(first)} and the {count - 1} after it")
                        for row in part.tolist():
                            value = column[row - first].as_py()
                            yield value["bytes"] if isinstance(value, dict) else value
                    first += count

    def content_key(self) -> str:
        """Hex digits of the content of all files."""
        return combined_key(*map(file_digest, self.paths))


def open_parquet(folder: Path) -> tuple[ParquetImages, ParquetImages]:
    """The training part (train.parquet or train-*.parquet) and the test part (test, or else val). Reads labels, no image.

    Raises:
        ConfigError: the folder or a part is missing; a part is there both as one file and as several; a file is not Parquet or has
            no rows; a column or a label is missing or of a wrong type; a label is negative; metadata cannot be read.
    """
    if not folder.is_dir():
        raise ConfigError(f"data: {folder} is not a folder; parquet:PATH needs one that holds train.parquet and test.parquet")
    train, test = (_find_part(folder, names) for names in (("train",), ("test", "val")))
    return _open_part(train), _open_part(test)


def _open_part(paths: tuple[Path, ...]) -> ParquetImages:
    labels, metadata = zip(*map(_read_labels, paths), strict=True)
    starts = tuple(np.cumsum([0, *map(len, labels[:-1])]).tolist())
    class_names, mirror = _class_names(paths[0], metadata[0]), _parquet_mirror(paths[0], metadata[0])
    return ParquetImages(paths, starts, np.concatenate(labels), class_names, mirror)


def _find_part(folder: Path, names: tuple[str, ...]) -> tuple[Path, ...]:
    for name in names:
        single, several = folder / f"{name}.parquet", tuple(sorted(folder.glob(f"{name}-*.parquet")))
        if single.is_file() and several:
            raise ConfigError(f"data: {folder} holds both {single.name} and {several[0].name}, keep those of one form")
        if single.is_file():
            return (single,)
        if several:
            return several
    raise ConfigError(f"data: {folder} has no {' or '.join(f'{name}.parquet' for name in names)}; it holds {_listing(folder)}")


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


def _parquet_mirror(path: Path, metadata: dict[bytes, bytes]) -> bool | None:
    value = metadata.get(b"mirror")
    if value not in (None, b"true", b"false"):
        raise ConfigError(f"{path}: mirror in its metadata is {value.decode(errors='replace')[:60]!r}, must be true or false")
    return None if value is None else value == b"true"


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def image_layout(images: FolderImages | ParquetImages, image_size: int | None, skip_bad: bool) -> tuple[int, int]:
    """The channels (1 or 3) and the side, in pixels, of a set's images. Decodes the first image (or good image).

    A set is grayscale only if all its images are: colour sets often hold grayscale images (ImageNet does). Headers are read up to
    the first colour image. With an `image_size` images will be cropped to it, and may have any shape.

    Raises:
        ConfigError: an image cannot be read, or, without `image_size`, the first image is not square; with `skip_bad`, all are so.
    """
    side, decoded = image_size, False
    for row, encoded in enumerate(images.encoded(np.arange(len(images.labels)))):
        try:
            header = open_image(encoded)
            if not decoded:
                decode(encoded, 3, None if image_size else header.size[0])
        except ImageError as error:
            if skip_bad:
                continue
            raise ConfigError(f"{images.where(row)}: {error}") from None
        side, decoded = side or header.size[0], True
        if header.mode not in GRAYSCALE_MODES:
            return 3, side
    if side is None or not decoded:
        raise ConfigError(f"{images.where(0)}: like all other images of the set it cannot be used")
    return 1, side


@dataclass(frozen=True)
class UnpackedImages:
    """Encoded images end to end in one file: row i of `source` has the bytes from offsets[i] to offsets[i + 1]."""

    source: ParquetImages
    file: Path
    offsets: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.source.labels

    def where(self, row: int) -> str:
        return self.source.where(row)

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
    return UnpackedImages(source, file, offsets)


def count_shared(train: FolderImages | UnpackedImages, test: FolderImages | UnpackedImages) -> int:
    """How many test images equal a training image byte for byte; 0 for sets of more than SHARED_LIMIT images.

    Opens only images of equal length, and reads only those with equal ends whole.
    """
    if len(train.labels) + len(test.labels) > SHARED_LIMIT:
        return 0
    parts = [[_with_length(images.location(row)) for row in range(len(images.labels))] for images in (train, test)]
    for key in (_length, _ending, _content):
        keys = [[key(*location) for location in part] for part in parts]
        shared = set.intersection(*map(set, keys))
        parts = [[location for location, own in zip(*pair, strict=True) if own in shared] for pair in zip(parts, keys, strict=True)]
    return len(parts[1])


def _with_length(location: Location) -> Location:
    path, offset, length = location
    return path, offset, Path(path).stat().st_size - offset if length < 0 else length


def _length(path: str, offset: int, length: int) -> bytes:  # noqa: ARG001  (one of three keys of an image)
    return length.to_bytes(8)


def _ending(path: str, offset: int, length: int) -> bytes:
    tail = min(_TAIL, length)
    return length.to_bytes(8) + read_range(path, offset + length - tail, tail)


def _content(path: str, offset: int, length: int) -> bytes:
    return digest(read_range(path, offset, length))


def digest(data: bytes) -> bytes:
    """Sixteen bytes that stand for some content."""
    return blake2b(data, digest_size=16).digest()
