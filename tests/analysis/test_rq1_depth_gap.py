"""RQ1's report on synthetic studies: a planted effect is found, a planted null is not, and what is missing is said."""

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import rq1_depth_gap as rq1
from common import comparisons, study_tables
from common.section import table_markdown, to_text
from pdarts_tune.config.methods import RandomSampling
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.pdarts.progressive_depth import PDARTS_CIFAR10, with_budget, with_depths, with_operations
from pdarts_tune.results.tables import read_rows, read_table, write_rows
from synthetic import make_study, make_trial, shrink

ANALYSIS = Path(__file__).parents[2] / "analysis"

BASE = SearchConfig()
VARIANTS = {
    "progressive": BASE,
    "shallow": replace(BASE, stages=with_depths(PDARTS_CIFAR10, (5, 5, 5))),
    "deep": replace(BASE, stages=with_depths(PDARTS_CIFAR10, (17, 17, 17))),
    "reversed": replace(BASE, stages=with_depths(PDARTS_CIFAR10, (17, 11, 5))),
    "random": replace(BASE, method=RandomSampling()),
}


def study(root, seeds, *, shallow=0.97, variants=VARIANTS, **settings):
    accuracy = dict.fromkeys(variants, 0.97) | {"shallow": shallow}
    settings = {"epochs": 1, "test_images": 1000, "accuracy": accuracy} | settings
    return make_study(root, "depth_gap", variants, range(seeds), **settings)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    root = tmp_path_factory.mktemp("three")
    study(root, 3, shallow=0.93)
    return root


def test_a_planted_effect_is_found_with_eight_seeds(tmp_path):
    study(tmp_path, 8, shallow=0.93)
    answer = rq1.build(tmp_path)
    shallow = answer.tables["error_differences"].set_index("variant").loc["shallow"]
    assert shallow["difference"] == pytest.approx(4.0, abs=1.0)
    assert shallow["ci_low"] < 4.0 < shallow["ci_high"] + 0.5
    assert (shallow["p"], shallow["p_holm"]) == (2 / 2**8, 4 * 2 / 2**8)
    assert list(answer.tables["error_differences"]["claimed"]) == [True, False, False, False]
    first, second, _ = answer.conclusion
    assert first.startswith(
        "Shown, as difference in evaluation error from progressive (positive: progressive has the lower): shallow +"
    )
    assert second.startswith("Not shown for deep, reversed, random: ")


def test_a_planted_null_is_reported_as_null(tmp_path):
    study(tmp_path, 8)
    answer = rq1.build(tmp_path)
    assert not answer.tables["error_differences"]["claimed"].any()
    first, second, _ = answer.conclusion
    assert first.startswith("No variant is shown to differ from progressive (smallest Holm-adjusted p ")
    assert first.endswith("do not support that growing the depth during search finds better cells.")
    assert second.endswith(" points could have been claimed (80 % power).")


def test_three_seeds_cannot_show_anything_and_the_report_says_so(three):
    answer = rq1.build(three)
    shallow = answer.tables["error_differences"].set_index("variant").loc["shallow"]
    assert shallow["ci_low"] > 0  # the interval alone would have claimed it
    assert not shallow["claimed"]
    assert answer.conclusion[0] == (
        "With n = 3 a paired sign-flip test cannot reach 0.05 (smallest possible p 0.250): "
        "these data cannot show that growing the depth during search finds better cells."
    )
    assert "The largest difference in evaluation error is that of shallow, +" in answer.conclusion[1]


def test_six_seeds_fall_short_because_of_the_correction_and_no_difference_is_called_detectable(tmp_path):
    study(tmp_path, 6, shallow=0.93)
    section = rq1.build(tmp_path)
    first, *_ = section.conclusion
    assert (section.tables["error_differences"]["detectable"] == np.inf).all()
    (line,) = [line for line in table_markdown(section.tables["error_differences"]).splitlines() if "shallow" in line]
    assert line.split("|")[-3].strip() == "none"
    assert "(smallest possible p 0.031, 0.125 after Holm's correction for 4 comparisons)" in first


