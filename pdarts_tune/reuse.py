"""Takes over from other studies what they have finished and this one would only do again.

Studies share arms: P-DARTS itself is the base of RQ1, RQ2 and RQ3. A search is taken over where its whole configuration, seeds
included, is the same; an evaluation where genotype and configuration are. Rows come as they are, with commit, device and times of
where they ran, under this study's names. A published copy calls data in files by their folder's name alone (`parquet:cifar10`),
so there the same name is taken for the same data.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pdarts_tune.config import ConfigError, EvalConfig, config_id, from_dict, to_dict
from pdarts_tune.data_names import short_name
from pdarts_tune.genotype import Genotype
from pdarts_tune.ledger import read_columns
from pdarts_tune.methods import paired_variant
from pdarts_tune.plan import EvalTrial, SearchTrial
from pdarts_tune.results import read_rows, write_rows
from pdarts_tune.storage import Storage

_TABLES = ("epochs", "alphas", "genotypes", "trials")  # of a search; the row that says it is finished comes last


def open_sources(reuse: str | None, folder: Storage) -> list[Storage]:
    """The study folders that a command line names, separated by commas.

    Raises:
        ConfigError: one of them is no study's folder, or the study's own.
    """
    sources = [Storage(name) for name in reuse.split(",")] if reuse else []
    for source in sources:
        if "trials" not in source.folders():
            raise ConfigError(f"reuse: {source} is not the folder of a study, it has no folder trials")
        if source.location == folder.location:
            raise ConfigError(f"reuse: {source} is the study itself, which is continued anyway")
    return sources


Same = tuple[SearchTrial | EvalTrial, Storage, str]


def find_same(trials: Sequence[SearchTrial | EvalTrial], sources: Sequence[Storage]) -> list[Same]:
    """Those of the trials that a source has finished, with the first such source and the trial's id there.

    Raises:
        ConfigError: a source's table cannot be read.
    """
    same: dict[str, Same] = {}
    for source in sources:
        searches = _finished_searches(source) if any(isinstance(trial, SearchTrial) for trial in trials) else {}
        trainings = _finished_evaluations(source) if any(isinstance(trial, EvalTrial) for trial in trials) else {}
        for trial in trials:
            for data in (trial.config.data, short_name(trial.config.data)):
                if isinstance(trial, SearchTrial) and paired_variant(trial.config.method):
                    there = None  # it follows from another search too, which need not be the same there
                elif isinstance(trial, SearchTrial):
                    there = searches.get(config_id(replace(trial.config, data=data)))
                else:
                    there = trainings.get((Genotype.parse(trial.genotype).genotype_id, replace(trial.config, data=data)))
                if there is not None:
                    same.setdefault(trial.trial_id, (trial, source, there))
    return list(same.values())


def _finished_searches(source: Storage) -> dict[str, str]:
    """Trial ids by what names the configuration."""
    rows = read_columns(source, "trials", "trial_id", "status", "config_id")
    rows = rows[rows.status == "completed"]
    return dict(zip(rows.config_id, rows.trial_id, strict=True))


def _finished_evaluations(source: Storage) -> dict[tuple[str, EvalConfig], str]:
    """Trial ids by genotype id and configuration."""
    rows = read_columns(source, "evaluations", "trial_id", "status", "genotype_id", "config")
    rows = rows[rows.status == "completed"]
    configs = {text: from_dict(EvalConfig, json.loads(text)) for text in rows.config.unique()}
    return dict(zip(zip(rows.genotype_id, rows.config.map(configs), strict=True), rows.trial_id, strict=True))


def take_over(trials: Sequence[SearchTrial | EvalTrial], sources: Sequence[Storage], folder: Storage) -> int:
    """Writes the rows of those of the trials that a source has finished, and returns how many they are.

    Raises:
        ConfigError: a source's table cannot be read.
    """
    same = find_same(trials, sources)
    for trial, source, there in same:
        config = {"data": trial.config.data, "config": json.dumps(to_dict(trial.config))}
        if isinstance(trial, EvalTrial):
            _copy(source, there, folder, "evaluations", trial.trial_id, config)
            continue
        names = config | {"config_id": config_id(trial.config), "study": folder.name, "variant": trial.variant}
        for table in _TABLES:
            _copy(source, there, folder, table, trial.trial_id, names if table == "trials" else {})
    return len(same)


def _copy(source: Storage, there: str, folder: Storage, table: str, trial_id: str, names: dict[str, Any]) -> None:
    rows = [row | names | {"trial_id": trial_id} for row in read_rows(source, table, there)]
    if rows:  # a drawn genotype has no epochs
        write_rows(folder, table, trial_id, rows)
