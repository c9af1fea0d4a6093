"""Genotypes side by side: what several trainings by one recipe came to, and what each adds to a random cell of the same space."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from statistics import fmean
from typing import Any

from tabulate import tabulate

from pdarts_tune.config import ConfigError
from pdarts_tune.statistics import mean_sd, relative_improvement


def compare_genotypes(rows: Mapping[str, Sequence[Mapping[str, Any]]], controls: Collection[str]) -> str:
    """A Markdown table with a line a genotype: error, mean and standard deviation over seeds, size, and relative improvement.

    That is `100 (accuracy - accuracy of the controls) / accuracy of the controls` (Yang et al., ICLR 2020, section 3), of mean
    accuracies, in percent; a dash where there is no control.

    Args:
        rows: by the genotype's label, its completed rows of `evaluations`, one or more.
        controls: the labels of those that were drawn at random.

    Raises:
        ConfigError: the rows are of several recipes or data sets: such differences are larger than those between genotypes.
    """
    every = [row for found in rows.values() for row in found]
    for column in ("recipe_id", "data"):
        values = sorted({str(row[column]) for row in every})
        if len(values) > 1:
            raise ConfigError(f"{column}: {', '.join(values)} cannot be compared, evaluate all genotypes by one")
    drawn = [fmean(row["accuracy"] for row in found) for label, found in rows.items() if label in controls]
    lines = []
    for label, found in rows.items():
        mean, deviation = mean_sd([100 * (1 - row["accuracy"]) for row in found])
        gain = relative_improvement(fmean(row["accuracy"] for row in found), fmean(drawn)) if drawn else None
        lines.append(
            (
                label,
                len(found),
                f"{mean:.2f}" + (f" ± {deviation:.2f}" if len(found) > 1 else ""),
                f"{100 * (1 - fmean(row['top5_accuracy'] for row in found)):.2f}",
                f"{found[0]['params'] / 1e6:.2f}",
                f"{fmean(row['seconds'] for row in found):.0f}",
                "–" if gain is None else f"{gain:+.2f}",
            )
        )
    headers = (
        "genotype",
        "trainings",
        "test error, %",
        "top-5 test error, %",
        "params, M",
        "seconds each",
        "relative improvement, %",
    )
    where = f"{every[0]['data']}, recipe {every[0]['recipe_id']}, {len(every[0]['correct'])} test images"
    return f"{where}\n\n" + tabulate(lines, headers, tablefmt="github", disable_numparse=True, colalign=("left", *["right"] * 6))
