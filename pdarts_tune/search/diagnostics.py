"""What tells a healthy search from a collapsing one, as far as it follows from the probabilities and from earlier epochs alone.

What needs the network is in `agreement.py`, `curvature.py` and `inheritance.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from pdarts_tune.config.search import SearchConfig
from pdarts_tune.data.batches import Batches
from pdarts_tune.networks.build import build_network
from pdarts_tune.networks.cost import peak_bytes, reset_peak_bytes
from pdarts_tune.networks.runtime import give_back_freed_memory
from pdarts_tune.networks.supernet import Cell, Mixing, Supernet
from pdarts_tune.pdarts.genotype import CellGenotype, Genotype
from pdarts_tune.pdarts.space import EDGES, PRIMITIVES, CellOps, SearchSpace
from pdarts_tune.search.steps import frozen_statistics

# MERGED DOCSTRING
# Whether the cells of a search network want the same architecture: the depth gap, seen from inside.
#
# All cells of a type share their alphas, so the alphas' gradient is a sum over cells. Here each cell gets a copy of its own; the
# cosines between the copies' gradients say how far shallow and deep cells agree.
# MERGED DOCSTRING
# The largest eigenvalue of the loss's Hessian in the alphas, which grows before a search collapses (Zela et al., 2020, section 4).
#
# Products of the Hessian with a vector are exact, by differentiating twice; for that the network is evaluated plainly. Lanczos'
# method finds the eigenvalue from a few of them, without the Hessian itself.
# MERGED DOCSTRING
# The derived cell in the search network's weights: what discretisation costs, before any retraining.
# MERGED DOCSTRING
# The diagnostics of an epoch that need the network: taken after it trained, and leaving no trace in it.

# A normal cell counts as collapsed when more than half of its eight operations are skip-connects. DARTS' best known cell has two,
# P-DARTS allows two, the collapsed cells of Zela et al. (2020, figure 1) have four to eight.
COLLAPSED_SKIPS = 5

# Early stopping (Zela et al., 2020, section 4.3): means over this many epochs are compared.
WINDOW = 5


def measure_probabilities(probabilities: Mapping[str, Sequence[Mapping[str, float]]], genotype: Genotype) -> dict[str, Any]:
    """The columns of `epochs` that follow from an epoch's probabilities, by cell type and edge.

    Args:
        genotype: the cells derived from them, before the number of skip-connects is limited.
    """
    cells = {"normal": genotype.normal, "reduce": genotype.reduce}
    every_edge = [edge for edges in probabilities.values() for edge in edges]
    margins = [best - second for best, second in map(_best_two, every_edge) if second is not None]
    return {
        **{f"{name}_{column}": count for name, cell in cells.items() for column, count in count_operations(cell).items()},
        **{
            f"{name}_skip_mass": sum(edge.get("skip_connect", 0.0) for edge in edges) / len(EDGES)
            for name, edges in probabilities.items()
        },
        "alpha_entropy": sum(-p * math.log(p) for edge in every_edge for p in edge.values() if p > 0) / len(every_edge),
        "alpha_margin": sum(margins) / len(margins) if margins else None,
        "collapsed": has_collapsed(genotype.normal),
    }


def count_operations(cell: CellGenotype) -> dict[str, int]:
    """How often each operation is in the cell: `skip_count`, `sep_conv_3x3_count`, ..."""
    chosen = [operation for operation, _ in cell.edges]
    return {f"{'skip' if name == 'skip_connect' else name}_count": chosen.count(name) for name in PRIMITIVES[1:]}


def has_collapsed(normal: CellGenotype) -> bool:
    """Whether the normal cell is little more than skip-connects: at least COLLAPSED_SKIPS of its operations."""
    return normal.skips >= COLLAPSED_SKIPS


def has_sharpened(eigenvalues: Sequence[float], ratio: float) -> bool:
    """Whether the loss has grown so sharp in the alphas that a search had better stop (Zela et al., 2020, section 4.3).

    Compares the mean over the last WINDOW epochs with that over the WINDOW before. False while there are fewer epochs than that,
    or where the earlier mean is not positive, so that a ratio would mean nothing.
    """
    if len(eigenvalues) < 2 * WINDOW:
        return False
    before, now = sum(eigenvalues[-2 * WINDOW : -WINDOW]), sum(eigenvalues[-WINDOW:])
    return before > 0 and now / before > ratio


def _best_two(edge: Mapping[str, float]) -> tuple[float, float | None]:
    ranked = sorted(edge.values(), reverse=True)
    return ranked[0], ranked[1] if len(ranked) > 1 else None


@dataclass(frozen=True)
class Agreement:
    """Cosines between the alphas' gradients of single cells; None where a network has fewer than two cells of the type."""

    normal_pairs: float | None  # mean over all pairs of normal cells
    normal_first_last: float | None
    reduce_pairs: float | None


