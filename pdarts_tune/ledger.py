"""What a study's tables say of it: which of its trials are finished, which are missing, and what they found."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import pandas as pd

from pdarts_tune.plan import EvalTrial, Plan, SearchTrial
from pdarts_tune.results import read_table
from pdarts_tune.storage import Storage
from pdarts_tune.study_table import read_study_table

_STATE = {"trials": ("trial_id", "status", "error"), "evaluations": ("trial_id", "status", "data", "left_out", "shared")}


def missing_trials(trials: Sequence[SearchTrial | EvalTrial], table: str, folder: Storage) -> list[SearchTrial | EvalTrial]:
    """Those of the trials that the table does not hold as completed or over their limit."""
    finished = _finished(folder, table) | (over_limit(folder) if table == "trials" else set())
    return [trial for trial in trials if trial.trial_id not in finished]


def found_genotypes(plan: Plan, folder: Path | Storage) -> dict[str, str]:
    """The distinct genotypes (id to text) that the plan's finished searches ended with, at the skip limits of their variants."""
    finished = _finished(folder, "trials")
    if not finished:
        return {}
    limits = {variant.name: variant.limits for variant in plan.variants}
    columns = ("trial_id", "stage", "max_skips", "genotype_id", "genotype")
    rows = read_columns(
        Storage(folder), "genotypes", *columns, max_skips=tuple(sorted({m for chosen in limits.values() for m in chosen}))
    )
    last = rows[rows.stage == rows.groupby("trial_id").stage.transform("max")]
    found = {(row.trial_id, row.max_skips): (str(row.genotype_id), str(row.genotype)) for row in last.itertuples(index=False)}
    return dict(
        found[trial.trial_id, limit] for trial in plan.searches() if trial.trial_id in finished for limit in limits[trial.variant]
    )


def study_is_done(plan: Plan, folder: Storage) -> bool:
    """Whether the tables hold every search and every evaluation of the plan; never so where schedules are chosen on the way."""
    if plan.study.adaptive or missing_trials(plan.searches(), "trials", folder):
        return False
    return not missing_trials(plan.evaluations(found_genotypes(plan, folder)), "evaluations", folder)


def _finished(folder: Path | Storage, table: str) -> set[str]:
    rows = read_columns(Storage(folder), table, *_STATE[table])
    return set(rows.trial_id[rows.status == "completed"])


def over_limit(folder: Path | Storage) -> set[str]:
    """The searches that were ended because a stage would take more than their memory limit, as another attempt's would."""
    rows = read_columns(Storage(folder), "trials", *_STATE["trials"])
    return set(rows.trial_id[(rows.status == "out_of_memory") & rows.error.str.startswith("MemoryLimitError").fillna(False)])


def failed_tables(folder: Path | Storage) -> list[str]:
    """The tables that say why trials have failed."""
    counts = {
        table: set(rows.trial_id[rows.status.isin(["failed", "out_of_memory"])])
        for table, rows in ((table, read_columns(Storage(folder), table, *columns)) for table, columns in _STATE.items())
    }
    counts["trials"] -= over_limit(folder)
    return [table for table, trials in counts.items() if trials]


def read_columns(folder: Storage, table: str, *columns: str, max_skips: tuple[int, ...] | None = None) -> pd.DataFrame:
    """These columns of a table, read again only when one of its files has changed; no rows where there are no files.

    Args:
        max_skips: of `genotypes`, the rows at these limits alone.
    """
    return _read_once(folder.location, table, columns, max_skips, tuple(folder.stamps(table).items()))


@lru_cache(maxsize=8)
def _read_once(
    location: str, table: str, columns: tuple[str, ...], max_skips: tuple[int, ...] | None, stamps: tuple[tuple[str, str], ...]
) -> pd.DataFrame:
    folder = Storage(location)
    if not stamps:
        return pd.DataFrame({column: pd.Series(dtype=str) for column in columns})
    if not folder.is_remote:
        return read_study_table(folder.path, table, columns, only={} if max_skips is None else {"max_skips": max_skips})
    rows = read_table(folder, table, columns)
    return rows if max_skips is None else rows[rows.max_skips.isin(max_skips)]


def image_warnings(folder: Path | Storage) -> list[str]:
    """What the evaluations found wrong with the images of their data sets: the processes that saw it have no terminal."""
    columns = ["data", "left_out", "shared"]
    counts = read_columns(Storage(folder), "evaluations", *_STATE["evaluations"])[columns].groupby("data").max()
    says = {
        "left_out": "images of {} cannot be used and were left out",
        "shared": "of {}'s test images are among its training images too",
    }
    return [
        f"{row[column]:.0f} {says[column].format(name)}" for name, row in counts.iterrows() for column in says if row[column] > 0
    ]


def forget_checkpoints(folder: Storage) -> None:
    """Removes what trials left that were killed between their last row and the end."""
    names = folder.stamps("checkpoints")
    if names:
        finished = _finished(folder, "trials") | _finished(folder, "evaluations")
        for name in names:
            if name.removesuffix(".pt") in finished:
                folder.remove(f"checkpoints/{name}")
