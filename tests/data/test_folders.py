"""Class folders: read like Parquet, streamed where an image size is given, and bad input named by file."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

from images import encode, pixels, write_folders
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.data.batches import Batches
from pdarts_tune.data.datasets import check_dataset, load_dataset


def refuse(name, words, **settings):
    for function in (check_dataset, load_dataset):
        with pytest.raises(ConfigError, match=words) as caught:
            function(name, **settings)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("test_name", ["val", "test"])
def test_folders_come_back_pixel_for_pixel_with_their_classes(tmp_path, channels, test_name):
    dataset = load_dataset(write_folders(tmp_path, channels=channels, test_name=test_name))
    images = torch.from_numpy(pixels(12, channels=channels).reshape(12, 8, 8, channels)).permute(0, 3, 1, 2)
    assert torch.equal(dataset.train.images, torch.cat((images[::2], images[1::2])))  # sorted by class
    assert dataset.train.labels.tolist() == [0] * 6 + [1] * 6
    assert dataset.class_names == ("ant", "bee")
    assert dataset.in_channels == channels
    assert len(dataset.test) == 6


def test_the_check_tells_what_loading_gives(tmp_path):
    name = write_folders(tmp_path, classes=("a", "b", "c"))
    info, dataset = check_dataset(name), load_dataset(name)
    assert (info.in_channels, info.image_size, info.num_classes) == (dataset.in_channels, dataset.image_size, dataset.num_classes)
    assert (info.train_images, info.test_images) == (len(dataset.train), len(dataset.test))


def test_imagenet_is_class_folders_below_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PDARTS_TUNE_DATA", str(tmp_path))
    refuse("imagenet", rf"{re.escape(str(tmp_path / 'imagenet'))} is not a folder; imagenet needs one that holds train/ and val/")
    write_folders(tmp_path / "imagenet")
    dataset = load_dataset("imagenet", image_size=8)
    assert (len(dataset.train), dataset.image_size, dataset.mean) == (12, 8, (0.485, 0.456, 0.406))


@pytest.mark.parametrize(("content", "flips"), [(None, True), ({"mirror": True}, True), ({"mirror": False}, False)])
def test_a_set_can_say_that_it_must_not_be_mirrored(tmp_path, content, flips):
    name = write_folders(tmp_path)
    if content is not None:
        (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert load_dataset(name).flip is flips


@pytest.mark.parametrize("content", ['{"mirror": "no"}', '{"miror": false}', "[]", "{"])
def test_metadata_that_cannot_be_used_is_refused(tmp_path, content):
    name = write_folders(tmp_path)
    (tmp_path / "dataset.json").write_text(content)
    refuse(name, r"dataset.json: (must be \{|cannot be read as JSON)")


def test_missing_folders_and_classes_are_named(tmp_path):
    refuse(f"folder:{tmp_path}/nowhere", "nowhere is not a folder; folder:.*nowhere needs one that holds train/ and val/")
    refuse(f"folder:{tmp_path}", "has no folder train; it holds nothing")
    name = write_folders(tmp_path)
    (tmp_path / "val" / "cat").mkdir()
    refuse(name, r"train: has no folder for class cat, which .*val has")
    (tmp_path / "train" / "cat").mkdir()
    refuse(name, r"train: class 2 \(cat\) has no image")
    for part in ("train", "val"):
        shutil.rmtree(tmp_path / part)
        (tmp_path / part).mkdir()
    refuse(name, r"train: .*it must hold one folder for each class")


def test_images_that_cannot_be_used_are_named_by_file(tmp_path):
    name = write_folders(tmp_path)
    (tmp_path / "train" / "ant" / "000.png").write_bytes(b"not an image")
    refuse(name, r"train/ant/000.png: not an image that can be read \(12 bytes\)")
    write_folders(tmp_path)
    (tmp_path / "train" / "bee" / "003.png").write_bytes(encode(pixels(1, 9)[0]))
    with pytest.raises(ConfigError, match=r"bee/003.png: the image is 9x9 pixels, .*\(8x8\) unless an image_size is given"):
        load_dataset(name)


def test_bad_images_are_left_out_and_counted_on_request(tmp_path):
    name = write_folders(tmp_path)
    whole = load_dataset(name)
    (tmp_path / "train" / "ant" / "002.png").write_bytes(b"not an image")
    (tmp_path / "train" / "bee" / "003.png").write_bytes(encode(pixels(1)[0])[:-60])
    with pytest.raises(ConfigError, match=r"ant/002.png: not an image .*; so are 1 others"):
        load_dataset(name)
    with pytest.warns(UserWarning, match=r"left out 2 images that cannot be used, the first is .*ant/002.png: not an image"):
        dataset = load_dataset(name, skip_bad_images=True)
    keep = torch.tensor([index for index in range(12) if index not in (1, 7)])
    assert torch.equal(dataset.train.images, whole.train.images[keep])
    assert torch.equal(dataset.train.labels, whole.train.labels[keep])


def test_a_class_of_bad_images_only_is_refused_even_so(tmp_path):
    name = write_folders(tmp_path)
    for file in (tmp_path / "val" / "bee").iterdir():
        file.write_bytes(b"not an image")
    with (
        pytest.warns(UserWarning, match="left out 3 images"),
        pytest.raises(ConfigError, match=r"val: class 1 \(bee\) has no image that can be used"),
    ):
        load_dataset(name, skip_bad_images=True)


def test_a_set_that_is_too_large_for_a_device_is_told_to_stream(tmp_path, monkeypatch):
    name = write_folders(tmp_path)
    monkeypatch.setattr("pdarts_tune.data.in_memory.RESIDENT_LIMIT", 12 * 3 * 64 - 1)
    refuse(name, r"12 images of 8 pixels decode to 0.0 GiB, more than .* give an image_size, so that they stream")
    assert len(load_dataset(name, train_images=10).train) == 10
    assert len(load_dataset(name, image_size=8).train) == 12


def test_an_image_size_makes_images_of_any_shape_one_size(tmp_path):
    name = write_folders(tmp_path)
    tall = np.random.default_rng(0).integers(0, 256, (30, 12, 3), dtype=np.uint8)
    (tmp_path / "train" / "ant" / "000.png").write_bytes(encode(tall))
    refuse(name, r"000.png: the image is 12x30 pixels, all must be square")
    dataset = load_dataset(name, image_size=8)
    ((images, _),) = Batches(dataset.train, dataset, 12, torch.device("cpu"), augment=False).in_order()
    assert images.shape == (12, 3, 8, 8)
