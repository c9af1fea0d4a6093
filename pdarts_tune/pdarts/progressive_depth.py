"""Idea 1 of P-DARTS, progressive depth: a search is a sequence of stages whose networks grow deeper (paper, section 3.2).

DARTS has one stage. A depth ablation is another tuple of stages. No other file decides about depth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pdarts_tune.pdarts.space import PRIMITIVES


@dataclass(frozen=True)
class Stage:
    """One stage of a search.

    Raises:
        ValueError: a field of a wrong type or out of range.
    """

    cells: int  # depth of the search network, at least 3: two of them are reduction cells
    operations: int  # candidate operations per edge that the stage starts with
    skip_dropout: float = 0.0  # initial rate of the dropout on skip-connects
    epochs: int = 25
    warmup_epochs: int = 10  # epochs at the start in which only weights train
    dropout_decay: float = 0.2  # per epoch, once alphas train; see regularization.skip_dropout
    # True: dropout returns to its initial rate when alphas start to train, as in the paper. False: it goes on from its last rate.
    dropout_restart: bool = field(default=True, metadata={"later": True})

    def __post_init__(self) -> None:
        self._check_whole("cells", 3)
        self._check_whole("operations", 1, len(PRIMITIVES))
        self._check_whole("epochs", 1)
        self._check_whole("warmup_epochs", 0, self.epochs)
        for name, end in (("skip_dropout", 1), ("dropout_decay", math.inf)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < end:
                raise ValueError(f"{name}: {value!r} is wrong, it must be a number in [0, {end})")
            object.__setattr__(self, name, float(value))  # 0 and 0.0 are one configuration with one id
        if not isinstance(self.dropout_restart, bool):
            raise ValueError(f"dropout_restart: {self.dropout_restart!r} is wrong, it must be True or False")

    def _check_whole(self, name: str, least: int, most: int | None = None) -> None:
        value = getattr(self, name)
        if type(value) is not int or value < least or (most is not None and value > most):
            right = f"of at least {least}" if most is None else f"from {least} to {most}"
            raise ValueError(f"{name}: {value!r} is wrong, it must be a whole number {right}")


Stages = tuple[Stage, ...]


def check_stages(stages: Stages) -> None:
    """Raises ValueError unless there is a stage, each stage has a choice, and no stage has more operations than the one before.

    With one operation an edge all edges are equally strong, so no cell can be derived. A first stage of fewer than all operations
    starts from operations drawn at random (`approximation.draw_operations`).
    """
    if not stages:
        raise ValueError("stages: a search needs at least one stage")
    most = len(PRIMITIVES)
    for index, stage in enumerate(stages):
        if stage.operations < 2:
            raise ValueError(f"stages[{index}].operations: {stage.operations} leaves nothing to search, it must be at least 2")
        if stage.operations > most:
            raise ValueError(
                f"stages[{index}].operations: {stage.operations} is more than the {most} of the stage before; "
                f"a stage can only keep or drop operations, so at most {most}"
            )
        most = stage.operations


def reduction_cells(cells: int) -> tuple[int, int]:
    """The positions of the two reduction cells in a network of `cells` cells: n // 3 and 2n // 3."""
    return cells // 3, 2 * cells // 3


def cosine_rate(initial: float, epoch: int, epochs: int) -> float:
    """The learning rate in `epoch`, counted from 0: a half cosine from `initial` to 0 over `epochs`."""
    return initial * (1 + math.cos(math.pi * epoch / epochs)) / 2


def with_depths(stages: Stages, depths: Sequence[int]) -> Stages:
    """The same stages at other depths. Raises ValueError unless there is one depth a stage."""
    return _with(stages, "cells", depths)


def with_operations(stages: Stages, operations: Sequence[int]) -> Stages:
    """The same stages with other numbers of operations per edge. Raises ValueError unless there is one number a stage."""
    return _with(stages, "operations", operations)


