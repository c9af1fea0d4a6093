"""Figures from the literature as tables: they stand beside ours, never among them."""

from __future__ import annotations

import pandas as pd

from pdarts_tune.pdarts.published import PUBLISHED

_CIFAR = (  # as the authors print them: name, CIFAR-10 and CIFAR-100 error %, parameters M, search cost in GPU days
    *(
        (name, cell.cifar10_error, cell.cifar100_error, cell.params_millions, cell.gpu_days)
        for name, cell in (
            ("DARTS, first order", PUBLISHED["DARTS_V1"]),
            ("DARTS, second order", PUBLISHED["DARTS_V2"]),
            ("P-DARTS, found on CIFAR-10", PUBLISHED["PDARTS_C10"]),
        )
    ),
    ("P-DARTS, found on CIFAR-100", 2.62, 15.92, 3.6, 0.3),
    ("DARTS, second order, beside the next three", 2.83, None, None, None),
    ("P-DARTS, cell after stage 1", 2.90, None, None, None),
    ("P-DARTS, cell after stage 2", 2.82, None, None, None),
    ("P-DARTS, cell after stage 3", 2.58, None, None, None),
)
PUBLISHED_NOTES = """\
Chen et al., ICCV 2019 (arXiv 1904.12760), who also print the DARTS figures; 20 cells, 36 channels, 600 epochs. An independent
replication with 8 runs each found an accuracy of 97.13 ± 0.13 for P-DARTS and 97.24 ± 0.20 for DARTS on CIFAR-10 (Yang et al.,
ICLR 2020). Figures of another data set or recipe cannot be compared with these."""


TRANSFER_NOTES = """\
ImageNet, mobile setting (224 pixels, at most 600M multiply-adds), 250 epochs: as the authors print them. DARTS and SNAS as P-DARTS'
authors cite them (Chen et al., ICCV 2019, table 2)."""

METHOD_NOTES = """\
As the authors print them, on CIFAR-10 with about 36 channels and 600 epochs; SNAS and DARTS also in Chen et al. (ICCV 2019), table
1. Means of 8 runs ± standard deviation: Yang et al., ICLR 2020. Figures of another data set or recipe cannot be compared with
these."""


SPACE_NOTES = """\
Test error on CIFAR-10 of cells found in restricted spaces, as the authors print them: Zela et al. (ICLR 2020, arXiv 1909.09656) and
Chu et al. (ICLR 2021, arXiv 2009.01027); one stage of search. Figures of another data set, recipe or stage plan cannot be
compared with these."""


def published_spaces() -> pd.DataFrame:
    """Errors on CIFAR-10 in the spaces S1 to S3, as the authors print them."""
    rows = [
        ("DARTS (Zela et al.)", 3.84, 4.85, 3.34),
        ("DARTS, stopped by the eigenvalue (Zela et al.)", 3.01, 3.26, 2.74),
        ("DARTS-, auxiliary skip (Chu et al.)", 2.68, 2.63, 2.42),
    ]
    return pd.DataFrame(rows, columns=["published", "S1_error_percent", "S2_error_percent", "S3_error_percent"])


def published_cifar() -> pd.DataFrame:
    """Errors on CIFAR as the authors print them."""
    columns = ["published", "cifar10_error_percent", "cifar100_error_percent", "params_millions", "gpu_days"]
    return pd.DataFrame(_CIFAR, columns=columns).astype(dict.fromkeys(columns[1:], float))


_IMAGENET = (  # top-1 and top-5 error %, parameters M, multiply-adds M
    *(
        (name, cell.imagenet_top1_error, cell.imagenet_top5_error, cell.imagenet_params_millions, cell.imagenet_madds_millions)
        for name, cell in (
            ("DARTS, second order", PUBLISHED["DARTS_V2"]),
            ("SNAS, mild", PUBLISHED["SNAS_MILD"]),
            ("PC-DARTS, found on CIFAR-10", PUBLISHED["PC_DARTS_C10"]),
            ("P-DARTS, found on CIFAR-10", PUBLISHED["PDARTS_C10"]),
        )
    ),
    ("P-DARTS, found on CIFAR-100", 24.7, 7.5, 5.1, 577),
)


def published_imagenet() -> pd.DataFrame:
    """Errors on ImageNet as the authors print them."""
    columns = ["published", "top1_error_percent", "top5_error_percent", "params_millions", "madds_millions"]
    return pd.DataFrame(_IMAGENET, columns=columns).astype(dict.fromkeys(columns[1:], float))


def published_methods() -> pd.DataFrame:
    """Errors on CIFAR-10 of the methods that the study of baselines runs, as the authors print them."""
    rows = [
        ("DARTS, first order", 3.00, None, 3.3, 1.5),
        ("DARTS, second order", 2.76, None, 3.3, 4.0),
        ("SNAS, mild", 2.98, None, 2.9, 1.5),
        ("SNAS, moderate", 2.85, None, 2.8, 1.5),
        ("SNAS, aggressive", 3.10, None, 2.3, 1.5),
        ("PC-DARTS", 2.57, None, 3.6, 0.1),
        ("P-DARTS", 2.50, None, 3.4, 0.3),
        ("P-DARTS, mean of 8 runs (Yang et al.)", 100 - 97.13, 0.13, None, None),
        ("DARTS, mean of 8 runs (Yang et al.)", 100 - 97.24, 0.20, None, None),
    ]
    columns = ["published", "cifar10_error_percent", "cifar10_error_percent_sd", "params_millions", "gpu_days"]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[1:], float))
