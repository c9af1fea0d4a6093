"""Turns encoded images into pixels: one image at a time, or a whole set on all cores.

Where the bytes come from is a matter of other rooms (parquet.py, folders.py); they offer `EncodedImages`. This room imports no
torch, so that processes that only decode start fast.
"""

from __future__ import annotations

import io
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from hashlib import blake2b
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from pdarts_tune.config import ConfigError

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
