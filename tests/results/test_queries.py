"""A results folder answers which search was best, and with what alphas."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.results.cell_figures import draw_alphas
from pdarts_tune.results.queries import alphas, best
from pdarts_tune.results.tables import read_table
from pdarts_tune.study.plan import Arguments, Study, Variant, define, make_plan
from synthetic import make_planned

DEPTH_GAP = Path(__file__).parents[2] / "docs" / "results" / "depth_gap"


@pytest.mark.parametrize(("by", "lowest"), [("error_percent", True), ("last_validation_accuracy", False), ("params", True)])
def test_the_best_search_is_that_of_the_least_error_or_the_highest_accuracy(by, lowest):
    found = best(DEPTH_GAP, by)
    means = read_table(DEPTH_GAP, "evaluations").groupby("genotype_id")[by].mean()
    assert found.figures[by] == pytest.approx(means.min() if lowest else means.max())
    assert means[found.genotype.genotype_id] == found.figures[by]
    derived = read_table(DEPTH_GAP, "genotypes").query("stage == 3 or stage == 0").set_index(["trial_id", "max_skips"])
    assert derived["genotype_id"][found.trial["trial_id"], found.trial["max_skips"]] == found.genotype.genotype_id
    assert found.figures["evaluations"] == 1


@pytest.fixture
def two_recipes(tmp_path):
    study = Study(
        "example",
        "?",
        lambda base: [Variant("a", base), Variant("b", replace(base, channels=8))],
        evaluations=lambda base, _: [base, replace(base, recipe="longer", epochs=9)],
    )
    plan = make_plan(study, Arguments("smoke", seeds=2))
    make_planned(tmp_path / "example", plan)
    (tmp_path / "example" / "study.json").write_text(json.dumps(define(plan)))
    return tmp_path / "example", plan


def test_of_several_recipes_the_first_of_the_study_counts_or_the_one_that_is_named(two_recipes):
    folder, plan = two_recipes
    assert best(folder).figures["recipe_id"] == plan.recipes[0].recipe_id
    assert best(folder, recipe="longer").figures["recipe_id"] == plan.recipes[1].recipe_id
    (folder / "study.json").unlink()
    with pytest.raises(ConfigError, match=r"recipe: None does not name one kind of .*, there are longer-.* on digits"):
        best(folder)


def test_what_is_not_there_is_said_with_what_is(two_recipes):
    folder, _ = two_recipes
    with pytest.raises(ConfigError, match="by: 'colour' is no numeric column of evaluations, these are epochs, accuracy"):
        best(folder, "colour")
    with pytest.raises(ConfigError, match="recipe: 'shorter' is no recipe of evaluations of example, which are: longer-"):
        best(folder, recipe="shorter")
    with pytest.raises(ConfigError, match="no alphas of 'deep', there are those of deep-seed0, deep-seed1"):
        alphas(DEPTH_GAP, "deep")


def test_the_alphas_of_one_search_can_be_drawn():
    rows = alphas(DEPTH_GAP, "deep-seed1")
    assert set(rows["trial_id"]) == {"deep-seed1"}
    assert len(draw_alphas(rows).axes) == 7  # two cells in three stages, and the scale
