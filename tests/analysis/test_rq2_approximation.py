"""RQ2's report on synthetic studies: planted effects are found, planted nulls are not, dropping is judged at the margin."""

import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis import rq2_approximation as rq2
from common.comparisons import tradeoff_frame
from common.section import to_text
from common.statistics import holm
from pdarts_tune.config.methods import RandomSampling
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.pdarts.progressive_depth import with_operations
from pdarts_tune.results.tables import read_rows, read_table, write_rows
from synthetic import make_study

BASE = SearchConfig()
VARIANTS = {
    "any name": BASE,
    "at random": replace(BASE, dropping="random"),
    "all kept": replace(BASE, stages=with_operations(BASE.stages, (8, 8, 8))),
    "drawn": replace(BASE, method=RandomSampling()),
}
NAMES = {name: name.replace(" ", "_") for name in VARIANTS}


def study(root, seeds, folder="approximation", **settings):
    accuracy = dict.fromkeys(NAMES.values(), 0.97) | settings.pop("accuracy", {})
    variants = {NAMES[name]: config for name, config in VARIANTS.items()}
    settings = {"epochs": 1, "test_images": 4000, "evaluation_seeds": (0,)} | settings
    return make_study(root, folder, variants, range(seeds), accuracy=accuracy, **settings)


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    root = tmp_path_factory.mktemp("eight")
    study(root, 8, accuracy={"at_random": 0.95})
    return root, rq2.build(root)


def test_a_planted_effect_is_found_and_a_planted_null_is_not(eight):
    _, section = eight
    found = section.tables["error_differences"].set_index("variant")
    assert found.loc["at_random", "difference"] == pytest.approx(2.0, abs=0.4)
    assert dict(found["claimed"]) == {"at_random": True, "all_kept": False, "drawn": False}
    assert section.conclusion[0].startswith("Shown, as difference in evaluation error from any_name")
    assert "Not shown for all_kept, drawn" in section.conclusion[1]


def test_dropping_that_costs_nothing_is_shown_to_be_no_worse_and_one_that_costs_is_not(tmp_path):
    study(tmp_path, 12, test_images=20000, accuracy={"at_random": 0.96, "all_kept": 0.9702})
    section = rq2.build(tmp_path)
    judged = section.tables["non_inferiority"].set_index("variant")
    assert dict(judged["shown"]) == {"any_name": True, "at_random": False}
    assert set(judged["against"]) == {"all_kept"}
    assert set(judged["min_p"]) == {2.0**-12}
    assert list(judged["p_holm"]) == pytest.approx(holm(judged["p"].tolist()))
    assert "Shown to cost less than 0.3 points of error: any_name against all_kept." in section.conclusion


def test_a_reference_of_other_steps_is_stated(tmp_path):
    """Half the batch with the same epochs is twice the steps."""
    halved = replace(SearchConfig(stages=with_operations(BASE.stages, (8, 8, 8))), batch_size=48)
    make_study(tmp_path, "approximation", {"drops": SearchConfig(), "keeps": halved}, range(2), epochs=2, evaluation_seeds=(0,))
    section = rq2.build(tmp_path)
    (row,) = section.tables["non_inferiority"].to_dict("records")
    assert (row["variant"], row["against"], row["steps_ratio"]) == ("drops", "keeps", 2.0)
    assert "|   steps ratio |" in to_text(section)


def test_non_inferiority_is_corrected_for_all_its_comparisons(tmp_path):
    study(tmp_path, 6, test_images=20000, accuracy={"any_name": 0.98, "at_random": 0.98})  # six pairs can show one, and not two
    section = rq2.build(tmp_path)
    judged = section.tables["non_inferiority"]
    assert (judged["p"] == 2.0**-6).all()
    assert (judged["p_holm"] == 2 * 2.0**-6).all()
    assert (judged["upper_points"] < 0.3).all()
    assert not judged["shown"].any()
    assert section.conclusion[-2].endswith("not shown for any variant; n = 6 cannot show it, 7 pairs are needed for 2 comparisons.")
    assert "A question of its own: the rows are one family." in " ".join(to_text(section).split())


def test_three_seeds_cannot_show_that_dropping_is_no_worse(tmp_path):
    study(tmp_path, 3, accuracy={"any_name": 1.0})
    section = rq2.build(tmp_path)
    assert not section.tables["non_inferiority"]["shown"].any()
    assert section.conclusion[-2].endswith(
        "is not shown for any variant; n = 3 cannot show it, 7 pairs are needed for 2 comparisons."
    )


def test_costs_are_those_of_the_tables_and_an_exact_difference_has_no_interval(eight):
    root, section = eight
    trials = read_table(root, "trials")
    variants = section.tables["variants"].set_index("variant")
    for name in ("any_name", "all_kept"):
        own = trials[trials["variant"] == name]
        assert variants.loc[name, "peak_mebibytes"] == pytest.approx(own["peak_bytes"].mean() / 2**20)
        assert variants.loc[name, "search_seconds"] == pytest.approx(own["seconds"].mean())
    assert list(variants["operations"].fillna("")) == ["8-5-3", "8-5-3", "8-8-8", ""]
    peak = section.tables["peak_differences"].set_index("variant").loc["all_kept"]
    assert peak["difference"] > 1000
    assert math.isnan(peak["ci_low"])
    seconds = section.tables["seconds_differences"].set_index("variant").loc["all_kept"]
    assert seconds["claimed"]


