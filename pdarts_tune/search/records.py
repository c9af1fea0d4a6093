"""What an epoch of a search leaves behind: the record that resuming, the tables and the next stage are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from pdarts_tune.config.methods import RandomSearch
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.networks.cost import network_cost
from pdarts_tune.networks.evaluation_network import CIFAR
from pdarts_tune.pdarts.genotype import Genotype, derive_cell
from pdarts_tune.pdarts.regularization import limit_skips
from pdarts_tune.pdarts.space import EDGES, NUM_NODES, PRIMITIVES
from pdarts_tune.search.diagnostics import measure_probabilities

# MERGED DOCSTRING
# Search records as rows of the tables, with the columns that follow from the probabilities alone.

CELLS = ("normal", "reduce")


@dataclass(frozen=True)
class Choice:
    """What the architecture parameters say after an epoch."""

    alphas: Mapping[str, list[dict[str, float]]]  # by cell type, per edge, by operation
    probabilities: Mapping[str, list[dict[str, float]]]
    edge_weights: Mapping[str, list[float]] | None  # by cell type, per edge; None: the method has none

    def genotype(self, max_skips: int) -> Genotype:
        """The genotype that would be derived now, with at most `max_skips` skip-connects in the normal cell."""
        normal, reduce = (
            tuple({name: p * weight for name, p in edge.items()} for edge, weight in zip(edges, weights, strict=True))
            for edges, weights in ((self.probabilities[cell], self._weights(cell)) for cell in CELLS)
        )
        return Genotype(limit_skips(normal, max_skips), derive_cell(reduce))

    def _weights(self, cell: str) -> list[float]:
        """The strength of an edge is its weight times that of its operation (Xu et al., 2020, section 3.3)."""
        return [1.0] * len(self.probabilities[cell]) if self.edge_weights is None else self.edge_weights[cell]


@dataclass(frozen=True)
class EpochRecord(Choice):
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
    diagnostic_seconds: float  # beside these, spent on the diagnostics below
    images_per_second: float  # images that trained weights, over the training time
    peak_bytes: int  # of training and validation
    finished: float  # Unix time
    inherited_accuracy: float | None  # of the derived cell with the search network's weights; None where nobody looked
    normal_agreement: float | None  # see agreement.py
    normal_first_last: float | None
    reduce_agreement: float | None
    hessian_eigenvalue: float | None
    diagnostic_peak_bytes: int | None  # None where there were no diagnostics
    derived_epoch: int | None  # at the end of a stage: the epoch whose alphas decide what comes out of it


Rows = list[dict[str, Any]]
SKIP_LIMITS = tuple(range(8, -1, -1))  # every M is kept: people ask afterwards which one to take


def epoch_row(record: EpochRecord) -> dict[str, Any]:
    """A record as its row of `epochs`, with what follows from the probabilities alone."""
    row = asdict(record)
    for field in ("alphas", "probabilities", "edge_weights"):
        del row[field]
    genotype = record.genotype(max_skips=2 * NUM_NODES)
    return row | measure_probabilities(record.probabilities, genotype) | {"finished": datetime.fromtimestamp(record.finished, UTC)}


def alpha_rows(record: EpochRecord) -> Rows:
    """A record's alphas as rows of `alphas`: one per cell type, edge and operation."""
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
    """The rows of `genotypes`: for each finished stage, the genotype for every skip limit.

    Of a random search, each candidate that is trained at its own stage number; when all are, the best of them once more, behind
    the last, so that the row of the highest stage is what every search ends with.
    """
    if isinstance(config.method, RandomSearch):
        return _candidate_rows(records, config, config.method.candidates)
    rows = []
    by_place = {(record.stage, record.epoch): record for record in records}
    for end in records:
        if end.derived_epoch is not None:
            record = by_place[end.stage, end.derived_epoch]
            for max_skips in SKIP_LIMITS:
                inherited = record.inherited_accuracy if max_skips == config.max_skips else None
                rows.append(genotype_row(record.genotype(max_skips), record.stage, max_skips, inherited))
    return rows


def _candidate_rows(records: list[EpochRecord], config: SearchConfig, candidates: int) -> Rows:
    trained = [record for record in records if record.derived_epoch is not None]
    if len(trained) == candidates:
        trained.append(max(trained, key=lambda record: record.validation_accuracy))  # of equals, the first
    return [
        genotype_row(record.genotype(config.max_skips), stage, config.max_skips, record.inherited_accuracy)
        for stage, record in enumerate(trained, start=1)
    ]


def genotype_row(genotype: Genotype, stage: int, max_skips: int, inherited_accuracy: float | None) -> dict[str, Any]:
    cost = network_cost(genotype, CIFAR)  # at the papers' CIFAR setting, to stand beside published sizes
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
