"""A file that was copied into a table, or a row that is there twice, is refused by name by every reader: it would change means."""

import importlib
import json
import shutil

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.results.schemas import PRIMARY_KEYS, SCHEMAS
from pdarts_tune.results.storage import Storage
from pdarts_tune.results.tables import read_rows, read_study_table, read_table
from pdarts_tune.study import run as study_run
from pdarts_tune.study.plan import Study, Variant, make_plan
from pdarts_tune.study.run import find_same
from synthetic import make_planned

frames = importlib.import_module("common.study_tables")
publish = importlib.import_module("analysis.publish")

STUDY = Study("depth_gap", "?", lambda base: [Variant("a", base)])
PLAN = make_plan(STUDY, "smoke", seeds=2)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "depth_gap"
    make_planned(folder, PLAN)
    (folder / "completed.json").write_text("{}")
    (folder / "study.json").write_text(json.dumps({"variants": {"a": {}}}))
    return folder


@pytest.fixture
def study(original, tmp_path):
    return shutil.copytree(original, tmp_path / "depth_gap")


COPIES = ["{} (copy)", "{} (1)", "{}.sync-conflict-20261126-101500-ABCDEFG", "Copy of {}", "_{}", "a-seed7"]


def readers_of(table):
    """What reads a whole table: by name, with every column or with one that is not of the key."""
    other = next(name for name in SCHEMAS[table].names if name not in PRIMARY_KEYS[table])
    readers = {
        "read_table": lambda folder: read_table(folder, table),
        "read_table, a column": lambda folder: read_table(folder.parent, table, [other]),
        "read_study_table": lambda folder: read_study_table(folder, table),
        "read_study_table, a column": lambda folder: read_study_table(folder, table, [other]),
        "ledger": lambda folder: study_run.read_columns(Storage(folder), table, other),
        "publish": lambda folder: publish.publish(folder, folder.parent / "out", ""),
    }
    if table == "alphas":
        readers["candidates"] = lambda folder: frames.read_candidates(frames.read_study(folder))
    else:
        readers["frames"] = frames.read_study
    if table in ("trials", "evaluations"):
        readers["missing"] = lambda folder: study_run.missing_trials(PLAN.searches(), table, Storage(folder))
    if table == "trials":
        readers["reuse"] = lambda folder: find_same(PLAN.searches(), [Storage(folder)])
    return readers


def refused(table, folder, says):
    for name, read in readers_of(table).items():
        with pytest.raises(ConfigError) as error:
            read(folder)
        assert says in str(error.value), name
        assert "\n" not in str(error.value)
    assert not (folder.parent / "out").exists()


@pytest.mark.parametrize("table", SCHEMAS)
@pytest.mark.parametrize("name", COPIES)
def test_a_copied_file_is_refused_by_name_by_every_reader(study, table, name):
    first = min((study / table).iterdir())
    copy = first.with_stem(name.format(first.stem))
    shutil.copy(first, copy)
    refused(table, study, f"{table}/{copy.name}: its rows are of trial {first.stem}, so it is a copy")


@pytest.mark.parametrize("table", SCHEMAS)
def test_a_renamed_file_is_refused_by_name(study, table):
    first = min((study / table).iterdir())
    first.rename(first.with_stem("a-seed7"))
    refused(table, study, f"{table}/a-seed7.parquet: its rows are of trial {first.stem}")
    with pytest.raises(ConfigError, match=rf"{table}/a-seed7.parquet: its rows are of trial {first.stem}"):
        read_rows(study, table, "a-seed7", [SCHEMAS[table].names[-1]])


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("table", SCHEMAS)
def test_a_key_that_is_there_twice_is_refused_by_name_in_a_study_and_in_its_copy(study, table, whole):
    folder = study
    if whole:
        folder = study.parent / "copy" / "depth_gap"
        publish.publish(study, folder, "")
    path = min((folder / table).iterdir())
    rows = pq.read_table(path)
    pq.write_table(pa.concat_tables([rows, rows.slice(0, 1)]).unify_dictionaries(), path)
    refused(table, folder, f"{table}/{path.name}: two rows have the same key (trial_id={rows['trial_id'][0]}")
    with pytest.raises(ConfigError, match=r"two rows have the same key"):
        read_rows(folder, table, rows["trial_id"][0].as_py(), [SCHEMAS[table].names[-1]])


def test_rows_of_a_whole_study_may_stand_in_any_order(study, tmp_path):
    publish.publish(study, tmp_path / "copy", "")
    path = tmp_path / "copy" / "alphas" / "all.parquet"
    rows = pq.read_table(path)
    pq.write_table(rows.take(list(reversed(range(rows.num_rows)))), path)
    found = read_table(tmp_path / "copy", "alphas").sort_index(ascending=False, ignore_index=True)
    pd.testing.assert_frame_equal(found, read_table(study, "alphas"), check_categorical=False)


def test_files_that_are_no_tables_are_passed_over(study):
    before = read_table(study, "trials")
    for name in ("a-seed0.parquet.bak", ".a-seed0.parquet.0011.tmp", ".syncthing.a-seed0.parquet.tmp"):
        shutil.copy(study / "trials" / "a-seed0.parquet", study / "trials" / name)
    pd.testing.assert_frame_equal(read_table(study, "trials"), before)
    pd.testing.assert_frame_equal(read_study_table(study, "trials"), before)


def test_a_study_is_not_continued_beside_a_copied_file(study, capsys):
    from pdarts_tune.study.cli import main

    shutil.copy(study / "trials" / "a-seed0.parquet", study / "trials" / "a-seed0 (copy).parquet")
    (study / "study.json").unlink()
    with pytest.raises(SystemExit) as stopped:
        main(STUDY, ["--preset", "smoke", "--seeds", "3", "--results", str(study.parent), "--dry-run", "--probe-seconds", "0"])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "trials/a-seed0 (copy).parquet: its rows are of trial a-seed0" in line
