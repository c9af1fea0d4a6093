"""The studies as data: names, what each variant changes, and that every size of them makes sense."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pdarts_tune.config.evaluation import RECIPES
from pdarts_tune.config.presets import PRESETS
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.data.datasets import DatasetInfo
from pdarts_tune.networks.cost import check_madds, network_cost, network_shape, predict_stage_bytes
from pdarts_tune.pdarts.genotype import Genotype
from pdarts_tune.pdarts.progressive_depth import search_work
from pdarts_tune.pdarts.published import PUBLISHED
from pdarts_tune.results.manifest import check_definition
from pdarts_tune.study.plan import Arguments, define, differences, make_plan
from studies import approximation, baselines, depth_gap, regularization, remedies, sizing, transfer

STUDIES = [module.STUDY for module in (depth_gap, approximation, regularization, transfer, baselines, remedies, sizing)]
IMAGENET = DatasetInfo(3, 224, 1000, 1_281_167, 50_000)


def steps(config):
    """Of a search, relative to others on as many images."""
    return sum(stage.epochs for stage in config.stages) / config.batch_size


def arms(study, preset="paper"):
    return {variant.name: variant for variant in make_plan(study, Arguments(preset)).variants}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_every_study_has_every_preset_and_no_two_variants_are_one(study, preset):
    plan = make_plan(study, Arguments(preset))
    assert len({variant.search for variant in plan.variants}) == len(plan.variants)
    assert len({trial.trial_id for trial in plan.searches}) == len(plan.searches)


@pytest.mark.parametrize("study", STUDIES[:3], ids=lambda study: study.name)
def test_a_variant_changes_one_thing(study):
    plan = make_plan(study, Arguments("paper"))
    assert plan.variants[0].search == plan.base
    for variant in plan.variants[1:]:
        changes = differences(variant.search, plan.base)
        allowed = 2 if variant.name.endswith(("_same_memory", "_all_operations")) else 1
        budget = [change for change in changes if change.startswith(("epochs", "stage warmup_epochs", "stage dropout_decay"))]
        assert len(changes) - len(budget) <= allowed, (variant.name, changes)
        assert bool(budget) == variant.name.endswith(("_equal_budget", "_same_memory"))


def test_depth_can_be_told_apart_from_budget_and_from_dropping():
    variants = {name: variant.search for name, variant in arms(depth_gap.STUDY).items()}

    def depths(name):
        return [stage.cells for stage in variants[name].stages]

    assert depths("middle") == depths("middle_equal_budget") == [11, 11, 11]
    assert depths("reversed") == [17, 11, 5]
    assert depths("shuffled") == [11, 17, 5]
    for name in ("shallow", "middle", "deep"):
        equal = search_work(variants[f"{name}_equal_budget"].stages)
        assert equal == pytest.approx(search_work(variants["progressive"].stages), rel=0.03)
    assert [stage.operations for stage in variants["deep_all_operations"].stages] == [8, 8, 8]


@pytest.mark.parametrize(("preset", "side", "channels"), [("paper", 32, 3), ("laptop", 8, 1)])
def test_equal_memory_is_equal_in_predicted_bytes(preset, side, channels):
    variants = {name: variant.search for name, variant in arms(approximation.STUDY, preset).items()}
    base, fitting = (
        max(predict_stage_bytes(variants[name], stage, side, 10, channels) for stage in variants[name].stages)
        for name in ("lowest_dropped", "nothing_dropped_same_memory")
    )
    assert variants["nothing_dropped"].batch_size == variants["lowest_dropped"].batch_size
    assert fitting == pytest.approx(base, rel=0.15)


def test_equal_memory_is_compared_at_about_equal_steps():
    for preset, apart in (("laptop", 0.15), ("cifar-small", 0.2), ("paper", 0.05)):  # as near as whole epochs allow
        variants = {name: variant.search for name, variant in arms(approximation.STUDY, preset).items()}
        base, fitting = variants["lowest_dropped"], variants["nothing_dropped_same_memory"]
        assert fitting.batch_size < 0.6 * base.batch_size
        assert steps(fitting) == pytest.approx(steps(base), rel=apart + 1e-9)
        warm_up, all_epochs = (
            (sum(stage.warmup_epochs for stage in config.stages), sum(stage.epochs for stage in config.stages))
            for config in (fitting, base)
        )
        assert warm_up[0] / warm_up[1] == pytest.approx(all_epochs[0] / all_epochs[1], abs=0.1)


def test_a_study_of_an_earlier_definition_of_a_variant_is_told_which_and_how_to_go_on():
    plan = make_plan(approximation.STUDY, Arguments("laptop"))
    before = define(plan)
    for stage in before["variants"]["nothing_dropped_same_memory"]["stages"]:
        stage |= {"epochs": 7, "warmup_epochs": 3, "dropout_decay": 0.75}  # the base's: about twice the steps
    rest = "lowest_dropped,random_dropped,nothing_dropped,keep_8_3_2,keep_5_5_3,random"
    says = rf"epochs was 7, is 4 \(nothing_dropped_same_memory\); .* go on there with .*: --variants {rest}$"
    with pytest.raises(ConfigError, match=says):
        check_definition(define(plan), json.dumps(before).encode(), "results/approximation")
    kept = check_definition(
        define(make_plan(approximation.STUDY, Arguments("laptop", variants=rest))), json.dumps(before).encode(), "there"
    )
    assert kept["variants"] == before["variants"]


def test_a_sweep_over_the_skip_limit_takes_no_further_searches():
    plan = make_plan(regularization.STUDY, Arguments("smoke", variants="dropout,no_dropout"))
    assert len(plan.searches) == 2
    assert plan.most_genotypes == 8
    assert arms(regularization.STUDY)["dropout"].limits == (0, 1, 2, 3, 4, 8)


def test_transfer_searches_nothing_and_trains_by_two_recipes_on_each_data_set():
    plan = make_plan(transfer.STUDY, Arguments("paper"))
    assert {variant.search.method.name for variant in plan.variants} == {"given", "random"}
    assert [(recipe.recipe, recipe.data) for recipe in plan.recipes] == [
        ("cifar", "cifar10"),
        ("cifar", "cifar100"),
        ("imagenet-mobile", "imagenet"),
        ("cifar-short", "cifar10"),
        ("cifar-short", "cifar100"),
        ("imagenet-mobile-short", "imagenet"),
    ]
    ids = [trial.trial_id for trial in plan.evaluations({"abc": "text"})]
    assert len(set(ids)) == 6
    assert ids[2].endswith("-imagenet-seed0")
    own = make_plan(transfer.STUDY, Arguments("paper", data="cifar10,parquet:/a,folder:/b"))
    assert [recipe.recipe for recipe in own.recipes[:3]] == ["cifar", "cifar", "imagenet-mobile"]
    assert [recipe.data for recipe in own.recipes[:3]] == ["cifar10", "parquet:/a", "folder:/b"]


def test_published_cells_are_evaluated_in_place_of_a_studys_searches():
    cell = PUBLISHED["DARTS_V1"].genotype
    plan = make_plan(depth_gap.STUDY, Arguments("smoke", seeds=3, genotypes="darts=DARTS_V1"))
    (trial,) = plan.searches
    assert Genotype.parse(trial.config.method.genotype) == cell
    assert trial.config.max_skips == cell.normal.skips == 3


@pytest.mark.parametrize("preset", PRESETS)
def test_sizing_trains_the_same_cells_by_the_recipe_and_in_a_quarter_of_its_steps(preset):
    plan = make_plan(sizing.STUDY, Arguments(preset))
    whole, quarter = plan.recipes
    assert whole == PRESETS[preset].evaluation
    steps = [(recipe.train_images or 1) * recipe.epochs for recipe in (whole, quarter)]
    assert steps[1] == max(steps[0] // 4, 1) if whole.epochs >= 4 else steps[1] < steps[0]
    assert replace(quarter, recipe=whole.recipe, train_images=whole.train_images, epochs=whole.epochs) == whole


@pytest.mark.parametrize("name", transfer.CELLS)
def test_the_published_cells_fit_the_mobile_setting(name):
    check_madds(PUBLISHED[name].genotype, RECIPES["imagenet-mobile"], IMAGENET, name)


def test_a_cell_over_the_mobile_limit_is_refused_with_the_sizes_of_both():
    cell, wide = PUBLISHED["PDARTS_C10"].genotype, replace(RECIPES["imagenet-mobile"], channels=52)
    madds = network_cost(cell, network_shape(cell, wide, IMAGENET)).madds
    with pytest.raises(ConfigError, match=rf"wide: {madds / 1e6:.0f}M multiply-adds at 52 channels, .* allows 600M; leave it out"):
        check_madds(cell, wide, IMAGENET, "wide")
    check_madds(cell, replace(wide, auto_width=True), IMAGENET, "wide")


def test_every_study_says_how_it_is_run():
    for path in (Path(__file__).parents[2] / "studies").glob("*.py"):
        assert f"python studies/{path.name}" in path.read_text().split('"""')[1], path


