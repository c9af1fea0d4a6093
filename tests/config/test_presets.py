"""The presets are what the authors ran, and every method stands in each of them."""

import importlib.util
from dataclasses import replace
from pathlib import Path

from pdarts_tune.config.methods import PartialChannels, Snas
from pdarts_tune.config.presets import PRESETS, PUBLISHED_SEARCHES
from pdarts_tune.study.plan import Arguments, make_plan, stage_columns


def load_study():
    path = Path(__file__).parents[2] / "studies" / "baselines.py"
    spec = importlib.util.spec_from_file_location("baselines", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def paper_arms(**options):
    plan = make_plan(load_study().STUDY, Arguments("paper", **options))
    return {variant.name: variant.search for variant in plan.variants}


def test_the_paper_preset_is_what_the_authors_ran():
    """The numbers of the resolved plan, against those in the papers that `config/presets.py` names."""
    arms = paper_arms()
    assert arms == PUBLISHED_SEARCHES
    for name, method, cells, epochs, warmup, batch, rate, alpha_rate in (
        ("pdarts", "first_order", "5-11-17", "25-25-25", [10, 10, 10], 96, 0.025, 6e-4),
        ("darts_first", "first_order", "8", "50", [0], 64, 0.025, 3e-4),
        ("darts_second", "second_order", "8", "50", [0], 64, 0.025, 3e-4),
        ("snas_mild", "snas", "8", "150", [0], 64, 0.025, 3e-4),
        ("snas_moderate", "snas", "8", "150", [0], 64, 0.025, 3e-4),
        ("snas_aggressive", "snas", "8", "150", [0], 64, 0.025, 3e-4),
        ("pc_darts", "partial_channels", "8", "50", [15], 256, 0.1, 6e-4),
        ("random_search", "random_search", "8", "100", [100], 64, 0.025, 3e-4),
    ):
        arm, columns = arms[name], stage_columns(arms[name])
        assert (arm.method.name, columns["depths"], columns["epochs"]) == (method, cells, epochs), name
        assert [stage.warmup_epochs for stage in arm.stages] == warmup, name
        assert (arm.batch_size, arm.learning_rate, arm.alpha_learning_rate) == (batch, rate, alpha_rate), name
        assert (arm.channels, arm.momentum, arm.weight_decay, arm.data) == (16, 0.9, 3e-4, "cifar10"), name
    for name in ("mild", "moderate", "aggressive"):
        assert arms[f"snas_{name}"].method == Snas(1.0, 0.03, name)
    assert arms["pc_darts"].method == PartialChannels(k=4, edge_normalization=True)
    assert arms["random_search"].method.candidates == 24
    assert arms["darts_second"].method.finite_difference == 0.01


def test_what_the_command_line_changes_leaves_the_authors_settings_as_they_are():
    arms = paper_arms(data="cifar100", memory_limit=10**10, image_size=32, skip_bad_images=True)
    for name, published in PUBLISHED_SEARCHES.items():
        assert arms[name] == replace(published, data="cifar100", memory_limit=10**10, image_size=32, skip_bad_images=True)


def test_the_smaller_presets_have_every_method_once():
    study = load_study()
    for preset in ("smoke", "laptop"):
        arms = {variant.name: variant.search for variant in study.variants(PRESETS[preset].search)}
        assert list(arms) == list(PUBLISHED_SEARCHES)
        assert [arm.method.name for arm in arms.values()] == [arm.method.name for arm in PUBLISHED_SEARCHES.values()]
        assert all(arm.data == "digits" for arm in arms.values())
