import json
from pathlib import Path

import pytest

from pdarts_tune.stages import (
    DARTS,
    PDARTS_CIFAR10,
    Stage,
    check_stages,
    cosine_rate,
    reduction_cells,
    with_depths,
    with_skip_dropout,
)

SCHEDULES = json.loads((Path(__file__).parent / "golden" / "schedules.json").read_text())


def test_the_paper_plan_grows_5_11_17_cells_and_keeps_8_5_3_operations():
    assert [stage.cells for stage in PDARTS_CIFAR10] == SCHEDULES["stage_depths"]
    assert [stage.operations for stage in PDARTS_CIFAR10[1:]] == SCHEDULES["num_to_keep"][:2]
    assert all(stage.epochs == SCHEDULES["epochs"] for stage in PDARTS_CIFAR10)
    assert all(stage.warmup_epochs == SCHEDULES["eps_no_archs"] for stage in PDARTS_CIFAR10)
    check_stages(PDARTS_CIFAR10)


def test_the_learning_rate_follows_the_reference_schedule():
    rates = [cosine_rate(0.025, epoch, 25) for epoch in range(25)]
    assert rates == pytest.approx(SCHEDULES["lr_modern_order_step_at_epoch_end"], rel=1e-9)


def test_darts_is_a_plan_of_one_stage():
    check_stages(DARTS)
    assert [(stage.cells, stage.epochs, stage.warmup_epochs) for stage in DARTS] == [(8, 50, 0)]


def test_reductions_stand_at_one_and_two_thirds():
    assert [reduction_cells(cells) for cells in (3, 5, 8, 20)] == [(1, 2), (1, 3), (2, 5), (6, 13)]


def test_depths_and_rates_change_alone():
    reversed_plan = with_depths(PDARTS_CIFAR10, (17, 11, 5))
    assert with_depths(reversed_plan, (5, 11, 17)) == PDARTS_CIFAR10
    assert with_skip_dropout(reversed_plan, (0.1, 0.2, 0.3))[0] == Stage(17, 8, 0.1)
    with pytest.raises(ValueError, match="2 given for 3 stages"):
        with_depths(PDARTS_CIFAR10, (5, 11))
    with pytest.raises(ValueError, match="4 given for 3 stages"):
        with_skip_dropout(PDARTS_CIFAR10, (0.0,) * 4)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((), "at least one stage"),
        ((Stage(5, 5),), "starts from all 8 operations, not 5"),
        ((Stage(5, 8), Stage(5, 3), Stage(5, 4)), r"stages\[2\].operations: 4 is more than the 3"),
    ],
)
def test_stages_that_make_no_search_are_refused(stages, message):
    with pytest.raises(ValueError, match=message):
        check_stages(stages)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cells": 2}, "cells: 2 is too few"),
        ({"operations": 9}, "operations: 9"),
        ({"skip_dropout": 1.0}, "skip_dropout: 1.0"),
        ({"epochs": 0}, "epochs: 0"),
        ({"warmup_epochs": 26}, "warmup_epochs: 26"),
        ({"dropout_decay": -1.0}, "dropout_decay: -1.0"),
    ],
)
def test_a_stage_out_of_range_is_refused_by_field(settings, message):
    with pytest.raises(ValueError, match=message):
        Stage(**({"cells": 5, "operations": 8} | settings))
