"""Turns encoded images into pixels: one image at a time, or a whole set on all cores.

Where the bytes come from is a matter of other rooms (parquet.py, folders.py); they offer `EncodedImages`. This room imports no
torch, so that processes that only decode start fast.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.data.cache import cached_folder, combined_key, file_digest

# MERGED DOCSTRING
# Encoded images as ranges of files, so that any process can read any of them in any order.
# MERGED DOCSTRING
# Finds image sets in folders of one folder a class, torchvision's `ImageFolder` layout: PATH/train/CLASS/..., PATH/val/CLASS/...
#
# A file PATH/dataset.json may say `{"mirror": false}`: an image seen in a mirror would show another class (digits, letters).
# MERGED DOCSTRING
# Finds image sets in Parquet files as the Hugging Face hub has them: an `image` column of encoded bytes, a `label` column.
#
# A part of a set is one file (`train.parquet`) or several (`train-00000-of-00004.parquet`, ...). Labels are read and checked whole,
# images only where they are used: an image set costs what is taken from it.

GRAYSCALE_MODES = ("1", "L", "LA")
WIDE_MODES = ("I", "F")  # more than 8 bits a channel, and I;16 and its like
PROGRESS_AFTER = 2.0  # seconds: faster work shows no progress line
POOL_ABOVE = 16 * 2**20  # decoded bytes: less is decoded here, in less time than it takes to start processes
_CHUNK = 256  # images handed to a process at a time; one by one, small images cost more in handing over than in decoding


class ImageError(ValueError):
    """An image cannot be used. The message says what is wrong with it; who read it knows where it is."""


class EncodedImages(Protocol):
    """A set of encoded images with labels, int64 (N,), that reads an image only when it is asked for."""

    @property
    def labels(self) -> NDArray[np.int64]: ...

    def where(self, row: int) -> str:
        """Names one image in messages: its file, or its file and row."""

    def encoded(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, bytes | None]]:
        """Yields (row, encoded image) for ascending rows."""

    def content_key(self) -> str:
        """Hex digits that name the set by what its files hold."""


def image_layout(images: EncodedImages, image_size: int | None = None, skip_bad: bool = False) -> tuple[int, int]:
    """The channels (1 or 3) and the side, in pixels, of a set's images; decodes the first one (that can be used, if `skip_bad`).

    A set is grayscale only if all its images are: grayscale images among colour images are common (ImageNet has them).
    Headers are read up to the first colour image. With an `image_size` images will be cropped to it, and may have any shape.

    Raises:
        ConfigError: an image that cannot be read, or, without `image_size`, a first image that is not square; with `skip_bad`, if
            all are so.
    """
    side, seen = image_size, False
    for row, encoded in images.encoded(np.arange(len(images.labels))):
        try:
            header = open_image(encoded)
            if not seen:
                decode(encoded, 3, None if image_size else header.size[0])
        except ImageError as error:
            if skip_bad:
                continue
            raise ConfigError(f"{images.where(row)}: {error}") from None
        side, seen = side or header.size[0], True
        if header.mode not in GRAYSCALE_MODES:
            return 3, side
    if side is None or not seen:
        raise ConfigError(f"{images.where(0)}: like all other images of the set it cannot be used")
    return 1, side


def open_image(encoded: bytes | None) -> Image.Image:
    """The image with its header read, its pixels not yet. Raises ImageError if there is none."""
    if not encoded:
        raise ImageError("the image is missing, its bytes must be in the file")
    try:
        return Image.open(io.BytesIO(encoded))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise ImageError(f"not an image that can be read ({len(encoded)} bytes)") from None


def decode(encoded: bytes | None, channels: int, side: int | None) -> NDArray[np.uint8]:
    """One image, uint8 (channels, height, width), which must be `side` pixels wide and high unless that is None.

    Grayscale becomes three equal channels where three are wanted; transparency is ignored.

    Raises:
        ImageError: it cannot be read, or is not of this size, or has more than 8 bits a channel.
    """
    image = open_image(encoded)
    width, height = image.size
    if side is not None and (width, height) != (side, side):
        raise ImageError(
            f"the image is {width}x{height} pixels, all must be square and of one size ({side}x{side}) "
            f"unless an image_size is given to crop them to"
        )
    if image.mode.startswith(WIDE_MODES):
        raise ImageError(f"the image has more than 8 bits a channel (mode {image.mode}), needs 8")
    try:
        pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"the image is damaged ({one_line(error)})") from None
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def decode_rows(
    images: EncodedImages, rows: NDArray[np.int64], channels: int, side: int, into: NDArray[np.uint8] | None = None
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """The images of ascending `rows`, uint8 (len(rows), channels, side, side), written to `into` if it is given.

    Also what is wrong with the images that cannot be used, by their place in `rows`; those are left as they were. Large sets are
    decoded on all cores, with a progress line on stderr when that takes long.

    Raises:
        ConfigError: a file that cannot be read at all.
    """
    decoded = np.zeros((len(rows), channels, side, side), np.uint8) if into is None else into
    wrong: dict[int, str] = {}

    def place(start: int, pixels: NDArray[np.uint8], errors: dict[int, str]) -> None:
        decoded[start : start + len(pixels)] = pixels
        wrong.update({start + offset: error for offset, error in errors.items()})
        progress.update(len(pixels))

    chunks = _chunks(images.encoded(rows))
    with progress_line(len(rows), "decoding images") as progress:
        if decoded.nbytes <= POOL_ABOVE or core_count() == 1:
            for start, chunk in chunks:
                place(start, *_decode_chunk(chunk, channels, side))
            return decoded, wrong
        with ProcessPoolExecutor(core_count()) as pool:
            waiting: deque[tuple[int, Future[tuple[NDArray[np.uint8], dict[int, str]]]]] = deque()
            for start, chunk in chunks:
                waiting.append((start, pool.submit(_decode_chunk, chunk, channels, side)))
                if len(waiting) > 4 * core_count():  # do not hold all encoded images of a large file at once
                    first, future = waiting.popleft()
                    place(first, *future.result())
            for first, future in waiting:
                place(first, *future.result())
    return decoded, wrong


def digest(data: bytes) -> bytes:
    """Sixteen bytes that name some content."""
    return blake2b(data, digest_size=16).digest()


def progress_line(total: int, what: str) -> tqdm:
    """A progress line on stderr that appears only if the work takes longer than PROGRESS_AFTER seconds."""
    # In a log file every update is a line of its own: fewer of them there.
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, desc=what, unit="image", delay=PROGRESS_AFTER, mininterval=interval, file=sys.stderr, leave=False)


def core_count() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_line(error: Exception) -> str:
    """What an exception says, on one line of a length that can be read."""
    return " ".join(str(error).split())[:120] or type(error).__name__


def _chunks(encoded: Iterator[tuple[int, bytes | None]]) -> Iterator[tuple[int, list[bytes | None]]]:
    start = 0
    while chunk := [image for _, image in islice(encoded, _CHUNK)]:
        yield start, chunk
        start += len(chunk)


def _decode_chunk(chunk: Sequence[bytes | None], channels: int, side: int) -> tuple[NDArray[np.uint8], dict[int, str]]:
    pixels = np.zeros((len(chunk), channels, side, side), np.uint8)
    errors = {}
    for offset, encoded in enumerate(chunk):
        try:
            pixels[offset] = decode(encoded, channels, side)
        except ImageError as error:
            errors[offset] = str(error)
    return pixels, errors


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


METADATA = "dataset.json"


@dataclass(frozen=True)
class FolderImages:
    """The encoded images of one part of a set: `files` below `path`, sorted by class and name; `labels` is int64 (N,)."""

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

    def location(self, row: int) -> tuple[str, int, int]:
        """File, offset and length of an image's bytes; length -1: to the end."""
        return self.where(row), 0, -1

    def encoded(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, bytes | None]]:
        """Yields (row, encoded image) for ascending rows.

        Raises:
            ConfigError: a file that is gone or may not be read.
        """
        for row in rows.tolist():
            yield row, read_range(self.where(row), 0, -1)

    def content_key(self) -> str:
        """Hex digits that name the part by what its files hold."""
        key = hashlib.sha256()
        for row, image in self.encoded(np.arange(len(self.files))):
            assert image is not None
            key.update(f"{self.labels[row]}/{len(image)}/".encode())
            key.update(image)
        return key.hexdigest()


