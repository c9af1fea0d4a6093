"""The MLflow mirror: a copy of a study's tables, for looking and comparing.

A study is an experiment, and each of its trials is one run. The tables are the truth: a run follows from its trial's rows alone.
New rows are added to a run, and a run is replaced where rows that it has are others now. Its tags, which are set last, say what it
has. So an update touches only what has changed, and whatever dies during an update, the next one completes it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shlex
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.pdarts.genotype import Genotype
from pdarts_tune.results.schemas import SCHEMAS
from pdarts_tune.results.storage import Storage, hold_lock, is_remote
from pdarts_tune.results.tables import final_genotype, read_rows, read_study

Row = Mapping[str, Any]

SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https")
FOLDER, TRIAL, STAMP = "pdarts_tune.folder", "pdarts_tune.trial_id", "pdarts_tune.stamp"  # tags
STATUS, ERROR = "pdarts_tune.status", "pdarts_tune.error"
GENOTYPE, LOGGED = "pdarts_tune.genotype_id", "pdarts_tune.logged"
PARAMETERS = ("variant", "seed", "method")  # of every run; further ones are the settings that differ within the study
FIGURES = (
    "error_percent",
    "search_accuracy",
    "inherited_accuracy",
    "depth_gap",
    "skips",
    "depth",
    "params",
    "seconds",
    "peak_bytes",
)
_TABLES = ("trials", "epochs", "genotypes")  # a trial has a file in each
_CURVES = [  # without counts of operations other than the skip-connect, which would be 14 more
    name
    for name in SCHEMAS["epochs"].names
    if name not in ("trial_id", "epoch", "phase", "finished") and ("skip" in name or not name.endswith("_count"))
]
_EVALUATION_COLUMNS = ("trial_id", "genotype_id", "data", "recipe_id", "status", "accuracy", "started", "finished")
_PAGE = 1000  # runs; MLflow's limit
_DESCRIPTION = 20_000  # MLflow's limit in characters
_LASTING = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class TrackingError(RuntimeError):
    """MLflow cannot be reached, or refuses. The message is one line. `lasts`: it will refuse again."""

    lasts = False


def sqlite_uri(file: Path) -> str:
    """The address of a sqlite database. Characters with a meaning in addresses, such as ? and %, are quoted.

    Raises:
        ConfigError: the installed SQLAlchemy is too old to quote them.
    """
    from sqlalchemy import URL, make_url

    uri = str(URL.create("sqlite", database=str(file)))
    if str(file) not in uri:  # MLflow would make a folder with the quoted name, were the driver not named
        uri = uri.replace("sqlite:", "sqlite+pysqlite:", 1)
    if make_url(uri).database != str(file):
        raise ConfigError(f"results: {file} has a character that SQLAlchemy can quote from release 2.1 on; take another folder")
    return uri


def default_tracking_uri(results: Path | str) -> str:
    """A sqlite file in the results folder. Raises ConfigError for an object store, where no database can be."""
    if is_remote(results):
        raise ConfigError(f"tracking_uri: must be given with results in {results}, such as http://HOST:5000 of an MLflow server")
    return sqlite_uri(Path(results).resolve() / "mlflow.db")


def chosen_epoch(trial: Row, epochs: Sequence[Row]) -> Row | None:
    """The row of `epochs` that a completed search took its cell from; None where nothing was trained.

    For a random search this is the last epoch of the best candidate, for others the epoch of the last stage whose alphas decided.
    """
    by_place = {(row["stage"], row["epoch"]): row for row in epochs}
    ends = [by_place[row["stage"], row["derived_epoch"]] for row in epochs if row["derived_epoch"] is not None]
    key = "validation_accuracy" if trial["method"] == "random_search" else "stage"
    return max(sorted(ends, key=lambda row: row["stage"]), key=lambda row: row[key], default=None)  # of equals, the first


def trial_figures(trial: Row, epochs: Sequence[Row], genotypes: Iterable[Row], evaluations: Iterable[Row]) -> dict[str, float]:
    """The final figures of a trial in the units of the tables, without those that are not known; none while it runs.

    `search_accuracy` is the validation accuracy of the network that the cell was taken from. `error_percent` is the mean test error
    over evaluation seeds, and `depth_gap` is search minus test accuracy (fraction), on the trial's own data set and by the recipe
    that was used first on it. Other data sets and recipes have an `error_percent/<data>/<recipe_id>`.

    Args:
        evaluations: rows of the genotype that the trial ends with; those that are not completed are left out.
    """
    if trial["status"] == "running":
        return {}
    figures = {name: trial[name] for name in ("seconds", "peak_bytes")}
    genotype = final_genotype(trial, genotypes)
    if genotype is not None:
        figures |= {name: genotype[name] for name in ("inherited_accuracy", "skips", "depth", "params")}
        chosen = chosen_epoch(trial, epochs)
        figures["search_accuracy"] = chosen["validation_accuracy"] if chosen else None
        accuracies = defaultdict(list)
        for row in sorted(evaluations, key=lambda row: (row["started"], row["trial_id"])):
            if row["status"] == "completed":
                accuracies[row["data"], row["recipe_id"]].append(row["accuracy"])
        own = next((recipe for recipe in accuracies if recipe[0] == trial["data"]), None)
        for recipe, values in accuracies.items():
            accuracy = sum(values) / len(values)
            figures["/".join(("error_percent", *(() if recipe == own else recipe)))] = round(100 * (1 - accuracy), 10)
            if chosen and recipe == own:
                figures["depth_gap"] = chosen["validation_accuracy"] - accuracy
    return {name: float(value) for name, value in figures.items() if value is not None}


@dataclass
class _Run:
    """What MLflow holds of a trial."""

    run_id: str
    status: str  # RUNNING, FINISHED, FAILED or KILLED
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]  # the last value of each


class _Client:
    """An MlflowClient that raises TrackingError, and is otherwise silent."""

    def __init__(self, uri: str, file: str | None) -> None:
        self._uri = uri
        # MLflow's own 7 retries with doubling pauses would take minutes; a training cluster need not reach the internet.
        quick = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
        for name, value in (quick | {"MLFLOW_DISABLE_TELEMETRY": "1", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "1"}).items():
            os.environ.setdefault(name, value)
        self._client = self._call(self._open, file)

    def __getattr__(self, name: str) -> Any:
        return partial(self._call, getattr(self._client, name))

    def _open(self, file: str | None) -> Any:
        if file:  # MLflow would try for two minutes to open what is no database, or cannot be written
            with closing(sqlite3.connect(file, timeout=20.0)) as connection:
                connection.execute("begin immediate")
        from mlflow import MlflowClient

        for logger in ("mlflow", "alembic"):
            logging.getLogger(logger).setLevel(logging.CRITICAL)
        return MlflowClient(self._uri)

    def delete_for_good(self, run_id: str) -> None:
        """A server allows to delete a run so that it can be restored, and no more."""
        self.delete_run(run_id)
        if hasattr(self._client._tracking_client.store, "_hard_delete_run"):  # what `mlflow gc` calls
            self._call(self._client._tracking_client.store._hard_delete_run, run_id)

    def _call(self, method: Any, *arguments: Any, **keywords: Any) -> Any:
        # MLflow calls what SQLAlchemy has deprecated. The filter stays: putting it back is not safe between threads.
        warnings.filterwarnings("ignore", module=r"mlflow\.")
        try:
            return method(*arguments, **keywords)
        except Exception as error:  # MLflow's own, SQLAlchemy's, a driver's, the file system's: no common type
            line = re.sub(r" \[SQL: .*| \(Background on .*", "", " ".join(str(error).split()))[:300]
            reason = "no answer" if "Max retries exceeded" in line else f"{type(error).__name__}: {line}"
            raised = TrackingError(f"MLflow at {re.sub('//[^/@]*@', '//***@', self._uri)}: {reason}")
            code = getattr(error, "get_http_status_code", int)()
            raised.lasts = (400 <= code < 500 and code not in (408, 429)) or getattr(error, "errno", None) in _LASTING
            if self._uri.startswith("sqlite"):
                raised.lasts = "is locked" not in line
            raise raised from error


class Mirror:
    """The experiment of one study in an MLflow database or on a server; made where it is missing.

    One process at a time may mirror a study. Several studies may share a store, also studies of one name in several folders.

    Raises:
        ConfigError: `tracking_uri` is not one that MLflow takes, or there is no answer from it.
    """

    def __init__(self, study_dir: Path | str | Storage, tracking_uri: str) -> None:
        if not re.match(rf"({'|'.join(SCHEMES)})(\+\w+)?://.", tracking_uri):
            kinds = ", ".join(f"{scheme}://" for scheme in SCHEMES)
            raise ConfigError(f"tracking_uri: {tracking_uri!r} is wrong, it must start with one of {kinds}")
        from sqlalchemy import make_url

        self._folder, self._uri = Storage(study_dir), tracking_uri
        self._runs: dict[str, _Run] | None = None  # by trial id; None: read them from MLflow
        # Files beside the default database have addresses relative to the results folder, which may be moved with both.
        self._relative = not self._folder.is_remote and tracking_uri == default_tracking_uri(self._folder.path.parent)
        file = make_url(tracking_uri).database if tracking_uri.startswith("sqlite") else None
        try:  # MLflow cannot make a database from several processes at once
            with hold_lock(Path(f"{file}.lock")) if file else nullcontext():
                self._client = _Client(tracking_uri, file)
                self._folder_id = _folder_id(self._folder)
                self._experiment = self._open_experiment()
        except (TrackingError, OSError) as error:
            advice = ""
            if self._relative and re.search("not a database|malformed|schema|revision|no such", str(error)):
                advice = f"; {file} is a mirror of the tables: delete it, and the same command makes it anew"
            elif file and "is locked" in str(error):
                advice = "; on a file system without locks, as some NFS, give --tracking-uri sqlite:////FOLDER/mlflow.db elsewhere"
            raise ConfigError(f"tracking_uri: {error}{advice}") from None

    def links(self) -> list[str]:
        """What shows the study to a person: the command of MLflow's page, and the addresses of its table and charts."""
        lines, server = [], self._uri.rstrip("/")
        if not self._uri.startswith("http"):
            files = ["--artifacts-destination", _address(self._folder.path.parent.resolve())] if self._relative else []
            lines, server = [shlex.join(["mlflow", "ui", "--backend-store-uri", self._uri, *files])], "http://127.0.0.1:5000"
        page = f"{server}/#/experiments/{self._experiment}/runs?workflowType=machine_learning"
        return [
            *lines,
            f"{page}&viewStateShareKey=table&compareRunsMode=TABLE",
            f"{page}&viewStateShareKey=charts&compareRunsMode=CHART",
        ]

    def update(self, *, live: bool = False, ended: threading.Event | None = None) -> None:
        """Brings the experiment up to date with the tables. Reads no table if no file has changed.

        Args:
            live: the study goes on, and trials without an end are running. Otherwise they were stopped.
            ended: once it is set, the rest is left to the next update.

        Raises:
            TrackingError: MLflow cannot be reached or refuses.
            ConfigError: a table cannot be read; the message names it.
        """
        stamps = {table: self._folder.stamps(table) for table in (*_TABLES, "evaluations", "report")}
        whole = _digest(live, stamps)
        try:
            if self._client.get_experiment(self._experiment).tags.get(STAMP) == whole:
                return
            swept = self._update_runs(stamps, live, ended)
            if ended is None or not ended.is_set():
                for key, value in (_views(swept) | self._description(stamps["report"]) | {STAMP: whole}).items():
                    self._client.set_experiment_tag(self._experiment, key, value)
        except BaseException:
            self._runs = None  # a call may have worked although its answer was lost
            raise

    def finish(self, patience: float = 120.0) -> bool:
        """The update at a study's end. Tries again for `patience` seconds while MLflow does not answer; once where it refuses.

        Trouble is one warning on stderr. Returns whether the experiment is up to date.
        """
        begun, warned = time.monotonic(), False
        while True:
            try:
                self.update()
                return True
            except (TrackingError, ConfigError, OSError) as error:
                if warned and (getattr(error, "lasts", True) or time.monotonic() > begun + patience):
                    print(f"warning: {error}; the tables are complete, the same command brings MLflow up to date", file=sys.stderr)
                    return False
                if not warned:
                    _warn(error)
                warned = True
                time.sleep(min(2.0, patience / 10))

    @contextmanager
    def updating(self, interval: float = 10.0) -> Iterator[None]:
        """Updates from a thread while the context lasts, at most every `interval` seconds and a tenth of the time.

        Trouble is one warning on stderr each time it starts. An update after the context makes up for what is missing. Where the
        context is stopped (Ctrl-C), that is done here.
        """
        ended = threading.Event()

        def run() -> None:
            warned, pause = False, interval
            while not ended.wait(pause):
                begun = time.monotonic()
                try:
                    self.update(live=True, ended=ended)
                    warned, pause = False, max(interval, 10 * (time.monotonic() - begun))
                except (TrackingError, ConfigError, OSError) as error:
                    if not warned:
                        _warn(error)
                    warned, pause = True, interval

        thread = threading.Thread(target=run, name="mlflow mirror", daemon=True)
        thread.start()
        try:
            yield
        except KeyboardInterrupt:
            ended.set()
            thread.join()
            with suppress(TrackingError):
                self.update()
            raise
        finally:
            ended.set()
            thread.join()

    def _update_runs(self, stamps: Mapping[str, Mapping[str, str]], live: bool, ended: threading.Event | None) -> list[str]:
        """Brings the runs whose rows have changed up to date. Returns the settings that differ within the study."""
        from mlflow.entities import Param

        evaluations: dict[str, list[Any]] = defaultdict(list)
        for row in read_study(self._folder, "evaluations", _EVALUATION_COLUMNS).to_pandas().to_dict("records"):
            evaluations[row["genotype_id"]].append(row)
        trials = read_study(self._folder, "trials", ["trial_id", *PARAMETERS, "config"]).to_pandas().to_dict("records")
        settings = {row["trial_id"]: _settings(json.loads(row["config"])) for row in trials}
        names = dict.fromkeys(name for setting in settings.values() for name in setting)
        swept = [name for name in names if len({setting.get(name) for setting in settings.values()}) > 1]

        def stamp_of(trial_id: str, genotype_id: str) -> str:
            own = sorted(row["trial_id"] for row in evaluations.get(genotype_id, ()))
            files = [(table, trial_id) for table in _TABLES] + [("evaluations", name) for name in own]
            return _digest([(name, stamps[table].get(f"{name}.parquet")) for table, name in files])

        self._runs = runs = self._find_runs() if self._runs is None else self._runs
        for row in trials:
            if ended is not None and ended.is_set():
                break
            trial_id, setting, run = row["trial_id"], settings[row["trial_id"]], runs.get(row["trial_id"])
            if run is None or run.tags.get(STAMP) != stamp_of(trial_id, run.tags.get(GENOTYPE, "")):
                rows = [read_rows(self._folder, table, trial_id) for table in _TABLES]
                genotype = final_genotype(rows[0][0], rows[2])
                genotype_id = genotype["genotype_id"] if genotype else ""
                stamp = stamp_of(trial_id, genotype_id)
                run = runs[trial_id] = self._log(run, rows, genotype, evaluations.get(genotype_id, ()), stamp)
            params = {name: str(row[name]) for name in PARAMETERS} | {name: setting[name] for name in swept if name in setting}
            if new := [Param(name, value) for name, value in params.items() if name not in run.params]:
                self._client.log_batch(run.run_id, params=new)
                run.params = params
            over = "RUNNING" if live else "KILLED"  # what MLflow calls a run without an end that was stopped
            if run.status in ("RUNNING", "KILLED") and run.status != over:
                self._client.update_run(run.run_id, over)
                run.status = over
        return swept

    def _log(
        self, run: _Run | None, rows: Sequence[Sequence[Row]], final: Row | None, evaluations: Sequence[Row], stamp: str
    ) -> _Run:
        """Logs what a trial's run lacks of the rows in `_TABLES`. Makes it anew where there is none, or where rows have changed."""
        from mlflow.entities import Metric, RunTag

        (trial,), epochs, genotypes = rows
        figures = trial_figures(trial, epochs, genotypes, evaluations)
        started, *finished = (_milliseconds(trial[name]) for name in ("started", "finished") if trial[name])
        now = max([started, *finished, *(_milliseconds(row["finished"]) for row in evaluations if row["status"] == "completed")])
        points = [
            (f"epoch/{name}", float(row[name]), _milliseconds(row["finished"]), step)
            for step, row in enumerate(sorted(epochs, key=lambda row: (row["stage"], row["epoch"])))
            for name in _CURVES
            if row[name] is not None
        ]
        if run is not None:
            count, _, rest = run.tags.get(LOGGED, "").partition(" ")
            before, _, digest = rest.partition(" ")
            known = {name: value for name, value in run.metrics.items() if not name.startswith("epoch/")}
            kept = digest == _digest(points[: int(count or 0)]) and known.keys() <= figures.keys()
            if not kept or (int(before) >= now and known.items() - figures.items()):
                self._delete(run.run_id)
                run = None
            else:
                figures = dict(figures.items() - known.items())
        if run is None:
            created = self._client.create_run(
                self._experiment, started, {FOLDER: self._folder_id, TRIAL: trial["trial_id"]}, trial["trial_id"]
            )
            run, count = _Run(created.info.run_id, "RUNNING", {}, {}, {}), "0"
        metrics = [*((name, value, now, 0) for name, value in figures.items()), *points[int(count) :]]
        if metrics:
            self._client.log_batch(run.run_id, [Metric(*point) for point in metrics])
        if final is not None and run.tags.get(GENOTYPE) != final["genotype_id"]:
            self._log_cells(run.run_id, trial["trial_id"], final["genotype"])
        if trial["status"] != "running":
            run.status = "FINISHED" if trial["status"] == "completed" else "FAILED"
            self._client.set_terminated(run.run_id, run.status, *finished)
        elif run.status not in ("RUNNING", "KILLED"):
            run.status = "KILLED"  # goes on, or was stopped: the caller says which
        tags = {STATUS: trial["status"], LOGGED: f"{len(points)} {now} {_digest(points)}"}
        tags |= {GENOTYPE: final["genotype_id"], "mlflow.note.content": f"`{final['genotype']}`"} if final else {}
        tags |= {ERROR: (trial["error"] or "")[:1000]} if trial["error"] or ERROR in run.tags else {}
        tags |= {"mlflow.source.git.commit": trial["commit"]} if trial["commit"] not in (None, "unknown") else {}
        run.tags = dict(run.tags) | tags | {STAMP: stamp}
        run.metrics = dict(run.metrics) | {name: value for name, value, *_ in metrics}
        self._client.log_batch(run.run_id, tags=[RunTag(name, value) for name, value in (tags | {STAMP: stamp}).items()])
        return run

    def _log_cells(self, run_id: str, trial_id: str, genotype: str) -> None:
        from pdarts_tune.results.cell_figures import draw_genotype

        with tempfile.TemporaryDirectory() as name:
            folder = self._files(run_id) / "artifacts" if self._relative else Path(name)
            folder.mkdir(parents=True, exist_ok=True)
            figure = draw_genotype(Genotype.parse(genotype), trial_id)
            figure.set_layout_engine("none")  # which would take as long as drawing
            figure.savefig(folder / "cells.svg")
            if not self._relative:
                self._client.log_artifacts(run_id, str(folder))

    def _files(self, run_id: str) -> Path:
        return self._folder.path / "mlflow" / run_id

    def _delete(self, run_id: str) -> None:
        self._client.delete_for_good(run_id)
        if self._relative:
            shutil.rmtree(self._files(run_id), ignore_errors=True)

    def _find_runs(self) -> dict[str, _Run]:
        """The run of each trial. Deletes the others of this folder."""
        runs: dict[str, _Run] = {}
        for run in self._search(self._experiment):
            trial_id = run.data.tags.get(TRIAL)
            if trial_id is None or trial_id in runs:
                self._delete(run.info.run_id)
            else:
                runs[trial_id] = _Run(run.info.run_id, run.info.status, run.data.tags, run.data.params, run.data.metrics)
        return runs

    def _search(self, experiment: str) -> list[Any]:
        """All runs of this folder that nobody has deleted in MLflow."""
        runs: list[Any] = []
        condition, token = f"tags.`{FOLDER}` = '{self._folder_id}'", None
        while True:
            page = self._client.search_runs([experiment], condition, max_results=_PAGE, page_token=token)
            runs, token = [*runs, *page], page.token
            if not token:
                return runs

    def _open_experiment(self) -> str:
        """The id of the study's experiment: of its name, or with the folder's id where another folder has taken that.

        One whose files have other addresses is replaced: the folder was moved.
        """
        place = str(self._folder) if self._folder.is_remote else self._folder.path.resolve().as_uri()
        place = f"{f'mlflow-artifacts:/{self._folder.name}' if self._relative else place}/mlflow"
        location = None if self._uri.startswith("http") else place  # a server decides for itself
        for name in (self._folder.name, f"{self._folder.name} ({self._folder_id})"):
            experiment = self._client.get_experiment_by_name(name)
            if experiment is None:
                break
            if experiment.lifecycle_stage == "deleted":
                raise ConfigError(f"tracking_uri: experiment {name!r} is deleted in {self._uri}; restore it or remove it for good")
            if experiment.tags.get(FOLDER) == self._folder_id:
                if location in (None, experiment.artifact_location):
                    return str(experiment.experiment_id)
                for run in self._search(experiment.experiment_id):
                    self._delete(run.info.run_id)
                self._client.rename_experiment(experiment.experiment_id, f"{name} before {secrets.token_hex(6)}")
                self._client.delete_experiment(experiment.experiment_id)
                break
        return str(self._client.create_experiment(name, location, {FOLDER: self._folder_id}))

    def _description(self, reports: Iterable[str]) -> dict[str, str]:
        """The study's answer, which is its report in Markdown, as the tag that MLflow shows. Pictures are left out."""
        texts = [self._folder.read(f"report/{name}").decode() for name in reports if name.endswith(".md")]
        text, rest = re.sub(r"(?m)^!\[.*\n?", "", "\n\n".join(texts)), f"\n\n... the rest is in {self._folder}/report"
        short = text if len(text) <= _DESCRIPTION else text[: _DESCRIPTION - len(rest)].rpartition("\n")[0] + rest
        return {"mlflow.note.content": short}


