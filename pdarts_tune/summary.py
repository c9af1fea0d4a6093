"""The figures by which trials and variants are compared, from the rows of the tables: what tracking.py sends to MLflow.

Times and steps follow from the rows alone, so that the same rows always give the same points.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from pdarts_tune.schemas import SCHEMAS

Row = Mapping[str, Any]

SWEPT = ("method", "data", "depths", "operations", "skip_dropout", "epochs", "max_skips", "channels", "batch_size")

_EPOCH_KEYS = [name for name in SCHEMAS["epochs"].names if name not in ("trial_id", "epoch", "phase", "finished")]


class Point(NamedTuple):
    """One value of one metric, as MLflow stores it."""

    key: str
    value: float
    timestamp: int  # milliseconds since 1970, UTC
    step: int


def milliseconds(time: datetime) -> int:
    """Milliseconds since 1970, UTC."""
    return round(time.timestamp() * 1000)


def epoch_points(epochs: Iterable[Row]) -> list[list[Point]]:
    """For each epoch in order, a point of every column that is not null; `step` counts epochs over all stages from 0.

    Keys start with `epoch/`: some columns have the same name as a figure of the whole trial.
    """
    ordered = sorted(epochs, key=lambda row: (row["stage"], row["epoch"]))
    return [
        [
            Point(f"epoch/{name}", float(row[name]), milliseconds(row["finished"]), step)
            for name in _EPOCH_KEYS
            if row[name] is not None
        ]
        for step, row in enumerate(ordered)
    ]


def final_genotype(trial: Row, genotypes: Iterable[Row]) -> Row | None:
    """The row of `genotypes` that a completed trial ends with: of its last stage, at its own skip limit."""
    rows = [row for row in genotypes if row["max_skips"] == trial["max_skips"]]
    return max(rows, key=lambda row: row["stage"]) if rows and trial["status"] == "completed" else None


def chosen_epoch(trial: Row, epochs: Sequence[Row]) -> Row | None:
    """The row of `epochs` that a completed search took its cell from, see `rows.genotype_rows`; None where nothing was trained.

    Of a random search the last epoch of the best candidate; of another search that epoch of the last stage whose alphas decided.
    """
    by_place = {(row["stage"], row["epoch"]): row for row in epochs}
    ends = [by_place[row["stage"], row["derived_epoch"]] for row in epochs if row["derived_epoch"] is not None]
    key = "validation_accuracy" if trial["method"] == "random_search" else "stage"
    return max(sorted(ends, key=lambda row: row["stage"]), key=lambda row: row[key], default=None)  # of equals, the first


def trial_points(trial: Row, epochs: Sequence[Row], genotypes: Sequence[Row], evaluations: Sequence[Row]) -> list[Point]:
    """The figures of a trial that is over, as far as they are known; none while it runs.

    `search_validation_accuracy` is that of the network that the trial's cell was taken from.
    `evaluation_error_percent` (the mean over evaluation seeds) and `depth_gap` (search minus evaluation accuracy, fraction) are
    of the trial's own data set and the recipe that was used first on it; other data sets and recipes have figures of their own,
    `evaluation_error_percent/<data>/<recipe_id>`. Their `step` is the number of evaluations that the mean is over, so the newest
    point is the one over most; for all other figures it is the attempt.

    Args:
        evaluations: any; those of other genotypes, and those that are not completed, are left out.
    """
    if trial["status"] == "running":
        return []
    figures: dict[str, float | None] = {"search_seconds": trial["seconds"], "peak_bytes": trial["peak_bytes"]}
    genotype = final_genotype(trial, genotypes)
    averages: list[Point] = []
    if genotype is not None:
        chosen = chosen_epoch(trial, epochs)
        search = chosen["validation_accuracy"] if chosen else None
        figures |= {
            "search_validation_accuracy": search,
            "inherited_accuracy": genotype["inherited_accuracy"],
            "normal_skip_count": genotype["skips"],
            "params_millions": genotype["params"] / 1e6,
        }
        averages = _evaluation_points(trial, genotype, search, evaluations)
    time, step = milliseconds(trial["finished"]), trial["attempts"]
    return [Point(key, float(value), time, step) for key, value in figures.items() if value is not None] + averages


def _evaluation_points(trial: Row, genotype: Row, search: float | None, evaluations: Iterable[Row]) -> list[Point]:
    recipes: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in sorted(evaluations, key=lambda row: (row["started"], row["trial_id"])):
        if row["genotype_id"] == genotype["genotype_id"] and row["status"] == "completed":
            recipes[row["data"], row["recipe_id"]].append(row)
    own = next((key for key in recipes if key[0] == trial["data"]), None)
    points = []
    for (data, recipe_id), rows in recipes.items():
        accuracy = sum(row["accuracy"] for row in rows) / len(rows)
        time = milliseconds(max(row["finished"] for row in rows))
        suffix = "" if (data, recipe_id) == own else f"/{data}/{recipe_id}"
        points.append(Point(f"evaluation_error_percent{suffix}", 100 * (1 - accuracy), time, len(rows)))
        if search is not None and not suffix:
            points.append(Point("depth_gap", search - accuracy, time, len(rows)))
    return points


def study_points(trials: Iterable[tuple[Row, Sequence[Point]]]) -> list[Point]:
    """For each variant the mean over its trials of every figure in `trial_points`, and how many trials are completed.

    Keys are `<variant>/<figure>`; `step` is the number of trials that the mean is over.

    Args:
        trials: rows of `trials`, each with its `trial_points`; those that are not completed are left out of the means.
    """
    values: dict[str, list[Point]] = defaultdict(list)
    for trial, points in trials:
        if trial["status"] == "completed":
            done = Point("completed_trials", 1.0, milliseconds(trial["finished"]), 0)
            for point in (*points, done):
                values[f"{trial['variant']}/{point.key}"].append(point)
    return [
        Point(
            key,
            float(len(points)) if key.endswith("/completed_trials") else sum(point.value for point in points) / len(points),
            max(point.timestamp for point in points),
            len(points),
        )
        for key, points in values.items()
    ]
