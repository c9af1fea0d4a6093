"""Parquet files and class folders come back pixel for pixel, and what is wrong in them is named by file and row."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from images import check, encode, load, pixels, refuse, write_folders, write_image_set, write_parquet
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.data.batches import Batches
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


def test_plain_bytes_columns_and_val_parquet_are_read_too(tmp_path):
    name = write_image_set(tmp_path, test_name="val.parquet")
    write_parquet(tmp_path / "train.parquet", [encode(image) for image in pixels(40)], [0, 1] * 20, plain=True)
    dataset = load(name)
    assert torch.equal(dataset.train.images, torch.from_numpy(pixels(40)).permute(0, 3, 1, 2))
    assert len(dataset.test) == 20
    assert dataset.class_names == ("ant", "bee")  # from the other file


def test_class_names_come_from_hugging_face_metadata_or_are_numbers(tmp_path):
    images = {
        file: [encode(image) for image in pixels(4, seed=seed)] for seed, file in enumerate(("train.parquet", "test.parquet"))
    }
    label = {"names": ["cat", "dog"], "_type": "ClassLabel"}
    metadata = {"huggingface": {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}}
    for file in images:
        write_parquet(tmp_path / file, images[file], [0, 1, 1, 0], metadata)
    assert load(f"parquet:{tmp_path}").class_names == ("cat", "dog")
    for file in images:
        write_parquet(tmp_path / file, images[file], [0, 1, 2, 0])
    assert load(f"parquet:{tmp_path}").class_names == ("0", "1", "2")


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


def test_missing_folders_and_files_say_what_was_looked_for(tmp_path):
    refuse(f"parquet:{tmp_path}/nowhere", r"nowhere is not a folder; parquet:PATH needs one that holds train.parquet")
    refuse(f"parquet:{tmp_path}", r"has no train.parquet; it holds nothing")
    name = write_image_set(tmp_path)
    (tmp_path / "test.parquet").rename(tmp_path / "validation.parquet")
    refuse(name, r"has no test.parquet or val.parquet; it holds train.parquet, validation.parquet")


def test_files_that_are_not_parquet_are_named(tmp_path):
    name = write_image_set(tmp_path)
    (tmp_path / "test.parquet").write_bytes(b"PAR1 but not really")
    refuse(name, r"test.parquet: cannot be read as Parquet")
    shutil.copy(tmp_path / "train.parquet", tmp_path / "test.parquet")
    with (tmp_path / "test.parquet").open("r+b") as file:
        file.truncate(200)
    refuse(name, r"test.parquet: cannot be read as Parquet")


def test_missing_columns_say_which_there_are(tmp_path):
    name = write_image_set(tmp_path)
    pq.write_table(pa.table({"img": [b"x"], "fine_label": [1]}), tmp_path / "train.parquet")
    refuse(name, r"train.parquet: no column 'image', it has img, fine_label")
    pq.write_table(pa.table({"image": [b"x"], "fine_label": [1]}), tmp_path / "train.parquet")
    refuse(name, r"train.parquet: no column 'label', it has image, fine_label")
    pq.write_table(pa.table({"image": ["x"], "label": [1]}), tmp_path / "train.parquet")
    refuse(name, r"train.parquet: column 'image' is string, needs encoded images")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1, -1, 1], "row 2: label -1 is negative"),
        ([0, 1, 1, 7], "row 3: label 7 is out of range, there are 2 classes"),
        (["0", "1", "0", "1"], "row 0: label '0' is not an integer"),
        ([0.0, 1.0, 0.5, 1.0], "row 0: label 0.0 is not an integer"),
        ([0, None, 1, 1], "row 1: the label is missing"),
        ([0, 0, 0, 0], r"class 1 \(bee\) has no image"),
        (pa.array([], pa.int64()), "has no rows"),
    ],
)
def test_labels_that_cannot_be_used_are_named_by_row(tmp_path, labels, words):
    name = write_image_set(tmp_path)
    for file in ("train.parquet", "test.parquet"):
        whole = (tmp_path / file).read_bytes()
        images = [encode(image) for image in pixels(len(labels))]
        write_parquet(tmp_path / file, images, labels, {"class_names": ["ant", "bee"]})
        refuse(name, f"{file}.*{words}")
        (tmp_path / file).write_bytes(whole)


def test_class_names_that_disagree_or_cannot_be_read_are_refused(tmp_path):
    name = write_image_set(tmp_path)
    images = [encode(image) for image in pixels(4)]
    write_parquet(tmp_path / "test.parquet", images, [0, 1] * 2, {"class_names": ["bee", "ant"]})
    refuse(name, r"test.parquet: its class names are not those of .*train.parquet")
    write_parquet(tmp_path / "test.parquet", images, [0, 1] * 2, {"class_names": {"ant": 0}})
    refuse(name, r"test.parquet: the class names in its metadata must be a list")
    write_parquet(tmp_path / "test.parquet", images, [0, 1] * 2, {"huggingface": []})
    refuse(name, r"test.parquet: the class names in its metadata cannot be read")


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"not an image", r"row 2: not an image that can be read \(12 bytes\)"),
        (None, "row 2: the image is missing"),
        (encode(pixels(1)[0])[:-60], "row 2: the image is damaged"),
        (encode(pixels(1, 9)[0]), r"row 2: the image is 9x9 pixels, all must be square and of one size \(8x8\)"),
        (encode(np.zeros((8, 8), np.uint16)), "row 2: the image has more than 8 bits a channel"),
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


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("test_name", ["val", "test"])
def test_folders_come_back_pixel_for_pixel_with_their_classes(tmp_path, channels, test_name):
    dataset = load(write_folders(tmp_path, channels=channels, test_name=test_name))
    images = torch.from_numpy(pixels(12, channels=channels).reshape(12, 8, 8, channels)).permute(0, 3, 1, 2)
    assert torch.equal(dataset.train.images, torch.cat((images[::2], images[1::2])))  # sorted by class
    assert dataset.train.labels.tolist() == [0] * 6 + [1] * 6
    assert dataset.class_names == ("ant", "bee")
    assert dataset.in_channels == channels
    assert len(dataset.test) == 6


@pytest.mark.parametrize(("content", "flips"), [(None, True), ({"mirror": True}, True), ({"mirror": False}, False)])
def test_a_set_can_say_that_it_must_not_be_mirrored(tmp_path, content, flips):
    name = write_folders(tmp_path)
    if content is not None:
        (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert load(name).flip is flips


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


def test_parquet_is_unpacked_once_and_a_damaged_copy_is_named(tmp_path):
    name = write_image_set(tmp_path / "set")
    first, second = load(name, image_size=8), load(name, image_size=8)
    assert first.train.source.file == second.train.source.file
    np.save(first.train.source.file.with_name("offsets.npy"), np.arange(3))
    with pytest.raises(ConfigError, match=r"encoded-[0-9a-f]+: damaged, delete it and the images are unpacked anew"):
        load(name, image_size=8)