def _settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The settings of a configuration by name, as text; those of the stages are joined by dashes."""
    settings: dict[str, str] = {}
    for name, value in config.items():
        if name == "stages":
            for field in value[0]:
                settings["depths" if field == "cells" else field] = "-".join(str(stage[field]) for stage in value)
        elif isinstance(value, Mapping):
            settings |= _settings(value, f"{name}.")
        elif prefix + name not in ("seed", "method.name", "method.genotype"):
            settings[prefix + name] = str(value)
    return settings


def _views(swept: Sequence[str]) -> dict[str, str]:
    """What MLflow's runs page shows, in the tags of its button Share: figures and settings as columns, and bars of means."""
    columns = [*(f"metrics.`{name}`" for name in FIGURES), *(f"params.`{name}`" for name in swept)]
    section = {"display": True, "isReordered": False, "deleted": False, "isGenerated": True}
    sections = [section | {"uuid": name, "name": name} for name in ("Model metrics", "epoch")]
    bar = {"type": "BAR", "runsCountToCompare": 20, "deleted": False, "isGenerated": True, "metricSectionId": "Model metrics"}
    views = {
        "table": {"selectedColumns": columns, "columnOrder": columns, "columnWidths": dict.fromkeys(columns, 140)},
        "charts": {
            "groupBy": "param.average.variant",
            "runsHiddenMode": "SHOW_ALL",
            "isAccordionReordered": True,
            "compareRunSections": sections,
            "compareRunCharts": [bar | {"uuid": name, "metricKey": name, "displayName": name} for name in FIGURES],
        },
    }
    return {f"mlflow.sharedViewState.{name}": json.dumps(view) for name, view in views.items()}


def _warn(error: Exception) -> None:
    print(f"warning: {error}; the tables are not affected, it is tried again", file=sys.stderr, flush=True)


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _milliseconds(moment: Any) -> int:
    return round(moment.timestamp() * 1000)


def _address(folder: Path) -> str:
    """A folder as MLflow's options take it: a path, or an address where it has characters with a meaning in addresses."""
    return str(folder) if folder.as_uri() == f"file://{folder}" else folder.as_uri()


def _folder_id(study_dir: Storage) -> str:
    """Names this results folder, on a server that also holds other folders' results of a study of the same name."""
    try:
        return study_dir.read("mlflow_id").decode().strip()
    except FileNotFoundError:
        study_dir.write("mlflow_id", secrets.token_hex(6).encode())
        return _folder_id(study_dir)
