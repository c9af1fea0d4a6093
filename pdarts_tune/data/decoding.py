"""Encoded images to pixels: one image, or a whole set on all cores. Imports no torch, so that processes that decode start fast."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from itertools import islice, repeat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

WIDE_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")  # more than 8 bits; Pillow has such modes of one channel alone
GRAYSCALE_MODES = ("1", "L", "LA", *WIDE_MODES)
PROGRESS_AFTER = 2.0  # seconds: faster work shows no progress line
POOL_ABOVE = 16 * 2**20  # decoded bytes: this process decodes less than that before other processes would have started
_CHUNK = 256  # images that a process gets at a time: the transfer of single small images takes longer than their decoding


class ImageError(ValueError):
    """An image cannot be used. The message says why; the caller knows which image it is."""


def open_image(encoded: bytes | str | None) -> Image.Image:
    """The image with its header read, its pixels not yet. A text is why the image could not be read. Raises ImageError."""
    if not encoded:
        raise ImageError("the image is missing, its bytes must be in the file")
    if isinstance(encoded, str):
        raise ImageError(encoded)
    try:
        return Image.open(io.BytesIO(encoded))
    except Exception:  # Pillow's readers of some 40 formats raise many kinds of errors
        raise ImageError(f"not an image that can be read ({len(encoded)} bytes)") from None


def decode(encoded: bytes | str | None, channels: int, side: int | None) -> NDArray[np.uint8]:
    """One image, uint8 (channels, height, width). With a `side`, both its height and its width must be that many pixels.

    With three channels a grayscale image gets three equal ones. Of 16 bits the upper 8 are taken. Transparency is ignored.

    Raises:
        ImageError: the image cannot be read, has another size, or has more than 16 bits a channel.
    """
    image = open_image(encoded)
    width, height = image.size
    if side is not None and (width, height) != (side, side):
        raise ImageError(
            f"the image is {width}x{height} pixels, all must be square and of one size ({side}x{side}) "
            f"unless an image_size is given to crop them to"
        )
    try:
        if image.mode in WIDE_MODES:
            values = np.asarray(image)
            if values.dtype.kind == "f" or values.min() < 0 or values.max() > 0xFFFF:
                raise ImageError(f"the image has more than 16 bits a channel (mode {image.mode}), needs 8 or 16")
            image = Image.fromarray((values >> 8).astype(np.uint8))
        pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"the image is damaged ({one_line(error)})") from None
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def decode_all(encoded: Iterator[bytes | str | None], into: NDArray[np.uint8]) -> dict[int, str]:
    """Decodes N images into `into`, uint8 (N, channels, side, side). Returns what is wrong with those that cannot be used.

    The errors are by position among the N; the pixels there are zero. Large sets are decoded on all cores, with a progress
    line on stderr if that takes long.
    """
    channels, side = into.shape[1:3]
    errors: dict[int, str] = {}
    several = into.nbytes > POOL_ABOVE and core_count() > 1
    with ExitStack() as stack:
        progress = stack.enter_context(progress_line(len(into), "decoding images"))
        apply = stack.enter_context(ProcessPoolExecutor(core_count())).map if several else map
        start = 0
        # A part at a time bounds the encoded images of a large file in memory.
        while part := [chunk for _ in range(16 * core_count()) if (chunk := list(islice(encoded, _CHUNK)))]:
            for pixels, wrong in apply(_decode_chunk, part, repeat(channels), repeat(side)):
                into[start : start + len(pixels)] = pixels
                errors.update({start + index: error for index, error in wrong.items()})
                start += len(pixels)
                progress.update(len(pixels))
    assert start == len(into)
    return errors


def _decode_chunk(chunk: Sequence[bytes | str | None], channels: int, side: int) -> tuple[NDArray[np.uint8], dict[int, str]]:
    pixels = np.zeros((len(chunk), channels, side, side), np.uint8)
    errors = {}
    for index, encoded in enumerate(chunk):
        try:
            pixels[index] = decode(encoded, channels, side)
        except ImageError as error:
            errors[index] = str(error)
    return pixels, errors


def read_range(path: str, offset: int, length: int) -> bytes:
    """`length` bytes of a file from `offset`; with length -1 all of the rest. Raises ImageError if they cannot be read."""
    try:
        with Path(path).open("rb") as file:
            file.seek(offset)
            return file.read(length)
    except OSError as error:
        raise ImageError(f"cannot be read ({error.strerror})") from None


def progress_line(total: int, action: str) -> tqdm:
    """A progress line on stderr that appears only if the work takes longer than PROGRESS_AFTER seconds."""
    interval = 0.2 if sys.stderr.isatty() else 10.0  # in a log file every update is a line of its own
    return tqdm(total=total, desc=action, unit="image", delay=PROGRESS_AFTER, mininterval=interval, file=sys.stderr, leave=False)


def core_count() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_line(error: Exception) -> str:
    """An exception's message on one line of readable length."""
    return " ".join(str(error).split())[:120] or type(error).__name__
