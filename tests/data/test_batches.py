"""An epoch has each image once and depends on its generator alone; augmentation is right for each image; batches can be shared."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from images import load, numbered, seeded, write_folders
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.data import streaming
from pdarts_tune.data.batches import Batches, Workers, cutout, flip, shift
from pdarts_tune.data.datasets import Dataset
from pdarts_tune.data.decoding import read_range
from pdarts_tune.data.in_memory import ImageSet

CPU = torch.device("cpu")


def plain_dataset(images, flips=True):
    """Normalisation that changes nothing but the range: [0, 255] to [0, 1]."""
    channels = images.images.shape[1]
    return Dataset("numbered", images, images, ("a", "b"), (0.0,) * channels, (1.0,) * channels, flips)


def rows_of(batches):
    """Which images of a `numbered` set a run of batches holds, in order."""
    return [round(value * 255) for images, _ in batches for value in images.amax(dim=(1, 2, 3)).tolist()]


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
    dataset = load("digits")
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


@pytest.mark.parametrize("total", [1, 7, 20])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_shares_are_the_batch_in_parts_of_nearly_equal_size(total, count):
    shares = [list(range(total))[Workers(rank, count).share(total)] for rank in range(count)]
    assert [image for share in shares for image in share] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("skip_bad", [False, True])
def test_shares_of_a_streamed_epoch_are_read_apart_and_together_are_the_batches_of_one(tmp_path, monkeypatch, skip_bad):
    monkeypatch.setattr(streaming, "MAX_WORKERS", 0)
    read = []
    monkeypatch.setattr(streaming, "read_range", lambda path, *where: read.append(path) or read_range(path, *where))
    dataset = load(write_folders(tmp_path / "set", train=26, size=12), image_size=10, skip_bad_images=skip_bad)
    batches = Batches(dataset.train, dataset, 8, CPU, augment=True, cutout=3)
    expected = list(batches.epoch(torch.Generator().manual_seed(1)))
    parts = []
    for rank in range(3):
        workers = Workers(rank, 3)
        # Stands for asking the others, which have all of their images here.
        monkeypatch.setattr(Workers, "find_place", lambda self, own, _: self.place(8 if own > 1 else 2))
        read.clear()
        parts.append(list(batches.shared_epoch(torch.Generator().manual_seed(1), workers)))
        assert len(read) == sum(len(labels) for _, labels, _ in parts[-1])
        assert len(read) <= 10  # of 26
    for (images, labels), *shares in zip(expected, *parts, strict=True):
        assert torch.equal(torch.cat([share[0] for share in shares]), images)
        assert torch.equal(torch.cat([share[1] for share in shares]), labels)
