"""Search records as rows of the tables, with the columns that follow from the probabilities alone."""

from __future__ import annotations

import math
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from pdarts_tune.config import SearchConfig
from pdarts_tune.cost import network_cost
from pdarts_tune.genotype import Genotype
from pdarts_tune.network import CIFAR
from pdarts_tune.search import CELLS, EpochRecord
from pdarts_tune.space import EDGES, PRIMITIVES

Rows = list[dict[str, Any]]
SKIP_LIMITS = tuple(range(8, -1, -1))  # every M is kept: people ask afterwards which one to take


def epoch_row(record: EpochRecord) -> dict[str, Any]:
    """A record as its row of `epochs`, with what follows from the probabilities alone."""
    row = asdict(record)
    for field in ("alphas", "probabilities", "inherited_accuracy"):
        del row[field]
    genotype = record.genotype(max_skips=8)
    edges = {cell: record.probabilities[cell] for cell in CELLS}
    both = edges["normal"] + edges["reduce"]
    return row | {
        "finished": datetime.fromtimestamp(record.finished, UTC),
        "normal_skip_count": genotype.normal.skips,
        "reduce_skip_count": genotype.reduce.skips,
        **{f"{cell}_skip_mass": sum(edge.get("skip_connect", 0.0) for edge in edges[cell]) / len(EDGES) for cell in CELLS},
        "alpha_entropy": sum(-p * math.log(p) for edge in both for p in edge.values() if p > 0) / len(both),
        "hessian_eigenvalue": None,
    }


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
        }
        for cell in CELLS
        for edge, (source, node) in enumerate(EDGES)
        for operation in PRIMITIVES
        if operation in record.alphas[cell][edge]
    ]


def genotype_rows(records: list[EpochRecord], config: SearchConfig) -> Rows:
    """The rows of `genotypes`: for each finished stage, the genotype for every skip limit."""
    last_epochs = {stage: settings.epochs - 1 for stage, settings in enumerate(config.stages, start=1)}
    rows = []
    for record in records:
        if record.epoch == last_epochs[record.stage]:
            for max_skips in SKIP_LIMITS:
                inherited = record.inherited_accuracy if max_skips == config.max_skips else None
                rows.append(genotype_row(record.genotype(max_skips), record.stage, max_skips, inherited))
    return rows


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
