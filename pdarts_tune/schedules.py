"""Schedules of P-DARTS as points of a search space with conditional dimensions: 2, 3 or 4 stages, each with its depth, the
operations dropped before it and its dropout, and the limit on skip-connects.

The space is a function that asks a trial for one value after the other (Optuna's define-by-run), so that a third stage's depth
exists only where there is a third stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from pdarts_tune.config import SearchConfig
from pdarts_tune.stages import Stage, Stages

FEWEST_STAGES, MOST_STAGES = 2, 4
FEWEST_OPERATIONS = 2  # of one there is nothing left to choose
MOST_DROPPED = 5  # operations between two stages
MOST_DROPOUT = 0.8
MOST_SKIPS = 4

Point = Mapping[str, int | float]


class Suggester(Protocol):
    """What is asked for values: an `optuna.Trial`, or anything like it."""

    def suggest_int(self, name: str, low: int, high: int) -> int: ...

    def suggest_float(self, name: str, low: float, high: float) -> float: ...


@dataclass(frozen=True)
class DepthRange:
    """Cells that a stage's network may have."""

    fewest: int
    most: int


def depth_range(stages: Stages) -> DepthRange:
    """From the shallowest of the stages to a cell more than the deepest."""
    depths = [stage.cells for stage in stages]
    return DepthRange(min(depths), max(depths) + 1)


def suggest_schedule(trial: Suggester, base: SearchConfig) -> SearchConfig:
    """A configuration that differs from the base in its schedule alone. A stage has the epochs of the base's at its place, stages
    beyond the base's have those of its last."""
    depths = depth_range(base.stages)
    stages: list[Stage] = []
    operations = base.stages[0].operations
    for index in range(trial.suggest_int("stages", FEWEST_STAGES, MOST_STAGES)):
        number = index + 1
        if index:
            operations = max(FEWEST_OPERATIONS, operations - trial.suggest_int(f"dropped_{number}", 0, MOST_DROPPED))
        stages.append(
            replace(
                base.stages[min(index, len(base.stages) - 1)],
                cells=trial.suggest_int(f"depth_{number}", depths.fewest, depths.most),
                operations=operations,
                skip_dropout=round(trial.suggest_float(f"skip_dropout_{number}", 0.0, MOST_DROPOUT), 2),
            )
        )
    return replace(base, stages=tuple(stages), max_skips=trial.suggest_int("max_skips", 0, MOST_SKIPS))


def point_of(config: SearchConfig) -> dict[str, int | float]:
    """The point at which `suggest_schedule` gives this configuration: what the search is seeded with."""
    point: dict[str, int | float] = {"stages": len(config.stages), "max_skips": config.max_skips}
    for index, stage in enumerate(config.stages):
        point |= {f"depth_{index + 1}": stage.cells, f"skip_dropout_{index + 1}": stage.skip_dropout}
        if index:
            point[f"dropped_{index + 1}"] = config.stages[index - 1].operations - stage.operations
    return point
