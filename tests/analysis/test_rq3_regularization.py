"""RQ3's report on synthetic studies: effects of the 2 x 2 table are found where planted and nowhere else."""

import re

import numpy as np
import pytest

from analysis import rq3_regularization as rq3
from common.section import to_text
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.results.tables import read_rows, read_table, write_rows
from synthetic import START, make_evaluations, make_study
from synthetic_limits import make_limits_study

NULL = {("with", 8): 0.97, ("with", 2): 0.97, ("without", 8): 0.97, ("without", 2): 0.97, ("drawn", 2): 0.97}


def effects(section):
    return section.tables["effects"].set_index("effect")


def test_planted_dropout_and_refinement_are_found_and_no_interaction(tmp_path):
    planted = {("with", 8): 0.96, ("with", 2): 0.97, ("without", 8): 0.94, ("without", 2): 0.95, ("drawn", 2): 0.97}
    make_limits_study(tmp_path, 8, planted)
    section = rq3.build(tmp_path)
    found = effects(section)
    assert found["difference"].to_dict() == pytest.approx({"dropout": -2.0, "refinement": -1.0, "interaction": 0.0}, abs=0.3)
    assert dict(found["claimed"]) == {"dropout": True, "refinement": True, "interaction": False}
    assert section.conclusion[0].startswith("Shown in evaluation error: dropout −")
    assert "refinement to 2 skip-connects −" in section.conclusion[0]
    assert section.conclusion[1].startswith("Not shown for their interaction with n = 8: a true difference of ")
    table = section.tables["two_by_two"].set_index("search")
    assert table.loc["without dropout", "as_derived_percent"] == pytest.approx(6.0, abs=0.3)
    assert table.loc["with dropout", "at_most_2_skips_percent"] == pytest.approx(3.0, abs=0.3)


def test_the_variant_without_dropout_is_tested_among_the_effects_alone(tmp_path):
    planted = {("with", 8): 0.97, ("with", 2): 0.97, ("without", 8): 0.94, ("without", 2): 0.94, ("drawn", 2): 0.97}
    make_limits_study(tmp_path, 6, planted)
    section = rq3.build(tmp_path)
    assert list(effects(section).index) == ["dropout", "refinement", "interaction"]
    (row,) = section.tables["error_differences"].to_dict("records")
    assert row["variant"] == "drawn"
    assert row["p_holm"] == row["p"]
    assert "No variant outside the 2 x 2 table is shown to differ from with" in " ".join(section.conclusion)
    assert "a second question and a family of its own" in to_text(section)


def test_without_a_2_x_2_table_the_variant_without_dropout_is_among_the_differences(tmp_path):
    make_limits_study(tmp_path, 6, {key: value for key, value in NULL.items() if key != ("without", 8)})
    section = rq3.build(tmp_path)
    assert effects(section)["n"].tolist() == [0, 0, 0]
    assert list(section.tables["error_differences"]["variant"]) == ["without", "drawn"]


def test_a_planted_interaction_is_found(tmp_path):
    planted = NULL | {("without", 8): 0.93}  # either regularizer alone repairs it
    make_limits_study(tmp_path, 8, planted)
    found = effects(rq3.build(tmp_path))
    assert found.loc["interaction", "difference"] == pytest.approx(4.0, abs=0.5)
    assert found.loc["interaction", "claimed"]


def test_a_planted_null_is_reported_as_null_with_what_could_have_been_seen(tmp_path):
    make_limits_study(tmp_path, 8, NULL)
    section = rq3.build(tmp_path)
    assert not effects(section)["claimed"].any()
    assert section.conclusion[0].startswith("No effect of either regularizer is shown (smallest Holm-adjusted p ")
    assert section.conclusion[-1].startswith("No spread between seeds is shown to differ (smallest Holm-adjusted p ")
    sizes = re.search(r"a true difference of ([\d.]+) to ([\d.]+) points could have been claimed", section.conclusion[1])
    assert sizes
    assert [float(size) for size in sizes.groups()] == pytest.approx(
        [effects(section)["detectable"].min(), effects(section)["detectable"].max()], abs=0.006
    )


def test_a_limit_that_changed_no_cell_has_no_effect_to_be_tested(tmp_path):
    make_limits_study(tmp_path, 6, NULL, derived_skips=2)
    section = rq3.build(tmp_path)
    assert list(effects(section).index) == ["dropout"]
    assert effects(section).loc["dropout", "p"] == effects(section).loc["dropout", "p_holm"]
    assert section.conclusion[0].startswith("No effect of dropout on skip-connects is shown")
    assert section.conclusion[1].startswith("The difference is ")
    assert section.conclusion[2].startswith("Refinement to 2 skip-connects changed none of these cells, since none had more")
    assert list(section.tables["by_limit"].query("variant != 'drawn'")["changed"]) == [0, 0, 0, 0]
    assert "with, as derived" not in set(section.tables["spread_between_seeds"]["variant"])


def test_cells_that_a_limit_changed_are_counted(tmp_path):
    make_limits_study(tmp_path, 3, NULL)
    table = rq3.build(tmp_path).tables["by_limit"].set_index(["variant", "max_skips"])["changed"]
    assert table["with"].to_dict() == table["without"].to_dict() == {2: 3, 8: 0}


