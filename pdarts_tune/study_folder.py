"""One study's tables as a driver follows them: which trials there are, what belongs to a trial, and whether it has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pdarts_tune.results import SCHEMAS, read_rows, table_file
from pdarts_tune.storage import Storage
from pdarts_tune.summary import Row, final_genotype

_TRIAL_TABLES = ("trials", "epochs", "genotypes")
# Without `correct` and its like: thousands of values that nobody here asks for.
_EVALUATION_COLUMNS = [field.name for field in SCHEMAS["evaluations"] if not str(field.type).startswith("list")]


class TrialRows(NamedTuple):
    """All rows of one trial, in the order of the arguments of `summary.trial_points`."""

    trial: Row
    epochs: Sequence[Row]
    genotypes: Sequence[Row]
    evaluations: Sequence[Row]  # of the genotype that the trial ends with


class StudyFolder:
    """The tables in a study's folder. A file of evaluations is read again only when it has changed.

    Raises (all methods):
        ConfigError: a table cannot be read; the message names it.
    """

    def __init__(self, location: Path | str | Storage) -> None:
        self.storage = Storage(location)
        self._evaluations: dict[str, tuple[str, Row]] = {}  # by id, with the stamp of the file that was read
        self._by_genotype: dict[str, list[str]] = {}

    @property
    def name(self) -> str:
        return self.storage.name

    def refresh(self) -> None:
        """Reads the evaluations that are new."""
        for name, stamp in self._stamps("evaluations").items():
            if name not in self._evaluations or self._evaluations[name][0] != stamp:
                (row,) = read_rows(self.storage, "evaluations", name, _EVALUATION_COLUMNS)
                self._evaluations[name] = (stamp, row)
        self._by_genotype = {}
        for name in sorted(self._evaluations):
            self._by_genotype.setdefault(self._evaluations[name][1]["genotype_id"], []).append(name)

    def trial_ids(self) -> list[str]:
        return list(self._stamps("trials"))

    def has_trial(self, trial_id: str) -> bool:
        return bool(self._stamp("trials", trial_id))

    def evaluated_genotype(self, evaluation_id: str) -> str | None:
        """The genotype_id of an evaluation, None if there is no such evaluation."""
        return self._evaluations[evaluation_id][1]["genotype_id"] if evaluation_id in self._evaluations else None

    def read_trial(self, trial_id: str) -> TrialRows:
        """All rows of a trial that `has_trial`."""
        trials, epochs, genotypes = (read_rows(self.storage, table, trial_id) for table in _TRIAL_TABLES)
        final = final_genotype(trials[0], genotypes)
        names = self._by_genotype.get(final["genotype_id"], []) if final else []
        return TrialRows(trials[0], epochs, genotypes, [self._evaluations[name][1] for name in names])

    def read_alphas(self, trial_id: str) -> list[dict[str, Any]]:
        return read_rows(self.storage, "alphas", trial_id)

    def trial_stamp(self, trial_id: str) -> str:
        """Changes with every file of the trial itself. Take it before reading: then it never stands for rows not read."""
        return digest([self._stamp(table, trial_id) for table in _TRIAL_TABLES])

    def evaluation_stamp(self, genotype_id: str | None) -> str:
        """Changes with every evaluation of a genotype."""
        return digest([(name, self._evaluations[name][0]) for name in self._by_genotype.get(genotype_id or "", [])])

    def whole_stamp(self) -> str:
        """Changes with every file of any trial or evaluation."""
        return digest([list(self._stamps(table).items()) for table in (*_TRIAL_TABLES, "evaluations")])

    def _stamp(self, table: str, trial_id: str) -> str:
        return self.storage.stamp(table_file(self.name, table, trial_id))

    def _stamps(self, table: str) -> dict[str, str]:
        stamps = self.storage.stamps(table)
        return {name.removesuffix(".parquet"): stamp for name, stamp in stamps.items() if name.endswith(".parquet")}


def digest(*parts: object) -> str:
    """Twelve hex digits that name values by their content; numbers, texts, lists and tuples only."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
