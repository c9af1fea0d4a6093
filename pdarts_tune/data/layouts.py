"""Image sets as people keep them: which files are a part of the set, which column is the label, which classes there are.

Both forms have a training part and a test part, named as on the Hugging Face hub (TRAIN_NAMES, TEST_NAMES). Of several test
parts the first that has labels counts. Hidden files and folders are left out.

* **Class folders**: PATH/train/CLASS/..., PATH/test/CLASS/... A file PATH/dataset.json may hold `{"mirror": false}`: a mirrored
  image would show another class (digits, letters).
* **Parquet files**: a part is `train.parquet`, `train-00000-of-00004.parquet`, ... or all files of a folder `train`, in PATH or
  below. Images are a column of encoded bytes, labels whole numbers, texts or booleans. Metadata may hold class names and `mirror`.

The classes of a set are those that have images, in either part.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.data.decoding import one_line
from pdarts_tune.data.files import PARQUET_ERRORS, FolderImages, ParquetImages
from pdarts_tune.data.in_memory import ImageSet

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "eval", "evaluation", "validation", "valid", "val", "dev")
METADATA = "dataset.json"
# A part's name in that of a file or folder: what goes before it names one of several sets, what follows is a file's number.
_PART = re.compile(rf"(?P<set>(?:.*[-._ ])?)(?P<part>{'|'.join(TRAIN_NAMES + TEST_NAMES)})(?:[-._ \d].*)?", re.IGNORECASE)
_LABEL = re.compile(r"(.*_)?(labels?|class|classes|cls|category|target)(_.*)?|y", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """A data set with its labels. Images in files are not decoded yet."""

    train: ImageSet | FolderImages | ParquetImages
    test: ImageSet | FolderImages | ParquetImages
    class_names: tuple[str, ...]
    mirror: bool  # whether a mirrored image keeps its class


@dataclass(frozen=True)
class _Part:
    """A part whose `images.labels` are as they were read: whole numbers, or texts."""

    images: FolderImages | ParquetImages
    names: tuple[str, ...] | None  # of the numbers
    mirror: bool | None


def open_folders(folder: Path, name: str) -> Source:
    """The class folders of the data set `name`. Lists files, reads no image.

    Raises:
        ConfigError: a folder is missing or has no class folders; there are fewer than two classes; the metadata is wrong.
    """
    if not folder.is_dir():
        raise ConfigError(f"data: {folder} is not a folder; {name} needs one that holds train/ and val/, with a folder a class")
    parts = {path.name.lower(): path for path in _visible_folders(folder)}
    (train, train_classes), *_ = _part_folders(folder, parts, TRAIN_NAMES)
    if not train_classes:
        raise ConfigError(f"{train}: has no folders; it must hold one folder for each class")
    if {name.lower() for name in train_classes} <= {*TRAIN_NAMES, *TEST_NAMES}:
        shown = f"{', '.join(train_classes)} alone; {train_classes[0]} holds {_listing(train / train_classes[0])}"
        raise ConfigError(f"{train}: holds {shown}; class folders must lie in {train.name}/ itself")
    tests = _part_folders(folder, parts, TEST_NAMES)
    for test, test_classes in tests:
        if set(test_classes) & set(train_classes):
            break
        _warn_unlabelled(str(test))
    else:
        test, test_classes = tests[0]
        raise ConfigError(f"{test}: has no class of {train}; its folders are {', '.join(test_classes[:8]) or 'none'}")
    names = tuple(sorted({*train_classes, *test_classes}))
    mirror = _folder_mirror(folder / METADATA)
    return _number_classes(*(_Part(_list_images(path, names), names, mirror) for path in (train, test)))


def _part_folders(folder: Path, parts: Mapping[str, Path], names: Sequence[str]) -> list[tuple[Path, list[str]]]:
    """The folders of one part, each with its class folders."""
    paths = [parts[name] for name in names if name in parts]
    if not paths:
        raise ConfigError(f"data: {folder} has no folder {names[0]}; it holds {_listing(folder)}")
    return [(path, [entry.name for entry in _visible_folders(path)]) for path in paths]


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _visible_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _is_visible(path.name) and path.is_dir())


def _listing(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir() if _is_visible(path.name))[:8]) or "nothing"


def _visible_files(folder: Path) -> list[tuple[str, str]]:
    """Folder and name of each file below `folder`, sorted."""

    def refuse(error: OSError) -> NoReturn:
        raise ConfigError(f"{error.filename}: cannot be read ({error.strerror})")

    files = []
    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        folders[:] = filter(_is_visible, folders)
        files += [(place, name) for name in filter(_is_visible, names)]
    return sorted(files)


def _list_images(path: Path, classes: Sequence[str]) -> FolderImages:
    Image.init()
    endings = {ending for ending, form in Image.registered_extensions().items() if form in Image.OPEN}
    files, labels, others = [], [], []
    for label, name in enumerate(classes):
        if (path / name).is_dir():
            for place, file in _visible_files(path / name):
                if os.path.splitext(file)[1].lower() in endings:  # noqa: PTH122  (of a million files)
                    files.append(f"{place[len(str(path)) + 1 :]}/{file}")
                    labels.append(label)
                else:
                    others.append(f"{place}/{file}")
    if others:
        warnings.warn(f"data: {path}: left out {len(others)} files without an image's ending, {others[0]} is one", stacklevel=2)
    return FolderImages(np.array(labels, np.int64), path, tuple(files))


def _folder_mirror(path: Path) -> bool | None:
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON ({one_line(error)})") from None
    if not isinstance(values, dict) or set(values) - {"mirror"} or not isinstance(values.get("mirror", True), bool):
        raise ConfigError(f'{path}: must be {{"mirror": true}} or {{"mirror": false}}, is {json.dumps(values)[:60]}')
    return values.get("mirror")


def open_parquet(folder: Path) -> Source:
    """The Parquet files of a folder. Reads labels, no image.

    Of several columns of labels the one with most classes counts, and a warning says so.

    Raises:
        ConfigError: the folder or a part is missing; a part's files are not all there or are of several sets; a file is not Parquet
            or has no rows; a column or a label is missing or of a wrong type; there are fewer than two classes; metadata cannot be
            read.
    """
    if not folder.is_dir():
        raise ConfigError(f"data: {folder} is not a folder; parquet:PATH needs one that holds train.parquet and test.parquet")
    train_paths, tests = _find_parts(folder)
    image, candidates = _find_columns(train_paths[0])
    train, columns = _read_part(train_paths, image, candidates)
    classes = {name: pc.count_distinct(column, "only_valid").as_py() for name, column in columns.items()}
    label = max(classes, key=classes.__getitem__)
    if len(classes) > 1:
        counts = ", ".join(f"{name} ({count} classes)" for name, count in classes.items())
        warnings.warn(f"data: {folder} has labels in {counts}; {label} is taken", stacklevel=2)
    train = _with_labels(train, columns[label])
    if not len(train.labels):
        raise ConfigError(f"{train.place}: has no labels, all of column {label!r} are missing or negative")
    for paths in tests:
        test, columns = _read_part(paths, image, [label])
        test = _with_labels(test, columns[label]) if columns else test
        if len(test.labels):
            break
        _warn_unlabelled(test.place)
    else:
        raise ConfigError(f"{tests[0][0]}: has no labels in a column {label!r}")
    parts = []
    for part in (train, test):
        names, _, mirror = _read_metadata(part.paths[0], label)
        parts.append(_Part(part, names if part.labels.dtype == np.int64 else None, mirror))
    return _number_classes(*parts)


def _find_parts(folder: Path) -> tuple[tuple[Path, ...], list[tuple[Path, ...]]]:
    """The files of the training part, and those of each possible test part."""
    sets: dict[Path, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for path in (Path(*file) for file in _visible_files(folder) if file[1].lower().endswith(".parquet")):
        by_file, by_folder = _PART.fullmatch(path.stem), _PART.fullmatch(path.parent.name)
        if path.parent == folder:
            by_folder = None
        if part := by_file or by_folder:
            # partial-train: what the hub converts of a very large part
            prefix = part["set"].removeprefix("partial-").rstrip("-._ ")
            sets[(path.parent.parent if by_folder else path.parent) / prefix][part["part"].lower()].append(path)
    complete = {place: parts for place, parts in sets.items() if set(parts) & set(TRAIN_NAMES)}
    if len(complete) > 1:
        places = ", ".join(str(place.relative_to(folder)) for place in complete)
        raise ConfigError(f"data: {folder} holds several sets: {places}; name the folder of one")
    parts = next(iter(complete.values()), {})
    for names in (TRAIN_NAMES, TEST_NAMES):
        if not set(parts) & set(names):
            raise ConfigError(f"data: {folder} has no {names[0]}.parquet; it holds {_listing(folder)}")
    train, *tests = ([_check_files(parts[name]) for name in names if name in parts] for names in (TRAIN_NAMES, TEST_NAMES))
    return train[0], tests[0]


def _check_files(paths: list[Path]) -> tuple[Path, ...]:
    """The files of one part. Raises ConfigError if some are missing, or are of several versions of the part."""
    numbers = [re.search(r"-(\d+)-of-(\d+)", path.stem) for path in paths]
    totals = {int(match[2]) if match else 0 for match in numbers}
    if len(totals) > 1 or (len(paths) > 1 and any(path.stem.lower() in TRAIN_NAMES + TEST_NAMES for path in paths)):
        raise ConfigError(f"data: {paths[0].parent} holds both {paths[-1].name} and {paths[0].name}, keep those of one form")
    if missing := set(range(*totals)) - {int(match[1]) for match in numbers if match}:
        raise ConfigError(f"{paths[0]}: is one of {max(totals)} files, number {min(missing)} is missing")
    return tuple(paths)


def _open_file(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except PARQUET_ERRORS as error:
        pointer = path.stat().st_size < 1000 and path.read_bytes().startswith(b"version https://git-lfs")
        reason = "a pointer of Git LFS, git lfs pull fetches the file" if pointer else one_line(error)
        raise ConfigError(f"{path}: cannot be read as Parquet ({reason})") from None


def _find_columns(path: Path) -> tuple[str, list[str]]:
    """The column of encoded images, and those that may be labels."""
    with _open_file(path) as file:
        schema = file.schema_arrow
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)[:300]
    images = [field.name for field in schema if _is_encoded(field.type)]
    named = [name for name in images if name.lower() in ("image", "img")] or images
    if len(named) != 1:
        raise ConfigError(
            f"{path}: needs one column of encoded images, image or img (bytes, or a struct with a field 'bytes'); it has {columns}"
        )
    labels = [
        field.name
        for field in schema
        if _label_type(field.type) and (_LABEL.fullmatch(field.name) or _read_metadata(path, field.name)[1])
    ]
    if not labels:
        raise ConfigError(
            f"{path}: needs a column of labels, label or the like (whole numbers, texts or booleans); it has {columns}"
        )
    return named[0], sorted(labels, key=lambda name: name != "label")


def _is_encoded(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_encoded(kind.value_type)
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _label_type(kind: pa.DataType) -> pa.DataType | None:
    """The type to which labels are cast; None for those that are none."""
    if pa.types.is_dictionary(kind):
        return _label_type(kind.value_type)
    if pa.types.is_integer(kind):
        return pa.int64()
    texts = (pa.types.is_boolean, pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return pa.large_string() if any(is_text(kind) for is_text in texts) else None


def _read_part(paths: tuple[Path, ...], image: str, candidates: Sequence[str]) -> tuple[ParquetImages, dict[str, pa.ChunkedArray]]:
    """A part's images, without labels, and those columns that all its files have."""
    tables = []
    for path in paths:
        with _open_file(path) as file:
            names = file.schema_arrow.names
            if image not in names:
                raise ConfigError(f"{path}: no column {image!r}, it has {', '.join(names)}")
            if file.metadata.num_rows == 0:
                raise ConfigError(f"{path}: has no rows")
            kinds = {name: _label_type(file.schema_arrow.field(name).type) for name in candidates if name in names}
            for name, kind in kinds.items():
                if kind is None:
                    shown = file.schema_arrow.field(name).type
                    raise ConfigError(f"{path}: column {name!r} is {shown}, labels are whole numbers, texts or booleans")
            try:
                table = file.read(columns=list(kinds)).cast(pa.schema(kinds))
                table.validate(full=True)  # texts must be UTF-8
            except PARQUET_ERRORS as error:
                raise ConfigError(f"{path}: its labels are damaged ({one_line(error)})") from None
            tables.append(table)
    columns = {}
    for name in candidates:
        if all(name in table.column_names for table in tables):
            if len({table.schema.field(name).type for table in tables}) > 1:
                raise ConfigError(f"{paths[0]}: its labels are of another type than those of the part's other files")
            columns[name] = pa.chunked_array([chunk for table in tables for chunk in table.column(name).chunks])
    starts = tuple(np.cumsum([0, *(len(table) for table in tables[:-1])]).tolist())
    return ParquetImages(np.empty(0, np.int64), paths, starts, image), columns


