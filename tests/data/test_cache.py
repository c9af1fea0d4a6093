"""Large sets are decoded once, on all cores, by one process; the cache appears whole or not at all, and damage is named."""

import multiprocessing
import time
from pathlib import Path

import pytest
import torch

from images import encode, pixels, write_image_set, write_parquet
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.data import files, in_memory
from pdarts_tune.data.cache import cached_folder, file_digest
from pdarts_tune.data.datasets import load_dataset


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
    first = load_dataset(name)
    assert len(folders(cache)) == 2  # training and test part
    monkeypatch.setattr(in_memory, "decode_rows", None)  # a second decoding would fail
    second = load_dataset(name)
    for part, again in ((first.train, second.train), (first.test, second.test)):
        assert torch.equal(part.images, again.images)
        assert torch.equal(part.labels, again.labels)
    assert torch.equal(first.train.images, torch.from_numpy(pixels(40)).permute(0, 3, 1, 2))


def test_the_cache_is_named_by_content_and_by_what_is_taken(tmp_path, cache):
    name = write_image_set(tmp_path / "images")
    load_dataset(name)
    (tmp_path / "images").rename(tmp_path / "moved")
    load_dataset(f"parquet:{tmp_path}/moved")
    assert len(folders(cache)) == 2
    assert len(load_dataset(f"parquet:{tmp_path}/moved", train_images=10).train) == 10
    assert len(folders(cache)) == 3
    images = [encode(image) for image in pixels(40, seed=7)]
    write_parquet(tmp_path / "moved" / "train.parquet", images, [0, 1] * 20, {"class_names": ["ant", "bee"]})
    changed = load_dataset(f"parquet:{tmp_path}/moved").train.images
    assert torch.equal(changed, torch.from_numpy(pixels(40, seed=7)).permute(0, 3, 1, 2))


def test_writing_to_mapped_images_changes_no_file(tmp_path, cache):
    name = write_image_set(tmp_path / "images")
    dataset = load_dataset(name)
    before = dataset.train.images.clone()
    dataset.train.images.zero_()
    assert torch.equal(load_dataset(name).train.images, before)


def test_processes_give_the_same_pixels_and_errors_as_one(tmp_path, monkeypatch):
    name = write_image_set(tmp_path, train=600, size=4)
    images = [encode(image) for image in pixels(600, 4)]
    images[300] = b"broken"
    write_parquet(tmp_path / "train.parquet", images, [0, 1] * 300, {"class_names": ["ant", "bee"]})
    with pytest.warns(UserWarning, match="left out 1 images"):
        one = load_dataset(name, skip_bad_images=True)
    monkeypatch.setattr(files, "POOL_ABOVE", 0)
    monkeypatch.setattr(files, "core_count", lambda: 2)
    with pytest.warns(UserWarning, match="left out 1 images"):
        several = load_dataset(name, skip_bad_images=True)
    assert torch.equal(one.train.images, several.train.images)
    with pytest.raises(ConfigError, match=r"train.parquet, row 300: not an image"):
        load_dataset(name)


def test_bad_images_are_remembered_with_the_cache(tmp_path, cache):
    name = write_image_set(tmp_path / "images")
    images = [encode(image) for image in pixels(40)]
    images[3] = b"broken"
    write_parquet(tmp_path / "images" / "train.parquet", images, [0, 1] * 20, {"class_names": ["ant", "bee"]})
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"row 3: not an image"):
            load_dataset(name)
        with pytest.warns(UserWarning, match="left out 1 images .*row 3"):
            assert len(load_dataset(name, skip_bad_images=True).train) == 39


def test_a_damaged_cache_is_named(tmp_path, cache):
    name = write_image_set(tmp_path / "images")
    load_dataset(name)
    for folder in folders(cache):
        with (cache / folder / "images.npy").open("r+b") as file:
            file.truncate(200)
    with pytest.raises(ConfigError, match=r"images-[0-9a-f]+: damaged .* delete it and the images are decoded anew"):
        load_dataset(name)


def test_a_build_that_fails_leaves_nothing(cache):
    def build(folder):
        (folder / "half").write_text("a")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        cached_folder("key", build)
    assert folders(cache) == []
    assert cached_folder("key", Path.touch).is_dir()


def test_a_cache_that_cannot_be_written_names_the_variable_to_set(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PDARTS_TUNE_DATA", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"cannot be kept in .*file/cache \(Not a directory\); let PDARTS_TUNE_DATA name"):
        cached_folder("key", Path.touch)


def _build_slowly(built):
    def build(folder):
        time.sleep(0.3)
        built.put(folder.name)

    cached_folder("shared", build)


def test_of_two_processes_one_builds_and_the_other_waits(cache):
    context = multiprocessing.get_context("spawn")
    built = context.Queue()
    processes = [context.Process(target=_build_slowly, args=(built,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert built.get(timeout=5)
    assert built.empty()
    assert folders(cache) == ["shared"]


def test_the_digest_of_a_large_file_is_kept_until_the_file_changes(tmp_path, cache, monkeypatch):
    file = tmp_path / "large"
    file.write_bytes(b"one")
    monkeypatch.setattr("pdarts_tune.data.cache.REMEMBER_ABOVE", 0)
    first = file_digest(file)
    assert file_digest(file) == first
    assert len(folders(cache)) == 1
    file.write_bytes(b"other")
    assert file_digest(file) != first


def test_slow_decoding_shows_a_progress_line_on_stderr_and_fast_decoding_none(tmp_path, capsys, monkeypatch):
    name = write_image_set(tmp_path)
    load_dataset(name)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(files, "PROGRESS_AFTER", 0.0)
    load_dataset(name)
    out, err = capsys.readouterr()
    assert out == ""
    assert "decoding images" in err
