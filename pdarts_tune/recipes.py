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

import math
from collections.abc import Mapping
from dataclasses import replace

from pdarts_tune.config import ConfigError, EvalConfig

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
