"""Search records as rows of the tables, with the columns that follow from the probabilities alone."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from pdarts_tune.config import SearchConfig
from pdarts_tune.cost import network_cost
from pdarts_tune.diagnostics import measure_probabilities
from pdarts_tune.genotype import Genotype
from pdarts_tune.methods import RandomSearch
from pdarts_tune.network import CIFAR
from pdarts_tune.records import CELLS, EpochRecord
from pdarts_tune.space import EDGES, NUM_NODES, PRIMITIVES

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
