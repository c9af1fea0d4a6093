"""Rows of the tables as a search and an evaluation leave them, drawn at random and consistent; used by synthetic.py."""

import json
import math
from dataclasses import asdict
from datetime import timedelta

from pdarts_tune.config.serialize import config_id, to_dict
from pdarts_tune.pdarts.approximation import prune
from pdarts_tune.pdarts.genotype import Genotype, derive_cell
from pdarts_tune.pdarts.progressive_depth import cosine_rate
from pdarts_tune.pdarts.regularization import limit_skips, skip_dropout
from pdarts_tune.pdarts.space import EDGES, PRIMITIVES, SearchSpace
from pdarts_tune.search.diagnostics import measure_probabilities

CELLS = ("normal", "reduce")


def search_rows(trial_id, config, rng, started, epochs_done):
    """Rows of `epochs`, `alphas` and `genotypes` after `epochs_done` epochs (at most all), and the time by then."""
    epochs, alphas, genotypes = [], [], []
    clock, space = started, config.start
    for number, stage in enumerate(config.stages, start=1):
        if number > 1:
            space = SearchSpace(prune(probs["normal"], stage.operations), prune(probs["reduce"], stage.operations))  # noqa: F821
        now, goal = ({cell: _draw_alphas(rng, getattr(space, cell), scale) for cell in CELLS} for scale in (1e-3, 1.0))
        for epoch in range(stage.epochs):
            if len(epochs) == epochs_done:
                return epochs, alphas, genotypes, clock
            if epoch >= stage.warmup_epochs:
                for edge, aim in zip(now["normal"] + now["reduce"], goal["normal"] + goal["reduce"], strict=True):
                    for name in edge:
                        edge[name] += 0.15 * (aim[name] - edge[name])
            probs = {cell: tuple(map(_softmax, now[cell])) for cell in CELLS}
            seconds = (2.0 + stage.cells * stage.operations) * float(rng.uniform(0.98, 1.02))
            clock += timedelta(seconds=seconds)
            accuracy = 0.35 + 0.5 * (1 - math.exp(-3 * (epoch + 1) / stage.epochs)) + 0.01 * float(rng.standard_normal())
            place = {"trial_id": trial_id, "stage": number, "epoch": epoch}
            epochs.append(place | _epoch_columns(config, stage, epoch, probs, accuracy, seconds, clock))
            alphas += [place | columns for columns in _alpha_columns(now, probs)]
        for max_skips in range(8, -1, -1):
            genotype = Genotype(limit_skips(probs["normal"], max_skips), derive_cell(probs["reduce"]))
            inherited = 0.6 * accuracy if max_skips == config.max_skips else None
            genotypes.append(genotype_row(trial_id, number, max_skips, genotype, inherited))
    return epochs, alphas, genotypes, clock


def _draw_alphas(rng, cell_ops, scale):
    return [{name: scale * float(rng.standard_normal()) for name in names} for names in cell_ops]


def _softmax(alphas):
    powers = {name: math.exp(alpha) for name, alpha in alphas.items()}
    total = sum(powers.values())
    return {name: power / total for name, power in powers.items()}


def _epoch_columns(config, stage, epoch, probs, accuracy, seconds, clock):
    return {
        "phase": "both" if epoch >= stage.warmup_epochs else "weights",
        "train_loss": 2.3 * (1 - accuracy) + 0.1,
        "train_accuracy": accuracy + 0.02,
        "validation_loss": 2.3 * (1 - accuracy) + 0.2,
        "validation_accuracy": accuracy,
        "learning_rate": cosine_rate(config.learning_rate, epoch, stage.epochs),
        "skip_dropout": skip_dropout(stage, epoch),
        "seconds": seconds,
        "images_per_second": 25000 / seconds,
        "peak_bytes": 60_000_000 * stage.cells * stage.operations + 10**9,
        "diagnostic_seconds": 0.03 * seconds,
        "diagnostic_peak_bytes": 10**9,
        **measure_probabilities(probs, Genotype(derive_cell(probs["normal"]), derive_cell(probs["reduce"]))),
        "inherited_accuracy": 0.6 * accuracy,
        "normal_agreement": 0.4,
        "normal_first_last": 0.2,
        "reduce_agreement": 0.3,
        "hessian_eigenvalue": None,
        "derived_epoch": epoch if epoch + 1 == stage.epochs else None,
        "expected_params": 40_000.0 * stage.cells,
        "derived_params": 30_000 * stage.cells,
        "expected_macs": 5e6 * stage.cells,
        "derived_macs": 4_000_000 * stage.cells,
        "expected_latency_seconds": None,
        "derived_latency_seconds": None,
        "finished": clock,
    }


