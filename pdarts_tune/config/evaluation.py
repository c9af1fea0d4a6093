"""Training recipes under a name: what papers train with, and short forms of it that rank cells at a small part of the cost.

Differences between recipes (some 3 points on CIFAR-10) are larger than those between methods (about 0.5), so results are only
ever compared within one `recipe_id`.

cifar                20 cells, 36 channels, 600 epochs (P-DARTS, section 4.3); about 1.5 GPU days
cifar-large          the same with 64 channels
cifar-short          8 cells, 16 channels, 30 epochs; minutes on a GPU
imagenet-mobile      14 cells, 48 channels, 224 pixels, 250 epochs, batch 1024 (P-DARTS, section 4.4); eight GPUs
imagenet-mobile-256  the same with batch 256 at rate 0.1, for fewer devices
imagenet-mobile-short  14 cells, 24 channels, 112 pixels, 30 epochs, batch 256
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pdarts_tune.config.serialize import (
    ConfigError,
    _check_common,
    _later,
    _require,
    content_id,
    to_dict,
)

STEMS = ("cifar", "imagenet")
SCHEDULES = ("cosine", "linear")
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class EvalConfig:
    """Training one genotype from scratch. The defaults are the paper's CIFAR recipe (section 4.3).

    Raises:
        ConfigError: a value out of range.
    """

    recipe: str = "cifar"
    data: str = "cifar10"
    train_images: int | None = None
    test_images: int | None = None
    validation_fraction: float = 0.0  # held out to follow training; the test images are read once, after the last epoch
    seed: int = 0
    split_seed: int = 0
    cells: int = 20
    channels: int = 36
    epochs: int = 600
    batch_size: int = 128
    learning_rate: float = 0.025  # SGD, cosine to 0
    momentum: float = 0.9
    weight_decay: float = 3e-4
    gradient_clip: float = 5.0
    cutout: int = 16  # side of the square hole, pixels; 0: none
    drop_path: float = 0.3  # reached linearly at the last epoch
    auxiliary_weight: float = 0.4
    stem: str = _later("cifar")  # or "imagenet": three convolutions of stride 2 first, an eighth of the resolution
    image_size: int | None = _later(None)  # pixels, height and width: images are cropped to it and streamed; None: as they are
    schedule: str = _later("cosine")  # or "linear": of the learning rate, to 0 after the last epoch
    warmup_epochs: int = _later(0)  # in which the learning rate rises linearly
    label_smoothing: float = _later(0.0)
    auto_width: bool = _later(False)  # in place of `channels`, the widest even number under 600M multiply-adds
    precision: str = _later("fp32")  # or "bf16": convolutions in bfloat16, weights and statistics in float32
    sync_batch_norm: bool = _later(True)  # with several devices: statistics of the whole batch; False: of each device's share
    channels_last: bool = False  # memory layout; like `compile` it changes speed, and results by rounding
    compile: bool = False
    skip_bad_images: bool = False  # leave out images that cannot be read, rather than refuse the set

    def __post_init__(self) -> None:
        _require(self.cells >= 3, "cells", self.cells, "at least 3 (a network has two reduction cells)")
        _require(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        _require(0.0 <= self.validation_fraction < 1.0, "validation_fraction", self.validation_fraction, "in [0, 1)")
        _require(self.cutout >= 0, "cutout", self.cutout, "at least 0")
        _require(0.0 <= self.drop_path < 1.0, "drop_path", self.drop_path, "in [0, 1)")
        _require(self.auxiliary_weight >= 0, "auxiliary_weight", self.auxiliary_weight, "at least 0")
        for name, known in (("stem", STEMS), ("schedule", SCHEDULES), ("precision", PRECISIONS)):
            _require(getattr(self, name) in known, name, getattr(self, name), "one of " + ", ".join(known))
        _require(
            0 <= self.warmup_epochs < self.epochs, "warmup_epochs", self.warmup_epochs, f"in [0, epochs), epochs is {self.epochs}"
        )
        _require(0.0 <= self.label_smoothing < 1.0, "label_smoothing", self.label_smoothing, "in [0, 1)")
        _check_common(self)

    @property
    def recipe_id(self) -> str:
        """Names the recipe by content: equal for two trainings that differ only in data set, seeds and what changes speed alone.

        A setting that joined later counts only where it differs from its default, so recipes keep the ids that they had before.
        """
        settings = to_dict(self)
        for key in ("seed", "split_seed", "data", "channels_last", "compile", "skip_bad_images"):
            del settings[key]
        for setting in dataclasses.fields(self):
            if setting.metadata.get("later") and settings[setting.name] == setting.default:
                del settings[setting.name]
        return f"{self.recipe}-{content_id(settings)[:8]}"


_CIFAR = EvalConfig(recipe="cifar")
_IMAGENET_MOBILE = EvalConfig(
    recipe="imagenet-mobile",
    data="imagenet",
    cells=14,
    channels=48,
    epochs=250,
    batch_size=1024,
    learning_rate=0.5,
    weight_decay=3e-5,
    cutout=0,
    drop_path=0.0,
    auxiliary_weight=0.4,
    stem="imagenet",
    image_size=224,
    schedule="linear",
    warmup_epochs=5,
    label_smoothing=0.1,
)
_IMAGENET_256 = replace(_IMAGENET_MOBILE, recipe="imagenet-mobile-256", batch_size=256, learning_rate=0.1, warmup_epochs=0)

RECIPES: Mapping[str, EvalConfig] = {
    recipe.recipe: recipe
    for recipe in (
        _CIFAR,
        replace(_CIFAR, recipe="cifar-large", channels=64),
        replace(_CIFAR, recipe="cifar-short", cells=8, channels=16, epochs=30, drop_path=0.1),
        _IMAGENET_MOBILE,
        _IMAGENET_256,
        replace(_IMAGENET_256, recipe="imagenet-mobile-short", channels=24, epochs=30, image_size=112),
    )
}


def find_recipe(name: str) -> EvalConfig:
    """The recipe of that name. Raises ConfigError for an unknown one, with those that are known."""
    if name not in RECIPES:
        raise ConfigError(f"recipe: {name!r} is unknown, known are {', '.join(RECIPES)}")
    return RECIPES[name]


def learning_rate(config: EvalConfig, epoch: int) -> float:
    """The rate in `epoch`, which counts from 0: the warm-up's line up to the full rate, then the schedule towards 0."""
    if epoch < config.warmup_epochs:
        return config.learning_rate * (epoch + 1) / config.warmup_epochs
    done = (epoch - config.warmup_epochs) / (config.epochs - config.warmup_epochs)
    if config.schedule == "linear":
        return config.learning_rate * (1 - done)
    return config.learning_rate * (1 + math.cos(math.pi * done)) / 2
