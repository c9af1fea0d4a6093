"""Genotypes: what they are, their text, and how they are derived from probabilities or drawn at random.

A genotype has two cells whose nodes have two operations each (Liu et al., 2019, section 2.3).
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pdarts_tune.pdarts.space import EDGES, NUM_NODES, PRIMITIVES, SPACES, CellOps, SearchSpace

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
    def parse(cls, text: str, choice: str | None = None) -> Genotype:
        """Reads what `str` or `to_json` wrote, or the genotype in a log or a Python file. Nothing is evaluated.

        Args:
            choice: which genotype of a text with several: `last`, the number of a line, or the name of a variable.

        Raises:
            ValueError: the text holds no genotype, or several different ones, which the message lists; it is cut off or
                describes an impossible cell; there is nothing that `choice` names.
        """
        entries = _find_entries(text)
        chosen = [entry for entry in entries if choice is None or entry.answers(choice, text)]
        if choice == "last":
            chosen = entries[-1:]
        if not chosen:
            raise ValueError(f"{choice!r} is no line or variable with a genotype, there are{_listing(entries)}")
        if len({entry.genotype or entry for entry in chosen}) > 1:
            raise ValueError(
                f"{len(chosen)} genotypes; choose one by :last, :LINE or :NAME after the file's name, there are{_listing(chosen)}"
            )
        if chosen[-1].genotype is None:
            raise ValueError(chosen[-1].error)
        return chosen[-1].genotype


@dataclass(frozen=True)
class _Entry:
    """One genotype of a text."""

    first: int  # line, from 1
    last: int
    before: str  # the text before it on its line
    genotype: Genotype | None
    error: str  # why it cannot be read

    def answers(self, choice: str, text: str) -> bool:
        """Whether `choice` is one of its lines, the name of its variable, or another variable with the same value."""
        if choice.isdecimal():
            return self.first <= int(choice) <= self.last
        names = {choice}
        for name, value in reversed(re.findall(r"^(\w+) *= *(\w+) *(?:#.*)?$", text, re.MULTILINE)):
            names |= {value} if name in names else set()
        variable = re.fullmatch(r"(\w+)\s*(?::.*)?=", self.before)
        return variable is not None and variable[1] in names


def _listing(entries: Sequence[_Entry]) -> str:
    lines = []
    for entry in entries:
        skips = entry.genotype and f"{entry.genotype.normal.skips} skip-connects in the normal cell"
        lines.append(f"\n  line {entry.first}, {skips or entry.error}: {entry.before[-60:]}")
    return "".join(lines if len(lines) <= 12 else [*lines[:4], f"\n  {len(lines) - 12} others", *lines[-8:]])


_START = re.compile("\n?".join("Genotype") + r"\s*\(")  # a terminal wraps lines anywhere
_FIELDS = ("normal", "normal_concat", "reduce", "reduce_concat")


def _find_entries(text: str) -> list[_Entry]:
    """All genotypes of a text. Those in comments count if there are no others.

    Raises:
        ValueError: there is none.
    """
    # A byte-order mark, colours of a terminal, quotes of a text in JSON.
    text = re.sub(r"\ufeff|\x1b\[[0-9;]*m", "", text).replace("\r\n", "\n").replace('\\"', '"')
    entries = []
    starts = [match.start() for match in _START.finditer(text)]
    for start, end in pairwise([*starts, len(text)]):
        before = text[text.rfind("\n", 0, start) + 1 : start].strip()
        if before == "class":
            continue
        length, genotype, error = end - start, None, ""
        try:
            call, length = _balanced(text[start:end])
            genotype = Genotype(*_build_cells(_read_call(call)))
        except ValueError as reason:
            error = f"genotype {_short(text[start:end])}: {reason}"
        line = 1 + text.count("\n", 0, start)
        entries.append(_Entry(line, line + text.count("\n", start, start + length), before, genotype, error))
    if not starts:
        try:
            entries.append(_Entry(1, 1 + text.count("\n"), "", Genotype(*_build_cells(json.loads(text))), ""))
        except json.JSONDecodeError:
            raise ValueError(f"genotype {_short(text)}: not a genotype text, or cut off") from None
        except ValueError as reason:
            raise ValueError(f"genotype {_short(text)}: {reason}") from None
    return [entry for entry in entries if not entry.before.startswith("#")] or entries


def _balanced(text: str) -> tuple[str, int]:
    """The call at the start of `text`, in one line and without comments, and its length in `text`."""
    depth, parts = 0, []
    for token in re.finditer(r"'[^']*'|\"[^\"]*\"|#[^\n]*|.", text, re.DOTALL):
        if not token[0].startswith("#"):
            parts.append(token[0].replace("\n", ""))
            depth += (token[0] in "([") - (token[0] in ")]")
            if depth == 0 and token[0] == ")":
                return "".join(parts), token.end()
    raise ValueError("cut off: a bracket is never closed")


def _read_call(text: str) -> dict[str, Any]:
    """The fields of `Genotype(...)`, named or in their order. Further fields are left out."""
    text = re.sub(r"(?<=[\d'\"\])])\s+(?=[\d'\"\[(])", ", ", text)  # NumPy prints arrays without commas
    try:
        call = ast.parse(text, mode="eval").body
    except (SyntaxError, RecursionError, MemoryError):
        raise ValueError("not a genotype text, or cut off") from None
    assert isinstance(call, ast.Call)
    if len(call.args) not in (0, 4):
        raise ValueError(f"its cells must be named, or be all of {', '.join(_FIELDS)}")
    fields = dict(zip(_FIELDS, call.args, strict=False)) | {str(keyword.arg): keyword.value for keyword in call.keywords}
    return {name: _literal(node) if name in _FIELDS else None for name, node in fields.items()}


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and node.args:
        kind = ast.unparse(node.func).rpartition(".")[2]
        if kind == "range":
            bounds = [_literal(argument) for argument in node.args]
            if len(bounds) > 2 or not all(type(bound) is int and abs(bound) < 100 for bound in bounds):
                raise ValueError("a range needs one or two small numbers")
            return list(range(*bounds))
        if re.fullmatch(r"array|tensor|list|tuple|str_?|u?int\d*", kind):  # np.int64(3), array([2, 3], dtype=int32)
            return _literal(node.args[0])
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Constant):
        return node.value
    raise ValueError(f"{ast.unparse(node)[:40]!r} is neither a list nor a range")


def _build_cells(fields: Any) -> Iterator[CellGenotype]:
    if not isinstance(fields, dict):
        raise ValueError(f"needs normal and reduce cells, is {type(fields).__name__}")
    if unknown := [name for name in fields if name.startswith(("normal", "reduce")) and name not in _FIELDS]:
        raise ValueError(f"unknown part {unknown[0]!r}, known are {', '.join(_FIELDS)}")
    for name in ("normal", "reduce"):
        if name not in fields:
            raise ValueError(f"no {name} cell")
        try:
            edges = _edges(fields[name])
            every_node = range(2, 2 + len(edges) // 2)
            yield CellGenotype(edges, tuple(map(_state, fields.get(f"{name}_concat", every_node))))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} cell: {error}") from None


def _edges(cell: Any) -> tuple[tuple[str, int], ...]:
    """Edges from pairs (operation, source), from a list of such pairs for each node, or from triples (operation, node, source)."""
    nodes: dict[int, list[Any]] = {}
    for index, item in enumerate(cell):
        if not isinstance(item, list) or len(item) not in (2, 3):
            raise ValueError(f"{item!r} is not a pair of an operation and a state")
        if isinstance(item[0], list):
            nodes[2 + index] = item
        elif len(item) == 3:
            nodes.setdefault(_state(item[1]), []).append([item[0], item[2]])
        else:
            nodes.setdefault(2 + index // 2, []).append(item)
    edges = [edge for _, own in sorted(nodes.items()) for edge in own]
    for state in sorted({*range(2, 2 + len(edges) // 2), *nodes}):
        if len(nodes.get(state, ())) != 2:
            count = len(nodes.get(state, ()))
            raise ValueError(f"{len(edges)} edges: a cell has two for each node, node {state - 2} (state {state}) has {count}")
    return tuple((str(operation), _state(source)) for operation, source in edges)


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return repr(flat if len(flat) <= 60 else flat[:57] + "...")


def _state(value: object) -> int:
    if isinstance(value, str) and value.isdecimal():  # NumPy makes texts of pairs
        return int(value)
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


def sigmoid(alphas: Mapping[str, float]) -> dict[str, float]:
    """The weights of an edge's operations where they are independent of each other."""
    return {name: 1 / (1 + math.exp(-alpha)) if alpha >= 0 else 1 - 1 / (1 + math.exp(alpha)) for name, alpha in alphas.items()}


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


