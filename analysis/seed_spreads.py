"""How far apart the errors of one variant's searches are, and whether refinement or another search changes that."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common.comparisons import LEVEL
from common.section import show
from common.statistics import brown_forsythe, holm, mean_sd
from skip_limits import UNLIMITED

DERIVED = ", as derived"  # after a variant's name: its cells without refinement


def compare_spreads(measures: pd.DataFrame, limits: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Between-seed standard deviation of each variant, and whether it differs from the baseline's.

    And without refinement, where cells were evaluated as derived: against the same variant refined.
    """
    errors = {str(name): _errors(trials) for name, trials in measures.groupby("variant", sort=False)}
    pairs = [(name, values, errors[baseline] if name != baseline else None) for name, values in errors.items()]
    refined = set(limits.loc[(limits["max_skips"] == limits["own_limit"]) & limits["changed"], "variant"])
    derived = limits[(limits["max_skips"] == UNLIMITED) & limits["variant"].isin(refined)]
    pairs += [(f"{name}{DERIVED}", _errors(cells), errors[str(name)]) for name, cells in derived.groupby("variant", sort=False)]
    rows = []
    for name, values, against in pairs:
        sd = mean_sd(values)[1] if len(values) else np.nan
        p = brown_forsythe(values, against) if against is not None and min(len(values), len(against)) else np.nan
        rows.append({"variant": name, "n": len(values), "between_seeds_points": sd, "p": p})
    table = pd.DataFrame(rows).astype({"p": float})
    tested = table["p"].notna()
    table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"].tolist())
    return table.reindex(columns=["variant", "n", "between_seeds_points", "p", "p_holm"])


def conclude_spreads(spreads: pd.DataFrame, baseline: str) -> tuple[str, ...]:
    """Whether searches of a variant end with errors further apart, or closer together, than those of the baseline."""
    sd = spreads.set_index("variant")["between_seeds_points"].map(lambda points: f"{show(points, 2)} points")
    tested = spreads.dropna(subset="p_holm")
    shown = tested[tested["p_holm"] < LEVEL]
    if tested.empty:
        return ()
    if shown.empty:
        return (f"No spread between seeds is shown to differ (smallest Holm-adjusted p {show(tested['p_holm'].min(), 3)}).",)
    parts = [
        f"{row['variant']} {sd[row['variant']]} (Holm-adjusted p {show(row['p_holm'], 3)}) "
        f"against {sd[row['variant'].removesuffix(DERIVED) if row['variant'].endswith(DERIVED) else baseline]}"
        for row in shown.to_dict("records")
    ]
    return (f"Shown in the standard deviation of the evaluation error between seeds: {'; '.join(parts)}.",)


def _errors(rows: pd.DataFrame) -> NDArray[np.float64]:
    return rows["error_percent"].dropna().to_numpy(dtype=float)
