"""How large a study is: the base configuration, the evaluation recipe and the number of seeds, under one name.

smoke    digits, tiny: under 2 minutes on 2 cores; shows that everything works, means nothing
laptop   digits, searched and evaluated with 3 seeds: at most 12 minutes on 2 cores
cifar-mini  CIFAR-10, a few of its images, narrow and shallow: a search takes about 10 minutes on one CPU core
paper    the exact settings of P-DARTS (Chen et al., 2019) on CIFAR-10, for a GPU cluster
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pdarts_tune.config import EvalConfig, SearchConfig
from pdarts_tune.stages import Stage


@dataclass(frozen=True)
class Preset:
    """The base of a study, before its variants."""

    search: SearchConfig
    evaluation: EvalConfig
    seeds: int  # searches per variant
    evaluation_seeds: int  # trainings per distinct genotype
    samples: int  # schedules that an adaptive study tries


SMOKE = Preset(
    search=SearchConfig(
        stages=(
            Stage(3, 8, 0.0, epochs=2, warmup_epochs=1),
            Stage(4, 5, 0.4, epochs=2, warmup_epochs=1),
            Stage(5, 3, 0.7, epochs=2, warmup_epochs=1),
        ),
        data="digits",
        train_images=240,
        test_images=100,
        validation_fraction=0.2,
        channels=4,
        batch_size=48,
    ),
    evaluation=EvalConfig(
        recipe="smoke",
        data="digits",
        train_images=240,
        test_images=100,
        validation_fraction=0.2,
        cells=6,
        channels=4,
        epochs=2,
        batch_size=48,
        cutout=2,
    ),
    seeds=1,
    evaluation_seeds=1,
    samples=4,
)

# A miniature of the paper's plan: alphas frozen for the first 40 % of each stage, and a dropout that decays as far in 4 epochs as
# the paper's does in 15. Alphas take larger steps, since they get some 36 in a stage where the paper's get 3,900.
LAPTOP = Preset(
    search=SearchConfig(
        stages=(
            Stage(3, 8, 0.0, epochs=7, warmup_epochs=3, dropout_decay=0.75),
            Stage(4, 5, 0.4, epochs=7, warmup_epochs=3, dropout_decay=0.75),
            Stage(6, 3, 0.7, epochs=7, warmup_epochs=3, dropout_decay=0.75),
        ),
        data="digits",
        validation_fraction=0.2,
        channels=4,
        batch_size=64,
        alpha_learning_rate=6e-3,
    ),
    evaluation=EvalConfig(
        recipe="laptop",
        data="digits",
        validation_fraction=0.2,
        cells=9,
        channels=6,
        epochs=10,
        batch_size=64,
        cutout=2,
        drop_path=0.1,
    ),
    seeds=3,
    evaluation_seeds=1,
    samples=16,
)

# The laptop preset's plan on real images, three times as deep in the last stage as in the first and deeper again in evaluation. Of
# CIFAR-10's 50,000 training images 2,400 are taken, of which 1,080 train weights and 1,080 alphas: six seeds of depth_gap.py's
# five main variants, each genotype trained twice, are then three and a half hours on 2 cores, as measured. Of the test images
# 5,000, since a thousand more cost little next to training and the standard error falls below 0.7 points.
CIFAR_MINI = Preset(
    search=SearchConfig(
        stages=(
            Stage(3, 8, 0.0, epochs=5, warmup_epochs=2, dropout_decay=1.0),
            Stage(6, 5, 0.4, epochs=5, warmup_epochs=2, dropout_decay=1.0),
            Stage(9, 3, 0.7, epochs=5, warmup_epochs=2, dropout_decay=1.0),
        ),
        data="cifar10",
        train_images=2400,
        test_images=5000,
        validation_fraction=0.1,
        channels=4,
        batch_size=64,
        alpha_learning_rate=6e-3,
    ),
    evaluation=EvalConfig(
        recipe="cifar-mini",
        data="cifar10",
        train_images=2400,
        test_images=5000,
        validation_fraction=0.1,
        cells=12,
        channels=4,
        epochs=6,
        batch_size=64,
        cutout=8,
        drop_path=0.1,
    ),
    seeds=6,
    evaluation_seeds=2,
    samples=24,
)

PAPER = Preset(search=SearchConfig(), evaluation=EvalConfig(), seeds=4, evaluation_seeds=1, samples=60)

PRESETS: Mapping[str, Preset] = {"smoke": SMOKE, "laptop": LAPTOP, "cifar-mini": CIFAR_MINI, "paper": PAPER}
