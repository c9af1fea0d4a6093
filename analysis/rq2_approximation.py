"""RQ2: does search space approximation keep quality while it cuts memory and time?

python analysis/rq2_approximation.py --results results

Reads the tables of the study approximation. Configurations say which variant drops what, so any study of other numbers of
operations will do.
"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from common import comparisons
from common.comparisons import adjust, compare_variants, pair_up, summarize
from common.figures import draw_costs, draw_curves, draw_search
from common.published_figures import PUBLISHED_CIFAR
from common.question import Answer, Question
from common.section import NOTHING, show
from common.statistics import NON_INFERIORITY_LEVEL, non_inferiority, smallest_p
from common.study_tables import CELLS, Configs, StudyTables, at_stage, drops, operations, read_candidates, stage_ends
from pdarts_tune.config.methods import trains_alphas
from pdarts_tune.pdarts.space import PRIMITIVES

# In points of test error, chosen before any result: about twice the standard deviation of Yang et al. (ICLR 2020) between runs of
# one method on CIFAR-10 (0.13 to 0.20), and less than what most papers of the field claim as progress.
MARGIN = 0.3

NOTES = {
    "variants": f"""\
Means over seeds ± standard deviation over search seeds. *n*: searches started; *completed*; *out of memory* is a result, not a gap
in the data. *dropped*: which operations go between stages. *peak*: most device memory that a search had in use at once. *s*: of
search, on the study's device. {NOTHING}: none, or not there yet.""",
    "seconds_differences": "Seconds of search, paired by seed; a question and a family of its own.",
    "peak_differences": """\
Peak memory of search in MiB, paired by seed; a question and a family of its own. Where all pairs differ by the same there is no
interval, and none is needed: memory follows from the configuration.""",
    "non_inferiority": f"""\
Is the error of a search that drops operations at most {MARGIN} points above that of one that drops none? A question of its own: the
rows are one family. It is shown if the 95 % interval of the difference ends below the margin and the exact one-sided p of
"{MARGIN} points worse or more", Holm-adjusted for all rows, is below {NON_INFERIORITY_LEVEL}. The margin is the study's and was
chosen before any result. *steps ratio*: the steps of the search that keeps all operations, relative to its own; far from 1, steps
are compared along with dropping. "Not shown" is not "worse".""",
    "stages": "Means over seeds: peak memory, seconds, and the search network's accuracy at the end of each stage.",
    "dropped": "Of the edges of completed searches, the share on which an operation was in a stage and not in the next.",
}


def fill(answer: Answer) -> None:
    study, configs, measures, rng, tables = answer.study, answer.configs, answer.measures, answer.rng, answer.tables
    baseline = next((name for name, config in configs.items() if drops(config) and config.dropping == "lowest"), None)
    tables["variants"] = list_variants(measures, configs)
    if baseline is None:
        answer.conclusion.append("No search drops its least probable operations, so there is nothing to compare.")
        answer.missing.insert(0, "no trial of a search that drops its least probable operations between stages")
    else:
        tables["error_differences"] = compare_variants(measures, "error_percent", baseline, rng)
        tables["non_inferiority"] = judge_dropping(measures, configs, rng)
        trained = measures["variant"].map(lambda name: trains_alphas(configs[name].method))
        searched = measures[(measures["status"] == "completed") & trained]
        costed = find_costed(searched, configs, baseline)
        tables["peak_differences"] = compare_variants(searched, "peak_mebibytes", costed, rng)
        tables["seconds_differences"] = compare_variants(searched, "search_seconds", costed, rng)
        if costed != baseline:
            answer.missing.append(f"costs are compared with those of {costed}, since those of {baseline} are of another device")
        hypothesis = "dropping other operations than the least probable ones, or none, finds better or worse cells"
        answer.conclusion += comparisons.conclude(tables["error_differences"], baseline, "evaluation error", hypothesis)
        answer.conclusion += conclude_dropping(tables["non_inferiority"])
        answer.conclusion += conclude_costs(tables["peak_differences"], tables["seconds_differences"], costed)
    if measures["peak_mebibytes"].isna().all():
        answer.missing.append("peak memory was not measured on this device, so nothing is said about it")
    elif study.trials["device"].str.startswith("cpu").all():
        answer.missing.append(
            "peak memory on a CPU is that of the whole process, libraries included, so variants hardly differ in it"
        )
    tables |= {"stages": summarize_stages(study), "dropped": count_dropped(study), "published": PUBLISHED_CIFAR}
    costs = {"peak_mebibytes": "peak memory of search, MiB", "search_seconds": "seconds of search"}
    answer.figures |= draw_costs(measures, rng, costs)
    answer.figures |= draw_curves(study, "learning_curves") | draw_search(study, baseline)


