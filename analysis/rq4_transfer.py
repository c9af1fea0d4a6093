"""RQ4: do cells found on CIFAR transfer to ImageNet, and is their ranking stable under other recipes?

python analysis/rq4_transfer.py --results results

Reads the tables of the study transfer; ImageNet is in its mobile setting. A setting is a data set with a recipe. Figures of two
settings are correlated and never averaged.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from common.comparisons import LEVEL, adjust
from common.figures import draw_transfer
from common.published_figures import PUBLISHED_CIFAR, PUBLISHED_IMAGENET
from common.question import Answer, Question
from common.ranks import kendall_tau, minimum_detectable_tau, partial_correlation
from common.section import NOTHING, show, show_interval, span
from common.statistics import mean_sd
from common.study_tables import StudyTables, first_line, read_genotype
from pdarts_tune.config.serialize import short_name
from pdarts_tune.pdarts.genotype import Genotype
from pdarts_tune.results.cell_figures import draw_genotype
from pdarts_tune.results.tables import final_genotypes

Errors = Mapping[str, pd.DataFrame]  # by setting, as `table_of` has them
Pairs = Mapping[tuple[str, str], tuple[pd.DataFrame, pd.DataFrame]]  # by two settings, as `pair_seeds` has them
GATE_MILLIONS = 600.0  # of the mobile setting (Chen et al., 2019, section 4.4)

NOTES = {
    "cells": f"""\
The papers' layout: a row a cell of a search seed, test error of the last epoch (mean over evaluation seeds ± standard deviation) in
each setting, which is a data set with a recipe. Columns of two settings cannot be compared with each other, only their order of the
cells. {NOTHING}: not evaluated there.""",
    "imagenet": f"""\
In the mobile setting: top-1 and top-5 test error, and what the evaluated network costs. *macs*: multiply-accumulates of
convolutions and linear layers for one image; the papers' multiply-adds, which the gate of {GATE_MILLIONS:.0f}M counts, are up to a
few percent more. *runs*: evaluations finished; *refused or failed*: not, with the reason below.""",
    "correlations": """\
How alike two settings order the cells, by the mean over the evaluation seeds that a cell has in both (*seeds*); a cell without such
a seed is left out. *tau*: Kendall's, with its 95 % interval and p. *seed tau*: between two evaluations of the
same cells in the second setting that differ in the seed alone, the most that can be expected; *disattenuated*: tau without that
noise. *partial*: Spearman's correlation of the errors with parameters and multiply-accumulates partialled out: what two settings
agree on beyond "larger is better"; it needs at least 6 cells. Agreement is claimed if the interval of tau excludes 0 and its
Holm-adjusted p is below 0.05, and to go beyond size if the same holds of the partial correlation.""",
    "size": "Spearman's correlation of the test error with the size of the network in each setting: negative if larger is better.",
}


def fill(answer: Answer) -> None:
    cells, errors = compare_orders(answer)
    evaluations = answer.study.evaluations
    mobile = [name for name in errors if (evaluations.loc[evaluations["setting"] == name, "stem"] == "imagenet").all()]
    if mobile:
        answer.tables["imagenet"] = summarize_mobile(cells, evaluations[evaluations["setting"].isin(mobile)])
    else:
        answer.missing.append("no evaluation in the mobile setting, so nothing is said about ImageNet itself")
    answer.tables |= {"size": correlate_size(errors, cells), "published_imagenet": PUBLISHED_IMAGENET, "published": PUBLISHED_CIFAR}
    for cell in cells.head(1).to_dict("records"):
        answer.figures["first_cell"] = partial(draw_genotype, Genotype.parse(read_genotype(answer.study, cell)), cell["name"])


def compare_orders(answer: Answer) -> tuple[pd.DataFrame, Errors]:
    """Says how alike each two settings order the cells, in tables, sentences and figures. Returns cells and their errors."""
    study = answer.study
    cells = name_cells(study)
    finished = study.evaluations[study.evaluations["status"] == "completed"]
    errors = {name: table_of(finished, name) for name in study.settings}
    known = pd.Index(cells["genotype_id"])
    pairs = {(one, other): pair_seeds(errors[one], errors[other], known) for one, other in itertools.combinations(errors, 2)}
    correlations = correlate(pairs, cells)
    answer.tables |= {"cells": summarize(cells, errors), "correlations": correlations}
    answer.missing += list_missing(study, cells, study.evaluations) + list_unpaired(errors, pairs, cells)
    answer.conclusion += conclude(correlations, len(errors))
    for index, ((first, second), sides) in enumerate(pairs.items(), start=1):
        one, other = (cells["genotype_id"].map(side.mean(axis=1)) for side in sides)
        points = cells.assign(x=one, y=other).dropna(subset=["x", "y"])
        if len(points):
            answer.figures[f"transfer_{index}"] = partial(draw_transfer, points, short_name(first), short_name(second))
    return cells, errors


def name_cells(study: StudyTables) -> pd.DataFrame:
    """One row a distinct cell of completed trials: name, genotype_id, trial_id, params, macs (CIFAR setting)."""
    last = final_genotypes(study.cells, study.trials)
    several = last.groupby("variant")["trial_id"].transform("nunique") > 1
    names = last["variant"].where(~several, last["variant"] + ", seed " + last["seed"].astype(str))
    cells = last.assign(name=names).drop_duplicates("genotype_id")
    return cells[["name", "genotype_id", "trial_id", "params", "macs", "skips"]].reset_index(drop=True)


def table_of(finished: pd.DataFrame, setting: str) -> pd.DataFrame:
    """Test error in one setting, percent: a row a genotype, a column an evaluation seed."""
    chosen = finished[finished["setting"] == setting]
    return 100 * (1 - chosen.pivot_table(index="genotype_id", columns="seed", values="accuracy"))


def summarize(cells: pd.DataFrame, errors: Errors) -> pd.DataFrame:
    """The papers' table: a row a cell, a column a setting."""
    table = pd.DataFrame({"cell": cells["name"], "params_millions": cells["params"] / 1e6, "skips": cells["skips"]})
    for setting, errors_there in errors.items():
        column = f"{setting}: error_percent"
        own = errors_there.reindex(cells["genotype_id"]).to_numpy(dtype=float)
        spreads = np.reshape([mean_sd(seeds[~np.isnan(seeds)]) for seeds in own], (-1, 2))
        table[column], table[f"{column}_sd"] = spreads.T
    return table


