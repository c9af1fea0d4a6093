"""The five tables: rows come back as they were written; damaged, copied and doubled files are refused by name by every reader."""

import importlib
import json
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pdarts_tune.config.methods import RandomSampling
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.pdarts.genotype import Genotype
from pdarts_tune.results.schemas import PRIMARY_KEYS, SCHEMAS
from pdarts_tune.results.storage import Storage
from pdarts_tune.results.tables import final_genotype, final_genotypes, read_rows, read_study, read_table, table_file, write_rows
from pdarts_tune.study.plan import Arguments, Study, Variant, make_plan
from pdarts_tune.study.run import Source, StudyState
from synthetic import make_planned, make_study, make_trial

study_tables = importlib.import_module("common.study_tables")
publish = importlib.import_module("analysis.publish")

TABLES = ["trials", "epochs", "alphas", "genotypes", "evaluations"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    make_study(root, "depth_gap", seeds=(0, 1), failed=["depth_gap-shallow-s1"])
    make_study(root, "regularization", variants={"pdarts": SearchConfig()}, seeds=(0,), evaluation_seeds=())
    return root


def test_columns_that_came_later_are_null_in_files_of_older_checkouts_and_no_others_may_lack(tmp_path):
    for trial_id in ("new", "old", "odd"):
        make_trial(tmp_path, trial_id, trial_id, SearchConfig(method=RandomSampling()))
    old, odd = (tmp_path / "trials" / f"{name}.parquet" for name in ("old", "odd"))
    pq.write_table(pq.read_table(old).drop_columns(["precision", "compile"]), old)
    pq.write_table(pq.read_table(odd).drop_columns(["precision", "device"]), odd)
    (row,) = read_rows(tmp_path, "trials", "old")
    assert (row["precision"], row["compile"], row["tf32"]) == (None, None, False)
    with pytest.raises(ConfigError, match=r"odd\.parquet: is not of schema version 1 or 2 of the table trials"):
        read_table(tmp_path, "trials")
    odd.unlink()
    frame = read_table(tmp_path, "trials", ["trial_id", "precision"]).set_index("trial_id")
    assert frame["precision"].dropna().to_dict() == {"new": "fp32"}


def genotype_row(**changes):
    row = {"trial_id": "t", "stage": 1, "max_skips": 2, "genotype_id": "ab", "genotype": "Genotype(...)", "skips": 1, "depth": 3}
    return row | {"width": 2.5, "params": 10, "macs": 20, "inherited_accuracy": None} | changes


def test_every_column_says_what_it_is_and_in_which_unit():
    assert list(SCHEMAS) == TABLES
    for table, schema in SCHEMAS.items():
        assert schema.metadata[b"schema_version"] == b"2"
        assert set(PRIMARY_KEYS[table]) <= set(schema.names)
        for field in schema:
            assert field.metadata[b"description"], field
            assert field.metadata[b"unit"], field


def test_files_of_an_earlier_release_are_read_with_seconds_of_training_alone(tmp_path):
    """There `seconds` held the diagnostics. Every reader takes them off, and nothing is taken off twice once rows are written."""
    study = make_study(tmp_path, "s", {"a": SearchConfig(), "drawn": SearchConfig(method=RandomSampling())}, (0, 1), epochs=2)
    now = {table: read_table(study, table) for table in ("trials", "epochs")}
    assert now["epochs"]["diagnostic_seconds"].min() > 0
    for table in now:
        for path in sorted((study / table).iterdir())[:-1]:  # the last is of this release
            content = pq.read_table(path)
            content = content.set_column(
                content.column_names.index("seconds"),
                content.schema.field("seconds"),
                pc.add(content["seconds"], content["diagnostic_seconds"]),
            )
            later = {"trials": "diagnostic_seconds", "epochs": "diagnostic_peak_bytes"}[table]
            content = content.drop_columns([later]).replace_schema_metadata({"table": table, "schema_version": "1"})
            pq.write_table(content, path)
    names = sorted(now["trials"]["trial_id"])
    for table, expected in now.items():
        for column in ("seconds", "diagnostic_seconds"):
            values = expected[column].to_numpy()
            columns = [column, "trial_id"]
            assert read_table(study, table)[column].to_numpy() == pytest.approx(values)
            assert read_table(study, table, columns)[column].to_numpy() == pytest.approx(values)
            first = read_table(study, table, columns, only={"trial_id": names[:1]})
            assert first["trial_id"].unique().tolist() == names[:1]
            rows = [row[column] for name in names for row in read_rows(study, table, name)]
            assert rows == pytest.approx(values)
    for table in now:
        for name in names:
            rows = read_rows(study, table, name)
            if rows:
                write_rows(study, table, name, rows)
    for table, expected in now.items():
        assert read_table(study, table)["seconds"].to_numpy() == pytest.approx(expected["seconds"].to_numpy())


def test_rows_come_back_as_they_were_written(tmp_path):
    rows = [genotype_row(stage=stage, inherited_accuracy=accuracy) for stage, accuracy in ((1, None), (2, 0.5))]
    write_rows(tmp_path, "genotypes", "t", rows)
    assert read_rows(tmp_path, "genotypes", "t") == rows
    assert read_rows(tmp_path, "genotypes", "another") == []


def test_writing_again_replaces_and_leaves_no_other_file(tmp_path):
    write_rows(tmp_path, "genotypes", "t", [genotype_row(stage=stage) for stage in (1, 2, 3)])
    write_rows(tmp_path, "genotypes", "t", [genotype_row()])
    assert read_rows(tmp_path, "genotypes", "t") == [genotype_row()]
    assert [path.name for path in (tmp_path / "genotypes").iterdir()] == ["t.parquet"]


def test_a_write_that_fails_keeps_the_rows_that_were_there(tmp_path, monkeypatch):
    write_rows(tmp_path, "genotypes", "t", [genotype_row()])

    def fill_the_disk(content, file, **options):
        file.write(b"PAR1 half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        write_rows(tmp_path, "genotypes", "t", [genotype_row(stage=2)])
    assert read_rows(tmp_path, "genotypes", "t") == [genotype_row()]
    assert [path.name for path in (tmp_path / "genotypes").iterdir()] == ["t.parquet"]


def test_times_are_kept_to_the_millisecond_and_need_a_zone(tmp_path):
    make_trial(tmp_path, "t", "random", SearchConfig(method=RandomSampling()), status="running")
    (row,) = read_rows(tmp_path, "trials", "t")
    write_rows(tmp_path, "trials", "t", [row | {"started": datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)}])
    assert read_rows(tmp_path, "trials", "t")[0]["started"] == datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
    for wrong in (datetime(2026, 1, 2), 1760000000, 1.5, "2026-01-02"):
        with pytest.raises(ConfigError, match=r"row 0: started: .* is not a datetime with a time zone"):
            write_rows(tmp_path, "trials", "t", [row | {"started": wrong}])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([genotype_row(colour=1)], "table genotypes, trial t, row 0: unknown column colour"),
        ([genotype_row(), {"trial_id": "t"}], "row 1: missing column stage, max_skips, "),
        ([genotype_row(stage=None)], "row 0: stage is empty, it must be given"),
        ([genotype_row(stage=1.5)], "row 0: stage: 1.5 is not an integer"),
        ([genotype_row(stage=True)], "stage does not fit its type int64"),
        ([genotype_row(stage=10**30)], "stage does not fit its type int64"),
        ([genotype_row(genotype=7)], "genotype does not fit its type string"),
        ([genotype_row(trial_id="u")], "row 0: is of trial 'u'"),
        ([genotype_row(), genotype_row()], r"rows 0 and 1 have the same key \(trial_id=t, stage=1, max_skips=2\)"),
    ],
)
def test_wrong_rows_are_refused_in_one_line_and_not_written(tmp_path, rows, message):
    with pytest.raises(ConfigError, match=message) as error:
        write_rows(tmp_path, "genotypes", "t", rows)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "genotypes" / "t.parquet").exists()


