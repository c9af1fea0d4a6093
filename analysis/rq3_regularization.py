"""RQ3: do dropout on skip-connects and a limit on their number stabilise the search and improve what it finds?

python analysis/rq3_regularization.py --results results

Reads the tables of the study regularization, writes rq3.md, tables (CSV, LaTeX) and figures (PNG, SVG) to
`<results>/regularization/report` and prints the main table and what it supports. Which variant has dropout, and at which limits M
its cells were evaluated, is read from configurations and tables, so any study of them will do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from common import study_tables
from common.comparisons import (
    COMPARISON_NOTES,
    SPREAD_NOTES,
    cannot_show,
    compare_pairs,
    compare_variants,
    conclude,
    describe_row,
    say_power,
    spread_table,
)
from common.figures import SEARCH_NOTES, draw_learning_curves, draw_limits, draw_search
from common.published_figures import PUBLISHED_NOTES, published_cifar
from common.section import Section, run_script, show
from common.statistics import mean_sd, proportion_interval
from common.study_tables import Arms, Read, StudyTables, differences, has_skip_dropout, open_question
from pdarts_tune.config.methods import trains_alphas
from seed_spreads import compare_spreads, conclude_spreads
from skip_limits import UNLIMITED, count_skips, limits_frame, measure_limits, summarize_limits

STUDY = "regularization"

NOTES = SEARCH_NOTES | {
    "two_by_two": """\
Dropout on skip-connects (the first variant that has it, and the one that differs from it in nothing else) against refinement (the
limit M of the configuration, and 8, which is none). Mean test error over search seeds ± standard deviation. Refinement changes what
is derived from a search, not the search, so both columns are of the same searches.""",
    "effects": """\
From the 2 x 2 table, in points of test error, paired by seed. *dropout*: with minus without, mean over both limits. *refinement*:
refined minus as derived, mean over both. *interaction*: effect of dropout on refined cells minus that on cells as derived.

"""
    + COMPARISON_NOTES,
    "error_differences": """\
Every variant at its own M, minus the first with dropout: a second question and a family of its own. The variant without dropout is
not among them where the table of effects tests it.

"""
    + COMPARISON_NOTES,
    "skip_differences": """\
Skip-connects of the normal cell as derived, before refinement: every searched variant minus the first with dropout, paired by seed.
A question and a family of its own.""",
    "by_limit": """\
Test error of the cells derived at each limit M. *changed*: cells that the limit makes other ones than the search's own. *skips*:
skip-connects of the normal cells.""",
    "collapse": """\
Searches whose normal cell, before refinement, was more than half skip-connects (5 of 8): at the end of the last stage, and at any
epoch. Intervals: Wilson, 95 %.""",
    "spread_between_seeds": """\
