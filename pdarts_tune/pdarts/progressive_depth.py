"""Idea 1 of P-DARTS, progressive depth: a search is a sequence of stages whose networks grow deeper (paper, section 3.2).

DARTS is the plan with one stage. A depth ablation is another tuple of stages; nothing else in the project knows about depth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pdarts_tune.pdarts.space import PRIMITIVES


@dataclass(frozen=True)
class Stage:
    """One stage of a search.

    Raises:
        ValueError: a field out of range; the message names the field and the range.
    """

    cells: int  # depth of the search network, at least 3: two of them are reduction cells
    operations: int  # candidate operations per edge that the stage starts with
    skip_dropout: float = 0.0  # initial rate of the dropout on skip-connects
    epochs: int = 25
    warmup_epochs: int = 10  # epochs at the start in which only weights train
    dropout_decay: float = 0.2  # per epoch, once alphas train; see regularization.skip_dropout
    # Whether dropout jumps back to its initial rate when alphas start to train, as in the paper, or goes on from where it was.
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
    """Raises ValueError unless the stages make a search: at least one, each with a choice, never growing back.

    With one operation an edge all edges are equally strong, so there is nothing to derive a cell by; where it is `none`, no cell.

    A first stage of fewer than all operations starts from ones that are drawn at random (`approximation.draw_operations`).
    """
    if not stages:
        raise ValueError("stages: a search needs at least one stage")
    for index, stage in enumerate(stages):
        if stage.operations < 2:
            raise ValueError(f"stages[{index}].operations: {stage.operations} leaves nothing to search, it must be at least 2")
    for index in range(1, len(stages)):
        before, here = stages[index - 1].operations, stages[index].operations
        if here > before:
            raise ValueError(
                f"stages[{index}].operations: {here} is more than the {before} of the stage before; "
                f"a stage can only keep or drop operations, so at most {before}"
            )


def reduction_cells(cells: int) -> tuple[int, int]:
    """The two positions of the reduction cells in a network of `cells` cells (the field's n // 3 and 2n // 3)."""
    return cells // 3, 2 * cells // 3


def cosine_rate(initial: float, epoch: int, epochs: int) -> float:
    """The learning rate of an epoch (counted from 0) that falls as a half cosine from `initial` to 0 over `epochs`."""
    return initial * (1 + math.cos(math.pi * epoch / epochs)) / 2


def with_depths(stages: Stages, depths: Sequence[int]) -> Stages:
    """The same stages at other depths; everything but `cells` is kept. Raises ValueError if the lengths differ."""
    if len(depths) != len(stages):
        raise ValueError(f"depths: {len(depths)} given for {len(stages)} stages")
    return tuple(replace(stage, cells=depth) for stage, depth in zip(stages, depths, strict=True))


def with_skip_dropout(stages: Stages, rates: Sequence[float]) -> Stages:
    """The same stages with other initial skip dropout rates. Raises ValueError if the lengths differ."""
    if len(rates) != len(stages):
        raise ValueError(f"rates: {len(rates)} given for {len(stages)} stages")
    return tuple(replace(stage, skip_dropout=rate) for stage, rate in zip(stages, rates, strict=True))


def with_operations(stages: Stages, operations: Sequence[int]) -> Stages:
    """The same stages with other numbers of operations per edge. Raises ValueError if the lengths differ."""
    if len(operations) != len(stages):
        raise ValueError(f"operations: {len(operations)} given for {len(stages)} stages")
    return tuple(replace(stage, operations=count) for stage, count in zip(stages, operations, strict=True))


# What a cell costs beside its candidate operations (preprocessing, sums, launches), in operations. Fitted to the predicted bytes of
# the paper's network with 3, 5 and 8 operations (within 4 %) and to the seconds of the laptop preset at three depths (within 7 %).
CELL_OVERHEAD = 2


def search_work(stages: Stages) -> float:
    """What a search costs in time, in a unit of its own: only ratios mean something.

    An epoch that trains alphas too takes twice as long as one that trains weights alone.
    """
    return sum((2 * stage.epochs - stage.warmup_epochs) * stage.cells * (stage.operations + CELL_OVERHEAD) for stage in stages)


def peak_work(stages: Stages) -> float:
    """What a search needs in memory for each image of a batch, in a unit of its own, in its largest stage.

    Each reduction cell halves what a cell keeps for backward: twice the channels, a quarter of the pixels.
    """

    def cells(stage: Stage) -> float:
        return sum(0.5 ** sum(index >= reduction for reduction in reduction_cells(stage.cells)) for index in range(stage.cells))

    return max(cells(stage) * (stage.operations + CELL_OVERHEAD) for stage in stages)


def with_budget(stages: Stages, like: Stages) -> Stages:
    """The same stages, their epochs scaled so that the search takes about as long as one in the stages `like`."""
    return with_epochs(stages, search_work(like) / search_work(stages))


def with_epochs(stages: Stages, factor: float) -> Stages:
    """The same stages with `factor` times the epochs, rounded.

    Warm-up scales along, and dropout decays as far in the new number of epochs as it did in the old.
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
