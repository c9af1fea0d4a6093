"""Parquet files and class folders come back pixel for pixel, and what is wrong in them is named by file and row."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from images import check, encode, load, pixels, refuse, write_folders, write_image_set, write_parquet
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.data import files
from pdarts_tune.data.batches import Batches
from pdarts_tune.data.decoding import ImageError
from pdarts_tune.data.files import count_shared


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PDARTS_TUNE_DATA", str(tmp_path / "data"))


def test_parquet_images_come_back_pixel_for_pixel(tmp_path):
    dataset = load(write_image_set(tmp_path))
    assert torch.equal(dataset.train.images, torch.from_numpy(pixels(40, seed=0)).permute(0, 3, 1, 2))
    assert torch.equal(dataset.test.images, torch.from_numpy(pixels(20, seed=1)).permute(0, 3, 1, 2))
    assert torch.equal(dataset.train.labels, torch.arange(40) % 2)
    assert dataset.class_names == ("ant", "bee")
    assert (dataset.in_channels, dataset.image_size, dataset.num_classes) == (3, 8, 2)


def test_grayscale_images_among_colour_ones_get_three_equal_channels(tmp_path):
    name = write_image_set(tmp_path)
    gray = pixels(1, channels=1, seed=5)[0]
    images = [encode(gray)] + [encode(image) for image in pixels(3)]
    write_parquet(tmp_path / "train.parquet", images, [0, 1, 0, 1], {"class_names": ["ant", "bee"]})
    assert check(name).in_channels == 3
    first = load(name).train.images[0]
    assert torch.equal(first, torch.from_numpy(gray).expand(3, -1, -1))


def test_a_set_of_grayscale_images_has_one_channel(tmp_path):
    name = write_image_set(tmp_path, channels=1)
    assert check(name).in_channels == 1
    assert torch.equal(load(name).train.images[:, 0], torch.from_numpy(pixels(40, channels=1)))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP"])
def test_lossless_formats_are_exact(tmp_path, form):
    name = write_image_set(tmp_path)
    images = [encode(image, form) for image in pixels(4)]
    write_parquet(tmp_path / "train.parquet", images, [0, 1] * 2, {"class_names": ["ant", "bee"]})
    assert torch.equal(load(name).train.images, torch.from_numpy(pixels(4)).permute(0, 3, 1, 2))


def test_only_the_selected_images_are_decoded(tmp_path):
    name = write_image_set(tmp_path)
    images = [encode(image) for image in pixels(10)] + [b"broken"] * 10
    write_parquet(tmp_path / "train.parquet", images, [0, 1] * 10, {"class_names": ["ant", "bee"]})
    assert len(load(name, train_images=10).train) == 10
    with pytest.raises(ConfigError, match="row 10: not an image"):
        load(name, train_images=11)


def float_image():
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


def damaged(form):
    """An image whose header is whole."""
    buffer = io.BytesIO()
    Image.fromarray(pixels(1)[0]).save(buffer, form)
    content = bytearray(buffer.getvalue())
    if form == "DDS":
        content[80:88] = b"\4\0\0\0DX11"  # a pixel format that nobody knows
    return bytes(content[:-40])


@pytest.mark.parametrize("dtype", [">u2", "<u2"])
def test_of_images_of_16_bits_the_upper_8_are_read(tmp_path, dtype):
    gray = pixels(4, channels=1)
    low = np.random.default_rng(1).integers(0, 256, gray.shape)
    deep = (gray.astype(np.int64) * 256 + low).astype(dtype)
    name = write_image_set(tmp_path, channels=1)
    write_parquet(
        tmp_path / "train.parquet", [encode(image, "TIFF") for image in deep], [0, 1] * 2, {"class_names": ["ant", "bee"]}
    )
    assert check(name).in_channels == 1
    assert torch.equal(load(name).train.images[:, 0], torch.from_numpy(gray))


def test_a_row_group_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_BATCH_BYTES", 1000)  # three images or so
    name = write_image_set(tmp_path)
    write_parquet(tmp_path / "train.parquet", [encode(image) for image in pixels(40)], [0, 1] * 20, {"class_names": ["ant", "bee"]})
    assert torch.equal(load(name).train.images, torch.from_numpy(pixels(40)).permute(0, 3, 1, 2))
    some = load(name, train_images=7).train
    assert torch.equal(some.images, torch.from_numpy(pixels(40)[:7]).permute(0, 3, 1, 2))


@pytest.mark.parametrize("image_size", [None, 8])
def test_a_broken_link_is_a_bad_image_like_any_other(tmp_path, image_size):
    name = write_folders(tmp_path)
    (tmp_path / "train" / "bee" / "l.png").symlink_to("/nowhere/x.png")

    def read(**settings):
        dataset = load(name, image_size=image_size, **settings)
        return list(Batches(dataset.train, dataset, 4, torch.device("cpu"), augment=False).in_order())

    with pytest.raises(ConfigError, match=r"train/bee/l.png: cannot be read \(No such file or directory\)$"):
        read()
    with pytest.warns(UserWarning, match=r"left out 1 images that cannot be used, the first is .*bee/l.png: cannot be read"):
        assert sum(len(labels) for _, labels in read(skip_bad_images=True)) == 12


def test_the_size_of_most_images_is_that_of_the_set(tmp_path):
    name = write_folders(tmp_path)
    for file in ("000", "002"):
        (tmp_path / "train" / "ant" / f"{file}.png").write_bytes(encode(pixels(1, 16)[0]))
    refuse(name, r"ant/000.png: the image is 16x16 pixels, all must be square and of one size \(8x8\)")
    assert check(name, skip_bad_images=True).image_size == 8
    with pytest.warns(UserWarning, match="left out 2 images"):
        assert len(load(name, skip_bad_images=True).train) == 10


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"not an image", r"row 2: not an image that can be read \(12 bytes\)"),
        (None, "row 2: the image is missing"),
        (encode(pixels(1)[0])[:-60], "row 2: the image is damaged"),
        (encode(pixels(1, 9)[0]), r"row 2: the image is 9x9 pixels, all must be square and of one size \(8x8\)"),
        (float_image(), r"row 2: the image has more than 16 bits a channel \(mode F\), needs 8 or 16"),
        (damaged("AVIF"), "row 2: (the image is damaged|not an image)"),
        (damaged("DDS"), "row 2: (the image is damaged|not an image)"),
    ],
)
def test_images_that_cannot_be_used_are_named_by_row(tmp_path, image, words):
    name = write_image_set(tmp_path)
    images = [encode(image) for image in pixels(4)]
    images[2] = image
    write_parquet(tmp_path / "train.parquet", images, [0, 1] * 2, {"class_names": ["ant", "bee"]})
    with pytest.raises(ConfigError, match=f"train.parquet, {words}"):
        load(name)


def test_the_check_already_refuses_a_first_image_that_cannot_be_used(tmp_path):
    name = write_image_set(tmp_path)
    images = [encode(pixels(1)[0][:, :6]), encode(pixels(1)[0])]
    write_parquet(tmp_path / "train.parquet", images, [0, 1], {"class_names": ["ant", "bee"]})
    refuse(name, r"row 0: the image is 6x8 pixels, all must be square")
    images[0] = images[1][:100]
    write_parquet(tmp_path / "train.parquet", images, [0, 1], {"class_names": ["ant", "bee"]})
    refuse(name, "row 0: the image is damaged")


def test_images_that_cannot_be_used_are_named_by_file(tmp_path):
    name = write_folders(tmp_path)
    (tmp_path / "train" / "ant" / "000.png").write_bytes(b"not an image")
    refuse(name, r"train/ant/000.png: not an image that can be read \(12 bytes\)")
    write_folders(tmp_path)
    (tmp_path / "train" / "bee" / "003.png").write_bytes(encode(pixels(1, 9)[0]))
    with pytest.raises(ConfigError, match=r"bee/003.png: the image is 9x9 pixels, .*\(8x8\) unless an image_size is given"):
        load(name)


def test_bad_images_are_left_out_and_counted_on_request(tmp_path):
    name = write_folders(tmp_path)
    whole = load(name)
    (tmp_path / "train" / "ant" / "002.png").write_bytes(b"not an image")
    (tmp_path / "train" / "bee" / "003.png").write_bytes(encode(pixels(1)[0])[:-60])
    with pytest.raises(ConfigError, match=r"ant/002.png: not an image .*; so are 1 others"):
        load(name)
    with pytest.warns(UserWarning, match=r"left out 2 images that cannot be used, the first is .*ant/002.png: not an image"):
        dataset = load(name, skip_bad_images=True)
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
        load(name, skip_bad_images=True)


def test_an_image_size_makes_images_of_any_shape_one_size(tmp_path):
    name = write_folders(tmp_path)
    tall = np.random.default_rng(0).integers(0, 256, (30, 12, 3), dtype=np.uint8)
    (tmp_path / "train" / "ant" / "000.png").write_bytes(encode(tall))
    refuse(name, r"000.png: the image is 12x30 pixels, all must be square")
    dataset = load(name, image_size=8)
    ((images, _),) = Batches(dataset.train, dataset, 12, torch.device("cpu"), augment=False).in_order()
    assert images.shape == (12, 3, 8, 8)


@pytest.mark.parametrize("image_size", [None, 8])
def test_bad_images_may_come_first_and_are_listed_unless_all_are(tmp_path, image_size):
    name = write_folders(tmp_path / "set", size=8)
    files = sorted((tmp_path / "set" / "train").rglob("*.png"))
    files[0].write_bytes(files[0].read_bytes()[:60])
    with pytest.raises(ConfigError, match=r"000\.png: the image is damaged"):
        check(name, image_size=image_size)
    assert check(name, image_size=image_size, skip_bad_images=True).image_size == 8

    def read():
        dataset = load(name, image_size=image_size, skip_bad_images=True)
        list(Batches(dataset.train, dataset, 4, torch.device("cpu"), augment=False).in_order())
        return dataset

    with pytest.warns(UserWarning, match="left out 1 images"):
        dataset = read()
    (line,) = dataset.left_out
    assert line.startswith(str(files[0]))
    for file in files:
        file.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"000\.png: like all other images of the set it cannot be used"):
        check(name, image_size=image_size, skip_bad_images=True)


def test_test_images_that_are_training_files_are_counted(tmp_path):
    name = write_folders(tmp_path / "set")
    for file in ("000.png", "002.png"):
        (tmp_path / "set" / "val" / "ant" / file).write_bytes((tmp_path / "set" / "train" / "ant" / file).read_bytes())
    with pytest.warns(UserWarning, match=f"2 of {name}'s test images are among its training images too"):
        load(name, image_size=8)
    with pytest.warns(UserWarning, match="2 of"):
        load(name)


def test_files_of_equal_length_and_ending_are_not_taken_for_the_same(tmp_path):
    name = write_folders(tmp_path / "set", size=40, form="BMP")
    train, test = (tmp_path / "set" / part / "ant" / "000.bmp" for part in ("train", "val"))
    content = bytearray(train.read_bytes())
    content[100] ^= 1
    test.write_bytes(content)
    dataset = load(name, image_size=8)
    assert count_shared(dataset.train.source, dataset.test.source) == 0


def test_images_that_cannot_be_read_are_not_taken_for_the_same(tmp_path, monkeypatch):
    dataset = load(write_folders(tmp_path / "set", form="BMP"), image_size=8)

    def deny(path, offset, length):
        raise ImageError("cannot be read (Permission denied)")

    monkeypatch.setattr(files, "read_range", deny)
    assert count_shared(dataset.train.source, dataset.test.source) == 0


def test_parquet_is_unpacked_once_and_a_damaged_copy_is_named(tmp_path):
    name = write_image_set(tmp_path / "set")
    first, second = load(name, image_size=8), load(name, image_size=8)
    assert first.train.source.file == second.train.source.file
    np.save(first.train.source.file.with_name("offsets.npy"), np.arange(3))
    with pytest.raises(ConfigError, match=r"encoded-[0-9a-f]+: damaged, delete it and the images are unpacked anew"):
        load(name, image_size=8)
