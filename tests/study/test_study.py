import fcntl
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pdarts_tune.config.command_line import NOBODY_READS
from pdarts_tune.config.evaluation import EvalConfig
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.pdarts.genotype import Genotype
from pdarts_tune.pdarts.published import PUBLISHED
from pdarts_tune.results.manifest import definition_difference
from pdarts_tune.results.tables import read_rows, read_table, write_rows
from pdarts_tune.search.loop import Search
from pdarts_tune.search.records import alpha_rows
from pdarts_tune.study import cli as study_module
from pdarts_tune.study import run as study_run
from pdarts_tune.study import sweep
from pdarts_tune.study.cli import main
from pdarts_tune.study.plan import Arguments, Study, Variant, define, make_plan
from pdarts_tune.study.run import Outcomes, StudyState
from pdarts_tune.study.shares import Grants
from studies.depth_gap import STUDY as DEPTH_GAP
from synthetic import make_planned, make_trial
from synthetic_rows import evaluation_row

ROOT = Path(__file__).parents[2]
VARIANTS = "progressive,shallow,deep,reversed,random"  # of depth_gap: enough to kill it in the middle
EVALUATION = (EvalConfig(test_images=10, epochs=2), np.random.default_rng(0), datetime.now(UTC))
STUDY = Study("example", "Does it matter?", lambda base: [Variant("base", base)])


def eval_row(trial, data):
    genotype = PUBLISHED["PDARTS_C10"].genotype
    row = evaluation_row(trial, {"genotype_id": genotype.genotype_id, "params": 1, "macs": 1}, *EVALUATION, 0.9)
    return row | {"data": data}


def run_main(arguments, capsys, study=STUDY):
    with pytest.raises(SystemExit) as stopped:
        main(study, arguments)
    return stopped.value.code, capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "huge"], "preset: 'huge' is unknown, known are smoke, laptop, cifar-small, paper"),
        (["--variants", "deeep"], "variants: 'deeep' is unknown, known are base"),
        (["--data", "cifar11"], "cifar11"),
        (["--data", "parquet:/not/there"], "/not/there"),
        (["--seeds", "0"], "seeds: 0 is wrong"),
        (["--image-size", "16"], "image_size: digits's images have 8 pixels and do not stream, leave image_size out"),
        (["--gpus-per-trial", "0"], "gpus_per_trial: 0.0 is wrong"),
        (["--max-failures", "-1"], "max_failures: -1 is wrong"),
        (["--max-trials", "0"], "max_trials: 0 is wrong, it must be at least 1"),
    ],
)
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_bad_input_is_one_line_and_exit_code_2_and_nothing_is_written(tmp_path, capsys, arguments, message, dry_run):
    results = tmp_path / "results"
    code, output = run_main(["--preset", "smoke", "--results", str(results), *arguments, *dry_run], capsys)
    assert code == 2
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert message in output.err
    assert output.err.count("\n") == 1
    assert not results.exists()


def git(folder, *arguments):
    who = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    done = subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_commit_is_of_the_repository_that_holds_the_package_and_of_no_other_above_it(tmp_path, monkeypatch):
    module = tmp_path / ".venv" / "pdarts_tune" / "trials.py"
    module.parent.mkdir(parents=True)
    module.touch()
    monkeypatch.setattr(study_run, "__file__", str(module))
    find_commit = study_run._commit
    assert find_commit() == "unknown"  # no repository
    git(tmp_path, "init")
    assert find_commit() == "unknown"  # one without a commit
    (tmp_path / "paper.tex").write_text("ours")
    git(tmp_path, "add", "paper.tex")
    git(tmp_path, "commit", "-m", "a paper")
    assert find_commit() == "unknown"  # another project's, with the package in its virtual environment
    git(tmp_path, "add", "--force", str(module))
    git(tmp_path, "commit", "-m", "the package")
    assert find_commit() == git(tmp_path, "rev-parse", "HEAD")
    module.write_text("changed")
    assert find_commit() == git(tmp_path, "rev-parse", "HEAD") + "+"
    monkeypatch.setenv("PATH", "")
    assert find_commit() == "unknown"  # no git


def test_an_image_set_without_labels_is_refused_before_anything_starts(tmp_path, capsys):
    for name in ("train", "test"):
        pd.DataFrame({"image": [b"x"], "weight": [1]}).to_parquet(tmp_path / f"{name}.parquet")
    arguments = ["--preset", "smoke", "--results", str(tmp_path / "results"), "--data", f"parquet:{tmp_path}"]
    code, output = run_main(arguments, capsys)
    assert code == 2
    assert "label" in output.err
    assert not (tmp_path / "results").exists()


