"""Makes a results folder as a finished study leaves it, in seconds and without training: for tests of what reads the tables.

The figures are drawn at random around plausible ones, from the study's name and the trials' seeds alone; they are nobody's
results. Everything is consistent as in real tables: probabilities are the softmax of alphas, pruning, derivation and skip limits
are the project's own, evaluations belong to the genotypes that the trials' last stage and `max_skips` give.
"""

import dataclasses
import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from pdarts_tune.approximation import prune
from pdarts_tune.config import EvalConfig, SearchConfig, config_id, to_dict
from pdarts_tune.genotype import Genotype, derive_cell, random_genotype
from pdarts_tune.regularization import limit_skips, skip_dropout
from pdarts_tune.results import write_rows
from pdarts_tune.space import EDGES, PRIMITIVES, SearchSpace
from pdarts_tune.stages import DARTS, PDARTS_CIFAR10, cosine_rate, with_depths, with_skip_dropout

CELLS = ("normal", "reduce")
START = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)

VARIANTS: Mapping[str, SearchConfig] = {
    "pdarts": SearchConfig(),
    "shallow": SearchConfig(stages=with_depths(PDARTS_CIFAR10, (5, 5, 5))),
    "no_dropout": SearchConfig(stages=with_skip_dropout(PDARTS_CIFAR10, (0.0, 0.0, 0.0))),
    "darts": SearchConfig(stages=DARTS),
    "random": SearchConfig(method="random"),
}


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


def shrink(config: SearchConfig, epochs: int | None) -> SearchConfig:
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
    epochs_done: int | None = None,  # running number; None: all, or the first two if it failed
    evaluation_seeds: Sequence[int] = (0, 1),
    test_images: int = 200,
    mean_accuracy: float = 0.97,
) -> None:
    """Writes one trial's files in all tables; with `status` running or failed, only what is there by then."""
    rng = _generator(trial_id)
    if epochs_done is None:
        epochs_done = 2 if status == "failed" else 10**6
    epoch_rows, alpha_rows, genotype_rows, probs = [], [], [], {}
    clock = started
    if config.method == "random":
        if status == "completed":
            genotype = random_genotype(random.Random(config.seed), config.max_skips)
            genotype_rows.append(_genotype_row(trial_id, len(config.stages), config.max_skips, genotype, None))
        clock += timedelta(seconds=1)
    else:
        space = SearchSpace.full()
        for number, stage in enumerate(config.stages, start=1):
            if len(epoch_rows) >= epochs_done:
                break
            if number > 1:
                space = SearchSpace(prune(probs["normal"], stage.operations), prune(probs["reduce"], stage.operations))
            alphas = {
                cell: [
                    {name: float(a) for name, a in zip(names, 1e-3 * rng.standard_normal(len(names)), strict=True)} for names in ops
                ]
                for cell, ops in (("normal", space.normal), ("reduce", space.reduce))
            }
            goal = {cell: [{name: float(rng.standard_normal()) for name in edge} for edge in alphas[cell]] for cell in CELLS}
            for epoch in range(stage.epochs):
                if len(epoch_rows) >= epochs_done:
                    break
                both = epoch >= stage.warmup_epochs
                if both:
                    for cell in CELLS:
                        for edge, aim in zip(alphas[cell], goal[cell], strict=True):
                            for name in edge:
                                edge[name] += 0.15 * (aim[name] - edge[name])
                probs = {cell: tuple(_softmax(edge) for edge in alphas[cell]) for cell in CELLS}
                seconds = (2.0 + stage.cells * stage.operations) * float(rng.uniform(0.98, 1.02))
                clock += timedelta(seconds=seconds)
                progress = (epoch + 1) / stage.epochs
                curve = 0.35 + 0.5 * (1 - math.exp(-3 * progress)) + 0.01 * float(rng.standard_normal())
                epoch_rows.append(
                    {
                        "trial_id": trial_id,
                        "stage": number,
                        "epoch": epoch,
                        "phase": "both" if both else "weights",
                        "train_loss": 2.3 * (1 - curve) + 0.1,
                        "train_accuracy": curve + 0.02,
                        "validation_loss": 2.3 * (1 - curve) + 0.2,
                        "validation_accuracy": curve,
                        "learning_rate": cosine_rate(config.learning_rate, epoch, stage.epochs),
                        "skip_dropout": skip_dropout(stage, epoch),
                        "seconds": seconds,
                        "images_per_second": 25000 / seconds,
                        "peak_bytes": 60_000_000 * stage.cells * stage.operations + 10**9,
                        "normal_skip_count": derive_cell(probs["normal"]).skips,
                        "reduce_skip_count": derive_cell(probs["reduce"]).skips,
                        "normal_skip_mass": _skip_mass(probs["normal"]),
                        "reduce_skip_mass": _skip_mass(probs["reduce"]),
                        "alpha_entropy": _entropy(probs["normal"] + probs["reduce"]),
                        "hessian_eigenvalue": None,
                        "finished": clock,
                    }
                )
                alpha_rows += [
                    {
                        "trial_id": trial_id,
                        "stage": number,
                        "epoch": epoch,
                        "cell": cell,
                        "edge": edge,
                        "source": source,
                        "node": node,
                        "operation": name,
                        "alpha": alphas[cell][edge][name],
                        "probability": probs[cell][edge][name],
                    }
                    for cell in CELLS
                    for edge, (source, node) in enumerate(EDGES)
                    for name in PRIMITIVES
                    if name in alphas[cell][edge]
                ]
            else:
                for max_skips in range(8, -1, -1):
                    genotype = Genotype(limit_skips(probs["normal"], max_skips), derive_cell(probs["reduce"]))
                    inherited = 0.6 * curve if max_skips == config.max_skips else None
                    genotype_rows.append(_genotype_row(trial_id, number, max_skips, genotype, inherited))
        write_rows(folder, "epochs", trial_id, epoch_rows)
        write_rows(folder, "alphas", trial_id, alpha_rows)
    if genotype_rows:
        write_rows(folder, "genotypes", trial_id, genotype_rows)
    write_rows(folder, "trials", trial_id, [_trial_row(folder.name, variant, trial_id, config, status, started, clock, epoch_rows)])
    if status == "completed":
        found = next(row for row in genotype_rows if (row["stage"], row["max_skips"]) == (len(config.stages), config.max_skips))
        make_evaluations(folder, found, config.data, clock, evaluation_seeds, test_images, mean_accuracy)