def random_genotype(rng: random.Random, max_skips: int, exactly: bool = False, space: SearchSpace = SPACES["full"]) -> Genotype:
    """A genotype drawn uniformly from all in the space whose normal cell has at most, or `exactly`, `max_skips` skip-connects.

    There must be one, see `most_skips`.
    """

    def node(end: int, offers: CellOps) -> list[tuple[str, int]]:
        while True:
            sources = sorted(rng.sample(range(end + 2), 2))
            edges = [(rng.choice(PRIMITIVES[1:]), source) for source in sources]
            if all(name in offers[EDGES.index((source, end))] for name, source in edges):
                return edges

    def cell(offers: CellOps = space.normal) -> CellGenotype:
        return CellGenotype(tuple(edge for end in range(NUM_NODES) for edge in node(end, offers)))

    normal = cell()
    if exactly and space != SPACES["full"]:
        while normal.skips != max_skips:
            normal = cell()
    elif exactly:
        skips = set(rng.sample(range(len(normal.edges)), max_skips))
        others = [name for name in PRIMITIVES[1:] if name != "skip_connect"]
        edges = enumerate(normal.edges)
        normal = CellGenotype(tuple(("skip_connect" if i in skips else rng.choice(others), source) for i, (_, source) in edges))
    while normal.skips > max_skips:
        normal = cell()
    return Genotype(normal, cell(space.reduce))


def most_skips(space: SearchSpace) -> int:
    """The most skip-connects that a normal cell of the space can have."""
    offers = [sum("skip_connect" in space.normal[e] for e, (_, end) in enumerate(EDGES) if end == n) for n in range(NUM_NODES)]
    return sum(min(2, count) for count in offers)