def test_a_study_whose_variant_makes_no_sense_is_refused_before_anything_starts(tmp_path, capsys):
    def growing(base):
        return [Variant("growing", replace(base, stages=(base.stages[0], base.stages[2], base.stages[1])))]

    study = Study("example", "?", growing)
    code, output = run_main(["--preset", "smoke", "--results", str(tmp_path / "results")], capsys, study)
    assert code == 2
    assert output.err == (
        "error: variants of example: stages[2].operations: 5 is more than the 3 of the stage before; "
        "a stage can only keep or drop operations, so at most 3\n"
    )


def test_a_results_folder_of_another_definition_is_refused_and_left_alone(tmp_path, capsys):
    folder = tmp_path / "example"
    folder.mkdir()
    plan = make_plan(STUDY, Arguments("laptop"))
    (folder / "study.json").write_text(json.dumps(define(plan)))
    code, output = run_main(["--preset", "smoke", "--results", str(tmp_path)], capsys)
    assert code == 2
    assert "example/study.json is of another definition of this study" in output.err
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["study.json"]


def test_two_drivers_that_add_variants_at_the_same_time_lose_none(tmp_path, capsys, monkeypatch):
    study = Study("example", "?", lambda base: [Variant("base", base), Variant("wide", replace(base, channels=8))])
    make_planned(tmp_path / "example", make_plan(study, Arguments("smoke", seeds=1)))
    take_lock = study_module.exclusive

    def drive(variant):
        options = ["--preset", "smoke", "--seeds", "1", "--results", str(tmp_path), "--variants", variant]
        assert run_main(options, capsys, study)[0] == 0

    @contextmanager
    def let_another_driver_in(folder):
        """The other driver runs from its first line to its last between this one's check of its input and its lock."""
        monkeypatch.setattr(study_module, "exclusive", take_lock)
        drive("wide")
        with take_lock(folder):
            yield

    monkeypatch.setattr(study_module, "exclusive", let_another_driver_in)
    drive("base")
    definition = json.loads((tmp_path / "example" / "study.json").read_text())
    assert set(definition["variants"]) == {"base", "wide"}
    assert definition["seeds"] == {"base": 1, "wide": 1}
    assert json.loads((tmp_path / "example" / "completed.json").read_text())["seeds"] == definition["seeds"]


def test_every_difference_from_the_folder_is_named_and_what_all_variants_share_is_named_once():
    study = Study("example", "?", lambda base: [Variant("base", base), Variant("wide", replace(base, channels=8))])
    ours = json.loads(json.dumps(define(make_plan(study, Arguments("smoke")))))
    assert definition_difference(ours, ours) is None
    theirs = json.loads(json.dumps(ours))
    theirs["evaluation"]["epochs"] += 1
    for settings in theirs["variants"].values():
        settings["batch_size"] = 7
    theirs["variants"]["wide"]["stages"][1]["epochs"] = 9
    theirs["variants"]["theirs alone"] = theirs["variants"]["base"]
    assert definition_difference(theirs, ours) == (
        "evaluation.epochs was 3, is 2; batch_size was 7, is 48 (base, wide); and 1 more"
    )


def test_a_dry_run_prints_the_trials_and_writes_nothing(tmp_path, capsys):
    main(STUDY, ["--preset", "smoke", "--seeds", "2", "--results", str(tmp_path / "results"), "--dry-run"])
    assert "base-seed1" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


