"""The MLflow mirror: a copy of a study's tables, for looking and comparing.

A study is an experiment. Each of its trials is a run, which follows from the trial's rows alone. New rows add points to a run. A
run whose earlier rows have changed is deleted and made anew. Its tag STATE, which is written last, says what it has. So an update
touches only what has changed, and whatever dies during an update, the next one completes it. The mirror holds no files, so that a
results folder can be moved; the report draws the cells.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import shlex
import sqlite3
import statistics
import sys
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from pdarts_tune.config.search import named_settings
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.results.schemas import SCHEMAS
from pdarts_tune.results.storage import Storage, hold_lock, is_remote
from pdarts_tune.results.tables import chosen_epoch, final_genotype, read_rows, read_study

Row = Mapping[str, Any]
Point = tuple[str, float, int, int]  # a value of a metric: its name, the value, milliseconds since 1970, step

SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https")
FOLDER, TRIAL, STATE = "pdarts_tune.folder", "pdarts_tune.trial_id", "pdarts_tune.state"  # tags
PARAMETERS = ("variant", "seed", "method")  # of every run, beside all settings; those that differ are columns of the page
_FROM_TRIAL, _FROM_GENOTYPE = ("seconds", "peak_bytes"), ("inherited_accuracy", "skips", "depth", "params")
FIGURES = ("error_percent", "search_accuracy", "inherited_accuracy", "depth_gap", "skips", "depth", "params", *_FROM_TRIAL)
_TABLES = ("trials", "epochs", "genotypes")  # a trial has a file in each
_CURVES = [  # without counts of operations other than the skip-connect, which would be 14 more
    name
    for name in SCHEMAS["epochs"].names
    if name not in ("trial_id", "epoch", "phase", "finished") and ("skip" in name or not name.endswith("_count"))
]
_EVALUATION_COLUMNS = ("trial_id", "genotype_id", "data", "recipe_id", "accuracy", "started", "finished")
_PAGE = 1000  # runs; MLflow's limit
_BATCH = 800  # metrics, beside parameters and tags; MLflow's limit for all of them is 1,000
_DESCRIPTION = 20_000  # MLflow's limit in characters


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


def trial_points(trial: Row, genotype: Row | None, epochs: Sequence[Row], evaluations: Sequence[Row]) -> list[Point]:
    """All points of a trial's metrics in the units of the tables, in the order in which they come.

    Epochs are `epoch/<column>`. A trial that has ended has figures: `search_accuracy` is the validation accuracy of the network
    that the cell was taken from. `error_percent` is the mean test error over the evaluations so far, and `depth_gap` is search
    minus test accuracy (fraction), on the trial's own data set and by the recipe that was used first on it. Other data sets and
    recipes have an `error_percent/<data>/<recipe_id>`.

    Args:
        genotype: that the trial ends with.
        evaluations: the completed ones of this genotype, in the order in which they ended.
    """
    points = [
        (f"epoch/{name}", float(row[name]), _milliseconds(row["finished"]), step)
        for step, row in enumerate(sorted(epochs, key=lambda row: (row["stage"], row["epoch"])))
        for name in _CURVES
        if row[name] is not None
    ]
    if trial["status"] == "running":
        return points
    figures, chosen = {name: trial[name] for name in _FROM_TRIAL}, None
    if genotype is not None:
        figures |= {name: genotype[name] for name in _FROM_GENOTYPE}
        if (chosen := chosen_epoch(trial, epochs)) is not None:
            figures["search_accuracy"] = chosen["validation_accuracy"]
    ended = _milliseconds(trial["finished"])
    points += [(name, float(value), ended, 0) for name, value in figures.items() if value is not None]
    first = min(((row["started"], row["recipe_id"]) for row in evaluations if row["data"] == trial["data"]), default=("", ""))
    accuracies = defaultdict(list)
    for step, row in enumerate(evaluations, start=1):
        recipe, moment = (row["data"], row["recipe_id"]), _milliseconds(row["finished"])
        accuracies[recipe].append(row["accuracy"])
        accuracy, is_own = statistics.fmean(accuracies[recipe]), recipe == (trial["data"], first[1])
        name = "error_percent" if is_own else "/".join(("error_percent", *recipe))
        points.append((name, round(100 * (1 - accuracy), 10), moment, step))
        if is_own and chosen is not None:
            points.append(("depth_gap", chosen["validation_accuracy"] - accuracy, moment, step))
    return points


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
        self._runs: dict[str, tuple[str, dict[str, Any]]] = {}  # by trial id: run id and state; empty: read them from MLflow
        file = make_url(tracking_uri).database if tracking_uri.startswith("sqlite") else None
        try:  # MLflow cannot make a database from several processes at once
            with hold_lock(Path(f"{file}.lock")) if file else nullcontext():
                self._client = open_client(tracking_uri, file)
                self._folder_id = _folder_id(self._folder)
                self._experiment = self._open_experiment()
        except ConfigError:
            raise
        except Exception as error:
            line, advice = self._explain(error), ""
            is_default = not self._folder.is_remote and tracking_uri == default_tracking_uri(self._folder.path.parent)
            if is_default and re.search("not a database|malformed|schema|revision|no such", line):
                advice = f"; {file} is a mirror of the tables: delete it, and the same command makes it anew"
            elif file and "is locked" in line:
                advice = "; on a file system without locks, as some NFS, give --tracking-uri sqlite:////FOLDER/mlflow.db elsewhere"
            raise ConfigError(f"tracking_uri: {line}{advice}") from None

    def links(self) -> list[str]:
        """What shows the study to a person: the command of MLflow's page, and the addresses of its table and charts."""
        lines, server = [], self._uri.rstrip("/")
        if not self._uri.startswith("http"):
            lines, server = [shlex.join(["mlflow", "ui", "--backend-store-uri", self._uri])], "http://127.0.0.1:5000"
        page = f"{server}/#/experiments/{self._experiment}/runs?workflowType=machine_learning"
        modes = {"table": "TABLE", "charts": "CHART"}
        return [*lines, *(f"{page}&viewStateShareKey={key}&compareRunsMode={mode}" for key, mode in modes.items())]

    def update(self, *, live: bool = False, ended: threading.Event | None = None) -> None:
        """Brings the experiment up to date with the tables. Reads no table if no file has changed.

        Args:
            live: the study goes on, and trials without an end are running. Otherwise they were stopped.
            ended: once it is set, the rest is left to the next update.

        Raises:
            ConfigError: a table cannot be read; the message names it.
            Exception: MLflow cannot be reached or refuses. Its errors have no common type.
        """
        stamps = self._stamps()
        whole = _digest(live, stamps)
        if self._client.get_experiment(self._experiment).tags.get(STATE) == whole:
            return
        evaluations = defaultdict(list)
        completed = read_study(self._folder, "evaluations", _EVALUATION_COLUMNS, {"status": ["completed"]}).to_pylist()
        for row in sorted(completed, key=lambda row: (row["finished"], row["trial_id"])):
            evaluations[row["genotype_id"]].append(row)
        trials = read_study(self._folder, "trials", ["trial_id", "config"]).to_pylist()
        settings = {row["trial_id"]: _params(json.loads(row["config"])) for row in trials}
        names = dict.fromkeys(name for setting in settings.values() for name in setting)
        swept = [name for name in names if len({setting.get(name) for setting in settings.values()}) > 1]

        def files(trial_id: str, genotype_id: str) -> str:
            names = [(table, trial_id) for table in _TABLES]
            names += [("evaluations", row["trial_id"]) for row in evaluations.get(genotype_id, ())]
            return _digest([stamps[table].get(f"{name}.parquet") for table, name in names])

        runs, self._runs = self._runs or self._find_runs(), {}  # forgotten where a call fails: it may have worked
        for trial_id in settings:
            if ended is not None and ended.is_set():
                return
            run_id, state = runs.get(trial_id, ("", {}))
            if state.get("files") == files(trial_id, state.get("genotype_id", "")) and state["live"] in (None, live):
                continue
            (trial,), epochs, genotypes = (read_rows(self._folder, table, trial_id) for table in _TABLES)
            genotype = final_genotype(trial, genotypes)
            genotype_id = genotype["genotype_id"] if genotype else ""
            points = trial_points(trial, genotype, epochs, evaluations.get(genotype_id, ()))
            count = state.get("count", 0)
            goes_on = state.get("digest") == _digest(trial["config"], trial["started"], points[:count])
            run_id, count = self._open_run(run_id, trial, live, goes_on), count if goes_on else 0
            state = {"files": files(trial_id, genotype_id), "genotype_id": genotype_id, "count": len(points)}
            state |= {"live": live if trial["status"] == "running" else None}
            state |= {"digest": _digest(trial["config"], trial["started"], points)}
            params = {name: str(trial[name]) for name in PARAMETERS} | settings[trial_id]
            self._log(run_id, points[count:], params, _tags(trial, genotype) | {STATE: json.dumps(state)})
            runs[trial_id] = run_id, state
        for key, value in (_views(swept) | self._description(stamps["report"]) | {STATE: whole}).items():
            self._client.set_experiment_tag(self._experiment, key, value)
        self._runs = runs

    def _stamps(self) -> dict[str, dict[str, str]]:
        return {table: self._folder.stamps(table) for table in (*_TABLES, "evaluations", "report")}

    def _open_run(self, run_id: str, trial: Row, live: bool, goes_on: bool) -> str:
        """The id of a trial's run with its status: the run that there is, or a new one if its points do not hold any more."""
        if goes_on:
            self._client.set_tag(run_id, STATE, "{}")  # if this update does not end, the next one makes the run anew
        else:
            if run_id:
                self._delete(run_id)
            tags = {FOLDER: self._folder_id, TRIAL: trial["trial_id"]}
            run = self._client.create_run(self._experiment, _milliseconds(trial["started"]), tags, trial["trial_id"])
            run_id = str(run.info.run_id)
        if trial["status"] == "running":
            self._client.update_run(run_id, "RUNNING" if live else "KILLED")
        else:
            status = "FINISHED" if trial["status"] == "completed" else "FAILED"
            self._client.set_terminated(run_id, status, _milliseconds(trial["finished"]))
        return run_id

    def _log(self, run_id: str, points: Sequence[Point], params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Adds points to a run. Its tags come with the last of them."""
        from mlflow.entities import Metric, Param, RunTag

        metrics, named = [Metric(*point) for point in points], [Param(*param) for param in params.items()]
        self._client.log_batch(run_id, metrics[:-_BATCH])
        self._client.log_batch(run_id, metrics[-_BATCH:], named, [RunTag(*tag) for tag in tags.items()])

    @contextmanager
    def updating(self, interval: float = 10.0) -> Iterator[None]:
        """Updates from a thread while the context lasts, at most every `interval` seconds and a tenth of the time, and at its end.

        Trouble is one warning on stderr each time it starts. `finish` makes up for what is missing.
        """
        ended = threading.Event()

        def run() -> None:
            warned, pause = False, interval
            while not ended.wait(pause):
                begun = time.monotonic()
                try:
                    self.update(live=True, ended=ended)
                    warned, pause = False, max(interval, 10 * (time.monotonic() - begun))
                except Exception as error:
                    if not warned:
                        self._warn(error)
                    warned, pause = True, interval

        thread = threading.Thread(target=run, name="mlflow mirror", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            with suppress(Exception):
                self.update()

    def finish(self, patience: float = 120.0) -> None:
        """The update at a study's end. Tries again for `patience` seconds while MLflow does not answer. Trouble is warnings."""
        deadline, warned = time.monotonic() + patience, False
        while True:
            try:
                return self.update()
            except Exception as error:
                code = getattr(error, "get_http_status_code", lambda: 503)()
                passes = code >= 500 or code in (408, 429)  # MLflow is away, or busy
                if self._uri.startswith("sqlite"):
                    passes = "is locked" in str(error)
                if isinstance(error, ConfigError) or not passes or time.monotonic() > deadline:
                    return self._warn(error, "the tables are complete, the same command brings MLflow up to date")
                if not warned:
                    self._warn(error)
            warned = True
            time.sleep(min(2.0, patience / 10))

    def _warn(self, error: Exception, advice: str = "the tables are not affected, it is tried again") -> None:
        print(f"warning: {self._explain(error)}; {advice}", file=sys.stderr, flush=True)

    def _explain(self, error: Exception) -> str:
        """One line, without the password of the store."""
        line = re.sub(r" \[SQL: .*| \(Background on .*", "", " ".join(str(error).split()))[:300]
        if isinstance(error, ConfigError):
            return line
        reason = "no answer" if "Max retries exceeded" in line else f"{type(error).__name__}: {line}"
        return f"MLflow at {re.sub('//[^/@]*@', '//***@', self._uri)}: {reason}"

    def _delete(self, run_id: str) -> None:
        """For good in a database. A server allows to delete a run so that it can be restored, and no more."""
        self._client.delete_run(run_id)
        store = self._client._tracking_client.store
        if hasattr(store, "_hard_delete_run"):  # what `mlflow gc` calls
            store._hard_delete_run(run_id)

    def _find_runs(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """The run of each trial, of those that nobody has deleted in MLflow. Deletes what else is of this folder."""
        runs: dict[str, tuple[str, dict[str, Any]]] = {}
        condition, token = f"tags.`{FOLDER}` = '{self._folder_id}'", None
        while True:
            page = self._client.search_runs([self._experiment], condition, max_results=_PAGE, page_token=token)
            for run in page:
                trial_id = run.data.tags.get(TRIAL, "")
                if trial_id in runs:
                    self._delete(run.info.run_id)
                else:
                    runs[trial_id] = run.info.run_id, json.loads(run.data.tags.get(STATE, "{}"))
            if not (token := page.token):
                return runs

    def _open_experiment(self) -> str:
        """The id of the study's experiment: of its name, or with the folder's id where another folder has taken that."""
        for name in (self._folder.name, f"{self._folder.name} ({self._folder_id})"):
            experiment = self._client.get_experiment_by_name(name)
            if experiment is None:
                # MLflow would name a folder of this machine for files. A server decides for itself.
                location = None if self._uri.startswith("http") else f"mlflow-artifacts:/{self._folder.name}"
                return str(self._client.create_experiment(name, location, {FOLDER: self._folder_id}))
            if experiment.lifecycle_stage == "deleted":
                raise ConfigError(f"tracking_uri: experiment {name!r} is deleted in {self._uri}; restore it or remove it for good")
            if experiment.tags.get(FOLDER) == self._folder_id:
                break
        return str(experiment.experiment_id)

    def _description(self, reports: Iterable[str]) -> dict[str, str]:
        """The study's answer, which is its report in Markdown, as the tag that MLflow shows. Pictures are left out."""
        texts = [self._folder.read(f"report/{name}").decode() for name in reports if name.endswith(".md")]
        text, rest = re.sub(r"(?m)^!\[.*\n?", "", "\n\n".join(texts)), f"\n\n... the rest is in {self._folder}/report"
        short = text if len(text) <= _DESCRIPTION else text[: _DESCRIPTION - len(rest)].rpartition("\n")[0] + rest
        return {"mlflow.note.content": short}


def _tags(trial: Row, genotype: Row | None) -> dict[str, str]:
    tags = {"pdarts_tune.status": trial["status"]}
    if genotype is not None:
        tags |= {"pdarts_tune.genotype_id": genotype["genotype_id"], "mlflow.note.content": f"`{genotype['genotype']}`"}
    if trial["error"]:
        tags["pdarts_tune.error"] = trial["error"][:1000]
    if trial["commit"] not in (None, "unknown"):
        tags["mlflow.source.git.commit"] = trial["commit"]
    return tags


def _params(config: Mapping[str, Any]) -> dict[str, str]:
    """The settings of a search by name, as text; those of the stages are joined by dashes."""
    settings = named_settings(config)
    for name in ("seed", "method.name", "method.genotype", "penalty.latencies"):  # columns of the trial, and long texts
        settings.pop(name, None)
    joined = {name: "-".join(map(str, value)) if name.startswith("stages.") else str(value) for name, value in settings.items()}
    return {"depths" if name == "stages.cells" else name.removeprefix("stages."): text for name, text in joined.items()}


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


def open_client(uri: str, file: str | None = None) -> Any:
    """An MlflowClient that is silent. `file`: of a sqlite database."""
    # MLflow's own 7 retries with doubling pauses would take minutes; a training cluster need not reach the internet.
    quick = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
    for name, value in (quick | {"MLFLOW_DISABLE_TELEMETRY": "1", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "1"}).items():
        os.environ.setdefault(name, value)
    if file:  # MLflow would try for two minutes to open what is no database, or cannot be written
        with closing(sqlite3.connect(file, timeout=20.0)) as connection:
            connection.execute("begin immediate")
    warnings.filterwarnings("ignore", module=r"mlflow\.")  # it calls what SQLAlchemy has deprecated
    from mlflow import MlflowClient

    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    return MlflowClient(uri)


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _milliseconds(moment: Any) -> int:
    return round(moment.timestamp() * 1000)


def _folder_id(study_dir: Storage) -> str:
    """Names this results folder, on a server that also holds other folders' results of a study of the same name."""
    try:
        return study_dir.read("mlflow_id").decode().strip()
    except FileNotFoundError:
        study_dir.write("mlflow_id", secrets.token_hex(6).encode())
        return _folder_id(study_dir)
