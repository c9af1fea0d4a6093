"""Large studies' tables, read at once: the rows are those of results.read_table, and damaged files are named."""

import pandas as pd
import pyarrow.parquet as pq
import pytest

from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.results import tables
from pdarts_tune.results.schemas import SCHEMAS
from pdarts_tune.results.tables import final_genotype, final_genotypes, read_study_table, read_table
from synthetic import make_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("odd [name]*=?")  # patterns to DuckDB, were they not escaped
    return make_study(root, "stage=7", {"a": SearchConfig(), "b": SearchConfig()}, (0, 1), epochs=2)


@pytest.mark.parametrize("table", SCHEMAS)
def test_the_rows_are_those_of_the_files(study, table):
    truth = read_table(study, table)
    pd.testing.assert_frame_equal(read_study_table(study, table), truth)
    some = SCHEMAS[table].names[3::-1]
    pd.testing.assert_frame_equal(read_study_table(study, table, some), truth[some])


@pytest.mark.parametrize("table", ["alphas", "epochs"])
def test_first_epochs_are_those_of_each_trial_and_stage(study, table):
    rows = read_table(study, table)
    found = read_study_table(study, table, ["trial_id", "stage"], only={"epoch": [0]})
    pd.testing.assert_frame_equal(found, rows.loc[rows["epoch"] == 0, ["trial_id", "stage"]].reset_index(drop=True))


def test_rows_are_chosen_by_the_values_of_columns_that_need_not_be_read(study):
    rows = read_table(study, "genotypes")
    found = read_study_table(study, "genotypes", ["trial_id", "genotype"], only={"max_skips": [2, 8], "stage": (3,)})
    chosen = rows[rows["max_skips"].isin([2, 8]) & (rows["stage"] == 3)]
    assert 0 < len(chosen) < len(rows)
    pd.testing.assert_frame_equal(found, chosen[["trial_id", "genotype"]].reset_index(drop=True))
    assert read_study_table(study, "genotypes", only={"max_skips": []}).empty


def test_a_footer_that_is_larger_than_what_is_read_of_it_is_parsed(study, monkeypatch):
    monkeypatch.setattr(tables, "_FOOTER_BYTES", 100)
    pd.testing.assert_frame_equal(read_study_table(study, "trials"), read_table(study, "trials"))


def test_a_table_without_rows_has_its_columns(tmp_path):
    folder = make_study(tmp_path, "s", {"a": SearchConfig()}, (0,), epochs=1, evaluation_seeds=())
    for columns in (None, ["accuracy", "seed"]):
        pd.testing.assert_frame_equal(
            read_study_table(folder, "evaluations", columns), read_table(folder, "evaluations", columns), check_dtype=False
        )


@pytest.mark.parametrize("all_files", [False, True])
def test_files_from_before_a_column_joined_have_nulls_there(tmp_path, all_files):
    folder = make_study(tmp_path, "s", {"a": SearchConfig()}, (0, 1, 2), epochs=1, evaluation_seeds=())
    for path in sorted((folder / "trials").iterdir())[slice(None) if all_files else slice(1, 2)]:
        content = pq.read_table(path)
        pq.write_table(content.drop_columns([f.name for f in SCHEMAS["trials"] if b"later" in f.metadata]), path)
    found = read_study_table(folder, "trials")
    pd.testing.assert_frame_equal(found, read_table(folder, "trials"))
    assert found["precision"].isna().sum() == (3 if all_files else 1)
    assert found["seed"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("damage", ["cut", "no table", "another schema", "another version", "another writer"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, damage):
    folder = make_study(tmp_path, "s", {"a": SearchConfig()}, (0, 1), epochs=1, evaluation_seeds=())
    path = folder / "trials" / "s-a-s1.parquet"
    content = pq.read_table(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "no table":
        path.write_bytes(b"no table")
    elif damage == "another schema":
        pq.write_table(content.drop_columns("variant"), path)
    elif damage == "another writer":  # which keeps the project's own metadata, but not the schema's text
        pq.write_table(content, path, store_schema=False)
    else:
        pq.write_table(content.replace_schema_metadata({b"schema_version": b"0"}), path)
    with pytest.raises(ConfigError, match=r"s-a-s1\.parquet: (cannot be read as Parquet|is not of schema version)"):
        read_study_table(folder, "trials", ["trial_id"])


def test_wrong_names_are_refused(study):
    with pytest.raises(ConfigError, match="unknown column 'loss', known are"):
        read_study_table(study, "epochs", ["loss"])
    with pytest.raises(ConfigError, match="unknown column 'loss', known are"):
        read_study_table(study, "epochs", ["trial_id"], only={"loss": [1]})
    with pytest.raises(ConfigError, match="table: 'epoch' is unknown"):
        read_study_table(study, "epoch")
    with pytest.raises(ConfigError, match="is not a folder"):
        read_study_table(study / "nowhere", "epochs")


def test_the_final_genotypes_are_those_of_the_last_stage_of_completed_trials_at_the_limits():
    trials = pd.DataFrame({"trial_id": ["a", "b", "c"], "status": ["completed", "completed", "running"], "max_skips": [2, 1, 2]})
    rows = [("a", 1, 2, "x"), ("a", 2, 2, "y"), ("a", 2, 1, "z"), ("b", 0, 1, "v"), ("c", 2, 2, "w")]
    genotypes = pd.DataFrame(rows, columns=["trial_id", "stage", "max_skips", "genotype_id"], index=range(5, 10))
    assert list(final_genotypes(genotypes, trials).index) == [6, 8]
    assert list(final_genotypes(genotypes, trials, (1,)).genotype_id) == ["z", "v"]
    for trial, genotype_id in zip(trials.to_dict("records"), ("y", "v", None), strict=True):
        rows = genotypes[genotypes.trial_id == trial["trial_id"]].to_dict("records")
        assert (final_genotype(trial, rows) or {}).get("genotype_id") == genotype_id
