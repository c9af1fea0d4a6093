"""A study's tables, joined to one row a trial, and the configurations of its variants: what every question starts from.

The scripts run as `python analysis/rq1_depth_gap.py`, so they import the files of this folder as `common.study_tables`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pdarts_tune.config.evaluation import ESTIMATORS
from pdarts_tune.config.execution import Execution
from pdarts_tune.config.methods import trains_alphas
from pdarts_tune.config.search import SearchConfig, named_settings
from pdarts_tune.config.serialize import ConfigError, from_dict, to_dict
from pdarts_tune.pdarts.space import EDGES, PRIMITIVES
from pdarts_tune.results.manifest import COMPLETED, DEFINITION, check_seeds, planned_seeds
from pdarts_tune.results.queries import choose_evaluations
from pdarts_tune.results.schemas import SCHEMAS
from pdarts_tune.results.tables import epoch_genotypes, final_genotypes, read_rows, read_table

CELLS = ("normal", "reduce")

# The columns that answers need. In studies of thousands of trials every further column takes seconds.
_UNREAD = {"study", "epochs", "channels", "batch_size", "versions", "config_id", "finished", "attempts", "left_out"}
_UNREAD |= {"train_images", "mean", "std", *(field.name for field in fields(Execution))}
_TRIALS = [name for name in SCHEMAS["trials"].names if name not in _UNREAD]
_EPOCHS = ["trial_id", "stage", "epoch", "derived_epoch", "seconds", "peak_bytes", "validation_accuracy", "normal_skip_count"]
_EPOCHS += ["collapsed", "hessian_eigenvalue"]
_GENOTYPES = ["trial_id", "stage", "max_skips", "genotype_id", "skips", "depth", "width", "params", "macs", "inherited_accuracy"]
_RUNS = ["genotype_id", "trial_id", "data", "recipe", "recipe_id", "seed", "status", "failure", "accuracy", "top5_accuracy"]
_COLUMNS = {
    "trials": _TRIALS,
    "epochs": _EPOCHS,
    "genotypes": _GENOTYPES,
    "evaluations": [*_RUNS, "params", "macs", "seconds", "config"],
}
MEASURES = {  # of a trial, by the names that --measure knows: column of `measure_trials`, what it is called in a sentence
    "error": ("error_percent", "evaluation error"),
    "gap": ("gap_points", "depth gap"),
    "search": ("search_percent", "search accuracy"),
    "skips": ("skips", "skip-connects"),
    "depth": ("depth", "depth of the normal cell"),
    "params": ("params_millions", "parameters"),
    "seconds": ("search_seconds", "seconds of search"),
    "peak": ("peak_mebibytes", "peak memory of search"),
}
OF_EVALUATIONS = ("error_percent", "gap_points")  # the columns that a recipe and a data set decide
_TRIAL_COLUMNS = ["trial_id", "variant", "seed", "split_seed", "status", "max_skips", "data"]


@dataclass(frozen=True)
class StudyTables:
    """The tables of one study, reduced to what belongs together."""

    folder: Path
    trials: pd.DataFrame  # in the order of the study's variants
    epochs: pd.DataFrame  # with variant and running_epoch, 0-based over all stages
    derived: pd.DataFrame  # rows of genotypes, for every stage and skip limit, with their trial's columns
    cells: pd.DataFrame  # of these, the rows at each trial's own max_skips
    evaluations: pd.DataFrame  # of derived genotypes, with `setting`; `stem`, `params` and `macs` are the evaluated network's
    estimates: pd.DataFrame  # genotype_id, recipe_id and accuracy of all genotypes that an estimator has estimated

    @property
    def settings(self) -> list[str]:
        """The data sets and recipes of the evaluations, in the study's order. Figures of two settings are never averaged."""
        return list(self.evaluations["setting"].unique())


Read = Callable[..., StudyTables]  # read_study, or a function that keeps its results
Configs = Mapping[str, SearchConfig]  # by variant


def find_study(results: Path, name: str) -> Path | None:
    """The folder of a study that has trials: `<results>/<name>`, or `results` itself if it is one study's folder, of any name.

    Raises:
        ConfigError: there is no such results folder.
    """
    return next((folder for folder in _folders(results) if folder.name == name or folder == results), None)


def find_studies(results: Path) -> list[Path]:
    """The folders that hold trials: `results` itself, or those in it.

    Raises:
        ConfigError: there is no such folder, or no trial in it.
    """
    folders = _folders(results)
    if not folders:
        raise ConfigError(f"{results}: holds no trials; --results is a folder that holds one folder a study, or one study's folder")
    return folders