def _with_labels(images: ParquetImages, column: pa.ChunkedArray) -> ParquetImages:
    """The images with the labels of a column; without, if all are missing or negative."""
    missing = column.is_null().to_numpy()
    wrong, reason = missing, "the label is missing"
    if column.type == pa.int64() and not missing.any():
        wrong, reason = column.to_numpy() < 0, "the label is negative, labels count from 0"
    if wrong.all():
        return images
    if wrong.any():
        raise ConfigError(f"{images.where(int(np.argmax(wrong)))}: {reason}")
    return replace(images, labels=column.to_numpy() if column.type == pa.int64() else np.array(column.to_pylist()))


def _read_metadata(path: Path, column: str) -> tuple[tuple[str, ...] | None, bool, bool | None]:
    """From a file's metadata: the class names of a column, whether Hugging Face's library has it as a class, and `mirror`."""
    with _open_file(path) as file:
        metadata = file.schema_arrow.metadata or {}
    try:
        features = json.loads(metadata.get(b"huggingface", b'{"info": {"features": {}}}'))["info"]["features"]
        feature = features.get(column)
        is_class = isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        names = json.loads(metadata[b"class_names"]) if b"class_names" in metadata else feature and feature.get("names")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: the class names in its metadata cannot be read ({one_line(error)})") from None
    if names is not None and (not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names)):
        raise ConfigError(f"{path}: the class names in its metadata must be a list of texts, are {str(names)[:60]}")
    mirror = metadata.get(b"mirror")
    if mirror not in (None, b"true", b"false"):
        raise ConfigError(f"{path}: mirror in its metadata is {mirror.decode(errors='replace')[:60]!r}, must be true or false")
    return tuple(names) if names else None, is_class, None if mirror is None else mirror == b"true"


