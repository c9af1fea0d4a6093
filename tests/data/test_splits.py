"""Parts of a data set are disjoint, hold the classes in proportion, and depend on their seed alone."""

import pytest
import torch

from images import load, numbered, write_image_set
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.data.in_memory import ImageSet
from pdarts_tune.data.splits import split_train


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


def test_splits_of_a_set_that_streams_are_those_of_one_that_does_not(tmp_path):
    name = write_image_set(tmp_path / "set")
    resident, streamed = load(name), load(name, image_size=8)
    splits = [split_train(dataset.train, 1, 0.2) for dataset in (resident, streamed)]
    for purpose in ("weights", "alphas", "validation"):
        first, second = (getattr(split, purpose) for split in splits)
        assert torch.equal(first.labels, second.labels)
    whole = splits[1].weights_and_alphas.joined(splits[1].validation)
    assert sorted(whole.rows.tolist()) == list(range(40))
