"""What the answers to RQ1, RQ2, RQ3 and the comparison of methods start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

import frames
from arms import Arms, read_arms
from frames import StudyTables

RNG_SEED = 0  # of the bootstrap: a report made twice is the same report

Read = Callable[[Path], StudyTables]  # frames.read_study, or what keeps its results


class Question(NamedTuple):
    """A question's study, on one data set and by one recipe."""

    study: StudyTables
    arms: Arms
    measures: pd.DataFrame  # frames.measure_trials
    missing: list[str]  # frames.list_missing; what else the answer lacks is added
    rng: np.random.Generator


def open_question(results: Path, name: str, read: Read, is_about: Callable[[StudyTables], bool]) -> Question | None:
    """The study of a question: of that name in `results`, or `results` itself if it is one that the question `is_about`.

    Raises:
        ConfigError: where frames.load_study does.
    """
    folder = frames.find_study(results, name)
    if folder is None:
        return None
    study = frames.of_one_setting(read(folder))
    if folder.name != name and not is_about(study):
        return None
    study, told = keep_one_device(study)
    measures = frames.measure_trials(study)
    missing = frames.list_missing(study, measures) + told
    return Question(study, read_arms(study.trials), measures, missing, np.random.default_rng(RNG_SEED))


def keep_one_device(study: StudyTables) -> tuple[StudyTables, list[str]]:
    """The study with the costs of one kind of device alone, that of most searches, and a line on those left out.

    A study may be continued, or take over arms, on another machine; seconds and peak memory would be compared as if variants
    differed in them.
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
    told = f"seconds and peak memory are those of the searches on {usual}; left out are {counts[others].sum()} searches: {names}"
    return replace(study, trials=blank(study.trials), epochs=blank(study.epochs)), [told]
