"""Which variants a question compares, known by their configurations and not by their names: anybody's study will do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import pandas as pd

from pdarts_tune.config import SearchConfig, from_dict, to_dict
from pdarts_tune.methods import trains_alphas

Arms = Mapping[str, SearchConfig]


def read_arms(trials: pd.DataFrame) -> Arms:
    """The configuration of each variant, in the order of the study; seeds are those of some trial.

    Raises:
        ConfigError: a configuration that this release does not know.
    """
    first = trials.drop_duplicates("variant")
    return {
        variant: from_dict(SearchConfig, json.loads(text))
        for variant, text in first[["variant", "config"]].itertuples(index=False, name=None)
    }


def differences(one: SearchConfig, other: SearchConfig) -> set[str]:
    """The settings in which two searches differ, seeds apart; those of stages by their own names."""
    sides = [_settings(one), _settings(other)]
    return {name for name in sides[0] | sides[1] if sides[0].get(name) != sides[1].get(name)} - {"seed", "split_seed"}


@lru_cache(1024)
def _settings(config: SearchConfig) -> dict[str, Any]:
    settings = to_dict(config)
    stages = settings.pop("stages")
    return settings | {name: [stage[name] for stage in stages] for name in stages[0]}


def depths(config: SearchConfig) -> list[int]:
    return [stage.cells for stage in config.stages]


def operations(config: SearchConfig) -> list[int]:
    return [stage.operations for stage in config.stages]


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
