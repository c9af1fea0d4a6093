"""Does P-DARTS find better cells than the methods it builds on?

python analysis/baselines.py --results results

Reads the tables of the study baselines. `analysis/diagnostics.py` shows the searches themselves.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common import comparisons
from common.best_of_k import add_best_of_k
from common.comparisons import compare_variants, summarize
from common.figures import draw_costs, draw_curves, draw_search
from common.published_figures import METHOD_NOTES, PUBLISHED_METHODS
from common.question import Answer, Question
from common.section import NOTHING
from common.statistics import mcnemar
from common.study_tables import Configs, StudyTables
from pdarts_tune.config.methods import RandomSampling, trains_alphas
from pdarts_tune.results.tables import final_genotypes, read_rows

RANKED = {"search_accuracy": "search network", "inherited_accuracy": "inherited weights"}

NOTES = {
    "methods": f"""\
Means over search seeds ± standard deviation. *over random*: by how many percent its accuracy is above that of cells drawn at
random (Yang et al., ICLR 2020): what the search adds to its space and its training recipe. *s*: of search, on the study's device.
{NOTHING}: none, or not there yet.""",
    "against_random": """\
Each method minus random cells: a second question and a family of its own, without P-DARTS. Its row is that of the table of error
differences turned round, with the p of that family: it is tested there, once.""",
    "same_images": """\
McNemar's exact test of two trained networks on the same test images: for each method, its cell and P-DARTS' cell of the first
search and evaluation seed that both have. It speaks of these two networks, not of the methods.""",
    "published": METHOD_NOTES,
}


def fill(answer: Answer) -> None:
    study, configs, measures, rng, tables = answer.study, answer.configs, answer.measures, answer.rng, answer.tables
    baseline = next((name for name, config in configs.items() if trains_alphas(config.method) and len(config.stages) > 1), None)
    random = next((name for name, config in configs.items() if isinstance(config.method, RandomSampling)), None)
    tables["methods"] = list_methods(measures, configs, random)
    if baseline is None:
        answer.conclusion.append("No search runs in several stages, so there is no P-DARTS to compare with.")
        answer.missing.insert(0, "no trial of a search in several stages")
    else:
        tables["error_differences"] = compare_variants(measures, "error_percent", baseline, rng)
        hypothesis = "P-DARTS finds better or worse cells than another method"
        answer.conclusion += comparisons.conclude(tables["error_differences"], baseline, "evaluation error", hypothesis)
        tables["same_images"] = compare_images(study, baseline)
    if random is None:
        answer.missing.insert(0, "no cells drawn at random, so nothing says what searching adds")
    else:
        tables["against_random"] = compare_random(measures, tables.get("error_differences"), baseline, random, rng)
        answer.conclusion += conclude_random(tables["against_random"], random)
    tables["ranks"] = comparisons.rank_table(study, measures, RANKED, rng)
    tables["spread"] = comparisons.spread_table(study, measures)
    costs = {"search_seconds": "seconds of search"}
    answer.figures |= draw_costs(measures, rng, costs)
    add_best_of_k(answer, baseline)
    tables["published"] = PUBLISHED_METHODS
    answer.figures |= draw_curves(study, "learning_curves") | draw_search(study, baseline)


def list_methods(measures: pd.DataFrame, configs: Configs, random: str | None) -> pd.DataFrame:
    """One row a variant, with `over_random_percent`.

    That is by how many percent a method is more accurate than a random cell of its space (Yang et al., ICLR 2020, section 3).
    """
    table = summarize(measures, "error_percent", "params_millions", "skips", "search_seconds")
    table.insert(1, "method", [configs[variant].method.name for variant in table["variant"]])
    accuracy = table["variant"].map(measures[measures["status"] == "completed"].groupby("variant")["accuracy"].mean())
    others = table["variant"] != random
    return table.assign(over_random_percent=(100 * (accuracy / accuracy[~others].mean() - 1)).where(others))


def compare_images(study: StudyTables, baseline: str) -> pd.DataFrame:
    """McNemar's test of each method against the baseline, on the cells of the first search seed, of equal evaluation seeds.

    Only these cells' evaluations are read, since per-example correctness is large.
    """
    cells = study.cells[(study.cells["seed"] == study.trials["seed"].min()) & (study.cells["status"] == "completed")]
    last = final_genotypes(cells, study.trials).drop_duplicates("variant").set_index("variant")["genotype_id"]
    runs = study.evaluations[(study.evaluations["status"] == "completed") & study.evaluations["genotype_id"].isin(last)]
    flags: dict[tuple[str, int], NDArray[np.bool_]] = {}
    for trial_id in runs["trial_id"]:
        (run,) = read_rows(study.folder, "evaluations", trial_id)
        if run["correct"]:
            flags[run["genotype_id"], run["seed"]] = np.array(run["correct"], dtype=bool)
    rows = []
    own = str(last.get(baseline))
    for variant, cell in last.drop(baseline, errors="ignore").items():
        seeds = [seed for genotype_id, seed in sorted(flags) if genotype_id == cell and (own, seed) in flags]
        if seeds and cell != own:
            one, other = flags[cell, seeds[0]], flags[own, seeds[0]]
            only_one, only_other, p = mcnemar(one, other)
            row = {"variant": variant, "images": len(one), "only_it_right": only_one, f"only_{baseline}_right": only_other}
            rows.append(row | {"p": p})
    return pd.DataFrame(rows)


def compare_random(
    measures: pd.DataFrame, errors: pd.DataFrame | None, baseline: str | None, random: str, rng: np.random.Generator
) -> pd.DataFrame:
    """Every method minus random cells; the baseline's row is the one that `errors` has, turned round, and is not tested again."""
    others = compare_variants(measures[measures["variant"] != baseline], "error_percent", random, rng)
    if errors is None:
        return others
    row = errors[errors["variant"] == random]
    turned = {"variant": baseline, "difference": -row["difference"], "ci_low": -row["ci_high"], "ci_high": -row["ci_low"]}
    return pd.concat([row.assign(**turned), others], ignore_index=True)


def conclude_random(table: pd.DataFrame, random: str) -> tuple[str, ...]:
    tested = table[table["n"] > 0]
    if tested.empty:
        return (f"No method shares a seed with {random}, so nothing says what searching adds.",)
    better = tested[tested["claimed"] & (tested["difference"] < 0)]["variant"]
    worse = tested[tested["claimed"] & (tested["difference"] > 0)]["variant"]
    if better.empty and worse.empty:
        null = f"No method is shown to find better or worse cells than {random} ones (n = {tested['n'].max()})"
        return (f"{null}: {comparisons.describe_power(tested)}.",)
    parts = [f"{word} than {random}: {', '.join(names)}" for word, names in (("better", better), ("worse", worse)) if len(names)]
    return (f"Shown to find cells that are {'; '.join(parts)}.",)


QUESTION = Question("baselines", "baselines", __doc__, NOTES, lambda study: study.trials["method"].nunique() > 2, fill)
build, main = QUESTION.build, QUESTION.main

if __name__ == "__main__":
    main()
