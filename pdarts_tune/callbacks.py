"""What a sweep does when Ray Tune reports: shows progress, tells the mirror, ends a sweep that can do no better."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback

from pdarts_tune.guards import ClusterLostError
from pdarts_tune.progress import Progress
from pdarts_tune.storage import Storage
from pdarts_tune.trainable import record_failure

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
        self.progress.retried(trial_id(trial), self._reason(trial))
        self.changed(trial_id(trial))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.progress.finished(trial_id(trial))
        self.changed(trial_id(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.progress.finished(trial_id(trial), self._reason(trial))
        self.changed(trial_id(trial))

    def _reason(self, trial: Any) -> str:
        """Why the trial failed, in one line; its table has the traceback."""
        try:
            reason = record_failure(trial.config["trial"])
            self.storage.write(_PROBE, bytes(_PROBE_BYTES))
            self.storage.remove(_PROBE)
        except OSError as error:
            self.storage_error = error  # Tune wraps what its callbacks raise
            raise
        return reason.splitlines()[0]


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
