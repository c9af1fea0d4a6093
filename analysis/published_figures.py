"""Figures from the literature as tables, to stand beside ours and never among them."""

from __future__ import annotations

import pandas as pd

from pdarts_tune.genotype import PUBLISHED

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


def published_cifar() -> pd.DataFrame:
    """Errors on CIFAR as the authors print them."""
    columns = ["published", "cifar10_error_percent", "cifar100_error_percent", "params_millions", "gpu_days"]
    return pd.DataFrame(_CIFAR, columns=columns).astype(dict.fromkeys(columns[1:], float))
