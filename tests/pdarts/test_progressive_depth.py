import json
from pathlib import Path

import pytest

from pdarts_tune.pdarts.progressive_depth import (
    DARTS,
    PDARTS_CIFAR10,
    Stage,
    check_stages,
    cosine_rate,
    reduction_cells,
    search_work,
    with_budget,
    with_depths,
    with_operations,
    with_skip_dropout,
)

SCHEDULES = json.loads((Path(__file__).parents[1] / "golden" / "schedules.json").read_text())


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
        ((Stage(5, 1),), r"stages\[0\].operations: 1 leaves nothing to search"),
        ((Stage(5, 8), Stage(5, 5), Stage(5, 1)), r"stages\[2\].operations: 1 leaves nothing to search, it must be at least 2"),
        ((Stage(5, 8), Stage(5, 3), Stage(5, 4)), r"stages\[2\].operations: 4 is more than the 3"),
    ],
)
def test_stages_that_make_no_search_are_refused(stages, message):
    with pytest.raises(ValueError, match=message):
        check_stages(stages)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cells": 2}, "cells: 2 is wrong, it must be a whole number of at least 3"),
        ({"operations": 9}, "operations: 9 is wrong, it must be a whole number from 1 to 8"),
        ({"skip_dropout": 1.0}, r"skip_dropout: 1.0 is wrong, it must be a number in \[0, 1\)"),
        ({"epochs": 0}, "epochs: 0"),
        ({"warmup_epochs": 26}, "warmup_epochs: 26 is wrong, it must be a whole number from 0 to 25"),
        ({"dropout_decay": -1.0}, "dropout_decay: -1.0"),
    ],
)
def test_a_stage_out_of_range_is_refused_by_field(settings, message):
    with pytest.raises(ValueError, match=message):
        Stage(**({"cells": 5, "operations": 8} | settings))


@pytest.mark.parametrize("depth", [5, 11, 17])
def test_an_equal_budget_takes_as_long_as_the_plan_that_it_is_compared_with(depth):
    flat = with_depths(PDARTS_CIFAR10, (depth,) * 3)
    budgeted = with_budget(flat, PDARTS_CIFAR10)
    assert [(stage.cells, stage.operations, stage.skip_dropout) for stage in budgeted] == [
        (stage.cells, stage.operations, stage.skip_dropout) for stage in flat
    ]
    assert search_work(budgeted) == pytest.approx(search_work(PDARTS_CIFAR10), rel=0.03)
    for before, after in zip(flat, budgeted, strict=True):
        assert after.warmup_epochs / after.epochs == pytest.approx(0.4, abs=0.04)
        trained = before.dropout_decay * (before.epochs - before.warmup_epochs)
        assert after.dropout_decay * (after.epochs - after.warmup_epochs) == pytest.approx(trained, rel=0.1)


def test_a_budget_never_takes_the_last_epoch_that_trains_alphas():
    tiny = (Stage(5, 8, epochs=2, warmup_epochs=1),)
    (stage,) = with_budget(tiny, (Stage(3, 8, epochs=1, warmup_epochs=0),))
    assert (stage.epochs, stage.warmup_epochs) == (1, 0)


def test_operations_change_alone():
    assert with_operations(PDARTS_CIFAR10, (8, 5, 3)) == PDARTS_CIFAR10
    assert [stage.operations for stage in with_operations(PDARTS_CIFAR10, (8, 8, 8))] == [8, 8, 8]
    with pytest.raises(ValueError, match="2 given for 3 stages"):
        with_operations(PDARTS_CIFAR10, (8, 5))