def test_the_main_table_is_what_the_tables_hold(three):
    summary = rq1.build(three).tables["variants"].set_index("variant")
    assert list(summary.index) == list(VARIANTS)
    trials, genotypes = read_table(three, "trials"), read_table(three, "genotypes")
    evaluations, epochs = read_table(three, "evaluations"), read_table(three, "epochs")
    for variant in VARIANTS:
        errors, searched, skips = [], [], []
        for trial_id in trials.loc[trials["variant"] == variant, "trial_id"]:
            found = genotypes[(genotypes["trial_id"] == trial_id) & (genotypes["max_skips"] == 2)]
            cell = found.sort_values("stage").iloc[-1]
            errors.append(np.mean(evaluations.loc[evaluations["genotype_id"] == cell["genotype_id"], "error_percent"]))
            skips.append(cell["skips"])
            end = epochs[(epochs["trial_id"] == trial_id) & (epochs["stage"] == 3)]
            searched += list(end["validation_accuracy"])
        row = summary.loc[variant]
        assert (row["seeds"], row["evaluated"]) == (3, 3)
        assert row["error_percent"] == pytest.approx(np.mean(errors))
        assert row["error_percent_sd"] == pytest.approx(np.std(errors, ddof=1))
        assert row["skips"] == pytest.approx(np.mean(skips))
        if variant == "random":
            assert np.isnan(row["search_percent"])
            assert np.isnan(row["gap_points"])
        else:
            assert row["search_percent"] == pytest.approx(100 * np.mean(searched))
            assert row["gap_points"] == pytest.approx(100 * np.mean(searched) - (100 - np.mean(errors)))


def test_the_comparison_pairs_trials_of_the_same_seed(three):
    answer = rq1.build(three)
    errors = study_tables.measure_trials(study_tables.read_study(three / "depth_gap")).pivot(
        index="seed", columns="variant", values="error_percent"
    )
    found = answer.tables["error_differences"].set_index("variant")
    for variant in ("shallow", "deep", "reversed", "random"):
        assert found.loc[variant, "n"] == 3
        assert found.loc[variant, "difference"] == pytest.approx((errors[variant] - errors["progressive"]).mean())


def test_the_report_has_its_files_and_every_picture_that_it_shows(three, tmp_path):
    rq1.main(["--results", str(three)])
    rq1.main(["--results", str(three / "depth_gap"), "--out", str(tmp_path / "elsewhere")])  # a study's own folder will do
    folder = tmp_path / "elsewhere"
    again = sorted((three / "depth_gap" / "report").iterdir())  # a report made twice is the same report
    assert [path.read_bytes() for path in sorted(folder.iterdir())] == [path.read_bytes() for path in again]
    names = {path.name for path in folder.iterdir()}
    section = rq1.build(three)
    tables = {f"rq1_{name}.{kind}" for name in section.tables for kind in ("csv", "tex")}
    pictures = {f"rq1_{name}.{kind}" for name in section.figures for kind in ("png", "svg")}
    assert names == {"rq1.md"} | tables | pictures
    assert {"depth_gap", "learning_curves", "skips"} <= set(section.figures)
    text = (folder / "rq1.md").read_text()
    assert all(f"](rq1_{name}.png)" in text for name in section.figures)
    assert "search validation accuracy minus evaluation test accuracy" in " ".join(text.split())
    assert "## Published, not measured here" in text
    (last,) = [line.split("|")[2].strip() for line in text.splitlines() if line.startswith("| P-DARTS, cell after stage 3 ")]
    assert last == "2.58"
    assert "Nothing: every search and every evaluation is there." in text
    assert str(three) not in text
    latex = (folder / "rq1_variants.tex").read_text()
    assert latex.isascii()
    assert all(command in latex for command in (r"\toprule", r"\midrule", r"\bottomrule", r"$\pm$", r"\%"))
    assert list(pd.read_csv(folder / "rq1_variants.csv")["variant"]) == list(VARIANTS)


def test_stages_are_shown_with_their_depth_and_the_evaluation_of_earlier_cells_if_there_is_one(three):
    table = rq1.build(three).tables["stages"]
    assert table[["variant", "stage", "cells"]].head(6).to_numpy().tolist() == [
        ["progressive", 1, 5],
        ["progressive", 2, 11],
        ["progressive", 3, 17],
        ["shallow", 1, 5],
        ["shallow", 2, 5],
        ["shallow", 3, 5],
    ]
    assert table.loc[table["stage"] != 3, "error_percent"].isna().all()
    assert table.loc[table["stage"] == 3, "error_percent"].notna().all()
    assert "random" not in set(table["variant"])


