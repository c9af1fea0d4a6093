"""RQ1: does growing the search depth close the gap between search and evaluation?

python analysis/rq1_depth_gap.py --results results

Reads the tables of the study depth_gap.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd

from common import comparisons
from common.best_of_k import add_best_of_k
from common.comparisons import compare_variants, summarize
from common.figures import draw_curves, draw_depth_gap, draw_search, gap_frame
from common.published_figures import PUBLISHED_CIFAR
from common.question import Answer, Question
from common.section import NOTHING, show
from common.study_tables import Configs, StudyTables, at_stage, depths, evaluate_cells, grows, operations, stage_ends
from pdarts_tune.config.methods import trains_alphas
from pdarts_tune.pdarts.progressive_depth import search_work

ALIKE = 0.1  # planned costs of whole epochs cannot be matched better in short searches

VARIANT_NOTES = f"""\
Means over the seeds that have the figure. ± is the standard deviation over search seeds, after averaging over evaluation seeds.
*evaluated*: of the seeds started. *search, %*: validation accuracy of the search network that the cell was taken from (of a random
search the chosen candidate's), after its last epoch or, if it was stopped early, the one that decided. *inherited*: on the same
images, that of the derived cell in the search network's own weights. *error*: test error of the derived cell, trained from scratch,
after the last epoch. *gap*: the depth gap, search validation accuracy minus evaluation test accuracy, in points. It mixes depth
with width, training length and images, since the two networks differ in all of them. *skips*, *depth*: of the normal cell.
*params*: of the evaluation network in the papers' CIFAR setting. *search, s*: seconds on the study's device. {NOTHING}: none (a
random cell has no search network), or not there yet."""

NOTES = {
    "gap_differences": """\
The same of the depth gap: a second question and a family of its own. A larger gap of a better cell is no fault of its search.""",
    "equal_budget": """\
Searches that do not grow, drop what the growing one drops, and are planned to take as long within 10 % (*planned cost*: cells x
operations x epochs, relative; *seconds ratio*: as measured). The other figures are those of the table of error differences, of
whose family these rows are: nothing is tested again.""",
    "gap_by_depth": """\
Ordered by the depth of the last search network; mean over seeds with its bootstrap interval, drawn from the *n* distinct cells.""",
    "stages": """\
Means over the seeds of completed searches, at the end of each stage: the search network, the cell derived then in its weights, and
that cell trained from scratch, where it was (a study evaluates the last stage's cells).""",
    "depth_gap": "A dot a seed, bars at the means, in grey the way from search to evaluation.",
}

RANKED = {"search_accuracy": "search network", "inherited_accuracy": "derived cell, inherited weights"}
SHOWN = ["search_percent", "inherited_percent", "error_percent", "gap_points"]
SHOWN += ["skips", "depth", "params_millions", "search_seconds"]


def fill(answer: Answer) -> None:
    study, configs, measures, rng, tables = answer.study, answer.configs, answer.measures, answer.rng, answer.tables
    baseline = next((name for name, config in configs.items() if grows(config)), None)
    tables["variants"] = summarize(measures, *SHOWN)
    answer.notes["variants"] = "\n".join(filter(None, (VARIANT_NOTES, describe_precision(configs, measures))))
    if baseline is None:
        answer.missing.insert(0, "no trial of a search that grows in depth, so there is nothing to compare the others with")
        answer.conclusion.append("No search grows in depth, so there is nothing to compare the others with.")
    else:
        errors = tables["error_differences"] = compare_variants(measures, "error_percent", baseline, rng)
        tables["gap_differences"] = compare_variants(measures, "gap_points", baseline, rng)
        tables["equal_budget"] = find_equal_budgets(errors, configs, measures, baseline)
        hypothesis = "growing the depth during search finds better cells"
        answer.conclusion += comparisons.conclude(errors, baseline, "evaluation error", hypothesis)
        answer.conclusion += conclude_budget(tables["equal_budget"], baseline, errors)
    tables["gap_by_depth"] = gap_by_depth(measures, configs, rng)
    tables["stages"] = summarize_stages(study)
    tables["ranks"] = comparisons.rank_table(study, measures, RANKED, rng)
    tables |= comparisons.anytime_table(study)
    tables["spread"] = comparisons.spread_table(study, measures)
    gaps = gap_frame(measures)
    if len(gaps):
        answer.figures["depth_gap"] = partial(draw_depth_gap, gaps)
    add_best_of_k(answer, baseline)
    tables["published"] = PUBLISHED_CIFAR
    answer.figures |= draw_curves(study, "learning_curves", "skips", "estimates") | draw_search(study, baseline)


def describe_precision(configs: Configs, measures: pd.DataFrame) -> str:
    """How far the number of its images alone puts a search accuracy, and so a gap, off; empty where that is not known."""
    accuracy = measures["search_accuracy"].mean()
    counts = {round(config.train_images * config.validation_fraction) for config in configs.values() if config.train_images}
    if len(counts) != 1 or 0 in counts or np.isnan(accuracy):
        return ""
    (images,) = counts
    error = show(100 * np.sqrt(accuracy * (1 - accuracy) / images), 1)
    return f"A search accuracy is on {images} validation images: its standard error is {error} points, and a gap's no less."


def gap_by_depth(measures: pd.DataFrame, configs: Configs, rng: np.random.Generator) -> pd.DataFrame:
    """The depth gap of each variant with its interval, from the shallowest last search network to the deepest."""
    table = comparisons.mean_intervals(measures, "gap_points", rng).rename(columns={"mean": "gap_points"})
    plans = [depths(configs[name]) for name in table["variant"]]
    table.insert(1, "depths", ["-".join(map(str, plan)) for plan in plans])
    table.insert(2, "last_cells", [plan[-1] for plan in plans])
    return table[table["n"] > 0].sort_values("last_cells", kind="stable", ignore_index=True)


def find_equal_budgets(errors: pd.DataFrame, configs: Configs, measures: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """The comparisons with searches that do not grow and are planned to cost the same, within 10 %: depth without its cost.

    Columns: those of `errors`, whose rows they are, and planned cost and seconds relative to the baseline's.
    """
    work = {name: search_work(config.stages) / search_work(configs[baseline].stages) for name, config in configs.items()}
    others = {name: config for name, config in configs.items() if trains_alphas(config.method) and not grows(config)}
    alike = [name for name in others if abs(work[name] - 1) <= ALIKE and operations(others[name]) == operations(configs[baseline])]
    table = errors.set_index("variant").loc[alike].reset_index()
    seconds = measures[measures["status"] == "completed"].groupby("variant")["seconds"].mean()
    table.insert(1, "planned_cost_ratio", [work[name] for name in alike])
    table.insert(2, "seconds_ratio", [seconds.get(name, np.nan) / seconds.get(baseline, np.nan) for name in alike])
    return table


def conclude_budget(table: pd.DataFrame, baseline: str, errors: pd.DataFrame) -> tuple[str, ...]:
    """What the variants of equal cost show, as part of the family `errors`."""
    if table.empty:
        return ("No variant costs what the growing search costs, so depth cannot be told from the time that it takes.",)
    claimed = table[table["claimed"]]
    if len(claimed):
        shown = ", ".join(f"{row['variant']} {show(row['difference'], 2, True)} points" for row in claimed.to_dict("records"))
        return (f"At equal cost, shown to differ from {baseline} in evaluation error: {shown}.",)
    names = ", ".join(table["variant"])
    if not table["n"].any():
        return (f"At equal cost ({names}) nothing can be compared with {baseline}: no seed has an evaluation of both.",)
    reason = comparisons.cannot_show(errors) or comparisons.describe_power(table)
    return (f"At equal cost ({names}) no difference from {baseline} is shown: {reason}.",)


def summarize_stages(study: StudyTables) -> pd.DataFrame:
    """Stage by stage, of completed searches: the search network's accuracy, and the cell that would be derived then."""
    ends = stage_ends(study.epochs)[["trial_id", "stage", "validation_accuracy"]]
    cells = evaluate_cells(study, study.cells[study.cells["status"] == "completed"]).merge(ends, on=["trial_id", "stage"])
    plans = study.trials.set_index("trial_id")["depths"]
    cells["cells"] = [int(at_stage(plans[trial], stage)) for trial, stage in zip(cells["trial_id"], cells["stage"], strict=True)]
    cells["search_percent"] = 100 * cells["validation_accuracy"]
    cells["inherited_percent"] = 100 * cells["inherited_accuracy"].astype(float)
    columns = ["search_percent", "inherited_percent", "error_percent", "skips", "depth", "width"]
    return cells.groupby(["variant", "stage", "cells"], sort=False, as_index=False)[columns].mean()


QUESTION = Question("rq1", "depth_gap", __doc__, NOTES, lambda study: study.trials["depths"].nunique() > 1, fill)
build, main = QUESTION.build, QUESTION.main

if __name__ == "__main__":
    main()