def measure_agreement(network: Supernet, images: Tensor, labels: Tensor) -> Agreement:
    """Agreement on one batch, with the batch norms' batch statistics; costs one forward and one backward pass."""
    normal, reduce = cell_gradients(network, images, labels)
    return Agreement(
        mean_cosine(normal),
        cosine_similarity(normal[0], normal[-1], dim=0).item() if len(normal) > 1 else None,
        mean_cosine(reduce),
    )


def cell_gradients(network: Supernet, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the loss by each cell's own copy of the alphas, (cells of the type, alphas), in the order of depth.

    Their sum over the cells of a type is the gradient of the shared alphas. Edge weights of PC-DARTS count as alphas.
    """
    parameters = network.arch_parameters()
    wanted = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(True)
    mixing = network.mixing()
    copies = [weights.detach().requires_grad_() for weights in network.spread(mixing)]
    by_weights = torch.autograd.grad(cross_entropy(network(images, copies), labels), copies)
    by_type: tuple[list[Tensor], list[Tensor]] = ([], [])
    for cell, gradient in zip(network.cells, by_weights, strict=True):
        assert isinstance(cell, Cell)
        found = torch.autograd.grad(mixing[cell.reduction], parameters, gradient, retain_graph=True, allow_unused=True)
        by_type[cell.reduction].append(torch.cat([part.flatten() for part in found if part is not None]))
    for parameter, on in zip(parameters, wanted, strict=True):
        parameter.requires_grad_(on)
    return torch.stack(by_type[0]), torch.stack(by_type[1])


def mean_cosine(gradients: Tensor) -> float | None:
    """The mean cosine over all pairs of rows; 1 if all agree. None if there is no pair."""
    count = len(gradients)
    if count < 2:
        return None
    units = torch.nn.functional.normalize(gradients.double(), dim=1)
    return ((units.sum(dim=0).square().sum() - units.square().sum()) / (count * (count - 1))).item()


ITERATIONS = 30
TOLERANCE = 0.01  # of the residual relative to the eigenvalue, whose own error is of the order of the residual's square


def alpha_eigenvalue(network: Supernet, images: Tensor, labels: Tensor, seed: int) -> float:
    """The largest eigenvalue on one batch, with the batch norms' batch statistics and the softmax of the alphas as mixing weights
    (also for methods that sample). Edge weights of PC-DARTS count as alphas.

    It holds the graph of two differentiations in memory, about three times that of a training step's plain evaluation.

    Args:
        seed: of the vector that Lanczos' method starts from.
    """
    alphas = network.arch_parameters()
    wanted, evaluation = [parameter.requires_grad for parameter in alphas], network.evaluation
    network.evaluation = "plain"
    for parameter in alphas:
        parameter.requires_grad_(True)
    try:
        product, size = hessian_product(lambda: cross_entropy(network(images), labels), alphas)
        start = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=alphas[0].dtype).to(alphas[0].device)
        return largest_eigenvalue(product, start)
    finally:
        network.evaluation = evaluation
        for parameter, on in zip(alphas, wanted, strict=True):
            parameter.requires_grad_(on)


def hessian_product(loss: Callable[[], Tensor], parameters: list[torch.nn.Parameter]) -> tuple[Callable[[Tensor], Tensor], int]:
    """A function from a flat vector to the Hessian of the loss times it, and the vector's length."""
    gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss(), parameters, create_graph=True)])

    def product(vector: Tensor) -> Tensor:
        found = torch.autograd.grad(gradient, parameters, vector, retain_graph=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in found])

    return product, len(gradient)


def largest_eigenvalue(product: Callable[[Tensor], Tensor], start: Tensor) -> float:
    """The largest (not the largest in size) eigenvalue of a symmetric matrix, from its products with vectors.

    Lanczos' method with every vector made orthogonal to all before, at most ITERATIONS of them: exact up to rounding for matrices
    no larger than that, else until the residual is below TOLERANCE.
    """
    basis = [start.double() / start.double().norm()]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    value = float("-inf")
    for _ in range(min(ITERATIONS, len(start))):
        image = product(basis[-1].to(start.dtype)).double()
        diagonal.append(image @ basis[-1])
        found = torch.stack(basis)
        for _ in range(2):  # once leaves rounding errors that grow
            image = image - found.t() @ (found @ image)
        small = torch.diag(torch.stack(diagonal))
        if beside:
            small = small + torch.diag(torch.stack(beside), 1) + torch.diag(torch.stack(beside), -1)
        values, vectors = torch.linalg.eigh(small)
        norm, value = image.norm(), values[-1].item()
        residual = (norm * vectors[-1, -1].abs()).item()  # of the eigenvector that the basis knows so far
        if residual <= TOLERANCE * abs(value):
            break
        beside.append(norm)
        basis.append(image / norm)
    return value


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