def _folders(results: Path) -> list[Path]:
    if not results.is_dir():
        raise ConfigError(f"{results}: no such results folder")
    folders = [results] if (results / "trials").is_dir() else sorted(path for path in results.iterdir() if path.is_dir())
    return [folder for folder in folders if any((folder / "trials").glob("[!.]*.parquet"))]


def read_study(folder: Path, epoch_columns: Sequence[str] = ()) -> StudyTables:
    """All of one study, with the evaluations of every data set and recipe.

    Args:
        epoch_columns: columns of the table `epochs`, beside those that answers need.

    Raises:
        ConfigError: it holds no trials, two trials have the same variant and seeds, or its searches are not those of the study.
    """
    columns = _COLUMNS | {"epochs": [*_EPOCHS, *epoch_columns]}
    with ThreadPoolExecutor(len(columns)) as pool:  # parts of each reading keep one core busy, so all tables are read at once
        trials, epochs, genotypes, evaluations = pool.map(partial(read_table, folder), columns, columns.values())
    definition = read_definition(folder)
    order = {name: index for index, name in enumerate(definition.get("variants", ()))}
    trials = trials.sort_values(["started", "trial_id"])
    trials = trials.sort_values("variant", key=lambda column: column.map(order), kind="stable", ignore_index=True)
    if trials.empty:
        raise ConfigError(f"{folder}: holds no trials yet")
    twice = trials[trials.duplicated(["variant", "seed", "split_seed"])]
    if len(twice):
        raise ConfigError(f"{folder}: two trials of variant {twice['variant'].iloc[0]}, seed {twice['seed'].iloc[0]}")
    check_seeds(definition, _seeds(trials), completed=(folder / COMPLETED).exists(), where=str(folder))
    epochs = epochs.sort_values(["trial_id", "stage", "epoch"])
    epochs = epochs.assign(running_epoch=epochs.groupby("trial_id").cumcount())
    epochs = trials[["trial_id", "variant"]].merge(epochs, on="trial_id")
    derived = trials[_TRIAL_COLUMNS].rename(columns={"max_skips": "own_limit"}).merge(genotypes, on="trial_id")
    cells = derived[derived["max_skips"] == derived["own_limit"]]
    estimates = evaluations.loc[evaluations["recipe"].isin(ESTIMATORS), ["genotype_id", "recipe_id", "accuracy"]]
    if not estimates["genotype_id"].isin(derived["genotype_id"]).all():
        epochs = epochs.merge(_estimate_epochs(folder, trials, estimates), on=["trial_id", "stage", "epoch"], how="left")
    stems = {text: json.loads(text).get("stem", "cifar") for text in evaluations["config"].unique()}
    evaluations = evaluations.assign(stem=evaluations["config"].map(stems)).drop(columns="config")
    evaluations = evaluations[evaluations["genotype_id"].isin(derived["genotype_id"])]
    return StudyTables(folder, trials, epochs, derived, cells, name_settings(evaluations, definition), estimates)


def _estimate_epochs(folder: Path, trials: pd.DataFrame, estimates: pd.DataFrame) -> pd.DataFrame:
    """`estimated_accuracy` of the cell that each epoch's alphas give, by the estimator of most cells: trial_id, stage and epoch."""
    recipe = estimates["recipe_id"].value_counts().index[0]
    known = estimates[estimates["recipe_id"] == recipe].set_index("genotype_id")["accuracy"]
    rows = [
        (trial, *place, known.get(genotype.genotype_id, math.nan))
        for trial, limit in zip(trials["trial_id"], trials["max_skips"], strict=True)
        for place, genotype in epoch_genotypes(folder, trial, limit).items()
    ]
    return pd.DataFrame(rows, columns=["trial_id", "stage", "epoch", "estimated_accuracy"])


def estimate_note(study: StudyTables) -> str:
    """What follows a page's title where nothing was trained; empty where something was."""
    recipes = study.evaluations[["recipe", "recipe_id"]].drop_duplicates()
    if recipes.empty or not recipes["recipe"].isin(ESTIMATORS).all():
        return ""
    return f" (errors are estimates by {', '.join(recipes['recipe_id'])}: nothing was trained)"