def with_skip_dropout(stages: Stages, rates: Sequence[float]) -> Stages:
    """The same stages with other initial skip dropout rates. Raises ValueError unless there is one rate a stage."""
    return _with(stages, "skip_dropout", rates)


def _with(stages: Stages, setting: str, values: Sequence[Any]) -> Stages:
    if len(values) != len(stages):
        raise ValueError(f"{setting}: {len(values)} given for {len(stages)} stages")
    return tuple(replace(stage, **{setting: value}) for stage, value in zip(stages, values, strict=True))


# The cost of a cell apart from its candidate operations (preprocessing, sums, kernel launches), in operations. That of time is
# fitted to the seconds of the laptop preset at three depths (within 7 %, with cells of earlier code), that of memory to the
# predicted bytes of the paper's networks with 3, 5 and 8 operations, by plain cells and by kernels (within 7 %).
CELL_OVERHEAD = 2
MEMORY_OVERHEAD = 0.4


def search_work(stages: Stages) -> float:
    """The time of a search in an arbitrary unit: only ratios have a meaning.

    An epoch that trains weights and alphas takes twice as long as one that trains only weights.
    """
    return sum((2 * stage.epochs - stage.warmup_epochs) * stage.cells * (stage.operations + CELL_OVERHEAD) for stage in stages)


def peak_work(stages: Stages) -> float:
    """The memory of a search's largest stage for each image of a batch, in an arbitrary unit.

    After each reduction cell a cell keeps half as much for backward: twice the channels, a quarter of the pixels.
    """

    def cells(stage: Stage) -> float:
        return sum(0.5 ** sum(index >= reduction for reduction in reduction_cells(stage.cells)) for index in range(stage.cells))

    return max(cells(stage) * (stage.operations + MEMORY_OVERHEAD) for stage in stages)


def with_budget(stages: Stages, like: Stages) -> Stages:
    """The same stages with epochs scaled so that the search takes about as long as one in the stages `like`."""
    return with_epochs(stages, search_work(like) / search_work(stages))


def with_epochs(stages: Stages, factor: float) -> Stages:
    """The same stages with `factor` times the epochs, rounded.

    Warm-up scales too. Dropout decays as far in the new number of epochs as in the old.
    """

    def scaled(stage: Stage) -> Stage:
        epochs = max(1, round(stage.epochs * factor))
        warmup = min(round(stage.warmup_epochs * factor), epochs - 1 if stage.warmup_epochs < stage.epochs else epochs)
        return replace(stage, epochs=epochs, warmup_epochs=warmup, dropout_decay=round(stage.dropout_decay / factor, 4))

    return tuple(map(scaled, stages))


# P-DARTS on CIFAR-10 (paper, section 4.2): 5, 11, 17 cells; 8, 5, 3 operations; dropout 0.0, 0.4, 0.7.
PDARTS_CIFAR10: Stages = (Stage(5, 8, 0.0), Stage(11, 5, 0.4), Stage(17, 3, 0.7))
# On CIFAR-100 the paper uses milder dropout.
PDARTS_CIFAR100: Stages = with_skip_dropout(PDARTS_CIFAR10, (0.1, 0.2, 0.3))
# The authors' published command line differs from their text in the first stage.
PDARTS_CIFAR10_COMMAND_LINE: Stages = with_skip_dropout(PDARTS_CIFAR10, (0.1, 0.4, 0.7))
# DARTS first order (Liu et al., 2019, section 3.1): one stage, no warm-up, no dropout.
DARTS: Stages = (Stage(8, 8, 0.0, epochs=50, warmup_epochs=0),)
# SNAS (Xie et al., 2019, section 3.1): DARTS' network for 150 epochs.
SNAS: Stages = (Stage(8, 8, 0.0, epochs=150, warmup_epochs=0),)
# PC-DARTS (Xu et al., 2020, section 4.2): DARTS' network, alphas and betas frozen for 15 of 50 epochs.
PC_DARTS: Stages = (Stage(8, 8, 0.0, epochs=50, warmup_epochs=15),)
