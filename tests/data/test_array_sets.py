"""CIFAR as torchvision reads it: found in the data folder, downloaded if there is internet, or refused in one line."""

import hashlib
import pickle
import socket
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, CIFAR100

from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.data.datasets import check_dataset, load_dataset

READERS = {"cifar10": (CIFAR10, "labels", "label_names", 10), "cifar100": (CIFAR100, "fine_labels", "fine_label_names", 100)}


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
    dataset = load_dataset(name)
    expected = np.random.default_rng(0).integers(0, 256, (2 * classes, 3, 32, 32), dtype=np.uint8)
    assert torch.equal(dataset.train.images, torch.from_numpy(expected))
    assert dataset.test.labels.tolist() == list(range(classes)) * 2
    assert dataset.class_names == tuple(f"class {label}" for label in range(classes))
    assert (dataset.flip, dataset.pad) == (True, 4)
    info = check_dataset(name)
    assert (info.num_classes, info.train_images, info.test_images, info.image_size) == (classes, 2 * classes, 2 * classes, 32)
    assert load_dataset(name, train_images=classes).train.labels.bincount().tolist() == [1] * classes


def test_cifar_that_is_neither_there_nor_downloaded_says_where_it_must_lie(tmp_path, monkeypatch):
    def no_internet(*args, **kwargs):
        assert socket.getdefaulttimeout() is not None  # a machine without internet must say so, not hang
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", no_internet)
    monkeypatch.setenv("PDARTS_TUNE_DATA", str(tmp_path / "sets"))
    for function in (check_dataset, load_dataset):
        with pytest.raises(
            ConfigError, match=r"cifar100 is not in .*sets and cannot be downloaded .*put cifar-100-python.tar.gz"
        ) as caught:
            function("cifar100")
        assert "\n" not in str(caught.value)
        assert "no route to host" in str(caught.value)
    assert socket.getdefaulttimeout() is None


def test_cifar_does_not_stream(tmp_path, monkeypatch):
    write_cifar("cifar10", tmp_path, monkeypatch)
    for function in (check_dataset, load_dataset):
        with pytest.raises(
            ConfigError, match="image_size: cifar10's images have 32 pixels and do not stream, leave image_size out"
        ):
            function("cifar10", image_size=224)


def test_test_images_that_are_among_the_training_images_are_counted(tmp_path, monkeypatch):
    write_cifar("cifar10", tmp_path, monkeypatch, seeds=(0, 0))
    with pytest.warns(UserWarning, match="20 of cifar10's test images are among its training images too"):
        load_dataset("cifar10")
