"""A published copy holds what the study's folder holds, and is read like it."""

import importlib
import json
import shutil

import duckdb
import pandas as pd
import pyarrow.dataset
import pytest

from pdarts_tune.config.methods import RandomSampling
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError, config_id, from_dict
from pdarts_tune.results.schemas import PRIMARY_KEYS, SCHEMAS
from pdarts_tune.results.storage import Storage
from pdarts_tune.results.tables import TOGETHER, read_rows, read_study, read_table, write_rows
from synthetic import make_study

publish = importlib.import_module("analysis.publish")
rq1 = importlib.import_module("analysis.rq1_depth_gap")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    variants = {"progressive": SearchConfig(), "random": SearchConfig(method=RandomSampling())}
    folder = make_study(tmp_path_factory.mktemp("results"), "depth_gap", variants, (0, 1), epochs=2, test_images=20)
    (folder / "study.json").write_text('{"variants": {"progressive": {}, "random": {}}, "seeds": {"progressive": 2, "random": 2}}')
    (folder / "completed.json").write_text("{}")
    (folder / "report").mkdir()
    (folder / "report" / "rq1.md").write_text("# Answer\n")
    (folder / "report" / "rq1.svg").write_text("<svg/>")
    return folder


@pytest.fixture(scope="module")
def copy(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("docs") / "depth_gap"
    publish.main(["--results", str(study), "--out", str(out), "--command", "python studies/depth_gap.py"])
    return out


@pytest.mark.parametrize("table", SCHEMAS)
def test_a_copy_has_one_file_a_table_with_the_same_rows(study, copy, table):
    assert [path.name for path in (copy / table).iterdir()] == [f"{TOGETHER}.parquet"]
    assert len(read_table(copy, table))
    pd.testing.assert_frame_equal(read_table(copy, table), read_table(study, table))
    pd.testing.assert_frame_equal(read_table(copy, table), read_table(study, table))


@pytest.mark.parametrize("table", SCHEMAS)
@pytest.mark.parametrize("folder", ["study", "copy"])
def test_other_programs_read_the_same_rows_as_the_page_on_tables_says(request, folder, table):
    place = request.getfixturevalue(folder)
    whole = place / table
    rows = read_table(place, table)
    found = {
        "pandas": pd.read_parquet(whole),
        "pyarrow": pyarrow.dataset.dataset(whole).to_table().to_pandas(),
        "duckdb": duckdb.sql(f"SELECT * FROM '{whole}/*.parquet'").df(),
    }
    assert len(rows)
    for program, frame in found.items():
        assert list(frame) == list(rows), program
        order = list(PRIMARY_KEYS[table])
        values = (pd.DataFrame(part[order]).astype(str).sort_values(order, ignore_index=True) for part in (frame, rows))
        pd.testing.assert_frame_equal(*values)


def test_rows_of_one_trial_are_found_in_a_copy(study, copy):
    (trial,) = (name for name in read_table(study, "epochs").trial_id.unique() if name.endswith("progressive-s1"))
    for columns in (None, ["epoch", "stage"]):
        assert len(read_rows(copy, "epochs", trial, columns)) == 6
        assert read_rows(copy, "epochs", trial, columns) == read_rows(study, "epochs", trial, columns)
    assert read_rows(copy, "alphas", trial) == read_rows(study, "alphas", trial)
    assert read_rows(copy, "epochs", "nobody") == []


def test_a_copy_answers_as_the_study_does(study, copy):
    answers = [rq1.build(folder) for folder in (study, copy)]
    assert answers[0].conclusion == answers[1].conclusion
    for name, table in answers[0].tables.items():
        pd.testing.assert_frame_equal(table, answers[1].tables[name])


def test_a_copy_says_where_it_is_from_and_has_the_report(copy):
    text = (copy / "README.md").read_text()
    assert "| command | `python studies/depth_gap.py` |" in text
    assert "| searches | 4, " in text
    assert sorted(path.name for path in (copy / "report").iterdir()) == ["rq1.md"]


def study_on(data, folder):
    """A finished study whose searches are on the first of these data sets."""
    folder = make_study(folder, "depth_gap", {"progressive": SearchConfig(data=data[0])}, (0,), epochs=2, test_images=20)
    for row in read_rows(folder, "evaluations", read_table(folder, "evaluations").trial_id[0]):
        for number, name in enumerate(data[1:]):
            trial = f"more-{number}"
            write_rows(folder, "evaluations", trial, [row | {"trial_id": trial, "data": name}])
    (folder / "study.json").write_text(json.dumps({"variants": {"progressive": {"data": data[0]}}}))
    (folder / "completed.json").write_text("{}")
    (folder / "report").mkdir()
    (folder / "report" / "rq1.md").write_text(f"10 searches on {data[0]}.\n")
    return folder


def test_a_copy_does_not_tell_in_which_folders_the_data_were(tmp_path):
    place = f"parquet:{tmp_path}/père/cifar"
    study = study_on([place, f"{place}/more", "digits"], tmp_path)
    publish.main(["--results", str(study), "--out", str(tmp_path / "copy"), "--command", f"study.py --data {place}"])
    trials, evaluations = read_table(tmp_path / "copy", "trials"), read_table(tmp_path / "copy", "evaluations")
    assert set(trials.data) == {"parquet:cifar"}
    assert set(evaluations.data) == {"parquet:cifar", "parquet:more", "digits"}
    for row in trials.itertuples():
        assert row.config_id == config_id(SearchConfig(data="parquet:cifar", seed=row.seed, stages=stages_of(row)))
    for file in (tmp_path / "copy").rglob("*.*"):
        text = file.read_bytes() if file.suffix != ".parquet" else read_table(tmp_path / "copy", file.parent.name).to_csv().encode()
        assert b"re/cifar" not in text, file
    assert "`study.py --data parquet:cifar`" in (tmp_path / "copy" / "README.md").read_text()


def stages_of(row):
    return from_dict(SearchConfig, json.loads(row.config)).stages


def test_two_data_sets_that_would_have_one_name_in_a_copy_are_refused(tmp_path, capsys):
    study = study_on(["parquet:/here/cifar10", "parquet:/there/cifar10"], tmp_path)
    with pytest.raises(SystemExit, match="2"):
        publish.main(["--results", str(study), "--out", str(tmp_path / "copy")])
    assert "would both be called parquet:cifar10 in a copy; rename one of the folders" in capsys.readouterr().err
    assert not (tmp_path / "copy").exists()


def test_a_trial_that_is_in_a_copy_and_beside_it_is_not_counted_twice(study, copy, tmp_path):
    folder = shutil.copytree(copy, tmp_path / "depth_gap")
    first = min((study / "trials").iterdir())
    shutil.copy(first, folder / "trials")
    readers = (read_table, lambda place, table: read_rows(place, table, first.stem), read_columns)
    for read in readers:
        with pytest.raises(ConfigError, match=rf"trials/{first.name}: stands beside all.parquet, which holds all trials"):
            read(folder, "trials")


def test_a_copy_of_an_earlier_release_is_refused_with_the_way_on(study, copy, tmp_path, capsys):
    folder = shutil.copytree(copy, tmp_path / "depth_gap")
    first = read_table(folder, "epochs").trial_id[0]
    (folder / "epochs" / "all.parquet").rename(folder / "epochs" / "_all.parquet")
    readers = (read_table, lambda place, table: read_rows(place, table, first), read_columns)
    for read in readers:
        with pytest.raises(ConfigError, match=r"epochs/_all.parquet: pandas passes over this name .* rename it to all.parquet$"):
            read(folder, "epochs")
    for arguments in (["--results", str(folder), "--out", str(tmp_path / "out")], ["--results", str(study), "--out", str(folder)]):
        with pytest.raises(SystemExit, match="2"):
            publish.main(arguments)
        assert "epochs/_all.parquet: pandas passes over this name" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def read_columns(folder, table):
    return read_study(Storage(folder), table, ["trial_id"])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "completed.json").unlink(), "has no completed.json; run the study's command again"),
        (lambda folder: shutil.rmtree(folder / "trials"), "is not the folder of a study"),
    ],
)
def test_what_is_no_finished_study_is_refused_and_nothing_is_written(study, tmp_path, capsys, spoil, says):
    folder = shutil.copytree(study, tmp_path / "depth_gap")
    spoil(folder)
    with pytest.raises(SystemExit, match="2"):
        publish.main(["--results", str(folder), "--out", str(tmp_path / "out")])
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_study_is_not_overwritten_by_a_copy_of_another(study, tmp_path, capsys):
    other = shutil.copytree(study, tmp_path / "regularization")
    with pytest.raises(SystemExit, match="2"):
        publish.main(["--results", str(study), "--out", str(other)])
    assert "so it is a study and no copy of one; name another folder" in capsys.readouterr().err
    assert (other / "report" / "rq1.svg").exists()
