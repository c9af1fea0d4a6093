"""Data sets that come decoded: scikit-learn's embedded digits, and CIFAR as torchvision downloads and reads it."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from pdarts_tune.cache import DATA_VARIABLE, data_folder
from pdarts_tune.config import ConfigError
from pdarts_tune.decoding import one_line

CIFAR = ("cifar10", "cifar100")
DOWNLOAD_TIMEOUT = 30.0  # seconds without an answer: a machine without internet must say so, not hang


@dataclass(frozen=True)
class ArrayImages:
    """The images of one part of a set, uint8 (N, C, H, W), and their labels, int64 (N,)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@lru_cache(maxsize=1)
def read_digits() -> ArrayImages:
    """The 1,797 scans of handwritten digits, uint8 (N, 1, 8, 8) in the full range, and their labels."""
    from sklearn.datasets import load_digits  # takes a second to import, and only this data set needs it

    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    return ArrayImages(images, labels.astype(np.int64))


def read_cifar(name: str) -> tuple[ArrayImages, ArrayImages, tuple[str, ...]]:
    """Training part, test part and class names of `cifar10` or `cifar100` (its 100 fine labels), images (N, 3, 32, 32).

    The files are those of https://www.cs.toronto.edu/~kriz/cifar.html below `cache.data_folder()`; torchvision checks their MD5
    sums, and downloads them if they are not there.

    Raises:
        ConfigError: they are neither there nor can be downloaded. The message says which folder was looked in and how to put them
            there.
    """
    from torchvision.datasets import CIFAR10, CIFAR100  # takes a second to import

    reader = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    folder = data_folder()
    try:
        train = reader(str(folder), train=True)
    except RuntimeError:  # not there, or not whole
        _download(name, reader, folder)
        train = reader(str(folder), train=True)
    test = reader(str(folder), train=False)
    return _arrays(train), _arrays(test), tuple(train.classes)


def _arrays(part: Any) -> ArrayImages:
    return ArrayImages(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)), np.array(part.targets, dtype=np.int64))


def _download(name: str, reader: Any, folder: Path) -> None:
    timeout = socket.getdefaulttimeout()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name}.lock"):  # one process downloads, those that start at the same time wait for it
            socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
            reader(str(folder), download=True)
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"data: {name} is not in {folder} and cannot be downloaded ({one_line(error)}); put {reader.filename} from "
            f"{reader.url}, or its folder {reader.base_folder}, there, or let {DATA_VARIABLE} name the folder that has it"
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)
