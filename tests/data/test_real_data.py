"""The real sets: PDARTS_TUNE_REAL_DATA names a folder that holds cifar10, cifar100 and imagenette224 in Parquet."""

import os
import warnings

import numpy as np
import pytest
import torch

from images import check, load
from pdarts_tune.data.batches import Batches

pytestmark = pytest.mark.skipif(
    "PDARTS_TUNE_REAL_DATA" not in os.environ, reason="PDARTS_TUNE_REAL_DATA names no folder of real sets"
)


def name_of(data_set):
    return f"parquet:{os.environ['PDARTS_TUNE_REAL_DATA']}/{data_set}"


def test_cifar10_has_the_published_mean_and_std_and_no_test_image_in_training(tmp_path, monkeypatch):
    monkeypatch.setenv("PDARTS_TUNE_DATA", str(tmp_path))
    with warnings.catch_warnings(action="error"):
        dataset = load(name_of("cifar10"))
    assert (len(dataset.train), len(dataset.test), dataset.num_classes, dataset.pad) == (50000, 10000, 10, 4)
    np.testing.assert_allclose(dataset.mean, (0.4914, 0.4822, 0.4465), atol=1e-4)
    np.testing.assert_allclose(dataset.std, (0.2470, 0.2435, 0.2616), atol=1e-4)
    assert torch.equal(load(name_of("cifar10")).train.images, dataset.train.images)  # from the cache


def test_cifar100_has_a_hundred_classes_in_equal_numbers():
    dataset = load(name_of("cifar100"))
    for part in (dataset.train, dataset.test):
        assert set(part.labels.bincount(minlength=100).tolist()) == {len(part) // 100}


@pytest.mark.parametrize("image_size", [None, 64])
def test_imagenette_with_its_grayscale_images_loads_whole_and_streams(tmp_path, monkeypatch, image_size):
    monkeypatch.setenv("PDARTS_TUNE_DATA", str(tmp_path))
    assert check(name_of("imagenette224"), image_size=image_size).in_channels == 3
    dataset = load(name_of("imagenette224"), train_images=100, test_images=50, image_size=image_size)
    side = image_size or 224
    batches = Batches(dataset.train, dataset, 50, torch.device("cpu"), augment=True)
    seen = [tuple(images.shape) for images, _ in batches.epoch(torch.Generator().manual_seed(0))]
    assert seen == [(50, 3, side, side)] * 2