def test_other_stages_of_the_paper_s_size_are_p_darts_stages_alone_among_the_baselines():
    plan = make_plan(baselines.STUDY, Arguments("paper", set=["stages.0.skip_dropout=0.1"]))
    before = {variant.name: variant.search for variant in make_plan(baselines.STUDY, Arguments("paper")).variants}
    changed = [variant.name for variant in plan.variants if variant.search != before[variant.name]]
    assert changed == ["pdarts", "random"]


@pytest.mark.parametrize("changes", [["stages.2.epochs=30"], ["stages.epochs=20", "batch_size=64", "train_images=2400"]])
def test_the_baselines_of_the_paper_s_preset_are_no_miniatures_whatever_its_settings_are_changed_to(changes):
    def methods(preset, *changes):
        return {variant.name: variant.search for variant in make_plan(baselines.STUDY, Arguments(preset, set=changes)).variants}

    assert methods("paper", *changes)["pc_darts"].method.k == 4
    assert methods("paper", *changes)["darts_first"].stages == methods("paper")["darts_first"].stages
    assert methods("cifar-small", "stages.2.epochs=30")["pc_darts"].method.k == 2


def test_each_remedy_stands_alone_in_p_darts_stages_without_its_own():
    plan = make_plan(remedies.STUDY, Arguments("paper"))
    variants = {variant.name: variant.search for variant in plan.variants}
    none = variants["none"]
    assert [stage.skip_dropout for stage in none.stages] == [0.0, 0.0, 0.0]
    assert (none.max_skips, none.remedies) == (8, ())
    assert replace(variants["pdarts"], eigenvalue_every=0) == plan.base
    for name in remedies.ALONE:
        (change,) = differences(variants[name], none)
        assert change.startswith("remedies ")
    assert variants["independent_weights"].alpha_learning_rate == 3e-3
    for name in ("pdarts", "auxiliary_skip", "beta_decay"):
        assert replace(variants[f"{name}_S2"], space="full", stages=variants[name].stages) == variants[name]