def test_what_was_dropped_adds_up_to_what_each_stage_lost(eight):
    _, section = eight
    dropped = section.tables["dropped"].set_index(["variant", "stage", "cell"])
    totals = dropped.sum(axis=1)
    for cell in ("normal", "reduce"):
        assert totals["any_name", 1, cell] == pytest.approx(300)  # 8 to 5: three operations on every edge
        assert totals["any_name", 2, cell] == pytest.approx(200)
        assert totals["all_kept", 1, cell] == 0


def test_the_front_is_of_those_that_nothing_beats_in_both():
    rows = [(name, seed, "completed", error, cost, cost) for name, error, cost in POINTS for seed in range(4)]
    trials = pd.DataFrame(rows, columns=["variant", "seed", "status", "error_percent", "peak_mebibytes", "seconds"])
    trials["genotype_id"] = trials["trial_id"] = [f"{name} {seed}" for name, seed in trials[["variant", "seed"]].to_numpy()]
    points = tradeoff_frame(trials, np.random.default_rng(0), "peak_mebibytes", "seconds").set_index("variant")
    assert list(points.index[points["seconds_front"]]) == ["cheap", "good", "between"]


POINTS = [("cheap", 5.0, 1.0), ("good", 3.0, 9.0), ("between", 4.0, 5.0), ("beaten", 4.5, 6.0), ("as cheap", 6.0, 1.0)]


def test_out_of_memory_is_a_result_and_the_rest_is_compared(tmp_path):
    folder = study(tmp_path, 2)
    for seed in (0, 1):
        trial_id = f"approximation-all_kept-s{seed}"
        (row,) = read_rows(folder, "trials", trial_id)
        write_rows(folder, "trials", trial_id, [row | {"status": "out_of_memory", "error": "stage 3 needs 17 GB"}])
    section = rq2.build(tmp_path)
    kept = section.tables["variants"].set_index("variant").loc["all_kept"]
    assert (kept["completed"], kept["out_of_memory"]) == (0, 2)
    assert "- all_kept, seed 0: search out_of_memory (stage 3 needs 17 GB)" in to_text(section)
    assert section.tables["non_inferiority"].empty
    assert "so dropping cannot be judged" in section.conclusion[-2]


def test_a_variant_from_another_device_has_no_seconds(tmp_path):
    folder = study(tmp_path, 2)
    for seed in (0, 1):
        (row,) = read_rows(folder, "trials", f"approximation-all_kept-s{seed}")
        write_rows(folder, "trials", f"approximation-all_kept-s{seed}", [row | {"device": "cpu (slow)"}])
    section = rq2.build(tmp_path)
    variants, stages = section.tables["variants"].set_index("variant"), section.tables["stages"]
    assert dict(variants["search_seconds"].isna()) == {"any_name": False, "at_random": False, "all_kept": True, "drawn": False}
    assert set(stages.loc[stages["seconds"].isna(), "variant"]) == {"all_kept"}
    assert set(stages.loc[stages["peak_mebibytes"].isna(), "variant"]) == {"all_kept"}
    assert section.tables["seconds_differences"].set_index("variant").loc["all_kept", "n"] == 0
    assert any("left out are 2 searches" in line for line in section.missing)
    legend = [text.get_text() for text in section.figures["tradeoff"]().legends[0].get_texts()]
    assert legend[:-1] == ["any_name", "at_random", "drawn"]


def test_costs_are_concluded_and_compared_with_a_dropping_search_that_was_measured_on_the_same_device(tmp_path):
    folder = study(tmp_path, 2)
    at_random = rq2.build(tmp_path).conclusion[-1]
    assert re.fullmatch(r"Cost of a search against any_name, mean: at_random .* s and .* MiB; all_kept .* MiB\.", at_random)
    for seed in (0, 1):
        (row,) = read_rows(folder, "trials", f"approximation-any_name-s{seed}")
        write_rows(folder, "trials", f"approximation-any_name-s{seed}", [row | {"device": "cpu (slow)"}])
    section = rq2.build(tmp_path)
    costs = section.tables["seconds_differences"].set_index("variant")
    assert costs["n"].to_dict() == {"any_name": 0, "all_kept": 2}
    found = section.tables["variants"].set_index("variant")["search_seconds"]
    assert costs.loc["all_kept", "difference"] == pytest.approx(found["all_kept"] - found["at_random"])
    assert section.conclusion[-1].startswith("Cost of a search against at_random, mean: all_kept ")
    assert "costs are compared with those of at_random, since those of any_name are of another device" in section.missing


def test_the_script_writes_what_it_shows_and_needs_no_name(eight, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rq2, "draw_search", lambda *_: {})  # slow, and RQ1's test draws them
    root, _ = eight
    rq2.main(["--results", str(root), "--out", str(tmp_path)])
    assert "| any_name" in capsys.readouterr().out
    text = (tmp_path / "rq2.md").read_text()
    assert all((tmp_path / f"rq2_{name}.svg").exists() for name in ("tradeoff", "learning_curves"))
    assert "## Published, not measured here" in text
    renamed = study(tmp_path / "other", 1, folder="my_own")
    assert rq2.build(renamed).tables["variants"]["variant"].tolist() == list(NAMES.values())
    assert rq2.build(tmp_path / "other") is None


@pytest.mark.parametrize("failed", [(), ("approximation-any_name-s0", "approximation-all_kept-s0")])
def test_a_single_seed_gives_tables_and_says_that_it_shows_nothing(tmp_path, failed, monkeypatch):
    monkeypatch.setattr(rq2, "draw_search", lambda *_: {})
    study(tmp_path, 1, failed=failed)
    section = rq2.build(tmp_path)
    assert len(section.tables["variants"]) == 4
    assert ("cannot reach 0.05" in section.conclusion[0]) == (not failed)
    assert bool(section.missing) == bool(failed)
