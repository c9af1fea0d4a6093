"""Data sets are read whole and exactly, splits are fair and repeat, batches see each image once, and bad input is named."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from images import encode, pixels, write_folders, write_image_set, write_parquet
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.data.batches import Batches, Dataset, cutout, flip, shift, split_train
from pdarts_tune.data.datasets import DatasetInfo, check_dataset, find_family, load_dataset
from pdarts_tune.data.in_memory import ImageSet

CPU = torch.device("cpu")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def numbered(count, classes=2, size=8, channels=1):
    """An image set whose image i is filled with the value i."""
    values = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)
    return ImageSet(values.expand(-1, channels, size, size).contiguous(), torch.arange(count) % classes)


def plain_dataset(images, flips=True):
    """Normalisation that changes nothing but the range: [0, 255] to [0, 1]."""
    channels = images.images.shape[1]
    return Dataset("numbered", images, images, ("a", "b"), (0.0,) * channels, (1.0,) * channels, flips)


def rows_of(batches):
    """Which images of a `numbered` set a run of batches holds, in order."""
    return [round(value * 255) for images, _ in batches for value in images.amax(dim=(1, 2, 3)).tolist()]


# Loading


def test_digits_are_the_real_scans_in_the_full_range():
    from sklearn.datasets import load_digits

    dataset = load_dataset("digits")
    scans = torch.cat((dataset.train.images, dataset.test.images))
    assert scans.shape == (1797, 1, 8, 8)
    assert scans.dtype == torch.uint8
    original = torch.from_numpy(load_digits().images)
    assert torch.equal(scans.double().mul(16 / 255).round().sum(dim=0)[0], original.sum(dim=0))
    assert (int(scans.min()), int(scans.max())) == (0, 255)
    assert (dataset.in_channels, dataset.image_size, dataset.num_classes, dataset.pad, dataset.flip) == (1, 8, 10, 1, False)


def test_the_test_part_of_digits_is_a_fifth_drawn_by_the_split_seed():
    first, again, other = (load_dataset("digits", seed) for seed in (1, 1, 2))
    assert torch.equal(first.test.images, again.test.images)
    assert not torch.equal(first.test.images, other.test.images)
    assert len(first.test) == 359
    shares = first.test.labels.bincount() / (first.test.labels.bincount() + first.train.labels.bincount())
    assert shares.min() > 0.19
    assert shares.max() < 0.21


def test_no_digit_is_in_both_the_training_and_the_test_part():
    dataset = load_dataset("digits")
    train, test = ({image.numpy().tobytes() for image in part.images} for part in (dataset.train, dataset.test))
    assert not train & test


def test_parquet_images_come_back_pixel_for_pixel(tmp_path):
    dataset = load_dataset(write_image_set(tmp_path))
    assert torch.equal(dataset.train.images, torch.from_numpy(pixels(40, seed=0)).permute(0, 3, 1, 2))
    assert torch.equal(dataset.test.images, torch.from_numpy(pixels(20, seed=1)).permute(0, 3, 1, 2))
    assert torch.equal(dataset.train.labels, torch.arange(40) % 2)
    assert dataset.class_names == ("ant", "bee")
    assert (dataset.in_channels, dataset.image_size, dataset.num_classes) == (3, 8, 2)


def test_mean_and_std_are_those_of_the_training_images(tmp_path):
    dataset = load_dataset(write_image_set(tmp_path))
    scaled = pixels(40).astype(np.float64) / 255
    np.testing.assert_allclose(dataset.mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, scaled.std(axis=(0, 1, 2)), rtol=1e-12)


def test_plain_bytes_columns_and_val_parquet_are_read_too(tmp_path):
    name = write_image_set(tmp_path, test_name="val.parquet")
    write_parquet(tmp_path / "train.parquet", [encode(image) for image in pixels(40)], [0, 1] * 20, plain=True)
    dataset = load_dataset(name)
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
    assert load_dataset(f"parquet:{tmp_path}").class_names == ("cat", "dog")
    for file in images:
        write_parquet(tmp_path / file, images[file], [0, 1, 2, 0])
    assert load_dataset(f"parquet:{tmp_path}").class_names == ("0", "1", "2")


def test_grayscale_images_among_colour_ones_get_three_equal_channels(tmp_path):
    name = write_image_set(tmp_path)
    gray = pixels(1, channels=1, seed=5)[0]
    images = [encode(gray)] + [encode(image) for image in pixels(3)]
    write_parquet(tmp_path / "train.parquet", images, [0, 1, 0, 1], {"class_names": ["ant", "bee"]})
    assert check_dataset(name).in_channels == 3
    first = load_dataset(name).train.images[0]
    assert torch.equal(first, torch.from_numpy(gray).expand(3, -1, -1))


def test_a_set_of_grayscale_images_has_one_channel(tmp_path):
    name = write_image_set(tmp_path, channels=1)
    assert check_dataset(name).in_channels == 1
    assert torch.equal(load_dataset(name).train.images[:, 0], torch.from_numpy(pixels(40, channels=1)))


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP"])
def test_lossless_formats_are_exact(tmp_path, form):
    name = write_image_set(tmp_path)
    images = [encode(image, form) for image in pixels(4)]
    write_parquet(tmp_path / "train.parquet", images, [0, 1] * 2, {"class_names": ["ant", "bee"]})
    assert torch.equal(load_dataset(name).train.images, torch.from_numpy(pixels(4)).permute(0, 3, 1, 2))


def test_a_set_behaves_alike_whatever_its_row_groups_and_threads(tmp_path):
    name = write_image_set(tmp_path, train=300, size=4)
    whole = load_dataset(name).train
    write_parquet(
        tmp_path / "train.parquet", [encode(i) for i in pixels(300, 4)], whole.labels.tolist(), {"class_names": ["ant", "bee"]}
    )
    assert torch.equal(load_dataset(name).train.images, whole.images)


@pytest.mark.parametrize("count", [1, 2, 7, 10, 39, 40])
def test_a_smaller_set_has_the_first_images_of_each_class_in_equal_numbers(tmp_path, count):
    name = write_image_set(tmp_path)
    labels = [0] * 30 + [1] * 10  # sorted and unequal: the worst case for a plain prefix
    write_parquet(tmp_path / "train.parquet", [encode(i) for i in pixels(40)], labels, {"class_names": ["ant", "bee"]})
    train = load_dataset(name, train_images=count).train
    ants = count - min(count // 2, 10)
    assert train.labels.tolist() == [0] * ants + [1] * (count - ants)
    expected = pixels(40)[[*range(ants), *range(30, 30 + count - ants)]]
    assert torch.equal(train.images, torch.from_numpy(expected).permute(0, 3, 1, 2))


def test_a_smaller_set_of_digits_is_balanced_and_stays_within_its_part():
    whole = load_dataset("digits", 3)
    small = load_dataset("digits", 3, train_images=100, test_images=50)
    assert small.train.labels.bincount().tolist() == [10] * 10
    assert small.test.labels.bincount().tolist() == [5] * 10
    assert {i.numpy().tobytes() for i in small.test.images} <= {i.numpy().tobytes() for i in whole.test.images}


def test_only_the_selected_images_are_decoded(tmp_path):
    name = write_image_set(tmp_path)
    images = [encode(image) for image in pixels(10)] + [b"broken"] * 10
    write_parquet(tmp_path / "train.parquet", images, [0, 1] * 10, {"class_names": ["ant", "bee"]})
    assert len(load_dataset(name, train_images=10).train) == 10
    with pytest.raises(ConfigError, match="row 10: not an image"):
        load_dataset(name, train_images=11)


@pytest.mark.parametrize("folder", [None, "images"])
def test_the_check_tells_what_loading_gives(tmp_path, folder):
    name = "digits" if folder is None else write_image_set(tmp_path / folder)
    info, dataset = check_dataset(name), load_dataset(name)
    assert (info.in_channels, info.image_size, info.num_classes) == (dataset.in_channels, dataset.image_size, dataset.num_classes)
    assert (info.train_images, info.test_images) == (len(dataset.train), len(dataset.test))


# Bad input


@pytest.mark.parametrize("name", ["cifar", "", "parquet", "parquet:", "folder:", "digits:8"])
def test_unknown_names_are_refused_with_the_known_ones(name):
    for function in (check_dataset, load_dataset):
        with pytest.raises(ConfigError, match=r"unknown data set .* known are digits, cifar10, .*parquet:PATH") as caught:
            function(name)
        assert "\n" not in str(caught.value)


def refuse(name, words, **counts):
    for function in (check_dataset, load_dataset):
        with pytest.raises(ConfigError, match=words) as caught:
            function(name, **counts)
        assert "\n" not in str(caught.value)


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
        load_dataset(name)


def test_the_check_already_refuses_a_first_image_that_cannot_be_used(tmp_path):
    name = write_image_set(tmp_path)
    images = [encode(pixels(1)[0][:, :6]), encode(pixels(1)[0])]
    write_parquet(tmp_path / "train.parquet", images, [0, 1], {"class_names": ["ant", "bee"]})
    refuse(name, r"row 0: the image is 6x8 pixels, all must be square")
    images[0] = images[1][:100]
    write_parquet(tmp_path / "train.parquet", images, [0, 1], {"class_names": ["ant", "bee"]})
    refuse(name, "row 0: the image is damaged")


def test_images_all_of_one_colour_are_refused(tmp_path):
    name = write_image_set(tmp_path)
    images = [encode(np.full((8, 8, 3), 7, np.uint8))] * 2
    write_parquet(tmp_path / "train.parquet", images, [0, 1], {"class_names": ["ant", "bee"]})
    with pytest.raises(ConfigError, match=r"channel 0 .* has one value everywhere"):
        load_dataset(name)


def test_a_set_of_one_class_is_refused(tmp_path):
    refuse(write_image_set(tmp_path / "named", classes=("ant",)), r"train.parquet: has one class alone \(ant\)")
    refuse(write_folders(tmp_path / "folders", classes=("ant",)), r"train: has one class alone \(ant\)")
    (tmp_path / "plain").mkdir()
    for name in ("train.parquet", "test.parquet"):
        write_parquet(tmp_path / "plain" / name, [encode(image) for image in pixels(4)], [0] * 4)
    refuse(f"parquet:{tmp_path}/plain", r"train.parquet: has one class alone \(0\), a classifier needs at least 2")


def test_more_images_than_there_are_says_how_many_there_are(tmp_path):
    name = write_image_set(tmp_path)
    refuse(name, f"train_images: 41 asked for, {name} has 40", train_images=41)
    refuse(name, f"test_images: 21 asked for, {name} has 20", test_images=21)
    refuse("digits", "train_images: 1439 asked for, digits has 1438", train_images=1439)


# Splitting


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("count", [97, 200])
def test_the_three_parts_are_disjoint_and_together_everything(count, fraction):
    split = split_train(numbered(count, 3), 0, fraction)
    parts = [part.images[:, 0, 0, 0].tolist() for part in (split.validation, split.weights, split.alphas)]
    assert sorted(row for part in parts for row in part) == list(range(count))
    assert len(split.validation) == round(fraction * count)
    assert 0 <= len(split.weights) - len(split.alphas) <= 1


def test_each_part_has_the_classes_in_proportion():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    images = ImageSet(torch.zeros(100, 1, 2, 2, dtype=torch.uint8), labels)
    split = split_train(images, 0, 0.2)
    assert split.validation.labels.bincount().tolist() == [12, 6, 2]
    assert split.weights.labels.bincount().tolist() == [24, 12, 4]
    assert split.alphas.labels.bincount().tolist() == [24, 12, 4]


def test_without_a_held_out_part_validation_is_the_alphas_half():
    split = split_train(numbered(100), 0, 0.0)
    assert torch.equal(split.validation.images, split.alphas.images)
    assert len(split.weights) == len(split.alphas) == 50
    assert not set(split.weights.images[:, 0, 0, 0].tolist()) & set(split.alphas.images[:, 0, 0, 0].tolist())


def test_the_split_depends_on_its_seed_alone():
    torch.manual_seed(1)
    first = split_train(numbered(100), 7, 0.2)
    torch.manual_seed(2)
    again, other = split_train(numbered(100), 7, 0.2), split_train(numbered(100), 8, 0.2)
    assert torch.equal(first.weights.images, again.weights.images)
    assert torch.equal(first.validation.images, again.validation.images)
    assert not torch.equal(first.weights.images, other.weights.images)


def test_a_split_that_leaves_a_part_empty_is_refused():
    with pytest.raises(ConfigError, match=r"validation_fraction: 0.01 of 20 training images leaves none for validation"):
        split_train(numbered(20), 0, 0.01)
    with pytest.raises(ConfigError, match="leaves none for alphas"):
        split_train(numbered(2), 0, 0.5)
    with pytest.raises(ConfigError, match="leaves images of one class alone for validation"):
        split_train(numbered(20, 3), 0, 0.05)


# Batches


@pytest.mark.parametrize(("count", "batch_size", "sizes"), [(10, 4, [4, 4, 2]), (9, 4, [4, 4]), (8, 4, [4, 4]), (3, 4, [3])])
def test_an_epoch_has_each_image_once_and_leaves_out_a_last_single_one(count, batch_size, sizes):
    images = numbered(count)
    batches = Batches(images, plain_dataset(images), batch_size, CPU, augment=False)
    seen = list(batches.epoch(seeded()))
    assert [len(labels) for _, labels in seen] == sizes
    assert len(batches) == len(sizes)
    rows = rows_of(seen)
    assert len(set(rows)) == len(rows) == sum(sizes)
    assert torch.equal(torch.tensor(rows) % 2, torch.cat([labels for _, labels in seen]))


def test_epochs_are_shuffled_anew_and_repeat_with_the_generator():
    images = numbered(50)
    batches = Batches(images, plain_dataset(images), 8, CPU, augment=True, cutout=3)
    generator = seeded(3)
    first = torch.cat([image for image, _ in batches.epoch(generator)])
    state = generator.get_state()
    second = torch.cat([image for image, _ in batches.epoch(generator)])
    generator.set_state(state)
    again = torch.cat([image for image, _ in batches.epoch(generator)])
    assert torch.equal(second, again)
    assert not torch.equal(first, second)


def test_batches_never_touch_the_global_generator():
    images = numbered(20)
    before = torch.get_rng_state()
    list(Batches(images, plain_dataset(images), 8, CPU, augment=True, cutout=2).epoch(seeded()))
    assert torch.equal(before, torch.get_rng_state())


def test_in_order_gives_every_image_once_and_never_augmented():
    images = numbered(9)
    batches = Batches(images, plain_dataset(images), 4, CPU, augment=True, cutout=3)
    seen = list(batches.in_order())
    assert rows_of(seen) == list(range(9))
    torch.testing.assert_close(torch.cat([image for image, _ in seen]) * 255, images.images.float())


def test_batches_are_normalised_to_mean_zero_and_variance_one():
    dataset = load_dataset("digits")
    seen = torch.cat([images for images, _ in Batches(dataset.train, dataset, 100, CPU, augment=False).in_order()])
    assert seen.dtype == torch.float32
    assert abs(seen.mean().item()) < 1e-5
    assert abs(seen.std(correction=0).item() - 1) < 1e-5


def test_digits_are_never_mirrored():
    images = numbered(200)
    images.images[..., :4] = 0  # every image dark on the left
    for flips, sides in ((False, {False}), (True, {False, True})):
        batches = Batches(images, plain_dataset(images, flips), 200, CPU, augment=True)
        ((seen, _),) = batches.epoch(seeded())
        lit = seen[seen.amax(dim=(1, 2, 3)) > 0]
        assert set((lit[..., :3].sum(dim=(1, 2, 3)) > 0).tolist()) == sides


def test_batches_of_one_image_are_refused_for_training():
    images = numbered(5)
    for part, size in ((images, 1), (images.select(torch.tensor([0])), 4)):
        batches = Batches(part, plain_dataset(images), size, CPU, augment=False)
        with pytest.raises(ConfigError, match=rf"batch_size: {size} of {len(part)} images gives batches of one image"):
            next(batches.epoch(seeded()))
        assert len(list(batches.in_order())) == len(part)


def test_a_cutout_that_would_blank_the_images_is_refused():
    images = numbered(5)
    with pytest.raises(ConfigError, match="cutout: 8 would blank numbered's images, it must be less than 8 pixels"):
        Batches(images, plain_dataset(images), 4, CPU, augment=True, cutout=8)
    with pytest.raises(ValueError, match="cutout: 2 is augmentation, and augment is off"):
        Batches(images, plain_dataset(images), 4, CPU, augment=False, cutout=2)


def test_batches_work_without_data_on_a_device_that_is_not_there():
    with FakeTensorMode():
        images = ImageSet(torch.zeros(50, 3, 32, 32, dtype=torch.uint8), torch.zeros(50, dtype=torch.int64))
        batches = Batches(images, plain_dataset(images), 16, torch.device("cuda"), augment=True, cutout=8)
        seen = list(batches.epoch(torch.Generator()))
    assert [tuple(batch.shape) for batch, _ in seen] == [(16, 3, 32, 32)] * 3 + [(2, 3, 32, 32)]
    assert seen[0][0].device.type == "cuda"


# Augmentation, against one image at a time


def test_shift_equals_padding_and_cropping_each_image():
    images = torch.randn(64, 3, 8, 6)
    shifted = shift(images, 2, seeded(1))
    offsets = torch.randint(5, (2, 64), generator=seeded(1))
    for index, image in enumerate(images):
        padded = torch.zeros(3, 12, 10)
        padded[:, 2:10, 2:8] = image
        top, left = offsets[:, index].tolist()
        assert torch.equal(shifted[index], padded[:, top : top + 8, left : left + 6])
    assert {tuple(pair) for pair in offsets.T.tolist()} >= {(0, 0), (4, 4)}


def test_flip_mirrors_half_of_the_images():
    images = torch.randn(400, 3, 4, 4)
    flipped = flip(images, seeded())
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, images, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(flipped, images, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 160 < sum(mirrored) < 240


@pytest.mark.parametrize("size", [1, 3, 4])
def test_cutout_equals_zeroing_a_square_in_each_image(size):
    images = torch.randn(200, 2, 8, 6)
    cut = cutout(images, size, seeded(2))
    generator = seeded(2)
    rows, columns = (torch.randint(high, (200, 1), generator=generator).flatten().tolist() for high in (8, 6))
    for image, result, row, column in zip(images, cut, rows, columns, strict=True):
        expected = image.clone()
        top, left = row - size // 2, column - size // 2
        expected[:, max(0, top) : top + size, max(0, left) : left + size] = 0
        assert torch.equal(result, expected)
    assert set(rows) == set(range(8))
    assert set(columns) == set(range(6))


@pytest.mark.gpu
def test_batches_on_cuda_equal_those_on_the_cpu():
    images = numbered(50)
    batches = {
        device: Batches(images, plain_dataset(images), 8, torch.device(device), augment=True, cutout=3)
        for device in ("cpu", "cuda")
    }
    for cpu, cuda in zip(batches["cpu"].epoch(seeded()), batches["cuda"].epoch(seeded()), strict=True):
        torch.testing.assert_close(cpu[0], cuda[0].cpu())
        assert torch.equal(cpu[1], cuda[1].cpu())
    on_device = torch.Generator("cuda").manual_seed(0)
    assert len(list(batches["cuda"].epoch(on_device))) == len(batches["cuda"])


def test_images_are_normalised_with_what_is_given_and_nothing_is_measured(tmp_path):
    name = write_image_set(tmp_path)
    moments = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pdarts_tune.data.in_memory.pixel_moments", None)
        dataset = load_dataset(name, moments=moments)
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
        load_dataset(write_image_set(tmp_path), moments=moments)


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
    assert find_family(name, DatasetInfo(channels, side, classes, 100, 100), stem, image_size) == family
