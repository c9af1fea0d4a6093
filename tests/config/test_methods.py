import json
from dataclasses import replace

import pytest

from pdarts_tune.config.methods import (
    FirstOrder,
    PartialChannels,
    RandomSampling,
    RandomSearch,
    SecondOrder,
    Snas,
    equal_candidates,
    plan_rounds,
)
from pdarts_tune.config.presets import PRESETS
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError, config_id, from_dict, to_dict
from pdarts_tune.pdarts.progressive_depth import DARTS, Stage, search_work

ONE_STAGE = (Stage(8, 8, epochs=3, warmup_epochs=3),)
METHODS = [
    FirstOrder(),
    SecondOrder(finite_difference=0.1),
    Snas(penalty="mild"),
    PartialChannels(k=2),
    RandomSearch(3),
    RandomSampling(),
]


def config_of(method):
    return SearchConfig(method=method, stages=ONE_STAGE if isinstance(method, RandomSearch) else DARTS)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_method_survives_json_with_its_name(method):
    config = config_of(method)
    plain = json.loads(json.dumps(to_dict(config)))
    assert plain["method"]["name"] == method.name
    assert from_dict(SearchConfig, plain) == config


def test_names_and_settings_tell_configurations_apart():
    assert len({method.name for method in METHODS}) == len(METHODS)
    ids = {config_id(config_of(method)) for method in [*METHODS, Snas(), SecondOrder(), PartialChannels()]}
    assert len(ids) == len(METHODS) + 3


def test_alternating_methods_run_in_three_stages_as_well_as_in_one():
    for method in (FirstOrder(), SecondOrder(), Snas(), PartialChannels(), RandomSampling()):
        assert len(replace(SearchConfig(), method=method).stages) == 3
        assert len(SearchConfig(method=method, stages=DARTS).stages) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "first_order", "k": 4}, "method.k: unknown setting of FirstOrder, known are name"),
        (
            {"name": "snas", "penalty": "harsh"},
            "method.penalty: 'harsh' is wrong, it must be 'none', 'mild', 'moderate' or 'aggressive'",
        ),
        ({"name": "snas", "temperature": -1.0}, "method.temperature: -1.0 is wrong, it must be a number of more than 0"),
        ({"name": "snas", "final_temperature": 0.0}, "method.final_temperature: 0.0 is wrong, it must be a number of more than 0"),
        (
            {"name": "snas", "temperature": 0.5, "final_temperature": 1.0},
            "method.final_temperature: 1.0 is wrong, it must be at most temperature (0.5)",
        ),
        ({"name": "partial_channels", "k": 3}, "method.k: 3 does not divide the 16 channels; take a divisor"),
        ({"name": "partial_channels", "k": 0}, "method.k: 0 is wrong, it must be a whole number of at least 1"),
        ({"name": "partial_channels", "k": 2.0}, "method.k: 2.0 is wrong, it must be a whole number of at least 1"),
        ({"name": "second_order", "finite_difference": 0}, "method.finite_difference: 0 is wrong, it must be a number of more"),
        ({"name": "random_search"}, "method random_search cannot use 3 stages, its candidates train once, at one depth"),
        ({"name": "random_search", "candidates": 1}, "method.candidates: 1 is wrong, it must be a whole number of at least 2"),
        ({"name": 5}, "method: {'name': 5} is wrong, it must be settings with a name"),
        ({}, "method: {} is wrong, it must be settings with a name, one of first_order, second_order"),
        (None, "method: None is wrong, it must be settings with a name"),
    ],
)
def test_a_wrong_method_is_named_in_one_line(values, message):
    with pytest.raises(ConfigError) as caught:
        from_dict(SearchConfig, {"method": values})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "stage", "message"),
    [
        (FirstOrder(), Stage(8, 8, epochs=5, warmup_epochs=5), "stages[0]: method first_order cannot use it, all its 5 epochs are"),
        (Snas(), Stage(8, 8, epochs=5, warmup_epochs=5), "its alphas would stay as drawn"),
        (RandomSearch(), Stage(8, 8, epochs=5, warmup_epochs=1), "candidates have no alphas to train after 1 epochs"),
        (RandomSearch(), Stage(8, 8, 0.3, epochs=5, warmup_epochs=5), "skip_dropout 0.3 would handicap candidates"),
    ],
)
def test_a_stage_plan_that_a_method_cannot_use_is_refused_with_the_reason(method, stage, message):
    with pytest.raises(ConfigError) as caught:
        SearchConfig(method=method, stages=(stage,))
    assert message in str(caught.value)


def test_a_method_by_its_bare_name_is_refused_in_python_too():
    with pytest.raises(ConfigError, match=r"^method: 'random' is wrong, it must be settings with a name"):
        SearchConfig(method="random")


@pytest.mark.parametrize("preset", ["smoke", "laptop", "cifar-small", "paper"])
def test_random_search_gets_as_many_candidates_as_the_time_of_the_other_search_allows(preset):
    like = PRESETS[preset].search.stages
    stage = Stage(5, 8, epochs=1, warmup_epochs=1)
    candidates = equal_candidates(stage, like)
    config = SearchConfig(method=RandomSearch(candidates), stages=(stage,))
    spent, budget = search_work(plan_rounds(config.method, config.stages)), search_work(like)
    assert spent <= budget < spent + search_work((replace(stage, operations=1),))


def test_a_short_training_that_takes_the_whole_budget_is_refused():
    with pytest.raises(ValueError, match="stage: 300 epochs of 8 cells a candidate leave no budget for two of them"):
        equal_candidates(Stage(8, 8, epochs=300, warmup_epochs=300), (Stage(4, 8, epochs=10, warmup_epochs=0),))