def test_a_status_out_of_the_known_ones_is_refused(tmp_path):
    make_trial(tmp_path, "t", "random", SearchConfig(method=RandomSampling()))
    (row,) = read_rows(tmp_path, "trials", "t")
    with pytest.raises(ConfigError, match="status: 'done' is wrong, it must be one of completed, failed, out_of_memory, running"):
        write_rows(tmp_path, "trials", "t", [row | {"status": "done"}])


def test_numpy_scalars_are_accepted(tmp_path):
    write_rows(tmp_path, "genotypes", "t", [genotype_row(stage=np.int64(1), width=np.float32(2.5))])
    assert read_rows(tmp_path, "genotypes", "t") == [genotype_row()]


@pytest.mark.parametrize("trial_id", ["", "a/b", "..", ".hidden", "a b", "x" * 201, "a\n"])
def test_an_id_that_cannot_name_a_file_is_refused(tmp_path, trial_id):
    with pytest.raises(ConfigError, match=r"trial_id: .* cannot name a file"):
        write_rows(tmp_path, "genotypes", trial_id, [])


def test_a_study_cannot_have_the_name_of_a_table(tmp_path):
    with pytest.raises(ConfigError, match="a study cannot be called 'alphas'"):
        table_file("alphas", "trials", "t")


def test_a_results_folder_gives_all_studies_and_a_study_folder_its_own(results):
    assert set(read_table(results, "trials")["study"]) == {"depth_gap", "regularization"}
    trials = read_table(results / "depth_gap", "trials")
    assert set(trials["study"]) == {"depth_gap"}
    assert len(trials) == 10
    assert trials["trial_id"].is_unique
    assert trials["status"].value_counts().to_dict() == {"completed": 9, "failed": 1}
    assert list(read_table(str(results), "epochs").columns) == SCHEMAS["epochs"].names