def summarize_mobile(cells: pd.DataFrame, evaluations: pd.DataFrame) -> pd.DataFrame:
    """Cells in the mobile setting: errors, cost, and whether they pass the gate."""
    rows: list[dict[str, Any]] = []
    known = cells[["name", "genotype_id"]].merge(evaluations, on="genotype_id")
    for (setting, name), runs in known.groupby(["setting", "name"], sort=False):
        completed = runs[runs["status"] == "completed"].astype({"accuracy": float, "top5_accuracy": float})
        macs = runs["macs"].dropna().astype(float) / 1e6
        row = {"cell": name, "setting": setting, "runs": len(completed), "refused_or_failed": len(runs) - len(completed)}
        row |= {
            "top1_percent": 100 * (1 - completed["accuracy"]).mean(),
            "top5_percent": 100 * (1 - completed["top5_accuracy"]).mean(),
        }
        row |= {"params_millions": runs["params"].astype(float).mean() / 1e6, "macs_millions": macs.mean()}
        rows.append(row | {"under_gate": bool((macs <= GATE_MILLIONS).all()) if len(macs) else pd.NA})
    rows.sort(key=lambda row: str(row["setting"]))  # and of one setting, in the order of the cells
    return pd.DataFrame(rows)


def correlate(pairs: Pairs, cells: pd.DataFrame) -> pd.DataFrame:
    """How alike each two settings order the cells that were evaluated in both with the same seeds."""
    rows = []
    sizes = cells.set_index("genotype_id")[["params", "macs"]].astype(float)
    for (first, second), (one, other) in pairs.items():
        seeds = one.notna().sum(axis=1)
        row: dict[str, object] = {"setting": first, "with": second, "n": len(one), "seeds": span(seeds) if len(one) else "0"}
        if len(one) > 1:
            row |= vars(kendall_tau(one.mean(axis=1), other.to_numpy()))
            rest = partial_correlation(one.mean(axis=1), other.mean(axis=1), sizes.loc[one.index].to_numpy())
            if len(one) > 5:
                row |= {"partial": rest.correlation, "partial_p": rest.p, "partial_low": rest.ci_low}
        rows.append(row)
    names = ["setting", "with", "n", "seeds", "tau", "ci_low", "ci_high", "p", "p_holm", "seed_tau", "disattenuated"]
    names += ["partial", "partial_low", "partial_p", "partial_p_holm"]
    table = pd.DataFrame(rows).reindex(columns=names).astype(dict.fromkeys(names[4:], float))
    adjust(table)
    adjust(table, "partial_p")
    return table