def open_folders(folder: Path, wanted_by: str) -> tuple[FolderImages, FolderImages]:
    """The training part, in train/, and the test part, in test/ or else val/. Lists files, reads none of the images.

    Raises:
        ConfigError: a folder is not there, has no class folders, has other classes than its fellow; the metadata is wrong. The
            message says that `wanted_by` (a data set's name) needs it.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"data: {folder} is not a folder; {wanted_by} needs one that holds train/ and val/, with a folder a class"
        )
    for names in (("train",), ("val", "test")):
        if not any((folder / name).is_dir() for name in names):
            there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
            raise ConfigError(f"data: {folder} has no folder {' or '.join(names)}; it holds {there}")
    mirror = _mirror(folder / METADATA)
    train = _list_images(folder / "train", mirror)
    test = _list_images(folder / ("test" if (folder / "test").is_dir() else "val"), mirror)
    for name in sorted(set(train.class_names) ^ set(test.class_names)):
        has, lacks = (train, test) if name in train.class_names else (test, train)
        raise ConfigError(f"{lacks.path}: has no folder for class {name}, which {has.path} has")
    return train, test


def _list_images(path: Path, mirror: bool | None) -> FolderImages:
    from torchvision.datasets import ImageFolder  # takes a second to import, and only these data sets need it

    try:
        listed = ImageFolder(str(path), allow_empty=True)
    except OSError as error:
        raise ConfigError(f"{path}: {one_line(error)}; it must hold one folder for each class") from None
    files = tuple(str(Path(file).relative_to(path)) for file, _ in listed.samples)
    return FolderImages(path, files, np.array(listed.targets, dtype=np.int64), tuple(listed.classes), mirror)


def _mirror(path: Path) -> bool | None:
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
        paths,
        tuple(starts.tolist()),
        np.concatenate(labels),
        _class_names(paths[0], metadata[0]),
        _mirror_rows(paths[0], metadata[0]),
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


def _mirror_rows(path: Path, metadata: dict[bytes, bytes]) -> bool | None:
    value = metadata.get(b"mirror")
    if value not in (None, b"true", b"false"):
        raise ConfigError(f"{path}: mirror in its metadata is {value.decode(errors='replace')[:60]!r}, must be true or false")
    return None if value is None else value == b"true"


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
