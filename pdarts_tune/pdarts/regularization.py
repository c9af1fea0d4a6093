"""Idea 3 of P-DARTS, search space regularization: keep skip-connects from taking over (section 3.3).

It has two parts: dropout on skip-connects during the search, and architecture refinement, which limits their number in the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pdarts_tune.pdarts.genotype import CellGenotype, Genotype, Probs, derive_cell
from pdarts_tune.pdarts.progressive_depth import Stage
from pdarts_tune.pdarts.space import EDGES

# More than half of the normal cell's eight operations. DARTS' best cell has two skip-connects, P-DARTS allows two; the collapsed
# cells of Zela et al. (2020, figure 1) have four to eight.
COLLAPSED_SKIPS = 5


def skip_dropout(stage: Stage, epoch: int) -> float:
    """The dropout rate on skip-connects in one epoch of a stage; `epoch` counts from 0.

    While the alphas are frozen the rate is linear, `p (E - 1 - e) / E`. Then it returns to p and falls exponentially,
    `p exp(-decay (e - warmup))`. Without `dropout_restart` it falls from the end of the line, `p (E - 1 - warmup) / E`.

    Raises:
        ValueError: the stage has no such epoch.
    """
    if not 0 <= epoch < stage.epochs:
        raise ValueError(f"epoch: {epoch} is not between 0 and {stage.epochs - 1}")
    if epoch < stage.warmup_epochs:
        return stage.skip_dropout * (stage.epochs - 1 - epoch) / stage.epochs
    start = stage.skip_dropout
    if not stage.dropout_restart and stage.warmup_epochs > 0:
        start *= (stage.epochs - 1 - stage.warmup_epochs) / stage.epochs
    return start * math.exp(-stage.dropout_decay * (epoch - stage.warmup_epochs))


def limit_skips(probs: Probs, max_skips: int) -> CellGenotype:
    """Derives a cell with at most `max_skips` skip-connects (architecture refinement).

    While the derived cell has more, the weakest skip-connect among *its* edges is removed and the whole cell is derived again.
    Operations and edges may change, and a new skip-connect may enter. Each step removes the skip-connect of one edge, so there are
    at most 14 steps.

    Raises:
        ValueError: `max_skips` is negative, or no cell with so few skip-connects can be derived from these candidates.
    """
    if max_skips < 0:
        raise ValueError(f"max_skips: {max_skips} is negative")
    remaining = [dict(edge) for edge in probs]
    cell = derive_cell(tuple(remaining))
    while cell.skips > max_skips:
        edges = enumerate(cell.edges)
        skips = [EDGES.index((source, position // 2)) for position, (name, source) in edges if name == "skip_connect"]
        weakest = min(skips, key=lambda edge: remaining[edge]["skip_connect"])
        # Removed, not set to 0: if its probability was rounded to 1.0, the others are 0 too, and it would win again.
        del remaining[weakest]["skip_connect"]
        try:
            cell = derive_cell(tuple(remaining))
        except ValueError as error:
            raise ValueError(f"max_skips: {max_skips} cannot be reached, {error}") from None
    return cell


def derive_genotype(
    probabilities: Mapping[str, Sequence[Mapping[str, float]]], edge_weights: Mapping[str, Sequence[float]] | None, max_skips: int
) -> Genotype:
    """The genotype of a search's probabilities, with at most `max_skips` skip-connects in the normal cell.

    Where edges have weights, the strength of an edge is its weight times its operation's (Xu et al., 2020, section 3.3).

    Args:
        probabilities: by cell type (normal, reduce) and edge, of each operation.
        edge_weights: by cell type and edge; None: the method has none.
    """
    normal, reduce = (
        tuple(
            {name: p * (1.0 if edge_weights is None else edge_weights[cell][edge]) for name, p in operations.items()}
            for edge, operations in enumerate(probabilities[cell])
        )
        for cell in ("normal", "reduce")
    )
    return Genotype(limit_skips(normal, max_skips), derive_cell(reduce))