def test_a_table_without_rows_is_empty_with_all_its_columns(results):
    frame = read_table(results / "regularization", "evaluations")
    assert frame.empty
    assert list(frame.columns) == SCHEMAS["evaluations"].names


def test_types_survive_the_way_into_pandas(results):
    trials = read_table(results, "trials")
    assert trials["started"].dt.tz is not None
    assert trials["seed"].dtype == np.int64
    evaluations = read_table(results, "evaluations")
    first = evaluations.iloc[0]
    assert np.mean(first["correct"]) == first["accuracy"]
    assert first["validation_accuracies"] is None
    joined = read_table(results, "genotypes").merge(trials[["trial_id", "variant"]], on="trial_id")
    assert len(joined) == len(read_table(results, "genotypes"))


def test_probabilities_sum_to_one_on_every_edge(results):
    alphas = read_table(results, "alphas")
    sums = alphas.groupby(["trial_id", "stage", "epoch", "cell", "edge"])["probability"].sum()
    assert (sums - 1).abs().max() < 1e-12
    assert not alphas.duplicated(list(PRIMARY_KEYS["alphas"])).any()


def test_columns_can_be_chosen(results):
    frame = read_table(results, "alphas", columns=["trial_id", "probability"])
    assert list(frame.columns) == ["trial_id", "probability"]
    with pytest.raises(ConfigError, match="unknown column 'probabilities', known are trial_id, stage"):
        read_table(results, "alphas", columns=["probabilities"])


def test_an_unknown_table_is_refused_and_the_five_are_named(results):
    with pytest.raises(ConfigError, match="'trails' is unknown, known are trials, epochs, alphas, genotypes, evaluations"):
        read_table(results, "trails")


def test_a_folder_without_tables_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no tables; give a results folder"):
        read_table(tmp_path, "trials")
    with pytest.raises(ConfigError, match="nowhere: is not a folder"):
        read_table(tmp_path / "nowhere", "trials")


def test_leftover_temporary_files_are_not_read(tmp_path):
    write_rows(tmp_path / "study", "genotypes", "t", [genotype_row()])
    for name in (".t.parquet.0011.tmp", ".u.parquet"):
        (tmp_path / "study" / "genotypes" / name).write_bytes(b"half a file")
    assert len(read_table(tmp_path, "genotypes")) == 1


