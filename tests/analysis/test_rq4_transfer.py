"""RQ4's report on synthetic studies: settings that order cells alike are found, settings that do not are not, none are mixed."""

import random
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest

from analysis import rq4_transfer as rq4
from analysis import sizing
from common.section import to_text
from pdarts_tune.config.evaluation import RECIPES
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.pdarts.genotype import random_genotype
from pdarts_tune.results.tables import read_rows, read_table, write_rows
from pdarts_tune.study.plan import given_variants
from synthetic import START
from synthetic_rows import evaluation_row, genotype_row, trial_row

CELLS = {f"cell_{index}": (f"c{index}", random_genotype(random.Random(index), 4)) for index in range(9)}
ALIKE = {"cifar": 0.0, "cifar-short": 0.0, "imagenet-mobile": 0.0}


def study(root, *, cells=9, order=None, settings=("cifar", "cifar-short", "imagenet-mobile"), seeds=(0, 1), images=3000):
    """Every next cell is 1 point better; `order` gives another order in the mobile setting."""
    folder = root / "transfer"
    for index, variant in enumerate(given_variants(dict(list(CELLS.items())[:cells]), SearchConfig())):
        trial_id = f"{variant.name}-seed0"
        genotype = genotype_row(trial_id, 0, variant.search.max_skips, CELLS[variant.name][1], None)
        write_rows(folder, "genotypes", trial_id, [genotype])
        trial = trial_row(
            "transfer", variant.name, trial_id, variant.search, "completed", START, START + timedelta(seconds=1), None
        )
        write_rows(folder, "trials", trial_id, [trial])
        for name in settings:
            place = order[index] if order and name == "imagenet-mobile" else index
            for seed in seeds:
                config = replace(RECIPES[name], seed=seed, test_images=images)
                evaluation_id = f"{genotype['genotype_id']}-{config.recipe_id}-s{seed}"
                rng = np.random.default_rng([index, seed, len(name)])
                row = evaluation_row(evaluation_id, genotype, config, rng, START, (0.7 if "image" in name else 0.88) + 0.01 * place)
                write_rows(folder, "evaluations", evaluation_id, [row])
    return folder


def pair(section, first, second):
    table = section.tables["correlations"]
    return table[(table["setting"] == first) & (table["with"] == second)].iloc[0]


def test_settings_that_order_cells_alike_are_found_and_agree_beyond_size(tmp_path):
    study(tmp_path)
    section = rq4.build(tmp_path)
    row = pair(section, "cifar10, cifar", "imagenet, imagenet-mobile")
    assert row["n"] == 9
    assert row["tau"] > 0.7
    assert row["ci_low"] > 0
    assert row["partial"] > 0.7
    assert 0.5 < row["seed_tau"] <= row["disattenuated"] + 0.5
    assert "cifar10, cifar and imagenet, imagenet-mobile order 9 cells alike" in section.conclusion[1]
    assert section.conclusion[1].endswith("explain is shown.")


def test_settings_that_order_cells_differently_are_reported_as_not_shown_to_agree(tmp_path):
    study(tmp_path, order=[4, 8, 0, 6, 2, 5, 1, 7, 3])
    section = rq4.build(tmp_path)
    assert pair(section, "cifar10, cifar", "cifar10, cifar-short")["ci_low"] > 0
    assert "agreement in the order of 9 cells is not shown" in section.conclusion[1]
    assert section.conclusion[1].endswith("; a true tau of 0.75 could have been claimed (80 % power).")


def test_the_papers_table_has_a_row_a_cell_and_never_averages_settings(tmp_path):
    study(tmp_path)
    table = rq4.build(tmp_path).tables["cells"].set_index("cell")
    assert list(table.index) == list(CELLS)
    assert table.loc["cell_0", "cifar10, cifar: error_percent"] == pytest.approx(12, abs=1.5)
    assert table.loc["cell_0", "imagenet, imagenet-mobile: error_percent"] == pytest.approx(30, abs=2)
    mobile = rq4.build(tmp_path).tables["imagenet"].set_index("cell")
    assert list(mobile.index) == list(CELLS)
    assert mobile.loc["cell_0", "top1_percent"] == pytest.approx(table.loc["cell_0", "imagenet, imagenet-mobile: error_percent"])
    assert mobile.loc["cell_0", "top5_percent"] == pytest.approx(mobile.loc["cell_0", "top1_percent"] / 4)