def test_help_answers_without_torch_or_ray():
    script = (
        "import sys, runpy\nsys.argv = ['depth_gap.py', '--help']\n"
        "try:\n    runpy.run_path('studies/depth_gap.py', run_name='__main__')\n"
        "except SystemExit:\n    pass\n"
        "assert not {'torch', 'ray', 'mlflow', 'pandas', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--preset" in done.stdout


def test_images_that_were_left_out_or_are_in_both_parts_are_told_by_data_set(tmp_path):
    for trial, counts in {"a": (2, 0), "b": (3, 0), "c": (0, 10), "d": (None, None)}.items():
        row = eval_row(trial, "cifar100" if trial == "c" else "imagenet") | dict(zip(("left_out", "shared"), counts, strict=True))
        write_rows(tmp_path / "study", "evaluations", trial, [row])
    assert Outcomes(tmp_path / "study").image_warnings == [
        "10 of cifar100's test images are among its training images too",
        "3 images of imagenet cannot be used and were left out",
    ]


def test_a_trial_takes_one_cpu_where_there_is_no_gpu():
    assert Grants([{"CPU": 8.0}, {"CPU": 2.0}], None, None).resources(1.0) == {"cpu": 1}


def test_gpus_are_shared_in_fractions_and_bring_their_cpus():
    assert Grants([{"CPU": 16.0, "GPU": 4.0}], None, None).resources(0.5) == {"gpu": 0.5, "cpu": 2}
    assert Grants([{"CPU": 64.0, "GPU": 1.0}, {"CPU": 4.0}], None, None).resources(1.0) == {"gpu": 1.0, "cpu": 4}


def test_a_request_that_no_node_can_meet_is_refused():
    with pytest.raises(ConfigError, match=r"gpus_per_trial: 4.0 asked, the largest node has 2"):
        Grants([{"CPU": 16.0, "GPU": 2.0}, {"CPU": 16.0, "GPU": 2.0}], None, None).resources(4.0)


def test_a_trial_needs_a_cpu_beside_its_gpu():
    with pytest.raises(ConfigError, match="a trial takes 1 CPU, the largest GPU node has 0"):
        Grants([{"GPU": 2.0}, {"CPU": 4.0}], None, None).resources(1.0)


def test_the_share_of_a_gpu_follows_from_predicted_memory_unless_it_is_given():
    nodes = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 16.0, "GPU": 2.0}]
    grants = Grants(nodes, None, 16 * 10**9)
    assert grants.share(2 * 10**9, ready=100) == 0.25
    assert grants.share(15 * 10**9, ready=100) == 1.0
    assert grants.share(2 * 10**9, ready=4) == 1.0  # on four GPUs
    assert grants.share(0, ready=100) == 1.0
    assert Grants(nodes, 0.5, 16 * 10**9).share(3 * 10**9, ready=1) == 0.5
    assert Grants([{"CPU": 8.0}], None, None).share(3 * 10**9, ready=1) == 0.0
    assert grants.resources(0.25) == {"gpu": 0.25, "cpu": 2}
    request = sweep.tune_request(grants, {"trial": {"gpus": 0.25}})
    assert request.required_resources == {"GPU": 0.25, "CPU": 2.0}


def test_the_whole_study_is_printed_as_it_is_resolved(tmp_path, capsys):
    main(STUDY, ["--preset", "smoke", "--seeds", "2", "--results", str(tmp_path / "results"), "--print-config"])
    printed = json.loads(capsys.readouterr().out)
    plan = make_plan(STUDY, Arguments("smoke", seeds=2))
    assert printed == define(plan) | {"seeds": 2, "evaluation_seeds": 1}
    assert not (tmp_path / "results").exists()


def test_known_genotypes_are_evaluated_under_the_names_that_they_are_given(tmp_path, capsys):
    arguments = ["--preset", "smoke", "--results", str(tmp_path / "results"), "--print-config"]
    main(STUDY, [*arguments, "--genotypes", "mine=DARTS_V1,PDARTS_C10"])
    variants = json.loads(capsys.readouterr().out)["variants"]
    assert {name: settings["method"]["source"] for name, settings in variants.items()} == {
        "mine": "DARTS_V1",
        "PDARTS_C10": "PDARTS_C10",
    }
    code, output = run_main([*arguments, "--genotypes", "a=DARTS_V1,a=DARTS_V2"], capsys)
    assert (code, output.err) == (2, "error: genotypes: two are called a; give each source a name, as in NAME=DARTS_V2\n")
    code, output = run_main([*arguments, "--genotypes", "a=DARTS_V1,b=DARTS_V1"], capsys)
    assert (code, output.err) == (2, "error: genotypes: a and b are one genotype from one source; leave out one of the two\n")
    code, output = run_main([*arguments, "--genotypes", "NO_SUCH"], capsys)
    assert code == 2
    assert "'NO_SUCH' is neither a file nor a published name" in output.err


@contextmanager
def depth_gap(results, *arguments):
    """The study's command in a process group of its own, and the file that it prints to."""
    if "--variants" not in arguments:
        arguments += ("--variants", VARIANTS)
    command = [sys.executable, "studies/depth_gap.py", "--preset", "smoke", "--results", str(results), *arguments]
    with (results / "output.txt").open("w+") as output:
        driver = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            yield driver, results / "output.txt"
        finally:
            if driver.poll() is None:
                os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()


def run_depth_gap(results, *arguments):
    """Runs the command to its end and returns what it printed."""
    with depth_gap(results, *arguments) as (driver, output):
        code = driver.wait(timeout=400)
        assert code == 0, output.read_text()
        return output.read_text()