def make_evaluations(folder, found, data, started, seeds=(0, 1), test_images=200, mean_accuracy=0.97):
    """Writes the evaluations of one row of `genotypes`, one for each seed. Trial ids are `eval-<genotype_id>-s<seed>`."""
    for seed in seeds:
        config = EvalConfig(data=data, seed=seed, test_images=test_images)
        trial_id = f"eval-{found['genotype_id']}-s{seed}"
        rng = _generator(trial_id)
        chance = min(max(mean_accuracy + 0.001 * float(rng.standard_normal()), 0.0), 1.0)
        correct = [bool(draw < chance) for draw in rng.uniform(size=test_images)]
        accuracy = sum(correct) / test_images
        seconds = float(rng.uniform(50000, 52000))
        train = [float(0.99 * (1 - math.exp(-0.01 * epoch))) for epoch in range(1, config.epochs + 1)]
        write_rows(
            folder,
            "evaluations",
            trial_id,
            [
                {
                    "genotype_id": found["genotype_id"],
                    "trial_id": trial_id,
                    "data": data,
                    "recipe": config.recipe,
                    "recipe_id": config.recipe_id,
                    "config": json.dumps(to_dict(config)),
                    "seed": seed,
                    "split_seed": 0,
                    "status": "completed",
                    "failure": None,
                    "epochs": config.epochs,
                    "accuracy": accuracy,
                    "error_percent": 100 * (1 - accuracy),
                    "loss": 4 * (1 - accuracy),
                    "last_validation_accuracy": None,
                    "best_validation_accuracy": None,
                    "best_epoch": None,
                    "train_accuracies": train,
                    "validation_accuracies": None,
                    "correct": correct,
                    "params": found["params"],
                    "macs": found["macs"],
                    "seconds": seconds,
                    "peak_bytes": 9 * 10**9,
                    "device": "synthetic",
                    "started": started,
                    "finished": started + timedelta(seconds=seconds),
                    "attempts": 1,
                }
            ],
        )


def _trial_row(study, variant, trial_id, config, status, started, clock, epoch_rows):
    return {
        "study": study,
        "variant": variant,
        "trial_id": trial_id,
        "seed": config.seed,
        "split_seed": config.split_seed,
        "status": status,
        "error": "FloatingPointError: stage 1, epoch 2: the training loss is nan" if status == "failed" else None,
        "method": config.method,
        "data": config.data,
        "depths": "-".join(str(stage.cells) for stage in config.stages),
        "operations": "-".join(str(stage.operations) for stage in config.stages),
        "skip_dropout": "-".join(str(stage.skip_dropout) for stage in config.stages),
        "epochs": "-".join(str(stage.epochs) for stage in config.stages),
        "max_skips": config.max_skips,
        "channels": config.channels,
        "batch_size": config.batch_size,
        "config": json.dumps(to_dict(config)),
        "config_id": config_id(config),
        "commit": None,
        "versions": json.dumps({"python": "3.11", "torch": "2.14.1"}),
        "device": "synthetic",
        "started": started,
        "finished": None if status == "running" else clock,
        "attempts": 1,
        "seconds": (clock - started).total_seconds(),
        "peak_bytes": max((row["peak_bytes"] for row in epoch_rows), default=None),
    }


def _genotype_row(trial_id, stage, max_skips, genotype, inherited):
    convolutions = sum("conv" in name for name, _ in genotype.normal.edges + genotype.reduce.edges)
    params = 1_000_000 + 200_000 * convolutions  # near enough: cost.py needs torch
    return {
        "trial_id": trial_id,
        "stage": stage,
        "max_skips": max_skips,
        "genotype_id": genotype.genotype_id,
        "genotype": str(genotype),
        "skips": genotype.normal.skips,
        "depth": genotype.normal.depth,
        "width": genotype.normal.width,
        "params": params,
        "macs": 160 * params,
        "inherited_accuracy": inherited,
    }


def _generator(*names):
    return np.random.default_rng(int.from_bytes(hashlib.sha256("/".join(names).encode()).digest()[:8]))


def _softmax(alphas):
    powers = {name: math.exp(alpha) for name, alpha in alphas.items()}
    total = sum(powers.values())
    return {name: power / total for name, power in powers.items()}


def _skip_mass(probs):
    return sum(edge.get("skip_connect", 0.0) for edge in probs) / len(probs)


def _entropy(probs):
    return sum(-p * math.log(p) for edge in probs for p in edge.values()) / len(probs)
