"""Makes small image sets, in memory, in Parquet as on the Hugging Face hub, and as class folders; opens sets by name."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.data.datasets import check_dataset, load_dataset
from pdarts_tune.data.in_memory import ImageSet


def encode(pixels, form="PNG"):
    """Encoded bytes of a uint8 array (H, W) or (H, W, C), without loss."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **({"lossless": True, "exact": True} if form == "WEBP" else {}))
    return buffer.getvalue()


def pixels(count, size=8, channels=3, seed=0):
    """Random uint8 images (count, size, size, channels), or (count, size, size) for one channel."""
    shape = (count, size, size) if channels == 1 else (count, size, size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_parquet(path, images, labels, metadata=None, plain=False, rows_per_group=1000):
    """Writes encoded `images` and `labels`; as struct{bytes, path}, or as plain bytes. `metadata` values are made JSON."""
    if plain:
        column = pa.array(images, pa.binary())
    else:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        column = pa.array([{"bytes": image, "path": None} for image in images], kind)
    table = pa.table({"image": column, "label": pa.array(labels)})
    table = table.replace_schema_metadata({key: json.dumps(value) for key, value in (metadata or {}).items()})
    pq.write_table(table, path, row_group_size=rows_per_group)


def write_image_set(folder, train=40, test=20, size=8, channels=3, classes=("ant", "bee"), test_name="test.parquet", test_seed=1):
    """A folder with a training and a test file of random images; the labels take turns. Returns the data set's name."""
    folder.mkdir(exist_ok=True)
    for name, count, seed in (("train.parquet", train, 0), (test_name, test, test_seed)):
        write_parquet(
            folder / name,
            [encode(image) for image in pixels(count, size, channels, seed)],
            [row % len(classes) for row in range(count)],
            {"class_names": list(classes)},
            rows_per_group=7,
        )
    return f"parquet:{folder}"


def write_folders(folder, train=12, test=6, size=8, channels=3, classes=("ant", "bee"), test_name="val", form="PNG"):
    """Class folders of random images, named by number; the labels take turns. Returns the data set's name."""
    for name, count, seed in (("train", train, 0), (test_name, test, 1)):
        for index, image in enumerate(pixels(count, size, channels, seed)):
            path = folder / name / classes[index % len(classes)] / f"{index:03}.{form.lower()}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(image, form))
    return f"folder:{folder}"


def load(name, moments=None, **settings):
    return load_dataset(SearchConfig(data=name, **settings), moments)


def check(name, **settings):
    return check_dataset(SearchConfig(data=name, **settings))


def refuse(name, message, **settings):
    """Both the check and the loading raise an error of one line that matches `message`."""
    for function in (check, load):
        with pytest.raises(ConfigError, match=message) as caught:
            function(name, **settings)
        assert "\n" not in str(caught.value)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def numbered(count, classes=2, size=8, channels=1):
    """An image set whose image i is filled with the value i."""
    values = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)
    return ImageSet(values.expand(-1, channels, size, size).contiguous(), torch.arange(count) % classes)
