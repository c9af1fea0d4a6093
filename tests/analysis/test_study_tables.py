"""Variants are told apart by their configurations: what they differ in, whether they grow, drop, or have dropout."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from common.study_tables import differences, drops, grows, has_skip_dropout, read_configs
from pdarts_tune.config.methods import RandomSampling, SecondOrder
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError, to_dict
from pdarts_tune.pdarts.progressive_depth import DARTS, with_depths, with_operations, with_skip_dropout

BASE = SearchConfig()


@pytest.mark.parametrize(
    ("other", "names"),
    [
        (BASE, set()),
        (replace(BASE, seed=3, split_seed=4), set()),
        (replace(BASE, stages=with_skip_dropout(BASE.stages, (0.0, 0.0, 0.0))), {"skip_dropout"}),
        (replace(BASE, stages=with_depths(BASE.stages, (5, 5, 5)), max_skips=4), {"cells", "max_skips"}),
        (replace(BASE, method=SecondOrder()), {"method"}),
    ],
)
def test_differences_are_named_and_seeds_are_none(other, names):
    assert differences(other, BASE) == differences(BASE, other) == names


def test_growing_dropping_and_dropout_are_seen_in_the_stages_and_never_in_random_cells():
    drawn = replace(BASE, method=RandomSampling())
    reverse = replace(BASE, stages=with_depths(BASE.stages, (17, 11, 5)))
    whole = replace(BASE, stages=with_operations(BASE.stages, (8, 8, 8)))
    darts = replace(BASE, stages=DARTS)
    assert [grows(config) for config in (BASE, whole, reverse, darts, drawn)] == [True, True, False, False, False]
    assert [drops(config) for config in (BASE, whole, reverse, darts, drawn)] == [True, False, True, False, False]
    assert [has_skip_dropout(config) for config in (BASE, darts, drawn)] == [True, False, False]


def test_configurations_are_read_once_a_variant_in_the_studys_order_and_unknown_ones_refused():
    texts = [json.dumps(to_dict(config)) for config in (BASE, replace(BASE, seed=1), replace(BASE, max_skips=4))]
    trials = pd.DataFrame({"variant": ["b", "b", "a"], "config": texts})
    assert list(read_configs(trials).items()) == [("b", BASE), ("a", replace(BASE, max_skips=4))]
    with pytest.raises(ConfigError, match="unknown setting"):
        read_configs(pd.DataFrame({"variant": ["c"], "config": ['{"colour": 1}']}))