def pair_seeds(one: pd.DataFrame, other: pd.DataFrame, known: pd.Index) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both settings' errors of the `known` cells, nan but for the seeds that a cell has in both; of cells that have such a seed."""
    cells = known.intersection(one.index).intersection(other.index)
    first, second = one.loc[cells].align(other.loc[cells], join="inner", axis="columns")
    both = first.notna() & second.notna()
    return first.where(both)[both.any(axis=1)], second.where(both)[both.any(axis=1)]


def correlate_size(errors: Errors, cells: pd.DataFrame) -> pd.DataFrame:
    rows = []
    sizes = cells.set_index("genotype_id")
    for setting, table in errors.items():
        known = table.index.intersection(sizes.index)
        for column, name in (("params", "parameters"), ("macs", "multiply-accumulates")):
            if len(known) > 2:
                result = partial_correlation(table.loc[known].mean(axis=1), sizes.loc[known, column].astype(float))
                rows.append({"setting": setting, "with": name} | vars(result))
    return pd.DataFrame(rows)


def conclude(correlations: pd.DataFrame, settings: int) -> tuple[str, ...]:
    known = correlations[correlations["tau"].notna()]
    if known.empty:
        return (f"Of {settings} setting(s), no two have errors of two cells that differ in both, so nothing can be said yet.",)
    sentences = []
    for row in known.to_dict("records"):
        pair = f"{row['setting']} and {row['with']}"
        interval = show_interval(row["ci_low"], row["ci_high"], 2)
        figures = f"tau {show(row['tau'], 2, True)}, 95 % interval {interval}, Holm-adjusted p {show(row['p_holm'], 3)}"
        if not (row["ci_low"] > 0 and row["p_holm"] < LEVEL):
            least = minimum_detectable_tau(row["n"], len(known))
            reach = "no true tau, however large, could have been claimed"
            if np.isfinite(least):
                reach = f"a true tau of {show(least, 2)} could have been claimed (80 % power)"
            sentences.append(f"{pair}: agreement in the order of {row['n']} cells is not shown ({figures}); {reach}.")
            continue
        beyond = "shown" if row["partial_low"] > 0 and row["partial_p_holm"] < LEVEL else "not shown"
        sentences.append(
            f"{pair} order {row['n']} cells alike ({figures}); that they do beyond what parameters and multiply-accumulates "
            f"explain is {beyond}."
        )
    return tuple(sentences)


def list_missing(study: StudyTables, cells: pd.DataFrame, evaluations: pd.DataFrame) -> list[str]:
    """Trials without a cell, cells without an evaluation in a setting, and evaluations that failed or were refused."""
    lines = [
        f"{trial['variant']}, seed {trial['seed']}: {trial['status']}"
        for trial in study.trials.to_dict("records")
        if trial["status"] != "completed"
    ]
    for setting, runs in evaluations.groupby("setting", sort=False):
        finished = runs[runs["status"] == "completed"].groupby("genotype_id").size()
        failed = runs.dropna(subset="failure").groupby("genotype_id")["failure"].unique()
        evaluated, seeds = set(runs["genotype_id"]), runs["seed"].nunique()
        for cell in cells.to_dict("records"):
            genotype_id = cell["genotype_id"]
            if genotype_id not in evaluated:
                lines.append(f"{cell['name']}: not evaluated in {setting}")
                continue
            lines += [f"{cell['name']}, {setting}: {first_line(failure)}" for failure in failed.get(genotype_id, ())]
            if finished.get(genotype_id, 0) < seeds:
                lines.append(f"{cell['name']}, {setting}: {finished.get(genotype_id, 0)} of {seeds} seeds finished")
    if evaluations["seed"].nunique() < 2:
        lines.append("a single evaluation seed, so the order of cells cannot be told from seed noise")
    return lines


def list_unpaired(errors: Errors, pairs: Pairs, cells: pd.DataFrame) -> list[str]:
    """Evaluations that a correlation leaves out, since the other setting lacks their seed."""
    lines = []
    for (first, second), (paired, _) in pairs.items():
        tables = (errors[first], errors[second], paired)
        counts = [table.count(axis=1).reindex(cells["genotype_id"], fill_value=0) for table in tables]
        for name, one, other, both in zip(cells["name"], *counts, strict=True):
            if one and other and both < max(one, other):
                lines.append(f"{name}: {first} has {one} seeds and {second} {other}, of which {both} are the same")
    return lines


QUESTION = Question("rq4", "transfer", __doc__, NOTES, lambda study: len(study.settings) > 1, fill, across_settings=True)
build, main = QUESTION.build, QUESTION.main

if __name__ == "__main__":
    main()
