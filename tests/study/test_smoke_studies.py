"""Each study's smoke preset from the command line to its report: together under 4 minutes on 2 idle cores."""

import subprocess
import sys
from pathlib import Path

import pytest

from pdarts_tune.results.tables import read_table
from pdarts_tune.study.plan import make_plan
from studies import approximation, regularization, transfer

ROOT = Path(__file__).parents[2]


@pytest.mark.slow  # whole studies through Ray
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("module", [approximation, regularization, transfer], ids=lambda module: module.STUDY.name)
def test_a_study_runs_from_its_command_to_its_report(tmp_path, module):
    study = module.STUDY
    command = [sys.executable, f"studies/{study.name}.py", "--preset", "smoke", "--results", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    plan = make_plan(study, "smoke")
    trials, genotypes, evaluations = (read_table(tmp_path, table) for table in ("trials", "genotypes", "evaluations"))
    assert set(trials["trial_id"]) == {trial.trial_id for trial in plan.searches()}
    assert set(trials["status"]) == set(evaluations["status"]) == {"completed"}
    found = set()
    for trial in plan.searches():
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
