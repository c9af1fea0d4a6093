"""Images are normalised with the moments of the training images, with ImageNet's, or with those given."""

import numpy as np
import pytest
import torch

from images import load, pixels, write_folders, write_image_set
from pdarts_tune.config.evaluation import EvalConfig
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.data.batches import Batches
from pdarts_tune.data.normalisation import find_family

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PDARTS_TUNE_DATA", str(tmp_path / "data"))


def test_mean_and_std_are_those_of_the_training_images(tmp_path):
    dataset = load(write_image_set(tmp_path))
    scaled = pixels(40).astype(np.float64) / 255
    np.testing.assert_allclose(dataset.mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, scaled.std(axis=(0, 1, 2)), rtol=1e-12)


def test_images_are_normalised_with_what_is_given_and_nothing_is_measured(tmp_path):
    name = write_image_set(tmp_path)
    moments = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pdarts_tune.data.datasets.pixel_moments", None)
        dataset = load(name, moments)
    ((images, _),) = Batches(dataset.test, dataset, 20, CPU, augment=False).in_order()
    expected = (dataset.test.images / 255 - torch.tensor(moments[0]).view(3, 1, 1)) / torch.tensor(moments[1]).view(3, 1, 1)
    torch.testing.assert_close(images, expected)


@pytest.mark.parametrize(
    ("moments", "message"),
    [
        (((0.5,), (0.2,)), "mean: 1 values, parquet:.* images have 3 channels and need one for each"),
        (((0.5,) * 3, (0.2,) * 2), "std: 2 values, parquet:.* images have 3 channels"),
        (((0.5, 125.3, 0.5), (0.2,) * 3), r"mean: 125.3 is wrong, it must be in \[0, 1\]"),
        (((0.5,) * 3, (0.2, 0.0, 0.2)), "std: 0.0 is wrong, it must be more than 0"),
        (((0.5,) * 3, (0.2, 0.2, float("nan"))), "std: nan is wrong, it must be more than 0"),
    ],
)
def test_a_mean_or_deviation_that_cannot_be_is_refused(tmp_path, moments, message):
    with pytest.raises(ConfigError, match=message):
        load(write_image_set(tmp_path), moments)


@pytest.mark.parametrize(
    ("family", "name", "channels", "side", "classes", "stem", "image_size"),
    [
        ("CIFAR-10", "cifar10", 3, 32, 10, "cifar", None),
        ("CIFAR-10", "parquet:/data/images", 3, 32, 10, "cifar", None),
        ("CIFAR-100", "cifar100", 3, 32, 100, "cifar", None),
        ("CIFAR-100", "parquet:/data/images", 3, 32, 100, "cifar", None),
        ("CIFAR-100", "parquet:/data/CIFAR-100-coarse", 3, 32, 20, "cifar", None),
        ("CIFAR-10", "parquet:/cifar100/cifar10", 3, 32, 10, "cifar", None),
        ("ImageNet", "imagenet", 3, 224, 1000, "imagenet", 224),
        ("ImageNet", "folder:/data/photographs", 3, 32, 10, "cifar", 32),
        ("ImageNet", "parquet:/data/cifar10", 3, 32, 10, "imagenet", None),
        ("digits", "digits", 1, 8, 10, "cifar", None),
        (None, "parquet:/data/images", 3, 64, 10, "cifar", None),
        (None, "folder:/data/scans", 1, 32, 10, "cifar", None),
    ],
)
def test_the_family_of_weights_that_do_not_say_their_normalisation(family, name, channels, side, classes, stem, image_size):
    config = EvalConfig(data=name, stem=stem, image_size=image_size, cutout=0)
    assert find_family(config, channels, side, classes) == family


@pytest.mark.parametrize("write", [write_folders, write_image_set])
def test_colour_images_that_stream_are_normalised_as_imagenet_s_whatever_the_set(tmp_path, write):
    dataset = load(write(tmp_path / "set", size=20), image_size=14)
    assert (dataset.mean, dataset.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_mean_and_std_of_a_grayscale_set_that_streams_are_those_of_its_test_crops(tmp_path):
    dataset = load(write_folders(tmp_path / "set", size=20, channels=1), image_size=14)
    ((images, _),) = Batches(dataset.train, dataset, 12, CPU, augment=False).in_order()
    assert abs(images.mean().item()) < 1e-5
    assert abs(images.std(correction=0).item() - 1) < 1e-5
