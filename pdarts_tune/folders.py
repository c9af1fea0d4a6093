"""Finds image sets in folders of one folder a class, torchvision's `ImageFolder` layout: PATH/train/CLASS/..., PATH/val/CLASS/...

A file PATH/dataset.json may say `{"mirror": false}`: an image seen in a mirror would show another class (digits, letters).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pdarts_tune.config import ConfigError
from pdarts_tune.decoding import one_line
from pdarts_tune.ranges import read_range

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