Standard deviation of the test error over search seeds, and the Brown-Forsythe test of equal spreads: of each variant against the
first with dropout, and of cells as derived against the same searches' refined ones (those two are not independent, which makes the
test cautious). Searches that found the same cell have its error each, which is no spread. One family, Holm-adjusted; it needs three
seeds on both sides and has little power below ten.""",
    "spread": SPREAD_NOTES,
    "skips": "Skip-connects of the normal cell that would be derived, before refinement; bands from lowest to highest seed.",
    "eigenvalue": "Largest eigenvalue of the validation loss's Hessian by the alphas, where it was measured.",
    "limits": "Bars: 95 % bootstrap intervals of the mean over seeds (none with fewer than 3).",
    "learning_curves": "Search networks, epoch by epoch; bands from the lowest to the highest seed.",
    "published": PUBLISHED_NOTES,
}


def build(results: Path, *, figures: bool = True, read: Read = study_tables.read_study) -> Section | None:
    """The answer to RQ3; None where `results` has no data for it. Raises ConfigError where study_tables.load_study does."""
    question = open_question(results, STUDY, read, is_about_regularization)
    if question is None:
        return None
    study, arms, measures, missing, rng = question
    limits, partial = measure_limits(study)
    missing += partial
    baseline = next((name for name, config in arms.items() if has_skip_dropout(config)), None)
    plain = find_plain(arms, baseline)
    tables: dict[str, pd.DataFrame] = {}
    conclusion: tuple[str, ...] = ()
    others, among = measures, "variant"
    hypothesis = "other dropout rates, or another limit, find better or worse cells"
    if baseline is None or plain is None:
        missing.insert(0, "no two variants that differ in nothing but dropout on skip-connects, so there is no 2 x 2 table")
    else:
        refined = arms[baseline].max_skips
        tables["two_by_two"] = cross(limits, baseline, plain, refined)
        pairs, idle = contrasts(limits, baseline, plain, refined), is_idle(limits, baseline, plain, refined)
        if idle:  # no differences to test, and the family is not corrected for them
            pairs = {"dropout": pairs["dropout"]}
        tables["effects"] = compare_pairs(pairs, rng, "effect")
        conclusion += conclude_effects(tables["effects"], refined)
        if tables["effects"]["n"].any():  # a comparison stands in one family
            others, among = measures[measures["variant"] != plain], "variant outside the 2 x 2 table"
            hypothesis = "any of these finds better or worse cells"
        if idle:
            unchanged = f"Refinement to {refined} skip-connects changed none of these cells, since none had more"
            conclusion += (f"{unchanged}: of its effect, and of an interaction with dropout, these data say nothing.",)
        if not (limits["max_skips"] == UNLIMITED).any():
            missing.append(f"no cell was evaluated at M = {UNLIMITED}, so refinement cannot be judged")
    tables["variants"] = summarize(measures)
    if baseline is not None:
        tables["error_differences"] = compare_variants(others, "error_percent", baseline, rng)
        if others["variant"].nunique() > 1:
            conclusion += conclude(tables["error_differences"], baseline, "evaluation error", hypothesis, among)
        tables["spread_between_seeds"] = compare_spreads(measures, limits, baseline)
        searched = measures[measures["variant"].map(lambda name: trains_alphas(arms[name].method))]
        tables["skip_differences"] = compare_variants(count_skips(study, searched), "derived_skips", baseline, rng)
        conclusion += conclude_spreads(tables["spread_between_seeds"], baseline)
    if study.epochs["hessian_eigenvalue"].isna().all():
        missing.append("the Hessian's largest eigenvalue was not measured (eigenvalue_every is 0), so there are no curves of it")
    tables["by_limit"] = summarize_limits(limits)
    tables["collapse"] = count_collapses(study)
    tables["spread"] = spread_table(study, measures)
    tables["published"] = published_cifar()
    return Section(
        name="rq3",
        title="RQ3: do dropout and a limit on skip-connects stabilise the search and improve what it finds?",
        tables=tables,
        figures=draw(study, limits, rng) | draw_search(study, baseline) if figures else {},
        conclusion=conclusion or ("No variant has dropout on skip-connects, so there is nothing to compare.",),
        missing=tuple(missing),
        notes=NOTES,
        about=study_tables.describe_study(study),
    )


def is_about_regularization(study: StudyTables) -> bool:
    """Whether variants differ in dropout on skip-connects, or cells were evaluated at several limits."""
    return study.trials["skip_dropout"].nunique() > 1 or measure_limits(study)[0]["max_skips"].nunique() > 1


def find_plain(arms: Arms, baseline: str | None) -> str | None:
    """The variant that is the baseline without dropout on skip-connects, and nothing else."""
    if baseline is None:
        return None
    for name, config in arms.items():
        apart = differences(config, arms[baseline])
        if apart == {"skip_dropout"} and not has_skip_dropout(config) and trains_alphas(config.method):
            return name
    return None


def cross(limits: pd.DataFrame, dropout: str, plain: str, refined: int) -> pd.DataFrame:
    """The 2 x 2 table: a row with dropout and one without, errors as derived and refined."""
    rows = []
    for variant, name in ((dropout, "with dropout"), (plain, "without dropout")):
        row: dict[str, object] = {"search": name, "variant": variant}
        for limit, place in ((UNLIMITED, "as_derived"), (refined, f"at_most_{refined}_skips")):
            column = f"{place}_percent"
            errors = limits.loc[(limits["variant"] == variant) & (limits["max_skips"] == limit), "error_percent"]
            row[f"n_{place}"] = len(errors)
            row[column], row[f"{column}_sd"] = mean_sd(errors) if len(errors) else (np.nan, np.nan)
        rows.append(row)
    return pd.DataFrame(rows)


def contrasts(limits: pd.DataFrame, dropout: str, plain: str, refined: int) -> Mapping[str, NDArray[np.float64]]:
    """Both sides of each effect of the 2 x 2 table, one row a seed that all four cells of the table have."""
    chosen = limits[limits["variant"].isin((dropout, plain)) & limits["max_skips"].isin((refined, UNLIMITED))]
    wide = chosen.pivot(index=["seed", "split_seed"], columns=["variant", "max_skips"], values="error_percent")
    wide = wide.reindex(columns=pd.MultiIndex.from_product([(dropout, plain), (refined, UNLIMITED)])).dropna()
    with_refined, with_derived, plain_refined, plain_derived = wide.to_numpy(dtype=float).T
    return {
        "dropout": np.column_stack([(with_refined + with_derived) / 2, (plain_refined + plain_derived) / 2]),
        "refinement": np.column_stack([(with_refined + plain_refined) / 2, (with_derived + plain_derived) / 2]),
        "interaction": np.column_stack([with_refined - plain_refined, with_derived - plain_derived]),
    }


def is_idle(limits: pd.DataFrame, dropout: str, plain: str, refined: int) -> bool:
    """Whether the refined cells of both variants are their searches' own."""
    cells = limits[limits["variant"].isin((dropout, plain)) & (limits["max_skips"] == refined)]
    return cells["variant"].nunique() == 2 and not cells["changed"].any()


