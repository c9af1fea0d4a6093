"""RQ2: does search space approximation keep quality while it cuts memory and time? Reads the tables of the study approximation.

python analysis/rq2_approximation.py --results results

Writes rq2.md, tables (CSV, LaTeX) and figures (PNG, SVG) to `<results>/approximation/report` and prints the main table and what it
supports. Which variant drops what is read from the configurations, so any study of other numbers of operations will do.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from common import study_tables
from common.comparisons import COMPARISON_NOTES, compare_variants, conclude, mean_intervals, pair_up
from common.figures import SEARCH_NOTES, draw_learning_curves, draw_search, draw_tradeoff
from common.published_figures import PUBLISHED_NOTES, published_cifar
from common.section import NOTHING, Section, run_script, show
from common.statistics import NON_INFERIORITY_LEVEL, holm, mean_sd, non_inferiority, smallest_p
from common.study_tables import Arms, Read, StudyTables, drops, open_question, operations
from pdarts_tune.config.methods import trains_alphas
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.pdarts.space import PRIMITIVES

STUDY = "approximation"
MEBIBYTE = 2**20

# In points of test error, chosen before any result: about twice the standard deviation that Yang et al. (ICLR 2020) found between
# runs of one method on CIFAR-10 (0.13 to 0.20), and less than what most papers of the field claim as progress.
MARGIN = 0.3

NOTES = SEARCH_NOTES | {
    "variants": f"""\
Means over seeds ± standard deviation over search seeds. *n*: searches started; *completed*; *out of memory* is a result, not a gap
in the data. *dropped*: which operations go between stages. *peak*: most device memory that a search had in use at once. *s*: of
search, on the study's device. {NOTHING}: none, or not there yet.""",
    "error_differences": COMPARISON_NOTES,
    "seconds_differences": "Seconds of search, paired by seed; a question and a family of its own.",
    "peak_differences": """\
Peak memory of search in MiB, paired by seed; a question and a family of its own. Where all pairs differ by the same there is no
interval, and none is needed: memory follows from the configuration.""",
    "non_inferiority": f"""\
Is the error of a search that drops operations at most {MARGIN} points above that of one that drops none? A question of its own: the
rows are one family. Shown if the 95 % interval of the difference ends below the margin and the exact one-sided p of
"{MARGIN} points worse or more", Holm-adjusted for all rows, is below {NON_INFERIORITY_LEVEL}. The margin is the study's and was
chosen before any result. *steps ratio*: the steps of the search that it is held against, relative to its own; far from 1, steps are
compared along with dropping. "Not shown" is not "worse".""",
    "stages": "Means over seeds: peak memory, seconds, and the search network's accuracy at the end of each stage.",
    "dropped": "Of the edges of completed searches, the share on which an operation was in a stage and not in the next.",
    "tradeoff": "Points: means; bars: 95 % bootstrap intervals of the mean over seeds (none with fewer than 3).",
    "learning_curves": "Search networks, epoch by epoch; bands from the lowest to the highest seed.",
    "published": PUBLISHED_NOTES,
}


def build(results: Path, *, figures: bool = True, read: Read = study_tables.read_study) -> Section | None:
    """The answer to RQ2; None where `results` has no data for it. Raises ConfigError where study_tables.load_study does."""
    question = open_question(results, STUDY, read, lambda study: study.trials["operations"].nunique() > 1)
    if question is None:
        return None
    study, arms, measures, missing, rng = question
    measures = measures.assign(peak_mebibytes=measures["peak_bytes"].astype(float) / MEBIBYTE)
    baseline = next((name for name, config in arms.items() if drops(config) and config.dropping == "lowest"), None)
    tables = {"variants": summarize(measures, arms)}
    conclusion: tuple[str, ...] = ("No search drops its least probable operations, so there is nothing to compare.",)
    if baseline is None:
        missing.insert(0, "no trial of a search that drops its least probable operations between stages")
    else:
        tables["error_differences"] = compare_variants(measures, "error_percent", baseline, rng)
        tables["non_inferiority"] = judge_dropping(measures, arms, rng)
        searched = measures[
            (measures["status"] == "completed") & measures["variant"].map(lambda name: trains_alphas(arms[name].method))
        ]
        costed = find_costed(searched, arms, baseline)
        tables["peak_differences"] = compare_variants(searched, "peak_mebibytes", costed, rng)
        tables["seconds_differences"] = compare_variants(searched, "seconds", costed, rng)
        if costed != baseline:
            missing.append(f"costs are compared with those of {costed}, since those of {baseline} are of another device")
        hypothesis = "dropping other operations than the least probable ones, or none, finds better or worse cells"
        conclusion = conclude(tables["error_differences"], baseline, "evaluation error", hypothesis)
        conclusion += conclude_dropping(tables["non_inferiority"])
        conclusion += conclude_costs(tables["peak_differences"], tables["seconds_differences"], costed)
    if measures["peak_mebibytes"].isna().all():
        missing.append("peak memory was not measured on this device, so nothing is said about it")
    elif study.trials["device"].str.startswith("cpu").all():
        missing.append("peak memory on a CPU is that of the whole process, libraries included, so variants hardly differ in it")
    tables["stages"] = summarize_stages(study)
    tables["dropped"] = count_dropped(study)
    tables["published"] = published_cifar()
    return Section(
        name="rq2",
        title="RQ2: does search space approximation keep quality while it cuts memory and time?",
        tables=tables,
        figures=draw(study, measures, rng) | draw_search(study, baseline) if figures else {},
        conclusion=conclusion,
        missing=tuple(missing),
        notes=NOTES,
        about=study_tables.describe_study(study),
    )


