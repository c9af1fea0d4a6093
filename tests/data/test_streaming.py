"""Sets that stream: the same bits whatever the number of workers, random crops for training, centre crops for tests."""

import dataclasses

import pytest
import torch
from torchvision.transforms import v2

from images import encode, load, pixels, seeded, write_folders, write_image_set, write_parquet
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.data import streaming
from pdarts_tune.data.batches import Batches

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PDARTS_TUNE_DATA", str(tmp_path / "data"))


def unnormalised(images, dataset):
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (dataset.mean, dataset.std))
    return ((images * std + mean) * 255).round().to(torch.uint8)


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_test_images_are_resized_and_cropped_at_the_centre_in_file_order(tmp_path, kind):
    name = write_folders(tmp_path / "set", size=20) if kind == "folder" else write_image_set(tmp_path / "set", 12, 6, 20)
    dataset = load(name, image_size=14)
    seen = list(Batches(dataset.test, dataset, 4, CPU, augment=False).in_order())
    assert [len(labels) for _, labels in seen] == [4, 2]
    images = torch.from_numpy(pixels(6, 20, seed=1)).permute(0, 3, 1, 2)
    if kind == "folder":
        images = torch.cat((images[::2], images[1::2]))
    expected = torch.stack([v2.functional.center_crop(v2.functional.resize(image, [16]), [14]) for image in images])
    assert torch.equal(unnormalised(torch.cat([batch for batch, _ in seen]), dataset), expected)
    assert torch.equal(torch.cat([labels for _, labels in seen]), dataset.test.labels)


def test_an_epoch_does_not_depend_on_the_number_of_workers(tmp_path, monkeypatch):
    dataset = load(write_folders(tmp_path / "set", size=20), image_size=14)
    epochs = []
    for workers in (0, 1, 2):
        monkeypatch.setattr(streaming, "MAX_WORKERS", workers)
        epochs.append(list(Batches(dataset.train, dataset, 4, CPU, augment=True, cutout=3).epoch(seeded(1))))
    for epoch in epochs[1:]:
        for (images, labels), (other, other_labels) in zip(epochs[0], epoch, strict=True):
            assert torch.equal(images, other)
            assert torch.equal(labels, other_labels)


def test_epochs_differ_and_repeat_with_the_generator(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "MAX_WORKERS", 0)
    dataset = load(write_folders(tmp_path / "set", size=20), image_size=14)
    batches = Batches(dataset.train, dataset, 12, CPU, augment=True)
    generator = seeded(3)
    list(batches.epoch(generator))
    state = generator.get_state()
    ((second, _),) = batches.epoch(generator)
    ((third, _),) = batches.epoch(generator)
    generator.set_state(state)
    ((again, _),) = batches.epoch(generator)
    assert torch.equal(second, again)
    assert not torch.equal(second, third)


@pytest.mark.parametrize("workers", [0, 1])
def test_streaming_never_touches_the_global_generator(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(streaming, "MAX_WORKERS", workers)
    before = torch.get_rng_state()
    dataset = load(write_folders(tmp_path / "set"), image_size=8)
    batches = Batches(dataset.train, dataset, 4, CPU, augment=True)
    list(batches.epoch(seeded()))
    list(batches.in_order())
    assert torch.equal(before, torch.get_rng_state())


def test_training_without_augmentation_sees_the_plain_images(tmp_path):
    dataset = load(write_folders(tmp_path / "set", size=20), image_size=14)
    batches = Batches(dataset.train, dataset, 12, CPU, augment=False)
    ((images, labels),) = batches.epoch(seeded())
    ((plain, plain_labels),) = batches.in_order()
    order = torch.randperm(12, generator=seeded())
    assert torch.equal(images, plain[order])
    assert torch.equal(labels, plain_labels[order])


def test_grayscale_images_among_colour_ones_stream_with_three_equal_channels(tmp_path):
    name = write_folders(tmp_path / "set")
    (tmp_path / "set" / "val" / "ant" / "000.png").write_bytes(encode(pixels(1, channels=1)[0]))
    dataset = load(name, image_size=8)
    ((images, _),) = Batches(dataset.test, dataset, 6, CPU, augment=False).in_order()
    first = unnormalised(images, dataset)[0]
    assert torch.equal(first[0], first[1])
    assert torch.equal(first[0], first[2])


def test_a_grayscale_set_streams_with_one_channel(tmp_path):
    dataset = load(write_folders(tmp_path / "set", channels=1), image_size=8)
    ((images, _),) = Batches(dataset.train, dataset, 12, CPU, augment=True).epoch(seeded())
    assert images.shape == (12, 1, 8, 8)


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_a_bad_image_is_named_or_left_out_and_counted(tmp_path, kind):
    if kind == "folder":
        name, where = write_folders(tmp_path / "set"), r"ant/004.png"
        (tmp_path / "set" / "train" / "ant" / "004.png").write_bytes(b"not an image")
    else:
        name, where = write_image_set(tmp_path / "set", 12, 6), r"train.parquet, row 2"
        images = [encode(image) for image in pixels(12)]
        images[2] = None
        write_parquet(tmp_path / "set" / "train.parquet", images, [0, 1] * 6, {"class_names": ["ant", "bee"]})
    dataset = load(name, image_size=8, skip_bad_images=True)
    refusing = dataclasses.replace(dataset.train, skip_bad=False)
    with pytest.raises(ConfigError, match=where) as caught:
        list(Batches(refusing, dataset, 4, CPU, augment=True).epoch(seeded()))
    assert "\n" not in str(caught.value)
    batches = Batches(dataset.train, dataset, 4, CPU, augment=True)
    with pytest.warns(UserWarning, match=f"left out 1 images that cannot be used, the first is .*{where}"):
        seen = list(batches.epoch(seeded()))
    assert sorted(len(labels) for _, labels in seen) == [3, 4, 4]
    assert all(len(images) == len(labels) for images, labels in seen)
    with pytest.warns(UserWarning, match="left out 1 images"):
        labels = torch.cat([labels for _, labels in batches.in_order()])
    assert labels.bincount().tolist() == [5, 6]
