"""The record of a search's epoch, and its rows in the tables `epochs`, `alphas` and `genotypes`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from pdarts_tune.config.methods import RandomSearch
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.networks.cost import network_cost
from pdarts_tune.networks.evaluation_network import CIFAR
from pdarts_tune.pdarts.genotype import Genotype
from pdarts_tune.pdarts.regularization import derive_genotype
from pdarts_tune.pdarts.space import EDGES, NUM_NODES, PRIMITIVES
from pdarts_tune.search.diagnostics import Diagnostics, measure_probabilities

CELLS = ("normal", "reduce")
SKIP_LIMITS = tuple(range(8, -1, -1))  # the values of M for which a genotype is kept
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Choice:
    """The architecture parameters after an epoch, by cell type, edge and operation."""

    alphas: Mapping[str, list[dict[str, float]]]
    probabilities: Mapping[str, list[dict[str, float]]]
    edge_weights: Mapping[str, list[float]] | None  # by cell type and edge; None: the method has none

    def genotype(self, max_skips: int) -> Genotype:
        """The genotype derived from this choice, with at most `max_skips` skip-connects in the normal cell."""
        return derive_genotype(self.probabilities, self.edge_weights, max_skips)


@dataclass(frozen=True, kw_only=True)
class EpochRecord(Diagnostics, Choice):
    """One epoch. Accuracies are fractions; `epoch` counts from 0 in its stage, `stage` from 1 (random search: the candidate)."""

    stage: int
    epoch: int
    phase: str  # "weights": alphas frozen; "both"
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    learning_rate: float
    skip_dropout: float
    seconds: float  # of training and validation
    diagnostic_seconds: float
    images_per_second: float  # images that trained weights, over the training time
    peak_bytes: int  # of training and validation
    finished: float  # Unix time
    derived_epoch: int | None  # at the end of a stage: the epoch whose alphas count
    # Of the cells' operations in the search network: expected by the probabilities, and of the cell derived now, at the skip limit.
    expected_params: float | None = None
    derived_params: int | None = None
    expected_macs: float | None = None
    derived_macs: int | None = None
    expected_latency_seconds: float | None = None
    derived_latency_seconds: float | None = None


def epoch_row(record: EpochRecord) -> dict[str, Any]:
    """The row of `epochs`."""
    row = asdict(record)
    for field in ("alphas", "probabilities", "edge_weights"):
        del row[field]
    genotype = record.genotype(max_skips=2 * NUM_NODES)
    return row | measure_probabilities(record.probabilities, genotype) | {"finished": datetime.fromtimestamp(record.finished, UTC)}


def alpha_rows(record: EpochRecord) -> Rows:
    """The rows of `alphas`: one per cell type, edge and operation."""
    return [
        {
            "stage": record.stage,
            "epoch": record.epoch,
            "cell": cell,
            "edge": edge,
            "source": source,
            "node": node,
            "operation": operation,
            "alpha": record.alphas[cell][edge][operation],
            "probability": record.probabilities[cell][edge][operation],
            "edge_weight": None if record.edge_weights is None else record.edge_weights[cell][edge],
        }
        for cell in CELLS
        for edge, (source, node) in enumerate(EDGES)
        for operation in PRIMITIVES
        if operation in record.alphas[cell][edge]
    ]


def genotype_rows(records: list[EpochRecord], config: SearchConfig) -> Rows:
    """The rows of `genotypes`: the genotype of each finished stage, for every skip limit.

    In a random search each trained candidate is a stage. Behind the last one comes the best one again, so that the row of the
    highest stage is the result of every search.
    """
    ends = [record for record in records if record.derived_epoch is not None]
    if isinstance(config.method, RandomSearch):
        if len(ends) == config.method.candidates:
            ends.append(max(ends, key=lambda record: record.validation_accuracy))  # of equals, the first
        return [
            genotype_row(record.genotype(config.max_skips), stage, config.max_skips, record.inherited_accuracy)
            for stage, record in enumerate(ends, start=1)
        ]
    by_place = {(record.stage, record.epoch): record for record in records}
    rows = []
    for record in (by_place[end.stage, end.derived_epoch] for end in ends if end.derived_epoch is not None):
        for max_skips in SKIP_LIMITS:
            inherited = record.inherited_accuracy if max_skips == config.max_skips else None
            rows.append(genotype_row(record.genotype(max_skips), record.stage, max_skips, inherited))
    return rows


def genotype_row(genotype: Genotype, stage: int, max_skips: int, inherited_accuracy: float | None) -> dict[str, Any]:
    """A row of `genotypes`. Sizes are those at the papers' CIFAR setting."""
    cost = network_cost(genotype, CIFAR)
    return {
        "stage": stage,
        "max_skips": max_skips,
        "genotype_id": genotype.genotype_id,
        "genotype": str(genotype),
        "skips": genotype.normal.skips,
        "depth": genotype.normal.depth,
        "width": genotype.normal.width,
        "params": cost.params,
        "macs": cost.macs,
        "inherited_accuracy": inherited_accuracy,
    }