def summarize(measures: pd.DataFrame, arms: Arms) -> pd.DataFrame:
    """One row a variant: what it drops, its error and what its search cost."""
    rows = []
    for variant, trials in measures.groupby("variant", sort=False):
        config = arms[str(variant)]
        searched = trials[trials["status"] == "completed"]
        row: dict[str, object] = {
            "variant": variant,
            "operations": "-".join(map(str, operations(config))) if trains_alphas(config.method) else None,
            "dropped": config.dropping if drops(config) else None,
            "batch": config.batch_size if trains_alphas(config.method) else pd.NA,
            "n": len(trials),
            "completed": len(searched),
            "out_of_memory": int((trials["status"] == "out_of_memory").sum()),
        }
        for column, name in (
            ("error_percent", "error_percent"),
            ("peak_mebibytes", "peak_mebibytes"),
            ("seconds", "search_seconds"),
        ):
            values = searched[column].dropna().astype(float)
            row[name], row[f"{name}_sd"] = mean_sd(values) if len(values) else (np.nan, np.nan)
        rows.append(row)
    return pd.DataFrame(rows).astype({"batch": "Int64"})


def judge_dropping(measures: pd.DataFrame, arms: Arms, rng: np.random.Generator) -> pd.DataFrame:
    """Every search that drops operations against every one that keeps them all, in evaluation error, at the margin: one family."""
    keeping = [name for name, config in arms.items() if trains_alphas(config.method) and not drops(config)]
    rows = []
    for variant in (name for name, config in arms.items() if drops(config)):
        for reference in keeping:
            pairs = pair_up(measures, "error_percent", variant, reference)
            if not len(pairs):
                continue
            found = non_inferiority(pairs[:, 0], pairs[:, 1], MARGIN, rng)
            row = {"variant": variant, "against": reference, "n": found.n, "difference_points": found.mean_difference}
            row["steps_ratio"] = steps(arms[reference]) / steps(arms[variant])
            rows.append(
                row
                | {
                    "upper_points": found.ci_high,
                    "margin_points": MARGIN,
                    "p": found.p_value,
                    "min_p": found.min_p,
                    "p_holm": found.p_value,
                    "shown": found.shown,
                }
            )
    table = pd.DataFrame(rows)
    if rows:
        table["p_holm"] = holm(table["p"].tolist())
        table["shown"] &= table["p_holm"] < NON_INFERIORITY_LEVEL
    return table


def steps(config: SearchConfig) -> float:
    """How many steps of the weights a search takes for each image that trains them: only ratios mean something."""
    return sum(stage.epochs for stage in config.stages) / config.batch_size


def find_costed(searched: pd.DataFrame, arms: Arms, baseline: str) -> str:
    """The variant whose costs the others' are compared with: the baseline, or where its are not known the first that drops too."""
    known = set(searched.loc[searched["seconds"].notna(), "variant"])
    return next((name for name in (baseline, *arms) if name in known and drops(arms[name])), baseline)


def conclude_costs(peaks: pd.DataFrame, seconds: pd.DataFrame, costed: str) -> tuple[str, ...]:
    """What the other searches cost more or less; nothing where no pair of searches was measured."""
    parts = [
        f"{spent['variant']} {show(spent['difference'], 0, True)} s and {show(held['difference'], 0, True)} MiB"
        for spent, held in zip(seconds.to_dict("records"), peaks.to_dict("records"), strict=True)
        if spent["n"] and held["n"]
    ]
    return (f"Cost of a search against {costed}, mean: {'; '.join(parts)}.",) if parts else ()


