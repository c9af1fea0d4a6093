"""Each study's smoke preset from the command line to its report: together under 4 minutes on 2 idle cores."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pdarts_tune.results.tables import read_table
from pdarts_tune.study.plan import Arguments, make_plan
from studies import approximation, regularization, sizing, transfer

ROOT = Path(__file__).parents[2]


@pytest.mark.slow  # whole studies through Ray
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("module", [approximation, regularization, sizing, transfer], ids=lambda module: module.STUDY.name)
def test_a_study_runs_from_its_command_to_its_report(tmp_path, module):
    study = module.STUDY
    command = [sys.executable, f"studies/{study.name}.py", "--preset", "smoke", "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    plan = make_plan(study, Arguments("smoke"))
    trials, genotypes, evaluations = (read_table(tmp_path, table) for table in ("trials", "genotypes", "evaluations"))
    assert set(trials["trial_id"]) == {trial.trial_id for trial in plan.searches}
    assert set(trials["status"]) == set(evaluations["status"]) == {"completed"}
    found = set()
    for trial in plan.searches:
        rows = genotypes[genotypes["trial_id"] == trial.trial_id]
        (limits,) = (variant.limits for variant in plan.variants if variant.name == trial.variant)
        last = rows[(rows["stage"] == rows["stage"].max()) & rows["max_skips"].isin(limits)]
        assert len(last) == len(limits)
        found |= set(last["genotype_id"])
    assert set(evaluations["genotype_id"]) == found
    assert len(evaluations) == len(found) * len(plan.recipes)
    skips = genotypes[genotypes["max_skips"] == 2].sort_values("stage").groupby("trial_id")["skips"].last()
    if "random_same_skips-seed0" in skips:
        assert skips["random_same_skips-seed0"] == skips["dropout-seed0"]
    assert list((tmp_path / study.name / "report").glob("*.md"))
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "all of them done" in again.stdout


OWN = """
from dataclasses import replace
from pdarts_tune import Study, Variant, main, with_skip_dropout

def variants(base):
    wide = replace(base, channels=2 * base.channels)
    plain = replace(wide, stages=with_skip_dropout(wide.stages, (0.0, 0.0, 0.0)))
    return [Variant("base", base), Variant("wide", wide), Variant("wide_plain", plain, skip_limits=(0, 2))]

def evaluations(base, data):
    return [replace(base, data=name, recipe=recipe, epochs=epochs) for name in data for recipe, epochs in RECIPES]

RECIPES = [("short", 1), ("longer", 2)]
main(Study("own", "Does width matter?", variants, evaluations=evaluations))
"""


@pytest.mark.slow  # three searches, ten trainings or so and a report, through Ray
@pytest.mark.timeout(1200)
def test_an_own_study_with_two_recipes_and_skip_limits_comes_from_its_plan_to_its_page(tmp_path):
    file, results = tmp_path / "own.py", tmp_path / "results"
    command = [sys.executable, "own.py", "--preset", "smoke", "--set", "learning_rate=0.05"]

    def run(*options):
        return subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=True, env=environment)

    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    file.write_text(OWN.replace(', ("longer", 2)', ""))
    assert "= 3 searches on digits" in run("--dry-run", "--probe-seconds", "0").stdout
    assert not results.exists()
    run("--variants", "base")
    run()
    file.write_text(OWN)
    said = run("--variants", "wide").stdout  # the second recipe for a part of the study: it is not complete
    assert "evaluations of the study, which this command does not run: " in said
    assert not (results / "own" / "completed.json").exists()
    left = run("--dry-run", "--probe-seconds", "0").stdout
    cells = read_table(results, "evaluations").groupby("recipe")["genotype_id"].nunique()
    assert f"at most {cells['short'] - cells['longer']}\n" in left
    assert "evaluations by short on digits: done" in left
    said = run().stdout
    assert "(3 already done)" in said
    evaluations, trials = read_table(results, "evaluations"), read_table(results, "trials")
    assert (evaluations.groupby("recipe")["genotype_id"].nunique() == cells["short"]).all()
    assert set(evaluations["status"]) == {"completed"}
    assert [json.loads(config)["learning_rate"] for config in trials["config"]] == [0.05] * 3
    completed = json.loads((results / "own" / "completed.json").read_text())
    assert (completed["searches"], completed["evaluations"]) == (3, len(evaluations))
    page = (results / "own" / "report" / "compare.md").read_text()
    assert all(text in page for text in ("wide_plain", "short", "longer", "channels"))
    assert "nothing is left to run" in run("--dry-run").stdout
