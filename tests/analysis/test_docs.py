"""The README and the pages of docs/: what they say about the code is compared with the code."""

import argparse
import itertools
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pandas as pd
import pytest
import torch
import tyro

from common.statistics import holm, smallest_p
from docs.columns import update_page
from pdarts_tune.config.evaluation import EvalConfig
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import from_dict, to_dict
from pdarts_tune.evaluation import compare, estimates
from pdarts_tune.pdarts.published import PUBLISHED
from pdarts_tune.results.tables import read_rows, write_rows
from pdarts_tune.study import cli as study_cli
from synthetic import make_study

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "docs" / "results" / "README.md"]
TABLES = (ROOT / "docs" / "tables.md").read_text()
OWN_STUDY = (ROOT / "docs" / "write_your_own_study.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README.read_text() + OWN_STUDY, re.DOTALL)
EXAMPLES = dict(zip(("width", "my_report", "recipes"), PYTHON, strict=True))

BLOCK = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(
    r"(\.venv/bin/)?(python3?|pytest|pre-commit|make|pip|git|jupyter|mlflow|ray|sbatch|kubectl|docker|cp|export|for) "
)
# Commands that are neither Python's nor make's, as they stand. These were run whole on the machine of those who wrote the page,
TRIED = {
    "git clone ... && cd pdarts_tune",
    "pip install -e .",
    "pip install -e .[estimates]",
    "pip install -e .[onnx]",
    "pip install -e .[test]",
    "pip install ziglang",
    ".venv/bin/pre-commit install",
    "for table in trials epochs alphas genotypes evaluations; do cp -rn there/depth_gap/$table here/depth_gap/; done",
    "mlflow ui --backend-store-uri sqlite:///<results>/mlflow.db",
    "mlflow server",  # tests/study/test_survival_servers.py
    "export RAY_AUTH_MODE=token PDARTS_TUNE_DATA=/local/data",  # these six: two nodes of one machine, as the page says
    "ray get-auth-token --generate",
    "ray start",
    "ray start --head --port=6379 --block",
    "ray start --address=FIRST_MACHINE:6379 --block",
    "ray stop",
    "ray symmetric-run",
}
# and these never were: no cloud, Kubernetes or SLURM was at hand. tests/study/test_cluster.py reads and runs their files.
NOT_TRIED = {
    "ray exec --start --stop cluster/aws.yaml '...'",
    "kubectl create -f cluster/kuberay.yaml",
    "sbatch --export=ALL,RESULTS=/shared/results,DATA=/shared/data cluster/slurm.sh studies/depth_gap.py --preset paper --data cifar10",  # noqa: E501
}


class Reached(BaseException):
    """A command would start to work now."""


def reach(*_, **__):
    raise Reached


def commands_of(page: Path) -> list[str]:
    """What a page tells to run, one line each: lines of its blocks, and code within its sentences."""
    text = page.read_text().replace("\\\n", " ")
    lines = [line.split("  #")[0].strip() for block in BLOCK.findall(text) for line in block.splitlines()]
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", BLOCK.sub("", text))]
    return [command for command in lines + spans if COMMAND.match(f"{command} ")]


def find_script(command: str) -> list:
    """The file that a Python command runs, and its arguments. A reader's own study is in the working directory."""
    _, name, *words = shlex.split(command)
    if name != "-m":
        script = ROOT / name.removeprefix("CHECKOUT/")
        return [script if script.is_file() else Path(name), *words]
    module = ROOT / words[0].replace(".", "/")
    return [module / "__main__.py" if module.is_dir() else module.with_suffix(".py"), *words[1:]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not link.startswith("http"):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), link
            headings = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE) if anchor else ()
            slugs = [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]
            assert not anchor or anchor in slugs, link


def test_every_python_command_of_the_pages_reaches_its_work(tmp_path, monkeypatch):
    """Its options and their values are accepted; a study's variants, presets and recipes too."""
    for folder, published in (("results", "depth_gap"), ("results_c100", "approximation")):
        (tmp_path / folder).mkdir()
        for name in ("depth_gap", "regularization", "recipes"):
            (tmp_path / folder / name).symlink_to(ROOT / "docs" / "results" / published)
    weights = {"classifier.bias": torch.zeros(10)}
    torch.save(
        {"genotype": str(PUBLISHED["DARTS_V2"].genotype), "config": to_dict(EvalConfig()), "state_dict": weights},
        tmp_path / "model.pt",
    )
    for name, text in EXAMPLES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "benchmarks")])
    monkeypatch.setattr(study_cli, "_check_inputs", reach)
    monkeypatch.setattr(compare, "run", reach)
    monkeypatch.setattr(estimates, "describe_estimates", reach)
    parse_tyro, parse_arguments = tyro.cli, argparse.ArgumentParser.parse_args
    commands = [command for page in PAGES for command in commands_of(page) if command.startswith("python")]
    assert len(commands) > 60, "commands are no longer found"
    for command in dict.fromkeys(commands):
        script, *words = find_script(command)
        studies = script.parent in (ROOT / "studies", Path()) or script.name == "__main__.py"
        if not words:
            continue  # a name
        words = [re.sub(r"^FILE$|^\S+\.pt$", "model.pt", word) for word in words]
        words = [word for word in words if word not in ("--dry-run", "--print-config")]
        monkeypatch.setattr(tyro, "cli", parse_tyro if studies else lambda *args, **options: reach(parse_tyro(*args, **options)))
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda *args: reach(parse_arguments(*args)))
        monkeypatch.setattr(sys, "argv", [str(script), *words])
        try:
            with pytest.raises(Reached):
                runpy.run_path(str(script), run_name="__main__")
        except SystemExit as error:
            pytest.fail(f"{command}: exit code {error.code}")


