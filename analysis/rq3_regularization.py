"""RQ3: do dropout and a limit on skip-connects stabilise the search and improve what it finds?

python analysis/rq3_regularization.py --results results

Reads the tables of the study regularization. Configurations and tables say which variant has dropout, and at which limits M its
cells were evaluated, so any study of them will do.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common import comparisons
from common.comparisons import LEVEL, compare_pairs, compare_variants, mean_intervals, summarize
from common.figures import draw_curves, draw_search, draw_sweep
from common.published_figures import PUBLISHED_CIFAR
from common.question import Answer, Question
from common.section import show
from common.statistics import brown_forsythe, mean_sd, proportion_interval
from common.study_tables import Configs, StudyTables, chosen_epochs, differences, evaluate_cells, has_skip_dropout
from pdarts_tune.config.methods import trains_alphas
from pdarts_tune.results.tables import final_genotypes

UNLIMITED = 8  # skip-connects that a cell of four nodes can have: refinement at this limit changes nothing
DERIVED = ", as derived"  # after a variant's name: its cells without refinement

NOTES = {
    "two_by_two": """\
Dropout on skip-connects (the first variant that has it, and the one that differs from it in nothing else) against refinement (the
limit M of the configuration, and 8, which is none). Mean test error over search seeds ± standard deviation. Refinement changes what
is derived from a search, not the search, so both columns are of the same searches.""",
    "effects": f"""\
From the 2 x 2 table, in points of test error, paired by seed. *dropout*: with minus without, mean over both limits. *refinement*:
refined minus as derived, mean over both. *interaction*: effect of dropout on refined cells minus that on cells as derived.

{comparisons.COMPARISON_NOTES}""",
    "error_differences": f"""\
Every variant at its own M, minus the first with dropout: a second question and a family of its own. The variant without dropout is
not among them where the table of effects tests it.

{comparisons.COMPARISON_NOTES}""",
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
first with dropout, and of cells as derived against the refined ones of the same searches (those two are not independent, which
makes the test cautious). Searches that found the same cell have its error each, which is no spread. One family, Holm-adjusted. It
needs three seeds on both sides and has little power below ten.""",
    "limits": """\
Test error against M, the skip-connects that a normal cell may have (8: no limit). Bars: 95 % bootstrap intervals of the mean over
seeds (none with fewer than 3).""",
}


def fill(answer: Answer) -> None:
    study, configs, measures, rng, tables = answer.study, answer.configs, answer.measures, answer.rng, answer.tables
    conclusion, missing = answer.conclusion, answer.missing
    limits, partial_limits = measure_limits(study)
    missing += partial_limits
    baseline = next((name for name, config in configs.items() if has_skip_dropout(config)), None)
    plain = find_plain(configs, baseline)
    others, among = measures, "variant"
    hypothesis = "other dropout rates, or another limit, find better or worse cells"
    if baseline is None or plain is None:
        missing.insert(0, "no two variants that differ in nothing but dropout on skip-connects, so there is no 2 x 2 table")
    else:
        refined = configs[baseline].max_skips
        four = limits[limits["variant"].isin((baseline, plain)) & limits["max_skips"].isin((refined, UNLIMITED))]
        tables["two_by_two"] = cross(four, baseline, plain, refined)
        pairs, cells = contrasts(four, baseline, plain, refined), four[four["max_skips"] == refined]
        idle = cells["variant"].nunique() == 2 and not cells["changed"].any()
        if idle:  # no differences to test, and the family is not corrected for them
            pairs = {"dropout": pairs["dropout"]}
        tables["effects"] = compare_pairs(pairs, rng, "effect")
        conclusion += conclude_effects(tables["effects"], refined)
        if tables["effects"]["n"].any():  # a comparison stands in one family
            others, among = measures[measures["variant"] != plain], "variant outside the 2 x 2 table"
            hypothesis = "any of these finds better or worse cells"
        if idle:
            unchanged = f"Refinement to {refined} skip-connects changed none of these cells, since none had more"
            conclusion.append(f"{unchanged}: of its effect, and of an interaction with dropout, these data say nothing.")
        if not (limits["max_skips"] == UNLIMITED).any():
            missing.append(f"no cell was evaluated at M = {UNLIMITED}, so refinement cannot be judged")
    tables["variants"] = list_variants(measures)
    if baseline is not None:
        tables["error_differences"] = compare_variants(others, "error_percent", baseline, rng)
        if others["variant"].nunique() > 1:
            errors = tables["error_differences"]
            conclusion += comparisons.conclude(errors, baseline, "evaluation error", hypothesis, among)
        tables["spread_between_seeds"] = compare_spreads(measures, limits, baseline)
        searched = measures[measures["variant"].map(lambda name: trains_alphas(configs[name].method))]
        tables["skip_differences"] = compare_variants(count_skips(study, searched), "derived_skips", baseline, rng)
        conclusion += conclude_spreads(tables["spread_between_seeds"], baseline)
    if study.epochs["hessian_eigenvalue"].isna().all():
        missing.append("the Hessian's largest eigenvalue was not measured (eigenvalue_every is 0), so there are no curves of it")
    tables["by_limit"] = summarize_limits(limits)
    tables["collapse"] = count_collapses(study)
    tables["spread"] = comparisons.spread_table(study, measures)
    tables["published"] = PUBLISHED_CIFAR
    several = limits[limits.groupby("variant")["max_skips"].transform("nunique") > 1]
    points = [mean_intervals(cells, "error_percent", rng).assign(M=limit) for limit, cells in several.groupby("max_skips")]
    if points:
        columns = {"variant": "line", "mean": "error_percent"}
        answer.figures["limits"] = partial(draw_sweep, pd.concat(points).rename(columns=columns), "M", "error_percent")
    answer.figures |= draw_curves(study, "skips", "learning_curves", "eigenvalue", "estimates") | draw_search(study, baseline)
    if not conclusion:
        conclusion.append("No variant has dropout on skip-connects, so there is nothing to compare.")