def test_a_study_of_sizes_says_how_far_cells_and_trainings_of_one_cell_differ(tmp_path):
    """Made cells are a point apart, 9 of them: their errors' standard deviation is 2.74."""
    answer = sizing.build(study(tmp_path))
    rows = answer.tables["sizes"].set_index("setting")
    assert (rows["cells"] == 9).all()
    assert (rows["trainings"] == 18).all()
    assert rows["between_cells_points"].to_numpy() == pytest.approx(2.74, abs=0.3)
    assert rows["between_trainings_points"].between(0.5, 1).all()  # of 3,000 test images 0.6 and more
    assert rows["share_percent"].min() > 85
    assert answer.conclusion[0].startswith("cifar10, cifar: cells differ by 2.")
    assert answer.conclusion[3].startswith("cifar10, cifar and cifar10, cifar-short order 9 cells alike")
    single = sizing.build(study(tmp_path / "single", seeds=(0,)))
    assert "trainings of one cell by – (" in single.conclusion[0]


def test_a_picture_names_data_in_files_without_their_place(tmp_path, monkeypatch):
    """Pictures are published as they are."""
    monkeypatch.setitem(RECIPES, "cifar", replace(RECIPES["cifar"], data="parquet:/home/me/cifar10"))
    axes = rq4.build(study(tmp_path, settings=("cifar", "cifar-short"))).figures["transfer_1"]().axes[0]
    assert axes.get_xlabel() == "test error, %: parquet:cifar10, cifar"


def test_a_cell_above_the_gate_is_named_with_its_reason(tmp_path):
    folder = study(tmp_path, cells=3)
    runs = read_table(folder, "evaluations")
    for trial_id in runs.loc[runs["data"] == "imagenet", "trial_id"].iloc[:1]:
        (row,) = read_rows(folder, "evaluations", trial_id)
        gone = dict.fromkeys(("accuracy", "error_percent", "top5_accuracy", "correct", "loss"))
        write_rows(
            folder,
            "evaluations",
            trial_id,
            [row | gone | {"status": "failed", "failure": "650M multiply-adds", "macs": 640_000_000}],
        )
    section = rq4.build(tmp_path)
    mobile = section.tables["imagenet"].set_index("cell")
    assert mobile["refused_or_failed"].sum() == 1
    assert mobile["under_gate"].tolist().count(False) == 1
    assert any("imagenet, imagenet-mobile: 650M multiply-adds" in line for line in section.missing)
    assert any("1 of 2 seeds finished" in line for line in section.missing)


def test_two_recipes_of_one_name_are_settings_of_their_own_and_one_can_be_chosen(tmp_path):
    folder = study(tmp_path, cells=2, settings=("cifar", "cifar-short"))
    (row,) = read_rows(folder, "evaluations", read_table(folder, "evaluations")["trial_id"].iloc[0])
    write_rows(folder, "evaluations", "other", [row | {"trial_id": "other", "recipe_id": f"{row['recipe']}-0123abcd"}])
    settings = {name.removesuffix(": error_percent") for name in rq4.build(tmp_path).tables["cells"] if ":" in name}
    names = {name.removesuffix(": error_percent_sd") for name in settings}
    assert names == {f"cifar10, {row['recipe']}-0123abcd", f"cifar10, {row['recipe_id']}"} | (
        {"cifar10, cifar", "cifar10, cifar-short"} - {f"cifar10, {row['recipe']}"}
    )
    one = rq4.build(tmp_path, recipe=row["recipe_id"])
    assert sum(name.endswith("error_percent") for name in one.tables["cells"]) == 1