def test_every_other_command_of_the_pages_is_one_of_make_or_has_been_tried():
    makefile = (ROOT / "Makefile").read_text()
    commands = {command for page in PAGES for command in commands_of(page) if not command.startswith("python")}
    targets = {command for command in commands if command.startswith("make ")}
    assert {target for target in targets if f"\n{target.split()[1]}:" not in makefile} == set()
    assert commands - targets == TRIED | NOT_TRIED


def test_the_files_that_contributors_are_led_to_exist():
    names = re.findall(r"`([\w/]+\.\w+)`", (ROOT / "CONTRIBUTING.md").read_text())
    names = [name for name in names if "/" in name and "NAME" not in name]
    assert len(names) > 15, "names are no longer found"
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_every_study_is_in_the_readme_and_on_the_page_on_running():
    running = (ROOT / "docs" / "run_a_study.md").read_text()
    for path in (ROOT / "studies").glob("*.py"):
        assert f"| `studies/{path.name}` |" in README.read_text(), path.name
        assert f"| `python studies/{path.name}` |" in running, path.name


def test_the_readme_is_short_and_every_page_is_a_click_away_from_it_and_from_the_index():
    assert len(README.read_text().splitlines()) <= 150
    for start in (README, ROOT / "docs" / "README.md"):
        linked = {(start.parent / link).resolve() for link in re.findall(r"\]\(([^)#\s]+)", start.read_text())}
        assert {page for page in PAGES if page not in (start, README)} - linked == set(), start


def test_the_examples_of_own_studies_run_as_they_stand(tmp_path, monkeypatch, capsys):
    for name, text in EXAMPLES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    shown = {}
    for name in ("width", "recipes"):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", "--preset", "smoke", "--print-config"])
        runpy.run_path(f"{name}.py", run_name="__main__")
        shown[name] = json.loads(capsys.readouterr().out)
    variants = shown["width"]["variants"]
    assert {name: settings["channels"] for name, settings in variants.items()} == {"base": 4, "wide": 8, "wide_no_dropout": 8}
    assert [stage["skip_dropout"] for stage in variants["wide_no_dropout"]["stages"]] == [0.0, 0.0, 0.0]
    assert [recipe["recipe"] for recipe in shown["recipes"]["further_evaluations"]] == ["smoke-longer"]
    for recipe in (shown["recipes"]["evaluation"], *shown["recipes"]["further_evaluations"]):
        assert f" digits {from_dict(EvalConfig, recipe).recipe_id} " in " ".join(OWN_STUDY.split())
    assert not (tmp_path / "results").exists()


def test_the_example_of_an_own_report_averages_over_no_two_recipes_or_data_sets(tmp_path, monkeypatch, capsys):
    folder = make_study(tmp_path, "recipes", {"pdarts": SearchConfig()}, (0, 1), epochs=1, evaluation_seeds=(0,))
    for path in sorted((folder / "evaluations").iterdir()):
        (row,) = read_rows(folder, "evaluations", path.stem)
        for name, other in (("recipe_id", "cifar-other"), ("data", "cifar100")):
            new = {"trial_id": f"{path.stem}-{name}", "error_percent": 99.0, name: other}
            write_rows(folder, "evaluations", new["trial_id"], [row | new])
    (tmp_path / "my_report.py").write_text(EXAMPLES["my_report"])
    monkeypatch.setattr(sys, "argv", ["my_report.py", "--results", str(tmp_path / "recipes")])
    runpy.run_path(str(tmp_path / "my_report.py"), run_name="__main__")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    own = row["recipe_id"]
    assert {tuple(line[1:4]) for line in lines} == {("cifar10", own, "2"), ("cifar100", own, "2"), ("cifar10", "cifar-other", "2")}
    assert sorted(float(error) > 90 for *_, error in lines) == [False, True, True]


CELLS = [cell for cell in json.loads((ROOT / "docs" / "tour.ipynb").read_text())["cells"] if cell["cell_type"] == "code"]
RUN_CELLS = """
import contextlib, io, json, sys
printed, names = [], {}
for cell in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(cell, names)
    printed.append(output.getvalue())
json.dump(printed, sys.stdout)
"""


def run_tour(cells):
    """What each cell of the notebook prints in a new process, which knows no command of IPython."""
    code = ["".join(line for line in cell["source"] if not line.startswith("%")) for cell in cells]
    command = [sys.executable, "-W", "error", "-c", RUN_CELLS]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, input=json.dumps(code), cwd=ROOT / "docs", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def starts_a_study(cell):
    return "subprocess.run" in "".join(cell["source"])


