import gzip
import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdarts_tune.pdarts.genotype import derive_cell, softmax
from pdarts_tune.pdarts.progressive_depth import PDARTS_CIFAR10, PDARTS_CIFAR10_COMMAND_LINE, PDARTS_CIFAR100, Stage
from pdarts_tune.pdarts.regularization import limit_skips, skip_dropout
from pdarts_tune.pdarts.space import EDGES
from probabilities import cells

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads(gzip.decompress((GOLDEN / "derivation.json.gz").read_bytes()))
RATES = json.loads((GOLDEN / "schedules.json").read_text())["skip_dropout_per_epoch"]


@pytest.mark.parametrize(
    ("plan", "rates"),
    [(PDARTS_CIFAR10, "0.0/0.4/0.7"), (PDARTS_CIFAR100, "0.1/0.2/0.3"), (PDARTS_CIFAR10_COMMAND_LINE, "0.1/0.4/0.7")],
)
def test_skip_dropout_follows_the_reference_schedule(plan, rates):
    for stage, reference in zip(plan, RATES[rates], strict=True):
        assert [skip_dropout(stage, epoch) for epoch in range(25)] == pytest.approx(reference, rel=1e-9, abs=1e-12)


def test_skip_dropout_jumps_back_when_the_alphas_start_to_train():
    stage = PDARTS_CIFAR10[2]
    assert skip_dropout(stage, 9) == pytest.approx(0.6 * 0.7)
    assert skip_dropout(stage, 10) == 0.7


@given(
    p=st.floats(0, 1, exclude_max=True),
    epochs=st.integers(1, 60),
    warmup=st.integers(0, 60),
    decay=st.floats(0, 5),
    epoch=st.integers(0, 59),
)
def test_skip_dropout_stays_between_zero_and_the_initial_rate(p, epochs, warmup, decay, epoch):
    stage = Stage(5, 8, p, epochs, min(warmup, epochs), decay)
    assert 0.0 <= skip_dropout(stage, min(epoch, epochs - 1)) <= p


def test_an_epoch_that_the_stage_does_not_have_is_refused():
    for epoch in (-1, 25):
        with pytest.raises(ValueError, match=f"epoch: {epoch}"):
            skip_dropout(PDARTS_CIFAR10[0], epoch)


def test_every_reference_case_refines_to_the_same_cell_for_every_limit():
    limits = 0
    for case in CASES:
        probs = tuple(softmax(alphas) for alphas in case["stages"][2]["alphas"]["normal"])
        unrefined = derive_cell(probs)
        for max_skips in range(9):
            expected = case["normal_with_at_most"].get(str(max_skips))
            cell = limit_skips(probs, max_skips)
            if expected is None:
                assert cell == unrefined
            else:
                limits += 1
                assert [list(edge) for edge in cell.edges] == expected, (case["id"], max_skips)
    assert limits > 60


@given(probs=cells(), max_skips=st.integers(0, 8))
def test_refinement_ends_within_the_limit_with_a_possible_cell(probs, max_skips):
    cell = limit_skips(probs, max_skips)
    assert cell.skips <= max_skips
    for node in range(4):
        (first, source), (second, other) = cell.edges[2 * node : 2 * node + 2]
        assert source < other
        assert "none" not in (first, second)
        assert first in probs[EDGES.index((source, node))]
        assert second in probs[EDGES.index((other, node))]


@given(probs=cells())
def test_a_limit_that_is_not_reached_changes_nothing(probs):
    cell = derive_cell(probs)
    assert limit_skips(probs, cell.skips) == cell
    assert limit_skips(probs, 8) == cell


def test_refinement_ends_where_every_skip_has_probability_one():
    edge = {"none": 0.0, "skip_connect": 1.0, "sep_conv_3x3": 0.0}
    cell = limit_skips((edge,) * 14, 0)
    assert cell.skips == 0
    assert {operation for operation, _ in cell.edges} == {"sep_conv_3x3"}


def test_a_limit_that_no_cell_can_meet_is_refused():
    with pytest.raises(ValueError, match="max_skips: 1 cannot be reached, node 0"):
        limit_skips(({"none": 0.5, "skip_connect": 0.5},) * 14, 1)
    with pytest.raises(ValueError, match="max_skips: -1"):
        limit_skips(({"skip_connect": 1.0},) * 14, -1)


def test_the_dropout_rate_is_a_field_of_its_own():
    assert skip_dropout(replace(PDARTS_CIFAR10[2], dropout_decay=0.0), 24) == 0.7


def test_without_the_jump_dropout_goes_on_from_where_it_was():
    stage = replace(PDARTS_CIFAR10[2], dropout_restart=False)
    rates = [skip_dropout(stage, epoch) for epoch in range(25)]
    assert rates[:10] == [skip_dropout(PDARTS_CIFAR10[2], epoch) for epoch in range(10)]
    assert rates[10] == pytest.approx(0.7 * 14 / 25)
    assert rates[11] / rates[10] == pytest.approx(math.exp(-0.2))
    assert all(later < earlier for earlier, later in pairwise(rates))


def test_without_warm_up_there_is_no_jump_to_leave_out():
    stage = Stage(5, 8, 0.4, epochs=10, warmup_epochs=0, dropout_restart=False)
    assert skip_dropout(stage, 0) == 0.4
