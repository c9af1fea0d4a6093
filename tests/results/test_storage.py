import errno
import fcntl
import json
import os
from pathlib import Path

import fsspec
import pytest
from filelock import Timeout
from test_tables import genotype_row

from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.results.storage import Storage, hold_lock, open_filesystem
from pdarts_tune.results.tables import read_rows, read_table, write_rows


@pytest.fixture(params=["folder", "memory"])
def storage(request, tmp_path):
    """A folder, and a file system of fsspec that is none of this machine's."""
    if request.param == "folder":
        return Storage(tmp_path / "study")
    fsspec.filesystem("memory").store.clear()
    return Storage("memory://bucket/study")


def test_what_is_written_can_be_read_replaced_listed_and_removed(storage):
    assert storage.stamps("trials") == {}
    assert storage.stamp("trials/a") == ""
    storage.write("trials/a", b"one")
    storage.write("trials/b", b"other")
    first = storage.stamp("trials/a")
    assert storage.stamps("trials") == {"a": first, "b": storage.stamp("trials/b")}
    storage.write("trials/a", b"longer")
    assert storage.read("trials/a") == b"longer"
    assert storage.stamp("trials/a") != first
    assert storage.folders() == ["trials"]
    assert storage.used() == (len(b"longer" + b"other"), 2)
    storage.remove("trials/a")
    storage.remove("trials/a")
    assert list(storage.stamps("trials")) == ["b"]
    with pytest.raises(FileNotFoundError):
        storage.read("trials/a")


def test_rows_come_back_from_either(storage):
    write_rows(storage, "genotypes", "t", [genotype_row()])
    write_rows(storage.location, "genotypes", "u", [genotype_row(trial_id="u")])
    assert read_rows(storage, "genotypes", "t") == [genotype_row()]
    assert read_rows(storage, "genotypes", "none") == []
    assert list(read_table(storage, "genotypes").trial_id) == ["t", "u"]
    assert len(read_table(storage.location.rsplit("/", 1)[0], "genotypes")) == 2


def test_files_are_copied_down(storage, tmp_path):
    storage.write("trials/a", b"one")
    storage.copy_down("trials", tmp_path / "copy")
    assert (tmp_path / "copy" / "a").read_bytes() == b"one"


def test_a_write_that_dies_leaves_the_old_content_and_no_other_file(tmp_path, monkeypatch):
    storage = Storage(tmp_path)
    storage.write("a", b"old")

    def die(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", die)
    with pytest.raises(OSError, match="No space left"):
        storage.write("a", b"new")
    assert storage.read("a") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("s3://key:secret@bucket/folder", "must not hold credentials; give them in the environment"),
        ("nosuch://bucket/folder", "cannot open nosuch://bucket/folder"),
    ],
)
def test_a_location_that_cannot_be_opened_is_refused_in_one_line(location, message):
    with pytest.raises(ConfigError, match=message) as error:
        Storage(location)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_an_object_store_is_opened_with_what_the_environment_says_and_keeps_no_secret(monkeypatch):
    import pickle

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "known")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret that nobody may see")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    filesystem, path = open_filesystem("s3://bucket/folder/study")
    assert path == "bucket/folder/study"
    assert b"nobody may see" not in pickle.dumps(filesystem)


def test_two_folders_of_one_study_are_read_as_one(tmp_path):
    for place, trial in (("here", "t"), ("there", "u")):
        write_rows(tmp_path / place / "study", "genotypes", trial, [genotype_row(trial_id=trial)])
    both = [tmp_path / "here", tmp_path / "there" / "study"]
    assert list(read_table(both, "genotypes").trial_id) == ["t", "u"]
    write_rows(tmp_path / "there" / "study", "genotypes", "t", [genotype_row()])
    with pytest.raises(ConfigError, match=r"here.study and .*there.study both have a trial t, which would be counted twice"):
        read_table(both, "genotypes")


def test_two_folders_of_different_definitions_are_not_mixed(tmp_path):
    for place, epochs in (("here", 1), ("there", 2)):
        folder = tmp_path / place / "study"
        write_rows(folder, "genotypes", place, [genotype_row(trial_id=place)])
        Path(folder, "study.json").write_text(f'{{"study": "study", "evaluation": {{"epochs": {epochs}}}, "variants": {{}}}}')
    with pytest.raises(ConfigError, match=r"are of different definitions of one study: evaluation.epochs was 1, is 2"):
        read_table([tmp_path / "here", tmp_path / "there"], "genotypes")


def test_two_folders_with_different_counts_of_seeds_are_not_averaged_over(tmp_path):
    for place, variant, seeds in (("here", "flat", 2), ("there", "deep", 3)):
        folder = tmp_path / place / "study"
        write_rows(folder, "genotypes", place, [genotype_row(trial_id=place)])
        definition = {"study": "study", "evaluation": {}, "variants": {variant: {}}, "seeds": {variant: seeds}}
        Path(folder, "study.json").write_text(json.dumps(definition))
    with pytest.raises(ConfigError, match=r"counts of seeds, 2 of flat in \S+here.study, 3 of deep in \S+there.study; give each"):
        read_table([tmp_path / "here", tmp_path / "there"], "genotypes")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_holds_off_this_machines_processes(tmp_path, monkeypatch, number):
    real = fcntl.flock

    def flock(descriptor, operation):
        if Path(f"/proc/self/fd/{descriptor}").resolve().is_relative_to(tmp_path):
            raise OSError(number, os.strerror(number))
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with hold_lock(tmp_path / "a" / ".lock", timeout=0), pytest.raises(Timeout), hold_lock(tmp_path / "a" / ".lock", timeout=0):
        pass
    with hold_lock(tmp_path / "a" / ".lock", timeout=0):
        pass