def name_settings(evaluations: pd.DataFrame, definition: Mapping[str, Any]) -> pd.DataFrame:
    """The rows in the order of the study's recipes, with `setting`: data and recipe, or its id where recipes share a name."""
    recipes = [definition.get("evaluation"), *definition.get("further_evaluations", ())]
    order = {(recipe["recipe"], recipe["data"]): place for place, recipe in enumerate(recipes) if recipe}
    order |= {(name, data): len(recipes) + 1 for name in ESTIMATORS for data in evaluations["data"].unique()}  # after trainings
    shared = evaluations.groupby(["data", "recipe"])["recipe_id"].transform("nunique") > 1
    names = evaluations["recipe"].mask(shared, evaluations["recipe_id"]).astype(str)
    places = [order.get(pair, len(recipes)) for pair in zip(evaluations["recipe"], evaluations["data"], strict=True)]
    named = evaluations.assign(setting=evaluations["data"].astype(str) + ", " + names, place=places)
    named["rarity"] = -named.groupby("setting")["seed"].transform("size")
    return named.sort_values(["place", "rarity"], kind="stable").drop(columns=["place", "rarity"])


def choose_settings(study: StudyTables, recipe: str | None = None, data: str | None = None) -> StudyTables:
    """The study with the evaluations by one recipe (a name or an id), on one data set, or both.

    Raises:
        ConfigError: it has none. The message names those that it has.
    """
    return replace(study, evaluations=choose_evaluations(study.evaluations, study.folder, recipe, data))


def by_setting(study: StudyTables) -> dict[str, StudyTables]:
    """The study once for each of its settings, with the evaluations of that one; as it is if it has no evaluations."""
    runs = study.evaluations
    return {name: replace(study, evaluations=runs[runs["setting"] == name]) for name in study.settings} or {"": study}


def read_definition(folder: Path) -> dict[str, Any]:
    """The study's `study.json`; empty where there is none."""
    definition = folder / DEFINITION
    return json.loads(definition.read_text()) if definition.exists() else {}


def keep_one_device(study: StudyTables) -> tuple[StudyTables, list[str]]:
    """The study with the costs of one kind of device alone, that of most searches, and a line on the others.

    A study may be continued, or take over variants, on another machine. Its seconds and peak memory do not compare.
    """
    devices = study.trials.set_index("trial_id")["device"]
    counts = devices.reindex(study.epochs["trial_id"].unique()).value_counts()
    if len(counts) < 2:
        return study, []
    usual, *others = counts.index

    def blank(table: pd.DataFrame) -> pd.DataFrame:
        usual_ones = ~table["trial_id"].map(devices).isin(others)
        return table.assign(**{cost: table[cost].where(usual_ones) for cost in ("seconds", "peak_bytes")})

    names = ", ".join(f"{counts[name]} on {name}" for name in others)
    line = f"seconds and peak memory are those of the searches on {usual}; left out are {counts[others].sum()} searches: {names}"
    return replace(study, trials=blank(study.trials), epochs=blank(study.epochs)), [line]


def evaluate_cells(study: StudyTables, cells: pd.DataFrame) -> pd.DataFrame:
    """`cells` with `accuracy` and `error_percent`, means over evaluation seeds, and `evaluations`, how many are completed.

    The study has evaluations of one setting.
    """
    completed = study.evaluations[study.evaluations["status"] == "completed"]
    means = completed.groupby("genotype_id", as_index=False).agg(accuracy=("accuracy", "mean"), evaluations=("accuracy", "size"))
    joined = cells.merge(means, on="genotype_id", how="left").fillna({"evaluations": 0})
    return joined.assign(error_percent=100 * (1 - joined["accuracy"]))


def first_cells(study: StudyTables, variants: Collection[str | None] | None = None) -> list[dict[str, Any]]:
    """Of each variant, or the given ones, the cell that its first completed search ended with.

    Each has the columns of `cells`, the text `genotype`, and how many `searches` of the variant ended, with how many
    `different_cells`.
    """
    last = final_genotypes(study.cells, study.trials).sort_values(["seed", "split_seed"], kind="stable")
    cells = []
    for variant, own in last.groupby("variant", sort=False):
        if variants is None or variant in variants:
            cell = {str(name): value for name, value in own.iloc[0].items()}
            cell |= {"genotype": read_genotype(study, cell), "searches": len(own), "different_cells": own["genotype_id"].nunique()}
            cells.append(cell)
    return cells


def read_genotype(study: StudyTables, cell: Mapping[Any, Any]) -> str:
    rows = read_rows(study.folder, "genotypes", cell["trial_id"])
    return next(row["genotype"] for row in rows if row["genotype_id"] == cell["genotype_id"])


def stage_ends(epochs: pd.DataFrame) -> pd.DataFrame:
    """Of each stage that has ended, or candidate of a random search, the epoch whose alphas gave its cell.

    That is the last one, or an earlier one where the stage was stopped early.
    """
    ends = epochs.loc[epochs["derived_epoch"].notna(), ["trial_id", "stage", "derived_epoch"]]
    return ends.rename(columns={"derived_epoch": "epoch"}).astype({"epoch": int}).merge(epochs, on=["trial_id", "stage", "epoch"])


