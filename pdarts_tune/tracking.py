"""The MLflow mirror: for looking and comparing. The tables are the truth, and everything in MLflow follows from them.

Only the driver of a study writes to MLflow. A run is found again by its tags and a point logged twice is one point, so that
whatever dies in between, the next `sync` completes what is there: no run or point is doubled, none is lost.
"""

from __future__ import annotations

import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from pdarts_tune.config import ConfigError
from pdarts_tune.genotype import Genotype
from pdarts_tune.mlflow_store import MlflowStore, Run, TrackingError
from pdarts_tune.storage import Storage, is_remote
from pdarts_tune.study_folder import StudyFolder, digest
from pdarts_tune.summary import SWEPT, Point, Row, epoch_points, final_genotype, milliseconds, study_points, trial_points

__all__ = ["BackgroundMirror", "Mirror", "TrackingError", "default_tracking_uri"]

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

        from pdarts_tune.figures import draw_alphas, draw_genotype, save_figure

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
