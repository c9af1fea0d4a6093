import os
import time

import pandas as pd
import pyarrow.parquet as pq
import pytest

from pdarts_tune import consolidated
from pdarts_tune.config import ConfigError, SearchConfig
from pdarts_tune.consolidated import read_study_table
from pdarts_tune.results import SCHEMAS, read_rows, read_table, write_rows
from synthetic import make_study, make_trial


@pytest.fixture
def study(tmp_path):
    folder = make_study(tmp_path, variants={"a": SearchConfig(), "b": SearchConfig()}, seeds=(0, 1), epochs=2)
    settle(folder)
    return folder


def settle(folder):
    """As if everything had been written a minute ago."""
    then = time.time() - 60
    for path in folder.glob("*/*.parquet"):
        os.utime(path, (then, then))


def read(study, table, columns=None, **options):
    return read_study_table(study, table, columns, many=2, **options)


def opened(monkeypatch):
    files = []
    real = consolidated.read_file
    monkeypatch.setattr(consolidated, "read_file", lambda path, *rest: files.append(path.stem) or real(path, *rest))
    return files


@pytest.mark.parametrize("table", SCHEMAS)
def test_the_rows_are_those_of_the_files_with_and_without_a_kept_copy(study, table, monkeypatch):
    truth = read_table(study, table)
    pd.testing.assert_frame_equal(read(study, table), truth)
    files = opened(monkeypatch)
    pd.testing.assert_frame_equal(read(study, table), truth)
    assert files == []  # the copy alone was read
    pd.testing.assert_frame_equal(read(study, table, ["trial_id"]), truth[["trial_id"]])


def test_files_that_changed_came_or_went_are_seen_and_the_others_not_read_again(study, monkeypatch):
    read(study, "epochs")
    rows = read_rows(study, "epochs", "depth_gap-a-s1")
    write_rows(study, "epochs", "depth_gap-a-s1", [row | {"train_loss": 9.0} for row in rows])
    (study / "epochs" / "depth_gap-b-s0.parquet").unlink()
    make_trial(study, "depth_gap-a-s9", "a", SearchConfig())
    files = opened(monkeypatch)
    pd.testing.assert_frame_equal(read(study, "epochs"), read_table(study, "epochs"))
    assert sorted(files) == ["depth_gap-a-s1", "depth_gap-a-s9"]


def test_a_change_that_keeps_size_and_time_is_seen(study):
    read(study, "trials")
    path = study / "trials" / "depth_gap-a-s0.parquet"
    before = path.stat()
    (row,) = read_rows(study, "trials", "depth_gap-a-s0")
    write_rows(study, "trials", "depth_gap-a-s0", [row | {"variant": "c"}])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert set(read(study, "trials")["variant"]) == {"a", "b", "c"}


def test_a_file_that_may_still_be_changing_is_not_kept(study, monkeypatch):
    make_trial(study, "depth_gap-a-s9", "a", SearchConfig())
    read(study, "trials")
    files = opened(monkeypatch)
    read(study, "trials")
    assert files == ["depth_gap-a-s9"]


def test_columns_asked_for_later_join_the_copy(study, monkeypatch):
    read(study, "epochs", ["stage"])
    truth = read_table(study, "epochs", ["epoch", "train_loss"])
    pd.testing.assert_frame_equal(read(study, "epochs", ["epoch", "train_loss"]), truth)
    files = opened(monkeypatch)
    read(study, "epochs", ["stage", "train_loss"])
    assert files == []


@pytest.mark.parametrize("table", ["alphas", "epochs"])
def test_last_epochs_are_those_of_each_trial_and_stage(study, table):
    rows = read_table(study, table)
    last = rows[rows["epoch"] == rows.groupby(["trial_id", "stage"], observed=True)["epoch"].transform("max")]
    for _ in range(2):
        found = read(study, table, last_epochs=True)
        pd.testing.assert_frame_equal(found, last.reset_index(drop=True), check_dtype=False)  # no nulls here, so integers
    pd.testing.assert_frame_equal(read(study, table, ["trial_id"], last_epochs=True), last[["trial_id"]].reset_index(drop=True))


@pytest.mark.parametrize("damage", ["cut", "another schema"])
def test_a_copy_that_is_damaged_or_of_another_release_is_not_believed(study, damage):
    read(study, "trials")
    kept = study / ".consolidated" / "trials.parquet"
    if damage == "cut":
        kept.write_bytes(kept.read_bytes()[:-100])
    else:
        table = pq.read_table(kept)
        table = table.set_column(table.schema.get_field_index("variant"), "variant", [["x"] * len(table)])
        about = table.schema.metadata[b"made_from"].replace(b'"schema": "', b'"schema": "0')
        pq.write_table(table.replace_schema_metadata({b"made_from": about}), kept)
    pd.testing.assert_frame_equal(read(study, "trials"), read_table(study, "trials"))


def test_few_files_leave_no_copy_and_a_folder_that_cannot_be_written_costs_nothing_but_time(study, monkeypatch):
    read_study_table(study, "trials")
    assert not (study / ".consolidated").exists()

    def refuse(path, content):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(consolidated, "write_whole", refuse)
    pd.testing.assert_frame_equal(read(study, "trials"), read_table(study, "trials"))


def test_leftovers_of_killed_writers_are_removed_once_they_are_old(study):
    (study / ".consolidated").mkdir()
    old, new = (study / ".consolidated" / name for name in (".trials.parquet.1.tmp", ".trials.parquet.2.tmp"))
    old.touch()
    new.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    read(study, "trials")
    assert not old.exists()
    assert new.exists()


def test_wrong_names_are_refused(study):
    with pytest.raises(ConfigError, match="unknown column 'loss', known are"):
        read(study, "epochs", ["loss"])
    with pytest.raises(ConfigError, match="table: 'epoch' is unknown"):
        read(study, "epoch")
    with pytest.raises(ConfigError, match="is not a folder"):
        read(study / "nowhere", "epochs")
