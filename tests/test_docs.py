"""The pages of docs/: what they say about the code is compared with the code."""

import re
import shutil
from pathlib import Path

import duckdb
import pytest

from pdarts_tune.columns import update_page
from pdarts_tune.config import ConfigError
from synthetic import make_study

ROOT = Path(__file__).parents[1]
TABLES = (ROOT / "docs" / "tables.md").read_text()


def test_the_page_on_tables_has_the_columns_of_the_schemas():
    assert update_page(TABLES) == TABLES, "run: python -m pdarts_tune.columns --page docs/tables.md"


def test_a_column_that_changes_changes_the_page():
    with pytest.raises(ConfigError, match="it must have each of trials, epochs"):
        update_page(TABLES.replace("<!-- columns: alphas -->", ""))
    assert update_page(TABLES.replace("| `error` |", "| `mistake` |")) == TABLES


def test_the_queries_of_the_page_on_tables_run_and_answer_for_every_variant(tmp_path, monkeypatch):
    made = make_study(tmp_path / "results", "depth_gap", seeds=(0, 1), epochs=2)
    for study in ("approximation", "regularization", "transfer"):
        shutil.copytree(made, tmp_path / "results" / study)
    monkeypatch.chdir(tmp_path)
    queries = re.findall(r"```sql\n(.*?)```", TABLES, re.DOTALL)
    assert len(queries) == 4, "one a research question"
    for query in queries:
        answer = duckdb.sql(query).df()
        assert set(answer["variant"]) == {"pdarts", "shallow", "no_dropout", "darts", "random"}, query