def wait_for_files(pattern, count, driver, output):
    deadline = time.monotonic() + 240
    while len(list(output.parent.glob(pattern))) < count:
        assert driver.poll() is None, output.read_text()
        assert time.monotonic() < deadline, f"no {pattern}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def killed_and_continued(tmp_path_factory):
    """The smoke study, its driver and all its workers killed in the middle, then continued with the same command."""
    results = tmp_path_factory.mktemp("results")
    with depth_gap(results) as (driver, output):
        wait_for_files("depth_gap/alphas/*.parquet", 2, driver, output)
        os.killpg(driver.pid, signal.SIGKILL)
    before = read_table(results, "epochs")
    return results, before, run_depth_gap(results)


@pytest.mark.slow  # two runs of the smoke study
@pytest.mark.timeout(900)
def test_a_killed_study_continues_with_every_row_once(killed_and_continued):
    results, before, output = killed_and_continued
    trials, epochs = read_table(results, "trials"), read_table(results, "epochs")
    assert sorted(trials.trial_id) == sorted(f"{v}-seed0" for v in VARIANTS.split(","))
    assert set(trials.status) == {"completed"}
    assert not epochs.duplicated(["trial_id", "stage", "epoch"]).any()
    assert len(epochs) == 4 * 6
    kept = before.merge(epochs, on=["trial_id", "stage", "epoch", "finished"])
    assert len(kept) == len(before), "an epoch that was on disk before the kill was run again"
    assert "report   " in output
    assert "Traceback" not in output


@pytest.mark.slow  # uses the study above
@pytest.mark.timeout(900)
def test_a_killed_search_ends_with_the_alphas_of_an_undisturbed_one(killed_and_continued):
    results, before, _ = killed_and_continued
    trial_id = before.trial_id.iloc[0]
    plan = make_plan(DEPTH_GAP, Arguments("smoke", variants=VARIANTS))
    (config,) = (trial.config for trial in plan.searches if trial.trial_id == trial_id)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    search = Search(config, torch.device("cpu"))
    expected = pd.DataFrame([row for record in search.epochs() for row in alpha_rows(record)])
    torch.set_num_threads(threads)
    alphas = read_table(results, "alphas")
    alphas = alphas[alphas.trial_id == trial_id].reset_index(drop=True)
    keys = ["stage", "epoch", "cell", "edge", "operation"]
    both = expected.merge(alphas, on=keys, suffixes=("_expected", ""))
    assert len(both) == len(expected) == len(alphas)
    assert (both.alpha == both.alpha_expected).all()


@pytest.mark.slow  # uses the study above
@pytest.mark.timeout(900)
def test_every_genotype_parses_obeys_its_limit_and_the_last_ones_are_evaluated(killed_and_continued):
    results, *_ = killed_and_continued
    genotypes, evaluations = read_table(results, "genotypes"), read_table(results, "evaluations")
    assert (genotypes.skips <= genotypes.max_skips).all()
    for text in genotypes.genotype.unique():
        Genotype.parse(text)
    state = StudyState(make_plan(DEPTH_GAP, Arguments("smoke", variants=VARIANTS)), results / "depth_gap")
    assert sorted(evaluations.trial_id) == sorted(state.found)
    assert evaluations.genotype_id.is_unique
    assert set(evaluations.status) == {"completed"}


@pytest.mark.slow  # uses the study above
@pytest.mark.timeout(900)
def test_mlflow_has_a_finished_run_for_each_trial_at_the_top_of_the_studys_experiment(killed_and_continued):
    results, *_ = killed_and_continued
    with sqlite3.connect(results / "mlflow.db") as database:
        statuses = [status for (status,) in database.execute("select status from runs where lifecycle_stage = 'active'")]
        parents = database.execute("select count(*) from tags where key = 'mlflow.parentRunId'").fetchone()[0]
        names = {name for (name,) in database.execute("select distinct key from latest_metrics")}
        tags = dict(database.execute("select key, value from experiment_tags"))
    assert statuses == ["FINISHED"] * 5
    assert parents == 0
    assert {"search_accuracy", "error_percent", "depth_gap", "peak_bytes"} <= names
    assert tags["mlflow.note.content"].startswith("# RQ1")


@pytest.mark.slow  # uses the study above
@pytest.mark.timeout(900)
def test_a_finished_study_is_extended_by_just_what_is_new(killed_and_continued):
    results, *_ = killed_and_continued
    before = {path: path.stat().st_mtime_ns for path in results.glob("depth_gap/*/*.parquet")}
    output = run_depth_gap(results, "--variants", "random", "--seeds", "2")
    assert "2 searches (1 already done)" in output
    assert len(read_table(results, "trials")) == 6
    assert all(path.stat().st_mtime_ns == changed for path, changed in before.items())


