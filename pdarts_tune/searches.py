"""The published settings of every search method that P-DARTS is compared with, on CIFAR-10, as whole configurations.

Where a paper leaves a setting out it is DARTS', which the others build on. Skip-connects are limited to eight, all there are: that
limit is P-DARTS' own idea.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pdarts_tune.config import SearchConfig
from pdarts_tune.methods import PartialChannels, RandomSampling, RandomSearch, SecondOrder, Snas
from pdarts_tune.stages import DARTS, PC_DARTS, SNAS, Stage

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