def test_effects_are_those_of_the_evaluations(tmp_path):
    path = make_limits_study(tmp_path, 3, NULL)
    table = rq3.build(tmp_path).tables["effects"].set_index("effect")
    evaluations = read_table(path, "evaluations").set_index("genotype_id")["error_percent"]
    genotypes = read_table(path, "genotypes").query("stage == 3").set_index(["trial_id", "max_skips"])["genotype_id"]

    def errors(variant, limit):
        return np.array([evaluations[genotypes[f"regularization-{variant}-s{seed}", limit]] for seed in range(3)])

    expected = (errors("with", 2) - errors("without", 2)) - (errors("with", 8) - errors("without", 8))
    assert table.loc["interaction", "difference"] == pytest.approx(expected.mean())
    assert table.loc["interaction", "p"] >= 0.25


def test_a_limit_at_which_cells_were_evaluated_by_chance_does_not_count(tmp_path):
    path = make_limits_study(tmp_path, 3, {key: value for key, value in NULL.items() if key != ("without", 8)})
    chosen = [
        row for row in read_rows(path, "genotypes", "regularization-without-s0") if row["stage"] == 3 and row["max_skips"] == 8
    ]
    make_evaluations(path, chosen[0], "cifar10", START, (0,), 8000, 0.5)
    section = rq3.build(tmp_path)
    limits = section.tables["by_limit"]
    assert set(limits.loc[limits["variant"] == "without", "max_skips"]) == {2}
    assert "without: 1 of 3 searches evaluated at M = 8, left out there" in section.missing
    assert effects(section)["n"].tolist() == [0, 0, 0]
    assert "neither regularizer can be judged" in section.conclusion[0]


def test_skip_connects_as_derived_are_compared_between_searches(tmp_path):
    path = make_limits_study(tmp_path, 6, NULL)
    for seed in range(6):
        rows = read_rows(path, "genotypes", f"regularization-without-s{seed}")
        write_rows(path, "genotypes", f"regularization-without-s{seed}", [row | {"skips": row["skips"] + 3} for row in rows])
    (row,) = rq3.build(tmp_path).tables["skip_differences"].to_dict("records")
    assert (row["variant"], row["n"], row["difference"]) == ("without", 6, 3.0)


def test_collapsed_searches_are_counted(tmp_path):
    path = make_limits_study(tmp_path, 4, NULL)
    for seed in (0, 1):
        rows = read_rows(path, "epochs", f"regularization-without-s{seed}")
        rows[-1 if seed else 0]["collapsed"] = True  # one at the end, one on the way
        write_rows(path, "epochs", f"regularization-without-s{seed}", rows)
    table = rq3.build(tmp_path).tables["collapse"].set_index("variant")
    assert table.loc["without", ["n", "collapsed_at_end", "at_any_epoch", "rate_percent"]].tolist() == [4, 1, 2, 25.0]
    assert table.loc["with", "collapsed_at_end"] == 0
    assert table.loc["without", "low_percent"] < 25 < table.loc["without", "high_percent"]


def test_the_script_writes_what_it_shows_and_a_curve_of_eigenvalues_where_there_are_some(tmp_path, monkeypatch):
    monkeypatch.setattr(rq3, "draw_search", lambda *_: {})  # slow, and RQ1's test draws them
    path = make_limits_study(tmp_path, 1, NULL)
    rows = read_rows(path, "epochs", "regularization-with-s0")
    write_rows(path, "epochs", "regularization-with-s0", [row | {"hessian_eigenvalue": 0.1} for row in rows])
    rq3.main(["--results", str(tmp_path), "--out", str(tmp_path / "out")])
    text = (tmp_path / "out" / "rq3.md").read_text()
    assert "eigenvalue was not measured" not in text
    assert all(f"](rq3_{name}.png)" in text for name in ("limits", "skips", "eigenvalue", "learning_curves"))
    assert "## Published, not measured here" in text


def test_a_study_without_the_plain_variant_says_so(tmp_path):
    make_study(tmp_path, "regularization", {"with": SearchConfig()}, (0,), epochs=1, evaluation_seeds=(0,))
    text = to_text(rq3.build(tmp_path))
    assert "no two variants that differ in nothing but dropout on skip-connects" in text
    assert "eigenvalue was not measured" in text
    assert rq3.build(tmp_path / "regularization") is not None


def test_spread_between_seeds_is_compared_with_and_without_each_regularizer(tmp_path):
    path = make_limits_study(tmp_path, 6, NULL)
    for seed in range(6):  # without dropout, seeds are spread far more widely
        rows = [row for row in read_rows(path, "genotypes", f"regularization-without-s{seed}") if row["stage"] == 3]
        chosen = next(row for row in rows if row["max_skips"] == 2)
        make_evaluations(path, chosen, "cifar10", START, (0,), 8000, 0.70 + 0.05 * seed)
    section = rq3.build(tmp_path)
    table = section.tables["spread_between_seeds"].set_index("variant")
    assert list(table.index) == ["with", "without", "drawn", "with, as derived", "without, as derived"]
    assert np.isnan(table.loc["with", "p"])
    assert table.loc["without", "between_seeds_points"] > 5
    assert table.loc["without", "p_holm"] < 0.05
    assert table.loc["with, as derived", "p"] > 0.05
    said = section.conclusion[-1]
    assert said.startswith("Shown in the standard deviation of the evaluation error between seeds: without ")
    assert f"against {table.loc['with', 'between_seeds_points']:.2f} points" in said
    assert f"against {table.loc['without', 'between_seeds_points']:.2f} points" in said  # of its cells as derived
