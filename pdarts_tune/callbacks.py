"""What a sweep does when Ray Tune reports: shows progress, tells the mirror, ends a sweep that can do no better."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayActorError, RayTaskError
from ray.tune.progress_reporter import TrialProgressCallback

from pdarts_tune.config import SearchConfig, from_dict
from pdarts_tune.eval_job import error_text, write_eval_row
from pdarts_tune.guards import ClusterLostError
from pdarts_tune.progress import Progress
from pdarts_tune.results import read_rows, write_rows
from pdarts_tune.schedule_trial import evaluation_job
from pdarts_tune.storage import Storage
from pdarts_tune.trainable import TrialRow, TrialSpec, spent_so_far

DIED = "the process of the trial died (killed, or its node was lost)"

_PROBE, _PROBE_BYTES = ".probe", 2**20  # written where a trial failed: enough to tell a full disk from one with a little room


class Display(TrialProgressCallback):  # else Tune adds one of its own, which prints at times, whatever its verbosity
    """Shows what Tune reports, and calls `changed` with the id of each trial that may have new rows.

    `storage_error` is set before a callback raises because the study's folder cannot be written.
    """

    def __init__(self, progress: Progress, changed: Callable[[str], None], storage: Storage) -> None:
        self.progress = progress
        self.changed = changed
        self.storage = storage
        self.storage_error: OSError | None = None
        self.watch = NodeWatch()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks to restore an experiment; ours is never restored, and a display cannot be pickled

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.progress.started(trial_id(trial))

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Any],
        trial: Any,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        if "position" in result:
            fields = ("position", "accuracy", "done_epochs", "total_epochs", "epoch_seconds")
            self.progress.epoch(trial_id(trial), **{field: result[field] for field in fields}, warning=result.get("warning", ""))
        self.changed(trial_id(trial))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.progress.retried(trial_id(trial), self._reason(trial) or DIED)
        self.changed(trial_id(trial))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.progress.finished(trial_id(trial))
        self.changed(trial_id(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.progress.finished(trial_id(trial), self._reason(trial))
        self.changed(trial_id(trial))

    def _reason(self, trial: Any) -> str | None:
        """Why the trial failed, in one line; its table has the traceback. None: the tables have it as completed."""
        try:
            reason = record_failure(trial.config, _python_error(trial))
            self.storage.write(_PROBE, bytes(_PROBE_BYTES))
            self.storage.remove(_PROBE)
        except OSError as error:
            self.storage_error = error  # Tune wraps what its callbacks raise
            raise
        return reason.splitlines()[0] if reason else None


def record_failure(settings: dict[str, Any], error: BaseException | None) -> str | None:
    """Called by the driver when an attempt at a trial has failed: makes sure that its table says so, and returns the reason.

    A trial that failed in Python has written its own row; one whose process was killed could not, and may not even have begun
    one. A completed row is never touched. Of a trial that searches and then trains what it found, one failure is either's.

    Args:
        settings: the trial's, as Tune has them.
        error: what its Python code raised; None: its process died.

    Returns:
        None if all that the trial is for is completed: its process died after its last row.
    """
    spec = TrialSpec(**settings["trial"])
    job = spec.eval_job if spec.genotype else None
    if job is None:
        rows = read_rows(spec.study_dir, "trials", spec.trial_id)
        if rows and rows[0]["status"] == "completed":
            if "evaluation" not in settings:
                return None
            job = evaluation_job(spec, settings["evaluation"])
    table, column = ("trials", "error") if job is None else ("evaluations", "failure")
    name = spec.trial_id if job is None else job.trial_id
    rows = read_rows(spec.study_dir, table, name)
    status = rows[0]["status"] if rows else None
    if status == "completed":
        return None
    if status in ("failed", "out_of_memory") and error is not None:
        return str(rows[0][column])
    reason, now = DIED if error is None else error_text(error), datetime.now(UTC)
    if status == "running":
        write_rows(spec.study_dir, table, name, [rows[0] | {"status": "failed", column: reason, "finished": now}])
    elif job is None:  # this attempt did not come as far as its row
        TrialRow(spec, from_dict(SearchConfig, spec.config)).write("failed", *spent_so_far(spec), error=reason)
    else:
        started, attempts = (rows[0]["started"], rows[0]["attempts"] + 1) if rows else (now, 1)
        write_eval_row(job, {"status": "failed", column: reason}, "unknown", None, started, attempts)
    return reason


def _python_error(trial: Any) -> BaseException | None:
    """What ended one of Tune's trials, if its own code raised it; None: its process died."""
    if trial.pickled_error_file is None:
        return None
    try:  # its get_pickled_error() looks in the experiment's folder, which has the file only later
        error = pickle.loads(Path(trial.pickled_error_file).read_bytes())  # noqa: S301  (Tune has just written it)
    except Exception as unreadable:  # an error whose class takes other arguments; Ray's own can be read
        return unreadable
    if isinstance(error, RayActorError):
        return None
    return error.cause if isinstance(error, RayTaskError) else error


class NodeWatch(tune.Callback):
    """Ends the sweep with ClusterLostError when the last node is lost; looks every so many seconds."""

    def __init__(self, every: float = 15.0) -> None:
        self.every = every  # seconds
        self.looked = time.monotonic()
        self.error: ClusterLostError | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if time.monotonic() - self.looked < self.every:
            return
        self.looked = time.monotonic()
        if not any(node["Alive"] for node in ray.nodes()):
            self.error = ClusterLostError(
                "no node of the Ray cluster is alive any more; the same command continues the study on a new one"
            )
            raise self.error


def trial_id(trial: Any) -> str:
    """Our id of one of Tune's trials."""
    return str(trial.config["trial"]["trial_id"])