def chosen_epochs(study: StudyTables) -> pd.DataFrame:
    """The epoch that each completed search took its cell from.

    Of a random search that is the last one of the candidate with the best validation accuracy, of others that of the last stage.
    """
    ends = stage_ends(study.epochs).merge(study.trials.loc[study.trials["status"] == "completed", ["trial_id", "method"]])
    ends = ends.sort_values(["trial_id", "stage"], ignore_index=True)
    rank = ends["validation_accuracy"].where(ends["method"] == "random_search", ends["stage"])
    return ends.loc[rank.groupby(ends["trial_id"]).idxmax()]  # of equals, the first


def measure_trials(study: StudyTables) -> pd.DataFrame:
    """One row a trial: its own columns, those of its last cell, the columns of MEASURES, and `inherited_percent`.

    Search accuracy is the validation accuracy of the network that this cell was taken from: see `chosen_epochs`. The gap, in points
    of accuracy, is search minus evaluation; there is none if the two are on different data. A trial that is not completed has no
    cell. What a trial does not have is nan. The study has evaluations of one setting.
    """
    cells = evaluate_cells(study, final_genotypes(study.cells, study.trials))
    measures = study.trials.merge(cells.drop(columns=["stage", "own_limit", *_TRIAL_COLUMNS[1:]]), on="trial_id", how="left")
    search = chosen_epochs(study)[["trial_id", "validation_accuracy"]].rename(columns={"validation_accuracy": "search_accuracy"})
    measures = measures.merge(search, on="trial_id", how="left")
    scales = {"search_accuracy": ("search_percent", 100.0), "inherited_accuracy": ("inherited_percent", 100.0)}
    scales |= {"params": ("params_millions", 1e-6), "seconds": ("search_seconds", 1.0), "peak_bytes": ("peak_mebibytes", 2.0**-20)}
    measures = measures.assign(**{name: scale * measures[column].astype(float) for column, (name, scale) in scales.items()})
    gap = (measures["search_accuracy"] - measures["accuracy"]).where(measures["data"].isin(study.evaluations["data"]))
    return measures.assign(gap_points=100 * gap)


def list_missing(study: StudyTables, measures: pd.DataFrame) -> list[str]:
    """What the figures lack, one line each: trials that are not completed or not there, and evaluations that are not there."""
    lines = []
    evaluation_seeds = study.evaluations["seed"].nunique()
    for trial in measures.to_dict("records"):
        where = f"{trial['variant']}, seed {trial['seed']}"
        if trial["status"] != "completed":
            reason = f" ({first_line(trial['error'])})" if isinstance(trial["error"], str) else ""
            lines.append(f"{where}: search {trial['status']}{reason}")
        elif not trial["evaluations"] > 0:
            runs = study.evaluations[study.evaluations["genotype_id"] == trial["genotype_id"]]
            reasons = "".join(f" ({first_line(failure)})" for failure in runs["failure"].dropna().unique())
            lines.append(f"{where}: its cell has no finished evaluation{reasons}")
        elif trial["evaluations"] < evaluation_seeds:
            lines.append(f"{where}: {trial['evaluations']:.0f} of {evaluation_seeds} evaluations finished")
    planned, seeds = planned_seeds(read_definition(study.folder)), _seeds(measures)
    searched = set(measures.loc[measures["method"] != "given", "variant"])  # a given genotype needs one seed
    for variant in seeds | planned:
        needed = set(measures["seed"]) if variant in searched else set()
        absent = sorted((needed | set(planned.get(variant, ()))) - seeds.get(variant, set()))
        lines += [f"{variant}: no trial with seed {seed}" for seed in absent]
    evaluated = measures[measures["evaluations"] > 0]
    for _, rows in evaluated[evaluated.duplicated("genotype_id", keep=False)].groupby("genotype_id", sort=False):
        names = ", ".join(f"{variant} seed {seed}" for variant, seed in zip(rows["variant"], rows["seed"], strict=True))
        lines.append(f"{names} found the same cell, so they share its evaluations and are not independent")
    return lines


def _seeds(trials: pd.DataFrame) -> dict[str, set[int]]:
    return {str(variant): set(seeds) for variant, seeds in trials.groupby("variant", sort=False)["seed"]}


def first_line(text: str) -> str:
    """What happened, of an error's text: the traceback follows it."""
    return text.split("\n", 1)[0]


def listed(values: pd.Series) -> str:
    """The different values."""
    return ", ".join(map(str, values.dropna().unique()))


