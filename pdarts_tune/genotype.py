"""What a search finds: how a genotype is derived from probabilities or drawn at random, and those from the literature.

What a genotype is stands in cell.py, the published ones in published.py; this is the room to import all of them from.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

from pdarts_tune.cell import GENOTYPE_OPERATIONS, CellGenotype, Genotype
from pdarts_tune.published import PUBLISHED, Published
from pdarts_tune.space import EDGES, NUM_NODES, PRIMITIVES

__all__ = [
    "GENOTYPE_OPERATIONS",
    "PUBLISHED",
    "CellGenotype",
    "Genotype",
    "Probs",
    "Published",
    "derive_cell",
    "random_genotype",
    "softmax",
]

Probs = tuple[Mapping[str, float], ...]  # per edge in EDGES order, softmax(alpha) by operation name


def softmax(alphas: Mapping[str, float]) -> dict[str, float]:
    """The probabilities of an edge's operations."""
    largest = max(alphas.values())
    powers = {name: math.exp(alpha - largest) for name, alpha in alphas.items()}
    total = sum(powers.values())
    return {name: power / total for name, power in powers.items()}


def derive_cell(probs: Probs) -> CellGenotype:
    """The discrete cell that a mixed cell stands for.

    On each edge the most probable operation other than `none`; for each node its two strongest edges, ordered by source state.
    The strength of an edge is that operation's probability in the softmax that includes `none`, not renormalised. Ties: of
    equally probable operations the last stays, of equally strong edges the last two.

    Args:
        probs: 14 edges in EDGES order.

    Raises:
        ValueError: not 14 edges, or a node with fewer than two edges that offer an operation other than `none`.
    """
    if len(probs) != len(EDGES):
        raise ValueError(f"{len(probs)} edges, needs {len(EDGES)}")
    edges: list[tuple[str, int]] = []
    for node in range(NUM_NODES):
        candidates = []  # (strength, source state, operation)
        for (source, target), edge in zip(EDGES, probs, strict=True):
            if target == node:
                ranked = sorted((p, PRIMITIVES.index(name), name) for name, p in edge.items() if name != "none")
                if ranked:
                    candidates.append((ranked[-1][0], source, ranked[-1][2]))
        if len(candidates) < 2:
            raise ValueError(f"node {node}: fewer than two edges offer an operation other than none")
        strongest = sorted(candidates)[-2:]
        edges += [(operation, source) for _, source, operation in sorted(strongest, key=lambda edge: edge[1])]
    return CellGenotype(tuple(edges))


def random_genotype(rng: random.Random, max_skips: int, exactly: bool = False) -> Genotype:
    """A genotype drawn uniformly from all whose normal cell has at most `max_skips` skip-connects (by rejection).

    With `exactly`, from all whose normal cell has just so many.
    """

    def cell() -> CellGenotype:
        edges: list[tuple[str, int]] = []
        for node in range(NUM_NODES):
            sources = sorted(rng.sample(range(node + 2), 2))
            edges += [(rng.choice(PRIMITIVES[1:]), source) for source in sources]
        return CellGenotype(tuple(edges))

    normal = cell()
    if exactly:
        skips = set(rng.sample(range(len(normal.edges)), max_skips))
        others = [name for name in PRIMITIVES[1:] if name != "skip_connect"]
        edges = enumerate(normal.edges)
        normal = CellGenotype(tuple(("skip_connect" if i in skips else rng.choice(others), source) for i, (_, source) in edges))
    while normal.skips > max_skips:
        normal = cell()
    return Genotype(normal, cell())