def test_the_tour_shows_what_its_cells_print_and_draw():
    reading = list(itertools.takewhile(lambda cell: not starts_a_study(cell), CELLS))
    outputs = [output for cell in reading for output in cell["outputs"]]
    shown = ["".join(line for output in cell["outputs"] for line in output.get("text", ())) for cell in reading]
    assert run_tour(reading) == shown, "run the notebook again and save it"
    assert sum("image/png" in output.get("data", ()) for output in outputs) == 3, "the gap, the alphas, a cell"
    assert (ROOT / "docs" / "tour.ipynb").stat().st_size < 300_000


@pytest.mark.slow  # a study of two searches and two trainings
def test_the_whole_tour_runs():
    *_, of_the_study, last = run_tour(CELLS)
    assert "| progressive |" in of_the_study
    assert last.split()[-10] == "progressive"


def test_the_picture_of_the_stages_is_that_of_the_settings():
    script = runpy.run_path(str(ROOT / "docs" / "images" / "stages.py"))
    assert script["draw"]() == (ROOT / "docs" / "images" / "stages.svg").read_text(), "run: python docs/images/stages.py"


def test_the_page_on_statistics_has_the_smallest_p_and_what_it_allows():
    page = (ROOT / "docs" / "statistics.md").read_text()
    rows = re.findall(r"^\| (?:pairs|smallest p|most comparisons).*", page, re.MULTILINE)
    pairs, printed, allowed = ([cell.strip() for cell in row.split("|")[2:-1]] for row in rows)
    for n, p, most in zip(map(int, pairs), printed, map(int, allowed), strict=True):
        assert float(p) == pytest.approx(smallest_p(n), abs=0.5 * 10 ** -(len(p) - 2))
        below = [count for count in range(1, 100) if holm([smallest_p(n)] + [1.0] * (count - 1))[0] < 0.05]
        assert most == max(below, default=0)


def test_the_page_on_tables_has_the_columns_of_the_schemas():
    assert update_page(TABLES) == TABLES, "run: python docs/columns.py"


def test_a_column_that_changes_changes_the_page():
    with pytest.raises(ValueError, match="it must have each of trials, epochs"):
        update_page(TABLES.replace("<!-- columns: alphas -->", ""))
    assert update_page(TABLES.replace("| `error` |", "| `mistake` |")) == TABLES


QUERIES = re.findall(r"```sql\n(.*?)```", TABLES, re.DOTALL)


@pytest.mark.parametrize("query", QUERIES[:3], ids=("rq1", "rq2", "rq3"))
def test_the_answers_on_the_page_on_tables_are_those_of_the_published_studies(query, monkeypatch):
    monkeypatch.chdir(ROOT / "docs")
    answer = duckdb.sql(query).df().to_string(index=False)
    printed = TABLES[TABLES.index(query) :]
    assert answer in printed[: printed.find("```sql")], answer


def test_the_queries_of_the_page_on_tables_average_over_no_two_recipes_or_data_sets_or_stages(tmp_path, monkeypatch):
    made = make_study(tmp_path / "results", "depth_gap", seeds=(0, 1), epochs=2)
    for name in ("approximation", "regularization", "transfer"):
        shutil.copytree(made, tmp_path / "results" / name)
    monkeypatch.chdir(tmp_path)
    assert len(QUERIES) == 4, "one a research question"
    before = [duckdb.sql(query).df() for query in QUERIES]
    for folder in (tmp_path / "results").iterdir():
        for path in sorted((folder / "evaluations").iterdir()):
            (row,) = read_rows(folder, "evaluations", path.stem)
            wrong = {"error_percent": 99.0, "accuracy": 0.01}
            for place, other in enumerate(({"recipe_id": "cifar-other"}, {"data": "cifar100"}, {"status": "failed"})):
                other = {"trial_id": f"{path.stem}-{place}", **wrong, **other}
                write_rows(folder, "evaluations", other["trial_id"], [row | other])
            genotype = next(row for row in read_rows(folder, "genotypes", "depth_gap-pdarts-s0") if row["stage"] == 1)
            earlier = {"trial_id": "earlier", "genotype_id": genotype["genotype_id"], **wrong}
            write_rows(folder, "evaluations", "earlier", [row | earlier])
    for query, old in zip(QUERIES, before, strict=True):
        assert set(old["variant"]) == {"pdarts", "shallow", "no_dropout", "darts", "random"}, query
        new = duckdb.sql(query).df()
        if "recipe_id" in old:
            assert set(new["recipe_id"]) == {*old["recipe_id"], "cifar-other"}
            assert set(new["data"]) == {"cifar10"}  # what the cells were searched on
            new = new[new["recipe_id"] != "cifar-other"]
        keys = ["variant", *({"m", "trial_id"} & set(old))]
        order = {"ignore_index": True, "by": keys}
        pd.testing.assert_frame_equal(new[list(old)].sort_values(**order), old.sort_values(**order))