SHORT = tuple(replace(stage, epochs=5, warmup_epochs=1) for stage in PDARTS_CIFAR10)
DEEP = with_depths(SHORT, (17, 17, 17))
EQUAL = {
    "progressive": replace(BASE, stages=SHORT),
    "deep": replace(BASE, stages=DEEP),
    "deep_equal_budget": replace(BASE, stages=with_budget(DEEP, SHORT)),
    "deep_all": replace(BASE, stages=with_operations(DEEP, (8, 8, 8))),
}


@pytest.mark.parametrize("mean", [0.93, 0.97])
def test_a_search_of_equal_cost_tells_depth_from_its_cost_in_the_one_family_of_errors(tmp_path, mean):
    accuracy = dict.fromkeys(EQUAL, 0.97) | {"deep_equal_budget": mean}
    make_study(tmp_path, "depth_gap", EQUAL, range(8), epochs=None, test_images=1000, accuracy=accuracy, evaluation_seeds=(0,))
    section = rq1.build(tmp_path)
    table = section.tables["equal_budget"]
    assert list(table["variant"]) == ["deep_equal_budget"]  # neither the dearer one nor one that drops other operations
    assert table["planned_cost_ratio"].iloc[0] == pytest.approx(1, abs=0.05)
    family = section.tables["error_differences"]
    own = family[family["variant"] == "deep_equal_budget"].reset_index(drop=True)
    pd.testing.assert_frame_equal(table[list(family)], own)  # its Holm-adjusted p too: of three comparisons, tested once
    assert bool(table["claimed"].iloc[0]) == (mean == 0.93)
    expected = (
        "At equal cost, shown to differ from progressive in evaluation error: deep_equal_budget +"
        if mean == 0.93
        else ("At equal cost (deep_equal_budget) no difference from progressive is shown: a true difference of ")
    )
    assert section.conclusion[2].startswith(expected)


def test_an_equal_budget_arm_claims_nothing_that_its_family_cannot_claim(tmp_path):
    accuracy = dict.fromkeys(EQUAL, 0.97) | {"deep_equal_budget": 0.90}
    make_study(tmp_path, "depth_gap", EQUAL, range(6), epochs=None, test_images=1000, accuracy=accuracy, evaluation_seeds=(0,))
    section = rq1.build(tmp_path)
    assert not section.tables["equal_budget"]["claimed"].any()  # alone, six pairs would do
    assert section.conclusion[2].endswith(
        "no difference from progressive is shown: with n = 6 a paired sign-flip test cannot reach 0.05 "
        "(smallest possible p 0.031, 0.094 after Holm's correction for 3 comparisons)."
    )


def test_ranks_and_spread_are_those_of_the_evaluations(tmp_path):
    folder = study(tmp_path, 3, evaluation_seeds=(0, 1, 2))
    section = rq1.build(tmp_path)
    evaluations = read_table(folder, "evaluations").pivot_table(index="genotype_id", columns="seed", values="accuracy")
    measures = study_tables.measure_trials(study_tables.read_study(folder)).dropna(subset=["search_accuracy"])
    row = section.tables["ranks"].set_index("measure").loc["search network"]
    assert (row["n"], row["pairs"]) == (12, 4 * 3)
    found = evaluations.loc[measures["genotype_id"]].to_numpy()

    def tau(one, other):
        sums = np.zeros(3)
        for variant in measures["variant"].unique():
            for i, j in itertools.combinations(np.flatnonzero(measures["variant"] == variant), 2):
                first, second = np.sign(one[i] - one[j]), np.sign(other[i] - other[j])
                sums += [first * second, first**2, second**2]
        return sums

    sums = tau(measures["search_accuracy"].to_numpy(), found.mean(axis=1))
    assert row["tau"] == pytest.approx(sums[0] / np.sqrt(sums[1] * sums[2]))
    sums = sum(tau(found[:, one], found[:, other]) for one, other in ((0, 1), (0, 2), (1, 2)))
    assert row["seed_tau"] == pytest.approx(sums[0] / np.sqrt(sums[1] * sums[2]))
    spread = section.tables["spread"].set_index("variant")
    assert spread.loc["all variants", ["cells", "evaluations"]].tolist() == [15, 45]
    within = 100 * np.sqrt(evaluations.var(axis=1, ddof=1).mean())
    assert spread.loc["all variants", "evaluation_sd_points"] == pytest.approx(within)


