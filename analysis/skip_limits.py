"""What a limit M on skip-connects does to the cells of searches: which it changes, and their test errors."""

from __future__ import annotations

import numpy as np
import pandas as pd

from common import study_tables
from common.comparisons import mean_intervals
from common.statistics import mean_sd
from common.study_tables import StudyTables
from pdarts_tune.results.tables import final_genotypes

UNLIMITED = 8  # skip-connects that a cell of four nodes can have: refinement at this limit changes nothing


def measure_limits(study: StudyTables) -> tuple[pd.DataFrame, list[str]]:
    """One row a completed trial and limit M at which its last cell was evaluated, with error_percent; and what was left out.

    `changed`: whether the limit makes it another cell than the search's own, as derived.

    A cell can have been evaluated by chance: at a limit that changes nothing it is the cell of another limit. Were such rows kept,
    a limit would be judged by the searches that have few skip-connects. So a limit counts only where all evaluated searches of a
    variant have it.
    """
    last = final_genotypes(study.derived, study.trials, range(UNLIMITED + 1))
    evaluated = study_tables.evaluate_cells(study, last)
    evaluated = evaluated[evaluated["evaluations"] > 0]
    as_derived = last[last["max_skips"] == UNLIMITED].set_index("trial_id")["genotype_id"]
    derived = evaluated["trial_id"].map(as_derived)
    evaluated = evaluated.assign(changed=derived.notna() & (derived != evaluated["genotype_id"]))
    searches = evaluated.groupby("variant")["trial_id"].nunique()
    counts = evaluated.groupby(["variant", "max_skips"], sort=False)["trial_id"].transform("size")
    whole = counts == evaluated["variant"].map(searches)
    partial = evaluated[~whole & evaluated["max_skips"].eq(UNLIMITED)].groupby("variant", sort=False)["trial_id"].size()
    lines = [
        f"{variant}: {count} of {searches[str(variant)]} searches evaluated at M = {UNLIMITED}, left out there"
        for variant, count in partial.items()
    ]
    return evaluated[whole], lines


def count_skips(study: StudyTables, measures: pd.DataFrame) -> pd.DataFrame:
    """`measures`, one row a trial, with `derived_skips`: skip-connects of the normal cell that a completed search ended with."""
    last = final_genotypes(study.derived, study.trials, (UNLIMITED,)).set_index("trial_id")["skips"]
    return measures.assign(derived_skips=measures["trial_id"].map(last).astype(float))


def summarize_limits(limits: pd.DataFrame) -> pd.DataFrame:
    """One row a variant and limit: error, skip-connects, and how many cells the limit changed."""
    rows = []
    order = list(limits["variant"].unique())
    ordered = limits.sort_values("max_skips").groupby(["variant", "max_skips"], sort=False)
    for (variant, limit), cells in sorted(ordered, key=lambda group: order.index(group[0][0])):
        mean, sd = mean_sd(cells["error_percent"])
        skips = float(cells["skips"].mean())
        row = {"variant": variant, "max_skips": limit, "n": len(cells), "changed": int(cells["changed"].sum()), "skips": skips}
        rows.append(row | {"error_percent": mean, "error_percent_sd": sd})
    return pd.DataFrame(rows)


def limits_frame(limits: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """What `figures.draw_limits` draws: variants that were evaluated at more than one limit."""
    several = limits.groupby("variant")["max_skips"].transform("nunique") > 1
    parts = []
    for limit, cells in limits[several].groupby("max_skips"):
        found = mean_intervals(cells, "error_percent", rng).assign(max_skips=limit)
        parts.append(found.assign(low=found["ci_low"].fillna(found["mean"]), high=found["ci_high"].fillna(found["mean"])))
    return pd.concat(parts) if parts else pd.DataFrame()
