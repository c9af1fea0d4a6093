"""The README and the pages of docs/: what they say about the code is compared with the code."""

import io
import itertools
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import duckdb
import pandas as pd
import pytest

from pdarts_tune.config.command_line import parse
from pdarts_tune.config.evaluation import EvalConfig
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError, from_dict
from pdarts_tune.evaluation import __main__ as evaluation_command
from pdarts_tune.results import columns
from pdarts_tune.results.columns import update_page
from pdarts_tune.results.tables import read_rows, write_rows
from pdarts_tune.study import cli as study_cli
from synthetic import make_study

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "docs" / "results" / "README.md"]
TABLES = (ROOT / "docs" / "tables.md").read_text()
OWN_STUDY = (ROOT / "docs" / "write_your_own_study.md").read_text()
MODULES = {"pdarts_tune.evaluation": evaluation_command.Arguments, "pdarts_tune.results.columns": columns.Arguments}


def options_of(arguments: type) -> set[str]:
    """The options that a command line knows, as its help has them."""
    said = io.StringIO()
    with redirect_stdout(said), pytest.raises(SystemExit):
        parse(arguments, ["--help"], description="")
    return set(re.findall(r"--[a-z][a-z0-9-]*", said.getvalue()))


def commands_of(page: Path) -> list[tuple[str, str]]:
    """What a page tells to run in Python, and the arguments."""
    text = page.read_text().replace("\\\n", " ")
    return re.findall(r"(?:^|[\s`/])python3? ((?:-m )?[\w./]+)([^\n`#|']*)", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not link.startswith(("http", "#")):
            assert (page.parent / link.split("#")[0]).exists(), link


def test_every_command_of_the_pages_exists_with_its_options():
    of_studies, found = options_of(study_cli.Arguments), 0
    of_modules = {name: options_of(arguments) for name, arguments in MODULES.items()}
    for page in PAGES:
        for command, arguments in commands_of(page):
            where = f"{page.name}: {command}{arguments}"
            script = ROOT / command.removeprefix("CHECKOUT/")
            if command.startswith("-m "):
                known = of_modules[command.removeprefix("-m ")]
            elif script.suffix != ".py":
                continue
            elif "/" in command:
                assert script.exists(), where
                own = script.read_text() + (ROOT / "analysis" / "common" / "section.py").read_text()
                fields = {f"--{name.replace('_', '-')}" for name in re.findall(r"^    (\w+): ", own, re.MULTILINE)}
                fields |= set(re.findall(r'add_argument\("(--[\w-]+)"', own))
                known = of_studies if script.parent.name == "studies" else fields
            else:
                known = of_studies  # a study of the reader's own
            for option in re.findall(r"--[\w-]+", arguments):
                assert option in known, where
            found += 1
    assert found > 40, "commands are no longer found"


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
    examples = dict(zip(("width", "my_report", "recipes"), re.findall(r"```python\n(.*?)```", OWN_STUDY, re.DOTALL), strict=True))
    assert examples["width"] in README.read_text()
    for name, text in examples.items():
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
    (tmp_path / "my_report.py").write_text(re.findall(r"```python\n(.*?)```", OWN_STUDY, re.DOTALL)[1])
    monkeypatch.setattr(sys, "argv", ["my_report.py", "--results", str(tmp_path)])
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


def test_the_page_on_tables_has_the_columns_of_the_schemas():
    assert update_page(TABLES) == TABLES, "run: python -m pdarts_tune.results.columns --page docs/tables.md"


def test_a_column_that_changes_changes_the_page():
    with pytest.raises(ConfigError, match="it must have each of trials, epochs"):
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
