"""Puts the trials that a study lacks into a Ray session. Ray and torch are imported only if there are some."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdarts_tune.config import to_dict
from pdarts_tune.methods import paired_variant
from pdarts_tune.plan import EvalTrial, Plan, SearchTrial
from pdarts_tune.storage import Storage

if TYPE_CHECKING:
    from pdarts_tune.guards import Signals
    from pdarts_tune.tracking import Mirror

_NAMES = 8  # of missing trials that are printed


@dataclass(frozen=True)
class Demands:
    """How trials are run, which no result depends on."""

    address: str | None
    gpus_per_trial: float | None
    max_failures: int
    keep_weights: bool
    sources: Sequence[Storage] = ()  # studies whose finished trials are taken over


def run_missing(plan: Plan, demands: Demands, folder: Storage, mirror: Mirror, signals: Signals) -> int:
    """Runs the trials that the tables do not hold, and returns how many failed. Starts Ray only if there are some."""
    from pdarts_tune.ledger import found_genotypes, missing_trials
    from pdarts_tune.reuse import take_over

    if plan.study.adaptive:
        return _run_adaptive(plan, demands, folder, mirror, signals)

    def lacking(trials: Sequence[SearchTrial | EvalTrial], table: str) -> list[SearchTrial | EvalTrial]:
        missing = missing_trials(trials, table, folder)
        taken = take_over(missing, demands.sources, folder) if demands.sources else 0
        if taken:
            what = "searches" if table == "trials" else "evaluations"
            print(f"{taken} {what} taken over from {', '.join(map(str, demands.sources))}", flush=True)
            return missing_trials(trials, table, folder)
        return missing

    searches = plan.searches()
    missing = lacking(searches, "trials")
    evaluations = [] if missing else plan.evaluations(found_genotypes(plan, folder))
    if not missing and not lacking(evaluations, "evaluations"):
        print(f"{len(searches)} searches and {len(evaluations)} evaluations, all of them done", flush=True)
        return 0

    from pdarts_tune.forecast import predict_needs
    from pdarts_tune.mobile_gate import refuse_large
    from pdarts_tune.sweep import open_sweep
    from pdarts_tune.tracking import BackgroundMirror

    failed = 0
    with (
        BackgroundMirror(mirror) as background,
        open_sweep(folder, demands.address, demands.gpus_per_trial, demands.max_failures, background.touch) as sweep,
    ):
        signals.install()  # again: Ray's start installs a handler that aborts

        def run(trials: Sequence[SearchTrial | EvalTrial], what: str, table: str) -> int:
            missing = lacking(trials, table)
            refused = len(missing)
            searches = [trial for trial in missing if isinstance(trial, SearchTrial)]
            missing = [*searches, *refuse_large([trial for trial in missing if isinstance(trial, EvalTrial)], folder)]
            refused -= len(missing)
            if 0 < len(missing) < len(trials):
                names = ", ".join(trial.trial_id for trial in missing[:_NAMES])
                more = f" and {len(missing) - _NAMES} more" if len(missing) > _NAMES else ""
                print(f"missing {what}: {names}{more}", flush=True)
            needs = predict_needs(missing) if sweep.grants.gpu_bytes else {}
            needed = [needs.get(trial.trial_id, 0) for trial in missing]
            specs = [
                _spec(trial, plan, folder, sweep.threads(need), need, demands.keep_weights)
                for trial, need in zip(missing, needed, strict=True)
            ]
            return refused + sweep.run(specs, what, total=len(trials) - refused)

        controls = [trial for trial in searches if paired_variant(trial.config.method)]  # whose pairs must be finished first
        failed += run([trial for trial in searches if trial not in controls], "searches", "trials")
        if controls:
            failed += run(controls, "controls", "trials")
        failed += run(plan.evaluations(found_genotypes(plan, folder)), "evaluations", "evaluations")
    return failed


def _run_adaptive(plan: Plan, demands: Demands, folder: Storage, mirror: Mirror, signals: Signals) -> int:
    """Runs schedules until as many are finished as the plan has, and returns how many failed."""
    from pdarts_tune.schedule_sweep import run_schedules
    from pdarts_tune.sweep import open_sweep
    from pdarts_tune.tracking import BackgroundMirror

    with (
        BackgroundMirror(mirror) as background,
        open_sweep(folder, demands.address, demands.gpus_per_trial, demands.max_failures, background.touch) as sweep,
    ):
        signals.install()
        return run_schedules(plan, folder, sweep, _commit())


def _spec(
    trial: SearchTrial | EvalTrial, plan: Plan, folder: Storage, threads: int, needed_bytes: int, keep_weights: bool
) -> dict[str, Any]:
    from pdarts_tune.trainable import TrialSpec

    if isinstance(trial, SearchTrial):
        variant, genotype = trial.variant, ""
    else:
        variant, genotype = "", trial.genotype
    return asdict(
        TrialSpec(
            trial_id=trial.trial_id,
            study=plan.study.name,
            variant=variant,
            study_dir=str(folder),
            config=to_dict(trial.config),
            genotype=genotype,
            threads=threads,
            commit=_commit(),
            needed_bytes=needed_bytes,
            keep_weights=keep_weights,
        )
    )


@cache
def _commit() -> str:
    """The commit of the code that runs, with + if it was changed; `unknown` where no repository holds this file.

    A package that is installed below somebody else's repository, as in a `.venv`, is not of that repository's commit.
    """
    here = Path(__file__)
    for command in (
        ["ls-files", "--error-unmatch", here.name],
        ["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"],
    ):
        try:
            done = subprocess.run(["git", "-C", str(here.parent), *command], capture_output=True, text=True, check=False)
        except OSError:
            return "unknown"
        if done.returncode:
            return "unknown"
    return done.stdout.strip()
