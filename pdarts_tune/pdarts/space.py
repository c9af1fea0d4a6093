"""The DARTS search space: the edges of a cell and their candidate operations.

A cell has two input states (0 and 1: the outputs of the two cells before it) and four nodes (states 2 to 5). Every node reads
every earlier state through one *edge*. An edge has several *candidate operations* (Liu et al., 2019, section 2.1).
"""

from __future__ import annotations

from dataclasses import dataclass

PRIMITIVES: tuple[str, ...] = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)

NUM_NODES = 4

# (source state, node), node-major: every list of 14 edges in this project is in this order.
EDGES: tuple[tuple[int, int], ...] = tuple((source, node) for node in range(NUM_NODES) for source in range(node + 2))

CellOps = tuple[tuple[str, ...], ...]  # per edge, the candidate operations, in PRIMITIVES order


@dataclass(frozen=True)
class SearchSpace:
    """The candidate operations of both cell types, per edge.

    Raises:
        ValueError: not 14 edges, an edge without operations, an unknown operation, or operations out of PRIMITIVES order.
    """

    normal: CellOps
    reduce: CellOps

    def __post_init__(self) -> None:
        for cell, edges in (("normal", self.normal), ("reduce", self.reduce)):
            if len(edges) != len(EDGES):
                raise ValueError(f"{cell} cell: {len(edges)} edges, needs {len(EDGES)}")
            for edge, operations in enumerate(edges):
                if not operations:
                    raise ValueError(f"{cell} cell, edge {edge}: no candidate operation")
                if unknown := [name for name in operations if name not in PRIMITIVES]:
                    known = ", ".join(PRIMITIVES)
                    raise ValueError(f"{cell} cell, edge {edge}: unknown operation {unknown[0]!r}, known are {known}")
                if sorted(set(operations), key=PRIMITIVES.index) != list(operations):
                    raise ValueError(f"{cell} cell, edge {edge}: {operations} is not in PRIMITIVES order without repeats")

    @classmethod
    def full(cls) -> SearchSpace:
        """All eight operations on all 14 edges of both cells: the start of every search."""
        cell = (PRIMITIVES,) * len(EDGES)
        return cls(cell, cell)
