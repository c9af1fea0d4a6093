import json
from dataclasses import replace

import pytest

from pdarts_tune.config.evaluation import EvalConfig
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError, config_id, from_dict, to_dict
from pdarts_tune.pdarts.progressive_depth import DARTS, PDARTS_CIFAR10


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


def test_a_whole_number_is_a_number():
    assert from_dict(SearchConfig, {"learning_rate": 1}).learning_rate == 1.0


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
        ({"chanels": 16}, "chanels: unknown setting of SearchConfig, known are stages"),
        ({"stages": [{"cells": 5, "operations": 8, "depth": 5}]}, r"stages[0].depth: unknown setting of Stage"),
        ({"stages": [{"cells": 2, "operations": 8}]}, "stages[0]: cells: 2 is too few"),
        ({"stages": [{"operations": 8}]}, "stages[0]: "),
        ({"stages": [{"cells": 5, "operations": 8}, {"cells": 5, "operations": 9}]}, "stages[1]: operations: 9"),
        ({"stages": [{"cells": 5, "operations": 8}, {"cells": 5, "operations": 3}, {"cells": 5, "operations": 5}]}, "at most 3"),
        ({"stages": 5}, "stages: 5 is not a list"),
        ({"stages": [5]}, "stages[0]: 5 is not a table of settings"),
        ({"channels": "16"}, "channels: '16' is not of type int"),
        ({"channels": 16.0}, "channels: 16.0 is not of type int"),
        ({"channels": True}, "channels: True is not of type int"),
        ({"channels": 0}, "channels: 0 is wrong, it must be at least 1"),
        ({"alpha_betas": [0.5]}, "alpha_betas: 1 values, needs 2"),
        ({"learning_rate": float("nan")}, "learning_rate: nan is not a finite number"),
        ({"learning_rate": 0}, "learning_rate: 0.0 is wrong, it must be more than 0"),
        ({"method": {"name": "magic"}}, "method: 'magic' is unknown, it must be settings with a name, one of first_order, "),
        ({"method": "random"}, "method: 'random' is unknown, it must be settings with a name"),
        ({"max_skips": 9}, "max_skips: 9 is wrong, it must be between 0 and 8"),
        ({"train_images": 0}, "train_images: 0 is wrong"),
        ({"train_images": 1}, "train_images: 1 is wrong, it must be at least 2"),
        ({"test_images": 1}, "test_images: 1 is wrong, it must be at least 2"),
        ({"validation_fraction": 1.0}, "validation_fraction: 1.0 is wrong"),
    ],
)
def test_a_wrong_search_setting_is_named_in_one_line(values, message):
    with pytest.raises(ConfigError) as caught:
        from_dict(SearchConfig, values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [{"cells": 2}, {"epochs": 0}, {"drop_path": 1.0}, {"auxiliary_weight": -1}, {"cutout": -1}])
def test_a_wrong_evaluation_setting_is_named(values):
    (field,) = values
    with pytest.raises(ConfigError, match=f"^{field}: "):
        from_dict(EvalConfig, values)


def test_settings_that_joined_later_leave_ids_as_they_were_until_they_are_used():
    settings = to_dict(SearchConfig())
    assert config_id(SearchConfig()) == "b192a474a937"
    assert settings["dropping"] == "lowest"
    assert config_id(SearchConfig(dropping="random")) != config_id(SearchConfig())
    jumpless = tuple(replace(stage, dropout_restart=False) for stage in SearchConfig().stages)
    assert config_id(SearchConfig(stages=jumpless)) != config_id(SearchConfig())


def test_a_memory_limit_is_at_least_a_byte():
    with pytest.raises(ConfigError, match="memory_limit: 0 is wrong"):
        SearchConfig(memory_limit=0)
