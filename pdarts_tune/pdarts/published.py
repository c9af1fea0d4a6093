"""Genotypes from the literature, with their sources and their authors' figures.

Each cell is from its paper's figure or from its authors' release. A test compares its number of parameters with the published one,
to the one decimal that papers print; a wrong operation would show. `note` says where our count and the paper's differ, and which
figures have no printed source.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pdarts_tune.pdarts.genotype import CellGenotype, Genotype


@dataclass(frozen=True)
class Published:
    """A genotype from the literature. Figures are the authors' own; None where they print none."""

    normal: str  # operation:source state, two per node; `-> states` where the output does not join all nodes
    reduce: str
    source: str
    cifar10_error: float | None = None  # percent
    cifar100_error: float | None = None  # percent
    imagenet_top1_error: float | None = None  # percent
    imagenet_top5_error: float | None = None  # percent
    params_millions: float | None = None  # CIFAR setting; of DARTS-family papers: 36 channels, 20 cells
    imagenet_params_millions: float | None = None
    imagenet_madds_millions: float | None = None
    gpu_days: float | None = None  # of the search
    note: str = ""  # what to know before comparing

    @property
    def genotype(self) -> Genotype:
        return Genotype(_cell(self.normal), _cell(self.reduce))


def _cell(text: str) -> CellGenotype:
    operations, _, concat = text.partition(" -> ")
    edges = tuple((name, int(source)) for name, source in (edge.split(":") for edge in operations.split()))
    every_node = range(2, 2 + len(edges) // 2)
    return CellGenotype(edges, tuple(map(int, concat.split())) if concat else tuple(every_node))


PUBLISHED: Mapping[str, Published] = {
    "PDARTS_C10": Published(
        "skip_connect:0 dil_conv_3x3:1 skip_connect:0 sep_conv_3x3:1 sep_conv_3x3:1 sep_conv_3x3:3 sep_conv_3x3:0 dil_conv_5x5:4",
        "avg_pool_3x3:0 sep_conv_5x5:1 sep_conv_3x3:0 dil_conv_5x5:2 max_pool_3x3:0 dil_conv_3x3:1 dil_conv_3x3:1 dil_conv_5x5:3",
        "Chen et al., ICCV 2019, arXiv 1904.12760 (the cell that its authors published; found on CIFAR-10)",
        cifar10_error=2.50,
        cifar100_error=16.55,
        imagenet_top1_error=24.4,
        imagenet_top5_error=7.4,
        params_millions=3.4,
        imagenet_params_millions=4.9,
        imagenet_madds_millions=557,
        gpu_days=0.3,
        note="another run's cell than the one drawn in the paper; with 64 channels 2.25 and 15.27 at 10.5M",
    ),
    "DARTS_V1": Published(
        "sep_conv_3x3:1 sep_conv_3x3:0 skip_connect:0 sep_conv_3x3:1 skip_connect:0 sep_conv_3x3:1 sep_conv_3x3:0 skip_connect:2",
        "max_pool_3x3:0 max_pool_3x3:1 skip_connect:2 max_pool_3x3:0 max_pool_3x3:0 skip_connect:2 skip_connect:2 avg_pool_3x3:0",
        "Liu et al., ICLR 2019, arXiv 1806.09055, first order",
        cifar10_error=3.00,
        cifar100_error=17.76,
        params_millions=3.3,
        gpu_days=1.5,
        note="the cell that its authors released has 3.2M",
    ),
    "DARTS_V2": Published(
        "sep_conv_3x3:0 sep_conv_3x3:1 sep_conv_3x3:0 sep_conv_3x3:1 sep_conv_3x3:1 skip_connect:0 skip_connect:0 dil_conv_3x3:2",
        "max_pool_3x3:0 max_pool_3x3:1 skip_connect:2 max_pool_3x3:1 max_pool_3x3:0 skip_connect:2 skip_connect:2 max_pool_3x3:1",
        "Liu et al., ICLR 2019, arXiv 1806.09055, second order",
        cifar10_error=2.76,
        cifar100_error=17.54,
        imagenet_top1_error=26.7,
        imagenet_top5_error=8.7,
        params_millions=3.3,
        imagenet_params_millions=4.7,
        imagenet_madds_millions=574,
        gpu_days=4.0,
        note="no count that we tried gives the paper's 574M multiply-adds; by the count that gives P-DARTS' 557M it has 545M",
    ),
    "SNAS_MILD": Published(
        "sep_conv_3x3:0 sep_conv_3x3:1 skip_connect:0 dil_conv_3x3:1 skip_connect:0 skip_connect:1 skip_connect:0 sep_conv_3x3:1",
        "max_pool_3x3:0 max_pool_3x3:1 skip_connect:2 max_pool_3x3:1 max_pool_3x3:1 skip_connect:2 dil_conv_5x5:2 max_pool_3x3:0",
        "Xie et al., ICLR 2019, arXiv 1812.09926, mild constraint",
        cifar10_error=2.98,
        imagenet_top1_error=27.3,
        imagenet_top5_error=9.2,
        params_millions=2.9,
        imagenet_params_millions=4.3,
        imagenet_madds_millions=522,
        gpu_days=1.5,
        note="this cell has 2.7M (3.9M on ImageNet), whatever the paper counted",
    ),
    "PC_DARTS_C10": Published(
        "sep_conv_3x3:1 skip_connect:0 sep_conv_3x3:0 dil_conv_3x3:1 sep_conv_5x5:0 sep_conv_3x3:1 avg_pool_3x3:0 dil_conv_3x3:1",
        "sep_conv_5x5:1 max_pool_3x3:0 sep_conv_5x5:1 sep_conv_5x5:2 sep_conv_3x3:0 sep_conv_3x3:3 sep_conv_3x3:1 sep_conv_3x3:2",
        "Xu et al., ICLR 2020, arXiv 1907.05737, found on CIFAR-10",
        cifar10_error=2.57,
        imagenet_top1_error=25.1,
        imagenet_top5_error=7.8,
        params_millions=3.6,
        imagenet_params_millions=5.3,
        imagenet_madds_millions=586,
        gpu_days=0.1,
    ),
    "PC_DARTS_IMAGENET": Published(
        "skip_connect:1 sep_conv_3x3:0 sep_conv_3x3:0 skip_connect:1 sep_conv_3x3:1 sep_conv_3x3:3 sep_conv_3x3:1 dil_conv_5x5:4",
        "sep_conv_3x3:0 skip_connect:1 dil_conv_5x5:2 max_pool_3x3:1 sep_conv_3x3:2 sep_conv_3x3:1 sep_conv_5x5:0 sep_conv_3x3:3",
        "Xu et al., ICLR 2020, arXiv 1907.05737, found on ImageNet",
        imagenet_top1_error=24.2,
        imagenet_top5_error=7.3,
        imagenet_params_millions=5.3,
        imagenet_madds_millions=597,
        gpu_days=3.8,
    ),
    "GDAS": Published(
        "skip_connect:0 skip_connect:1 skip_connect:0 sep_conv_5x5:2 sep_conv_3x3:3 skip_connect:0 sep_conv_5x5:4 sep_conv_3x3:3",
        "sep_conv_5x5:0 sep_conv_3x3:1 sep_conv_5x5:2 sep_conv_5x5:1 dil_conv_5x5:2 sep_conv_3x3:1 sep_conv_5x5:0 sep_conv_5x5:1",
        "Dong & Yang, CVPR 2019, arXiv 1910.04465",
        cifar10_error=2.93,
        cifar100_error=18.38,
        imagenet_top1_error=26.0,
        imagenet_top5_error=8.5,
        params_millions=3.4,
        imagenet_params_millions=5.3,
        imagenet_madds_millions=581,
        gpu_days=0.21,
        note="on ImageNet with 50 channels (authors' README: GDAS_V1 50 14), where it has 5.3M and its convolutions take 581M; "
        "unconfirmed, for want of a printed source: the 581M itself, and the ImageNet errors",
    ),
    "NASNET_A": Published(
        "sep_conv_5x5:1 sep_conv_3x3:0 sep_conv_5x5:0 sep_conv_3x3:0 avg_pool_3x3:1 skip_connect:0 "
        "avg_pool_3x3:0 avg_pool_3x3:0 sep_conv_3x3:1 skip_connect:1",
        "sep_conv_5x5:1 sep_conv_7x7:0 max_pool_3x3:1 sep_conv_7x7:0 avg_pool_3x3:1 sep_conv_5x5:0 "
        "skip_connect:3 avg_pool_3x3:2 sep_conv_3x3:2 max_pool_3x3:1 -> 4 5 6",
        "Zoph et al., CVPR 2018, arXiv 1707.07012, figure 4",
        cifar10_error=2.65,
        imagenet_top1_error=26.0,
        imagenet_top5_error=8.4,
        params_millions=3.3,
        imagenet_params_millions=5.3,
        imagenet_madds_millions=564,
        gpu_days=2000,
        note="figures of its authors' own network, which stacks cells in another way; in DARTS' it has 3.8M with 36 channels, and "
        "the 3.1M of DARTS' authors' retraining (2.83 %; arXiv 1806.09055, table 1) with 32",
    ),
    "AMOEBANET_A": Published(
        "avg_pool_3x3:0 max_pool_3x3:1 sep_conv_3x3:0 sep_conv_5x5:2 sep_conv_3x3:0 avg_pool_3x3:3 "
        "sep_conv_3x3:1 skip_connect:1 skip_connect:0 avg_pool_3x3:1 -> 4 5 6",
        "avg_pool_3x3:0 sep_conv_3x3:1 max_pool_3x3:0 sep_conv_7x7:2 sep_conv_7x7:0 avg_pool_3x3:1 "
        "max_pool_3x3:0 max_pool_3x3:1 conv_7x1_1x7:0 sep_conv_3x3:5 -> 3 4 6",
        "Real et al., AAAI 2019, arXiv 1802.01548, figure 5",
        cifar10_error=3.34,
        imagenet_top1_error=25.5,
        imagenet_top5_error=8.0,
        params_millions=3.2,
        imagenet_params_millions=5.1,
        imagenet_madds_millions=555,
        gpu_days=3150,
        note="figures of its authors' own network, which stacks cells in another way; in DARTS' it has 3.1M, as in DARTS' authors' "
        "retraining (3.12 %, 3.1M; arXiv 1806.09055, table 1)",
    ),
}

_ALIASES = {  # other projects' names, without - and _
    "PDARTS": "PDARTS_C10",
    "PDARTSCIFAR": "PDARTS_C10",
    "PDARTSCIFAR10": "PDARTS_C10",
    "DARTS": "DARTS_V2",
    "DARTSFIRST": "DARTS_V1",
    "DARTSSECOND": "DARTS_V2",
    "SNAS": "SNAS_MILD",
    "PCDARTS": "PC_DARTS_C10",
    "PCDARTSCIFAR": "PC_DARTS_C10",
    "PCDARTSCIFAR10": "PC_DARTS_C10",
    "PCDARTSIMAGE": "PC_DARTS_IMAGENET",
    "GDASV1": "GDAS",
    "NASNET": "NASNET_A",
    "AMOEBANET": "AMOEBANET_A",
} | {name.replace("_", ""): name for name in PUBLISHED}


def published_name(text: str) -> str | None:
    """The key in PUBLISHED of a name as people type it: in any case, with - or _, or as other projects call the cell."""
    return _ALIASES.get(re.sub("[-_ ]", "", text).upper())
