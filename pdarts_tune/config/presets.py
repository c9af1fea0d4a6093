"""How large a study is, under one name: base configuration, evaluation recipe, number of seeds. And the published searches.

smoke       digits, tiny: under 2 minutes on 2 cores; shows that everything works, its results have no meaning
laptop      digits, searched and evaluated with 3 seeds: at most 12 minutes on 2 cores
cifar-small CIFAR-10 at 16x16 pixels, narrow and shallow: a search takes 2 minutes on a CPU core, a training 3
paper       the exact settings of P-DARTS (Chen et al., 2019) on CIFAR-10, for a GPU cluster
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pdarts_tune.config.evaluation import EvalConfig, find_recipe
from pdarts_tune.config.methods import PartialChannels, RandomSampling, RandomSearch, SecondOrder, Snas
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.pdarts.progressive_depth import DARTS, PC_DARTS, PDARTS_CIFAR10, SNAS, Stage, Stages, with_depths


@dataclass(frozen=True)
class Preset:
    """The base of a study, before its variants."""

    search: SearchConfig
    evaluation: EvalConfig
    seeds: int  # searches per variant
    evaluation_seeds: int  # trainings per distinct genotype
    samples: int  # schedules that an adaptive study tries


def _stages(depths: tuple[int, ...], epochs: int, warmup_epochs: int, dropout_decay: float) -> Stages:
    """P-DARTS' stages at other depths and shorter."""
    stages = with_depths(PDARTS_CIFAR10, depths)
    return tuple(replace(stage, epochs=epochs, warmup_epochs=warmup_epochs, dropout_decay=dropout_decay) for stage in stages)


_SMOKE_SEARCH = SearchConfig(
    stages=_stages((3, 4, 5), epochs=2, warmup_epochs=1, dropout_decay=0.2),
    data="digits",
    train_images=240,
    test_images=100,
    validation_fraction=0.2,
    channels=4,
    batch_size=48,
)
_SMOKE_TRAINING = EvalConfig(
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
)
SMOKE = Preset(_SMOKE_SEARCH, _SMOKE_TRAINING, seeds=1, evaluation_seeds=1, samples=4)

# The paper's plan in small: alphas are frozen for the first 40 % of each stage, and dropout decays as far in 4 epochs as the
# paper's in 15. Alphas take larger steps, because a stage has some 36 of them where the paper's has 3,900.
LAPTOP = Preset(
    search=replace(
        _SMOKE_SEARCH,
        stages=_stages((3, 4, 6), epochs=7, warmup_epochs=3, dropout_decay=0.75),
        train_images=None,
        test_images=None,
        batch_size=64,
        alpha_learning_rate=6e-3,
    ),
    evaluation=replace(
        _SMOKE_TRAINING,
        recipe="laptop",
        train_images=None,
        test_images=None,
        cells=9,
        channels=6,
        epochs=10,
        batch_size=64,
        drop_path=0.1,
    ),
    seeds=3,
    evaluation_seeds=1,
    samples=16,
)

# The laptop preset's plan on real images, as many as a CPU affords: CIFAR-10's, averaged to 16x16 pixels. 4,000 images train
# weights, 4,000 train alphas and 2,000 validate. All 10,000 test images are read: the standard error of an error is 0.5 points.
CIFAR_SMALL = Preset(
    search=replace(
        LAPTOP.search,
        stages=_stages((3, 5, 7), epochs=5, warmup_epochs=2, dropout_decay=1.0),
        data="cifar10",
        downsample=2,
        train_images=10_000,
        validation_fraction=0.2,
    ),
    evaluation=find_recipe("cifar-small"),
    seeds=8,
    evaluation_seeds=1,
    samples=24,
)

PAPER = Preset(search=SearchConfig(), evaluation=EvalConfig(), seeds=4, evaluation_seeds=1, samples=60)

PRESETS: Mapping[str, Preset] = {"smoke": SMOKE, "laptop": LAPTOP, "cifar-small": CIFAR_SMALL, "paper": PAPER}

# The published settings of the search methods that P-DARTS is compared with, on CIFAR-10. A setting that a paper does not give is
# DARTS', the base of the others. Their skip limit is eight, so no limit: the limit is P-DARTS' own idea.

# Chen et al., ICCV 2019 (arXiv 1904.12760), section 4.2.
PDARTS = SearchConfig()
# Liu et al., ICLR 2019 (arXiv 1806.09055), appendix A.1.1: 8 cells, 50 epochs, batch 64, alphas by Adam at 3e-4.
DARTS_FIRST = replace(PDARTS, stages=DARTS, batch_size=64, alpha_learning_rate=3e-4, max_skips=8)
DARTS_SECOND = replace(DARTS_FIRST, method=SecondOrder())
# Xie et al., ICLR 2019 (arXiv 1812.09926), section 3.1 and appendix: 150 epochs in one level, the rest as DARTS. The paper gives
# neither temperatures nor the factors of the penalty; those in `methods.py` and `search/resources.py` are this project's.
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