def list_variants(measures: pd.DataFrame, configs: Configs) -> pd.DataFrame:
    """One row a variant: what it drops, its error and the cost of its search."""
    table = summarize(measures, "error_percent", "peak_mebibytes", "search_seconds")
    plans = [configs[variant] if trains_alphas(configs[variant].method) else None for variant in table["variant"]]
    table.insert(1, "operations", ["-".join(map(str, operations(plan))) if plan else None for plan in plans])
    table.insert(2, "dropped", [plan.dropping if plan and drops(plan) else None for plan in plans])
    table.insert(3, "batch", pd.Series([plan.batch_size if plan else pd.NA for plan in plans], dtype="Int64"))
    table = table.rename(columns={"seeds": "n"}).drop(columns="evaluated")
    for place, status in ((5, "completed"), (6, "out_of_memory")):
        counts = measures[measures["status"] == status].groupby("variant").size()
        table.insert(place, status, [int(counts.get(variant, 0)) for variant in table["variant"]])
    return table


def judge_dropping(measures: pd.DataFrame, configs: Configs, rng: np.random.Generator) -> pd.DataFrame:
    """Every search that drops operations against every one that keeps them all, in evaluation error, at the margin: one family."""
    dropping = [name for name, config in configs.items() if drops(config)]
    keeping = [name for name, config in configs.items() if trains_alphas(config.method) and not drops(config)]
    rows = []
    steps = {name: sum(stage.epochs for stage in config.stages) / config.batch_size for name, config in configs.items()}  # relative
    for variant, reference in itertools.product(dropping, keeping):
        pairs = pair_up(measures, "error_percent", variant, reference)
        if len(pairs):
            test = non_inferiority(pairs[:, 0], pairs[:, 1], MARGIN, rng)
            row = {"variant": variant, "against": reference, "n": test.n, "difference_points": test.difference}
            row |= {"steps_ratio": steps[reference] / steps[variant]}
            rows.append(row | {"upper_points": test.ci_high, "margin_points": MARGIN, "p": test.p, "min_p": test.min_p})
    table = pd.DataFrame(rows)
    if rows:
        adjust(table)
        table["shown"] = (table["upper_points"] < MARGIN) & (table["p_holm"] < NON_INFERIORITY_LEVEL)
    return table


def find_costed(searched: pd.DataFrame, configs: Configs, baseline: str) -> str:
    """The variant that others' costs are compared with: the baseline, or where its costs are unknown the first that drops too."""
    known = set(searched.loc[searched["search_seconds"].notna(), "variant"])
    return next((name for name in (baseline, *configs) if name in known and drops(configs[name])), baseline)


def conclude_costs(peaks: pd.DataFrame, seconds: pd.DataFrame, costed: str) -> tuple[str, ...]:
    """What the other searches cost more or less; nothing where no pair of searches was measured."""
    parts = [
        f"{time['variant']} {show(time['difference'], 0, True)} s and {show(memory['difference'], 0, True)} MiB"
        for time, memory in zip(seconds.to_dict("records"), peaks.to_dict("records"), strict=True)
        if time["n"] and memory["n"]
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
    stages = searches.agg(peak_bytes=("peak_bytes", "max")).assign(seconds=searches["seconds"].sum(min_count=1)).reset_index()
    ends = stage_ends(study.epochs)[["trial_id", "stage", "validation_accuracy"]]
    stages = stages.merge(ends, on=["trial_id", "stage"], how="left")  # a stage under way has no end
    stages["peak_mebibytes"] = stages["peak_bytes"].astype(float) / 2**20
    stages["search_percent"] = 100 * stages["validation_accuracy"]
    columns = {"n": ("trial_id", "size")} | {name: (name, "mean") for name in ("peak_mebibytes", "seconds", "search_percent")}
    table = stages.groupby(["variant", "stage"], sort=False, as_index=False).agg(**columns)
    plans = study.trials.drop_duplicates("variant").set_index("variant")["operations"]
    places = zip(table["variant"], table["stage"], strict=True)
    table.insert(2, "operations", [int(at_stage(plans[name], stage)) for name, stage in places])
    return table


def count_dropped(study: StudyTables) -> pd.DataFrame:
    """What was dropped where: for each variant, cell and stage, the percentage of edges that lost each operation after it."""
    trials, sets = read_candidates(study)
    variants = study.trials.set_index("trial_id")["variant"].reindex(trials).to_numpy()
    rows = []
    for variant in study.trials["variant"].unique():
        own = sets[variants == variant]
        for stage, (cell, name) in itertools.product(range(sets.shape[1] - 1), enumerate(CELLS)):
            before, after = own[:, stage, cell], own[:, stage + 1, cell]
            before, after = before[after.any(axis=1)], after[after.any(axis=1)]  # of searches that have a next stage
            if len(after):
                row = {"variant": variant, "stage": stage + 1, "cell": name}
                lost = before & ~after
                rows.append(row | {f"{name}_percent": 100.0 * np.mean(lost >> bit & 1) for bit, name in enumerate(PRIMITIVES)})
    return pd.DataFrame(rows)


QUESTION = Question("rq2", "approximation", __doc__, NOTES, lambda study: study.trials["operations"].nunique() > 1, fill)
build, main = QUESTION.build, QUESTION.main

if __name__ == "__main__":
    main()
