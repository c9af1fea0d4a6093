"""Makes a results folder as a finished study leaves it, in seconds and without training: for tests of what reads the tables.

The figures are drawn at random around plausible ones, from the names and seeds alone; they are nobody's results. Everything is
consistent as in real tables: probabilities are the softmax of alphas, pruning, derivation and skip limits are the project's own,
evaluations belong to the genotypes that the trials' last stage and `max_skips` give.
"""

import dataclasses
import hashlib
import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

import numpy as np

from pdarts_tune.config.evaluation import EvalConfig
from pdarts_tune.config.methods import RandomSampling
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.pdarts.genotype import random_genotype
from pdarts_tune.pdarts.progressive_depth import DARTS, PDARTS_CIFAR10, with_depths, with_skip_dropout
from pdarts_tune.results import tables
from pdarts_tune.results.tables import final_genotype
from pdarts_tune.study.plan import EvalTrial, Plan
from pdarts_tune.study.run import StudyState
from synthetic_rows import evaluation_row, genotype_row, search_rows, trial_row

START = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)

VARIANTS: Mapping[str, SearchConfig] = {
    "pdarts": SearchConfig(),
    "shallow": SearchConfig(stages=with_depths(PDARTS_CIFAR10, (5, 5, 5))),
    "no_dropout": SearchConfig(stages=with_skip_dropout(PDARTS_CIFAR10, (0.0, 0.0, 0.0))),
    "darts": SearchConfig(stages=DARTS),
    "random": SearchConfig(method=RandomSampling()),
}


def write_rows(folder: Path, table: str, trial_id: str, rows: Sequence[Mapping]) -> None:
    """Rows that need not survive the machine's end: to wait for the disk takes longer than to make them."""
    with patch("os.fsync"):
        tables.write_rows(folder, table, trial_id, rows)


def make_study(
    root: Path,
    study: str = "depth_gap",
    variants: Mapping[str, SearchConfig] = VARIANTS,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    epochs: int | None = 6,  # of each stage, for small tables; None: as the configurations say
    evaluation_seeds: Sequence[int] = (0, 1),
    test_images: int = 200,
    accuracy: Mapping[str, float] | None = None,  # mean test accuracy by variant; default: drawn near 0.97
    failed: Sequence[str] = (),  # ids of trials that end in an error after their first epochs, and are not evaluated
) -> Path:
    """Writes `root`/`study` with all five tables and returns it. Trial ids are `<study>-<variant>-s<seed>`."""
    folder = root / study
    for number, (variant, config) in enumerate(variants.items()):
        mean = (accuracy or {}).get(variant, 0.97 + 0.002 * float(_generator(study, variant).standard_normal()))
        for seed in seeds:
            trial_id = f"{study}-{variant}-s{seed}"
            make_trial(
                folder,
                trial_id,
                variant,
                shrink(dataclasses.replace(config, seed=seed), epochs),
                started=START + timedelta(hours=10 * number + seed),
                evaluation_seeds=evaluation_seeds,
                test_images=test_images,
                mean_accuracy=mean,
                status="failed" if trial_id in failed else "completed",
            )
    return folder


def make_planned(folder: Path, plan: Plan) -> None:
    """Writes every search and evaluation of a plan into a study's folder, under the plan's own trial ids."""
    for trial in plan.searches:
        make_trial(folder, trial.trial_id, trial.variant, trial.config, evaluation_seeds=())
    for trial in StudyState(plan, folder).found.values():
        make_planned_evaluation(folder, trial)


def make_planned_evaluation(folder: Path, trial: EvalTrial, status: str = "completed") -> None:
    found = {"genotype_id": trial.trial_id.split("-")[0], "params": 10, "macs": 20}
    row = evaluation_row(trial.trial_id, found, trial.config, _generator(trial.trial_id), START, 0.9)
    write_rows(folder, "evaluations", trial.trial_id, [row | {"status": status}])


def shrink(config: SearchConfig, epochs: int | None) -> SearchConfig:
    """The same search with `epochs` epochs in each stage, a third of them with frozen alphas."""
    if epochs is None:
        return config
    stages = tuple(
        dataclasses.replace(stage, epochs=epochs, warmup_epochs=min(stage.warmup_epochs, epochs // 3)) for stage in config.stages
    )
    return dataclasses.replace(config, stages=stages)


def make_trial(
    folder: Path,
    trial_id: str,
    variant: str,
    config: SearchConfig,
    *,
    started: datetime = START,
    status: str = "completed",
    epochs_done: int | None = None,  # over all stages; None: all, or two if it failed
    evaluation_seeds: Sequence[int] = (0, 1),
    test_images: int = 200,
    mean_accuracy: float = 0.97,
) -> None:
    """Writes one trial's files in all tables; with `status` running or failed, only what is there by then."""
    if epochs_done is None and status == "failed":
        epochs_done = 2
    if isinstance(config.method, RandomSampling):
        genotype = random_genotype(random.Random(config.seed), config.max_skips)
        genotypes = [genotype_row(trial_id, 0, config.max_skips, genotype, None)] if status == "completed" else []
        epochs, clock = [], started + timedelta(seconds=1)
    else:
        epochs, alphas, genotypes, clock = search_rows(trial_id, config, _generator(trial_id), started, epochs_done)
        write_rows(folder, "epochs", trial_id, epochs)
        write_rows(folder, "alphas", trial_id, alphas)
    if genotypes:
        write_rows(folder, "genotypes", trial_id, genotypes)
    peak = max((row["peak_bytes"] for row in epochs), default=None)
    write_rows(folder, "trials", trial_id, [trial_row(folder.name, variant, trial_id, config, status, started, clock, peak)])
    if status == "completed":
        final = final_genotype({"status": status, "max_skips": config.max_skips}, genotypes)
        make_evaluations(folder, final, config.data, clock, evaluation_seeds, test_images, mean_accuracy)


def make_evaluations(
    folder: Path,
    genotype: Mapping,  # a row of the table `genotypes`
    data: str,
    started: datetime,
    seeds: Sequence[int] = (0, 1),
    test_images: int = 200,
    mean_accuracy: float = 0.97,
) -> None:
    """Writes the evaluations of one genotype, one for each seed. Trial ids are `eval-<genotype_id>-s<seed>`."""
    for seed in seeds:
        evaluation_id = f"eval-{genotype['genotype_id']}-s{seed}"
        config = EvalConfig(data=data, seed=seed, test_images=test_images)
        row = evaluation_row(evaluation_id, genotype, config, _generator(evaluation_id), started, mean_accuracy)
        write_rows(folder, "evaluations", evaluation_id, [row])


def _generator(*names: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256("/".join(names).encode()).digest()[:8]))
