"""How large a study is: the base configuration, the evaluation recipe and the number of seeds, under one name.

smoke    digits, tiny: under 2 minutes on 2 cores; shows that everything works, means nothing
laptop   digits, searched and evaluated with 3 seeds: at most 12 minutes on 2 cores
cifar-mini  CIFAR-10, a few of its images, narrow and shallow: a search takes about 10 minutes on one CPU core
paper    the exact settings of P-DARTS (Chen et al., 2019) on CIFAR-10, for a GPU cluster
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pdarts_tune.config.evaluation import EvalConfig
from pdarts_tune.config.methods import PartialChannels, RandomSampling, RandomSearch, SecondOrder, Snas
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.pdarts.progressive_depth import DARTS, PC_DARTS, SNAS, Stage

# MERGED DOCSTRING
# The published settings of every search method that P-DARTS is compared with, on CIFAR-10, as whole configurations.
#
# Where a paper leaves a setting out it is DARTS', which the others build on. Skip-connects are limited to eight, all there are:
# that limit is P-DARTS' own idea.


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

# Chen et al., ICCV 2019 (arXiv 1904.12760), section 4.2.
PDARTS = SearchConfig()
# Liu et al., ICLR 2019 (arXiv 1806.09055), appendix A.1.1: 8 cells, 50 epochs, batch 64, alphas by Adam at 3e-4.
DARTS_FIRST = replace(PDARTS, stages=DARTS, batch_size=64, alpha_learning_rate=3e-4, max_skips=8)
DARTS_SECOND = replace(DARTS_FIRST, method=SecondOrder())
# Xie et al., ICLR 2019 (arXiv 1812.09926), section 3.1 and appendix: 150 epochs in one level, the rest as DARTS. Temperatures and
# the factors of the penalty are not in the paper; `methods.Snas` and `snas.PENALTY_WEIGHTS` have this project's.
SNAS_MILD = replace(DARTS_FIRST, stages=SNAS, method=Snas(penalty="mild"))
SNAS_MODERATE = replace(SNAS_MILD, method=Snas(penalty="moderate"))
SNAS_AGGRESSIVE = replace(SNAS_MILD, method=Snas(penalty="aggressive"))
# Xu et al., ICLR 2020 (arXiv 1907.05737), section 4.2: K = 4, batch 256, learning rate 0.1, alphas and betas by Adam at 6e-4.
PC_DARTS_SEARCH = replace(PDARTS, stages=PC_DARTS, method=PartialChannels(4), batch_size=256, learning_rate=0.1, max_skips=8)
# Liu et al., 2019, section 3.3 and table 1: the best of 24 after 100 epochs, the cost of DARTS' second order.
RANDOM_SEARCH = replace(DARTS_FIRST, stages=(Stage(8, 8, 0.0, epochs=100, warmup_epochs=100),), method=RandomSearch(24))
RANDOM = replace(PDARTS, method=RandomSampling())

PUBLISHED_SEARCHES: Mapping[str, SearchConfig] = {
    "pdarts": PDARTS,
    "darts_first": DARTS_FIRST,
    "darts_second": DARTS_SECOND,
    "snas_mild": SNAS_MILD,
    "snas_moderate": SNAS_MODERATE,
    "snas_aggressive": SNAS_AGGRESSIVE,
    "pc_darts": PC_DARTS_SEARCH,
    "random_search": RANDOM_SEARCH,
    "random": RANDOM,
}
