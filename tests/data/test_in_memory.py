"""Large sets are decoded once, on all cores, by one process; damage to the cache is named."""

import pytest
import torch

from images import check, encode, load, pixels, refuse, write_folders, write_image_set, write_parquet
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.data import decoding, in_memory


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Every set counts as large; the cache is an empty folder of this test."""
    monkeypatch.setenv("PDARTS_TUNE_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(in_memory, "POOL_ABOVE", 0)
    return tmp_path / "data" / "cache"


def folders(cache):
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def test_a_set_is_decoded_once_and_mapped_after_that(tmp_path, cache, monkeypatch):
    name = write_image_set(tmp_path / "images")
    first = load(name)
    assert len(folders(cache)) == 2  # training and test part
    monkeypatch.setattr(in_memory, "decode_all", None)  # a second decoding would fail
    second = load(name)
    for part, again in ((first.train, second.train), (first.test, second.test)):
        assert torch.equal(part.images, again.images)
        assert torch.equal(part.labels, again.labels)
    assert torch.equal(first.train.images, torch.from_numpy(pixels(40)).permute(0, 3, 1, 2))


def test_the_cache_is_named_by_content_and_by_what_is_taken(tmp_path, cache):
    name = write_image_set(tmp_path / "images")
    load(name)
    (tmp_path / "images").rename(tmp_path / "moved")
    load(f"parquet:{tmp_path}/moved")
    assert len(folders(cache)) == 2
    assert len(load(f"parquet:{tmp_path}/moved", train_images=10).train) == 10
    assert len(folders(cache)) == 3
    images = [encode(image) for image in pixels(40, seed=7)]
    write_parquet(tmp_path / "moved" / "train.parquet", images, [0, 1] * 20, {"class_names": ["ant", "bee"]})
    changed = load(f"parquet:{tmp_path}/moved").train.images
    assert torch.equal(changed, torch.from_numpy(pixels(40, seed=7)).permute(0, 3, 1, 2))


def test_writing_to_mapped_images_changes_no_file(tmp_path, cache):
    name = write_image_set(tmp_path / "images")
    dataset = load(name)
    before = dataset.train.images.clone()
    dataset.train.images.zero_()
    assert torch.equal(load(name).train.images, before)


def test_processes_give_the_same_pixels_and_errors_as_one(tmp_path, monkeypatch):
    name = write_image_set(tmp_path, train=600, size=4)
    images = [encode(image) for image in pixels(600, 4)]
    images[300] = b"broken"
    write_parquet(tmp_path / "train.parquet", images, [0, 1] * 300, {"class_names": ["ant", "bee"]})
    with pytest.warns(UserWarning, match="left out 1 images"):
        one = load(name, skip_bad_images=True)
    monkeypatch.setattr(decoding, "POOL_ABOVE", 0)
    monkeypatch.setattr(decoding, "core_count", lambda: 2)
    with pytest.warns(UserWarning, match="left out 1 images"):
        several = load(name, skip_bad_images=True)
    assert torch.equal(one.train.images, several.train.images)
    with pytest.raises(ConfigError, match=r"train.parquet, row 300: not an image"):
        load(name)


def test_bad_images_are_remembered_with_the_cache(tmp_path, cache):
    name = write_image_set(tmp_path / "images")
    images = [encode(image) for image in pixels(40)]
    images[3] = b"broken"
    write_parquet(tmp_path / "images" / "train.parquet", images, [0, 1] * 20, {"class_names": ["ant", "bee"]})
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"row 3: not an image"):
            load(name)
        with pytest.warns(UserWarning, match="left out 1 images .*row 3"):
            assert len(load(name, skip_bad_images=True).train) == 39


def test_a_damaged_cache_is_named(tmp_path, cache):
    name = write_image_set(tmp_path / "images")
    load(name)
    for folder in folders(cache):
        with (cache / folder / "images.npy").open("r+b") as file:
            file.truncate(200)
    with pytest.raises(ConfigError, match=r"images-[0-9a-f]+: damaged .* delete it and the images are decoded anew"):
        load(name)


def test_slow_decoding_shows_a_progress_line_on_stderr_and_fast_decoding_none(tmp_path, capsys, monkeypatch):
    name = write_image_set(tmp_path)
    load(name)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(decoding, "PROGRESS_AFTER", 0.0)
    load(name)
    out, err = capsys.readouterr()
    assert out == ""
    assert "decoding images" in err


def test_a_set_that_is_too_large_for_a_device_is_told_to_stream(tmp_path, monkeypatch):
    name = write_folders(tmp_path)
    monkeypatch.setattr("pdarts_tune.data.in_memory.MEMORY_LIMIT", 12 * 3 * 64 - 1)
    refuse(name, r"12 images of 8 pixels decode to 0.0 GiB, more than .* give an image_size, so that they stream")
    assert len(load(name, train_images=10).train) == 10
    assert len(load(name, image_size=8).train) == 12


def test_squares_of_pixels_become_their_rounded_mean_once(tmp_path, cache, monkeypatch):
    name = write_image_set(tmp_path / "images", size=8)
    whole, halved = load(name), load(name, downsample=2)
    means = whole.train.images.double().view(40, 3, 4, 2, 4, 2).mean(dim=(3, 5))
    assert halved.train.images.shape == (40, 3, 4, 4)
    assert halved.train.images.dtype == torch.uint8
    assert (halved.train.images - means).abs().max() <= 0.5
    assert torch.equal(halved.train.labels, whole.train.labels)
    assert torch.equal(halved.test.images, load(name, downsample=2).test.images)
    assert (halved.image_size, check(name, downsample=2).image_size, halved.pad) == (4, 4, 0)
    assert len(folders(cache)) == 4  # decoded and averaged, training and test part
    monkeypatch.setattr(in_memory.functional, "avg_pool2d", None)  # a second averaging would fail
    assert torch.equal(load(name, downsample=2).train.images, halved.train.images)


def test_a_square_that_does_not_divide_the_images_or_a_stream_is_refused(tmp_path):
    name = write_image_set(tmp_path / "images", size=8)
    refuse(name, f"downsample: 3 does not divide the 8 pixels of {name}'s images", downsample=3)
    refuse(
        name,
        r"downsample: images with an image_size \(8\) stream and are cropped to it, leave one of the two",
        downsample=2,
        image_size=8,
    )
    refuse("digits", "downsample: 16 does not divide the 8 pixels of digits's images", downsample=16)
