"""A trial of the schedule search: a search, then the training of what it found, as one Ray Tune trial with three objectives.

Nothing here is chosen by test images: the error that the search of schedules sees is that on the validation images of the
training from scratch. Test images are read once, after its last epoch, and stand in the table.
"""

from __future__ import annotations

import math
from typing import Any

from ray import tune

from pdarts_tune.config import EvalConfig, from_dict
from pdarts_tune.eval_job import EvalJob, run_eval_job
from pdarts_tune.results import read_rows
from pdarts_tune.trainable import TrialSpec, prepare, run_search, training_progress
from pdarts_tune.training import EvalEpoch

OBJECTIVES = ("evaluation_error", "search_seconds", "peak_bytes")  # percent, seconds, bytes; all to be small
EVALUATED = "evaluated_epochs"  # of the training from scratch; what a trial may be stopped by


def run_schedule(settings: dict[str, Any]) -> None:
    """The function that Ray Tune runs in a worker. Continues, or only reports, what the tables and checkpoints already have."""
    spec = TrialSpec(**settings["trial"])
    folder = spec.study_dir
    run_search(spec)
    (trial,) = read_rows(folder, "trials", spec.trial_id)
    costs = {"search_seconds": trial["seconds"], "peak_bytes": trial["peak_bytes"] or 0}
    if trial["status"] != "completed":  # over its memory limit: nothing came out of it
        tune.report({"evaluation_error": 100.0, **costs})
        return
    config, job = from_dict(EvalConfig, settings["evaluation"]), evaluation_job(spec, settings["evaluation"])

    def report(epoch: EvalEpoch) -> None:
        done = training_progress(epoch, config.epochs)
        done["position"] = f"evaluation, {done['position']}"
        # Of the last epoch nobody asks whether to go on: only the test is left.
        asked = {EVALUATED: epoch.epoch + 1} if epoch.epoch + 1 < config.epochs else {}
        tune.report(done | asked | {"evaluation_error": 100 * (1 - epoch.validation_accuracy)} | costs)

    run_eval_job(job, prepare(spec), report)
    (evaluation,) = read_rows(folder, "evaluations", job.trial_id)
    error = 100 * (1 - evaluation["last_validation_accuracy"])
    assert math.isfinite(error)
    tune.report({"evaluation_error": error, **costs})


def evaluation_job(spec: TrialSpec, evaluation: dict[str, Any]) -> EvalJob:
    """The training of what a finished search found. Two trials that find the same genotype each train it."""
    (trial,) = read_rows(spec.study_dir, "trials", spec.trial_id)
    genotypes = [row for row in read_rows(spec.study_dir, "genotypes", spec.trial_id) if row["max_skips"] == trial["max_skips"]]
    found = max(genotypes, key=lambda row: row["stage"])
    config = from_dict(EvalConfig, evaluation)
    trial_id = f"{spec.trial_id}-{config.recipe_id}-seed{config.seed}"
    return EvalJob(trial_id, spec.study_dir, found["genotype"], evaluation)
