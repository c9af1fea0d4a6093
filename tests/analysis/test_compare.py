"""The comparison of any study's variants: a planted effect is claimed, a planted null is not, settings are never mixed."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import compare
from common.section import to_text
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.pdarts.progressive_depth import with_skip_dropout
from pdarts_tune.results.tables import read_rows, read_table, write_rows
from pdarts_tune.study.cli import main
from pdarts_tune.study.plan import Arguments, Study, Variant, make_plan
from synthetic import make_planned, make_study

GOLDEN = Path(__file__).parents[1] / "golden" / "compare.md"
BASE = SearchConfig()
BATCHES = {f"batch_{size}": replace(BASE, batch_size=size) for size in (96, 32, 64, 128)}
_NUMBER = re.compile(r"[+−-]?\d+\.\d+")


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    """Eight seeds; a batch of 128 costs 4 points of accuracy, the others cost nothing."""
    root = tmp_path_factory.mktemp("batches")
    accuracy = dict.fromkeys(BATCHES, 0.96) | {"batch_128": 0.92}
    return make_study(root, "batches", BATCHES, range(8), epochs=1, evaluation_seeds=(0,), test_images=2000, accuracy=accuracy)


def test_the_page_of_a_planted_effect_and_a_planted_null_is_the_golden_one(batches):
    """Its words are the same; its numbers, which rest on random draws of NumPy and SciPy, are close."""
    text = to_text(compare.build(batches, measures=("error", "seconds")))
    text = text[: text.index("## Cells")] + text[text.index("## What is missing") :]
    golden = GOLDEN.read_text(encoding="utf-8")
    assert _NUMBER.sub("0", text).split() == _NUMBER.sub("0", golden).split()
    numbers = [[float(number.replace("−", "-")) for number in _NUMBER.findall(side)] for side in (text, golden)]
    assert numbers[0] == pytest.approx(numbers[1], abs=0.03)


def test_the_planted_effect_is_claimed_with_its_size_and_the_null_is_not(batches):
    section = compare.build(batches)
    errors = section.tables["error_differences"].set_index("variant")
    assert errors["claimed"].to_dict() == {"batch_32": False, "batch_64": False, "batch_128": True}
    assert errors.loc["batch_128", "difference"] == pytest.approx(4, abs=0.5)
    assert section.conclusion[0].startswith(
        "Shown, as difference in evaluation error from batch_96 (positive: batch_96 has the lower)"
    )
    assert section.conclusion[1].startswith("Not shown for batch_32, batch_64: a true difference of ")
    assert "depth gap (points): batch_128 +" in section.conclusion[2]  # search accuracy is as planted, so the gap is wider
    assert list(section.tables["variants"]["batch_size"]) == ["96", "32", "64", "128"]
    assert list(section.tables["variants"].columns[:4]) == ["variant", "batch_size", "seeds", "evaluated"]


def test_every_measure_is_a_family_in_its_own_unit(batches):
    section = compare.build(batches, baseline="batch_64")
    names = {name.removesuffix("_differences") for name in section.tables if name.endswith("_differences")}
    assert names == {"error", "gap", "search", "skips", "depth", "params", "seconds", "peak"}
    trials = read_table(batches, "trials").pivot(index="seed", columns="variant", values="seconds")
    seconds = section.tables["seconds_differences"].set_index("variant")
    assert seconds.loc["batch_32", "difference"] == pytest.approx((trials["batch_32"] - trials["batch_64"]).mean())
    only = compare.build(batches, measures=("skips",))
    assert [name for name in only.tables if name.endswith("_differences")] == ["skips_differences"]
    assert "skip-connects" in only.conclusion[0]


def test_the_curve_has_each_value_once_with_its_interval_and_is_made_unasked_of_a_study_that_sweeps_one_number(batches):
    section = compare.build(batches, measures=("error",))
    curve = section.tables["by_batch_size"]
    assert list(curve["batch_size"]) == ["32", "64", "96", "128"]
    means = section.tables["variants"].set_index("variant")["error_percent"]
    assert list(curve["error_percent"]) == pytest.approx(list(means[curve["variant"]]))
    assert ((curve["ci_low"] < curve["error_percent"]) & (curve["error_percent"] < curve["ci_high"])).all()


GRID = {
    f"lr{rate}_c{channels}": replace(BASE, learning_rate=rate, channels=channels) for channels in (16, 8) for rate in (0.1, 0.01)
}


def test_variants_that_differ_in_other_settings_are_lines_of_their_own(tmp_path):
    odd = {"odd": replace(BASE, channels=4, learning_rate=1.0), "more": replace(BASE, channels=32, dropping="random")}
    folder = make_study(tmp_path, "grid", GRID | odd, range(2), epochs=1, evaluation_seeds=(0,))
    curve = compare.build(folder, by=("learning_rate",)).tables["by_learning_rate"]
    lines = curve.groupby("line")["variant"].agg(list).to_dict()
    assert lines == {
        "channels 16, dropping lowest": ["lr0.01_c16", "lr0.1_c16"],
        "channels 8, dropping lowest": ["lr0.01_c8", "lr0.1_c8"],
    }
    section = compare.build(folder)
    assert not any(name.startswith("by_") for name in section.tables)  # which one is meant is not said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--baseline", "batch"],
            "baseline: 'batch' is not a variant of batches; there are: batch_96, batch_32, batch_64, batch_128",
        ),
        (
            ["--measure", "time"],
            "measure: 'time' is not a measure; there are: error, gap, search, skips, depth, params, seconds, peak",
        ),
        (["--by", "channels"], "by: 'channels' is not a setting that differs between the variants; there are: batch_size"),
        (["--recipe", "long"], "recipe: 'long' is no recipe of evaluations of batches, which are: cifar-"),
        (["--data", "svhn"], "data: 'svhn' is no data of evaluations of batches, which are: cifar10"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(batches, capsys, options, message):
    with pytest.raises(SystemExit, match="2"):
        compare.main(["--results", str(batches), *options])
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1
    assert not (batches / "report").exists()


def test_a_setting_that_is_no_number_and_a_folder_of_several_studies_are_refused(tmp_path):
    names = {"a": BASE, "b": replace(BASE, dropping="random")}
    for study in ("one", "two"):
        make_study(tmp_path, study, names, (0,), epochs=1, evaluation_seeds=())
    with pytest.raises(ConfigError, match=r"^by: dropping is not a number in every variant: lowest, random$"):
        compare.build(tmp_path / "one", by=("dropping",))
    with pytest.raises(ConfigError, match=r"holds 2 studies, one, two; name one, such as --results .*one$"):
        compare.build(tmp_path)


def own_variants(base):
    wide = replace(base, channels=2 * base.channels)
    plain = replace(wide, stages=with_skip_dropout(base.stages, (0.0, 0.0, 0.0)))
    return [Variant("base", base, skip_limits=(2, 4)), Variant("wide", wide), Variant("wide_plain", plain, skip_limits=(2, 8))]


def two_recipes(base, data):
    longer = replace(base, recipe="longer", epochs=2 * base.epochs)
    return [replace(recipe, data=name) for name in data for recipe in (base, longer)]


def test_an_own_study_with_two_recipes_and_skip_limits_comes_from_its_tables_to_a_page_at_its_end(tmp_path, capfd):
    study = Study("own", "Does width matter?", own_variants, evaluations=two_recipes)
    folder, options = tmp_path / "own", ["--preset", "smoke", "--seeds", "3", "--results", str(tmp_path)]
    make_planned(folder, make_plan(study, Arguments("smoke", seeds=3)))  # all that there is to run
    with pytest.raises(SystemExit, match="0"):
        main(study, options)
    assert "| wide_plain" in capfd.readouterr().out
    report = folder / "report"
    text = (report / "compare.md").read_text()
    assert all((report / f"compare_{name}.png").exists() for name in ("accuracies", "accuracies_2", "learning_curves", "cell_3"))
    assert (report / "compare_variants.tex").read_text().isascii()
    variants = pd.read_csv(report / "compare_variants.csv").set_index("variant")
    assert list(variants.columns[:2]) == ["skip_dropout", "channels"]
    assert variants["skip_dropout"].to_dict() == {"base": "0.0-0.4-0.7", "wide": "0.0-0.4-0.7", "wide_plain": "0.0-0.0-0.0"}
    evaluations, genotypes = read_table(folder, "evaluations"), read_table(folder, "genotypes")
    own = genotypes[(genotypes["max_skips"] == 2) & (genotypes["stage"] == 3)].assign(
        variant=lambda rows: rows["trial_id"].str.removesuffix("-seed0").str.removesuffix("-seed1").str.removesuffix("-seed2")
    )
    for recipe, runs in evaluations.groupby("recipe"):
        errors = own.merge(runs[["genotype_id", "error_percent"]]).groupby("variant")["error_percent"].mean()
        column = variants[f"digits, {recipe}: error_percent"]
        assert column.to_dict() == pytest.approx(errors.to_dict())
    differences = pd.read_csv(report / "compare_error_differences.csv")
    assert list(differences["variant"]) == [
        f"{variant} (digits, {recipe})" for variant in ("wide", "wide_plain") for recipe in ("smoke", "longer")
    ]
    assert (differences["n"] == 3).all()
    assert "cannot reach 0.05" in text
    one = compare.build(folder, recipe="longer")
    assert list(one.tables["error_differences"]["variant"]) == ["wide", "wide_plain"]


def test_search_accuracy_on_other_data_than_the_evaluation_is_no_gap(tmp_path):
    folder = make_study(tmp_path, "moved", {"a": BASE}, (0, 1), epochs=1, evaluation_seeds=(0,))
    for evaluation in read_table(folder, "evaluations")["trial_id"]:
        (row,) = read_rows(folder, "evaluations", evaluation)
        write_rows(folder, "evaluations", evaluation, [row | {"data": "cifar100"}])
    variants = compare.build(folder).tables["variants"]
    assert variants["error_percent"].notna().all()
    assert "gap_points" not in variants


def test_what_one_setting_lacks_is_said_of_that_setting_and_what_the_searches_lack_once(tmp_path):
    folder = make_study(tmp_path, "lacks", {"a": BASE, "b": GRID["lr0.1_c8"]}, (0, 1), epochs=1, failed=["lacks-b-s1"])
    for evaluation in read_table(folder, "evaluations")["trial_id"]:
        (row,) = read_rows(folder, "evaluations", evaluation)
        if "-s1" not in evaluation:
            write_rows(folder, "evaluations", f"{evaluation}-short", [row | {"trial_id": f"{evaluation}-short", "recipe": "short"}])
        else:
            write_rows(folder, "evaluations", evaluation, [row | {"status": "failed", "accuracy": None}])
    missing = compare.build(folder).missing
    assert "a, seed 0: 1 of 2 evaluations finished (cifar10, cifar)" in missing
    assert sum("b, seed 1: search failed" in line for line in missing) == 1
    assert not any(line.endswith("(cifar10, short)") for line in missing)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A second study with one variant renamed, one changed and one of its own; its cells are 3 points worse."""
    root = tmp_path_factory.mktemp("two")
    first = {"a": BASE, "b": replace(BASE, channels=8), "alone": replace(BASE, channels=4)}
    second = {"a": replace(BASE, batch_size=32), "c": replace(BASE, channels=8)}
    settings = {"epochs": 1, "evaluation_seeds": (0,), "test_images": 2000}
    one = make_study(root, "one", first, range(8), accuracy=dict.fromkeys(first, 0.96), **settings)
    other = make_study(root, "other", second, range(1, 9), accuracy=dict.fromkeys(second, 0.93), **settings)
    return one, other