def _warn_unlabelled(place: str) -> None:
    warnings.warn(f"data: {place} has no labels and is left out", stacklevel=3)


def _number_classes(train: _Part, test: _Part) -> Source:
    """The source with labels from 0. Warns of classes without images.

    Raises:
        ConfigError: a label has no name; the parts' names or kinds of labels differ; there is one class alone.
    """
    if train.images.labels.dtype.kind != test.images.labels.dtype.kind:
        raise ConfigError(f"{test.images.place}: its labels are of another type than those of {train.images.place}")
    names = train.names or test.names
    parts = [train.images, test.images]
    for part in (train, test):
        if not len(part.images.labels):
            raise ConfigError(f"{part.images.place}: holds no image")
        if part.names not in (None, names):
            raise ConfigError(f"{part.images.place}: its class names are not those of {train.images.place}")
        if names and part.images.labels.max() >= len(names):
            row = int(np.argmax(part.images.labels >= len(names)))
            label = part.images.labels[row]
            raise ConfigError(f"{part.images.where(row)}: label {label} is out of range, there are {len(names)} classes")
    present, codes = np.unique(np.concatenate([images.labels for images in parts]), return_inverse=True)
    class_names = tuple(names[value] if names else str(value) for value in present)
    if len(class_names) < 2:
        raise ConfigError(f"{parts[0].place}: has one class alone ({class_names[0]}), a classifier needs at least 2")
    labels = np.split(codes, [len(parts[0].labels)])
    places = [parts[0].place, parts[1].place]
    lacking = [(" and ".join(places), set(names or ()) - set(class_names))]
    for place, own in zip(places, labels, strict=True):
        lacking.append((place, set(class_names) - {class_names[label] for label in np.unique(own)}))
    for place, classes in lacking:
        if classes:
            shown = ", ".join(sorted(classes)[:8]) + (f" and {len(classes) - 8} others" if len(classes) > 8 else "")
            warnings.warn(f"data: no image of {shown} in {place}", stacklevel=3)
    if None not in (train.mirror, test.mirror) and train.mirror != test.mirror:
        raise ConfigError(f"{places[1]}: mirror is {test.mirror}, in {places[0]} it is {train.mirror}")
    train_images, test_images = (replace(images, labels=own) for images, own in zip(parts, labels, strict=True))
    return Source(train_images, test_images, class_names, mirror=False not in (train.mirror, test.mirror))
