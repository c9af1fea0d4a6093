"""Figures from the literature as tables: they stand beside ours, never among them. All are as the authors print them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from pdarts_tune.pdarts.published import PUBLISHED


def _table(columns: str, rows: Sequence[tuple[Any, ...]]) -> pd.DataFrame:
    """`published`, a name, and columns of numbers."""
    names = columns.split()
    return pd.DataFrame(rows, columns=["published", *names]).astype(dict.fromkeys(names, float))


def _cells(names: dict[str, str], *fields: str) -> list[tuple[Any, ...]]:
    return [(name, *(getattr(PUBLISHED[key], field) for field in fields)) for key, name in names.items()]


PUBLISHED_NOTES = """\
Chen et al., ICCV 2019 (arXiv 1904.12760), who also print the DARTS figures; 20 cells, 36 channels, 600 epochs. An independent
replication with 8 runs each found an accuracy of 97.13 ± 0.13 for P-DARTS and 97.24 ± 0.20 for DARTS on CIFAR-10 (Yang et al.,
ICLR 2020). Figures of another data set or recipe cannot be compared with these."""
PUBLISHED_CIFAR = _table(
    "cifar10_error_percent cifar100_error_percent params_millions gpu_days",
    [
        *_cells(
            {"DARTS_V1": "DARTS, first order", "DARTS_V2": "DARTS, second order", "PDARTS_C10": "P-DARTS, found on CIFAR-10"},
            *("cifar10_error", "cifar100_error", "params_millions", "gpu_days"),
        ),
        ("P-DARTS, found on CIFAR-100", 2.62, 15.92, 3.6, 0.3),
        ("DARTS, second order, beside the next three", 2.83, None, None, None),
        ("P-DARTS, cell after stage 1", 2.90, None, None, None),
        ("P-DARTS, cell after stage 2", 2.82, None, None, None),
        ("P-DARTS, cell after stage 3", 2.58, None, None, None),
    ],
)

TRANSFER_NOTES = """\
ImageNet, mobile setting (224 pixels, at most 600M multiply-adds), 250 epochs: as the authors print them. DARTS and SNAS as P-DARTS'
authors cite them (Chen et al., ICCV 2019, table 2)."""
PUBLISHED_IMAGENET = _table(
    "top1_error_percent top5_error_percent params_millions madds_millions",
    [
        *_cells(
            {"DARTS_V2": "DARTS, second order", "SNAS_MILD": "SNAS, mild", "PC_DARTS_C10": "PC-DARTS, found on CIFAR-10"}
            | {"PDARTS_C10": "P-DARTS, found on CIFAR-10"},
            *("imagenet_top1_error", "imagenet_top5_error", "imagenet_params_millions", "imagenet_madds_millions"),
        ),
        ("P-DARTS, found on CIFAR-100", 24.7, 7.5, 5.1, 577),
    ],
)

METHOD_NOTES = """\
As the authors print them, on CIFAR-10 with about 36 channels and 600 epochs; SNAS and DARTS also in Chen et al. (ICCV 2019), table
1. Means of 8 runs ± standard deviation: Yang et al., ICLR 2020. Figures of another data set or recipe cannot be compared with
these."""
PUBLISHED_METHODS = _table(
    "cifar10_error_percent cifar10_error_percent_sd params_millions gpu_days",
    [
        ("DARTS, first order", 3.00, None, 3.3, 1.5),
        ("DARTS, second order", 2.76, None, 3.3, 4.0),
        ("SNAS, mild", 2.98, None, 2.9, 1.5),
        ("SNAS, moderate", 2.85, None, 2.8, 1.5),
        ("SNAS, aggressive", 3.10, None, 2.3, 1.5),
        ("PC-DARTS", 2.57, None, 3.6, 0.1),
        ("P-DARTS", 2.50, None, 3.4, 0.3),
        ("P-DARTS, mean of 8 runs (Yang et al.)", 100 - 97.13, 0.13, None, None),
        ("DARTS, mean of 8 runs (Yang et al.)", 100 - 97.24, 0.20, None, None),
    ],
)

SPACE_NOTES = """\
Test error on CIFAR-10 of cells found in restricted spaces, as the authors print them: Zela et al. (ICLR 2020, arXiv 1909.09656) and
Chu et al. (ICLR 2021, arXiv 2009.01027); one stage of search. Figures of another data set, recipe or stage plan cannot be
compared with these."""
PUBLISHED_SPACES = _table(
    "S1_error_percent S2_error_percent S3_error_percent",
    [
        ("DARTS (Zela et al.)", 3.84, 4.85, 3.34),
        ("DARTS, stopped by the eigenvalue (Zela et al.)", 3.01, 3.26, 2.74),
        ("DARTS-, auxiliary skip (Chu et al.)", 2.68, 2.63, 2.42),
    ],
)
