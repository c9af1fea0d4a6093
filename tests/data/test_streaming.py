"""Sets that stream: the same interface and the same bits whatever the workers, random crops to train, plain ones to test."""

import dataclasses

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from images import encode, pixels, write_folders, write_image_set, write_parquet
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.data import streaming
from pdarts_tune.data.batches import Batches, split_train
from pdarts_tune.data.datasets import check_dataset, load_dataset
from pdarts_tune.data.files import count_shared

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PDARTS_TUNE_DATA", str(tmp_path / "data"))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def unnormalised(images, dataset):
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (dataset.mean, dataset.std))
    return ((images * std + mean) * 255).round().to(torch.uint8)


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_test_images_are_resized_and_cropped_at_the_centre_in_file_order(tmp_path, kind):
    name = write_folders(tmp_path / "set", size=20) if kind == "folder" else write_image_set(tmp_path / "set", 12, 6, 20)
    dataset = load_dataset(name, image_size=14)
    seen = list(Batches(dataset.test, dataset, 4, CPU, augment=False).in_order())
    assert [len(labels) for _, labels in seen] == [4, 2]
    images = torch.from_numpy(pixels(6, 20, seed=1)).permute(0, 3, 1, 2)
    if kind == "folder":
        images = torch.cat((images[::2], images[1::2]))
    expected = torch.stack([v2.functional.center_crop(v2.functional.resize(image, [16]), [14]) for image in images])
    assert torch.equal(unnormalised(torch.cat([batch for batch, _ in seen]), dataset), expected)
    assert torch.equal(torch.cat([labels for _, labels in seen]), dataset.test.labels)


def test_an_epoch_does_not_depend_on_the_number_of_workers(tmp_path, monkeypatch):
    dataset = load_dataset(write_folders(tmp_path / "set", size=20), image_size=14)
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
    dataset = load_dataset(write_folders(tmp_path / "set", size=20), image_size=14)
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
    dataset = load_dataset(write_folders(tmp_path / "set"), image_size=8)
    batches = Batches(dataset.train, dataset, 4, CPU, augment=True)
    list(batches.epoch(seeded()))
    list(batches.in_order())
    assert torch.equal(before, torch.get_rng_state())


def test_training_without_augmentation_sees_the_plain_images(tmp_path):
    dataset = load_dataset(write_folders(tmp_path / "set", size=20), image_size=14)
    batches = Batches(dataset.train, dataset, 12, CPU, augment=False)
    ((images, labels),) = batches.epoch(seeded())
    ((plain, plain_labels),) = batches.in_order()
    order = torch.randperm(12, generator=seeded())
    assert torch.equal(images, plain[order])
    assert torch.equal(labels, plain_labels[order])


def test_splits_of_a_set_that_streams_are_those_of_one_that_does_not(tmp_path):
    name = write_image_set(tmp_path / "set")
    resident, streamed = load_dataset(name), load_dataset(name, image_size=8)
    splits = [split_train(dataset.train, 1, 0.2) for dataset in (resident, streamed)]
    for purpose in ("weights", "alphas", "validation"):
        first, second = (getattr(split, purpose) for split in splits)
        assert torch.equal(first.labels, second.labels)
    whole = splits[1].weights.joined(splits[1].alphas).joined(splits[1].validation)
    assert sorted(whole.rows.tolist()) == list(range(40))


def test_grayscale_images_among_colour_ones_stream_with_three_equal_channels(tmp_path):
    name = write_folders(tmp_path / "set")
    (tmp_path / "set" / "val" / "ant" / "000.png").write_bytes(encode(pixels(1, channels=1)[0]))
    dataset = load_dataset(name, image_size=8)
    ((images, _),) = Batches(dataset.test, dataset, 6, CPU, augment=False).in_order()
    first = unnormalised(images, dataset)[0]
    assert torch.equal(first[0], first[1])
    assert torch.equal(first[0], first[2])


def test_a_grayscale_set_streams_with_one_channel(tmp_path):
    dataset = load_dataset(write_folders(tmp_path / "set", channels=1), image_size=8)
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
    dataset = load_dataset(name, image_size=8, skip_bad_images=True)
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


@pytest.mark.parametrize("image_size", [None, 8])
def test_bad_images_may_come_first_and_are_listed_unless_all_are(tmp_path, image_size):
    name = write_folders(tmp_path / "set", size=8)
    files = sorted((tmp_path / "set" / "train").rglob("*.png"))
    files[0].write_bytes(files[0].read_bytes()[:60])
    with pytest.raises(ConfigError, match=r"000\.png: the image is damaged"):
        check_dataset(name, image_size=image_size)
    assert check_dataset(name, image_size=image_size, skip_bad_images=True).image_size == 8

    def read():
        dataset = load_dataset(name, image_size=image_size, skip_bad_images=True)
        list(Batches(dataset.train, dataset, 4, CPU, augment=False).in_order())
        return dataset

    with pytest.warns(UserWarning, match="left out 1 images"):
        dataset = read()
    (line,) = dataset.left_out
    assert line.startswith(str(files[0]))
    for file in files:
        file.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"000\.png: like all other images of the set it cannot be used"):
        check_dataset(name, image_size=image_size, skip_bad_images=True)


def test_test_images_that_are_training_files_are_counted(tmp_path):
    name = write_folders(tmp_path / "set")
    for file in ("000.png", "002.png"):
        (tmp_path / "set" / "val" / "ant" / file).write_bytes((tmp_path / "set" / "train" / "ant" / file).read_bytes())
    with pytest.warns(UserWarning, match=f"2 of {name}'s test images are among its training images too"):
        load_dataset(name, image_size=8)
    with pytest.warns(UserWarning, match="2 of"):
        load_dataset(name)


def test_files_of_equal_length_and_ending_are_not_taken_for_the_same(tmp_path):
    name = write_folders(tmp_path / "set", size=40, form="BMP")
    train, test = (tmp_path / "set" / part / "ant" / "000.bmp" for part in ("train", "val"))
    content = bytearray(train.read_bytes())
    content[100] ^= 1
    test.write_bytes(content)
    dataset = load_dataset(name, image_size=8)
    assert count_shared(dataset.train.source, dataset.test.source) == 0


@pytest.mark.parametrize("write", [write_folders, write_image_set])
def test_colour_images_that_stream_are_normalised_as_imagenet_s_whatever_the_set(tmp_path, write):
    dataset = load_dataset(write(tmp_path / "set", size=20), image_size=14)
    assert (dataset.mean, dataset.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_mean_and_std_of_a_grayscale_set_that_streams_are_those_of_its_test_crops(tmp_path):
    dataset = load_dataset(write_folders(tmp_path / "set", size=20, channels=1), image_size=14)
    ((images, _),) = Batches(dataset.train, dataset, 12, CPU, augment=False).in_order()
    assert abs(images.mean().item()) < 1e-5
    assert abs(images.std(correction=0).item() - 1) < 1e-5


def test_parquet_is_unpacked_once_and_a_damaged_copy_is_named(tmp_path):
    name = write_image_set(tmp_path / "set")
    first, second = load_dataset(name, image_size=8), load_dataset(name, image_size=8)
    assert first.train.source.file == second.train.source.file
    np.save(first.train.source.file.with_name("offsets.npy"), np.arange(3))
    with pytest.raises(ConfigError, match=r"encoded-[0-9a-f]+: damaged, delete it and the images are unpacked anew"):
        load_dataset(name, image_size=8)