def is_about_regularization(study: StudyTables) -> bool:
    """Whether variants differ in dropout on skip-connects, or cells were evaluated at several limits."""
    return study.trials["skip_dropout"].nunique() > 1 or measure_limits(study)[0]["max_skips"].nunique() > 1


def find_plain(configs: Configs, baseline: str | None) -> str | None:
    """The variant that is the baseline without dropout on skip-connects, and nothing else."""
    alike = [name for name in configs if baseline and differences(configs[name], configs[baseline]) == {"skip_dropout"}]
    return next((name for name in alike if not has_skip_dropout(configs[name]) and trains_alphas(configs[name].method)), None)


def measure_limits(study: StudyTables) -> tuple[pd.DataFrame, list[str]]:
    """One row a completed trial and limit M at which its last cell was evaluated, with error_percent; and a line on those left out.

    `changed`: whether the limit makes it another cell than the search's own, as derived.

    At a limit that changes nothing, a cell is that of another limit and so evaluated by chance. With such rows, a limit would be
    judged by the searches that have few skip-connects. So a limit counts only where all evaluated searches of a variant have it.
    """
    last = final_genotypes(study.derived, study.trials, range(UNLIMITED + 1))
    evaluated = evaluate_cells(study, last)
    evaluated = evaluated[evaluated["evaluations"] > 0]
    derived = evaluated["trial_id"].map(last[last["max_skips"] == UNLIMITED].set_index("trial_id")["genotype_id"])
    evaluated = evaluated.assign(changed=derived.notna() & (derived != evaluated["genotype_id"]))
    searches = evaluated.groupby("variant")["trial_id"].nunique()
    counts = evaluated.groupby(["variant", "max_skips"], sort=False)["trial_id"].transform("size")
    whole = counts == evaluated["variant"].map(searches)
    some = evaluated.loc[~whole & evaluated["max_skips"].eq(UNLIMITED), "variant"].value_counts(sort=False)
    text = f"searches evaluated at M = {UNLIMITED}, left out there"
    return evaluated[whole], [f"{variant}: {count} of {searches[str(variant)]} {text}" for variant, count in some.items()]


def count_skips(study: StudyTables, measures: pd.DataFrame) -> pd.DataFrame:
    """`measures`, one row a trial, with `derived_skips`: skip-connects of the normal cell that a completed search ended with."""
    last = final_genotypes(study.derived, study.trials, [UNLIMITED]).set_index("trial_id")["skips"]
    return measures.assign(derived_skips=measures["trial_id"].map(last).astype(float))


def cross(four: pd.DataFrame, dropout: str, plain: str, refined: int) -> pd.DataFrame:
    """The 2 x 2 table: a row with dropout and one without, errors as derived and refined."""
    rows = []
    for variant, name in ((dropout, "with dropout"), (plain, "without dropout")):
        row: dict[str, object] = {"search": name, "variant": variant}
        for limit, place in ((UNLIMITED, "as_derived"), (refined, f"at_most_{refined}_skips")):
            errors = four.loc[(four["variant"] == variant) & (four["max_skips"] == limit), "error_percent"]
            row[f"n_{place}"] = len(errors)
            row[f"{place}_percent"], row[f"{place}_percent_sd"] = mean_sd(errors)
        rows.append(row)
    return pd.DataFrame(rows)


def contrasts(four: pd.DataFrame, dropout: str, plain: str, refined: int) -> Mapping[str, NDArray[np.float64]]:
    """Both sides of each effect of the 2 x 2 table, one row a seed that all four cells of the table have."""
    wide = four.pivot(index=["seed", "split_seed"], columns=["variant", "max_skips"], values="error_percent")
    wide = wide.reindex(columns=pd.MultiIndex.from_product([(dropout, plain), (refined, UNLIMITED)])).dropna()
    with_refined, with_derived, plain_refined, plain_derived = wide.to_numpy(dtype=float).T
    return {
        "dropout": np.column_stack([(with_refined + with_derived) / 2, (plain_refined + plain_derived) / 2]),
        "refinement": np.column_stack([(with_refined + plain_refined) / 2, (with_derived + plain_derived) / 2]),
        "interaction": np.column_stack([with_refined - plain_refined, with_derived - plain_derived]),
    }