def test_searches_that_found_the_same_cell_are_one_measurement(tmp_path):
    folder = study(tmp_path, 3, variants={"progressive": BASE, "deep": VARIANTS["deep"]})
    before = rq1.build(tmp_path).tables
    trials = [f"depth_gap-progressive-s{seed}" for seed in (0, 1)]
    rows = read_rows(folder, "genotypes", trials[0])
    write_rows(folder, "genotypes", trials[1], [row | {"trial_id": trials[1]} for row in rows])
    after = rq1.build(tmp_path).tables
    for tables, cells, pairs in ((before, 6, 6), (after, 5, 4)):
        ranks, spread = tables["ranks"], tables["spread"]
        assert ranks[["n", "pairs"]].to_numpy().tolist() == [[cells, pairs]] * 2
        assert spread.set_index("variant").loc["all variants", ["cells", "evaluations"]].tolist() == [cells, 2 * cells]
    gap = after["gap_by_depth"].set_index("variant")
    assert gap["n"].to_dict() == {"progressive": 2, "deep": 3}
    assert np.isnan(gap.loc["progressive", "ci_low"])  # of two cells there is no interval, of three searches or not
    assert after["variants"].set_index("variant").loc["progressive", "evaluated"] == 3


def test_the_gap_is_ordered_by_depth_with_its_interval(three):
    table = rq1.build(three).tables["gap_by_depth"]
    assert table[["variant", "last_cells"]].to_numpy().tolist() == [
        ["shallow", 5],
        ["reversed", 5],
        ["progressive", 17],
        ["deep", 17],
    ]
    assert (table["ci_low"] < table["gap_points"]).all()
    assert (table["gap_points"] < table["ci_high"]).all()


def test_what_is_missing_is_listed_and_the_rest_is_reported(tmp_path):
    folder = study(tmp_path, 3, failed=["depth_gap-deep-s1"])
    make_trial(folder, "extra", "shallow", shrink(replace(VARIANTS["shallow"], seed=3), 2), status="running", epochs_done=1)
    genotypes = read_table(folder, "genotypes").query("stage == 3 and max_skips == 2").set_index("trial_id")["genotype_id"]
    for seed in (0, 1):
        trial_id = f"eval-{genotypes['depth_gap-reversed-s2']}-s{seed}"
        (row,) = read_rows(folder, "evaluations", trial_id)
        row |= {"status": "failed", "failure": "FloatingPointError: the loss is nan", "accuracy": None, "error_percent": None}
        write_rows(folder, "evaluations", trial_id, [row])
    (folder / "evaluations" / f"eval-{genotypes['depth_gap-reversed-s0']}-s1.parquet").unlink()
    answer = rq1.build(tmp_path)
    text = to_text(answer)
    assert "- deep, seed 1: search failed (FloatingPointError: stage 1, epoch 2: the training loss is nan)" in text
    assert "- shallow, seed 3: search running" in text
    assert "- reversed, seed 2: its cell has no finished evaluation (FloatingPointError: the loss is nan)" in text
    assert "- reversed, seed 0: 1 of 2 evaluations finished" in text
    assert "- progressive: no trial with seed 3" in text
    assert dict(zip(answer.tables["variants"]["variant"], answer.tables["variants"]["evaluated"], strict=True)) == {
        "progressive": 3,
        "shallow": 3,
        "deep": 2,
        "reversed": 2,
        "random": 3,
    }
    assert list(answer.tables["error_differences"]["n"]) == [3, 2, 2, 3]