def test_two_studies_are_compared_in_the_searches_that_both_have(two):
    section = compare.build_two(two)
    assert section.tables["settings"].to_numpy().tolist() == [["a", "batch_size", "96", "32"]]
    assert list(section.tables["settings"].columns[2:]) == ["one", "other"]
    errors = section.tables["error_differences"].set_index("variant")
    assert errors["n"].to_dict() == {"a": 7, "b": 7}  # seeds 1 to 7; c of the other study has b's settings
    assert list(errors["difference"]) == pytest.approx([3, 3], abs=0.7)
    assert errors["claimed"].all()
    pairs = section.tables["pairs"]
    assert list(pairs["seed"].unique()) == list(range(1, 8))
    assert errors.loc["a", "difference"] == pytest.approx(
        pairs[pairs["variant"] == "a"].eval("error_percent_second - error_percent_first").mean()
    )
    assert section.conclusion[0].startswith("Shown, as difference in evaluation error from one (positive: one has the lower): a +")


def test_the_command_compares_two_studies_and_refuses_what_they_do_not_have(two, tmp_path, capsys):
    compare.main(["--results", *map(str, two), "--out", str(tmp_path / "out")])
    assert "| a    | batch_size | 96" in re.sub(" +", " ", capsys.readouterr().out).replace("| a |", "| a    |")
    assert "## Pairs" in (tmp_path / "out" / "compare_two.md").read_text()
    strange = make_study(tmp_path, "strange", {"x": replace(BASE, channels=12)}, (0,), epochs=1, evaluation_seeds=())
    late = make_study(tmp_path, "late", {"a": BASE}, (20,), epochs=1, evaluation_seeds=())
    for folders, message in (
        (
            (two[0], strange),
            "one and strange have nothing in common, neither a variant's name nor its settings: a, b, alone (one) and x (strange)",
        ),
        ((two[0], late), "one and late have variants in common (a), but no seed of one"),
        ((two[0], two[1], late), "3 folders are given, and two studies can be compared"),
    ):
        with pytest.raises(SystemExit, match="2"):
            compare.main(["--results", *map(str, folders)])
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_two_studies_of_other_recipes_and_devices_are_compared_in_their_searches_alone(tmp_path):
    one, other = (make_study(tmp_path, name, {"a": BASE}, range(6), epochs=1, evaluation_seeds=(0,)) for name in ("one", "other"))
    for table in ("trials", "evaluations"):
        for trial_id in read_table(other, table)["trial_id"]:
            (row,) = read_rows(other, table, trial_id)
            write_rows(other, table, trial_id, [row | ({"device": "gpu"} if table == "trials" else {"recipe_id": "cifar-0"})])
    section = compare.build_two((one, other))
    assert "error_differences" not in section.tables
    assert "seconds_differences" not in section.tables
    assert section.tables["search_differences"]["n"].tolist() == [6]
    assert any("no recipe and data set of evaluations in common" in line for line in section.missing)
    assert any("of different devices" in line for line in section.missing)
    assert np.isfinite(section.tables["search_differences"]["difference"]).all()
