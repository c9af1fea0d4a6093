"""Recipes are the papers' settings under names and ids that last, and their learning rates follow the papers' schedules."""

import math
from dataclasses import fields, replace
from itertools import pairwise

import pytest

from pdarts_tune.config.evaluation import RECIPES, EvalConfig, find_recipe, learning_rate
from pdarts_tune.config.presets import PRESETS
from pdarts_tune.config.serialize import ConfigError


def test_recipes_are_the_settings_of_the_papers():
    cifar, mobile, smaller = (find_recipe(name) for name in ("cifar", "imagenet-mobile", "imagenet-mobile-256"))
    assert cifar == EvalConfig()
    assert replace(find_recipe("cifar-large"), recipe="cifar", channels=36) == cifar
    assert (mobile.cells, mobile.channels, mobile.image_size, mobile.epochs, mobile.batch_size) == (14, 48, 224, 250, 1024)
    assert (mobile.learning_rate, mobile.schedule, mobile.warmup_epochs, mobile.weight_decay) == (0.5, "linear", 5, 3e-5)
    assert (mobile.label_smoothing, mobile.auxiliary_weight, mobile.stem) == (0.1, 0.4, "imagenet")
    assert (smaller.batch_size, smaller.learning_rate) == (256, 0.1)


def test_every_recipe_has_its_own_name_and_id():
    assert all(name == recipe.recipe and recipe.recipe_id.startswith(f"{name}-") for name, recipe in RECIPES.items())
    assert len({recipe.recipe_id for recipe in RECIPES.values()}) == len(RECIPES)


def test_ids_of_results_already_written_hold():
    written = {
        "smoke": "smoke-4ea305b5",
        "laptop": "laptop-767df321",
        "cifar-small": "cifar-small-f338d688",
        "paper": "cifar-e76ad929",
    }
    assert {name: preset.evaluation.recipe_id for name, preset in PRESETS.items()} == written


def test_what_changes_results_changes_the_id_and_what_changes_speed_alone_does_not():
    base = EvalConfig()
    same = {"seed": 1, "split_seed": 1, "data": "digits", "channels_last": True, "compile": True, "skip_bad_images": True}
    same |= {"cell_evaluation": "plain", "graph": "off"}
    assert replace(base, **same).recipe_id == base.recipe_id
    others = {
        "recipe": "mine",
        "train_images": 10,
        "test_images": 10,
        "stem": "imagenet",
        "schedule": "linear",
        "precision": "bf16",
        "tf32": True,
        "auto_width": True,
        "sync_batch_norm": False,
        "image_size": 64,
        "downsample": 2,
        "warmup_epochs": 1,
        "validation_fraction": 0.5,
        "label_smoothing": 0.5,
    }
    for setting in fields(EvalConfig):
        if setting.name not in same:
            value = getattr(base, setting.name)
            halved = value // 2 if isinstance(value, int) else value / 2 if isinstance(value, float) else None
            changed = replace(base, **{setting.name: others.get(setting.name, halved)})
            assert changed.recipe_id != base.recipe_id, setting.name


def test_an_unknown_recipe_is_refused_with_those_that_are_known():
    with pytest.raises(
        ConfigError, match="recipe: 'cifra' is unknown, known are cifar, cifar-large, cifar-short, cifar-small, imagenet-mobile"
    ):
        find_recipe("cifra")


def test_the_cosine_falls_from_the_full_rate():
    rates = [learning_rate(EvalConfig(epochs=4), epoch) for epoch in range(4)]
    assert rates == pytest.approx([0.025 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)], rel=1e-12)


def test_the_line_rises_for_the_warm_up_then_falls_towards_zero():
    mobile = find_recipe("imagenet-mobile")
    rates = [learning_rate(mobile, epoch) for epoch in range(250)]
    assert rates[:6] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.5])
    assert rates[-1] == pytest.approx(0.5 / 245)
    assert [before - after for before, after in pairwise(rates[5:])] == pytest.approx([0.5 / 245] * 244)


def test_warm_up_comes_before_the_cosine_too():
    config = EvalConfig(epochs=6, warmup_epochs=2)
    rates = [learning_rate(config, epoch) for epoch in range(6)]
    assert rates[:3] == pytest.approx([0.0125, 0.025, 0.025])
    assert rates[3:] == pytest.approx([0.025 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in (1, 2, 3)])


@pytest.mark.parametrize(
    ("field", "value", "right"),
    [
        ("stem", "mnist", "'cifar' or 'imagenet'"),
        ("schedule", "step", "'cosine' or 'linear'"),
        ("precision", "fp16", "'fp32' or 'bf16'"),
        ("image_size", 0, "a whole number of at least 1 or None"),
        ("warmup_epochs", 600, r"less than epochs \(600\)"),
        ("label_smoothing", 1.0, r"a number in \[0, 1\)"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(field, value, right):
    with pytest.raises(ConfigError, match=rf"^{field}: {value!r} is wrong, it must be {right}$"):
        replace(EvalConfig(), **{field: value})
