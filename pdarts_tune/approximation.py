"""Idea 2 of P-DARTS, search space approximation: as the network deepens, drop the least probable operations (section 3.2)."""

from __future__ import annotations

from pdarts_tune.genotype import Probs
from pdarts_tune.space import PRIMITIVES, CellOps


def prune(probs: Probs, keep: int) -> CellOps:
    """The `keep` most probable operations of every edge, in PRIMITIVES order.

    `none` competes like any other operation. Of equally probable operations the one with the lowest index is dropped first.

    Raises:
        ValueError: `keep` is less than 1, or more than an edge has operations.
    """
    if keep < 1:
        raise ValueError(f"keep: {keep} is not at least 1")
    kept = []
    for edge, operations in enumerate(probs):
        if keep > len(operations):
            raise ValueError(f"keep: edge {edge} has {len(operations)} operations, cannot keep {keep}")
        ascending = sorted(operations, key=lambda name: (operations[name], PRIMITIVES.index(name)))
        kept.append(tuple(sorted(ascending[-keep:], key=PRIMITIVES.index)))
    return tuple(kept)
