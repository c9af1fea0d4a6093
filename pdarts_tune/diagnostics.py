"""What tells a healthy search from a collapsing one, as far as it follows from the probabilities and from earlier epochs alone.

What needs the network is in `agreement.py`, `curvature.py` and `inheritance.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pdarts_tune.genotype import CellGenotype, Genotype
from pdarts_tune.space import EDGES, PRIMITIVES

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