def conclude_effects(effects: pd.DataFrame, refined: int) -> tuple[str, ...]:
    names = {"dropout": "dropout", "refinement": f"refinement to {refined} skip-connects", "interaction": "their interaction"}
    rows = effects.to_dict("records")
    if not rows[0]["n"]:
        return ("No seed has all four cells of the 2 x 2 table, so neither regularizer can be judged.",)
    claimed = [f"{names[row['effect']]} {show(row['difference'], 2, True)} points" for row in rows if row["claimed"]]
    others = effects[~effects["claimed"]]
    rest = " and ".join(names[effect] for effect in others["effect"])
    tested, causes = "either regularizer", "dropout on skip-connects or a limit on their number"
    if len(rows) == 1:
        tested = causes = "dropout on skip-connects"
    reason = cannot_show(effects)
    if claimed:
        shown = f"Shown in evaluation error: {'; '.join(claimed)}."
        return (shown,) if others.empty else (shown, f"Not shown for {rest} with n = {rows[0]['n']}: {say_power(others)}.")
    largest = max(rows, key=lambda row: abs(row["difference"]))
    which = f"The largest effect is that of {names[largest['effect']]}," if len(rows) > 1 else "The difference is"
    second = f"{which} {describe_row(largest)}"
    if reason is not None:
        return f"W{reason[1:]}: these data cannot show an effect of {tested}.", f"{second}."
    first = f"No effect of {tested} is shown (smallest Holm-adjusted p {show(effects['p_holm'].min(), 3)}): "
    first += f"these data do not support that {causes} changes the evaluation error."
    return first, f"{second}; {say_power(effects)}."


def summarize(measures: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for variant, trials in measures.groupby("variant", sort=False):
        row: dict[str, object] = {"variant": variant, "seeds": len(trials), "evaluated": int(trials["error_percent"].count())}
        row["skip_dropout"] = trials["skip_dropout"].iloc[0] if trials["search_accuracy"].notna().any() else None
        row["max_skips"] = int(trials["max_skips"].iloc[0])
        for column in ("error_percent", "skips", "depth"):
            values = trials.loc[trials["status"] == "completed", column].dropna().astype(float)
            row[column], row[f"{column}_sd"] = mean_sd(values) if len(values) else (np.nan, np.nan)
        rows.append(row)
    return pd.DataFrame(rows)


def count_collapses(study: StudyTables) -> pd.DataFrame:
    """Collapsed searches of each variant, of those completed."""
    completed = study.trials.loc[study.trials["status"] == "completed", "trial_id"]
    epochs = study.epochs[study.epochs["trial_id"].isin(completed)]
    per_trial = epochs.groupby(["variant", "trial_id"], sort=False)["collapsed"].agg("any").rename("any").reset_index()
    per_trial["end"] = per_trial["trial_id"].map(study_tables.chosen_epochs(study).set_index("trial_id")["collapsed"])
    rows = []
    for variant, trials in per_trial.groupby("variant", sort=False):
        ended, n = int(trials["end"].sum()), len(trials)
        low, high = proportion_interval(ended, n)
        row = {"variant": variant, "n": n, "collapsed_at_end": ended, "rate_percent": 100 * ended / n}
        rows.append(row | {"low_percent": 100 * low, "high_percent": 100 * high, "at_any_epoch": int(trials["any"].sum())})
    return pd.DataFrame(rows)


def draw(study: StudyTables, limits: pd.DataFrame, rng: np.random.Generator) -> dict[str, Figure]:
    figures = {}
    points = limits_frame(limits, rng)
    if len(points):
        figures["limits"] = draw_limits(points)
    if len(study.epochs):
        skips = study_tables.average_curves(study.epochs, "normal_skip_count")
        figures["skips"] = draw_learning_curves(skips, "skip-connects of the normal cell", 1)
        figures["learning_curves"] = draw_learning_curves(study_tables.average_curves(study.epochs, "validation_accuracy"))
    measured = study.epochs.dropna(subset=["hessian_eigenvalue"])
    if len(measured):
        curves = study_tables.average_curves(measured, "hessian_eigenvalue")
        figures["eigenvalue"] = draw_learning_curves(curves, "largest eigenvalue of the Hessian", 1)
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    run_script(build, STUDY, __doc__, arguments)


if __name__ == "__main__":
    main()