def conclude_effects(effects: pd.DataFrame, refined: int) -> tuple[str, ...]:
    names = {"dropout": "dropout", "refinement": f"refinement to {refined} skip-connects", "interaction": "their interaction"}
    rows = effects.to_dict("records")
    if not rows[0]["n"]:
        return ("No seed has all four cells of the 2 x 2 table, so neither regularizer can be judged.",)
    claimed = [f"{names[row['effect']]} {show(row['difference'], 2, True)} points" for row in rows if row["claimed"]]
    others = effects[~effects["claimed"]]
    power = comparisons.describe_power(others)
    if claimed:
        shown = f"Shown in evaluation error: {'; '.join(claimed)}."
        rest = " and ".join(names[effect] for effect in others["effect"])
        return (shown, f"Not shown for {rest} with n = {rows[0]['n']}: {power}.") if rest else (shown,)
    tested, causes = "either regularizer", "dropout on skip-connects or a limit on their number"
    if len(rows) == 1:
        tested = causes = "dropout on skip-connects"
    largest = max(rows, key=lambda row: abs(row["difference"]))
    which = f"The largest effect is that of {names[largest['effect']]}," if len(rows) > 1 else "The difference is"
    second = f"{which} {comparisons.describe_row(largest)}"
    reason = comparisons.cannot_show(effects)
    if reason is not None:
        return f"W{reason[1:]}: these data cannot show an effect of {tested}.", f"{second}."
    first = f"No effect of {tested} is shown (smallest Holm-adjusted p {show(effects['p_holm'].min(), 3)}): "
    return f"{first}these data do not support that {causes} changes the evaluation error.", f"{second}; {power}."


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
        p = brown_forsythe(values, against) if against is not None and min(len(values), len(against)) else np.nan
        rows.append({"variant": name, "n": len(values), "between_seeds_points": mean_sd(values)[1], "p": p, "p_holm": np.nan})
    table = pd.DataFrame(rows).astype({"p": float})
    comparisons.adjust(table)
    return table


def _errors(rows: pd.DataFrame) -> NDArray[np.float64]:
    return rows["error_percent"].dropna().to_numpy(dtype=float)


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


def list_variants(measures: pd.DataFrame) -> pd.DataFrame:
    table = summarize(measures, "error_percent", "skips", "depth")
    plans = measures.drop_duplicates("variant").set_index("variant")
    searched = measures.dropna(subset="search_accuracy")["variant"].unique()
    table.insert(3, "skip_dropout", [plans.loc[name, "skip_dropout"] if name in searched else None for name in table["variant"]])
    table.insert(4, "max_skips", table["variant"].map(plans["max_skips"]).astype(int))
    return table


def summarize_limits(limits: pd.DataFrame) -> pd.DataFrame:
    """One row a variant and limit: error, skip-connects, and how many cells the limit changed."""
    rows: list[dict[str, Any]] = []
    for (variant, limit), cells in limits.sort_values("max_skips", kind="stable").groupby(["variant", "max_skips"], sort=False):
        row = {"variant": variant, "max_skips": limit, "n": len(cells), "changed": int(cells["changed"].sum())}
        mean, sd = mean_sd(cells["error_percent"])
        rows.append(row | {"skips": float(cells["skips"].mean()), "error_percent": mean, "error_percent_sd": sd})
    order = list(limits["variant"].unique())
    rows.sort(key=lambda row: order.index(row["variant"]))
    return pd.DataFrame(rows)


def count_collapses(study: StudyTables) -> pd.DataFrame:
    """Collapsed searches of each variant, of those completed."""
    completed = study.trials.loc[study.trials["status"] == "completed", "trial_id"]
    epochs = study.epochs[study.epochs["trial_id"].isin(completed)]
    searches = epochs.groupby(["variant", "trial_id"], sort=False)["collapsed"].agg("any").rename("any").reset_index()
    searches["end"] = searches["trial_id"].map(chosen_epochs(study).set_index("trial_id")["collapsed"])
    rows = []
    for variant, trials in searches.groupby("variant", sort=False):
        ended, n = int(trials["end"].sum()), len(trials)
        low, high = proportion_interval(ended, n)
        row = {"variant": variant, "n": n, "collapsed_at_end": ended, "rate_percent": 100 * ended / n}
        rows.append(row | {"low_percent": 100 * low, "high_percent": 100 * high, "at_any_epoch": int(trials["any"].sum())})
    return pd.DataFrame(rows)


QUESTION = Question("rq3", "regularization", __doc__, NOTES, is_about_regularization, fill)
build, main = QUESTION.build, QUESTION.main

if __name__ == "__main__":
    main()
