"""The diagnostics of a search: what tells a healthy search from a collapsing one.

Some follow from the probabilities alone. `diagnose` measures the others on the network after an epoch, and leaves no trace in it:

- the accuracy of the derived cell in the search network's weights, which is the cost of discretisation before any retraining;
- the agreement between cells: all cells of a type share their alphas, so the alphas' gradient is a sum over cells, and the cosines
  between its terms say whether shallow and deep cells want the same architecture;
- the largest eigenvalue of the loss's Hessian in the alphas, which grows before a search collapses (Zela et al., 2020, section 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from pdarts_tune.config.search import SearchConfig
from pdarts_tune.data.batches import Batches
from pdarts_tune.networks.build import build_network
from pdarts_tune.networks.operations import frozen_statistics
from pdarts_tune.networks.runtime import give_back_freed_memory, peak_bytes, reset_peak_bytes
from pdarts_tune.networks.supernet import Cell, Mixing, Supernet
from pdarts_tune.pdarts.genotype import CellGenotype, Genotype
from pdarts_tune.pdarts.regularization import COLLAPSED_SKIPS
from pdarts_tune.pdarts.space import EDGES, PRIMITIVES, CellOps, SearchSpace
from pdarts_tune.search.steps import require_gradients

WINDOW = 5  # epochs of a mean eigenvalue (Zela et al., 2020, section 4.3)

# A look passes batches forward through the derived cell. A pass takes at most this share of a step of the weights: in the last
# stages, whose cells are little larger than derived ones (benchmarks/diagnostics.py).
PASS_SHARE = 0.2
LOOK_SHARE = 0.05  # the default limit of looks, as a share of the time of an epoch that trains weights alone
CALIBRATION_BATCHES = 20  # for the batch norms' statistics of a derived cell

# Of Lanczos' method. The residual is relative to the eigenvalue, whose error is of the order of the residual's square.
ITERATIONS = 30
TOLERANCE = 0.01


@dataclass(frozen=True, kw_only=True)
class Diagnostics:
    """The columns of the same names in the table `epochs`; None where they were not measured."""

    inherited_accuracy: float | None = None
    normal_agreement: float | None = None
    normal_first_last: float | None = None
    reduce_agreement: float | None = None
    hessian_eigenvalue: float | None = None
    diagnostic_peak_bytes: int | None = None


def diagnose(
    config: SearchConfig,
    network: Supernet,
    genotype: Genotype,
    batches: tuple[Batches, Batches, Batches],
    num_classes: int,
    in_channels: int,
    seed: int,
    look: bool,
    eigenvalue: bool,
) -> Diagnostics:
    """Every draw comes from `seed`, so the search goes on as without diagnostics.

    Args:
        genotype: the one derived from the present alphas.
        batches: of weights, of alphas, of validation.
        look: whether to measure accuracy and agreement.
        eigenvalue: whether to estimate the Hessian's largest eigenvalue. On small data it costs as much as some epochs.
    """
    if not (look or eigenvalue):
        return Diagnostics()
    weight_batches, alpha_batches, validation_batches = batches
    device = weight_batches.device
    reset_peak_bytes(device)
    generator = torch.Generator(device).manual_seed(seed)
    figures: dict[str, Any] = {}
    if look:
        space = genotype_space(genotype)
        derived = build_network(replace(config, remedies=()), space, len(network.cells), num_classes, in_channels, seed).to(device)
        accuracy = inherited_accuracy(network, derived, genotype, weight_batches, validation_batches, generator)
        figures["inherited_accuracy"] = accuracy
    images, labels = next(alpha_batches.epoch(generator))
    dropout = network.skip_dropout
    network.train()
    network.set_skip_dropout(0.0)
    require_gradients(network.arch_parameters(), True)
    with frozen_statistics(network):
        if look:
            figures |= measure_agreement(network, images, labels)
        if eigenvalue:
            figures["hessian_eigenvalue"] = alpha_eigenvalue(network, images, labels, seed)
    network.set_skip_dropout(dropout)
    figures["diagnostic_peak_bytes"] = peak_bytes(device)
    give_back_freed_memory(device)  # or the next epoch's peak would hold it
    return Diagnostics(**figures)


def look_every(config: SearchConfig, weight_batches: int, validation_batches: int) -> int:
    """Epochs from one look at the network to the next: as configured, or as few as LOOK_SHARE allows."""
    epoch = weight_batches + validation_batches / 3  # in steps of the weights; a validation batch is a third of one
    return config.diagnostics_every or max(1, math.ceil(look_steps(weight_batches, validation_batches) / (LOOK_SHARE * epoch)))


def look_steps(weight_batches: int, validation_batches: int) -> float:
    """The most that a look costs, in steps of the weights. The agreement between cells costs one."""
    return PASS_SHARE * (min(CALIBRATION_BATCHES, weight_batches) + validation_batches) + 1


def measure_probabilities(probabilities: Mapping[str, Sequence[Mapping[str, float]]], genotype: Genotype) -> dict[str, Any]:
    """The columns of `epochs` that follow from an epoch's probabilities, by cell type and edge.

    Args:
        genotype: the cells derived from them, without a limit of skip-connects.
    """
    cells = {"normal": genotype.normal, "reduce": genotype.reduce}
    every_edge = [edge for edges in probabilities.values() for edge in edges]
    ranked = [sorted(edge.values(), reverse=True) for edge in every_edge]
    margins = [edge[0] - edge[1] for edge in ranked if len(edge) > 1]
    return {
        **{f"{name}_{column}": count for name, cell in cells.items() for column, count in count_operations(cell).items()},
        **{
            f"{name}_skip_mass": sum(edge.get("skip_connect", 0.0) for edge in edges) / len(EDGES)
            for name, edges in probabilities.items()
        },
        "alpha_entropy": sum(map(_entropy, every_edge)) / len(every_edge),
        "alpha_margin": sum(margins) / len(margins) if margins else None,
        "collapsed": has_collapsed(genotype.normal),
    }


def _entropy(edge: Mapping[str, float]) -> float:
    """Of weights that sum to another number than 1, up to rounding, it is the entropy of their shares of it."""
    total = sum(edge.values())
    total = 1.0 if math.isclose(total, 1.0, abs_tol=1e-6) else total
    return sum(-p / total * math.log(p / total) for p in edge.values() if p > 0)


def count_operations(cell: CellGenotype) -> dict[str, int]:
    """How often each operation is in the cell: `skip_count`, `sep_conv_3x3_count`, ..."""
    operations = [operation for operation, _ in cell.edges]
    return {f"{'skip' if name == 'skip_connect' else name}_count": operations.count(name) for name in PRIMITIVES[1:]}


def has_collapsed(normal: CellGenotype) -> bool:
    """Whether at least COLLAPSED_SKIPS operations of the normal cell are skip-connects."""
    return normal.skips >= COLLAPSED_SKIPS


def has_sharpened(eigenvalues: Sequence[float], ratio: float) -> bool:
    """Whether the mean eigenvalue of the last WINDOW epochs is more than `ratio` times that of the WINDOW epochs before.

    Then a search had better stop (Zela et al., 2020, section 4.3). False with fewer epochs, or if the earlier mean is not positive.
    """
    if len(eigenvalues) < 2 * WINDOW:
        return False
    before, now = sum(eigenvalues[-2 * WINDOW : -WINDOW]), sum(eigenvalues[-WINDOW:])
    return before > 0 and now / before > ratio


def genotype_space(genotype: Genotype) -> SearchSpace:
    """The search space with the genotype's operations on its edges, and `none` on the others."""
    return SearchSpace(_cell_operations(genotype.normal), _cell_operations(genotype.reduce))