def test_seconds_are_those_of_the_device_that_most_searches_ran_on(tmp_path):
    folder = study(tmp_path, 2)
    plain = rq1.build(tmp_path)
    assert not any("seconds" in line for line in plain.missing)
    for seed, changed in ((0, {"seconds": 1e6, "device": "cpu (slow)"}), (1, {"seconds": 2e6, "device": "cpu (slow)"})):
        (row,) = read_rows(folder, "trials", f"depth_gap-deep-s{seed}")
        write_rows(folder, "trials", f"depth_gap-deep-s{seed}", [row | changed])
    answer = rq1.build(tmp_path)
    seconds = answer.tables["variants"].set_index("variant")["search_seconds"]
    assert np.isnan(seconds["deep"])
    pd.testing.assert_series_equal(
        seconds.drop("deep"), plain.tables["variants"].set_index("variant")["search_seconds"].drop("deep")
    )
    assert answer.missing[-1].startswith("seconds and peak memory are those of the searches on synthetic; left out are 2 searches")
    labels = [label.get_text() for label in answer.figures["timeline"]().axes[0].get_yticklabels()]
    assert labels == ["progressive", "shallow", "reversed"]


@pytest.mark.parametrize(
    ("variants", "settings"),
    [
        (["progressive"], {}),
        (["shallow", "random"], {}),
        (["random"], {}),
        (["progressive", "shallow"], {"failed": ["depth_gap-progressive-s0", "depth_gap-shallow-s0"]}),
        (["progressive", "shallow"], {"evaluation_seeds": ()}),
    ],
)
def test_a_study_with_next_to_nothing_still_gets_its_tables(tmp_path, variants, settings):
    study(tmp_path, 1, variants={name: VARIANTS[name] for name in variants}, **settings)
    text = to_text(rq1.build(tmp_path))
    grows = "progressive" in variants
    assert "Nothing can be compared: " in text if grows else "No search grows in depth, " in text
    assert all(f"| {name}" in text for name in variants)
    assert ("- no trial of a search that grows in depth" in text) == (not grows)


def test_trials_that_share_a_cell_are_named(tmp_path):
    variants = {"progressive": VARIANTS["random"], "random": VARIANTS["random"]}  # drawn from the same seed
    study(tmp_path, 1, variants=variants)
    assert "progressive seed 0, random seed 0 found the same cell" in to_text(rq1.build(tmp_path))


def test_of_two_recipes_the_chosen_one_answers_and_they_are_never_mixed(tmp_path, capsys):
    folder = study(tmp_path, 2)
    plain = rq1.build(tmp_path)
    for evaluation in read_table(folder, "evaluations")["trial_id"]:
        (row,) = read_rows(folder, "evaluations", evaluation)
        other = {
            "trial_id": f"{evaluation}-short",
            "recipe": "short",
            "recipe_id": "short-0123abcd",
            "accuracy": row["accuracy"] / 2,
        }
        write_rows(folder, "evaluations", other["trial_id"], [row | other])
    definition = {"variants": {}, "evaluation": {"recipe": "cifar", "data": "cifar10"}}
    (folder / "study.json").write_text(json.dumps(definition))
    both = rq1.build(tmp_path)
    pd.testing.assert_frame_equal(both.tables["variants"], plain.tables["variants"])
    assert both.missing[-1].startswith("the answer is on cifar10, cifar alone; --data and --recipe choose others (cifar10, short)")
    for recipe in ("short", "short-0123abcd"):
        short = rq1.build(tmp_path, recipe=recipe)
        halves = 100 - plain.tables["variants"]["error_percent"]
        assert list(short.tables["variants"]["error_percent"]) == pytest.approx(list(100 - halves / 2))
        assert "evaluation recipe short (short-0123abcd);" in short.about
    for option, words in (("recipe", "recipe of evaluations of depth_gap, which are: cifar-"), ("data", "data of evaluations")):
        with pytest.raises(SystemExit, match="2"):
            rq1.main(["--results", str(tmp_path), f"--{option}", "longer"])
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"{option}: 'longer' is no {words}" in error


def test_two_trials_of_one_variant_and_seed_are_refused(tmp_path):
    make_trial(study(tmp_path, 1), "again", "deep", shrink(VARIANTS["deep"], 2))
    with pytest.raises(ConfigError, match="two trials of variant deep, seed 0"):
        rq1.build(tmp_path)


