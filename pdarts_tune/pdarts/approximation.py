"""Idea 2 of P-DARTS, search space approximation: as the network deepens, drop the least probable operations (section 3.2)."""

from __future__ import annotations

import random
from collections.abc import Sequence, Sized

from pdarts_tune.pdarts.genotype import Probs
from pdarts_tune.pdarts.space import PRIMITIVES, CellOps

_NO_CHOICE = {"none", "skip_connect"}


def prune(probs: Probs, keep: int) -> CellOps:
    """The `keep` most probable operations of every edge, in PRIMITIVES order.

    `none` is an operation like any other. Of equally probable operations the one with the lowest index is dropped first.

    Raises:
        ValueError: `keep` is less than 1, or more than an edge has operations.
    """
    _check_keep(keep, probs)
    kept = []
    for operations in probs:
        ascending = sorted(operations, key=lambda name: (operations[name], PRIMITIVES.index(name)))
        kept.append(tuple(sorted(ascending[-keep:], key=PRIMITIVES.index)))
    return tuple(kept)


def draw_operations(rng: random.Random, operations: CellOps, keep: int) -> CellOps:
    """`keep` operations of every edge drawn uniformly, in PRIMITIVES order: the control for dropping by alphas.

    Of two or more operations at least one is neither `none` nor the skip-connect, so that every skip limit can be reached.

    Raises:
        ValueError: `keep` is less than 1, or more than an edge has operations.
    """
    _check_keep(keep, operations)
    drawn = []
    for names in operations:
        chosen = rng.sample(names, keep)
        while keep > 1 and set(chosen) <= _NO_CHOICE < set(names):
            chosen = rng.sample(names, keep)
        drawn.append(tuple(sorted(chosen, key=PRIMITIVES.index)))
    return tuple(drawn)


def keep_choice(probs: Probs, kept: CellOps) -> CellOps:
    """The kept operations, changed on each edge that kept only `none` and the skip-connect.

    There the most probable other operation replaces the less probable of the two. Otherwise a skip limit could be out of reach.
    This concerns only edges with two operations; P-DARTS keeps at least three.
    """
    repaired = []
    for edge, names in zip(probs, kept, strict=True):
        others = [name for name in edge if name not in _NO_CHOICE]
        if set(names) == _NO_CHOICE and others:
            best = (max(group, key=lambda name: (edge[name], PRIMITIVES.index(name))) for group in (names, others))
            names = tuple(sorted(best, key=PRIMITIVES.index))
        repaired.append(names)
    return tuple(repaired)


def _check_keep(keep: int, edges: Sequence[Sized]) -> None:
    if keep < 1:
        raise ValueError(f"keep: {keep} is not at least 1")
    for edge, operations in enumerate(edges):
        if keep > len(operations):
            raise ValueError(f"keep: edge {edge} has {len(operations)} operations, cannot keep {keep}")
