"""What this project asks of MLflow, and the only room that knows it: one experiment, its runs, and their points, tags and files."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdarts_tune.config import ConfigError
from pdarts_tune.summary import Point

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
