"""Every setting of an evaluation, and the named recipes: those of papers, and short forms that rank cells at a small cost.

Recipes differ by some 3 points on CIFAR-10, methods by about 0.5. So results are compared only within one `recipe_id`.

cifar                20 cells, 36 channels, 600 epochs (P-DARTS, section 4.3); about 1.5 GPU days
cifar-large          the same with 64 channels
cifar-short          8 cells, 16 channels, 30 epochs; minutes on a GPU
imagenet-mobile      14 cells, 48 channels, 224 pixels, 250 epochs, batch 1024 (P-DARTS, section 4.4); eight GPUs
imagenet-mobile-256  the same with batch 256 at rate 0.1, for fewer devices
imagenet-mobile-short  14 cells, 24 channels, 112 pixels, 30 epochs, batch 256
cifar-small          8 cells, 8 channels, 8 epochs on 20,000 images of 16x16 pixels; minutes on a CPU core
cifar-bf16           `cifar` in bfloat16 and channels-last memory, with compiled cells, for GPUs
"""

import math
import typing
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from pdarts_tune.config.execution import CellEvaluation, Execution, Graph, check_execution
from pdarts_tune.config.serialize import (
    ConfigError,
    Fraction,
    ImageCount,
    Natural,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Text,
    content,
    content_id,
    later,
    settings,
)

Stem = Literal["cifar", "imagenet"]
STEMS: tuple[Stem, ...] = typing.get_args(Stem)
ESTIMATORS = ("nb301", "table")  # recipes of rows of `evaluations` that no training made

# Settings that do not count in `recipe_id`: data set, seeds, and what changes speed alone.
_NOT_IN_RECIPE = ("seed", "split_seed", "data", "channels_last", "compile", "skip_bad_images", "cell_evaluation", "graph")


@settings
class EvalConfig:
    """Training one genotype from scratch. The defaults are the paper's CIFAR recipe (section 4.3).

    Raises:
        ConfigError: a value of a wrong type or out of range.
    """

    recipe: Text = "cifar"
    data: Text = "cifar10"
    train_images: ImageCount | None = None
    test_images: ImageCount | None = None
    validation_fraction: Fraction = 0.0  # held out to follow training; the test images are read once, after the last epoch
    seed: Natural = 0
    split_seed: Natural = 0
    cells: Annotated[int, Field(ge=3)] = 20  # a network has two reduction cells, neither of them the first cell
    channels: Positive = 36
    epochs: Positive = 600
    batch_size: Positive = 128
    learning_rate: PositiveFloat = 0.025  # SGD, cosine to 0
    momentum: Fraction = 0.9
    weight_decay: NonNegativeFloat = 3e-4
    gradient_clip: PositiveFloat = 5.0
    cutout: Natural = 16  # side of the square hole, pixels; 0: none
    drop_path: Fraction = 0.3  # reached linearly at the last epoch
    auxiliary_weight: NonNegativeFloat = 0.4
    stem: Stem = later("cifar")  # imagenet: three convolutions of stride 2 first, an eighth of the resolution
    image_size: Positive | None = later(None)  # pixels, height and width: images are cropped to it and streamed; None: as they are
    downsample: Positive = later(1)  # each square of so many pixels a side becomes one, their mean: 2 makes 16x16 of 32x32
    schedule: Literal["cosine", "linear"] = later("cosine")  # of the learning rate, to 0 after the last epoch
    warmup_epochs: Natural = later(0)  # in which the learning rate rises linearly
    label_smoothing: Fraction = later(0.0)
    auto_width: bool = later(False)  # in place of `channels`, the widest even number under 600M multiply-adds
    precision: Literal["fp32", "bf16"] = later("fp32")  # bf16: convolutions in bfloat16, weights and statistics in float32
    sync_batch_norm: bool = later(True)  # with several devices: statistics of the whole batch; False: of each device's share
    channels_last: bool = False  # memory layout; like `compile` it changes speed, and results by rounding
    compile: bool = False
    skip_bad_images: bool = False  # leave out images that cannot be read, rather than refuse the set
    cell_evaluation: CellEvaluation = later("auto")  # see `Execution`; it changes speed, and results by rounding
    tf32: bool = later(False)  # on CUDA, products and convolutions round to TensorFloat-32; False: full float32
    graph: Graph = later("auto")  # see `Execution`

    def __post_init__(self) -> None:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs: {self.warmup_epochs} is wrong, it must be less than epochs ({self.epochs})")
        check_execution(self.execution)

    @property
    def execution(self) -> Execution:
        """How the training is computed."""
        names = ("cell_evaluation", "precision", "tf32", "compile", "channels_last", "graph")
        return Execution(**{name: getattr(self, name) for name in names})

    @property
    def recipe_id(self) -> str:
        """Names the recipe by content. Trainings that differ only in data set, seeds and what changes speed alone share it."""
        counted = {name: value for name, value in content(self).items() if name not in _NOT_IN_RECIPE}
        return f"{self.recipe}-{content_id(counted)[:8]}"


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
        replace(
            _CIFAR,
            recipe="cifar-small",
            downsample=2,
            train_images=20_000,
            validation_fraction=0.1,
            cells=8,
            channels=8,
            epochs=8,
            batch_size=64,
            learning_rate=0.05,
            cutout=0,
            drop_path=0.0,
        ),
        _IMAGENET_MOBILE,
        _IMAGENET_256,
        replace(_IMAGENET_256, recipe="imagenet-mobile-short", channels=24, epochs=30, image_size=112),
        replace(_CIFAR, recipe="cifar-bf16", precision="bf16", channels_last=True, compile=True),
    )
}


def find_recipe(name: str) -> EvalConfig:
    """The recipe of that name. Raises ConfigError for an unknown name."""
    if name not in RECIPES:
        raise ConfigError(f"recipe: {name!r} is unknown, known are {', '.join(RECIPES)}")
    return RECIPES[name]


def learning_rate(config: EvalConfig, epoch: int) -> float:
    """The rate in `epoch`, counted from 0: it rises linearly in the warm-up, then falls by the schedule towards 0."""
    if epoch < config.warmup_epochs:
        return config.learning_rate * (epoch + 1) / config.warmup_epochs
    progress = (epoch - config.warmup_epochs) / (config.epochs - config.warmup_epochs)
    if config.schedule == "linear":
        return config.learning_rate * (1 - progress)
    return config.learning_rate * (1 + math.cos(math.pi * progress)) / 2
