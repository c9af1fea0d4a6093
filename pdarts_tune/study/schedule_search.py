"""The search of schedules of P-DARTS: Optuna through Ray Tune, for a small evaluation error, short searches and little memory.

A schedule is a point of a space with conditional dimensions: 2, 3 or 4 stages, each with its depth, its dropout and the operations
dropped before it, and the limit on skip-connects. The space is a function that asks a trial for one value after the other (Optuna's
define-by-run), so a third stage's depth exists only where there is a third stage.

Optuna's state is in `<study>/optuna.db`, written after every trial, so the same command continues a study whose driver is killed.
Trials that were under way continue from their own checkpoints; Ray's experiment state is not used.

ASHA stops trainings from scratch that are behind others after the same number of epochs, because all follow one recipe. It never
compares searches by epochs: weights start anew in each stage, and networks of different depth and operations cannot be compared.
ASHA takes one figure and Optuna's pruners refuse several objectives, so ASHA takes the validation error. Optuna gets a stopped
trial with its error at that time, which is too high rather than too low.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import config_id, derive_seed, from_dict, to_dict
from pdarts_tune.pdarts.progressive_depth import Stage, Stages
from pdarts_tune.study.mlflow_mirror import sqlite_uri
from pdarts_tune.study.plan import Plan, SearchTrial
from pdarts_tune.study.progress import Progress
from pdarts_tune.study.sweep import Display, Sweep
from pdarts_tune.study.trainable import EVALUATED, OBJECTIVES, run_schedule

FEWEST_STAGES, MOST_STAGES = 2, 4
FEWEST_OPERATIONS = 2  # with one operation there is no choice
MOST_DROPPED = 5  # operations between two stages
MOST_DROPOUT = 0.8
MOST_SKIPS = 4

Point = Mapping[str, int | float]


def depth_range(stages: Stages) -> tuple[int, int]:
    """The fewest and the most cells of a stage: from the shallowest of the stages to a cell more than the deepest."""
    depths = [stage.cells for stage in stages]
    return min(depths), max(depths) + 1


def suggest_schedule(trial: optuna.Trial, base: SearchConfig) -> SearchConfig:
    """A configuration that differs from the base in its schedule alone.

    A stage has the epochs of the base's stage at its place; further stages have those of the base's last.
    """
    depths = depth_range(base.stages)
    stages: list[Stage] = []
    operations = base.stages[0].operations
    for index in range(trial.suggest_int("stages", FEWEST_STAGES, MOST_STAGES)):
        number = index + 1
        if index:
            operations = max(FEWEST_OPERATIONS, operations - trial.suggest_int(f"dropped_{number}", 0, MOST_DROPPED))
        stages.append(
            replace(
                base.stages[min(index, len(base.stages) - 1)],
                cells=trial.suggest_int(f"depth_{number}", *depths),
                operations=operations,
                skip_dropout=round(trial.suggest_float(f"skip_dropout_{number}", 0.0, MOST_DROPOUT), 2),
            )
        )
    return replace(base, stages=tuple(stages), max_skips=trial.suggest_int("max_skips", 0, MOST_SKIPS))


def point_of(config: SearchConfig) -> dict[str, int | float]:
    """The point at which `suggest_schedule` gives this configuration. The search starts with the base's."""
    point: dict[str, int | float] = {"stages": len(config.stages), "max_skips": config.max_skips}
    for index, stage in enumerate(config.stages):
        point |= {f"depth_{index + 1}": stage.cells, f"skip_dropout_{index + 1}": stage.skip_dropout}
        if index:
            point[f"dropped_{index + 1}"] = config.stages[index - 1].operations - stage.operations
    return point


os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # epochs of the search have no objectives to report yet

STUDY_NAME = "schedules"


def run_schedules(plan: Plan, sweep: Sweep) -> int:
    """Tries schedules until `plan.samples` of them are finished, the base's first. Returns how many failed for good."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(sqlite_uri(sweep.storage.path / "optuna.db"))
    directions, gpus = ["minimize"] * len(OBJECTIVES), sweep.grants.share(0, 0)
    study = optuna.create_study(storage=storage, study_name=STUDY_NAME, directions=directions, load_if_exists=True)
    retry_trials(study)
    trials = study.get_trials(deepcopy=False)
    done = sum(trial.state == TrialState.COMPLETE for trial in trials)
    constants = {"trial": sweep.describe(SearchTrial("", "", plan.base), gpus), "evaluation": to_dict(plan.evaluation)}
    searcher = OptunaSearch(
        space=functools.partial(suggest_trial, constants=constants),
        metric=list(OBJECTIVES),
        mode=["min"] * len(OBJECTIVES),
        points_to_evaluate=[] if trials else [point_of(plan.base)],
        study_name=STUDY_NAME,
        storage=storage,
        seed=derive_seed(0, f"schedules after {len(trials)}") % 2**32,  # else a restart repeats the first trials
    )
    epochs, left = plan.evaluation.epochs, max(0, plan.samples - done)
    grace = max(1, epochs // 4)
    asha = ASHAScheduler(EVALUATED, OBJECTIVES[0], "min", max_t=epochs + 1, grace_period=grace, reduction_factor=3)
    with Progress({"schedules": plan.samples}, {"schedules": plan.samples - left}, sweep.slots(gpus)) as progress:
        if left:
            options = {"search_alg": searcher, "scheduler": asha, "max_concurrent_trials": progress.slots}
            sweep.run(run_schedule, Display(progress, sweep.storage), num_samples=left, **options)
    return progress.failed


def suggest_trial(trial: Any, constants: dict[str, Any]) -> dict[str, Any]:
    """Asks the trial for a schedule. Returns the settings of the worker."""
    config = suggest_schedule(trial, from_dict(SearchConfig, constants["trial"]["config"]))
    name = config_id(config)
    spec = constants["trial"] | {"trial_id": f"schedule-{name}", "variant": name, "config": to_dict(config)}
    return {"trial": spec, "evaluation": constants["evaluation"]}


def retry_trials(study: optuna.Study) -> None:
    """Asks first for the schedules of failed trials, and of those that were under way when a driver died."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    planned = [trial.params for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]
    planned += [trial.system_attrs.get("fixed_params") for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,))]
    for trial in study.get_trials(deepcopy=False, states=(TrialState.FAIL,)):
        # max_skips is the last value that a schedule asks for, so this schedule is complete.
        if "max_skips" in trial.params and trial.params not in planned:
            study.enqueue_trial(trial.params)
            planned.append(trial.params)
