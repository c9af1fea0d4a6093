"""Settings are checked whenever they are made, read back from their dicts, and named by ids that last."""

import dataclasses
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from pdarts_tune.config.evaluation import EvalConfig
from pdarts_tune.config.execution import Execution
from pdarts_tune.config.methods import PartialChannels, Snas
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError, config_id, from_dict, to_dict
from pdarts_tune.pdarts.progressive_depth import DARTS, PDARTS_CIFAR10, Stage
from pdarts_tune.results.tables import read_table

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def test_the_defaults_are_the_papers_search():
    config = SearchConfig()
    assert config.stages == PDARTS_CIFAR10
    assert (config.channels, config.batch_size, config.max_skips) == (16, 96, 2)
    assert (config.learning_rate, config.weight_decay, config.alpha_learning_rate, config.alpha_weight_decay) == (
        0.025,
        3e-4,
        6e-4,
        1e-3,
    )
    assert (config.alpha_betas, config.gradient_clip, config.alpha_init_scale) == ((0.5, 0.999), 5.0, 1e-3)


def test_a_config_survives_json():
    config = SearchConfig(stages=DARTS, data="digits", train_images=100, alpha_betas=(0.9, 0.99))
    assert from_dict(SearchConfig, json.loads(json.dumps(to_dict(config)))) == config
    assert from_dict(EvalConfig, to_dict(EvalConfig())) == EvalConfig()


def test_a_whole_number_is_a_number_and_the_same_configuration():
    assert from_dict(SearchConfig, {"learning_rate": 1}) == SearchConfig(learning_rate=1.0)
    stage = {"cells": 5, "operations": 8, "skip_dropout": 0}
    for config in (
        SearchConfig(learning_rate=1, stages=(Stage(**stage),)),
        from_dict(SearchConfig, {"learning_rate": 1, "stages": [stage]}),
    ):
        assert config_id(config) == config_id(SearchConfig(learning_rate=1.0, stages=(Stage(5, 8, 0.0),)))


def test_the_id_changes_with_any_field_and_with_nothing_else():
    config = SearchConfig()
    assert config_id(config) == config_id(SearchConfig())
    changed = [replace(config, seed=1), replace(config, stages=DARTS), replace(config, max_skips=3)]
    assert len({config_id(config), *map(config_id, changed)}) == 4