def _cell_operations(cell: CellGenotype) -> CellOps:
    by_edge = {EDGES.index((source, index // 2)): (operation,) for index, (operation, source) in enumerate(cell.edges)}
    return tuple(by_edge.get(edge, ("none",)) for edge in range(len(EDGES)))


def inherited_accuracy(
    network: Supernet,
    derived: Supernet,
    genotype: Genotype,
    training: Batches,
    validation: Batches,
    generator: torch.Generator,
) -> float:
    """Validation accuracy (fraction) of a genotype in the weights of the search network.

    The search network's batch norms know the mixed cell, so new statistics come from CALIBRATION_BATCHES training batches at most.

    Args:
        derived: a network over `genotype_space(genotype)`, otherwise like the search network. It takes over the weights.
        generator: of the order and augmentation of the training batches.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    weights, names = network.state_dict(), derived.state_dict()
    derived.load_state_dict({name: weights[name] for name in names if not name.startswith(("alphas_", "betas_"))}, strict=False)
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
    """Mean loss and accuracy (fraction) of the network in evaluation mode, on images without augmentation.

    Args:
        mixing: makes the mixing weights of each batch; None: the softmax of the alphas.
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


def measure_agreement(network: Supernet, images: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Cosines between the alphas' gradients of single cells on one batch, with the batch's own statistics.

    They are the columns of the same names; None with fewer than two cells of the type. It costs one pass forward and back.
    """
    normal, reduce = cell_gradients(network, images, labels)
    return {
        "normal_agreement": mean_cosine(normal),
        "normal_first_last": cosine_similarity(normal[0], normal[-1], dim=0).item() if len(normal) > 1 else None,
        "reduce_agreement": mean_cosine(reduce),
    }


def cell_gradients(network: Supernet, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the loss by each cell's own copy of the alphas, (cells of the type, alphas), in the order of depth.

    Their sum over the cells of a type is the gradient of the shared alphas. PC-DARTS' betas count as alphas.
    """
    alphas, mixing = network.arch_parameters(), network.mixing()
    copies = [weights.detach().requires_grad_() for weights in network.spread(mixing)]
    copy_gradients = torch.autograd.grad(cross_entropy(network(images, copies), labels), copies)
    by_type: tuple[list[Tensor], list[Tensor]] = ([], [])
    for cell, gradient in zip(network.cells, copy_gradients, strict=True):
        assert isinstance(cell, Cell)
        parts = torch.autograd.grad(mixing[cell.reduction], alphas, gradient, retain_graph=True, allow_unused=True)
        by_type[cell.reduction].append(torch.cat([part.flatten() for part in parts if part is not None]))
    return torch.stack(by_type[0]), torch.stack(by_type[1])


def mean_cosine(gradients: Tensor) -> float | None:
    """The mean cosine over all pairs of rows; None if there is no pair."""
    count = len(gradients)
    if count < 2:
        return None
    units = normalize(gradients.double(), dim=1)
    return ((units.sum(dim=0).square().sum() - units.square().sum()) / (count * (count - 1))).item()


def alpha_eigenvalue(network: Supernet, images: Tensor, labels: Tensor, seed: int) -> float:
    """The largest eigenvalue of the loss's Hessian in the alphas on one batch, with the batch's own statistics.

    The mixing weights are the softmax of the alphas, also for methods that sample. PC-DARTS' betas count as alphas. The plain
    evaluation, which can be differentiated twice, takes about three times the memory of its training step.

    Args:
        seed: of the first vector of Lanczos' method.
    """
    alphas, evaluation = network.arch_parameters(), network.evaluation
    network.evaluation = "plain"
    product, size = hessian_product(lambda: cross_entropy(network(images), labels), alphas)
    start = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=alphas[0].dtype).to(alphas[0].device)
    eigenvalue = largest_eigenvalue(product, start)
    network.evaluation = evaluation
    return eigenvalue


def hessian_product(loss: Callable[[], Tensor], parameters: list[nn.Parameter]) -> tuple[Callable[[Tensor], Tensor], int]:
    """A function from a flat vector to the Hessian of the loss times it, and the vector's length."""
    gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss(), parameters, create_graph=True)])

    def product(vector: Tensor) -> Tensor:
        parts = torch.autograd.grad(gradient, parameters, vector, retain_graph=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in parts])

    return product, len(gradient)


