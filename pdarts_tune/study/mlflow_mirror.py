"""The figures by which trials and variants are compared, from the rows of the tables: what tracking.py sends to MLflow.

Times and steps follow from the rows alone, so that the same rows always give the same points.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import sys
import tempfile
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Self

from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.pdarts.genotype import Genotype
from pdarts_tune.results.schemas import SCHEMAS
from pdarts_tune.results.storage import Storage, is_remote
from pdarts_tune.results.tables import final_genotype, read_rows, table_file

# MERGED DOCSTRING
# One study's tables as a driver follows them: which trials there are, what belongs to a trial, and whether it has changed.
# MERGED DOCSTRING
# What this project asks of MLflow, and the only room that knows it: one experiment, its runs, and their points, tags and files.
# MERGED DOCSTRING
# The MLflow mirror: for looking and comparing. The tables are the truth, and everything in MLflow follows from them.
#
# Only the driver of a study writes to MLflow. A run is found again by its tags and a point logged twice is one point, so that
# whatever dies in between, the next `sync` completes what is there: no run or point is doubled, none is lost.

Row = Mapping[str, Any]

SWEPT = ("method", "data", "depths", "operations", "skip_dropout", "epochs", "max_skips", "channels", "batch_size")

_EPOCH_KEYS = [name for name in SCHEMAS["epochs"].names if name not in ("trial_id", "epoch", "phase", "finished")]


class Point(NamedTuple):
    """One value of one metric, as MLflow stores it."""

    key: str
    value: float
    timestamp: int  # milliseconds since 1970, UTC
    step: int


def milliseconds(time: datetime) -> int:
    """Milliseconds since 1970, UTC."""
    return round(time.timestamp() * 1000)


def epoch_points(epochs: Iterable[Row]) -> list[list[Point]]:
    """For each epoch in order, a point of every column that is not null; `step` counts epochs over all stages from 0.

    Keys start with `epoch/`: some columns have the same name as a figure of the whole trial.
    """
    ordered = sorted(epochs, key=lambda row: (row["stage"], row["epoch"]))
    return [
        [
            Point(f"epoch/{name}", float(row[name]), milliseconds(row["finished"]), step)
            for name in _EPOCH_KEYS
            if row[name] is not None
        ]
        for step, row in enumerate(ordered)
    ]


def chosen_epoch(trial: Row, epochs: Sequence[Row]) -> Row | None:
    """The row of `epochs` that a completed search took its cell from, see `rows.genotype_rows`; None where nothing was trained.

    Of a random search the last epoch of the best candidate; of another search that epoch of the last stage whose alphas decided.
    """
    by_place = {(row["stage"], row["epoch"]): row for row in epochs}
    ends = [by_place[row["stage"], row["derived_epoch"]] for row in epochs if row["derived_epoch"] is not None]
    key = "validation_accuracy" if trial["method"] == "random_search" else "stage"
    return max(sorted(ends, key=lambda row: row["stage"]), key=lambda row: row[key], default=None)  # of equals, the first


def trial_points(trial: Row, epochs: Sequence[Row], genotypes: Sequence[Row], evaluations: Sequence[Row]) -> list[Point]:
    """The figures of a trial that is over, as far as they are known; none while it runs.

    `search_validation_accuracy` is that of the network that the trial's cell was taken from.
    `evaluation_error_percent` (the mean over evaluation seeds) and `depth_gap` (search minus evaluation accuracy, fraction) are
    of the trial's own data set and the recipe that was used first on it; other data sets and recipes have figures of their own,
    `evaluation_error_percent/<data>/<recipe_id>`. Their `step` is the number of evaluations that the mean is over, so the newest
    point is the one over most; for all other figures it is the attempt.

    Args:
        evaluations: any; those of other genotypes, and those that are not completed, are left out.
    """
    if trial["status"] == "running":
        return []
    figures: dict[str, float | None] = {"search_seconds": trial["seconds"], "peak_bytes": trial["peak_bytes"]}
    genotype = final_genotype(trial, genotypes)
    averages: list[Point] = []
    if genotype is not None:
        chosen = chosen_epoch(trial, epochs)
        search = chosen["validation_accuracy"] if chosen else None
        figures |= {
            "search_validation_accuracy": search,
            "inherited_accuracy": genotype["inherited_accuracy"],
            "normal_skip_count": genotype["skips"],
            "params_millions": genotype["params"] / 1e6,
        }
        averages = _evaluation_points(trial, genotype, search, evaluations)
    time, step = milliseconds(trial["finished"]), trial["attempts"]
    return [Point(key, float(value), time, step) for key, value in figures.items() if value is not None] + averages


def _evaluation_points(trial: Row, genotype: Row, search: float | None, evaluations: Iterable[Row]) -> list[Point]:
    recipes: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in sorted(evaluations, key=lambda row: (row["started"], row["trial_id"])):
        if row["genotype_id"] == genotype["genotype_id"] and row["status"] == "completed":
            recipes[row["data"], row["recipe_id"]].append(row)
    own = next((key for key in recipes if key[0] == trial["data"]), None)
    points = []
    for (data, recipe_id), rows in recipes.items():
        accuracy = sum(row["accuracy"] for row in rows) / len(rows)
        time = milliseconds(max(row["finished"] for row in rows))
        suffix = "" if (data, recipe_id) == own else f"/{data}/{recipe_id}"
        points.append(Point(f"evaluation_error_percent{suffix}", 100 * (1 - accuracy), time, len(rows)))
        if search is not None and not suffix:
            points.append(Point("depth_gap", search - accuracy, time, len(rows)))
    return points


def study_points(trials: Iterable[tuple[Row, Sequence[Point]]]) -> list[Point]:
    """For each variant the mean over its trials of every figure in `trial_points`, and how many trials are completed.

    Keys are `<variant>/<figure>`; `step` is the number of trials that the mean is over.

    Args:
        trials: rows of `trials`, each with its `trial_points`; those that are not completed are left out of the means.
    """
    values: dict[str, list[Point]] = defaultdict(list)
    for trial, points in trials:
        if trial["status"] == "completed":
            done = Point("completed_trials", 1.0, milliseconds(trial["finished"]), 0)
            for point in (*points, done):
                values[f"{trial['variant']}/{point.key}"].append(point)
    return [
        Point(
            key,
            float(len(points)) if key.endswith("/completed_trials") else sum(point.value for point in points) / len(points),
            max(point.timestamp for point in points),
            len(points),
        )
        for key, points in values.items()
    ]


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


SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https")
_METRICS_PER_CALL = 1000  # MLflow's limit
_RUNS_PER_CALL = 1000


class TrackingError(RuntimeError):
    """MLflow cannot be reached, or refuses. The message is one line."""


@dataclass
class Run:
    """A run as MLflow holds it. `status` is RUNNING, FINISHED, FAILED or KILLED."""

    run_id: str
    status: str
    tags: dict[str, str]


class MlflowStore:
    """One experiment in an MLflow database or on a server; made where it is missing.

    Args:
        artifacts: folder for the files of runs, unless a server decides where they go.

    Raises:
        ConfigError: `uri` is not one that MLflow takes, or there is no answer from it.
    """

    def __init__(self, uri: str, experiment: str, artifacts: Path | str) -> None:
        if not re.match(rf"({'|'.join(SCHEMES)})(\+\w+)?://.", uri):
            kinds = ", ".join(f"{scheme}://" for scheme in SCHEMES)
            raise ConfigError(f"tracking_uri: {uri!r} is wrong, it must start with one of {kinds}")
        for name, value in {
            # MLflow's own 7 retries with doubling pauses would hold a study up for minutes whenever its server is away.
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # seconds
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
            "MLFLOW_DISABLE_TELEMETRY": "true",  # a training cluster need not reach the internet
        }.items():
            os.environ.setdefault(name, value)
        self.uri = uri
        try:
            with self._calls():
                from mlflow import MlflowClient

                for logger in ("mlflow", "alembic"):
                    logging.getLogger(logger).setLevel(logging.CRITICAL)  # what goes wrong is raised, in one line
                self._client = MlflowClient(uri)
                found = self._client.get_experiment_by_name(experiment)
                if found is not None and found.lifecycle_stage == "deleted":
                    raise ConfigError(
                        f"tracking_uri: experiment {experiment!r} is deleted in {uri}; restore it or remove it for good"
                    )
                location = None if uri.startswith("http") else _as_uri(artifacts)
                self._experiment_id = found.experiment_id if found else self._client.create_experiment(experiment, location)
        except TrackingError as error:
            raise ConfigError(f"tracking_uri: {error}") from None

    def find_runs(self, tag: str, value: str, name: str | None = None) -> list[Run]:
        """All runs with this tag, and this name where one is given, oldest first.

        Runs that somebody deleted in MLflow are not among them.
        """
        runs: list[Run] = []
        token: str | None = None
        while True:
            with self._calls():
                page = self._client.search_runs(
                    [self._experiment_id],
                    f"tags.`{tag}` = '{value}'" + (f" and attributes.run_name = '{name}'" if name else ""),
                    max_results=_RUNS_PER_CALL,
                    order_by=["attributes.start_time ASC"],
                    page_token=token,
                )
            runs += [Run(run.info.run_id, run.info.status, dict(run.data.tags)) for run in page]
            token = page.token
            if not token:
                return runs

    def create_run(self, name: str, started: int, tags: Mapping[str, str]) -> Run:
        """A new RUNNING run; `started` in milliseconds since 1970. Its tags are there from the first moment on."""
        with self._calls():
            run = self._client.create_run(self._experiment_id, started, dict(tags), name)
        return Run(run.info.run_id, "RUNNING", dict(tags))

    def log(self, run: Run, points: Sequence[Point], params: Mapping[str, Any]) -> None:
        """Logs points and parameters. A point, or a parameter with the same value, that is there already stays one."""
        from mlflow.entities import Metric, Param

        metrics = [Metric(point.key, point.value, point.timestamp, point.step) for point in points]
        given = [Param(key, str(value)) for key, value in params.items()]
        for start in range(0, max(len(metrics), 1), _METRICS_PER_CALL):
            part = metrics[start : start + _METRICS_PER_CALL]
            if part or given:
                with self._calls():
                    self._client.log_batch(run.run_id, part, given)
            given = []

    def set_tags(self, run: Run, tags: Mapping[str, str]) -> None:
        """Sets those of the tags that differ."""
        from mlflow.entities import RunTag

        changed = {key: value for key, value in tags.items() if run.tags.get(key) != value}
        if changed:
            with self._calls():
                self._client.log_batch(run.run_id, tags=[RunTag(key, value) for key, value in changed.items()])
            run.tags |= changed

    def set_status(self, run: Run, status: str, ended: int | None = None) -> None:
        """RUNNING, FINISHED, FAILED or KILLED; `ended` in milliseconds since 1970, or now."""
        if run.status == status:
            return
        with self._calls():
            if status == "RUNNING":
                self._client.update_run(run.run_id, status)
            else:
                self._client.set_terminated(run.run_id, status, ended)
        run.status = status

    def log_files(self, run: Run, folder: Path) -> None:
        """Logs the files of a folder, in place of those of the same names."""
        with self._calls():
            self._client.log_artifacts(run.run_id, str(folder))

    def discard(self, run: Run) -> None:
        """Deletes a run as MLflow does: it can be restored there."""
        self.set_status(run, "FINISHED")
        with self._calls():
            self._client.delete_run(run.run_id)

    @contextmanager
    def _calls(self) -> Iterator[None]:
        # MLflow calls what SQLAlchemy has deprecated. The filter stays: putting it back is not safe between threads.
        warnings.filterwarnings("ignore", module=r"mlflow\.")
        try:
            yield
        except ConfigError:
            raise
        except Exception as error:  # MLflow's own, SQLAlchemy's, a driver's, the file system's: no common type
            line = " ".join(str(error).split())
            what = "no answer" if "Max retries exceeded" in line else f"{type(error).__name__}: {line[:300]}"
            raise TrackingError(f"MLflow at {_without_password(self.uri)}: {what}") from error


def _as_uri(folder: Path | str) -> str:
    return str(folder) if "://" in str(folder) else Path(folder).resolve().as_uri()


def _without_password(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", uri)


_PATIENCE_SECONDS = 120.0  # for a server that is away when a study ends

# Tags. SENT is written before epochs are logged and DONE after everything is: what DONE says is there for certain, and nothing
# beyond SENT can be there. Both start with the number of epochs. The study's own DONE stands for all its trials.
STUDY, FOLDER, TRIAL = "pdarts_tune.study", "pdarts_tune.folder", "pdarts_tune.trial_id"
STATUS, ERROR, GENOTYPE, FILES = "pdarts_tune.status", "pdarts_tune.error", "pdarts_tune.genotype_id", "pdarts_tune.files"
SENT, DONE = "pdarts_tune.sent", "pdarts_tune.done"

_STATES = {"completed": "FINISHED", "running": "RUNNING"}  # of a trial, and of its run; all others: FAILED
_STOPPED = "KILLED"  # MLflow's word for what a signal ended


def default_tracking_uri(results: Path | str) -> str:
    """A sqlite file in the results folder.

    Raises:
        ConfigError: the results are in an object store, where no database can be.
    """
    if is_remote(results):
        raise ConfigError(f"tracking_uri: must be given with results in {results}, such as http://HOST:5000 of an MLflow server")
    return f"sqlite:///{Path(results).resolve() / 'mlflow.db'}"


class Mirror:
    """Mirrors the tables of one study's folder: an experiment with a run for the study and, nested in it, one for each trial.

    One process at a time may mirror a study. Creates the store where there is none: MLflow cannot do that from several
    processes at once.

    Raises:
        ConfigError: `tracking_uri` is not one that MLflow takes, or there is no answer from it.
        TrackingError: it answers, but refuses.
    """

    def __init__(self, study_dir: Path | str | Storage, tracking_uri: str) -> None:
        self._folder = StudyFolder(study_dir)
        self._store = MlflowStore(tracking_uri, self._folder.name, f"{self._folder.storage}/mlflow")
        self._folder_id = _folder_id(self._folder.storage)
        self._runs: dict[str, Run] | None = None  # by trial id; None: what MLflow holds is not known for sure
        self._study: Run | None = None
        self._store.set_status(self._study_run(), "RUNNING")

    def sync(self, trial_ids: Iterable[str] | None = None) -> None:
        """Brings these trials' runs up to date, or all. Fast where nothing has changed: no table is read for such a trial.

        The id of an evaluation stands for the trials that found its genotype. A trial that has no rows yet is passed over.

        Raises:
            TrackingError: MLflow cannot be reached or refuses; trials after the first such one are not brought up to date.
            ConfigError: a table cannot be read; the message names it.
        """
        self._folder.refresh()
        try:
            runs = self._known_runs()
            for name in self._folder.trial_ids() if trial_ids is None else list(trial_ids):
                genotype_id = self._folder.evaluated_genotype(name)
                found = [trial_id for trial_id, run in runs.items() if genotype_id and run.tags.get(GENOTYPE) == genotype_id]
                for trial_id in found if genotype_id else [name]:
                    if self._folder.has_trial(trial_id):
                        self._sync_trial(trial_id, runs)
        except BaseException:
            self._runs = self._study = None  # a call may have worked although its answer was lost: look again next time
            raise

    def finish(self, ok: bool) -> None:
        """Syncs all trials, logs the variants' means on the study's run and ends that as FINISHED, or FAILED if not `ok`.

        Fast where nothing has changed since it did so last.

        Raises:
            TrackingError, ConfigError: as `sync`.
        """
        stamp = self._folder.whole_stamp()
        if self._study_run().tags.get(DONE) != stamp:
            self.sync()
            trials = (self._folder.read_trial(trial_id) for trial_id in self._folder.trial_ids())
            self._store.log(self._study_run(), study_points((rows.trial, trial_points(*rows)) for rows in trials), {})
            self._store.set_tags(self._study_run(), {DONE: stamp})
        self._store.set_status(self._study_run(), "FINISHED" if ok else "FAILED")

    def finish_patiently(self, ok: bool, patience: float = _PATIENCE_SECONDS) -> None:
        """The same, tried again for `patience` seconds where MLflow does not answer.

        Raises:
            TrackingError, ConfigError: as `sync`.
        """
        end: float | None = None
        while True:
            try:
                self.finish(ok)
            except TrackingError as error:
                if end is None:
                    end = time.monotonic() + patience
                    print(f"warning: {error}; the tables are not affected, it is tried again", file=sys.stderr, flush=True)
                if time.monotonic() > end:
                    raise
                time.sleep(min(2.0, patience / 10))
            else:
                return

    def stop(self) -> None:
        """Says of the study and of the trials under way that they were stopped. The next `Mirror` lets them run again.

        Raises:
            TrackingError: as `sync`.
        """
        for run in [*(self._runs or {}).values(), self._study_run()]:
            if run.status == "RUNNING":
                self._store.set_status(run, _STOPPED)

    def _known_runs(self) -> dict[str, Run]:
        if self._runs is None:
            runs: dict[str, Run] = {}
            for run in self._store.find_runs(FOLDER, self._folder_id):
                if TRIAL in run.tags:
                    runs.setdefault(run.tags[TRIAL], run)
            self._runs = runs
        return self._runs

    def _study_run(self) -> Run:
        if self._study is None:
            # By name first, which spares the reading of ten thousand trials' runs; a run that was renamed is among all.
            for name in (self._folder.name, None):
                found = [run for run in self._store.find_runs(FOLDER, self._folder_id, name) if TRIAL not in run.tags]
                if found:
                    self._study = found[0]
                    return found[0]
            tags = {STUDY: self._folder.name, FOLDER: self._folder_id}
            self._study = self._store.create_run(self._folder.name, round(time.time() * 1000), tags)
        return self._study

    def _sync_trial(self, trial_id: str, runs: dict[str, Run]) -> None:
        stamp = self._folder.trial_stamp(trial_id)
        run = runs.get(trial_id)
        if run is not None and _split(run, DONE)[1] == stamp + self._folder.evaluation_stamp(run.tags.get(GENOTYPE)):
            return
        rows = self._folder.read_trial(trial_id)
        trial, points = rows.trial, epoch_points(rows.epochs)
        if run is not None and not _continues(run, trial, points):
            self._store.discard(run)  # MLflow cannot take a point back, so the run of a search that went another way goes whole
            run = None
        if run is None:
            parent = self._study_run().run_id
            tags = {STUDY: trial["study"], FOLDER: self._folder_id, TRIAL: trial_id, "mlflow.parentRunId": parent}
            run = runs[trial_id] = self._store.create_run(trial_id, milliseconds(trial["started"]), tags)
        logged = _split(run, DONE)[0]
        self._store.set_tags(run, {SENT: f"{len(points)}:{_history(trial, points)}"})
        new = [point for epoch in points[logged or 0 :] for point in epoch]
        names = ("variant", "seed", "split_seed", *SWEPT, "config_id")
        self._store.log(run, new + trial_points(*rows), {name: trial[name] for name in names} if logged is None else {})
        tags = {STATUS: trial["status"]}
        if trial["error"] or ERROR in run.tags:
            tags[ERROR] = (trial["error"] or "")[:1000]
        if trial["commit"] not in (None, "unknown"):
            tags["mlflow.source.git.commit"] = trial["commit"]
        genotype = final_genotype(trial, rows.genotypes)
        if genotype is not None:
            tags[GENOTYPE] = genotype["genotype_id"]
        ended = milliseconds(trial["finished"]) if trial["finished"] else None
        self._store.set_status(run, _STATES.get(trial["status"], "FAILED"), ended)
        self._store.set_tags(run, tags)
        if genotype is not None and run.tags.get(FILES) != genotype["genotype_id"]:
            self._log_files(run, trial, genotype)
            self._store.set_tags(run, {FILES: genotype["genotype_id"]})
        self._store.set_tags(run, {DONE: f"{len(points)}:{stamp}{self._folder.evaluation_stamp(tags.get(GENOTYPE))}"})

    def _log_files(self, run: Run, trial: Row, genotype: Row) -> None:
        import pandas as pd

        from pdarts_tune.results.cell_figures import draw_alphas, draw_genotype, save_figure

        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "genotype.txt").write_text(genotype["genotype"] + "\n")
            save_figure(draw_genotype(Genotype.parse(genotype["genotype"]), trial["trial_id"]), folder / "cells")
            alphas = pd.DataFrame(self._folder.read_alphas(trial["trial_id"]))
            if len(alphas):  # none where the genotype was drawn at random
                draw_alphas(alphas).savefig(folder / "alphas.png", dpi=110)
            self._store.log_files(run, folder)


class BackgroundMirror:
    """Syncs trials from a thread of its own while the context lasts, so that a slow MLflow never holds the trials up.

    Trouble is one warning on stderr each time it starts; the trials concerned are tried again. `Mirror.finish` after the context
    makes up for all that is missing then, and raises.
    """

    def __init__(self, mirror: Mirror, interval: float = 5.0) -> None:
        self._mirror = mirror
        self._interval = interval  # seconds between syncs
        self._touched: set[str] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlflow mirror", daemon=True)

    def touch(self, trial_id: str) -> None:
        """Says that the tables have new rows of a trial or of an evaluation. Returns at once."""
        with self._lock:
            self._touched.add(trial_id)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()  # a sync that is under way ends: a store must not be left to two threads

    def _run(self) -> None:
        troubled = False
        while not self._stop.wait(self._interval):
            with self._lock:
                touched, self._touched = self._touched, set()
            if not touched:
                continue
            try:
                self._mirror.sync(sorted(touched))
                troubled = False
            except (TrackingError, ConfigError) as error:
                if not troubled:
                    print(f"warning: {error}; the tables are not affected, it is tried again", file=sys.stderr)
                troubled = True
                with self._lock:
                    self._touched |= touched


def _continues(run: Run, trial: Row, points: list[list[Point]]) -> bool:
    """Whether what may have been logged is the beginning of what is to be logged."""
    count, history = _split(run, SENT)
    return count is None or (count <= len(points) and history == _history(trial, points[:count]))


def _history(trial: Row, points: list[list[Point]]) -> str:
    return digest(milliseconds(trial["started"]), points)


def _split(run: Run, tag: str) -> tuple[int | None, str]:
    count, _, rest = run.tags.get(tag, "").partition(":")
    return (int(count) if count else None), rest


def _folder_id(study_dir: Storage) -> str:
    """Names this results folder, on a server that also holds other folders' results of a study of the same name."""
    try:
        return study_dir.read("mlflow_id").decode().strip()
    except FileNotFoundError:
        name = secrets.token_hex(6)
        study_dir.write("mlflow_id", name.encode())
        return name
