"""The DARTS search space: the edges of a cell and their candidate operations.

A cell has two input states (0 and 1: the outputs of the two cells before it) and four nodes (states 2 to 5). Every node reads
every earlier state through one *edge*. An edge has several *candidate operations* (Liu et al., 2019, section 2.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        return cls.uniform(*PRIMITIVES)

    @classmethod
    def uniform(cls, *operations: str) -> SearchSpace:
        """The same operations on every edge of both cells."""
        cell = (operations,) * len(EDGES)
        return cls(cell, cell)


def _cell(edges: str) -> CellOps:
    names = {"max": "max_pool_3x3", "avg": "avg_pool_3x3", "skip": "skip_connect"}
    names |= {"sep3": "sep_conv_3x3", "dil3": "dil_conv_3x3", "dil5": "dil_conv_5x5"}
    return tuple(tuple(names[name] for name in edge.split("+")) for edge in edges.split())


# What a search starts from, by name. In S1 to S3 DARTS collapses (Zela et al., ICLR 2020, arXiv 1909.09656, section 3).
SPACES: Mapping[str, SearchSpace] = {
    "full": SearchSpace.full(),
    "S1": SearchSpace(
        _cell(
            "skip+dil3 skip+dil5 skip+dil5 skip+sep3 skip+dil3 max+skip skip+sep3 "
            "skip+sep3 skip+dil3 skip+sep3 max+skip skip+dil3 dil3+dil5 dil3+dil5"
        ),
        _cell(
            "max+avg max+dil3 max+avg max+avg skip+dil5 max+avg max+sep3 "
            "skip+dil3 skip+dil5 max+avg max+avg skip+dil5 skip+dil5 skip+dil5"
        ),
    ),
    "S2": SearchSpace.uniform("skip_connect", "sep_conv_3x3"),
    "S3": SearchSpace.uniform("none", "skip_connect", "sep_conv_3x3"),
    "no_skip": SearchSpace.uniform(*(name for name in PRIMITIVES if name != "skip_connect")),
}


def check_choices(space: SearchSpace) -> None:
    """Raises ValueError unless every edge has an operation other than `none`, and normal cells under every skip limit exist."""
    for cell, edges in (("normal", space.normal), ("reduce", space.reduce)):
        for edge, operations in enumerate(edges):
            if operations == ("none",):
                raise ValueError(f"{cell} cell, edge {edge}: none alone is no choice, it needs another operation")
    for node in range(NUM_NODES):
        others = [e for e, (_, end) in enumerate(EDGES) if end == node and set(space.normal[e]) - {"none", "skip_connect"}]
        if len(others) < 2:
            raise ValueError(
                f"normal cell, node {node}: fewer than two of its edges have an operation other than none and skip_connect, so no "
                "limit of skip-connects could be kept"
            )


def check_operations(space: SearchSpace, stages: Sequence[int]) -> None:
    """Raises ValueError if a stage, by its number of operations, would keep more than an edge has. The message has every edge."""
    for index, keep in enumerate(stages):
        few = [
            f"{cell} {edge} ({len(operations)})"
            for cell, edges in (("normal", space.normal), ("reduce", space.reduce))
            for edge, operations in enumerate(edges)
            if len(operations) < keep
        ]
        if few:
            raise ValueError(
                f"stages[{index}].operations: {keep} is more than these edges of the space have: {', '.join(few)}; "
                "a stage can only keep or drop operations"
            )
