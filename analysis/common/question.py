"""A question to a study: how its script reads the study, and the answer that the script writes.

A script is a `Question`: a few lines of data, and a function that fills an `Answer`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from common.comparisons import COMPARISON_NOTES, RANK_NOTES, SPREAD_NOTES
from common.figures import SEARCH_NOTES
from common.published_figures import PUBLISHED_NOTES, TRANSFER_NOTES
from common.section import Section, errors_in_one_line, show_section
from common.study_tables import (
    Configs,
    Read,
    StudyTables,
    by_setting,
    choose_settings,
    describe_study,
    estimate_note,
    find_study,
    keep_one_device,
    list_missing,
    measure_trials,
    read_configs,
    read_study,
)
from pdarts_tune.config.command_line import parse
from pdarts_tune.config.serialize import ConfigError

COMMON_NOTES = SEARCH_NOTES | {  # of tables and figures of several questions
    "error_differences": COMPARISON_NOTES,
    "ranks": RANK_NOTES,
    "spread": SPREAD_NOTES,
    "published": PUBLISHED_NOTES,
    "published_imagenet": TRANSFER_NOTES,
    "tradeoff": "Points: means; bars: 95 % bootstrap intervals of the mean over seeds (none with fewer than 3).",
}
RNG_SEED = 0  # of the bootstrap: a report made twice is the same report


@dataclass(kw_only=True)
class Answer(Section):
    """A section, and the study that its script writes it from."""

    study: StudyTables
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(RNG_SEED))

    @cached_property
    def configs(self) -> Configs:
        return read_configs(self.study.trials)

    @cached_property
    def measures(self) -> pd.DataFrame:
        return measure_trials(self.study)


@dataclass(frozen=True)
class Arguments:
    results: Path = Path("results")
    """The results folder, which holds one folder a study; or the folder of one study."""
    out: Path | None = None
    """Where the files go; the study's own folder `report` if not given."""
    recipe: str | None = None
    """Evaluations by this recipe alone, given by its name or id."""
    data: str | None = None
    """Evaluations on this data set alone."""


@dataclass(frozen=True)
class Question:
    name: str  # of its files, such as "rq1"
    study: str  # the name of its study
    text: str | None  # of its script: the first line is the section's title
    notes: Mapping[str, str]  # how to read a table or a figure, by its name
    is_about: Callable[[StudyTables], bool]  # whether a study of another name answers it
    fill: Callable[[Answer], None]
    across_settings: bool = False  # else the answer is on the first of the study's data sets and recipes alone
    epoch_columns: tuple[str, ...] = ()  # of the table `epochs`, beside those that all answers need

    def build(self, results: Path, recipe: str | None = None, data: str | None = None, read: Read = read_study) -> Section | None:
        """The answer, from the study of this name in `results`, or from `results` itself; None where they hold no data for it.

        Raises:
            ConfigError: the study cannot be read, has no such recipe or data set, or a configuration is unknown.
        """
        folder = find_study(results, self.study)
        if folder is None:
            return None
        study, missing = choose_settings(read(folder, self.epoch_columns), recipe, data), list[str]()
        if not self.across_settings:
            (setting, study), *others = by_setting(study).items()
            known = "; ".join(name for name, _ in others)
            choice = f"--data and --recipe choose others ({known}), compare.py shows all of them"
            study, missing = keep_one_device(study)
            missing += [f"the answer is on {setting} alone; {choice}"] if others else []
        if folder.name != self.study and not self.is_about(study):
            return None
        title, notes = (self.text or "").partition("\n")[0] + estimate_note(study), COMMON_NOTES | dict(self.notes)
        answer = Answer(name=self.name, title=title, about=describe_study(study), notes=notes, study=study)
        if not self.across_settings:
            answer.missing += list_missing(study, answer.measures) + missing
        self.fill(answer)
        return answer

    def main(self, arguments: Sequence[str] | None = None) -> None:
        """The script's command line. Exit code 2, after one line, where the folder cannot be read or has no data."""
        settings = parse(Arguments, arguments, description=self.text or "")
        with errors_in_one_line():
            section = self.build(settings.results, settings.recipe, settings.data)
            folder = find_study(settings.results, self.study)
            if folder is None:
                reason = f"holds no study {self.study}; --results is the folder that holds one folder a study"
                raise ConfigError(f"{settings.results}: {reason}")
            if section is None:
                reason = f"nothing that this question is about differs between the variants of the study {folder.name}"
                raise ConfigError(f"{settings.results}: {reason}; analysis/compare.py compares whatever differs")
            show_section(section, settings.out or folder / "report")