def largest_eigenvalue(product: Callable[[Tensor], Tensor], start: Tensor) -> float:
    """The largest (not the largest in size) eigenvalue of a symmetric matrix, from its products with vectors.

    Lanczos' method makes every vector orthogonal to all before. It is exact up to rounding for matrices of at most ITERATIONS rows,
    and else stops when the residual is below TOLERANCE. It asks after every product; `scipy.sparse.linalg.eigsh` asks after a fixed
    number, and needed 9 to 13 products where this needs 8 to 10 (224 alphas).
    """
    size = min(ITERATIONS, len(start))
    basis = torch.zeros(size, len(start), dtype=torch.float64, device=start.device)
    tridiagonal = torch.zeros(size, size, dtype=torch.float64, device=start.device)  # its lower triangle
    basis[0] = start.double() / start.double().norm()
    value = float("-inf")
    for step in range(size):
        earlier = basis[: step + 1]
        image = product(basis[step].to(start.dtype)).double()
        tridiagonal[step, step] = image @ basis[step]
        for _ in range(2):  # once leaves rounding errors that grow
            image = image - earlier.t() @ (earlier @ image)
        values, vectors = torch.linalg.eigh(tridiagonal[: step + 1, : step + 1])
        norm, value = image.norm(), values[-1].item()
        residual = (norm * vectors[-1, -1].abs()).item()
        if residual <= TOLERANCE * abs(value):
            break
        if step + 1 < size:
            tridiagonal[step + 1, step] = norm
            basis[step + 1] = image / norm
    return value