@pytest.mark.parametrize("cut", [0, 3, 200, -5])
def test_a_damaged_file_is_named(tmp_path, cut):
    write_rows(tmp_path / "study", "genotypes", "t", [genotype_row()])
    path = tmp_path / "study" / "genotypes" / "t.parquet"
    path.write_bytes(path.read_bytes()[:cut])
    for read in (lambda: read_table(tmp_path, "genotypes"), lambda: read_rows(tmp_path / "study", "genotypes", "t")):
        with pytest.raises(ConfigError, match=r"genotypes.t\.parquet: cannot be read as Parquet") as error:
            read()
        assert "\n" not in str(error.value)


def test_a_file_with_other_columns_is_named_and_not_filled_with_nulls(tmp_path):
    path = tmp_path / "study" / "genotypes" / "t.parquet"
    path.parent.mkdir(parents=True)
    pd.DataFrame([genotype_row()]).drop(columns="macs").to_parquet(path)
    with pytest.raises(ConfigError, match=r"t\.parquet: is not of schema version 1 or 2 of the table genotypes"):
        read_table(tmp_path, "genotypes")


def test_a_file_from_before_a_column_joined_is_read_with_nulls_there(results, tmp_path):
    (path, *_) = sorted((results / "depth_gap" / "evaluations").glob("*.parquet"))
    later = ["left_out", "shared", "train_images", "mean", "std", "cell_evaluation", "tf32", "graph"]
    before = pq.read_table(path).drop_columns(later)
    old = tmp_path / "study" / "evaluations" / path.name
    old.parent.mkdir(parents=True)
    pq.write_table(before, old)
    (row,) = read_rows(tmp_path / "study", "evaluations", path.stem)
    (now,) = read_rows(results / "depth_gap", "evaluations", path.stem)
    assert row == now | dict.fromkeys(later)
    assert list(row) == SCHEMAS["evaluations"].names
    frame = read_table(tmp_path, "evaluations", ["shared", "trial_id"])
    assert list(frame) == ["shared", "trial_id"]
    assert frame.shared.isna().all()


def test_one_id_in_two_studies_is_refused_because_joins_would_double(tmp_path):
    for study in ("a", "b"):
        write_rows(tmp_path / study, "genotypes", "t", [genotype_row()])
    with pytest.raises(ConfigError, match="two studies have a trial t, a and b"):
        read_table(tmp_path, "genotypes")
    assert len(read_table(tmp_path / "a", "genotypes")) == 1


def test_a_reader_never_sees_half_a_file_while_another_process_writes(tmp_path):
    code = (
        "import json, sys; from pathlib import Path; from pdarts_tune.results.tables import write_rows\n"
        "row, n = json.loads(sys.argv[2]), 0\n"
        "while True:\n"
        "    n += 1\n"
        "    rows = [row | {'stage': stage} for stage in range(1, 1 + 20 * (n % 50))]\n"
        "    write_rows(Path(sys.argv[1]), 'genotypes', 't', rows)\n"
        "    print(n, flush=True)\n"
    )
    command = [sys.executable, "-c", code, tmp_path, json.dumps(genotype_row())]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        writer.stdout.readline()
        end = time.monotonic() + 1.5
        sizes = set()
        while time.monotonic() < end:
            rows = read_rows(tmp_path, "genotypes", "t")
            assert [row["stage"] for row in rows] == list(range(1, len(rows) + 1))
            sizes.add(len(rows))
    finally:
        writer.kill()
        writer.communicate()
    assert len(sizes) > 5


def test_the_synthetic_study_is_consistent(results):
    genotypes = read_table(results, "genotypes")
    assert (genotypes["skips"] <= genotypes["max_skips"]).all()
    assert all(str(Genotype.parse(text)) == text for text in genotypes["genotype"].unique())
    trials = read_table(results, "trials")
    final = genotypes.merge(trials[["trial_id", "max_skips"]], on=["trial_id", "max_skips"])
    assert set(read_table(results, "evaluations")["genotype_id"]) <= set(final["genotype_id"])


