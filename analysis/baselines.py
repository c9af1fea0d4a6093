"""Does P-DARTS find better cells than the methods it builds on? Reads the tables of the study baselines.

python analysis/baselines.py --results results

Writes baselines.md, tables (CSV, LaTeX) and figures (PNG, SVG) to `<results>/baselines/report` and prints the main table and what
it supports. What searches looked like from inside is drawn by `analysis/diagnostics.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from common import study_tables
from common.comparisons import (
    COMPARISON_NOTES,
    RANK_NOTES,
    SPREAD_NOTES,
    compare_variants,
    conclude,
    rank_table,
    say_power,
    spread_table,
)
from common.figures import SEARCH_NOTES, draw_learning_curves, draw_search, draw_tradeoff
from common.published_figures import METHOD_NOTES, published_methods
from common.section import NOTHING, Section, run_script
from common.statistics import mcnemar, mean_sd, relative_improvement
from common.study_tables import Arms, Read, StudyTables, open_question
from pdarts_tune.config.methods import RandomSampling, trains_alphas
from rq2_approximation import tradeoff_frame

STUDY = "baselines"

RANKED = {"search_accuracy": "search network", "inherited_accuracy": "inherited weights"}

NOTES = SEARCH_NOTES | {
    "methods": f"""\
Means over search seeds ± standard deviation. *over random*: by how many percent its accuracy is above that of cells drawn at
random (Yang et al., ICLR 2020): what the search adds to its space and its training recipe. *s*: of search, on the study's device.
{NOTHING}: none, or not there yet.""",
    "error_differences": COMPARISON_NOTES,
    "against_random": """\
Each method minus random cells: a second question and a family of its own, without P-DARTS. Its row is that of the table of error
differences turned round, with the p of that family: it is tested there, once.""",
    "same_images": """\
McNemar's exact test of two trained networks on the same test images: for each method, its cell and P-DARTS' cell of the first
search and evaluation seed that both have. It speaks of these two networks, not of the methods.""",
    "ranks": RANK_NOTES,
    "spread": SPREAD_NOTES,
    "tradeoff": "Points: means; bars: 95 % bootstrap intervals of the mean over seeds (none with fewer than 3).",
    "learning_curves": "Search networks, epoch by epoch; bands from the lowest to the highest seed.",
    "published": METHOD_NOTES,
}


def build(results: Path, *, figures: bool = True, read: Read = study_tables.read_study) -> Section | None:
    """The comparison of methods; None where `results` has no data for it. Raises ConfigError where study_tables.load_study does."""
    question = open_question(results, STUDY, read, lambda study: study.trials["method"].nunique() > 2)
    if question is None:
        return None
    study, arms, measures, missing, rng = question
    baseline = find_pdarts(arms)
    drawn = next((name for name, config in arms.items() if isinstance(config.method, RandomSampling)), None)
    tables = {"methods": summarize(measures, drawn)}
    conclusion: tuple[str, ...] = ("No search runs in several stages, so there is no P-DARTS to compare with.",)
    if baseline is None:
        missing.insert(0, "no trial of a search in several stages")
    else:
        tables["error_differences"] = compare_variants(measures, "error_percent", baseline, rng)
        hypothesis = "P-DARTS finds better or worse cells than another method"
        conclusion = conclude(tables["error_differences"], baseline, "evaluation error", hypothesis)
        tables["same_images"] = compare_images(study, measures, baseline)
    if drawn is None:
        missing.insert(0, "no cells drawn at random, so nothing says what searching adds")
    else:
        tables["against_random"] = compare_random(measures, tables.get("error_differences"), baseline, drawn, rng)
        conclusion += conclude_random(tables["against_random"], drawn)
    tables["ranks"] = rank_table(study, measures, RANKED, rng)
    tables["spread"] = spread_table(study, measures)
    tables["published"] = published_methods()
    return Section(
        name="baselines",
        title="Does P-DARTS find better cells than the methods it builds on?",
        tables=tables,
        figures=draw(study, measures, rng) | draw_search(study, baseline) if figures else {},
        conclusion=conclusion,
        missing=tuple(missing),
        notes=NOTES,
        about=study_tables.describe_study(study),
    )


def find_pdarts(arms: Arms) -> str | None:
    """The first search in several stages."""
    return next((name for name, config in arms.items() if trains_alphas(config.method) and len(config.stages) > 1), None)


def summarize(measures: pd.DataFrame, drawn: str | None) -> pd.DataFrame:
    """One row a variant: method, error, what it adds to random cells, parameters, skip-connects and seconds."""
    reference = measures.loc[measures["variant"] == drawn, "accuracy"].dropna()
    rows = []
    for variant, trials in measures.groupby("variant", sort=False):
        done = trials[trials["status"] == "completed"]
        row: dict[str, object] = {"variant": variant, "method": trials["method"].iloc[0], "seeds": len(trials)}
        row["evaluated"] = int(trials["error_percent"].count())
        shown = {"error_percent": done["error_percent"], "params_millions": done["params"] / 1e6, "skips": done["skips"]}
        for column, values in (shown | {"search_seconds": done["seconds"]}).items():
            known = values.dropna().astype(float)
            row[column], row[f"{column}_sd"] = mean_sd(known) if len(known) else (np.nan, np.nan)
        accuracies = done["accuracy"].dropna()
        comparable = len(accuracies) and len(reference) and variant != drawn
        added = relative_improvement(float(accuracies.mean()), float(reference.mean())) if comparable else np.nan
        row["over_random_percent"] = added
        rows.append(row)
    return pd.DataFrame(rows)


def compare_images(study: StudyTables, measures: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """McNemar's test of each method against the baseline, on the first cells and evaluations of equal seeds."""
    flags = study_tables.read_correct(study)
    known = measures.dropna(subset=["accuracy"])
    seeds = sorted(study.evaluations["seed"].unique())
    rows = []
    for variant in (name for name in known["variant"].unique() if name != baseline):
        sides = (known.loc[known["variant"] == name, ["seed", "split_seed", "genotype_id"]] for name in (variant, baseline))
        pairs = next(sides).merge(next(sides), on=["seed", "split_seed"], suffixes=("", "_baseline")).sort_values("seed")
        for one, other in pairs[["genotype_id", "genotype_id_baseline"]].to_numpy().tolist():
            seed = next((seed for seed in seeds if (one, seed) in flags and (other, seed) in flags), None)
            if seed is not None and one != other:
                found = mcnemar(flags[one, seed], flags[other, seed])
                row = {"variant": variant, "images": found.n, "only_it_right": found.only_a, f"only_{baseline}_right": found.only_b}
                rows.append(row | {"p": found.p_value})
                break
    return pd.DataFrame(rows)