def test_a_recipe_is_named_apart_from_data_and_seeds():
    recipe = EvalConfig()
    assert replace(recipe, seed=5, split_seed=2, data="digits").recipe_id == recipe.recipe_id
    assert replace(recipe, epochs=100).recipe_id != recipe.recipe_id
    assert recipe.recipe_id.startswith("cifar-")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"chanels": 16}, "chanels: unknown setting of SearchConfig, known are stages, method, data, "),
        ({"stages": [{"cells": 5, "operations": 8, "depth": 5}]}, "stages[0].depth: unknown setting of Stage, known are cells, "),
        (
            {"stages": [{"cells": 5, "operations": 8}, {"cells": 2, "operations": 8}]},
            "stages[1].cells: 2 is wrong, it must be a whole",
        ),
        ({"stages": [{"cells": 5.0, "operations": 8}]}, "stages[0].cells: 5.0 is wrong, it must be a whole number of at least 3"),
        ({"stages": [{"operations": 8}]}, "stages[0].cells: is missing"),
        ({"stages": [{"cells": 5, "operations": 8}, {"cells": 5, "operations": 9}]}, "stages[1].operations: 9 is wrong"),
        ({"stages": [{"cells": 5, "operations": 8}, {"cells": 5, "operations": 3}, {"cells": 5, "operations": 5}]}, "at most 3"),
        ({"stages": 5}, "stages: 5 is wrong, it must be a list"),
        ({"stages": [5]}, "stages[0]: 5 is wrong, it must be settings of Stage"),
        ({"channels": "16"}, "channels: '16' is wrong, it must be a whole number of at least 1"),
        ({"channels": True}, "channels: True is wrong, it must be a whole number of at least 1"),
        ({"channels": 0}, "channels: 0 is wrong, it must be a whole number of at least 1"),
        ({"alpha_betas": [0.5]}, "alpha_betas[1]: is missing"),
        ({"alpha_betas": [2, 0.5]}, "alpha_betas[0]: 2 is wrong, it must be a number in [0, 1)"),
        ({"learning_rate": float("nan")}, "learning_rate: nan is wrong, it must be a finite number"),
        (
            {"method": {"name": "magic"}},
            "method: {'name': 'magic'} is wrong, it must be settings with a name, one of first_order, ",
        ),
        ({"method": "random"}, "method: 'random' is wrong, it must be settings with a name, one of first_order, second_order, "),
        ({"dropping": "randm"}, "dropping: 'randm' is wrong, it must be 'lowest' or 'random'"),
        ({"data": ""}, "data: '' is wrong, it must be a text, not empty"),
    ],
)
def test_a_wrong_search_setting_is_named_in_one_line(values, message):
    with pytest.raises(ConfigError) as caught:
        from_dict(SearchConfig, values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_that_are_no_settings_are_refused():
    with pytest.raises(ConfigError, match=r"^SearchConfig: 5 is wrong, it must be settings of SearchConfig$"):
        from_dict(SearchConfig, 5)


@pytest.mark.parametrize(
    "config", [SearchConfig(), EvalConfig(), *SearchConfig().stages[:1], Snas(), PartialChannels(), Execution()]
)
def test_every_field_has_a_type_and_a_range_also_in_replace(config):
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        wrong = [object(), b"x", [value]]  # of no setting's type
        if not isinstance(value, str):
            wrong.append("x")
        if not isinstance(value, bool):
            wrong.append(True)
        if isinstance(value, int | float) and not isinstance(value, bool):
            wrong += [-1, math.nan, math.inf]
        if isinstance(value, int):
            wrong += [1.5, 4.0]
        for other in wrong:
            with pytest.raises(ValueError, match=rf"^{field.name}: ") as caught:
                dataclasses.replace(config, **{field.name: other})
            assert "\n" not in str(caught.value)
            assert isinstance(config, Stage) or isinstance(caught.value, ConfigError)


@pytest.mark.parametrize(
    "wrong",
    [
        {"momentum": 7},
        {"alpha_betas": (2.0, 9.0)},
        {"alpha_betas": (0.5, 0.9, 0.9)},
        {"channels": 0},
        {"learning_rate": 0.0},
        {"max_skips": 9},
        {"train_images": 1},
        {"test_images": 1},
        {"validation_fraction": 1.0},
        {"memory_limit": 0},
        {"image_size": 0},
        {"diagnostics_every": 0},
        {"early_stop_ratio": 1.0},
        {"stages": list(SearchConfig().stages)},
        {"stages": (5,)},
    ],
)
def test_a_value_out_of_range_is_refused_in_python(wrong):
    (field,) = wrong
    with pytest.raises(ConfigError, match=rf"^{field}(\[\d\])?: .* is wrong, "):
        dataclasses.replace(SearchConfig(), **wrong)


def test_settings_that_joined_later_leave_ids_as_they_were_until_they_are_used():
    settings = to_dict(SearchConfig())
    assert config_id(SearchConfig()) == "b192a474a937"
    assert settings["dropping"] == "lowest"
    assert config_id(SearchConfig(dropping="random")) != config_id(SearchConfig())
    jumpless = tuple(replace(stage, dropout_restart=False) for stage in SearchConfig().stages)
    assert config_id(SearchConfig(stages=jumpless)) != config_id(SearchConfig())


def test_ids_of_published_results_hold():
    """The configuration in each row of docs/results still has the id that stands beside it."""
    for study in ("approximation", "depth_gap", "regularization"):
        trials = read_table(RESULTS / study, "trials")
        assert len(trials) > 10
        assert [config_id(from_dict(SearchConfig, json.loads(text))) for text in trials["config"]] == list(trials["config_id"])
        evaluations = read_table(RESULTS / study, "evaluations")
        recipes = [from_dict(EvalConfig, json.loads(text)) for text in evaluations["config"]]
        assert [recipe.recipe_id for recipe in recipes] == list(evaluations["recipe_id"])
