"""Data sets come by name, whole and exact, and bad names, files and numbers get one line."""

import hashlib
import pickle
import re
import socket
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, CIFAR100

from images import check, encode, load, pixels, refuse, write_folders, write_image_set, write_parquet
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.data.batches import Batches

READERS = {"cifar10": (CIFAR10, "labels", "label_names", 10), "cifar100": (CIFAR100, "fine_labels", "fine_label_names", 100)}


def test_digits_are_the_real_scans_in_the_full_range():
    from sklearn.datasets import load_digits

    dataset = load("digits")
    scans = torch.cat((dataset.train.images, dataset.test.images))
    assert scans.shape == (1797, 1, 8, 8)
    assert scans.dtype == torch.uint8
    original = torch.from_numpy(load_digits().images)
    assert torch.equal(scans.double().mul(16 / 255).round().sum(dim=0)[0], original.sum(dim=0))
    assert (int(scans.min()), int(scans.max())) == (0, 255)
    assert (dataset.in_channels, dataset.image_size, dataset.num_classes, dataset.pad, dataset.flip) == (1, 8, 10, 1, False)


def test_the_test_part_of_digits_is_a_fifth_drawn_by_the_split_seed():
    first, again, other = (load("digits", split_seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.test.images, again.test.images)
    assert not torch.equal(first.test.images, other.test.images)
    assert len(first.test) == 359
    shares = first.test.labels.bincount() / (first.test.labels.bincount() + first.train.labels.bincount())
    assert shares.min() > 0.19
    assert shares.max() < 0.21


def test_no_digit_is_in_both_the_training_and_the_test_part():
    dataset = load("digits")
    train, test = ({image.numpy().tobytes() for image in part.images} for part in (dataset.train, dataset.test))
    assert not train & test


def write_cifar(name, root, monkeypatch, seeds=(0, 1)):
    """A tiny CIFAR in the layout of the real one, two images a class in each file; torchvision is told their MD5 sums."""
    reader, label_key, names_key, classes = READERS[name]
    folder = root / reader.base_folder
    folder.mkdir(parents=True)

    def write(file, content):
        data = pickle.dumps(content)
        (folder / file).write_bytes(data)
        return [file, hashlib.md5(data).hexdigest()]

    def part(file, seed):
        data = np.random.default_rng(seed).integers(0, 256, (2 * classes, 3072), dtype=np.uint8)
        return write(file, {"data": data, label_key: list(range(classes)) * 2})

    monkeypatch.setattr(reader, "train_list", [part("train", seeds[0])])
    monkeypatch.setattr(reader, "test_list", [part("test", seeds[1])])
    names = write("meta", {names_key: [f"class {label}" for label in range(classes)]})
    monkeypatch.setattr(reader, "meta", {"filename": names[0], "key": names_key, "md5": names[1]})
    monkeypatch.setenv("PDARTS_TUNE_DATA", str(root))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_comes_pixel_for_pixel_from_the_data_folder(tmp_path, monkeypatch, name):
    write_cifar(name, tmp_path, monkeypatch)
    classes = READERS[name][3]
    dataset = load(name)
    expected = np.random.default_rng(0).integers(0, 256, (2 * classes, 3, 32, 32), dtype=np.uint8)
    assert torch.equal(dataset.train.images, torch.from_numpy(expected))
    assert dataset.test.labels.tolist() == list(range(classes)) * 2
    assert dataset.class_names == tuple(f"class {label}" for label in range(classes))
    assert (dataset.flip, dataset.pad) == (True, 4)
    info = check(name)
    assert (info.num_classes, info.train_images, info.test_images, info.image_size) == (classes, 2 * classes, 2 * classes, 32)
    assert load(name, train_images=classes).train.labels.bincount().tolist() == [1] * classes


def test_cifar_that_is_neither_there_nor_downloaded_says_where_it_must_lie(tmp_path, monkeypatch):
    def no_internet(*args, **kwargs):
        assert socket.getdefaulttimeout() is not None  # a machine without internet must say so, not hang
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", no_internet)
    monkeypatch.setenv("PDARTS_TUNE_DATA", str(tmp_path / "sets"))
    for function in (check, load):
        with pytest.raises(
            ConfigError, match=r"cifar100 is not in .*sets and cannot be downloaded .*put cifar-100-python.tar.gz"
        ) as caught:
            function("cifar100")
        assert "\n" not in str(caught.value)
        assert "no route to host" in str(caught.value)
    assert socket.getdefaulttimeout() is None


def test_cifar_does_not_stream(tmp_path, monkeypatch):
    write_cifar("cifar10", tmp_path, monkeypatch)
    refuse("cifar10", "image_size: cifar10's images have 32 pixels and do not stream, leave image_size out", image_size=224)


def test_test_images_that_are_among_the_training_images_are_counted(tmp_path, monkeypatch):
    write_cifar("cifar10", tmp_path, monkeypatch, seeds=(0, 0))
    with pytest.warns(UserWarning, match="20 of cifar10's test images are among its training images too"):
        load("cifar10")


def test_imagenet_is_class_folders_below_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PDARTS_TUNE_DATA", str(tmp_path))
    refuse("imagenet", rf"{re.escape(str(tmp_path / 'imagenet'))} is not a folder; imagenet needs one that holds train/ and val/")
    write_folders(tmp_path / "imagenet")
    dataset = load("imagenet", image_size=8)
    assert (len(dataset.train), dataset.image_size, dataset.mean) == (12, 8, (0.485, 0.456, 0.406))


@pytest.mark.parametrize("count", [2, 7, 10, 39, 40])
def test_a_smaller_set_has_the_first_images_of_each_class_in_equal_numbers(tmp_path, count):
    name = write_image_set(tmp_path)
    labels = [0] * 30 + [1] * 10  # sorted and unequal: the worst case for a plain prefix
    write_parquet(tmp_path / "train.parquet", [encode(i) for i in pixels(40)], labels, {"class_names": ["ant", "bee"]})
    train = load(name, train_images=count).train
    ants = count - min(count // 2, 10)
    assert train.labels.tolist() == [0] * ants + [1] * (count - ants)
    expected = pixels(40)[[*range(ants), *range(30, 30 + count - ants)]]
    assert torch.equal(train.images, torch.from_numpy(expected).permute(0, 3, 1, 2))


def test_a_smaller_set_of_digits_is_balanced_and_stays_within_its_part():
    whole = load("digits", split_seed=3)
    small = load("digits", split_seed=3, train_images=100, test_images=50)
    assert small.train.labels.bincount().tolist() == [10] * 10
    assert small.test.labels.bincount().tolist() == [5] * 10
    assert {i.numpy().tobytes() for i in small.test.images} <= {i.numpy().tobytes() for i in whole.test.images}


@pytest.mark.parametrize("write", [None, write_image_set, write_folders])
def test_the_check_tells_what_loading_gives(tmp_path, write):
    name = write(tmp_path, classes=("a", "b", "c")) if write else "digits"
    info, dataset = check(name), load(name)
    assert (info.in_channels, info.image_size, info.num_classes) == (dataset.in_channels, dataset.image_size, dataset.num_classes)
    assert (info.train_images, info.test_images) == (len(dataset.train), len(dataset.test))


@pytest.mark.parametrize("name", ["cifar", "parquet", "parquet:", "folder:", "digits:8"])
def test_unknown_names_are_refused_with_the_known_ones(name):
    refuse(name, r"unknown data set .* known are digits, cifar10, .*parquet:PATH")


def test_images_all_of_one_colour_are_refused(tmp_path):
    name = write_image_set(tmp_path)
    images = [encode(np.full((8, 8, 3), 7, np.uint8))] * 2
    write_parquet(tmp_path / "train.parquet", images, [0, 1], {"class_names": ["ant", "bee"]})
    with pytest.raises(ConfigError, match=r"all of .* training images are of one colour"):
        load(name)


def test_a_channel_with_one_value_everywhere_is_only_centred(tmp_path):
    name = write_image_set(tmp_path)
    images = pixels(40)
    images[..., 2] = 51
    write_parquet(tmp_path / "train.parquet", [encode(image) for image in images], [0, 1] * 20, {"class_names": ["ant", "bee"]})
    dataset = load(name)
    assert (dataset.mean[2], dataset.std[2]) == (0.2, 1.0)
    ((batch, _),) = Batches(dataset.train, dataset, 40, torch.device("cpu"), augment=False).in_order()
    assert batch[:, 2].abs().max() < 1e-6


def test_a_set_of_one_class_is_refused(tmp_path):
    refuse(write_image_set(tmp_path / "named", classes=("ant",)), r"train.parquet: has one class alone \(ant\)")
    refuse(write_folders(tmp_path / "folders", classes=("ant",)), r"train: has one class alone \(ant\)")
    (tmp_path / "plain").mkdir()
    for name in ("train.parquet", "test.parquet"):
        write_parquet(tmp_path / "plain" / name, [encode(image) for image in pixels(4)], [0] * 4)
    refuse(f"parquet:{tmp_path}/plain", r"train.parquet: has one class alone \(0\), a classifier needs at least 2")


def test_counts_of_images_are_upper_limits(tmp_path):
    for name, train, test in ((write_image_set(tmp_path), 40, 20), ("digits", 1438, 359)):
        dataset, info = (of(name, train_images=train + 1, test_images=test + 1) for of in (load, check))
        whole = load(name)
        assert (len(dataset.train), len(dataset.test)) == (info.train_images, info.test_images) == (train, test)
        assert torch.equal(dataset.train.images, whole.train.images)
        assert torch.equal(dataset.test.labels, whole.test.labels)
        assert check(name, train_images=10).train_images == 10
