"""What a notebook asks a results folder: the best search, the alphas of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from pdarts_tune.config.evaluation import EvalConfig
from pdarts_tune.config.serialize import ConfigError, from_dict
from pdarts_tune.pdarts.genotype import Genotype
from pdarts_tune.results.manifest import DEFINITION
from pdarts_tune.results.schemas import SCHEMAS
from pdarts_tune.results.storage import Storage
from pdarts_tune.results.tables import final_genotypes, read_table

if TYPE_CHECKING:
    import pandas as pd


class Best(NamedTuple):
    """A search, the genotype that it ends with, and how that was evaluated."""

    trial: dict[str, Any]  # the row of `trials`
    genotype: Genotype
    figures: dict[str, Any]  # means of the numeric columns of `evaluations` over seeds; evaluations (their number), recipe_id, data


def best(folder: Path | str, by: str = "error_percent", recipe: str | None = None) -> Best:
    """The search whose final genotype, at its own skip limit, has the lowest figure, or the highest of an accuracy.

    A choice by test error makes that error look better than it is. `by="last_validation_accuracy"` chooses without test images.

    Args:
        folder: of one study, or a results folder with one.
        by: a numeric column of `evaluations`; it is averaged over evaluation seeds.
        recipe: name or recipe_id; None: the study's first recipe, on its data set.

    Raises:
        ConfigError: the column or recipe is not there, no evaluation is completed, or several kinds of evaluations remain.
    """
    kinds = pa.types.is_integer, pa.types.is_floating
    fields = (field for field in SCHEMAS["evaluations"] if any(of_kind(field.type) for of_kind in kinds))
    numeric = [field.name for field in fields if field.name not in ("seed", "split_seed")]
    if by not in numeric:
        raise ConfigError(f"by: {by!r} is no numeric column of evaluations, these are {', '.join(numeric)}")
    rows = read_table(folder, "evaluations", ["genotype_id", "status", "recipe", "recipe_id", "data", *numeric])
    rows = _of_one_kind(choose_evaluations(rows[rows["status"] == "completed"], folder, recipe), Storage(folder), recipe)
    trials = read_table(folder, "trials")
    figures = rows.groupby("genotype_id").agg(dict.fromkeys(numeric, "mean") | dict.fromkeys(("recipe_id", "data"), "first"))
    figures["evaluations"] = rows.groupby("genotype_id").size()
    genotypes = read_table(folder, "genotypes", ["trial_id", "stage", "max_skips", "genotype_id", "genotype"])
    found = final_genotypes(genotypes, trials).join(figures, on="genotype_id").dropna(subset=by)
    if found.empty:
        raise ConfigError(f"{folder}: no completed search has an evaluated genotype with {by}")
    cell = found.sort_values(by, ascending="accuracy" not in by, kind="stable").to_dict("records")[0]
    (trial,) = trials[trials["trial_id"] == cell["trial_id"]].to_dict("records")
    return Best(trial, Genotype.parse(cell["genotype"]), {str(name): cell[name] for name in figures})


def choose_evaluations(rows: pd.DataFrame, folder: Path | str, recipe: str | None = None, data: str | None = None) -> pd.DataFrame:
    """The rows of `evaluations` by one recipe (a name or an id), on one data set, or both.

    Raises:
        ConfigError: there are none. The message names those that the study has.
    """
    for option, columns, wanted in (("recipe", ["recipe", "recipe_id"], recipe), ("data", ["data"], data)):
        if wanted is not None:
            chosen = rows[(rows[columns] == wanted).any(axis=1)]
            if chosen.empty:
                known = ", ".join(map(str, rows[columns[-1]].unique())) or "none yet"
                raise ConfigError(f"{option}: {wanted!r} is no {option} of evaluations of {Path(folder).name}, which are: {known}")
            rows = chosen
    return rows


def _of_one_kind(rows: pd.DataFrame, study: Storage, recipe: str | None) -> pd.DataFrame:
    """The evaluations of one recipe and data set: of several the study's first, unless a recipe is named."""
    kinds = sorted(set(zip(rows["recipe_id"], rows["data"], strict=True)))
    listed = ", ".join(f"{recipe_id} on {data}" for recipe_id, data in kinds) or "none"
    if recipe is None and len(kinds) > 1 and study.stamp(DEFINITION):
        first = from_dict(EvalConfig, json.loads(study.read(DEFINITION))["evaluation"])
        kinds = [kind for kind in kinds if kind == (first.recipe_id, first.data)] or kinds
    if len(kinds) != 1:
        raise ConfigError(f"recipe: {recipe!r} does not name one kind of evaluation of {study}, there are {listed}")
    recipe_id, data = kinds[0]
    return rows[(rows["recipe_id"] == recipe_id) & (rows["data"] == data)]


def alphas(folder: Path | str, trial_id: str) -> pd.DataFrame:
    """The rows of the table `alphas` of one search, as `draw_alphas` takes them.

    Raises:
        ConfigError: there are none, because there is no such search or because it trains no alphas.
    """
    rows = read_table(folder, "alphas", only={"trial_id": [trial_id]})
    if rows.empty:
        known = sorted(read_table(folder, "alphas", ["trial_id"])["trial_id"].unique())
        raise ConfigError(f"{folder}: no alphas of {trial_id!r}, there are those of {', '.join(known) or 'no search'}")
    return rows
