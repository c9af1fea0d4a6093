"""The diagnostics of an epoch that need the network: taken after it trained, and leaving no trace in it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from pdarts_tune.agreement import Agreement, measure_agreement
from pdarts_tune.backends import give_back_freed_memory
from pdarts_tune.config import SearchConfig
from pdarts_tune.cost import peak_bytes, reset_peak_bytes
from pdarts_tune.curvature import alpha_eigenvalue
from pdarts_tune.data import Batches
from pdarts_tune.genotype import Genotype
from pdarts_tune.inheritance import CALIBRATION_BATCHES, inherited_accuracy, only
from pdarts_tune.search_network import build_network
from pdarts_tune.supernet import Supernet
from pdarts_tune.unrolled import frozen_statistics

# A look passes batches forward through the derived cell. One costs at most this share of a step of the weights: in the last stages,
# whose cells are only a little larger than derived ones (benchmarks/diagnostics.py).
PASS_SHARE = 0.2
# What looks may take of the time of an epoch that trains weights alone, by default; they take less of one that trains alphas too.
LOOK_SHARE = 0.05


@dataclass(frozen=True)
class Examination:
    """See the columns of the same names in `schemas.py`."""

    inherited_accuracy: float | None = None
    normal_agreement: float | None = None
    normal_first_last: float | None = None
    reduce_agreement: float | None = None
    hessian_eigenvalue: float | None = None
    diagnostic_peak_bytes: int | None = None


def look_every(config: SearchConfig, weight_batches: int, validation_batches: int) -> int:
    """Epochs from one look at the network to the next: what is configured, or as few as stay within LOOK_SHARE."""
    epoch = weight_batches + validation_batches / 3  # in steps, of which a pass through the search network is a third
    return config.diagnostics_every or max(1, math.ceil(look_steps(weight_batches, validation_batches) / (LOOK_SHARE * epoch)))


def look_steps(weight_batches: int, validation_batches: int) -> float:
    """What a look takes at most, in steps of the weights; the agreement between cells takes one."""
    return PASS_SHARE * (min(CALIBRATION_BATCHES, weight_batches) + validation_batches) + 1


def examine(
    config: SearchConfig,
    network: Supernet,
    genotype: Genotype,
    batches: tuple[Batches, Batches, Batches],
    num_classes: int,
    in_channels: int,
    seed: int,
    look: bool,
    eigenvalue: bool,
) -> Examination:
    """Everything that is drawn here is drawn from `seed`, so that the search goes on as if nobody had looked.

    Args:
        genotype: the one that would be derived now.
        batches: of weights, of alphas, of validation.
        look: whether to take all but the eigenvalue.
        eigenvalue: whether to estimate the Hessian's largest eigenvalue, which costs as much as some epochs of small data.
    """
    if not (look or eigenvalue):
        return Examination()
    training, of_alphas, validation = batches
    reset_peak_bytes(training.device)
    generator = torch.Generator(training.device).manual_seed(seed)
    accuracy, agreement, value = None, Agreement(None, None, None), None
    if look:
        derived = build_network(config, only(genotype), len(network.cells), num_classes, in_channels, seed).to(training.device)
        accuracy = inherited_accuracy(network, derived, genotype, training, validation, generator)
    images, labels = next(of_alphas.epoch(generator))
    dropout = network.skip_dropout
    network.train()
    network.set_skip_dropout(0.0)
    with frozen_statistics(network):
        if look:
            agreement = measure_agreement(network, images, labels)
        if eigenvalue:
            value = alpha_eigenvalue(network, images, labels, seed)
    network.set_skip_dropout(dropout)
    peak = peak_bytes(training.device)
    if training.device.type == "cpu":
        give_back_freed_memory()  # or the next epoch's peak would hold it
    return Examination(accuracy, agreement.normal_pairs, agreement.normal_first_last, agreement.reduce_pairs, value, peak)