@pytest.mark.slow  # starts Ray and waits for an epoch
@pytest.mark.timeout(600)
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_study_says_how_to_continue(tmp_path, stop):
    with depth_gap(tmp_path, "--variants", "shallow") as (driver, output):
        wait_for_files("depth_gap/epochs/*.parquet", 1, driver, output)
        os.kill(driver.pid, stop)
        code = driver.wait(timeout=60)
    said = output.read_text()
    assert code == 130, said
    assert "the same command continues the study" in said
    assert "Traceback" not in said


def test_a_search_over_its_memory_limit_is_not_run_again_and_has_nothing_to_evaluate(tmp_path):
    plan = make_plan(STUDY, Arguments("smoke", seeds=2, memory_limit=10**9))
    over = {"status": "out_of_memory", "error": "MemoryLimitError: stage 3: takes 2 bytes by prediction, memory_limit is 1"}
    for trial, state in zip(plan.searches, (over, over | {"error": "StageMemoryError: stage 3"}), strict=True):
        make_trial(tmp_path, trial.trial_id, trial.variant, trial.config, status="out_of_memory")
        (row,) = read_rows(tmp_path, "trials", trial.trial_id)
        write_rows(tmp_path, "trials", trial.trial_id, [row | state])
    state = StudyState(plan, tmp_path)
    assert state.over_limit == {"base-seed0"}
    assert [trial.trial_id for trial in state.missing] == ["base-seed1"]
    assert state.found == {}


def test_a_second_driver_on_the_same_folder_is_refused(tmp_path, capsys):
    folder = tmp_path / "example"
    folder.mkdir()
    with (folder / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, output = run_main(["--preset", "smoke", "--results", str(tmp_path)], capsys)
    assert code == 2
    assert "another process is running this study here" in output.err


def test_a_dry_run_into_a_pipe_that_nobody_reads_ends_without_a_traceback(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    command = [
        sys.executable,
        "studies/depth_gap.py",
        "--preset",
        "smoke",
        "--dry-run",
        "--probe-seconds",
        "0",
        "--results",
        tmp_path,
    ]
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (NOBODY_READS, "")


FINISHED = """
import sys
from pathlib import Path
sys.path[:0] = ["tests", "."]
from pdarts_tune.study.cli import main
from pdarts_tune.study.plan import Arguments, Study, Variant, make_plan
from synthetic import make_planned
study = Study("example", "?", lambda base: [Variant("base", base)], report=Path(sys.argv.pop()))
folder = Path(sys.argv[sys.argv.index("--results") + 1]) / "example"
if not folder.exists():
    make_planned(folder, make_plan(study, Arguments("smoke", seeds=1)))
main(study)
"""


def finish(results, report, stdout=subprocess.PIPE, **environment):
    """The command of a study whose tables are complete."""
    command = [sys.executable, "-c", FINISHED, "--preset", "smoke", "--seeds", "1", "--results", results, report]
    settings = {"cwd": ROOT, "stderr": subprocess.PIPE, "text": True, "check": False}
    return subprocess.run(command, stdout=stdout, env=os.environ | environment, **settings)


@pytest.mark.timeout(240)
def test_nothing_after_the_tables_undoes_completed(tmp_path):
    report = tmp_path / "report.py"
    lines = (
        "import beside, matplotlib.figure\nfrom dataclasses import dataclass\nfrom pathlib import Path",
        "from pdarts_tune.config.command_line import parse\n@dataclass\nclass A:\n    results: Path = Path()",
        "parse(A, description='')\nprint('\u2013')\nraise SystemExit(beside.CODE)",
    )
    report.write_text("\n".join(lines))
    (tmp_path / "beside.py").write_text("CODE = 0")
    marker = tmp_path / "results" / "example" / "completed.json"
    notebook = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYTHONSAFEPATH": "1"}
    done = finish(tmp_path / "results", report, PYTHONIOENCODING="latin-1", **notebook)
    assert (done.returncode, done.stderr) == (0, "")
    assert "?\n" in done.stdout
    assert marker.exists()
    (tmp_path / "beside.py").write_text("CODE = 3")
    done = finish(tmp_path / "results", report, **notebook)
    assert done.returncode == 0
    assert "warning: there is no report, for the reason above; python" in done.stderr
    assert marker.exists()
    reading, writing = os.pipe()
    os.close(reading)
    done = finish(tmp_path / "results", report, stdout=writing)
    os.close(writing)
    assert done.returncode == 0
    assert done.stderr.startswith("warning: the output cannot be printed (Broken pipe); the work goes on without it")
    assert marker.exists()