def _alpha_columns(alphas, probs):
    for cell in CELLS:
        for edge, (source, node) in enumerate(EDGES):
            for name in PRIMITIVES:
                if name in alphas[cell][edge]:
                    values = {"alpha": alphas[cell][edge][name], "probability": probs[cell][edge][name], "edge_weight": None}
                    yield {"cell": cell, "edge": edge, "source": source, "node": node, "operation": name} | values


def genotype_row(trial_id, stage, max_skips, genotype, inherited):
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


def trial_row(study, variant, trial_id, config, status, started, clock, peak_bytes):
    return {
        "study": study,
        "variant": variant,
        "trial_id": trial_id,
        "seed": config.seed,
        "split_seed": config.split_seed,
        "status": status,
        "error": "FloatingPointError: stage 1, epoch 2: the training loss is nan" if status == "failed" else None,
        "method": config.method.name,
        "data": config.data,
        "depths": "-".join(str(stage.cells) for stage in config.stages),
        "operations": "-".join(str(stage.operations) for stage in config.stages),
        "skip_dropout": "-".join(str(stage.skip_dropout) for stage in config.stages),
        "epochs": "-".join(str(stage.epochs) for stage in config.stages),
        "max_skips": config.max_skips,
        "channels": config.channels,
        "batch_size": config.batch_size,
        **asdict(config.execution),
        "cell_evaluation": "kernels",
        "graph": False,
        "space": config.space,
        "remedies": "+".join(remedy.name for remedy in config.remedies),
        "config": json.dumps(to_dict(config)),
        "config_id": config_id(config),
        "commit": None,
        "versions": json.dumps({"python": "3.11", "torch": "2.14.1"}),
        "device": "synthetic",
        "started": started,
        "finished": None if status == "running" else clock,
        "attempts": 1,
        "seconds": (clock - started).total_seconds(),
        "peak_bytes": peak_bytes,
        "left_out": None,
        "train_images": None,
        "mean": None,
        "std": None,
        "diagnostic_seconds": 0.0 if config.method.name == "random" else 0.03 * (clock - started).total_seconds(),
    }


def evaluation_row(evaluation_id, found, config, rng, started, mean_accuracy):
    images = config.test_images
    chance = min(max(mean_accuracy + 0.001 * float(rng.standard_normal()), 0.0), 1.0)
    correct = [bool(draw < chance) for draw in rng.uniform(size=images)]
    accuracy = sum(correct) / images
    seconds = float(rng.uniform(50000, 52000))
    return {
        "genotype_id": found["genotype_id"],
        "trial_id": evaluation_id,
        "data": config.data,
        "recipe": config.recipe,
        "recipe_id": config.recipe_id,
        "config": json.dumps(to_dict(config)),
        "seed": config.seed,
        "split_seed": config.split_seed,
        "status": "completed",
        "failure": None,
        "epochs": config.epochs,
        "accuracy": accuracy,
        "top5_accuracy": 1 - (1 - accuracy) / 4,
        "error_percent": 100 * (1 - accuracy),
        "loss": 4 * (1 - accuracy),
        "last_validation_accuracy": None,
        "best_validation_accuracy": None,
        "best_epoch": None,
        "train_accuracies": [0.99 * (1 - math.exp(-0.01 * epoch)) for epoch in range(1, config.epochs + 1)],
        "validation_accuracies": None,
        "correct": correct,
        "params": found["params"],
        "macs": found["macs"],
        "device": "synthetic",
        "started": started,
        "finished": started + timedelta(seconds=seconds),
        "attempts": 1,
        "seconds": seconds,
        "peak_bytes": 9 * 10**9,
        "left_out": 0,
        "shared": 0,
        "train_images": None,
        "mean": [0.4914, 0.4822, 0.4465],
        "std": [0.2470, 0.2435, 0.2616],
        "cell_evaluation": "kernels",
        "tf32": False,
        "graph": False,
    }