def test_a_wrong_count_of_seeds_is_refused_and_an_unfinished_study_says_what_it_lacks(tmp_path):
    folder = study(tmp_path, 2)
    counts = dict.fromkeys(VARIANTS, 3)
    (folder / "study.json").write_text(json.dumps({"variants": dict.fromkeys(VARIANTS), "seeds": counts}))
    section = rq1.build(tmp_path)
    assert section is not None
    assert "deep: no trial with seed 2" in section.missing
    (folder / "completed.json").write_text("{}")
    with pytest.raises(ConfigError, match="the study is done with 3 seeds of progressive, but its tables lack seed 2"):
        rq1.build(tmp_path)


def test_the_command_prints_the_main_table_and_three_sentences(three, capsys, monkeypatch):
    for draw in ("draw_curves", "draw_search"):
        monkeypatch.setattr(rq1, draw, lambda *_: {})  # slow, and the test of the report draws them
    rq1.main(["--results", str(three)])
    lines = capsys.readouterr().out.splitlines()
    table = lines[: lines.index("")]
    assert [line.split()[1] for line in table[2:]] == list(VARIANTS)
    assert max(map(len, table)) <= 160
    assert len(lines) == len(table) + 5
    assert lines[-1].endswith("rq1.md")


def test_a_missing_results_folder_is_one_line_and_exit_code_2(tmp_path):
    command = [sys.executable, str(ANALYSIS / "rq1_depth_gap.py"), "--results", str(tmp_path / "missing")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"error: {tmp_path / 'missing'}: no such results folder\n"


def test_a_folder_without_the_study_has_no_section_and_the_script_says_so(tmp_path, capsys):
    assert rq1.build(tmp_path) is None
    with pytest.raises(SystemExit, match="2"):
        rq1.main(["--results", str(tmp_path)])
    assert "holds no study depth_gap" in capsys.readouterr().err


def test_a_study_of_one_depth_under_another_name_is_told_from_no_study(tmp_path, capsys):
    folder = make_study(tmp_path, "own", {"a": SearchConfig(), "b": SearchConfig(channels=8)}, (0,), epochs=1)
    with pytest.raises(SystemExit, match="2"):
        rq1.main(["--results", str(folder)])
    assert "nothing that this question is about differs between the variants of the study own" in capsys.readouterr().err


def test_the_scripts_import_neither_torch_nor_ray():
    questions = "rq1_depth_gap, rq2_approximation, rq3_regularization, remedies, rq4_transfer, sizing, baselines, schedule_search"
    heavy = "[name for name in ('torch', 'ray', 'mlflow') if name in sys.modules]"
    code = f"import sys, {questions}, compare, publish, report; print({heavy})"
    result = subprocess.run([sys.executable, "-c", code], cwd=ANALYSIS, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def row(variant, difference, *, n=8, p=2 / 2**8, claimed=True):
    bounds = {"ci_low": difference - 0.1, "ci_high": difference + 0.1}
    return {"variant": variant, "n": n, "difference": difference, **bounds, "p": p, "min_p": 2 / 2**n, "p_holm": p} | {
        "detectable": 0.2,
        "claimed": claimed,
    }


def test_the_conclusion_names_every_claim_with_its_sign():
    frame = pd.DataFrame([row("shallow", 1.0), row("random", -0.5)])
    first, second = comparisons.conclude(frame, "progressive", "error", "it helps")
    assert "shallow +1.00 points (95 % interval [+0.90, +1.10], p 0.008, Holm 0.008)" in first
    assert "random −0.50 points" in first
    assert second == "Every comparison of this question is shown."


def test_the_report_says_how_far_few_validation_images_put_the_gap_off():
    measures = pd.DataFrame({"search_accuracy": [0.4, np.nan, 0.6]})
    few = SearchConfig(train_images=2500, validation_fraction=0.04)
    said = rq1.describe_precision({"a": few, "b": few}, measures)
    assert said == "A search accuracy is on 100 validation images: its standard error is 5.0 points, and a gap's no less."
    assert not rq1.describe_precision({"a": SearchConfig()}, measures)  # how many a whole set has, the tables do not say
    assert not rq1.describe_precision({"a": few}, measures.iloc[1:2])