def describe_study(study: StudyTables) -> str:
    """Where the figures come from: data, recipe, devices, code."""
    trials, runs = study.trials, study.evaluations
    recipes = listed(runs["recipe"] + " (" + runs["recipe_id"] + ")") or "none yet"
    data, device, commit = (listed(trials[column]) or "unknown" for column in ("data", "device", "commit"))
    completed = (trials["status"] == "completed").sum()
    counts = f"{len(trials)} searches on {data}, {completed} of them completed"
    return f"Study {study.folder.name}: {counts}; evaluation recipe {recipes}; device {device}; commit {commit}."


def read_candidates(study: StudyTables) -> tuple[list[str], NDArray[np.int64]]:
    """The candidate operations of completed searches: their trial ids, and (trials, stages, cells, edges) sets of operations.

    A set is a sum of 2^k for its operations PRIMITIVES[k], 0 where a search has no such stage: large studies have millions of rows
    even of the first epochs alone. All epochs of a stage have the same candidates, so the first ones are read.
    """
    alphas = read_table(study.folder, "alphas", ["trial_id", "stage", "cell", "edge", "operation"], only={"epoch": [0]})
    completed = study.trials.loc[study.trials["status"] == "completed", "trial_id"]
    trials = sorted(set(alphas["trial_id"].unique()) & set(completed))

    def place(column: str, names: Sequence[str]) -> NDArray[np.int64]:
        values = alphas[column].astype("category")
        return pd.Index(names).get_indexer(values.cat.categories)[values.cat.codes].astype(np.int64)

    stages, edges = alphas["stage"].to_numpy(np.int64) - 1, alphas["edge"].to_numpy(np.int64)
    places = [place("trial_id", trials), stages, place("cell", CELLS), edges]
    known = (places[0] >= 0) & (stages >= 0)
    shape = (len(trials), int(stages.max(initial=0)) + 1, len(CELLS), len(EDGES))
    if not known.any():
        return trials, np.zeros(shape, dtype=np.int64)
    at = np.ravel_multi_index(tuple(values[known] for values in places), shape)
    sets = np.bincount(at, weights=2.0 ** place("operation", PRIMITIVES)[known], minlength=math.prod(shape))
    return trials, sets.reshape(shape).astype(np.int64)


# Which variants a question compares follows from their configurations and not from their names: anybody's study will do.


def read_configs(trials: pd.DataFrame) -> Configs:
    """The configuration of each variant, in the order of the study; seeds are those of some trial.

    Raises:
        ConfigError: a configuration that this release does not know.
    """
    first = trials.drop_duplicates("variant")[["variant", "config"]]
    return {variant: from_dict(SearchConfig, json.loads(text)) for variant, text in first.itertuples(index=False, name=None)}


def differences(one: SearchConfig, other: SearchConfig) -> set[str]:
    """The settings in which two searches differ, seeds apart, by the names of `list_settings`; of two methods, no own ones."""
    sides = [list_settings(one), list_settings(other)]
    names = {name for name in sides[0] | sides[1] if sides[0].get(name) != sides[1].get(name)}
    return {name for name in names if not ("method" in names and name.startswith("method."))}


@lru_cache(1024)
def list_settings(config: SearchConfig) -> dict[str, Any]:
    """Every setting of a search by name, seeds apart. Those of stages are lists; those of a method are `method.NAME`."""
    named = named_settings(to_dict(config)).items()
    settings = {name.removeprefix("stages.").removeprefix("execution."): value for name, value in named}
    settings["method"] = settings.pop("method.name")
    return {name: value for name, value in settings.items() if name not in ("seed", "split_seed")}


def depths(config: SearchConfig) -> list[int]:
    return [stage.cells for stage in config.stages]


def operations(config: SearchConfig) -> list[int]:
    return [stage.operations for stage in config.stages]


def at_stage(plan: str, stage: int) -> str:
    """The number of a stage in a plan such as 5-11-17. Candidates of a random search are stages that share the plan's one stage."""
    numbers = plan.split("-")
    return numbers[min(stage, len(numbers)) - 1]


def grows(config: SearchConfig) -> bool:
    """Whether this is a search whose network only grows from stage to stage, as P-DARTS' does."""
    cells = depths(config)
    return trains_alphas(config.method) and cells == sorted(cells) and cells[0] < cells[-1]


def drops(config: SearchConfig) -> bool:
    """Whether this is a search that drops operations between its stages."""
    counts = operations(config)
    return trains_alphas(config.method) and counts[0] > counts[-1]


def has_skip_dropout(config: SearchConfig) -> bool:
    return trains_alphas(config.method) and any(stage.skip_dropout > 0 for stage in config.stages)
