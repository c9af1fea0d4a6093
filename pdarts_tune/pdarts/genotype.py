"""Genotypes: what they are, their text, and how they are derived from probabilities or drawn at random.

A genotype has two cells whose nodes have two operations each (Liu et al., 2019, section 2.3).
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pdarts_tune.pdarts.space import EDGES, NUM_NODES, PRIMITIVES

# In published cells of other search spaces (NASNet's), not searched here.
FURTHER_OPERATIONS = ("sep_conv_7x7", "conv_7x1_1x7")
GENOTYPE_OPERATIONS = PRIMITIVES[1:] + FURTHER_OPERATIONS


@dataclass(frozen=True)
class CellGenotype:
    """One cell: two (operation, source state) per node, in node order, and the states whose concatenation is the output.

    DARTS' cells have four nodes and concatenate all of them. Other cells may have other numbers (NASNet, AmoebaNet).

    Raises:
        ValueError: an unknown operation, `none`, a state that does not exist yet, or a number of edges that is not two a node.
    """

    edges: tuple[tuple[str, int], ...]
    concat: tuple[int, ...] = (2, 3, 4, 5)

    def __post_init__(self) -> None:
        if not self.edges or len(self.edges) % 2:
            raise ValueError(f"{len(self.edges)} edges: a cell has two for each node")
        for index, (operation, source) in enumerate(self.edges):
            states = 2 + index // 2
            if operation not in GENOTYPE_OPERATIONS:
                known = ", ".join(GENOTYPE_OPERATIONS)
                raise ValueError(f"edge {index}: unknown operation {operation!r}, known are {known}")
            if not 0 <= source < states:
                raise ValueError(f"edge {index}: state {source} does not exist yet, node {index // 2} can read 0 to {states - 1}")
        for state in self.concat:
            if not 0 <= state < 2 + self.num_nodes:
                raise ValueError(f"concat: state {state} does not exist, the cell has states 0 to {1 + self.num_nodes}")
        if not self.concat or len(set(self.concat)) != len(self.concat):
            raise ValueError(f"concat: {self.concat} must name at least one state, each once")

    @property
    def num_nodes(self) -> int:
        return len(self.edges) // 2

    @property
    def skips(self) -> int:
        """How many of the chosen operations are skip-connects."""
        return sum(operation == "skip_connect" for operation, _ in self.edges)

    @property
    def reached(self) -> frozenset[int]:
        """The states that the output depends on."""
        reached = set(self.concat)
        for node in reversed(range(self.num_nodes)):
            if 2 + node in reached:
                reached |= {source for _, source in self.edges[2 * node : 2 * node + 2]}
        return frozenset(reached)

    @property
    def depth(self) -> int:
        """Connections on the longest path from an input to the output, the last one included (Shu et al., 2020, section 3.1)."""
        longest = [0, 0]
        for node in range(self.num_nodes):
            longest.append(1 + max(longest[source] for _, source in self.edges[2 * node : 2 * node + 2]))
        return 1 + max(longest[state] for state in self.concat)

    @property
    def width(self) -> float:
        """The number of nodes that read the inputs, each weighted by its share of such edges (Shu et al., 2020)."""
        return sum(source < 2 for _, source in self.edges) / 2


@dataclass(frozen=True)
class Genotype:
    """A normal and a reduction cell. `str` and `parse` use the text that DARTS-family code prints in its logs."""

    normal: CellGenotype
    reduce: CellGenotype

    def __str__(self) -> str:
        def concat(states: tuple[int, ...]) -> str:
            consecutive = states == tuple(range(states[0], states[0] + len(states)))
            return f"range({states[0]}, {states[-1] + 1})" if consecutive else str(list(states))

        return (
            f"Genotype(normal={list(self.normal.edges)}, normal_concat={concat(self.normal.concat)}, "
            f"reduce={list(self.reduce.edges)}, reduce_concat={concat(self.reduce.concat)})"
        )

    @property
    def genotype_id(self) -> str:
        """Twelve hex digits that name the genotype by its content."""
        return hashlib.sha256(str(self).encode()).hexdigest()[:12]

    def to_json(self) -> str:
        cells = {"normal": self.normal, "reduce": self.reduce}
        return json.dumps(
            {name: [list(edge) for edge in cell.edges] for name, cell in cells.items()}
            | {f"{name}_concat": list(cell.concat) for name, cell in cells.items()}
        )

    @classmethod
    def parse(cls, text: str) -> Genotype:
        """Reads what `str` or `to_json` wrote, or a line of a DARTS-family log with such a text. Nothing is evaluated.

        Raises:
            ValueError: the text is cut off, is not a genotype, or describes an impossible cell; one line.
        """
        try:
            return cls(*_parse_cells(text))
        except SyntaxError:
            raise ValueError(f"genotype {_short(text)}: not a genotype text, or cut off") from None
        except ValueError as error:
            raise ValueError(f"genotype {_short(text)}: {error}") from None


def _parse_cells(text: str) -> Iterator[CellGenotype]:
    start = text.find("Genotype(")
    if start >= 0:
        call = ast.parse(_balanced(text[start:]), mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args:
            raise ValueError("its cells must be named: normal=, normal_concat=, reduce=, reduce_concat=")
        parts: Any = {keyword.arg: _literal(keyword.value) for keyword in call.keywords}
    else:
        parts = json.loads(text)
    if not isinstance(parts, dict):
        raise ValueError(f"needs normal and reduce cells, is {type(parts).__name__}")
    names = ("normal", "normal_concat", "reduce", "reduce_concat")
    if unknown := [name for name in parts if name not in names]:
        raise ValueError(f"unknown part {unknown[0]!r}, known are {', '.join(names)}")
    for name in ("normal", "reduce"):
        if name not in parts:
            raise ValueError(f"no {name} cell")
        try:
            edges = tuple((str(operation), _state(source)) for operation, source in parts[name])
            every_node = range(2, 2 + len(edges) // 2)
            yield CellGenotype(edges, tuple(map(_state, parts.get(f"{name}_concat", every_node))))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} cell: {error}") from None


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return repr(flat if len(flat) <= 60 else flat[:57] + "...")


def _balanced(text: str) -> str:
    depth = 0
    for index, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if depth == 0 and character == ")":
            return text[: index + 1]
    raise ValueError("cut off: a bracket is never closed")


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range" and not node.keywords:
        bounds = [ast.literal_eval(argument) for argument in node.args]
        if len(bounds) not in (1, 2) or not all(type(bound) is int and abs(bound) < 100 for bound in bounds):
            raise ValueError("a range needs one or two small numbers")
        return list(range(*bounds))
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"{ast.unparse(node)[:40]!r} is neither a list nor a range") from None


def _state(value: object) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r} is not the number of a state")
    return value


Probs = tuple[Mapping[str, float], ...]  # per edge in EDGES order, softmax(alpha) by operation name


def softmax(alphas: Mapping[str, float]) -> dict[str, float]:
    """The probabilities of an edge's operations."""
    largest = max(alphas.values())
    powers = {name: math.exp(alpha - largest) for name, alpha in alphas.items()}
    total = sum(powers.values())
    return {name: power / total for name, power in powers.items()}


def derive_cell(probs: Probs) -> CellGenotype:
    """The discrete cell of a mixed cell.

    Each edge takes its most probable operation other than `none`. Each node takes its two strongest edges, ordered by source state.
    The strength of an edge is the probability of its operation in the softmax that includes `none`, not renormalised. Of equally
    probable operations the last wins, of equally strong edges the last two.

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
    """A genotype drawn uniformly from all whose normal cell has at most, or `exactly`, `max_skips` skip-connects."""

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
