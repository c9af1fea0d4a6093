"""What an epoch of a search leaves behind: the record that resuming, the tables and the next stage are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pdarts_tune.genotype import Genotype, derive_cell
from pdarts_tune.regularization import limit_skips

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
