"""The search of schedules: Optuna through Ray Tune, for a small evaluation error, short searches and little memory at once.

What Optuna knows lives in `<study>/optuna.db`, written as it happens, so a driver that is killed loses nothing: the same command
goes on. Schedules that were under way are taken up again from their checkpoints, and Ray's own experiment state is not used.

ASHA stops trainings from scratch that are behind others after the same number of epochs. There alone it is sound: they all follow
one recipe. It never compares searches by epochs: weights start anew in each stage, and accuracies of networks of another depth,
with other operations left or a stage fewer say nothing about which schedule is ahead. ASHA goes by one figure and Optuna's pruners
refuse several objectives, so it goes by the validation error, and a trial that it stops is told to Optuna with the error that it
had then: too high rather than too low.
"""

from __future__ import annotations

import functools
import os
from dataclasses import asdict
from typing import Any

os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")  # epochs of the search have no objectives to report yet

import optuna
from optuna.trial import TrialState
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from pdarts_tune.config import SearchConfig, config_id, derive_seed, from_dict, to_dict
from pdarts_tune.plan import Plan
from pdarts_tune.schedule_trial import EVALUATED, OBJECTIVES, run_schedule
from pdarts_tune.schedules import point_of, suggest_schedule
from pdarts_tune.storage import Storage
from pdarts_tune.sweep import Sweep
from pdarts_tune.trainable import TrialSpec

STUDY_NAME = "schedules"


def run_schedules(plan: Plan, folder: Storage, sweep: Sweep, commit: str) -> int:
    """Tries schedules until `plan.samples` of them are finished, the base's own first; returns how many failed for good."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder.path / 'optuna.db'}")
    known = optuna.create_study(
        storage=storage, study_name=STUDY_NAME, directions=["minimize"] * len(OBJECTIVES), load_if_exists=True
    )
    take_up_again(known)
    trials = known.get_trials(deepcopy=False)
    done = sum(trial.state == TrialState.COMPLETE for trial in trials)
    template = TrialSpec("", plan.study.name, "", str(folder), to_dict(plan.base), "", sweep.threads(0), commit)
    constants = {"trial": asdict(template), "evaluation": to_dict(plan.evaluation)}
    searcher = OptunaSearch(
        space=functools.partial(suggest_trial, constants=constants),
        metric=list(OBJECTIVES),
        mode=["min"] * len(OBJECTIVES),
        points_to_evaluate=[] if trials else [point_of(plan.base)],
        study_name=STUDY_NAME,
        storage=storage,
        seed=derive_seed(0, f"schedules after {len(trials)}") % 2**32,  # anew after a restart, or it would repeat itself
    )
    epochs = plan.evaluation.epochs
    grace = max(1, epochs // 4)
    asha = ASHAScheduler(EVALUATED, OBJECTIVES[0], "min", max_t=epochs + 1, grace_period=grace, reduction_factor=3)
    return sweep.run_adaptive(run_schedule, searcher, asha, "schedules", plan.samples, done)


def suggest_trial(trial: Any, constants: dict[str, Any]) -> dict[str, Any]:
    """Asks the trial for a schedule; what the worker needs to know of it goes into the trial's configuration."""
    config = suggest_schedule(trial, from_dict(SearchConfig, constants["trial"]["config"]))
    name = config_id(config)
    spec = constants["trial"] | {"trial_id": f"schedule-{name}", "variant": name, "config": to_dict(config)}
    return {"trial": spec, "evaluation": constants["evaluation"]}


def take_up_again(study: optuna.Study) -> None:
    """Trials that have failed, or were under way when a driver died, are asked for again, first of all."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    known = [trial.params for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]
    known += [trial.system_attrs.get("fixed_params") for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,))]
    for trial in study.get_trials(deepcopy=False, states=(TrialState.FAIL,)):
        # The last value that a schedule asks for: it was complete.
        if "max_skips" in trial.params and trial.params not in known:
            study.enqueue_trial(trial.params)
            known.append(trial.params)