@pytest.mark.parametrize("table", ["alphas", "epochs"])
def test_first_epochs_are_those_of_each_trial_and_stage(results, table):
    rows = read_table(results, table)
    found = read_table(results, table, ["trial_id", "stage"], only={"epoch": [0]})
    pd.testing.assert_frame_equal(found, rows.loc[rows["epoch"] == 0, ["trial_id", "stage"]].reset_index(drop=True))


def test_rows_are_chosen_by_the_values_of_columns_that_need_not_be_read(results):
    rows = read_table(results, "genotypes")
    found = read_table(results, "genotypes", ["trial_id", "genotype"], only={"max_skips": [2, 8], "stage": (3,)})
    chosen = rows[rows["max_skips"].isin([2, 8]) & (rows["stage"] == 3)]
    assert 0 < len(chosen) < len(rows)
    pd.testing.assert_frame_equal(found, chosen[["trial_id", "genotype"]].reset_index(drop=True))
    assert read_table(results, "genotypes", only={"max_skips": []}).empty


@pytest.mark.parametrize("all_files", [False, True])
def test_files_from_before_a_column_joined_have_nulls_there(tmp_path, all_files):
    folder = make_study(tmp_path, "s", {"a": SearchConfig()}, (0, 1, 2), epochs=1, evaluation_seeds=())
    for path in sorted((folder / "trials").iterdir())[slice(None) if all_files else slice(1, 2)]:
        content = pq.read_table(path)
        pq.write_table(content.drop_columns([f.name for f in SCHEMAS["trials"] if b"later" in f.metadata]), path)
    found = read_table(folder, "trials")
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
        read_table(folder, "trials", ["trial_id"])


def test_rows_cannot_be_chosen_by_an_unknown_column(results):
    with pytest.raises(ConfigError, match="unknown column 'loss', known are"):
        read_table(results, "epochs", ["trial_id"], only={"loss": [1]})


def test_the_final_genotypes_are_those_of_the_last_stage_of_completed_trials_at_the_limits():
    trials = pd.DataFrame({"trial_id": ["a", "b", "c"], "status": ["completed", "completed", "running"], "max_skips": [2, 1, 2]})
    rows = [("a", 1, 2, "x"), ("a", 2, 2, "y"), ("a", 2, 1, "z"), ("b", 0, 1, "v"), ("c", 2, 2, "w")]
    genotypes = pd.DataFrame(rows, columns=["trial_id", "stage", "max_skips", "genotype_id"], index=range(5, 10))
    assert list(final_genotypes(genotypes, trials).index) == [6, 8]
    assert list(final_genotypes(genotypes, trials, (1,)).genotype_id) == ["z", "v"]
    for trial, genotype_id in zip(trials.to_dict("records"), ("y", "v", None), strict=True):
        rows = genotypes[genotypes.trial_id == trial["trial_id"]].to_dict("records")
        assert (final_genotype(trial, rows) or {}).get("genotype_id") == genotype_id


STUDY = Study("depth_gap", "?", lambda base: [Variant("a", base)])
PLAN = make_plan(STUDY, Arguments("smoke", seeds=2))


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
        "read_study": lambda folder: read_study(Storage(folder), table, [other]),
        "publish": lambda folder: publish.publish(folder, folder.parent / "out", ""),
    }
    if table == "alphas":
        readers["candidates"] = lambda folder: study_tables.read_candidates(study_tables.read_study(folder))
    else:
        readers["analysis"] = study_tables.read_study
    if table in ("trials", "evaluations"):
        readers["state"] = lambda folder: StudyState(PLAN, folder)
    if table == "trials":
        readers["reuse"] = lambda folder: Source(folder).find(PLAN.searches[0])
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


def test_a_study_is_not_continued_beside_a_copied_file(study, capsys):
    from pdarts_tune.study.cli import main

    shutil.copy(study / "trials" / "a-seed0.parquet", study / "trials" / "a-seed0 (copy).parquet")
    (study / "study.json").unlink()
    with pytest.raises(SystemExit) as stopped:
        main(STUDY, ["--preset", "smoke", "--seeds", "3", "--results", str(study.parent), "--dry-run", "--probe-seconds", "0"])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "trials/a-seed0 (copy).parquet: its rows are of trial a-seed0" in line