def conclude_dropping(judged: pd.DataFrame) -> tuple[str, ...]:
    if judged.empty:
        return ("No search that keeps all operations shares a seed with one that drops some, so dropping cannot be judged.",)
    shown = [f"{row['variant']} against {row['against']}" for row in judged.to_dict("records") if row["shown"]]
    if shown:
        return (f"Shown to cost less than {MARGIN} points of error: {', '.join(shown)}.",)
    most, tests = int(judged["n"].max()), len(judged)
    needed = next(n for n in itertools.count(1) if tests * smallest_p(n) / 2 < NON_INFERIORITY_LEVEL)
    reason = f"; n = {most} cannot show it, {needed} pairs are needed for {tests} comparisons" if most < needed else ""
    return (f"That dropping costs less than {MARGIN} points of error is not shown for any variant{reason}.",)


def summarize_stages(study: StudyTables) -> pd.DataFrame:
    """Memory, time and accuracy of each stage of each variant: means over its searches, as far as they came."""
    searches = study.epochs.groupby(["variant", "trial_id", "stage"], sort=False)
    per_trial = searches.agg(peak_bytes=("peak_bytes", "max"))
    per_trial = per_trial.assign(seconds=searches["seconds"].sum(min_count=1)).reset_index()
    ends = study_tables.stage_ends(study.epochs)[["trial_id", "stage", "validation_accuracy"]]
    per_trial = per_trial.merge(ends, on=["trial_id", "stage"], how="left")  # a stage under way has no end
    per_trial = per_trial.assign(
        peak_mebibytes=per_trial["peak_bytes"].astype(float) / MEBIBYTE, search_percent=100 * per_trial["validation_accuracy"]
    )
    grouped = per_trial.groupby(["variant", "stage"], sort=False)
    means = grouped[["peak_mebibytes", "seconds", "search_percent"]].mean()
    means.insert(0, "n", grouped.size())
    table = means.reset_index()
    plans = study.trials.drop_duplicates("variant").set_index("variant")["operations"].str.split("-")
    counts = [
        int(plans[name][min(stage, len(plans[name])) - 1]) for name, stage in zip(table["variant"], table["stage"], strict=True)
    ]
    table.insert(2, "operations", counts)
    return table


def count_dropped(study: StudyTables) -> pd.DataFrame:
    """What was dropped where: for each variant, cell and stage, the percentage of edges that lost each operation after it."""
    trials, sets = study_tables.read_candidates(study)
    variants = study.trials.set_index("trial_id")["variant"].reindex(trials).to_numpy()
    rows = []
    for variant in study.trials["variant"].unique():
        own = sets[variants == variant]
        for stage, cell in itertools.product(range(sets.shape[1] - 1), range(len(study_tables.CELLS))):
            before, after = own[:, stage, cell], own[:, stage + 1, cell]
            before, after = before[after.any(axis=1)], after[after.any(axis=1)]  # of searches that have a next stage
            if len(after):
                lost = {name: 100.0 * np.mean((before & ~after) >> bit & 1) for bit, name in enumerate(PRIMITIVES)}
                row = {"variant": variant, "stage": stage + 1, "cell": study_tables.CELLS[cell]}
                rows.append(row | {f"{name}_percent": share for name, share in lost.items()})
    return pd.DataFrame(rows)


def draw(study: StudyTables, measures: pd.DataFrame, rng: np.random.Generator) -> dict[str, Figure]:
    figures = {}
    points = tradeoff_frame(measures, rng)
    costs = {"peak_mebibytes": "peak memory of search, MiB", "seconds": "seconds of search"}
    known = {cost: label for cost, label in costs.items() if points[cost].notna().any()}
    if known and points["mean"].notna().any():
        figures["tradeoff"] = draw_tradeoff(points, known)
    if len(study.epochs):
        figures["learning_curves"] = draw_learning_curves(study_tables.average_curves(study.epochs, "validation_accuracy"))
    return figures


def tradeoff_frame(measures: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """What `figures.draw_tradeoff` draws; the front is that of the means."""
    searched = measures[measures["status"] == "completed"]
    points = _interval(searched, "error_percent", rng).rename(columns={"ci_low": "low", "ci_high": "high"})
    for cost in ("peak_mebibytes", "seconds"):
        found = _interval(searched, cost, rng)
        points[[cost, f"{cost}_low", f"{cost}_high"]] = found[["mean", "ci_low", "ci_high"]]
        points[f"{cost}_front"] = [
            not ((points["mean"] <= error) & (points[cost] <= spent) & ((points["mean"] < error) | (points[cost] < spent))).any()
            for error, spent in zip(points["mean"], points[cost], strict=True)
        ]
    return points


def _interval(trials: pd.DataFrame, column: str, rng: np.random.Generator) -> pd.DataFrame:
    found = mean_intervals(trials, column, rng)
    return found.assign(ci_low=found["ci_low"].fillna(found["mean"]), ci_high=found["ci_high"].fillna(found["mean"]))


def main(arguments: Sequence[str] | None = None) -> None:
    run_script(build, STUDY, __doc__, arguments)


if __name__ == "__main__":
    main()