def compare_random(
    measures: pd.DataFrame, errors: pd.DataFrame | None, baseline: str | None, drawn: str, rng: np.random.Generator
) -> pd.DataFrame:
    """Every method minus random cells; the baseline's row is the one that `errors` has, turned round, and is not tested again."""
    found = compare_variants(measures[measures["variant"] != baseline], "error_percent", drawn, rng)
    if errors is None:
        return found
    row = errors[errors["variant"] == drawn]
    turned = {"variant": baseline, "difference": -row["difference"], "ci_low": -row["ci_high"], "ci_high": -row["ci_low"]}
    return pd.concat([row.assign(**turned), found], ignore_index=True)


def conclude_random(comparisons: pd.DataFrame, drawn: str) -> tuple[str, ...]:
    tested = comparisons[comparisons["n"] > 0]
    if tested.empty:
        return (f"No method shares a seed with {drawn}, so nothing says what searching adds.",)
    better = tested[tested["claimed"] & (tested["difference"] < 0)]["variant"]
    worse = tested[tested["claimed"] & (tested["difference"] > 0)]["variant"]
    if better.empty and worse.empty:
        null = f"No method is shown to find better or worse cells than {drawn} ones (n = {tested['n'].max()})"
        return (f"{null}: {say_power(tested)}.",)
    parts = [f"{word} than {drawn}: {', '.join(names)}" for word, names in (("better", better), ("worse", worse)) if len(names)]
    return (f"Shown to find cells that are {'; '.join(parts)}.",)


def draw(study: StudyTables, measures: pd.DataFrame, rng: np.random.Generator) -> dict[str, Figure]:
    figures = {}
    points = tradeoff_frame(measures.assign(peak_mebibytes=np.nan), rng)
    if points["mean"].notna().any() and points["seconds"].notna().any():
        figures["tradeoff"] = draw_tradeoff(points, {"seconds": "seconds of search"})
    if len(study.epochs):
        figures["learning_curves"] = draw_learning_curves(study_tables.average_curves(study.epochs, "validation_accuracy"))
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    run_script(build, STUDY, __doc__, arguments)


if __name__ == "__main__":
    main()