def test_few_cells_and_one_setting_give_tables_and_say_what_is_missing(tmp_path):
    study(tmp_path, cells=2, settings=("cifar",), seeds=(0,))
    section = rq4.build(tmp_path)
    text = to_text(section)
    assert "nothing can be said yet" in section.conclusion[0]
    assert "no evaluation in the mobile setting" in text
    assert "a single evaluation seed" in text
    assert "| cell_1" in text


def test_the_script_writes_what_it_shows(tmp_path, capsys):
    study(tmp_path, cells=4, images=200)
    rq4.main(["--results", str(tmp_path)])
    assert "| cell_3" in capsys.readouterr().out
    out = tmp_path / "transfer" / "report"
    text = (out / "rq4.md").read_text()
    assert all((out / f"rq4_transfer_{index}.png").exists() for index in (1, 2, 3))
    assert "## Published, not measured here: imagenet" in text
    assert "no true tau, however large, could have been claimed" in text


def test_two_settings_are_compared_in_the_seeds_that_a_cell_has_in_both(tmp_path):
    """The first setting has a third seed of all cells but one, whose errors would turn the order round."""
    folder = study(tmp_path, cells=6, settings=("cifar", "cifar-short"))
    before = pair(rq4.build(tmp_path), "cifar10, cifar", "cifar10, cifar-short")
    assert (before["n"], before["seeds"]) == (6, "2")
    runs = read_table(folder, "evaluations").query("recipe == 'cifar' and seed == 1")
    genotypes = read_table(folder, "trials").merge(read_table(folder, "genotypes")).set_index("variant")["genotype_id"]
    for index in range(1, 6):
        (row,) = read_rows(folder, "evaluations", runs.set_index("genotype_id").loc[genotypes[f"cell_{index}"], "trial_id"])
        turned = {"trial_id": f"{row['trial_id']}-more", "seed": 7, "accuracy": 0.9 - 0.1 * index}
        write_rows(folder, "evaluations", turned["trial_id"], [row | turned])
    after = rq4.build(tmp_path)
    row = pair(after, "cifar10, cifar", "cifar10, cifar-short")
    pd.testing.assert_series_equal(row, before)
    assert "cell_5: cifar10, cifar has 3 seeds and cifar10, cifar-short 2, of which 2 are the same" in after.missing
    for seed, kept in ((0, ("cifar",)), (1, ("cifar-short",))):  # of cell_3, each setting has a seed that the other lacks
        for run in (
            read_table(folder, "evaluations").query(f"seed == {seed} and genotype_id == '{genotypes['cell_3']}'").itertuples()
        ):
            if run.recipe not in kept:
                (folder / "evaluations" / f"{run.trial_id}.parquet").unlink()
    (folder / "evaluations" / f"{runs.set_index('genotype_id').loc[genotypes['cell_0'], 'trial_id']}.parquet").unlink()
    last = rq4.build(tmp_path)
    row = pair(last, "cifar10, cifar", "cifar10, cifar-short")
    assert (row["n"], row["seeds"]) == (5, "1 to 2")
    assert "cell_3: cifar10, cifar has 2 seeds and cifar10, cifar-short 1, of which 0 are the same" in last.missing
    errors = {
        name: rq4.table_of(read_table(folder, "evaluations").assign(setting=lambda runs: runs.recipe), name) for name in ALIKE
    }
    one, other = rq4.pair_seeds(errors["cifar"], errors["cifar-short"], errors["cifar"].index)
    assert one.loc[genotypes["cell_0"]].count() == 1
    assert one.loc[genotypes["cell_0"]].mean() == errors["cifar"].loc[genotypes["cell_0"], 0]
    assert other.loc[genotypes["cell_0"]].mean() == errors["cifar-short"].loc[genotypes["cell_0"], 0]


def test_settings_without_a_common_seed_are_not_correlated(tmp_path):
    study(tmp_path, cells=6, settings=("cifar",), seeds=(0,))
    study(tmp_path, cells=6, settings=("cifar-short",), seeds=(1,))
    section = rq4.build(tmp_path)
    row = pair(section, "cifar10, cifar", "cifar10, cifar-short")
    assert (row["n"], row["seeds"]) == (0, "0")
    assert np.isnan(row["tau"])
    assert "nothing can be said yet" in section.conclusion[0]
