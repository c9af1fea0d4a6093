"""The derived cell in the search network's weights: what discretisation costs, before any retraining."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pdarts_tune.data import Batches
from pdarts_tune.genotype import CellGenotype, Genotype
from pdarts_tune.space import EDGES, CellOps, SearchSpace
from pdarts_tune.supernet import Mixing, Supernet

# Batches that estimate the batch norms' statistics of a derived cell before its accuracy is taken.
CALIBRATION_BATCHES = 20


def only(genotype: Genotype) -> SearchSpace:
    """The search space that offers the genotype's operations on its edges, and `none` on the others."""
    return SearchSpace(_only(genotype.normal), _only(genotype.reduce))


def _only(cell: CellGenotype) -> CellOps:
    chosen = {EDGES.index((source, index // 2)): (operation,) for index, (operation, source) in enumerate(cell.edges)}
    return tuple(chosen.get(edge, ("none",)) for edge in range(len(EDGES)))


def inherited_accuracy(
    network: Supernet,
    derived: Supernet,
    genotype: Genotype,
    training: Batches,
    validation: Batches,
    generator: torch.Generator,
) -> float:
    """Validation accuracy (fraction) of a genotype in the weights of the search network, which is left as it was.

    Batch norms of the search network know the mixed cell, so their statistics are estimated anew, from CALIBRATION_BATCHES
    training batches at most.

    Args:
        derived: a network over `only(genotype)`, otherwise made like the search network; it takes over the weights. It has an
            eighth of the operations or so, which is what makes this cheap.
        generator: of the order and augmentation of the training batches.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    weights, names = network.state_dict(), derived.state_dict()
    kept = {name: weights[name] for name in names if not name.startswith(("alphas_", "betas_"))}
    derived.load_state_dict(kept, strict=False)
    norms = [module for module in derived.modules() if isinstance(module, nn.BatchNorm2d)]
    mixing = derived.one_hot_mixing(genotype)
    derived.train()
    with torch.no_grad():
        for batch, (images, _) in zip(range(CALIBRATION_BATCHES), training.epoch(generator), strict=False):
            for norm in norms:
                norm.momentum = 1 / (batch + 1)  # the plain mean over batches
            derived(images, mixing)
    loss, accuracy = evaluate(derived, validation, lambda: mixing)
    if not math.isfinite(loss):
        raise FloatingPointError(f"the validation loss of the derived cell in the search network's weights is {loss}")
    return accuracy


def evaluate(network: Supernet, batches: Batches, mixing: Callable[[], Mixing] | None = None) -> tuple[float, float]:
    """Mean loss and accuracy (fraction) of the network in evaluation mode, on images that are never augmented.

    Args:
        mixing: makes the mixing weights of each batch; without it they are the softmax of the alphas.
    """
    network.eval()
    loss_sum = torch.zeros((), device=batches.device)
    correct = torch.zeros((), device=batches.device)
    count = 0
    with torch.no_grad():
        for images, labels in batches.in_order():
            logits: Tensor = network(images, mixing() if mixing else None)
            loss_sum += cross_entropy(logits, labels, reduction="sum")
            correct += (logits.argmax(dim=1) == labels).sum()
            count += len(labels)
    return loss_sum.item() / count, correct.item() / count
